"""None of it on the wire: every byte that a real client sends in a whole training, looked at.

The commands ``join`` and ``solve`` run over ``--direct`` through a tap, which keeps the bytes as
they pass. They are taken apart down to the fields of each message, and each field is compared with
what the broker itself had given out: what is left, and is the client's own, is its ``k``, and its
noised updates. Random by nature, and so of no meaning here, are the keys of WebSocket (RFC 6455).
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from client_home import World, a_world
from client_world import ONION, write_rows

from accord import puzzle
from accord.messages import Work

ROWS: Final = 211
WISHES: Final[dict[str, dict[str, object]]] = {
    "the usual": {},
    "epsilon": {"--epsilon": 0.7310585},
    "a large epsilon": {"--epsilon": 7.912345, "--budget": 123.4567},
    "batch": {"--batch": 37},
    "budget": {"--budget": 16.54321},
    "delta": {"--delta": 3.1234567e-07},
    "rows": {"rows": 1234},
    "wishes to leave": {"--leave-if-share": 0.8765432, "--leave-if-struck": None},
    "difficulty": {"--max-difficulty": 5},
    "delay": {"--delay": 0.0123456},
    "noise": {"--noise": "gaussian", "--epsilon": 0.8123456, "--budget": 123.4567},
    "all": {"--epsilon": 0.912345, "--batch": 41, "--budget": 17.65432, "--delta": 2.345678e-07,
            "rows": 523},
}
"""What a person may wish without anyone being able to tell."""
USUAL: Final[dict[str, object]] = {"--epsilon": 1.0, "--batch": 50, "--budget": 8.0,
                                   "--delta": 1e-6, "--min-clients": 2}
UPDATES: Final = 5


class Tap:
    """A relay on loopback that keeps what clients send, connection by connection."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.sent: list[bytearray] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._door.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            broker = socket.create_connection(("127.0.0.1", self._to))
            kept = bytearray()
            self.sent.append(kept)
            threading.Thread(target=_relay, args=(client, broker, kept), daemon=True).start()
            threading.Thread(target=_relay, args=(broker, client, None), daemon=True).start()


def _relay(here: socket.socket, there: socket.socket, kept: bytearray | None) -> None:
    try:
        while part := here.recv(1 << 16):
            if kept is not None:
                kept += part
            there.sendall(part)
        there.shutdown(socket.SHUT_WR)
    except OSError:
        there.close()


@dataclass
class Sent:
    """What one connection carried.

    Attributes:
        line: of its request.
        headers: with the one random value left out.
        body: of its request.
        frames: operation and unmasked payload.
    """

    line: str
    headers: dict[str, str]
    body: bytes
    frames: list[tuple[int, bytes]] = field(default_factory=list)


def taken_apart(raw: bytes) -> Iterator[Sent]:
    """Each request of a connection, down to the last byte."""
    while raw:
        head, rest = raw.split(b"\r\n\r\n", 1)
        line, *lines = head.decode("ascii").split("\r\n")
        headers = dict(header.split(": ", 1) for header in lines)
        assert len(headers) == len(lines)
        size = int(headers.get("Content-Length", 0))
        it = Sent(line, headers, rest[:size])
        raw = rest[size:]
        if "Upgrade" in headers:
            assert len(headers.pop("Sec-WebSocket-Key")) == 24
            it.frames, raw = list(_frames(raw)), b""
        yield it


