"""A stand-in for a broker, for the tests of the curator's commands: a real HTTP server on loopback.

It says what a test tells it to say, lies included; it trains nothing. That the real broker speaks
the same is for the tests of broker and client, and those over a real Tor.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from click.testing import CliRunner, Result

import tormentor
from accord.messages import (
    VALIDATION_LIMIT,
    Curate,
    Curated,
    SignedTask,
    Status,
    decode,
    encode,
    refused,
)
from accord.model_file import write_model
from accord.onion import onion_from_seed
from accord.problems import (
    NOT_FOUND,
    PeerProblem,
    Problem,
)
from accord.table import read_table
from accord.task import open_task
from curator import watch
from curator.draft import draft

HERE = Path(__file__).resolve().parent.parent
SEED = bytes(range(32))


DESK, MODEL = onion_from_seed(b"d" * 32), onion_from_seed(SEED)
ROWS = "age,town,sick\n" + "".join(
    f"{20 + 3 * i % 50},{'Oslo' if i % 3 else 'Lima'},{i % 2}\n" for i in range(30))
AWAY = "away"


def status(phase: Any = "training", **changes: Any) -> Status:
    fields: dict[str, Any] = {
        "phase": phase, "title": "Sick or well", "task": "0" * 64, "clients": 3, "needed": 2,
        "updates": 10, "max_updates": 1000, "error": 0.25, "best_error": 0.2, "baseline": 0.4,
        "judged": 8, "struck": 3, "strikes": 4, "seconds": 75.0, "left": 3600.0}
    return Status(**fields | changes)


class StandIn:
    """Not a broker: a server whose every answer a test chooses.

    Attributes:
        answers: for ``METHOD path``: bytes, a problem, AWAY, or a list of those, taken in turn,
            the last one for ever.
        order: what the last curator sent.
        seen: every request: host, method, path.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.order: Curate | None = None
        self.seen: list[tuple[str, str, str]] = []
        self.port = 0

    def publish(self, signed: SignedTask, seed: bytes = SEED) -> bytes:
        """Make a model of a task, and say that it is published."""
        task = open_task(signed, "stand-in")
        weights = np.ones(task.dimension)
        raw = write_model(seed, onion_from_seed(seed), signed, weights, 7, "patience")
        self.answers["GET /model"] = raw
        self.answers["GET /status"] = encode(status("published", ended="patience"))
        return raw

    async def handle(self, request: web.Request) -> web.Response:
        name = f"{request.method} {request.path}"
        self.seen.append((request.host, request.method, request.path))
        if name == "POST /curate" and request.host == DESK:
            self.order = decode(await request.read(), Curate, VALIDATION_LIMIT)
        answer = self.answers.get(name, PeerProblem(NOT_FOUND))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer()
        if answer == AWAY:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(answer, Problem):
            return web.Response(status=answer.kind.http, body=encode(refused(answer)))
        return web.Response(body=answer)


@contextmanager
def standing_in() -> Iterator[StandIn]:
    """A stand-in, in a thread of its own: the commands run loops of their own."""
    stand_in = StandIn()
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def serve() -> web.AppRunner:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", stand_in.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        stand_in.port = runner.addresses[0][1]
        return runner

    def live() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(serve())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    stand_in.answers["POST /curate"] = encode(Curated(MODEL))
    stand_in.answers["GET /status"] = encode(status("waiting", error=None, best_error=None))
    stand_in.answers["GET /task"] = lambda: encode(stand_in.order.task)  # type: ignore[union-attr]
    thread = threading.Thread(target=live)
    thread.start()
    ready.wait(5)
    try:
        yield stand_in
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


def work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a directory with a table and its task the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watch, "POLL", 0.01)
    Path("rows.csv").write_text(ROWS)
    Path("task.toml").write_text(draft(read_table(Path("rows.csv")), Path("rows.csv"), None).text)
    return tmp_path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(tormentor.main, [*arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "\x1b" not in result.output
    return result


def direct(port: int) -> list[str]:
    return ["--tor", "none", "--direct", f"127.0.0.1:{port}", "--state", "state"]


def curate(broker: StandIn, *more: str, task: str = "task.toml", rows: str | None = "rows.csv"
           ) -> Result:
    validation = [] if rows is None else ["--validation", rows]
    return run("curate", task, *validation, "--broker", DESK, *more, *direct(broker.port))


def sentence(result: Result, exit_status: int) -> str:
    """The one sentence that a failed command ends with."""
    assert result.exit_code == exit_status, result.output
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(told) == 1
    assert result.stderr.splitlines()[-1] == told[0]
    assert "Traceback" not in result.stderr
    return told[0]
