"""What the client's tests share: a task, a data file, and a stand-in for a broker.

The stand-in is not a broker: it keeps to the wire of ``accord.messages`` as far as the tests need
it, applies updates blindly, and can be told to misbehave. It keeps all that it is sent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from aiohttp import WSMsgType, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accord import puzzle
from accord.circuit import Route
from accord.messages import (
    AdmissionPuzzle,
    End,
    FromClient,
    Hello,
    Join,
    Leave,
    Phase,
    Pull,
    Push,
    Refused,
    Status,
    Turn,
    Wait,
    Welcome,
    Work,
    decode,
    encode,
    push_limit,
    refused,
    vector_from_wire,
    vector_to_wire,
)
from accord.model_file import write_model
from accord.onion import onion_from_public_key
from accord.problems import (
    ENDED,
    NOT_PUBLISHED,
    NOT_SOLVED,
    STALE_TICKET,
    UNKNOWN_CLIENT,
    PeerProblem,
)
from accord.schema import Constraints, Field, Schema
from accord.task import Clients, Puzzles, Task, Training, Validation, sign, task_id
from client.session import Pace

SEED = bytes(range(32))
CURATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
ONION = onion_from_public_key(
    Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw())
QUICK = Pace(first=0.02, longest=0.1, answer=2.0, patience=1.0, poll=0.05)

SCHEMA = Schema(
    fields=(
        Field(name="age", constraints=Constraints(minimum=0, maximum=120), description="in years"),
        Field(name="income", center=50.0, scale=20.0),
        Field(name="member", type="boolean"),
        Field(name="region", type="string", constraints=Constraints(enum=("north", "south"))),
        Field(name="pays", type="string", constraints=Constraints(enum=("no", "yes"))),
    ),
    target="pays",
    positive="yes",
)


def make_task(**changes: object) -> Task:
    """A small task; ``training`` and the rest as keywords."""
    parts: dict[str, object] = {
        "title": "Who pays?",
        "description": "A task of the tests.",
        "data": SCHEMA,
        "training": Training(max_updates=10),
        "clients": Clients(minimum=1, maximum=10),
        "puzzles": Puzzles(admission=2, update=1),
        "validation": Validation(digest="5ea1d0c3" * 8),
    }
    return Task(**{**parts, **changes})  # type: ignore[arg-type]


HEADER = "age,income,member,region,pays"


def write_rows(path: Path, rows: int = 211, seed: int = 1) -> Path:
    """A CSV file that fits :data:`SCHEMA`."""
    rng = np.random.default_rng(seed)
    lines = [HEADER]
    for _ in range(rows):
        age, income = rng.uniform(18, 90), rng.normal(50, 20)
        pays = "yes" if income + rng.normal(0, 5) > 50 else "no"
        member, region = rng.choice(["true", "false"]), rng.choice(["north", "south"])
        lines.append(f"{age:.4f},{income:.4f},{member},{region},{pays}")
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass
class StandIn:
    """A stand-in for a broker, on loopback.

    Attributes:
        publish_after: the model is published after so many updates.
        cut_every: the connection is cut, with no answer, at every so-many-th message.
        turns: answers to messages of the training, one by one, instead of the usual ones.
        waits: how many messages are answered by Wait first.
        expired: how many Joins are refused as too late.
        phase: what its status says until the model is published.
        silent: messages of the training are taken and never answered, as by a dead machine.
        strikes: said in each turn: strikes of the client, clients struck, clients judged.
        heard: all that came: (path, headers, body).
        steps: of each update.
    """

    task: Task = field(default_factory=make_task)
    publish_after: int = 5
    cut_every: int = 0
    turns: list[Turn | bytes] = field(default_factory=list)
    waits: int = 0
    expired: int = 0
    door: int = 2
    phase: Phase = "training"
    silent: bool = False
    published: bool = False
    updates: int = 0
    connections: int = 0
    puzzles: int = 0
    left: int = 0
    restarts: int = 0
    strikes: tuple[int, int, int] = (0, 0, 0)
    on_push: Callable[[], None] = lambda: None
    heard: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    ws: list[bytes] = field(default_factory=list)
    model: bytes | None = None
    task_bytes: bytes | None = None

    def __post_init__(self) -> None:
        self.signed = sign(self.task, CURATOR)
        self.weights = np.zeros(self.task.dimension)
        self.tokens: dict[bytes, bytes] = {}
        self.tickets: dict[bytes, Work] = {}
        self.spent: set[bytes] = set()
        self.messages = 0
        self.steps: list[int] = []

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Route]:
        """Serve while the body runs."""
        app = web.Application(client_max_size=1 << 20)
        for path in ("/task", "/status", "/puzzle", "/model"):
            app.router.add_get(path, self._get)
        app.router.add_post("/join", self._join)
        app.router.add_get("/train", self._train)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        try:
            yield Route(socks=None, direct=("127.0.0.1", self.port))
        finally:
            await runner.cleanup()

    def finish(self) -> None:
        """Publish what there is."""
        self.published = True
        self.model = self.model or write_model(
            SEED, ONION, self.signed, self.weights, self.updates, "max-updates")

    async def _get(self, request: web.Request) -> web.Response:
        self.heard.append((request.path, dict(request.headers), b""))
        if request.path == "/task":
            return web.Response(body=self.task_bytes or encode(self.signed))
        if request.path == "/puzzle":
            if self.published:
                return web.Response(status=410, body=encode(refused(PeerProblem(ENDED))))
            self.puzzles += 1
            return web.Response(
                body=encode(AdmissionPuzzle(secrets.token_bytes(16), self.door, 600.0)))
        if request.path == "/model":
            if self.model is None:
                return web.Response(status=404, body=encode(refused(PeerProblem(NOT_PUBLISHED))))
            return web.Response(body=self.model)
        phase: Phase = "published" if self.published else self.phase
        return web.Response(body=encode(Status(
            phase=phase, title="", task=task_id(self.signed), clients=1, needed=2,
            updates=self.updates, max_updates=10, error=None, best_error=None, baseline=0.4,
            judged=0, struck=0, strikes=0, seconds=1.0, left=3540.0)))

    async def _join(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.heard.append((request.path, dict(request.headers), raw))
        join = decode(raw, Join)
        if self.published and join.lock not in self.tokens:
            return web.Response(status=410, body=encode(refused(PeerProblem(ENDED))))
        if self.expired or not puzzle.verify(join.lock, join.solution, self.door):
            self.expired -= 1
            return web.Response(status=403, body=encode(refused(PeerProblem(NOT_SOLVED))))
        token = self.tokens.setdefault(join.lock, secrets.token_bytes(32))
        return web.Response(body=encode(Welcome(token)))

    async def _train(self, request: web.Request) -> web.WebSocketResponse:
        self.heard.append((request.path, dict(request.headers), b""))
        self.connections += 1
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        hello: Hello | None = None
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                break
            self.ws.append(message.data)
            if hello is None:
                hello = decode(message.data, Hello)
                if hello.token not in self.tokens.values():
                    await socket.send_bytes(
                        encode(Turn(b"", refused(PeerProblem(UNKNOWN_CLIENT)))))
                    break
                continue
            said = decode(message.data, FromClient, push_limit(self.task.dimension))
            self.messages += 1
            if self.silent:
                continue
            turn = self._turn(said)
            if self.cut_every and self.messages % self.cut_every == 0:
                assert request.transport is not None
                request.transport.abort()
                break
            if isinstance(said, Leave):
                self.left += 1
                break
            await socket.send_bytes(turn if isinstance(turn, bytes) else encode(turn))
        return socket

    def _turn(self, said: Pull | Push | Leave) -> Turn | bytes:
        if self.turns and not isinstance(said, Leave):
            return self.turns.pop(0)
        receipt = b""
        if isinstance(said, Pull) and self.tickets and not self.published:
            return Turn(b"", next(iter(self.tickets.values())), *self.strikes)
        if isinstance(said, Push):
            if said.ticket in self.spent:
                return Turn(said.ticket, self._next(), *self.strikes)
            work = self.tickets.pop(said.ticket, None)
            if work is None:
                return Turn(b"", refused(PeerProblem(STALE_TICKET)))
            assert puzzle.verify(work.lock, said.solution, work.difficulty)
            rules = self.task.training
            assert said.steps <= rules.local_steps
            delta = vector_from_wire(said.delta, self.task.dimension, rules.precision)
            assert delta is not None and np.linalg.norm(delta) <= said.steps * rules.max_norm
            self.steps.append(said.steps)
            self.weights = self.weights + delta
            self.updates += 1
            self.spent.add(said.ticket)
            receipt = said.ticket
            self.on_push()
        return Turn(receipt, self._next(), *self.strikes)

    def _next(self) -> Work | Wait | End | Refused:
        if self.updates >= self.publish_after:
            self.finish()
        if self.published:
            return End()
        if self.waits:
            self.waits -= 1
            return Wait("too-few-clients", 1, 2, 0.01)
        return self.work()

    def work(self, **changes: object) -> Work:
        """A ticket."""
        parts: dict[str, object] = {
            "ticket": secrets.token_bytes(16),
            "weights": vector_to_wire(self.weights, self.task.training.precision),
            "lock": secrets.token_bytes(16), "difficulty": self.task.puzzles.update}
        work = Work(**{**parts, **changes})  # type: ignore[arg-type]
        self.tickets[work.ticket] = work
        return work


async def soon(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
