"""Table 2: when a training has arrived, the paper's protocol, traces, what a person reads; and a
small race of real processes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any

import numpy as np
import pytest
from broker_world import make_brokerage, make_data, make_task
from hypothesis import given
from hypothesis import strategies as st
from lab_world import make_table, processes_of

from accord.circuit import Route
from accord.messages import encode, refused
from accord.onion import onion_from_seed
from accord.problems import AWAY, EVICTED, MALFORMED, PeerProblem, Problem
from accord.seed import load_or_create_seed
from accord.task import Clients, task_id
from broker.brokerage import Brokerage
from broker.doorman import Doorman, Visit
from broker.records import Changes, ModelRow
from broker.store import Store
from client.agent import Agent
from client.budget import Budget, Ledger, ledger_name
from client.dataset import Dataset
from client.session import Session, save_session
from client.trainer import Trainer
from curator.definition import read_definition
from lab.arrival import Arrival, arrived
from lab.contact import ContactAgent, connected, frame
from lab.credit import deal
from lab.demo import Failed
from lab.experiments import table2, table2_report
from lab.experiments.frame import Finished
from lab.geo import Ground
from lab.geo_crowd import Sample, Team, held_by, region
from lab.live import serve
from lab.race import Race, task_file, thinned, validation_file
from lab.traced_desk import Trace, TracedStore
from lab.wan import REGIONS

# -- the rule of arrival ---------------------------------------------------------------------


def test_a_training_has_arrived_when_it_stays() -> None:
    stays = [(1.0, 0.3), (4.0, 0.2), (4.5, 0.2), (5.0, 0.19)]
    assert arrived(stays, 0.2, 1.25, 0.0) == 4.0
    assert arrived(stays[:-1], 0.2, 1.25, 0.0) is None, "it was not seen for long enough"
    assert arrived(stays, 0.2, 1.25, 1.5) is None
    assert arrived([(4.0, 0.2), (4.9, 0.21), (5.0, 0.2), (6.3, 0.2)], 0.2, 1.25, 0.0) == 5.0


def test_what_comes_after_an_arrival_changes_nothing() -> None:
    arrival = Arrival(0.2, 1.25, 0.0)
    assert not arrival.look(4.0, 0.1)
    assert arrival.look(5.0, 0.2)
    assert arrival.look(6.0, 0.9)
    assert arrival.since == 4.0


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40),
       st.sampled_from([1.0, 1.25, 2.0]), st.integers(0, 5))
def test_an_arrival_is_the_first_that_the_rule_allows(
    steps: list[tuple[int, bool]], hold: float, least: int
) -> None:
    at, curve = 0, []
    for wait, there in steps:
        at += wait
        curve.append((float(at), 0.1 if there else 0.3))
    # Word for word: from some look on all are within, up to one that is late enough.
    allowed = [
        since for i, (since, _) in enumerate(curve) for j in range(i, len(curve))
        if all(error <= 0.2 for _, error in curve[i : j + 1])
        and curve[j][0] >= max(hold * since, since + least)]
    assert arrived(curve, 0.2, hold, least) == (allowed[0] if allowed else None)


# -- the paper's protocol --------------------------------------------------------------------


def test_a_frame_is_what_the_rfc_says() -> None:
    for size in (0, 1, 5, 125, 126, 4000):
        body = secrets.token_bytes(size)
        raw = frame(2, body)
        assert raw[0] == 0x82
        assert raw[1] & 0x80, "a client masks"
        at = 2 if size < 126 else 4
        assert size == (raw[1] & 0x7F if size < 126 else int.from_bytes(raw[2:4], "big"))
        mask, hidden = raw[at : at + 4], raw[at + 4 :]
        assert bytes(b ^ mask[i % 4] for i, b in enumerate(hidden)) == body


class Home:
    """A real broker's model on loopback, and clients with sessions and ledgers for it."""

    def __init__(self, tmp_path: Path, way: Route, brokerage: Brokerage) -> None:
        self.tmp_path, self.way, self.brokerage = tmp_path, way, brokerage
        self.onion = onion_from_seed(b"o" * 32)

    async def train(self, kind: type[Agent], updates: int, name: str = "a") -> Agent:
        """Until so many updates are paid for."""
        home = self.tmp_path / name
        home.mkdir()
        task = self.brokerage.task
        data = Dataset(*make_data(), name * 64, home / "x.csv", name * 64)
        session = Session(
            onion=self.onion, task=self.brokerage.signed, data="x", fingerprint=name, epsilon=1.0,
            batch=4, min_clients=1, budget=1e6, delta=1e-12, max_difficulty=8,
            ledger=str(home), output=str(home / "model"))
        save_session(home / "session.json", session)
        release = session.release(len(data.labels), task.dimension)
        with Ledger(home, ledger_name(home, data.identity, data.fingerprint)) as book:
            mine = task_id(session.task)
            budget = Budget(book, mine, release, session.budget, session.delta)
            agent = kind(self.way, home / "session.json", session,
                         Trainer(task, data, release, budget.spend), book,
                         lambda: book.count(mine) < updates, lambda event: None, wait=False)
            assert await agent.run() == "budget-spent"
            assert book.count(mine) == updates
        return agent


