"""The task: one canonical form, signed as it is, and nothing else is believed."""

from __future__ import annotations

import hashlib
import hmac
import json
import math

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.messages import TASK_LIMIT, SignedTask
from accord.problems import BAD_SIGNATURE, MALFORMED, TOO_LARGE, PeerProblem
from accord.schema import Constraints, Field, Schema
from accord.task import (
    Clients,
    Puzzles,
    Task,
    Training,
    Validation,
    canonical,
    commitment,
    needs_validation,
    open_task,
    sign,
    signed_bytes,
    step_size,
    steps_size,
    task_id,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def schema() -> Schema:
    return Schema(
        fields=(Field("age", "integer", "in years", Constraints(minimum=0, maximum=120)),
                Field("weight", center=70.5, scale=12.0),
                Field("smoker", "boolean"),
                Field("town", "string", constraints=Constraints(enum=("Oslo", "Łódź", "'\"\\"))),
                Field("sick", "boolean")),
        target="sick")


def task(**changes: object) -> Task:
    parts = {"title": "A tâsk with 1/3", "data": schema(),
             "validation": Validation(digest="5ea1d0c3" * 8)}
    return Task(**parts | changes)  # type: ignore[arg-type]


def signed_raw(body: bytes, key: Ed25519PrivateKey = KEY) -> SignedTask:
    """Any bytes, properly signed: a curator may be hostile too."""
    return SignedTask(body, key.public_key().public_bytes_raw(), key.sign(signed_bytes(body)))


def refusal(signed: SignedTask) -> PeerProblem:
    with pytest.raises(PeerProblem) as caught:
        open_task(signed, "somewhere")
    return caught.value


# -- canonical -------------------------------------------------------------------------------
def test_a_task_and_its_canonical_bytes_are_the_same_thing() -> None:
    body = canonical(task())
    assert msgspec.json.decode(body, type=Task) == task()
    assert canonical(msgspec.json.decode(body, type=Task)) == body
    keys = list(json.loads(body))
    assert keys == sorted(keys)


SETTINGS = st.builds(
    Training, step=st.floats(1e-9, 1e9), clip=st.floats(1e-9, 1e9),
    schedule=st.sampled_from(["constant", "1/t", "1/sqrt(t)"]),
    target_error=st.none() | st.floats(0, 1),
    patience=st.none() | st.integers(1, 10**8))


@given(SETTINGS, st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=200))
def test_signing_and_opening_changes_nothing(training: Training, title: str) -> None:
    original = task(title=title, training=training)
    signed = sign(original, KEY)
    assert open_task(signed, "here") == original
    assert signed.body == canonical(original)


@pytest.mark.parametrize("change", [
    lambda t: json.dumps(t).encode(),                              # spaces
    lambda t: json.dumps(t, separators=(",", ":")).encode(),       # escapes instead of letters
    lambda t: json.dumps(dict(reversed(t.items())), separators=(",", ":"),
                         ensure_ascii=False).encode(),             # another order
    lambda t: compact({k: v for k, v in t.items() if k != "description"}),   # a default left out
    lambda t: compact(t | {"version": 1.0}),
    lambda t: compact(t) + b"\n",
    lambda t: compact(t | {"extra": 1}),
    lambda t: compact(t | {"version": 2}),
    lambda t: compact(t | {"objective": "magic"}),
    lambda t: compact(t | {"title": ""}),
    lambda t: compact(t | {"title": "Well\n\nSigned by curator 00"}),
    lambda t: compact(t | {"title": "A \u202e title"}),
    lambda t: compact(t | {"title": "\x1b[2J"}),
    lambda t: compact(t | {"clients": t["clients"] | {"minimum": 200}}),
    lambda t: compact(t | {"training": t["training"] | {"step": 0}}),
    lambda t: compact(t).replace(b'"step":1.0', b'"step":1e0'),
    lambda t: compact(t).replace(b'"step":1.0', b'"step":1'),
    lambda t: compact(t).replace(b'"step":1.0', b'"step":NaN'),
    lambda t: compact(t).replace(b'"step":1.0', b'"step":1.0,"step":2.0'),
    lambda t: b"\xff\xfe", lambda t: b"{}", lambda t: b"[" * 500_000, lambda t: b"\xef\xbb\xbf{}",
])
def test_a_body_that_is_not_canonical_is_refused_though_well_signed(change) -> None:  # type: ignore[no-untyped-def]
    plain = json.loads(canonical(task()))
    assert compact(plain) == canonical(task())
    assert refusal(signed_raw(change(plain))).kind is MALFORMED


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


