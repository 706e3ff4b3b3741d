"""The seam between the brokerage and a test of updates: verdicts, eviction, counts, evidence."""

from __future__ import annotations

import random

import numpy as np
import pytest
from broker_world import (
    DIGEST,
    DIMENSION,
    SALT,
    Player,
    make_brokerage,
    make_data,
    make_task,
    signed,
    wire,
)

from accord.messages import Pull, Push, Refused, Wait, Work
from accord.problems import PeerProblem
from accord.task import Clients, Training, Validation
from broker.brokerage import Brokerage
from broker.landscape import Landscape
from broker.screen import Screen
from broker.validator import VALIDATION_ROWS, committed, make_validator
from broker.verdict import Update, Verdict


class StandIn:
    """In the place of the sequential test: says what it is told, and remembers what it was asked.

    Attributes:
        verdicts: what it says, one by one; then it applies everything.
    """

    def __init__(self, *parts: object) -> None:
        self.parts = parts
        self.verdicts: list[Verdict] = []
        self.asked: list[tuple[Update, np.ndarray]] = []
        self.looks: list[np.ndarray] = []
        self.kept: dict[bytes, bytes] = {}
        self.own = b"own"

    def looked(self, land: Landscape, weights: np.ndarray) -> None:
        assert land.downhill.shape == land.common.shape == weights.shape
        self.looks.append(weights)

    def judge(self, update: Update, live: np.ndarray) -> Verdict:
        self.asked.append((update, live))
        self.kept[update.name] = b"%d" % len(self.asked)
        return self.verdicts.pop(0) if self.verdicts else Verdict(update.step)

    def evidence(self, name: bytes) -> bytes:
        return self.kept.get(name, b"")

    def restore(self, name: bytes, evidence: bytes) -> None:
        self.kept[name] = evidence

    def forget(self, name: bytes) -> None:
        self.kept.pop(name, None)

    def state(self) -> bytes:
        return self.own

    def restore_state(self, state: bytes) -> None:
        self.own = state


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr("broker.validator.Sequential", StandIn)


def judged_task(evict: int = 0, **parts: object):
    return make_task(validation=Validation(evict=evict, digest=DIGEST), **parts)


def test_of(brokerage: Brokerage) -> StandIn:
    test = brokerage._validator._test
    assert isinstance(test, StandIn)
    return test


test_of.__test__ = False  # type: ignore[attr-defined]


def weights(work: Work) -> np.ndarray:
    return np.frombuffer(work.weights, "<f4").astype(float)


SCREEN = len(Screen(Validation(), Training()).record(b""))
"""So many bytes of a session's evidence are the screen's."""
E0 = np.array([0.5, 0, 0, 0])
E1 = np.array([0, 0.5, 0, 0])


# -- verdicts ----------------------------------------------------------------------------------


def test_a_test_is_made_of_the_set_and_the_rules():
    test = test_of(make_brokerage(task := judged_task()))
    rows, labels, rules, training = test.parts
    assert rows.shape == (40, DIMENSION) and len(labels) == 40
    assert (rules, training) == (task.validation, task.training)


def test_it_is_asked_once_for_every_accepted_update_with_what_was_sent_and_what_is_live():
    brokerage = make_brokerage(judged_task())
    one, two = Player(brokerage), Player(brokerage)
    old = two.answer(two.work(1.0), E1)
    push = one.answer(one.work(1.0), E0)
    one.push(push, 1.0)
    one.push(push, 2.0)  # Once more: a receipt, and no second judgement.
    one.push(Push(b"x" * 16, b"", push.delta), 2.0)
    two.push(old, 2.0)
    asked = test_of(brokerage).asked
    (first, _), (update, live) = asked
    assert len(asked) == 2 and first.name != update.name
    assert np.array_equal(update.sent, np.zeros(4)) and np.array_equal(update.delta, E1)
    # The screen has been at it: no step of 0.1 times a gradient of 0.5 is as long.
    assert np.allclose(live, E0 / 10)
    assert 0 < update.step[1] <= 0.05 + 1e-12 and np.count_nonzero(update.step) == 1
    assert np.allclose(update.gradient, E1)


