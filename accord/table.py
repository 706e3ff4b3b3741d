"""Reading a table from a CSV or Parquet file into text cells, column by column."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from accord.problems import BAD_TABLE, EMPTY_FILE, NO_FILE, NO_PARQUET, Problem

Columns = dict[str, list[str]]


def read_table(path: Path) -> Columns:
    """The cells of a file by column name.

    The format is told by the name: ``.parquet`` is Parquet, anything else CSV in UTF-8 with a
    header line and commas, semicolons or tabs between the cells.

    Raises:
        Problem: ``NO_FILE``, ``EMPTY_FILE``, ``BAD_TABLE`` (a row of another length, two columns
            of one name, not text), ``NO_PARQUET``.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            if not first.strip():
                raise Problem(EMPTY_FILE, path=path)
            file.seek(0)
            return _read_csv(file, _delimiter(first), path)
    except UnicodeDecodeError:
        raise Problem(BAD_TABLE, path=path, why="it is not text in UTF-8") from None
    except OSError as error:
        raise Problem(NO_FILE, path=path, why=_why(error)) from None


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _read_csv(file: Iterable[str], delimiter: str, path: Path) -> Columns:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        if len(set(header)) != len(header):
            twice = next(n for n in header if header.count(n) > 1)
            raise Problem(BAD_TABLE, path=path, why=f"two columns are named '{twice}'")
        cells: list[list[str]] = [[] for _ in header]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise Problem(
                    BAD_TABLE, path=path,
                    why=f"line {reader.line_num} has {len(row)} cells and the header "
                    f"{len(header)}")
            for column, cell in zip(cells, row, strict=True):
                column.append(cell)
    except csv.Error as error:
        raise Problem(BAD_TABLE, path=path, why=f"line {reader.line_num}: {error}") from None
    if not cells[0]:
        raise Problem(EMPTY_FILE, path=path)
    return dict(zip(header, cells, strict=True))


def _read_parquet(path: Path) -> Columns:
    if not path.is_file():
        raise Problem(NO_FILE, path=path, why="no such file")
    try:
        # Optional and 40 MB large, so only whoever has Parquet files installs it.
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Problem(NO_PARQUET, path=path) from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError, ValueError):
        raise Problem(BAD_TABLE, path=path, why="it is not a Parquet file") from None
    if table.num_rows == 0:
        raise Problem(EMPTY_FILE, path=path)
    return {
        name: ["" if cell is None else str(cell) for cell in table.column(name).to_pylist()]
        for name in table.column_names
    }


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
