"""Snapshot rounds: influence, strikes, and that nothing which is sent tells what is judged."""

from __future__ import annotations

import random

import numpy as np
import pytest
from broker_world import (
    DIMENSION,
    Player,
    make_brokerage,
    make_data,
    make_task,
    make_update,
    rounds,
    signed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.messages import Push, Work, encode, vector_to_wire
from accord.objective import OBJECTIVES
from accord.task import Clients, Puzzles, Training, Validation
from broker.brokerage import Brokerage
from broker.rounds import Rounds
from broker.screen import Screen

SCREEN = len(Screen(Validation(), Training()).record(b""))
"""So many bytes of a session's evidence are the screen's."""
LIVE = np.array([9.0, 9.0, 9.0, 9.0])
HARM = np.array([-1.0, 0, 0, 0])


def make_rounds(**rules: object) -> Rounds:
    defaults: dict[str, object] = {"rate": 1.0, "threshold": 0.1, "metric": "loss"}
    return Rounds(OBJECTIVES["logistic"], *make_data(), rounds(**(defaults | rules)))


def answer(test: Rounds, name: bytes, delta: np.ndarray) -> list[bytes]:
    """Answer the open round; who was struck by it."""
    verdict = test.judge(make_update(name, test.snapshot, delta), LIVE)
    assert verdict.apply is delta, "every answer is applied, as it is"
    return verdict.struck


def metric(kind: str, weights: np.ndarray) -> float:
    return float(getattr(OBJECTIVES["logistic"], kind)(weights[None], *make_data())[0])


# -- one round ---------------------------------------------------------------------------------


def test_the_snapshot_is_a_copy_and_the_same_for_all_until_the_round_closes():
    test = make_rounds()
    assert test.due
    weights = np.zeros(DIMENSION)
    test.begin(weights, 2, 0.5)
    weights += 1
    assert not test.due and np.array_equal(test.snapshot, np.zeros(DIMENSION))
    answer(test, b"a", np.zeros(DIMENSION))
    assert not test.due and np.array_equal(test.snapshot, np.zeros(DIMENSION))
    answer(test, b"a", np.zeros(DIMENSION))
    assert test.due, "as many answers as were asked for, from whomever"


@pytest.mark.parametrize("kind", ["error", "loss"])
def test_influence_is_what_section_5_5_says(kind):
    test = make_rounds(metric=kind, threshold=1e-9)
    start = np.array([0.3, 0.1, 0, 0])
    deltas = {b"a": np.array([0.5, 0, 0, 0]), b"b": HARM, b"c": np.zeros(4)}
    test.begin(start, 3, 0.0)
    struck = [answer(test, name, delta) for name, delta in deltas.items()]
    expected = {n: metric(kind, start) - metric(kind, start + d) for n, d in deltas.items()}
    assert expected[b"a"] > 0 > expected[b"b"] and expected[b"c"] == 0
    assert struck == [[], [], [b"b"]], "and all at once, when the round closes"


def test_a_total_is_what_was_added_up_and_never_above_0():
    test = make_rounds(threshold=9.0)
    start, total = np.zeros(DIMENSION), 0.0
    for delta in (HARM / 9, HARM / 5, -HARM / 20, -HARM, HARM / 7):
        test.begin(start, 1, 0.0)
        answer(test, b"a", delta)
        total = min(0.0, total + metric("loss", start) - metric("loss", start + delta))
        kept = make_rounds()
        kept.restore(b"a", test.evidence(b"a"))
        assert kept._totals.get(b"a", 0.0) == pytest.approx(total, abs=1e-12)
    test.forget(b"a")
    assert test.evidence(b"a") == b"" == test.state()


def test_good_influence_cannot_be_saved_up_for_an_attack():
    test = make_rounds(threshold=0.2)
    for _ in range(20):
        test.begin(np.zeros(DIMENSION), 1, 0.0)
        assert answer(test, b"a", -HARM) == []
    test.begin(np.zeros(DIMENSION), 1, 0.0)
    assert answer(test, b"a", HARM) == [b"a"]


def test_small_harm_adds_up_over_rounds_and_a_strike_uses_up_its_evidence():
    test = make_rounds(threshold=0.2)
    struck = []
    for _ in range(10):
        test.begin(np.zeros(DIMENSION), 1, 0.0)
        struck.append(bool(answer(test, b"a", HARM / 10)))
    assert not struck[0] and any(struck) and sum(struck) < 5


def test_several_answers_in_a_round_add_up():
    start = np.zeros(DIMENSION)
    one = metric("loss", start + HARM / 10) - metric("loss", start)
    test = make_rounds(threshold=2.5 * one)
    test.begin(start, 5, 0.0)
    # Poison thinned out with idle answers is no weaker for it.
    told = [answer(test, b"a", d) for d in (HARM / 10, 0 * HARM, HARM / 10, 0 * HARM, HARM / 10)]
    assert told == [[], [], [], [], [b"a"]]


def test_a_late_answer_is_scored_on_its_own_snapshot_in_the_round_in_which_it_comes():
    test = make_rounds(threshold=1e-9, rate=0.5)
    test.begin(first := np.array([2.0, 0, 0, 0]), 1, 0.9)
    held = test.snapshot
    assert answer(test, b"a", HARM) == [], "that round's coin said no"
    # It is harm there, and none where the round that is open then began.
    better = np.array([-3.0, 0, 0, 0])
    assert metric("loss", first + better) > metric("loss", first)
    test.begin(wrong := np.array([-9.0, 0, 0, 0]), 2, 0.1)
    assert metric("loss", wrong - better) < metric("loss", wrong)
    assert test.judge(make_update(b"b", held, better), LIVE).struck == []
    assert answer(test, b"c", -better) == [b"b"]


def test_an_unjudged_round_keeps_nothing_and_strikes_nobody():
    test = make_rounds(threshold=1e-9, rate=0.25)
    test.begin(np.zeros(DIMENSION), 3, 0.25)
    for _ in range(3):
        assert answer(test, b"a", HARM) == [] and (test.due or not test._round.answers)
    assert test.evidence(b"a") == b""


def test_a_round_without_a_count_is_closed_from_outside_and_a_forgotten_one_is_not_judged():
    test = make_rounds(threshold=1e-9)
    test.begin(np.zeros(DIMENSION), None, 0.0)
    for name in (b"a", b"b") * 9:
        assert answer(test, name, HARM) == []
    test.forget(b"a")
    verdict = test.close()
    assert verdict.apply is None and verdict.struck == verdict.touched == [b"b"]
    assert test.due and test.close().struck == []
    test.begin(np.zeros(DIMENSION), None, 0.0)
    test.abandon()
    assert test.due


def test_many_rows_are_scored_piece_by_piece_with_the_same_result(monkeypatch):
    monkeypatch.setattr("broker.rounds._CELLS", 7)
    models = np.random.default_rng(5).normal(size=(3, DIMENSION))
    expected = OBJECTIVES["logistic"].loss(models, *make_data())
    assert np.allclose(make_rounds()._metric(models), expected, rtol=1e-12)


# -- in a model's life -------------------------------------------------------------------------


def weights(work: Work) -> np.ndarray:
    return np.frombuffer(work.weights, "<f4").astype(float)


def test_every_ticket_of_a_round_holds_its_snapshot_and_every_answer_is_applied():
    brokerage = make_brokerage(make_task(validation=rounds(rate=1.0, threshold=9.0)))
    one, two, third = (Player(brokerage) for _ in range(3))
    for player, at in ((one, 0), (one, 1), (two, 2)):
        work = player.work(1.0)
        assert np.array_equal(weights(work), np.zeros(DIMENSION))
        player.push(player.answer(work, np.eye(DIMENSION)[at] / 2), 1.0)
    assert brokerage.status(1.0).updates == 3
    # Three answers, three were active: the next round began, from all that was applied.
    assert np.array_equal(weights(third.work(2.0)), [0.5, 0.5, 0.5, 0])
    # Who was late holds the old snapshot, and is applied to the new weights.
    third.step(3.0, np.array([0, 0, 0, 0.5]))
    assert np.array_equal(brokerage._aggregator.weights, [0.5, 0.5, 0.5, 0.5])


def test_harm_is_a_strike_when_the_round_closes_and_makes_the_next_puzzle_harder():
    brokerage = make_brokerage(make_task(validation=rounds(rate=1.0, threshold=0.05)))
    good, bad = Player(brokerage), Player(brokerage)
    good_work, bad_work = good.work(1.0), bad.work(1.0)
    turn = bad.push(bad.answer(bad_work, HARM), 1.0)
    assert turn.receipt == bad_work.ticket and (turn.strikes, turn.struck, turn.judged) == (0, 0, 1)
    assert turn.next.difficulty == bad_work.difficulty
    turn = good.push(good.answer(good_work, np.array([0.5, 0, 0, 0])), 1.0)
    assert (turn.strikes, turn.struck, turn.judged) == (0, 1, 2)
    # The ticket that it has in hand is as it was; the one after that is harder.
    assert bad.pull(2.0).strikes == 1 and bad.work(2.0).difficulty == bad_work.difficulty
    turn = bad.step(2.0, np.zeros(DIMENSION))
    assert turn.next.difficulty == bad_work.difficulty + 1
    assert good.work(3.0).difficulty == good_work.difficulty
    status = brokerage.status(3.0)
    assert (status.judged, status.struck, status.strikes) == (2, 1, 1)


def test_a_silent_client_stops_no_round():
    brokerage = make_brokerage(make_task(
        validation=rounds(rate=1.0, threshold=0.05), clients=Clients(minimum=1, silence=1000.0)))
    silent, one = Player(brokerage), Player(brokerage)
    silent.work(1.0)
    one.step(1.0, HARM)
    assert brokerage.status(1.0).strikes == 0
    one.step(1.0, HARM)
    assert brokerage.status(1.0).strikes == 1


def test_a_synchronous_round_is_the_round_that_is_judged():
    training = Training(mode="synchronous", max_norm=1.0, round_seconds=10.0)
    brokerage = make_brokerage(make_task(
        training=training, clients=Clients(minimum=2, silence=60.0),
        validation=rounds(rate=1.0, threshold=0.05)))
    good, bad, silent = (Player(brokerage) for _ in range(3))
    work = silent.work(1.0)
    push = bad.answer(bad.work(1.0), HARM)
    assert np.array_equal(weights(work), weights(good.work(1.0)))
    bad.push(push, 2.0)
    good.step(2.0, np.array([0.5, 0, 0, 0]))
    assert brokerage.status(2.0).judged == 0, "nothing is judged before the round closes"
    brokerage.tick(13.0)
    status = brokerage.status(13.0)
    assert (status.updates, status.judged, status.struck, status.strikes) == (1, 2, 1, 1)
    turn = bad.push(push, 14.0)
    assert turn.receipt == push.ticket and turn.strikes == 1
    assert np.allclose(weights(turn.next), [-0.25, 0, 0, 0])
    assert turn.next.difficulty == work.difficulty + 1


def test_what_the_round_has_on_clients_outlives_a_crash():
    harm = metric("loss", HARM / 2) - metric("loss", 0 * HARM)
    task = make_task(validation=rounds(rate=1.0, threshold=1.5 * harm, metric="loss"))
    brokerage = make_brokerage(task)
    one, two = Player(brokerage), Player(brokerage)
    one.step(1.0, HARM / 2)
    changes = brokerage.take_changes(1.0)
    assert all(row.evidence[SCREEN:] == b"" for row in changes.sessions)
    two.step(2.0, HARM / 2)
    # The round has closed: what it has on the one that did not speak now is written, too.
    changes = brokerage.take_changes(2.0)
    assert len(changes.sessions) == 2 and all(row.evidence[SCREEN:] for row in changes.sessions)
    again = Brokerage(b"s" * 32, random.Random(2).randbytes)
    again.accept(brokerage.signed, *make_data(), 0.0)
    again.restore(changes.model, changes.sessions, 0.0)
    one.brokerage = again
    turn = one.step(1.0, HARM / 2)
    assert turn.strikes == 1, "half of the evidence is from before"


# -- what an attacker sees ---------------------------------------------------------------------


def play(rate: float, threshold: float, moves: list[tuple[int, str, float]], mode: str) -> list:
    """All that is sent in a training in which only the coin differs, and the strikes then."""
    task = make_task(
        training=Training(mode=mode, max_norm=1.0, max_updates=30, round_seconds=9.0),
        validation=rounds(rate=rate, metric="loss", threshold=threshold),
        clients=Clients(minimum=2, silence=30.0), puzzles=Puzzles(admission=0, update=0))
    # Nobody hashes here, as after many strikes it would take for ever.
    brokerage = Brokerage(b"s" * 32, random.Random(5).randbytes, verify=lambda *_: True)
    brokerage.accept(signed(task), *make_data(), 0.0)
    players = [Player(brokerage, k) for k in (1, 2, 1)]
    held: dict[int, Push] = {}
    now, sent = 0.0, []
    for who, move, size in moves:
        player = players[who]
        if move == "take":
            turn = player.pull(now)
            if isinstance(turn.next, Work):
                delta = vector_to_wire(np.array([size, 0, 0, 0]))
                held[who] = Push(turn.next.ticket, b"", delta)
        elif move == "leave":
            turn = player.leave(now)
        elif who in held:
            # Perhaps long after the round of its ticket has closed.
            turn = player.push(held.pop(who), now)
        else:
            now += 4.0
            brokerage.tick(now)
            continue
        # The door first: opening it lets time pass, and so may close a round.
        door = encode(brokerage.puzzle(now)) if brokerage.phase != "published" else b""
        status = brokerage.status(now)
        sent.append((status.strikes, encode(turn), status.clients, status.needed, status.updates,
                     status.error, status.judged, status.seconds, brokerage.stirred,
                     door))
    return sent


MOVES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["take", "give", "give", "leave"]),
                           st.floats(-1, 1, width=32)), max_size=80)