def test_what_is_applied_is_what_the_verdict_says_and_nothing_is_acknowledged_all_the_same():
    brokerage = make_brokerage(judged_task(training=Training(max_updates=3, max_norm=1.0)))
    player = Player(brokerage)
    test_of(brokerage).verdicts = [Verdict(None), Verdict(E1), Verdict(None)]
    for expected, count in ((np.zeros(4), 0), (E1, 1), (E1, 1)):
        work = player.work(1.0)
        turn = player.push(player.answer(work, E0), 1.0)
        assert turn.receipt == work.ticket and turn.next.ticket != work.ticket
        assert np.array_equal(weights(turn.next), expected)
        assert brokerage.status(1.0).updates == count, "what is ignored uses nothing up"
        assert brokerage.take_changes(1.0).model is not None


def test_in_a_synchronous_round_each_is_judged_when_it_closes_and_the_rest_is_averaged():
    brokerage = make_brokerage(judged_task(
        training=Training(mode="synchronous", max_norm=1.0, round_seconds=10.0),
        clients=Clients(minimum=2)))
    players = [Player(brokerage) for _ in range(3)]
    test = test_of(brokerage)
    test.verdicts = [Verdict(E0), Verdict(None), Verdict(E1)]
    pushes = [p.answer(p.work(1.0), E0) for p in players]
    for player, push in zip(players, pushes, strict=True):
        assert not test.asked
        player.push(push, 2.0)
    assert len(test.asked) == 3
    assert np.array_equal(brokerage._aggregator.weights, [0.25, 0.25, 0, 0])
    assert players[1].push(pushes[1], 3.0).receipt == pushes[1].ticket
    # A round of which nothing is left is over, and no step.
    test.verdicts = [Verdict(None)] * 3
    pushes = [p.answer(p.work(4.0), E0) for p in players]
    for player, push in zip(players, pushes, strict=True):
        turn = player.push(push, 5.0)
    assert turn.receipt == pushes[2].ticket and isinstance(turn.next, Work)
    assert brokerage.status(5.0).updates == 1


# -- strikes and eviction ----------------------------------------------------------------------


def strike(player: Player, now: float, times: int = 1):
    """Let a player be struck for its next updates."""
    for _ in range(times):
        work = player.work(now)
        name = next(n for n, t in player.brokerage._tickets.items() if t.work == work)
        test_of(player.brokerage).verdicts = [Verdict(None, struck=[name])]
        turn = player.push(player.answer(work, E0), now)
    return turn


def test_after_so_many_strikes_a_session_is_put_out_for_good():
    task = judged_task(evict=2, clients=Clients(minimum=1, silence=30.0))
    brokerage = make_brokerage(task)
    bad, good = Player(brokerage, 2), Player(brokerage, 1)
    work = bad.work(1.0)
    turn = strike(bad, 1.0)
    assert turn.strikes == 1 and turn.next.difficulty == work.difficulty + 1
    last = bad.work(2.0)
    turn = strike(bad, 2.0)
    assert turn.receipt == last.ticket and turn.strikes == 2, "acknowledged, and put out"
    for _ in range(2):
        for again in (bad.pull(3.0), bad.leave(3.0), turn):
            assert isinstance(again.next, Refused)
            assert (again.next.code, again.next.numbers) == ("evicted", {"strikes": 2})
        # Its receipt it gets again; its k, its place and its ticket are gone.
        resent = bad.push(Push(last.ticket, b"", np.zeros(4, "<f4").tobytes()), 3.0)
        assert resent.receipt == last.ticket and resent.next == turn.next
        assert brokerage.join(bad.join, 3.0).token == bad.token
        assert (brokerage.status(3.0).clients, brokerage.status(3.0).needed) == (1, 1)
        assert isinstance(good.pull(3.0).next, Work)
        # And so it is after a restart.
        brokerage.lose_changes(brokerage.take_changes(3.0))
        changes = brokerage.take_changes(3.0)
        brokerage = Brokerage(b"s" * 32, random.Random(2).randbytes)
        brokerage.accept(signed(task), *make_data(), 3.0)
        brokerage.restore(changes.model, changes.sessions, 3.0)
        bad.brokerage = good.brokerage = brokerage
        good.pull(3.0)


