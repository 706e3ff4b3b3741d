"""The curator's commands: ``curate``, ``status`` and ``fetch``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np

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
from accord.files import write_whole
from accord.messages import (
    SMALL_LIMIT,
    TASK_LIMIT,
    VALIDATION_LIMIT,
    Curate,
    Curated,
    SignedTask,
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
    OTHER_TASK,
    PeerProblem,
    Problem,
)
from accord.table import read_table
from accord.task import sign, task_id
from curator.definition import curator_key, read_definition
from curator.draft import draft
from curator.watch import follow, get_from_model, get_status, progress, words

APPEAR: Final = 180.0
"""Seconds for a new onion to be found; on a slow day its descriptor takes two minutes."""

_file = click.Path(path_type=Path)


# -- curate ----------------------------------------------------------------------------------
@click.command()
@command
@click.argument("task", metavar="[TASK.toml]", type=_file, required=False)
@click.option("--validation", metavar="FILE", type=_file,
              help="CSV or Parquet: rows on which the broker measures the model; it sees them.")
@click.option("--broker", metavar="ONION", help="Address of the broker's desk.")
@click.option("--key", metavar="FILE", type=_file,
              help="Your Ed25519 key.  [made once, in the state directory]")
@click.option("--watch", is_flag=True, help="Follow the training, then fetch the model.")
@click.option("--init", metavar="DATA.csv", type=_file,
              help="Write a commented task file for this table instead.")
@click.option("--target", metavar="COLUMN", help="With --init: the answer.  [the last column]")
@click.option("--output", metavar="FILE", type=_file,
              help="Where the model, or with --init the task, is written.")
@json_option
@state_option
@tor_options
async def curate(
    *, task: Path | None, validation: Path | None, broker: str | None, key: Path | None,
    watch: bool, init: Path | None, target: str | None, output: Path | None, as_json: bool,
    state: Path, tor: TorOptions,
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
        mixed = {"TASK.toml": task, "--validation": validation, "--broker": broker,
                 "--key": key, "--watch": watch or None}
        for name, value in mixed.items():
            if value is not None:
                raise Problem(BAD_OPTION, option=name, what="does not go with --init")
        _init(init, target, output or Path(f"{init.stem}.toml"), as_json)
        return
    if task is None:
        raise Problem(BAD_OPTION, option="TASK.toml",
                      what="is missing; write one with 'tormentor curate --init DATA.csv'")
    if target is not None:
        raise Problem(BAD_OPTION, option="--target", what="goes with --init only")
    if output is not None and not watch:
        raise Problem(BAD_OPTION, option="--output", what="goes with --watch or --init only")
    for name, given in (("--validation", validation), ("--broker", broker)):
        if given is None:
            raise Problem(BAD_OPTION, option=name, what="is missing")
    assert validation is not None and broker is not None
    order = _order(task, validation, broker, state, key)
    if output is not None:
        _check_place(output)
    async with route(tor, state) as way:
        async with circuit(way, order.broker) as desk:
            onion = await _hand_over(desk, order)
        say(f"The broker has the task. The model's address is {onion}")
        async with circuit(way, onion) as model_circuit:
            await _appear(model_circuit, order.signed)
            told = {"onion": onion, "task": task_id(order.signed),
                    "curator": order.signed.curator.hex(), "join": order.join(onion)}
            if not watch:
                result(told, as_json, lambda: _invitation(told))
                return
            if as_json:
                say(_invitation(told))
            else:
                result(told, False, lambda: _invitation(told))
            await follow(model_circuit)
            model, saved = await _fetch(model_circuit, output)
    result(told | _described(model, saved), as_json, lambda: _saved_words(model, saved))


@dataclass(frozen=True, slots=True)
class _Order:
    """What a desk is given, once everything here was checked."""

    broker: str
    signed: SignedTask
    body: bytes
    clients: int

    def join(self, onion: str) -> str:
        """What somebody types to take part."""
        return (f"tormentor join {onion} --curator {self.signed.curator.hex()} --data YOUR.csv "
                f"--epsilon 1 --min-clients {self.clients}")


def _order(path: Path, validation: Path, broker: str, state: Path, key: Path | None) -> _Order:
    """Check everything that can be checked here, before anybody is spoken to."""
    address = check_onion(broker)
    task = read_definition(path)
    rows, labels = task.data.encode(read_table(validation), str(validation))
    if rows.size * 4 + len(labels) + TASK_LIMIT + SMALL_LIMIT > VALIDATION_LIMIT:
        most = (VALIDATION_LIMIT - TASK_LIMIT - SMALL_LIMIT) // (4 * task.dimension + 1)
        raise Problem(BAD_OPTION, option=f"--validation {validation}",
                      what=f"has {len(labels):,} rows and a broker takes at most {most:,} of "
                      "this width; give fewer")
    signed = sign(task, curator_key(state, key))
    body = encode(Curate(
        task=signed,
        rows=np.ascontiguousarray(rows, dtype="<f4").tobytes(),
        labels=labels.astype(np.uint8).tobytes(),
    ))
    return _Order(address, signed, body, task.clients.minimum)


async def _hand_over(desk: Circuit, order: _Order) -> str:
    """Give a desk the task; the address of its model."""
    say("Handing the task to the broker ...")
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


def _invitation(told: dict[str, str]) -> str:
    return (f"Model:   {told['onion']}\nCurator: {told['curator']}\n"
            f"Those who take part type:\n  {told['join']}")


def _init(table: Path, target: str | None, output: Path, as_json: bool) -> None:
    if output.exists():
        raise Problem(BAD_OPTION, option=f"--output {output}",
                      what="exists and is not overwritten; name another file")
    made = draft(read_table(table), table, target)
    write_whole(output, made.text.encode())
    for note in made.notes:
        warn(plain(note))
    result({"task": str(output), "notes": made.notes}, as_json,
           f"Wrote {output}. Read it, correct it, and hand it to a broker with\n"
           f"  tormentor curate {output} --validation ROWS.csv --broker ONION")


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
        model, saved = await _fetch(model_circuit, output)
    result(_described(model, saved), as_json, lambda: _saved_words(model, saved))


async def _fetch(model_circuit: Circuit, output: Path | None) -> tuple[Model, Path]:
    """Fetch, verify and only then save a model."""
    onion = model_circuit.onion
    say("Fetching the model ...")
    raw = await get_from_model(model_circuit, "/model", MODEL_LIMIT)
    model = read_model(raw, f"{onion}/model", onion)
    path = output or Path(f"model-{onion[:16]}.safetensors")
    write_whole(path, raw)
    return model, path


def _described(model: Model, saved: Path) -> dict[str, object]:
    return {"onion": model.onion, "model": str(saved), "curator": model.signed.curator.hex(),
            "updates": model.updates, "ended": model.ended}


def _saved_words(model: Model, saved: Path) -> str:
    title = plain(model.task.title).replace("\n", " ")
    return (f"Saved {saved}: '{title}', {model.updates:,} updates.\n"
            f"Signed by {model.onion} for the task of curator {model.signed.curator.hex()}.\n"
            f"Apply it with: tormentor predict {saved} --data YOUR.csv")


def _check_place(path: Path) -> None:
    """See before a long wait that a file can be written there at its end."""
    if path.is_dir():
        raise Problem(DISK, path=path, why="it is a directory")
    if not path.parent.is_dir():
        raise Problem(DISK, path=path, why="its directory does not exist")
