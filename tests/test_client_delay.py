"""A client's own random delay before each update, and the room it leaves for the broker's."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from client_home import Person, World, a_world, refused
from client_world import CURATOR, QUICK, StandIn, make_task, soon

from accord.messages import End, Hello, Pull, Push, Turn, decode, push_limit
from accord.task import Clients, Training, sign
from client import agent, work
from client.briefing import about_task
from client.events import Reconnecting, Silent
from client.session import MOST_DELAY, load_session
from client.work import Worker


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "session.json")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as it:
        yield it


def at_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw is the largest there is."""
    for place in (agent, work):
        monkeypatch.setattr(place, "_random", lambda: 1.0)


@pytest.mark.slow
async def test_an_update_waits_and_its_signs_of_life_do_not(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_worst(monkeypatch)
    broker = StandIn(task=make_task(clients=Clients(minimum=1, silence=0.6)), publish_after=2)
    person.write(broker, delay=0.7)
    heard: list[tuple[float, bytes]] = []

    class Ears(list[bytes]):
        def append(self, raw: bytes) -> None:
            heard.append((time.monotonic(), raw))
            super().append(raw)

    broker.ws = Ears()
    async with broker.serve() as way:
        assert await person.run(broker, way) == "published"
    assert broker.updates == 2 == person.paid()
    limit = push_limit(broker.task.dimension)
    said = [(when, decode(raw, Hello | Pull | Push, limit)) for when, raw in heard]
    pushes = [when for when, message in said if isinstance(message, Push)]
    asked = next(when for when, message in said if isinstance(message, Pull))
    # The answer to each message is at once: the next update comes a whole delay after the last.
    assert all(b - a >= 0.69 for a, b in zip([asked, *pushes], pushes, strict=False))
    # Nobody was silent for as long as would count as gone.
    times = [when for when, _ in said]
    assert max(np.diff(times)) < 0.6 * 0.75


async def test_the_time_is_uniform(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = StandIn()
    person.write(broker, delay=3.0)
    slept: list[float] = []

    class Walked(Exception):
        """Far enough: what follows the delay is not for this test."""

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        raise Walked

    it = _agent(person, broker)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(Worker, "search", _found)
    n = 3000
    for _ in range(n):
        with pytest.raises(Walked):
            await it._compute(agent.Step(np.zeros(broker.task.dimension), b"lock", 0))
    assert len(slept) == n and min(slept) >= 0 and max(slept) <= 3.0
    ranks = np.arange(n) / n
    distance = max(np.abs(np.sort(slept) / 3 - ranks).max(),
                   np.abs(np.sort(slept) / 3 - ranks - 1 / n).max())
    # Dvoretzky, Kiefer and Wolfowitz, with Massart's constant: a false alarm in a billion.
    assert distance < math.sqrt(math.log(2e9) / (2 * n))


async def _found(*_: object, **__: object) -> bytes:
    return b""


def _agent(person: Person, broker: StandIn) -> agent.Agent:
    nothing: Any = None

    class Trainer:
        """Only what an agent reads before it begins."""

        task = broker.task

    stand_in: Any = Trainer()
    return agent.Agent(nothing, person.path, person.session, stand_in, nothing, nothing, nothing,
                       pace=QUICK)


async def test_none_by_default(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    at_worst(monkeypatch)
    broker = StandIn()
    person.write(broker)
    assert person.session.delay == 0.0
    async with broker.serve() as way:
        assert await asyncio.wait_for(person.run(broker, way), 5.0) == "published"


async def test_stopped_while_it_waits_nothing_is_paid_and_it_waits_again(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_worst(monkeypatch)
    broker = StandIn(publish_after=1)
    person.write(broker, delay=30.0)
    async with broker.serve() as way:
        going = asyncio.create_task(person.run(broker, way))
        await soon(lambda: bool(broker.tickets))
        await asyncio.sleep(0.2)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        assert (broker.updates, person.paid()) == (0, 0)
        # What goes on from the file waits as the file says.
        assert person.session.delay == 30.0
        going = asyncio.create_task(person.run(broker, way))
        await soon(lambda: broker.connections == 2)
        await asyncio.sleep(0.3)
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        assert (broker.updates, person.paid()) == (0, 0)
        for place in (agent, work):
            monkeypatch.setattr(place, "_random", lambda: 0.0)
        assert await person.run(broker, way) == "published"
    assert (broker.updates, person.paid()) == (1, 1)


async def test_told_of_the_end_while_it_waits_nothing_is_paid(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_worst(monkeypatch)
    broker = StandIn(task=make_task(clients=Clients(minimum=1, silence=0.6)))
    person.write(broker, delay=30.0)
    async with broker.serve() as way:
        going = asyncio.create_task(person.run(broker, way))
        await soon(lambda: bool(broker.tickets))
        broker.finish()
        broker.turns = [Turn(b"", End())]  # to the next sign of life
        assert await asyncio.wait_for(going, 5.0) == "published"
    assert person.paid() == 0


@pytest.mark.slow
async def test_answers_that_a_task_holds_back_are_waited_for(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent twice, and nobody is said to be silent, for a delay that the task allows."""
    task = make_task(training=Training(max_updates=10, reply_delay=0.6))
    broker = StandIn(task=task, publish_after=2)
    person.write(broker)
    person.pace = replace(QUICK, answer=0.1, silent=0.1)
    send = web.WebSocketResponse.send_bytes

    async def late(self: web.WebSocketResponse, data: bytes, *more: Any) -> None:
        await asyncio.sleep(0.6)
        await send(self, data, *more)

    monkeypatch.setattr(web.WebSocketResponse, "send_bytes", late)
    async with broker.serve() as way:
        assert await person.run(broker, way) == "published"
    assert broker.connections == 1 and broker.updates == 2
    assert not person.saw(Reconnecting) and not person.saw(Silent)
    assert len(broker.ws) == len(set(broker.ws)) == 4  # Hello, Pull, and each Push once


# -- the command -----------------------------------------------------------------------------


def test_it_is_kept_in_the_session_and_never_sent(world: World) -> None:
    told = json.loads(world.join("--delay", 0.0123456, "--json").stdout)
    assert told["delay"] == 0.0123456 == load_session(world.session).delay
    assert world.run("solve", "--json").exit_code == 0
    assert world.broker.updates == 5
    sent = b"".join([*world.broker.ws, *(body for _, _, body in world.broker.heard)])
    sent += repr(world.broker.heard).encode()
    assert b"0.0123456" not in sent and b"delay" not in sent
    for kind in ("<f4", ">f4", "<f8", ">f8"):
        assert np.array(0.0123456, kind).tobytes() not in sent


@pytest.mark.parametrize("delay", [-1, "nan", "inf", MOST_DELAY + 1])
def test_typed_wrongly(world: World, delay: object) -> None:
    refused(world.join("--delay", delay, "--json"), 2, "bad-option")
    assert world.broker.heard == [] and not world.session.exists()


def test_another_delay_is_another_wish(world: World) -> None:
    assert world.join("--delay", 1).exit_code == 0
    assert world.join("--delay", 1).exit_code == 0
    told = world.join("--delay", 2, "--json")
    refused(told, 2, "unfinished")
    assert "with another --delay;" in json.loads(told.stdout)["sentence"]


def test_it_must_leave_time_for_a_round(world: World) -> None:
    """Else its updates come too late, and are paid for all the same."""
    together = Training(mode="synchronous", round_seconds=30.0, max_updates=10)
    world.broker.signed = sign(make_task(training=together), CURATOR)
    told = world.join("--delay", 15.1, "--json")
    refused(told, 2, "bad-option")
    assert "at most 15," in json.loads(told.stdout)["sentence"]
    assert not world.session.exists()
    assert world.join("--delay", 15).exit_code == 0


def test_a_person_is_told_of_the_brokers() -> None:
    without = make_task()
    assert "Pace" not in about_task(without, sign(without, CURATOR))
    task = make_task(training=Training(max_updates=10, reply_delay=0.5))
    told = about_task(task, sign(task, CURATOR))
    assert ("Pace each update and its answer are held back at random, up to 0.5 s, so that their "
            "moments tell less") in " ".join(told.split())
    assert max(len(line) for line in told.splitlines()) <= 80


def test_the_delay_of_a_file_is_checked(world: World) -> None:
    assert world.join().exit_code == 0
    old = json.loads(world.session.read_bytes())
    assert old.pop("delay") == 0.0
    world.session.write_text(json.dumps(old))
    assert load_session(world.session).delay == 0.0
    world.session.write_bytes(json.dumps(old | {"delay": 61.0}).encode())
    refused(world.run("solve", "--json"), 9, "bad-session")
