"""Tor for all three: start one from ``torrc.template``, or use one that runs already.

:func:`launch` starts a tor of our own and :func:`attach` uses the system's; both give a
:class:`Tor`, which has a SOCKS port and, where asked for, a control connection.

Sources: tor(1) for the options, Tor's control-spec for the commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from accord.control import Control as Control
from accord.control import ControlRefused as ControlRefused
from accord.control import Progress as Progress
from accord.control import Socks as Socks
from accord.files import private_directory, write_whole
from accord.problems import (
    TOR_AWAY,
    TOR_CONTROL,
    TOR_FAILED,
    TOR_MISSING,
    TOR_OLD,
    TOR_SLOW,
    Problem,
)

MINIMUM_VERSION: Final = (0, 4, 7)
"""Oldest tor that has everything we ask for (congestion control, vanguards-lite)."""
Version = tuple[int, ...]

_ALSO: tuple[str, ...] = ("/usr/sbin", "/usr/local/sbin")
"""Where tor may be on Debian, and an ordinary user's PATH does not look."""
_POLL: Final = 0.05
LOG_LIMIT: Final = 4 << 20
"""Bytes of our tor's log after which it begins anew: nobody who makes tor complain fills a disk."""
_LOOK: Final = 0.25
"""Seconds between two looks at whether a tor still lives."""
_ASK: Final = 30.0
"""Seconds between two questions that only a tor which is awake can answer."""
_ENDING: Final = 3.0
_SOCKET_PATH: Final = 100
"""Longest path of a Unix socket that every system accepts (sun_path has 104 to 108 bytes)."""

SYSTEM_SOCKS: Final = Socks("127.0.0.1", 9050)
SYSTEM_CONTROL: Final[tuple[Socks | Path, ...]] = (
    Path("/run/tor/control"), Socks("127.0.0.1", 9051))
"""The socket first: only root and tor can make one there, and anybody can open a port."""


# -- the program -----------------------------------------------------------------------------


