"""Plays of deploy/playbooks, by the real Ansible, on hosts with real systemd and sshd.

They need root, and what ``deploy/run`` and ``scripts/rehearse`` install; they fail without.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from accord.problems import BAD_INVENTORY, HOST_AWAY, HOST_FAILED, Problem
from lab.field.hosts import Hosts
from lab.field.inventory import Inventory, read
from lab.field.machines import judge
from lab.field.plays import HOME, Event, Plays, answers, program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def ansible() -> None:
    """deploy/run installs it, and then refuses an experiment that cannot be elsewhere."""
    told = subprocess.run([HOME / "deploy" / "run", "fig5", "--inventory", "none.yml"],
                          capture_output=True, text=True, check=False)
    assert told.returncode == 2, told.stderr
    assert "fig5 runs on one machine" in told.stderr


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    """Two of them."""
    async with Hosts(["broker", "tokyo"]) as up:
        yield up


async def inventory(hosts: Hosts, directory: Path) -> Inventory:
    """Theirs."""
    path = directory / "hosts.yml"
    hosts.inventory(path, {"tokyo": {"tormentor_region": "Tokyo"}}, {})
    return await read(path, program("ansible-inventory"))


def ours(mark: str) -> list[str]:
    """Processes whose environment or command line has a mark: those of one test's plays."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = Path(entry.path, "cmdline").read_bytes()
                if mark.encode() in command + Path(entry.path, "environ").read_bytes():
                    found.append(command.replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found


async def test_answers_come_and_no_connection_stays(hosts: Hosts, tmp_path: Path) -> None:
    there = await inventory(hosts, tmp_path)
    async with Plays(there, tmp_path / "ansible.log", lambda line: None) as plays:
        place = str(plays._place)
        told = answers(await plays.play("check"), "machine")
        assert set(told) == {"broker", "tokyo"}
        for text in told.values():
            machine = judge(text, "Tokyo")
            assert machine.packages == ()
            assert machine.tor
            assert machine.memory > 500
        # Nothing is installed and nothing runs: to stop that is no failure.
        assert all(not event.bad for event in await plays.play("stop"))
    assert ours(place) == []
    assert not Path(place).exists()
    assert "tokyo: tell what it is: ok" in (tmp_path / "ansible.log").read_text()


async def test_a_task_that_fails_is_a_sentence(hosts: Hosts, tmp_path: Path) -> None:
    there = await inventory(hosts, tmp_path)
    async with Plays(there, tmp_path / "ansible.log", lambda line: None) as plays:
        with pytest.raises(Problem) as raised:
            await plays.play("close", {"desk": "direct"})
        assert raised.value.kind is HOST_FAILED
        assert "The machine in broker could not stop the desk: " in raised.value.sentence
        assert "tormentor-broker@direct" in raised.value.sentence


async def test_a_machine_that_is_cut_off_is_told_and_the_others_are_stopped(
        hosts: Hosts, tmp_path: Path) -> None:
    there = await inventory(hosts, tmp_path)
    async with Plays(there, tmp_path / "ansible.log", lambda line: None) as plays:
        await hosts.cut("tokyo")
        with pytest.raises(Problem) as raised:
            await plays.play("check")
        assert raised.value.kind is HOST_AWAY
        assert "The machine in Tokyo (tokyo) does not answer" in raised.value.sentence
        events = await plays.play("stop", tolerant=True)
        assert {event.host: event.outcome for event in events} == {
            "broker": "ok", "tokyo": "unreachable"}
        await hosts.mend("tokyo")
        assert len(answers(await plays.play("check"), "machine")) == 2


async def test_a_race_without_a_result_leaves_its_logs(hosts: Hosts, tmp_path: Path) -> None:
    """What was not there on one machine ended it on all, before anybody's log was fetched."""
    there = await inventory(hosts, tmp_path)
    for name, log in (("broker", "referee"), ("tokyo", "clients")):
        await hosts.run(name, "sh", "-c", "mkdir -p /var/lib/tormentor/race /var/log/tormentor; "
                        f"echo why > /var/log/tormentor/{log}.log")
    async with Plays(there, tmp_path / "ansible.log", lambda line: None) as plays:
        events = await plays.play("collect", {"directory": tmp_path}, tolerant=True)
    assert {"result"} <= {event.answer for event in events if event.bad}
    assert (tmp_path / "broker-referee.log").read_text() == "why\n"
    assert (tmp_path / "tokyo-clients.log").read_text() == "why\n"


async def test_a_play_that_is_cancelled_leaves_no_process_and_stop_stops(
        hosts: Hosts, tmp_path: Path) -> None:
    there = await inventory(hosts, tmp_path)
    # As a controller that was killed leaves it: stand-ins, that sleep, under the units' names.
    for name, unit in (("broker", "tormentor-referee"), ("broker", "tormentor-broker@tor"),
                       ("tokyo", "tormentor-clients")):
        await hosts.run(name, "systemd-run", f"--unit={unit}", "sleep", "600")
    await hosts.run("broker", "sh", "-c",
                    "mkdir -p /var/lib/tormentor/race; "
                    """echo '{"words":"1 s","at":1}' > /var/lib/tormentor/race/progress.json""")
    tries: list[Event] = []
    begun = asyncio.Event()

    def hear(event: Event) -> None:
        tries.append(event)
        if len({each.host for each in tries}) == 2:
            begun.set()

    async with Plays(there, tmp_path / "ansible.log", lambda line: None) as plays:
        place = str(plays._place)
        watching = asyncio.create_task(plays.play(
            "watch", {"looks": 1000, "interval": 1}, hear=hear))
        await asyncio.wait_for(begun.wait(), 60)
        assert {(each.outcome, each.answer) for each in tries} == {
            ("retry", "race"), ("retry", "clients")}
        began = time.monotonic()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert time.monotonic() - began < 12
        assert [line for line in ours(place) if "ansible" in line] == []
        await plays.play("stop")
        for name in ("broker", "tokyo"):
            told = await hosts.run(name, "sh", "-c", "systemctl list-units --no-legend "
                                   "'tormentor-*'; ls /var/lib/tormentor")
            assert "tormentor-" not in str(told)
            assert "race" not in str(told)
    assert ours(place) == []


async def test_an_inventory_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text("all: [\n")
    with pytest.raises(Problem) as raised:
        await read(path, program("ansible-inventory"))
    assert raised.value.kind is BAD_INVENTORY
