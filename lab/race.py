"""A race: what is run, how it is followed by what the desk wrote down, what a curator hands over.

What is the same wherever it is run: on one machine (:mod:`lab.geo`), or on many
(:mod:`lab.field`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from client.accounting import epsilon_total
from client.noise import Release
from lab.arrival import WITHIN, Arrival
from lab.credit import Parts, Table
from lab.demo import Failed
from lab.setting import error_of
from lab.traced_desk import Commit, Trace

DELTA: Final = 1e-6
"""At which the price in privacy is told."""
JOINING: Final = 300.0
"""Seconds that all clients may take to join."""
STILL: Final = 120.0
"""Seconds without a commit, while there is training, after which the desk is taken to be gone:
twice :data:`SILENCE`, after which it would write that it pauses, where only clients are gone."""
SILENCE: Final = 60.0
"""Seconds until a client that is not heard of counts as gone."""
LOOK: Final = 0.05
"""Seconds between two looks at the error, at least,"""
SLOWER: Final = 200
"""and at least this part of the time so far: it need not be known more exactly."""
_POLL: Final = 0.1
_KEPT: Final = 400
"""Points of a curve that a result keeps, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One training, as plain data.

    Attributes:
        clients: how many.
        tor: through Tor, or without.
        protocol: ``ours`` or ``paper`` (:mod:`lab.contact`).
        seed: of who holds what; the noise is real.
        step, schedule, local_steps: see :class:`accord.task.Training`; ``paper`` makes one.
        limit: seconds within which it must have arrived.
        epsilon, batch, clip: of each step.
        share: rows of each client, drawn with replacement from the training rows.
        validation: of the task, as :class:`accord.task.Validation`.
        validation_rows: of the curator.
        admission, update: the puzzles' trailing zeros.
        processes: that the clients share.
    """

    clients: int
    tor: bool
    protocol: str
    seed: int
    step: float
    schedule: str
    local_steps: int = 1
    limit: float = 900.0
    epsilon: float = 2.0
    batch: int = 10
    clip: float = 0.5
    share: int = 21_000
    validation: dict[str, Any] = field(default_factory=dict)
    validation_rows: int = 100
    admission: int = 2
    update: int = 1
    processes: int = 2

    @property
    def words(self) -> str:
        """For a line of progress."""
        return (f"{self.clients} clients, {'through Tor' if self.tor else 'no Tor'}, "
                f"{self.protocol}, seed {self.seed}")

    def ended(self, told: Mapping[str, Any]) -> str:
        """A line on what came of it.

        Args:
            told: what :meth:`Watch.result` says, or more.
        """
        if told["arrived"] is None:
            return f"{self.words}: not within {self.limit:g} s"
        return f"{self.words}: arrived after {told['arrived']:.2f} s, {told['updates']:,} updates"


class Watch:
    """Follows one training by its trace.

    Args:
        race: which.
        part: all training rows (n, d), and their labels (n,).
        optimum: the converged model's error on them.

    Attributes:
        training: whether it has begun.
        began: when, by the monotonic clock; NaN before.
    """

    def __init__(
        self, race: Race, part: tuple[np.ndarray, np.ndarray], optimum: float
    ) -> None:
        self.began = math.nan
        self.training = False
        self._race = race
        self._part = part
        self._optimum = optimum
        self._arrival = Arrival(optimum + WITHIN)
        self._curve: list[tuple[float, int, float]] = []
        self._strikes = 0
        self._ended = ""
        self._last = math.nan

    def see(self, trace: Trace) -> None:
        """What was committed since the last time."""
        for commit in trace.more():
            self._take(commit)

    def _take(self, commit: Commit) -> None:
        self._strikes, self._last = commit.strikes, commit.at
        if not self.training:
            if commit.phase != "training":
                return
            self.training, self.began = True, commit.at
        elif commit.phase != "training":
            self._ended = commit.phase
        seconds = commit.at - self.began
        last = self._curve[-1][0] if self._curve else -math.inf
        if seconds - last < max(LOOK, seconds / SLOWER) or self._arrival.seen:
            return
        error = error_of(commit.weights, self._part)
        self._curve.append((seconds, commit.updates, error))
        self._arrival.look(seconds, error)

    @property
    def arrived(self) -> bool:
        """Whether the arrival is seen."""
        return self._arrival.seen

    def late(self, now: float) -> bool:
        """Whether there is nothing more to wait for.

        Raises:
            Failed: training has paused or ended by itself, or the desk writes nothing any more,
                which is none of the measurement.
        """
        if self._ended == "paused":
            raise Failed(f"training paused, as a client was not heard of for {SILENCE:g} s "
                         f"({self._race.words})")
        if self._ended:
            raise Failed(f"training ended by itself before it was known whether it arrived: the "
                         f"model is {self._ended} ({self._race.words})")
        if self.training and now - self._last > STILL:
            raise Failed(f"the desk has written nothing for {STILL:g} s: it or the way to all "
                         f"clients is gone ({self._race.words})")
        # Whoever is there at the limit is looked at for as long as the rule says.
        late = self.training and now - self.began > self._race.limit
        return late and (self._arrival.since is None or self._arrival.since > self._race.limit)

    def words(self, now: float) -> str:
        """For a line of progress."""
        if not self.training:
            return "clients are joining"
        if not self._curve:
            return "training begins"
        _, updates, error = self._curve[-1]
        return (f"{now - self.began:.0f} s, {updates:,} updates, error {100 * error:.2f} % "
                f"(target {100 * (self._optimum + WITHIN):.2f} %)")

    def result(self) -> dict[str, Any]:
        """What came of it."""
        race, since = self._race, self._arrival.since if self._arrival.seen else None
        seconds, updates, _ = self._curve[-1]
        if since is not None:
            seconds, updates, _ = next(p for p in self._curve if p[0] >= since)
        releases = updates * race.local_steps / race.clients
        release = Release(race.epsilon, race.batch, race.share, self._part[0].shape[1])
        return {
            "arrived": None if since is None else round(since, 3),
            "optimum": round(self._optimum, 6), "target": round(self._optimum + WITHIN, 6),
            "updates": updates, "rate": round(updates / max(seconds, 1e-9), 2),
            "releases": round(releases, 1),
            "epsilon_total": round(epsilon_total({release: max(1, round(releases))}, DELTA), 4),
            "strikes": self._strikes, "curve": thinned(self._curve),
        }


async def follow(
    race: Race, trace: Trace, watch: Watch, began: float, look: Callable[[], None],
    tell: Callable[[str], None], every: float, hint: str = "",
) -> None:
    """Follow a race until it is known whether it arrived.

    Args:
        race: which. trace: of its model. watch: takes what stands there.
        began: when clients could begin to join, by the monotonic clock.
        look: called again and again; raises what ends it early.
        tell: told a line for a person, every so many seconds.
        hint: goes after the sentence of a failure, such as where there is more to read.

    Raises:
        Failed: not all clients came in, or whatever :meth:`Watch.late` raises.
    """
    told = time.monotonic()
    while not watch.arrived:
        look()
        if watch.late(time.monotonic()):
            break
        # In a thread: others race meanwhile.
        await asyncio.to_thread(watch.see, trace)
        now = time.monotonic()
        if not watch.training and now - began > JOINING:
            raise Failed(f"not all clients came in within {JOINING:g} s ({race.words}){hint}")
        if now - told >= every:
            told = now
            tell(watch.words(now))
        await asyncio.sleep(_POLL)


def thinned(curve: list[tuple[float, int, float]]) -> list[list[float]]:
    """Points evenly over the course of a curve, the last one among them, rounded for a file."""
    every = max(1, len(curve) // _KEPT)
    kept = curve[::every] + ([curve[-1]] if (len(curve) - 1) % every else [])
    return [[round(seconds, 3), updates, round(error, 5)] for seconds, updates, error in kept]


# -- what a curator hands over ---------------------------------------------------------------


def task_file(race: Race, table: Table) -> str:
    """The task of a race, as a curator's file (TOML)."""
    trip = 0.4 if race.tor else 0.03
    training: dict[str, Any] = {
        "mode": "asynchronous", "step": race.step, "schedule": race.schedule, "clip": race.clip,
        "local_steps": race.local_steps,
        # Not far more than can come: the sequential test divides its false alarms among them.
        "max_updates": math.ceil(race.clients * (1.5 * race.limit + 60) / trip),
        # So that a model whose clients are gone goes by itself.
        "deadline": 2 * race.limit + 120.0, "max_pause": 60.0,
    }
    parts: dict[str, dict[str, Any]] = {
        "training": training,
        "clients": {"minimum": race.clients, "maximum": race.clients, "silence": SILENCE},
        "puzzles": {"admission": race.admission, "update": race.update},
        "validation": race.validation,
    }
    lines = ['title = "A race"', 'description = "Made by tormentor experiment."']
    for name, values in parts.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    lines += ["", "[data]", f"target = {_toml(table.schema.target)}"]
    for column in table.schema.fields:
        lines += ["", "[[data.fields]]", f"name = {_toml(column.name)}"]
        if column.name == table.schema.target:
            lines.append('type = "integer"')
        else:
            center, scale = column.standard()
            lines += [f"center = {_toml(center)}", f"scale = {_toml(scale)}"]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A string, number or truth value; JSON writes these as TOML does."""
    return msgspec.json.encode(value).decode()


def validation_file(table: Table, parts: Parts) -> str:
    """The curator's rows as CSV: cells that the schema makes the same standardised rows of."""
    rows, labels = parts.validation
    features = table.schema.features()
    center, scale = np.array([column.standard() for column in features]).T
    # A row was made as long as 1, together with its constant 1, which is last.
    cells = center + scale * rows[:, :-1] / rows[:, -1:]
    lines = [",".join([*(column.name for column in features), table.schema.target])]
    lines += [",".join([*(f"{cell:.9g}" for cell in row), str(int(label))])
              for row, label in zip(cells, labels, strict=True)]
    return "\n".join(lines) + "\n"
