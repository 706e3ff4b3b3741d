"""Following, status and fetch: from outside, and trusting nothing that comes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from curator_stand_in import (
    AWAY,
    DESK,
    HERE,
    MODEL,
    SEED,
    StandIn,
    curate,
    direct,
    run,
    sentence,
    standing_in,
    status,
    work_in,
)
from msgspec.structs import replace

from accord import problems
from accord.circuit import Circuit, Route
from accord.console import unless_away
from accord.control import Socks
from accord.messages import (
    MAX_DIMENSION,
    SignedTask,
    encode,
)
from accord.model_file import read_model
from accord.problems import (
    LOST,
    NOT_FOUND,
    NOT_PUBLISHED,
    PeerProblem,
    Problem,
)
from accord.task import sign
from accord.tor import held_port
from curator import watch
from curator.definition import read_definition


@pytest.fixture
def broker() -> Iterator[StandIn]:
    with standing_in() as stand_in:
        yield stand_in


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return work_in(tmp_path, monkeypatch)


# -- curate --watch --------------------------------------------------------------------------
@pytest.mark.parametrize("as_json", [False, True])
def test_a_training_is_followed_to_its_model(
    here: Path, broker: StandIn, as_json: bool
) -> None:
    def published() -> bytes:
        assert broker.order is not None
        broker.publish(broker.order.task)
        return encode(status("published", ended="patience"))

    def bye() -> bytes:
        return encode(status("gathering", clients=1, needed=0, error=None, best_error=None))

    broker.answers["GET /status"] = [
        encode(status("waiting")), bye, encode(status(updates=20)), AWAY, AWAY,
        encode(status(updates=30, error=0.125)), published]
    result = curate(broker, "--watch", "--output", "m.safetensors", *["--json"] * as_json)
    assert result.exit_code == 0, result.output
    assert "training: 3 of 2 clients, 20 of 1000 updates, error 25.0%" in result.stderr
    assert ("error 25.0% (always one answer: 40.0%), 3 of 8 clients struck; ends at the latest in "
            "1 h") in result.stderr
    assert "30 of 1000 updates, error 12.5%" in result.stderr
    assert "The broker is away" in result.stderr
    model = read_model(Path("m.safetensors").read_bytes(), "m", MODEL)
    assert model.updates == 7
    if as_json:
        told = json.loads(result.stdout)
        assert told["model"] == "m.safetensors"
        assert told["join"].startswith("tormentor join")
        assert "tormentor join" in result.stderr
    else:
        assert "Saved m.safetensors: 'Predict sick', 7 updates." in result.stdout
        assert "It errs on 25.0% of the validation rows; always saying one answer errs 40.0%" in (
            " ".join(result.stdout.split()))


@pytest.mark.slow
async def test_a_tor_that_is_away_for_a_while_ends_nothing() -> None:
    outcomes, said = [Problem(problems.TOR_AWAY, where="it"),
                      Problem(problems.AWAY, address="a", why="w")], []

    async def look() -> str:
        if outcomes:
            raise outcomes.pop(0)
        return "found"

    assert await unless_away(look, 30.0, said.append) == "found"
    assert said == ["tor does not answer", "w"]
    # One that stays away is no better than a broker that does.
    with held_port() as held:
        way = Route(socks=Socks("127.0.0.1", held.number))
        async with Circuit(way, MODEL, "test") as circuit:
            with pytest.raises(Problem) as caught:
                await watch.follow(circuit, 0.3)
    assert caught.value.kind is LOST


async def test_a_broker_that_stays_away_is_lost(broker: StandIn) -> None:
    broker.answers["GET /status"] = AWAY
    way = Route(socks=None, direct=("127.0.0.1", broker.port))
    async with Circuit(way, MODEL, "test") as circuit:
        with pytest.raises(Problem) as caught:
            await watch.follow(circuit, 0.3)
    assert caught.value.kind is LOST


# -- status ----------------------------------------------------------------------------------
def test_a_status_in_words(here: Path, broker: StandIn) -> None:
    broker.answers["GET /status"] = encode(status())
    result = run("status", f"http://{MODEL.upper()}/", *direct(broker.port))
    assert result.stdout.splitlines() == [
        "Sick or well",
        "  Phase    training, for 1 min 15 s",
        "  Clients  3 active, 2 needed",
        "  Updates  10 of 1,000",
        "  Ends     at the latest in 1 h",
        "  Error    25.0% of the validation rows are wrong, the lowest so far 20.0%",
        "           always saying one answer errs 40.0%",
        "  Judged   3 of 8 clients struck",
        "           (4 strikes in all: their updates oppose the validation set)",
    ]
    assert not (here / "state").exists()


@pytest.mark.parametrize(("changes", "block", "line"), [
    ({"judged": 0, "struck": 0, "strikes": 0}, [], ""),
    ({"judged": 1, "struck": 0, "strikes": 0}, ["  Judged   0 of 1 client struck"], ""),
    ({"judged": 4, "struck": 1, "strikes": 1},
     ["  Judged   1 of 4 clients struck",
      "           (1 strike in all: their updates oppose the validation set)"],
     ", 1 of 4 clients struck"),
])
def test_who_is_struck_is_told_and_not_who_is_wrong(
    changes: dict[str, int], block: list[str], line: str
) -> None:
    told = status(**changes)
    assert watch.words(told).splitlines()[7:] == block
    assert watch.line(told) == ("training: 3 of 2 clients, 10 of 1000 updates, error 25.0% "
                                f"(always one answer: 40.0%){line}")


def test_without_a_validation_set_nothing_is_measured(
    here: Path, broker: StandIn, signed: SignedTask
) -> None:
    nothing: dict[str, Any] = {"error": None, "best_error": None, "baseline": None, "judged": 0,
                               "struck": 0, "strikes": 0}
    told = status(**nothing)
    assert watch.words(told).splitlines()[4:] == [
        "  Ends     at the latest in 1 h",
        "  Error    not measured: the task has no validation set"]
    assert watch.line(told) == "training: 3 of 2 clients, 10 of 1000 updates"
    assert (watch.one_answer(told), watch.useless(told)) == ("", "")
    broker.publish(signed)
    broker.answers["GET /status"] = encode(status("published", ended="max-updates", **nothing))
    fetched = run("fetch", MODEL, *direct(broker.port))
    assert "Its error is not measured: the task has no validation set." in (
        fetched.stdout.splitlines())
    as_json = json.loads(run("fetch", MODEL, "--json", *direct(broker.port)).stdout)
    assert (as_json["error"], as_json["best_error"], as_json["baseline"]) == (None, None, None)


NO_BETTER = "odel is no better than always giving one answer."


def test_a_model_that_is_no_better_than_one_answer_is_warned_of(
    here: Path, broker: StandIn, signed: SignedTask
) -> None:
    def told(**changes: Any) -> str:
        broker.answers["GET /status"] = encode(status(**changes))
        return run("status", MODEL, *direct(broker.port)).stdout

    assert f"So far the m{NO_BETTER}" in told(best_error=0.4).splitlines()
    assert NO_BETTER not in told(best_error=0.39)
    assert NO_BETTER not in told(updates=0, error=0.6, best_error=0.6)
    assert NO_BETTER not in told(error=None, best_error=None)
    broker.publish(signed)
    assert f"The m{NO_BETTER}" in told(phase="published", best_error=0.5).splitlines()
    fetched = run("fetch", MODEL, *direct(broker.port))
    assert f"The m{NO_BETTER}" in fetched.stderr.splitlines()


@pytest.mark.parametrize(("changes", "said"), [
    ({"phase": "paused", "left": 3570.0}, "  Ends     in 59 min unless clients come back"),
    ({"left": 23.5 * 3600}, "  Ends     at the latest in 23 h"),
    ({"phase": "waiting", "error": None}, "  Ends     at the latest in 1 h"),
    ({"phase": "published", "left": 0.0, "ended": "max-pause"},
     "  Phase    published (it paused too long: clients had gone), for 1 min 15 s"),
])
def test_time_left_and_why_it_ended(changes: dict[str, Any], said: str) -> None:
    lines = watch.words(status(**changes)).splitlines()
    assert said in lines
    assert sum(line.startswith("  Ends") for line in lines) == ("Ends" in said)


def test_a_status_for_a_machine(here: Path, broker: StandIn) -> None:
    for more in ([], ["--watch"]):
        broker.answers["GET /status"] = [encode(status())] * (2 * len(more)) + [
            encode(status("published", ended="deadline"))]
        told = json.loads(run("status", MODEL, "--json", *more, *direct(broker.port)).stdout)
        assert told["onion"] == MODEL
        assert told["ended"] == "deadline"
        assert told["best_error"] == 0.2


def test_text_of_strangers_commands_no_terminal(here: Path, broker: StandIn) -> None:
    evil = "\x1b[2J\x07[red]x[/red]\u202e\r\nError: you are hacked"
    broker.answers["GET /status"] = encode(status("published", title=evil, ended="\x1b[31m"))
    for more in ([], ["--watch"], ["--json"]):
        result = run("status", MODEL, *more, *direct(broker.port))
        assert result.exit_code == 0
        assert "\u202e" not in result.stderr
        assert all(c.isprintable() or c == "\n" for c in result.stderr)
        if "--json" not in more:
            assert "[red]x[/red]" in result.stdout
            assert all(c.isprintable() or c == "\n" for c in result.stdout)
            assert not any(line.startswith("Error") for line in result.stdout.splitlines())


@pytest.mark.parametrize("name", ["status", "fetch"])
@pytest.mark.parametrize(("answer", "exit_status", "said"), [
    (PeerProblem(NOT_FOUND), {"status": 2, "fetch": 2}, "not the address of a model"),
    (AWAY, {"status": 6, "fetch": 6}, "Nobody answers"),
    (b"nonsense", {"status": 8, "fetch": 8}, "not a"),
])
def test_what_a_model_may_answer(
    here: Path, broker: StandIn, name: str, answer: Any, exit_status: dict[str, int], said: str
) -> None:
    broker.answers["GET /status"] = broker.answers["GET /model"] = answer
    before = sorted(here.iterdir())
    assert said in sentence(run(name, MODEL, *direct(broker.port)), exit_status[name])
    assert sorted(here.iterdir()) == before


def test_sparklines() -> None:
    assert watch.sparkline([0.1, 0.2, 0.1]) == "▁█▁"
    assert watch.sparkline([0.5, 0.5]) == "▁▁"
    long = watch.sparkline([1 - i / 1000 for i in range(1000)])
    assert (len(long), long[0], long[-1]) == (40, "█", "▁")


# -- fetch -----------------------------------------------------------------------------------
@pytest.fixture
def signed(here: Path) -> SignedTask:
    """The task of this directory, signed."""
    task = read_definition(Path("task.toml"))
    return sign(replace(task, validation=replace(task.validation, digest="ab" * 32)),
                Ed25519PrivateKey.from_private_bytes(SEED))


def test_a_model_is_fetched_verified_and_saved(
    here: Path, broker: StandIn, signed: SignedTask
) -> None:
    raw = broker.publish(signed)
    result = run("fetch", MODEL, *direct(broker.port))
    path = here / f"model-{MODEL[:16]}.safetensors"
    assert path.read_bytes() == raw
    assert path.stat().st_mode & 0o777 == 0o644
    assert f"Signed by {MODEL},\nfor curator {signed.curator.hex()}." in result.stdout
    assert result.stdout.splitlines()[-1] == f"  tormentor predict {path.name} --data YOUR.csv"
    result = run("fetch", MODEL, "--output", "m", "--json", *direct(broker.port))
    assert json.loads(result.stdout) == {
        "onion": MODEL, "model": "m", "curator": signed.curator.hex(), "updates": 7,
        "ended": "patience", "error": 0.25, "best_error": 0.2, "baseline": 0.4}
    assert Path("m").read_bytes() == raw


def test_too_early(here: Path, broker: StandIn) -> None:
    before = sorted(here.iterdir())
    broker.answers["GET /model"] = PeerProblem(NOT_PUBLISHED)
    said = sentence(run("fetch", MODEL, *direct(broker.port)), 7)
    assert said.endswith(f"; follow it with 'tormentor status {MODEL} --watch --tor none "
                         f"--direct 127.0.0.1:{broker.port}'.")
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("lie", ["other", "cut", "changed", "large"])
def test_a_model_that_its_address_did_not_sign_is_not_kept(
    here: Path, broker: StandIn, signed: SignedTask, lie: str
) -> None:
    raw = broker.publish(signed, b"o" * 32 if lie == "other" else SEED)
    changed = {"other": raw, "cut": raw[:-1], "changed": raw[:-1] + b"\x01",
               "large": bytes(4 * MAX_DIMENSION + (9 << 20))}
    broker.answers["GET /model"] = changed[lie]
    Path("m").write_bytes(b"the old one")
    before = sorted(here.iterdir())
    said = sentence(run("fetch", MODEL, "--output", "m", *direct(broker.port)), 8)
    assert ("larger than" if lie == "large" else "is not a model that its address signed") in said
    assert Path("m").read_bytes() == b"the old one"
    assert sorted(here.iterdir()) == before


# -- a full disk -----------------------------------------------------------------------------
@pytest.fixture
def full(here: Path) -> Iterator[tuple[Path, Callable[[], None] | None]]:
    """A directory with no room for a file, and what a process there must do first: a file system
    that is really full where this process may mount one, else a limit on the size of files."""
    place = here / "full"
    place.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(place)], check=False,
        capture_output=True).returncode == 0
    if mounted:
        try:
            (place / "filler").write_bytes(bytes(8192))
            yield place, None
        finally:
            subprocess.run(["umount", str(place)], check=True)
        return
    (place / "filler").write_bytes(b"")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))

    yield place, limit


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fetch", "init", "key"])
def test_a_full_disk_is_said_and_nothing_is_left(
    full: tuple[Path, Callable[[], None] | None], broker: StandIn, signed: SignedTask, name: str
) -> None:
    place, limit = full
    broker.publish(signed)
    arguments = {
        "fetch": ["fetch", MODEL, "--output", str(place / "m"), *direct(broker.port)],
        "init": ["curate", "--init", "rows.csv", "--output", str(place / "t.toml")],
        "key": ["curate", "task.toml", "--validation", "rows.csv", "--broker", DESK,
                *direct(broker.port)[:-1], str(place)],
    }[name]
    ended = subprocess.run([sys.executable, "-B", HERE / "tormentor.py", *arguments],
                           capture_output=True, text=True, timeout=30, preexec_fn=limit)
    assert ended.returncode == 9, ended.stderr
    assert ended.stdout == ""
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"Error: Cannot write {place}")
    assert last.endswith("nothing was half written.")
    assert [p.name for p in place.iterdir()] == ["filler"]
    assert broker.order is None


@pytest.mark.slow
def test_on_a_terminal_it_is_one_block_with_a_curve(here: Path, broker: StandIn) -> None:
    evil = "Sick\x1b]0;title\x07[bold]"
    broker.answers["GET /status"] = [
        encode(status(error=0.4, title=evil)), encode(status(error=0.1, title=evil)),
        encode(status("published", error=0.2, title=evil, ended="patience"))]
    outside, inside = pty.openpty()
    command = [sys.executable, str(HERE / "tormentor.py"), "status", MODEL, "--watch",
               *direct(broker.port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=inside,
                          env=os.environ | {"TERM": "xterm", "COLUMNS": "80"}) as process:
        os.close(inside)
        shown = b""
        # The kernel says that nobody holds the other end any more by an error.
        with contextlib.suppress(OSError):
            while chunk := os.read(outside, 65536):
                shown += chunk
    os.close(outside)
    assert process.returncode == 0
    text = shown.decode()
    assert "█▁▃" in text
    assert "published (it stopped getting better)" in text
    assert "[bold]" in text
    assert "\x1b]0;" not in text
    assert "\x07" not in text


@pytest.mark.slow
def test_interrupted_while_waiting_it_stops_cleanly(here: Path, broker: StandIn) -> None:
    broker.answers["GET /status"] = encode(status("gathering"))
    with subprocess.Popen(
        [sys.executable, HERE / "tormentor.py", "curate", "task.toml", "--validation", "rows.csv",
         "--broker", DESK, "--watch", "--output", "m", *direct(broker.port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "gathering" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Stopped." in err
    assert "Traceback" not in err
    assert "tormentor join" in out
    assert not Path("m").exists()
