"""What a person reads: prices, judging, noise and progress."""

from __future__ import annotations

import io

import pytest
from client_world import CURATOR, make_task
from rich.console import Console

from accord.messages import AdmissionPuzzle
from accord.solver import MISSING
from accord.task import Puzzles, Task, Training, Validation, sign
from client import progress
from client.briefing import (
    about_judging,
    about_noise,
    about_price,
    about_task,
    most_strikes,
    price,
)
from client.events import (
    Admitted,
    Event,
    Following,
    Late,
    Searching,
    Silent,
    Solving,
    Spent,
    Struck,
    Update,
)
from client.noise import Release

DOOR = AdmissionPuzzle(b"l" * 16, 4, 600.0)


def words_of_price(budget: float, **training: object) -> str:
    task = make_task(training=Training(**training))  # type: ignore[arg-type]
    release = Release(1.0, 50, 5000, task.dimension)
    cost = price(release, budget, 1e-6, {}, task.training.max_updates)
    told = about_price(cost, release, budget, 1e-6, task, DOOR)
    assert all(len(line) <= 80 for line in told.splitlines())
    return " ".join(told.split())


@pytest.mark.slow
def test_the_price_is_that_of_the_training_that_is_offered() -> None:
    told = words_of_price(8.0, max_updates=100)
    assert "Your budget of 8 at delta 1e-06 buys" in told
    assert "updates of yours. You are likely to make 100 at most, which cost 0." in told
    # Every answer is applied: none is a check that costs epsilon besides.
    assert "come on top" not in told
    assert "difficulty 4, 1 s of work" in told


def test_a_budget_that_does_not_buy_the_training() -> None:
    told = words_of_price(1.0, max_updates=1_000_000)
    assert "Your budget of 1 at delta 1e-06 buys" in told
    assert "You are likely to make 1,000,000 at most, so you would drop out before" in told


def test_the_price_of_rounds() -> None:
    told = words_of_price(8.0, max_updates=100, mode="synchronous")
    assert "rounds of yours. You are likely to make 100 at most, which cost" in told


NEED_NOT = "You need not wait: Ctrl-C is safe, nothing more is spent, and the same command " \
    "gets the model later."
DIGEST = "5ea1d0c3" * 8
WISH = ("Your wish --leave-if-struck leaves at your first strike, --leave-if-share 0.5 when half "
        "of the judged clients are struck.")


def words_of_judging(task: Task, max_difficulty: int = 6) -> str:
    told = about_judging(task, max_difficulty)
    assert all(len(line) <= 80 for line in told.splitlines())
    return " ".join(told.split())


def test_how_updates_are_judged_is_said_before_joining() -> None:
    told = words_of_judging(make_task(validation=Validation(digest=DIGEST)))
    assert told == (
        "Judged Your updates are scored on the curator's validation set, and evidence adds up for "
        "each client (a sequential test). The chance that a client whose updates do not oppose "
        "that set is struck is at most 0.001. Of single updates what can only be noise is cut. "
        "Struck Each strike makes your puzzles 16 times longer; after 3 strikes the broker puts "
        "you out. "
        "At worst If that set is junk, honest clients are struck too. You can lose the work of "
        "harder puzzles, your place, and the epsilon of updates that change nothing; not your "
        f"rows. It ends after 3 strikes, when you are put out. {WISH}")


def test_the_paper_s_rounds_and_a_strict_screen() -> None:
    told = words_of_judging(make_task(validation=Validation(
        test="rounds", screen="direction", evict=1, rate=0.25, digest=DIGEST)))
    assert ("A share of 0.25 of the rounds is judged: by how much each client's updates make the "
            "model worse on the curator's validation set. Of single updates what can only be noise "
            "is cut, and those that oppose that set are ignored. Struck") in told
    assert "after 1 strike the broker puts you out." in told
    assert "It ends after 1 strike, when you are put out." in told


@pytest.mark.parametrize(("evict", "update", "limit", "most", "said"), [
    (3, 1, 6, 3, "It ends after 3 strikes, when you are put out."),
    (0, 1, 6, 6, "It ends after 6 strikes, when puzzles are harder than your --max-difficulty 6."),
    (9, 2, 4, 3, "It ends after 3 strikes, when puzzles are harder than your --max-difficulty 4."),
    (3, 2, 4, 3, "It ends after 3 strikes, when you are put out."),
    (3, 2, 2, 1, "It ends after 1 strike, when puzzles are harder than your --max-difficulty 2."),
    (3, 4, 2, 0, "From the start, puzzles are harder than your --max-difficulty 2: you would stop"),
])
def test_the_loss_to_a_junk_set_has_an_end(
    evict: int, update: int, limit: int, most: int, said: str
) -> None:
    task = make_task(puzzles=Puzzles(admission=2, update=update),
                     validation=Validation(evict=evict, digest=DIGEST))
    assert most_strikes(task, limit) == most
    # The first strike at which a puzzle is harder than allowed, or the client is out.
    ends = next(strikes for strikes in range(100)
                if update + strikes > limit or (evict and strikes >= evict))
    assert ends == most
    told = words_of_judging(task, limit)
    assert said in told
    assert ("the broker puts you out" in told) == bool(evict)


