"""Hostile bytes: valid messages of every type, and what can be done to them.

Most of what random bytes would try dies at the first byte. So inputs begin as valid messages, with
their values at the limits that their types allow, and are then changed: as bytes (flipped, cut,
spliced, other lengths declared, nested deep) or as trees (other types, missing and additional
fields, numbers at and beyond every limit, text that is none), and encoded again.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from accord.messages import (
    MAX_CLIENTS,
    MAX_STEPS,
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
)
from accord.problems import KINDS

Chance = random.Random

NUMBERS: Final[tuple[Any, ...]] = (
    0, -1, 1, 31, 32, 33, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, -(2**31), 2**32,
    2**53 - 1, 2**53, 2**63 - 1, -(2**63), 2**64 - 1, 0.0, -0.0, 0.5, 1.0, -1.0, 1e9, 1e300,
    5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf, True, False, None)
_HEADS: Final = (
    b"\xc4\xff", b"\xc5\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xd9\xff", b"\xda\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\xdd\x7f\xff\xff\xff", b"\xc6\x7f\xff\xff\xff", b"\xc7\xff\x01",
    b"\xc8\xff\xff\x01", b"\xc9\xff\xff\xff\xff\xff", b"\xd4\xff\x00", b"\xd8\x01", b"\xc1",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", b"\xca\x7f\x80\x00\x00", b"\xc0", b"\x80", b"\x90",
    b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff")
"""Heads of msgpack values that declare much, or are of a type that nobody expects."""
_NESTS: Final = (b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\x81\x91")


def _bytes(chance: Chance, *lengths: int) -> bytes:
    return chance.randbytes(chance.choice(lengths))


def _text(chance: Chance, least: int, most: int) -> str:
    length = chance.choice([least, most, chance.randint(least, most)])
    letters = chance.choice([string.ascii_letters, "\x00\x1b[31m\n\u202e", "ä€𝔸\u0301"])
    return "".join(chance.choices(letters, k=length))


def _count(chance: Chance) -> int:
    return chance.choice([0, 1, 7, 2**31, 2**53 - 1])


def _refused(chance: Chance) -> Refused:
    code = chance.choice([*KINDS, "made-up"])
    names = ["limit", "have", "need", "k", "maximum", "dimension", "strikes", "x", "kind", "self"]
    return Refused(code, {n: _count(chance) for n in chance.sample(names, chance.randint(0, 4))})


def _work(chance: Chance) -> Work:
    return Work(_bytes(chance, 16), _bytes(chance, 0, 4, 16, 400), _bytes(chance, 1, 16, 64),
                chance.choice([0, 2, 64]))


def _wait(chance: Chance) -> Wait:
    why = chance.choice(["too-few-clients", "round-open", "made-up", *KINDS])
    return Wait(why, chance.choice([0, MAX_CLIENTS]), chance.choice([0, 1, MAX_CLIENTS]),
                chance.choice([0.0, 1e-9, 10.0, 1e9]))


def _turn(chance: Chance) -> Turn:
    what: Work | Wait | End | Refused = End()
    match chance.randrange(10):
        case 0 | 1 | 2:
            what = _work(chance)
        case 3 | 4 | 5:
            what = _wait(chance)
        case 6 | 7 | 8:
            what = _refused(chance)
    return Turn(_bytes(chance, 0, 1, 16), what, _count(chance), _count(chance), _count(chance))


def _signed(chance: Chance) -> SignedTask:
    return SignedTask(_bytes(chance, 2, 50, 500), _bytes(chance, 32), _bytes(chance, 64))


def _curate(chance: Chance) -> Curate:
    invited = tuple(_bytes(chance, 32) for _ in range(chance.randint(0, 3)))
    return Curate(_signed(chance), _bytes(chance, 0, 16, 160), _bytes(chance, 0, 1, 10),
                  _bytes(chance, 16), invited)


def _status(chance: Chance) -> Status:
    def share() -> float | None:
        return chance.choice([None, 0.0, 1.0, 0.3])

    return Status(
        phase=chance.choice(["waiting", "gathering", "training", "paused", "published", "gone"]),
        title=_text(chance, 0, 200), task=_text(chance, 64, 64), clients=_clients(chance),
        needed=_clients(chance), updates=_count(chance), max_updates=_count(chance),
        error=share(), best_error=share(), baseline=share(), judged=_count(chance),
        struck=_count(chance), strikes=_count(chance), seconds=chance.choice([0.0, 1e9]),
        left=chance.choice([0.0, 1e9, 3.5]), ended=_text(chance, 0, 40))


def _clients(chance: Chance) -> int:
    return chance.choice([0, 1, MAX_CLIENTS])


def _push(chance: Chance) -> Push:
    return Push(_bytes(chance, 16), _bytes(chance, 0, 8, 32), _bytes(chance, 0, 16, 400),
                chance.choice([1, 1, 2, MAX_STEPS]))


SAMPLES: Final[dict[Any, Callable[[Chance], Struct]]] = {
    SignedTask: _signed,
    Curate: _curate,
    Curated: lambda c: Curated(_text(c, 62, 62)),
    AdmissionPuzzle: lambda c: AdmissionPuzzle(
        _bytes(c, 1, 41, 64), c.choice([0, 64]), c.choice([0.0, 1e9])),
    Join: lambda c: Join(_bytes(c, 1, 41, 64), _bytes(c, 0, 8, 32), c.choice([1, MAX_CLIENTS])),
    Welcome: lambda c: Welcome(_bytes(c, 32)),
    Hello: lambda c: Hello(_bytes(c, 32)),
    FromClient: lambda c: c.choice((_push(c), Pull(), Leave())),
    Turn: _turn,
    Refused: _refused,
    Status: _status,
}
"""What travels by itself, and how a valid one is made; every type of :mod:`accord.messages` is in
one of them."""


# -- changing bytes --------------------------------------------------------------------------

def _flip(raw: bytearray, chance: Chance) -> None:
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)


def _cut(raw: bytearray, chance: Chance) -> None:
    if chance.random() < 0.5:
        del raw[chance.randrange(len(raw)):]
    else:
        start = chance.randrange(len(raw))
        del raw[start : start + chance.randint(1, 8)]


def _insert(raw: bytearray, chance: Chance) -> None:
    at = chance.randrange(len(raw) + 1)
    raw[at:at] = chance.randbytes(chance.choice([1, 1, 2, 4, 40]))


def _overwrite(raw: bytearray, chance: Chance) -> None:
    at = chance.randrange(len(raw))
    raw[at : at + 1] = chance.choice([b"\x00", b"\xff", b"\x7f", b"\x80", b"\xc1", b"\xc0"])


def _declare(raw: bytearray, chance: Chance) -> None:
    at = chance.randrange(len(raw))
    raw[at : at + chance.choice([0, 1, 2])] = chance.choice(_HEADS)


def _repeat(raw: bytearray, chance: Chance) -> None:
    start = chance.randrange(len(raw))
    piece = raw[start : start + chance.randint(1, 64)]
    raw[start:start] = piece * chance.choice([1, 2, 20])


def _nest(raw: bytearray, chance: Chance) -> None:
    at = chance.randrange(len(raw))
    raw[at:at] = chance.choice(_NESTS) * chance.choice([2, 20, 600, 3000])


def _splice(raw: bytearray, chance: Chance) -> None:
    other = msgspec.msgpack.encode(chance.choice(list(SAMPLES.values()))(chance))
    at = chance.randrange(len(raw))
    raw[at:] = other[chance.randrange(len(other)):]


def _random(raw: bytearray, chance: Chance) -> None:
    raw[:] = chance.randbytes(chance.choice([0, 1, 2, 10, 100, 4096]))


_CHANGES: Final = (_flip, _flip, _flip, _cut, _insert, _overwrite, _overwrite, _declare, _declare,
                   _repeat, _nest, _splice, _random)


def mutated(raw: bytes, chance: Chance) -> bytes:
    """The bytes with one to three changes."""
    changed = bytearray(raw)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if not changed:
            break
        chance.choice(_CHANGES)(changed, chance)
    return bytes(changed)


# -- changing trees --------------------------------------------------------------------------

def anything(chance: Chance, depth: int = 3) -> Any:
    """A value of any type that msgpack and JSON know."""
    kind = chance.randrange(8 if depth else 5)
    if kind < 2:
        return chance.choice(NUMBERS)
    if kind == 2:
        return chance.randbytes(chance.choice([0, 1, 16, 32, 64, 65]))
    if kind in (3, 4):
        return _text(chance, 0, chance.choice([1, 62, 64, 200, 300]))
    if kind in (5, 6):
        return {_text(chance, 0, 12): anything(chance, depth - 1)
                for _ in range(chance.randrange(4))}
    return [anything(chance, depth - 1) for _ in range(chance.randrange(4))]


def distorted(tree: Any, chance: Chance) -> Any:
    """A tree of dicts, lists and values with one change somewhere in it."""
    if isinstance(tree, dict) and tree and chance.random() < 0.85:
        tree = dict(tree)
        key = chance.choice(list(tree))
        act = chance.randrange(8)
        if act == 0:
            del tree[key]
        elif act == 1:
            tree[_text(chance, 0, 20)] = anything(chance)
        elif act == 2:
            tree[chance.choice(list(tree))] = tree[key]
        else:
            tree[key] = distorted(tree[key], chance)
        return tree
    if isinstance(tree, list | tuple) and tree and chance.random() < 0.9:
        changed = list(tree)
        at = chance.randrange(len(changed))
        act = chance.randrange(5)
        if act == 0:
            del changed[at]
        elif act == 1:
            changed[at:at] = [changed[at]] * chance.choice([1, 3, 30])
        else:
            changed[at] = distorted(changed[at], chance)
        return changed
    if isinstance(tree, int | float) and not isinstance(tree, bool) and chance.random() < 0.7:
        return chance.choice([*NUMBERS, tree + 1, tree - 1, -tree, float(tree)])
    if isinstance(tree, str) and chance.random() < 0.5:
        return chance.choice([tree + "x", tree[:-1], tree * 2, tree.upper(), tree + "\x00",
                              tree + "\n", "", _text(chance, 0, 40)])
    if isinstance(tree, bytes) and chance.random() < 0.5:
        return chance.choice([tree + b"x", tree[:-1], tree * 2, tree[::-1], b""])
    return anything(chance)


def hostile(sample: Struct, chance: Chance) -> bytes:
    """The bytes of a message, now and then as it is, mostly changed."""
    way = chance.random()
    if way < 0.02:
        return msgspec.msgpack.encode(sample)
    if way < 0.45:
        tree = msgspec.to_builtins(sample, builtin_types=(bytes,))
        for _ in range(chance.choice([1, 1, 2])):
            tree = distorted(tree, chance)
        try:
            return msgspec.msgpack.encode(tree)
        except OverflowError:
            # One more than the largest number that msgpack has.
            return mutated(msgspec.msgpack.encode(sample), chance)
    if way < 0.5:
        return msgspec.msgpack.encode(anything(chance, 5))
    return mutated(msgspec.msgpack.encode(sample), chance)
