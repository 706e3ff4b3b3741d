"""What a run leaves: its configuration, raw series, figures, tables and pictures.

========================  =====================================================================
``experiment.toml``       the configuration as run; ``tormentor experiment`` takes it again
``cells.jsonl``           finished cells, as they came (:class:`lab.experiments.frame.Notebook`)
``results.json``          all cells with their results
``series.csv``            raw curves, one line for each point, where the experiment has any
``summary.json``          medians and spread over the seeds, and where they come from
``tables.md, tables.txt``  for people; the first with the pictures in it
``*.png, *.svg``          pictures
========================  =====================================================================

Of a run on machines elsewhere (:mod:`lab.field`) there are besides ``inventory.json``, where they
are; ``machines.json``, what they are; ``latency.json``, round trips; ``ansible.log``; and ``logs``,
what was said in each race on each machine.

For documentation, :func:`publish` copies what is small.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console, Group, RenderableType

from accord.files import write_whole
from accord.problems import DISK, Problem
from lab import credit
from lab.experiments import markdown, origin
from lab.experiments.figures import summary
from lab.experiments.frame import EXPERIMENTS, Experiment, Finished, HasSeries, Shared
from lab.experiments.plan import Plan, written

WIDTH: Final = 200
"""Columns of ``tables.txt``."""


@dataclass(frozen=True, slots=True)
class Results:
    """A run that is over.

    Attributes:
        experiment: whose.
        plan: what was to be run.
        finished: all its cells.
        table: the data.
        foreign: how many of the cells other code than this has computed.
        place: the machines that it ran on (:attr:`lab.field.inventory.Inventory.place`); None for
            this one.
    """

    experiment: Experiment
    plan: Plan
    finished: Sequence[Finished]
    table: credit.Table
    foreign: int = 0
    place: dict[str, Any] | None = None

    def origin(self) -> dict[str, Any]:
        """Where the figures come from; ``commit`` is None outside of a checkout, and ``tor``
        where no tor ran."""
        return {
            "experiment": self.plan.experiment,
            "command": command(anywhere(self.plan), "tormentor experiment" if self.place is None
                               else "deploy/run"),
            "plan": written(anywhere(self.plan)),
            "data": self.table.words,
            "data_rows": len(self.table.labels),
            "data_digest": self.table.digest,
            "quick": self.plan.quick,
            # Which tors ran elsewhere is in machines.json.
            **origin.circumstances(tor=isinstance(self.experiment, Shared) and self.place is None),
            **({} if self.place is None else {"machines": self.place}),
            "cells_of_other_code": self.foreign,
            "cell_seconds": round(sum(
                float(f.result.get("wall_seconds", 0.0)) for f in self.finished), 1),
        }


def command(plan: Plan, program: str = "tormentor experiment") -> str:
    """The command that runs a plan. Which cells are meant only a file can say."""
    words = [program, "experiment.toml" if plan.cells else plan.experiment]
    if not plan.cells:
        words += ["--quick"] * plan.quick
        words += [] if plan.seeds is None else [f"--seeds {plan.seeds}"]
        words += [f"--part {part}" for part in plan.parts]
        words += [] if plan.jobs is None else [f"--jobs {plan.jobs}"]
        words += [] if plan.data is None else [f"--data {plan.data}"]
    return " ".join(words)


def anywhere(plan: Plan) -> Plan:
    """A plan without directories: those are of one machine only, and are nobody else's business."""
    data = plan.data
    if data is not None and data != "made" and credit.is_file(Path(data)):
        data = Path(data).name
    return msgspec.structs.replace(plan, data=data, output=None)


def tables(results: Results) -> list[RenderableType]:
    """What a person sees."""
    return [f"Data: {results.table.words}.", *results.experiment.tables(results.finished)]


def write(results: Results, directory: Path) -> list[Path]:
    """Write everything but the notebook, each file whole; what was written.

    Raises:
        Problem: ``DISK``.
    """
    facts = results.origin()
    finished = results.finished
    pictures = results.experiment.plots(finished, directory)
    shown = tables(results)
    texts = {
        "experiment.toml": written(results.plan, _comments(facts)),
        "results.json": json.dumps(
            {**facts, "cells": [{"cell": f.cell, "result": f.result} for f in finished]},
            indent=1, allow_nan=False) + "\n",
        "summary.json": _summary(results, facts),
        "tables.md": _page(results, facts, shown, pictures),
        "tables.txt": _text(shown),
    }
    if isinstance(results.experiment, HasSeries):
        texts["series.csv"] = _csv(results.experiment.series(finished))
    for name, text in texts.items():
        write_whole(directory / name, text.encode())
    return [*(directory / name for name in texts), *pictures]


