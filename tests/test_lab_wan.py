"""Distances on loopback: nothing comes too early, and nothing else changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from broker_world import make_brokerage
from hypothesis import given
from hypothesis import strategies as st

from accord.circuit import Route
from accord.onion import onion_from_seed
from accord.problems import AWAY, Problem
from broker.store import Store
from lab.forwarder import HELD, Lane
from lab.live import serve
from lab.tornet import Link
from lab.wan import REGIONS, RELAYS, Latency, Region, Wan, measure

ROOT = Path(__file__).resolve().parent.parent
NEAR = (Region("here", "Europe", 0.0), Region("there", "Asia", 40.0))
"""Two regions, so that few tests need to wait."""


def region_round_trips() -> list[float]:
    return [2 * region.delay for region in REGIONS]


# -- facts and rules -------------------------------------------------------------------------


def test_the_regions_are_as_far_apart_as_the_papers() -> None:
    assert len(REGIONS) == 25 == len({region.name for region in REGIONS})
    assert len({region.continent for region in REGIONS}) == 6
    assert abs(statistics.median(region_round_trips()) - 133.9) < 2
    assert abs(statistics.stdev(region_round_trips()) - 61.9) < 2


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=30),
    st.integers(0, 20), st.booleans(), st.randoms(use_true_random=False))
def test_a_lane_keeps_order_and_lets_nothing_through_early(
    sent: list[tuple[int, int]], floor: int, ends: bool, chance: random.Random
) -> None:
    lane, allowed, data = Lane(float(floor)), [], b""
    for size, due in sent:
        # Each byte is another one, and remembers when it may arrive.
        piece = bytes((len(data) + i) % 256 for i in range(size + 1))
        lane.put(piece, float(due))
        allowed += [max(due, floor)] * len(piece)
        data += piece
    if ends:
        lane.put(b"", 0.0)
    arrived = b""
    for now in range(32):
        while chunks := lane.ready(float(now)):
            whole = b"".join(chunks)
            count = chance.randint(1, len(whole))  # a socket takes what it takes
            lane.arrived(count)
            assert all(when <= now for when in allowed[len(arrived):len(arrived) + count])
            arrived += whole[:count]
            assert lane.held == len(data) - len(arrived)
        assert not (lane.ended(float(now)) and arrived != data), "its end overtook its bytes"
    assert arrived == data
    assert lane.ended(31.0) == ends
    assert lane.due == (max(floor, max([due for _, due in sent], default=0)) if ends else None)


def test_a_latency_is_told_in_milliseconds() -> None:
    told = Latency([[0.1, 0.2], [0.3]], failed=2).summary()
    assert told == {"median_ms": 200.0, "sd_ms": 100.0, "connections": 2, "failed": 2, "pings": 3}


# -- real sockets ----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def server(
    behave: object, regions: tuple[Region, ...] = NEAR, jitter: float = 0.0, on: bool = True,
) -> AsyncIterator[tuple[Wan, list[int]]]:
    """A server on loopback with distances before it."""
    listener = await asyncio.start_server(behave, "127.0.0.1", 0)  # type: ignore[arg-type]
    # What never comes shall fail a test, and not hold it for ever.
    async with asyncio.timeout(60), listener, Wan(regions=regions, jitter=jitter) as wan:
        ports = await wan.direct("127.0.0.1", listener.sockets[0].getsockname()[1])
        if on:
            await wan.on()
        yield wan, ports


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, and its end when its end comes."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


async def round_trip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    began = time.monotonic()
    writer.write(b"ping")
    assert await reader.readexactly(4) == b"ping"
    return time.monotonic() - began


@pytest.mark.slow
async def test_a_round_trip_takes_two_delays_and_the_first_four() -> None:
    async with server(echo) as (wan, ports):
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[1])
        await round_trip(reader, writer)
        assert time.monotonic() - began >= 0.160  # three for the handshake and the data, and back
        assert await round_trip(reader, writer) >= 0.080
        await wan.off()
        await round_trip(reader, writer)
        await wan.on()
        assert await round_trip(reader, writer) >= 0.080, "a kept connection is delayed again"
        writer.close()


async def test_who_speaks_first_is_heard_after_four_delays() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with server(greet) as (_, ports):
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[1])
        assert await reader.read() == b"hello"
        assert time.monotonic() - began >= 0.160
        writer.close()


async def test_its_ports_are_at_the_address_that_others_reach_and_nowhere_else() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    behind = await asyncio.start_server(greet, "127.0.0.3", 0)
    relay = await asyncio.start_server(greet, "127.0.0.2", 0)
    listening = relay.sockets[0].getsockname()[1]
    async with behind, relay, Wan((0.0,), NEAR, address="127.0.0.2") as wan:
        port, _ = await wan.direct("127.0.0.3", behind.sockets[0].getsockname()[1])
        with socket.create_server(("127.0.0.2", 0)) as free:
            advertised = free.getsockname()[1]
        await wan.links([Link(advertised, listening)])
        for number in (port, advertised):
            reader, writer = await asyncio.open_connection("127.0.0.2", number)
            assert await reader.read() == b"hello"
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", number)


@pytest.mark.slow
async def test_many_connections_with_jitter_change_and_mix_nothing() -> None:
    async def one(port: int, seed: int) -> bool:
        data = random.Random(seed).randbytes(seed * 397)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def say() -> None:
            at = 0
            while at < len(data):
                size = random.Random(at).randint(1, 20_000)
                writer.write(data[at:at + size])
                await writer.drain()
                await asyncio.sleep(0)
                at += size
            writer.write_eof()  # and yet all of it comes back

        _, back = await asyncio.gather(say(), reader.read())
        writer.close()
        return back == data

    near = (Region("a", "Asia", 1.0), Region("b", "Asia", 9.0))
    async with server(echo, near, jitter=0.02) as (wan, ports):
        assert all(await asyncio.gather(*(one(ports[i % 2], i) for i in range(200))))
        load = await wan.load()
        assert load.carried == 2 * sum(397 * i for i in range(200))
        while (await wan.load()).connections:  # every one of them is let go
            await asyncio.sleep(0.01)


async def test_half_a_stream_may_end_long_before_the_other() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(len(await reader.read())).encode())
        writer.close()

    async with server(answer) as (_, ports):
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[1])
        writer.write(bytes(300_000))
        writer.write_eof()
        assert await reader.read() == b"300000"
        writer.close()


@pytest.mark.slow
async def test_what_nobody_takes_is_not_taken_in_either() -> None:
    size, go = 48 << 20, asyncio.Event()
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        count = 0
        while data := await reader.read(1 << 20):
            count += len(data)
        done.set_result(count)
        writer.close()

    async with server(slow) as (wan, ports):
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", ports[0])) as sender:
            sender.setblocking(False)
            sending = asyncio.create_task(loop.sock_sendall(sender, bytes(size)))
            before = -1
            while (carried := (await wan.load()).carried) != before:  # until all stands still
                before = carried
                await asyncio.sleep(0.3)
            assert not sending.done()
            resident = Path(f"/proc/{wan.pid}/statm").read_text().split()[1]
            assert int(resident) * os.sysconf("SC_PAGE_SIZE") < 48 << 20
            go.set()
            await sending
            sender.shutdown(socket.SHUT_WR)
            assert await done == size > HELD


async def test_an_end_that_is_reset_or_refused_ends_the_other() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with server(reset) as (wan, ports):
            refused = await wan.direct("127.0.0.1", nobody.getsockname()[1])
            for port in ports + refused:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"hello")
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
            while (await wan.load()).connections:
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_network_that_is_begun_anew_takes_the_place_of_the_first() -> None:
    async with server(echo) as (wan, _), contextlib.AsyncExitStack() as held:
        listener = await held.enter_async_context(await asyncio.start_server(echo, "127.0.0.1", 0))
        to = listener.sockets[0].getsockname()[1]

        def ports() -> list[int]:
            with contextlib.ExitStack() as free:
                found = [free.enter_context(socket.create_server(("127.0.0.1", 0)))
                         for _ in RELAYS]
                return [each.getsockname()[1] for each in found]

        first, second = ports(), ports()
        await wan.links([Link(port, to) for port in first])
        await wan.links([Link(port, to) for port in second])
        for port, delay in zip(second, RELAYS, strict=True):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await round_trip(reader, writer)
            assert await round_trip(reader, writer) >= 2 * delay
            writer.close()
        for port in set(first) - set(second):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(Problem, match="address already in use") as caught:
            await wan.links([Link(to, to)] * len(RELAYS))
        assert caught.value.kind is AWAY
        with pytest.raises(ValueError, match="1 relays"):
            await wan.links([Link(to, to)])


async def test_a_forwarder_that_has_gone_is_told() -> None:
    async with Wan() as wan:
        os.kill(wan.pid, signal.SIGKILL)
        with pytest.raises(Problem, match="its process has ended") as caught:
            while True:
                await wan.on()
    assert caught.value.kind is AWAY


OWNER = """
import asyncio
from lab.wan import Wan
async def main():
    async with Wan() as wan:
        print(wan.pid, *await wan.direct("127.0.0.1", 1), flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.slow
async def test_no_forwarder_is_left_when_its_owner_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pid, *ports = map(int, (await asyncio.to_thread(owner.stdout.readline)).split())
    assert len(ports) == len(REGIONS)
    socket.create_connection(("127.0.0.1", ports[-1])).close()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    for _ in range(600):
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
                break  # dead, and init has not noticed
        except OSError:
            break
        await asyncio.sleep(0.05)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("it lives on")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[-1]))


