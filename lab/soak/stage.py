"""What trials with a real desk need: a network, the desk, a curator's task, clients; as processes.

The desk is ``tormentor broker`` with a tor of its own, the task is handed over by ``tormentor
curate``, the clients are :mod:`lab.crowd`, over a private Tor network or (``tor=False``) none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from accord.circuit import Circuit, Route, fresh_identity
from accord.console import say, unless_away
from accord.files import private_directory
from accord.messages import Status, decode
from accord.tor import held_port
from broker.store import Store
from lab.coded import Code
from lab.crowd import Part
from lab.demo import Command, Failed
from lab.tornet import TorNetwork, running

LINGER: Final = 3600
ANNOUNCED: Final = 240.0
"""Seconds that a desk may take until it has reached itself."""
_TASK: Final = '''\
title = "A trial of strength"
description = "Made by scripts/soak. Each update of a client adds a digit of its own."

[training]
mode = "asynchronous"
clip = 0.5
max_updates = {updates}
deadline = 86400.0

[clients]
minimum = {minimum}
maximum = {maximum}
silence = 60.0

[puzzles]
admission = 1
update = 0

[validation]
test = "none"
screen = "none"

[data]
target = "y"

[[data.fields]]
name = "y"
type = "integer"
{fields}'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is put on the stage.

    Attributes:
        clients: how many.
        processes: that they are divided among.
        updates: after which training ends.
        width: coordinates of each client, which send digits (:mod:`lab.coded`); 0 for real
            updates.
        features: of real data; else there are as many as the digits take.
        minimum: active clients below which nobody trains.
        delay: longest wait of a client before an update, in seconds.
        pace: changes to how soon clients come back.
        tor: over a private network, or without Tor.
        own_tors: each process of clients has a tor of its own; else all use the network's client.
        desk: the module that is the broker's command.
        crowd: the module that is the clients' program.
    """

    clients: int
    processes: int
    updates: int
    width: int
    minimum: int
    features: int = 0
    delay: float = 0.0
    pace: dict[str, float] = field(default_factory=dict)
    tor: bool = True
    own_tors: bool = True
    desk: str = "tormentor"
    crowd: str = "lab.crowd"

    @property
    def code(self) -> Code:
        """What stands for which update."""
        return Code(self.clients, self.width)


