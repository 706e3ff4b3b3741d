"""'tormentor key' and 'curate --invite': whom a curator invites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import tormentor
from accord.invitation import from_text, our_key, public_key, to_text
from accord.messages import MAX_INVITED
from accord.problems import Problem
from curator.invite import read_invited

ANN, BEN, EVE = (bytes([number]) * 32 for number in (1, 2, 3))


def code(typed: list[str], state: Path, mode: str = "launch") -> str:
    with pytest.raises(Problem) as caught:
        read_invited(typed, state, mode)
    return caught.value.kind.code


def test_a_key_that_is_shown_can_be_invited(tmp_path: Path) -> None:
    def show(*more: str) -> str:
        done = CliRunner().invoke(tormentor.main, ["key", "--state", str(tmp_path / "ann"), *more])
        assert done.exit_code == 0, done.output
        return done.stdout

    shown = show().splitlines()[0]
    assert json.loads(show("--json")) == {"key": shown}
    private = our_key(tmp_path / "ann", make=False)
    assert private is not None and from_text(shown) == public_key(private)
    invited = read_invited([shown], tmp_path / "curator", "launch")
    curator = our_key(tmp_path / "curator", make=False)
    assert curator is not None
    # The curator's own first: it wants to follow and to fetch.
    assert invited == (public_key(curator), public_key(private))
    assert show() == f"{shown}\n", "so that it can be kept in a file"
    done = CliRunner().invoke(tormentor.main, ["key", "--state", str(tmp_path / "ann")])
    assert "'--invite'" in done.stderr and to_text(private) not in done.output


def test_nobody_is_invited_where_nobody_is_named(tmp_path: Path) -> None:
    assert read_invited([], tmp_path, "none") == ()
    assert not list(tmp_path.iterdir())


def test_files_of_keys_and_the_same_key_twice(tmp_path: Path) -> None:
    guests = tmp_path / "guests.txt"
    guests.write_text(f"# the hospitals\n\n{to_text(ANN)}  # Ann's\n  {to_text(BEN).upper()}\n")
    invited = read_invited([str(guests), to_text(EVE), to_text(ANN)], tmp_path, "launch")
    assert invited[1:] == (ANN, BEN, EVE)


def test_what_is_no_key_invites_nobody(tmp_path: Path) -> None:
    assert code(["somebody"], tmp_path) == "bad-invitation"
    slip = to_text(ANN)[:-1] + ("a" if to_text(ANN)[-1] != "a" else "b")
    assert code([slip], tmp_path) == "bad-invitation"
    assert code([str(tmp_path / "no-such-file")], tmp_path) == "no-file"
    for content in (b"\xff\xfe\n", b"\n" + to_text(ANN).encode() + b"\nBen\n"):
        (tmp_path / "guests").write_bytes(content)
        assert code([str(tmp_path / "guests")], tmp_path) == "bad-invitation"
    with pytest.raises(Problem, match=r"'Ben \(line 3 of .*guests"):
        read_invited([str(tmp_path / "guests")], tmp_path, "launch")
    for content in (b"", b"# nobody yet\n"):
        (tmp_path / "guests").write_bytes(content)
        assert code([str(tmp_path / "guests")], tmp_path) == "bad-option"
    many = tmp_path / "many"
    many.write_text("\n".join(to_text(n.to_bytes(32, "big")) for n in range(MAX_INVITED - 1)))
    assert len(read_invited([str(many)], tmp_path, "launch")) == MAX_INVITED
    assert code([str(many), to_text(EVE)], tmp_path) == "bad-option"


def test_without_tor_nobody_can_be_kept_out(tmp_path: Path) -> None:
    assert code([to_text(ANN)], tmp_path, "none") == "bad-option"
    done = CliRunner().invoke(tormentor.main, ["curate", "--init", "x.csv", "--invite", "y"])
    assert done.exit_code == 2 and "--invite does not go with --init" in done.output
