"""The parts of the brokerage, its store and its page, one by one."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import numpy as np
import pytest
from broker_world import Player, make_brokerage, make_data, make_task, signed
from hypothesis import given
from hypothesis import strategies as st

from accord.messages import Status
from accord.problems import PeerProblem, Problem
from accord.task import Clients
from broker.aggregator import Aggregator
from broker.page import desk_page, status_page
from broker.registry import IDLE, Registry
from broker.store import Store

# -- registry and aggregator -------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 100)), max_size=12), st.floats(0, 150))
def test_standing_is_the_strictest_wish_of_those_who_are_active(members, now):
    registry = Registry(Clients(minimum=2, maximum=99, silence=30.0))
    for number, (k, seen) in enumerate(members):
        registry.admit(bytes([number]), k, seen)
    active = [k for k, seen in members if seen >= now - 30.0]
    assert registry.standing(now) == (len(active), max([2, *active]))
    assert registry.enough(now) == (len(active) >= max([2, *active]))


def test_the_maximum_holds_for_those_who_come_back_and_memory_has_an_end():
    registry = Registry(Clients(minimum=1, maximum=2, silence=30.0))
    names = [bytes([n]) for n in range(60)]
    for name in names:
        registry.admit(name, 1, 0.0)
        registry.leave(name)
    registry.heard(names[0], 1.0)
    registry.heard(names[1], 1.0)
    with pytest.raises(PeerProblem) as caught:
        registry.heard(names[2], 1.0)
    assert caught.value.kind.code == "full"
    registry.heard(names[0], 2.0)
    # Forty sessions are remembered for two places; those that did something go last.
    registry.members[names[3]].updates = 5
    gone = registry.surplus(40.0)
    assert len(gone) == 24 and not {names[0], names[1], names[3]} & set(gone)
    for name in gone:
        registry.forget(name)
    assert registry.surplus(40.0) == [] and registry.admit(b"new", 1, 40.0)


def test_whoever_does_nothing_makes_room_for_whoever_comes():
    registry = Registry(Clients(minimum=1, maximum=2, silence=1e9))
    registry.admit(b"idle", 1, 0.0, 0.0)
    registry.admit(b"busy", 1, 1.0, 1.0)
    registry.accepted(b"busy", 500.0)
    for trained in (0.0, IDLE - 1):
        with pytest.raises(PeerProblem) as caught:
            registry.admit(b"new", 1, 1000.0, trained)
        assert caught.value.kind.code == "full" and b"new" not in registry
    assert registry.admit(b"new", 1, 1000.0, IDLE)
    assert registry.active(1000.0) == [b"busy", b"new"]
    # It may ask for work as often as it likes: there is no place for it, and it takes no other's
    # who works. Its session, and what it did, are remembered.
    for trained in (IDLE, 500.0 + IDLE - 1):
        with pytest.raises(PeerProblem):
            registry.heard(b"idle", 1001.0, trained)
    assert registry.standing(1001.0) == (2, 1)
    # Whoever worked, and was away for a while, gets its place back.
    registry.leave(b"busy")
    registry.heard(b"idle", 1002.0, IDLE)
    registry.heard(b"busy", 1003.0, IDLE + 1)
    assert registry.active(1003.0) == [b"busy", b"new"]


def test_whoever_was_put_out_stays_out_and_is_not_forgotten_first():
    registry = Registry(Clients(minimum=1, maximum=2, silence=30.0), evict=2)
    registry.admit(b"bad", 2, 0.0)
    registry.admit(b"good", 1, 0.0)
    assert registry.strike(b"bad") == 1 and not registry.out(b"bad")
    assert registry.standing(0.0) == (2, 2)
    assert registry.strike(b"bad") == 2 and registry.out(b"bad")
    registry.heard(b"bad", 1.0)
    assert not registry.admit(b"bad", 2, 1.0) and not registry.present(b"bad", 1.0)
    assert registry.standing(1.0) == (1, 1) and registry.active(1.0) == [b"good"]
    # An old solution must not let it in anew, without its strikes.
    for number in range(60):
        registry.admit(bytes([number]), 1, 1.0)
        registry.leave(bytes([number]))
    assert b"bad" not in registry.surplus(1.0) and len(registry.surplus(1.0)) > 20


def test_a_newcomer_is_not_what_is_forgotten_for_its_own_sake():
    registry = Registry(Clients(minimum=1, maximum=1, silence=30.0))
    for number in range(30):
        name = bytes([number])
        registry.admit(name, 1, 0.0)
        for gone in registry.surplus(0.0):
            registry.forget(gone)
        assert name in registry
        registry.accepted(name)
        registry.leave(name)


def test_without_eviction_nobody_is_put_out():
    registry = Registry(Clients(minimum=1), evict=0)
    registry.admit(b"bad", 1, 0.0)
    for _ in range(100):
        registry.strike(b"bad")
    assert not registry.out(b"bad") and registry.present(b"bad", 0.0)


@given(st.booleans(), st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_the_counts_are_those_of_the_history(judges, history):
    registry = Registry(Clients(minimum=1), judges=judges)
    for number in range(4):
        registry.admit(bytes([number]), 1, 0.0)
    judged, struck, strikes = set(), set(), 0
    for number, strike in history:
        if strike:
            registry.strike(bytes([number]))
            judged.add(number)
            struck.add(number)
            strikes += 1
        else:
            registry.accepted(bytes([number]))
            judged |= {number} if judges else set()
    for number in range(4):
        registry.forget(bytes([number]))
    counts = (registry.judged, registry.struck, registry.strikes)
    assert counts == (len(judged), len(struck), strikes)


def test_a_held_round_is_a_mean_and_an_empty_one_is_nothing():
    aggregator = Aggregator(2)
    assert not aggregator.close_round([]) and aggregator.updates == 0
    kept = aggregator.weights
    aggregator.hold(b"a", np.array([3.0, 0]))
    aggregator.hold(b"a", np.array([-9.0, 0]))  # thought again: it does not count
    aggregator.hold(b"b", np.array([1.0, 2.0]))
    assert aggregator.close_round(list(aggregator.round.values())) and not aggregator.round
    assert np.array_equal(aggregator.weights, [2, 1]) and aggregator.updates == 1
    assert np.array_equal(kept, [0, 0]), "whoever holds the old weights keeps them"


# -- store -------------------------------------------------------------------------------------


def test_what_was_written_is_what_is_read(tmp_path):
    brokerage = make_brokerage(task := make_task())
    player = Player(brokerage)
    player.step(1.0, np.array([0.25, 0, 0, 0.5]))
    changes = brokerage.take_changes(9.0)
    store = Store(tmp_path / "model.db")
    rows, labels = make_data()
    store.keep_task(signed(task), rows, labels)
    store.write(changes)
    store.close()
    again = Store(tmp_path / "model.db")
    kept, kept_rows, kept_labels = again.task()
    assert kept == signed(task)
    assert np.array_equal(kept_rows, rows) and np.array_equal(kept_labels, labels)
    model, sessions = again.state()
    assert sessions == changes.sessions and player.token not in (tmp_path / "model.db").read_bytes()
    assert np.array_equal(model.weights, [0.25, 0, 0, 0.5]) and model.updates == 1
    assert model.seconds == 9.0 and model.best_loss == changes.model.best_loss
    fields = ("judged", "struck", "strikes", "heat", "judging", "ended")
    assert [getattr(model, f) for f in fields] == [getattr(changes.model, f) for f in fields]
    assert model.heat > 0
    assert (tmp_path / "model.db").stat().st_mode & 0o077 == 0
    again.close()


def test_a_task_without_a_validation_set_comes_back_without_one(tmp_path):
    store = Store(tmp_path / "model.db")
    store.keep_task(signed(task := make_task()), np.zeros((0, 4)), np.zeros(0))
    kept, rows, labels = store.task()
    assert kept == signed(task) and rows.size == 0 and len(labels) == 0
    store.close()


def test_a_write_that_fails_changes_nothing_and_says_where(tmp_path):
    brokerage = make_brokerage()
    Player(brokerage)
    store = Store(tmp_path / "model.db")
    store.write(brokerage.take_changes(0.0))
    before = store.state()
    Player(brokerage).step(1.0)
    # Another writer holds the database, and the disk is not asked for ever.
    store._db.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "model.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    changes = brokerage.take_changes(1.0)
    with pytest.raises(Problem) as caught:
        store.write(changes)
    assert "model.db" in caught.value.sentence
    other.execute("ROLLBACK")
    other.close()
    assert store.state()[1] == before[1]
    store.write(changes)
    assert store.state()[0].updates == 1
    store.close()


def test_closing_waits_for_a_thread_that_writes(tmp_path):
    # Without that, SQLite crashed the whole process (seen, in a desk that was stopped).
    brokerage = make_brokerage()
    for number in range(30):
        store = Store(tmp_path / f"{number}.db")
        brokerage.lose_changes(brokerage.take_changes(0.0))
        changes = brokerage.take_changes(0.0)
        begun = threading.Event()

        def write(store=store, changes=changes, begun=begun):
            begun.set()
            with contextlib.suppress(Problem):
                for _ in range(20):
                    store.write(changes)

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait()
        store.close()
        thread.join()
        with pytest.raises(Problem):
            store.write(changes)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "model.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Problem):
        Store(tmp_path / "model.db")


# -- pages -------------------------------------------------------------------------------------


def test_the_page_escapes_what_a_curator_wrote():
    evil = "<script>alert(1)</script>\" onload='x"
    task = make_task(title=evil, description=evil)
    status = Status(
        phase="training", title=evil, task="0" * 64, clients=1, needed=2, updates=3,
        max_updates=10, error=0.25, best_error=0.125, baseline=0.5, judged=1, struck=0, strikes=0,
        seconds=5.0, left=60.0)
    page = status_page(status, task)
    assert "<script" not in page and "onload='" not in page and "&lt;script&gt;" in page
    assert "25.0%" in page and "3 of at most 10" in page


def test_the_desk_names_none_of_its_models():
    assert ".onion" not in desk_page(3, 4) and "3 of 4" in desk_page(3, 4)
