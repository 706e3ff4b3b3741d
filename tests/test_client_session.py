"""The conversation without any network, and the session file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from client_world import CURATOR, ONION, make_task
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.messages import (
    End,
    Hello,
    Pull,
    Push,
    Refused,
    Turn,
    Wait,
    Work,
    decode,
    encode,
    vector_to_wire,
)
from accord.problems import (
    AWAY,
    BAD_SESSION,
    BAD_WEIGHTS,
    EVICTED,
    KINDS,
    LOCKED,
    LOST,
    NO_SESSION,
    STALE_TICKET,
    TOO_HARD,
    Problem,
)
from accord.task import sign
from client.session import (
    MOST_REFUSALS,
    BackOff,
    Conversation,
    Over,
    Pace,
    Session,
    Step,
    Verdict,
    Wishes,
    hold_session,
    load_session,
    save_session,
)

D, HARDEST, SILENCE = 3, 4, 60.0
PACE = Pace(first=1.0, longest=30.0, answer=60.0, patience=600.0)
DELTA = np.array([0.1, 0.2, 0.3], dtype=np.float32)


def talk(money: int = 1000, wishes: Wishes | None = None) -> Conversation:
    return Conversation(ONION, b"t" * 32, D, HARDEST, lambda: money > 0, PACE, SILENCE,
                        wishes or Wishes())


def work(ticket: int = 1, **changes: object) -> Work:
    parts: dict[str, object] = {"ticket": bytes([ticket]) * 16, "lock": b"l",
                                "weights": vector_to_wire(np.ones(D)), "difficulty": 2}
    return Work(**{**parts, **changes})  # type: ignore[arg-type]


def test_hello_pull_work_push_receipt() -> None:
    it = talk()
    assert it.connected(0.0) == Hello(b"t" * 32)
    assert it.sending(0.0) == Pull()
    assert it.sending(0.0) is None
    step = it.receive(Turn(b"", work(1)), 1.0)
    assert isinstance(step, Step) and step.difficulty == 2 and (step.weights == 1).all()
    assert it.sending(2.0) is None and it.wake(2.0) == 19.0
    it.answer(b"s", DELTA, 5.0)
    push = it.sending(5.0)
    assert push == Push(b"\x01" * 16, b"s", vector_to_wire(DELTA))
    assert isinstance(it.receive(Turn(b"\x01" * 16, work(2)), 6.0), Step)
    assert it.updates == 1


def working() -> tuple[Conversation, Push]:
    it = talk()
    it.connected(0.0)
    it.sending(0.0)
    it.receive(Turn(b"", work(1)), 0.0)
    it.answer(b"s", DELTA, 0.0)
    push = it.sending(0.0)
    assert isinstance(push, Push)
    return it, push


def test_a_push_without_answer_is_sent_again_on_the_next_connection() -> None:
    it, push = working()
    it.connected(9.0)
    assert it.sending(9.0) == push


def test_a_wait_keeps_the_message() -> None:
    it, push = working()
    assert it.receive(Turn(b"", Wait("round-open", 1, 3, 10.0)), 1.0) == Wait(
        "round-open", 1, 3, 10.0)
    assert it.sending(10.9) is None and it.sending(11.0) == push
    # The other case: acknowledged, and nothing to do yet; and a Turn that nobody asked for.
    it.receive(Turn(push.ticket, Wait("too-few-clients", 1, 3, 10.0)), 12.0)
    assert it.updates == 1 and it.sending(22.0) == Pull()
    assert isinstance(it.receive(Turn(b"", work(2)), 23.0), Step)


def test_a_wait_is_neither_a_storm_nor_for_ever() -> None:
    for seconds, due in ((0.0, 1.0), (1e9, 30.0)):
        it = talk()
        it.connected(0.0)
        it.sending(0.0)
        it.receive(Turn(b"", Wait("round-open", 1, 2, seconds)), 0.0)
        assert it.wake(0.0) == due


def test_a_stale_ticket_is_dropped() -> None:
    it, _ = working()
    assert it.receive(Turn(b"", Refused("stale-ticket", {})), 1.0) is None
    assert it.sending(1.0) == Pull() and it.updates == 0


def test_refusals_without_end_do_end() -> None:
    it = talk()
    for n in range(MOST_REFUSALS):
        it.connected(float(n))
        it.sending(float(n))
        assert isinstance(it.receive(Turn(b"", work(n)), 0.0), Step)
        it.answer(b"s", DELTA, 0.0)
        assert it.sending(float(n)) is not None
        if n < MOST_REFUSALS - 1:
            it.receive(Turn(b"", Refused("stale-ticket", {})), float(n))
    with pytest.raises(Problem) as caught:
        it.receive(Turn(b"", Refused("stale-ticket", {})), 0.0)
    assert caught.value.kind is STALE_TICKET and it.sending(1e9) is None


@pytest.mark.parametrize("code", ["internal", "full"])
def test_a_broker_in_trouble_is_as_good_as_away_and_keeps_the_push(code: str) -> None:
    it, push = working()
    numbers = {"maximum": 3} if code == "full" else {}
    for number in range(3 * MOST_REFUSALS):
        with pytest.raises(Problem) as caught:
            it.receive(Turn(b"", Refused(code, numbers)), float(number))
        assert caught.value.kind is AWAY
        it.lost(float(number), 0.5)
        it.connected(float(number))
        # However often: it is said again, nothing more is paid, and nobody is hung up.
        assert it.sending(float(number)) == push
    assert isinstance(it.receive(Turn(push.ticket, work(2)), 40.0), Step)
    assert it.updates == 1


def test_a_broker_in_trouble_is_not_waited_for_for_ever() -> None:
    it, _ = working()
    with pytest.raises(Problem) as caught:
        for number in range(10_000):
            with pytest.raises(Problem):
                it.receive(Turn(b"", Refused("internal", {})), float(number))
            it.lost(float(number), 0.5)
    assert caught.value.kind is LOST


def test_work_that_crosses_is_not_paid_for_twice() -> None:
    it = talk()
    it.connected(0.0)
    it.sending(0.0)
    assert isinstance(it.receive(Turn(b"", work(1)), 0.0), Step)
    assert it.receive(Turn(b"", work(1)), 0.0) is None
    assert it.receive(Turn(b"", work(2)), 0.0) is None
    it.answer(b"s", DELTA, 0.0)
    it.sending(0.0)
    assert it.receive(Turn(b"", work(1)), 0.0) is None


def test_no_money_no_work() -> None:
    it = talk(money=0)
    it.connected(0.0)
    it.sending(0.0)
    assert it.receive(Turn(b"", work()), 0.0) == Over("budget-spent")
    assert it.sending(1e9) is None
    # Our last update is in a round that is open: we stay for it.
    it = talk(money=0)
    assert isinstance(it.receive(Turn(b"", Wait("round-open", 1, 2, 1.0)), 0.0), Wait)


@pytest.mark.parametrize("end", [End(), Refused("ended", {})])
def test_the_end(end: End | Refused) -> None:
    it, push = working()
    assert it.receive(Turn(push.ticket, end), 0.0) == Over("ended")
    assert it.updates == 1 and it.sending(1e9) is None


@pytest.mark.parametrize(("bad", "kind"), [
    (work(difficulty=HARDEST + 1), TOO_HARD),
    (work(weights=b""), BAD_WEIGHTS),
    (work(weights=vector_to_wire(np.ones(D + 1))), BAD_WEIGHTS),
    (work(weights=vector_to_wire(np.array([1, np.inf, 0]))), BAD_WEIGHTS),
])
def test_a_bad_ticket_ends_it_before_anything_is_spent(bad: Work, kind: object) -> None:
    it = talk()
    it.connected(0.0)
    it.sending(0.0)
    with pytest.raises(Problem) as caught:
        it.receive(Turn(b"", bad), 0.0)
    assert caught.value.kind is kind
    assert it.sending(1e9) is None
    assert it.receive(Turn(b"", work()), 0.0) is None


def test_long_work_is_broken_by_signs_of_life() -> None:
    it = talk()
    it.connected(0.0)
    it.sending(0.0)
    assert isinstance(it.receive(Turn(b"", work(1)), 1.0), Step)
    assert it.wake(1.0) == 20.0 and it.sending(20.9) is None
    assert it.sending(21.0) == Pull()
    # The same ticket comes again; it is ignored, and nobody's silence is counted meanwhile.
    assert it.receive(Turn(b"", work(1)), 22.0) is None
    assert it.sending(41.0) == Pull() and it.wake(41.0) == 20.0
    assert it.sending(61.0) == Pull()
    it.answer(b"s", DELTA, 70.0)
    assert isinstance(it.sending(70.0), Push)


def test_silence_is_noticed_soon_but_not_at_once() -> None:
    it = Conversation(ONION, b"t" * 32, D, HARDEST, lambda: True, Pace(), SILENCE)
    it.connected(0.0)
    assert it.sending(0.0) == Pull() and it.wake(0.0) == 20.0
    assert it.sending(19.9) is None and it.sending(20.0) == Pull()
    with pytest.raises(Problem) as caught:
        it.wake(40.0)
    assert caught.value.kind is AWAY


def test_a_silent_broker_counts_as_gone() -> None:
    it = talk()
    it.connected(0.0)
    it.sending(0.0)
    assert it.wake(0.0) == 60.0
    assert it.sending(60.0) == Pull()
    with pytest.raises(Problem) as caught:
        it.wake(120.0)
    assert caught.value.kind is AWAY


def test_backing_off_and_giving_up() -> None:
    it = BackOff(ONION, PACE)
    waits = [it.again(0.0, 0.5) for _ in range(7)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert it.again(0.0, 0.0) == 15.0 and it.again(0.0, 1.0) == 45.0
    assert it.again(599.0, 1.0) == 1.0
    with pytest.raises(Problem) as caught:
        it.again(600.0, 0.0)
    assert caught.value.kind is LOST and "600 s" in caught.value.sentence
    it.answered()
    assert it.again(1000.0, 0.5) == 1.0


# -- strikes ---------------------------------------------------------------------------------
STRUCK = Wishes(if_struck=True)


@pytest.mark.parametrize(("wishes", "verdict", "reason"), [
    (Wishes(), Verdict(64, 64, 64), None),
    (STRUCK, Verdict(0, 63, 64), None),
    (STRUCK, Verdict(1, 1, 64), "leave-if-struck"),
    (STRUCK, Verdict(1, 0, 0), "leave-if-struck"),
    (Wishes(if_share=0.5), Verdict(1, 2, 2), None),           # too few to say anything
    (Wishes(if_share=0.5), Verdict(1, 1, 3), None),
    (Wishes(if_share=0.5), Verdict(0, 2, 3), "leave-if-share"),
    (Wishes(if_share=0.5), Verdict(0, 2, 4), "leave-if-share"),
    (Wishes(if_share=0.3), Verdict(0, 3, 10), "leave-if-share"),   # 0.3 * 10 > 3 in some roundings
    (Wishes(if_share=0.7), Verdict(0, 7, 10), "leave-if-share"),
    (Wishes(if_share=1.0), Verdict(9, 9, 10), None),
    (Wishes(if_share=1.0), Verdict(0, 3, 3), "leave-if-share"),
    (Wishes(if_share=1e-9), Verdict(0, 0, 100), None),
    (Wishes(True, 0.5), Verdict(1, 2, 3), "leave-if-struck"),
])
def test_when_a_wish_to_leave_is_fulfilled(
    wishes: Wishes, verdict: Verdict, reason: str | None
) -> None:
    assert wishes.reason(verdict) == reason


def test_any_share_of_clients_that_can_be_typed_is_met_exactly() -> None:
    for judged in range(3, 101):
        for struck in range(1, judged + 1):
            wish = Wishes(if_share=struck / judged)
            assert wish.reason(Verdict(0, struck, judged)) == "leave-if-share"
            assert wish.reason(Verdict(0, struck - 1, judged)) is None


@pytest.mark.parametrize("told", [
    work(), work(difficulty=HARDEST + 1), work(weights=b""), Wait("round-open", 1, 2, 1.0),
    Refused("stale-ticket", {}), Refused("too-few-clients", {"have": 1, "need": 2})])
def test_a_wish_to_leave_comes_before_any_further_noise(told: Work | Wait | Refused) -> None:
    it = talk(wishes=STRUCK)
    it.connected(0.0)
    it.sending(0.0)
    assert it.receive(Turn(b"", told, 1, 1, 1), 0.0) == Over("left")
    assert it.verdict == Verdict(1, 1, 1)
    assert it.sending(1e9) is None
    assert it.receive(Turn(b"", work(2)), 0.0) is None


def test_whoever_leaves_has_its_last_update_acknowledged() -> None:
    it = talk(wishes=Wishes(if_share=0.5))
    it.connected(0.0)
    it.sending(0.0)
    assert isinstance(it.receive(Turn(b"", work(1), 0, 1, 3), 0.0), Step)
    it.answer(b"s", DELTA, 0.0)
    assert isinstance(it.sending(0.0), Push)
    assert it.receive(Turn(b"\x01" * 16, work(2), 0, 2, 3), 1.0) == Over("left")
    assert it.updates == 1


def test_work_that_is_being_done_is_left_too() -> None:
    it = talk(wishes=STRUCK)
    it.connected(0.0)
    it.sending(0.0)
    assert isinstance(it.receive(Turn(b"", work(1)), 0.0), Step)
    assert it.receive(Turn(b"", work(1), 1, 1, 1), 1.0) == Over("left")


@pytest.mark.parametrize("end", [End(), Refused("ended", {})])
def test_a_training_that_has_ended_is_not_left(end: End | Refused) -> None:
    it = talk(wishes=STRUCK)
    assert it.receive(Turn(b"", end, 1, 1, 1), 0.0) == Over("ended")


def test_put_out_is_its_own_end_whatever_the_wishes() -> None:
    for wishes in (Wishes(), STRUCK):
        it = talk(wishes=wishes)
        with pytest.raises(Problem) as caught:
            it.receive(Turn(b"", Refused("evicted", {"strikes": 3}), 3, 4, 9), 0.0)
        assert caught.value.kind is EVICTED and "after 3 strikes" in caught.value.sentence
        assert it.verdict == Verdict(3, 4, 9)
        assert it.sending(1e9) is None


def test_a_turn_that_says_nothing_of_strikes_takes_none_back() -> None:
    it = talk()
    it.receive(Turn(b"", Wait("round-open", 1, 2, 1.0), 2, 3, 9), 0.0)
    it.receive(Turn(b"", Refused("too-few-clients", {"have": 1, "need": 2})), 1.0)
    assert it.verdict == Verdict(2, 3, 9)


# -- whatever a broker says ------------------------------------------------------------------

TICKETS = st.sampled_from([bytes([n]) * 16 for n in range(3)])
VECTORS = st.one_of(
    st.binary(max_size=4 * D + 4),
    st.just(vector_to_wire(np.ones(D))),
    st.just(vector_to_wire(np.array([1.0, np.nan, 0.0]))),
)
NEXT = st.one_of(
    st.builds(Work, ticket=TICKETS, weights=VECTORS, lock=st.just(b"l"),
              difficulty=st.integers(0, 6)),
    st.builds(Wait, why=st.sampled_from([*KINDS, "?"]), have=st.integers(0, 9),
              need=st.integers(0, 9), seconds=st.sampled_from([0.0, 5.0, 1e9])),
    st.just(End()),
    st.builds(Refused, code=st.sampled_from([*KINDS, "?"]), numbers=st.dictionaries(
        st.sampled_from(["have", "need", "dimension", "kind", "self", ""]),
        st.integers(-(2**63), 2**64 - 1), max_size=4)),
)
COUNTS = st.one_of(st.just(0), st.integers(0, 4), st.just(2**53 - 1))
TURNS = st.builds(Turn, receipt=st.one_of(st.just(b""), TICKETS), next=NEXT, strikes=COUNTS,
                  struck=COUNTS, judged=COUNTS)
WISHES = st.builds(Wishes, st.booleans(), st.none() | st.sampled_from([1e-9, 0.5, 1.0]))
ACTS = st.one_of(TURNS, st.sampled_from(["made", "cut", "time"]))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(acts=st.lists(ACTS, max_size=30), money=st.integers(0, 4), wishes=WISHES)
def test_no_broker_crashes_it_or_makes_it_pay_for_nothing(
    acts: list[Turn | str], money: int, wishes: Wishes
) -> None:
    """Whatever the turns: only Problems are raised; a step is asked for only by a good ticket,
    with money left and no wish to leave fulfilled; after the end nothing is sent; every message
    that is sent can be decoded."""
    left = money
    now = 0.0
    it = Conversation(ONION, b"t" * 32, D, HARDEST, lambda: left > 0, PACE, SILENCE, wishes)
    it.connected(now)
    busy = over = False
    for act in acts:
        message = it.sending(now)
        if message is not None:
            assert not over and (not busy or message == Pull())
            assert decode(encode(message), Pull | Push) == message
        try:
            if act == "made":
                if busy:
                    it.answer(b"s", DELTA, now)
                    busy = False
            elif act == "cut":
                now += it.lost(now, 0.5)
                it.connected(now)
            elif act == "time":
                now += it.wake(now) if it.wake(now) < math.inf else 1.0
            else:
                todo = it.receive(act, now)  # type: ignore[arg-type]
                if isinstance(todo, Step):
                    assert not busy and not over and left > 0
                    assert wishes.reason(it.verdict) is None
                    told = act.next  # type: ignore[union-attr]
                    assert isinstance(told, Work) and told.difficulty <= HARDEST
                    assert todo.weights.shape == (D,) and np.isfinite(todo.weights).all()
                    left -= 1
                    busy = True
                over = over or isinstance(todo, Over)
        except Problem as problem:
            if problem.kind not in (AWAY, LOST):
                over = True
                busy = False
        if over:
            assert it.sending(now + 1e9) is None
    assert left >= 0


# -- the file --------------------------------------------------------------------------------


def session(**changes: object) -> Session:
    parts: dict[str, object] = {
        "onion": ONION, "task": sign(make_task(), CURATOR), "data": "/x/mine.csv",
        "fingerprint": "ab" * 32, "epsilon": 1.0, "batch": 50, "min_clients": 5, "budget": 8.0,
        "delta": 1e-6, "max_difficulty": 6, "ledger": "/x", "output": "/x/m",
        "token": b"secret-token-of-32-bytes-exactly"}
    return Session(**{**parts, **changes})  # type: ignore[arg-type]


def test_the_file_comes_back_as_it_was_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    save_session(path, session())
    assert load_session(path) == session()
    assert path.stat().st_mode & 0o777 == 0o600
    assert "secret" not in repr(session()) and "secret" not in str(session())


def test_a_file_of_before_there_were_strikes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    save_session(path, session())
    old = json.loads(path.read_bytes())
    for name in ("leave_if_struck", "leave_if_share", "verdict"):
        del old[name]
    path.write_text(json.dumps(old))
    assert load_session(path) == session()
    assert load_session(path).wishes == Wishes()


@pytest.mark.parametrize("changes", [
    {"leave_if_struck": True, "leave_if_share": 0.5, "verdict": Verdict(1, 2, 3),
     "outcome": "left"}, {"leave_if_share": 1.0}])
def test_wishes_and_verdict_are_kept(tmp_path: Path, changes: dict[str, object]) -> None:
    save_session(tmp_path / "s.json", session(**changes))
    assert load_session(tmp_path / "s.json") == session(**changes)


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"version":2}', b"null"])
def test_a_file_that_is_no_session(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(raw)
    with pytest.raises(Problem) as caught:
        load_session(path)
    assert caught.value.kind is BAD_SESSION


def test_no_file_is_no_session(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        load_session(tmp_path / "s.json")
    assert caught.value.kind is NO_SESSION


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with hold_session(path):
        with pytest.raises(Problem) as caught, hold_session(path):
            pass
        assert caught.value.kind is LOCKED
    with hold_session(path):
        pass
