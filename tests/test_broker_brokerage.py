"""One model's life, exactly and instantly: time and randomness are arguments."""

from __future__ import annotations

import numpy as np
import pytest
from broker_world import (
    DIMENSION,
    Player,
    make_brokerage,
    make_data,
    make_task,
    rounds,
    signed,
    solve,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.messages import (
    End,
    Join,
    Pull,
    Push,
    Refused,
    Wait,
    Work,
    vector_to_wire,
)
from accord.problems import PeerProblem
from accord.task import Clients, Puzzles, Training
from broker.brokerage import Brokerage


def weights(work: Work) -> np.ndarray:
    return np.frombuffer(work.weights, "<f4").astype(float)


def updates(brokerage: Brokerage, now: float = 0.0) -> int:
    return brokerage.status(now).updates


# -- tickets -----------------------------------------------------------------------------------


def test_an_update_is_applied_and_acknowledged():
    brokerage = make_brokerage()
    player = Player(brokerage)
    work = player.work(1.0)
    assert np.array_equal(weights(work), np.zeros(DIMENSION))
    turn = player.push(player.answer(work, np.array([0.5, 0, 0, 0.25])), 2.0)
    assert turn.receipt == work.ticket
    assert isinstance(turn.next, Work)
    assert np.array_equal(weights(turn.next), [0.5, 0, 0, 0.25])
    assert updates(brokerage) == 1


def test_a_resent_update_gets_its_receipt_again_and_counts_once():
    brokerage = make_brokerage()
    player = Player(brokerage)
    push = player.answer(player.work(1.0))
    first = player.push(push, 2.0)
    again = player.push(push, 3.0)
    assert first.receipt == again.receipt == push.ticket
    assert updates(brokerage) == 1


def test_a_ticket_is_good_for_its_own_client_only():
    brokerage = make_brokerage()
    one, two = Player(brokerage), Player(brokerage)
    push = one.answer(one.work(1.0))
    two.work(1.0)
    turn = two.push(push, 2.0)
    assert turn.receipt == b"" and isinstance(turn.next, Refused)
    assert turn.next.code == "stale-ticket"
    assert updates(brokerage) == 0


def test_asking_again_gives_the_same_ticket_so_that_no_paid_noise_is_wasted():
    player, other = Player(brokerage := make_brokerage()), Player(brokerage)
    work = player.work(1.0)
    other.step(2.0)
    assert player.work(3.0) == work
    assert player.push(player.answer(work), 4.0).receipt == work.ticket


def test_one_who_works_for_long_and_says_so_keeps_its_ticket():
    player = Player(make_brokerage())
    work = player.work(1.0)
    for now in range(20, 200, 20):
        assert player.work(float(now)) == work
    assert player.push(player.answer(work), 200.0).receipt == work.ticket


def test_one_who_was_away_gets_another_ticket_when_it_asks():
    player = Player(make_brokerage())
    old = player.work(1.0)
    new = player.work(40.0)
    assert new.ticket != old.ticket
    turn = player.push(player.answer(old), 41.0)
    assert isinstance(turn.next, Refused) and turn.next.code == "stale-ticket"


def test_an_unsolved_puzzle_is_refused_and_the_ticket_stays_good():
    brokerage = make_brokerage(make_task(puzzles=Puzzles(admission=1, update=3)))
    player = Player(brokerage)
    work = player.work(1.0)
    good = player.answer(work)
    turn = player.push(Push(work.ticket, b"wrong", good.delta), 2.0)
    assert isinstance(turn.next, Refused) and turn.next.code == "not-solved"
    assert updates(brokerage) == 0
    assert player.push(good, 3.0).receipt == work.ticket


@pytest.mark.parametrize(
    "delta",
    [
        np.zeros(DIMENSION - 1),
        np.zeros(DIMENSION + 1),
        np.array([np.nan, 0, 0, 0]),
        np.array([np.inf, 0, 0, 0]),
        np.array([1.01, 0, 0, 0]),
        np.array([1e38, 1e38, 1e38, 1e38]),
    ],
)
def test_a_bad_delta_is_refused_and_is_a_strike(delta):
    brokerage = make_brokerage()
    player = Player(brokerage)
    work = player.work(1.0)
    turn = player.push(player.answer(work, delta), 2.0)
    assert isinstance(turn.next, Refused) and turn.next.code == "bad-delta"
    assert updates(brokerage) == 0
    harder = player.work(3.0)
    assert harder.difficulty == work.difficulty + 1
    assert np.isfinite(weights(harder)).all()


def test_the_norm_bound_itself_is_allowed_as_float32():
    player = Player(make_brokerage())
    delta = np.full(DIMENSION, 0.1)
    delta /= np.linalg.norm(delta)
    assert player.step(1.0, delta).receipt


def test_a_stranger_is_told_so():
    brokerage = make_brokerage()
    with pytest.raises(PeerProblem) as caught:
        brokerage.receive(b"x" * 32, Pull(), 1.0)
    assert caught.value.kind.code == "unknown-client"


# -- the door ----------------------------------------------------------------------------------


def test_the_same_join_gives_the_same_session():
    brokerage = make_brokerage()
    player = Player(brokerage)
    assert brokerage.join(player.join, 5.0).token == player.token
    assert brokerage.status(5.0).clients == 1


def test_a_lock_of_somebody_elses_making_opens_nothing():
    brokerage = make_brokerage()
    for lock in (b"a", b"a" * 40, b"a" * 64):
        with pytest.raises(PeerProblem):
            brokerage.join(Join(lock, solve(lock, 1), 1), 0.0)


def test_an_admission_puzzle_grows_old():
    brokerage = make_brokerage()
    door = brokerage.puzzle(0.0)
    join = Join(door.lock, solve(door.lock, 1), 1)
    with pytest.raises(PeerProblem) as caught:
        brokerage.join(join, door.seconds + 1)
    assert caught.value.kind.code == "not-solved"


def test_a_wish_that_can_never_be_met_is_refused():
    brokerage = make_brokerage(make_task(clients=Clients(minimum=1, maximum=3)))
    with pytest.raises(PeerProblem) as caught:
        Player(brokerage, min_clients=4)
    assert caught.value.kind.code == "k-too-large"


def test_all_places_taken():
    brokerage = make_brokerage(make_task(clients=Clients(minimum=1, maximum=2)))
    Player(brokerage)
    Player(brokerage)
    with pytest.raises(PeerProblem) as caught:
        Player(brokerage)
    assert caught.value.kind.code == "full"


def test_places_are_for_those_who_work_and_nobody_can_work_in_a_pause():
    brokerage = make_brokerage(make_task(
        training=Training(max_updates=1000, max_norm=1.0, step=0.1, max_pause=1e6),
        clients=Clients(minimum=2, maximum=3, silence=60.0)))
    worker, idler = Player(brokerage), Player(brokerage)
    for now in range(0, 851, 50):
        worker.step(float(now))
        idler.work(float(now))  # asks for work, and does none
    sleeper = Player(brokerage, min_clients=3, now=850.0)
    worker.leave(852.0)
    assert brokerage.phase == "paused"
    for now in range(900, 5001, 50):
        idler.pull(float(now))
        sleeper.pull(float(now))
    worker.pull(5000.0)
    assert brokerage.phase == "training"
    with pytest.raises(PeerProblem):
        Player(brokerage, now=5047.0)
    newcomer = Player(brokerage, now=5049.0)
    turn = idler.pull(5050.0).next
    assert isinstance(turn, Refused) and turn.code == "full"
    for player in (worker, sleeper, newcomer):
        player.step(5051.0)


# -- the min-k rule ----------------------------------------------------------------------------


def test_nobody_gets_a_ticket_below_anyones_k():
    brokerage = make_brokerage()
    players = [Player(brokerage, 5), Player(brokerage, 1), Player(brokerage, 1)]
    for player in players:
        turn = player.pull(1.0)
        assert isinstance(turn.next, Wait)
        assert (turn.next.why, turn.next.have, turn.next.need) == ("too-few-clients", 3, 5)
    assert brokerage.phase == "gathering"
    players += [Player(brokerage, 2, now=2.0)]
    assert isinstance(players[0].pull(2.0).next, Wait)
    stirred = brokerage.stirred
    players += [Player(brokerage, 2, now=3.0)]
    assert brokerage.phase == "training" and brokerage.stirred > stirred
    assert isinstance(players[0].pull(3.0).next, Work)


def test_no_update_is_applied_below_anyones_k_and_it_is_not_lost():
    brokerage = make_brokerage(make_task(clients=Clients(minimum=2, silence=30.0)))
    one, two = Player(brokerage), Player(brokerage)
    push = one.answer(one.work(1.0))
    two.leave(2.0)
    turn = one.push(push, 3.0)
    assert turn.receipt == b"" and isinstance(turn.next, Wait)
    assert brokerage.phase == "paused" and updates(brokerage) == 0
    two.pull(4.0)
    assert brokerage.phase == "training"
    assert one.push(push, 5.0).receipt == push.ticket
    assert updates(brokerage) == 1


def test_a_silent_client_no_longer_counts():
    brokerage = make_brokerage(make_task(clients=Clients(minimum=1, silence=30.0)))
    demanding, other = Player(brokerage, 2), Player(brokerage, 1)
    assert brokerage.phase == "training"
    other.pull(29.0)
    demanding.pull(20.0)
    assert brokerage.status(49.0).needed == 2
    # The demanding one falls silent, and its wish with it.
    assert isinstance(other.pull(55.0).next, Work)
    assert brokerage.status(55.0).clients == 1
    # It comes back, and its wish too.
    assert isinstance(demanding.pull(56.0).next, Work)


def test_a_message_that_waits_is_no_sign_of_life():
    brokerage = make_brokerage(make_task(clients=Clients(minimum=1, silence=30.0)))
    hog, other = Player(brokerage, 3), Player(brokerage, 1)
    hog.pull(1.0)
    for now in (15.0, 30.0, 45.0):
        hog.brokerage.receive(hog.token, Pull(), now, repeated=True)
        turn = other.pull(now)
    assert isinstance(turn.next, Work), "one that fell silent keeps nobody waiting"
    assert brokerage.status(45.0).clients == 1


def test_sessions_that_never_did_anything_do_not_fill_a_model_for_ever():
    brokerage = make_brokerage(make_task(
        clients=Clients(minimum=1, maximum=2, silence=30.0), puzzles=Puzzles(admission=0)))
    worker = Player(brokerage)
    worker.step(0.5)
    for number in range(100):
        Player(brokerage, now=1.0 + number).leave(1.0 + number)
        worker.pull(1.0 + number)
    assert len(brokerage._registry.members) <= 41
    assert isinstance(worker.pull(200.0).next, Work)
    changes = brokerage.take_changes(200.0)
    kept = {row.name for row in changes.sessions}
    assert kept.isdisjoint(changes.forgotten) and changes.forgotten


# -- synchronous rounds ------------------------------------------------------------------------


def synchronous(**rules: object) -> Brokerage:
    training = Training(mode="synchronous", max_norm=1.0, round_seconds=10.0, **rules)
    return make_brokerage(make_task(training=training, clients=Clients(minimum=2, silence=60.0)))


def test_a_round_is_the_mean_and_is_acknowledged_when_it_closes():
    brokerage = synchronous()
    one, two = Player(brokerage), Player(brokerage)
    first = one.answer(one.work(1.0), np.array([0.4, 0, 0, 0]))
    second = two.answer(two.work(1.0), np.array([0, 0.2, 0, 0]))
    turn = one.push(first, 2.0)
    assert turn.receipt == b"" and isinstance(turn.next, Wait) and turn.next.why == "round-open"
    stirred = brokerage.stirred
    turn = two.push(second, 3.0)
    assert turn.receipt == second.ticket and brokerage.stirred > stirred
    assert np.allclose(weights(turn.next), [0.2, 0.1, 0, 0])
    assert one.push(first, 4.0).receipt == first.ticket
    assert updates(brokerage) == 1


def test_a_silent_client_does_not_hold_up_a_round():
    brokerage = synchronous()
    one, two = Player(brokerage), Player(brokerage)
    two.work(1.0)
    push = one.answer(one.work(1.0), np.array([0.4, 0, 0, 0]))
    one.push(push, 2.0)
    brokerage.tick(11.9)
    assert updates(brokerage) == 0
    brokerage.tick(12.1)
    assert updates(brokerage) == 1
    assert one.push(push, 13.0).receipt == push.ticket


def test_a_bad_resend_in_a_round_does_not_break_it():
    brokerage = synchronous()
    one, two = Player(brokerage), Player(brokerage)
    push = one.answer(one.work(1.0))
    one.push(push, 2.0)
    one.push(Push(push.ticket, push.solution, b"\xff" * 16), 3.0)
    two.step(4.0)
    brokerage.tick(15.0)
    assert updates(brokerage) == 1


def test_a_held_update_cannot_be_thought_over():
    brokerage = synchronous()
    one, two = Player(brokerage), Player(brokerage)
    honest = one.answer(one.work(1.0), np.array([0.4, 0, 0, 0]))
    assert isinstance(one.push(honest, 2.0).next, Wait)
    poison = Push(honest.ticket, honest.solution, vector_to_wire(np.array([-1.0, 0, 0, 0])))
    one.push(poison, 3.0)
    turn = two.step(4.0, np.array([0.4, 0, 0, 0]))
    assert np.allclose(weights(turn.next), [0.4, 0, 0, 0])


def test_whoever_leaves_takes_its_held_update_along():
    brokerage = make_brokerage(make_task(
        training=Training(mode="synchronous", max_norm=1.0), clients=Clients(minimum=1)))
    careful, other, third = Player(brokerage, 3), Player(brokerage, 1), Player(brokerage, 1)
    push = careful.answer(careful.work(1.0), np.array([0.5, 0, 0, 0]))
    careful.push(push, 2.0)
    careful.leave(3.0)
    third.leave(3.0)
    other.step(4.0, np.array([0, 0.5, 0, 0]))
    assert updates(brokerage) == 1
    assert np.allclose(weights(other.work(5.0)), [0, 0.5, 0, 0]), "its k was 3, and 1 was here"


# -- ends --------------------------------------------------------------------------------------


def test_it_ends_at_max_updates_and_says_so_to_everyone():
    brokerage = make_brokerage(make_task(training=Training(max_updates=2, max_norm=1.0)))
    one, two = Player(brokerage), Player(brokerage)
    late = two.answer(two.work(1.0))
    one.step(1.0)
    push = one.answer(one.work(2.0))
    turn = one.push(push, 2.0)
    assert turn.receipt == push.ticket and isinstance(turn.next, End)
    assert brokerage.phase == "published" and brokerage.status(2.0).ended == "max-updates"
    assert one.push(push, 3.0).receipt == push.ticket
    assert isinstance(two.push(late, 3.0).next, End)
    with pytest.raises(PeerProblem) as caught:
        brokerage.puzzle(3.0)
    assert caught.value.kind.code == "ended"


def test_it_ends_at_the_target_error():
    brokerage = make_brokerage(make_task(training=Training(target_error=0.0, max_norm=1.0)))
    Player(brokerage).step(1.0, np.array([1.0, 0, 0, 0]))
    assert brokerage.status(1.0).ended == "target-error"
    assert brokerage.status(1.0).best_error == 0.0


def test_it_ends_without_improvement_and_publishes_the_best_it_had():
    brokerage = make_brokerage(make_task(training=Training(patience=3, max_norm=1.0)))
    player = Player(brokerage)
    player.step(1.0, np.array([1.0, 0, 0, 0]))
    for _ in range(3):
        assert brokerage.phase == "training"
        player.step(2.0, np.array([-1.0, 0, 0, 0]))
    assert brokerage.status(3.0).ended == "patience"
    best, count, _ = brokerage.outcome
    assert np.allclose(best, [1, 0, 0, 0]) and count == 4


def test_it_ends_at_the_deadline_even_when_nobody_comes():
    brokerage = make_brokerage(make_task(training=Training(deadline=100.0)))
    brokerage.tick(99.0)
    assert brokerage.phase == "gathering"
    brokerage.tick(100.0)
    assert brokerage.phase == "published" and brokerage.status(100.0).ended == "deadline"
    brokerage.vanish(101.0)
    assert brokerage.phase == "gone"


def test_a_pause_without_end_is_one():
    rules = Training(max_pause=50.0, max_norm=1.0)
    brokerage = make_brokerage(make_task(training=rules, clients=Clients(minimum=2, silence=1e6)))
    one, two = Player(brokerage), Player(brokerage)
    one.step(1.0)
    two.leave(10.0)
    assert brokerage.phase == "paused" and brokerage.status(20.0).left == 40.0
    brokerage.tick(59.0)
    two.pull(59.5)
    assert brokerage.phase == "training", "whoever comes back in time saves it"
    two.leave(60.0)
    brokerage.tick(110.0)
    assert brokerage.phase == "published" and brokerage.status(110.0).ended == "max-pause"
    assert brokerage.status(110.0).left == 0


@pytest.mark.parametrize("change", ["labels", "shape", "norm", "nan"])
def test_a_validation_set_that_does_not_fit_is_refused(change):
    rows, labels = make_data()
    if change == "labels":
        labels = np.ones_like(labels)
    elif change == "shape":
        rows = rows[:, :3]
    elif change == "norm":
        rows = rows * 2
    else:
        rows[3, 1] = np.nan
    with pytest.raises(PeerProblem) as caught:
        Brokerage(b"s", bytes).accept(signed(make_task()), rows, labels, 0.0)
    assert caught.value.kind.code == "task-refused"


# -- the validation set -------------------------------------------------------------------------


def test_patience_asks_only_after_a_measurement():
    rows = np.tile(make_data()[0], (1500, 1))
    labels = np.tile(make_data()[1], 1500)
    task = make_task(training=Training(patience=1, max_norm=1.0), puzzles=Puzzles(update=0))
    brokerage = Brokerage(b"s" * 32, np.random.default_rng(3).bytes)
    brokerage.accept(signed(task), rows, labels, 0.0)
    player = Player(brokerage)
    player.step(1.0)
    assert brokerage.phase == "training" and brokerage.status(1.0).error is None
    player.step(2.0, np.array([0.5, 0, 0, 0]))
    assert brokerage.phase == "training" and brokerage.status(2.0).error is not None


# -- what outlives a crash ---------------------------------------------------------------------


def test_restore_goes_on_where_it_was():
    task = make_task(clients=Clients(minimum=2, silence=30.0))
    brokerage = make_brokerage(task)
    one, two = Player(brokerage), Player(brokerage)
    sessions = {row.name: row for row in brokerage.take_changes(0.0).sessions}
    push = one.answer(one.work(1.0), np.array([0.5, 0, 0, 0]))
    one.push(push, 1.0)
    lost = two.answer(two.work(1.0))
    changes = brokerage.take_changes(5.0)
    assert not brokerage.take_changes(5.0)
    sessions.update({row.name: row for row in changes.sessions})

    again = Brokerage(b"s" * 32, np.random.default_rng(3).bytes)
    again.accept(signed(task), *make_data(), 1000.0)
    again.restore(changes.model, list(sessions.values()), 1000.0)
    one.brokerage = two.brokerage = again
    assert again.phase == "paused" and updates(again, 1000.0) == 1
    assert isinstance(one.push(push, 1001.0).next, Wait)
    # A ticket that was not spent is void; a spent one gets its receipt again.
    assert isinstance(two.push(lost, 1002.0).next, Refused)
    assert again.phase == "training"
    assert one.push(push, 1003.0).receipt == push.ticket
    assert updates(again, 1003.0) == 1
    assert np.array_equal(weights(two.work(1004.0)), [0.5, 0, 0, 0])
    assert again.join(one.join, 1004.0).token == one.token


# -- anything at all ---------------------------------------------------------------------------

MOVES = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["pull", "push", "resend", "steal", "bad", "unsolved", "leave", "wait"]),
        st.floats(0, 20),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(MOVES, st.booleans(), st.floats(0, 1), st.integers(0, 3))
