"""``tormentor broker``: run a desk."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
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
from accord.problems import AWAY, BAD_OPTION, LOCKED, TOR_AWAY, Problem

if TYPE_CHECKING:
    from broker.desk import Services
    from broker.hidden_service import HiddenServices

REACHABLE_SECONDS = 180.0
"""How long the desk tries to reach itself through Tor before it says so, and goes on trying."""
RETRY_SECONDS = 2.0
"""How soon it looks whether tor is back."""


@click.command("broker")
@click.option("--tor", "mode", type=click.Choice(["launch", "system", "none"]), default="launch",
              show_default=True,
              help="Start a tor of our own, use the system's, or (dangerous) none.")
@click.option("--torrc", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              envvar="TORMENTOR_TORRC",
              help="More configuration for the tor we start, such as a private network's.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8471", show_default=True,
              help="With --tor none: where to listen.")
@click.option("--curator", "curators", metavar="HEX", multiple=True,
              help="Take tasks of the curator with this key only; may be said many times.  "
              "[anyone's]")
@click.option("--max-models", type=click.IntRange(1, 1000), default=4, show_default=True,
              help="Models hosted at a time.")
@click.option("--linger", type=click.FloatRange(0, min_open=True), default=3600.0,
              show_default=True, help="Seconds that a published model is offered.")
@state_option
@json_option
@command
async def broker(mode: str, torrc: Path | None, listen: str, curators: tuple[str, ...],
                 max_models: int, linger: float, state: Path, as_json: bool) -> None:
    """Run a desk: take tasks from curators, train each behind an onion address of its own.

    The desk prints its address once it has reached itself through Tor, and runs until it is
    stopped (Ctrl-C). A tor that goes away is brought back. Started again on the same --state the
    desk has the same address and goes on with the models it had.

    \b
    Example:
      tormentor broker --state /var/lib/tormentor
    """
    from broker.journal import open_journal
    from broker.line import more_descriptors

    open_journal()
    more_descriptors()
    listening = host_port(listen, "--listen")
    rules = _Rules(max_models, linger, frozenset(map(_curator_key, curators)))
    with _alone(state):
        if mode == "none":
            await _without_tor(state, listening, rules, as_json)
        else:
            await _behind_tor(state, mode, torrc, rules, as_json)


@dataclass(frozen=True, slots=True)
class _Rules:
    """What a desk takes: so many models, for so long after they are published, of whom."""

    max_models: int
    linger: float
    curators: frozenset[bytes]


def _curator_key(text: str) -> bytes:
    """A curator's public key, as 'tormentor curate' prints it."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise Problem(BAD_OPTION, option="--curator",
                      what="is not a curator's key: 64 hexadecimal digits")
    return bytes.fromhex(text)


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
    services: Services, state: Path, rules: _Rules
) -> AsyncIterator[str]:
    """A desk that serves, with the models that its state holds; gives its address."""
    from accord.seed import load_or_create_seed
    from broker.desk import Desk, Publisher

    seed = load_or_create_seed(state / "desk.seed")
    publisher = Publisher(services, state / "run")
    try:
        desk = Desk(state, publisher, rules.max_models, rules.linger, curators=rules.curators)
        try:
            await desk.start()
            yield await publisher.publish(seed, desk.app)
        finally:
            await desk.close()
    finally:
        await publisher.close()


async def _behind_tor(state: Path, mode: str, torrc: Path | None, rules: _Rules,
                      as_json: bool) -> None:
    # Imported here because help and wrong usage need none of it.
    from accord import keeper
    from broker.hidden_service import HiddenServices
    from broker.watch import watch

    directory = private_directory(state / "tor-broker")
    kept = keeper.attached(say) if mode == "system" else keeper.launched(
        directory, say, extra_torrc=torrc, progress=tor_progress())
    async with kept as tor:
        services = HiddenServices(tor.tor)
        tor.renew = services.renew
        async with _open_desk(services, state, rules) as onion:
            say("Waiting until the desk can be reached through Tor ...")
            await _reached(services, onion)
            _announce(onion, as_json)
            await watch(services, tor, say)


async def _reached(services: HiddenServices, onion: str) -> None:
    """Wait until the desk can be reached, for as long as it takes."""
    while True:
        try:
            await services.reachable(onion, REACHABLE_SECONDS)
            return
        except Problem as problem:
            if problem.kind is TOR_AWAY:
                # It is being brought back, and that is told already.
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if problem.kind is not AWAY:
                raise
            say(f"Not reached yet ({problem.details['why']}); publishing it again and trying on.")
        with contextlib.suppress(Problem):
            await services.again(onion)


async def _without_tor(state: Path, listening: tuple[str, int], rules: _Rules,
                       as_json: bool) -> None:
    from broker.direct import DirectFront

    warn(NO_TOR_WARNING)
    front = DirectFront()
    host, port = await front.listen(*listening)
    try:
        async with _open_desk(front, state, rules) as onion:
            _announce(onion, as_json, f" --tor none --direct {host}:{port}")
            await asyncio.Event().wait()
    finally:
        await front.close()
