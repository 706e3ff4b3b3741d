"""Desks and clients that break their promises, to see whether ``scripts/soak`` says so.

Run as a program in the place of ``tormentor`` or ``lab.crowd``: it is the real one with one thing
changed, which the environment names (``SOAK_LIE``).
"""

from __future__ import annotations

import os
import queue
import runpy
import sys
import threading
import time
from dataclasses import replace
from typing import Any

from accord.messages import Push, Turn, Work, vector_to_wire
from broker.brokerage import Brokerage, Ticket
from broker.records import Changes
from broker.store import Store
from client.session import Conversation

LATE = 0.3
"""Seconds that lie between what is said and what is done."""


def early() -> None:
    """Receipts are let go before what they stand for is on the disk."""
    write, waiting = Store.write, queue.SimpleQueue[Any]()

    def later() -> None:
        while True:
            time.sleep(LATE)
            while not waiting.empty():
                write(*waiting.get())

    threading.Thread(target=later, daemon=True).start()
    Store.write = lambda store, changes: waiting.put((store, changes))  # type: ignore[method-assign]


def slow() -> None:
    """No lie: much is on the disk whose receipts are not out yet, so that kills hit it."""
    write = Store.write

    def and_wait(store: Store, changes: Changes) -> None:
        write(store, changes)
        time.sleep(LATE / 3)

    Store.write = and_wait  # type: ignore[method-assign]


def forgets() -> None:
    """Receipts are forgotten by a restart, and a ticket that nobody knows is taken for good."""
    slow()
    state, push = Store.state, Brokerage._push

    def without_receipts(store: Store) -> Any:
        found = state(store)
        return found and (found[0], [replace(row, spent=b"") for row in found[1]])

    def take(brokerage: Brokerage, name: bytes, said: Push, now: float) -> Turn:
        if name not in brokerage._spent and name not in brokerage._tickets:
            sent = brokerage._aggregator.weights
            work = Work(said.ticket, vector_to_wire(sent), b"lock", 0)
            brokerage._tickets[name] = Ticket(work, sent)
        return push(brokerage, name, said, now)

    Store.state = without_receipts  # type: ignore[method-assign]
    Brokerage._push = take  # type: ignore[method-assign]


def silent() -> None:
    """An update whose receipt did not come is not sent again."""
    connected = Conversation.connected

    def and_forget(talk: Conversation, now: float) -> Any:
        talk._pending = None
        return connected(talk, now)

    Conversation.connected = and_forget  # type: ignore[method-assign]


def leaks() -> None:
    """Something of each write stays in memory for ever."""
    write, kept = Store.write, []

    def and_keep(store: Store, changes: Changes) -> None:
        write(store, changes)
        kept.append(bytearray(os.urandom(1 << 16)))

    Store.write = and_keep  # type: ignore[method-assign]


LIES = {each.__name__: each for each in (early, slow, forgets, silent, leaks)}

if __name__ == "__main__":
    for lie in os.environ["SOAK_LIE"].split():
        LIES[lie]()
    # The clients' program has one argument, a part.
    module = "lab.crowd" if sys.argv[1].startswith("{") else "tormentor"
    runpy.run_module(module, run_name="__main__", alter_sys=True)
