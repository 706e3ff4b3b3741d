"""``deploy/run`` over hosts on this machine: to a plot, through Ctrl-C, and through a cut cable.

What they run is what ``scripts/rehearse --quick`` runs: real systemd, sshd, Ansible, pip and tors.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from field_world import left_over, needs_root

from accord.problems import EXIT_INTERRUPTED
from lab.field.rehearse import BROKER, Stage, ended, stage

pytestmark = [pytest.mark.slow, needs_root]


@pytest.fixture(scope="module")
def here() -> Iterator[Stage]:
    """Three hosts and a network, in an event loop of their own; nothing is left in the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="stage", daemon=True)
    thread.start()
    # Sockets are in it: a path for tests would be too long.
    with TemporaryDirectory(prefix="rehearsal-", ignore_cleanup_errors=True) as place:
        standing = stage(Path(place), 3)
        here = asyncio.run_coroutine_threadsafe(standing.__aenter__(), loop).result(600)
        slot = int(here.hosts.key.parent.name)
        try:
            yield here
        finally:
            asyncio.run_coroutine_threadsafe(
                standing.__aexit__(None, None, None), loop).result(120)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
    assert left_over(slot) == []


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all tests here: what is finished in one, the next need not repeat."""
    return tmp_path_factory.mktemp("results") / "rehearsal"


class Run:
    """``deploy/run`` in its course: what it says, line by line."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.lines: list[str] = []

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    async def until(self, pattern: str, seconds: float = 240.0) -> None:
        """Read on to the line that has a pattern in it."""
        assert self.child.stderr is not None
        async with asyncio.timeout(seconds):
            while line := (await self.child.stderr.readline()).decode():
                self.lines.append(line.rstrip())
                if re.search(pattern, line):
                    return
        raise AssertionError(f"it ended without saying {pattern!r}:\n{self.text}")

    async def end(self, seconds: float = 240.0) -> int:
        """Read on to the end; its exit status."""
        assert self.child.stderr is not None
        async with asyncio.timeout(seconds):
            rest = (await self.child.stderr.read()).decode()
            self.lines += rest.splitlines()
            return await self.child.wait()


@asynccontextmanager
async def deployed(
    here: Stage, output: Path, experiment: str = "rehearsal"
) -> AsyncIterator[Run]:
    """``deploy/run rehearsal --quick``; ended in the end, whatever happens."""
    child = await here.run(experiment, "--quick", "--output", str(output),
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield Run(child)
    finally:
        if child.returncode is None:
            await ended(child)


async def active(here: Stage, name: str) -> list[str]:
    """Units of ours that are active on a host, and processes of its user, such as a tor."""
    units = await here.hosts.run(name, "systemctl", "list-units", "--no-legend", "--plain",
                                 "--state=active,activating,deactivating", "tormentor-*")
    processes = await here.hosts.run(name, "pgrep", "-a", "-u", "tormentor", check=False)
    return [*units.splitlines(), *processes.splitlines()]


async def joining(here: Stage, name: str, seconds: float = 120.0) -> None:
    """Wait until clients run on a host."""
    end = time.monotonic() + seconds
    while not any("tormentor-clients" in line for line in await active(here, name)):
        assert time.monotonic() < end, "no clients"
        await asyncio.sleep(0.5)


async def training(here: Stage, seconds: float = 240.0) -> None:
    """Wait until the referee has seen updates."""
    end = time.monotonic() + seconds
    words = ""
    while "updates" not in words:
        assert time.monotonic() < end, words
        await asyncio.sleep(0.2)
        words = await here.hosts.run(
            BROKER, "cat", "/var/lib/tormentor/race/progress.json", check=False)


def finished(output: Path) -> list[bool]:
    """Of the cells that are finished: whether with Tor."""
    path = output / "cells.jsonl"
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [each["cell"]["tor"] for each in found if "cell" in each]


@pytest.fixture
def direct(tmp_path: Path) -> str:
    """An experiment file: the race without Tor only."""
    path = tmp_path / "direct.toml"
    path.write_text('experiment = "rehearsal"\n[cells]\ntor = [false]\n')
    return str(path)


async def test_ctrl_c_in_a_race_stops_everything_on_all_hosts(
    here: Stage, output: Path, direct: str
) -> None:
    async with deployed(here, output, direct) as run:
        await run.until("no Tor.*: clients are joining", 420)
        await joining(here, "osaka")
        os.killpg(run.child.pid, signal.SIGINT)
        assert await run.end() == EXIT_INTERRUPTED, run.text
    assert "Everything is stopped." in run.text
    for host in here.hosts.hosts:
        assert await active(here, host.name) == []
    assert finished(output) == []


async def test_a_file_says_which_races_are_run(here: Stage, output: Path, direct: str) -> None:
    async with deployed(here, output, direct) as run:
        assert await run.end(420) == 0, run.text
    assert finished(output) == [False]
    for host in here.hosts.hosts:
        assert await active(here, host.name) == []


async def test_a_cut_cable_is_told_stops_the_others_and_the_same_command_completes(
    here: Stage, output: Path,
) -> None:
    async with deployed(here, output) as run:
        await run.until("through Tor.*: clients are joining", 420)
        await training(here)
        await here.hosts.cut("osaka")
        try:
            assert await run.end(420) != 0, run.text
            for name in (BROKER, "iowa"):
                assert await active(here, name) == []
        finally:
            await here.hosts.mend("osaka")
    assert re.search(r"^Error: .*Osaka \(osaka\)", run.text, re.M), run.text
    assert finished(output) == [False]

    async with deployed(here, output) as again:
        assert await again.end(420) == 0, again.text
    assert "no Tor, ours, seed 0: curating" not in again.text, "that is done"
    assert finished(output) == [False, True]
    # What may have gone on there without us is ended too.
    for host in here.hosts.hosts:
        assert await active(here, host.name) == []
    _whole(output)


def _whole(output: Path) -> None:
    """All that a run leaves, with sound values."""
    for name in ("rehearsal-tor.png", "rehearsal-direct.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    told = json.loads((output / "results.json").read_text())
    assert len(told["cells"]) == 2
    for each in told["cells"]:
        curve = each["result"]["curve"]
        assert curve[-1][2] < curve[0][2], "something is learnt"
        assert each["result"]["latency"]["failed"] == 0
    median = {each["cell"]["tor"]: each["result"]["latency"]["median_ms"]
              for each in told["cells"]}
    # Iowa and Osaka are 52 and 110 ms away; through Tor it is seven links, each of some length.
    assert 52 <= median[False] < 250
    assert median[True] > 300
    assert {each["result"]["arrived"] is not None for each in told["cells"]} == {True}
    assert (output / "latency.json").stat().st_size > 100
    logs = {path.parent.name for path in (output / "logs").rglob("*") if path.is_file()}
    assert logs
