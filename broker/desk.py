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
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from aiohttp import web

from accord.files import private_directory, write_whole
from accord.messages import TASK_LIMIT, VALIDATION_LIMIT, Curate, Curated, decode, encode
from accord.model_file import write_model
from accord.onion import onion_from_seed
from accord.problems import DESK_FULL, TASK_REFUSED, PeerProblem, Problem
from accord.task import open_task
from broker.brokerage import Brokerage, secret_of
from broker.hidden_service import load_or_create_seed
from broker.model_app import ModelApp, read_body, sentences
from broker.page import desk_page
from broker.store import Store
from broker.validator import committed

log = logging.getLogger("tormentor.broker")

LINGERERS: Final = 5
"""How many models are kept for each that may be in training, published ones included."""
UPLOADS: Final = 4
"""Validation sets that are taken in at a time; each may fill 64 MB of memory. Slow ones are cut
off, so that idle senders cannot hold the door for long."""
MODEL_FILE: Final = "model.safetensors"
KEEP_ALIVE: Final = 75.0
SOCKET_DIRECTORY: Final = 85
"""Longest path of a directory for sockets: with a name in it, a unix socket's path may have 104
bytes everywhere. A longer one is replaced by a private directory for temporary files."""
LINGERING: Final = 1.0
"""Seconds that the rest of a refused upload is read, so that its sender sees the refusal."""
SHUTDOWN: Final = 3.0
"""Seconds that open conversations have to end when an address is withdrawn."""


class Services(Protocol):
    """What leads from an address to a unix socket: :class:`broker.hidden_service.HiddenServices`,
    or (``--tor none``) :class:`broker.direct.DirectFront`."""

    async def publish(self, seed: bytes, target_socket: Path) -> str:
        """Lead from the address whose seed this is to the socket; give the address."""

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
    """

    def __init__(
        self, state: Path, publisher: Publisher, max_models: int, linger: float
    ) -> None:
        self._models_directory = private_directory(private_directory(state) / "models")
        self._publisher = publisher
        self._max_models = max_models
        self._linger = linger
        self._models: dict[str, Hosted] = {}
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._taking = asyncio.Lock()
        self._now = asyncio.get_running_loop().time
        self.app = web.Application(middlewares=[sentences])
        self.app.add_routes([web.get("/", self._page), web.post("/curate", self._curate)])

    @property
    def onions(self) -> list[str]:
        """The addresses of the models that are hosted now."""
        return list(self._models)

    async def start(self) -> None:
        """Go on with every model that the state directory holds."""
        for directory in sorted(self._models_directory.iterdir()):
            try:
                seed_path = directory / "onion.seed"
                if not (directory / "model.db").exists() or not seed_path.exists():
                    log.error("%s holds no whole model and is left aside.", directory)
                    continue
                store = Store(directory / "model.db")
                kept = store.task()
                if kept is None:
                    # The desk was cut off before it had answered the curator.
                    store.close()
                    await asyncio.to_thread(shutil.rmtree, directory)
                    continue
                seed = load_or_create_seed(seed_path)
                brokerage = Brokerage(secret_of(seed), secrets.token_bytes)
                brokerage.accept(*kept, self._now())
                if (state := store.state()) is not None:
                    brokerage.restore(*state, self._now())
                await self._host(brokerage, store, seed, directory)
            except Exception as error:
                # One damaged model must not keep the others from their clients.
                log.error("The model in %s is left aside: %s", directory, error)

    async def close(self) -> None:
        """Stop serving; the state stays, for the next start."""
        lives = [model.life for model in self._models.values()]
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        for model in self._models.values():
            model.store.close()
        self._models.clear()

    # -- the desk's own address ----------------------------------------------------------------

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(
            text=desk_page(len(self._models), self._max_models), content_type="text/html")

    async def _curate(self, request: web.Request) -> web.Response:
        self._check_places()
        async with self._uploads:
            limit = VALIDATION_LIMIT + TASK_LIMIT
            order = decode(await read_body(request, limit), Curate, limit)
            # One at a time from here on, so that places are counted right.
            async with self._taking:
                self._check_places()
                onion = await self._take(order)
        return web.Response(body=encode(Curated(onion)))

    def _check_places(self) -> None:
        # A published model only lingers, and costs next to nothing; but memory has an end.
        busy = sum(hosted.app.model is None for hosted in self._models.values())
        if busy >= self._max_models or len(self._models) >= LINGERERS * self._max_models:
            raise PeerProblem(DESK_FULL, limit=self._max_models)

    async def _take(self, order: Curate) -> str:
        """Make a model of a curator's order, on disk, and publish its address."""
        task = open_task(order.task, "the desk")
        labels = np.frombuffer(order.labels, dtype="u1").astype(np.float64)
        # On the bytes as they came: the task is signed, and what it is to be judged by is not.
        if not committed(task, order.salt, order.rows, order.labels):
            raise PeerProblem(TASK_REFUSED)
        if len(order.rows) != 4 * len(labels) * task.dimension:
            raise PeerProblem(TASK_REFUSED)
        cells = np.frombuffer(order.rows, dtype="<f4").astype(np.float64)
        rows = cells.reshape(len(labels), task.dimension)
        directory = private_directory(self._models_directory / secrets.token_hex(8))
        store = None
        try:
            seed = load_or_create_seed(directory / "onion.seed")
            brokerage = Brokerage(secret_of(seed), secrets.token_bytes)
            brokerage.accept(order.task, rows, labels, self._now())
            store = Store(directory / "model.db")
            # 64 MB to the disk: not while others wait.
            await asyncio.to_thread(store.keep_task, order.task, rows, labels)
            return await self._host(brokerage, store, seed, directory)
        except BaseException:
            if store is not None:
                store.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise

    # -- the life of a model -------------------------------------------------------------------

    async def _host(
        self, brokerage: Brokerage, store: Store, seed: bytes, directory: Path
    ) -> str:
        onion = onion_from_seed(seed)
        app = ModelApp(brokerage, store, self._model_writer(brokerage, seed, onion, directory))
        await self._publisher.publish(seed, app.app)
        life = asyncio.create_task(self._live(onion, app))
        self._models[onion] = Hosted(onion, app, store, directory, life)
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

    async def _live(self, onion: str, app: ModelApp) -> None:
        """See a model through, and clear away what is left of it."""
        work = asyncio.create_task(app.run())
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
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work

    async def _forget(self, onion: str) -> None:
        model = self._models.pop(onion)
        try:
            await self._publisher.withdraw(onion)
        except Problem as problem:
            # tor may be away; then its address is too.
            log.error("%s", problem.sentence)
        finally:
            model.store.close()
            # Whatever else fails: the validation set and the sessions do not stay.
            await asyncio.to_thread(shutil.rmtree, model.directory, ignore_errors=True)
        log.info("A published model is gone.")


