"""The privacy ledger and the session file under ``kill -9`` and power cuts, at every instant.

Real processes die around, and in the middle of, each system call that the ledger makes; see
``tests/killing.py`` for how, and for what is then looked at: opening again never fails, what was
sent is counted, nothing is counted that was not begun, and one can go on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MEMORY = Path("/dev/shm")
"""Where it is there, no real disk is waited for: what a disk keeps is modelled anyhow."""
RIGHT = {
    ("calls", "Ledger"): 500, ("torn", "Ledger"): 300, ("troubles", "Ledger"): 300,
    ("recoveries", "Ledger"): 300, ("successors", "Ledger"): 10, ("sessions", "write_whole"): 50}
"""What is examined, and how many different states it comes to at least."""
WRONG = [
    # None of these is an invention: each is a mistake that a change could make.
    ("calls", "NeverSyncs"), ("successors", "NeverSyncs"), ("recoveries", "NeverSyncs"),
    ("calls", "SyncsTheFirst"), ("torn", "SyncsTheFirst"),
    ("calls", "CutsTooMuch"), ("torn", "CutsTooMuch"), ("recoveries", "CutsTooMuch"),
    ("torn", "WritesLater"), ("calls", "NoNames"), ("successors", "NoNames"), ("torn", "Fussy"),
    ("torn", "CountsTwice"), ("sessions", "in_place"), ("sessions", "unsynced"),
]


def run(runs: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, object]]]:
    """Each scenario with what came of it."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as home:
        done = subprocess.run(
            [sys.executable, "-m", "killing", home, *(word for run in runs for word in run)],
            capture_output=True, text=True, timeout=240,
            env=os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"})
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(runs)
    return zip((" ".join(run) for run in runs), lines, strict=True)


@pytest.mark.slow
def test_ledger_and_session_hold_whenever_their_process_is_killed() -> None:
    for (name, told), least in zip(run(list(RIGHT)), RIGHT.values(), strict=True):
        assert told["wrong"] == "", name
        assert told["cases"] >= least, name  # type: ignore[operator]


@pytest.mark.slow
def test_wrong_ones_are_found() -> None:
    missed = [name for name, told in run(WRONG) if not told["wrong"]]
    assert not missed, "the harness cannot find what it is for"
