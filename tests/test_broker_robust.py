"""Robust aggregation: exact values, and how much a minority can do."""

from __future__ import annotations

import numpy as np
import pytest
from broker_world import Player, make_brokerage, make_task
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from accord.task import Clients, Training, Validation
from broker.aggregator import Aggregator
from broker.robust import AGGREGATES, krum, mean, median, trim, trimmed_mean

HUGE = 1e30


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


# Whole numbers, so that sums are exact in whatever order.
UPDATES = hnp.arrays(
    float, st.tuples(st.integers(1, 9), st.integers(1, 4)),
    elements=st.integers(-1000, 1000).map(float))


def test_exact_values():
    assert mean(column(1, 2, 9))[0] == 4
    assert median(column(9, 1, 2))[0] == 2 and median(column(9, 1, 2, 3))[0] == 2.5
    assert np.array_equal(median(np.array([[1, 9], [2, 8], [9, 1.0]])), [2, 8])
    assert [trim(m) for m in range(1, 10)] == [0, 0, 1, 1, 2, 2, 2, 2, 3]
    assert trimmed_mean(column(7))[0] == 7 and trimmed_mean(column(7, 9))[0] == 8
    assert trimmed_mean(column(100, 1, 2, -50))[0] == 1.5
    assert trimmed_mean(column(0, 1, 2, 3, 4, 5, 6, 99))[0] == 3.5


def test_krum_is_its_definition():
    # m = 7, f = 2, so the 3 nearest others: 0 has 1 + 1 + 9, and 1 has 1 + 4 + 4.
    updates = column(0, 1, -1, 3, 50, 60, 70)
    m, f = len(updates), 2
    scores = []
    for i in range(m):
        far = sorted(float(((updates[i] - updates[j]) ** 2).sum()) for j in range(m) if j != i)
        scores.append(sum(far[: m - f - 2]))
    assert krum(updates)[0] == updates[int(np.argmin(scores))][0] == 1
    assert krum(column(7))[0] == 7 and krum(column(7, 9))[0] == 8
    assert krum(column(1, 90, 3))[0] == 2, "the two of three that are near each other"


@given(UPDATES, st.randoms())
def test_the_order_of_clients_does_not_matter(updates, rng):
    order = list(range(len(updates)))
    rng.shuffle(order)
    for name, rule in AGGREGATES.items():
        assert np.array_equal(rule(updates), rule(updates[order])), name


@given(UPDATES)
def test_all_are_within_the_range_of_what_was_sent_and_agree_where_all_agree(updates):
    same = np.repeat(updates[:1], len(updates), axis=0)
    for name, rule in AGGREGATES.items():
        told = rule(updates)
        assert told.shape == updates.shape[1:], name
        assert (told >= updates.min(axis=0)).all() and (told <= updates.max(axis=0)).all(), name
        assert np.array_equal(rule(same), updates[0]), name


def _attack(honest: np.ndarray, liars: int, rng: np.random.Generator) -> np.ndarray:
    lies = rng.choice([-HUGE, -5.0, 0.0, 3.0, HUGE], size=(liars, honest.shape[1]))
    return np.vstack([honest, lies])


@given(UPDATES, st.integers(0, 8), st.integers(0, 2**32))
def test_a_minority_does_not_move_the_median_out_of_the_range_of_the_rest(honest, liars, seed):
    liars = min(liars, len(honest) - 1)
    told = median(_attack(honest, liars, np.random.default_rng(seed)))
    assert (told >= honest.min(axis=0)).all() and (told <= honest.max(axis=0)).all()


def test_half_of_them_can():
    assert median(np.vstack([column(0, 1), column(HUGE, HUGE)]))[0] > 1e29


