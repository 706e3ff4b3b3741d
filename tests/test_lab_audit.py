"""The audit of flawless code: below the ledger, near the ideal, by the real trainer.

Randomness is seeded; each statistical test says how often it would fail with another seed.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tormentor
from accord.problems import EXIT_AUDIT, EXIT_INTERRUPTED, EXIT_USAGE
from client import noise
from client.noise import Release
from client.privacy_loss import directed
from lab import audit_cli
from lab.audit import (
    REHEARSALS,
    Game,
    Ideal,
    Verdict,
    Views,
    exact,
    ideal,
    judge,
    likelihood,
    play,
    scores,
)
from lab.audit_bounds import (
    Event,
    Finding,
    at_least,
    at_most,
    attack,
    epsilon_at_least,
)

HERE = Path(__file__).resolve().parent.parent
DELTA = 1e-5
ERROR = 1e-3


def game(mechanism: str, epsilon: float, batch: int, rows: int, dimension: int, updates: int = 1,
         others: str = "against") -> Game:
    kind = Release(epsilon, batch, rows, dimension, mechanism,  # type: ignore[arg-type]
                   DELTA if mechanism == "gaussian" else 0.0)
    return Game(kind, updates, others)  # type: ignore[arg-type]


def audited(this: Game, plays: int, seed: int = 1) -> Verdict:
    rng = np.random.default_rng(seed)
    even = play(this, plays + REHEARSALS, False, rng, lambda: rng)
    return judge(this, even, play(this, plays, True, rng, lambda: rng), DELTA, ERROR, rng)


# -- limits of a chance ----------------------------------------------------------------------

def test_clopper_and_pearson_as_tabulated() -> None:
    # 8 of 20 at 95 %: 0.191 to 0.639; none of 10: to 1 - 0.025^(1/10).
    assert at_least(8, 20, 0.025) == pytest.approx(0.1912, abs=1e-4)
    assert at_most(8, 20, 0.025) == pytest.approx(0.6395, abs=1e-4)
    assert at_least(0, 10, 0.025) == 0.0 and at_most(10, 10, 0.025) == 1.0
    assert at_most(0, 10, 0.025) == pytest.approx(1 - 0.025**0.1)
    assert at_least(10, 10, 0.025) == pytest.approx(0.025**0.1)


@pytest.mark.parametrize("chance", [1e-3, 0.05, 0.37, 0.5, 0.98])
@pytest.mark.parametrize("error", [0.2, 0.01])
def test_a_limit_is_wrong_no_more_often_than_it_says(chance: float, error: float) -> None:
    plays = 60
    counts = np.arange(plays + 1)
    masses = np.array([math.comb(plays, k) * chance**k * (1 - chance) ** (plays - k)
                       for k in counts])
    assert masses[at_least(counts, plays, error) > chance].sum() <= error
    assert masses[at_most(counts, plays, error) < chance].sum() <= error


def test_epsilon_of_an_event() -> None:
    low, high = at_least(900, 1000, 0.025), at_most(100, 1000, 0.025)
    assert epsilon_at_least(900, 100, 1000, 0.01, 0.05) == pytest.approx(
        math.log((low - 0.01) / high))
    assert epsilon_at_least(100, 900, 1000, 0.0, 0.05) == 0.0
    assert epsilon_at_least(0, 0, 1000, 0.0, 0.05) == 0.0
    assert epsilon_at_least(1000, 0, 1000, 0.999, 0.05) == 0.0


def test_bounds_of_a_law_that_is_known_are_as_sure_as_they_say() -> None:
    # Randomised response at epsilon = 1 and error 0.2: of 300 audits more than 84 are wrong with
    # probability 3e-4 at most.
    rng = np.random.default_rng(3)
    truth = math.e / (1 + math.e)
    bounds = []
    for _ in range(300):
        even = {"likelihood ratio": (rng.random(400) < 1 - truth).astype(float)}
        odd = {"likelihood ratio": (rng.random(400) < truth).astype(float)}
        bounds.append(attack(even, odd, 0.0, 0.2).epsilon)
    assert (np.array(bounds) > 1.0).sum() <= 84
    assert np.median(bounds) > 0.7


def test_guesses_that_are_right() -> None:
    rng = np.random.default_rng(1)
    even, odd = ({"likelihood ratio": rng.standard_normal(20_000) + at} for at in (-0.5, 0.5))
    # Phi(1/2); further off than 0.02 with probability 1e-8.
    assert attack(even, odd, 0.0, 0.05).right == pytest.approx(0.6915, abs=0.02)


# -- the game --------------------------------------------------------------------------------

@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
@pytest.mark.parametrize("others", ["against", "none"])
def test_releases_lie_where_the_attacker_thinks(mechanism: str, others: str) -> None:
    # At a huge epsilon hardly any noise is left, and of it nothing that 5 sigma do not cover.
    this = game(mechanism, 100.0, 3, 6, 4, 5, others)
    rng = np.random.default_rng(1)
    near = {"laplace": 0.6, "gaussian": 1.0}[mechanism]
    for odd in (False, True):
        views = play(this, 60, odd, rng, lambda: rng)
        drawn = exact(this, 60, odd, rng)
        assert views.along.shape == drawn.along.shape == (60, 5) and len(views) == 60
        expected = {this.centre(odd, True), this.centre(odd, False)}
        for seen in (views, drawn):
            centres = {c for c in expected if (seen.distance(c) < near).any()}
            assert centres == expected
            nearest = np.minimum.reduce([seen.distance(c) for c in expected])
            assert nearest.max() < near
    assert this.centre(True, True) - this.centre(False, True) == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
@pytest.mark.parametrize("odd", [False, True])
def test_the_loss_of_real_releases_has_the_law_that_the_ledger_reckons_with(
    mechanism: str, odd: bool
) -> None:
    # Kolmogorov and Smirnov's distance is above 2.2 / sqrt(N) with probability 2 exp(-2 2.2^2) =
    # 1.3e-4. Real draws and draws of the laws are held against the integrated law.
    this = game(mechanism, 2.0, 4, 10, 3)
    law = directed(this.kind, reverse=not odd)
    rng = np.random.default_rng(2)
    for views in (play(this, 4000, odd, rng, lambda: rng), exact(this, 40_000, odd, rng)):
        losses = np.sort(likelihood(this, views)[:, 0] * (1 if odd else -1))
        below = np.interp(losses, law.losses, np.cumsum(law.masses))
        steps = np.arange(len(losses) + 1) / len(losses)
        distance = max(abs(below - steps[1:]).max(), abs(below - steps[:-1]).max())
        assert distance < 2.2 / math.sqrt(len(losses)) + 1e-3


def test_each_update_has_a_fresh_generator_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(noise, "generator", lambda *_: made.append(1) or np.random.default_rng())
    play(game("laplace", 1.0, 2, 5, 3, 7), 4, True, np.random.default_rng(1))
    assert len(made) == 28


def test_the_canary_is_anywhere_and_first_half_of_the_time() -> None:
    # 4 standard deviations: further off with probability 6e-5.
    place = exact(game("laplace", 1.0, 2, 5, 3), 4000, True, np.random.default_rng(1)).place
    assert set(place) == set(range(5))
    assert abs((place == 0).mean() - 0.6) < 0.032


def test_views_join_and_part() -> None:
    views = exact(game("gaussian", 1.0, 2, 5, 3, 2), 10, True, np.random.default_rng(1))
    again = Views.joined([views[:3], views[3:]])
    assert (again.along == views.along).all() and (again.across == views.across).all()
    assert (again.place == views.place).all()


def test_repeats_are_counted() -> None:
    this = game("laplace", 1.0, 2, 5, 3, 3)
    along = np.array([[1.0, 1.0, 5.0], [1.0, 3.0, 1.0], [1.0, 2.0, 5.0]])
    views = Views(along, np.ones((3, 3)), np.array([0, 1, 2]))
    told = scores(this, views, views[:1])
    assert told["updates that are repeated"].tolist() == [1, 1, 0]
    assert told["updates that are repeated, shifted by the canary"].tolist() == [0, 2, 0]
    assert told["updates that D made before"].tolist() == [3, 2, 2]
    assert np.isnan(told["likelihood ratio where the canary is the first row"]).tolist() == [
        False, True, True]


@pytest.mark.parametrize(("dimension", "updates"), [(1, 1), (3, 0)])
def test_what_no_task_has_cannot_be_played(dimension: int, updates: int) -> None:
    with pytest.raises(ValueError, match="no task"):
        game("laplace", 1.0, 2, 5, dimension, updates)


# -- flawless code ---------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
@pytest.mark.parametrize(("epsilon", "batch", "rows", "dimension", "updates", "plays"), [
    (4.0, 8, 8, 2, 1, 2000), (1.0, 5, 10, 3, 1, 2000), (8.0, 1, 20, 24, 1, 2000),
    (0.3, 20, 40, 5, 10, 200), (3.0, 2, 4, 2, 10, 300), (6.0, 10, 100, 8, 20, 150),
])
def test_no_bound_is_above_the_ledger(
    mechanism: str, epsilon: float, batch: int, rows: int, dimension: int, updates: int, plays: int
) -> None:
    # Each fails with probability ERROR at most.
    for others in ("against", "none"):
        found = audited(
            game(mechanism, epsilon, batch, rows, dimension, updates, others), plays)
        assert not found.broken
        assert found.finding.plays == plays // 2


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "epsilon", "batch", "rows", "updates", "plays"), [
    ("laplace", 2.0, 8, 8, 1, 6000), ("laplace", 6.0, 4, 8, 1, 4000),
    ("laplace", 3.0, 5, 5, 5, 1500), ("gaussian", 8.0, 5, 5, 5, 1500),
    ("gaussian", 20.0, 5, 10, 4, 1500),
])
def test_the_bound_is_near_the_ideal_one(
    mechanism: str, epsilon: float, batch: int, rows: int, updates: int, plays: int
) -> None:
    # Bounds have standard deviations of 5 to 7 %, the ideal medians of 1 to 2 %: each of these
    # fails with probability 0.02 at most (of 200 such attacks on exact draws 2 at most were off
    # by more).
    found = audited(game(mechanism, epsilon, batch, rows, 3 if updates == 5 else 2, updates), plays)
    assert found.finding.epsilon == pytest.approx(found.ideal.epsilon, rel=0.2)
    assert found.finding.epsilon > 0.05 * found.ledger
    assert found.ideal.spread[0] <= found.ideal.epsilon <= found.ideal.spread[1]


@pytest.mark.slow
def test_the_ideal_one_comes_to_the_ledger_with_more_plays() -> None:
    # Laplace, all rows in the batch: one update is exactly epsilon-DP and the ledger says so.
    this = game("laplace", 1.0, 4, 4, 2)
    rng = np.random.default_rng(1)
    few, many = (ideal(this, plays, DELTA, ERROR, rng).epsilon for plays in (1000, 200_000))
    assert few < many < this.ledger(DELTA) <= 1.0
    assert many > 0.85


# -- the command -----------------------------------------------------------------------------

SMALL = ["audit", "--trials", "100", "--jobs", "1", "--updates", "2"]


@pytest.mark.slow
def test_the_command_tells_a_machine() -> None:
    ended = CliRunner().invoke(tormentor.main, [*SMALL, "--noise", "laplace", "--json"])
    assert ended.exit_code == 0, ended.output
    told = json.loads(ended.stdout)
    assert not told["failed"] and "error" not in told
    assert [(each["updates"], each["others"], each["plays"]) for each in told["games"]] == [
        (1, "against", 50), (1, "none", 50), (2, "against", 250), (2, "none", 250)]
    for each in told["games"]:
        assert 0 <= each["shown"] <= each["ledger"]
        assert 0.5 <= each["right_at_most"] <= 1
    assert "100 of" not in ended.stdout and "updates made" in ended.stderr


def verdict(shown: float, ledger: float) -> Verdict:
    event = Event("likelihood ratio", 1, True, 0.5)
    return Verdict(game("laplace", 2.0, 5, 10, 3, 10), ledger, Ideal(1.0, 0.6, (0.9, 1.1)),
                   Finding(shown, event, 40, 2, 500, 0.7))


def told_of(monkeypatch: pytest.MonkeyPatch, found: list[Verdict],
            *arguments: str) -> tuple[int, str, str]:
    async def made(*_: object) -> list[Verdict]:
        return found

    monkeypatch.setattr(audit_cli, "_play", made)
    ended = CliRunner().invoke(tormentor.main, ["audit", *arguments])
    return ended.exit_code, ended.stdout, ended.stderr


def test_the_command_tells_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    status, told, _ = told_of(monkeypatch, [verdict(1.5, 1.5)])
    assert status == 0
    assert "holds" in told and "BROKEN" not in told
    assert "right 70.0% of the time" in " ".join(told.split())
    assert "No attack showed more than the ledger says." in told


def test_what_is_broken_has_a_status_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [verdict(1.5, 1.6), verdict(1.5, 1.25)]
    status, told, error = told_of(monkeypatch, both)
    assert status == EXIT_AUDIT == 12
    assert "BROKEN" in told and "No attack" not in told
    assert "The audit shows epsilon 1.5 where the ledger says at most 1.25" in error
    status, told, error = told_of(monkeypatch, both, "--json")
    whole = json.loads(told)
    assert (status, error, whole["error"]) == (EXIT_AUDIT, "", "audit-failed")
    assert [each["broken"] for each in whole["games"]] == [False, True]


def test_a_bound_that_errs_with_its_share_of_the_confidence(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    async def made(games: list[Game], _: int, delta: float, error: float, *__: object
                   ) -> list[Verdict]:
        seen.append((len(games), delta, error))
        return [verdict(0.0, 1.0)]

    monkeypatch.setattr(audit_cli, "_play", made)
    CliRunner().invoke(tormentor.main, ["audit", "--confidence", "0.9", "--delta", "0.001"])
    CliRunner().invoke(tormentor.main, ["audit", "--updates", "1", "--noise", "laplace"])
    assert seen == [(8, 0.001, pytest.approx(0.1 / 8)), (2, 1e-5, pytest.approx(0.05 / 2))]


@pytest.mark.parametrize("wrong", [["--batch", "11"], ["--dimension", "1"], ["--noise", "none"]])
def test_wrong_usage(wrong: list[str]) -> None:
    assert CliRunner().invoke(tormentor.main, ["audit", *wrong]).exit_code == EXIT_USAGE


@pytest.mark.slow
def test_it_stops_at_ctrl_c() -> None:
    with subprocess.Popen(
        [sys.executable, "tormentor.py", "audit", "--trials", "1000000"],
        cwd=HERE, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as running:
        assert running.stderr is not None
        assert "updates made" in running.stderr.readline()
        began = time.monotonic()
        os.kill(running.pid, signal.SIGINT)
        _, error = running.communicate(timeout=30)
    assert running.returncode == EXIT_INTERRUPTED
    assert "Stopped." in error and "Traceback" not in error
    assert time.monotonic() - began < 15
