"""What a hostile review of deploy/ found: each was a defect, and is none any more."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from test_deploy_azure import ROOT, STANDIN, VM, World, parser, world

import lab.field.world as field
from accord.problems import Problem
from lab.demo import Failed
from lab.field.inventory import Host, Inventory
from lab.field.looks import Looks
from lab.field.plays import Event
from lab.race import Race

if TYPE_CHECKING:
    from lab.credit import Table
    from lab.field.plays import Plays

PLAYBOOKS = ROOT / "deploy" / "playbooks"
ANSIBLE = ROOT / ".deploy" / "bin" / "ansible-playbook"
__all__ = ["parser", "world"]


def instead(world: World, name: str, script: str) -> None:
    """Have a program of another behaviour come before the real one."""
    place = world.place / "instead"
    place.mkdir(exist_ok=True)
    (place / name).write_text("#!/bin/bash\n" + script)
    (place / name).chmod(0o755)
    if not world.environment["PATH"].startswith(str(place)):
        world.environment["PATH"] = f"{place}:{world.environment['PATH']}"


def until(process: subprocess.Popen[str], words: str) -> str:
    """What it said, until it said that."""
    said = ""
    assert process.stderr is not None
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def other_subscription(world: World) -> None:
    """From now on az is set to another one, which is empty; the first answers to its id only."""
    instead(world, "az", f"""
        case " $* " in *" --subscription 00000000-0000-0000-0000-000000000000 "*)
          exec {shlex.quote(str(STANDIN / "az"))} "$@" ;; esac
        case "$1 $2" in
          'account show') printf '11111111-0000-0000-0000-000000000000\\tOther\\n' ;;
          'group exists') echo false ;;
          'group list') case " $* " in *' tsv '*) ;; *) echo '[]' ;; esac ;;
          *) echo 'ERROR: not of the other subscription' >&2; exit 1 ;;
        esac
        """)


# -- money -----------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_run_in_another_subscription_is_not_said_to_be_gone(world: World) -> None:
    world.provision(regions="tokyo")
    path = world.environment["PATH"]
    other_subscription(world)
    told = world.run("teardown", "monday", status=4)
    assert "is in the subscription 00000000-0000-0000-0000-000000000000" in told.err
    assert "az account set --subscription 00000000-0000-0000-0000-000000000000" in told.err
    assert (world.runs / "monday" / "key").exists()
    told = world.run("provision", "monday", "--yes", "--ssh-from", "any", status=4)
    assert "is in the subscription" in told.err
    assert world.run("status", "monday", status=4)
    shown = world.run("status").out
    assert "WHICH WAS NOT ASKED" in shown
    assert "its machines are gone" not in shown
    world.environment["PATH"] = path
    world.run("teardown", "monday")
    assert world.model["groups"] == {}


@pytest.mark.slow
def test_each_call_names_the_subscription(world: World) -> None:
    world.provision(regions="tokyo")
    for call in world.calls:
        assert call["args"][0] == "account" or "--subscription" in call["args"], call


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_leaves_no_machine_that_nobody_arms(world: World, number: int) -> None:
    """It was so: its parts went on without their directory, and could neither arm nor delete."""
    world.faults({"command": "vm create", "where": ["japaneast"], "fault": "slow", "seconds": 6})
    process = subprocess.Popen(
        [str(ROOT / "deploy" / "azure" / "provision"), "monday", "--ssh-from", "any", "--yes",
         "--regions", "tokyo", "--patience", "30s"], stderr=subprocess.PIPE, text=True,
        env=world.environment, start_new_session=True)
    assert process.stderr is not None
    said = until(process, "tokyo (japaneast): is being made")
    while "tokyo" not in world.of(VM):
        time.sleep(0.1)
    process.send_signal(number)
    said += process.stderr.read()
    assert process.wait(20) == 130, said
    assert "may have no time bomb" in said
    assert "deploy/azure/teardown monday" in said
    world.faults()
    world.provision(regions="tokyo")
    world.complete("tokyo")


@pytest.mark.slow
def test_a_failed_machine_is_deleted_though_nobody_listens(world: World) -> None:
    """As with ``provision ... 2>&1 | head``: what was said was a signal that ended the tidying."""
    world.faults({"command": "vm auto-shutdown", "where": ["tokyo"], "fault": "authorization"})
    process = subprocess.Popen(
        [str(ROOT / "deploy" / "azure" / "provision"), "monday", "--ssh-from", "any", "--yes",
         "--regions", "tokyo", "--patience", "30s"], stderr=subprocess.PIPE, text=True,
        env=world.environment, start_new_session=True)
    assert process.stderr is not None
    until(process, "tokyo (japaneast): is being made")
    process.stderr.close()
    assert process.wait(60) == 3
    assert set(world.of(VM)) == {"broker"}


@pytest.mark.slow
def test_no_machine_gets_a_bomb_that_goes_off_a_day_later(world: World) -> None:
    """The shutdown is a time of day: where making took past the deadline, it is tomorrow's."""
    instead(world, "date", 'exec /usr/bin/date "$@"')
    world.faults({"command": "vm create", "where": ["japaneast"], "fault": "slow", "seconds": 3})
    process = subprocess.Popen(
        [str(ROOT / "deploy" / "azure" / "provision"), "monday", "--ssh-from", "any", "--yes",
         "--regions", "tokyo", "--patience", "30s", "--max-hours", "1"], stderr=subprocess.PIPE,
        text=True, env=world.environment)
    assert process.stderr is not None
    said = until(process, "tokyo (japaneast): is being made")
    instead(world, "date", """
        told=$(/usr/bin/date "$@") || exit
        [ "$*" != +%s ] || told=$((told + 3000))
        printf '%s\\n' "$told"
        """)
    said += process.stderr.read()
    assert process.wait(60) == 3, said
    assert "Azure's shutdown would come a day later" in said
    assert "tokyo" not in world.of(VM)


