"""What may be told of a training while it goes on; as JSON, the lines of ``solve --json``."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct


class Event(Struct, frozen=True, tag_field="event", tag=str.lower):
    """Something to tell the person."""


class Solving(Event, frozen=True):
    """Tried so many of about ``expected`` at ``rate`` a second. ``door``: to be admitted;
    ``solver``: a name of :mod:`accord.solver`."""

    door: bool
    tried: int
    expected: float
    rate: float
    solver: str
    cores: int


class Searching(Event, frozen=True, tag="solver"):
    """How puzzles are solved, where that takes long: a name of :mod:`accord.solver`, hashes a
    second on so many cores, and why not by the compiled one (empty when it is that)."""

    name: str
    rate: float
    cores: int
    why_not: str


class Admitted(Event, frozen=True):
    """The broker knows us."""


class Waiting(Event, frozen=True):
    """The broker has nothing for us now: a code of :mod:`accord.problems`, and how it stands."""

    why: str
    have: int
    need: int


class Update(Event, frozen=True):
    """So many private steps were paid for, which comes to this epsilon in all; ``local_steps`` of
    them make an update."""

    updates: int
    epsilon: float
    local_steps: int = 1


class Struck(Event, frozen=True):
    """The broker has given us so many strikes; of ``judged`` clients, ``struck`` have one."""

    strikes: int
    struck: int
    judged: int


class Following(Event, frozen=True):
    """The model is trained without us: what :class:`accord.messages.Status` says of it."""

    phase: str
    clients: int
    needed: int
    updates: int
    max_updates: int
    left: float


class Silent(Event, frozen=True):
    """Nobody has answered for so many seconds; whatever was told before may have changed."""

    seconds: float


class Reconnecting(Event, frozen=True):
    """The connection is gone; it is tried again in so many seconds."""

    why: str
    seconds: float


class Spent(Event, frozen=True, tag="budget-spent"):
    """The budget is spent: so much of it, in all. No more updates are sent."""

    epsilon: float
    budget: float


class Late(Event, frozen=True):
    """Training had ended before we were admitted; the model is fetched, as by anyone."""


Told = Callable[[Event], None]