def parse_version(text: str) -> Version:
    """The numbers in ``Tor version 0.4.9.11.`` or ``0.4.8.1-alpha``; empty if there are none."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part is not None) if found else ()


def check_version(version: Version) -> Version:
    """The same version.

    Raises:
        Problem: ``TOR_OLD`` below :data:`MINIMUM_VERSION`.
    """
    if version < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        shown = ".".join(map(str, version)) or "of an unknown version"
        raise Problem(TOR_OLD, version=shown, needed=needed)
    return version


def find_tor(name: str = "tor") -> tuple[Path, Version]:
    """The tor program of this machine and its version; runs it once, so it takes milliseconds.

    Args:
        name: another program of the same package, such as ``tor-gencert``; not asked for its
            version, which is then empty.

    Raises:
        Problem: ``TOR_MISSING``, ``TOR_OLD``.
    """
    places = os.environ.get("PATH", os.defpath), *_ALSO
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise Problem(TOR_MISSING)
    if name != "tor":
        return Path(found), ()
    try:
        told = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20,
                              check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        raise Problem(TOR_MISSING) from None
    return Path(found), check_version(parse_version(told))


# -- its configuration -----------------------------------------------------------------------


def template_path() -> Path:
    """Where ``torrc.template`` is: beside the packages, or where a wheel installs it."""
    beside = Path(__file__).resolve().parent.parent / "torrc.template"
    return beside if beside.exists() else Path(sys.prefix, "share/tormentor/torrc.template")


def torrc(directory: Path, *, socks_ports: Sequence[str] = ("auto",), owner: int | None = None,
          extra: Path | None = None) -> str:
    """The configuration of one tor, from ``torrc.template``.

    Args:
        directory: the tor's own; its log, its control socket and its keys are in it.
        socks_ports: one SOCKS port for each, on loopback: a number, or ``auto`` for a free one.
        owner: process whose end ends the tor; None makes it a daemon that stays.
        extra: a file of more lines, such as the authorities of a private network.

    Raises:
        Problem: ``TOR_FAILED`` where a path cannot be written in a torrc.
    """
    for path in (directory, extra):
        # A torrc has no way to quote these in each place where a path stands.
        if path and (re.search(r'["\\#$\x00-\x1f]', str(path)) or not path.is_absolute()):
            raise Problem(TOR_FAILED, why=f"tor cannot use the path {str(path)!r}", log="none")
    if len(os.fsencode(directory / "control")) > _SOCKET_PATH:
        raise Problem(TOR_FAILED, why=f"the path {directory} is too long", log="none")
    values: dict[str, Sequence[object]] = {
        "directory": (directory,),
        "socks_port": socks_ports,
        "owner": () if owner is None else (owner,),
        "daemon": (1,) if owner is None else (),
        "extra": () if extra is None else (extra,),
    }
    lines = []
    for line in template_path().read_text(encoding="utf-8").splitlines():
        template = string.Template(line)
        names = [] if line.startswith("#") else template.get_identifiers()
        repeat = next((values[name] for name in names if name != "directory"), (None,))
        for value in repeat:
            fields = dict.fromkeys(names, value) | {"directory": directory}
            lines.append(template.substitute(fields) if names else line)
    return "\n".join(lines) + "\n"


def prepare(program: Path, directory: Path, text: str) -> list[str]:
    """Make a tor's directory with this configuration, and say how the tor is started.

    Nothing of ``/etc`` is read, and no log or socket of an earlier run is left to mislead.

    Raises:
        Problem: ``DISK``.
    """
    private_directory(directory)
    write_whole(directory / "torrc", text.encode("utf-8"), 0o600)
    for old in ("tor.log", "control", "pid"):
        (directory / old).unlink(missing_ok=True)
    return [str(program), *_arguments(directory)]


def _arguments(directory: Path) -> list[str]:
    return ["--defaults-torrc", os.devnull, "-f", str(directory / "torrc")]


async def spawn(arguments: Sequence[str], log: Path) -> asyncio.subprocess.Process:
    """Start a tor, in a session of its own so that Ctrl-C reaches us first.

    What it says before it has read where to say it goes into its log too.
    """
    with await asyncio.to_thread(log.open, "ab") as output:
        return await asyncio.create_subprocess_exec(
            *arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True)


def last_words(log: Path) -> str:
    """Why a tor ended, by its log: the last error, else the last warning, without its time."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")[-20_000:]
    except OSError:
        return "it wrote nothing"
    for level in ("err", "warn"):
        # Some errors only point at the warning that says it.
        if found := re.findall(rf"\[{level}\] (?!.*(?:warnings above|See logs))(.+)", text):
            return str(found[-1]).strip().rstrip(".")
    return "it did not say why"


def _shorten(log: Path) -> None:
    """Begin a log anew that has grown too large; tor, which only adds to it, does not mind."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > LOG_LIMIT:
            os.truncate(log, 0)


# -- a tor in use ----------------------------------------------------------------------------


class Tor:
    """A tor that we may use. Close it, or use it as a context manager.

    Attributes:
        socks: its first SOCKS port.
        ports: all of its SOCKS ports that were asked for.
        version: of the program; empty when it was attached to without its control port.
        pid: of the process, when it is ours.
    """

    def __init__(self, ports: Sequence[Socks], version: Version, control: Control | None,
                 process: asyncio.subprocess.Process | None = None,
                 log: Path | None = None) -> None:
        self.ports = list(ports)
        self.socks = self.ports[0]
        self.version = version
        self.pid = process.pid if process else None
        self._control = control
        self._process = process
        self._log = log

    @property
    def ours(self) -> bool:
        """Whether we started it: then it runs as our user and ends with us."""
        return self._process is not None

    @property
    def control(self) -> Control:
        """The control connection.

        Raises:
            Problem: ``TOR_CONTROL`` when it was attached to without one.
        """
        if self._control is None:
            raise Problem(TOR_CONTROL, where=self.socks, why="its control port was not asked for")
        return self._control

    async def lost(self) -> str:
        """Wait until this tor is of no use any more; why, in words.

        It has ended, or its control connection is broken, or nothing answers on it. Meanwhile its
        log is kept below :data:`LOG_LIMIT`.

        Raises:
            Problem: ``TOR_CONTROL`` when it was attached to without one: then nobody can tell.
        """
        control, loop = self.control, asyncio.get_running_loop()
        asked = loop.time()
        while True:
            if self._process is not None and (status := self._process.returncode) is not None:
                return (f"it was ended by signal {-status}" if status < 0
                        else f"it ended with status {status}")
            if not control.alive:
                # Often the first sign of its end, of which the system tells a moment later.
                if self._process is not None and await _ends(self._process):
                    continue
                return "its control connection broke"
            if loop.time() - asked >= _ASK:
                try:
                    await control.info("version")
                except Problem:
                    return "it does not answer any more"
                asked = loop.time()
                if self._log is not None:
                    await asyncio.to_thread(_shorten, self._log)
            await asyncio.sleep(_LOOK)

    async def close(self) -> None:
        """End our tor, gently at first, or let go of the system's. May be called twice."""
        try:
            if self._process:
                await stop(self._process)
        finally:
            if self._control:
                await self._control.close()

    async def __aenter__(self) -> Tor:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()