def test_whatever_clients_do_the_rules_hold(moves, together, rate, evict):
    training = Training(
        mode="synchronous" if together else "asynchronous", max_norm=1.0, max_updates=20,
        round_seconds=15.0)
    task = make_task(training=training, clients=Clients(minimum=2, silence=30.0),
                     validation=rounds(rate=rate, metric="loss", threshold=1e-6, evict=evict),
                     puzzles=Puzzles(admission=0, update=0))
    brokerage = make_brokerage(task)
    players = [Player(brokerage, k) for k in (1, 2, 3, 1)]
    last: dict[int, Push] = {}
    applied: set[bytes] = set()
    now = 0.0
    for who, move, pause in moves:
        player = players[who]
        before, phase = updates(brokerage), brokerage.phase
        if move == "wait":
            now += pause
            brokerage.tick(now)
            continue
        if move == "leave":
            turn = player.leave(now)
        elif move == "pull":
            turn = player.pull(now)
        elif move == "resend" and who in last:
            turn = player.push(last[who], now)
        elif move == "steal" and last:
            turn = player.push(last[max(last)], now)
        else:
            turn = player.pull(now)
            if isinstance(turn.next, Work):
                bad = move == "bad"
                push = player.answer(turn.next, np.full(DIMENSION, np.nan) if bad else None)
                last[who] = push
                turn = player.push(push, now)
        have, need = brokerage._registry.standing(now)
        known = brokerage._registry
        assert known.struck <= known.judged <= len(players) and turn.strikes <= known.strikes
        if evict and turn.strikes >= evict:
            evicted = isinstance(turn.next, Refused) and turn.next.code == "evicted"
            assert evicted or turn.next.code == "bad-delta"
        if isinstance(turn.next, Work):
            assert have >= need, "work was handed out below somebody's k"
        if updates(brokerage) > before:
            assert have >= need or phase == "training"
        if turn.receipt and updates(brokerage) > before and not together:
            assert turn.receipt not in applied, "an update was applied twice"
            applied.add(turn.receipt)
        assert np.isfinite(brokerage._aggregator.weights).all()
    assert updates(brokerage) <= 20


