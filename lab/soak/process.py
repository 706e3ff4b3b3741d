"""What a process of this machine uses, as the kernel says (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_KB: Final = 1024


def memory(pid: int) -> dict[str, float]:
    """What a process holds, in MB: ``rss`` with and ``uss`` without what it shares, and ``pss``,
    which has its part of that (proc(5), smaps_rollup)."""
    sizes: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split(":")
        sizes[name] = int(size.split()[0]) / _KB
    return {"rss": round(sizes["Rss"], 2), "pss": round(sizes["Pss"], 2),
            "uss": round(sizes["Private_Clean"] + sizes["Private_Dirty"], 2)}


def busy(pid: int) -> float:
    """Seconds of processor that a process has used so far (proc(5), stat)."""
    # The name of the program is in brackets and may have spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
