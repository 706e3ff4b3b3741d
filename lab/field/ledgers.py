"""What the clients of a machine have spent in a race that is over.

Run as a program: ``python -m lab.field.ledgers HOME``, where HOME is that of
:class:`lab.geo_crowd.Team`. It prints one line of JSON: ``clients``, how many have been there, and
``mean``, releases in the ledger of each; null when there was none.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import click

from accord.console import command, result
from accord.problems import NO_FILE, Problem
from lab.geo_crowd import ledgers


@click.command("ledgers")
@click.argument("home", type=click.Path(path_type=Path))
@command
async def main(home: Path) -> None:
    """Count what is in the ledgers of a HOME.

    \b
    Example:
      python -m lab.field.ledgers /var/lib/tormentor/race
    """
    try:
        spent = ledgers(home)
    except OSError as error:
        raise Problem(NO_FILE, path=home, why=(error.strerror or "").lower()) from None
    result({"mean": fmean(spent) if spent else None, "clients": len(spent)}, True, "")


if __name__ == "__main__":
    main()
