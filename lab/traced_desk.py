"""``tormentor broker`` with a trace: what was on each model's disk, and when.

The desk of :mod:`lab.geo`, run as a program: ``python -m lab.traced_desk broker ...``. Two things
are other than in ``tormentor broker``:

- each commit of a model's state is also added to ``STATE/traces/ONION`` (:class:`Trace` reads it),
  after it is on the disk;
- its door serves more connections a second (:data:`OPEN`). What is measured with it is a protocol
  that makes a connection for each update; the limit would bind it, and is there against floods.
"""

from __future__ import annotations

import functools
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np

from accord.onion import onion_from_seed
from accord.seed import load_or_create_seed
from broker.limits import ACCEPTS, Limits
from broker.records import Changes, ModelRow
from broker.store import Store

OPEN: Final = Limits(served=ACCEPTS, served_at_once=ACCEPTS)
"""The limits of this desk's doors: as many are served as are taken from the kernel."""
TRACES: Final = "traces"
_HEAD: Final = struct.Struct("<Q")
_PHASES: Final = ("waiting", "gathering", "training", "paused", "published", "gone")


def _kind(dimension: int) -> np.dtype[np.void]:
    return np.dtype([("at", "<f8"), ("phase", "u1"), ("updates", "<u8"), ("strikes", "<u8"),
                     ("weights", "<f8", (dimension,))])


@dataclass(frozen=True, slots=True)
class Commit:
    """A state of a model that was on the disk.

    Attributes:
        at: seconds of this machine's monotonic clock, just after it was.
        phase: of the model; updates: how many were applied; strikes: given to all together.
        weights: (d,).
    """

    at: float
    phase: str
    updates: int
    strikes: int
    weights: np.ndarray


def line_of(row: ModelRow, at: float) -> bytes:
    """What a trace says of a state."""
    kind = _kind(len(row.weights))
    return np.array((at, _PHASES.index(row.phase), row.updates, row.strikes, row.weights),
                    dtype=kind).tobytes()


class Trace:
    """Reads a trace while it is written.

    Args:
        path: of the file; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kind: np.dtype[np.void] | None = None
        self._at = 0

    def more(self) -> list[Commit]:
        """The commits that were written since the last time; one that is not whole yet is left."""
        try:
            with self._path.open("rb") as file:
                if self._kind is None:
                    head = file.read(_HEAD.size)
                    if len(head) < _HEAD.size:
                        return []
                    self._kind, self._at = _kind(*_HEAD.unpack(head)), _HEAD.size
                file.seek(self._at)
                raw = file.read()
        except FileNotFoundError:
            return []
        size = self._kind.itemsize
        raw = raw[: len(raw) // size * size]
        self._at += len(raw)
        return [Commit(float(one["at"]), _PHASES[int(one["phase"])], int(one["updates"]),
                       int(one["strikes"]), one["weights"].copy())
                for one in np.frombuffer(raw, dtype=self._kind)]


class TracedStore(Store):
    """A store that writes down when it has written what."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._place = path
        self._trace: Path | None = None

    def write(self, changes: Changes) -> None:
        """Bring changes to the disk, and then into the trace."""
        super().write(changes)
        if changes.model is None:
            return
        at = time.monotonic()
        if self._trace is None:
            self._trace = self._new(len(changes.model.weights))
        with self._trace.open("ab", buffering=0) as file:
            file.write(line_of(changes.model, at))

    def _new(self, dimension: int) -> Path:
        onion = onion_from_seed(load_or_create_seed(self._place.with_name("onion.seed")))
        directory = self._place.parent.parent.parent / TRACES
        directory.mkdir(exist_ok=True)
        trace = directory / onion
        if not trace.exists():
            trace.write_bytes(_HEAD.pack(dimension))
        return trace


def main() -> None:
    """The broker's command, traced."""
    from broker import cli, desk, direct

    for module, name, other in (
        (desk, "Store", TracedStore),
        (desk, "Publisher", functools.partial(desk.Publisher, limits=OPEN)),
        (desk, "Desk", functools.partial(desk.Desk, limits=OPEN)),
        (direct, "DirectFront", functools.partial(direct.DirectFront, limits=OPEN)),
    ):
        setattr(module, name, other)
    click.Group(commands={"broker": cli.broker})()


if __name__ == "__main__":
    main()
