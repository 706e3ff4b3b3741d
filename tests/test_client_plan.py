"""From a total to noise, and back to words: what ``join`` chooses and ``budget`` says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from client_home import World, a_world, lines, refused, world_free
from client_world import ONION, make_task
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.problems import BUDGET_SMALL, Problem
from accord.task import Clients, Training
from client.accounting import best_guess, certainty, delta_total, epsilon_total
from client.budget import Ledger, ledger_name
from client.meaning import in_words, percent, strength
from client.noise import Release
from client.plan import advised_batch, expected_updates, plan
from client.session import load_session
from tormentor import main


@pytest.fixture
def world(tmp_path):
    with a_world(tmp_path) as it:
        yield it


def budget(*words: object) -> tuple[int, dict[str, object], str]:
    told = CliRunner().invoke(main, ["budget", *map(str, words), "--json"])
    return told.exit_code, json.loads(told.stdout), told.output


# -- what is chosen ---------------------------------------------------------------------------


def test_the_share_of_a_training() -> None:
    own_pace = make_task(training=Training(max_updates=1000), clients=Clients(minimum=4))
    assert expected_updates(own_pace, 2) == 375
    assert expected_updates(own_pace, 7) == math.ceil(1500 / 7)
    alone = make_task(training=Training(max_updates=1000), clients=Clients(minimum=1))
    assert expected_updates(alone, 1) == 1000
    rounds = make_task(training=Training(mode="synchronous", max_updates=60))
    assert expected_updates(rounds, 9) == 60


@given(st.integers(1, 10**7))
def test_the_advised_batch_is_never_more_than_there_is(rows: int) -> None:
    assert 1 <= advised_batch(rows, fixed_epsilon=True) <= advised_batch(
        rows, fixed_epsilon=False) <= rows
    assert plan(make_task(), 200, 2, 2.0, 1e-6, "laplace", epsilon=1.0).batch == 50


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
def test_a_total_buys_the_least_noise_that_keeps_it(noise) -> None:
    task = make_task(training=Training(max_updates=600))
    kind = plan(task, 1000, 3, 1.5, 1e-6, noise)
    assert (kind.batch, kind.rows, kind.dimension) == (1000, 1000, task.dimension)
    assert kind.mechanism == noise
    assert epsilon_total({kind: 300}, 1e-6) <= 1.5
    more = Release(kind.epsilon * 1.011, 1000, 1000, task.dimension, noise, kind.delta)
    assert epsilon_total({more: 300}, 1e-6) > 1.5


@pytest.mark.slow
def test_what_was_spent_before_leaves_less() -> None:
    task = make_task(training=Training(max_updates=600))
    fresh = plan(task, 1000, 3, 1.5, 1e-6, "laplace")
    spent = {Release(0.5, 100, 1000, task.dimension): 20}
    later = plan(task, 1000, 3, 1.5, 1e-6, "laplace", already=spent)
    assert later.epsilon < fresh.epsilon
    assert epsilon_total({**spent, later: 300}, 1e-6) <= 1.5
    with pytest.raises(Problem) as refusal:
        plan(task, 1000, 3, 0.1, 1e-6, "laplace", already=spent)
    assert refusal.value.kind is BUDGET_SMALL and "300 updates" in refusal.value.sentence


def test_what_is_typed_is_taken() -> None:
    kind = plan(make_task(), 100, 2, 2.0, 1e-5, "gaussian", epsilon=0.7, batch=30)
    assert kind == Release(0.7, 30, 100, make_task().dimension, "gaussian", 1e-5)


# -- what it means ----------------------------------------------------------------------------


def test_the_best_guess_of_one_release_is_exact() -> None:
    # In one dimension, by the Laplace distribution: total variation 1 - exp(-epsilon / 2).
    for epsilon in (0.1, 1.0, 4.0):
        found = best_guess({Release(epsilon, 1, 1, 1): 1}, 1e-6)
        assert found == pytest.approx(1 - math.exp(-epsilon / 2) / 2, abs=1e-6)
    assert best_guess({}, 1e-6) == 0.5


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.floats(0.01, 20), st.integers(1, 60), st.integers(1, 200), st.integers(0, 1))
def test_the_best_guess_is_between_a_coin_and_certainty(epsilon, dimension, times, which) -> None:
    kind = Release(epsilon, 5, 20, dimension, ("laplace", "gaussian")[which], (0.0, 1e-6)[which])
    guess = best_guess({kind: times}, 1e-6)
    total = epsilon_total({kind: times}, 1e-6)
    assert 0.5 <= guess <= min(1.0, 1 / (1 + math.exp(-min(total, 700))) + 1e-6)
    assert guess <= certainty({kind: times}, 1e-6) + 1e-12
    assert guess <= (1 + delta_total({kind: times}, 0.0)) / 2
    assert best_guess({kind: times + 1}, 1e-6) >= guess - 1e-9


@pytest.mark.slow
def test_certainty_is_kept_where_epsilon_is_not() -> None:
    """By Monte Carlo of the real sampler: 400,000 plays; at delta = 1e-3 the loss exceeds the
    epsilon of 40 releases far more often, and ours no more often, than it may."""
    kind, delta = Release(0.5, 1, 1, 3), 1e-3
    counts = {kind: 40}
    source = np.random.default_rng(1)
    shift = np.array([2.0, 0.0, 0.0])
    losses = np.zeros(400_000)
    for _ in range(40):
        z = source.standard_normal((len(losses), 3))
        z *= (source.gamma(3, 4.0, len(losses)) / np.linalg.norm(z, axis=1))[:, None]
        losses += 0.25 * (np.linalg.norm(z + shift, axis=1) - np.linalg.norm(z, axis=1))
    sure = certainty(counts, delta)
    often = (losses > math.log(sure / (1 - sure))).mean()
    beyond = (losses > epsilon_total(counts, delta)).mean()
    assert beyond > 3 * delta
    assert delta / 4 < often < delta + 5 * math.sqrt(delta / len(losses))
    # Without a delta no loss is larger than the plain sum.
    assert certainty({Release(0.5, 1, 1, 1): 1}, 1e-12) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_bounds_are_rounded_up() -> None:
    assert percent(0.5) == "50 %" and percent(0.501) == "51 %" and percent(0.99) == "99 %"
    assert percent(0.9911) == "99.2 %" and percent(0.9995) == "100 %"
    assert [strength(e) for e in (0.0, 1.0, 1.1, 3.5, 9, math.inf)] == [
        "strong", "strong", "fair", "weak", "next to none", "next to none"]


def test_words_say_what_to_do() -> None:
    good = " ".join(in_words(0.5, 1e-6, 0.53, 0.63))
    assert "53 % of the time" in good and "63 % sure" in good and "one in 1,000,000" in good
    assert "--budget" not in good
    bad = " ".join(in_words(12.0, 0.01, 0.99, 0.9999))
    assert "next to none" in bad and "smaller --budget" in bad
    assert "100 % sure" in bad


# -- the commands -----------------------------------------------------------------------------


def test_budget_answers_without_any_data() -> None:
    status, told, _ = budget("--epsilon", 1, "--batch", 10, "--rows", 2100, "--features", 24,
                             "--updates", 4000, "--delta", 1e-6)
    assert status == 0
    assert told["epsilon_total"] == pytest.approx(0.2576, abs=2e-4)
    assert told["epsilon_total_pure"] == pytest.approx(2.3293, abs=1e-3)
    assert told["epsilon_sum"] == pytest.approx(32.6, abs=0.05)
    assert told["guess"] == pytest.approx(0.5133, abs=1e-4)
    words = CliRunner().invoke(main, [
        "budget", "--epsilon", "1", "--batch", "10", "--rows", "2100", "--features", "24",
        "--updates", "4000"])
    assert words.exit_code == 0
    assert "Total      epsilon 0.258 at delta 1e-06" in words.stdout
    assert "52 % of the time" in " ".join(words.stdout.split())


@pytest.mark.slow
def test_budget_says_what_a_total_buys() -> None:
    shape = ("--batch", 50, "--rows", 1000, "--features", 10)
    status, told, _ = budget("--budget", 1, "--updates", 300, *shape)
    assert status == 0 and told["epsilon_total"] <= 1 < 1.02 * told["epsilon_total"]
    status, back, _ = budget("--budget", 1, "--epsilon", told["epsilon"], *shape)
    assert status == 0 and 300 <= back["updates"] < 320
    status, told, _ = budget("--budget", 1, "--updates", 300, *shape, "--noise", "gaussian")
    assert status == 0 and told["epsilon_total"] <= 1 and told["epsilon_total_pure"] is None


@pytest.mark.parametrize("words", [
    "--epsilon 1 --updates 3", "--batch 10 --rows 100 --features 3",
    "--epsilon 1 --rows 100 --features 3 --updates 3 --delta 0.02",
    "--epsilon 1 --batch 10 --rows 100 --features 3",
    "--epsilon 1 --batch 200 --rows 100 --features 3 --updates 3",
    "--epsilon 0 --batch 1 --rows 100 --features 3 --updates 3",
    "--epsilon 1 --batch 1 --rows 100 --features 0 --updates 3",
    "--epsilon 101 --noise gaussian --batch 1 --rows 100 --features 4 --updates 3",
    "--epsilon 1 --noise gaussian --delta 1e-40 --batch 1 --rows 9 --features 4 --updates 3",
    "--data x.csv --rows 3"])
def test_budget_refuses_what_means_nothing(words: str) -> None:
    status, told, _ = budget(*words.split())
    assert status == 2 and told["error"] == "bad-option"


def test_join_needs_no_epsilon_and_budget_says_what_was_spent(world: World) -> None:
    joined = world.run("join", ONION, "--data", world.data, "--min-clients", 2,
                       "--output", world.model, "--budget", 0.8, "--noise", "gaussian", "--json")
    assert joined.exit_code == 0, joined.output
    told = json.loads(joined.stdout)
    assert told["epsilon_expected"] <= 0.8 and told["updates"] >= told["updates_expected"] == 8
    assert (told["noise"], told["batch"], told["epsilon_update"]) == ("gaussian", 211, None)
    session = load_session(world.session)
    assert session.noise == "gaussian" and session.epsilon == told["epsilon"]
    # The same command once more keeps what was chosen, also when some of it is spent.
    again = world.run("join", ONION, "--data", world.data, "--min-clients", 2, "--output",
                      world.model, "--budget", 0.8, "--noise", "gaussian", "--json")
    assert again.exit_code == 0 and load_session(world.session).epsilon == told["epsilon"]
    nothing = world_free("budget", "--data", world.data, "--state", world.home / "state", "--json")
    assert json.loads(nothing.stdout)["updates"] == 0

    solved = world.run("solve", "--json")
    assert solved.exit_code == 0, solved.output
    end = lines(solved.stdout)[-1]
    spent = world_free("budget", "--data", world.data, "--state", world.home / "state", "--json")
    assert spent.exit_code == 0, spent.output
    book = json.loads(spent.stdout)
    assert book["updates"] == end["updates"] and book["epsilon_total"] == end["epsilon_total"]
    assert [t["updates"] for t in book["tasks"]] == [end["updates"]]
    words = world_free("budget", "--data", world.data, "--state", world.home / "state")
    assert "Protection of each row: strong" in words.stdout


def test_columns_that_the_task_does_not_know(world: World) -> None:
    first, *rest = world.data.read_text().splitlines()
    world.data.write_text("\n".join([f"{first},ward", *(f"{row},3" for row in rest)]) + "\n")
    refused(world.join("--json"), 3, "unknown-column")
    joined = world.join("--ignore-columns", "--json")
    assert joined.exit_code == 0, joined.output
    assert load_session(world.session).ignore_columns
    solved = world.run("solve", "--json")
    assert solved.exit_code == 0, solved.output
    spent = world_free("budget", "--data", world.data, "--state", world.home / "state", "--json")
    assert json.loads(spent.stdout)["updates"] == lines(solved.stdout)[-1]["updates"]


def test_the_broker_hears_the_same_whatever_the_rows_are(world: World) -> None:
    """Whether all rows are as a task says is nobody's to know: joining asks all that it asks
    before it looks at them."""
    world.data.write_text(world.data.read_text() + "200,50,true,north,yes\n")  # age <= 120
    refused(world.join("--json"), 3, "bad-cell")
    assert [path for path, _, _ in world.broker.heard] == ["/task", "/puzzle"]


def test_a_delta_that_gives_a_row_up_is_refused(world: World) -> None:
    told = world.join("--delta", 0.005, "--json")  # 211 rows
    refused(told, 2, "bad-option")
    assert "211 rows" in json.loads(told.stdout)["sentence"]


def test_what_was_spent_can_be_read_while_it_is_spent(tmp_path) -> None:
    name = "ab" * 32
    kind = Release(1.0, 1, 10, 3)
    with Ledger(tmp_path, name) as book:
        book.spend("one", kind)
        with Ledger(tmp_path, name, read_only=True) as look:
            assert look.counts() == {kind: 1} and look.tasks() == ["one"]
            with pytest.raises(ValueError):
                look.spend("one", kind)
        raw = book.path.read_bytes()
        book.path.write_bytes(raw[:-1])  # whole but for its line feed: counts, and is left so
        with Ledger(tmp_path, name, read_only=True) as look:
            assert look.count("one") == 1
        assert book.path.read_bytes() == raw[:-1]


def test_a_ledger_of_before_they_belonged_to_rows_is_still_the_one(tmp_path) -> None:
    assert ledger_name(tmp_path, "aa" * 32, "bb" * 32) == "aa" * 32
    Ledger(tmp_path, "bb" * 32).close()
    assert ledger_name(tmp_path, "aa" * 32, "bb" * 32) == "bb" * 32


def test_epsilon_and_updates_exclude_each_other(world: World) -> None:
    refused(world.join("--updates", 7, "--json"), 2, "bad-option")
