"""Stands where Tor would: whoever knows a socket connects to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accord.onion import onion_from_seed


class Sockets:
    """Leads nowhere, and remembers where each address's socket is (:class:`broker.desk.Services`).

    Attributes:
        paths: of the sockets, by address.
    """

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}

    async def publish(
        self, seed: bytes, target_socket: Path, *, invited: Sequence[bytes] = ()
    ) -> str:
        """Remember the socket."""
        onion = onion_from_seed(seed)
        self.paths[onion] = target_socket
        return onion

    async def remove(self, onion: str) -> None:
        """Forget it."""
        del self.paths[onion]

    async def share_with_tor(self, directory: Path) -> None:
        """There is none."""
