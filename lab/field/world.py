"""Races over machines of many places: the world that an experiment's cells run in, elsewhere.

What :class:`lab.geo.Ground` is on one machine, :class:`Field` is over an inventory: it has the
machines checked, TorMentor installed, desks opened and round trips measured; then each race runs by
a few plays; in the end, whatever ends it, everything is stopped. One race runs at a time.

A race that a machine was at fault in is run once more. When that fails as well, the run ends;
finished cells are kept, and the same command goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from accord.console import plain, warn
from accord.files import private_directory, write_whole
from accord.onion import check_onion
from accord.problems import HOST_AWAY, HOST_FAILED, NO_CONTROLLER, Problem
from lab.credit import Parts, Table, converged, deal, load
from lab.demo import Failed
from lab.experiments.frame import Cell, Outcome, RunCell
from lab.field.deal import shelve
from lab.field.inventory import DIRECT_PORT, LATENCY, MACHINES, Host, Inventory, spread
from lab.field.latencies import DESKS, Measured
from lab.field.looks import LOOK, Looks, Over, decoded
from lab.field.machines import Machine, judge, stored
from lab.field.orders import Began, Curated, PingOrder, RefereeOrder, Way
from lab.field.plays import HOME, Plays, answers
from lab.geo_crowd import Team, region
from lab.race import JOINING, Race, task_file, validation_file
from lab.setting import error_of
from lab.wan import CONNECTIONS, PINGS, Latency

WHEELS: Final = "TORMENTOR_WHEELS"
"""The variable by which ``deploy/run`` says where the wheel is that it has built."""
STOPPING: Final = 60.0
"""Seconds that stopping everything may take."""
CURATING: Final = 660
"""Seconds: the referee gives up sooner, and says why."""
STATE: Final = "/var/lib/tormentor"
RACE: Final = f"{STATE}/race"
TORRC: Final = "/etc/tormentor/torrc"
T = TypeVar("T")
_UNIT: Final = (
    "--uid=tormentor --gid=tormentor -p StateDirectory=tormentor -p StateDirectoryMode=0700 "
    f"-p WorkingDirectory={STATE} -p UMask=0077 -p RuntimeMaxSec=30min -p LimitNOFILE=65536 "
    "-p NoNewPrivileges=yes -p ProtectSystem=strict -p ProtectHome=yes -p PrivateTmp=yes "
    "-p PrivateDevices=yes -p CapabilityBoundingSet= -p RestrictNamespaces=yes "
    "-p RestrictSUIDSGID=yes -p IPAddressDeny=169.254.169.254")
"""Of what runs once, before the races; the units' own hardening, in short."""


class Field:
    """The machines of an inventory, for one run.

    Args:
        inventory: of them.
        race_of: the race that a cell asks for.
    """

    def __init__(self, inventory: Inventory, race_of: Callable[[Cell], Race]) -> None:
        self.inventory = inventory
        self._race_of = race_of

    @asynccontextmanager
    async def open_world(
        self, cells: Sequence[Cell], data: Path | None, directory: Path,
        say: Callable[[str], None],
    ) -> AsyncIterator[RunCell]:
        """As :meth:`lab.experiments.frame.Shared.open_world`.

        Raises:
            Problem: ``NO_CONTROLLER``, ``HOST_AWAY``, ``HOST_UNFIT``, ``HOST_FAILED``,
                ``PLAY_FAILED``, ``DISK``.
        """
        built = os.environ.get(WHEELS)
        wheel = find_wheel(Path(built) if built else None)
        races = [self._race_of(cell) for cell in cells]
        table = await asyncio.to_thread(load, data)
        place = Path(tempfile.mkdtemp(prefix="field-"))
        try:
            async with Plays(self.inventory, directory / "ansible.log", say) as plays:
                run = _Run(self.inventory, plays, table, directory, place, say)
                try:
                    await run.begin(wheel, races)

                    async def one(cell: Cell) -> Outcome:
                        return await run.race(self._race_of(cell))

                    yield one
                finally:
                    await run.stop()
        finally:
            shutil.rmtree(place, ignore_errors=True)


