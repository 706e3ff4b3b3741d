"""``scripts/soak kill``: whatever is killed, at whatever moment, no acknowledged update is lost and
none is counted twice.

What was acknowledged is what the clients have written down themselves; what was applied is read
off the weights, where each update has a digit of its own (:mod:`lab.coded`). So neither rests on a
counter of the broker's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np

from accord.console import command as console_command
from accord.console import json_option, result, say
from accord.model_file import read_model
from accord.onion import onion_from_seed
from accord.problems import EXIT_BUG
from client.budget import Ledger
from lab.coded import Account, Mark, judge
from lab.crowd import PATIENCE
from lab.demo import Failed
from lab.soak.stage import Setting, Stage, until
from lab.tornet import RELAYS, TorNetwork, running

LEAST: Final = 200
"""Updates, so that the last kill is not after the last of them."""
STILL: Final = 240.0
"""After so many seconds without an acknowledgement training counts as stopped for good. Clients
that were often refused come back after up to 45 seconds, and a circuit may take 90."""
_SAY: Final = 5.0
_MOMENT: Final = 1.0
"""Between what the clock says at a kill, and the death of what was killed."""
_EVERY: Final = 5
"""One in so many kills of the desk hits it while it is starting again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is tried.

    Attributes:
        setting: who takes part; its ``updates`` and ``width`` follow from the kills.
        kills: of the desk, of a process of clients, of each side's tor, and of relays.
        seed: of the moments.
        each: acknowledged updates of each client that there are for one kill, on average.
        starting: longest time into a start at which a starting desk is killed, in seconds.
        jitter: longest time between the update that a kill waits for and the kill, in seconds.
    """

    setting: Setting
    kills: dict[str, int]
    seed: int = 0
    each: float = 2.0
    starting: float = 4.0
    jitter: float = 0.3

    def sized(self) -> Setting:
        """The setting, with as many updates as the kills take, and room for what an eager client
        may send."""
        setting = self.setting
        updates = max(LEAST, round(sum(self.kills.values()) * self.each * setting.clients))
        width = -(-(2 * updates // setting.clients + 40) // 10)
        return replace(setting, updates=updates, width=width)


def trial(
    *, tor: bool, clients: int, kills: int, what: str = "all", seed: int = 0, quick: bool = False
) -> Trial:
    """The trial that the options ask for: ``kills`` of the desk and of clients, a quarter as many
    of each tor, and a tenth as many of relays. Quick: clients come back sooner."""
    counts = {"broker": kills, "clients": kills}
    if tor:
        counts |= {"broker_tor": -(-kills // 4), "clients_tor": -(-kills // 4),
                   "relay": kills // 10}
    wanted = {"broker": ["broker"], "clients": ["clients"],
              "tor": ["broker_tor", "clients_tor", "relay"]}.get(what, list(counts))
    chosen = {name: counts[name] for name in wanted if counts.get(name)}
    # Half of them must be there: so the time until updates flow again is the time until half of
    # the clients have found their way back.
    setting = Setting(clients=clients, processes=min(4, clients), updates=0, width=0,
                      minimum=max(1, clients // 2), tor=tor)
    if tor:
        pace = {"longest": 8.0} if quick else {}
        return Trial(setting=replace(setting, delay=2.0 if quick else 3.0, pace=pace), kills=chosen,
                     seed=seed)
    # Without Tor everything is sooner, and the kills are meant to be many.
    setting = replace(setting, delay=0.0, pace={"first": 0.05, "longest": 0.5})
    return Trial(setting=setting, kills=chosen, seed=seed, each=1.0, starting=1.0,
                 jitter=0.03)


@dataclass(slots=True)
class Course:
    """What happens while the trial runs.

    Attributes:
        kills: when, of each kind.
        lost: acknowledged updates that a killed desk did not have on its disk.
        open: at each kill of the desk, what was on its disk and not acknowledged.
        restarts: processes started again.
        crowds_killed: when and which; whether the clients, or only their tor.
    """

    account: Account = field(default_factory=Account)
    kills: dict[str, list[float]] = field(default_factory=dict)
    crowds_killed: list[tuple[float, int, bool]] = field(default_factory=list)
    lost: set[Mark] = field(default_factory=set)
    doubled: set[Mark] = field(default_factory=set)
    open: list[tuple[float, set[Mark]]] = field(default_factory=list)
    restarts: int = 0


class _Killer:
    """Kills one thing after another, at random moments of the training."""

    def __init__(self, stage: Stage, trial: Trial) -> None:
        self.stage, self.trial = stage, trial
        self.course = Course()
        self._random = np.random.default_rng(trial.seed)
        places = list(range(len(stage.parts)))
        self._random.shuffle(places)
        self._places = cycle(places)
        self._relays = cycle(f"relay{i}" for i in range(RELAYS))

    async def run(self) -> bool:
        """Kill until all are done; then wait for the end. False when training stopped for good."""
        watching = asyncio.create_task(self._watch())
        killing = asyncio.create_task(self._kill_all())
        try:
            await asyncio.wait([watching, killing], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
                return False
            killing.result()
            say("All kills are done; training goes on to its end.")
            ends = asyncio.create_task(self._ended())
            await asyncio.wait([watching, ends], return_when=asyncio.FIRST_COMPLETED)
            return await _cancelled(ends)
        finally:
            await _cancelled(killing)
            await _cancelled(watching)
            self.follow()

    def follow(self) -> None:
        self.course.account.follow(self.stage.records)

    async def _watch(self) -> None:
        """Follow the records, tell how it is going, and end when nothing goes any more."""
        said, before, last = 0.0, -1, time.monotonic()
        while True:
            self.follow()
            account, now = self.course.account, time.monotonic()
            got = len(account.acknowledged) + len(account.published)
            if got != before:
                before, last = got, now
            if now - last > STILL:
                say(f"Nothing was acknowledged for {STILL:.0f} s: it has stopped.")
                return
            if now - said >= _SAY:
                said = now
                kills = ", ".join(f"{len(t)} {name.replace('_', ' ')}"
                                  for name, t in self.course.kills.items()) or "none"
                say(f"{len(account.acknowledged):6} of {self.stage.setting.updates} updates "
                    f"acknowledged; killed: {kills}")
            await asyncio.sleep(0.05)

    async def _ended(self) -> bool:
        """Wait until all clients have ended of themselves."""
        await until(lambda: all(crowd.ended for crowd in self.stage.crowds), 0.2)
        return True

    async def _kill_all(self) -> None:
        kills = dict(self.trial.kills)
        twice = kills.get("broker", 0) // _EVERY
        acts = [name for name, many in kills.items()
                for _ in range(many - (twice if name == "broker" else 0))]
        self._random.shuffle(acts)
        # Moments of the training, not of the clock: none of them can come after its end.
        total = self.stage.setting.updates
        moments = sorted(self._random.uniform(0.05, 0.85, len(acts)) * total)
        do: dict[str, Callable[[], Awaitable[None]]] = {
            "broker": self._kill_desk, "clients": self._kill_crowd, "relay": self._kill_relay,
            "broker_tor": self._kill_desk_tor, "clients_tor": self._kill_crowd_tor}
        for moment, act in zip(moments, acts, strict=True):
            await until(lambda m=moment: len(self.course.account.acknowledged) >= m,  # type: ignore[misc]
                        0.01)
            await asyncio.sleep(self.trial.jitter * float(self._random.random()))
            if act == "broker" and twice:
                twice -= 1
                await self._kill_desk(also_starting=True)
            else:
                await do[act]()

    def _note(self, what: str) -> float:
        now = time.monotonic()
        self.course.kills.setdefault(what, []).append(now)
        return now

    async def _kill_desk(self, also_starting: bool = False) -> None:
        now = self._note("broker")
        await self.stage.kill_desk()
        await self._look_at_the_disk(now)
        if also_starting:
            self.course.restarts += 1
            await self.stage.start_desk()
            await asyncio.sleep(self.trial.starting * float(self._random.random()))
            self._note("broker")
            await self.stage.kill_desk()
        self.course.restarts += 1
        await self.stage.start_desk()

    async def _look_at_the_disk(self, now: float) -> None:
        # What is on its way to the clients still comes to them: what they know now is no more
        # than what the desk has said.
        self.follow()
        found = judge(self.course.account, self.stage.setting.code,
                      await asyncio.to_thread(self.stage.weights))
        self.course.lost.update(found.lost)
        self.course.doubled.update(found.doubled)
        self.course.open.append((now, set(found.uncertain)))

    async def _kill_crowd(self) -> None:
        place = next(self._places)
        now = self._note("clients")
        self.course.crowds_killed.append((now, place, True))
        await self.stage.crowds[place].kill()
        self.course.restarts += 1
        await self.stage.start_crowd(place)

    async def _kill_desk_tor(self) -> None:
        await _kill_tor(self.stage.desk_tor)
        self._note("broker_tor")

    async def _kill_crowd_tor(self) -> None:
        place = next(self._places)
        await _kill_tor(self.stage.parts[place].tor_directory())
        self.course.crowds_killed.append((self._note("clients_tor"), place, False))

    async def _kill_relay(self) -> None:
        assert self.stage.network is not None
        name = next(self._relays)
        self._note("relay")
        await self.stage.network.kill(name)
        await self.stage.network.restart(name)


async def _kill_tor(directory: Path) -> None:
    """Kill the tor of this directory; if it is just being started again, as soon as it runs."""
    async with asyncio.timeout(PATIENCE):
        await until(lambda: running(directory) is not None)
        pid = running(directory)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def _cancelled(task: asyncio.Task[Any]) -> bool:
    """Whether a task had come to its end; it is over now."""
    done = task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return done


async def attempt(
    trial: Trial, directory: Path, network: TorNetwork | None = None
) -> dict[str, Any]:
    """Run a trial; what came of it. ``fault`` says in words what should not have been.

    Args:
        trial: what is tried.
        directory: for all files.
        network: one that is up, to be used and left.
    """
    began = time.monotonic()
    async with Stage(directory, trial.sized(), network) as stage:
        say(f"{stage.setting.clients} clients, {stage.setting.updates} updates.")
        killer = _Killer(stage, trial)
        ended = await killer.run()
        try:
            await stage.announced()
        except (TimeoutError, Failed):
            stage.moved += 1  # nobody can say that it has the same address
        await stage.kill_desk()
        report = await asyncio.to_thread(_report, stage, killer.course, ended)
    report |= {"seconds": round(time.monotonic() - began, 1), "seed": trial.seed,
               "tor": trial.setting.tor}
    return report


def _report(stage: Stage, course: Course, ended: bool) -> dict[str, Any]:
    setting, account = stage.setting, course.account
    found = judge(account, setting.code, stage.weights())
    have, published = _models(stage)
    lost, doubled = course.lost | set(found.lost), course.doubled | set(found.doubled)
    unknown = set(found.unknown)
    if published is not None:
        # What the clients took home holds them too.
        theirs = judge(account, setting.code, published)
        lost |= set(theirs.lost)
        doubled |= set(theirs.doubled)
        unknown |= set(theirs.unknown)
    spent, waits = _spent(stage), _recoveries(stage, course)
    unpaid = [mark for mark in account.pushed if mark[1] >= spent[mark[0]]]
    caught = {mark for now, marks in course.open for mark in marks
              if mark in account.acknowledged and account.pushed[mark][-1] > now}
    unheard = [mark for mark in found.uncertain if _lived_on(stage, course, mark)]
    same = _address(stage) == stage.model and not stage.moved
    faults = {
        "training did not end": not ended, f"{len(lost)} acknowledged updates are lost": lost,
        f"{len(doubled)} updates were applied twice": doubled,
        f"{len(unknown)} updates were applied that nobody sent": unknown,
        f"{len(unheard)} clients lived on and never heard of an update that was applied": unheard,
        f"clients gave up {account.gave_up} times": account.gave_up,
        f"{len(unpaid)} updates were sent and not paid for": unpaid,
        "an address is another": not same,
        f"{have} of {setting.clients} clients have the model": ended and have < setting.clients,
    }
    return {
        "kills": {name: len(times) for name, times in course.kills.items()},
        "late": sum(seconds is None for found in waits.values() for seconds in found),
        "clients": setting.clients, "acknowledged": len(account.acknowledged),
        "lost": len(lost), "doubled": len(doubled), "unknown": len(unknown),
        "uncertain": len(found.uncertain), "applied": found.applied,
        "unheard": len(unheard), "pushed": len(account.pushed),
        "sent_again": sum(len(times) - 1 for times in account.pushed.values()),
        "caught": len(caught), "spent": sum(spent.values()), "unpaid": len(unpaid),
        "same_address": same, "ended": ended, "have_model": have, "gave_up": account.gave_up,
        "restarts": course.restarts, "address_seconds": _spread(stage.starts[1:]),
        "recovery_seconds": {
            name: _spread([x for x in found if x is not None]) for name, found in waits.items()},
        "fault": [words for words, is_so in faults.items() if is_so],
    }


def _lived_on(stage: Stage, course: Course, mark: Mark) -> bool:
    """Whether the client that sent an update was not killed since: then it asks until it knows."""
    sent = course.account.pushed[mark][-1]
    return not any(when > sent - _MOMENT and mark[0] in stage.parts[place].numbers
                   for when, place, whole in course.crowds_killed if whole)


def _models(stage: Stage) -> tuple[int, np.ndarray | None]:
    """How many clients have the model, signed and all the same; and its weights."""
    kept: Counter[bytes] = Counter()
    for number in range(stage.setting.clients):
        path = stage.client(number) / "model.safetensors"
        if path.exists():
            kept[path.read_bytes()] += 1
    if not kept:
        return 0, None
    ((raw, have),) = kept.most_common(1)
    return have, read_model(raw, "the model", stage.model).weights


def _spent(stage: Stage) -> Counter[int]:
    """Releases in each client's ledger."""
    spent: Counter[int] = Counter()
    for number in range(stage.setting.clients):
        for path in (stage.client(number) / "ledgers").glob("*.ledger"):
            with Ledger(path.parent, path.stem, read_only=True) as book:
                spent[number] += sum(book.counts().values())
    return spent


