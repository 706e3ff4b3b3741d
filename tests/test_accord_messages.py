"""The wire: what goes out comes back, and whatever comes in is a message or one exception."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from accord import messages
from accord.messages import (
    MAX_DIMENSION,
    SALT_BYTES,
    SMALL_LIMIT,
    TASK_LIMIT,
    VALIDATION_LIMIT,
    AdmissionPuzzle,
    Curate,
    Curated,
    End,
    FromClient,
    Hello,
    Join,
    Leave,
    Pull,
    Push,
    Refused,
    SignedTask,
    Status,
    Turn,
    Wait,
    Welcome,
    Work,
    decode,
    encode,
    push_limit,
    refused,
    turn_limit,
    vector_from_wire,
    vector_to_wire,
)
from accord.problems import (
    FULL,
    INTERNAL,
    MALFORMED,
    NO_FILE,
    TOO_FEW_CLIENTS,
    TOO_LARGE,
    PeerProblem,
    Problem,
)

TYPES = sorted(
    (kind for kind in vars(messages).values()
     if isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct),
    key=lambda kind: kind.__name__)
LIMIT = 100_000
FROM_BROKER = Turn
FOUND = 300
"""Longest string, list or byte string that is drawn: beyond it only the limits are of interest."""


def drawn(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a wire type, made from the same annotations that decoding is bounded by."""
    limits: dict[str, Any] = {}
    if get_origin(hint) is Annotated:
        hint, *metas = get_args(hint)
        for meta in metas:
            limits |= {name: value for name in ("ge", "le", "lt", "min_length", "max_length")
                       if (value := getattr(meta, name)) is not None}
    if isinstance(hint, type) and issubclass(hint, Struct):
        hints = get_type_hints(hint, include_extras=True)
        return st.builds(hint, **{name: drawn(inner) for name, inner in hints.items()})
    origin = get_origin(hint)
    sizes = {"min_size": limits.get("min_length", 0),
             "max_size": min(limits.get("max_length", FOUND), FOUND)}
    if origin in (Union, types.UnionType):
        return st.one_of(*map(drawn, get_args(hint)))
    if origin is Literal:
        return st.sampled_from(get_args(hint))
    if origin is tuple:
        return st.lists(drawn(get_args(hint)[0]), **sizes).map(tuple)
    if origin is dict:
        return st.dictionaries(*map(drawn, get_args(hint)), **sizes)
    if hint is types.NoneType:
        return st.none()
    if hint is bytes:
        return st.binary(**sizes)
    if hint is str:
        return st.text(st.characters(exclude_categories=["Cs"]), **sizes)
    if hint is int:
        low = limits.get("ge", -(2**63))
        return st.integers(low, limits.get("le", limits.get("lt", 2**64) - 1))
    assert hint is float
    return st.floats(limits["ge"], limits["le"])


ANY_MESSAGE = st.one_of(*map(drawn, TYPES))
KINDS = st.sampled_from([*TYPES, FromClient, FROM_BROKER])


def unbounded(hint: Any, place: str) -> list[str]:
    """The places of a type whose size or range no annotation bounds."""
    meta: list[Meta] = []
    if get_origin(hint) is Annotated:
        hint, *found = get_args(hint)
        meta = [m for m in found if isinstance(m, Meta)]

    def bounded(*names: str) -> bool:
        return any(getattr(m, name) is not None for m in meta for name in names)

    if isinstance(hint, type) and issubclass(hint, Struct):
        hints = get_type_hints(hint, include_extras=True)
        return [bad for name, inner in hints.items()
                for bad in unbounded(inner, f"{place}.{name}")]
    origin = get_origin(hint)
    if origin is Literal or hint is types.NoneType or hint is bool:
        return []
    if origin in (Union, types.UnionType):
        return [bad for inner in get_args(hint) for bad in unbounded(inner, place)]
    if hint in (bytes, str) or origin in (list, dict, tuple, set):
        inner = [bad for part in get_args(hint) if part is not ...
                 for bad in unbounded(part, f"{place}[]")]
        return inner + ([] if bounded("max_length") else [place])
    if hint in (int, float):
        return [] if bounded("ge", "gt") and bounded("le", "lt") else [place]
    return [f"{place}: {hint} is not known to this test"]


