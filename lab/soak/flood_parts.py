"""The three processes of ``scripts/soak flood``: a desk, those who train with it, and the flood.

The desk is the real one, on its unix sockets, with nothing in between: a flooder does not pay for
Tor, as it would in reality. They share counters in memory; each is written by one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import UnixConnector
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from accord import puzzle
from accord.circuit import WebSocket
from accord.messages import (
    SALT_BYTES,
    AdmissionPuzzle,
    Curate,
    Curated,
    Join,
    Leave,
    Turn,
    Welcome,
    Work,
    decode,
    encode,
    turn_limit,
)
from accord.problems import Problem
from accord.task import Task, sign
from broker.desk import Desk, Publisher
from client.session import BackOff, Conversation, Over, Pace, Step
from lab.credit import Parts, deal, made
from lab.setting import Config, Recruit, make_task, recruit
from lab.soak.sockets import Sockets

KINDS: Final = ("wrong", "forged", "replayed", "gone", "kept", "garbage", "half", "idle")
"""What is thrown: a join with a lock of the broker's and a wrong solution; one with a lock that
only looks right; one that was let in before; one whose sender hangs up at once; joins without end
on a kept connection; what is no HTTP; WebSockets that say no hello; sockets that say nothing."""
COUNTS: Final = ("joins", "answered", "refused", "cut", "shut_out", "others")
"""Of all that is thrown: joins sent; answers of 200, and of another status; ended without an
answer; not even let in; and connections that are no join."""
WORKERS: Final = {"wrong": 60, "forged": 60, "replayed": 60, "gone": 2, "kept": 20, "garbage": 20,
                  "half": 20, "idle": 1}
IDLE: Final = 1500
SOLVED: Final = 5
"""Sessions that the flooder has."""
PIPELINED: Final = 20
_GUESTS: Final = 50
_PATIENCE: Final = 60.0
_LOOK: Final = 0.05
_NO_LIMIT: Final = 64


def setting(clients: int) -> Config:
    """What is trained: made data of the shape of the credit data, under the default judging."""
    return Config(
        clients=clients, batch=10, admission=2, update=1, validation_rows=500,
        training={"max_updates": 1_000_000})


def make_model(clients: int) -> tuple[Config, Task, Parts]:
    """The task, with places for those who come and go and for the flooder's sessions."""
    table, config = made(), setting(clients)
    parts = deal(table, config.validation_rows, config.seed)
    task = make_task(table, config, parts)
    rules = replace(task.clients, maximum=clients + _GUESTS)
    return config, replace(task, clients=rules), parts


