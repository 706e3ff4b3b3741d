"""Strikes: a client is told of each, and leaves when its person wished it; or is put out."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_home import Person, World, a_world, lines, refused, refuses, until, world_free
from client_world import ONION, StandIn, soon

from accord.messages import Leave, Pull, Push, Refused, Turn, decode
from accord.problems import EVICTED
from client.events import Struck
from client.session import Verdict, load_session


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "session.json")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as it:
        yield it


# -- the agent -------------------------------------------------------------------------------


async def test_a_wish_to_leave_is_fulfilled_before_more_is_paid(person: Person) -> None:
    broker = StandIn(publish_after=1000)
    person.write(broker, leave_if_struck=True)

    def strike() -> None:
        if broker.updates == 3:
            broker.strikes = (1, 2, 7)

    broker.on_push = strike
    async with broker.serve() as way:
        assert await person.run(broker, way) == "left"
        await soon(lambda: broker.left == 1)
        assert broker.updates == 3 == person.paid()
        assert decode(broker.ws[-1], Pull | Push | Leave) == Leave()
        assert person.saw(Struck) == [Struck(1, 2, 7)]
        assert person.session.outcome == "left"
        assert person.session.verdict == Verdict(1, 2, 7)
        # It is not gone back to.
        heard = len(broker.ws), len(broker.heard)
        assert await person.run(broker, way) == "left"
        assert (len(broker.ws), len(broker.heard)) == heard


async def test_too_many_others_struck(person: Person) -> None:
    broker = StandIn(publish_after=1000, strikes=(0, 1, 3))
    person.write(broker, leave_if_share=0.5)
    broker.on_push = lambda: setattr(broker, "strikes", (0, 2, 4))
    async with broker.serve() as way:
        assert await person.run(broker, way) == "left"
    assert broker.updates == 1 == person.paid()
    # We are none of them: there is nothing to tell but that we leave, and why.
    assert person.saw(Struck) == []
    assert person.session.verdict == Verdict(0, 2, 4)


async def test_whoever_stays_is_told_of_each_strike(person: Person) -> None:
    broker = StandIn(publish_after=9)
    person.write(broker, leave_if_share=0.9)
    broker.on_push = lambda: setattr(
        broker, "strikes", (broker.updates // 3, broker.updates // 3, 9))
    async with broker.serve() as way:
        assert await person.run(broker, way) == "published"
    assert person.saw(Struck) == [Struck(1, 1, 9), Struck(2, 2, 9), Struck(3, 3, 9)]
    assert person.session.verdict == Verdict(3, 3, 9)


async def test_and_again_by_the_next_run(person: Person) -> None:
    broker = StandIn(publish_after=1000, strikes=(2, 2, 9))
    person.write(broker)
    async with broker.serve() as way:
        for times in (1, 2):
            going = asyncio.create_task(person.run(broker, way))
            await soon(lambda times=times: len(person.saw(Struck)) == times)  # type: ignore[misc]
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going
    assert person.saw(Struck) == [Struck(2, 2, 9)] * 2


async def test_put_out_says_so_and_costs_nothing_more(person: Person) -> None:
    evicted = Refused("evicted", {"strikes": 3})
    broker = StandIn(turns=[Turn(b"", evicted, 3, 4, 9)])
    person.write(broker)
    async with broker.serve() as way:
        async with refuses(EVICTED):
            await person.run(broker, way)
        # The next run hears the same.
        broker.turns = [Turn(b"", evicted, 3, 4, 9)]
        async with refuses(EVICTED):
            await person.run(broker, way)
    assert person.paid() == 0
    assert person.saw(Struck) == [Struck(3, 4, 9)] * 2
    assert person.session.outcome is None and len(broker.tokens) == 1


# -- the commands ----------------------------------------------------------------------------


def test_joined_for_a_machine_tells_how_it_is_judged(world: World) -> None:
    told = json.loads(world.join("--json", "--leave-if-share", 0.5).stdout)
    assert (told["test"], told["validation"]) == ("sequential", "5ea1d0c3" * 8)
    assert (told["most_strikes"], told["leave_if_struck"], told["leave_if_share"]) == (
        3, False, 0.5)
    session = load_session(world.session)
    assert (session.leave_if_struck, session.leave_if_share) == (False, 0.5)


def test_a_client_that_wished_to_leaves_and_says_why(world: World) -> None:
    world.broker.publish_after = 10_000
    world.broker.on_push = lambda: setattr(world.broker, "strikes", (1, 3, 8))
    assert world.join("--leave-if-struck").exit_code == 0
    left = world.run("solve", "--json")
    assert left.exit_code == 11, left.output
    events = lines(left.stdout)
    assert {"event": "struck", "strikes": 1, "struck": 3, "judged": 8} in events
    end = events[-1]
    assert (end["event"], end["outcome"], end["why"], end["model"]) == (
        "end", "left", "leave-if-struck", None)
    assert (end["strikes"], end["struck"], end["judged"]) == (1, 3, 8)
    assert end["updates"] == 1 == world.paid() and 0 < end["epsilon_total"] < 8  # type: ignore[operator]
    until(lambda: world.broker.left == 1)
    # The ledger is closed: the data are free for another training.
    heard = len(world.broker.heard)
    for which in ([], [ONION], ["--session", world.session]):
        again = world.run("solve", *which, "--json")
        assert again.exit_code == 11
        assert json.loads(again.stdout) == {
            "event": "end", "outcome": "left", "model": None, "strikes": 1, "struck": 3,
            "judged": 8, "why": "leave-if-struck"}
    assert len(world.broker.heard) == heard and world.paid() == 1


def test_what_is_left_is_told_in_words_with_what_to_type(world: World) -> None:
    world.broker.publish_after = 10_000
    world.broker.strikes = (0, 4, 8)
    assert world.join("--leave-if-share", 0.5).exit_code == 0
    why = ("We have left this training, as --leave-if-share 0.5 asks: the updates of 4 of 8 judged "
           "clients oppose the curator's validation set. To take part again all the same, join "
           "with --again and without that wish. To fetch the model when it is published, type:")
    first, second = world.run("solve"), world.run("solve")
    fetch = ["tormentor", "fetch", ONION, "--output", str(world.model), "--state",
             str(world.home / "state"), "--tor", "none", "--direct", f"127.0.0.1:{world.port}"]
    for told in (first, second):
        assert told.exit_code == 11
        assert why in " ".join(told.stdout.split())
        assert shlex.split(told.stdout.splitlines()[-1]) == fetch
    assert "We paid for 0 updates in this training." in " ".join(first.stdout.split())
    # As typed it works.
    world.broker.finish()
    assert world_free(*fetch[1:]).exit_code == 0
    assert world.model.exists()


def test_whoever_has_left_comes_back_only_by_saying_so(world: World) -> None:
    world.broker.strikes = (1, 1, 2)
    assert world.join("--leave-if-struck").exit_code == 0
    assert world.run("solve").exit_code == 11
    for more in (["--leave-if-struck"], []):
        told = world.join(*more, "--json")
        refused(told, 2, "bad-option")
        assert "is a session that has left; say --again" in json.loads(told.stdout)["sentence"]
    assert world.join("--again").exit_code == 0
    session = load_session(world.session)
    assert (session.outcome, session.leave_if_struck, session.token) == (None, False, None)
    stays = world.run("solve")
    assert stays.exit_code == 0, stays.output
    assert "The broker has given us 1 strike: our updates oppose" in " ".join(stays.stderr.split())
    assert len(world.broker.tokens) == 2


def test_a_session_that_has_left_is_finished(world: World) -> None:
    world.broker.strikes = (1, 1, 2)
    assert world.join("--leave-if-struck").exit_code == 0
    assert world.run("solve").exit_code == 11
    world.broker.strikes = (0, 0, 0)
    other = world.session.with_name(f"{'b' * 56}.onion.json")
    left = world.session.read_bytes()
    assert world.join("--again").exit_code == 0
    other.write_bytes(left)
    # Two sessions, and one of them is finished: the other is meant.
    done = world.run("solve")
    assert done.exit_code == 0, done.output


def test_put_out_is_one_sentence(world: World) -> None:
    world.broker.turns = [Turn(b"", Refused("evicted", {"strikes": 3}), 3, 4, 9)]
    assert world.join("--leave-if-struck").exit_code == 0
    out = world.run("solve", "--json")
    refused(out, 7, "evicted")
    assert lines(out.stdout)[-2] == {"event": "struck", "strikes": 3, "struck": 4, "judged": 9}
    assert "put this session out after 3 strikes" in str(lines(out.stdout)[-1]["sentence"])
