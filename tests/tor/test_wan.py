"""A private Tor network with distances: it comes up, and no onion is nearer than it should be."""

from __future__ import annotations

import os
from pathlib import Path

from aiohttp import web

from accord.circuit import Route
from broker.hidden_service import HiddenServices
from lab.tornet import AUTHORITIES, RELAYS, TorNetwork
from lab.wan import Wan, measure

DELAY = 0.05
"""Seconds on each of the connections between a client and an onion service."""
CONNECTIONS = 7
"""The client, three relays, which it chose; three more and the service, which chose those (tor adds
one on this side, as the other chose where to meet; circuituse.c, route_len_for_purpose)."""


async def listen(path: Path) -> web.AppRunner:
    """A server that answers pings, and says hello."""

    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        return socket

    async def hello(_: web.Request) -> web.Response:
        return web.Response(body=b"hello")

    app = web.Application()
    app.add_routes([web.get("/train", talk), web.get("/", hello)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    return runner


async def test_an_onion_is_seven_connections_away(tmp_path: Path) -> None:
    runner = await listen(tmp_path / "socket")
    try:
        async with (Wan([DELAY] * (AUTHORITIES + RELAYS)) as wan,
                    TorNetwork(tmp_path / "network") as network):
            await network.up(2, links=wan.links)
            assert (await wan.load()).carried > 0, "relays are reached through the forwarder"
            assert network.tor is not None
            services = HiddenServices(network.tor)
            onion = await services.publish(os.urandom(32), tmp_path / "socket")
            await services.reachable(onion, 60)
            await wan.on()
            found = await measure([Route(network.socks[0])] * 8, onion, pings=3)
    finally:
        await runner.cleanup()
    assert found.failed == 0
    assert [len(one) for one in found.samples] == [3] * 8
    assert min(map(min, found.samples)) >= 2 * CONNECTIONS * DELAY
