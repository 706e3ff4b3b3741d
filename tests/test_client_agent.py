"""The agent against a stand-in for a broker (tests/client_world.py), over real connections."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from client_home import BATCH, BUDGET, EPSILON, Person, refuses
from client_world import CURATOR, ONION, QUICK, SEED, StandIn, make_task, soon

from accord.messages import (
    End,
    Hello,
    Join,
    Leave,
    Pull,
    Push,
    Refused,
    Turn,
    Wait,
    decode,
    encode,
    push_limit,
    vector_to_wire,
)
from accord.model_file import read_model, write_model
from accord.problems import (
    BAD_DELTA,
    BAD_MODEL,
    BAD_WEIGHTS,
    LOST,
    MALFORMED,
    NOT_SOLVED,
    OTHER_TASK,
    STALE_TICKET,
    TOO_HARD,
    TOO_LARGE,
    UNKNOWN_CLIENT,
    Kind,
)
from accord.task import Clients, sign
from client import work
from client.events import (
    Admitted,
    Following,
    Late,
    Reconnecting,
    Silent,
    Spent,
    Update,
    Waiting,
)
from client.session import MOST_REFUSALS
from client.work import Worker


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "session.json")


async def test_in_at_the_door_and_home_with_the_model(person: Person) -> None:
    broker = StandIn(waits=2)
    person.write(broker)
    async with broker.serve() as way:
        assert await person.run(broker, way) == "published"
    model = read_model(Path(person.session.output).read_bytes(), "it", ONION)
    assert np.allclose(model.weights, broker.weights, atol=1e-4)
    assert broker.updates == 5 == person.paid()
    assert broker.connections == 1
    assert person.saw(Admitted) and person.saw(Waiting)
    assert person.session.outcome == "published"
    assert person.path.stat().st_mode & 0o777 == 0o600


async def test_cuts_cost_no_update(person: Person) -> None:
    # Every third message is taken in and its answer cut off: the Push comes again, with the same
    # ticket, and counts once.
    broker = StandIn(cut_every=3, publish_after=8)
    person.write(broker)
    async with broker.serve() as way:
        assert await person.run(broker, way) == "published"
    assert broker.updates == 8
    # A Work that was cut off is asked for again before any release is made of it.
    assert person.paid() == 8
    assert broker.connections > 2 and person.saw(Reconnecting)


async def test_a_join_that_was_cut_is_sent_again(person: Person) -> None:
    broker = StandIn()
    person.write(broker)
    async with broker.serve() as way:
        joins = 0
        real = broker._join

        async def cut(request):  # type: ignore[no-untyped-def]
            nonlocal joins
            answer = await real(request)
            joins += 1
            if joins == 1:
                request.transport.abort()
            return answer

        broker._join = cut  # type: ignore[method-assign]
        async with StandIn.serve(broker) as way:
            assert await person.run(broker, way) == "published"
    assert joins == 2
    assert len(broker.tokens) == 1


async def test_an_expired_puzzle_is_replaced_by_itself(person: Person) -> None:
    broker = StandIn(expired=2)
    person.write(broker)
    async with broker.serve() as way:
        assert await person.run(broker, way) == "published"
    assert broker.puzzles == 3


async def test_a_door_that_never_opens(person: Person) -> None:
    broker = StandIn(expired=1000)
    person.write(broker)
    async with broker.serve() as way, refuses(NOT_SOLVED):
        await person.run(broker, way)


async def test_a_spent_budget_stops_and_then_fetches_the_model(person: Person) -> None:
    person.budget = 1.0
    broker = StandIn(publish_after=1000)
    person.write(broker)
    async with broker.serve() as way:
        going = asyncio.create_task(person.run(broker, way))
        await soon(lambda: bool(person.saw(Spent)))
        await soon(lambda: bool(person.saw(Following)))
        assert person.saw(Following)[0] == Following(
            "training", 1, 2, broker.updates, 10, 3540.0)
        broker.phase = "paused"
        await soon(lambda: person.saw(Following)[-1].phase == "paused")  # type: ignore[attr-defined]
        broker.finish()
        assert await going == "published"
    (spent,) = person.saw(Spent)
    assert isinstance(spent, Spent) and 0.5 < spent.epsilon <= 1.0 == spent.budget
    assert broker.left == 1
    assert broker.updates == person.paid() > 0
    with person.ledger() as ledger:
        assert ledger.total(1e-6) <= 1.0
    assert any(isinstance(event, Update) for event in person.events)


async def test_no_wait_ends_there_and_the_next_run_fetches(person: Person) -> None:
    person.budget, person.wait = 1.0, False
    broker = StandIn(publish_after=1000)
    person.write(broker)
    async with broker.serve() as way:
        assert await person.run(broker, way) == "budget-spent"
        assert person.session.outcome == "budget-spent"
        sent = len(broker.ws)
        broker.finish()
        person.wait = True
        assert await person.run(broker, way) == "published"
        assert len(broker.ws) == sent


async def test_stopped_and_run_again_goes_on_where_it_was(person: Person) -> None:
    broker = StandIn(publish_after=1000)
    person.write(broker)
    async with broker.serve() as way:
        going = asyncio.create_task(person.run(broker, way))
        await soon(lambda: broker.updates >= 5)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        await soon(lambda: broker.left == 1)
        before = person.paid()
        assert before >= 5
        broker.publish_after = broker.updates + 3
        assert await person.run(broker, way) == "published"
    assert len(broker.tokens) == 1 and broker.puzzles == 1
    assert person.paid() - before == 3


async def test_a_broker_that_comes_back_after_a_while(person: Person) -> None:
    broker = StandIn(publish_after=1000)
    person.write(broker)
    person.pace = replace(QUICK, patience=10.0)
    async with broker.serve() as way:
        port = broker.port
        going = asyncio.create_task(person.run(broker, way))
        await soon(lambda: broker.updates >= 2)
    await soon(lambda: bool(person.saw(Reconnecting)))
    broker.publish_after = broker.updates + 2
    from aiohttp import web

    app = web.Application()
    app.router.add_get("/train", broker._train)
    app.router.add_get("/model", broker._get)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    try:
        assert await going == "published"
    finally:
        await runner.cleanup()


async def test_a_broker_that_is_gone_for_good(person: Person) -> None:
    broker = StandIn()
    person.write(broker)
    async with broker.serve() as way:
        pass
    person.pace = replace(QUICK, patience=0.2)
    async with refuses(LOST):
        await person.run(broker, way)
    assert person.saw(Reconnecting)


def _turn(next_: object, receipt: bytes = b"") -> Turn:
    return Turn(receipt, next_)  # type: ignore[arg-type]


HOSTILE: dict[str, tuple[object, Kind]] = {
    "noise": (b"\xff" * 30, MALFORMED),
    "empty": (b"", MALFORMED),
    "too-large": (b"x" * 40_000, TOO_LARGE),
    "too-hard": ("difficulty", TOO_HARD),
    "short-weights": ("short", BAD_WEIGHTS),
    "nan-weights": ("nan", BAD_WEIGHTS),
    "unknown-client": (_turn(Refused("unknown-client", {})), UNKNOWN_CLIENT),
    "bad-delta": (_turn(Refused("bad-delta", {"dimension": 5})), BAD_DELTA),
    "own-code": (_turn(Refused("you-are-silly", {})), MALFORMED),
    "odd-wait": (_turn(Wait("\x1b[2J", 1, 2, 1.0)), MALFORMED),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_turns_end_with_their_sentence_and_cost_nothing(
    person: Person, name: str
) -> None:
    answer, kind = HOSTILE[name]
    broker = StandIn()
    match answer:
        case "difficulty":
            answer = _turn(broker.work(difficulty=5))
        case "short":
            answer = _turn(broker.work(weights=b"\0" * 4))
        case "nan":
            answer = _turn(broker.work(weights=vector_to_wire(np.full(5, np.nan))))
    broker.turns = [answer]  # type: ignore[list-item]
    person.write(broker)
    async with broker.serve() as way, refuses(kind):
        await person.run(broker, way)
    assert person.paid() == 0
    # Hello, Pull, and not a word more.
    assert len(broker.ws) == 2
    if kind is UNKNOWN_CLIENT:
        assert person.session.token is None


async def test_stale_tickets_do_not_drain_the_budget(person: Person) -> None:
    broker = StandIn(publish_after=10_000)
    person.write(broker)
    broker.tickets = _Forgetful()
    async with broker.serve() as way, refuses(STALE_TICKET):
        await person.run(broker, way)
    assert person.paid() == MOST_REFUSALS


class _Forgetful(dict):  # type: ignore[type-arg]
    def pop(self, *_: object) -> None:  # type: ignore[override]
        return None


async def test_a_model_for_another_task_is_not_kept(person: Person) -> None:
    broker = StandIn(publish_after=1)
    other = sign(make_task(title="Another"), CURATOR)
    broker.model = write_model(SEED, ONION, other, np.zeros(5), 1, "max-updates")
    person.write(broker)
    async with broker.serve() as way, refuses(OTHER_TASK):
        await person.run(broker, way)
    assert not Path(person.session.output).exists()
    assert person.session.outcome is None


async def test_a_model_by_another_address_is_not_kept(person: Person) -> None:
    from accord.onion import onion_from_public_key

    broker = StandIn(publish_after=1)
    onion = onion_from_public_key(CURATOR.public_key().public_bytes_raw())
    broker.model = write_model(b"c" * 32, onion, broker.signed, np.zeros(5), 1, "max-updates")
    person.write(broker)
    async with broker.serve() as way, refuses(BAD_MODEL):
        await person.run(broker, way)
    assert not Path(person.session.output).exists()


async def test_whoever_comes_after_the_end_gets_the_model(person: Person) -> None:
    broker = StandIn()
    broker.finish()
    person.write(broker)
    async with broker.serve() as way:
        assert await person.run(broker, way) == "published"
    assert person.saw(Late) and not person.saw(Admitted)
    assert Path(person.session.output).exists() and person.paid() == 0


async def test_signs_of_life_during_a_long_puzzle(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = StandIn(task=make_task(clients=Clients(minimum=1, silence=0.6)), publish_after=2)
    person.write(broker)
    search = Worker.search

    async def slow(self: Worker, lock: bytes, difficulty: int, *, door: bool) -> bytes:
        await asyncio.sleep(0 if door else 0.3)
        return await search(self, lock, difficulty, door=door)

    monkeypatch.setattr(Worker, "search", slow)
    monkeypatch.setattr(work, "_TRIFLE", 0.0)  # so that it has a thread of its own
    async with broker.serve() as way:
        assert await person.run(broker, way) == "published"
    # One for the first ticket, and one for each ticket while it was worked on.
    assert broker.ws.count(encode(Pull())) >= 3
    assert broker.updates == 2 == person.paid()


@pytest.mark.slow
async def test_a_broker_that_says_nothing_is_said_to_be_silent(person: Person) -> None:
    broker = StandIn(silent=True)
    person.write(broker)
    person.pace = replace(QUICK, answer=0.3, silent=0.1)
    async with broker.serve() as way:
        going = asyncio.create_task(person.run(broker, way))
        await soon(lambda: len(person.saw(Silent)) >= 2)
        await soon(lambda: bool(person.saw(Reconnecting)))
        broker.silent = False
        assert await going == "published"
    assert broker.connections > 1
    assert not isinstance(person.events[-1], Silent)


@pytest.mark.slow
async def test_numbers_of_a_broker_that_is_away_do_not_look_fresh(person: Person) -> None:
    person.budget = 1.0
    person.pace = replace(QUICK, silent=0.2)
    broker = StandIn(publish_after=1000)
    person.write(broker)
    async with refuses(LOST):
        async with broker.serve() as way:
            going = asyncio.create_task(person.run(broker, way))
            await soon(lambda: bool(person.saw(Following)))
        await going
    kinds = [type(event) for event in person.events]
    assert Silent in kinds[len(kinds) - kinds[::-1].index(Following):]


async def test_an_early_end_fetches_without_any_update(person: Person) -> None:
    broker = StandIn(turns=[_turn(End())])
    broker.finish()
    person.write(broker)
    async with broker.serve() as way:
        assert await person.run(broker, way) == "published"
    assert person.paid() == 0


async def test_the_ledger_is_written_before_anything_is_sent(person: Person) -> None:
    broker = StandIn(publish_after=4)
    person.write(broker)
    on_disk: list[int] = []

    def count() -> None:
        (file,) = Path(person.session.ledger).glob("*.ledger")
        on_disk.append(sum(b" spend " in line for line in file.read_bytes().splitlines()))

    broker.on_push = count
    async with broker.serve() as way:
        await person.run(broker, way)
    assert on_disk == [1, 2, 3, 4]


async def test_promise_what_never_leaves(person: Person) -> None:
    """Neither epsilon, batch, budget, the number of rows, nor any row is in what is sent."""
    broker = StandIn(cut_every=4, waits=1, expired=1)
    person.write(broker)
    async with broker.serve() as way:
        await person.run(broker, way)
    secret = {EPSILON, float(BATCH), BUDGET, float(len(person.data.labels)), 1e-6}
    dimension = broker.task.dimension
    said = [decode(raw, Join | Hello | Pull | Push | Leave, push_limit(dimension))
            for raw in (*broker.ws, *(body for _, _, body in broker.heard if body))]
    assert {type(message) for message in said} >= {Join, Hello, Pull, Push}
    for message in said:
        match message:
            case Join(lock=lock, solution=solution, min_clients=k):
                # The solution is a count of tries; the lock was the broker's.
                assert (k, len(lock), len(solution)) == (2, 16, 8)
            case Push(ticket=ticket, solution=solution, delta=delta):
                assert (len(ticket), len(solution), len(delta)) == (16, 8, 4 * dimension)
                numbers = np.frombuffer(delta, "<f4")
                assert not any(np.isclose(numbers, s, rtol=1e-6).any() for s in secret)
                for row in person.data.rows:
                    # Not the row, and not a multiple of it.
                    cosine = numbers @ row / np.linalg.norm(numbers)
                    assert abs(cosine) < 1 - 1e-9
            case Hello(token=token):
                assert token in broker.tokens.values()
            case _:
                assert encode(message) in (encode(Pull()), encode(Leave()))
    # Nor in any other form: text, or the bytes of a number or of a row.
    table = Path(person.session.data).read_text().splitlines()[1:]
    wire = b"\n".join([*broker.ws, *(body for _, _, body in broker.heard)])
    headers = repr([(path, head) for path, head, _ in broker.heard])
    for cells in table:
        assert cells.encode() not in wire and cells not in headers
        for cell in cells.split(",")[:2]:
            assert cell.encode() not in wire and cell not in headers
    for row in person.data.rows:
        assert row.tobytes() not in wire and row.astype("<f4").tobytes() not in wire
    for number in secret:
        assert np.float64(number).tobytes() not in wire
        assert np.float64(number).byteswap().tobytes() not in wire
        assert str(number) not in headers
    assert person.data.fingerprint not in headers
    assert bytes.fromhex(person.data.fingerprint) not in wire
    names = {name for _, head, _ in broker.heard for name in head}
    assert {name for name in names if not name.startswith("Sec-")} <= {
        "Host", "User-Agent", "Content-Length", "Connection", "Upgrade"}
