"""Following a model from outside: its status in words, once or until its training has ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from accord.circuit import Circuit
from accord.console import plain, say, unless_away
from accord.messages import SMALL_LIMIT, Status, decode
from accord.problems import AWAY, BAD_OPTION, LOST, NOT_FOUND, Problem

POLL: Final = 1.0
"""Seconds between two looks at a model that is being followed."""
RECONNECT: Final = 300.0
"""Seconds for a broker that was there to come back: a restart of it takes less."""
_ENDS: Final = ("published", "gone")
_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 40
_PHASES: Final = {
    "waiting": "waiting for the first client",
    "gathering": "gathering clients; training has not begun",
    "training": "training",
    "paused": "paused: too few clients",
    "published": "published",
    "gone": "gone",
}
_REASONS: Final = {
    "max-updates": "all updates were applied",
    "target-error": "the target error was reached",
    "patience": "it stopped getting better",
    "deadline": "its time was up",
}


async def get_status(circuit: Circuit) -> Status:
    """A model's status.

    Raises:
        Problem: as :func:`get_from_model`.
    """
    return decode(await get_from_model(circuit, "/status"), Status)


async def get_from_model(circuit: Circuit, path: str, limit: int = SMALL_LIMIT) -> bytes:
    """What a model has at a path that every model has.

    Raises:
        Problem: ``BAD_OPTION`` when the address is a broker's own and no model's; whatever a
            :class:`~accord.circuit.Circuit` raises.
    """
    try:
        return await circuit.get(path, limit)
    except Problem as problem:
        if problem.kind is NOT_FOUND:
            raise Problem(
                BAD_OPTION, option=circuit.onion,
                what="is not the address of a model; give the one that 'tormentor curate' "
                "printed, not the broker's own") from None
        raise


async def follow(circuit: Circuit, patience: float = RECONNECT) -> Status:
    """Show how a model gets on until it is published or gone, and return its last status.

    Shown on standard error: a block that is redrawn on a terminal, else a line when something
    has changed.

    Args:
        circuit: to the model.
        patience: seconds for a broker that is away to come back.

    Raises:
        Problem: ``LOST`` when it does not come back; whatever :func:`get_status` raises.
    """
    errors: list[float] = []
    said = ""
    console = Console(stderr=True, markup=False, highlight=False)
    live = Live(console=console, auto_refresh=False) if sys.stderr.isatty() else None

    def show(text: str) -> None:
        nonlocal said
        if live is not None:
            live.update(Text(text), refresh=True)
        elif text != said:
            say(text)
            said = text

    async def look() -> Status:
        return await get_status(circuit)

    def away(why: str) -> None:
        show(f"The broker is away ({why}); trying for {patience:.0f} s to reach it again.")

    with live or nullcontext():
        while True:
            try:
                status = await unless_away(look, patience, away)
            except Problem as problem:
                if problem.kind is not AWAY:
                    raise
                raise Problem(LOST, address=circuit.onion, seconds=round(patience)) from None
            if status.error is not None:
                errors.append(status.error)
            show(words(status, errors) if live is not None else line(status))
            if status.phase in _ENDS:
                return status
            await asyncio.sleep(POLL)


def line(status: Status) -> str:
    """A status in one line, for a log: the same while nothing has changed."""
    error = "" if status.error is None else f", error {status.error:.1%}"
    return (f"{status.phase}: {status.clients} of {status.needed} clients, "
            f"{status.updates} of {status.max_updates} updates{error}")


def words(status: Status, errors: list[float] | None = None) -> str:
    """A status in a few lines, for a person.

    Args:
        status: of a model.
        errors: its validation errors so far, drawn when there are two or more.
    """
    phase = _PHASES[status.phase]
    if status.ended:
        phase += f" ({_REASONS.get(status.ended, plain(status.ended))})"
    lines = [
        (plain(status.title).replace("\n", " "), ""),
        ("Phase", f"{phase}, for {duration(status.seconds)}"),
        ("Clients", f"{status.clients} active, {status.needed} needed"),
        ("Updates", f"{status.updates:,} of {status.max_updates:,}"),
    ]
    if status.error is not None:
        best = "" if status.best_error is None else f", the lowest so far {status.best_error:.1%}"
        lines.append(("Error", f"{status.error:.1%} of the validation rows are wrong{best}"))
    if errors and len(errors) > 1:
        lines.append(("", sparkline(errors)))
    if status.rounds:
        lines.append(("Rounds", f"{status.rounds:,} completed; strikes given: {status.strikes:,}"))
    return "\n".join([lines[0][0], *(f"  {name:<8} {text}" for name, text in lines[1:])])


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """A row of small bars, from the lowest to the highest of the values; the means of stretches
    where there are more values than room."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    whole = round(seconds)
    units: tuple[tuple[int, str], ...] = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    parts: list[str] = []
    for size, unit in units:
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def progress(text: str) -> Callable[[str], None]:
    """A note for :func:`~accord.console.unless_away` that says the same line once."""
    told = False

    def note(why: str) -> None:
        nonlocal told
        if not told:
            say(f"{text} ({why}) ...")
        told = True

    return note
