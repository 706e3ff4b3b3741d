"""People for the client's tests, each with a directory of their own: one who is an agent, one who
types the commands. Both meet the stand-in for a broker of tests/client_world.py."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from client_world import ONION, QUICK, StandIn, write_rows

import tormentor
from accord.circuit import Route
from accord.problems import Kind, Problem
from accord.task import task_id
from client.agent import Agent
from client.budget import Budget, Ledger
from client.dataset import load
from client.events import Event
from client.noise import Release
from client.session import Session, load_session, save_session
from client.trainer import Trainer

ROOT = Path(__file__).parent.parent
EPSILON, BATCH, BUDGET = 0.7310585, 37, 6.54321


@dataclass
class Person:
    """A client with its files."""

    path: Path
    events: list[Event] = field(default_factory=list)
    budget: float = BUDGET
    wait: bool = True
    pace: object = QUICK

    def write(self, broker: StandIn, **changes: object) -> None:
        data = write_rows(self.path.parent / "mine.csv")
        self.data = load(data, broker.task.data, BATCH)
        parts: dict[str, object] = {
            "onion": ONION, "task": broker.signed, "data": str(data),
            "fingerprint": self.data.fingerprint, "epsilon": EPSILON, "batch": BATCH,
            "min_clients": 2, "budget": self.budget, "delta": 1e-6, "max_difficulty": 4,
            "ledger": str(self.path.parent / "ledgers"),
            "output": str(self.path.parent / "model.safetensors")}
        save_session(self.path, Session(**{**parts, **changes}))  # type: ignore[arg-type]

    @property
    def session(self) -> Session:
        return load_session(self.path)

    def ledger(self) -> Ledger:
        return Ledger(Path(self.session.ledger), self.data.identity)

    def paid(self) -> int:
        with self.ledger() as ledger:
            return ledger.count(task_id(self.session.task))

    async def run(self, broker: StandIn, way: Route) -> str:
        session = self.session
        release = Release(session.epsilon, session.batch, len(self.data.labels),
                          broker.task.dimension)
        with self.ledger() as ledger:
            budget = Budget(ledger, task_id(session.task), release, session.budget, session.delta)
            trainer = Trainer(broker.task, self.data, release, budget.spend)
            agent = Agent(way, self.path, session, trainer, ledger, lambda: budget.remaining > 0,
                          self.events.append, wait=self.wait, pace=self.pace)  # type: ignore[arg-type]
            return await agent.run()

    def saw(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def refuses(kind: Kind) -> AsyncIterator[None]:
    """What runs in the body ends with a problem of this kind."""
    with pytest.raises(Problem) as caught:
        yield
    assert caught.value.kind is kind


@dataclass
class World:
    """A stand-in that serves in a thread, and a person's directory."""

    broker: StandIn
    home: Path
    port: int = 0

    def arguments(self, command: str, *more: object) -> list[str]:
        tor = ["--tor", "none", "--direct", f"127.0.0.1:{self.port}", "--state",
               str(self.home / "state")]
        return [command, *(str(m) for m in more), *tor]

    def run(self, command: str, *more: object) -> Result:
        return CliRunner().invoke(tormentor.main, self.arguments(command, *more))

    def start(self, command: str, *more: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tormentor", *self.arguments(command, *more)], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def data(self) -> Path:
        path = self.home / "mine.csv"
        return path if path.exists() else write_rows(path)

    @property
    def session(self) -> Path:
        return self.home / "state" / "sessions" / f"{ONION}.json"

    @property
    def model(self) -> Path:
        return self.home / "model.safetensors"

    def join(self, *more: object) -> Result:
        return self.run("join", ONION, "--data", self.data, "--epsilon", 1, "--min-clients", 2,
                        "--budget", 50, "--output", self.model, *more)

    def paid(self) -> int:
        (file,) = (self.home / "state" / "ledgers").glob("*.ledger")
        return sum(b" spend " in line for line in file.read_bytes().splitlines())


@contextmanager
def a_world(home: Path) -> Iterator[World]:
    """A world for the tests of the commands."""
    broker = StandIn()
    it = World(broker, home)
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with broker.serve():
            it.port = broker.port
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(5)
    yield it
    loop.call_soon_threadsafe(stop.set)
    thread.join(5)
    loop.close()


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def refused(result: Result, status: int, code: str) -> None:
    """It ended with one sentence, for machines on standard output, and the status."""
    assert result.exit_code == status, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["error"] == code
    assert len(told["sentence"].splitlines()) == 1
    assert "Traceback" not in result.output


def world_free(*arguments: object) -> Result:
    return CliRunner().invoke(tormentor.main, [str(a) for a in arguments])


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
