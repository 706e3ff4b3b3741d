"""The paper's protocol as a contestant: one gradient per contact, a new stream for every update.

A client of the paper asks, is given the model and a puzzle, computes one gradient, and sends it;
each update is a connection of its own, through the same circuit of Tor (one SOCKS identity, whose
circuit tor keeps). :class:`ContactAgent` does that against the real broker, with the real session,
trainer, ledger and puzzles: it differs from :class:`client.agent.Agent` in nothing but how it
speaks. It is that protocol at its best:

- the receipt of an update carries the next work, so an update costs one connection and one message
  and not two messages, and is made in the time between;
- what a WebSocket adds is not waited for: the request to upgrade, Hello and the message leave
  together. So an update takes two round trips, one until the stream is connected (RELAY_CONNECTED,
  or SYN and ACK) and one for the message, as plain TCP would have it;
- a connection is closed without a goodbye.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import SystemRandom
from typing import Final

from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio import Proxy

from accord.circuit import PATIENCE, Route, fresh_identity
from accord.messages import Refused, Wait, decode, encode, turn_limit
from accord.problems import AWAY, ENDED, INTERNAL, MALFORMED, TOR_AWAY, PeerProblem, Problem
from client.agent import Agent
from client.events import Waiting
from client.session import Conversation, Over, Step, Stop

_PORT: Final = 80
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10
_HEAD_LIMIT: Final = 16_384
_now = time.monotonic
_random = SystemRandom().random


class ContactAgent(Agent):
    """An agent that makes a new connection for every message.

    Attributes:
        contacts: connections that were made for training.
    """

    contacts = 0

    async def _train(self) -> Stop:
        """In place of one kept conversation: one contact after another."""
        session = self.session
        assert session.token is not None
        talk = Conversation(
            session.onion, session.token, self._dimension, session.max_difficulty, self._can_pay,
            dataclasses.replace(self._pace), self._trainer.task.clients.silence, session.wishes,
            self._trainer.task.training.precision)
        identity = fresh_identity()
        while True:
            try:
                todo = await self._contact(talk, identity)
            except Problem as problem:
                if problem.kind is ENDED:
                    return "ended"
                if problem.kind not in (AWAY, TOR_AWAY, INTERNAL):
                    raise
                # Another circuit: this one may be what does not work.
                identity = fresh_identity()
                await asyncio.sleep(talk.lost(_now(), _random()))
                continue
            if isinstance(todo, Over):
                return todo.why
            if todo is not None:
                self._work = asyncio.create_task(self._compute(todo))
                solution, made = await self._work
                self._work = None
                talk.answer(solution, made.delta, _now(), made.steps)

    async def _contact(self, talk: Conversation, identity: str) -> Step | Over | None:
        """One connection: what is due is said; what is to be done next, None for to ask again."""
        async with connected(self._way, self.session.onion, identity) as stream:
            self.contacts += 1
            hello = talk.connected(_now())
            message = talk.sending(_now())
            assert message is not None, "a new connection always has something to say"
            await stream.begin("/train", [encode(hello), encode(message)])
            limit = turn_limit(self._dimension)
            while True:
                try:
                    async with asyncio.timeout(max(talk.wake(_now()), 0.01)):
                        raw = await stream.receive(limit)
                except TimeoutError:
                    return None
                todo = await self._take(talk, raw)
                if isinstance(todo, Step | Over):
                    return todo
                if isinstance(todo, Wait):
                    self._tell(Waiting(todo.why, todo.have, todo.need))
                elif todo is None:
                    # The update was refused; what is to be done is asked for on a new connection.
                    await asyncio.sleep(talk.wake(_now()))
                    return None


class Stream:
    """A WebSocket of which nothing is waited for that need not be (RFC 6455). Made by
    :func:`connected`; all methods raise ``AWAY`` where the other side has hung up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                 onion: str) -> None:
        self._reader, self._writer, self._onion = reader, writer, onion
        self._upgraded = False

    async def begin(self, path: str, messages: list[bytes]) -> None:
        """Send the request and the first messages, all at once."""
        key = base64.b64encode(os.urandom(16)).decode()
        head = (f"GET {path} HTTP/1.1\r\nHost: {self._onion}\r\nUser-Agent: tormentor\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: {key}\r\n\r\n")
        self._writer.write(head.encode() + b"".join(frame(_BINARY, each) for each in messages))
        with _lost(self._onion):
            await self._writer.drain()

    async def receive(self, limit: int) -> bytes:
        """The next message, of at most ``limit`` bytes; pings are answered.

        Raises:
            PeerProblem: ``MALFORMED``, or what a refusal of the request says.
        """
        with _lost(self._onion):
            if not self._upgraded:
                head = await self._reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 101 "):
                    raise decode(await self._reader.read(limit), Refused).problem()
                self._upgraded = True
            while True:
                first, second = await self._reader.readexactly(2)
                size = second & 0x7F
                if size > 125:
                    size = int.from_bytes(
                        await self._reader.readexactly(2 if size == 126 else 8), "big")
                if size > limit or second & 0x80 or not first & 0x80:
                    raise PeerProblem(MALFORMED)
                body = await self._reader.readexactly(size)
                kind = first & 0x0F
                if kind == _BINARY:
                    return body
                if kind == _PING:
                    self._writer.write(frame(_PONG, body))
                elif kind == _CLOSE:
                    raise Problem(AWAY, address=self._onion, why="it hung up")


