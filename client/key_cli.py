"""``tormentor key``: the key by which a curator can invite us."""

from __future__ import annotations

from pathlib import Path

import click

from accord.console import command, json_option, result, say, state_option
from accord.invitation import our_key, public_key, to_text
from accord.words import wrapped


@click.command()
@state_option
@json_option
@command
async def key(state: Path, as_json: bool) -> None:
    """Show the key by which a curator can invite you to a model that is not open to everyone.

    It is no secret. The half that is stays on this machine; 'join', 'solve', 'status' and 'fetch'
    use it by themselves where an invitation is asked for.

    \b
    Example:
      tormentor key
    """
    private = our_key(state, make=True)
    assert private is not None
    text = to_text(public_key(private))
    result({"key": text}, as_json, text)
    if not as_json:
        say(wrapped(
            "Give this to the curator, who says '--invite' with it. The same key serves for every "
            "model; use another --state where nobody is to see that two of them are yours."))
