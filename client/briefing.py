"""What a person is told before joining: who asks, for what, with which columns, at what price."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from accord.console import plain
from accord.messages import AdmissionPuzzle, SignedTask
from accord.objective import OBJECTIVES
from accord.puzzle import expected_hashes
from accord.schema import Field
from accord.task import Task
from client.budget import affordable, epsilon_total
from client.noise import Release
from client.progress import seconds

_COLUMNS: Final = 40
_HASHES: Final = 1e6  # a second, roughly, to say how long the door takes


class Price(Struct, frozen=True):
    """What taking part costs.

    Attributes:
        per_update: epsilon of one update for the data set, after amplification.
        already: epsilon that this data has spent before, in all tasks.
        updates: how many updates the budget buys.
        total: epsilon of all that together, at delta.
    """

    per_update: float
    already: float
    updates: int
    total: float


def price(release: Release, budget: float, delta: float, already: dict[Release, int]) -> Price:
    """Reckon it; takes up to some seconds.

    Raises:
        Problem: ``BUDGET_SMALL``.
    """
    updates = affordable(release, budget, delta, already)
    counts = {**already, release: already.get(release, 0) + updates}
    before = epsilon_total(already, delta)
    return Price(release.amplified, before, updates, epsilon_total(counts, delta))


def about_task(task: Task, signed: SignedTask) -> str:
    """The task in words. Nothing in it can command a terminal."""
    training = task.training
    ends = [f"{training.max_updates:,} {'rounds' if _rounds(task) else 'updates'}"]
    if training.target_error is not None:
        ends.append(f"an error of {training.target_error:.1%}")
    if training.patience is not None:
        ends.append(f"{training.patience:,} updates that brought nothing")
    ends.append(seconds(training.deadline))
    shown = task.data.fields[:_COLUMNS]
    lines = [
        task.title,
        "",
        *([task.description, ""] if task.description else []),
        f"Signed by curator {signed.curator.hex()}",
        f"Trains           {OBJECTIVES[task.objective].words}",
        f"Clients          {task.clients.minimum:,} to {task.clients.maximum:,}, "
        + ("in rounds" if _rounds(task) else "each at its own pace"),
        f"Ends after       {', or '.join(ends)}",
        "",
        "Your file must have these columns, and no others:",
        *(_column(field, field.name == task.data.target) for field in shown),
    ]
    if len(task.data.fields) > _COLUMNS:
        lines.append(f"  ... and {len(task.data.fields) - _COLUMNS:,} more")
    return plain("\n".join(lines))


def about_price(
    price: Price, release: Release, budget: float, delta: float, task: Task,
    door: AdmissionPuzzle,
) -> str:
    """What it costs, what leaves this machine, and what never does."""
    bought = f"{price.updates:,} updates"
    if price.updates > task.training.max_updates and not _rounds(task):
        bought += f", more than this training takes ({task.training.max_updates:,})"
    before = f"\nSpent before      epsilon {price.already:.3g}, by earlier trainings with this data"
    work = seconds(expected_hashes(door.difficulty) / _HASHES)
    return (
        f"Your data         {release.rows:,} rows, {release.batch:,} drawn for each update\n"
        f"One update costs  epsilon {price.per_update:.3g} (of {release.epsilon:g} for its rows, "
        "as nobody knows which were drawn)"
        f"{before if price.already else ''}\n"
        f"The budget buys   {bought}; all of them come to epsilon {price.total:.3g} "
        f"of {budget:g} at delta {delta:g}\n"
        f"The door          a puzzle of difficulty {door.difficulty}, {work} of work\n"
        f"\n"
        f"What is sent: noised updates of {task.dimension:,} numbers, solved puzzles, and how many "
        "clients you ask for.\n"
        "What never is: your rows, how many there are, your epsilon, batch and budget."
    )


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
