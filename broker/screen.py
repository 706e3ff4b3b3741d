"""The screen: what a single update may do, whoever sent it. Pure.

Noise cannot be told from harm in one update, so one is never punished here. But a mean of clipped
gradients is no longer than the clip: whatever an update is longer than that, in units of its step,
is noise or malice, and is cut. One who is much noisier than the quietest client counts for no more
than it: so noise on purpose drowns nobody. And one who comes late makes steps no longer than those
of the others are by then: so nobody has the long first steps twice by coming under a new name.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from accord.task import Training, Validation, step_size
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
_RECORD: Final = struct.Struct("<qqd?")


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
        self._length: dict[bytes, float] = {}
        self._last: dict[bytes, int] = {}
        self._before: dict[bytes, int] = {}
        self._usual = 0
        self._struck: set[bytes] = set()
        self._cut = training.clip

    def look(
        self, name: bytes, sent: np.ndarray, delta: np.ndarray, downhill: np.ndarray | None
    ) -> Update:
        """Measure one update and screen it.

        Args:
            name: whose.
            sent: what its ticket held, (d,).
            delta: the update, (d,).
            downhill: of the validation loss, (d,), when what points the other way is to be
                ignored; None when not.
        """
        self._seen += 1
        count = self._count[name] = self._count.get(name, 0) + 1
        before = self._before.setdefault(name, self._usual)
        eta = step_size(self._training, count)
        gradient = delta / eta + self._training.regularisation * sent
        clip = self._training.clip
        length = float(np.linalg.norm(gradient))
        usual = self._length.get(name, 0.0)
        self._length[name] = usual + (min(length, 1e3 * clip) - usual) / min(count, _MEMORY)
        self._last[name] = self._seen
        gradient = gradient * min(1.0, clip / max(length, 1e-300))
        if self._kind == "none":
            return Update(name, sent, delta, delta, gradient)
        if downhill is not None and float(gradient @ downhill) <= 0.0:
            return Update(name, sent, delta, None, gradient)
        if self._seen % 8 == 1:
            self._cut = self._limit()
        due = step_size(self._training, count + before) / eta
        short = min(1.0, due * self._cut / max(length, 1e-300))
        decay = eta * self._training.regularisation * sent
        step = delta if short == 1.0 else _no_longer((delta + decay) * short - decay, delta)
        return Update(name, sent, delta, step, gradient)

    def _limit(self) -> float:
        since = self._seen - _LATELY * len(self._last)
        self._last = {name: seen for name, seen in self._last.items() if seen >= since}
        # What a client who has been here from the beginning has sent: the median, as one who sends
        # as fast as it can should shorten nobody's steps.
        sent = [self._count[name] + self._before[name] for name in self._last]
        self._usual = int(np.median(sent)) if sent else 0
        lengths = [self._length[name] for name in self._last
                   if self._count[name] >= _KNOWN and name not in self._struck]
        clip = self._training.clip
        if not lengths:
            return clip
        return min(clip, max(_QUIETER * min(lengths), _FLOOR * clip))

    def struck(self, name: bytes) -> None:
        """This client's quietness binds nobody any more."""
        self._struck.add(name)

    def record(self, name: bytes) -> bytes:
        """What must outlive a crash, of a session: 25 bytes."""
        return _RECORD.pack(self._count.get(name, 0), self._before.get(name, 0),
                            self._length.get(name, 0.0), name in self._struck)

    def restore(self, name: bytes, record: bytes) -> bytes:
        """Take it back; gives what follows it."""
        count, before, length, struck = _RECORD.unpack_from(record)
        if struck:
            self._struck.add(name)
        if count:
            self._count[name], self._before[name], self._length[name] = count, before, length
            self._seen += count
            self._usual = max(self._usual, count + before)
        return record[_RECORD.size :]

    def forget(self, name: bytes) -> None:
        """Forget a session."""
        for where in (self._count, self._length, self._last, self._before):
            where.pop(name, None)
        self._struck.discard(name)


def _no_longer(step: np.ndarray, than: np.ndarray) -> np.ndarray:
    """The step, shortened where it is longer: an absurd regularisation would do that."""
    length, most = float(np.linalg.norm(step)), float(np.linalg.norm(than))
    return step if length <= most else step * (most / length)
