"""The curator's commands: ``curate``, ``status`` and ``fetch``."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np
from msgspec.structs import replace

from accord.circuit import Circuit
from accord.console import (
    TorOptions,
    circuit,
    command,
    json_option,
    plain,
    result,
    route,
    say,
    state_option,
    tor_options,
    unless_away,
    warn,
)
from accord.files import private_directory, write_whole
from accord.messages import (
    SALT_BYTES,
    SMALL_LIMIT,
    TASK_LIMIT,
    VALIDATION_LIMIT,
    Curate,
    Curated,
    SignedTask,
    Status,
    decode,
    encode,
)
from accord.model_file import MODEL_LIMIT, Model, read_model
from accord.onion import check_onion
from accord.problems import (
    BAD_OPTION,
    DISK,
    MALFORMED,
    NOT_AN_ONION,
    NOT_FOUND,
    NOT_PUBLISHED,
    NOT_YET,
    OTHER_TASK,
    PeerProblem,
    Problem,
)
from accord.table import read_table
from accord.task import Task, commitment, needs_validation, sign, task_id
from accord.words import wrapped
from curator.definition import curator_key, read_definition
from curator.draft import default_title, draft
from curator.invite import read_invited
from curator.watch import (
    NOT_MEASURED,
    follow,
    get_from_model,
    get_status,
    one_answer,
    progress,
    useless,
    words,
)

APPEAR: Final = 180.0
"""Seconds for a new onion to be found; on a slow day its descriptor takes two minutes."""

_file = click.Path(path_type=Path)


# -- curate ----------------------------------------------------------------------------------
@click.command()
@command
@click.argument("task", metavar="[TASK.toml]", type=_file, required=False)
@click.option("--validation", metavar="FILE", type=_file,
              help="CSV or Parquet: rows on which the broker measures the model and judges "
              "updates; it sees them. Left out only for a task that can do without.")
@click.option("--broker", metavar="ONION", help="Address of the broker's desk.")
@click.option("--key", metavar="FILE", type=_file,
              help="Your Ed25519 key.  [made once, in the state directory]")
@click.option("--invite", "invited", metavar="KEY", multiple=True,
              help="Open to invited clients only: a key that 'tormentor key' printed for one of "
              "them, or a file with such a key a line (and remarks after a '#'). May be said many "
              "times; you yourself are invited in any case. The broker must run behind Tor.")
@click.option("--watch", is_flag=True, help="Follow the training, then fetch the model.")
@click.option("--init", metavar="DATA.csv", type=_file,
              help="Write a commented task file for this table instead.")
@click.option("--target", metavar="COLUMN", help="With --init: the answer.  [the last column]")
@click.option("--title", metavar="TEXT",
              help="With --init: what the task is called; everyone who is asked to join reads it.")
@click.option("--output", metavar="FILE", type=_file,
              help="Where the model, or with --init the task, is written.")
@json_option
@state_option
@tor_options
async def curate(
    *, task: Path | None, validation: Path | None, broker: str | None, key: Path | None,
    invited: tuple[str, ...], watch: bool, init: Path | None, target: str | None,
    title: str | None, output: Path | None, as_json: bool, state: Path, tor: TorOptions,
) -> None:
    """Define a task and hand it to a broker.

    First write a task file for your table, and read it; then hand it over, with rows to validate
    on. What is printed is what you give to those whose data you would like to learn from.

    \b
    Example:
      tormentor curate --init rows.csv --target sick --output task.toml
      tormentor curate task.toml --validation rows.csv --broker ADDRESS.onion
    """
    if init is not None:
        _none_of({"TASK.toml": task, "--validation": validation, "--broker": broker,
                  "--key": key, "--invite": invited or None, "--watch": watch or None},
                 "does not go with --init", "do not go with --init")
        _init(init, target, title, output or Path(f"{init.stem}.toml"), as_json)
        return
    _none_of({"--target": target, "--title": title},
             "goes with --init only", "go with --init only")
    if output is not None and not watch:
        raise Problem(BAD_OPTION, option="--output", what="goes with --watch or --init only")
    if task is None or broker is None:
        # Whether --validation is missing too, the task says.
        needed = {"TASK.toml": task, "--broker": broker}
        missing = [name for name, value in needed.items() if value is None]
        hint = "" if task else "; write a task with 'tormentor curate --init DATA.csv'"
        raise Problem(BAD_OPTION, option=_listed(missing),
                      what=("is" if len(missing) == 1 else "are") + f" missing{hint}")
    order = _order(task, validation, broker, state, key, read_invited(invited, state, tor.mode),
                   _without_tor(tor))
    if output is not None:
        _check_place(output)
    async with route(tor, state) as way:
        async with circuit(way, order.broker) as desk:
            onion = await _hand_over(desk, order)
        say(wrapped(f"The broker has the task. The model's address is {onion}"))
        async with circuit(way, onion) as model_circuit:
            await _appear(model_circuit, order.signed)
            told = {"onion": onion, "task": task_id(order.signed),
                    "curator": order.signed.curator.hex(), "join": order.join(onion),
                    **({"invited": order.invited} if order.invited else {})}
            if not watch:
                result(told, as_json, lambda: _invitation(told))
                return
            if as_json:
                say(_invitation(told))
            else:
                result(told, False, lambda: _invitation(told))
            last = await follow(model_circuit)
            fetched = await _fetch(model_circuit, output, last, _without_tor(tor))
    fetched.tell(as_json, told)


def _none_of(options: dict[str, object], one: str, many: str) -> None:
    """Refuse, in one sentence, all options that were given and do not fit."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise Problem(BAD_OPTION, option=_listed(given), what=one if len(given) == 1 else many)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def _without_tor(tor: TorOptions) -> str:
    """What another command needs to get by the same way to the same broker: options that say
    where it is, not those that say which tor of this machine is used."""
    if tor.direct is None:
        return ""
    host, port = tor.direct
    return f" --tor none --direct {host}:{port}"


