"""Where a result comes from: which code, which versions, which machine."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from accord.problems import Problem
from accord.tor import find_tor

_HOME: Final = Path(__file__).resolve().parents[2]
_ROOMS: Final = ("accord", "broker", "curator", "client", "lab")


@functools.cache
def code() -> str:
    """A short digest of the source of all packages: the same where the same would be computed.

    The text of the files counts and nothing of their places, so that an installed package and a
    checkout of the same version agree.
    """
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((_HOME / room).rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(_HOME).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def commit(home: Path = _HOME) -> str | None:
    """The commit that is checked out, 40 hex digits; None outside of a checkout.

    It is read off git's files: whoever runs an experiment need not have git. What was edited
    since does not show in it; it does in :func:`code`.
    """
    try:
        place = home / ".git"
        if place.is_file():  # a work tree beside the main one
            place = home / place.read_text().removeprefix("gitdir:").strip()
        head = (place / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return _hash(head)
        name = head.removeprefix("ref:").strip()
        shared = place / "commondir"
        common = place / shared.read_text().strip() if shared.is_file() else place
        for loose in (place / name, common / name):
            if loose.is_file():
                return _hash(loose.read_text().strip())
        lines = (common / "packed-refs").read_text().splitlines()
        return next((_hash(line.split()[0]) for line in lines if line.endswith(f" {name}")), None)
    except (OSError, UnicodeDecodeError):
        return None


def _hash(text: str) -> str | None:
    return text if len(text) == 40 and not set(text) - set("0123456789abcdef") else None


def circumstances(tor: bool = False) -> dict[str, Any]:
    """What a result depends on besides its cell: this machine, these versions, this code.

    Args:
        tor: say which tor there is; its version is None otherwise, and where there is none.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "version": metadata.version("tormentor"),
        "commit": commit(),
        "code": code(),
        "tor": _tor() if tor else None,
        "machine": {
            "cores": os.cpu_count(),
            "memory_gib": round(memory / 2**30, 1),
            "processor": _processor(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }


def _processor() -> str:
    """Its model where the system tells, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _tor() -> str | None:
    try:
        return ".".join(map(str, find_tor()[1]))
    except Problem:
        return None
