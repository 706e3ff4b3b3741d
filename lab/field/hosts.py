"""Hosts on one machine: real systemd, real sshd, an address each; for rehearsing a deployment.

A :class:`Host` shares this machine's kernel and files, and nothing else. Its root is an overlay
over this machine's, so that what is installed here is there, and what it writes is its own. It has
namespaces of its own for network, processes, mounts and names, and systemd-nspawn starts this
machine's own systemd as its init: so units, their hardening and ``systemctl`` are the real ones. Of
this machine's services none runs there: it boots a target that wants sshd only, with keys made for
this run. Its one link is to a bridge, where this machine has the first address; it has no route
beyond.

All of a host hangs on one process, in a namespace of processes, that the kernel ends with ours,
even if that is killed; and with the last process its mounts and its network are gone. A bridge, an
empty control group and the files then stay behind: the next start removes them. Several sets of
hosts may be up at once; each has a slot, a lock, and its number in the names of all that is its
own.

Needs root on Linux, systemd-nspawn, sshd, ip, unshare and setpriv: ``scripts/rehearse`` installs
what is missing. Five hosts are up in two seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from accord.files import private_directory, write_whole
from accord.problems import NO_HOSTS, Problem
from accord.tor import last_words
from lab.field.furnish import SSHD_KEY, SYSTEM, furnish

ROOT: Final = Path("/var/cache/tormentor-hosts")
"""Where files of hosts are while they are up: root's alone, and on a disk."""
PREFIX: Final = "tmhosts"
"""Names of bridges, control groups and machines begin so, and with no other program's."""
SLOTS: Final = 8
"""Sets of hosts that can be up at once."""
PROGRAMS: Final = {"systemd-nspawn": "systemd-container", "sshd": "openssh-server",
                   "ssh": "openssh-client", "ssh-keygen": "openssh-client", "ip": "iproute2",
                   "unshare": "util-linux", "setpriv": "util-linux"}
"""What is needed, and Debian's package of it."""
_BOOT: Final = 60.0
_POLL: Final = 0.05
_START: Final = """\
set -eu
[ "$PPID" = "$1" ] || exit 1
shift
exec unshare --mount --pid --fork --kill-child=KILL --mount-proc -- sh -euc "$@"
"""
"""Ends with the process $1 that started it (setpriv's death signal), and all in it with that."""
_INSIDE: Final = """\
group=$1 files=$2 upper=$3
shift 3
# The control groups of today (version 2), also where the machine still mixes them with the old.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$group"
echo 0 > "/sys/fs/cgroup/$group/cgroup.procs"
mount -t overlay overlay -o "lowerdir=/,upperdir=$upper,workdir=$files/work" "$files/root"
exec systemd-nspawn "$@"
"""
_SWEEP: Final = """\
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /sys/fs/cgroup
[ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A host that is up.

    Attributes:
        name: it calls itself so.
        address: on the bridge.
        link: the bridge's end of its cable.
        files: what it has written so far, beside what this machine has.
    """

    name: str
    address: str
    link: str
    files: Path