@pytest.mark.slow
def test_a_wrong_clock_here_is_noticed(world: World) -> None:
    """The deadline goes by it: hours behind, and Azure's shutdown comes a day later."""
    instead(world, "date", """
        case " $* " in
          *' --date=20'*) exec /usr/bin/date "$@" ;;
          *' --date=+'*) exec /usr/bin/date --utc --date='+3 hours' "${@: -1}" ;;
        esac
        echo $(($(/usr/bin/date +%s) - 10800))
        """)
    told = world.provision(regions="tokyo", status=3)
    assert "its clock and the one here differ" in told.err
    assert world.of(VM) == {}


@pytest.mark.slow
def test_what_is_up_is_said_to_be_paid_for_wherever_it_ends(world: World) -> None:
    world.faults({"command": "network nsg rule create", "where": ["direct"], "fault": "cut"})
    told = world.provision(regions="tokyo", status=6)
    assert set(world.of(VM)) == {"broker", "tokyo"}
    assert "What is made is paid for" in told.err
    assert "deploy/azure/teardown monday" in told.err


@pytest.mark.slow
def test_a_run_that_is_being_deleted_is_not_gone_on_with(world: World) -> None:
    world.provision(regions="tokyo")
    world.run("teardown", "monday", "--patience", "1s", status=3)
    told = world.run("provision", "monday", "--yes", "--ssh-from", "any", status=7)
    assert "is being deleted" in told.err


