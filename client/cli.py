"""``tormentor join``, ``solve``, ``predict`` and ``verify``."""

from __future__ import annotations

import asyncio
import csv
import io
import shlex
import time
from pathlib import Path
from typing import Any

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
    DATA_CHANGED,
    EXIT_BUDGET,
    EXIT_LEFT,
    NO_MODEL,
    OTHER_CURATOR,
    PeerProblem,
    Problem,
)
from accord.solver import MAX_CORES, Solver
from accord.task import Task, open_task, task_id
from accord.words import bound, number, wrapped
from client.accounting import best_guess, certainty
from client.agent import Agent, fetch_puzzle, fetch_task
from client.briefing import (
    about_judging,
    about_noise,
    about_price,
    about_task,
    most_strikes,
    price,
)
from client.budget import Budget, Ledger, ledger_name
from client.budget_cli import noise_option
from client.dataset import fingerprint, load, read
from client.meaning import in_words
from client.noise import Mechanism
from client.plan import ADVISED_STEPS, expected_updates, plan
from client.progress import shown
from client.session import Pace, Session, hold_session, load_session, save_session
from client.trainer import Trainer
from client.wishes import (
    check_delta,
    check_output,
    check_patience,
    check_replaceable,
    check_typed,
    find_session,
    option_problem,
)

_patience_option = click.option(
    "--patience", type=float, default=900.0, show_default=True, metavar="SECONDS",
    help="Give up when nobody has answered for so long.")
_cores_option = click.option(
    "--cores", type=click.IntRange(1, MAX_CORES), default=1, show_default=True, metavar="N",
    help="Solve puzzles on so many of this machine's cores.")
_wait_option = click.option(
    "--no-wait", is_flag=True, help="When the budget is spent, do not wait for the model.")


@click.command()
@click.argument("onion")
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Your rows, CSV or Parquet; they never leave this machine.")
@click.option("--min-clients", required=True, type=int, metavar="K",
              help="Train only while so many clients are there.")
@click.option("--budget", type=float, default=2.0, show_default=True,
              help="Epsilon that may be spent in all from this file, whatever the trainings: "
              "smaller is more private. 'tormentor budget' says what it means.")
@click.option("--delta", type=float, default=1e-6, show_default=True,
              help="Chance at which the budget's promise may fail.")
@click.option("--updates", type=int, metavar="T",
              help="How many updates the budget is to buy.  [your share of the training's]")
@click.option("--epsilon", type=float, metavar="E",
              help="Privacy of one update, for the rows drawn for it, instead of --updates.  "
              "[the largest that the budget buys]")
@click.option("--batch", type=int, help="Rows drawn per update.  "
              "[all; 50 with --epsilon]")
@noise_option
@click.option("--curator", metavar="HEX", help="Join only what this curator's key has signed.")
@click.option("--session", "session_path", type=click.Path(dir_okay=False, path_type=Path),
              metavar="FILE", help="Where the session is kept.  [STATE/sessions/ONION.json]")
@click.option("--ledger", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
              help="Where the privacy ledgers are kept.  [STATE/ledgers]")
@click.option("--max-difficulty", type=int, default=6, show_default=True,
              help="Hardest puzzle to solve; each step takes 16 times longer.")
@click.option("--leave-if-struck", is_flag=True,
              help="Leave as soon as the broker gives you a strike.")
@click.option("--leave-if-share", type=float, metavar="SHARE",
              help="Leave when at least this share of the judged clients is struck (0.5: half), "
              "with 3 or more judged.")
@click.option("--ignore-columns", is_flag=True,
              help="Leave out columns that the task does not know, instead of refusing them: one "
              "file, and one ledger, for trainings that ask for different columns.")
@click.option("--delay", type=float, default=0.0, show_default=True, metavar="SECONDS",
              help="Wait a random time of up to so long before each update, so that its moment "
              "tells less.")
@click.option("--local-steps", type=int, metavar="N",
              help="Private steps that make an update, each paid for: more of them for each way "
              f"through Tor.  [as many as the task allows, but {ADVISED_STEPS} at most]")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="MODEL",
              help="Where the model goes.  [./model-ONION.safetensors]")
