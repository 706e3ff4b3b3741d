"""The data schema: which columns a table must have, what they may hold, how they become numbers.

A subset of Table Schema (https://specs.frictionlessdata.io/table-schema/): ``fields`` with
``name``, ``type`` (``number``, ``integer``, ``boolean``, ``string``), ``constraints``
(``minimum``, ``maximum``, ``enum``). Ours are ``target``, ``positive``, and for each number its
public ``center`` and ``scale``: everybody standardises with the same constants, which the curator
states in the task, so that no client's own averages ever matter to another.

A row becomes: numbers ``(x - center) / scale``; a boolean 0 or 1; a string one 0/1 column for
each of its ``enum`` values but the first; then a constant 1; then the whole row is scaled to
length 1. So every row has norm 1 whatever its cells, and gradients are bounded by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import numpy as np
from msgspec import Meta, Struct, field

from accord.problems import (
    BAD_CELL,
    EMPTY_FILE,
    LEAKED_LABEL,
    MISSING_COLUMN,
    ONE_CLASS,
    UNKNOWN_COLUMN,
    Problem,
)

Name = Annotated[str, Meta(min_length=1, max_length=100)]
MISSING: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_FAR: Final = 1e100
_TRUE: Final = frozenset({"true", "1", "yes"})
_FALSE: Final = frozenset({"false", "0", "no"})


class Constraints(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a cell may hold. ``minimum`` and ``maximum`` are inclusive."""

    minimum: float | None = None
    maximum: float | None = None
    enum: Annotated[tuple[Name, ...], Meta(max_length=1000)] | None = None


