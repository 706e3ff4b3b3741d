"""What runs on the machines of the field: the data, the referee, clients behind a gate, pings; one
race of real processes on loopback, where each machine is a home of its own."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from lab_world import make_table, processes_of

from accord.circuit import Route
from accord.problems import BAD_OPTION, NO_FILE, Problem
from accord.tor import held_port
from lab import credit, race
from lab.credit import Table, converged, deal
from lab.demo import Command, Failed
from lab.experiments import rehearsal, table2
from lab.experiments.frame import Finished
from lab.experiments.markdown import page
from lab.field import deal as dealing
from lab.field import ledgers, ping, referee
from lab.field.orders import (
    BEGAN,
    CURATED,
    FAILED,
    GATE,
    PROGRESS,
    READY,
    RESULT,
    Began,
    Curated,
    Failure,
    PingOrder,
    Progress,
    RefereeOrder,
    Way,
    read,
)
from lab.field.referee import Referee
from lab.geo_crowd import Team
from lab.race import STILL, Race, Watch, task_file, validation_file
from lab.setting import error_of
from lab.traced_desk import Commit

# -- the data --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    make_table, lambda: credit.load(Path("sklearn:breast_cancer"))], ids=["small", "cancer"])
def test_a_machine_deals_the_same_rows_bit_for_bit(
    make: Callable[[], Table], tmp_path: Path
) -> None:
    table = make()
    dealing.shelve(table, tmp_path / "table.npz")
    rows, labels = tmp_path / "rows.npy", tmp_path / "labels.npy"
    arguments = [str(tmp_path / "table.npz"), "5", "20", str(rows), str(labels)]
    done = CliRunner().invoke(dealing.main, arguments)
    assert done.exit_code == 0, done.output
    expected = deal(table, 20, 5).train
    for found, wanted in zip(dealing.dealt(rows, labels), expected, strict=True):
        assert found.dtype == wanted.dtype
        assert found.tobytes() == wanted.tobytes()
    before = rows.stat()
    again = CliRunner().invoke(dealing.main, arguments)
    assert "there already" in again.output
    assert rows.stat() == before
    back = dealing.unshelve(tmp_path / "table.npz")
    assert (back.schema, back.digest, back.words) == (table.schema, table.digest, table.words)


def test_cells_are_kept_where_they_are_found_again_and_rows_where_not(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    for table, part in ((make_table(), "rows"),
                        (credit.load(Path("sklearn:breast_cancer")), "cells")):
        dealing.shelve(table, path)
        with np.load(path, allow_pickle=False) as file:
            assert part in file
    assert path.stat().st_size < table.rows.nbytes / 2


@pytest.mark.slow
def test_the_made_data_is_small_on_its_way(tmp_path: Path) -> None:
    table = credit.load(None)
    dealing.shelve(table, tmp_path / "table.npz")
    assert (tmp_path / "table.npz").stat().st_size < 3_000_000
    assert dealing.unshelve(tmp_path / "table.npz").rows.tobytes() == table.rows.tobytes()


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x40
    path.write_bytes(raw)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other(path: Path) -> None:
    np.savez(path, labels=np.zeros(3))


@pytest.mark.parametrize("damage", [_flip, _cut, _empty, _other, Path.unlink])
def test_a_damaged_table_is_told_and_nothing_is_dealt(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    path, rows = tmp_path / "table.npz", tmp_path / "rows.npy"
    dealing.shelve(make_table(), path)
    damage(path)
    with pytest.raises(Problem) as raised:
        dealing.unshelve(path)
    assert raised.value.kind is NO_FILE
    done = CliRunner().invoke(dealing.main, [str(path), "0", "20", str(rows), str(tmp_path / "l")])
    assert done.exit_code == NO_FILE.exit
    assert "Cannot read" in done.output
    assert not rows.exists()


def test_more_validation_rows_than_there_are_is_told(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    dealing.shelve(make_table(100), path)
    done = CliRunner().invoke(dealing.main, [
        str(path), "0", "30", str(tmp_path / "r"), str(tmp_path / "l")])
    assert done.exit_code == BAD_OPTION.exit
    assert "30 validation rows of 30" in done.output


# -- what is ordered -------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", '{"race": 3}', "[]"])
def test_an_order_that_is_none_is_told_to_whoever_waits(text: str, tmp_path: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text(text)
    done = CliRunner().invoke(referee.main, [str(order)])
    assert done.exit_code == NO_FILE.exit
    why = read(tmp_path / FAILED, Failure).why
    assert str(order) in why and "not what is ordered" in why
    for program in (ping.main, ledgers.main):
        assert CliRunner().invoke(program, [str(order)]).exit_code == NO_FILE.exit


def test_an_order_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "order.json"
    order = order_of(tmp_path, "x.onion", "127.0.0.1:9")
    path.write_bytes(msgspec.json.encode(order))
    assert read(path, RefereeOrder) == order


# -- when a race is over before it has arrived -----------------------------------------------


def _commit(at: float, phase: str) -> Commit:
    return Commit(at, phase, 1, 0, np.zeros(4))


def test_a_desk_that_writes_nothing_any_more_is_told() -> None:
    table = make_table(100)
    watch = Watch(small(limit=1000.0), (table.rows, table.labels), 0.1)
    assert math.isnan(watch.began)
    assert not watch.late(1e6), "how long they may take to join is another's to say"
    watch._take(_commit(10.0, "gathering"))
    assert not watch.late(1e6)
    watch._take(_commit(20.0, "training"))
    watch._take(_commit(30.0, "training"))
    assert not watch.late(30.0 + STILL)
    with pytest.raises(Failed, match="the desk has written nothing for 120 s"):
        watch.late(31.0 + STILL)
    watch._take(_commit(32.0, "paused"))
    with pytest.raises(Failed, match="training paused, as a client was not heard of for 60 s"):
        watch.late(33.0)


# -- a race on loopback ----------------------------------------------------------------------


def small(**parts: Any) -> Race:
    given: dict[str, Any] = {
        "clients": 3, "tor": False, "protocol": "ours", "seed": 0, "step": 1.0,
        "schedule": "1/sqrt(t)", "local_steps": 10, "limit": 3.0, "share": 400}
    return Race(**(given | parts))


def order_of(place: Path, desk: str, direct: str, **parts: Any) -> RefereeOrder:
    """As the controller prepares it: the files of a race, and what the referee is told."""
    table, this = make_table(), small(**parts)
    dealt = deal(table, this.validation_rows, this.seed)
    (place / "task.toml").write_text(task_file(this, table))
    (place / "validation.csv").write_text(validation_file(table, dealt))
    np.save(place / "rows.npy", dealt.train[0])
    np.save(place / "labels.npy", dealt.train[1])
    return RefereeOrder(
        race=this, rows=str(place / "rows.npy"), labels=str(place / "labels.npy"),
        optimum=error_of(converged(*dealt.train), dealt.train), task=str(place / "task.toml"),
        validation=str(place / "validation.csv"), desk=desk, state=str(place / "desk"),
        way=Way(tor=False, direct=direct), home=str(place / "referee"))


def team_of(order: RefereeOrder, onion: str, home: Path, numbers: list[int]) -> Team:
    this = order.race
    return Team(
        onion=onion, home=str(home), rows=order.rows, labels=order.labels, share=this.share,
        seed=this.seed, numbers=numbers, clients=this.clients, epsilon=this.epsilon,
        batch=this.batch, local_steps=this.local_steps, protocol=this.protocol,
        directs=[order.way.direct], gate=True)


@asynccontextmanager
async def a_desk(place: Path) -> AsyncIterator[tuple[Command, str, str]]:
    """Without Tor: its process, its onion, and where it is."""
    with held_port() as held, held.lent() as port:
        async with Command(place / "log", "broker", "--json", "--state", place / "desk", "--linger",
                           1, "--tor", "none", "--listen", f"127.0.0.1:{port}",
                           module="lab.traced_desk") as desk:
            yield desk, str((await desk.line())["onion"]), f"127.0.0.1:{port}"


async def there(path: Path, seconds: float = 40.0) -> Path:
    async with asyncio.timeout(seconds):
        while not path.exists():
            await asyncio.sleep(0.05)
    return path


def program(place: Path, name: str, order: object, **more: Any) -> Command:
    """A program of the field with an order, in a file."""
    path = place / f"{name}.json"
    path.write_bytes(msgspec.json.encode(order))
    module = "lab.geo_crowd" if name.startswith("team") else f"lab.field.{name}"
    return Command(place / "log", path, module=module, **more)


@pytest.mark.slow
async def test_a_race_over_two_homes_from_the_order_to_the_ledgers(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    async with a_desk(tmp_path) as (_, desk, where):
        order = order_of(tmp_path, desk, where)
        home = Path(order.home)
        async with program(tmp_path, "referee", order) as follower:
            onion = read(await there(home / CURATED), Curated).onion
            teams = [program(tmp_path, f"team{place.name}", team_of(order, onion, place, numbers))
                     for place, numbers in ((one, [0, 2]), (other, [1]))]
            async with teams[0], teams[1]:
                await there(one / READY)
                await there(other / READY)
                began = min(read(each / BEGAN, Began).at for each in (one, other))
                assert not (one / "002" / "session.json").exists(), "the last one is at the gate"
                await asyncio.sleep(0.5)
                assert not (home / RESULT).exists()
                (one / GATE).touch()
                result = json.loads((await there(home / RESULT)).read_bytes())
                told = read(home / PROGRESS, Progress)
                await follower.finish()
                pinging = PingOrder(far="", near=onion, torrc="", state="", direct=where,
                                    connections=3, pings=2)
                async with program(tmp_path, "ping", pinging) as pings:
                    measured = await pings.line()
                    await pings.finish()
                await asyncio.gather(*(each.kill() for each in teams))
    assert result["updates"] > 0 and result["curve"][0][1] == 0
    assert 0.4 < result["training_began"] - began < 30, "the gate was shut for half a second"
    assert told.words and abs(told.at - result["training_began"]) < 60
    assert measured["tor"] is None
    assert measured["direct"]["failed"] == 0
    assert [len(pinged) for pinged in measured["direct"]["samples"]] == [2, 2, 2]
    spent = {}
    for place in (one, other):
        async with Command(tmp_path / "log", place, module="lab.field.ledgers") as counting:
            spent[place] = await counting.line()
            await counting.finish()
    assert [spent[place]["clients"] for place in (one, other)] == [2, 1]
    total = 2 * spent[one]["mean"] + spent[other]["mean"]
    assert total >= 10 * result["curve"][-1][1], "paid for before it is sent"
    assert not (home / FAILED).exists()
    assert not processes_of(tmp_path)


@pytest.mark.slow
async def test_a_machine_whose_only_client_is_the_last_is_ready_at_once(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as (_, desk, where):
        order = order_of(tmp_path, desk, where)
        team = team_of(order, desk, tmp_path / "home", [2])
        async with program(tmp_path, "team", team) as crowd:
            await there(tmp_path / "home" / READY)
            await crowd.kill()


@pytest.mark.slow
async def test_when_nobody_joins_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "JOINING", 1.0)
    async with a_desk(tmp_path) as (_, desk, where):
        order = order_of(tmp_path, desk, where)
        with pytest.raises(Failed):
            await Referee(order).run()
    home = Path(order.home)
    assert "not all clients came in within 1 s (3 clients" in read(home / FAILED, Failure).why
    assert (home / CURATED).exists() and not (home / RESULT).exists()


@pytest.mark.slow
async def test_a_desk_that_is_not_there_is_told(tmp_path: Path) -> None:
    with held_port() as held, held.lent() as port:
        pass
    async with a_desk(tmp_path) as (_, desk, _where):
        pass
    order = order_of(tmp_path, desk, f"127.0.0.1:{port}")
    async with program(tmp_path, "referee", order) as follower:
        why = read(await there(Path(order.home) / FAILED), Failure).why
        with pytest.raises(Failed, match="ended with 1"):
            await follower.finish()
    assert "'tormentor curate'" in why and desk in why
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
async def test_a_desk_that_dies_in_a_race_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "STILL", 2.0)
    async with a_desk(tmp_path) as (process, desk, where):
        # So short steps that it never arrives.
        order = order_of(tmp_path, desk, where, step=1e-6, limit=60.0, clients=1)
        home, clients = Path(order.home), tmp_path / "clients"
        running = asyncio.create_task(Referee(order).run())
        onion = read(await there(home / CURATED), Curated).onion
        async with program(tmp_path, "team", team_of(order, onion, clients, [0])) as crowd:
            await there(clients / READY)
            (clients / GATE).touch()
            async with asyncio.timeout(20):
                while "updates" not in read(home / PROGRESS, Progress).words:
                    await asyncio.sleep(0.1)
            await process.kill()
            with pytest.raises(Failed, match="the desk has written nothing for 2 s"):
                await running
            await crowd.kill()
    assert "the desk has written nothing" in read(home / FAILED, Failure).why


@pytest.mark.slow
async def test_a_referee_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as (_, desk, where):
        order = order_of(tmp_path, desk, where)
        home = Path(order.home)
        for moment in (PROGRESS, CURATED):
            async with program(tmp_path, "referee", order) as follower:
                await there(home / moment)
                os.kill(follower.pid, signal.SIGTERM)
                with pytest.raises(Failed, match="ended with 130"):
                    await follower.finish()
            assert not [line for line in processes_of(tmp_path) if "traced_desk" not in line]
            assert not (home / RESULT).exists() and not (home / FAILED).exists()
            (home / moment).unlink()


async def test_a_way_that_is_none_is_told(tmp_path: Path) -> None:
    team = team_of(order_of(tmp_path, "x.onion", "nowhere"), "x.onion", tmp_path, [0])
    with pytest.raises(Problem) as raised:
        team.direct(0)
    assert raised.value.kind is BAD_OPTION
    with pytest.raises(Failed, match="'nowhere'"):
        await Referee(order_of(tmp_path, "x.onion", "nowhere")).run()
    with pytest.raises(Problem):
        await ping.run(PingOrder(far="", near="x.onion", torrc="", state="", direct="nowhere",
                                 connections=1, pings=1))


def test_a_machines_clients_all_go_the_one_way(tmp_path: Path) -> None:
    team = team_of(order_of(tmp_path, "x.onion", "10.0.0.7:7700"), "x.onion", tmp_path, [0, 1, 2])
    assert {team.direct(number) for number in range(25)} == {Route(None, ("10.0.0.7", 7700))}


# -- the rehearsal ---------------------------------------------------------------------------


def test_a_rehearsal_is_table_2_with_other_numbers(tmp_path: Path) -> None:
    for quick, clients in ((False, 25), (True, 6)):
        cells = rehearsal.cells(quick, None)
        assert [cell["tor"] for cell in cells] == [True, False]
        for cell in cells:
            this = rehearsal.race_of(cell)
            assert (this.clients, this.protocol) == (clients, "ours")
            known = table2.race_of(table2.cell_of(10, this.tor, "ours", 0))
            # So few clients would not arrive for minutes.
            step, epsilon = ((rehearsal.QUICK_STEP, rehearsal.QUICK_EPSILON) if quick
                             else (known.step, known.epsilon))
            assert (this.step, this.epsilon) == (step, epsilon)
            assert (this.schedule, this.local_steps, this.share) == (
                known.schedule, known.local_steps, known.share)
    assert len(rehearsal.cells(False, 3)) == 6
    finished = [Finished(cell, {
        "arrived": 3.0 if cell["tor"] else None, "joining": 12.5, "target": 0.2, "optimum": 0.195,
        "updates": 9, "rate": 4.5, "releases": 90.0, "epsilon_total": 0.01, "strikes": 0,
        "ledger": 95.0, "curve": [[0.0, 0, 0.3], [1.0, 5, 0.25], [2.0, 9, 0.2]],
        "latency": {"median_ms": 720.1, "sd_ms": 180.0, "pings": 200}})
        for cell in rehearsal.cells(False, None)]
    text = page(rehearsal.tables(finished))
    assert "no row of the paper" in text and "> 300" in text
    assert "Table 2:" not in text
    pictures = {path.name for path in rehearsal.plots(finished, tmp_path)}
    assert pictures == {f"rehearsal-{way}.{kind}" for way in ("tor", "direct")
                        for kind in ("png", "svg")}
    assert len(list(rehearsal.series(finished))) == 1 + 2 * 3
