"""Attacks that invert succeed where nothing protects, and never by looking at the truth."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

from accord.task import Task
from lab.adversary import Noiseless, honest
from lab.credit import Table, converged, deal, made
from lab.experiments import fig8, fig9, inversion_report
from lab.experiments.frame import Cell, Finished, Outcome, key_of
from lab.experiments.inversion_course import (
    SHARDS,
    Course,
    Part,
    Setting,
    Victim,
    judge,
    run,
    shards,
    task_of,
)
from lab.experiments.inversion_report import ATTACKS as ATTACK_NAMES
from lab.experiments.inversion_report import SEATS
from lab.inversion import (
    FARTHEST,
    _expected,
    _mismatch,
    _nearest,
    best_guess,
    blind,
    direction,
    distances,
    guesses,
    likeness,
    match,
    membership,
    moments,
    noise_variance,
    shadow,
)
from lab.setting import auc

pytestmark = pytest.mark.slow

TABLE: Table = made()
PARTS = deal(TABLE, 0, 0)
TEST = PARTS.test[0]
PLAIN = Setting(iterations=1500)


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def task(setting: Setting = PLAIN) -> Task:
    return task_of(TABLE, PARTS, setting.training)


def course(held: list[Part], **changes: object) -> Course:
    setting = replace(PLAIN, **changes)  # type: ignore[arg-type]
    return run(task(setting), held, setting)


# -- the course --------------------------------------------------------------------------------


def test_shards_are_disjoint_and_what_they_are_called() -> None:
    rows, labels = PARTS.train
    known = {row.tobytes(): label for row, label in zip(rows, labels, strict=True)}
    assert len(known) == len(rows)
    for victim, share in (("ordinary", 0.22), ("flipped", 0.78), ("unlike", 0.5)):
        held = shards(PARTS.train, victim, 3)  # type: ignore[arg-type]
        assert len(held) == SHARDS
        assert {len(mine[1]) for mine in held} == {len(labels) // SHARDS}
        assert len({row.tobytes() for mine in held for row in mine[0]}) == len(labels)
        assert held[0][1].mean() == pytest.approx(share, abs=0.03)
        for i, mine in enumerate(held):
            true = [known[row.tobytes()] for row in mine[0]]
            assert np.array_equal(mine[1], 1 - np.array(true)
                                  if victim == "flipped" and i == 0 else true)


def test_a_course_is_what_the_real_client_sends_and_the_broker_adds() -> None:
    setting = replace(PLAIN, iterations=20, epsilon=1.0, sends="honest")
    held = shards(PARTS.train, "flipped", 0)
    found = run(task(), held, setting)
    victim = honest(task(), *held[0], setting.batch, 1.0, lambda count: range(1, 2))
    chance = np.random.Generator(np.random.PCG64([setting.seed, 7, 0]))
    for weights, update in zip(found.broker.weights, found.broker.updates, strict=True):
        assert np.array_equal(victim.update(weights, chance).delta, update.astype(np.float32))
    # Alone with the victim, the client sees just what the broker sees, but for float32.
    assert np.allclose(found.client.updates, found.broker.updates, atol=1e-5)
    assert np.allclose(found.client.weights, found.broker.weights, atol=1e-5)


def test_nobody_sees_more_than_its_seat() -> None:
    held = shards(PARTS.train, "flipped", 0)
    found = course(held, iterations=200, bystanders=3, delay=0.5, sends="honest")
    assert found.client.others == 3.0
    assert found.broker.others == 0.0
    assert len(found.broker.updates) == pytest.approx(200, abs=1)
    assert len(found.client.updates) == pytest.approx(200, rel=0.15)
    # A difference holds everybody's updates, and all differences together everything.
    assert np.linalg.norm(found.client.updates.mean(axis=0)) > 0
    one, other = found.client.updates[:150], found.broker.updates[:150]
    assert np.abs(one - other).max() > 0.01
    with pytest.raises(ValueError, match="bystanders"):
        course(held, bystanders=1)
    with pytest.raises(ValueError, match="bystanders"):
        course(held, bystanders=9, delay=0.5)


def test_order_is_random_with_a_delay_and_hardly_without() -> None:
    held = shards(PARTS.train, "flipped", 0)
    spread = []
    for delay in (0.0, 0.5):
        # Without noise and at constant step, a difference's length tells how many are in it.
        seen = course(held, iterations=300, bystanders=1, delay=delay, epsilon=0.1).client
        spread.append(np.linalg.norm(seen.updates, axis=1).std())
    assert spread[1] > 1.2 * spread[0]


# -- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["flipped", "ordinary", "unlike"])
def test_without_noise_both_attacks_find_the_model(victim: Victim) -> None:
    told = judge(TABLE, replace(PLAIN, victim=victim, iterations=4000))
    assert told["client paper"]["disagreement"] < 0.03
    assert told["client moments"]["disagreement"] < 0.025
    assert told["broker moments"]["disagreement"] < 0.025
    assert told["client informed"]["angle"] < 0.05
    assert told["guess"]["disagreement"] > told["client moments"]["disagreement"]


def test_the_stronger_attack_is_stronger_where_the_attacker_takes_part() -> None:
    told = judge(TABLE, replace(PLAIN, victim="unlike", sends="honest"))
    assert told["client moments"]["disagreement"] < 0.06
    assert told["client paper"]["disagreement"] > 0.15
    assert told["guess"]["disagreement"] > 0.15


def test_bystanders_do_not_hide_anybody_from_the_broker() -> None:
    told = judge(TABLE, replace(PLAIN, victim="unlike", sends="honest", bystanders=4, delay=0.5))
    assert told["broker moments"]["disagreement"] < 0.08
    assert told["client paper"]["disagreement"] > 0.15
    assert told["guess"]["disagreement"] > 0.15


def test_noise_takes_the_advantage_and_the_informed_seldom_lose_much() -> None:
    """In the median: about every other course of noise leads the informed away from their guess
    by some points, as it is as long as they expect in every other."""
    lost = []
    for seed in range(5):
        told = judge(TABLE, replace(PLAIN, victim="ordinary", sends="honest", epsilon=0.5,
                                    iterations=4000, seed=seed))
        guess = told["guess"]["disagreement"]
        assert told["client paper"]["disagreement"] > guess + 0.1
        lost.append(told["client informed"]["disagreement"] - guess)
        assert told["ledger"] < 1.0
    assert abs(median(lost)) < 0.01 and max(lost) < 0.2


Attack = Callable[[Course, Part], np.ndarray]
ATTACKS: list[Attack] = [
    lambda found, _: shadow(found.client),
    lambda found, own: moments(found.client, *own, np.zeros(len(own[0][0]))),
    lambda found, own: moments(found.broker, *own, converged(*own)),
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_advantage_comes_from_the_victims_updates_alone(attack: Attack) -> None:
    """The same attack on the course of somebody else, or with the numbers of each update in
    another order, knows nothing of the victim."""
    held = shards(PARTS.train, "unlike", 0)
    truth, own = converged(*held[0]), held[1]
    guess = best_guess(guesses(converged(*own)), truth, TEST)["disagreement"]

    def gain(found: Course) -> float:
        return guess - distances(attack(found, own), truth, TEST)["disagreement"]

    real = course(held)
    assert gain(real) > 0.15
    assert gain(course([held[2], held[1]])) < 0.02
    mixed = rng().permutation(len(truth))
    turned = Course(*(replace(seen, updates=seen.updates[:, mixed])
                      for seen in (real.client, real.broker)), real.weights)
    assert gain(turned) < 0.4 * gain(real)


def test_the_guess_is_left_as_far_as_the_evidence_goes() -> None:
    held = shards(PARTS.train, "unlike", 0)
    truth, start, rows = converged(*held[0]), converged(*held[1]), held[1][0]
    (target, believed), _ = _expected(np.array([truth, start]), rows)
    contradiction = float(np.linalg.norm(target - believed))
    away = [float(np.linalg.norm(_nearest(rows, target, start, noise) - start))
            for noise in (1.01 * contradiction, 0.5 * contradiction, 0.0)]
    assert away[0] < 0.01 < away[1] < away[2]
    assert np.linalg.norm(_nearest(rows, target, start, 0.0) - truth) < 0.1 * away[2]
    # Where noise points nowhere, the answer is still some model.
    drowned = moments(course(held, epsilon=0.01, iterations=100).broker, *held[1], start)
    assert np.linalg.norm(drowned - start) < 2 * FARTHEST


def test_distances_and_guesses() -> None:
    truth = converged(*PARTS.train)
    assert distances(truth, truth, TEST) == {
        "disagreement": 0.0, "balanced": 0.0, "angle": pytest.approx(0.0, abs=1e-12)}
    assert distances(-truth, truth, TEST)["disagreement"] == 1.0
    assert distances(-truth, truth, TEST)["angle"] == pytest.approx(2.0)
    never, always, own, turned = guesses(truth)
    assert not (TEST @ never > 0).any()
    assert (TEST @ always > 0).all()
    assert distances(never, truth, TEST)["balanced"] == 0.5
    assert np.array_equal(own, -turned)
    # Of the guesses the best is taken, whichever that is.
    assert best_guess([never, turned, own], truth, TEST)["disagreement"] == 0.0


# -- rows --------------------------------------------------------------------------------------


def one_release(batch: int, epsilon: float | None, weights: np.ndarray, seed: int = 1
                ) -> tuple[np.ndarray, Part]:
    """A release of the real client that holds just this batch, and the batch."""
    rows, labels = (part[10 * seed:10 * seed + batch] for part in PARTS.train)
    small = task(replace(PLAIN, training={"step": 1.0, "schedule": "constant", "clip": 0.5}))
    stepper = honest(small, rows, labels, batch, epsilon, lambda count: range(1, 2))
    return -stepper.update(weights, rng(seed)).delta.astype(np.float64), (rows, labels)


PUBLIC = PARTS.train[0][15_000:], PARTS.train[1][15_000:]


def usual_at(weights: np.ndarray) -> np.ndarray:
    rows, labels = PUBLIC
    return np.asarray((1 / (1 + np.exp(-rows @ weights)) - labels)[:, None] * rows)


@pytest.mark.parametrize("trained", [False, True])
def test_a_batch_of_one_without_noise_is_the_row_itself(trained: bool) -> None:
    weights = converged(*PUBLIC) if trained else np.zeros(len(TEST[0]))
    for seed in range(1, 21):
        release, (rows, _) = one_release(1, None, weights, seed)
        found = direction(release, 1, 0.0, usual_at(weights))
        assert np.allclose(found, rows[0], atol=1e-5)  # the sign too, and so the label


def test_gradient_matching_finds_a_row_and_not_much_of_ten() -> None:
    weights = np.zeros(len(TEST[0]))
    one = []
    for seed in range(1, 9):
        release, (rows, _) = one_release(1, None, weights, seed)
        one += likeness(match(release, weights, 1, 0.5, 0.0, PUBLIC[0], rng(seed)), rows).tolist()
    assert np.median(one) > 0.98
    release, (rows, _) = one_release(10, None, weights)
    found = match(release, weights, 10, 0.5, 0.0, PUBLIC[0], rng())
    assert found.shape == rows.shape
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0)
    assert likeness(found, rows).max() < 0.98


def test_the_slope_of_gradient_matching() -> None:
    d, chance = 4, rng()
    state = chance.standard_normal((2, 3, d + 1))
    fixed = (chance.standard_normal(d), chance.standard_normal(d), 0.9, 0.3,
             chance.standard_normal(d), np.tril(chance.standard_normal((d, d))) + 2 * np.eye(d))
    _, slope = _mismatch(state, *fixed)
    for place in np.ndindex(state.shape):
        aside = np.zeros_like(state)
        aside[place] = 1e-6
        change = (_mismatch(state + aside, *fixed)[0] - _mismatch(state - aside, *fixed)[0])
        assert slope[place] == pytest.approx(change[place[0]] / 2e-6, rel=1e-4, abs=1e-5)


def test_noise_hides_a_row_from_one_release_and_not_from_thousands() -> None:
    weights = np.zeros(len(TEST[0]))
    rows, labels = PARTS.train[0][:1], PARTS.train[1][:1]
    small = task(replace(PLAIN, training={"step": 1.0, "schedule": "constant", "clip": 0.5}))
    stepper = honest(small, rows, labels, 1, 10.0, lambda count: range(1, 2))
    many = -np.array(
        [stepper.update(weights, chance).delta for chance in [rng()] for _ in range(3000)])
    variance = noise_variance(len(weights), 1, 0.5, 10.0)
    assert many.var(axis=0).mean() == pytest.approx(variance, rel=0.1)
    usual = usual_at(weights)
    each = [float(likeness(direction(one, 1, variance, usual)[None], rows)[0])
            for one in many[:300]]
    assert np.mean(each) < 0.4
    whole = direction(many.mean(axis=0), 1, variance / 3000, usual)
    assert likeness(whole[None], rows)[0] > 0.95


def test_blind_guesses_see_nothing_and_likeness_is_of_features() -> None:
    guessed = blind(PUBLIC[0], rng())
    assert all(guess.shape == (len(TEST[0]),) for guess in guessed)
    rows = TEST[:5]
    assert np.allclose(likeness(rows, rows), 1.0)
    moved = rows.copy()
    moved[:, -1] = 7.0
    assert np.allclose(likeness(moved, rows), 1.0)
    assert likeness(-rows[:1], rows[:1])[0] == pytest.approx(-1.0)


def test_membership_is_above_chance_for_members_only() -> None:
    weights = np.zeros(len(TEST[0]))
    found: dict[str, list[float]] = {"members": [], "strangers": []}
    for seed in range(30):
        order = rng(seed).permutation(15_000)
        inside, outside, third = (
            (PARTS.train[0][i], PARTS.train[1][i])
            for i in (order[:10], order[10:210], order[210:220]))
        gradients = Noiseless(
            task(replace(PLAIN, training={"step": 1.0, "schedule": "constant"})),
            *inside, 10, lambda count: range(1, 2))
        release = -gradients.update(weights, rng(seed)).delta.astype(np.float64)
        for name, some in (("members", inside), ("strangers", third)):
            rows, labels = (np.concatenate(both) for both in zip(some, outside, strict=True))
            scores = membership(release, weights, rows, labels, PUBLIC)
            found[name].append(auc(scores, np.arange(len(scores)) < 10))
    assert np.mean(found["members"]) > 0.65
    assert np.mean(found["strangers"]) == pytest.approx(0.5, abs=0.06)


# -- the experiments ---------------------------------------------------------------------------


@pytest.mark.parametrize("module", [fig8, fig9])
@pytest.mark.parametrize("quick", [True, False])
def test_cells_are_told_apart(module: ModuleType, quick: bool) -> None:
    cells = module.cells(quick, None)
    assert len({key_of(module.NAME, cell, "d") for cell in cells}) == len(cells)
    assert len(module.cells(quick, 2)) < len(module.cells(quick, 3))
    assert {cell["part"] for cell in cells} == (
        {"ideal", "rows", "repeat", "members"} if module is fig8 else {"bystanders"})


def fabricate(cell: Cell) -> Outcome:
    """A result of nothing: the guess errs by 20 %, one attack by 15, the others by 30."""
    if cell["part"] == "rows":
        return {"guess": 0.5} | {f"{name}{more}": 0.25 for name in ("direction", "match")
                                 for more in ("", "_bare", "_strangers", "_strangers_bare")}
    if cell["part"] == "repeat":
        return {"guess": 0.5, "by_releases": [0.25] * len(cell["releases"]),
                "ledger": [1.0] * len(cell["releases"])}
    if cell["part"] == "members":
        return {"auc": 0.625, "ledger": 2.0}
    told: Outcome = {"ledger": None}
    for name in ("guess", "others", "constant", *(
            f"{seat} {attack}" for seat in SEATS for attack in ATTACK_NAMES)):
        error = {"guess": 0.2, "client informed": 0.15}.get(name, 0.3)
        told[name] = {"disagreement": error, "balanced": error, "angle": error}
    return told


def test_tables_and_plots(tmp_path: Path) -> None:
    finished = [Finished(cell, fabricate(cell)) for module in (fig8, fig9)
                for cell in module.cells(True, 1)]
    page = io.StringIO()
    Console(file=page, width=300).print(*inversion_report.tables(finished))
    text = page.getvalue()
    assert "15.0 ± 0.0 (+5.0)" in text
    assert "30.0 ± 0.0 (-10.0)" in text
    assert "+5.0 at ε ∞" in text
    assert "the broker, from whom no bystander hides you: +0.0 at ε 0.5" in text
    assert "0.250 (-0.25 | +0.00)" in text
    assert "62.5" in text
    assert text.count("For you who give data:") == 3 + 3 + 4
    assert {path.name for path in inversion_report.plots(finished, tmp_path)} == {
        f"{name}.{kind}" for name in ("figure8", "rows", "figure9") for kind in ("png", "svg")}
    assert inversion_report.tables([]) == []
    assert inversion_report.plots([], tmp_path) == []


@pytest.mark.parametrize("part", ["rows", "repeat", "members"])
def test_parts_about_rows_succeed_without_noise(part: str) -> None:
    cell = next(c for c in fig8.cells(True, 1) if c["part"] == part and c["epsilon"] is None)
    told = fig8.run({**cell, "draws": 4}, None)
    if part == "rows":
        assert told["direction"] > 0.999 > told["direction_strangers"]
        assert told["direction_bare"] == 1.0
    elif part == "repeat":
        assert min(told["by_releases"]) > 0.999
    else:
        assert told["auc"] > 0.6
