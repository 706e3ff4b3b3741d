"""Services that only invited clients reach, and how much a circuit may carry: with a real Tor."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from test_end_to_end import desk, run, until
from test_tornet import greeter

from accord import tor
from accord.circuit import Circuit, Route, fresh_identity
from accord.control import Control
from accord.messages import MAX_INVITED
from accord.problems import NOT_INVITED, TOR_REFUSED, Problem
from broker.hidden_service import MAX_STREAMS, HiddenServices
from lab.demo import Command, Failed
from lab.hospitals import split, task_toml, write_files
from lab.tornet import TorNetwork


def keys(count: int) -> list[X25519PrivateKey]:
    return [X25519PrivateKey.generate() for _ in range(count)]


def public(them: list[X25519PrivateKey]) -> list[bytes]:
    return [key.public_key().public_bytes_raw() for key in them]


async def ask(tornet: TorNetwork, onion: str) -> bytes:
    async with Circuit(Route(tornet.socks[1]), onion, fresh_identity(), 30.0) as circuit:
        return await circuit.get("/")


@pytest.mark.slow
async def test_the_invited_come_in_and_nobody_else(tornet: TorNetwork, tmp_path: Path) -> None:
    # As many as there can be: a descriptor that grew too big would be found by nobody.
    guests = keys(MAX_INVITED)
    async with (
        await tor.launch(tmp_path / "tor", extra_torrc=tornet.extra_torrc) as own,
        greeter(tmp_path / "socket") as socket,
    ):
        services = HiddenServices(own)
        with pytest.raises(Problem, match=str(MAX_INVITED)) as caught:
            await services.publish(os.urandom(32), socket, invited=public(keys(MAX_INVITED + 1)))
        assert caught.value.kind is TOR_REFUSED
        assert services.onions == []
        onion = await services.publish(os.urandom(32), socket, invited=public(guests))
        # The broker itself can look, though nobody invited it.
        await services.reachable(onion, 60)

        with pytest.raises(Problem, match="no key of ours") as caught:  # F4
            await ask(tornet, onion)
        assert caught.value.kind is NOT_INVITED
        control = await Control.open(tornet.directory / "client" / "control")
        try:
            await control.add_client_key(onion, keys(1)[0].private_bytes_raw())
            with pytest.raises(Problem, match="not among theirs") as caught:  # F5
                await ask(tornet, onion)
            assert caught.value.kind is NOT_INVITED
            await control.add_client_key(onion, guests[-1].private_bytes_raw())
            assert await ask(tornet, onion) == b"hello"
            with pytest.raises(Problem) as caught:
                await control.add_client_key(onion, b"short")
            assert caught.value.kind is TOR_REFUSED
        finally:
            await control.command(f"ONION_CLIENT_AUTH_REMOVE {onion.removesuffix('.onion')}")
            await control.close()

        # Published again with other guests, the old ones stay outside, and who is in stays in.
        await services.publish(tmp_seed := os.urandom(32), socket, invited=public(guests[:1]))
        assert len(services.onions) == 2
        assert await services.publish(tmp_seed, socket) == services.onions[1]
        await services.reachable(services.onions[1], 60)
        assert await ask(tornet, services.onions[1]) == b"hello"


async def test_a_circuit_carries_so_many_streams_and_ends_with_one_more(
    tornet: TorNetwork, services: HiddenServices, tmp_path: Path
) -> None:
    identity = fresh_identity()
    async with greeter(tmp_path / "socket") as socket:
        onion = await services.publish(os.urandom(32), socket)
        await services.reachable(onion, 60)
        async with Circuit(Route(tornet.socks[1]), onion, identity, 10.0) as circuit:
            talks = [await circuit.websocket("/echo", 99) for _ in range(MAX_STREAMS)]
            await talks[0].send(b"all of them")
            assert await talks[0].receive(30) == b"all of them"
            with pytest.raises(Problem):
                await circuit.websocket("/echo", 99)
            ends = await asyncio.gather(*(t.receive(30) for t in talks), return_exceptions=True)
            # All of them end at once, and none by our own patience.
            assert [getattr(end, "details", {}).get("why") for end in ends] == (
                ["it hung up"] * MAX_STREAMS)
            for talk in talks:
                await talk.close()
        # The next circuit is as good as ever.
        assert await ask(tornet, onion) == b"hello"
        await services.remove(onion)


@pytest.mark.slow
async def test_a_model_for_invited_clients_from_end_to_end(
    tornet: TorNetwork, tmp_path: Path
) -> None:
    write_files(split(), tmp_path)
    own = ("--torrc", tornet.extra_torrc)  # a tor of its own each, that is told keys

    async def key(name: str) -> str:
        shown = await run(tmp_path / "log", "key", "--json", "--state", tmp_path / name)
        return str(shown["key"])

    task = tmp_path / "task.toml"
    task.write_text(task_toml(split()).replace("minimum = 5", "minimum = 1"))
    async with desk(tornet, tmp_path) as broker:
        told = await run(
            tmp_path / "log", "curate", task, "--json", "--validation", tmp_path / "validation.csv",
            "--broker", broker, "--invite", await key("guest"), "--state", tmp_path / "curator",
            *own)
        assert told["invited"] == 1
        onion = told["onion"]

        async def look(name: str, *way: object) -> dict[str, object]:
            return await run(tmp_path / "log", "status", onion, "--json", "--state",
                             tmp_path / name, *way)

        assert (await look("guest", *own))["phase"] == "gathering"
        assert (await look("curator", *own))["phase"] == "gathering"
        await key("other")
        for name, words in (("stranger", "no key of ours"), ("other", "not among theirs")):
            with pytest.raises(Failed, match=words):
                await look(name, *own)
        # The network's own client is a system's tor, whose control port is not where one is.
        with pytest.raises(Failed, match="invited clients only"):
            await look("stranger", "--socks", tornet.socks[0])
        joined = Command(
            tmp_path / "guest.log", "join", onion, "--solve", "--json", "--data",
            tmp_path / "hospital-1.csv", "--min-clients", 1, "--budget", 5000, "--epsilon", 3,
            "--batch", 20, "--state", tmp_path / "guest", *own)
        async with joined:
            first = await until(joined, "update", least=2)
        assert first["updates"] >= 2
