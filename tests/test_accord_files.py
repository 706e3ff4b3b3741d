"""Files whole or not at all, also when the process is killed or the disk is full."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accord.files import private_directory, write_whole
from accord.problems import DISK, Problem

HERE = Path(__file__).resolve().parent.parent
SIZE = 300_000

FULL = f"""
import resource, signal, sys
from pathlib import Path
from accord.files import write_whole
from accord.problems import Problem
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE // 2}, {SIZE // 2}))
try:
    write_whole(Path(sys.argv[1]), b"n" * {SIZE})
except Problem as problem:
    print(problem.kind.code, problem.sentence)
"""
FOR_EVER = f"""
import itertools, sys
from pathlib import Path
from accord.files import write_whole
print("on", flush=True)
for i in itertools.count():
    write_whole(Path(sys.argv[1]), bytes([65 + i % 26]) * {SIZE})
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("wanted", [0o600, 0o644])
def test_content_and_permissions(tmp_path: Path, wanted: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o666)
    before = os.umask(0o022)
    try:
        write_whole(path, b"new", wanted)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert mode(path) == wanted
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_never_open_not_even_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = os.fsync

    def spy(handle: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        real(handle)

    monkeypatch.setattr(os, "fsync", spy)
    before = os.umask(0)
    try:
        write_whole(tmp_path / "key", b"secret", 0o600)
    finally:
        os.umask(before)
    # The file, then its directory.
    assert seen[0] == 0o600
    assert len(seen) == 2


def test_the_disk_has_the_file_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Problem) as caught:
        write_whole(path, b"new")
    assert caught.value.kind is DISK
    assert "input/output error" in caught.value.sentence
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    ended = subprocess.run([sys.executable, "-c", FULL, path], cwd=HERE, capture_output=True,
                           text=True, timeout=20)
    assert ended.stdout.startswith("disk Cannot write"), ended.stderr
    assert "file too large" in ended.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_at_any_time_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for pause in (0.0, 0.003, 0.01):
        with subprocess.Popen([sys.executable, "-c", FOR_EVER, path], cwd=HERE,
                              stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            while not path.exists():
                time.sleep(0.001)
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        found = path.read_bytes()
        assert len(found) == SIZE
        assert len(set(found)) == 1


@pytest.mark.parametrize("place", ["missing/file", "file/below", "."])
def test_where_nothing_can_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(Problem) as caught:
        write_whole(tmp_path / place, b"new")
    assert caught.value.kind is DISK
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_private_directory_is_private_also_when_it_was_not(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert private_directory(path) == path
    assert mode(path) == 0o700
    path.chmod(0o755)
    private_directory(path)
    assert mode(path) == 0o700
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Problem) as caught:
        private_directory(tmp_path / "file")
    assert caught.value.kind is DISK


def test_where_directories_cannot_be_synced_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, codes = os.fsync, [errno.EINVAL]

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(codes[-1], os.strerror(codes[-1]))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(private_directory(tmp_path / "a" / "b") / "file", b"whole")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"whole"
    # A disk that fails is no such place.
    codes.append(errno.EIO)
    for act in (lambda: private_directory(tmp_path / "c"),
                lambda: write_whole(tmp_path / "file", b"whole")):
        with pytest.raises(Problem) as caught:
            act()
        assert caught.value.kind is DISK
