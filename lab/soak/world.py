"""One model in a world of faults: the real broker core and store, real clients, no clock.

What :mod:`broker.model_app` promises is modelled here to the letter: a message is decided upon in
memory, what has changed is taken, written in one transaction, and only then the answers leave.
The process may die between any two of these, and a write may fail halfway. The wire loses,
repeats and delays; clients die and come back with their session file; hostile ones say whatever
they like. After every step the :class:`~lab.soak.book.Book` is asked whether all is well.

Nothing is hashed: see :func:`lab.soak.setting.opens`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from accord.messages import (
    AdmissionPuzzle,
    FromClient,
    Join,
    Leave,
    Phase,
    Push,
    Refused,
    Turn,
    Wait,
    Work,
    decode,
    encode,
    refused,
    turn_limit,
    vector_to_wire,
)
from accord.problems import (
    DISK,
    FULL,
    INTERNAL,
    TRAVELS,
    UNKNOWN_CLIENT,
    PeerProblem,
    Problem,
)
from accord.task import sign
from broker import registry
from broker.admission import session_name
from broker.brokerage import Brokerage
from broker.records import Changes, SessionRow
from broker.registry import NEVER
from broker.store import Store
from client.session import Conversation, Over, Pace, Step
from lab.soak.book import DIMENSION, MARKS, Book, Seen, allowed, mark, require
from lab.soak.setting import ALONG, CURATOR, LABELS, ROWS, Setting, make_task, opened, opens

_PACE: Final = Pace(answer=20.0, patience=1e7)


class Watched(Brokerage):
    """The real one; what its phase does is looked at."""

    restoring = False

    def _enter(self, phase: Phase, now: float) -> None:
        require(allowed(self.phase, phase, self.restoring), "phase",
                f"{self.phase} became {phase}")
        super()._enter(phase, now)


@dataclass(eq=False)
class Line:
    """A connection: what is on its way, and what the broker's side of it waits to say again."""

    token: bytes
    up: deque[FromClient] = field(default_factory=deque)
    down: deque[Turn] = field(default_factory=deque)
    parked: tuple[FromClient, Turn, int] | None = None
    open: bool = True


@dataclass(eq=False)
class Person:
    """A client and what it keeps: ``join`` and ``token`` are in its session file, ``paid`` (how
    many releases) in its ledger; the rest is gone when it dies. Hostile ones have no conversation,
    and keep all the work they were ever given."""

    k: int
    hostile: bool = False
    door: AdmissionPuzzle | None = None
    join: Join | None = None
    token: bytes | None = None
    paid: int = 0
    counted: int = 0
    pushed: set[bytes] = field(default_factory=set)
    talk: Conversation | None = None
    line: Line | None = None
    step: Step | None = None
    works: list[Work] = field(default_factory=list)
    over: str = ""


@dataclass(slots=True)
class Reply:
    """Decided, and kept back until it is on the disk."""

    token: bytes
    what: Turn | Join
    line: Line | None
    person: Person | None
    said: FromClient | None = None
    seen: int = 0


