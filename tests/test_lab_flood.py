"""``scripts/soak flood`` counts right; how fast this machine is, is not judged here."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from pathlib import Path

import pytest

from accord.messages import Join
from lab.soak import flood
from lab.soak.flood_parts import COUNTS, KINDS, WORKERS, _Flood, _post


class StandInDoor:
    """Counts what it is sent; answers 200, 403, or nothing at all, in turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.joins = self.connections = self.answered = self.refused = self.cut = 0

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        number = self.connections
        said = await reader.read(65_536)
        self.joins += said.count(b"POST /join")
        if number % 3 == 0:
            self.cut += 1
        elif number % 3 == 1:
            self.answered += 1
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            self.refused += 1
            writer.write(b"HTTP/1.1 403 No\r\n\r\n")
        writer.close()


async def test_the_flood_counts_what_it_throws_and_what_becomes_of_it(tmp_path):
    door = StandInDoor(tmp_path / "s")
    server = await asyncio.start_unix_server(door.serve, door.path)
    counts = multiprocessing.get_context("spawn").Array("Q", len(COUNTS))
    thrower = _Flood(door.path, counts)
    payloads = [_post(Join(b"l" * 16, b"s" * 8, 1))] * 30

    await thrower._throw("wrong", payloads)
    server.close()
    assert door.connections == door.joins == 30
    told = dict(zip(COUNTS, counts[:], strict=True))
    assert told == {"joins": 30, "answered": 10, "refused": 10, "cut": 10, "shut_out": 0,
                    "others": 0}
    (tmp_path / "s").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as shut:
        shut.bind(str(tmp_path / "s"))
        await thrower._throw("wrong", payloads[:3])
    assert dict(zip(COUNTS, counts[:], strict=True)) == told | {"shut_out": 3}


def test_each_kind_has_workers():
    assert set(WORKERS) == set(KINDS) and min(WORKERS.values()) > 0


@pytest.mark.slow
async def test_a_short_trial(monkeypatch: pytest.MonkeyPatch):
    """Three processes, phases, counters: what it reports is what they did."""
    workers = dict.fromkeys(KINDS, 2)
    monkeypatch.setattr(flood, "TRIP", 0.2)
    report = await flood.flood(clients=3, pairs=1, seconds=3.0, workers=workers)
    # One update takes a round trip at least.
    assert 1 < report.without <= 3 / 0.2 and report.unthrottled > report.without
    assert report.thrown["joins"] > 0 and report.thrown["refused"] > 0
    assert report.broker_cpu > 0 and 30 < report.megabytes < 1000
    assert report.ratio == pytest.approx(report.with_flood / report.without)
    assert report.slowed == (report.ratio < flood.SLOWED)
    assert not multiprocessing.active_children()
