"""The front door: help costs nothing, tells by example, and statuses are as documented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import tormentor
from accord.problems import EXIT_USAGE

HERE = Path(__file__).resolve().parent.parent
HEAVY = {"numpy", "stem", "aiohttp", "aiohttp_socks", "msgspec", "cryptography", "safetensors",
         "rich", "dp_accounting", "scipy", "pyarrow"}
COMMANDS = pytest.mark.parametrize("name", tormentor.COMMANDS)

MEASURE = """
import json, runpy, sys
sys.argv = ["tormentor", *sys.argv[1:]]
try:
    runpy.run_path("tormentor.py", run_name="__main__")
except SystemExit as end:
    print(json.dumps([end.code or 0, sorted({m.partition(".")[0] for m in sys.modules})]),
          file=sys.stderr)
"""


def measured(*arguments: str) -> tuple[int, set[str], str]:
    """Exit status, modules imported, and standard output of the real command."""
    ended = subprocess.run([sys.executable, "-c", MEASURE, *arguments], cwd=HERE,
                           capture_output=True, text=True, timeout=20)
    status, modules = json.loads(ended.stderr.splitlines()[-1])
    return status, set(modules), ended.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), (), ("nonsense",)], ids=str)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    status, modules, _ = measured(*arguments)
    assert modules & HEAVY == set()
    assert modules & {"broker", "curator", "client", "lab", "accord"} == set()
    assert status == (0 if arguments in [("--help",), ("-h",)] else EXIT_USAGE)


def test_help_lists_every_command() -> None:
    _, _, shown = measured("--help")
    assert "Example" in shown
    for name, (_, words) in tormentor.COMMANDS.items():
        assert name in shown
        assert words in shown


@COMMANDS
def test_each_command_helps_by_example(name: str) -> None:
    result = CliRunner().invoke(tormentor.main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert f"tormentor {name}" in result.output


@COMMANDS
def test_a_wrong_option_is_wrong_usage(name: str) -> None:
    result = CliRunner().invoke(tormentor.main, [name, "--no-such-option"])
    assert result.exit_code == EXIT_USAGE
    assert "no such option" in result.output.lower()


@COMMANDS
def test_each_command_and_option_is_explained(name: str) -> None:
    command = tormentor.main.get_command(click.Context(tormentor.main), name)
    assert command is not None
    found = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    for each in found:
        assert each.help
        for option in each.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts}"


@pytest.mark.parametrize("address", ["nobody", "a" * 56 + ".onion", "\x1b[31m.onion"])
@pytest.mark.parametrize("name", ["status", "fetch"])
def test_a_problem_is_one_sentence_and_its_status(name: str, address: str) -> None:
    result = CliRunner().invoke(tormentor.main, [name, address])
    assert result.exit_code == EXIT_USAGE
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.isprintable() or result.stderr.removesuffix("\n").isprintable()


def test_a_problem_for_a_machine_is_one_object() -> None:
    result = CliRunner().invoke(tormentor.main, ["status", "nobody", "--json"])
    assert result.exit_code == EXIT_USAGE
    assert json.loads(result.stdout)["error"] == "not-an-onion"
    assert result.stderr == ""


@pytest.mark.parametrize("arguments", [
    ["--tor", "none"], ["--direct", "127.0.0.1:1"], ["--tor", "launch", "--socks", "127.0.0.1:1"],
    ["--tor", "none", "--direct", "nonsense"], ["--socks", "127.0.0.1:99999"], ["--tor", "magic"],
])
def test_options_of_tor_that_do_not_fit(arguments: list[str]) -> None:
    onion = "a" * 56 + ".onion"
    result = CliRunner().invoke(tormentor.main, ["status", onion, *arguments])
    assert result.exit_code == EXIT_USAGE
    assert "Traceback" not in result.output
    assert "Error: " in result.stderr