# -- bounds ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_field_of_every_message_is_bounded(kind: type[Struct]) -> None:
    assert unbounded(kind, kind.__name__) == []


def test_the_walk_itself_finds_what_is_not_bounded() -> None:
    class Loose(Struct):
        raw: bytes
        at_least: Annotated[int, Meta(ge=0)]
        names: Annotated[list[str], Meta(max_length=3)]
        maybe: float | None
        fine: Annotated[bytes, Meta(max_length=3)]

    class Outer(Struct):
        inner: Loose

    # Local classes: get_type_hints needs to be told of them.
    globals()["Loose"] = Loose
    try:
        assert unbounded(Outer, "o") == [
            "o.inner.raw", "o.inner.at_least", "o.inner.names[]", "o.inner.maybe"]
    finally:
        del globals()["Loose"]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_message_is_frozen_and_knows_all_its_fields(kind: type[Struct]) -> None:
    config = kind.__struct_config__
    assert config.frozen
    assert config.forbid_unknown_fields


# -- there and back --------------------------------------------------------------------------
@given(ANY_MESSAGE)
def test_what_is_encoded_is_decoded(message: Struct) -> None:
    assert decode(encode(message), type(message), LIMIT) == message


@given(st.one_of(*map(drawn, (Pull, Push, Leave))))
def test_a_client_s_messages_are_told_apart(message: Struct) -> None:
    again = decode(encode(message), FromClient, LIMIT)
    assert type(again) is type(message)
    assert again == message


@given(drawn(Turn))
def test_what_is_next_is_told_apart(turn: Turn) -> None:
    assert type(decode(encode(turn), Turn, LIMIT).next) is type(turn.next)


# -- what strangers send ---------------------------------------------------------------------
def refused_or_valid(raw: bytes, kind: Any, limit: int = SMALL_LIMIT) -> None:
    try:
        message = decode(raw, kind, limit)
    except PeerProblem as problem:
        assert problem.kind in (MALFORMED, TOO_LARGE)
        return
    # What was let in is a message that could be sent as it is.
    again: Struct = message
    assert decode(encode(again), kind, LIMIT) == message


@given(st.binary(max_size=600), KINDS)
def test_arbitrary_bytes_raise_nothing_else(raw: bytes, kind: Any) -> None:
    refused_or_valid(raw, kind)


@given(ANY_MESSAGE, KINDS, st.data())
def test_a_damaged_message_raises_nothing_else(
    message: Struct, kind: Any, data: st.DataObject
) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                raw[place] = data.draw(st.integers(0, 255))
            case 1:
                del raw[place:]
            case 2:
                raw[place:place] = data.draw(st.binary(max_size=9))
            case _:
                raw += raw[place:]
        if not raw:
            break
    refused_or_valid(bytes(raw), kind)
    refused_or_valid(bytes(raw), type(message))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
        | st.text(max_size=9) | st.binary(max_size=9),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(
            ["type", "ticket", "next", "receipt", "numbers", "code", "token", "seconds"]),
            inner, max_size=4),
        max_leaves=12),
    KINDS)
def test_msgpack_of_other_things_raises_nothing_else(value: object, kind: Any) -> None:
    refused_or_valid(msgspec.msgpack.encode(value), kind)


@pytest.mark.parametrize("raw", [
    b"", b"\xc1", b"\x91" * 100_000, b"\x81\xa1a" * 30_000, b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xa2\xff\xfe",
    b"\xd6\xff\x00\x00\x00\x00",
], ids=lambda raw: raw[:6].hex() or "nothing")
@pytest.mark.parametrize("kind", [Push, Turn, Status, Curate, FromClient])
def test_bombs(raw: bytes, kind: Any) -> None:
    with pytest.raises(PeerProblem) as caught:
        decode(raw, kind, 1 << 20)
    assert caught.value.kind is MALFORMED


def test_a_message_and_one_byte_more_is_not_a_message() -> None:
    with pytest.raises(PeerProblem):
        decode(encode(Pull()) + b"\xc0", FromClient)