class Stage:
    """Everything that runs; use it as a context manager, and nothing of it is left.

    Args:
        directory: for all files; short, as sockets are in it, and empty: what an earlier trial
            left would be counted.
        setting: what is wanted.
        network: one that is up, to be used and left; else there is one of our own.

    Raises:
        Failed: the directory is not empty.

    Attributes:
        desk: the broker's process.
        onion: the desk's address; None before. model: the model's.
        crowds: the clients' processes, and parts: what each was told.
        starts: seconds from each start of the desk until it said its address, where it came to
            that.
        moved: how often that was another than before.
    """

    desk: Command
    model: str

    def __init__(self, directory: Path, setting: Setting, network: TorNetwork | None = None,
                 ) -> None:
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            raise Failed(f"{self.directory} is not empty; give another directory")
        self.setting = setting
        self.onion: str | None = None
        self.moved = 0
        self.starts: list[float] = []
        self.parts: list[Part] = []
        self.crowds: list[Command] = []
        self._own = TorNetwork(self.directory / "net") if setting.tor and not network else None
        self.network = network or self._own
        # A desk without Tor has the same port over restarts, which nobody may take meanwhile.
        self._held = contextlib.ExitStack()
        self._port = 0 if setting.tor else self._held.enter_context(
            self._held.enter_context(held_port()).lent())
        self._log = self.directory / "soak.log"

    async def __aenter__(self) -> Stage:
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def _open(self) -> None:
        if self._own is not None:
            say("Bringing up a private Tor network ...")
            await self._own.up(2)
        say("Opening the desk ...")
        await self.start_desk()
        await self.announced()
        await self._curate()
        self._divide()
        for place in range(len(self.parts)):
            await self.start_crowd(place)

    async def close(self) -> None:
        """End all of it, without ceremony. May be called twice."""
        tors = [running(place) for place in (self.desk_tor, *map(Part.tor_directory, self.parts))]
        if hasattr(self, "desk"):
            await self.kill_desk()
        await asyncio.gather(*(crowd.kill() for crowd in self.crowds))
        for pid in tors:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self._own is not None:
            await self._own.down()
        self._held.close()

    # -- the desk ------------------------------------------------------------------------------

    @property
    def state(self) -> Path:
        """The desk's directory."""
        return self.directory / "desk"

    @property
    def desk_tor(self) -> Path:
        """The directory of the desk's tor."""
        return self.state / "tor-broker"

    async def start_desk(self) -> None:
        """Start the desk, and look out for its address (:meth:`announced`)."""
        where: list[object] = ["--tor", "none", "--listen", f"127.0.0.1:{self._port}"]
        if self.network is not None:
            where = ["--torrc", self.network.extra_torrc]
        desk = Command(self._log, "broker", "--json", "--state", self.state, "--linger", LINGER,
                       *where, module=self.setting.desk)
        self.desk = await desk.__aenter__()
        self._announcement = asyncio.create_task(self._announce(self.desk, time.monotonic()))

    async def _announce(self, desk: Command, began: float) -> None:
        onion = str((await desk.line())["onion"])
        self.starts.append(time.monotonic() - began)
        self.moved += self.onion not in (None, onion)
        self.onion = onion

    async def announced(self) -> None:
        """Wait until the desk says its address: it has reached itself. Models are served sooner."""
        async with asyncio.timeout(ANNOUNCED):
            await self._announcement

    async def kill_desk(self) -> None:
        """Kill the desk. Its tor ends with it."""
        self._announcement.cancel()
        await asyncio.gather(self._announcement, return_exceptions=True)
        await self.desk.kill()

    def weights(self) -> np.ndarray:
        """The weights that the desk has on its disk, shape (d,). Only while it does not run."""
        (directory,) = [p for p in (self.state / "models").iterdir() if (p / "model.db").exists()]
        with tempfile.TemporaryDirectory() as copy:
            for path in directory.glob("model.db*"):
                if not path.name.endswith("-shm"):  # it is made anew of the others
                    shutil.copyfile(path, Path(copy) / path.name)
            store = Store(Path(copy) / "model.db")
            try:
                state = store.state()
            finally:
                store.close()
        return np.zeros(self.setting.code.width) if state is None else state[0].weights

    async def status(self) -> Status:
        """What the model's address tells anyone."""
        route = Route(None, ("127.0.0.1", self._port))
        if self.network is not None:
            route = Route(self.network.socks[0])

        async def ask() -> Status:
            async with Circuit(route, self.model, fresh_identity()) as circuit:
                return decode(await circuit.get("/status"), Status)

        return await unless_away(ask, 60.0, lambda why: None)

    # -- the task ------------------------------------------------------------------------------

    async def _curate(self) -> None:
        """Hand over a task on whose validation set every digit lowers the loss: so the weights
        that are published, the best, are also the last."""
        setting = self.setting
        names = [f"x{i}" for i in range(setting.features or setting.clients * setting.width)]
        fields = "".join(f'\n[[data.fields]]\nname = "{name}"\ncenter = 0.0\nscale = 1.0\n'
                         for name in names)
        task, rows = self.directory / "task.toml", self.directory / "rows.csv"
        task.write_text(_TASK.format(updates=setting.updates, minimum=setting.minimum,
                                     maximum=2 * setting.clients, fields=fields))
        lines = [",".join([*names, "y"])]
        lines += [",".join([str(2 * y - 1)] * len(names) + [str(y)]) for y in (0, 1) * 4]
        rows.write_text("\n".join(lines) + "\n")
        where: list[object] = ["--tor", "none", "--direct", f"127.0.0.1:{self._port}"]
        if self.network is not None:
            where = ["--socks", self.network.socks[0]]
        assert self.onion is not None
        curate = Command(self._log, "curate", task, "--json", "--validation", rows, "--broker",
                         self.onion, "--state", self.directory / "curator", *where)
        async with curate:
            self.model = str((await curate.line())["onion"])
            await curate.finish()

    # -- the clients ---------------------------------------------------------------------------

    def _divide(self) -> None:
        """Deal the clients out to their processes."""
        setting, home = self.setting, private_directory(self.directory / "clients")
        way = {"direct": f"127.0.0.1:{self._port}"}
        if self.network is not None:
            way = {"socks": str(self.network.socks[1])}
            if setting.own_tors:
                way = {"torrc": str(self.network.extra_torrc)}
        self.parts = [
            Part(onion=self.model, home=str(home), data=str(self.directory / "rows.csv"),
                 numbers=list(range(place, setting.clients, setting.processes)),
                 min_clients=1, delay=setting.delay, pace=setting.pace,
                 width=setting.width, clients=setting.clients,
                 record=str(self.directory / f"crowd-{place}"), **way)
            for place in range(setting.processes)]

    async def start_crowd(self, place: int) -> None:
        """Start a process of clients, for the first time or again."""
        part = msgspec.json.encode(self.parts[place]).decode()
        crowd = Command(self._log, part, module=self.setting.crowd)
        await crowd.__aenter__()
        if place < len(self.crowds):
            self.crowds[place] = crowd
        else:
            self.crowds.append(crowd)

    @property
    def records(self) -> list[Path]:
        """Where the clients write down what they sent and heard."""
        return [Path(part.record) for part in self.parts]

    def client(self, number: int) -> Path:
        """The directory of a client."""
        return self.directory / "clients" / f"{number:03}"


async def until(condition: Callable[[], bool], poll: float = 0.05) -> None:
    """Wait until something holds."""
    while not condition():  # noqa: ASYNC110  (files and processes of others give no event)
        await asyncio.sleep(poll)
