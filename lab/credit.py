"""The experiments' data: "Default of credit card clients", or made data of like shape.

I.-C. Yeh and C.-H. Lien, 2009 (UCI Machine Learning Repository, data set 350, CC BY 4.0): 30,000
clients of a bank, 23 features, 22 % of whom do not pay; a logistic regression errs in 19 %. It is
what the paper's evaluation uses. It is not part of this package: whoever has the file names it
by ``--data`` or in :data:`VARIABLE`; who has not gets made data, and the results say so. Sets that
come with scikit-learn go by ``sklearn:NAME`` (:data:`SHIPPED`); they are small.

The paper counts 24 features: its table has the answer among them, which is why its error falls to
nearly 0. Such a table is refused.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from accord.problems import LEAKS, NO_FILE, NO_LAB, Problem
from accord.schema import Field, Schema

VARIABLE: Final = "TORMENTOR_CREDIT_DATA"
_MADE: Final = "made data 1"
_ROWS: Final = 30_000
_FEATURES: Final = 23
_POSITIVE: Final = 0.2212
_TRAIN: Final = 0.7
_SKLEARN: Final = "sklearn:"
SHIPPED: Final = {
    "breast_cancer": "tumours, malignant or not (scikit-learn's breast cancer set)",
    "digits": "handwritten digits, an eight or another (scikit-learn's digits)",
}
"""Sets that come with scikit-learn, without any download, and what is asked of each."""
_SAME: Final = 0.9995
"""A correlation that reads 1.000: such a feature is the answer in other words."""


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """A data set as clients see it.

    Attributes:
        schema: of its columns, with the constants that everyone standardises with.
        rows: (n, d), each of length 1, the constant included.
        labels: (n,), 0.0 or 1.0.
        digest: names the content: two tables of one digest are the same.
        words: what it is, for people.
        order: (n,): a number for each row, by which unlike clients are made (a person's age).
    """

    schema: Schema
    rows: np.ndarray
    labels: np.ndarray
    digest: str
    words: str
    order: np.ndarray


@dataclass(frozen=True, slots=True, repr=False)
class Parts:
    """A table dealt out by one seed; each part is (rows (n, d), labels (n,)).

    Attributes:
        train: what clients hold, 70 %.
        validation: the curator's; clients hold none of it.
        test: what nobody trains on or judges by.
        order: of the training rows, as :attr:`Table.order`.
    """

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    order: np.ndarray


def find(data: str | Path | None) -> Path | None:
    """What :func:`load` takes, from what a person named.

    Args:
        data: a file; ``sklearn:NAME``; ``made``; or None: what :data:`VARIABLE` says, else made
            data.

    Raises:
        Problem: ``NO_FILE``: scikit-learn has no such set.
    """
    named = str(data) if data is not None else os.environ.get(VARIABLE) or "made"
    if named == "made":
        return None
    if named.startswith(_SKLEARN) and named.removeprefix(_SKLEARN) not in SHIPPED:
        known = ", ".join(_SKLEARN + name for name in SHIPPED)
        raise Problem(NO_FILE, path=named, why=f"of scikit-learn's there are {known}")
    return Path(named)


def is_file(data: Path | None) -> bool:
    """Whether what :func:`find` found is a file, and not the name of a set."""
    return data is not None and not str(data).startswith(_SKLEARN)


@functools.lru_cache(maxsize=2)
def load(data: Path | None) -> Table:
    """Read what :func:`find` found, or make data for None. The last ones are kept in memory.

    Raises:
        Problem: ``NO_FILE``; ``LEAKS``: a feature is the answer; ``NO_LAB``: there is no
            scikit-learn; or ``BAD_CELL`` and its like for a file that is something else.
    """
    if data is None:
        return made()
    return _read(data) if is_file(data) else _shipped(str(data).removeprefix(_SKLEARN))


def _read(path: Path) -> Table:
    """The UCI file as CSV: a header line, or two as in the original; id first, answer last."""
    try:
        raw = path.read_bytes()
        lines = list(csv.reader(raw.decode("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Problem(NO_FILE, path=path, why=str(error).lower()) from None
    head = next((i for i, line in enumerate(lines[:2]) if line and line[0].lower() == "id"), None)
    if head is None or len(lines[head]) < _FEATURES + 2:
        raise Problem(NO_FILE, path=path, why="it is not the credit data as CSV: ID, "
                                              f"{_FEATURES} features, the answer")
    names = lines[head][1:]
    body = [line for line in lines[head + 1:] if line]
    if any(len(line) != len(names) + 1 for line in body):
        raise Problem(NO_FILE, path=path, why="a line has another number of cells than the header")
    if len(set(names)) < len(names):
        raise Problem(NO_FILE, path=path, why="two columns have the same name")
    columns = {name: [line[i + 1] for line in body] for i, name in enumerate(names)}
    # Before their number is looked at: the likeliest column too many is the answer once more.
    refuse_leaks(columns, str(path))
    if len(names) != _FEATURES + 1:
        raise Problem(NO_FILE, path=path, why=f"it has {len(names) - 1} features between ID and "
                                              f"the answer, and the credit data {_FEATURES}")
    order = names.index("AGE") if "AGE" in names else 0
    return _table(columns, names, order, str(path), hashlib.sha256(raw).hexdigest(),
                  "Default of credit card clients (Yeh and Lien, 2009)")


def refuse_leaks(columns: Mapping[str, Sequence[str]], path: str) -> None:
    """See that no feature tells the answer, which is the last column.

    Args:
        columns: cells by name; what is no number is not looked at, and found wrong elsewhere.
        path: for the sentence.

    Raises:
        Problem: ``LEAKS``, with the name of the column.
    """
    *features, target = columns
    answer = _numbers(columns[target])
    if answer is None or not len(answer) or answer.std() == 0:
        return
    for name in features:
        feature = _numbers(columns[name])
        if feature is None or feature.std() == 0:
            continue
        likeness = float(np.mean((feature - feature.mean()) * (answer - answer.mean()))
                         / (feature.std() * answer.std()))
        if np.array_equal(feature, answer):
            how = "equals"
        elif np.array_equal(feature, 1 - answer):
            how = "is the opposite of"
        elif abs(likeness) >= _SAME:
            how = f"has a correlation of {likeness:.3f} with"
        else:
            continue
        raise Problem(LEAKS, path=path, column=name, how=how, target=target)


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        return None


def _shipped(name: str) -> Table:
    """A set of :data:`SHIPPED`."""
    try:
        from sklearn import datasets
    except ImportError:
        raise Problem(NO_LAB, package="scikit-learn") from None
    if name == "breast_cancer":
        data = datasets.load_breast_cancer()
        answers = data.target == 0
    else:
        data = datasets.load_digits()
        answers = data.target == 8
    names = [*map(str, data.feature_names), "answer"]
    columns = {each: [f"{cell:.9g}" for cell in data.data[:, i]]
               for i, each in enumerate(names[:-1])}
    columns["answer"] = [str(int(answer)) for answer in answers]
    path = _SKLEARN + name
    refuse_leaks(columns, path)
    content = "".join("\n".join([each, *cells]) for each, cells in columns.items())
    return _table(columns, names, 0, path, hashlib.sha256(content.encode()).hexdigest(),
                  SHIPPED[name])


def made() -> Table:
    """Data of the same shape and hardness, always the same: 23 features in correlated groups,
    22 % ones, and a logistic regression that errs in about 19 %."""
    rng = np.random.default_rng(20_181_129)
    groups = rng.standard_normal((_ROWS, 4))
    mixing = rng.standard_normal((4, _FEATURES))
    features = groups @ mixing + 1.5 * rng.standard_normal((_ROWS, _FEATURES))
    # One column tells most, as the last payment does in the real data.
    features[:, 5] += rng.standard_t(4, _ROWS)
    direction = 0.1 * rng.standard_normal(_FEATURES)
    direction[5] = 1.0
    score = features @ direction
    score = score / score.std() + 1.22 * rng.standard_normal(_ROWS)
    answers = score > np.quantile(score, 1 - _POSITIVE)
    names = [f"x{i}" for i in range(_FEATURES)] + ["default"]
    columns = {name: [f"{cell:.6g}" for cell in features[:, i]]
               for i, name in enumerate(names[:-1])}
    columns["default"] = [str(int(answer)) for answer in answers]
    return _table(columns, names, 0, _MADE, _MADE, "made data (not the credit data)")


def _table(columns: dict[str, list[str]], names: list[str], order: int, path: str, digest: str,
           words: str) -> Table:
    """Cells as real clients encode them: by a schema with rounded public constants."""
    try:
        numbers = np.array([columns[name] for name in names[:-1]], dtype=np.float64)
    except ValueError as error:
        raise Problem(NO_FILE, path=path, why=str(error)) from None
    fields = tuple(
        Field(name=name, center=float(f"{column.mean():.3g}"),
              scale=float(f"{column.std() or 1.0:.3g}"))
        for name, column in zip(names[:-1], numbers, strict=True))
    schema = Schema(fields=(*fields, Field(name=names[-1], type="integer")), target=names[-1])
    rows, labels = schema.encode(columns, path)
    return Table(schema, rows, labels, digest, words, numbers[order])


def deal(table: Table, validation_rows: int, seed: int) -> Parts:
    """Split a table: 70 % to train; of the rest, so many rows to validate, the others to test.

    Raises:
        ValueError: no row would be left to test with.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(table.labels))
    cut = int(_TRAIN * len(order))
    if not 0 <= validation_rows < len(order) - cut:
        raise ValueError(f"{validation_rows} validation rows of {len(order) - cut}")
    train, validation, test = np.split(order, [cut, cut + validation_rows])

    def part(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return table.rows[chosen], table.labels[chosen]

    return Parts(part(train), part(validation), part(test), table.order[train])


def converged(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights (d,) of a converged logistic regression on rows (n, d), by Newton's method.

    It has an L2 penalty of 1/n, which is scikit-learn's default. On 100 rows that is the best of
    the penalties from 0.0001 to 0.1: with none, whoever only has the validation rows would do
    worse, and would be too easy to beat.

    Args:
        rows: of length 1.
        labels: 0.0 or 1.0.
    """
    weights = np.zeros(rows.shape[1])
    ridge = 1.0 / len(labels)
    penalty = ridge * np.eye(len(weights))
    for _ in range(100):
        chance = 0.5 * (1 + np.tanh(0.5 * (rows @ weights)))
        slope = rows.T @ (chance - labels) / len(labels) + ridge * weights
        bend = (rows * (chance * (1 - chance))[:, None]).T @ rows / len(labels) + penalty
        step = np.linalg.solve(bend, slope)
        # Newton's step may overshoot far from the optimum; so long a one is never needed there.
        length = float(np.linalg.norm(step))
        weights -= step * min(1.0, 5.0 / length if length else 1.0)
        if length < 1e-8:
            break
    return weights
