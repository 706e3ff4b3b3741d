"""The rows of ``scripts/bench``, and what is made of them: a table, JSON, Markdown.

A row says what is measured, against what, and how far the ratio may go. Each is measured by a
function ``measure(quick)`` of its own module, imported only when its turn comes; it returns a
dictionary with at least ``ratio`` (a number) and ``how`` (one or two sentences: how each side was
set up); ``note``, where it is not quite what the row says, is shown beside that; everything else in
it is figures for whoever wants to look closer. A row that cannot be measured says why, and the
others go on.
"""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table

from accord.problems import Problem
from lab.demo import Failed

Measured = dict[str, Any]
"""What a row's function returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        key: its name on the command line.
        what: what is measured, and against: what it is held against.
        goal: how far the ratio may go.
        most: the goal is the largest ratio that meets it; else the smallest.
        place: ``module:function`` that measures it.
        unit: of the ratio, where it is a size and no ratio.
        goal_words: of the goal, where a number alone would be odd ("1/5").
    """

    key: str
    what: str
    against: str
    goal: float
    most: bool
    place: str
    unit: str = ""
    goal_words: str = ""

    def met(self, ratio: float) -> bool:
        """Whether a ratio meets the goal; one that is no number never does."""
        return ratio <= self.goal if self.most else ratio >= self.goal

    def words(self) -> str:
        """The goal for people."""
        number = self.goal_words or f"{self.goal:g}"
        return f"{'≤' if self.most else '≥'} {number}{' ' + self.unit if self.unit else ''}"


ROWS: Final = (
    Row(key="tor-protocol", what="time to target, 200 clients, through Tor",
        against="the paper's protocol, same network", goal=0.2, most=True, goal_words="1/5",
        place="lab.bench.network:measure_protocol"),
    Row(key="tor-overhead", what="overhead of Tor, 200 clients (paper: 5.2)",
        against="the same without Tor", goal=2.0, most=True,
        place="lab.bench.network:measure_overhead"),
    Row(key="desk-echo", what="updates/s through the desk, 50 clients, no Tor, durable",
        against="bare aiohttp WebSocket echo, same bytes and clients", goal=0.5, most=False,
        place="lab.bench.desk:measure_throughput"),
    Row(key="flower-updates", what="updates/s through the desk, 50 clients, no Tor, durable",
        against="Flower, own server and clients over loopback, same model and data", goal=10.0,
        most=False, place="lab.bench.flower:measure_updates"),
    Row(key="flower-time-10", what="time to target, 10 clients, no Tor", against="Flower",
        goal=0.2, most=True, goal_words="1/5", place="lab.bench.flower:measure_time_10"),
    Row(key="flower-time-50", what="time to target, 50 clients, no Tor", against="Flower",
        goal=0.2, most=True, goal_words="1/5", place="lab.bench.flower:measure_time_50"),
    Row(key="desk-cpu", what="broker CPU per update, 1,000 clients", against="itself at 10",
        goal=1.3, most=True, place="lab.bench.desk:measure_cpu"),
    Row(key="desk-memory", what="broker memory per idle client at 1,000", against="(a size)",
        goal=100.0, most=True, unit="KB", place="lab.bench.desk:measure_memory"),
    Row(key="hashes", what="admission hashes/s", against="hashlib loop, same core", goal=10.0,
        most=False, place="lab.bench.hashes:measure"),
    Row(key="noise", what="1,000 noise draws, d=25",
        against="emcee as the paper used it, per usable draw", goal=100.0, most=False,
        place="lab.bench.noise:measure"),
    Row(key="roni", what="one RONI round, 200 clients × 9,000 rows × 24 features",
        against="one BLAS product of the same shape", goal=3.0, most=True,
        place="lab.bench.roni:measure"),
)


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """The quartiles of the turns' ratios, for a row's figures; of two at least."""
    lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ratio_lower_quartile": lower, "ratio_upper_quartile": upper}


