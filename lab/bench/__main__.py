"""``scripts/bench``: how fast it is, as ratios to something else measured in the same run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import click
from rich.console import Console

from accord.console import command, json_option, say
from accord.files import write_whole
from accord.problems import BAD_OPTION, DISK, EXIT_BUG, Problem
from lab.bench.table import ROWS, for_markdown, for_terminal, measure_all
from lab.experiments.origin import circumstances

_WIDTH = 160


@click.command("bench")
@click.option("--quick", is_flag=True, help="Shorter measurements, which tell less.")
@click.option("--only", multiple=True, metavar="ROW", help="Only this row; may be repeated.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Write bench.json and bench.md there.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the table there as Markdown.")
@click.option("--strict", is_flag=True, help="End with status 1 when a goal is missed.")
@json_option
@command
async def main(quick: bool, only: tuple[str, ...], output: Path | None, markdown: Path | None,
               strict: bool, as_json: bool) -> None:
    """Measure how fast this is, side by side with something else, in one run.

    It ends with status 1 when a row could not be measured; a goal that is missed is told, and
    changes the status only with --strict. The first run installs Flower and emcee into .bench/.

    \b
    Example:
      scripts/bench --only noise --only roni --markdown bench.md
    """
    known = [row.key for row in ROWS]
    for name in only:
        if name not in known:
            raise Problem(BAD_OPTION, option="--only",
                          what=f"is not one of: {', '.join(known)}")
    chosen = [row for row in ROWS if not only or row.key in only]
    load = round(os.getloadavg()[0], 2)
    # In a thread: each row runs loops and processes of its own.
    done = await asyncio.to_thread(measure_all, chosen, quick, say)
    flags = [*(["--quick"] if quick else []), *(f"--only {name}" for name in only)]
    report = {"rows": done, "quick": quick, "command": " ".join(["scripts/bench", *flags]),
              **circumstances(tor=True), "load_at_begin": load}
    files: dict[Path, str] = {}
    if output is not None:
        _make(output)
        files[output / "bench.json"] = json.dumps(report, indent=1, allow_nan=False) + "\n"
        files[output / "bench.md"] = for_markdown(report)
    if markdown is not None:
        files[markdown] = for_markdown(report)
    for path, text in files.items():
        await asyncio.to_thread(write_whole, path, text.encode())
    if as_json:
        click.echo(json.dumps(report, allow_nan=False))
    else:
        Console(width=None if Console().is_terminal else _WIDTH).print(for_terminal(done))
    failed = [told for told in done if told["ratio"] is None]
    for told in failed:
        say(f"{told['key']} was not measured: {told['why']}")
    if failed or (strict and not all(told["met"] for told in done)):
        sys.exit(EXIT_BUG)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(DISK, path=directory, why=(error.strerror or "").lower()) from None


if __name__ == "__main__":
    main()
