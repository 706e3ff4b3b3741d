"""The private network, and onion services on it, with real tor processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web

from accord import tor
from accord.circuit import Circuit, Route, fresh_identity
from accord.onion import onion_from_seed
from accord.problems import AWAY, BAD_KEY, LOCKED, TOR_FAILED, TOR_REFUSED, Problem
from accord.seed import load_or_create_seed
from broker.hidden_service import HiddenServices
from lab.tornet import Link, TorNetwork

ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.asynccontextmanager
async def greeter(path: Path, words: bytes = b"hello") -> AsyncIterator[Path]:
    """A server on a Unix socket that answers everyone, over HTTP and in a WebSocket."""

    async def hello(request: web.Request) -> web.Response:
        return web.Response(body=words)

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_bytes(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_get("/echo", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield path
    finally:
        await runner.cleanup()


def tors_of(directory: Path) -> list[int]:
    """Processes whose command line names this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if command.split(b"\0")[0].endswith(b"tor") and bytes(directory) in command:
                found.append(int(entry.name))
    return found


async def gone(directory: Path, seconds: float) -> float:
    """Wait until no tor of this directory is left; how long it took."""
    began = time.monotonic()
    while tors_of(directory):
        assert time.monotonic() - began < seconds, f"still there: {tors_of(directory)}"
        await asyncio.sleep(0.1)
    return time.monotonic() - began


def test_it_is_all_there(tornet: TorNetwork) -> None:
    assert len(tornet.socks) == 3 == len({socks.port for socks in tornet.socks})
    assert len(tornet.status()) == 8
    assert all(node.alive for node in tornet.status())
    consensus = (tornet.directory / "authority0" / "cached-microdesc-consensus").read_text()
    assert consensus.count("\nr ") == 7


async def test_an_onion_service_from_its_birth_to_its_end(
    tornet: TorNetwork, services: HiddenServices, tmp_path: Path
) -> None:
    seed = load_or_create_seed(tmp_path / "seed")
    tries: list[int] = []
    async with greeter(tmp_path / "socket") as socket:
        await services.share_with_tor(tmp_path)
        onion = await services.publish(seed, socket)
        assert onion == onion_from_seed(seed)
        await services.reachable(onion, 60, lambda count, why: tries.append(count))
        assert await services.publish(seed, socket) == onion  # again: the same, and no error

        # Two identities, on two ports: each on circuits of its own.
        routes = Route(tornet.socks[1]), Route(tornet.socks[2])
        async with (
            Circuit(routes[0], onion, fresh_identity()) as one,
            Circuit(routes[1], onion, fresh_identity()) as two,
        ):
            assert await asyncio.gather(one.get("/"), two.get("/")) == [b"hello", b"hello"]
            talk = await one.websocket("/echo", 1_000_000)
            for size in (1, 1_000_000):
                await talk.send(bytes(size))
                assert await talk.receive(30) == bytes(size)
            await talk.close()

        await services.remove(onion)
        await services.remove(onion)  # harmless
        async with Circuit(routes[0], onion, fresh_identity(), 30.0) as circuit:
            with pytest.raises(Problem) as caught:
                await circuit.get("/")
        assert caught.value.kind is AWAY
        with pytest.raises(Problem) as caught:
            await services.reachable(onion, 3)
        assert caught.value.kind is AWAY


async def test_two_identities_have_two_circuits(
    tornet: TorNetwork, services: HiddenServices, tmp_path: Path
) -> None:
    assert tornet.tor is not None
    names = [fresh_identity(), fresh_identity()]
    async with greeter(tmp_path / "socket") as socket:
        onion = await services.publish(os.urandom(32), socket)
        await services.reachable(onion, 60)
        async with (
            Circuit(Route(tornet.socks[0]), onion, names[0]) as one,
            Circuit(Route(tornet.socks[0]), onion, names[1]) as two,
        ):
            talks = [await c.websocket("/echo", 99) for c in (one, one, two)]
            streams = await tornet.tor.control.command("GETINFO stream-status")
            circuits = [line.split()[2] for line in " ".join(streams).splitlines() or streams
                        if onion[:56] in line]
            for talk in talks:
                await talk.close()
        await services.remove(onion)
    assert len(circuits) >= 3
    assert len(set(circuits)) == 2


async def test_nobody_is_at_an_address_that_was_never_published(tornet: TorNetwork) -> None:
    nobody = onion_from_seed(bytes(32))
    async with Circuit(Route(tornet.socks[0]), nobody, fresh_identity(), 30.0) as circuit:
        with pytest.raises(Problem, match="no such onion service is published"):
            await circuit.get("/")


async def test_another_tor_joins_and_its_services_end_with_it(
    tornet: TorNetwork, tmp_path: Path
) -> None:
    seed, seen = os.urandom(32), []
    async with greeter(tmp_path / "socket") as socket:
        other = await tor.launch(tmp_path / "other", extra_torrc=tornet.extra_torrc,
                                 progress=lambda percent, words: seen.append(percent))
        async with other:
            assert other.ours
            assert seen == sorted(seen)
            assert seen[-1] == 100
            services = HiddenServices(other)
            onion = await services.publish(seed, socket)
            await services.reachable(onion, 60)
            async with Circuit(Route(tornet.socks[0]), onion, fresh_identity()) as circuit:
                assert await circuit.get("/") == b"hello"
        await other.close()  # twice is harmless
        assert tors_of(tmp_path) == []
        async with Circuit(Route(tornet.socks[0]), onion, fresh_identity(), 20.0) as circuit:
            with pytest.raises(Problem) as caught:
                await circuit.get("/")
        assert caught.value.kind is AWAY


