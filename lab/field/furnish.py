"""What a host of a rehearsal (:mod:`lab.field.hosts`) has of its own when it boots.

All else it shares with this machine. It is written into the upper directory of an overlay, beneath
which this machine's files are: a directory marked opaque there shows nothing of those.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from accord.files import private_directory, write_whole

SYSTEM: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
"""Where programs are, for root."""
SSHD_KEY: Final = "etc/ssh/ssh_host_ed25519_key"
_OWN: Final = ("etc/systemd/system", "etc/ssh", "etc/tormentor", "home", "opt/tormentor", "root",
               "srv", "var/lib/tormentor", "var/lib/tormentor-wheel", "var/log")
"""Directories that a host does not see this machine's of: what is enabled, known or logged here,
and what belongs to its people, such as what their shells do first."""
_TARGET: Final = """\
[Unit]
Description=A host of a rehearsal
Requires=basic.target network.service ssh.service
After=basic.target network.service ssh.service
AllowIsolate=yes
"""
_NETWORK: Final = """\
[Unit]
Description=The link to the bridge
DefaultDependencies=no
Before=basic.target ssh.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip link set lo up
ExecStart=ip address add {address}/24 dev host0
ExecStart=ip link set host0 up
"""
_SSH: Final = """\
[Unit]
Description=OpenSSH server of a rehearsal
After=network.service

[Service]
RuntimeDirectory=sshd
ExecStart={sshd} -D -e
KillMode=process
Restart=on-failure
"""
_SSHD: Final = """\
HostKey /etc/ssh/ssh_host_ed25519_key
AuthenticationMethods publickey
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
DisableForwarding yes
PrintMotd no
# A crowd of Ansible's forks knocks at once.
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""


def furnish(files: Path, name: str, address: str, key: str, all_of_them: Mapping[str, str]
        ) -> None:
    """Write what a host has of its own, before it boots for the first time.

    Args:
        files: the upper directory of its overlay; made.
        name, address: its own.
        key: a line of those that root is let in with.
        all_of_them: the hosts' names, and their addresses.
    """
    files.mkdir(parents=True)
    for hidden in _OWN:
        place = files / hidden
        place.mkdir(parents=True, exist_ok=True)
        # The overlay shows nothing of what is below it (the kernel's overlayfs.rst).
        os.setxattr(place, "trusted.overlay.opaque", b"y")
    # They are the directories of a host, whatever this process' umask.
    for made in (files, *files.rglob("*")):
        made.chmod(0o755)
    (files / "root").chmod(0o700)
    private_directory(files / "root/.ssh")
    sshd = shutil.which("sshd", path=SYSTEM)
    units = "etc/systemd/system"
    # All passwords are taken away; and an account without one is locked for sshd when it is
    # marked with "!", as root is in some systems.
    shadow = [line.split(":") for line in Path("/etc/shadow").read_text().splitlines()]
    others = [f"{where} {each}\n" for each, where in all_of_them.items()]
    for path, text in {
        "etc/fstab": "", "etc/hostname": f"{name}\n", "etc/resolv.conf": "",
        "etc/machine-id": f"{secrets.token_hex(16)}\n",
        "etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{''.join(others)}",
        "etc/shadow": "".join(f"{':'.join([each[0], '*', *each[2:]])}\n" for each in shadow),
        "etc/ssh/sshd_config": _SSHD, f"{units}/rehearsal.target": _TARGET,
        f"{units}/ssh.service": _SSH.format(sshd=sshd),
        f"{units}/network.service": _NETWORK.format(address=address),
        "root/.ssh/authorized_keys": key,
    }.items():
        write_whole(files / path, text.encode(), 0o600 if "shadow" in path else 0o644)
