"""A thousand draws of noise, held against emcee as the paper used it, per usable draw.

The reference system (DistributedML/TorML) draws noise of this density from a pool: an ensemble of
max(4 d, 250) walkers with emcee's own stretch move and a density in plain Python, 100 steps to
burn in and 1,000 steps kept. Neighbours in such a chain are nearly the same draw; what a draw of
it is worth is one over the integrated autocorrelation time (Goodman and Weare, 2010). The pool's
own chain is too short to estimate that time well, so it is the one of a longer chain of the same
kind. Burning in is not counted against it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from client.noise import generator, isotropic_laplace
from lab.bench import contestants
from lab.bench.table import Measured

DIMENSION: Final = 25
EPSILON: Final = 1.0
CLIP: Final = 0.5
DRAWS: Final = 1000
_BURN: Final = 1000
"""Steps before the chain whose autocorrelation is measured: about ten times as many as it."""
_MOST_DRAWS: Final = 1_500_000
"""Of a chain, by all its walkers: 300 MB."""


def measure(quick: bool) -> Measured:
    """The ratio of seconds per usable draw: emcee as the paper used it over ours."""
    # Longer than the paper's 1,000 steps, of which an autocorrelation of a hundred cannot be told;
    # fifty times as many as that is what emcee's makers ask for.
    steps = 3000 if quick else 5000
    plans = [_plan("paper", max(4 * DIMENSION, 250), False, "stretch", steps)]
    plans += [_plan(f"{moves}, {walkers} walkers", walkers, True, moves, steps)
              for moves, walkers in (("stretch", 250), ("stretch", 2 * DIMENSION),
                                     ("stretch", 1000), ("differential evolution", 250))]
    # In turns: whatever else this machine does is in the way of both.
    once, fresh = draws(3)
    found = []
    for each in pools(plans[:2] if quick else plans):
        found.append(each)
        more = draws(3)
        once, fresh = once + more[0], fresh + more[1]
    return compare(statistics.median(once), statistics.median(fresh), found)


def compare(ours: float, keyed: float, found: list[dict[str, Any]]) -> Measured:
    """What it comes to.

    Args:
        ours: seconds for one draw.
        keyed: with a generator keyed anew for each, as a client does for each update.
        found: what :func:`pools` gave, the paper's plan first.
    """
    cost = {each["name"]: each["seconds"] / each["usable"] for each in found}
    paper = found[0]["name"]
    best = min(cost, key=lambda name: cost[name])
    return {
        "ratio": cost[paper] / ours,
        "how": f"client.noise.isotropic_laplace, {DRAWS:,} draws from one generator (ChaCha), "
               "median; against emcee 3.1.6 as in the reference system's code: 250 walkers, "
               "stretch move, density in plain Python, burning in not counted, draws counted by "
               "integrated autocorrelation time (mean over coordinates, of a longer chain of the "
               "same kind); processor time of both. A client keys its generator anew for "
               "each update, "
               f"and then the ratio is {cost[paper] / keyed:.0f}. emcee at its best that we found "
               f"({best}, density in numpy for all walkers at once) comes to a ratio of "
               f"{cost[best] / ours:.0f}, or {cost[best] / keyed:.1f} keyed anew for each draw.",
        "data": "none",
        "our_microseconds_per_draw": 1e6 * ours,
        "our_microseconds_per_draw_freshly_keyed": 1e6 * keyed,
        "paper_microseconds_per_usable_draw": 1e6 * cost[paper],
        "paper_autocorrelation_steps": found[0]["autocorrelation"],
        "best_emcee": best,
        "best_emcee_microseconds_per_usable_draw": 1e6 * cost[best],
        "ratio_to_best_emcee": cost[best] / ours,
        "ratio_freshly_keyed": cost[paper] / keyed,
        "plans": found,
    }


def draws(repeats: int) -> tuple[list[float], list[float]]:
    """Processor seconds for one of our draws, so many times: from one generator, and keyed
    anew for each; each a mean over :data:`DRAWS`."""
    once, fresh = [], []
    rng = generator()
    for _ in range(repeats + 1):
        began = time.process_time()
        for _ in range(DRAWS):
            isotropic_laplace(DIMENSION, EPSILON, CLIP, rng)
        middle = time.process_time()
        for _ in range(DRAWS):
            # As a client does for each of its updates.
            rng = generator(rng)
            isotropic_laplace(DIMENSION, EPSILON, CLIP, rng)
        once.append((middle - began) / DRAWS)
        fresh.append((time.process_time() - middle) / DRAWS)
    # The first of each warms up.
    return once[1:], fresh[1:]


def pools(plans: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Run emcee by these plans; what :mod:`lab.bench.emcee_pool` says of each, as it comes.
    Between two of them it waits.

    Raises:
        Failed: it cannot be installed, or fails.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        log = Path(directory) / "log"
        for plan in plans:
            told = {"dimension": DIMENSION, "epsilon": EPSILON, "clip": CLIP, "plans": [plan]}
            with log.open("wb") as file, contestants.start("emcee_pool.py", told, file) as process:
                try:
                    line = contestants.line_of(process, log)
                finally:
                    process.kill()
            yield line


def _plan(name: str, walkers: int, vectorized: bool, moves: str, steps: int) -> dict[str, Any]:
    # All of a chain is in memory.
    return {"name": name, "walkers": walkers, "vectorized": vectorized, "moves": moves,
            "burn": _BURN, "steps": min(steps, _MOST_DRAWS // walkers)}
