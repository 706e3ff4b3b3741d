"""Playing Ansible's playbooks of ``deploy/playbooks``: each in a process, its events as lines.

What a machine made of a task comes as a line of JSON (``deploy/callback_plugins``); a machine that
does not answer, or a task that fails, ends the play with a sentence. Cancelled, a play leaves no
process here; what it had started on the machines is another play's to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from accord.console import plain
from accord.problems import HOST_AWAY, HOST_FAILED, NO_CONTROLLER, PLAY_FAILED, Problem
from lab.field.inventory import Inventory

HOME: Final = Path(__file__).resolve().parents[2]
"""A checkout, with ``deploy/`` in it, and what ``deploy/run`` has made in ``.deploy/``."""
PATIENCE: Final = 1800.0
"""Seconds that a play may take: installing on a slow network takes longest."""
TELL: Final = 10.0
"""Seconds between two lines of progress."""
_ENDING: Final = 5.0
_LINE: Final = 1 << 20
_WHY: Final = 400
_SSH: Final = ("-o ControlMaster=auto -o ControlPersist=120s -o ServerAliveInterval=5 "
               "-o ServerAliveCountMax=4 -o StrictHostKeyChecking=accept-new")
"""A machine that is made anew each time has a new key each time. It is taken at first sight and
kept beside the inventory; another one at the same address is then refused."""


class Event(msgspec.Struct, frozen=True):
    """What a machine made of a task.

    Attributes:
        host: its name; empty where a task begins. task: the task's.
        outcome: ``ok``, ``failed``, ``unreachable``, ``retry``: not what is waited for yet; or
            ``begin``.
        answer: the name under which the play keeps it, if any.
        stdout: what was printed there; message: what is said of it.
    """

    host: str
    task: str
    outcome: str
    answer: str | None = None
    stdout: str = ""
    message: str = ""

    @property
    def bad(self) -> bool:
        """Whether that ends the play."""
        return self.outcome in ("failed", "unreachable")


def event_of(line: bytes) -> Event | None:
    """The event that a line tells; None where it tells none, as Ansible may say more."""
    try:
        return msgspec.json.decode(line, type=Event)
    except msgspec.DecodeError:
        return None


def program(name: str) -> Path:
    """A program of Ansible's: the one that ``deploy/run`` has installed, else on PATH.

    Raises:
        Problem: ``NO_CONTROLLER``.
    """
    ours = HOME / ".deploy" / "bin" / name
    found = str(ours) if ours.is_file() else shutil.which(name)
    if found is None or not (HOME / "deploy" / "playbooks").is_dir():
        raise Problem(NO_CONTROLLER, what=name if found is None else "deploy/playbooks")
    return Path(found)


def answers(events: Iterable[Event], name: str) -> dict[str, str]:
    """What each machine printed in the task that keeps it under a name, as it ended."""
    return {event.host: event.stdout.strip() for event in events
            if event.answer == name and event.outcome == "ok"}


def problem_of(bad: list[Event], words: Callable[[str], str], log: Path) -> Problem:
    """What ended a play, as a sentence.

    Args:
        bad: the events, at least one; the first is told, and how many more machines.
        words: a machine's name for a person. log: where there is more.
    """
    first = bad[0]
    others = len({event.host for event in bad} - {first.host})
    host = words(first.host) + (f" (and {others} more)" if others else "")
    why = _why(first)
    if first.outcome == "unreachable":
        return Problem(HOST_AWAY, host=host, why=why)
    return Problem(HOST_FAILED, host=host, task=first.task, why=why, log=log)


_EMPTY: Final = ("non-zero return code", "module failure", "shared connection to",
                 "no start of json", "see stdout/stderr for the exact error")
"""Of what Ansible says, that which says nothing."""


def _why(event: Event) -> str:
    """The last line of an event that says anything."""
    lines = [line.strip() for text in (event.stdout, event.message)
             for line in plain(text).splitlines() if line.strip()]
    telling = [line for line in lines
               if not any(empty in line.lower() for empty in _EMPTY)]
    last = (telling or ["it did not say why"])[-1]
    with contextlib.suppress(msgspec.DecodeError):
        # As a command of ours says it to machines (accord.console.fail).
        last = msgspec.json.decode(last, type=_Sentence).sentence
    if event.outcome == "unreachable":
        last = last.rpartition("ssh: ")[2]
    return last[-_WHY:].rstrip(".")


class _Sentence(msgspec.Struct, frozen=True):
    sentence: str


class Plays:
    """Plays on the machines of an inventory; as a context manager, and no connection is left.

    Args:
        inventory: of the machines.
        log: events are added to it, and what Ansible says besides.
        say: told a line of progress now and then.
    """

    def __init__(self, inventory: Inventory, log: Path, say: Callable[[str], None]) -> None:
        self._inventory = inventory
        self._log = log
        self._say = say
        self._program = program("ansible-playbook")
        self._place = Path()

    async def __aenter__(self) -> Plays:
        # Sockets are in it, whose paths may not be long.
        self._place = Path(tempfile.mkdtemp(prefix="tm-"))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        try:
            await self._hang_up()
        finally:
            shutil.rmtree(self._place, ignore_errors=True)

    async def play(
        self, name: str, variables: Mapping[str, Any] | None = None, *,
        hear: Callable[[Event], None] = lambda event: None, hosts: Iterable[str] = (),
        tolerant: bool = False, patience: float = PATIENCE,
    ) -> list[Event]:
        """Play ``deploy/playbooks/NAME.yml``.

        Args:
            name: of the playbook.
            variables: of it.
            hear: told each event as it comes; what it raises ends the play, and is raised.
            hosts: only these; none for all.
            tolerant: machines that fail are in the events, and raise nothing.
            patience: seconds.

        Returns:
            All events but the tries before the last.

        Raises:
            Problem: ``HOST_AWAY``, ``HOST_FAILED``, or ``PLAY_FAILED`` for what is no machine's.
        """
        file = self._place / f"{name}.json"
        file.touch(0o600)
        file.write_bytes(msgspec.json.encode(dict(variables or {}), enc_hook=str))
        arguments = ["--inventory", str(self._inventory.path.resolve()), "--forks",
                     str(len(self._inventory.hosts)), "--extra-vars", f"@{file}"]
        limit = list(hosts)
        arguments += ["--limit", ",".join(limit)] if limit else []
        events: list[Event] = []
        tell = _Told(name, len(limit) or len(self._inventory.hosts), self._say)
        environment = self._environment()
        if tolerant:
            # Whoever is away then is not waited for three times.
            environment["ANSIBLE_SSH_RETRIES"] = "0"

        def take(event: Event) -> None:
            tell.take(event)
            if event.outcome == "begin":
                return
            if event.outcome != "retry":
                events.append(event)
            hear(event)

        try:
            async with asyncio.timeout(patience):
                status, last = await self._run(name, arguments, environment, take, tell)
        except TimeoutError:
            raise Problem(PLAY_FAILED, play=name, why=f"it took longer than {patience:g} s",
                          log=self._log) from None
        bad = [event for event in events if event.bad]
        if tolerant:
            return events
        if bad:
            raise problem_of(bad, self._inventory.words, self._log)
        if status:
            raise Problem(PLAY_FAILED, play=name, why=last, log=self._log)
        return events

    async def _run(self, name: str, arguments: list[str], environment: dict[str, str],
                   take: Callable[[Event], None], tell: _Told) -> tuple[int, str]:
        """Its exit status, and the last line that is no event."""
        last = "it did not say why"
        with await asyncio.to_thread(self._log.open, "ab", 0) as log:
            log.write(f"== {name}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n".encode())
            process = await asyncio.create_subprocess_exec(
                self._program, *arguments, HOME / "deploy" / "playbooks" / f"{name}.yml",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=environment, limit=_LINE,
                # Ctrl-C is for us, who then end it.
                start_new_session=True)
            assert process.stdout is not None
            ticking = asyncio.create_task(tell.tick())
            try:
                while line := await process.stdout.readline():
                    event = event_of(line)
                    if event is None:
                        last = line.decode(errors="replace").strip() or last
                        log.write(line)
                        continue
                    if event.outcome not in ("retry", "begin"):
                        log.write(_logged(event))
                    take(event)
                return await process.wait(), last
            finally:
                ticking.cancel()
                await _end(process)

    def _environment(self) -> dict[str, str]:
        known = self._inventory.path.resolve().parent / "known_hosts"
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
            "ANSIBLE_CONFIG": str(HOME / "deploy" / "ansible.cfg"),
            "ANSIBLE_HOME": str(self._place),
            "ANSIBLE_LOCAL_TEMP": str(self._place / "tmp"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._place / "cp"),
            "ANSIBLE_SSH_ARGS": f"{_SSH} -o " + shlex.quote(
                f'UserKnownHostsFile="{known}" ~/.ssh/known_hosts'),
            # Ansible ends where the locale is not one of UTF-8.
            "LC_ALL": "C.UTF-8",
        }

    async def _hang_up(self) -> None:
        """End the connections that are kept between plays; their processes are nobody's child."""
        sockets = list((self._place / "cp").glob("*"))
        processes = [await asyncio.create_subprocess_exec(
            "ssh", "-o", f"ControlPath={path}", "-O", "exit", "any", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for path in sockets]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING):
                for process in processes:
                    await process.wait()
        for process in processes:
            await _end(process)


def _logged(event: Event) -> bytes:
    text = f"{event.host}: {event.task}: {event.outcome}\n"
    if event.bad:
        text += "".join(f"    {line}\n" for line in (
            plain(event.stdout) + "\n" + plain(event.message)).splitlines() if line.strip())
    return text.encode()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and all of its group, and bury it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        try:
            async with asyncio.timeout(_ENDING):
                await asyncio.shield(asyncio.ensure_future(process.wait()))
        except TimeoutError:
            continue
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


class _Told:
    """Lines of progress of a play that takes longer."""

    def __init__(self, name: str, hosts: int, say: Callable[[str], None]) -> None:
        self._name, self._hosts, self._say = name, hosts, say
        self._task = ""
        self._done: set[str] = set()

    def take(self, event: Event) -> None:
        """A task begins, or a machine is done with it."""
        if event.outcome == "begin":
            self._task = event.task.partition(" : ")[2] or event.task
            self._done = set()
        elif event.outcome != "retry":
            self._done.add(event.host)

    async def tick(self) -> None:
        """Tell now and then."""
        while True:
            await asyncio.sleep(TELL)
            if self._task and self._name != "watch":
                self._say(f"  {self._task} (done on {len(self._done)} of {self._hosts})")