async def test_attaching_to_a_running_tor(tornet: TorNetwork) -> None:
    where = [Path("/nowhere"), tornet.directory / "client" / "control"]
    async with await tor.attach(tornet.socks[0], control=True, control_at=where) as attached:
        assert attached.version >= tor.MINIMUM_VERSION
        assert not attached.ours
        services = HiddenServices(attached)
        assert await services.tor_user()
        with pytest.raises(Problem) as caught:
            await services.publish(bytes(32), Path("/with a space/socket"))
        assert caught.value.kind is TOR_REFUSED
        with pytest.raises(tor.ControlRefused) as refused:
            await attached.control.command("GETINFO nonsense")
        assert refused.value.code == 552
    assert all(node.alive for node in tornet.status()), "letting go must not end it"


async def test_a_broken_configuration_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "extra").write_text("Nonsense 1\n")
    with pytest.raises(Problem, match="Unknown option 'Nonsense'") as caught:
        await tor.launch(tmp_path / "tor", extra_torrc=tmp_path / "extra")
    assert caught.value.kind is TOR_FAILED
    assert tors_of(tmp_path) == []


def test_seeds_are_kept_whole_and_secret(tmp_path: Path) -> None:
    path = tmp_path / "seed"
    seed = load_or_create_seed(path)
    assert len(seed) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_seed(path) == seed
    for content in (b"", seed[:31], seed + b"\n"):
        path.write_bytes(content)
        with pytest.raises(Problem) as caught:
            load_or_create_seed(path)
        assert caught.value.kind is BAD_KEY
    path.write_bytes(seed)
    path.chmod(0o644)
    with pytest.raises(Problem, match="chmod 600") as caught:
        load_or_create_seed(path)
    assert caught.value.kind is BAD_KEY


OWNER = """
import asyncio, pathlib, sys
from lab.tornet import TorNetwork
async def main():
    await TorNetwork(pathlib.Path(sys.argv[1])).up()
    print("up", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_no_tor_is_left_when_its_owner_is_killed(tornet: TorNetwork, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert owner.stdout is not None
        assert await asyncio.to_thread(owner.stdout.readline) == b"up\n"
        assert len(tors_of(tmp_path)) == 8
        assert all(node.alive for node in tornet.status()), "two networks, side by side"
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    await gone(tmp_path, 30)


async def test_a_detached_network_is_found_again_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[Link] = []
    servers: list[asyncio.Server] = []

    async def forward(pairs: Sequence[Link]) -> None:
        # Asked again, for other ports, when the network is begun anew on a slow machine.
        for server in servers:
            server.close()
        links[:] = pairs
        servers[:] = [
            await asyncio.start_server(lambda r, w, to=link.listening: pipe(r, w, to),
                                       "127.0.0.1", link.advertised)
            for link in links]

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: int) -> None:
        nonlocal carried
        onward = await asyncio.open_connection("127.0.0.1", to)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal carried
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    carried += len(data)
                    sink.write(data)
                    await sink.drain()
                sink.close()

        await asyncio.gather(copy(reader, onward[1]), copy(onward[0], writer))

    tries = 0
    agreed = TorNetwork._consensus

    async def slow_at_first(self: TorNetwork) -> bool:
        nonlocal tries
        tries += 1
        return await agreed(self) and tries > 1

    monkeypatch.setattr(TorNetwork, "_consensus", slow_at_first)
    carried = 0
    first = TorNetwork(tmp_path, detached=True)
    await first.up(socks_ports=2, links=forward)
    assert (tries, len(links)) == (2, 7)
    assert carried > 0, "everything goes through the forwarder"
    assert await TorNetwork(tmp_path).join() == first.socks
    with pytest.raises(Problem) as caught:
        await TorNetwork(tmp_path).up()
    assert caught.value.kind is LOCKED
    later = TorNetwork(tmp_path)
    assert all(node.alive for node in later.status())
    await later.down()
    assert not any(node.alive for node in later.status())
    await gone(tmp_path, 5)


def test_the_process_of_somebody_else_is_never_taken_for_a_tor(tmp_path: Path) -> None:
    network = TorNetwork(tmp_path)
    (tmp_path / "relay0").mkdir()
    (tmp_path / "relay0" / "pid").write_text(f"{os.getpid()}\n")
    assert not any(node.alive for node in network.status())
    asyncio.run(network.down())


async def test_a_node_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.tornet._AUTHORITY", "Nonsense {dir_port}\n")
    with pytest.raises(Problem, match=r"authority.*Nonsense") as caught:
        await TorNetwork(tmp_path).up()
    assert caught.value.kind is TOR_FAILED
    assert tors_of(tmp_path) == []
