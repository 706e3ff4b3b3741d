"""The schema: every row becomes a vector of length 1, and every wrong cell is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.problems import (
    BAD_CELL,
    EMPTY_FILE,
    LEAKED_LABEL,
    MISSING_COLUMN,
    ONE_CLASS,
    UNKNOWN_COLUMN,
    Problem,
)
from accord.schema import Constraints, Field, Schema

AGE = Field("age", "integer", constraints=Constraints(minimum=0, maximum=120))
WEIGHT = Field("weight", center=70.0, scale=12.5)
SMOKER = Field("smoker", "boolean")
TOWN = Field("town", "string", constraints=Constraints(enum=("Oslo", "Rome", "Lima")))
SICK = Field("sick", "boolean")
ALL = Schema((AGE, WEIGHT, SMOKER, TOWN, SICK), "sick")
GOOD = {"age": ["60", "30"], "weight": ["82.5", "57.5"], "smoker": ["yes", "FALSE"],
        "town": ["Lima", " Oslo "], "sick": ["1", "0"]}


def problem(schema: Schema, columns: dict[str, list[str]], **options: bool) -> Problem:
    with pytest.raises(Problem) as caught:
        schema.encode(columns, "rows.csv", **options)
    return caught.value


# -- exact -----------------------------------------------------------------------------------
def test_a_row_is_standardised_as_the_schema_says() -> None:
    rows, labels = ALL.encode(GOOD, "rows.csv")
    first = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    second = np.array([-0.5, -1.0, 0.0, 0.0, 0.0, 1.0])
    expected = [first / math.sqrt(4), second / math.sqrt(2.25)]
    np.testing.assert_allclose(rows, expected, atol=1e-15)
    np.testing.assert_array_equal(labels, [1.0, 0.0])
    assert rows.shape == (2, ALL.dimension)


def test_the_order_of_a_file_s_columns_does_not_matter() -> None:
    turned = dict(reversed(GOOD.items()))
    for a, b in zip(ALL.encode(GOOD, "a"), ALL.encode(turned, "b"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_labels_the_target_may_be_there_or_not() -> None:
    bare = {name: cells for name, cells in GOOD.items() if name != "sick"}
    spoilt = GOOD | {"sick": ["?", "?"]}
    expected = ALL.encode(GOOD, "a")[0]
    for columns in (bare, spoilt):
        rows, labels = ALL.encode(columns, "a", labelled=False)
        np.testing.assert_array_equal(rows, expected)
        assert labels.shape == (0,)


@pytest.mark.parametrize(("target", "positive", "cells", "expected"), [
    (Field("y", "boolean"), "", ["true", "No", "1"], [1, 0, 1]),
    (Field("y", "integer"), "", ["0", "1.0", "1"], [0, 1, 1]),
    (Field("y", "string", constraints=Constraints(enum=("ill", "well"))), "ill",
     ["well", "ill", "ill"], [0, 1, 1]),
    (Field("y", "string", constraints=Constraints(enum=("ill", "well"))), "well",
     ["well", "ill", "ill"], [1, 0, 0]),
])
def test_answers(target: Field, positive: str, cells: list[str], expected: list[int]) -> None:
    schema = Schema((WEIGHT, target), "y", positive)
    _, labels = schema.encode({"weight": ["1", "2", "3"], "y": cells}, "a")
    np.testing.assert_array_equal(labels, expected)


# -- any row ---------------------------------------------------------------------------------
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(FINITE, FINITE, st.booleans(), st.sampled_from("abc")),
                min_size=2, max_size=12),
       FINITE, st.floats(min_value=5e-324, allow_infinity=False), FINITE, FINITE)
def test_every_row_has_norm_one_whatever_its_cells_and_constants(
    rows: list[tuple[float, float, bool, str]], center: float, scale: float, low: float,
    high: float,
) -> None:
    schema = Schema((
        Field("a", center=center, scale=scale),
        Field("b", constraints=Constraints(minimum=-1.7e308, maximum=1.7e308)),
        Field("c", "boolean"),
        Field("d", "string", constraints=Constraints(enum=("a", "b", "c"))),
        Field("y", "integer")), "y")
    columns = {
        "a": [repr(row[0]) for row in rows],
        "b": [repr(max(-1.7e308, min(1.7e308, row[1]))) for row in rows],
        "c": [str(row[2]) for row in rows],
        "d": [row[3] for row in rows],
        "y": [str(i % 2) for i in range(len(rows))],
    }
    found, labels = schema.encode(columns, "a")
    assert found.shape == (len(rows), schema.dimension) == (len(rows), 6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(labels, [i % 2 for i in range(len(rows))])


@given(st.lists(st.floats(-50, 150), min_size=2, max_size=20), st.floats(-100, 100),
       st.floats(0.01, 100))
def test_standardisation_is_exact(values: list[float], center: float, scale: float) -> None:
    schema = Schema((Field("x", center=center, scale=scale), SICK), "sick")
    answers = ["1", "0"] * len(values)
    rows, _ = schema.encode({"x": list(map(repr, values)), "sick": answers[: len(values)]}, "a")
    z = (np.array(values) - center) / scale
    np.testing.assert_allclose(rows[:, 0] / rows[:, 1], z, rtol=1e-9, atol=1e-12)


@given(st.dictionaries(st.sampled_from(["age", "weight", "smoker", "town", "sick", "other"]),
                       st.lists(st.text(max_size=8), min_size=2, max_size=2)))
def test_any_text_is_a_row_or_a_problem(columns: dict[str, list[str]]) -> None:
    try:
        rows, _ = ALL.encode(GOOD | columns, "a")
    except Problem as found:
        assert found.kind.exit == 3
        return
    assert bool(np.isfinite(rows).all())


# -- wrong cells -----------------------------------------------------------------------------
@pytest.mark.parametrize(("column", "cell", "said"), [
    ("age", "121", "121 is above 120"), ("age", "-1", "-1 is below 0"),
    ("age", "12.5", "'12.5' is not a whole number"), ("age", "", "missing"),
    ("age", "n/a", "missing"), ("age", "NaN", "missing"), ("age", "inf", "not a whole number"),
    ("age", "old", "'old' is not a whole number"), ("age", "1e400", "not a whole number"),
    ("weight", "70kg", "'70kg' is not a number"), ("weight", "-inf", "not a number"),
    ("weight", "?", "missing"), ("smoker", "2", "'2' is not true or false"),
    ("smoker", "null", "missing"), ("town", "Paris", "'Paris' is not Oslo, Rome, Lima"),
    ("town", "oslo", "not Oslo"), ("town", "", "missing"), ("sick", "maybe", "true or false"),
])
@pytest.mark.parametrize("row", [0, 1])
def test_a_wrong_cell_is_named_by_row_and_column(
    column: str, cell: str, said: str, row: int
) -> None:
    cells = list(GOOD[column])
    cells[row] = cell
    found = problem(ALL, GOOD | {column: cells})
    assert found.kind is BAD_CELL
    assert (found.details["row"], found.details["column"]) == (row + 1, column)
    assert said in found.sentence


def test_an_integer_answer_is_0_or_1() -> None:
    schema = Schema((WEIGHT, Field("y", "integer")), "y")
    found = problem(schema, {"weight": ["1", "2"], "y": ["1", "2"]})
    assert (found.details["row"], found.details["column"]) == (2, "y")


def test_a_long_cell_does_not_fill_the_screen() -> None:
    for column in GOOD:
        found = problem(ALL, GOOD | {column: ["x" * 10_000, GOOD[column][1]]})
        assert len(found.sentence) < 300
    huge = problem(ALL, GOOD | {"age": ["1" + "0" * 300, "1"]})
    assert len(huge.sentence) < 300


# -- wrong tables ----------------------------------------------------------------------------
def test_missing_and_unknown_columns() -> None:
    for name in GOOD:
        less = {n: cells for n, cells in GOOD.items() if n != name}
        found = problem(ALL, less)
        assert found.kind is MISSING_COLUMN
        assert found.details["column"] == name
        assert "age, weight, smoker" in found.sentence
    found = problem(ALL, GOOD | {"diary": ["a", "b"]})
    assert (found.kind, found.details["column"]) == (UNKNOWN_COLUMN, "diary")


def test_a_missing_column_of_many_is_said_shortly() -> None:
    many = Schema((*(Field(f"f{i}", "boolean") for i in range(1000)), SICK), "sick")
    assert "and 993 more" in problem(many, {}).sentence


def test_no_rows_and_one_answer() -> None:
    assert problem(ALL, {name: [] for name in GOOD}).kind is EMPTY_FILE
    found = problem(ALL, GOOD | {"sick": ["no", "0"]})
    assert found.kind is ONE_CLASS
    assert "sick = no" in found.sentence


@pytest.mark.parametrize("same", [lambda y: y, lambda y: not y])
@pytest.mark.parametrize("kind", ["boolean", "number", "string"])
def test_a_leaked_label_is_found(same: Callable[[bool], bool], kind: str) -> None:
    limits = {"number": Constraints(minimum=0, maximum=9), "boolean": Constraints(),
              "string": Constraints(enum=("0", "1"))}
    leak = Field("leak", kind, constraints=limits[kind])  # type: ignore[arg-type]
    schema = Schema((WEIGHT, leak, SICK), "sick")
    answers = [i % 3 == 0 for i in range(20)]
    columns = {"weight": [str(i) for i in range(20)],
               "leak": [str(int(same(y))) for y in answers],
               "sick": [str(int(y)) for y in answers]}
    found = problem(schema, columns)
    assert found.kind is LEAKED_LABEL
    assert found.details["column"] == "leak"
    # In a handful of rows it may be chance; and one row that differs is enough.
    schema.encode({name: cells[:19] for name, cells in columns.items()}, "a")
    turned = [str(1 - int(columns["leak"][0])), *columns["leak"][1:]]
    schema.encode(columns | {"leak": turned}, "a")


# -- wrong schemas ---------------------------------------------------------------------------
@pytest.mark.parametrize(("make", "said"), [
    (lambda: Field("x", constraints=Constraints(minimum=math.nan)), "not finite"),
    (lambda: Field("x", center=math.inf, scale=1.0), "not finite"),
    (lambda: Field("x", "boolean", center=0.0, scale=1.0), "only numbers"),
    (lambda: Field("x", "string"), "enum"),
    (lambda: Field("x", "number", constraints=Constraints(enum=("a", "b"))), "enum"),
    (lambda: Field("x", "string", constraints=Constraints(enum=("a",))), "two or more"),
    (lambda: Field("x", "string", constraints=Constraints(enum=("a", "a"))), "two or more"),
    (lambda: Field("x", constraints=Constraints(minimum=1, maximum=1)), "below maximum"),
    (lambda: Field("x", center=1.0), "both center and scale"),
    (lambda: Field("x", center=1.0, scale=0.0), "above 0"),
    (lambda: Schema((Field("x"), SICK), "sick"), "give center and scale"),
    (lambda: Schema((WEIGHT, WEIGHT, SICK), "sick"), "same name"),
    (lambda: Schema((WEIGHT, SICK), "ill"), "not among"),
    (lambda: Schema((SICK, WEIGHT), "weight"), "must be boolean"),
    (lambda: Schema((WEIGHT, TOWN), "town", "Oslo"), "exactly two"),
    (lambda: Schema((WEIGHT, SICK), "sick", "yes"), "only for a target of type string"),
    (lambda: Schema((WEIGHT, Field("y", "string", constraints=Constraints(enum=("a", "b")))),
                    "y", "c"), "one of the values"),
    (lambda: Schema((Field("x", constraints=Constraints(minimum=0, maximum=5e-324)), SICK),
                    "sick"), "too close"),
])
def test_a_schema_that_makes_no_sense_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
