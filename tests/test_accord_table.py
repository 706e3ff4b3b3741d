"""Reading tables: the dialects people have, and a sentence for what is not a table."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.problems import BAD_TABLE, EMPTY_FILE, NO_FILE, NO_PARQUET, Kind, Problem
from accord.table import read_table

EXPECTED = {"a": ["1", "2"], "b": ["x", "y"]}


def read(tmp_path: Path, raw: bytes, name: str = "t.csv") -> dict[str, list[str]]:
    path = tmp_path / name
    path.write_bytes(raw)
    return read_table(path)


def problem(tmp_path: Path, raw: bytes, name: str = "t.csv") -> Problem:
    with pytest.raises(Problem) as caught:
        read(tmp_path, raw, name)
    assert name in caught.value.sentence
    return caught.value


@pytest.mark.parametrize("raw", [
    b"a,b\n1,x\n2,y\n", b"a;b\n1;x\n2;y\n", b"a\tb\n1\tx\n2\ty\n", b"a,b\r\n1,x\r\n2,y\r\n",
    b"a,b\r1,x\r2,y\r", b"a,b\n1,x\n2,y", b"\xef\xbb\xbfa,b\n1,x\n2,y\n",
    b'"a","b"\n"1","x"\n"2","y"\n', b" a , b \n1,x\n2,y\n", b"a,b\n\n1,x\n\n2,y\n\n",
])
def test_dialects(tmp_path: Path, raw: bytes) -> None:
    assert read(tmp_path, raw) == EXPECTED


def test_quotes_hold_delimiters_quotes_and_lines(tmp_path: Path) -> None:
    raw = 'name,b\n"Lima, Peru","say ""no"""\n"two\nlines",ä\n'.encode()
    assert read(tmp_path, raw) == {"name": ["Lima, Peru", "two\nlines"], "b": ['say "no"', "ä"]}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"),
                        max_size=8), min_size=1, max_size=10))
def test_what_csv_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["first", "n"], *([cell, str(i)] for i, cell in enumerate(cells))])
    path = tmp_path_factory.mktemp("t")
    columns = read(path, text.getvalue().encode())
    assert columns == {"first": cells, "n": [str(i) for i in range(len(cells))]}


@pytest.mark.parametrize(("raw", "kind", "said"), [
    (b"", EMPTY_FILE, "no rows"), (b"\n\n", EMPTY_FILE, "no rows"), (b"a,b\n", EMPTY_FILE, ""),
    (b"a,b\n\n\n", EMPTY_FILE, ""), (b"a,b\n1\n", BAD_TABLE, "line 2 has 1 cells"),
    (b"a,b\n1,2\n1,2,3\n", BAD_TABLE, "line 3 has 3 cells and the header 2"),
    (b"a,a\n1,2\n", BAD_TABLE, "two columns are named 'a'"),
    (b'a,b\n"1,2\n', BAD_TABLE, "line"), (b'a,b\n"1"x,2\n', BAD_TABLE, "line 2"),
    (b"a,b\n1,\xff\n", BAD_TABLE, "not text in UTF-8"), (b"\xff\xfea\x00", BAD_TABLE, "UTF-8"),
    (b"a,b\n1," + b"x" * 200_000 + b"\n", BAD_TABLE, "line 2"),
    (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\x9f", BAD_TABLE, "UTF-8"),
])
def test_what_is_not_a_table(tmp_path: Path, raw: bytes, kind: Kind, said: str) -> None:
    found = problem(tmp_path, raw)
    assert found.kind is kind
    assert said in found.sentence
    assert len(found.sentence) < 300


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    for name in ("t.csv", "t.parquet"):
        try:
            columns = read(tmp_path_factory.mktemp("t"), raw, name)
        except Problem as found:
            assert found.kind in (BAD_TABLE, EMPTY_FILE)
        else:
            assert len({len(cells) for cells in columns.values()}) == 1


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_no_such_file_and_a_directory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for _ in range(2):
        with pytest.raises(Problem) as caught:
            read_table(path)
        assert caught.value.kind is NO_FILE
        path.mkdir(exist_ok=True)


# -- Parquet ---------------------------------------------------------------------------------
def parquet(columns: dict[str, list[object]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def test_parquet_gives_the_same_text(tmp_path: Path) -> None:
    raw = parquet({"a": [1, None], "b": [1.5, 2.0], "c": [True, False], "d": ["x", "y"]})
    for name in ("t.parquet", "t.PQ"):
        assert read(tmp_path, raw, name) == {
            "a": ["1", ""], "b": ["1.5", "2.0"], "c": ["True", "False"], "d": ["x", "y"]}


def test_parquet_that_is_none_is_empty_or_names_a_column_twice(tmp_path: Path) -> None:
    assert problem(tmp_path, b"a,b\n1,2\n", "t.parquet").kind is BAD_TABLE
    assert problem(tmp_path, parquet({"a": []}), "t.parquet").kind is EMPTY_FILE
    good = parquet({"a": [1, 2]})
    assert problem(tmp_path, good[: len(good) // 2], "t.parquet").kind is BAD_TABLE
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([[1], [2]], names=["a", "a"]), sink)
    assert problem(tmp_path, sink.getvalue(), "t.parquet").kind is BAD_TABLE


def test_without_pyarrow_it_is_said_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    found = problem(tmp_path, parquet({"a": [1]}), "t.parquet")
    assert found.kind is NO_PARQUET
    assert "pip install 'tormentor[parquet]'" in found.sentence
