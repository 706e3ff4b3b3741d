"""What a curator brings: a task file, read and checked in plain words, and the key that signs it.

A task file is TOML. It is checked here key by key before :class:`accord.task.Task` reads it, so
that a person is told the place (``training.step``), what stands there, and what may.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct, inspect

from accord.files import private_directory, write_whole
from accord.messages import TASK_LIMIT
from accord.problems import BAD_KEY, BAD_TASK, DISK, NO_FILE, Problem
from accord.task import Task, canonical

KEY_NAME: Final = "curator.key"
_SEED_BYTES: Final = 32
_KEY_LIMIT: Final = 4_096
_FILE_LIMIT: Final = 4 * TASK_LIMIT
"""Largest task file, in bytes: its comments and blanks are not in the task."""
_QUOTED: Final = 60


# -- the task file ---------------------------------------------------------------------------
def read_definition(path: Path) -> Task:
    """Read and check a task file.

    Raises:
        Problem: ``NO_FILE``; ``BAD_TASK`` with the place and what is wrong there.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise Problem(NO_FILE, path=path, why=_why(error)) from None
    try:
        if len(raw) > _FILE_LIMIT:
            raise _Wrong(f"it is larger than {_FILE_LIMIT:,} bytes")
        return _task(_toml(raw))
    except _Wrong as wrong:
        raise Problem(BAD_TASK, path=path, why=str(wrong)) from None


class _Wrong(Exception):
    """What is wrong with a task file, to stand after 'is not right: '."""


def _toml(raw: bytes) -> dict[str, Any]:
    text = ""
    try:
        text = raw.decode("utf-8-sig")
        return tomllib.loads(text)
    except UnicodeDecodeError:
        raise _Wrong("it is not text in UTF-8") from None
    except RecursionError:
        raise _Wrong("it is nested too deeply") from None
    except ValueError as error:
        said = str(error)
        raise _Wrong(
            f"it is not TOML: {said[:1].lower()}{said[1:]}{_quoted(text, said)}") from None


def _quoted(text: str, said: str) -> str:
    """The line that a parser complains of, if it names one."""
    found = re.search(r"\(at line (\d+)", said)
    if found is None:
        return ""
    line = text.split("\n")[int(found[1]) - 1].strip()
    return f", which is {_shown(line, _QUOTED)}" if line else ""


def _task(table: dict[str, Any]) -> Task:
    validation = table.get("validation")
    if isinstance(validation, dict) and "digest" in validation:
        raise _Wrong("validation.digest stands in it, and 'tormentor curate' fills that in by "
                     "itself when it signs; take the line out")
    _check_table(table, Task, "")
    try:
        task = msgspec.convert(table, Task)
    except msgspec.ValidationError as error:
        # What no single key can tell, such as a minimum above its maximum. The cause says it
        # without the notation that msgspec adds, which is in no one's task file.
        raise _Wrong(_within(table, str(error), str(error.__cause__ or error))) from None
    size = len(canonical(task))
    if size > TASK_LIMIT:
        raise _Wrong(f"it has {size:,} bytes as it travels and {TASK_LIMIT:,} are the most")
    return task


def _within(table: dict[str, Any], located: str, words: str) -> str:
    """The words of a rule, after the part of the file that msgspec found to break it."""
    _, _, place = located.rpartition(" - at `$")
    section = place.rstrip("`").lstrip(".")
    return f"in [{section}], {words}" if section in table else words


def _check_table(table: dict[str, Any], kind: type[Struct], place: str) -> None:
    """Check one table of the file against the struct that it becomes."""
    hints = get_type_hints(kind, include_extras=True)
    for key in table:
        if key not in hints:
            raise _Wrong(
                f"{_join(place, key)} is not a key that a task has{suggestion(key, hints)}")
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in table:
            raise _Wrong(f"{_join(place, field.name)} is missing")
    for key, value in table.items():
        _check(value, hints[key], _join(place, key))


def _check(value: object, hint: Any, place: str) -> None:
    if isinstance(hint, type) and issubclass(hint, Struct):
        if not isinstance(value, dict):
            raise _Wrong(f"{place} is {_shown(value)} and must be a table, [{place}]")
        _check_table(value, hint, place)
        return
    item = _item(hint)
    if item is not None and isinstance(value, list):
        for number, entry in enumerate(value, 1):
            name = entry.get("name") if isinstance(entry, dict) else None
            called = name[:40] if isinstance(name, str) else f"number {number}"
            _check(entry, item, f"{place}[{called}]")
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        if error.__cause__ is not None:
            raise _Wrong(f"in {place}, {error.__cause__}") from None
        raise _Wrong(f"{place} is {_shown(value)} and must be {_expected(hint, value)}") from None


