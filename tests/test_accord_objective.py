"""Losses: gradients are those of the losses, and many models at once are each one alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.objective import OBJECTIVES, Objective

EACH = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def data(seed: int, n: int = 40, d: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    source = np.random.default_rng(seed)
    rows = source.normal(size=(n, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = (source.random(n) < 0.4).astype(np.float64)
    return source.normal(size=d) * 3, rows, labels


@EACH
@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_the_slopes_of_the_loss(objective: Objective, seed: int) -> None:
    w, rows, labels = data(seed)
    found = objective.gradients(w, rows, labels)
    assert found.shape == rows.shape
    h = 1e-6
    for i in range(len(rows)):
        x, y = rows[i : i + 1], labels[i : i + 1]
        steps = np.eye(len(w)) * h
        slope = (objective.loss(w + steps, x, y) - objective.loss(w - steps, x, y)) / (2 * h)
        np.testing.assert_allclose(found[i], slope, atol=1e-8)


@EACH
def test_the_mean_gradient_is_that_of_the_mean_loss(objective: Objective) -> None:
    w, rows, labels = data(9)
    h = 1e-6
    steps = np.eye(len(w)) * h
    losses = objective.loss(np.vstack([w + steps, w - steps]), rows, labels)
    slope = (losses[: len(w)] - losses[len(w) :]) / (2 * h)
    np.testing.assert_allclose(
        objective.gradients(w, rows, labels).mean(axis=0), slope, atol=1e-8)


@EACH
@given(seed=st.integers(0, 10_000), m=st.integers(1, 6), n=st.integers(1, 30))
def test_many_models_at_once_are_each_one_alone(
    objective: Objective, seed: int, m: int, n: int
) -> None:
    _, rows, labels = data(seed, n)
    models = np.random.default_rng(seed + 1).normal(size=(m, rows.shape[1])) * 5
    errors, losses = objective.error(models, rows, labels), objective.loss(models, rows, labels)
    assert errors.shape == losses.shape == (m,)
    for i, w in enumerate(models):
        chance = objective.predict(w, rows)
        assert chance.shape == (n,)
        assert errors[i] == ((chance > 0.5) != (labels == 1)).mean()
        # In more digits than doubles have: a chance near 0 or 1 has too few for its logarithm.
        margins = rows.astype(np.longdouble) @ w
        odds = np.exp(np.where(labels == 1, -margins, margins))
        assert chance == pytest.approx((1 / (1 + np.exp(-margins))).astype(float), abs=1e-15)
        assert losses[i] == pytest.approx(float(np.log1p(odds).mean()), rel=1e-9)
        assert objective.error(models[i : i + 1], rows, labels)[0] == errors[i]
        np.testing.assert_allclose(
            objective.loss(models[i : i + 1], rows, labels)[0], losses[i], rtol=1e-12)


@EACH
@pytest.mark.parametrize("margin", [1e2, 1e4, 1e8, 1e300])
@pytest.mark.filterwarnings("error")
def test_extreme_margins_overflow_nothing(objective: Objective, margin: float) -> None:
    rows = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    labels = np.array([0.0, 1.0, 0.0, 1.0])
    w = np.array([margin])
    assert objective.predict(w, rows) == pytest.approx([1, 1, 0, 0], abs=1e-30)
    assert objective.gradients(w, rows, labels)[:, 0] == pytest.approx([1, 0, 0, 1], abs=1e-30)
    assert objective.error(w[None], rows, labels) == [0.5]
    assert objective.loss(w[None], rows, labels) == pytest.approx([margin / 2], rel=1e-12)


@EACH
def test_an_untrained_model_guesses_no(objective: Objective) -> None:
    _, rows, labels = data(3)
    zero = np.zeros((1, rows.shape[1]))
    assert objective.error(zero, rows, labels)[0] == labels.mean()
    assert objective.loss(zero, rows, labels)[0] == pytest.approx(np.log(2))
    assert objective.predict(zero[0], rows) == pytest.approx(0.5)


@EACH
def test_an_example_of_norm_one_has_a_gradient_of_at_most_one(objective: Objective) -> None:
    for seed in range(20):
        w, rows, labels = data(seed)
        lengths = np.linalg.norm(objective.gradients(w * 100, rows, labels), axis=1)
        assert lengths.max() <= 1 + 1e-12


@EACH
def test_it_is_said_in_words(objective: Objective) -> None:
    assert len(objective.words) > 20