def test_where_nobody_is_judged() -> None:
    robust = Training(mode="synchronous", aggregate="median")
    without = make_task(training=robust, validation=Validation(test="none", screen="none"))
    assert words_of_judging(without) == (
        "Judged Nobody is struck or put out. There is no validation set to judge updates by.")
    assert most_strikes(without, 6) is None
    told = " ".join(about_task(without, sign(without, CURATOR)).split())
    assert ("Validation none: aggregated by median, which withstands only a minority of harmful "
            "clients, where the others' rows are alike") in told
    assert "2 to 100, in rounds" not in told and "in rounds (their median)" in told
    screened = make_task(validation=Validation(test="none", screen="length", digest=DIGEST))
    assert words_of_judging(screened) == (
        "Judged Nobody is struck or put out. Of single updates what can only be noise is cut.")


def test_the_digest_of_the_set_is_shown() -> None:
    task = make_task(validation=Validation(digest=DIGEST))
    told = about_task(task, sign(task, CURATOR))
    assert "Validation  the curator's set, with the digest 5ea1d0c35ea1d0c3...\n" in told


def test_loud_noise_is_said_before_joining() -> None:
    # 2 * sqrt(24 * 25) / (0.1 * 10) = 49 times the longest mean gradient.
    loud = about_noise(Release(0.1, 10, 60, 24))
    assert loud is not None
    told = " ".join(loud.split())
    assert "about 49 times" in told and "--batch (of 60 rows)" in told
    whole = about_noise(Release(0.1, 60, 60, 24))
    assert whole is not None and "fewer --updates" in whole and "--batch" not in whole
    assert about_noise(Release(1.0, 50, 60, 24)) is None


def test_a_task_fits_eighty_columns() -> None:
    task = make_task(description="A long description of many words. " * 20)
    told = about_task(task, sign(task, CURATOR))
    assert max(len(line) for line in told.splitlines()) <= 80
    assert CURATOR.public_key().public_bytes_raw().hex() in told


@pytest.mark.parametrize(("event", "text"), [
    (Spent(7.9812, 8.0), "The privacy budget is spent: epsilon 7.99 of 8."),
    (Following("training", 2, 2, 99, 1000, 60.0),
     "Waiting for the model: training goes on, 99 of at most 1,000 updates. " + NEED_NOT),
    (Following("paused", 1, 2, 99, 1000, 3540.0),
     "Training is paused (1 of 2 clients); the model comes at the latest in 59 min. " + NEED_NOT),
    (Following("gathering", 1, 2, 0, 1000, 9000.0),
     "Training has not begun (1 of 2 clients); the model comes at the latest in 2 h 30 min. "
     + NEED_NOT),
    (Solving(False, 100, 1000.0, 100.0, "hashlib", 1),
     "Solving an update's puzzle: 100 tries at 100 a second (hashlib); it takes 10 s on average."),
    (Solving(True, 100, 10.0, 1000.0, "compiled", 1),
     "Solving the admission puzzle: 100 tries at 1,000 a second (compiled); it takes 1 s on "
     "average."),
    (Searching("compiled", 97_100_000.0, 1, ""),
     "Solver: compiled, 97.1 million hashes a second on 1 core."),
    (Searching("hashlib", 1_040_000.0, 2, MISSING),
     "Solver: hashlib, 1.0 million hashes a second on 2 cores; pip install 'tormentor[fast]' makes "
     "it tens of times faster."),
    (Searching("hashlib", 450_000.0, 1, "its results are wrong on this machine"),
     "Solver: hashlib, 0.5 million hashes a second on 1 core; not the compiled one, as its "
     "results are wrong on this machine."),
    (Struck(1, 3, 8),
     "The broker has given us 1 strike: our updates oppose the curator's validation set. Who is "
     "wrong, we or that set, nobody here knows. Clients judged: 8; struck: 3."),
    (Struck(2, 1, 1),
     "The broker has given us 2 strikes: our updates oppose the curator's validation set. Who is "
     "wrong, we or that set, nobody here knows. Clients judged: 1; struck: 1."),
    (Silent(12.3), "No answer for 12 s; the broker may be away. We go on asking."),
])
def test_events_in_words(event: Event, text: str) -> None:
    assert progress.words(event, 8.0) == text


def test_what_matters_stays_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(
        file=screen, force_terminal=True, width=80, color_system=None))
    with progress.shown(False, 8.0) as tell:
        for event in (Admitted(), Update(3, 0.1), Struck(1, 1, 4), Spent(7.98, 8.0), Late()):
            tell(event)
    # Written once, above a live line that is drawn again and again, and erased.
    lasting = screen.getvalue()
    assert lasting.count("The privacy budget is spent: epsilon 7.98 of 8.\n") == 1
    assert lasting.count("The broker has given us 1 strike: ") == 1
    assert lasting.count("Admitted. Training begins as soon as enough clients are here.\n") == 1
    assert lasting.count("epsilon 0.1 of 8 spent.") > 1


@pytest.mark.parametrize("as_json", [False, True])
def test_no_strike_is_left_out_of_a_log(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.shown(as_json, 8.0) as tell:
        for strikes in (1, 2, 3):
            tell(Update(strikes, 0.1))
            tell(Update(strikes, 0.2))
            tell(Struck(strikes, 2, 5))
    out, err = capsys.readouterr()
    if not as_json:
        assert err.count("The broker has given us") == 3
        return
    assert [line for line in out.splitlines() if "struck" in line] == [
        f'{{"event":"struck","strikes":{n},"struck":2,"judged":5}}' for n in (1, 2, 3)]
