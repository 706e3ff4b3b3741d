"""The servers of the desk's bench: a desk with one model, and a bare echo server."""

from __future__ import annotations

import asyncio
import secrets
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import UnixConnector, WSMsgType, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from accord.messages import SALT_BYTES, Curate, Curated, decode, encode
from accord.task import Clients, Task, sign
from broker.desk import Desk, Publisher
from broker.limits import Limits
from lab.bench.profiled import profile_on_signal
from lab.credit import Parts, deal, made
from lab.setting import Config, make_task
from lab.soak.flood_parts import run
from lab.soak.sockets import Sockets

ROWS: Final = 100
"""Of the validation set."""
_SILENCE: Final = 600.0
_DOOR: Final = Limits(served=10_000.0, served_at_once=10_000.0, accepts=10_000.0)
"""How fast clients are let in is not what is measured."""


DATA: Final = "made data of the credit data's shape"


def task_of(clients: int, judged: bool) -> tuple[Task, Parts]:
    """A task of the credit data's shape (d = 24), judged by the default test and screen on
    :data:`ROWS` rows, or not at all; its puzzles are open."""
    rules: dict[str, Any] = {} if judged else {"test": "none", "screen": "none"}
    config = Config(clients=clients, validation_rows=ROWS, admission=0, update=0,
                    validation=rules, training={"max_updates": 10_000_000})
    table = made()
    parts = deal(table, config.validation_rows, config.seed)
    task = make_task(table, config, parts)
    return replace(task, clients=Clients(minimum=1, maximum=clients, silence=_SILENCE)), parts


def order_of(clients: int, judged: bool) -> bytes:
    """A curator's order for that task, as it travels."""
    task, parts = task_of(clients, judged)
    rows, labels = parts.validation
    return encode(Curate(sign(task, Ed25519PrivateKey.generate()), rows.astype("<f4").tobytes(),
                         labels.astype("u1").tobytes(), bytes(SALT_BYTES)))


PROFILE: Final = "profile.json"
"""In a desk's state: where a profile goes (:mod:`lab.bench.profiled`), if anybody asks for one."""


def desk_process(state: Path, order: bytes, told: Connection, cpu: int | None) -> None:
    """The real desk, on its unix sockets, with one model; tells where its socket is."""
    run(_desk(state, order, told), cpu)


async def _desk(state: Path, order: bytes, told: Connection) -> None:
    services = Sockets()
    publisher = Publisher(services, state / "run", _DOOR)
    desk = Desk(state, publisher, 1, 3600.0)
    try:
        onion = await publisher.publish(secrets.token_bytes(32), desk.app)
        async with (
            aiohttp.ClientSession(connector=UnixConnector(str(services.paths[onion]))) as session,
            session.post("http://desk/curate", data=order) as response,
        ):
            response.raise_for_status()
            curated = decode(await response.read(), Curated)
        profile_on_signal(state / PROFILE)
        told.send(services.paths[curated.onion])
        await asyncio.Event().wait()
    finally:
        await desk.close()
        await publisher.close()


def echo_process(path: Path, answer: int, told: Connection, cpu: int | None) -> None:
    """aiohttp, and nothing else: sends back what comes, filled up to the size of an answer."""
    run(_echo(path, answer, told), cpu)


async def _echo(path: Path, answer: int, told: Connection) -> None:
    async def train(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        async for message in ws:
            if message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data.ljust(answer, b"\0"))
        return ws

    app = web.Application()
    app.add_routes([web.get("/train", train)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, str(path), backlog=1024).start()
    told.send(path)
    await asyncio.Event().wait()
