"""The ledger: what it adds up to, and that no accident makes it forget."""

from __future__ import annotations

import math
import os
import random
import signal
import stat
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from accord.problems import BAD_LEDGER, BUDGET_SMALL, BUDGET_SPENT, DISK, LOCKED, Problem
from accord.words import number
from client.budget import FFT_ERROR, MAX_RELEASES, Budget, Ledger, affordable, epsilon_total
from client.noise import Floats, Release

PRINT = "ab" * 32
WHEAT = Release(1.0, 10, 2100, 25)
RYE = Release(0.5, 20, 2100, 25)
ROOT = Path(__file__).resolve().parent.parent


def plain(epsilon: float) -> Release:
    """A release whose epsilon' is the epsilon given."""
    return Release(epsilon, 1, 1, 1)


@lru_cache
def answers(epsilon: float, times: int) -> tuple[Floats, Floats]:
    """Losses of that many answers of randomised response, and their probabilities."""
    i = np.arange(times + 1)
    return (2.0 * i - times) * epsilon, stats.binom.pmf(i, times, 1 / (1 + math.exp(-epsilon)))


def optimal_delta(epsilon: float, times: int, total: float) -> float:
    """Kairouz, Oh and Viswanath 2015, Theorem 3.3, for any total: the exact smallest delta.

    Of ``times`` answers of randomised response ``i`` are the likelier; the losses add up to
    ``(2 i - times) epsilon``.
    """
    loss, mass = answers(epsilon, times)
    over = loss > total
    return float(np.sum(mass[over] * -np.expm1(total - loss[over])))


def optimal_epsilon(epsilon: float, times: int, delta: float) -> float:
    """The same, solved for the total by bisection."""
    low, high = 0.0, times * epsilon
    if optimal_delta(epsilon, times, low) <= delta:
        return low
    for _ in range(48):
        middle = (low + high) / 2
        if optimal_delta(epsilon, times, middle) <= delta:
            high = middle
        else:
            low = middle
    return high


# -- what it comes to -------------------------------------------------------------------------


def test_the_figures_of_the_plan():
    assert epsilon_total({WHEAT: 4000}, 1e-6) <= 2.53
    # 2.53 is what the library's default lattice of 1e-4 makes of it, by rounding every loss up.
    assert epsilon_total({WHEAT: 4000}, 1e-6) == pytest.approx(2.3293, abs=1e-3)
    assert WHEAT.amplified * 4000 == pytest.approx(32.6, abs=0.05)
    assert epsilon_total({Release(5.0, 10, 80, 25): 300}, 1e-6) == pytest.approx(884, abs=1)
    assert epsilon_total({}, 1e-6) == epsilon_total({WHEAT: 0}, 1e-6) == 0


@pytest.mark.parametrize("delta", [1e-5, 1e-6, 1e-9])
@pytest.mark.parametrize(
    ("epsilon", "times"),
    [(1e-4, 10_000), (1e-3, 300_000), (0.0081, 4000), (0.1, 300), (0.3, 7), (0.5, 1), (1, 100),
     (2.96, 300), (1, 5000), (10, 1000), (10, 1)],
)
def test_one_kind_composes_optimally_and_never_too_low(epsilon, times, delta):
    total = epsilon_total({plain(epsilon): times}, delta)
    best = optimal_epsilon(epsilon, times, delta)
    assert best * (1 - 1e-12) <= total <= best * (1 + 1e-3)
    assert total <= times * epsilon


@given(st.floats(-5, 1), st.integers(1, 20_000), st.floats(-10.5, -2))
@settings(deadline=None, max_examples=60)
def test_one_kind_is_an_upper_bound_anywhere(log_epsilon, times, log_delta):
    epsilon, delta = 10**log_epsilon, 10**log_delta
    total = epsilon_total({plain(epsilon): times}, delta)
    if total < times * epsilon * (1 - 1e-12):
        assert optimal_delta(epsilon, times, total) <= delta


