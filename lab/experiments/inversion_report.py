"""What a person sees of the experiments on inversion: tables and plots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median, pstdev
from typing import Any, Final

from rich import box
from rich.console import RenderableType
from rich.table import Table

from lab.experiments import drawing
from lab.experiments.frame import Finished
from lab.experiments.inversion_course import DELTA
from lab.experiments.statistics import mean

ATTACKS: Final = ("paper", "moments", "informed")
SEATS: Final = ("client", "broker")
_VICTIMS: Final = {
    "flipped": "a victim whose labels are all turned round (the paper's)",
    "ordinary": "a victim like everybody else",
    "unlike": "a victim half of whose rows are ones",
}
_PAPER: Final = {("zeros", 1.0): "> 10", ("honest", 1.0): "> 10",
                 ("zeros", 5.0): "less than honest", ("zeros", None): "less than honest"}
"""In its words (7.4), by what the attacker sends and epsilon; it has no other figures."""
_GLOBAL: Final = {"flipped": " (the paper: 95.4 %)", "ordinary": " (the paper: 4.4 %)"}
_AMONG: Final = {0: "about 20", 1: "about 40"}
_COLOURS: Final = ("#7d4698", "#c0572b", "#2b7bba", "#3a8f3a", "#555555", "#b8860b")

Groups = dict[Any, list[Finished]]
"""Cells by what they have in common."""


def tables(finished: Sequence[Finished]) -> list[RenderableType]:
    """All tables, those without cells left out."""
    parts = _group(finished, lambda f: f.cell["part"])
    makers: Mapping[str, Callable[[list[Finished]], list[RenderableType]]] = {
        "ideal": _ideal, "rows": _rows, "repeat": _repeat, "members": _members,
        "bystanders": _bystanders}
    return [table for part, maker in makers.items() if parts.get(part)
            for table in maker(parts[part])]


def _group(finished: Iterable[Finished], key: Callable[[Finished], Hashable]) -> Groups:
    groups: Groups = defaultdict(list)
    for each in finished:
        groups[key(each)].append(each)
    return groups


def _by(*names: str) -> Callable[[Finished], Hashable]:
    """Groups cells by these entries of their setting, or else of the cell."""
    return lambda f: tuple(f.cell.get("setting", f.cell)[name] for name in names)


def _table(title: str, *columns: str, meaning: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
                  caption=f"For you who give data: {meaning}", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _epsilon(value: float | None) -> str:
    return "∞" if value is None else f"{value:g}"


def _ledger(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3g}"


def _middle(group: Sequence[Finished], who: str, measure: str = "disagreement") -> float:
    """The median of the seeds."""
    return median(float(f.result[who][measure]) for f in group)


def advantage(group: Sequence[Finished], who: str, measure: str = "disagreement") -> float:
    """By how much less an attack errs than the best guess of the same seed: the median of the
    seeds, above 0 where something was learnt."""
    return median(float(f.result["guess"][measure] - f.result[who][measure]) for f in group)


def _both(group: Sequence[Finished], who: str) -> str:
    spread = pstdev(float(f.result[who]["disagreement"]) for f in group)
    return (f"{100 * _middle(group, who):.1f} ± {100 * spread:.1f} "
            f"({100 * advantage(group, who):+.1f})")


def _most(groups: Iterable[Sequence[Finished]], seats: Sequence[str]) -> str:
    """The greatest advantage of any attack from these seats, for each epsilon."""
    most: dict[float | None, float] = {}
    for group in groups:
        epsilon = group[0].cell["setting"]["epsilon"]
        found = max(advantage(group, f"{seat} {name}") for seat in seats for name in ATTACKS)
        # Whoever finds nothing better keeps the guess.
        most[epsilon] = max(found, most.get(epsilon, 0.0))
    return ", ".join(f"{100 * found:+.1f} at ε {_epsilon(e)}" for e, found in most.items())


# -- models ------------------------------------------------------------------------------------


def _ideal(finished: list[Finished]) -> list[RenderableType]:
    found: list[RenderableType] = []
    for (victim,), mine in _group(finished, _by("victim")).items():
        groups = _group(mine, _by("sends", "epsilon"))
        others, constant = _middle(mine, "others"), _middle(mine, "constant")
        table = _table(
            f"Figure 8 of the paper: {_VICTIMS[victim]}, alone with the attacker, "
            f"{mine[0].cell['setting']['iterations']:,} updates; in % of test rows answered "
            "otherwise than by the victim's own model (in brackets the advantage over the best "
            "guess, in points). Medians of the seeds, ± their standard deviation; a broker sees "
            "the same. Without watching: a "
            f"constant answer {100 * constant:.1f} %, other people's model {100 * others:.1f} %"
            f"{_GLOBAL.get(victim, '')}",
            "attacker sends", "ε an update", f"ε in all (δ {DELTA:g})", "best guess",
            "the paper found", "the paper's attack", "moments", "moments and guess",
            "balanced %: guess / paper's / moments / both",
            "angle: guess / paper's / moments / both",
            meaning="ε speaks of each single row; what your rows have in common shows to somebody "
                    "who watches all your updates, who answers as your own model would more often "
                    "than somebody who only has other people's data, by so many points at most: "
                    f"{_most(groups.values(), ['client'])}.")
        for (sends, epsilon), group in groups.items():
            who = ["guess", *(f"client {name}" for name in ATTACKS)]
            table.add_row(
                sends, _epsilon(epsilon), _ledger(group[0].result["ledger"]),
                f"{100 * _middle(group, 'guess'):.1f}",
                _PAPER.get((sends, epsilon), "") if victim == "flipped" else "",
                *(_both(group, name) for name in who[1:]),
                " / ".join(f"{100 * _middle(group, name, 'balanced'):.0f}" for name in who),
                " / ".join(f"{_middle(group, name, 'angle'):.2f}" for name in who))
        found.append(table)
    return found


def _bystanders(finished: list[Finished]) -> list[RenderableType]:
    found: list[RenderableType] = []
    for (victim, sends, delay), mine in _group(finished, _by("victim", "sends", "delay")).items():
        groups = _group(mine, _by("bystanders", "epsilon"))
        pause = f"the broker waits up to {1000 * delay:g} ms" if delay else "the broker never waits"
        many = max(key[0] for key in groups)
        crowd = [group for key, group in groups.items() if key[0] == many]
        table = _table(
            f"Figure 9 of the paper: {_VICTIMS[victim]}, all at once, {pause}, the attacker sends "
            f"{'its own honest updates' if sends == 'honest' else 'zeros'}; % of test rows "
            "answered otherwise than by the victim's own model (in brackets the advantage over the "
            "best guess, in points). Medians of the seeds, ± their standard deviation. Above 50 "
            "means 'turn it round', not privacy",
            "bystanders", "ε an update", f"ε in all (δ {DELTA:g})", "best guess",
            "the paper found", *(f"{seat}: {name}" for seat in SEATS for name in
                                 ("the paper's attack", "moments", "moments and guess")),
            meaning=f"with {many} bystanders another client still gains, by ε: "
                    f"{_most(crowd, ['client'])} points; the broker, from whom no bystander hides "
                    f"you: {_most(crowd, ['broker'])}. Only noise counts, and it alone is in ε.")
        for (bystanders, epsilon), group in groups.items():
            table.add_row(
                str(bystanders), _epsilon(epsilon), _ledger(group[0].result["ledger"]),
                f"{100 * _middle(group, 'guess'):.1f}",
                _AMONG.get(bystanders, "more") if victim == "flipped" else "",
                *(_both(group, f"{seat} {name}") for seat in SEATS for name in ATTACKS))
        found.append(table)
    return found


# -- rows --------------------------------------------------------------------------------------


def _mean(group: Sequence[Finished], name: str) -> float:
    return mean([float(f.result[name]) for f in group])


def _rows(finished: list[Finished]) -> list[RenderableType]:
    groups = _group(finished, _by("weights", "batch", "epsilon"))
    table = _table(
        "What one release tells of the rows it was made of: cosine of the found row with the most "
        "similar row of the batch, without the constant column (in brackets: above the best guess "
        "| above what the same find has with rows that were not in the batch). Bare: share of "
        "found rows with more than 0.95 (with rows that were not in the batch: such rows are "
        "common, and nothing was learnt)",
        "the model is", "batch", "ε", "best guess", "closed form", "bare %", "gradient matching",
        "bare %",
        meaning=f"of a batch of one without noise your row is read off ("
                f"{_bare(groups, 1, None)} % bare); at ε = 1, {_bare(groups, 1, 1.0)} %; in a "
                f"batch of 10 without noise {_bare(groups, 10, None)} %.")
    for (weights, batch, epsilon), group in groups.items():
        guess = _mean(group, "guess")
        told = []
        for name in ("direction", "match"):
            like, strangers = _mean(group, name), _mean(group, f"{name}_strangers")
            told += [f"{like:.3f} ({like - guess:+.2f} | {like - strangers:+.2f})",
                     f"{100 * _mean(group, f'{name}_bare'):.1f} "
                     f"({100 * _mean(group, f'{name}_strangers_bare'):.1f})"]
        table.add_row("all zeros" if weights == "zero" else weights, str(batch),
                      _epsilon(epsilon), f"{guess:.3f}", *told)
    return [table]


def _bare(groups: Groups, batch: int, epsilon: float | None) -> str:
    """The greatest share of rows laid bare, less what strangers' rows have, in %."""
    found = [_mean(group, f"{name}_bare") - _mean(group, f"{name}_strangers_bare")
             for key, group in groups.items() if key[1:] == (batch, epsilon)
             for name in ("direction", "match")]
    return f"{100 * max(0.0, *found):.0f}" if found else "-"


