"""A control connection to a running tor (Tor's control-spec), through stem.

stem speaks in threads of its own; here they are waited for without blocking the event loop, and
what stem raises becomes a :class:`~accord.problems.Problem`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import stem
import stem.connection
import stem.control

from accord.problems import TOR_AWAY, TOR_CONTROL, TOR_REFUSED, Problem

Progress = Callable[[int, str], None]
"""Told how far a bootstrap is: percent from 0 to 100, and tor's own words for it."""

_POLL: Final = 0.1
_ORDINARY: Final = 1000
"""Numbers of ordinary users begin here; below are root and the system's, tor's own among them."""
_ANSWER: Final = 30.0

# stem would write what it sends, private keys among it, into any log that is on: it may not.
_stem_log = logging.getLogger("stem")
_stem_log.propagate = False
_stem_log.setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class Socks:
    """Where a SOCKS port listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class ControlRefused(Exception):
    """tor refused a command: a mistake of ours, or a feature that this tor lacks.

    Attributes:
        code: of the control-spec, section 4 (512 syntax, 552 unrecognised, ...).
    """

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(f"{code} {text}")


class Control:
    """A control connection, authenticated by cookie or by nothing."""

    def __init__(self, controller: Any, where: str) -> None:
        self._controller = controller
        self.where = where

    @classmethod
    async def open(cls, where: Socks | Path) -> Control:
        """Connect and authenticate.

        Raises:
            Problem: ``TOR_AWAY`` where nothing answers, ``TOR_CONTROL`` where tor says no.
        """

        def connect() -> Any:
            try:
                if isinstance(where, Path):
                    if not where.is_socket():  # which stem would notice with a socket left open
                        raise stem.SocketError
                    controller = stem.control.Controller.from_socket_file(str(where))
                else:
                    controller = stem.control.Controller.from_port(where.host, where.port)
            except stem.SocketError:
                raise Problem(TOR_AWAY, where=where) from None
            try:
                if isinstance(where, Path):
                    controller.authenticate()
                else:
                    _authenticate(controller)
            except (stem.connection.AuthenticationFailure, stem.ControllerError) as error:
                controller.close()
                why = str(error).split("\n")[0].rstrip(".")
                raise Problem(TOR_CONTROL, where=where, why=why) from None
            return controller

        return cls(await asyncio.to_thread(connect), str(where))

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as this side knows."""
        return bool(self._controller.is_alive())

    async def command(self, line: str) -> list[str]:
        """Send one line, and give back the lines of the answer without their codes.

        Raises:
            ControlRefused: when tor answers with an error.
            Problem: ``TOR_AWAY`` when tor is gone, or silent for half a minute.
        """
        try:
            async with asyncio.timeout(_ANSWER):
                answer = await asyncio.to_thread(self._controller.msg, line)
        except (stem.ControllerError, TimeoutError):
            await self.close()
            raise Problem(TOR_AWAY, where=self.where) from None
        parts = [(code, text) for code, _, text in answer.content()]
        # All that begins with 2 is good (control-spec, section 4); stem takes 250 only.
        if not parts[-1][0].startswith("2"):
            raise ControlRefused(int(parts[-1][0]), parts[-1][1])
        return [text for _, text in parts if text != "OK"]

    async def info(self, key: str) -> str:
        """One value of ``GETINFO``."""
        return (await self.command(f"GETINFO {key}"))[0].removeprefix(f"{key}=")

    async def add_client_key(self, onion: str, private: bytes) -> None:
        """Tell tor our key for an onion that only invited clients reach; until tor ends.

        Told again, or told another, the last one holds.

        Args:
            onion: the address.
            private: our x25519 private key, 32 bytes (rend-spec-v3, appendix G).

        Raises:
            Problem: ``TOR_REFUSED``, ``TOR_AWAY``.
        """
        key = base64.b64encode(private).decode("ascii")
        name = onion.removesuffix(".onion")
        try:
            await self.command(f"ONION_CLIENT_AUTH_ADD {name} x25519:{key}")
        except ControlRefused as refusal:
            # Never tor's own words for it: a key could be among them.
            raise Problem(TOR_REFUSED, where=self.where, what="take our key for a service",
                          why=f"it answered {refusal.code}") from None

    async def look_up(self, onion: str) -> None:
        """Have tor ask the directories where an onion is now, whatever it knows already.

        A service that was started again is introduced by other relays than before. tor asks only
        when all of the old ones say that they do not know it, and one that has not noticed yet
        says yes: for minutes then, nobody answers there. No directory is asked twice within a
        quarter of an hour, so this is for addresses that do not answer.

        Raises:
            Problem: ``TOR_AWAY``.
        """
        with contextlib.suppress(ControlRefused):
            await self.command(f"HSFETCH {onion.removesuffix('.onion')}")

    async def close(self) -> None:
        """Close the connection; a tor that we took ownership of ends by it."""
        await asyncio.to_thread(self._controller.close)

    async def bootstrap(self, progress: Progress | None = None) -> None:
        """Wait until tor is ready for use, for as long as it takes."""
        told = -1
        while True:
            status = await self.info("status/bootstrap-phase")
            percent, words = _phase(status)
            if progress and percent != told:
                progress(percent, words)
            told = percent
            if percent == 100:
                return
            await asyncio.sleep(_POLL)

    async def socks(self) -> list[Socks]:
        """The SOCKS ports that tor has open on TCP."""
        listeners = re.findall(r'"([^"]+):(\d+)"', await self.info("net/listeners/socks"))
        return [Socks(host, int(port)) for host, port in listeners]


def _authenticate(controller: Any) -> None:
    """Authenticate at a TCP port, which anybody on this machine may have opened.

    What is told to a tor is secret: keys of services, our invitation key. So it must show that it
    knows a cookie (SAFECOOKIE, control-spec 3.5, which gives none of it away), and the cookie must
    be in a file that no ordinary other user can have made.

    Raises:
        stem.connection.AuthenticationFailure: with the reason.
    """
    told = stem.connection.get_protocolinfo(controller)
    path = told.cookie_path
    if stem.connection.AuthMethod.SAFECOOKIE not in told.auth_methods or path is None:
        raise stem.connection.AuthenticationFailure(
            "it must authenticate by cookie, lest anybody's program is taken for tor")
    try:
        owner = Path(path).stat().st_uid
    except OSError:
        raise stem.connection.AuthenticationFailure(f"{path} cannot be read") from None
    if owner != os.geteuid() and owner >= _ORDINARY:
        raise stem.connection.AuthenticationFailure(f"{path} belongs to another user")
    # Not stem's own choice of ways, which would show the cookie to whoever asks for it.
    stem.connection.authenticate_safecookie(controller, path)


def _phase(status: str) -> tuple[int, str]:
    percent = re.search(r"PROGRESS=(\d+)", status)
    words = re.search(r'SUMMARY="([^"]*)"', status)
    return int(percent[1]) if percent else 0, words[1] if words else ""