@settings(deadline=None)
@given(MOVES, st.sampled_from(["asynchronous", "synchronous"]))
def test_what_is_sent_is_the_same_to_the_byte_whatever_the_coin_says(moves, mode):
    # No harm adds up to this threshold, so that no strike ever tells.
    assert play(0.0, 1e6, moves, mode) == play(1.0, 1e6, moves, mode)


@settings(deadline=None)
@given(MOVES, st.sampled_from(["asynchronous", "synchronous"]))
def test_nothing_tells_before_the_first_strike(moves, mode):
    never, always = play(0.0, 0.05, moves, mode), play(1.0, 0.05, moves, mode)
    for before, after in zip(never, always, strict=True):
        if after[0]:
            break
        assert before == after


def test_a_long_game_is_the_same_until_the_first_strike_and_has_one():
    rng = random.Random(7)
    for mode in ("asynchronous", "synchronous"):
        moves = [(rng.randrange(3), rng.choice(["take", "give", "give"]), rng.uniform(-0.3, 0.3))
                 for _ in range(300)]
        never, always = play(0.0, 0.05, moves, mode), play(1.0, 0.05, moves, mode)
        first = next(i for i, seen in enumerate(always) if seen[0])
        assert first > 10 and never[:first] == always[:first] and not never[-1][0]


