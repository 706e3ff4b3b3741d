"""What reads bytes of strangers without a socket, and what each may do with them.

A target takes one hostile input at a time and gives the code of the problem that it was refused
with, or what it was taken for. Anything else that is raised is a fault.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accord.messages import (
    VALIDATION_LIMIT,
    AdmissionPuzzle,
    Curate,
    FromClient,
    Join,
    Phase,
    Pull,
    Push,
    SignedTask,
    Status,
    Turn,
    Work,
    decode,
    encode,
    push_limit,
    turn_limit,
    vector_to_wire,
)
from accord.model_file import read_model, write_model
from accord.onion import onion_from_seed
from accord.problems import TRAVELS, PeerProblem, Problem
from accord.task import canonical, open_task, signed_bytes
from broker.brokerage import Brokerage
from client.briefing import about_task
from client.session import Conversation, Pace, Step, Wishes
from curator import watch
from lab.soak.book import DIMENSION
from lab.soak.mutation import SAMPLES, Chance, anything, distorted, hostile, mutated
from lab.soak.setting import CURATOR, LABELS, ROWS, Setting, make_task, opened, opens

SEED: Final = b"onion seed of a fuzzed world...."
ONION: Final = onion_from_seed(SEED)
_PACE: Final = Pace(patience=1e9)


class Target(Protocol):
    """See the module.

    Attributes:
        raw: the input that was tried last.
    """

    raw: bytes

    def one(self, chance: Chance) -> str:
        """Try one input; what came of it.

        Raises:
            PeerProblem: as it should.
            Exception: any other is a fault.
        """


def holds(what: bool, why: str) -> None:
    """Raises:
    AssertionError: it does not.
    """
    if not what:
        raise AssertionError(why)


class Decoder:
    """:func:`accord.messages.decode`, of every type, in both directions."""

    def __init__(self) -> None:
        self.raw = b""
        self._kinds = list(SAMPLES.items())

    def one(self, chance: Chance) -> str:
        """One message, read as what it should be, now and then as something else."""
        kind, make = chance.choice(self._kinds)
        self.raw = hostile(make(chance), chance)
        if chance.random() < 0.05:
            kind = chance.choice(self._kinds)[0]
        limit = VALIDATION_LIMIT if kind is Curate else push_limit(100)
        message = decode(self.raw, kind, limit)
        again = encode(message)
        holds(decode(again, kind, limit) == message, "another message after encoding it again")
        return "taken"


class Tasks:
    """:func:`accord.task.open_task` on hostile bodies with a good signature, and what a person is
    shown of a task, and a broker that takes it, and the reader of one's own table by it."""

    def __init__(self) -> None:
        self.raw = b""
        self._bodies = [canonical(make_task(s)) for s in (
            Setting(seed=1), Setting(seed=1, mode="synchronous", aggregate="krum"),
            Setting(seed=1, test="sequential", screen="direction"))]
        self._cells = {f"x{i}": ["0.5", "-1", "nan"] for i in range(DIMENSION - 1)} | {
            "y": ["0", "1", "1"]}

    def one(self, chance: Chance) -> str:
        """One task."""
        body = chance.choice(self._bodies)
        if chance.random() < 0.7:
            tree = json.loads(body)
            for _ in range(chance.choice([1, 1, 2, 3])):
                tree = distorted(tree, chance)
            body = _json(tree)
        elif chance.random() < 0.4:
            # The same task in other words: one signature must not be good for two of them.
            tree = json.loads(body)
            body = chance.choice([
                json.dumps(tree), json.dumps(tree, indent=1), json.dumps(tree)[:-1] + "\n}",
                json.dumps(dict(reversed(tree.items())), separators=(",", ":")),
                body.decode() + " ",
                body.decode().replace(":1,", ":1.0,"), body.decode().replace(":1.0", ":1"),
                body.decode().replace("title", "\\u0074itle"),
                body.decode()[:-1] + ',"version":1}']).encode()
        else:
            body = mutated(body, chance)
        self.raw = body
        key = CURATOR if chance.random() < 0.98 else Ed25519PrivateKey.from_private_bytes(bytes(32))
        try:
            signed = SignedTask(body, CURATOR.public_key().public_bytes_raw(),
                                key.sign(signed_bytes(body)))
            signed = decode(encode(signed), SignedTask, len(body) + 4096)
            task = open_task(signed, ONION)
        except PeerProblem as problem:
            return problem.kind.code
        holds(canonical(task) == body, "not the canonical bytes")
        shown = about_task(task, signed)
        holds(all(c.isprintable() or c == "\n" for c in shown), "commands a terminal")
        cells = {f.name: self._cells.get(f.name, ["1", "0", "1"]) for f in task.data.fields[:50]}
        try:
            rows, _ = task.data.encode(cells, "own.csv")
            holds(bool(np.isfinite(rows).all()), "own rows are not finite")
        except Problem:
            pass
        Brokerage(b"s" * 32, chance.randbytes).accept(signed, ROWS, LABELS, 0.0)
        return "taken"


