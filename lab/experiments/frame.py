"""What all experiments share: cells, run once each and kept as they finish.

An experiment is a module with

- ``NAME`` and ``WORDS``, one line of what it shows;
- ``cells(quick, seeds)``: all cells, each a dictionary that JSON can hold and that says
  everything its result depends on besides the data; ``part`` is the one entry that all have: it
  names the table or figure that the cell is for;
- ``run(cell, data)``: one cell's result, a dictionary that JSON can hold; called in a worker
  process, so both must be importable;
- ``tables(finished)``: what a person reads;
- ``plots(finished, directory)``: pictures, written there; their paths.

It may have besides

- ``series(finished)``: the raw curves as a table, its header first (:class:`HasSeries`);
- ``measures(finished)``: one cell's figures, where they are not the numbers in its result
  (:class:`HasMeasures`);
- ``race_of(cell)``: the race that a cell is, where it can be run on machines elsewhere
  (:class:`HasRaces`);
- ``least_rows(cell)``: how many rows of data a cell needs (:class:`HasLeast`);
- ``open_world(...)`` instead of ``run``, where cells share something that takes long to build, such
  as a network of real tors (:class:`Shared`): it is built once, for the cells that are still to be
  run, and gives an async function of one cell. They then run in this process, one after another;
  those for which an optional ``group(cell)`` gives the same answer (other than None) run at the
  same time.

Each finished cell is one line of ``cells.jsonl``, on the disk before the next is counted, under a
key made of the experiment's name, the cell and the data, with the digest of the code that made it.
Whoever starts the same command again goes on where it was cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from rich.console import RenderableType

from accord.files import write_whole
from accord.problems import DISK, INTERNAL, Problem
from lab.experiments import origin
from lab.experiments.names import EXPERIMENTS as EXPERIMENTS

if TYPE_CHECKING:
    from lab.race import Race

Cell = dict[str, Any]
Outcome = dict[str, Any]
RunCell = Callable[[Cell], Awaitable[Outcome]]
"""Runs one cell in a world that is open."""
OpenWorld = Callable[[Sequence[Cell], Path | None, Path, Callable[[str], None]],
                     AbstractAsyncContextManager[RunCell]]
"""Opens a world: see :meth:`Shared.open_world`."""
circumstances = origin.circumstances


@dataclass(frozen=True, slots=True)
class Finished:
    """One cell and what came of it."""

    cell: Cell
    result: Outcome


class Experiment(Protocol):
    """What a module of an experiment has."""

    NAME: str
    WORDS: str
    __name__: str

    def cells(self, quick: bool, seeds: int | None) -> list[Cell]:
        """All cells; fewer and shorter ones when ``quick``; ``seeds`` of each unless None."""

    def tables(self, finished: Sequence[Finished]) -> list[RenderableType]:
        """The results for a person."""

    def plots(self, finished: Sequence[Finished], directory: Path) -> list[Path]:
        """Write pictures; which."""


class Alone(Protocol):
    """The same, where each cell needs nothing but the data."""

    def run(self, cell: Cell, data: Path | None) -> Outcome:
        """One cell on the data that :func:`lab.credit.load` finds under this name."""


@runtime_checkable
class Shared(Protocol):
    """What a module has instead of ``run`` whose cells share a world."""

    def open_world(
        self, cells: Sequence[Cell], data: Path | None, directory: Path,
        say: Callable[[str], None],
    ) -> AbstractAsyncContextManager[RunCell]:
        """A world for these cells, which are then run in it, in this order.

        Args:
            cells: those that are to be run: never none, and none that is finished already.
            data: what :func:`lab.credit.load` takes.
            directory: the experiment's output, for what the world keeps on disk.
            say: tells a person one line.
        """


@runtime_checkable
class HasRaces(Protocol):
    """What a module has besides whose cells are races: those can be run on machines elsewhere
    (:mod:`lab.field`) as well."""

    def race_of(self, cell: Cell) -> Race:
        """The race that a cell asks for."""


@runtime_checkable
class HasSeries(Protocol):
    """What a module may have besides: its raw curves."""

    def series(self, finished: Sequence[Finished]) -> Iterable[Sequence[Any]]:
        """The header, and one row for each point, which begins with the cell's names."""


