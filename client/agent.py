"""Drives a session over Tor: in at the door, through the training, home with the model.

What is slow runs in threads: what a ticket asks for (:mod:`client.work`), and the arithmetic of
the privacy spent. Every connection has circuits of its own, so a bad one is not met twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from random import SystemRandom
from typing import Final, TypeVar

from msgspec.structs import replace

from accord.circuit import PATIENCE, SLOWEST, Circuit, Route, WebSocket, fresh_identity
from accord.files import write_whole
from accord.messages import (
    TASK_LIMIT,
    AdmissionPuzzle,
    Join,
    Leave,
    SignedTask,
    Status,
    Turn,
    Wait,
    Welcome,
    decode,
    encode,
    push_limit,
    turn_limit,
)
from accord.model_file import MODEL_LIMIT, Model, read_model
from accord.problems import (
    AWAY,
    ENDED,
    INTERNAL,
    NOT_PUBLISHED,
    NOT_SOLVED,
    OTHER_TASK,
    TOO_HARD,
    TOR_AWAY,
    UNKNOWN_CLIENT,
    PeerProblem,
    Problem,
)
from accord.solver import Solver
from accord.task import task_id
from client.accounting import epsilon_total
from client.budget import Ledger
from client.events import (
    Admitted,
    Event,
    Following,
    Late,
    Reconnecting,
    Silent,
    Spent,
    Struck,
    Told,
    Update,
    Waiting,
)
from client.noise import Release
from client.session import (
    BackOff,
    Conversation,
    Outcome,
    Over,
    Pace,
    Session,
    Step,
    Stop,
    Verdict,
    save_session,
)
from client.trainer import Made, Trainer
from client.work import Bell, Worker

DOORS: Final = 5
"""How many admission puzzles are solved before the broker is believed to want none."""
_TELL: Final = 0.5
_SECOND: Final = 1.0
_SHARE: Final = 10  # at most one part in so many of the time goes into counting the privacy spent
_GOODBYE: Final = 2.0

_MANY_STRIKES: Final = 64
_SHORT: Final = 20.0
"""Seconds that a first try may take; each further one so much longer, up to the usual patience. A
broker that was started again is at first looked for where it was, which nobody may deny."""
_NOBODY: Final = (AWAY, TOR_AWAY)
"""Nobody answers. Whether that is the broker's tor or ours, it may be back in a moment."""

T = TypeVar("T")


_now = time.monotonic
_random = SystemRandom().random


async def fetch_task(circuit: Circuit) -> SignedTask:
    """The signed task at an address, not checked yet."""
    limit = TASK_LIMIT + 1024
    return decode(await circuit.get("/task", limit), SignedTask, limit)


async def fetch_puzzle(circuit: Circuit, max_difficulty: int) -> AdmissionPuzzle:
    """The admission puzzle at an address.

    Raises:
        PeerProblem: ``TOO_HARD``.
    """
    door = decode(await circuit.get("/puzzle"), AdmissionPuzzle)
    if door.difficulty > max_difficulty:
        raise PeerProblem(TOO_HARD, difficulty=door.difficulty, limit=max_difficulty)
    return door


