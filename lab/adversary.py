"""Attackers: whoever makes other updates than an honest client would.

Each is an object with ``update(weights, rng)``, as :class:`client.trainer.Trainer` has it, so that
simulation (:mod:`lab.simulation`) and real sockets (:mod:`lab.live`) drive them alike. They know
what a client of the real program can know: the task, their own rows, the weights they are sent,
the strikes they are told of, and what their accomplices (:class:`Band`) know. None of them has
seen the validation set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from client.trainer import Made, Trainer

Spend = Callable[[int], range]
"""What gives the numbers of so many steps."""

_MARGIN: Final = 1e-6
_SAMPLE: Final = 500
"""Rows that an estimate of a gradient is made from; more change it little and cost time."""
MOST_Z: Final = 3.0
"""Where attackers are the majority, the formula of "a little is enough" knows no bound; this many
standard deviations still look like chance."""


class Stepper(Protocol):
    """Whoever makes updates."""

    def update(self, weights: np.ndarray, rng: np.random.Generator) -> Made:
        """The update for these weights, (d,), and how many steps it is."""


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
        spend: gives the numbers of so many steps, from 1.
        local_steps: how many of them make an update.
    """

    task: Task
    rows: np.ndarray
    labels: np.ndarray
    batch: int
    spend: Spend
    local_steps: int = 1

    def update(self, weights: np.ndarray, rng: np.random.Generator) -> Made:
        """One update, float32, shape (d,)."""
        return summed(weights, self.spend(self.local_steps), self.task.training.max_norm,
                      lambda here, t: self._step(here, t, rng))

    def _step(self, weights: np.ndarray, t: int, rng: np.random.Generator) -> np.ndarray:
        training = self.task.training
        chosen = rng.choice(len(self.labels), size=self.batch, replace=False, shuffle=False)
        mean = clipped_mean(self.task, weights, self.rows[chosen], self.labels[chosen])
        return np.asarray(-step_size(training, t) * (training.regularisation * weights + mean))


def summed(weights: np.ndarray, numbers: Sequence[int], bound: float,
           step: Callable[[np.ndarray, int], np.ndarray]) -> Made:
    """Steps, each from where the one before has led, as one update.

    Args:
        weights: where the first begins, (d,).
        numbers: of the steps, at least one.
        bound: longest that one may be.
        step: gives the step, (d,), from such weights, of such a number.
    """
    delta = shorten(step(weights, numbers[0]), bound).astype(np.float64)
    for number in numbers[1:]:
        delta = delta + shorten(step(weights + delta, number), bound)
    return Made(delta.astype(np.float32), len(numbers))


def clipped_mean(
    task: Task, weights: np.ndarray, rows: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """The mean of the clipped gradients of rows (n, d), shape (d,)."""
    gradients = OBJECTIVES[task.objective].gradients(weights, rows, labels)
    return np.asarray(clip_rows(gradients, task.training.clip).mean(axis=0))


def honest(
    task: Task, rows: np.ndarray, labels: np.ndarray, batch: int, epsilon: float | None,
    spend: Spend, local_steps: int = 1,
) -> Stepper:
    """The real client's way to make updates of so many steps, or, where ``epsilon`` is None, the
    same without noise. ``spend`` gives the numbers of the steps, from 1."""
    if epsilon is None:
        return Noiseless(task, rows, labels, batch, spend, local_steps)
    kind = Release(epsilon, batch, len(labels), task.dimension)
    return Trainer(task, Dataset(rows, labels, "", Path()), kind, spend, local_steps=local_steps)


def counter() -> Spend:
    """What numbers steps as a real client's ledger does, from 1, and has no end."""
    spent = 0

    def spend(count: int) -> range:
        nonlocal spent
        spent += count
        return range(spent - count + 1, spent + 1)

    return spend


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
        local_steps: steps that make an update.
    """

    task: Task
    rows: np.ndarray
    labels: np.ndarray
    batch: int
    epsilon: float | None
    band: Band
    number: int = 0
    local_steps: int = 1


class Attacker:
    """An attacker; by itself it behaves as an honest client.

    An update of several steps is as many of its own, each from where the one before has led.

    Attributes:
        t: number of the step that is being made, from 1, in this session.
        updates: number of the update that is being made, likewise.
    """

    shared_machine = False
    """Whether all attackers' puzzles are solved by one machine."""

    def __init__(self, means: Means) -> None:
        self.means = means
        self.t = self.updates = 0
        flipped = 1.0 - means.labels
        self._honest, self._flipped = (
            honest(means.task, means.rows, labels, means.batch, means.epsilon,
                   lambda count: range(self.t, self.t + 1))
            for labels in (means.labels, flipped))

    def update(self, weights: np.ndarray, rng: np.random.Generator) -> Made:
        """The update for a ticket, float32, shape (d,), no longer than the task allows."""
        self.updates += 1
        return summed(weights, range(self.means.local_steps), self.means.task.training.max_norm,
                      lambda here, _: self._step(here, rng))

    def _step(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.t += 1
        return self.make(weights, rng)

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The step that this kind of attacker wants, of any length, shape (d,)."""
        return self._honest.update(weights, rng).delta

    def leaves(self, strikes: int) -> bool:
        """Whether it leaves, to join anew, now that it has so many strikes."""
        return False

    def anew(self) -> None:
        """It has joined again, as somebody else."""
        self.t = self.updates = 0

    @property
    def eta(self) -> float:
        """Length of an honest client's step now."""
        return step_size(self.means.task.training, self.t)


class LabelFlip(Attacker):
    """Honest computing, the noise of privacy included, on the opposite answers."""

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An honest step on flipped labels."""
        return self._flipped.update(weights, rng).delta


class SignFlip(Attacker):
    """``-scale`` times its honest update, noise included."""

    def __init__(self, means: Means, scale: float = 10.0) -> None:
        super().__init__(means)
        self.scale = scale

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The turned update."""
        return -self.scale * self._honest.update(weights, rng).delta.astype(np.float64)


class Noise(Attacker):
    """A uniform direction, ``scale`` times as long as an honest update."""

    def __init__(self, means: Means, scale: float = 10.0) -> None:
        super().__init__(means)
        self.scale = scale

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Isotropic noise."""
        length = float(np.linalg.norm(self._honest.update(weights, rng).delta))
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
        releases[self.means.number] = self._honest.update(weights, rng).delta / self.eta
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
        good = self._honest.update(weights, rng).delta.astype(np.float64)
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
        if self.updates <= self.after:
            return self._honest.update(weights, rng).delta
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
        return strikes > 0 or self.updates >= self.after


class Swinger(_Loud):
    """Hides a small opposed part in swings to and fro along the classes' contrast, which cancel in
    the model and make it look noisy."""

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Swung."""
        band = self.means.band
        clip = self.means.task.training.clip
        swing = 0.96 * clip * (-1) ** self.updates * contrast(band.rows, band.labels)
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
        self._watched = True

    def anew(self) -> None:
        """A new session has no last update."""
        super().anew()
        self._before = None

    def update(self, weights: np.ndarray, rng: np.random.Generator) -> Made:
        """Of one kind for one ticket."""
        self._watched = self._lacks(weights) != self.reverse
        made = super().update(weights, rng)
        self._before = weights, made.delta.astype(np.float64)
        return made

    def make(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Honest where it believes to be watched."""
        stepper = self._honest if self._watched else self._flipped
        return stepper.update(weights, rng).delta

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
