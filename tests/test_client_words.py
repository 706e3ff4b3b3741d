"""What a person reads: prices, noise, progress, numbers and paragraphs."""

from __future__ import annotations

import io

import pytest
from client_world import CURATOR, make_task
from rich.console import Console

from accord.messages import AdmissionPuzzle
from accord.task import Training, Validation, sign
from client import progress
from client.briefing import about_noise, about_price, about_task, price
from client.events import Admitted, Event, Following, Late, Silent, Spent, Update
from client.noise import Release
from client.words import number, seconds, wrapped

DOOR = AdmissionPuzzle(b"l" * 16, 4, 600.0)


@pytest.mark.parametrize(("value", "text"), [
    (0.01612, "0.0161"), (7.98, "7.98"), (8.0, "8"), (99.94, "99.9"), (999.7, "1,000"),
    (1.5e6, "1,500,000"), (1e-6, "1e-06")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_lengths_of_time() -> None:
    assert [seconds(s) for s in (0.3, 3.0, 3540.0, 9000.0)] == [
        "about a second", "3 seconds", "59 minutes", "2 hours"]


def test_paragraphs_break_at_words_and_never_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    path = "/a/very-long/path" * 8
    told = wrapped(f"{'word ' * 40}\n\nThe model is saved as {path}.", 4)
    assert path in told and "\n\n" in told
    assert max(len(line) for line in told.splitlines() if path not in line) <= 80
    monkeypatch.setenv("COLUMNS", "40")
    assert max(len(line) for line in wrapped("word " * 40).splitlines()) <= 40


def words_of_price(budget: float, rate: float = 0.1, **training: object) -> str:
    task = make_task(
        training=Training(**training), validation=Validation(rate=rate))  # type: ignore[arg-type]
    release = Release(1.0, 50, 5000, task.dimension)
    cost = price(release, budget, 1e-6, {}, task.training.max_updates)
    told = about_price(cost, release, budget, 1e-6, task, DOOR)
    assert all(len(line) <= 80 for line in told.splitlines())
    return " ".join(told.split())


def test_the_price_is_that_of_the_training_that_is_offered() -> None:
    told = words_of_price(8.0, max_updates=100)
    assert "One update costs epsilon 0.017 (after sampling)." in told
    assert "If you alone made all 100 updates of this training, it would cost" in told
    assert "your budget of 8 at delta 1e-06 would buy" in told
    assert "cost as much as updates do, and come on top" in told


def test_a_budget_that_does_not_buy_the_training() -> None:
    told = words_of_price(1.0, max_updates=100_000)
    assert "Your budget of 1 at delta 1e-06 buys" in told
    assert "of the at most 100,000 updates of this training." in told


def test_the_price_of_rounds_and_without_checks() -> None:
    told = words_of_price(8.0, max_updates=100, mode="synchronous", rate=0.0)
    assert "All 100 rounds of this training would cost" in told
    assert "come on top" not in told


def test_loud_noise_is_said_before_joining() -> None:
    # 2 * 24 / (0.1 * 10) = 48 times the longest mean gradient.
    loud = about_noise(Release(0.1, 10, 60, 24))
    assert loud is not None
    told = " ".join(loud.split())
    assert "about 48 times" in told and "--batch" in told and "--epsilon" in told
    assert about_noise(Release(1.0, 50, 60, 24)) is None


def test_a_task_fits_eighty_columns() -> None:
    task = make_task(description="A long description of many words. " * 20)
    told = about_task(task, sign(task, CURATOR))
    assert max(len(line) for line in told.splitlines()) <= 80
    assert CURATOR.public_key().public_bytes_raw().hex() in told


@pytest.mark.parametrize(("event", "text"), [
    (Spent(7.9812, 8.0), "The privacy budget is spent: epsilon 7.98 of 8."),
    (Following("training", 2, 2, 99, 1000, 60.0),
     "Waiting for the model: training goes on, 99 of at most 1,000 updates."),
    (Following("paused", 1, 2, 99, 1000, 3540.0),
     "Training is paused (1 of 2 clients); the model comes at the latest in 59 minutes."),
    (Following("gathering", 1, 2, 0, 1000, 9000.0),
     "Training has not begun (1 of 2 clients); the model comes at the latest in 2 hours."),
    (Silent(12.3), "No answer for 12 s; the broker may be away. We go on asking."),
])
def test_events_in_words(event: Event, text: str) -> None:
    assert progress.words(event, 8.0) == text


def test_what_matters_stays_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(
        file=screen, force_terminal=True, width=80, color_system=None))
    with progress.shown(False, 8.0) as tell:
        for event in (Admitted(), Update(3, 0.1), Spent(7.98, 8.0), Late()):
            tell(event)
    # Written once, above a live line that is drawn again and again, and erased.
    lasting = screen.getvalue()
    assert lasting.count("The privacy budget is spent: epsilon 7.98 of 8.\n") == 1
    assert lasting.count("Admitted. Training begins as soon as enough clients are here.\n") == 1
    assert lasting.count("epsilon 0.1 of 8 spent.") > 1
