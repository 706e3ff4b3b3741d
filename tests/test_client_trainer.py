"""One step: paid first, exactly b rows, within the bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_world import make_task, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from accord.messages import vector_to_wire
from accord.problems import BUDGET_SPENT, Problem
from accord.task import Task, Training
from client import trainer as module
from client.dataset import Dataset, load
from client.noise import ROUNDS, ChaCha, Floats, Release, batches, clip_rows
from client.trainer import Trainer, _rounded, shortened

BATCH = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = write_rows(tmp_path_factory.mktemp("data") / "mine.csv", rows=100)
    return load(path, make_task().data, BATCH)


def trainer(data: Dataset, task: Task | None = None, t: int = 1, epsilon: float = 1.0) -> Trainer:
    return Trainer(task or make_task(), data, Release(epsilon, BATCH, 100, 5),
                   lambda count: range(t, t + 1))


def once(count: int) -> range:
    return range(1, 2)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_a_step_is_what_the_formula_says(data: Dataset) -> None:
    training = Training(step=0.5, regularisation=0.1, max_norm=1e6, schedule="1/sqrt(t)")
    task = make_task(training=training)
    weights = np.linspace(-1, 1, task.dimension)
    delta = trainer(data, task, t=4, epsilon=1e6).update(weights, rng()).delta
    (chosen,) = batches(Release(1e6, BATCH, 100, 5), 1, rng())
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

    def release(gradients: np.ndarray) -> np.ndarray:
        seen.append(gradients)
        return np.zeros(gradients.shape[1])

    instead(monkeypatch, lambda *_: release)
    unlike = replace(data, rows=np.eye(100)[:, : data.rows.shape[1]] + data.rows)
    counts = np.zeros(100)
    generator = rng()
    for _ in range(300):
        trainer(unlike).update(np.zeros(data.rows.shape[1]), generator)
        gradients = seen.pop()
        assert len(gradients) == BATCH == len(np.unique(gradients, axis=0))
        own = (0.5 - unlike.labels)[:, None] * unlike.rows
        counts += [(np.isclose(gradients, g).all(axis=1)).any() for g in own]
    # Each row with probability b/n.
    assert abs(counts / 300 - BATCH / 100).max() < 0.12


def instead(
    monkeypatch: pytest.MonkeyPatch, begin: Callable[..., Callable[[Floats], Floats]]
) -> None:
    """Let an update's releases be made by what this gives; it is called once for each update, with
    the kind, the clip, how many, and the generator."""
    class Releases:
        def __init__(self, *arguments: Any) -> None:
            self.release = begin(*arguments)

    monkeypatch.setattr(module, "Releases", Releases)


def taken(n: int, b: int, count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which of the C(n, b) batches each of so many steps took, each with a generator of its own,
    as in :mod:`client.agent`."""
    task = make_task()
    rows = np.zeros((n, task.dimension))
    rows[:, 0] = np.arange(1, n + 1) / n
    every = {batch: place for place, batch in enumerate(combinations(range(n), b))}
    assert len(every) == math.comb(n, b)
    seen: list[int] = []

    def begin(kind: Release, clip: float, many: int, rng: object) -> Callable[[Floats], Floats]:
        def release(gradients: Floats) -> Floats:
            assert gradients.shape == (kind.batch, kind.dimension) == (b, task.dimension)
            chosen = np.rint(gradients[:, 0] * 2 * n).astype(int) - 1
            seen.append(every[tuple(sorted(chosen))])
            return np.zeros(kind.dimension)

        assert (clip, many) == (task.training.clip, 1)
        return release

    instead(monkeypatch, begin)
    kind = Release(1.0, b, n, task.dimension)
    client = Trainer(task, Dataset(rows, np.zeros(n), "", Path()), kind, once)
    for step in range(count):
        client.update(
            np.zeros(task.dimension), np.random.Generator(ChaCha(key=step, rounds=ROUNDS)))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("n", "b"), [(5, 2), (6, 3), (7, 1), (6, 5)])