@given(
    st.lists(st.tuples(st.floats(-4, 0.7), st.integers(1, 400)), min_size=2, max_size=2),
    st.floats(-10, -2),
)
@settings(deadline=None, max_examples=40)
def test_two_kinds_are_an_upper_bound_and_not_far_off(kinds, log_delta):
    delta = 10**log_delta
    counts = {plain(10**e): times for e, times in kinds}
    total = epsilon_total(counts, delta)
    assert total <= math.fsum(r.epsilon * t for r, t in counts.items())
    assert total >= max(epsilon_total({r: t}, delta) for r, t in counts.items()) * (1 - 1e-4)
    if len(counts) == 2:  # exactly, by the sum over both binomials
        (e, s), (f, t) = ((r.epsilon, times) for r, times in counts.items())
        loss = np.add.outer(answers(e, s)[0], answers(f, t)[0])
        mass = np.outer(answers(e, s)[1], answers(f, t)[1])
        over = loss > total
        exact = float(np.sum(mass[over] * -np.expm1(total - loss[over])))
        assert exact <= delta * (1 + 1e-9)


def test_the_transforms_are_wrong_by_less_than_is_taken_off_delta():
    for epsilon, times in ((1e-3, 10**6), (1e-4, 10**6), (0.5, 100), (1.0, 10_000)):
        for delta in (1e-10, 1e-9, 1e-6):
            total = epsilon_total({plain(epsilon): times}, delta)
            assert optimal_delta(epsilon, times, total) <= delta - FFT_ERROR / 2


def test_kinds_of_one_epsilon_compose_as_one():
    same = Release(1.0, 10, 2100, 99)  # another dimension, the same epsilon'
    assert epsilon_total({WHEAT: 30, same: 70}, 1e-6) == epsilon_total({WHEAT: 100}, 1e-6)


@given(
    st.lists(st.tuples(st.floats(-4, 1), st.integers(1, 2000)), min_size=1, max_size=3),
    st.integers(1, 2000),
    st.floats(-4, 1),
)
@settings(deadline=None, max_examples=40)
def test_more_releases_never_cost_less(kinds, more, log_epsilon):
    counts = {plain(10**e): times for e, times in kinds}
    before = epsilon_total(counts, 1e-6)
    for release in [*counts, plain(10**log_epsilon)]:
        after = epsilon_total({**counts, release: counts.get(release, 0) + more}, 1e-6)
        assert after >= before * (1 - 1e-9)


def test_where_the_transforms_do_not_reach_the_plain_sum_counts():
    assert epsilon_total({plain(0.1): 300}, 1e-12) == 30.0
    assert epsilon_total({plain(1e-6): MAX_RELEASES + 1}, 1e-6) == pytest.approx(10.0, rel=1e-6)
    assert epsilon_total({plain(900.0): 2, plain(0.5): 1}, 1e-6) == 1800.5


def test_a_total_that_makes_no_sense_is_refused():
    for delta in (0.0, 0.5, -1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            epsilon_total({WHEAT: 1}, delta)
    with pytest.raises(ValueError, match="negative"):
        epsilon_total({WHEAT: -1}, 1e-6)


@pytest.mark.parametrize(
    ("release", "budget", "already"),
    [(WHEAT, 1.0, {}), (WHEAT, 3.0, {}), (WHEAT, 3.0, {RYE: 500}), (plain(0.7), 5.0, {}),
     (plain(1e-3), 8.0, {}), (Release(5.0, 10, 80, 25), 884.0, {}), (RYE, 1.0, {RYE: 77})],
)
def test_what_is_affordable_is_exact(release, budget, already):
    count = affordable(release, budget, 1e-6, already)

    def total(more: int) -> float:
        return epsilon_total({**already, release: already.get(release, 0) + more}, 1e-6)

    assert total(count) <= budget < total(count + 1)


def test_affordable_at_its_limits():
    with pytest.raises(Problem) as refused:
        affordable(plain(2.0), 1.5, 1e-6, {plain(0.5): 1})
    assert refused.value.kind is BUDGET_SMALL
    assert refused.value.details["first"] == "2"
    assert refused.value.details["left"] == "1"
    assert affordable(plain(1e-9), 100.0, 1e-6, {plain(1e-9): 5}) == MAX_RELEASES - 5


def test_the_accounting_library_is_loaded_only_when_it_is_needed():
    code = "import client.budget, sys; print({'dp_accounting', 'scipy'} & set(sys.modules))"
    assert python(code).stdout.strip() == "set()"


# -- the file ---------------------------------------------------------------------------------


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )


def fill(directory: Path) -> Path:
    """A ledger of two tasks and two kinds: a header, three kinds, and five spends."""
    with Ledger(directory, PRINT) as ledger:
        assert [ledger.spend("barley", WHEAT) for _ in range(2)] == [1, 2]
        assert ledger.spend("oats", WHEAT) == 1
        assert ledger.spend("barley", RYE) == 3
        assert ledger.spend("barley", WHEAT) == 4
        return ledger.path


