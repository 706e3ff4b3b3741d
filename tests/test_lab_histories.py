"""Random histories: the broker's core withstands them, and mistakes planted in it do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from accord.messages import Push, vector_from_wire
from broker import registry
from broker.admission import Admission
from broker.aggregator import Aggregator
from broker.brokerage import Brokerage
from broker.records import Changes
from broker.registry import Member, Registry
from broker.store import Store
from lab.soak import histories
from lab.soak.book import MARKS, Violation, digits, mark
from lab.soak.histories import Fault, Figures, as_test, directory, draw, run, shrink
from lab.soak.world import World

MOST = 250
"""Histories within which each planted mistake is found; most of them are within the first few."""
Plant = Callable[[pytest.MonkeyPatch], None]


def first_fault(most: int = MOST) -> Fault | None:
    with directory() as place:
        for seed in range(1, most + 1):
            if (fault := run(draw(seed), Path(place))) is not None:
                return fault
    return None


@pytest.mark.slow
def test_random_histories_break_nothing(tmp_path):
    figures = Figures()
    for seed in range(10_000, 10_025):
        fault = run(draw(seed, 200), tmp_path, figures)
        assert fault is None, (seed, fault)
    # They are not idle: updates come through, and the broker dies now and then.
    assert figures.acknowledged > 150 and figures.crashes > 30


@pytest.mark.slow
def test_many_random_histories_break_nothing(tmp_path):
    for seed in range(20_000, 20_600):
        fault = run(draw(seed), tmp_path)
        assert fault is None, (seed, fault)


def test_the_same_seed_gives_the_same_history(tmp_path):
    one, other = Figures(), Figures()
    assert draw(7) == draw(7)
    assert run(draw(7), tmp_path, one) is None and run(draw(7), tmp_path, other) is None
    assert one == other and one.turns > 0


# -- what reads the weights --------------------------------------------------------------------

def test_the_weights_tell_of_each_update_how_often_it_was_applied():
    weights = mark(0) + mark(37) + mark(37) + mark(MARKS - 1)
    assert {n: v for n, v in enumerate(digits(weights)) if v} == {0: 12, 37: 24, MARKS - 1: 12}
    assert {n: v for n, v in enumerate(digits((mark(1) + mark(2) + mark(3)) / 3)) if v} == {
        1: 4, 2: 4, 3: 4}
    assert not mark(MARKS).any()
    with pytest.raises(Violation):
        digits(np.full(12, 0.1))
    with pytest.raises(Violation):
        digits(np.full(12, np.nan))
    with pytest.raises(Violation):
        digits(-mark(3))


# -- the mistakes ------------------------------------------------------------------------------

def ticket_stays_good(patch: pytest.MonkeyPatch) -> None:
    """A ticket is not taken away when it is used, and its receipt is not kept."""
    true = Brokerage._judge

    def judge(self, name, ticket, *what):
        verdict = true(self, name, ticket, *what)
        self._tickets[name] = ticket
        del self._spent[name]
        return verdict

    patch.setattr(Brokerage, "_judge", judge)


def receipt_is_not_written(patch: pytest.MonkeyPatch) -> None:
    true = Brokerage._session_row
    patch.setattr(Brokerage, "_session_row",
                  lambda self, name: replace(true(self, name), spent=b""))


def receipt_is_not_restored(patch: pytest.MonkeyPatch) -> None:
    true = Brokerage.restore

    def restore(self, model, sessions, now):
        true(self, model, sessions, now)
        self._spent.clear()

    patch.setattr(Brokerage, "restore", restore)


def answers_before_writing(patch: pytest.MonkeyPatch) -> None:
    """The shell lets answers go when they are decided."""
    true = World.message

    def message(self, *args, **kwargs):
        true(self, *args, **kwargs)
        while self.waiting:
            self._release(self.waiting.pop(0))

    patch.setattr(World, "message", message)


def the_strictest_k_is_ignored(patch: pytest.MonkeyPatch) -> None:
    def standing(self, now):
        since = now - self._rules.silence
        wishes = sorted(m.min_clients for m in self.members.values() if m.seen >= since)
        return len(wishes), max(self._rules.minimum, *wishes[:-1], 0)

    patch.setattr(Registry, "standing", standing)


def the_curators_minimum_is_ignored(patch: pytest.MonkeyPatch) -> None:
    true = Registry.standing

    def standing(self, now):
        since = now - self._rules.silence
        wishes = [m.min_clients for m in self.members.values() if m.seen >= since]
        return true(self, now)[0], max([1, *wishes])

    patch.setattr(Registry, "standing", standing)


def strikes_are_not_restored(patch: pytest.MonkeyPatch) -> None:
    true = Brokerage.restore

    def restore(self, model, sessions, now):
        true(self, model, [replace(row, strikes=0) for row in sessions], now)

    patch.setattr(Brokerage, "restore", restore)


def strikes_are_not_written(patch: pytest.MonkeyPatch) -> None:
    true = Brokerage._strike

    def strike(self, name, now):
        before = set(self._changed)
        true(self, name, now)
        self._changed = before

    patch.setattr(Brokerage, "_strike", strike)


def any_ticket_is_good(patch: pytest.MonkeyPatch) -> None:
    """A stale or foreign ticket is taken for the one in hand."""
    true = Brokerage._push

    def push(self, name, push, now):
        ticket = self._tickets.get(name)
        if ticket is not None and push.ticket not in (ticket.work.ticket, self._spent.get(name)):
            push = Push(ticket.work.ticket, push.solution, push.delta)
        return true(self, name, push, now)

    patch.setattr(Brokerage, "_push", push)
    accept = Brokerage.accept

    def lenient(self, *task):
        accept(self, *task)
        self._verify = lambda *lock: True

    patch.setattr(Brokerage, "accept", lenient)


def tickets_are_anyones(patch: pytest.MonkeyPatch) -> None:
    """The ticket is looked for among those of all sessions."""
    true = Brokerage._push

    def push(self, name, push, now):
        for ticket in list(self._tickets.values()):
            if ticket.work.ticket == push.ticket:
                self._tickets[name] = ticket
        return true(self, name, push, now)

    patch.setattr(Brokerage, "_push", push)


def update_difficulty_forgets_the_task(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "difficulty", lambda self, strikes: strikes)


def update_difficulty_forgets_strikes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "difficulty", lambda self, strikes: self._rules.update)


def door_forgets_the_task(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "door_difficulty", lambda self, now: 0)


def door_lets_anybody_in(patch: pytest.MonkeyPatch) -> None:
    true = Admission.__init__

    def init(self, *args, **kwargs):
        true(self, *args, **kwargs)
        self._verify = lambda *lock: True

    patch.setattr(Admission, "__init__", init)


def a_held_update_counts_again(patch: pytest.MonkeyPatch) -> None:
    def hold(self, name, delta):
        self.round[name] = self.round[name] + delta if name in self.round else delta

    patch.setattr(Aggregator, "hold", hold)


def a_second_thought_counts(patch: pytest.MonkeyPatch) -> None:
    """A closed round keeps its updates, and so they are in the next one too."""
    def close_round(self, steps):
        steps = [*steps, *getattr(self, "kept", [])]
        self.kept = steps[-1:]
        self.round.clear()
        if steps:
            self.apply(self._aggregate(np.vstack(steps)))
        return bool(steps)

    patch.setattr(Aggregator, "close_round", close_round)


def a_failed_write_loses_sessions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Brokerage, "lose_changes",
                  lambda self, lost: setattr(self, "_changed_model", True))


def a_failed_write_is_half_written(patch: pytest.MonkeyPatch) -> None:
    """The model's row is written by itself."""
    true = Store.write

    def write(self, changes):
        if changes.model is not None:
            true(self, Changes(changes.model, []))
        true(self, changes)

    patch.setattr(Store, "write", write)


