"""What a ticket asks for, made beside the event loop: an update, and the solution of a puzzle.

Both run in threads: puzzles in short stretches, so that they can be stopped; an update in one go,
as it begins with a write to the ledger. A puzzle that is a trifle is solved in the update's thread,
because going to another and back would take longer.
"""

from __future__ import annotations

import asyncio
import math
import time
from random import SystemRandom
from typing import Final

import numpy as np

from accord import puzzle
from accord.solver import Solver, Tried
from client.events import Searching, Solving, Told
from client.noise import generator
from client.session import Step
from client.trainer import Made, Trainer

_SLOW: Final = 3.0
"""Seconds from which a puzzle is long enough for the person to care how it is solved."""
_TRIFLE: Final = 256.0
"""Hashes that a puzzle takes in the mean, up to which a thread of its own costs more than it."""
_TELL: Final = 0.5

_now = time.monotonic
_random = SystemRandom().random


class Worker:
    """Does the work of one client, for one ticket at a time.

    Args:
        trainer: makes the updates.
        delay: before each, a random time of up to so many seconds is waited.
        solver: of the puzzles.
        tell: called with each event, in the event loop.
    """

    def __init__(self, trainer: Trainer, delay: float, solver: Solver, tell: Told) -> None:
        self._trainer = trainer
        self._delay = delay
        self._solver = solver
        self._solver_told = False
        self._tell = tell
        self._step: asyncio.Future[tuple[Made, Tried | None]] | None = None
        self._rng: np.random.Generator | None = None
        self._stopped = False

    async def compute(self, step: Step) -> tuple[bytes, Made]:
        """A ticket's puzzle and its update, at the same time where that is worth it.

        A delay that the person wishes comes before the update, which is what is paid for: whoever
        is stopped while it waits, or told meanwhile that it is over, has lost nothing.
        """
        trifle = puzzle.expected_hashes(step.difficulty) <= _TRIFLE
        solving = None if trifle else asyncio.create_task(
            self.search(step.lock, step.difficulty, door=False))
        try:
            if self._delay:
                await asyncio.sleep(self._delay * _random())
            begun = asyncio.get_running_loop().run_in_executor(None, self._make, step, trifle)
            self._step = begun
            # A thread cannot be stopped: whoever stops us waits for it (:meth:`put_down`).
            made, part = await asyncio.shield(begun)
            if solving is not None:
                return await solving, made
            if part is not None and part.solution is not None:
                return part.solution, made
            return await self.search(step.lock, step.difficulty, door=False), made
        finally:
            if solving is not None:
                solving.cancel()

    def _make(self, step: Step, trifle: bool) -> tuple[Made, Tried | None]:
        """Make the update, in a thread; and solve its puzzle in the same one, if that is a trifle
        for which another thread is not worth it."""
        part = self._solver.stretch(step.lock, step.difficulty, 0) if trifle else None
        self._rng = generator(self._rng)
        return self._trainer.update(step.weights, self._rng, lambda: self._stopped), part

    async def put_down(self) -> None:
        """Wait until no thread is left that could still write into the ledger, or makes steps that
        nobody will send. No new work may be begun meanwhile."""
        if self._step is not None:
            self._stopped = True
            await asyncio.gather(self._step, return_exceptions=True)
            self._stopped = False

    async def search(self, lock: bytes, difficulty: int, *, door: bool) -> bytes:
        """Solve a puzzle in stretches; whoever stops us stops it at the end of one."""
        began = said = _now()
        expected = puzzle.expected_hashes(difficulty)
        solver = self._solver
        tried, name, count, seconds = 0, "", 0, 0.0
        while True:
            part = await asyncio.to_thread(solver.stretch, lock, difficulty, tried)
            if part.solution is not None:
                return part.solution
            tried += part.count
            if part.name != name:
                name, count, seconds = part.name, 0, 0.0
            count, seconds = count + part.count, seconds + part.seconds
            now = _now()
            if now - said >= _TELL:
                said = now
                rate = count / seconds
                if now - began >= _SLOW and not self._solver_told:
                    self._solver_told = True
                    why_not = "" if part.name == "compiled" else solver.why_not
                    self._tell(Searching(part.name, rate, solver.cores, why_not))
                self._tell(Solving(door, tried, expected, rate, part.name, solver.cores))


class Bell:
    """Wakes the one who waits: when somebody rings, or when it is time.

    It may ring too early: the timer is that of an earlier, shorter wait where there was one, as a
    new one for every message would be most of what waiting costs.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ring(self, *_: object) -> None:
        """Wake whoever waits, or else whoever will wait next."""
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Wait until it rings, at most so long; infinity for as long as it takes."""
        if not self._rung:
            if seconds < math.inf:
                self._arm(self._loop.time() + seconds)
            self._waiter = self._loop.create_future()
            await self._waiter
        self._rung = False

    def _arm(self, when: float) -> None:
        if self._timer is None or self._timer.when() > when:
            self.close()
            self._timer = self._loop.call_at(when, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.ring()

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
