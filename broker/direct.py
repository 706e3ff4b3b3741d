"""The front for ``--tor none``: one TCP port that leads to each app by the Host header.

It stands where tor stands otherwise, so that everything behind it is the same: apps on unix
sockets, addresses that are onions. It hides nobody. Only for people who typed that they want so.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Final

from accord.onion import onion_from_seed
from accord.problems import BAD_OPTION, Problem

HEAD_LIMIT: Final = 16_384
"""Most bytes of a request before its first empty line."""
HEAD_SECONDS: Final = 30.0
_CHUNK: Final = 65_536


class DirectFront:
    """Leads from addresses to unix sockets, without Tor."""

    def __init__(self) -> None:
        self._targets: dict[str, Path] = {}
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Open the port (0: a free one); give the host and port that it listens on.

        Raises:
            Problem: ``BAD_OPTION``.
        """
        try:
            self._server = await asyncio.start_server(
                self._connected, host, port, limit=HEAD_LIMIT)
        except OSError as error:
            what = f"cannot be used: {(error.strerror or str(error)).lower()}"
            raise Problem(BAD_OPTION, option="--listen", what=what) from None
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def publish(self, seed: bytes, target_socket: Path) -> str:
        """Lead from the address whose seed this is to the socket; give the address."""
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
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
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
