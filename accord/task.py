"""What a curator defines: the task, its canonical bytes, its id, its signature.

A task is public: everyone who joins reads it. It is signed once, by the curator's Ed25519 key
(RFC 8032), over its exact canonical bytes; those bytes travel and are what is checked, so that no
two readers can understand one signature differently.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct, field

from accord.messages import (
    FLOAT16_MOST,
    MAX_CLIENTS,
    MAX_DIMENSION,
    MAX_STEPS,
    TASK_LIMIT,
    Precision,
    SignedTask,
)
from accord.objective import OBJECTIVES
from accord.problems import BAD_SIGNATURE, MALFORMED, TOO_LARGE, PeerProblem
from accord.schema import Schema

_DOMAIN: Final = b"tormentor task 1\x00"

Positive = Annotated[float, Meta(gt=0.0, le=1e9)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Schedule = Literal["constant", "1/t", "1/sqrt(t)"]


class _Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"'{name}' must be finite")


class Training(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the model is trained.

    Attributes:
        mode: ``asynchronous``: each update is applied as it comes; ``synchronous``: rounds, the
            mean of all active clients' updates.
        aggregate: what a synchronous round makes of its updates: their ``mean``, or, where the
            curator has no validation set to judge them by, a rule that a minority of any kind
            cannot steer far: coordinate-wise ``median``, ``trimmed-mean``, or ``krum``.
        step: the first step's length, eta_0.
        schedule: how a client's step shrinks with the number t of its own updates.
        regularisation: lambda of the L2 penalty, added by the client after the noise.
        clip: C, the bound on each example's gradient. The noise is scaled to it, so it decides
            what is learnt and never what is revealed.
        max_norm: largest length of one step; clients shrink each of theirs to it. An update that is
            longer than this times its number of steps is refused.
        local_steps: most private steps that a client may make on its rows for one update, each
            from where the one before has led it. One contact is then paid for once for all of
            them: a way through Tor takes as long as thousands of steps. How many it makes is the
            client's own choice, and is told with the update. One update then weighs as much as so
            many, for good or ill, before anybody has judged it; and steps that many clients make
            from the same weights, each without the others', go too far together where ``step``
            is long.
        precision: how weights and updates travel. ``float16`` halves the bytes, and keeps three
            decimal digits of each number and nothing below 6e-8.
        max_updates: training ends after so many updates (in rounds: so many rounds),
        target_error: or when the error on the validation set is at most this,
        patience: or when so many updates brought no lower validation loss,
        deadline: or so many seconds after it first began (or the task came, if it never did).
        max_pause: or when it had to pause for so many seconds, because clients have gone.
        round_seconds: a synchronous round waits so long for silent clients.
        reply_delay: the broker holds each message of an asynchronous training back for a random
            time, uniform from 0 to so many seconds, before it takes and answers it; 0 for not at
            all (paper 7.4 has 0.5). So the order in which updates are applied, and the moment at
            which anyone sees the weights, are not for anyone to choose.
    """

    mode: Literal["asynchronous", "synchronous"] = "asynchronous"
    aggregate: Literal["mean", "median", "trimmed-mean", "krum"] = "mean"
    step: Positive = 1.0
    schedule: Schedule = "1/sqrt(t)"
    regularisation: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    clip: Positive = 0.5
    max_norm: Positive = 10.0
    local_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] = 1
    precision: Precision = "float32"
    max_updates: Annotated[int, Meta(ge=1, le=100_000_000)] = 1000
    target_error: Share | None = None
    patience: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    deadline: Positive = 86_400.0
    max_pause: Positive = 900.0
    round_seconds: Positive = 30.0
    reply_delay: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregate != "mean" and self.mode != "synchronous":
            raise ValueError(f"'aggregate' = '{self.aggregate}' needs 'mode' = 'synchronous'")
        if self.reply_delay and self.mode == "synchronous":
            raise ValueError("'reply_delay' needs 'mode' = 'asynchronous': within a round no order "
                             "of updates shows")
        if self.precision == "float16" and self.max_norm * self.local_steps > FLOAT16_MOST:
            raise ValueError("'max_norm' times 'local_steps' is above "
                             f"{FLOAT16_MOST:g}, the largest number of 'precision' = 'float16'")


