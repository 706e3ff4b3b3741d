"""SQLite: what must outlive a crash. The state of a model, never a history of anyone's updates.

WAL with ``synchronous=FULL``: when :meth:`Store.write` returns, the rows are on the disk
(https://www.sqlite.org/pragma.html#pragma_synchronous). Both are asked for again at each opening:
the first is kept in the file, the second is not.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from accord.files import sync_directory
from accord.messages import SignedTask
from accord.problems import DISK, Problem
from broker.records import Changes, ModelRow, SessionRow

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS task (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    body BLOB NOT NULL, curator BLOB NOT NULL, signature BLOB NOT NULL,
    rows BLOB NOT NULL, labels BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS invited (key BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS model (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    phase TEXT NOT NULL, weights BLOB NOT NULL, updates INTEGER NOT NULL,
    best_weights BLOB NOT NULL, best_loss REAL, best_error REAL, improved INTEGER NOT NULL,
    judged INTEGER NOT NULL, struck INTEGER NOT NULL, strikes INTEGER NOT NULL,
    heat REAL NOT NULL, judging BLOB NOT NULL, trained REAL NOT NULL, seconds REAL,
    ended TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS session (
    name BLOB PRIMARY KEY,
    min_clients INTEGER NOT NULL, updates INTEGER NOT NULL, strikes INTEGER NOT NULL,
    worked REAL NOT NULL, evidence BLOB NOT NULL, spent BLOB NOT NULL
    -- evidence, and judging: form 2
) STRICT, WITHOUT ROWID;
"""
_VERSION: Final = zlib.crc32(" ".join(_SCHEMA.split()).encode()) & 0x7FFF_FFFF
"""Of the schema, and so another one for each: SQLite's ``user_version`` (31 bits). The number
of the form of what is opaque here (:meth:`broker.validator.Validator.evidence`) is part of it."""


class Store:
    """One model's database. Creating it makes the file (0600), and has its name on the disk.

    Writes may come from another thread than the rest, as a desk that is stopped cannot stop a
    thread that writes: closing waits for it.

    Raises:
        Problem: ``DISK``, from every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise self._problem(error) from None
        try:
            self._begin()
        except (sqlite3.Error, OSError) as error:
            self._db.close()
            raise self._problem(error) from None

    def _begin(self) -> None:
        self._ask("PRAGMA synchronous=FULL")
        # SQLite does not refuse what a file system cannot do: it says what it does instead.
        if self._ask("PRAGMA journal_mode=WAL") != "wal" or self._ask("PRAGMA synchronous") != 2:
            raise OSError("SQLite keeps no write-ahead log in this place")
        if self._ask("SELECT count(*) FROM sqlite_schema") == 0:
            self._db.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT")
        elif self._ask("PRAGMA user_version") != _VERSION:
            raise OSError("another version of TorMentor has written it")
        elif (found := self._ask("PRAGMA quick_check(1)")) != "ok":
            raise OSError(f"it is damaged ({found})")
        sync_directory(self._path.parent)

    def _ask(self, what: str) -> object:
        """The one value of an answer; None when there is none."""
        row = self._db.execute(what).fetchone()
        return row[0] if row else None

    def _problem(self, error: Exception) -> Problem:
        return Problem(DISK, path=self._path, why=str(error))

    def keep_task(
        self, signed: SignedTask, rows: np.ndarray, labels: np.ndarray,
        invited: Sequence[bytes] = (),
    ) -> None:
        """Write the task, its validation set, and the keys of those who are invited, once."""
        with self._transaction():
            self._db.executemany("INSERT INTO invited VALUES (?)", [(key,) for key in invited])
            self._db.execute(
                "INSERT INTO task VALUES (1, ?, ?, ?, ?, ?)",
                (signed.body, signed.curator, signed.signature,
                 rows.astype("<f4").tobytes(), labels.astype("u1").tobytes()),
            )

    def invited(self) -> list[bytes]:
        """The keys of those who alone can reach the model; none for everybody."""
        try:
            return [key for (key,) in self._db.execute("SELECT key FROM invited")]
        except sqlite3.Error as error:
            raise self._problem(error) from None

    def task(self) -> tuple[SignedTask, np.ndarray, np.ndarray] | None:
        """The task, the validation rows (n, d) and labels (n,), (0, 0) and (0,) for no validation
        set; None before it was kept."""
        try:
            row = self._db.execute("SELECT * FROM task").fetchone()
        except sqlite3.Error as error:
            raise self._problem(error) from None
        if row is None:
            return None
        _, body, curator, signature, cells, labels = row
        answers = np.frombuffer(labels, dtype="u1").astype(np.float64)
        rows = np.frombuffer(cells, dtype="<f4").astype(np.float64)
        rows = rows.reshape(len(answers), -1 if len(answers) else 0)
        return SignedTask(body, curator, signature), rows, answers

    def write(self, changes: Changes) -> None:
        """Bring changes to the disk, all of them or none."""
        with self._transaction():
            if changes.model is not None:
                self._write_model(changes.model)
            # Each statement lets the loop's thread in, and then has to wait for it.
            if changes.forgotten:
                self._db.executemany(
                    "DELETE FROM session WHERE name = ?", [(n,) for n in changes.forgotten])
            self._db.executemany(
                "INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(s.name, s.min_clients, s.updates, s.strikes, s.worked, s.evidence, s.spent)
                 for s in changes.sessions],
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """What is written within it is written as a whole, or not at all."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._problem(error) from None

    def _write_model(self, m: ModelRow) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO model VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (m.phase, m.weights.tobytes(), m.updates, m.best_weights.tobytes(), m.best_loss,
             m.best_error, m.improved, m.judged, m.struck, m.strikes, m.heat, m.judging,
             m.trained, m.seconds, m.ended),
        )

    def state(self) -> tuple[ModelRow, list[SessionRow]] | None:
        """What was last written; None before anything was."""
        try:
            row = self._db.execute("SELECT * FROM model").fetchone()
            sessions = self._db.execute("SELECT * FROM session").fetchall()
        except sqlite3.Error as error:
            raise self._problem(error) from None
        if row is None:
            return None
        _, phase, weights, updates, best, *rest = row
        try:
            model = ModelRow(
                phase, np.frombuffer(weights, np.float64), updates,
                np.frombuffer(best, np.float64), *rest)
        except ValueError as error:
            raise self._problem(error) from None
        return model, [SessionRow(*s) for s in sessions]

    def close(self) -> None:
        """Let go of the file, once nothing is being written any more."""
        with self._lock:
            self._db.close()
