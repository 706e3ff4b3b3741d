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
from accord.problems import KINDS, NOT_PUBLISHED, ROUND_OPEN, TOO_FEW_CLIENTS, PeerProblem
from client.events import Admitted, Event, Reconnecting, Solving, Spent, Told, Update, Waiting

EVERY: Final = 10.0
"""Seconds between plain lines that say the same kind of thing."""
JSON_EVERY: Final = 0.25


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
        # Text, so that nothing in it is taken for markup.
        yield lambda event: line.update(Text(words(event, budget)))


class _Lines:
    """One line for each event, but not many of a kind in a row."""

    def __init__(self, every: float, show: Told) -> None:
        self._every = every
        self._show = show
        self._kind: type[Event] | None = None
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        same = type(event) is self._kind
        if now - self._last < self._every and (same or isinstance(event, Solving)):
            return
        self._kind, self._last = type(event), now
        self._show(event)


def words(event: Event, budget: float) -> str:
    """An event in words."""
    match event:
        case Solving(door=door, tried=tried, expected=expected, rate=rate):
            what = "the admission puzzle" if door else "an update's puzzle"
            return (f"Solving {what}: {tried:,} tries at {rate:,.0f} a second; it takes "
                    f"{seconds(expected / rate)} on average.")
        case Admitted():
            return "Admitted. Training begins as soon as enough clients are here."
        case Waiting(why=why, have=have, need=need):
            if why == NOT_PUBLISHED.code:
                return (f"The others go on: {have:,} of at most {need:,} updates; waiting for the "
                        "model.")
            if why in (TOO_FEW_CLIENTS.code, ROUND_OPEN.code):
                return PeerProblem(KINDS[why], have=have, need=need).sentence
            return "The broker asks us to wait."
        case Update(updates=updates, epsilon=epsilon):
            many = "" if updates == 1 else "s"
            return f"Training: {updates:,} update{many}, epsilon {epsilon:.3g} of {budget:g} spent."
        case Reconnecting(why=why, seconds=pause):
            return f"No connection ({why}); trying again in {pause:.0f} s."
        case Spent():
            return "The privacy budget is spent; no more updates are sent."
    return ""


def seconds(number: float) -> str:
    """A length of time in words."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if number >= 2 * size:
            return f"{number / size:,.0f} {unit}"
    return f"{number:,.0f} seconds" if number >= 2 else "about a second"
