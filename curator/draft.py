"""A commented task file written from a curator's own table: ``tormentor curate --init``.

The types are guessed from the cells, and every setting is there with its default and a line on
what it means, so that what remains is to read it and change what is wrong. The file is accepted
as it stands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from accord.problems import BAD_OPTION, BAD_TABLE, ONE_CLASS, Problem
from accord.schema import MISSING
from accord.table import Columns
from accord.task import Clients, Puzzles, Training, Validation
from curator.definition import suggestion

MAX_VALUES: Final = 50
"""A text column with more different values is no category, and is left out."""
_FEW: Final = 12
"""A column of numbers with at most so many different whole ones may be a category."""
_TITLE_LETTERS: Final = 200
_NAME_LETTERS: Final = 100
_HUGE: Final = 1e100
_TAIL: Final = 5.0
"""A tail is long when it reaches beyond so many standard deviations from the mean."""
_LONG: Final = 10
_YES: Final = ("yes", "true", "1", "y", "positive", "pos", "+")
_BOOLEANS: Final = frozenset({"true", "false", "yes", "no", "0", "1"})

_SECTIONS: Final[tuple[tuple[str, str, Struct, dict[str, str]], ...]] = (
    ("training", "How the model is trained.", Training(), {
        "mode": "'asynchronous': each update is applied as it comes; 'synchronous': in rounds",
        "aggregate": "what a round makes of its updates: 'mean', or, without a validation set, "
                     "'median', 'trimmed-mean' or 'krum'",
        "step": "length of the first step (no unit)",
        "schedule": "how a client's step shrinks: 'constant', '1/t' or '1/sqrt(t)'",
        "regularisation": "L2 penalty, 0 to 1 (no unit)",
        "clip": "bound on each example's gradient; the clients' noise is scaled to it",
        "max_norm": "largest length of a step; longer updates are refused",
        "local_steps": "most private steps that a client may make for one update, 1 to 1000: more "
                       "of them for each way through Tor. Raise it (10, 50) where clients are many "
                       "or Tor is slow, and make 'step' shorter with it (0.3, 0.1), as many "
                       "clients' steps from the same weights add up; one update then weighs as "
                       "much as so many, before anybody has judged it",
        "precision": "how weights and updates travel: 'float32', or 'float16' for half of the "
                     "bytes and three digits of each number",
        "max_updates": "training ends after so many updates (synchronous: rounds)",
        "target_error": "or at this share of wrong answers on the validation set, 0 to 1",
        "patience": "or when so many updates brought no lower validation loss",
        "deadline": "or so many seconds after training first began",
        "max_pause": "or when it had to pause for so many seconds because clients had gone",
        "round_seconds": "a synchronous round waits so many seconds for silent clients",
        "reply_delay": "of 'asynchronous': messages are held back at random for up to so many "
                       "seconds, so that nobody can single out an update by its time (0.5 is "
                       "usual)",
    }),
    ("clients", "Who may take part.", Clients(), {
        "minimum": "training begins with so many active clients, and pauses below",
        "maximum": "most clients at a time",
        "silence": "a client not heard of for so many seconds is not active",
    }),
    ("puzzles", "Proof of work: trailing hexadecimal zeros; each more takes 16 times longer.",
     Puzzles(), {
         "admission": "zeros, at the door (4 takes about 0.1 s, 6 about 20 s)",
         "update": "zeros, for every update; each strike adds one",
     }),
    ("validation", "How updates are judged on your validation set.", Validation(), {
        "test": "'sequential': every update is scored and evidence adds up for each client; "
                "'rounds': influence on rounds of updates; 'none'",
        "false_alarm": "of 'sequential': most chance, over the whole training, of a strike "
                       "against a client whose updates do not oppose the set",
        "screen": "of single updates: 'length': what can only be noise is cut; 'direction': and "
                  "those that point uphill on your set are ignored; 'none'",
        "evict": "a client with so many strikes is put out; 0 for never",
        "rate": "of 'rounds': the probability that a round is judged, 0 to 1",
        "metric": "of 'rounds': influence is measured in 'error' (share of wrong answers) or "
                  "'loss'",
        "threshold": "of 'rounds': a client whose influences add up to less than minus this gets "
                     "a strike",
    }),
)
_FILLED_IN: Final = ("digest",)
"""Settings that are in no file: the curator's command fills them in when it signs."""
_EXAMPLES: Final = {"target_error": "0.2", "patience": "500"}
"""For settings that are off unless given: what a line that is taken out of its comment says."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A task file as text, and what its curator should know of it.

    Attributes:
        text: the file.
        notes: one sentence each: columns left out, cells that are empty.
    """

    text: str
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Column:
    """The lines of one ``[[data.fields]]``."""

    name: str
    lines: list[str]


class _LeftOut(Exception):
    """Why a column cannot be learnt from."""


