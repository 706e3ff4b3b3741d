"""Trainings by Flower, started and read by us: server and clients in processes of their own."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.bench import contestants
from lab.demo import Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One training by Flower.

    Attributes:
        clients: how many; processes: that they are threads of; workers: threads of the server.
        rounds: all of them; warm: of these, before the clock starts.
        steps: of a client in each round; rate, falling: their length; see
            :mod:`lab.bench.flower_clients`.
        batch, clip, epsilon: of each step; epsilon None for no noise.
    """

    clients: int
    processes: int = 1
    workers: int = 50
    rounds: int = 20
    warm: int = 0
    steps: int = 1
    rate: float = 1.0
    falling: bool = True
    batch: int = 50
    clip: float = 0.5
    epsilon: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Course:
    """What came of one.

    Attributes:
        ends: seconds from the first round's begin (after the warm ones) to each round's end.
        models: after each of these, (rounds, d); all warm ones before it.
        made: results that the server had aggregated in them by each of these ends.
    """

    ends: list[float]
    models: np.ndarray
    made: list[int]

    @property
    def rate(self) -> float:
        """Results aggregated a second."""
        return self.made[-1] / self.ends[-1]


@contextlib.contextmanager
def shared(rows: np.ndarray, labels: np.ndarray) -> Iterator[Path]:
    """A directory with these data for Flower's clients, rows (n, d) and labels (n,)."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        np.save(directory / "rows.npy", rows, allow_pickle=False)
        np.save(directory / "labels.npy", labels, allow_pickle=False)
        yield directory


def run(plan: Plan, directory: Path, share: int, dimension: int) -> Course:
    """One training.

    Args:
        plan: how.
        directory: from :func:`shared`.
        share: rows of each client, drawn with replacement.
        dimension: of the model.

    Raises:
        Failed: a program ended before it had done, or a client's answer was lost.
    """
    address = f"127.0.0.1:{_free_port()}"
    log, models = directory / "log", directory / "models.npy"
    models.unlink(missing_ok=True)
    with log.open("wb") as file, contextlib.ExitStack() as stack:

        def start(program: str, told: dict[str, Any]) -> Any:
            process = stack.enter_context(contestants.start(program, told, file))
            stack.callback(process.kill)
            return process

        server = start("flower_server.py", {
            "address": address, "clients": plan.clients, "rounds": plan.rounds,
            "warm": plan.warm, "workers": plan.workers, "dimension": dimension,
            "models": str(models)})
        _listening(address, log)
        for place in range(plan.processes):
            start("flower_clients.py", {
                "address": address, "numbers": list(range(place, plan.clients, plan.processes)),
                "rows": str(directory / "rows.npy"), "labels": str(directory / "labels.npy"),
                "share": share, "batch": plan.batch, "steps": plan.steps, "rate": plan.rate,
                "falling": plan.falling, "clip": plan.clip, "epsilon": plan.epsilon})
        contestants.line_of(server, log)
        told = contestants.line_of(server, log)
    made = [plan.clients * (number + 1) for number in range(len(told["ends"]))]
    if told["failures"] or told["results"] != made[-1]:
        raise Failed("some answers of Flower's clients were lost")
    return Course(told["ends"], np.load(models, allow_pickle=False)[plan.warm:], made)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _listening(address: str, log: Path, seconds: float = 60.0) -> None:
    """Wait until the server is there: its clients would wait longer between two tries."""
    host, _, port = address.partition(":")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
            return
        time.sleep(0.05)
    tail = log.read_text(errors="replace").strip().split("\n")[-1]
    raise Failed(f"Flower's server does not listen: {tail}")
