"""The broker's log: its own words only, and never more than so many.

What goes through a desk is nobody's business, and whoever makes it say something must not fill its
disk with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import IO, Any, Final

from broker.limits import LOG_CHARACTERS, LOG_LINES, Bucket

_FOREIGN: Final = ("aiohttp", "stem", "asyncio")


class Sparse(logging.Filter):
    """Lets so many entries a minute pass; the next one says how many did not.

    Args:
        now: seconds of a monotonic clock.
        lines: a minute, and at once.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, lines: float = LOG_LINES) -> None:
        super().__init__()
        self._now = now
        self._bucket = Bucket(lines / 60, lines, now())
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether an entry passes."""
        if self._bucket.wait(self._now()) > 0:
            self._left_out += 1
            return False
        self._bucket.take(self._now())
        if self._left_out:
            record.msg = f"({self._left_out} entries were left out.) {record.msg}"
            self._left_out = 0
        return True


class Short(logging.Formatter):
    """The message, with its traceback if there is one, and no more than so many characters."""

    def format(self, record: logging.LogRecord) -> str:
        """One entry."""
        text = super().format(record)
        # The end of a traceback says more than its beginning.
        cut = len(text) - LOG_CHARACTERS
        return text if cut <= 0 else f"({cut} characters left out) {text[cut:]}"


def open_journal(stream: IO[Any] | None = None) -> None:
    """Log to standard error, or to a stream, within the limits."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(Sparse())
    handler.setFormatter(Short("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _FOREIGN:
        logging.getLogger(name).setLevel(logging.CRITICAL)