def draft(columns: Columns, path: Path, target: str | None, title: str | None = None) -> Draft:
    """Write a task file for a table.

    Args:
        columns: its cells by column name.
        path: for problems.
        target: the column that holds the answer; without, the last.
        title: of the task; without, :func:`default_title`.

    Raises:
        Problem: ``BAD_OPTION`` for a target that is not there or not a yes-or-no answer,
            or for a title that is none, ``ONE_CLASS``, and ``BAD_TABLE`` for a second header or
            when no column can be used.
    """
    if title is not None and not (0 < len(title) <= _TITLE_LETTERS and title.isprintable()):
        raise Problem(BAD_OPTION, option="--title",
                      what=f"must be one line of 1 to {_TITLE_LETTERS} characters")
    if _second_header(columns):
        raise Problem(BAD_TABLE, path=path,
                      why="line 2 looks like a second header; keep one of the two")
    answer = next(reversed(columns)) if target is None else target
    if answer not in columns:
        raise Problem(BAD_OPTION, option=f"--target {answer}",
                      what=f"is not a column of {path}{suggestion(answer, columns)}"
                      )
    notes: list[str] = []
    column, positive = _target(answer, columns[answer], path, notes)
    used = []
    for name, cells in columns.items():
        try:
            used.append(column if name == answer else _feature(name, cells, notes))
        except _LeftOut as why:
            notes.append(
                f"Column '{name[:40]}' is left out: {why}. Take it out of the data files too.")
    if len(used) < 2:
        raise Problem(BAD_TABLE, path=path, why="none of its columns can be learnt from")
    lines = _head(title or default_title(answer), answer, positive)
    for field in used:
        lines += ["", "[[data.fields]]", f"name = {_text(field.name)}", *field.lines]
    for name, meaning, defaults, comments in _SECTIONS:
        lines += ["", f"# {meaning}", f"[{name}]", *_settings(defaults, comments)]
    return Draft("\n".join(lines) + "\n", notes)


def default_title(target: str) -> str:
    """What a task is called that its curator has not named."""
    return f"Predict {target}"


def _second_header(columns: Columns) -> bool:
    """Whether the first row holds a word of its own in each column, and numbers follow in some."""
    for first, *rest in columns.values():
        if first in rest or first.strip().lower() in MISSING or _numbers([first]) is not None:
            return False
    return any(rest and _numbers(rest) is not None for _, *rest in columns.values())


def _head(title: str, answer: str, positive: str | None) -> list[str]:
    lines = [
        "# A TorMentor task, drafted from a table. Everything in this file but its comments is",
        "# public: everyone who is asked to join reads it. Read it, change what is wrong, then:",
        "#   tormentor curate THIS.toml --validation ROWS.csv --broker ONION",
        "",
        f"title = {_text(title)}",
        'description = ""  # what the model is for, for the people who are asked to join',
        'objective = "logistic"  # what is learnt: a yes-or-no answer from a weighted sum',
        "",
        "# The columns that a file must have. The constants below (minimum, maximum, center and",
        "# scale: the mean and the standard deviation, rounded) derive from your own file and",
        "# become public with the task; change them where that says too much. Ranges are wider",
        "# than what you have, on purpose: they are there to find cells that cannot be right, and",
        "# must not refuse the rows of others, which are unlike yours.",
        "[data]",
        f"target = {_text(answer)}  # the column that holds the answer",
    ]
    if positive is not None:
        lines.append(f"positive = {_text(positive)}  # the answer that counts as yes")
    return lines


def _settings(defaults: Struct, comments: dict[str, str]) -> list[str]:
    lines = []
    for name in defaults.__struct_fields__:
        if name in _FILLED_IN:
            continue
        value = getattr(defaults, name)
        if value is None:
            lines.append(f"# {name} = {_EXAMPLES[name]}  # {comments[name]} (off)")
        else:
            shown = _text(value) if isinstance(value, str) else _number(value)
            lines.append(f"{name} = {shown}  # {comments[name]}")
    return lines


# -- guessing --------------------------------------------------------------------------------
def _target(
    name: str, cells: Sequence[str], path: Path, notes: list[str]
) -> tuple[_Column, str | None]:
    """The target's column and, when its answers are words, the one that counts as yes."""
    if not _is_name(name):
        raise Problem(BAD_OPTION, option="--target", what="is empty, too long or not printable")
    present = [text for cell in cells if (text := cell.strip()).lower() not in MISSING]
    _note_missing(name, len(cells) - len(present), notes)
    values = sorted(set(present))
    if len(values) == 1:
        raise Problem(ONE_CLASS, path=path, column=name, value=values[0])
    if {value.lower() for value in values} <= _BOOLEANS and _two_answers(values):
        return _Column(name, ['type = "boolean"']), None
    if len(values) != 2 or not all(map(_is_name, values)):
        raise Problem(BAD_OPTION, option=f"--target {name}",
                      what=f"has {len(values)} different values in {path} and an answer has "
                      "two; name the column that holds a yes-or-no answer")
    rarer = min(values, key=present.count)
    positive = next((v for v in values if v.lower() in _YES), rarer)
    return _Column(name, _strings(values)), positive


