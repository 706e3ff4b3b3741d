"""Attackers: whoever makes other updates than an honest client would.

Each is an object with ``step(weights, rng)``, as :class:`client.trainer.Trainer` has it, so that
simulation (:mod:`lab.simulation`) and real sockets (:mod:`lab.live`) drive them alike. They know
what a client of the real program can know: the task, their own rows, the weights they are sent,
the strikes they are told of, and what their accomplices (:class:`Band`) know. None of them has
seen the validation set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np

from accord.objective import OBJECTIVES
from accord.task import Task, step_size
from broker.landscape import contrast
from client.dataset import Dataset
from client.noise import Release, clip_rows
from client.trainer import Trainer

_MARGIN: Final = 1e-6
_SAMPLE: Final = 500
"""Rows that an estimate of a gradient is made from; more change it little and cost time."""
MOST_Z: Final = 3.0
"""Where attackers are the majority, the formula of "a little is enough" knows no bound; this many
standard deviations still look like chance."""


class Stepper(Protocol):
    """Whoever makes updates."""

    def step(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The update for these weights; both have shape (d,)."""


def shorten(vector: np.ndarray, bound: float) -> np.ndarray:
    """The vector as float32, no longer than the bound; it keeps its direction."""
    length = float(np.linalg.norm(vector))
    limit = bound * (1 - _MARGIN)
    return (vector if length <= limit else vector * (limit / length)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Noiseless:
    """An honest client without differential privacy.

    The real client has none such: its epsilon is finite. Batch, clip, step and bound are those of
    :class:`client.trainer.Trainer`; only the noise is left out.

    Attributes:
        task: what is trained.
        rows, labels: (n, d) and (n,), its own.
        batch: rows of a minibatch.
        spend: gives the number of the update, from 1.
    """

    task: Task
    rows: np.ndarray
    labels: np.ndarray
    batch: int
    spend: Callable[[], int]

    def step(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One update, float32, shape (d,)."""
        training = self.task.training
        chosen = rng.choice(len(self.labels), size=self.batch, replace=False, shuffle=False)
        mean = clipped_mean(self.task, weights, self.rows[chosen], self.labels[chosen])
        step = -step_size(training, self.spend()) * (training.regularisation * weights + mean)
        return shorten(step, training.max_norm)


def clipped_mean(
    task: Task, weights: np.ndarray, rows: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """The mean of the clipped gradients of rows (n, d), shape (d,)."""
    gradients = OBJECTIVES[task.objective].gradients(weights, rows, labels)
    return np.asarray(clip_rows(gradients, task.training.clip).mean(axis=0))


def honest(
    task: Task, rows: np.ndarray, labels: np.ndarray, batch: int, epsilon: float | None,
    spend: Callable[[], int],
) -> Stepper:
    """The real client's way to make updates, or, where ``epsilon`` is None, the same without
    noise. ``spend`` gives the number of the update, from 1."""
    if epsilon is None:
        return Noiseless(task, rows, labels, batch, spend)
    kind = Release(epsilon, batch, len(labels), task.dimension)
    return Trainer(task, Dataset(rows, labels, "", Path()), kind, spend)


@dataclass(slots=True)
class Band:
    """What accomplices tell each other.

    Attributes:
        honest, attackers: how many clients of each kind there are.
        rows, labels: all attackers' rows, (n, d) and (n,), once :meth:`share` was called.
        releases: each attacker's last honest update by its step size, by attacker.
    """

    honest: int
    attackers: int
    rows: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    labels: np.ndarray = field(default_factory=lambda: np.empty(0))
    releases: dict[int, np.ndarray] = field(default_factory=dict)

    def share(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Put one attacker's rows with the others'."""
        self.rows = np.vstack([self.rows, rows]) if len(self.labels) else rows
        self.labels = np.concatenate([self.labels, labels])

    def gradient(
        self, task: Task, weights: np.ndarray, rng: np.random.Generator, flipped: bool = False
    ) -> np.ndarray:
        """The mean clipped gradient at these weights over a sample of all their rows, shape (d,);
        of the opposite answers when ``flipped``."""
        some = rng.integers(len(self.labels), size=min(_SAMPLE, len(self.labels)))
        labels = self.labels[some]
        return clipped_mean(task, weights, self.rows[some], 1.0 - labels if flipped else labels)


@dataclass(slots=True)
class Means:
    """What one attacker has at hand.

    Attributes:
        task: what is trained.
        rows, labels: its own, (n, d) and (n,).
        batch: rows of a minibatch.
        epsilon: of an honest client's noise; None for none.
        band: its accomplices.
        number: which of them it is.
    """

    task: Task
    rows: np.ndarray
    labels: np.ndarray
    batch: int
    epsilon: float | None
    band: Band
    number: int = 0


class Attacker:
    """An attacker; by itself it behaves as an honest client.

    Attributes:
        t: number of the update that is being made, from 1, in this session.
    """

    shared_machine = False
    """Whether all attackers' puzzles are solved by one machine."""

    def __init__(self, means: Means) -> None:
        self.means = means
        self.t = 0
        flipped = 1.0 - means.labels
        self._honest, self._flipped = (
            honest(means.task, means.rows, labels, means.batch, means.epsilon, lambda: self.t)
            for labels in (means.labels, flipped))

    def step(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The update for a ticket, float32, shape (d,), no longer than the task allows."""
        self.t += 1
        return shorten(self.make(weights, rng), self.means.task.training.max_norm)

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The update that this kind of attacker wants, of any length, shape (d,)."""
        return self._honest.step(weights, rng)

    def leaves(self, strikes: int) -> bool:
        """Whether it leaves, to join anew, now that it has so many strikes."""
        return False

    def anew(self) -> None:
        """It has joined again, as somebody else."""
        self.t = 0

    @property
    def eta(self) -> float:
        """Length of an honest client's step now."""
        return step_size(self.means.task.training, self.t)


class LabelFlip(Attacker):
    """Honest computing, the noise of privacy included, on the opposite answers."""

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An honest update of flipped labels."""
        return self._flipped.step(weights, rng)


class SignFlip(Attacker):
    """``-scale`` times its honest update, noise included."""

    def __init__(self, means: Means, scale: float = 10.0) -> None:
        super().__init__(means)
        self.scale = scale

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The turned update."""
        return -self.scale * self._honest.step(weights, rng).astype(np.float64)


class Noise(Attacker):
    """A uniform direction, ``scale`` times as long as an honest update."""

    def __init__(self, means: Means, scale: float = 10.0) -> None:
        super().__init__(means)
        self.scale = scale

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Isotropic noise."""
        length = float(np.linalg.norm(self._honest.step(weights, rng)))
        direction = rng.standard_normal(len(weights))
        return direction * (self.scale * length / float(np.linalg.norm(direction)))


class InnerProduct(Attacker):
    """Inner-product manipulation (Xie, Koyejo and Gupta, "Fall of empires", UAI 2019): all
    attackers send ``-c`` times the mean of the honest updates, here estimated from the
    attackers' own rows, without noise."""

    def __init__(self, means: Means, c: float = 1.0) -> None:
        super().__init__(means)
        self.c = c

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``-c`` times what honest clients do on average."""
        return self.c * self.eta * self.means.band.gradient(self.means.task, weights, rng)


class ALittle(Attacker):
    """A little is enough (Baruch, Baruch and Goldberg, NeurIPS 2019): the mean of the
    accomplices' honest updates minus ``z`` standard deviations in each coordinate.

    Each accomplice's last honest update, brought to today's step size, stands for what it would
    send now: in asynchronous training no two compute at the same weights.
    """

    def __init__(self, means: Means, z: float | None = None) -> None:
        super().__init__(means)
        self.z = largest_z(means.band.honest + means.band.attackers, means.band.attackers) \
            if z is None else z

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Within what chance would make, all in one direction."""
        releases = self.means.band.releases
        releases[self.means.number] = self._honest.step(weights, rng) / self.eta
        known = np.array(list(releases.values()), dtype=np.float64)
        return np.asarray(self.eta * (known.mean(axis=0) - self.z * known.std(axis=0)))


def largest_z(clients: int, attackers: int) -> float:
    """How many standard deviations away still pass for honest, by the formula of the paper:
    the largest z with Phi(z) < (n - m - s) / (n - m), where s = floor(n / 2 + 1) - m honest
    clients must be further away than the attackers; :data:`MOST_Z` at most."""
    supporters = clients // 2 + 1 - attackers
    others = clients - attackers
    if others <= 0:
        return MOST_Z
    share = (others - supporters) / others
    if share >= 1:
        return MOST_Z
    return min(MOST_Z, NormalDist().inv_cdf(share)) if share > 0 else 0.0


class Adaptive(Attacker):
    """Knows the sequential test and stays inside of it: so much of an honest update, and so much
    of an opposed one, that its projection on the validation set's direction (which its own rows
    give it well enough) is just not what the test looks for.

    Args:
        means: what it has.
        share: of opposition, from 0 (an honest update) to 1 (a flipped one, without noise).
    """

    def __init__(self, means: Means, share: float = 0.3) -> None:
        super().__init__(means)
        self.share = share

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Honest and opposed, mixed."""
        good = self._honest.step(weights, rng).astype(np.float64)
        # The opposed part needs no noise: all of its length goes where it hurts.
        opposed = -self.eta * self.means.band.gradient(self.means.task, weights, rng, flipped=True)
        return (1 - self.share) * good + self.share * opposed


class Sleeper(LabelFlip):
    """Honest for so many updates (``after``), then a label-flipper: to be trusted first."""

    def __init__(self, means: Means, after: float = 300) -> None:
        super().__init__(means)
        self.after = after

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Honest, or flipped."""
        if self.t <= self.after:
            return self._honest.step(weights, rng)
        return super().make(weights, rng)


class Rejoiner(LabelFlip):
    """A label-flipper that leaves once it was given a strike, and joins as somebody else."""

    def leaves(self, strikes: int) -> bool:
        """At the first strike."""
        return strikes > 0


class _Loud(Attacker):
    """Computes without noise on flipped labels, and stretches that to the clip."""

    def loud(self, weights: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
        """Such a step's direction, so much of a clip long."""
        down = -self.means.band.gradient(self.means.task, weights, rng, flipped=True)
        length = max(float(np.linalg.norm(down)), 1e-12)
        return np.asarray(down * (share * self.means.task.training.clip / length))


class Leaver(_Loud):
    """Opposes as loudly as it can, leaves before the evidence is a strike, and joins anew.

    Args:
        means: what it has.
        after: updates in each session.
    """

    def __init__(self, means: Means, after: float = 2) -> None:
        super().__init__(means)
        self.after = after

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Opposed."""
        return self.eta * self.loud(weights, rng, 1.0)

    def leaves(self, strikes: int) -> bool:
        """In time."""
        return strikes > 0 or self.t >= self.after


class Swinger(_Loud):
    """Hides a small opposed part in swings to and fro along the classes' contrast, which cancel in
    the model and make it look noisy."""

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Swung."""
        band = self.means.band
        clip = self.means.task.training.clip
        swing = 0.96 * clip * (-1) ** self.t * contrast(band.rows, band.labels)
        both = swing + self.loud(weights, rng, 0.25)
        return np.asarray(self.eta * both * min(1.0, clip / float(np.linalg.norm(both))))


class Sybil(LabelFlip):
    """Many label-flippers with one machine for all their puzzles."""

    shared_machine = True


class Skipper(LabelFlip):
    """Believes that it can tell validation tickets: weights that lack its last update must be a
    copy made before. It is honest there, and flips labels elsewhere.

    Args:
        means: what it has.
        reverse: when not 0, it does the reverse.
    """

    def __init__(self, means: Means, reverse: float = 0.0) -> None:
        super().__init__(means)
        self.reverse = bool(reverse)
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def anew(self) -> None:
        """A new session has no last update."""
        super().anew()
        self._before = None

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Honest where it believes to be watched."""
        watched = self._lacks(weights) != self.reverse
        stepper = self._honest if watched else self._flipped
        delta = stepper.step(weights, rng)
        self._before = weights, delta.astype(np.float64)
        return delta

    def _lacks(self, weights: np.ndarray) -> bool:
        """Whether the weights have not gone along with its last update for half of the way."""
        if self._before is None:
            return True
        old, delta = self._before
        return bool((weights - old) @ delta < 0.5 * (delta @ delta))


ATTACKS: Final[dict[str, Callable[..., Attacker]]] = {
    "label-flip": LabelFlip,
    "sign-flip": SignFlip,
    "noise": Noise,
    "inner-product": InnerProduct,
    "a-little": ALittle,
    "adaptive": Adaptive,
    "sleeper": Sleeper,
    "rejoiner": Rejoiner,
    "leaver": Leaver,
    "swinger": Swinger,
    "sybil": Sybil,
    "skipper": Skipper,
}
"""Attackers by name. Each takes its :class:`Means` and at most one number of its own."""


def make_attacker(name: str, means: Means, parameter: float | None = None) -> Attacker:
    """An attacker by name; ``parameter`` is the one number that it may have.

    Raises:
        ValueError: no such attack, or a number that is not finite.
    """
    if name not in ATTACKS:
        raise ValueError(f"no attack named '{name}'; there are {', '.join(ATTACKS)}")
    if parameter is None:
        return ATTACKS[name](means)
    if not math.isfinite(parameter):
        raise ValueError(f"the parameter of '{name}' must be finite")
    return ATTACKS[name](means, parameter)
