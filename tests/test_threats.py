"""THREATS.md names tests that exist, and says of each attack what shows that it is stopped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = (HERE.parent / "THREATS.md").read_text()
NAMED = re.compile(r"[\w/]*test_\w+\.py(?:::\w+)?")
"""A test's file, from tests/ on, and the test; parametrised ids are left off."""


def rows(page: str) -> Iterator[list[str]]:
    """The cells of each row of each table; not of its head, nor of the line below that."""
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    for table in tables:
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def missing(page: str) -> list[str]:
    """Names on the page that are not those of a test."""
    return [name for name in NAMED.findall(page) if not exists(*name.partition("::")[::2])]


def exists(file: str, test: str) -> bool:
    """Whether this file of tests/ has this test."""
    path = HERE / file
    return path.is_file() and re.search(
        rf"^(async )?def {re.escape(test)}\(", path.read_text(), re.MULTILINE) is not None


def unshown(page: str) -> list[str]:
    """Attacks of which it is not said what shows that they are stopped, or that nothing does."""
    return [cells[0] for cells in rows(page)
            if not ("nothing" in cells[-1] or NAMED.search(cells[-1]))]


def test_each_test_that_is_named_exists() -> None:
    assert len(NAMED.findall(PAGE)) > 90
    assert missing(PAGE) == []


def test_each_attack_says_what_shows_it() -> None:
    assert len(list(rows(PAGE))) > 40
    assert len({len(cells) for cells in rows(PAGE)}) == 1, "a cell too few, or a stray '|'"
    assert unshown(PAGE) == []


@pytest.mark.parametrize("name", [
    "test_threats.py::test_nothing_like_it", "test_nothing_like_it.py::test_it", "test_threats.py",
    "test_end_to_end.py::test_a_desk_killed_and_started_again_has_the_same_address",
    "test_threats.py::test_a_slip_is"])
def test_a_slip_is_noticed(name: str) -> None:
    assert missing(f"As `{name}` shows, ") == [name]
    right = "`test_threats.py::test_a_slip_is_noticed`"
    assert missing(f"{right}, `tor/test_end_to_end.py::test_nobody_trains_below_anyones_k_and_the_"
                   "fifth_starts_it`") == []
    table = "| against | shown by |\n|---|---|\n"
    assert unshown(f"{table}| A | {right} |\n| B | |\n| C | nothing: reviewed only |\n") == ["B"]
