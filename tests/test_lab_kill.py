"""'scripts/soak kill' without Tor: it kills, nothing is lost, and it would say so if it were."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lab.demo import Failed
from lab.soak.kill import Trial, attempt, trial

HERE = Path(__file__).parent


def small(kills: int, what: str, **changes: object) -> Trial:
    """Eight clients; the kills come as the options ask."""
    chosen = trial(tor=False, clients=8, kills=kills, what=what, seed=1)
    return replace(chosen, setting=replace(chosen.setting, processes=2, **changes))


def running_on(directory: Path) -> int:
    """How many processes were told of this directory."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += str(directory).encode() in path.read_bytes()
    return found


@pytest.fixture
def lie(monkeypatch):
    """Makes 'lying_desk' a module that processes started from here can run, with this lie."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    return lambda words: monkeypatch.setenv("SOAK_LIE", words)


@pytest.mark.slow
async def test_nothing_is_lost_when_desk_and_clients_are_killed(tmp_path):
    told = await attempt(small(6, "all"), tmp_path)
    assert told["fault"] == []
    assert told["kills"] == {"broker": 6, "clients": 6} and told["restarts"] == 12
    assert (told["lost"], told["doubled"], told["unknown"], told["unpaid"]) == (0, 0, 0, 0)
    assert told["ended"] and told["same_address"] and told["have_model"] == 8
    assert told["applied"] == 200 == told["acknowledged"] + told["uncertain"]
    assert told["spent"] >= told["pushed"] >= 200
    assert told["recovery_seconds"]["broker"]["max"] > 0
    assert running_on(tmp_path) == 0


@pytest.mark.slow
async def test_a_desk_that_says_so_before_it_has_written_is_found_out(tmp_path, lie):
    lie("early")
    told = await attempt(small(6, "broker", desk="lying_desk"), tmp_path)
    assert told["lost"] > 0 and any("lost" in words for words in told["fault"])
    assert told["doubled"] == 0


@pytest.mark.slow
async def test_a_desk_that_forgets_its_receipts_is_found_out(tmp_path, lie):
    lie("forgets")
    told = await attempt(small(6, "broker", desk="lying_desk"), tmp_path)
    assert told["doubled"] > 0 and any("twice" in words for words in told["fault"])
    assert told["lost"] == 0


@pytest.mark.slow
async def test_a_client_that_does_not_ask_again_is_found_out(tmp_path, lie):
    # The desk is only slow: with a client that asks again that is no fault.
    lie("slow silent")
    told = await attempt(
        small(6, "broker", desk="lying_desk", crowd="lying_desk"), tmp_path / "silent")
    assert told["unheard"] > 0 and any("never heard" in words for words in told["fault"])
    assert (told["lost"], told["doubled"], told["sent_again"]) == (0, 0, 0)
    lie("slow")
    told = await attempt(
        small(6, "broker", desk="lying_desk", crowd="lying_desk"), tmp_path / "honest")
    assert told["fault"] == [] and told["caught"] > 0


def test_each_kill_has_its_share_of_the_training():
    chosen = trial(tor=True, clients=50, kills=20)
    assert chosen.kills == {
        "broker": 20, "clients": 20, "broker_tor": 5, "clients_tor": 5, "relay": 2}
    sized = chosen.sized()
    assert sized.updates == 52 * 2 * 50
    assert sized.code.capacity * sized.clients >= 2 * sized.updates
    assert trial(tor=True, clients=50, kills=20, what="tor").kills == {
        "broker_tor": 5, "clients_tor": 5, "relay": 2}
    assert trial(tor=False, clients=5, kills=9).kills == {"broker": 9, "clients": 9}


@pytest.mark.slow
def test_the_command_ends_in_one_object_and_a_status(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lab.soak", "kill", "--tor", "none", "--clients", "4", "--kills",
         "2", "--json", "--keep", tmp_path], capture_output=True, text=True, cwd=HERE.parent,
        check=False)
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["kills"] == {"broker": 2, "clients": 2}
    assert "updates acknowledged" in done.stderr


async def test_what_an_earlier_trial_left_is_not_counted_with_this_one(tmp_path):
    (tmp_path / "crowd-0").write_text("acknowledged 0 0 1.000000\n")
    with pytest.raises(Failed, match="is not empty"):
        await attempt(small(1, "broker"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["crowd-0"]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(tmp_path):
    with subprocess.Popen(
            [sys.executable, "-m", "lab.soak", "kill", "--tor", "none", "--clients", "8", "--kills",
             "50", "--keep", tmp_path], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=HERE.parent) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "updates acknowledged" in line and "broker" in line:
                break
        assert running_on(tmp_path) >= 3
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert running_on(tmp_path) == 0
