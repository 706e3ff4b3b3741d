"""What comes up at the addresses of modelled machines: real sshd, each on an address of loopback.

A machine is a process of OpenSSH's own sshd on 127.x.y.z port 22, in a mount namespace in which
there is a user 'azureuser' who has the key that ``az vm create`` was given. So ssh, the key and
the login are real; the machine itself is this one. Its ``cloud-init`` is a stand-in script that
says so. Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Machines:
    """All of them; ended by :meth:`close`, and with this process."""

    def __init__(self, place: Path):
        self.place = place
        place.mkdir(parents=True)
        place.chmod(0o755)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.count = 0
        # One thread begins them all, and lives as long as we: the kernel ends a child with the
        # thread that began it (PR_SET_PDEATHSIG).
        self.parent = ThreadPoolExecutor(1)
        # Each set of machines has a /24 of its own, as tests run side by side.
        self.net = f"127.{70 + os.getpid() // 250 % 50}.{os.getpid() % 250}"
        for name in ("passwd", "shadow"):
            text = Path(f"/etc/{name}").read_text()
            more = f"azureuser:x:0:0::{place}/home:/bin/bash\n" if name == "passwd" \
                else "azureuser:*:19000:0:99999:7:::\n"
            (place / name).write_text("".join(
                line + "\n" for line in text.splitlines()
                if not line.startswith("azureuser:")) + more)
        (place / "home").mkdir()

    def address(self, name: str) -> str:
        """A new one."""
        self.count += 1
        return f"{self.net}.{self.count}"

    def begin(self, name: str, address: str, key: str, dead: bool, broken: bool) -> None:
        """Have it come up; dead: nothing listens there; broken: its cloud-init fails."""
        home = self.place / f"{address}"
        home.mkdir()
        (home / "keys").write_text(key)
        (home / "cloud-init").write_text(
            "#!/bin/sh\n# A stand-in for cloud-init, which says that it is done.\n"
            f"exit {int(broken)}\n")
        (home / "cloud-init").chmod(0o755)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "host")],
                       check=True)
        (home / "sshd_config").write_text(
            f"ListenAddress {address}\nPort 22\nHostKey {home}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {home}/keys\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            "AllowUsers azureuser\n"
            f"SetEnv PATH={home}:/usr/sbin:/usr/bin:/sbin:/bin\n")
        if dead:
            return
        sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin")
        script = (f"mount --bind {self.place}/passwd /etc/passwd && "
                  f"mount --bind {self.place}/shadow /etc/shadow && mkdir -p /run/sshd && "
                  f"exec {sshd} -D -e -f {home}/sshd_config")
        with (home / "log").open("wb") as log:
            self.running[name] = self.parent.submit(
                subprocess.Popen,
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private",
                 "sh", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log).result()

    def end(self, name: str) -> None:
        """It is deleted."""
        process = self.running.pop(name, None)
        if process:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """All of them are."""
        for name in list(self.running):
            self.end(name)
