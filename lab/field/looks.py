"""What is seen of a race in the field while it runs: progress, its end, or what spoilt it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from accord.console import plain
from accord.problems import HOST_FAILED, Problem
from lab.demo import Failed
from lab.field.inventory import Inventory
from lab.field.orders import Failure, Progress
from lab.field.plays import TELL, Event, problem_of
from lab.race import Race

LOOK: Final = 5
"""Seconds between two looks at a race."""
T = TypeVar("T")


class Over(Exception):
    """A race has its result."""


class Looks:
    """Hears what is seen of a race in its course.

    Args:
        race: which. inventory: of its machines. log: where there is more.
        say: told a line of progress now and then.
    """

    def __init__(self, race: Race, inventory: Inventory, log: Path, say: Callable[[str], None]
                 ) -> None:
        self._race, self._inventory, self._log, self._say = race, inventory, log, say
        self._told = time.monotonic()

    def hear(self, event: Event) -> None:
        """One look at one machine.

        Raises:
            Over: there is a result. Failed: the referee says that there is none.
            Problem: ``HOST_FAILED``: a machine's part of it ended. ``HOST_AWAY``.
        """
        text = event.stdout.strip()
        if event.outcome == "unreachable":
            raise problem_of([event], self._inventory.words, self._log)
        if event.answer == "clients" and event.outcome == "ok" and text:
            raise Problem(HOST_FAILED, host=self._inventory.words(event.host), task=event.task,
                          why=f"they are {text}", log=self._log)
        if event.answer != "race":
            return
        if event.outcome == "retry":
            self._progress(text)
        elif event.outcome == "ok" and text:
            self._end(text, event)

    def _progress(self, text: str) -> None:
        now = time.monotonic()
        if text and now - self._told >= TELL - LOOK / 2:
            self._told = now
            self._say(f"{self._race.words}: {plain(decoded(text, Progress).words)}")

    def _end(self, text: str, event: Event) -> None:
        try:
            told = json.loads(text)
        except ValueError:
            raise Problem(HOST_FAILED, host=self._inventory.words(event.host), task=event.task,
                          why=f"its referee {text.splitlines()[-1]}", log=self._log) from None
        if not isinstance(told, dict) or "why" in told:
            raise Failed(plain(decoded(text, Failure).why))
        raise Over


def decoded(text: str, kind: type[T]) -> T:
    """What a machine said, as what it must be.

    Raises:
        Failed: it is none.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise Failed(f"what a machine says of it cannot be read: {error}") from None
