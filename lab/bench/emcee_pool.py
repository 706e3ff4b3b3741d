"""Noise by Markov chains, with emcee: run by :mod:`lab.bench.noise` in an environment of its own.

Nothing of this project is imported here. The argument says, as JSON: ``dimension``, ``epsilon``,
``clip`` (the density is proportional to exp(-(epsilon / 2 clip) |z|)), and ``plans``: lists of
{name, walkers, vectorized, moves, burn, steps}. One line of JSON for each plan: processor
seconds of the burn-in and of the chain, the integrated autocorrelation time in steps (the mean over
all coordinates: they are alike, and the longest of noisy estimates would be too long), and how many
independent draws the chain is worth.
"""

from __future__ import annotations

import json
import sys
import time

import emcee
import numpy as np


def main() -> None:
    """All plans, in turn."""
    told = json.loads(sys.argv[1])
    rate = told["epsilon"] / (2 * told["clip"])
    dimension = told["dimension"]

    def alone(z: np.ndarray) -> float:
        return float(-rate * np.linalg.norm(z))

    def together(z: np.ndarray) -> np.ndarray:
        return np.asarray(-rate * np.sqrt(np.einsum("ij,ij->i", z, z)))

    for plan in told["plans"]:
        moves = None
        if plan["moves"] == "differential evolution":
            moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)]
        np.random.seed(1)
        sampler = emcee.EnsembleSampler(
            plan["walkers"], dimension, together if plan["vectorized"] else alone,
            vectorize=plan["vectorized"], moves=moves)
        began = time.process_time()
        at = sampler.run_mcmc(np.random.rand(plan["walkers"], dimension), plan["burn"])
        burnt = time.process_time()
        sampler.reset()
        sampler.run_mcmc(at, plan["steps"])
        done = time.process_time()
        length = float(np.mean(sampler.get_autocorr_time(tol=0)))
        print(json.dumps({  # noqa: T201  (what it is run for)
            "name": plan["name"], "walkers": plan["walkers"], "steps": plan["steps"],
            "burn_seconds": burnt - began, "seconds": done - burnt, "autocorrelation": length,
            "usable": plan["walkers"] * plan["steps"] / max(1.0, length),
        }), flush=True)


if __name__ == "__main__":
    main()
