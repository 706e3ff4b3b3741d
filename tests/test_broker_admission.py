"""The door: its heat, its locks, and that a new name saves nothing."""

from __future__ import annotations

import random

import pytest
from broker_world import Player, make_brokerage, make_data, make_task, rounds, signed
from hypothesis import given
from hypothesis import strategies as st

from accord.messages import Join
from accord.problems import PeerProblem
from accord.puzzle import expected_hashes
from accord.task import Clients, Puzzles, Training
from broker.admission import HALF_LIFE, MOST_RISE, RISE, STRIKE, Admission
from broker.brokerage import Brokerage


def make_door(base: int = 4, update: int = 2, evict: int = 3, places: int = 100) -> Admission:
    """A door at which nobody really hashes."""
    return Admission(Puzzles(admission=base, update=update), places, evict, b"s" * 32,
                     random.Random(1).randbytes, lambda *_: True)


def test_a_cold_door_is_the_tasks():
    door = make_door()
    assert door.heat(0.0) == 0 and door.door_difficulty(0.0) == 4
    assert door.door(0.0).difficulty == 4


def test_as_many_joins_as_there_are_places_are_nothing_unusual_and_a_flood_is():
    door = make_door()
    for _ in range(100):
        door.joined(0.0)
    assert door.heat(0.0) == pytest.approx(16.0**4) and door.door_difficulty(0.0) == 4
    for _ in range(301):
        door.joined(0.0)
    assert door.door_difficulty(0.0) == 5
    assert door.door_difficulty(HALF_LIFE) == 4, "and it cools"


def test_an_evicted_client_makes_the_door_as_hard_as_its_next_update_for_a_while():
    door = make_door()
    for strikes in (1, 2, 3):
        door.struck(strikes, 0.0)
    # A strike is 16 doors at least, and this door's price is 16**4.
    assert door.heat(0.0) == 3 * STRIKE * 16.0**4
    assert door.door_difficulty(0.0) == door.difficulty(3) == 5
    assert door.door_difficulty(3 * HALF_LIFE) == 5
    assert door.door_difficulty(4 * HALF_LIFE) == 4
    door.struck(3, 0.0)
    assert door.door_difficulty(0.0) == 6, "four of them are one zero more"


def test_the_rise_has_an_end_and_so_has_the_heat():
    door = make_door(evict=0)
    for strikes in range(1, 500):
        door.struck(strikes, 0.0)
    assert door.door_difficulty(0.0) == 4 + RISE and door.heat(0.0) == 16.0**6
    assert door.door_difficulty(2 * HALF_LIFE + 1) == 4 + RISE - 1
    assert door.door_difficulty(6 * HALF_LIFE + 1) == 4
    # It shows what the last strike before eviction takes, where that is more.
    for base, update, evict, most in ((4, 4, 3, 7), (1, 4, 64, 1 + MOST_RISE), (0, 0, 1, RISE)):
        door = make_door(base, update, evict)
        for _ in range(1000):
            door.struck(64, 0.0)
        assert door.door_difficulty(0.0) == most


@given(
    st.integers(0, 8), st.integers(0, 8), st.integers(1, 4), st.integers(1, 100),
    st.lists(st.tuples(st.sampled_from(["join", "strike"]), st.integers(1, 4), st.floats(0, 900)),
             max_size=30),
    st.floats(0, 2 * HALF_LIFE),
)
def test_a_new_name_never_costs_less_than_the_next_update_of_the_one_left(
        base, update, evict, places, events, wait):
    if update + evict > base + MOST_RISE:
        return
    door, now, price = make_door(base, update, evict, places), 0.0, 0.0
    for kind, strikes, pause in events:
        now += pause
        if kind == "join":
            door.joined(now)
            price = 0.0  # Only what was just struck is compared.
        else:
            strikes = min(strikes, evict)
            door.struck(strikes, now)
            price = expected_hashes(door.difficulty(strikes))
        assert base <= door.door_difficulty(now) <= base + MOST_RISE
    assert expected_hashes(door.door_difficulty(now + wait)) >= price


