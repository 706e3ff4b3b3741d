"""The conversation of a client with a broker, and the file that it goes on from. Pure.

No sockets, no clock, no randomness: :class:`Conversation` is told what came and what time it is,
and says what to send and until when to wait. The wire itself is :mod:`accord.messages`.

What it owes the broker is at any time one thing: nothing while a ticket is being worked on; else
the :class:`Push` that is not acknowledged; else a :class:`Pull`. It is sent when due, and again
after the broker's ``Wait.seconds``, and again on each new connection. During long work a Pull is
sent now and then, as a sign of life: the broker answers with the same ticket, which changes
nothing.

A ticket is refused *before* anything is spent on it when its puzzle is harder than the person
allows or its weights are not numbers; after that nothing is sent any more. Nor is anything spent
on one when strikes, our own or those of others, fulfil a wish of the person's to leave.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from accord.files import write_whole
from accord.messages import (
    AdmissionPuzzle,
    End,
    Hello,
    Precision,
    Pull,
    Push,
    Refused,
    SignedTask,
    Solution,
    Steps,
    Token,
    Turn,
    Wait,
    Work,
    vector_from_wire,
    vector_to_wire,
)
from accord.problems import (
    AWAY,
    BAD_SESSION,
    BAD_WEIGHTS,
    DESK_FULL,
    DISK,
    ENDED,
    FULL,
    INTERNAL,
    KINDS,
    LOCKED,
    LOST,
    MALFORMED,
    NO_SESSION,
    NOT_PUBLISHED,
    NOT_SOLVED,
    ROUND_OPEN,
    STALE_TICKET,
    TOO_FEW_CLIENTS,
    TOO_HARD,
    TRAVELS,
    PeerProblem,
    Problem,
)
from client.noise import Mechanism, Release

SESSION_LIMIT: Final = 8 << 20
_TROUBLE: Final = (INTERNAL, FULL, DESK_FULL, NOT_PUBLISHED)
MOST_REFUSALS: Final = 10
"""After so many refusals with no update acknowledged between them we stop: each stale ticket has
cost a release, and a broker that takes none should not have more."""

MOST_DELAY: Final = 60.0
"""Longest that a client may wait before an update, in seconds: longer, and most of its updates
would be made for a model that has long gone on."""
LEAST_JUDGED: Final = 3
"""A share of fewer judged clients than this says nothing: nobody leaves because of it."""

Outcome = Literal["budget-spent", "published", "left"]
FINISHED: Final = ("published", "left")
"""Outcomes after which a session is not gone on with."""
Reason = Literal["leave-if-struck", "leave-if-share"]
Stop = Literal["ended", "budget-spent", "left"]
"""Why no more updates are made: training has ended, no budget is left, or a wish to leave."""


class Verdict(Struct, frozen=True):
    """What a broker said last of strikes.

    Attributes:
        strikes: given to us.
        struck, judged: of all clients whose updates were ever judged, how many were given one.
    """

    strikes: int = 0
    struck: int = 0
    judged: int = 0


class Wishes(Struct, frozen=True):
    """When a person wishes to leave.

    Attributes:
        if_struck: at the first strike of our own.
        if_share: when at least this share of the judged clients is struck, above 0 and up to 1;
            None for never. It takes :data:`LEAST_JUDGED` judged ones.
    """

    if_struck: bool = False
    if_share: float | None = None

    def reason(self, verdict: Verdict) -> Reason | None:
        """The wish that this verdict fulfils, if it does one."""
        if self.if_struck and verdict.strikes:
            return "leave-if-struck"
        if self.if_share is None or verdict.judged < LEAST_JUDGED:
            return None
        # Divided, not multiplied: 3 of 10 is exactly the 0.3 that was typed.
        share = verdict.struck / verdict.judged
        return "leave-if-share" if share >= self.if_share else None


_STAYS: Final = Wishes()


class Session(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``join`` writes down and ``solve`` goes on from; a secret (0600) for its token.

    Attributes:
        onion: the model's address.
        task: as the curator signed it.
        data: path of the data file; fingerprint: of its bytes when it was joined with.
        epsilon, batch, noise: of one release. min_clients: k.
        budget, delta: what may be spent in all.
        max_difficulty: hardest puzzle that the person allows.
        ledger: directory of the privacy ledgers.
        output: where the model goes.
        puzzle, solution: of the door. token: what the broker knows this client by.
        leave_if_struck, leave_if_share: see :class:`Wishes`.
        ignore_columns: columns that the task does not know are left out.
        delay: before each update, a random time of up to so many seconds is waited.
        local_steps: private steps, each a release, that make an update.
        verdict: what the broker said last of strikes.
        outcome: "budget-spent" when no more updates may be sent, "published" when the model is
            saved, "left" when the person's wish to leave was fulfilled, None before.
    """

    version: Literal[1] = 1
    onion: str
    task: SignedTask
    data: str
    fingerprint: str
    epsilon: float
    batch: Annotated[int, Meta(ge=1)]
    min_clients: Annotated[int, Meta(ge=1)]
    budget: float
    delta: float
    max_difficulty: int
    ledger: str
    output: str
    puzzle: AdmissionPuzzle | None = None
    solution: Solution | None = None
    token: Token | None = None
    leave_if_struck: bool = False
    leave_if_share: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    delay: Annotated[float, Meta(ge=0.0, le=MOST_DELAY)] = 0.0
    noise: Mechanism = "laplace"
    ignore_columns: bool = False
    local_steps: Steps = 1
    verdict: Verdict = Verdict()
    outcome: Outcome | None = None

    def release(self, rows: int, dimension: int) -> Release:
        """The kind of this session's releases, of so many numbers from so many rows.

        Raises:
            ValueError: as :class:`client.noise.Release`.
        """
        return Release(self.epsilon, self.batch, rows, dimension, self.noise,
                       self.delta if self.noise == "gaussian" else 0.0)

    @property
    def wishes(self) -> Wishes:
        """When the person wishes to leave."""
        return Wishes(self.leave_if_struck, self.leave_if_share)

    def __repr__(self) -> str:
        # Whatever prints this by mistake must not print the token.
        return f"Session({self.onion})"


