"""``scripts/rehearse``: deploy to hosts on this machine, from ``deploy/run`` to a plot.

All is the real thing but the distances: hosts with systemd and sshd (:mod:`lab.field.hosts`),
Ansible, the wheel installed by pip, and a private Tor network of real tors. That network is on this
machine, at the address that the hosts reach, and its links are as long as :mod:`lab.wan` has them.
So is the way without Tor: each machine of clients goes through a port of its region.

The hosts have no way to the internet. What pip installs there comes from a directory that this
machine has fetched before.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from accord.console import command as console_command
from accord.console import json_option, result, say
from accord.files import write_whole
from accord.problems import EXIT_BUG, NO_HOSTS, Problem
from lab.field.hosts import Hosts, refusal
from lab.field.inventory import DIRECT_PORT
from lab.geo_crowd import region
from lab.tornet import TorNetwork
from lab.wan import REGIONS, Wan

ROOT: Final = Path(__file__).resolve().parent.parent.parent
HOSTS: Final = 5
BROKER: Final = "desk"
"""The broker's host; the others are called after their regions."""
PYTHON: Final = "/usr/bin/python3"
"""The hosts': the system's own, as users other than root must be able to run it."""
_SRV: Final = "/srv/wheels"
_CACHE: Final = ROOT / ".deploy" / "rehearsal"
_STOPPING: Final = 120.0
"""Seconds that ``deploy/run`` has to stop everything on the hosts."""
_LOOK: Final = 5.0