def _two_answers(values: Sequence[str]) -> bool:
    yes = {value.lower() in _YES for value in values}
    return len(yes) == 2


def _feature(name: str, cells: Sequence[str], notes: list[str]) -> _Column:
    """A column that is learnt from.

    Raises:
        _LeftOut: when it cannot be.
    """
    present = [text for cell in cells if (text := cell.strip()).lower() not in MISSING]
    if not _is_name(name):
        raise _LeftOut("its name is empty, too long or not printable")
    if not present:
        raise _LeftOut("it is empty")
    numbers = _numbers(present)
    if numbers is None:
        # In text, 'none' may well be a value like others; only an empty cell is missing.
        present = [text for cell in cells if (text := cell.strip())]
    values = sorted(set(present))
    if {value.lower() for value in values} <= _BOOLEANS and _two_answers(values):
        lines = ['type = "boolean"']
    elif numbers is not None:
        if np.abs(numbers).max() > _HUGE:
            raise _LeftOut("its numbers are too large")
        whole = all(value.removeprefix("-").isdigit() for value in values)
        if whole and len(numbers) > 2 and bool((np.diff(numbers) == 1).all()):
            raise _LeftOut("it only numbers the rows")
        lines = [f'type = "{"integer" if whole else "number"}"', *_range(numbers)]
        if 2 <= len(values) <= _FEW and 2 * len(values) <= len(numbers) and bool(
                (numbers == numbers.round()).all()):
            lines += _perhaps_category(sorted(values, key=float))
    elif len(values) > MAX_VALUES:
        raise _LeftOut(f"it has {len(values):,} different texts")
    elif len(values) < 2:
        raise _LeftOut("it is the same in every row")
    elif not all(map(_is_name, values)):
        raise _LeftOut("its texts are too long for categories, or not printable")
    else:
        lines = _strings(values)
    _note_missing(name, len(cells) - len(present), notes)
    return _Column(name, lines)


def _perhaps_category(values: Sequence[str]) -> list[str]:
    """Comments that say how to make a column of few numbers a category."""
    return [f"# It has {len(values)} different values. If they name kinds and are no amounts, put",
            "# these two lines in place of type, constraints, center and scale, with every value",
            "# that others may have:",
            *(f"#   {line}" for line in _strings(values))]


def _is_name(text: str) -> bool:
    """Whether a task may name a column or a category so."""
    return 0 < len(text) <= _NAME_LETTERS and text.isprintable()


def _note_missing(name: str, count: int, notes: list[str]) -> None:
    if count:
        notes.append(
            f"Column '{name}' has {count:,} empty cells; rows with one will be refused.")


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    try:
        numbers = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return numbers if bool(np.isfinite(numbers).all()) else None


def _range(numbers: np.ndarray) -> list[str]:
    """``constraints``, ``center`` and ``scale`` of a column of numbers."""
    low, high, center, scale = constants(numbers)
    return [f"constraints = {{ minimum = {_number(low)}, maximum = {_number(high)} }}",
            f"center = {_number(center)}", f"scale = {_number(scale)}"]


def constants(numbers: np.ndarray) -> tuple[float, float, float, float]:
    """Public constants for a column: minimum, maximum, center, scale.

    The range is to find cells that cannot be right, and must not refuse others' rows that are only
    unlike one's own: it is the column's own, as much again on either side, ten times as much
    where the tail is long, rounded outwards to its width's leading digit, and not extended below
    0 for numbers that never are. The scale is the standard deviation to 3 significant digits; the
    center is the mean, rounded where the scale is: a mean of 2015 years with a deviation of 2
    needs its fourth digit.
    """
    low, high = float(numbers.min()), float(numbers.max())
    deviation = float(numbers.std())
    span = high - low
    if span <= 0 or deviation < 1e-100 or deviation < 1e-12 * abs(high):
        span = max(1.0, abs(high))  # the same in every row, or nearly: any range will do
        deviation = 1.0
    step = Decimal(10) ** math.floor(math.log10(span))
    mean = float(numbers.mean())
    below = Decimal(span) * (_LONG if mean - low > _TAIL * deviation else 1)
    above = Decimal(span) * (_LONG if high - mean > _TAIL * deviation else 1)
    least, most = (Decimal(low) - below) / step, (Decimal(high) + above) / step
    least, most = least.to_integral_value(ROUND_FLOOR), most.to_integral_value(ROUND_CEILING)
    if low >= 0:
        least = max(least, Decimal(0))
    places = 2 - math.floor(math.log10(deviation))
    center = round(mean, places)
    return float(least * step), float(most * step), center, float(f"{deviation:.3g}")


# -- TOML ------------------------------------------------------------------------------------
def _strings(values: Sequence[str]) -> list[str]:
    return ['type = "string"', f"constraints = {{ enum = [{', '.join(map(_text, values))}] }}"]


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _number(value: float) -> str:
    """A TOML integer where it is one, else a float."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return msgspec.json.encode(value).decode()