def test_holding_a_ticket_back_is_as_risky_as_not():
    # A poisoner that answers only once it has seen the round of its ticket close without strikes.
    struck = []
    for seed in range(400):
        brokerage = make_brokerage(make_task(
            validation=rounds(rate=0.25, threshold=1e-6, metric="loss"),
            puzzles=Puzzles(admission=0, update=0)), seed=seed)
        good, bad = Player(brokerage), Player(brokerage)
        push = bad.answer(bad.work(1.0), HARM)
        for _ in range(3):
            good.step(1.0, np.array([0.3, 0, 0, 0]))
        assert brokerage.status(1.0).struck == 0
        bad.push(push, 2.0)
        struck.append(brokerage.status(2.0).struck)
    # Four standard deviations: wrong once in 16,000 seeds.
    assert abs(np.mean(struck) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


# -- updates of several steps ------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 10])
def test_several_steps_at_once_score_like_as_many_one_by_one(steps):
    """To first order in their length: what is left falls with its square."""
    direction = np.array([-0.6, 0.1, 0.2, -0.3])

    def score(parts: list[np.ndarray]) -> float:
        test = make_rounds(threshold=1e9)
        test.begin(np.array([0.2, 0.1, 0, 0]), len(parts), 0.0)
        for part in parts:
            answer(test, b"a", part)
        return test._totals[b"a"]

    off = []
    for length in (0.1, 0.01, 0.001):
        whole = direction * length
        at_once, one_by_one = score([whole]), score([whole / steps] * steps)
        assert at_once < 0 and one_by_one < 0
        off.append(abs(at_once / one_by_one - 1))
    assert off[0] < 0.1 and off[1] < off[0] / 5 and off[2] < off[1] / 5
