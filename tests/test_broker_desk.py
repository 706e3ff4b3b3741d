"""The desk over real sockets (its TCP front, no Tor): curate, join, train, publish, restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from broker_world import CURATOR, DIMENSION, SALT, make_data, make_task, signed, solve, wire
from msgspec.structs import replace

from accord.circuit import Circuit, Route, WebSocket
from accord.messages import (
    MAX_DIMENSION,
    AdmissionPuzzle,
    Curate,
    Curated,
    End,
    Hello,
    Join,
    Leave,
    Pull,
    Push,
    Refused,
    SignedTask,
    Status,
    Turn,
    Wait,
    Welcome,
    Work,
    decode,
    encode,
    turn_limit,
    vector_to_wire,
)
from accord.model_file import MODEL_LIMIT, read_model
from accord.onion import onion_from_seed
from accord.problems import PeerProblem, Problem
from accord.task import Clients, Task, Training, Validation, commitment
from broker.desk import Desk, Publisher
from broker.direct import DirectFront
from broker.limits import Limits

DESK_SEED = b"d" * 32
DESK = onion_from_seed(DESK_SEED)
STEP = vector_to_wire(np.array([0.1, 0, 0, 0]))


@contextlib.asynccontextmanager
async def open_desk(
    state: Path, limits: Limits | None = None, curators: frozenset[bytes] = frozenset(),
    front: DirectFront | None = None, **options: float,
) -> AsyncIterator[tuple[Desk, Route]]:
    front = front or DirectFront()
    where = await front.listen("127.0.0.1", 0)
    publisher = Publisher(front, state / "run", limits)
    desk = Desk(state, publisher, int(options.get("max_models", 2)), options.get("linger", 60.0),
                limits, curators)
    try:
        await desk.start()
        await publisher.publish(DESK_SEED, desk.app)
        yield desk, Route(socks=None, direct=where)
    finally:
        await desk.close()
        await publisher.close()
        await front.close()


def order(task: Task) -> Curate:
    return Curate(signed(task), *wire(*make_data()), SALT)


async def curate(route: Route, task: Task) -> str:
    async with Circuit(route, DESK, "curator") as circuit:
        return decode(await circuit.post("/curate", encode(order(task))), Curated).onion


async def status(route: Route, onion: str) -> Status:
    async with Circuit(route, onion, "anyone") as circuit:
        return decode(await circuit.get("/status"), Status)


class Visitor:
    """A client over a real WebSocket, that does as it is told."""

    def __init__(self, circuit: Circuit, token: bytes, socket: WebSocket) -> None:
        self.circuit, self.token, self.socket = circuit, token, socket

    async def ask(self, message: object) -> Turn:
        await self.socket.send(encode(message))
        return await self.hear()

    async def hear(self) -> Turn:
        return decode(await self.socket.receive(10.0), Turn, turn_limit(DIMENSION))

    async def step(self, work: Work) -> Turn:
        return await self.ask(Push(work.ticket, solve(work.lock, work.difficulty), STEP))


@contextlib.asynccontextmanager
async def visit(
    route: Route, onion: str, k: int = 1, token: bytes | None = None
) -> AsyncIterator[Visitor]:
    async with Circuit(route, onion, os.urandom(4).hex()) as circuit:
        if token is None:
            door = decode(await circuit.get("/puzzle"), AdmissionPuzzle)
            join = Join(door.lock, solve(door.lock, door.difficulty), k)
            token = decode(await circuit.post("/join", encode(join)), Welcome).token
        socket = await circuit.websocket("/train", turn_limit(DIMENSION))
        await socket.send(encode(Hello(token)))
        try:
            yield Visitor(circuit, token, socket)
        finally:
            await socket.close()


async def test_a_model_from_curate_to_publication(tmp_path):
    task = make_task(training=Training(max_updates=5, max_norm=1.0))
    async with open_desk(tmp_path) as (_, route):
        onion = await curate(route, task)
        async with Circuit(route, onion, "someone") as circuit:
            assert decode(await circuit.get("/task", 1 << 20), SignedTask) == signed(task)
            page = (await circuit.get("/", 1 << 20)).decode()
            assert "A test" in page and "<script" not in page
            with pytest.raises(PeerProblem) as caught:
                await circuit.get("/model")
            assert caught.value.kind.code == "not-published"
        assert (await status(route, onion)).phase == "gathering"
        async with visit(route, onion) as client:
            turn = await client.ask(Pull())
            for _ in range(5):
                assert isinstance(turn.next, Work)
                turn = await client.step(turn.next)
                assert turn.receipt
            assert isinstance(turn.next, End)
        async with Circuit(route, onion, "someone") as circuit:
            raw = await _published(circuit)
        model = read_model(raw, "it", onion)
        assert model.updates == 5 and np.allclose(model.weights, [0.5, 0, 0, 0])


async def _published(circuit: Circuit) -> bytes:
    for _ in range(50):
        with contextlib.suppress(PeerProblem):
            return await circuit.get("/model", MODEL_LIMIT)
        await asyncio.sleep(0.1)
    raise AssertionError("the model was not published")


async def test_one_who_waits_is_told_by_itself_when_training_begins(tmp_path):
    async with open_desk(tmp_path) as (_, route):
        onion = await curate(route, make_task(clients=Clients(minimum=1, silence=30)))
        async with visit(route, onion, k=2) as one:
            turn = await one.ask(Pull())
            assert isinstance(turn.next, Wait) and (turn.next.have, turn.next.need) == (1, 2)
            async with visit(route, onion) as two:
                assert isinstance((await one.hear()).next, Work)
                work = (await two.ask(Pull())).next
                turn = await two.ask(Leave())
                assert isinstance(turn.next, Wait)
                # The update of the one that stayed is kept waiting, not lost.
                mine = (await one.ask(Pull())).next
                assert isinstance(mine, Wait)
                assert isinstance(work, Work)
            async with visit(route, onion, token=two.token) as two:
                await two.ask(Pull())
                assert isinstance((await one.hear()).next, Work)


async def test_a_cut_conversation_goes_on_and_a_resent_update_counts_once(tmp_path):
    async with open_desk(tmp_path) as (_, route):
        onion = await curate(route, make_task())
        async with visit(route, onion) as client:
            work = (await client.ask(Pull())).next
            push = Push(work.ticket, solve(work.lock, work.difficulty), STEP)
            await client.socket.send(encode(push))
        async with visit(route, onion, token=client.token) as client:
            assert (await client.ask(push)).receipt == work.ticket
        assert (await status(route, onion)).updates == 1


async def test_a_second_connection_of_a_session_takes_over(tmp_path):
    async with open_desk(tmp_path) as (desk, route):
        onion = await curate(route, make_task())
        async with visit(route, onion) as old:
            work = (await old.ask(Pull())).next
            async with visit(route, onion, token=old.token) as new:
                assert (await new.ask(Pull())).next == work
                with pytest.raises(Problem):
                    await old.hear()
                assert (await new.step(work)).receipt == work.ticket
                assert len(desk._models[onion].app._conversations) == 1
        assert (await status(route, onion)).updates == 1


async def test_a_desk_started_again_goes_on_at_the_same_address(tmp_path):
    task = make_task(training=Training(max_updates=3, max_norm=1.0))
    async with open_desk(tmp_path) as (_, route):
        onion = await curate(route, task)
        async with visit(route, onion) as client:
            turn = await client.ask(Pull())
            turn = await client.step(turn.next)
            last = turn.next
            turn = await client.step(last)
    async with open_desk(tmp_path) as (desk, route):
        assert desk.onions == [onion]
        assert (await status(route, onion)).updates == 2
        async with visit(route, onion, token=client.token) as client:
            again = await client.ask(Push(last.ticket, b"", STEP))
            assert again.receipt == last.ticket
            turn = await client.step(again.next)
            assert isinstance(turn.next, End)
        async with Circuit(route, onion, "someone") as circuit:
            first = await _published(circuit)
    async with open_desk(tmp_path) as (_, route), Circuit(route, onion, "someone") as circuit:
        assert await _published(circuit) == first


@pytest.mark.slow
async def test_a_published_model_is_gone_after_it_lingered(tmp_path):
    task = make_task(training=Training(max_updates=1, max_norm=1.0))
    async with open_desk(tmp_path, linger=0.5) as (desk, route):
        onion = await curate(route, task)
        async with visit(route, onion) as client:
            await client.step((await client.ask(Pull())).next)
        for _ in range(80):
            if not desk.onions:
                break
            await asyncio.sleep(0.1)
        assert desk.onions == []
        assert list((tmp_path / "models").iterdir()) == []
        with pytest.raises(Problem):
            await status(route, onion)


@pytest.mark.slow
async def test_a_published_model_makes_room_and_does_not_linger_anew(tmp_path):
    task = make_task(training=Training(max_updates=1, max_norm=1.0))
    async with open_desk(tmp_path, max_models=1, linger=100.0) as (desk, route):
        first = await curate(route, task)
        async with visit(route, first) as client:
            await client.step((await client.ask(Pull())).next)
        async with Circuit(route, first, "someone") as circuit:
            await _published(circuit)
        second = await curate(route, task)
        assert desk.onions == [first, second]
    file = next(tmp_path.glob("models/*/model.safetensors"))
    os.utime(file, (0, 0))
    async with open_desk(tmp_path, linger=100.0) as (desk, route):
        for _ in range(60):
            if desk.onions == [second]:
                break
            await asyncio.sleep(0.1)
        assert desk.onions == [second]


async def test_what_a_killed_desk_left_is_cleared_and_a_long_path_is_no_obstacle(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "dead").write_text("")
    async with open_desk(tmp_path) as (_, route):
        await curate(route, make_task())
        assert not (tmp_path / "run" / "dead").exists()
    assert not (tmp_path / "run").exists()
    far = tmp_path / ("x" * 90)
    async with open_desk(far) as (desk, route):
        await curate(route, make_task())
        sockets = desk._publisher._directory
        assert not sockets.is_relative_to(far)
    assert not sockets.exists()


async def test_a_desk_for_known_curators_takes_no_others(tmp_path):
    async with open_desk(tmp_path, curators=frozenset([b"k" * 32])) as (desk, route):
        with pytest.raises(PeerProblem) as caught:
            await curate(route, make_task())
        assert caught.value.kind.code == "curator-refused" and desk.onions == []
        assert not list((tmp_path / "models").iterdir())
    known = frozenset([b"k" * 32, CURATOR.public_key().public_bytes_raw()])
    async with open_desk(tmp_path, curators=known) as (desk, route):
        assert [await curate(route, make_task())] == desk.onions


class Invitations(DirectFront):
    """Not Tor: lets everybody in, and notes who was to be let in."""

    def __init__(self) -> None:
        super().__init__()
        self.guests: list[list[bytes]] = []

    async def publish(
        self, seed: bytes, target_socket: Path, *, invited: Sequence[bytes] = ()
    ) -> str:
        self.guests.append(list(invited))
        return await super().publish(seed, target_socket)


async def test_a_model_for_invited_clients_is_one_after_a_restart_too(tmp_path):
    front = Invitations()
    guests = [b"b" * 32, b"a" * 32, b"b" * 32]
    async with open_desk(tmp_path, front=front) as (desk, route):
        async with Circuit(route, DESK, "curator") as circuit:
            await circuit.post(
                "/curate", encode(replace(order(make_task()), invited=tuple(guests))))
        assert len(desk.onions) == 1
    assert front.guests == [[], sorted(set(guests))]
    again = Invitations()
    async with open_desk(tmp_path, front=again):
        pass
    # First the models, then the desk, which everybody may reach.
    assert again.guests == [sorted(set(guests)), []]


async def test_without_tor_there_are_no_invitations(tmp_path):
    async with (
        open_desk(tmp_path) as (desk, route), Circuit(route, DESK, "curator") as circuit
    ):
        with pytest.raises(PeerProblem) as caught:
            await circuit.post(
                "/curate", encode(replace(order(make_task()), invited=(b"a" * 32,))))
        assert caught.value.kind.code == "no-invitations" and desk.onions == []
    assert not list((tmp_path / "models").iterdir())


async def test_a_full_desk_and_orders_that_do_not_fit(tmp_path):
    async with open_desk(tmp_path, max_models=1) as (_, route):
        good = order(make_task())
        async with Circuit(route, DESK, "curator") as circuit:
            for bad in (
                committed(good.rows[:-4], good.labels),
                committed(good.rows, b"\x01" * len(good.labels)),
                committed(good.rows, b"\x07" * len(good.labels)),
                committed(b"", b""),
                # Not what the task commits to: other rows, another salt, none; or it to none.
                Curate(good.task, good.rows[:-1] + b"\x00", good.labels, SALT),
                Curate(good.task, good.rows, good.labels, b"y" * len(SALT)),
                Curate(good.task, b"", b"", SALT),
                Curate(signed(make_task(training=ROBUST, validation=UNJUDGED)),
                       good.rows, good.labels, SALT),
                Curate(SignedTask(good.task.body, b"k" * 32, good.task.signature),
                       good.rows, good.labels, SALT),
            ):
                with pytest.raises(PeerProblem):
                    await circuit.post("/curate", encode(bad))
            assert list((tmp_path / "models").iterdir()) == []
            await circuit.post("/curate", encode(good))
            with pytest.raises(PeerProblem) as caught:
                await circuit.post("/curate", encode(good))
            assert caught.value.kind.code == "desk-full"
            assert "1 models" in caught.value.sentence


UNJUDGED = Validation(test="none", screen="none")
ROBUST = Training(mode="synchronous", aggregate="median", max_updates=2, max_norm=1.0)


def committed(rows: bytes, labels: bytes) -> Curate:
    """An order whose task commits to just this."""
    digest = commitment(SALT, rows, labels)
    task = make_task(validation=Validation(test="none", screen="none", digest=digest))
    return Curate(signed(task), rows, labels, SALT)


async def test_a_model_without_a_validation_set_and_its_restart(tmp_path):
    task = make_task(training=ROBUST, validation=UNJUDGED)
    async with open_desk(tmp_path) as (_, route):
        async with Circuit(route, DESK, "curator") as circuit:
            answer = await circuit.post("/curate", encode(Curate(signed(task), b"", b"", SALT)))
            onion = decode(answer, Curated).onion
        async with visit(route, onion) as client:
            turn = await client.step((await client.ask(Pull())).next)
            assert turn.receipt
    async with open_desk(tmp_path) as (_, route):
        told = await status(route, onion)
        assert told.updates == 1 and (told.error, told.best_error, told.baseline) == (None,) * 3
        async with visit(route, onion, token=client.token) as client:
            turn = await client.step((await client.ask(Pull())).next)
            assert turn.receipt and isinstance(turn.next, End)
        async with Circuit(route, onion, "someone") as circuit:
            model = read_model(await _published(circuit), "it", onion)
        assert model.updates == 2 and np.allclose(model.weights, [0.2, 0, 0, 0])


async def test_secrets_are_0600_and_sockets_in_a_0700_directory(tmp_path):
    async with open_desk(tmp_path) as (desk, route):
        await curate(route, make_task())
        for path in tmp_path.rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode & 0o077 == 0, f"{path.name} is {mode:o}"
        sockets = desk._publisher._directory
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700


HOSTILE = [
    b"", b"\xc1", b"\x80", b"x" * 3000, encode(Hello(b"t" * 32)), encode(Welcome(b"t" * 32)),
    encode(Push(b"t" * 16, b"", b"\x00" * 16)), encode(Push(b"t" * 16, b"", b"\xff" * 9)),
]


@pytest.mark.parametrize("message", HOSTILE)
async def test_hostile_messages_get_a_sentence_and_hurt_nobody(tmp_path, message):
    async with open_desk(tmp_path) as (_, route):
        onion = await curate(route, make_task())
        async with visit(route, onion) as good, visit(route, onion) as bad:
            work = (await good.ask(Pull())).next
            await bad.ask(Pull())
            turn = await _raw(bad, message)
            assert isinstance(turn.next, Refused)
            assert turn.next.code in ("malformed", "stale-ticket", "bad-delta")
            assert (await good.step(work)).receipt
        for path in ("/join", "/nothing", "/task"):
            async with Circuit(route, onion, "bad") as circuit:
                with pytest.raises(PeerProblem):
                    await circuit.post(path, message)


async def _raw(visitor: Visitor, raw: bytes) -> Turn:
    await visitor.socket.send(raw)
    return await visitor.hear()


async def test_a_message_larger_than_the_task_implies_is_cut_off(tmp_path):
    async with open_desk(tmp_path) as (_, route):
        onion = await curate(route, make_task())
        async with visit(route, onion) as bad:
            await bad.ask(Pull())
            with pytest.raises(Problem):
                for _ in range(3):
                    await bad.socket.send(b"\x00" * (4 * MAX_DIMENSION))
                await bad.hear()
        async with Circuit(route, onion, "bad") as circuit:
            with pytest.raises(Problem):
                await circuit.post("/join", b"\x00" * (1 << 22))
        assert (await status(route, onion)).phase == "training"


@pytest.mark.slow
async def test_one_who_never_reads_holds_nobody_up(tmp_path):
    task = make_task(training=Training(max_norm=1.0))
    async with open_desk(tmp_path, limits=Limits(send_seconds=0.5)) as (desk, route):
        onion = await curate(route, task)
        async with visit(route, onion) as deaf, visit(route, onion) as good:
            # Its replies pile up until nothing more goes into the pipe.
            for _ in range(20_000):
                await deaf.socket.send(encode(Pull()))
            assert (await good.step((await good.ask(Pull())).next)).receipt
            begun = asyncio.get_running_loop().time()
            await desk._publisher.withdraw(onion)
            assert asyncio.get_running_loop().time() - begun < 15


async def test_idle_uploads_do_not_fill_the_desk(tmp_path):
    async with open_desk(tmp_path, max_models=1) as (_, route):
        host, port = route.direct
        idle = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"POST /curate HTTP/1.1\r\nHost: {DESK}\r\n"
                         "Content-Length: 1000\r\n\r\nx".encode())
            idle.append((reader, writer))
        await asyncio.sleep(0.2)
        assert (await status(route, await curate(route, make_task()))).phase == "gathering"
        for _, writer in idle:
            writer.close()


@pytest.mark.slow
async def test_whoever_hangs_up_while_uploads_wait_leaves_nothing(tmp_path):
    async with open_desk(tmp_path, Limits(uploads=1), max_models=1) as (desk, route):
        host, port = route.direct
        head = (f"POST /curate HTTP/1.1\r\nHost: {DESK}\r\n"
                "Content-Length: 1000\r\n\r\nx").encode()
        _, slow = await asyncio.open_connection(host, port)
        slow.write(head)
        await asyncio.sleep(0.3)
        before = len(asyncio.all_tasks())
        others = [await asyncio.open_connection(host, port) for _ in range(20)]
        for _, writer in others:
            writer.write(head)
        await asyncio.sleep(0.5)
        assert len(asyncio.all_tasks()) > before + 20 and desk._uploads.locked()
        for _, writer in others:
            writer.close()
        for _ in range(60):
            if len(asyncio.all_tasks()) <= before:
                break
            await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) <= before
        slow.close()
        # It is found out that the slow one has gone, too.
        assert (await status(route, await curate(route, make_task()))).phase == "gathering"


async def test_one_damaged_model_does_not_keep_the_others_away(tmp_path):
    async with open_desk(tmp_path, max_models=4) as (_, route):
        onions = [await curate(route, make_task()) for _ in range(4)]
    places = sorted((tmp_path / "models").iterdir())
    (places[0] / "model.db").write_bytes(b"no database")
    (places[1] / "onion.seed").rename(tmp_path / "seed-being-restored")
    (places[2] / "onion.seed").write_bytes(b"short")
    async with open_desk(tmp_path, max_models=4) as (desk, route):
        assert len(desk.onions) == 1 and desk.onions[0] in onions
        assert (await status(route, desk.onions[0])).phase == "gathering"
    assert sorted((tmp_path / "models").iterdir()) == places, "nothing is deleted on suspicion"
    (tmp_path / "seed-being-restored").rename(places[1] / "onion.seed")
    async with open_desk(tmp_path, max_models=4) as (desk, _):
        assert len(desk.onions) == 2


@pytest.mark.slow
async def test_a_mistake_in_a_models_work_does_not_end_it(tmp_path, monkeypatch):
    async with open_desk(tmp_path) as (desk, route):
        onion = await curate(route, make_task())
        brokerage = desk._models[onion].app.brokerage
        real, times = brokerage.tick, iter(range(3))

        def tick(now: float) -> None:
            if next(times, None) is not None:
                raise MemoryError
            real(now)

        monkeypatch.setattr(brokerage, "tick", tick)
        await asyncio.sleep(2.0)
        async with visit(route, onion) as client:
            assert (await client.step((await client.ask(Pull())).next)).receipt


async def test_a_disk_that_does_not_take_changes_keeps_acknowledgements_back(tmp_path):
    async with open_desk(tmp_path) as (desk, route):
        onion = await curate(route, make_task())
        store = desk._models[onion].store
        async with visit(route, onion) as client:
            work = (await client.ask(Pull())).next
            # SQLite itself refuses to write, as it does on a full disk.
            store._db.execute("PRAGMA query_only = ON")
            push = Push(work.ticket, solve(work.lock, work.difficulty), STEP)
            turn = await client.ask(push)
            assert turn.receipt == b"" and isinstance(turn.next, Refused)
            assert turn.next.code == "internal"
        store._db.execute("PRAGMA query_only = OFF")
        async with visit(route, onion, token=client.token) as client:
            assert (await client.ask(push)).receipt == work.ticket
        assert (await status(route, onion)).updates == 1


async def test_where_a_state_directory_has_a_space_tor_can_be_told_of_the_sockets(tmp_path):
    # ADD_ONION takes a path up to the next space.
    async with open_desk(tmp_path / "my models") as (desk, route):
        onion = await curate(route, make_task())
        (_, path) = [desk._publisher._services._targets[at] for at in (DESK, onion)]
        assert not re.search(r"\s", str(path)) and path.is_socket()
        directory = path.parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not directory.exists()


async def test_all_doors_close_together(tmp_path):
    publisher = Publisher(DirectFront(), tmp_path / "run")
    both = asyncio.Barrier(2)

    class Slow:
        async def close(self) -> None:
            await both.wait()

    publisher._doors = {"a": Slow(), "b": Slow()}  # type: ignore[dict-item]
    async with asyncio.timeout(5):
        await publisher.close()
