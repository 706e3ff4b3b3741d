"""The front for ``--tor none``: one TCP port that leads to each app by the Host header.

It stands where tor stands otherwise, so that everything behind it is the same: apps on unix
sockets, addresses that are onions. It hides nobody. Only for people who typed that they want so.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from accord.onion import onion_from_seed
from accord.problems import BAD_OPTION, NO_INVITATIONS, PeerProblem, Problem
from broker.limits import FRONT_HEAD, Limits
from broker.line import Line

_CHUNK: Final = 65_536


class DirectFront:
    """Leads from addresses to unix sockets, without Tor.

    Args:
        limits: the same as at the doors behind it, which bound what has come through: here they
            are for those whose header is not whole.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._targets: dict[str, Path] = {}
        self._line: Line | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], None] = {}

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Open the port (0: a free one); give the host and port that it listens on.

        Raises:
            Problem: ``BAD_OPTION``.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            listener = socket.create_server(address[:2], family=family)
        except OSError as error:
            what = f"cannot be used: {(error.strerror or str(error)).lower()}"
            raise Problem(BAD_OPTION, option="--listen", what=what) from None
        self._line = Line(listener, self._limits, self._take, self._cut_oldest)
        bound = listener.getsockname()
        return bound[0], bound[1]

    async def publish(
        self, seed: bytes, target_socket: Path, *, invited: Sequence[bytes] = ()
    ) -> str:
        """Lead from the address whose seed this is to the socket; give the address.

        Raises:
            PeerProblem: ``NO_INVITATIONS``: nobody could be kept out here.
        """
        if invited:
            raise PeerProblem(NO_INVITATIONS)
        onion = onion_from_seed(seed)
        self._targets[onion] = target_socket
        return onion

    async def remove(self, onion: str) -> None:
        """Withdraw the address."""
        self._targets.pop(onion, None)

    async def share_with_tor(self, directory: Path) -> None:
        """There is no tor to share with."""

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._line is not None:
            await self._line.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _take(self, connection: socket.socket) -> None:
        reader = asyncio.StreamReader(limit=FRONT_HEAD)
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader, self._connected), connection)

    def _cut_oldest(self) -> None:
        if self._strangers:
            next(iter(self._strangers)).cancel()

    async def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self._strangers[task] = None
        if len(self._strangers) > self._limits.strangers:
            self._cut_oldest()
        try:
            async with asyncio.timeout(self._limits.head_seconds):
                head = await reader.readuntil(b"\r\n\r\n")
            self._strangers.pop(task, None)
            await self._serve(head, reader, writer)
            # What was written is still to be taken, but not for ever.
            async with asyncio.timeout(self._limits.send_seconds):
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open.discard(task)
            self._strangers.pop(task, None)
            writer.transport.abort()

    async def _serve(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        found = re.search(rb"\r\nhost:[ \t]*([a-z2-7]{56}\.onion)(?::\d+)?[ \t]*\r\n", head, re.I)
        target = self._targets.get(found[1].decode().lower()) if found else None
        if target is None:
            return
        inner_reader, inner_writer = await asyncio.open_unix_connection(target)
        inner_writer.write(head)
        one = asyncio.create_task(_pour(reader, inner_writer))
        other = asyncio.create_task(_pour(inner_reader, writer))
        try:
            await asyncio.wait([one, other], return_when=asyncio.FIRST_COMPLETED)
            # An answer may still be on its way after its request was sent.
            if one.done():
                await other
        finally:
            one.cancel()
            other.cancel()
            inner_writer.close()


async def _pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