def _address(stage: Stage) -> str:
    """Of the model that the desk holds now."""
    (seed,) = (stage.state / "models").glob("*/onion.seed")
    return onion_from_seed(seed.read_bytes())


def _spread(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {"median": round(median(seconds), 2), "max": round(max(seconds), 2)}


def _recoveries(stage: Stage, course: Course) -> dict[str, list[float | None]]:
    """Seconds from each kill until an update sent later was acknowledged: anyone's, or, where
    clients or their tor were killed, one of theirs. None where training ended before that."""
    where = {when: place for when, place, _ in course.crowds_killed}
    return {
        name: [course.account.recovered(t, stage.parts[where[t]].numbers if t in where else None)
               for t in times]
        for name, times in course.kills.items()
    }


def _words(told: dict[str, Any]) -> str:
    kills = ", ".join(f"{many} of {name.replace('_', ' ')}" for name, many in told["kills"].items())
    lines = [
        f"Killed: {kills}; in {told['seconds']:.0f} s.",
        f"{told['acknowledged']} updates acknowledged: {told['lost']} lost, {told['doubled']} "
        f"applied twice. {told['caught']} were on disk at a kill, and their receipts came later.",
        f"{told['spent']} releases paid for; {told['uncertain']} updates applied whose receipt "
        "never came.",
        f"{told['have_model']} of {told['clients']} clients have the model.",
        f"Same addresses: {'yes' if told['same_address'] else 'NO'}.",
    ]
    for name, spread in told["recovery_seconds"].items():
        if spread is not None:
            lines.append(f"Updates again after a kill of {name.replace('_', ' ')}: "
                         f"{spread['median']:.1f} s (median), {spread['max']:.1f} s (most).")
    return "\n".join(lines + [f"FAULT: {words}" for words in told["fault"]])


@click.command("kill")
@click.option("--quick", is_flag=True, help="12 clients, 4 kills, clients that come back sooner: "
              "under 3 minutes.")
@click.option("--clients", type=click.IntRange(2, 1000), help="How many.  [50]")
@click.option("--kills", type=click.IntRange(1, 10_000),
              help="Of the desk and of the clients; of each tor a quarter as many.  [20]")
@click.option("--what", type=click.Choice(["broker", "clients", "tor", "all"]), default="all",
              show_default=True, help="What is killed.")
@click.option("--tor", "mode", type=click.Choice(["private", "none"]), default="private",
              show_default=True, help="A private Tor network, or (many kills a minute) none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
              help="Keep all files there, logs included.")
@json_option
@console_command
async def command(quick: bool, clients: int | None, kills: int | None, what: str, mode: str,
               seed: int, keep: Path | None, as_json: bool) -> None:
    """Kill a desk, its clients and their tors at random moments, and count what was lost.

    All are real processes, killed with SIGKILL and started again on their own files. It ends with
    status 1 when an acknowledged update was lost, one was applied twice, an address changed, or
    training did not end.

    \b
    Examples:
      scripts/soak kill --quick --json
      scripts/soak kill --tor none --kills 200
    """
    if what == "tor" and mode == "none":
        raise click.UsageError("--what tor needs --tor private.")
    chosen = trial(tor=mode == "private", clients=clients or (12 if quick else 50),
                   kills=kills or (4 if quick else 20), what=what, seed=seed, quick=quick)
    with contextlib.ExitStack() as stack:
        directory = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        try:
            told = await attempt(chosen, directory)
        except Failed as failure:
            say(f"Error: {failure}")
            sys.exit(EXIT_BUG)
    result(told, as_json, lambda: _words(told))
    if told["fault"]:
        sys.exit(1)
