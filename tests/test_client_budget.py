"""The ledger: that no accident makes it forget, and that the limit holds."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.problems import BAD_LEDGER, BUDGET_SMALL, BUDGET_SPENT, DISK, LOCKED, Problem
from accord.words import number
from client.accounting import epsilon_total
from client.budget import Budget, Ledger
from client.noise import Release

PRINT = "ab" * 32
WHEAT = Release(1.0, 10, 2100, 25)
RYE = Release(0.5, 20, 2100, 25)
ROOT = Path(__file__).resolve().parent.parent


def plain(epsilon: float) -> Release:
    """A release whose epsilon' is the epsilon given."""
    return Release(epsilon, 1, 1, 1)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
            assert budget.spend(1) == range(index, index + 1)
            assert budget.remaining == allowed - index
            assert budget.spent() <= 3.0
        assert epsilon_total({release: allowed + 1}, 1e-6) > 3.0
        size = ledger.path.stat().st_size
        with pytest.raises(Problem) as refused:
            budget.spend(1)
        assert refused.value.kind is BUDGET_SPENT
        assert refused.value.details == {
            "spent": number(budget.spent()), "budget": "3", "delta": 1e-6}
        assert ledger.path.stat().st_size == size
        assert ledger.count("barley") == allowed
    with Ledger(tmp_path, PRINT) as ledger:  # nor after starting again
        with pytest.raises(Problem) as refused:
            Budget(ledger, "barley", release, 3.0, 1e-6).spend(1)
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
            barley.spend(1)
        assert oats.remaining == allowed - 4
        assert [oats.spend(1) for _ in range(allowed - 4)][-1].start == allowed - 4
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


# -- several at once ---------------------------------------------------------------------------


def test_several_are_written_in_one_go_and_counted_as_if_one_by_one(tmp_path, monkeypatch):
    with Ledger(tmp_path / "one", PRINT) as one, Ledger(tmp_path / "many", PRINT) as many:
        for _ in range(7):
            one.spend("barley", WHEAT)
        synced = []
        real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(fd) or real(fd))
        assert [many.spend("barley", WHEAT, count) for count in (3, 4)] == [1, 4]
        assert len(synced) == 2
        assert many.path.read_bytes() == one.path.read_bytes()
        assert many.counts() == one.counts() == {WHEAT: 7}
        with pytest.raises(ValueError, match="0 releases"):
            many.spend("barley", WHEAT, 0)
    with Ledger(tmp_path / "many", PRINT) as again:
        assert again.spend("barley", WHEAT) == 8


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["barley", "oats"]), st.sampled_from([WHEAT, RYE]),
                          st.integers(1, 5)), min_size=1, max_size=6), st.data())
def test_a_torn_batch_counts_its_whole_lines_and_no_more(tmp_path_factory, batches, data):
    directory = tmp_path_factory.mktemp("ledger")
    with Ledger(directory, PRINT) as ledger:
        for task, kind, count in batches[:-1]:
            ledger.spend(task, kind, count)
        before = sum(ledger.counts().values())
        size = ledger.path.stat().st_size
        ledger.spend(*batches[-1])
    whole = ledger.path.read_bytes()
    cut = data.draw(st.integers(size, len(whole)))
    ledger.path.write_bytes(whole[:cut])
    lines = whole[size:cut].split(b"\n")
    least = sum(b" spend " in line for line in lines[:-1])
    with Ledger(directory, PRINT) as again:
        count = sum(again.counts().values()) - before
        assert least <= count <= least + 1 and count <= batches[-1][2]
        assert again.spend("barley", WHEAT) == again.count("barley")


def test_a_batch_that_cannot_be_written_is_none_at_all(tmp_path, monkeypatch):
    with Ledger(tmp_path, PRINT) as ledger:
        ledger.spend("barley", WHEAT, 2)
        real = os.write

        def full(fd, raw):
            if len(raw) < 60:
                raise OSError(errno.ENOSPC, "no space left")
            return real(fd, raw[:60])  # two lines and a half

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(Problem) as caught:
                ledger.spend("barley", WHEAT, 5)
        assert caught.value.kind is DISK
        assert ledger.count("barley") == 2
        assert ledger.spend("barley", WHEAT, 3) == 3
    with Ledger(tmp_path, PRINT) as again:
        assert again.count("barley") == 5


def test_a_budget_gives_as_many_as_are_left(tmp_path):
    release = plain(0.3)
    with Ledger(tmp_path, PRINT) as ledger:
        budget = Budget(ledger, "barley", release, 3.0, 1e-6)
        allowed = budget.remaining
        most = allowed - 2
        assert budget.spend(most) == range(1, most + 1)
        assert budget.spend(10) == range(most + 1, allowed + 1)
        assert budget.remaining == 0 and budget.spent() <= 3.0
        with pytest.raises(Problem) as refused:
            budget.spend(10)
        assert refused.value.kind is BUDGET_SPENT
        assert ledger.count("barley") == allowed
