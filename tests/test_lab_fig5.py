"""One client alone, and figure 5: the trainer is the real one, and the price is that of all."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_world import make_table
from rich.console import Console

from accord.task import Training
from client.accounting import epsilon_total
from client.noise import Release
from lab.credit import converged
from lab.experiments import fig5
from lab.experiments.alone import averaged, loss_error_auc, spaced, train
from lab.experiments.frame import Finished, key_of

TABLE = make_table()
PART = TABLE.rows, TABLE.labels


def page(*tables: Any) -> str:
    text = io.StringIO()
    Console(file=text, width=250).print(*tables)
    return text.getvalue()


@pytest.mark.parametrize("power", [0, 1, 3])
def test_the_average_is_the_weighted_sum_that_it_says(power: int) -> None:
    models = np.random.default_rng(1).normal(size=(40, 4))
    bar = np.full(4, 1e9)
    for t, model in enumerate(models, 1):
        bar = averaged(bar, model, t, power)
    # Model t weighs as t (t + 1) ... (t + power - 1).
    weights = np.array([math.perm(t + power - 1, power) for t in range(1, 41)], dtype=float)
    assert np.allclose(bar, weights @ models / weights.sum())


def test_without_noise_it_learns_and_with_all_rows_it_is_plain_gradient_descent() -> None:
    training = Training(step=2.0, schedule="constant", clip=1.0)
    course = train(TABLE.schema, training, PART, len(TABLE.labels), None, [1, 2, 3], [0])
    weights = np.zeros(4)
    for live in course.live:
        chance = 1 / (1 + np.exp(-TABLE.rows @ weights))
        weights = weights - 2.0 * TABLE.rows.T @ (chance - TABLE.labels) / len(TABLE.labels)
        assert np.allclose(live, weights, atol=1e-5)
    assert course.updates == [1, 2, 3] and course.averaged.shape == (3, 4)
    far = train(TABLE.schema, training, PART, 200, None, [1500], [0])
    best = loss_error_auc(converged(*PART), PART)[0]
    assert loss_error_auc(far.live[-1], PART)[0] < best + 0.01


def test_noise_is_the_real_one() -> None:
    training = Training(step=1.0, schedule="constant", clip=0.5)
    noisy = train(TABLE.schema, training, PART, 50, 0.5, list(range(1, 401)), [3])
    steps = np.diff(noisy.live, axis=0, prepend=0.0)
    # Radius Gamma(4, 2C / epsilon), over the batch: root mean square sqrt(d (d + 1)) 2C/(eps b).
    expected = math.sqrt(4 * 5) * 2 * 0.5 / (0.5 * 50)
    measured = math.sqrt(np.square(steps).sum(axis=1).mean())
    # The mean gradient, at most 0.5 long, comes on top.
    assert expected * 0.9 < measured < math.hypot(expected, 0.5) * 1.1
    again = train(TABLE.schema, training, PART, 50, 0.5, [400], [3])
    assert np.array_equal(again.live[-1], noisy.live[-1])
    other = train(TABLE.schema, training, PART, 50, 0.5, [400], [4])
    assert not np.array_equal(other.live[-1], noisy.live[-1])


def test_points_are_spaced_evenly_and_end_where_it_ends() -> None:
    assert spaced(100)[:3] == [1, 2, 3] and spaced(100)[-1] == 100
    assert spaced(150)[-1] == 150 and len(spaced(20_000)) < 50
    assert spaced(1) == [1]


def test_to_be_there_is_to_stay() -> None:
    def curve(*errors: float) -> list[tuple[float, ...]]:
        return [(10 * (i + 1), 0.5, error, 0.7) for i, error in enumerate(errors)]

    assert fig5.arrives(curve(0.3, 0.19, 0.3, 0.19, 0.18), 0.195) == 40
    assert fig5.arrives(curve(0.19, 0.19), 0.195) == 10
    assert fig5.arrives(curve(0.19, 0.3), 0.195) == math.inf


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [None, 1.0])
def test_a_cell_costs_all_its_updates(epsilon: float | None, monkeypatch: pytest.MonkeyPatch,
                                      ) -> None:
    monkeypatch.setattr(fig5, "load", lambda data: TABLE)
    told = fig5.run({"part": "curves", "epsilon": epsilon, "batch": 20, "step": 1.0,
                     "updates": 300, "seed": 0}, None)
    assert [point[0] for point in told["curve"]] == spaced(300)
    assert told["curve"][-1][1] < told["curve"][0][1]
    assert told["optimum"][1] <= told["curve"][-1][2] + 0.01 and 0.3 < told["nothing"] < 0.45
    if epsilon is None:
        assert told["total"] is None
    else:
        # 70 % of 2,000 rows, in 4 dimensions.
        assert told["total"] == epsilon_total({Release(1.0, 20, 1400, 4): 300}, 1e-6)
        assert told["total"] > epsilon_total({Release(1.0, 20, 1400, 4): 299}, 1e-6)


@pytest.mark.parametrize("quick", [True, False])
def test_cells_are_told_apart(quick: bool) -> None:
    cells = fig5.cells(quick, None)
    assert len({key_of("fig5", cell, "d") for cell in cells}) == len(cells)
    assert {(c["epsilon"], c["batch"]) for c in cells} == {
        (e, b) for e in (None, 0.5, 1.0, 5.0) for b in (1, 5, 10, 50, 100)}
    assert all(c["step"] == 1.0 for c in cells[:1])


def fabricate(cell: dict[str, Any]) -> dict[str, Any]:
    """Loss and error fall with the batch, and more with the smallest step."""
    good = cell["batch"] >= 50
    end = (0.47, 0.19, 0.72) if good else (0.9 if cell["step"] == 1.0 else 0.61, 0.35, 0.6)
    return {"curve": [[1, 0.69, 0.5, 0.5], [100, *end], [cell["updates"], *end]], "test": end,
            "optimum": (0.45, 0.188, 0.74), "nothing": 0.221,
            "total": None if cell["epsilon"] is None else 0.123}


@pytest.mark.slow
def test_tables_and_plots(tmp_path: Path) -> None:
    finished = [Finished(cell, fabricate(cell)) for cell in fig5.cells(True, 2)]
    lines = page(*fig5.tables(finished)).splitlines()
    small = next(line.split() for line in lines if line.split()[:2] == ["0.5", "10"])
    assert small[2:] == ["0.123", "1", "0.900", "35.0", "35.0–35.0", "0.600", "never",
                         "0.1", "0.610", "35.0", "0.600", "never"]
    large = next(line.split() for line in lines if line.split()[:2] == ["∞", "100"])
    assert large[2] == "∞" and large[8] == "100"
    assert {path.name for path in fig5.plots(finished, tmp_path)} == {
        "figure5-loss.png", "figure5-error.png", "figure5-loss.svg", "figure5-error.svg"}
    assert fig5.measures(finished[0])["there"] is None
    header, first, *_ = fig5.series(finished)
    assert header == ["part", "epsilon", "batch", "step", "seed", "updates", "loss", "error", "auc"]
    assert first == ["curves", None, 1, 1.0, 0, 1, 0.69, 0.5, 0.5]
    assert fig5.tables([]) == [] and fig5.plots([], tmp_path) == []
