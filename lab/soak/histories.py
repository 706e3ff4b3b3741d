"""Random histories of one model, with every fault at every moment, checked after every step.

A history is a :class:`~lab.soak.world.Setting` and a list of steps; each step makes sense whatever
came before it, so that steps can be left out until only those stay that break something. At the end
of each history all faults stop, and honest clients come back: training must go on to its end.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from accord.console import command as house_command
from accord.console import json_option, result, say
from lab.soak.book import MOST_TOGETHER, Violation, require
from lab.soak.hostile import ACTS, prepare
from lab.soak.setting import Setting
from lab.soak.world import Line, Person, World

Step = tuple[str, int, int]
"""What happens, to whom, and how; the numbers are taken modulo what there is."""

_FAST_DISK: Final = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
_SECONDS: Final = (0.01, 0.5, 3.0, 9.0)
"""Steps of time; longer ones are parts of what the task allows."""


# -- what a step does ------------------------------------------------------------------------

def _person(world: World, number: int) -> Person:
    honest = [p for p in world.people if not p.hostile]
    return honest[number % len(honest)]


def _line(world: World, number: int, where: Callable[[Line], object]) -> Line | None:
    lines = [line for line in world.lines if where(line)]
    return lines[number % len(lines)] if lines else None


def _go(world: World, a: int, b: int) -> None:
    for _ in range(1 + b % 6):
        world.go(_person(world, a))


def _hostile(world: World, a: int, b: int) -> None:
    if world.broker is not None:
        hostile = [p for p in world.people if p.hostile]
        if hostile:
            person = hostile[a % len(hostile)]
            if b // len(ACTS) % 2:
                prepare(world, person)
            ACTS[b % len(ACTS)](world, person)


def _deliver(world: World, a: int, b: int) -> None:
    if (line := _line(world, a, lambda one: one.up)) is not None:
        world.deliver(line, again=b % 3 == 0)


def _hear(world: World, a: int, b: int) -> None:
    if (line := _line(world, a, lambda one: one.down)) is not None:
        world.hear(line, again=b % 3 == 0)


def _late(world: World, a: int, b: int) -> None:
    if world.late and world.broker is not None:
        world.late.rotate(a % len(world.late))
        token, said = world.late.popleft() if b % 3 else world.late[0]
        world.message(token, said)


def _cut(world: World, a: int, b: int) -> None:
    if (line := _line(world, a, lambda one: True)) is not None:
        if b % 2:
            line.down.clear()
        world.cut(line)


def _news(world: World, a: int, b: int) -> None:
    line = _line(world, a, lambda one: one.parked)
    if line is not None and world.broker is not None:
        world.news(line)


def _time(world: World, a: int, b: int) -> None:
    s = world.setting
    long = (s.silence / 3, s.silence * 0.9, s.silence + 1, s.round_seconds, s.round_seconds / 2,
            s.silence, s.max_pause / 2, 600.0)
    every = (*_SECONDS, *long, *_SECONDS, *long[:4], s.deadline / 3)
    world.now += every[b % len(every)]
    if a % 2:
        world.tick()


_STEPS: Final[dict[str, tuple[int, Callable[[World, int, int], None]]]] = {
    "go": (100, _go),
    "hostile": (40, _hostile),
    "take": (12, lambda w, a, b: w.take()),
    "write": (14, lambda w, a, b: w.write()),
    "fail": (3, lambda w, a, b: w.fail()),
    "crash": (4, lambda w, a, b: w.crash(written=b % 2 == 1)),
    "start": (8, lambda w, a, b: w.start()),
    "deliver": (10, _deliver),
    "hear": (10, _hear),
    "late": (6, _late),
    "cut": (4, _cut),
    "news": (6, _news),
    "time": (10, _time),
    "tick": (4, lambda w, a, b: w.tick()),
    "work": (4, lambda w, a, b: w.work(_person(w, a))),
    "die": (2, lambda w, a, b: w.die(_person(w, a))),
}
"""How often each is drawn, and what it does."""


# -- drawing ---------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class History:
    """A setting and its steps."""

    setting: Setting
    steps: tuple[Step, ...]


def draw(seed: int, longest: int = 300) -> History:
    """One history; the same seed gives the same one."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    together = chance.random() < 0.35
    test = chance.choice(["none", "none", "none", "rounds", "sequential"])
    maximum = chance.randint(1, MOST_TOGETHER if together else 5)
    honest = chance.randint(1, 4)
    aggregate = "mean"
    if together and chance.random() < 0.2:
        aggregate = chance.choice(["median", "trimmed-mean", "krum"])
    setting = Setting(
        seed=seed,
        mode="synchronous" if together else "asynchronous",
        aggregate=aggregate,
        test=test,
        screen="none" if test == "none" and chance.random() < 0.8
        else chance.choice(["none", "length", "direction"]),
        evict=chance.choice([0, 1, 2, 3, 3]),
        rate=chance.choice([0.3, 1.0]),
        minimum=chance.randint(1, min(3, maximum)),
        maximum=maximum,
        silence=chance.choice([6.0, 30.0, 60.0, 3000.0]),
        round_seconds=chance.choice([2.0, 10.0, 50.0]),
        max_pause=chance.choice([40.0, 400.0, 3600.0]),
        deadline=chance.choice([900.0, 20_000.0, 86_400.0]),
        max_updates=chance.choice([2, 8, 20, 60]),
        admission=chance.randint(0, 3),
        update=chance.randint(0, 2),
        ks=tuple(chance.randint(1, maximum) if chance.random() < 0.5 else 1
                 for _ in range(honest)),
        hostile=chance.randint(0, 3),
        remembered=chance.choice([2, 3, 20]),
    )
    names = list(_STEPS)
    weights = [_STEPS[name][0] for name in names]
    count = chance.randint(longest // 6, longest)
    steps = tuple((name, chance.randrange(64), chance.randrange(1024))
                  for name in chance.choices(names, weights, k=count))
    return History(setting, steps)


# -- running ---------------------------------------------------------------------------------

@dataclass(slots=True)
class Figures:
    """What came to pass in histories that broke nothing."""

    steps: int = 0
    turns: int = 0
    acknowledged: int = 0
    crashes: int = 0
    finished: int = 0


@dataclass(slots=True)
class Fault:
    """How a history broke something.

    Attributes:
        rule: what was broken; see :class:`lab.soak.book.Violation`.
        what: in words.
        after: how many steps were taken before.
    """

    rule: str
    what: str
    after: int


def run(history: History, directory: Path, figures: Figures | None = None) -> Fault | None:
    """Let a history happen; None when nothing was broken."""
    figures = Figures() if figures is None else figures
    world = World(history.setting, directory)
    after = 0
    try:
        for name, a, b in history.steps:
            _STEPS[name][1](world, a, b)
            after += 1
        settle(world)
    except Violation as violation:
        return Fault(violation.rule, str(violation), after)
    except Exception as error:
        # Whatever the code under test raises that it has not promised.
        return Fault(f"raised-{type(error).__name__}", repr(error), after)
    finally:
        world.close()
    figures.steps += len(history.steps)
    figures.turns += world.turns
    figures.acknowledged += world.book.acknowledged
    figures.crashes += world.crashes
    figures.finished += 1
    return None


def settle(world: World) -> None:
    """All faults stop, and as many honest clients as there are places for come in.

    Raises:
        Violation: training does not go on to its end.
    """
    def published() -> bool:
        return world.broker is not None and world.broker.phase == "published"

    world.start()
    for line in list(world.lines):
        world.cut(line)
    world.late.clear()
    world.write()
    world.take()
    world.write()
    # Whoever was here before has gone, with its k.
    world.now += world.setting.silence + 1.0
    world.tick()
    world.people = [Person(1 if i else world.setting.maximum)
                    for i in range(world.setting.maximum)]
    before = world.book.acknowledged
    patience = 40 * len(world.people) * (world.setting.max_updates + 10)
    while patience > 0 and not published():
        for person in world.people:
            for _ in range(4):
                world.go(person)
            if person.over and not published():
                require(person.over in ("evicted", "ended", "stale-ticket"), "stuck", person.over)
        if all(person.over for person in world.people):
            break
        patience -= 4 * len(world.people)
        world.tick()
    marked = world.setting.marked
    if not published():
        require(not marked, "stuck", "nobody is left, or nothing moves")
        require(world.book.acknowledged > before, "stuck", "nothing is acknowledged any more")
        # What is judged may for good reasons not be applied; then time ends it.
        world.now += world.setting.deadline + world.setting.max_pause
        world.tick()
    require(published(), "stuck", "time does not end it")
    world.take()
    world.write()
    world.crash(written=False)
    world.start()
    require(published(), "phase", "not published any more")
    if world.broker is not None:
        world.broker.vanish(world.now)


def shrink(
    history: History, fault: Fault, directory: Path, tries: int = 600
) -> tuple[History, Fault]:
    """Leave out whatever is not needed to break the same rule."""
    steps = list(history.steps[: fault.after + 1])
    stretch = max(1, len(steps) // 2)
    while tries > 0:
        start, fewer = 0, False
        while start < len(steps) and tries > 0:
            rest = steps[:start] + steps[start + stretch:]
            tries -= 1
            found = run(History(history.setting, tuple(rest)), directory)
            if found is not None and found.rule == fault.rule:
                steps, fault, fewer = rest, found, True
            else:
                start += stretch
        if stretch == 1 and not fewer:
            break
        stretch = max(1, stretch // 2)
    return History(history.setting, tuple(steps)), fault


def as_test(history: History, fault: Fault) -> str:
    """A history as a test that can be pasted."""
    plain = Setting(seed=history.setting.seed)
    changed = ", ".join(f"{name}={getattr(history.setting, name)!r}"
                        for name in history.setting.__dataclass_fields__
                        if name == "seed" or getattr(history.setting, name) != getattr(plain, name))
    steps = "".join(f"        {step!r},\n" for step in history.steps)
    name = fault.rule.replace("-", "_").lower()
    return (f"def test_{name}_{history.setting.seed}(tmp_path):\n"
            f'    """{fault.what}"""\n'
            f"    assert run(History(Setting({changed}), (\n{steps}    )), tmp_path) is None\n")


def directory() -> tempfile.TemporaryDirectory[str]:
    """A place for databases, in memory where the system has such: no crash here is one of the
    machine, so nothing is gained by waiting for its disk."""
    return tempfile.TemporaryDirectory(
        prefix="tormentor-histories-", dir=_FAST_DISK if _FAST_DISK.is_dir() else None)


# -- the command -----------------------------------------------------------------------------

@click.command()
@click.option("--seconds", type=click.FloatRange(min=0.0), default=300.0, show_default=True,
              help="Go on for so long.")
@click.option("--histories", type=click.IntRange(min=1), help="Stop after so many.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first one.")
@click.option("--longest", type=click.IntRange(min=6), default=300, show_default=True,
              help="Most steps of one.")
@json_option
@house_command
async def command(
    seconds: float, histories: int | None, seed: int, longest: int, as_json: bool
) -> None:
    """Random histories of the pure core, with crashes, checked after every step.

    One that breaks a rule is made short and printed as a test that can be pasted; then it ends
    with status 1.

    \b
    Example:
      scripts/soak histories --seconds 600 --seed 1
    """
    began = said = time.monotonic()
    figures, faults = Figures(), list[dict[str, object]]()
    number = 0
    with directory() as name:
        place = Path(name)
        while time.monotonic() - began < seconds and (histories is None or number < histories):
            # Here Ctrl-C is heard.
            await asyncio.sleep(0)
            history = draw(seed + number, longest)
            number += 1
            if (fault := run(history, place, figures)) is not None:
                say(f"Seed {history.setting.seed} breaks something; it is made shorter.")
                small, last = shrink(history, fault, place)
                test = as_test(small, last)
                say(test)
                faults.append({"seed": history.setting.seed, "rule": last.rule,
                               "what": last.what, "steps": len(small.steps), "test": test})
            if time.monotonic() - said > 10.0:
                said = time.monotonic()
                say(f"{number:,} histories, {figures.steps:,} steps, {len(faults)} faults")
            if len(faults) >= 10:
                break
    told = {"histories": number, "steps": figures.steps, "turns": figures.turns,
            "acknowledged": figures.acknowledged, "crashes": figures.crashes,
            "seconds": round(time.monotonic() - began, 1), "seed": seed, "faults": faults}
    by = Counter(str(fault["rule"]) for fault in faults)
    result(told, as_json, lambda: (
        f"{number:,} histories of {figures.steps:,} steps with {figures.crashes:,} crashes and "
        f"{figures.acknowledged:,} acknowledged updates: "
        + (f"{len(faults)} broke something {dict(by)}." if faults else "nothing was broken.")))
    if faults:
        raise SystemExit(1)