# -- updates of several steps ------------------------------------------------------------------


def local(steps: int = 5, **training: object) -> Brokerage:
    return make_brokerage(make_task(
        training=Training(max_norm=1.0, local_steps=steps, **training)))  # type: ignore[arg-type]


def of_steps(player: Player, work: Work, delta: np.ndarray, steps: int) -> Push:
    push = player.answer(work, delta)
    return Push(push.ticket, push.solution, push.delta, steps)


@pytest.mark.parametrize(("steps", "length", "fine"), [
    (5, 4.9, True), (5, 5.0, True), (5, 5.01, False), (4, 4.1, False), (1, 1.0, True),
    (1, 1.1, False), (6, 0.1, False), (1000, 0.1, False)])
def test_an_update_may_be_of_so_many_steps_as_the_task_allows_and_as_many_times_as_long(
        steps, length, fine):
    brokerage = local()
    player = Player(brokerage)
    work = player.work(1.0)
    turn = player.push(of_steps(player, work, np.array([0, length, 0, 0]), steps), 2.0)
    if fine:
        assert turn.receipt == work.ticket and updates(brokerage) == 1
        assert np.allclose(weights(turn.next), [0, length, 0, 0])
        assert turn.strikes == 0
    else:
        assert isinstance(turn.next, Refused) and turn.next.code == "bad-delta"
        assert updates(brokerage) == 0 and turn.strikes == 1