def _json(tree: Any) -> bytes:
    try:
        # With NaN and Infinity, as no strict reader may take them.
        return json.dumps(tree, default=lambda b: b.hex(), separators=(",", ":"),
                          sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except TypeError:
        return b"{}"


class Models:
    """:func:`accord.model_file.read_model`: hostile files, some of them signed by the address."""

    def __init__(self) -> None:
        self.raw = b""
        self._file = write_model(
            SEED, ONION, _signed(Setting(seed=1)), np.zeros(DIMENSION), 3, "max-updates")

    def one(self, chance: Chance) -> str:
        """One file."""
        ours = False
        if chance.random() < 0.4:
            length = int.from_bytes(self._file[:8], "little")
            tree = distorted(json.loads(self._file[8 : 8 + length]), chance)
            head = _json(tree)
            declared = chance.choice([len(head), len(head), len(head), 0, 2**63, 2**64 - 1])
            self.raw = declared.to_bytes(8, "little") + head + self._file[8 + length :]
        elif chance.random() < 0.2:
            weights = np.frombuffer(chance.randbytes(4 * chance.choice([1, DIMENSION, 13])), "<f4")
            ours = True
            self.raw = write_model(SEED, ONION, _signed(Setting(seed=1)), weights,
                                   chance.choice([0, -1, 2**63]), chance.choice(["", "x" * 50]))
        else:
            self.raw = mutated(self._file, chance)
        model = read_model(self.raw, "a file", ONION)
        holds(model.weights.shape == (DIMENSION,) and bool(np.isfinite(model.weights).all()),
              "strange weights")
        holds(ours or (model.updates == 3 and model.ended == "max-updates"
                       and not model.weights.any()), "what the address never signed")
        return "taken"


def _signed(setting: Setting) -> SignedTask:
    task = canonical(make_task(setting))
    return SignedTask(task, CURATOR.public_key().public_bytes_raw(),
                      CURATOR.sign(signed_bytes(task)))


class Core:
    """:meth:`Brokerage.join` and :meth:`Brokerage.receive` in states that come of it."""

    _LIFE: Final = 1500

    def __init__(self) -> None:
        self.raw = b""
        self._left = 0

    def _begin(self, chance: Chance) -> None:
        self._left = self._LIFE
        self._now = 0.0
        setting = Setting(
            seed=1, mode=chance.choice(["asynchronous", "synchronous"]), maximum=5,
            test=chance.choice(["none", "rounds", "sequential"]), admission=0, update=0,
            screen=chance.choice(["none", "length", "direction"]), minimum=chance.randint(1, 3),
            max_updates=200)
        self._broker = Brokerage(b"s" * 32, chance.randbytes, opens)
        self._broker.accept(_signed(setting), ROWS, LABELS, 0.0)
        self._tokens = [chance.randbytes(32)]
        self._works: list[tuple[bytes, Work]] = []

    def one(self, chance: Chance) -> str:
        """One message that was decoded, or was not."""
        if self._left <= 0 or self._broker.phase not in ("gathering", "training", "paused"):
            self._begin(chance)
        self._left -= 1
        self._now += chance.choice([0.0, 0.0, 0.1, 1.0, 5.0, 40.0])
        if chance.random() < 0.1:
            return self._join(chance)
        token, said = self._message(chance)
        self.raw = encode(said) if chance.random() < 0.6 else hostile(said, chance)
        message = decode(self.raw, FromClient, push_limit(DIMENSION))
        before: Phase = self._broker.phase
        turn = self._broker.receive(token, message, self._now, chance.random() < 0.2)
        wire = encode(turn)
        holds(decode(wire, Turn, turn_limit(DIMENSION)) == turn, "a turn that is no message")
        if isinstance(turn.next, Work):
            self._works = [*self._works[-8:], (token, turn.next)]
        status = self._broker.status(self._now)
        holds(decode(encode(status), Status) == status, "a status that is no message")
        if chance.random() < 0.05 or self._broker.phase != before:
            model = self._broker.take_changes(self._now).model
            holds(model is None or bool(np.isfinite(model.weights).all()), "not finite")
        return f"turn-{type(turn.next).__name__.lower()}"

    def _join(self, chance: Chance) -> str:
        door = self._broker.puzzle(self._now)
        said = Join(door.lock, opened(door.lock, door.difficulty), chance.randint(1, 6))
        self.raw = encode(said) if chance.random() < 0.5 else hostile(said, chance)
        welcome = self._broker.join(decode(self.raw, Join), self._now)
        self._tokens = [*self._tokens[-8:], welcome.token]
        return "welcome"

    def _message(self, chance: Chance) -> tuple[bytes, Pull | Push]:
        token = chance.choice(self._tokens)
        if not self._works or chance.random() < 0.4:
            return token, Pull()
        owner, work = self._works[-1] if chance.random() < 0.7 else chance.choice(self._works)
        delta = np.array([chance.gauss(0, 1) for _ in range(DIMENSION)], "<f4")
        if chance.random() < 0.3:
            delta[chance.randrange(DIMENSION)] = chance.choice(
                [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, 0.0])
        raw = vector_to_wire(delta)
        if chance.random() < 0.1:
            raw = chance.choice([b"", raw[:-1], raw[:-4], raw * 2, chance.randbytes(len(raw))])
        return (owner if chance.random() < 0.8 else token,
                Push(work.ticket, opened(work.lock, work.difficulty), raw,
                     chance.choice([1, 1, 1, 2, 1000])))


class Clients:
    """What a client and a curator read of a broker: turns, puzzles, refusals, a status."""

    def __init__(self) -> None:
        self.raw = b""
        self._talk: Conversation | None = None
        self._now = 0.0

    def one(self, chance: Chance) -> str:
        """One message of a broker."""
        if chance.random() < 0.15:
            self.raw = hostile(SAMPLES[Status](chance), chance)
            status = decode(self.raw, Status)
            for text in (watch.words(status, [0.1, 0.5]), watch.line(status)):
                holds(all(c.isprintable() or c == "\n" for c in text), "commands a terminal")
            return "status"
        if chance.random() < 0.05:
            self.raw = hostile(SAMPLES[AdmissionPuzzle](chance), chance)
            decode(self.raw, AdmissionPuzzle)
            return "puzzle"
        if self._talk is None:
            self._talk = Conversation(
                ONION, b"t" * 32, DIMENSION, chance.choice([0, 5, 64]),
                lambda: chance.random() < 0.98, _PACE, 30.0,
                Wishes(chance.random() < 0.1, chance.choice([None, 0.5])))
            self._talk.connected(self._now)
        return self._turn(self._talk, chance)

    def _turn(self, talk: Conversation, chance: Chance) -> str:
        self._now += chance.choice([0.0, 0.1, 5.0, 25.0])
        said = talk.sending(self._now)
        sample = SAMPLES[Turn](chance)
        assert isinstance(sample, Turn)
        receipt = said.ticket if isinstance(said, Push) else sample.receipt
        weights = vector_to_wire(np.full(DIMENSION, chance.choice([0.0, 1.0, math.nan])))
        what = sample.next
        if hasattr(what, "weights") and chance.random() < 0.7:
            what = msgspec.structs.replace(what, weights=weights)
        sample = msgspec.structs.replace(sample, receipt=receipt, next=what)
        self.raw = encode(sample) if chance.random() < 0.5 else hostile(sample, chance)
        try:
            todo = talk.receive(decode(self.raw, Turn, turn_limit(DIMENSION)), self._now)
            wake = talk.wake(self._now)
        except PeerProblem:
            self._talk = None
            raise
        except Problem as problem:
            wait = talk.lost(self._now, chance.random())
            holds(0.0 <= wait <= 60.0, "waits for ever")
            talk.connected(self._now)
            return problem.kind.code
        holds(wake >= 0.0 and not math.isnan(wake), "wakes never")
        if isinstance(todo, Step):
            holds(bool(np.isfinite(todo.weights).all()), "works on what is not finite")
            talk.answer(b"s", np.zeros(DIMENSION), self._now)
        return "nothing" if todo is None else type(todo).__name__.lower()


TARGETS: Final[dict[str, tuple[float, Callable[[], Target]]]] = {
    "decode": (0.64, Decoder),
    "task": (0.05, Tasks),
    "model-file": (0.05, Models),
    "brokerage": (0.12, Core),
    "client": (0.08, Clients),
}
"""Which share of all inputs each is given; the rest goes over sockets
(:mod:`lab.soak.fuzz_wire`)."""

CODES: Final = frozenset(kind.code for kind in TRAVELS) | {
    "bad-signature", "bad-model", "too-hard", "bad-weights", "not-an-onion"}
"""Problems that may come of a stranger's bytes."""


def declared_much(chance: random.Random) -> bytes:
    """A message that declares gigabytes, and holds next to nothing."""
    kind = chance.choice(list(SAMPLES))
    raw = bytearray(msgspec.msgpack.encode(SAMPLES[kind](chance)))
    raw[chance.randrange(len(raw)):] = chance.choice(
        [b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
         b"\xdf\xff\xff\xff\xff", b"\xdd\x7f\xff\xff\xff" * 100])
    return bytes(raw) + msgspec.msgpack.encode(anything(chance))
