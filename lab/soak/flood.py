"""``scripts/soak flood``: what a flood of joins does to those who train."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

from accord import console
from accord.console import json_option, result, say
from lab.soak.flood_parts import COUNTS, WORKERS, desk_process, flood_process, trainers_process
from lab.soak.process import busy, memory

SLOWED: Final = 0.8
"""Least share of their rate that those who train must keep: not slowed by more than a quarter."""
TRIP: Final = 0.05
"""Seconds of a round trip: that of the private Tor network with 200 clients (house.md)."""
_STARTS: Final = 120.0
_LOOK: Final = 0.1


class Report(Struct, frozen=True):
    """What came of it.

    Attributes:
        clients: that trained.
        seconds: of one phase; pairs: phases without and with the flood.
        unthrottled: their updates a second, all together, with no round trip and no flood.
        without, with_flood: their updates a second with a round trip: medians of the phases.
        ratio: median of the pairs' ratios, with / without.
        thrown: joins a second in the flood, and what came of all that was thrown, a second.
        broker_cpu, broker_cpu_flood: share of one core that the broker used: medians.
        megabytes, megabytes_after: memory of the broker, before and after.
        joined, joined_flood: median seconds that honest newcomers who began in these phases took
            from their first request to their first work; None when none did.
        slowest_flood: the same, of the slowest who began in the flood.
        slowed: whether they were slowed by more than a quarter.
        load: the machine's load average at the end. The trial itself makes about 2; where other
            work takes the CPUs, the desk is starved, and the ratio tells of that.
    """

    clients: int
    seconds: float
    pairs: int
    unthrottled: float
    without: float
    with_flood: float
    ratio: float
    thrown: dict[str, float]
    broker_cpu: float
    broker_cpu_flood: float
    megabytes: float
    megabytes_after: float
    joined: float | None
    joined_flood: float | None
    slowest_flood: float | None
    slowed: bool
    load: float

    def words(self) -> str:
        """For a person."""
        thrown = ", ".join(f"{v:,.0f} {k.replace('_', ' ')}" for k, v in self.thrown.items())
        return (
            f"{self.clients} clients train; {self.pairs} times {self.seconds:g} s without and with "
            f"a flood\n"
            f"Thrown a second     {thrown}\n"
            f"Updates a second    {self.without:.0f} without, {self.with_flood:.0f} with: a ratio "
            f"of {self.ratio:.2f} (at least {SLOWED})\n"
            f"Unthrottled         {self.unthrottled:.0f} updates a second\n"
            f"Broker              {self.broker_cpu:.0%} of a core without, "
            f"{self.broker_cpu_flood:.0%} with; {self.megabytes:.0f} MB before, "
            f"{self.megabytes_after:.0f} MB after\n"
            f"A newcomer joins in {_seconds(self.joined)} without, {_seconds(self.joined_flood)} "
            f"with, at most {_seconds(self.slowest_flood)}\n"
            f"Load of the machine  {self.load:.1f}")


def _seconds(value: float | None) -> str:
    return "(none did)" if value is None else f"{value:.2f} s"


@dataclass(frozen=True, slots=True)
class Phase:
    """What was counted in one phase, a second; and when it began and ended."""

    updates: float
    cpu: float
    thrown: dict[str, float]
    began: float
    ended: float


class Trial:
    """The processes, and what they count. Use as a context manager."""

    def __init__(self, clients: int, workers: dict[str, int], every: float = 1.0) -> None:
        self._clients, self._workers, self._every = clients, workers, every
        self._processes: list[SpawnProcess] = []

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[Trial]:
        """Start them; end them."""
        spawn = multiprocessing.get_context("spawn")
        cpus: list[int | None] = [None, None]
        if len(found := sorted(os.sched_getaffinity(0))) > 1:
            cpus = [found[0], found[1]]
        self.on: Event = spawn.Event()
        self.updates: SynchronizedArray[int] = spawn.Array("Q", self._clients, lock=True)
        self.counts: SynchronizedArray[int] = spawn.Array("Q", len(COUNTS), lock=True)
        self.trip: Synchronized[float] = spawn.Value("d", 0.0)

        def start(target: Callable[..., None], *arguments: Any) -> Connection:
            mine, its = spawn.Pipe(duplex=False)
            process = spawn.Process(target=target, args=_with(arguments, its), daemon=True)
            self._processes.append(process)
            process.start()
            its.close()
            return mine

        with tempfile.TemporaryDirectory() as state:
            try:
                self.broker = start(desk_process, Path(state), self._clients, _PIPE, cpus[0])
                path = await self._wait(self.broker)
                self.people = start(trainers_process, path, self._clients, self.updates, self.trip,
                                    self._every, _PIPE, cpus[1])
                await self._wait(self.people)
                flood = start(flood_process, path, self.on, self.counts, self._workers, _PIPE,
                              cpus[1])
                await self._wait(flood)
                yield self
            finally:
                for process in reversed(self._processes):
                    process.terminate()
                for process in self._processes:
                    await asyncio.to_thread(process.join, 5.0)
                    process.kill()

    async def _wait(self, told: Connection) -> Any:
        end = asyncio.get_running_loop().time() + _STARTS
        while not told.poll():
            self._check()
            if asyncio.get_running_loop().time() > end:
                raise RuntimeError("a process does not start")
            await asyncio.sleep(_LOOK)
        return told.recv()

    def _check(self) -> None:
        if any(not process.is_alive() for process in self._processes):
            raise RuntimeError("a process has ended")

    @property
    def megabytes(self) -> float:
        """Memory of the broker, resident."""
        return memory(self._broker_pid)["rss"]

    @property
    def _broker_pid(self) -> int:
        pid = self._processes[0].pid
        assert pid is not None
        return pid

    def newcomers(self) -> Iterator[tuple[float, float]]:
        """When those began who have joined meanwhile, and the seconds that it took."""
        while self.people.poll():
            yield self.people.recv()

    async def phase(self, flooded: bool, seconds: float) -> Phase:
        """Let time pass, with or without the flood; a fifth of it, at the start, is not counted."""
        (self.on.set if flooded else self.on.clear)()
        await asyncio.sleep(seconds / 5)
        began, updates, cpu = time.monotonic(), sum(self.updates[:]), busy(self._broker_pid)
        thrown = self.counts[:]
        await asyncio.sleep(seconds * 4 / 5)
        self._check()
        ended = time.monotonic()
        took = ended - began
        return Phase(
            updates=(sum(self.updates[:]) - updates) / took,
            cpu=(busy(self._broker_pid) - cpu) / took,
            thrown={name: (count - then) / took for name, count, then
                    in zip(COUNTS, self.counts[:], thrown, strict=True)},
            began=began, ended=ended)


_PIPE: Final = "the pipe"


def _with(arguments: tuple[Any, ...], pipe: Connection) -> tuple[Any, ...]:
    return tuple(pipe if one == _PIPE else one for one in arguments)


async def flood(
    clients: int, pairs: int, seconds: float, workers: dict[str, int] | None = None
) -> Report:
    """Run it.

    Args:
        clients: that train.
        pairs: of phases, without and with the flood in turn.
        seconds: of each.
        workers: of the flood; None for all of :data:`lab.soak.flood_parts.WORKERS`.
    """
    async with Trial(clients, WORKERS if workers is None else workers).run() as trial:
        say("Training, as fast as it goes ...")
        unthrottled = await trial.phase(False, seconds / 2)
        trial.trip.value = TRIP
        megabytes = trial.megabytes
        calm, flooded = [], []
        for pair in range(pairs):
            calm.append(await trial.phase(False, seconds))
            flooded.append(await trial.phase(True, seconds))
            say(f"{pair + 1} of {pairs}: {calm[-1].updates:.0f} updates a second without, "
                f"{flooded[-1].updates:.0f} with {flooded[-1].thrown['joins']:,.0f} joins a second")
        await trial.phase(False, min(seconds, 5.0))
        after = trial.megabytes
        newcomers = list(trial.newcomers())
    ratio = statistics.median(f.updates / c.updates for f, c in zip(flooded, calm, strict=True))
    joined, joined_flood = ([took for began, took in newcomers
                             if any(p.began <= began < p.ended for p in phases)]
                            for phases in (calm, flooded))
    return Report(
        clients=clients, seconds=seconds, pairs=pairs, unthrottled=unthrottled.updates,
        without=statistics.median(phase.updates for phase in calm),
        with_flood=statistics.median(phase.updates for phase in flooded), ratio=ratio,
        thrown={name: statistics.median(phase.thrown[name] for phase in flooded)
                for name in COUNTS},
        broker_cpu=statistics.median(phase.cpu for phase in calm),
        broker_cpu_flood=statistics.median(phase.cpu for phase in flooded),
        megabytes=megabytes, megabytes_after=after,
        joined=statistics.median(joined) if joined else None,
        joined_flood=statistics.median(joined_flood) if joined_flood else None,
        slowest_flood=max(joined_flood, default=None), slowed=ratio < SLOWED,
        load=os.getloadavg()[0])


@click.command("flood")
@click.option("--clients", type=click.IntRange(1, 500), default=20, show_default=True,
              help="Clients that train.")
@click.option("--quick", is_flag=True, help="In under a minute.")
@json_option
@console.command
async def command(clients: int, quick: bool, as_json: bool) -> None:
    """Throw joins at a model's door while clients train; see how much that slows them.

    A desk runs in a process of its own, on its unix sockets: no Tor is between, so whoever floods
    pays nothing for it. Clients in a second process train with it for real, each message after a
    round trip of 50 ms, as over a private Tor network; a third process throws at the door
    what it can: joins with wrong solutions, forged locks and replayed solutions, of senders that
    listen, hang up or pipeline; what is no HTTP; WebSockets without a hello; idle sockets. In
    reality those are other machines: so the desk has one CPU, and the clients and the flood, which
    has the lowest priority, another one.

    Ends with status 1 when those who train were slowed by more than a quarter.

    \b
    Example:
      scripts/soak flood --quick --json
    """
    pairs, seconds = (2, 9.0) if quick else (5, 20.0)
    report = await flood(clients, pairs, seconds)
    result(report, as_json, report.words)
    if report.slowed:
        say("They were slowed by more than a quarter.")
        sys.exit(1)