def test_an_eviction_that_leaves_too_few_pauses_and_one_that_leaves_enough_does_not():
    brokerage = make_brokerage(judged_task(evict=1, clients=Clients(minimum=2, silence=30.0)))
    bad, good, careful = Player(brokerage), Player(brokerage), Player(brokerage)
    strike(bad, 1.0)
    assert brokerage.phase == "training" and isinstance(good.pull(1.0).next, Work)
    strike(careful, 2.0)
    assert brokerage.phase == "paused"
    assert isinstance(good.pull(2.0).next, Wait)


def test_a_strike_may_be_anothers_and_puts_its_held_ticket_out_too():
    brokerage = make_brokerage(judged_task(evict=1))
    bad, good = Player(brokerage), Player(brokerage)
    held = bad.answer(bad.work(1.0), E0)
    name = next(iter(brokerage._tickets))
    work = good.work(1.0)
    test_of(brokerage).verdicts = [Verdict(E0, struck=[name], touched=[name])]
    turn = good.push(good.answer(work, E0), 1.0)
    assert (turn.strikes, turn.struck, turn.judged) == (0, 1, 2)
    turn = bad.push(held, 2.0)
    assert turn.next.code == "evicted" and turn.receipt == b""
    assert brokerage.status(2.0).updates == 1


def test_an_evicted_client_does_not_hold_up_a_round():
    brokerage = make_brokerage(judged_task(
        evict=1, training=Training(mode="synchronous", max_norm=1.0, round_seconds=10.0),
        clients=Clients(minimum=2)))
    bad, one, two = (Player(brokerage) for _ in range(3))
    bad_push = bad.answer(bad.work(1.0), np.full(4, np.nan))
    one.step(1.0, E0)
    two.step(1.0, E0)
    assert bad.push(bad_push, 2.0).strikes == 1
    assert bad.pull(2.0).next.code == "evicted"
    brokerage.tick(2.5)
    assert brokerage.status(2.5).updates == 1


# -- counts ------------------------------------------------------------------------------------


def test_the_counts_stay_when_those_counted_have_gone_and_outlive_a_crash():
    task = judged_task(clients=Clients(minimum=1, maximum=1, silence=30.0))
    brokerage = make_brokerage(task)
    for number in range(45):
        player = Player(brokerage, now=float(number))
        if number % 3 == 0:
            strike(player, float(number))
        elif number % 3 == 1:
            player.step(float(number))
        turn = player.leave(float(number))
    status = brokerage.status(45.0)
    assert (status.judged, status.struck, status.strikes) == (30, 15, 15)
    assert (turn.judged, turn.struck) == (30, 15)
    assert len(brokerage._registry.members) < 45
    changes = brokerage.take_changes(45.0)
    again = Brokerage(b"s" * 32, random.Random(2).randbytes)
    again.accept(signed(task), *make_data(), 0.0)
    again.restore(changes.model, changes.sessions, 0.0)
    status = again.status(0.0)
    assert (status.judged, status.struck, status.strikes) == (30, 15, 15)


def test_where_nothing_is_judged_nobody_was():
    brokerage = make_brokerage()
    one, two = Player(brokerage), Player(brokerage)
    turn = one.step(1.0)
    assert (turn.strikes, turn.struck, turn.judged) == (0, 0, 0)
    # But what cannot be added to a model is a strike whoever judges.
    two.step(2.0, np.full(DIMENSION, np.nan))
    assert (two.pull(2.0).strikes, two.pull(2.0).struck, two.pull(2.0).judged) == (1, 1, 1)


