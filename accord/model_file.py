"""The published model: a safetensors file, signed by the onion key, verifiable offline.

The onion address is the model's Ed25519 public key (rend-spec-v3, section 6), so whoever knows
the address can check the file without any network: the same key that answered at the address has
signed these weights, for this task of this curator.

Layout: one tensor ``weights`` (float32, (d,)), and metadata strings: ``format``, ``onion``,
``task`` (canonical JSON), ``curator``, ``task_signature`` (hex), ``updates``, ``ended``,
``signature`` (hex). The signature covers the domain string and each part above, each preceded by
its length.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from accord.messages import MAX_DIMENSION, TASK_LIMIT, SignedTask
from accord.onion import check_onion, public_key_from_onion
from accord.problems import BAD_MODEL, PeerProblem
from accord.task import Task, open_task

FORMAT: Final = "tormentor model 1"
_COUNT: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_ENDED_LETTERS: Final = 40
MODEL_LIMIT: Final = 4 * MAX_DIMENSION + 8 * TASK_LIMIT
"""Largest model file, in bytes: the weights, and a task whose JSON is escaped once more."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model whose signature was checked.

    Attributes:
        onion: the address that published it.
        task: what it was trained for.
        signed: the task as its curator signed it.
        weights: float64, shape (d,).
        updates: how many were applied.
        ended: why training ended.
    """

    onion: str
    task: Task
    signed: SignedTask
    weights: np.ndarray
    updates: int
    ended: str


def _signed(onion: str, signed: SignedTask, weights: bytes, updates: str, ended: str) -> bytes:
    parts = (onion.encode(), signed.body, signed.curator, signed.signature, updates.encode(),
             ended.encode(), weights)
    return FORMAT.encode() + b"\x00" + b"".join(struct.pack(">Q", len(p)) + p for p in parts)


def write_model(
    seed: bytes, onion: str, signed: SignedTask, weights: np.ndarray, updates: int, ended: str
) -> bytes:
    """The bytes of a model file.

    Args:
        seed: 32-byte Ed25519 seed of the onion service.
        onion: its address.
        signed: the task.
        weights: shape (d,); stored as float32.
        updates: how many were applied.
        ended: why training ended.
    """
    tensor = np.ascontiguousarray(weights, dtype="<f4")
    to_sign = _signed(onion, signed, tensor.tobytes(), str(updates), ended)
    metadata = {
        "format": FORMAT,
        "onion": onion,
        "task": signed.body.decode(),
        "curator": signed.curator.hex(),
        "task_signature": signed.signature.hex(),
        "updates": str(updates),
        "ended": ended,
        "signature": Ed25519PrivateKey.from_private_bytes(seed).sign(to_sign).hex(),
    }
    return safetensors.numpy.save({"weights": tensor}, metadata=metadata)


def read_model(raw: bytes, path: str, onion: str | None = None) -> Model:
    """Check a model file and read it.

    Args:
        raw: its bytes.
        path: for the sentences of problems.
        onion: the address that must have signed it; without, the one that it names itself.

    Raises:
        PeerProblem: ``BAD_MODEL``, and nothing else whatever the bytes are.
    """

    def bad(why: str) -> PeerProblem:
        return PeerProblem(BAD_MODEL, path=path, why=why)

    if len(raw) > MODEL_LIMIT:
        raise bad("it is too large")
    try:
        metadata = _metadata(raw)
        tensors = safetensors.numpy.load(raw)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError,
            OverflowError, MemoryError, RecursionError, struct.error):
        raise bad("it is not a safetensors file") from None
    if metadata.get("format") != FORMAT:
        raise bad("it is not a TorMentor model")
    weights = tensors.get("weights")
    if set(tensors) != {"weights"} or weights is None or weights.dtype != np.dtype("<f4"):
        raise bad("it does not hold exactly one set of float32 weights")
    try:
        address = check_onion(metadata["onion"])
        signed = SignedTask(
            body=metadata["task"].encode(),
            curator=bytes.fromhex(metadata["curator"]),
            signature=bytes.fromhex(metadata["task_signature"]),
        )
        updates, ended = metadata["updates"], metadata["ended"]
        key = Ed25519PublicKey.from_public_bytes(public_key_from_onion(address))
        to_verify = _signed(address, signed, weights.tobytes(), updates, ended)
        key.verify(bytes.fromhex(metadata["signature"]), to_verify)
        task = open_task(signed, address)
        if not _COUNT.fullmatch(updates) or len(ended) > _ENDED_LETTERS:
            raise ValueError("a count or a reason that no broker writes")
    except InvalidSignature:
        raise bad("the signature is wrong") from None
    except Exception as error:
        # Whatever a hostile file makes go wrong here is the file's fault.
        raise bad("a part of it is missing or damaged") from error
    if onion is not None and address != onion:
        raise bad(f"it was signed by another address, {address}")
    if weights.shape != (task.dimension,) or not np.isfinite(weights).all():
        raise bad("its weights do not fit its task")
    return Model(address, task, signed, weights.astype(np.float64), int(updates), ended)


def _metadata(raw: bytes) -> dict[str, str]:
    """The metadata of safetensors bytes (the library reads it from files only)."""
    (length,) = struct.unpack_from("<Q", raw)
    if length > len(raw) - 8:
        raise ValueError("header longer than the file")
    header = msgspec.json.decode(raw[8 : 8 + length], type=dict[str, object])
    metadata = header.get("__metadata__")
    return msgspec.convert(metadata, dict[str, str])
