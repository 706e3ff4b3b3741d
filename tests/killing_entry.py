"""Clients that die on their way in at the door of a real broker, and come back.

Run as a program: ``python -m killing_entry DIRECTORY SCENARIO SUBJECT [SCENARIO SUBJECT ...]``; see
:mod:`killing`. A broker serves in a process of its own; each client is one more, and goes the whole
way from no puzzle to a token. Whenever it dies, and whatever a power cut then leaves, the next
process finds a whole session, and the two together have taken one place.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from broker_world import SALT, make_data, make_task, signed, wire
from killing import WRITERS, Faults, Plan, each_in_a_child, in_a_child, limited, plans
from msgspec.structs import replace

from accord.circuit import Circuit, Route
from accord.files import write_whole
from accord.messages import Curate, Status, decode
from accord.task import Clients
from broker.desk import Desk, Publisher
from broker.direct import DirectFront
from client import session
from client.agent import Agent
from client.session import Pace, Session, hold_session, load_session, save_session

TASK: Final = make_task(clients=Clients(minimum=1, maximum=5000, silence=3600.0))
PACE: Final = Pace(first=0.01, longest=0.05, patience=5.0)


class IdleTrainer:
    """Stands in for a trainer: nobody trains here."""

    task = TASK


class Forgets(Agent):
    """Wrong: a puzzle and its solution are kept with the token only."""

    async def _keep(self, **changes: object) -> None:
        if "token" not in changes:
            self.session = replace(self.session, **changes)
        else:
            await super()._keep(**changes)


AGENTS: Final = {kind.__name__: kind for kind in (Agent, Forgets)}


@contextmanager
def served(home: Path) -> Iterator[tuple[Route, str]]:
    """A broker in a process of its own, and its model's address."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reads)

        async def serve() -> None:
            front = DirectFront()
            where = await front.listen("127.0.0.1", 0)
            publisher = Publisher(front, home / "run")
            desk = Desk(home, publisher, 2, 60.0)
            await desk.start()
            order = Curate(signed(TASK), *wire(*make_data()), SALT)
            os.write(writes, json.dumps([*where, await desk._take(order)]).encode())
            await asyncio.Event().wait()

        try:
            asyncio.run(serve())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writes)
    try:
        host, port, onion = json.loads(os.read(reads, 4096))
        yield Route(socks=None, direct=(host, port)), onion
    finally:
        os.close(reads)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def places(way: Route, onion: str) -> int:
    """How many sessions the broker has let in."""
    async def ask() -> int:
        async with Circuit(way, onion, "anyone") as circuit:
            return decode(await circuit.get("/status"), Status).clients

    return asyncio.run(ask())


def entries(kind: type[Agent], home: Path) -> int:
    """All deaths on the way in; each is followed by one who goes on, and one place is taken."""
    state = home / "state"
    path = state / "session.json"
    with served(home / "broker") as (way, onion):
        new = Session(
            onion=onion, task=signed(TASK), data="/x/mine.csv", fingerprint="ab" * 32,
            epsilon=1.0, batch=50, min_clients=1, budget=8.0, delta=1e-6, max_difficulty=6,
            ledger="/x", output="/x/m")

        async def enter(faults: Faults) -> None:
            agent: Any = kind(way, path, load_session(path), IdleTrainer(),  # type: ignore[arg-type]
                              None, lambda: True, lambda _: None, pace=PACE)
            await agent._enter()
            faults.tell(b"S", agent.session.token)

        def body(faults: Faults) -> None:
            with hold_session(path):
                asyncio.run(enter(faults))

        def begin() -> None:
            shutil.rmtree(state, ignore_errors=True)
            state.mkdir()
            write_whole(path, raw, 0o600)

        state.mkdir()
        save_session(path, new)
        raw = path.read_bytes()
        begin()
        whole = in_a_child(body, {})
        (token,) = whole.said
        assert load_session(path).token == token
        sizes = len(raw), path.stat().st_size
        fates: list[tuple[Plan, int | None]] = [(p, None) for p in plans(whole.calls, "calls")]
        fates += [({}, room) for room in (0, 1, *range(sizes[0], sizes[1], 60), sizes[1] - 1)]
        cases = 1
        for plan, room in fates:
            for power in (False, True):
                begin()
                left = in_a_child(body if room is None else limited(body, room), plan)
                assert left.killed
                try:
                    strays = [each for each in state.iterdir()
                              if each not in (path, path.with_name(".session.json.lock"))]
                    assert len(strays) <= 1 and all(
                        stat.S_IMODE(each.stat().st_mode) == 0o600 for each in (path, *strays))
                    if power:
                        write_whole(path, left.kept or raw, 0o600)
                    found = load_session(path)
                    assert replace(found, puzzle=None, solution=None, token=None) == new
                    assert found.token in (None, *left.said) or not left.said
                    (token,) = in_a_child(body, {}).said
                    assert load_session(path).token == token
                    assert not left.said or left.said == [token], "another place"
                    cases += 1
                    assert places(way, onion) == cases, "a place was lost, or a second one taken"
                except Exception as error:
                    raise AssertionError(
                        f"{plan}, {room}, {power} of {whole.calls}: {error!r}") from error
    return cases


def main(_: str, subject: str, home: Path) -> int:
    """With an agent, or a way of writing."""
    if subject in WRITERS:
        session.write_whole = WRITERS[subject]  # type: ignore[attr-defined]
    return entries(AGENTS.get(subject, Agent), home)


if __name__ == "__main__":
    each_in_a_child(main)
