"""An agent solves puzzles beside its event loop, says how, and stops when it is stopped."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_home import Person, a_world, lines

from accord import puzzle, solver
from accord.solver import MISSING, Solver
from client import cli, work
from client.events import Event, Searching, Solving
from client.work import Worker

LOCK = bytes(41)
NEVER = 64


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    """On a machine without llvmlite, to whom everything is told at once."""
    monkeypatch.setattr(solver, "_compiled", solver._Compiled())
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setattr(work, "_TELL", 0.0)
    yield Person(tmp_path / "session.json")


def _worker(person: Person, cores: Solver | None = None) -> Worker:
    nothing: Any = None
    return Worker(nothing, 0.0, cores or Solver(), person.events.append)


async def _until(person: Person, kind: type[Event]) -> Event:
    async with asyncio.timeout(20):
        while not person.saw(kind):
            await asyncio.sleep(0)
    return person.saw(kind)[0]


async def test_it_says_what_it_searches_with(person: Person) -> None:
    lock = next(lock for number in range(100) if puzzle.search(
        lock := b"%d" % number, 4, 0, 3 * solver.STRETCH) is None)
    assert puzzle.verify(lock, await _worker(person).search(lock, 4, door=False), 4)
    told = person.saw(Solving)
    assert told
    for event in told:
        assert isinstance(event, Solving)
        assert (event.solver, event.cores, event.door) == ("hashlib", 1, False)
        assert event.rate > 0 and event.expected == 16 ** 4
    # It took no time that anybody would wish to have back.
    assert not person.saw(Searching)


async def test_what_would_make_a_long_search_shorter_is_said_once(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_SLOW", 0.0)
    it = _worker(person)
    for _ in range(2):
        before = len(person.saw(Solving))
        searching = asyncio.create_task(it.search(LOCK, NEVER, door=True))
        async with asyncio.timeout(20):
            while len(person.saw(Solving)) < before + 3:
                await asyncio.sleep(0)
        searching.cancel()
        await asyncio.gather(searching, return_exceptions=True)
    (told,) = person.saw(Searching)
    assert isinstance(told, Searching) and told.rate > 0
    assert (told.name, told.cores, told.why_not) == ("hashlib", 1, MISSING)


@pytest.mark.parametrize("cores", [1, 2])
async def test_a_search_that_is_stopped_leaves_nothing_behind(person: Person, cores: int) -> None:
    with Solver(cores) as it:
        searching = asyncio.create_task(_worker(person, it).search(LOCK, NEVER, door=True))
        await _until(person, Solving)
        helpers = [helper._process for helper in it._helpers]
        searching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await searching
        tried = len(person.saw(Solving))
    assert len(helpers) == cores - 1
    assert all(process is not None and process.poll() is not None for process in helpers)
    await asyncio.sleep(0.1)
    assert len(person.saw(Solving)) == tried
    assert it.stretch(LOCK, NEVER, 0).count == solver.STRETCH  # closed: nobody helps any more


async def test_the_loop_turns_while_it_searches(person: Person) -> None:
    """A tick between two stretches is not enough: the loop would stand still during each."""
    searching = asyncio.create_task(_worker(person).search(LOCK, NEVER, door=True))
    stretches = turns = 0
    while stretches < 25:  # so many that a busy machine shows in few of them
        await asyncio.sleep(0)
        turns += 1
        stretches = len(person.saw(Solving))
    searching.cancel()
    await asyncio.gather(searching, return_exceptions=True)
    assert turns > 20 * stretches


@pytest.mark.slow
def test_the_command_searches_on_as_many_cores_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, closed = [], []

    class Heard(Solver):
        def __init__(self, cores: int) -> None:
            super().__init__(cores)
            asked.append(cores)

        def close(self) -> None:
            super().close()
            closed.append(self)

    monkeypatch.setattr(cli, "Solver", Heard)
    monkeypatch.setattr(solver, "STRETCH", 1 << 10)  # so that a puzzle is worth two cores
    with a_world(tmp_path) as world:
        world.broker.door = 3
        assert world.join().exit_code == 0
        for wrong in ("0", "two", str(solver.MAX_CORES + 1)):
            refused = world.run("solve", "--cores", wrong)
            assert refused.exit_code == 2 and "--cores" in refused.output
        solved = world.run("solve", "--cores", "2", "--json")
    assert solved.exit_code == 0, solved.output
    assert lines(solved.stdout)[-1]["outcome"] == "published"
    assert asked == [2] and len(closed) == 1


@pytest.mark.slow
def test_the_command_uses_machine_code_where_it_is_worth_it(tmp_path: Path) -> None:
    with a_world(tmp_path) as world:
        world.broker.door = 6
        assert world.join().exit_code == 0
        solved = world.run("solve", "--json")
    assert solved.exit_code == 0, solved.output
    told = [event for event in lines(solved.stdout) if event["event"] == "solving"]
    assert all(event["solver"] == "compiled" for event in told)
    # The lock at the stand-in's door has 16 bytes.
    assert solver._compiled.get(16, 0) is not None and not solver._compiled.why
