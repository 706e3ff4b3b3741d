"""What a broker publishes, and the look after it: exact and instant, with stand-ins for tor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from accord.messages import MAX_INVITED
from accord.onion import onion_from_seed
from accord.problems import AWAY, NO_INVITATIONS, TOR_AWAY, TOR_REFUSED, Problem
from accord.tor import ControlRefused
from broker import cli
from broker.direct import DirectFront
from broker.hidden_service import HiddenServices
from broker.watch import Rhythm, watch

AWAY_NOW = Problem(TOR_AWAY, where="it")
SEEDS = [bytes([n]) * 32 for n in range(3)]
ONIONS = [onion_from_seed(seed) for seed in SEEDS]
SOCKET = Path("/run/it")


class World:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []
        self.said: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


# -- what is published -----------------------------------------------------------------------


class Commanded:
    """A tor's control connection; it has the services that it was told of."""

    where = "it"
    version = (0, 4, 9)
    ours = True

    def __init__(self) -> None:
        self.away = False
        self.services: dict[str, str] = {}
        self.elsewhere: set[str] = set()  # another connection has them
        self.refuses: set[str] = set()
        self.keys: list[str] = []
        self.meanwhile: Callable[[], None] | None = None

    @property
    def control(self) -> Commanded:
        return self

    async def command(self, line: str) -> list[str]:
        await asyncio.sleep(0)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        if self.away:
            raise AWAY_NOW
        if line.startswith("DEL_ONION "):
            if self.services.pop(line.split()[1] + ".onion", None) is None:
                raise ControlRefused(552, "Unknown Onion Service id")
            return []
        (onion,) = [onion for seed, onion in zip(SEEDS, ONIONS, strict=True)
                    if _key(seed) in line]
        if onion in self.refuses:
            raise ControlRefused(551, "Failed to add Onion Service")
        if onion in self.services or onion in self.elsewhere:
            self.elsewhere.discard(onion)
            raise ControlRefused(550, "Onion address collision")
        self.services[onion] = line
        return []

    async def add_client_key(self, onion: str, private: bytes) -> None:
        self.keys.append(onion)


def _key(seed: bytes) -> str:
    import base64

    from accord.onion import expanded_key

    return base64.b64encode(expanded_key(seed)).decode()


def services(tor: Commanded) -> HiddenServices:
    return HiddenServices(tor)  # type: ignore[arg-type]


async def test_another_tor_is_given_all_that_was_published_and_nothing_else() -> None:
    old, new = Commanded(), Commanded()
    them = services(old)
    await them.publish(SEEDS[0], SOCKET)
    await them.publish(SEEDS[1], SOCKET, invited=[b"k" * 32])
    await them.publish(SEEDS[2], SOCKET)
    await them.remove(ONIONS[2])
    await them.renew(new)  # type: ignore[arg-type]
    assert new.services == old.services and list(new.services) == ONIONS[:2]
    assert new.keys == old.keys == [ONIONS[1]]
    assert "V3Auth" in new.services[ONIONS[1]] and "V3Auth" not in new.services[ONIONS[0]]
    assert new.services[ONIONS[1]].count("ClientAuthV3=") == 2


async def test_orders_while_tor_is_away_are_kept() -> None:
    old, new = Commanded(), Commanded()
    them = services(old)
    await them.publish(SEEDS[0], SOCKET)
    old.away = True
    assert await them.publish(SEEDS[1], SOCKET) == ONIONS[1]
    await them.remove(ONIONS[0])
    await them.renew(new)  # type: ignore[arg-type]
    assert list(new.services) == [ONIONS[1]] == them.onions


