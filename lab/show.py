"""What a person sees of the demo: the live view, the report, the plot."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from accord.files import write_whole
from lab.demo import Demo

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values as a row of little bars, the last ``width`` of them; the highest is the full bar."""
    shown = values[-width:]
    top = max(shown, default=0.0) or 1.0
    return "".join(_BARS[min(7, int(8 * value / top))] for value in shown)


def live(demo: Demo) -> RenderableType:
    """The demo as it stands."""
    now = time.monotonic()
    steps = Table.grid(padding=(0, 2))
    steps.add_column(width=2)
    steps.add_column(min_width=20)
    steps.add_column(justify="right", width=7)
    steps.add_column()
    for name, seconds in demo.phases.items():
        steps.add_row("[green]✓[/]", name, f"{seconds:.1f} s", "")
    if demo.phase:
        steps.add_row("[yellow]●[/]", f"[bold]{demo.phase}[/]", f"{now - demo.phase_began:.1f} s",
                      Text(demo.note, style="dim"))
    parts: list[RenderableType] = [steps]
    status = demo.status
    if status is not None:
        errors = [error for _, error in demo.curve]
        facts = Table.grid(padding=(0, 2))
        facts.add_row("phase", f"[bold]{status.phase}[/]")
        facts.add_row("clients", f"{status.clients} active, {status.needed} needed")
        bar = ProgressBar(total=status.max_updates, completed=status.updates, width=30)
        facts.add_row("updates", f"{status.updates} of {status.max_updates}")
        facts.add_row("", bar)
        if errors:
            facts.add_row("validation error", f"{errors[-1]:.1%}  [cyan]{sparkline(errors)}[/]")
        parts.append(facts)
    if demo.onion:
        parts.append(clients_table(demo))
    title = f"TorMentor demo · {now - demo.began:.0f} s"
    return Panel(Group(*parts), title=title, box=box.ROUNDED, expand=False)


def clients_table(demo: Demo) -> Table:
    """The hospitals: what each asked for, has done and has spent."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("client")
    for name in ("k", "ε budget", "ε per update", "batch", "updates", "ε spent"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for view in demo.clients:
        noise = (f"{view.epsilon:.2g}", str(view.batch)) if view.batch else ("", "")
        table.add_row(view.name, str(view.min_clients), f"{view.budget:g}", *noise,
                      str(view.updates), f"{view.spent:.1f}", Text(view.state))
    return table


def report(demo: Demo) -> RenderableType:
    """The figures of ``report.json`` in words."""
    told = demo.report
    errors = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    errors.add_column(f"error on {told['test_rows']} test rows that nobody trained on")
    errors.add_column("", justify="right")
    errors.add_row("[bold]private model, trained together through Tor[/]",
                   f"[bold]{told['private_error']:.1%}[/]")
    errors.add_row("one model on everybody's rows, no privacy", f"{told['central_error']:.1%}")
    for client, error in zip(told["clients"], told["alone_errors"], strict=True):
        errors.add_row(f"{client['name']} alone, no privacy", f"{error:.1%}")
    privacy = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    privacy.add_column("privacy spent")
    for name in ("budget ε", "ε per update", "batch of rows", "updates", "total ε", "at δ",
                 "best guess"):
        privacy.add_column(name, justify="right")
    for client in told["clients"]:
        privacy.add_row(
            client["name"], f"{client['budget']:g}", f"{client['epsilon']:.2g}",
            f"{client['batch']} of {client['rows']}",
            str(client["updates"]), f"[bold]{client['epsilon_total']:.1f}[/]",
            f"{client['delta']:g}", f"{client['guess']:.0%}")
    caveat = Text(
        "Best guess: how often somebody is right at most who knows all of a hospital's rows but "
        "one, sees all that it sent, and says which of two that one is. A coin: 50 %.",
        style="dim", overflow="fold")
    times = " · ".join(f"{name} {seconds:.1f} s" for name, seconds in told["seconds"].items())
    files = Table.grid(padding=(0, 2))
    files.add_row("address", told["onion"])
    for name, path in told["files"].items():
        files.add_row(name, path)
    return Group(errors, privacy, caveat, Text(), Text(times, style="dim", overflow="fold"),
                 Text(), files)


def write_report(demo: Demo) -> None:
    """Write ``report.json`` and ``plot.png``."""
    encoded = json.dumps(demo.report, indent=2, ensure_ascii=False).encode()
    write_whole(demo.directory / "report.json", encoded + b"\n")
    plot(demo.report, demo.directory / "plot.png")


def plot(told: dict[str, Any], path: Path) -> None:
    """Errors as a picture: the validation error on its way, and all test errors side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (way, end) = pyplot.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2))
    updates = [u for u, _ in told["validation_errors"]]
    way.plot(updates, [100 * e for _, e in told["validation_errors"]], color="#7d4698")
    way.set(xlabel="updates applied", ylabel="error on the curator's rows, %", ylim=(0, None),
            title="While it trains")
    names = ["together,\nprivate", "central,\nno privacy"]
    names += [f"{c['name'].replace('hospital-', 'hospital ')}\nalone" for c in told["clients"]]
    errors = [told["private_error"], told["central_error"], *told["alone_errors"]]
    colours = ["#7d4698", "#59316b"] + ["#c0b6c7"] * len(told["alone_errors"])
    bars = end.barh(names[::-1], [100 * e for e in errors[::-1]], color=colours[::-1])
    end.bar_label(bars, fmt="%.1f", padding=3)
    end.set(xlabel=f"error on {told['test_rows']} test rows, %", title="In the end")
    end.margins(x=0.15)
    for axes in (way, end):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def keep_picture(demo: Demo) -> None:
    """Write what the terminal showed last, and the report, as a picture (SVG)."""
    console = Console(record=True, width=92, file=io.StringIO(), force_terminal=True)
    console.print(live(demo))
    console.print(report(demo))
    picture = console.export_svg(title="scripts/demo")
    # rich would have whoever looks at it fetch a font from a stranger's server.
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    write_whole(demo.directory / "demo.svg", picture.encode())