@dataclass(frozen=True, slots=True, repr=False)
class _Order:
    """What a desk is given, once everything here was checked.

    Attributes:
        broker: the desk's address.
        signed: the task, with the digest of its validation set.
        body: the message to the desk.
        clients: how many the task needs at least.
        invited: how many others alone can reach the model; 0 for everybody.
        way: options that somebody else needs to get by the same way to the same broker.
    """

    broker: str
    signed: SignedTask
    body: bytes
    clients: int
    invited: int
    way: str

    def join(self, onion: str) -> str:
        """What somebody types to take part."""
        return (f"tormentor join {onion} --curator {self.signed.curator.hex()} --data YOUR.csv "
                f"--budget 2 --min-clients {self.clients}{self.way}")


def _order(
    path: Path, validation: Path | None, broker: str, state: Path, key: Path | None,
    invited: tuple[bytes, ...], way: str,
) -> _Order:
    """Check everything that can be checked here, before anybody is spoken to."""
    address = check_onion(broker)
    task = read_definition(path)
    _warn_of_silence(task, path)
    salt = secrets.token_bytes(SALT_BYTES)
    rows = labels = b""
    if validation is not None:
        rows, labels = _validation_set(task, validation)
        task = replace(task, validation=replace(
            task.validation, digest=commitment(salt, rows, labels)))
    else:
        _do_without(task, path)
    signed = sign(task, curator_key(state, key))
    if validation is not None:
        _keep_salt(state, signed, salt)
    body = encode(Curate(task=signed, rows=rows, labels=labels, salt=salt, invited=invited))
    return _Order(address, signed, body, task.clients.minimum, max(0, len(invited) - 1), way)


def _validation_set(task: Task, path: Path) -> tuple[bytes, bytes]:
    """The rows and the labels of a table as they travel."""
    rows, labels = task.data.encode(read_table(path), str(path))
    if rows.size * 4 + len(labels) + TASK_LIMIT + SMALL_LIMIT > VALIDATION_LIMIT:
        most = (VALIDATION_LIMIT - TASK_LIMIT - SMALL_LIMIT) // (4 * task.dimension + 1)
        raise Problem(BAD_OPTION, option=f"--validation {path}",
                      what=f"has {len(labels):,} rows and a broker takes at most {most:,} of "
                      "this width; give fewer")
    return np.ascontiguousarray(rows, dtype="<f4").tobytes(), labels.astype(np.uint8).tobytes()


