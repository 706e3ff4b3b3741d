"""Hostile inputs: nothing unexpected comes of them, and planted mistakes are seen."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from aiohttp import web
from click.testing import CliRunner

from accord import messages, model_file, task
from accord.messages import Turn, Wait, vector_from_wire
from accord.problems import PeerProblem
from broker import doorman
from broker.brokerage import Brokerage
from client.session import Conversation
from lab.soak import fuzz, fuzz_targets
from lab.soak.fuzz import Findings, Trial, peak
from lab.soak.fuzz_wire import Complaints, DeskTarget
from lab.soak.mutation import SAMPLES, hostile, mutated

Plant = Callable[[pytest.MonkeyPatch], None]
FEW = 3_000
INPUTS = 12_000
"""Within which each planted mistake is seen."""


async def fuzzed(tmp_path: Path, inputs: int, seed: int = 1) -> Findings:
    return await Trial(inputs, seed, tmp_path / "desk", tmp_path / "kept").run()


@pytest.mark.slow
async def test_nothing_unexpected_comes_of_hostile_inputs(tmp_path):
    found = await fuzzed(tmp_path, FEW)
    assert found.unexpected == []
    assert found.flat, (found.memory, found.peak)
    assert found.inputs > 0.95 * FEW
    # They are no idle tries: each target takes some, and refuses most.
    for name in fuzz_targets.TARGETS:
        kinds = found.kinds[name]
        assert len(kinds) >= 2 and 0 < kinds.most_common(1)[0][1] < sum(kinds.values()), name
    assert {"101", "200", "malformed", "not-found"} <= found.kinds["desk"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
async def test_nothing_unexpected_comes_of_more_hostile_inputs(tmp_path, seed):
    found = await fuzzed(tmp_path, 100_000, seed)
    assert found.unexpected == [] and found.flat


def test_every_message_type_is_tried():
    types = {kind for _, kind in inspect.getmembers(messages, inspect.isclass)
             if issubclass(kind, msgspec.Struct) and kind.__module__ == messages.__name__
             and not kind.__name__.startswith("_")}
    chance = random.Random(1)
    tried = set()
    for make in SAMPLES.values():
        for _ in range(300):
            sample = make(chance)
            tried.add(type(sample))
            if isinstance(sample, Turn):
                tried.add(type(sample.next))
            if isinstance(sample, messages.Curate):
                tried.add(type(sample.task))
    # Of the way back to the client, and of the way to a desk: all of them.
    assert tried - {msgspec.Struct} == types - {msgspec.Struct}


def test_the_samples_are_valid():
    chance = random.Random(2)
    for kind, make in SAMPLES.items():
        for _ in range(50):
            sample = make(chance)
            raw = messages.encode(sample)
            assert messages.decode(raw, kind, len(raw)) == sample


def test_the_same_seed_gives_the_same_inputs():
    def some(seed: int) -> list[bytes]:
        chance = random.Random(seed)
        return [hostile(make(chance), chance) for make in SAMPLES.values()]

    assert some(5) == some(5) != some(6)
    assert mutated(b"", random.Random(1)) == b""


# -- the mistakes ------------------------------------------------------------------------------

def decoder_raises_another_thing(patch: pytest.MonkeyPatch) -> None:
    true = messages.decode

    def decode(raw, kind, limit=messages.SMALL_LIMIT):
        if len(raw) > limit:
            raise PeerProblem(messages.TOO_LARGE, limit=limit)
        return msgspec.msgpack.decode(raw, type=kind) if raw[:1] == b"\x93" else true(
            raw, kind, limit)

    patch.setattr(fuzz_targets, "decode", decode)


def a_broker_trusts_the_length_of_a_delta(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Brokerage, "_delta",
                  lambda self, push: np.frombuffer(
                      push.delta[: len(push.delta) // 4 * 4], "<f4"))


def a_broker_takes_what_is_not_finite(patch: pytest.MonkeyPatch) -> None:
    def delta(self, push):
        raw = push.delta
        return np.frombuffer(raw, "<f4") if len(raw) == 4 * self.task.dimension else None

    patch.setattr(Brokerage, "_delta", delta)


def a_client_works_on_what_is_not_finite(patch: pytest.MonkeyPatch) -> None:
    from client import session

    def read(raw, dimension, precision):
        return np.frombuffer(raw, "<f4") if len(raw) == 4 * dimension else None

    patch.setattr(session, "vector_from_wire", read)


def a_client_believes_any_reason_to_wait(patch: pytest.MonkeyPatch) -> None:
    def wait(self, wait: Wait, now: float):
        kind = {"too-few-clients": 1, "round-open": 2}[wait.why]
        self._due = now + kind
        return wait

    patch.setattr(Conversation, "_wait", wait)


def a_task_need_not_be_canonical(patch: pytest.MonkeyPatch) -> None:
    def opened(signed, address):
        try:
            return msgspec.json.decode(signed.body, type=task.Task)
        except (msgspec.MsgspecError, ValueError):
            raise PeerProblem(messages.MALFORMED) from None

    patch.setattr(fuzz_targets, "open_task", opened)


def a_model_file_needs_no_signature(patch: pytest.MonkeyPatch) -> None:
    class Believer:
        @staticmethod
        def from_public_bytes(raw):
            return Believer()

        def verify(self, *what):
            pass

    patch.setattr(model_file, "Ed25519PublicKey", Believer)


def a_desk_makes_mistakes_of_its_own(patch: pytest.MonkeyPatch) -> None:
    async def sentences(request, handler):
        try:
            return await handler(request)
        except PeerProblem as problem:
            return web.Response(status=500 if problem.kind.code == "malformed" else 400)

    patch.setattr(doorman, "sentences", sentences)


PLANTED: list[Plant] = [
    decoder_raises_another_thing, a_broker_trusts_the_length_of_a_delta,
    a_broker_takes_what_is_not_finite, a_client_works_on_what_is_not_finite,
    a_client_believes_any_reason_to_wait, a_task_need_not_be_canonical,
    a_model_file_needs_no_signature, a_desk_makes_mistakes_of_its_own,
]


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
async def test_a_planted_mistake_is_seen(plant, monkeypatch, tmp_path):
    plant(monkeypatch)
    found = await fuzzed(tmp_path, INPUTS)
    assert found.unexpected
    kept = found.unexpected[0]
    assert Path(kept["input"]).exists() and kept["target"] and kept["what"]


async def test_what_is_logged_as_a_mistake_is_seen():
    complaints = Complaints()
    with complaints.listening():
        import logging

        logging.getLogger("tormentor.broker").error("something")
        asyncio.get_running_loop().call_exception_handler({"message": "something else"})
    assert len(complaints.found) == 2


@pytest.mark.slow
async def test_memory_that_grows_is_seen(tmp_path, monkeypatch):
    kept: list[bytes] = []
    true = fuzz_targets.Decoder.one

    def one(self, chance):
        kept.append(bytes(100_000))
        return true(self, chance)

    monkeypatch.setattr(fuzz_targets.Decoder, "one", one)
    found = await fuzzed(tmp_path, 4_000)
    assert not found.flat and found.memory[1] > found.memory[0] + 30


def test_a_decoder_that_believes_declared_lengths_is_seen(monkeypatch):
    assert peak(random.Random(1), 30) < fuzz.SMALL
    true = messages.decode

    def decode(raw, kind, limit):
        bytearray(8 * len(raw) + 4_000_000)
        return true(raw, kind, limit)

    monkeypatch.setattr(fuzz, "decode", decode)
    assert peak(random.Random(1), 30) > fuzz.SMALL


async def test_the_desk_still_serves_the_honest_after_it_all(tmp_path):
    chance = random.Random(9)
    async with DeskTarget.open(tmp_path) as desk:
        await asyncio.gather(*(desk.one(chance) for _ in range(60)))
        await desk.healthy()


@pytest.mark.slow
def test_the_command_says_what_it_did(tmp_path, monkeypatch):
    keep = tmp_path / "kept"
    args = ["--inputs", "800", "--seed", "4", "--keep", str(keep), "--json"]
    done = CliRunner().invoke(fuzz.command, args)
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["unexpected"] == [] and not keep.exists()
    assert told["inputs"] == sum(t["inputs"] for t in told["targets"].values()) >= 700
    a_broker_trusts_the_length_of_a_delta(monkeypatch)
    done = CliRunner().invoke(fuzz.command, ["--inputs", "6000", *args[2:-1]])
    assert done.exit_code == 1 and "UNEXPECTED in brokerage" in done.stderr
    assert any(keep.iterdir())


def test_vectors_are_checked_where_they_are_read():
    # What several of the mistakes above leave out.
    assert vector_from_wire(np.array([np.nan], "<f4").tobytes(), 1) is None
    assert vector_from_wire(bytes(3), 1) is None