@dataclass
class Stage:
    """Hosts, network and inventory of a rehearsal that are up.

    Attributes:
        hosts: the machines.
        count: of them.
        directory: for all files of the rehearsal.
        inventory: Ansible's.
        seconds: what each part took.
        memory: bytes that each host's processes had for themselves, at most, when looked at.
    """

    hosts: Hosts
    count: int
    directory: Path
    inventory: Path
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """One part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = round(time.monotonic() - began, 1)

    async def run(self, *arguments: str, stdout: int | None = None, stderr: int | None = None,
                  ) -> asyncio.subprocess.Process:
        """Start ``deploy/run`` with this inventory. It ends with this process, if not before."""
        return await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "TERM", str(ROOT / "deploy" / "run"), *arguments,
            "--inventory", str(self.inventory), stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=stderr,
            # So that Ctrl-C reaches us first, and it exactly once.
            start_new_session=True)

    async def watch(self) -> None:
        """Look at the memory now and then, until cancelled."""
        while True:
            for name, count in (await asyncio.to_thread(self.hosts.memory)).items():
                self.memory[name] = max(count, self.memory.get(name, 0))
            await asyncio.sleep(_LOOK)


@contextlib.asynccontextmanager
async def stage(directory: Path, hosts: int) -> AsyncIterator[Stage]:
    """Hosts and a private network with distances, ready for ``deploy/run``.

    Args:
        directory: for files; short, as sockets are in it.
        hosts: how many; the first one is the broker's.

    Raises:
        Problem: of the hosts, or of the network.
    """
    places = [REGIONS[region(i, len(REGIONS))] for i in range(hosts - 1)]
    names = [BROKER, *(place.name.lower().replace(" ", "-") for place in places)]
    if reason := refusal():
        raise Problem(NO_HOSTS, why=reason[0], what=reason[1])
    began = time.monotonic()
    wheels = await wheelhouse()
    fetched = time.monotonic() - began
    async with AsyncExitStack() as stack:
        say(f"Starting {hosts} hosts ...")
        machines = await stack.enter_async_context(Hosts(names, binds={wheels: _SRV}))
        here = Stage(machines, hosts, directory, directory / "hosts.yml")
        here.seconds.update({"wheels": round(fetched, 1), "hosts": round(machines.boot, 1)})
        say("Bringing up a private Tor network ...")
        with here.timed("network"):
            wan = await stack.enter_async_context(
                Wan(regions=places, address=machines.gateway))
            network = await stack.enter_async_context(
                TorNetwork(directory / "net", address=machines.gateway))
            await network.up(links=wan.links)
            await wan.on()
        ports = await wan.direct(machines[BROKER].address, DIRECT_PORT)
        variables = {name: {"tormentor_region": place.name,
                            "tormentor_direct": f"{machines.gateway}:{port}"}
                     for name, place, port in zip(names[1:], places, ports, strict=True)}
        variables[BROKER] = {"tormentor_region": "Vancouver"}
        machines.inventory(here.inventory, variables, {
            "tormentor_torrc": str(network.extra_torrc), "tormentor_python": PYTHON,
            "ansible_python_interpreter": PYTHON,
            # All hosts share this machine's cores: what is never imported need not be compiled.
            "tormentor_pip": f"--no-index --find-links {_SRV} --no-compile"})
        watching = asyncio.create_task(here.watch())
        stack.callback(watching.cancel)
        yield here


# -- what pip installs there -----------------------------------------------------------------


async def wheelhouse() -> Path:
    """A directory with a wheel of all that the product needs, made by the hosts' own Python.

    It is kept, and made anew when what it is made for has changed.

    Raises:
        Problem: ``NO_HOSTS``: that Python is too old, or pip failed.
    """
    needed = sorted(line.partition(";")[0].strip()
                    for line in importlib.metadata.requires("tormentor") or []
                    if "extra ==" not in line or 'extra == "fast"' in line)
    lock = ROOT / "requirements.lock"
    version = await _said(PYTHON, "-c", "import sys; print(sys.version); "
                          "sys.exit(sys.version_info < (3, 11))")
    stamp = hashlib.sha256("\n".join([version, lock.read_text(), *needed]).encode()).hexdigest()
    place = _CACHE / f"wheels-{stamp[:16]}"
    if place.is_dir():
        return place
    say("Fetching the Python packages for the hosts (once, a minute or two) ...")
    shutil.rmtree(_CACHE, ignore_errors=True)
    _CACHE.mkdir(parents=True)
    making = _CACHE / "making"
    await _said(PYTHON, "-m", "venv", str(_CACHE / "venv"))
    await _said(str(_CACHE / "venv/bin/python"), "-m", "pip", "wheel", "--quiet",
                "--disable-pip-version-check", "--wheel-dir", str(making),
                "--constraint", str(lock), *needed)
    making.rename(place)
    return place


async def _said(*command: str) -> str:
    """What a program printed. Raises Problem when it failed."""
    child = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=ROOT)
    try:
        printed, complained = await child.communicate()
    except BaseException:
        if child.returncode is None:
            child.kill()
            await child.wait()
        raise
    if child.returncode:
        lines = complained.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise Problem(NO_HOSTS, why=f"'{shlex.join(command[:4])} ...' failed: {lines[-1]}",
                      what=f"Python 3.11 or newer with venv is needed at {PYTHON}, and a way to "
                      "PyPI, the first time")
    return printed.decode()


# -- the command -----------------------------------------------------------------------------


@click.command("rehearse", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--hosts", type=click.IntRange(2, 26), default=HOSTS, show_default=True,
              help="How many; one of them is the broker's.")
@click.option("--quick", is_flag=True, help="6 clients in place of 25, and less patience.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              # Not where 'deploy/run rehearsal' puts those of real machines: they do not mix.
              default=ROOT / "experiments" / "rehearsal-hosts",
              show_default="experiments/rehearsal-hosts", help="Where results go.")
@click.option("--data", metavar="PATH", help="As of 'tormentor experiment'.  [made]")
@click.option("--keep", is_flag=True,
              help="Leave the hosts up afterwards, until Ctrl-C, and say how to look around.")
@json_option
@console_command
async def command(hosts: int, quick: bool, output: Path, data: str | None, keep: bool,
                  as_json: bool) -> None:
    """Deploy to hosts on this machine, race there with Tor and without, and draw the plots.

    Needs root on Linux. Each host has its own address, systemd and sshd; nothing of them is left.
    The cells of an earlier rehearsal are put away, and run anew.

    \b
    Example:
      sudo scripts/rehearse --quick
      sudo scripts/rehearse --hosts 3 --keep
    """
    output = await asyncio.to_thread(output.resolve)
    with tempfile.TemporaryDirectory(prefix="rehearsal-", ignore_cleanup_errors=True) as place:
        directory = Path(place)
        experiment = directory / "rehearsal.toml"
        write_whole(experiment, b'experiment = "rehearsal"\n')
        arguments = [str(experiment), "--output", str(output), "--fresh"]
        arguments += ["--quick"] * quick + (["--data", data] if data else [])
        async with stage(directory, hosts) as here:
            said = f"deploy/run rehearsal.toml --inventory {here.inventory.name}"
            say(f"{hosts} hosts and the network are up. Now: {said}")
            with here.timed("deploy/run"):
                status = await _deployed(here, arguments, as_json)
            if keep:
                await _kept(here)
        if status:
            sentence = f"deploy/run ended with status {status}; what it said is above."
            if as_json:
                result({"error": "deploy-run", "sentence": sentence}, True, "")
            say(f"Error: {sentence}")
            sys.exit(status)
    told = summary(here, output)
    result(told, as_json, lambda: words(told))
    if not told["plots"]:
        sys.exit(EXIT_BUG)


async def _deployed(here: Stage, arguments: Sequence[str], as_json: bool) -> int:
    """Run it to its end; when we are stopped, so is it, and it stops the hosts."""
    # Its result is ours to tell; what it says on the way is for people, on the standard error.
    child = await here.run(*arguments, stdout=sys.stderr.fileno() if as_json else None)
    try:
        return await child.wait()
    except asyncio.CancelledError:
        await asyncio.shield(asyncio.create_task(ended(child)))
        raise


async def ended(child: asyncio.subprocess.Process) -> int:
    """Stop a run as Ctrl-C does, and wait until it has stopped everything; its exit status."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOPPING):
            return await child.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return await child.wait()