def publish(paths: Sequence[Path], name: str, directory: Path) -> list[Path]:
    """Copy what is small to where documentation is, all under one name: the summary as
    ``NAME.json``, the tables as ``NAME.md``, and the pictures as ``NAME-*``; not the raw series.

    Args:
        paths: what :func:`write` has written.
        name: of the experiment.
        directory: made if there is none.

    Raises:
        Problem: ``DISK``.
    """
    pictures = [path for path in paths if path.suffix in (".png", ".svg")]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(DISK, path=directory, why=(error.strerror or "").lower()) from None
    renamed = {path.name: f"{name}-{path.name}" for path in pictures}
    copied = []
    for path in paths:
        content = path.read_bytes()
        if path.name == "summary.json":
            to = directory / f"{name}.json"
        elif path.name == "tables.md":
            to = directory / f"{name}.md"
            content = re.sub(rb"(?<=\]\()[^)]+(?=\))", lambda found: renamed.get(
                found[0].decode(), found[0].decode()).encode(), content)
        elif path in pictures:
            to = directory / renamed[path.name]
        else:
            continue
        write_whole(to, content)
        copied.append(to)
    return copied


def _comments(facts: dict[str, Any]) -> list[str]:
    return ["An experiment as it was run. The same again:",
            f"  {'deploy/run' if 'machines' in facts else 'tormentor experiment'} experiment.toml",
            f"TorMentor {facts['version']}, commit {facts['commit'] or 'unknown'}, "
            f"code {facts['code']}",
            f"Data: {facts['data']}, digest {facts['data_digest']}"]


def _summary(results: Results, facts: dict[str, Any]) -> str:
    """One line for each setting: a later run's differences are then lines as well."""
    head = json.dumps(facts, indent=1, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(each, allow_nan=False, ensure_ascii=False)
                       for each in summary(results.experiment, results.finished))
    return head.removesuffix("\n}") + f',\n "median_least_greatest": [\n{lines}\n ]\n}}\n'


def _page(results: Results, facts: dict[str, Any], shown: Sequence[RenderableType],
          pictures: Sequence[Path]) -> str:
    words = EXPERIMENTS[results.plan.experiment].words or results.experiment.WORDS
    machine = ", ".join(f"{name.replace('_', ' ')} {value}"
                        for name, value in facts["machine"].items())
    tor = f", tor {facts['tor']}" if facts["tor"] else ""
    lines = [f"# {facts['experiment']}", words,
             f"Made by `{facts['command']}` on {results.table.words} "
             f"({facts['data_rows']:,} rows); the cells took {facts['cell_seconds']:,.0f} seconds "
             f"in all. TorMentor {facts['version']}, commit {facts['commit'] or 'unknown'}, code "
             f"{facts['code']}{tor}; "
             f"{machine if results.place is None else 'driven from one with ' + machine}."]
    if results.place is not None:
        lines.append(where(results.place))
    if results.plan.cells:
        lines.append(f"experiment.toml:\n\n```toml\n{written(anywhere(results.plan))}```")
    if facts["quick"]:
        lines.append("This is the quick form: fewer and shorter cells.")
    if facts["cells_of_other_code"]:
        lines.append(f"{facts['cells_of_other_code']} cells were computed by other code, earlier.")
    for path in pictures:
        if path.suffix == ".png":
            svg = path.with_suffix(".svg")
            more = f" ([SVG]({svg.name}))" if svg in pictures else ""
            lines.append(f"![{path.stem}]({path.name}){more}")
    return "\n\n".join(lines) + "\n\n" + markdown.page(shown)


def where(place: dict[str, Any]) -> str:
    """A sentence on the machines that a run was on."""
    clients = place["clients"]
    return (f"It ran on machines of its own: the broker in {place['broker']}, clients on "
            f"{len(clients)} in {', '.join(dict.fromkeys(clients))}; "
            f"{place['tor_network']} Tor network.")


def _text(shown: Sequence[RenderableType]) -> str:
    page = io.StringIO()
    Console(file=page, width=WIDTH).print(Group(*shown))
    return page.getvalue()


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    page = io.StringIO()
    csv.writer(page, lineterminator="\n").writerows(rows)
    return page.getvalue()


def settled(plan: Plan, data: Path | None) -> Plan:
    """A plan as it is written down: with the data that were used, whatever the environment says
    the next time, as a full path."""
    place = "made" if data is None else str(data.resolve() if credit.is_file(data) else data)
    return msgspec.structs.replace(plan, data=place)
