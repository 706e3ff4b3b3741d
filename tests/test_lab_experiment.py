"""The frame of experiments: resumed after a cut, and honest about what it counted."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tormentor
from accord.problems import Problem
from lab.experiments import frame, poison, poison_report
from lab.experiments.frame import Finished, Notebook, key_of, run_all
from lab.experiments.statistics import at_most, mean, upper_bound

TOY = '''
import os, time
from pathlib import Path
NAME, WORDS = "toy", "Squares."
PLACE = Path(__file__).parent

def cells(quick, seeds):
    return [{"part": "even" if n % 2 == 0 else "odd", "number": n} for n in range(seeds or 3)]

def run(cell, data):
    (PLACE / f"ran{cell['number']}-{os.getpid()}").touch()
    if cell["number"] == 7:
        raise ValueError("seven")
    if cell["number"] == 9:
        time.sleep(60)
    return {"square": cell["number"] ** 2}

def tables(finished):
    return [f"The sum is {sum(f.result['square'] for f in finished)}."]

def plots(finished, directory):
    return []
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy_experiment.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(frame.EXPERIMENTS, "toy", "toy_experiment")
    monkeypatch.delenv("TORMENTOR_CREDIT_DATA", raising=False)
    return tmp_path


def ran(place: Path) -> list[int]:
    return sorted(int(path.name[3:].split("-")[0]) for path in place.glob("ran*"))


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(tormentor.main, ["experiment", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.slow
def test_cells_are_kept_and_not_run_again(toy: Path) -> None:
    said: list[tuple[int, int]] = []

    def run(numbers: list[int]) -> list[Finished]:
        cells = [{"number": n} for n in numbers]
        return asyncio.run(run_all("toy", cells, None, "d", Notebook(toy / "cells.jsonl"), 2,
                                   lambda *counts: said.append(counts)))

    assert [f.result["square"] for f in run([2, 1, 2])] == [4, 1, 4]
    assert said == [(0, 2), (1, 2), (2, 2)]
    assert ran(toy) == [1, 2]
    assert [f.result["square"] for f in run([3, 2, 1])] == [9, 4, 1]
    assert ran(toy) == [1, 2, 3]
    with pytest.raises(ValueError, match="seven"):
        run([7, 1])
    assert len((toy / "cells.jsonl").read_text().splitlines()) == 3


def test_stopped_it_ends_at_once_and_keeps_what_is_finished(toy: Path) -> None:
    async def stop_after_one() -> None:
        one = asyncio.Event()
        work = asyncio.create_task(run_all(
            "toy", [{"number": 9}, {"number": 1}], None, "d", Notebook(toy / "cells.jsonl"), 2,
            lambda done, total: one.set() if done else None))
        await asyncio.wait_for(one.wait(), 30)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    began = time.monotonic()
    asyncio.run(stop_after_one())
    assert time.monotonic() - began < 30
    assert not multiprocessing.active_children()
    assert json.loads((toy / "cells.jsonl").read_text())["result"]["square"] == 1


@pytest.mark.slow
def test_the_command_writes_results_and_goes_on(toy: Path) -> None:
    output = toy / "out"
    assert "The sum is 5." in invoke("toy", "--output", output, "--jobs", 1)
    told = json.loads((output / "results.json").read_text())
    assert [c["result"]["square"] for c in told["cells"]] == [0, 1, 4]
    assert told["machine"]["cores"] >= 1
    assert told["version"]
    assert "made data" in told["data"]
    assert "made data" in (output / "tables.txt").read_text()
    told = json.loads(invoke("toy", "--output", output, "--seeds", 3, "--json"))
    assert told["experiment"] == "toy"
    assert ran(toy) == [0, 1, 2]
    told = json.loads(invoke("toy", "--output", output, "--part", "odd", "--json"))
    assert [c["cell"]["number"] for c in told["cells"]] == [1]
    result = CliRunner().invoke(tormentor.main, ["experiment", "toy", "--part", "none"])
    assert result.exit_code == 2
    assert "is not one of: even, odd" in result.output


def test_the_list_and_unknown_names() -> None:
    assert "poison" in invoke()
    assert json.loads(invoke("--json"))["poison"] == poison.WORDS
    result = CliRunner().invoke(tormentor.main, ["experiment", "nothing"])
    assert result.exit_code == 2
    assert "there are poison" in result.output


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    notebook = Notebook(path)
    notebook.keep("a", {"n": 1}, {"x": 1})
    notebook.keep("b", {"n": 2}, {"x": 2})
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    notebook = Notebook(path)
    assert notebook.get("a") == {"x": 1}
    assert notebook.get("b") is None
    notebook.keep("b", {"n": 2}, {"x": 2})
    assert path.read_bytes() == whole
    # Cut just before the line's end: whole, but the next one must not be written behind it.
    path.write_bytes(whole[:-1])
    assert Notebook(path).get("b") == {"x": 2}
    assert path.read_bytes() == whole


def test_a_notebook_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Problem):
        Notebook(tmp_path / "none" / "cells.jsonl").keep("a", {}, {})


def test_keys_are_of_content() -> None:
    assert key_of("x", {"a": 1, "b": None}, "d") == key_of("x", {"b": None, "a": 1}, "d")
    assert len({key_of("x", {"a": 1}, "d"), key_of("y", {"a": 1}, "d"),
                key_of("x", {"a": 2}, "d"), key_of("x", {"a": 1}, "e")}) == 4
    with pytest.raises(ValueError, match="JSON"):
        key_of("x", {"a": float("inf")}, "d")


def test_clopper_and_pearson() -> None:
    assert upper_bound(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300))
    # The quantile 0.95 of Beta(4, 47), by scipy.stats.
    assert upper_bound(3, 50) == pytest.approx(0.14783718, abs=1e-7)
    assert upper_bound(5, 5) == 1.0
    assert at_most(1, 2, 0.5) == pytest.approx(0.75)
    assert at_most(0, 5, 0.0) == 1.0
    with pytest.raises(ValueError, match="3 of 2"):
        upper_bound(3, 2)
    assert mean([1.0, 2.0]) == 1.5


@pytest.mark.parametrize("quick", [True, False])
def test_cells_of_poison_are_told_apart(quick: bool) -> None:
    cells = poison.cells(quick, None)
    keys = {key_of("poison", cell, "d") for cell in cells}
    assert len(keys) == len(cells)
    assert {cell["part"] for cell in cells} == {
        "figures", "wide", "false-positives", "adaptive", "cost", "live"}
    assert len(poison.cells(quick, 2)) != len(poison.cells(quick, 3))


def test_goals() -> None:
    assert poison.goal("label-flip", 0.75, None) == 0.005
    assert poison.goal("noise", 0.5, 1.0) == 0.01
    assert poison.goal("sign-flip", 0.875, 5.0) == 0.01
    assert poison.goal("sign-flip", 0.875, 1.0) == 0.02
    assert poison.goal("a-little", 0.5, None) == 0.01


def fabricate(cell: dict[str, Any]) -> dict[str, Any]:
    """A result of nothing: 20 % error, and 30 % where attackers meet no test."""
    if cell["part"] == "live":
        return {"live_error": 0.2, "simulated_errors": [0.2], "within": True} | {
            f"{kind}_{name}": 1 for kind in ("live", "simulated")
            for name in ("honest_updates", "attackers_struck", "honest_struck")}
    lost = cell.get("defence") == "none" and cell.get("attack") != "none"
    return {"error": 0.3 if lost else 0.2, "validation_alone": 0.25, "optimum": 0.19,
            "curve": [[0.0, 0.5, 0.7], [1.0, 0.19, 0.5]], "honest": 4, "honest_struck": 0,
            "honest_evicted": 0, "attackers": 4, "attackers_struck": 3, "struck_after": [5, 7, 9],
            "honest_updates": 100, "applied": 100, "broker_seconds": 0.01}


@pytest.mark.slow
def test_tables_and_plots_of_poison(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    finished = [Finished(cell, fabricate(cell)) for cell in poison.cells(True, 2)]
    page = io.StringIO()
    Console(file=page, width=200).print(*poison_report.tables(finished))
    text = page.getvalue()
    assert "20.0 (+0.00 +0.00)+" in text
    assert "30.0 (+10.00 +10.00) !" in text
    assert "37.5" not in text
    assert "31.2" in text  # none of 8 clients
    assert {path.name for path in poison_report.plots(finished, tmp_path)} == {
        "figure10.png", "figure11.png"}
    assert poison_report.tables([]) == []
    assert poison_report.plots([], tmp_path) == []
