"""A curator whose validation labels are junk: what it does to honest clients, that all can see it,
that who wishes to leave does so soon and having spent little, and that nobody is blamed for it.

Figures in here are those of fixed seeds, each bound a good half above what was measured.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from broker_world import SALT, wire
from client_home import BATCH, EPSILON, Person, refuses
from client_world import CURATOR, SCHEMA, write_rows
from client_world import make_task as make_client_task
from lab_world import make_table

import client.events
import client.progress
from accord import problems
from accord.messages import Join, Leave, Wait
from accord.problems import EVICTED, KINDS, Problem
from accord.task import Clients, Puzzles, Training, Validation, commitment, sign, task_id
from broker.brokerage import Brokerage
from broker.page import status_page
from broker.store import Store
from client.accounting import epsilon_total
from client.budget import Ledger
from client.dataset import Dataset, load
from client.events import Struck
from client.noise import Release
from client.session import Conversation, Over, Pace, Step, Wishes
from client.trainer import Trainer
from lab.credit import Parts, deal
from lab.live import serve
from lab.setting import Config, make_task, shares
from lab.simulation import Simulation

TABLE = make_table()
CLIENTS = 8
CONFIG = Config(clients=CLIENTS, seconds=40.0, batch=20, epsilon=1.0)
ROUNDS = {"test": "rounds", "rate": 0.3, "metric": "loss"}
DELTA = 1e-6
STRIKE = Wishes(if_struck=True)
SHARE = Wishes(if_share=0.5)
STAY = Wishes()
MEDIAN_STRIKE, MOST_STRIKE, EPSILON_STRIKE = 35, 140, 14.0
"""Releases of a client before it leaves at its first strike, and the largest total: measured were
21.5, 82 and 8.2, where one release is 0.18."""
MOST_SHARE, EPSILON_SHARE = 45, 7.0
"""The same of one that leaves when half are struck: 28 and 4.2."""

Junk = Callable[[np.ndarray, int], np.ndarray]


def true(labels: np.ndarray, seed: int) -> np.ndarray:
    return labels


def flipped(labels: np.ndarray, seed: int) -> np.ndarray:
    return 1.0 - labels


def drawn(labels: np.ndarray, seed: int) -> np.ndarray:
    """Random ones, of which there are as many."""
    return np.random.default_rng([seed, 9]).permutation(labels)


def junk_parts(junk: Junk, config: Config) -> Parts:
    parts = deal(TABLE, config.validation_rows, config.seed)
    rows, labels = parts.validation
    return replace(parts, validation=(rows, junk(labels, config.seed)))


# -- in simulated time ---------------------------------------------------------------------------


def simulated(monkeypatch: pytest.MonkeyPatch, junk: Junk, seed: int, **rules: Any) -> Any:
    config = replace(CONFIG, seed=seed, validation=rules)
    monkeypatch.setattr("lab.simulation.deal", lambda *_: junk_parts(junk, config))
    simulation = Simulation(TABLE, config)
    result = simulation.run()
    status = simulation.brokerage.status(config.seconds)
    assert status.judged == CLIENTS and status.struck == result.honest_struck
    return SimpleNamespace(result=result, status=status,
                           after=[c.struck_after for c in simulation.clients])


@pytest.mark.slow
def test_flipped_labels_strike_the_honest_and_put_them_out(
        monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        told = simulated(monkeypatch, flipped, seed)
        assert told.result.honest_struck == told.result.honest_evicted == CLIENTS
        assert np.median(told.after) <= 45 and max(told.after) <= 210, told.after
        # With nobody left there is no training: such a curator has no model of it.
        assert told.status.phase == "paused"
        told = simulated(monkeypatch, flipped, seed, **ROUNDS)
        assert told.result.honest_struck >= CLIENTS - 1
        told = simulated(monkeypatch, true, seed)
        assert told.result.honest_struck == 0 and told.result.error < 0.1


@pytest.mark.slow
def test_random_labels_strike_all_or_nobody_or_hold_the_model_back(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Random labels of 100 rows point somewhere by chance: towards the truth or away from it. Where
    they point away they are as flipped ones, and show by strikes. Else nobody is struck, nobody
    who only wished to leave by strikes leaves, and what shows it is the public error: no better
    than always giving the more frequent answer."""
    shares_struck = []
    for seed in range(8):
        told = simulated(monkeypatch, drawn, seed)
        share = told.status.struck / told.status.judged
        shares_struck.append(share)
        if share < 0.5:
            assert told.status.error > told.status.baseline - 0.05
    assert set(shares_struck) <= {0.0, *np.arange(6, 9) / 8}, shares_struck
    assert 0 < np.mean(shares_struck) < 1, shares_struck


