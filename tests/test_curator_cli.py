"""'tormentor curate': checked here first, handed over once, and told in one sentence."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from curator_stand_in import (
    AWAY,
    DESK,
    MODEL,
    ROWS,
    SEED,
    StandIn,
    curate,
    run,
    sentence,
    standing_in,
    status,
    work_in,
)
from msgspec.structs import replace

from accord.messages import (
    SMALL_LIMIT,
    TASK_LIMIT,
    Curated,
    encode,
    vector_to_wire,
)
from accord.problems import (
    DESK_FULL,
    NOT_FOUND,
    TASK_REFUSED,
    PeerProblem,
)
from accord.table import read_table
from accord.task import commitment, open_task, sign, task_id
from curator import cli
from curator.definition import read_definition


@pytest.fixture
def broker() -> Iterator[StandIn]:
    with standing_in() as stand_in:
        yield stand_in


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return work_in(tmp_path, monkeypatch)


# -- curate ----------------------------------------------------------------------------------
def test_a_task_is_handed_over_and_its_address_printed(here: Path, broker: StandIn) -> None:
    result = curate(broker)
    assert result.exit_code == 0, result.output
    order = broker.order
    assert order is not None
    key = order.task.curator.hex()
    assert result.stdout.splitlines() == [
        f"Model:   {MODEL}", f"Curator: {key}", "Those who take part type:",
        f"  tormentor join {MODEL} --curator {key} --data YOUR.csv --budget 2 --min-clients 2"
        f" --tor none --direct 127.0.0.1:{broker.port}"]
    task = open_task(order.task, "test")
    rows, labels = task.data.encode(read_table(Path("rows.csv")), "rows")
    assert order.rows == vector_to_wire(rows)
    assert list(order.labels) == list(labels)
    digest = commitment(order.salt, order.rows, order.labels)
    assert task.validation.digest == digest
    defined = read_definition(Path("task.toml"))
    assert task == replace(defined, validation=replace(defined.validation, digest=digest))
    assert broker.seen == [(DESK, "POST", "/curate"), (MODEL, "GET", "/status"),
                           (MODEL, "GET", "/task")]
    assert "WARNING: --tor none" in result.stderr


def test_each_time_the_salt_is_another_and_is_kept(here: Path, broker: StandIn) -> None:
    salts = set()
    for _ in range(2):
        result = curate(broker)
        assert broker.order is not None
        kept = here / "state" / "salts" / task_id(broker.order.task)
        assert kept.read_text() == f"{broker.order.salt.hex()}\n"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert f"its salt is kept in state/salts/{kept.name}." in " ".join(result.stderr.split())
        assert broker.order.salt.hex() not in result.output
        salts.add(broker.order.salt)
    assert len(salts) == 2


def without_set(text: str, **changes: str) -> str:
    """A drafted task that can do without a validation set."""
    parts = {"mode": '"synchronous"', "aggregate": '"median"', "test": '"none"',
             "screen": '"none"'} | changes
    for name, value in parts.items():
        text, count = re.subn(rf"^{name} = \S+", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1
    return text


def test_a_task_that_can_do_without_a_validation_set_is_told_what_that_means(
    here: Path, broker: StandIn
) -> None:
    Path("task.toml").write_text(without_set(Path("task.toml").read_text()))
    result = curate(broker, rows=None)
    assert result.exit_code == 0, result.output
    order = broker.order
    assert order is not None
    assert (order.rows, order.labels) == (b"", b"")
    task = open_task(order.task, "test")
    assert task.validation.digest == ""
    assert task == read_definition(Path("task.toml"))
    told = " ".join(result.stderr.split())
    assert ("There is no validation set. So no error can be shown, nobody is judged, and the last "
            "model is published, however good it is. The rule that takes its place, 'median', "
            "withstands only a minority of clients that do harm, and only where the others' rows "
            "are alike.") in told
    assert not (here / "state" / "salts").exists()
    # With a set it is good too: then that only measures.
    result = curate(broker)
    assert result.exit_code == 0, result.output
    assert broker.order is not None and broker.order.rows
    assert open_task(broker.order.task, "test").validation.digest == commitment(
        broker.order.salt, broker.order.rows, broker.order.labels)
    assert "There is no validation set" not in result.stderr


@pytest.mark.parametrize(("changes", "needed", "off"), [
    ({"test": '"sequential"'}, "validation.test", ""),
    ({"screen": '"direction"'}, "validation.screen", ""),
    ({"mode": '"asynchronous"', "aggregate": '"mean"'}, "training.aggregate", ""),
    ({"test": '"rounds"', "screen": '"direction"', "aggregate": '"mean"'},
     "training.aggregate, validation.test and validation.screen", ""),
    ({"# target_error": "0.2\ntarget_error = 0.1", "# patience": "1\npatience = 9"},
     "training.target_error and training.patience", ", without target_error and patience,"),
])
def test_a_task_that_needs_a_validation_set_says_so_and_how_to_do_without(
    here: Path, broker: StandIn, changes: dict[str, str], needed: str, off: str
) -> None:
    Path("task.toml").write_text(without_set(Path("task.toml").read_text(), **changes))
    assert sentence(curate(broker, rows=None), 2) == (
        f"Error: --validation is missing, and task.toml needs it for {needed}; to do without a "
        f"validation set, write mode = 'synchronous' and aggregate = 'median'{off} in [training], "
        "and test = 'none' and screen = 'length' in [validation].")
    assert broker.seen == []
    assert not (here / "state").exists()


def test_a_digest_of_one_s_own_is_refused(here: Path, broker: StandIn) -> None:
    Path("task.toml").write_text(Path("task.toml").read_text() + f'digest = "{"ab" * 32}"\n')
    assert "validation.digest stands in it" in sentence(curate(broker), 4)


def test_for_a_machine_it_is_one_object(here: Path, broker: StandIn) -> None:
    result = curate(broker, "--json")
    told = json.loads(result.stdout)
    assert set(told) == {"onion", "task", "curator", "join"}
    assert broker.order is not None
    assert told["onion"] == MODEL
    assert told["task"] == task_id(broker.order.task)
    assert told["curator"] == broker.order.task.curator.hex()
    assert told["join"].startswith(f"tormentor join {MODEL} --curator {told['curator']}")


def test_the_same_key_signs_the_next_task(here: Path, broker: StandIn) -> None:
    keys = {json.loads(curate(broker, "--json").stdout)["curator"] for _ in range(2)}
    assert len(keys) == 1
    assert (here / "state" / "curator.key").stat().st_mode & 0o777 == 0o600
    Path("own.key").write_bytes(SEED)
    Path("own.key").chmod(0o600)
    assert json.loads(curate(broker, "--json", "--key", "own.key").stdout)["curator"] not in keys


def test_it_waits_until_the_address_is_found(here: Path, broker: StandIn) -> None:
    # Twice: aiohttp itself tries once more what broke off on a connection that it had kept.
    broker.answers["GET /status"] = [AWAY, AWAY, encode(status("waiting"))]
    result = curate(broker)
    assert result.exit_code == 0, result.output
    assert "Not found yet, still trying" in result.stderr


def test_but_not_for_ever(
    here: Path, broker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "APPEAR", 0.1)
    broker.answers["GET /status"] = AWAY
    assert MODEL in sentence(curate(broker), 6)


def test_a_broker_that_changes_the_task_is_found_out(here: Path, broker: StandIn) -> None:
    def other() -> bytes:
        task = msgspec.structs.replace(read_definition(Path("task.toml")), title="Another")
        return encode(sign(task, Ed25519PrivateKey.from_private_bytes(SEED)))

    broker.answers["GET /task"] = other
    assert "is not the one that you signed" in sentence(curate(broker), 8)


@pytest.mark.parametrize(("answer", "exit_status", "said"), [
    (PeerProblem(TASK_REFUSED), 7, "refuses the task"),
    (PeerProblem(DESK_FULL, limit=3), 7, "already hosts its 3 models"),
    (PeerProblem(NOT_FOUND), 2, "is not the address of a broker's desk"),
    (AWAY, 6, "Nobody answers"), (b"", 8, "not a message"), (b"<html>", 8, "not a message"),
    (encode(Curated("a" * 62)), 8, "not a message"), (bytes(5000), 8, "larger than the 4096"),
    (encode(Curated("\x1b[31m" + "a" * 57)), 8, "not a message"),
])
def test_what_a_desk_may_answer(
    here: Path, broker: StandIn, answer: Any, exit_status: int, said: str
) -> None:
    broker.answers["POST /curate"] = answer
    assert said in sentence(curate(broker), exit_status)


def test_no_broker_there(here: Path) -> None:
    stand_in = StandIn()
    stand_in.port = 1
    assert "Nobody answers" in sentence(curate(stand_in), 6)


@pytest.mark.parametrize(("rows", "exit_status", "said"), [
    ("", 3, "holds no rows"), ("age,town,sick\n", 3, "holds no rows"),
    ("age,town\n30,Oslo\n", 3, "no column sick"),
    ("age,town,sick,diary\n30,Oslo,1,x\n", 3, "column diary that the task does not know"),
    ("age,town,sick\n30,Oslo,1\n31,Lima,1\n", 3, "Every row of other.csv has sick = 1"),
    ("age,town,sick\n30,Oslo,1\nold,Oslo,0\n", 3, "row 2, column age: 'old' is not"),
    ("age,town,sick\n30,Paris,1\n31,Oslo,0\n", 3, "row 1, column town: 'Paris' is not"),
    ("age,town,sick\n30,Oslo\n", 3, "line 2 has 2 cells"),
    (None, 3, "Cannot read other.csv"),
])
def test_bad_validation_rows_are_told_before_anybody_is_asked(
    here: Path, broker: StandIn, rows: str | None, exit_status: int, said: str
) -> None:
    if rows is not None:
        Path("other.csv").write_text(rows)
    assert said in sentence(curate(broker, rows="other.csv"), exit_status)
    assert broker.seen == []
    assert not (here / "state").exists()


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.replace("step = 1", "setp = 1"), "training.setp is not a key"),
    (lambda t: t.replace("step = 1", "step = 0"), "training.step is 0 and must be"),
    (lambda t: t.replace("[data]", "[data"), "it is not TOML"),
    (lambda t: "", "title is missing"),
])
def test_a_bad_task_is_told_before_anybody_is_asked(
    here: Path, broker: StandIn, change: Callable[[str], str], said: str
) -> None:
    Path("bad.toml").write_text(change(Path("task.toml").read_text()))
    assert said in sentence(curate(broker, task="bad.toml"), 4)
    assert broker.seen == []


def test_too_much_to_upload_is_told_before_anybody_is_asked(
    here: Path, broker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "VALIDATION_LIMIT", TASK_LIMIT + SMALL_LIMIT + 130)
    assert "has 30 rows and a broker takes at most 10" in sentence(curate(broker), 2)
    assert broker.seen == []


def test_a_bad_key_is_told_before_anybody_is_asked(here: Path, broker: StandIn) -> None:
    Path("open.key").write_bytes(SEED)
    Path("open.key").chmod(0o644)
    assert "chmod 600 open.key" in sentence(curate(broker, "--key", "open.key"), 9)
    assert "no such file" in sentence(curate(broker, "--key", "none.key"), 9)
    assert broker.seen == []


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "TASK.toml and --broker are missing; write a task with 'tormentor curate"),
    (["--validation", "rows.csv", "--broker", DESK], "TASK.toml is missing; write a task"),
    (["task.toml"], "--broker is missing."),
    (["task.toml", "--broker", DESK], "--validation is missing, and task.toml needs it for"),
    (["task.toml", "--validation", "rows.csv"], "--broker is missing."),
    (["task.toml", "--validation", "rows.csv", "--broker", "nobody.onion"],
     "'nobody.onion' is not a version 3 onion address"),
    (["task.toml", "--validation", "rows.csv", "--broker", DESK, "--target", "x"],
     "--target goes with --init only"),
    (["task.toml", "--validation", "rows.csv", "--broker", DESK, "--output", "m"],
     "--output goes with --watch or --init only"),
    (["task.toml", "--init", "rows.csv"], "TASK.toml does not go with --init"),
    (["--init", "rows.csv", "--broker", DESK], "--broker does not go with --init"),
    (["task.toml", "--target", "x", "--title", "y"],
     "--target and --title go with --init only"),
    (["--init", "rows.csv", "--watch"], "--watch does not go with --init"),
    (["task.toml", "--init", "rows.csv", "--watch", "--broker", DESK],
     "TASK.toml, --broker and --watch do not go with --init"),
    (["--init", "rows.csv", "--title", ""], "--title must be one line of 1 to 200 characters"),
    (["--init", "rows.csv", "--title", "a\nb"], "--title must be one line"),
    (["--init", "rows.csv", "--target", "nothing"], "--target nothing is not a column"),
    (["--init", "rows.csv", "--output", "task.toml"], "exists and is not overwritten"),
])
def test_wrong_usage_is_one_sentence(here: Path, arguments: list[str], said: str) -> None:
    before = sorted(here.iterdir())
    assert said in sentence(run("curate", *arguments), 2)
    assert sorted(here.iterdir()) == before


def test_a_place_for_the_model_that_is_none_is_told_before_the_training(
    here: Path, broker: StandIn
) -> None:
    for place in ("no/such/place", "."):
        said = sentence(curate(broker, "--watch", "--output", place), 9)
        assert f"Cannot write {place}" in said
    assert broker.seen == []


# -- curate --init ---------------------------------------------------------------------------
def test_a_draft_is_written_and_accepted_unedited(here: Path, broker: StandIn) -> None:
    result = run("curate", "--init", "rows.csv", "--output", "new.toml")
    assert result.exit_code == 0, result.output
    assert "tormentor curate new.toml" in result.stdout
    assert Path("new.toml").stat().st_mode & 0o777 == 0o644
    assert curate(broker, task="new.toml").exit_code == 0


def test_the_draft_is_named_after_its_table(here: Path) -> None:
    result = run("curate", "--init", "rows.csv", "--target", "town", "--json")
    assert json.loads(result.stdout) == {"task": "rows.toml", "notes": []}
    assert read_definition(Path("rows.toml")).data.target == "town"
    assert "rows.toml exists" in sentence(run("curate", "--init", "rows.csv"), 2)


def test_what_is_left_out_is_said(here: Path) -> None:
    Path("odd.csv").write_text("who\x1b[2J,age,sick\n" + "".join(
        f"person {i},{i * i},{i % 2}\n" for i in range(60)))
    result = run("curate", "--init", "odd.csv")
    assert "Column 'who?[2J' is left out: its name is empty, too long or not printable." in (
        result.stderr)
    assert [f.name for f in read_definition(Path("odd.toml")).data.features()] == ["age"]


def test_a_draft_has_the_title_that_was_given_or_one_that_tells_no_file_name(here: Path) -> None:
    Path("val.csv").write_text(Path("rows.csv").read_text())
    run("curate", "--init", "val.csv")
    assert read_definition(Path("val.toml")).title == "Predict sick"
    run("curate", "--init", "val.csv", "--title", 'Sick or "well"?', "--output", "t.toml")
    assert read_definition(Path("t.toml")).title == 'Sick or "well"?'


@pytest.mark.parametrize(("title", "description", "said"), [
    ("Predict sick", "", "the title is still the drafted one, 'Predict sick' and the description"),
    ("Sick?", " ", "In task.toml the description is empty. People who are asked to join read only"),
    ("Predict sick", "To find the sick.", "the title is still the drafted one"),
    ("Sick?", "To find the sick.", ""),
])
def test_a_task_that_does_not_say_what_it_is_for_is_warned_of(
    here: Path, broker: StandIn, title: str, description: str, said: str
) -> None:
    text = Path("task.toml").read_text()
    Path("task.toml").write_text(text.replace('"Predict sick"', f'"{title}"').replace(
        'description = ""', f'description = "{description}"'))
    result = curate(broker)
    assert result.exit_code == 0
    flat = " ".join(result.stderr.split())
    assert said in flat
    assert ("People who are asked to join read only this." in flat) == bool(said)


def test_two_headers_are_said(here: Path) -> None:
    Path("two.csv").write_text(",X1,Y\nID,LIMIT_BAL,default\n1,20000,1\n2,30000,0\n")
    said = sentence(run("curate", "--init", "two.csv", "--target", "Y"), 3)
    assert "line 2 looks like a second header; keep one of the two." in said


def test_prose_is_broken_between_words_and_commands_are_not(here: Path, broker: StandIn) -> None:
    name = "a very long name of a table that somebody has given to it.csv"
    Path(name).write_text(ROWS)
    drafted = run("curate", "--init", name, "--output", name.replace("csv", "toml"))
    handed = curate(broker, task=name.replace("csv", "toml"), rows=name)
    for result in (drafted, handed):
        assert result.exit_code == 0, result.output
        for line in result.output.splitlines():
            assert len(line) <= 80 or line.startswith(("  tormentor ", "WARNING: --tor none"))
    command, = [line for line in drafted.stdout.splitlines() if line.startswith("  ")]
    assert shlex.split(command)[2] == name.replace("csv", "toml")
