"""Looks after onion services whose tor lives and that nobody finds all the same.

A descriptor can be lost, or introduction points, and tor not notice. So each service is reached
now and then as anyone would; one that cannot be is published again, which takes nothing from those
who talk with it now. When that does not help for long, and nobody talks with any, a tor of our own
is started again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import SystemRandom
from typing import Final, Protocol

from accord.problems import AWAY, TOR_AWAY, Problem

_random = SystemRandom().random


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When to look, in seconds. Each pause is drawn from half to one and a half of it.

    Attributes:
        look: between two looks at all services. Each look costs a circuit, and the load of a
            few; whoever counts on a desk can do without it for so long.
        soon: between looks while one cannot be reached.
        pause: between the tries of one look.
        tries: of one look. A busy machine fails one in good health now and then.
        restart: a service out of reach for so long is reason to start tor again.
    """

    look: float = 300.0
    soon: float = 60.0
    pause: float = 5.0
    tries: int = 3
    restart: float = 1800.0


USUAL: Final = Rhythm()


class Watched(Protocol):
    """The services: :class:`broker.hidden_service.HiddenServices`."""

    @property
    def onions(self) -> list[str]:
        """Their addresses."""

    async def reached(self, onion: str) -> None:
        """Reach one once, as anyone would."""

    async def again(self, onion: str) -> None:
        """Publish one again."""

    async def conversing(self) -> bool:
        """Whether somebody talks with one of them."""


class Restarts(Protocol):
    """What can start tor again: :class:`accord.keeper.Keeper`."""

    async def restart(self) -> None:
        """Start a tor of our own again."""


async def watch(
    services: Watched, tor: Restarts, tell: Callable[[str], None], rhythm: Rhythm = USUAL, *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    now: Callable[[], float] = time.monotonic,
    random: Callable[[], float] = _random,
) -> None:
    """Look after services, for ever.

    Args:
        services: looked after; any of them may come and go meanwhile.
        tor: started again when nothing else helps.
        tell: told in one line of a service that cannot be reached, and of one that can again.
        rhythm: when to look.
        sleep: waits so many seconds.
        now: seconds of a monotonic clock.
        random: from 0 to 1; nobody shall know a broker by the beat of its looks.
    """
    since: dict[str, float] = {}
    while True:
        await sleep((rhythm.soon if since else rhythm.look) * (0.5 + random()))
        for onion in services.onions:
            try:
                why = await _look(services, onion, rhythm, sleep)
                if why is None:
                    if since.pop(onion, None) is not None:
                        tell(f"{onion} is reached again.")
                elif onion in services.onions:
                    since.setdefault(onion, now())
                    tell(f"{onion} cannot be reached ({why}); publishing it again.")
                    await services.again(onion)
            except Problem as problem:
                # Nothing can be said of a service while tor is away, nor need be: it is published
                # again when tor is back.
                if problem.kind is not TOR_AWAY:
                    tell(problem.sentence)
        since = {onion: began for onion, began in since.items() if onion in services.onions}
        if any(now() - began >= rhythm.restart for began in since.values()):
            since = dict.fromkeys(since, now())
            await _restart(services, tor, tell)


async def _look(
    services: Watched, onion: str, rhythm: Rhythm, sleep: Callable[[float], Awaitable[None]]
) -> str | None:
    """Why a service cannot be reached; None when it is."""
    why: str | None = None
    for tries in range(rhythm.tries):
        if tries:
            await sleep(rhythm.pause)
        try:
            await services.reached(onion)
            return None
        except Problem as problem:
            if problem.kind is not AWAY:
                raise
            why = str(problem.details["why"])
    return why


async def _restart(services: Watched, tor: Restarts, tell: Callable[[str], None]) -> None:
    try:
        if await services.conversing():
            # Then it is our look that fails, and others would lose their conversations by it.
            return
    except Problem:
        return  # tor is away, and being brought back
    tell("Publishing again has not helped; starting tor again, if it is ours.")
    await tor.restart()