def the_silent_count(patch: pytest.MonkeyPatch) -> None:
    true = Registry.__init__

    def init(self, rules, *args):
        true(self, msgspec.structs.replace(rules, silence=1e6), *args)

    patch.setattr(Registry, "__init__", init)


def who_left_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Registry, "leave", lambda self, name: None)


def nan_passes(patch: pytest.MonkeyPatch) -> None:
    def delta(self, push):
        if len(push.delta) != 4 * self.task.dimension:
            return None
        found = np.frombuffer(push.delta, "<f4").astype(np.float64)
        return None if np.linalg.norm(found) > self.task.training.max_norm else found

    patch.setattr(Brokerage, "_delta", delta)


def any_length_passes(patch: pytest.MonkeyPatch) -> None:
    """The norm of an update is not looked at."""
    patch.setattr(Brokerage, "_delta",
                  lambda self, push: vector_from_wire(push.delta, self.task.dimension))


def nobody_is_put_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Registry, "out", lambda self, name: False)


def the_forgotten_stay_on_the_disk(patch: pytest.MonkeyPatch) -> None:
    true = Brokerage.take_changes
    patch.setattr(Brokerage, "take_changes",
                  lambda self, now: replace(true(self, now), forgotten=[]))


def a_pause_never_ends(patch: pytest.MonkeyPatch) -> None:
    true = Brokerage._weigh

    def weigh(self, now):
        if self.phase != "paused":
            true(self, now)

    patch.setattr(Brokerage, "_weigh", weigh)