def _do_without(task: Task, path: Path) -> None:
    """Refuse to go without a validation set where the task needs one; else say what it means."""
    needed = needs_validation(task)
    if needed:
        unset = [place.partition(".")[2] for place in needed
                 if place in ("training.target_error", "training.patience")]
        also = f", without {_listed(unset)}," if unset else ""
        raise Problem(
            BAD_OPTION, option="--validation",
            what=f"is missing, and {path} needs it for {_listed(needed)}; to do without a "
            f"validation set, write mode = 'synchronous' and aggregate = 'median'{also} in "
            "[training], and test = 'none' and screen = 'length' in [validation]")
    warn(wrapped(
        "There is no validation set. So no error can be shown, nobody is judged, and the last "
        "model is published, however good it is. The rule that takes its place, "
        f"'{task.training.aggregate}', withstands only a minority of clients that do harm, and "
        "only where the others' rows are alike."))


def _keep_salt(state: Path, signed: SignedTask, salt: bytes) -> None:
    """Keep what proves later that a validation set is the one whose digest was signed."""
    path = private_directory(private_directory(state) / "salts") / task_id(signed)
    write_whole(path, f"{salt.hex()}\n".encode(), 0o600)
    say(wrapped(f"The digest of your validation set is in the task; its salt is kept in {path}. "
                "Whoever is shown the salt and the set can check that it is this one."))


def _warn_of_silence(task: Task, path: Path) -> None:
    """Warn of a task that does not say what it is for."""
    bare = []
    if task.title == default_title(task.data.target):
        bare.append(f"the title is still the drafted one, '{plain(task.title)}'")
    if not task.description.strip():
        bare.append("the description is empty")
    if bare:
        warn(wrapped(f"In {path} {_listed(bare)}. People who are asked to join read only this."))


async def _hand_over(desk: Circuit, order: _Order) -> str:
    """Give a desk the task; the address of its model."""
    say(wrapped(f"Handing the task to the broker, as curator {order.signed.curator.hex()} ..."))
    try:
        answer = decode(await desk.post("/curate", order.body), Curated)
        return check_onion(answer.onion)
    except Problem as problem:
        if problem.kind is NOT_FOUND:
            raise Problem(BAD_OPTION, option=f"--broker {desk.onion}",
                          what="is not the address of a broker's desk") from None
        if problem.kind is NOT_AN_ONION:
            raise PeerProblem(MALFORMED) from None
        raise


async def _appear(model: Circuit, signed: SignedTask) -> None:
    """Wait until the model is found from outside, and see that its task is ours."""

    async def look() -> bytes:
        await get_status(model)
        return await model.get("/task", TASK_LIMIT + SMALL_LIMIT)

    say("Waiting until the model's address is found; this can take two minutes ...")
    raw = await unless_away(look, APPEAR, progress("Not found yet, still trying"))
    if decode(raw, SignedTask, TASK_LIMIT + SMALL_LIMIT) != signed:
        raise PeerProblem(OTHER_TASK, address=model.onion)


def _invitation(told: Mapping[str, object]) -> str:
    who = "Those who take part type:" if "invited" not in told else (
        f"Only the {told['invited']} invited, and you, can reach it. Those who take part type:")
    return f"Model:   {told['onion']}\nCurator: {told['curator']}\n{who}\n  {told['join']}"


def _init(
    table: Path, target: str | None, title: str | None, output: Path, as_json: bool
) -> None:
    if output.exists():
        raise Problem(BAD_OPTION, option=f"--output {output}",
                      what="exists and is not overwritten; name another file")
    made = draft(read_table(table), table, target, title)
    write_whole(output, made.text.encode())
    for note in made.notes:
        warn(wrapped(plain(note)))
    result({"task": str(output), "notes": made.notes}, as_json, wrapped(
        f"Wrote {output}. Read it, correct it, and hand it to a broker with") +
        f"\n  tormentor curate {shlex.quote(str(output))} --validation ROWS.csv --broker ONION")