@pytest.mark.slow
def test_what_was_agreed_to_is_what_is_there(world: World) -> None:
    """A question that waits while another provision makes the run: it began it anew, over it."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(str(ROOT / "deploy" / "azure" / "provision"),
                  ["provision", "monday", "--ssh-from", "any", "--regions", "tokyo",
                   "--patience", "20s"], world.environment)
    said = ""
    while "Type yes:" not in said:
        said += os.read(terminal, 4096).decode()
    world.provision(regions="tokyo")
    made, tags = world.model["made"], world.model["groups"]["tormentor-monday"]["tags"]
    os.write(terminal, b"yes\n")
    while True:
        try:
            said += os.read(terminal, 4096).decode()
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2, said
    assert "has changed since you were shown it" in said
    assert world.model["made"] == made
    assert world.model["groups"]["tormentor-monday"]["tags"] == tags


@pytest.mark.slow
def test_a_hostile_tag_deletes_nothing_here(world: World) -> None:
    """--all took a run's name from a tag, and a directory's from the name."""
    victim = world.place / "victim"
    victim.mkdir()
    (victim / "file").touch()
    world.provision(regions="tokyo")
    for number, name in enumerate(("../victim", "", "-x")):
        world.tell("group", f"odd{number}")
        world.tell("tag", f"odd{number}", "tormentor", "run")
        world.tell("tag", f"odd{number}", "tormentor-run", name)
    told = world.run("teardown", "--all", "--yes")
    assert (victim / "file").exists()
    assert "Left alone, as their tag tormentor-run is not their name: odd0 odd1 odd2" in told.err
    assert set(world.model["groups"]) == {"odd0", "odd1", "odd2"}
    assert not (world.runs / "monday").exists()


@pytest.mark.slow
def test_a_kept_machine_must_show_the_key_that_it_had(world: World) -> None:
    world.provision(regions="tokyo")
    known = world.runs / "monday" / "known_hosts"
    address = world.of(VM)["tokyo"]["publicIps"]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", world.place / "other"],
                   check=True)
    key = " ".join((world.place / "other.pub").read_text().split()[:2])
    known.write_text("".join(line for line in known.read_text().splitlines(True)
                             if not line.startswith(address)) + f"{address} {key}\n")
    world.provision(regions="tokyo", patience="8s")
    world.complete("tokyo")
    assert world.made("tokyo") == 2


# -- the hosts, and what they say --------------------------------------------------------------
def test_root_changes_nothing_by_a_path_in_tormentors_own_directory() -> None:
    """A link that is laid there would lead it to any file of the machine, and give that away."""
    for path in sorted(PLAYBOOKS.glob("*.yml")):
        text = path.read_text()
        assert "state: touch" not in text, path
        for command in re.findall(
                r"(?:install -d[^&;]*?-o tormentor|chown tormentor)[^&;\n]*", text):
            assert not re.search(r"/var/lib/tormentor/\w", command), command


def test_rows_that_other_code_has_dealt_are_not_taken() -> None:
    """They are named after the data and the seed, and stayed when the code was replaced."""
    script = (PLAYBOOKS / "install.yml").read_text().partition("- name: install the wheel")[2]
    assert 0 < script.index("rm -rf /var/lib/tormentor/data/*") < script.index(
        "> /opt/tormentor/stamp")


def test_the_longest_line_of_a_machine_can_be_read(tmp_path: Path) -> None:
    """A log of other than ASCII was longer in JSON than the line that the controller takes."""
    assert ANSIBLE.exists(), "scripts/setup-ansible makes it"
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {hosts: {here: {ansible_connection: local}}}\n")
    play = tmp_path / "play.yml"
    play.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [
        {"ansible.builtin.raw": "python3 -c \"print('\\U0001f9c5' * 200000); "
                                "import sys; sys.stderr.write('\\U0001f9c5' * 200000); "
                                "sys.exit(1)\""}]}]))
    told = subprocess.run(
        [ANSIBLE, "--inventory", inventory, play], capture_output=True,
        env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "deploy" / "ansible.cfg"),
                          "LC_ALL": "C.UTF-8", "ANSIBLE_PYTHON_INTERPRETER": sys.executable})
    lines = told.stdout.splitlines()
    assert max(map(len, lines)) > 100_000, told
    assert max(map(len, lines)) < 2 ** 20


# -- what a machine says to the controller (lab/field/world.py) ---------------------------------
INVENTORY = Inventory(
    Path("hosts.yml"), Host(name="b", region="b", torrc=None, direct="127.0.0.1:7700"),
    (Host(name="c", region="c", torrc=None, direct="192.0.2.1:7700"),))
RACE = Race(clients=2, tor=True, protocol="ours", seed=0, step=0.1, schedule="constant")


class Says:
    """Plays whose machines say what a test wants, and that played nothing."""

    def __init__(self, *events: Event) -> None:
        self.events = list(events)

    async def play(self, name: str, *words: object, **more: object) -> list[Event]:
        return self.events


def run_of(tmp_path: Path, *events: Event) -> field._Run:
    table = cast("Table", SimpleNamespace(digest="x"))
    return field._Run(INVENTORY, cast("Plays", Says(*events)), table, tmp_path, tmp_path, print)


def looks() -> tuple[Looks, list[str]]:
    said: list[str] = []
    one = Looks(RACE, INVENTORY, Path("log"), said.append)
    one._told = -1e9
    return one, said


async def test_an_address_that_a_machine_says_is_one(tmp_path: Path) -> None:
    """It becomes a variable of Ansible's, and those are templates: this ran a command HERE."""
    words = json.dumps({"onion": "{{ lookup('pipe', 'id') }}"})
    run = run_of(tmp_path, Event("b", "reach the desk", "ok", "opened", words))
    with pytest.raises(Problem):
        await run._open(True)
    assert run._desks == {}


def test_a_machine_commands_no_terminal_here() -> None:
    one, said = looks()
    one.hear(Event("b", "x", "retry", "race", '{"words": "\\u001b]0;x\\u0007\\u001b[2J", "at": 1}'))
    assert said
    assert "\x1b" not in said[0]
    with pytest.raises(Failed) as told:
        one.hear(Event("b", "x", "ok", "race", '{"why": "\\u001b[2J"}'))
    assert "\x1b" not in str(told.value)


@pytest.mark.parametrize(("outcome", "text"), [
    ("retry", '{"words": 1}'), ("retry", 'a banner\n{"words": "x", "at": 1}'),
    ("ok", "5"), ("ok", "[1]"), ("ok", '{"why": 5}'),
])
def test_what_cannot_be_read_is_that_machines_fault(outcome: str, text: str) -> None:
    """And no traceback: the race is run once more, and then it is a sentence."""
    one, _ = looks()
    with pytest.raises((Problem, Failed)):
        one.hear(Event("b", "x", outcome, "race", text))


@pytest.mark.parametrize("text", [
    "", "garbage", "[]", "{}", '{"arrived": NaN, "updates": 1, "training_began": 0}',
    '{"arrived": "\\u001b[2J", "updates": 1, "training_began": 0}',
    '{"arrived": 1.0, "updates": 1, "training_began": 1e999}',
])
async def test_a_result_is_a_result(tmp_path: Path, text: str) -> None:
    """What is not finite, or no number, was written to the notebook as it came."""
    run = run_of(tmp_path, Event("b", "x", "ok", "result", text),
                 Event("c", "x", "ok", "ledgers", '{"clients": 2, "mean": 1.0}'))
    with pytest.raises((Problem, Failed)):
        await run._collect(RACE, ["b", "c"])
