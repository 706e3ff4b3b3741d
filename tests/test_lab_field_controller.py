"""The controller's pure parts: spreading, inventories, machines, what Ansible says as sentences."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from accord.problems import HOST_AWAY, HOST_FAILED, NO_CONTROLLER, Problem
from lab.experiment_cli import experiment
from lab.experiments import table2_report
from lab.experiments.frame import (
    EXPERIMENTS,
    Cell,
    Finished,
    HasRaces,
    Notebook,
    Outcome,
    RunCell,
    find,
    run_all,
)
from lab.experiments.plan import Plan
from lab.experiments.results import command, where
from lab.field.inventory import Inventory, keep_place, parse, read, spread
from lab.field.latencies import DESKS, Measured
from lab.field.looks import Looks, Over
from lab.field.machines import judge, stored
from lab.field.plays import HOME, Event, answers, event_of, problem_of, program
from lab.field.world import find_wheel, stamp
from lab.geo_crowd import region
from lab.race import Failed, Race
from lab.wan import Latency

HERE = Path("hosts.yml")
LISTED: dict[str, Any] = {
    # As ansible-inventory --list (ansible-core 2.19) printed it of an inventory in YAML.
    "_meta": {"hostvars": {
        "vancouver": {"ansible_host": "203.0.113.10", "tormentor_region": "Vancouver"},
        "tokyo": {"ansible_host": "203.0.113.11", "tormentor_region": "Tokyo"},
        "dublin": {"ansible_host": "203.0.113.12", "tormentor_direct": "198.51.100.7:7701",
                   "tormentor_pip": "--no-index"},
    }},
    "all": {"children": ["ungrouped", "broker", "clients"]},
    "broker": {"hosts": ["vancouver"]},
    "clients": {"children": ["asia"], "hosts": ["dublin"]},
    "asia": {"hosts": ["tokyo"]},
}
GOOD = ("system=Linux\r\nroot=0\r\nsystemd=yes\r\napt=yes\r\ntor=0.4.9.11\r\npython=3.11\r\n"
        "venv=yes\r\nmemory_mb=840\r\ncores=1\r\nprocessor=A\r\ndisk_mb=24000\r\n")


def inventory(**changes: Any) -> Inventory:
    """The listed one, with other variables of tokyo."""
    variables = LISTED["_meta"]["hostvars"]
    changed = {**variables, "tokyo": {**variables["tokyo"], **changes}}
    return parse({**LISTED, "_meta": {"hostvars": changed}}, HERE)


# -- spreading -------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [1, 2, 3, 24, 25, 26, 200])
@pytest.mark.parametrize("hosts", [1, 2, 5, 25])
def test_clients_are_spread_evenly_and_each_is_somewhere_once(clients: int, hosts: int) -> None:
    names = [f"h{i}" for i in range(hosts)]
    dealt = spread(clients, names)
    assert sorted(n for numbers in dealt.values() for n in numbers) == list(range(clients))
    sizes = [len(dealt.get(name, [])) for name in names]
    assert max(sizes) - min(sizes) <= 1
    assert all(dealt.values())


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 6, 7, 14, 21, 24, 25, 26])
def test_some_clients_are_as_far_away_as_all(hosts: int) -> None:
    """They were on the first machines of the inventory: those of deploy/azure/provision are in the
    order of their distance, so that ten clients were near and two hundred were not."""
    order = [region(i, hosts) for i in range(hosts)]
    assert sorted(order) == list(range(hosts))
    for clients in range(max(4, 2 * hosts // 5), hosts + 1):
        mean = sum(order[:clients]) / clients
        assert abs(mean - (hosts - 1) / 2) < 0.1 * hosts, (clients, order)


# -- inventories -----------------------------------------------------------------------------


def test_an_inventory_is_read_as_ansible_lists_it() -> None:
    read = inventory()
    assert read.broker.name == "vancouver"
    assert read.broker.direct == "127.0.0.1:7700"
    assert [host.name for host in read.clients] == ["dublin", "tokyo"]
    assert [host.direct for host in read.clients] == ["198.51.100.7:7701", "203.0.113.10:7700"]
    assert [host.region for host in read.clients] == ["dublin", "Tokyo"]
    assert read.clients[0].pip == "--no-index"
    assert read.words("tokyo") == "Tokyo (tokyo)"
    assert read.words("dublin") == "dublin"


def test_a_place_has_regions_and_no_addresses() -> None:
    place = inventory().place
    assert place == {"broker": "Vancouver", "clients": ["dublin", "Tokyo"],
                     "tor_network": "public"}
    assert "203.0.113" not in json.dumps(place)


@pytest.mark.parametrize(("changed", "why"), [
    ({"broker": {"hosts": []}}, "group 'broker' has 0 machines"),
    ({"broker": {"hosts": ["vancouver", "tokyo"]}}, "group 'broker' has 2 machines"),
    ({"clients": {}}, "group 'clients' has no machine"),
    ({"clients": {"hosts": ["a b"]}}, "cannot be a machine's name"),
])
def test_what_is_wrong_with_groups_is_said(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(Problem, match=why):
        parse({**LISTED, **changed}, HERE)


@pytest.mark.parametrize(("variable", "value", "why"), [
    ("tormentor_direct", "there", "is not HOST:PORT: 'there', for tokyo"),
    ("tormentor_region", "a\nb", "is not a line"),
    ("tormentor_region", 3, "is not text: 3"),
    ("tormentor_torrc", "nowhere.torrc", "is no file"),
])
def test_what_is_wrong_with_a_machine_is_said(variable: str, value: object, why: str) -> None:
    with pytest.raises(Problem, match=why):
        inventory(**{variable: value})


async def test_an_inventory_is_read_whatever_the_locale(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ansible ends in one that is not UTF-8's, and the file was blamed."""
    path = tmp_path / "hosts.yml"
    path.write_text("{broker: {hosts: {b: }}, clients: {hosts: {c: }}}\n")
    monkeypatch.setenv("LC_ALL", "C")
    assert list((await read(path, program("ansible-inventory"))).hosts) == ["b", "c"]