def a_restart_goes_on_at_once(patch: pytest.MonkeyPatch) -> None:
    """Training goes on after a restart before anybody was heard of."""
    true = Brokerage.restore

    def restore(self, model, sessions, now):
        true(self, model, sessions, now)
        if self.phase == "paused":
            self._enter("training", now)

    patch.setattr(Brokerage, "restore", restore)


def the_absent_are_taken_for_present(patch: pytest.MonkeyPatch) -> None:
    """A kept message of one who fell silent is taken, and its k does not count: as it was once,
    see tests/reproductions."""
    patch.setattr(Registry, "present", lambda self, name, now: True)


def sessions_have_no_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Registry, "surplus", lambda self, now: [])


def memory_of_one_update_is_lost(patch: pytest.MonkeyPatch) -> None:
    """The count of a session's updates is not restored."""
    true = Brokerage.restore

    def restore(self, model, sessions, now):
        true(self, model, sessions, now)
        for name, m in self._registry.members.items():
            self._registry.members[name] = Member(m.min_clients, m.seen, 0, m.strikes)

    patch.setattr(Brokerage, "restore", restore)


def who_works_makes_room(patch: pytest.MonkeyPatch) -> None:
    """Whoever came or worked last before the others is chased away by a newcomer."""
    patch.setattr(registry, "IDLE", 0.0)


PLANTED: list[Plant] = [
    ticket_stays_good, receipt_is_not_written, receipt_is_not_restored, answers_before_writing,
    the_strictest_k_is_ignored, the_curators_minimum_is_ignored, strikes_are_not_restored,
    strikes_are_not_written, any_ticket_is_good, tickets_are_anyones,
    update_difficulty_forgets_the_task, update_difficulty_forgets_strikes, door_forgets_the_task,
    door_lets_anybody_in, a_held_update_counts_again, a_second_thought_counts,
    a_failed_write_loses_sessions, a_failed_write_is_half_written, the_silent_count,
    who_left_counts, nan_passes, any_length_passes, nobody_is_put_out,
    the_forgotten_stay_on_the_disk, a_pause_never_ends, a_restart_goes_on_at_once,
    the_absent_are_taken_for_present, sessions_have_no_end, memory_of_one_update_is_lost,
    who_works_makes_room,
]


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_mistake_is_found(plant, monkeypatch):
    plant(monkeypatch)
    assert first_fault() is not None


# -- shrinking, and the command ----------------------------------------------------------------

@pytest.mark.slow
def test_what_is_found_is_made_short_and_can_be_pasted(monkeypatch, tmp_path):
    tickets_are_anyones(monkeypatch)
    for seed in range(1, 60):
        history = draw(seed)
        if (fault := run(history, tmp_path)) is not None:
            break
    assert fault is not None
    small, last = shrink(history, fault, tmp_path, 150)
    assert last.rule == fault.rule and len(small.steps) < len(history.steps) / 4
    scope: dict[str, object] = {}
    exec("from lab.soak.histories import History, run\n"
         "from lab.soak.setting import Setting\n" + as_test(small, last), scope)
    name = next(n for n in scope if n.startswith("test_"))
    with pytest.raises(AssertionError):
        scope[name](tmp_path)  # type: ignore[operator]
    monkeypatch.undo()
    scope[name](tmp_path)  # type: ignore[operator]


@pytest.mark.slow
def test_the_command_says_what_it_did_and_fails_when_something_broke(monkeypatch):
    args = ["--histories", "3", "--seconds", "60", "--json"]
    done = CliRunner().invoke(histories.command, args)
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["histories"] == 3 and told["faults"] == []
    assert told["acknowledged"] > 0
    update_difficulty_forgets_the_task(monkeypatch)
    done = CliRunner().invoke(histories.command, ["--histories", "20", "--json"])
    faults = json.loads(done.stdout)["faults"]
    assert done.exit_code == 1 and faults[0]["rule"] == "too-easy"
    assert "def test_too_easy" in done.stderr