# -- what comes of it ------------------------------------------------------------------------


@pytest.mark.slow
async def test_pings_of_a_real_broker_take_what_its_regions_take(tmp_path: Path) -> None:
    brokerage = make_brokerage(now=asyncio.get_running_loop().time())
    regions = tuple(Region(str(i), "Asia", 10.0 * i) for i in range(5))
    told: list[tuple[int, int]] = []
    store = Store(tmp_path / "model.db")
    try:
        async with serve(brokerage, store) as way, Wan(regions=regions) as wan:
            assert way.direct is not None
            ports = await wan.direct(*way.direct)
            await wan.on()
            routes = [Route(None, ("127.0.0.1", port)) for port in ports]
            nobody = Route(None, ("127.0.0.1", 1))
            onion = onion_from_seed(bytes(32))
            found = await measure([*routes, nobody], onion, pings=3,
                                  tell=lambda done, of: told.append((done, of)))
            alone = await measure([routes[4]], onion, pings=2)
    finally:
        store.close()
    assert found.failed == 1
    assert sorted(map(len, found.samples)) == [3] * 5
    nearest = sorted(min(one) for one in found.samples)
    assert all(fastest >= 2 * 0.010 * i for i, fastest in enumerate(nearest))
    assert min(alone.samples[0]) >= 0.080
    assert told == [(i + 1, 6) for i in range(6)]
