"""When a training has arrived: the rule, the same for every contestant. Pure.

The training error is there at the first moment from which on it is within the target at every look,
until :data:`HOLD` times that moment, and for :data:`LEAST` seconds at least. To have been there
once says little, as a noisy error comes by everywhere; to stay for ever is not to be seen. Times
count from when training began.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

WITHIN: Final = 0.005
"""So much error above the converged model's counts as there (paper, Table 2)."""
HOLD: Final = 1.25
"""It must stay until so many times the moment at which it got there,"""
LEAST: Final = 2.0
"""and for so many seconds at least: several round trips through Tor, so that all clients have
answered to where it was."""


class Arrival:
    """Looks at one training as it goes on.

    Args:
        target: share misclassified that is good enough.
        hold, least: see the module.

    Attributes:
        since: seconds from when the error has been within the target without a break; None when
            the last look found it outside.
        seen: whether it has stayed for long enough; nothing changes any more then.
    """

    def __init__(self, target: float, hold: float = HOLD, least: float = LEAST) -> None:
        self.since: float | None = None
        self.seen = False
        self._target = target
        self._hold, self._least = hold, least

    def look(self, seconds: float, error: float) -> bool:
        """Take one look.

        Args:
            seconds: since training began; never less than at the look before.
            error: share misclassified.

        Returns:
            :attr:`seen`.
        """
        if self.seen:
            return True
        if error > self._target:
            self.since = None
        elif self.since is None:
            self.since = seconds
        self.seen = self.since is not None and seconds >= max(
            self._hold * self.since, self.since + self._least)
        return self.seen


def arrived(curve: Iterable[tuple[float, float]], target: float, hold: float = HOLD,
            least: float = LEAST) -> float | None:
    """The moment of arrival of a whole curve of (seconds, error); None when it is not seen."""
    arrival = Arrival(target, hold, least)
    for seconds, error in curve:
        if arrival.look(seconds, error):
            return arrival.since
    return None
