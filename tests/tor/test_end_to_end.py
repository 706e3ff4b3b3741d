"""The whole system as its users run it: real commands, real processes, a real (private) Tor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from accord.model_file import read_model
from lab.demo import Command
from lab.hospitals import split, task_toml, write_files
from lab.tornet import TorNetwork

UPDATES = 240
ROUNDS = 40
MANY = {"--budget": 5000, "--epsilon": 3, "--batch": 20}


@contextlib.asynccontextmanager
async def desk(tornet: TorNetwork, directory: Path) -> AsyncIterator[str]:
    """A broker in a process of its own, with its own tor; gives its address."""
    command = Command(directory / "broker.log", "broker", "--json", "--torrc", tornet.extra_torrc,
                      "--state", directory / "broker", "--linger", 300)
    async with command:
        yield (await command.line())["onion"]


async def run(log: Path, *arguments: object) -> dict[str, Any]:
    """A command to its end; its last JSON line."""
    async with Command(log, *arguments) as command:
        lines = [line async for line in command.lines()]
        await command.finish()
    return lines[-1]


async def curate(
    tornet: TorNetwork, directory: Path, broker: str, **settings: str
) -> dict[str, Any]:
    """Hand a task over, with some of its settings changed."""
    text = task_toml(split())
    for old, new in settings.items():
        lines = [f"{old} = {new}" if line.startswith(f"{old} = ") else line
                 for line in text.splitlines()]
        assert f"{old} = {new}" in lines
        text = "\n".join(lines)
    task = directory / f"task-{len(list(directory.glob('task-*')))}.toml"
    task.write_text(text)
    return await run(directory / "curate.log", "curate", task, "--json", "--validation",
                     directory / "validation.csv", "--broker", broker, "--state",
                     directory / "curator", "--socks", tornet.socks[0])


def model_path(directory: Path, onion: str, number: int) -> Path:
    return directory / f"{onion[:8]}-{number}.safetensors"


def client(tornet: TorNetwork, directory: Path, onion: str, number: int, k: int, *more: object,
           ) -> Command:
    """``join --solve`` of one hospital, with a state of its own for this model."""
    state = directory / f"{onion[:8]}-{number}"
    options = [x for pair in MANY.items() for x in pair]
    log = directory / f"client-{onion[:8]}-{number}.log"
    return Command(log, "join", onion, "--solve", "--json",
                   "--data", directory / f"hospital-{number}.csv", "--min-clients", k, *options,
                   "--state", state, "--output", model_path(directory, onion, number),
                   "--socks", tornet.socks[1], *more)


async def until(command: Command, event: str, least: int = 0) -> dict[str, Any]:
    """Read a client's lines up to this event (with at least so many updates)."""
    async for line in command.lines():
        if line["event"] == event and line.get("updates", 0) >= least:
            return line
    raise AssertionError(f"it ended without '{event}'")


async def to_the_end(command: Command) -> dict[str, Any]:
    last = await until(command, "end")
    await command.finish()
    return last


