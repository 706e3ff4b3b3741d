"""Invitations: a model that only those can reach whose keys its curator was given.

Tor does the keeping out (client authorization, rend-spec-v3, appendix G): without one of the
invited x25519 keys the service's descriptor cannot be read, so nobody else even learns where to
knock. Whoever wishes to be invited shows the text of its public key, which is no secret; the
private half stays in a file (0600) and is told to nobody but the own tor.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from accord.files import private_directory
from accord.problems import BAD_INVITATION, Problem
from accord.seed import load_or_create_seed, load_seed

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_LETTERS: Final = 56
_FILE: Final = "invitation.key"


def public_key(private: bytes) -> bytes:
    """The x25519 public key (32 bytes) of a private one (RFC 7748)."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def to_text(public: bytes) -> str:
    """A public key as people pass it on: 56 letters and digits, with a checksum against slips."""
    if len(public) != KEY_BYTES:
        raise ValueError(f"an x25519 public key has {KEY_BYTES} bytes")
    return base64.b32encode(public + _checksum(public) + _VERSION).decode("ascii").lower()


def from_text(text: str) -> bytes:
    """The public key (32 bytes) that somebody passed on.

    Raises:
        Problem: ``BAD_INVITATION`` when length, alphabet, version or checksum is wrong.
    """
    letters = text.strip()
    try:
        if len(letters) != _LETTERS:
            raise ValueError
        raw = base64.b32decode(letters.upper())
        public, checksum, version = raw[:KEY_BYTES], raw[KEY_BYTES:-1], raw[-1:]
        if version != _VERSION or checksum != _checksum(public):
            raise ValueError
    except (ValueError, binascii.Error):
        shown = letters if len(letters) <= 80 else letters[:80] + "..."
        raise Problem(BAD_INVITATION, text=shown) from None
    return public


def our_key(state: Path, *, make: bool) -> bytes | None:
    """Our own private key in a state directory.

    Args:
        state: the directory.
        make: whether one is made where there is none; else None is given then.

    Raises:
        Problem: ``BAD_KEY``, ``DISK``.
    """
    path = state / _FILE
    return load_or_create_seed(private_directory(state) / _FILE) if make else load_seed(path)


def _checksum(public: bytes) -> bytes:
    return hashlib.sha3_256(b"tormentor invitation" + public + _VERSION).digest()[:2]
