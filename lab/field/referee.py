"""One race, on the broker's machine: hands its task to the desk, and follows it to the arrival.

Run as a program: ``python -m lab.field.referee ORDER.json``, a
:class:`~lab.field.orders.RefereeOrder`. What it leaves in the order's ``home`` is said in
:mod:`lab.field.orders`; what ``tormentor curate`` said is in ``curate.log`` there. Stopped, it
leaves no process, and neither a result nor a failure.

It reads the desk's trace (:mod:`lab.traced_desk`), whose times are of the same clock as its own.
The clients are on other machines. So what it says of the beginning is ``training_began``: seconds
since the epoch by this machine's clock, exact to a millisecond by that clock. Who subtracts from it
the moment at which clients began (:class:`~lab.field.orders.Began`) is as exact as the two
machines' clocks agree: some milliseconds between machines that keep time by NTP, which is little
for joining, which takes seconds. Nothing else is measured between two machines' clocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from accord.console import command, host_port, say
from accord.files import private_directory, write_whole
from accord.problems import Problem
from lab.demo import Command, Failed
from lab.field.deal import dealt
from lab.field.orders import (
    CURATED,
    FAILED,
    PROGRESS,
    RESULT,
    Curated,
    Failure,
    Progress,
    RefereeOrder,
    read,
)
from lab.race import Watch, follow
from lab.traced_desk import TRACES, Trace

CURATING: Final = 600.0
"""Seconds until the desk has the task and the model is found: a tor that is started for the first
time loads all of the network's directory, and a new address takes minutes on a slow day."""
TELL: Final = 2.0
"""Seconds between two lines of progress, at least."""


class Referee:
    """Runs one order.

    Args:
        order: what is run; its ``home`` is made if need be.
    """

    def __init__(self, order: RefereeOrder) -> None:
        self._order = order
        self._home = private_directory(Path(order.home))

    async def run(self) -> dict[str, Any]:
        """Curate, follow, and write what came of it.

        Returns:
            The result, which is in the home, too.

        Raises:
            Failed: with the sentence that stands in the home. Problem: ``DISK``.
        """
        for old in (CURATED, PROGRESS, RESULT, FAILED):
            (self._home / old).unlink(missing_ok=True)
        try:
            result = await self._run()
        except (Failed, Problem) as error:
            why = error.sentence if isinstance(error, Problem) else str(error)
            self._leave(FAILED, Failure(why))
            raise Failed(why) from None
        self._leave(RESULT, result)
        return result

    async def _run(self) -> dict[str, Any]:
        order = self._order
        part = await asyncio.to_thread(dealt, Path(order.rows), Path(order.labels))
        watch = Watch(order.race, part, order.optimum)
        self._tell("handing the task to the desk")
        onion = await self._curate()
        self._leave(CURATED, Curated(onion))
        trace = Trace(Path(order.state) / TRACES / onion)
        await follow(order.race, trace, watch, time.monotonic(), lambda: None, self._tell, TELL)
        began = time.time() - (time.monotonic() - watch.began)
        return {**watch.result(), "training_began": round(began, 3)}

    async def _curate(self) -> str:
        """The model's address."""
        order, way = self._order, self._order.way
        if way.tor:
            where = ["--tor", "launch", *(["--torrc", way.torrc] if way.torrc else [])]
        else:
            host_port(way.direct, "direct")
            where = ["--tor", "none", "--direct", way.direct]
        log = self._home / "curate.log"
        curate = Command(log, "curate", order.task, "--json", "--validation", order.validation,
                         "--broker", order.desk, "--state", way.state or self._home / "curator",
                         *where)
        try:
            async with asyncio.timeout(CURATING), curate:
                onion = str((await curate.line())["onion"])
                await curate.finish()
        except TimeoutError:
            raise Failed(f"the desk did not have the task within {CURATING:g} s; see {log}"
                         ) from None
        return onion

    def _tell(self, words: str) -> None:
        say(f"{self._order.race.words}: {words}")
        self._leave(PROGRESS, Progress(words, time.time()))

    def _leave(self, name: str, value: object) -> None:
        write_whole(self._home / name, msgspec.json.encode(value))


@click.command("referee")
@click.argument("order", type=click.Path(path_type=Path))
@command
async def main(order: Path) -> None:
    """Curate and follow the race that an ORDER (JSON) is for.

    \b
    Example:
      python -m lab.field.referee /var/lib/tormentor/race/order.json
    """
    try:
        todo = read(order, RefereeOrder)
    except Problem as problem:
        # Where its home is, it does not say; whoever waits, waits beside it.
        with contextlib.suppress(Problem, OSError):
            write_whole(order.parent / FAILED, msgspec.json.encode(Failure(problem.sentence)))
        raise
    try:
        told = await Referee(todo).run()
    except Failed as failure:
        raise click.ClickException(str(failure)) from None
    say(todo.race.ended(told))


if __name__ == "__main__":
    main()