async def stop(process: asyncio.subprocess.Process, patience: float = 5.0) -> None:
    """End a child process and bury it, even if this is cancelled halfway."""
    try:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                process.terminate()
                async with asyncio.timeout(patience):
                    await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _ends(process: asyncio.subprocess.Process) -> bool:
    """Whether a child process has ended, or does so in a moment."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * _LOOK):
            await process.wait()
    return process.returncode is not None


@contextlib.asynccontextmanager
async def _stopped_on_failure(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await stop(process, patience=0.0)
        raise


def running(directory: Path) -> int | None:
    """The process of the tor that was started on this directory, if one lives.

    Found by its command line: a file with its number may not be written yet, or be old, and
    numbers of processes come again. All of :func:`prepare`'s arguments must be there, as somebody
    may be reading the same torrc. Where there is no /proc, none is found.
    """
    arguments = os.fsencode("\0".join(["", *_arguments(directory), ""]))
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    # Another user's is no tor of ours, whatever it calls itself.
                    if (entry.stat().st_uid == os.geteuid()
                            and arguments in Path(entry.path, "cmdline").read_bytes()):
                        return int(entry.name)
    return None


async def _end_leftover(directory: Path) -> None:
    """End a tor whose owner was killed, and that has not noticed it yet.

    It holds the directory, and may still serve the same addresses, to nobody's use.
    """
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        end = loop.time() + _ENDING
        while (pid := await asyncio.to_thread(running, directory)) is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, sign)
            if loop.time() > end:
                break
            await asyncio.sleep(_POLL)


class HeldPort:
    """A port that no other program is given, or takes, while it is held.

    Attributes:
        number: of the port.
    """

    def __init__(self, holder: socket.socket) -> None:
        self._holder = holder
        self.number = int(holder.getsockname()[1])

    @contextlib.contextmanager
    def lent(self) -> Iterator[int]:
        """Let a program that asks for reuse, as tor does, listen on it; what listens by the end
        goes on. Until it does, any other program that asks for reuse could do so as well."""
        self._reuse(1)
        try:
            yield self.number
        finally:
            self._reuse(0)

    def _reuse(self, on: int) -> None:
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, on)


@contextlib.contextmanager
def held_port(address: str = "127.0.0.1") -> Iterator[HeldPort]:
    """Hold a free port of an address of this machine: it is bound to, and never listened on."""
    with socket.socket() as holder:
        holder.bind((address, 0))
        yield HeldPort(holder)


async def launch(directory: Path, *, extra_torrc: Path | None = None,
                 progress: Progress | None = None, timeout: float = 120.0,  # noqa: ASYNC109
                 socks_ports: int = 1, port: int | None = None) -> Tor:
    """Start a tor of our own and wait until it is ready for use.

    It ends with :meth:`Tor.close`, with this process however that ends, or when the returned
    object's control connection breaks. Cancelling leaves no process behind. A tor that still runs
    on the directory, as its owner was killed a moment ago, is ended first: whoever launches one
    there must be the only one who may.

    Args:
        directory: for its data; made if need be (0700), and kept for the next time.
        extra_torrc: more configuration, such as that of a private network.
        progress: told about the bootstrap.
        timeout: seconds until it must be ready.
        socks_ports: how many SOCKS ports it opens, each on a free port of loopback.
        port: the SOCKS port that it opens instead (:meth:`HeldPort.lent`).

    Raises:
        Problem: ``TOR_MISSING``, ``TOR_OLD``, ``TOR_FAILED``, ``TOR_SLOW``, ``DISK``.
    """

    def ready() -> tuple[list[str], Version]:
        program, version = find_tor()
        extra = extra_torrc.resolve() if extra_torrc else None
        ports = ("auto",) * socks_ports if port is None else (str(port),)
        text = torrc(directory, socks_ports=ports, owner=os.getpid(), extra=extra)
        return prepare(program, directory, text), version

    directory = await asyncio.to_thread(directory.resolve)
    log = directory / "tor.log"
    try:
        await _end_leftover(directory)
        arguments, version = await asyncio.to_thread(ready)
        process = await spawn(arguments, log)
    except OSError as error:
        # No descriptor, process or memory left, or a tor of another user on the directory: a
        # keeper tries again, when that may be over.
        why = (error.strerror or str(error)).lower()
        raise Problem(TOR_FAILED, why=why, log=log) from None
    reached = (0, "starting")

    def note(percent: int, words: str) -> None:
        nonlocal reached
        reached = (percent, words)
        if progress:
            progress(percent, words)

    async with _stopped_on_failure(process):
        try:
            async with asyncio.timeout(timeout):
                control = await _own(process, directory / "control")
                await control.bootstrap(note)
                return Tor(await control.socks(), version, control, process, log)
        except TimeoutError:
            raise Problem(TOR_SLOW, percent=reached[0], seconds=round(timeout), what=reached[1],
                          log=log) from None
        except (Problem, ControlRefused):
            raise Problem(TOR_FAILED, why=last_words(log), log=log) from None


async def _own(process: asyncio.subprocess.Process, where: Path) -> Control:
    """The control connection of our own tor as soon as it has one; tor ends when it breaks."""
    while True:
        try:
            control = await Control.open(where)
        except Problem as problem:
            if process.returncode is not None or problem.kind is not TOR_AWAY:
                raise
            await asyncio.sleep(_POLL)
            continue
        # stem has said this already for us, but only says so in its source.
        await control.command("TAKEOWNERSHIP")
        return control


async def attach(socks: Socks = SYSTEM_SOCKS, *, control: bool = False,
                 control_at: Sequence[Socks | Path] = SYSTEM_CONTROL) -> Tor:
    """Use a tor that runs already, such as the system's.

    Args:
        socks: its SOCKS port.
        control: whether its control port is needed too (to publish an onion service).
        control_at: where the control port may be; the first that lets us in is taken.

    Raises:
        Problem: ``TOR_AWAY``, ``TOR_OLD``, ``TOR_CONTROL``.
    """
    await _answers(socks)
    if not control:
        return Tor([socks], (), None)
    refusal: Problem | None = None
    for where in control_at:
        try:
            connection = await Control.open(where)
        except Problem as problem:
            # A port that says no tells more than a path where nothing is.
            refusal = problem if refusal is None or problem.kind is TOR_CONTROL else refusal
            continue
        try:
            version = check_version(parse_version(await connection.info("version")))
        except BaseException:
            await connection.close()
            raise
        return Tor([socks], version, connection)
    raise refusal or Problem(TOR_AWAY, where="the control port")


async def _answers(socks: Socks) -> None:
    """Check that something at this address speaks SOCKS 5 (RFC 1928, section 3)."""
    try:
        async with asyncio.timeout(10.0):
            reader, writer = await asyncio.open_connection(socks.host, socks.port)
            try:
                writer.write(b"\x05\x01\x00")
                if await reader.readexactly(2) != b"\x05\x00":
                    raise OSError
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError):
        raise Problem(TOR_AWAY, where=socks) from None
