"""Whom a curator invites: keys as they were typed, or in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from accord.invitation import from_text, our_key, public_key
from accord.messages import MAX_INVITED
from accord.problems import BAD_INVITATION, BAD_OPTION, NO_FILE, Problem

_FILE_LIMIT: Final = 1 << 20


def read_invited(typed: Sequence[str], state: Path, mode: str) -> tuple[bytes, ...]:
    """The keys of those who alone may reach the model, the curator's own first.

    Args:
        typed: keys, and names of files with a key a line (what follows a ``#`` is a remark).
        state: where the curator's own key is, or will be.
        mode: how Tor is used; without it nobody could be kept out.

    Returns:
        Nothing when nothing was typed: then everybody may.

    Raises:
        Problem: ``BAD_INVITATION``, ``NO_FILE``, ``BAD_OPTION``; ``BAD_KEY``, ``DISK`` for our own.
    """
    if not typed:
        return ()
    if mode == "none":
        raise Problem(BAD_OPTION, option="--invite", what="needs Tor, which keeps the others out")
    others = {key: None for text in typed for key in _keys(text)}
    ours = our_key(state, make=True)
    assert ours is not None
    invited = tuple({public_key(ours): None} | others)
    if len(invited) > MAX_INVITED:
        raise Problem(BAD_OPTION, option="--invite",
                      what=f"names {len(others):,} keys and a model takes {MAX_INVITED - 1}")
    return invited


def _keys(text: str) -> list[bytes]:
    try:
        return [from_text(text)]
    except Problem:
        path = Path(text)
        if not path.is_file():
            if "." in text or "/" in text:  # no key has one
                raise Problem(NO_FILE, path=text, why="there is no such file of keys") from None
            raise
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise Problem(NO_FILE, path=path, why=(error.strerror or str(error)).lower()) from None
    if len(raw) > _FILE_LIMIT:
        raise Problem(BAD_OPTION, option="--invite", what=f"names {path}, which is too long")
    lines = raw.decode("ascii", "replace").splitlines()
    keys = []
    for number, line in enumerate(lines, 1):
        if key := line.partition("#")[0].strip():
            try:
                keys.append(from_text(key))
            except Problem as problem:
                shown = f"{problem.details['text']} (line {number} of {path})"
                raise Problem(BAD_INVITATION, text=shown) from None
    if not keys:
        raise Problem(BAD_OPTION, option="--invite", what=f"names {path}, in which there is no key")
    return keys
