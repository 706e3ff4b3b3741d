"""Invitations: keys as people pass them on, and the file of our own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from accord.invitation import from_text, our_key, public_key, to_text
from accord.problems import BAD_INVITATION, BAD_KEY, Problem
from accord.seed import load_or_create_seed

keys = st.binary(min_size=32, max_size=32)


@given(keys)
def test_a_key_comes_back_from_its_text(key: bytes) -> None:
    text = to_text(key)
    assert len(text) == 56 and text.isascii() and text.isalnum() and text == text.lower()
    assert from_text(text) == from_text(f"  {text.upper()}\n") == key


@given(keys, st.integers(0, 55), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_one_wrong_letter_is_noticed_nearly_always(key: bytes, place: int, letter: str) -> None:
    text = to_text(key)
    changed = text[:place] + letter + text[place + 1 :]
    if changed == text:
        return
    # 16 bits of checksum: one slip in 65,536 passes, and then it is another key.
    try:
        assert from_text(changed) != key
    except Problem as problem:
        assert problem.kind is BAD_INVITATION


@given(st.text(max_size=200))
def test_nothing_else_is_a_key(text: str) -> None:
    with pytest.raises(Problem) as caught:
        from_text(text)
    assert caught.value.kind is BAD_INVITATION


def test_the_two_halves_belong_together() -> None:
    private = b"o" * 32
    ours = X25519PrivateKey.from_private_bytes(private)
    theirs = X25519PrivateKey.from_private_bytes(b"t" * 32)
    public = X25519PublicKey.from_public_bytes(public_key(private))
    assert theirs.exchange(public) == ours.exchange(theirs.public_key())


def test_our_key_is_made_once_and_for_us_alone(tmp_path) -> None:
    state = tmp_path / "state"
    assert our_key(state, make=False) is None and not state.exists()
    key = our_key(state, make=True)
    assert key is not None and key == our_key(state, make=True) == our_key(state, make=False)
    path = state / "invitation.key"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(Problem) as caught:
        our_key(state, make=False)
    assert caught.value.kind is BAD_KEY


def test_two_first_uses_at_once_make_one_secret(tmp_path) -> None:
    for number in range(20):
        path = tmp_path / str(number)
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(load_or_create_seed, [path] * 8))) == 1
