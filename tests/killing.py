"""Processes that kill themselves at every instant of a ledger's life, and what is left of it.

Run as a program: ``python -m killing DIRECTORY SCENARIO SUBJECT [SCENARIO SUBJECT ...]``, which
prints a line of JSON for each. It stays one process without threads and forks a child for each
case, so that hundreds of real deaths take seconds. The child
lives the life with faults put into the system calls that the ledger makes, kills itself (SIGKILL)
when its plan says so, and tells over a pipe what an outside world would know: each spend that it
begins, each that it was allowed to send, each thing that was brought to the disk.

What is left is looked at in two ways. After ``kill -9`` the kernel still has all that was written:
the file as it is. After a power cut it has what was synced, and of the rest any part: so every
state between those is made by hand, and so is the loss of a name whose directory was not synced.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import gc
import itertools
import json
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from accord import files
from accord.files import write_whole
from accord.problems import DISK, Problem
from client import budget, session
from client.budget import Budget, Ledger
from client.noise import Release

PRINT: Final = "ab" * 32
TINY: Final = 1e-12
"""A delta so small that the plain sum counts: it takes no time."""
WHEAT, RYE = Release(1.0, 10, 2100, 25), Release(0.5, 21, 2100, 25)
Spend = tuple[str, Release]
LIFE: Final[tuple[tuple[tuple[str, str, Release], ...], ...]] = (
    (("ledger", "barley", WHEAT), ("ledger", "oats", WHEAT), ("ledger", "barley", RYE),
     ("budget", "barley", WHEAT), ("budget", "barley", WHEAT)),
    (("budget", "barley", WHEAT), ("ledger", "oats", RYE), ("ledger 3", "barley", RYE),
     ("budget 2", "barley", WHEAT)),
)
"""What is spent, and how, and how many in one go, between opening and closing; for two
openings."""
SHORT: Final = (LIFE[0][:2] + LIFE[0][:1], (("ledger 2", "oats", RYE),))
"""The same in fewer bytes: a header, spends with a new kind and with an old one; opened again."""
AFTER: Final = ((("ledger", "barley", RYE),),)
"""What is spent by a process that comes after another's death."""
CALLS: Final = ("mkdir", "open", "fchmod", "write", "fdatasync", "fsync", "ftruncate", "replace",
                "unlink", "close")
_REAL: Final = {name: getattr(os, name) for name in CALLS}
Plan = dict[int, tuple[str, int]]
"""For the number of a call: what happens at it. ``before`` and ``after``: death; ``tear``: so many
bytes are written, then death; ``short``: so many are written, and that is said; ``fail``: so many
are written, then the disk is full."""


# -- ledgers, right and wrong ----------------------------------------------------------------
class NeverSyncs(Ledger):
    """Wrong: an update may be sent before the spend is on the disk."""

    def _append(self, payloads: list[bytes]) -> None:
        real, os.fdatasync = os.fdatasync, lambda _: None
        try:
            super()._append(payloads)
        finally:
            os.fdatasync = real


class SyncsTheFirst(Ledger):
    """Wrong: of several spends in one go only the first is on the disk before they are sent."""

    def _append(self, payloads: list[bytes]) -> None:
        first = 2 if payloads[0].startswith(b"kind") else 1
        super()._append(payloads[:first])
        if payloads[first:]:
            NeverSyncs._append(self, payloads[first:])  # type: ignore[arg-type]


class CutsTooMuch(Ledger):
    """Wrong: of a file with a torn tail it cuts off one whole line as well."""

    def _replay(self, content: bytes) -> None:
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content and whole.count(b"\n") > 1:
            content = whole[: whole[:-1].rfind(b"\n") + 1]
            os.ftruncate(self._fd, len(content))
            os.fdatasync(self._fd)
        super()._replay(content)


class WritesLater(Ledger):
    """Wrong: it writes a spend down when the next one comes, or when it is closed."""

    _owed: tuple[str, Release, int] | None = None

    def spend(self, task_id: str, release: Release, count: int = 1) -> int:
        owed, self._owed = self._owed, (task_id, release, count)
        index = 1 + self.count(task_id)
        if owed is not None:
            super().spend(*owed)
        return index

    def close(self) -> None:
        owed, self._owed = self._owed, None
        if owed is not None and self._fd >= 0:
            super().spend(*owed)
        super().close()


