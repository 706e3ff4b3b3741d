"""A machine sets itself up: real cloud-init, real systemd, on a host of lab/field/hosts.py."""

import asyncio
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from field_world import needs_root

from lab.field.hosts import Host, Hosts, _descendants

ROOT = Path(__file__).parent.parent
CLOUD_INIT = ROOT / ".check/cloud-init"
UNITS = sorted(path.name for path in (ROOT / "deploy/units").iterdir())

pytestmark = [pytest.mark.slow, needs_root]

PREPARE = r"""
cd /mnt
tar c . | tar x -C / --keep-directory-symlink --no-same-owner
rm -rf /var/lib/cloud
mkdir -p /var/lib/cloud/seed/nocloud /etc/systemd/system/rehearsal.target.d /var/log/journal \
  /etc/cloud/cloud.cfg.d /etc/ssh/sshd_config.d
printf 'instance-id: i-1\nlocal-hostname: %s\npublic-keys: ["%s"]\n' "$1" "$2" \
  > /var/lib/cloud/seed/nocloud/meta-data
printf '%s\n' "$3" > /var/lib/cloud/seed/nocloud/user-data
printf 'datasource_list: [ NoCloud ]\nnetwork: {config: disabled}\nssh_deletekeys: false\n' \
  > /etc/cloud/cloud.cfg.d/99-rehearsal.cfg
printf '[Unit]\nWants=%s\nWants=%s\n' "cloud-init-local.service cloud-init.service" \
  "cloud-config.service cloud-final.service systemd-user-sessions.service" \
  > /etc/systemd/system/rehearsal.target.d/cloud.conf
# There is no internet here: what apt wants from there is to fail at once.
printf 'Acquire::Retries "0";\n' > /etc/apt/apt.conf.d/zz-no-internet
# As Debian has it.
printf 'Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\nSubsystem sftp internal-sftp\n' \
  > /etc/ssh/sshd_config
systemctl --no-block poweroff
"""
"""Puts cloud-init and what it finds on a new machine on a host, which is then switched off."""


def user_data(hours: str) -> str:
    return subprocess.run([ROOT / "deploy/azure/cloud-init", "--max-hours", hours],
                          capture_output=True, text=True, check=True).stdout


def init_of(hosts: Hosts, host: Host) -> int:
    """The process that is the first one of a host."""
    for pid in _descendants(hosts._children[hosts.hosts.index(host)].pid):
        if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
            return pid
    raise AssertionError(f"{host.name} has no init")


def inside(hosts: Hosts, host: Host, command: str) -> str:
    """What a command prints on a host, as its root, who cannot log in."""
    init = init_of(hosts, host)
    done = subprocess.run(["nsenter", "--all", f"--target={init}", "sh", "-c", command],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                          timeout=70)
    return done.stdout + done.stderr


def login(hosts: Hosts, host: Host, user: str) -> subprocess.CompletedProcess[str]:
    line = [*hosts.ssh(host.name)[:-1], f"{user}@{host.address}", "id -un"]
    return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False, timeout=20)


async def until_off(hosts: Hosts, host: Host, seconds: float) -> None:
    end = time.monotonic() + seconds
    while hosts.up(host.name):
        assert time.monotonic() < end, f"{host.name} is still up"
        await asyncio.sleep(0.1)


async def set_up(hosts: Hosts, host: Host, hours: str) -> None:
    """The first boot of a new machine."""
    key = hosts.key.with_suffix(".pub").read_text().strip()
    await hosts.run(host.name, "sh", "-euc", PREPARE, "sh", host.name, key, user_data(hours))
    await until_off(hosts, host, 20)
    await hosts.boot_again(host.name)


def journal(host: Host) -> str:
    return subprocess.run(
        ["journalctl", "--no-pager", "--directory", host.files / "var/log/journal"],
        capture_output=True, text=True, check=True).stdout


async def test_a_machine_sets_itself_up_and_goes_off_by_itself() -> None:
    subprocess.run([ROOT / "scripts/unpack-cloud-init"], check=True)
    async with Hosts(["long", "short"], binds={CLOUD_INIT: "/mnt"}) as hosts:
        long, short = hosts.hosts
        began = time.monotonic()
        await asyncio.gather(set_up(hosts, long, "2"), set_up(hosts, short, "0.004"))

        status = inside(hosts, long, "timeout 60 cloud-init status --wait --long")
        log = inside(hosts, long, "cat /var/log/cloud-init.log")
        # There is no internet here: apt fetches nothing, and packages that this machine lacks would
        # be missed. All else must have gone well.
        failed = {line.split(" (<")[0].split("module ")[-1] for line in log.splitlines()
                  if "Running module" in line and "failed" in line}
        assert failed <= {"package-update-upgrade-install"}, (status, failed)
        assert "'install', 'tor', 'python3', 'python3-venv'" in log
        assert failed or "status: done" in status, status

        # Who is there, and how one comes in.
        assert "tormentor:" in inside(hosts, long, "getent passwd tormentor")
        assert "/usr/sbin/nologin" in inside(hosts, long, "getent passwd tormentor")
        assert login(hosts, long, "debian").stdout == "debian\n"
        assert "Permission denied" in login(hosts, long, "root").stderr
        settings = inside(hosts, long, "/usr/sbin/sshd -T")
        for line in ("passwordauthentication no", "permitrootlogin no",
                     "kbdinteractiveauthentication no"):
            assert line in settings, settings

        # The units are those of deploy/units; no other tor starts.
        for name in UNITS:
            there = (long.files / "etc/systemd/system" / name).read_text()
            assert there == (ROOT / "deploy/units" / name).read_text(), name
        assert inside(hosts, long, "systemctl is-enabled tor.service").strip() == "masked"
        assert inside(hosts, long, "systemctl is-enabled apt-daily.timer").strip() == "masked"

        # The bomb is armed, and the moment stays over a reboot.
        when = long.files / "etc/systemd/system/tormentor-bomb.timer.d/when.conf"
        before, left = when.read_text(), seconds_left(hosts, long)
        assert "OnBootSec=7200s" in before
        assert 7200 - (time.monotonic() - began) - 5 < left <= 7200
        # By itself: on the next boot cloud-init is not there to arm it again.
        inside(hosts, long, "rm /etc/systemd/system/rehearsal.target.d/cloud.conf")
        inside(hosts, long, "systemctl --no-block reboot")
        await until_off(hosts, long, 20)
        await hosts.boot_again(long.name)
        assert when.read_text() == before
        assert inside(hosts, long, "systemctl is-active tormentor-bomb.timer").strip() == "active"
        assert seconds_left(hosts, long) < left

        # And it goes off.
        await until_off(hosts, short, 30)
        assert "power off, for the time of this machine is over" in journal(short)
        assert hosts.up(long.name)


def seconds_left(hosts: Hosts, host: Host) -> float:
    """Until the time bomb's calendar moment."""
    said = inside(hosts, host, "systemctl show -p NextElapseUSecRealtime --value "
                               "tormentor-bomb.timer; date +%s")
    moment, now = said.strip().splitlines()
    then = inside(hosts, host, f"date -d {shlex.quote(moment)} +%s")
    return float(then) - float(now)