async def _kept(here: Stage) -> None:
    """Leave the hosts up until Ctrl-C."""
    say("\nThe hosts stay up until Ctrl-C. To look around:")
    for host in here.hosts.hosts:
        say(f"  {shlex.join(here.hosts.ssh(host.name))}    # {host.name}")
    say(f"  deploy/run rehearsal --inventory {here.inventory}    # again, or another experiment")
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


def summary(here: Stage, output: Path) -> dict[str, Any]:
    """What a rehearsal tells: for a machine."""
    memory = here.memory.values()
    return {
        "results": str(output), "plots": sorted(map(str, output.glob("*.png"))),
        "hosts": here.count, "seconds": here.seconds,
        "memory_mb": {"median": round(statistics.median(memory) / 1e6, 1),
                      "most": round(max(memory) / 1e6, 1)} if memory else {},
    }


def words(told: dict[str, Any]) -> str:
    """The same for a person."""
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in told["seconds"].items())
    lines = [f"It took: {parts}."]
    if told["memory_mb"]:
        lines.append(f"A host took {told['memory_mb']['most']:.0f} MB of memory at most.")
    lines += [f"Results: {told['results']}", *(f"Plot: {path}" for path in told["plots"])]
    if not told["plots"]:
        lines.append("There is no plot, though deploy/run did not fail.")
    return "\n".join(lines)


def give_back(place: Path) -> None:
    """Give what is root's in a checkout to whom the checkout belongs, who typed ``sudo``.

    Otherwise they could not run ``deploy/run`` there afterwards, nor delete the results.

    Args:
        place: a directory; what is reached by symbolic links only is left alone.
    """
    owner = place.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        subprocess.run(["chown", "--recursive", "--no-dereference", "--from=0",
                        f"{owner.st_uid}:{owner.st_gid}", str(place)], check=False)


if __name__ == "__main__":
    try:
        command(prog_name="scripts/rehearse")
    finally:
        give_back(ROOT)
