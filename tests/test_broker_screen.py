"""The screen: lengths are cut, exactly, and nobody is silenced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.task import Training, Validation, step_size
from broker.screen import Screen

CLIP = 0.5
ZERO = np.zeros(3)
SCHEDULES = ["constant", "1/t", "1/sqrt(t)"]


def make_screen(kind: str = "length", **training: object) -> Screen:
    defaults: dict[str, object] = {"step": 1.0, "schedule": "constant", "clip": CLIP}
    return Screen(
        Validation(screen=kind),  # type: ignore[arg-type]
        Training(**(defaults | training)))  # type: ignore[arg-type]


def send(screen: Screen, name: bytes, length: float, times: int = 1) -> float:
    """Updates so long, at a constant step of 1; how long the last one is when it is through."""
    for _ in range(times):
        update = screen.look(name, ZERO, np.array([0, length, 0]), None)
    assert update.step is not None
    return float(np.linalg.norm(update.step))


VECTORS = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3).map(np.array)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), VECTORS, VECTORS), max_size=40),
       st.sampled_from(SCHEDULES), st.sampled_from([0.0, 0.1, 1.0]),
       st.sampled_from(["length", "direction"]))
def test_no_update_is_made_longer_and_no_gradient_is_longer_than_the_clip(
        updates, schedule, regularisation, kind):
    screen = make_screen(kind, schedule=schedule, regularisation=regularisation)
    for name, sent, delta in updates:
        update = screen.look(name, sent, delta, np.ones(3) if kind == "direction" else None)
        assert np.linalg.norm(update.gradient) <= CLIP * (1 + 1e-9)
        assert update.delta is delta and update.sent is sent and update.name == name
        if update.step is not None:
            assert np.linalg.norm(update.step) <= np.linalg.norm(delta) * (1 + 1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("regularisation", [0.0, 0.25])
@pytest.mark.parametrize("times", [0.5, 1, 1.5, 1e4, 1e9])
def test_it_is_cut_at_the_clip_in_units_of_the_step(schedule, regularisation, times):
    screen = make_screen(schedule=schedule, regularisation=regularisation, step=2.0)
    sent = np.array([0.4, 0.0, -0.2])
    for t in range(1, 40):
        eta = step_size(screen._training, t)
        said = times * CLIP * np.array([0.6, 0.0, 0.8])
        delta = eta * (said - regularisation * sent)
        update = screen.look(b"a", sent, delta, None)
        kept = min(times, 1.0) * CLIP * np.array([0.6, 0.0, 0.8])
        if times <= 1 or regularisation == 0.0:
            assert np.allclose(update.step, eta * (kept - regularisation * sent), rtol=1e-9)
        else:
            # What the regularisation takes off is not cut, as no client chose it.
            assert np.allclose(update.step / eta + regularisation * sent, kept, atol=1e-6)
        assert np.allclose(update.gradient, kept)


def test_none_lets_the_same_update_through_and_measures_it():
    screen = make_screen("none")
    delta = np.array([30.0, 0, 40.0])
    update = screen.look(b"a", ZERO, delta, None)
    assert update.step is delta and np.allclose(update.gradient, [0.3, 0, 0.4])


def test_what_points_uphill_is_ignored_where_a_direction_is_given():
    screen, down = make_screen("direction"), np.array([1.0, 0, 0])
    assert screen.look(b"a", ZERO, np.array([-0.1, 9, 9]), down).step is None
    assert screen.look(b"a", ZERO, np.array([0.0, 0.1, 0]), down).step is None
    assert np.array_equal(screen.look(b"a", ZERO, down / 10, down).step, down / 10)
    assert np.allclose(screen.look(b"a", ZERO, down * 10, down).step, down / 2)


# -- the quietest client -----------------------------------------------------------------------


def test_nobody_counts_for_more_than_twice_as_much_as_the_quietest():
    screen = make_screen()
    for _ in range(20):
        send(screen, b"quiet", 0.2)
        send(screen, b"usual", 0.3)
        loud = send(screen, b"loud", 9.0)
    assert loud == pytest.approx(0.4)
    assert send(screen, b"usual", 0.3) == 0.3


def test_a_client_binds_others_only_once_it_is_known_and_while_it_is_there():
    screen = make_screen()
    send(screen, b"quiet", 0.2, 4)
    assert send(screen, b"loud", 9.0, 12) == CLIP, "four updates are not enough"
    send(screen, b"quiet", 0.2)
    assert send(screen, b"loud", 9.0, 8) == pytest.approx(0.4)
    assert send(screen, b"loud", 9.0, 2 * 20 + 8) == CLIP, "it has not been heard of for long"
    send(screen, b"quiet", 0.2)
    assert send(screen, b"loud", 9.0, 8) == pytest.approx(0.4)
    screen.forget(b"quiet")
    assert send(screen, b"loud", 9.0, 8) == CLIP


def test_one_who_sends_nothing_cannot_silence_the_others():
    screen = make_screen()
    for _ in range(50):
        send(screen, b"zeros", 0.0)
        honest = send(screen, b"honest", 0.14)
        loud = send(screen, b"loud", 9.0)
    assert honest == 0.14 and loud == pytest.approx(0.3 * CLIP)


def test_one_who_was_struck_binds_nobody():
    screen = make_screen()
    for _ in range(10):
        send(screen, b"zeros", 0.0)
        loud = send(screen, b"loud", 9.0)
    assert loud == pytest.approx(0.3 * CLIP)
    screen.struck(b"zeros")
    for _ in range(10):
        send(screen, b"zeros", 0.0)
        loud = send(screen, b"loud", 9.0)
    assert loud == CLIP


# -- one who comes late ------------------------------------------------------------------------


def test_one_who_comes_late_makes_no_longer_steps_than_the_others():
    screen = make_screen(schedule="1/t")
    for t in range(1, 33):
        assert send(screen, b"a", 9.0) == pytest.approx(CLIP / t)
        # One had sent one when the other came.
        assert send(screen, b"b", 9.0) == pytest.approx(CLIP / (t + 1))
    # Now and then it is looked at how many they have sent: the last time it was 29 each.
    for t in (30, 31, 32):
        assert send(screen, b"late", 9.0) == pytest.approx(CLIP / t)


def test_those_who_have_left_do_not_make_the_steps_of_newcomers_shorter():
    screen = make_screen(schedule="1/t")
    names = [b"%d" % k for k in range(20)]
    for _ in range(8):
        for name in names:
            send(screen, name, 9.0)
    for name in names[2:]:
        screen.forget(name)
    for _ in range(8):
        for name in names[:2]:
            send(screen, name, 9.0)
    assert send(screen, b"late", 9.0) == pytest.approx(CLIP / 14)


def test_nor_does_a_restart():
    screen, again = make_screen(schedule="1/t"), make_screen(schedule="1/t")
    names = [b"%d" % k for k in range(20)]
    for _ in range(16):
        for name in names:
            send(screen, name, 9.0)
    for name in names:
        again.restore(name, screen.record(name))
    for _ in range(9):
        send(again, names[0], 9.0)
    assert send(again, b"late", 9.0) == pytest.approx(CLIP / 26, rel=0.3)


# -- absurd updates, and crashes ---------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]),
                          st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3)),
                min_size=1, max_size=20),
       st.sampled_from(SCHEDULES), st.sampled_from([1e-9, 1.0, 1e9]),
       st.sampled_from([1e-9, 0.5, 1e9]), st.sampled_from([0.0, 1.0]),
       st.sampled_from(["length", "direction", "none"]))
def test_absurd_updates_give_finite_ones(updates, schedule, step, clip, regularisation, kind):
    screen = make_screen(kind, schedule=schedule, step=step, clip=clip,
                         regularisation=regularisation)
    for name, delta in updates:
        update = screen.look(name, np.array([1e30, 0, -1e30]), np.array(delta),
                             np.ones(3) if kind == "direction" else None)
        assert np.isfinite(update.gradient).all()
        assert np.linalg.norm(update.gradient) <= clip * (1 + 1e-9)
        assert update.step is None or np.isfinite(update.step).all()
        assert np.isfinite(screen._length[name])


def test_an_absurd_length_is_cut_like_any_other_and_forgotten_in_time():
    screen = make_screen()
    assert send(screen, b"a", 1e30) == pytest.approx(CLIP)
    send(screen, b"a", 0.1, 400)
    assert send(screen, b"b", 9.0, 8) == pytest.approx(0.2, rel=1e-3)


def test_what_is_known_outlives_a_crash_and_what_is_forgotten_does_not():
    screen = make_screen(schedule="1/t")
    send(screen, b"a", 0.2, 9)
    record = screen.record(b"a")
    again = make_screen(schedule="1/t")
    assert again.restore(b"a", record + b"the rest") == b"the rest"
    assert again.record(b"a") == record
    # The schedule goes on where it was: the tenth step, of a tenth.
    assert send(again, b"a", 9.0) == pytest.approx(CLIP / 10)
    screen.forget(b"a")
    assert screen.record(b"a") == bytes(len(record)) == make_screen().record(b"z")
    assert again.restore(b"z", bytes(len(record))) == b"" and b"z" not in again._count


# -- updates of several steps ------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(1, 9), VECTORS),
                max_size=30), st.sampled_from(SCHEDULES), st.sampled_from([0.0, 0.1]))
def test_an_update_of_several_steps_is_measured_by_the_sum_of_their_sizes(
        updates, schedule, regularisation):
    screen = make_screen(schedule=schedule, regularisation=regularisation)
    taken: dict[bytes, int] = {}
    for name, steps, gradient in updates:
        first = taken.get(name, 0) + 1
        taken[name] = first + steps - 1
        eta = sum(step_size(screen._training, t) for t in range(first, first + steps))
        said = gradient * min(1.0, 0.3 * CLIP / max(1e-9, np.linalg.norm(gradient)))
        delta = eta * (said - regularisation * np.ones(3))
        update = screen.look(name, np.ones(3), delta, None, steps)
        assert np.allclose(update.gradient, said, atol=1e-6) and update.steps == steps


def test_an_update_of_several_steps_may_be_as_many_times_as_long():
    screen = make_screen()
    for steps in (1, 7, 1000):
        update = screen.look(b"a", ZERO, np.array([0, 1e6, 0]), None, steps)
        assert np.linalg.norm(update.step) == pytest.approx(steps * CLIP)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0.0, 5.0)), min_size=2, max_size=6),
       st.floats(0.01, 0.2))
def test_no_honest_client_is_cut_harder_than_if_all_made_one_step_each_time(others, signal):
    """Lengths are signal and noise of as many steps, without chance."""
    def shares(count):
        screen = make_screen()
        found = []
        for _ in range(9):
            for k, (steps, noise) in enumerate(others):
                steps = count(steps)
                length = np.hypot(signal, noise / np.sqrt(steps))
                update = screen.look(b"%d" % k, ZERO, steps * np.array([0, length, 0]), None, steps)
                found.append(np.linalg.norm(update.step) / (steps * length))
        return np.array(found[-len(others):])

    assert (shares(lambda steps: steps) >= shares(lambda steps: 1) * (1 - 1e-9)).all()


@settings(deadline=None)
@given(st.floats(1e-6, 10.0), st.integers(1, 1000))
def test_whoever_says_too_many_steps_gains_nothing_that_as_many_updates_would_not_give(
        length, lies):
    def world():
        screen = make_screen()
        for _ in range(20):
            send(screen, b"usual", 0.2)
        return screen

    one, many = world(), world()
    at_once = many.look(b"x", ZERO, np.array([0, length * lies, 0]), None, lies).step
    assert np.linalg.norm(at_once) <= lies * send(one, b"x", length) * (1 + 1e-9)


def test_those_who_make_many_steps_do_not_bind_those_who_make_one():
    screen = make_screen()
    for _ in range(20):
        # The same noise, of 0.4 in each step.
        screen.look(b"many", ZERO, 100 * np.array([0, 0.04, 0]), None, 100)
        single = send(screen, b"one", 0.4)
    assert single == 0.4


def test_a_liar_about_steps_makes_newcomers_steps_no_shorter_after_a_restart():
    screen, again = make_screen(schedule="1/t"), make_screen(schedule="1/t")
    for _ in range(10):
        for name in (b"a", b"b", b"c"):
            send(screen, name, 0.1)
        screen.look(b"liar", ZERO, ZERO, None, 1000)
    for name in (b"a", b"b", b"c", b"liar"):
        again.restore(name, screen.record(name))
    assert send(again, b"late", 9.0) == pytest.approx(CLIP / 11, rel=0.3)


def test_whoever_was_restored_and_forgotten_is_no_trouble():
    screen = make_screen()
    send(screen, b"a", 0.1, 9)
    again = make_screen()
    again.restore(b"a", screen.record(b"a"))
    again.forget(b"a")
    assert send(again, b"b", 0.1) == 0.1
