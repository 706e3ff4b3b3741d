"""The session file, and the whole way in at the door, under ``kill -9``, full disks and power cuts.

After each death there is the old session or the new one, whole, and its owner's only; and whoever
goes on has the place at the broker that was asked for before. See ``tests/killing_entry.py``, and
``tests/test_client_ledger_killed.py`` for the deaths of a single writing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from killing import examined

from accord.files import STALE, write_whole

WRONG = [
    # A puzzle that is not kept before its solution is sent costs a place, each in its way.
    ("entries", "Forgets"), ("entries", "in_place"), ("entries", "unsynced"),
]


@pytest.mark.slow
def test_a_client_that_dies_on_its_way_in_gets_the_same_place_again() -> None:
    for name, told in examined("killing_entry", [("entries", "Agent")]):
        assert told["wrong"] == "", name
        assert told["cases"] >= 80, name  # type: ignore[operator]


@pytest.mark.slow
def test_wrong_ones_are_found() -> None:
    missed = [name for name, told in examined("killing_entry", WRONG) if not told["wrong"]]
    assert not missed, "the harness cannot find what it is for"


def test_what_killed_writers_left_does_not_pile_up(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    old = time.time() - STALE - 1
    strays = [tmp_path / f".session.json.{number:08x}" for number in range(3)]
    others = [tmp_path / name for name in (
        ".session.json.lock", ".session.json.00000000.x", "session.json.00000000",
        ".session.json.0000000g", ".other.json.00000000")]
    young = tmp_path / ".session.json.ffffffff"
    for each in (*strays, *others, young):
        each.write_bytes(b"half")
        if each != young:
            os.utime(each, (old, old))
    write_whole(path, b"new", 0o600)
    assert sorted(tmp_path.iterdir()) == sorted([path, young, *others])
    assert path.read_bytes() == b"new"