def run(work: Coroutine[Any, Any, None], cpu: int | None, nice: int = 0) -> None:
    """A process's work, until the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    os.nice(nice)

    async def both() -> None:
        task = asyncio.ensure_future(work)
        parent = parent_process()
        while parent is not None and parent.is_alive() and not task.done():
            await asyncio.wait([task], timeout=1.0)
        task.cancel()
        await task

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(both())


# -- the desk --------------------------------------------------------------------------------


def desk_process(state: Path, clients: int, told: Connection, cpu: int | None) -> None:
    """A desk with one model; tells where its socket is."""
    run(_desk(state, clients, told), cpu)


async def _desk(state: Path, clients: int, told: Connection) -> None:
    services = Sockets()
    publisher = Publisher(services, state / "run")
    desk = Desk(state, publisher, 1, 3600.0)
    try:
        seed = secrets.token_bytes(32)
        onion = await publisher.publish(seed, desk.app)
        _, task, parts = make_model(clients)
        rows, labels = parts.validation
        signed = sign(task, Ed25519PrivateKey.generate())
        order = Curate(signed, rows.astype("<f4").tobytes(), labels.astype("u1").tobytes(),
                       bytes(SALT_BYTES))
        raw = await _request(services.paths[onion], "POST", "/curate", encode(order))
        told.send(services.paths[decode(raw, Curated).onion])
        await asyncio.Event().wait()
    finally:
        await desk.close()
        await publisher.close()


async def _request(path: Path, method: str, url: str, body: bytes = b"") -> bytes:
    async with (
        aiohttp.ClientSession(connector=UnixConnector(str(path))) as session,
        session.request(method, f"http://desk{url}", data=body) as response,
    ):
        raw = await response.read()
        if response.status != 200:
            raise ConnectionError(f"{url}: {response.status}")
        return raw


# -- those who train -------------------------------------------------------------------------


def trainers_process(
    path: Path, clients: int, updates: SynchronizedArray[int], trip: Synchronized[float],
    every: float, told: Connection, cpu: int | None,
) -> None:
    """Clients that train for ever, and now and then one that joins and leaves again.

    Args:
        path: the model's socket.
        clients: how many.
        updates: counts the acknowledged updates of each.
        trip: seconds of a round trip, simulated.
        every: seconds between two that join.
        told: when each of those began, and the seconds that it took; before, None once all clients
            have joined.
        cpu: where to run.
    """
    run(_trainers(path, clients, updates, trip, every, told), cpu)


async def _trainers(
    path: Path, clients: int, updates: SynchronizedArray[int], trip: Synchronized[float],
    every: float, told: Connection,
) -> None:
    config, task, parts = make_model(clients)
    recruits, _ = recruit(task, parts, config)
    each = [_Trainer(path, task, trip) for _ in recruits]
    await asyncio.gather(*(trainer.join() for trainer in each))
    told.send(None)
    async with asyncio.TaskGroup() as group:
        for i, (trainer, its) in enumerate(zip(each, recruits, strict=True)):
            group.create_task(trainer.train(its, updates, i))
        while True:
            await asyncio.sleep(every)
            group.create_task(_come_and_go(_Trainer(path, task, trip), told))


async def _come_and_go(newcomer: _Trainer, told: Connection) -> None:
    begun = time.monotonic()
    await newcomer.join()
    async with newcomer.talk() as socket:
        await newcomer.first_work(socket)
        told.send((begun, time.monotonic() - begun))
        await socket.send(encode(Leave()))
        await socket.receive(_PATIENCE)


class _Trainer:
    """A client, as :class:`client.agent.Agent` is one, over a unix socket."""

    def __init__(self, path: Path, task: Task, trip: Synchronized[float]) -> None:
        self._path, self._task, self._trip = path, task, trip
        self._limit = turn_limit(task.dimension)
        self._token = b""

    async def join(self) -> None:
        """In at the door, however often it takes, with the client's own patience."""
        back_off = BackOff("the model", Pace())
        door: AdmissionPuzzle | None = None
        while True:
            try:
                await asyncio.sleep(self._trip.value)
                if door is None:
                    door = decode(await _request(self._path, "GET", "/puzzle"), AdmissionPuzzle)
                    solution = await _search(door.lock, door.difficulty)
                join = encode(Join(door.lock, solution, 1))
                await asyncio.sleep(self._trip.value)
                raw = await _request(self._path, "POST", "/join", join)
                self._token = decode(raw, Welcome).token
                return
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(back_off.again(time.monotonic(), random.random()))  # noqa: S311

    @contextlib.asynccontextmanager
    async def talk(self) -> AsyncIterator[WebSocket]:
        """A conversation, until it ends or breaks."""
        back_off = BackOff("the model", Pace())
        async with aiohttp.ClientSession(connector=UnixConnector(str(self._path))) as session:
            while True:
                try:
                    socket = await session.ws_connect("http://model/train", compress=0,
                                                      autoclose=False)
                    break
                except (aiohttp.ClientError, OSError):
                    await asyncio.sleep(
                        back_off.again(time.monotonic(), random.random()))  # noqa: S311
            yield WebSocket(socket, "the model", self._limit, _PATIENCE)
            await socket.close()

    def _conversation(self) -> Conversation:
        return Conversation("the model", self._token, self._task.dimension, _NO_LIMIT,
                            lambda: True, Pace(), self._task.clients.silence)

    async def first_work(self, socket: WebSocket) -> None:
        """Say hello and be given work."""
        talk = self._conversation()
        await asyncio.sleep(self._trip.value)
        await socket.send(encode(talk.connected(time.monotonic())))
        message = talk.sending(time.monotonic())
        assert message is not None
        await socket.send(encode(message))
        turn = decode(await socket.receive(_PATIENCE), Turn, self._limit)
        assert isinstance(turn.next, Work), turn.next

    async def train(self, who: Recruit, updates: SynchronizedArray[int], number: int) -> None:
        """Train for ever."""
        conversation = self._conversation()
        now = time.monotonic
        while True:
            with contextlib.suppress(Problem):
                async with self.talk() as socket:
                    await socket.send(encode(conversation.connected(now())))
                    while True:
                        if message := conversation.sending(now()):
                            await asyncio.sleep(self._trip.value)
                            await socket.send(encode(message))
                        turn = decode(await socket.receive(_PATIENCE), Turn, self._limit)
                        todo = conversation.receive(turn, now())
                        updates[number] = conversation.updates
                        if isinstance(todo, Step):
                            made = who.stepper.update(todo.weights, who.rng)
                            solution = await _search(todo.lock, todo.difficulty)
                            conversation.answer(solution, made.delta, now(), made.steps)
                        elif isinstance(todo, Over):
                            raise RuntimeError(f"training is over: {todo.why}")
            await asyncio.sleep(conversation.lost(now(), random.random()))  # noqa: S311


