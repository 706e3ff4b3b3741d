"""How far a machine is from the broker: round trips through Tor and without, before the races.

Run as a program: ``python -m lab.field.ping ORDER.json``, a
:class:`~lab.field.orders.PingOrder`. It prints one line of JSON: ``tor`` and ``direct``, each a
:class:`~lab.wan.Latency`, or null for what was not asked.
"""

from __future__ import annotations

from pathlib import Path

import click

from accord.circuit import Circuit, Route, fresh_identity
from accord.console import command, host_port, result, say, unless_away
from accord.files import private_directory
from accord.messages import Status, decode
from lab.field.orders import PingOrder, own_tor, read
from lab.wan import Latency, measure

APPEAR = 240.0
"""Seconds that the broker's model may take to be found."""


async def latency(way: Route, onion: str, connections: int, pings: int) -> Latency:
    """Round trips to a model that may just have been published.

    Args:
        way: how it is reached; through Tor each connection has circuits of its own.
        onion: its address.
        connections: on which it is measured.
        pings: on each of them.

    Raises:
        Problem: ``AWAY``: it was not to be found.
    """

    async def ask() -> Status:
        async with Circuit(way, onion, fresh_identity()) as circuit:
            return decode(await circuit.get("/status"), Status)

    await unless_away(ask, APPEAR, lambda why: None)
    return await measure([way] * connections, onion, pings=pings)


async def run(order: PingOrder) -> dict[str, Latency | None]:
    """Measure what is ordered, one after the other.

    Raises:
        Problem: of the tor; ``AWAY``; ``BAD_OPTION``: the direct way is not HOST:PORT.
    """
    far = near = None
    if order.near:
        say("Measuring round trips without Tor ...")
        way = Route(None, host_port(order.direct, "direct"))
        near = await latency(way, order.near, order.connections, order.pings)
    if order.far:
        say("Measuring round trips through Tor ...")
        async with own_tor(order.torrc, private_directory(Path(order.state))) as through:
            far = await latency(through, order.far, order.connections, order.pings)
    return {"tor": far, "direct": near}


@click.command("ping")
@click.argument("order", type=click.Path(path_type=Path))
@command
async def main(order: Path) -> None:
    """Measure the round trips that an ORDER (JSON) asks for.

    \b
    Example:
      python -m lab.field.ping ping.json
    """
    result(await run(read(order, PingOrder)), True, "")


if __name__ == "__main__":
    main()
