"""Histories that broke something once, as ``scripts/soak histories`` printed them."""

from __future__ import annotations

from lab.soak.histories import History, run
from lab.soak.hostile import comes_in, leaves, prepare, pushes
from lab.soak.setting import Setting
from lab.soak.world import Person, World


def commit(world: World) -> None:
    world.take()
    world.write()


def test_who_fell_silent_got_a_receipt_for_an_update_that_was_dropped(tmp_path):
    """In a round that is open, a client falls silent, and news of the model makes the broker answer
    its waiting update once more: it was dropped, as its sender no longer counts, and yet it was
    acknowledged."""
    assert run(History(Setting(
        seed=4, mode="synchronous", aggregate="median", rate=1.0, silence=6.0, round_seconds=50.0,
        deadline=20000.0, max_updates=20, update=0, ks=(1, 1, 1, 1)), (
        ("go", 54, 441),
        ("go", 49, 478),
        ("go", 62, 819),
        ("go", 14, 749),
        ("time", 25, 619),
        ("go", 47, 333),
        ("go", 22, 305),
    )), tmp_path) is None


def test_what_is_held_against_the_forgotten_is_written_when_they_are_forgotten(tmp_path):
    """The sequential test keeps what was against sessions that are forgotten, so that a new name
    saves nobody. It was in memory only until the next update came, and a crash washed it off."""
    world = World(Setting(
        seed=1, test="sequential", screen="length", evict=0, max_updates=60, admission=0, update=0,
        maximum=2, remembered=1, ks=(), hostile=0), tmp_path)
    first, stays, newcomer = (Person(1, hostile=True) for _ in range(3))
    for act in (prepare, prepare, pushes):
        act(world, first)
        commit(world)
    broker = world.broker
    assert broker is not None and first.token is not None
    assert world.book.sessions[first.token].decided
    prepare(world, stays)
    leaves(world, first)
    commit(world)
    # The newcomer pushes the one who has gone out of memory, and nothing else happens.
    comes_in(world, newcomer)
    assert not broker.knows(first.token) and broker.phase == "training"
    # Whether all that has changed is written, is looked at here.
    commit(world)
    world.close()