@given(UPDATES, st.integers(0, 8), st.integers(0, 2**32))
def test_as_many_as_are_trimmed_do_not_move_the_trimmed_mean_out_of_the_range(honest, liars, seed):
    while trim(len(honest) + liars) < liars:
        liars -= 1
    told = trimmed_mean(_attack(honest, liars, np.random.default_rng(seed)))
    slack = 1e-9 * (1 + np.abs(honest).max())
    assert (told >= honest.min(axis=0) - slack).all()
    assert (told <= honest.max(axis=0) + slack).all()


@pytest.mark.parametrize("liars", [1, 2, 3])
def test_krum_chooses_an_honest_one_while_there_are_few_liars(liars):
    rng = np.random.default_rng(3)
    for _ in range(50):
        honest = rng.normal(size=(liars + 3, 5))
        lies = 100 + rng.normal(size=(liars, 5)) * rng.choice([0.0, 1.0])
        told = krum(np.vstack([honest, lies]))
        assert any(np.array_equal(told, one) for one in honest)


def test_what_noise_costs_is_what_is_said():
    # Isotropic Laplace in 50 dimensions: direction uniform, length Gamma(d).
    rng = np.random.default_rng(20_261_121)
    m, d, tries = 21, 50, 2000
    directions = rng.normal(size=(tries, m, d))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    noise = directions * rng.gamma(d, size=(tries, m, 1))
    left = {n: np.mean([rule(u) ** 2 for u in noise]) for n, rule in AGGREGATES.items()}
    # Each is a mean of 100,000 squares; relative errors are below 2 %.
    assert left["median"] / left["mean"] == pytest.approx(np.pi / 2, rel=0.08)
    assert left["trimmed-mean"] / left["mean"] == pytest.approx(1.2, rel=0.08)
    # Krum likes the short ones, which helps it a little.
    assert 0.5 * m < left["krum"] / left["mean"] <= m


def test_a_client_counts_once_in_a_round():
    aggregator = Aggregator(1, "median")
    for value in (9.0, 9.0, 9.0):
        aggregator.hold(b"a", np.array([value]))
    for name in (b"b", b"c"):
        aggregator.hold(name, np.array([1.0]))
    assert aggregator.close_round(list(aggregator.round.values()))
    assert aggregator.weights[0] == 1.0


@pytest.mark.parametrize("rule", list(AGGREGATES))
def test_a_synchronous_round_uses_what_the_task_says(rule):
    brokerage = make_brokerage(make_task(
        training=Training(mode="synchronous", aggregate=rule, max_norm=1.0),
        clients=Clients(minimum=2)))
    players = [Player(brokerage) for _ in range(5)]
    deltas = np.array([[x, 0, 0, 0] for x in (0.125, 0.25, 0.375, 0.25, -1.0)])
    pushes = [p.answer(p.work(1.0), d) for p, d in zip(players, deltas, strict=True)]
    for player, push in zip(players, pushes, strict=True):
        player.push(push, 2.0)
    assert np.array_equal(brokerage._aggregator.weights, AGGREGATES[rule](deltas))
    assert rule == "mean" or brokerage._aggregator.weights[0] == 0.25


def test_without_a_validation_set_nothing_is_measured_and_the_last_weights_are_published():
    training = Training(mode="synchronous", aggregate="median", max_updates=2, max_norm=1.0)
    task = make_task(training=training, validation=Validation(test="none", screen="none"))
    brokerage = make_brokerage(task, data=(np.zeros((0, 4)), np.zeros(0)))
    player = Player(brokerage)
    player.step(1.0, np.array([0.5, 0, 0, 0]))
    status = brokerage.status(1.0)
    assert (status.error, status.best_error, status.baseline) == (None, None, None)
    assert (status.updates, status.judged) == (1, 0)
    assert np.array_equal(brokerage.take_changes(1.0).model.best_weights, [0.5, 0, 0, 0])
    player.step(2.0, np.array([0, 0.5, 0, 0]))
    best, count, why = brokerage.outcome
    assert np.array_equal(best, [0.5, 0.5, 0, 0]) and (count, why) == (2, "max-updates")
