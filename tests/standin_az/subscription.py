"""A model of an Azure subscription, as far as deploy/azure touches it: no Azure."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

ID = "/subscriptions/00000000-0000-0000-0000-000000000000"
LOCATIONS = [
    "westus2", "westus", "centralus", "southcentralus", "northcentralus", "canadaeast",
    "eastus", "mexicocentral", "japaneast", "japanwest", "koreacentral", "taiwannorth",
    "northeurope", "uksouth", "francecentral", "eastasia", "germanywestcentral",
    "australiaeast", "southeastasia", "australiasoutheast", "brazilsouth", "chilecentral",
    "centralindia", "uaenorth", "southafricanorth", "westeurope",
]
VM, NIC, IP = "Microsoft.Compute/virtualMachines", "Microsoft.Network/networkInterfaces", \
    "Microsoft.Network/publicIPAddresses"
NSG, NET, DISK = "Microsoft.Network/networkSecurityGroups", "Microsoft.Network/virtualNetworks", \
    "Microsoft.Compute/disks"
BOMB = "Microsoft.DevTestLab/schedules"

WORDS = {
    # As people have reported them of `az vm create`; the numbers are made up.
    "quota":
        '{{"error":{{"code":"InvalidTemplateDeployment","message":"The template deployment '
        "'vm_deploy_x' is not valid according to the validation procedure. See inner errors for "
        'details.","details":[{{"code":"QuotaExceeded","message":"Operation could not be completed '
        "as it results in exceeding approved LowPriorityCores quota. Additional details - "
        'Deployment Model: Resource Manager, Location: {place}, Current Limit: 0, Current '
        'Usage: 0, Additional Required: 2, (Minimum) New Limit Required: 2."}}]}}}}',
    "size":
        "(SkuNotAvailable) The requested VM size for resource 'Following SKUs have failed for "
        "Capacity Restrictions: {size}' is currently not available in location '{place}'. Please "
        "try another size or deploy to a different location or different zone.\n"
        "Code: SkuNotAvailable",
    "allocation":
        "(AllocationFailed) Allocation failed. We do not have sufficient capacity for the "
        "requested VM size in this region.\nCode: AllocationFailed",
    "authorization":
        "(AuthorizationFailed) The client 'someone@example.org' with object id '0' does not have "
        "authorization to perform action 'Microsoft.Compute/virtualMachines/write' over scope "
        "'{place}' or the scope is invalid.\nCode: AuthorizationFailed",
    "login": "Please run 'az login' to setup account.",
}


class Refusal(Exception):
    """What Azure says; status 3 is az's for what is not there."""

    def __init__(self, words, status=1):
        super().__init__(words)
        self.status = status


def tags_of(value):
    """Tags as az has them after parsing."""
    if isinstance(value, dict):
        return value
    return dict(each.split("=", 1) if "=" in each else (each, "") for each in value or [])


