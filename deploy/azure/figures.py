"""The reckoning part of deploy/azure: which machines, what they cost, what Azure says there is.

Called by provision, status and teardown (Bash around ``az``); needs only Python 3.11. What it reads
of Azure is what ``az ... --output json`` printed. Money is US dollars; prices are those of
regions.toml, which says how far they can be trusted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn, cast

REGIONS: Final = Path(__file__).with_name("regions.toml")
BROKER: Final = "broker"
USER: Final = "azureuser"
USAGE: Final = 2
SCHEDULE: Final = "microsoft.devtestlab/schedules"
MACHINE: Final = "microsoft.compute/virtualmachines"
BILLED: Final = ("VM running", "VM starting", "VM stopped", "VM stopping", "")
"""Power states in which a machine is paid for: 'stopped' from inside is not 'deallocated'."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a run.

    Attributes:
        name: of the machine; 'broker', or its region's in small letters.
        region: its name for tables, as lab.wan has it.
        azure: the region's name in Azure.
        on_demand: dollars per hour.
        spot: dollars per hour; changes.
        source: how much the prices are worth: 'azure', 'catalogue', 'estimate'.
    """

    name: str
    region: str
    azure: str
    on_demand: float
    spot: float
    source: str


def tell(*words: object, sep: str = " ") -> None:
    """Write a line to stdout: here for whoever called us."""
    sys.stdout.write(sep.join(map(str, words)) + "\n")


def refuse(sentence: str) -> NoReturn:
    """End with the status of wrong usage."""
    sys.stderr.write(sentence + "\n")
    raise SystemExit(USAGE)


def slug(region: str) -> str:
    """A region's name as a machine's: small letters and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", region.lower()).strip("-")


def catalogue() -> Json:
    """What regions.toml says."""
    return tomllib.loads(REGIONS.read_text(encoding="utf-8"))


def fleet(known: Json) -> list[Machine]:
    """All machines there can be: the broker's first, then one for each region."""
    machines = [Machine(slug(each["name"]), each["name"], each["azure"], each["on_demand"],
                        each["spot"], each["source"]) for each in known["region"]]
    home = next(each for each in machines if each.region == known["broker"])
    return [Machine(BROKER, home.region, home.azure, home.on_demand, home.spot, home.source),
            *machines]


def chosen(machines: list[Machine], only: str, without: str) -> list[Machine]:
    """Those of the regions that were asked for, and the broker's.

    Raises:
        SystemExit: a region is not known, or none is left; with the sentence.
    """
    def named(text: str) -> set[str]:
        names = {slug(each) for each in text.split(",") if each.strip()}
        known = {each.name for each in machines} | {each.azure for each in machines}
        for name in sorted(names - known - {BROKER}):
            refuse(f"There is no region '{name}'; there are: "
                   f"{', '.join(each.name for each in machines[1:])}.")
        return names
    wanted, left = named(only), named(without)
    if BROKER in left:
        refuse("The broker's machine cannot be left out; its region is 'broker' in regions.toml.")
    clients = [each for each in machines[1:]
               if (not wanted or {each.name, each.azure} & wanted)
               and not {each.name, each.azure} & left]
    if not clients:
        refuse("No region is left for clients; say fewer with --without.")
    return [machines[0], *clients]


def hourly(machine: Machine, known: Json, spot: bool) -> float:
    """Dollars per hour, with the address and the disk."""
    return (machine.spot if spot else machine.on_demand) + extras(known)


def extras(known: Json) -> float:
    """Dollars per hour of a machine's address and disk, which are paid until they are deleted."""
    return float(known["address"] + known["disk"])


def stamp(text: str) -> datetime:
    """A time as Azure or our tags write it."""
    return datetime.fromisoformat(re.sub(r"\.\d+", "", text).replace("Z", "+00:00"))


# -- what provision shows and writes -----------------------------------------------------------
def plan(options: argparse.Namespace) -> None:
    """Lines of name, region, Azure's region, separated by tabs; the broker's first."""
    for each in chosen(fleet(catalogue()), options.regions, options.without):
        tell(each.name, each.region, each.azure, sep="\t")


def estimate(machines: list[Machine], known: Json, size: str, spot: bool, hours: float) -> Json:
    """What a plan costs: per hour, in all, and at most."""
    each_hour = sum(hourly(each, known, spot) for each in machines)
    most = sum(hourly(each, known, False) for each in machines)
    return {"size": size, "spot": spot, "machines": len(machines), "hours": round(hours, 2),
            "per_hour": round(each_hour, 2), "total": round(each_hour * hours, 2),
            "at_most": round(most * hours, 2), "prices_of": known["size"],
            "prices_noted": known["noted"],
            "prices_fetched": all(each.source == "azure" for each in machines)}