def load_session(path: Path) -> Session:
    """Read a session file.

    Raises:
        Problem: ``NO_SESSION``, ``BAD_SESSION``.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(SESSION_LIMIT + 1)
        if len(raw) > SESSION_LIMIT:
            raise Problem(BAD_SESSION, path=path, why="it is too large")
        return msgspec.json.decode(raw, type=Session)
    except FileNotFoundError:
        raise Problem(NO_SESSION, where=f"at {path}") from None
    except OSError as error:
        raise Problem(BAD_SESSION, path=path, why=(error.strerror or "").lower()) from None
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise Problem(BAD_SESSION, path=path, why="its content is not one") from None


def save_session(path: Path, session: Session) -> None:
    """Write a session file, whole, for its owner only.

    Raises:
        Problem: ``DISK``.
    """
    write_whole(path, msgspec.json.format(msgspec.json.encode(session)) + b"\n", 0o600)


@contextlib.contextmanager
def hold_session(path: Path) -> Iterator[None]:
    """Keep every other process from this session; a killed one's hold ends by itself.

    Raises:
        Problem: ``LOCKED``, ``DISK``.
    """
    # Beside the file, because the file itself is replaced at each writing.
    beside = path.with_name(f".{path.name}.lock")
    try:
        lock = beside.open("a")
    except OSError as error:
        raise Problem(DISK, path=beside, why=(error.strerror or "").lower()) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Problem(LOCKED, path=path) from None
        yield


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take, in seconds.

    Attributes:
        first: before the first new attempt; each further one waits twice as long,
        longest: but never longer than this.
        answer: a broker that has not answered by then is asked again; after twice that the
            connection counts as lost.
        patience: without any answer for so long, we give up.
        poll: between looks at a training that goes on without us.
        silent: without an answer for so long, the person is told.
    """

    first: float = 1.0
    longest: float = 30.0
    answer: float = 20.0
    patience: float = 900.0
    poll: float = 30.0
    silent: float = 10.0


