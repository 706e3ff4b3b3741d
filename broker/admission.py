"""Puzzles at the door and for every update; how difficulty grows (paper 5.2, 5.5). Pure.

The door costs the broker no memory: a lock carries when it was made, its own difficulty and a code
that only this broker can make, and the session's token is derived from the lock. So the same
solved puzzle gives the same session however often it is sent, and never two.

**The door answers to what happens.** It has a heat, in hashes: a strike adds what the next update
of the struck session costs, 16**(update + strikes), and :data:`STRIKE` doors at least; a join adds
16**admission / places, and half of it is gone after :data:`HALF_LIFE`. Its difficulty is the
heat's, to the nearest zero, never below the task's and never above :data:`RISE` more (or what the
last strike before eviction takes, up to :data:`MOST_RISE`).

*Leaving and coming back does not beat staying.* A session's strikes never fade, and a new session
has none. But for two half-lives after a strike the door costs at least what the struck session's
next update would have; and where the task's own door is as hard as that (as it is by default, up
to eviction), it always does. So a new name saves nothing on the first update, and it is only
after that first one that a new session could gain. There screen and test take over: steps of a
newcomer may be no longer than those of the others are by now (:mod:`broker.screen`); once anybody
was struck, newcomers are on probation; and what a struck session has given is taken out of the
model again (:mod:`broker.sequential`). Where ``evict`` is 0 a session can collect more strikes than
the door ever shows: there a new name does pay, and so eviction is the default.

*What it costs the honest.* The heat cannot tell whose fault it is. One strike, or four times as
many joins as there are places, make the door one zero harder; four strikes, two. That is 14 minutes
instead of 3 seconds on the slowest machine, 17 seconds instead of a fraction on one with a million
hashes a second, and no more: the rise has an end, and so has the heat, so that the door begins to
cool 2 half-lives after the last strike. An attacker with hardware for hashing can keep it there,
and so can a curator whose validation set is junk, for its own model. Those who are in are not
touched by it.

*What it does not stop.* Sessions made in advance, before anything is hot, at a cold door's price.
A ticket that was given out before its session was struck keeps its easier puzzle, for that one
update: to void it would waste the noise that may already have been paid for.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable
from typing import Final

from accord import puzzle
from accord.messages import MAX_DIFFICULTY, AdmissionPuzzle
from accord.problems import NOT_SOLVED, PeerProblem
from accord.task import Puzzles

RandomBytes = Callable[[int], bytes]
Verify = Callable[[bytes, bytes, int], bool]
"""Whether a solution opens a lock of a difficulty: (lock, solution, difficulty)."""

HALF_LIFE: Final = 600.0
"""Seconds in which the door's heat halves."""
RISE: Final = 2
"""Zeros by which the door rises at most: the hardest that is still minutes for everyone, and at a
default door what clients allow by default."""
MOST_RISE: Final = 4
"""And where the puzzle of a session's last update before eviction is harder than that."""
STRIKE: Final = 16
"""Doors, as the task sets them, that a strike heats as much as: more, and a single honest client
that was struck would close it; less, and a poisoner with fast hardware is back within a second."""
_MARGIN: Final = 120.0
"""Seconds that an admission puzzle is good for, besides the time to solve it: two slow ways through
Tor. It bounds how long puzzles that were solved at an easier door can be hoarded."""
_SLOW_SOLVER: Final = 20_000.0
"""Hashes a second of the slowest machine that should still get in; it has four times the mean, so
that one try in 55 takes longer."""
_NONCE: Final = 16
_TIME: Final = 8
_MAC: Final = 16


