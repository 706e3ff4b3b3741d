"""Six continents on one machine: delays on a private Tor network's links, and on the way without.

The paper's clients were on six continents and its broker in Vancouver: a ping took 133.9 ms
(median; standard deviation 61.9) direct, and 716 ms (182) to an onion service through Tor. Here

- each of 25 regions has a distance to the broker (:data:`REGIONS`), and without Tor a client
  connects to a port of its region (:meth:`Wan.direct`);
- each relay of a :class:`~lab.tornet.TorNetwork` has one too (:data:`RELAYS`): whatever goes over a
  connection that it accepted takes so long, each way. Each circuit draws its own relays, so some
  are long and some short. There are seven connections between a client and an onion service.

What comes of it is measured where it matters (:func:`measure`) and stored with each result: it has
the machine's own delays in it, too. The forwarding is done by a process of its own
(:mod:`lab.forwarder`), which says what it costs (:meth:`Wan.load`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import aiohttp
import msgspec
from aiohttp import WSMsgType
from msgspec import Struct

from accord.circuit import PATIENCE, Circuit, Route, fresh_identity
from accord.problems import AWAY, Problem
from accord.tor import stop
from lab.forwarder import Order, Report, Way
from lab.tornet import Link


@dataclass(frozen=True, slots=True)
class Region:
    """Where a client may be.

    Attributes:
        name: of a place that has data centres.
        continent: one of six.
        delay: milliseconds from there to the broker, one way.
    """

    name: str
    continent: str
    delay: float


REGIONS: Final = (
    Region("Vancouver", "North America", 5),
    Region("California", "North America", 13),
    Region("Iowa", "North America", 26),
    Region("Texas", "North America", 29),
    Region("Illinois", "North America", 30),
    Region("Quebec", "North America", 35),
    Region("Virginia", "North America", 37),
    Region("Queretaro", "North America", 42),
    Region("Tokyo", "Asia", 52),
    Region("Osaka", "Asia", 55),
    Region("Seoul", "Asia", 63),
    Region("Taipei", "Asia", 66),
    Region("Dublin", "Europe", 67),
    Region("London", "Europe", 70),
    Region("Paris", "Europe", 73),
    Region("Hong Kong", "Asia", 74),
    Region("Frankfurt", "Europe", 76),
    Region("Sydney", "Oceania", 79),
    Region("Singapore", "Asia", 85),
    Region("Melbourne", "Oceania", 85),
    Region("Sao Paulo", "South America", 91),
    Region("Santiago", "South America", 93),
    Region("Mumbai", "Asia", 104),
    Region("Dubai", "Asia", 114),
    Region("Johannesburg", "Africa", 132),
)
"""Plausible distances from western Canada, and no measurements of ours: figures like these are
published for data centres in these places. Which places they are is chosen so that the round trips
have the paper's median and standard deviation."""

RELAYS: Final = (0.012, 0.014, 0.015, 0.021, 0.034, 0.064, 0.102)
"""Seconds, one way, on the connections that each relay accepted: three authorities, then the
others. They were found by trying, until the round trips of 200 circuits were as the paper's. An
onion service is seven connections away, and the last four accept more of them than the
authorities do (28 of 42 in a network that was counted), so a sum of means says too little."""
CONNECTIONS: Final = 50
"""On which the round trips of an experiment are measured, each with circuits of its own,"""
PINGS: Final = 4
"""and how often on each."""


class Load(Struct, frozen=True):
    """What the forwarding has cost so far.

    Attributes:
        chunks: pieces that were forwarded.
        carried: bytes of them.
        cpu: seconds of processor, the start of the process included.
        connections: sockets that are open.
    """

    chunks: int
    carried: int
    cpu: float
    connections: int


class Wan:
    """Delays between ports of this machine, as a context manager.

    There are none until :meth:`on`: tors agree within seconds or not at all while they start
    (:mod:`lab.tornet`), so the network comes up first::

        async with Wan() as wan, TorNetwork(directory) as network:
            await network.up(links=wan.links)
            await wan.on()

    It ends with this process, even by kill -9, and with the thread that entered it.

    A service that is published and reached before :meth:`on` is reached at once afterwards too; one
    that comes later takes some ten seconds, as its circuits and its descriptor travel as far.

    Args:
        relays: seconds, one way, of each relay, in the order of their links.
        regions: of the clients without Tor.
        jitter: seconds; each piece takes up to so much longer. None overtakes another.
        address: of this machine, at which all of its ports are.

    Its methods raise:
        Problem: ``AWAY`` when a port cannot be opened, or the forwarder has gone.
    """

    def __init__(self, relays: Sequence[float] = RELAYS, regions: Sequence[Region] = REGIONS,
                 jitter: float = 0.0, address: str = "127.0.0.1") -> None:
        self.regions = tuple(regions)
        self._relays = tuple(relays)
        self._jitter = jitter
        self._address = address
        self._advertised: list[int] = []
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Wan:
        # In a session of its own, so that Ctrl-C reaches us first.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lab.forwarder", str(os.getpid()), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, start_new_session=True)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        if self._process:
            await stop(self._process)

    @property
    def pid(self) -> int:
        """The forwarder's process."""
        return self._running().pid

    async def links(self, pairs: Sequence[Link]) -> None:
        """Stand before the relays of a network: what :meth:`lab.tornet.TorNetwork.up` asks for.

        One network at a time: the ports of an earlier one, or of an earlier try, are given up.
        """
        if len(pairs) != len(self._relays):
            raise ValueError(f"{len(pairs)} relays, and delays of {len(self._relays)}")
        ways = [Way(pair.advertised, pair.listening, self._address, delay, self._jitter,
                    self._address)
                for pair, delay in zip(pairs, self._relays, strict=True)]
        report = await self._order(Order(open=ways, close=self._advertised))
        self._advertised = report.ports

    async def direct(self, host: str, port: int) -> list[int]:
        """Stand before a broker without Tor.

        Returns:
            A port of ours for each region, in their order: client number i is to use the one
            at i modulo their number.
        """
        ways = [Way(0, port, host, region.delay / 1000, self._jitter, self._address)
                for region in self.regions]
        return (await self._order(Order(open=ways))).ports

    async def on(self) -> None:
        """Delay all that comes from now on, on connections that exist already too."""
        await self._order(Order(on=True))

    async def off(self) -> None:
        """Delay nothing that comes from now on; it still overtakes nothing."""
        await self._order(Order(on=False))

    async def load(self) -> Load:
        """What it has cost so far."""
        report = await self._order(Order())
        return Load(report.chunks, report.carried, report.cpu, report.connections)

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("a Wan is used inside 'async with'")
        return self._process

    async def _order(self, order: Order) -> Report:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        async with self._turn:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(msgspec.json.encode(order) + b"\n")
                await process.stdin.drain()
            line = await process.stdout.readline()
        if not line:
            raise Problem(AWAY, address="the forwarder of delays", why="its process has ended")
        report = msgspec.json.decode(line, type=Report)
        if report.error:
            raise Problem(AWAY, address="the forwarder of delays", why=report.error)
        return report


