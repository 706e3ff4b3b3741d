"""The screen: what a single update may do, whoever sent it. Pure.

Noise cannot be told from harm in one update, so one is never punished here. But a mean of clipped
gradients is no longer than the clip: whatever an update is longer than that, in units of its step,
is noise or malice, and is cut. One who is much noisier than the quietest client counts for no more
than it: so noise on purpose drowns nobody. And one who comes late makes steps no longer than those
of the others are by then: so nobody has the long first steps twice by coming under a new name.

An update may be the sum of several steps, of which its client says how many. It is measured by the
sum of their sizes, so what is looked at is a mean gradient. That of m steps has less noise, by
sqrt(m): then nobody is bound by the lengths of others who make more steps, but by what those would
have been at m steps. Let a client's mean gradient be of a length with ``S^2 + N^2 / m``, signal and
noise of one step. A, the least of these lengths, is not below S, and B, the least of lengths times
sqrt(m), has ``B^2 >= S^2 + N^2`` for some client's N. The limit for m steps, twice the root of
``A^2 + (B^2 - A^2) / m``, is then not below ``S^2 + N^2 / m``: an honest client of m steps is never
cut harder than it would be if everybody made one step each time. Whoever says too many steps has as
many times the bound, and as many times the weight in the test: it is the same as so many updates
of one step, that come in one contact.
"""

from __future__ import annotations

import math
import statistics
import struct
from typing import Final

import numpy as np

from accord.task import Training, Validation, steps_size
from broker.verdict import Update

_QUIETER: Final = 2.0
"""An update may be so many times as long as those of the quietest client are in the mean."""
_FLOOR: Final = 0.3
"""But always this share of the clip: one who sends nothing cannot silence the others."""
_MEMORY: Final = 20
"""A client's usual length is a mean over about so many updates."""
_KNOWN: Final = 5
"""Updates after which a client's usual length is known well enough to bind others."""
_LATELY: Final = 20
"""A client is counted while it has sent one of the last so many updates for each client known."""
_RECORD: Final = struct.Struct("<qqqdd?")


class Screen:
    """Brings updates to one scale, and bounds them.

    Args:
        rules: the task's; ``screen`` is what it does.
        training: the task's.
    """

    def __init__(self, rules: Validation, training: Training) -> None:
        self._kind = rules.screen
        self._training = training
        self._seen = 0
        self._count: dict[bytes, int] = {}
        self._steps: dict[bytes, int] = {}
        self._length: dict[bytes, float] = {}
        self._single: dict[bytes, float] = {}  # the same of one step, were it all noise
        self._last: dict[bytes, int] = {}
        self._before: dict[bytes, int] = {}
        self._usual = 0
        self._restored = False
        self._struck: set[bytes] = set()
        self._quiet: tuple[float, float] | None = None
        self._look_at = 0

    def look(
        self, name: bytes, sent: np.ndarray, delta: np.ndarray, downhill: np.ndarray | None,
        steps: int = 1,
    ) -> Update:
        """Measure one update and screen it.

        Args:
            name: whose.
            sent: what its ticket held, (d,).
            delta: the update, (d,).
            downhill: of the validation loss, (d,), when what points the other way is to be
                ignored; None when not.
            steps: how many it is the sum of, as its client says.
        """
        self._seen += 1
        count = self._count[name] = self._count.get(name, 0) + 1
        first = self._steps.get(name, 0) + 1
        self._steps[name] = first + steps - 1
        if self._restored and self._before:
            self._restored = False
            # Not the most: who has sent as fast as it could is only one.
            self._usual = int(statistics.median(
                self._count[other] + self._before[other] for other in self._before))
        before = self._before.setdefault(name, self._usual)
        eta = steps_size(self._training, first, steps)
        # Where each of the steps began is not known. That they have not led far from what was sent
        # is what the regularisation of all but the first is reckoned by.
        gradient = delta / eta + self._training.regularisation * sent
        clip = self._training.clip
        length = float(np.linalg.norm(gradient))
        for usual, now in ((self._length, 1.0), (self._single, math.sqrt(steps))):
            old = usual.get(name, 0.0)
            usual[name] = old + (min(length, 1e3 * clip) * now - old) / min(count, _MEMORY)
        self._last[name] = self._seen
        gradient = gradient * min(1.0, clip / max(length, 1e-300))
        if self._kind == "none":
            return Update(name, sent, delta, delta, gradient, steps)
        if downhill is not None and float(gradient @ downhill) <= 0.0:
            return Update(name, sent, delta, None, gradient, steps)
        if self._seen >= self._look_at:
            self._look_around()
            # In an eighth of what all send once: so it costs the same however many they are.
            self._look_at = self._seen + max(8, len(self._last) // 8)
        # Counted in updates, each of as many steps as this one: whoever says that it makes a
        # thousand at a time shortens nobody's.
        due = steps_size(self._training, first + before * steps, steps) / eta
        short = min(1.0, due * self._limit(steps) / max(length, 1e-300))
        decay = eta * self._training.regularisation * sent
        step = delta if short == 1.0 else _no_longer((delta + decay) * short - decay, delta)
        return Update(name, sent, delta, step, gradient, steps)

    def _limit(self, steps: int) -> float:
        """Longest mean gradient of so many steps that is not cut."""
        clip = self._training.clip
        if self._quiet is None:
            return clip
        quiet, single = self._quiet
        least = math.hypot(quiet, math.sqrt((single**2 - quiet**2) / steps)
                           ) if single > quiet else quiet
        return min(clip, max(_QUIETER * least, _FLOOR * clip))

    def _look_around(self) -> None:
        """What is usual among those who are here."""
        since = self._seen - _LATELY * len(self._last)
        self._last = {name: seen for name, seen in self._last.items() if seen >= since}
        # Updates of a client who has been here from the beginning: the median, as one who sends as
        # fast as it can should shorten nobody's steps.
        sent = [self._count[name] + self._before[name] for name in self._last]
        self._usual = int(statistics.median(sent)) if sent else 0
        known = [name for name in self._last
                 if self._count[name] >= _KNOWN and name not in self._struck]
        self._quiet = (min(self._length[name] for name in known),
                       min(self._single[name] for name in known)) if known else None

    def struck(self, name: bytes) -> None:
        """This client's quietness binds nobody any more."""
        self._struck.add(name)

    def record(self, name: bytes) -> bytes:
        """What must outlive a crash, of a session: 41 bytes."""
        return _RECORD.pack(self._count.get(name, 0), self._steps.get(name, 0),
                            self._before.get(name, 0), self._length.get(name, 0.0),
                            self._single.get(name, 0.0), name in self._struck)

    def restore(self, name: bytes, record: bytes) -> bytes:
        """Take it back; gives what follows it."""
        count, steps, before, length, single, struck = _RECORD.unpack_from(record)
        if struck:
            self._struck.add(name)
        if count:
            self._count[name], self._steps[name], self._before[name] = count, steps, before
            self._length[name], self._single[name] = length, single
            self._seen += count
            self._restored = True
        return record[_RECORD.size :]

    def forget(self, name: bytes) -> None:
        """Forget a session."""
        for where in (self._count, self._steps, self._length, self._single, self._last,
                      self._before):
            where.pop(name, None)
        self._struck.discard(name)


def _no_longer(step: np.ndarray, than: np.ndarray) -> np.ndarray:
    """The step, shortened where it is longer: an absurd regularisation would do that."""
    length, most = float(np.linalg.norm(step)), float(np.linalg.norm(than))
    return step if length <= most else step * (most / length)
