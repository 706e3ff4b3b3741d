"""What the desk costs: updates a second, processor for each, memory of the idle.

Servers run on one core and their load on another, so that a server has its core for itself; one
is busy at a time. What is compared runs in turn, in one run, and medians are told.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final

from lab.bench import profiled
from lab.bench.desk_load import Driven, load_process
from lab.bench.desk_servers import DATA, PROFILE, ROWS, desk_process, echo_process, order_of
from lab.bench.table import Measured, spread
from lab.soak.process import busy, memory

CLIENTS: Final = 50
FEW: Final = 10
MANY: Final = 1000
PACE: Final = 400.0
"""Updates a second, all together, where there are to be as many of few clients as of many."""
_KEPT_BUSY: Final = 0.8
"""Share of its core: an echo that had less of it was not at its best."""
_STARTS: Final = 120.0


class Bench:
    """The processes of one measurement. Use as a context manager."""

    def __init__(self) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self._processes: list[SpawnProcess] = []
        found: list[int | None] = [*sorted(os.sched_getaffinity(0))]
        self._cpus = (found[0], found[1]) if len(found) > 1 else (None, None)
        self._pids: dict[str, int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._stack.callback(self._end)
        self._load, _ = self._start(load_process, self._cpus[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5.0)
            process.kill()
            process.join()

    def _start(
        self, target: Callable[..., None], cpu: int | None, *given: Any
    ) -> tuple[Connection, int]:
        mine, its = self._spawn.Pipe()
        process = self._spawn.Process(target=target, args=(*given, its, cpu), daemon=True)
        self._processes.append(process)
        process.start()
        its.close()
        assert process.pid is not None
        return mine, process.pid

    def desk(self, name: str, clients: int, judged: bool = True) -> None:
        """Start a desk for so many clients; nobody has come yet."""
        order = order_of(clients, judged)
        self._serve(name, (), desk_process, self._directory / name, order)

    def echo(self, name: str, size: int, answer: int) -> None:
        """Start an echo server for messages of so many bytes, and answers of so many."""
        self._serve(name, (size, answer), echo_process, self._directory / name, answer)

    def _serve(
        self, name: str, sizes: tuple[int, ...], target: Callable[..., None], *given: Any
    ) -> None:
        told, self._pids[name] = self._start(target, self._cpus[0], *given)
        if not told.poll(_STARTS):
            raise RuntimeError("a server does not start")
        self._stack.enter_context(told)
        self.load(name, "new", told.recv(), *sizes)

    def load(self, name: str, what: str, *given: Any) -> Any:
        """Have the load of a server do something (:class:`lab.bench.desk_load.Load`)."""
        self._load.send((name, what, given))
        came = self._load.recv()
        if isinstance(came, Exception):
            raise came
        return came

    def drive(
        self, name: str, seconds: float, rate: float | None = None
    ) -> tuple[Driven, float]:
        """Drive a server for a while; gives also its own processor seconds for each message."""
        before = busy(self._pids[name])
        driven: Driven = self.load(name, "drive", seconds, rate)
        return driven, (busy(self._pids[name]) - before) / max(1, driven.answered)

    def profile(self, name: str, seconds: float) -> dict[str, float]:
        """Drive a desk for a while under a profiler; the shares of its time, by module."""
        profiled.begin(self._pids[name])
        self.load(name, "drive", seconds, None)
        return profiled.end(self._pids[name], self._directory / name / PROFILE)

    def megabytes(self, name: str) -> float:
        """Memory of a server, resident."""
        return memory(self._pids[name])["rss"]


def _pairs(quick: bool) -> tuple[int, float]:
    return (3, 1.5) if quick else (9, 4.0)


class _Found:
    """Figures of the rounds of a measurement, by name."""

    def __init__(self) -> None:
        self._all: dict[str, list[float]] = {}

    def __call__(self, **figures: float) -> None:
        for name, figure in figures.items():
            self._all.setdefault(name, []).append(figure)

    def medians(self) -> dict[str, float]:
        """The median of each."""
        return {name: statistics.median(figures) for name, figures in self._all.items()}

    def spread(self, name: str) -> dict[str, float]:
        """The quartiles of one that is the row's ratio (:func:`lab.bench.table.spread`)."""
        return spread(self._all[name])


