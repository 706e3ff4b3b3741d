"""How every command speaks to a person, and to a machine.

Progress and warnings go to standard error, results to standard output, so that a result can be
piped; with ``--json`` the result is one JSON object and nothing else is on standard output. A
:class:`~accord.problems.Problem` ends the command with its one sentence and its exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NoReturn, ParamSpec, TypeVar

import click
import msgspec

from accord.circuit import Circuit, Route, fresh_identity
from accord.control import Progress, Socks
from accord.files import private_directory
from accord.invitation import our_key
from accord.problems import (
    AWAY,
    BAD_OPTION,
    EXIT_INTERRUPTED,
    NOT_INVITED,
    TOR_AWAY,
    Problem,
)

P = ParamSpec("P")
R = TypeVar("R")

TOR_SLOTS: Final = 64
"""How many commands of one person may run a tor of their own at the same time."""


def say(text: str = "") -> None:
    """Tell the person something that is not the result (standard error)."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Tell the person something that they must not overlook."""
    click.secho(text, fg="yellow", bold=True, err=True)


def result(value: object, as_json: bool, words: str | Callable[[], str]) -> None:
    """Print a command's result: JSON for a machine, else words for a person."""
    if as_json:
        click.echo(msgspec.json.encode(value).decode())
    else:
        click.echo(words if isinstance(words, str) else words())


def plain(text: str) -> str:
    """Somebody else's text without anything that could command a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def command(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async command; end with a problem's sentence and status, or 130 after Ctrl-C."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            asyncio.run(_stoppable(function(*args, **kwargs)))
        except Problem as problem:
            fail(problem, as_json)
        except (KeyboardInterrupt, asyncio.CancelledError):
            say("\nStopped.")
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output has seen enough ('| head').
            sys.stderr.close()
            sys.exit(0)

    return run


def fail(problem: Problem, as_json: bool) -> NoReturn:
    """Say a problem's sentence and end with its status."""
    sentence = plain(problem.sentence)
    if as_json:
        told = {"error": problem.kind.code, "sentence": sentence}
        click.echo(msgspec.json.encode(told).decode())
    else:
        click.secho(f"Error: {sentence}", fg="red", err=True)
    sys.exit(problem.kind.exit)


async def _stoppable(work: Coroutine[Any, Any, None]) -> None:
    """Run it so that SIGTERM and SIGHUP stop it as cleanly as Ctrl-C."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    await task


# -- options that many commands have ---------------------------------------------------------

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def state_option(function: F) -> F:
    """``--state``: where keys, sessions and ledgers are kept."""
    return click.option(
        "--state", type=click.Path(file_okay=False, path_type=Path), envvar="TORMENTOR_STATE",
        default=default_state, show_default="~/.local/state/tormentor",
        help="Directory for keys, sessions, ledgers and tor's data (0700).")(function)


def default_state() -> Path:
    """Where state is kept unless ``--state`` says otherwise (XDG base directories)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "tormentor"


@dataclass(frozen=True, slots=True)
class TorOptions:
    """How the person wants to reach Tor; see :func:`tor_options`."""

    mode: str
    socks: Socks | None
    torrc: Path | None
    direct: tuple[str, int] | None


def tor_options(function: F) -> F:
    """``--tor``, ``--socks``, ``--torrc`` and ``--direct``, as one argument ``tor``."""

    @click.option("--tor", "mode", type=click.Choice(["launch", "system", "none"]),
                  default="launch", show_default=True,
                  help="Start a tor of our own, use the system's, or (dangerous) none.")
    @click.option("--socks", metavar="HOST:PORT",
                  help="SOCKS port of a running tor; means --tor system.  [127.0.0.1:9050]")
    @click.option("--torrc", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                  envvar="TORMENTOR_TORRC",
                  help="More configuration for the tor we start, such as a private network's.")
    @click.option("--direct", metavar="HOST:PORT",
                  help="With --tor none: where the broker listens.")
    @functools.wraps(function)
    def run(*args: Any, mode: str, socks: str | None, torrc: Path | None, direct: str | None,
            **kwargs: Any) -> Any:
        options = _tor_options(mode, socks, torrc, direct)
        return function(*args, tor=options, **kwargs)

    return run  # type: ignore[return-value]


def _tor_options(
    mode: str, socks: str | None, torrc: Path | None, direct: str | None
) -> TorOptions:
    chosen = click.get_current_context().get_parameter_source("mode")
    if socks and mode == "launch":
        if chosen is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--socks names a running tor: it goes with --tor system.")
        mode = "system"
    if mode == "none" and not direct:
        raise click.UsageError("--tor none needs --direct HOST:PORT.")
    if direct and mode != "none":
        raise click.UsageError("--direct goes with --tor none only.")
    return TorOptions(
        mode=mode,
        socks=Socks(*host_port(socks, "--socks")) if socks else None,
        torrc=torrc,
        direct=host_port(direct, "--direct") if direct else None,
    )


