"""Every refusal once: well formed, with its own code, and harmless when a stranger sends it."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord import problems
from accord.problems import (
    FULL,
    INTERNAL,
    KINDS,
    MALFORMED,
    NOT_FOUND,
    TOO_FEW_CLIENTS,
    TRAVELS,
    Kind,
    PeerProblem,
    Problem,
    from_wire,
)

ALL = sorted(KINDS.values(), key=lambda kind: kind.code)
EXITS = {value for name, value in vars(problems).items() if name.startswith("EXIT_")}


def fields(kind: Kind) -> dict[str, str]:
    """The fields of a sentence and their format specifications."""
    parsed = string.Formatter().parse(kind.sentence)
    return {name: spec or "" for _, name, spec, _ in parsed if name is not None}


def example(kind: Kind) -> dict[str, object]:
    return {name: 3.25 if spec else "something" for name, spec in fields(kind).items()}


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.code)
def test_each_sentence_formats_and_ends(kind: Kind) -> None:
    sentence = Problem(kind, **example(kind)).sentence
    assert "{" not in sentence
    assert "\n" not in sentence
    # A command that is to be typed ends its sentence bare, so that it can be copied.
    assert sentence.endswith(".") or re.search(r"; type: sudo apt-get install \w+$", sentence)
    assert not sentence.endswith("..")
    assert sentence[0].isupper() or fields(kind)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.code)
def test_each_kind_is_well_formed(kind: Kind) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)
    assert len(kind.code) <= 40
    assert 400 <= kind.http < 600
    assert kind.exit in EXITS - {problems.EXIT_BUG, problems.EXIT_INTERRUPTED}


def test_each_kind_is_a_name_of_the_module_and_no_code_is_used_twice() -> None:
    named = [value for value in vars(problems).values() if isinstance(value, Kind)]
    assert sorted(kind.code for kind in named) == sorted(KINDS)
    assert len({kind.sentence for kind in named}) == len(named)
    with pytest.raises(ValueError, match="two problems"):
        problems._kind("full", 400, 1, "Again.")


@pytest.mark.parametrize("kind", sorted(TRAVELS, key=str), ids=lambda kind: kind.code)
def test_what_travels_needs_whole_numbers_only(kind: Kind) -> None:
    numbers = dict.fromkeys(fields(kind), 7)
    assert len(numbers) <= 4
    assert all(len(name) <= 20 for name in numbers)
    problem = PeerProblem(kind, **numbers)
    assert problem.wire() == (kind.code, numbers)
    again = from_wire(*problem.wire())
    assert (again.kind, again.sentence) == (kind, problem.sentence)


@pytest.mark.parametrize("kind", [k for k in ALL if k not in TRAVELS], ids=lambda kind: kind.code)
def test_what_does_not_travel_is_an_internal_mistake_to_others(kind: Kind) -> None:
    assert Problem(kind, **example(kind)).wire() == (INTERNAL.code, {})


def test_only_whole_numbers_travel() -> None:
    problem = Problem(NOT_FOUND, path="/home/alice", flag=True, share=0.5, count=3)
    assert problem.wire() == ("not-found", {"count": 3})


@given(st.text(max_size=40) | st.sampled_from(sorted(KINDS)),
       st.dictionaries(st.text(max_size=20) | st.sampled_from(["have", "need", "limit", "k"]),
                       st.integers(-(2**63), 2**64), max_size=4))
def test_a_stranger_s_refusal_is_one_of_our_sentences(code: str, numbers: dict[str, int]) -> None:
    problem = from_wire(code, numbers)
    assert type(problem) is PeerProblem
    assert problem.kind in TRAVELS
    expected = [k.sentence for k in TRAVELS]
    assert any(re.fullmatch(re.sub(r"\\\{.*?\\\}", r"-?\\d+", re.escape(s)), problem.sentence)
               for s in expected)


@pytest.mark.parametrize(("code", "numbers"), [
    ("nothing-like-it", {}), ("", {}), ("no-file", {"path": 1, "why": 1}), ("full", {}),
    ("too-few-clients", {"have": 1}), ("full", {"maximum": 1, "kind": 2}), ("full", {"self": 1}),
    ("__class__", {}), ("budget-spent", {"spent": 1, "budget": 1, "delta": 1}),
])
def test_a_refusal_that_does_not_fit_is_malformed(code: str, numbers: dict[str, int]) -> None:
    assert from_wire(code, numbers).kind is MALFORMED


def test_numbers_too_many_change_nothing() -> None:
    assert from_wire("full", {"maximum": 3, "more": 4}).sentence == (
        PeerProblem(FULL, maximum=3).sentence)


def test_a_peer_s_fault_is_a_problem_too_and_not_the_other_way() -> None:
    assert isinstance(PeerProblem(TOO_FEW_CLIENTS, have=1, need=2), Problem)
    assert not isinstance(Problem(TOO_FEW_CLIENTS, have=1, need=2), PeerProblem)