def _frames(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """WebSocket frames of a client (RFC 6455, 5.2): whole, masked, without extensions."""
    while raw:
        first, second = raw[0], raw[1]
        assert first & 0xF0 == 0x80, "one message a frame, and no bit that means anything else"
        assert second & 0x80, "a client masks"
        size, at = second & 0x7F, 2
        if size > 125:
            kind, width = (">H", 2) if size == 126 else (">Q", 8)
            (size,), at = struct.unpack_from(kind, raw, 2), 2 + width
        mask, body = raw[at : at + 4], raw[at + 4 : at + 4 + size]
        assert len(body) == size
        yield first & 0x0F, bytes(byte ^ mask[i % 4] for i, byte in enumerate(body))
        raw = raw[at + 4 + size :]


@dataclass
class Training:
    """A whole training, as seen from outside.

    Attributes:
        sent: all requests, in order.
        rest: all bytes that were sent but the updates, and what is known to be the broker's.
        deltas: the updates.
        data: the person's file.
    """

    sent: list[Sent]
    rest: bytes
    deltas: list[np.ndarray]
    data: Path

    def shape(self) -> list[object]:
        """Everything but the values that are the broker's own, or noise."""
        return [(it.line, it.headers, _shape(it.body) if it.body else None,
                 [(kind, _shape(body) if kind == 2 else body) for kind, body in it.frames])
                for it in self.sent]


def _shape(raw: bytes) -> object:
    """A message: its size and fields, with their types and lengths; numbers as they are."""
    fields = msgspec.msgpack.decode(raw)
    return len(raw), {name: ("bytes", len(value)) if isinstance(value, bytes) else value
                      for name, value in fields.items()}


def train(home: Path, wishes: dict[str, Any]) -> Training:
    """Join, solve, and check each field against what the broker gave out."""
    home.mkdir()
    with a_world(home) as world, tapped(world) as tap:
        work: dict[bytes, Work] = {}
        make = world.broker.work

        def remembered(**changes: object) -> Work:
            it = make(**changes)
            work[it.ticket] = it
            return it

        world.broker.work = remembered  # type: ignore[method-assign]
        data = write_rows(home / "mine.csv", wishes.get("rows", ROWS))
        options = USUAL | {name: value for name, value in wishes.items() if name != "rows"}
        words = [word for pair in options.items() for word in pair if word is not None]
        joined = world.run("join", ONION, "--data", data, "--output", world.model, *words)
        assert joined.exit_code == 0, joined.output
        solved = world.run("solve", "--json", "--no-wait")
        assert solved.exit_code == 0, solved.output
        assert json.loads(solved.stdout.splitlines()[-1])["updates"] == UPDATES
        sent = [it for raw in tap.sent for it in taken_apart(bytes(raw))]
        ((lock, token),) = world.broker.tokens.items()
    deltas, rest = [], bytearray()
    for it in sent:
        rest += repr((it.line, it.headers)).encode() + without_bytes(it.body)
        for kind, body in it.frames:
            told = msgspec.msgpack.decode(body) if kind == 2 else {}
            rest += without_bytes(body) if kind == 2 else body
            delta = told.pop("delta", b"")
            deltas += [np.frombuffer(delta, "<f4")] if delta else []
            match told.get("type"):
                case "hello":
                    assert told == {"type": "hello", "token": token}
                case "push":
                    given = work[told["ticket"]]
                    # The first solution there is: which one it is tells nothing.
                    assert told == {"type": "push", "ticket": given.ticket, "steps": 1,
                                    "solution": first_solution(given.lock, given.difficulty)}
                case "pull":
                    assert told == {"type": "pull"}
                case _:
                    assert kind == 8, "nothing else but the goodbye of WebSocket"
        if it.body:
            assert msgspec.msgpack.decode(it.body) == {
                "type": "join", "lock": lock, "solution": first_solution(lock, 2),
                "min_clients": options["--min-clients"]}
    return Training(sent, bytes(rest), deltas, data)


def without_bytes(message: bytes) -> bytes:
    """A message less its byte strings: each of those is compared with what it must be."""
    for value in msgspec.msgpack.decode(message).values() if message else ():
        if isinstance(value, bytes):
            message = message.replace(value, b"", 1)
    return message


def first_solution(lock: bytes, difficulty: int) -> bytes:
    """The one that everybody finds who begins at the beginning."""
    found = puzzle.search(lock, difficulty, 0, 1 << 24)
    assert found is not None
    return found


@contextmanager
def tapped(world: World) -> Iterator[Tap]:
    tap = Tap(world.port)
    world.port = tap.port
    try:
        yield tap
    finally:
        tap.close()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return train(tmp_path_factory.mktemp("wire") / "it", {})


def test_what_is_sent_at_all(usual: Training) -> None:
    """The requests of a whole training: no query, no body but one, no header that tells."""
    lines = [it.line.removesuffix(" HTTP/1.1") for it in usual.sent]
    assert lines == ["GET /task", "GET /puzzle", "POST /join", "GET /train", "GET /model"]
    assert [bool(it.body) for it in usual.sent] == [False, False, True, False, False]
    names = {name for it in usual.sent for name in it.headers}
    assert names <= {"Host", "User-Agent", "Content-Length", "Connection", "Upgrade",
                     "Sec-WebSocket-Version"}, names
    kinds = [msgspec.msgpack.decode(body)["type"] for kind, body in usual.sent[3].frames
             if kind == 2]
    assert kinds == ["hello", "pull", *["push"] * UPDATES]
    assert len(usual.deltas) == UPDATES


@pytest.mark.slow
@pytest.mark.parametrize("name", WISHES)
def test_no_wish_can_be_told_from_what_is_sent(
    usual: Training, tmp_path: Path, name: str
) -> None:
    it = train(tmp_path / "it", WISHES[name])
    assert it.shape() == usual.shape()
    options = {"rows": ROWS, **USUAL, **WISHES[name]}
    secrets = {value for option, value in options.items()
               if isinstance(value, float | int) and option != "--min-clients"}
    for number in secrets:
        for form in forms(number):
            assert form not in it.rest, (name, number, form)
        # Nor, by itself or as a scale, is it one of the numbers of an update.
        assert not any(np.isclose(delta, number, rtol=1e-7, atol=0).any() for delta in it.deltas)
    for row in it.data.read_text().splitlines()[1:]:
        for cell in row.split(",")[:2]:
            assert cell.encode() not in it.rest


def forms(number: float) -> Iterator[bytes]:
    """The bytes that a number might travel as; short ones are anywhere by chance."""
    yield from (np.array(number, kind).tobytes() for kind in ("<f4", ">f4", "<f8", ">f8"))
    if float(number).is_integer():
        yield from (np.array(int(number), kind).tobytes() for kind in ("<i4", ">i4", "<i8", ">i8"))
    texts = {str(number), repr(float(number)), f"{number:g}", f"{number:e}", f"{number:f}"}
    yield from (text.encode() for text in texts if len(text) > 4)


def test_k_is_sent_and_changes_nothing_else(usual: Training, tmp_path: Path) -> None:
    it = train(tmp_path / "it", {"--min-clients": 3})
    joins = [msgspec.msgpack.decode(seen.sent[2].body)["min_clients"] for seen in (usual, it)]
    assert joins == [2, 3]
    mine, others = it.shape(), usual.shape()
    assert mine[:2] + mine[3:] == others[:2] + others[3:]
    # Its own message differs in that one number only.
    (_, told), (_, before) = mine[2][2], others[2][2]  # type: ignore[index]
    assert told | {"min_clients": 2} == before


@pytest.mark.parametrize("leak", [
    struct.pack("<f", 0.7310585), struct.pack(">d", 0.7310585), b"epsilon=0.7310585",
    struct.pack("<i", 1234), b"8.000000"])
def test_a_leak_would_be_found(leak: bytes) -> None:
    """The forms that are looked for are those that a leak would have."""
    found = [form for number in (0.7310585, 1234, 8.0) for form in forms(number) if form in leak]
    assert found
