"""Hostile bytes over real sockets: at a desk and its models, and at a client from a server.

The desk is the real one, with a model in training, each behind its unix socket as behind Tor. Its
limits on how many and how fast are lifted, as it is not a flood that is tried here; all others
are as they are. Each connection gets one hostile input, sends it, and says that it is done.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from accord import puzzle
from accord.circuit import Circuit, Route
from accord.messages import (
    SALT_BYTES,
    AdmissionPuzzle,
    Curate,
    Curated,
    Hello,
    Join,
    Pull,
    Push,
    Refused,
    Status,
    Turn,
    Welcome,
    Work,
    decode,
    encode,
    turn_limit,
    vector_to_wire,
)
from accord.problems import TRAVELS, Problem
from accord.task import sign
from broker.desk import Desk, Publisher
from broker.limits import Limits
from lab.soak.book import DIMENSION
from lab.soak.fuzz_targets import ONION, SEED, holds
from lab.soak.mutation import SAMPLES, Chance, hostile, mutated
from lab.soak.setting import CURATOR, LABELS, ROWS, Setting, make_task
from lab.soak.sockets import Sockets

STATUSES: Final = {kind.http for kind in TRAVELS if kind.http != 500} | {200, 101}
"""HTTP statuses with which a desk may answer; 500 would be a mistake of its own."""
SECONDS: Final = 20.0
"""Within which a connection that has said all it has to say is answered or closed."""
QUIET: Final = 0.1
"""Seconds without a word after which somebody who tries bytes hangs up."""
_PATHS: Final = (b"/", b"/task", b"/status", b"/puzzle", b"/join", b"/train", b"/model",
                 b"/curate", b"/nothing", b"/../etc", b"/%00", b"*", b"http://x/task",
                 b"/status?" + b"a=b&" * 400)
_METHODS: Final = (b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"TRACE", b"G\x00T")
_HEADERS: Final = (
    b"Content-Length: 99999999999999999999", b"Content-Length: -1", b"Content-Length: 5",
    b"Content-Length: 5\r\nContent-Length: 6", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked", b"Content-Encoding: gzip", b"Content-Encoding: br",
    b"Expect: 100-continue", b"Expect: nothing", b"Connection: keep-alive", b"Upgrade: h2c",
    b"Connection: upgrade", b"Sec-WebSocket-Version: 8", b"Sec-WebSocket-Extensions: "
    b"permessage-deflate; server_max_window_bits=99", b"X: " + b"y" * 9000, b"\xff\xfe: \x80",
    b"Range: bytes=0-1,5-", b"If-Modified-Since: x", b"Cookie: " + b"a=b;" * 300, b" folded",
    b"Content-Type: multipart/form-data; boundary=" + b"x" * 80, b"Host: a\r\nHost: b", b":")
_KEY: Final = base64.b64encode(bytes(16))


class Complaints(logging.Handler):
    """Everything that is logged as an error, warned of by a library, or that the event loop
    complains of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if record.levelno >= logging.ERROR or record.name == "py.warnings":
            self.found.append(self.format(record)[:2000])

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While the body runs."""
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()
        loop.set_exception_handler(
            lambda _, context: self.found.append(str(context.get("exception", context))))
        root = logging.getLogger()
        root.addHandler(self)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", RuntimeWarning)
                logging.captureWarnings(True)
                yield
        finally:
            logging.captureWarnings(False)
            root.removeHandler(self)
            loop.set_exception_handler(before)


class DeskTarget:
    """A real desk with one model; see :meth:`open`."""

    def __init__(self, desk: Path, model: Path, token: bytes) -> None:
        self._desk = desk
        self._model = model
        self._token = token

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, directory: Path) -> AsyncIterator[DeskTarget]:
        """Start the desk, have it host a model, and a client in it."""
        many = Limits(served=1e6, served_at_once=1e6, accepts=1e6, messages=1e6,
                      messages_of_all=1e9, messages_at_once=1e6)
        sockets = Sockets()
        publisher = Publisher(sockets, directory / "run", many)
        desk = Desk(directory, publisher, 1, 3600.0, many)
        try:
            await desk.start()
            await publisher.publish(SEED, desk.app)
            rows = ROWS.astype("<f4").tobytes(), LABELS.astype("u1").tobytes()
            task = make_task(Setting(seed=1, admission=0, update=0, maximum=500, minimum=1,
                                     max_updates=10**8, test="sequential", screen="length"))
            order = Curate(sign(task, CURATOR), *rows, bytes(SALT_BYTES))
            raw = await _post(sockets.paths[ONION], b"/curate", encode(order))
            model = sockets.paths[decode(raw, Curated).onion]
            door = decode(await _post(model, b"/puzzle", b""), AdmissionPuzzle)
            join = Join(door.lock, _solve(door.lock, door.difficulty), 1)
            token = decode(await _post(model, b"/join", encode(join)), Welcome).token
            yield cls(sockets.paths[ONION], model, token)
        finally:
            await desk.close()
            await publisher.close()

    async def one(self, chance: Chance) -> tuple[str, bytes]:
        """One hostile input; what came of it, and the input.

        Raises:
            Fault: an answer that must never be.
        """
        if chance.random() < 0.35:
            return await self.judged(raw := self._conversation(chance), at_desk=False), raw
        raw = _request(chance)
        return await self.judged(raw, at_desk=chance.random() < 0.3), raw

    async def judged(self, raw: bytes, at_desk: bool) -> str:
        """What the desk, or its model, makes of these bytes.

        Raises:
            Fault: an answer that must never be.
        """
        try:
            return _judge(await _exchange(self._desk if at_desk else self._model, raw))
        except (AssertionError, TimeoutError, Problem) as error:
            raise Fault(raw, repr(error)) from error

    async def healthy(self) -> None:
        """Whether an honest request is still answered.

        Raises:
            AssertionError: it is not.
        """
        status = decode(await _post(self._model, b"/status", b""), Status)
        holds(status.phase in ("training", "paused", "gathering"), "the model has ended")

    def _conversation(self, chance: Chance) -> bytes:
        """The bytes of a WebSocket conversation that goes wrong somewhere."""
        head = (b"GET /train HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + _KEY + b"\r\n\r\n")
        token = self._token if chance.random() < 0.8 else chance.randbytes(32)
        hello = Hello(token)
        first = encode(hello) if chance.random() < 0.8 else hostile(hello, chance)
        delta = vector_to_wire(np.full(DIMENSION, chance.choice([0.0, 1e9, np.nan])))
        frames = [_frame(first, chance)]
        for _ in range(chance.randint(1, 4)):
            said: msgspec.Struct = chance.choice(
                [Pull(), Push(chance.randbytes(16), b"", delta, chance.choice([1, 2, 1000]))])
            frames.append(_frame(
                encode(said) if chance.random() < 0.3 else hostile(said, chance), chance))
        tail = b"".join(frames)
        return head + (mutated(tail, chance) if chance.random() < 0.3 else tail)


class Fault(Exception):
    """What must never be. Attributes: raw: the input."""

    def __init__(self, raw: bytes, what: str) -> None:
        super().__init__(what)
        self.raw = raw


def _solve(lock: bytes, difficulty: int) -> bytes:
    found = puzzle.search(lock, difficulty, 0, 1 << 20)
    assert found is not None
    return found


def _frame(payload: bytes, chance: Chance) -> bytes:
    """One frame of RFC 6455, masked with zeros; in one of eight something about it is wrong."""
    first = 0x82
    if chance.random() < 0.12:
        first = chance.choice([0x81, 0x80, 0x02, 0x00, 0x88, 0x89, 0x8A, 0x83, 0xC2, 0xF2, 0xFF])
    mask = 0x80 if chance.random() < 0.98 else 0
    size = len(payload)
    if chance.random() < 0.03:
        size = chance.choice([0, 2**15, 2**31, 2**63, 2**64 - 1])
    if size < 126:
        head = bytes([first, mask | size])
    elif size < 65_536:
        head = bytes([first, mask | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, mask | 127]) + size.to_bytes(8, "big")
    return head + (bytes(4) if mask else b"") + payload


def _request(chance: Chance) -> bytes:
    path = chance.choice(_PATHS)
    method = b"POST" if path in (b"/join", b"/curate") else b"GET"
    if chance.random() < 0.1:
        method = chance.choice(_METHODS)
    body = b""
    if path == b"/join":
        body = hostile(SAMPLES[Join](chance), chance)
    elif path == b"/curate":
        body = hostile(SAMPLES[Curate](chance), chance)
    elif chance.random() < 0.1:
        body = chance.randbytes(chance.choice([1, 100, 5000]))
    headers = [b"Host: a"]
    if body and chance.random() < 0.9:
        headers.append(b"Content-Length: %d" % len(body))
    headers += chance.choices(_HEADERS, k=chance.choice([0, 0, 0, 1, 2]))
    if chance.random() < 0.02:
        headers += [b"A: b"] * 200
    if b"Transfer-Encoding: chunked" in headers and chance.random() < 0.8:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (
            chance.choice([len(body), len(body), 0, 2**40, 2**64]), body)
    version = b"HTTP/1.1" if chance.random() < 0.95 else chance.choice(
        [b"HTTP/1.0", b"HTTP/2", b"HTTP/9.9", b"", b"SIP/1"])
    raw = b"%s %s %s\r\n%s\r\n\r\n%s" % (method, path, version, b"\r\n".join(headers), body)
    return mutated(raw, chance) if chance.random() < 0.4 else raw


async def _exchange(path: Path, raw: bytes, quiet: float | None = QUIET) -> bytes:
    """Send all of it and take what comes until it is closed; after ``quiet`` seconds of silence
    say that no more will come."""
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_unix_connection(str(path))
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(raw)
                await writer.drain()
            answer = bytearray()
            with contextlib.suppress(ConnectionError):
                while True:
                    try:
                        async with asyncio.timeout(quiet):
                            chunk = await reader.read(65_536)
                    except TimeoutError:
                        writer.write_eof()
                        quiet = None
                        continue
                    if not chunk:
                        break
                    answer += chunk
            return bytes(answer)
        finally:
            writer.close()


async def _post(path: Path, what: bytes, body: bytes) -> bytes:
    """The body of an answer to an honest request."""
    method = b"POST" if body else b"GET"
    head = b"%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (method, what, len(body))
    answer = await _exchange(path, head + body, None)
    holds(answer.startswith(b"HTTP/1.1 200"), f"{what!r} is answered {answer[:200]!r}")
    return answer.partition(b"\r\n\r\n")[2]


def _judge(answer: bytes) -> str:
    """What the desk said: all of it must be known and whole.

    Raises:
        AssertionError: it is not.
    """
    if not answer:
        return "closed"
    found = re.match(rb"HTTP/\d\.\d (\d{3}) ", answer)
    if found is None:
        raise AssertionError(f"no HTTP: {answer[:200]!r}")
    status = int(found[1])
    if status == 100:  # to whoever expects it; what it then says follows
        rest = answer.partition(b"\r\n\r\n")[2]
        return _judge(rest) if rest else "100"
    holds(status in STATUSES, f"status {status}: {answer[:300]!r}")
    body = answer.partition(b"\r\n\r\n")[2]
    if status == 101:
        return _frames(body)
    if status != 200 and body:
        return decode(body, Refused).code
    return str(status)


def _frames(raw: bytes) -> str:
    """The last turn of a conversation; every one of them must be a turn."""
    last = "101"
    while len(raw) >= 2:
        size, at = raw[1] & 0x7F, 2
        if size == 126:
            size, at = int.from_bytes(raw[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(raw[2:10], "big"), 10
        payload, opcode = raw[at : at + size], raw[0] & 0x0F
        if len(payload) < size:
            break  # cut off halfway, as whoever is cut off must expect
        if opcode == 2:
            turn = decode(payload, Turn, turn_limit(DIMENSION))
            last = f"turn-{type(turn.next).__name__.lower()}"
            if isinstance(turn.next, Refused):
                last = turn.next.code
                holds(last != "internal", "a mistake of its own")
            if isinstance(turn.next, Work):
                holds(len(turn.next.weights) == 4 * DIMENSION, "strange weights")
        raw = raw[at + size:]
    return last


class CircuitTarget:
    """:class:`accord.circuit.Circuit` against a server that answers with hostile bytes."""

    def __init__(self, port: int) -> None:
        self._route = Route(socks=None, direct=("127.0.0.1", port))
        self.answer = b""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls) -> AsyncIterator[CircuitTarget]:
        """Start the server."""
        target: CircuitTarget | None = None

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
                head = await reader.readuntil(b"\r\n\r\n")
                assert target is not None
                key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
                accept = base64.b64encode(_sha1(key[1])) if key else b""
                writer.write(target.answer.replace(b"<ACCEPT>", accept))
                await writer.drain()
                writer.write_eof()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            target = cls(server.sockets[0].getsockname()[1])
            yield target
        finally:
            server.close()

    async def one(self, chance: Chance) -> tuple[str, bytes]:
        """One hostile answer; what came of it, and the answer.

        Raises:
            Fault: something else than a problem.
        """
        socket = chance.random() < 0.5
        self.answer = _turns(chance) if socket else _answer(chance)
        try:
            async with asyncio.timeout(SECONDS):
                async with Circuit(self._route, ONION, "me", patience=5.0) as circuit:
                    if not socket:
                        decode(await circuit.get("/status"), Status)
                        return "status", self.answer
                    line = await circuit.websocket("/train", turn_limit(DIMENSION))
                    try:
                        while True:
                            decode(await line.receive(5.0), Turn, turn_limit(DIMENSION))
                    finally:
                        await line.close()
        except Problem as problem:
            return problem.kind.code, self.answer
        except Exception as error:
            raise Fault(self.answer, repr(error)) from error


def _sha1(key: bytes) -> bytes:
    return hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()  # noqa: S324


def _answer(chance: Chance) -> bytes:
    status = chance.choice([b"200 OK", b"200 OK", b"404 x", b"403 x", b"500 x", b"301 x", b"101 x",
                            b"204 x", b"999 x", b"-1 x"])
    kind = Status if status.startswith(b"200") else Refused
    body = hostile(SAMPLES[kind](chance), chance)
    headers = [b"Content-Length: %d" % len(body)]
    headers += chance.choices([*_HEADERS, b"Location: http://example.com/"],
                              k=chance.choice([0, 0, 1, 2]))
    raw = b"HTTP/1.1 %s\r\n%s\r\n\r\n%s" % (status, b"\r\n".join(headers), body)
    return mutated(raw, chance) if chance.random() < 0.4 else raw


def _turns(chance: Chance) -> bytes:
    frames = []
    for _ in range(chance.randint(1, 3)):
        raw = _frame(hostile(SAMPLES[Turn](chance), chance), chance)
        # As a server's are: not masked.
        frames.append(raw if chance.random() < 0.1 else _unmasked(raw))
    head = (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            b"Sec-WebSocket-Accept: <ACCEPT>\r\n\r\n")
    tail = b"".join(frames)
    return head + (mutated(tail, chance) if chance.random() < 0.4 else tail)


def _unmasked(frame: bytes) -> bytes:
    size = frame[1] & 0x7F
    at = {126: 4, 127: 10}.get(size, 2)
    if not frame[1] & 0x80:
        return frame
    return frame[:1] + bytes([size]) + frame[2:at] + frame[at + 4:]
