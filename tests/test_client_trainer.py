"""One step: paid first, exactly b rows, within the bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from client_world import make_task, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.problems import BUDGET_SPENT, Problem
from accord.task import Task, Training
from client import trainer as module
from client.dataset import Dataset, load
from client.trainer import Trainer, _shrink

BATCH = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = write_rows(tmp_path_factory.mktemp("data") / "mine.csv", rows=100)
    return load(path, make_task().data, BATCH)


def trainer(data: Dataset, task: Task | None = None, t: int = 1, epsilon: float = 1.0) -> Trainer:
    return Trainer(task or make_task(), data, BATCH, epsilon, lambda: t)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_a_step_is_what_the_formula_says(data: Dataset) -> None:
    training = Training(step=0.5, regularisation=0.1, max_norm=1e6, schedule="1/sqrt(t)")
    task = make_task(training=training)
    weights = np.linspace(-1, 1, task.dimension)
    delta = trainer(data, task, t=4, epsilon=1e6).step(weights, rng())
    chosen = rng().choice(100, size=BATCH, replace=False, shuffle=False)
    rows, labels = data.rows[chosen], data.labels[chosen]
    gradients = (1 / (1 + np.exp(-rows @ weights)) - labels)[:, None] * rows
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    mean = (gradients * np.minimum(1, 0.5 / norms)).sum(axis=0) / BATCH
    assert np.allclose(delta, -(0.5 / 2) * (0.1 * weights + mean), atol=1e-4)
    assert delta.dtype == np.float32


def test_the_batch_is_exactly_b_rows_without_replacement(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def release(gradients: np.ndarray, *_: object) -> np.ndarray:
        seen.append(gradients)
        return np.zeros(gradients.shape[1])

    monkeypatch.setattr(module, "release", release)
    unlike = replace(data, rows=np.eye(100)[:, : data.rows.shape[1]] + data.rows)
    counts = np.zeros(100)
    generator = rng()
    for _ in range(300):
        trainer(unlike).step(np.zeros(data.rows.shape[1]), generator)
        gradients = seen.pop()
        assert len(gradients) == BATCH == len(np.unique(gradients, axis=0))
        own = (0.5 - unlike.labels)[:, None] * unlike.rows
        counts += [(np.isclose(gradients, g).all(axis=1)).any() for g in own]
    # Each row with probability b/n.
    assert abs(counts / 300 - BATCH / 100).max() < 0.12


def test_nothing_is_looked_at_that_is_not_paid_for(data: Dataset) -> None:
    def spend() -> int:
        raise Problem(BUDGET_SPENT, spent=1.0, budget=1.0, delta=1e-6)

    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    poor = Trainer(make_task(), Untouchable(), BATCH, 1.0, spend)  # type: ignore[arg-type]
    with pytest.raises(Problem) as caught:
        poor.step(np.zeros(5), Untouchable())  # type: ignore[arg-type]
    assert caught.value.kind is BUDGET_SPENT


def test_the_noise_is_fresh(data: Dataset) -> None:
    generator = rng()
    steps = [trainer(data).step(np.zeros(5), generator).tobytes() for _ in range(20)]
    assert len(set(steps)) == 20


@settings(max_examples=300, deadline=None)
@given(
    vector=st.lists(st.floats(width=64, allow_nan=False), min_size=1, max_size=40),
    bound=st.floats(min_value=1e-45, max_value=1e9, exclude_min=True),
)
def test_never_longer_than_the_bound(vector: list[float], bound: float) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        short = _shrink(np.array(vector), bound)
    assert short.dtype == np.float32 and np.isfinite(short).all()
    assert np.linalg.norm(short.astype(np.float64)) <= bound


@pytest.mark.parametrize("weights", [3e38, -3e38])
@pytest.mark.parametrize("epsilon", [1e-9, 1e6])
def test_absurd_constants_give_a_finite_step(
    data: Dataset, weights: float, epsilon: float
) -> None:
    training = Training(step=1e9, regularisation=1.0, clip=1e9, max_norm=1e9)
    task = make_task(training=training)
    delta = trainer(data, task, epsilon=epsilon).step(np.full(5, weights), rng())
    assert np.isfinite(delta).all() and np.linalg.norm(delta.astype(float)) <= 1e9