@pytest.mark.parametrize(("name", "text", "why"), [
    ("hosts.yml", "all:\n  children: [\n", r"YAML parsing failed: .+ \(line \d\); edit it"),
    ("hosts.ini", "[broker\nb\n", "Ansible says: .+; edit it"),
])
async def test_a_file_that_ansible_cannot_read_is_not_one_without_machines(
        tmp_path: Path, name: str, text: str, why: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(Problem, match=why):
        await read(path, program("ansible-inventory"))


def test_a_torrc_is_beside_the_inventory(tmp_path: Path) -> None:
    (tmp_path / "private.torrc").write_text("TestingTorNetwork 1\n")
    hosts = {"b": {"tormentor_torrc": "private.torrc"}, "c": {}}
    read = parse({"_meta": {"hostvars": hosts}, "broker": {"hosts": ["b"]},
                  "clients": {"hosts": ["c"]}}, tmp_path / "hosts.yml")
    assert read.broker.torrc == tmp_path / "private.torrc"
    assert read.place["tor_network"] == "private"


# -- results of one place ----------------------------------------------------------------------


def test_results_are_of_one_place(tmp_path: Path) -> None:
    place = inventory().place
    keep_place(tmp_path, None, begun=False)
    with pytest.raises(Problem, match="from one machine, and these would be from machines in dub"):
        keep_place(tmp_path, place, begun=True)
    assert not (tmp_path / "inventory.json").exists()
    keep_place(tmp_path, place, begun=False)
    keep_place(tmp_path, place, begun=True)
    with pytest.raises(Problem, match="and these would be from one machine"):
        keep_place(tmp_path, None, begun=True)
    with pytest.raises(Problem, match="--output"):
        keep_place(tmp_path, {**place, "tor_network": "private"}, begun=True)
    keep_place(tmp_path, None, begun=False)
    assert not (tmp_path / "inventory.json").exists()


def test_what_was_measured_elsewhere_is_not_kept_with_results_that_begin_anew(
        tmp_path: Path) -> None:
    """A run that measured one way only would have added it to the other way of other machines."""
    place = inventory().place
    old = [tmp_path / "latency.json", tmp_path / "machines.json"]
    for path in old:
        path.write_text("{}")
    keep_place(tmp_path, None, begun=True)
    assert all(path.exists() for path in old)
    keep_place(tmp_path, place, begun=False)
    assert not any(path.exists() for path in old)


# -- machines ----------------------------------------------------------------------------------


def test_a_machine_will_do() -> None:
    machine = judge(GOOD, "Tokyo")
    assert machine.packages == ()
    assert (machine.memory, machine.disk, machine.tor) == (840, 24000, "0.4.9.11")
    bare = GOOD.replace("tor=0.4.9.11\r\n", "").replace("python=3.11\r\nvenv=yes\r\n", "")
    assert judge(bare, "Tokyo").packages == ("tor", "python3", "python3-venv")
    assert json.loads(stored({"tokyo": machine}, {"tokyo": "Tokyo"})) == [
        {"region": "Tokyo", "cores": 1, "processor": "A", "memory_mb": 840, "python": "3.11",
         "tor": "0.4.9.11"}]


@pytest.mark.parametrize(("old", "new", "why"), [
    ("system=Linux", "system=FreeBSD", "runs FreeBSD, and Linux is needed"),
    ("root=0", "root=1000", "does not let us become root; let its user"),
    ("systemd=yes", "", "has no systemd"),
    ("python=3.11", "python=3.9", "has Python 3.9, and 3.11 or newer"),
    ("memory_mb=840", "memory_mb=300", "has 300 MB of memory"),
    ("disk_mb=24000", "disk_mb=20", "has 20 MB free"),
    ("apt=yes\r\ntor=0.4.9.11", "", "lacks tor, and has no apt-get"),
])
def test_why_a_machine_will_not_do(old: str, new: str, why: str) -> None:
    with pytest.raises(Problem, match="The machine in Tokyo .*" + why):
        judge(GOOD.replace(old, new), "Tokyo")


# -- what Ansible says -----------------------------------------------------------------------

RECORDED = Path(__file__).with_name("field_events.jsonl")
"""Lines of plays on real machines, as they came: ok, a try, a failure, and no answer."""


def recorded() -> list[Event]:
    """All of them."""
    found = [event_of(line) for line in RECORDED.read_bytes().splitlines()]
    return [event for event in found if event is not None]


def test_recorded_lines_are_events() -> None:
    assert {event.outcome for event in recorded()} == {
        "begin", "ok", "retry", "failed", "unreachable"}
    assert event_of(b"[WARNING]: Found both group and host with same name: broker\n") is None
    told = answers(recorded(), "opened")
    assert list(told.values()) == [next(
        event.stdout.strip() for event in recorded()
        if event.answer == "opened" and event.outcome == "ok")]


def test_a_failure_is_a_sentence_with_the_region_and_what_to_do() -> None:
    failed = [event for event in recorded() if event.outcome == "failed"]
    problem = problem_of(failed, lambda name: f"Tokyo ({name})", Path("ansible.log"))
    assert problem.kind is HOST_FAILED
    assert f"The machine in Tokyo ({failed[0].host})" in problem.sentence
    assert failed[0].task in problem.sentence
    assert "type the same command again" in problem.sentence
    assert "could not reach the desk: --listen is not HOST:PORT: 'nonsense'; mend" in (
        problem.sentence)
    away = [event for event in recorded() if event.outcome == "unreachable"]
    problem = problem_of(away, lambda name: "Tokyo", Path("ansible.log"))
    assert problem.kind is HOST_AWAY
    assert "does not answer (connect to host 192.0.2.1 port 1: Connection refused); see" in (
        problem.sentence)


def test_more_than_one_is_counted() -> None:
    bad = [Event(host=name, task="install the wheel", outcome="failed", message="no space")
           for name in ("a", "b", "c", "c")]
    assert "in a (and 2 more) could not install the wheel: no space;" in problem_of(
        bad, str, Path("log")).sentence


# -- a race that is watched --------------------------------------------------------------------

RACE = Race(clients=4, tor=False, protocol="ours", seed=0, step=0.1, schedule="constant")


def looks(said: list[str]) -> Looks:
    """Of a race on the listed machines."""
    return Looks(RACE, inventory(), Path("logs"), said.append)


def seen(answer: str, stdout: str, outcome: str = "ok", host: str = "tokyo") -> Event:
    """A look."""
    return Event(host=host, task="keep its clients running", outcome=outcome, answer=answer,
                 stdout=stdout)


def test_what_is_seen_of_a_race() -> None:
    said: list[str] = []
    eyes = looks(said)
    eyes.hear(seen("race", '{"words":"8 s","at":1.5}\r\n', "retry", "vancouver"))
    eyes.hear(seen("race", "", "retry", "vancouver"))
    eyes.hear(seen("clients", "active\r\n", "retry"))
    assert said == []
    eyes._told -= 60
    eyes.hear(seen("race", '{"words":"9 s","at":1.5}\r\n', "retry", "vancouver"))
    assert said == ["4 clients, no Tor, ours, seed 0: 9 s"]
    with pytest.raises(Over):
        eyes.hear(seen("race", '{"arrived":3.0}\r\n', host="vancouver"))
    with pytest.raises(Failed, match="paused"):
        eyes.hear(seen("race", '{"why":"training paused"}\r\n', host="vancouver"))
    with pytest.raises(Problem, match=r"Vancouver.*its referee ended"):
        eyes.hear(seen("race", "ended\r\n", host="vancouver"))
    with pytest.raises(Problem, match=r"Tokyo \(tokyo\) could not keep its clients running: they "
                                      "are failed"):
        eyes.hear(seen("clients", "failed\r\n"))
    with pytest.raises(Problem, match=r"Tokyo.*does not answer"):
        eyes.hear(seen("clients", "", "unreachable"))


# -- round trips -----------------------------------------------------------------------------


def test_round_trips_are_told_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    near = {"tokyo": {"direct": Latency([[0.1, 0.2]], 0), "tor": None},
            "dublin": {"direct": Latency([[0.3]], 1), "tor": None}}
    first = Measured(inventory(), near)
    assert first.of("direct").failed == 1
    assert first.of("direct").median == pytest.approx(0.2)
    assert first.nearest() == ["tokyo", "dublin"]
    assert "150.0 ± 70.7" in "\n".join(first.lines([False]))
    first.write(path)
    Measured(inventory(), {"tokyo": {"direct": None, "tor": Latency([[0.7], []], 0)},
                            "dublin": {"direct": None, "tor": Latency([], 2)}}).write(path)
    told = json.loads(path.read_text())
    assert [each["region"] for each in told["direct"]["machines"]] == ["Tokyo", "dublin"]
    assert told["direct"]["machines"][0]["samples_ms"] == [[100.0, 200.0]]
    assert told["tor"]["summary"]["failed"] == 2
    assert told["tor"]["summary"]["sd_ms"] is None


def test_round_trips_that_never_came_back_can_be_kept_and_shown(tmp_path: Path) -> None:
    """They were no number, which no notebook takes: a race was lost with a traceback."""
    latency = Latency([], 3).summary()
    Notebook(tmp_path / "cells.jsonl").keep("key", {}, {"latency": latency})
    table = table2_report._latency_table([Finished({"tor": True}, {"latency": latency})])
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table)
    assert "none came back" in shown.get()


