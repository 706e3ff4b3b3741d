"""``tormentor join``, ``solve``, ``predict`` and ``verify``."""

from __future__ import annotations

import asyncio
import csv
import io
import math
import re
import shlex
import time
from pathlib import Path
from typing import Any, Final

import click
from click.exceptions import Exit

from accord.circuit import Route
from accord.console import (
    TorOptions,
    circuit,
    command,
    default_state,
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
from accord.messages import SignedTask
from accord.model_file import MODEL_LIMIT, Model, read_model
from accord.objective import OBJECTIVES
from accord.onion import check_onion
from accord.problems import (
    BAD_MODEL,
    BAD_OPTION,
    BAD_SESSION,
    DATA_CHANGED,
    EXIT_BUDGET,
    MANY_SESSIONS,
    NO_MODEL,
    NO_SESSION,
    OTHER_CURATOR,
    UNFINISHED,
    PeerProblem,
    Problem,
)
from accord.task import Task, open_task, task_id
from client.agent import Agent, fetch_puzzle, fetch_task
from client.briefing import about_noise, about_price, about_task, price
from client.budget import Budget, Ledger
from client.dataset import fingerprint, load, read
from client.noise import Release
from client.progress import shown
from client.session import Pace, Session, hold_session, load_session, save_session
from client.trainer import Trainer
from client.words import number, wrapped

_MOST: Final = 1e6  # of epsilon and budget: a larger one is a slip of the finger


def _option_problem(option: str, what: str) -> Problem:
    return Problem(BAD_OPTION, option=option, what=what)


def _check_typed(epsilon: float, batch: int, min_clients: int, budget: float, delta: float,
                 curator: str | None, max_difficulty: int, patience: float) -> None:
    """Refuse values that mean nothing, before anything else is done."""
    for name, value in (("--epsilon", epsilon), ("--budget", budget)):
        if not 0 < value <= _MOST:
            raise _option_problem(
                name, f"must be above 0 and at most {number(_MOST)}, not {number(value)}")
    if not 0 < delta < 0.5:
        raise _option_problem("--delta", f"must be above 0 and below 0.5, not {delta:g}")
    for name, count in (("--batch", batch), ("--min-clients", min_clients)):
        if count < 1:
            raise _option_problem(name, f"must be at least 1, not {count}")
    if max_difficulty < 0:
        raise _option_problem("--max-difficulty", f"must be at least 0, not {max_difficulty}")
    if curator is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", curator):
        raise _option_problem("--curator", "must be a curator's public key, 64 hexadecimal digits")
    if not (patience >= 0 and math.isfinite(patience)):
        raise _option_problem("--patience", f"must be at least 0, not {patience:g}")


_patience_option = click.option(
    "--patience", type=float, default=900.0, show_default=True, metavar="SECONDS",
    help="Give up when nobody has answered for so long.")
_wait_option = click.option(
    "--no-wait", is_flag=True, help="When the budget is spent, do not wait for the model.")


@click.command()
@click.argument("onion")
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Your rows, CSV or Parquet; they never leave this machine.")
@click.option("--epsilon", required=True, type=float, metavar="E",
              help="Privacy of one update, for the rows drawn for it: smaller is more private.")
@click.option("--min-clients", required=True, type=int, metavar="K",
              help="Train only while so many clients are there.")
@click.option("--batch", type=int, default=50, show_default=True, help="Rows drawn per update.")
@click.option("--budget", type=float, default=8.0, show_default=True,
              help="Epsilon that may be spent in all from this file, whatever the trainings.")
@click.option("--delta", type=float, default=1e-6, show_default=True,
              help="Chance at which the budget's promise may fail.")
@click.option("--curator", metavar="HEX", help="Join only what this curator's key has signed.")
@click.option("--session", "session_path", type=click.Path(dir_okay=False, path_type=Path),
              metavar="FILE", help="Where the session is kept.  [STATE/sessions/ONION.json]")
@click.option("--ledger", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
              help="Where the privacy ledgers are kept.  [STATE/ledgers]")
@click.option("--max-difficulty", type=int, default=6, show_default=True,
              help="Hardest puzzle to solve; each step takes 16 times longer.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="MODEL",
              help="Where the model goes.  [./model-ONION.safetensors]")
@click.option("--again", is_flag=True, help="Replace an unfinished session, or a model's file.")
@click.option("--solve", "go_on", is_flag=True, help="Go on with 'tormentor solve' at once.")
@_wait_option
@_patience_option
@tor_options
@state_option
@json_option
@command
async def join(
    onion: str, data: Path, epsilon: float, min_clients: int, batch: int, budget: float,
    delta: float, curator: str | None, session_path: Path | None, ledger: Path | None,
    max_difficulty: int, output: Path | None, again: bool, go_on: bool, no_wait: bool,
    patience: float, tor: TorOptions, state: Path, as_json: bool,
) -> None:
    """Join the training at ONION with your own data: see the task, and what it costs.

    Nothing is sent yet but the question what is trained there. A session file is written, and
    'tormentor solve' goes on from it.

    \b
    Example:
      tormentor join abc...xyz.onion --data mine.csv --epsilon 1 --min-clients 5
    """
    _check_typed(epsilon, batch, min_clients, budget, delta, curator, max_difficulty, patience)
    onion = check_onion(onion)
    here = Path.cwd()
    output = here / (output or f"model-{onion[:16]}.safetensors")
    _check_output(output, here / data, again)
    ledgers = here / (ledger or state / "ledgers")
    path = session_path or state / "sessions" / f"{onion}.json"
    if session_path is not None and not (here / path).parent.is_dir():
        raise _option_problem("--session", f"is in a directory that does not exist: {path}")
    await asyncio.to_thread(read, data, batch)
    wishes: dict[str, Any] = {
        "fingerprint": await asyncio.to_thread(fingerprint, data), "epsilon": epsilon,
        "batch": batch, "min_clients": min_clients, "budget": budget, "delta": delta,
        "max_difficulty": max_difficulty, "ledger": str(ledgers), "output": str(output)}
    next_command = _solve_command(onion, session_path, state, tor)
    _check_replaceable(path, session_path is not None, wishes, again, next_command)
    async with route(tor, state, quiet=as_json) as way:
        async with circuit(way, onion) as line:
            signed = await unless_away(
                lambda: fetch_task(line), min(patience, 60.0),
                lambda why: say(f"Not there yet ({why}); trying again."))
            task = _check_task(signed, onion, curator, min_clients)
            mine = await asyncio.to_thread(load, data, task.data, batch)
            door = await fetch_puzzle(line, max_difficulty)
        release = Release(epsilon, batch, len(mine.labels), task.dimension)
        with Ledger(ledgers, mine.fingerprint) as book:
            cost = await asyncio.to_thread(price, release, budget, delta, book.counts(),
                                           task.training.max_updates)
        if not as_json:
            say(about_task(task, signed) + "\n")
            say(about_price(cost, release, budget, delta, task, door) + "\n")
        if drowned := about_noise(release):
            warn(drowned)
        if delta * release.rows > 1:
            warn(wrapped(f"WARNING: with --delta above 1/{release.rows:,} the promise may fail "
                         "for some row; choose a smaller one."))
        if session_path is None:
            private_directory(private_directory(state) / "sessions")
        with hold_session(path):
            wishes |= {"fingerprint": mine.fingerprint, "task": signed}
            old = _check_replaceable(path, session_path is not None, wishes, again, next_command)
            # Whoever joins once more in the same way keeps the place at the broker.
            if old is None or (old.solution is None and old.token is None):
                save_session(path, Session(
                    onion=onion, data=str(here / data), puzzle=door, **wishes))
            told = {
                "event": "joined", "onion": onion, "session": str(path), "title": plain(task.title),
                "task": task_id(signed), "curator": signed.curator.hex(),
                "dimension": task.dimension, "rows": release.rows, "batch": batch,
                "epsilon": epsilon, "min_clients": min_clients, "budget": budget, "delta": delta,
                "epsilon_update": cost.per_update, "epsilon_before": cost.already,
                "updates": cost.updates, "epsilon_total": cost.total,
                "epsilon_training": cost.training, "noise_ratio": release.noise_ratio,
                "difficulty": door.difficulty,
            }
            result(told, as_json, wrapped(f"Joined. The session is {path}.") + (
                "" if go_on else f"\nNext, type:\n{next_command}"))
            if go_on:
                await _train(way, path, not no_wait, patience, as_json, next_command)


def _solve_command(
    onion: str, session: Path | None, state: Path, tor: TorOptions
) -> str:
    """What to type to go on from here, with every option that it takes."""
    words = ["tormentor", "solve"]
    if session is not None:
        words += ["--session", str(session)]
    else:
        words.append(onion)
    if state != default_state():
        words += ["--state", str(state)]
    if tor.mode != "launch":
        words += ["--tor", tor.mode]
    if tor.socks is not None:
        words += ["--socks", f"{tor.socks.host}:{tor.socks.port}"]
    if tor.torrc is not None:
        words += ["--torrc", str(tor.torrc)]
    if tor.direct is not None:
        words += ["--direct", f"{tor.direct[0]}:{tor.direct[1]}"]
    return shlex.join(words)


def _check_task(
    signed: SignedTask, onion: str, curator: str | None, min_clients: int
) -> Task:
    """Read what came as the task, and refuse it where it is not what was asked for."""
    task = open_task(signed, onion)
    if curator is not None and signed.curator != bytes.fromhex(curator):
        raise PeerProblem(OTHER_CURATOR, address=onion, found=signed.curator.hex(),
                          expected=curator.lower())
    if min_clients > task.clients.maximum:
        raise _option_problem(
            "--min-clients",
            f"is {min_clients} and the task admits {task.clients.maximum} at most")
    return task


def _check_output(output: Path, data: Path, again: bool) -> None:
    if output == data:
        raise _option_problem("--output", "names your data file; name another")
    if not output.parent.is_dir():
        raise _option_problem("--output", f"is in a directory that does not exist: {output}")
    if output.exists() and not again:
        raise _option_problem(
            str(output), "is there already; name another file with --output, or say --again")


_WISHES: Final = {
    "fingerprint": "data file", "epsilon": "--epsilon", "batch": "--batch",
    "min_clients": "--min-clients", "budget": "--budget", "delta": "--delta",
    "max_difficulty": "--max-difficulty", "ledger": "--ledger", "output": "--output",
    "task": "task"}


def _check_replaceable(
    path: Path, named: bool, wishes: dict[str, Any], again: bool, next_command: str
) -> Session | None:
    """Refuse to write over a session that somebody wished otherwise, or over anything else.

    Args:
        path: where the session is to be.
        named: the person said so.
        wishes: those of the new session, by the names of its fields.
        again: replace it all the same, but never what a person named and is no session.
        next_command: goes on with the one that is there.

    Returns:
        The unfinished session that is there and has the same wishes, if there is one.

    Raises:
        Problem: ``UNFINISHED``, ``BAD_OPTION``.
    """
    try:
        old = load_session(path)
    except Problem as problem:
        if problem.kind is NO_SESSION or (problem.kind is BAD_SESSION and again and not named):
            return None
        if problem.kind is not BAD_SESSION:
            raise
        what = "name another with --session" if named else "say --again to replace it"
        raise _option_problem(str(path), f"is there and is no session; {what}") from None
    if again or old.outcome == "published":
        return None
    other = [_WISHES[name] for name, value in wishes.items() if getattr(old, name) != value]
    if other:
        raise Problem(UNFINISHED, path=path, what=" and ".join(other), command=next_command)
    return old


@click.command()
@click.argument("onion", required=False)
@click.option("--session", "session_path", type=click.Path(dir_okay=False, path_type=Path),
              metavar="FILE", help="The session to go on with.")
@_wait_option
@_patience_option
@tor_options
@state_option
@json_option
@command
async def solve(onion: str | None, session_path: Path | None, no_wait: bool, patience: float,
                tor: TorOptions, state: Path, as_json: bool) -> None:
    """Solve the puzzle at the door, train until the model is published, and save it.

    It may be stopped at any time, however rudely; the same command goes on where it was. With
    --json it prints one JSON object a line.

    \b
    Examples:
      tormentor solve
      tormentor solve abc...xyz.onion --json
    """
    if not (patience >= 0 and math.isfinite(patience)):
        raise _option_problem("--patience", f"must be at least 0, not {patience:g}")
    path = _find(check_onion(onion) if onion else None, session_path, state)
    load_session(path)
    with hold_session(path):
        session = load_session(path)
        if session.outcome == "published":
            told = {"event": "end", "outcome": "published", "model": session.output}
            result(told, as_json, wrapped(
                f"Nothing is left to do: the model is saved as {session.output}."))
            return
        # Looked at before tor is started, so that what is wrong here is said at once.
        _check_data(session)
        if not as_json:
            say(wrapped(
                f"Going on with {session.data}: epsilon {number(session.epsilon)} an update, "
                f"batch {session.batch:,}, budget {number(session.budget)} at delta "
                f"{session.delta:g}, at least {session.min_clients:,} clients."))
        async with route(tor, state, quiet=as_json) as way:
            again = _solve_command(session.onion, session_path, state, tor)
            await _train(way, path, not no_wait, patience, as_json, again)


def _find(onion: str | None, named: Path | None, state: Path) -> Path:
    """The session that is meant: the named one, the only unfinished one, or the last finished."""
    if named is not None:
        if onion is not None and load_session(named).onion != onion:
            raise Problem(NO_SESSION, where=f"for {onion} at {named}")
        return named
    directory = state / "sessions"
    if onion is not None:
        return directory / f"{onion}.json"
    found = sorted(directory.glob("*.json")) if directory.is_dir() else []
    unfinished = [path for path in found if load_session(path).outcome != "published"]
    if not found:
        raise Problem(NO_SESSION, where=f"to go on with in {directory}")
    if not unfinished:
        return max(found, key=lambda path: path.stat().st_mtime)
    if len(unfinished) > 1:
        raise Problem(MANY_SESSIONS, count=len(unfinished))
    return unfinished[0]


def _check_data(session: Session) -> None:
    if fingerprint(Path(session.data)) != session.fingerprint:
        raise Problem(DATA_CHANGED, path=session.data)


async def _train(way: Route, path: Path, wait: bool, patience: float, as_json: bool,
                 again: str) -> None:
    """Go on with a session that this process holds; the command ``again`` does so once more."""
    began = time.monotonic()
    session = load_session(path)
    await asyncio.to_thread(_check_data, session)
    task = open_task(session.task, session.onion)
    data = await asyncio.to_thread(load, Path(session.data), task.data, session.batch)
    if data.fingerprint != session.fingerprint:
        raise Problem(DATA_CHANGED, path=session.data)
    release = Release(session.epsilon, session.batch, len(data.labels), task.dimension)
    name = task_id(session.task)
    with Ledger(Path(session.ledger), session.fingerprint) as book:
        budget = await asyncio.to_thread(
            Budget, book, name, release, session.budget, session.delta)
        trainer = Trainer(task, data, session.batch, session.epsilon, budget.spend)
        with shown(as_json, session.budget) as tell:
            outcome = await Agent(
                way, path, session, trainer, book, lambda: budget.remaining > 0, tell,
                wait=wait, pace=Pace(patience=patience)).run()
        spent, updates = await asyncio.to_thread(budget.spent), book.count(name)
    saved = outcome == "published"
    told = {
        "event": "end", "outcome": outcome, "updates": updates, "epsilon_total": spent,
        "delta": session.delta, "epsilon": session.epsilon, "batch": session.batch,
        "rows": release.rows, "min_clients": session.min_clients,
        "model": session.output if saved else None, "seconds": time.monotonic() - began,
    }
    words = f"We paid for {updates:,} update{'' if updates == 1 else 's'} in this training. " \
            f"This data has cost epsilon {number(spent)} of {number(session.budget)} in all, at " \
            f"delta {session.delta:g}."
    if saved:
        result(told, as_json, wrapped(
            f"The model is saved as {session.output}, and its address has signed it.\n{words}"))
        return
    result(told, as_json, wrapped(
        f"{words}\nTo fetch the model when it is published, type:") + f"\n{again}")
    raise Exit(EXIT_BUDGET)


def _read_model(path: Path, onion: str | None) -> Model:
    try:
        if path.stat().st_size > MODEL_LIMIT:
            raise PeerProblem(BAD_MODEL, path=path, why="it is too large")
        raw = path.read_bytes()
    except OSError as error:
        raise Problem(NO_MODEL, path=path, why=(error.strerror or str(error)).lower()) from None
    return read_model(raw, str(path), onion)


_model_argument = click.argument("model", type=click.Path(path_type=Path))


@click.command()
@_model_argument
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Rows to answer, CSV or Parquet, with the task's columns.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="CSV",
              help="Where the answers go.  [standard output]")