class Admission:
    """The puzzles of one model.

    Args:
        rules: the task's.
        places: most clients at a time; so many joins in a while are nothing unusual.
        evict: with so many strikes a session is put out; 0 for never.
        secret: known to this model's broker alone, the same after a restart.
        random: gives so many fresh random bytes.
        verify: the check of a solution.
    """

    def __init__(
        self, rules: Puzzles, places: int, evict: int, secret: bytes, random: RandomBytes,
        verify: Verify = puzzle.verify,
    ) -> None:
        self._rules = rules
        self._secret = secret
        self._random = random
        self._verify = verify
        base = rules.admission
        rise = max(RISE, min(rules.update + evict - base, MOST_RISE))
        self._hottest = min(base + rise, MAX_DIFFICULTY)
        self._one_join = puzzle.expected_hashes(base) / places
        self._heat = 0.0
        self._heated = 0.0

    # -- the door ------------------------------------------------------------------------------

    def door(self, now: float) -> AdmissionPuzzle:
        """A fresh admission puzzle."""
        difficulty = self.door_difficulty(now)
        made = int(now * 1000).to_bytes(_TIME, "big", signed=True)
        head = self._random(_NONCE) + made + bytes([difficulty])
        lock = head + self._mac(b"door", head)
        return AdmissionPuzzle(lock, difficulty, self._lifetime(difficulty))

    def door_difficulty(self, now: float) -> int:
        """Trailing zeros that a puzzle must show which is made now."""
        heat = self.heat(now)
        zeros = math.floor(math.log2(heat) / 4 + 0.5) if heat > 0 else 0
        return min(max(zeros, self._rules.admission), self._hottest)

    def open(self, lock: bytes, solution: bytes) -> bytes:
        """The token (32 bytes) of the session that this solved puzzle stands for.

        Raises:
            PeerProblem: ``NOT_SOLVED`` when the lock is not ours, or still shut.
        """
        head, mac = lock[:-_MAC], lock[-_MAC:]
        ours = len(lock) == _NONCE + _TIME + 1 + _MAC and hmac.compare_digest(
            mac, self._mac(b"door", head))
        if not ours or not self._verify(lock, solution, head[-1]):
            raise PeerProblem(NOT_SOLVED)
        return hmac.digest(self._secret, b"token" + lock, "sha256")

    def check_age(self, lock: bytes, now: float) -> None:
        """Refuse a lock of ours that is too old for its difficulty, so that solved ones cannot be
        hoarded. Until then it is good, however the door has risen meanwhile: whoever is slow must
        not be sent from one harder puzzle to the next.

        Raises:
            PeerProblem: ``NOT_SOLVED``.
        """
        made = int.from_bytes(lock[_NONCE : _NONCE + _TIME], "big", signed=True) / 1000
        # Not before it was made: after a reboot the clock has started anew.
        if not made <= now <= made + self._lifetime(lock[_NONCE + _TIME]):
            raise PeerProblem(NOT_SOLVED)

    @staticmethod
    def _lifetime(difficulty: int) -> float:
        return _MARGIN + 4 * puzzle.expected_hashes(difficulty) / _SLOW_SOLVER

    def _mac(self, purpose: bytes, data: bytes) -> bytes:
        return hmac.digest(self._secret, purpose + data, "sha256")[:_MAC]

    # -- its heat ------------------------------------------------------------------------------

    def heat(self, now: float) -> float:
        """The heat of the door now, in hashes."""
        # A clock that goes back must not heat it.
        return self._heat * math.exp2(-max(0.0, now - self._heated) / HALF_LIFE)

    def set_heat(self, heat: float, now: float) -> None:
        """Take the heat back after a restart; the time between does not cool it."""
        # More than the door can show would only keep it from cooling.
        self._heat = min(heat, puzzle.expected_hashes(self._hottest))
        self._heated = now

    def joined(self, now: float) -> None:
        """A new session was let in."""
        self.set_heat(self.heat(now) + self._one_join, now)

    def struck(self, strikes: int, now: float) -> None:
        """A session was given its so-many-th strike."""
        price = puzzle.expected_hashes(min(self.difficulty(strikes), self._hottest))
        least = STRIKE * puzzle.expected_hashes(self._rules.admission)
        self.set_heat(self.heat(now) + max(price, least), now)

    # -- updates -------------------------------------------------------------------------------

    def lock(self) -> bytes:
        """A fresh lock for one ticket; good once, because its ticket is."""
        return self._random(_NONCE)

    def difficulty(self, strikes: int) -> int:
        """Trailing zeros that the next update of a session with so many strikes must show: one
        more, 16 times more work, for each."""
        return min(self._rules.update + strikes, MAX_DIFFICULTY)


def session_name(token: bytes) -> bytes:
    """What a session is called inside the broker and on its disk: never its token itself."""
    return hashlib.sha256(b"tormentor session\x00" + token).digest()