def _repeat(finished: list[Finished]) -> list[RenderableType]:
    counts = finished[0].cell["releases"]
    groups = _group(finished, _by("epsilon"))
    table = _table(
        "A person with a single row who answers again and again for the same weights: cosine of "
        f"the mean release with the row (ε in all, at δ {DELTA:g})",
        "ε a release", "best guess", *(f"{count:,} releases" for count in counts),
        meaning="noise is drawn afresh each time and goes away in the mean; what protects you is "
                "the total in your ledger, which stops you, and not the ε of one release.")
    for (epsilon,), group in groups.items():
        likes = [mean([float(f.result["by_releases"][i]) for f in group])
                 for i in range(len(counts))]
        table.add_row(_epsilon(epsilon), f"{_mean(group, 'guess'):.3f}", *(
            f"{like:.3f} ({_ledger(total)})"
            for like, total in zip(likes, group[0].result["ledger"], strict=True)))
    return [table]


def _members(finished: list[Finished]) -> list[RenderableType]:
    cell = finished[0].cell
    groups = _group(finished, _by("held", "epsilon"))
    worst = {epsilon: max(_mean(group, "auc") for key, group in groups.items()
                          if key[1] == epsilon) for _, epsilon in groups}
    table = _table(
        f"Was this row used? {cell['releases']:,} releases with batches of {cell['batch']} at the "
        "same weights; how often a row that was used scores above one that was not (50 %: nothing "
        "learnt)",
        "rows held", "ε a release", f"ε in all (δ {DELTA:g})", "AUC %",
        meaning="who has your row and a stranger's, and wonders which of them you gave, is right "
                "in at most "
                + ", ".join(f"{100 * auc:.0f} % at ε {_epsilon(epsilon)}"
                            for epsilon, auc in worst.items()) + ".")
    for (held, epsilon), group in groups.items():
        table.add_row(str(held), _epsilon(epsilon), _ledger(group[0].result["ledger"]),
                      f"{100 * _mean(group, 'auc'):.1f}")
    return [table]


