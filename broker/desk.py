"""The desk: takes tasks from curators, gives each model an address of its own, ends them.

A model lives in ``STATE/models/NAME``: ``onion.seed`` (0600; the address is its public key),
``model.db``, and ``model.safetensors`` once published. A desk that is started again on its state
goes on with all of them, at the same addresses. A model that has been published for ``linger``
seconds is gone: its address is withdrawn and its directory, sessions and validation set with it,
deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from aiohttp import web

from accord.files import private_directory, sync_directory, write_whole
from accord.messages import TASK_LIMIT, VALIDATION_LIMIT, Curate, Curated, decode, encode
from accord.model_file import write_model
from accord.onion import onion_from_seed
from accord.problems import CURATOR_REFUSED, DESK_FULL, DISK, TASK_REFUSED, PeerProblem, Problem
from accord.seed import load_or_create_seed
from accord.task import open_task
from broker.answers import read_body
from broker.brokerage import Brokerage, secret_of
from broker.doorman import Door
from broker.limits import LINGERERS, Limits
from broker.model_app import ModelApp
from broker.page import desk_page
from broker.store import Store
from broker.validator import committed

log = logging.getLogger("tormentor.broker")

MODEL_FILE: Final = "model.safetensors"
ORDER_LIMIT: Final = VALIDATION_LIMIT + TASK_LIMIT
HALF: Final = "."
"""Begins the name of a directory of which a model is being made, or which is being deleted: nobody
was told of the one, or is to find the other. A desk that starts deletes what a killed one left."""
SOCKET_DIRECTORY: Final = 85
"""Longest path of a directory for sockets: with a name in it, a unix socket's path may have 104
bytes everywhere. A longer one, or one with a space in it, is replaced by a private directory for
temporary files."""


class Services(Protocol):
    """What leads from an address to a unix socket: :class:`broker.hidden_service.HiddenServices`,
    or (``--tor none``) :class:`broker.direct.DirectFront`."""

    async def publish(
        self, seed: bytes, target_socket: Path, *, invited: Sequence[bytes] = ()
    ) -> str:
        """Lead from the address whose seed this is to the socket; give the address.

        Only those come in who hold one of the invited x25519 keys; without any, everybody.
        """

    async def remove(self, onion: str) -> None:
        """Withdraw the address."""

    async def share_with_tor(self, directory: Path) -> None:
        """Let tor's user, where it is another than ours, reach the sockets in a directory."""


@dataclass(slots=True)
class Hosted:
    """One model that the desk hosts."""

    onion: str
    app: ModelApp
    store: Store
    directory: Path
    work: asyncio.Task[None]
    life: asyncio.Task[None]

    @property
    def model_file(self) -> Path:
        """The model, once it is published."""
        return self.directory / MODEL_FILE


