"""What must be true of a broker after every step of a history, reckoned without the broker's code.

The :class:`Book` writes down what was said: which ticket went to whom, which update came back on
it, what was acknowledged, who was heard of when. From that alone it says what the weights, the
counters and the answers may be; it is slow, plain, and knows nothing of how the broker works.

**The weights are the witness.** In tasks without judging, each update that a client sends carries
a mark of its own: a digit of one weight, in base 32. Sums of marks are exact in float64, so the
weights themselves tell of every update whether it was applied once, not at all, or twice. In a
synchronous round of n clients the digit is 12 / n, which is whole for n up to 4.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from accord.messages import Phase, Turn, Work
from accord.task import Task
from broker.records import Changes, ModelRow, SessionRow

DIMENSION: Final = 12
WHOLE: Final = 12
"""The digit of an update that was applied alone, and once."""
_BASE: Final = 32
_PLACES: Final = 10
_UNIT: Final = 2.0**-20
"""Of the last digit; so the first one stays below the largest norm that a task may allow."""
MARKS: Final = DIMENSION * _PLACES
MOST_TOGETHER: Final = 4
"""Clients of a synchronous round whose digits stay whole."""
IDLE: Final = 900.0
"""Seconds that whoever is in may do nothing before it must make room for others."""
MARKED_NORM: Final = 1e9

_ALLOWED: Final[frozenset[tuple[Phase, Phase]]] = frozenset({
    ("waiting", "gathering"), ("gathering", "training"), ("training", "paused"),
    ("paused", "training"), ("gathering", "published"), ("training", "published"),
    ("paused", "published"), ("published", "gone"),
})
"""The diagram in :mod:`broker.brokerage`."""
_RESTORED: Final[frozenset[tuple[Phase, Phase]]] = frozenset({
    ("gathering", "paused"), ("gathering", "published")})


class Violation(AssertionError):
    """Something that must never be, was.

    Args:
        rule: short name of what was broken; a shrunken history must break the same.
        what: in words.
    """

    def __init__(self, rule: str, what: str = "") -> None:
        self.rule = rule
        super().__init__(f"{rule}: {what}")


def require(holds: bool, rule: str, what: str = "") -> None:
    """Raises:
    Violation: it does not hold.
    """
    if not holds:
        raise Violation(rule, what)


def mark(number: int) -> np.ndarray:
    """The update with this mark, float64 (:data:`DIMENSION`,); 0 when the marks are used up."""
    delta = np.zeros(DIMENSION)
    if number < MARKS:
        coordinate, place = divmod(number, _PLACES)
        delta[coordinate] = WHOLE * float(_BASE**place) * _UNIT
    return delta


def digits(weights: np.ndarray) -> list[int]:
    """How often each mark is in the weights, in twelfths.

    Raises:
        Violation: they are no sum of marks.
    """
    found = []
    for value in weights:
        whole = float(value) / _UNIT
        require(math.isfinite(whole) and whole >= 0 and whole == math.floor(whole),
                "weights-strange", f"{value!r} is no sum of marks")
        number = int(whole)
        for _ in range(_PLACES):
            number, digit = divmod(number, _BASE)
            found.append(digit)
        require(number == 0, "weights-strange", f"{value!r} is no sum of marks")
    return found


@dataclass(slots=True)
class Given:
    """A ticket.

    Attributes:
        owner: the token of the session that it was given to.
        work: as it was given.
        sent: the marks of the updates that came back on it, rightly solved, from its owner.
    """

    owner: bytes
    work: Work
    sent: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Known:
    """A session, as far as was said.

    Attributes:
        k: its own.
        seen: when it was last heard of, on the broker's clock.
        decided: the tickets for which it was given a receipt, in order.
        acknowledged: those whose receipt left the broker.
        strikes: given to it, as told.
        worked: when it was let in, or an update of it was accepted last, on the broker's clock.
        accepted: how many were.
    """

    k: int
    seen: float
    decided: list[bytes] = field(default_factory=list)
    acknowledged: set[bytes] = field(default_factory=set)
    strikes: int = 0
    worked: float = -math.inf
    accepted: int = 0


@dataclass(slots=True)
class Seen:
    """What the memory of the broker holds, for the checks; by token where it is of a session."""

    weights: np.ndarray
    updates: int
    strikes: dict[bytes, int]
    accepted: dict[bytes, int]
    counts: tuple[int, int, int]
    tickets: int
    held: int
    away: set[bytes]


class Book:
    """See the module.

    Args:
        task: what is trained.
        marked: whether updates carry marks.
        remembered: most sessions that are remembered for each place.
    """

    def __init__(self, task: Task, marked: bool, remembered: int) -> None:
        self.task = task
        # And besides, those who are in.
        self._most = (remembered + 1) * task.clients.maximum
        self.marked = marked
        self.sessions: dict[bytes, Known] = {}
        self.tickets: dict[bytes, Given] = {}
        self.marks = 0
        self.acknowledged = 0
        self._applied: dict[int, int] = {}
        self._digits = [0] * MARKS
        self._raw = b""
        self._blanks = False
        self._updates = 0
        self._out: set[bytes] = set()  # when it was looked at last
        self._outcome: bytes | None = None
        self.rows: dict[bytes, SessionRow] = {}
        self._kept: dict[bytes, list[bytes]] = {}
        self._gone: dict[bytes, Known] = {}
        self.model: ModelRow | None = None

    def fresh_mark(self) -> int:
        """A mark that nothing else has."""
        self.marks += 1
        self._blanks |= self.marks > MARKS
        return self.marks - 1

    # -- what was said ---------------------------------------------------------------------------

    def joined(self, token: bytes, k: int, now: float) -> None:
        """A session was let in, anew or again."""
        known = self.sessions.setdefault(token, Known(k, now, worked=now))
        known.seen = now

    def heard(self, token: bytes, now: float) -> None:
        """A sign of life was taken."""
        self.sessions[token].seen = now

    def left(self, token: bytes) -> None:
        """It went."""
        self.sessions[token].seen = -math.inf

    def displaced(self, by: bytes, now: float, seen: Seen) -> None:
        """Somebody may have had to make room for the one who was just heard: one who has done
        nothing for long, and only when all places are taken."""
        # The one who was heard, and others, may have been put out since, by the same message: then
        # they had places, and nobody took those.
        active = {*self.active(now, seen), by}
        also = {token for token in self._put_out(seen) - self._out - active
                if self._counts(self.sessions[token], now)}
        found = [token for token in active - {by} if token in seen.away]
        if not found:
            return
        taken = len(active) + len(also)
        require(taken > self.task.clients.maximum and len(found) == 1, "chased-away")
        # Seconds of training are never more than seconds.
        require(now - self.sessions[found[0]].worked >= IDLE, "chased-away", "while it worked")
        self.left(found[0])

    def active(self, now: float, seen: Seen) -> list[bytes]:
        """Who was heard of lately enough and was not put out."""
        out = self._put_out(seen)
        return [token for token, known in self.sessions.items()
                if self._counts(known, now) and token not in out]

    def _put_out(self, seen: Seen) -> set[bytes]:
        evict = self.task.validation.evict
        return {token for token in self.sessions if 0 < evict <= seen.strikes.get(token, 0)}

    def _counts(self, known: Known, now: float) -> bool:
        return known.seen >= now - self.task.clients.silence

    def enough(self, now: float, seen: Seen) -> bool:
        """Whether there are clients for everyone's k."""
        active = self.active(now, seen)
        need = max([self.task.clients.minimum, *(self.sessions[t].k for t in active)])
        return len(active) >= need

    def answered(
        self, token: bytes, said: bytes | None, turn: Turn, now: float, seen: Seen
    ) -> None:
        """The broker decided on a turn; it has not left yet.

        Args:
            token: whose.
            said: the ticket of the Push that it answers, if it is one.
            turn: what was decided.
            now: on the broker's clock.
            seen: its memory now.
        """
        known = self.sessions[token]
        require(turn.strikes >= known.strikes, "strikes-fade", f"{turn.strikes}")
        known.strikes = turn.strikes
        require(turn.strikes == seen.strikes[token], "strikes-told")
        require(turn.judged >= turn.struck, "counts", f"{turn.judged} judged, {turn.struck} struck")
        if turn.receipt:
            self._receipt(token, known, said, turn.receipt, now)
        if isinstance(turn.next, Work):
            self._worked(token, known, turn.next, now, seen)

    def _receipt(
        self, token: bytes, known: Known, said: bytes | None, receipt: bytes, now: float
    ) -> None:
        given = self.tickets.get(receipt)
        require(given is not None and given.owner == token, "receipt-of-another")
        assert given is not None
        require(receipt == said, "receipt-unasked")
        require(bool(given.sent), "receipt-for-nothing", "no solved update came on that ticket")
        if receipt not in known.decided:
            known.decided.append(receipt)
            # A round's are decided when it closes, and told whenever its sender is heard again.
            together = self.task.training.mode == "synchronous"
            require(together or self._counts(known, now), "applied-while-away", "with its own k")

    def _worked(
        self, token: bytes, known: Known, work: Work, now: float, seen: Seen
    ) -> None:
        require(self.enough(now, seen), "served-below-k", f"at {now}")
        require(self._counts(known, now), "served-while-away", "and its k does not count")
        evict = self.task.validation.evict
        require(not 0 < evict <= known.strikes, "served-when-out")
        require(work.ticket not in known.decided, "spent-ticket-given")
        given = self.tickets.get(work.ticket)
        if given is not None:
            require(given.owner == token, "ticket-of-another", "one ticket for two sessions")
            require(given.work == work, "ticket-changed")
            return
        least = self.task.puzzles.update + known.strikes
        require(min(least, 64) <= work.difficulty <= 64, "too-easy",
                f"{work.difficulty} of {least}")
        self.tickets[work.ticket] = Given(token, work)

    def delivered(self, token: bytes, ticket: bytes, number: int, good: bool) -> None:
        """An update arrived at the broker; good: solved, finite, of the right length and norm."""
        given = self.tickets.get(ticket)
        if given is not None and given.owner == token and good:
            given.sent.add(number)

    def released(self, token: bytes, turn: Turn) -> None:
        """A turn has left the broker."""
        known = self.sessions.get(token)
        if known is None:
            return
        row = self.rows.get(token)
        require(row is not None and row.strikes >= turn.strikes, "told-before-written")
        if turn.receipt and turn.receipt in known.decided:
            require(turn.receipt in self._kept[token], "acknowledged-before-written")
            if turn.receipt not in known.acknowledged:
                known.acknowledged.add(turn.receipt)
                self.acknowledged += 1

    def door(self, difficulty: int) -> None:
        """An admission puzzle was given."""
        require(self.task.puzzles.admission <= difficulty <= 64, "door-too-easy", f"{difficulty}")

    # -- the disk --------------------------------------------------------------------------------

    def written(
        self, changes: Changes, tokens: dict[bytes, bytes], decided: dict[bytes, list[bytes]]
    ) -> None:
        """Changes are on the disk; tokens: of the names of sessions; decided: the receipts that
        each session had when they were taken."""
        if changes.model is not None:
            self.model = changes.model
        for name in changes.forgotten:
            self.rows.pop(tokens[name], None)
            self._gone.pop(tokens[name], None)
        for row in changes.sessions:
            self.rows[tokens[row.name]] = row
        self._kept = {token: decided.get(token, self._kept.get(token, [])) for token in self.rows}

    def same_model(self, found: ModelRow, rule: str, moving: bool) -> None:
        """Whether the model's row is the one that was written; with ``moving`` time has passed,
        and so the door may have cooled or joins have heated it, which is never written alone."""
        kept = self.model
        assert kept is not None
        for name in ("weights", "best_weights"):
            one, other = getattr(kept, name), getattr(found, name)
            require(one.dtype == other.dtype and one.tobytes() == other.tobytes(), rule, name)
        for name in ("updates", "best_loss", "best_error", "improved", "judged", "struck",
                     "strikes", "judging", "ended"):
            one, other = getattr(kept, name), getattr(found, name)
            require(one == other, rule, f"{name}: {one!r} written, {other!r} found")
        if not moving:
            require(kept.phase == found.phase and kept.heat == found.heat
                    and kept.seconds == found.seconds, rule, "phase, heat or seconds")
        require((kept.seconds is None) == (found.seconds is None), rule, "seconds")

    def same_sessions(self, found: dict[bytes, SessionRow], rule: str) -> None:
        """Whether these are the sessions' rows that were written."""
        require(found.keys() == self.rows.keys(), rule, "other sessions")
        for token, row in found.items():
            require(row == self.rows[token], rule, f"{self.rows[token]} written, {row} found")

    def restored(self, now: float, seen: Seen) -> None:
        """The broker's memory was lost, and it goes on from the disk."""
        before = {**self.sessions, **self._gone}
        self.sessions, self._gone = {}, {}
        for token, known in before.items():
            # One that was forgotten in memory only is back; one that was let in there is not.
            row = self.rows.get(token)
            kept = set(self._kept.get(token, ()))
            require(known.acknowledged <= kept, "acknowledged-lost", "after a restart")
            if row is not None:
                # For how long it has been idle is on the disk; the clock may be another.
                assert self.model is not None
                idle = max(0.0, self.model.trained - row.worked)
                self.sessions[token] = Known(
                    row.min_clients, -math.inf, list(self._kept[token]),
                    known.acknowledged & kept, row.strikes, now - idle, row.updates)
                require(seen.strikes.get(token) == row.strikes, "strikes-fade", "after a restart")
        if self.marked:
            found = digits(seen.weights)
            for number, value in list(self._applied.items()):
                if found[number] == 0:
                    del self._applied[number]
                    self._digits[number] = 0
                else:
                    require(found[number] == value, "applied-otherwise", "after a restart")
        self._updates = seen.updates
        if self.model is None or self.model.phase not in ("published", "gone"):
            # It had ended in memory only.
            self._outcome = None

    # -- the weights -----------------------------------------------------------------------------

    def check(
        self, now: float, seen: Seen, phase: Phase, legal: bool, forgotten: set[bytes]
    ) -> None:
        """After each step.

        Args:
            now: on the broker's clock.
            seen: the broker's memory.
            phase: of the model.
            legal: whether there were enough clients for everyone's k when this step was taken.
            forgotten: tokens that the broker no longer knows.
        """
        for token in forgotten:
            self._gone[token] = self.sessions.pop(token)
        require(bool(np.isfinite(seen.weights).all()), "not-finite")
        self._out = self._put_out(seen)
        require(seen.updates >= self._updates, "updates-fall")
        require(seen.updates <= self.task.training.max_updates, "too-many-updates")
        require(seen.updates == self._updates or legal, "applied-below-k")
        self._updates = seen.updates
        judged, struck, strikes = seen.counts
        require(judged >= struck <= strikes, "counts", f"{seen.counts}")
        require(strikes >= sum(seen.strikes.values()), "counts", "strikes")
        require(max(len(seen.strikes), seen.tickets, seen.held) <= self._most, "memory")
        together = self.task.training.mode == "synchronous"
        for token, accepted in seen.accepted.items():
            known = self.sessions.get(token)
            require(known is not None, "session-from-nowhere")
            assert known is not None
            require(len(known.acknowledged) <= len(known.decided) <= accepted, "acknowledged-lost",
                    f"{len(known.acknowledged)} and {len(known.decided)} of {accepted}")
            if accepted != known.accepted:
                known.accepted, known.worked = accepted, now
            require(together or accepted == len(known.decided), "counted-twice",
                    f"{accepted} accepted, {len(known.decided)} receipts")
        self._check_marks(seen, legal)
        if phase in ("published", "gone"):
            outcome = seen.weights.tobytes()
            require(self._outcome in (None, outcome), "changed-after-the-end")
            self._outcome = outcome

    def _check_marks(self, seen: Seen, legal: bool) -> None:
        raw = seen.weights.tobytes()
        if not self.marked:
            return
        if raw != self._raw:
            now = digits(seen.weights)
            self._raw = raw
            fresh = Counter[int]()
            for number, value in enumerate(now):
                if value != self._digits[number]:
                    require(self._digits[number] == 0, "applied-twice" if value else "unapplied",
                            f"mark {number}: {self._digits[number]} became {value} twelfths")
                    fresh[value] += 1
                    self._apply(number, value, legal)
            self._digits = now
            for value, count in fresh.items():
                require(WHOLE % value == 0 and (self._blanks or count % (WHOLE // value) == 0),
                        "applied-twice", f"{count} updates of {value} twelfths")
        for known in self.sessions.values():
            for ticket in known.acknowledged:
                sent = self.tickets[ticket].sent
                require(len(sent & self._applied.keys()) == 1 or max(sent) >= MARKS,
                        "acknowledged-lost", "its mark is not in the weights")

    def _apply(self, number: int, value: int, legal: bool) -> None:
        require(legal, "applied-below-k", f"mark {number}")
        from_tickets = [g for g in self.tickets.values() if number in g.sent]
        require(len(from_tickets) == 1, "applied-unasked",
                f"mark {number} came on no ticket of its sender's")
        others = from_tickets[0].sent & self._applied.keys()
        require(not others, "applied-twice", "another update on the same ticket")
        self._applied[number] = value


def allowed(before: Phase, after: Phase, restoring: bool) -> bool:
    """Whether a phase may change so."""
    return (before, after) in (_RESTORED if restoring else _ALLOWED)
