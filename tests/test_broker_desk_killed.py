"""The desk under ``kill -9``, a full disk and damage, around each call that brings files about.

A model that is taken in, published or deleted is whole at the next start, or gone, and nothing
half remains; what was answered is there, also after a power cut. See ``tests/killing_desk.py``.
"""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
from broker_world import make_data, make_task, signed, solve, wire
from killing import examined
from test_broker_cli import Running
from test_broker_desk import SALT, STEP, status, visit

from accord.circuit import Circuit, Route
from accord.messages import Curate, Curated, Pull, Push, Refused, decode, encode

RIGHT = {"take": 100, "forget": 60, "publish": 60, "damage": 200}
"""What is examined, and how many deaths (or damages) it comes to at least."""
WRONG = [
    # Each is a mistake that a change could make, or that was there.
    ("take", "no_names"), ("take", "no_rename_sync"), ("forget", "deletes_at_once"),
    ("publish", "writes_over"), ("damage", "trusts"),
]


@pytest.mark.slow
def test_a_model_is_whole_or_gone_whenever_its_desk_is_killed() -> None:
    told = examined("killing_desk", [(scenario, "Desk") for scenario in RIGHT])
    for (name, one), least in zip(told, RIGHT.values(), strict=True):
        assert one["wrong"] == "", name
        assert one["cases"] >= least, name  # type: ignore[operator]


@pytest.mark.slow
def test_mistakes_are_found() -> None:
    missed = [name for name, told in examined("killing_desk", WRONG) if not told["wrong"]]
    assert not missed, "the harness cannot find what it is for"


@pytest.mark.slow
async def test_a_full_disk_acknowledges_nothing_and_goes_on_when_there_is_room(
    tmp_path: Path
) -> None:
    broker = Running(tmp_path)
    pid = broker.process.pid
    host, port = broker.where.split(":")
    way = Route(None, (host, int(port)))
    order = Curate(signed(make_task()), *wire(*make_data()), SALT)
    async with Circuit(way, broker.onion, "curator") as circuit:
        onion = decode(await circuit.post("/curate", encode(order)), Curated).onion
    async with visit(way, onion) as client:
        work = (await client.ask(Pull())).next
        # No file of the broker's may become longer: the kernel refuses, as on a full disk.
        (log,) = tmp_path.glob("models/*/model.db-wal")
        unbounded = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (log.stat().st_size + 5000, unbounded[1]))
        push = Push(work.ticket, solve(work.lock, work.difficulty), STEP)
        turn = await client.ask(push)
        assert turn.receipt == b"" and isinstance(turn.next, Refused)
        assert turn.next.code == "internal"
    for _ in range(2):
        async with visit(way, onion, token=client.token) as client:
            turn = await client.ask(push)
            assert turn.receipt == b"" and isinstance(turn.next, Refused)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unbounded)
    async with visit(way, onion, token=client.token) as client:
        assert (await client.ask(push)).receipt == work.ticket
    words = broker.stop(signal.SIGKILL)
    assert "Cannot write" in words and "clients wait" in words
    broker = Running(tmp_path)
    host, port = broker.where.split(":")
    way = Route(None, (host, int(port)))
    assert (await status(way, onion)).updates == 1
    async with visit(way, onion, token=client.token) as client:
        assert (await client.ask(push)).receipt == work.ticket
    assert (await status(way, onion)).updates == 1
    broker.stop(signal.SIGTERM)