@click.option("--again", is_flag=True, help="Replace an unfinished session, or a model's file.")
@click.option("--solve", "go_on", is_flag=True, help="Go on with 'tormentor solve' at once.")
@_cores_option
@_wait_option
@_patience_option
@tor_options
@state_option
@json_option
@command
async def join(
    onion: str, data: Path, min_clients: int, budget: float, delta: float, updates: int | None,
    epsilon: float | None, batch: int | None, noise: Mechanism, curator: str | None,
    session_path: Path | None, ledger: Path | None, max_difficulty: int,
    leave_if_struck: bool, leave_if_share: float | None, ignore_columns: bool, delay: float,
    local_steps: int | None, output: Path | None, again: bool, go_on: bool, cores: int,
    no_wait: bool, patience: float, tor: TorOptions, state: Path, as_json: bool,
) -> None:
    """Join the training at ONION with your own data: see the task, and what it costs.

    Nothing is sent yet but the question what is trained there. A session file is written, and
    'tormentor solve' goes on from it.

    \b
    Example:
      tormentor join abc...xyz.onion --data mine.csv --budget 2 --min-clients 5
    """
    check_typed(epsilon, batch, min_clients, budget, delta, noise, updates, curator,
                max_difficulty, leave_if_share, patience, delay, local_steps)
    onion = check_onion(onion)
    here = Path.cwd()
    output = here / (output or f"model-{onion[:16]}.safetensors")
    check_output(output, here / data, again)
    ledgers = here / (ledger or state / "ledgers")
    path = session_path or state / "sessions" / f"{onion}.json"
    if session_path is not None and not (here / path).parent.is_dir():
        raise option_problem("--session", f"is in a directory that does not exist: {path}")
    await asyncio.to_thread(read, data, batch or 1)
    wishes: dict[str, Any] = {
        "fingerprint": await asyncio.to_thread(fingerprint, data),
        # What was not typed is chosen when the task is known.
        **{name: value for name, value in (("epsilon", epsilon), ("batch", batch),
                                           ("local_steps", local_steps))
           if value is not None},
        "min_clients": min_clients, "budget": budget, "delta": delta, "noise": noise,
        "max_difficulty": max_difficulty, "leave_if_struck": leave_if_struck,
        "leave_if_share": leave_if_share, "ignore_columns": ignore_columns, "delay": delay,
        "ledger": str(ledgers),
        "output": str(output)}
    next_command = _solve_command(onion, session_path, state, tor)
    old = check_replaceable(path, session_path is not None, wishes, again, next_command)
    async with route(tor, state, quiet=as_json) as way:
        async with circuit(way, onion) as line:
            signed = await unless_away(
                lambda: fetch_task(line), min(patience, 60.0),
                lambda why: say(f"Not there yet ({why}); trying again."))
            task = _check_task(signed, onion, curator, min_clients, delay, local_steps)
            # All that is asked is asked before the rows are looked at: whether, and how soon, the
            # second question comes would tell whether all of them are as the task says.
            door = await fetch_puzzle(line, max_difficulty)
        mine = await asyncio.to_thread(load, data, task.data, batch or 1,
                                       ignore_columns)
        check_delta(delta, len(mine.labels))
        if old is not None and updates is None:
            # What was chosen then is chosen still, whatever has been spent since.
            epsilon, batch = old.epsilon, old.batch
        each = local_steps or (old.local_steps if old is not None else
                               min(task.training.local_steps, ADVISED_STEPS))
        if not as_json:
            say("Reckoning what it will cost in privacy; this takes some seconds ...\n")
        with Ledger(ledgers, ledger_name(ledgers, mine.identity, mine.fingerprint)) as book:
            release = await asyncio.to_thread(
                plan, task, len(mine.labels), min_clients, budget, delta, noise, epsilon, batch,
                updates, book.counts(), each)
            cost = await asyncio.to_thread(price, release, budget, delta, book.counts(),
                                           expected_updates(task, min_clients), each)
        if not as_json:
            say(about_task(task, signed) + "\n")
        if drowned := about_noise(release, each):
            warn(drowned + "\n")
        if not as_json:
            say(about_price(cost, release, budget, delta, task, door, delay, each) + "\n")
            say(about_judging(task, max_difficulty) + "\n")
        if session_path is None:
            private_directory(private_directory(state) / "sessions")
        with hold_session(path):
            wishes |= {"fingerprint": mine.fingerprint, "task": signed,
                       "epsilon": release.epsilon, "batch": release.batch, "local_steps": each}
            old = check_replaceable(path, session_path is not None, wishes, again, next_command)
            # Whoever joins once more in the same way keeps the place at the broker.
            if old is None or (old.solution is None and old.token is None):
                save_session(path, Session(
                    onion=onion, data=str(here / data), puzzle=door, **wishes))
            told = {
                "event": "joined", "onion": onion, "session": str(path), "title": plain(task.title),
                "task": task_id(signed), "curator": signed.curator.hex(),
                "dimension": task.dimension, "rows": release.rows, "batch": release.batch,
                "epsilon": release.epsilon, "noise": noise, "min_clients": min_clients,
                "budget": budget, "delta": delta, "epsilon_update": cost.per_update,
                "epsilon_before": cost.already, "updates": cost.updates,
                "epsilon_total": cost.total, "updates_expected": cost.expected,
                "epsilon_expected": cost.projected, "guess": cost.guess, "sure": cost.sure,
                "noise_ratio": release.noise_ratio,
                "difficulty": door.difficulty, "test": task.validation.test,
                "validation": task.validation.digest or None,
                "most_strikes": most_strikes(task, max_difficulty),
                "leave_if_struck": leave_if_struck, "leave_if_share": leave_if_share,
                "delay": delay, "local_steps": each, "steps": cost.steps,
            }
            result(told, as_json, wrapped(f"Joined. The session is {path}.") + (
                "" if go_on else f"\nNext, type:\n{next_command}"))
            if go_on:
                await _train(way, path, not no_wait, patience, cores, as_json, next_command,
                             _fetch_command(onion, output, state, tor))


