"""scripts/bench: what the table says of a ratio, and that a row that fails is told as such."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lab.bench import network, noise, roni
from lab.bench.table import ROWS, Row, for_markdown, measure, measure_all, ratio_words, spread
from lab.demo import Failed
from lab.experiments import table2
from lab.experiments.frame import Finished

bench = importlib.import_module("lab.bench.__main__")


def swift(quick: bool) -> dict[str, Any]:
    return {"ratio": 0.1 if quick else 0.3, "how": "A stand-in.", "seconds": 2.5, "tried": [1]}


def less(quick: bool) -> dict[str, Any]:
    return swift(quick) | {"note": "10 only"}


def broken(quick: bool) -> dict[str, Any]:
    raise OSError("the disk is gone")


def endless(quick: bool) -> dict[str, Any]:
    return {"ratio": float("inf"), "how": "divided by nothing"}


def row(function: str, *, most: bool = True, goal: float = 0.2, key: str = "") -> Row:
    return Row(key=key or function, what=f"a | {function}", against="nothing", goal=goal,
               most=most, place=f"test_lab_bench:{function}")


@given(ratio=st.floats(0, 1e6), goal=st.floats(1e-3, 1e6))
def test_a_goal_is_met_from_its_own_side(ratio: float, goal: float) -> None:
    assert row("swift", goal=goal).met(ratio) == (ratio <= goal)
    assert row("swift", goal=goal, most=False).met(ratio) == (ratio >= goal)


def test_no_number_meets_a_goal() -> None:
    assert not row("swift").met(float("nan"))
    assert not row("swift", most=False).met(float("nan"))


def test_a_row_has_its_ratio_its_goal_and_how_it_was_measured() -> None:
    assert measure(row("swift"), True) == {
        "key": "swift", "what": "a | swift", "against": "nothing", "ratio": 0.1, "goal": "≤ 0.2",
        "met": True, "unit": "", "how": "A stand-in.", "details": {"seconds": 2.5, "tried": [1]}}
    assert measure(row("swift"), False)["met"] is False
    assert measure(row("less"), True)["what"] == "a | less (10 only)"
    assert measure(row("swift", most=False), False)["met"] is True


@pytest.mark.parametrize(("function", "why"), [
    ("broken", "the disk is gone"), ("endless", "inf"), ("nowhere", "nowhere")])
def test_what_cannot_be_measured_says_why_and_the_others_go_on(function: str, why: str) -> None:
    said: list[str] = []
    first, second = measure_all([row(function), row("swift")], True, said.append)
    assert first["ratio"] is first["met"] is None
    assert why in first["why"]
    assert second["ratio"] == 0.1
    assert any("not measured" in line for line in said)


def test_every_row_of_the_issue_is_there_once_with_its_goal() -> None:
    goals = {each.key: each.words() for each in ROWS}
    assert len(goals) == len(ROWS)
    assert goals == {
        "tor-protocol": "≤ 1/5", "tor-overhead": "≤ 2", "desk-echo": "≥ 0.5",
        "flower-updates": "≥ 10", "flower-time-10": "≤ 1/5", "flower-time-50": "≤ 1/5",
        "desk-cpu": "≤ 1.3", "desk-memory": "≤ 100 KB", "hashes": "≥ 10", "noise": "≥ 100",
        "roni": "≤ 3"}
    assert all(each.goal == 0.2 for each in ROWS if each.goal_words)


@pytest.mark.parametrize("each", ROWS, ids=lambda each: each.key)
def test_every_row_has_a_function_that_measures_it(each: Row) -> None:
    module, function = each.place.split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_small_and_large_ratios_are_readable() -> None:
    words = [ratio_words({"ratio": ratio, "unit": unit}) for ratio, unit in
             ((0.1234, ""), (2.0, ""), (1234.5, ""), (71.26, "KB"))]
    assert words == ["0.123", "2", "1,234", "71.3 KB"]


# -- the command -----------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, rows: tuple[Row, ...], *words: str) -> Any:
    monkeypatch.setattr(bench, "ROWS", rows)
    return CliRunner().invoke(bench.main, words)


def test_json_is_one_object_with_rows_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    came = run(monkeypatch, (row("swift"), row("swift", key="other", goal=0.01)), "--json",
               "--quick")
    assert came.exit_code == 0
    told = json.loads(came.stdout)
    assert [(each["key"], each["met"]) for each in told["rows"]] == [
        ("swift", True), ("other", False)]
    assert {"what", "against", "ratio", "goal", "met"} <= told["rows"][0].keys()
    assert told["machine"]["cores"] >= 1
    assert told["command"] == "scripts/bench --quick"
    assert {"version", "commit", "code", "tor", "load_at_begin", "quick"} <= told.keys()


def test_only_measures_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (row("broken"), row("swift"))
    came = run(monkeypatch, rows, "--json", "--only", "swift")
    assert came.exit_code == 0
    assert [each["key"] for each in json.loads(came.stdout)["rows"]] == ["swift"]
    came = run(monkeypatch, rows, "--only", "nothing")
    assert came.exit_code != 0
    assert "broken, swift" in came.stderr


def test_a_missed_goal_is_a_failure_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (row("swift", goal=0.01),)
    assert run(monkeypatch, rows).exit_code == 0
    assert run(monkeypatch, rows, "--strict").exit_code == 1
    assert run(monkeypatch, (row("swift"),), "--strict", "--quick").exit_code == 0


def test_a_row_that_was_not_measured_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    came = run(monkeypatch, (row("broken"), row("swift")))
    assert came.exit_code == 1
    assert "the disk is gone" in came.stderr
    assert "0.3" in came.stdout


def test_files_are_written_as_json_and_markdown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = (row("swift"), row("broken"))
    run(monkeypatch, rows, "--quick", "--output", str(tmp_path / "new"),
        "--markdown", str(tmp_path / "alone.md"))
    report = json.loads((tmp_path / "new" / "bench.json").read_text())
    page = (tmp_path / "alone.md").read_text()
    assert page == (tmp_path / "new" / "bench.md").read_text() == for_markdown(report)
    assert "| a \\| swift | nothing | 0.1 | ≤ 0.2 | yes |" in page
    assert "| a \\| broken | nothing | not measured | ≤ 0.2 | – |" in page
    assert "A stand-in." in page
    assert "- seconds: 2.5" in page
    assert "the disk is gone" in page
    assert "scripts/bench --quick" in page
    assert f"code {report['code']}" in page


# -- rows ------------------------------------------------------------------------------------


def test_a_small_round_is_measured() -> None:
    told = roni.compare(40, 400, 6, 3)
    assert told["ratio"] == told["round_ms"] / told["product_ms"] > 0
    assert 0 < told["ratio_lower_quartile"] <= told["ratio_upper_quartile"]


@given(ratios=st.lists(st.floats(1e-3, 1e3), min_size=2))
def test_half_of_the_ratios_are_within_the_quartiles(ratios: list[float]) -> None:
    low, high = spread(ratios).values()
    assert min(ratios) <= low <= high <= max(ratios)
    assert sum(low <= ratio <= high for ratio in ratios) >= len(ratios) / 2 - 1


def test_our_draws_are_timed_and_held_against_pools() -> None:
    once, fresh = noise.draws(1)
    assert len(once) == len(fresh) == 1
    assert once[0] > 0
    assert fresh[0] > 0
    pools = [
        {"name": "paper", "seconds": 2.0, "usable": 1000.0, "autocorrelation": 100.0},
        {"name": "tuned", "seconds": 1.0, "usable": 4000.0, "autocorrelation": 50.0}]
    told = noise.compare(1e-5, 1e-4, pools)
    # 2 ms a draw over 10 microseconds; the tuned one a quarter of a millisecond.
    assert told["ratio"] == pytest.approx(200)
    assert told["ratio_freshly_keyed"] == pytest.approx(20)
    assert told["ratio_to_best_emcee"] == pytest.approx(25)
    assert told["best_emcee"] == "tuned"


def test_the_target_counts_only_where_the_model_stays_there() -> None:
    from lab.bench.flower import reached
    from lab.bench.flower_runs import Course

    rounds = Course([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], np.zeros((6, 2)), [10, 20, 30, 40, 50, 60])
    assert rounds.rate == 10.0
    assert reached(rounds, [0.1, 0.3, 0.2, 0.2, 0.1, 0.1], 0.2, 10) == 3.0
    assert reached(rounds, [0.1, 0.3, 0.2, 0.2, 0.1, 0.9], 0.2, 10) is None
    # Three models of one update each are no three rounds.
    updates = Course([0.1 * i for i in range(40)], np.zeros((40, 2)), list(range(1, 41)))
    swings = [0.1] * 5 + [0.3] + [0.1] * 34
    assert reached(updates, swings, 0.2, 10) == pytest.approx(0.6)
    assert reached(updates, swings[:35], 0.2, 10) is None


def test_programs_for_the_other_environment_import_nothing_of_ours() -> None:
    import ast

    from lab.bench.contestants import HERE

    for name in ("flower_server.py", "flower_clients.py", "emcee_pool.py"):
        tree = ast.parse((HERE / name).read_text())
        found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                 for alias in node.names}
        found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        rooms = {module.split(".")[0] for module in found}
        assert not rooms & {"accord", "broker", "client", "curator", "lab", "tormentor"}
        assert rooms - {"flwr", "emcee", "numpy"} <= set(sys.stdlib_module_names)


def test_a_cell_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "find", lambda name: SimpleNamespace(cells=lambda q, s: []))
    with pytest.raises(Failed, match="no cell"):
        network._trainings.__wrapped__(True)


def race(cell: dict[str, Any], seconds: float | None) -> Finished:
    """What table2 gives for a cell, as its own report reads it."""
    told = Finished(cell, {
        "arrived": seconds, "joining": 12.5, "target": 0.2, "optimum": 0.195, "updates": 9,
        "rate": 4.5, "releases": 90.0 * cell["local_steps"], "epsilon_total": 0.01, "strikes": 0,
        "ledger": 95.0, "curve": [[0.0, 0, 0.3]],
        "latency": {"median_ms": 720.1, "sd_ms": 180.0, "pings": 200}})
    assert {"arrived", *network._FIGURES} <= table2.measures(told).keys()
    return told


def sides(monkeypatch: pytest.MonkeyPatch, quick: bool, paper: float | None, ours: float | None,
          ) -> list[dict[str, Any]]:
    """Both rows of races of the real experiment's cells that took so long; the cells."""
    asked: list[dict[str, Any]] = []

    @asynccontextmanager
    async def world(cells: Any, data: Any, directory: Path, say: Any) -> AsyncIterator[Any]:
        asked.extend(cells)

        async def run(cell: dict[str, Any]) -> dict[str, Any]:
            seconds = paper if cell["protocol"] == "paper" else ours
            if seconds is not None:
                # The middle one of three is it.
                seconds += cell["seed"] - (0 if quick else 1)
            return race(cell, seconds if cell["tor"] or seconds is None else seconds / 2).result

        yield run

    monkeypatch.setattr(table2, "open_world", world)
    monkeypatch.setattr(network.credit, "find", lambda data: None)
    found = network._trainings.__wrapped__(quick)
    monkeypatch.setattr(network, "_trainings", lambda quick: found)
    return asked