@json_option
@command
async def predict(model: Path, data: Path, output: Path | None, as_json: bool) -> None:
    """Apply MODEL to the rows of a table: a probability and an answer for each.

    The model's signature is checked first. Nothing is sent anywhere. When the file has the
    answer's column too, the error is said as well.

    \b
    Example:
      tormentor predict model.safetensors --data new.csv --output answers.csv
    """
    read_in = _read_model(model, None)
    schema = read_in.task.data
    columns = read(data, 0)
    rows, _ = schema.encode(columns, str(data), labelled=False)
    objective = OBJECTIVES[read_in.task.objective]
    chances = objective.predict(read_in.weights, rows)
    error: float | None = None
    if any(cell.strip() for cell in columns.get(schema.target, ())):
        labels = schema.labels(columns, str(data))
        error = float(objective.error(read_in.weights[None, :], rows, labels)[0])
    no, yes = (plain(word).replace("\n", "?") for word in schema.answers)
    answers = [yes if chance > 0.5 else no for chance in chances]
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("row", "probability", "answer"))
    for row, (chance, answer) in enumerate(zip(chances, answers, strict=True), 1):
        table.writerow((row, f"{chance:.6f}", answer))
    if output is not None:
        write_whole(output, lines.getvalue().encode())
    told: dict[str, Any] = {"onion": read_in.onion, "rows": len(answers), "error": error}
    if output is not None:
        told["output"] = str(output)
        words = f"{len(answers):,} answers are in {output}."
    else:
        told["answers"] = [
            {"probability": float(c), "answer": a} for c, a in zip(chances, answers, strict=True)]
        words = lines.getvalue().removesuffix("\n")
    result(told, as_json, words)
    if error is not None and not as_json:
        say(f"Error on these rows, by their column {plain(schema.target)}: {error:.2%}")


@click.command()
@_model_argument
@click.option("--onion", help="The address that must have signed it.")
@json_option
@command
async def verify(model: Path, onion: str | None, as_json: bool) -> None:
    """Check, without any network, that an onion address signed MODEL for its task.

    \b
    Example:
      tormentor verify model.safetensors --onion abc...xyz.onion
    """
    found = _read_model(model, check_onion(onion) if onion else None)
    told = {
        "onion": found.onion, "task": task_id(found.signed), "title": plain(found.task.title),
        "curator": found.signed.curator.hex(), "updates": found.updates,
        "ended": plain(found.ended), "dimension": found.task.dimension,
    }
    result(told, as_json, (
        f"Good: {found.onion} signed this model.\n"
        f"Task     {plain(found.task.title)}\n"
        f"Curator  {found.signed.curator.hex()}\n"
        f"Updates  {found.updates:,}; ended by {plain(found.ended)}"
        + ("" if onion else "\nIt names its own address: compare it with the one that you know, "
           "or add --onion.")))
