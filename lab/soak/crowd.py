"""``scripts/soak crowd``: many clients over one tor, and what it costs the broker."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click

from accord.console import command as console_command
from accord.console import json_option, result, say
from accord.problems import EXIT_BUG
from lab.demo import Failed
from lab.soak.process import busy, memory
from lab.soak.stage import Setting, Stage
from lab.tornet import running

WITHIN: Final = 0.10
"""How much the broker's memory may grow from the first minute to the last."""
FEATURES: Final = 200
_ENDLESS: Final = 100_000_000
_GATHERING: Final = 300.0
_MINUTE: Final = 60.0
_POLL: Final = 1.0


async def attempt(
    clients: int, minutes: int, directory: Path, *, tor: bool = True, minute: float = _MINUTE,
    desk: str = "tormentor",
) -> dict[str, Any]:
    """Train with so many clients for so long; what came of it.

    Args:
        clients, minutes: how many.
        directory: for all files.
        tor: over a private network.
        minute: its length in seconds.
        desk: the module that is the broker's command.
    """
    setting = Setting(clients=clients, processes=2, updates=_ENDLESS, width=0, minimum=2,
                      own_tors=False, tor=tor, features=FEATURES, desk=desk)
    async with Stage(directory, setting) as stage:
        began = time.monotonic()
        say("Waiting until all clients are in ...")
        while (have := (await stage.status()).clients) < clients:
            say(f"{have:4} of {clients} clients are in.")
            if time.monotonic() - began > _GATHERING:
                raise Failed(f"only {have} of {clients} clients came in; see {directory}")
            await asyncio.sleep(_POLL)
        gathered = time.monotonic() - began
        say(f"All are in after {gathered:.1f} s.")
        pid, tor_pid = stage.desk.pid, running(stage.desk_tor) if tor else None
        sizes = []
        began, first = time.monotonic(), (await stage.status()).updates
        spent = busy(pid), busy(tor_pid) if tor_pid else 0.0
        for number in range(1, minutes + 1):
            await asyncio.sleep(max(0.0, began + number * minute - time.monotonic()))
            status = await stage.status()
            sizes.append(memory(pid))
            say(f"Minute {number:3}: {sizes[-1]['rss']:.1f} MB, {status.clients} clients, "
                f"{status.updates} updates.")
        seconds = time.monotonic() - began
        told: dict[str, Any] = {
            "clients": status.clients, "gathered_seconds": round(gathered, 1),
            "updates": status.updates, "phase": status.phase,
            "updates_per_second": round((status.updates - first) / seconds, 1),
            "broker_cpu": round((busy(pid) - spent[0]) / seconds, 3),
            "tor_cpu": round((busy(tor_pid) - spent[1]) / seconds, 3) if tor_pid else None,
            "memory": sizes, "first": sizes[0], "last": sizes[-1],
            "growth": round(sizes[-1]["rss"] / sizes[0]["rss"] - 1, 4), "tor": tor,
        }
        faults = {
            f"memory grew by more than {WITHIN:.0%}": told["growth"] > WITHIN,
            f"{clients - status.clients} clients are gone": status.clients < clients,
            "nobody trained": status.updates <= first,
        }
        return told | {"fault": [words for words, is_so in faults.items() if is_so]}


def _words(told: dict[str, Any]) -> str:
    first, last = told["first"], told["last"]
    lines = [
        f"{told['clients']} clients, all in after {told['gathered_seconds']} s, "
        f"{told['updates_per_second']} updates a second.",
        f"Memory of the broker: {first['rss']} MB at first, {last['rss']} MB at last "
        f"({told['growth']:+.1%}).",
        f"It used {told['broker_cpu']:.0%} of a processor"
        + (f", its tor {told['tor_cpu']:.0%}." if told["tor_cpu"] is not None else "."),
    ]
    return "\n".join(lines + [f"FAULT: {words}" for words in told["fault"]])


@click.command("crowd")
@click.option("--clients", type=click.IntRange(2, 2000), default=200, show_default=True,
              help="How many.")
@click.option("--minutes", type=click.IntRange(2, 10_000), default=10, show_default=True,
              help="How long.")
@click.option("--tor", "mode", type=click.Choice(["private", "none"]), default="private",
              show_default=True, help="A private Tor network, or none.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
              help="Keep all files there, logs included.")
@json_option
@console_command
async def command(clients: int, minutes: int, mode: str, keep: Path | None, as_json: bool) -> None:
    """Train with many clients over one tor, and weigh the broker each minute.

    It ends with status 1 when the broker's memory has grown by more than a tenth between the
    first minute and the last, when clients are gone, or when nobody trained.

    \b
    Example:
      scripts/soak crowd --clients 200 --minutes 10 --json
    """
    with contextlib.ExitStack() as stack:
        directory = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        try:
            told = await attempt(clients, minutes, directory, tor=mode == "private")
        except Failed as failure:
            say(f"Error: {failure}")
            sys.exit(EXIT_BUG)
    result(told, as_json, lambda: _words(told))
    if told["fault"]:
        sys.exit(1)
