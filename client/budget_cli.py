"""``tormentor budget``: what releases cost, without any data; and what a file has spent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from accord.console import command, json_option, result, state_option
from accord.words import bound, number, wrapped
from client.accounting import (
    affordable,
    affordable_epsilon,
    best_guess,
    certainty,
    epsilon_total,
    pure_total,
)
from client.budget import Ledger, ledger_name
from client.dataset import fingerprint, identity, read
from client.meaning import in_words
from client.noise import Mechanism, Release
from client.wishes import check_delta, check_noise, option_problem

noise_option = click.option(
    "--noise", type=click.Choice(["laplace", "gaussian"]), default="laplace", show_default=True,
    help="The law of the noise. Laplace: each update by itself keeps its epsilon, without any "
    "delta.")


@click.command()
@click.option("--epsilon", type=float, metavar="E",
              help="Privacy of one update, for the rows drawn for it.")
@click.option("--budget", "limit", type=float, metavar="B",
              help="Epsilon in all: without --epsilon, how little noise it buys; with it, how "
              "many updates.")
@click.option("--updates", type=int, metavar="T", help="How many updates are sent; where one "
              "is several private steps (join --local-steps), each step counts.")
@click.option("--batch", type=int, help="Rows drawn per update.  [all]")
@click.option("--rows", type=int, metavar="N", help="Rows in the file.")
@click.option("--features", type=int, metavar="D",
              help="Numbers in the model: one for each column of numbers, one for each word of the "
              "others, and one more.")
@click.option("--delta", type=float, default=1e-6, show_default=True,
              help="Chance at which the promise may fail.")
@noise_option
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE",
              help="Instead: say what this file has spent, in all trainings.")
@click.option("--ledger", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
              help="Where the privacy ledgers are kept.  [STATE/ledgers]")
@state_option
@json_option
@command
async def budget(
    epsilon: float | None, limit: float | None, updates: int | None, batch: int | None,
    rows: int | None, features: int | None, delta: float, noise: Mechanism, data: Path | None,
    ledger: Path | None, state: Path, as_json: bool,
) -> None:
    """Reckon what updates cost in privacy, or what a file has spent. Nothing is sent.

    \b
    Examples:
      tormentor budget --epsilon 1 --batch 10 --rows 2100 --features 24 --updates 4000
      tormentor budget --budget 2 --updates 4000 --batch 500 --rows 2100 --features 24
      tormentor budget --budget 2 --epsilon 1 --batch 50 --rows 2100 --features 24
      tormentor budget --data mine.csv
    """
    check_noise(epsilon, limit, delta, noise)
    if data is not None:
        for name, value in (("--epsilon", epsilon), ("--budget", limit), ("--updates", updates),
                            ("--batch", batch), ("--rows", rows), ("--features", features)):
            if value is not None:
                raise option_problem(name, "means nothing beside --data")
        told, words = await asyncio.to_thread(_spent, data, ledger or state / "ledgers", delta)
    else:
        told, words = await asyncio.to_thread(
            _price, epsilon, limit, updates, batch, rows, features, delta, noise)
    result(told, as_json, words)


def _price(
    epsilon: float | None, limit: float | None, updates: int | None, batch: int | None,
    rows: int | None, features: int | None, delta: float, noise: Mechanism,
) -> tuple[dict[str, Any], str]:
    """What is said of releases that are to be, for a machine and for a person."""
    for name, value in (("--rows", rows), ("--features", features)):
        if value is None:
            raise option_problem(name, "is needed (or --data FILE, for what a file has spent)")
    assert rows is not None and features is not None
    batch = rows if batch is None else batch
    for name, count in (("--rows", rows), ("--batch", batch), ("--features", features),
                        ("--updates", updates)):
        if count is not None and count < 1:
            raise option_problem(name, f"must be at least 1, not {count}")
    if batch > rows:
        raise option_problem("--batch", f"is {batch:,} and there are {rows:,} rows")
    check_delta(delta, rows)
    own = delta if noise == "gaussian" else 0.0
    if epsilon is None:
        if limit is None or updates is None:
            raise option_problem("--epsilon", "is needed, or --budget and --updates")
        epsilon = affordable_epsilon(limit, delta, updates, batch, rows, features, noise)
        kind = Release(epsilon, batch, rows, features, noise, own)
    else:
        kind = Release(epsilon, batch, rows, features, noise, own)
        if updates is None:
            if limit is None:
                raise option_problem("--updates", "is needed, or --budget")
            updates = affordable(kind, limit, delta)
    total = epsilon_total({kind: updates}, delta)
    guess, sure = best_guess({kind: updates}, delta), certainty({kind: updates}, delta)
    told: dict[str, Any] = {
        "epsilon": epsilon, "noise": noise, "batch": batch, "rows": rows, "features": features,
        "updates": updates, "delta": delta, "budget": limit, "noise_ratio": kind.noise_ratio,
        "epsilon_update": kind.amplified if noise == "laplace" else None,
        "epsilon_total": total, "guess": guess, "sure": sure,
        "epsilon_total_pure": _or_none(pure_total({kind: updates}, delta)),
        "epsilon_sum": kind.amplified * updates if noise == "laplace" else None,
    }
    lines = [
        f"{updates:,} updates with {noise.capitalize()} noise of epsilon {number(epsilon)} each, "
        f"for {batch:,} rows drawn out of {rows:,}, of {features:,} numbers:",
        f"Total      epsilon {bound(total)} at delta {delta:g}",
    ]
    if noise == "laplace":
        lines.append(
            f"Otherwise  {bound(pure_total({kind: updates}, delta))}, were nothing known of the "
            f"noise but its epsilon, and {bound(kind.amplified * updates)} were they just added up")
    lines.append(f"Noise      about {number(kind.noise_ratio)} times as long as the most that the "
                 "rows can say in one update (below 1 little is lost, above 5 little is learnt)")
    if limit is not None and total > limit:
        lines.append(f"Beyond     your budget of {number(limit)}, which buys "
                     f"{affordable(kind, limit, delta):,} updates")
    facts = [wrapped(line, 0 if not i else 11) for i, line in enumerate(lines)]
    return told, "\n".join([*facts, "", *map(wrapped, in_words(total, delta, guess, sure))])


def _or_none(value: float) -> float | None:
    """JSON has no infinity."""
    return value if value < float("inf") else None


def _spent(data: Path, ledgers: Path, delta: float) -> tuple[dict[str, Any], str]:
    """What is said of a file's ledger, for a machine and for a person."""
    columns = read(data, 1)
    name = ledger_name(ledgers, identity(columns), fingerprint(data))
    counts: dict[Release, int] = {}
    tasks: list[tuple[str, int, float]] = []
    if (ledgers / f"{name}.ledger").exists():
        with Ledger(ledgers, name, read_only=True) as book:
            counts = book.counts()
            tasks = [(task, book.count(task), book.total(delta, task)) for task in book.tasks()]
    if not counts:
        told: dict[str, Any] = {"data": str(data), "ledger": None, "updates": 0,
                                "epsilon_total": 0.0, "guess": 0.5, "sure": 0.5,
                                "delta": delta, "tasks": []}
        return told, wrapped(f"Nothing was ever sent of {data}, as far as {ledgers} knows.")
    total, guess = epsilon_total(counts, delta), best_guess(counts, delta)
    sure = certainty(counts, delta)
    told = {
        "data": str(data), "ledger": str(ledgers / f"{name}.ledger"),
        "updates": sum(counts.values()), "epsilon_total": total, "guess": guess, "sure": sure,
        "delta": delta,
        "tasks": [{"task": task, "updates": count, "epsilon": cost} for task, count, cost in tasks],
    }
    lines = [f"{data} has paid for {sum(counts.values()):,} updates in all, which come to epsilon "
             f"{bound(total)} at delta {delta:g}:"]
    lines += [f"  {task[:16]}...  {count:>9,} updates, epsilon {bound(cost)} by themselves"
              for task, count, cost in tasks]
    lines += ["", *in_words(total, delta, guess, sure)]
    return told, "\n".join(wrapped(line) for line in lines)
