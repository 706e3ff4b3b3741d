"""The step lengths with which the contestants of ``table2`` run, found in simulated time.

Nobody may lose because somebody else chose its step. So each contestant, for each number of
clients, gets the best of a grid: first steps, both schedules, and for ours how many local steps.
What is simulated is what decides that: who has read which weights when. A contact takes its round
trips: through Tor drawn for each client from the paper's distribution, without it those of its
region. The machine has two processors on which steps take turns, as all clients are on one machine
in ``table2`` too. What it says in seconds is not a result: ``table2`` measures those.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Final

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table

from lab.arrival import WITHIN, Arrival
from lab.credit import Table as Data
from lab.credit import converged, deal, load
from lab.experiments.frame import Cell, Finished, Outcome
from lab.geo_crowd import region
from lab.setting import error_of
from lab.wan import REGIONS

NAME = "table2-steps"
WORDS = "The best step lengths of table2's contestants, by simulation: what stands in its module."

EPSILON: Final = 2.0
BATCH: Final = 10
CLIP: Final = 0.5
VALIDATION_ROWS: Final = 100
SIZES: Final = (10, 50, 100, 200)
LOCAL_STEPS: Final = (10, 30, 100, 300)
GRID: Final = (4.0, 2.0, 8.0, 1.0, 16.0, 0.5, 32.0, 0.25, 64.0, 0.12)
"""First steps times the number of clients; those that are likely first, as whoever takes twice as
long as the best so far is given up."""
MOST_STEPS: Final = 200_000
"""Or whoever needs more steps than these, of all clients, but has at least ten contacts."""
ROUND_TRIP: Final = {True: (0.716, 0.182), False: (0.134, 0.062)}
"""Seconds, mean and standard deviation, through Tor and without (paper, section 7)."""
TRIPS: Final = {"ours": 1, "paper": 2}
"""Round trips of a contact: the message itself, and the connection it needs."""
LIMIT: Final = 900.0
_PROCESSORS: Final = 2
_STEP_SECONDS: Final = 3e-5
_LOOK: Final = 0.05
_SLOWER: Final = 200
"""A look is at least the 200th part of the time so far apart from the last."""
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One simulated training.

    Attributes:
        clients: how many. tor: whose round trips they have. protocol: which contestant.
        step, schedule, local_steps: see :class:`accord.task.Training`.
        seed: of all chance.
        limit: simulated seconds until it has not arrived.
    """

    clients: int
    tor: bool
    protocol: str
    step: float
    schedule: str
    local_steps: int
    seed: int
    limit: float = LIMIT


def simulate(data: Data, course: Course) -> float | None:
    """Seconds until it has arrived (:mod:`lab.arrival`); None when it has not by the limit."""
    rows, labels = deal(data, VALIDATION_ROWS, course.seed).train
    target = error_of(converged(rows, labels), (rows, labels)) + WITHIN
    count, dimension = rows.shape
    rng = np.random.default_rng([course.seed, 11])
    usual, deviation = ROUND_TRIP[course.tor]
    trip = np.maximum(usual / 3, rng.normal(usual, deviation, course.clients))
    if not course.tor:
        trip = np.array([REGIONS[region(i, len(REGIONS))].delay / 500
                         for i in range(course.clients)])
    held = rng.integers(0, count, (course.clients, count), dtype=np.int32)
    made = np.zeros(course.clients, int)
    noise = _Noise(rng, dimension)
    signs = 2 * labels - 1

    def update(client: int, weights: np.ndarray) -> np.ndarray:
        here = weights.copy()
        mine = held[client]
        for _ in range(course.local_steps):
            made[client] += 1
            length = course.step
            if course.schedule != "constant":
                length /= made[client] ** 0.5
            chosen = mine[(rng.random(BATCH) * count).astype(int)]
            x, s = rows[chosen], signs[chosen]
            # Gradients of rows of length 1 are below 1; those above the clip are shortened to it.
            slope = -s / (1 + np.exp(s * (x @ here)))
            slope = np.clip(slope, -CLIP, CLIP)
            here -= length * ((slope @ x) + noise.draw()) / BATCH
        delta: np.ndarray = here - weights
        return delta

    weights = np.zeros(dimension)
    free = [0.0] * _PROCESSORS
    arrival = Arrival(target)
    looked = 0.0
    events: list[tuple[float, int, int, np.ndarray | None]] = []
    order = 0
    for client in range(course.clients):
        heapq.heappush(events, (trip[client] / 2, order, client, None))
        order += 1
    read = [weights] * course.clients
    while events:
        now, _, client, delta = heapq.heappop(events)
        if now > course.limit and arrival.since is None:
            return None
        order += 1
        if delta is None:
            # The work is here; the update will be there after the rest of the contact.
            began = max(now, heapq.heappop(free))
            done = began + course.local_steps * _STEP_SECONDS
            heapq.heappush(free, done)
            there = done + trip[client] * (TRIPS[course.protocol] - 0.5)
            heapq.heappush(events, (there, order, client, update(client, read[client])))
            continue
        weights = weights + delta
        read[client] = weights
        heapq.heappush(events, (now + trip[client] / 2, order, client, None))
        if now - looked >= max(_LOOK, now / _SLOWER):
            looked = now
            if arrival.look(now, error_of(weights, (rows, labels))):
                return arrival.since
    raise AssertionError("a training has no end")


