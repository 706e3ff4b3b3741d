"""Flower's own server: run by :mod:`lab.bench.flower` in an environment of its own.

Nothing of this project is imported here. The argument says, as JSON: ``address``, ``clients``,
``rounds``, ``warm`` (rounds before the clock starts), ``workers`` (threads that talk to clients),
``dimension``, and ``models`` (where the model after each round is written, ``.npy`` (rounds,
dimension); empty for nowhere). It says one line when all clients are there, and one at the end:
the seconds from the beginning of the first round after the warm ones to the end of each round,
and how many results were aggregated and failed in all of those.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import numpy as np
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.server.app import start_server
from flwr.server.client_manager import SimpleClientManager
from flwr.server.server import Server
from flwr.server.server_config import ServerConfig
from flwr.server.strategy import FedAvg


class Watched(FedAvg):  # type: ignore[misc,unused-ignore]
    """Flower's FedAvg; it writes down when each round began and ended, and with what model."""

    def __init__(self, clients: int, dimension: int) -> None:
        super().__init__(
            fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=clients,
            min_available_clients=clients,
            initial_parameters=ndarrays_to_parameters([np.zeros(dimension, dtype=np.float32)]))
        self.began: list[float] = []
        self.ended: list[float] = []
        self.models: list[np.ndarray] = []
        self.results: list[int] = []
        self.failures: list[int] = []

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        """As FedAvg."""
        if server_round == 1:
            # So that joining is not in the first round.
            client_manager.wait_for(self.min_fit_clients, timeout=300)
            _tell({"joined": client_manager.num_available()})
        self.began.append(time.perf_counter())
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """As FedAvg."""
        done = super().aggregate_fit(server_round, results, failures)
        self.ended.append(time.perf_counter())
        self.results.append(len(results))
        self.failures.append(len(failures))
        if done[0] is not None:
            self.models.append(parameters_to_ndarrays(done[0])[0])
        return done


def main() -> None:
    """All rounds."""
    told = json.loads(sys.argv[1])
    # A line of log for each message is not what is measured.
    logging.getLogger("flwr").setLevel(logging.ERROR)
    strategy = Watched(told["clients"], told["dimension"])
    server = Server(client_manager=SimpleClientManager(), strategy=strategy)
    server.set_max_workers(told["workers"])
    start_server(server_address=told["address"], server=server,
                 config=ServerConfig(num_rounds=told["rounds"]))
    warm = told["warm"]
    if told["models"]:
        np.save(told["models"], np.array(strategy.models))
    _tell({
        "ends": [end - strategy.began[warm] for end in strategy.ended[warm:]],
        "results": sum(strategy.results[warm:]), "failures": sum(strategy.failures[warm:]),
    })


def _tell(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), flush=True)  # noqa: T201  (what it is run for)


if __name__ == "__main__":
    main()
