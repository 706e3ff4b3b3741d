"""The experiments by name: which module, which of its cells, and what of the paper they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """One name that can be run.

    Attributes:
        module: where its experiment lives.
        shows: the figure or table of the paper, or what else.
        words: one line of what it shows; empty for the experiment's own.
        only: entries of cells and the values that are meant, where the name means a part of its
            experiment only; as :func:`lab.experiments.plan.choose` takes them.
        quick, full: about how long it takes on two cores, for people.
    """

    module: str
    shows: str
    quick: str
    full: str
    words: str = ""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


EXPERIMENTS: Final[dict[str, Named]] = {
    "fig5": Named(module="lab.experiments.fig5", shows="figure 5", quick="3 min", full="1 h"),
    "fig6": Named(module="lab.experiments.table2", shows="figure 6", quick="6 min", full="30 min",
                  words="Training error over time by the number of clients, through Tor.",
                  only={"tor": (True,)}),
    "fig7": Named(module="lab.experiments.table2", shows="figure 7", quick="4 min", full="15 min",
                  words="Training error over time by the number of clients, without Tor.",
                  only={"tor": (False,)}),
    "fig8": Named(module="lab.experiments.fig8", shows="figure 8", quick="5 min", full="30 min"),
    "fig9": Named(module="lab.experiments.fig9", shows="figure 9", quick="3 min", full="1 h"),
    "fig10": Named(module="lab.experiments.poison", shows="figure 10", quick="1 min", full="2 min",
                   words="Training error over time, by the share of poisoners.",
                   only={"figure": ("10",)}),
    "fig11": Named(module="lab.experiments.poison", shows="figure 11", quick="1 min", full="6 min",
                   words="Training error over time, by the paper's threshold; and its two runs "
                         "without poisoners.",
                   only={"figure": ("11", "7.5")}),
    "poison": Named(module="lab.experiments.poison", shows="figures 10, 11 and section 7.5",
                    quick="2 min", full="1 h"),
    "rehearsal": Named(module="lab.experiments.rehearsal", shows="(not in the paper)",
                       quick="4 min", full="4 min"),
    "table2": Named(module="lab.experiments.table2", shows="table 2, figures 6 and 7",
                    quick="10 min", full="45 min"),
    "table2-steps": Named(module="lab.experiments.table2_steps",
                          shows="(not in the paper)", quick="5 min", full="1 h"),
    "utility": Named(module="lab.experiments.utility", shows="(not in the paper)", quick="5 min",
                     full="3 h"),
}
"""Every name there is."""
