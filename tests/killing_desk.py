"""A desk under ``kill -9``, full disks and damage: real processes that die around each call.

Run as a program: ``python -m killing_desk DIRECTORY SCENARIO SUBJECT [SCENARIO SUBJECT ...]``,
which prints a line of JSON for each; see :mod:`killing`, whose faults it uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from broker_world import SALT, Player, make_data, make_task, signed, wire
from killing import CALLS, Faults, Left, Plan, die, each_in_a_child, in_a_child, plans

import broker.desk
import broker.model_app
from accord.messages import Curate
from accord.model_file import read_model
from accord.onion import onion_from_seed
from accord.problems import Problem
from accord.task import Training
from broker.desk import Desk

NAMES: Final = (*CALLS, "rename", "rmdir", "chmod")
TASK: Final = make_task(training=Training(max_updates=1, max_norm=1.0))
ORDER: Final = Curate(signed(TASK), *wire(*make_data()), SALT)


class Nowhere:
    """Stands in for what serves the apps: an address is its seed's, and nobody comes there."""

    async def publish(self, seed: bytes, app: object, invited: object = ()) -> str:
        return onion_from_seed(seed)

    async def withdraw(self, onion: str) -> None:
        pass


@contextlib.asynccontextmanager
async def desk_at(home: Path) -> Any:
    desk = Desk(home, Nowhere(), 9, 1e6)  # type: ignore[arg-type]
    await desk.start()
    try:
        yield desk
    finally:
        await desk.close()


async def look(home: Path, most: int = 1) -> dict[str, Path]:
    """Start again: the addresses that are hosted, and where; all of them whole, and nothing else
    is there."""
    async with desk_at(home) as desk:
        there = {onion: hosted.directory for onion, hosted in desk._models.items()}
        assert len(there) <= most
        for hosted in desk._models.values():
            task, rows, labels = hosted.store.task()
            assert (task, *wire(rows, labels)) == (ORDER.task, ORDER.rows, ORDER.labels)
        assert sorted((home / "models").iterdir()) == sorted(there.values()), "a half remains"
    return there


def unsynced(left: Left, home: Path) -> set[str]:
    """Names that are there, and that a power cut may take away."""
    at_risk: dict[str, None] = {}
    for event in left.made:
        if len(event) == 1:
            at_risk = {name: None for name in at_risk if str(Path(name).parent) != event[0]}
            continue
        old, new = event
        if old:  # what is in it, or it itself, is called otherwise now
            at_risk = {new + name.removeprefix(old) if Path(name).is_relative_to(old) else name:
                       None for name in at_risk}
        at_risk[new] = None
    return {name for name in at_risk if Path(name).is_relative_to(home) and Path(name).exists()}


def take(home: Path) -> int:
    """A curator's order is taken in, and the desk dies around each call of it."""
    state = home / "broker" / "state"

    def body(faults: Faults) -> None:
        async def run() -> None:
            async with desk_at(state) as desk:
                onion = await desk._take(ORDER)
                faults.tell(b"S", onion.encode())

        asyncio.run(run())

    def check(left: Left) -> None:
        there = asyncio.run(look(state))
        answered = {onion.decode() for onion in left.said}
        assert answered <= set(there), "an answered model is gone"
        if answered:
            assert not (lost := unsynced(left, home)), f"a power cut takes {lost}"

    return deaths(state.parent, body, check, None)


def forget(home: Path) -> int:
    """A published model is deleted, and the desk dies around each call of it."""
    state, kept = home / "state", home / "kept"
    onion = asyncio.run(published(kept))
    raw = next(kept.glob("models/*/model.safetensors")).read_bytes()

    def body(faults: Faults) -> None:
        async def run() -> None:
            async with desk_at(state) as desk:
                if onion not in desk._models:
                    return  # it could not be read
                app = desk._models[onion].app
                app.brokerage.vanish(desk._now())
                await app._on_disk()
                await desk._forget(onion)
                faults.tell(b"S", b"gone")

        asyncio.run(run())

    def check(left: Left) -> None:
        there = asyncio.run(look(state))
        assert left.killed or not left.said or not there
        for directory in there.values():
            assert (directory / "model.safetensors").read_bytes() == raw

    return deaths(state, body, check, kept)


def publish(home: Path) -> int:
    """The last update comes, and the desk dies around each call until the model is published."""
    broker.model_app.TICK = 0.01  # type: ignore[misc]
    state, kept = home / "state", home / "kept"
    onion = asyncio.run(published(kept, until="taken"))

    def body(faults: Faults) -> None:
        async def run() -> None:
            async with desk_at(state) as desk:
                if onion not in desk._models:
                    return  # it could not be read
                app = desk._models[onion].app
                Player(app.brokerage, now=desk._now()).step(desk._now())
                await app._on_disk()
                faults.tell(b"S", b"acknowledged")
                while app.model is None:
                    await asyncio.sleep(0.01)
                faults.tell(b"S", app.model)

        asyncio.run(run())

    async def after(left: Left) -> None:
        there = await look(state)
        file = there[onion] / "model.safetensors"
        before = file.read_bytes() if file.exists() else None
        async with desk_at(state) as desk:
            app = desk._models[onion].app
            over = app.brokerage.phase == "published"
            assert over or not left.said, "an acknowledged update is gone"
            assert over or before is None
            while over and app.model is None:
                await asyncio.sleep(0.01)
        if over:
            assert read_model(file.read_bytes(), "it", onion).updates == 1
        for earlier in (before, *left.said[1:]):
            assert earlier is None or earlier == file.read_bytes(), "two models of one address"

    return deaths(state, body, lambda left: asyncio.run(after(left)), kept)


