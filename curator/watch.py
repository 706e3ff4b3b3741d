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
from accord.problems import AWAY, BAD_OPTION, LOST, NOT_FOUND, TOR_AWAY, Problem
from accord.words import duration, wrapped

POLL: Final = 1.0
"""Seconds between two looks at a model that is being followed."""
RECONNECT: Final = 300.0
"""Seconds for a broker that was there to come back: a restart of it takes less."""
NOT_MEASURED: Final = "not measured: the task has no validation set"
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
    "max-pause": "it paused too long: clients had gone",
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

    def show(block: str, log: str, more: str = "") -> None:
        nonlocal said
        if live is not None:
            live.update(Text(block), refresh=True)
        elif log != said:
            say(log + more)
            said = log

    async def look() -> Status:
        return await get_status(circuit)

    def away(why: str) -> None:
        text = f"The broker is away ({why}); trying for {patience:.0f} s to reach it again."
        show(text, wrapped(text))

    with live or nullcontext():
        while True:
            try:
                status = await unless_away(look, patience, away)
            except Problem as problem:
                if problem.kind not in (AWAY, TOR_AWAY):
                    raise
                raise Problem(LOST, address=circuit.onion, seconds=round(patience)) from None
            if status.error is not None:
                errors.append(status.error)
            end = ending(status)
            show(words(status, errors), line(status), f"; ends {end}" if end else "")
            if status.phase in _ENDS:
                return status
            await asyncio.sleep(POLL)


def line(status: Status) -> str:
    """A status in one line, for a log: the same while nothing has changed."""
    error = "" if status.error is None else f", error {status.error:.1%}"
    if error and status.baseline is not None:
        error += f" (always one answer: {status.baseline:.1%})"
    struck = f", {_struck(status)}" if status.struck else ""
    return (f"{status.phase}: {status.clients} of {status.needed} clients, "
            f"{status.updates} of {status.max_updates} updates{error}{struck}")


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
    if end := ending(status):
        lines.append(("Ends", end))
    if status.error is not None:
        best = "" if status.best_error is None else f", the lowest so far {status.best_error:.1%}"
        lines.append(("Error", f"{status.error:.1%} of the validation rows are wrong{best}"))
        lines.append(("", one_answer(status)))
    elif status.baseline is None:
        lines.append(("Error", NOT_MEASURED))
    if errors and len(errors) > 1:
        lines.append(("", sparkline(errors)))
    if status.judged:
        lines.append(("Judged", _struck(status)))
    if status.struck:
        many = "" if status.strikes == 1 else "s"
        lines.append(("", f"({status.strikes:,} strike{many} in all: their updates oppose the "
                      "validation set)"))
    told = [lines[0][0], *(f"  {name:<8} {text}" for name, text in lines[1:])]
    return "\n".join([*told, useless(status)]).rstrip()


def ending(status: Status) -> str:
    """When a training ends that nobody ends before; empty when it has."""
    if status.phase in _ENDS:
        return ""
    time = duration(status.left)
    if status.phase == "paused":
        return f"in {time} unless clients come back"
    return f"at the latest in {time}"


def _struck(status: Status) -> str:
    """How many of the judged clients were struck. Who is wrong, they or the set, is not said."""
    many = "" if status.judged == 1 else "s"
    return f"{status.struck:,} of {status.judged:,} client{many} struck"


def one_answer(status: Status) -> str:
    """What a model's error is to be compared with; empty where there is no validation set."""
    if status.baseline is None:
        return ""
    return f"always saying one answer errs {status.baseline:.1%}"


def useless(status: Status) -> str:
    """A warning about a model that has learnt nothing from its updates, or nothing."""
    if not status.updates or status.best_error is None or status.baseline is None:
        return ""
    if status.best_error < status.baseline:
        return ""
    model = "The model" if status.phase in _ENDS else "So far the model"
    return f"{model} is no better than always giving one answer."


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """A row of small bars, from the lowest to the highest of the values; the means of stretches
    where there are more values than room."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def progress(text: str) -> Callable[[str], None]:
    """A note for :func:`~accord.console.unless_away` that says the same line once."""
    told = False

    def note(why: str) -> None:
        nonlocal told
        if not told:
            say(wrapped(f"{text} ({why}) ..."))
        told = True

    return note
