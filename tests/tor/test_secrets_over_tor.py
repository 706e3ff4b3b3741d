"""No secret is seen where real tors take part: keys on their way to tor, cookies, identities."""

from __future__ import annotations

from pathlib import Path

from leaks import IN_A_BROKER, Secrets, Watched, leaks, open_files, until
from test_secrets import gather, result_of, write_rows, write_task

from client.session import load_session
from lab.tornet import TorNetwork

TALKS_TOO_MUCH = '''
import accord.control
accord.control._stem_log.addHandler(logging.StreamHandler())
'''
"""What a log that is to hold everything would do, where nothing turns stem down."""


def test_no_secret_passes_into_a_log_of_tor_or_ours(tornet: TorNetwork, tmp_path: Path) -> None:
    home, printed = tmp_path / "h", tmp_path / "printed"
    home.mkdir()
    printed.mkdir(mode=0o700)
    cells = write_rows(home / "mine.csv", 1) + write_rows(home / "validation.csv", 2)
    own = ["--torrc", tornet.extra_torrc, "--json"]
    socks = ["--socks", tornet.socks[0], "--json"]
    with Watched(printed) as watched:
        write_task(watched, home / "validation.csv", home / "task.toml")
        watched.start("broker", "broker", *own, "--state", home / "b", more=IN_A_BROKER)
        until(lambda: b"onion" in (printed / "broker.out").read_bytes(), 120)
        desk = result_of(watched, "broker", "onion")
        watched.run("curate", "curate", home / "task.toml", "--validation",
                    home / "validation.csv", "--broker", desk, *socks, "--state", home / "c")
        onion = result_of(watched, "curate", "onion")
        watched.run("join", "join", onion, "--data", home / "mine.csv", "--epsilon", 1, "--batch",
                    20, "--budget", 50, "--min-clients", 1, "--output", home / "m.safetensors",
                    *own, "--state", home / "j", "--solve")
        watched.run("status", "status", onion, *socks)
        watched.run("fetch", "fetch", onion, *socks, "--output", home / "fetched.safetensors")
        secrets = Secrets()
        gather(secrets, watched, home)
        assert load_session(home / "j" / "sessions" / f"{onion}.json").token is not None
    assert {"cookie", "expanded desk.seed", "expanded onion.seed", "curator's key"} <= secrets.names
    assert "tor" in watched.programs
    for cell in cells:
        secrets.add_text("a cell", cell.lstrip("-")[:12])
    places = [*watched.everything(), *open_files(home)]
    assert any(name.endswith("log") and b"Tor" in content for name, content in places)
    assert not (found := leaks(secrets, places)), found[:10]


def test_without_our_guard_a_key_would_be_logged(tornet: TorNetwork, tmp_path: Path) -> None:
    """So the guard is needed, and what looks for keys finds them."""
    printed = tmp_path / "printed"
    printed.mkdir(mode=0o700)
    with Watched(printed) as watched:
        watched.start("broker", "broker", "--torrc", tornet.extra_torrc, "--json", "--state",
                      tmp_path / "b", more=IN_A_BROKER + TALKS_TOO_MUCH)
        until(lambda: b"onion" in (printed / "broker.out").read_bytes(), 120)
        secrets = Secrets()
        secrets.add_drawn(watched.drawn)
    assert any("broker.err has drawn" in line for line in leaks(secrets, watched.everything()))