def _solve_command(
    onion: str, session: Path | None, state: Path, tor: TorOptions
) -> str:
    """What to type to go on from here, with every option that it takes."""
    where = [onion] if session is None else ["--session", str(session)]
    return _command(["solve", *where], state, tor)


def _fetch_command(onion: str, output: Path | str, state: Path, tor: TorOptions) -> str:
    """What to type to get a model without taking part in its training."""
    return _command(["fetch", onion, "--output", str(output)], state, tor)


def _command(words: list[str], state: Path, tor: TorOptions) -> str:
    """A command of ours, with every option that makes it use the same state and way as this."""
    words = ["tormentor", *words]
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
    signed: SignedTask, onion: str, curator: str | None, min_clients: int, delay: float,
    local_steps: int | None,
) -> Task:
    """Read what came as the task, and refuse it where it is not what was asked for."""
    task = open_task(signed, onion)
    if curator is not None and signed.curator != bytes.fromhex(curator):
        raise PeerProblem(OTHER_CURATOR, address=onion, found=signed.curator.hex(),
                          expected=curator.lower())
    if min_clients > task.clients.maximum:
        raise option_problem(
            "--min-clients",
            f"is {min_clients} and the task admits {task.clients.maximum} at most")
    if local_steps is not None and local_steps > task.training.local_steps:
        raise option_problem("--local-steps", f"is {local_steps:,} and the task allows "
                             f"{task.training.local_steps:,} at most")
    if task.training.mode == "synchronous" and delay > task.training.round_seconds / 2:
        # Its updates would come when their rounds are closed, and be paid for all the same.
        raise option_problem(
            "--delay", f"is {delay:g} seconds; it must be at most "
            f"{task.training.round_seconds / 2:g}, half of what a round of this task waits")
    return task


@click.command()
@click.argument("onion", required=False)
@click.option("--session", "session_path", type=click.Path(dir_okay=False, path_type=Path),
              metavar="FILE", help="The session to go on with.")
@_cores_option
@_wait_option
@_patience_option
@tor_options
@state_option
@json_option
@command
async def solve(onion: str | None, session_path: Path | None, cores: int, no_wait: bool,
                patience: float, tor: TorOptions, state: Path, as_json: bool) -> None:
    """Solve the puzzle at the door, train until the model is published, and save it.

    It may be stopped at any time, however rudely; the same command goes on where it was. With
    --json it prints one JSON object a line.

    \b
    Examples:
      tormentor solve
      tormentor solve abc...xyz.onion --json
    """
    check_patience(patience)
    path = find_session(check_onion(onion) if onion else None, session_path, state)
    load_session(path)
    with hold_session(path):
        session = load_session(path)
        if session.outcome == "published":
            told = {"event": "end", "outcome": "published", "model": session.output}
            result(told, as_json, wrapped(
                f"Nothing is left to do: the model is saved as {session.output}."))
            return
        fetch = _fetch_command(session.onion, session.output, state, tor)
        if session.outcome == "left":
            left = {"event": "end", "outcome": "left", "model": None, **_verdict(session)}
            result(left, as_json, wrapped(_left(session)) + f"\n{fetch}")
            raise Exit(EXIT_LEFT)
        # Looked at before tor is started, so that what is wrong here is said at once.
        _check_data(session)
        if not as_json:
            say(wrapped(
                f"Going on with {session.data}: epsilon {number(session.epsilon)} an update "
                f"({session.noise}), batch {session.batch:,}, budget {number(session.budget)} at "
                f"delta {session.delta:g}, at least {session.min_clients:,} clients."))
        async with route(tor, state, quiet=as_json) as way:
            again = _solve_command(session.onion, session_path, state, tor)
            await _train(way, path, not no_wait, patience, cores, as_json, again, fetch)


