"""Races of real processes through a private Tor network with distances, both contestants."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lab.experiments.table2 import PAPER_VALIDATION
from lab.geo import Ground
from lab.race import Race

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab_world import make_table


async def test_two_contestants_race_through_tor_over_the_same_distance() -> None:
    said: list[str] = []
    # Sockets are in it: a path for tests would be too long.
    with TemporaryDirectory(prefix="geo-", ignore_cleanup_errors=True) as place:
        async with Ground(Path(place) / "g", make_table(), said.append, 8) as ground:
            ours, paper = await asyncio.gather(
                ground.race(Race(clients=6, tor=True, protocol="ours", seed=0, step=0.5,
                                 schedule="1/sqrt(t)", local_steps=20, limit=8.0, share=400)),
                ground.race(Race(clients=6, tor=True, protocol="paper", seed=0, step=0.5,
                                 schedule="1/sqrt(t)", limit=8.0, share=400,
                                 validation=PAPER_VALIDATION)))
    for told in (ours, paper):
        assert told["curve"][-1][2] < told["curve"][0][2], "something is learnt"
        assert told["strikes"] == 0
        # Nothing is nearer than the distances say (the nearest of six circuits).
        assert told["latency"]["median_ms"] > 300
        assert told["joining"] > 2 * told["latency"]["median_ms"] / 1000
    # An update takes ours one round trip, and the paper's another one for its connection.
    rates = [told["curve"][-1][1] / told["curve"][-1][0] for told in (ours, paper)]
    assert rates[0] > rates[1]
    assert 6 * ours["ledger"] >= 20 * ours["curve"][-1][1]
