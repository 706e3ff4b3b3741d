"""Puzzles: opened by exactly what the definition says, at the cost that it says."""

from __future__ import annotations

import hashlib
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.puzzle import SOLUTION_BYTES, expected_hashes, search, verify

SEED = 20_261_121


def naive(lock: bytes, solution: bytes, difficulty: int) -> bool:
    return hashlib.sha256(lock + solution).hexdigest()[64 - difficulty:] == "0" * difficulty


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=32), st.integers(0, 5))
def test_verify_is_the_definition(lock: bytes, solution: bytes, difficulty: int) -> None:
    assert verify(lock, solution, difficulty) == naive(lock, solution, difficulty)


@pytest.mark.parametrize("difficulty", [0, 1, 2, 3, 4])
def test_search_finds_the_first_solution(difficulty: int) -> None:
    for seed in range(3):
        lock = hashlib.sha256(f"{difficulty} {seed}".encode()).digest()
        solution = search(lock, difficulty, 0, 1_000_000)
        assert solution is not None
        assert len(solution) == SOLUTION_BYTES
        assert naive(lock, solution, difficulty)
        assert verify(lock, solution, difficulty)
        before = int.from_bytes(solution, "big")
        if difficulty < 4:
            assert not any(naive(lock, n.to_bytes(8, "big"), difficulty) for n in range(before))
        # It is the first wherever the search begins, and not found where it ends too soon.
        assert search(lock, difficulty, before, 1) == solution
        assert search(lock, difficulty, 0, before) is None


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_search_and_the_definition_agree_on_every_try(difficulty: int) -> None:
    lock = b"one lock"
    for number in range(3_000):
        found = search(lock, difficulty, number, 1) is not None
        assert found == naive(lock, number.to_bytes(8, "big"), difficulty)


def test_a_solution_opens_no_other_lock_and_no_harder_one() -> None:
    lock = b"x" * 64
    solution = search(lock, 3, 0, 100_000)
    assert solution is not None
    assert not verify(b"y" * 64, solution, 3)
    assert not verify(lock, solution, 64)
    assert all(verify(lock, solution, easier) for easier in range(4))


def test_nothing_is_tried_when_nothing_is_asked() -> None:
    assert search(b"lock", 0, 5, 0) is None
    assert search(b"lock", 0, 5, 1) == (5).to_bytes(8, "big")
    assert verify(b"lock", b"", 0)


def test_the_mean_number_of_tries_is_sixteen_to_the_difficulty() -> None:
    """Tries are geometric: mean 16^d, deviation about the same. Over 2,000 locks the mean strays
    by more than 4.5 standard errors with probability below 1e-5 (normal approximation); the seed
    is fixed, so the test passes always or never."""
    source = random.Random(SEED)
    count = 2_000
    for difficulty in (1, 2):
        tries = []
        for _ in range(count):
            solution = search(source.randbytes(32), difficulty, 0, 100_000)
            assert solution is not None
            tries.append(int.from_bytes(solution, "big") + 1)
        p = 1 / expected_hashes(difficulty)
        error = math.sqrt(1 - p) / p / math.sqrt(count)
        assert abs(sum(tries) / count - 1 / p) < 4.5 * error


def test_each_more_zero_takes_sixteen_times_longer() -> None:
    assert [expected_hashes(d) for d in range(4)] == [1, 16, 256, 4096]
