"""Numbers, times and paragraphs as a person reads them."""

from __future__ import annotations

import pytest

from accord.words import duration, number, wrapped


@pytest.mark.parametrize(("value", "text"), [
    (0.01612, "0.0161"), (7.98, "7.98"), (8.0, "8"), (99.94, "99.9"), (999.7, "1,000"),
    (1.5e6, "1,500,000"), (1e-6, "1e-06")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.4, 60, 75, 3_599, 3_605, 3_725, 86_399, 86_400,
                                      90_061)] == [
        "0 s", "59 s", "1 min", "1 min 15 s", "59 min", "1 h", "1 h 2 min", "23 h", "1 d",
        "1 d 1 h"]


def test_paragraphs_break_at_words_and_never_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    path = "/a/very-long/path" * 8
    told = wrapped(f"{'word ' * 40}\n\nThe model is saved as {path}.", 4)
    assert path in told and "\n\n" in told
    assert max(len(line) for line in told.splitlines() if path not in line) <= 80
    assert all(line.startswith("    ") for line in told.split("\n\n")[0].splitlines()[1:])
    monkeypatch.setenv("COLUMNS", "40")
    assert max(len(line) for line in wrapped("word " * 40).splitlines()) <= 40
