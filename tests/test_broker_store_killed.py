"""The store under ``kill -9``, power cuts and full disks: what was acknowledged is there.

The deaths are real ones, see ``tests/killing_store.py``. That SQLite has synced what it says is
its promise for the two settings that are asked for here after each opening.
"""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from killing import examined
from killing_store import changes, found

from accord.problems import DISK, Problem
from broker import rounds, screen, sequential
from broker import store as store_module
from broker.records import Changes
from broker.store import Store

RIGHT = {"kills": 250, "power": 2000, "full": 50}
"""What is examined, and how many deaths, or states after them, it comes to at least."""
WRONG = [("kills", "InParts"), ("kills", "TooSoon"), ("full", "SaysSo")]


@pytest.mark.slow
def test_what_was_acknowledged_is_there_whenever_its_process_is_killed() -> None:
    told = examined("killing_store", [(scenario, "Store") for scenario in RIGHT])
    for (name, one), least in zip(told, RIGHT.values(), strict=True):
        assert one["wrong"] == "", name
        assert one["cases"] >= least, name  # type: ignore[operator]


@pytest.mark.slow
def test_wrong_ones_are_found() -> None:
    missed = [name for name, told in examined("killing_store", WRONG) if not told["wrong"]]
    assert not missed, "the harness cannot find what it is for"


def settings(store: Store) -> tuple[object, ...]:
    return tuple(store._db.execute(f"PRAGMA {name}").fetchone()[0]
                 for name in ("journal_mode", "synchronous"))


def test_each_opening_asks_for_a_synced_log(tmp_path: Path) -> None:
    store = Store(tmp_path / "model.db")
    assert settings(store) == ("wal", 2)
    store.write(changes(1))
    # As a killed process leaves them; and with the log only, as a power cut may.
    for names in (("model.db", "model.db-wal", "model.db-shm"), ("model.db", "model.db-wal")):
        left = tmp_path / str(len(names))
        left.mkdir()
        for name in names:
            shutil.copy(tmp_path / name, left / name)
        again = Store(left / "model.db")
        assert settings(again) == ("wal", 2)
        assert found(again) == 1
        again.close()
    store.close()
    again = Store(tmp_path / "model.db")
    assert settings(again) == ("wal", 2)
    again.close()
    # Whatever the file says, or the library was built with.
    other = sqlite3.connect(tmp_path / "model.db")
    assert other.execute("PRAGMA journal_mode=DELETE").fetchone()[0] == "delete"
    other.close()
    again = Store(tmp_path / "model.db")
    assert settings(again) == ("wal", 2)
    again.close()


def test_a_place_without_a_log_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # SQLite keeps what has this name in memory, and says so only when it is asked.
    with pytest.raises(Problem) as caught:
        Store(Path(":memory:"))
    assert caught.value.kind is DISK and "write-ahead log" in caught.value.sentence


def test_what_another_version_has_written_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.db"
    Store(path).close()
    for change in ("ALTER TABLE session ADD COLUMN later BLOB; PRAGMA user_version=7",
                   "PRAGMA user_version=0"):
        other = sqlite3.connect(path)
        other.executescript(change)
        other.close()
        raw = path.read_bytes()
        with pytest.raises(Problem) as caught:
            Store(path)
        assert "another version" in caught.value.sentence
        assert path.read_bytes() == raw


def test_evidence_of_another_form_is_another_version() -> None:
    """The store cannot see into it: whoever changes these writes another number in the schema."""
    forms = [screen._RECORD, sequential._RECORD, sequential._STATE, rounds._TOTAL]
    assert "form 2" in store_module._SCHEMA
    assert [form.format for form in forms] == ["<qqqdd?", "<ddddddqHB?", "<qd", "<d"]


def test_a_transaction_that_fails_for_any_reason_does_not_refuse_the_next(
    tmp_path: Path
) -> None:
    store = Store(tmp_path / "model.db")
    store.write(changes(1))
    good = changes(2)
    assert good.model is not None
    for wrong in (replace(good.model, updates=1 << 70), replace(good.model, heat=None)):
        with pytest.raises((OverflowError, Problem)):
            store.write(Changes(wrong, good.sessions))  # type: ignore[arg-type]
        assert found(store) == 1
    store.write(good)
    assert found(store) == 2
    store.close()


def test_a_file_that_was_killed_before_it_was_a_database_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "model.db"
    path.touch()
    store = Store(path)
    store.write(changes(1))
    assert found(store) == 1
    store.close()
