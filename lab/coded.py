"""Updates that can be told apart in the sum: what was applied, and how often, read off a model.

Each client owns some coordinates of the weights. Its n-th update adds one digit, in base 4, to one
of them, and nothing else: so long as no update is applied more than three times no digit carries
into its neighbour, float32 and float64 hold every sum exactly, and the weights say of each update
how often it was applied. No counter of the broker's needs to be believed.

Beside it, each client keeps a record of its own of what it put on the wire and what was
acknowledged, written at the socket and not by the conversation, which is under trial.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import numpy as np

from accord.circuit import WebSocket
from accord.messages import FromClient, Hello, Push, Turn, decode, push_limit, turn_limit
from client.agent import Agent
from client.session import Conversation, Stop
from client.trainer import Made, Trainer

DIGITS: Final = 10
"""Digits in a coordinate: 20 bits, and the published model has 24 (float32)."""
_UNIT: Final = 4 ** (DIGITS - 1)
Mark = tuple[int, int]
"""A client's number, and the number of its update, both from 0."""


@dataclass(frozen=True, slots=True)
class Code:
    """Which digit stands for which update.

    Attributes:
        clients: how many there are.
        width: coordinates of each; the weights may have more, which stay 0.
    """

    clients: int
    width: int

    @property
    def capacity(self) -> int:
        """Updates that one client can be told apart by."""
        return self.width * DIGITS

    def delta(self, mark: Mark, dimension: int) -> np.ndarray:
        """The update with this mark, float32, shape (dimension,).

        Raises:
            ValueError: the client has no such update.
        """
        client, number = mark
        if not (0 <= client < self.clients and 0 <= number < self.capacity):
            raise ValueError(f"{mark} has no digit")
        delta = np.zeros(dimension, dtype=np.float32)
        place, digit = divmod(number, DIGITS)
        delta[client * self.width + place] = 4.0**-digit
        return delta

    def mark(self, delta: np.ndarray) -> Mark:
        """The mark of an update.

        Raises:
            ValueError: it has none.
        """
        found = list(self.marks(delta).items())
        if len(found) != 1 or found[0][1] != 1:
            raise ValueError("this is not one digit")
        return found[0][0]

    def marks(self, weights: np.ndarray) -> dict[Mark, int]:
        """How often each update was applied, for those that were.

        Raises:
            ValueError: these weights are no sum of such updates.
        """
        scaled = weights.astype(np.float64) * _UNIT
        units = scaled.astype(np.int64)
        if (units != scaled).any() or (units < 0).any() or units[self.clients * self.width :].any():
            raise ValueError("these weights are no sum of digits")
        found = {}
        for place in np.flatnonzero(units):
            client, coordinate = divmod(int(place), self.width)
            rest = int(units[place])
            for digit in range(DIGITS - 1, -1, -1):
                # The first digit's neighbour is nobody: it holds whatever is left.
                count, rest = (rest & 3, rest >> 2) if digit else (rest, 0)
                if count:
                    found[client, coordinate * DIGITS + digit] = count
        return found


