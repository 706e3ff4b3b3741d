"""The parts of the brokerage, its store and its page, one by one."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import numpy as np
import pytest
from broker_world import DIMENSION, Player, make_brokerage, make_data, make_task, signed
from hypothesis import given
from hypothesis import strategies as st

from accord.messages import Status
from accord.objective import OBJECTIVES
from accord.problems import PeerProblem, Problem
from accord.task import Clients, Validation
from broker.aggregator import Aggregator
from broker.page import desk_page, status_page
from broker.registry import Registry
from broker.store import Store
from broker.validator import Validator

NAMES = [b"a", b"b", b"c"]


# -- validator ---------------------------------------------------------------------------------


def make_validator(**rules: object) -> Validator:
    defaults = {"rate": 0.5, "threshold": 0.1, "metric": "error", "seconds": 30.0}
    return Validator(OBJECTIVES["logistic"], *make_data(), Validation(**(defaults | rules)))


def test_a_round_begins_with_the_probability_of_its_rate():
    validator = make_validator(rate=0.25)
    assert not validator.begin(np.zeros(DIMENSION), NAMES, 0.0, 0.25)
    assert validator.begin(np.zeros(DIMENSION), NAMES, 0.0, 0.2499)
    assert not validator.begin(np.zeros(DIMENSION), NAMES, 0.0, 0.0), "one round at a time"


def test_the_snapshot_is_a_copy():
    validator = make_validator()
    weights = np.zeros(DIMENSION)
    validator.begin(weights, NAMES, 0.0, 0.0)
    weights += 1
    assert np.array_equal(validator.snapshot_for(b"a"), np.zeros(DIMENSION))


@pytest.mark.parametrize("metric", ["error", "loss"])
def test_influence_is_what_the_paper_says(metric):
    validator = make_validator(metric=metric, threshold=1e-9)
    start = np.array([0.3, 0.1, 0, 0])
    deltas = {b"a": np.array([0.5, 0, 0, 0]), b"b": np.array([-1.0, 0, 0, 0]), b"c": np.zeros(4)}
    validator.begin(start, NAMES, 0.0, 0.0)
    for name, delta in deltas.items():
        assert validator.settle(1.0) is None
        assert validator.answer(name, validator.snapshot_for(name), delta) == []
    rows, labels = make_data()
    one = getattr(OBJECTIVES["logistic"], metric)
    before = one(start[None], rows, labels)[0]
    expected = {n: before - one((start + d)[None], rows, labels)[0] for n, d in deltas.items()}
    assert expected[b"b"] < 0 and expected[b"c"] == 0
    struck = validator.settle(1.0)
    assert struck == [n for n in NAMES if expected[n] < -1e-9] and b"b" in struck


def test_good_influence_cannot_be_saved_up_for_an_attack():
    validator = make_validator(metric="loss", threshold=0.2)
    for _ in range(20):
        validator.begin(np.zeros(DIMENSION), [b"a"], 0.0, 0.0)
        validator.answer(b"a", validator.snapshot_for(b"a"), np.array([1.0, 0, 0, 0]))
        assert validator.settle(0.0) == []
    validator.begin(np.zeros(DIMENSION), [b"a"], 0.0, 0.0)
    validator.answer(b"a", validator.snapshot_for(b"a"), np.array([-1.0, 0, 0, 0]))
    assert validator.settle(0.0) == [b"a"]


def test_small_harm_adds_up_over_rounds():
    validator = make_validator(metric="loss", threshold=0.2)
    struck = []
    for _ in range(10):
        validator.begin(np.zeros(DIMENSION), [b"a"], 0.0, 0.0)
        validator.answer(b"a", validator.snapshot_for(b"a"), np.array([-0.1, 0, 0, 0]))
        struck.append(bool(validator.settle(0.0)))
    assert not struck[0] and any(struck)
    assert sum(struck) < 5, "a strike uses up its evidence"


def test_a_second_answer_counts_for_nothing_and_a_late_one_is_judged_all_the_same():
    validator = make_validator(threshold=1e-9)
    harm = np.array([-1.0, 0, 0, 0])
    validator.begin(np.array([1.0, 0, 0, 0]), [b"a", b"b"], 0.0, 0.0)
    snapshot = validator.snapshot_for(b"b")
    assert validator.answer(b"a", snapshot, np.zeros(DIMENSION)) == []
    assert validator.answer(b"a", snapshot, harm) == []
    assert validator.settle(30.0) == []
    # Waiting until the round has closed is no way out, nor is another round being open by then.
    validator.begin(np.zeros(DIMENSION), [b"a", b"b"], 31.0, 0.0)
    assert validator.answer(b"b", snapshot, harm) == [b"b"]
    assert b"b" in validator.round.waiting


def test_many_rows_are_judged_piece_by_piece_with_the_same_result(monkeypatch):
    whole = make_validator(metric="loss", threshold=1e-9)
    pieces = make_validator(metric="loss", threshold=1e-9)
    monkeypatch.setattr("broker.validator._CELLS", 7)
    models = np.random.default_rng(5).normal(size=(3, DIMENSION))
    expected = OBJECTIVES["logistic"].loss(models, *make_data())
    assert np.allclose(pieces._scores(models), expected, rtol=1e-12)
    assert np.allclose(whole._scores(models), expected, rtol=1e-12)


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
    gone = registry.surplus()
    assert len(gone) == 24 and not {names[0], names[1], names[3]} & set(gone)
    for name in gone:
        registry.forget(name)
    assert registry.surplus() == [] and registry.admit(b"new", 1, 40.0)


def test_a_held_round_is_a_mean_and_an_empty_one_is_nothing():
    aggregator = Aggregator(2)
    assert aggregator.close_round() == [] and aggregator.updates == 0
    kept = aggregator.weights
    aggregator.hold(b"a", np.array([3.0, 0]))
    aggregator.hold(b"a", np.array([-9.0, 0]))  # thought again: it does not count
    aggregator.hold(b"b", np.array([1.0, 2.0]))
    assert sorted(aggregator.close_round()) == [b"a", b"b"]
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
    assert (tmp_path / "model.db").stat().st_mode & 0o077 == 0
    again.close()


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
    status = Status("training", evil, "0" * 64, 1, 2, 3, 10, 0.25, 0.125, 0.5, 1, 0, 5.0, 60.0)
    page = status_page(status, task)
    assert "<script" not in page and "onload='" not in page and "&lt;script&gt;" in page
    assert "25.0%" in page and "3 of at most 10" in page


def test_the_desk_names_none_of_its_models():
    assert ".onion" not in desk_page(3, 4) and "3 of 4" in desk_page(3, 4)
