"""The privacy ledger: spend durably BEFORE sending, and know what it all comes to.

What it all comes to is reckoned in :mod:`client.accounting`.

**Where it is written.** One :class:`Ledger` file per data set (:func:`client.dataset.identity`),
lines of text::

    5ea1d0c3 ledger 1 <fingerprint of the data set>
    9b1f02aa kind 1 {"task":"...","release":{"epsilon":1.0,"batch":10,...}}
    77ce9d10 spend 1 1
    2f0a4b3e spend 1 2

A *spend* names its kind and counts the releases of that task. The leading checksum is the CRC-32
of all that was written so far, so a line that is changed, moved, doubled or missing shows. It is
against accidents: whoever may write the file can forge it, but is the one whom it protects.

**Why a torn tail may be cut off.** A spend is on disk before :meth:`Ledger.spend` returns, and
the update is sent after that. So a last line without its line feed belongs to a call that never
returned (the power went, the process was killed): nothing was sent, nothing is owed. If that line
is whole but for the line feed it counts all the same, and so do the lines of the same call that
come before it. A line that does end and does not fit its
checksum is damage: then nobody knows what was spent, and the ledger refuses to open. What it
cannot see is a file put back as it was earlier, or cut short exactly between two lines.
"""

from __future__ import annotations

import fcntl
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
from msgspec import Struct

from accord.files import sync_directory
from accord.problems import BAD_LEDGER, BUDGET_SPENT, DISK, LOCKED, Problem
from accord.words import number
from client.accounting import affordable, epsilon_total
from client.noise import Release

_LINE: Final = re.compile(rb"([0-9a-f]{8}) (ledger|kind|spend) (\d+) ?(.*)", re.DOTALL)
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{8,128}")


class _Kind(Struct, frozen=True, forbid_unknown_fields=True):
    """What a spend in the file refers to by its number."""

    task: str
    release: Release


def ledger_name(directory: Path, identity: str, fingerprint: str) -> str:
    """Which ledger is a data set's: that of its rows, or one that was begun for its file's bytes
    when ledgers were named by those, so that nothing that was spent is forgotten.

    Args:
        directory: of the ledgers.
        identity, fingerprint: of the data set (:class:`client.dataset.Dataset`).
    """
    return fingerprint if (directory / f"{fingerprint}.ledger").exists() else identity


