"""Tor goes away and comes back, on either side, and nothing is lost: with a real (private) Tor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_end_to_end import MANY, curate, run, until
from test_tornet import greeter

from accord import keeper, tor
from accord.circuit import Circuit, Route, fresh_identity
from accord.problems import Problem
from accord.tor import running
from broker.hidden_service import HiddenServices
from broker.watch import Rhythm, watch
from lab.demo import Command
from lab.hospitals import split, write_files
from lab.tornet import TorNetwork

pytestmark = pytest.mark.slow

UPDATES = 200
"""At two clients' delay of up to a second it takes a minute: longer than what is done meanwhile,
so that training does not end before, with one client away and the other going on."""


def desk(tornet: TorNetwork, directory: Path) -> Command:
    return Command(directory / "broker.log", "broker", "--json", "--torrc", tornet.extra_torrc,
                   "--state", directory / "broker", "--linger", 300)


def kill_tor(directory: Path) -> int:
    """As a crash would; which one it was."""
    pid = running(directory)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


async def answers(way: Route, onion: str, tornet: TorNetwork, seconds: float = 90.0) -> float:
    """Wait until an outsider reaches an address; how long it took."""
    assert tornet.tor is not None
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            try:
                async with Circuit(way, onion, fresh_identity(), 10.0) as circuit:
                    await circuit.get("/")
                return time.monotonic() - began
            except Problem:
                # In a network that is nearly idle, relays learn late of circuits that broke.
                await tornet.tor.control.look_up(onion)
                await asyncio.sleep(0.2)


async def to_the_end(command: Command, seen: list[dict[str, Any]]) -> dict[str, Any]:
    async for line in command.lines():
        seen.append(line)
        if line["event"] == "end":
            break
    return seen[-1]


@contextlib.asynccontextmanager
async def trained(tornet: TorNetwork, directory: Path, updates: int,
                  ) -> AsyncIterator[tuple[str, str, list[Command]]]:
    """A desk and two clients, each with a tor of its own, that are training now."""
    write_files(split(), directory)
    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(desk(tornet, directory))
        address = (await broker.line())["onion"]
        onion = (await curate(tornet, directory, address, minimum="2",
                              max_updates=str(updates)))["onion"]
        options = [x for pair in MANY.items() for x in pair]
        clients = [await stack.enter_async_context(Command(
            directory / f"client-{n}.log", "join", onion, "--solve", "--json", "--data",
            directory / f"hospital-{n}.csv", "--min-clients", 2, *options,
            "--delay", 1.0, "--state", directory / f"c{n}", "--output", directory / f"model-{n}",
            "--torrc", tornet.extra_torrc)) for n in (1, 2)]
        await asyncio.gather(*(until(each, "update", least=3) for each in clients))
        yield address, onion, clients


async def test_a_training_outlives_the_death_of_every_tor(
    tornet: TorNetwork, tmp_path: Path
) -> None:
    way = Route(tornet.socks[2])
    async with trained(tornet, tmp_path, UPDATES) as (address, onion, clients):
        lines: list[list[dict[str, Any]]] = [[], []]
        ends = [asyncio.create_task(to_the_end(*each))
                for each in zip(clients, lines, strict=True)]

        # The broker's: the same addresses answer again, and both clients go on.
        first = kill_tor(tmp_path / "broker" / "tor-broker")
        desk_after = await answers(way, address, tornet)
        model_after = await answers(way, onion, tornet)
        assert running(tmp_path / "broker" / "tor-broker") not in (None, first)

        async def progress(more: int) -> None:
            before = [sum(line["event"] == "update" for line in each) for each in lines]
            async with asyncio.timeout(90):
                while any(sum(line["event"] == "update" for line in each) < had + more
                          for each, had in zip(lines, before, strict=True)):
                    assert not any(end.done() for end in ends)
                    await asyncio.sleep(0.05)

        began = time.monotonic()
        await progress(2)
        clients_after = time.monotonic() - began

        # A client's: it goes on through another, at the same place.
        began = time.monotonic()
        second = kill_tor(tmp_path / "c1" / "tor" / "0")
        await progress(2)
        client_after = time.monotonic() - began
        assert running(tmp_path / "c1" / "tor" / "0") not in (None, second)

        # A tor that sleeps for a while, and wakes up, was never away.
        pid = running(tmp_path / "broker" / "tor-broker")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(3)
        os.kill(pid, signal.SIGCONT)
        await progress(2)
        assert running(tmp_path / "broker" / "tor-broker") == pid

        told = await asyncio.gather(*ends)
        assert [each["outcome"] for each in told] == ["published", "published"]
        assert any(line["event"] == "reconnecting" for line in lines[0])
        # With the session that it had: nobody came in at the door again.
        assert not any(line["event"] == "admitted" for each in lines for line in each)
        status = await run(tmp_path / "status.log", "status", onion, "--json", "--socks",
                           tornet.socks[0])
    # None was lost and none counted twice; what was paid for and not applied is at most what each
    # had in hand at the end.
    assert status["updates"] == UPDATES
    assert UPDATES <= sum(each["updates"] for each in told) <= UPDATES + 2
    assert "tor is away: it was ended by signal 9" in (tmp_path / "broker.log").read_text()
    print(f"\ndesk {desk_after:.1f} s, model {model_after:.1f} s later, clients "
          f"{clients_after:.1f} s later; a client's own tor: {client_after:.1f} s")


async def test_a_lost_descriptor_heals_and_takes_no_conversation(
    tornet: TorNetwork, tmp_path: Path
) -> None:
    said: list[str] = []
    way = Route(tornet.socks[2])
    async with (
        keeper.launched(tmp_path / "tor", said.append, extra_torrc=tornet.extra_torrc) as kept,
        greeter(tmp_path / "socket") as socket,
    ):
        services = HiddenServices(kept.tor)
        kept.renew = services.renew
        onion = await services.publish(os.urandom(32), socket)
        gone = await services.publish(os.urandom(32), socket)
        await services.reachable(onion, 60)
        await services.remove(gone)
        async with Circuit(way, onion, fresh_identity(), 30.0) as circuit:
            talk = await circuit.websocket("/echo", 99)
            assert await services.conversing()
            await kept.tor.control.command(f"DEL_ONION {onion.removesuffix('.onion')}")
            rhythm = Rhythm(look=1.0, soon=1.0, pause=0.2, tries=2)
            watching = asyncio.create_task(watch(services, kept, said.append, rhythm))
            try:
                async with asyncio.timeout(80):
                    while not any("reached again" in line for line in said):
                        assert not watching.done()
                        await talk.send(b"still there?")
                        assert await talk.receive(30) == b"still there?"
                        await asyncio.sleep(0.2)
            finally:
                watching.cancel()
            # Nor does another publication take it.
            await services.again(onion)
            await talk.send(b"and now?")
            assert await talk.receive(30) == b"and now?"
            await talk.close()
        assert any("cannot be reached" in line for line in said)

        # What was taken away stays away, also when another tor has taken over.
        port = kept.tor.socks
        os.kill(kept.tor.pid or 0, signal.SIGKILL)
        late = await services.publish(os.urandom(32), socket)  # while tor is away
        await services.remove(onion)
        async with asyncio.timeout(60):
            while not any(line.startswith("tor is back") for line in said):
                await asyncio.sleep(0.1)
        assert kept.tor.socks == port
        assert services.onions == [late]
        told = await kept.tor.control.info("onions/current")
        assert told.split() == [late.removesuffix(".onion")]
        await services.reachable(late, 60)


async def test_a_broken_connection_to_the_systems_tor_is_made_again(
    tornet: TorNetwork, tmp_path: Path
) -> None:
    said: list[str] = []
    where = [tornet.directory / "client" / "control"]
    async with (
        keeper.Keeper(lambda: tor.attach(tornet.socks[0], control=True, control_at=where),
                      said.append) as kept,
        greeter(tmp_path / "socket") as socket,
    ):
        services = HiddenServices(kept.tor)
        kept.renew = services.renew
        onion = await services.publish(os.urandom(32), socket)
        before = kept.tor
        await before.control.close()
        async with asyncio.timeout(60):
            while not any(line.startswith("tor is back") for line in said):
                await asyncio.sleep(0.1)
        assert kept.tor is not before
        assert "control connection broke" in said[0]
        assert onion.removesuffix(".onion") in await kept.tor.control.info("onions/current")
        await services.reachable(onion, 60)
    assert all(node.alive for node in tornet.status()), "it is not ours to end"


async def test_a_broker_killed_and_started_at_once_ends_the_tor_that_was_left(
    tornet: TorNetwork, tmp_path: Path
) -> None:
    directory = tmp_path / "broker" / "tor-broker"
    async with desk(tornet, tmp_path) as first:
        address = (await first.line())["onion"]
        old = running(directory)
        assert old is not None
        # It cannot notice that its owner is gone, which it does otherwise, sooner or later.
        os.kill(old, signal.SIGSTOP)
        first._running().send_signal(signal.SIGKILL)
        await first._running().wait()
        assert running(directory) == old
    async with desk(tornet, tmp_path) as second:
        assert (await second.line())["onion"] == address
        new = running(directory)
        assert new is not None and new != old
        assert not Path(f"/proc/{old}").exists()
    assert running(directory) is None


async def test_a_tor_that_left_its_directory_behind_is_not_mistaken(tmp_path: Path) -> None:
    # Only the tor of exactly this directory is ever ended.
    (tmp_path / "torrc").touch()
    assert running(tmp_path) is None
    other = await asyncio.create_subprocess_exec("sleep", "100")
    try:
        (tmp_path / "pid").write_text(f"{other.pid}\n")
        assert running(tmp_path) is None
        with pytest.raises(Problem):
            await tor.launch(tmp_path, extra_torrc=tmp_path / "nothing-there")
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()


async def test_a_log_that_grows_begins_anew_and_tor_goes_on_writing(
    tornet: TorNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tor, "_ASK", 0.2)
    log = tmp_path / "tor" / "tor.log"
    async with await tor.launch(tmp_path / "tor", extra_torrc=tornet.extra_torrc) as own:
        watching = asyncio.create_task(own.lost())
        try:
            await asyncio.sleep(0.6)
            assert log.stat().st_size > 0, "a small one is left alone"
            with log.open("ab") as file:
                file.write(b"complaint " * (tor.LOG_LIMIT // 10 + 1))
            async with asyncio.timeout(20):
                while log.stat().st_size:
                    await asyncio.sleep(0.1)
            await own.control.command("SIGNAL HEARTBEAT")
            async with asyncio.timeout(20):
                while not log.stat().st_size:
                    await asyncio.sleep(0.1)
            assert b"Heartbeat" in log.read_bytes() and not watching.done()
        finally:
            watching.cancel()
