"""The frame of experiments: resumed after a cut, and honest about what it counted."""

from __future__ import annotations

import asyncio
import fcntl
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tormentor
from accord.problems import Problem
from lab.experiment_cli import Lines, duration
from lab.experiments import origin, poison, poison_report
from lab.experiments.frame import Finished, Notebook, find, key_of, run_all, run_one
from lab.experiments.names import EXPERIMENTS, Named
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
    from lab.experiments import drawing
    picture, axes = drawing.begin().subplots()
    axes.plot([f.cell["number"] for f in finished])
    return drawing.save(picture, directory, "squares")

def series(finished):
    return [["number", "square"], *([f.cell["number"], f.result["square"]] for f in finished)]

def least_rows(cell):
    return 20_000
'''
SHARED = TOY.replace("def run(", "def run_it(") + '''
import asyncio, contextlib
open_now, seen = 0, []

def group(cell):
    return "odd" if cell["number"] % 2 else None

@contextlib.asynccontextmanager
async def open_world(cells, data, directory, say):
    say(f"a world for {len(cells)}")
    (PLACE / "world").write_text("open")

    async def run(cell):
        global open_now
        open_now += 1
        seen.append((cell["number"], open_now))
        try:
            await asyncio.sleep(0.05)
            return run_it(cell, data)
        finally:
            open_now -= 1

    try:
        yield run
    finally:
        (PLACE / "world").write_text("closed")
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("toy", TOY), ("shared", SHARED)):
        (tmp_path / f"{name}_experiment.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"{name}_experiment", raising=False)
        monkeypatch.setitem(EXPERIMENTS, name, Named(
            module=f"{name}_experiment", shows="nothing", quick="1 s", full="1 s"))
    monkeypatch.setitem(EXPERIMENTS, "odd", Named(
        module="toy_experiment", shows="nothing", quick="1 s", full="1 s", only={"number": (1,)}))
    monkeypatch.syspath_prepend(tmp_path)
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
        return asyncio.run(run_all(find("toy"), cells, None, "d", Notebook(toy / "cells.jsonl"), 2,
                                   lambda *counts: said.append(counts)))

    assert [f.result["square"] for f in run([2, 1, 2])] == [4, 1, 4]
    assert said == [(0, 2), (1, 2), (2, 2)]
    assert ran(toy) == [1, 2]
    assert [f.result["square"] for f in run([3, 2, 1])] == [9, 4, 1]
    assert ran(toy) == [1, 2, 3]
    with pytest.raises(ValueError, match="seven"):
        run([7, 1])
    assert len((toy / "cells.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_stopped_it_ends_at_once_and_keeps_what_is_finished(toy: Path) -> None:
    async def stop_after_one() -> None:
        one = asyncio.Event()
        cells = [{"number": 9}, {"number": 1}]
        work = asyncio.create_task(run_all(
            find("toy"), cells, None, "d", Notebook(toy / "cells.jsonl"), 2,
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
    assert (output / "series.csv").read_text() == "number,square\n0,0\n1,1\n2,4\n"
    assert {path.name for path in output.iterdir()} == {
        "cells.jsonl", "experiment.toml", "results.json", "summary.json", "series.csv", "tables.md",
        "tables.txt", "squares.png", "squares.svg"}
    summary = json.loads((output / "summary.json").read_text())
    assert [each["figures"]["square"] for each in summary["median_least_greatest"]] == [
        [0, 0, 0], [1, 1, 1], [4, 4, 4]]
    assert summary["code"] == origin.code() and summary["cells_of_other_code"] == 0
    told = json.loads(invoke("toy", "--output", output, "--seeds", 3, "--json"))
    assert told["experiment"] == "toy"
    assert ran(toy) == [0, 1, 2]
    told = json.loads(invoke("toy", "--output", output, "--part", "odd", "--json"))
    assert [c["cell"]["number"] for c in told["cells"]] == [1]
    told = json.loads(invoke("odd", "--output", output, "--json"))
    assert [c["cell"]["number"] for c in told["cells"]] == [1]
    assert ran(toy) == [0, 1, 2]
    # What was written down makes the same again, elsewhere.
    again = toy / "again.toml"
    again.write_text((output / "experiment.toml").read_text())
    invoke(again, "--output", toy / "other")
    assert ran(toy) == [0, 1, 1, 2]
    assert json.loads((toy / "other" / "results.json").read_text())["experiment"] == "odd"
    result = CliRunner().invoke(tormentor.main, ["experiment", "toy", "--part", "none"])
    assert result.exit_code == 2
    assert "is not one of: even, odd" in result.output


@pytest.mark.slow
def test_a_file_says_which_cells_and_the_command_line_wins(toy: Path) -> None:
    file = toy / "mine.toml"
    file.write_text('experiment = "toy"\nseeds = 2\noutput = "never"\n[cells]\nnumber = [1, 4]\n')
    result = CliRunner().invoke(tormentor.main, ["experiment", str(file)])
    assert result.exit_code == 2
    assert "[cells] number is never 4, but 0, 1." in result.output
    docs = toy / "docs"
    told = json.loads(invoke(file, "--seeds", 5, "--output", toy / "out", "--docs", docs, "--json"))
    assert [c["cell"]["number"] for c in told["cells"]] == [1, 4]
    assert {path.name for path in docs.iterdir()} == {
        "toy.json", "toy.md", "toy-squares.png", "toy-squares.svg"}
    page = (docs / "toy.md").read_text()
    assert "![squares](toy-squares.png) ([SVG](toy-squares.svg))" in page
    assert "number = [1, 4]" in page and "seeds = 5" in page
    # Nobody who reads the documentation is told our directories.
    assert not any(str(toy).encode() in path.read_bytes() for path in docs.iterdir())


@pytest.mark.slow
def test_other_code_is_told_and_fresh_begins_anew(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["experiment", "toy", "--seeds", "2", "--jobs", "1", "--output", str(toy / "out")]
    assert "other code" not in CliRunner().invoke(tormentor.main, arguments).stderr
    monkeypatch.setattr(origin, "code", lambda: "another")
    assert "2 of the cells were finished by other code" in CliRunner().invoke(
        tormentor.main, arguments).stderr
    assert json.loads((toy / "out" / "summary.json").read_text())["cells_of_other_code"] == 2
    assert len(list(toy.glob("ran0-*"))) == 1
    told = CliRunner().invoke(tormentor.main, [*arguments, "--fresh"]).stderr
    assert "put away" in told and "other code" not in told
    assert len(list(toy.glob("ran0-*"))) == 2
    assert len((toy / "out" / "cells.old.jsonl").read_text().splitlines()) == 2
    assert json.loads((toy / "out" / "summary.json").read_text())["cells_of_other_code"] == 0


@pytest.mark.slow
def test_too_little_data_is_told_before_anything_is_run(toy: Path) -> None:
    result = CliRunner().invoke(tormentor.main, [
        "experiment", "toy", "--data", "sklearn:breast_cancer", "--output", str(toy / "out")])
    assert result.exit_code == 2
    assert "569 in sklearn:breast_cancer, where 20,000 are needed" in result.output
    assert not (toy / "out").exists()


def test_cells_that_share_a_world(toy: Path) -> None:
    module: Any = find("shared")
    said: list[str] = []

    def run(numbers: list[int]) -> list[Finished]:
        return asyncio.run(run_all(
            module, [{"number": n} for n in numbers], None, "d", Notebook(toy / "cells.jsonl"), 2,
            lambda done, total: said.append(f"{done}/{total}"), said.append))

    assert [f.result["square"] for f in run([1, 2, 3, 4])] == [1, 4, 9, 16]
    # Those of one group at the same time, where the first of them is; all others alone.
    assert sorted(module.seen[:2]) == [(1, 1), (3, 2)] and module.seen[2:] == [(2, 1), (4, 1)]
    assert said == ["0/4", "a world for 4", "1/4", "2/4", "3/4", "4/4"]
    assert (toy / "world").read_text() == "closed"
    said.clear()
    with pytest.raises(ValueError, match="seven"):
        run([4, 6, 7, 8])
    assert said == ["1/4", "a world for 3", "2/4"]
    assert (toy / "world").read_text() == "closed"
    (toy / "world").unlink()
    assert [f.result["square"] for f in run([6, 1])] == [36, 1]
    assert not (toy / "world").exists()
    told = asyncio.run(run_one(module, {"number": 5}, None, toy))
    assert told["square"] == 25 and told["wall_seconds"] > 0


@pytest.mark.slow
def test_two_runs_do_not_write_into_one_directory(toy: Path) -> None:
    output = toy / "out"
    output.mkdir()
    handle = os.open(output, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    arguments = ["experiment", "toy", "--seeds", "1", "--jobs", "1", "--output", str(output)]
    result = CliRunner().invoke(tormentor.main, arguments)
    assert "Another process is using" in result.stderr and not ran(toy)
    os.close(handle)
    for _ in range(2):
        assert CliRunner().invoke(tormentor.main, arguments).exit_code == 0
    assert ran(toy) == [0]


@pytest.mark.slow
def test_one_cell_without_a_notebook(toy: Path) -> None:
    assert asyncio.run(run_one(find("toy"), {"number": 5}, None, toy))["square"] == 25
    assert not (toy / "cells.jsonl").exists()


def test_lines_say_how_long_it_will_take() -> None:
    now, said = 100.0, []
    lines = Lines("toy", lambda: now, said.append)
    lines.tell(20, 100)
    for done, seconds in ((21, 10.0), (29, 50.0), (30, 100.0), (31, 159.0), (32, 161.0)):
        now = 100.0 + seconds
        lines.tell(done, 100)
    lines.tell(100, 100)
    assert said == ["toy: 20 of 100 cells", "toy: 30 of 100 cells, about 12 min left",
                    "toy: 32 of 100 cells, about 15 min left", "toy: 100 of 100 cells"]
    assert [duration(s) for s in (89.4, 90, 5399, 5400)] == ["89 s", "2 min", "90 min", "1.5 h"]


def test_the_list_and_unknown_names() -> None:
    assert "figure 10" in invoke("list") and "poison" in invoke()
    told = json.loads(invoke("list", "--json"))
    assert told["poison"]["words"] == poison.WORDS
    assert {"fig5", "fig8", "fig9", "fig10", "fig11"} <= told.keys()
    assert all(each["quick"] and each["full"] for each in told.values())
    result = CliRunner().invoke(tormentor.main, ["experiment", "nothing"])
    assert result.exit_code == 2
    assert "there are fig5" in result.output


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
    # Earlier versions did not say which code it was.
    path.write_text('{"key": "a", "cell": {}, "result": {"x": 1}}\n')
    assert Notebook(path).foreign(["a", "b", "a"]) == 1


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
        "figure10.png", "figure11.png", "figure10.svg", "figure11.svg"}
    rows = list(poison.series(finished))
    assert rows[0][-3:] == ["seconds", "error", "loss"] and rows[1][-3:] == [0.0, 0.5, 0.7]
    assert poison.measures(finished[0])["settles_seconds"] == 1.0
    assert poison_report.tables([]) == []
    assert poison_report.plots([], tmp_path) == []