def spends(content: bytes) -> int:
    return sum(b" spend " in line for line in content.split(b"\n"))


def test_what_was_spent_is_there_when_it_is_opened_again(tmp_path):
    fill(tmp_path)
    with Ledger(tmp_path, PRINT) as ledger:
        assert ledger.count("barley") == 4
        assert ledger.count("oats") == 1
        assert ledger.count("nobody") == 0
        assert ledger.counts("barley") == {WHEAT: 3, RYE: 1}
        assert ledger.counts("oats") == {WHEAT: 1}
        assert ledger.counts() == {WHEAT: 4, RYE: 1}  # the same rows: it adds up
        assert ledger.total(1e-6) == epsilon_total({WHEAT: 4, RYE: 1}, 1e-6)
        assert ledger.total(1e-6, "oats") == epsilon_total({WHEAT: 1}, 1e-6)
        assert ledger.spend("barley", WHEAT) == 5


def test_it_is_for_its_owner_only(tmp_path):
    directory = tmp_path / "share" / "ledgers"
    old = os.umask(0)
    try:
        Ledger(directory, PRINT).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / f"{PRINT}.ledger").stat().st_mode) == 0o600


def test_a_name_that_is_not_a_fingerprint_is_refused(tmp_path):
    for name in ("", "../../etc/passwd", "AB" * 32, "abc"):
        with pytest.raises(ValueError, match="fingerprint"):
            Ledger(tmp_path, name)


def test_a_closed_ledger_spends_nothing(tmp_path):
    ledger = Ledger(tmp_path, PRINT)
    ledger.close()
    ledger.close()
    with pytest.raises(ValueError, match="closed"):
        ledger.spend("barley", WHEAT)


def test_spending_is_one_write_and_one_sync(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, PRINT)
    ledger.spend("barley", WHEAT)
    done: list[str] = []
    for name in ("write", "fdatasync", "fsync", "ftruncate", "open"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (done.append(n), f(*a))[1])
    ledger.spend("barley", WHEAT)
    assert done == ["write", "fdatasync"]


def test_records_are_short(tmp_path):
    with Ledger(tmp_path, PRINT) as ledger:
        ledger.spend("barley", WHEAT)
        before = ledger.path.stat().st_size
        for _ in range(50):
            ledger.spend("barley", WHEAT)
        assert ledger.path.stat().st_size - before <= 50 * 24


def test_torn_anywhere_it_opens_with_what_was_whole(tmp_path):
    """A power cut at any byte: the lines before it count, the torn one does not."""
    whole = fill(tmp_path / "whole").read_bytes()
    path = tmp_path / f"{PRINT}.ledger"
    for length in range(len(whole)):
        for tail in (b"", b"\0" * 9):  # some file systems extend a file before they fill it
            path.write_bytes(whole[:length] + tail)
            with Ledger(tmp_path, PRINT) as ledger:
                kept = whole[:length]
                complete = kept[: kept.rfind(b"\n") + 1]
                # whole but for the line feed: counts
                extra = whole[length : length + 1] == b"\n" and not tail
                expected = spends(complete) + (extra and b" spend " in kept[len(complete) :])
                assert sum(ledger.counts().values()) == expected, (length, tail)
                ledger.spend("barley", RYE)
            with Ledger(tmp_path, PRINT) as ledger:
                assert sum(ledger.counts().values()) == expected + 1


def test_damage_anywhere_is_found_and_its_line_named(tmp_path):
    path = fill(tmp_path)
    whole = path.read_bytes()
    for position in range(len(whole) - 1):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(Problem) as refused:
                Ledger(tmp_path, PRINT)
            assert refused.value.kind is BAD_LEDGER
            assert refused.value.details["line"] == whole[:position].count(b"\n") + 1
            assert path.read_bytes() == damaged  # evidence is left as it is


def test_lines_that_are_missing_doubled_or_exchanged_are_found(tmp_path):
    path = fill(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for i in range(len(lines) - 1):
        missing, doubled = lines[:i] + lines[i + 1 :], lines[: i + 1] + lines[i:]
        exchanged = [*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]]
        for version, line in ((missing, i + 1), (doubled, i + 2), (exchanged, i + 1)):
            path.write_bytes(b"".join(version))
            with pytest.raises(Problem) as refused:
                Ledger(tmp_path, PRINT)
            assert refused.value.details["line"] == line


