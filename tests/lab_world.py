"""A small table for tests of the lab: three features, quickly learnt."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from accord.schema import Constraints, Field, Schema
from lab.credit import Table


def make_table(n: int = 2000, seed: int = 1) -> Table:
    """Rows of length 1, a third of them ones; a tenth of the labels are chance."""
    rng = np.random.default_rng(seed)
    names = [f"x{i}" for i in range(3)]
    fields = tuple(Field(name=x, constraints=Constraints(minimum=-1, maximum=1)) for x in names)
    features = rng.uniform(-1, 1, (n, 3))
    rows = np.hstack([features, np.ones((n, 1))])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = (features[:, 0] + 0.2 * features[:, 1] > 0.3).astype(np.float64)
    wrong = rng.random(n) < 0.1
    labels[wrong] = rng.integers(0, 2, int(wrong.sum()))
    schema = Schema(fields=(*fields, Field(name="y", type="integer")), target="y")
    return Table(schema, rows, labels, "small", "a small table", features[:, 1])


def processes_of(place: Path) -> list[str]:
    """Command lines of other processes that have to do with a directory."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(place) in line:
                found.append(line)
    return found