@asynccontextmanager
async def at_home(tmp_path: Path, **parts: Any) -> AsyncIterator[Home]:
    brokerage = make_brokerage(make_task(**parts), asyncio.get_running_loop().time())
    store = Store(tmp_path / "model.db")
    try:
        async with serve(brokerage, store) as way:
            yield Home(tmp_path, way, brokerage)
    finally:
        store.close()


async def test_the_paper_makes_a_connection_for_each_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Visit] = []
    entered = Doorman.entered

    def count(self: Doorman, visit: Visit) -> None:
        seen.append(visit)
        entered(self, visit)

    monkeypatch.setattr(Doorman, "entered", count)
    async with at_home(tmp_path) as home:
        agent = await home.train(ContactAgent, 7)
        assert isinstance(agent, ContactAgent)
        assert home.brokerage.status(asyncio.get_running_loop().time()).updates == 7
        assert agent.contacts == 8, "the first asks for work, and each of the others answers some"
        assert len(seen) == 8 + 2, "and two at the door"
        seen.clear()
        await home.train(Agent, 7, "b")
        assert len(seen) == 1 + 2, "ours keeps its conversation"


async def test_the_papers_client_waits_on_its_connection_for_others(tmp_path: Path) -> None:
    rules = Clients(minimum=2, maximum=5, silence=30.0)
    async with at_home(tmp_path, clients=rules) as home:
        one, other = await asyncio.gather(
            home.train(ContactAgent, 5), home.train(ContactAgent, 5, "b"))
        assert isinstance(one, ContactAgent) and isinstance(other, ContactAgent)
        assert one.contacts == other.contacts == 6
        assert home.brokerage.status(asyncio.get_running_loop().time()).updates == 10


async def _answering(answer: bytes) -> tuple[asyncio.Server, Route]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    return server, Route(None, server.sockets[0].getsockname()[:2])


_UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


@pytest.mark.parametrize(("answer", "kind"), [
    (b"", AWAY),
    (_UPGRADED, AWAY),
    (_UPGRADED + b"\x82\x05abc", AWAY),
    (_UPGRADED + b"\x88\x00", AWAY),
    (_UPGRADED + b"\x02\x01a", MALFORMED),
    (_UPGRADED + b"\x82\x81aaaaa", MALFORMED),
    (_UPGRADED + b"\x82\x7f" + b"\xff" * 8, MALFORMED),
    (b"x" * 40_000, MALFORMED),
    (b"HTTP/1.1 200 OK\r\n\r\nhello", MALFORMED),
    (b"HTTP/1.1 403 Forbidden\r\n\r\n" + encode(refused(PeerProblem(EVICTED, strikes=3))), EVICTED),
])
async def test_a_broker_that_answers_otherwise_is_a_problem(answer: bytes, kind: object) -> None:
    server, way = await _answering(answer)
    async with server:
        with pytest.raises(Problem) as raised:
            async with connected(way, onion_from_seed(b"o" * 32), "x") as stream:
                await stream.begin("/train", [b"hello"])
                await stream.receive(1000)
    assert raised.value.kind is kind