# -- where apps can be reached ---------------------------------------------------------------


class Publisher:
    """Serves each app on a unix socket of its own, in a 0700 directory, behind its own address.

    Args:
        services: what leads from the address to the socket.
        directory: where the sockets are; what an earlier desk left there is removed.
    """

    def __init__(self, services: Services, directory: Path) -> None:
        self._services = services
        shutil.rmtree(directory, ignore_errors=True)
        if len(os.fsencode(directory.absolute())) > SOCKET_DIRECTORY:
            directory = Path(tempfile.mkdtemp(prefix="tormentor-"))
        self._directory = private_directory(directory.absolute())
        self._runners: dict[str, web.AppRunner] = {}

    async def publish(self, seed: bytes, app: web.Application) -> str:
        """Serve this app at the address whose seed this is; give the address."""
        path = self._directory / secrets.token_hex(8)
        runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=KEEP_ALIVE, lingering_time=LINGERING,
            shutdown_timeout=SHUTDOWN)
        await runner.setup()
        await web.UnixSite(runner, path).start()
        await asyncio.to_thread(path.chmod, 0o600)
        await self._services.share_with_tor(self._directory)
        onion = await self._services.publish(seed, path)
        self._runners[onion] = runner
        return onion

    async def withdraw(self, onion: str) -> None:
        """Serve nothing there any more."""
        try:
            await self._services.remove(onion)
        finally:
            await self._runners.pop(onion).cleanup()

    async def close(self) -> None:
        """Stop all apps and remove their sockets."""
        for runner in self._runners.values():
            await runner.cleanup()
        self._runners.clear()
        shutil.rmtree(self._directory, ignore_errors=True)
