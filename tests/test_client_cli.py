"""join, solve, predict, verify as a person types them, against a stand-in for a broker."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import resource
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from client_home import World, a_world, lines, refused, until, world_free
from client_world import CURATOR, HEADER, ONION, SEED, make_task, write_rows

from accord.console import TorOptions, default_state
from accord.control import Socks
from accord.files import write_whole
from accord.messages import SignedTask, encode
from accord.model_file import read_model, write_model
from accord.task import Training, sign
from client import agent, cli
from client.session import load_session, save_session

ROOT = Path(__file__).parent.parent
ROW = "30,50,true,north,yes"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as it:
        yield it


# -- the whole way ---------------------------------------------------------------------------


def test_from_join_to_predict(world: World) -> None:
    joined = world.join()
    assert joined.exit_code == 0, joined.output
    told = joined.stderr
    for part in ("Who pays?", "A task of the tests.", CURATOR.public_key().public_bytes_raw().hex(),
                 "age", "0 ... 120", "north | south", "in years", "(the answer)",
                 "10 updates", "Price       Your budget of",
                 "Meaning     Protection of each row:",
                 "Validation  the curator's set, with the digest 5ea1d0c35ea1d0c3...",
                 "Judged      Your updates are scored", "after 3 strikes, when",
                 "At worst    If that set is junk", "--leave-if-struck", "--leave-if-share",
                 "Your data   211 rows", "Sent        noised updates", "Never sent  your rows"):
        assert part in told
    assert all(len(line) <= 80 for line in told.splitlines() if "WARNING" not in line)
    assert f"tormentor solve {ONION}" in joined.stdout
    assert world.session.stat().st_mode & 0o777 == 0o600
    # Joining asks, and sends nothing of ours.
    assert [path for path, _, _ in world.broker.heard] == ["/task", "/puzzle"]

    world.broker.waits = 1
    solved = world.run("solve", "--json")
    assert solved.exit_code == 0, solved.output
    events = lines(solved.stdout)
    assert [e["event"] for e in events if e["event"] in ("admitted", "waiting")] == [
        "admitted", "waiting"]
    assert {"event": "waiting", "why": "too-few-clients", "have": 1, "need": 2} in events
    end = events[-1]
    assert set(end) == {"event", "outcome", "updates", "epsilon_total", "guess", "sure", "noise",
                        "delta", "epsilon", "batch", "rows", "min_clients", "model", "seconds",
                        "strikes", "struck", "judged", "local_steps"}
    assert (end["event"], end["outcome"], end["updates"]) == ("end", "published", 5)
    assert (end["epsilon"], end["batch"], end["rows"], end["min_clients"]) == (1.0, 50, 211, 2)
    assert end["model"] == str(world.model) and 0 < end["epsilon_total"] < 8  # type: ignore[operator]
    assert read_model(world.model.read_bytes(), "it", ONION).updates == 5

    verified = world_free("verify", world.model, "--onion", ONION)
    assert verified.exit_code == 0 and "signed this model" in verified.stdout
    answers = world.home / "answers.csv"
    predicted = world_free("predict", world.model, "--data", world.data, "--output", answers)
    assert predicted.exit_code == 0 and "Error on these rows" in predicted.stderr
    table = answers.read_text().splitlines()
    assert table[0] == "row,probability,answer" and len(table) == 212
    assert {line.split(",")[2] for line in table[1:]} <= {"yes", "no"}

    for which in ([], [ONION], ["--session", world.session]):
        again = world.run("solve", *which)
        assert again.exit_code == 0 and "tormentor join" not in again.output
        assert "the model is saved as" in again.stdout and str(world.model) in again.stdout
        again = world.run("solve", *which, "--json")
        assert json.loads(again.stdout) == {
            "event": "end", "outcome": "published", "model": str(world.model)}


def test_what_to_type_next_works_as_typed(world: World) -> None:
    joined = world.join("--session", world.home / "my session.json")
    assert joined.exit_code == 0, joined.output
    typed = shlex.split(joined.stdout.splitlines()[-1])
    assert typed == [
        "tormentor", "solve", "--session", str(world.home / "my session.json"), "--state",
        str(world.home / "state"), "--tor", "none", "--direct", f"127.0.0.1:{world.port}"]
    done = world_free(*typed[1:])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("tor", "more"), [
    (TorOptions("launch", None, None, None), ""),
    (TorOptions("launch", None, Path("my torrc"), None), "--torrc 'my torrc'"),
    (TorOptions("system", Socks("127.0.0.1", 9150), None, None),
     "--tor system --socks 127.0.0.1:9150"),
    (TorOptions("system", None, None, None), "--tor system"),
])
def test_what_to_type_next_has_what_is_not_the_default(tor: TorOptions, more: str) -> None:
    typed = cli._solve_command(ONION, None, default_state(), tor)
    assert typed == f"tormentor solve {ONION} {more}".strip()


def test_after_the_end_anyone_gets_the_model(world: World) -> None:
    assert world.join().exit_code == 0
    world.broker.finish()
    done = world.run("solve")
    assert done.exit_code == 0, done.output
    assert "had ended before we were admitted" in done.stderr
    assert world.model.exists() and world.paid() == 0


def test_join_and_solve_in_one(world: World) -> None:
    done = world.join("--solve", "--json", "--curator",
                      CURATOR.public_key().public_bytes_raw().hex().upper())
    assert done.exit_code == 0, done.output
    events = [e["event"] for e in lines(done.stdout)]
    assert events[0] == "joined" and events[-1] == "end"


def test_a_curators_text_commands_no_terminal(world: World) -> None:
    task = make_task(description="red \x1b[31m alert \x07")
    world.broker.task_bytes = encode(sign(task, CURATOR))
    joined = world.join()
    assert joined.exit_code == 0 and "\x1b" not in joined.output and "\x07" not in joined.output


def test_a_spent_budget_and_nobody_waits(world: World) -> None:
    world.broker.publish_after = 10_000
    assert world.join("--budget", 1).exit_code == 0
    spent = world.run("solve", "--no-wait", "--json")
    assert spent.exit_code == 10, spent.output
    events = lines(spent.stdout)
    assert events[-1]["outcome"] == "budget-spent" and events[-1]["model"] is None
    assert events[-1]["updates"] == world.paid() == world.broker.updates
    assert world.broker.left == 1
    world.broker.finish()
    assert world.run("solve").exit_code == 0
    assert world.model.exists()


def test_a_spent_budget_in_words(world: World) -> None:
    world.broker.publish_after = 10_000
    assert world.join("--budget", 1).exit_code == 0
    spent = world.run("solve", "--no-wait")
    assert spent.exit_code == 10
    # Prose is wrapped, and where depends on the length of the path.
    words = " ".join(spent.stderr.split())
    assert "Going on with" in words and "mine.csv" in words
    assert "epsilon 1 an update" in words and "budget 1 at delta" in words
    assert re.search(r"The privacy budget is spent: epsilon 0\.\d+ of 1\.$", spent.stderr, re.M)
    assert shlex.split(spent.stdout.splitlines()[-1])[:4] == [
        "tormentor", "solve", ONION, "--state"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_run_again(world: World, number: signal.Signals) -> None:
    world.broker.publish_after = 10_000
    assert world.join().exit_code == 0
    process = world.start("solve", "--json")
    until(lambda: world.broker.updates >= 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == (-9 if number is signal.SIGKILL else 130), err
    assert "Traceback" not in err
    assert all(isinstance(line, dict) for line in lines(out))
    before, updates = world.paid(), world.broker.updates
    assert updates <= before <= updates + 1
    world.broker.publish_after = updates + 2
    again = world.run("solve", "--json")
    assert again.exit_code == 0, again.output
    assert len(world.broker.tokens) == 1
    assert lines(again.stdout)[-1]["updates"] == before + 2 == world.paid()


# -- what a person gets wrong ----------------------------------------------------------------

TYPED: dict[str, tuple[list[object], str]] = {
    "epsilon zero": (["--epsilon", 0], "bad-option"),
    "epsilon negative": (["--epsilon", -1], "bad-option"),
    "epsilon NaN": (["--epsilon", "nan"], "bad-option"),
    "epsilon infinite": (["--epsilon", "inf"], "bad-option"),
    "budget zero": (["--budget", 0], "bad-option"),
    "k zero": (["--min-clients", 0], "bad-option"),
    "batch zero": (["--batch", 0], "bad-option"),
    "delta zero": (["--delta", 0], "bad-option"),
    "delta one": (["--delta", 1], "bad-option"),
    "delta NaN": (["--delta", "nan"], "bad-option"),
    "no key": (["--curator", "abc"], "bad-option"),
    "difficulty": (["--max-difficulty", -1], "bad-option"),
    "patience": (["--patience", "nan"], "bad-option"),
    "share zero": (["--leave-if-share", 0], "bad-option"),
    "share above one": (["--leave-if-share", 1.01], "bad-option"),
    "share NaN": (["--leave-if-share", "nan"], "bad-option"),
    "output nowhere": (["--output", "/nowhere/at/all/m"], "bad-option"),
    "session nowhere": (["--session", "/nowhere/at/all/s"], "bad-option"),
}


def untouched(world: World) -> None:
    """Nothing was written but, perhaps, an empty directory."""
    assert not [p for p in (world.home / "state").rglob("*") if p.is_file()]
    assert not world.model.exists()


@pytest.mark.parametrize("name", TYPED)
def test_typed_wrongly(world: World, name: str) -> None:
    arguments, code = TYPED[name]
    refused(world.join(*arguments, "--json"), 2, code)
    assert world.broker.heard == []
    untouched(world)


@pytest.mark.parametrize("address", ["example.com", "a" * 56 + ".onion", "", "x.onion\x1b[2J"])
def test_not_an_onion(world: World, address: str) -> None:
    refused(world.run("join", address, "--data", world.data, "--epsilon", 1, "--min-clients", 2,
                      "--json"), 2, "not-an-onion")
    refused(world.run("solve", address or "x", "--json"), 2, "not-an-onion")
    untouched(world)


FILES: dict[str, tuple[str | None, str, bool]] = {
    # content, code, whether the task is needed to know
    "missing": (None, "no-file", False),
    "empty": ("", "empty-file", False),
    "header only": (HEADER + "\n", "empty-file", False),
    "torn": (f"{HEADER}\n{ROW}\n30,50\n", "bad-table", False),
    "too few rows": (f"{HEADER}\n{ROW}\n{ROW}\n", "too-few-rows", False),
    "wrong header": ("a,b,c,d,e\n" + f"{ROW}\n" * 60, "missing-column", True),
    "unknown column": (f"{HEADER},extra\n" + f"{ROW},1\n" * 60, "unknown-column", True),
    "text": (f"{HEADER}\n" + f"{ROW}\n" * 60 + "old,50,true,north,no\n", "bad-cell", True),
    "NaN": (f"{HEADER}\n" + f"{ROW}\n" * 60 + "30,nan,true,north,no\n", "bad-cell", True),
    "one class": (f"{HEADER}\n" + f"{ROW}\n" * 60, "one-class", True),
}


@pytest.mark.parametrize("name", FILES)
def test_wrong_data(world: World, name: str) -> None:
    content, code, needs_task = FILES[name]
    path = world.home / "other.csv"
    if content is not None:
        path.write_text(content)
    refused(world.join("--data", path, "--batch", 50, "--json"), 3, code)
    assert bool(world.broker.heard) == needs_task
    untouched(world)


def test_a_refusal_in_words_is_one_sentence(world: World) -> None:
    told = world.join("--epsilon", 0)
    assert told.exit_code == 2 and told.stdout == ""
    assert told.stderr.startswith("Error: --epsilon must be") and told.stderr.count("\n") == 1
    assert "at most 1,000,000" in told.stderr
    # No list of columns before it, either, when it takes the task to know.
    world.data.write_text("a,b,c,d,e\n" + f"{ROW}\n" * 60)
    told = world.join()
    assert told.exit_code == 3
    said = [line for line in told.stderr.splitlines() if not line.startswith("WARNING")]
    assert len(said) == 1 and said[0].startswith("Error: ")


def test_k_above_the_tasks_maximum(world: World) -> None:
    refused(world.join("--min-clients", 11, "--json"), 2, "bad-option")
    untouched(world)


def test_a_budget_that_buys_nothing(world: World) -> None:
    refused(world.join("--epsilon", 100, "--budget", 0.1, "--json"), 10, "budget-small")
    assert not world.session.exists()


def test_nobody_there(world: World) -> None:
    world.port = 1
    refused(world.join("--patience", 0, "--json"), 6, "away")
    untouched(world)


def test_an_untrusted_task(world: World) -> None:
    refused(world.join("--curator", "ab" * 32, "--json"), 8, "other-curator")
    good = world.broker.signed
    world.broker.task_bytes = encode(
        SignedTask(body=good.body, curator=good.curator, signature=bytes(64)))
    refused(world.join("--json"), 8, "bad-signature")
    world.broker.task_bytes = b"hello"
    refused(world.join("--json"), 8, "malformed")
    world.broker.task_bytes = b"x" * (2 << 20)
    refused(world.join("--json"), 8, "too-large")
    untouched(world)


def test_a_door_that_is_too_hard(world: World) -> None:
    world.broker.door = 7
    refused(world.join("--json"), 8, "too-hard")
    untouched(world)


@pytest.mark.slow
def test_an_unfinished_session_is_not_replaced(world: World) -> None:
    assert world.join().exit_code == 0
    # The same once more is the same session.
    assert world.join().exit_code == 0
    before = load_session(world.session)
    heard = len(world.broker.heard)
    other = write_rows(world.home / "other.csv", seed=2)
    for more, what in ((["--data", other], "data file"), (["--epsilon", 2], "--epsilon"),
                       (["--budget", 9, "--batch", 51], "--batch and --budget"),
                       (["--leave-if-struck", "--leave-if-share", 0.5],
                        "--leave-if-struck and --leave-if-share")):
        told = world.join(*more, "--json")
        refused(told, 2, "unfinished")
        sentence = json.loads(told.stdout)["sentence"]
        assert f"with another {what};" in sentence and "--again" in sentence
        assert str(world.session) in sentence
    assert load_session(world.session) == before and len(world.broker.heard) == heard
    from msgspec.structs import replace

    save_session(world.session, replace(before, token=b"t" * 32))
    assert world.join().exit_code == 0
    assert load_session(world.session).token == b"t" * 32
    refused(world.join("--epsilon", 2, "--json"), 2, "unfinished")
    assert world.join("--epsilon", 2, "--session", world.home / "other.json").exit_code == 0
    assert world.join("--again").exit_code == 0
    assert load_session(world.session).token is None
    # What is no session is never written over.
    refused(world.join("--session", world.data, "--again", "--json"), 2, "bad-option")
    assert world.data.read_text().startswith(HEADER)
    # A damaged one in our own place is named, and --again replaces it.
    world.session.write_text("{}")
    told = world.join("--json")
    refused(told, 2, "bad-option")
    sentence = json.loads(told.stdout)["sentence"]
    assert sentence.startswith(str(world.session)) and "--again" in sentence
    assert "--session" not in sentence
    assert world.join("--again").exit_code == 0


def test_a_file_at_the_output_is_not_replaced(world: World) -> None:
    world.model.write_text("mine")
    refused(world.join("--json"), 2, "bad-option")
    refused(world.join("--output", world.data, "--again", "--json"), 2, "bad-option")
    assert world.join("--again").exit_code == 0
    assert world.model.read_text() == "mine"


# -- solve -----------------------------------------------------------------------------------


def test_which_session(world: World) -> None:
    refused(world.run("solve", "--json"), 2, "no-session")
    refused(world.run("solve", ONION, "--json"), 2, "no-session")
    refused(world.run("solve", "--session", world.home / "none.json", "--json"), 2, "no-session")
    assert world.join().exit_code == 0
    (world.session.parent / "other.json").write_bytes(world.session.read_bytes())
    refused(world.run("solve", "--json"), 2, "many-sessions")
    world.session.write_text("{}")
    refused(world.run("solve", ONION, "--json"), 9, "bad-session")


def test_the_data_must_be_what_it_was(world: World) -> None:
    assert world.join().exit_code == 0
    heard = len(world.broker.heard)
    write_rows(world.data, seed=2)
    refused(world.run("solve", "--json"), 3, "data-changed")
    world.data.unlink()
    path = load_session(world.session).data
    assert not Path(path).exists()
    refused(world.run("solve", "--json"), 3, "no-file")
    assert len(world.broker.heard) == heard


def test_one_solve_at_a_time(world: World) -> None:
    assert world.join().exit_code == 0
    with (world.session.parent / f".{world.session.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(world.run("solve", "--json"), 9, "locked")
        refused(world.join("--json"), 9, "locked")


def test_a_broker_that_goes_away(world: World) -> None:
    assert world.join().exit_code == 0
    world.port = 1
    result = world.run("solve", "--patience", 0.3, "--json")
    refused(result, 6, "lost")
    assert lines(result.stdout)[0]["event"] == "reconnecting"


@pytest.mark.slow
def test_words_while_it_lasts(world: World) -> None:
    world.broker.turns = []
    world.broker.waits = 1
    assert world.join().exit_code == 0
    told = world.run("solve")
    assert told.exit_code == 0
    assert "Admitted." in told.stderr and "1 of the 2 clients" in told.stderr
    assert "signed it" in told.stdout and "cost epsilon" in told.stdout


# -- a full disk -----------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The output's directory is a file system without room; where that may not be made, the
    kernel refuses the size of the file instead."""
    directory.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", directory], check=False,
        capture_output=True).returncode == 0
    if mounted:
        (directory / "filler").write_bytes(b"x" * 4096)
    else:
        def limited(path: Path, raw: bytes, mode: int = 0o644) -> None:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            try:
                write_whole(path, raw, mode)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        monkeypatch.setattr(agent, "write_whole", limited)
    try:
        yield
        monkeypatch.undo()
        assert {p.name for p in directory.iterdir()} <= {"filler"}
    finally:
        if mounted:
            subprocess.run(["umount", directory], check=False)


