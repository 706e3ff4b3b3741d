"""Machine code that tries many solutions of a puzzle at once.

SHA-256 (FIPS 180-4) written out for locks of one length, on vectors with one solution in each lane
as wide as this processor has them; LLVM, by way of the optional llvmlite, makes machine code of it
in half a second. What is the same for all lanes is reckoned once a call: the rounds before the
counter comes, the words that are padding. What no answer depends on is not reckoned at all: the
last word of the digest, which has the zeros, is known three rounds before the others.

It finds candidates: solutions whose digest's last 32 bits are as they should be. Only what
:func:`accord.puzzle.verify` says of them counts, so no fault in here can send a wrong solution.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any, Final

MIN_LOCK: Final = 1
MAX_LOCK: Final = 64
"""Bytes of the locks that there is machine code for."""
MOST: Final = 1 << 30
"""Solutions that one call may try."""
_NONE: Final = 0xFFFF_FFFF
_COUNTER: Final = 8
_BLOCK: Final = 64
_LENGTH: Final = 8  # bytes that say how long the message was, at its end
_ROUNDS: Final = 64
_LAST: Final = 3  # rounds that only move the word with the zeros to its place

_START: Final = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_K: Final = (
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2,
)

Find = Callable[[bytes, int, int, int], int | None]
"""Tries ``count`` solutions from ``start``, of a lock, for a mask on the digest's last 32 bits: the
index of the first that has zeros there (from ``start``), or None. ``start + count`` is at most the
next multiple of 2**32, ``count`` at most :data:`MOST`. It lets other threads run meanwhile."""


def compiled(length: int, lanes: int = 0) -> Find:
    """Machine code for locks of so many bytes (1 ... 64). Takes about half a second.

    Args:
        length: of the locks, in bytes.
        lanes: solutions tried at once; 0 is as many as a vector of this processor holds.

    Raises:
        ImportError: llvmlite is not installed.
        Exception: whatever keeps LLVM from making code for this processor.
    """
    if not MIN_LOCK <= length <= MAX_LOCK:
        raise ValueError(f"there is no code for locks of {length} bytes")
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know how to ask this processor
        features = binding.FeatureMap()
    lanes = lanes or (16 if features.get("avx512f") else 8 if features.get("avx2") else 4)
    module = binding.parse_assembly(_write(length, lanes))
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features.flatten(), opt=3)
    # The code is straight: LLVM's passes over it take longer than they gain.
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    word = ctypes.c_uint32
    call = ctypes.CFUNCTYPE(word, ctypes.POINTER(word), word, word, word)(
        engine.get_function_address("find"))
    blocks = _blocks(length)

    def find(lock: bytes, start: int, count: int, mask: int, _alive: object = engine) -> int | None:
        # The lower half of the counter is the lanes' own.
        message = lock + (start >> 32).to_bytes(4, "big") + bytes(4) + b"\x80"
        message += bytes(blocks * _BLOCK - _LENGTH - len(message))
        message += struct.pack(">Q", 8 * (length + _COUNTER))
        words = (word * (16 * blocks))(*struct.unpack(f">{16 * blocks}I", message))
        index = call(words, start & _NONE, count, mask)
        # The last vector may look beyond the end.
        return index if index < count else None

    return find


def _blocks(length: int) -> int:
    """Blocks of 64 bytes that a message with a lock of so many bytes is padded to."""
    return -(-(length + _COUNTER + 1 + _LENGTH) // _BLOCK)


def _write(length: int, wide: int) -> str:
    """The code for locks of ``length`` bytes and ``wide`` lanes, in LLVM's language.

    ``find(words, start, count, mask)``: the words of the padded message with zeros for the lower
    half of the counter; gives an index, or 2**32 - 1 where there is none.
    """
    from llvmlite import ir

    code = _Code(wide)
    blocks = _blocks(length)
    words = [code.word(i) for i in range(16 * blocks)]
    at, skip = divmod(length + _COUNTER - 4, 4)
    counter = code.counter
    words[at] = code.either(words[at], code.shift("lshr", counter, 8 * skip))
    if skip:
        words[at + 1] = code.either(words[at + 1], code.shift("shl", counter, 32 - 8 * skip))
    state: list[Any] = [code.number(n) for n in _START]
    for block in range(blocks - 1):
        made = _rounds(code, state, words[16 * block:16 * block + 16], _ROUNDS)
        state = [code.add(x, y) for x, y in zip(state, made, strict=True)]
    made = _rounds(code, state, words[-16:], _ROUNDS - _LAST)
    digest = code.add(state[7], made[7 - _LAST])
    lanes = code.body.icmp_unsigned("==", code.both(digest, code.mask), ir.Constant(code.vector, 0))
    return code.finish(lanes)


def _rounds(code: _Code, state: list[Any], words: list[Any], rounds: int) -> list[Any]:
    """The first so many rounds of one block, in the standard's letters."""
    a, b, c, d, e, f, g, h = state
    w = list(words)
    for t in range(rounds):
        if t >= 16:
            x, y = w[(t - 15) % 16], w[(t - 2) % 16]
            w[t % 16] = code.add(
                w[t % 16], w[(t - 7) % 16],
                code.differ(code.turn(x, 7), code.turn(x, 18), code.shift("lshr", x, 3)),
                code.differ(code.turn(y, 17), code.turn(y, 19), code.shift("lshr", y, 10)))
        first = code.add(
            h, code.number(_K[t]), w[t % 16],
            code.differ(code.turn(e, 6), code.turn(e, 11), code.turn(e, 25)),
            code.differ(g, code.both(e, code.differ(f, g))))
        second = code.add(
            code.differ(code.turn(a, 2), code.turn(a, 13), code.turn(a, 22)),
            code.either(code.both(a, b), code.both(c, code.either(a, b))))
        a, b, c, d, e, f, g, h = code.add(first, second), a, b, c, code.add(d, first), e, f, g
    return [a, b, c, d, e, f, g, h]


