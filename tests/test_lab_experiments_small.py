"""Each experiment in a small form, from a file to what is published: the command, a process of its
own, the data, tables, pictures, series."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import tormentor
from lab.experiments.frame import EXPERIMENTS, Shared, find

pytestmark = pytest.mark.slow

SMALL = {
    "fig5": ("sklearn:breast_cancer", ["figure5-error", "figure5-loss"],
             "batch = [10]\nepsilon = [5]\nstep = [1.0]"),
    "fig8": ("sklearn:breast_cancer", ["figure8"],
             'victim = ["flipped"]\nsends = ["zeros"]\nepsilon = [inf]'),
    "fig9": ("sklearn:digits", ["figure9"],
             'victim = ["flipped"]\nsends = ["honest"]\nbystanders = [1]\nepsilon = [5]'),
    "fig10": ("sklearn:digits", ["figure10"], "share = [0.5]"),
    "fig11": ("sklearn:digits", ["figure11"], "threshold = [0.02]"),
    "poison": ("made", [], 'part = ["cost"]\ndefence = ["sequential"]\nepsilon = [5]'),
    "utility": ("made", ["utility-alone-500"],
                'part = ["alone"]\nbatch = [500]\nupdates = [20]\nbudget = [1]'),
}
"""Data, pictures, and cells: one of each name's."""


def test_every_experiment_is_among_them() -> None:
    # Those that share a world of real tors have tests of their own; so has the search for step
    # lengths, of which one cell takes minutes.
    assert set(SMALL) | {"table2-steps"} == {
        name for name in EXPERIMENTS if not isinstance(find(name), Shared)}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_one_cell_from_end_to_end(name: str, tmp_path: Path) -> None:
    data, pictures, cells = SMALL[name]
    file, output, docs = tmp_path / "small.toml", tmp_path / "out", tmp_path / "docs"
    file.write_text(f'experiment = "{name}"\nquick = true\nseeds = 1\njobs = 1\ndata = "{data}"\n'
                    f"[cells]\n{cells}\n")
    result = CliRunner().invoke(tormentor.main, [
        "experiment", str(file), "--output", str(output), "--docs", str(docs)])
    assert result.exit_code == 0, result.output
    assert len((output / "cells.jsonl").read_text().splitlines()) == 1
    rows = list(csv.reader((output / "series.csv").open()))
    assert len(rows) > 5 and {len(row) for row in rows} == {len(rows[0])}
    summary = json.loads((output / "summary.json").read_text())
    (setting,) = summary["median_least_greatest"]
    assert setting["seeds"] == 1 and len(setting["figures"]) >= 5
    assert any(figure[0] not in (None, 0) for figure in setting["figures"].values())
    page = (docs / f"{name}.md").read_text()
    assert page.count("\n| ---") >= 1 and "This is the quick form" in page
    assert {path.name for path in docs.iterdir()} == {f"{name}.md", f"{name}.json"} | {
        f"{name}-{picture}.{kind}" for picture in pictures for kind in ("png", "svg")}
    assert max(path.stat().st_size for path in docs.iterdir()) < 200_000
