"""The audit catches mistakes that are planted in the real code, and flawless code beside them not.

Each bound holds but with probability ``ERROR``, so flawless code is flagged in at most that share
of all seeds (here they are fixed); what is planted is caught with room to spare.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from accord.objective import OBJECTIVES
from accord.problems import EXIT_AUDIT
from client import noise
from client import trainer as training
from client.noise import Floats, Release, clip_rows, draw
from client.trainer import Made, Trainer
from lab.audit import CLIP, REHEARSALS, Game, Verdict, judge, play

pytestmark = pytest.mark.slow

ERROR = 1e-3
DELTA = 1e-2
"""So large that few plays come near the ledger's figure for Gaussian noise too."""
Plant = Callable[[pytest.MonkeyPatch], None]


def game(mechanism: str = "laplace", epsilon: float = 1.0, batch: int = 4, rows: int = 8,
         dimension: int = 3, updates: int = 1, others: str = "against") -> Game:
    kind = Release(epsilon, batch, rows, dimension, mechanism,  # type: ignore[arg-type]
                   DELTA if mechanism == "gaussian" else 0.0)
    return Game(kind, updates, others)  # type: ignore[arg-type]


def audited(this: Game, plays: int, seed: int = 1, own: bool = False) -> Verdict:
    """A game judged; with ``own``, by the generators that a client would get."""
    rng = np.random.default_rng(seed)
    source = None if own else lambda: rng
    even = play(this, plays + REHEARSALS, False, rng, source)
    return judge(this, even, play(this, plays, True, rng, source), DELTA, ERROR, rng)


# -- the mistakes ----------------------------------------------------------------------------

def mean_is_clipped(patch: pytest.MonkeyPatch) -> None:
    """The mean of the gradients is clipped to C, not each of them."""
    def clip(gradients: np.ndarray, bound: float) -> Floats:
        return np.tile(clip_rows(gradients.mean(axis=0)[None], bound), (len(gradients), 1))

    patch.setattr(noise, "clip_rows", clip)


def sum_is_clipped(patch: pytest.MonkeyPatch) -> None:
    """The sum of the gradients is clipped to C: another row moves it by 2 C still, so that this
    teaches less and reveals no more."""
    def clip(gradients: np.ndarray, bound: float) -> Floats:
        whole = clip_rows(gradients.sum(axis=0)[None], bound)
        return np.tile(whole / len(gradients), (len(gradients), 1))

    patch.setattr(noise, "clip_rows", clip)


def nothing_is_clipped(patch: pytest.MonkeyPatch) -> None:
    """A gradient is as long as it likes."""
    patch.setattr(noise, "clip_rows", lambda gradients, bound: gradients)


def noise_over_batch(patch: pytest.MonkeyPatch) -> None:
    """The noise is divided by the batch once more."""
    patch.setattr(noise, "draw", lambda kind, *rest: draw(kind, *rest) / kind.batch)


def noise_for_half_the_shift(patch: pytest.MonkeyPatch) -> None:
    """The noise is for a sum that a replaced row moves by C; it does by 2 C."""
    patch.setattr(noise, "draw", lambda kind, clip, *rest: draw(kind, clip / 2, *rest))


def noise_reused(patch: pytest.MonkeyPatch) -> None:
    """Ten releases in a row have the same noise."""
    drawn: list[Floats] = []

    def again(kind: Release, clip: float, rng: np.random.Generator, count: int) -> Floats:
        drawn.append(draw(kind, clip, rng, count) if len(drawn) % 10 == 0 else drawn[-1])
        return drawn[-1]

    patch.setattr(noise, "draw", again)


def no_minus_sign(patch: pytest.MonkeyPatch) -> None:
    """The density is exp(+(epsilon / 2C) |z|), as the paper prints it, on a ball of 10 C."""
    def printed(kind: Release, clip: float, rng: np.random.Generator, count: int) -> Floats:
        assert count == 1
        direction = rng.standard_normal(kind.dimension)
        while True:
            radius = 10 * clip * rng.random() ** (1 / kind.dimension)
            if rng.random() < np.exp(kind.epsilon / (2 * clip) * (radius - 10 * clip)):
                return np.asarray([direction * (radius / np.linalg.norm(direction))])

    patch.setattr(noise, "draw", printed)


def one_seed(patch: pytest.MonkeyPatch) -> None:
    """Each generator begins at the same place."""
    patch.setattr(noise, "generator", lambda *_: np.random.default_rng(7))


def finite_pool(patch: pytest.MonkeyPatch) -> None:
    """Noise is taken from a pool that was drawn once, as in the paper's own code."""
    seeds = np.random.default_rng(7)
    patch.setattr(noise, "generator", lambda *_: np.random.default_rng(seeds.integers(20)))


def _step(choose: Callable[[Trainer, np.random.Generator], np.ndarray]) -> object:
    """:meth:`Trainer.update` with another way to draw a batch; the divisor is as told."""
    def update(self: Trainer, weights: np.ndarray, rng: np.random.Generator) -> Made:
        chosen = choose(self, rng)
        gradients = OBJECTIVES["logistic"].gradients(
            weights, self.data.rows[chosen], self.data.labels[chosen])
        clipped = clip_rows(gradients, CLIP).sum(axis=0) + draw(self.kind, CLIP, rng)
        return Made(np.asarray(-clipped / self.kind.batch, dtype=np.float32), 1)

    return update


