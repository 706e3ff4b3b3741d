"""The files of deploy/, and that scripts/check-deploy sees what is wrong with them."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from lab.experiments import plan as plans

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "deploy/azure/machine.yaml"
RENDER = ROOT / "deploy/azure/cloud-init"
MOST = 65_535
"""Bytes that Azure takes as custom data (its reference of virtual machines, osProfile)."""


def render(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RENDER, *options], capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the check looks at, to be spoilt."""
    for name in ("deploy", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name,
                        ignore=shutil.ignore_patterns("__pycache__", "runs"))
    return tmp_path


def check(project: Path, *only: str) -> str:
    """What scripts/check-deploy has to say against a copy; empty when nothing."""
    done = subprocess.run([ROOT / "scripts/check-deploy", "--only", ",".join(only), project],
                          capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == ("FAILED" not in done.stderr), done.stderr
    return done.stderr if done.returncode else ""


def test_the_user_data_hold_every_unit_and_fit() -> None:
    text = render("--max-hours", "4").stdout
    assert text.startswith("#cloud-config\n")
    assert "@include" not in text.replace("'@include'", "") and "@seconds@" not in text
    assert "--date='+14400 seconds'" in text
    assert len(text.encode()) < MOST
    for unit in (ROOT / "deploy/units").iterdir():
        for line in unit.read_text().splitlines():
            assert line in text, (unit.name, line)


def test_the_machines_root_is_asked_for_nothing_secret() -> None:
    text = render("--max-hours", "4").stdout.lower()
    for word in ("private key", "authorized_keys", "ssh-ed25519", "ssh-rsa", " passwd:", "token"):
        assert word not in text, word


@pytest.mark.parametrize("hours", ["0", "-1", "169", "many", "1e3", "", "0.0001"])
def test_hours_that_make_no_sense_are_refused(hours: str) -> None:
    done = render("--max-hours", hours)
    assert done.returncode == 2 and not done.stdout
    assert "--max-hours" in done.stderr and done.stderr.count("\n") == 1


def test_it_does_not_go_without_a_time_bomb() -> None:
    done = render()
    assert done.returncode == 2 and "--max-hours N" in done.stderr and not done.stdout


def test_a_file_that_the_template_names_must_be_there(copy: Path) -> None:
    (copy / "deploy/units/tormentor-clients.service").unlink()
    done = subprocess.run([copy / "deploy/azure/cloud-init", "--max-hours", "4"],
                          capture_output=True, text=True, check=False)
    assert done.returncode and not done.stdout and "tormentor-clients.service" in done.stderr


@pytest.mark.parametrize("name", ["table2", "rehearsal"])
def test_the_experiment_files_are_whole_experiments(name: str) -> None:
    plan = plans.read(ROOT / f"deploy/{name}.toml")
    cells = plans.chosen(plan)
    assert plan.experiment == name and not plan.quick
    assert len(cells) == {"table2": 48, "rehearsal": 2}[name]


def test_the_reckoning_in_the_readme_is_that_of_the_regions() -> None:
    known = tomllib.loads((ROOT / "deploy/azure/regions.toml").read_text())
    text = (ROOT / "deploy/README.md").read_text()
    extras = (len(known["region"]) + 1) * (known["address"] + known["disk"])
    totals = []
    for price in ("spot", "on_demand"):
        clients = sum(each[price] for each in known["region"])
        broker = next(e[price] for e in known["region"] if e["name"] == known["broker"])
        totals.append((clients, broker, extras, clients + broker + extras))
    # Whoever renews the prices (deploy/azure/prices) renews the table, too.
    for row, label in enumerate((f"{len(known['region'])} of clients", "the broker's")):
        assert f"| {label}" in text
        assert f"| {totals[0][row]:.3f} | {totals[1][row]:.3f} |" in text
    assert f"| **{totals[0][3]:.2f}** | **{totals[1][3]:.2f}** |" in text
    for hours in (4, 6):
        assert f"| {hours * totals[0][3]:.2f} | {hours * totals[1][3]:.2f} |" in text
    assert f"{len(known['region']) + 1} machines, {known['size']}" in text


# -- planted mistakes --------------------------------------------------------------------------


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(("old", "new", "word"), [
    ("NoNewPrivileges=yes", "NoNewPrivilegs=yes", "Unknown key 'NoNewPrivilegs'"),
    ("ExecStart=/opt/tormentor/bin/python", "ExecStart=/opt/tormento/bin/python", "not executable"),
    ("ProtectSystem=strict", "ProtectSystem=very", "protect system"),
    ("Wants=network-online.target", "Requires=netwrk.target", "netwrk.target"),
    ("IPAddressDeny=169.254.169.254", "IPAddressDeny=169.254.169.25x", "169.254.169.25x"),
    ("CapabilityBoundingSet=\n", "", "exposure level"),
], ids=["key", "program", "value", "dependency", "address", "hardening"])
def test_a_broken_unit_is_caught(copy: Path, old: str, new: str, word: str) -> None:
    spoil(copy / "deploy/units/tormentor-referee.service", old, new)
    assert word in check(copy, "units")


def test_a_timer_that_never_comes_is_caught(copy: Path) -> None:
    spoil(copy / "deploy/units/tormentor-bomb.timer", "OnBootSec=24h", "OnCalendar=never")
    assert "lacks value setting" in check(copy, "units")


@pytest.mark.parametrize("mistakes", [
    # A key that the schema lets pass.
    {"pakages": ("\npackages:", "\npakages:")},
    {"package_update": ("package_update: true", "package_update: maybe"),
     "users.1": ("lock_passwd:", "lock_pass:"), "runcmd": ("runcmd:\n", "runcmd:\n  - {a: 1}\n")},
    {"yaml": ("    content: |", "   content: |")},
], ids=["key", "values", "yaml"])
def test_bad_user_data_are_caught(copy: Path, mistakes: dict[str, tuple[str, str]]) -> None:
    for old, new in mistakes.values():
        spoil(copy / "deploy/azure/machine.yaml", old, new)
    said = check(copy, "user_data")
    for word in mistakes:
        assert word in said


@pytest.mark.parametrize(("path", "text", "word"), [
    ("scripts/new", "#!/usr/bin/env bash\nrm -rf $1/*\n", "SC2086"),
    (".ci/run", "#!/bin/sh\n[[ $a == b ]]\n", "SC3010"),
    ("deploy/azure/new", "#!/bin/bash -e\nif true; then\n", "SC1073"),
])
def test_a_mistake_in_shell_is_caught(tmp_path: Path, path: str, text: str, word: str) -> None:
    good = "#!/bin/sh\ntrue\n"
    for name, content in {"good": good, "page.py": "#!/usr/bin/python3\nif true; then\n",
                          ".venv/bin/new": text, path: text}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert word in check(tmp_path, "shell")
    (tmp_path / path).write_text(good)
    assert not check(tmp_path, "shell")
