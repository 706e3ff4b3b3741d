"""What ``scripts/rehearse`` says, and how it ends a run, without any host."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from accord.problems import EXIT_USAGE, NO_HOSTS
from lab.field import rehearse
from lab.field.rehearse import command, ended, words

_RUN_STAND_IN = """\
import os, signal, subprocess, sys, time
def stop(*_):
    # Not print: the signal may come while the other one has not returned.
    os.write(1, b"stopping\\n")
    sys.exit(130)
signal.signal(signal.SIGINT, stop if sys.argv[1] == "good" else signal.SIG_IGN)
child = subprocess.Popen(["sleep", "1000"])
print(child.pid, flush=True)
time.sleep(1000)
"""


async def stand_in(kind: str) -> tuple[asyncio.subprocess.Process, int]:
    """Something in place of ``deploy/run``, with a child; that child's number."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _RUN_STAND_IN, kind, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    return child, int(await child.stdout.readline())


async def gone(pid: int) -> bool:
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(
                f"/proc/{pid}/status").read_text():
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_run_that_is_stopped_may_stop_what_it_started() -> None:
    child, inner = await stand_in("good")
    assert await ended(child) == 130
    assert child.stdout is not None
    assert await child.stdout.read() == b"stopping\n"
    assert await gone(inner), "Ctrl-C reaches all of its group, as on a terminal"


async def test_a_run_that_will_not_stop_is_killed_with_all_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rehearse, "_STOPPING", 0.2)
    child, inner = await stand_in("stubborn")
    assert await ended(child) == -signal.SIGKILL
    assert await gone(inner)


@pytest.mark.parametrize("as_json", [False, True])
def test_who_cannot_make_hosts_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, as_json: bool,
) -> None:
    monkeypatch.setattr(rehearse, "refusal", lambda: ("only root can", "type: sudo it"))
    ran = CliRunner().invoke(command, ["--json"] * as_json)
    assert ran.exit_code == NO_HOSTS.exit == EXIT_USAGE
    sentence = "The rehearsal's hosts cannot be brought up: only root can; type: sudo it."
    if as_json:
        assert json.loads(ran.stdout) == {"error": "no-hosts", "sentence": sentence}
    else:
        assert sentence in ran.stderr


def test_help_has_an_example() -> None:
    shown = CliRunner().invoke(command, ["--help"]).output
    assert "sudo scripts/rehearse --quick" in shown


def test_the_summary_says_how_long_each_part_took_and_where_the_plot_is() -> None:
    told = {"seconds": {"hosts": 1.2, "deploy/run": 200.4}, "memory_mb": {"most": 258.2},
            "results": "/r", "plots": ["/r/a.png"]}
    assert words(told) == ("It took: hosts 1 s, deploy/run 200 s.\n"
                           "A host took 258 MB of memory at most.\nResults: /r\nPlot: /r/a.png")
    assert "no plot" in words({**told, "plots": []})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to others")
def test_what_root_made_in_somebodys_checkout_is_given_to_them(tmp_path: Path) -> None:
    checkout, other = tmp_path / "checkout", tmp_path / "other"
    (checkout / "experiments").mkdir(parents=True)
    for path in (checkout / "experiments" / "tables.md", checkout / "theirs", other):
        path.touch()
    (checkout / "link").symlink_to(other)
    rehearse.give_back(checkout)
    assert (checkout / "experiments").stat().st_uid == 0, "it is root's own"
    os.chown(checkout, 1234, 1235)
    os.chown(checkout / "theirs", 4321, 4321)
    rehearse.give_back(checkout)
    for path in (checkout / "experiments", checkout / "experiments" / "tables.md",
                 checkout / "link"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (1234, 1235), path
    assert (checkout / "theirs").stat().st_uid == 4321 and other.stat().st_uid == 0
