"""``tormentor lab``: a private Tor network by itself, and the demo."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from accord.console import command, json_option, result, say, state_option, tor_progress
from accord.problems import EXIT_BUG, NO_LAB, Problem

NONE = "No network here; start one with: tormentor lab up"


@click.group("lab")
def lab() -> None:
    """A private Tor network on this machine, for tests and for trying things; and the demo.

    It is made of real tor processes on loopback, and gives no anonymity: all relays are yours.

    \b
    Example:
      tormentor lab up
      export TORMENTOR_TORRC=...      (the line that 'up' prints)
      tormentor broker
      tormentor lab down
    """


@lab.command("up")
@click.option("--ports", type=click.IntRange(1, 100), default=2, show_default=True,
              help="SOCKS ports of the network's client.")
@state_option
@json_option
@command
async def up(ports: int, state: Path, as_json: bool) -> None:
    """Start a private Tor network that stays until 'lab down'.

    \b
    Example:
      tormentor lab up
    """
    from lab.tornet import TorNetwork

    network = TorNetwork(state / "network", detached=True)
    await network.up(ports, None if as_json else tor_progress())
    told = {"torrc": str(network.extra_torrc), "socks": [str(s) for s in network.socks]}
    say("The network is up. For commands that start their own tor:")
    result(told, as_json, f"  export TORMENTOR_TORRC={network.extra_torrc}\n"
           + "For others, SOCKS ports:\n" + "\n".join(f"  --socks {s}" for s in network.socks))


@lab.command("down")
@state_option
@json_option
@command
async def down(state: Path, as_json: bool) -> None:
    """Stop the private Tor network and remove its keys, data and logs.

    \b
    Example:
      tormentor lab down
    """
    from lab.tornet import TorNetwork

    network = TorNetwork(state / "network", detached=True)
    there = network.directory.exists()
    running = sum(node.alive for node in network.status())
    await network.down()
    network.remove()
    result({"stopped": running}, as_json, NONE if not there else (
        f"{running} tor processes stopped; their keys, data and logs are removed from\n"
        f"  {network.directory}\n"
        "Commands that still use the network will stand still: stop them. Where you\n"
        "exported TORMENTOR_TORRC, type:\n  unset TORMENTOR_TORRC"))


@lab.command("status")
@state_option
@json_option
@command
async def status(state: Path, as_json: bool) -> None:
    """Say which tors of the private network are alive.

    \b
    Example:
      tormentor lab status --json
    """
    from lab.tornet import TorNetwork

    network = TorNetwork(state / "network", detached=True)
    nodes = {node.name: node.alive for node in network.status()}
    up = all(nodes.values())
    socks = [str(s) for s in await network.join()] if up else []
    lines = [f"{'up  ' if alive else 'down'}  {name}" for name, alive in nodes.items()]
    if up:
        lines += [f"export TORMENTOR_TORRC={network.extra_torrc}",
                  *(f"--socks {s}" for s in socks)]
    result({"nodes": nodes, "torrc": str(network.extra_torrc), "socks": socks}, as_json,
           "\n".join(lines) if network.directory.exists() else NONE)


@lab.command("demo")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), default="demo",
              show_default=True, help="Where the model, the plot, the log and the report go.")
@json_option
@command
async def demo(directory: Path, as_json: bool) -> None:
    """Five hospitals train one model through a private Tor network, in about a minute.

    \b
    Example:
      tormentor lab demo
    """
    import asyncio

    from rich.console import Console
    from rich.live import Live

    from lab import show
    from lab.demo import Demo, Failed, run

    for package in ("sklearn", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise Problem(NO_LAB, package=package)
    console = Console(stderr=True)
    place = Path.cwd() / directory
    told = ""

    def plain_line(now: Demo) -> None:
        nonlocal told
        if now.phase and now.phase != told:
            told = now.phase
            say(f"{told} ...")

    try:
        if console.is_terminal and not as_json:
            with Live(console=console, auto_refresh=False, transient=True) as view:
                ended = await run(
                    place, lambda now: view.update(show.live(now), refresh=True))
        else:
            ended = await run(place, plain_line)
    except Failed as failure:
        say(f"Error: {failure}")
        raise SystemExit(EXIT_BUG) from None
    await asyncio.to_thread(show.write_report, ended)
    show.keep_picture(ended)
    if as_json:
        result(ended.report, True, "")
    else:
        Console().print(show.report(ended))