def test_every_batch_is_as_likely_and_none_knows_of_the_one_before(
    n: int, b: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the ledger reckons with. Each of the 8 p-values would be as low by chance once in
    100,000 seeds."""
    seen = taken(n, b, 4_000, monkeypatch)
    many = math.comb(n, b)
    assert stats.chisquare(np.bincount(seen, minlength=many)).pvalue > 1e-5
    table = np.zeros((many, many))
    np.add.at(table, (seen[:-1], seen[1:]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-5


def test_noise_is_of_the_kind_that_the_ledger_is_told(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[object, ...]] = []
    shapes: list[tuple[int, ...]] = []

    def begin(*arguments: object) -> Callable[[Floats], Floats]:
        told.append(arguments)
        return release

    def release(gradients: Floats) -> Floats:
        shapes.append(gradients.shape)
        return np.zeros(5)

    instead(monkeypatch, begin)
    task = make_task(training=Training(local_steps=3))
    for kind in (Release(0.3, BATCH, 100, 5), Release(0.3, 7, 100, 5, "gaussian", 1e-6)):
        for steps in (1, 3):
            generator = rng()
            Trainer(task, data, kind, counted(9), local_steps=steps).update(np.zeros(5), generator)
            assert told.pop() == (kind, task.training.clip, steps, generator)
            assert shapes == [(kind.batch, 5)] * steps and not told
            shapes.clear()


def test_a_step_of_gaussian_noise_is_as_long_as_the_kind_says(data: Dataset) -> None:
    kind = Release(0.1, BATCH, 100, 5, "gaussian", 1e-6)
    task = make_task(training=Training(step=1.0, schedule="constant", regularisation=0.0,
                                       clip=1.0, max_norm=1e9))
    client, generator = Trainer(task, data, kind, once), rng()
    squares = [float(np.square(client.update(np.zeros(5), generator).delta, dtype=float).sum())
               for _ in range(2_000)]
    # chi-squared with 5 degrees of freedom and a gradient of a hundredth; 5 standard errors
    assert np.mean(squares) == pytest.approx(
        kind.noise_ratio**2, rel=5 * math.sqrt(2 / 5 / 2_000) + 0.01)


@pytest.mark.parametrize("kind", [
    Release(1.0, BATCH, 99, 5), Release(1.0, BATCH, 101, 5), Release(1.0, BATCH, 100, 4),
    Release(1.0, BATCH, 100, 6, "gaussian", 1e-6)])
def test_a_kind_of_other_data_or_another_task_is_refused(data: Dataset, kind: Release) -> None:
    with pytest.raises(ValueError, match="not of this data and task"):
        Trainer(make_task(), data, kind, once)


def test_nothing_is_looked_at_that_is_not_paid_for(data: Dataset) -> None:
    def spend(count: int) -> range:
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
        poor.update(np.zeros(5), Untouchable())  # type: ignore[arg-type]
    assert caught.value.kind is BUDGET_SPENT


def test_the_noise_is_fresh(data: Dataset) -> None:
    generator = rng()
    steps = [trainer(data).update(np.zeros(5), generator).delta.tobytes() for _ in range(20)]
    assert len(set(steps)) == 20


@settings(max_examples=300, deadline=None)
@given(
    vector=st.lists(st.floats(width=64, allow_nan=False), min_size=1, max_size=40),
    bound=st.floats(min_value=1e-45, max_value=1e9, exclude_min=True),
)
def test_never_longer_than_the_bound(vector: list[float], bound: float) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        within = shortened(np.array(vector), bound * (1 - 1e-6))
        short = _rounded(within, np.float32, bound)
    assert short.dtype == np.float32 and np.isfinite(short).all()
    assert np.linalg.norm(short.astype(np.float64)) <= bound


@pytest.mark.parametrize("weights", [3e38, -3e38])
@pytest.mark.parametrize("epsilon", [1e-9, 1e6])
def test_absurd_constants_give_a_finite_step(
    data: Dataset, weights: float, epsilon: float
) -> None:
    training = Training(step=1e9, regularisation=1.0, clip=1e9, max_norm=1e9)
    task = make_task(training=training)
    delta = trainer(data, task, epsilon=epsilon).update(np.full(5, weights), rng()).delta
    assert np.isfinite(delta).all() and np.linalg.norm(delta.astype(float)) <= 1e9


# -- several steps in an update ----------------------------------------------------------------


def counted(count: int) -> Callable[[int], range]:
    """A ledger that allows so many steps in all."""
    spent = 0

    def spend(wanted: int) -> range:
        nonlocal spent
        first, spent = spent + 1, min(count, spent + wanted)
        return range(first, spent + 1)

    return spend


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 12), seed=st.integers(0, 2**32),
       schedule=st.sampled_from(["constant", "1/t", "1/sqrt(t)"]),
       max_norm=st.sampled_from([0.01, 0.3, 1e6]), epsilon=st.sampled_from([0.1, 1e6]))
def test_an_update_of_several_steps_is_as_many_updates_of_one(
    data: Dataset, steps: int, seed: int, schedule: Any, max_norm: float, epsilon: float
) -> None:
    """The same batches and noises, handed out one by one, lead to the same place."""
    training = Training(step=0.5, regularisation=0.05, max_norm=max_norm, schedule=schedule,
                        local_steps=12)
    task, kind = make_task(training=training), Release(epsilon, BATCH, 100, 5)
    start = np.linspace(-1, 1, 5)
    many = Trainer(task, data, kind, counted(99), local_steps=steps)
    made = many.update(start, np.random.default_rng(seed))
    generator = np.random.default_rng(seed)
    chosen = batches(kind, steps, generator)
    releases = module.Releases(kind, training.clip, steps, generator)
    one = Trainer(task, data, kind, counted(99))
    weights = start
    with pytest.MonkeyPatch.context() as patch:
        instead(patch, lambda *_: releases.release)
        for mine in chosen:
            patch.setattr(module, "batches", lambda *_, mine=mine: mine[None])
            delta, number = one.update(weights, generator)
            assert number == 1
            weights = weights + delta
    assert made.steps == steps and made.delta.dtype == np.float32
    assert np.allclose(made.delta, weights - start, rtol=1e-4, atol=1e-5 * np.abs(weights).max())
    assert np.linalg.norm(made.delta.astype(float)) <= steps * max_norm
    if steps == 1:
        assert np.array_equal(made.delta, delta)


def test_at_the_end_of_a_budget_an_update_has_fewer_steps(data: Dataset) -> None:
    task = make_task(training=Training(local_steps=10))
    client = Trainer(task, data, Release(1.0, BATCH, 100, 5), counted(13), local_steps=10)
    generator = rng()
    assert [client.update(np.zeros(5), generator).steps for _ in range(2)] == [10, 3]


@pytest.mark.parametrize("after", [1, 5, 70])
def test_an_update_that_nobody_wants_any_more_is_cut_short(data: Dataset, after: int) -> None:
    """All of it is paid for; at least one step is made, so that there is something to send."""
    task = make_task(training=Training(local_steps=100))
    spend = counted(200)
    client = Trainer(task, data, Release(1.0, BATCH, 100, 5), spend, local_steps=100)
    asked = iter(range(1, 1000))
    assert client.update(np.zeros(5), rng(), lambda: next(asked) >= after).steps == after
    assert spend(1).start == 101


def test_every_step_has_a_batch_and_noise_of_its_own(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    noises: list[bytes] = []
    real = module.Releases

    def begin(*arguments: Any) -> Callable[[Floats], Floats]:
        releases = real(*arguments)

        def release(gradients: Floats) -> Floats:
            noised = releases.release(gradients)
            seen.append(gradients.tobytes())
            noises.append((noised - clip_rows(gradients, 0.5).mean(axis=0)).round(3).tobytes())
            return noised

        return release

    instead(monkeypatch, begin)
    task = make_task(training=Training(local_steps=20))
    Trainer(task, data, Release(1.0, BATCH, 100, 5), counted(99), local_steps=20).update(
        np.zeros(5), rng())
    assert len(set(seen)) == len(set(noises)) == 20


@pytest.mark.parametrize("steps", [0, 6])
def test_more_steps_than_the_task_allows_are_refused(data: Dataset, steps: int) -> None:
    task = make_task(training=Training(local_steps=5))
    with pytest.raises(ValueError, match="steps are not what the task allows"):
        Trainer(task, data, Release(1.0, BATCH, 100, 5), once, local_steps=steps)


@settings(max_examples=100, deadline=None)
@given(max_norm=st.floats(1e-9, 6e4), epsilon=st.sampled_from([1e-3, 1.0, 1e6]),
       steps=st.integers(1, 3))
def test_in_float16_no_update_is_longer_than_the_bound_or_infinite(
    data: Dataset, max_norm: float, epsilon: float, steps: int
) -> None:
    training = Training(step=100.0, max_norm=max_norm / steps, local_steps=steps,
                        precision="float16")
    task = make_task(training=training)
    client = Trainer(task, data, Release(epsilon, BATCH, 100, 5), counted(9), local_steps=steps)
    delta = client.update(np.zeros(5), rng()).delta
    assert delta.dtype == np.float16 and np.isfinite(delta).all()
    assert np.linalg.norm(delta.astype(float)) <= max_norm
    # What travels is what was made, to the last bit.
    assert np.frombuffer(vector_to_wire(delta, "float16"), "<f2").tobytes() == delta.tobytes()
