"""``tormentor experiment``: the figures of the documentation, made again on this machine."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accord.console import command, json_option, result, say
from accord.files import write_whole
from accord.problems import BAD_OPTION, DISK, NO_LAB, Problem

if TYPE_CHECKING:
    from lab.experiments.frame import Cell

_WIDTH = 200


@click.command("experiment")
@click.argument("name", required=False)
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The credit data as CSV (or set TORMENTOR_CREDIT_DATA); else made data.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path),
              help="Where results go.  [experiments/NAME]")
@click.option("--quick", is_flag=True, help="Fewer and shorter cells: minutes instead of hours.")
@click.option("--seeds", type=click.IntRange(1, 1000), help="Repetitions of each cell.")
@click.option("--part", "parts", multiple=True, metavar="PART",
              help="Only this part of the experiment; may be repeated.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Processes.  [one for each core]")
@json_option
@command
async def experiment(
    name: str | None, data: Path | None, output: Path | None, quick: bool, seeds: int | None,
    parts: tuple[str, ...], jobs: int | None, as_json: bool,
) -> None:
    """Run an experiment in simulated time; without a name, list them.

    Finished cells are kept in the output directory: stopped, even by a power cut, the same command
    goes on where it was. Remove the directory to begin anew.

    \b
    Example:
      tormentor experiment poison --quick --data credit_default.csv
    """
    from lab.experiments.frame import EXPERIMENTS, find

    if name is None:
        words = {each: find(each).WORDS for each in EXPERIMENTS}
        result(words, as_json, "\n".join(f"{each:10} {line}" for each, line in words.items()))
        return
    if name not in EXPERIMENTS:
        raise Problem(BAD_OPTION, option="NAME",
                      what=f"is not an experiment: '{name}'; there are {', '.join(EXPERIMENTS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise Problem(NO_LAB, package="matplotlib")
    cells = find(name).cells(quick, seeds)
    known = dict.fromkeys(cell["part"] for cell in cells)
    for part in parts:
        if part not in known:
            raise Problem(BAD_OPTION, option="--part",
                          what=f"is not one of: {', '.join(known)}")
    chosen = [cell for cell in cells if not parts or cell["part"] in parts]
    await _run(name, chosen, data, output or Path("experiments") / name, quick,
               jobs or os.cpu_count() or 1, as_json)


async def _run(name: str, cells: list[Cell], data: Path | None, output: Path, quick: bool,
               jobs: int, as_json: bool) -> None:
    import asyncio

    from rich.console import Console, Group

    from lab import credit
    from lab.experiments.frame import Notebook, find, run_all, write_results

    this = find(name)
    data = credit.find(data)
    data = None if data is None else data.resolve()
    # Read here as well: what is wrong with the file is said once, and at once.
    table = await asyncio.to_thread(credit.load, data)
    _make(output)
    say(f"Data: {table.words}, {len(table.labels):,} rows. Results: {output}")
    with _progress(name) as tell:
        finished = await run_all(name, cells, data, table.digest,
                                 Notebook(output / "cells.jsonl"), jobs, tell)
    told = await asyncio.to_thread(write_results, this, finished, table.words, quick, output)
    tables = Group(f"Data: {table.words}.", *this.tables(finished))
    page = io.StringIO()
    Console(file=page, width=_WIDTH).print(tables)
    await asyncio.to_thread(write_whole, output / "tables.txt", page.getvalue().encode())
    pictures = await asyncio.to_thread(this.plots, finished, output)
    if as_json:
        result(told, True, "")
        return
    Console(width=None if Console().is_terminal else _WIDTH).print(tables)
    for path in (output / "results.json", output / "tables.txt", *pictures):
        say(f"  {path}")


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(DISK, path=directory, why=(error.strerror or "").lower()) from None


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere a line at each tenth."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        with Progress("{task.description}", BarColumn(), MofNCompleteColumn(), "cells",
                      TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    said = -1

    def tell(done: int, total: int) -> None:
        nonlocal said
        tenth = 10 * done // max(1, total)
        if tenth > said:
            said = tenth
            say(f"{name}: {done} of {total} cells")

    yield tell