def updates(quick: bool) -> dict[str, Any]:
    """Updates a second through the desk, against messages a second through a bare echo.

    Returns:
        Medians: ``judged`` and ``unjudged``, updates a second with the default test and screen and
        with none, and ``echo``, messages a second; ``*_ratio``, of those rates; ``*_cpu_us``, the
        servers' own microseconds of processor for each; ``*_cpu_ratio``, of the echo's by theirs;
        ``*_core``, the share of its core that a server had; ``*_load_busy``, the share of time for
        which the load itself was busy; ``ratio``, the worse of the judged one's two, and its
        quartiles. And ``profile``: where the time of the judged one goes, by module; taken last,
        as a profiler slows down what it looks at.
    """
    pairs, seconds = _pairs(quick)
    found = _Found()
    with Bench() as bench:
        for name in ("judged", "unjudged"):
            bench.desk(name, CLIENTS, name == "judged")
            bench.load(name, "join", CLIENTS)
            sizes = bench.load(name, "warm", CLIENTS, name == "judged")
        bench.echo("echo", *sizes)
        bench.load("echo", "join", CLIENTS)
        names = ("judged", "echo", "unjudged")
        for name in names:
            bench.drive(name, 0.5)
        for _ in range(pairs):
            rates, costs = {}, {}
            for name in names:
                driven, costs[name] = bench.drive(name, seconds)
                rates[name] = driven.answered / driven.seconds
                found(**{name: rates[name], f"{name}_cpu_us": costs[name] * 1e6,
                         f"{name}_core": costs[name] * rates[name],
                         f"{name}_load_busy": driven.busy})
            for name in ("judged", "unjudged"):
                found(**{f"{name}_ratio": rates[name] / rates["echo"],
                         f"{name}_cpu_ratio": costs["echo"] / costs[name]})
        profile = bench.profile("judged", seconds)
    told = found.medians()
    worse = min(("judged_ratio", "judged_cpu_ratio"), key=lambda name: told[name])
    return told | found.spread(worse) | {"ratio": told[worse], "profile": profile}


def measure_throughput(quick: bool) -> Measured:
    """Updates a second through the desk, durable, over messages a second through a bare echo; or
    the ratio of what each costs of a processor, if that is worse.

    On a core that is theirs alone both are the same, but for the time that a disk takes. Where
    other work is on the machine, whoever waits for a disk loses less by it than the echo, whose
    rate is then no measure of anything.
    """
    found = updates(quick)
    return found | {
        "data": DATA,
        "how": f"An update costs the desk {found['judged_cpu_us']:.0f} microseconds of processor, "
               f"a message the echo {found['echo_cpu_us']:.0f}: a ratio of "
               f"{found['judged_cpu_ratio']:.2f}. The desk took {found['judged']:,.0f} a second "
               f"({100 * found['judged_core']:.0f} % of its core), the echo {found['echo']:,.0f} "
               f"({100 * found['echo_core']:.0f} %): a ratio of {found['judged_ratio']:.2f}"
               f"{_starved(found['echo_core'])}. The worse of the two counts. Both on "
               f"unix sockets, on one core, {CLIENTS} clients of one lean load on another (raw "
               "sockets, one message of each under way), the same bytes to and fro. The desk is "
               "the real one: SQLite with synchronous=FULL, each update with a ticket of its "
               f"own, d = 24, judged by the default sequential test and screen on {ROWS} rows; "
               "'unjudged' is without those two. The echo is aiohttp's WebSocketResponse in a "
               "loop. Medians of pairs in turn. Where the desk's time goes, of the thread that "
               f"serves (cProfile): {profiled.words(found['profile'])}.",
    }


def _starved(share: float) -> str:
    if share >= _KEPT_BUSY:
        return ""
    return " (which says little: other work, or the load, kept the echo from being busy)"


def measure_cpu(quick: bool) -> Measured:
    """The broker's processor for each update with many clients, over that with few."""
    pairs, seconds = _pairs(quick)
    found = _Found()
    with Bench() as bench:
        for name, clients in (("few", FEW), ("many", MANY)):
            bench.desk(name, clients)
            bench.load(name, "join", clients)
            bench.load(name, "warm", clients, True)
            bench.drive(name, 0.5)
        for _ in range(pairs):
            for way, rate in (("full", None), ("paced", PACE)):
                costs = {}
                for name in ("few", "many"):
                    driven, costs[name] = bench.drive(name, seconds, rate)
                    found(**{f"{way}_{name}_cpu_us": costs[name] * 1e6,
                             f"{way}_{name}": driven.answered / driven.seconds})
                found(**{f"{way}_ratio": costs["many"] / costs["few"]})
    told = found.medians()
    worse = max(("full_ratio", "paced_ratio"), key=lambda name: told[name])
    return told | found.spread(worse) | {
        "ratio": told[worse],
        "data": DATA,
        "how": f"Two real desks, judged by default, with {FEW} and with {MANY:,} clients that all "
               "train, driven in turn on the same core: 'full', each as fast as it goes, and "
               f"'paced', {PACE:.0f} updates a second of all together at both. The ratio is the "
               "worse of the two.",
    }


def measure_memory(quick: bool) -> Measured:
    """KB of the broker for each of many clients that are connected, have a ticket, and are idle."""
    with Bench() as bench:
        bench.desk("many", MANY)
        # Whatever the first few make it load and set up is not theirs.
        bench.load("many", "join", FEW)
        before = bench.megabytes("many")
        clients = MANY - FEW
        bench.load("many", "join", clients)
        after = bench.megabytes("many")
    return {
        "ratio": (after - before) * 1024 / clients, "before_mb": before, "after_mb": after,
        "data": DATA,
        "how": f"Resident memory of a real desk (proc(5), smaps_rollup) after {FEW} and after "
               f"{MANY:,} clients have joined, said Hello and Pull, and hold a ticket.",
    }
