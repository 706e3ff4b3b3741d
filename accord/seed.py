"""Secrets of 32 bytes in files of their own: made once, readable by their owner alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path
from typing import Final

from accord.files import write_whole
from accord.problems import BAD_KEY, DISK, Problem

SEED_BYTES: Final = 32


def load_or_create_seed(path: Path) -> bytes:
    """The 32 bytes in a file, made (0600, whole or not at all) when there is none.

    Raises:
        Problem: ``BAD_KEY`` when the file is not one, or others may read it; ``DISK``.
    """
    if (seed := load_seed(path)) is not None:
        return seed
    try:
        directory = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise Problem(DISK, path=path, why=(error.strerror or str(error)).lower()) from None
    try:
        # Two first uses at the same time must not end with two secrets, one of them lost. Where a
        # directory cannot be locked (NFS), that is left to chance.
        with contextlib.suppress(OSError):
            fcntl.flock(directory, fcntl.LOCK_EX)
        if (seed := load_seed(path)) is None:
            seed = secrets.token_bytes(SEED_BYTES)
            write_whole(path, seed, 0o600)
        return seed
    finally:
        os.close(directory)


def load_seed(path: Path) -> bytes | None:
    """The 32 bytes in a file; None where there is no file.

    Raises:
        Problem: ``BAD_KEY``.
    """
    try:
        with path.open("rb") as file:
            others = os.fstat(file.fileno()).st_mode & 0o077
            seed = file.read(SEED_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Problem(BAD_KEY, path=path, why=(error.strerror or str(error)).lower()) from None
    if len(seed) != SEED_BYTES:
        raise Problem(BAD_KEY, path=path, why=f"it has not {SEED_BYTES} bytes")
    if others:
        raise Problem(BAD_KEY, path=path, why=f"others may read it; type: chmod 600 {path}")
    return seed