class _lost:  # noqa: N801  (used like a function)
    """Says what the system raises in words of :mod:`accord.problems`."""

    def __init__(self, onion: str) -> None:
        self._onion = onion

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: object) -> None:
        if isinstance(error, asyncio.LimitOverrunError):
            raise PeerProblem(MALFORMED) from None
        if isinstance(error, OSError | EOFError) and not isinstance(error, TimeoutError):
            raise Problem(AWAY, address=self._onion, why="the connection broke") from None


def frame(kind: int, body: bytes) -> bytes:
    """A client's frame, whole and masked (RFC 6455, 5.2); of at most 65,535 bytes."""
    mask = secrets.token_bytes(4)
    size = bytes([0x80 | len(body)]) if len(body) < 126 else b"\xfe" + len(body).to_bytes(2, "big")
    key = int.from_bytes((mask * (len(body) // 4 + 1))[: len(body)], "big")
    hidden = (int.from_bytes(body, "big") ^ key).to_bytes(len(body), "big")
    return bytes([0x80 | kind]) + size + mask + hidden


@asynccontextmanager
async def connected(route: Route, onion: str, identity: str,
                    patience: float = PATIENCE) -> AsyncIterator[Stream]:
    """A connection of its own to an onion, through the circuits of an identity.

    Raises:
        Problem: ``TOR_AWAY``, ``AWAY``.
    """
    try:
        async with asyncio.timeout(patience):
            if route.socks is not None:
                # Tor isolates by name and password; what stands here is no secret.
                proxy = Proxy(ProxyType.SOCKS5, route.socks.host, route.socks.port,
                              username=identity, password="0", rdns=True)  # noqa: S106
                opened = await proxy.connect(onion, _PORT)
                reader, writer = await asyncio.open_connection(sock=opened, limit=_HEAD_LIMIT)
            else:
                assert route.direct is not None
                reader, writer = await asyncio.open_connection(*route.direct, limit=_HEAD_LIMIT)
    except ProxyConnectionError:
        raise Problem(TOR_AWAY, where=str(route.socks)) from None
    except (ProxyError, ProxyTimeoutError, TimeoutError, OSError) as error:
        raise Problem(AWAY, address=onion, why=str(error) or "no answer in time") from None
    try:
        yield Stream(reader, writer, onion)
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await writer.wait_closed()
