"""Files written whole or not at all, and directories that only their owner can enter."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import time
from pathlib import Path
from typing import Final

from accord.problems import DISK, Problem

STALE: Final = 600.0
"""Seconds after which a file that was begun beside its place is one that a killed process has left:
nobody writes that long."""


def write_whole(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that every reader, and every crash, sees the old content or the new.

    It is written beside its place, brought to the disk, and renamed over it. What an earlier writer
    of the same file left there when it was killed is removed once it is :data:`STALE`.

    Args:
        path: its directory must exist.
        data: all of it.
        mode: permissions; 0o600 for secrets.

    Raises:
        Problem: ``DISK`` when it cannot be written; nothing is left behind.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise Problem(DISK, path=path, why=(error.strerror or str(error)).lower()) from None
    # It is no fault of this file's if that cannot be done.
    with contextlib.suppress(OSError):
        _sweep(path)


def _sweep(path: Path) -> None:
    """Remove what killed writers of a file have left beside it."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}")
    with os.scandir(path.parent) as entries:
        strays = [Path(entry) for entry in entries if ours.fullmatch(entry.name)]
    for stray in strays:
        if time.time() - stray.lstat().st_mtime > STALE:
            stray.unlink()


_UNSYNCED: Final = (errno.EINVAL, errno.EROFS)
"""What fsync(2) says where there is nothing to sync: the file system has no such thing for
directories (an autofs above a home, some network ones), or is read-only."""


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries to the disk, so that a new name survives a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise
    finally:
        os.close(handle)


def private_directory(path: Path) -> Path:
    """Make a directory (and its parents) that only its owner can enter; its name is on the disk.

    Raises:
        Problem: ``DISK`` when it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
        # All of the way there, and every time: whoever made a part of it may have been killed
        # before it came to this.
        for above in path.absolute().parents:
            with contextlib.suppress(PermissionError):  # what we may not open was not made by us
                sync_directory(above)
    except OSError as error:
        raise Problem(DISK, path=path, why=(error.strerror or str(error)).lower()) from None
    return path
