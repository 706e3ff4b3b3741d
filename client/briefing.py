"""What a person is told before joining: who asks, for what, with which columns, at what price."""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

from accord.console import plain
from accord.messages import AdmissionPuzzle, SignedTask
from accord.objective import OBJECTIVES
from accord.puzzle import expected_hashes
from accord.schema import Field
from accord.task import Task
from accord.words import bound, duration, number, wrapped
from client.accounting import affordable, best_guess, certainty, epsilon_total
from client.meaning import in_words
from client.noise import Release

_COLUMNS: Final = 40
_HASHES: Final = 1e6  # a second, roughly, to say how long the door takes
_LOUD: Final = 3.0  # noise so many times as long as the signal needs very many updates
_HANG: Final = 12
_DIGITS: Final = 16  # of a digest: enough to compare with what the curator says


class Price(Struct, frozen=True):
    """What taking part costs.

    Attributes:
        per_update: epsilon of one update for the data set, after sampling, those of its steps just
            added up; None where there is none without a delta.
        already: epsilon that this data has spent before, in all tasks.
        updates: how many updates the budget buys; the last one may have fewer steps.
        steps: how many private steps, which are releases, those are.
        total: epsilon of all that together, at delta.
        expected: how many updates are ours until training ends, if it goes as planned.
        projected: epsilon in all after those, or after all that the budget buys, if fewer.
        guess: how often the best attacker is right then (:func:`client.accounting.best_guess`).
        sure: how sure it can become (:func:`client.accounting.certainty`).
    """

    per_update: float | None
    already: float
    updates: int
    steps: int
    total: float
    expected: int
    projected: float
    guess: float
    sure: float