def test_no_room_for_the_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    output = world.home / "small" / "model.safetensors"
    with full_disk(output.parent, monkeypatch):
        assert world.join("--output", output).exit_code == 0
        refused(world.run("solve", "--json"), 9, "disk")
    paid = world.paid()
    # Make room, and the same command fetches it, at no further cost.
    done = world.run("solve", "--json")
    assert done.exit_code == 0, done.output
    assert output.exists() and world.paid() == paid


# -- predict and verify ----------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    weights = np.array([0.0, 9.0, 0.0, 0.0, 0.0])
    path.write_bytes(write_model(SEED, ONION, sign(make_task(), CURATOR), weights, 7, "patience"))
    return path


def test_predict_in_words(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "new.csv"
    data.write_text("age,income,member,region\n30,90,true,north\n30,10,false,south\n")
    told = world_free("predict", model, "--data", data)
    assert told.exit_code == 0, told.output
    table = [line.split(",") for line in told.stdout.splitlines()]
    assert [row[2] for row in table] == ["answer", "yes", "no"]
    assert "Error" not in told.stderr
    # Answers that are all the same are no obstacle here, nor is a column of them left empty.
    data.write_text(f"{HEADER}\n30,90,true,north,no\n30,10,false,south,no\n")
    told = world_free("predict", model, "--data", data, "--json")
    assert json.loads(told.stdout)["error"] == 0.5
    data.write_text(f"{HEADER}\n30,90,true,north,\n")
    told = world_free("predict", model, "--data", data, "--json")
    assert json.loads(told.stdout)["error"] is None
    assert json.loads(told.stdout)["answers"][0]["answer"] == "yes"


@pytest.mark.parametrize(("content", "code"), [
    ("", "empty-file"), ("a,b\n1,2\n", "missing-column"),
    ("age,income,member,region\nold,1,true,north\n", "bad-cell")])
def test_predict_wrong_data(model: Path, tmp_path: Path, content: str, code: str) -> None:
    data = tmp_path / "new.csv"
    data.write_text(content)
    output = tmp_path / "out.csv"
    refused(world_free("predict", model, "--data", data, "--output", output, "--json"), 3, code)
    assert not output.exists()


def test_verify(model: Path, tmp_path: Path) -> None:
    told = world_free("verify", model, "--json")
    assert told.exit_code == 0 and json.loads(told.stdout)["onion"] == ONION
    refused(world_free("verify", tmp_path / "none", "--json"), 9, "no-model")
    refused(world_free("predict", tmp_path / "none", "--data", model, "--json"), 9, "no-model")
    refused(world_free("predict", model, "--data", tmp_path / "none", "--json"), 3, "no-file")
    refused(world_free("verify", model, "--onion", "x", "--json"), 2, "not-an-onion")
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    model.write_bytes(raw)
    refused(world_free("verify", model, "--json"), 8, "bad-model")
    refused(world_free("predict", model, "--data", model, "--json"), 8, "bad-model")


@pytest.mark.parametrize("name", ["join", "solve", "predict", "verify"])
def test_help_has_an_example(name: str) -> None:
    told = world_free(name, "--help")
    assert told.exit_code == 0 and "Example" in told.stdout and f"tormentor {name} " in told.stdout


# -- local steps -----------------------------------------------------------------------------
def in_steps(world: World, most: int, **training: object) -> None:
    """Let the task allow so many."""
    broker = world.broker
    broker.task = make_task(training=Training(
        max_updates=10, local_steps=most, **training))  # type: ignore[arg-type]
    broker.signed = sign(broker.task, CURATOR)


@pytest.mark.parametrize(("typed", "each", "precision"), [
    ((), 4, "float32"), (("--local-steps", 3), 3, "float16"), (("--local-steps", 1), 1, "float32")])
def test_updates_are_of_as_many_steps_as_wished_and_each_is_paid_for(
    world: World, typed: tuple[object, ...], each: int, precision: str
) -> None:
    in_steps(world, 4, precision=precision)
    joined = world.join(*typed, "--json")
    assert joined.exit_code == 0, joined.output
    told = lines(joined.stdout)[-1]
    assert told["local_steps"] == each == load_session(world.session).local_steps
    assert told["updates"] == -(-told["steps"] // each)  # type: ignore[operator]
    solved = world.run("solve", "--json")
    assert solved.exit_code == 0, solved.output
    assert world.broker.steps == [each] * 5
    end = lines(solved.stdout)[-1]
    assert end["updates"] == 5 * each == world.paid() and end["local_steps"] == each
    assert read_model(world.model.read_bytes(), "it", ONION).updates == 5


def test_what_several_steps_mean_is_said_in_words(world: World) -> None:
    in_steps(world, 4)
    said = " ".join(world.join().stderr.split())
    for part in ("in updates of up to 4 private steps", "each update is 4 private steps",
                 "50 drawn for each step", "how many steps each is"):
        assert part in said
    solved = world.run("solve")
    assert "We paid for 20 private steps" in solved.output, solved.output


@pytest.mark.slow
def test_a_price_is_for_all_steps(world: World) -> None:
    in_steps(world, 8)
    prices = {}
    for each in (1, 8):
        told = lines(world.join("--local-steps", each, "--again", "--json").stdout)[-1]
        prices[each] = told
        assert told["updates_expected"] == prices[1]["updates_expected"]
    assert prices[8]["epsilon_update"] == pytest.approx(
        8 * prices[1]["epsilon_update"])  # type: ignore[operator]
    assert prices[8]["epsilon_expected"] > prices[1]["epsilon_expected"]  # type: ignore[operator]
    assert prices[8]["steps"] == prices[1]["steps"]
    # And where the total is what was named, more steps have more noise each.
    noise = [lines(world.run("join", ONION, "--data", world.data, "--min-clients", 2, "--budget", 2,
                             "--output", world.model, "--local-steps", each, "--again",
                             "--json").stdout)[-1] for each in (1, 8)]
    assert noise[1]["noise_ratio"] > 2 * noise[0]["noise_ratio"]  # type: ignore[operator]
    for told in noise:
        assert told["epsilon_expected"] <= 2.0 and told["updates"] >= told["updates_expected"]  # type: ignore[operator]


def test_a_last_update_has_what_is_left_of_the_budget(world: World) -> None:
    in_steps(world, 4)
    told = lines(world.join("--budget", 5, "--json").stdout)[-1]
    paid = int(told["steps"])  # type: ignore[call-overload]
    world.broker.publish_after = 1000
    done = world.run("solve", "--json", "--no-wait")
    assert done.exit_code == 10, done.output
    assert world.paid() == paid == sum(world.broker.steps)
    assert set(world.broker.steps[:-1]) <= {4} and world.broker.steps[-1] == (paid - 1) % 4 + 1


@pytest.mark.parametrize(("steps", "what"), [
    (0, "must be from 1 to 1,000, not 0"), (1001, "must be from 1 to 1,000, not 1001"),
    (5, "is 5 and the task allows 4 at most")])
def test_other_numbers_of_steps_are_refused(world: World, steps: int, what: str) -> None:
    in_steps(world, 4)
    told = world.join("--local-steps", steps, "--json")
    refused(told, 2, "bad-option")
    assert f"--local-steps {what}" in json.loads(told.stdout)["sentence"].replace(":", "")
    untouched(world)


def test_whoever_types_nothing_makes_few_steps_whatever_a_task_allows(world: World) -> None:
    in_steps(world, 1000)
    assert lines(world.join("--json").stdout)[-1]["local_steps"] == 10


def test_whoever_joins_again_keeps_the_number_of_steps(world: World) -> None:
    in_steps(world, 4)
    assert world.join("--local-steps", 2).exit_code == 0
    assert world.join().exit_code == 0
    assert load_session(world.session).local_steps == 2
    told = world.join("--local-steps", 3, "--json")
    refused(told, 2, "unfinished")
    assert "with another --local-steps;" in json.loads(told.stdout)["sentence"]
    # A session from before there were such, or changed by hand, gets nobody struck.
    raw = json.loads(world.session.read_text())
    del raw["local_steps"]
    world.session.write_text(json.dumps(raw))
    assert load_session(world.session).local_steps == 1
    world.session.write_text(json.dumps(raw | {"local_steps": 900}))
    assert world.run("solve", "--json").exit_code == 0
    assert world.broker.steps == [4] * 5