# -- limits ----------------------------------------------------------------------------------
def test_the_limit_is_exact_and_is_told() -> None:
    raw = encode(Push(bytes(16), b"", bytes(400)))
    assert decode(raw, FromClient, len(raw)) is not None
    with pytest.raises(PeerProblem) as caught:
        decode(raw, FromClient, len(raw) - 1)
    assert caught.value.wire() == ("too-large", {"limit": len(raw) - 1})


@pytest.mark.parametrize("dimension", [1, 24, 10_000, MAX_DIMENSION])
def test_the_largest_messages_fit_their_limits(dimension: int) -> None:
    vector = bytes(4 * dimension)
    push = encode(Push(bytes(16), bytes(32), vector))
    turn = encode(Turn(bytes(16), Work(bytes(16), vector, bytes(64), 64), *(2**53 - 1,) * 3))
    assert len(push) <= push_limit(dimension) < len(push) + SMALL_LIMIT
    assert len(turn) <= turn_limit(dimension) < len(turn) + SMALL_LIMIT


def test_the_longest_message_without_weights_is_far_below_the_small_limit() -> None:
    longest = Status("published", "\U0001f600" * 200, "a" * 64, 100_000, 100_000, 2**53 - 1,
                     2**53 - 1, 1.0, 1.0, 0.5, 2**53 - 1, 2**53 - 1, 2**53 - 1, 1e9, 1e9, "x" * 40)
    counts = (2**53 - 1,) * 3
    others = [
        Turn(bytes(16), Refused("c" * 40, {"x" * 19 + str(i): 2**53 for i in range(4)}), *counts),
        Turn(bytes(16), Wait("c" * 40, 1, 1, 1e9), *counts), Turn(bytes(16), End(), *counts),
        Join(bytes(64), bytes(32), 100_000), Welcome(bytes(32)), Hello(bytes(32)),
        AdmissionPuzzle(bytes(64), 64, 1e9), Curated("a" * 62),
    ]
    assert all(len(encode(message)) < SMALL_LIMIT for message in [longest, *others])


def test_an_order_may_be_without_a_validation_set_but_not_without_a_salt() -> None:
    order = Curate(SignedTask(b"{}", bytes(32), bytes(64)), b"", b"", bytes(SALT_BYTES))
    assert decode(encode(order), Curate) == order
    for salt in (b"", bytes(SALT_BYTES - 1), bytes(SALT_BYTES + 1)):
        with pytest.raises(PeerProblem):
            decode(encode(msgspec.structs.replace(order, salt=salt)), Curate)


def test_the_largest_task_fits_its_field() -> None:
    signed = SignedTask(bytes(TASK_LIMIT), bytes(32), bytes(64))
    assert decode(encode(signed), SignedTask, TASK_LIMIT + SMALL_LIMIT) == signed
    with pytest.raises(PeerProblem):
        decode(encode(SignedTask(bytes(TASK_LIMIT + 1), bytes(32), bytes(64))), SignedTask,
               TASK_LIMIT + SMALL_LIMIT)
    assert VALIDATION_LIMIT > TASK_LIMIT


@pytest.mark.parametrize("message", [
    Push(bytes(16), b"", b"", 0), Push(bytes(16), b"", b"", 1001),
    Push(bytes(15), b"", b""), Push(bytes(17), b"", b""), Push(bytes(16), bytes(33), b""),
    Join(b"", b"", 1), Join(bytes(65), b"", 1), Join(b"x", b"", 0), Join(b"x", b"", 100_001),
    Join(b"x", b"", -1), Hello(bytes(31)), Welcome(bytes(33)), AdmissionPuzzle(b"x", 65, 1.0),
    AdmissionPuzzle(b"x", -1, 1.0), AdmissionPuzzle(b"x", 1, -1.0),
    AdmissionPuzzle(b"x", 1, float("nan")), AdmissionPuzzle(b"x", 1, float("inf")),
    Curated("a" * 61), Turn(bytes(17), End()), Turn(b"", End(), -1), Turn(b"", End(), 0, 2**53),
    Wait("", 1, 1, 1.0), Wait("x", 100_001, 1, 1.0),
    Refused("x", {str(i): 1 for i in range(5)}), Refused("x", {"y" * 21: 1}),
    Refused("x", {"y": 2**63}),
], ids=str)
def test_one_step_outside_a_bound_is_refused(message: Struct) -> None:
    with pytest.raises(PeerProblem) as caught:
        decode(encode(message), type(message))
    assert caught.value.kind is MALFORMED