class _Noise:
    """Draws of the Laplace noise of :mod:`client.noise`, for the sum of a batch: (d,)."""

    def __init__(self, rng: np.random.Generator, dimension: int) -> None:
        self._rng, self._dimension, self._left = rng, dimension, 0
        self._block = np.empty((0, dimension))

    def draw(self) -> np.ndarray:
        if not self._left:
            z = self._rng.standard_normal((_BLOCK, self._dimension))
            length = self._rng.gamma(self._dimension, 2 * CLIP / EPSILON, _BLOCK)
            self._block = z * (length / np.linalg.norm(z, axis=1))[:, None]
            self._left = _BLOCK
        self._left -= 1
        drawn: np.ndarray = self._block[self._left]
        return drawn


# -- the experiment --------------------------------------------------------------------------


def cells(quick: bool, seeds: int | None) -> list[Cell]:
    """Each number of clients, with and without Tor, each contestant and its local steps."""
    return [{"part": "steps", "clients": clients, "tor": tor, "protocol": protocol,
             "local_steps": local, "seeds": seeds or (1 if quick else 5)}
            for clients in (SIZES[:2] if quick else SIZES)
            for tor in (True, False)
            for protocol, local in (("paper", 1), *(("ours", m) for m in LOCAL_STEPS))]


def run(cell: Cell, data: Path | None) -> Outcome:
    """``tried``: for each step and schedule the seconds of each seed (None: not by the limit; a
    setting is given up when half of them have not), and their mean, where a seed that has not
    arrived counts as :data:`LIMIT`: so the best is the fastest of those that always arrive, where
    there are such. Best first; the same rule for everybody."""
    table = load(data)
    tried = []
    contact = ROUND_TRIP[cell["tor"]][0] * TRIPS[cell["protocol"]]
    most = max(10.0, MOST_STEPS / (cell["clients"] * cell["local_steps"])) * contact
    best = min(LIMIT, most)
    for schedule in ("1/sqrt(t)", "constant"):
        for times in GRID:
            step = times / cell["clients"]
            found: list[float | None] = []
            for seed in range(cell["seeds"]):
                found.append(simulate(table, Course(
                    clients=cell["clients"], tor=cell["tor"], protocol=cell["protocol"], step=step,
                    schedule=schedule, local_steps=cell["local_steps"], seed=seed,
                    limit=min(LIMIT, 2 * best))))
                if 2 * found.count(None) > cell["seeds"]:
                    break
            average = None
            if 2 * found.count(None) <= cell["seeds"]:
                average = mean(LIMIT if each is None else each for each in found)
                best = min(best, median(LIMIT if each is None else each for each in found))
            tried.append({"step": step, "schedule": schedule, "seconds": found, "mean": average})
    tried.sort(key=lambda one: (one["mean"] is None, one["mean"] or 0.0))
    return {"tried": tried}


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """The best of each grid."""
    table = Table("clients", "Tor", "protocol", "local steps", "step", "schedule",
                  "simulated s", box=box.SIMPLE_HEAD, title="Best steps")
    for each in finished:
        cell, best = each.cell, each.result["tried"][0]
        table.add_row(str(cell["clients"]), "yes" if cell["tor"] else "no", cell["protocol"],
                      str(cell["local_steps"]), f"{best['step']:g}", best["schedule"],
                      "none" if best["mean"] is None else f"{best['mean']:.2f}")
    return [table]


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """None: it is a table."""
    return []