# -- refusals --------------------------------------------------------------------------------


def test_only_experiments_that_race_can_be_elsewhere() -> None:
    race = {name for name in EXPERIMENTS if isinstance(find(name), HasRaces)}
    assert race == {"fig6", "fig7", "table2", "rehearsal"}
    for name in ("fig5", "table2-steps"):
        told = CliRunner().invoke(experiment, [name, "--inventory", "hosts.yml"])
        assert told.exit_code == 2
        assert f"and {name} runs on one machine" in told.output


def test_without_what_deploy_run_makes_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="type: deploy/run") as raised:
        find_wheel(tmp_path)
    assert raised.value.kind is NO_CONTROLLER
    wheel, lock = tmp_path / "tormentor-1.whl", tmp_path / "lock"
    wheel.write_bytes(b"a")
    lock.write_bytes(b"b")
    assert find_wheel(tmp_path) == wheel
    before = stamp(wheel, lock)
    lock.write_bytes(b"c")
    assert stamp(wheel, lock) != before


@pytest.mark.slow
def test_two_do_not_run_on_the_same_machines(tmp_path: Path) -> None:
    """The second one stopped what the first had started, and the other way round."""
    path = tmp_path / "hosts.yml"
    path.write_text("{broker: {hosts: {b: }}, clients: {hosts: {c: }}}\n")
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        told = subprocess.run(
            [Path(sys.executable).with_name("tormentor"), "experiment", "rehearsal",
             "--inventory", path, "--output", tmp_path / "out"],
            capture_output=True, text=True, check=False,
            env=os.environ | {"TORMENTOR_CREDIT_DATA": "sklearn:breast_cancer"})
    assert f"Another process is using {path}" in told.stderr, told


