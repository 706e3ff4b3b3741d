"""What to run: an experiment's name, or a small TOML file that says it.

The file has the command line's options under their names, and which cells of the experiment are
meant::

    experiment = "table2"
    seeds = 3
    data = "credit_default.csv"    # relative to this file; or "sklearn:breast_cancer", or "made"

    [cells]                        # only those whose entries are among these values
    clients = [10, 50]
    tor = [true]

It is plain data, so that whoever starts machines can write it, send it, and read it back: each
result directory holds the one that made it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from accord.problems import BAD_EXPERIMENT, BAD_OPTION, NO_FILE, Problem
from lab import credit
from lab.experiments.figures import entries
from lab.experiments.frame import Cell, find
from lab.experiments.names import EXPERIMENTS

Value = bool | int | float | str
NOTHING: Final = float("inf")
"""What stands for an entry that is null, such as the epsilon of no noise: TOML has no null."""
_MOST_BYTES: Final = 1 << 20
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
"""Keys that TOML takes without quotes."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True,
           omit_defaults=True):
    """What one run computes.

    Attributes:
        experiment: a name of :data:`lab.experiments.names.EXPERIMENTS`.
        quick: fewer and shorter cells.
        seeds: repetitions of each cell; None for the experiment's own number.
        parts: only these parts; none for all.
        data: what :func:`lab.credit.find` takes.
        jobs: processes; None for one on each core.
        output: directory of the results; relative to where the command is run.
        cells: only cells with one of these values in this entry, for each entry.
    """

    experiment: str
    quick: bool = False
    seeds: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    parts: tuple[str, ...] = ()
    data: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    jobs: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    output: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    cells: dict[str, tuple[Value, ...]] = {}


def read(path: Path) -> Plan:
    """The plan that a file holds; a path of data in it is made absolute.

    Raises:
        Problem: ``NO_FILE``, or ``BAD_EXPERIMENT`` with what is wrong.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES)
    except OSError as error:
        raise Problem(NO_FILE, path=path, why=(error.strerror or "").lower()) from None
    try:
        plan = msgspec.convert(tomllib.loads(raw.decode()), Plan)
    except UnicodeDecodeError:
        raise Problem(BAD_EXPERIMENT, path=path, why="it is not text") from None
    except tomllib.TOMLDecodeError as error:
        raise Problem(BAD_EXPERIMENT, path=path, why=f"it is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise Problem(BAD_EXPERIMENT, path=path, why=_words(str(error))) from None
    if plan.experiment not in EXPERIMENTS:
        raise Problem(BAD_EXPERIMENT, path=path, why=f"there is no experiment "
                      f"'{plan.experiment}', but {', '.join(EXPERIMENTS)}")
    if plan.data is not None and plan.data != "made" and credit.is_file(Path(plan.data)):
        plan = msgspec.structs.replace(plan, data=str(path.parent.absolute() / plan.data))
    return plan


def _words(text: str) -> str:
    return text.replace("Object", "it", 1).replace("`$.", "`").replace("`", "'")


def chosen(plan: Plan) -> list[Cell]:
    """The cells of a plan.

    Raises:
        Problem: ``BAD_OPTION``: there is no such experiment, part, entry or value.
    """
    if plan.experiment not in EXPERIMENTS:
        raise Problem(BAD_OPTION, option="NAME", what=f"is not an experiment: '{plan.experiment}'; "
                      f"there are {', '.join(EXPERIMENTS)}")
    cells = find(plan.experiment).cells(plan.quick, plan.seeds)
    named = EXPERIMENTS[plan.experiment].only
    if named:
        cells = choose(cells, named)
    known = dict.fromkeys(cell["part"] for cell in cells)
    for part in plan.parts:
        if part not in known:
            raise Problem(BAD_OPTION, option="--part", what=f"is not one of: {', '.join(known)}")
    if plan.parts:
        cells = [cell for cell in cells if cell["part"] in plan.parts]
    return choose(cells, plan.cells) if plan.cells else cells


def choose(cells: Sequence[Cell], only: Mapping[str, Sequence[Value]]) -> list[Cell]:
    """The cells of which each of these entries has one of these values.

    An entry is looked for in the cell, else in what it holds (its configuration). Infinity stands
    for null.

    Raises:
        Problem: ``BAD_OPTION``: no cell has such an entry, or none such a value, or none all.
    """
    flat = [entries(cell) for cell in cells]
    for name, values in only.items():
        there = {_plain(each[name]): each[name] for each in flat if name in each}
        option = f"[cells] {name}"
        if not there:
            known = dict.fromkeys(key for each in flat for key in each)
            raise Problem(BAD_OPTION, option=option,
                          what=f"is not an entry of its cells, which have {', '.join(known)}")
        for value in values:
            if _plain(value) not in there:
                raise Problem(BAD_OPTION, option=option, what=(
                    f"is never {_toml(value)}, but {', '.join(map(_toml, there.values()))}"))
    found = [cell for cell, each in zip(cells, flat, strict=True) if all(
        name in each and _plain(each[name]) in map(_plain, values)
        for name, values in only.items())]
    if not found:
        raise Problem(BAD_OPTION, option="[cells]", what="leaves none: no cell has all of that")
    return found


def _plain(value: Any) -> Any:
    """What is compared: 1 and 1.0 are one value, True and 1 are not, and lists are text."""
    if value is None:
        return NOTHING
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return json.dumps(value, sort_keys=True)


def written(plan: Plan, comments: Sequence[str] = ()) -> str:
    """A plan as TOML, which :func:`read` reads back.

    Args:
        plan: what is not said of it is not written.
        comments: lines that go above.
    """
    told: dict[str, Any] = msgspec.to_builtins(plan)
    only = told.pop("cells", {})
    lines = [f"# {line}" for line in comments]
    lines += [f"{name} = {_toml(value)}" for name, value in told.items()]
    if only:
        lines += ["", "[cells]", *(
            f"{name if _BARE.fullmatch(name) else _toml(name)} = {_toml(value)}"
            for name, value in only.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if value is None:
        return "inf"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return "inf" if value == NOTHING else repr(value)
    # Of what JSON has, TOML writes strings, whole numbers and booleans in the same way.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