# -- conversations in memory, ledgers on disk ------------------------------------------------------


@dataclass
class Honest:
    """An honest client: the real conversation, trainer and ledger, no sockets."""

    talk: Conversation
    trainer: Trainer
    ledger: Ledger
    token: bytes
    task: str
    rng: np.random.Generator
    brokerage: Brokerage
    todo: Step | None = None
    over: str = ""
    seen: tuple[int, int, int] = (0, 0, 0)

    def go(self, now: float) -> None:
        """One message and its answer."""
        if self.todo is not None:
            made = self.trainer.update(self.todo.weights, self.rng)
            self.talk.answer(b"", made.delta, now, made.steps)
            self.todo = None
        message = self.talk.sending(now)
        if message is None:
            return
        turn = self.brokerage.receive(self.token, message, now)
        self.seen = turn.strikes, turn.struck, turn.judged
        status = self.brokerage.status(now)
        assert (turn.struck, turn.judged) == (status.struck, status.judged), "it is public"
        try:
            said = self.talk.receive(turn, now)
        except Problem as problem:
            assert problem.kind is EVICTED
            self.over = "evicted"
            return
        if isinstance(said, Step):
            self.todo = said
        elif isinstance(said, Over):
            self.over = said.why
            self.brokerage.receive(self.token, Leave(), now)
        else:
            assert isinstance(said, Wait) or said is None


@dataclass
class Party:
    """Eight honest clients of one curator."""

    directory: Path
    junk: Junk
    seed: int
    wishes: list[Wishes]

    def __post_init__(self) -> None:
        config = replace(CONFIG, seed=self.seed, admission=0, update=0)
        parts = junk_parts(self.junk, config)
        task = make_task(TABLE, config, parts)
        signed = sign(task, CURATOR)
        self.brokerage = Brokerage(b"s" * 32, random.Random(self.seed).randbytes,
                                   verify=lambda *_: True)
        self.brokerage.accept(signed, *parts.validation, 0.0)
        rows, labels = parts.train
        self.clients: list[Honest] = []
        for i, (mine, wish) in enumerate(zip(shares(parts, config), self.wishes, strict=True)):
            self.release = Release(1.0, config.batch, len(mine), task.dimension)
            ledger = Ledger(self.directory / f"{self.seed}", f"{i:08x}")
            name = task_id(signed)

            def spend(count: int, ledger: Ledger = ledger, name: str = name) -> range:
                first = ledger.spend(name, self.release, count)
                return range(first, first + count)

            trainer = Trainer(task, Dataset(rows[mine], labels[mine], "", Path()),
                              self.release, spend)
            token = self.brokerage.join(Join(self.brokerage.puzzle(0.0).lock, b"", 1), 0.0).token
            talk = Conversation("x.onion", token, task.dimension, 64, lambda: True, Pace(),
                                task.clients.silence, wish)
            talk.connected(0.0)
            self.clients.append(Honest(
                talk, trainer, ledger, token, name,
                np.random.Generator(np.random.PCG64([self.seed, i])), self.brokerage))

    def run(self, most: int = 400) -> None:
        """Until all are done, or each has said so much, in a chance order; ledgers are closed."""
        rng = np.random.default_rng(self.seed)
        try:
            for now in range(most):
                for i in rng.permutation(CLIENTS):
                    if not self.clients[i].over:
                        self.clients[i].go(float(now))
        finally:
            for each in self.clients:
                each.ledger.close()

    def paid(self) -> list[int]:
        """What stands in each ledger, opened again, with what it comes to."""
        counts = []
        for i, each in enumerate(self.clients):
            with Ledger(self.directory / f"{self.seed}", f"{i:08x}") as ledger:
                count = ledger.count(each.task)
                assert ledger.counts() == ({self.release: count} if count else {})
                counts.append(count)
        return counts


