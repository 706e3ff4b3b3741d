"""``tormentor experiment``: the figures of the documentation, made again, here or elsewhere."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accord.console import command, json_option, result, say
from accord.problems import BAD_OPTION, DISK, LOCKED, NO_LAB, Problem

if TYPE_CHECKING:
    from lab.credit import Table
    from lab.experiments.frame import Cell, Experiment
    from lab.experiments.plan import Plan
    from lab.field.world import Field

_LEAST_PAUSE = 60.0
"""Seconds without a line, after which the next finished cell is told, where there is no bar."""


@click.command("experiment")
@click.argument("name", required=False, metavar="[list | NAME | FILE.toml]")
@click.option("--data", metavar="PATH",
              help="The credit data as CSV (or set TORMENTOR_CREDIT_DATA), sklearn:breast_cancer, "
                   "sklearn:digits, or made.  [made]")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Where results go.  [experiments/NAME]")
@click.option("--docs", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Copy summary, tables and pictures there, for documentation.")
@click.option("--quick/--full", default=None, help="Fewer and shorter cells, or all.  [full]")
@click.option("--seeds", type=click.IntRange(1, 1000), help="Repetitions of each cell.")
@click.option("--part", "parts", multiple=True, metavar="PART",
              help="Only this part of the experiment; may be repeated.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Processes.  [one for each core]")
@click.option("--inventory", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Run its races on these machines, over SSH; deploy/run prepares that.")
@click.option("--fresh", is_flag=True, help="Put finished cells away and begin anew.")
@json_option
@command
async def experiment(
    name: str | None, data: str | None, output: Path | None, docs: Path | None,
    quick: bool | None, seeds: int | None, parts: tuple[str, ...], jobs: int | None,
    inventory: Path | None, fresh: bool, as_json: bool,
) -> None:
    """Run an experiment, by its name or by a file that says which; 'list' lists them.

    Finished cells are kept in the output directory: stopped, even by a power cut, the same command
    goes on where it was.

    With --inventory, an Ansible inventory, races run on the machines in it; results then go to
    experiments/NAME-field. 'deploy/run' is this command, with all that it needs made first.

    A FILE.toml has these options under their names ('parts' for --part), and 'cells', which keeps
    only those cells whose entries are among the values given; inf stands for no noise. Paths of
    data are relative to the file. What the command line says wins. Each result directory has the
    one that makes it again, experiment.toml.

    \b
    Example:
      tormentor experiment fig11 --seeds 3 --data credit_default.csv
      tormentor experiment mine.toml --jobs 2
    \b
      # mine.toml
      experiment = "fig5"
      seeds = 3
      data = "credit_default.csv"
      [cells]
      batch = [10, 100]
      epsilon = [1.0, inf]
    """
    from lab.experiments import plan as plans

    if name is None or name == "list":
        _list(as_json)
        return
    plan = plans.read(Path(name)) if name.endswith(".toml") else plans.Plan(experiment=name)
    plan = _override(plan, data=data, quick=quick, seeds=seeds, parts=parts or None, jobs=jobs,
                     output=None if output is None else str(output))
    cells = plans.chosen(plan)
    if importlib.util.find_spec("matplotlib") is None:
        raise Problem(NO_LAB, package="matplotlib")
    field = None if inventory is None else await _field(plan, inventory)
    await _run(plan, cells, field, fresh, docs, as_json)


async def _field(plan: Plan, path: Path) -> Field:
    """The machines that an inventory names, for the races of a plan.

    Raises:
        Problem: ``BAD_OPTION``: its cells are no races; of the inventory.
    """
    from lab.experiments.frame import EXPERIMENTS, HasRaces, find
    from lab.field.inventory import read
    from lab.field.plays import program
    from lab.field.world import Field

    this = find(plan.experiment)
    if not isinstance(this, HasRaces):
        races = [name for name in EXPERIMENTS if isinstance(find(name), HasRaces)]
        raise Problem(BAD_OPTION, option="--inventory", what=(
            f"goes with experiments that race ({', '.join(races)}), and {plan.experiment} runs on "
            "one machine"))
    return Field(await read(path, program("ansible-inventory")), this.race_of)


def _override(plan: Plan, **given: Any) -> Plan:
    import msgspec

    return msgspec.structs.replace(
        plan, **{name: value for name, value in given.items() if value is not None})


def _list(as_json: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lab.experiments.frame import EXPERIMENTS, find

    if as_json:
        result({name: {"shows": each.shows, "words": each.words or find(name).WORDS,
                       "quick": each.quick, "full": each.full}
                for name, each in EXPERIMENTS.items()}, True, "")
        return
    table = Table("name", "of the paper", "what it shows", "quick", "full", box=box.SIMPLE_HEAD,
                  pad_edge=False, caption="Times: on two cores, about.", caption_justify="left")
    for name, each in EXPERIMENTS.items():
        table.add_row(name, each.shows, each.words or find(name).WORDS, each.quick, each.full)
    Console(width=None if Console().is_terminal else 160).print(table)


async def _run(plan: Plan, cells: list[Cell], field: Field | None, fresh: bool,
               docs: Path | None, as_json: bool) -> None:
    import asyncio

    from rich.console import Console, Group

    from lab import credit
    from lab.experiments.frame import Notebook, find, key_of, run_all
    from lab.experiments.results import WIDTH, Results, publish, settled, tables, write
    from lab.field.inventory import keep_place

    this = find(plan.experiment)
    place = None if field is None else field.inventory.place
    name = plan.experiment if field is None else f"{plan.experiment}-field"
    output = Path(plan.output or Path("experiments") / name)
    data = credit.find(plan.data)
    data = data.resolve() if data is not None and credit.is_file(data) else data
    # Read here as well: what is wrong with the file is said once, and at once.
    table = await asyncio.to_thread(credit.load, data)
    _enough(this, cells, table, str(data))
    _make(output)
    _keep_others_out(output)
    if field is not None:
        # Nor two on the same machines: each would stop what the other has started.
        _keep_others_out(field.inventory.path)
    notebook = Notebook(output / "cells.jsonl")
    if fresh and (aside := notebook.begin_anew()) is not None:
        say(f"What was finished is put away: {aside}")
    keep_place(output, place, notebook.begun)
    say(f"Data: {table.words}, {len(table.labels):,} rows. Results: {output}")
    keys = [key_of(this.NAME, cell, table.digest) for cell in cells]
    foreign = notebook.foreign(keys)
    if foreign:
        say(f"{foreign} of the cells were finished by other code than is running now; --fresh "
            "begins anew.")
    with _progress(plan.experiment) as tell:
        finished = await run_all(this, cells, data, table.digest, notebook,
                                 plan.jobs or os.cpu_count() or 1, tell, say,
                                 None if field is None else field.open_world)
    results = Results(this, settled(plan, data), finished, table, foreign, place)
    paths = await asyncio.to_thread(write, results, output)
    if docs is not None:
        paths += await asyncio.to_thread(publish, paths, name, docs)
    if as_json:
        result({**results.origin(), "cells": [
            {"cell": f.cell, "result": f.result} for f in finished]}, True, "")
        return
    Console(width=None if Console().is_terminal else WIDTH).print(Group(*tables(results)))
    for path in paths:
        say(f"  {path}")


def _enough(this: Experiment, cells: Sequence[Cell], table: Table, name: str) -> None:
    """See that there is enough data for these cells.

    Raises:
        Problem: ``BAD_OPTION``.
    """
    from lab.experiments.frame import HasLeast

    if not isinstance(this, HasLeast):
        return
    for cell in cells:
        needed = this.least_rows(cell)
        if len(table.labels) < needed:
            raise Problem(BAD_OPTION, option="--data", what=(
                f"has too few rows for part '{cell['part']}': {len(table.labels):,} in {name}, "
                f"where {needed:,} are needed"))


def _keep_others_out(path: Path) -> None:
    """Have a directory of results, or the machines of an inventory, for this process alone, until
    it ends.

    Raises:
        Problem: ``LOCKED``: another run uses it.
    """
    # A directory itself is locked: the files in it are replaced. It stays open on purpose.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise Problem(LOCKED, path=path) from None
    click.get_current_context().call_on_close(lambda: os.close(handle))


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(DISK, path=directory, why=(error.strerror or "").lower()) from None


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere a line at each tenth, and at least now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), "cells",
                      TimeRemainingColumn(), "left", console=console, transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    yield Lines(name, time.monotonic, say).tell


class Lines:
    """Progress where there is no terminal.

    Args:
        name: what is under way.
        clock: seconds.
        out: takes a line.
    """

    def __init__(self, name: str, clock: Callable[[], float], out: Callable[[str], None]) -> None:
        self._name, self._clock, self._out = name, clock, out
        self._began = self._last = clock()
        self._before: int | None = None
        self._tenth = -1

    def tell(self, done: int, total: int) -> None:
        """So many cells are finished, of so many: a line at each tenth, or when the last one was
        long ago, with the time left by what the cells of this run took so far."""
        now = self._clock()
        if self._before is None:
            self._before = done
        tenth = 10 * done // max(1, total)
        if tenth == self._tenth and now - self._last < _LEAST_PAUSE:
            return
        self._tenth, self._last = tenth, now
        left = ""
        if self._before < done < total:
            seconds = (now - self._began) / (done - self._before) * (total - done)
            left = f", about {duration(seconds)} left"
        self._out(f"{self._name}: {done} of {total} cells{left}")


def duration(seconds: float) -> str:
    """A time for people: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
