"""Onion addresses: the name of a service is its Ed25519 public key. Pure functions.

Source: Tor's rend-spec-v3, section 6 (encoding onion addresses), and RFC 8032, section 5.1.5
(how an Ed25519 seed becomes the scalar that signs).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accord.problems import NOT_AN_ONION, Problem

SUFFIX: Final = ".onion"
_VERSION: Final = b"\x03"
_LETTERS: Final = 56
_SHOWN: Final = 80
"""Most characters of a wrong address that are repeated in the refusal."""


def _checksum(public_key: bytes) -> bytes:
    return hashlib.sha3_256(b".onion checksum" + public_key + _VERSION).digest()[:2]


def onion_from_public_key(public_key: bytes) -> str:
    """The version 3 address (56 letters and ``.onion``) of a 32-byte Ed25519 public key."""
    if len(public_key) != 32:
        raise ValueError("an Ed25519 public key has 32 bytes")
    raw = public_key + _checksum(public_key) + _VERSION
    return base64.b32encode(raw).decode("ascii").lower() + SUFFIX


def onion_from_seed(seed: bytes) -> str:
    """The address of the service whose key is this 32-byte Ed25519 seed."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return onion_from_public_key(key.public_key().public_bytes_raw())


def public_key_from_onion(onion: str) -> bytes:
    """The 32-byte Ed25519 public key that an address is.

    Raises:
        Problem: ``NOT_AN_ONION`` when length, alphabet, version or checksum is wrong.
    """
    letters = onion.removesuffix(SUFFIX)
    try:
        if len(letters) != _LETTERS or letters == onion:
            raise ValueError
        raw = base64.b32decode(letters.upper())
    except (ValueError, binascii.Error):
        raise _not_an_onion(onion) from None
    public_key, checksum, version = raw[:32], raw[32:34], raw[34:]
    if version != _VERSION or checksum != _checksum(public_key):
        raise _not_an_onion(onion)
    return public_key


def check_onion(text: str) -> str:
    """A version 3 address as it is written everywhere in this program: lower case, bare.

    Args:
        text: what a person typed or pasted; ``http://`` before and ``/`` after are forgiven.

    Raises:
        Problem: ``NOT_AN_ONION``.
    """
    onion = text.strip().lower().removeprefix("http://").removesuffix("/")
    try:
        public_key_from_onion(onion)
    except Problem:
        raise _not_an_onion(text.strip()) from None
    return onion


def expanded_key(seed: bytes) -> bytes:
    """The 64-byte expanded secret key that tor wants, from a 32-byte Ed25519 seed.

    SHA-512 of the seed with its first half clamped (RFC 8032, 5.1.5; control-spec, ADD_ONION).
    """
    if len(seed) != 32:
        raise ValueError("an Ed25519 seed has 32 bytes")
    digest = bytearray(hashlib.sha512(seed).digest())
    digest[0] &= 0b1111_1000
    digest[31] &= 0b0111_1111
    digest[31] |= 0b0100_0000
    return bytes(digest)


def _not_an_onion(text: str) -> Problem:
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    # What is not printable must not reach a terminal, whoever wrote it.
    return Problem(NOT_AN_ONION, address="".join(c if c.isprintable() else "?" for c in shown))
