"""One model behind its address: the aiohttp shell around a :class:`~broker.brokerage.Brokerage`.

Acknowledged means on disk: the brokerage decides at once, in memory; the answers of all clients
that wait are let go together, after one transaction that holds everything they rest on.

**Random delays** (paper 7.4; a task's ``training.reply_delay``, off by default). Whoever sees the
weights just before and just after another client's update has that update by subtraction. So each
message is held back for a random time, and it is held *before* the brokerage takes it, not after:

- held after, the weights in the answer would be those of the moment at which the message came, only
  sent late; an attacker who sends just before and just after its victim would still get both;
- held before, the update is applied, and the weights for its answer are read, at a moment that
  neither its sender nor who watches the wire knows or chooses: the order of updates that come
  within the delay is random, for ``/status`` too. What is sent is of the moment at which it is
  sent, and never older than it would be otherwise.

A Pull is held like a Push, as it can bring weights too; a Leave is not, as whoever goes should not
be counted a moment longer. Until it is taken nothing of a message exists: nothing is acknowledged,
and one whose conversation ends meanwhile is sent again and held again. It does not stop an attacker
with so many sessions that some of their messages are taken at nearly every moment; the noise does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom
from typing import Any, Final

from aiohttp import WSMsgType, web

from accord.circuit import SLOWEST
from accord.messages import (
    SMALL_LIMIT,
    FromClient,
    Hello,
    Join,
    Leave,
    Refused,
    Turn,
    Wait,
    decode,
    encode,
    push_limit,
    refused,
)
from accord.problems import (
    INTERNAL,
    MALFORMED,
    NOT_PUBLISHED,
    UNKNOWN_CLIENT,
    PeerProblem,
    Problem,
)
from broker.answers import HEADERS, large, read_body
from broker.brokerage import Brokerage
from broker.doorman import welcome
from broker.limits import Bucket, Limits
from broker.page import status_page
from broker.store import Store

log = logging.getLogger("tormentor.broker")

TICK: Final = 0.5
"""Seconds between looks at the clock while nobody says anything."""
_SENT_AT_ONCE: Final = 32_768
"""Bytes that a connection's own buffer takes without anybody waiting (asyncio's own bound is twice
that): a deadline for less costs more than sending it."""
_PASSES: Final = 3
"""Passes of the loop from a socket that can be read to an answer that waits for the disk."""
_TOGETHER: Final = 24
"""Answers that wait for one transaction before it begins, where as many are at hand."""
_SOON: Final = 0.002
"""Seconds that this may take: where strangers make each pass of the loop a long one, whoever has
an answer to come does not wait for theirs."""
_random = SystemRandom().random


class ModelApp:
    """Serves one model.

    Args:
        brokerage: with its task accepted.
        store: where its changes go.
        publish: makes the bytes of the model file, once training has ended.
        random: gives a number from 0 to 1, which nobody can foresee, for the delays.
        limits: of its conversations.

    Attributes:
        model: the published file; None before.
    """

    def __init__(
        self, brokerage: Brokerage, store: Store, publish: Callable[[], bytes],
        random: Callable[[], float] = _random, limits: Limits | None = None,
    ) -> None:
        self.brokerage = brokerage
        self.model: bytes | None = None
        self._store = store
        self._publish = publish
        self._random = random
        self._limits = limits or Limits()
        self._signed_task = encode(brokerage.signed)
        self._conversations: dict[asyncio.Task[object], _Talk] = {}
        self._rate = self._limits.messages
        self._stirred = brokerage.stirred
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] = self._loop.create_future()
        self._wake = asyncio.Event()
        self._unwritten: list[asyncio.Future[None]] = []
        self._now = self._loop.time
        self.app = web.Application()
        self.app.add_routes([
            web.get("/", self._page),
            web.get("/task", self._task),
            web.get("/status", self._status),
            web.get("/puzzle", self._puzzle),
            web.post("/join", self._join),
            web.get("/train", self._train),
            web.get("/model", self._model),
        ])
        self.app.on_shutdown.append(self._hang_up)

    # -- plain answers -------------------------------------------------------------------------

    async def _page(self, _: web.Request) -> web.Response:
        page = status_page(self.brokerage.status(self._now()), self.brokerage.task)
        return web.Response(text=page, content_type="text/html")

    async def _task(self, _: web.Request) -> web.Response:
        return large(self._signed_task)

    async def _status(self, _: web.Request) -> web.Response:
        return web.Response(body=encode(self.brokerage.status(self._now())))

    async def _puzzle(self, _: web.Request) -> web.Response:
        return web.Response(body=encode(self.brokerage.puzzle(self._now())))

    async def _join(self, request: web.Request) -> web.Response:
        join = decode(
            await read_body(request, SMALL_LIMIT, self._limits.read_seconds), Join)
        welcome = self.brokerage.join(join, self._now())
        self._stir()
        await self._on_disk()
        return web.Response(body=encode(welcome))

    async def _model(self, _: web.Request) -> web.Response:
        if self.model is None:
            raise PeerProblem(NOT_PUBLISHED)
        return large(self.model)

    # -- the training conversation -------------------------------------------------------------

    async def _train(self, request: web.Request) -> web.StreamResponse:
        limits = self._limits
        # Pings are answered by _read, so that they count.
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=push_limit(self.brokerage.task.dimension),
            heartbeat=limits.heartbeat, timeout=limits.goodbye, autoping=False)
        socket.headers["Server"] = HEADERS["Server"]
        await socket.prepare(request)
        now = self._now()
        pace = _Pace(Bucket(limits.messages, limits.messages_at_once, now),
                     Bucket(limits.pings, limits.pings_at_once, now))
        talk = None
        try:
            async with asyncio.timeout(limits.hello_seconds):
                hello = decode(await self._read(socket, pace), Hello)
            if not self.brokerage.knows(hello.token):
                raise PeerProblem(UNKNOWN_CLIENT)
            welcome(request)
            talk = self._take_over(hello.token, socket, request, pace)
            await self._converse(talk)
        except Problem as problem:
            with contextlib.suppress(ConnectionError, TimeoutError):
                await self._send(socket, request, Turn(b"", refused(problem)))
        except (_HungUp, ConnectionError, TimeoutError):
            pass
        finally:
            if talk is not None:
                self._conversations.pop(talk.task, None)
                self._rate = self._share()
            await _close(socket, request, limits.goodbye)
        return socket

    def _take_over(
        self, token: bytes, socket: web.WebSocketResponse, request: web.Request, pace: _Pace
    ) -> _Talk:
        """A session has one conversation: an older one, likely dead, is ended."""
        for other in [t for t, its in self._conversations.items() if its.token == token]:
            self._end(other)
        task = asyncio.current_task()
        assert task is not None
        rules = self.brokerage.task.clients
        # Until it is heard, it has no more of a claim than one that was silent for too long.
        talk = _Talk(token, task, socket, request, pace, self._now() - rules.silence)
        self._conversations[task] = talk
        if len(self._conversations) > rules.maximum + self._limits.spare_conversations:
            self._end(min(self._conversations, key=lambda t: self._conversations[t].heard))
        self._rate = self._share()
        return talk

    def _end(self, conversation: asyncio.Task[object]) -> None:
        del self._conversations[conversation]
        conversation.cancel()

    async def _converse(self, talk: _Talk) -> None:
        """Answer each message; answer one that waits again whenever there is more to say."""
        limit = push_limit(self.brokerage.task.dimension)
        delays = self.brokerage.task.training.reply_delay > 0
        raw = None
        while True:
            if raw is None:
                raw = await self._read(talk.socket, talk.pace)
            message: FromClient = decode(raw, FromClient, limit)
            raw = None
            if delays and not isinstance(message, Leave):
                if self.brokerage.knows(talk.token) and self.brokerage.present(
                    talk.token, self._now()
                ):
                    # Now already: what is held back is no reason to be cut off for silence.
                    talk.heard = self._now()
                await self._hold_back()
            turn, seen = await self._receive(talk, message)
            if turn.receipt and turn.receipt != talk.receipt:
                talk.receipt = turn.receipt
                talk.pace.messages.give_back()
            await self._send(talk.socket, talk.request, turn)
            if isinstance(turn.next, Wait):
                raw = await self._say_news(talk, message, turn, seen)

    async def _say_news(
        self, talk: _Talk, message: FromClient, told: Turn, seen: int
    ) -> bytes:
        """Answer a message that waits again whenever there is more to say.

        Returns:
            The next message.
        """
        reading = asyncio.create_task(self._read(talk.socket, talk.pace))
        try:
            while not await self._message_or_news(reading, seen):
                await self._hold_back()
                turn, seen = await self._receive(talk, message, repeated=True)
                if turn != told:
                    told = turn
                    await self._send(talk.socket, talk.request, turn)
                if not isinstance(turn.next, Wait):
                    return await reading
            return reading.result()
        finally:
            reading.cancel()
            # Whatever it ended with, this conversation is over, or its message is in hand.
            await asyncio.wait([reading])

    async def _hold_back(self) -> None:
        """Wait for the random time that the task wants before a message is taken.

        It holds this conversation only, and in it everything: its answers keep their order.
        """
        if longest := self.brokerage.task.training.reply_delay:
            await asyncio.sleep(longest * self._random())

    async def _send(
        self, socket: web.WebSocketResponse, request: web.Request, turn: Turn
    ) -> None:
        """Send a turn to somebody who takes it, and not for ever."""
        raw = encode(turn)
        wire = request.transport
        if wire is not None and wire.get_write_buffer_size() + len(raw) < _SENT_AT_ONCE:
            await socket.send_bytes(raw)
            return
        async with asyncio.timeout(self._limits.send_seconds + len(raw) / SLOWEST):
            await socket.send_bytes(raw)

    async def _receive(
        self, talk: _Talk, message: FromClient, repeated: bool = False
    ) -> tuple[Turn, int]:
        """The answer, and which news of the model it already knows."""
        turn = self.brokerage.receive(talk.token, message, self._now(), repeated)
        seen = self.brokerage.stirred
        if not repeated and (not isinstance(turn.next, Refused)
                             or self.brokerage.present(talk.token, self._now())):
            # Its session spoke, and has its place.
            talk.heard = self._now()
        self._stir()
        await self._on_disk()
        return turn, seen

    async def _message_or_news(self, reading: asyncio.Task[bytes], seen: int) -> bool:
        """Wait for the client's next message, or for news of the model; True for a message."""
        while not reading.done() and self.brokerage.stirred == seen:
            waits: list[asyncio.Future[Any]] = [reading, self._news]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return reading.done()

    async def _read(self, socket: web.WebSocketResponse, pace: _Pace) -> bytes:
        """The next message, not before its turn: what comes too fast waits unread."""
        while True:
            message = await socket.receive()
            pace.messages.rate = self._rate
            pings = message.type in (WSMsgType.PING, WSMsgType.PONG)
            if wait := (pace.pings if pings else pace.messages).take(self._now()):
                await asyncio.sleep(wait)
            if message.type is WSMsgType.BINARY and isinstance(message.data, bytes):
                return message.data
            if message.type is WSMsgType.TEXT:
                raise PeerProblem(MALFORMED)
            if message.type is WSMsgType.PING:
                async with asyncio.timeout(self._limits.send_seconds):
                    await socket.pong(message.data)
            elif message.type is not WSMsgType.PONG:
                raise _HungUp

    def _share(self) -> float:
        """Messages a second that each conversation may have, with so many as there are now."""
        limits = self._limits
        share = limits.messages_of_all / max(1, len(self._conversations))
        return min(limits.messages, max(limits.messages_of_one, share))

    async def _hang_up(self, _: web.Application) -> None:
        """End all conversations: with a goodbye to those who listen, soon in any case."""
        tasks = list(self._conversations)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=3 * self._limits.goodbye)

    # -- what goes on by itself ----------------------------------------------------------------

    def _stir(self) -> None:
        """Tell those who wait, if there is anything new."""
        if self._stirred != self.brokerage.stirred:
            self._stirred = self.brokerage.stirred
            self._news.set_result(None)
            self._news = self._loop.create_future()

    async def _on_disk(self) -> None:
        """Wait until everything that has changed by now is on the disk.

        Raises:
            Problem: ``INTERNAL`` when it could not be written; the client sends again.
        """
        written = self._loop.create_future()
        self._unwritten.append(written)
        self._wake.set()
        await written

    async def run(self) -> None:
        """Write changes and watch the clock, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._commit())
            group.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            try:
                self.brokerage.tick(self._now())
                self._stir()
                self._wake.set()
                if self.brokerage.phase == "published" and self.model is None:
                    await self._on_disk()
                    self.model = await asyncio.to_thread(self._publish)
            except Problem as problem:
                if problem.kind is not INTERNAL:
                    log.error("%s", problem.sentence)
            except Exception:
                # A model that stops without a word would keep its clients waiting for ever.
                log.exception("the clock's work failed; it is tried again")
            await asyncio.sleep(TICK)

    async def _all_at_hand(self) -> None:
        """Let in what has come already: one transaction for all of it costs what one for the first
        would. Nobody is waited for."""
        quiet, count, end = 0, -1, self._now() + _SOON
        while quiet < _PASSES and count < _TOGETHER and self._now() < end:
            before, count = count, len(self._unwritten)
            quiet = quiet + 1 if count == before else 0
            await asyncio.sleep(0)

    async def _commit(self) -> None:
        while True:
            await self._wake.wait()
            await self._all_at_hand()
            self._wake.clear()
            waiting, self._unwritten = self._unwritten, []
            changes = self.brokerage.take_changes(self._now())
            try:
                if changes:
                    await asyncio.to_thread(self._store.write, changes)
            except Exception as error:
                log.error("%s The model's clients wait.", error)
                self.brokerage.lose_changes(changes)
                for written in waiting:
                    if not written.done():
                        written.set_exception(Problem(INTERNAL))
                await asyncio.sleep(1.0)
            else:
                for written in waiting:
                    # One that is done already was given up by whoever waited.
                    if not written.done():
                        written.set_result(None)


async def _close(
    socket: web.WebSocketResponse, request: web.Request, goodbye: float
) -> None:
    """Say goodbye to whoever listens, and cut off whoever does not."""
    try:
        async with asyncio.timeout(2 * goodbye):
            await socket.close()
    except (ConnectionError, TimeoutError):
        pass
    finally:
        if request.transport is not None:
            request.transport.abort()


@dataclass(frozen=True, slots=True)
class _Pace:
    """How fast a conversation is read."""

    messages: Bucket
    pings: Bucket


@dataclass(slots=True, repr=False)
class _Talk:
    """A conversation: whose, through what, when it was heard of last and not refused, and the last
    ticket that was acknowledged in it."""

    token: bytes
    task: asyncio.Task[object]
    socket: web.WebSocketResponse
    request: web.Request
    pace: _Pace
    heard: float
    receipt: bytes = b""


class _HungUp(Exception):
    """The other side has closed the conversation."""
