"""``tormentor broker``: what it says when it cannot start, and its life without Tor."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.cli import broker

BROKER = [sys.executable, "-m", "tormentor", "broker"]


def one_sentence(text: str) -> str:
    """The error that was printed: exactly one line of it."""
    lines = [line for line in text.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def test_tor_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    ended = CliRunner().invoke(broker, ["--state", str(tmp_path / "state")])
    assert ended.exit_code == 5
    assert "apt-get install tor" in one_sentence(ended.stderr)
    assert not list(tmp_path.rglob("torrc"))


def test_tor_is_too_old(tmp_path, monkeypatch):
    stand_in = tmp_path / "bin" / "tor"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\n# A stand-in for an old tor.\necho 'Tor version 0.3.5.16.'\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:/usr/bin:/bin")
    ended = CliRunner().invoke(broker, ["--state", str(tmp_path / "state")])
    assert ended.exit_code == 5
    assert re.search(r"tor 0\.3\.5\.16, and 0\.4\.\d+", one_sentence(ended.stderr))


def test_a_tor_that_cannot_start_says_why(tmp_path):
    wrong = tmp_path / "wrong.torrc"
    wrong.write_text("NoSuchOption 1\n")
    # A unix socket's path is short, and pytest's directories are not.
    with tempfile.TemporaryDirectory() as state:
        ended = CliRunner().invoke(broker, ["--state", state, "--torrc", str(wrong)])
    assert ended.exit_code == 5
    assert "NoSuchOption" in one_sentence(ended.stderr)


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"])
def test_a_listen_that_is_no_address(tmp_path, listen):
    ended = CliRunner().invoke(
        broker, ["--tor", "none", "--state", str(tmp_path), "--listen", listen])
    assert ended.exit_code == 2
    assert "--listen" in one_sentence(ended.stderr)


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = CliRunner().invoke(
            broker, ["--tor", "none", "--state", str(tmp_path), "--listen", where])
    assert ended.exit_code == 2 and "in use" in one_sentence(ended.stderr)


@pytest.mark.parametrize("option", [["--max-models", "0"], ["--linger", "0"], ["--tor", "maybe"]])
def test_wrong_options(tmp_path, option):
    ended = CliRunner().invoke(broker, ["--state", str(tmp_path), *option])
    assert ended.exit_code == 2 and option[0] in ended.stderr


class Running:
    """A desk in a process of its own, without Tor, on a free port."""

    def __init__(self, state: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.where = f"127.0.0.1:{probe.getsockname()[1]}"
        self.process = subprocess.Popen(
            [*BROKER, "--tor", "none", "--json", "--state", str(state), "--listen", self.where],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.onion = json.loads(self.process.stdout.readline())["onion"]

    def stop(self, number: int) -> str:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=20)
        return errors


@pytest.mark.slow
def test_the_same_state_has_the_same_address_and_one_desk_at_a_time(tmp_path):
    first = Running(tmp_path)
    second = CliRunner().invoke(
        broker, ["--tor", "none", "--state", str(tmp_path), "--listen", "127.0.0.1:1"])
    assert second.exit_code == 9 and "Another process" in one_sentence(second.stderr)
    first.stop(signal.SIGKILL)
    again = Running(tmp_path)
    assert again.onion == first.onion
    words = again.stop(signal.SIGTERM)
    assert again.process.returncode == 130
    assert "WARNING" in words and "Without Tor" in words
    assert "Traceback" not in words