def show(options: argparse.Namespace) -> None:
    """The plan and its estimate, for a person on stderr, or for a machine on stdout."""
    known = catalogue()
    machines = chosen(fleet(known), options.regions, options.without)
    spot = options.priority == "spot"
    money = estimate(machines, known, options.size, spot, options.hours)
    if options.json:
        tell(json.dumps(money | {"regions": [
            {"machine": each.name, "region": each.region, "azure": each.azure,
             "per_hour": round(hourly(each, known, spot), 4)} for each in machines]}))
        return
    for each in machines:
        price = hourly(each, known, spot)
        tell(f"  {each.name:14} {each.azure:20} ${price:.3f} an hour"
              f"{'' if each.source == 'azure' else '  (approximate)'}")
    kind = "spot: at most the price on demand, and taken back when Azure likes" \
        if spot else "on demand"
    tell(f"  {len(machines)} machines of size {options.size}, {kind}.")
    tell(f"  About ${money['per_hour']:.2f} an hour, so ${money['total']:.2f} for "
          f"{options.hours:g} hours, addresses and disks included, traffic not"
          + (f"; at most ${money['at_most']:.2f}" if spot else "") + ".")
    if options.size != known["size"]:
        tell(f"  The prices are those of {known['size']}; type  deploy/azure/prices --size "
              f"{options.size}  for the right ones.")
    if not money["prices_fetched"]:
        tell(f"  The prices are approximate (noted {known['noted']}, not fetched from Azure); "
              "type  deploy/azure/prices  to fetch them.")


def there(options: argparse.Namespace) -> None:
    """The machines Azure has: name, provisioning, power, address, bomb or not; '-' for nothing."""
    bombs = {each["name"].lower() for each in _read(options.parts)
             if each["type"].lower() == SCHEDULE}
    for each in _read(options.machines):
        tell(each["name"], each.get("provisioningState") or "-",
              (each.get("powerState") or "-").replace(" ", "-"), each.get("publicIps") or "-",
              "bomb" if f"shutdown-computevm-{each['name']}".lower() in bombs else "-", sep="\t")


def parts(options: argparse.Namespace) -> None:
    """The ids of a machine's parts, itself first, in an order in which Azure deletes them.

    An interface holds the address, the network and its rules; a machine holds its interface.
    """
    order = [MACHINE, SCHEDULE, "microsoft.network/networkinterfaces",
             "microsoft.compute/disks", "microsoft.network/publicipaddresses",
             "microsoft.network/networksecuritygroups", "microsoft.network/virtualnetworks"]
    found = [each for each in _read(options.parts) if owner(each) == options.name]
    found.sort(key=lambda each: order.index(each["type"].lower())
               if each["type"].lower() in order else len(order))
    for each in found:
        tell(each["id"])


def owner(part: Json) -> str:
    """Which machine a part belongs to, by its name; '' of none."""
    name = str(part["name"])
    if part["type"].lower() == MACHINE:
        return name
    for pattern in (r"shutdown-computevm-(.+)", r"(.+)VMNic", r"(.+)-(?:ip|nsg|vnet|disk)"):
        if match := re.fullmatch(pattern, name, re.IGNORECASE):
            return match[1]
    return ""


def tag(options: argparse.Namespace) -> None:
    """A tag of the group; nothing when there is none."""
    groups = _read(options.group)
    tell((groups[0].get("tags") or {}).get(options.name, "") if groups else "")


def inventory(options: argparse.Namespace) -> None:
    """Write the Ansible inventory of lines 'name region address', whole, for its owner only."""
    lines = [line.split("\t") for line in sys.stdin.read().splitlines()]
    text = ["# Written by deploy/azure/provision. Groups: the broker's machine, the clients'.",
            "all:", "  vars:", f"    ansible_user: {USER}",
            f"    ansible_ssh_private_key_file: {json.dumps(str(options.directory / 'key'))}",
            "    ansible_ssh_common_args: -o IdentitiesOnly=yes",
            "    ansible_become: true", "  children:"]
    for group, inside in (("broker", True), ("clients", False)):
        text += [f"    {group}:", "      hosts:"]
        for name, region, address in lines:
            if (name == BROKER) is inside:
                text += [f"        {name}:", f"          ansible_host: {json.dumps(address)}",
                         f"          tormentor_region: {json.dumps(region)}"]
    _write(options.directory / "hosts.yml", "\n".join(text) + "\n", 0o600)