def test_where_the_task_says_nothing_an_update_is_one_step():
    player = Player(make_brokerage())
    turn = player.push(of_steps(player, player.work(1.0), np.zeros(DIMENSION), 2), 2.0)
    assert isinstance(turn.next, Refused) and turn.next.code == "bad-delta"


def test_an_update_of_several_steps_that_is_sent_again_counts_once_also_with_another_number():
    brokerage = local()
    player = Player(brokerage)
    work = player.work(1.0)
    push = of_steps(player, work, np.full(DIMENSION, 0.1), 3)
    assert player.push(push, 2.0).receipt == work.ticket
    for again in (push, Push(push.ticket, push.solution, push.delta, 1000)):
        turn = player.push(again, 3.0)
        assert turn.receipt == work.ticket and turn.strikes == 0
    assert updates(brokerage) == 1


def test_the_judge_is_told_how_many_steps_also_when_a_round_has_kept_them(monkeypatch):
    told = []
    for mode in ("asynchronous", "synchronous"):
        brokerage = local(mode=mode)
        judge = brokerage._validator.judge
        monkeypatch.setattr(brokerage._validator, "judge",
                            lambda *a, judge=judge: told.append(a[-1]) or judge(*a))
        one, two = Player(brokerage), Player(brokerage)
        for player, steps in ((one, 3), (two, 5)):
            work = player.work(1.0)
            player.push(of_steps(player, work, np.full(DIMENSION, 0.1), steps), 2.0)
            if mode == "synchronous" and player is one:
                # Who has acted may not think again.
                player.push(of_steps(player, work, np.full(DIMENSION, 0.1), 1), 2.5)
    assert told == [3, 5, 3, 5]