@given(st.binary(max_size=200))
def test_any_signed_bytes_raise_one_thing(body: bytes) -> None:
    assert refusal(signed_raw(body)).kind is MALFORMED


def test_too_large_is_said_before_anything_is_read() -> None:
    assert refusal(signed_raw(b" " * (TASK_LIMIT + 1))).kind is TOO_LARGE


# -- signature -------------------------------------------------------------------------------
@settings(max_examples=200)
@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    signed = sign(task(), KEY)
    parts = {"body": signed.body, "curator": signed.curator, "signature": signed.signature}
    name = data.draw(st.sampled_from(sorted(parts)))
    raw = bytearray(parts[name])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert refusal(SignedTask(**parts | {name: bytes(raw)})).kind is BAD_SIGNATURE


def test_every_byte_of_signature_and_key_counts() -> None:
    signed = sign(task(), KEY)
    for i in range(64):
        wrong = bytearray(signed.signature)
        wrong[i] ^= 0x40
        assert refusal(SignedTask(signed.body, signed.curator, bytes(wrong))).kind is BAD_SIGNATURE
    for i in range(32):
        wrong = bytearray(signed.curator)
        wrong[i] ^= 0x40
        assert refusal(SignedTask(signed.body, bytes(wrong), signed.signature))


def test_a_signature_of_other_bytes_is_none_of_a_task() -> None:
    body = canonical(task())
    bare = SignedTask(body, KEY.public_key().public_bytes_raw(), KEY.sign(body))
    assert refusal(bare).kind is BAD_SIGNATURE
    swapped = SignedTask(body, OTHER.public_key().public_bytes_raw(), sign(task(), KEY).signature)
    assert refusal(swapped).kind is BAD_SIGNATURE
    assert "somewhere" in refusal(swapped).sentence


def test_the_id_names_the_task_and_its_curator() -> None:
    ids = {task_id(sign(task(), KEY)), task_id(sign(task(), OTHER)),
           task_id(sign(task(title="another"), KEY))}
    assert len(ids) == 3
    assert all(len(i) == 64 and set(i) <= set("0123456789abcdef") for i in ids)
    assert task_id(sign(task(), KEY)) == task_id(sign(task(), KEY))


# -- with and without a validation set -------------------------------------------------------
WITHOUT = Validation(test="none", screen="none")
ROBUST = Training(mode="synchronous", aggregate="median")
SET = Validation(digest="0" * 64)


@pytest.mark.parametrize(("training", "validation", "needed"), [
    (ROBUST, WITHOUT, []),
    (Training(mode="synchronous", aggregate="krum"), Validation(test="none", screen="none",
                                                               evict=0, rate=1.0), []),
    (Training(), WITHOUT, ["training.aggregate"]),
    (Training(mode="synchronous"), WITHOUT, ["training.aggregate"]),
    (ROBUST, Validation(test="none", screen="direction"), ["validation.screen"]),
    (ROBUST, Validation(test="none", screen="length"), []),
    (ROBUST, Validation(screen="none"), ["validation.test"]),
    (ROBUST, Validation(test="rounds", screen="none"), ["validation.test"]),
    (msgspec.structs.replace(ROBUST, target_error=0.0, patience=5), WITHOUT,
     ["training.target_error", "training.patience"]),
    (Training(), Validation(), ["training.aggregate", "validation.test"]),
])
def test_what_a_task_needs_a_validation_set_for(
    training: Training, validation: Validation, needed: list[str]
) -> None:
    it = task(training=training, validation=validation)
    assert needs_validation(it) == needed
    signed = sign(it, KEY)
    if needed:
        assert refusal(signed).kind is MALFORMED
    else:
        assert open_task(signed, "here") == it
    # With a set, every one of them is good: where nothing needs it, it only measures.
    measured = task(training=training, validation=msgspec.structs.replace(
        validation, digest="0" * 64))
    assert open_task(sign(measured, KEY), "here") == measured


@pytest.mark.parametrize("aggregate", ["median", "trimmed-mean", "krum"])
def test_a_rule_for_rounds_needs_rounds(aggregate: str) -> None:
    with pytest.raises(ValueError, match="needs 'mode' = 'synchronous'"):
        Training(aggregate=aggregate)  # type: ignore[arg-type]


