"""The wire: what a broker, a curator and a client say to each other.

Everything is msgpack of the frozen types below, decoded with a size limit that is checked first,
with every byte string, number and list bounded by its type. :func:`decode` raises one thing only,
:class:`~accord.problems.PeerProblem`.

The conversation with one model, at ``http://ONION``::

    GET  /task       SignedTask           what is being trained, signed by its curator
    GET  /status     Status               phase, clients, updates, errors
    GET  /puzzle     AdmissionPuzzle      the door
    POST /join       Join -> Welcome      a session token; the same Join gets the same Welcome
    GET  /train      a WebSocket, one binary message a frame, one kept for the whole training:
         client: Hello                    who it is (its session token), once, first
         client: Pull | Push | Leave      one at a time
         broker: Turn                     what became of it, and what is next
    GET  /model      the published file   (accord.model_file)

and with a desk::

    POST /curate     Curate -> Curated    a task and its validation set; the model's own address

A :class:`Turn` whose ``next`` is :class:`Wait` means that the message is kept: the broker answers
it again, with another Turn, as soon as there is more to say. The client may repeat the message
(after ``Wait.seconds`` it should: that is how it is known to be alive); repeating is harmless, as
a ticket is spent once and its receipt is given again.

A refusal, over HTTP or in a Turn, is :class:`Refused`: a code of :mod:`accord.problems` and whole
numbers. No text travels from a broker to a person's screen but the task that a curator signed.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, overload

import msgspec
import numpy as np
from msgspec import Meta, Struct

from accord.problems import MALFORMED, TOO_LARGE, PeerProblem, Problem, from_wire

TOKEN_BYTES: Final = 32
TICKET_BYTES: Final = 16
LOCK_BYTES: Final = 64
SALT_BYTES: Final = 16
MAX_CLIENTS: Final = 100_000
MAX_DIFFICULTY: Final = 64
MAX_DIMENSION: Final = 1_000_000
MAX_STEPS: Final = 1_000
"""Most steps that one update can be the sum of, whatever the task."""
FLOAT16_MOST: Final = 65_504.0
"""Largest number of float16."""
SMALL_LIMIT: Final = 4_096
"""Largest message without weights, in bytes: the longest of them has under 300."""
TASK_LIMIT: Final = 1 << 20
"""Largest signed task: 10,000 columns with names, ranges and meanings fit."""
MAX_INVITED: Final = 300
"""Most clients that can be invited to a model. Each takes 90 bytes of its service's descriptor,
which grows in steps of 13.5 kB and may have 50,000 bytes. Tried on tor 0.4.9: with 400 it is
published, with 416 tor makes one that is too big, says 250 OK all the same, and nobody ever finds
the service; what is left is for descriptors that get longer by themselves (more introduction
points, a puzzle's parameters)."""
VALIDATION_LIMIT: Final = 64 << 20
"""Largest upload to a desk: 100,000 validation rows of 160 numbers fit."""

Token = Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
TicketId = Annotated[bytes, Meta(min_length=TICKET_BYTES, max_length=TICKET_BYTES)]
Receipt = Annotated[bytes, Meta(max_length=TICKET_BYTES)]
Lock = Annotated[bytes, Meta(min_length=1, max_length=LOCK_BYTES)]
Solution = Annotated[bytes, Meta(max_length=32)]
Difficulty = Annotated[int, Meta(ge=0, le=MAX_DIFFICULTY)]
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
ClientCount = Annotated[int, Meta(ge=0, le=MAX_CLIENTS)]
Code = Annotated[str, Meta(min_length=1, max_length=40)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
InvitedKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
Vector = Annotated[bytes, Meta(max_length=4 * MAX_DIMENSION)]
"""float32, or float16 where the task says so, little endian, in order."""
Steps = Annotated[int, Meta(ge=1, le=MAX_STEPS)]
Precision = Literal["float32", "float16"]
OnionText = Annotated[str, Meta(min_length=62, max_length=62)]

Phase = Literal["waiting", "gathering", "training", "paused", "published", "gone"]


class _Untold(Struct, frozen=True, forbid_unknown_fields=True):
    """A message that is a secret of two: whatever prints it by mistake, a log or asyncio's debug
    mode, must not tell what is in it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class SignedTask(Struct, frozen=True, forbid_unknown_fields=True):
    """A task as its curator signed it: exact bytes, so that nothing is re-encoded to check them.

    Attributes:
        body: canonical bytes of an :class:`accord.task.Task`.
        curator: the curator's Ed25519 public key (32 bytes).
        signature: over :func:`accord.task.signed_bytes` of the body (64 bytes).
    """

    body: Annotated[bytes, Meta(min_length=2, max_length=TASK_LIMIT)]
    curator: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Curate(_Untold, frozen=True, forbid_unknown_fields=True):
    """A curator's order to a desk.

    Attributes:
        task: what to train.
        rows: the validation set, standardised by the task's schema: float32, row after row.
        labels: one byte for each row, 0 or 1. Both are empty where the task has no validation set.
        salt: of the digest of these that stands in the task (:func:`accord.task.commitment`).
        invited: x25519 public keys (32 bytes each) of those who alone can reach the model's
            address (:mod:`accord.invitation`); empty for everybody.
    """

    task: SignedTask
    rows: Annotated[bytes, Meta(max_length=VALIDATION_LIMIT)]
    labels: Annotated[bytes, Meta(max_length=VALIDATION_LIMIT)]
    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    invited: Annotated[tuple[InvitedKey, ...], Meta(max_length=MAX_INVITED)] = ()


class Curated(Struct, frozen=True, forbid_unknown_fields=True):
    """A desk's answer: the onion address that is this model's own."""

    onion: OnionText


class AdmissionPuzzle(_Untold, frozen=True, forbid_unknown_fields=True):
    """What must be solved to be admitted, within ``seconds``."""

    lock: Lock
    difficulty: Difficulty
    seconds: Seconds


class Join(_Untold, frozen=True, forbid_unknown_fields=True, tag="join"):
    """A client asks to be admitted.

    Attributes:
        lock: of the admission puzzle.
        solution: of the admission puzzle.
        min_clients: k: the client trains only while so many are active. Its ε, batch size,
            budget and number of rows are nobody's business and are never sent.
    """

    lock: Lock
    solution: Solution
    min_clients: Annotated[int, Meta(ge=1, le=MAX_CLIENTS)]


class Welcome(_Untold, frozen=True, forbid_unknown_fields=True):
    """A client is admitted; the token is its secret and its only name."""

    token: Token


class Hello(_Untold, frozen=True, forbid_unknown_fields=True, tag="hello"):
    """First message of a training conversation."""

    token: Token


class Pull(Struct, frozen=True, forbid_unknown_fields=True, tag="pull"):
    """A client asks for work."""


class Push(_Untold, frozen=True, forbid_unknown_fields=True, tag="push"):
    """A client answers its ticket.

    Attributes:
        ticket: which work this is.
        solution: of that ticket's puzzle.
        delta: the noised steps together, to be added to the weights.
        steps: how many they are. Whoever makes more of them is judged on their mean, and may send
            so many times as long a delta; for whoever says too many, or too few, there is nothing
            in it. It is the client's choice, within the task's bound, and tells nothing of its
            rows.
    """

    ticket: TicketId
    solution: Solution
    delta: Vector
    steps: Steps = 1


class Leave(Struct, frozen=True, forbid_unknown_fields=True, tag="leave"):
    """A client goes; it no longer counts for anyone's k, and may come back with Hello."""


class Work(_Untold, frozen=True, forbid_unknown_fields=True, tag="work"):
    """A ticket: weights to work on and a puzzle to solve.

    Whether its answer is judged is decided without it: nothing in it, or about it, tells.
    """

    ticket: TicketId
    weights: Vector
    lock: Lock
    difficulty: Difficulty


class Wait(Struct, frozen=True, forbid_unknown_fields=True, tag="wait"):
    """Not now: too few clients for somebody's k, or a round that others have not answered.

    Attributes:
        why: code of a problem (``too-few-clients`` or ``round-open``).
        have, need: how many there are and how many it takes.
        seconds: repeat the message after so long, to be counted as alive.
    """

    why: Code
    have: ClientCount
    need: ClientCount
    seconds: Seconds


class End(Struct, frozen=True, forbid_unknown_fields=True, tag="end"):
    """Training is over: the model is published at ``/model``."""


class Refused(Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """A refusal: a code of :mod:`accord.problems` and the whole numbers of its sentence."""

    code: Code
    numbers: Annotated[dict[Annotated[str, Meta(max_length=20)], Count], Meta(max_length=4)]

    def problem(self) -> PeerProblem:
        """The exception that this refusal stands for."""
        return from_wire(self.code, self.numbers)


class Turn(_Untold, frozen=True, forbid_unknown_fields=True, tag="turn"):
    """The broker's answer to one message.

    Attributes:
        receipt: the id of the ticket that was just spent, on disk; empty when none was.
        next: what the client does now.
        strikes: how many this client was given.
        struck, judged: of all whose updates were ever judged (``judged``), how many were given a
            strike. A client that finds itself, or too many others, struck can only know that
            those and the curator's validation set do not agree; who is wrong, nobody here knows.
    """

    receipt: Receipt
    next: Work | Wait | End | Refused
    strikes: Count = 0
    struck: Count = 0
    judged: Count = 0


class Status(Struct, frozen=True, forbid_unknown_fields=True):
    """What anyone may know of a model.

    Attributes:
        phase: where in its life it is.
        title: of the task (text that a curator chose: escape it before showing it).
        task: id of the task, hex.
        clients: how many are active.
        needed: how many it takes for every active client's k and the curator's minimum.
        updates: how many were applied.
        max_updates: where training ends at the latest.
        error: misclassified share of the validation set, 0 to 1; None before training.
        best_error: the lowest so far.
        baseline: error of always giving the validation set's more frequent answer; None, like
            the errors, where there is no validation set.
        judged: how many clients' updates were ever judged, those who have gone included.
        struck: how many of them were given a strike.
        strikes: how many were given, to all clients together.
        seconds: since this phase began.
        left: seconds until training (or waiting for it) ends at the latest; 0 afterwards.
        ended: why training ended (``max-updates``, ``target-error``, ``patience``,
            ``deadline``, ``max-pause``), or empty.
    """

    phase: Phase
    title: Annotated[str, Meta(max_length=200)]
    task: Annotated[str, Meta(min_length=64, max_length=64)]
    clients: ClientCount
    needed: ClientCount
    updates: Count
    max_updates: Count
    error: Annotated[float, Meta(ge=0.0, le=1.0)] | None
    best_error: Annotated[float, Meta(ge=0.0, le=1.0)] | None
    baseline: Annotated[float, Meta(ge=0.0, le=1.0)] | None
    judged: Count
    struck: Count
    strikes: Count
    seconds: Seconds
    left: Seconds
    ended: Annotated[str, Meta(max_length=40)] = ""


FromClient = Pull | Push | Leave
M = TypeVar("M")

_WIRE: Final[dict[Precision, np.dtype[np.floating]]] = {
    "float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[object, msgspec.msgpack.Decoder[object]] = {}


def encode(message: Struct) -> bytes:
    """The bytes of one message."""
    return _encoder.encode(message)


@overload
def decode(raw: bytes, kind: type[M], limit: int = SMALL_LIMIT) -> M: ...
@overload
def decode(raw: bytes, kind: UnionType, limit: int = SMALL_LIMIT) -> Any: ...
def decode(raw: bytes, kind: Any, limit: int = SMALL_LIMIT) -> Any:
    """One message of the given type (a Struct or a union of tagged Structs).

    Args:
        raw: what came from the other side; trusted in nothing.
        kind: what it may be.
        limit: most bytes that it may have; callers stop reading there, this checks again.

    Raises:
        PeerProblem: for anything else than exactly one such message (``MALFORMED``,
            ``TOO_LARGE``), and nothing else whatever the bytes are.
    """
    if len(raw) > limit:
        raise PeerProblem(TOO_LARGE, limit=limit)
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError, ValueError):
        raise PeerProblem(MALFORMED) from None


def refused(problem: Problem) -> Refused:
    """A problem in the form that travels."""
    code, numbers = problem.wire()
    return Refused(code, numbers)


def vector_to_wire(vector: np.ndarray, precision: Precision = "float32") -> bytes:
    """Little-endian bytes of a vector of shape (d,).

    In float16, what is beyond its largest number travels as that: a model which somebody pushes so
    far would otherwise stop everybody's training.
    """
    if precision == "float16":
        vector = np.clip(vector, -FLOAT16_MOST, FLOAT16_MOST)
    return np.ascontiguousarray(vector, dtype=_WIRE[precision]).tobytes()


def vector_from_wire(
    raw: bytes, dimension: int, precision: Precision = "float32"
) -> np.ndarray | None:
    """A float64 vector of shape (dimension,), or None where it has another length, or a number
    that is not finite. What that means depends on who sent it, so the caller says so."""
    kind = _WIRE[precision]
    if len(raw) != kind.itemsize * dimension:
        return None
    numbers = np.frombuffer(raw, dtype=kind)
    # Before anything is reckoned with them: of a signalling NaN numpy would write a warning, a line
    # in somebody else's log.
    if not np.logical_and.reduce(np.isfinite(numbers)):
        return None
    return numbers.astype(np.float64)


def push_limit(dimension: int) -> int:
    """Most bytes that a client's message may have when weights have this many numbers."""
    return 4 * dimension + SMALL_LIMIT


def turn_limit(dimension: int) -> int:
    """Most bytes that a Turn may have when weights have this many numbers."""
    return 4 * dimension + SMALL_LIMIT