# -- vectors ---------------------------------------------------------------------------------
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50))
def test_vectors_come_back_exactly(numbers: list[float]) -> None:
    vector = np.array(numbers, dtype=np.float64)
    again = vector_from_wire(vector_to_wire(vector), len(numbers))
    assert again is not None
    assert again.dtype == np.float64
    np.testing.assert_array_equal(again, vector)


@pytest.mark.parametrize("raw", [
    bytes(7), bytes(9), bytes(4), bytes(12), b"\x00\x00\x80\x7f" * 2, b"\x00\x00\xc0\x7f" * 2,
    bytes(4) + b"\x00\x00\x80\xff",
])
def test_a_vector_of_another_length_or_not_finite_is_none(raw: bytes) -> None:
    assert vector_from_wire(raw, 2) is None


@given(st.binary(max_size=80), st.integers(0, 25))
def test_any_bytes_are_a_finite_vector_or_none(raw: bytes, dimension: int) -> None:
    vector = vector_from_wire(raw, dimension)
    assert vector is None or (vector.shape == (dimension,) and bool(np.isfinite(vector).all()))


# -- refusals --------------------------------------------------------------------------------
def test_a_refusal_arrives_as_it_was_sent() -> None:
    sent = PeerProblem(TOO_FEW_CLIENTS, have=3, need=8)
    got = decode(encode(refused(sent)), Refused).problem()
    assert (got.kind, got.sentence) == (TOO_FEW_CLIENTS, sent.sentence)


def test_a_broker_s_own_troubles_do_not_travel() -> None:
    told = refused(Problem(NO_FILE, path="/home/alice/secret", why="gone"))
    assert told == Refused(INTERNAL.code, {})


@given(drawn(Refused))
def test_any_refusal_is_a_problem_with_a_sentence(message: Refused) -> None:
    assert message.problem().sentence
    assert decode(encode(refused(PeerProblem(FULL, maximum=7))), Refused).code == "full"


def test_type_hints_of_the_module_can_be_read() -> None:
    # The tests above would walk nothing if the list of types were empty.
    assert {kind.__name__ for kind in TYPES} >= {"Push", "Turn", "Work", "Status", "SignedTask"}
    assert typing.get_type_hints(Turn)


# -- steps, and float16 ------------------------------------------------------------------------
def test_an_update_without_a_number_of_steps_is_of_one() -> None:
    old = msgspec.msgpack.encode({"type": "push", "ticket": bytes(16), "solution": b"",
                                  "delta": b""})
    assert decode(old, FromClient) == Push(bytes(16), b"", b"", 1)


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), max_size=50))
def test_float16_vectors_come_back_exactly(numbers: list[float]) -> None:
    vector = np.array(numbers, dtype=np.float64)
    raw = vector_to_wire(vector, "float16")
    assert len(raw) == 2 * len(numbers)
    again = vector_from_wire(raw, len(numbers), "float16")
    assert again is not None and again.dtype == np.float64
    np.testing.assert_array_equal(again, vector)


@given(st.lists(st.floats(-1e300, 1e300), max_size=20))
def test_what_is_finite_stays_finite_in_float16(numbers: list[float]) -> None:
    again = vector_from_wire(vector_to_wire(np.array(numbers), "float16"), len(numbers), "float16")
    assert again is not None
    np.testing.assert_allclose(again, np.clip(numbers, -65504, 65504), rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize("raw", [
    bytes(3), bytes(8), b"\x00\x7c" * 2, b"\x00\xfc\x00\x00", b"\x01\x7c\x00\x00"])
def test_float16_of_another_length_or_not_finite_is_none(raw: bytes) -> None:
    assert vector_from_wire(raw, 2, "float16") is None
