"""Solvers: every one finds what the definition says, and none is missed when it cannot be had."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord import kernel, puzzle, solver
from accord.solver import MISSING, STRETCH, WORTH, Solver, search

LOCK = b"a lock as long as those at the door are ."
END = 1 << 64
EDGES = (1, 3, 16, 41, 46, 47, 48, 50, 52, 55, 56, 57, 60, 63, 64)
"""Lengths of locks at which the counter, the padding or both cross a word or a block."""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """A process that has loaded nothing; gives how often it has tried to load since."""
    monkeypatch.setattr(solver, "_compiled", solver._Compiled())
    loads, compiled = [], kernel.compiled
    monkeypatch.setattr(kernel, "compiled", lambda n: (loads.append(n), compiled(n))[1])
    yield lambda: len(loads)


@pytest.fixture
def without(fresh: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without llvmlite."""
    monkeypatch.setitem(sys.modules, "llvmlite", None)


def solve(with_it: Solver, lock: bytes, difficulty: int, start: int = 0) -> int:
    """The number of the solution that it comes to; all stretches follow each other."""
    while True:
        part = with_it.stretch(lock, difficulty, start)
        if part.solution is not None:
            found = int.from_bytes(part.solution, "big")
            assert start <= found < start + part.count
            assert puzzle.verify(lock, part.solution, difficulty)
            return found
        start += part.count


def defined(lock: bytes, difficulty: int, start: int = 0) -> int:
    found = puzzle.search(lock, difficulty, start, 1 << 30)
    assert found is not None
    return int.from_bytes(found, "big")


def slowly(lock: bytes, start: int, count: int, mask: int) -> int | None:
    """What machine code does, by the definition: a stand-in for it."""
    assert 0 < count <= kernel.MOST and start // 2**32 == (start + count - 1) // 2**32
    for i in range(count):
        digest = hashlib.sha256(lock + (start + i).to_bytes(8, "big")).digest()
        if not int.from_bytes(digest[-4:], "big") & mask:
            return i
    return None


starts = st.one_of(
    st.integers(0, END - 1), st.integers(0, 3000),
    st.builds(lambda turn, before: turn * 2**32 - before,
              st.sampled_from((1, 2, 2**31, 2**32)), st.integers(1, 3000)))


@given(st.binary(min_size=1, max_size=64), st.integers(0, 3), starts, st.integers(0, 3000))
def test_what_is_made_of_candidates_is_the_first_solution(
    lock: bytes, difficulty: int, start: int, count: int
) -> None:
    count = min(count, END - start)
    assert search(slowly, lock, difficulty, start, count) == puzzle.search(
        lock, difficulty, start, count)


def test_a_candidate_that_solves_nothing_is_passed_over() -> None:
    def liar(lock: bytes, start: int, count: int, mask: int) -> int | None:
        return 0  # each is one

    assert search(liar, LOCK, 2, 7, 5000) == puzzle.search(LOCK, 2, 7, 5000)
    assert search(liar, LOCK, 9, 0, 2000) is None


def test_more_zeros_than_machine_code_looks_at_are_looked_at() -> None:
    masks = set()

    def find(lock: bytes, start: int, count: int, mask: int) -> int | None:
        masks.add(mask)
        return None if start else 5

    for difficulty in range(8, 65):
        assert search(find, LOCK, difficulty, 0, 10) is None
    assert masks == {0xFFFF_FFFF}


def test_machine_code_finds_what_hashlib_does() -> None:
    find = _find(len(LOCK))
    for difficulty in range(5):
        assert search(find, LOCK, difficulty, 0, 1 << 22) == puzzle.search(
            LOCK, difficulty, 0, 1 << 22)
    first = defined(LOCK, 3)
    assert search(find, LOCK, 3, first, 1) is not None
    assert search(find, LOCK, 3, 0, first) is None
    assert search(find, LOCK, 3, 0, 0) is None


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(st.sampled_from([(n, 0) for n in EDGES] + [(n, w) for n in (16, 50, 57) for w in (4, 8)]),
       st.data(), st.integers(0, 4), starts, st.integers(1, 5000))
def test_machine_code_for_every_kind_of_lock(
    kind: tuple[int, int], data: st.DataObject, difficulty: int, start: int, count: int
) -> None:
    """Also as wide as other processors are: it runs on any, only slower."""
    length, lanes = kind
    lock = data.draw(st.binary(min_size=length, max_size=length))
    count = min(count, END - start)
    assert search(_find(length, lanes), lock, difficulty, start, count) == puzzle.search(
        lock, difficulty, start, count)


@cache
def _find(length: int, lanes: int = 0) -> kernel.Find:
    return kernel.compiled(length, lanes)


def test_there_is_code_for_the_locks_that_a_broker_may_send() -> None:
    for length in (0, 65):
        with pytest.raises(ValueError, match="no code"):
            kernel.compiled(length)


def test_without_llvmlite_it_is_hashlib_and_says_so(without: None) -> None:
    it = Solver()
    assert it.why_not == ""
    # Hard enough to be worth it: the first stretch tries to load.
    part = it.stretch(LOCK, 6, 0)
    assert part.name == "hashlib" and it.why_not == MISSING
    assert solve(it, LOCK, 3) == defined(LOCK, 3)


