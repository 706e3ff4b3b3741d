"""What may be told of a training while it goes on; as JSON, the lines of ``solve --json``."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct


class Event(Struct, frozen=True, tag_field="event", tag=str.lower):
    """Something to tell the person."""


class Solving(Event, frozen=True):
    """Tried so many of about ``expected`` at ``rate`` a second. ``door``: to be admitted."""

    door: bool
    tried: int
    expected: float
    rate: float


class Admitted(Event, frozen=True):
    """The broker knows us."""


class Waiting(Event, frozen=True):
    """The broker has nothing for us now: a code of :mod:`accord.problems`, and how it stands."""

    why: str
    have: int
    need: int


class Update(Event, frozen=True):
    """So many updates were paid for, which comes to this epsilon in all."""

    updates: int
    epsilon: float


class Reconnecting(Event, frozen=True):
    """The connection is gone; it is tried again in so many seconds."""

    why: str
    seconds: float


class Spent(Event, frozen=True, tag="budget-spent"):
    """The budget is spent; no more updates are sent."""


Told = Callable[[Event], None]
