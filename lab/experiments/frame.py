"""What all experiments share: cells run in processes of their own, kept as they finish.

An experiment is a module with

- ``NAME`` and ``WORDS``, one line of what it shows;
- ``cells(quick, seeds)``: all cells, each a dictionary that JSON can hold and that says
  everything its result depends on besides the data; ``part`` is the one entry that all have: it
  names the table or figure that the cell is for;
- ``run(cell, data)``: one cell's result, a dictionary that JSON can hold; called in a worker
  process, so both must be importable;
- ``tables(finished)``: what a person reads;
- ``plots(finished, directory)``: pictures, written there; their paths.

Each finished cell is one line of ``cells.jsonl``, on the disk before the next is counted, under a
key made of the experiment's name, the cell and the data. Whoever starts the same command again
goes on where it was cut.
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
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
from rich.console import RenderableType

from accord.files import write_whole
from accord.problems import DISK, INTERNAL, Problem

Cell = dict[str, Any]
Outcome = dict[str, Any]

EXPERIMENTS: Final[dict[str, str]] = {
    "poison": "lab.experiments.poison",
    "fig5": "lab.experiments.fig5",
    "utility": "lab.experiments.utility",
    "fig8": "lab.experiments.fig8",
    "fig9": "lab.experiments.fig9",
}
"""Where each experiment lives."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One cell and what came of it."""

    cell: Cell
    result: Outcome


class Experiment(Protocol):
    """What a module of an experiment has."""

    NAME: str
    WORDS: str

    def cells(self, quick: bool, seeds: int | None) -> list[Cell]:
        """All cells; fewer and shorter ones when ``quick``; ``seeds`` of each unless None."""

    def run(self, cell: Cell, data: Path | None) -> Outcome:
        """One cell on the data of this file, or on made data."""

    def tables(self, finished: Sequence[Finished]) -> list[RenderableType]:
        """The results for a person."""

    def plots(self, finished: Sequence[Finished], directory: Path) -> list[Path]:
        """Write pictures; which."""


def find(name: str) -> Experiment:
    """An experiment by name; its module is imported.

    Raises:
        KeyError: there is none of that name.
    """
    return cast(Experiment, importlib.import_module(EXPERIMENTS[name]))


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
        try:
            lines = path.read_bytes().split(b"\n") if path.exists() else []
        except OSError as error:
            raise Problem(DISK, path=path, why=(error.strerror or "").lower()) from None
        good = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]
                good.append(line)
        if lines and lines != [*good, b""]:
            write_whole(path, b"".join(line + b"\n" for line in good))

    def get(self, key: str) -> Outcome | None:
        """A finished cell's result."""
        return self._known.get(key)

    def keep(self, key: str, cell: Cell, result: Outcome) -> None:
        """Append a finished cell; on the disk when this returns.

        Raises:
            Problem: ``DISK``.
        """
        line = json.dumps({"key": key, "cell": cell, "result": result}, allow_nan=False) + "\n"
        try:
            with self._path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Problem(DISK, path=self._path, why=(error.strerror or "").lower()) from None
        self._known[key] = result


async def run_all(
    name: str, cells: Sequence[Cell], data: Path | None, digest: str, notebook: Notebook,
    jobs: int, tell: Callable[[int, int], None],
) -> list[Finished]:
    """Run all cells that the notebook does not have, in so many processes.

    Args:
        name: of the experiment.
        cells: all of them.
        data: the file; None for made data.
        digest: names its content.
        notebook: where finished ones are kept.
        jobs: processes.
        tell: called with how many cells are finished, and of how many.

    Returns:
        All cells with their results, in their order.

    Raises:
        Problem: what a cell raised; ``INTERNAL`` when a process was killed. Finished cells are
            kept whatever happens.
    """
    keys = [key_of(name, cell, digest) for cell in cells]
    # Two cells may be the same one, where two tables need it.
    missing = {key: cell for key, cell in zip(keys, cells, strict=True)
               if notebook.get(key) is None}
    total = len(set(keys))
    done = total - len(missing)
    tell(done, total)
    if missing:
        loop = asyncio.get_running_loop()
        with workers(min(jobs, len(missing))) as pool:
            async def one(key: str, cell: Cell) -> tuple[str, Cell, Outcome]:
                return key, cell, await loop.run_in_executor(
                    pool, _work, EXPERIMENTS[name], cell, data)

            running = [asyncio.ensure_future(one(*item)) for item in missing.items()]
            try:
                for finished in asyncio.as_completed(running):
                    key, cell, result = await finished
                    await asyncio.to_thread(notebook.keep, key, cell, result)
                    done += 1
                    tell(done, total)
            except BrokenProcessPool:
                raise Problem(INTERNAL) from None
            finally:
                for future in running:
                    future.cancel()
                await asyncio.gather(*running, return_exceptions=True)
    return [Finished(cell, notebook.get(key) or {}) for key, cell in zip(keys, cells, strict=True)]


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
    result = cast(Experiment, importlib.import_module(module)).run(cell, data)
    return {**result, "wall_seconds": time.perf_counter() - began}


def circumstances() -> dict[str, Any]:
    """What a result depends on besides its cell: this machine and these versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "version": metadata.version("tormentor"),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gib": round(memory / 2**30, 1),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }


def write_results(
    experiment: Experiment, finished: Sequence[Finished], words: str, quick: bool, directory: Path
) -> dict[str, Any]:
    """Write ``results.json``, whole; what is in it.

    Args:
        experiment: which.
        finished: all cells.
        words: what the data were.
        quick: whether these are the quick cells.
        directory: where to.

    Raises:
        Problem: ``DISK``.
    """
    told = {
        "experiment": experiment.NAME,
        "data": words,
        "quick": quick,
        **circumstances(),
        "cells": [{"cell": f.cell, "result": f.result} for f in finished],
    }
    write_whole(directory / "results.json", json.dumps(told, indent=1).encode() + b"\n")
    return told
