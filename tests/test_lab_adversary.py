"""Attackers send what they say they send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_world import make_table

from accord.task import Task
from client.dataset import Dataset
from client.noise import Release
from client.trainer import Trainer
from lab.adversary import (
    ATTACKS,
    MOST_Z,
    Attacker,
    Band,
    Means,
    Noiseless,
    Skipper,
    Stepper,
    clipped_mean,
    counter,
    honest,
    largest_z,
    make_attacker,
    shorten,
)
from lab.credit import deal
from lab.setting import Config, make_task

TABLE = make_table()
PARTS = deal(TABLE, 50, 0)
ROWS, LABELS = PARTS.train[0][:300], PARTS.train[1][:300]
W = np.array([0.5, -0.2, 0.1, 0.3])


def task(**training: Any) -> Task:
    config = Config(validation={"test": "none", "screen": "none"}, training=training)
    return make_task(TABLE, config, PARTS)


def means(epsilon: float | None = 1.0, **training: Any) -> Means:
    band = Band(4, 4)
    band.share(ROWS, LABELS)
    return Means(task(**training), ROWS, LABELS, 50, epsilon, band)


def at(t: int) -> Callable[[int], range]:
    """What says that the next step is the t-th."""
    return lambda count: range(t, t + 1)


def sent(attacker: Stepper, weights: np.ndarray = W, seed: int = 5) -> np.ndarray:
    """What it sends."""
    return attacker.update(weights, rng(seed)).delta


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def good(epsilon: float | None = 1.0, labels: np.ndarray = LABELS, t: int = 1) -> np.ndarray:
    stepper = honest(task(), ROWS, labels, 50, epsilon, at(t))
    return stepper.update(W, rng()).delta.astype(np.float64)


def test_noiseless_is_the_real_client_but_for_the_noise() -> None:
    data = Dataset(ROWS, LABELS, "", Path())
    kind = Release(1e12, 50, len(LABELS), len(W))
    real = Trainer(task(), data, kind, at(3)).update(W, rng()).delta
    ours = Noiseless(task(), ROWS, LABELS, 50, at(3)).update(W, rng()).delta
    assert ours.dtype == real.dtype == np.float32
    assert np.allclose(ours, real, atol=1e-7)


@pytest.mark.parametrize("epsilon", [None, 1.0])
def test_label_flip_is_honest_computing_on_opposite_answers(epsilon: float | None) -> None:
    attacker = make_attacker("label-flip", means(epsilon))
    assert np.array_equal(sent(attacker), good(epsilon, 1 - LABELS).astype(np.float32))
    assert np.array_equal(
        sent(attacker), good(epsilon, 1 - LABELS, t=2).astype(np.float32))


def test_sign_flip_is_turned_and_long() -> None:
    assert np.allclose(sent(make_attacker("sign-flip", means())), -10 * good(), rtol=1e-5)
    assert np.allclose(
        sent(make_attacker("sign-flip", means(), 2.0)), -2 * good(), rtol=1e-5)


def test_nobody_sends_more_than_the_task_allows() -> None:
    for name in ATTACKS:
        delta = sent(make_attacker(name, means(max_norm=0.01)))
        assert delta.dtype == np.float32
        assert float(np.linalg.norm(delta.astype(np.float64))) <= 0.01
    assert np.allclose(shorten(np.array([3.0, 4.0]), 1.0), [0.6, 0.8], atol=1e-5)


def test_noise_is_ten_honest_updates_long_in_any_direction() -> None:
    attacker = make_attacker("noise", means(None))
    attacker.t = 1
    deltas = np.array([attacker.make(W, rng(seed)) for seed in range(400)])
    lengths = np.linalg.norm(deltas, axis=1)
    steps = [np.linalg.norm(sent(honest(task(), ROWS, LABELS, 50, None, at(1)), seed=s))
             for s in range(3)]
    for seed, step in enumerate(steps):
        assert np.linalg.norm(attacker.make(W, rng(seed))) == pytest.approx(10 * step, rel=1e-5)
    # The mean of 400 uniform directions has a length of about 1/20.
    assert np.linalg.norm((deltas / lengths[:, None]).mean(axis=0)) < 0.15


def test_inner_product_is_against_what_honest_clients_do_without_noise() -> None:
    attacker = make_attacker("inner-product", means())
    delta = sent(attacker)
    full = clipped_mean(task(), W, ROWS, LABELS)
    assert delta @ full > 0.9 * np.linalg.norm(delta) * np.linalg.norm(full)


def test_largest_z_is_the_formula() -> None:
    # 50 clients, 24 attackers: s = 26 - 24 = 2, Phi(z) < 24/26 (Baruch et al., their own example).
    assert largest_z(50, 24) == pytest.approx(1.4261, abs=1e-4)
    assert largest_z(8, 4) == pytest.approx(0.6745, abs=1e-4)
    assert largest_z(8, 6) == largest_z(8, 8) == MOST_Z


def test_a_little_is_within_what_chance_makes() -> None:
    mine = means(None)
    attacker = make_attacker("a-little", mine, 1.5)
    others = np.random.default_rng(0).normal(size=(3, 4))
    mine.band.releases.update({i + 1: release for i, release in enumerate(others)})
    attacker.t = 1
    delta = attacker.make(W, rng())
    known = np.vstack([others, good(None)])
    assert np.allclose(delta, known.mean(axis=0) - 1.5 * known.std(axis=0), rtol=1e-5)


def test_adaptive_is_a_mixture() -> None:
    assert np.allclose(sent(make_attacker("adaptive", means(), 0.0)), good(), rtol=1e-5)
    opposed = sent(make_attacker("adaptive", means(), 1.0))
    flipped = -clipped_mean(task(), W, ROWS, 1 - LABELS)
    assert opposed @ flipped > 0.9 * np.linalg.norm(opposed) * np.linalg.norm(flipped)


def test_a_sleeper_wakes() -> None:
    attacker = make_attacker("sleeper", means(None), 2.0)
    deltas = [sent(attacker) for _ in range(3)]
    for t, labels in ((1, LABELS), (2, LABELS), (3, 1 - LABELS)):
        assert np.array_equal(deltas[t - 1], good(None, labels, t).astype(np.float32))


def test_only_those_leave_who_come_back() -> None:
    for name in ATTACKS:
        attacker = make_attacker(name, means())
        assert not attacker.leaves(0)
        assert attacker.leaves(1) == (name in ("rejoiner", "leaver"))
    attacker = make_attacker("rejoiner", means())
    attacker.update(W, rng())
    attacker.anew()
    assert attacker.t == 0


@pytest.mark.parametrize("reverse", [0.0, 1.0])
def test_a_skipper_is_honest_where_it_believes_to_be_watched(reverse: float) -> None:
    attacker = make_attacker("skipper", means(None), reverse)

    def is_honest(weights: np.ndarray) -> bool:
        t = attacker.t + 1
        delta = sent(attacker, weights)
        real = sent(honest(task(), ROWS, LABELS, 50, None, at(t)), weights)
        return bool(np.array_equal(delta, real))

    watched = not reverse
    assert is_honest(W) == watched  # nothing sent before
    assert is_honest(W) == watched  # its update is not in there
    moved = W + attacker._before[1]  # type: ignore[attr-defined]
    assert is_honest(moved) == (not watched)


def test_unknown_attacks_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="no attack named 'nothing'"):
        make_attacker("nothing", means())
    with pytest.raises(ValueError, match="finite"):
        make_attacker("noise", means(), float("nan"))
    assert isinstance(make_attacker("sybil", means()), Attacker)
    assert make_attacker("sybil", means()).shared_machine
    assert replace(means(), number=3).number == 3


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_update_of_several_steps_is_as_many_one_after_another(name: str) -> None:
    several = make_attacker(name, replace(means(local_steps=5), local_steps=5))
    made = several.update(W, rng())
    assert (made.steps, several.t, several.updates) == (5, 5, 1)
    one, weights, generator = make_attacker(name, means()), W, rng()
    for _ in range(5):
        one.updates = 0  # what it wants for a ticket it wants for all steps of it
        if isinstance(one, Skipper):
            one._before = None
        weights = weights + one.update(weights, generator).delta
    assert made.delta.dtype == np.float32
    assert np.allclose(made.delta, weights - W, rtol=1e-3, atol=1e-5)


def test_without_noise_an_update_of_several_steps_is_as_many_one_after_another() -> None:
    many = Noiseless(task(local_steps=7), ROWS, LABELS, 50, counter(), 7)
    one, weights, generator = Noiseless(task(), ROWS, LABELS, 50, counter()), W, rng()
    for _ in range(7):
        weights = weights + one.update(weights, generator).delta
    made = many.update(W, rng())
    assert made.steps == 7 and np.allclose(made.delta, weights - W, rtol=1e-4, atol=1e-6)
