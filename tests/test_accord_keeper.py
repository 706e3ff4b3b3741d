"""Keeping a tor: the keeper's decisions, exact and instant, with a stand-in for tor."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from accord import tor
from accord.keeper import FIRST, LONGEST, STEADY, Keeper
from accord.problems import TOR_AWAY, TOR_FAILED, TOR_REFUSED, Problem
from accord.tor import Socks, Tor, held_port

AWAY_NOW = Problem(TOR_AWAY, where="it")
FAILED = Problem(TOR_FAILED, why="it would not", log="none")
REFUSED = Problem(TOR_REFUSED, where="it", what="publish a service", why="no")


class StandIn:
    """A tor that lives until it is told to end."""

    ours = True

    def __init__(self) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.closed = 0

    async def lost(self) -> str:
        return await self.ended

    async def close(self) -> None:
        self.closed += 1
        if not self.ended.done():
            self.ended.set_result("it was closed")


class World:
    """A clock that only sleeping moves, and tors that start as they are told to."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []
        self.said: list[str] = []
        self.tors: list[StandIn] = []
        self.starts: list[Problem | None] = []
        self.renews: list[Problem | None] = []
        self.renewed: list[StandIn] = []

    async def start(self) -> StandIn:
        if self.starts and (problem := self.starts.pop(0)):
            raise problem
        self.tors.append(StandIn())
        return self.tors[-1]

    async def renew(self, tor: StandIn) -> None:
        if self.renews and (problem := self.renews.pop(0)):
            raise problem
        self.renewed.append(tor)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    @asynccontextmanager
    async def kept(self, random: Callable[[], float] = lambda: 0.5) -> AsyncIterator[Keeper]:
        keeper = Keeper(self.start, self.said.append, sleep=self.sleep,  # type: ignore[arg-type]
                        now=lambda: self.time, random=random)
        async with keeper:
            keeper.renew = self.renew  # type: ignore[assignment]
            await asyncio.sleep(0)  # it begins to keep
            yield keeper