class Field(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One column.

    Attributes:
        name: as in the header of the file.
        type: of its cells.
        description: what it means, for the person who joins.
        constraints: what is refused.
        center, scale: for numbers: subtracted, then divided by. Without them the range given by
            ``minimum`` and ``maximum`` is brought to -1 ... 1.
    """

    name: Name
    type: Literal["number", "integer", "boolean", "string"] = "number"
    description: Annotated[str, Meta(max_length=500)] = ""
    constraints: Constraints = field(default_factory=Constraints)
    center: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        limits = self.constraints
        numbers = (limits.minimum, limits.maximum, self.center, self.scale)
        if any(n is not None and not math.isfinite(n) for n in numbers):
            raise ValueError(f"column {self.name} has a number that is not finite")
        numeric = self.type in ("number", "integer")
        if not numeric and any(n is not None for n in numbers):
            raise ValueError(f"column {self.name} is {self.type}: only numbers have a range")
        if (self.type == "string") != (limits.enum is not None):
            raise ValueError(f"column {self.name}: 'enum' goes with type string, and only there")
        if limits.enum is not None and not 2 <= len(set(limits.enum)) == len(limits.enum):
            raise ValueError(f"column {self.name}: 'enum' needs two or more different values")
        low, high = limits.minimum, limits.maximum
        if low is not None and high is not None and low >= high:
            raise ValueError(f"column {self.name}: minimum must be below maximum")
        if (self.center is None) != (self.scale is None):
            raise ValueError(f"column {self.name}: give both center and scale, or neither")
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"column {self.name}: scale must be above 0")

    def standard(self) -> tuple[float, float]:
        """The constants (center, scale) that this number is standardised with.

        Raises:
            ValueError: neither they nor a range are given.
        """
        if self.center is not None and self.scale is not None:
            return self.center, self.scale
        low, high = self.constraints.minimum, self.constraints.maximum
        if low is None or high is None:
            raise ValueError(
                f"column {self.name}: give center and scale, or minimum and maximum")
        # Halved first: the sum of two finite numbers need not be finite.
        half = high / 2 - low / 2
        if half <= 0:
            raise ValueError(f"column {self.name}: minimum and maximum are too close")
        return low / 2 + high / 2, half

    def width(self) -> int:
        """How many features this column becomes."""
        return len(self.constraints.enum) - 1 if self.constraints.enum is not None else 1


class Schema(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The columns of the task's data.

    Attributes:
        fields: all columns, the target among them; other columns in a file are refused.
        target: name of the column that holds the answer.
        positive: the value of the target that means 1; all its other allowed value means 0.
            Left out for a boolean, or an integer that is 0 or 1.
    """

    fields: Annotated[tuple[Field, ...], Meta(min_length=2, max_length=10_000)]
    target: Name
    positive: Annotated[str, Meta(max_length=100)] = ""

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields]
        if len(set(names)) != len(names):
            raise ValueError("two columns have the same name")
        if self.target not in names:
            raise ValueError(f"target {self.target} is not among the fields")
        target = self.answer()
        if target.type == "string":
            if len(target.constraints.enum or ()) != 2:
                raise ValueError(f"target {self.target} must have exactly two enum values")
            if self.positive not in (target.constraints.enum or ()):
                raise ValueError(f"'positive' must be one of the values of {self.target}")
        elif target.type == "number":
            raise ValueError(f"target {self.target} must be boolean, integer 0 or 1, or string")
        elif self.positive:
            raise ValueError("'positive' is only for a target of type string")
        for column in self.features():
            if column.type in ("number", "integer"):
                column.standard()

    def answer(self) -> Field:
        """The target's field."""
        return next(f for f in self.fields if f.name == self.target)

    def features(self) -> tuple[Field, ...]:
        """All fields but the target, in order."""
        return tuple(f for f in self.fields if f.name != self.target)

    @property
    def dimension(self) -> int:
        """Length of a standardised row, the constant 1 included."""
        return sum(f.width() for f in self.features()) + 1

    def encode(
        self, columns: Mapping[str, Sequence[str]], path: str, *, labelled: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Check a table of text cells and standardise it.

        Args:
            columns: cells by column name, all of one length.
            path: for the sentences of problems.
            labelled: whether the target must be there; else it is ignored where present.

        Returns:
            X of shape (n, dimension), rows of norm 1; y of shape (n,), 0.0 or 1.0 (empty when
            not ``labelled``).

        Raises:
            Problem: ``MISSING_COLUMN``, ``UNKNOWN_COLUMN``, ``EMPTY_FILE``, ``BAD_CELL`` with
                the row (the first row of data is row 1) and the column, ``ONE_CLASS`` and
                ``LEAKED_LABEL`` for a labelled table.
        """
        known = {f.name for f in self.fields}
        wanted = [f.name for f in self.fields if labelled or f.name != self.target]
        for name in wanted:
            if name not in columns:
                raise Problem(
                    MISSING_COLUMN, path=path, column=name, expected=_shorten(wanted))
        for name in columns:
            if name not in known:
                raise Problem(UNKNOWN_COLUMN, path=path, column=name)
        n = len(next(iter(columns.values()), ()))
        if n == 0:
            raise Problem(EMPTY_FILE, path=path)
        blocks = [_encode_column(f, columns[f.name], path) for f in self.features()]
        rows = np.hstack([*blocks, np.ones((n, 1))])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        if not labelled:
            return rows, np.empty(0)
        labels = self.labels(columns, path)
        if labels.min() == labels.max():
            raise Problem(
                ONE_CLASS, path=path, column=self.target, value=columns[self.target][0])
        for column, block in zip(self.features(), blocks, strict=True):
            # A feature with two values that tell the answer in every row is the answer; in a
            # handful of rows that may be chance.
            if n >= 20 and column.width() == 1 and len(np.unique(block)) == 2:
                high = block[:, 0] == block.max()
                if bool((high == (labels == 1)).all() or (high == (labels == 0)).all()):
                    raise Problem(
                        LEAKED_LABEL, path=path, column=column.name, target=self.target)
        return rows, labels

    def labels(self, columns: Mapping[str, Sequence[str]], path: str) -> np.ndarray:
        """The answers alone, 0.0 or 1.0, shape (n,), of a table that has them.

        Raises:
            Problem: ``BAD_CELL``.
        """
        return _encode_answer(self.answer(), self.positive, columns[self.target], path)

    @property
    def answers(self) -> tuple[str, str]:
        """What 0 and 1 are called, in the words of the target's column."""
        target = self.answer()
        if target.type == "boolean":
            return "false", "true"
        zero = next((v for v in target.constraints.enum or () if v != self.positive), "0")
        return zero, self.positive or "1"


def _shorten(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _bad(path: str, row: int, column: str, why: str) -> Problem:
    return Problem(BAD_CELL, path=path, row=row + 1, column=column, why=why)


def _encode_column(column: Field, cells: Sequence[str], path: str) -> np.ndarray:
    """One column as a block of shape (n, width)."""
    if column.type in ("number", "integer"):
        values = _numbers(column, cells, path)
        center, scale = column.standard()
        # What is too large for a float, or its square would be, stays a very large number: the
        # row's length must be finite whatever is in its cells and in a stranger's task.
        with np.errstate(over="ignore"):
            return np.clip((values - center) / scale, -_FAR, _FAR)[:, None]
    if column.type == "boolean":
        return _booleans(column, cells, path)[:, None]
    allowed = {value: i for i, value in enumerate(column.constraints.enum or ())}
    block = np.zeros((len(cells), len(allowed)))
    for row, cell in enumerate(cells):
        text = cell.strip()
        if text not in allowed:
            raise _bad(path, row, column.name, _unexpected(text, _shorten(list(allowed))))
        block[row, allowed[text]] = 1.0
    return block[:, 1:]


def _encode_answer(
    column: Field, positive: str, cells: Sequence[str], path: str
) -> np.ndarray:
    if column.type == "boolean":
        return _booleans(column, cells, path)
    if column.type == "string":
        block = _encode_column(column, cells, path)[:, 0]
        is_second = positive == (column.constraints.enum or ("", ""))[1]
        return block if is_second else 1.0 - block
    values = _numbers(column, cells, path)
    wrong = np.flatnonzero((values != 0) & (values != 1)).tolist()
    if wrong:
        raise _bad(path, wrong[0], column.name, _unexpected(cells[wrong[0]], "0 or 1"))
    return values


def _unexpected(text: str, expected: str) -> str:
    if text.strip().lower() in MISSING:
        return f"the value is missing (expected {expected})"
    return f"'{text[:40]}' is not {expected}"


def _booleans(column: Field, cells: Sequence[str], path: str) -> np.ndarray:
    values = np.zeros(len(cells))
    for row, cell in enumerate(cells):
        text = cell.strip().lower()
        if text in _TRUE:
            values[row] = 1.0
        elif text not in _FALSE:
            raise _bad(path, row, column.name, _unexpected(cell, "true or false"))
    return values


def _numbers(column: Field, cells: Sequence[str], path: str) -> np.ndarray:
    what = "a whole number" if column.type == "integer" else "a number"
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        text = cell.strip()
        try:
            if text.lower() in MISSING:
                raise ValueError
            value = float(text)
        except ValueError:
            raise _bad(path, row, column.name, _unexpected(text, what)) from None
        if not math.isfinite(value) or (column.type == "integer" and value != int(value)):
            raise _bad(path, row, column.name, f"'{text[:40]}' is not {what}")
        values[row] = value
    low, high = column.constraints.minimum, column.constraints.maximum
    for bound, outside, word in ((low, np.less, "below"), (high, np.greater, "above")):
        if bound is not None and (wrong := np.flatnonzero(outside(values, bound)).tolist()):
            text = cells[wrong[0]].strip()[:40]
            raise _bad(path, wrong[0], column.name, f"{text} is {word} {bound:.12g}")
    return values