class Desk:
    """Hosts models.

    Args:
        state: its directory (0700).
        publisher: where the apps can be reached.
        max_models: how many it hosts at a time.
        linger: seconds that a published model is offered.
        limits: of uploads, and of the models' conversations.
        curators: public keys of those whose tasks it takes; none for anyone's.
    """

    def __init__(
        self, state: Path, publisher: Publisher, max_models: int, linger: float,
        limits: Limits | None = None, curators: Set[bytes] = frozenset(),
    ) -> None:
        self._curators = curators
        self._models_directory = private_directory(private_directory(state) / "models")
        self._publisher = publisher
        self._max_models = max_models
        self._linger = linger
        self._models: dict[str, Hosted] = {}
        self._limits = limits or Limits()
        self._uploads = asyncio.Semaphore(self._limits.uploads)
        self._taking = asyncio.Lock()
        self._now = asyncio.get_running_loop().time
        self.app = web.Application()
        self.app.add_routes([web.get("/", self._page), web.post("/curate", self._curate)])

    @property
    def onions(self) -> list[str]:
        """The addresses of the models that are hosted now."""
        return list(self._models)

    async def start(self) -> None:
        """Go on with every model that the state directory holds."""
        for directory in sorted(self._models_directory.iterdir()):
            store = None
            try:
                if directory.name.startswith(HALF):
                    await asyncio.to_thread(shutil.rmtree, directory)
                    continue
                seed_path = directory / "onion.seed"
                for path in (seed_path, directory / "model.db"):
                    if not path.exists():
                        raise FileNotFoundError(f"there is no {path.name}")
                store = Store(directory / "model.db")
                kept = store.task()
                if kept is None:
                    raise ValueError("its task is gone")
                seed = load_or_create_seed(seed_path)
                brokerage = Brokerage(secret_of(seed), secrets.token_bytes)
                brokerage.accept(*kept, self._now())
                if (state := store.state()) is not None:
                    brokerage.restore(*state, self._now())
                await self._host(brokerage, store, seed, directory)
            except Exception as error:
                # One damaged model must not keep the others from their clients.
                if store is not None:
                    store.close()
                why = error.details.get("why", error) if isinstance(error, Problem) else error
                log.error(
                    "The model in %s is left aside and not served (%s). Nothing in there was "
                    "touched: put a copy of it back and start again, or move it away.",
                    directory, str(why).partition("\n")[0])

    async def close(self) -> None:
        """Stop serving; the state stays, for the next start."""
        lives = [model.life for model in self._models.values()]
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        for model in self._models.values():
            # Its life ends it too, but one that was cancelled before it began ends nothing.
            await _end(model.work)
            model.store.close()
        self._models.clear()

    # -- the desk's own address ----------------------------------------------------------------

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(
            text=desk_page(len(self._models), self._max_models), content_type="text/html")

    async def _curate(self, request: web.Request) -> web.Response:
        self._check_places()
        async with self._uploads:
            body = await read_body(request, ORDER_LIMIT, self._limits.read_seconds)
            # Whoever hangs up now must not leave half a model.
            onion = await asyncio.shield(self._take_one(body))
        return web.Response(body=encode(Curated(onion)))

    async def _take_one(self, body: bytes) -> str:
        # One at a time, so that places are counted right, and memory is filled by one only.
        async with self._taking:
            self._check_places()
            return await self._take(decode(body, Curate, ORDER_LIMIT))

    def _check_places(self) -> None:
        # A published model only lingers, and costs next to nothing; but memory has an end.
        busy = sum(hosted.app.model is None for hosted in self._models.values())
        if busy >= self._max_models or len(self._models) >= LINGERERS * self._max_models:
            raise PeerProblem(DESK_FULL, limit=self._max_models)

    async def _take(self, order: Curate) -> str:
        """Make a model of a curator's order, on disk, and publish its address."""
        if self._curators and order.task.curator not in self._curators:
            raise PeerProblem(CURATOR_REFUSED)
        # 64 MB are checked, and go to the disk: not while others wait.
        rows, labels = await asyncio.to_thread(_validation_set, order)
        directory = self._models_directory / secrets.token_hex(8)
        store = None
        try:
            half = await asyncio.to_thread(
                private_directory, directory.with_name(HALF + directory.name))
            seed = load_or_create_seed(half / "onion.seed")
            brokerage = Brokerage(secret_of(seed), secrets.token_bytes)
            await asyncio.to_thread(brokerage.accept, order.task, rows, labels, self._now())
            store = Store(half / "model.db")
            await asyncio.to_thread(
                store.keep_task, order.task, rows, labels, sorted(set(order.invited)))
            # SQLite's files are not renamed while it has them open.
            store.close()
            await asyncio.to_thread(_rename, half, directory)
            store = Store(directory / "model.db")
            return await self._host(brokerage, store, seed, directory)
        except BaseException:
            if store is not None:
                store.close()
            _delete(directory)
            raise

    # -- the life of a model -------------------------------------------------------------------

    async def _host(
        self, brokerage: Brokerage, store: Store, seed: bytes, directory: Path
    ) -> str:
        onion = onion_from_seed(seed)
        app = ModelApp(brokerage, store, self._model_writer(brokerage, seed, onion, directory),
                       limits=self._limits)
        await self._publisher.publish(seed, app.app, store.invited())
        work = asyncio.create_task(app.run())
        life = asyncio.create_task(self._live(onion, app, work))
        self._models[onion] = Hosted(onion, app, store, directory, work, life)
        log.info("Hosting %d of at most %d models.", len(self._models), self._max_models)
        return onion

    @staticmethod
    def _model_writer(
        brokerage: Brokerage, seed: bytes, onion: str, directory: Path
    ) -> Callable[[], bytes]:
        def write() -> bytes:
            path = directory / MODEL_FILE
            if path.exists():
                # Published before a restart; whoever compares files must find the same bytes.
                return path.read_bytes()
            raw = write_model(seed, onion, brokerage.signed, *brokerage.outcome)
            write_whole(path, raw, 0o600)
            return raw

        return write

    async def _live(self, onion: str, app: ModelApp, work: asyncio.Task[None]) -> None:
        """See a model through, and clear away what is left of it."""
        try:
            while app.model is None:
                # A mistake in the model's own work must not pass in silence.
                await asyncio.wait([work], timeout=1.0)
                if work.done():
                    work.result()
            # The file tells when it was published, however often the desk was restarted since.
            age = time.time() - self._models[onion].model_file.stat().st_mtime
            left = max(0.0, self._linger - max(0.0, age))
            log.info("A model is published; it stays for %.0f s.", left)
            await asyncio.sleep(left)
            app.brokerage.vanish(self._now())
            await self._forget(onion)
        except Exception:
            log.exception("A model has stopped; its state stays for the next start.")
        finally:
            await _end(work)

    async def _forget(self, onion: str) -> None:
        model = self._models[onion]
        try:
            await self._publisher.withdraw(onion)
        except Problem as problem:
            # tor may be away; then its address is too.
            log.error("%s", problem.sentence)
        finally:
            # Nobody is left to be answered, and what it would write has no place any more.
            await _end(model.work)
            model.store.close()
            # Whatever else fails: the validation set and the sessions do not stay.
            try:
                await asyncio.to_thread(_delete, model.directory)
            finally:
                self._models.pop(onion, None)
        log.info("A published model is gone.")