def find_wheel(directory: Path | None) -> Path:
    """The wheel that ``deploy/run`` has built.

    Args:
        directory: where; None if nobody says so. One that lies about here is not it.

    Raises:
        Problem: ``NO_CONTROLLER``: there is none.
    """
    found = [] if directory is None else sorted(directory.glob("tormentor-*.whl"))
    if len(found) != 1:
        raise Problem(NO_CONTROLLER, what="wheel of TorMentor")
    return found[0]


def stamp(wheel: Path, lock: Path) -> str:
    """Names what is installed: another one for another wheel, or other versions of the rest."""
    return hashlib.sha256(wheel.read_bytes() + lock.read_bytes()).hexdigest()


class _Run:
    """A run in its course.

    Args:
        inventory: the machines. plays: on them. table: the data of all races.
        directory: of the results. place: for what is copied up.
        say: told what goes on.
    """

    def __init__(self, inventory: Inventory, plays: Plays, table: Table, directory: Path,
                 place: Path, say: Callable[[str], None]) -> None:
        self._inventory = inventory
        self._plays = plays
        self._table = table
        self._directory = directory
        self._place = place
        self._say = say
        self._desks: dict[bool, str] = {}
        self._latency: dict[bool, Latency] = {}
        self._order = [host.name for host in inventory.clients]
        self._dealt: dict[tuple[int, int], _Dealt] = {}
        self._shelf = place / "table.npz"
        self._digest = hashlib.sha256(table.digest.encode()).hexdigest()[:16]
        self._begun = False

    # -- before the races ----------------------------------------------------------------------

    async def begin(self, wheel: Path, races: Sequence[Race]) -> None:
        """Have all machines ready for these races."""
        hosts = self._inventory.hosts
        private_directory(self._place)
        await asyncio.to_thread(shelve, self._table, self._shelf)
        self._say(f"Looking at {len(hosts)} machines ...")
        machines = await self._look()
        least = min(machines.values(), key=lambda machine: machine.memory)
        self._say(f"All of them will do; the smallest has {least.memory:,} MB of memory.")
        self._begun = True
        await self._plays.play("stop")
        self._say("Installing TorMentor where it is not, or is another ...")
        await self._install(wheel, {name: machine.packages for name, machine in machines.items()})
        if any(machine.packages for machine in machines.values()):
            # Results say which tor it was, also where there was none before.
            machines = await self._look()
        write_whole(self._directory / MACHINES, stored(
            machines, {name: host.region for name, host in hosts.items()}))
        ways = {race.tor for race in races}
        # Without Tor it costs nothing to be measured.
        for tor in sorted({False} | ways, reverse=True):
            await self._open(tor)
        await self._measure()
        if False not in ways:
            del self._desks[False]
            await self._plays.play("close", {"desk": DESKS[False]},
                                   hosts=[self._inventory.broker.name])

    async def _look(self) -> dict[str, Machine]:
        """What the machines are, by name.

        Raises:
            Problem: ``HOST_UNFIT``, ``HOST_AWAY``.
        """
        told = answers(await self._plays.play("check"), "machine")
        return {name: judge(told.get(name, ""), host.words)
                for name, host in self._inventory.hosts.items()}

    async def _install(self, wheel: Path, packages: Mapping[str, tuple[str, ...]]) -> None:
        lock = HOME / "requirements.lock"
        hosts = self._inventory.hosts
        await self._plays.play("install", {
            "packages": packages, "wheel": wheel, "lock": lock,
            "stamp": await asyncio.to_thread(stamp, wheel, lock),
            "python": {name: host.python for name, host in hosts.items()},
            "pip": {name: host.pip for name, host in hosts.items()},
            "torrc": {name: "" if host.torrc is None else await asyncio.to_thread(
                host.torrc.read_text) for name, host in hosts.items()},
        })

    async def _open(self, tor: bool) -> None:
        # Whose machines they are knows what is open on them.
        self._say("Opening the desk behind Tor ..." if tor else
                  f"Opening the desk without Tor, at port {DIRECT_PORT} of all its addresses ...")
        if tor:
            torrc = _torrc(self._inventory.broker)
            options = f"--torrc {torrc}" if torrc else "--tor launch"
        else:
            options = f"--tor none --listen 0.0.0.0:{DIRECT_PORT}"
        events = await self._plays.play("open", {"desk": DESKS[tor], "options": options},
                                        hosts=[self._inventory.broker.name])
        broker = self._inventory.broker.name
        # It becomes a variable of Ansible's, and those are templates, which run commands here.
        self._desks[tor] = check_onion(
            self._told(broker, answers(events, "opened")[broker], Curated).onion)

    async def _measure(self) -> None:
        """Round trips of all machines, by a model that nobody joins."""
        self._say("Measuring round trips ...")
        where = private_directory(self._place / "measure")
        race = Race(clients=2, tor=True, protocol="ours", seed=0, step=0.1, schedule="constant")
        dealt = await asyncio.to_thread(self._deal, race)
        self._write(where, race, dealt)
        clients = self._inventory.clients
        connections = math.ceil(CONNECTIONS / len(clients))
        for host in clients:
            order = PingOrder(far="", near="", torrc=_torrc(host), state=f"{STATE}/tor",
                              direct=host.direct, connections=connections, pings=PINGS)
            write_whole(where / f"{host.name}-ping.json", msgspec.json.encode(order))
        desks = {DESKS[tor]: {"onion": onion, "options": self._way_options(tor)}
                 for tor, onion in self._desks.items()}
        events = await self._plays.play("measure", {
            "directory": where, "desks": desks, "unit": _UNIT,
            "broker": self._inventory.broker.name})
        measured = Measured(self._inventory, {
            name: self._told(name, text, dict[str, Latency | None])
            for name, text in answers(events, "ping").items()})
        self._latency = {tor: measured.of(DESKS[tor]) for tor in self._desks}
        # So that ten clients on ten of the machines are as far away as two hundred on all.
        nearest = measured.nearest()
        self._order = [nearest[region(i, len(nearest))] for i in range(len(nearest))]
        measured.write(self._directory / LATENCY)
        for line in measured.lines(self._desks):
            self._say(line)

    def _way_options(self, tor: bool) -> str:
        """Of ``tormentor curate`` on the broker's machine."""
        broker = self._inventory.broker
        if not tor:
            return f"--tor none --direct {broker.direct}"
        return f"--torrc {TORRC}" if broker.torrc else "--tor launch"

    # -- one race ------------------------------------------------------------------------------

    async def race(self, race: Race) -> Outcome:
        """Run one, and once more when a machine was at fault.

        Returns:
            As :meth:`lab.geo.Ground.race`.
        """
        try:
            return await self._race(race)
        except (Failed, Problem) as failure:
            if isinstance(failure, Problem) and failure.kind not in (HOST_AWAY, HOST_FAILED):
                raise
            # What to do about it is said when it happens again.
            why = plain(str(failure)).partition(';')[0]
            self._say(f"{race.words}: {why}; it is run once more")
        # Both desks are stopped by that; the other one is opened for the next race that needs it.
        self._desks.clear()
        await self._plays.play("stop", tolerant=True)
        # A machine that is still away ends it here, before the others wait for a desk.
        await self._plays.play("check")
        try:
            return await self._race(race)
        except Failed as failure:
            raise Problem(HOST_FAILED, host=self._inventory.broker.words, task="finish the race",
                          why=str(failure).rstrip("."), log=self._logs(race)) from None

    async def _race(self, race: Race) -> Outcome:
        spreading = spread(race.clients, self._order)
        hosts = [self._inventory.broker.name, *(
            name for name in spreading if name != self._inventory.broker.name)]
        if race.tor not in self._desks:
            await self._open(race.tor)
        dealt = await asyncio.to_thread(self._deal, race)
        home = private_directory(self._place / "race")
        self._say(f"{race.words}: curating")
        onion = await self._curate(race, dealt, home, hosts)
        try:
            began = await self._join(race, dealt, onion, home, spreading)
            await self._watch(race, hosts)
        except (Problem, Failed):
            await self._collect(race, hosts, tolerant=True)
            raise
        told, spent = await self._collect(race, hosts)
        self._say(race.ended(told))
        begun = told.pop("training_began")
        return {**told, "joining": round(begun - began, 3), "ledger": spent,
                "latency": self._latency[race.tor].summary()}

    def _deal(self, race: Race) -> _Dealt:
        key = (race.seed, race.validation_rows)
        if key not in self._dealt:
            parts = deal(self._table, race.validation_rows, race.seed)
            optimum = error_of(converged(*parts.train), parts.train)
            stem = f"{STATE}/data/{self._digest}-{race.seed}-{race.validation_rows}"
            self._dealt[key] = _Dealt(parts, f"{stem}-rows.npy", f"{stem}-labels.npy", optimum)
        return self._dealt[key]

    def _write(self, where: Path, race: Race, dealt: _Dealt) -> None:
        """What a curator hands over."""
        write_whole(where / "task.toml", task_file(race, self._table).encode())
        write_whole(where / "rows.csv", validation_file(self._table, dealt.parts).encode())

    async def _curate(self, race: Race, dealt: _Dealt, home: Path, hosts: list[str]) -> str:
        broker = self._inventory.broker
        order = RefereeOrder(
            race=race, rows=dealt.rows, labels=dealt.labels, optimum=dealt.optimum,
            task=f"{RACE}/task.toml", validation=f"{RACE}/rows.csv", desk=self._desks[race.tor],
            state=f"{STATE}/broker-{DESKS[race.tor]}", home=RACE,
            way=Way(tor=race.tor, torrc=_torrc(broker), state=f"{STATE}/referee",
                    direct=broker.direct))
        self._write(home, race, dealt)
        write_whole(home / "order.json", msgspec.json.encode(order))
        events = await self._plays.play("curate", {
            "directory": home, "table": self._shelf, "digest": self._digest, "rows": dealt.rows,
            "labels": dealt.labels, "seed": race.seed, "validation_rows": race.validation_rows,
            "patience": CURATING}, hosts=hosts)
        told = answers(events, "curated")[broker.name]
        return check_onion(self._told(broker.name, told, Curated).onion)

    async def _join(self, race: Race, dealt: _Dealt, onion: str, home: Path,
                    spreading: Mapping[str, list[int]]) -> float:
        """Have the clients join; when the first of them began (seconds since the epoch)."""
        named = self._inventory.hosts
        for name, numbers in spreading.items():
            host = named[name]
            team = Team(
                onion=onion, home=RACE, rows=dealt.rows, labels=dealt.labels, share=race.share,
                seed=race.seed, numbers=numbers, clients=race.clients, epsilon=race.epsilon,
                batch=race.batch, local_steps=race.local_steps, protocol=race.protocol,
                tor=race.tor, torrc=_torrc(host) if race.tor else "",
                tor_directory=f"{STATE}/tor", directs=[] if race.tor else [host.direct], gate=True)
            write_whole(home / f"{name}.json", msgspec.json.encode(team))
        self._say(f"{race.words}: clients are joining on {len(spreading)} machines")
        last = next(n for n, numbers in spreading.items() if race.clients - 1 in numbers)
        events = await self._plays.play("join", {
            "directory": home, "last": last, "patience": round(JOINING)}, hosts=spreading)
        return min(self._told(name, text, Began).at
                   for name, text in answers(events, "began").items())

    async def _watch(self, race: Race, hosts: list[str]) -> None:
        """Until the race is over, or known to be spoilt."""
        looks = Looks(race, self._inventory, self._logs(race), self._say)
        # As long as the referee's rule may take.
        most = math.ceil((2 * race.limit + JOINING) / LOOK)
        try:
            await self._plays.play("watch", {"looks": most, "interval": LOOK}, hosts=hosts,
                                   hear=looks.hear, patience=2 * most * LOOK)
        except Over:
            return
        raise Failed(f"nobody says how it ended ({race.words})")

    async def _collect(self, race: Race, hosts: list[str], tolerant: bool = False
                       ) -> tuple[dict[str, Any], float | None]:
        """What came of it, and the releases in the ledgers; and all of its clients are ended."""
        logs = self._logs(race)
        logs.mkdir(parents=True, exist_ok=True)
        events = await self._plays.play("collect", {"directory": logs.resolve()}, hosts=hosts,
                                        tolerant=tolerant)
        if tolerant:
            return {}, None
        for name, state in answers(events, "state").items():
            if state not in ("active", ""):
                raise Problem(HOST_FAILED, host=self._inventory.words(name),
                              task="keep its clients running", why=f"they are {state}", log=logs)
        spent = [json.loads(text) for text in answers(events, "ledgers").values() if text]
        count = sum(each["clients"] for each in spent)
        mean = sum(each["clients"] * (each["mean"] or 0.0) for each in spent) / max(1, count)
        broker = self._inventory.broker.name
        text = answers(events, "result").get(broker, "")
        return msgspec.to_builtins(self._told(broker, text, _Result)), round(mean, 1)

    def _told(self, name: str, text: str, kind: type[T]) -> T:
        """What the machine of this name said, as what it must be.

        Raises:
            Problem: ``HOST_FAILED``: it is none.
        """
        try:
            return decoded(text, kind)
        except Failed as failure:
            raise Problem(HOST_FAILED, host=self._inventory.words(name), task="answer",
                          why=plain(str(failure)), log=self._directory / "ansible.log") from None

    def _logs(self, race: Race) -> Path:
        name = (f"{race.clients}-{DESKS[race.tor]}-{race.protocol}-seed{race.seed}")
        return self._directory / "logs" / name

    # -- in the end ----------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop everything, whatever happened; says what could not be stopped."""
        if not self._begun:
            return
        self._say("Stopping everything on the machines ...")
        ends = ("What may still run there ends by itself: clients two hours after their start, the "
                "broker after a day.")
        try:
            events = await self._plays.play("stop", tolerant=True, patience=STOPPING)
        except asyncio.CancelledError:
            warn(f"Left before everything was stopped. {ends}")
            raise
        except Problem as problem:
            warn(f"{problem.sentence} {ends}")
            return
        lost = {event.host for event in events if event.bad}
        lost |= set(self._inventory.hosts) - {event.host for event in events}
        if lost:
            words = ", ".join(sorted(map(self._inventory.words, lost)))
            warn(f"Could not be stopped, as it does not answer: {words}. {ends}")
        else:
            self._say("Everything is stopped.")


class _Result(msgspec.Struct, forbid_unknown_fields=True):
    """What lab.race.Watch.result says, and when training began. (JSON itself has no NaN.)"""

    arrived: float | None
    optimum: float
    target: float
    updates: int
    rate: float
    releases: float
    epsilon_total: float
    strikes: int
    curve: list[tuple[float, int, float]]
    training_began: float


def _torrc(host: Host) -> str:
    """Where it is on the machine; empty for the public network."""
    return TORRC if host.torrc else ""


@dataclass(frozen=True, slots=True)
class _Dealt:
    """The rows of a seed; where those to train with are on each machine; the converged model's
    error on them."""

    parts: Parts
    rows: str
    labels: str
    optimum: float
