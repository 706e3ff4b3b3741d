"""``tormentor audit``: an attack on the client's own noise, beside what the ledger says of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from accord.console import command, json_option, result, say
from accord.problems import AUDIT_FAILED, BAD_OPTION, Problem
from accord.words import number, wrapped

if TYPE_CHECKING:
    from lab.audit import Game, Verdict, Views

TRIALS: Final = 20_000
QUICK: Final = 4_000
LEAST: Final = 500
"""Plays of a game of many updates, at least."""

_WIDTH: Final = 80
_CELLS: Final = 20_000_000
_PIECE: Final = 1000  # updates in one piece of work, at least
_PIECES: Final = 200  # in which the plays of one game are made, at most


@click.command("audit")
@click.option("--epsilon", type=click.FloatRange(0.001, 100), default=2.0, show_default=True,
              help="Privacy of one update for its batch, as of 'join'.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=5, show_default=True,
              help="Rows in a batch.")
@click.option("--rows", type=click.IntRange(1, 100_000), default=10, show_default=True,
              help="Rows in the data.")
@click.option("--dimension", type=click.IntRange(2, 10_000), default=3, show_default=True,
              help="Numbers in an update.")
@click.option("--updates", type=click.IntRange(1, 10_000), default=10, show_default=True,
              help="Updates in the longer game; the shorter one has a single update.")
@click.option("--noise", type=click.Choice(["laplace", "gaussian", "both"]), default="both",
              show_default=True, help="Which noise.")
@click.option("--trials", type=click.IntRange(100, 10_000_000),
              help="Plays with each data set; longer games have as many updates in fewer plays.  "
                   f"[{TRIALS}]")
@click.option("--delta", type=click.FloatRange(1e-10, 0.1), default=1e-5, show_default=True,
              help="At which delta epsilon is told.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95,
              show_default=True, help="That all bounds hold together.")
@click.option("--quick", is_flag=True, help=f"{QUICK} plays: seconds instead of a minute.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Processes.  [one for each core]")
@json_option
@command
async def audit(
    epsilon: float, batch: int, rows: int, dimension: int, updates: int, noise: str,
    trials: int | None, delta: float, confidence: float, quick: bool, jobs: int | None,
    as_json: bool,
) -> None:
    """Attack your own privacy, and compare with what the ledger says.

    The program that makes your updates is run thousands of times on two data sets that differ in
    one row, and an attacker who knows all else guesses which it was. From how often he is right
    follows an epsilon that updates have AT LEAST; the ledger's is what they have AT MOST. Where
    the first is above the second something is broken, and the exit status is 12.

    \b
    Example:
      tormentor audit --quick
      tormentor audit --epsilon 0.5 --batch 10 --rows 2100 --updates 100 --noise laplace
    """
    if batch > rows:
        raise Problem(BAD_OPTION, option="--batch", what=f"is {batch}, more than the {rows} rows")
    if rows * dimension > _CELLS:
        raise Problem(BAD_OPTION, option="--rows",
                      what=f"times --dimension is more than {_CELLS:,} numbers")
    from client.noise import Mechanism, Release
    from lab.audit import Game, Others

    mechanisms: dict[str, tuple[Mechanism, ...]] = {"both": ("laplace", "gaussian"),
                                                    "laplace": ("laplace",),
                                                    "gaussian": ("gaussian",)}
    others: tuple[Others, ...] = ("against", "none")
    games = [
        Game(Release(epsilon, batch, rows, dimension, mechanism,
                     delta if mechanism == "gaussian" else 0.0), length, other)
        for mechanism in mechanisms[noise] for length in dict.fromkeys([1, updates])
        for other in others]
    trials = trials or (QUICK if quick else TRIALS)
    began = time.monotonic()
    with _progress() as tell:
        # Each bound may err with its part of the probability, so that all hold together.
        verdicts = await _play(games, trials, delta, (1 - confidence) / len(games),
                               jobs or os.cpu_count() or 1, tell)
    _tell(verdicts, delta, confidence, trials, time.monotonic() - began, as_json)


def plays_of(game: Game, trials: int) -> int:
    """How often a game is played with each data set."""
    return trials if game.updates == 1 else max(LEAST, trials // game.updates)


async def _play(games: list[Game], trials: int, delta: float, error: float, jobs: int,
                tell: Callable[[int, int], None]) -> list[Verdict]:
    """Play all games in so many processes."""
    from lab.audit import REHEARSALS, Views
    from lab.experiments.frame import workers

    loop = asyncio.get_running_loop()
    total = sum((2 * plays_of(game, trials) + REHEARSALS) * game.updates for game in games)
    done = 0
    tell(done, total)
    with workers(jobs) as pool:
        async def some(game: Game, plays: int, odd: bool) -> Views:
            nonlocal done
            views = await loop.run_in_executor(pool, _some, game, plays, odd)
            done += plays * game.updates
            tell(done, total)
            return views

        async def all_of(game: Game, odd: bool) -> Views:
            plays = plays_of(game, trials) + (0 if odd else REHEARSALS)
            size = max(1, _PIECE // game.updates, plays // _PIECES)
            return Views.joined(await asyncio.gather(
                *(some(game, min(size, plays - first), odd)
                  for first in range(0, plays, size))))

        async def one(game: Game) -> Verdict:
            even, odd = await asyncio.gather(all_of(game, False), all_of(game, True))
            return await loop.run_in_executor(pool, _judge, game, even, odd, delta, error)

        return list(await asyncio.gather(*(one(game) for game in games)))


def _some(game: Game, plays: int, odd: bool) -> Views:
    """Some plays, in a worker."""
    import numpy as np

    from lab.audit import play

    return play(game, plays, odd, np.random.default_rng())


def _judge(game: Game, even: Views, odd: Views, delta: float, error: float) -> Verdict:
    """The results, in a worker."""
    import numpy as np

    from lab.audit import judge

    return judge(game, even, odd, delta, error, np.random.default_rng())


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere a line at each tenth."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        with Progress("attacking", BarColumn(), MofNCompleteColumn(), "updates",
                      TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    said = -1

    def tell(done: int, total: int) -> None:
        nonlocal said
        if 10 * done // total > said:
            said = 10 * done // total
            say(f"audit: {done:,} of {total:,} updates made")

    yield tell


# -- what is told ----------------------------------------------------------------------------

def _tell(verdicts: list[Verdict], delta: float, confidence: float, trials: int, seconds: float,
          as_json: bool) -> None:
    """Print the result; end with a problem's status when a bound is above the ledger's."""
    broken = [each for each in verdicts if each.broken]
    problem = None
    if broken:
        worst = max(broken, key=lambda each: each.finding.epsilon - each.ledger)
        problem = Problem(
            AUDIT_FAILED, shown=number(worst.finding.epsilon), ledger=number(worst.ledger),
            game=f"{worst.game.kind.mechanism} noise, updates: {worst.game.updates}, the attacker "
                 f"watched the {worst.finding.event.score}")
    if as_json:
        told: dict[str, Any] = {
            "delta": delta, "confidence": confidence, "seconds": round(seconds, 1),
            "games": [_plain(each, delta) for each in verdicts], "failed": bool(broken)}
        if problem is not None:
            told |= {"error": problem.kind.code, "sentence": problem.sentence}
        result(told, True, "")
        if problem is not None:
            raise SystemExit(problem.kind.exit)
        return
    _show(verdicts, delta, confidence, trials)
    if problem is not None:
        raise problem


def _at_most(verdict: Verdict, delta: float) -> float:
    """How often an attacker is right at most, by the ledger."""
    from client.accounting import best_guess

    return best_guess({verdict.game.kind: verdict.game.updates}, delta)


def _plain(verdict: Verdict, delta: float) -> dict[str, Any]:
    """A verdict for a machine."""
    game, finding = verdict.game, verdict.finding
    return {
        "noise": game.kind.mechanism, "epsilon": game.kind.epsilon, "batch": game.kind.batch,
        "rows": game.kind.rows, "dimension": game.kind.dimension, "updates": game.updates,
        "others": game.others, "plays": finding.plays, "shown": finding.epsilon,
        "ideal": verdict.ideal.epsilon, "ideal_spread": verdict.ideal.spread,
        "ledger": verdict.ledger, "of_ideal": _ratio(finding.epsilon, verdict.ideal.epsilon),
        "of_ledger": _ratio(finding.epsilon, verdict.ledger), "watched": finding.event.score,
        "hits": finding.hits, "false_alarms": finding.alarms, "right": finding.right,
        "ideal_right": verdict.ideal.right, "right_at_most": _at_most(verdict, delta),
        "broken": verdict.broken,
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _show(verdicts: list[Verdict], delta: float, confidence: float, trials: int) -> None:
    """The results for a person."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for name in ("noise", "up-\ndates", "other\nrows", "ε\nshown", "ideal", "in\nledger",
                 "of\nideal", "of\nledger", "right", "at\nmost", ""):
        table.add_column(name, justify="left" if name in ("noise", "other\nrows") else "right")
    for each in verdicts:
        shown = each.finding.epsilon
        ratios = (_ratio(shown, each.ideal.epsilon), _ratio(shown, each.ledger))
        table.add_row(
            each.game.kind.mechanism, str(each.game.updates), each.game.others,
            f"[bold]{shown:.2f}[/]", f"{each.ideal.epsilon:.2f}", f"{each.ledger:.2f}",
            *("" if r is None else f"{r:.0%}" for r in ratios),
            f"{each.finding.right:.1%}", f"{_at_most(each, delta):.1%}",
            "[red]BROKEN[/]" if each.broken else "[green]holds[/]")
    Console(width=None if Console().is_terminal else _WIDTH).print(table)
    click.echo(_words(verdicts, delta, confidence, trials))


