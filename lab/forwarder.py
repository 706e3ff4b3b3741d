"""Ports of this machine that lead to others after a while: a network's distances, in user space.

A kernel can do this (netem), where one is root and has the module; this needs neither. It is one
process with one thread around epoll. What it reads it keeps until it is due, and between two looks
it sleeps: to wake up costs more than to forward, so all that came meanwhile is one piece of work.
Nothing else changes (``tests/test_lab_wan.py``): bytes, their order, the ends of streams.

Run as a program: ``python -m lab.forwarder PARENT``, by :class:`lab.wan.Wan`. Each line on its
standard input is an :class:`Order` as JSON, each line of its output the :class:`Report` on it. It
ends with its input, or with the process PARENT that started it.

What is not like the real thing: a connection is taken at once, wherever it leads, and one that
nobody takes at its end is closed rather than refused; a reset arrives as an end of the stream;
nothing is lost, and bandwidth has no limit but the delay's (:data:`HELD` bytes in each flight).
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import os
import random
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Final

import msgspec
from msgspec import Struct

TICK: Final = 0.001
"""Seconds between two looks while something happens. What is due is late by one and a half of these
on average, one where it is read and a half where it is written, and by what the machine is busy
with otherwise."""
HELD: Final = 1 << 20
"""Bytes on their way in one direction of a connection, beyond which no more are taken: TCP's
back-pressure then reaches whoever sends."""
_CHUNK: Final = 65_536
_AT_ONCE: Final = 64
"""Buffers of one sendmsg(2); every system takes 1024."""
_BACKLOG: Final = 1024
_DEATH_SIGNAL: Final = 1
"""PR_SET_PDEATHSIG, prctl(2)."""


class Way(Struct, frozen=True):
    """Where a port leads, and how far that is.

    Attributes:
        port: to listen on; 0 for a free one.
        to: the port, and
        host: the machine where it leads.
        delay: seconds, one way.
        jitter: seconds; each piece takes up to so much longer, and none overtakes another.
        at: the address of this machine to listen at.
    """

    port: int
    to: int
    host: str = "127.0.0.1"
    delay: float = 0.0
    jitter: float = 0.0
    at: str = "127.0.0.1"


class Order(Struct, frozen=True, omit_defaults=True):
    """What the forwarder shall do.

    Attributes:
        open: ports to listen on.
        close: ports to listen on no more; connections that were made through them stay.
        on: whether there are delays from now on; None changes nothing. Without them it only
            forwards.
    """

    open: list[Way] = []
    close: list[int] = []
    on: bool | None = None


class Report(Struct, frozen=True):
    """What the forwarder did.

    Attributes:
        ports: that it now listens on, in the order of ``open``.
        chunks: pieces that it has forwarded so far.
        carried: bytes of them.
        cpu: seconds of processor that it has used so far.
        connections: open ones.
        error: what the system said, when a port could not be opened; none of them is, then.
    """

    ports: list[int] = []
    chunks: int = 0
    carried: int = 0
    cpu: float = 0.0
    connections: int = 0
    error: str = ""


class Lane:
    """Bytes on their way in one direction of one connection. Pure: time is an argument.

    Args:
        floor: a moment before which nothing arrives.

    Attributes:
        held: bytes on their way.
    """

    __slots__ = ("_chunks", "_last", "held")

    def __init__(self, floor: float = 0.0) -> None:
        self._chunks: deque[tuple[float, bytes | memoryview]] = deque()
        self._last = floor
        self.held = 0

    def put(self, data: bytes, due: float) -> None:
        """Send bytes off; empty ones are the end of the stream. None overtakes those before."""
        self._last = due = max(due, self._last)
        self._chunks.append((due, data))
        self.held += len(data)

    @property
    def due(self) -> float | None:
        """When the next of them may arrive; None when none is on its way."""
        return self._chunks[0][0] if self._chunks else None

    def ready(self, now: float) -> list[bytes | memoryview]:
        """What may arrive by now, up to some limit or the end of the stream; it stays here."""
        found: list[bytes | memoryview] = []
        for due, data in self._chunks:
            if due > now or not data or len(found) == _AT_ONCE:
                break
            found.append(data)
        return found

    def ended(self, now: float) -> bool:
        """Whether all has arrived and the end of the stream may."""
        return bool(self._chunks) and not self._chunks[0][1] and self._chunks[0][0] <= now

    def arrived(self, count: int) -> None:
        """So many bytes, of those that were ready, have arrived."""
        self.held -= count
        while count:
            due, data = self._chunks[0]
            if count < len(data):
                self._chunks[0] = (due, memoryview(data)[count:])
                return
            count -= len(data)
            self._chunks.popleft()

    def lose(self) -> None:
        """Forget all that is on its way."""
        self._chunks.clear()
        self.held = 0


class _End:
    """One of a connection's two sockets, and the lane that leads to it."""

    __slots__ = ("connected", "ended", "lane", "mask", "number", "peer", "planned", "read",
                 "socket", "way", "written")

    peer: _End

    def __init__(self, way: Way, connection: socket.socket | None, floor: float) -> None:
        self.way = way
        self.socket = connection
        self.number = -1 if connection is None else connection.fileno()
        self.connected = connection is not None
        self.lane = Lane(floor)
        self.mask = 0  # what epoll is asked for
        self.planned = False  # it is in the heap
        self.read = True  # its stream goes on
        self.written = True  # it still takes something
        self.ended = False  # closed