async def published(home: Path, until: str = "published") -> str:
    """A desk's state with one model, published or just taken in; gives its address."""
    async with desk_at(home) as desk:
        onion: str = await desk._take(ORDER)
        if until == "published":
            app = desk._models[onion].app
            Player(app.brokerage, now=desk._now()).step(desk._now())
            while app.model is None:
                await asyncio.sleep(0.01)
    return onion


def deaths(state: Path, body: Callable[[Faults], None], check: Callable[[Left], None],
           kept: Path | None) -> int:
    """Each death of a body that begins with a copy of a state, or with nothing."""
    def begin() -> None:
        shutil.rmtree(state, ignore_errors=True)
        if kept is not None:
            shutil.copytree(kept, state)

    begin()
    whole = in_a_child(body, {}, NAMES)
    check(whole)
    fates: list[Plan] = list(plans(whole.calls, "calls"))
    # A full disk is no death, and leaves nothing half either.
    fates += [{n: ("fail", 0)} for n, (name, _) in enumerate(whole.calls) if name != "close"]

    def endure(faults: Faults) -> None:
        with contextlib.suppress(Problem, OSError):
            body(faults)

    killed = 0
    for plan in fates:
        begin()
        left = in_a_child(endure, plan, NAMES)
        killed += left.killed
        try:
            check(left)
        except Exception as error:
            raise AssertionError(f"{plan} of {whole.calls}: {error!r}") from error
    return killed


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def damage(home: Path) -> int:
    """Bits flip, files are cut short, in one of three models: the others are served."""
    state, kept, chance, cases, aside = home / "state", home / "kept", random.Random(4), 0, 0

    def body(_: Faults) -> None:
        async def run() -> None:
            async with desk_at(kept) as desk:
                for _ in range(3):
                    onion = await desk._take(ORDER)
                    app = desk._models[onion].app
                    Player(app.brokerage, now=desk._now())
                    await app._on_disk()
                die()  # so that the logs of all databases stay

        asyncio.run(run())

    in_a_child(body, {}, ())
    log, heard = logging.getLogger("tormentor.broker"), Heard()
    log.addHandler(heard)
    log.propagate = False
    for _ in range(200):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(kept, state)
        heard.lines.clear()
        victim = chance.choice(sorted((state / "models").iterdir()))
        file = victim / chance.choice(["model.db", "model.db", "model.db-wal", "onion.seed"])
        raw = bytearray(file.read_bytes())
        if chance.random() < 0.2:
            del raw[chance.randrange(len(raw)):]
        else:
            for _ in range(chance.choice([1, 8, 200])):
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        file.write_bytes(raw)

        async def start() -> set[Path]:
            async with desk_at(state) as desk:
                return {hosted.directory for hosted in desk._models.values()}

        there = asyncio.run(start())
        others = set((state / "models").iterdir()) - {victim}
        assert len(others) == 2 and others <= there, "a whole model is not served"
        assert victim.is_dir(), "deleted on suspicion"
        if victim not in there:
            aside += 1
            assert any(str(victim) in line and "aside" in line for line in heard.lines)
        else:
            with contextlib.closing(sqlite3.connect(victim / "model.db")) as database:
                (word,) = database.execute("PRAGMA quick_check(1)").fetchone()
            assert word == "ok", "clients work for a model that cannot be written"
        cases += 1
    assert aside > 50
    return cases


# -- mistakes that a change could make --------------------------------------------------------
def no_names() -> None:
    """Wrong: the names of directories are not brought to the disk."""
    def private(path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    broker.desk.private_directory = private  # type: ignore[attr-defined]


def no_rename_sync() -> None:
    """Wrong: the new name of a model's directory is not brought to the disk."""
    broker.desk.sync_directory = lambda _: None  # type: ignore[attr-defined]


def deletes_at_once() -> None:
    """Wrong: a model is deleted under its own name."""
    broker.desk._delete = (  # type: ignore[assignment]
        lambda directory: shutil.rmtree(directory, ignore_errors=True))


def writes_over() -> None:
    """Wrong: a model file is written in its place."""
    broker.desk.write_whole = (  # type: ignore[attr-defined]
        lambda path, data, mode: _slowly(path, data))


def _slowly(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(handle, data[:100])
    os.write(handle, data[100:])
    os.close(handle)


def trusts() -> None:
    """Wrong: a damaged model ends the desk's start."""
    broker.desk.Exception = KeyError  # type: ignore[attr-defined]


MISTAKES: Final[dict[str, Callable[[], None]]] = {
    each.__name__: each for each in (
        no_names, no_rename_sync, deletes_at_once, writes_over, trusts)}
SCENARIOS: Final = {each.__name__: each for each in (take, forget, publish, damage)}


def main(scenario: str, subject: str, home: Path) -> int:
    """Run a scenario, with a mistake or without (``Desk``)."""
    if subject != "Desk":
        MISTAKES[subject]()
    return SCENARIOS[scenario](home)


if __name__ == "__main__":
    logging.getLogger("tormentor.broker").addHandler(logging.NullHandler())
    logging.getLogger("tormentor.broker").propagate = False
    each_in_a_child(main)
