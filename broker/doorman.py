"""Who is let in, how fast, and for how long: the connections of one served address.

aiohttp sets no limit on open connections, none on the time that a header or a frame may take, and
answers by itself what it cannot parse. So an app is served through a :class:`Door`:

- **One line** (:mod:`broker.line`). Connections are served at a bounded rate, each brings one
  request, and the rest wait where they cost next to nothing. So the work that strangers can make
  has a bound, whatever they ask and however many they are.
- **Strangers.** A connection is a stranger's until it has shown the token of a session. There is
  room for so many; for one more, the oldest goes. A newcomer cannot be told from an attacker
  before it has spoken, so what counts is how long everybody has: with the oldest cut, and a
  bounded rate, each has ``strangers / served`` seconds for certain. Refusing the newcomer would
  let slow ones keep everybody out until their time is over; cutting one at random would let
  chance cut even those who came a moment ago. What this does not give: under a flood at full
  rate, a download or an upload that takes longer than that is cut.
- **Members** count apart, and no stranger can push them out.
- **Deadlines.** For a whole header, for a message that has begun, by its size, and for taking an
  answer, by its size. Pings and heartbeats do not prolong them. To be cut costs us no answer.

A message is one frame, as :mod:`accord.messages` says: fragments are cut off, as a message of empty
fragments would never end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web

from accord.circuit import SLOWEST
from accord.problems import INTERNAL, MALFORMED, PeerProblem, Problem
from broker.answers import log, refusal, sentences
from broker.limits import HEAD_LINE, HEAD_LINES, LINGERING, READ_BUFFER, SHUTDOWN, Limits
from broker.line import Line


class Visit(web.RequestHandler):
    """One connection.

    Args:
        doorman: whose.
        options: for aiohttp.

    Attributes:
        doorman: the same.
        serving: the task that makes its answer and is of no use once the connection is gone.
    """

    __slots__ = ("_timer", "_wire", "doorman", "serving")

    def __init__(self, doorman: Doorman, **options: Any) -> None:
        super().__init__(doorman, **options)
        self.doorman = doorman
        self.serving: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None

    def within(self, seconds: float | None) -> None:
        """Cut it after so many seconds, unless something else is said before; None: do not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and self._wire is not None:
            self._timer = self._loop.call_later(seconds, self.cut)

    def cut(self) -> None:
        """End it at once: no answer, nothing is sent any more."""
        self.doorman.left(self)
        if self._wire is not None:
            # aiohttp's own close would wait until everything was taken.
            self._wire.abort()

    # -- what asyncio and aiohttp call ---------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        super().connection_made(transport)
        self.within(self.doorman.limits.head_seconds)
        self.doorman.entered(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is gone."""
        self._wire = None
        self.within(None)
        self.doorman.left(self)
        if self.serving is not None:
            self.serving.cancel()
        super().connection_lost(exc)

    def set_parser(
        self, parser: Any, data_received_cb: Callable[[], None] | None = None
    ) -> None:
        """From here on it is a WebSocket."""
        seconds = self.doorman.limits.read_seconds
        super().set_parser(_Frames(parser, self, seconds), data_received_cb)  # type: ignore[arg-type]

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what could not be parsed."""
        if status >= 500:
            log.error("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun")
        response = refusal(PeerProblem(MALFORMED) if status < 500 else Problem(INTERNAL))
        response.force_close()
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Not logged: aiohttp's own exceptions are of what a peer sent, and would quote it. What
        is our mistake is logged where it is answered."""


class _Frames:
    """Stands before aiohttp's WebSocket parser and follows where each frame begins and ends
    (RFC 6455, 5.2), so that one that has begun is whole in time."""

    __slots__ = ("_begun", "_head", "_left", "_parser", "_seconds", "_timer", "_visit")

    def __init__(self, parser: Any, visit: Visit, seconds: float) -> None:
        self._parser = parser
        self._visit = visit
        self._seconds = seconds
        self._head = bytearray()
        self._left = 0
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None

    def feed_data(self, data: bytes) -> Any:
        """What came, as aiohttp hands it on."""
        if not (self._left or self._head) and _whole(data):
            return self._parser.feed_data(data)
        if not self._follow(data):
            self._stop()
            self._visit.cut()
            return False, b""
        if not (self._left or self._head):
            self._stop()
        elif self._begun:
            self._stop()
            seconds = self._seconds + self._left / SLOWEST
            self._timer = asyncio.get_running_loop().call_later(seconds, self._visit.cut)
        self._begun = False
        return self._parser.feed_data(data)

    def feed_eof(self) -> None:
        """The connection is gone."""
        self._stop()
        self._parser.feed_eof()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _follow(self, data: bytes) -> bool:
        """Go through it; False for a fragment."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            head = self._head
            self._begun = self._begun or not head
            piece = data[at : at + _head_bytes(head) - len(head)]
            head += piece
            at += len(piece)
            if len(head) < _head_bytes(head):
                continue
            whole, fragment = head[0] & 0x80, not head[0] & 0x0F
            if not whole or fragment:
                return False
            length = head[1] & 0x7F
            if length > 125:
                length = int.from_bytes(head[2 : 4 if length == 126 else 10], "big")
            self._left = length
            # From here on it has the time for its size.
            self._begun = True
            head.clear()
        return True


def _whole(data: bytes) -> bool:
    """Whether this is one frame, masked, whole, no fragment, of an ordinary size: as nearly always.
    """
    if len(data) < 6 or not data[0] & 0x80 or not data[0] & 0x0F:
        return False
    size = data[1] & 0x7F
    if size == 126:
        return len(data) == 8 + (data[2] << 8 | data[3]) and data[1] > 127
    return size < 126 and len(data) == 6 + size and data[1] > 127


def _head_bytes(head: bytearray) -> int:
    """How many bytes a frame's head has, as far as its first bytes tell."""
    if len(head) < 2:
        return 2
    extended = {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
    return 2 + extended + (4 if head[1] & 0x80 else 0)


class Doorman(web.Server):
    """aiohttp's server of one app, whose connections are :class:`Visit`.

    Args:
        server: as aiohttp makes it for the app.
        limits: all of them.

    Attributes:
        limits: the same.
        strangers: connections that have shown no token yet, the oldest first.
        members: those that have.
    """

    def __init__(self, server: web.Server, limits: Limits) -> None:
        super().__init__(self._answer, request_factory=server.request_factory)
        self._app = server.request_handler
        self.limits = limits
        self.strangers: dict[Visit, None] = {}
        self.members: set[Visit] = set()

    def __call__(self) -> Visit:
        """A protocol for one connection."""
        # No keep-alive timer: each connection brings one request, and has a deadline of ours.
        return Visit(
            self, loop=self._loop, access_log=None, keepalive_timeout=0,
            lingering_time=LINGERING, read_bufsize=READ_BUFFER, max_line_size=HEAD_LINE,
            max_field_size=HEAD_LINE, max_headers=HEAD_LINES, auto_decompress=False)

    def entered(self, visit: Visit) -> None:
        """A connection is there."""
        self.strangers[visit] = None
        if len(self.strangers) > self.limits.strangers:
            self.cut_oldest()

    def left(self, visit: Visit) -> None:
        """A connection is gone."""
        self.strangers.pop(visit, None)
        self.members.discard(visit)

    def cut_oldest(self) -> None:
        """Make room."""
        if self.strangers:
            next(iter(self.strangers)).cut()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        visit = request.protocol
        assert isinstance(visit, Visit) and isinstance(request, web.Request)
        # What takes its time from here on has its own deadline.
        visit.within(None)
        visit.serving = asyncio.current_task()
        seconds = self.limits.send_seconds
        try:
            response = await sentences(request, self._app)
            seconds += (response.content_length or 0) / SLOWEST
            return response
        finally:
            visit.serving = None
            visit.within(seconds)


def welcome(request: web.Request) -> None:
    """Whoever made this request has shown the token of a session.

    What a member has said counts, also when its connection is lost before the answer.
    """
    visit = request.protocol
    assert isinstance(visit, Visit)
    visit.serving = None
    doorman = visit.doorman
    doorman.strangers.pop(visit, None)
    doorman.members.add(visit)


class _Runner(web.AppRunner):
    """aiohttp's runner, with our server."""

    def __init__(self, app: web.Application, limits: Limits) -> None:
        super().__init__(app, shutdown_timeout=SHUTDOWN)
        self._limits = limits

    async def _make_server(self) -> web.Server:
        return Doorman(await super()._make_server(), self._limits)


class Door:
    """Serves one app at a listening socket.

    Args:
        app: what is served.
        listener: bound; it is the door's from now on.
        limits: of its connections.
    """

    def __init__(
        self, app: web.Application, listener: socket.socket, limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._listener = listener
        self._runner = _Runner(app, self._limits)

    async def open(self) -> None:
        """Serve."""
        await self._runner.setup()
        doorman = self._runner.server
        assert isinstance(doorman, Doorman)
        self.doorman = doorman
        loop = asyncio.get_running_loop()

        async def serve(connection: socket.socket) -> None:
            await loop.connect_accepted_socket(doorman, connection)

        self.line = Line(self._listener, self._limits, serve, doorman.cut_oldest)

    async def close(self) -> None:
        """Serve nothing any more; conversations have some seconds to end."""
        await self.line.close()
        for visit in list(self.doorman.strangers):
            visit.cut()
        await self._runner.cleanup()
        for visit in list(self.doorman.members):
            visit.cut()
