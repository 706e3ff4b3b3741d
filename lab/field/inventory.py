"""Which machines there are: an Ansible inventory, as ``ansible-inventory`` reads it.

Group ``broker`` is one machine, group ``clients`` one or more. A machine has, besides what Ansible
itself knows (``ansible_host``, ``ansible_user``, ...), these variables, all optional:

========================  =========================================================================
``tormentor_region``      where it is, for tables and sentences; its name in the inventory otherwise
``tormentor_direct``      HOST:PORT at which it reaches the broker without Tor; the broker's
                          ``ansible_host`` and port 7700 otherwise
``tormentor_torrc``       a file here, relative to the inventory, that makes tors join a private
                          network; the public one otherwise
``tormentor_pip``         more options of ``pip install`` there
``tormentor_python``      the Python that TorMentor gets an environment of; ``python3`` otherwise
========================  =========================================================================
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from accord.console import host_port
from accord.files import write_whole
from accord.problems import BAD_INVENTORY, NO_FILE, OTHER_PLACE, Problem

DIRECT_PORT: Final = 7700
"""Of a broker without Tor."""
PLACE: Final = "inventory.json"
"""In a directory of results: where they are from (:attr:`Inventory.place`)."""
MACHINES: Final = "machines.json"
"""In a directory of results: what machines they were (:func:`lab.field.machines.stored`)."""
LATENCY: Final = "latency.json"
"""In a directory of results: the round trips of each machine (:mod:`lab.field.latencies`)."""
_REGION: Final = re.compile(r"[^\x00-\x1f\x7f]{1,60}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One machine.

    Attributes:
        name: in the inventory.
        region: where it is.
        torrc: a file here for its tor; None for the public network.
        direct: HOST:PORT at which it reaches the broker without Tor.
        python: a program there.
        pip: more options of its ``pip install``.
    """

    name: str
    region: str
    torrc: Path | None
    direct: str
    python: str = "python3"
    pip: str = ""

    @property
    def words(self) -> str:
        """For a sentence: where it is, and its name."""
        return self.region if self.region == self.name else f"{self.region} ({self.name})"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The machines of a run.

    Attributes:
        path: of the file.
        broker: the one with the desks; clients: the others, in their order.
    """

    path: Path
    broker: Host
    clients: tuple[Host, ...]

    @property
    def hosts(self) -> dict[str, Host]:
        """All of them, by name; the broker's first."""
        return {host.name: host for host in (self.broker, *self.clients)}

    @property
    def place(self) -> dict[str, Any]:
        """What results say of where they are from: no addresses, names of machines or keys."""
        private = any(host.torrc for host in self.hosts.values())
        return {"broker": self.broker.region, "clients": [host.region for host in self.clients],
                "tor_network": "private" if private else "public"}

    def words(self, name: str) -> str:
        """A machine for a sentence, by its name."""
        return self.hosts[name].words if name in self.hosts else name


def spread(clients: int, hosts: Sequence[str]) -> dict[str, list[int]]:
    """Which clients each machine runs: one after the other to each, and again.

    Args:
        clients: how many.
        hosts: names of machines, at least one.

    Returns:
        The clients' numbers by machine; a machine without any is left out.
    """
    dealt = {name: list(range(first, clients, len(hosts))) for first, name in enumerate(hosts)}
    return {name: numbers for name, numbers in dealt.items() if numbers}


