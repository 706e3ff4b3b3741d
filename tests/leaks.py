"""Looks for secrets where none may be: in what processes print, are called by, and leave on disk.

:class:`Watched` runs the real commands with everything turned up that makes a Python program
talk (every logger at its lowest level, asyncio's debug mode with every callback printed, ``-X
dev``), reads ``/proc`` all the while, and has the program write down, in a file of its own, each
random value of 16 bytes or more that it draws, and each secret that it derives. :class:`Secrets`
then looks for them, whole or in part, in every form in which a value is commonly printed.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
LEAST: Final = 16
"""Bytes of a random value that is taken for a secret: the names of files have 4 and 8."""
PART: Final = 9
"""Bytes at either end that are a leak already; a chance match of so many is one in 10^21."""

TALKATIVE: Final = '''\
import asyncio.base_events, logging, os, secrets, sys
logging.basicConfig(level=1, format="%(name)s %(levelname)s %(message)s")
logging.Logger.setLevel = lambda *_: None       # nobody turns it down again
_begin = asyncio.base_events.BaseEventLoop.__init__
def begin(loop, *more):
    _begin(loop, *more)
    loop.slow_callback_duration = 0.0           # each callback is printed, with its arguments
asyncio.base_events.BaseEventLoop.__init__ = begin
drawn = os.open(os.environ.pop("SECRETS_DRAWN"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def note(value):
    if isinstance(value, bytes) and len(value) >= {least}:
        os.write(drawn, value.hex().encode() + b"\\n")
    return value
for name in ("token_bytes", "token_hex"):
    def draw(size=None, real=getattr(secrets, name), name=name):
        value = real(size)
        if size is None or size >= {least}:
            note(value if name == "token_bytes" else value.encode())
        return value
    setattr(secrets, name, draw)
{more}
import tormentor
tormentor.main()
'''
IN_A_BROKER: Final = '''\
import hmac, types, broker.admission, broker.brokerage, broker.hidden_service
broker.admission.hmac = types.SimpleNamespace(
    digest=lambda *a: note(hmac.digest(*a)), compare_digest=hmac.compare_digest)
for module, name in ((broker.brokerage, "session_name"), (broker.brokerage, "secret_of"),
                     (broker.hidden_service, "expanded_key")):
    setattr(module, name, lambda *a, real=getattr(module, name): note(real(*a)))
'''
"""Derived secrets are written down too: tokens and what they are called by, keys."""
BROKEN_BROKER: Final = '''\
import itertools, broker.brokerage, broker.store
def breaks(kind, name, every, error):
    real, number = getattr(kind, name), itertools.count(1)
    def call(*arguments, **named):
        if next(number) % every == 0:
            raise error
        return real(*arguments, **named)
    setattr(kind, name, call)
breaks(broker.brokerage.Brokerage, "receive", 7, RuntimeError("planted in a handler"))
breaks(broker.brokerage.Brokerage, "tick", 5, RuntimeError("planted in the clock's work"))
breaks(broker.store.Store, "write", 6, OSError("planted in the store"))
'''
BROKEN_CLIENT: Final = '''\
import client.trainer
def broken(self, weights, rng, stopped=None):
    _rows, _kind = self.data.rows, self.kind
    raise RuntimeError("planted in the step")
client.trainer.Trainer.update = broken
'''


class Secrets:
    """Values that may not be seen, and what each is."""

    def __init__(self) -> None:
        self._forms: dict[bytes, str] = {}
        self.names: set[str] = set()

    def add(self, name: str, value: bytes) -> None:
        """A secret of bytes: in all its forms, and either end of it."""
        assert len(value) >= PART, name
        self.names.add(name)
        for part in {value, value[:PART], value[-PART:]}:
            for form in _forms(part):
                self._forms[form] = name

    def add_text(self, name: str, text: str) -> None:
        """A secret that is a text, such as a number as it was typed."""
        self.names.add(name)
        self._forms[text.encode()] = name

    def add_drawn(self, file: Path) -> int:
        """All that a :class:`Watched` process has written down: how many."""
        lines = set(file.read_text().split())
        for line in lines:
            value = bytes.fromhex(line)
            # An identity is drawn as a text of hexadecimal digits.
            text = len(value) >= 2 * LEAST and not value.strip(b"0123456789abcdef")
            self.add("drawn", bytes.fromhex(value.decode()) if text else value)
        return len(lines)

    def found(self, content: bytes) -> set[str]:
        """What of them is in it."""
        return {f"{name}: {form!r}" for form, name in self._forms.items() if form in content}


def _forms(value: bytes) -> Iterator[bytes]:
    yield value
    yield value.hex().encode()
    yield value.hex().upper().encode()
    yield value.hex(":").encode()
    yield repr(value)[2:-1].encode()
    yield ", ".join(map(str, value)).encode()
    yield ",".join(map(str, value)).encode()
    for encode, bits in ((base64.b64encode, 6), (base64.urlsafe_b64encode, 6),
                         (base64.b32encode, 5)):
        for before in range(3 if bits == 6 else 5):
            # Wherever it stands in what was encoded: the letters that are its own alone.
            text = encode(b"\0" * before + value).rstrip(b"=")
            letters = text[-(-8 * before // bits): 8 * (before + len(value)) // bits]
            yield letters
            if bits == 5:
                yield letters.lower()


class Watched:
    """Processes whose every word, name and command line is kept.

    Args:
        directory: where what they print goes, and what they draw.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.drawn = directory / "drawn"
        self.seen: dict[str, set[bytes]] = {"cmdline": set(), "comm": set(), "environ": set()}
        self.programs: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        self._over.set()
        self._thread.join()

    def start(self, name: str, *arguments: object, more: str = "") -> subprocess.Popen[bytes]:
        """A command in a process of its own; what it prints goes to ``name.out``, ``name.err``."""
        return self.start_program(name, TALKATIVE.format(least=LEAST, more=more), *arguments)

    def start_program(self, name: str, program: str, *arguments: object,
                      ) -> subprocess.Popen[bytes]:
        """Any program."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TORMENTOR_")}
        environment |= {"PYTHONASYNCIODEBUG": "1", "SECRETS_DRAWN": str(self.drawn),
                        "PYTHONPATH": str(ROOT)}
        with (self.directory / f"{name}.out").open("ab") as out, \
                (self.directory / f"{name}.err").open("ab") as err:
            process = subprocess.Popen(
                [sys.executable, "-X", "dev", "-c", program, *map(str, arguments)],
                cwd=self.directory, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env=environment)
        self._processes.append(process)
        return process

    def run(self, name: str, *arguments: object, status: int = 0, more: str = "") -> None:
        """A command to its end."""
        process = self.start(name, *arguments, more=more)
        code = process.wait(120)
        assert code == status, (code, self.printed(name)[-3000:].decode(errors="replace"))

    def printed(self, name: str) -> bytes:
        """All that a command has printed until now."""
        return b"\n".join(
            (self.directory / f"{name}.{end}").read_bytes() for end in ("out", "err"))

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """All that was printed, and all that was read from ``/proc``."""
        for path in sorted(self.directory.iterdir()):
            if path.suffix in (".out", ".err"):
                yield path.name, path.read_bytes()
        for name, contents in self.seen.items():
            yield name, b"\n".join(contents)

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            for process in list(self._processes):
                for pid in _family(process.pid):
                    for name, contents in self.seen.items():
                        with contextlib.suppress(OSError):
                            contents.add(Path(f"/proc/{pid}/{name}").read_bytes())
                    with contextlib.suppress(OSError):
                        self.programs.add(Path(f"/proc/{pid}/exe").resolve().name)


def _family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def open_files(*homes: Path) -> Iterator[tuple[str, bytes]]:
    """Files that others than their owner may read; logs in any case. Where a directory above is
    its owner's only, that may change, and does not count."""
    for home in homes:
        for path in sorted(home.rglob("*")):
            if path.is_file() and (
                    path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) or "log" in path.name):
                yield str(path), path.read_bytes()


def until(condition: object, seconds: float = 60.0) -> None:
    """Wait for something that a process does."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def leaks(secrets: Secrets, places: Iterable[tuple[str, bytes]]) -> list[str]:
    """Each secret that stands in one of the places."""
    return [f"{name} has {what}" for name, content in places
            for what in sorted(secrets.found(content))]