# -- the client's side -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class CodedTrainer(Trainer):
    """Stands in for a trainer: it pays like one and sends a digit, whatever the rows are.

    Attributes:
        code, client: see :class:`Code`.
    """

    code: Code
    client: int

    def update(
        self, weights: np.ndarray, rng: np.random.Generator,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Made:
        """Pay for one step, and make it of the number that the ledger gives it."""
        return Made(self.code.delta((self.client, self.spend(1).start - 1), len(weights)), 1)


class Record:
    """What clients of one process have sent and heard, a line each; it survives their kill -9.

    Args:
        path: added to. What an earlier process left of its last line is ended.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(self._fd, b"\n")

    def note(self, what: str, client: int, number: int = 0) -> None:
        """Write down that this client's update was ``pushed``, or ``acknowledged``; or that the
        client ``gave-up`` or has ``published`` in hand. In the kernel's hands on return."""
        os.write(self._fd, f"{what} {client} {number} {time.monotonic():.6f}\n".encode())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


class CodedAgent(Agent):
    """An agent whose pushes and receipts are recorded where they cross the wire.

    Attributes:
        record, code: set by whoever makes it, before it runs.
    """

    record: Record
    code: Code

    async def _converse(self, talk: Conversation, socket: WebSocket) -> Stop:
        wire = _Wire(socket, self.record, self.code, self._dimension)
        return await super()._converse(talk, cast(WebSocket, wire))


class _Wire:
    """One connection of one client, recorded."""

    def __init__(self, socket: WebSocket, record: Record, code: Code, dimension: int) -> None:
        self._socket, self._record, self._code, self._dimension = socket, record, code, dimension
        self._sent: dict[bytes, Mark] = {}

    async def send(self, raw: bytes) -> None:
        push = decode(raw, FromClient | Hello, push_limit(self._dimension))
        if isinstance(push, Push):
            mark = self._code.mark(np.frombuffer(push.delta, dtype="<f4"))
            self._sent[push.ticket] = mark
            # Before the first byte of it can be on its way.
            self._record.note("pushed", *mark)
        await self._socket.send(raw)

    async def receive(self, timeout: float) -> bytes:  # noqa: ASYNC109
        raw = await self._socket.receive(timeout)
        turn = decode(raw, Turn, turn_limit(self._dimension))
        if turn.receipt and (mark := self._sent.pop(turn.receipt, None)) is not None:
            self._record.note("acknowledged", *mark)
        return raw

    async def close(self) -> None:
        await self._socket.close()


# -- the judge's side ------------------------------------------------------------------------

_LINE: Final = re.compile(rb"([a-z-]+) (\d+) (\d+) (\d+\.\d{6})")


@dataclass(slots=True)
class Account:
    """All that clients have recorded.

    Attributes:
        pushed: when each update was put on the wire, every time that it was.
        acknowledged: when its receipt came first.
        gave_up: how often a client ended with a problem and was started again.
        published: the clients that have the model.
    """

    pushed: dict[Mark, list[float]] = field(default_factory=dict)
    acknowledged: dict[Mark, float] = field(default_factory=dict)
    gave_up: int = 0
    published: set[int] = field(default_factory=set)
    _read: dict[Path, int] = field(default_factory=dict)

    def follow(self, paths: Iterable[Path]) -> None:
        """Take in what the records have more than last time. A line cut short by a kill was not
        followed by what it announces, and is passed over."""
        for path in paths:
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                raw = file.read()
            whole = raw[: raw.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                if match := _LINE.fullmatch(line):
                    self._take(match[1].decode(), (int(match[2]), int(match[3])), float(match[4]))

    def _take(self, what: str, mark: Mark, when: float) -> None:
        if what == "pushed":
            self.pushed.setdefault(mark, []).append(when)
        elif what == "acknowledged":
            self.acknowledged.setdefault(mark, when)
        elif what == "gave-up":
            self.gave_up += 1
        elif what == "published":
            self.published.add(mark[0])

    def recovered(self, since: float, clients: Iterable[int] | None = None) -> float | None:
        """Seconds from then until an update that was sent later, by one of these clients (all,
        if None), was acknowledged; None if none was."""
        which = None if clients is None else set(clients)
        times = [when for mark, when in self.acknowledged.items()
                 if when > since and self.pushed.get(mark, [0.0])[-1] > since
                 and (which is None or mark[0] in which)]
        return min(times) - since if times else None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What weights say of an account.

    Attributes:
        applied: updates, each counted as often as it was applied.
        lost: acknowledged and not in the weights.
        doubled: in the weights more than once.
        uncertain: in the weights, sent, and never acknowledged: its client died, or still waits.
        unknown: in the weights, and nobody ever sent it.
    """

    applied: int
    lost: list[Mark]
    doubled: list[Mark]
    uncertain: list[Mark]
    unknown: list[Mark]


def judge(account: Account, code: Code, weights: np.ndarray) -> Judgement:
    """Hold the weights against what clients have recorded.

    Raises:
        ValueError: as :meth:`Code.marks`.
    """
    found = code.marks(weights)
    return Judgement(
        applied=sum(found.values()),
        lost=sorted(account.acknowledged.keys() - found.keys()),
        doubled=sorted(mark for mark, count in found.items() if count > 1),
        uncertain=sorted((found.keys() & account.pushed.keys()) - account.acknowledged.keys()),
        unknown=sorted(found.keys() - account.pushed.keys()),
    )