@pytest.mark.slow
def test_who_wished_to_leaves_at_its_first_strike_and_has_spent_little(tmp_path: Path) -> None:
    spent = []
    for seed in range(6):
        party = Party(tmp_path, flipped, seed, [STRIKE] * CLIENTS)
        party.run()
        assert [each.over for each in party.clients] == ["left"] * CLIENTS
        for each, paid in zip(party.clients, party.paid(), strict=True):
            # The strike came with the receipt; the ticket beside it was not worked on.
            assert paid == each.talk.updates and each.seen[0] == 1
            spent.append(paid)
        status = party.brokerage.status(400.0)
        assert (status.struck, status.judged, status.strikes) == (CLIENTS,) * 3
        assert status.clients == 0
    epsilon = epsilon_total({party.release: max(spent)}, DELTA)
    print("first strike: releases", np.median(spent), max(spent), "epsilon", epsilon,
          "one", party.release.amplified)
    assert min(spent) >= 3, "less evidence is no strike, of anyone"
    assert np.median(spent) <= MEDIAN_STRIKE and max(spent) <= MOST_STRIKE
    assert epsilon <= EPSILON_STRIKE


@pytest.mark.slow
def test_who_looks_at_the_share_leaves_before_most_are_put_out(tmp_path: Path) -> None:
    spent, evicted = [], []
    for seed in range(6):
        # Three stay whatever comes: of them it is seen.
        party = Party(tmp_path, flipped, seed, [SHARE] * 5 + [STAY] * 3)
        party.run(1500)
        paid = party.paid()
        assert [each.over for each in party.clients] == ["left"] * 5 + ["evicted"] * 3
        for each, count in zip(party.clients[:5], paid, strict=False):
            assert count == each.talk.updates
            assert each.seen[1] / each.seen[2] >= 0.5 and each.seen[2] >= 3
        spent += paid[:5]
        evicted += paid[5:]
        # At the same moment, to one message: the share is one and public.
        assert max(paid[:5]) - min(paid[:5]) <= 1
    epsilon = epsilon_total({party.release: max(spent)}, DELTA)
    print("share: releases", np.median(spent), max(spent), "epsilon", epsilon,
          "; put out after", np.median(evicted), max(evicted))
    assert max(spent) <= MOST_SHARE and epsilon <= EPSILON_SHARE
    assert np.median(spent) < 0.75 * np.median(evicted)


@pytest.mark.slow
def test_with_a_right_validation_set_nobody_leaves(tmp_path: Path) -> None:
    for seed in range(3):
        party = Party(tmp_path, true, seed, [STRIKE] * 4 + [SHARE] * 4)
        party.run(60)  # three times as many as it takes with flipped labels
        assert [each.over for each in party.clients] == [""] * CLIENTS
        assert party.brokerage.status(60.0).struck == 0


@pytest.mark.slow
def test_with_random_labels_who_is_struck_leaves_and_the_others_go_on(tmp_path: Path) -> None:
    left = []
    for seed in range(4):
        party = Party(tmp_path, drawn, seed, [STRIKE] * 4 + [SHARE] * 4)
        party.run(100)
        for each, paid in zip(party.clients, party.paid(), strict=True):
            assert each.over in ("", "left")
            strikes, struck, judged = each.seen
            reason = strikes > 0 if each in party.clients[:4] else struck / judged >= 0.5
            assert (each.over == "left") == reason
            assert each.over == "" or paid == each.talk.updates
        left.append(sum(each.over == "left" for each in party.clients))
    print("random: left", left)
    assert 0 in left and max(left) == CLIENTS