def _validation_set(order: Curate) -> tuple[np.ndarray, np.ndarray]:
    """The rows (n, d) and labels (n,) of an order, which are those that its task commits to.

    Raises:
        PeerProblem: ``TASK_REFUSED``; whatever :func:`accord.task.open_task` raises.
    """
    task = open_task(order.task, "the desk")
    # On the bytes as they came: the task is signed, and what it is to be judged by is not.
    if not committed(task, order.salt, order.rows, order.labels):
        raise PeerProblem(TASK_REFUSED)
    labels = np.frombuffer(order.labels, dtype="u1").astype(np.float64)
    if len(order.rows) != 4 * len(labels) * task.dimension:
        raise PeerProblem(TASK_REFUSED)
    cells = np.frombuffer(order.rows, dtype="<f4").astype(np.float64)
    return cells.reshape(len(labels), task.dimension), labels


async def _end(work: asyncio.Task[None]) -> None:
    """Cancel a model's work, and wait until it has ended, however it does."""
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await work


def _rename(directory: Path, new: Path) -> None:
    """Give a directory another name beside its own, also on the disk."""
    try:
        directory.rename(new)
        sync_directory(new.parent)
    except OSError as error:
        raise Problem(DISK, path=new, why=(error.strerror or str(error)).lower()) from None


def _delete(directory: Path) -> None:
    """Delete a model's directory; when that is cut short, the next start goes on with it."""
    half = directory.with_name(HALF + directory.name)
    with contextlib.suppress(Problem):
        _rename(directory, half)
    for name in (half, directory):
        shutil.rmtree(name, ignore_errors=True)


# -- where apps can be reached ---------------------------------------------------------------


class Publisher:
    """Serves each app on a unix socket of its own, in a 0700 directory, behind its own address.

    Args:
        services: what leads from the address to the socket.
        directory: where the sockets are; what an earlier desk left there is removed.
        limits: of the connections to each.
    """

    def __init__(
        self, services: Services, directory: Path, limits: Limits | None = None
    ) -> None:
        self._services = services
        self._limits = limits
        shutil.rmtree(directory, ignore_errors=True)
        name = str(directory.absolute())
        # tor takes a socket's path up to the next space.
        if len(os.fsencode(name)) > SOCKET_DIRECTORY or re.search(r'[\s"]', name):
            directory = Path(tempfile.mkdtemp(prefix="tormentor-"))
        self._directory = private_directory(directory.absolute())
        self._doors: dict[str, Door] = {}

    async def publish(
        self, seed: bytes, app: web.Application, invited: Sequence[bytes] = ()
    ) -> str:
        """Serve this app at the address whose seed this is; give the address.

        Args:
            seed: of the address.
            app: what is served.
            invited: keys of those who alone can reach it; none for everybody.
        """
        path = self._directory / secrets.token_hex(8)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        await asyncio.to_thread(path.chmod, 0o600)
        door = Door(app, listener, self._limits)
        await door.open()
        try:
            await self._services.share_with_tor(self._directory)
            onion = await self._services.publish(seed, path, invited=invited)
        except BaseException:
            await door.close()
            raise
        self._doors[onion] = door
        return onion

    async def withdraw(self, onion: str) -> None:
        """Serve nothing there any more."""
        try:
            await self._services.remove(onion)
        finally:
            await self._doors.pop(onion).close()

    async def close(self) -> None:
        """Stop all apps and remove their sockets."""
        # Together, as each may take some seconds, and whoever typed Ctrl-C waits.
        await asyncio.gather(*(door.close() for door in self._doors.values()))
        self._doors.clear()
        shutil.rmtree(self._directory, ignore_errors=True)
