"""The door, against peers that do their worst over real unix sockets, with small limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from broker_world import make_brokerage, make_task, solve

from accord.messages import (
    AdmissionPuzzle,
    Hello,
    Join,
    Leave,
    Pull,
    Refused,
    Status,
    Turn,
    Welcome,
    Work,
    decode,
    encode,
)
from accord.task import Clients
from broker.direct import DirectFront
from broker.doorman import Door
from broker.limits import Bucket, Limits
from broker.line import Line
from broker.model_app import ModelApp
from broker.store import Store

UPGRADE = (b"GET /train HTTP/1.1\r\nHost: m\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
GET = b"GET /status HTTP/1.1\r\nHost: m\r\n\r\n"
SOON = 3.0
"""Seconds within which an honest request is answered here, on a busy machine."""
BINARY, PING, MORE = 0x82, 0x89, 0x02


def frame(first: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """A masked frame (mask 0), which may say that it is longer than it is."""
    length = len(payload) if length is None else length
    head = bytes([first, 0x80 | length]) if length < 126 else (
        bytes([first, 0xFE]) + struct.pack(">H", length))
    return head + bytes(4) + payload


@dataclass
class Place:
    """A model behind its door."""

    path: Path
    door: Door
    app: ModelApp
    closed: bool = False

    def counts(self) -> tuple[int, ...]:
        """What is open: waiting, strangers, members, aiohttp's own, tasks."""
        doorman = self.door.doorman
        return (len(self.door.line), len(doorman.strangers), len(doorman.members),
                len(doorman.connections), len(asyncio.all_tasks()))

    async def connect(self, said: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(said)
        return reader, writer

    async def say(self, said: bytes) -> bytes:
        """All that is answered, until the end."""
        reader, writer = await self.connect(said)
        try:
            async with asyncio.timeout(20):
                return await _until_cut(reader)
        finally:
            writer.close()

    async def honest(self) -> float:
        """An honest request: the seconds it takes."""
        began = time.monotonic()
        head, _, body = (await self.say(GET)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        decode(body, Status)
        return time.monotonic() - began

    async def join(self) -> bytes:
        """A session's token."""
        _, _, body = (await self.say(b"GET /puzzle HTTP/1.1\r\nHost: m\r\n\r\n")).partition(
            b"\r\n\r\n")
        door = decode(body, AdmissionPuzzle)
        join = encode(Join(door.lock, solve(door.lock, door.difficulty), 1))
        _head, _, body = (await self.say(post(join))).partition(b"\r\n\r\n")
        return decode(body, Welcome).token

    @contextlib.asynccontextmanager
    async def member(self, token: bytes | None = None) -> AsyncIterator[Member]:
        """A conversation that has said hello."""
        reader, writer = await self.connect(UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(frame(BINARY, encode(Hello(token or await self.join()))))
        try:
            yield Member(reader, writer)
        finally:
            writer.close()


@dataclass
class Member:
    """One end of a WebSocket, in bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hear(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        async with asyncio.timeout(20):
            first, length = await self.reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            return first & 0x0F, await self.reader.readexactly(length)

    async def ask(self, message: object) -> Turn:
        self.writer.write(frame(BINARY, encode(message)))
        while True:
            kind, payload = await self.hear()
            if kind == 2:
                return decode(payload, Turn, 1 << 16)


def post(body: bytes, more: bytes = b"") -> bytes:
    return (b"POST /join HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n" % len(body) + more
            + b"\r\n" + body)


async def _until_cut(reader: asyncio.StreamReader) -> bytes:
    heard = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65_536):
            heard += piece
    return heard


@contextlib.asynccontextmanager
async def serve(directory: Path, clients: Clients | None = None, **small: float) -> (
        AsyncIterator[Place]):
    """A model with small limits; nothing may be left of its visitors in the end."""
    limits = Limits(**small)  # type: ignore[arg-type]
    brokerage = make_brokerage(
        make_task(**({"clients": clients} if clients else {})),
        now=asyncio.get_running_loop().time())
    store = Store(directory / "model.db")
    app = ModelApp(brokerage, store, lambda: b"", limits=limits)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "s"))
    door = Door(app.app, listener, limits)
    await door.open()
    life = asyncio.create_task(app.run())
    place = Place(directory / "s", door, app)
    await asyncio.sleep(0.05)
    before = place.counts()
    try:
        yield place
        for _ in range(200):
            if place.closed or place.counts() == before:
                break
            await asyncio.sleep(0.05)
        assert place.closed or place.counts() == before
    finally:
        await door.close()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        store.close()


def test_a_bucket_gives_so_many_a_second_and_no_more_after_a_pause():
    bucket = Bucket(10.0, 3.0, now=0.0)
    assert [bucket.take(0.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    assert bucket.take(0.2) == pytest.approx(0.1)
    assert [bucket.take(99.0) for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])
    assert bucket.take(50.0) == pytest.approx(0.2), "a clock that goes back gives nothing"


async def test_whoever_says_nothing_is_sent_away(tmp_path):
    async with serve(tmp_path, head_seconds=0.4) as place:
        began = time.monotonic()
        reader, writer = await place.connect()
        assert await place.honest() < SOON
        async with asyncio.timeout(5):
            assert await _until_cut(reader) == b""
        assert time.monotonic() - began >= 0.35
        writer.close()


@pytest.mark.parametrize(("begin", "drip"), [
    (b"GET /status HTTP/1.1\r\n", b"X"), (b"GET /", b"x"),
    (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
])
async def test_a_header_that_drips_is_cut(tmp_path, begin, drip):
    async with serve(tmp_path, head_seconds=0.4) as place:
        reader, writer = await place.connect(begin)
        cut = asyncio.create_task(_until_cut(reader))
        began = time.monotonic()
        while not cut.done():
            writer.write(drip)
            await asyncio.sleep(0.05)
            assert time.monotonic() - began < 5
        assert cut.result() == b""
        assert await place.honest() < SOON
        writer.close()


@pytest.mark.slow
@pytest.mark.parametrize("head", [b"Content-Length: 500\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_a_body_that_drips_is_refused(tmp_path, head):
    async with serve(tmp_path, read_seconds=0.4) as place:
        reader, writer = await place.connect(b"POST /join HTTP/1.1\r\nHost: m\r\n" + head + b"\r\n")
        heard = asyncio.create_task(_until_cut(reader))
        began = time.monotonic()
        while not heard.done():
            writer.write(b"1\r\nx\r\n" if b"chunked" in head else b"x")
            await asyncio.sleep(0.05)
            assert time.monotonic() - began < 8
        assert _sentence(heard.result()) == "malformed"
        assert await place.honest() < SOON
        writer.close()


def _sentence(heard: bytes) -> str:
    head, _, body = heard.partition(b"\r\n\r\n")
    assert b"\r\nServer: tormentor" in head and b"ython" not in head and b"aiohttp" not in heard
    assert head.split(b" ")[1].startswith(b"4"), head
    # What cannot be parsed is answered in HTTP/1.0, where that goes without saying.
    assert b"\r\nConnection: close" in head or head.startswith(b"HTTP/1.0 "), head
    return decode(body, Refused).code


HUGE = b"x" * 1_000_000
UNPARSED = {
    "random": b"\x00\xff\x16\x03\x01 no such thing\r\n\r\n",
    "header": b"GET / HTTP/1.1\r\nHost: m\r\nA: " + HUGE + b"\r\n\r\n",
    "headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
    "url": b"GET /" + HUGE + b" HTTP/1.1\r\nHost: m\r\n\r\n",
    "length": b"POST /join HTTP/1.1\r\nHost: m\r\nContent-Length: -1\r\n\r\n",
    "lengths": b"POST /join HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "both": (b"POST /join HTTP/1.1\r\nHost: m\r\nContent-Length: 1\r\n"
             b"Transfer-Encoding: chunked\r\n\r\nx"),
    "version": b"GET / HTTP/9.9\r\nHost: m\r\n\r\n",
    "chunk": b"POST /join HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "expect": post(b"x", b"Expect: a miracle\r\n"),
    "gzip": post(b"no gzip", b"Content-Encoding: gzip\r\n"),
    "upgrade": b"GET /train HTTP/1.1\r\nHost: m\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "key": UPGRADE.replace(b"AAAA==", b"!!"),
    "method": b"BREW / HTTP/1.1\r\nHost: m\r\n\r\n",
    "host": b"GET http://[::1/ HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("kind", UNPARSED)
async def test_what_cannot_be_parsed_gets_our_sentence_and_no_line_in_the_log(
    tmp_path, kind, caplog
):
    with caplog.at_level(logging.INFO):
        async with serve(tmp_path) as place:
            assert _sentence(await place.say(UNPARSED[kind])) in ("malformed", "not-found")
            assert await place.honest() < SOON
    assert caplog.records == []


@pytest.mark.slow
async def test_a_chunked_body_without_end_is_read_no_further_than_its_limit(tmp_path):
    async with serve(tmp_path) as place:
        reader, writer = await place.connect(
            b"POST /join HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n")
        heard = asyncio.create_task(_until_cut(reader))
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not heard.done():
                writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
                await writer.drain()
                sent += 0x1000
                assert sent < 1 << 28
                await asyncio.sleep(0.001)
        assert _sentence(await heard) == "too-large"
        writer.close()


@pytest.mark.slow
async def test_a_chunk_that_goes_wrong_later_is_malformed_too(tmp_path, caplog):
    async with serve(tmp_path, read_seconds=1.0) as place:
        reader, writer = await place.connect(
            b"POST /join HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        while not place.door.doorman.strangers:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        writer.write(b"zz\r\n")
        async with asyncio.timeout(SOON):
            assert _sentence(await _until_cut(reader)) == "malformed"
        writer.close()
    assert caplog.records == []


@pytest.mark.slow
def test_the_same_where_aiohttp_parses_in_python():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k",
         "goes_wrong_later or drip or cannot_be_parsed and not version"],
        env=os.environ | {"AIOHTTP_NO_EXTENSIONS": "1"}, cwd=Path(__file__).parent.parent,
        capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout


async def test_one_connection_brings_one_request_however_many_it_pipelines(tmp_path):
    async with serve(tmp_path) as place:
        heard = await place.say(GET * 2000)
        assert heard.count(b"HTTP/1.1 ") == 1
        assert await place.honest() < SOON


async def test_handshakes_left_half_open_end(tmp_path):
    async with serve(tmp_path, hello_seconds=0.4, goodbye=0.2) as place:
        ends = [await place.connect(UPGRADE) for _ in range(20)]
        # Pings do not make it longer.
        pinging = [asyncio.create_task(_ping(writer)) for _, writer in ends[:5]]
        assert await place.honest() < SOON
        async with asyncio.timeout(6):
            await asyncio.gather(*(_until_cut(reader) for reader, _ in ends))
        await asyncio.gather(*pinging)
        for _, writer in ends:
            writer.close()


async def _ping(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(frame(PING))
        await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("length", [100, 3000])
async def test_a_frame_that_drips_is_cut_in_spite_of_heartbeats(tmp_path, length):
    async with (
        serve(tmp_path, read_seconds=0.5, heartbeat=0.3, goodbye=0.2) as place,
        place.member() as slow,
    ):
        cut = asyncio.create_task(_until_cut(slow.reader))
        began = time.monotonic()
        for byte in frame(BINARY, b"x" * length):
            slow.writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
            if cut.done():
                break
        assert cut.done() and time.monotonic() - began < 4
        assert await place.honest() < SOON


async def test_a_frame_that_comes_in_pieces_but_in_time_is_heard(tmp_path):
    async with serve(tmp_path, read_seconds=5.0) as place, place.member() as slow:
        for _ in range(3):
            for byte in frame(PING) + frame(BINARY, encode(Pull()))[:-1]:
                slow.writer.write(bytes([byte]))
                await asyncio.sleep(0.002)
            slow.writer.write(frame(BINARY, encode(Pull()))[-1:] + frame(PING, b"later"))
            heard = [await slow.hear() for _ in range(3)]
            assert sorted(kind for kind, _ in heard) == [2, 10, 10]


async def test_fragments_are_cut_at_once(tmp_path):
    for first in (MORE, 0x00, 0x80, 0x09):
        (tmp_path / str(first)).mkdir()
        async with serve(tmp_path / str(first), goodbye=0.2) as place, place.member() as bad:
            await bad.ask(Pull())
            with contextlib.suppress(ConnectionError):
                bad.writer.write(frame(first) * 10_000)
                async with asyncio.timeout(SOON):
                    assert await _until_cut(bad.reader) == b""


@pytest.mark.slow
async def test_pings_come_no_faster_than_they_may(tmp_path):
    async with (
        serve(tmp_path, pings=50, pings_at_once=20, goodbye=0.2) as place,
        place.member() as bad,
        place.member() as good,
    ):
        began = time.monotonic()
        bad.writer.write(frame(PING) * 30_000)
        pongs = 0
        while time.monotonic() - began < 1.0:
            assert (await bad.hear())[0] == 10
            pongs += 1
        assert 20 <= pongs <= 20 + 60 * (time.monotonic() - began)
        assert isinstance((await good.ask(Pull())).next, Work)
        assert await place.honest() < SOON


@pytest.mark.slow
async def test_messages_that_come_too_fast_are_read_later_and_none_is_lost(tmp_path):
    async with (
        serve(tmp_path, messages=100, messages_at_once=10) as place,
        place.member() as fast,
        place.member() as good,
    ):
        began = time.monotonic()
        fast.writer.write(frame(BINARY, encode(Pull())) * 80)
        assert isinstance((await good.ask(Pull())).next, Work)
        assert time.monotonic() - began < 0.6, "it did not wait for the other's messages"
        for _ in range(80):
            assert (await fast.hear())[0] == 2
        # Hello is one; 10 at once, the rest at 100 a second.
        assert time.monotonic() - began >= 0.65


@pytest.mark.slow
async def test_many_sessions_have_no_more_messages_together_and_all_the_same(tmp_path):
    small = {"messages": 1000, "messages_of_all": 60, "messages_of_one": 15, "messages_at_once": 1}
    async with serve(tmp_path, **small) as place, contextlib.AsyncExitStack() as stack:
        members = []
        for share in (60, 30, 20, 15, 15):  # of one, two, ... and the least at last
            members.append(await stack.enter_async_context(place.member()))
            await members[-1].ask(Pull())
            assert place.app._share() == share
        began = time.monotonic()
        for member in members:
            member.writer.write(frame(BINARY, encode(Pull())) * 15)
        for member in members:
            for _ in range(15):
                assert (await member.hear())[0] == 2
        assert time.monotonic() - began >= 0.9


@pytest.mark.slow
async def test_the_memory_that_a_session_s_messages_fill_is_bounded(tmp_path):
    async with (
        serve(tmp_path, messages=1, messages_at_once=2, heartbeat=1.6, goodbye=0.2) as place,
        place.member() as fast,
    ):
        async def push() -> None:
            while True:
                fast.writer.write(frame(BINARY, encode(Pull())) * 100)
                await fast.writer.drain()

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(push(), 1.0)
        # Nothing more is taken from it: the rest is in the kernel's buffer, and in our own. With
        # so much before them its pongs are not heard, and so it does not outlive the heartbeat.
        assert fast.writer.transport.get_write_buffer_size() > 0
        assert await place.honest() < SOON


async def test_whoever_does_not_take_an_answer_is_cut_and_no_copy_is_kept_for_it(tmp_path):
    async with serve(tmp_path, send_seconds=0.5) as place:
        # Besides half a second, they have the seconds for its size.
        place.app.model = bytes(6 << 20)
        sockets = []
        for _ in range(5):
            one = socket.socket(socket.AF_UNIX)
            one.connect(str(place.path))
            one.sendall(b"GET /model HTTP/1.1\r\nHost: m\r\n\r\n")
            sockets.append(one)
        await asyncio.sleep(0.5)
        visits = list(place.door.doorman.strangers)
        assert len(visits) == 5
        assert all(v._wire.get_write_buffer_size() < 200_000 for v in visits)
        assert await place.honest() < SOON
        for visit in visits:
            # As when its time is over: see the next test.
            visit.cut()
        for one in sockets:
            one.close()


async def test_the_time_to_take_an_answer_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("broker.doorman.SLOWEST", 1 << 30)
    async with serve(tmp_path, send_seconds=0.5) as place:
        place.app.model = bytes(4 << 20)
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(str(place.path))
            deaf.sendall(b"GET /model HTTP/1.1\r\nHost: m\r\n\r\n")
            began = time.monotonic()
            while not place.door.doorman.strangers:
                await asyncio.sleep(0.01)
            while place.door.doorman.strangers:
                await asyncio.sleep(0.05)
                assert time.monotonic() - began < 5
            assert time.monotonic() - began >= 0.4
            assert await place.honest() < SOON


async def test_a_model_is_sent_whole_to_whoever_reads(tmp_path):
    async with serve(tmp_path) as place:
        place.app.model = os.urandom(5 << 20)
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(place.path))
        ) as session, session.get("http://m/model") as answer:
            assert await answer.read() == place.app.model
            assert answer.headers["Content-Length"] == str(5 << 20)


async def test_strangers_push_out_the_oldest_stranger_and_never_a_member(tmp_path):
    async with serve(tmp_path, strangers=5, goodbye=0.2) as place, place.member() as member:
        await member.ask(Pull())
        ends = [await place.connect(UPGRADE) for _ in range(5)]
        for reader, _ in ends:
            await reader.readuntil(b"\r\n\r\n")
        assert len(place.door.doorman.strangers) == 5
        ends.append(await place.connect(UPGRADE))
        async with asyncio.timeout(SOON):
            assert await _until_cut(ends[0][0]) == b""
        # A newcomer is served, and it is the oldest that goes for it.
        assert await place.honest() < SOON
        async with asyncio.timeout(SOON):
            assert await _until_cut(ends[1][0]) == b""
        assert len(place.door.doorman.strangers) == 4
        assert isinstance((await member.ask(Pull())).next, Work)
        for _, writer in ends:
            writer.close()


async def test_idle_sockets_keep_no_newcomer_out(tmp_path):
    async with serve(tmp_path, silent=20, strangers=5, served=50, served_at_once=5) as place:
        ends = [await place.connect() for _ in range(200)]
        assert await place.honest() < SOON
        assert len(place.door.line) <= 20 and not place.door.doorman.strangers
        gone = await asyncio.wait_for(
            asyncio.gather(*(_until_cut(reader) for reader, _ in ends[:100])), SOON)
        assert gone == [b""] * 100, "the oldest ones"
        for _, writer in ends:
            writer.close()


async def test_whoever_hangs_up_costs_nobody_a_turn(tmp_path):
    async with serve(tmp_path, served=2, served_at_once=3) as place:
        for _ in range(300):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(place.path))
                rude.sendall(GET)
            await asyncio.sleep(0)
        assert await place.honest() < SOON
        # Nor does it when they stood in line before.
        ends = [await place.connect(GET) for _ in range(40)]
        while len(place.door.line) < 30:
            await asyncio.sleep(0.01)
        for _, writer in ends:
            writer.close()
        assert await place.honest() < SOON


@pytest.mark.slow
async def test_requests_are_answered_no_faster_and_in_order(tmp_path):
    async with serve(tmp_path, served=20, served_at_once=2) as place:
        began = time.monotonic()
        order: list[int] = []

        async def ask(number: int) -> None:
            await place.honest()
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(22):
                group.create_task(ask(number))
                await asyncio.sleep(0)
        assert time.monotonic() - began >= 0.9
        assert order == sorted(order)


@pytest.mark.slow
async def test_a_full_line_takes_nobody_more(tmp_path):
    async with serve(tmp_path, served=1, served_at_once=1, line=10) as place:
        ends = [await place.connect(GET) for _ in range(40)]
        await asyncio.sleep(0.3)
        assert len(place.door.line) <= 10
        for _, writer in ends:
            writer.close()


async def test_without_descriptors_the_oldest_makes_room(tmp_path, monkeypatch):
    async with serve(tmp_path) as place:
        first, writer = await place.connect()
        await place.honest()
        loop = asyncio.get_running_loop()
        real, times = loop.sock_accept, iter(range(2))

        async def exhausted(listener: socket.socket) -> tuple[socket.socket, object]:
            if next(times, None) is not None:
                raise OSError(24, "Too many open files")
            return await real(listener)

        monkeypatch.setattr(loop, "sock_accept", exhausted)
        await place.honest()
        assert await place.honest() < SOON
        async with asyncio.timeout(SOON):
            assert await _until_cut(first) == b""
        writer.close()


@pytest.mark.slow
async def test_two_thousand_connections(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        async with (
            serve(tmp_path, head_seconds=2.0, hello_seconds=2.0, goodbye=0.2) as place,
            place.member() as member,
        ):
            ends = []
            for said in (b"", UPGRADE, b"GET / HT", post(b"x" * 9)[:-1]) * 500:
                with contextlib.suppress(OSError):
                    ends.append(await place.connect(said))
                await asyncio.sleep(0.0005)
            assert len(ends) > 1900
            assert isinstance((await member.ask(Pull())).next, Work)
            assert await place.honest() < 20
            for _, writer in ends:
                writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_conversations_are_no_more_than_places_and_a_few(tmp_path):
    rules = Clients(minimum=1, maximum=2, silence=30.0)
    async with serve(tmp_path, rules, spare_conversations=1, goodbye=0.2) as place:
        early = [await place.join(), await place.join()]
        for token in early:
            async with place.member(token) as gone:
                await gone.ask(Leave())
        async with place.member() as one, place.member() as two:
            await one.ask(Pull())
            await two.ask(Pull())
            async with place.member(early[0]) as first, place.member(early[1]):
                async with asyncio.timeout(SOON):
                    await _until_cut(first.reader)
                # Those who have places stay, however long they have said nothing.
                assert isinstance((await one.ask(Pull())).next, Work)
                assert isinstance((await two.ask(Pull())).next, Work)


async def test_a_door_closes_although_nobody_goes(tmp_path):
    async with serve(tmp_path, goodbye=0.2) as place:
        ends = [await place.connect(said) for said in (b"", b"GET", UPGRADE, post(b"xx")[:-1])]
        async with place.member() as member:
            await member.ask(Pull())
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await place.door.close()
            place.closed = True
            assert place.counts()[:4] == (0, 0, 0, 0)
            assert time.monotonic() - began < 12
        for _, writer in ends:
            writer.close()


async def test_the_front_without_tor_has_the_same_limits(tmp_path):
    front = DirectFront(Limits(head_seconds=0.4, strangers=5, send_seconds=0.5))
    host, port = await front.listen("127.0.0.1", 0)
    try:
        async with serve(tmp_path) as place:
            onion = await front.publish(b"m" * 32, place.path)
            drip = await asyncio.open_connection(host, port)
            drip[1].write(b"GET / HTTP/1.1\r\n")
            many = [await asyncio.open_connection(host, port) for _ in range(12)]
            for _, writer in many:
                writer.write(b"GET")
            ends = [drip, *many]
            async with asyncio.timeout(SOON):
                # The oldest ones at once, the others when their time is over.
                assert await _until_cut(drip[0]) == b""
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(f"GET /status HTTP/1.1\r\nHost: {onion}\r\n\r\n".encode())
                assert (await _until_cut(reader)).startswith(b"HTTP/1.1 200 ")
                writer.close()
                await asyncio.gather(*(_until_cut(reader) for reader, _ in ends))
            assert len(front._open) <= 1
            for _, writer in ends:
                writer.close()
    finally:
        await front.close()


async def test_one_that_cannot_be_served_is_closed_and_the_next_one_is_served(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    served: list[socket.socket] = []

    async def serve(connection: socket.socket) -> None:
        if not served:
            served.append(connection.dup())
            raise OSError(24, "Too many open files")
        connection.sendall(b"served")
        connection.close()

    line = Line(listener, Limits(), serve, lambda: None)
    try:
        for answer in (b"", b"served"):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(GET)
            if served:
                served[0].close()
            async with asyncio.timeout(SOON):
                while not served:
                    await asyncio.sleep(0.01)
                served[0].close()
                assert await _until_cut(reader) == answer
            writer.close()
    finally:
        await line.close()
