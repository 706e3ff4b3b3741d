"""A store under ``kill -9``, power cuts and full disks: real processes that die.

Run as a program: ``python -m killing_store DIRECTORY SCENARIO SUBJECT [SCENARIO SUBJECT ...]``,
which prints a line of JSON for each; see :mod:`killing`. What SQLite does happens in C, out of the
reach of the faults there: so a writer that acknowledges over a pipe is killed at random moments,
and a power cut is made by hand, of what was in the files when one transaction was acknowledged and
when the next was.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from killing import Faults, die, each_in_a_child, in_a_child

from accord.problems import Problem
from broker.records import Changes, ModelRow, SessionRow
from broker.store import Store

WIDTH: Final = 600
"""Numbers in a model: a transaction fills some pages."""
SESSIONS: Final = 5


class SaysSo(Store):
    """Wrong: a full disk is nothing to it."""

    def write(self, changes: Changes) -> None:
        with contextlib.suppress(Problem):
            super().write(changes)


class InParts(Store):
    """Wrong: the model and the sessions are two transactions."""

    def write(self, changes: Changes) -> None:
        super().write(Changes(changes.model, []))
        super().write(Changes(None, changes.sessions))


class TooSoon(Store):
    """Wrong: it answers first, and writes with the next one."""

    _owed: Changes | None = None

    def write(self, changes: Changes) -> None:
        owed, self._owed = self._owed, changes
        if owed is not None:
            super().write(owed)


STORES: Final = {kind.__name__: kind for kind in (Store, SaysSo, InParts, TooSoon)}


def changes(number: int) -> Changes:
    """The transaction of this number, from 1."""
    weights = np.full(WIDTH, float(number))
    model = ModelRow("training", weights, number, weights, 1.0 / number, None, number, 0, 0, 0,
                     0.0, b"j" * (number % 50), float(number), float(number), "")
    return Changes(model, [SessionRow(b"%032d" % (number % SESSIONS), 1, number, 0, 0.0, b"", b"")])


def found(store: Store) -> int:
    """The number of the transaction whose state this is, all of it."""
    state = store.state()
    if state is None:
        return 0
    model, sessions = state
    number = model.updates
    want = changes(number).model
    assert want is not None and (model.weights == want.weights).all(), "of two transactions"
    assert (model.judging, model.seconds) == (want.judging, want.seconds)
    assert {s.name: s.updates for s in sessions} == {
        b"%032d" % (n % SESSIONS): n for n in range(max(1, number - SESSIONS + 1), number + 1)}
    return number


def opened(path: Path, least: int, most: int) -> int:
    """Open what is left: it is whole, of one of these numbers, and one can go on."""
    store = Store(path)
    try:
        assert store._ask("PRAGMA integrity_check") == "ok"
        number = found(store)
        assert least <= number <= most, f"{number} of {least} to {most}"
        return number
    finally:
        store.close()


def kills(kind: type[Store], home: Path) -> int:
    """A writer in a tight loop is killed, at random moments, again and again."""
    path, number, chance, acknowledged = home / "model.db", 0, random.Random(1), 0
    for case in range(250):
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reads)
            store = kind(path)
            if case % 2:
                store._db.execute("PRAGMA wal_autocheckpoint=30")
            for n in range(number + 1, 1 << 40):
                store.write(changes(n))
                os.write(writes, n.to_bytes(8, "big"))
        os.close(writes)
        raw = b""
        if case % 10:
            raw = os.read(reads, 8)
        time.sleep(chance.random() * 0.008)
        os.kill(pid, signal.SIGKILL)
        while part := os.read(reads, 1 << 16):
            raw += part
        os.close(reads)
        os.waitpid(pid, 0)
        last = int.from_bytes(raw[-8:], "big") if raw else number
        acknowledged += last - number
        number = opened(path, last, last + 1)
    assert acknowledged > 250
    return 250


def power(kind: type[Store], home: Path) -> int:
    """The power is cut while a transaction is written: any part of what is new is there."""
    chance, cases = random.Random(2), 0
    path, cut = home / "model.db", home / "cut"
    wal = path.with_name("model.db-wal")
    store = kind(path)
    store._db.execute("PRAGMA wal_autocheckpoint=40")
    store.write(changes(1))
    old = path.read_bytes(), wal.read_bytes()
    for number in range(2, 42):
        store.write(changes(number))
        new = path.read_bytes(), wal.read_bytes()
        for database, log in _cuts(old, new, chance):
            shutil.rmtree(cut, ignore_errors=True)
            cut.mkdir()
            (cut / "model.db").write_bytes(database)
            (cut / "model.db-wal").write_bytes(log)
            opened(cut / "model.db", number - 1, number)
            cases += 1
        shutil.rmtree(cut, ignore_errors=True)
        cut.mkdir()
        for name, content in zip(("model.db", "model.db-wal"), new, strict=True):
            (cut / name).write_bytes(content)
        opened(cut / "model.db", number, number)
        old = new
    store.close()
    return cases


def _cuts(
    old: tuple[bytes, bytes], new: tuple[bytes, bytes], chance: random.Random
) -> Iterator[tuple[bytes, bytes]]:
    """The log first, in order or not; the database only when the log is whole (a checkpoint)."""
    page, frame = 4096, 4096 + 24
    before, after = old[1], new[1]
    same = next((n for n in range(0, len(after), 8) if before[n:n + 8] != after[n:n + 8]),
                len(after))
    edges = [n + by for n in range(32, len(after), frame) for by in (-1, 0, 1, 24)]
    ends = {same, same + 1, *(chance.randrange(same, len(after) + 1) for _ in range(8)),
            *(n for n in edges if same <= n <= len(after))}
    for end in sorted(ends):
        yield old[0], after[:end] + before[end:]
        yield old[0], (after[:end] + before[end:])[: max(end, len(before))] + bytes(24)
    for _ in range(4):  # not in order
        parts = bytearray(before.ljust(len(after), b"\0"))
        for n in range(same, len(after) - frame, 512):
            if chance.random() < 0.6:
                parts[n:n + 512] = after[n:n + 512]
        yield old[0], bytes(parts)
    if old[0] != new[0]:
        for _ in range(12):
            parts = bytearray(old[0].ljust(len(new[0]), b"\0"))
            for n in range(0, len(new[0]), page):
                if chance.random() < 0.5:
                    parts[n:n + page] = new[0][n:n + page]
            yield bytes(parts), after


def full(kind: type[Store], home: Path) -> int:
    """The disk is full in the middle of a transaction; then there is room again; then death."""
    path = home / "model.db"
    refused = 0
    rooms = range(0, 60_000, 997)
    for room in rooms:
        for each in home.iterdir():
            each.unlink()

        def body(faults: Faults, room: int = room) -> None:
            store = kind(path)
            store.write(changes(1))
            store.write(changes(2))
            size = path.with_name("model.db-wal").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
            try:
                store.write(changes(3))
            except Problem:
                faults.tell(b"S", b"refused")
                assert found(store) == 2
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                store.write(changes(3))
            faults.tell(b"S", b"acknowledged")
            die()

        left = in_a_child(body, {}, ())
        assert left.said[-1:] == [b"acknowledged"]
        refused += b"refused" in left.said
        opened(path, 3, 3)
    assert 5 < refused < len(rooms)
    return len(rooms)


SCENARIOS: Final = {each.__name__: each for each in (kills, power, full)}

if __name__ == "__main__":
    each_in_a_child(lambda scenario, subject, home: SCENARIOS[scenario](STORES[subject], home))