# -- evidence ----------------------------------------------------------------------------------


def test_what_the_test_has_outlives_a_crash_and_is_forgotten_with_its_session():
    task = judged_task()
    brokerage = make_brokerage(task)
    one, two = Player(brokerage), Player(brokerage)
    one.step(1.0)
    two.step(1.0)
    changes = brokerage.take_changes(1.0)
    assert sorted(row.evidence[SCREEN:] for row in changes.sessions) == [b"1", b"2"]
    assert changes.model.judging == b"own"
    one.step(2.0)
    # Who is touched by another's judgement is written, too.
    silent = next(r.name for r in changes.sessions if r.evidence[SCREEN:] == b"2")
    test_of(brokerage).verdicts = [Verdict(None, touched=[silent])]
    brokerage.take_changes(2.0)
    one.step(3.0)
    assert {row.name for row in brokerage.take_changes(3.0).sessions} >= {silent}
    again = Brokerage(b"s" * 32, random.Random(2).randbytes)
    again.accept(signed(task), *make_data(), 0.0)
    test_of(again).own = b""
    again.restore(changes.model, changes.sessions, 0.0)
    assert sorted(test_of(again).kept.values()) == [b"1", b"2"] and test_of(again).own == b"own"
    again._forget(silent)
    assert test_of(again).evidence(silent) == b""
    assert again._validator.evidence(silent) == bytes(SCREEN)


# -- the set -----------------------------------------------------------------------------------


def test_a_set_is_the_one_that_the_task_commits_to_or_there_is_none():
    rows, labels = wire(*make_data())
    with_set, without = make_task(), make_task(
        training=Training(mode="synchronous", aggregate="krum"),
        validation=Validation(test="none", screen="none"))
    assert committed(with_set, SALT, rows, labels) and committed(without, SALT, b"", b"")
    assert not committed(with_set, SALT, b"", b"") and not committed(without, SALT, rows, labels)
    for parts in ((SALT[1:] + b"x", rows, labels), (SALT, rows[:-1] + b"x", labels),
                  (SALT, rows, labels[:-1] + b"\x07"), (SALT, rows, b""), (SALT, b"", labels)):
        assert not committed(with_set, *parts)


@pytest.mark.parametrize("rules, training", [
    ({}, {}),
    ({"test": "none", "screen": "none"}, {}),
    ({"test": "rounds", "screen": "none"}, {"aggregate": "median"}),
    ({"test": "none"}, {"aggregate": "median"}),
    ({"test": "none", "screen": "none"}, {"aggregate": "median", "patience": 3}),
    ({"test": "none", "screen": "none", "digest": DIGEST}, {"aggregate": "median"}),
])
def test_a_task_that_needs_a_set_is_refused_without(rules, training):
    task = make_task(validation=Validation(**({"digest": DIGEST} | rules)),
                     training=Training(mode="synchronous", **training))
    with pytest.raises(PeerProblem):
        Brokerage(b"s", bytes).accept(signed(task), np.zeros((0, 4)), np.zeros(0), 0.0)


def test_a_set_may_not_be_too_large():
    task = make_task()
    rows = np.tile(make_data()[0], (VALIDATION_ROWS // 40 + 1, 1))
    labels = np.tile(make_data()[1], VALIDATION_ROWS // 40 + 1)
    assert make_validator(task, rows, labels) is None
    assert make_validator(task, rows[:VALIDATION_ROWS], labels[:VALIDATION_ROWS]) is not None


def test_an_evicted_session_hears_so_whatever_it_says_also_after_the_end():
    brokerage = make_brokerage(judged_task(evict=1, training=Training(deadline=50.0, max_norm=1.0)))
    bad = Player(brokerage)
    strike(bad, 1.0)
    brokerage.tick(60.0)
    assert brokerage.phase == "published"
    assert brokerage.receive(bad.token, Pull(), 61.0).next.code == "evicted"