# -- status ----------------------------------------------------------------------------------
@click.command()
@command
@click.argument("onion")
@click.option("--watch", is_flag=True, help="Go on until the model is published.")
@json_option
@state_option
@tor_options
async def status(*, onion: str, watch: bool, as_json: bool, state: Path, tor: TorOptions) -> None:
    """Show how a model is getting on.

    \b
    Example:
      tormentor status ADDRESS.onion --watch
    """
    address = check_onion(onion)
    async with route(tor, state) as way, circuit(way, address) as model:
        found = await (follow(model) if watch else get_status(model))
    result({"onion": address, **msgspec.to_builtins(found)}, as_json, lambda: words(found))


# -- fetch -----------------------------------------------------------------------------------
@click.command()
@command
@click.argument("onion")
@click.option("--output", metavar="FILE", type=_file,
              help="Where the model is written.  [model-ONION.safetensors]")
@json_option
@state_option
@tor_options
async def fetch(
    *, onion: str, output: Path | None, as_json: bool, state: Path, tor: TorOptions
) -> None:
    """Fetch and verify a published model.

    It is kept only when the address itself has signed it; check that again at any time, without
    any network, with 'tormentor verify'.

    \b
    Example:
      tormentor fetch ADDRESS.onion --output model.safetensors
    """
    address = check_onion(onion)
    if output is not None:
        _check_place(output)
    async with route(tor, state) as way, circuit(way, address) as model_circuit:
        say("Fetching the model ...")
        last = await get_status(model_circuit)
        fetched = await _fetch(model_circuit, output, last, _without_tor(tor))
    fetched.tell(as_json, {})


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A model that was fetched, verified and saved; and its last status, which nobody signed."""

    model: Model
    saved: Path
    status: Status

    def tell(self, as_json: bool, more: Mapping[str, object]) -> None:
        """The command's result."""
        if warning := useless(self.status):
            warn(warning)
        model, status = self.model, self.status
        result({
            **more, "onion": model.onion, "model": str(self.saved),
            "curator": model.signed.curator.hex(), "updates": model.updates,
            "ended": model.ended, "error": status.error, "best_error": status.best_error,
            "baseline": status.baseline,
        }, as_json, self._words)

    def _words(self) -> str:
        title = plain(self.model.task.title).replace("\n", " ")
        lines = [f"Saved {self.saved}: '{title}', {self.model.updates:,} updates."]
        if self.status.error is not None:
            compared = f"; {one}" if (one := one_answer(self.status)) else ""
            lines.append(
                f"It errs on {self.status.error:.1%} of the validation rows{compared}.")
        elif self.status.baseline is None:
            lines.append(f"Its error is {NOT_MEASURED}.")
        lines += [f"Signed by {self.model.onion},",
                  f"for curator {self.model.signed.curator.hex()}.",
                  "Apply it with:"]
        return wrapped("\n".join(lines)) + (
            f"\n  tormentor predict {shlex.quote(str(self.saved))} --data YOUR.csv")


async def _fetch(
    model_circuit: Circuit, output: Path | None, status: Status, way: str
) -> _Fetched:
    """Fetch, verify and only then save a model."""
    onion = model_circuit.onion
    try:
        raw = await get_from_model(model_circuit, "/model", MODEL_LIMIT)
    except Problem as problem:
        if problem.kind is not NOT_PUBLISHED:
            raise
        command = f"tormentor status {onion} --watch{way}"
        raise Problem(NOT_YET, command=command) from None
    model = read_model(raw, f"{onion}/model", onion)
    path = output or Path(f"model-{onion[:16]}.safetensors")
    write_whole(path, raw)
    return _Fetched(model, path, status)


def _check_place(path: Path) -> None:
    """See before a long wait that a file can be written there at its end."""
    if path.is_dir():
        raise Problem(DISK, path=path, why="it is a directory")
    if not path.parent.is_dir():
        raise Problem(DISK, path=path, why="its directory does not exist")
