"""The stage of trainings over six continents: real processes, and distances that are emulated.

One :class:`Ground` holds what trainings share: a private Tor network whose relays are far apart
(:mod:`lab.wan`), a desk behind it, another one without Tor behind the ports of 25 regions. Each
:class:`~lab.race.Race` is one training on it: a model of its own, handed over by
``tormentor curate``, and clients in processes (:mod:`lab.geo_crowd`) that train until it is known
when the model arrived.

What the desk had on its disk, and when, stands in its trace (:mod:`lab.traced_desk`), so that to
measure costs the measured nothing: the errors over all training rows are reckoned here, from there.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from accord.circuit import Circuit, Route, fresh_identity
from accord.console import host_port, unless_away
from accord.control import Socks
from accord.files import private_directory
from accord.messages import Status, decode
from accord.tor import held_port
from lab.credit import Parts, Table, converged, deal
from lab.demo import Command, Failed
from lab.geo_crowd import Team, ledgers
from lab.race import Race, Watch, follow, task_file, validation_file
from lab.setting import error_of
from lab.tornet import TorNetwork
from lab.traced_desk import TRACES, Trace
from lab.wan import CONNECTIONS, PINGS, Latency, Wan, measure

ANNOUNCED: Final = 240.0
"""Seconds that a desk may take until it has reached itself."""
_TELL: Final = 10.0
_CURATING: Final = 120.0


class Ground:
    """What races share; as a context manager, and nothing of it is left.

    A network and a desk are started when the first race needs them.

    Args:
        directory: for all files; short, as sockets are in it. Made if need be, and cleared.
        table: the data of all races.
        say: told what goes on.
        connections: on which round trips are measured.
        log: what the processes say is added to it; None for a file in the directory.
    """

    def __init__(self, directory: Path, table: Table, say: Callable[[str], None],
                 connections: int = CONNECTIONS, log: Path | None = None) -> None:
        self.directory = directory.resolve()
        self._table = table
        self._say = say
        self._connections = connections
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._dealing = asyncio.Lock()
        self._wan: Wan | None = None
        self._network: TorNetwork | None = None
        self._places: dict[bool, _Place] = {}
        self._latency: dict[bool, Latency] = {}
        self._dealt: dict[tuple[int, int], _Dealt] = {}
        self._races = 0
        self._log = log or self.directory / "processes.log"

    async def __aenter__(self) -> Ground:
        shutil.rmtree(self.directory, ignore_errors=True)
        private_directory(self.directory)
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    # -- what races share ----------------------------------------------------------------------

    async def open(self, tor: bool) -> None:
        """Have the desk with or without Tor ready, as the first race of the kind would.

        While the one with Tor is being opened nothing is delayed: whoever wants both opens that one
        first, before any race.

        Raises:
            Problem: of the network. Failed: of the desk.
        """
        async with self._opening:
            if self._wan is None:
                self._wan = await self._stack.enter_async_context(Wan())
            if tor not in self._places:
                self._places[tor] = await (self._far() if tor else self._near())

    async def _far(self) -> _Place:
        """A private network, and a desk behind it."""
        assert self._wan is not None
        # Tors agree within seconds or not at all (lab.wan).
        await self._wan.off()
        network = self._network = TorNetwork(self.directory / "net")
        self._stack.push_async_callback(network.down)
        self._say("Bringing up a private Tor network ...")
        await network.up(2, links=self._wan.links)
        self._say("Opening the desk behind it ...")
        onion = await self._desk("far", ["--torrc", network.extra_torrc])
        await self._wan.on()
        return _Place(self.directory / "far", onion, network.socks[0], network.socks[1], [],
                      str(network.extra_torrc))

    async def _near(self) -> _Place:
        """A desk without Tor, and a port of each region."""
        assert self._wan is not None
        self._say("Opening the desk without Tor ...")
        held = self._stack.enter_context(held_port())
        port = self._stack.enter_context(held.lent())
        onion = await self._desk("near", ["--tor", "none", "--listen", f"127.0.0.1:{port}"])
        ports = await self._wan.direct("127.0.0.1", port)
        await self._wan.on()
        return _Place(self.directory / "near", onion, None, None,
                      [f"127.0.0.1:{port}" for port in ports])

    async def _desk(self, name: str, where: list[object]) -> str:
        desk = await self._stack.enter_async_context(Command(
            self._log, "broker", "--json", "--state", self.directory / name, "--max-models", 1000,
            "--linger", 1, *where, module="lab.traced_desk"))
        async with asyncio.timeout(ANNOUNCED):
            return str((await desk.line())["onion"])

    # -- one race ------------------------------------------------------------------------------

    async def race(self, race: Race) -> dict[str, Any]:
        """Run one; several may run at the same time.

        Returns:
            ``arrived``: seconds from "training begins" to arrival, None for not by the limit.
            ``joining``: from the first client's beginning until all were in and training began.
            ``target``, ``optimum``: error. ``curve``: [seconds, updates, error]. ``updates``: by
            arrival, else by the end; ``rate``: of them in a second. ``releases``: of a client by
            then, mean; ``epsilon_total``: what they come to; ``ledger``: releases in the ledgers at
            the end, mean. ``strikes``: given to all clients. ``latency``: in milliseconds.

        Raises:
            Failed: a process ended, or not all clients came in.
        """
        await self.open(race.tor)
        place = self._places[race.tor]
        self._races += 1
        home = private_directory(self.directory / f"race{self._races:03}")
        async with self._dealing:
            dealt = await asyncio.to_thread(self._deal, race)
        onion = await self._curate(race, place, dealt.parts, home)
        latency = await self._measure(race.tor, place, onion)
        trace = Trace(place.state / TRACES / onion)
        watch = Watch(race, dealt.parts.train, dealt.optimum)
        hint = f"; see {self._log}"
        async with self._crowd(race, place, dealt, onion, home) as crowd:
            began = min([float((await each.line())["began"]) for each in crowd])

            def look() -> None:
                if any(each.ended for each in crowd):
                    raise Failed(f"a process of clients ended ({race.words}){hint}")

            await follow(race, trace, watch, began, look,
                         lambda words: self._say(f"{race.words}: {words}"), _TELL, hint)
        told = watch.result()
        spent = await asyncio.to_thread(ledgers, home)
        shutil.rmtree(home, ignore_errors=True)
        self._say(race.ended(told))
        return {**told, "joining": round(watch.began - began, 3),
                "ledger": round(sum(spent) / len(spent), 1),
                "latency": latency.summary()}

    def _deal(self, race: Race) -> _Dealt:
        """The rows of a seed, on disk for all clients."""
        key = (race.seed, race.validation_rows)
        if key not in self._dealt:
            parts = deal(self._table, race.validation_rows, race.seed)
            stem = self.directory / f"rows{race.seed}-{race.validation_rows}"
            rows, labels = Path(f"{stem}.npy"), Path(f"{stem}-labels.npy")
            np.save(rows, parts.train[0])
            np.save(labels, parts.train[1])
            optimum = error_of(converged(*parts.train), parts.train)
            self._dealt[key] = _Dealt(parts, rows, labels, optimum)
        return self._dealt[key]

    async def _curate(self, race: Race, place: _Place, parts: Parts, home: Path) -> str:
        task, rows = home / "task.toml", home / "rows.csv"
        task.write_text(task_file(race, self._table))
        rows.write_text(validation_file(self._table, parts))
        where: list[object] = (
            ["--socks", place.socks] if place.socks is not None
            else ["--tor", "none", "--direct", place.directs[0]])
        curate = Command(self._log, "curate", task, "--json", "--validation", rows, "--broker",
                         place.onion, "--state", home / "curator", *where)
        async with asyncio.timeout(_CURATING), curate:
            onion = str((await curate.line())["onion"])
            await curate.finish()
        return onion

    async def _measure(self, tor: bool, place: _Place, onion: str) -> Latency:
        """The round trips to the first model of a desk; known for all after it."""
        async with self._opening:
            if tor in self._latency:
                return self._latency[tor]
            routes = place.routes(self._connections)

            async def ask() -> Status:
                async with Circuit(routes[0], onion, fresh_identity()) as circuit:
                    return decode(await circuit.get("/status"), Status)

            await unless_away(ask, ANNOUNCED, lambda why: None)
            found = self._latency[tor] = await measure(routes, onion, pings=PINGS)
        self._say(f"Round trip {'through Tor' if tor else 'without Tor'}: median "
                  f"{1000 * found.median:.1f} ms, standard deviation "
                  f"{1000 * found.deviation:.1f} ms")
        return found

    @asynccontextmanager
    async def _crowd(self, race: Race, place: _Place, dealt: _Dealt, onion: str,
                     home: Path) -> AsyncIterator[list[Command]]:
        """The clients' processes; killed in the end, so that nobody says that it leaves."""
        count = min(race.processes, race.clients)
        crowd = []
        try:
            for first in range(count):
                team = Team(
                    onion=onion, home=str(home), rows=str(dealt.rows), labels=str(dealt.labels),
                    share=race.share, seed=race.seed,
                    numbers=list(range(first, race.clients, count)), clients=race.clients,
                    epsilon=race.epsilon, batch=race.batch, local_steps=race.local_steps,
                    protocol=race.protocol,
                    tor=race.tor, torrc=place.torrc, directs=place.directs)
                each = Command(self._log, msgspec.json.encode(team).decode(),
                               module="lab.geo_crowd")
                crowd.append(await each.__aenter__())
            yield crowd
        finally:
            await asyncio.gather(*(each.kill() for each in crowd))


@dataclass(frozen=True, slots=True)
class _Place:
    """A desk: its state, its address; two SOCKS ports of the network's own tor and what makes
    another one join it, or where it is reached from each region (HOST:PORT)."""

    state: Path
    onion: str
    socks: Socks | None
    others: Socks | None
    directs: list[str]
    torrc: str = ""

    def routes(self, count: int) -> list[Route]:
        """So many clients' ways."""
        if self.others is not None:
            return [Route(self.others)] * count
        return [Route(None, host_port(self.directs[i % len(self.directs)], "direct"))
                for i in range(count)]


@dataclass(frozen=True, slots=True)
class _Dealt:
    """The rows of a seed; where those to train with are; the converged model's error on them."""

    parts: Parts
    rows: Path
    labels: Path
    optimum: float
