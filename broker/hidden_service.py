"""What is published where: onion services of a broker, through the control port of a tor.

A service's key is an Ed25519 seed on the broker's disk, so a model keeps its address when its
broker is started again, and can be signed by it (:mod:`accord.model_file`). A service lives as
long as the control connection that made it: when the broker dies, so does the address. When tor
dies and the broker does not, another tor is given all of it (:meth:`HiddenServices.renew`).

Source: Tor's control-spec, ADD_ONION and DEL_ONION. The commands are sent as lines, as stem knows
none of the proof-of-work options.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pwd
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from accord.circuit import Circuit, Route, fresh_identity
from accord.messages import MAX_INVITED
from accord.onion import expanded_key, onion_from_seed
from accord.problems import AWAY, TOR_AWAY, TOR_REFUSED, TOR_USER, PeerProblem, Problem
from accord.tor import ControlRefused, Tor, Version

POW_VERSION: Final[Version] = (0, 4, 9)
"""First tor whose ADD_ONION takes proof-of-work options."""
POW_RATE: Final = 50
"""Introductions served per second before clients must queue by effort: far above what an honest
crowd needs, which connects once and stays."""
POW_BURST: Final = 500
MAX_STREAMS: Final = 16
"""Streams at a time on one circuit of a client; whoever opens more loses that circuit. A client
keeps one (two, while one takes another's place), and a person's Tor Browser opens up to six;
without a limit, a single introduction would be good for as many connections as tor can hold."""
_UNKNOWN: Final = 552
"""tor's code for a service that it does not have (control-spec, section 4)."""
_COLLISIONS: Final = 20
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0
_ONE_TRY: Final = 30.0
_FIRST_TRY: Final = 10.0


class HiddenServices:
    """The onion services of one broker.

    What is to be published is remembered, so that it outlives a tor: :meth:`renew` publishes all
    of it again through another one.

    Args:
        tor: with a control connection; closing it takes all services away.
    """

    def __init__(self, tor: Tor) -> None:
        self._tor = tor
        self._pow = tor.version >= POW_VERSION
        self._wanted: dict[str, str] = {}
        self._invited: set[str] = set()
        self._published: set[str] = set()
        self._commands = asyncio.Lock()
        # The broker looks at its own services as a client does; so it invites itself.
        self._own = X25519PrivateKey.generate()

    @property
    def onions(self) -> list[str]:
        """The addresses that are to be published."""
        return list(self._wanted)

    async def publish(
        self, seed: bytes, target_socket: Path, *, port: int = 80, invited: Sequence[bytes] = ()
    ) -> str:
        """Have tor serve an address, and hand its connections to a Unix socket.

        Returns as soon as tor has agreed; some seconds pass until others find it
        (:meth:`reachable`). While tor is away it returns too: the next tor publishes it
        (:meth:`renew`). Publishing what is published already changes nothing; with another socket
        or other invitations it takes the place of what was.

        Args:
            seed: of the service's key.
            target_socket: where connections go; tor must be able to open it
                (:func:`share_with_tor`).
            port: of the onion address.
            invited: x25519 public keys (32 bytes each, at most :data:`MAX_INVITED`) of those who
                may come; nobody else can read where to. None of them: everybody may.

        Returns:
            The address.

        Raises:
            Problem: ``TOR_REFUSED``; ``TOR_CONTROL`` without a control connection.
        """
        onion = onion_from_seed(seed)
        key = base64.b64encode(expanded_key(seed)).decode("ascii")
        # The path is taken as it is up to the next space; quotes would become part of it.
        target = str(target_socket)
        if not target_socket.is_absolute() or any(c.isspace() or c == '"' for c in target):
            raise self._refused("publish", f"it cannot be told of the path {target!r}")
        if len(invited) > MAX_INVITED:
            raise self._refused("publish", f"{len(invited)} clients are invited to it, and a "
                                f"service can have {MAX_INVITED}")
        keys = [*dict.fromkeys(invited), self._own.public_key().public_bytes_raw()]
        clients = "".join(f" ClientAuthV3={_base32(public)}" for public in keys) if invited else ""
        flags = "DiscardPK,MaxStreamsCloseCircuit" + ",V3Auth" * bool(invited)
        line = (f"ADD_ONION ED25519-V3:{key} Flags={flags} MaxStreams={MAX_STREAMS} "
                f"Port={port},unix:{target}{clients}")
        async with self._commands:
            if onion in self._published and self._wanted.get(onion) == line:
                return onion
            self._wanted[onion] = line
            self._invited.discard(onion)
            if invited:
                self._invited.add(onion)
            try:
                await self._add(onion, replace=onion in self._published)
            except BaseException as failure:
                if not (isinstance(failure, Problem) and failure.kind is TOR_AWAY):
                    # Refused, or nobody waits for it any more.
                    self._forget(onion)
                    raise
        return onion

    async def remove(self, onion: str) -> None:
        """Take an address away. Open connections stay; nobody new comes. Harmless when repeated.

        Whatever comes of it, no other tor publishes it any more; and while tor is away, so is the
        address.

        Raises:
            Problem: ``TOR_REFUSED``.
        """
        self._forget(onion)
        async with self._commands:
            try:
                await self._delete(onion)
            except Problem as problem:
                if problem.kind is not TOR_AWAY:
                    raise

    async def renew(self, tor: Tor) -> None:
        """Publish everything again, through another tor.

        Raises:
            Problem: ``TOR_AWAY`` when that one went away meanwhile; ``TOR_REFUSED`` of the first
                service that it refused, when it was asked for all others too.
        """
        async with self._commands:
            self._tor, self._pow = tor, tor.version >= POW_VERSION
            self._published.clear()
            refusal: Problem | None = None
            for onion in self.onions:
                try:
                    await self._add(onion, replace=False)
                except Problem as problem:
                    if problem.kind is TOR_AWAY:
                        raise
                    refusal = refusal or problem
        if refusal is not None:
            raise refusal

    async def again(self, onion: str) -> None:
        """Publish an address anew, at other introduction points. Open connections stay.

        Raises:
            Problem: ``TOR_REFUSED``, ``TOR_AWAY``.
        """
        async with self._commands:
            await self._add(onion, replace=True)

    async def _add(self, onion: str, *, replace: bool) -> None:
        """Publish what is wanted there, if it still is."""
        if replace:
            await self._delete(onion)
        for tries in range(_COLLISIONS):
            if (line := self._wanted.get(onion)) is None:
                return
            try:
                await self._command(line)
                break
            except ControlRefused as refusal:
                if "collision" not in str(refusal) or tries + 1 == _COLLISIONS:
                    raise self._refused("publish", str(refusal)) from None
            # This connection's own, which may lead elsewhere; or a former connection's, which tor
            # takes away as soon as it notices that its end is closed.
            await self._delete(onion)
            await asyncio.sleep(_FIRST_PAUSE)
        self._published.add(onion)
        # Whoever removes it meanwhile waits for us, and then takes it away.
        if onion in self._invited:
            await self._tor.control.add_client_key(onion, self._own.private_bytes_raw())

    async def _command(self, line: str) -> None:
        # Under a flood of introductions, whoever did more work is served first (proposal 327).
        work = f" PoWDefensesEnabled=1 PoWQueueRate={POW_RATE} PoWQueueBurst={POW_BURST}"
        try:
            await self._tor.control.command(line + work * self._pow)
        except ControlRefused as refusal:
            # Built without it (it is GPL code and optional), or older than it says.
            if not self._pow or "collision" in str(refusal):
                raise
            await self._tor.control.command(line)
            self._pow = False

    async def _delete(self, onion: str) -> None:
        self._published.discard(onion)
        try:
            await self._tor.control.command(f"DEL_ONION {onion.removesuffix('.onion')}")
        except ControlRefused as refusal:
            if refusal.code != _UNKNOWN:
                raise self._refused("remove", str(refusal)) from None

    def _forget(self, onion: str) -> None:
        self._wanted.pop(onion, None)
        self._invited.discard(onion)

    async def conversing(self) -> bool:
        """Whether somebody talks with one of the services now.

        Raises:
            Problem: ``TOR_AWAY``.
        """
        circuits = await self._tor.control.command("GETINFO circuit-status")
        return any("HS_STATE=HSSR_JOINED" in line for line in circuits)

    async def reached(self, onion: str, patience: float = _ONE_TRY) -> None:
        """Reach the service once, as somebody would who comes through Tor.

        Args:
            onion: the address.
            patience: seconds.

        Raises:
            Problem: ``AWAY``, ``TOR_AWAY``.
        """
        # Another circuit each time, lest a bad one decide.
        async with Circuit(Route(self._tor.socks), onion, fresh_identity(), patience) as circuit:
            try:
                await circuit.get("/")
            except PeerProblem:
                return  # it answers; what it says is not asked here
            except Problem as problem:
                if problem.kind is AWAY:
                    await self._tor.control.look_up(onion)
                raise

    async def reachable(
        self,
        onion: str,
        timeout: float = 120.0,  # noqa: ASYNC109
        progress: Callable[[int, str], None] | None = None,
    ) -> None:
        """Wait until the service answers somebody who comes through Tor, as anyone would.

        Args:
            onion: the address.
            timeout: seconds.
            progress: told how often it was tried, and why the last try failed.

        Raises:
            Problem: ``AWAY`` with the last reason at the end of the time, ``TOR_AWAY``.
        """
        pause, tries, why = _FIRST_PAUSE, 0, "no answer in time"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    tries += 1
                    try:
                        await self.reached(onion, min(tries * _FIRST_TRY, _ONE_TRY))
                        return
                    except Problem as problem:
                        if problem.kind is not AWAY:
                            raise
                        why = str(problem.details["why"])
                    if progress:
                        progress(tries, why)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except TimeoutError:
            raise Problem(AWAY, address=onion, why=why) from None

    async def tor_user(self) -> str:
        """The user that tor runs as: a name, or a number where it has none here."""
        uid = int(await self._tor.control.info("process/uid"))
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    async def share_with_tor(self, directory: Path) -> None:
        """Let tor, and nobody else but us, enter the directory where the target sockets are.

        Our own tor can. A system's tor runs as another user: as root we give it the directory
        and its sockets by their group; otherwise only an administrator can. Call it when the
        sockets are there.

        Raises:
            Problem: ``TOR_USER``.
        """
        if self._tor.ours or (user := await self.tor_user()) == pwd.getpwuid(os.geteuid()).pw_name:
            return
        try:
            await asyncio.to_thread(_share, directory, pwd.getpwnam(user).pw_gid)
        except (KeyError, OSError):
            raise Problem(TOR_USER, user=user) from None

    def _refused(self, what: str, why: str) -> Problem:
        where = self._tor.control.where
        return Problem(TOR_REFUSED, where=where, what=f"{what} a service", why=why.rstrip("."))


def _base32(public: bytes) -> str:
    """A key as ADD_ONION wants it: without padding."""
    if len(public) != 32:
        raise ValueError("an x25519 public key has 32 bytes")
    return base64.b32encode(public).decode("ascii").rstrip("=")


def _share(directory: Path, group: int) -> None:
    os.chown(directory, -1, group)
    directory.chmod(0o710)
    for path in directory.iterdir():
        if path.is_socket():
            os.chown(path, -1, group)
            path.chmod(0o660)