# -- encodings ---------------------------------------------------------------------------------


def test_the_same_weights_are_encoded_once():
    brokerage = make_brokerage()
    one, two, three = (Player(brokerage) for _ in range(3))
    first = one.work(1.0)
    assert two.work(1.0).weights is first.weights
    one.push(one.answer(first), 2.0)
    moved = three.work(3.0)
    assert moved.weights != first.weights
    assert np.allclose(weights(moved), 0.01)


def test_float16_is_half_of_the_bytes_both_ways_and_the_bound_allows_for_its_rounding():
    brokerage = local(precision="float16")
    player = Player(brokerage)
    rng = np.random.default_rng(3)
    for now in range(1, 200):
        work = player.work(float(now))
        assert len(work.weights) == 2 * DIMENSION
        delta = rng.normal(size=DIMENSION)
        delta /= np.linalg.norm(delta)
        raw = vector_to_wire(delta, "float16")
        turn = player.push(Push(work.ticket, player.answer(work).solution, raw), float(now))
        assert turn.receipt == work.ticket
    for raw in (vector_to_wire(delta), vector_to_wire(1.01 * delta, "float16"),
                np.array([np.inf, 0, 0, 0], "<f2").tobytes()):
        player = Player(brokerage, now=200.0)
        work = player.work(200.0)
        turn = player.push(Push(work.ticket, player.answer(work).solution, raw), 200.0)
        assert isinstance(turn.next, Refused) and turn.next.code == "bad-delta"