def larger_batch(patch: pytest.MonkeyPatch) -> None:
    """Four times the rows that the ledger is told of."""
    patch.setattr(training.Trainer, "update", _step(
        lambda self, rng: rng.choice(self.kind.rows, 4 * self.kind.batch, replace=False)))


def canary_always(patch: pytest.MonkeyPatch) -> None:
    """The row with the longest gradient is in every batch."""
    def choose(self: Trainer, rng: np.random.Generator) -> np.ndarray:
        canary = int(np.abs(self.data.rows).sum(axis=1).argmax())
        rest = np.delete(np.arange(self.kind.rows), canary)
        return np.append(rng.choice(rest, self.kind.batch - 1, replace=False), canary)

    patch.setattr(training.Trainer, "update", _step(choose))


def first_rows(patch: pytest.MonkeyPatch) -> None:
    """Batches are taken from the top of the table."""
    patch.setattr(training.Trainer, "update", _step(lambda self, rng: np.arange(self.kind.batch)))


LONG = {"updates": 10, "epsilon": 0.2}
WIDE = {"batch": 16, "rows": 32}
PLANTED = [
    # what, what is special in the game, plays
    (mean_is_clipped, WIDE, 400),
    (mean_is_clipped, {**WIDE, "others": "none"}, 400),
    (mean_is_clipped, {**WIDE, "mechanism": "gaussian"}, 400),
    (nothing_is_clipped, {}, 400),
    (noise_over_batch, WIDE, 400),
    (noise_over_batch, {**WIDE, "mechanism": "gaussian"}, 400),
    (noise_over_batch, {**WIDE, **LONG}, 200),
    (noise_for_half_the_shift, {"batch": 8, "rows": 8, "dimension": 2}, 6000),
    (noise_reused, LONG, 200),
    (noise_reused, {**LONG, "mechanism": "gaussian"}, 200),
    (no_minus_sign, {}, 2000),
    (one_seed, {}, 400),
    (one_seed, {"mechanism": "gaussian"}, 400),
    (one_seed, LONG, 400),
    (finite_pool, {}, 400),
    (larger_batch, {"batch": 2, "dimension": 2}, 4000),
    (larger_batch, {"batch": 2, "mechanism": "gaussian", "epsilon": 2.0}, 3000),
    (canary_always, {"epsilon": 4.0, "batch": 2, "rows": 40}, 1000),
    (canary_always, {"batch": 2, "rows": 40, "mechanism": "gaussian", "updates": 10}, 400),
    (first_rows, {"batch": 2, "rows": 40, "epsilon": 2.0}, 1000),
]


def words(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={each}" for name, each in value.items())
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("plant", "changes", "plays"), PLANTED, ids=words)
def test_what_is_planted_is_caught_and_flawless_code_is_not(
    plant: Plant, changes: dict[str, object], plays: int
) -> None:
    this = game(**changes)  # type: ignore[arg-type]
    assert not audited(this, plays).broken
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        found = audited(this, plays, own=plant in (one_seed, finite_pool))
    assert found.broken
    assert found.finding.epsilon > 1.05 * found.ledger


def test_noise_that_ends_somewhere_is_invisible_to_the_likelihood_ratio(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    no_minus_sign(monkeypatch)
    found = audited(game(), 1000)
    assert found.finding.event.score.startswith("farthest")
    assert found.finding.alarms <= 2


def test_noise_from_a_pool_is_known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    finite_pool(monkeypatch)
    assert audited(game(), 400, own=True).finding.event.score == "updates that D made before"


def test_noise_that_is_reused_is_seen_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    noise_reused(monkeypatch)
    assert "repeated" in audited(game(updates=10, epsilon=0.2), 200).finding.event.score


def test_clipping_the_sum_reveals_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    sum_is_clipped(monkeypatch)
    found = audited(game(epsilon=4.0, batch=8, rows=8, dimension=2), 3000)
    assert not found.broken
    assert found.finding.epsilon > 0.5 * found.ledger


@pytest.mark.parametrize(("line", "instead"), [
    ("told += noise", "told += noise / self._kind.batch"),
    ("clipped = clip_rows(gradients, self._clip)", "clipped = np.array(gradients)"),
    ("key = secrets.randbits(KEY_BITS)", "key = 1"),
])
def test_the_command_catches_a_line_that_was_changed(
    tmp_path: Path, line: str, instead: str
) -> None:
    here = Path(__file__).resolve().parent.parent
    for room in ("accord", "client", "lab"):
        shutil.copytree(here / room, tmp_path / room,
                        ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(here / "tormentor.py", tmp_path)
    place = tmp_path / "client" / "noise.py"
    text = place.read_text()
    assert text.count(line) == 1
    place.write_text(text.replace(line, instead))
    ended = subprocess.run(
        [sys.executable, "tormentor.py", "audit", "--trials", "1000", "--updates", "1",
         "--batch", "10", "--rows", "20", "--noise", "laplace", "--jobs", "1", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == EXIT_AUDIT, ended.stderr
    assert json.loads(ended.stdout)["error"] == "audit-failed"