class Agent:
    """One person's part in one training.

    Args:
        way: how the onion is reached.
        path: the session file, kept up to date.
        session: its content.
        trainer: makes the updates.
        ledger: what they are written into.
        can_pay: whether the budget allows one more.
        tell: called with each event, in the event loop.
        wait: when the budget is spent, wait for the model all the same.
        pace: how long things take.
        solver: of the puzzles; whoever gives one closes it. None: one core's.
        meter: tell now and then what the updates have cost, which may take a tenth of a core;
            without, it is told at the end only.
    """

    def __init__(
        self, way: Route, path: Path, session: Session, trainer: Trainer, ledger: Ledger,
        can_pay: Callable[[], bool], tell: Told, *, wait: bool = True, pace: Pace | None = None,
        solver: Solver | None = None, meter: bool = True,
    ) -> None:
        self.session = session
        self._worker = Worker(trainer, session.delay, solver or Solver(), self._tell)
        self._way = way
        self._path = path
        self._trainer = trainer
        self._ledger = ledger
        self._can_pay = can_pay
        self._show = tell
        self._told: Event | None = None
        self._unanswered: float | None = None
        self._wait = wait
        # A Push is held back by the broker, and so may be the Pull before it.
        held = 2 * trainer.task.training.reply_delay
        pace = pace or Pace()
        self._pace = dataclasses.replace(
            pace, answer=pace.answer + held, silent=pace.silent + held)
        self._dimension = trainer.task.dimension
        self._task = task_id(session.task)
        self._work: asyncio.Task[tuple[bytes, Made]] | None = None
        self._metered = meter
        self._news = asyncio.Event()
        self._counts: dict[Release, int] = {}
        self._updates = 0
        self._strikes = 0  # of which the person was told,
        self._struck = -math.inf  # and when

    async def run(self) -> Outcome:
        """Take part until the model is saved, the person's wish to leave is fulfilled, or the
        budget is spent if nobody waits for the model.

        Raises:
            Problem: whatever ends it before.
        """
        watch = asyncio.create_task(self._watch())
        try:
            if self.session.outcome is None:
                end = await self._take_part() if self._can_pay() else "budget-spent"
                if end != "ended":
                    await self._keep(outcome=end)
            if self.session.outcome == "left":
                return "left"
            if self.session.outcome == "budget-spent":
                spent = await asyncio.to_thread(self._ledger.total, self.session.delta)
                self._tell(Spent(spent, self.session.budget))
                if not self._wait:
                    return "budget-spent"
                await self._until_published()
            await self._collect()
            await self._keep(outcome="published")
            return "published"
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    def _tell(self, event: Event) -> None:
        """Tell it, unless it is what was told last."""
        if event != self._told:
            self._told = event
            self._show(event)

    async def _watch(self) -> None:
        """Tell when nobody answers, so that what was told before does not look fresh."""
        while True:
            await asyncio.sleep(min(_SECOND, self._pace.silent))
            if self._unanswered is None or self._work is not None:
                continue
            silent = _now() - self._unanswered
            if silent >= self._pace.silent:
                self._tell(Silent(silent))

    def _asking(self) -> None:
        self._unanswered = _now() if self._unanswered is None else self._unanswered

    async def _keep(self, **changes: object) -> None:
        self.session = replace(self.session, **changes)
        await asyncio.to_thread(save_session, self._path, self.session)

    # -- requests ------------------------------------------------------------------------------

    async def _ask(self, ask: Callable[[Circuit], Awaitable[T]], *more: object) -> T:
        """Ask until there is an answer, on a new circuit each time.

        Args:
            ask: raises ``AWAY`` or ``TOR_AWAY`` while there is none.
            more: other kinds of problems that mean the same.

        Raises:
            Problem: ``LOST``, or any other than those.
        """
        back_off = BackOff(self.session.onion, self._pace)
        tries = 0
        while True:
            self._asking()
            tries += 1
            try:
                async with self._circuit(tries) as circuit:
                    answer = await ask(circuit)
                self._unanswered = None
                return answer
            except Problem as problem:
                if problem.kind not in _NOBODY:
                    self._unanswered = None
                if problem.kind not in (*_NOBODY, INTERNAL, *more):
                    raise
                pause = back_off.again(_now(), _random())
                if problem.kind not in more:
                    self._tell(Reconnecting(_why(problem), pause))
                await self._look_up(problem)
            await asyncio.sleep(pause)

    def _circuit(self, tries: int) -> Circuit:
        """A new one, for a try that comes after so many less one."""
        return Circuit(self._way, self.session.onion, fresh_identity(),
                       min(tries * _SHORT, PATIENCE))

    async def _look_up(self, problem: Problem) -> None:
        """Have our tor ask anew where a broker is that does not answer, if it can be told so."""
        if problem.kind is AWAY and self._way.look_up is not None:
            with contextlib.suppress(Problem):
                await self._way.look_up(self.session.onion)

    async def _take_part(self) -> Stop:
        """In at the door and train, until there is a reason to stop."""
        try:
            if self.session.token is None:
                await self._enter()
        except Problem as problem:
            if problem.kind is not ENDED:
                raise
            self._tell(Late())
            return "ended"
        meter = asyncio.create_task(self._meter() if self._metered else _nothing())
        try:
            ended = await self._train()
        except Problem as problem:
            if problem.kind is UNKNOWN_CLIENT:
                # That name is good for nothing any more: the same command starts at the door.
                await self._keep(puzzle=None, solution=None, token=None)
            raise
        finally:
            meter.cancel()
            await self._put_down()
            await asyncio.gather(meter, return_exceptions=True)
        if self._updates:
            await self._reckon()
        return ended

    async def _enter(self) -> None:
        refusal = Problem(NOT_SOLVED)
        for _ in range(DOORS):
            door = self.session.puzzle
            if door is None:
                door = await self._ask(
                    lambda c: fetch_puzzle(c, self.session.max_difficulty))
                await self._keep(puzzle=door, solution=None)
            if door.difficulty > self.session.max_difficulty:
                raise PeerProblem(
                    TOO_HARD, difficulty=door.difficulty, limit=self.session.max_difficulty)
            solution = self.session.solution
            if solution is None:
                solution = await self._worker.search(door.lock, door.difficulty, door=True)
                # Kept before it is sent: the same Join gets the same Welcome, so that no
                # interruption costs the place.
                await self._keep(solution=solution)
            join = encode(Join(door.lock, solution, self.session.min_clients))
            try:
                raw = await self._ask(lambda c, join=join: c.post("/join", join))  # type: ignore[misc]
            except Problem as problem:
                if problem.kind is not NOT_SOLVED:
                    raise
                refusal = problem
                await self._keep(puzzle=None, solution=None)
                continue
            await self._keep(token=decode(raw, Welcome).token)
            self._tell(Admitted())
            return
        raise refusal

    async def _until_published(self) -> None:
        while True:
            status = decode(await self._ask(lambda c: c.get("/status")), Status)
            if status.task != self._task:
                raise PeerProblem(OTHER_TASK, address=self.session.onion)
            if status.phase == "published":
                return
            if status.phase == "gone":
                raise Problem(AWAY, address=self.session.onion, why="the model is withdrawn")
            self._tell(Following(status.phase, status.clients, status.needed, status.updates,
                                 status.max_updates, status.left))
            await asyncio.sleep(self._pace.poll * (0.75 + 0.5 * _random()))

    async def _collect(self) -> None:
        """Fetch the model, check it, save it."""
        output = Path(self.session.output)

        def check_and_save(raw: bytes) -> Model:
            model = read_model(raw, str(output), self.session.onion)
            if task_id(model.signed) != self._task:
                raise PeerProblem(OTHER_TASK, address=self.session.onion)
            write_whole(output, raw)
            return model

        raw = await self._ask(lambda c: c.get("/model", MODEL_LIMIT), NOT_PUBLISHED)
        await asyncio.to_thread(check_and_save, raw)

    # -- training ------------------------------------------------------------------------------

    async def _train(self) -> Stop:
        session = self.session
        assert session.token is not None
        # What is large takes its time on a slow circuit.
        moving = (turn_limit(self._dimension) + push_limit(self._dimension)) / SLOWEST
        talk = Conversation(session.onion, session.token, self._dimension,
                            session.max_difficulty, self._can_pay,
                            dataclasses.replace(self._pace, answer=self._pace.answer + moving),
                            self._trainer.task.clients.silence, session.wishes,
                            self._trainer.task.training.precision)
        tries = 0
        while True:
            self._asking()
            tries += 1
            try:
                async with self._circuit(tries) as circuit:
                    socket = await circuit.websocket("/train", turn_limit(self._dimension))
                    self._unanswered, tries = None, 0
                    try:
                        return await self._converse(talk, socket)
                    finally:
                        await socket.close()
            except Problem as problem:
                if problem.kind is ENDED:
                    return "ended"
                if problem.kind not in (*_NOBODY, INTERNAL):
                    raise
                pause = talk.lost(_now(), _random())
                self._tell(Reconnecting(_why(problem), pause))
                await self._look_up(problem)
            # Meanwhile the step that was begun goes on.
            await asyncio.sleep(pause)

    async def _converse(self, talk: Conversation, socket: WebSocket) -> Stop:
        """Over one connection, until there is a reason to stop."""
        await socket.send(encode(talk.connected(_now())))
        bell = Bell()

        def read() -> asyncio.Task[bytes]:
            task = asyncio.create_task(socket.receive(math.inf))
            task.add_done_callback(bell.ring)
            return task

        def work(step: Step) -> None:
            self._work = asyncio.create_task(self._compute(step))
            self._work.add_done_callback(bell.ring)

        reading = read()
        if self._work is not None:  # begun on an earlier connection
            self._work.add_done_callback(bell.ring)
        try:
            while True:
                if message := talk.sending(_now()):
                    self._asking()
                    await socket.send(encode(message))
                await bell.wait(talk.wake(_now()))
                if self._work is not None and self._work.done():
                    done, self._work = self._work, None
                    solution, made = done.result()
                    talk.answer(solution, made.delta, _now(), made.steps)
                if not reading.done():
                    continue
                raw, reading = reading.result(), read()
                self._unanswered = None
                todo = await self._take(talk, raw)
                if isinstance(todo, Step):
                    work(todo)
                elif isinstance(todo, Wait):
                    self._tell(Waiting(todo.why, todo.have, todo.need))
                elif isinstance(todo, Over):
                    if todo.why != "ended":
                        await _say_goodbye(socket)
                    return todo.why
        except asyncio.CancelledError:
            # Whoever stops should not be counted for the others' k.
            await _say_goodbye(socket)
            raise
        finally:
            bell.close()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _take(self, talk: Conversation, raw: bytes) -> Step | Wait | Over | None:
        """Take the broker's turn; what is to be done now."""
        before = talk.updates
        turn = decode(raw, Turn, turn_limit(self._dimension))
        try:
            todo = talk.receive(turn, _now())
        finally:
            # Also of a refusal that ends it: whoever is struck is told so.
            await self._hear(talk.verdict)
        if talk.updates > before:
            # No step is being made now, so nobody else is at the ledger.
            self._counts = self._ledger.counts()
            self._updates = self._ledger.count(self._task)
            self._news.set()
        return todo

    async def _hear(self, verdict: Verdict) -> None:
        """Tell the person of strikes that are new; have on disk what makes us leave."""
        changes = verdict != self.session.verdict
        if changes:
            self.session = replace(self.session, verdict=verdict)
        # No task has more than 64 strikes before eviction. A broker that goes on for ever, at each
        # turn, must not fill screen and disk with it.
        rises = verdict.strikes > self._strikes and (
            verdict.strikes <= _MANY_STRIKES or _now() - self._struck >= _SECOND)
        if rises:
            self._struck = _now()
            self._strikes = verdict.strikes
            self._tell(Struck(verdict.strikes, verdict.struck, verdict.judged))
        # What changes with many a turn, and decides nothing, is written when something else is.
        if changes and (rises or self.session.wishes.reason(verdict) is not None):
            await self._keep()

    def _compute(self, step: Step) -> Coroutine[object, object, tuple[bytes, Made]]:
        return self._worker.compute(step)

    async def _put_down(self) -> None:
        """Leave no thread behind that could still write into the ledger."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._work = None
        await self._worker.put_down()

    async def _meter(self) -> None:
        """Tell what the updates have cost: not each, as the arithmetic takes its time."""
        while True:
            await self._news.wait()
            self._news.clear()
            began = _now()
            await self._reckon()
            await asyncio.sleep(max(_TELL, _SHARE * (_now() - began)))

    async def _reckon(self) -> None:
        updates = self._updates
        total = await asyncio.to_thread(epsilon_total, self._counts, self.session.delta)
        self._tell(Update(updates, total, self.session.local_steps))


async def _nothing() -> None:
    """What a meter does that is not wished for."""


async def _say_goodbye(socket: WebSocket) -> None:
    with contextlib.suppress(Problem, TimeoutError):
        async with asyncio.timeout(_GOODBYE):
            await socket.send(encode(Leave()))


def _why(problem: Problem) -> str:
    if problem.kind is TOR_AWAY:
        return "tor does not answer"
    return str(problem.details.get("why") or problem.kind.code)