async def test_what_is_removed_while_it_is_published_again_is_not() -> None:
    old, new = Commanded(), Commanded()
    them = services(old)
    await them.publish(SEEDS[0], SOCKET)
    removing: list[asyncio.Task[None]] = []
    new.meanwhile = lambda: removing.append(asyncio.create_task(them.remove(ONIONS[0])))
    await them.renew(new)  # type: ignore[arg-type]
    await removing[0]
    assert new.services == {} and them.onions == []
    # Nor when the tor goes away between the two.
    await them.publish(SEEDS[0], SOCKET)
    new.meanwhile = lambda: setattr(new, "away", True)
    await them.remove(ONIONS[0])
    third = Commanded()
    await them.renew(third)  # type: ignore[arg-type]
    assert third.services == {}


async def test_what_tor_refuses_is_not_remembered_and_keeps_nothing_from_the_others() -> None:
    tor, new = Commanded(), Commanded()
    them = services(tor)
    tor.refuses = {ONIONS[0]}
    with pytest.raises(Problem) as caught:
        await them.publish(SEEDS[0], SOCKET)
    assert caught.value.kind is TOR_REFUSED and them.onions == []
    tor.refuses = set()
    for seed in SEEDS:
        await them.publish(seed, SOCKET)
    new.refuses = {ONIONS[0]}
    with pytest.raises(Problem) as caught:
        await them.renew(new)  # type: ignore[arg-type]
    assert caught.value.kind is TOR_REFUSED and list(new.services) == ONIONS[1:]


async def test_an_address_that_a_former_connection_still_holds_is_waited_for() -> None:
    # To take its refusal for success would leave nothing when that connection is cleared away.
    tor = Commanded()
    tor.elsewhere = {ONIONS[0]}
    them = services(tor)
    await them.publish(SEEDS[0], SOCKET)
    assert list(tor.services) == [ONIONS[0]]


async def test_published_with_other_wishes_it_takes_the_place_of_what_was() -> None:
    tor = Commanded()
    them = services(tor)
    await them.publish(SEEDS[0], SOCKET)
    first = tor.services[ONIONS[0]]
    await them.publish(SEEDS[0], SOCKET)
    assert tor.services[ONIONS[0]] is first
    await them.publish(SEEDS[0], Path("/run/other"))
    assert "unix:/run/other" in tor.services[ONIONS[0]] and them.onions == [ONIONS[0]]


async def test_too_many_guests_or_half_a_key_are_refused() -> None:
    tor = Commanded()
    with pytest.raises(Problem, match=str(MAX_INVITED)):
        await services(tor).publish(SEEDS[0], SOCKET, invited=[bytes(32)] * (MAX_INVITED + 1))
    with pytest.raises(ValueError, match="32 bytes"):
        await services(tor).publish(SEEDS[0], SOCKET, invited=[b"short"])
    assert tor.services == {}


async def test_without_tor_nobody_can_be_invited() -> None:
    with pytest.raises(Problem, match="invitations need Tor") as caught:
        await DirectFront().publish(SEEDS[0], SOCKET, invited=[bytes(32)])
    assert caught.value.kind is NO_INVITATIONS


class Slow:
    """Services that are reached after a while."""

    def __init__(self, *outcomes: Problem | None) -> None:
        self.outcomes = list(outcomes)
        self.published: list[str] = []

    async def reachable(self, onion: str, timeout: float) -> None:
        if (problem := self.outcomes.pop(0)) is not None:
            raise problem

    async def again(self, onion: str) -> None:
        self.published.append(onion)


async def test_a_desk_that_is_not_reached_yet_goes_on_trying_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "RETRY_SECONDS", 0.0)
    slow = Slow(UNFOUND, AWAY_NOW, UNFOUND, None)
    await cli._reached(slow, "it")  # type: ignore[arg-type]
    assert slow.outcomes == [] and slow.published == ["it", "it"]
    said = capsys.readouterr().err
    assert said.count("Not reached yet (no such onion service is published)") == 2
    refused = Problem(TOR_REFUSED, where="it", what="publish", why="no")
    with pytest.raises(Problem) as caught:
        await cli._reached(Slow(UNFOUND, refused), "it")  # type: ignore[arg-type]
    assert caught.value is refused