@pytest.mark.slow
def test_the_network_rows_read_the_cells_of_table2(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = sides(monkeypatch, False, 50.0, 10.0)
    assert [(c["clients"], c["protocol"], c["tor"], c["seed"]) for c in asked] == [
        (200, protocol, tor, seed) for seed in range(3)
        for protocol, tor in (("ours", True), ("paper", True), ("ours", False))]
    told = network.measure_protocol(False)
    assert told["ratio"] == pytest.approx(0.2)
    assert told["our_all_seconds"] == [9.0, 10.0, 11.0]
    assert not told["other_is_a_bound"] and not told["note"] and "bound" not in told["how"]
    assert told["our_releases"] > told["other_releases"] == 90.0
    assert "against 90" in told["how"] and told["data"] in told["how"]
    assert network.measure_overhead(False)["ratio"] == pytest.approx(2.0)


@pytest.mark.slow
def test_what_a_failed_race_logged_is_told_as_its_log_is_gone(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def world(cells: Any, data: Any, directory: Path, say: Any) -> AsyncIterator[Any]:
        (directory / "processes.log").write_text("first\nImportError: no module\n")
        raise Failed("a process ended")
        yield

    monkeypatch.setattr(table2, "open_world", world)
    monkeypatch.setattr(network.credit, "find", lambda data: None)
    with pytest.raises(Failed, match=r"(?s)a process ended; .*ImportError: no module$"):
        network._trainings.__wrapped__(True)


@pytest.mark.slow
def test_a_contestant_that_did_not_arrive_gives_a_bound_and_we_give_none(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = sides(monkeypatch, True, None, 12.0)
    assert {cell["clients"] for cell in asked} == {10} and len(asked) == 3
    told = network.measure_protocol(True)
    assert told["ratio"] == pytest.approx(12.0 / table2.QUICK_LIMIT)
    assert told["other_is_a_bound"] and "the true one is less" in told["how"]
    assert told["note"] == "10 clients only; a bound: the true ratio is less"
    monkeypatch.undo()
    sides(monkeypatch, True, 50.0, None)
    with pytest.raises(Failed, match="not reached by ours"):
        network.measure_protocol(True)
    with pytest.raises(Failed, match="not reached by ours"):
        network.measure_overhead(True)


@pytest.mark.slow
def test_we_train_to_the_target_without_tor() -> None:
    from lab.bench import ours

    course = ours.run(ours.Plan(clients=4, seconds=20.0, updates=40, local_steps=5, step=0.05,
                                batch=20, epsilon=1.0, share=500))
    assert course.made[-1] >= 40
    assert course.ends == sorted(course.ends)
    assert len(course.models) == len(course.ends)
    assert np.abs(course.models[-1]).max() > 0