# -- the agent, through sockets --------------------------------------------------------------------


@pytest.mark.slow
async def test_agents_leave_a_junk_curator_through_sockets(tmp_path: Path) -> None:
    validation = load(write_rows(tmp_path / "validation.csv", rows=400, seed=99), SCHEMA, 1)
    rows, labels = validation.rows, 1.0 - validation.labels
    rows = rows.astype("<f4").astype(np.float64)
    task = make_client_task(
        training=Training(max_updates=3000), puzzles=Puzzles(admission=1, update=0),
        clients=Clients(minimum=1, maximum=10, silence=60.0),
        validation=Validation(digest=commitment(SALT, *wire(rows, labels))))
    signed = sign(task, CURATOR)
    brokerage = Brokerage(b"s" * 32, random.Random(1).randbytes)
    brokerage.accept(signed, rows, labels, asyncio.get_running_loop().time())
    told: Any = SimpleNamespace(task=task, signed=signed)
    people = []
    for i, wish in enumerate(({"leave_if_struck": True}, {"leave_if_share": 0.5}, {})):
        (home := tmp_path / str(i)).mkdir()
        person = Person(home / "session.json", budget=1000.0)
        write_rows(home / "mine.csv", seed=i)
        person.write(told, min_clients=1, data=str(home / "mine.csv"), **wish)
        people.append(person)
    store = Store(tmp_path / "model.db")

    async def put_out(person: Person, way: Any) -> str:
        async with refuses(EVICTED):
            await person.run(told, way)
        return "evicted"

    try:
        async with serve(brokerage, store) as way, asyncio.timeout(60):
            outcomes = await asyncio.gather(
                *(person.run(told, way) for person in people[:2]), put_out(people[2], way))
            assert outcomes == ["left", "left", "evicted"]
            paid = [person.paid() for person in people]
            # Its ledger is closed and can be had again; the same command changes nothing.
            for person, count in zip(people[:2], paid, strict=False):
                assert person.session.outcome == "left"
                assert await person.run(told, way) == "left" and person.paid() == count
    finally:
        store.close()
    print("agents paid", paid, "epsilon", epsilon_total(
        {Release(EPSILON, BATCH, 211, task.dimension): max(paid[:2])}, DELTA))
    assert [e.strikes for e in people[0].saw(Struck)] == [1]  # type: ignore[attr-defined]
    assert [e.strikes for e in people[2].saw(Struck)] == [1, 2, 3]  # type: ignore[attr-defined]
    verdict = people[1].session.verdict
    assert verdict.judged == 3 and verdict.struck >= 2
    assert brokerage.status(0.0).strikes >= 4


# -- nobody is blamed ------------------------------------------------------------------------------

BLAME = re.compile(r"poison|malicious|attack|cheat|hostile|adversar|dishonest|\bevil|\bbad\b",
                   re.IGNORECASE)


def test_nothing_that_anybody_is_told_says_who_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS.values():
        assert not BLAME.search(kind.sentence), kind.code
    # Also what is no event of ours yet: all that stands in the file.
    assert not BLAME.search(inspect.getsource(client.progress))
    assert not BLAME.search(inspect.getsource(client.events))
    told = client.progress.words(Struck(2, 3, 8), 8.0)
    assert "Who is wrong, we or that set, nobody here knows." in told
    assert "that set may not be; ask the curator" in Problem(problems.EVICTED, strikes=3).sentence
    config = replace(CONFIG, seed=0)
    monkeypatch.setattr("lab.simulation.deal", lambda *_: junk_parts(flipped, config))
    simulation = Simulation(TABLE, config)
    simulation.run()
    page = status_page(simulation.brokerage.status(40.0), simulation.task)
    assert not BLAME.search(page) and "struck" in page.lower()
