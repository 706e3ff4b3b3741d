"""A million and more hostile inputs against everything that reads a stranger's bytes.

What must hold of each: it is taken, or refused with one of the problems that may come of a
stranger's bytes; nothing else is raised, nothing is logged as a mistake, no answer is a 500, and
memory stays where it was. Whatever is not so is written to a file and counted as unexpected.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from accord.console import command as house_command
from accord.console import json_option, result, say
from accord.messages import VALIDATION_LIMIT, decode
from accord.problems import PeerProblem
from lab.soak.fuzz_targets import CODES, TARGETS, Target, declared_much
from lab.soak.fuzz_wire import CircuitTarget, Complaints, DeskTarget, Fault
from lab.soak.mutation import SAMPLES
from lab.soak.process import memory

DESK_SHARE: Final = 0.05
CIRCUIT_SHARE: Final = 0.01
WARM: Final = 0.1
"""Share of a target's inputs after which memory is measured first: libraries, caches and the
allocator's own stock are there by then."""
FLAT: Final = 24.0
"""MB by which resident memory may differ between then and the end."""
SMALL: Final = 1.0
"""MB that the decoding of one message may take which declares gigabytes."""
_TOGETHER: Final = 32
_MOST_FAULTS: Final = 20


@dataclass(slots=True)
class Findings:
    """What came of it.

    Attributes:
        kinds: for each target, how often each problem (or what it was taken for) came.
        unexpected: target, what was raised, and where its input is.
        memory: resident MB after warming up, and at the end.
        peak: MB that the decoding of one message took at most which declares gigabytes.
    """

    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    unexpected: list[dict[str, str]] = field(default_factory=list)
    memory: tuple[float, float] = (0.0, 0.0)
    peak: float = 0.0

    @property
    def inputs(self) -> int:
        """How many were tried."""
        return sum(sum(kinds.values()) for kinds in self.kinds.values())

    @property
    def flat(self) -> bool:
        """Whether memory stayed where it was."""
        return self.memory[1] - self.memory[0] <= FLAT and self.peak <= SMALL


def resident() -> float:
    """Resident memory of this process, MB."""
    return memory(os.getpid())["rss"]


class Trial:
    """One run.

    Args:
        inputs: how many, in all.
        seed: of all chance.
        directory: for the desk.
        keep: where inputs go that did what was not expected.
    """

    def __init__(self, inputs: int, seed: int, directory: Path, keep: Path) -> None:
        self._inputs = inputs
        self._seed = seed
        self._directory = directory
        self._keep = keep
        self._said = time.monotonic()
        self.found = Findings()

    async def run(self) -> Findings:
        """All of it: a tenth of each target first, then memory is measured, then the rest."""
        complaints = Complaints()
        targets = {name: (share, make()) for name, (share, make) in TARGETS.items()}
        shares = {name: share for name, (share, _) in targets.items()}
        chances = {name: random.Random(f"{self._seed} {name}")  # noqa: S311 - to be repeated
                   for name in [*shares, "desk", "circuit"]}
        with complaints.listening():
            async with DeskTarget.open(self._directory) as desk, CircuitTarget.open() as circuit:
                for stretch in (WARM, 1.0 - WARM):
                    for name, (share, target) in targets.items():
                        count = round(self._inputs * share * stretch)
                        await self._some(name, target, chances[name], count, complaints)
                    for wire, one, share, together in (
                            ("desk", desk.one, DESK_SHARE, _TOGETHER),
                            ("circuit", circuit.one, CIRCUIT_SHARE, 1)):
                        count = round(self._inputs * share * stretch)
                        await self._over(wire, one, chances[wire], count, together, complaints)
                    if stretch == WARM:
                        self.found.memory = (resident(), 0.0)
                await desk.healthy()
                self.found.memory = (self.found.memory[0], resident())
        self._note("log", b"", complaints)
        self.found.peak = peak(random.Random(self._seed))  # noqa: S311
        return self.found

    async def _some(
        self, name: str, target: Target, chance: random.Random, count: int, complaints: Complaints
    ) -> None:
        kinds = self.found.kinds.setdefault(name, Counter())
        for tried in range(count):
            try:
                came = target.one(chance)
            except PeerProblem as problem:
                came = problem.kind.code
                if came not in CODES:
                    self._unexpected(name, f"problem {came}", target.raw)
            except Exception as error:
                came = "unexpected"
                self._unexpected(name, repr(error), target.raw)
            kinds[came] += 1
            if tried % 1000 == 0:
                self._note(name, target.raw, complaints)
                self._progress(name)
                # Ctrl-C, and the desk's clock.
                await asyncio.sleep(0)

    async def _over(
        self, name: str, one: Callable[[random.Random], Awaitable[tuple[str, bytes]]],
        chance: random.Random, count: int, together: int, complaints: Complaints,
    ) -> None:
        kinds = self.found.kinds.setdefault(name, Counter())

        async def attempt() -> bytes:
            try:
                came, raw = await one(chance)
            except Fault as fault:
                came, raw = "unexpected", fault.raw
                self._unexpected(name, str(fault), raw)
            kinds[came] += 1
            return raw

        while count > 0:
            raws = await asyncio.gather(*(attempt() for _ in range(min(together, count))))
            self._note(name, b"\n".join(raws), complaints)
            self._progress(name)
            count -= together

    def _note(self, name: str, raw: bytes, complaints: Complaints) -> None:
        """What was logged meanwhile is as unexpected as what is raised."""
        for what in complaints.found:
            self._unexpected(name, f"logged: {what}", raw)
        complaints.found.clear()

    def _unexpected(self, name: str, what: str, raw: bytes) -> None:
        if len(self.found.unexpected) >= _MOST_FAULTS:
            return
        self._keep.mkdir(parents=True, exist_ok=True)
        path = self._keep / f"{name}-{self._seed}-{len(self.found.unexpected)}.bin"
        path.write_bytes(raw)
        self.found.unexpected.append({"target": name, "what": what[:500], "input": str(path)})
        say(f"UNEXPECTED in {name}: {what[:300]} (input in {path})")

    def _progress(self, name: str) -> None:
        if time.monotonic() - self._said > 5.0:
            self._said = time.monotonic()
            say(f"{self.found.inputs:,} of {self._inputs:,} inputs ({name}), "
                f"{len(self.found.unexpected)} unexpected, {resident():.0f} MB")


