"""The course of a run over machines, with plays that are played by nobody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from accord.onion import onion_from_seed
from accord.problems import HOST_FAILED, Problem
from lab.demo import Failed
from lab.field import world
from lab.field.inventory import Host, Inventory
from lab.field.plays import Event
from lab.race import Race
from lab.wan import Latency

if TYPE_CHECKING:
    from lab.credit import Table
    from lab.field.plays import Plays

ONION = onion_from_seed(bytes(32))
INVENTORY = Inventory(
    Path("hosts.yml"), Host(name="desk", region="Vancouver", torrc=None, direct="127.0.0.1:7700"),
    (Host(name="tokyo", region="Tokyo", torrc=None, direct="192.0.2.1:7700"),))
BARE = "system=Linux\nroot=0\nsystemd=yes\napt=yes\nmemory_mb=900\ncores=1\ndisk_mb=9000\n"
WHOLE = f"{BARE}tor=0.4.9.11\npython=3.13\nvenv=yes\n"


def race(tor: bool) -> Race:
    """One with Tor, or without."""
    return Race(clients=2, tor=tor, protocol="ours", seed=0, step=0.1, schedule="constant")


class PlayedByNobody:
    """Stands in for plays: each machine says what a test wants."""

    def __init__(self, checks: list[str], pings: Sequence[Event] = ()) -> None:
        self.checks = checks
        self.pings = list(pings)
        self.played: list[str] = []

    async def play(self, name: str, variables: Any = None, **more: object) -> list[Event]:
        """Note it, and answer."""
        self.played.append(f"{name} {variables['desk']}" if name in ("open", "close") else name)
        if name == "check":
            text = self.checks.pop(0) if len(self.checks) > 1 else self.checks[0]
            return [Event(host, "look", "ok", "machine", text) for host in INVENTORY.hosts]
        if name == "open":
            return [Event("desk", "reach", "ok", "opened", json.dumps({"onion": ONION}))]
        return self.pings if name == "measure" else []


def run_of(directory: Path, plays: PlayedByNobody) -> world._Run:
    """A run whose races are no races."""
    table = cast("Table", SimpleNamespace(digest="x"))
    return world._Run(INVENTORY, cast("Plays", plays), table, directory, directory, lambda _: None)


async def test_after_a_race_is_run_once_more_both_desks_are_there_for_the_next(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To run it again all was stopped, and only the desk of that race was opened again: the next
    race of the other kind had nobody to curate at."""
    plays = PlayedByNobody([WHOLE])
    run = run_of(tmp_path, plays)
    run._latency = {tor: Latency([[0.1, 0.2]], 0) for tor in (True, False)}
    failures = [Failed("the moon")]

    async def curate(*_: object) -> str:
        if failures:
            raise failures.pop()
        return ONION

    async def joined(*_: object) -> float:
        return 0.0

    async def collected(*_: object, **more: object) -> tuple[dict[str, Any], float]:
        return {"arrived": 1.0, "updates": 1, "training_began": 1.0}, 1.0

    monkeypatch.setattr(run, "_deal", lambda race: None)
    monkeypatch.setattr(run, "_curate", curate)
    monkeypatch.setattr(run, "_join", joined)
    monkeypatch.setattr(run, "_watch", joined)
    monkeypatch.setattr(run, "_collect", collected)
    for tor in (True, False):
        await run._open(tor)
    await run.race(race(True))
    await run.race(race(False))
    await run.race(race(True))
    assert plays.played == ["open tor", "open direct", "stop", "check", "open tor", "open direct"]


async def test_a_wheel_that_lies_about_is_not_the_one_to_install(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tormentor-0-py3-none-any.whl").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(world.WHEELS, raising=False)
    field = world.Field(INVENTORY, lambda cell: race(False))
    with pytest.raises(Problem, match=r"no wheel of TorMentor.*deploy/run"):
        async with field.open_world([], None, tmp_path, lambda _: None):
            pass


async def test_which_tor_it_was_is_kept_also_where_there_was_none_before(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, PlayedByNobody([BARE, WHOLE]))

    async def nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(world, "shelve", lambda table, path: None)
    monkeypatch.setattr(run, "_install", nothing)
    monkeypatch.setattr(run, "_measure", nothing)
    await run.begin(tmp_path / "wheel", [race(True)])
    machines = json.loads((tmp_path / world.MACHINES).read_text())
    assert [(one["tor"], one["python"]) for one in machines] == [("0.4.9.11", "3.13")] * 2


async def test_few_clients_are_not_all_on_the_nearest_machines(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were on the first ones of the inventory, which Azure's are in the order of distance."""
    names = [f"m{i:02}" for i in range(25)]
    shuffled = names[::-1]
    pings = [Event(name, "measure", "ok", "ping", json.dumps(
        {"direct": {"samples": [[0.01 * i]], "failed": 0}, "tor": None}))
        for i, name in enumerate(names)]
    plays = PlayedByNobody([WHOLE], pings)
    run = world._Run(Inventory(INVENTORY.path, INVENTORY.broker, tuple(
        Host(name=name, region=name, torrc=None, direct="192.0.2.1:7700") for name in shuffled)),
        cast("Plays", plays), cast("Table", SimpleNamespace(digest="x")), tmp_path, tmp_path,
        lambda _: None)
    monkeypatch.setattr(run, "_deal", lambda race: None)
    monkeypatch.setattr(run, "_write", lambda *_: None)
    await run._measure()
    assert run._order[:10] == [names[i] for i in (2, 9, 16, 23, 5, 12, 19, 1, 8, 15)]
    assert sorted(run._order) == names


def test_what_cannot_be_read_is_said_of_the_machine_that_said_it(tmp_path: Path) -> None:
    run = run_of(tmp_path, PlayedByNobody([WHOLE]))
    with pytest.raises(Problem, match=r"The machine in Tokyo \(tokyo\)") as raised:
        run._told("tokyo", "nonsense", dict[str, Latency | None])
    assert raised.value.kind is HOST_FAILED
