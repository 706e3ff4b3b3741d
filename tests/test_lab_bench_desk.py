"""The desk's bench drives real servers, counts what they acknowledge, and notices what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from accord.messages import Refused, Turn, encode
from lab.bench import desk, profiled
from lab.bench.desk_load import Load, _Client, _frame, _work


@pytest.mark.slow
def test_every_update_counted_is_one_that_the_desk_has_taken() -> None:
    with desk.Bench() as bench:
        bench.desk("desk", 3)
        bench.load("desk", "join", 3)
        size, answer = bench.load("desk", "warm", 3, True)
        before = bench.load("desk", "status").updates
        assert before == 1000
        full, cost = bench.drive("desk", 0.5)
        assert full.answered > 0 and cost >= 0.0
        assert bench.load("desk", "status").updates == before + full.answered
        paced, _ = bench.drive("desk", 1.0, 20.0)
        assert 0 < paced.answered <= 20
        assert bench.load("desk", "status").strikes == 0
        bench.echo("echo", size, answer)
        bench.load("echo", "join", 3)
        assert bench.drive("echo", 0.2)[0].answered > 0
        assert bench.megabytes("desk") > 1.0
        shares = bench.profile("desk", 0.5)
        assert sum(shares.values()) == pytest.approx(1.0)
        assert shares["broker.model_app"] > 0.0 and len(shares) <= profiled.MOST + 1


@pytest.mark.slow
def test_an_echo_of_another_size_is_noticed() -> None:
    with desk.Bench() as bench:
        bench.echo("echo", 100, 300)
        bench.load("echo", "new", bench._directory / "echo", 100, 299)
        bench.load("echo", "join", 1)
        with pytest.raises(ConnectionError, match="another size"):
            bench.drive("echo", 0.5)


def test_an_answer_without_its_receipt_is_noticed_and_one_in_pieces_is_waited_for() -> None:
    class Silent:
        def send(self, _: bytes) -> None:
            raise AssertionError

    load = Load.__new__(Load)
    load._echoes, load._size, load._answer = True, 5, 200
    client = _Client(Silent(), b"")  # type: ignore[arg-type]
    whole = b"\x82\x7e" + (200).to_bytes(2, "big") + bytes(200)
    assert not load._heard(client, whole[:3]) and not load._heard(client, whole[3:90])
    assert load._heard(client, whole[90:]) and client.updates == 1
    load._echoes = False
    client.ticket = b"t" * 16
    with pytest.raises(ConnectionError, match="not acknowledged"):
        load._heard(client, whole)
    with pytest.raises(ConnectionError, match="the server sent"):
        load._heard(client, b"\x88\x00")


def test_a_profile_counts_what_is_built_in_for_its_callers_and_no_waiting() -> None:
    here, there = (str(Path(profiled.__file__)), 1, "f"), (json.__file__, 2, "g")
    built_in, idle = ("~", 0, "<built-in method len>"), ("~", 0, profiled._IDLE)
    found = profiled.shares({
        here: (1, 1, 1.0, 9.0, {}), there: (1, 1, 1.0, 9.0, {}),
        built_in: (2, 2, 2.0, 2.0, {here: (1, 1, 1.5, 1.5), there: (1, 1, 0.5, 0.5)}),
        idle: (1, 1, 50.0, 50.0, {there: (1, 1, 50.0, 50.0)})})
    assert found == {"lab.bench.profiled": 0.625, "json": 0.375}
    assert profiled.module_of(np.__file__) == "numpy"
    many = profiled.shares({(f"/x/m{i}.py", 1, "f"): (1, 1, 1.0, 1.0, {}) for i in range(20)})
    assert many["others"] == pytest.approx(0.5)


def test_a_refusal_is_no_work() -> None:
    with pytest.raises(ConnectionError, match="no work"):
        _work(encode(Turn(b"", Refused("full", {}))), 4096)


def test_frames_are_as_rfc_6455_says() -> None:
    assert _frame(b"hello") == b"\x82\x85\0\0\0\0hello"
    assert _frame(bytes(300))[:8] == b"\x82\xfe\x01\x2c\0\0\0\0"
