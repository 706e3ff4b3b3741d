"""One step: paid first, exactly b rows, within the bound."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from client_world import make_task, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from accord.problems import BUDGET_SPENT, Problem
from accord.task import Task, Training
from client import trainer as module
from client.dataset import Dataset, load
from client.noise import ROUNDS, ChaCha, Floats, Release
from client.trainer import Trainer, _shrink

BATCH = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = write_rows(tmp_path_factory.mktemp("data") / "mine.csv", rows=100)
    return load(path, make_task().data, BATCH)


def trainer(data: Dataset, task: Task | None = None, t: int = 1, epsilon: float = 1.0) -> Trainer:
    return Trainer(task or make_task(), data, Release(epsilon, BATCH, 100, 5), lambda: t)


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


@pytest.mark.slow
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


def batches(n: int, b: int, count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which of the C(n, b) batches each of so many steps took, each with a generator of its own,
    as in :mod:`client.agent`."""
    task = make_task()
    rows = np.zeros((n, task.dimension))
    rows[:, 0] = np.arange(1, n + 1) / n
    every = {batch: place for place, batch in enumerate(combinations(range(n), b))}
    assert len(every) == math.comb(n, b)
    seen: list[int] = []

    def release(gradients: Floats, clip: float, kind: Release, rng: object) -> Floats:
        assert gradients.shape == (kind.batch, kind.dimension) == (b, task.dimension)
        assert clip == task.training.clip
        chosen = np.rint(gradients[:, 0] * 2 * n).astype(int) - 1
        seen.append(every[tuple(sorted(chosen))])
        return np.zeros(kind.dimension)

    monkeypatch.setattr(module, "release", release)
    kind = Release(1.0, b, n, task.dimension)
    client = Trainer(task, Dataset(rows, np.zeros(n), "", Path()), kind, lambda: 1)
    for step in range(count):
        client.step(np.zeros(task.dimension), np.random.Generator(ChaCha(key=step, rounds=ROUNDS)))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("n", "b"), [(5, 2), (6, 3), (7, 1), (6, 5)])
def test_every_batch_is_as_likely_and_none_knows_of_the_one_before(
    n: int, b: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the ledger reckons with. Each of the 8 p-values would be as low by chance once in
    100,000 seeds."""
    seen = batches(n, b, 4_000, monkeypatch)
    many = math.comb(n, b)
    assert stats.chisquare(np.bincount(seen, minlength=many)).pvalue > 1e-5
    table = np.zeros((many, many))
    np.add.at(table, (seen[:-1], seen[1:]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-5


def test_noise_is_of_the_kind_that_the_ledger_is_told(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[object, ...]] = []

    def release(*arguments: object) -> Floats:
        told.append(arguments)
        return np.zeros(5)

    monkeypatch.setattr(module, "release", release)
    for kind in (Release(0.3, BATCH, 100, 5), Release(0.3, 7, 100, 5, "gaussian", 1e-6)):
        generator = rng()
        Trainer(make_task(), data, kind, lambda: 1).step(np.zeros(5), generator)
        gradients, clip, passed, source = told.pop()
        assert (clip, passed, source) == (make_task().training.clip, kind, generator)
        assert np.shape(gradients) == (kind.batch, 5)


def test_a_step_of_gaussian_noise_is_as_long_as_the_kind_says(data: Dataset) -> None:
    kind = Release(0.1, BATCH, 100, 5, "gaussian", 1e-6)
    task = make_task(training=Training(step=1.0, schedule="constant", regularisation=0.0,
                                       clip=1.0, max_norm=1e9))
    client, generator = Trainer(task, data, kind, lambda: 1), rng()
    squares = [float(np.square(client.step(np.zeros(5), generator), dtype=float).sum())
               for _ in range(2_000)]
    # chi-squared with 5 degrees of freedom and a gradient of a hundredth; 5 standard errors
    assert np.mean(squares) == pytest.approx(
        kind.noise_ratio**2, rel=5 * math.sqrt(2 / 5 / 2_000) + 0.01)


@pytest.mark.parametrize("kind", [
    Release(1.0, BATCH, 99, 5), Release(1.0, BATCH, 101, 5), Release(1.0, BATCH, 100, 4),
    Release(1.0, BATCH, 100, 6, "gaussian", 1e-6)])
def test_a_kind_of_other_data_or_another_task_is_refused(data: Dataset, kind: Release) -> None:
    with pytest.raises(ValueError, match="not of this data and task"):
        Trainer(make_task(), data, kind, lambda: 1)


def test_nothing_is_looked_at_that_is_not_paid_for(data: Dataset) -> None:
    def spend() -> int:
        raise Problem(BUDGET_SPENT, spent=1.0, budget=1.0, delta=1e-6)

    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    class Closed(Untouchable):
        """Only how many rows there are."""

        @property
        def labels(self) -> range:
            return range(100)

    kind = Release(1.0, BATCH, 100, 5)
    poor = Trainer(make_task(), Closed(), kind, spend)  # type: ignore[arg-type]
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