class Ledger:
    """The file that says what was released from one data set; append-only, for one process.

    Not for two threads at once. Close it when done, or use it in a ``with``.

    Args:
        directory: where ledgers are kept; made, for its owner only, if it is not there.
        fingerprint: the data set's, in lower-case hexadecimal. No row is ever in the file.
        read_only: look only, also while another process spends; nothing can be spent.

    Raises:
        Problem: ``LOCKED``, another process has it open; ``BAD_LEDGER``, it is damaged; ``DISK``,
            it cannot be read or made.
        ValueError: the fingerprint is not hexadecimal.
    """

    def __init__(self, directory: Path, fingerprint: str, *, read_only: bool = False) -> None:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"{fingerprint!r} is not a fingerprint")
        self.path: Final = directory / f"{fingerprint}.ledger"
        self._fingerprint: Final = fingerprint
        self._kinds: dict[_Kind, int] = {}
        self._spent: Counter[_Kind] = Counter()
        self._tasks: Counter[str] = Counter()
        self._releases = 0
        self._all: Counter[Release] = Counter()
        self._checksum = 0
        self._size = 0
        self._fd = -1
        self._usable = True
        try:
            if read_only:
                self._usable = False
                self._take_all(self.path.read_bytes())
            else:
                self._open(directory)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._disk(error) from error
            raise

    def spend(self, task_id: str, release: Release, count: int = 1) -> int:
        """Write releases down, in one go; when this returns they are on disk, and the update that
        holds them may be sent.

        Args:
            task_id: the task that they are for.
            release: their kind.
            count: how many, at least 1.

        Returns:
            The number of the first of them among those of the task, from 1.

        Raises:
            Problem: ``DISK``, they could not be written; nothing was counted, do not send.
            ValueError: the ledger is closed, or there is nothing to write.
        """
        if self._fd < 0:
            raise ValueError("the ledger is closed")
        if count < 1:
            raise ValueError(f"{count} releases")
        kind = _Kind(task_id, release)
        first = self._tasks[task_id] + 1
        known = self._kinds.get(kind)
        number = known or len(self._kinds) + 1
        payloads = [b"spend %d %d" % (number, index) for index in range(first, first + count)]
        if not known:
            payloads.insert(0, b"kind %d %s" % (number, msgspec.json.encode(kind)))
        with self._all_or_nothing():
            self._append(payloads)
            self._kinds[kind] = number
            self._count(kind, count)
        return first

    @property
    def releases(self) -> int:
        """How many releases there were in all; it only grows, and whatever is spent shows in it."""
        return self._releases

    def count(self, task_id: str) -> int:
        """How many releases there were for a task."""
        return self._tasks.get(task_id, 0)

    def tasks(self) -> list[str]:
        """The tasks that there were releases for, in the order of the first ones."""
        return list(self._tasks)

    def counts(self, task_id: str | None = None) -> dict[Release, int]:
        """How many releases there were of each kind, for one task or for all together.

        What was released for different tasks is about the same rows, and adds up.
        """
        if task_id is None:
            return dict(self._all)
        return {kind.release: count for kind, count in self._spent.items() if kind.task == task_id}

    def total(self, delta: float, task_id: str | None = None) -> float:
        """:func:`client.accounting.epsilon_total` of :meth:`counts`."""
        return epsilon_total(self.counts(task_id), delta)

    def close(self) -> None:
        """Let another process have the file. Closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.path.exists():
            # Before there is a file, so that whoever finds one can rely on its way there; and all
            # of it, as whoever made a part may have been killed before it came to this.
            for above in directory.parents:
                with suppress(PermissionError):  # what we may not open was not made by us
                    sync_directory(above)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(LOCKED, path=self.path) from None
        os.fchmod(self._fd, 0o600)
        with open(self._fd, "rb", closefd=False) as file:
            self._replay(file.read())
        if self._size == 0:
            with self._all_or_nothing():
                self._append([b"ledger 1 %s" % self._fingerprint.encode()])
        # Every time, as whoever made the file may have been killed before it came to this.
        sync_directory(directory)

    def _replay(self, content: bytes) -> None:
        """Take in the whole file; cut a torn tail off."""
        tail, whole = self._take_all(content)
        if whole:
            os.write(self._fd, b"\n")
            os.fdatasync(self._fd)
        elif tail:
            os.ftruncate(self._fd, self._size)
            os.fdatasync(self._fd)

    def _take_all(self, content: bytes) -> tuple[bytes, bool]:
        """Take in all lines; what follows the last line feed, and whether it was a line.

        A line that is whole but for its line feed counts: that may have been all that was lost.
        """
        lines = content.split(b"\n")
        tail = lines.pop()
        for place, line in enumerate(lines, 1):
            if not self._take(line):
                raise Problem(BAD_LEDGER, path=self.path, line=place)
        return tail, bool(tail) and self._take(tail)

    def _take(self, line: bytes) -> bool:
        """Take in one line, without its line feed; False if it is not what belongs here."""
        match = _LINE.fullmatch(line)
        if match is None:
            return False
        checksum, word, number, rest = int(match[1], 16), match[2], int(match[3]), match[4]
        if checksum != zlib.crc32(line[9:], self._checksum):
            return False
        if (word == b"ledger") != (self._size == 0):
            return False
        if word == b"ledger":
            if number != 1 or rest != self._fingerprint.encode():
                return False
        elif word == b"kind":
            try:
                kind = msgspec.json.decode(rest, type=_Kind)
            except msgspec.MsgspecError:
                return False
            if number != len(self._kinds) + 1 or kind in self._kinds:
                return False
            self._kinds[kind] = number
        else:
            if not 1 <= number <= len(self._kinds):
                return False
            kind = list(self._kinds)[number - 1]
            if rest != b"%d" % (self._tasks[kind.task] + 1):
                return False
            self._count(kind)
        self._checksum = checksum
        self._size += len(line) + 1
        return True

    def _count(self, kind: _Kind, count: int = 1) -> None:
        self._spent[kind] += count
        self._tasks[kind.task] += count
        self._all[kind.release] += count
        self._releases += count

    def _append(self, payloads: list[bytes]) -> None:
        """Write lines in one go, have them on disk, and only then remember that they are there."""
        checksum, lines = self._checksum, []
        for payload in payloads:
            checksum = zlib.crc32(payload, checksum)
            lines.append(b"%08x %s\n" % (checksum, payload))
        record = rest = b"".join(lines)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        os.fdatasync(self._fd)
        self._checksum = checksum
        self._size += len(record)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Around a write. One that fails is taken back; if that fails too, no other is tried.

        Nor is one after an interruption (Ctrl-C) that left file and memory apart: opening the
        file again brings them together.
        """
        if not self._usable:
            raise self._disk(OSError("an earlier write was cut short; open the ledger again"))
        self._usable = False
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
                os.fdatasync(self._fd)
                self._usable = True
            raise self._disk(error) from error
        self._usable = True

    def _disk(self, error: OSError) -> Problem:
        return Problem(DISK, path=self.path, why=error.strerror or str(error))