def peak(chance: random.Random, count: int = 300) -> float:
    """MB that the decoding of one message took at most which declares gigabytes."""
    most = 0
    kinds: list[Any] = list(SAMPLES)
    tracemalloc.start()
    try:
        for _ in range(count):
            raw = declared_much(chance)
            for kind in kinds:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                with suppress(PeerProblem):
                    decode(raw, kind, VALIDATION_LIMIT)
                most = max(most, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return most / 1e6


def as_data(found: Findings, seed: int, seconds: float) -> dict[str, object]:
    """Findings as plain data."""
    return {
        "inputs": found.inputs, "seed": seed, "seconds": round(seconds, 1),
        "unexpected": found.unexpected,
        "targets": {name: {"inputs": sum(kinds.values()), "kinds": dict(kinds.most_common())}
                    for name, kinds in found.kinds.items()},
        "memory_start_mb": round(found.memory[0], 1), "memory_end_mb": round(found.memory[1], 1),
        "memory_bound_mb": FLAT, "peak_decode_mb": round(found.peak, 3), "flat": found.flat,
    }


def words(found: Findings, seconds: float) -> str:
    """Findings for a person."""
    lines = [f"{found.inputs:,} inputs in {seconds:.0f} s, {len(found.unexpected)} unexpected."]
    for name, kinds in found.kinds.items():
        told = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(12))
        lines.append(f"  {name:<10} {sum(kinds.values()):>9,}  {told}")
    lines.append(f"Memory: {found.memory[0]:.0f} MB after warming up, {found.memory[1]:.0f} MB at "
                 f"the end; at most {found.peak:.3f} MB for a message that declares gigabytes.")
    return "\n".join(lines)


@click.command()
@click.option("--inputs", type=click.IntRange(min=100), default=1_100_000, show_default=True,
              help="How many, in all.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of all chance.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), default=Path("fuzz"),
              show_default=True, help="Where inputs are kept that did what was not expected.")
@json_option
@house_command
async def command(inputs: int, seed: int, keep: Path, as_json: bool) -> None:
    """A million and more hostile inputs.

    Two thirds are messages of all types, decoded; the rest are tasks, model files, messages at the
    brokerage and at a client, and (one in 17) bytes over real sockets, at a desk and at a client.
    It ends with status 1 when one did what was not expected, or when memory grew.

    \b
    Example:
      scripts/soak fuzz --json
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tormentor-fuzz-") as name:
        found = await Trial(inputs, seed, Path(name), keep).run()
    seconds = time.monotonic() - began
    result(as_data(found, seed, seconds), as_json, lambda: words(found, seconds))
    if found.unexpected or not found.flat:
        sys.exit(1)