class NoNames(Ledger):
    """Wrong: it never brings the name of its file to the disk."""

    def _open(self, directory: Path) -> None:
        real = budget.sync_directory
        budget.sync_directory = lambda _: None  # type: ignore[attr-defined]
        try:
            super()._open(directory)
        finally:
            budget.sync_directory = real  # type: ignore[attr-defined]


class Fussy(Ledger):
    """Wrong: it takes a torn tail for damage."""

    def _replay(self, content: bytes) -> None:
        super()._replay(content if content.endswith(b"\n") or not content else content + b"\n")


class CountsTwice(Ledger):
    """Wrong: a line that lacks its line feed only is written once more."""

    def _replay(self, content: bytes) -> None:
        super()._replay(content)
        if content and not content.endswith(b"\n") and self._spent:
            kind = next(iter(self._spent))
            self.spend(kind.task, kind.release)


def in_place(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Wrong: the file itself is written over."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)
    files.sync_directory(path.parent)


def unsynced(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Wrong: it is renamed before its content is on the disk."""
    real, os.fsync = os.fsync, lambda _: None
    try:
        write_whole(path, data, mode)
    finally:
        os.fsync = real


LEDGERS: Final[dict[str, type[Ledger]]] = {
    kind.__name__: kind for kind in (
        Ledger, NeverSyncs, SyncsTheFirst, CutsTooMuch, WritesLater, NoNames, Fussy, CountsTwice)}
WRITERS: Final = {writer.__name__: writer for writer in (write_whole, in_place, unsynced)}


# -- the child -------------------------------------------------------------------------------
class Faults:
    """Puts a plan into this process's system calls, for the rest of its life.

    Args:
        plan: what happens at which call.
        told: the pipe to the world.
        names: of the calls, in the module ``os``.
    """

    def __init__(self, plan: Plan, told: int, names: tuple[str, ...] = CALLS) -> None:
        self._plan = plan
        self._told = told
        self._calls = 0
        self._paths: dict[int, str] = {}
        for name in names:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        fcntl.flock = self._wrapped("flock", fcntl.flock)

    def tell(self, what: bytes, payload: bytes = b"") -> None:
        """One event, whole, whatever comes next."""
        _REAL["write"](self._told, struct.pack("<cI", what, len(payload)) + payload)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            number, self._calls = self._calls, self._calls + 1
            size = len(arguments[1]) if name == "write" else 0
            self.tell(b"C", json.dumps([name, size]).encode())
            act, most = self._plan.get(number, ("", 0))
            if act == "before":
                die()
            if act == "tear":
                real(arguments[0], arguments[1][:most])
                die()
            if act == "short":
                return real(arguments[0], arguments[1][:most])
            if act == "fail":
                if most:
                    real(arguments[0], arguments[1][:most])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            try:
                answer = real(*arguments, **named)
                self._note(name, arguments, answer)
                return answer
            finally:
                if act == "after":
                    die()

        return call

    def _note(self, name: str, arguments: tuple[Any, ...], answer: Any) -> None:
        """Tell what is on the disk from now on."""
        if name in ("mkdir", "rename", "replace"):
            old = "" if name == "mkdir" else str(arguments[0])
            self.tell(b"N", json.dumps([old, str(arguments[name != "mkdir"])]).encode())
        if name == "open":
            self._paths[answer] = str(arguments[0])
            if arguments[1] & os.O_CREAT:
                self.tell(b"N", json.dumps(["", str(arguments[0])]).encode())
        elif name in ("fdatasync", "fsync"):
            path = Path(self._paths[arguments[0]])
            if path.is_dir():
                self.tell(b"D", str(path).encode())
            else:
                self.tell(b"F", path.read_bytes())


def die() -> None:
    """The end, at once, with nothing tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def live(kind: type[Ledger], directory: Path, life: tuple[Any, ...], faults: Faults) -> None:
    """Spend; tell before each spend, and after it, which is when an update would be sent."""
    number = 0
    for visit in life:
        try:
            ledger = kind(directory, PRINT)
        except Problem as problem:
            assert problem.kind is DISK
            number += len(spends_of((visit,)))
            continue
        with ledger:
            for how, task, release in visit:
                count = together(how)
                for _ in range(count):
                    faults.tell(b"T", str(number).encode())
                    number += 1
                try:
                    if how.startswith("budget"):
                        assert len(Budget(ledger, task, release, 8.0, TINY).spend(count)) == count
                    else:
                        ledger.spend(task, release, count)
                except Problem as problem:
                    assert problem.kind is DISK
                else:
                    faults.tell(b"A", str(count).encode())


# -- the parent ------------------------------------------------------------------------------
@dataclass
class Left:
    """What the world knows when a child is dead.

    Attributes:
        calls: those that it made: name, and bytes of a write.
        sent: the numbers of the spends that it was allowed to send.
        tried: of those that it began.
        durable: content that is on the disk; None when none was ever synced.
        kept: what of it had its directory synced, too.
        names: directories whose entries are on the disk.
        made: what became of names, in order: made or renamed ones as pairs, of the old one (or
            nothing) and the new; directories synced, alone.
        said: what else it told.
        killed: it died of SIGKILL, or of the kernel's refusal to write on.
    """

    calls: list[tuple[str, int]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)
    durable: bytes | None = None
    kept: bytes | None = None
    names: set[str] = field(default_factory=set)
    made: list[tuple[str, ...]] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)
    killed: bool = False


def in_a_child(
    body: Callable[[Faults], None], plan: Plan, names: tuple[str, ...] = CALLS
) -> Left:
    """Run it in a process of its own, that ends as its plan says."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reads)
            body(Faults(plan, writes, names))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writes)
    raw = bytearray()
    while part := os.read(reads, 1 << 16):
        raw += part
    os.close(reads)
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 0, "the child broke"
    left, at = Left(killed=killed), 0
    while at < len(raw):
        what, size = struct.unpack_from("<cI", raw, at)
        payload = bytes(raw[at + 5 : at + 5 + size])
        at += 5 + size
        if what == b"C":
            name, length = json.loads(payload)
            left.calls.append((name, length))
        elif what == b"T":
            left.tried.append(int(payload))
        elif what == b"A":
            left.sent += left.tried[-int(payload or 1):]
        elif what == b"F":
            left.durable = payload
        elif what == b"N":
            left.made.append(tuple(json.loads(payload)))
        elif what == b"S":
            left.said.append(payload)
        else:
            left.names.add(payload.decode())
            left.made.append((payload.decode(),))
            left.kept = left.durable
    return left


def states(durable: bytes | None, present: bytes) -> Iterator[bytes]:
    """Every content that a power cut may leave of a file."""
    base = durable or b""
    pairs = enumerate(zip(base, present, strict=False))
    same = next((n for n, (a, b) in pairs if a != b), min(len(base), len(present)))
    for content in (base, present):
        for length in range(same, len(content) + 1):
            yield content[:length]
            if length % 7 == 0:
                # Some file systems lengthen a file before they fill it.
                yield content[:length] + bytes(len(content) - length)


@dataclass(frozen=True)
class Known:
    """Spends from before a child came.

    Attributes:
        sure: those that were on the disk.
        maybe: the one whose line lacked its line feed only: nothing was sent for it, and it may
            count or not.
    """

    sure: tuple[Spend, ...] = ()
    maybe: tuple[Spend, ...] = ()


class Inspector:
    """Opens what is left, and looks whether the books are right.

    Args:
        kind: of ledger that is examined.
        home: a directory for the states that are made by hand.
    """

    def __init__(self, kind: type[Ledger], home: Path) -> None:
        self._kind = kind
        self._home = home
        self._seen: set[object] = set()
        self.cases = 0

    def power_cut(self, present: bytes | None, left: Left, names: set[str], before: Known,
                  spends: list[Spend]) -> None:
        """Look at every state that a power cut may leave.

        Args:
            present: content of the file as the kernel has it; None when there is no file.
            left: what is known.
            names: directories whose entries must be on the disk for the file to be found.
            before: spends that were on the disk before the child came.
            spends: those of its life, in order.

        Raises:
            AssertionError: the books are wrong.
        """
        contents: set[bytes | None] = set(states(left.durable, present or b""))
        if not names <= left.names:
            contents.add(None)
        for content in contents:
            case = (content, tuple(left.sent), tuple(left.tried), before)
            if case in self._seen:
                continue
            self._seen.add(case)
            shutil.rmtree(self._home, ignore_errors=True)
            if content is not None:
                self._home.mkdir()
                (self._home / f"{PRINT}.ledger").write_bytes(content)
            self.look(self._home, left, before, spends)

    def look(self, directory: Path, left: Left, before: Known, spends: list[Spend]) -> None:
        """Open the ledger of a directory; see :meth:`power_cut`."""
        self.cases += 1
        with self._kind(directory, PRINT) as ledger:
            count = sum(ledger.counts().values())
            least = len(before.sure) + len(left.sent)
            most = len(before.sure) + len(before.maybe) + len(left.tried)
            assert least <= count <= most, f"{count} of {least} to {most}"
            # Exactly those that were sent, and any of those that were only begun.
            tried = [(spends[number], number in left.sent) for number in left.tried]
            book = [*((s, True) for s in before.sure), *((s, False) for s in before.maybe), *tried]
            unsure = [place for place, (_, sure) in enumerate(book) if not sure]
            assert any(_agree(ledger, [s for place, (s, _) in enumerate(book) if place not in out])
                       for out in itertools.combinations(unsure, len(book) - count)), book
            assert ledger.total(TINY) == math.fsum(
                release.amplified * n for release, n in ledger.counts().items())
            index = ledger.count("oats") + 1
            assert ledger.spend("oats", WHEAT) == index
        with self._kind(directory, PRINT) as ledger:
            assert sum(ledger.counts().values()) == count + 1
            assert ledger.count("oats") == index


def _agree(ledger: Ledger, spends: list[Spend]) -> bool:
    tasks = {task: Counter(release for name, release in spends if name == task)
             for task in ("barley", "oats")}
    return all(ledger.counts(task) == dict(of_task) and ledger.count(task) == of_task.total()
               for task, of_task in tasks.items())


@dataclass
class Ground:
    """Where a life is lived: two directories deep, both made by the ledger."""

    home: Path

    def __post_init__(self) -> None:
        self.directory = self.home / "state" / "ledgers"
        self.file = self.directory / f"{PRINT}.ledger"
        self.names = {str(path) for path in (self.home, self.home / "state", self.directory)}

    def clear(self, content: bytes | None = None) -> None:
        """Nothing there; or a file from before a power cut, whose name is on the disk."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        if content is not None:
            self.directory.mkdir(parents=True)
            self.file.write_bytes(content)

    def present(self) -> bytes | None:
        """The file as the kernel has it."""
        return self.file.read_bytes() if self.file.exists() else None


def spends_of(life: tuple[Any, ...]) -> list[Spend]:
    """The spends of a life, in order."""
    return [(task, release) for visit in life for how, task, release in visit
            for _ in range(together(how))]


def together(how: str) -> int:
    """How many releases are spent in one go."""
    return int([*how.split(), "1"][1])


def plans(calls: list[tuple[str, int]], scenario: str) -> Iterator[Plan]:
    """The deaths of a scenario, for a life that makes these calls."""
    writes = [(n, size) for n, (name, size) in enumerate(calls) if name == "write"]
    if scenario == "torn":
        for n, size in writes:
            yield from ({n: ("tear", most)} for most in range(1, size))
        return
    if scenario == "calls":
        for n in range(len(calls)):
            yield {n: ("before", 0)}
            yield {n: ("after", 0)}
        return
    assert scenario == "troubles"
    for n, size in writes:
        for most in (1, size // 2, size - 1):
            # The kernel takes a part only, and death comes around the rest of it.
            for act in (("before", 0), ("after", 0), ("tear", (size - most) // 2)):
                yield {n: ("short", most), n + 1: act}
        for most in (0, 1, size // 2, size):
            # The disk is full; death comes around the taking back, or that fails too.
            for act in ("before", "after"):
                yield {n: ("fail", most), n + 1: (act, 0)}
                yield {n: ("fail", most), n + 2: (act, 0)}
                yield {n: ("fail", most), n + 1: ("fail", 0), n + 2: (act, 0)}
            yield {n: ("fail", most)}
            yield {n: ("fail", most), n + 1: ("fail", 0)}


def deaths(scenario: str, kind: type[Ledger], ground: Ground, inspector: Inspector) -> None:
    """All deaths of a whole life that begins with nothing."""
    life = LIFE if scenario == "calls" else SHORT
    spends = spends_of(life)

    def body(faults: Faults) -> None:
        live(kind, ground.directory, life, faults)

    ground.clear()
    whole = in_a_child(body, {})
    assert whole.sent == list(range(len(spends)))
    for plan in plans(whole.calls, scenario):
        ground.clear()
        left = in_a_child(body, plan)
        assert left.killed or all(act in ("fail", "short") for act, _ in plan.values())
        try:
            if scenario != "torn":  # what a power cut leaves of a write are its torn ones
                inspector.power_cut(ground.present(), left, ground.names, Known(), spends)
            inspector.look(ground.directory, left, Known(), spends)
        except Exception as error:
            raise AssertionError(f"{plan} of {whole.calls}: {error!r}") from error


def recoveries(kind: type[Ledger], ground: Ground, inspector: Inspector) -> None:
    """All deaths of a process that finds a torn file: the recovery is cut short, too."""
    ground.clear()
    in_a_child(lambda faults: live(Ledger, ground.directory, LIFE, faults), {})
    whole = ground.file.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    # In and after the header, the first spend, the last.
    lengths = {0, 40, *(ends[line] + by for line in (0, 2, -1) for by in (-10, -1, 0))}
    spends, old = spends_of(AFTER), spends_of(LIFE)

    def body(faults: Faults) -> None:
        live(kind, ground.directory, AFTER, faults)

    for length in sorted(lengths):
        content = whole[:length]
        *lines, tail = content.split(b"\n")
        count = sum(b" spend " in line for line in lines)
        torn = whole[length : length + 1] == b"\n" and b" spend " in tail
        known = Known(tuple(old[:count]), tuple(old[count : count + torn]))
        ground.clear(content)
        calls = in_a_child(body, {}).calls
        deadly: list[Plan] = [*plans(calls, "calls")]
        deadly += [{n: ("tear", size // 2)} for n, (_, size) in enumerate(calls) if size > 1]
        for plan in deadly:
            ground.clear(content)
            left = in_a_child(body, plan)
            left.durable = content if left.durable is None else left.durable
            left.names |= ground.names
            try:
                inspector.power_cut(ground.present(), left, ground.names, known, spends)
                inspector.look(ground.directory, left, known, spends)
            except Exception as error:
                raise AssertionError(f"{length} bytes, {plan} of {calls}: {error!r}") from error


def successors(kind: type[Ledger], ground: Ground, inspector: Inspector) -> None:
    """A process is killed at each instant; another goes on, sends, and then the power is cut."""
    spends, more = spends_of(SHORT), spends_of(AFTER)
    ground.clear()
    calls = in_a_child(lambda faults: live(kind, ground.directory, SHORT, faults), {}).calls
    for plan in plans(calls, "calls"):
        ground.clear()
        first = in_a_child(lambda faults: live(kind, ground.directory, SHORT, faults), plan)
        second = in_a_child(lambda faults: live(kind, ground.directory, AFTER, faults), {})
        assert second.sent == [0]
        both = dataclasses.replace(
            second, names=first.names | second.names,
            sent=[*first.sent, len(spends)], tried=[*first.tried, len(spends)])
        try:
            inspector.power_cut(ground.present(), both, ground.names, Known(), [*spends, *more])
        except Exception as error:
            raise AssertionError(f"after {plan} of {calls}: {error!r}") from error


def sessions(writer: Callable[..., None], home: Path) -> int:
    """All deaths of a process that saves a session over an older one: how many they were."""
    from client_world import CURATOR, ONION, make_task

    from accord.task import sign

    old = session.Session(
        onion=ONION, task=sign(make_task(), CURATOR), data="/x/mine.csv", fingerprint=PRINT,
        epsilon=1.0, batch=50, min_clients=5, budget=8.0, delta=1e-6, max_difficulty=6,
        ledger="/x", output="/x/m")
    new = msgspec.structs.replace(old, token=b"t" * 32, solution=b"s" * 8)
    path = home / "session.json"
    session.write_whole = writer  # type: ignore[attr-defined]

    def body(faults: Faults) -> None:
        faults.tell(b"T", b"0")
        session.save_session(path, new)
        faults.tell(b"A")

    def begin(there: bool) -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        if there:
            write_whole(path, raw_old, 0o600)

    home.mkdir()
    session.save_session(path, old)
    raw_old = path.read_bytes()
    session.save_session(path, new)
    size = len(path.read_bytes())
    cases = 0
    for there in (True, False):
        begin(there)
        calls = in_a_child(body, {}).calls
        # The file object writes in C: so the kernel itself cuts the writing short, by a limit on
        # the length of files, whose signal is as deadly.
        rooms = [*range(0, size, 61), size - 1]
        fates: list[tuple[Plan, int | None]] = [(plan, None) for plan in plans(calls, "calls")]
        fates += [({}, room) for room in rooms]
        for plan, room in fates:
            begin(there)
            left = in_a_child(body if room is None else limited(body, room), plan)
            assert left.killed
            cases += 1
            try:
                _one_of_both(path, home, left, old if there else None, new, raw_old)
            except Exception as error:
                raise AssertionError(f"{plan}, {room} of {calls}: {error!r}") from error
    return cases


def limited(body: Callable[[Faults], None], room: int) -> Callable[[Faults], None]:
    """The same, in a world where no file may become longer than this."""
    def bounded(faults: Faults) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        body(faults)

    return bounded


def _one_of_both(path: Path, home: Path, left: Left, old: session.Session | None,
                 new: session.Session, raw_old: bytes) -> None:
    """Whole, old or new; and new when it was said to be saved. Nothing else can be read there."""
    after_kill = path.read_bytes() if path.exists() else None
    possible: set[bytes | None] = {after_kill}
    written = after_kill is not None and after_kill != raw_old
    if written:
        # In the file's place; what of it was not synced may be gone.
        synced = left.durable or b""
        possible |= {*states(synced, after_kill or b"")}
    if written and str(home) not in left.names:
        possible.add(None if old is None else raw_old)
    for content in possible:
        path.unlink(missing_ok=True)
        if content is None:
            assert old is None and not left.sent, "the session is gone"
            continue
        path.write_bytes(content)
        found = session.load_session(path)
        assert found == new or (found == old and not left.sent), "an older session"


def examined(module: str, runs: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, object]]]:
    """Each scenario of this module, or one like it, with what came of it: run as a program."""
    here, memory = Path(__file__).parent, Path("/dev/shm")
    # Where there is such a place, no real disk is waited for: what a disk keeps is modelled anyhow.
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as home:
        done = subprocess.run(
            [sys.executable, "-m", module, home, *(word for run in runs for word in run)],
            capture_output=True, text=True, timeout=240,
            env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"})
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(runs), done.stderr
    return zip((" ".join(run) for run in runs), lines, strict=True)


def each_in_a_child(examine: Callable[[str, str, Path], int]) -> None:
    """The program of a module like this one: each scenario in a process of its own, as what is
    put in place of something there stays. ``examine`` gives how many cases there were."""
    gc.disable()
    gc.freeze()
    for place in range(2, len(sys.argv), 2):
        scenario, subject = sys.argv[place : place + 2]
        own = Path(sys.argv[1]) / f"{scenario}-{subject}"
        own.mkdir()
        pid = os.fork()
        if pid == 0:
            began, cases, wrong = time.monotonic(), 0, ""
            try:
                cases = examine(scenario, subject, own)
            except Exception as error:
                wrong = repr(error)
            told = {"cases": cases, "wrong": wrong, "seconds": time.monotonic() - began}
            print(json.dumps(told), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


def main(scenario: str, subject: str, home: Path) -> dict[str, object]:
    """Run one scenario; what came of it, for the test."""
    began = time.monotonic()
    cases, wrong = 0, ""
    try:
        if scenario == "sessions":
            cases = sessions(WRITERS[subject], home / "it")
        else:
            kind = LEDGERS[subject]
            ground, inspector = Ground(home / "it"), Inspector(kind, home / "cut")
            try:
                if scenario == "recoveries":
                    recoveries(kind, ground, inspector)
                elif scenario == "successors":
                    successors(kind, ground, inspector)
                else:
                    deaths(scenario, kind, ground, inspector)
            finally:
                cases = inspector.cases
    except AssertionError as error:
        wrong = str(error) or repr(error)
    return {"cases": cases, "wrong": wrong, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    gc.disable()
    gc.freeze()
    for place in range(2, len(sys.argv), 2):
        scenario, subject = sys.argv[place : place + 2]
        own = Path(sys.argv[1]) / f"{scenario}-{subject}"
        own.mkdir()
        print(json.dumps(main(scenario, subject, own)), flush=True)