# -- the experiment's frame ----------------------------------------------------------------------


async def test_cells_run_in_a_world_that_is_given_one_after_another(tmp_path: Path) -> None:
    course: list[str] = []

    @asynccontextmanager
    async def elsewhere(cells: Sequence[Cell], data: Path | None, directory: Path,
                        say: Callable[[str], None]) -> AsyncIterator[RunCell]:
        course.append(f"open {len(cells)}")

        async def one(cell: Cell) -> Outcome:
            course.append(f"begin {cell['seed']}")
            await asyncio.sleep(0)
            course.append(f"end {cell['seed']}")
            return {"seed": cell["seed"]}

        yield one
        course.append("close")

    table2 = find("table2")
    # These would run at the same time in table 2's own world, where that disturbs nobody.
    cells = [{"part": "table", "protocol": "paper", "clients": 10, "tor": False, "seed": seed}
             for seed in range(2)]
    notebook = Notebook(tmp_path / "cells.jsonl")
    assert not notebook.begun
    finished = await run_all(table2, cells, None, "d", notebook, 1, lambda done, total: None,
                             world=elsewhere)
    assert course == ["open 2", "begin 0", "end 0", "begin 1", "end 1", "close"]
    assert [each.result["seed"] for each in finished] == [0, 1]
    assert notebook.begun


