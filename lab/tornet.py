"""A private Tor network on one machine, from real tor processes: authorities, relays, one client.

Everything that Tor does is done by Tor: votes, consensus, guards, onion services over six hops.
Only the waiting is short (``TestingTorNetwork``, see tor(1)), and whoever runs the relays is you,
so it gives no anonymity: it is for tests, the demo, and measurements.

It is on loopback, or at another address of this machine for others who reach that, such as the
hosts of a rehearsal (:mod:`lab.field.hosts`). It starts from fresh keys each time. Other tors join
it by including :attr:`TorNetwork.extra_torrc` in their configuration. Owned, it ends with this
process, even by kill -9 (within the 15 seconds that tor takes to notice); detached, it stays until
:meth:`TorNetwork.down`, from any process.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from accord.control import Control, Progress, Socks
from accord.files import private_directory
from accord.problems import LOCKED, TOR_FAILED, TOR_SLOW, Problem
from accord.tor import (
    Tor,
    find_tor,
    held_port,
    last_words,
    launch,
    prepare,
    spawn,
    stop,
    torrc,
)
from accord.tor import running as running

AUTHORITIES: Final = 3
RELAYS: Final = 4
_POLL: Final = 0.1
_INTERVAL: Final = 5
"""Seconds between votes while there is no consensus yet: the least that tor accepts."""
_GOOD_START: Final = 2.9
_LATE_START: Final = 1.3
"""When to start, in seconds of the interval: a vote is 4 seconds before the consensus, and a tor
that starts during it votes 2 seconds after its start. Measured: started between 1.6 and 2.7, some
relays miss the first vote; from 2.9 on, or up to 1.5, none does."""
_ATTEMPTS: Final = 3
"""How often it is begun anew when a slow machine misses the first vote all the same: the second
vote would be V3AuthVotingInterval later."""
_READY: Final = 15.0
"""Seconds that the client has once there is a consensus. It takes 1 to 3; but now and then, on a
busy machine, the first circuits of all tors hang for over a minute, and to begin anew is sooner."""

_PRIVATE: Final = """\
TestingTorNetwork 1
AssumeReachable 1
PathsNeededToBuildCircuits 0.67
# tor learns how long circuits take and gives up slower ones: on an idle loopback 60 ms, and when
# the machine is busy a moment later, onion services fail to meet their clients for minutes.
LearnCircuitBuildTimeout 0
CircuitBuildTimeout 20
"""

_FAR: Final = """\
# The clients of a network with distances are as far apart as its relays, and each has a guard of
# its own: one tor stands for all of them here, so each of its circuits begins anywhere. And no
# relay is kept for the second step of them, as the tors of 2018 did not (vanguards-lite), so that
# round trips spread as those of the paper do.
UseEntryGuards 0
VanguardsLiteEnabled 0
"""

_NODE: Final = """\
DataDirectory "{directory}"
Nickname {name}
Log notice file {directory}/tor.log
PidFile {directory}/pid
SafeLogging 1
AvoidDiskWrites 1
GeoIPFile /dev/null
GeoIPv6File /dev/null
SocksPort 0
Address {address}
{or_ports}
ExitRelay 0
ContactInfo nobody@invalid
NumCPUs 1
MaxMemInQueues 256 MB
ShutdownWaitLength 0
%include "{extra}"
{ending}
"""

_AUTHORITY: Final = f"""\
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
DirPort {{address}}:{{dir_port}}
# The first consensus as soon as tor allows; then a calm pace, on which onion services' periods
# depend too (24 votes).
TestingV3AuthInitialVotingInterval {_INTERVAL}
TestingV3AuthInitialVoteDelay 2
TestingV3AuthInitialDistDelay 2
V3AuthVotingInterval 300
V3AuthVoteDelay 10
V3AuthDistDelay 10
# Everyone deserves every flag at once: nobody here has been up for a week.
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
TestingMinExitFlagThreshold 0
MinUptimeHidServDirectoryV2 0
"""


@dataclass(frozen=True, slots=True)
class Link:
    """Where a relay says that it is, and where it listens. The same, unless somebody forwards."""

    advertised: int
    listening: int


@dataclass(frozen=True, slots=True)
class Node:
    """One tor of the network: its name, its directory, its process if it has one."""

    name: str
    directory: Path
    pid: int | None

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None


class TorNetwork:
    """A private network whose files are all in one directory.

    Args:
        directory: made if need be; what is in it from an earlier network is replaced by ``up``.
        detached: whether the tors stay when this process ends.
        address: of this machine (IPv4), at which the network is reached.

    Attributes:
        extra_torrc: a file for another tor's ``%include``, with which it joins this network.
        socks: the client's SOCKS ports, when up.
        tor: the client itself, when up and owned: it publishes onion services too.
    """

    def __init__(self, directory: Path, *, detached: bool = False,
                 address: str = "127.0.0.1") -> None:
        self.directory = directory.resolve()
        self.detached = detached
        self.address = address
        self.extra_torrc = self.directory / "network.torrc"
        self.socks: list[Socks] = []
        self.tor: Tor | None = None
        self._names = [*(f"authority{i}" for i in range(AUTHORITIES)),
                       *(f"relay{i}" for i in range(RELAYS))]
        self._children: dict[str, asyncio.subprocess.Process] = {}

    async def up(
        self,
        socks_ports: int = 1,
        progress: Progress | None = None,
        *,
        links: Callable[[Sequence[Link]], Awaitable[None]] | None = None,
        seconds: float = 90.0,
    ) -> None:
        """Start it from fresh keys, and wait until the client is ready for use.

        Args:
            socks_ports: how many the client opens; streams of two ports share no circuit.
            progress: told percent and words.
            links: when given, relays listen elsewhere than they advertise, and this is awaited
                before they start: it forwards each link's ``advertised`` port to ``listening``
                (that is where a delay is put, :class:`lab.wan.Wan`). Circuits are then spread over
                all relays, without guards.
            seconds: until it must be ready.

        Raises:
            Problem: ``LOCKED`` when it is up, ``TOR_MISSING``, ``TOR_OLD``, ``TOR_FAILED`` with
                the node and its log, ``TOR_SLOW``, ``DISK``.
        """
        tell = progress or (lambda percent, words: None)
        if any(node.alive for node in self.status()):
            raise Problem(LOCKED, path=self.directory)
        reached = "making keys"

        def note(percent: int, words: str) -> None:
            nonlocal reached
            reached = words
            tell(percent, words)

        try:
            async with asyncio.timeout(seconds):
                for attempt in range(1, _ATTEMPTS + 1):
                    # A machine may be so slow that it never takes less: the last has all the time.
                    ready = _READY if attempt < _ATTEMPTS else None
                    if await self._up(socks_ports, note, links, ready):
                        return
                    await self.down()
            raise TimeoutError
        except TimeoutError:
            await self.down()
            log = self.directory / "authority0" / "tor.log"
            raise Problem(TOR_SLOW, percent=0, seconds=round(seconds), what=reached,
                          log=log) from None
        except BaseException:
            await self.down()
            raise

    async def _up(self, socks_ports: int, tell: Progress,
                  links: Callable[[Sequence[Link]], Awaitable[None]] | None,
                  ready: float | None) -> bool:
        """One attempt; False when a relay missed the first vote, or the first circuits hang."""
        tell(0, "making keys")
        program, _ = await asyncio.to_thread(find_tor)
        await asyncio.to_thread(self._clear)
        count = len(self._names)
        with contextlib.ExitStack() as reserved:
            ports = [
                reserved.enter_context(reserved.enter_context(held_port(self.address)).lent())
                for _ in range(2 * count + AUTHORITIES)]
            listening, advertised, dir_ports = (
                ports[:count], ports[count : 2 * count], ports[2 * count :])
            if links is None:
                advertised = listening
            pairs = [Link(*pair) for pair in zip(advertised, listening, strict=True)]
            lines = await asyncio.gather(*(
                self._authority_keys(program, name, pairs[i].advertised, dir_ports[i])
                for i, name in enumerate(self._names[:AUTHORITIES])))
            far = _FAR if links is not None else ""
            self.extra_torrc.write_text(_PRIVATE + far + "\n".join(lines) + "\n")
            if links is not None:
                await links(pairs)
            await asyncio.sleep(_until_start(time.time()))
            tell(10, f"starting {count} tors")
            commands = [
                prepare(program, self.directory / name,
                        self._node(name, pairs[i], dir_ports[i : i + 1]))
                for i, name in enumerate(self._names)]
            await asyncio.gather(*map(self._start, self._names, commands))
            tell(20, "waiting for the authorities to agree")
            complete = await self._consensus()
        if not complete:
            return False
        try:
            async with asyncio.timeout(ready):
                await self._client(program, socks_ports, lambda p, w: tell(40 + p * 6 // 10, w))
        except TimeoutError:
            return False
        return True

    def _clear(self) -> None:
        self.remove()
        private_directory(self.directory)

    def remove(self) -> None:
        """Remove the keys, data and logs of a network that is down, and nothing else."""
        for name in (*self._names, "client"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        self.extra_torrc.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody's own files are in it, or it is not there
            self.directory.rmdir()

    async def _authority_keys(self, program: Path, name: str, or_port: int, dir_port: int) -> str:
        """Make an authority's keys; the line by which the others know it."""
        directory = self.directory / name
        keys = private_directory(private_directory(directory) / "keys")
        gencert, _ = find_tor("tor-gencert")
        log = directory / "tor.log"
        _, printed = await asyncio.gather(
            _run(log, str(gencert), "--create-identity-key", "-m", "12", "-a",
                 f"{self.address}:{dir_port}", "-i", str(keys / "authority_identity_key"),
                 "-s", str(keys / "authority_signing_key"),
                 "-c", str(keys / "authority_certificate"), "--passphrase-fd", "0"),
            _run(log, str(program), "--defaults-torrc", os.devnull, "--ignore-missing-torrc",
                 "-f", str(directory / "torrc"), "--quiet", "--DataDirectory", str(directory),
                 "--ORPort", str(or_port), "--Nickname", name, "--list-fingerprint"))
        certificate = (keys / "authority_certificate").read_text()
        identity = re.search(r"^fingerprint ([0-9A-F]{40})$", certificate, re.MULTILINE)
        relay = re.search(r"((?:[0-9A-F]{4} ?){10})", printed)
        if not (identity and relay):
            raise Problem(TOR_FAILED, why=f"{name} has no fingerprint", log=log)
        return (f"DirAuthority {name} orport={or_port} v3ident={identity[1]} "
                f"{self.address}:{dir_port} {relay[1].strip()}")

    def _node(self, name: str, link: Link, dir_port: Sequence[int]) -> str:
        """The torrc of an authority or a relay."""
        at = self.address
        or_ports = f"ORPort {at}:{link.listening}"
        if link.advertised != link.listening:
            or_ports = (f"ORPort {at}:{link.advertised} NoListen\n"
                        f"ORPort {at}:{link.listening} NoAdvertise")
        owner = f"__OwningControllerProcess {os.getpid()}"
        text = _NODE.format(directory=self.directory / name, name=name,
                            address=at, or_ports=or_ports, extra=self.extra_torrc,
                            ending="RunAsDaemon 1" if self.detached else owner)
        if dir_port:
            return text + _AUTHORITY.format(address=at, dir_port=dir_port[0])
        # A relay that asks before there is a consensus backs off, at random, for up to a minute.
        # It counts from a second after its start.
        patience = math.ceil(_until_consensus(time.time()) - 0.5)
        return text + f"TestingServerConsensusDownloadInitialDelay {patience}\n"

    async def _start(self, name: str, command: Sequence[str]) -> None:
        log = self.directory / name / "tor.log"
        child = await spawn(command, log)
        if not self.detached:
            self._children[name] = child
        elif await child.wait() != 0:  # it returns once its daemon runs
            raise Problem(TOR_FAILED, why=f"{name}: {last_words(log)}", log=log)

    async def _consensus(self) -> bool:
        """Wait until every relay can tell clients of all the others, while all tors live.

        False when the authorities' consensus lacks one. A client whose guard cannot tell would
        wait for ten seconds before it asks again.
        """
        count = len(self._names)
        consensus = self.directory / "authority0" / "cached-microdesc-consensus"
        missing = [self.directory / name / "cached-microdescs.new" for name in self._names]
        while missing := [path for path in missing if not path.exists()]:
            for name, child in self._children.items():
                if child.returncode is not None:
                    log = self.directory / name / "tor.log"
                    raise Problem(TOR_FAILED, why=f"{name}: {last_words(log)}", log=log)
            await asyncio.sleep(_POLL)
            if consensus.exists() and len(re.findall("^r ", consensus.read_text(), re.M)) != count:
                return False
        return True

    async def _client(self, program: Path, socks_ports: int, tell: Progress) -> None:
        directory = self.directory / "client"
        if not self.detached:
            self.tor = await launch(directory, extra_torrc=self.extra_torrc, progress=tell,
                                    socks_ports=socks_ports)
            self.socks = self.tor.ports
            return
        text = torrc(directory, socks_ports=("auto",) * socks_ports, extra=self.extra_torrc)
        await self._start("client", prepare(program, directory, text))
        await self._look(tell)

    async def _look(self, progress: Progress | None = None) -> None:
        control = await Control.open(self.directory / "client" / "control")
        try:
            await control.bootstrap(progress)
            self.socks = await control.socks()
        finally:
            await control.close()

    async def kill(self, name: str) -> None:
        """End an authority or a relay of an owned network at once, as a crash would."""
        child = self._children[name]
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()

    async def restart(self, name: str) -> None:
        """Start one again that was killed: the same keys, ports and place in the consensus."""
        program, _ = await asyncio.to_thread(find_tor)
        directory = self.directory / name
        text = await asyncio.to_thread((directory / "torrc").read_text)
        await self._start(name, prepare(program, directory, text))

    async def join(self) -> list[Socks]:
        """The SOCKS ports of a network that another process brought up and left.

        Raises:
            Problem: ``TOR_AWAY`` when it is not up.
        """
        await self._look()
        return self.socks

    def status(self) -> list[Node]:
        """Each tor of the network and whether it lives; those that were never started are not."""
        places = [self.directory / name for name in (*self._names, "client")]
        return [Node(place.name, place, running(place)) for place in places]

    async def down(self) -> None:
        """Stop all of it, whoever started it. Keeps the logs. May be called twice."""
        if self.tor:
            await self.tor.close()
        await asyncio.gather(*map(stop, self._children.values()))
        self._children.clear()
        self.tor, self.socks = None, []
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for _ in range(50):
                pids = [node.pid for node in self.status() if node.pid]
                if not pids:
                    return
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, sign)
                await asyncio.sleep(_POLL)

    async def __aenter__(self) -> TorNetwork:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.down()


def _until_start(now: float) -> float:
    """Seconds to wait so that no relay misses the first vote. Votes count from midnight UTC."""
    phase = now % _INTERVAL
    return _GOOD_START - phase if _LATE_START < phase < _GOOD_START else 0.0


def _until_consensus(now: float) -> float:
    """Seconds until a network that starts now has its first consensus (measured: plus 0.2 to 1)."""
    return (-now) % _INTERVAL + (_INTERVAL if now % _INTERVAL > _LATE_START + 0.3 else 0)


async def _run(log: Path, *command: str) -> str:
    """Run a program to its end; what it printed."""
    child = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        printed, complained = await child.communicate(b"unused\n")  # a passphrase, where wanted
    finally:
        await stop(child)
    if child.returncode != 0:
        await asyncio.to_thread(log.write_bytes, complained or printed)
        why = f"{Path(command[0]).name} ended with status {child.returncode}"
        raise Problem(TOR_FAILED, why=why, log=log)
    return printed.decode()
