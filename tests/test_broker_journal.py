"""The broker's log does not grow without end, and says what it leaves out."""

from __future__ import annotations

import io
import logging

import pytest

from broker.journal import Short, Sparse, open_journal
from broker.limits import LOG_CHARACTERS


def record(text: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("tormentor.broker", logging.INFO, "", 0, text, values, None)


def test_so_many_entries_a_minute_and_the_next_one_counts_the_rest():
    now = 0.0
    sparse = Sparse(lambda: now, lines=6)
    assert [sparse.filter(record("%d", i)) for i in range(9)] == [True] * 6 + [False] * 3
    now = 10.0
    late = record("%d %% full", 7)
    assert sparse.filter(late) and late.getMessage() == "(3 entries were left out.) 7 % full"
    assert not sparse.filter(record("x"))
    now = 60.0
    last = record("y")
    assert sparse.filter(last) and last.getMessage() == "(1 entries were left out.) y"


def test_a_long_entry_is_cut_and_keeps_its_end():
    text = Short("%(message)s").format(record("x" * 100_000 + " the end"))
    assert len(text) < LOG_CHARACTERS + 60 and text.endswith(" the end") and "98008" in text
    assert Short("%(message)s").format(record("short")) == "short"


def test_an_open_journal_has_its_own_words_only(monkeypatch: pytest.MonkeyPatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    levels = {name: logging.getLogger(name).level for name in ("aiohttp", "stem", "asyncio")}
    stream = io.StringIO()
    try:
        open_journal(stream)
        for _ in range(10_000):
            logging.getLogger("tormentor.broker").info("A model is %s.", "gone")
        logging.getLogger("aiohttp.server").error("Somebody said this")
        logging.getLogger("asyncio").error("and that")
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        root.setLevel(logging.WARNING)
    lines = stream.getvalue().splitlines()
    assert 60 <= len(lines) < 100
    assert set(lines[:60]) == {"A model is gone."} and "Somebody" not in stream.getvalue()