def test_a_delay_is_for_updates_that_have_an_order_and_leaves_room_for_signs_of_life() -> None:
    delayed = Training(reply_delay=0.5)
    assert open_task(sign(task(training=delayed, validation=SET), KEY), "here").training == delayed
    with pytest.raises(ValueError, match="needs 'mode' = 'asynchronous'"):
        Training(mode="synchronous", reply_delay=0.5)
    Training(mode="synchronous", reply_delay=0.0)
    task(training=Training(reply_delay=10.0), clients=Clients(silence=20.0))
    with pytest.raises(ValueError, match="above half of 'silence'"):
        task(training=Training(reply_delay=10.0), clients=Clients(silence=19.9))


@pytest.mark.parametrize("delay", [-0.1, 10.1, float("nan"), float("inf")])
def test_a_delay_that_is_none(delay: float) -> None:
    raw = json.loads(canonical(task()))
    raw["training"]["reply_delay"] = delay
    assert refusal(signed_raw(compact(raw))).kind is MALFORMED


@pytest.mark.parametrize("digest", ["ab", "AB" * 32, "ab" * 32 + "\n", "ab" * 33, "xy" * 32])
def test_a_digest_is_64_hexadecimal_digits_or_nothing(digest: str) -> None:
    raw = json.loads(canonical(task()))
    raw["validation"]["digest"] = digest
    assert refusal(signed_raw(compact(raw))).kind is MALFORMED


def test_a_commitment_is_to_salt_rows_and_labels() -> None:
    # By hand: HMAC-SHA-256 of the two hashes under the salt.
    inner = b"tormentor validation\x00" + hashlib.sha256(b"rows").digest() + hashlib.sha256(
        b"labels").digest()
    assert commitment(b"s" * 16, b"rows", b"labels") == hmac.new(
        b"s" * 16, inner, hashlib.sha256).hexdigest()
    found = {commitment(salt, rows, labels)
             for salt in (b"s" * 16, b"t" * 16) for rows in (b"", b"ab", b"a")
             for labels in (b"", b"ab", b"b")}
    assert len(found) == 18


# -- settings --------------------------------------------------------------------------------
@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [2.0, 2.0, 2.0, 2.0]),
    ("1/t", [2.0, 1.0, 2 / 3, 0.5]),
    ("1/sqrt(t)", [2.0, 2 / math.sqrt(2), 2 / math.sqrt(3), 1.0]),
])
def test_step_sizes(schedule: str, expected: list[float]) -> None:
    training = Training(step=2.0, schedule=schedule)  # type: ignore[arg-type]
    assert [step_size(training, t) for t in range(1, 5)] == pytest.approx(expected)


def test_defaults_are_within_their_own_bounds() -> None:
    for part in (Training(), Clients(), Puzzles(), Validation()):
        assert msgspec.convert(msgspec.to_builtins(part), type(part)) == part


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_no_setting_is_infinite(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Training(step=number)


def test_the_dimension_is_that_of_a_standardised_row() -> None:
    assert task().dimension == 1 + 1 + 1 + 2 + 1


def test_too_many_features_are_refused() -> None:
    wide = Constraints(enum=tuple(map(str, range(1000))))
    fields = tuple(Field(f"f{i}", "string", constraints=wide) for i in range(1002))
    with pytest.raises(ValueError, match="features"):
        task(data=Schema((*fields, Field("y", "boolean")), "y"))


# -- local steps and precision -----------------------------------------------------------------
@pytest.mark.parametrize("schedule", ["constant", "1/t", "1/sqrt(t)"])
def test_the_size_of_several_steps_is_the_sum_of_theirs(schedule: str) -> None:
    training = Training(step=0.7, schedule=schedule)  # type: ignore[arg-type]
    for first in (1, 5, 1000):
        assert steps_size(training, first, 1) == step_size(training, first)
        for count in (2, 10, 1000):
            assert steps_size(training, first, count) == pytest.approx(
                sum(step_size(training, t) for t in range(first, first + count)), rel=1e-12)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_local_steps_are_from_1_to_1000(steps: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"local_steps": steps}, Training)


def test_float16_is_refused_where_it_cannot_hold_the_largest_update() -> None:
    assert Training(max_norm=655.0, local_steps=100, precision="float16").local_steps == 100
    assert Training(max_norm=656.0, local_steps=100).precision == "float32"
    with pytest.raises(ValueError, match="'max_norm' times 'local_steps' is above 65504"):
        Training(max_norm=656.0, local_steps=100, precision="float16")