def _check_data(session: Session) -> None:
    if fingerprint(Path(session.data)) != session.fingerprint:
        raise Problem(DATA_CHANGED, path=session.data)


async def _train(way: Route, path: Path, wait: bool, patience: float, cores: int,
                 as_json: bool, again: str, fetch: str) -> None:
    """Go on with a session that this process holds.

    Args:
        way: to the model.
        path: of the session.
        wait: for the model, when the budget is spent.
        patience: seconds without any answer before giving up.
        cores: to solve puzzles on.
        as_json: tell it to a machine.
        again: the command that does so once more.
        fetch: the command that gets the model without taking part.
    """
    began = time.monotonic()
    session = load_session(path)
    await asyncio.to_thread(_check_data, session)
    task = open_task(session.task, session.onion)
    data = await asyncio.to_thread(load, Path(session.data), task.data, session.batch,
                                   session.ignore_columns)
    if data.fingerprint != session.fingerprint:
        raise Problem(DATA_CHANGED, path=session.data)
    release = session.release(len(data.labels), task.dimension)
    name = task_id(session.task)
    ledgers = Path(session.ledger)
    with Ledger(ledgers, ledger_name(ledgers, data.identity, data.fingerprint)) as book:
        budget = await asyncio.to_thread(
            Budget, book, name, release, session.budget, session.delta)
        # A session file that was changed by hand must not get us struck.
        each = min(session.local_steps, task.training.local_steps)
        trainer = Trainer(task, data, release, budget.spend, local_steps=each)
        with shown(as_json, session.budget) as tell, Solver(cores) as solver:
            agent = Agent(
                way, path, session, trainer, book, lambda: budget.remaining > 0, tell,
                wait=wait, pace=Pace(patience=patience), solver=solver)
            outcome = await agent.run()
        spent, updates = await asyncio.to_thread(budget.spent), book.count(name)
        guess = await asyncio.to_thread(best_guess, book.counts(), session.delta)
        sure = await asyncio.to_thread(certainty, book.counts(), session.delta)
    session, saved = agent.session, outcome == "published"
    told = {
        "event": "end", "outcome": outcome, "updates": updates, "epsilon_total": spent,
        "guess": guess, "sure": sure, "noise": session.noise, "delta": session.delta,
        "epsilon": session.epsilon, "batch": session.batch, "rows": release.rows,
        "min_clients": session.min_clients, "local_steps": session.local_steps,
        "model": session.output if saved else None, "seconds": time.monotonic() - began,
        **_verdict(session),
    }
    what = "update" if session.local_steps == 1 else "private step"
    words = f"We paid for {updates:,} {what}{'' if updates == 1 else 's'} in this training. " \
            f"This data has cost epsilon {bound(spent)} of {number(session.budget)} in all, at " \
            f"delta {session.delta:g}.\n" + "\n".join(
                in_words(spent, session.delta, guess, sure))
    if saved:
        result(told, as_json, wrapped(
            f"The model is saved as {session.output}, and its address has signed it.\n{words}"))
        return
    if outcome == "left":
        result(told, as_json, wrapped(f"{words}\n{_left(session)}") + f"\n{fetch}")
        raise Exit(EXIT_LEFT)
    result(told, as_json, wrapped(
        f"{words}\nTo fetch the model when it is published, type:") + f"\n{again}")
    raise Exit(EXIT_BUDGET)


def _verdict(session: Session) -> dict[str, object]:
    """What the broker said last of strikes, for a machine; and which wish to leave it fulfils."""
    verdict = session.verdict
    told: dict[str, object] = {
        "strikes": verdict.strikes, "struck": verdict.struck, "judged": verdict.judged}
    if session.outcome == "left":
        told["why"] = session.wishes.reason(verdict)
    return told


def _left(session: Session) -> str:
    """Why we have left, in words that decide on nobody's fault; a command to fetch follows."""
    verdict = session.verdict
    if session.wishes.reason(verdict) == "leave-if-struck":
        many = "" if verdict.strikes == 1 else "s"
        why = (f"--leave-if-struck asks: the broker has given us {verdict.strikes:,} strike{many}, "
               "as our updates oppose the curator's validation set")
    else:
        why = (f"--leave-if-share {session.leave_if_share} asks: the updates of {verdict.struck:,} "
               f"of {verdict.judged:,} judged clients oppose the curator's validation set")
    return (f"We have left this training, as {why}.\nTo take part again all the same, join with "
            "--again and without that wish.\nTo fetch the model when it is published, type:")


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
