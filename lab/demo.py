"""The main job, whole, on one machine: five hospitals train one model through a private network.

Everything is the real thing: tor processes, onion services, the ``tormentor`` commands that a
person types, each its own process. Only the network is private and the hospitals are a split of
public data.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from accord.circuit import Circuit, Route, fresh_identity
from accord.console import unless_away
from accord.files import private_directory
from accord.messages import Status, decode
from accord.model_file import read_model
from accord.table import read_table
from lab.hospitals import HOSPITALS, Split, baselines, split, write_files
from lab.tornet import TorNetwork

POLL: Final = 0.5
STOPPING: Final = 8.0
"""Seconds that a command has to end by itself when the demo is stopped."""
_CHILD: Final = """\
import ctypes, os, runpy, signal, sys
# Linux ends this process with its parent, even if that is killed (PR_SET_PDEATHSIG, prctl(2)).
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the parent has gone already")
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
"""'python -m tormentor', or another module, that does not outlive who started it. It is the child
itself that asks: asyncio's preexec_fn would run between fork and exec, where threads can make it
hang."""


@dataclass(slots=True)
class ClientView:
    """What is known of one hospital while the demo runs; from its own ``solve --json``."""

    name: str
    budget: float
    min_clients: int
    epsilon: float = 0.0
    batch: int = 0
    state: str = ""
    updates: int = 0
    spent: float = 0.0
    end: dict[str, Any] | None = None


@dataclass(slots=True)
class Demo:
    """The demo in its course; what the live view and the report show.

    Attributes:
        phases: seconds that each phase took, in order.
        phase: the one that is on now, or empty.
        curve: validation error after so many updates, as polled.
    """

    directory: Path
    clients: list[ClientView]
    began: float = field(default_factory=time.monotonic)
    phases: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    phase_began: float = 0.0
    note: str = ""
    onion: str = ""
    status: Status | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """One phase."""
        self.phase, self.phase_began, self.note = name, time.monotonic(), ""
        try:
            yield
        finally:
            self.phases[name] = time.monotonic() - self.phase_began
            self.phase = ""


class Failed(Exception):
    """A command of the demo ended as it should not."""


async def run(directory: Path, changed: Callable[[Demo], None]) -> Demo:
    """Run the demo.

    Args:
        directory: where everything is written; what an earlier demo left there is replaced.
        changed: told whenever there is something new to show.

    Raises:
        Problem: of the network, or whatever a command said of itself.
        Failed: when a command ended without saying why.
    """
    _clear(directory)
    demo = Demo(directory, [ClientView(h.name, h.budget, h.min_clients)
                            for h in HOSPITALS])
    ticking = asyncio.create_task(_tick(lambda: changed(demo)))
    try:
        with demo.timed("data"):
            parts = await asyncio.to_thread(_prepare, directory)
        network = TorNetwork(directory / "work" / "network")
        try:
            with demo.timed("Tor network"):
                def note(percent: int, words: str) -> None:
                    demo.note = f"{percent} % {words}"

                await network.up(2, note)
            await _train(demo, network)
        finally:
            await network.down()
        with demo.timed("report"):
            await asyncio.to_thread(_report, demo, parts)
    finally:
        ticking.cancel()
    return demo


async def _tick(changed: Callable[[], None]) -> None:
    while True:
        changed()
        await asyncio.sleep(0.2)


def _clear(directory: Path) -> None:
    """Make the directory anew, but only what a demo writes: it may be somebody's."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / "work", ignore_errors=True)
    shutil.rmtree(directory / "data", ignore_errors=True)
    for name in ("model.safetensors", "report.json", "plot.png", "demo.svg", "demo.log"):
        (directory / name).unlink(missing_ok=True)


def _prepare(directory: Path) -> Split:
    parts = split()
    (directory / "data").mkdir()
    write_files(parts, directory / "data")
    private_directory(directory / "work")
    return parts


async def _train(demo: Demo, network: TorNetwork) -> None:
    curators_port, clients_port = network.socks
    data, work = demo.directory / "data", demo.directory / "work"
    log = demo.directory / "demo.log"
    broker = Command(log, "broker", "--json", "--torrc", network.extra_torrc,
                     "--state", work / "broker", "--linger", 600)
    async with broker:
        with demo.timed("broker"):
            desk = str((await broker.line())["onion"])
        with demo.timed("curate"):
            curate = Command(log, "curate", data / "task.toml", "--json", "--validation",
                             data / "validation.csv", "--broker", desk, "--state",
                             work / "curator", "--socks", curators_port)
            async with curate:
                told = await curate.line()
                await curate.finish()
        demo.onion = str(told["onion"])
        async with contextlib.AsyncExitStack() as commands:
            hospitals = [
                await commands.enter_async_context(Command(
                    log, "join", demo.onion, "--json", "--solve", "--data",
                    data / f"{view.name}.csv", "--budget", view.budget,
                    "--min-clients", view.min_clients,
                    "--curator", str(told["curator"]), "--state", work / view.name,
                    "--output", work / f"{view.name}.safetensors", "--socks", clients_port))
                for view in demo.clients
            ]
            following = [asyncio.create_task(_follow(command, view))
                         for command, view in zip(hospitals, demo.clients, strict=True)]
            async with Circuit(Route(curators_port), demo.onion, fresh_identity()) as circuit:
                await _watch(demo, circuit, following)
    shutil.copyfile(work / f"{HOSPITALS[0].name}.safetensors",
                    demo.directory / "model.safetensors")


async def _watch(demo: Demo, circuit: Circuit, clients: list[asyncio.Task[None]]) -> None:
    """Follow the model's status through Tor, as anyone may, until all clients have ended."""
    with demo.timed("join and solve"):
        while not demo.curve:
            await _look(demo, circuit, clients)
    with demo.timed("training"):
        while demo.status is None or demo.status.phase != "published":
            await _look(demo, circuit, clients)
    with demo.timed("publish and verify"):
        await asyncio.gather(*clients)


