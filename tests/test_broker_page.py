"""The status page: what it says of errors and strikes."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from broker_world import make_task

from accord.messages import Status
from broker.page import status_page


def row(name: str, **changes: Any) -> str:
    """What stands beside a name in the page's table."""
    fields: dict[str, Any] = {
        "phase": "training", "title": "A test", "task": "0" * 64, "clients": 3, "needed": 2,
        "updates": 10, "max_updates": 1000, "error": 0.25, "best_error": 0.2, "baseline": 0.4,
        "judged": 8, "struck": 3, "strikes": 4, "seconds": 75.0, "left": 3600.0}
    page = status_page(Status(**fields | changes), make_task())
    found = re.search(f"<tr><td>{name}</td><td>(.*?)</td></tr>", page)
    assert found is not None
    return html.unescape(found[1])


@pytest.mark.parametrize(("changes", "said"), [
    ({}, "25.0% (best 20.0%; always giving one answer: 40.0%)"),
    ({"error": None, "best_error": None},
     "not measured yet (best not measured yet; always giving one answer: 40.0%)"),
    ({"error": None, "best_error": None, "baseline": None},
     "not measured: this task has no validation set"),
])
def test_errors(changes: dict[str, Any], said: str) -> None:
    assert row("Validation error", **changes) == said


@pytest.mark.parametrize(("changes", "said"), [
    ({}, "3 of 8 clients struck, 4 strikes in all: their updates oppose the curator's validation "
         "set"),
    ({"struck": 1, "strikes": 1}, "1 of 8 clients struck, 1 strike in all: their updates oppose "
                                  "the curator's validation set"),
    ({"struck": 0, "strikes": 0}, "0 of 8 clients struck"),
    ({"judged": 0, "struck": 0, "strikes": 0}, "nobody yet"),
    ({"judged": 0, "struck": 0, "strikes": 0, "baseline": None}, "nobody"),
])
def test_strikes_are_told_and_not_who_is_wrong(changes: dict[str, Any], said: str) -> None:
    assert row("Judged", **changes) == said
