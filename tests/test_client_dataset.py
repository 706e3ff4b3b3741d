"""Rows: what is refused, and what becomes of the rest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from client_world import HEADER, SCHEMA, write_rows
from hypothesis import given
from hypothesis import strategies as st

from accord.problems import (
    BAD_CELL,
    BAD_TABLE,
    EMPTY_FILE,
    MISSING_COLUMN,
    NO_FILE,
    ONE_CLASS,
    TOO_FEW_ROWS,
    UNKNOWN_COLUMN,
    Kind,
    Problem,
)
from client.dataset import fingerprint, identity, load, read

ROW = "30,50,true,north,yes"


def test_a_good_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.csv", rows=60)
    data = load(path, SCHEMA, 50)
    assert data.rows.shape == (60, SCHEMA.dimension) and data.labels.shape == (60,)
    assert np.allclose(np.linalg.norm(data.rows, axis=1), 1.0)
    assert data.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.csv")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write_rows(tmp_path / "mine.csv", rows=60)
    parquet.write_table(pyarrow.read_csv(path), tmp_path / "mine.parquet")
    data, same = load(path, SCHEMA, 50), load(tmp_path / "mine.parquet", SCHEMA, 50)
    assert np.allclose(data.rows, same.rows) and (data.labels == same.labels).all()
    assert data.fingerprint != same.fingerprint and data.identity == same.identity


def test_no_repr_shows_a_row(tmp_path: Path) -> None:
    data = load(write_rows(tmp_path / "mine.csv", rows=60), SCHEMA, 50)
    assert "array" not in repr(data)


BAD: dict[str, tuple[str, Kind]] = {
    "empty": ("", EMPTY_FILE),
    "header only": (HEADER, EMPTY_FILE),
    "wrong header": (f"a,b,c,d,e\n{ROW}\n{ROW}", MISSING_COLUMN),
    "unknown column": (f"{HEADER},extra\n{ROW},1\n{ROW},1", UNKNOWN_COLUMN),
    "text in a number": (f"{HEADER}\n{ROW}\nold,50,true,north,no", BAD_CELL),
    "NaN": (f"{HEADER}\n{ROW}\n30,NaN,true,north,no", BAD_CELL),
    "infinite": (f"{HEADER}\n{ROW}\n30,inf,true,north,no", BAD_CELL),
    "out of range": (f"{HEADER}\n{ROW}\n130,50,true,north,no", BAD_CELL),
    "another region": (f"{HEADER}\n{ROW}\n30,50,true,east,no", BAD_CELL),
    "one class": (f"{HEADER}\n{ROW}\n{ROW}", ONE_CLASS),
    "short row": (f"{HEADER}\n{ROW}\n30,50", BAD_TABLE),
    "too few": (f"{HEADER}\n{ROW}", TOO_FEW_ROWS),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(tmp_path: Path, name: str) -> None:
    content, kind = BAD[name]
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(Problem) as caught:
        load(path, SCHEMA, 2)
    assert caught.value.kind is kind


@pytest.mark.parametrize("name", ["missing", "directory", "pipe", "device", "binary"])
def test_what_is_no_table(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    match name:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "binary":
            path.write_bytes(b"\xff\xfe" * 100)
    with pytest.raises(Problem) as caught:
        read(path, 1)
    assert caught.value.kind is (BAD_TABLE if name == "binary" else NO_FILE)
    if name != "binary":
        with pytest.raises(Problem):
            fingerprint(path)


# -- what rows are known by -------------------------------------------------------------------

cells = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(str), st.integers().map(str),
    st.sampled_from(["north", "South", "", "true"]))
tables = st.integers(1, 6).flatmap(lambda n: st.dictionaries(
    st.sampled_from("abcdef"), st.lists(cells, min_size=n, max_size=n), min_size=1))


@given(tables, st.randoms(use_true_random=False))
def test_rows_are_known_however_they_are_saved(columns, random):
    names, count = list(columns), len(next(iter(columns.values())))
    random.shuffle(names)
    order = random.sample(range(count), count)
    other = {name: [f" {columns[name][i].upper()} " for i in order] for name in names}
    assert identity(other) == identity(columns)


@given(tables, st.data())
def test_other_rows_are_others(columns, data):
    name = data.draw(st.sampled_from(sorted(columns)))
    i = data.draw(st.integers(0, len(columns[name]) - 1))
    other = {n: list(c) for n, c in columns.items()}
    other[name][i] = "somewhere else"
    assert identity(other) != identity(columns)
    assert identity({n: c + c[-1:] for n, c in columns.items()}) != identity(columns)
    assert identity({**columns, "g": columns[name]}) != identity(columns)


def test_ways_to_write_a_number():
    assert identity({"x": ["1", "-0", "2.50"]}) == identity({"x": ["2.5", "1e0", "0"]})
    # Cells and rows cannot run into each other.
    assert identity({"x": ["a"], "y": ["bc"]}) != identity({"x": ["ab"], "y": ["c"]})
