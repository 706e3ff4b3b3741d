"""Acknowledged means on disk, and many wait for one transaction: 50 clients, over real sockets."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from broker_world import make_task, solve
from test_broker_desk import STEP, curate, open_desk, visit

from accord.messages import Pull, Push, Work
from accord.task import Clients, Training
from broker.records import Changes

CLIENTS = 50
SLOW = 0.3
"""Seconds of a transaction: all that comes meanwhile has to wait for the next one."""


async def test_fifty_updates_are_a_few_transactions_and_none_is_answered_before_its_own(
    tmp_path: Path, monkeypatch: Any
) -> None:
    task = make_task(clients=Clients(minimum=1, maximum=CLIENTS, silence=60.0),
                     training=Training(max_updates=1000, max_norm=1.0))
    async with open_desk(tmp_path) as (desk, route), AsyncExitStack() as stack:
        onion = await curate(route, task)
        clients = [await stack.enter_async_context(visit(route, onion)) for _ in range(CLIENTS)]
        works = [(await client.ask(Pull())).next for client in clients]
        store = desk._models[onion].store
        real = store.write
        other = sqlite3.connect(store._path)
        stack.callback(other.close)
        written: dict[bytes, float] = {}
        """For each ticket, when the transaction that spent it was on disk."""
        transactions: list[int] = []

        def write(changes: Changes) -> None:
            time.sleep(SLOW)
            real(changes)
            transactions.append(len(changes.sessions))
            written.update((row.spent, time.monotonic()) for row in changes.sessions)

        monkeypatch.setattr(store, "write", write)

        async def push(client: Any, work: Work) -> None:
            message = Push(work.ticket, solve(work.lock, work.difficulty), STEP)
            turn = await client.ask(message)
            heard = time.monotonic()
            assert turn.receipt == work.ticket
            # It waited for its own transaction, and another connection sees that.
            assert written[work.ticket] <= heard
            assert (work.ticket,) in other.execute("SELECT spent FROM session").fetchall()

        await asyncio.gather(*map(push, clients, works))
        assert sum(transactions) == CLIENTS and len(transactions) <= 10, transactions
        assert max(transactions) >= CLIENTS // 10
        model, sessions = store.state()  # type: ignore[misc]
        assert model.updates == CLIENTS
        assert {row.spent for row in sessions} == {work.ticket for work in works}