def host_port(text: str, option: str) -> tuple[str, int]:
    """Host and port in a text such as ``127.0.0.1:9050``.

    Raises:
        Problem: ``BAD_OPTION``.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise Problem(BAD_OPTION, option=option, what=f"is not HOST:PORT: '{text}'")
    return host, int(port)


NO_TOR_WARNING: Final = (
    "WARNING: --tor none. Without Tor everyone on the way, and the other side, sees who you are."
)


@contextlib.asynccontextmanager
async def route(options: TorOptions, state: Path, quiet: bool = False) -> AsyncIterator[Route]:
    """A way to onions, as the person chose it: our own tor, the system's, or (warned) none.

    A tor of our own that ends is started again, and the way stays the same. Where an address is
    open to invited clients only, our key (:mod:`accord.invitation`) is told to that tor.

    Raises:
        Problem: whatever :func:`accord.tor.launch` and :func:`accord.tor.attach` raise;
            ``BAD_KEY``.
    """
    # stem is slow to import, and not every command needs it.
    from accord import keeper, tor

    if options.mode == "none":
        warn(NO_TOR_WARNING)
        yield Route(socks=None, direct=options.direct)
        return
    key = our_key(state, make=False)
    if options.mode == "system":
        socks = options.socks or tor.SYSTEM_SOCKS

        async def introduce(onion: str) -> None:
            assert key is not None
            # Only now is its control port needed, which not everybody may use.
            try:
                async with await tor.attach(socks, control=True) as system:
                    if socks not in await system.control.socks():
                        raise Problem(NOT_INVITED, address=onion, why=(
                            f"the tor that listens at {socks} is not the one at "
                            f"{system.control.where}, to which our key could be told"))
                    await system.control.add_client_key(onion, key)
            except Problem as problem:
                if problem.kind is not TOR_AWAY:
                    raise
                raise Problem(NOT_INVITED, address=onion, why=(
                    "the system's tor has no control port by which our key could be told to it"
                )) from None

        async with await tor.attach(socks) as attached:
            yield Route(attached.socks, introduce=introduce if key else None)
        return
    # Whoever uses the route notices that tor is away, and says so in its own way.
    with tor_directory(state) as directory:
        async with keeper.launched(directory, lambda _: None, extra_torrc=options.torrc,
                                   progress=None if quiet else tor_progress()) as kept:

            # Asked for anew each time: it may be another tor by then.
            async def introduce_us(onion: str) -> None:
                assert key is not None
                await kept.tor.control.add_client_key(onion, key)

            async def look_up(onion: str) -> None:
                await kept.tor.control.look_up(onion)

            yield Route(kept.tor.socks, introduce=introduce_us if key else None, look_up=look_up)


def tor_progress() -> Progress:
    """A line of progress for a tor that starts, on a terminal overwritten in place."""
    shown = -1

    def note(percent: int, words: str) -> None:
        nonlocal shown
        if percent <= shown:
            return
        shown = percent
        end = "\n" if percent >= 100 else ""
        if sys.stderr.isatty():
            click.echo(f"\rStarting tor: {percent:3d} %  {words:<50.50}{end}", err=True, nl=False)
        elif percent >= 100:
            say("Tor is ready.")

    return note


@contextlib.contextmanager
def tor_directory(state: Path) -> Iterator[Path]:
    """A data directory for a tor that no other command of this person is using now.

    They are numbered and kept, so that the guards chosen once are kept too.
    """
    base = private_directory(private_directory(state) / "tor")
    for number in range(TOR_SLOTS):
        lock = (base / f"{number}.lock").open("a")
        if _try_lock(lock):
            with lock:
                yield base / str(number)
            return
        lock.close()
    raise Problem(BAD_OPTION, option="--tor launch",
                  what=f"has {TOR_SLOTS} tors running already; use --tor system")


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def circuit(way: Route, onion: str) -> Circuit:
    """A circuit to an onion under a fresh identity, shared with nobody and nothing else."""
    return Circuit(way, onion, fresh_identity())


async def unless_away(
    attempt: Callable[[], Awaitable[R]], seconds: float, note: Callable[[str], None]
) -> R:
    """Try until it works: an onion that was just published takes a while to be found.

    Args:
        attempt: raises ``AWAY`` while the other side is not there, ``TOR_AWAY`` while tor is not:
            one that ended is started again.
        seconds: how long to go on.
        note: told each time why it did not work.

    Raises:
        Problem: the last one.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    pause = 0.5
    while True:
        try:
            return await attempt()
        except Problem as problem:
            if problem.kind not in (AWAY, TOR_AWAY) or loop.time() + pause > end:
                raise
            note("tor does not answer" if problem.kind is TOR_AWAY
                 else str(problem.details.get("why", "")))
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 5.0)