def test_heat_survives_a_restart_and_a_clock_that_starts_anew():
    door, again = make_door(), make_door()
    for strikes in (1, 2, 3):
        door.struck(strikes, 5000.0)
    again.set_heat(door.heat(5300.0), 7.0)
    assert again.heat(7.0) == pytest.approx(door.heat(5300.0))
    assert again.heat(7.0 + HALF_LIFE) == pytest.approx(door.heat(5300.0 + HALF_LIFE))
    assert again.heat(0.0) == again.heat(7.0), "a clock that goes back does not heat it"


# -- locks -------------------------------------------------------------------------------------


def test_a_lock_carries_its_difficulty_and_nobody_can_change_it():
    door = make_door()
    door._verify = lambda lock, solution, difficulty: solution == bytes([difficulty])
    easy = door.door(0.0)
    for _ in range(2):
        door.struck(3, 0.0)
    hard = door.door(0.0)
    assert (easy.difficulty, hard.difficulty) == (4, 5)
    assert door.open(easy.lock, b"\x04") != door.open(hard.lock, b"\x05")
    forged = hard.lock[:24] + b"\x04" + hard.lock[25:]
    for lock, solution in ((hard.lock, b"\x04"), (forged, b"\x04"), (easy.lock, b"\x05")):
        with pytest.raises(PeerProblem) as caught:
            door.open(lock, solution)
        assert caught.value.kind.code == "not-solved"


def test_a_lock_lives_as_long_as_a_slow_machine_needs_and_no_longer():
    door = make_door()
    easy = door.door(100.0)
    # Two minutes, and four times what 20,000 hashes a second take.
    assert easy.seconds == pytest.approx(120 + 4 * 16**4 / 20_000)
    for _ in range(9):
        door.struck(3, 100.0)
    hard = door.door(100.0)
    assert hard.seconds == pytest.approx(120 + 4 * 16**6 / 20_000)
    # However the door has risen, whoever is at work on an older puzzle may finish it.
    door.check_age(easy.lock, 100.0 + easy.seconds)
    for lock, now in ((easy.lock, 101.0 + easy.seconds), (easy.lock, 99.0), (easy.lock, -5.0)):
        with pytest.raises(PeerProblem):
            door.check_age(lock, now)
    door.check_age(hard.lock, 99.0 + hard.seconds)


# -- in a model's life -------------------------------------------------------------------------


def test_strikes_make_the_door_harder_also_after_a_restart():
    task = make_task(validation=rounds(evict=3), puzzles=Puzzles(admission=1, update=1),
                     clients=Clients(minimum=1, maximum=10),
                     training=Training(max_norm=1.0, max_pause=1e6))
    brokerage = make_brokerage(task)
    bad = Player(brokerage)
    assert brokerage.puzzle(0.0).difficulty == 1
    for _ in range(2):
        bad.push(bad.answer(bad.work(1.0), [9.0] * 4), 1.0)
    assert brokerage.puzzle(1.0).difficulty == bad.work(1.0).difficulty == 3
    changes = brokerage.take_changes(1.0)
    again = Brokerage(b"s" * 32, random.Random(3).randbytes)
    again.accept(signed(task), *make_data(), 0.0)
    again.restore(changes.model, changes.sessions, 0.0)
    assert again.puzzle(0.0).difficulty == 3
    assert again.puzzle(2 * HALF_LIFE).difficulty == 3
    assert again.puzzle(8 * HALF_LIFE).difficulty == 1


def test_the_same_join_heats_the_door_once():
    brokerage = make_brokerage()
    player = Player(brokerage)
    heat = brokerage._admission.heat(0.0)
    assert heat == pytest.approx(16 / 10)
    for now in (0.0, 1.0, 9000.0):
        assert brokerage.join(player.join, now).token == player.token
    assert brokerage._admission.heat(0.0) == pytest.approx(heat)


def test_a_brokerage_may_be_told_how_solutions_are_checked():
    seen = []

    def verify(lock: bytes, solution: bytes, difficulty: int) -> bool:
        seen.append(difficulty)
        return solution == b"yes"

    brokerage = Brokerage(b"s" * 32, random.Random(3).randbytes, verify)
    brokerage.accept(signed(make_task(puzzles=Puzzles(admission=8, update=8))), *make_data(), 0.0)
    door = brokerage.puzzle(0.0)
    with pytest.raises(PeerProblem):
        brokerage.join(Join(door.lock, b"no", 1), 0.0)
    assert brokerage.join(Join(door.lock, b"yes", 1), 0.0).token and seen == [8, 8]