# -- status --------------------------------------------------------------------------------------
def account_of(group: Json, machines: list[Json], resources: list[Json], now: datetime) -> Json:
    """One run: its machines and their states, hours left, money so far, and what nobody owns."""
    known = catalogue()
    tags = group.get("tags") or {}
    spot = tags.get("tormentor-priority", "spot") == "spot"
    places = {each.azure: each for each in fleet(known)}
    bombs = {each["name"].lower() for each in resources if each["type"].lower() == SCHEDULE}
    names = {each["name"] for each in machines}
    shown, so_far, per_hour = [], 0.0, 0.0
    for each in machines:
        place = places.get(each["location"])
        price = (place.spot if spot else place.on_demand) if place else 0.0
        power = each.get("powerState") or ""
        billed = power in BILLED
        hours = (now - stamp(each["timeCreated"])).total_seconds() / 3600 \
            if each.get("timeCreated") else 0.0
        rate = (price if billed else 0.0) + extras(known)
        per_hour += rate
        # As if it had been in this state from the beginning: Azure does not tell since when.
        so_far += rate * hours
        shown.append({"machine": each["name"], "azure": each["location"],
                      "state": power.removeprefix("VM ") or each.get("provisioningState") or "?",
                      "billed": billed, "address": each.get("publicIps") or "",
                      "hours": round(hours, 2),
                      "bomb": f"shutdown-computevm-{each['name']}".lower() in bombs})
    deadline = tags.get("tormentor-deadline", "")
    left = (stamp(deadline) - now).total_seconds() / 3600 if deadline else None
    orphans = [each["name"] for each in resources
               if each["type"].lower() != MACHINE and owner(each) not in names]
    return {"run": tags.get("tormentor-run", group["name"]), "group": group["name"],
            "state": (group.get("properties") or {}).get("provisioningState", ""),
            "deadline": deadline, "hours_left": None if left is None else round(left, 2),
            "per_hour": round(per_hour, 3), "so_far": round(so_far, 2), "spot": spot,
            "machines": shown, "orphans": orphans}


def status(options: argparse.Namespace) -> None:
    """All runs: a directory has group.json, machines.json and parts.json of each."""
    now = datetime.now(UTC)
    found = [account_of(_read(each / "group.json")[0], _read(each / "machines.json"),
                        _read(each / "parts.json"), now)
             for each in sorted(options.directory.iterdir()) if each.is_dir()]
    alive = {each["run"] for each in found}
    keys = sorted(each.name for each in options.runs.iterdir() if each.is_dir()
                  and each.name not in alive) if options.runs.is_dir() and options.all else []
    # Made in another subscription, which was not asked.
    elsewhere = {name: place for name in keys
                 if (place := _noted(options.runs / name)) not in ("", options.subscription)}
    keys = [name for name in keys if name not in elsewhere]
    if options.json:
        tell(json.dumps({"runs": found, "keys_without_run": keys, "elsewhere": elsewhere},
                        indent=2))
        return
    for run in found:
        _tell(run)
    if not found:
        tell("No run is in this subscription: nothing of TorMentor's is paid for in it.")
    for name, place in elsewhere.items():
        tell(f"The run {name} is in the subscription {place}, WHICH WAS NOT ASKED, and may be paid "
             f"for; type: az account set --subscription {place}")
    for name in keys:
        tell(f"The keys of {name} are still here, and its machines are gone; "
              f"type: deploy/azure/teardown {name}")


def _tell(run: Json) -> None:
    left = run["hours_left"]
    when = ("it has no deadline" if left is None else f"{left:.1f} hours left" if left > 0
            else f"its time was over {-left:.1f} hours ago")
    tell(f"{run['run']}: {len(run['machines'])} machines, {when}; about "
          f"${run['per_hour']:.2f} an hour, ${run['so_far']:.2f} so far (estimate).")
    for each in run["machines"]:
        notes = []
        if each["state"] == "stopped":
            notes.append("STILL BILLED: stopped from inside is not deallocated")
        if not each["bomb"]:
            notes.append("NO time bomb")
        tell(f"  {each['machine']:14} {each['azure']:20} {each['state']:12} "
              f"{each['address']:16}{'; '.join(notes)}".rstrip())
    if run["orphans"]:
        tell(f"  Parts of no machine (paid for until they are deleted): "
              f"{', '.join(run['orphans'])}.")
    tell(f"  End it with: deploy/azure/teardown {run['run']}")


def _noted(run: Path) -> str:
    """The id of the subscription in which a run was made; '' where it is not written."""
    try:
        return (run / "subscription").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _read(path: Path) -> list[Json]:
    return cast("list[Json]", json.loads(path.read_text(encoding="utf-8") or "[]"))


def _write(path: Path, text: str, mode: int) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def main() -> None:
    """Run one of the commands; see the scripts that call it."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        one = commands.add_parser(name)
        one.set_defaults(run=run)
        return one
    for name, run in (("plan", plan), ("show", show)):
        one = command(name, run)
        one.add_argument("--regions", default="")
        one.add_argument("--without", default="")
        one.add_argument("--size", default="")
        one.add_argument("--priority", default="spot")
        one.add_argument("--hours", type=float, default=1.0)
        one.add_argument("--json", action="store_true")
    one = command("there", there)
    one.add_argument("machines", type=Path)
    one.add_argument("parts", type=Path)
    one = command("parts", parts)
    one.add_argument("parts", type=Path)
    one.add_argument("name")
    one = command("tag", tag)
    one.add_argument("group", type=Path)
    one.add_argument("name")
    one = command("inventory", inventory)
    one.add_argument("directory", type=Path)
    one = command("status", status)
    one.add_argument("directory", type=Path)
    one.add_argument("runs", type=Path)
    one.add_argument("--subscription", default="")
    one.add_argument("--all", action="store_true")
    one.add_argument("--json", action="store_true")
    one = command("size", lambda _: tell(catalogue()["size"]))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
