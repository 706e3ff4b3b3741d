"""``scripts/soak``: one kind of trial, loaded when it is called."""

from __future__ import annotations

import importlib

import click

KINDS = {
    "kill": "A desk with many clients, killed and started again, over a private Tor network.",
    "fuzz": "A million and more hostile inputs.",
    "flood": "Joins thrown at the door while others train.",
    "crowd": "200 clients over one tor, and the broker's memory.",
    "histories": "Random histories of the pure core, with crashes, checked after every step.",
}


class _Kinds(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(KINDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in KINDS:
            return None
        command = importlib.import_module(f"lab.soak.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Without loading them.
        with formatter.section("Kinds"):
            formatter.write_dl(list(KINDS.items()))


@click.group(cls=_Kinds, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Try for a long time to break a broker, and count what came of it.

    \b
    Example:
      scripts/soak kill --quick --json
    """


if __name__ == "__main__":
    main(prog_name="scripts/soak")
