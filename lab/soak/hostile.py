"""What hostile clients of a history do: everything that can be said, at any moment.

Each act is one message, or a few, of somebody who knows the protocol and its own secrets, and
nothing of the others' but what the act says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from accord.messages import TICKET_BYTES, TOKEN_BYTES, Join, Leave, Pull, Push, Work, vector_to_wire
from lab.soak.book import DIMENSION
from lab.soak.setting import opened
from lab.soak.world import Person, World

_CROWD: Final = 10


def _solved(work: Work) -> bytes:
    return opened(work.lock, work.difficulty)


def _door(world: World, person: Person) -> bool:
    if person.door is None:
        world.puzzle(person)
    return person.door is not None


def _join(world: World, person: Person, change: Callable[[Join], Join] = lambda j: j) -> None:
    if _door(world, person):
        assert person.door is not None
        door = person.door
        good = Join(door.lock, opened(door.lock, door.difficulty), person.k)
        bad = change(good)
        if bad is good:
            person.join = good
        world.join(person if bad is good else None, bad)


def comes_in(world: World, person: Person) -> None:
    """In at the door, as anybody may."""
    _join(world, person)


def joins_again(world: World, person: Person) -> None:
    """A Join that was used already is sent once more."""
    if person.join is not None:
        world.join(person, person.join)


def comes_anew(world: World, person: Person) -> None:
    """A new name: the old one, and all that is known of it, is left behind."""
    person.door = person.join = person.token = None
    person.works.clear()
    person.over = ""
    _join(world, person)


def comes_unsolved(world: World, person: Person) -> None:
    """With one zero too few, or with none of it."""
    def change(j: Join) -> Join:
        zeros = j.lock[24]
        return Join(j.lock, opened(j.lock, zeros - 1) if zeros else b"", j.min_clients)

    _join(world, person, change)


def comes_forged(world: World, person: Person) -> None:
    """With a lock that says of itself that it is easier, or older."""
    place = world.random.choice([3, 20, 24, 30])

    def change(j: Join) -> Join:
        lock = bytearray(j.lock)
        lock[place] ^= 1
        return Join(bytes(lock), opened(bytes(lock), lock[24]), j.min_clients)

    _join(world, person, change)


def comes_greedy(world: World, person: Person) -> None:
    """With a k that can never be met."""
    _join(world, person,
          lambda j: Join(j.lock, j.solution, world.task.clients.maximum + 1))


def comes_as_another(world: World, person: Person) -> None:
    """With the lock of somebody who is in, and a solution of its own making."""
    for other in world.people:
        if other is not person and other.join is not None:
            world.join(None, Join(other.join.lock, b"\x40" + bytes(8), person.k))


def pulls(world: World, person: Person) -> None:
    """Asks for work."""
    if person.token:
        world.message(person.token, Pull(), person=person)


def prepare(world: World, person: Person) -> None:
    """What it takes to do harm: it comes in, is given work, and hears of it."""
    if person.token is None:
        comes_in(world, person)
    else:
        pulls(world, person)
    world.write()
    world.take()
    world.write()


def _push(world: World, person: Person, work: Work | None, delta: bytes, solution: bytes) -> None:
    if person.token and work is not None:
        world.message(person.token, Push(work.ticket, solution, delta), person=person)


def _newest(person: Person) -> Work | None:
    return person.works[-1] if person.works else None


def pushes(world: World, person: Person) -> None:
    """An update that is right in form, and against the model where there is one to oppose."""
    if (work := _newest(person)) is not None:
        _push(world, person, work, vector_to_wire(world.update(good=False)), _solved(work))


def pushes_easier(world: World, person: Person) -> None:
    """One zero too few was worked for."""
    if (work := _newest(person)) is not None and work.difficulty:
        _push(world, person, work, vector_to_wire(world.update()),
              opened(work.lock, work.difficulty - 1))


def pushes_for_another(world: World, person: Person) -> None:
    """On a ticket that somebody else was given, with its puzzle solved."""
    theirs = [g for g in world.book.tickets.values() if g.owner != person.token]
    if theirs:
        work = theirs[-1 - world.random.randrange(min(3, len(theirs)))].work
        _push(world, person, work, vector_to_wire(world.update()), _solved(work))


def pushes_old(world: World, person: Person) -> None:
    """On any ticket that was ever its own."""
    if person.works:
        work = world.random.choice(person.works)
        _push(world, person, work, vector_to_wire(world.update()), _solved(work))


def pushes_twice(world: World, person: Person) -> None:
    """Two updates on one ticket, one after the other."""
    pushes(world, person)
    pushes(world, person)


def pushes_odd(world: World, person: Person) -> None:
    """What is not so many finite numbers within the bound."""
    if (work := _newest(person)) is None:
        return
    odd = np.zeros(DIMENSION)
    odd[world.random.randrange(DIMENSION)] = world.random.choice(
        [np.nan, np.inf, -np.inf, 3e38, world.task.training.max_norm * 1.01])
    raw = vector_to_wire(odd)
    if world.random.random() < 0.3:
        raw = world.random.choice([b"", raw[:-1], raw[:-4], raw + raw[:4], raw * 3])
    _push(world, person, work, raw, _solved(work))


def pushes_nothing_known(world: World, person: Person) -> None:
    """On a ticket that nobody was given."""
    if person.token:
        ticket = world.random.randbytes(TICKET_BYTES)
        world.message(person.token, Push(ticket, b"", vector_to_wire(world.update())),
                      person=person)


def leaves(world: World, person: Person) -> None:
    """Goes."""
    if person.token:
        world.message(person.token, Leave(), person=person)


def leaves_and_pushes(world: World, person: Person) -> None:
    """Goes, and answers its ticket after all."""
    leaves(world, person)
    pushes(world, person)


def nobody_pulls(world: World, person: Person) -> None:
    """A token that nobody was given."""
    world.message(world.random.randbytes(TOKEN_BYTES), Pull())


def crowds(world: World, person: Person) -> None:
    """Many new sessions, each gone at once, so that the old ones are forgotten."""
    for _ in range(_CROWD):
        one = Person(1, hostile=True)
        _join(world, one)
        if one.join is None:
            return
        token = world.waiting[-1].token if world.waiting else None
        if token is not None and world.waiting[-1].what == one.join:
            world.message(token, Leave())


ACTS: Final[tuple[Callable[[World, Person], None], ...]] = (
    comes_in, comes_in, comes_in, joins_again, comes_anew, comes_unsolved, comes_forged,
    comes_greedy, comes_as_another, pulls, pulls, pulls, pulls, pushes, pushes, pushes, pushes,
    pushes_easier, pushes_for_another, pushes_for_another, pushes_old, pushes_old, pushes_twice,
    pushes_twice, pushes_odd, pushes_odd, pushes_odd, pushes_nothing_known, leaves,
    leaves_and_pushes, nobody_pulls, crowds,
)
"""Some are there more often than others, so that they get anywhere."""