async def test_nobody_at_a_port_is_away() -> None:
    server, way = await _answering(b"")
    server.close()
    await server.wait_closed()
    with pytest.raises(Problem) as raised:
        async with connected(way, onion_from_seed(b"o" * 32), "x"):
            raise AssertionError
    assert raised.value.kind is AWAY


# -- the trace -------------------------------------------------------------------------------


def model_row(phase: str, updates: int, weights: list[float]) -> Changes:
    vector = np.array(weights)
    return Changes(ModelRow(
        phase, vector, updates, vector, None, None, 0, 0, 0, 2, 0.0, b"", 0.0, None, ""),  # type: ignore[arg-type]
        [])


def test_a_trace_tells_what_was_on_the_disk_in_order(tmp_path: Path) -> None:
    place = tmp_path / "models" / "m"
    place.mkdir(parents=True)
    onion = onion_from_seed(load_or_create_seed(place / "onion.seed"))
    trace = Trace(tmp_path / "traces" / onion)
    assert trace.more() == []
    store = TracedStore(place / "model.db")
    store.write(Changes(None, []))
    assert trace.more() == []
    store.write(model_row("gathering", 0, [0.0, 0.0]))
    store.write(model_row("training", 3, [1.0, -2.0]))
    first = trace.more()
    assert [(c.phase, c.updates, c.strikes, c.weights.tolist()) for c in first] == [
        ("gathering", 0, 2, [0.0, 0.0]), ("training", 3, 2, [1.0, -2.0])]
    assert trace.more() == []
    store.write(model_row("published", 4, [5.0, 5.0]))
    store.close()
    state = Store(place / "model.db").state()
    assert state is not None
    assert state[0].updates == 4, "and it is on the disk"
    raw = trace._path.read_bytes()
    trace._path.write_bytes(raw[:-1])
    assert trace.more() == [], "one that is not whole yet is left"
    trace._path.write_bytes(raw)
    (last,) = trace.more()
    assert (last.phase, last.updates) == ("published", 4)
    assert first[0].at <= first[1].at <= last.at


# -- who holds what --------------------------------------------------------------------------


def team(**parts: Any) -> Team:
    given: dict[str, Any] = {
        "onion": "", "home": "", "rows": "", "labels": "", "share": 50, "seed": 1, "numbers": [],
        "clients": 2, "epsilon": 1.0, "batch": 5, "local_steps": 1, "protocol": "ours",
        "directs": [f"127.0.0.1:{port}" for port in range(9000, 9000 + len(REGIONS))]}
    return Team(**(given | parts))


def test_a_client_holds_a_sample_of_its_own_and_the_same_again() -> None:
    table = make_table(40)
    one, again, other = (held_by(team(), number, table.rows, table.labels) for number in (0, 0, 1))
    every = np.arange(50)
    assert len(one.rows) == len(one.labels) == 50
    assert np.array_equal(one.rows.take(every, axis=0), again.rows.take(every, axis=0))
    assert not np.array_equal(one.rows.take(every, axis=0), other.rows.take(every, axis=0))
    assert one.identity != other.identity
    for place in range(50):
        row, label = one.rows.take([place], axis=0)[0], one.labels[place]
        assert any(np.array_equal(row, r) and label == y
                   for r, y in zip(table.rows, table.labels, strict=True))
    assert len({tuple(row) for row in one.rows.take(every, axis=0)}) < 50, "drawn with replacement"


def test_a_sample_is_what_its_places_say() -> None:
    rows = np.arange(12.0).reshape(6, 2)
    sample = Sample(rows, np.array([5, 5, 0]))
    assert len(sample) == 3
    assert sample.take(np.array([2, 0])).tolist() == [[0.0, 1.0], [10.0, 11.0]]


