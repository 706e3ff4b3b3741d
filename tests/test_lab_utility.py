"""What a budget buys: the totals are equal indeed, and nobody is measured on rows it had."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_world import make_table
from rich.console import Console

from client.accounting import epsilon_total
from client.noise import Release
from lab.experiments import utility, utility_report
from lab.experiments.frame import Finished, key_of
from lab.setting import Config, shares
from lab.simulation import Simulation

TABLE = make_table()
N = 50


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utility, "load", lambda data: TABLE)
    monkeypatch.setattr(utility, "SCHEDULES", {"1/sqrt(t)": (1.0, 3.0)})
    monkeypatch.setattr(utility, "TOGETHER_STEPS", (0.3, 1.0))


def cell(part: str, **other: Any) -> dict[str, Any]:
    return {"part": part, "rows": N, "budget": 2.0, "batch": 25, "updates": 20, "seeds": 2} | other


def release(told: dict[str, Any], batch: int = 25, mechanism: Any = "laplace") -> Release:
    return Release(told["epsilon"], batch, N, 4, mechanism,
                   1e-6 if mechanism == "gaussian" else 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [5, 25, 50])
@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_every_choice_costs_the_same(batch: int, mechanism: str) -> None:
    told = utility.run(cell("price", batch=batch, mechanism=mechanism, seeds=0), None)
    kind = release(told, batch, mechanism)
    assert 1.95 < epsilon_total({kind: 20}, 1e-6) <= 2.0
    assert told["noise"] == kind.noise_ratio
    assert told["runs"] == [] and told["limits"] == {}


def test_a_client_alone_is_trained_with_what_the_budget_buys(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float | None, int]] = []
    real = utility.train

    def watched(schema: Any, training: Any, part: Any, batch: int, epsilon: float | None,
                points: Any, seed: Any) -> Any:
        asked.append((batch, epsilon, points[-1]))
        return real(schema, training, part, batch, epsilon, points, seed)

    monkeypatch.setattr(utility, "train", watched)
    told = utility.run(cell("alone"), None)
    assert set(asked) == {(25, told["epsilon"], 20)}
    assert epsilon_total({release(told): 20}, 1e-6) <= 2.0
    assert len(asked) == 2 * len(told["runs"]) == 4
    for run in told["runs"]:
        assert run["who"] == "alone" and len(run["last"]) == len(run["averaged"]) == 2
        assert run["last"] != run["averaged"]
    assert told["limits"]["together"][0] <= told["limits"]["alone"][0] < 0.69


def test_together_each_makes_all_its_updates_with_what_the_budget_buys(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(utility, "Simulation", lambda table, config: (
        seen.append(config), Simulation(table, config))[1])
    told = utility.run(cell("together", seeds=1), None)
    assert {(c.epsilon, c.batch, c.most_updates) for c in seen} == {(told["epsilon"], 25, 20)}
    assert [run["step"] for run in told["runs"]] == [0.3, 1.0]
    assert told["runs"][0]["last"] != told["runs"][1]["last"]
    # Cut short, their total would be less than what is said.
    monkeypatch.setattr(utility, "_CONTACT", 0.1)
    monkeypatch.setattr(utility, "Simulation", lambda table, config: Simulation(
        table, Config(clients=8, epsilon=1.0, batch=25, seconds=1.0, most_updates=20)))
    with pytest.raises(AssertionError, match="did not come to make"):
        utility.run(cell("together", seeds=1), None)


def test_the_simulation_tells_its_last_model() -> None:
    world = utility.share_out(TABLE, N, 0)
    simulation = Simulation(world.table, Config(seconds=3.0, epsilon=5.0, batch=10))
    result = simulation.run()
    rows, labels = simulation.train
    margins = rows @ simulation.weights
    assert np.mean((margins > 0) != (labels > 0.5)) == result.error


def test_nobody_is_measured_on_rows_that_anybody_had() -> None:
    world = utility.share_out(TABLE, N, 3)
    assert len(world.mine[1]) == N

    def named(rows: np.ndarray) -> set[bytes]:
        return {row.tobytes() for row in rows}

    assert not named(world.rest[0]) & named(world.table.rows)
    assert len(world.rest[1]) + len(world.table.labels) == len(TABLE.labels)
    assert named(world.mine[0]) <= named(world.table.rows)
    simulation = Simulation(world.table, Config(clients=utility.CLIENTS, seed=3))
    held = shares(simulation.parts, simulation.config)
    assert {len(rows) for rows in held} == {N}
    other = utility.share_out(TABLE, N, 4)
    assert named(other.mine[0]) != named(world.mine[0])
    with pytest.raises(ValueError, match="8 clients of 500 rows"):
        utility.share_out(TABLE, 500, 0)


def test_a_budget_that_buys_nothing() -> None:
    told = utility.run(cell("alone", budget=0.001, updates=2000, batch=N), None)
    assert told == {"epsilon": None, "noise": None, "runs": [], "limits": {}}


def test_clips_are_tried_with_steps_to_match() -> None:
    told = utility.run(cell("clip", seeds=1), None)
    assert {(run["clip"], run["step"]) for run in told["runs"]} == {
        (0.125, 4.0), (0.125, 12.0), (0.25, 2.0), (0.25, 6.0), (0.5, 1.0), (0.5, 3.0),
        (1.0, 1.0), (1.0, 3.0)}


@pytest.mark.parametrize("quick", [True, False])
def test_cells_are_told_apart(quick: bool) -> None:
    cells = utility.cells(quick, None)
    assert len({key_of("utility", each, "d") for each in cells}) == len(cells)
    assert {each["part"] for each in cells} == {"alone", "together", "clip", "price"}
    assert all(1 <= each["batch"] <= each["rows"] for each in cells)
    assert utility.batches(200) == [10, 50, 100, 200]
    assert utility.batches(2100) == [10, 50, 100, 200, 525, 1050, 2100]
    if not quick:
        passes = {(c["rows"], c["batch"], c["updates"]) for c in cells if c["part"] == "alone"}
        assert {(2100, 525, 4), (2100, 200, 10), (2100, 2100, 1)} <= passes


def fabricate(each: dict[str, Any]) -> dict[str, Any]:
    """The larger the batch the better, a step of 3 best, and the other model worse by 0.02."""
    if each["part"] == "price":
        return {"epsilon": 0.5, "noise": 2.0, "runs": [], "limits": {}}
    loss = 0.5 + 0.1 * (1 - each["batch"] / each["rows"])
    runs = []
    for step in (1.0, 3.0):
        last = [[loss + (0.04 if step == 1.0 else 0.0), 0.2, 0.7]] * 2
        other = [[last[0][0] + 0.02, 0.21, 0.69]] * 2
        together = each["part"] == "together"
        runs.append({"who": "together" if together else "alone", "schedule": "1/sqrt(t)",
                     "step": step, "last": last, "published" if together else "averaged": other})
    if each["part"] == "clip":
        runs = [{**run, "clip": clip} for run in runs for clip in (0.5, 1.0)]
    return {"epsilon": 1.5 if each["batch"] == 10 else 0.5, "noise": 2.0, "runs": runs, "limits": {
        "alone": [0.46, 0.195, 0.72], "together": [0.45, 0.19, 0.74], "nothing": 0.22}}


@pytest.mark.slow
def test_tables_and_plots(tmp_path: Path) -> None:
    finished = [Finished(each, fabricate(each)) for each in utility.cells(True, None)]
    text = io.StringIO()
    Console(file=text, width=250).print(*utility_report.tables(finished))
    lines = [line.split() for line in text.getvalue().splitlines()]
    # 10 of 500 rows lose 0.1 (1 - 0.02), all of them nothing.
    assert ["10", "rows", "(the", "paper)", "4", "0.0980", "0.0980"] in lines
    assert ["all", "4", "0.0000", "0.0000"] in lines
    # Fabricated updates of 10 rows have epsilon 1.5, all others less.
    assert [line[-2] for line in lines if line[:4] == ["the", "smallest", "with", "ε"]] == [
        "0.0980", "0.0900", "0.0900"] * 2
    assert ["1/sqrt(t)", "1", "0.0400", "0.0400", "0.0400", "0.0400"] in lines
    assert ["best", "of", "each", "16", "+0.0200"] in lines
    best = next(line for line in lines if line[:3] == ["500", "1", "500"])
    assert best[6:8] == ["3", "0.5000"]
    assert {path.name for path in utility_report.plots(finished, tmp_path)} == {
        f"utility-{part}-500.{kind}" for part in ("alone", "together") for kind in ("png", "svg")}
    assert utility_report.tables([]) == [] and utility_report.plots([], tmp_path) == []
