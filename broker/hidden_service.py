"""What is published where: onion services of a broker, through the control port of a tor.

A service's key is an Ed25519 seed on the broker's disk, so a model keeps its address when its
broker is started again, and can be signed by it (:mod:`accord.model_file`). A service lives as
long as the control connection that made it: when the broker dies, so does the address.

Source: Tor's control-spec, ADD_ONION and DEL_ONION. The commands are sent as lines, as stem knows
none of the proof-of-work options.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pwd
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from accord.circuit import Circuit, Route, fresh_identity
from accord.files import write_whole
from accord.onion import expanded_key, onion_from_seed
from accord.problems import AWAY, BAD_KEY, TOR_REFUSED, TOR_USER, PeerProblem, Problem
from accord.tor import ControlRefused, Tor, Version

SEED_BYTES: Final = 32
POW_VERSION: Final[Version] = (0, 4, 9)
"""First tor whose ADD_ONION takes proof-of-work options."""
POW_RATE: Final = 50
"""Introductions served per second before clients must queue by effort: far above what an honest
crowd needs, which connects once and stays."""
POW_BURST: Final = 500
_UNKNOWN: Final = 552
"""tor's code for a service that it does not have (control-spec, section 4)."""
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0
_ONE_TRY: Final = 30.0


def load_or_create_seed(path: Path) -> bytes:
    """The 32-byte Ed25519 seed in a file, made (0600, whole or not at all) when there is none.

    Raises:
        Problem: ``BAD_KEY`` when the file is not one, or others may read it; ``DISK``.
    """
    try:
        with path.open("rb") as file:
            others = os.fstat(file.fileno()).st_mode & 0o077
            seed = file.read(SEED_BYTES + 1)
    except FileNotFoundError:
        seed = secrets.token_bytes(SEED_BYTES)
        write_whole(path, seed, 0o600)
        return seed
    except OSError as error:
        raise Problem(BAD_KEY, path=path, why=(error.strerror or str(error)).lower()) from None
    if len(seed) != SEED_BYTES:
        raise Problem(BAD_KEY, path=path, why=f"it has not {SEED_BYTES} bytes")
    if others:
        raise Problem(BAD_KEY, path=path, why=f"others may read it; type: chmod 600 {path}")
    return seed


class HiddenServices:
    """The onion services of one broker.

    Args:
        tor: with a control connection; closing it takes all services away.
    """

    def __init__(self, tor: Tor) -> None:
        self._tor = tor
        self._pow = tor.version >= POW_VERSION

    async def publish(self, seed: bytes, target_socket: Path, *, port: int = 80) -> str:
        """Have tor serve an address, and hand its connections to a Unix socket.

        Returns as soon as tor has agreed; some seconds pass until others find it
        (:meth:`reachable`). Publishing what is published already changes nothing.

        Args:
            seed: of the service's key.
            target_socket: where connections go; tor must be able to open it
                (:func:`share_with_tor`).
            port: of the onion address.

        Returns:
            The address.

        Raises:
            Problem: ``TOR_REFUSED``; ``TOR_CONTROL`` without a control connection; ``TOR_AWAY``.
        """
        onion = onion_from_seed(seed)
        key = base64.b64encode(expanded_key(seed)).decode("ascii")
        # The path is taken as it is up to the next space; quotes would become part of it.
        target = str(target_socket)
        if not target_socket.is_absolute() or any(c.isspace() or c == '"' for c in target):
            raise self._refused("publish", f"it cannot be told of the path {target!r}")
        line = f"ADD_ONION ED25519-V3:{key} Flags=DiscardPK Port={port},unix:{target}"
        # Under a flood of introductions, whoever did more work is served first (proposal 327).
        work = f" PoWDefensesEnabled=1 PoWQueueRate={POW_RATE} PoWQueueBurst={POW_BURST}"
        try:
            try:
                await self._tor.control.command(line + work * self._pow)
            except ControlRefused as refusal:
                # Built without it (it is GPL code and optional), or older than it says.
                if not self._pow or "collision" in str(refusal):
                    raise
                self._pow = False
                await self._tor.control.command(line)
        except ControlRefused as refusal:
            if "collision" not in str(refusal):
                raise self._refused("publish", str(refusal)) from None
        return onion

    async def remove(self, onion: str) -> None:
        """Take an address away. Open connections stay; nobody new comes. Harmless when repeated.

        Raises:
            Problem: ``TOR_REFUSED``, ``TOR_AWAY``.
        """
        try:
            await self._tor.control.command(f"DEL_ONION {onion.removesuffix('.onion')}")
        except ControlRefused as refusal:
            if refusal.code != _UNKNOWN:
                raise self._refused("remove", str(refusal)) from None

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
                        # Another circuit each time, lest a bad one decide.
                        async with Circuit(Route(self._tor.socks), onion, fresh_identity(),
                                           min(timeout, _ONE_TRY)) as circuit:
                            await circuit.get("/")
                        return
                    except PeerProblem:
                        return  # it answers; what it says is not asked here
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


def _share(directory: Path, group: int) -> None:
    os.chown(directory, -1, group)
    directory.chmod(0o710)
    for path in directory.iterdir():
        if path.is_socket():
            os.chown(path, -1, group)
            path.chmod(0o660)
