"""Onion addresses, torrc.template, finding and starting tor. No network: tors are stand-ins."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from accord import tor
from accord.onion import (
    check_onion,
    expanded_key,
    onion_from_public_key,
    public_key_from_onion,
)
from accord.problems import (
    NOT_AN_ONION,
    TOR_AWAY,
    TOR_CONTROL,
    TOR_FAILED,
    TOR_MISSING,
    TOR_OLD,
    TOR_SLOW,
    Problem,
)

# Examples of rend-spec-v3, section 6.
KNOWN = (
    "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.onion",
    "sp3k262uwy4r2k3ycr5awluarykdpag6a7y33jxop4cs2lu5uz5sseqd.onion",
    "xa4r2iadxm55fbnqgwwi5mymqdcofiu3w6rpbtqn7b2dyn7mgwj64jyd.onion",
)
STAND_IN = """#!/bin/sh
# This is not tor: it is a stand-in for tests of TorMentor.
case "$*" in
  --version) echo "Tor version {version}. (A stand-in, for tests.)" ;;
  *) {body} ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a stand-in for tor first in PATH; the file where it writes its process number."""

    def make(version: str = "0.4.9.11", body: str = "exit 1") -> Path:
        program = tmp_path / "bin" / "tor"
        program.parent.mkdir(exist_ok=True)
        pid = tmp_path / "stand-in.pid"
        program.write_text(STAND_IN.format(version=version, body=body.replace("$PID", str(pid))))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        return pid

    return make


# -- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize("onion", KNOWN)
def test_known_addresses_are_read_and_written_alike(onion: str) -> None:
    assert onion_from_public_key(public_key_from_onion(onion)) == onion
    for typed in (onion.upper(), f"http://{onion}", f"  http://{onion}/\n", f"{onion}/"):
        assert check_onion(typed) == onion


def test_an_address_begins_with_its_key() -> None:
    assert public_key_from_onion(KNOWN[0])[:4].hex() == "79bcc625"


@pytest.mark.parametrize(
    "typed",
    [
        "", ".onion", "onion", KNOWN[0][:-6], KNOWN[0][1:], "a" + KNOWN[0],
        KNOWN[0].replace("p", "q", 1),                       # checksum
        "www." + KNOWN[0], KNOWN[0] + ".onion", KNOWN[0] + "/task", "https://" + KNOWN[0],
        "1" + KNOWN[0][1:],                                  # no such letter
        "expyuzz4wqqyqhjn.onion",                            # version 2
        "\u0131" * 56 + ".onion", "x" * 5_000, "\x1b[2J" + KNOWN[0],
    ],
)
def test_anything_else_is_not_an_onion_and_is_not_repeated_raw(typed: str) -> None:
    with pytest.raises(Problem) as caught:
        check_onion(typed)
    assert caught.value.kind is NOT_AN_ONION
    assert caught.value.sentence.isprintable()
    assert len(caught.value.sentence) < 400


def test_each_single_wrong_letter_is_noticed() -> None:
    for place in range(56):
        wrong = KNOWN[1][:place] + ("a" if KNOWN[1][place] != "a" else "b") + KNOWN[1][place + 1 :]
        with pytest.raises(Problem):
            check_onion(wrong)


def test_a_seed_expands_as_in_rfc_8032() -> None:
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert expanded_key(seed).hex() == (
        "307c83864f2833cb427a2ef1c00a013cfdff2768d980c0a3a520f006904de94f"
        "9b4f0afe280b746a778684e75442502057b7473a03f08f96f5a38e9287e01f8f")


# -- the program -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Tor version 0.4.9.11.\nThis build...", (0, 4, 9, 11)),
        ("Tor version 0.4.8.1-alpha-dev (git-0123456789abcdef).", (0, 4, 8, 1)),
        ("0.4.7.16", (0, 4, 7, 16)),
        ("tor: command not found", ()),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, ...]) -> None:
    assert tor.parse_version(text) == version


def test_no_tor_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tor, "_ALSO", ())
    with pytest.raises(Problem, match="sudo apt-get install tor") as caught:
        tor.find_tor()
    assert caught.value.kind is TOR_MISSING


@pytest.mark.parametrize("version", ["0.4.6.12", "0.3.5.18", "nothing like it"])
def test_an_old_tor_is_refused(stand_in, version: str) -> None:
    stand_in(version)
    with pytest.raises(Problem) as caught:
        tor.find_tor()
    assert caught.value.kind is TOR_OLD


def test_the_oldest_tor_is_taken(stand_in) -> None:
    stand_in("0.4.7.1")
    assert tor.find_tor()[1] == (0, 4, 7, 1)


# -- its configuration -----------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_template_is_filled_in(tmp_path: Path) -> None:
    lines = _lines(tor.torrc(tmp_path, socks_ports=["auto", "9150"], owner=42,
                             extra=tmp_path / "more"))
    flags = "IsolateSOCKSAuth KeepAliveIsolateSOCKSAuth ExtendedErrors"
    assert [line for line in lines if line.startswith("SocksPort")] == [
        f"SocksPort 127.0.0.1:auto {flags}", f"SocksPort 127.0.0.1:9150 {flags}"]
    assert f'DataDirectory "{tmp_path}"' in lines
    assert f'ControlSocket unix:"{tmp_path}/control"' in lines
    assert f'%include "{tmp_path}/more"' in lines
    assert "__OwningControllerProcess 42" in lines
    assert {"ClientOnly 1", "SafeLogging 1", "AvoidDiskWrites 1"} <= set(lines)
    assert not any("$" in line or line.startswith("RunAsDaemon") for line in lines)


def test_a_tor_without_an_owner_is_a_daemon(tmp_path: Path) -> None:
    lines = _lines(tor.torrc(tmp_path))
    assert "RunAsDaemon 1" in lines
    assert not any(line.startswith(("__Owning", "%include")) for line in lines)


@pytest.mark.parametrize("name", ['a"b', "a\nSocksPort 9", "a#b", "a\\b", "x" * 120])
def test_a_path_that_would_break_the_configuration_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Problem) as caught:
        tor.torrc(tmp_path / name)
    assert caught.value.kind is TOR_FAILED


def test_nobody_else_can_read_a_tors_directory(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        tor.prepare(Path("/bin/tor"), tmp_path / "deep" / "tor", "ClientOnly 1\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "tor").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "deep" / "tor" / "torrc").stat().st_mode) == 0o600


# -- starting it -----------------------------------------------------------------------------


def _gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_a_tor_that_ends_at_once_says_why(stand_in, tmp_path: Path) -> None:
    stand_in(body="echo 'Nov 01 00:00:00.000 [warn] Could not bind to 127.0.0.1:1: in use.';"
                  " echo 'Nov 01 00:00:00.000 [err] Reading config failed--see warnings above.';"
                  " exit 1")
    with pytest.raises(Problem, match="Could not bind") as caught:
        await tor.launch(tmp_path / "tor")
    assert caught.value.kind is TOR_FAILED


async def test_a_tor_that_does_nothing_is_ended_in_time(stand_in, tmp_path: Path) -> None:
    pid = stand_in(body="echo $$ > $PID; exec sleep 1000")
    began = time.monotonic()
    with pytest.raises(Problem) as caught:
        await tor.launch(tmp_path / "tor", timeout=0.5)
    assert caught.value.kind is TOR_SLOW
    assert time.monotonic() - began < 5
    assert _gone(int(pid.read_text()))


async def test_cancelling_leaves_no_process(stand_in, tmp_path: Path) -> None:
    pid = stand_in(body="trap '' TERM; echo $$ > $PID; while :; do sleep 0.1; done")
    task = asyncio.create_task(tor.launch(tmp_path / "tor"))
    while not pid.exists() or not pid.read_text():
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _gone(int(pid.read_text()))


async def test_without_a_descriptor_for_it_there_is_a_problem_and_a_later_try_is_good(
    stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in()

    async def spawn(arguments: object, log: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(tor, "spawn", spawn)
    with pytest.raises(Problem, match="too many open files") as caught:
        await tor.launch(tmp_path / "tor")
    assert caught.value.kind is TOR_FAILED


async def test_whoever_reads_a_torrc_is_not_taken_for_its_tor(stand_in, tmp_path: Path) -> None:
    stand_in(body="sleep 1000 & wait")
    arguments = tor.prepare(tmp_path / "bin" / "tor", tmp_path / "t", "ClientOnly 1\n")
    reader = await asyncio.create_subprocess_exec("tail", "-f", arguments[-1], stdout=-1)
    its: asyncio.subprocess.Process | None = None
    try:
        assert reader.stdout is not None
        await reader.stdout.readline()  # it is there
        assert tor.running(tmp_path / "t") is None
        its = await tor.spawn(arguments, tmp_path / "log")
        async with asyncio.timeout(10):
            while tor.running(tmp_path / "t") != its.pid:
                await asyncio.sleep(0.01)
    finally:
        for process in (reader, its):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL) if process is its else process.kill()
                await process.wait()


# -- the system's ----------------------------------------------------------------------------


async def test_attaching_to_nothing_is_tor_away(free_port: int) -> None:
    with pytest.raises(Problem) as caught:
        await tor.attach(tor.Socks("127.0.0.1", free_port))
    assert caught.value.kind is TOR_AWAY
    assert str(free_port) in caught.value.sentence


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x05", b""])
async def test_attaching_to_something_else_is_tor_away(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Problem) as caught:
            await tor.attach(tor.Socks("127.0.0.1", port))
    assert caught.value.kind is TOR_AWAY


async def test_no_control_port_is_said_apart_from_one_that_refuses(
    tmp_path: Path, free_port: int
) -> None:
    async def socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(3)
        writer.write(b"\x05\x00")

    async def closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A control port that wants a password (control-spec, PROTOCOLINFO)."""
        while line := await reader.readline():
            if line.startswith(b"PROTOCOLINFO"):
                writer.write(b'250-PROTOCOLINFO 1\r\n250-AUTH METHODS=HASHEDPASSWORD\r\n'
                             b'250-VERSION Tor="0.4.9.11"\r\n250 OK\r\n')
            else:
                writer.write(b"515 Authentication failed\r\n")

    async with (await asyncio.start_server(socks, "127.0.0.1", 0) as front,
                await asyncio.start_server(closed, "127.0.0.1", 0) as back):
        where = tor.Socks("127.0.0.1", front.sockets[0].getsockname()[1])
        refusing = tor.Socks("127.0.0.1", back.sockets[0].getsockname()[1])
        nothing = tor.Socks("127.0.0.1", free_port)
        async with await tor.attach(where) as attached:
            assert not attached.ours
            with pytest.raises(Problem) as caught:
                attached.control  # noqa: B018
            assert caught.value.kind is TOR_CONTROL
        with pytest.raises(Problem) as caught:
            await tor.attach(where, control=True, control_at=[nothing, tmp_path / "none"])
        assert caught.value.kind is TOR_AWAY
        with pytest.raises(Problem) as caught:
            await tor.attach(where, control=True, control_at=[nothing, refusing])
        assert caught.value.kind is TOR_CONTROL


@pytest.fixture
def free_port() -> int:
    """A port where nothing listens."""
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return holder.getsockname()[1]