def test_clients_without_tor_are_spread_over_all_regions() -> None:
    ports = [team().direct(number).direct for number in range(len(REGIONS))]
    assert len(set(ports)) == len(REGIONS)
    ten, every = ([REGIONS[region(i, len(REGIONS))].delay for i in range(count)]
                  for count in (10, len(REGIONS)))
    assert abs(median(ten) - median(every)) < 15, "ten are as far away as all"
    assert abs(harmonic_mean(ten) - harmonic_mean(every)) < 6


# -- what a curator hands over ---------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["ours", "paper"])
def test_the_task_is_one_that_a_curator_can_hand_over(tmp_path: Path, protocol: str) -> None:
    race = table2.race_of(table2.cell_of(50, True, protocol, 2))
    assert (race.clients, race.tor, race.protocol, race.seed) == (50, True, protocol, 2)
    path = tmp_path / "task.toml"
    path.write_text(task_file(race, make_table()))
    task = read_definition(path)
    assert task.clients.minimum == task.clients.maximum == 50
    assert (task.training.step, task.training.local_steps) == (race.step, race.local_steps)
    assert task.data.dimension == 4
    assert task.validation.test == ("sequential" if protocol == "ours" else "none")


def test_the_validation_file_is_the_rows_that_were_dealt() -> None:
    table = make_table(1000)
    parts = deal(table, 100, 3)
    head, *lines = validation_file(table, parts).splitlines()
    columns = {name: [line.split(",")[i] for line in lines]
               for i, name in enumerate(head.split(","))}
    rows, labels = table.schema.encode(columns, "x")
    assert np.allclose(rows, parts.validation[0], atol=1e-7)
    assert np.array_equal(labels, parts.validation[1])


def test_every_cell_has_a_step_of_its_own_and_names_what_it_depends_on() -> None:
    cells = table2.cells(False, None)
    assert len(cells) == 4 * 2 * 2 * 3
    assert len(table2.cells(True, None)) == 2 * 2 * 2
    for cell in cells:
        race = table2.race_of(cell)
        assert race.local_steps == 1 or race.protocol == "ours"
        assert race.epsilon == 2.0 and race.batch == 10
    together = [cell for cell in cells if table2.group(cell)]
    assert {(c["protocol"], c["clients"]) for c in together} == {("paper", 10), ("paper", 50)}


# -- what a person reads ---------------------------------------------------------------------


def canned(clients: int, tor: bool, protocol: str, seed: int, seconds: float | None) -> Finished:
    curve = [[0.0, 0, 0.3], [1.0, 5, 0.25], [2.0, 9, 0.2]]
    return Finished(table2.cell_of(clients, tor, protocol, seed), {
        "arrived": seconds, "joining": 12.5, "target": 0.2, "optimum": 0.195, "updates": 9,
        "rate": 4.5, "releases": 90.0, "epsilon_total": 0.01, "strikes": 0, "ledger": 95.0,
        "curve": curve, "latency": {"median_ms": 720.1, "sd_ms": 180.0, "pings": 200}})


def text_of(parts: Any) -> str:
    from lab.experiments.markdown import page

    return page(parts)


def test_the_table_has_medians_spread_and_ratios_beside_the_papers() -> None:
    finished = [canned(10, True, "ours", seed, seconds) for seed, seconds in
                enumerate([8.0, 10.0, 30.0])]
    finished += [canned(10, False, "ours", seed, 5.0) for seed in range(3)]
    finished += [canned(10, True, "paper", seed, s) for seed, s in enumerate([400.0, None, 500.0])]
    text = text_of(table2.tables(finished))
    assert "| 10 | paper | 819 | 210 | 3.9 |" in text
    assert "| 10 | ours, here | 10.0 (8.00 to 30.0) | 5.00 (5.00 to 5.00) | 2.0 | 50.0 |" in text
    assert "| 10 | the paper's protocol, here | 500 (400 to > 900) |" in text
    assert "716" in text and "720.1" in text


def test_a_median_that_never_came_is_a_bound() -> None:
    assert table2_report.middle([1.0, None, None]) is None
    assert table2_report.middle([1.0, None, 3.0]) == 3.0
    assert table2_report.spread([None], 900.0) == "> 900"
    assert table2_report.spread([None, None, 3.0], 900.0) == "> 900 (3.00 to > 900)"
    assert table2_report.ratio([None], [9.0], 900.0) == "> 100.0"
    assert table2_report.ratio([9.0], [None], 900.0) == ""
    assert table2_report.ratio([], [9.0], 900.0) == ""