@pytest.mark.parametrize(("make", "why"), [
    (lambda length: 1 / 0, "ZeroDivisionError"),
    (lambda length: lambda lock, start, count, mask: 3, "wrong"),
    (lambda length: lambda lock, start, count, mask: None, "wrong"),
])
def test_what_cannot_be_compiled_or_lies_is_not_used(
    make: Callable[[int], kernel.Find], why: str, fresh: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "compiled", make)
    it = Solver()
    assert it.stretch(LOCK, 6, 0).name == "hashlib"
    assert why in it.why_not
    assert solve(it, LOCK, 3) == defined(LOCK, 3)


def test_what_failed_is_not_tried_again(without: None, fresh: Callable[[], int]) -> None:
    it = Solver()
    for length in (16, 16, 41):
        assert it.stretch(bytes(length), 6, 0).name == "hashlib"
    assert fresh() == 1


def test_it_is_loaded_when_the_work_is_worth_it(
    fresh: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puzzle, "search", lambda lock, difficulty, *_: None)
    monkeypatch.setattr(kernel, "compiled", lambda length: (loaded.append(length), slowly)[1])
    loaded: list[int] = []
    it = Solver()
    monkeypatch.setattr(solver, "search", lambda *_: None)
    # A few easy ones are not; but many are, as they come to the same.
    for _ in range(WORTH // STRETCH - 4):
        assert it.stretch(LOCK, 4, 0).name == "hashlib"
    assert not loaded
    for _ in range(8):
        part = it.stretch(LOCK, 4, 0)
    assert part.name == "compiled" and loaded == [len(LOCK)]
    # Another solver of this process has it at once; for other lengths it is another.
    assert Solver().stretch(LOCK, 1, 0).name == "compiled"
    assert Solver().stretch(LOCK[:16], 1, 0).name == "hashlib"
    assert Solver().stretch(LOCK[:16], 5, 0).name == "compiled"
    assert loaded == [len(LOCK), 16]
    # There is none for locks that no broker may send.
    assert Solver().stretch(bytes(65), 6, 0).name == "hashlib"


def test_nobody_waits_while_another_loads(
    fresh: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go = threading.Event(), threading.Event()

    def compiled(length: int) -> kernel.Find:
        loading.set()
        assert go.wait(10)
        return slowly

    monkeypatch.setattr(kernel, "compiled", compiled)
    other = threading.Thread(target=lambda: Solver().stretch(LOCK, 6, END - 100))
    other.start()
    assert loading.wait(10)
    try:
        assert Solver().stretch(LOCK, 6, 0).name == "hashlib"
    finally:
        go.set()
        other.join()
    assert Solver().stretch(LOCK, 6, END - 100).name == "compiled"


def test_several_cores_find_the_same(without: None) -> None:
    with Solver(3) as it:
        for number in range(3):
            lock = b"%d several" % number
            assert solve(it, lock, 4) == defined(lock, 4)
        assert it.stretch(LOCK, 5, 0).count == 3 * STRETCH
        assert solve(it, LOCK, 1, END - 100) == defined(LOCK, 1, END - 100)
        helpers = [helper._process for helper in it._helpers]
    assert len(helpers) == 2
    assert all(process is not None and process.poll() is not None for process in helpers)
    assert it.stretch(LOCK, 5, 0).count == STRETCH  # closed: one core goes on


def test_the_compiled_one_on_several_cores_finds_the_same(
    fresh: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "_FIRST", 256)
    monkeypatch.setattr(kernel, "compiled", lambda length: slowly)
    before = threading.active_count()
    with Solver(3) as it:
        assert it.stretch(LOCK, 6, 0).name == "compiled"
        for number in range(3):
            lock = b"%d several" % number + bytes(len(LOCK) - 9)
            assert solve(it, lock, 3) == defined(lock, 3)
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_nothing_beyond_the_last_solution_is_tried(without: None) -> None:
    for cores in (1, 2):
        with Solver(cores) as it:
            part = it.stretch(LOCK, 64, END - 10)
            assert part.solution is None and not it.stretch(LOCK, 64, END).solution


def test_a_helper_that_is_gone_is_stood_in_for(without: None) -> None:
    with Solver(2) as it:
        assert it.stretch(LOCK, 12, 0).solution is None
        (helper,) = it._helpers
        assert helper._process is not None
        helper._process.kill()
        helper._process.wait()
        assert solve(it, LOCK, 4) == defined(LOCK, 4)


def test_no_helper_outlives_us(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nsys.modules['llvmlite'] = None\n"
        "from accord.solver import Solver\nit = Solver(2)\nat = 0\n"
        "while True:\n    at += it.stretch(bytes(41), 64, at).count\n"
        "    print(it._helpers[0]._process.pid, flush=True)\n")
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as us:
        assert us.stdout is not None
        helper = int(us.stdout.readline())
        assert _lives(helper)
        us.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while _lives(helper):
        assert time.monotonic() < end
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_so_many_cores_there_are_not() -> None:
    for cores in (0, solver.MAX_CORES + 1):
        with pytest.raises(ValueError, match="cores"):
            Solver(cores)
