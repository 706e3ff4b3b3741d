"""SHA-256 puzzles (paper 4.1, 5.2; Back, "Hashcash", 2002).

A puzzle is a lock (random bytes, used once) and a difficulty: find a solution such that the
hexadecimal SHA-256 of ``lock || solution`` ends in that many zeros. One more zero takes 16 times
more work: 16**difficulty hashes in the mean.

Pure functions. :func:`search` tries a bounded stretch, so that its caller can stop, show progress
and leave the event loop free.
"""

from __future__ import annotations

import hashlib
from typing import Final

SOLUTION_BYTES: Final = 8


def expected_hashes(difficulty: int) -> float:
    """Mean number of tries that a puzzle takes."""
    return 16.0**difficulty


def verify(lock: bytes, solution: bytes, difficulty: int) -> bool:
    """Whether the solution opens the lock."""
    return _opens(hashlib.sha256(lock + solution).digest(), difficulty)


def search(lock: bytes, difficulty: int, start: int, count: int) -> bytes | None:
    """Try the solutions ``start`` ... ``start + count - 1``.

    Returns:
        The first that opens the lock (8 bytes), or None when there is none among them.
    """
    prefix = hashlib.sha256(lock)
    full, half = divmod(difficulty, 2)
    zeros = bytes(full)
    for number in range(start, start + count):
        attempt = prefix.copy()
        solution = number.to_bytes(SOLUTION_BYTES, "big")
        attempt.update(solution)
        digest = attempt.digest()
        # The whole bytes first: 255 of 256 attempts end here.
        if digest.endswith(zeros) and (not half or not digest[31 - full] & 0x0F):
            return solution
    return None


def _opens(digest: bytes, difficulty: int) -> bool:
    return difficulty <= 0 or digest.hex().endswith("0" * difficulty)
