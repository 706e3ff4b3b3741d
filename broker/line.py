"""The line before a door: connections that wait until it is their turn.

Whoever connects is first a socket and nothing else: no task, no parser, no buffer. It waits there
until it says something; only then does it stand in line, and the line is served at a bounded rate,
in order. Those who hang up meanwhile cost no turn. So

- idle sockets keep nobody from a turn, as they never stand in line;
- those who send something and hang up, as fast as they can, do not either;
- whoever wants to keep others waiting has to wait itself.

What a flood of connections that each say something, if only a byte, does take when there are more
than the rate and the line can hold, is its share of the turns: nothing tells them from honest
newcomers before they are served.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import select
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from broker.limits import BACKLOG, Bucket, Limits

log = logging.getLogger("tormentor.broker")

_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE: Final = 0.1
_GONE: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Line:
    """Takes connections from a listening socket and has them served.

    Args:
        listener: bound; it is the line's from now on.
        limits: ``accepts``, ``served``, ``silent``, ``line`` and ``head_seconds``.
        serve: takes over one connection.
        make_room: called when the system has no descriptor for one more.
    """

    def __init__(
        self, listener: socket.socket, limits: Limits,
        serve: Callable[[socket.socket], Awaitable[None]], make_room: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._limits = limits
        self._serve = serve
        self._make_room = make_room
        self._loop = asyncio.get_running_loop()
        self._silent: dict[socket.socket, float] = {}
        self._ready: deque[socket.socket] = deque()
        self._wake = asyncio.Event()
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self._tasks = [asyncio.create_task(work())
                       for work in (self._accept, self._call, self._sweep)]
        for task in self._tasks:
            task.add_done_callback(_say_mistake)

    def __len__(self) -> int:
        """How many wait, silent or in line."""
        return len(self._silent) + len(self._ready)

    async def close(self) -> None:
        """Take nobody any more, and send those away who wait."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._listener.close()
        for connection in list(self._silent):
            self._drop(connection)
        while self._ready:
            self._ready.popleft().close()

    async def _accept(self) -> None:
        limits = self._limits
        bucket = Bucket(limits.accepts, limits.accepts, self._loop.time())
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError as error:
                # Otherwise it was gone before it was taken.
                if error.errno in _EXHAUSTED:
                    self._drop_oldest() if self._silent else self._make_room()
                    await asyncio.sleep(_PAUSE)
                continue
            if len(self._silent) >= limits.silent:
                self._drop_oldest()
            self._silent[connection] = self._loop.time()
            self._loop.add_reader(connection.fileno(), self._spoke, connection)
            await asyncio.sleep(bucket.take(self._loop.time()))

    def _spoke(self, connection: socket.socket) -> None:
        if _gone(connection) or len(self._ready) >= self._limits.line:
            self._drop(connection)
            return
        self._loop.remove_reader(connection.fileno())
        del self._silent[connection]
        self._ready.append(connection)
        self._wake.set()

    async def _call(self) -> None:
        bucket = Bucket(self._limits.served, self._limits.served_at_once, self._loop.time())
        while True:
            while not self._ready:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(bucket.wait(self._loop.time()))
            connection = self._ready.popleft()
            if _gone(connection):
                connection.close()
                continue
            bucket.take(self._loop.time())
            try:
                await self._serve(connection)
            except OSError:
                connection.close()

    async def _sweep(self) -> None:
        """Send those away who have said nothing for too long."""
        while True:
            await asyncio.sleep(self._limits.head_seconds / 4)
            late = self._loop.time() - self._limits.head_seconds
            for connection in [c for c, since in self._silent.items() if since <= late]:
                self._drop(connection)

    def _drop_oldest(self) -> None:
        self._drop(next(iter(self._silent)))

    def _drop(self, connection: socket.socket) -> None:
        del self._silent[connection]
        self._loop.remove_reader(connection.fileno())
        connection.close()


def more_descriptors() -> None:
    """Let this process have as many open files as the system lets it: by default that is often
    1024, and a flooded address may hold three times as many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _gone(connection: socket.socket) -> bool:
    """Whether the other side has hung up, whatever it has said before."""
    poll = select.poll()
    poll.register(connection, _GONE)
    return bool(poll.poll(0))


def _say_mistake(task: asyncio.Task[None]) -> None:
    """A door that a mistake of ours has closed must not stay closed in silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a door is closed, by a mistake of ours.", exc_info=error)
