"""Secrets never appear in logs, status, exceptions, process titles or command lines.

The real commands run, with all that makes a Python program talk turned up, and with failures of
every kind; then ``tests/leaks.py`` looks for each secret that there was, in all forms. Out of scope
are core dumps, swap, and whoever may read our memory.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from leaks import (
    BROKEN_BROKER,
    BROKEN_CLIENT,
    IN_A_BROKER,
    TALKATIVE,
    Secrets,
    Watched,
    leaks,
    open_files,
    until,
)

from accord import messages
from accord.circuit import Circuit, Route
from accord.messages import Hello, Push, encode
from accord.onion import expanded_key, onion_from_seed
from accord.problems import Problem
from broker.brokerage import Brokerage, Ticket, secret_of
from broker.records import Changes, ModelRow, SessionRow
from broker.verdict import Update
from client.dataset import Dataset
from client.session import Session, Step, load_session

EPSILON = "0.7310585786"
SETTINGS = {"max_updates": "25", "minimum": "1", "admission": "1", "update": "1", "evict": "0"}


def write_rows(path: Path, seed: int) -> list[str]:
    """A table of cells that nothing else looks like; gives them."""
    chance = random.Random(seed)
    lines, cells = ["a,b,c,y"], []
    for _ in range(80):
        row = [chance.uniform(-1, 1) for _ in range(3)]
        cells += [f"{cell:.13f}" for cell in row]
        lines.append(",".join([*cells[-3:], str(int(row[0] > 0))]))
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return cells


def write_task(watched: Watched, table: Path, task: Path) -> None:
    """A task for this table, drafted and shortened."""
    watched.run("init", "curate", "--init", table, "--target", "y", "--title", "T",
                "--output", task)
    text = task.read_text()
    for name, value in SETTINGS.items():
        text, count = re.subn(rf"^{name} = \S+", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1
    task.write_text(text)


def gather(secrets: Secrets, watched: Watched, home: Path) -> None:
    """All secrets that the processes had: those that they drew, and those on their disks."""
    assert secrets.add_drawn(watched.drawn) > 50
    for path in home.rglob("*.seed"):
        seed = path.read_bytes()
        secrets.add(path.name, seed)
        secrets.add("expanded " + path.name, expanded_key(seed))
        secrets.add("secret of " + path.name, secret_of(seed))
    for path in home.rglob("sessions/*.json"):
        session = load_session(path)
        assert session.token is not None and session.puzzle is not None
        secrets.add("token", session.token)
        secrets.add("lock", session.puzzle.lock)
    for path in home.rglob("salts/*"):
        secrets.add("salt", bytes.fromhex(path.read_text().strip()))
    for path in home.rglob("curator.key"):
        key: Any = load_pem_private_key(path.read_bytes(), None)
        secrets.add("curator's key", key.private_bytes_raw())
    for path in home.rglob("control_auth_cookie"):
        secrets.add("cookie", path.read_bytes())


async def visit(way: Route, desk: str, model: str, tokens: list[bytes]) -> list[tuple[str, bytes]]:
    """Ask what anybody may ask, and what nobody should; all that was answered."""
    told = []
    for onion in (desk, model):
        for path in ("/", "/status", "/task", "/model", "/nothing", "/train"):
            async with Circuit(way, onion, "someone") as circuit:
                told.append((path, await answered(circuit.get(path, 1 << 22))))
    junk = [b"", b"\xc1", b"\x80" * 3000, encode(Hello(b"x" * 32)),
            encode(Push(b"x" * 16, b"", b""))]
    for raw in junk:
        for path in ("/join", "/curate", "/task"):
            async with Circuit(way, model if path != "/curate" else desk, "someone") as circuit:
                told.append((path, await answered(circuit.post(path, raw))))
        for token in (None, *tokens):
            async with Circuit(way, model, "someone") as circuit:
                try:
                    line = await circuit.websocket("/train", 1 << 16)
                    if token is not None:
                        await line.send(encode(Hello(token)))
                    await line.send(raw)
                    told.append(("/train", await line.receive(0.5)))
                except Problem as problem:
                    told.append(("/train", problem.sentence.encode()))
    return told


async def answered(work: Any) -> bytes:
    """What came, or the sentence of the refusal."""
    try:
        return bytes(await work)
    except Problem as problem:
        return f"{problem.sentence} {problem!r}".encode()


def result_of(watched: Watched, name: str, key: str) -> str:
    """A value of the last JSON line that a command printed."""
    lines = (watched.directory / f"{name}.out").read_text().splitlines()
    return str(json.loads(lines[-1])[key])


@pytest.mark.slow
def test_no_secret_is_seen_anywhere(tmp_path: Path) -> None:
    home, printed = tmp_path / "home", tmp_path / "printed"
    home.mkdir()
    printed.mkdir(mode=0o700)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    where = f"{host}:{port}"
    way = ["--tor", "none", "--direct", where, "--json"]
    rows = write_rows(home / "mine.csv", 1)
    judging = write_rows(home / "validation.csv", 2)
    serve = ["broker", "--tor", "none", "--listen", where, "--json", "--state", home / "broker"]
    client = ["--state", home / "client"]
    answers: list[tuple[str, bytes]] = []
    with Watched(printed) as watched:
        write_task(watched, home / "validation.csv", home / "task.toml")
        broker = watched.start("broker", *serve, more=IN_A_BROKER)
        until(lambda: b"onion" in (printed / "broker.out").read_bytes())
        desk = result_of(watched, "broker", "onion")
        watched.run("curate", "curate", home / "task.toml", "--validation",
                    home / "validation.csv", "--broker", desk, *way, "--state", home / "curator")
        onion = result_of(watched, "curate", "onion")
        for state in ("client", "other"):
            watched.run(f"join-{state}", "join", onion, "--data", home / "mine.csv", "--epsilon",
                        EPSILON, "--batch", 20, "--budget", 50, "--min-clients", 1, "--output",
                        home / f"{state}.safetensors", *way, "--state", home / state)
        watched.run("status", "status", onion, *way)
        watched.run("early", "fetch", onion, *way, "--output", home / "no.safetensors", status=7)
        # One whose step is broken: its traceback passes by rows and budget.
        watched.run("broken", "solve", *way, "--state", home / "other", status=1,
                    more=BROKEN_CLIENT)
        assert b"planted in the step" in watched.printed("broken")
        solve = watched.start("solve", "solve", *way, *client)
        session = home / "client" / "sessions" / f"{onion}.json"
        until(lambda: load_session(session).token is not None)
        token = load_session(session).token
        assert token is not None
        broker.kill()
        broker.wait()
        broker = watched.start("broken-broker", *serve, more=IN_A_BROKER + BROKEN_BROKER)
        for place in (b"a handler", b"the clock's work", b"the store"):
            until(lambda place=place: b"planted in " + place in watched.printed("broken-broker"))
        other = load_session(home / "other" / "sessions" / f"{onion}.json").token
        assert other is not None
        answers += asyncio.run(visit(Route(None, (host, port)), desk, onion, [other]))
        broker.kill()
        broker.wait()
        broker = watched.start("broker", *serve, more=IN_A_BROKER)
        assert solve.wait(120) == 0, watched.printed("solve")[-2000:]
        answers += asyncio.run(visit(Route(None, (host, port)), desk, onion, [other, token]))
        watched.run("status", "status", onion, *way)
        watched.run("fetch", "fetch", onion, *way, "--output", home / "fetched.safetensors")
        secrets = Secrets()
        gather(secrets, watched, home)
        # Files that are damaged, or open to others, are complained of, and not shown.
        spoiled = home / "spoiled.json"
        spoiled.write_bytes(session.read_bytes().replace(b'"onion"', b'"other"'))
        watched.run("spoiled", "solve", "--session", spoiled, *way, status=9)
        spoiled.unlink()
        (ledger,) = (home / "other" / "ledgers").glob("*.ledger")
        ledger.write_bytes(ledger.read_bytes().replace(b"ledger", b"ledgre"))
        watched.run("ledger", "solve", *way, "--state", home / "other", status=9)
        broker.terminate()
        broker.wait()
        seed = home / "broker" / "desk.seed"
        seed.chmod(0o644)
        watched.run("seed", *serve, status=9)
        seed.chmod(0o600)
    assert {"salt", "token", "lock", "drawn", "desk.seed", "onion.seed", "curator's key"} \
        <= secrets.names
    for cell in rows + judging:
        secrets.add_text("a cell", cell.lstrip("-")[:12])
    # It has seen what it is to look through: asyncio's callbacks, a page, a model.
    for name in ("broker", "solve"):
        assert re.search(rb"Executing <(Task|Handle|TimerHandle).*took", watched.printed(name))
    assert {path for path, _ in answers} >= {"/", "/status", "/task", "/model", "/train"}
    assert any(len(content) > 500 for path, content in answers if path == "/model")
    everywhere = [*watched.everything(), *answers, *open_files(home)]
    assert any("fetched.safetensors" in name for name, _ in everywhere)
    assert not (found := leaks(secrets, everywhere)), found[:10]
    # What a client wishes is on its own command line; nobody else has it.
    wishes = Secrets()
    wishes.add_text("epsilon", EPSILON)
    for cell in rows:
        wishes.add_text("a cell", cell.lstrip("-")[:12])
    theirs = [(str(path), path.read_bytes()) for state in ("broker", "curator")
              for path in (home / state).rglob("*") if path.is_file()]
    told = [(name, content) for name, content in watched.everything()
            if name.startswith(("broker", "broken-broker", "curate", "status", "fetch"))]
    assert len(theirs) > 5 and len(told) > 5
    assert not leaks(wishes, [*theirs, *told, *answers])


PLANTED = {
    "log": "import logging; logging.getLogger('tormentor').debug('joined as %s', TOKEN)",
    "hex": "import logging; logging.info('token %s', TOKEN.hex())",
    "base64": "import base64; print(base64.b64encode(b'Bearer ' + TOKEN))",
    "base32": "import base64; print(base64.b32encode(b'key' + TOKEN).decode().lower())",
    "numbers": "print(list(TOKEN))",
    "part": "print(TOKEN[:12].hex())",
    "exception": "raise KeyError(TOKEN)",
    "struct": "import msgspec; print(msgspec.defstruct('S', [('token', bytes)])(TOKEN))",
    "task": """