# -- plots -------------------------------------------------------------------------------------


def plots(finished: Sequence[Finished], directory: Path) -> list[Path]:
    """Those for which there are cells: figures 8 and 9, and what a release tells of rows."""
    parts = _group(finished, lambda f: f.cell["part"])
    if not parts.keys() & {"ideal", "rows", "bystanders"}:
        return []
    pyplot = drawing.begin()
    written = []
    for part, name, draw in (("ideal", "figure8", _draw_ideal), ("rows", "rows", _draw_rows),
                             ("bystanders", "figure9", _draw_bystanders)):
        if parts.get(part):
            written += drawing.save(draw(pyplot, parts[part]), directory, name)
    return written


def _line(axes: Any, groups: Sequence[Sequence[Finished]], who: str, **look: Any) -> None:
    """Median and standard deviation over the seeds, as in the paper's figures."""
    values = [[100 * float(f.result[who]["disagreement"]) for f in group] for group in groups]
    axes.errorbar(range(len(values)), [median(v) for v in values], [pstdev(v) for v in values],
                  capsize=3, **look)


def _finish(axes: Any, ticks: Sequence[str], **words: Any) -> None:
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(**words)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_ideal(pyplot: Any, finished: list[Finished]) -> Any:
    victims = _group(finished, _by("victim"))
    picture, all_axes = pyplot.subplots(
        1, len(victims), figsize=(4.6 * len(victims), 4.2), sharey=True, squeeze=False)
    for axes, ((victim,), mine) in zip(all_axes[0], victims.items(), strict=True):
        ticks: list[str] = []
        for dashes, ((sends,), some) in zip("-:", _group(mine, _by("sends")).items(), strict=False):
            groups = _group(some, _by("epsilon"))
            ticks = [_epsilon(key[0]) for key in groups]
            for colour, name in zip(_COLOURS, ATTACKS, strict=False):
                _line(axes, list(groups.values()), f"client {name}", color=colour,
                      linestyle=dashes, label=f"{name}, sends {sends}")
        axes.axhline(100 * _middle(mine, "guess"), color="black", linewidth=1,
                     label="best guess, without watching")
        _finish(axes, ticks, xlabel="ε of an update", title=f"victim: {victim}", ylim=(0, 60))
    all_axes[0][0].set_ylabel("reconstruction error, %")
    return picture


