"""Counting those who are active as they come and go gives what going through all of them gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.problems import PeerProblem
from accord.task import Clients
from broker.registry import SESSIONS_PER_PLACE, Registry

SILENCE = 30.0
PLACES = 4
NAMES = [bytes([n]) for n in range(12)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "heard", "leave", "strike", "forget", "look"]),
        st.sampled_from(NAMES), st.integers(1, PLACES),
        # Just within the silence, just beyond it, and at the very moment.
        st.sampled_from([0.0, 0.1, 5.0, 10.0, 29.9, 30.0, 30.1, 1000.0])),
    max_size=60)


def naive(registry: Registry, now: float) -> tuple[int, int]:
    """What is asked, by the definition."""
    wishes = [m.min_clients for m in registry.members.values() if m.seen >= now - SILENCE]
    return len(wishes), max(2, *wishes, 0)


def act(registry: Registry, what: str, name: bytes, k: int, now: float) -> None:
    try:
        if what == "admit":
            registry.admit(name, k, now, now)
        elif name in registry:
            acts: dict[str, Any] = {
                "heard": lambda: registry.heard(name, now, now),
                "leave": lambda: registry.leave(name),
                "strike": lambda: registry.strike(name),
                "forget": lambda: registry.forget(name),
                "look": lambda: registry.enough(now)}
            acts[what]()
    except PeerProblem as problem:
        assert problem.kind.code == "full"


@pytest.mark.slow
@settings(max_examples=300)
@given(STEPS)
def test_standing_is_always_that_of_going_through_all(steps: list[Any]) -> None:
    registry = Registry(Clients(minimum=2, maximum=PLACES, silence=SILENCE), evict=2)
    now = 0.0
    for what, name, k, later in steps:
        now += later
        act(registry, what, name, k, now)
        assert registry.standing(now) == naive(registry, now)
        assert registry.standing(now)[0] == len(registry.active(now)) <= PLACES


@given(STEPS, st.lists(st.floats(-100.0, 100.0), min_size=60, max_size=60))
def test_also_for_a_clock_that_goes_back(steps: list[Any], moves: list[float]) -> None:
    registry = Registry(Clients(minimum=2, maximum=99, silence=SILENCE), evict=2)
    now = 0.0
    for (what, name, k, _), move in zip(steps, moves, strict=False):
        now += move
        act(registry, what, name, k, now)
        assert registry.standing(now) == naive(registry, now)


def test_asking_goes_through_nobody_who_has_not_changed() -> None:
    """With a thousand sessions as with ten: what is looked at is counted, not timed."""

    class Counted(dict[bytes, Any]):
        looked = 0

        def __getitem__(self, key: bytes) -> Any:
            Counted.looked += 1
            return super().__getitem__(key)

        def values(self) -> Any:
            Counted.looked += len(self)
            return super().values()

        def items(self) -> Any:
            Counted.looked += len(self)
            return super().items()

    costs = []
    for places in (10, 1000):
        registry = Registry(Clients(minimum=1, maximum=places, silence=SILENCE))
        registry.members = registry._roll._members = Counted()
        names = [n.to_bytes(4, "big") for n in range(places)]
        for name in names:
            registry.admit(name, 1, 0.0)
        Counted.looked = 0
        for i in range(100):
            registry.heard(names[i % places], 1.0 + i / 100)
            assert registry.enough(1.0 + i / 100)
        costs.append(Counted.looked)
    assert costs[0] == costs[1], costs
    assert SESSIONS_PER_PLACE > 1