@runtime_checkable
class HasMeasures(Protocol):
    """What a module may have besides: what is told of each cell."""

    def measures(self, finished: Finished) -> dict[str, float | None]:
        """One cell's figures; None for what never came, or has no bound."""


@runtime_checkable
class HasLeast(Protocol):
    """What a module may have besides: how much data it needs."""

    def least_rows(self, cell: Cell) -> int:
        """Rows that a table must have for this cell, at least."""


def find(name: str) -> Experiment:
    """The experiment that a name is of; its module is imported.

    Raises:
        KeyError: there is none of that name.
    """
    return cast(Experiment, importlib.import_module(EXPERIMENTS[name].module))


def key_of(name: str, cell: Cell, digest: str) -> str:
    """What a cell's result is kept under: the same for the same experiment, cell and data,
    whatever the order of the cell's entries and whatever version computes it."""
    text = json.dumps([name, cell, digest], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Notebook:
    """The finished cells of one directory, ``cells.jsonl``.

    Args:
        path: of the file. A last line that was cut off is dropped.

    Raises:
        Problem: ``DISK``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Outcome] = {}
        self._code: dict[str, str | None] = {}
        try:
            lines = path.read_bytes().split(b"\n") if path.exists() else []
        except OSError as error:
            raise Problem(DISK, path=path, why=(error.strerror or "").lower()) from None
        good = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]
                self._code[entry["key"]] = entry.get("code")
                good.append(line)
        if lines and lines != [*good, b""]:
            write_whole(path, b"".join(line + b"\n" for line in good))

    @property
    def directory(self) -> Path:
        """Where it is kept."""
        return self._path.parent

    @property
    def begun(self) -> bool:
        """Whether any cell is finished."""
        return bool(self._known)

    def get(self, key: str) -> Outcome | None:
        """A finished cell's result."""
        return self._known.get(key)

    def foreign(self, keys: Iterable[str]) -> int:
        """How many of these are finished, but by other code than is running now."""
        return sum(key in self._known and self._code[key] != origin.code() for key in set(keys))

    def keep(self, key: str, cell: Cell, result: Outcome) -> None:
        """Append a finished cell; on the disk when this returns.

        Raises:
            Problem: ``DISK``.
        """
        entry = {"key": key, "code": origin.code(), "cell": cell, "result": result}
        line = json.dumps(entry, allow_nan=False) + "\n"
        try:
            with self._path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Problem(DISK, path=self._path, why=(error.strerror or "").lower()) from None
        self._known[key] = result
        self._code[key] = origin.code()

    def begin_anew(self) -> Path | None:
        """Put away all that is finished; where to, or None where there was nothing.

        Raises:
            Problem: ``DISK``.
        """
        aside = self._path.with_suffix(".old.jsonl")
        try:
            if not self._path.exists():
                return None
            self._path.replace(aside)
        except OSError as error:
            raise Problem(DISK, path=aside, why=(error.strerror or "").lower()) from None
        self._known.clear()
        self._code.clear()
        return aside


async def run_all(
    experiment: Experiment, cells: Sequence[Cell], data: Path | None, digest: str,
    notebook: Notebook, jobs: int, tell: Callable[[int, int], None],
    say: Callable[[str], None] = lambda _: None, world: OpenWorld | None = None,
) -> list[Finished]:
    """Run all cells that the notebook does not have.

    Args:
        experiment: whose cells these are.
        cells: all of them.
        data: what :func:`lab.credit.load` takes; None for made data.
        digest: names its content.
        notebook: where finished ones are kept.
        jobs: processes; a world that cells share is in this one, whatever this says.
        tell: called with how many cells are finished, and of how many.
        say: what a world tells a person.
        world: opened instead of the experiment's own; its cells run one after another.

    Returns:
        All cells with their results, in their order.

    Raises:
        Problem: what a cell raised; ``INTERNAL`` when a process was killed. Finished cells are
            kept whatever happens.
    """
    keys = [key_of(experiment.NAME, cell, digest) for cell in cells]
    # Two cells may be the same one, where two tables need it.
    missing = {key: cell for key, cell in zip(keys, cells, strict=True)
               if notebook.get(key) is None}
    total = len(set(keys))
    done = total - len(missing)
    tell(done, total)
    # Two that finish at once must not write into each other's line.
    writing = asyncio.Lock()

    async def finish(key: str, work: Awaitable[Outcome]) -> None:
        nonlocal done
        result = await work
        async with writing:
            await asyncio.to_thread(notebook.keep, key, missing[key], result)
        done += 1
        tell(done, total)

    if missing and world is not None:
        await _in_world(world, lambda cell: None, missing, data, notebook.directory, finish, say)
    elif missing and isinstance(experiment, Shared):
        await _in_world(experiment.open_world, _group(experiment), missing, data,
                        notebook.directory, finish, say)
    elif missing:
        await _in_processes(experiment.__name__, missing, data, jobs, finish)
    return [Finished(cell, notebook.get(key) or {}) for key, cell in zip(keys, cells, strict=True)]


async def run_one(
    experiment: Experiment, cell: Cell, data: Path | None, directory: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """One cell, for whoever keeps no notebook: in a process, or in a world, of its own.

    Raises:
        Problem: as :func:`run_all`.
    """
    told: list[Outcome] = []

    async def finish(_: str, work: Awaitable[Outcome]) -> None:
        told.append(await work)

    if isinstance(experiment, Shared):
        await _in_world(experiment.open_world, _group(experiment), {"": cell}, data, directory,
                        finish, say)
    else:
        await _in_processes(experiment.__name__, {"": cell}, data, 1, finish)
    return told[0]


Finish = Callable[[str, Awaitable[Outcome]], Coroutine[Any, Any, None]]
"""Awaits a cell, by its key, and keeps what came of it."""


async def _in_processes(
    module: str, missing: dict[str, Cell], data: Path | None, jobs: int, finish: Finish
) -> None:
    loop = asyncio.get_running_loop()
    with workers(min(jobs, len(missing))) as pool:
        try:
            await _all(finish(key, loop.run_in_executor(pool, _work, module, cell, data))
                       for key, cell in missing.items())
        except BrokenProcessPool:
            raise Problem(INTERNAL) from None


def _group(experiment: Shared) -> Callable[[Cell], Hashable]:
    group: Callable[[Cell], Hashable] = getattr(experiment, "group", lambda cell: None)
    return group


async def _in_world(
    open_world: OpenWorld, group: Callable[[Cell], Hashable], missing: dict[str, Cell],
    data: Path | None, directory: Path, finish: Finish, say: Callable[[str], None],
) -> None:
    batches: dict[Hashable, list[str]] = {}
    for key, cell in missing.items():
        of = group(cell)
        batches.setdefault(("alone", key) if of is None else ("with", of), []).append(key)
    async with open_world(list(missing.values()), data, directory, say) as run:

        async def timed(cell: Cell) -> Outcome:
            began = time.perf_counter()
            result = await run(cell)
            return {**result, "wall_seconds": time.perf_counter() - began}

        for batch in batches.values():
            await _all(finish(key, timed(missing[key])) for key in batch)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all of them; when one fails, the others are stopped, and what it raised is raised.

    Not a task group's: what it raises is a group, where whoever asked wants to be told a problem.
    """
    running = [asyncio.ensure_future(work) for work in works]
    try:
        for finished in asyncio.as_completed(running):
            await finished
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are ended at once when they are not wanted any more."""
    # Each process does its own arithmetic alone: threads of several would be in each other's way.
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(dict.fromkeys(threads, "1"))
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), _begin, (os.getpid(),))
    others = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        children = set(multiprocessing.active_children()) - others
        for child in children:
            child.terminate()
        for child in children:
            child.join()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin(parent: int) -> None:
    """A worker process ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, prctl(2)
        if os.getppid() != parent:
            sys.exit("the parent has gone already")


def _work(module: str, cell: Cell, data: Path | None) -> Outcome:
    """One cell, in a worker."""
    began = time.perf_counter()
    result = cast(Alone, importlib.import_module(module)).run(cell, data)
    return {**result, "wall_seconds": time.perf_counter() - began}