import asyncio
async def ask(token): await asyncio.sleep(0)
async def main():
    asyncio.get_running_loop().call_soon(print, 'x', TOKEN.hex())
    await asyncio.sleep(0.01)
asyncio.run(main(), debug=True)""",
    "argv": """
import subprocess, sys
subprocess.run([sys.executable, '-c', 'import time; time.sleep(1)', TOKEN.hex()])""",
    "environ": """
import os, subprocess, sys
subprocess.run([sys.executable, '-c', 'import time; time.sleep(1)'],
               env=os.environ | {'TOKEN': TOKEN.hex()})""",
    "title": """
import time
open('/proc/self/comm', 'wb').write(TOKEN.hex()[:15].encode())
time.sleep(1)""",
}


@pytest.mark.slow
def test_planted_leaks_are_found(tmp_path: Path) -> None:
    token = bytes(random.Random(5).randbytes(32))
    secrets = Secrets()
    secrets.add("token", token)
    # A title has 15 letters.
    secrets.add_text("token", token.hex()[:15])
    quiet = TALKATIVE.format(least=16, more="").partition("import tormentor")[0]
    (tmp_path / "token").write_bytes(token)
    quiet += f"TOKEN = open({str(tmp_path / 'token')!r}, 'rb').read()\n"
    for name, plant in ("nothing", "pass"), *PLANTED.items():
        directory = tmp_path / name
        directory.mkdir()
        with Watched(directory) as watched:
            watched.start_program("planted", quiet + plant).wait(30)
        found = leaks(secrets, watched.everything())
        assert bool(found) == (name != "nothing"), (name, found)


def test_an_open_file_is_looked_into(tmp_path: Path) -> None:
    secrets = Secrets()
    secrets.add("key", b"0123456789abcdef")
    for name, mode in ("private", 0o600), ("open", 0o640), ("tor.log", 0o600):
        (tmp_path / name).write_bytes(b"-- 0123456789abcdef --")
        (tmp_path / name).chmod(mode)
    found = leaks(secrets, open_files(tmp_path))
    assert {Path(line.split(" has ")[0]).name for line in found} == {"open", "tor.log"}


def test_what_is_printed_by_mistake_tells_nothing(tmp_path: Path) -> None:
    secrets, chance = Secrets(), random.Random(6)

    def secret(size: int) -> bytes:
        value = chance.randbytes(size)
        secrets.add("it", value)
        return value

    vector = np.random.default_rng(7).normal(size=4)
    for cell in vector:
        secrets.add_text("a number", f"{abs(cell):.5f}")
        secrets.add_text("a number", str(abs(cell))[:10])
    wire = messages.vector_to_wire(vector)
    secrets.add("a vector", wire)
    work = messages.Work(secret(16), wire, secret(41), 3)
    signed = messages.SignedTask(b"{}", b"k" * 32, b"s" * 64)
    puzzle = messages.AdmissionPuzzle(secret(41), 3, 60.0)
    session = Session(
        onion="x.onion", task=signed, data="/x/mine.csv", fingerprint="ab" * 32, epsilon=1.0,
        batch=50, min_clients=1, budget=8.0, delta=1e-6, max_difficulty=6, ledger="/x",
        output="/x/m", puzzle=puzzle, solution=secret(12), token=secret(32))
    row = SessionRow(secret(32), 1, 2, 0, 0.0, secret(24), secret(16))
    model = ModelRow("training", vector, 1, vector, 0.1, 0.1, 1, 0, 0, 0, 0.0, secret(24), 2.0,
                     1.0, "")
    things: list[object] = [
        messages.Curate(signed, wire, secret(16), secret(16)), puzzle,
        messages.Join(secret(41), secret(12), 2), messages.Welcome(secret(32)),
        Hello(secret(32)), Push(secret(16), secret(12), wire), work,
        messages.Turn(secret(16), work), session, Brokerage(secret(32), chance.randbytes),
        Ticket(work, vector), Update(secret(32), vector, vector, vector, vector),
        row, model, Changes(model, [row]), Step(vector, secret(41), 3),
        Dataset(vector[None], vector[:1], "ab" * 32, tmp_path / "mine.csv"),
        Circuit(Route(None, ("h", 1)), onion_from_seed(b"o" * 32), secret(16).hex()),
    ]
    for thing in things:
        for shown in (repr(thing), str(thing), f"{thing}", repr([thing]), repr({"x": thing})):
            assert not secrets.found(shown.encode()), shown
    # And the harness sees what it should: a message of msgspec's own kind tells all.
    usual = msgspec.defstruct("Usual", [("token", bytes)])
    assert secrets.found(repr(usual(session.token)).encode())


async def test_a_finished_task_tells_nothing_of_its_result() -> None:
    async def hello() -> Hello:
        return Hello(b"0123456789abcdefghijklmnopqrstuv")

    task = asyncio.create_task(hello())
    await task
    assert "result=Hello(...)" in repr(task)


@pytest.mark.slow
def test_nobody_prints_locals_with_a_traceback() -> None:
    program = (
        "import sys, logging, tormentor\n"
        "for name in tormentor.COMMANDS:\n"
        "    tormentor.main.get_command(None, name)\n"
        "import broker.desk, client.agent, lab.demo\n"
        "assert sys.excepthook is sys.__excepthook__\n"
        "import threading; assert threading.excepthook is threading.__excepthook__\n")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60,
                   cwd=Path(__file__).parent.parent)
