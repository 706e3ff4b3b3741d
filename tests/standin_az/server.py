"""The process behind the stand-in for ``az``: the real argument parser, and a model for the rest.

``server.py DIRECTORY`` (with the Python of .azure-cli) answers on DIRECTORY/socket until its stdin
ends. In the directory:

- ``calls.jsonl``: each call: arguments, status, what was injected, and whether the parser took it.
- ``faults.json``: what is to go wrong; read at each call. A list of objects: ``command`` (and
  ``where``: words that must be among the arguments), ``fault`` (a name of :data:`WORDS`, or 'cut',
  'cut-after', 'dead', 'broken', 'slow'), ``seconds`` for 'slow', ``times`` (else always), ``after``
  (only from the call of this number on).
- ``model.json``: the subscription after the last call.

Real are: the parser of azure-cli (2.91.0, pinned in scripts/azure-cli) with its own errors and exit
statuses, the types of arguments, ``--query`` (JMESPath) and ``--output``. Not real: everything that
Azure does; the validators of ``vm create`` that ask Azure are not run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socketserver
import sys
import threading
import time
from pathlib import Path

os.environ["AZURE_CORE_COLLECT_TELEMETRY"] = "no"
os.environ["AZURE_CONFIG_DIR"] = sys.argv[1] + "/azure"

from azure.cli.core import get_default_cli
from azure.cli.core.aaz._arg_action import AAZArgActionOperations
from azure.cli.core.aaz._base import AAZUndefined
from knack.events import EVENT_INVOKER_FILTER_RESULT, EVENT_INVOKER_POST_PARSE_ARGS
from knack.util import CommandResultItem
from machines import Machines
from subscription import Refusal, Subscription

NOTE = "WARNING: this az is a stand-in that records; Azure was not asked.\n"
CUT = ("ERROR: <urllib3.connection.HTTPSConnection object at 0x7f2b5c0d3a90>: Failed to establish "
       "a new connection: [Errno 101] Network is unreachable\n")
"""As azure-core words a ServiceRequestError; a person sees only this."""


class Parsed(Exception):
    """The parser has taken the arguments; nothing further of azure-cli is to run."""


class Az:
    """The loaded command line, one call at a time."""

    def __init__(self, place):
        self.place = place
        self.turn = threading.Lock()
        self.count = 0
        self.used = {}
        self.machines = Machines(place / "machines")
        self.model = Subscription(self.machines)
        self.cli = get_default_cli()
        self.cli.register_event(EVENT_INVOKER_POST_PARSE_ARGS, self._caught)

    def _caught(self, _, args, **rest):
        raise Parsed(args)

    def parse(self, args):
        """The command, its arguments as plain values, and a function that prints a result."""
        cli = self.cli
        call = cli.invocation_cls(cli_ctx=cli, parser_cls=cli.parser_cls, help_cls=cli.help_cls,
                                  commands_loader_cls=cli.commands_loader_cls)
        cli.invocation = call
        call.data["output"] = None
        try:
            call.execute(list(args))
        except Parsed as found:
            names = found.args[0]
        else:
            raise SystemExit(0)

        def printed(result):
            # The event applies --query, and takes itself away; so it is raised for failures too.
            event = {"result": result}
            cli.raise_event(EVENT_INVOKER_FILTER_RESULT, event_data=event)
            text = io.StringIO()
            item = CommandResultItem(event["result"],
                                     is_query_active=call.data.get("query_active") or False)
            wanted = names._output_format or "json"
            if wanted != "none" and event["result"] is not None:
                cli.output.out(item, cli.output.get_formatter(wanted), text)
            return text.getvalue()
        return names.command, plain(names), names.func, printed

    def answer(self, args, cwd):
        with self.turn:
            self.count += 1
            number = self.count
            out, err, status, parsed, wait, fault = "", NOTE, 0, False, 0.0, None
            os.chdir(cwd)
            if args[:1] == ["stand-in"]:  # a test, behind the back of deploy/azure
                out, parsed = json.dumps(self.model.told(*args[1:])) + "\n", True
            elif args == ["--version"]:
                out = "azure-cli 2.91.0 (its parser only: a stand-in that records)\n"
                parsed = True
            else:
                said = io.StringIO()
                try:
                    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                        command, values, func, printed = self.parse(args)
                    parsed = True
                except SystemExit as end:
                    status = int(end.code or 0)
                    parsed = status == 0
                    text = said.getvalue()
                    err += "" if parsed else "ERROR: " + text
                    out = text if parsed else ""
                except Exception as error:  # as knack prints what its loader raises
                    status, err = 1, f"{err}ERROR: {type(error).__name__}: {error}\n"
                else:
                    fault = self._fault(number, command, args)
                    out, said_too, status, wait = self._run(command, values, func, printed, fault)
                    err += said_too
            self._note(number, args, status, parsed, fault)
        time.sleep(wait)
        return {"out": out, "err": err, "status": status}

    def _run(self, command, values, func, printed, fault):
        name = (fault or {}).get("fault")
        result, failed = None, ""
        # 'cut' never reaches Azure; 'cut-after' does, and only the answer is lost.
        if name == "cut":
            failed = CUT
        elif getattr(func, "confirmation", None) and not values.get("yes"):
            failed = "ERROR: Unable to prompt for confirmation as no tty available. Use --yes.\n"
        else:
            try:
                result = self.model.call(command, values, name)
            except Refusal as refusal:
                failed = f"ERROR: {refusal}\n"
                if refusal.status:
                    printed(None)
                    return "", failed, refusal.status, (fault or {}).get("seconds", 0.0)
        if name == "cut-after":
            failed = CUT
        text = printed(None if failed else result)
        wait = (fault or {}).get("seconds", 0.0)
        return ("" if failed else text), failed, int(bool(failed)), wait

    def _fault(self, number, command, args):
        path = self.place / "faults.json"
        for index, each in enumerate(json.loads(path.read_text()) if path.exists() else []):
            key = f"{index}:{json.dumps(each, sort_keys=True)}"
            if (each.get("command") in (None, command) and number > each.get("after", 0)
                    and all(word in args for word in each.get("where", []))
                    and self.used.get(key, 0) < each.get("times", 10**9)):
                self.used[key] = self.used.get(key, 0) + 1
                return each
        return None

    def _note(self, number, args, status, parsed, fault):
        with (self.place / "calls.jsonl").open("a") as file:
            file.write(json.dumps({"number": number, "args": args, "status": status,
                                   "parsed": parsed, "fault": fault}) + "\n")
        beside = self.place / "model.json.new"
        beside.write_text(json.dumps(self.model.dump(), indent=1))
        beside.replace(self.place / "model.json")


def plain(names):
    """A namespace as a dictionary; what azure-cli keeps as operations on a schema is applied."""
    found = {}
    schema = getattr(names.func, "get_arguments_schema", None)
    built = schema() if schema else None
    for name, value in vars(names).items():
        if name.startswith("_") or name in ("func", "command") or value is AAZUndefined:
            continue
        if isinstance(value, AAZArgActionOperations):
            box = _box(built)
            value.apply(box, name)
            value = box.to_serialized_data()[name]
        found[name] = value
    return found


def _box(schema):
    from azure.cli.core.aaz._field_value import AAZObject
    return AAZObject(schema, data={})


class Handler(socketserver.StreamRequestHandler):
    """One call."""

    def handle(self):
        asked = json.loads(self.rfile.readline())
        answer = self.server.az.answer(asked["args"], asked["cwd"])
        with contextlib.suppress(BrokenPipeError):  # the caller was ended; Azure goes on
            self.wfile.write(json.dumps(answer).encode())


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """All of them; threads only wait, as the parser is no friend of threads."""

    daemon_threads = True
    request_queue_size = 128


def main():
    """Answer until stdin ends: so this process ends with the test, however that ends."""
    place = Path(sys.argv[1])
    az = Az(place)
    try:
        with Server(str(place / "socket"), Handler) as server:
            server.az = az
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print("ready", flush=True)
            sys.stdin.read()
    finally:
        az.machines.close()


if __name__ == "__main__":
    main()