def _draw_bystanders(pyplot: Any, finished: list[Finished]) -> Any:
    victims = _group(finished, _by("victim"))
    shown = (("client paper", "a client, the paper's attack"),
             ("client informed", "a client, moments and guess"),
             ("broker informed", "the broker, moments and guess"))
    picture, all_axes = pyplot.subplots(
        len(victims), len(shown), figsize=(13, 4 * len(victims)), sharey="row", squeeze=False)
    for row, ((victim,), mine) in zip(all_axes, victims.items(), strict=True):
        settings = _group(mine, _by("sends", "delay"))
        # The paper's: an attacker who takes part, and a broker that waits.
        chosen = max(settings, key=lambda key: (key[0] == "honest", key[1]))
        for axes, (who, words) in zip(row, shown, strict=True):
            ticks: list[str] = []
            lines = _group(settings[chosen], _by("epsilon"))
            for colour, ((epsilon,), some) in zip(_COLOURS, lines.items(), strict=False):
                groups = _group(some, _by("bystanders"))
                ticks = [str(key[0]) for key in groups]
                _line(axes, list(groups.values()), who, color=colour,
                      label=f"ε = {_epsilon(epsilon)}")
            axes.axhline(100 * _middle(mine, "guess"), color="black", linewidth=1,
                         label="best guess")
            _finish(axes, ticks, xlabel="bystanders", title=f"{victim} victim; {words}",
                    ylim=(0, 60))
        row[0].set_ylabel("reconstruction error, %")
    return picture


def _draw_rows(pyplot: Any, finished: list[Finished]) -> Any:
    batches = _group((f for f in finished if f.cell["weights"] == "zero"), _by("batch"))
    picture, all_axes = pyplot.subplots(
        1, len(batches), figsize=(4.2 * len(batches), 4), sharey=True, squeeze=False)
    for axes, ((batch,), mine) in zip(all_axes[0], batches.items(), strict=True):
        groups = _group(mine, _by("epsilon"))
        for colour, dashes, name, words in (
                ("black", "-", "guess", "best guess"),
                (_COLOURS[0], "-", "direction", "closed form"),
                (_COLOURS[0], ":", "direction_strangers", "the same, strangers' rows"),
                (_COLOURS[1], "-", "match", "gradient matching"),
                (_COLOURS[1], ":", "match_strangers", "the same, strangers' rows")):
            axes.plot(range(len(groups)), [_mean(group, name) for group in groups.values()],
                      color=colour, linestyle=dashes, label=words)
        _finish(axes, [_epsilon(key[0]) for key in groups], xlabel="ε of the release",
                title=f"batch of {batch}", ylim=(-0.2, 1.05))
    all_axes[0][0].set_ylabel("cosine with the most similar row")
    return picture