class Subscription:
    """Groups, and the resources in them, by type and name."""

    def __init__(self, machines):
        self.machines = machines
        self.groups = {}
        self.registered = {"Microsoft.Compute", "Microsoft.Network"}
        self.made = []

    def dump(self):
        return {"groups": {name: {"tags": group["tags"], "resources": [
            {k: v for k, v in each.items() if k != "custom"} for each in group["parts"].values()]}
            for name, group in list(self.groups.items()) if not self._gone(name)},
            "made": self.made, "registered": sorted(self.registered)}

    def call(self, command, values, fault):
        if fault in WORDS and not command.startswith("vm create"):
            raise Refusal(WORDS[fault].format(place=values.get("location"), size=""))
        method = getattr(self, "do_" + command.replace(" ", "_").replace("-", "_"), None)
        if method is None:
            raise Refusal(f"the stand-in has no model of 'az {command}'")
        return method(values, fault) if command == "vm create" else method(values)

    def told(self, what, *words):
        """What a test does to the subscription behind the back of deploy/azure."""
        if what == "group":
            self.groups[words[0]] = {"location": "westus2", "tags": {}, "parts": {}}
        elif what == "gone":  # as an eviction does
            self.do_resource_delete({"resource_ids": [
                each["id"] for each in self.groups[words[0]]["parts"].values()
                if each["type"] == words[1] and each["name"] == words[2]]})
        elif what == "set":
            for each in self.groups[words[0]]["parts"].values():
                if each["type"] == VM and each["name"] == words[1]:
                    each[words[2]] = words[3]
        elif what == "unheard":  # as when the way to its port 22 is closed
            self.machines.end(words[0])
        elif what == "tag":
            self.groups[words[0]]["tags"][words[1]] = words[2]
        return what

    # -- the account
    def do_account_show(self, _):
        return {"name": "Stand-in subscription", "id": ID.split("/")[-1], "state": "Enabled"}

    def do_account_list_locations(self, _):
        return [{"name": each} for each in LOCATIONS]

    def do_provider_show(self, values):
        name = values["resource_provider_namespace"]
        return {"namespace": name,
                "registrationState": "Registered" if name in self.registered else "NotRegistered"}

    def do_provider_register(self, values):
        self.registered.add(values["resource_provider_namespace"])

    # -- groups
    def _gone(self, name):
        until = self.groups.get(name, {}).get("until")
        if until is not None and time.monotonic() > until:
            for part in list(self.groups[name]["parts"].values()):
                if part["type"] == VM:
                    self.machines.end(part["name"])
            del self.groups[name]
        return name not in self.groups

    def group(self, name):
        if self._gone(name):
            raise Refusal(f"(ResourceGroupNotFound) Resource group '{name}' could not be found.\n"
                          "Code: ResourceGroupNotFound", 3)
        return self.groups[name]

    def _shown(self, name):
        group = self.groups[name]
        return {"id": f"{ID}/resourceGroups/{name}", "name": name, "location": group["location"],
                "tags": group["tags"],
                "properties": {
                    "provisioningState": "Deleting" if "until" in group else "Succeeded"}}

    def do_group_list(self, values):
        wanted = values.get("tag") or {}
        return [self._shown(name) for name in list(self.groups) if not self._gone(name)
                and all(self.groups[name]["tags"].get(k) is not None
                        and v in ("", self.groups[name]["tags"][k]) for k, v in wanted.items())]

    def do_group_exists(self, values):
        return not self._gone(values.get("rg_name") or values.get("resource_group_name"))

    def do_group_create(self, values):
        name = values["rg_name"]
        old = None if self._gone(name) else self.groups[name]
        self.groups[name] = {"location": values["location"], "tags": tags_of(values["tags"]),
                             "parts": old["parts"] if old else {}}
        self.made.append(f"group {name}")
        return self._shown(name)

    def do_group_delete(self, values):
        group = self.group(values.get("resource_group_name") or values.get("rg_name"))
        group.setdefault("until", time.monotonic() + (1.5 if values.get("no_wait") else 0))

    # -- resources
    def add(self, group, kind, name, location, tags, **more):
        key = (kind.lower(), name.lower())
        parts = self.group(group)["parts"]
        if key not in parts:
            self.made.append(f"{kind} {group}/{name}")
        parts[key] = parts.get(key, {}) | {
            "id": f"{ID}/resourceGroups/{group}/providers/{kind}/{name}", "type": kind,
            "name": name, "location": location, "tags": tags, "resourceGroup": group} | more
        return parts[key]

    def do_resource_list(self, values):
        return [{k: each[k] for k in ("id", "type", "name", "location", "tags", "resourceGroup")}
                for each in self.group(values["resource_group_name"])["parts"].values()]

    def do_resource_delete(self, values):
        for one in values["resource_ids"]:
            words = one.split("/")
            group, kind, name = words[4], "/".join(words[6:8]), words[8]
            parts = self.group(group)["parts"]
            key = (kind.lower(), name.lower())
            if key not in parts:
                raise Refusal(f"(ResourceNotFound) {one} was not found.\nCode: ResourceNotFound", 3)
            users = [each["name"] for each in parts.values()
                     if parts[key]["id"] in each.get("uses", ())]
            if users:
                raise Refusal(f"(InUse) {name} is in use by {', '.join(users)}, and not deleted.")
            if parts[key]["type"] == VM:
                self.machines.end(name)
                for gone in parts[key]["uses"]:  # --nic-delete-option, --os-disk-delete-option
                    parts.pop(next(k for k, v in parts.items() if v["id"] == gone), None)
            parts.pop(key)

    def do_network_nsg_create(self, values):
        self.add(values["resource_group"], NSG, values["name"], values["location"],
                 tags_of(values.get("tags")), rules={})

    def do_network_nsg_rule_create(self, values):
        parts = self.group(values["resource_group"])["parts"]
        nsg = parts.get((NSG.lower(), values["nsg_name"].lower()))
        if nsg is None:
            raise Refusal(f"(ResourceNotFound) {values['nsg_name']} was not found.", 3)
        nsg["rules"][values["name"]] = {
            "from": values["source_address_prefixes"], "ports": values["destination_port_ranges"],
            "priority": values["priority"], "access": values["access"],
            "protocol": values["protocol"], "direction": str(values["direction"])}

    def do_network_public_ip_show(self, values):
        parts = self.group(values["resource_group"])["parts"]
        part = parts.get((IP.lower(), values["name"].lower()))
        if part is None:
            raise Refusal("(ResourceNotFound) The address was not found.", 3)
        return part

    # -- machines
    def do_vm_create(self, values, fault):
        group, name, place = values["resource_group_name"], values["vm_name"], values["location"]
        parts, tags = self.group(group)["parts"], tags_of(values["tags"])
        nsg = parts.get((NSG.lower(), values["nsg"].lower()))
        if nsg is None:
            raise Refusal(f"no network security group {values['nsg']}, and the stand-in makes none")
        words = WORDS.get(fault, "").format(place=place, size=values["size"])
        if words and fault != "allocation":  # refused before anything is made
            raise Refusal(words)
        if values["priority"] == "Spot" and values["size"].startswith("Standard_B"):
            raise Refusal("(OperationNotAllowed) The VM size is not supported for Azure Spot.")
        net = self.add(group, NET, values["vnet_name"], place, tags)
        address = self.machines.address(f"{group}/{name}")
        ip = self.add(group, IP, values["public_ip_address"], place, tags, ipAddress=address,
                      sku=values["public_ip_sku"])
        nic = self.add(group, NIC, name + "VMNic", place, tags,
                       uses=[net["id"], ip["id"], nsg["id"]])
        if words:  # an allocation fails last: the rest is there, and a machine that is none
            self.add(group, VM, name, place, tags, uses=[nic["id"]], provisioningState="Failed",
                     powerState="", publicIps="", priority=values["priority"])
            raise Refusal(words)
        disk = self.add(group, DISK, values["os_disk_name"], place, {})
        key = Path(values["ssh_key_value"][0]).read_text()
        custom = Path(values["custom_data"]).read_text()
        self.add(group, VM, name, place, tags, uses=[nic["id"], disk["id"]],
                 provisioningState="Succeeded", powerState="VM running", publicIps=address,
                 priority=values["priority"], size=values["size"], custom=custom,
                 timeCreated=datetime.now(UTC).isoformat(), user=values["admin_username"],
                 user_data_bytes=len(custom))
        self.machines.begin(name, address, key, dead=fault == "dead", broken=fault == "broken")
        return {}

    def _machines(self, group):
        return [each for each in self.group(group)["parts"].values() if each["type"] == VM]

    def do_vm_list(self, values):
        return [{k: v for k, v in each.items() if k not in ("uses", "custom")}
                for each in self._machines(values["resource_group_name"])]

    def do_vm_wait(self, values):
        for each in self._machines(values["resource_group_name"]):
            if each["name"] == values["vm_name"]:
                each["provisioningState"] = "Succeeded"

    def do_vm_auto_shutdown(self, values):
        group, name = values["resource_group_name"], values["vm_name"]
        machine = next((each for each in self._machines(group) if each["name"] == name), None)
        if machine is None:
            raise Refusal("(ResourceNotFound) The machine was not found.", 3)
        if "Microsoft.DevTestLab" not in self.registered:
            raise Refusal("(MissingSubscriptionRegistration) The subscription is not registered to "
                          "use namespace 'Microsoft.DevTestLab'.")
        self.add(group, BOMB, f"shutdown-computevm-{name}", machine["location"], {},
                 time=values["time"], target=machine["id"])
