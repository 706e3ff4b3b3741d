"""``tormentor broker``: run a desk."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from accord.console import (
    NO_TOR_WARNING,
    command,
    host_port,
    json_option,
    say,
    state_option,
    tor_progress,
    warn,
)
from accord.files import private_directory
from accord.problems import LOCKED, Problem

if TYPE_CHECKING:
    from broker.desk import Services

REACHABLE_SECONDS = 180.0
"""How long the desk tries to reach itself through Tor before it gives up."""


@click.command("broker")
@click.option("--tor", "mode", type=click.Choice(["launch", "system", "none"]), default="launch",
              show_default=True,
              help="Start a tor of our own, use the system's, or (dangerous) none.")
@click.option("--torrc", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              envvar="TORMENTOR_TORRC",
              help="More configuration for the tor we start, such as a private network's.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8471", show_default=True,
              help="With --tor none: where to listen.")
@click.option("--max-models", type=click.IntRange(1, 1000), default=4, show_default=True,
              help="Models hosted at a time.")
@click.option("--linger", type=click.FloatRange(0, min_open=True), default=3600.0,
              show_default=True, help="Seconds that a published model is offered.")
@state_option
@json_option
@command
async def broker(mode: str, torrc: Path | None, listen: str, max_models: int, linger: float,
                 state: Path, as_json: bool) -> None:
    """Run a desk: take tasks from curators, train each behind an onion address of its own.

    The desk prints its address once it has reached itself through Tor, and runs until it is
    stopped (Ctrl-C). Started again on the same --state it has the same address and goes on with
    the models it had.

    \b
    Example:
      tormentor broker --state /var/lib/tormentor
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # What goes through the desk is nobody's business; only its own words are logged.
    for noisy in ("aiohttp", "stem", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    listening = host_port(listen, "--listen")
    with _alone(state):
        if mode == "none":
            await _without_tor(state, listening, max_models, linger, as_json)
        else:
            await _behind_tor(state, mode, torrc, max_models, linger, as_json)


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """One desk on a state directory at a time."""
    path = private_directory(state) / "desk.lock"
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Problem(LOCKED, path=state) from None
        yield


def _announce(onion: str, as_json: bool, hint: str = "") -> None:
    if as_json:
        click.echo(msgspec.json.encode({"onion": onion}).decode())
        return
    say("The desk is open at:")
    click.echo(onion)
    say("\nA curator types:")
    say(f"  tormentor curate TASK.toml --validation FILE --broker {onion}{hint}")


@contextlib.asynccontextmanager
async def _open_desk(
    services: Services, state: Path, max_models: int, linger: float
) -> AsyncIterator[str]:
    """A desk that serves, with the models that its state holds; gives its address."""
    from broker.desk import Desk, Publisher
    from broker.hidden_service import load_or_create_seed

    seed = load_or_create_seed(state / "desk.seed")
    publisher = Publisher(services, state / "run")
    try:
        desk = Desk(state, publisher, max_models, linger)
        try:
            await desk.start()
            yield await publisher.publish(seed, desk.app)
        finally:
            await desk.close()
    finally:
        await publisher.close()


async def _behind_tor(state: Path, mode: str, torrc: Path | None, max_models: int, linger: float,
                      as_json: bool) -> None:
    # Imported here because help and wrong usage need none of it.
    from accord import tor
    from broker.hidden_service import HiddenServices

    if mode == "system":
        running = await tor.attach(control=True)
    else:
        running = await tor.launch(
            private_directory(state / "tor-broker"), extra_torrc=torrc, progress=tor_progress())
    async with running:
        services = HiddenServices(running)
        async with _open_desk(services, state, max_models, linger) as onion:
            say("Waiting until the desk can be reached through Tor ...")
            await services.reachable(onion, REACHABLE_SECONDS)
            _announce(onion, as_json)
            await asyncio.Event().wait()


async def _without_tor(state: Path, listening: tuple[str, int], max_models: int, linger: float,
                       as_json: bool) -> None:
    from broker.direct import DirectFront

    warn(NO_TOR_WARNING)
    front = DirectFront()
    host, port = await front.listen(*listening)
    try:
        async with _open_desk(front, state, max_models, linger) as onion:
            _announce(onion, as_json, f" --tor none --direct {host}:{port}")
            await asyncio.Event().wait()
    finally:
        await front.close()