# -- what comes of it ------------------------------------------------------------------------


class Latency(Struct, frozen=True):
    """Round trips on kept connections, as a result stores them.

    Attributes:
        samples: seconds of each ping; one list for each connection.
        failed: connections that could not be made, or broke.
    """

    samples: list[list[float]]
    failed: int

    @property
    def median(self) -> float:
        """Seconds; of all pings. NaN of none."""
        every = [each for one in self.samples for each in one]
        return statistics.median(every) if every else float("nan")

    @property
    def deviation(self) -> float:
        """Seconds; the standard deviation of all pings. NaN of fewer than two."""
        every = [each for one in self.samples for each in one]
        return statistics.stdev(every) if len(every) > 1 else float("nan")

    def summary(self) -> dict[str, float | None]:
        """For a table: milliseconds, None where too few came back, and how many there were."""
        return {"median_ms": _milliseconds(self.median), "sd_ms": _milliseconds(self.deviation),
                "connections": len(self.samples), "failed": self.failed,
                "pings": sum(map(len, self.samples))}


def _milliseconds(seconds: float) -> float | None:
    """Rounded for a file; JSON has no NaN."""
    return None if math.isnan(seconds) else round(1000 * seconds, 1)


async def measure(
    routes: Sequence[Route], onion: str, *, pings: int = 5, path: str = "/train",
    at_once: int = 25, patience: float = PATIENCE,
    tell: Callable[[int, int], None] | None = None,
) -> Latency:
    """Ping a broker's model on kept connections, one for each route, each under an identity of
    its own: so through Tor each has circuits of its own.

    A ping is a frame of a WebSocket (RFC 6455, 5.5.2) on the path of the training conversation,
    which the broker answers before it has heard who we are. Building a connection is not counted.

    Args:
        routes: how the broker is reached; the same one 200 times for 200 circuits.
        onion: the model's address.
        pings: on each connection, one after the other. The broker waits half a minute for a
            client to say who it is; so long all of them may take.
        path: of a WebSocket there.
        at_once: connections that are measured at the same time.
        patience: seconds for a connection, and for each ping.
        tell: told how many connections are done, and of how many.

    Returns:
        The round trips; connections that failed are counted, and raise nothing.
    """
    free = asyncio.Semaphore(at_once)
    samples: list[list[float]] = []
    failed = 0

    async def one(route: Route) -> None:
        nonlocal failed
        async with free:
            try:
                samples.append(await _ping(route, onion, path, pings, patience))
            except (Problem, OSError, TimeoutError, aiohttp.ClientError):
                failed += 1
        if tell:
            tell(len(samples) + failed, len(routes))

    async with asyncio.TaskGroup() as group:
        for route in routes:
            group.create_task(one(route))
    return Latency(samples, failed)


async def _ping(route: Route, onion: str, path: str, pings: int, patience: float) -> list[float]:
    now = asyncio.get_running_loop().time
    seconds = []
    async with Circuit(route, onion, fresh_identity(), patience) as circuit:
        # A circuit's own WebSocket shows no pongs.
        socket = await circuit._invited(patience, lambda: circuit._open().ws_connect(
            circuit._url(path), compress=0, autoping=False,
            timeout=aiohttp.ClientWSTimeout(ws_close=patience)))
        for _ in range(pings):
            word = secrets.token_bytes(8)
            began = now()
            await socket.ping(word)
            async with asyncio.timeout(patience):
                await _pong(socket, word, onion)
            seconds.append(now() - began)
        await socket.close()
    return seconds


async def _pong(
    socket: aiohttp.ClientWebSocketResponse[bool], word: bytes, onion: str
) -> None:
    while True:
        message = await socket.receive()
        if message.type is WSMsgType.PONG and message.data == word:
            return
        if message.type is WSMsgType.PING:
            await socket.pong(message.data)
        elif message.type is not WSMsgType.PONG:
            raise Problem(AWAY, address=onion, why="it hung up")
