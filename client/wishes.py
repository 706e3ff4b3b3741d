"""What a person wishes: checked as it was typed, and against the sessions that are there."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Final

from accord.messages import MAX_STEPS
from accord.problems import (
    BAD_OPTION,
    BAD_SESSION,
    MANY_SESSIONS,
    NO_SESSION,
    UNFINISHED,
    Problem,
)
from accord.words import number
from client.noise import LEAST_DELTA, MOST_GAUSSIAN, Mechanism
from client.session import FINISHED, MOST_DELAY, Session, load_session

_MOST: Final = 1e6  # of epsilon and budget: a larger one is a slip of the finger


def option_problem(option: str, what: str) -> Problem:
    """The refusal of an option: its name, and what is wrong with it."""
    return Problem(BAD_OPTION, option=option, what=what)


def check_noise(epsilon: float | None, budget: float | None, delta: float,
                noise: Mechanism) -> None:
    """Refuse what is no privacy setting; None for what was not typed.

    Raises:
        Problem: ``BAD_OPTION``.
    """
    for name, value in (("--epsilon", epsilon), ("--budget", budget)):
        if value is not None and not 0 < value <= _MOST:
            raise option_problem(
                name, f"must be above 0 and at most {number(_MOST)}, not {number(value)}")
    if not 0 < delta < 0.5:
        raise option_problem("--delta", f"must be above 0 and below 0.5, not {delta:g}")
    if noise == "gaussian":
        if epsilon is not None and epsilon > MOST_GAUSSIAN:
            raise option_problem("--epsilon", f"of Gaussian noise must be at most "
                                 f"{MOST_GAUSSIAN:g}, not {number(epsilon)}")
        if delta < LEAST_DELTA:
            raise option_problem(
                "--delta", f"must be at least {LEAST_DELTA:g} for Gaussian noise, not {delta:g}")


def check_delta(delta: float, rows: int) -> None:
    """Refuse a delta at which the promise fails for some row.

    Raises:
        Problem: ``BAD_OPTION``.
    """
    if delta * rows >= 1:
        raise option_problem(
            "--delta", f"is {delta:g}: of {rows:,} rows at least one might have no protection at "
            f"all; it must be well below {1 / rows:.2g}")


def check_typed(epsilon: float | None, batch: int | None, min_clients: int, budget: float,
                delta: float, noise: Mechanism, updates: int | None, curator: str | None,
                max_difficulty: int, leave_if_share: float | None, patience: float,
                delay: float, local_steps: int | None) -> None:
    """Refuse values that mean nothing, before anything else is done; None for what was not typed.

    Raises:
        Problem: ``BAD_OPTION``.
    """
    check_noise(epsilon, budget, delta, noise)
    if epsilon is not None and updates is not None:
        raise option_problem("--updates", "says how many updates the budget is to buy; with "
                             "--epsilon, the budget itself says it")
    for name, count in (("--batch", batch), ("--min-clients", min_clients),
                        ("--updates", updates)):
        if count is not None and count < 1:
            raise option_problem(name, f"must be at least 1, not {count}")
    if local_steps is not None and not 1 <= local_steps <= MAX_STEPS:
        raise option_problem(
            "--local-steps", f"must be from 1 to {MAX_STEPS:,}, not {local_steps}")
    if max_difficulty < 0:
        raise option_problem("--max-difficulty", f"must be at least 0, not {max_difficulty}")
    if curator is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", curator):
        raise option_problem("--curator", "must be a curator's public key, 64 hexadecimal digits")
    if leave_if_share is not None and not 0 < leave_if_share <= 1:
        raise option_problem(
            "--leave-if-share", f"must be above 0 and at most 1, not {leave_if_share:g}")
    if not 0 <= delay <= MOST_DELAY:
        raise option_problem(
            "--delay", f"must be from 0 to {MOST_DELAY:g} seconds, not {delay:g}")
    check_patience(patience)


def check_patience(patience: float) -> None:
    """Refuse a number of seconds that is none.

    Raises:
        Problem: ``BAD_OPTION``.
    """
    if not (patience >= 0 and math.isfinite(patience)):
        raise option_problem("--patience", f"must be at least 0, not {patience:g}")


def check_output(output: Path, data: Path, again: bool) -> None:
    """Refuse a place for the model where it cannot go, or where something is already.

    Raises:
        Problem: ``BAD_OPTION``.
    """
    if output == data:
        raise option_problem("--output", "names your data file; name another")
    if not output.parent.is_dir():
        raise option_problem("--output", f"is in a directory that does not exist: {output}")
    if output.exists() and not again:
        raise option_problem(
            str(output), "is there already; name another file with --output, or say --again")


_WISHES: Final = {
    "fingerprint": "data file", "epsilon": "--epsilon", "batch": "--batch", "noise": "--noise",
    "min_clients": "--min-clients", "budget": "--budget", "delta": "--delta",
    "max_difficulty": "--max-difficulty", "ledger": "--ledger", "output": "--output",
    "leave_if_struck": "--leave-if-struck", "leave_if_share": "--leave-if-share",
    "ignore_columns": "--ignore-columns", "delay": "--delay",
    "local_steps": "--local-steps", "task": "task"}


def check_replaceable(
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
        raise option_problem(str(path), f"is there and is no session; {what}") from None
    if again or old.outcome == "published":
        return None
    if old.outcome == "left":
        # Nobody who wished to leave should be back in by a command that is merely repeated.
        raise option_problem(str(path), "is a session that has left; say --again to take part anew")
    other = [_WISHES[name] for name, value in wishes.items() if getattr(old, name) != value]
    if other:
        raise Problem(UNFINISHED, path=path, what=" and ".join(other), command=next_command)
    return old


def find_session(onion: str | None, named: Path | None, state: Path) -> Path:
    """The session that is meant: the named one, the only unfinished one, or the last finished.

    Raises:
        Problem: ``NO_SESSION``, ``MANY_SESSIONS``, ``BAD_SESSION``.
    """
    if named is not None:
        if onion is not None and load_session(named).onion != onion:
            raise Problem(NO_SESSION, where=f"for {onion} at {named}")
        return named
    directory = state / "sessions"
    if onion is not None:
        return directory / f"{onion}.json"
    found = sorted(directory.glob("*.json")) if directory.is_dir() else []
    unfinished = [path for path in found if load_session(path).outcome not in FINISHED]
    if not found:
        raise Problem(NO_SESSION, where=f"to go on with in {directory}")
    if not unfinished:
        return max(found, key=lambda path: path.stat().st_mtime)
    if len(unfinished) > 1:
        raise Problem(MANY_SESSIONS, count=len(unfinished))
    return unfinished[0]
