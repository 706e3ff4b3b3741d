"""Hosts on one machine: each its own, all of them gone afterwards, whatever happens to us."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from field_world import left_over, needs_root

from accord.problems import NO_HOSTS, Problem
from lab.field import hosts as hosts_module
from lab.field.hosts import Hosts, _free_network

# -- what needs no host ----------------------------------------------------------------------


@pytest.mark.parametrize(("platform", "user", "missing", "said"), [
    ("darwin", 0, [], "no Linux"),
    ("linux", 1000, [], "only root .* sudo scripts/rehearse"),
    ("linux", 0, ["systemd-container"], "systemd-container .* scripts/rehearse installs"),
])
async def test_where_there_can_be_none_a_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, platform: str, user: int, missing: list[str], said: str,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(hosts_module, "missing", lambda: missing)
    with pytest.raises(Problem) as refused:
        async with Hosts(["one"]):
            pass
    assert refused.value.kind is NO_HOSTS
    assert re.search(said, refused.value.sentence)


def routes(*destinations: str) -> str:
    return msgspec.json.encode([{"dst": each} for each in destinations]).decode()


def test_their_network_is_one_that_no_route_leads_to() -> None:
    assert str(_free_network(routes("default"), 0)) == "10.77.64.0/24"
    assert str(_free_network(routes("default"), 1)) == "10.77.65.0/24"
    taken = routes("default", "10.77.64.0/24", "10.77.72.9", "192.0.2.0/24")
    assert str(_free_network(taken, 0)) == "10.77.80.0/24"
    with pytest.raises(Problem, match="in use here"):
        _free_network(routes("10.0.0.0/8"), 0)


# -- hosts -----------------------------------------------------------------------------------


@needs_root
@pytest.mark.slow
async def test_each_has_an_init_an_address_and_files_of_its_own_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    (tmp_path / "seen").write_text("by all\n")
    async with Hosts(["one", "two"], binds={tmp_path: "/srv/ours"}) as hosts:
        slot = int(hosts.key.parent.name)
        assert left_over(slot) != []
        for host in hosts.hosts:
            name = host.name
            assert await hosts.run(name, "cat", "/proc/1/comm") == "systemd\n"
            assert await hosts.run(name, "hostname") == f"{name}\n"
            assert (await hosts.run(name, "systemctl", "is-system-running")).strip() == "running"
            addresses = await hosts.run(name, "ip", "-br", "-4", "address")
            assert f"{host.address}/24" in addresses
            # Of this machine's services, keys and passwords there are none; nor a way beyond.
            enabled = await hosts.run(name, "ls", "/etc/systemd/system")
            assert set(enabled.split()) == {"network.service", "rehearsal.target", "ssh.service"}
            listening = await hosts.run(name, "ss", "-Hltn")
            assert {line.split()[3].rpartition(":")[2] for line in listening.splitlines()} == {"22"}
            assert {line.split(":")[1] for line in (
                await hosts.run(name, "cat", "/etc/shadow")).splitlines()} == {"*"}
            assert "default" not in await hosts.run(name, "ip", "route")
            assert await hosts.run(name, "cat", "/srv/ours/seen") == "by all\n"
        ids = {await hosts.run(name, "cat", "/etc/machine-id") for name in ("one", "two")}
        assert len(ids) == 2
        await hosts.run("one", "touch", "/etc/tormentor/of-one")
        assert await hosts.run("two", "ls", "/etc/tormentor") == ""
        assert not Path("/etc/tormentor/of-one").exists()
        assert hosts.key.stat().st_mode & 0o077 == 0
        assert all(count > 1e6 for count in hosts.memory().values())
    assert left_over(slot) == []


@needs_root
@pytest.mark.slow
async def test_their_units_are_hardened_by_the_real_thing() -> None:
    async with Hosts(["one"]) as hosts:
        told = await hosts.run(
            "one", "systemd-run", "--wait", "--pipe", "--quiet", "-p", "NoNewPrivileges=yes",
            "-p", "ProtectSystem=strict", "-p", "SystemCallFilter=@system-service", "sh", "-c",
            "touch /etc/mine && echo written; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status")
        assert "written" not in told
        assert "NoNewPrivs:\t1" in told
        assert "Seccomp:\t2" in told


@needs_root
@pytest.mark.slow
async def test_a_cable_that_is_cut_and_mended() -> None:
    async with Hosts(["one", "two"]) as hosts:
        await hosts.cut("two")
        with pytest.raises(OSError):
            async with asyncio.timeout(2):
                await asyncio.open_connection(hosts["two"].address, 22)
        assert await hosts.run("one", "hostname") == "one\n"
        await hosts.mend("two")
        assert await hosts.run("two", "hostname") == "two\n"


@needs_root
@pytest.mark.slow
async def test_one_that_switched_itself_off_boots_again_with_its_files() -> None:
    async with Hosts(["one"]) as hosts:
        await hosts.run("one", "sh", "-c", "echo mine > /etc/mine; systemctl poweroff", check=False)
        async with asyncio.timeout(30):
            while hosts.up("one"):
                await asyncio.sleep(0.1)
        await hosts.boot_again("one")
        assert await hosts.run("one", "cat", "/etc/mine") == "mine\n"


@needs_root
@pytest.mark.slow
async def test_on_a_layered_file_system_they_live_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosts_module, "_layered", lambda place: True)
    async with Hosts(["one"]) as hosts:
        slot = int(hosts.key.parent.name)
        assert hosts.key.parent.is_mount()
        assert await hosts.run("one", "hostname") == "one\n"
    assert left_over(slot) == []


@needs_root
@pytest.mark.slow
async def test_two_sets_at_once_are_in_nobodys_way() -> None:
    async with Hosts(["one"]) as these, Hosts(["one"]) as others:
        assert these.gateway != others.gateway
        assert await these.run("one", "hostname") == await others.run("one", "hostname")
        slots = [int(each.key.parent.name) for each in (these, others)]
    assert [left_over(slot) for slot in slots] == [[], []]


_KILLED = """\
import asyncio
from lab.field.hosts import Hosts
async def main():
    async with Hosts(["one", "two"]) as hosts:
        print(hosts.key.parent.name, flush=True)
        await asyncio.sleep(1000)
asyncio.run(main())
"""


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
async def test_they_end_with_whoever_started_them(sign: signal.Signals) -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", _KILLED,
                                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    slot = int(await child.stdout.readline())
    assert any(each.startswith("process") for each in left_over(slot))
    child.send_signal(sign)
    await child.wait()
    end = time.monotonic() + 5
    while (left := left_over(slot)) and time.monotonic() < end:
        await asyncio.sleep(0.1)
        if sign == signal.SIGKILL and not any(
                each.startswith(("process", "mount", "link vb-")) for each in left):
            break
    if sign == signal.SIGINT:
        assert left == []
        return
    # The bridge, an empty group and files are left: the next ones remove them.
    assert not any(each.startswith(("process", "mount", "link vb-")) for each in left), left
    assert left
    lock, _ = hosts_module._free_slot()
    with lock:
        assert left_over(slot) == []
