"""Keeping a tor: when it ends, or its control connection breaks, another takes its place.

It listens on the same SOCKS port as the one before, so that a
:class:`~accord.circuit.Route` stays good. It is tried again for ever, ever more slowly: whoever is
kept waiting knows better when to give up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Final

from accord.control import Progress
from accord.problems import TOR_AWAY, Problem
from accord.tor import Tor, attach, held_port, launch

log = logging.getLogger("tormentor.tor")
_random = SystemRandom().random

FIRST: Final = 1.0
"""Seconds before a second attempt; each further one waits twice as long,"""
LONGEST: Final = 60.0
"""but never longer than this."""
STEADY: Final = 60.0
"""A tor that lived so many seconds was well: the next attempt is made at once."""


class Keeper:
    """A tor that is kept, while this is used as a context manager.

    Args:
        start: gives a tor that is ready, with a control connection.
        tell: told in one line when tor is away, why it is not back yet, and when all is well.
        sleep: waits so many seconds.
        now: seconds of a monotonic clock.
        random: from 0 to 1, so that many do not try at the same moment.

    Entering raises:
        Problem: whatever the first start does; no later one ends anything.

    Attributes:
        tor: the one that is used now; it may be away.
        renew: awaited with each new tor, before all is well: publishes again what went with the
            one before.
    """

    def __init__(
        self, start: Callable[[], Awaitable[Tor]], tell: Callable[[str], None], *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random,
    ) -> None:
        self.tor: Tor
        self.renew: Callable[[Tor], Awaitable[None]] | None = None
        self._start = start
        self._tell = tell
        self._sleep = sleep
        self._now = now
        self._random = random
        self._pause = FIRST

    async def __aenter__(self) -> Keeper:
        self.tor = await self._start()
        self._task = asyncio.create_task(self._keep())
        self._task.add_done_callback(_say_mistake)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        try:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        finally:
            await self.tor.close()

    async def restart(self) -> None:
        """End a tor of our own, so that another takes its place; the system's is left alone."""
        if self.tor.ours:
            await self.tor.close()

    async def _keep(self) -> None:
        began = self._now()
        while True:
            why = await self.tor.lost()
            away = self._now()
            self._tell(f"tor is away: {why}. Trying to have it back.")
            if away - began >= STEADY:
                self._pause = FIRST
            else:
                # It comes and goes: it is not asked for without a pause.
                await self._wait()
            await self._again()
            began = self._now()
            self._tell(f"tor is back after {began - away:.1f} s.")

    async def _again(self) -> None:
        """Try until there is another tor, with all that was published through the one before."""
        told = ""
        while True:
            try:
                await self.tor.close()
                self.tor = await self._start()
                if await self._renewed():
                    return
            except Problem as problem:
                if problem.sentence != told:
                    told = problem.sentence
                    self._tell(f"tor is not back yet: {told}")
            await self._wait()

    async def _renewed(self) -> bool:
        """Have all published again; False when this tor went away meanwhile."""
        try:
            if self.renew is not None:
                await self.renew(self.tor)
        except Problem as problem:
            # What a tor that is there refuses, it would refuse again.
            self._tell(problem.sentence)
            return problem.kind is not TOR_AWAY
        return True

    async def _wait(self) -> None:
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST)
        await self._sleep(pause * (0.5 + self._random()))


def _say_mistake(task: asyncio.Task[None]) -> None:
    """A mistake of our own must not pass in silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("tor is not kept any more, by a mistake of ours.", exc_info=error)


@contextlib.asynccontextmanager
async def launched(directory: Path, tell: Callable[[str], None], *,
                   extra_torrc: Path | None = None, progress: Progress | None = None,
                   ) -> AsyncIterator[Keeper]:
    """A tor of our own that is kept, always on the same SOCKS port and the same data.

    Args:
        directory: of its data; whoever uses it is the only one who may (:func:`accord.tor.launch`).
        tell: as of :class:`Keeper`.
        extra_torrc: more configuration.
        progress: told about the first bootstrap.

    Raises:
        Problem: whatever :func:`accord.tor.launch` raises, the first time.
    """
    telling = progress

    with held_port() as held:
        async def start() -> Tor:
            nonlocal telling
            tell_once, telling = telling, None
            with held.lent() as port:
                return await launch(
                    directory, extra_torrc=extra_torrc, progress=tell_once, port=port)

        async with Keeper(start, tell) as keeper:
            yield keeper


def attached(tell: Callable[[str], None]) -> Keeper:
    """The system's tor with its control port, kept: it is asked again when it was away.

    Args:
        tell: as of :class:`Keeper`.
    """
    return Keeper(lambda: attach(control=True), tell)
