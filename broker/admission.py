"""Puzzles at the door and for every update; how difficulty grows (paper 5.2, 5.5). Pure.

The door costs the broker no memory: a lock carries its own deadline and a code that only this
broker can make, and the session's token is derived from the lock. So the same solved puzzle gives
the same session however often it is sent, and never two.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from accord import puzzle
from accord.messages import MAX_DIFFICULTY, AdmissionPuzzle
from accord.problems import NOT_SOLVED, PeerProblem
from accord.task import Puzzles

RandomBytes = Callable[[int], bytes]

_PATIENCE: Final = 600.0
"""Seconds that an admission puzzle is good for, besides the time to solve it."""
_SLOW_SOLVER: Final = 20_000.0
"""Hashes a second of the slowest machine that should still get in."""
_NONCE: Final = 16
_TIME: Final = 8
_MAC: Final = 16


class Admission:
    """The puzzles of one model.

    Args:
        rules: the task's.
        secret: known to this model's broker alone, the same after a restart.
        random: gives so many fresh random bytes.
    """

    def __init__(self, rules: Puzzles, secret: bytes, random: RandomBytes) -> None:
        self._rules = rules
        self._secret = secret
        self._random = random
        self.strikes: dict[bytes, int] = {}

    def door(self, now: float) -> AdmissionPuzzle:
        """A fresh admission puzzle."""
        seconds = self._lifetime()
        deadline = int((now + seconds) * 1000).to_bytes(_TIME, "big", signed=True)
        head = self._random(_NONCE) + deadline
        return AdmissionPuzzle(head + self._mac(b"door", head), self._rules.admission, seconds)

    def open(self, lock: bytes, solution: bytes) -> bytes:
        """The token (32 bytes) of the session that this solved puzzle stands for.

        Raises:
            PeerProblem: ``NOT_SOLVED`` when the lock is not ours, or still shut.
        """
        head, mac = lock[:-_MAC], lock[-_MAC:]
        ours = len(lock) == _NONCE + _TIME + _MAC and hmac.compare_digest(
            mac, self._mac(b"door", head))
        if not ours or not puzzle.verify(lock, solution, self._rules.admission):
            raise PeerProblem(NOT_SOLVED)
        return hmac.digest(self._secret, b"token" + lock, "sha256")

    def check_age(self, lock: bytes, now: float) -> None:
        """Refuse a lock of ours that is too old, so that solved ones cannot be hoarded.

        Raises:
            PeerProblem: ``NOT_SOLVED``.
        """
        left = int.from_bytes(lock[_NONCE:-_MAC], "big", signed=True) / 1000 - now
        # The upper bound matters after a reboot, when the clock has started anew.
        if not 0 <= left <= self._lifetime() + 1:
            raise PeerProblem(NOT_SOLVED)

    def lock(self) -> bytes:
        """A fresh lock for one ticket; good once, because its ticket is."""
        return self._random(_NONCE)

    def difficulty(self, name: bytes) -> int:
        """Trailing zeros that this client's next update must show; never below the task's."""
        return min(self._rules.update + self.strikes.get(name, 0), MAX_DIFFICULTY)

    def strike(self, name: bytes) -> None:
        """Bad behaviour: one more zero, 16 times more work."""
        self.strikes[name] = self.strikes.get(name, 0) + 1

    def _lifetime(self) -> float:
        return _PATIENCE + 4 * puzzle.expected_hashes(self._rules.admission) / _SLOW_SOLVER

    def _mac(self, purpose: bytes, data: bytes) -> bytes:
        return hmac.digest(self._secret, purpose + data, "sha256")[:_MAC]


def session_name(token: bytes) -> bytes:
    """What a session is called inside the broker and on its disk: never its token itself."""
    return hashlib.sha256(b"tormentor session\x00" + token).digest()
