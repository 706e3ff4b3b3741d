"""That no client can tell, before it answers, whether its answer will be judged: through real
sockets, by a classifier that is given everything that clients are sent, and when.

This is about the test ``rounds``. In the default, ``sequential``, there are no validation tickets
at all: every update is scored, so there is nothing to tell apart.

Three fast clients of the same hands, among five slower ones, train honestly and write down of each
ticket its size, times to a tenth of a millisecond (the round trip from the push before, and those
of all tickets on the same weights), what the weights show (whether they lack the last update, how
far they have moved, how many tickets had the same), strikes, and what /status says in between.
Two classifiers learn from the first half of all rounds what the broker's inside says was judged,
and are asked about the second.

Error rate: coins are thrown for rounds, so it is rounds that are permuted. Under the hypothesis
that nothing shows before an answer is sent, the coins of the second half are independent of what
is said about them, and the share of permutations with an AUC at least as high is below p in a
share p of all runs. (What shows afterwards, as a round that is judged takes longer to close, does
no harm, as the next coin does not depend on it; a score that does leaves the AUC without a drift.)
Each of two classifiers is caught at p < 1e-4: a right broker fails in 1 of 5,000 runs at most.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorder import NAMES, Recorded, WatchedRounds, record
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from broker.model_app import ModelApp
from broker.validator import Validator

WRONG = 1e-4
PERMUTATIONS = 40_000


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.validator.Rounds", WatchedRounds)


def permuted_auc(scores: np.ndarray, rounds: np.ndarray, judged: np.ndarray,
                 permutations: int = PERMUTATIONS) -> tuple[float, float]:
    """The AUC of scores, and the share of permutations of the rounds' coins with one as high."""
    ranks = rankdata(scores)
    _, first, which = np.unique(rounds, return_index=True, return_inverse=True)
    coins = judged[first]
    sums, counts = np.bincount(which, ranks), np.bincount(which)

    def auc(chosen: np.ndarray) -> np.ndarray:
        ones = chosen @ counts
        return np.asarray((chosen @ sums - ones * (ones + 1) / 2) / (ones * (len(ranks) - ones)))

    found = float(auc(coins[None].astype(float))[0])
    rng = np.random.default_rng(1)
    others = np.concatenate([
        auc(rng.permuted(np.tile(coins, (1000, 1)), axis=1).astype(float))
        for _ in range(permutations // 1000)])
    return found, float((1 + np.sum(others >= found - 1e-12)) / (1 + permutations))


def told_apart(seen: Recorded) -> dict[str, tuple[float, float]]:
    """The AUC on the second half of the rounds, and its p, of each classifier."""
    early = seen.rounds <= np.median(seen.rounds)
    found = {}
    for name, model in (
        ("logistic", make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))),
        ("trees", HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=8, learning_rate=0.1, early_stopping=False,
            random_state=0)),
    ):
        model.fit(seen.features[early], seen.judged[early])
        scores = model.predict_proba(seen.features[~early])[:, 1]
        found[name] = permuted_auc(scores, seen.rounds[~early], seen.judged[~early])
    print(len(seen.judged), "tickets in", len(set(seen.rounds)), "rounds:", found)
    return found


def is_caught(found: dict[str, tuple[float, float]]) -> bool:
    return any(p < WRONG for _, p in found.values())


def test_the_permutations_are_right() -> None:
    rng = np.random.default_rng(3)
    rounds = np.repeat(np.arange(200), 5)
    below = 0
    for _ in range(60):
        judged = (rng.random(200) < 0.3)[rounds]
        # Scores that hang together within a round, as those of a classifier do.
        scores = rng.normal(size=200)[rounds] + 0.1 * rng.normal(size=1000)
        auc, p = permuted_auc(scores, rounds, judged, 1000)
        assert 0.3 < auc < 0.7
        below += p < 0.1
    assert below <= 15, "binomial of 60 and 0.1: more than that in 1 of 1500 seeds"
    auc, p = permuted_auc(judged + 0.1 * rng.normal(size=1000), rounds, judged)
    assert auc > 0.99 and p < WRONG


@pytest.mark.slow
async def test_nobody_can_tell_what_will_be_judged(tmp_path: Path) -> None:
    seen = await record(tmp_path, 6000, seed=1)
    assert seen.features.shape == (len(seen.judged), len(NAMES) + 1) and len(seen.judged) >= 6000
    assert 0.15 < seen.judged.mean() < 0.45
    # Answers within a round, and the rounds, are many: what the recorders see while a coin counts.
    assert len(set(seen.rounds)) > 500 and len(seen.judged) > 2 * len(set(seen.rounds))
    found = told_apart(seen)
    assert not is_caught(found), found


@pytest.mark.slow
async def test_nor_in_synchronous_rounds(tmp_path: Path) -> None:
    seen = await record(tmp_path, 2400, seed=4, together=True)
    assert len(seen.judged) >= 2400 and len(set(seen.rounds)) >= 799
    found = told_apart(seen)
    assert not is_caught(found), found


class LiveOutside(Validator):
    """Leaks: serves the live weights outside of judged rounds, as brokers did before rounds."""

    def ticket_weights(self, live: np.ndarray) -> np.ndarray:
        assert self._rounds is not None and self._rounds._round is not None
        return super().ticket_weights(live) if self._rounds._round.judged else live


class SlowJudge(ModelApp):
    """Leaks: whatever it says while a judged round is open comes 3 ms later."""

    async def _receive(self, *what: Any, **more: Any) -> Any:
        said = await super()._receive(*what, **more)
        rounds = self.brokerage._validator._rounds
        if rounds is not None and rounds._round is not None and rounds._round.judged:
            await asyncio.sleep(0.003)
        return said


@pytest.mark.slow
async def test_live_weights_outside_of_judged_rounds_are_caught(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.validator.Validator", LiveOutside)
    assert is_caught(told_apart(await record(tmp_path, 1500, seed=2)))


@pytest.mark.slow
async def test_three_milliseconds_are_caught(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.live.ModelApp", SlowJudge)
    assert is_caught(told_apart(await record(tmp_path, 2000, seed=3)))