def _words(verdicts: list[Verdict], delta: float, confidence: float, trials: int) -> str:
    """What the table says, for somebody who has never heard of epsilon."""
    lines = ["An attacker knows everything but one row, which is one of two opposite ones, sees "
             "all updates and guesses. A coin would be right half of the time."]
    for mechanism in dict.fromkeys(each.game.kind.mechanism for each in verdicts):
        best = max((each for each in verdicts if each.game.kind.mechanism == mechanism),
                   key=lambda each: each.finding.right)
        count = best.game.updates
        lines.append(
            f"- With {mechanism} noise, after {count} update{'s' * (count > 1)}, he was right "
            f"{best.finding.right:.1%} of the time (the best attack there is, on flawless code: "
            f"about {best.ideal.right:.1%}); the ledger says at most "
            f"{_at_most(best, delta):.1%}.")
    lines += [
        "",
        "ε shown: the updates give away at least this. ideal: what the best attack on flawless "
        f"code shows in as many plays ({trials:,} with each data set; fewer of long games). in "
        f"ledger: what the client says is never exceeded, at delta {delta:g}. With more --trials "
        "the first two come closer to the third. right: guesses that were; at most: what "
        "the ledger allows.",
        f"All bounds hold together with a confidence of {100 * confidence:.4g}%: of all audits of "
        f"flawless code at most {100 * (1 - confidence):.2g}% raise an alarm. An audit finds "
        "mistakes; it cannot prove that there are none.",
    ]
    if not any(each.broken for each in verdicts):
        lines += ["", "No attack showed more than the ledger says."]
    return "\n".join(wrapped(line, 2 if line.startswith("-") else 0) for line in lines)