class Clients(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may take part.

    Attributes:
        minimum: training begins with so many active clients, and pauses below.
        maximum: most clients at a time.
        silence: a client not heard of for so many seconds is not active.
    """

    minimum: Annotated[int, Meta(ge=1, le=MAX_CLIENTS)] = 2
    maximum: Annotated[int, Meta(ge=1, le=MAX_CLIENTS)] = 100
    silence: Positive = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minimum > self.maximum:
            raise ValueError("'minimum' of clients is above 'maximum'")


class Puzzles(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Proof of work: trailing hexadecimal zeros, each 16 times harder.

    Attributes:
        admission: at the door.
        update: for every update, before any strike.
    """

    admission: Annotated[int, Meta(ge=0, le=8)] = 4
    update: Annotated[int, Meta(ge=0, le=8)] = 2


class Validation(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How updates are judged on the curator's validation set.

    Attributes:
        test: ``sequential``: every update is scored by its projection on gradients of the
            validation loss, and evidence adds up per client; ``rounds``: snapshot rounds and RONI
            (paper 5.5, Algorithm 2); ``none``.
        false_alarm: most chance, over the whole training, that the sequential test strikes a
            client whose updates do not oppose the validation set.
        screen: what happens to a single update: ``length``: what is longer in it than any mean of
            clipped gradients, or twice as long as the quietest client's, is cut; ``direction``: the
            same, and an update that points uphill on the validation loss is ignored (then the
            model learns little more than the validation set knows); ``none``: applied as it is.
        evict: a client with so many strikes is put out; 0 for never.
        rate: of ``rounds``: the probability that a round is judged.
        metric: of ``rounds``: what influence is measured in: ``error`` (share misclassified) or
            ``loss``.
        threshold: of ``rounds``: a client whose influences add up to less than minus this is
            given a strike.
        digest: commitment to the validation set (:func:`commitment`), hex; empty for none. The
            curator's command fills it in when it signs the task.
    """

    test: Literal["sequential", "rounds", "none"] = "sequential"
    false_alarm: Annotated[float, Meta(gt=0.0, le=0.1)] = 0.001
    screen: Literal["length", "direction", "none"] = "length"
    evict: Annotated[int, Meta(ge=0, le=64)] = 3
    rate: Share = 0.1
    metric: Literal["error", "loss"] = "error"
    threshold: Positive = 0.02
    digest: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""


class Task(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A learning task, as its curator states it.

    Attributes:
        version: of this format.
        title: one line.
        description: what the model is for, for the people who are asked to join.
        objective: a key of :data:`accord.objective.OBJECTIVES`.
    """

    version: Literal[1] = 1
    title: Annotated[str, Meta(min_length=1, max_length=200)]
    description: Annotated[str, Meta(max_length=5000)] = ""
    objective: str = "logistic"
    data: Schema
    training: Training = field(default_factory=Training)
    clients: Clients = field(default_factory=Clients)
    puzzles: Puzzles = field(default_factory=Puzzles)
    validation: Validation = field(default_factory=Validation)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"'objective' must be one of: {', '.join(OBJECTIVES)}")
        lines = [self.title, self.data.positive]
        for column in self.data.fields:
            lines += [column.name, column.description, *(column.constraints.enum or ())]
        if not all(line.isprintable() for line in lines):
            raise ValueError("titles, names, values and column descriptions are one line each")
        if self.training.reply_delay > self.clients.silence / 2:
            # A message that is held back is a sign of life only when it is taken.
            raise ValueError("'reply_delay' of training is above half of 'silence' of clients")
        if self.data.dimension > MAX_DIMENSION:
            raise ValueError(f"the data has more than {MAX_DIMENSION} features")

    @property
    def dimension(self) -> int:
        """Length of the weights."""
        return self.data.dimension


def commitment(salt: bytes, rows: bytes, labels: bytes) -> str:
    """The validation set's digest in a task: later, whoever is shown salt and set can check that
    it is the one which judged, and nobody can guess the set from it.

    Args:
        salt: 16 fresh random bytes, told to the broker only.
        rows: float32 little endian, row after row. labels: one byte each, 0 or 1.

    Returns:
        64 hexadecimal digits.
    """
    return hmac.digest(salt, b"tormentor validation\x00" + hashlib.sha256(rows).digest()
                       + hashlib.sha256(labels).digest(), "sha256").hex()


def needs_validation(task: Task) -> list[str]:
    """The settings of a task that mean nothing without a validation set, as places in its file.

    Empty where the task can do without one: nothing is tested or screened on it, training does
    not end by it, and a rule that a minority cannot steer takes its place.
    """
    training, validation = task.training, task.validation
    places = {
        "training.aggregate": training.aggregate == "mean",
        "training.target_error": training.target_error is not None,
        "training.patience": training.patience is not None,
        "validation.test": validation.test != "none",
        "validation.screen": validation.screen == "direction",
    }
    return [place for place, needed in places.items() if needed]


def step_size(training: Training, t: int) -> float:
    """Length eta_t of a client's t-th step, t = 1, 2, ..."""
    if training.schedule == "constant":
        return training.step
    return training.step / (t if training.schedule == "1/t" else math.sqrt(t))


def steps_size(training: Training, first: int, count: int) -> float:
    """Length of a client's steps from number ``first`` on, ``count`` of them (at least 1), one
    after the other."""
    if count == 1:
        return step_size(training, first)
    if training.schedule == "constant":
        return count * training.step
    t = np.arange(first, first + count, dtype=np.float64)
    return training.step * float((1.0 / (t if training.schedule == "1/t" else np.sqrt(t))).sum())


def canonical(task: Task) -> bytes:
    """The one byte string that stands for a task (JSON, keys sorted).

    Decoded and encoded once more, so that a 1 given where 1.0 is meant makes no other bytes.
    """
    once = msgspec.json.decode(msgspec.json.encode(task), type=Task)
    return msgspec.json.encode(once, order="sorted")


def signed_bytes(body: bytes) -> bytes:
    """What is signed for a task with these canonical bytes; no other signature can be it."""
    return _DOMAIN + body


def task_id(signed: SignedTask) -> str:
    """64 hexadecimal digits that name this task by this curator."""
    return hashlib.sha256(signed_bytes(signed.curator + signed.body)).hexdigest()


def sign(task: Task, key: Ed25519PrivateKey) -> SignedTask:
    """Sign a task with its curator's key."""
    body = canonical(task)
    return SignedTask(
        body=body,
        curator=key.public_key().public_bytes_raw(),
        signature=key.sign(signed_bytes(body)),
    )


def open_task(signed: SignedTask, address: str) -> Task:
    """Check a signed task and read it.

    Args:
        signed: as it came.
        address: where from, for the sentence of the problem.

    Raises:
        PeerProblem: ``BAD_SIGNATURE``, ``TOO_LARGE``, or ``MALFORMED`` for a body that is not the
            canonical form of a task this version understands, or that names no validation set
            where it needs one.
    """
    if len(signed.body) > TASK_LIMIT:
        raise PeerProblem(TOO_LARGE, limit=TASK_LIMIT)
    try:
        key = Ed25519PublicKey.from_public_bytes(signed.curator)
        key.verify(signed.signature, signed_bytes(signed.body))
    except (InvalidSignature, ValueError):
        raise PeerProblem(BAD_SIGNATURE, address=address) from None
    try:
        task = msgspec.json.decode(signed.body, type=Task)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise PeerProblem(MALFORMED) from None
    if canonical(task) != signed.body:
        raise PeerProblem(MALFORMED)
    # Not a rule of Task itself: a curator's file has no digest before the set has been read.
    if not task.validation.digest and needs_validation(task):
        raise PeerProblem(MALFORMED)
    return task