async def settled(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


async def test_a_tor_that_ends_is_replaced_at_once_and_all_is_published_again() -> None:
    world = World()
    async with world.kept() as keeper:
        world.time = STEADY
        world.tors[0].ended.set_result("it was ended by signal 9")
        await settled(lambda: len(world.renewed) == 1)
        await settled(lambda: len(world.said) == 2)
        assert keeper.tor is world.tors[1] is world.renewed[0]  # type: ignore[comparison-overlap]
        # What is left of the old one is cleared away before there is another.
        assert world.tors[0].closed == 1
        assert world.slept == []
        assert world.said == ["tor is away: it was ended by signal 9. Trying to have it back.",
                              "tor is back after 0.0 s."]
        assert not world.tors[1].ended.done()
    assert world.tors[1].closed == 1


async def test_it_is_tried_for_ever_and_ever_more_slowly() -> None:
    world = World()
    async with world.kept() as keeper:
        world.time = STEADY
        world.starts = [FAILED] * 50
        world.tors[0].ended.set_result("why")
        await settled(lambda: len(world.tors) == 2)
        await settled(lambda: len(world.said) == 3)
        assert world.slept[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
        assert len(world.slept) == 50 and world.slept[-1] == LONGEST == max(world.slept)
        # The same reason is said once.
        assert world.said[1] == f"tor is not back yet: {FAILED.sentence}"
        assert keeper.tor is world.tors[1]  # type: ignore[comparison-overlap]


async def test_pauses_differ_from_one_to_another() -> None:
    pauses = []
    for chance in (0.0, 0.999):
        world = World()
        async with world.kept(lambda chance=chance: chance):  # type: ignore[misc]
            world.time = STEADY
            world.starts = [FAILED]
            world.tors[0].ended.set_result("why")
            await settled(lambda: len(world.said) == 3)  # noqa: B023
        pauses.append(world.slept[0])
    assert pauses == [0.5 * FIRST, pytest.approx(1.499 * FIRST)]


async def test_a_tor_that_comes_and_goes_is_not_started_in_a_circle() -> None:
    world = World()
    async with world.kept():
        for number in range(10):
            await settled(lambda: len(world.tors) == number + 1)  # noqa: B023
            world.tors[number].ended.set_result("why")
        await settled(lambda: len(world.tors) == 11)
        assert world.slept[:3] == [FIRST, 2 * FIRST, 4 * FIRST] and world.slept[-1] == LONGEST
        # Once it has lived for a while, that is forgotten.
        await settled(lambda: len(world.said) == 20)
        world.time += STEADY
        before = len(world.slept)
        world.tors[10].ended.set_result("why")
        await settled(lambda: len(world.tors) == 12)
        assert len(world.slept) == before


async def test_a_tor_that_goes_while_all_is_published_again_is_replaced_too() -> None:
    world = World()
    world.renews = [AWAY_NOW]
    async with world.kept():
        world.time = STEADY
        world.tors[0].ended.set_result("why")
        await settled(lambda: bool(world.renewed))
        assert world.renewed == [world.tors[2]] and world.tors[1].closed == 1


async def test_what_a_tor_refuses_is_said_and_does_not_end_it() -> None:
    world = World()
    world.renews = [REFUSED]
    async with world.kept() as keeper:
        world.time = STEADY
        world.tors[0].ended.set_result("why")
        await settled(lambda: len(world.said) == 3)
        assert world.said[1] == REFUSED.sentence
        assert keeper.tor is world.tors[1] and len(world.tors) == 2  # type: ignore[comparison-overlap]
        assert world.tors[1].closed == 0


async def test_the_first_start_fails_as_it_does_without_a_keeper() -> None:
    world = World()
    world.starts = [FAILED]
    with pytest.raises(Problem) as caught:
        async with world.kept():
            pass
    assert caught.value is FAILED and world.said == []


async def test_only_a_tor_of_our_own_is_ended_on_purpose() -> None:
    world = World()
    async with world.kept() as keeper:
        world.tors[0].ours = False
        await keeper.restart()
        assert world.tors[0].closed == 0
        world.tors[0].ours = True
        await keeper.restart()
        await settled(lambda: len(world.renewed) == 1)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_a_held_port_is_given_to_nobody_else_and_can_be_listened_on_again_and_again(
    address: str,
) -> None:
    with held_port(address) as held:
        for _ in range(2):
            with socket.socket() as listener, held.lent() as port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, port))
                listener.listen()
            with socket.socket() as asking, pytest.raises(ConnectionRefusedError):
                asking.connect((address, port))
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((address, port))


# -- how a loss is noticed -------------------------------------------------------------------


class Line:
    """A control connection that is open, and answers, as long as it is told so."""

    where = "it"

    def __init__(self) -> None:
        self.alive = True
        self.silent = False
        self.asked = 0

    async def info(self, key: str) -> str:
        self.asked += 1
        if self.silent:
            raise AWAY_NOW
        return "0.4.9"

    async def close(self) -> None:
        self.alive = False


async def test_a_broken_or_silent_control_connection_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tor, "_LOOK", 0.0)
    monkeypatch.setattr(tor, "_ASK", 0.0)
    for change, words in ((lambda line: setattr(line, "alive", False), "connection broke"),
                          (lambda line: setattr(line, "silent", True), "does not answer")):
        line = Line()
        attached = Tor([Socks("127.0.0.1", 9050)], (), line)  # type: ignore[arg-type]
        losing = asyncio.create_task(attached.lost())
        await settled(lambda: line.asked > 3)  # noqa: B023
        assert not losing.done()
        change(line)
        async with asyncio.timeout(5):
            assert words in await losing


async def test_the_end_of_the_process_is_noticed_and_how_it_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tor, "_LOOK", 0.01)
    for end, words in (("kill -9 $$", "signal 9"), ("exit 3", "status 3")):
        child = await asyncio.create_subprocess_exec("sh", "-c", f"read _; {end}", stdin=-1)
        ours = Tor([Socks("127.0.0.1", 9050)], (), Line(), child)  # type: ignore[arg-type]
        losing = asyncio.create_task(ours.lost())
        await asyncio.sleep(0.05)
        assert not losing.done()
        assert child.stdin is not None
        child.stdin.write(b"\n")
        assert words in await losing
        await ours.close()
