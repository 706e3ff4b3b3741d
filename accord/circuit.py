"""How a curator or a client speaks to one onion: bounded HTTP and WebSocket, through Tor.

The other side may send anything, at any speed, for ever. So each reading has a limit in bytes and
in seconds, nothing is decompressed, no redirect is followed, no cookie kept, no environment asked
for a proxy. What goes wrong is a :class:`~accord.problems.Problem` when it may be nobody's fault
(``AWAY``) and a :class:`~accord.problems.PeerProblem` when the other side did it.

Each identity is a SOCKS user name: with ``IsolateSOCKSAuth`` tor gives each its own circuits, so
two conversations of this machine cannot be told to belong together. Names are resolved by tor,
never here.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from asyncio.trsock import TransportSocket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from socket import SHUT_RDWR
from types import TracebackType
from typing import Final, TypeVar

import aiohttp
from aiohttp import ClientRequest, ClientResponse, WSMsgType
from aiohttp_socks import ProxyConnectionError, ProxyConnector, ProxyError, ProxyTimeoutError
from yarl import URL

from accord.control import Socks
from accord.messages import SMALL_LIMIT, Refused, decode
from accord.onion import check_onion
from accord.problems import (
    AWAY,
    MALFORMED,
    NOT_INVITED,
    TOO_LARGE,
    TOR_AWAY,
    PeerProblem,
    Problem,
)

PATIENCE: Final = 90.0
"""Seconds for a circuit to be built, or for a small answer to come."""
SLOWEST: Final = 16_384
"""Bytes per second below which a transfer is given up; a slow circuit carries some ten times it."""
_GOODBYE: Final = 2.0

T = TypeVar("T")

# Proposal 304 and prop224: what tor says of an onion that it cannot reach (ExtendedErrors).
_EXTENDED: Final = {
    0xF0: "no such onion service is published",
    0xF1: "what is published for this address is not valid",
    0xF2: "it could not be introduced to the service",
    0xF3: "the circuits did not meet",
    0xF6: "tor does not accept the address",
    0xF7: "the introduction took too long",
}
_UNINVITED: Final = {
    0xF4: "tor was told no key of ours for it",
    0xF5: "our key is not among theirs",
}


@dataclass(frozen=True, slots=True)
class Route:
    """How an onion is reached: through Tor, or straight to a host and port.

    The second is for ``--tor none`` only, where somebody typed that they want no anonymity.

    Attributes:
        socks: the SOCKS port of a tor.
        direct: host and port, instead.
        introduce: tells that tor our key for an address that only invited clients can reach;
            None where there is no such key, or no way to tell.
        look_up: has that tor ask anew where an address is (:meth:`accord.control.Control.look_up`);
            None where there is no way to.
    """

    socks: Socks | None
    direct: tuple[str, int] | None = None
    introduce: Callable[[str], Awaitable[None]] | None = None
    look_up: Callable[[str], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        if (self.socks is None) == (self.direct is None):
            raise ValueError("a route is either through Tor or direct")


def fresh_identity() -> str:
    """An identity that nobody has: circuits that nothing else shares."""
    return secrets.token_hex(16)


class Circuit:
    """A conversation with one onion, under one identity; used as a context manager.

    Args:
        route: how the onion is reached.
        onion: its address (checked).
        identity: the SOCKS user name, 1 to 255 ASCII characters; a secret, as whoever knows it
            can share its circuits. :func:`fresh_identity` makes one.
        patience: seconds for a circuit to be built or a small answer to come.

    All methods raise:
        Problem: ``TOR_AWAY`` when tor does not answer, ``AWAY`` when the onion does not, or is
            lost halfway; ``NOT_INVITED`` when it is open to others only; ``NOT_AN_ONION`` at the
            start.
        PeerProblem: ``TOO_LARGE``, ``MALFORMED``, or whatever the other side's refusal says.
    """

    def __init__(self, route: Route, onion: str, identity: str,
                 patience: float = PATIENCE) -> None:
        self.onion = check_onion(onion)
        self._route = route
        self._identity = identity
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Circuit:
        connector: aiohttp.BaseConnector
        host = f"{self._route.direct[0]}:{self._route.direct[1]}" if self._route.direct else ""
        if self._route.socks:
            # python-socks offers a name only with a password; tor isolates by the pair of them.
            connector = ProxyConnector(
                self._route.socks.host, self._route.socks.port, username=self._identity,
                password="0", rdns=True)  # noqa: S106
        else:
            connector = aiohttp.TCPConnector(use_dns_cache=False)
        self._base = URL(f"http://{host or self.onion}")
        self._session = aiohttp.ClientSession(
            connector=connector,
            # Fixed and few: what a header tells sets one client apart from another.
            headers={"Host": self.onion, "User-Agent": "tormentor"},
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            requote_redirect_url=False,
            middlewares=(_refuse,),
            # One deadline for each call is set below; aiohttp's own would only blur it.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._patience),
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        # A peer that takes nothing must not hold us here: what it did not take is dropped.
        if self._session:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE):
                    await self._session.close()

    async def get(self, path: str, limit: int = SMALL_LIMIT) -> bytes:
        """The body at a path, of at most ``limit`` bytes."""
        return await self._fetch("GET", path, b"", limit)

    async def post(self, path: str, body: bytes, limit: int = SMALL_LIMIT) -> bytes:
        """The answer to a body, of at most ``limit`` bytes. Sent once, never repeated."""
        return await self._fetch("POST", path, body, limit)

    async def websocket(self, path: str, limit: int) -> WebSocket:
        """A kept conversation at a path, with messages of at most ``limit`` bytes."""

        async def connect() -> WebSocket:
            socket = await self._open().ws_connect(
                self._url(path), compress=0, autoclose=False, max_msg_size=limit + 1,
                timeout=aiohttp.ClientWSTimeout(ws_close=_GOODBYE))
            return WebSocket(socket, self.onion, limit, self._patience)

        return await self._invited(self._patience, connect)

    async def _fetch(self, method: str, path: str, body: bytes, limit: int) -> bytes:
        async def exchange() -> bytes:
            async with self._open().request(
                method, self._url(path), data=body or None, allow_redirects=False
            ) as response:
                if response.status != 200:  # 101, which was not asked for
                    raise PeerProblem(MALFORMED)
                return await _read(response, limit)

        seconds = self._patience + (len(body) + limit) / SLOWEST
        return await self._invited(seconds, exchange)

    async def _invited(self, seconds: float, act: Callable[[], Awaitable[T]]) -> T:
        """Do it; where only invited clients get in, show our invitation and do it again.

        Only then, so that no tor is told a key that it has no use for; and each time, as a tor
        that was started again has forgotten it.
        """
        try:
            return await _within(seconds, self.onion, act)
        except Problem as problem:
            introduce = self._route.introduce
            if problem.kind is not NOT_INVITED or introduce is None:
                raise
        await introduce(self.onion)
        return await _within(seconds, self.onion, act)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("a circuit is used inside 'async with'")
        return self._session

    def _url(self, path: str) -> URL:
        return self._base.join(URL(path, encoded=True))


class WebSocket:
    """A kept conversation: binary messages, one at a time. Made by :meth:`Circuit.websocket`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool], onion: str, limit: int,
                 patience: float) -> None:
        self._socket = socket
        self._onion = onion
        self._limit = limit
        self._patience = patience
        self._raw: TransportSocket | None = socket.get_extra_info("socket")

    async def send(self, message: bytes) -> None:
        """Send one message; waits while the other side does not take it, but not for ever.

        Raises:
            Problem: ``AWAY``.
        """
        seconds = self._patience + len(message) / SLOWEST
        await _within(seconds, self._onion, lambda: self._socket.send_bytes(message))

    async def receive(self, timeout: float) -> bytes:  # noqa: ASYNC109
        """The next message.

        Args:
            timeout: seconds until a whole one must be here, pings do not count as one; or infinity.

        Raises:
            Problem: ``AWAY`` when none came, or the other side hung up.
            PeerProblem: ``TOO_LARGE``, ``MALFORMED``.
        """
        message = await _within(timeout, self._onion, self._socket.receive)
        if message.type is WSMsgType.BINARY and isinstance(message.data, bytes):
            return message.data
        if message.type is WSMsgType.ERROR and isinstance(message.data, aiohttp.WebSocketError):
            if message.data.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
                raise PeerProblem(TOO_LARGE, limit=self._limit)
            raise PeerProblem(MALFORMED)
        if message.type is WSMsgType.TEXT:
            raise PeerProblem(MALFORMED)
        raise Problem(AWAY, address=self._onion, why="it hung up")

    async def close(self) -> None:
        """Say goodbye, without waiting long for an answer. Raises nothing."""
        try:
            with suppress(OSError, TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(2 * _GOODBYE):
                    await self._socket.close()
        finally:
            # aiohttp waits for ever to send what the other side does not take.
            with suppress(OSError):
                if self._raw:
                    self._raw.shutdown(SHUT_RDWR)


async def _within(seconds: float, onion: str, act: Callable[[], Awaitable[T]]) -> T:
    # A timer for each message is not nothing: none where there is no end to be timed.
    limit = None if seconds == math.inf else seconds
    try:
        async with asyncio.timeout(limit):
            return await act()
    except _FOREIGN as error:
        raise _in_words(error, onion) from None


async def _read(response: ClientResponse, limit: int) -> bytes:
    """A body, read no further than its limit."""
    if (response.content_length or 0) > limit:
        raise PeerProblem(TOO_LARGE, limit=limit)
    body = bytearray()
    while chunk := await response.content.read(limit + 1 - len(body)):
        body += chunk
        if len(body) > limit:
            raise PeerProblem(TOO_LARGE, limit=limit)
    return bytes(body)


async def _refuse(
    request: ClientRequest, send: Callable[[ClientRequest], Awaitable[ClientResponse]]
) -> ClientResponse:
    """Turn an answer that is not the one asked for into the problem that it states.

    Done here, before aiohttp looks at the status, because it follows the redirects of a WebSocket
    handshake and drops the body of a refused one.
    """
    response = await send(request)
    if response.status in (200, 101):
        return response
    try:
        raise decode(await _read(response, SMALL_LIMIT), Refused).problem()
    finally:
        response.close()


_FOREIGN: Final = (ProxyConnectionError, ProxyTimeoutError, ProxyError, aiohttp.ClientError,
                   OSError, EOFError)  # a TimeoutError is an OSError


def _in_words(error: Exception, onion: str) -> Problem:
    """What aiohttp, python-socks and the system raise, in words of :mod:`accord.problems`."""
    if isinstance(error, ProxyConnectionError):
        # The SOCKS port itself; its address is in no attribute of the error, only in its text.
        found = re.search(r"proxy (\S+:\d+)", str(error))
        where = found[1] if found else "its SOCKS port"
        return Problem(TOR_AWAY, where=where)
    if isinstance(error, TimeoutError | ProxyTimeoutError):
        return Problem(AWAY, address=onion, why="no answer in time")
    if isinstance(error, ProxyError):
        if why := _UNINVITED.get(_socks_code(str(error))):
            return Problem(NOT_INVITED, address=onion, why=why)
        return Problem(AWAY, address=onion, why=_socks_words(str(error)))
    if isinstance(error, aiohttp.ClientPayloadError):
        return Problem(AWAY, address=onion, why="the answer broke off")
    if isinstance(error, aiohttp.ClientResponseError):
        # Not HTTP, or not a WebSocket.
        return PeerProblem(MALFORMED)
    return Problem(AWAY, address=onion, why="the connection broke")


def _socks_code(text: str) -> int:
    """What tor answered beyond RFC 1928 (proposal 304); -1 for nothing.

    python-socks knows only the codes of the RFC, and reports tor's own in its text alone.
    """
    found = re.search(r"0X([0-9A-F]{2})", text, re.IGNORECASE)
    return int(found[1], 16) if found else -1


def _socks_words(text: str) -> str:
    """Short words for what tor answered (RFC 1928, section 6, and proposal 304)."""
    if (code := _socks_code(text)) >= 0:
        return _EXTENDED.get(code, "tor refused")
    known = {"General SOCKS server failure": "tor could not connect",
             "TTL expired": "no answer in time",
             "Host unreachable": "no such onion service is published",
             "Connection refused by destination host": "it refused the connection"}
    return known.get(text, "tor refused")