class BackOff:
    """When to try again, and when to give up."""

    def __init__(self, onion: str, pace: Pace) -> None:
        self._onion = onion
        self._pace = pace
        self.answered()

    def answered(self) -> None:
        """The other side is there."""
        self._since: float | None = None
        self._tries = 0

    def again(self, now: float, random: float) -> float:
        """Seconds to wait before the next attempt.

        Args:
            now: of a monotonic clock.
            random: from 0 to 1, so that many clients do not all come back at once.

        Raises:
            Problem: ``LOST``, it has been too long.
        """
        if self._since is None:
            self._since = now
        if now - self._since >= self._pace.patience:
            raise Problem(LOST, address=self._onion, seconds=f"{self._pace.patience:g}")
        wait = min(self._pace.longest, self._pace.first * 2.0 ** min(self._tries, 30))
        self._tries += 1
        left = self._pace.patience - (now - self._since)
        return min(wait * (0.5 + random), left)


@dataclass(frozen=True, slots=True, repr=False)
class Step:
    """A ticket that was found good: make an update of these weights, solve this puzzle."""

    weights: np.ndarray
    lock: bytes
    difficulty: int


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing more is to be sent: the model is published, the budget is spent, or the person
    wishes to leave."""

    why: Stop


class Conversation:
    """A client's side of ``/train``, over as many connections as it takes.

    Args:
        onion: for the sentences of problems.
        token: of the session.
        dimension: length of the weights.
        max_difficulty: hardest puzzle allowed.
        can_pay: whether the budget allows one more release.
        pace: how long things take.
        silence: seconds after which the broker counts a silent client as absent, and replaces a
            ticket by another when it is asked for work.
        wishes: when the person wishes to leave.
        precision: how weights and updates travel, by the task.

    Attributes:
        updates: how many were acknowledged.
        verdict: what the broker said last of strikes.
    """

    def __init__(
        self, onion: str, token: bytes, dimension: int, max_difficulty: int,
        can_pay: Callable[[], bool], pace: Pace, silence: float, wishes: Wishes = _STAYS,
        precision: Precision = "float32",
    ) -> None:
        self.updates = 0
        self.verdict = Verdict()
        self._wishes = wishes
        self._precision: Precision = precision
        self._onion = onion
        self._token = token
        self._dimension = dimension
        self._max_difficulty = max_difficulty
        self._can_pay = can_pay
        self._pace = pace
        self._silence = silence
        self._back_off = BackOff(onion, pace)
        self._ticket: bytes | None = None
        self._pending: Push | None = None
        self._due = 0.0
        self._asked: float | None = None  # on this connection
        self._refusals = 0
        self._over = False

    def connected(self, now: float) -> Hello:
        """A connection is there: what is said first. :meth:`sending` gives the rest."""
        self._due, self._asked = now, None
        return Hello(self._token)

    def lost(self, now: float, random: float) -> float:
        """The connection is gone: seconds to wait before the next one.

        Raises:
            Problem: ``LOST``.
        """
        return self._back_off.again(now, random)

    def sending(self, now: float) -> Pull | Push | None:
        """The message that is due, if there is one; it counts as sent."""
        if self._over or now < self._due:
            return None
        if self._ticket is not None:
            # A sign of life: the broker gives the same ticket again.
            self._due = now + self._silence / 3
            return Pull()
        self._due = now + self._pace.answer
        self._asked = now if self._asked is None else self._asked
        return self._pending or Pull()

    def wake(self, now: float) -> float:
        """Seconds until :meth:`sending` should be asked again.

        Raises:
            Problem: ``AWAY``, the broker has not answered for too long.
        """
        dead = math.inf if self._asked is None else self._asked + 2 * self._pace.answer
        if now >= dead:
            raise Problem(AWAY, address=self._onion, why="no answer in time")
        due = math.inf if self._over else self._due
        return max(0.0, min(due, dead) - now)

    def answer(self, solution: bytes, delta: np.ndarray, now: float, steps: int = 1) -> None:
        """The update that :meth:`receive` asked for is made, of so many steps."""
        assert self._ticket is not None
        self._pending = Push(
            self._ticket, solution, vector_to_wire(delta, self._precision), steps)
        self._ticket = None
        self._due = now

    def receive(self, turn: Turn, now: float) -> Step | Wait | Over | None:
        """What to do with the broker's turn; None: nothing.

        Raises:
            Problem: ``AWAY``, the broker cannot serve now; it is as if the connection was lost.
            PeerProblem: the conversation has ended with it, and nothing is sent any more.
        """
        if self._over:
            return None
        if isinstance(turn.next, Refused) and turn.next.problem().kind in _TROUBLE:
            # Nothing we did, and perhaps mended soon: as if nobody had answered, with the same
            # patience, and it is no fault of ours that would be counted.
            raise Problem(AWAY, address=self._onion, why="it is in trouble, or full")
        self._back_off.answered()
        self._asked = None
        if self._pending is not None and turn.receipt == self._pending.ticket:
            self._pending = None
            self._refusals = 0
            self.updates += 1
        if turn.strikes or turn.judged:  # a turn without any of these figures takes nothing back
            self.verdict = Verdict(turn.strikes, turn.struck, turn.judged)
        try:
            todo = self._next(turn.next, now)
        except Problem:
            self._over = True
            raise
        self._over = isinstance(todo, Over)
        return todo

    def _next(self, told: Work | Wait | End | Refused, now: float) -> Step | Wait | Over | None:
        if isinstance(told, End):
            return Over("ended")
        leaves = self._wishes.reason(self.verdict) is not None
        if isinstance(told, Refused):
            # First, as some refusals are an end by themselves.
            todo = self._refused(told.problem(), now)
            return Over("left") if leaves and todo != Over("ended") else todo
        if leaves:
            return Over("left")
        if self._ticket is not None:
            # An answer to an earlier message that crossed with ours: we have work.
            return None
        if isinstance(told, Wait):
            return self._wait(told, now)
        return self._work(told, now)

    def _work(self, work: Work, now: float) -> Step | Over | None:
        if self._pending is not None:
            if work.ticket == self._pending.ticket:
                return None
            # The broker has gone on without our update; its release stays spent.
            self._drop(PeerProblem(STALE_TICKET), now)
        if not self._can_pay():
            return Over("budget-spent")
        if work.difficulty > self._max_difficulty:
            raise PeerProblem(
                TOO_HARD, difficulty=work.difficulty, limit=self._max_difficulty)
        weights = vector_from_wire(work.weights, self._dimension, self._precision)
        if weights is None:
            raise PeerProblem(BAD_WEIGHTS, address=self._onion, dimension=self._dimension)
        self._ticket = work.ticket
        self._due = now + self._silence / 3
        return Step(weights, work.lock, work.difficulty)

    def _wait(self, wait: Wait, now: float) -> Wait | Over:
        kind = KINDS.get(wait.why)
        if kind not in TRAVELS:
            raise PeerProblem(MALFORMED)
        if kind is TOO_FEW_CLIENTS and self._pending is None and not self._can_pay():
            # Nothing will come of waiting. (A round that is open has our update in it: then we
            # stay, and count, until it closes.)
            return Over("budget-spent")
        self._due = now + min(max(wait.seconds, self._pace.first), self._pace.longest)
        return wait

    def _refused(self, problem: PeerProblem, now: float) -> Wait | Over | None:
        kind = problem.kind
        if kind is ENDED:
            return Over("ended")
        if kind in (STALE_TICKET, NOT_SOLVED):
            if self._ticket is None:
                self._drop(problem, now)
            return None
        if kind in (TOO_FEW_CLIENTS, ROUND_OPEN):
            have, need = (max(0, int(str(problem.details[n]))) for n in ("have", "need"))
            told = Wait(kind.code, have, need, self._pace.first)
            return None if self._ticket is not None else self._wait(told, now)
        raise problem

    def _drop(self, problem: PeerProblem, now: float) -> None:
        """Let an update go that the broker did not take; ask for other work."""
        self._count(problem)
        self._due = now if self._pending is not None else now + self._later()
        self._pending = None

    def _count(self, problem: PeerProblem) -> None:
        self._refusals += 1
        if self._refusals >= MOST_REFUSALS:
            raise problem

    def _later(self) -> float:
        return min(self._pace.longest, self._pace.first * 2.0**self._refusals)
