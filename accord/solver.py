"""How this machine searches for solutions: the fastest way that it has, on as many cores as asked.

There are two. ``hashlib`` is always there. ``compiled`` (:mod:`accord.kernel`) is tens of times
faster where llvmlite is installed (``pip install 'tormentor[fast]'``), and takes half a second to
load: so it is loaded when the work ahead, or that already done, is worth as much. What it finds is
looked at with hashlib: both give the same solution, the first.

Everything here may be called from any thread, and takes its time: never call it in an event loop.
A search goes by short stretches, so that whoever stops it need only not ask for the next one.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Final, Literal

from accord import kernel, puzzle
from accord.puzzle import SOLUTION_BYTES

Name = Literal["compiled", "hashlib"]
_Piece = tuple[bytes, int, int, int]
_Search = Callable[[bytes, int, int, int], bytes | None]
_Answer = Callable[[], bytes | None]

STRETCH: Final = 1 << 14
"""Tries between two looks at whether to stop, with hashlib: some ten milliseconds."""
WORTH: Final = 1 << 20
"""Tries that hashlib makes in about the time that the compiled solver takes to load."""
MAX_CORES: Final = 256
_AIM: Final = 0.03  # seconds that a stretch of the compiled solver is to take
_FIRST: Final = 1 << 16
_MOST: Final = 1 << 24
_WORD: Final = 1 << 32
_ZEROS: Final = 8  # hexadecimal digits that the compiled solver looks at

MISSING: Final = "llvmlite is not installed"


@dataclass(frozen=True, slots=True)
class Tried:
    """One stretch: the solution, if it is there; how many were tried, in how many seconds, and how.

    What loading took is not in ``seconds``.
    """

    solution: bytes | None
    count: int
    seconds: float
    name: Name


class _Compiled:
    """The compiled solver of this process: one for each length of locks, loaded once."""

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._finds: dict[int, kernel.Find | None] = {}
        self._owed: dict[int, int] = {}
        self.why = ""

    def get(self, length: int, expected: float) -> kernel.Find | None:
        """It, if it is loaded, or worth loading for so many hashes after those done so far."""
        if length in self._finds:
            return self._finds[length]
        if (self._owed.get(length, 0) + expected < WORTH
                or not kernel.MIN_LOCK <= length <= kernel.MAX_LOCK
                # Whoever comes while it is loaded by another goes on with hashlib.
                or not self._loading.acquire(blocking=False)):
            return None
        try:
            if length not in self._finds:
                self._finds[length] = self._load(length)
            return self._finds[length]
        finally:
            self._loading.release()

    def tried(self, length: int, count: int) -> None:
        """So many were tried without it, which it would have been faster at."""
        self._owed[length] = self._owed.get(length, 0) + count

    def _load(self, length: int) -> kernel.Find | None:
        if self.why:
            return None  # the next length would fail in the same way
        try:
            find = kernel.compiled(length)
        except ImportError:
            self.why = MISSING
            return None
        # Whatever it is: there is another way, and the person is told.
        except Exception as error:
            self.why = f"it cannot be compiled here: {type(error).__name__}"
            return None
        for lock in (bytes(length), bytes(range(length))):
            if search(find, lock, 2, 0, STRETCH) != puzzle.search(lock, 2, 0, STRETCH):
                self.why = "its results are wrong on this machine"
                return None
        return find


_compiled = _Compiled()


def search(
    find: kernel.Find, lock: bytes, difficulty: int, start: int, count: int
) -> bytes | None:
    """The same as :func:`accord.puzzle.search`, by a compiled ``find`` for locks of that length."""
    mask = (1 << 4 * min(difficulty, _ZEROS)) - 1 if difficulty > 0 else 0
    number, end = start, start + count
    while number < end:
        piece = min(end - number, _WORD - number % _WORD, kernel.MOST)
        index = find(lock, number, piece, mask)
        if index is None:
            number += piece
            continue
        solution = (number + index).to_bytes(SOLUTION_BYTES, "big")
        if puzzle.verify(lock, solution, difficulty):
            return solution
        number += index + 1
    return None


class Solver:
    """One person's way of searching; to be closed after use when it has several cores.

    Args:
        cores: how many to use, 1 ... :data:`MAX_CORES`. With ``compiled`` these are threads; with
            ``hashlib`` all but one are processes, which end with this one however it ends.

    Attributes:
        cores: as given.
    """

    def __init__(self, cores: int = 1) -> None:
        if not 1 <= cores <= MAX_CORES:
            raise ValueError(f"cores must be 1 ... {MAX_CORES}, not {cores}")
        self.cores = cores
        self._size = _FIRST
        self._one = threading.Lock()  # the helpers work for one stretch at a time
        self._threads: ThreadPoolExecutor | None = None
        self._helpers: list[_Helper] = []

    @property
    def why_not(self) -> str:
        """Why the compiled solver is not used, in words; empty while nothing is known against."""
        return _compiled.why

    def stretch(self, lock: bytes, difficulty: int, start: int) -> Tried:
        """Try the next solutions from ``start``, for some tens of milliseconds.

        The first time that it is worth it, the compiled solver is loaded, which takes half a
        second more.

        Args:
            lock: the puzzle's.
            difficulty: its trailing zeros.
            start: the first to try; the next stretch's is this plus ``count`` of the result.
        """
        expected = puzzle.expected_hashes(difficulty)
        find = _compiled.get(len(lock), expected)
        if find is None:
            tried = self._stretch("hashlib", puzzle.search, STRETCH, lock, difficulty, start)
            _compiled.tried(len(lock), min(tried.count, int(expected)))
            return tried
        one = functools.partial(search, find)
        tried = self._stretch("compiled", one, self._size, lock, difficulty, start)
        if tried.solution is None:
            if tried.seconds < _AIM / 2:
                self._size = min(2 * self._size, _MOST)
            elif tried.seconds > 2 * _AIM:
                self._size = max(self._size // 2, _FIRST)
        return tried

    def close(self) -> None:
        """End the helpers; waits for the stretch that they are at. Searching goes on on one core
        if anybody asks."""
        with self._one:
            self.cores = 1
            for helper in self._helpers:
                helper.close()
            self._helpers.clear()
            if self._threads is not None:
                self._threads.shutdown()
                self._threads = None

    def __enter__(self) -> Solver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stretch(self, name: Name, one: _Search, size: int, lock: bytes, difficulty: int,
                 start: int) -> Tried:
        # One stretch is likely to be enough: helpers would cost more than they help.
        if self.cores == 1 or puzzle.expected_hashes(difficulty) < size:
            began = time.perf_counter()
            found = one(lock, difficulty, start, _within(start, size))
            return Tried(found, size, time.perf_counter() - began, name)
        with self._one:
            # Neighbours, in order: the first of them that has a solution has the first.
            places = [start + i * size for i in range(self.cores)]
            begin = self._by_threads if name == "compiled" else self._by_processes
            began = time.perf_counter()
            others = begin(one, [(lock, difficulty, p, _within(p, size)) for p in places[1:]])
            results = [one(lock, difficulty, start, _within(start, size))]
            results += [other() for other in others]
            found = next((each for each in results if each is not None), None)
            return Tried(found, size * len(places), time.perf_counter() - began, name)

    def _by_threads(self, one: _Search, pieces: list[_Piece]) -> list[_Answer]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(MAX_CORES, "solver")
        return [self._threads.submit(one, *piece).result for piece in pieces]

    def _by_processes(self, _: _Search, pieces: list[_Piece]) -> list[_Answer]:
        # Asked from this thread: one of its own would wait for us to let go of the interpreter.
        while len(self._helpers) < len(pieces):
            self._helpers.append(_Helper())
        return [helper.ask(piece) for helper, piece in zip(self._helpers, pieces, strict=True)]


def _within(start: int, count: int) -> int:
    """So many, less those beyond the last solution that there is."""
    return max(0, min(count, (1 << 8 * SOLUTION_BYTES) - start))


class _Helper:
    """A process that searches with hashlib, which no thread beside another can.

    It reads what to try and writes what it found, a line each. When its input ends, as it does
    with us however rudely we are ended, so does it. What it cannot do is done here.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            # Its own group, as Ctrl-C is for us: it ends when we do.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "accord.solver"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0)

    def ask(self, piece: _Piece) -> _Answer:
        """Have it search; gives what waits for the result."""
        lock, difficulty, start, count = piece
        with contextlib.suppress(OSError):
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(b"%s %d %d %d\n" % (
                    lock.hex().encode(), difficulty, start, count))
                self._process.stdin.flush()
        return lambda: self._answer(piece)

    def _answer(self, piece: _Piece) -> bytes | None:
        line = b""
        if self._process is not None and self._process.stdout is not None:
            line = self._process.stdout.readline()
        found = bytes.fromhex(line.decode())
        lock, difficulty, *_ = piece
        if not line.endswith(b"\n") or (found and not puzzle.verify(lock, found, difficulty)):
            return puzzle.search(*piece)
        return found or None

    def close(self) -> None:
        """End it, and wait until it is gone."""
        if self._process is not None:
            with contextlib.suppress(OSError), self._process:
                self._process.kill()


def _help(asked: IO[bytes], told: IO[bytes]) -> None:
    """What a helper does until there is nothing more to read."""
    for line in asked:
        lock, difficulty, start, count = line.split(b" ")
        found = puzzle.search(bytes.fromhex(lock.decode()), int(difficulty), int(start), int(count))
        told.write((found or b"").hex().encode() + b"\n")
        told.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        _help(sys.stdin.buffer, sys.stdout.buffer)
