"""One private Tor network for all tests in this directory, from real tor processes.

Without a tor program these tests fail; none is skipped.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from broker.hidden_service import HiddenServices
from lab.tornet import TorNetwork


@pytest.fixture(scope="session")
def tornet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorNetwork]:
    """A network that is up, with three SOCKS ports.

    It lives in an event loop of its own, as a test's loop ends with the test; its client
    (``tornet.tor``) may be used from any loop.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tornet", daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(300)

    network = TorNetwork(tmp_path_factory.mktemp("tornet"))
    try:
        run(network.up(socks_ports=3))
        yield network
    finally:
        run(network.down())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def services(tornet: TorNetwork) -> HiddenServices:
    """The onion services of the network's own client."""
    assert tornet.tor is not None
    return HiddenServices(tornet.tor)