async def _search(lock: bytes, difficulty: int) -> bytes:
    for start in itertools.count(0, 256):
        if (found := puzzle.search(lock, difficulty, start, 256)) is not None:
            return found
        await asyncio.sleep(0)
    raise AssertionError


# -- the flood -------------------------------------------------------------------------------


def flood_process(
    path: Path, on: Event, counts: SynchronizedArray[int], workers: dict[str, int],
    told: Connection, cpu: int | None,
) -> None:
    """Throws whatever it can at the door, while it is on.

    Args:
        path: the model's socket.
        on: whether to.
        counts: of :data:`COUNTS`.
        workers: how many at a time of each of :data:`KINDS`.
        told: None once it is ready.
        cpu: where to run, at the lowest priority: the others, which are other machines' work in
            reality, come first.
    """
    run(_Flood(path, counts).run(on, workers, told), cpu, nice=19)


class _Flood:
    def __init__(self, path: Path, counts: SynchronizedArray[int]) -> None:
        self._path = str(path)
        self._counts = counts
        self._held: list[socket.socket] = []

    async def run(self, on: Event, workers: dict[str, int], told: Connection) -> None:
        path = Path(self._path)
        door = decode(await _request(path, "GET", "/puzzle"), AdmissionPuzzle)
        solved = []
        for _ in range(SOLVED):
            door = decode(await _request(path, "GET", "/puzzle"), AdmissionPuzzle)
            join = Join(door.lock, await _search(door.lock, door.difficulty), 1)
            await _request(path, "POST", "/join", encode(join))
            solved.append(_post(join))
        forged = [_post(Join(os.urandom(len(door.lock)), os.urandom(8), 1)) for _ in range(50)]
        wrong = [_post(Join(door.lock, os.urandom(8), 1)) for _ in range(50)]
        what = {
            "wrong": wrong, "forged": forged, "replayed": solved, "gone": wrong,
            "kept": [one * PIPELINED for one in wrong],
            "garbage": [os.urandom(200) for _ in range(50)],
            "half": [_UPGRADE], "idle": [b""],
        }
        told.send(None)
        while True:
            await asyncio.sleep(_LOOK)
            if not on.is_set():
                continue
            tasks = [asyncio.create_task(self._throw(kind, itertools.cycle(what[kind])))
                     for kind in workers for _ in range(workers[kind])]
            while on.is_set():
                if (await asyncio.wait(tasks, timeout=_LOOK))[0]:
                    break
            for task in tasks:
                task.cancel()
            for done in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(done, Exception):
                    raise done
            for connection in self._held:
                connection.close()
            self._held.clear()

    def _count(self, what: str, number: int = 1) -> None:
        self._counts[COUNTS.index(what)] += number

    async def _throw(self, kind: str, payloads: Iterable[bytes]) -> None:
        loop = asyncio.get_running_loop()
        for payload in payloads:
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            try:
                connection.connect(self._path)
                if payload:
                    await loop.sock_sendall(connection, payload)
            except OSError:
                connection.close()
                self._count("shut_out")
                await asyncio.sleep(0.01)
                continue
            except asyncio.CancelledError:
                connection.close()
                raise
            joins = payload.count(_JOIN)
            self._count(*(("joins", joins) if joins else ("others", 1)))
            if kind == "idle":
                self._held.append(connection)
                if len(self._held) > IDLE:
                    self._held.pop(0).close()
                await asyncio.sleep(0)
            elif kind == "gone":
                connection.close()
                await asyncio.sleep(0)
            else:
                await self._hear(connection)

    async def _hear(self, connection: socket.socket) -> None:
        """Listen until the connection ends, and count what was said."""
        loop = asyncio.get_running_loop()
        heard = b""
        try:
            while piece := await loop.sock_recv(connection, 65_536):
                heard += piece
        except OSError:
            pass
        finally:
            connection.close()
        answers = heard.count(b"HTTP/1.1 ")
        good = heard.count(b"HTTP/1.1 200 ")
        self._count("answered", good)
        self._count("refused", answers - good - heard.count(b"HTTP/1.1 101 "))
        if not answers:
            self._count("cut")


_JOIN: Final = b"POST /join HTTP/1.1\r\n"
_UPGRADE: Final = (
    b"GET /train HTTP/1.1\r\nHost: model\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")


def _post(join: Join) -> bytes:
    body = encode(join)
    return _JOIN + b"Host: model\r\nContent-Length: %d\r\n\r\n" % len(body) + body