class _Code:
    """Writes a loop over a counter, ``wide`` lanes at a time.

    Values are words, the same for all lanes and reckoned before the loop, or vectors of them, one
    for each lane.
    """

    def __init__(self, wide: int) -> None:
        from llvmlite import ir

        self._ir, self._wide = ir, wide
        self._word = ir.IntType(32)
        self.vector = ir.VectorType(self._word, wide)
        self._module = ir.Module()
        self._turns = {
            kind: ir.Function(self._module, ir.FunctionType(kind, [kind] * 3), f"llvm.fshr.{name}")
            for kind, name in ((self._word, "i32"), (self.vector, f"v{wide}i32"))}
        self._find = ir.Function(self._module, ir.FunctionType(
            self._word, [self._word.as_pointer(), self._word, self._word, self._word]), "find")
        self._words, start, self._count, self.mask = self._find.args
        self._loop = self._find.append_basic_block("before"), self._find.append_basic_block("loop")
        self._before, self.body = (ir.IRBuilder(block) for block in self._loop)
        self._spread_out: dict[Any, Any] = {}
        self._first = self._before.add(
            self._spread(start), ir.Constant(self.vector, list(range(wide))))
        self.counter = self.body.phi(self.vector)
        self._done = self.body.phi(self._word)

    def number(self, value: int) -> Any:
        """A word that is known now."""
        return self._ir.Constant(self._word, value)

    def word(self, index: int) -> Any:
        """A word of the message."""
        return self._before.load(self._before.gep(self._words, [self.number(index)]))

    def add(self, *values: Any) -> Any:
        """The sum; of the words first, as that is done once."""
        return self._each("add", *sorted(values, key=self._varies))

    def differ(self, *values: Any) -> Any:
        """Exclusive or."""
        return self._each("xor", *values)

    def both(self, x: Any, y: Any) -> Any:
        """And."""
        return self._each("and_", x, y)

    def either(self, x: Any, y: Any) -> Any:
        """Or."""
        return self._each("or_", x, y)

    def shift(self, way: str, value: Any, by: int) -> Any:
        """Shifted by so many bits, ``shl`` or ``lshr``."""
        return getattr(self._builder(value), way)(value, self._amount(value, by))

    def turn(self, value: Any, by: int) -> Any:
        """Rotated right by so many bits."""
        turn = self._turns[value.type]
        return self._builder(value).call(turn, [value, value, self._amount(value, by)])

    def finish(self, lanes: Any) -> str:
        """End the loop where one of these lanes (a vector of bits) is set, or all are done."""
        ir, body = self._ir, self.body
        bits = ir.IntType(self._wide)
        hits = body.bitcast(lanes, bits)
        on = body.add(self.counter, self._same(self._wide))
        done = body.add(self._done, self.number(self._wide))
        hit, miss, none = (self._find.append_basic_block(n) for n in ("hit", "miss", "none"))
        before, loop = self._loop
        body.cbranch(body.icmp_unsigned("!=", hits, ir.Constant(bits, 0)), hit, miss)
        end = ir.IRBuilder(hit)
        lane = end.cttz(end.zext(hits, self._word), ir.Constant(ir.IntType(1), 1))
        end.ret(end.add(self._done, lane))
        end = ir.IRBuilder(miss)
        end.cbranch(end.icmp_unsigned("<", done, self._count), loop, none)
        ir.IRBuilder(none).ret(self.number(_NONE))
        self._before.branch(loop)
        for phi, first, then in ((self.counter, self._first, on),
                                 (self._done, self.number(0), done)):
            phi.add_incoming(first, before)
            phi.add_incoming(then, miss)
        return str(self._module)

    def _varies(self, value: Any) -> bool:
        return bool(value.type == self.vector)

    def _builder(self, *values: Any) -> Any:
        return self.body if any(map(self._varies, values)) else self._before

    def _each(self, name: str, first: Any, *others: Any) -> Any:
        for other in others:
            builder = self._builder(first, other)
            if builder is self.body:
                first, other = self._spread(first), self._spread(other)
            first = getattr(builder, name)(first, other)
        return first

    def _spread(self, value: Any) -> Any:
        """The same word in all lanes."""
        if self._varies(value):
            return value
        if value not in self._spread_out:
            ir = self._ir
            none = ir.Constant(self.vector, ir.Undefined)
            one = self._before.insert_element(none, value, self.number(0))
            where = ir.Constant(self.vector, [0] * self._wide)
            self._spread_out[value] = self._before.shuffle_vector(one, none, where)
        return self._spread_out[value]

    def _amount(self, value: Any, by: int) -> Any:
        return self._same(by) if self._varies(value) else self.number(by)

    def _same(self, value: int) -> Any:
        """A number in all lanes."""
        return self._ir.Constant(self.vector, [value] * self._wide)
