"""The model file: what an onion signed is read, and whatever else it is called is BAD_MODEL."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from accord.messages import SignedTask
from accord.model_file import MODEL_LIMIT, Model, read_model, write_model
from accord.onion import onion_from_public_key
from accord.problems import BAD_MODEL, PeerProblem
from accord.schema import Field, Schema
from accord.task import Task, Validation, sign

SEED, OTHER_SEED = bytes(range(32)), bytes(32)
CURATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
SCHEMA = Schema((Field("x", center=0.0, scale=1.0), Field("y", "boolean")), "y")
TASK = Task(title="A \"task\" with ünïcode \\ \U0001f600", data=SCHEMA,
            validation=Validation(digest="5ea1d0c3" * 8))
SIGNED = sign(TASK, CURATOR)
WEIGHTS = np.array([0.5, -1.25], dtype=np.float32)


def onion(seed: bytes = SEED) -> str:
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return onion_from_public_key(key.public_bytes_raw())


def written(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {"seed": SEED, "onion": onion(), "signed": SIGNED,
                                 "weights": WEIGHTS, "updates": 42, "ended": "patience"}
    return write_model(**arguments | changes)


GOOD = written()


def why(raw: bytes, expected: str | None = None) -> str:
    with pytest.raises(PeerProblem) as caught:
        read_model(raw, "m.safetensors", expected)
    assert caught.value.kind is BAD_MODEL
    return caught.value.sentence


def remade(**changes: str | None) -> bytes:
    """The good file with metadata changed, and nothing signed again."""
    length = struct.unpack_from("<Q", GOOD)[0]
    metadata = json.loads(GOOD[8 : 8 + length])["__metadata__"] | changes
    kept = {name: value for name, value in metadata.items() if value is not None}
    return safetensors.numpy.save({"weights": WEIGHTS}, metadata=kept)


# -- what is right ---------------------------------------------------------------------------
@pytest.mark.parametrize("expected", [None, onion()])
def test_there_and_back(expected: str | None) -> None:
    model = read_model(GOOD, "m", expected)
    assert isinstance(model, Model)
    assert (model.onion, model.task, model.signed) == (onion(), TASK, SIGNED)
    assert (model.updates, model.ended) == (42, "patience")
    assert model.weights.dtype == np.float64
    np.testing.assert_array_equal(model.weights, WEIGHTS)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
       st.integers(0, 2**53), st.sampled_from(["max-updates", "target-error", ""]))
def test_any_model_comes_back(numbers: list[float], updates: int, ended: str) -> None:
    raw = written(weights=np.array(numbers), updates=updates, ended=ended)
    model = read_model(raw, "m", onion())
    np.testing.assert_array_equal(model.weights, numbers)
    assert (model.updates, model.ended) == (updates, ended)


def test_anyone_s_safetensors_reads_the_weights() -> None:
    np.testing.assert_array_equal(safetensors.numpy.load(GOOD)["weights"], WEIGHTS)


# -- what is not -----------------------------------------------------------------------------
def test_every_changed_byte_is_found() -> None:
    source = random.Random(20_261_121)
    for place in range(len(GOOD)):
        raw = bytearray(GOOD)
        raw[place] ^= 1 << source.randrange(8)
        try:
            model = read_model(bytes(raw), "m", onion())
        except PeerProblem as problem:
            assert problem.kind is BAD_MODEL
        else:
            # White space in the header and the like: allowed, when nothing that is said changes.
            assert (model.onion, model.signed, model.updates, model.ended) == (
                onion(), SIGNED, 42, "patience"), place
            np.testing.assert_array_equal(model.weights, WEIGHTS)


def test_what_is_cut_or_longer_is_found() -> None:
    for end in range(len(GOOD)):
        why(GOOD[:end])
    why(GOOD + b"\x00")
    why(GOOD + GOOD)


def test_another_address_is_named() -> None:
    assert onion() in why(GOOD, onion(OTHER_SEED))


def test_a_key_that_is_not_the_address_s_has_signed_nothing() -> None:
    assert "signature is wrong" in why(written(seed=OTHER_SEED))


@pytest.mark.parametrize("changes", [
    {"updates": "43"}, {"updates": "042"}, {"ended": "deadline"}, {"curator": "00" * 32},
    {"task": SIGNED.body.decode().replace("task", "tosk")}, {"onion": onion(OTHER_SEED)},
    {"onion": "nobody.onion"}, {"signature": "00" * 64}, {"signature": "zz"}, {"signature": None},
    {"task": None}, {"curator": None}, {"updates": None}, {"ended": None}, {"onion": None},
    {"format": "tormentor model 2"}, {"format": None}, {"task_signature": "00"},
    {"task_signature": ""}, {"signature": ""},
])
def test_every_part_is_signed(changes: dict[str, str | None]) -> None:
    why(remade(**changes))
    read_model(remade(), "m", onion())


@pytest.mark.parametrize("weights", [
    np.zeros(1), np.zeros(3), np.zeros(0), np.zeros((2, 1)), np.zeros((1, 2)),
    np.array([1.0, np.nan]), np.array([np.inf, 1.0]),
])
def test_signed_weights_that_do_not_fit_are_refused(weights: np.ndarray) -> None:
    assert "do not fit" in why(written(weights=weights))


@pytest.mark.parametrize("updates", ["-1", "many", "1" * 5000, "１２", " 3", "1_0"])
def test_signed_nonsense_is_refused(updates: str) -> None:
    why(written(updates=updates))


def test_a_task_that_its_curator_did_not_sign_is_refused_though_the_onion_did() -> None:
    forged = SignedTask(SIGNED.body, SIGNED.curator, bytes(64))
    why(written(signed=forged))


@pytest.mark.parametrize("tensors", [
    {}, {"weights": WEIGHTS, "more": WEIGHTS}, {"w": WEIGHTS}, {"weights": WEIGHTS.astype("f8")},
    {"weights": WEIGHTS.astype("i4")},
])
def test_other_tensors_are_refused(tensors: dict[str, np.ndarray]) -> None:
    length = struct.unpack_from("<Q", GOOD)[0]
    metadata = json.loads(GOOD[8 : 8 + length])["__metadata__"]
    why(safetensors.numpy.save(tensors, metadata=metadata))


@given(st.binary(max_size=300))
def test_any_bytes_are_bad_and_nothing_else(raw: bytes) -> None:
    why(raw)


@given(st.binary(max_size=200))
def test_any_header_is_bad_and_nothing_else(header: bytes) -> None:
    why(struct.pack("<Q", len(header)) + header + bytes(8))


@pytest.mark.slow
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6)
    | st.sampled_from(["F32", "F64", "BF16", "tormentor model 1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["__metadata__", "weights", "dtype", "shape", "data_offsets", "format",
                         "onion", "task"]), inner, max_size=4), max_leaves=15))
def test_any_json_header_is_bad_and_nothing_else(header: object) -> None:
    raw = json.dumps(header).encode()
    why(struct.pack("<Q", len(raw)) + raw + bytes(8))


@pytest.mark.parametrize("header", [
    b'{"weights":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}',
    b'{"weights":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}',
    b'{"weights":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}',
    b'{"weights":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]},"__metadata__":{}}',
    b"[" * 90_000, b'{"a":' * 50_000, b'{"__metadata__":{"format":1}}', b'{"__metadata__":[]}',
])
def test_hostile_headers(header: bytes) -> None:
    why(struct.pack("<Q", len(header)) + header + bytes(8))


def test_too_large_is_said_at_once() -> None:
    assert "too large" in why(bytes(MODEL_LIMIT + 1))
