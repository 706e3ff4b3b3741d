"""Where a server's time goes: a profile by module, between two signals."""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import pstats
import signal
import sysconfig
import time
from pathlib import Path
from typing import Any, Final

from accord.files import write_whole
from lab.demo import Failed

MOST: Final = 10
"""Modules that are told; the others are together."""
_HOME: Final = Path(__file__).resolve().parents[2]
_IDLE: Final = "<method 'poll' of 'select.epoll' objects>"
_PATIENCE: Final = 20.0

Function = tuple[str, int, str]
"""File, line and name, as :mod:`pstats` has it."""


def profile_on_signal(place: Path) -> None:
    """In a server's process, in its loop: SIGUSR1 begins a profile of this thread, and once more
    ends it and writes the shares (:func:`shares`) to a file as JSON."""
    profile = cProfile.Profile()
    running = False

    def turn() -> None:
        nonlocal running
        running = not running
        if running:
            profile.enable()
            return
        profile.disable()
        told: Any = pstats.Stats(profile)
        write_whole(place, json.dumps(shares(told.stats)).encode())

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, turn)


def begin(pid: int) -> None:
    """Have a process that has :func:`profile_on_signal` begin."""
    os.kill(pid, signal.SIGUSR1)


def end(pid: int, place: Path) -> dict[str, float]:
    """Have it end; the shares that it wrote.

    Raises:
        Failed: it does not.
    """
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + _PATIENCE
    while not place.exists():
        if time.monotonic() > deadline:
            raise Failed("a server does not write its profile")
        time.sleep(0.05)
    found: dict[str, float] = json.loads(place.read_bytes())
    return found


def shares(stats: dict[Function, tuple[Any, ...]]) -> dict[str, float]:
    """The share of the busy time that each module takes itself, the greatest first.

    What is built in counts for the modules that call it; waiting for something to happen does not
    count.

    Args:
        stats: of :class:`pstats.Stats`.
    """
    took: dict[str, float] = {}
    for (file, _, name), (_, _, own, _, callers) in stats.items():
        if name == _IDLE:
            continue
        if file != "~" or not callers:
            took[module_of(file)] = took.get(module_of(file), 0.0) + own
            continue
        for (caller, _, _), (_, _, part, _) in callers.items():
            took[module_of(caller)] = took.get(module_of(caller), 0.0) + part
    total = sum(took.values())
    ordered = sorted(took.items(), key=lambda item: -item[1])
    told = {name: seconds / total for name, seconds in ordered[:MOST] if total}
    rest = 1.0 - sum(told.values())
    return told | ({"others": rest} if len(ordered) > MOST else {})


def module_of(file: str) -> str:
    """What a file is called in a profile: a module of this project, a package, or Python's own."""
    if file == "~":
        return "built in"
    path = Path(file)
    for home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        if path.is_relative_to(home):
            return path.relative_to(home).parts[0].removesuffix(".py")
    if path.is_relative_to(_HOME):
        return ".".join(path.relative_to(_HOME).with_suffix("").parts)
    if path.is_relative_to(sysconfig.get_path("stdlib")):
        return path.relative_to(sysconfig.get_path("stdlib")).parts[0].removesuffix(".py")
    return path.stem


def words(found: dict[str, float]) -> str:
    """For people."""
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.items())
