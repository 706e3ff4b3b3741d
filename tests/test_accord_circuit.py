"""Circuits against a server that behaves, one that does anything else, and a SOCKS port."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import itertools
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from accord.circuit import Circuit, Route, fresh_identity
from accord.control import Socks
from accord.messages import encode, refused
from accord.problems import (
    AWAY,
    ENDED,
    FULL,
    MALFORMED,
    NOT_AN_ONION,
    NOT_INVITED,
    TOO_LARGE,
    TOR_AWAY,
    Kind,
    PeerProblem,
    Problem,
)

ONION = "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.onion"
PATIENCE = 1.0
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def hostile(behave: Behaviour) -> AsyncIterator[Circuit]:
    """A circuit to a server that reads a request's head and then does as it likes."""
    writers, tasks = [], []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.append(asyncio.create_task(behave(reader, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with Circuit(Route(None, ("127.0.0.1", port)), ONION, "x", PATIENCE) as circuit:
            yield circuit
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()


def says(*parts: bytes, forever: bytes = b"", pause: float = 0.0, stay: bool = True) -> Behaviour:
    """Answer with these bytes, then with ``forever`` for ever, then be silent or hang up."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
        while forever:
            writer.write(forever)
            await writer.drain()
            await asyncio.sleep(pause)
        await writer.drain()
        if stay:
            await asyncio.sleep(60)
        writer.close()

    return behave


def talks(*frames: bytes, forever: bytes = b"", pause: float = 0.0, stay: bool = True,
          head: bytes = b"") -> Behaviour:
    """Take part in a WebSocket handshake, then send these frames."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
        magic = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: "
                     b"Upgrade\r\nSec-WebSocket-Accept: " + base64.b64encode(magic)
                     + b"\r\n" + head + b"\r\n")
        for frame in frames:
            writer.write(frame)
        while forever:
            writer.write(forever)
            await writer.drain()
            await asyncio.sleep(pause)
        await writer.drain()
        if stay:
            await asyncio.sleep(60)
        writer.close()

    return behave


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
FULL_BODY = encode(refused(Problem(FULL, maximum=7)))
LIMIT = 10_000


def _status(line: bytes, body: bytes, *more: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"HTTP/1.1 " + b"\r\n".join((line, length, *more)) + b"\r\n\r\n" + body


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        pytest.param(says(CHUNKED, forever=b"2000\r\n" + b"x" * 0x2000 + b"\r\n"), TOO_LARGE,
                     id="endless body"),
        pytest.param(says(HEAD + b"\r\n", forever=b"x" * 65_536), TOO_LARGE,
                     id="endless body without a length"),
        pytest.param(says(HEAD + b"Content-Length: 1000000000000\r\n\r\n"), TOO_LARGE,
                     id="a length beyond reason"),
        pytest.param(says(HEAD + b"Content-Length: 10001\r\n\r\n"), TOO_LARGE, id="one too many"),
        pytest.param(says(HEAD + b"Content-Length: -5\r\n\r\n"), MALFORMED, id="negative length"),
        pytest.param(says(HEAD + b"Content-Length: 100\r\n\r\nhalf", stay=False), AWAY,
                     id="broken off"),
        pytest.param(says(CHUNKED + b"5\r\nhello\r\nzz\r\n"), MALFORMED, id="wrong chunk"),
        pytest.param(says(), AWAY, id="silence"),
        pytest.param(says(stay=False), AWAY, id="hangs up"),
        pytest.param(says(HEAD + b"Content-Length: 9\r\n\r\n"), AWAY, id="silence after the head"),
        pytest.param(says(CHUNKED, forever=b"1\r\nx\r\n", pause=0.05), AWAY, id="a trickle"),
        pytest.param(says(HEAD, forever=b"X: y\r\n", pause=0.05), AWAY, id="a trickle of head"),
        pytest.param(says(HEAD, forever=b"X: y\r\n" * 1000), MALFORMED, id="an endless head"),
        pytest.param(says(HEAD, forever=b"x" * 65_536), MALFORMED, id="an endless line"),
        pytest.param(says(forever=b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.001), AWAY,
                     id="for ever about to answer"),
        pytest.param(says(b"SSH-2.0-OpenSSH_9.2\r\n"), MALFORMED, id="not HTTP"),
        pytest.param(says(b"\x00\xff" * 500), MALFORMED, id="noise"),
        pytest.param(says(_status(b"302 Found", b"", b"Location: http://127.0.0.1:1/")),
                     MALFORMED, id="a redirect"),
        pytest.param(says(_status(b"101 Switching Protocols", b"", b"Upgrade: websocket",
                                  b"Connection: upgrade")), MALFORMED, id="another protocol"),
        pytest.param(says(_status(b"503 x", FULL_BODY)), FULL, id="a refusal"),
        pytest.param(says(_status(b"404 x", b"<html>Not here</html>")), MALFORMED, id="a page"),
        pytest.param(says(_status(b"500 x", b"y" * 5_000)), TOO_LARGE, id="a long refusal"),
        pytest.param(says(_status(b"204 x", b"")), MALFORMED, id="nothing"),
    ],
)
async def test_whatever_is_answered_one_problem_comes_of_it(behave: Behaviour, kind: Kind) -> None:
    tracemalloc.start()
    began = time.monotonic()
    async with hostile(behave) as circuit:
        with pytest.raises(Problem) as caught:
            await circuit.get("/task", LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.kind is kind
    assert isinstance(caught.value, PeerProblem) == (kind is not AWAY)
    assert time.monotonic() - began < PATIENCE + 2 * LIMIT / 16_384 + 1
    assert peak < 20_000_000


def _frame(opcode: int, payload: bytes, *, flags: int = 0x80) -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    return bytes([flags | opcode]) + length + payload


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        pytest.param(talks(_frame(1, b"text")), MALFORMED, id="text"),
        pytest.param(talks(_frame(1, b"\xff")), MALFORMED, id="text that is none"),
        pytest.param(talks(b"\x82\x7f" + (1 << 40).to_bytes(8, "big"), forever=b"x" * 65_536),
                     TOO_LARGE, id="a huge frame"),
        pytest.param(talks(b"\x82\x7f" + b"\xff" * 8), TOO_LARGE, id="the largest frame"),
        pytest.param(talks(_frame(2, b"x" * 10_001)), TOO_LARGE, id="one too many"),
        pytest.param(talks(_frame(2, b"x" * 60, flags=0), forever=_frame(0, b"x" * 60, flags=0)),
                     TOO_LARGE, id="endless fragments"),
        pytest.param(talks(_frame(2, gzip.compress(bytes(1 << 20))[:900], flags=0xC0)), MALFORMED,
                     id="compressed unasked"),
        pytest.param(talks(_frame(2, b"x", flags=0xC0),
                           head=b"Sec-WebSocket-Extensions: permessage-deflate\r\n"), MALFORMED,
                     id="compressed as if agreed"),
        pytest.param(talks(_frame(3, b"")), MALFORMED, id="no such frame"),
        pytest.param(talks(_frame(0, b"x")), MALFORMED, id="the end of nothing"),
        pytest.param(talks(_frame(8, b"\x00\x05")), MALFORMED, id="a wrong goodbye"),
        pytest.param(talks(_frame(8, b"\x03\xe8bye")), AWAY, id="a goodbye"),
        pytest.param(talks(forever=_frame(9, b"ping"), pause=0.01), AWAY, id="only pings"),
        pytest.param(talks(forever=_frame(9, b"ping" * 20) * 100), AWAY, id="a flood of pings"),
        pytest.param(talks(), AWAY, id="silence"),
        pytest.param(talks(stay=False), AWAY, id="hangs up"),
        pytest.param(talks(_frame(2, b"x" * 100)[:50], stay=False), AWAY, id="hangs up halfway"),
        pytest.param(talks(_frame(2, b"x" * 100)[:50]), AWAY, id="stops halfway"),
    ],
)
async def test_whatever_is_said_in_a_websocket(behave: Behaviour, kind: Kind) -> None:
    tracemalloc.start()
    began = time.monotonic()
    async with hostile(behave) as circuit:
        socket = await circuit.websocket("/train", LIMIT)
        with pytest.raises(Problem) as caught:
            await socket.receive(1.0)
        await socket.close()
        await socket.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.kind is kind
    assert isinstance(caught.value, PeerProblem) == (kind is not AWAY)
    assert time.monotonic() - began < 8
    assert peak < 20_000_000


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        pytest.param(says(_status(b"410 Gone", encode(refused(Problem(ENDED))))), ENDED,
                     id="a refusal"),
        pytest.param(says(_status(b"200 OK", b"hello")), MALFORMED, id="a page"),
        pytest.param(says(_status(b"101 Switching Protocols", b"", b"Upgrade: websocket",
                                  b"Connection: upgrade", b"Sec-WebSocket-Accept: no")),
                     MALFORMED, id="a wrong key"),
        pytest.param(says(), AWAY, id="silence"),
    ],
)
async def test_a_handshake_that_fails(behave: Behaviour, kind: Kind) -> None:
    async with hostile(behave) as circuit:
        with pytest.raises(Problem) as caught:
            await circuit.websocket("/train", LIMIT)
    assert caught.value.kind is kind


