"""What the controller tells the programs on the machines, as files of JSON, and what they answer.

All paths are on the machine that reads them.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from accord.circuit import Route
from accord.console import TorOptions, route
from accord.problems import NO_FILE, Problem
from lab.race import Race

Order = TypeVar("Order")

CURATED: Final = "curated.json"
PROGRESS: Final = "progress.json"
RESULT: Final = "result.json"
FAILED: Final = "failed.json"
"""What a referee leaves in its ``home``: :class:`Curated`, :class:`Progress`, and in the end what
:meth:`lab.geo.Ground.race` returns but for ``joining``, ``ledger`` and ``latency``, with
``training_began`` instead (:mod:`lab.field.referee`); or :class:`Failure`."""
BEGAN: Final = "began.json"
READY: Final = "ready"
GATE: Final = "go"
"""In the home of a machine's clients: when they began (:class:`Began`); that all of them, but the
last of the race, wait for it; and, once it is there, that this one may come too."""


class Way(Struct, frozen=True, kw_only=True):
    """How a program reaches the broker.

    Attributes:
        tor: through a tor of its own, or without.
        torrc: makes that tor join a private network; empty for the public one.
        state: directory of that tor's data, kept between races.
        direct: HOST:PORT of the broker without Tor.
    """

    tor: bool
    torrc: str = ""
    state: str = ""
    direct: str = ""


class RefereeOrder(Struct, frozen=True, kw_only=True):
    """One race to curate and to follow, on the broker's machine.

    Attributes:
        race: what is run.
        rows, labels: the training rows (.npy).
        optimum: the converged model's error on them.
        task, validation: the files for ``tormentor curate``.
        desk: the desk's onion address.
        state: the desk's directory, where its traces are.
        way: how the desk is reached.
        home: for what it leaves.
    """

    race: Race
    rows: str
    labels: str
    optimum: float
    task: str
    validation: str
    desk: str
    state: str
    way: Way
    home: str


class Curated(Struct, frozen=True):
    """A model that can be joined now."""

    onion: str


class Progress(Struct, frozen=True):
    """A line for a person, and the moment it was true (seconds since the epoch)."""

    words: str
    at: float


class Failure(Struct, frozen=True):
    """Why there is no result: a sentence."""

    why: str


class Began(Struct, frozen=True):
    """When the clients of a machine began to join: seconds since the epoch, by its clock."""

    at: float


class PingOrder(Struct, frozen=True, kw_only=True):
    """What a machine shall measure before the races.

    Attributes:
        far: the onion of a model at the desk behind Tor; near: of one at the desk without; empty
            for not to be measured.
        torrc, state, direct: as :class:`Way`.
        connections: on which it is measured, each with circuits of its own.
        pings: on each of them.
    """

    far: str
    near: str
    torrc: str
    state: str
    direct: str
    connections: int
    pings: int


def read(path: Path, kind: type[Order]) -> Order:
    """What a file of JSON orders.

    Raises:
        Problem: ``NO_FILE``: it cannot be read, or is no such order.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise Problem(NO_FILE, path=path, why=(error.strerror or "").lower()) from None
    except msgspec.DecodeError as error:
        raise Problem(NO_FILE, path=path, why=f"it is not what is ordered here: {error}") from None


def own_tor(torrc: str, directory: Path) -> AbstractAsyncContextManager[Route]:
    """A way through a tor of our own, whose data is kept in a directory.

    Args:
        torrc: makes it join a private network; empty for the public one.
        directory: made if need be.
    """
    return route(TorOptions(mode="launch", socks=None, torrc=Path(torrc) if torrc else None,
                            direct=None), directory, True)
