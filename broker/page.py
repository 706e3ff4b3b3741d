"""The status page that a person opens in Tor Browser: no script, no picture, nothing fetched."""

from __future__ import annotations

from html import escape
from typing import Final

from accord.messages import Status
from accord.task import Task

_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem;
color:#1b1b22;background:#fbfaf7}
h1{font-size:1.5rem}table{border-collapse:collapse}td{padding:.25rem 1rem .25rem 0}
progress{width:100%}code{background:#eeece4;padding:.1rem .3rem;overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#e8e6e0;background:#18181c}code{background:#2a2a30}}
"""
_PHASES: Final = {
    "waiting": "waiting for a task",
    "gathering": "gathering clients",
    "training": "training",
    "paused": "paused: too few clients for somebody's wish",
    "published": "published",
    "gone": "gone",
}


def _frame(title: str, body: str, refresh: int) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f'</title><meta http-equiv="refresh" content="{refresh}"><meta name="viewport" '
        f'content="width=device-width"><style>{_STYLE}</style></head><body>{body}</body></html>'
    )


def _share(value: float | None) -> str:
    return "not measured yet" if value is None else f"{value:.1%}"


def _error(status: Status) -> str:
    if status.baseline is None:
        return "not measured: this task has no validation set"
    return (f"{_share(status.error)} (best {_share(status.best_error)}; "
            f"always giving one answer: {_share(status.baseline)})")


def _judged(status: Status) -> str:
    # Who is wrong, the clients that were struck or the validation set, nobody here knows.
    if not status.judged:
        return "nobody yet" if status.baseline is not None else "nobody"
    told = f"{status.struck} of {status.judged} clients struck"
    if not status.struck:
        return told
    many = "" if status.strikes == 1 else "s"
    return (f"{told}, {status.strikes} strike{many} in all: their updates oppose the curator's "
            "validation set")


def status_page(status: Status, task: Task) -> str:
    """How one model is getting on, as HTML. All of the task's text is escaped."""
    facts = {
        "Phase": _PHASES[status.phase] + (f" ({status.ended})" if status.ended else ""),
        "Clients": f"{status.clients} active, {status.needed} needed",
        "Updates": f"{status.updates} of at most {status.max_updates}",
        "Validation error": _error(status),
        "Judged": _judged(status),
    }
    rows = "".join(f"<tr><td>{k}</td><td>{escape(v)}</td></tr>" for k, v in facts.items())
    body = (
        f"<h1>{escape(task.title)}</h1><p>{escape(task.description)}</p>"
        f'<progress max="{status.max_updates}" value="{status.updates}"></progress>'
        f"<table>{rows}</table>"
        "<p>To take part, with rows that never leave your machine:</p>"
        "<p><code>tormentor join THIS-ADDRESS --data YOUR.csv --budget 2 "
        f"--min-clients {task.clients.minimum}</code></p>"
    )
    return _frame(task.title, body, 10)


def desk_page(models: int, limit: int) -> str:
    """What a desk says of itself. It names none of its models: their addresses are theirs."""
    body = (
        "<h1>A TorMentor desk</h1>"
        f"<p>{models} of {limit} models are hosted here.</p>"
        "<p>To have a model trained: <code>tormentor curate TASK.toml --validation FILE "
        "--broker THIS-ADDRESS</code></p>"
    )
    return _frame("A TorMentor desk", body, 60)
