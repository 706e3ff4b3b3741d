"""Whether a machine will do: what ``deploy/playbooks/check.yml`` prints of it, judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from accord.problems import HOST_UNFIT, Problem

PYTHON: Final = (3, 11)
MEMORY: Final = 400
"""Megabytes; a client's process takes 150, tor 60."""
DISK: Final = 1000
"""Megabytes free; what is installed takes 450, the data of a race 6."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One that will do.

    Attributes:
        packages: Debian's, that are missing and will be installed.
        python, tor: versions, or empty where they will be installed.
        cores: of the processor; processor: its model, or empty.
        memory, disk: megabytes.
    """

    packages: tuple[str, ...]
    python: str
    tor: str
    cores: int
    processor: str
    memory: int
    disk: int


def judge(text: str, words: str) -> Machine:
    """Judge a machine by what it told.

    Args:
        text: lines ``key=value``.
        words: the machine, for a sentence.

    Raises:
        Problem: ``HOST_UNFIT``, with what to do.
    """
    told = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)

    def need(good: bool, what: str) -> None:
        if not good:
            raise Problem(HOST_UNFIT, host=words, what=what)

    need(told.get("system") == "Linux", f"runs {told.get('system') or 'something unknown'}, "
                                        "and Linux is needed")
    need(told.get("root") == "0", "does not let us become root; let its user use sudo without a "
                                  "password, or name another by ansible_user")
    need("systemd" in told, "has no systemd; take one with Debian 12 or newer")
    missing = _missing(told)
    need(not missing or "apt" in told,
         f"lacks {', '.join(missing)}, and has no apt-get; install that there")
    if told.get("python"):
        version = tuple(int(part) for part in told["python"].split(".")[:2])
        need(version >= PYTHON, f"has Python {told['python']}, and 3.11 or newer is needed; name "
                                "one by tormentor_python, or take Debian 12 or newer")
    memory, disk = _number(told, "memory_mb"), _number(told, "disk_mb")
    need(memory >= MEMORY, f"has {memory} MB of memory, and {MEMORY} are needed; take a larger one")
    need(disk >= DISK, f"has {disk} MB free at /opt, and {DISK} are needed; make room there")
    return Machine(missing, told.get("python", ""), told.get("tor", ""), _number(told, "cores"),
                   told.get("processor", ""), memory, disk)


def stored(machines: Mapping[str, Machine], regions: Mapping[str, str]) -> bytes:
    """What results keep of the machines, as JSON: no addresses, no names.

    Args:
        machines: by name. regions: of them.
    """
    told = [{"region": regions[name], "cores": one.cores, "processor": one.processor,
             "memory_mb": one.memory, "python": one.python, "tor": one.tor}
            for name, one in machines.items()]
    return (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()


def _missing(told: Mapping[str, str]) -> tuple[str, ...]:
    missing = [] if "tor" in told else ["tor"]
    missing += [] if told.get("python") else ["python3"]
    missing += [] if "venv" in told else ["python3-venv"]
    return tuple(missing)


def _number(told: Mapping[str, str], key: str) -> int:
    text = told.get(key, "")
    return int(text) if text.isascii() and text.isdigit() else 0
