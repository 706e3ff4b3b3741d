"""Updates that can be told apart in the sum, what clients write down, how a broker is weighed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lab.coded import DIGITS, Account, Code, Record, judge
from lab.soak.crowd import attempt
from lab.soak.process import busy, memory

CODE = Code(clients=3, width=4)
MARKS = [(client, number) for client in range(3) for number in range(CODE.capacity)]
WIDE = 13


def weights(*marks: tuple[int, int]) -> np.ndarray:
    """What is left of these updates, as the broker adds and publishes them."""
    total = np.zeros(WIDE)
    for mark in marks:
        total = total + CODE.delta(mark, WIDE).astype(np.float64)
    return total


# -- the code --------------------------------------------------------------------------------


def test_every_update_is_another_and_says_which():
    seen = {CODE.delta(mark, WIDE).tobytes() for mark in MARKS}
    assert len(seen) == len(MARKS) == 3 * 4 * DIGITS
    assert [CODE.mark(CODE.delta(mark, WIDE)) for mark in MARKS] == MARKS
    for mark in ((3, 0), (0, CODE.capacity), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="no digit"):
            CODE.delta(mark, WIDE)
    for other in (weights(MARKS[0], MARKS[1]), weights(MARKS[5], MARKS[5]), np.zeros(WIDE)):
        with pytest.raises(ValueError, match="not one digit"):
            CODE.mark(other)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_sums_say_how_often_each_was_applied_in_any_order_and_as_float32(times):
    rng = np.random.default_rng(times)
    some = [MARKS[i] for i in rng.permutation(len(MARKS))[:70]]
    applied = some * times
    rng.shuffle(applied)
    total = weights(*map(tuple, applied))
    assert CODE.marks(total) == dict.fromkeys(some, times)
    assert CODE.marks(total.astype(np.float32)) == dict.fromkeys(some, times)
    every = weights(*MARKS * times)
    assert CODE.marks(every.astype(np.float32)) == dict.fromkeys(MARKS, times)


def test_what_is_no_sum_of_digits_is_refused():
    # A fraction of a digit, less than none, nobody's coordinate, noise.
    for wrong in (weights(MARKS[9]) / 2, -weights(MARKS[0]), np.eye(WIDE)[-1],
                  np.random.default_rng(0).normal(size=WIDE)):
        with pytest.raises(ValueError, match="no sum"):
            CODE.marks(wrong)


# -- the records and the judge ---------------------------------------------------------------


def account(tmp_path, *lines: tuple[str, int, int]) -> Account:
    record = Record(tmp_path / "record")
    for line in lines:
        record.note(*line)
    record.close()
    found = Account()
    found.follow([tmp_path / "record", tmp_path / "not there yet"])
    return found


def test_each_kind_of_fault_is_told_from_the_others(tmp_path):
    pushed = [("pushed", 0, n) for n in range(5)]
    acknowledged = [("acknowledged", 0, n) for n in (0, 1, 2)]
    found = judge(account(tmp_path, *pushed, *acknowledged), CODE,
                  weights((0, 0), (0, 1), (0, 1), (0, 3), (2, 7)))
    assert found.applied == 5
    assert found.lost == [(0, 2)]
    assert found.doubled == [(0, 1)]
    assert found.uncertain == [(0, 3)]
    assert found.unknown == [(2, 7)]
    clean = judge(account(tmp_path), CODE, weights((0, 0), (0, 1), (0, 2)))
    assert clean.lost == clean.doubled == clean.uncertain == clean.unknown == []


def test_a_record_is_followed_as_it_grows_and_a_torn_line_is_passed_over(tmp_path):
    path = tmp_path / "record"
    found = account(tmp_path, ("pushed", 1, 3), ("pushed", 1, 3))
    assert [len(times) for times in found.pushed.values()] == [2]
    with path.open("ab") as file:
        file.write(b"acknowledged 1 3 17.00")  # killed in the middle of it
    found.follow([path])
    assert not found.acknowledged
    record = Record(path)  # started again
    for line in (("pushed", 1, 4), ("acknowledged", 1, 4), ("gave-up", 2, 0), ("published", 2, 0)):
        record.note(*line)
    record.close()
    found.follow([path])
    assert list(found.acknowledged) == [(1, 4)] and list(found.pushed) == [(1, 3), (1, 4)]
    assert found.gave_up == 1 and found.published == {2}


def test_recovery_counts_only_what_was_sent_after_the_kill():
    found = Account(pushed={(0, 0): [1.0], (0, 1): [3.0], (1, 0): [4.0]},
                    acknowledged={(0, 0): 2.5, (0, 1): 3.5, (1, 0): 5.0})
    assert found.recovered(2.0) == 1.5
    assert found.recovered(2.0, [1]) == 3.0
    assert found.recovered(3.2) == pytest.approx(1.8)
    assert found.recovered(4.5) is None


# -- weighing a broker -----------------------------------------------------------------------


def test_memory_and_processor_are_those_of_the_process():
    before, used = memory(os.getpid()), busy(os.getpid())
    kept = np.ones(8 << 20)  # 64 MB
    after = memory(os.getpid())
    assert after["rss"] - before["rss"] > 60 and after["uss"] - before["uss"] > 60
    assert after["uss"] <= after["pss"] <= after["rss"]
    while busy(os.getpid()) < used + 0.05:
        kept += 1
    assert busy(os.getpid()) < used + 5


@pytest.mark.slow
async def test_a_crowd_trains_and_the_broker_does_not_grow(tmp_path):
    told = await attempt(20, 3, tmp_path, tor=False, minute=2.0)
    assert told["fault"] == [] and told["clients"] == 20 and len(told["memory"]) == 3
    assert told["updates_per_second"] > 1 and 0 < told["broker_cpu"] < 2
    assert told["first"] == told["memory"][0] and told["first"]["rss"] > 10


@pytest.mark.slow
async def test_a_broker_that_leaks_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("SOAK_LIE", "leaks")
    told = await attempt(20, 3, tmp_path, tor=False, minute=2.0, desk="lying_desk")
    assert told["growth"] > 0.1 and any("memory grew" in words for words in told["fault"])
