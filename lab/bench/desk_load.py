"""The load of the desk's bench: many clients, made so lean that the server is what is measured.

Sockets, epoll, and WebSocket frames made by hand (the mask is zeros, a mask as any other). It
speaks the real protocol: it joins, says Hello and Pull, and answers every ticket with that
ticket's own id. One message of each client is on its way at a time.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from accord.messages import (
    TICKET_BYTES,
    AdmissionPuzzle,
    Hello,
    Join,
    Pull,
    Push,
    Status,
    Turn,
    Welcome,
    Work,
    decode,
    encode,
    turn_limit,
    vector_from_wire,
    vector_to_wire,
)
from accord.task import step_size
from lab.adversary import clipped_mean
from lab.bench.desk_servers import task_of

_WARM: Final = 1000
"""Honest updates, of all together, before anything is measured: then the model is where training
has brought it, and the test has nothing against anybody."""
_SAMPLE: Final = 500
"""Rows of an honest update."""
_DELTA: Final = 0.01
"""Length of the updates after those."""
_HEAD: Final = 8
_TICKET: Final = b"\xa6ticket\xc4\x10"
_PIECE: Final = 1 << 16
_PATIENCE: Final = 20.0


class Driven(NamedTuple):
    """What came of a drive.

    Attributes:
        answered: messages.
        seconds: that it took.
        busy: share of them in which the load itself was busy.
    """

    answered: int
    seconds: float
    busy: float


class _Client:
    """One client: its socket, its next message, what it has heard of an answer."""

    __slots__ = ("deltas", "frame", "heard", "socket", "ticket", "token", "updates")

    def __init__(self, connection: socket.socket, token: bytes) -> None:
        self.socket = connection
        self.token = token
        self.deltas = (b"", b"")
        self.updates = 0
        self.ticket = self.frame = self.heard = b""


class Load:
    """Clients of one server.

    Args:
        path: the server's socket.
        size, answer: bytes of a message and of its answer where the server is the echo; None
            where it is a desk.
    """

    def __init__(self, path: Path, size: int | None = None, answer: int | None = None) -> None:
        self._path = path
        self._echoes, self._size, self._answer = size is not None, size, answer
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._ready: deque[_Client] = deque()

    def join(self, count: int) -> None:
        """So many clients; those of a desk are admitted, say Hello, and have a ticket."""
        for _ in range(count):
            token = b"" if self._echoes else self._admitted()
            client = _Client(self._connect(), token)
            self._upgrade(client)
            self._clients[client.socket.fileno()] = client
            self._ready.append(client)
            if self._echoes:
                client.frame = _frame(bytes(self._size or 0))
            else:
                client.socket.sendall(_frame(encode(Hello(token))) + _frame(encode(Pull())))
                turn = self._wait(client)
                self._next(client, turn, bytes(len(_work(turn, 1 << 20).weights)))
            self._poll.register(client.socket, select.EPOLLIN)

    def warm(self, clients: int, judged: bool) -> tuple[int, int]:
        """Train honestly for a while. From then on each client has an update of its own and that
        one's opposite, so that the model stays where it is.

        Args:
            clients, judged: of the desk's task.

        Returns:
            Bytes of a message, and of its answer.
        """
        task, parts = task_of(clients, judged)
        rng = np.random.default_rng(1)
        rows, labels = parts.train
        order = list(self._clients.values())
        turn = b""
        for number in range(_WARM):
            client = order[number % len(order)]
            client.socket.sendall(client.frame)
            turn = self._wait(client)
            client.updates += 1
            weights = vector_from_wire(_work(turn, turn_limit(task.dimension)).weights,
                                       task.dimension)
            assert weights is not None
            some = rng.integers(len(labels), size=_SAMPLE)
            gradient = clipped_mean(task, weights, rows[some], labels[some])
            eta = step_size(task.training, client.updates + 1)
            self._next(client, turn, vector_to_wire(-eta * gradient))
        for client in order:
            way = rng.standard_normal(task.dimension)
            way *= _DELTA / np.linalg.norm(way)
            client.deltas = vector_to_wire(way), vector_to_wire(-way)
        self._answer = len(turn)
        return len(order[0].frame) - _HEAD, len(turn)

    def drive(self, seconds: float, rate: float | None = None) -> Driven:
        """Every client sends its next message as soon as it has its answer; or all together so
        many a second, whoever has its answer, in a chance order. All that is sent is answered
        before it ends."""
        poll, clients, ready = self._poll, self._clients, self._ready
        now = time.perf_counter
        busy, begun, done, sent = time.process_time(), now(), 0, 0
        if rate is not None:
            random.shuffle(ready)
        end = begun + seconds
        while (at := now()) < end or len(ready) < len(clients):
            if at > end + _PATIENCE:
                raise ConnectionError("answers do not come")
            due = 0 if at >= end else len(ready)
            if rate is not None:
                due = max(0, min(due, int((at - begun) * rate) - sent))
            for _ in range(due):
                client = ready.popleft()
                client.socket.send(client.frame)
            sent += due
            for number, _ in poll.poll(0.05 if rate is None else 0.001):
                client = clients[number]
                if self._heard(client, client.socket.recv(_PIECE)):
                    done += 1
                    ready.append(client)
        took = now() - begun
        return Driven(done, took, (time.process_time() - busy) / took)

    def status(self) -> Status:
        """What a desk says of its model."""
        return decode(self._request(b"GET /status", b""), Status)

    # -- frames ----------------------------------------------------------------------------------

    def _heard(self, client: _Client, raw: bytes) -> bool:
        """Take what came; whether it was the answer."""
        if client.heard:
            raw, client.heard = client.heard + raw, b""
        if raw[:1] == b"\x89":
            # A ping, of no bytes.
            client.socket.send(b"\x8a\x80" + bytes(4))
            raw = raw[2:]
        if len(raw) < 4 or len(raw) < 4 + int.from_bytes(raw[2:4], "big"):
            if raw[:1] not in (b"", b"\x82"):
                raise ConnectionError(f"the server sent {raw[:20]!r}")
            client.heard = raw
            return False
        client.updates += 1
        if self._echoes:
            if len(raw) != 4 + (self._answer or 0):
                raise ConnectionError("an answer has another size")
        else:
            # Its own ticket, as the receipt: the update is on the server's disk.
            if client.ticket not in raw:
                raise ConnectionError("an update was not acknowledged")
            self._next(client, raw, client.deltas[client.updates & 1])
        return True

    def _next(self, client: _Client, turn: bytes, delta: bytes) -> None:
        at = turn.rindex(_TICKET) + len(_TICKET)
        client.ticket = turn[at : at + TICKET_BYTES]
        client.frame = _frame(encode(Push(client.ticket, b"", delta)))

    def _wait(self, client: _Client) -> bytes:
        """The next binary message, whole."""
        raw = client.heard
        while len(raw) < 4 or len(raw) < 4 + int.from_bytes(raw[2:4], "big"):
            piece = client.socket.recv(_PIECE)
            if not piece:
                raise ConnectionError("the server has hung up")
            raw += piece
            if raw[:2] == b"\x89\x00":
                raw = raw[2:]
        if raw[:2] != b"\x82\x7e":
            raise ConnectionError(f"the server sent {raw[:20]!r}")
        client.heard = b""
        return raw[4:]

    # -- requests --------------------------------------------------------------------------------

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_PATIENCE)
        connection.connect(str(self._path))
        return connection

    def _admitted(self) -> bytes:
        door = decode(self._request(b"GET /puzzle", b""), AdmissionPuzzle)
        return decode(self._request(b"POST /join", encode(Join(door.lock, b"", 1))), Welcome).token

    def _request(self, what: bytes, body: bytes) -> bytes:
        with self._connect() as connection:
            connection.sendall(b"%b HTTP/1.1\r\nHost: model\r\nContent-Length: %d\r\n\r\n%b"
                               % (what, len(body), body))
            raw = b""
            while piece := connection.recv(_PIECE):
                raw += piece
        head, _, answer = raw.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise ConnectionError(f"the server says {head[:40]!r}")
        return answer

    def _upgrade(self, client: _Client) -> None:
        client.socket.sendall(
            b"GET /train HTTP/1.1\r\nHost: model\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        raw = b""
        while b"\r\n\r\n" not in raw:
            raw += client.socket.recv(_PIECE)
        if b" 101 " not in raw.partition(b"\r\n")[0]:
            raise ConnectionError(f"the server says {raw[:40]!r}")


def _frame(message: bytes) -> bytes:
    size = len(message)
    head = bytes([0x82, 0x80 | size]) if size < 126 else b"\x82\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + message


def _work(turn: bytes, limit: int) -> Work:
    told = decode(turn, Turn, limit)
    if not isinstance(told.next, Work) or told.strikes:
        raise ConnectionError(f"no work, or a strike: {told.next!r}, {told.strikes}")
    return told.next


def load_process(told: Connection, cpu: int | None) -> None:
    """Does what it is told: (which load, what to do, with what), and tells what came of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    loads: dict[str, Load] = {}
    while True:
        try:
            which, what, given = told.recv()
        except EOFError:
            return
        came: Any
        try:
            if what == "new":
                loads[which], came = Load(*given), None
            else:
                came = getattr(loads[which], what)(*given)
        except Exception as error:
            came = error
        told.send(came)
