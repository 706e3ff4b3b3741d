"""Round trips between the machines of a run and its broker, told and kept.

They are measured before the races (:mod:`lab.field.ping`), on each machine of clients, and stored
with the results, in ``latency.json``: under ``direct`` and ``tor`` a summary of all, and each
machine's region with all of its pings, in milliseconds, a list for each connection.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from accord.files import write_whole
from lab.field.inventory import Inventory
from lab.wan import Latency

DESKS: Final = {True: "tor", False: "direct"}
"""Names of the desk behind Tor and of the one without: of the units' instances, and in files."""


class Measured:
    """Round trips of each machine.

    Args:
        inventory: of the machines.
        found: by machine, and by ``tor`` or ``direct``; None where it was not measured.
    """

    def __init__(self, inventory: Inventory, found: Mapping[str, Mapping[str, Latency | None]]
                 ) -> None:
        self._inventory = inventory
        self._found = found

    def of(self, way: str, names: Iterable[str] | None = None) -> Latency:
        """Of all machines together, or of some."""
        chosen = [one for name in (self._found if names is None else names)
                  if (one := self._found[name].get(way)) is not None]
        return Latency([each for one in chosen for each in one.samples],
                       sum(one.failed for one in chosen))

    def nearest(self) -> list[str]:
        """The machines, by their way without Tor, nearest first; at last where none came back."""
        far = {name: self.of("direct", [name]).median for name in self._found}
        return sorted(far, key=lambda name: (math.isnan(far[name]), far[name]))

    def lines(self, desks: Iterable[bool]) -> list[str]:
        """A table for a person: median and standard deviation by machine, nearest first."""
        ways = [DESKS[tor] for tor in sorted(desks)]
        heads = {"direct": "without Tor", "tor": "through Tor"}
        lines = ["Round trips, median and standard deviation in ms:",
                 f"  {'':<28}" + "".join(f"{heads[way]:>18}" for way in ways)]
        rows = [(self._inventory.words(name), [name]) for name in self.nearest()]
        for words, names in [*rows, ("all", list(self._found))]:
            lines.append(f"  {words:<28}" + "".join(f"{_pair(self.of(way, names)):>18}"
                                                    for way in ways))
        return lines

    def write(self, path: Path) -> None:
        """Store it all; what was not measured now stays as it was measured before.

        Raises:
            Problem: ``DISK``.
        """
        try:
            told = json.loads(path.read_bytes())
        except (OSError, ValueError):
            told = {}
        for way in ("direct", "tor"):
            if any(each.get(way) is not None for each in self._found.values()):
                told[way] = {"summary": self.of(way).summary(), "machines": [
                    {"region": self._inventory.hosts[name].region, "failed": one.failed,
                     "samples_ms": [[round(1000 * each, 3) for each in kept]
                                    for kept in one.samples]} for name, each in self._found.items()
                    if (one := each.get(way)) is not None]}
        write_whole(path, (json.dumps(told, indent=1, allow_nan=False, ensure_ascii=False)
                           + "\n").encode())


def _pair(latency: Latency) -> str:
    if not latency.samples:
        return "none came back"
    return f"{1000 * latency.median:.1f} ± {1000 * latency.deviation:.1f}"