class Hosts:
    """Hosts that are up; as an asynchronous context manager, and nothing of them is left.

    They end with the thread that entered it, too.

    Args:
        names: one for each host: letters, digits and hyphens.
        binds: directories of this machine that all of them see, read-only, at another place.

    Attributes:
        gateway: this machine's address on the bridge.
        key: file of the key that root is let in with.
        known: file of the hosts' own keys, for ssh's ``UserKnownHostsFile``.
        boot: seconds that the slowest took until its sshd answered.

    Entering raises:
        Problem: ``NO_HOSTS`` with the reason.
    """

    def __init__(self, names: Sequence[str], *, binds: Mapping[Path, str] | None = None) -> None:
        if len(set(names)) != len(names) or not 0 < len(names) <= 200:
            raise ValueError("1 to 200 hosts, each with a name of its own")
        self.hosts: tuple[Host, ...] = ()
        self.gateway = ""
        self.boot = 0.0
        self._names = tuple(names)
        self._binds = dict(binds or {})
        self._lock: IO[str] | None = None
        self._slot = -1
        self._directory = ROOT
        self._children: list[asyncio.subprocess.Process] = []

    @property
    def key(self) -> Path:
        """See the class."""
        return self._directory / "key"

    @property
    def known(self) -> Path:
        """See the class."""
        return self._directory / "known_hosts"

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    # -- up and down ---------------------------------------------------------------------------

    async def __aenter__(self) -> Hosts:
        _check()
        try:
            await asyncio.to_thread(self._prepare)
            began = time.monotonic()
            for number in range(len(self.hosts)):
                self._children.append(await self._start(number))
            await asyncio.gather(*map(self._answers, self.hosts, self._children))
            self.boot = time.monotonic() - began
            await self._reaches_us(self._names[-1])
        except OSError as error:
            await self._end()
            why = f"{error.filename or 'the system'}: {(error.strerror or str(error)).lower()}"
            raise Problem(NO_HOSTS, why=why, what="make room or leave, and try again") from None
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._end()

    async def _end(self) -> None:
        """End all of it. Shielded, so that one more Ctrl-C leaves nothing either."""
        await asyncio.shield(asyncio.create_task(self._ended()))

    async def _ended(self) -> None:
        children, self._children = self._children, []
        for child in children:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
        await asyncio.gather(*(child.wait() for child in children))
        if self._lock is not None:
            try:
                await asyncio.to_thread(_sweep, self._slot)
            finally:
                self._lock.close()
                self._lock = None
        self.hosts = ()

    def _prepare(self) -> None:
        """A slot, its network, its keys, and what each host has of its own."""
        self._lock, self._slot = _free_slot()
        self._directory = private_directory(ROOT / str(self._slot))
        if _layered(self._directory):
            # In a container, mostly: such a file system can't be written through by another one.
            _run("mount", "-t", "tmpfs", "-o", "mode=700", PREFIX, str(self._directory))
        bridge = f"{PREFIX}{self._slot}"
        network = _free_network(_run("ip", "-4", "-json", "route", "show", "table", "all"),
                                self._slot)
        self.gateway = str(network[1])
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "address", "add", f"{self.gateway}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        self.hosts = tuple(
            # systemd-nspawn calls its end of the cable so.
            Host(name, str(network[11 + i]), f"vb-{bridge}-{i}", self._directory / str(i) / "upper")
            for i, name in enumerate(self._names))
        _new_key(self.key)
        lines = []
        for host in self.hosts:
            for place in (host.files.parent / "work", host.files.parent / "root"):
                place.mkdir(parents=True)
            furnish(host.files, host.name, host.address, self.key.with_suffix(".pub").read_text(),
                    {each.name: each.address for each in self.hosts})
            public = _new_key(host.files / SSHD_KEY)
            lines.append(f"{host.address} {public}\n")
        write_whole(self.known, "".join(lines).encode(), 0o600)

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        host = self.hosts[number]
        bridge = f"{PREFIX}{self._slot}"
        files = host.files.parent
        binds = [f"--bind-ro={path}:{place}" for path, place in self._binds.items()]
        inside = [
            f"{bridge}/{number}", str(files), str(host.files), "--quiet",
            f"--directory={files / 'root'}", f"--machine={bridge}-{number}",
            f"--hostname={host.name}", f"--network-bridge={bridge}", "--resolv-conf=off",
            "--timezone=off", "--link-journal=no", "--settings=no", *binds,
            # Nobody is told of it: not the machine's own systemd, should there be one.
            "--register=no", "--keep-unit", "--boot", "--console=read-only", "--",
            "--unit=rehearsal.target"]
        environment = {"PATH": SYSTEM, "UNIFIED_CGROUP_HIERARCHY": "1"}
        with (files / "boot.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL", "sh", "-c", _START, "sh", str(os.getpid()),
                _INSIDE, "sh", *inside, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment,
                # So that Ctrl-C reaches us first.
                start_new_session=True)

    async def _answers(self, host: Host, child: asyncio.subprocess.Process) -> None:
        """Wait until its sshd answers."""
        log = host.files.parent / "boot.log"
        end = time.monotonic() + _BOOT
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    reader, writer = await asyncio.open_connection(host.address, 22)
                    try:
                        if (await reader.readline()).startswith(b"SSH-"):
                            return
                    finally:
                        writer.close()
            if child.returncode is not None:
                raise Problem(NO_HOSTS, why=f"{host.name} ended at once: {last_words(log)}",
                              what="mend that and try again")
            if time.monotonic() > end:
                raise Problem(NO_HOSTS, why=f"{host.name} has no sshd after {_BOOT:.0f} seconds",
                              what=f"it said last: {last_words(log)}")
            await asyncio.sleep(_POLL)

    async def _reaches_us(self, name: str) -> None:
        """See that a host reaches this machine, as it must for the network that is here."""
        server = await asyncio.start_server(lambda _, writer: writer.close(), self.gateway, 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            try:
                await self.run(name, "timeout", "5", "bash", "-c",
                               f"exec 3<>/dev/tcp/{self.gateway}/{port}")
            except subprocess.CalledProcessError as error:
                if error.returncode == 255:  # ssh's own
                    why = (error.stderr.strip().splitlines() or ["nothing"])[-1].rstrip(".")
                    raise Problem(NO_HOSTS, why=f"ssh to {name} says: {why}",
                                  what="mend that and try again") from None
                raise Problem(
                    NO_HOSTS, why=f"a host does not reach this machine at {self.gateway}: a "
                    "firewall keeps it out", what=f"let in what comes over {PREFIX}{self._slot}, "
                    "for as long as it takes") from None

    # -- using them ----------------------------------------------------------------------------

    def ssh(self, name: str) -> list[str]:
        """The command that opens a shell on a host, or runs what is added to it."""
        return ["ssh", "-i", str(self.key), *_options(self.known), f"root@{self[name].address}"]

    async def run(self, name: str, *command: str, check: bool = True) -> str:
        """What a command on a host prints, over ssh.

        Raises:
            subprocess.CalledProcessError: it failed, and ``check`` is on.
        """
        line = [*self.ssh(name), shlex.join(command)]
        done = await asyncio.to_thread(
            subprocess.run, line, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=check)
        return done.stdout

    async def cut(self, name: str) -> None:
        """Cut a host's cable: nothing reaches it or comes from it, and nobody is told."""
        await asyncio.to_thread(_run, "ip", "link", "set", self[name].link, "down")

    async def mend(self, name: str) -> None:
        """Mend it."""
        await asyncio.to_thread(_run, "ip", "link", "set", self[name].link, "up")

    def up(self, name: str) -> bool:
        """Whether a host runs. One that switched itself off, or began to boot anew, does not."""
        return self._children[self._names.index(name)].returncode is None

    async def boot_again(self, name: str) -> None:
        """Start a host that has ended, with the files that it left.

        Raises:
            Problem: ``NO_HOSTS``.
        """
        number = self._names.index(name)
        if self.up(name):
            raise RuntimeError(f"{name} is up")
        self._children[number] = await self._start(number)
        await self._answers(self.hosts[number], self._children[number])

    def inventory(self, path: Path, variables: Mapping[str, Mapping[str, Any]] | None = None,
                  common: Mapping[str, Any] | None = None) -> None:
        """Write Ansible's inventory: the first host is the broker, the others are clients.

        Args:
            path: of the file (YAML).
            variables: of each host, by name; what is not there it has none of.
            common: of all hosts.
        """
        each = variables or {}
        hosts = {host.name: {"ansible_host": host.address, **each.get(host.name, {})}
                 for host in self.hosts}
        broker = self._names[0]
        tree = {"all": {
            "vars": {"ansible_user": "root", "ansible_ssh_private_key_file": str(self.key),
                     "ansible_ssh_common_args": shlex.join(_options(self.known)),
                     **(common or {})},
            "children": {
                "broker": {"hosts": {broker: hosts.pop(broker)}},
                "clients": {"hosts": hosts}}}}
        # JSON is YAML, too.
        write_whole(path, msgspec.json.format(msgspec.json.encode(tree)) + b"\n", 0o600)

    def memory(self) -> dict[str, int]:
        """Bytes of memory that each host's processes have for themselves (private pages)."""
        found = {}
        for host, child in zip(self.hosts, self._children, strict=True):
            found[host.name] = sum(map(_private_bytes, _descendants(child.pid)))
        return found


def missing() -> list[str]:
    """Debian's packages of the programs that are not there."""
    return sorted({package for name, package in PROGRAMS.items()
                   if shutil.which(name, path=SYSTEM) is None})


def refusal() -> tuple[str, str] | None:
    """Why hosts cannot be brought up here, and what to do; None when they can."""
    if sys.platform != "linux":
        return "this is no Linux", "use a machine, or a virtual one, with Debian or Ubuntu"
    if os.geteuid() != 0:
        return ("only root can make hosts (namespaces, mounts, a bridge)",
                "type: sudo scripts/rehearse")
    if packages := missing():
        return f"{', '.join(packages)} missing", "scripts/rehearse installs that"
    return None


def _check() -> None:
    if reason := refusal():
        raise Problem(NO_HOSTS, why=reason[0], what=reason[1])


# -- slots and networks ----------------------------------------------------------------------


def _free_slot() -> tuple[IO[str], int]:
    """The first slot that nobody has, locked; all that nobody has are cleared of what killed runs
    left in them."""
    private_directory(ROOT)
    mine: tuple[IO[str], int] | None = None
    for slot in range(SLOTS):
        file = (ROOT / f"{slot}.lock").open("w")
        keep = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sweep(slot)
            keep = mine is None
        except BlockingIOError:
            continue
        finally:
            if not keep:
                file.close()
        mine = mine or (file, slot)
    if mine is not None:
        return mine
    raise Problem(NO_HOSTS, why=f"{SLOTS} sets of them are up already",
                  what="wait until one of those ends")


def _sweep(slot: int) -> None:
    """Remove a slot's bridge, control groups and files. Its lock must be held; so its processes,
    and with them its mounts and its links, are gone or going."""
    bridge = f"{PREFIX}{slot}"
    for attempt in range(100):
        try:
            _run("unshare", "--mount", "--", "sh", "-euc", _SWEEP, "sh", bridge)
            break
        except Problem:  # the last process is not quite gone
            if attempt == 99:
                raise
            time.sleep(_POLL)
    if Path("/sys/class/net", bridge).exists():
        _run("ip", "link", "delete", bridge)
    place = ROOT / str(slot)
    if place.is_mount():
        _run("umount", "--lazy", str(place))
    shutil.rmtree(place, ignore_errors=True)


def _layered(place: Path) -> bool:
    """Whether what is written somewhere goes to an overlay."""
    return _run("stat", "--file-system", "--format=%T", str(place)).strip() == "overlayfs"


def _free_network(routes: str, slot: int) -> ipaddress.IPv4Network:
    """A /24 of private addresses that no route here leads to.

    Args:
        routes: what ``ip -json route`` says.
        slot: sets of hosts that come up at the same moment take none of the same.
    """
    taken = []
    for route in msgspec.json.decode(routes, type=list[dict[str, Any]]):
        with contextlib.suppress(ValueError):  # "default", which leads everywhere
            taken.append(ipaddress.ip_network(route["dst"], strict=False))
    for number in range(64 + slot, 255, SLOTS):
        network = ipaddress.IPv4Network(f"10.77.{number}.0/24")
        if not any(network.overlaps(each) for each in taken):
            return network
    raise Problem(NO_HOSTS, why="10.77.0.0/16 is in use here",
                  what="leave one of its networks from 10.77.64.0/24 on free")


# -- programs, keys, processes ---------------------------------------------------------------


def _run(*command: str) -> str:
    """What a program prints. Raises Problem when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False, env={"PATH": SYSTEM})
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1].rstrip(".")
        raise Problem(NO_HOSTS, why=f"'{shlex.join(command[:4])} ...' says: {said}",
                      what="mend that and try again")
    return done.stdout


def _options(known: Path) -> list[str]:
    """For ssh: these hosts' keys and no others, no questions, and no long silence."""
    return ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known}",
            "-o", "GlobalKnownHostsFile=/dev/null", "-o", "BatchMode=yes",
            "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"]


def _new_key(path: Path) -> str:
    """Make a key (Ed25519) at a path and beside it; its public half."""
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", PREFIX, "-f", str(path))
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def _descendants(pid: int) -> Iterable[int]:
    """A process and all that came of it."""
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _descendants(int(child))


def _private_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return 0


