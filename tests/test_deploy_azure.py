"""deploy/azure against the stand-in for az (tests/standin_az): what is made, fails, and is left.

Real in these tests: the scripts, the argument parser of azure-cli, ssh and sshd. No Azure is asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab.wan import REGIONS

ROOT = Path(__file__).resolve().parents[1]
AZURE = ROOT / "deploy" / "azure"
STANDIN = ROOT / "tests" / "standin_az"
VM = "Microsoft.Compute/virtualMachines"
NSG = "Microsoft.Network/networkSecurityGroups"
BOMB = "Microsoft.DevTestLab/schedules"


class World:
    """A subscription of the stand-in, and a directory for the keys of runs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.runs = place / "runs"
        self.az = place / "az"
        self.az.mkdir()
        self.runs.mkdir()
        self.environment = os.environ | {
            "PATH": f"{STANDIN}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STANDIN_AZ": str(self.az), "TORMENTOR_AZURE_RUNS": str(self.runs),
            "TORMENTOR_AZURE_PAUSE": "0", "LC_ALL": "C.UTF-8"}
        self.server = subprocess.Popen(
            [str(ROOT / ".azure-cli" / "bin" / "python"), str(STANDIN / "server.py"), str(self.az)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(place / "server.log").open("wb"))
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == b"ready\n", (place / "server.log").read_text()

    def close(self) -> None:
        self.server.communicate()

    def run(self, script: str | Path, *words: str, status: int = 0, seconds: float = 120) -> Told:
        done = subprocess.run([str(AZURE / script), *words], capture_output=True, text=True,
                              env=self.environment, stdin=subprocess.DEVNULL, timeout=seconds)
        assert done.returncode == status, f"{done.returncode}, not {status}:\n{done.stderr}"
        return Told(done.stdout, done.stderr)

    def provision(self, *words: str, regions: str = "tokyo,london", status: int = 0,
                  patience: str = "20s") -> Told:
        return self.run("provision", "monday", "--ssh-from", "203.0.113.7/32", "--yes",
                        "--regions", regions, "--patience", patience, *words, status=status)

    def faults(self, *faults: dict[str, object]) -> None:
        (self.az / "faults.json").write_text(json.dumps(faults))

    def tell(self, *words: str) -> None:
        subprocess.run(["az", "stand-in", *words], env=self.environment, check=True,
                       capture_output=True)

    @property
    def calls(self) -> list[dict[str, object]]:
        path = self.az / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def model(self) -> dict[str, object]:
        path = self.az / "model.json"
        return json.loads(path.read_text()) if path.exists() else {"groups": {}, "made": []}

    @property
    def parts(self) -> list[dict[str, object]]:
        return [part for group in self.model["groups"].values() for part in group["resources"]]

    def of(self, kind: str) -> dict[str, dict[str, object]]:
        return {part["name"]: part for part in self.parts if part["type"] == kind}

    @property
    def inventory(self) -> set[str]:
        path = self.runs / "monday" / "hosts.yml"
        return set(re.findall(r"^        ([a-z-]+):$", path.read_text(), re.MULTILINE)) \
            if path.exists() else set()

    def well(self) -> None:
        """What must hold after whatever happened."""
        assert all(call["parsed"] for call in self.calls), \
            [call for call in self.calls if not call["parsed"]]
        assert set(self.model["groups"]) <= {"tormentor-monday"}
        machines = set(self.of(VM))
        for part in self.parts:  # nothing is left of a machine that is not there
            name = re.sub(r"^shutdown-computevm-|VMNic$|-(ip|nsg|vnet|disk)$", "", part["name"])
            assert name in machines, part
        if self.model["groups"]:  # and none is billed that is not shown
            shown = json.loads(self.run("status", "monday", "--json").out)["runs"][0]
            assert {each["machine"] for each in shown["machines"]} == machines
            assert shown["orphans"] == []

    def complete(self, *names: str) -> None:
        """All of them are there, well, armed, and in the inventory; and none twice."""
        self.well()
        assert set(self.of(VM)) == self.inventory == {"broker", *names}
        assert set(self.of(BOMB)) == {f"shutdown-computevm-{name}" for name in ("broker", *names)}
        assert all(each["provisioningState"] == "Succeeded" for each in self.of(VM).values())

    def made(self, name: str) -> int:
        """How often a machine was."""
        return self.model["made"].count(f"{VM} tormentor-monday/{name}")


class Told:
    """What a script said; sentences are compared without regard to where lines end."""

    def __init__(self, out: str, err: str) -> None:
        self.out = out
        self.err = " ".join(err.split())


@pytest.fixture(scope="session")
def parser() -> None:
    if os.geteuid() != 0:
        pytest.skip("deploy/azure is tested with machines that are sshd on port 22: only root can")
    subprocess.run([str(ROOT / "scripts" / "azure-cli")], check=True)


@pytest.fixture
def world(tmp_path: Path, parser: None) -> Iterator[World]:
    # sshd must reach the keys: pytest's own directories are closed to others.
    world = World(tmp_path)
    try:
        yield world
    finally:
        world.close()


# -- without a subscription -------------------------------------------------------------------
def test_the_regions_are_those_of_the_lab() -> None:
    known = tomllib.loads((AZURE / "regions.toml").read_text())
    assert [(each["name"], each["continent"]) for each in known["region"]] == \
        [(each.name, each.continent) for each in REGIONS]
    assert len({each["azure"] for each in known["region"]}) == len(REGIONS) == 25
    assert known["broker"] == "Vancouver"
    assert not known["size"].startswith("Standard_B")  # which cannot be spot
    for each in known["region"]:
        assert 0 < each["spot"] < each["on_demand"] < 0.5
        assert each["source"] in ("azure", "catalogue", "estimate")


@pytest.mark.parametrize(("words", "sentence"), [
    ((), "Give the run a name"),
    (("Monday",), "A run's name has small letters"),
    (("monday", "--max-hours", "24"), "--max-hours must be whole hours from 1 to 23"),
    (("monday", "--max-hours", "0"), "--max-hours must be whole hours"),
    (("monday", "--patience", "soon"), "--patience must be minutes"),
    (("monday", "--ssh-from", "x;y"), "--ssh-from must be an address"),
    (("monday", "--size"), "--size needs a value"),
    (("monday", "--spott"), "There is no option '--spott'"),
    (("monday", "tuesday"), "One run at a time"),
])
def test_wrong_usage(words: tuple[str, ...], sentence: str) -> None:
    done = subprocess.run([str(AZURE / "provision"), *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.parametrize("script", ["provision", "status", "teardown", "prices"])
def test_help(script: str) -> None:
    done = subprocess.run([str(AZURE / script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert "Exit status" in done.stdout


def test_without_az_it_says_where_to_get_it(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "mktemp", "rm", "python3", "ssh-keygen", "cat"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    done = subprocess.run([str(AZURE / "status")], capture_output=True, text=True,
                          env={"PATH": str(tmp_path)})
    assert done.returncode == 4
    assert "az, is not here" in done.stderr


def test_the_stand_in_says_what_it_is() -> None:
    done = subprocess.run([str(STANDIN / "az"), "--version"], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"]})
    assert done.returncode == 1
    assert "stand-in that records" in done.stderr


# -- what is made -----------------------------------------------------------------------------
@pytest.mark.slow
def test_nothing_is_made_before_somebody_agrees(world: World) -> None:
    words = ["monday", "--regions", "tokyo", "--patience", "20s"]
    world.run("provision", *words, status=2)  # from where?
    words += ["--ssh-from", "any"]
    told = world.run("provision", *words, "--dry-run", "--json")
    plan = json.loads(told.out)
    assert [each["machine"] for each in plan["regions"]] == ["broker", "tokyo"]
    assert plan["total"] <= plan["at_most"]
    assert not plan["prices_fetched"]
    for word in ("Stand-in subscription", "japaneast", "Standard_D2as_v5", "spot", "an hour",
                 "Time bomb", "from every address", "approximate"):
        assert word in told.err, word
    told = world.run("provision", *words, status=2)
    assert "nobody is here to answer" in told.err
    status, said = typed(world, words, "no")
    assert (status, "Nothing was done." in said) == (2, True)
    assert world.model["made"] == []
    assert not list(world.runs.iterdir())
    status, said = typed(world, words, "yes")
    assert status == 0, said
    world.complete("tokyo")
    assert world.of(NSG)["tokyo-nsg"]["rules"]["ssh"]["from"] == ["*"]


def typed(world: World, words: list[str], answer: str) -> tuple[int, str]:
    """Provision at a terminal: the exit status, and what it said."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(str(AZURE / "provision"), ["provision", *words], world.environment)
    said = ""
    with contextlib.suppress(OSError):  # as a terminal ends
        while data := os.read(terminal, 4096):
            said += data.decode()
            if "Type yes:" in said and answer:
                os.write(terminal, answer.encode() + b"\n")
                answer = ""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@pytest.mark.slow
def test_all_regions_and_again_and_away(world: World) -> None:
    before = datetime.now(UTC)
    told = world.run("provision", "monday", "--ssh-from", "203.0.113.7/32", "--yes", "--json",
                     "--max-hours", "4", "--patience", "60s", seconds=300)
    names = [re.sub(" ", "-", each.name.lower()) for each in REGIONS]
    assert len(json.loads(told.out)["up"]) == 26
    assert "deploy/run EXPERIMENT.toml --inventory" in told.err
    world.complete(*names)
    directory = world.runs / "monday"
    for name in ("key", "hosts.yml", "known_hosts"):
        assert (directory / name).stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    deadline = datetime.fromisoformat(world.model["groups"]["tormentor-monday"]["tags"]
                                      ["tormentor-deadline"].replace("Z", "+00:00"))
    assert timedelta(hours=3, minutes=58) < deadline - before < timedelta(hours=4, minutes=1)
    for bomb in world.of(BOMB).values():
        assert bomb["time"] == deadline.strftime("%H%M")
    addresses = {each["publicIps"] + "/32" for each in world.of(VM).values()}
    for name, nsg in world.of(NSG).items():
        rules = dict(nsg["rules"])
        ssh = rules.pop("ssh")
        assert (ssh["from"], ssh["ports"], ssh["access"]) == (["203.0.113.7/32"], ["22"], "Allow")
        if name == "broker-nsg":
            direct = rules.pop("direct")
            assert (set(direct["from"]), direct["ports"]) == (addresses, ["7700"])
        assert rules == {}
    for machine in world.of(VM).values():
        assert machine["priority"] == "Spot"
        assert machine["user"] == "azureuser"
        assert 500 < machine["user_data_bytes"] < 65536
    made, group = list(world.model["made"]), world.model["groups"]["tormentor-monday"]["tags"]
    world.run("provision", "monday", "--yes", "--patience", "60s", seconds=300)
    assert world.model["made"] == made
    assert world.model["groups"]["tormentor-monday"]["tags"] == group
    told = world.run("status")
    assert "26 machines" in told.err + told.out
    world.run("teardown", "monday")
    assert world.model["groups"] == {}
    assert not directory.exists()
    assert "No run is in this subscription" in world.run("status").out


# -- what fails -------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("fault", "word", "advice"), [
    ("quota", "QuotaExceeded", "ask for more in the portal"),
    ("size", "SkuNotAvailable", "say another --size"),
    ("allocation", "AllocationFailed", "say --on-demand"),
    ("authorization", "AuthorizationFailed", "role Contributor"),
    ("dead", "it never came up: no SSH", "--patience"),
    ("broken", "cloud-init failed on it", "Type the same command again"),
])
def test_two_regions_fail(world: World, fault: str, word: str, advice: str) -> None:
    world.faults(*({"command": "vm create", "where": [place], "fault": fault}
                   for place in ("japaneast", "uksouth")))
    told = world.provision(regions="tokyo,london,iowa", status=3)
    for name in ("tokyo", "london"):
        assert re.search(rf"{name}: [^.]*{re.escape(word)}", told.err), told.err
    assert advice in told.err
    assert "2 of 4 machines are up" in told.err
    assert "--without tokyo,london" in told.err
    assert "deploy/azure/teardown monday" in told.err
    world.well()
    assert set(world.of(VM)) == {"broker", "iowa"}
    assert world.inventory == set()
    fewer = world.provision("--accept-fewer", regions="tokyo,iowa", status=3)
    assert "Going on with 2 machines" in fewer.err
    assert world.inventory == {"broker", "iowa"}
    world.faults()
    world.provision(regions="tokyo,london,iowa")
    world.complete("tokyo", "london", "iowa")
    assert world.made("iowa") == world.made("broker") == 1
    world.run("teardown", "monday")
    assert world.model["groups"] == {}


@pytest.mark.slow
def test_without_them_it_goes_on(world: World) -> None:
    world.faults({"command": "vm create", "where": ["japaneast"], "fault": "quota"})
    world.provision(status=3)
    world.provision("--without", "tokyo")
    world.complete("london")
    assert world.made("london") == 1
    told = world.provision(regions="iowa")  # no longer named: it says so, and deletes
    assert "To be DELETED, as it is not named any more: london" in told.err
    world.complete("iowa")


@pytest.mark.slow
def test_a_machine_without_a_bomb_is_not_left(world: World) -> None:
    world.faults({"command": "vm auto-shutdown", "where": ["tokyo"], "fault": "authorization"})
    told = world.provision(status=3)
    assert "its time bomb could not be set" in told.err
    world.well()
    assert "tokyo" not in world.of(VM)
    world.faults()
    world.provision()
    world.complete("tokyo", "london")


@pytest.mark.slow
def test_an_evicted_one_and_a_stopped_one_are_made_anew(world: World) -> None:
    world.provision()
    world.tell("gone", "tormentor-monday", VM, "tokyo")
    world.tell("set", "tormentor-monday", "london", "powerState", "VM stopped")
    shown = world.run("status").out
    assert "STILL BILLED" in shown
    assert "Parts of no machine" in shown  # of tokyo
    world.provision()
    world.complete("tokyo", "london")
    assert (world.made("tokyo"), world.made("london"), world.made("broker")) == (2, 2, 1)


@pytest.mark.slow
def test_where_none_is_heard_none_is_made_anew(world: World) -> None:
    world.provision()
    for name in ("broker", "tokyo", "london"):
        world.tell("unheard", name)
    told = world.provision(status=6)
    assert "None of the 3 machines that run answers at port 22 from here" in told.err
    assert "--ssh-from YOUR.ADDRESS/32 anew" in told.err
    assert [world.made(name) for name in ("broker", "tokyo", "london")] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 3, 9, 14, 20, 23])
def test_the_way_to_azure_is_cut_for_good(world: World, after: int) -> None:
    """From the call of that number on nothing is answered; then it is mended."""
    world.faults({"fault": "cut", "after": after})
    done = subprocess.run(
        [str(AZURE / "provision"), "monday", "--ssh-from", "any", "--yes", "--regions",
         "tokyo,london", "--patience", "20s"],
        capture_output=True, text=True, env=world.environment, timeout=120)
    said = " ".join(done.stderr.split())
    assert done.returncode in (3, 6), said
    assert "the way to Azure is cut; see whether you are online" in said
    assert "ype the same command again" in said
    assert not (world.runs / "monday" / "hosts.yml").exists()
    world.faults()
    world.provision()
    world.complete("tokyo", "london")
    for name in ("broker", "tokyo", "london"):
        assert world.made(name) <= 2
    world.run("teardown", "monday")
    assert world.model["groups"] == {}
    assert list(world.runs.iterdir()) == []


@pytest.mark.slow
def test_a_short_cut_is_bridged(world: World) -> None:
    """Also one that only loses the answer: then Azure has done it."""
    world.faults({"command": "vm create", "where": ["tokyo"], "fault": "cut-after", "times": 1},
                 {"command": "network nsg create", "fault": "cut", "times": 2},
                 {"command": "group create", "fault": "cut-after", "times": 1})
    world.provision()
    world.complete("tokyo", "london")
    assert world.made("tokyo") == 1


@pytest.mark.slow
def test_too_slow(world: World) -> None:
    world.faults({"command": "vm create", "where": ["japaneast"], "fault": "slow", "seconds": 60})
    told = world.provision(status=3, patience="15s")
    assert "Azure did not make it within 15 seconds (--patience)" in told.err
    world.well()
    assert set(world.of(VM)) == {"broker", "london"}


@pytest.mark.slow
def test_ctrl_c_midway(world: World) -> None:
    world.faults({"command": "vm create", "where": ["japaneast"], "fault": "slow", "seconds": 8})
    process = subprocess.Popen(
        [str(AZURE / "provision"), "monday", "--ssh-from", "any", "--yes", "--regions",
         "tokyo,london", "--patience", "60s"], stderr=subprocess.PIPE, text=True,
        env=world.environment, start_new_session=True)
    assert process.stderr is not None
    said = ""
    while "london (uksouth): is up" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    os.killpg(process.pid, signal.SIGINT)
    said += process.stderr.read()
    assert process.wait(10) == 130, said
    assert "Stopped. Up so far:" in said
    assert "london" in said.partition("Up so far:")[2]
    assert "deploy/azure/teardown monday" in said
    assert not [each for each in Path("/proc").iterdir() if each.name.isdigit()
                and (each / "cmdline").exists()
                and str(world.runs).encode() in environ(each)
                and each.name != str(os.getpid())]
    assert not (world.runs / "monday" / "hosts.yml").exists()
    assert not list((world.runs / "monday").glob(".*"))
    world.faults()
    world.tell("set", "tormentor-monday", "tokyo", "provisioningState", "Creating")
    world.provision()
    world.complete("tokyo", "london")
    assert world.made("tokyo") == world.made("london") == 1


def environ(process: Path) -> bytes:
    """A process's environment; nothing of one that has ended."""
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_not_logged_in_and_not_ours(world: World) -> None:
    world.faults({"fault": "login"})
    for script, word in (("provision", "monday"), ("status", "monday"), ("teardown", "monday")):
        told = world.run(script, word, status=4)
        assert "type: az login" in told.err
    world.faults()
    world.tell("group", "tormentor-monday")
    told = world.run("provision", "monday", "--ssh-from", "any", "--yes", status=7)
    assert "that is not ours" in told.err
    told = world.run("teardown", "monday", status=7)
    assert "is left alone" in told.err
    assert "tormentor-monday" in world.model["groups"]


@pytest.mark.slow
def test_its_time_is_over_and_its_key_is_elsewhere(world: World) -> None:
    world.provision()
    # Whose address has changed is let in again, and nothing is made anew.
    world.run("provision", "monday", "--yes", "--ssh-from", "198.51.100.0/24", "--patience", "20s",
              "--regions", "tokyo,london")
    assert {str(each["rules"]["ssh"]["from"]) for each in world.of(NSG).values()} == \
        {"['198.51.100.0/24']"}
    assert world.made("tokyo") == 1
    kept = world.place / "kept"
    (world.runs / "monday").rename(kept)
    told = world.run("provision", "monday", "--yes", status=7)
    assert "was begun elsewhere" in told.err
    kept.rename(world.runs / "monday")
    world.tell("tag", "tormentor-monday", "tormentor-deadline", "2026-01-01T00:00Z")
    told = world.run("provision", "monday", "--yes", status=7)
    assert "The time of the run monday ends or has ended" in told.err
    assert "its time was over" in world.run("status", "monday").out


@pytest.mark.slow
def test_teardown(world: World) -> None:
    told = world.run("teardown", "monday")
    assert "There is nothing of monday on Azure" in told.err
    world.provision()
    world.tell("gone", "tormentor-monday", VM, "tokyo")  # half of it is gone already
    world.faults({"command": "group delete", "fault": "cut"})
    told = world.run("teardown", "monday", status=6)
    assert "the way to Azure is cut" in told.err
    assert (world.runs / "monday" / "key").exists()
    world.faults({"command": "group exists", "fault": "cut", "times": 3})
    told = world.run("teardown", "monday", status=6)
    assert "Azure was told to delete it" in told.err
    assert (world.runs / "monday" / "key").exists()  # until it is seen to be gone
    told = world.run("teardown", "monday")
    assert not (world.runs / "monday").exists()
    assert world.model["groups"] == {}
    world.provision()
    assert "nobody is here to answer" in world.run("teardown", "--all", status=2).err
    assert world.model["groups"]
    world.run("teardown", "--all", "--yes")
    assert world.model["groups"] == {}
    assert list(world.runs.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("right", "wrong"), [
    ("--eviction-policy Delete", "--eviction-policy Remove"),
    ("--custom-data", "--custom-dat4"),
    ("vm auto-shutdown", "vm auto-stop"),
    ("network public-ip show", "network public-ip display"),
])
def test_a_wrong_argument_is_caught(world: World, right: str, wrong: str) -> None:
    """The parser is the real one, and a call that it does not take is no success."""
    copy = world.place / "deploy" / "azure"
    shutil.copytree(AZURE, copy, ignore=shutil.ignore_patterns("runs"))
    shutil.copytree(AZURE.parent / "units", copy.parent / "units")
    text = (copy / "provision").read_text()
    assert right in text
    (copy / "provision").write_text(text.replace(right, wrong))
    world.run(copy / "provision", "monday", "--ssh-from", "any", "--yes", "--regions", "tokyo",
              "--patience", "10s", status=3)
    bad = [call for call in world.calls if not call["parsed"]]
    assert bad
    assert all(call["status"] == 2 for call in bad)
    with pytest.raises(AssertionError):
        world.well()
