"""The front door: one command, its subcommands loaded only when called."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "broker": ("broker.cli", "Run a desk that hosts models behind onion addresses."),
    "curate": ("curator.cli", "Define a task and hand it to a broker."),
    "status": ("curator.cli", "Show how a model is getting on."),
    "fetch": ("curator.cli", "Fetch and verify a published model."),
    "join": ("client.cli", "Join a model's training with your own data."),
    "solve": ("client.cli", "Solve the admission puzzle and train."),
    "key": ("client.key_cli", "Show the key by which a curator can invite you."),
    "budget": ("client.budget_cli", "Reckon what updates cost in privacy; what a file has spent."),
    "predict": ("client.cli", "Apply a model to a table."),
    "verify": ("client.cli", "Check offline that an address signed a model."),
    "lab": ("lab.cli", "A private Tor network, and the demo."),
    "experiment": ("lab.experiment_cli", "The paper's figures, attacks, and what holds."),
    "audit": ("lab.audit_cli", "Attack your own privacy; compare with what the ledger says."),
}
"""Where each subcommand lives, and its line in the list: help needs none of them imported."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        found = getattr(module, cmd_name)
        if not isinstance(found, click.Command):
            raise TypeError(f"{cmd_name} is not a command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tormentor", prog_name="tormentor")
def main() -> None:
    """Machine learning among people who do not trust each other, over Tor.

    A curator defines a task, a broker behind an onion address aggregates, and clients train with
    data that never leaves them.

    \b
    Example, on one machine with a Tor network of its own:
      tormentor lab demo
    """


if __name__ == "__main__":
    main()