class World:
    """See the module.

    Args:
        setting: what happens in it.
        directory: for the broker's database.
    """

    def __init__(self, setting: Setting, directory: Path) -> None:
        self.setting = setting
        self.random = random.Random(setting.seed)  # noqa: S311 - a simulation, to be repeated
        self.now = 1000.0 * self.random.random()
        self.task = make_task(setting)
        self.signed = sign(self.task, CURATOR)
        # The registry looks it up each time; :meth:`close` brings the real one back.
        self._remembered = registry.SESSIONS_PER_PLACE
        vars(registry)["SESSIONS_PER_PLACE"] = setting.remembered
        self.book = Book(self.task, setting.marked, setting.remembered)
        self.names: dict[bytes, bytes] = {}
        self.people = [Person(k) for k in setting.ks]
        self.people += [Person(1 + i % 2, hostile=True) for i in range(setting.hostile)]
        self.lines: list[Line] = []
        self.late: deque[tuple[bytes, FromClient]] = deque()
        self.waiting: list[Reply] = []
        self.writing: tuple[Changes, list[Reply], dict[bytes, list[bytes]]] | None = None
        self._path = directory / "model.db"
        self._path.unlink(missing_ok=True)
        self.crashes = self.turns = 0
        store = self.store = Store(self._path)
        store.keep_task(self.signed, ROWS, LABELS)
        self.broker: Watched | None = self._accepted()

    def _accepted(self) -> Watched:
        kept = self.store.task()
        assert kept is not None
        broker = Watched(b"s" * 32, self.random.randbytes, opens)
        broker.accept(*kept, self.now)
        return broker

    def close(self) -> None:
        """Let go of the database."""
        vars(registry)["SESSIONS_PER_PLACE"] = self._remembered
        self.store.close()

    # -- the broker's process --------------------------------------------------------------------

    def seen(self) -> Seen:
        """What the broker's memory holds."""
        broker = self.broker
        assert broker is not None
        # Read where it is: what the broker says of itself is what is to be checked.
        known = broker._registry
        of = {self.names[name]: member for name, member in known.members.items()}
        return Seen(
            broker._aggregator.weights, broker._aggregator.updates,
            {token: member.strikes for token, member in of.items()},
            {token: member.updates for token, member in of.items()},
            (known.judged, known.struck, known.strikes),
            len(broker._tickets), len(broker._aggregator.round),
            {token for token, member in of.items() if member.seen == NEVER})

    def start(self) -> None:
        """A new process goes on from the disk."""
        if self.broker is not None:
            return
        # Half of the time the machine was started anew, and so was its clock.
        if self.random.random() < 0.5:
            self.now = 10.0 * self.random.random()
            for person in self.people:
                person.talk = person.line = person.step = None
        self.store = Store(self._path)
        state = self.store.state()
        self.broker = self._accepted()
        require((state is None) == (self.book.model is None), "other-state", "there is none")
        if state is not None:
            self._same_state()
            self.broker.restoring = True
            self.broker.restore(*state, self.now)
            self.broker.restoring = False
            self._dumped_same()
        self.book.restored(self.now, self.seen())
        if state is not None:
            self._spent_stays_spent()

    def _same_state(self) -> None:
        state = self.store.state()
        assert state is not None
        self.book.same_model(state[0], "other-state", moving=False)
        self.book.same_sessions({self.names[r.name]: r for r in state[1]}, "other-state")

    def _dump(self) -> Changes:
        """All that the broker would write, and its notes of what has changed as they were."""
        broker = self.broker
        assert broker is not None
        kept = broker._changed_model, set(broker._changed), set(broker._forgotten)
        broker._changed_model, broker._changed = True, set(broker._registry.members)
        everything = broker.take_changes(self.now)
        broker._changed_model, broker._changed, broker._forgotten = kept
        return everything

    def _dumped_same(self) -> None:
        everything = self._dump()
        assert everything.model is not None
        self.book.same_model(everything.model, "restored-otherwise", moving=True)
        self.book.same_sessions(
            {self.names[r.name]: r for r in everything.sessions}, "restored-otherwise")

    def _spent_stays_spent(self) -> None:
        """A twin of the new process is asked for each session's last receipt again."""
        twin, state = self._accepted(), self.store.state()
        assert state is not None
        twin.restoring = True
        twin.restore(*state, self.now)
        twin.restoring = False
        before = twin._aggregator.weights
        for row in state[1]:
            token = self.names[row.name]
            if not row.spent:
                require(row.updates == 0, "spent-forgotten")
                continue
            again = twin.receive(token, Push(row.spent, b"", vector_to_wire(mark(0))), self.now)
            full = isinstance(again.next, Refused) and again.next.code == FULL.code
            require(again.receipt == row.spent or full, "spent-forgotten")
        require(np.array_equal(before, twin._aggregator.weights), "applied-twice", "by a re-send")

    def take(self) -> None:
        """The group commit begins: changes are taken; later answers wait for the next one."""
        if self.broker is None or self.writing is not None:
            return
        changes = self.broker.take_changes(self.now)
        self._complete(changes)
        decided = {token: list(known.decided) for token, known in self.book.sessions.items()}
        self.writing = (changes, self.waiting, decided)
        self.waiting = []

    def _complete(self, changes: Changes) -> None:
        """Whether nothing has changed that would not be written."""
        everything = self._dump()
        rows = dict(self.book.rows)
        for name in changes.forgotten:
            rows.pop(self.names[name], None)
        rows.update({self.names[r.name]: r for r in changes.sessions})
        found: dict[bytes, SessionRow] = {self.names[r.name]: r for r in everything.sessions}
        require(rows == found, "not-to-be-written", "a session has changed in memory only")
        model = changes.model or self.book.model
        if model is not None and everything.model is not None:
            shadow = self.book.model
            self.book.model = model
            self.book.same_model(everything.model, "not-to-be-written", moving=True)
            self.book.model = shadow

    def write(self) -> None:
        """It ends: all on the disk, and the answers leave."""
        self._commit()
        if self.writing is not None:
            _, replies, _ = self.writing
            self.writing = None
            for reply in replies:
                self._release(reply)

    def _commit(self) -> None:
        if self.writing is None:
            return
        changes, _, decided = self.writing
        if changes:
            self.store.write(changes)
        self.book.written(changes, self.names, decided)
        if changes.model is not None:
            self._same_state()

    def fail(self) -> None:
        """The write fails halfway; everyone who waited for it is told so and hung up on."""
        if self.writing is None or self.broker is None:
            return
        changes, replies, _ = self.writing
        self.writing = None
        broken = SessionRow(b"\x00" * 32, None, 0, 0, 0.0, b"", b"")  # type: ignore[arg-type]
        try:
            self.store.write(replace(changes, sessions=[*changes.sessions, broken]))
        except Problem as problem:
            require(problem.kind is DISK, "strange-problem", problem.sentence)
        else:
            require(False, "half-written", "a broken row was taken")
        if self.book.model is not None:
            self._same_state()
        self.broker.lose_changes(changes)
        for reply in replies:
            if reply.line is not None and reply.line.open:
                reply.line.down.append(Turn(b"", refused(Problem(INTERNAL))))
                reply.line.parked = None
                reply.line.up.clear()

    def crash(self, written: bool) -> None:
        """kill -9, before or after what was being written came to the disk."""
        if self.broker is None:
            return
        if written:
            self._commit()
        self.crashes += 1
        self.broker, self.writing, self.waiting = None, None, []
        self.store.close()
        for line in self.lines:
            line.open = False
        self.lines.clear()

    def _release(self, reply: Reply) -> None:
        if isinstance(reply.what, Join):
            if reply.person is not None:
                reply.person.token = reply.token
            return
        self.book.released(reply.token, reply.what)
        if reply.person is not None and isinstance(reply.what.next, Work):
            reply.person.works.append(reply.what.next)
        line = reply.line
        if line is not None and line.open:
            if line.parked is None or line.parked[1] != reply.what:
                # Over the real encoding, as every bound of the wire must hold for it.
                line.down.append(decode(encode(reply.what), Turn, turn_limit(DIMENSION)))
            assert reply.said is not None
            waits = isinstance(reply.what.next, Wait)
            line.parked = (reply.said, reply.what, reply.seen) if waits else None

    # -- messages --------------------------------------------------------------------------------

    def _act(self, act: Callable[[Watched], None]) -> None:
        """Let the broker do something, and check what came of it."""
        broker = self.broker
        if broker is None:
            return
        before = self.book.enough(self.now, self.seen())
        strikes = self.seen().strikes
        act(broker)
        after = self.seen()
        # Who was struck just now did count until then.
        then = replace(after, strikes={**after.strikes, **strikes})
        legal = before or self.book.enough(self.now, then)
        self.book.check(self.now, after, broker.phase, legal,
                        self.book.sessions.keys() - after.strikes)

    def tick(self) -> None:
        """The broker looks at the clock."""
        self._act(lambda broker: broker.tick(self.now))

    def puzzle(self, person: Person) -> None:
        """Somebody fetches an admission puzzle."""
        def act(broker: Watched) -> None:
            try:
                door = broker.puzzle(self.now)
            except PeerProblem as problem:
                require(problem.kind in TRAVELS, "strange-problem", problem.sentence)
                person.over = problem.kind.code
                return
            self.book.door(door.difficulty)
            person.door = door

        self._act(act)

    def join(self, person: Person | None, join: Join) -> None:
        """Somebody sends a Join; None: nobody will hear the answer."""
        def act(broker: Watched) -> None:
            try:
                token = broker.join(join, self.now).token
            except PeerProblem as problem:
                require(problem.kind in TRAVELS, "strange-problem", problem.sentence)
                if person is not None:
                    person.door = person.join = None
                    if problem.kind.code == "ended":
                        person.over = "ended"
                return
            zeros = join.lock[24]
            require(opens(join.lock, join.solution, max(zeros, self.task.puzzles.admission)),
                    "let-in-unsolved")
            # One that is in stays in, whatever it says of its k the second time.
            require(token in self.book.sessions
                    or join.min_clients <= self.task.clients.maximum, "let-in-with-k-too-large")
            self.names[session_name(token)] = token
            self.book.joined(token, join.min_clients, self.now)
            self.book.displaced(token, self.now, self.seen())
            self.waiting.append(Reply(token, join, None, person))

        self._act(act)

    def message(
        self, token: bytes, said: FromClient, line: Line | None = None,
        person: Person | None = None, repeated: bool = False,
    ) -> None:
        """A message arrives at the broker."""
        def act(broker: Watched) -> None:
            if isinstance(said, Push):
                self._note_push(token, said)
            evicted = self._is_out(token)
            try:
                turn = broker.receive(token, said, self.now, repeated)
            except PeerProblem as problem:
                require(problem.kind is UNKNOWN_CLIENT, "strange-problem", problem.sentence)
                require(session_name(token) not in broker._registry, "unknown-client")
                if line is not None:
                    line.down.append(Turn(b"", refused(problem)))
                return
            require(session_name(token) in self.names, "known-from-nowhere")
            self.turns += 1
            full = isinstance(turn.next, Refused) and turn.next.code == FULL.code
            if not repeated and not full and not evicted:
                if isinstance(said, Leave):
                    self.book.left(token)
                else:
                    self.book.heard(token, self.now)
            self.book.displaced(token, self.now, self.seen())
            ticket = said.ticket if isinstance(said, Push) else None
            self.book.answered(token, ticket, turn, self.now, self.seen())
            self.waiting.append(Reply(token, turn, line, person, said, broker.stirred))

        self._act(act)

    def _is_out(self, token: bytes) -> bool:
        evict = self.task.validation.evict
        return 0 < evict <= self.seen().strikes.get(token, 0)

    def _note_push(self, token: bytes, said: Push) -> None:
        given = self.book.tickets.get(said.ticket)
        values = np.frombuffer(said.delta, "<f4") if len(said.delta) % 4 == 0 else np.zeros(0)
        fits = len(values) == DIMENSION and bool(np.isfinite(values).all())
        number = MARKS
        if fits and self.setting.marked and np.count_nonzero(values) == 1:
            number = next((n for n in range(self.book.marks)
                           if np.array_equal(mark(n).astype("<f4"), values)), MARKS)
        good = given is not None and fits and opens(
            given.work.lock, said.solution, given.work.difficulty)
        self.book.delivered(token, said.ticket, number, good)

    # -- honest clients --------------------------------------------------------------------------

    def update(self, good: bool = True) -> np.ndarray:
        """A fresh update: with a mark of its own, or (in judged tasks) in the honest direction or
        against it."""
        number = self.book.fresh_mark()
        if self.setting.marked:
            return mark(number)
        noise = np.array([self.random.gauss(0, 0.01) for _ in range(DIMENSION)])
        return (0.05 if good else -0.05) * ALONG + noise * 0.1

    def go(self, person: Person) -> None:
        """The next thing that an honest client, or whatever it waits for, would do."""
        if self.broker is None:
            self.start()
        elif person.over:
            return
        elif person.token is None:
            self._come_in(person)
        elif person.talk is None:
            person.talk = Conversation(
                "an onion", person.token, DIMENSION, 64, lambda: True, _PACE, self.setting.silence)
        elif person.line is None or not person.line.open:
            self.connect(person)
        elif person.line.down:
            self.hear(person.line)
        elif person.step is not None:
            self.work(person)
        elif person.line.up:
            self.deliver(person.line)
        elif any(r.line is person.line for r in self.waiting) and self.writing is None:
            self.take()
        elif self.writing is not None:
            self.write()
        else:
            self._speak(person, person.line)

    def _come_in(self, person: Person) -> None:
        if any(r.person is person for r in self.waiting) and self.writing is None:
            self.take()
        elif self.writing is not None:
            self.write()
        elif person.door is None:
            self.puzzle(person)
        else:
            # The same Join until there is an answer, as its session file has it.
            person.join = person.join or Join(
                person.door.lock, opened(person.door.lock, person.door.difficulty), person.k)
            self.join(person, person.join)

    def connect(self, person: Person) -> None:
        """A new connection; what is still on its way on the old one may arrive later."""
        if person.token is None or person.talk is None or self.broker is None:
            return
        for line in [line for line in self.lines if line.token == person.token]:
            self.cut(line)
        person.talk.connected(self.now)
        person.line = Line(person.token)
        self.lines.append(person.line)
        if not self.broker.knows(person.token):
            person.line.down.append(Turn(b"", refused(PeerProblem(UNKNOWN_CLIENT))))

    def _speak(self, person: Person, line: Line) -> None:
        assert person.talk is not None and self.broker is not None
        said = person.talk.sending(self.now)
        if said is not None:
            if isinstance(said, Push):
                person.pushed.add(said.ticket)
                require(len(person.pushed) <= person.paid, "sent-unpaid")
            line.up.append(said)
        elif line.parked is not None and line.parked[2] != self.broker.stirred:
            self.news(line)
        else:
            try:
                self.now += person.talk.wake(self.now) + 0.01
            except Problem:
                self.cut(line)
            self.tick()

    def news(self, line: Line) -> None:
        """The broker answers once more what waits on this connection."""
        if line.parked is not None and line.open and not any(
                r.line is line for r in [*self.waiting, *(self.writing or (0, []))[1]]):
            self.message(line.token, line.parked[0], line, repeated=True)

    def deliver(self, line: Line, again: bool = False) -> None:
        """The oldest message on a connection arrives; again: and will arrive once more."""
        if line.up and self.broker is not None:
            said = line.up[0] if again else line.up.popleft()
            line.parked = None
            self.message(line.token, said, line)

    def hear(self, line: Line, again: bool = False) -> None:
        """The oldest turn on a connection comes to its client; again: and will once more."""
        person = next((p for p in self.people if p.line is line), None)
        if not line.down or person is None or person.talk is None:
            return
        turn = line.down[0] if again else line.down.popleft()
        try:
            todo = person.talk.receive(turn, self.now)
        except PeerProblem as problem:
            person.over = problem.kind.code
            if problem.kind is UNKNOWN_CLIENT:
                person.token = person.talk = person.line = person.door = person.join = None
                person.step, person.over = None, ""
            return
        except Problem:
            self.cut(line)
            return
        if person.talk.updates > person.counted:
            person.counted = person.talk.updates
            acknowledged = self.book.sessions.get(line.token)
            require(acknowledged is None or turn.receipt in acknowledged.acknowledged,
                    "counted-unacknowledged")
        if isinstance(todo, Step):
            person.step = todo
        elif isinstance(todo, Over):
            person.over = todo.why

    def work(self, person: Person) -> None:
        """A client makes its step, pays for it and has it ready to be sent."""
        if person.step is None or person.talk is None:
            return
        step, person.step = person.step, None
        person.paid += 1
        person.talk.answer(opened(step.lock, step.difficulty), self.update(), self.now)

    def cut(self, line: Line) -> None:
        """A connection breaks; what was on its way to the broker may still arrive."""
        line.open = False
        self.late.extend((line.token, said) for said in line.up)
        if line in self.lines:
            self.lines.remove(line)

    def die(self, person: Person) -> None:
        """A client's process is killed: session file and ledger stay."""
        if person.line is not None:
            self.cut(person.line)
        person.talk = person.line = person.step = None
        person.counted = 0