@pytest.mark.slow
async def test_a_peer_that_takes_nothing_does_not_hold_us() -> None:
    began = time.monotonic()
    async with hostile(talks()) as circuit:
        socket = await circuit.websocket("/train", LIMIT)
        with pytest.raises(Problem) as caught:
            for _ in itertools.count():
                await socket.send(b"x" * 16_384)
        assert caught.value.kind is AWAY
        await socket.close()
    assert time.monotonic() - began < 10


@pytest.mark.slow
async def test_a_peer_that_takes_no_upload_does_not_hold_us(monkeypatch) -> None:
    monkeypatch.setattr("accord.circuit.SLOWEST", 100_000_000)
    began = time.monotonic()
    async with hostile(says()) as circuit:
        with pytest.raises(Problem) as caught:
            await circuit.post("/curate", bytes(50_000_000))
        assert caught.value.kind is AWAY
    assert time.monotonic() - began < 6


async def test_no_redirect_is_followed_even_by_a_handshake() -> None:
    visited = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visited.append(1)
        writer.close()

    async with await asyncio.start_server(elsewhere, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        answer = _status(b"302 Found", b"", b"Location: http://127.0.0.1:%d/" % port)
        asks: list[Callable[[Circuit], Awaitable[object]]] = [
            lambda c: c.get("/"),
            lambda c: c.post("/", b"x"),
            lambda c: c.websocket("/", 9),
        ]
        for ask in asks:
            async with hostile(says(answer)) as circuit:
                with pytest.raises(PeerProblem) as caught:
                    await ask(circuit)
                assert caught.value.kind is MALFORMED
    assert not visited


async def test_nothing_is_decompressed() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    answer = _status(b"200 OK", bomb, b"Content-Encoding: gzip")
    async with hostile(says(answer)) as circuit:
        assert await circuit.get("/model", len(bomb)) == bomb


# -- a server that behaves -------------------------------------------------------------------


@contextlib.asynccontextmanager
async def honest(app: web.Application) -> AsyncIterator[int]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _seen(request: web.Request) -> web.Response:
    await request.read()
    lines = [f"{request.method} {request.path_qs}", *(f"{k}: {v}" for k, v in
                                                      request.headers.items())]
    answer = web.Response(body="\n".join(lines).encode())
    answer.set_cookie("who", "you")
    return answer


async def test_headers_tell_nothing_and_are_always_the_same(monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    app = web.Application()
    app.router.add_route("*", "/{any}", _seen)
    async with (
        honest(app) as port,
        Circuit(Route(None, ("127.0.0.1", port)), ONION.upper(), "x") as circuit,
    ):
        expected = f"GET /task\nHost: {ONION}\nUser-Agent: tormentor"
        for _ in range(2):  # the second time there would be a cookie
            assert (await circuit.get("/task")).decode() == expected
        posted = (await circuit.post("/join", b"12345")).decode()
        assert posted == (f"POST /join\nHost: {ONION}\nUser-Agent: tormentor\n"
                              "Content-Length: 5")


async def test_a_conversation_keeps_its_connection_and_its_order() -> None:
    peers = set()

    async def train(request: web.Request) -> web.WebSocketResponse:
        peers.add(request.transport.get_extra_info("peername"))
        socket = web.WebSocketResponse(max_msg_size=0, heartbeat=0.2)
        await socket.prepare(request)
        async for message in socket:
            await socket.send_bytes(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/train", train)
    async with (
        honest(app) as port,
        Circuit(Route(None, ("127.0.0.1", port)), ONION, "x") as circuit,
    ):
        socket = await circuit.websocket("/train", 100_000)
        for size in (0, 1, 125, 126, 65_535, 65_536, 100_000):
            await socket.send(bytes(size))
            assert await socket.receive(5) == bytes(size)
        waiting = asyncio.create_task(socket.receive(1.0))  # answers the heartbeats meanwhile
        await asyncio.sleep(0.7)
        await socket.send(b"late")
        assert await waiting == b"late"
        await socket.close()
        with pytest.raises(Problem) as caught:
            await socket.send(b"after the end")
        assert caught.value.kind is AWAY
    assert len(peers) == 1


# -- through a SOCKS port --------------------------------------------------------------------


@contextlib.asynccontextmanager
async def socks_port(*replies: int) -> AsyncIterator[tuple[Socks, list[bytes]]]:
    """A stand-in for tor's SOCKS port: notes what it was asked, and replies one code after the
    other, the last one for ever."""
    asked: list[bytes] = []
    coming = iter(replies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply = next(coming, replies[-1])
        await reader.readexactly(2 + 2)
        writer.write(b"\x05\x02")
        name = await reader.readexactly((await reader.readexactly(2))[1])
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x01\x00")
        head = await reader.readexactly(5)
        assert head[3] == 3, "a name, not an address: nothing was resolved here"
        asked.extend((name, await reader.readexactly(head[4])))
        await reader.readexactly(2)
        writer.write(bytes((5, reply, 0, 1)) + bytes(6))
        if reply == 0:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_status(b"200 OK", b"hello"))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Socks("127.0.0.1", server.sockets[0].getsockname()[1]), asked


async def test_an_identity_is_a_socks_name_and_tor_resolves() -> None:
    identity = fresh_identity()
    async with socks_port(0) as (socks, asked), Circuit(Route(socks), ONION, identity) as circuit:
        assert await circuit.get("/") == b"hello"
    assert asked == [identity.encode(), ONION.encode()]
    assert fresh_identity() != identity


@pytest.mark.parametrize(
    ("reply", "words"),
    [(0xF0, "no such onion"), (0xF1, "not valid"), (0xF2, "introduced"), (0xF3, "did not meet"),
     (0xF6, "does not accept"), (0xF7, "took too long"), (0x01, "could not connect"),
     (0x04, "no such onion"), (0x06, "in time"), (0x55, "tor refused")],
)
async def test_tors_own_errors_are_said_in_words(reply: int, words: str) -> None:
    async with (
        socks_port(reply) as (socks, _),
        Circuit(Route(socks), ONION, "x", PATIENCE) as circuit,
    ):
        with pytest.raises(Problem, match=words) as caught:
            await circuit.get("/")
        assert caught.value.kind is AWAY
        with pytest.raises(Problem, match=words):
            await circuit.websocket("/train", 9)


@pytest.mark.parametrize(("reply", "words"), [(0xF4, "no key of ours"), (0xF5, "not among")])
async def test_whoever_is_not_invited_is_told_so(reply: int, words: str) -> None:
    async with (
        socks_port(reply) as (socks, _),
        Circuit(Route(socks), ONION, "x", PATIENCE) as circuit,
    ):
        for ask in (circuit.get("/"), circuit.websocket("/train", 9)):
            with pytest.raises(Problem, match=words) as caught:
                await ask
            assert caught.value.kind is NOT_INVITED


@pytest.mark.parametrize("reply", [0xF4, 0xF5])
async def test_an_invitation_is_shown_only_where_it_is_asked_for(reply: int) -> None:
    shown: list[str] = []

    async def introduce(onion: str) -> None:
        shown.append(onion)

    async def ask(*replies: int) -> int:
        async with (
            socks_port(*replies) as (socks, asked),
            Circuit(Route(socks, None, introduce), ONION, "x", PATIENCE) as circuit,
        ):
            try:
                assert await circuit.get("/") == b"hello"
            except Problem as problem:
                assert problem.kind is NOT_INVITED
                assert replies == (reply,)
            return len(asked) // 2

    assert await ask(0) == 1 and not shown
    assert await ask(reply, 0) == 2 and shown == [ONION]
    # Not invited all the same: it is asked once more, not for ever.
    assert await ask(reply) == 2 and shown == [ONION] * 2


async def test_no_tor_is_told_apart_from_no_onion() -> None:
    async with socks_port(0) as (socks, _):
        pass
    async with Circuit(Route(socks), ONION, "x", PATIENCE) as circuit:
        with pytest.raises(Problem, match=str(socks)) as caught:
            await circuit.get("/")
    assert caught.value.kind is TOR_AWAY
    async with Circuit(Route(None, (socks.host, socks.port)), ONION, "x", PATIENCE) as circuit:
        with pytest.raises(Problem) as caught:
            await circuit.get("/")
    assert caught.value.kind is AWAY


async def test_only_onions_are_spoken_to() -> None:
    with pytest.raises(Problem) as caught:
        Circuit(Route(Socks("127.0.0.1", 9050)), "example.com", "x")
    assert caught.value.kind is NOT_AN_ONION
    with pytest.raises(ValueError):
        Route(None)
