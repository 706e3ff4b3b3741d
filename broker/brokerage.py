"""One model's life. Pure: no sockets, no clock, no randomness of its own.

THE ONLY FILE WHERE A PHASE CHANGES::

    waiting ─ accept ─► gathering ─ enough for everyone's k ─► training ◄──► paused
                             └──────────────── ended ───────────┴─────────────┘
                                                 ▼
                                             published ─ vanish ─► gone

Everything takes ``now`` (seconds of a monotonic clock). A message is answered by a
:class:`~accord.messages.Turn`; what must be on disk before that answer may leave is what
:meth:`Brokerage.take_changes` then gives.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from accord import puzzle
from accord.messages import (
    TICKET_BYTES,
    AdmissionPuzzle,
    End,
    FromClient,
    Join,
    Leave,
    Phase,
    Precision,
    Pull,
    Push,
    Refused,
    SignedTask,
    Status,
    Turn,
    Wait,
    Welcome,
    Work,
    refused,
    vector_from_wire,
    vector_to_wire,
)
from accord.problems import (
    BAD_DELTA,
    ENDED,
    EVICTED,
    NOT_SOLVED,
    ROUND_OPEN,
    STALE_TICKET,
    TASK_REFUSED,
    TOO_FEW_CLIENTS,
    UNKNOWN_CLIENT,
    PeerProblem,
)
from accord.task import open_task, task_id
from broker.admission import Admission, Verify, session_name
from broker.aggregator import Aggregator
from broker.records import Changes, ModelRow, SessionRow
from broker.registry import NEVER, Member, Registry
from broker.validator import make_validator
from broker.verdict import Verdict

MEASURE_CELLS: Final = 200_000
"""The error is measured after each update while the validation set has at most so many numbers,
and after every second, third, ... update of a larger one: so it costs under a millisecond each."""
_MEASURED_AT_ONCE: Final = 64
"""Models that are measured together at most, where nothing hangs on it before anybody asks: in one
matrix product, which costs little more than one of them alone."""
_NORM_SLACK: Final[dict[Precision, float]] = {"float32": 1e-4, "float16": 1e-3}
"""A client that shrank its update to the bound exactly may arrive so much above it, relatively, as
rounding lengthens by 2^-24 or 2^-11."""


@dataclass(slots=True, repr=False)
class Ticket:
    """Work that a client has in hand; spent exactly once.

    Attributes:
        work: as it was sent; sent again, to the letter, when the client asks again.
        sent: the weights in it, as the validator knows them; shared with other tickets.
        steps: how many the update is the sum of that answers it, once there is one.
    """

    work: Work
    sent: np.ndarray
    steps: int = 1


class Brokerage:
    """One model.

    Args:
        secret: known to this model's broker alone, the same after a restart.
        random: gives so many fresh random bytes.
        verify: the check of a puzzle's solution (lock, solution, difficulty); another one than
            :func:`accord.puzzle.verify` is for worlds in which nobody really hashes.

    Attributes:
        phase: where in its life the model is.
        stirred: counts the times that waiting messages became worth answering again.
    """

    def __init__(
        self, secret: bytes, random: Callable[[int], bytes], verify: Verify = puzzle.verify
    ) -> None:
        self._secret = secret
        self._random = random
        self._verify = verify
        self.phase: Phase = "waiting"
        self.stirred = 0
        self._since = 0.0
        self._trained = 0.0  # seconds, before this phase began
        self._paused = 0.0  # seconds, before this phase began and since the last update
        self._changed_model = False
        self._changed: set[bytes] = set()
        self._forgotten: set[bytes] = set()

    # -- the task ------------------------------------------------------------------------------

    def accept(
        self, signed: SignedTask, rows: np.ndarray, labels: np.ndarray, now: float
    ) -> None:
        """Take a task and its validation set; gathering begins.

        Args:
            signed: the task.
            rows: (n, d), as the task's schema standardises them; labels: (n,). Both are empty for
                no validation set. That it is the one to which the task commits was checked where
                its bytes were at hand (:func:`broker.validator.committed`).

        Raises:
            PeerProblem: ``TASK_REFUSED`` when the validation set does not fit the task
                (:func:`broker.validator.make_validator`); ``BAD_SIGNATURE``, ``MALFORMED``.
        """
        if self.phase != "waiting":
            raise RuntimeError("a brokerage accepts one task")
        task = open_task(signed, "the desk")
        validator = make_validator(task, rows, labels)
        if validator is None:
            raise PeerProblem(TASK_REFUSED)
        self.signed, self.task = signed, task
        self._id = task_id(signed)
        judging = task.validation
        self._validator = validator
        self._registry = Registry(task.clients, judging.evict, judging.test != "none")
        self._admission = Admission(task.puzzles, task.clients.maximum, judging.evict,
                                    self._secret, self._random, self._verify)
        self._together = task.training.mode == "synchronous"
        self._aggregator = Aggregator(task.dimension, task.training.aggregate)
        self._tickets: dict[bytes, Ticket] = {}
        self._wire: tuple[np.ndarray, bytes] | None = None  # weights, as they travel
        self._spent: dict[bytes, bytes] = {}
        self._round_closes: float | None = None
        self._began: float | None = None
        self._error: float | None = None
        self._best_error: float | None = None
        self._best_loss: float | None = None
        self._best_weights = self._aggregator.weights
        self._improved = 0
        self._measure_every = max(1, -(-rows.size // MEASURE_CELLS))
        self._unmeasured: list[tuple[int, np.ndarray]] = []
        rules = task.training
        # The end of training may hang on each measurement.
        asked = rules.target_error is not None or rules.patience is not None
        self._measure_together = 1 if asked else min(
            _MEASURED_AT_ONCE, max(1, MEASURE_CELLS // max(task.dimension, len(labels), 1)))
        self._dimension = task.dimension
        self._ended = ""
        self._enter("gathering", now)

    # -- what anyone may ask -------------------------------------------------------------------

    def puzzle(self, now: float) -> AdmissionPuzzle:
        """The door.

        Raises:
            PeerProblem: ``ENDED``.
        """
        self._tick_if_open(now)
        return self._admission.door(now)

    def join(self, join: Join, now: float) -> Welcome:
        """Admit whoever solved the puzzle; the same Join gives the same Welcome.

        Raises:
            PeerProblem: ``NOT_SOLVED``, ``K_TOO_LARGE``, ``FULL``, ``ENDED``.
        """
        self._tick_if_open(now)
        token = self._admission.open(join.lock, join.solution)
        name = session_name(token)
        if name not in self._registry:
            self._admission.check_age(join.lock, now)
        if self._registry.admit(name, join.min_clients, now, self._training_time(now)):
            self._changed.add(name)
            # Not written for this alone, as the weights would be with it; with the next update.
            self._admission.joined(now)
            for other in self._registry.surplus(now):
                self._forget(other)
        self._weigh(now)
        return Welcome(token)

    def _renew(self, name: bytes) -> None:
        """One that was away and asks for work gets it from today's weights."""
        if name not in self._aggregator.round:
            self._tickets.pop(name, None)

    def _leave(self, name: bytes, now: float) -> None:
        self._registry.leave(name)
        self._aggregator.round.pop(name, None)
        self._weigh(now)

    def _forget(self, name: bytes) -> None:
        """Forget a session everywhere."""
        self._registry.forget(name)
        self._forgotten.add(name)
        self._changed.discard(name)
        self._validator.forget(name)
        # What was held against it is held against all together from now on.
        self._changed_model = True
        for where in (self._tickets, self._spent, self._aggregator.round):
            where.pop(name, None)

    def _tick_if_open(self, now: float) -> None:
        self.tick(now)
        if self.phase in ("published", "gone"):
            raise PeerProblem(ENDED)

    def knows(self, token: bytes) -> bool:
        """Whether this is the token of a session."""
        return session_name(token) in self._registry

    def present(self, token: bytes, now: float) -> bool:
        """Whether this session, which there must be, has a place and was heard of lately enough."""
        return self._registry.present(session_name(token), now)

    def status(self, now: float) -> Status:
        """What anyone may know."""
        self._measure()
        known = self._registry
        have, need = known.standing(now)
        return Status(
            phase=self.phase, title=self.task.title, task=self._id, clients=have, needed=need,
            updates=self._aggregator.updates, max_updates=self.task.training.max_updates,
            error=self._error, best_error=self._best_error, baseline=self._validator.baseline,
            judged=known.judged, struck=known.struck, strikes=known.strikes,
            seconds=max(0.0, now - self._since), left=self._left(now), ended=self._ended,
        )

    # -- the conversation ----------------------------------------------------------------------

    def receive(
        self, token: bytes, message: FromClient, now: float, repeated: bool = False
    ) -> Turn:
        """Answer a client's message.

        Args:
            token: whose.
            message: what it said.
            now: the time.
            repeated: it was said earlier and is answered once more; that it was said is no sign
                of life any longer.

        The order is: known session, not put out, ticket its own and unspent, puzzle solved, no
        more steps than allowed, delta finite, of the right length and norm, enough clients for
        everyone's k; then the update is judged, and applied as the verdict says, at once or when
        its round closes.

        Raises:
            PeerProblem: ``UNKNOWN_CLIENT``. Every other refusal is in the Turn.
        """
        name = session_name(token)
        if name not in self._registry:
            raise PeerProblem(UNKNOWN_CLIENT)
        self.tick(now)
        if self._registry.out(name):
            again = isinstance(message, Push) and message.ticket == self._spent.get(name)
            return self._turn(name, self._spent[name] if again else b"", now)
        if isinstance(message, Leave):
            if not repeated:
                self._leave(name, now)
            return self._turn(name, b"", now)
        if not repeated:
            away = not self._registry.present(name, now)
            try:
                self._registry.heard(name, now, self._training_time(now))
            except PeerProblem as problem:
                return self._say(name, b"", refused(problem))
            if away and isinstance(message, Pull):
                self._renew(name)
            self._weigh(now)
        if isinstance(message, Pull):
            return self._turn(name, b"", now)
        return self._push(name, message, now)

    def _push(self, name: bytes, push: Push, now: float) -> Turn:
        if push.ticket == self._spent.get(name):
            return self._turn(name, push.ticket, now)
        if self.phase in ("published", "gone"):
            return self._say(name, b"", End())
        ticket = self._tickets.get(name)
        if ticket is None or ticket.work.ticket != push.ticket:
            return self._say(name, b"", refused(PeerProblem(STALE_TICKET)))
        if not self._verify(ticket.work.lock, push.solution, ticket.work.difficulty):
            return self._say(name, b"", refused(PeerProblem(NOT_SOLVED)))
        delta = self._delta(push)
        if delta is None:
            del self._tickets[name]
            self._aggregator.round.pop(name, None)
            self._strike(name, now)
            self._weigh(now)
            return self._say(
                name, b"", refused(PeerProblem(BAD_DELTA, dimension=self._dimension)))
        if self.phase != "training" or not self._registry.present(name, now):
            # Whoever fell silent while its message was kept does not count, and nor does its k:
            # it is asked to say it again, and then both do.
            return self._say(name, b"", self._too_few(now))
        if self._together:
            return self._hold(name, delta, push.steps, now)
        ticket.steps = push.steps
        self._step(name, ticket, delta, now)
        return self._turn(name, push.ticket, now)

    def _delta(self, push: Push) -> np.ndarray | None:
        """The update, or None where it is not what the task allows."""
        rules = self.task.training
        if push.steps > rules.local_steps:
            return None
        delta = vector_from_wire(push.delta, self._dimension, rules.precision)
        bound = push.steps * rules.max_norm * (1 + _NORM_SLACK[rules.precision])
        return None if delta is None or math.sqrt(float(delta @ delta)) > bound else delta

    def _weights(self, sent: np.ndarray) -> bytes:
        """Weights as they travel: made once for an object, which nobody changes."""
        if self._wire is None or self._wire[0] is not sent:
            self._wire = sent, vector_to_wire(sent, self.task.training.precision)
        return self._wire[1]

    def _say(self, name: bytes, receipt: bytes, what: Work | Wait | End | Refused) -> Turn:
        known = self._registry
        return Turn(receipt, what, known.members[name].strikes, known.struck, known.judged)

    def _turn(self, name: bytes, receipt: bytes, now: float) -> Turn:
        """What a client does next: work, wait, or stop."""
        if self._registry.out(name):
            strikes = self._registry.members[name].strikes
            return self._say(name, receipt, refused(PeerProblem(EVICTED, strikes=strikes)))
        if self.phase in ("published", "gone"):
            return self._say(name, receipt, End())
        if self.phase != "training" or not self._registry.present(name, now):
            return self._say(name, receipt, self._too_few(now))
        if name in self._aggregator.round:
            return self._say(name, receipt, self._round_open(now))
        # A repeated message must be harmless: a second ticket would make the first one stale, and
        # waste the noise that may already have been paid for.
        if name not in self._tickets:
            self._tickets[name] = self._ticket(name, now)
        return self._say(name, receipt, self._tickets[name].work)

    def _ticket(self, name: bytes, now: float) -> Ticket:
        if len(self._tickets) >= 2 * self.task.clients.maximum:
            # Sessions that come, ask and go must not fill the memory with weights.
            for other in [n for n in self._tickets if not self._registry.present(n, now)]:
                del self._tickets[other]
        self._open_round(now)
        sent = self._validator.ticket_weights(self._aggregator.weights)
        work = Work(
            ticket=self._random(TICKET_BYTES),
            weights=self._weights(sent),
            lock=self._admission.lock(),
            difficulty=self._admission.difficulty(self._registry.members[name].strikes),
        )
        return Ticket(work, sent)

    def _wait(self, why: str, have: int, need: int) -> Wait:
        # A third of the silence that is allowed: two of a client's signs may be lost.
        return Wait(why, have, need, min(self.task.clients.silence / 3, 10.0))

    def _too_few(self, now: float) -> Wait:
        return self._wait(TOO_FEW_CLIENTS.code, *self._registry.standing(now))

    def _round_open(self, now: float) -> Wait:
        active, _ = self._registry.standing(now)
        return self._wait(ROUND_OPEN.code, min(len(self._aggregator.round), active), active)

    # -- steps, rounds, ends -------------------------------------------------------------------

    def _open_round(self, now: float) -> None:
        if self._validator.round_due:
            answers = None if self._together else self._registry.standing(now)[0]
            chance = int.from_bytes(self._random(7), "big") / (1 << 56)
            self._validator.begin_round(self._aggregator.weights, answers, chance)

    def _step(self, name: bytes, ticket: Ticket, delta: np.ndarray, now: float) -> None:
        """Judge an update, and apply what the verdict leaves of it."""
        self._open_round(now)
        verdict = self._judge(name, ticket, delta, now)
        if verdict.apply is not None:
            self._aggregator.apply(verdict.apply)
        self._follow(verdict, now)
        self._after_step(verdict.apply is not None, now)

    def _judge(self, name: bytes, ticket: Ticket, delta: np.ndarray, now: float) -> Verdict:
        self._spent[name] = ticket.work.ticket
        self._tickets.pop(name, None)
        self._changed.add(name)
        self._registry.accepted(name, self._training_time(now))
        return self._validator.judge(
            name, ticket.sent, self._aggregator.weights, delta, ticket.steps)

    def _hold(self, name: bytes, delta: np.ndarray, steps: int, now: float) -> Turn:
        """Keep an update until its round closes; it is acknowledged only then."""
        ticket = self._tickets[name]
        if name not in self._aggregator.round:
            ticket.steps = steps
        if not self._aggregator.round:
            self._round_closes = now + self.task.training.round_seconds
        self._aggregator.hold(name, delta)
        self._registry.works(name, self._training_time(now))
        self._changed.add(name)
        self._close_round(now)
        if self._spent.get(name) == ticket.work.ticket:
            return self._turn(name, ticket.work.ticket, now)
        # Asked in this way round: nothing is acknowledged that was not judged, whatever else became
        # of it.
        return self._say(name, b"", self._round_open(now))

    def _close_round(self, now: float) -> None:
        held = self._aggregator.round
        if not held or self._round_closes is None:
            return
        active = set(self._registry.active(now))
        # Whoever has gone since has taken its k, and so its update, along.
        for name in held.keys() - active:
            del held[name]
        if not held:
            return
        if now < self._round_closes and not held.keys() >= active:
            return
        verdicts = [self._judge(name, self._tickets[name], delta, now)
                    for name, delta in held.items()]
        stepped = self._aggregator.close_round([v.apply for v in verdicts if v.apply is not None])
        for verdict in (*verdicts, self._validator.close_round()):
            self._follow(verdict, now)
        # Whoever did not answer in time holds a ticket for weights that are gone.
        self._tickets.clear()
        self._round_closes = None
        self.stirred += 1
        self._after_step(stepped, now)

    def _after_step(self, stepped: bool, now: float) -> None:
        """Updates were judged, and perhaps a step was taken: end, or go on."""
        self._changed_model = True
        self._paused = 0.0
        if stepped:
            self._end_by_step(now)
        # A strike may have put somebody out.
        self._weigh(now)

    def _end_by_step(self, now: float) -> None:
        updates = self._aggregator.updates
        measured = self._validator.measures and updates % self._measure_every == 0
        if measured:
            self._unmeasured.append((updates, self._aggregator.weights))
            if len(self._unmeasured) >= self._measure_together:
                self._measure()
        rules = self.task.training
        if updates >= rules.max_updates:
            self._end("max-updates", now)
        elif rules.target_error is not None and (
            self._error is not None and self._error <= rules.target_error
        ):
            self._end("target-error", now)
        elif measured and rules.patience is not None and updates - self._improved >= rules.patience:
            self._end("patience", now)

    def _measure_now(self) -> None:
        """Measure the model as it is, after those that wait for it."""
        self._unmeasured.append((self._aggregator.updates, self._aggregator.weights))
        self._measure()

    def _measure(self) -> None:
        """Measure all models that wait for it, as if each had been at its time."""
        if not self._unmeasured:
            return
        waiting, self._unmeasured = self._unmeasured, []
        measured = self._validator.measure(np.vstack([weights for _, weights in waiting]))
        for (updates, weights), error, loss in zip(waiting, *measured, strict=True):
            if self._best_loss is None or loss < self._best_loss:
                self._best_loss, self._improved, self._best_weights = loss, updates, weights
            self._error = error
            best = self._best_error
            self._best_error = error if best is None else min(error, best)

    def _follow(self, verdict: Verdict, now: float) -> None:
        """Do what a verdict says besides applying its update."""
        if verdict.mend is not None:
            self._aggregator.mend(verdict.mend)
            self._measure_now()
        self._changed.update(verdict.touched)
        for name in verdict.struck:
            self._strike(name, now)

    def _strike(self, name: bytes, now: float) -> None:
        """Give a strike; whoever is put out by it counts no more, and its work is void."""
        self._admission.struck(self._registry.strike(name), now)
        self._changed.add(name)
        self._changed_model = True
        if self._registry.out(name):
            self._tickets.pop(name, None)
            self._aggregator.round.pop(name, None)

    def _end(self, why: str, now: float) -> None:
        self._measure()
        if self._error is None and self._validator.measures:
            self._measure_now()
        self._ended = why
        self._aggregator.round.clear()
        self._tickets.clear()
        self._enter("published", now)

    @property
    def outcome(self) -> tuple[np.ndarray, int, str]:
        """What is published: the weights with the lowest validation loss, or the last ones where
        there is no validation set; the number of updates that were applied; why training ended."""
        self._measure()
        best = self._best_weights if self._validator.measures else self._aggregator.weights
        return best, self._aggregator.updates, self._ended

    # -- phases --------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Let time pass: silences, deadlines of rounds, the end of training."""
        if self.phase not in ("gathering", "training", "paused"):
            return
        self._weigh(now)
        if self._left(now) <= 0:
            stood = self._standstill(now) >= self.task.training.max_pause
            self._end("max-pause" if stood else "deadline", now)
        elif self.phase == "training":
            self._close_round(now)

    def _left(self, now: float) -> float:
        """Seconds until training ends at the latest, as things stand; 0 when it has ended."""
        if self.phase in ("published", "gone"):
            return 0.0
        rules = self.task.training
        # Nobody may ever come: gathering has the same deadline, from its own beginning.
        began = self._since if self._began is None else self._began
        ends = began + rules.deadline
        if self.phase == "paused":
            ends = min(ends, now + rules.max_pause - self._standstill(now))
        return max(0.0, ends - now)

    def _weigh(self, now: float) -> None:
        """Train while there are enough clients for everyone's k, and not otherwise."""
        if self.phase in ("gathering", "paused"):
            if self._registry.enough(now):
                if self._began is None:
                    self._began = now
                self._enter("training", now)
        elif self.phase == "training" and not self._registry.enough(now):
            self._enter("paused", now)

    def vanish(self, now: float) -> None:
        """The published model has been offered for long enough."""
        if self.phase != "published":
            raise RuntimeError("only a published model vanishes")
        self._enter("gone", now)

    def _standstill(self, now: float) -> float:
        """Seconds of pauses since the last update: a moment of training in between, in which there
        is none, ends no pause."""
        return self._paused + (now - self._since if self.phase == "paused" else 0.0)

    def _training_time(self, now: float) -> float:
        """Seconds for which work could be done."""
        return self._trained + (now - self._since if self.phase == "training" else 0.0)

    def _enter(self, phase: Phase, now: float) -> None:
        self._trained, self._paused = self._training_time(now), self._standstill(now)
        self.phase = phase
        if phase == "published":
            self._validator.retire()
        self._since = now
        self._changed_model = True
        self.stirred += 1

    # -- what must outlive a crash -------------------------------------------------------------

    def take_changes(self, now: float) -> Changes:
        """What has changed since this was last called, as rows to be written in one go."""
        model = self._model_row(now) if self._changed_model else None
        sessions = [self._session_row(name) for name in self._changed if name in self._registry]
        forgotten = list(self._forgotten)
        self._changed_model, self._changed, self._forgotten = False, set(), set()
        return Changes(model, sessions, forgotten)

    def lose_changes(self, lost: Changes) -> None:
        """What was taken could not be written: the next call gives it again."""
        self._changed_model = True
        self._changed.update(self._registry.members)
        self._forgotten.update(lost.forgotten)

    def _model_row(self, now: float) -> ModelRow:
        self._measure()
        known = self._registry
        return ModelRow(
            phase=self.phase, weights=self._aggregator.weights, updates=self._aggregator.updates,
            best_weights=self.outcome[0], best_loss=self._best_loss, best_error=self._best_error,
            improved=self._improved,
            judged=known.judged, struck=known.struck, strikes=known.strikes,
            heat=self._admission.heat(now), judging=self._validator.state(),
            trained=self._training_time(now),
            seconds=None if self._began is None else now - self._began, ended=self._ended,
        )

    def _session_row(self, name: bytes) -> SessionRow:
        member = self._registry.members[name]
        return SessionRow(
            name, member.min_clients, member.updates, member.strikes, member.worked,
            evidence=self._validator.evidence(name), spent=self._spent.get(name, b""))

    def restore(self, model: ModelRow, sessions: list[SessionRow], now: float) -> None:
        """Go on from what was written, after :meth:`accept` of the same task.

        Nobody counts as active until heard of; tickets in hand are void, spent ones stay spent.
        """
        self._aggregator.weights = model.weights
        self._aggregator.updates = model.updates
        self._best_weights, self._best_loss = model.best_weights, model.best_loss
        self._best_error, self._improved = model.best_error, model.improved
        known = self._registry
        known.judged, known.struck, known.strikes = model.judged, model.struck, model.strikes
        self._admission.set_heat(model.heat, now)
        self._validator.restore_state(model.judging)
        self._ended, self._trained = model.ended, model.trained
        self._began = None if model.seconds is None else now - model.seconds
        if model.updates and self._validator.measures:
            (self._error,), _ = self._validator.measure(model.weights[None, :])
        for row in sessions:
            known.members[row.name] = Member(
                row.min_clients, NEVER, row.updates, row.strikes, row.worked)
            self._validator.restore(row.name, row.evidence)
            if row.spent:
                self._spent[row.name] = row.spent
        if model.phase in ("published", "gone"):
            self._enter("published", now)
        elif model.phase != "gathering":
            self._enter("paused", now)
        self._changed_model, self._changed = False, set()


def secret_of(seed: bytes) -> bytes:
    """The brokerage's secret, derived from the onion service's seed (32 bytes)."""
    return hashlib.sha256(b"tormentor brokerage\x00" + seed).digest()
