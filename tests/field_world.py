"""What tests of rehearsals share: who can run them, and whether anything is left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.field.hosts import PREFIX, ROOT

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0,
    reason="NOT RUN: hosts are namespaces and mounts, and only root on Linux can make them; "
           "type: sudo scripts/test")


def left_over(slot: int) -> list[str]:
    """What there still is of a set of hosts: links, processes, mounts, control groups, files."""
    found = [f"link {path.name}" for path in Path("/sys/class/net").iterdir()
             if f"{PREFIX}{slot}" in path.name]
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):
                if f"--machine={PREFIX}{slot}-".encode() in (place / "cmdline").read_bytes():
                    found.append(f"process {place.name}")
    if str(ROOT / str(slot)) in Path("/proc/self/mountinfo").read_text():
        found.append("mount")
    groups = subprocess.run(
        ["unshare", "--mount", "sh", "-euc",
         f"mount -t cgroup2 c /sys/fs/cgroup; ls -d /sys/fs/cgroup/{PREFIX}{slot} || true"],
        capture_output=True, text=True, check=True).stdout
    found += [f"control group {line}" for line in groups.split()]
    if (ROOT / str(slot)).exists():
        found.append("files")
    return found