@pytest.mark.slow
def test_there_is_a_picture_with_and_without_tor_and_a_series(tmp_path: Path) -> None:
    finished = [canned(10, tor, protocol, 0, 2.0) for tor in (True, False)
                for protocol in ("ours", "paper")]
    pictures = table2.plots(finished, tmp_path)
    assert {path.name for path in pictures} == {
        "figure6.png", "figure6.svg", "figure7.png", "figure7.svg"}
    assert all(path.stat().st_size > 1000 for path in pictures)
    head, *lines = table2.series(finished)
    assert len(lines) == 4 * 3
    assert dict(zip(head, lines[2], strict=True)) == {
        "clients": 10, "tor": 1, "protocol": "ours", "seed": 0, "seconds": 2.0, "updates": 9,
        "error": 0.2}
    assert table2.measures(finished[0])["arrived"] == 2.0
    assert table2.tables([]) == [] == table2.plots([], tmp_path)


def test_a_kept_curve_is_short_and_ends_where_it_ended() -> None:
    curve = [(i / 10, i, 0.2) for i in range(5001)]
    kept = thinned(curve)
    assert 400 <= len(kept) < 900
    assert kept[0] == [0.0, 0, 0.2]
    assert kept[-1] == [500.0, 5000, 0.2]


# -- races -----------------------------------------------------------------------------------


def small(**parts: Any) -> Race:
    given: dict[str, Any] = {
        "clients": 4, "tor": False, "protocol": "ours", "seed": 0, "step": 1.0,
        "schedule": "1/sqrt(t)", "local_steps": 10, "limit": 3.0, "share": 400, "processes": 2}
    return Race(**(given | parts))


@pytest.mark.slow
async def test_two_races_of_real_processes_without_tor(tmp_path: Path) -> None:
    said: list[str] = []
    async with Ground(tmp_path / "g", make_table(), said.append, 8) as ground:
        ours, paper = await asyncio.gather(
            ground.race(small()),
            ground.race(small(protocol="paper", local_steps=1, validation=table2.PAPER_VALIDATION)))
        assert processes_of(tmp_path), "the desk runs as long as the ground is there"
    for told, steps in ((ours, 10), (paper, 1)):
        assert told["updates"] > 0
        assert told["curve"][0][1] == 0, "from when training begins"
        seconds, updates, error = zip(*told["curve"], strict=True)
        assert list(seconds) == sorted(seconds)
        assert list(updates) == sorted(updates)
        assert error[-1] < error[0], "something is learnt"
        assert told["joining"] > 0
        # Paid for before it is sent, and so at least what was applied.
        assert 4 * told["ledger"] >= steps * updates[-1]
        assert told["releases"] == pytest.approx(steps * told["updates"] / 4, abs=0.06)
        assert told["latency"]["failed"] == 0
    assert any(line.startswith("Round trip without Tor") for line in said)
    assert not processes_of(tmp_path), "nothing is left"


@pytest.mark.slow
async def test_who_stops_a_race_leaves_no_process(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def race() -> None:
        async with Ground(tmp_path / "g", make_table(), lambda line: None, 4) as ground:
            await ground.open(False)
            asyncio.get_running_loop().call_later(6.0, begun.set)
            await ground.race(small(limit=60.0, step=1e-6))

    racing = asyncio.create_task(race())
    await begun.wait()
    assert any("lab.geo_crowd" in line or "traced_desk" in line for line in processes_of(tmp_path))
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert not processes_of(tmp_path)


@pytest.mark.slow
async def test_clients_that_end_are_told_of(tmp_path: Path) -> None:
    async with Ground(tmp_path / "g", make_table(), lambda line: None, 4) as ground:
        with pytest.raises(Failed, match="a process of clients ended"):
            # More steps than a client may make of one update: it refuses to begin.
            await ground.race(small(batch=401))
