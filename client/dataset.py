"""Rows from CSV or Parquet, checked against the task's schema; they never leave this process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from accord.problems import NO_FILE, TOO_FEW_ROWS, Problem
from accord.schema import Schema
from accord.table import Columns, read_table

MOST_BYTES: Final = 4 << 30
"""Largest data file. It is held in memory as text first, so a larger one would end in a kill."""


@dataclass(frozen=True, slots=True, repr=False)
class Dataset:
    """A person's own data, standardised. It has no repr: no row may reach a log.

    Attributes:
        rows: X, shape (n, d), each of norm 1.
        labels: y, shape (n,), 0.0 or 1.0.
        fingerprint: SHA-256 of the file's bytes, in hexadecimal.
        path: the file.
        identity: of its rows (:func:`identity`); names the privacy ledger.
    """

    rows: np.ndarray
    labels: np.ndarray
    fingerprint: str
    path: Path
    identity: str = ""


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        Problem: ``NO_FILE``.
    """
    try:
        if not path.is_file():
            why = "it is not a file" if path.exists() else "no such file"
            raise Problem(NO_FILE, path=path, why=why)
        if path.stat().st_size > MOST_BYTES:
            raise Problem(NO_FILE, path=path, why=f"it is larger than {MOST_BYTES >> 30} GiB")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Problem(NO_FILE, path=path, why=(error.strerror or str(error)).lower()) from None


def identity(columns: Columns) -> str:
    """What the rows of a table are known by, in hexadecimal: the same for the same rows, however
    they are saved.

    The order of rows and columns, blanks around cells, capital letters, and ways to write a number
    (1, 1.0, 1e0) make no difference, so that whoever saves a table anew, from a spreadsheet or as
    Parquet, does not begin with an unspent budget. A row or a column more or less does.
    """
    names = sorted(columns)
    digest = hashlib.sha256("\x1f".join(names).encode())
    for row in sorted(zip(*([_cell(cell) for cell in columns[name]] for name in names),
                          strict=True)):
        digest.update(("\x1e" + "\x1f".join(row)).encode())
    return digest.hexdigest()


def _cell(text: str) -> str:
    text = text.strip().lower()
    try:
        return repr(float(text) + 0.0)  # -0.0 is 0.0
    except ValueError:
        return text


def read(path: Path, batch: int) -> Columns:
    """The cells of a data file that has at least a batch of rows, whatever the schema.

    Raises:
        Problem: those of :func:`accord.table.read_table`; ``TOO_FEW_ROWS``.
    """
    if not path.is_file():
        # Also what would never end (a pipe, /dev/zero) is refused here.
        fingerprint(path)
    columns = read_table(path)
    rows = len(next(iter(columns.values())))
    if rows < batch:
        raise Problem(TOO_FEW_ROWS, path=path, rows=rows, needed=batch, why=f" for --batch {batch}")
    return columns


def load(path: Path, schema: Schema, batch: int, ignore: bool = False) -> Dataset:
    """Read a data file, check every cell, standardise.

    Args:
        path: CSV or Parquet.
        schema: the task's.
        batch: how many rows it must have at least.
        ignore: leave out columns that the schema does not know; they still belong to the rows'
            :attr:`Dataset.identity`, so that the same file has the same ledger whatever is asked.

    Raises:
        Problem: those of :func:`read` and :meth:`accord.schema.Schema.encode`.
    """
    columns = read(path, batch)
    known = {field.name for field in schema.fields}
    asked = {name: cells for name, cells in columns.items() if not ignore or name in known}
    rows, labels = schema.encode(asked, str(path))
    return Dataset(rows, labels, fingerprint(path), path, identity(columns))