def price(
    release: Release, budget: float, delta: float, already: dict[Release, int], expected: int,
    local_steps: int = 1,
) -> Price:
    """Reckon it; takes up to some seconds.

    Args:
        release: one private step.
        budget: what may be spent in all, at ``delta``.
        delta: as for :func:`client.accounting.epsilon_total`.
        already: what this data has released before.
        expected: how many updates the training is likely to take of ours.
        local_steps: steps of an update.

    Raises:
        Problem: ``BUDGET_SMALL``.
    """
    steps = affordable(release, budget, delta, already)

    def after(more: int) -> dict[Release, int]:
        return {**already, release: already.get(release, 0) + more}

    likely = after(min(expected * local_steps, steps))
    each = release.amplified * local_steps if release.mechanism == "laplace" else None
    return Price(each, epsilon_total(already, delta), -(-steps // local_steps), steps,
                 epsilon_total(after(steps), delta),
                 expected, epsilon_total(likely, delta), best_guess(likely, delta),
                 certainty(likely, delta))


def about_task(task: Task, signed: SignedTask) -> str:
    """The task in words. Nothing in it can command a terminal."""
    training = task.training
    ends = [f"{training.max_updates:,} {_kind(task)}"]
    if training.target_error is not None:
        ends.append(f"an error of {training.target_error:.1%}")
    if training.patience is not None:
        ends.append(f"{training.patience:,} updates that brought nothing")
    ends.append(duration(training.deadline))
    shown = task.data.fields[:_COLUMNS]
    about = [wrapped(task.title), ""]
    if task.description:
        about += [wrapped(task.description), ""]
    steps = ("" if training.local_steps == 1 else
             f", in updates of up to {training.local_steps:,} private steps")
    facts = [
        f"Curator     {signed.curator.hex()}",
        f"Trains      {OBJECTIVES[task.objective].words}",
        f"Clients     {task.clients.minimum:,} to {task.clients.maximum:,}, "
        + (f"in rounds (their {training.aggregate})" if _rounds(task) else "each at its own pace")
        + steps,
        f"Ends after  {', or '.join(ends)}",
        f"Validation  {_validation_set(task)}",
    ]
    if training.reply_delay:
        facts.append(f"Pace        each update and its answer are held back at random, up to "
                     f"{number(training.reply_delay)} s, so that their moments tell less")
    about += [wrapped(fact, _HANG) for fact in facts]
    about += ["", "Your file must have these columns, and no others:"]
    about += [wrapped(_column(field, field.name == task.data.target), 4) for field in shown]
    if len(task.data.fields) > _COLUMNS:
        about.append(f"  ... and {len(task.data.fields) - _COLUMNS:,} more")
    return plain("\n".join(about))


def about_price(
    price: Price, release: Release, budget: float, delta: float, task: Task,
    door: AdmissionPuzzle, delay: float = 0.0, local_steps: int = 1,
) -> str:
    """What it costs, what leaves this machine, and what never does."""
    rounds = _kind(task)
    whole = (f"Your budget of {number(budget)} at delta {delta:g} buys {price.updates:,} {rounds} "
             f"of yours. You are likely to make {price.expected:,} at most, ")
    if price.updates < price.expected:
        whole += "so you would drop out before the training ends."
    else:
        whole += (f"which cost {bound(price.projected)} together. (Costs do not add up: many "
                  "noises hide each other.)")
    drawn = "update" if local_steps == 1 else "step"
    lines = [
        f"Your data   {release.rows:,} rows, {release.batch:,} drawn for each {drawn}",
        f"Noise       {release.mechanism.capitalize()}, of epsilon {number(release.epsilon)} for "
        f"the rows drawn: about {number(release.noise_ratio)} times as long as the most that they "
        "can say" + ("" if local_steps == 1 else
                     f", and {number(release.noise_ratio / math.sqrt(local_steps))} times in the "
                     "mean of an update"),
        f"Price       {whole}",
    ]
    if local_steps > 1:
        lines.insert(1, f"Steps       each update is {local_steps:,} private steps; each of them "
                        "is drawn, noised and paid for by itself. With fewer (--local-steps) "
                        "each has less noise, and an update says less")
    lines += [f"{'Meaning' if not i else '':<12}{text}" for i, text in enumerate(
        in_words(price.projected, delta, price.guess, price.sure))]
    if delay:
        lines.append(f"Delay       with --delay {delay:g} you make fewer updates than others: say "
                     "how many with --updates, and the noise is less")
    if price.already:
        lines.append(f"Before      epsilon {bound(price.already)} was spent by earlier trainings "
                     "with this data, and is in these sums")
    lines += [
        f"The door    a puzzle of difficulty {door.difficulty}, "
        f"{duration(max(1.0, expected_hashes(door.difficulty) / _HASHES))} of work",
        f"Sent        noised updates of {task.dimension:,} numbers, how many steps each is, solved "
        "puzzles, and how many clients you ask for",
        "Never sent  your rows, how many there are, your epsilon, batch and budget. But the size "
        "of the noise shows: who knows your budget can tell from it about how many rows you have",
    ]
    return "\n".join(wrapped(line, _HANG) for line in lines)


def most_strikes(task: Task, max_difficulty: int) -> int | None:
    """At how many strikes it is over for a client, at the latest; None where nobody is judged.

    Each strike makes the updates' puzzles one step harder, and the client itself stops at the
    first one that is harder than it allows; or the broker puts it out before.
    """
    if task.validation.test == "none":
        return None
    own = max(0, max_difficulty - task.puzzles.update + 1)
    return min(own, task.validation.evict) if task.validation.evict else own


def about_judging(task: Task, max_difficulty: int) -> str:
    """How the broker judges updates, what that can cost an honest client, and what to do then."""
    rules = task.validation
    judged = {
        "sequential": "Your updates are scored on the curator's validation set, and evidence adds "
        "up for each client (a sequential test). The chance that a client whose updates do not "
        f"oppose that set is struck is at most {rules.false_alarm:.2g}.",
        "rounds": f"A share of {rules.rate:.2g} of the rounds is judged: by how much each client's "
        "updates make the model worse on the curator's validation set.",
        "none": "Nobody is struck or put out."
        + ("" if rules.digest else " There is no validation set to judge updates by."),
    }[rules.test]
    screened = {
        "direction": " Of single updates what can only be noise is cut, and those that oppose "
        "that set are ignored.",
        "length": " Of single updates what can only be noise is cut.",
        "none": "",
    }[rules.screen]
    lines = [f"Judged      {judged}{screened}"]
    strikes = most_strikes(task, max_difficulty)
    if strikes is not None:
        many = "" if rules.evict == 1 else "s"
        out = f"; after {rules.evict} strike{many} the broker puts you out" if rules.evict else ""
        lines += [
            f"Struck      Each strike makes your puzzles 16 times longer{out}.",
            "At worst    If that set is junk, honest clients are struck too. You can lose the work "
            "of harder puzzles, your place, and the epsilon of updates that change nothing; not "
            f"your rows. {_bound(task, max_difficulty, strikes)}",
            "Your wish   --leave-if-struck leaves at your first strike, --leave-if-share 0.5 when "
            "half of the judged clients are struck.",
        ]
    return "\n".join(wrapped(line, _HANG) for line in lines)


def _bound(task: Task, max_difficulty: int, strikes: int) -> str:
    many = "" if strikes == 1 else "s"
    if not strikes:
        return (f"From the start, puzzles are harder than your --max-difficulty {max_difficulty}: "
                "you would stop at the first.")
    if strikes == task.validation.evict:
        return f"It ends after {strikes} strike{many}, when you are put out."
    return (f"It ends after {strikes} strike{many}, when puzzles are harder than your "
            f"--max-difficulty {max_difficulty}.")


def _validation_set(task: Task) -> str:
    digest = task.validation.digest
    if digest:
        return f"the curator's set, with the digest {digest[:_DIGITS]}..."
    return (f"none: aggregated by {task.training.aggregate}, which withstands only a minority "
            "of harmful clients, where the others' rows are alike")


def about_noise(release: Release, local_steps: int = 1) -> str | None:
    """A warning where the noise of one update, of so many steps, drowns what it says; None where
    it does not."""
    ratio = release.noise_ratio / math.sqrt(local_steps)
    if ratio < _LOUD:
        return None
    more = ("More rows, fewer --updates or a larger --budget make it shorter."
            if release.batch == release.rows else
            f"A larger --batch (of {release.rows:,} rows) or a larger total makes it shorter.")
    return wrapped(
        f"The noise of one update is about {number(ratio)} times as long as the most that your "
        f"rows can say in it, so little may be learnt. {more}")


def _kind(task: Task) -> str:
    return "rounds" if _rounds(task) else "updates"


def _rounds(task: Task) -> bool:
    return task.training.mode == "synchronous"


def _column(field: Field, target: bool) -> str:
    limits = field.constraints
    if limits.enum is not None:
        shown = " | ".join(limits.enum[:6]) + (" | ..." if len(limits.enum) > 6 else "")
    elif limits.minimum is None and limits.maximum is None:
        shown = ""
    else:
        low = "" if limits.minimum is None else f"{limits.minimum:g}"
        high = "" if limits.maximum is None else f"{limits.maximum:g}"
        shown = f"{low} ... {high}"
    kind = f"{field.type} {shown}".strip()
    about = " ".join(part for part in ("(the answer)" if target else "", field.description) if part)
    return f"  {field.name:<20} {kind:<28} {about}".rstrip()