def _item(hint: Any) -> type[Struct] | None:
    """The struct that a list is made of, if it is a list of structs."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    first = get_args(hint)[0] if get_origin(hint) is tuple else None
    return first if isinstance(first, type) and issubclass(first, Struct) else None


def _expected(hint: Any, value: object) -> str:
    return _words(inspect.type_info(hint), value)


def _words(kind: inspect.Type, value: object) -> str:
    """What a value of this type is, for a person."""
    if isinstance(kind, inspect.UnionType):
        kinds = [k for k in kind.types if not isinstance(k, inspect.NoneType)]
        return " or ".join(_words(k, value) for k in kinds)
    if isinstance(kind, inspect.LiteralType):
        values = [str(v) for v in kind.values]
        return f"one of: {', '.join(values)}{suggestion(value, values)}"
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        bounds = ((kind.gt, "above"), (kind.ge, "at least"),
                  (kind.lt, "below"), (kind.le, "at most"))
        limits = [f"{word} {bound:,.10g}" for bound, word in bounds if bound is not None]
        return " ".join([noun, " and ".join(limits)]).rstrip()
    if isinstance(kind, inspect.StrType):
        return "text in quotes" + _length(kind.min_length, kind.max_length, "characters")
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.VarTupleType):
        inner = "tables" if isinstance(kind.item_type, inspect.StructType) else "texts in quotes"
        return f"a list of {inner}" + _length(kind.min_length, kind.max_length, "of them")
    return "something else"


def _length(least: int | None, most: int | None, unit: str) -> str:
    limits = [f"{word} {n:,}" for n, word in ((least, "at least"), (most, "at most")) if n]
    return f", {' and '.join(limits)} {unit}" if limits else ""


def _shown(value: object, letters: int = 40) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value[:letters]}{'...' if len(value) > letters else ''}'"
    if isinstance(value, (int, float)):
        return f"{value:.12g}" if isinstance(value, float) or abs(value) < 10**12 else "too large"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else "a date or time"


def suggestion(word: object, known: Iterable[str]) -> str:
    """A hint for a misspelt word: the nearest of the known ones, or nothing."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _join(place: str, key: str) -> str:
    shown = key if len(key) <= 40 else f"{key[:40]}..."
    return f"{place}.{shown}" if place else shown


# -- the curator's key -----------------------------------------------------------------------
def curator_key(state: Path, given: Path | None = None) -> Ed25519PrivateKey:
    """The key that signs a curator's tasks.

    Args:
        state: where it is kept; made there on first use.
        given: another file to read it from instead (a 32-byte seed, or PKCS #8 in PEM).

    Raises:
        Problem: ``BAD_KEY``; ``DISK`` when it cannot be made.
    """
    if given is not None:
        return read_key(given)
    path = private_directory(state) / KEY_NAME
    try:
        handle = os.open(state, os.O_RDONLY)
    except OSError as error:
        raise Problem(DISK, path=path, why=_why(error)) from None
    try:
        # Two first uses at the same time must not end with two keys, one of them lost.
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not path.exists():
            write_whole(path, _pem(Ed25519PrivateKey.generate()), 0o600)
    finally:
        os.close(handle)
    return read_key(path)


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key that nobody but its owner can.

    Raises:
        Problem: ``BAD_KEY``.
    """

    def bad(why: str) -> Problem:
        return Problem(BAD_KEY, path=path, why=why)

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(_KEY_LIMIT)
    except FileNotFoundError:
        raise bad("there is no such file; without --key one is made for you") from None
    except OSError as error:
        raise bad(_why(error)) from None
    if mode & 0o077:
        raise bad(f"others on this machine can read or change it; type: chmod 600 {path}")
    if len(raw) == _SEED_BYTES:
        return Ed25519PrivateKey.from_private_bytes(raw)
    try:
        key = serialization.load_pem_private_key(raw, password=None)
    except TypeError:
        raise bad("it is locked with a passphrase; give a key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise bad("it is neither 32 bytes nor a key in PEM (PKCS #8)") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise bad("it is a key of another kind than Ed25519")
    return key


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
