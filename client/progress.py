"""What a training looks like: a live line for a terminal, plain lines for a log, or JSON lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.status import Status
from rich.text import Text

from accord.console import say
from accord.problems import KINDS, ROUND_OPEN, TOO_FEW_CLIENTS, PeerProblem
from accord.solver import MISSING
from accord.words import bound, duration, number
from client.events import (
    Admitted,
    Event,
    Following,
    Late,
    Reconnecting,
    Searching,
    Silent,
    Solving,
    Spent,
    Struck,
    Told,
    Update,
    Waiting,
)

EVERY: Final = 10.0
"""Seconds between plain lines that say the same kind of thing."""
JSON_EVERY: Final = 0.25
_LASTING: Final = (Admitted, Searching, Spent, Struck, Late)
"""What nobody may overlook: it is told however much else is, and stays on a terminal."""

_NEED_NOT: Final = ("You need not wait: Ctrl-C is safe, nothing more is spent, and the same "
                    "command gets the model later.")


@contextmanager
def shown(as_json: bool, budget: float) -> Iterator[Told]:
    """Show events while the body runs; gives what each event is to be told to."""
    if as_json:
        yield _Lines(JSON_EVERY, lambda event: click.echo(msgspec.json.encode(event).decode()))
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(EVERY, lambda event: say(words(event, budget)))
        return
    with Status("Connecting ...", console=console) as line:

        def show(event: Event) -> None:
            # Text, so that nothing in it is taken for markup.
            text = Text(words(event, budget))
            if isinstance(event, _LASTING):
                console.print(text)  # above the live line, where it stays
            else:
                line.update(text)

        yield show


class _Lines:
    """One line for each event, but not many of a kind in a row."""

    def __init__(self, every: float, show: Told) -> None:
        self._every = every
        self._show = show
        self._kind: type[Event] | None = None
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, _LASTING):
            self._show(event)
            return
        same = type(event) is self._kind
        if now - self._last < self._every and (same or isinstance(event, Solving)):
            return
        self._kind, self._last = type(event), now
        self._show(event)


def words(event: Event, budget: float) -> str:
    """An event in words."""
    match event:
        case Searching():
            return _searching(event)
        case Solving(door=door, tried=tried, expected=expected, rate=rate):
            what = "the admission puzzle" if door else "an update's puzzle"
            return (f"Solving {what}: {tried:,} tries at {rate:,.0f} a second "
                    f"({event.solver}); it takes {duration(max(1.0, expected / rate))} on average.")
        case Admitted():
            return "Admitted. Training begins as soon as enough clients are here."
        case Waiting(why=why, have=have, need=need):
            if why in (TOO_FEW_CLIENTS.code, ROUND_OPEN.code):
                return PeerProblem(KINDS[why], have=have, need=need).sentence
            return "The broker asks us to wait."
        case Following():
            return _following(event)
        case Update(updates=updates, epsilon=epsilon, local_steps=each):
            many = "" if updates == 1 else "s"
            what = "update" if each == 1 else "private step"
            return (f"Training: {updates:,} {what}{many}, epsilon {bound(epsilon)} of "
                    f"{number(budget)} spent.")
        case Struck(strikes=strikes, struck=struck, judged=judged):
            return (f"The broker has given us {strikes:,} strike{'' if strikes == 1 else 's'}: our "
                    "updates oppose the curator's validation set. Who is wrong, we or that set, "
                    f"nobody here knows. Clients judged: {judged:,}; struck: {struck:,}.")
        case Silent(seconds=silent):
            return f"No answer for {silent:,.0f} s; the broker may be away. We go on asking."
        case Reconnecting(why=why, seconds=pause):
            return f"No connection ({why}); trying again in {pause:.0f} s."
        case Spent(epsilon=epsilon, budget=whole):
            return f"The privacy budget is spent: epsilon {bound(epsilon)} of {number(whole)}."
        case Late():
            return ("Training had ended before we were admitted: your data were not used. "
                    "Fetching the model all the same.")
    return ""


def _searching(event: Searching) -> str:
    """Which solver it is, at what rate, and what would make it faster."""
    many = "" if event.cores == 1 else "s"
    told = (f"Solver: {event.name}, {event.rate / 1e6:,.1f} million hashes a second on "
            f"{event.cores} core{many}")
    if event.why_not == MISSING:
        return f"{told}; pip install 'tormentor[fast]' makes it tens of times faster."
    return f"{told}; not the compiled one, as {event.why_not}." if event.why_not else f"{told}."


def _following(event: Following) -> str:
    if event.phase == "training":
        return (f"Waiting for the model: training goes on, {event.updates:,} of at most "
                f"{event.max_updates:,} updates. {_NEED_NOT}")
    how = "is paused" if event.phase == "paused" else "has not begun"
    return (f"Training {how} ({event.clients:,} of {event.needed:,} clients); the model comes at "
            f"the latest in {duration(event.left)}. {_NEED_NOT}")
