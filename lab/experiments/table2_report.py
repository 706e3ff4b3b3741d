"""What :mod:`lab.experiments.table2` shows: tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich import box
from rich.console import RenderableType
from rich.table import Table

from lab.experiments.drawing import begin, drawn, save
from lab.experiments.frame import Finished

PAPER: Final = {10: (819.0, 210.0), 50: (210.0, 34.0), 100: (135.0, 18.0), 200: (67.0, 13.0)}
"""Seconds to the target with and without Tor (paper, Table 2)."""
CONTESTANTS: Final = {"ours": "ours", "paper": "the paper's protocol"}
_COLOURS: Final = {10: "#555555", 50: "#2b7bba", 100: "#c0572b", 200: "#7d4698"}
_FIGURES: Final = ("joining", "updates", "rate", "releases", "epsilon_total", "strikes")

CAPTION: Final = ("'Paper' is its Table 2: its 25 machines, its data, which had the answer among "
                  "the features. 'Overhead' is with Tor to without.")
PICTURES: Final = {True: "figure6", False: "figure7"}
"""With Tor, and without."""

Key = tuple[int, bool, str]
"""Clients, Tor, protocol."""


def times(finished: Sequence[Finished]) -> dict[Key, list[float | None]]:
    """The arrivals of all seeds; None for one that was not within its limit."""
    found: dict[Key, list[float | None]] = {}
    for each in finished:
        found.setdefault(_key(each), []).append(each.result["arrived"])
    return found


def _key(each: Finished) -> Key:
    return each.cell["clients"], each.cell["tor"], each.cell["protocol"]


def middle(seconds: Sequence[float | None]) -> float | None:
    """The median, where one that never came is later than any; None when that is the median."""
    found = median([float("inf") if s is None else s for s in seconds])
    return None if found == float("inf") else found


def spread(seconds: Sequence[float | None], limit: float) -> str:
    """Median, least and most, for a table."""
    there = [s for s in seconds if s is not None]
    never = f"> {limit:g}"
    best = middle(seconds)
    words = never if best is None else _number(best)
    if len(seconds) == 1 or not there:
        return words
    most = never if len(there) < len(seconds) else _number(max(there))
    return f"{words} ({_number(min(there))} to {most})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(one: Sequence[float | None], other: Sequence[float | None], limit: float) -> str:
    """How many times as long one takes as the other, by their medians; a bound where one never
    came, nothing where that says nothing."""
    if not one or not other:
        return ""
    above, below = middle(one), middle(other)
    if below is None:
        return ""
    if above is None:
        return f"> {limit / below:.1f}"
    return f"{above / below:.1f}"


def tables(finished: Sequence[Finished], title: str = "Table 2",
           caption: str = CAPTION) -> list[RenderableType]:
    """Table 2, or what goes by another title; what else was measured; the round trips."""
    if not finished:
        return []
    return [_time_table(finished, title, caption), _cost_table(finished), _latency_table(finished)]


def _limit(finished: Sequence[Finished]) -> float:
    return max(float(each.cell["limit"]) for each in finished)


def _time_table(finished: Sequence[Finished], title: str, caption: str) -> Table:
    found, limit = times(finished), _limit(finished)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{title}: seconds from 'training begins' until the training error is within half a "
              "point of the converged model's, and stays; median (least to most)",
        caption=caption)
    for name in ("clients", "", "with Tor", "without", "overhead", "paper's protocol / ours, Tor"):
        table.add_column(name, justify="left" if not name else "right")
    for clients in sorted({key[0] for key in found}):
        if clients in PAPER:
            far, near = PAPER[clients]
            table.add_row(str(clients), "paper", f"{far:g}", f"{near:g}", f"{far / near:.1f}", "")
        for protocol, words in reversed(CONTESTANTS.items()):
            far_times = found.get((clients, True, protocol), [])
            near_times = found.get((clients, False, protocol), [])
            if not far_times and not near_times:
                continue
            faster = ""
            if protocol == "ours":
                faster = ratio(found.get((clients, True, "paper"), []), far_times, limit)
            table.add_row(str(clients), f"{words}, here",
                          *(spread(s, limit) if s else "" for s in (far_times, near_times)),
                          ratio(far_times, near_times, limit), faster)
    return table


def _cost_table(finished: Sequence[Finished]) -> Table:
    table = Table(box=box.SIMPLE_HEAD,
                  title="What else: medians over the seeds, by the arrival (or the end)",
                  caption="'Total epsilon' is of one client, at delta = 1e-6: what its releases by "
                          "then come to (the price in privacy). 'Joining' is from the first to "
                          "all in.")
    for name in ("clients", "Tor", "", "local steps", "step", "joining s", "updates", "updates/s",
                 "releases of a client", "total epsilon", "strikes"):
        table.add_column(name, justify="right" if name not in ("", "Tor") else "left")
    groups: dict[Key, list[Finished]] = {}
    for each in finished:
        groups.setdefault(_key(each), []).append(each)
    for (clients, tor, protocol), some in sorted(groups.items()):
        cell = some[0].cell
        joining, updates, rate, releases, total, strikes = (
            median(float(each.result[name]) for each in some) for name in _FIGURES)
        falls = "" if cell["schedule"] == "constant" else f" {cell['schedule'][1:]}"
        table.add_row(
            str(clients), "yes" if tor else "no", CONTESTANTS[protocol], str(cell["local_steps"]),
            f"{cell['step']:g}{falls}", f"{joining:.1f}", f"{updates:,.0f}", f"{rate:,.1f}",
            f"{releases:,.0f}", f"{total:.3g}", f"{strikes:g}")
    return table


def _latency_table(finished: Sequence[Finished]) -> Table:
    table = Table("", "median ms", "standard deviation ms", "pings", box=box.SIMPLE_HEAD,
                  title="Round trips, measured before the races")
    table.add_row("paper, with Tor", "716", "182", "")
    table.add_row("paper, without", "134", "62", "")
    for tor in (True, False):
        told = next((e.result["latency"] for e in finished if e.cell["tor"] is tor), None)
        if told:
            table.add_row(f"here, {'with Tor' if tor else 'without'}",
                          *("none came back" if told[name] is None else f"{told[name]:g}"
                            for name in ("median_ms", "sd_ms")), str(told["pings"]))
    return table


def plots(finished: Sequence[Finished], directory: Path,
          pictures: Mapping[bool, str] = PICTURES) -> list[Path]:
    """Figures 6 and 7, or what goes by other names: error over time, with Tor and without; a part
    for each contestant, all seeds as thin lines."""
    if not finished:
        return []
    pyplot = begin()
    written = []
    there = [one for one in CONTESTANTS if any(e.cell["protocol"] == one for e in finished)]
    for tor, name in pictures.items():
        some = [each for each in finished if each.cell["tor"] is tor and each.result["curve"]]
        if not some:
            continue
        drawing, ((*sides,),) = pyplot.subplots(1, len(there), figsize=(5 * len(there), 4),
                                                sharex=True, sharey=True, squeeze=False)
        for side, protocol in zip(sides, there, strict=True):
            _draw(side, [each for each in some if each.cell["protocol"] == protocol])
            side.set_title(f"{CONTESTANTS[protocol]}, {'through Tor' if tor else 'without Tor'}")
            side.set_xlabel("seconds since training began")
        sides[0].set_ylabel("training error in %")
        written += save(drawing, directory, name)
    return written


def _draw(side: Any, some: Sequence[Finished]) -> None:
    from matplotlib import ticker

    named = set()
    side.set_xscale("log")
    # Seconds as numbers: of a race that is over within one decade, powers of ten say little.
    side.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    side.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    side.xaxis.set_minor_formatter(ticker.NullFormatter())
    for each in some:
        clients = each.cell["clients"]
        points = drawn([p for p in each.result["curve"] if p[0] > 0])
        side.plot([p[0] for p in points], [100 * p[2] for p in points], linewidth=1.0,
                  color=_COLOURS.get(clients, "black"), alpha=0.8,
                  label=None if clients in named else f"{clients} clients")
        named.add(clients)
    if some:
        side.axhline(100 * some[0].result["target"], color="black", linewidth=0.8,
                     linestyle="dotted", label="half a point above the converged model")
        side.legend(fontsize=8)
    side.set_ylim(15, 45)
    side.grid(alpha=0.3)


def series(finished: Sequence[Finished]) -> Iterator[list[Any]]:
    """Error over time: a header, and a line for each point of each race."""
    yield ["clients", "tor", "protocol", "seed", "seconds", "updates", "error"]
    for each in finished:
        cell = each.cell
        for point in each.result["curve"]:
            yield [cell["clients"], int(cell["tor"]), cell["protocol"], cell["seed"], *point]


def measures(finished: Finished) -> dict[str, float | None]:
    """One race's figures; arrived is None when it was not within the limit."""
    result = finished.result
    told = {name: result[name] for name in ("arrived", *_FIGURES, "ledger", "target")}
    return {**told, "round_trip_ms": result["latency"]["median_ms"]}