def test_another_data_sets_ledger_is_not_taken_for_this_one(tmp_path):
    fill(tmp_path).rename(tmp_path / f"{'cd' * 32}.ledger")
    with pytest.raises(Problem) as refused:
        Ledger(tmp_path, "cd" * 32)
    assert (refused.value.kind, refused.value.details["line"]) == (BAD_LEDGER, 1)


def test_two_processes_cannot_spend_from_one_file(tmp_path):
    holder = start(
        "import sys; from pathlib import Path; from client.budget import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), sys.argv[2]); print('open', flush=True); input()",
        str(tmp_path), PRINT,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        for _ in range(2):
            with pytest.raises(Problem) as refused:
                Ledger(tmp_path, PRINT)
            assert refused.value.kind is LOCKED
        Ledger(tmp_path, "cd" * 32).close()  # another data set is free
        holder.kill()
    with Ledger(tmp_path, PRINT) as ledger:
        with pytest.raises(Problem) as refused:
            Ledger(tmp_path, PRINT)  # nor twice in one process
        assert refused.value.kind is LOCKED
        assert ledger.spend("barley", WHEAT) == 1


SPENDER = """
import sys; from pathlib import Path
from client.budget import Ledger; from client.noise import Release
from accord.words import number
ledger = Ledger(Path(sys.argv[1]), sys.argv[2])
while True:
    print(ledger.spend("barley", Release(1.0, 10, 2100, 25)), flush=True)
"""


def test_kill_9_never_loses_an_acknowledged_spend(tmp_path):
    chance = random.Random(7)
    acknowledged = 0
    for _ in range(12):
        child = start(SPENDER, str(tmp_path), PRINT)
        with child:
            assert child.stdout is not None
            said = child.stdout.readline()  # it has begun
            time.sleep(chance.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            said += child.stdout.read()
        acknowledged = int(said.split("\n")[-2])  # the last whole line
        with Ledger(tmp_path, PRINT) as ledger:
            # at most one was written whose acknowledgement was never given
            assert acknowledged <= ledger.count("barley") <= acknowledged + 1
    assert acknowledged > 12


FULL = """
import resource, sys; from pathlib import Path
from accord.problems import DISK, Problem
from client.budget import Ledger; from client.noise import Release
release, room = Release(1.0, 10, 2100, 25), int(sys.argv[3])
ledger = Ledger(Path(sys.argv[1]), sys.argv[2])
ledger.spend("barley", release)
size = ledger.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
done = 1
while True:
    try:
        ledger.spend("barley", release)
    except Problem as problem:
        assert problem.kind is DISK, problem
        break
    done += 1
assert done == 1 + room // 19, done
assert ledger.count("barley") == sum(ledger.counts().values()) == done
assert ledger.path.read_bytes().endswith(b"\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert ledger.spend("barley", release) == done + 1  # there is room again
ledger.close()
assert Ledger(Path(sys.argv[1]), sys.argv[2]).count("barley") == done + 1
"""


@pytest.mark.parametrize("room", [0, 1, 18, 30])
def test_a_full_disk_counts_nothing_and_leaves_nothing_half_written(tmp_path, room):
    """The kernel really refuses to let the file grow, in the middle of a record."""
    python(FULL, str(tmp_path), PRINT, str(room))


def test_a_full_disk_at_creation(tmp_path):
    python(
        "import resource, sys; from pathlib import Path\n"
        "from accord.problems import DISK, Problem; from client.budget import Ledger\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20, -1))\n"
        "try: Ledger(Path(sys.argv[1]), sys.argv[2])\n"
        "except Problem as problem: assert problem.kind is DISK\n"
        "else: raise SystemExit('made')",
        str(tmp_path), PRINT,
    )
    with Ledger(tmp_path, PRINT) as ledger:
        assert ledger.spend("barley", WHEAT) == 1


def test_if_a_failed_write_cannot_be_taken_back_nothing_more_is_spent(tmp_path):
    ledger = Ledger(tmp_path, PRINT)
    ledger.spend("barley", WHEAT)
    readable, kept = os.open(ledger.path, os.O_RDONLY), os.dup(ledger._fd)
    os.dup2(readable, ledger._fd)  # neither writing nor truncating is possible
    for again in (False, True):
        if again:
            os.dup2(kept, ledger._fd)  # even when it becomes possible once more
        with pytest.raises(Problem) as refused:
            ledger.spend("barley", WHEAT)
        assert refused.value.kind is DISK
        assert ledger.count("barley") == 1
    for fd in (readable, kept):
        os.close(fd)
    ledger.close()
    with Ledger(tmp_path, PRINT) as ledger:
        assert ledger.spend("barley", WHEAT) == 2


def test_an_interrupted_spend_counts_when_the_file_is_opened_again(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, PRINT)

    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ledger.spend("barley", WHEAT)
    with pytest.raises(Problem) as refused:
        ledger.spend("barley", WHEAT)
    assert refused.value.kind is DISK
    ledger.close()
    with Ledger(tmp_path, PRINT) as ledger:
        assert ledger.count("barley") == 1  # it is in the file: nobody knows that it was not sent


def test_a_directory_that_cannot_be_made_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem) as refused:
        Ledger(tmp_path / "file" / "ledgers", PRINT)
    assert refused.value.kind is DISK


# -- the limit --------------------------------------------------------------------------------


def test_the_budget_stops_exactly(tmp_path):
    release = plain(0.3)
    with Ledger(tmp_path, PRINT) as ledger:
        budget = Budget(ledger, "barley", release, 3.0, 1e-6)
        allowed = budget.remaining
        assert budget.spent() == 0
        for index in range(1, allowed + 1):
            assert budget.spend() == index
            assert budget.remaining == allowed - index
            assert budget.spent() <= 3.0
        assert epsilon_total({release: allowed + 1}, 1e-6) > 3.0
        size = ledger.path.stat().st_size
        with pytest.raises(Problem) as refused:
            budget.spend()
        assert refused.value.kind is BUDGET_SPENT
        assert refused.value.details == {
            "spent": number(budget.spent()), "budget": "3", "delta": 1e-6}
        assert ledger.path.stat().st_size == size
        assert ledger.count("barley") == allowed
    with Ledger(tmp_path, PRINT) as ledger:  # nor after starting again
        with pytest.raises(Problem) as refused:
            Budget(ledger, "barley", release, 3.0, 1e-6).spend()
        assert refused.value.kind is BUDGET_SPENT
        assert Budget(ledger, "barley", release, 4.0, 1e-6).remaining > 0
        with pytest.raises(Problem) as refused:  # and there is nothing left for another task
            Budget(ledger, "oats", release, 3.0, 1e-6)
        assert refused.value.kind is BUDGET_SMALL


def test_two_tasks_share_what_the_data_set_has(tmp_path):
    with Ledger(tmp_path, PRINT) as ledger:
        barley = Budget(ledger, "barley", plain(0.3), 3.0, 1e-6)
        oats = Budget(ledger, "oats", plain(0.3), 3.0, 1e-6)
        allowed = barley.remaining
        assert oats.remaining == allowed
        for _ in range(4):
            barley.spend()
        assert oats.remaining == allowed - 4
        assert [oats.spend() for _ in range(allowed - 4)][-1] == allowed - 4
        assert barley.remaining == oats.remaining == 0
        assert barley.spent() == oats.spent() == ledger.total(1e-6) <= 3.0
        assert ledger.total(1e-6, "barley") < 3.0


def test_a_budget_too_small_for_one_is_said_before_anything_is_spent(tmp_path):
    with Ledger(tmp_path, PRINT) as ledger:
        with pytest.raises(Problem) as refused:
            Budget(ledger, "barley", plain(3.0), 2.0, 1e-6)
        assert refused.value.kind is BUDGET_SMALL
        assert ledger.count("barley") == 0


@pytest.mark.slow
@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.05, 1.0))
@settings(deadline=None, max_examples=15)
def test_remaining_agrees_with_the_total_whatever_was_spent_before(tmp_path_factory, a, b, epsilon):
    with Ledger(tmp_path_factory.mktemp("ledger"), PRINT) as ledger:
        for release, times in ((WHEAT, a), (plain(epsilon), b)):
            for _ in range(times):
                ledger.spend("before", release)
        try:
            remaining = Budget(ledger, "barley", plain(epsilon), 5.0, 1e-6).remaining
        except Problem:
            remaining = 0

        def total(more: int) -> float:
            return epsilon_total({WHEAT: a, plain(epsilon): b + more}, 1e-6)

        assert total(remaining + 1) > 5.0
        assert remaining == 0 or total(remaining) <= 5.0