async def read(path: Path, program: Path) -> Inventory:
    """The inventory in a file.

    Args:
        path: YAML or INI, whatever Ansible takes.
        program: ``ansible-inventory``.

    Raises:
        Problem: ``NO_FILE``, or ``BAD_INVENTORY`` with what is wrong.
    """
    if not await asyncio.to_thread(path.is_file):
        raise Problem(NO_FILE, path=path, why="there is no such file")
    process = await asyncio.create_subprocess_exec(
        program, "--inventory", path, "--list", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # Ansible ends where the locale is not one of UTF-8; and it takes a file that it cannot read
        # for one without machines, unless told otherwise.
        env={**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True"})
    out, told = await process.communicate()
    if process.returncode:
        raise Problem(BAD_INVENTORY, path=path, why=_last(told.decode(errors="replace")))
    return parse(json.loads(out), path)


def _last(text: str) -> str:
    """What of Ansible's lines says why."""
    # It tries a file as several things: as YAML first, and tells how far it got.
    if broken := re.search(r"YAML parsing failed: (.+)", text):
        place = re.search(r"^Origin: .*:(\d+):\d+$", text, re.MULTILINE)
        return broken[0].strip(" .") + (f" (line {place[1]})" if place else "")
    if broken := re.search(r"Failed to parse inventory with 'ini' plugin: (.+)", text):
        return "Ansible says: " + broken[1].strip(" .").removeprefix("Failed to parse inventory: ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("[ERROR]", "ERROR!"))]
    return (marked or lines or ["it does not say why"])[-1].removeprefix("[ERROR]:").strip(" .")


def parse(listed: Mapping[str, Any], path: Path) -> Inventory:
    """What ``ansible-inventory --list`` says of a file.

    Raises:
        Problem: ``BAD_INVENTORY``.
    """
    variables = listed.get("_meta", {}).get("hostvars", {})
    brokers, clients = _members(listed, "broker"), _members(listed, "clients")
    if len(brokers) != 1:
        raise Problem(BAD_INVENTORY, path=path, why=(
            f"group 'broker' has {len(brokers)} machines and must have one"))
    if not clients:
        raise Problem(BAD_INVENTORY, path=path, why="group 'clients' has no machine")
    main = variables.get(brokers[0], {})
    near = f"{_bare(str(main.get('ansible_host', brokers[0])))}:{DIRECT_PORT}"

    def host(name: str) -> Host:
        return _host(name, variables.get(name, {}), near, path)

    broker = host(brokers[0])
    # Its referee is beside the desk.
    return Inventory(path, Host(
        name=broker.name, region=broker.region, torrc=broker.torrc,
        direct=f"127.0.0.1:{DIRECT_PORT}", python=broker.python, pip=broker.pip,
    ), tuple(map(host, clients)))


def _bare(address: str) -> str:
    """An address as a client's HOST:PORT takes it."""
    return f"[{address}]" if ":" in address else address


def _members(listed: Mapping[str, Any], group: str) -> list[str]:
    """The machines of a group, those of its children too, each once."""
    this = listed.get(group, {})
    found = [str(name) for name in this.get("hosts", ())]
    for child in this.get("children", ()):
        found += _members(listed, child)
    return list(dict.fromkeys(found))


def _host(name: str, given: Mapping[str, Any], near: str, path: Path) -> Host:
    def text(key: str, default: str) -> str:
        value = given.get(f"tormentor_{key}", default)
        if not isinstance(value, str):
            raise Problem(BAD_INVENTORY, path=path,
                          why=f"tormentor_{key} of {name} is not text: {value!r}")
        return value

    if not _NAME.fullmatch(name):
        raise Problem(BAD_INVENTORY, path=path, why=(
            f"'{name}' cannot be a machine's name: letters, digits, '-', '_' and '.'"))
    region = text("region", name)
    if not _REGION.fullmatch(region):
        raise Problem(BAD_INVENTORY, path=path,
                      why=f"tormentor_region of {name} is not a line of up to 60 characters")
    direct = text("direct", near)
    try:
        host_port(direct, "tormentor_direct")
    except Problem as problem:
        raise Problem(BAD_INVENTORY, path=path, why=(
            f"{problem.sentence.rstrip('.')}, for {name}")) from None
    torrc = path.parent / text("torrc", "") if text("torrc", "") else None
    if torrc is not None and not torrc.is_file():
        raise Problem(BAD_INVENTORY, path=path,
                      why=f"tormentor_torrc of {name} is no file: {torrc}")
    return Host(name=name, region=region, torrc=torrc, direct=direct,
                python=text("python", "python3"), pip=text("pip", ""))


# -- where results are from ------------------------------------------------------------------


def keep_place(directory: Path, place: Mapping[str, Any] | None, begun: bool) -> None:
    """See that a directory's results are all from one place, and write down which. Where they
    begin anew, what was measured for earlier ones goes.

    Args:
        directory: of results.
        place: of this run (:attr:`Inventory.place`); None for this one machine.
        begun: whether there are finished cells in it.

    Raises:
        Problem: ``OTHER_PLACE``: those in it are from elsewhere; ``DISK``.
    """
    path = directory / PLACE
    try:
        there = json.loads(path.read_bytes())
    except (OSError, ValueError):
        there = None
    if begun and there != (None if place is None else dict(place)):
        raise Problem(OTHER_PLACE, path=directory, there=_words(there), here=_words(place))
    if not begun:
        for old in (MACHINES, LATENCY):
            (directory / old).unlink(missing_ok=True)
    if place is not None:
        write_whole(path, (json.dumps(place, indent=1, ensure_ascii=False) + "\n").encode())
    elif there is not None:
        path.unlink()


def _words(place: Mapping[str, Any] | None) -> str:
    if place is None:
        return "one machine"
    regions = ", ".join(dict.fromkeys(map(str, place.get("clients", ()))))
    return (f"machines in {regions}, with the broker in {place.get('broker')} and the "
            f"{place.get('tor_network')} Tor network")