async def _look(demo: Demo, circuit: Circuit, clients: list[asyncio.Task[None]]) -> None:
    for client in clients:
        if client.done():
            client.result()

    async def ask() -> Status:
        return decode(await circuit.get("/status"), Status)

    status = demo.status = await unless_away(ask, 30.0, lambda why: None)
    if status.error is not None:
        point = (status.updates, status.error)
        if not demo.curve or demo.curve[-1] != point:
            demo.curve.append(point)
    await asyncio.sleep(POLL)


async def _follow(command: Command, view: ClientView) -> None:
    """Read a client's JSON lines until its last."""
    async for event in command.lines():
        match event.get("event"):
            case "update":
                view.state, view.updates, view.spent = (
                    "training", int(event["updates"]), float(event["epsilon"]))
            case "waiting":
                view.state = f"waiting ({event['have']} of {event['need']})"
            case "following":
                view.state = "waiting for the model"
            case "end":
                view.end, view.state = event, str(event["outcome"])
                view.updates, view.spent = int(event["updates"]), float(event["epsilon_total"])
            case "joined":
                view.epsilon, view.batch = float(event["epsilon"]), int(event["batch"])
                view.state = "joined"
            case "admitted" | "reconnecting" | "solving" as state:
                view.state = str(state)
    await command.finish()


class Command:
    """One ``tormentor`` command in a process of its own; ended, if need be, on leaving.

    On Linux it also ends with the thread that started it, however that ends.

    Args:
        log: what it says besides its result is added to it.
        arguments: of the command.
        module: run instead of ``tormentor``, with the same arguments.
    """

    def __init__(self, log: Path, *arguments: object, module: str = "tormentor") -> None:
        self._log = log
        self._module = module
        self._arguments = [str(a) for a in arguments]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Command:
        # Without the variables of this shell that could lead it elsewhere.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TORMENTOR_")}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _CHILD, str(os.getpid()), self._module, *self._arguments,
                stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                # Ctrl-C is for the demo, which then ends its commands in order.
                start_new_session=True)
        return self

    async def __aexit__(self, *failure: object) -> None:
        process = self._running()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOPPING):
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._running().pid

    @property
    def ended(self) -> bool:
        """Whether the process is no more."""
        return self._running().returncode is not None

    async def kill(self) -> None:
        """End it as a crash would (SIGKILL): nothing of it runs any more."""
        process = self._running()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Its JSON lines."""
        output = self._running().stdout
        assert output is not None
        while line := await output.readline():
            event = json.loads(line)
            if "sentence" in event:
                raise self._failure(event)
            yield event

    async def line(self) -> dict[str, Any]:
        """Its first JSON line."""
        async for event in self.lines():
            return event
        raise Failed(f"'tormentor {self._arguments[0]}' said nothing; see {self._log}")

    async def finish(self) -> None:
        """Wait for its end."""
        if status := await self._running().wait():
            raise Failed(f"'tormentor {self._arguments[0]}' ended with {status}; see {self._log}")

    def _failure(self, event: dict[str, Any]) -> Exception:
        return Failed(f"'tormentor {self._arguments[0]}': {event.get('sentence', event)}")

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("a command is used inside 'async with'")
        return self._process


def _report(demo: Demo, parts: Split) -> None:
    """Judge the published model on rows that nobody has seen, and put all figures together."""
    path = demo.directory / "model.safetensors"
    model = read_model(path.read_bytes(), str(path), demo.onion)
    test = demo.directory / "data" / "test.csv"
    rows, labels = model.task.data.encode(read_table(test), str(test))
    private = float(np.mean((rows @ model.weights > 0) != (labels > 0.5)))
    central, alone = baselines(parts)
    fields = ("epsilon", "batch", "min_clients", "rows", "updates", "epsilon_total", "guess",
              "delta")
    demo.report = {
        "private_error": private,
        "central_error": central,
        "alone_errors": alone,
        "test_rows": len(labels),
        "validation_errors": demo.curve,
        "updates": model.updates,
        "strikes": demo.status.strikes if demo.status else 0,
        "ended": model.ended,
        "clients": [
            {"name": view.name, "budget": view.budget}
            | {key: (view.end or {}).get(key) for key in fields}
            for view in demo.clients
        ],
        "onion": demo.onion,
        "seconds": {**demo.phases, "total": time.monotonic() - demo.began},
        "machine": {"cores": os.cpu_count(), "python": sys.version.split()[0]},
        "files": {
            name: os.path.relpath(demo.directory / file)
            for name, file in (("model", "model.safetensors"), ("plot", "plot.png"),
                               ("picture", "demo.svg"), ("log", "demo.log"),
                               ("report", "report.json"))
        },
    }
