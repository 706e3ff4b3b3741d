"""What a hostile reader of the broker found, each as it was shown."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET

import pytest
from broker_world import Player, make_brokerage, make_data, make_task

from accord.control import Control, Socks
from accord.invitation import public_key, to_text
from accord.messages import Leave, Pull, Refused, Wait, Work
from accord.problems import TOR_CONTROL, Problem
from accord.task import Clients, Training
from accord.tor import SYSTEM_CONTROL, _end_leftover, held_port
from broker.brokerage import Brokerage
from curator.invite import read_invited

FIVE = Clients(minimum=1, maximum=5, silence=60.0)


def test_a_kept_push_of_one_who_fell_silent_is_not_applied_below_its_k():
    brokerage = make_brokerage()
    shy, other, third = Player(brokerage, 3), Player(brokerage), Player(brokerage)
    push = shy.answer(shy.work(1.0))
    other.pull(1.0)
    third.leave(2.0)
    assert isinstance(shy.push(push, 3.0).next, Wait)
    for now in range(5, 60, 5):
        other.pull(float(now))
    assert brokerage.status(60.0).clients == 1
    # What model_app does when there is news.
    brokerage.receive(shy.token, push, 60.0, repeated=True)
    assert brokerage.status(60.0).updates == 0


def test_one_who_left_is_handed_no_work_for_its_leave():
    brokerage = make_brokerage()
    shy = Player(brokerage, 3)
    shy.leave(1.0)
    Player(brokerage, 1, 2.0)
    assert not isinstance(
        brokerage.receive(shy.token, Leave(), 3.0, repeated=True).next, Work)


def test_after_a_restart_those_who_never_worked_make_room_for_those_who_did():
    brokerage = make_brokerage(make_task(clients=FIVE))
    idle = [Player(brokerage) for _ in range(5)]
    for player in idle:
        player.leave(0.5)
    workers = [Player(brokerage, now=1.0) for _ in range(5)]
    for worker in workers:
        worker.step(2.0)
    kept = brokerage.take_changes(3.0)
    again = Brokerage(b"s" * 32, random.Random(9).randbytes)
    again.accept(brokerage.signed, *make_data(), 4.0)
    again.restore(kept.model, kept.sessions, 4.0)
    for now in range(5, 3605, 20):
        for player in idle:
            again.receive(player.token, Pull(), float(now))
    assert not isinstance(again.receive(workers[0].token, Pull(), 3605.0).next, Refused)


def test_whoever_was_away_for_a_moment_gets_its_place_from_one_who_does_nothing():
    brokerage = make_brokerage(make_task(clients=FIVE))
    workers = [Player(brokerage) for _ in range(5)]
    for worker in workers:
        worker.step(1.0)
    idle = [Player(brokerage, now=62.5) for _ in range(5)]  # all five were silent for a minute
    for now in range(70, 970, 20):
        for player in idle:
            player.pull(float(now))
        turn = workers[0].pull(float(now)).next
        assert isinstance(turn, Refused) and turn.code == "full"
    for worker in workers:
        worker.step(970.0)
    assert brokerage.status(970.0).clients == 5


def test_a_long_round_makes_nobody_idle_whose_update_it_holds():
    brokerage = make_brokerage(make_task(
        clients=FIVE, training=Training(mode="synchronous", round_seconds=1800.0)))
    workers, lazy = [Player(brokerage) for _ in range(4)], Player(brokerage)
    answers = [(worker, worker.answer(worker.work(1.0))) for worker in workers]
    for now in range(2, 1000, 20):
        lazy.pull(float(now))
        for worker, answer in answers:
            worker.push(answer, float(now))
    Player(brokerage, now=1000.0)  # the lazy one's place
    with pytest.raises(Exception, match="places"):
        Player(brokerage, now=1000.0)


def test_pauses_that_are_interrupted_for_a_moment_end_the_training_too():
    brokerage = make_brokerage(make_task(clients=Clients(minimum=1, maximum=10)))
    honest, troll = Player(brokerage), Player(brokerage, 10)
    honest.pull(0.0)
    for now in range(0, 4 * 3600, 20):
        if brokerage.phase == "published":
            break
        honest.pull(float(now))
        if now % 840 == 0:
            troll.leave(float(now))
        troll.pull(float(now))
    assert brokerage.phase == "published"


def test_sessions_that_come_and_go_leave_no_tickets_behind():
    brokerage = make_brokerage(make_task(clients=FIVE))
    for now in range(1, 90):
        player = Player(brokerage, now=float(now))
        player.pull(float(now))
        player.leave(float(now))
    assert len(brokerage._tickets) <= 2 * FIVE.maximum


def test_nobody_else_can_listen_on_the_held_port_while_tor_is_away():
    def listen(socket: socket.socket, port: int) -> None:
        socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        socket.bind(("127.0.0.1", port))
        socket.listen()

    with held_port() as held:
        for _ in range(2):  # tor dies, and is started again
            with socket.socket() as tor:
                with held.lent() as port:
                    listen(tor, port)
                with socket.create_connection(("127.0.0.1", port)):
                    tor.accept()[0].close()
                with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
                    listen(stranger, port)
            with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
                listen(stranger, port)


async def test_a_process_that_only_names_our_torrc_is_left_alone(tmp_path: Path):
    (tmp_path / "torrc").touch()
    reader = subprocess.Popen(["tail", "-f", str(tmp_path / "torrc")])
    try:
        await asyncio.sleep(0.5)
        await _end_leftover(tmp_path)
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()


async def test_another_users_process_does_not_keep_tor_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torrc").touch()
    planted = subprocess.Popen(["tail", "-f", str(tmp_path / "torrc")])

    def kill(pid: int, number: int) -> None:
        assert pid == planted.pid
        raise PermissionError(1, "Operation not permitted")  # as it is for another user's

    monkeypatch.setattr(os, "kill", kill)
    try:
        await asyncio.sleep(0.5)
        await _end_leftover(tmp_path)
    finally:
        monkeypatch.undo()
        planted.kill()
        planted.wait()


def test_the_systems_control_socket_comes_before_a_port_that_anybody_may_open():
    assert isinstance(SYSTEM_CONTROL[0], Path)


@pytest.mark.parametrize(("told", "words"), [
    ("AUTH METHODS=NULL", "by cookie"),
    ("AUTH METHODS=COOKIE COOKIEFILE=\"{secret}\"", "by cookie"),
    ("AUTH METHODS=COOKIE,SAFECOOKIE COOKIEFILE=\"{secret}\"", ""),
    ("AUTH METHODS=SAFECOOKIE COOKIEFILE=\"{theirs}\"", "another user"),
])
async def test_a_port_that_anybody_opened_is_told_no_secret(
    told: str, words: str, tmp_path: Path
) -> None:
    secret, theirs = tmp_path / "desk.seed", tmp_path / "theirs"
    secret.write_bytes(os.urandom(32))
    theirs.write_bytes(bytes(32))
    if os.geteuid() == 0:
        os.chown(theirs, 4321, -1)
    else:
        words = words.replace("another user", "")
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            heard.append(line)
            if line.startswith(b"PROTOCOLINFO"):
                answer = told.format(secret=secret, theirs=theirs)
                writer.write(f'250-PROTOCOLINFO 1\r\n250-{answer}\r\n'
                             '250-VERSION Tor="0.4.9.11"\r\n250 OK\r\n'.encode())
            elif line.startswith(b"AUTHCHALLENGE"):
                writer.write(b"250 AUTHCHALLENGE SERVERHASH=%b SERVERNONCE=%b\r\n"
                             % (b"0" * 64, b"0" * 64))
            else:
                writer.write(b"250 OK\r\n")

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        where = Socks("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(Problem, match=words or None) as caught:
            await Control.open(where)
    assert caught.value.kind is TOR_CONTROL
    assert heard[0].startswith(b"PROTOCOLINFO")
    assert not any(line.startswith(b"AUTHENTICATE") for line in heard)
    assert not any(secret.read_bytes().hex().encode() in line.lower() for line in heard)


def test_a_long_file_of_keys_is_read_whole_or_refused(tmp_path: Path):
    keys = [to_text(public_key(os.urandom(32))) for _ in range(3)]
    (tmp_path / "keys").write_text(f"{keys[0]}\n# {'x' * (1 << 20)}\n{keys[1]}\n{keys[2]}\n")
    with pytest.raises(Problem, match="too long"):
        read_invited([str(tmp_path / "keys")], tmp_path / "s", "launch")
