"""'scripts/soak kill' over Tor: the desk, clients, and the tor of each are killed and come back."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from lab import tornet as tornet_module
from lab.soak.kill import Trial, attempt
from lab.soak.stage import Setting
from lab.tornet import TorNetwork, running


@pytest.mark.slow
async def test_what_is_killed_comes_back_through_tor_and_nothing_is_lost(tornet, tmp_path):
    setting = Setting(clients=4, processes=2, updates=0, width=0, minimum=2, delay=0.5,
                      pace={"longest": 4.0})
    kills = {"broker": 1, "clients": 1, "broker_tor": 1, "clients_tor": 1}
    told = await attempt(Trial(setting=setting, kills=kills), tmp_path, tornet)
    assert told["fault"] == [] and told["kills"] == kills and told["tor"]
    assert told["ended"] and told["same_address"] and told["have_model"] == 4
    assert (told["lost"], told["doubled"], told["unknown"], told["unheard"]) == (0, 0, 0, 0)
    # It was not the trial's network to end, and nothing else is left.
    assert all(node.alive for node in tornet.status())
    for directory in (tmp_path / "desk" / "tor-broker", *tmp_path.glob("crowd-*.tor/tor/0")):
        assert running(directory) is None


@pytest.mark.slow
async def test_a_relay_that_was_killed_has_its_keys_and_ports_again(tmp_path):
    network = TorNetwork(tmp_path / "net")
    async with network:
        await network.up()
        relay = network.directory / "relay0"
        old, key = running(relay), (relay / "keys" / "secret_id_key").read_bytes()
        await network.kill("relay0")
        assert [n.name for n in network.status() if not n.alive] == ["relay0"]
        await network.restart("relay0")
        assert all(node.alive for node in network.status())
        assert running(relay) not in (None, old)
        assert (relay / "keys" / "secret_id_key").read_bytes() == key
    assert not any(node.alive for node in network.status())
    assert old is not None
    with pytest.raises(ProcessLookupError):
        os.kill(old, signal.SIGCONT)


async def test_the_last_attempt_of_a_slow_machine_has_all_the_time(tmp_path, monkeypatch):
    given = []

    async def up(self, socks_ports, tell, links, ready):
        given.append(ready)
        return ready is None

    monkeypatch.setattr(TorNetwork, "_up", up)
    await TorNetwork(tmp_path / "net").up()
    assert given == [tornet_module._READY, tornet_module._READY, None]


@pytest.mark.slow
async def test_a_network_whose_first_circuits_hang_is_begun_anew(tmp_path, monkeypatch):
    launch, launched = tornet_module.launch, []

    async def hang_once(*args, **kwargs):
        launched.append(args)
        if len(launched) == 1:
            await asyncio.Event().wait()
        return await launch(*args, **kwargs)

    monkeypatch.setattr(tornet_module, "launch", hang_once)
    monkeypatch.setattr(tornet_module, "_READY", 8.0)
    async with TorNetwork(tmp_path / "net") as network:
        await network.up()
        assert len(launched) >= 2 and len(network.socks) == 1
        assert all(node.alive for node in network.status())