# -- the watch -------------------------------------------------------------------------------

RHYTHM = Rhythm(look=100.0, soon=10.0, pause=1.0, tries=3, restart=50.0)
UNFOUND = Problem(AWAY, address="it", why="no such onion service is published")


class Services:
    """Services that are reached as they are told to be."""

    def __init__(self, *onions: str) -> None:
        self.onions = list(onions)
        self.fails: dict[str, list[Problem | None] | Problem] = {}
        self.published: list[str] = []
        self.looked: list[str] = []
        self.talking = False
        self.restarts = 0

    async def reached(self, onion: str) -> None:
        self.looked.append(onion)
        problem = self.fails.get(onion)
        if isinstance(problem, list):
            problem = problem.pop(0) if problem else None
        if problem is not None:
            raise problem

    async def again(self, onion: str) -> None:
        self.published.append(onion)

    async def conversing(self) -> bool:
        return self.talking

    async def restart(self) -> None:
        self.restarts += 1


async def watched(services: Services, world: World, until: float,
                  before: Callable[[float], Awaitable[None]] | None = None) -> None:
    """Watch until this time."""

    class Over(Exception):
        pass

    async def sleep(seconds: float) -> None:
        await world.sleep(seconds)
        if world.time > until:
            raise Over
        if before is not None:
            await before(world.time)

    with pytest.raises(Over):
        await watch(services, services, world.said.append, RHYTHM, sleep=sleep,
                    now=lambda: world.time, random=lambda: 0.5)


async def test_a_service_that_is_reached_is_left_alone() -> None:
    services, world = Services("a", "b"), World()
    await watched(services, world, 350.0)
    assert services.looked == ["a", "b"] * 3
    assert services.published == [] and world.said == [] and services.restarts == 0
    assert set(world.slept) == {100.0}


async def test_a_busy_machine_that_fails_a_try_or_two_changes_nothing() -> None:
    services, world = Services("a"), World()
    services.fails["a"] = [UNFOUND, UNFOUND, None]
    await watched(services, world, 150.0)
    assert services.looked == ["a"] * 3 and services.published == [] and world.said == []


async def test_one_that_cannot_be_reached_is_published_again_and_looked_at_soon() -> None:
    services, world = Services("a", "b"), World()
    services.fails["b"] = [UNFOUND] * 3
    await watched(services, world, 115.0)
    assert services.published == ["b"] and services.restarts == 0
    assert world.said == [
        "b cannot be reached (no such onion service is published); publishing it again.",
        "b is reached again."]
    assert world.slept[:4] == [100.0, 1.0, 1.0, 10.0] and world.slept[4] == 100.0


async def test_tor_is_started_again_when_nothing_else_helps_and_nobody_talks() -> None:
    services, world = Services("a"), World()
    services.fails["a"] = UNFOUND
    services.talking = True
    await watched(services, world, 100.0 + 4 * RHYTHM.restart)
    assert services.restarts == 0, "somebody would have lost a conversation"
    services.talking = False
    world.time = 0.0
    await watched(services, world, 100.0 + 1.8 * RHYTHM.restart)
    assert services.restarts == 1, "and then it is given time again"


async def test_while_tor_is_away_nothing_is_done() -> None:
    services, world = Services("a"), World()
    services.fails["a"] = AWAY_NOW
    await watched(services, world, 1000.0)
    assert services.published == [] and world.said == [] and services.restarts == 0


async def test_a_model_that_ends_during_a_look_is_not_published_again() -> None:
    services, world = Services("a"), World()
    services.fails["a"] = UNFOUND

    async def before(now: float) -> None:
        if now == 102.0:  # between the tries
            services.onions.clear()

    await watched(services, world, 1000.0, before)
    assert len(services.looked) == 3 and services.published == [] and services.restarts == 0