class Forwarder:
    """The loop. See the module."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, Way]] = {}
        self._ends: dict[int, _End] = {}
        self._heap: list[tuple[float, int, _End]] = []
        self._count = 0
        self._on = False
        self._chunks = 0
        self._carried = 0
        self._orders = b""

    def run(self) -> None:
        """Forward until the standard input ends."""
        self._epoll.register(0, select.EPOLLIN)
        busy = False
        while True:
            wait = -1.0
            if busy and self._on:
                # At moments that all connections share, so that what is due is done at once too.
                time.sleep(TICK - time.monotonic() % TICK)
                wait = 0.0
            elif self._heap:
                wait = max(0.0, self._heap[0][0] - time.monotonic())
            happened = self._epoll.poll(wait)
            for number, events in happened:
                if (end := self._ends.get(number)) is not None:
                    self._stir(end, events)
                elif number in self._listeners:
                    self._accept(*self._listeners[number])
                elif number == 0 and not self._obey():
                    return
            now = time.monotonic()
            busy = bool(happened)
            while self._heap and self._heap[0][0] <= now:
                busy = True
                end = heapq.heappop(self._heap)[2]
                end.planned = False
                if not end.ended:
                    self._deliver(end, now)

    # -- orders --------------------------------------------------------------------------------

    def _obey(self) -> bool:
        """Do what the standard input says; False at its end."""
        data = os.read(0, _CHUNK)
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            report = msgspec.json.encode(self._do(msgspec.json.decode(line, type=Order)))
            sys.stdout.buffer.write(report + b"\n")
            sys.stdout.buffer.flush()
        return bool(data)

    def _do(self, order: Order) -> Report:
        for number, (listener, _) in list(self._listeners.items()):
            if listener.getsockname()[1] in order.close:
                del self._listeners[number]
                self._epoll.unregister(number)
                listener.close()
        if order.on is not None:
            self._on = order.on
        ports: list[int] = []
        error = ""
        with contextlib.ExitStack() as opened:
            listeners = []
            try:
                for way in order.open:
                    listener = opened.enter_context(
                        socket.create_server((way.at, way.port), backlog=_BACKLOG))
                    listener.setblocking(False)
                    listeners.append((listener, way))
            except OSError as failure:
                error = (failure.strerror or str(failure)).lower()
            else:
                opened.pop_all()
                for listener, way in listeners:
                    ports.append(listener.getsockname()[1])
                    self._listeners[listener.fileno()] = (listener, way)
                    self._epoll.register(listener.fileno(), select.EPOLLIN)
        return Report(ports, self._chunks, self._carried, time.process_time(),
                      len(self._ends), error)

    # -- connections ---------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, way: Way) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except OSError:  # no more of them; or no descriptor left, and later there may be
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What the kernel has taken at once takes a round trip in reality before its opener may
            # say anything (SYN, SYN-ACK), and what it says then takes another half of one. The
            # opener speaks too early here, so this is made up for on its way: whatever it says
            # arrives three delays after it called, or later. The other end hears of it then too.
            now = time.monotonic()
            there = now + 3 * way.delay * self._on
            near, far = _End(way, connection, now), _End(way, None, there)
            near.peer, far.peer = far, near
            self._ends[near.number] = near
            self._ask(near, select.EPOLLIN)
            self._plan(far, there)

    def _ask(self, end: _End, mask: int) -> None:
        """Have epoll tell of these events. Asked for none, it still tells of hang-ups, for ever:
        so it is then not asked at all."""
        if mask == end.mask:
            return
        if not mask:
            self._epoll.unregister(end.number)
        elif end.mask:
            self._epoll.modify(end.number, mask)
        else:
            self._epoll.register(end.number, mask)
        end.mask = mask

    def _plan(self, end: _End, due: float) -> None:
        if not end.planned:
            end.planned = True
            self._count += 1
            heapq.heappush(self._heap, (due, self._count, end))

    def _stir(self, end: _End, events: int) -> None:
        if events & ~select.EPOLLIN and end.mask & select.EPOLLOUT:
            self._ask(end, end.mask & ~select.EPOLLOUT)
            if not end.connected:
                assert end.socket is not None
                if end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._lose(end)
                    return
                end.connected = True
                self._ask(end, select.EPOLLIN)
            self._deliver(end, time.monotonic())
        if events & ~select.EPOLLOUT and end.mask & select.EPOLLIN:
            self._take(end)

    def _take(self, end: _End) -> None:
        """Read what came, and send it off to the other end."""
        assert end.socket is not None
        try:
            data = end.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._lose(end)
            return
        if data and end.peer.ended:
            return
        self._send_off(end, data)
        if not data:
            end.read = False
            if not end.written:
                self._close(end)
                return
        if not data or end.peer.lane.held >= HELD:
            self._ask(end, end.mask & ~select.EPOLLIN)

    def _send_off(self, end: _End, data: bytes) -> None:
        """Put what came from an end on its way to the other."""
        due, way, peer = time.monotonic(), end.way, end.peer
        if peer.ended:
            return
        if self._on:
            due += way.delay + (way.jitter * random.random() if way.jitter else 0.0)  # noqa: S311
        peer.lane.put(data, due)
        if not peer.mask & select.EPOLLOUT:
            self._plan(peer, peer.lane.due or due)

    def _deliver(self, end: _End, now: float) -> None:
        """Write what has arrived, and plan for what comes next."""
        if not end.connected:
            self._connect(end)
            return
        assert end.socket is not None
        lane, peer = end.lane, end.peer
        try:
            while chunks := lane.ready(now):
                # One buffer is the rule, and this the cheaper call for it.
                sent = (end.socket.send(chunks[0]) if len(chunks) == 1
                        else end.socket.sendmsg(chunks))
                lane.arrived(sent)
                self._chunks += len(chunks)
                self._carried += sent
            if lane.ended(now):
                end.written = False
                if peer.ended or not end.read:
                    self._close(end)
                else:
                    end.socket.shutdown(socket.SHUT_WR)
                return
        except BlockingIOError:
            self._ask(end, end.mask | select.EPOLLOUT)
        except OSError:
            self._lose(end)
            return
        if peer.connected and peer.read and not peer.ended and lane.held <= HELD // 2:
            self._ask(peer, peer.mask | select.EPOLLIN)
        if lane.due is not None and not end.mask & select.EPOLLOUT:
            self._plan(end, lane.due)

    def _connect(self, end: _End) -> None:
        """Make the connection onward."""
        way = end.way
        try:
            end.socket = socket.socket(_family(way.host))
            end.socket.setblocking(False)
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                end.socket.connect((way.host, way.to))
        except OSError:
            self._lose(end)
            return
        end.number = end.socket.fileno()
        self._ends[end.number] = end
        self._ask(end, select.EPOLLOUT)

    def _lose(self, end: _End) -> None:
        """An end is gone: nothing arrives there any more, and the other hears of it in time."""
        self._close(end)
        if end.read:
            end.read = False
            self._send_off(end, b"")

    def _close(self, end: _End) -> None:
        end.ended = True
        end.lane.lose()
        if end.socket is not None:
            self._ask(end, 0)
            self._ends.pop(end.number, None)
            end.socket.close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def main() -> None:
    """Forward as the standard input says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != int(sys.argv[1]):
            sys.exit("the parent has gone already")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Forwarder().run()


if __name__ == "__main__":
    main()
