"""A client whose own tor goes away and comes back, with a stand-in for its SOCKS port."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
from client_home import Person, refuses
from client_world import QUICK, StandIn, soon

from accord.circuit import Route
from accord.control import Socks
from accord.problems import LOST
from client.events import Admitted, Reconnecting
from client.session import save_session


class SocksPort:
    """A SOCKS port (RFC 1928, 1929) behind which there is the stand-in for a broker."""

    def __init__(self, broker: StandIn) -> None:
        self.broker = broker
        self.port = 0
        self.dead = False  # connections are made, and lead nowhere
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> Socks:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return Socks("127.0.0.1", self.port)

    async def die(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._lead(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly((await reader.readexactly(2))[1])
        writer.write(b"\x05\x02")
        await reader.readexactly((await reader.readexactly(2))[1])
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x01\x00")
        await reader.readexactly((await reader.readexactly(5))[4] + 2)
        if self.dead:
            writer.write(b"\x05\xf0\x00\x01" + bytes(6))
            await writer.drain()
            return
        there, onward = await asyncio.open_connection("127.0.0.1", self.broker.port)
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        try:
            await asyncio.gather(_pour(reader, onward), _pour(there, writer))
        finally:
            onward.close()


async def _pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
        sink.close()


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "session.json", pace=replace(QUICK, patience=20.0))


async def test_a_tor_that_dies_during_the_training_ends_nothing_and_costs_nothing(
    person: Person,
) -> None:
    # Not published before both deaths, however seldom this test gets to look.
    broker = StandIn(publish_after=1000)
    person.write(broker)
    # The step that is in hand is paid for: it is sent over the next connection.
    async with broker.serve():
        tor = SocksPort(broker)
        way = Route(await tor.start())
        going = asyncio.create_task(person.run(broker, way))
        for have in (3, 6):
            await soon(lambda have=have: broker.updates >= have)  # type: ignore[misc]
            before = len(person.saw(Reconnecting))
            await tor.die()
            await soon(lambda: any(event.why == "tor does not answer"  # type: ignore[attr-defined]
                                   for event in person.saw(Reconnecting)[before:]))  # noqa: B023
            assert not going.done()
            if have == 6:
                broker.publish_after = broker.updates + 6
            await tor.start()
        assert await going == "published"
        await tor.die()
    assert broker.updates == broker.publish_after == person.paid()
    assert len(broker.tokens) == 1 == len(person.saw(Admitted))


async def test_a_tor_that_dies_while_we_wait_for_the_model_ends_nothing(person: Person) -> None:
    broker = StandIn()
    person.write(broker)
    save_session(person.path, _spent(person))
    async with broker.serve():
        tor = SocksPort(broker)
        way = Route(await tor.start())
        await tor.die()
        going = asyncio.create_task(person.run(broker, way))
        await soon(lambda: bool(person.saw(Reconnecting)))
        broker.finish()
        await tor.start()
        assert await going == "published"
        await tor.die()


async def test_a_tor_that_stays_away_ends_it_when_patience_does(person: Person) -> None:
    broker = StandIn()
    person.write(broker)
    person.pace = replace(QUICK, patience=0.3)
    tor = SocksPort(broker)
    way = Route(await tor.start())
    await tor.die()
    began = time.monotonic()
    async with refuses(LOST):
        await person.run(broker, way)
    assert time.monotonic() - began >= 0.3


async def test_an_address_that_does_not_answer_is_looked_up_anew(person: Person) -> None:
    broker = StandIn(publish_after=5)
    person.write(broker)
    asked: list[str] = []
    async with broker.serve():
        tor = SocksPort(broker)
        tor.dead = True

        async def look_up(onion: str) -> None:
            asked.append(onion)
            tor.dead = False

        way = Route(await tor.start(), look_up=look_up)
        assert await person.run(broker, way) == "published"
        assert asked == [person.session.onion]
        await tor.die()


def _spent(person: Person):  # type: ignore[no-untyped-def]
    from msgspec.structs import replace as with_

    return with_(person.session, outcome="budget-spent")