def measure(row: Row, quick: bool) -> dict[str, Any]:
    """Measure one row.

    Returns:
        ``key``, ``what``, ``against``, ``ratio``, ``goal``, ``met``, ``unit``, ``how`` and
        ``details``; where it could not be measured, ``ratio`` and ``met`` are None and ``why``
        says why.
    """
    told: dict[str, Any] = {
        "key": row.key, "what": row.what, "against": row.against, "ratio": None,
        "goal": row.words(), "met": None, "unit": row.unit, "how": "", "details": {}}
    try:
        module, function = row.place.split(":")
        found: Measured = dict(getattr(importlib.import_module(module), function)(quick))
        ratio = float(found.pop("ratio"))
        if not math.isfinite(ratio):
            raise Failed(f"the ratio is {ratio}")
    except Problem as problem:
        return told | {"why": problem.sentence}
    except Exception as error:  # whatever it is, the other rows can be measured
        return told | {"why": f"{type(error).__name__}: {error}".removesuffix(": ")}
    if note := found.pop("note", ""):
        told["what"] = f"{row.what} ({note})"
    return told | {"ratio": ratio, "met": row.met(ratio), "how": str(found.pop("how")),
                   "details": found}


def measure_all(rows: Sequence[Row], quick: bool, tell: Callable[[str], None],
                ) -> list[dict[str, Any]]:
    """Measure rows one after another, so that none takes another's processor."""
    done = []
    for number, row in enumerate(rows, 1):
        tell(f"{number} of {len(rows)}, {row.key}: {row.what} ...")
        done.append(measure(row, quick))
        tell(f"{row.key}: {ratio_words(done[-1])} (goal {row.words()})")
    return done


def ratio_words(told: Mapping[str, Any]) -> str:
    """A ratio for people: three digits, or that it could not be measured."""
    if told["ratio"] is None:
        return "not measured: " + str(told["why"])
    ratio = float(told["ratio"])
    number = f"{ratio:,.0f}" if abs(ratio) >= 100 else f"{ratio:.3g}"
    return f"{number} {told['unit']}".rstrip()


def _met_words(told: Mapping[str, Any]) -> str:
    return "–" if told["met"] is None else "yes" if told["met"] else "no"


def for_terminal(done: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table for a terminal."""
    table = Table("what", "against", "ratio", "goal", "met", box=box.SIMPLE_HEAD)
    for told in done:
        words = ratio_words(told) if told["ratio"] is not None else "not measured"
        colour = {None: "yellow", True: "green", False: "red"}[told["met"]]
        table.add_row(escape(told["what"]), escape(told["against"]), words, told["goal"],
                      f"[{colour}]{_met_words(told)}[/]")
    return table


def for_markdown(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown: the table, how each row was measured, the machine."""
    lines = ["# Measured side by side", "",
             f"Made by `{report['command']}`. Each ratio's two sides ran in that one run, on this "
             "machine: " + ", ".join(f"{name} {value}" for name, value
                                     in report["machine"].items())
             + f". Its load was {report['load_at_begin']:g} when they began. Version "
             f"{report['version']}, code {report['code']}.", "",
             "| what | against | ratio | goal | met |", "|---|---|---|---|---|"]
    for told in report["rows"]:
        words = ratio_words(told) if told["ratio"] is not None else "not measured"
        lines.append("| " + " | ".join(_cell(text) for text in (
            told["what"], told["against"], words, told["goal"], _met_words(told))) + " |")
    lines += ["", "## How"]
    for told in report["rows"]:
        lines += ["", f"**{_cell(told['what'])}** (`--only {told['key']}`). "
                  + (told["how"] or f"Not measured: {told['why']}")]
        figures = [(name, value) for name, value in told["details"].items()
                   if isinstance(value, bool | int | float | str)]
        if figures:
            lines += ["", *(f"- {name.replace('_', ' ')}: {_figure(value)}"
                            for name, value in figures)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _figure(value: bool | int | float | str) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
