"""Flower's own clients, one in each thread: run by :mod:`lab.bench.flower` in an environment of
its own.

Nothing of this project is imported here. The argument says, as JSON: ``address``, ``numbers`` (of
the clients), ``rows`` and ``labels`` (``.npy``, of all clients: (n, d) and (n,)), ``share`` (rows
of each client), ``batch``, ``steps`` (of each round), ``rate`` (of a step; in round r it is
``rate / sqrt(r)`` where ``falling`` is true), ``clip``, and ``epsilon`` (of one step's noise; null
for none). Each step is what our trainer does: gradients of a batch drawn without replacement,
clipped, summed, noise added, divided by the batch.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.compat.client.app import start_client


class Client(NumPyClient):  # type: ignore[misc,unused-ignore]
    """One client: logistic regression on rows of its own."""

    def __init__(self, rows: np.ndarray, labels: np.ndarray, mine: np.ndarray,
                 told: dict[str, Any], seed: int) -> None:
        self._rows, self._labels, self._mine, self._told = rows, labels, mine, told
        self._rng = np.random.default_rng(seed)
        self._done = 0

    def fit(self, parameters: Any, config: Any) -> Any:
        """Some steps from the server's model."""
        told, w = self._told, parameters[0].astype(np.float64)
        for _ in range(told["steps"]):
            self._done += 1
            eta = told["rate"] / (self._done ** 0.5 if told["falling"] else 1.0)
            w -= eta * self._release(w)
        return [w.astype(np.float32)], len(self._mine), {}

    def _release(self, w: np.ndarray) -> np.ndarray:
        told, rng = self._told, self._rng
        drawn = rng.choice(len(self._mine), size=told["batch"], replace=False, shuffle=False)
        chosen = self._mine[drawn]
        x = self._rows[chosen]
        gradients = (0.5 * (1 + np.tanh(0.5 * (x @ w))) - self._labels[chosen])[:, None] * x
        length = np.sqrt(np.einsum("ij,ij->i", gradients, gradients))
        gradients *= np.minimum(1.0, told["clip"] / np.maximum(length, 1e-300))[:, None]
        total = gradients.sum(axis=0)
        if told["epsilon"] is not None:
            direction = rng.standard_normal(len(w))
            total += direction * (rng.gamma(len(w), 2 * told["clip"] / told["epsilon"])
                                  / np.linalg.norm(direction))
        return np.asarray(total / told["batch"])


def main() -> None:
    """Run all clients until the server has done."""
    told = json.loads(sys.argv[1])
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = np.load(told["rows"], allow_pickle=False)
    labels = np.load(told["labels"], allow_pickle=False)
    size = told["share"]
    clients = []
    for number in told["numbers"]:
        # Each has a bootstrap sample of the whole, as the paper's clients have.
        mine = np.random.default_rng([7, number]).integers(0, len(labels), size)
        clients.append(Client(rows, labels, mine, told, number))
    threads = [
        threading.Thread(target=start_client, daemon=True, kwargs={
            "server_address": told["address"], "client": client.to_client(), "insecure": True})
        for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
