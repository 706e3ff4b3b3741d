"""The lab's commands where no tor is needed, and that its commands never outlive who runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import tormentor
from lab.tornet import TorNetwork

HERE = Path(__file__).resolve().parent.parent
NONE = "No network here; start one with: tormentor lab up\n"
DEMO = """
import asyncio, sys
from pathlib import Path
from lab.demo import Command

async def main(place: Path) -> None:
    async with Command(place / "log", "broker", "--json", "--tor", "none", "--listen",
                       sys.argv[2], "--state", place / "broker") as broker:
        await broker.line()
        print(broker._running().pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1])))
"""


def lab(*arguments: object) -> str:
    result = CliRunner().invoke(tormentor.main, ["lab", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("name", ["status", "down"])
def test_where_no_network_was_ever_up(tmp_path: Path, name: str) -> None:
    assert lab(name, "--state", tmp_path / "state") == NONE
    told = json.loads(lab(name, "--json", "--state", tmp_path / "state"))
    assert told in ({"stopped": 0}, told | {"socks": []})
    assert not (tmp_path / "state").exists()


def test_down_removes_what_is_left_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "network"
    network = TorNetwork(place)
    for node in network.status():
        (node.directory / "keys").mkdir(parents=True)
        (node.directory / "tor.log").write_text("...")
    network.extra_torrc.write_text("...")
    (place / "mine").write_text("...")
    assert len(lab("status", "--state", tmp_path).splitlines()) == 8
    told = lab("down", "--state", tmp_path)
    assert "0 tor processes stopped" in told
    assert f"\n  {place}\n" in told
    assert "will stand still" in told
    assert [path.name for path in place.iterdir()] == ["mine"]
    (place / "mine").unlink()
    lab("down", "--state", tmp_path)
    assert not place.exists()
    assert lab("status", "--state", tmp_path) == NONE


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is of Linux")
def test_a_command_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", DEMO, tmp_path, f"127.0.0.1:{port}"],
                          cwd=HERE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            child = int(parent.stdout.readline())
            assert running(child)
        finally:
            parent.kill()
    end = time.monotonic() + 10
    while running(child):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            pytest.fail("it stayed")
        time.sleep(0.05)