def test_results_say_where_they_are_from() -> None:
    place = inventory().place
    assert where(place) == ("It ran on machines of its own: the broker in Vancouver, clients on 2 "
                            "in dublin, Tokyo; public Tor network.")
    assert command(Plan(experiment="table2", quick=True), "deploy/run") == (
        "deploy/run table2 --quick")


# -- files of deploy/ --------------------------------------------------------------------------


def test_deploy_run_explains_itself_and_what_is_missing() -> None:
    run = HOME / "deploy" / "run"
    told = subprocess.run([run, "--help"], capture_output=True, text=True, check=True)
    assert "deploy/run deploy/rehearsal.toml --inventory hosts.yml" in told.stdout
    told = subprocess.run([run], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "Usage" in told.stderr


@pytest.mark.parametrize("name", ["broker@", "referee", "clients"])
def test_the_units_leave_little_open(name: str) -> None:
    unit = HOME / "deploy" / "units" / f"tormentor-{name}.service"
    # In tenths; systemd.exec(5)'s own default is at 96.
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", unit],
        capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-400:] + told.stderr


def test_the_check_ends_well_where_nothing_is_as_expected() -> None:
    """An empty number ended the shell, so that whoever is no Linux was never told so."""
    text = (HOME / "deploy" / "playbooks" / "check.yml").read_text()
    script = text.partition("raw: |\n")[2].partition("      register:")[0]
    for old, new in (("/proc/", "/nowhere/"), ("/opt", "/nowhere"), ("uname -s", "echo Other")):
        assert old in script
        script = script.replace(old, new)
    script = re.sub(r"\{\{.*?\}\}", "python3", textwrap.dedent(script))
    told = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    with pytest.raises(Problem, match="in Tokyo runs Other, and Linux is needed"):
        judge(told, "Tokyo")


def test_each_play_has_its_file() -> None:
    names = {path.stem for path in (HOME / "deploy" / "playbooks").glob("*.yml")}
    assert names == {"check", "install", "open", "close", "measure", "curate", "join", "watch",
                     "collect", "stop"}
    assert set(DESKS.values()) == {"tor", "direct"}
