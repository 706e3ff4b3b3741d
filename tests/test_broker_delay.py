"""Random delays at the broker (paper 7.4), over real sockets: what they hide and what they must not
break. The draws are the test's own, so that each order is the one that is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from broker_world import DIMENSION, make_brokerage, make_task, solve

from accord.circuit import Circuit, Route, WebSocket
from accord.messages import (
    AdmissionPuzzle,
    End,
    Hello,
    Join,
    Leave,
    Pull,
    Push,
    Status,
    Turn,
    Wait,
    Welcome,
    Work,
    decode,
    encode,
    turn_limit,
    vector_from_wire,
    vector_to_wire,
)
from accord.onion import onion_from_seed
from accord.task import Training
from broker.doorman import Door
from broker.model_app import ModelApp
from broker.store import Store

ONION = onion_from_seed(b"m" * 32)
SHORT = 0.4
"""Seconds of the delays that a test waits for."""
LONG = 10.0
"""Of those that it does not."""


@dataclass
class Draws:
    """The random numbers of an app: those that a test has put here, then zeros.

    Attributes:
        drawn: how many were asked for.
    """

    coming: list[float] = field(default_factory=list)
    drawn: int = 0

    def __call__(self) -> float:
        self.drawn += 1
        return self.coming.pop(0) if self.coming else 0.0


@dataclass
class Served:
    """A model that is served, and the ways to it."""

    app: ModelApp
    store: Store
    route: Route
    draws: Draws

    async def status(self) -> Status:
        async with Circuit(self.route, ONION, "anyone") as circuit:
            return decode(await circuit.get("/status"), Status)

    @contextlib.asynccontextmanager
    async def visit(self, k: int = 1, token: bytes = b"") -> AsyncIterator[Visitor]:
        """A client, after its Hello."""
        async with Circuit(self.route, ONION, os.urandom(4).hex()) as circuit:
            if not token:
                door = decode(await circuit.get("/puzzle"), AdmissionPuzzle)
                join = Join(door.lock, solve(door.lock, door.difficulty), k)
                token = decode(await circuit.post("/join", encode(join)), Welcome).token
            socket = await circuit.websocket("/train", turn_limit(DIMENSION))
            await socket.send(encode(Hello(token)))
            try:
                yield Visitor(token, socket)
            finally:
                await socket.close()

    async def held(self, count: int = 1) -> None:
        """Wait until so many messages in all have come and are held back."""
        async with asyncio.timeout(5.0):
            while self.draws.drawn < count:
                await asyncio.sleep(0.005)


@dataclass
class Visitor:
    """A client over a real WebSocket, that does as it is told."""

    token: bytes
    socket: WebSocket

    async def say(self, message: Pull | Push | Leave) -> None:
        await self.socket.send(encode(message))

    async def hear(self) -> Turn:
        return decode(await self.socket.receive(20.0), Turn, turn_limit(DIMENSION))

    async def ask(self, message: Pull | Push | Leave) -> Turn:
        await self.say(message)
        return await self.hear()

    async def work(self) -> Work:
        work = (await self.ask(Pull())).next
        assert isinstance(work, Work)
        return work


def answer(work: Work, place: int) -> Push:
    """An update that moves one weight by a tenth."""
    return Push(work.ticket, solve(work.lock, work.difficulty), vector_to_wire(
        0.1 * np.eye(DIMENSION)[place]))


def weights(turn: Turn) -> np.ndarray:
    """Those that the client is to work on next."""
    assert isinstance(turn.next, Work)
    vector = vector_from_wire(turn.next.weights, DIMENSION)
    assert vector is not None
    return vector


@contextlib.asynccontextmanager
async def serve(
    directory: Path, delay: float, **training: object
) -> AsyncIterator[Served]:
    rules = Training(max_norm=1.0, reply_delay=delay, **training)  # type: ignore[arg-type]
    loop_time = asyncio.get_running_loop().time()
    brokerage = make_brokerage(make_task(training=rules), now=loop_time)
    store, draws = Store(directory / "model.db"), Draws()
    app = ModelApp(brokerage, store, lambda: b"", random=draws)
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    door = Door(app.app, listener)
    await door.open()
    life = asyncio.create_task(app.run())
    try:
        yield Served(app, store, Route(socks=None, direct=(host, port)), draws)
    finally:
        await door.close()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        store.close()


async def test_the_time_is_uniform_and_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "model.db")
    brokerage = make_brokerage(make_task(training=Training(reply_delay=0.5)))
    app = ModelApp(brokerage, store, lambda: b"")
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    n = 4000
    for _ in range(n):
        await app._hold_back()
    store.close()
    assert len(slept) == n and min(slept) >= 0 and max(slept) <= 0.5
    ranks = np.arange(n) / n
    distance = max(np.abs(2 * np.sort(slept) - ranks).max(),
                   np.abs(2 * np.sort(slept) - ranks - 1 / n).max())
    # Dvoretzky, Kiefer and Wolfowitz, with Massart's constant: a false alarm in a billion.
    assert distance < math.sqrt(math.log(2e9) / (2 * n))


async def test_off_by_default(tmp_path: Path) -> None:
    assert Training().reply_delay == 0.0
    async with serve(tmp_path, 0.0) as it, it.visit() as one:
        assert (await one.ask(answer(await one.work(), 0))).receipt
        assert it.draws.drawn == 0


async def test_the_order_of_updates_is_the_draws_and_weights_are_of_the_moment(
    tmp_path: Path
) -> None:
    """Who comes first is taken last; and each is told the weights of when it was taken."""
    async with serve(tmp_path, SHORT) as it, it.visit() as one, it.visit() as two:
        mine, yours = answer(await one.work(), 0), answer(await two.work(), 1)
        it.draws.coming = [1.0, 0.0]
        await one.say(mine)
        await it.held(3)
        first = await two.ask(yours)
        assert first.receipt == yours.ticket
        assert np.allclose(weights(first), [0, 0.1, 0, 0]), "the other's was taken before it"
        second = await one.hear()
        assert second.receipt == mine.ticket
        assert np.allclose(weights(second), [0.1, 0.1, 0, 0]), "its weights were read too early"


@pytest.mark.slow
async def test_so_is_the_moment_at_which_anyone_sees_weights(tmp_path: Path) -> None:
    """Nor does a Pull bring weights of a moment that its sender has chosen."""
    async with serve(tmp_path, SHORT) as it, it.visit() as one, it.visit() as two:
        work = await one.work()
        it.draws.coming = [1.0, 0.0]
        await two.say(Pull())
        await it.held(2)
        assert (await one.ask(answer(work, 0))).receipt
        assert np.allclose(weights(await two.hear()), [0.1, 0, 0, 0])
        # Whoever leaves and asks anew, to see new weights without any work, waits too.
        it.draws.coming = [1.0]
        began = time.monotonic()
        await two.ask(Leave())
        assert time.monotonic() - began < SHORT / 2, "a Leave is not held"
        await two.ask(Pull())
        assert time.monotonic() - began >= SHORT * 0.95


async def test_nothing_of_a_held_update_exists(tmp_path: Path) -> None:
    async with serve(tmp_path, SHORT) as it, it.visit() as one:
        push = answer(await one.work(), 0)
        it.draws.coming = [1.0]
        began = time.monotonic()
        await one.say(push)
        await it.held(2)
        assert (await it.status()).updates == 0
        turn = await one.hear()
        assert SHORT * 0.95 <= time.monotonic() - began < SHORT + 1.0
        assert turn.receipt == push.ticket
        # Acknowledged means on disk.
        state = it.store.state()
        assert state is not None and state[0].updates == 1
        # Sent again it is acknowledged again, and counts once.
        assert (await one.ask(push)) == turn
        assert (await it.status()).updates == 1


@pytest.mark.slow
async def test_one_who_is_held_holds_nobody_up(tmp_path: Path) -> None:
    async with serve(tmp_path, LONG) as it, it.visit() as one, it.visit() as two:
        held, work = answer(await one.work(), 0), await two.work()
        it.draws.coming = [1.0]
        await one.say(held)
        await it.held(3)
        began = time.monotonic()
        for _ in range(10):
            turn = await two.ask(answer(work, 1))
            assert turn.receipt == work.ticket and isinstance(turn.next, Work)
            work = turn.next
        assert time.monotonic() - began < LONG / 2
        assert (await it.status()).updates == 10


async def test_answers_of_a_session_keep_their_order(tmp_path: Path) -> None:
    async with serve(tmp_path, SHORT) as it, it.visit() as one:
        push = answer(await one.work(), 0)
        it.draws.coming = [1.0, 0.0]
        await one.say(push)
        await one.say(Pull())
        first, second = await one.hear(), await one.hear()
        assert (first.receipt, second.receipt) == (push.ticket, b"")
        assert first.next == second.next


@pytest.mark.slow
@pytest.mark.parametrize("back", [False, True])
async def test_cut_off_while_held_it_counts_once(tmp_path: Path, back: bool) -> None:
    """Whether its client is back while it is still held (``back``), or only later."""
    async with serve(tmp_path, SHORT) as it:
        async with it.visit() as one:
            push = answer(await one.work(), 0)
            it.draws.coming = [1.0, 0.0]
            await one.say(push)
            await it.held(2)
        if not back:
            await asyncio.sleep(SHORT + 0.2)
            # Its noise is paid for: it is taken although nobody waits for the answer.
            assert (await it.status()).updates == 1
        async with it.visit(token=one.token) as again:
            assert (await again.ask(push)).receipt == push.ticket
        await asyncio.sleep(SHORT + 0.2)
        assert (await it.status()).updates == 1


async def test_the_end_may_come_while_it_is_held(tmp_path: Path) -> None:
    async with serve(tmp_path, SHORT, max_updates=1) as it, it.visit() as one, it.visit() as two:
        mine, yours = answer(await one.work(), 0), answer(await two.work(), 1)
        it.draws.coming = [1.0, 0.0]
        await one.say(mine)
        await it.held(3)
        assert isinstance((await two.ask(yours)).next, End)
        late = await one.hear()
        assert isinstance(late.next, End) and late.receipt == b""
        assert (await it.status()).updates == 1


async def test_those_who_wait_for_others_are_held_when_it_begins(tmp_path: Path) -> None:
    async with serve(tmp_path, SHORT) as it, it.visit(k=2) as one:
        assert isinstance((await one.ask(Pull())).next, Wait)
        it.draws.coming = [1.0, 0.0]  # of the one that waits, of the one that comes
        began = time.monotonic()
        async with it.visit() as two:
            await two.work()
            assert isinstance((await one.hear()).next, Work)
            assert time.monotonic() - began >= SHORT * 0.95


@pytest.mark.slow
async def test_closing_waits_for_no_delay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tormentor.broker")
    tasks: Callable[[], set[asyncio.Task[object]]] = asyncio.all_tasks
    before = tasks()
    async with contextlib.AsyncExitStack() as stack:
        it = await stack.enter_async_context(serve(tmp_path, LONG))
        one = await stack.enter_async_context(it.visit())
        push = answer(await one.work(), 0)
        it.draws.coming = [1.0]
        await one.say(push)
        await it.held(2)
        began = time.monotonic()
        await it.app._hang_up(it.app.app)
        assert time.monotonic() - began < LONG / 2
        state = it.store.state()
        assert state is None or state[0].updates == 0
    assert time.monotonic() - began < LONG
    assert not caplog.records
    assert {task for task in tasks() - before if "_converse" in repr(task)} == set()
