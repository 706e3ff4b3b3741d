"""How the validation loss lies: exact directions, and how sure the broker is of them."""

from __future__ import annotations

import numpy as np
import pytest
from broker_world import make_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.objective import OBJECTIVES
from broker.landscape import RIDGE, Landscape, contrast, mixture, separation
from client.noise import clip_rows

LOGISTIC = OBJECTIVES["logistic"]
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(4, 30), st.integers(2, 30))

LINE = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])


def classes(rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Their means: ones, zeros."""
    return rows[labels == 1].mean(axis=0), rows[labels == 0].mean(axis=0)


def look(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, clip: float = 0.5) -> Landscape:
    land = Landscape(LOGISTIC, rows, labels, clip)
    land.look(weights)
    return land


# -- contrast ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(SEEDS, SHAPES, st.floats(0, 3))
def test_the_contrast_has_length_1_and_both_classes_lie_equally_far_on_their_own_sides(
        seed, shape, gap):
    rows, labels = make_rows(seed, *shape, gap=gap)
    q = contrast(rows, labels)
    ones, zeros = classes(rows, labels)
    assert np.linalg.norm(q) == pytest.approx(1.0)
    assert ones @ q == pytest.approx(-(zeros @ q), abs=1e-9) and ones @ q > 0


@settings(deadline=None)
@given(SEEDS, SHAPES, st.randoms())
def test_the_order_of_rows_does_not_matter_and_flipped_labels_point_the_other_way(
        seed, shape, rng):
    rows, labels = make_rows(seed, *shape)
    order = list(range(len(rows)))
    rng.shuffle(order)
    q = contrast(rows, labels)
    assert np.allclose(contrast(rows[order], labels[order]), q, atol=1e-9)
    assert np.allclose(contrast(rows, 1 - labels), -q, atol=1e-9)


@settings(deadline=None)
@given(SEEDS, st.tuples(st.integers(8, 20), st.integers(2, 8)))
def test_more_features_than_rows_are_solved_in_another_way_with_the_same_result(seed, shape):
    rows, labels = make_rows(seed, *shape)
    n, d = shape
    wide = np.hstack([rows, np.zeros((n, n + 1))])
    q = contrast(wide, labels)
    assert np.allclose(q[:d], contrast(rows, labels), atol=1e-9)
    assert np.allclose(q[d:], 0, atol=1e-12)


def test_the_contrast_is_what_its_equations_say():
    rows, labels = make_rows(3, 50, 6)
    ones, zeros = classes(rows, labels)
    moments = rows.T @ rows / 50 + RIDGE * np.eye(6)
    # The greatest difference of the classes for its second moment, among those in the balance.
    s = ones + zeros
    free = np.linalg.svd(s[None])[2][1:]
    expected = free.T @ np.linalg.solve(free @ moments @ free.T, free @ (ones - zeros))
    assert np.allclose(contrast(rows, labels), expected / np.linalg.norm(expected), atol=1e-9)


def test_a_client_whose_rows_have_one_answer_only_looks_like_any_other():
    rows, labels = make_rows(4, 200, 8, gap=2.0)
    q = contrast(rows, labels)
    down = -LOGISTIC.gradients(np.zeros(8), rows, labels)
    sides = [down[labels == label].mean(axis=0) @ q for label in (0, 1)]
    assert sides[0] == pytest.approx(sides[1], abs=1e-9) and sides[0] > 0
    flipped = -LOGISTIC.gradients(np.zeros(8), rows, 1 - labels)
    assert flipped.mean(axis=0) @ q == pytest.approx(-down.mean(axis=0) @ q)


def test_of_very_many_rows_with_very_many_features_some_are_enough(monkeypatch):
    rows, labels = make_rows(5, 310, 110, gap=2.0)
    whole = contrast(rows, labels)
    monkeypatch.setattr("broker.landscape._MOST", 104)
    some = contrast(rows, labels)
    ones, zeros = classes(rows, labels)
    # The balance is that of all rows, and exact; only the curvature is that of some.
    assert ones @ some == pytest.approx(-(zeros @ some), abs=1e-9)
    assert 0.8 < some @ whole < 1 - 1e-6


def test_classes_that_do_not_differ_have_no_contrast():
    rows, _ = make_rows(6, 5, 4)
    both, labels = np.vstack([rows, rows]), np.repeat([0.0, 1.0], 5)
    assert not contrast(both, labels).any()
    assert separation(both, labels)[0] <= 0.2


def test_rows_on_one_line_are_told_apart_whatever_rounding_says():
    v = make_rows(7, 2, 5)[0][0]
    for n in range(1, 12):
        rows = np.vstack([np.tile(v, (n, 1)), np.tile(-v, (7, 1))])
        q = contrast(rows, np.repeat([1.0, 0.0], [n, 7]))
        assert np.allclose(q, v, atol=1e-6), n


# -- mixture and common ------------------------------------------------------------------------


@settings(deadline=None)
@given(SEEDS, st.integers(1, 6), st.floats(-3, 3), st.lists(st.floats(0, 1), max_size=20))
def test_no_mixture_is_shorter(seed, d, shift, shares):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=d) + shift, rng.normal(size=d) + shift
    share = mixture(first, second)
    assert 0 <= share <= 1
    shortest = np.linalg.norm(share * first + (1 - share) * second)
    for other in (0.0, 1.0, *shares):
        assert shortest <= np.linalg.norm(other * first + (1 - other) * second) + 1e-12


def test_exact_mixtures():
    x, y = np.array([1.0, 0]), np.array([0, 1.0])
    assert mixture(x, y) == 0.5 and mixture(x, 3 * y) == pytest.approx(0.9)
    assert mixture(x, 2 * x) == 1.0 and mixture(3 * x, 2 * x) == 0.0 and mixture(x, x) == 0.5
    assert mixture(x, -x) == 0.5 and mixture(0 * x, 0 * y) == 0.5


@settings(deadline=None)
@given(SEEDS, SHAPES, st.floats(0, 30), st.floats(0.05, 2))
def test_both_classes_loss_falls_along_the_common_direction(seed, shape, size, clip):
    rows, labels = make_rows(seed, *shape)
    weights = size * np.random.default_rng(seed).normal(size=shape[1])
    land = look(rows, labels, weights, clip)
    down = clip_rows(-LOGISTIC.gradients(weights, rows, labels), clip)
    ones, zeros = classes(down, labels)
    square = land.common @ land.common
    assert ones @ land.common >= square - 1e-12 and zeros @ land.common >= square - 1e-12
    # Gradients are clipped as the clients clip theirs.
    assert np.allclose(land.downhill, down.mean(axis=0), atol=1e-12)
    assert 0 <= land.certain <= np.linalg.norm(land.common) + 1e-12
    assert np.allclose(land.losses, LOGISTIC.losses(weights[None], rows, labels)[0])


def test_piece_by_piece_gives_the_same_numbers(monkeypatch):
    rows, labels = make_rows(8, 101, 7)
    weights = np.linspace(-3, 3, 7)
    whole = look(rows, labels, weights, 0.2)
    for cells in (1, 7, 15, 300):
        monkeypatch.setattr("broker.landscape._CELLS", cells)
        land = look(rows, labels, weights, 0.2)
        for name in ("downhill", "common", "certain", "losses"):
            assert np.allclose(getattr(land, name), getattr(whole, name), rtol=1e-9, atol=1e-12)


def test_how_certain_is_the_length_beyond_chance():
    rows, labels = make_rows(9, 400, 5, gap=3.0)
    land = look(rows, labels, np.zeros(5))
    assert 0.5 * np.linalg.norm(land.common) < land.certain < np.linalg.norm(land.common)
    assert look(LINE, np.array([1.0, 1, 0, 0]), np.zeros(2)).certain > 0


@pytest.mark.parametrize("one", [0.0, 1.0])
def test_of_a_class_with_a_single_row_nothing_is_certain(one):
    # A single row has no spread: that is not certainty.
    labels = np.array([one, one, one, 1 - one])
    assert look(LINE[[0, 0, 1, 2]], labels, np.zeros(2)).certain == 0.0


def test_by_chance_alone_it_is_seldom_certain():
    # Answers that are drawn by lot; at the weights 0 the classes' descents are opposed then.
    certain = 0
    for seed in range(200):
        rows, _ = make_rows(seed, 60, 6)
        labels = np.random.default_rng(seed).permutation(np.repeat([0.0, 1.0], 30))
        certain += look(rows, labels, np.zeros(6)).certain > 0
    # Were it so once in 20 times, 20 or more of 200 would come once in 350.
    assert certain < 20


# -- separation --------------------------------------------------------------------------------


def test_nothing_separates_labels_drawn_by_lot():
    scores = []
    for seed in range(300):
        rows, _ = make_rows(seed, 60, 5)
        labels = np.random.default_rng(seed).permutation(np.repeat([0.0, 1.0], 30))
        mean, error = separation(rows, labels)
        scores.append(mean / error)
    # Four standard errors: wrong once in 16,000. In the mean it is below 0 rather than above, as
    # a row that is left out leans its class's mean away from itself.
    assert np.mean(scores) < 4 * np.std(scores) / np.sqrt(300)
    # Folds share most of their rows, and so err together: the spread is about 1.5, not 1.
    assert np.std(scores) < 1.75 and np.mean(np.array(scores) > 2) < 0.12


def test_classes_that_differ_are_told_apart_surely_and_about_so_far_as_on_fresh_rows():
    rows, labels = make_rows(10, 100, 6, gap=3.0)
    mean, error = separation(rows, labels)
    assert mean > 10 * error > 0
    fresh, said = make_rows(11, 4000, 6, gap=3.0)
    q = contrast(rows, labels)
    ones, zeros = classes(fresh, said)
    assert mean == pytest.approx(0.5 * (ones - zeros) @ q, abs=4 * error)
    flipped, same = separation(rows, 1 - labels)
    assert flipped == pytest.approx(mean) and same == pytest.approx(error)


@pytest.mark.parametrize("ones", [1, 9])
def test_a_single_row_of_a_class_says_nothing(ones):
    rows, _ = make_rows(12, 10, 3)
    labels = (np.arange(10) < ones).astype(float)
    assert separation(rows, labels) == (0.0, float("inf"))


# -- odd sets ----------------------------------------------------------------------------------


ODD = {
    "all the same": (np.tile([0.6, 0.8], (6, 1)), np.array([0.0, 1, 0, 1, 0, 1])),
    "each row twice": (np.repeat(make_rows(1, 6, 4)[0], 2, axis=0), np.tile([0.0, 1.0], 6)),
    "a constant feature": (np.tile([0.0, 1.0, 0.0], (8, 1)), np.tile([0.0, 1.0], 4)),
    "one row each": (np.eye(2), np.array([0.0, 1.0])),
    "one feature": (np.array([[1.0], [-1], [1], [-1]]), np.array([1.0, 0, 1, 0])),
    "wide": make_rows(2, 20, 3000),
    "tall": make_rows(3, 3000, 2),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_set_gives_finite_numbers(kind):
    rows, labels = ODD[kind]
    q = contrast(rows, labels)
    assert np.isfinite(q).all()
    assert np.linalg.norm(q) == pytest.approx(1) or not q.any()
    mean, error = separation(rows, labels)
    assert np.isfinite(mean) and error >= 0
    for size in (0.0, 1.0, 1e30):
        land = look(rows, labels, np.full(rows.shape[1], size))
        for value in (land.downhill, land.common, land.certain, land.losses):
            assert np.isfinite(value).all()
