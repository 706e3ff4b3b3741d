"""The demo's world: one diagnosis task, five hospitals, and what each could do without the others.

The data is scikit-learn's copy of the Breast Cancer Wisconsin (Diagnostic) set (Street, Wolberg
and Mangasarian, 1993): 569 tumours, 30 measurements of cell nuclei each. It is split once, by a
fixed seed: five hospitals of 60 rows, 60 validation rows of the curator, 209 test rows that
nobody trains on or sees before the end. Hospitals see different patients: the first mostly small
tumours, the last mostly large ones (rows are dealt in the order of size plus as much chance).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

ROWS: Final = 60
VALIDATION_ROWS: Final = 60
_SPLIT_SEED: Final = 0
_AREA: Final = 3
"""Column of the mean area of a nucleus, by which hospitals differ."""
UPDATES: Final = 300
"""When the demo's training ends: about 60 updates of each hospital."""


@dataclass(frozen=True, slots=True)
class Hospital:
    """One client of the demo, and what it wants.

    Attributes:
        name: of its files.
        budget: the epsilon that it is willing to spend in all.
        min_clients: k.
    """

    name: str
    budget: float
    min_clients: int


HOSPITALS: Final = (
    Hospital("hospital-1", 4, 5),
    Hospital("hospital-2", 5, 3),
    Hospital("hospital-3", 6, 4),
    Hospital("hospital-4", 8, 2),
    Hospital("hospital-5", 10, 3),
)
"""From the most careful to the least; none of them names the noise, which their budgets buy."""


@dataclass(frozen=True, slots=True)
class Split:
    """Who holds what: each part is (measurements (n, 30), malignant (n,) of 0 and 1)."""

    names: list[str]
    hospitals: list[tuple[np.ndarray, np.ndarray]]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def split() -> Split:
    """The demo's data, always the same."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    malignant = (data.target == 0).astype(int)
    rng = np.random.default_rng(_SPLIT_SEED)
    order = rng.permutation(len(malignant))
    first = len(HOSPITALS) * ROWS
    size = data.data[order[:first], _AREA]
    order[:first] = order[:first][np.argsort(size / size.std() + rng.normal(size=first))]
    rows, labels = data.data[order], malignant[order]

    def part(start: int, stop: int | None) -> tuple[np.ndarray, np.ndarray]:
        return rows[start:stop], labels[start:stop]

    return Split(
        names=[str(name) for name in data.feature_names],
        hospitals=[part(i * ROWS, (i + 1) * ROWS) for i in range(len(HOSPITALS))],
        validation=part(first, first + VALIDATION_ROWS),
        test=part(first + VALIDATION_ROWS, None),
    )


def write_files(parts: Split, directory: Path) -> None:
    """Write each hospital's rows, the curator's, the test rows and the task, as files."""
    for hospital, part in zip(HOSPITALS, parts.hospitals, strict=True):
        _write_csv(directory / f"{hospital.name}.csv", parts.names, part)
    _write_csv(directory / "validation.csv", parts.names, parts.validation)
    _write_csv(directory / "test.csv", parts.names, parts.test)
    (directory / "task.toml").write_text(task_toml(parts), encoding="utf-8")


def _write_csv(path: Path, names: list[str], part: tuple[np.ndarray, np.ndarray]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "malignant"])
        for row, label in zip(*part, strict=True):
            writer.writerow([*(f"{cell:g}" for cell in row), int(label)])


def task_toml(parts: Split) -> str:
    """The task file that the demo's curator writes.

    Its constants come from the curator's own 60 rows, rounded to three digits.
    """
    rows, _ = parts.validation
    fields = "".join(
        f'\n[[data.fields]]\nname = "{name}"\nconstraints = {{ minimum = 0 }}\n'
        f"center = {center:.3g}\nscale = {scale:.3g}\n"
        for name, center, scale in zip(
            parts.names, rows.mean(axis=0), rows.std(axis=0), strict=True)
    )
    return f'''# The demo's task. 'tormentor curate --init YOUR.csv' writes one for your own data.
title = "Is this breast tumour malignant?"
description = """From 30 measurements of cell nuclei in a fine needle aspirate. Five hospitals
train one model; none of them shows its patients to anyone."""

[training]
mode = "asynchronous"
step = 1.0
schedule = "1/sqrt(t)"
clip = 0.5
max_updates = {UPDATES}
deadline = 120.0

[clients]
minimum = 5
maximum = 10

[puzzles]
admission = 4
update = 2

[data]
target = "malignant"

[[data.fields]]
name = "malignant"
type = "integer"
{fields}'''


def baselines(parts: Split) -> tuple[float, list[float]]:
    """Test errors without any privacy: of one model on everybody's rows together, and of each
    hospital's own. scikit-learn's logistic regression, standardised."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def error(rows: np.ndarray, labels: np.ndarray) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(rows, labels)
        test_rows, test_labels = parts.test
        return float(np.mean(model.predict(test_rows) != test_labels))

    together = error(
        np.vstack([rows for rows, _ in parts.hospitals]),
        np.concatenate([labels for _, labels in parts.hospitals]))
    return together, [error(*part) for part in parts.hospitals]
