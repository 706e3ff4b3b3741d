"""The data of races, once for each machine: a table small enough to copy up, and dealt there.

Run as a program: ``python -m lab.field.deal TABLE.npz SEED VALIDATION_ROWS ROWS.npy LABELS.npy``.
It writes the training rows that :func:`lab.credit.deal` gives of a table, bit for bit the same on
every machine, and does nothing when both files are there.

A row is as long as 1, so each number in it has all its digits: 5.5 MB of the credit data, however
compressed. What it was made of has few. So :func:`shelve` keeps the cells, and each row's length
before it became 1 (which no two machines need to sum up in the same order): subtracting and
dividing, which give the same everywhere, make the rows of them. The credit data comes to 1.2 MB,
the made data to 2.8 MB. Where the cells cannot be found again, the rows themselves are kept.
"""

from __future__ import annotations

import asyncio
import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np

from accord.console import command, say
from accord.files import write_whole
from accord.problems import BAD_OPTION, NO_FILE, Problem
from accord.schema import Schema
from lab.credit import Table, deal

_DIGITS: Final = 13
"""Digits of a cell below the first of its column's scale that are looked at, and"""
_SHOWN: Final = 9
"""all digits that it may have: so many are exact after a row became as long as 1."""


def shelve(table: Table, path: Path) -> None:
    """Write a table for :func:`unshelve`: arrays in a .npz, without any pickle.

    Raises:
        Problem: ``DISK``.
    """
    told = {"words": table.words, "digest": table.digest, "schema": table.schema}
    arrays = {"about": np.frombuffer(msgspec.json.encode(told), np.uint8),
              "labels": table.labels.astype(np.uint8), **_cells(table)}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_whole(path, file.getvalue())


def _cells(table: Table) -> dict[str, np.ndarray]:
    """What the rows are made of, if that is to be found again; else they themselves."""
    features = table.schema.features()
    if all(column.type in ("number", "integer") for column in features):
        constants = np.array([column.standard() for column in features])
        center, scale = constants.T
        cells = center + scale * table.rows[:, :-1] / table.rows[:, -1:]
        # What was 0 may have become a thousandth of a thousandth of what is usual.
        text = "\n".join(f"{round(cell, _DIGITS - math.ceil(math.log10(s))):.{_SHOWN}g}"
                         for column, s in zip(cells.T, scale.tolist(), strict=True)
                         for cell in column.tolist())
        raw = np.frombuffer(text.encode(), np.uint8)
        lengths = np.linalg.norm(_standard(raw, constants), axis=1)
        if np.array_equal(_rows(raw, lengths, constants), table.rows):
            return {"cells": raw, "lengths": lengths}
    return {"rows": table.rows}


def _standard(raw: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """Cells as text, column after column, as rows (n, d) that are not as long as 1 yet."""
    numbers = np.array(raw.tobytes().decode().split("\n"), np.float64)
    center, scale = constants.T
    cells = numbers.reshape(len(constants), -1).T
    return np.ascontiguousarray(
        np.hstack([(cells - center) / scale, np.ones((len(cells), 1))]))


def _rows(raw: np.ndarray, lengths: np.ndarray, constants: np.ndarray) -> np.ndarray:
    rows: np.ndarray = _standard(raw, constants) / lengths[:, None]
    return rows


class _About(msgspec.Struct, frozen=True):
    words: str
    digest: str
    schema: Schema


def unshelve(path: Path) -> Table:
    """Read what :func:`shelve` wrote: the same table, but for its ``order``, which is not kept, as
    no race needs it: that is 0 of each row.

    Raises:
        Problem: ``NO_FILE``: it is not there, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = msgspec.json.decode(file["about"].tobytes(), type=_About)
            labels = file["labels"].astype(np.float64)
            if "rows" in file:
                rows = file["rows"]
            else:
                constants = np.array([each.standard() for each in about.schema.features()])
                rows = _rows(file["cells"], file["lengths"], constants)
        if rows.shape != (len(labels), about.schema.dimension):
            raise ValueError("its parts do not fit together")
    except FileNotFoundError:
        raise Problem(NO_FILE, path=path, why="it is not there") from None
    except (OSError, ValueError, KeyError, EOFError, msgspec.DecodeError, zipfile.BadZipFile,
            zlib.error) as error:
        raise Problem(NO_FILE, path=path, why=f"it is damaged, or no table ({error}); have it "
                                              "copied here again") from None
    return Table(about.schema, rows, labels, about.digest, about.words, np.zeros(len(labels)))


def dealt(rows: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """What was dealt: rows (n, d), which are read from the file when they are used, and labels.

    Raises:
        Problem: ``NO_FILE``.
    """
    try:
        # A view of its bytes: memmap itself is slow to take rows of.
        found = np.asarray(np.load(rows, mmap_mode="r"))
        answers = np.load(labels)
    except (OSError, ValueError, EOFError) as error:
        raise Problem(NO_FILE, path=rows, why=str(error)) from None
    if found.ndim != 2 or answers.shape != found.shape[:1]:
        raise Problem(NO_FILE, path=rows, why="its rows are not as many as the labels")
    return found, answers


_path = click.Path(path_type=Path)


@click.command("deal")
@click.argument("table", type=_path)
@click.argument("seed", type=click.IntRange(0))
@click.argument("validation_rows", type=click.IntRange(0))
@click.argument("rows", type=_path)
@click.argument("labels", type=_path)
@command
async def main(table: Path, seed: int, validation_rows: int, rows: Path, labels: Path) -> None:
    """Deal the training ROWS and LABELS (.npy) of a SEED from a TABLE (.npz).

    \b
    Example:
      python -m lab.field.deal table.npz 0 100 rows0.npy labels0.npy
    """
    await asyncio.to_thread(_deal, table, seed, validation_rows, (rows, labels))


def _deal(table: Path, seed: int, validation_rows: int, paths: tuple[Path, Path]) -> None:
    if all(path.exists() for path in paths):
        say("They are there already.")
        return
    try:
        parts = deal(unshelve(table), validation_rows, seed)
    except ValueError as error:
        raise Problem(BAD_OPTION, option="VALIDATION_ROWS",
                      what=f"leaves no row to test with: {error}") from None
    for path, array in zip(paths, parts.train, strict=True):
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        write_whole(path, file.getvalue())
    say(f"{len(parts.train[1]):,} rows of seed {seed}: {paths[0]}")


if __name__ == "__main__":
    main()