async def test_two_models_at_once_and_a_client_killed_and_resumed(tornet, tmp_path):
    write_files(split(), tmp_path)
    async with desk(tornet, tmp_path) as broker, contextlib.AsyncExitStack() as stack:
        told = [
            await curate(tornet, tmp_path, broker, minimum="3", max_updates=str(UPDATES)),
            await curate(tornet, tmp_path, broker, minimum="3", max_updates=str(ROUNDS),
                         mode='"synchronous"'),
        ]
        onions = [each["onion"] for each in told]
        assert len(set(onions)) == 2 and broker not in onions
        assert told[0]["curator"] == told[1]["curator"]
        clients = {
            (onion, n): await stack.enter_async_context(
                client(tornet, tmp_path, onion, n, 3, "--curator", told[0]["curator"]))
            for onion in onions for n in (1, 2, 3)
        }
        victim = clients.pop((onions[0], 1))
        before = await until(victim, "update", least=4)
        victim._running().send_signal(signal.SIGKILL)
        await victim._running().wait()
        state = tmp_path / f"{onions[0][:8]}-1"
        assert not model_path(tmp_path, onions[0], 1).exists()
        resumed = await stack.enter_async_context(
            Command(tmp_path / "resumed.log", "solve", onions[0], "--json", "--state", state,
                    "--socks", tornet.socks[1]))
        ends = await asyncio.gather(to_the_end(resumed), *map(to_the_end, clients.values()))
        assert [end["outcome"] for end in ends] == ["published"] * 6
        # What was spent before the kill is still in the ledger, and training went on from there.
        assert ends[0]["updates"] > before["updates"]
        assert ends[0]["epsilon_total"] > before["epsilon"]
        for onion in onions:
            paths = [model_path(tmp_path, onion, n) for n in (1, 2, 3)]
            assert len({path.read_bytes() for path in paths}) == 1
            verified = await run(tmp_path / "verify.log", "verify", paths[0], "--onion", onion,
                                 "--json")
            assert verified["onion"] == onion
            model = read_model(paths[0].read_bytes(), "it", onion)
            assert model.updates == (UPDATES if onion == onions[0] else ROUNDS)
            assert np.abs(model.weights).max() > 0
        wrong = Command(tmp_path / "verify.log", "verify", paths[0], "--onion", onions[0], "--json")
        async with wrong:
            raw = await wrong._running().stdout.read()
            assert await wrong._running().wait() == 8
            assert json.loads(raw)["error"] == "bad-model"


async def test_nobody_trains_below_anyones_k_and_the_fifth_starts_it(tornet, tmp_path):
    write_files(split(), tmp_path)
    async with desk(tornet, tmp_path) as broker, contextlib.AsyncExitStack() as stack:
        told = await curate(tornet, tmp_path, broker, minimum="2", max_updates="20")
        onion = told["onion"]

        async def status() -> dict[str, Any]:
            return await run(tmp_path / "status.log", "status", onion, "--json", "--socks",
                             tornet.socks[0])

        async def join(number: int, k: int) -> Command:
            return await stack.enter_async_context(client(tornet, tmp_path, onion, number, k))

        # The demanding one comes first: the others alone would be enough for each other.
        three = [await join(1, 5)]
        waits = [await until(three[0], "waiting")]
        three += [await join(2, 1), await join(3, 1)]
        waits += await asyncio.gather(*(until(each, "waiting") for each in three[1:]))
        assert {wait["why"] for wait in waits} == {"too-few-clients"}
        while waits[1]["have"] < 3 or waits[1]["need"] < 5:
            waits[1] = await until(three[1], "waiting")
        assert (waits[1]["have"], waits[1]["need"]) == (3, 5)
        fourth = await join(4, 1)
        wait = await until(fourth, "waiting")
        while wait["have"] < 4:
            wait = await until(fourth, "waiting")
        now = await status()
        assert (now["phase"], now["clients"], now["needed"]) == ("gathering", 4, 5)
        assert now["updates"] == 0 and now["error"] is None
        ledgers = [path for path in tmp_path.rglob("ledgers/*") if path.is_file()]
        assert all(b"spend" not in path.read_bytes() for path in ledgers)
        fifth = await join(5, 2)
        ends = await asyncio.gather(*(to_the_end(each) for each in (*three, fourth, fifth)))
        assert {end["outcome"] for end in ends} == {"published"}
        assert (await status())["updates"] == 20


async def test_a_desk_killed_and_started_again_has_the_same_address(tornet, tmp_path):
    async def address() -> str:
        async with desk(tornet, tmp_path) as broker:
            return broker

    command = Command(tmp_path / "broker.log", "broker", "--json", "--torrc", tornet.extra_torrc,
                      "--state", tmp_path / "broker")
    async with command:
        first = (await command.line())["onion"]
        command._running().send_signal(signal.SIGKILL)
        await command._running().wait()
    assert await address() == first
    assert (tmp_path / "broker" / "desk.seed").stat().st_mode & 0o777 == 0o600