class Budget:
    """What one task may still release from a data set: a ledger, a kind, and a limit.

    The limit is on the data set, whatever the tasks: what others released from it counts too.

    Args:
        ledger: of the data set; kept open by the caller.
        task_id: the task that the releases are for.
        release: their kind.
        epsilon: the total not to be exceeded.
        delta: as for :func:`client.accounting.epsilon_total`.

    Raises:
        Problem: ``BUDGET_SMALL``, not even one release is affordable and this task has made none.
        ValueError: as :func:`client.accounting.epsilon_total`.
    """

    def __init__(
        self, ledger: Ledger, task_id: str, release: Release, epsilon: float, delta: float
    ) -> None:
        self.epsilon: Final = epsilon
        self.delta: Final = delta
        self._ledger: Final = ledger
        self._task: Final = task_id
        self._release: Final = release
        self._seen = -1  # of the ledger's releases
        self._remaining = 0
        self._plan(first=ledger.count(task_id) == 0)

    @property
    def remaining(self) -> int:
        """How many more releases the budget allows."""
        if self._ledger.releases != self._seen:  # another task spent from the same data set
            self._plan(first=False)
        return self._remaining

    def spend(self, count: int) -> range:
        """Pay for releases, or for so many fewer as the budget still allows; when this returns they
        are on disk, and the update that holds them may be sent.

        Args:
            count: how many at most, at least 1.

        Returns:
            The numbers of these releases among those of the task, from 1; at least one.

        Raises:
            Problem: ``BUDGET_SPENT``, one more would exceed the budget; ``DISK``, they could not be
                written. In both cases nothing was counted: do not send.
        """
        remaining = self.remaining
        if remaining < 1:
            raise Problem(BUDGET_SPENT, spent=number(self.spent()), budget=number(self.epsilon),
                          delta=self.delta)
        count = min(count, remaining)
        first = self._ledger.spend(self._task, self._release, count)
        self._seen, self._remaining = self._ledger.releases, remaining - count
        return range(first, first + count)

    def spent(self) -> float:
        """The data set's total so far, as epsilon at :attr:`delta`.

        A few milliseconds for one kind of release, some hundredths of a second for several; asked
        again it is remembered.
        """
        return self._ledger.total(self.delta)

    def _plan(self, *, first: bool) -> None:
        self._seen = self._ledger.releases
        try:
            self._remaining = affordable(
                self._release, self.epsilon, self.delta, self._ledger.counts())
        except Problem:
            if first:
                raise
            self._remaining = 0
