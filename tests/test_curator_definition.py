"""The task file: read in plain words, drafted from a table, and the key that signs it."""

from __future__ import annotations

import csv
import math
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.problems import BAD_KEY, BAD_OPTION, BAD_TABLE, BAD_TASK, NO_FILE, ONE_CLASS, Problem
from accord.table import read_table
from accord.task import Clients, Puzzles, Task, Training, Validation
from curator.definition import curator_key, read_definition, read_key, suggestion
from curator.draft import _SECTIONS, _second_header, constants, draft

HERE = Path(__file__).resolve().parent.parent
GOOD = """
title = "Sick or well"
[data]
target = "sick"
[[data.fields]]
name = "age"
type = "integer"
constraints = { minimum = 0, maximum = 120 }
[[data.fields]]
name = "town"
type = "string"
constraints = { enum = ["Oslo", "Lima"] }
[[data.fields]]
name = "sick"
type = "boolean"
[training]
step = 2
[clients]
minimum = 3
"""


def written(tmp_path: Path, text: str | bytes, name: str = "task.toml") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def why(tmp_path: Path, text: str | bytes) -> str:
    path = written(tmp_path, text)
    with pytest.raises(Problem) as caught:
        read_definition(path)
    assert caught.value.kind is BAD_TASK
    assert len(caught.value.sentence) < 400
    assert caught.value.sentence.startswith(f"The task {path} is not right: ")
    return str(caught.value.details["why"])


# -- reading ---------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n"),
                                  "version = 1\n" + GOOD])
def test_a_good_task(tmp_path: Path, text: str) -> None:
    task = read_definition(written(tmp_path, text))
    assert (task.title, task.dimension, task.training.step) == ("Sick or well", 3, 2.0)
    assert task.clients == Clients(minimum=3)
    assert (task.puzzles, task.validation) == (Puzzles(), Validation())


@pytest.mark.parametrize(("old", "new", "said"), [
    ("step = 2", "setp = 2", "training.setp is not a key that a task has; did you mean step?"),
    ("[training]", "[trainig]", "trainig is not a key that a task has; did you mean training?"),
    ("[clients]", "[zzz]", "zzz is not a key that a task has"),
    ('type = "boolean"', 'typ = "boolean"',
     "data.fields[sick].typ is not a key that a task has; did you mean type?"),
    ("minimum = 0,", "min = 0,", "data.fields[age].constraints.min is not a key"),
    ("step = 2", "step = 'fast'",
     "training.step is 'fast' and must be a number above 0 and at most 1,000,000,000"),
    ("step = 2", "step = true", "training.step is true and must be a number"),
    ("step = 2", "step = 0", "training.step is 0 and must be a number above 0"),
    ("step = 2", "step = -1.5", "training.step is -1.5 and must be"),
    ("step = 2", "step = [1]", "training.step is a list and must be a number"),
    ("step = 2", "step = {}", "training.step is a table and must be a number"),
    ("step = 2", "step = 2026-11-21", "training.step is a date or time and must be a number"),
    ("step = 2", "step = inf", "training.step is inf and must be"),
    ("step = 2", "step = nan", "training.step is nan and must be a number above 0"),
    ("step = 2", "step = " + "9" * 400, "training.step is too large and must be"),
    ("step = 2", "max_updates = 1.5", "training.max_updates is 1.5 and must be a whole number"),
    ("step = 2", "max_updates = 0",
     "training.max_updates is 0 and must be a whole number at least 1 and at most 100,000,000"),
    ("step = 2", "target_error = 2", "training.target_error is 2 and must be a number at least 0"),
    ("step = 2", "schedule = '1/sqrt t'",
     "training.schedule is '1/sqrt t' and must be one of: 1/sqrt(t), 1/t, constant; "
     "did you mean 1/sqrt(t)?"),
    ("[training]\nstep = 2", "", ""),
    ("[training]\nstep = 2", "[[training]]\nstep = 2",
     "training is a list and must be a table, [training]"),
    ("minimum = 3", "minimum = 300", "in [clients], 'minimum' of clients is above 'maximum'"),
    ('title = "Sick or well"\n', "", "title is missing"),
    ('title = "Sick or well"', 'title = ""', "title is '' and must be text in quotes, at least 1"),
    ('title = "Sick or well"', 'title = 3', "title is 3 and must be text in quotes"),
    ('title = "Sick or well"', f'title = "{"x" * 201}"', "at most 200 characters"),
    ('title = "Sick', 'objective = "magic"\ntitle = "Sick', "'objective' must be one of: logistic"),
    ('title = "Sick', 'version = 2\ntitle = "Sick', "version is 2 and must be one of: 1"),
    ('target = "sick"\n', "", "data.target is missing"),
    ('target = "sick"', 'target = "ill"', "target ill is not among the fields"),
    ('type = "boolean"', 'type = "number"', "target sick must be boolean"),
    ('type = "boolean"', 'type = "bool"',
     "data.fields[sick].type is 'bool' and must be one of: boolean, integer, number, string; "
     "did you mean boolean?"),
    ('name = "sick"', 'name = "age"', "two columns have the same name"),
    ('name = "sick"\n', "", "data.fields[number 3].name is missing"),
    ('name = "sick"', "name = 5", "data.fields[number 3].name is 5 and must be text in quotes"),
    ("maximum = 120", "maximum = -1", "column age: minimum must be below maximum"),
    ("maximum = 120", "maximum = inf", "column age has a number that is not finite"),
    (', maximum = 120', "", "column age: give center and scale, or minimum and maximum"),
    ('["Oslo", "Lima"]', '["Oslo"]', "column town: 'enum' needs two or more different values"),
    ('["Oslo", "Lima"]', "[1, 2]", "constraints.enum is a list and must be a list of texts"),
    ('["Oslo", "Lima"]', '"Oslo"', "constraints.enum is 'Oslo' and must be a list of texts"),
    ("[[data.fields]]", "[data.fields]", "not TOML"),
    ("step = 2", "step = 2\naggregate = 'median'",
     "in [training], 'aggregate' = 'median' needs 'mode' = 'synchronous'"),
    ("step = 2", "step = 2\nreply_delay = 11",
     "training.reply_delay is 11 and must be a number at least 0 and at most 10"),
    ("step = 2", "step = 2\nmode = 'synchronous'\nreply_delay = 0.5",
     "in [training], 'reply_delay' needs 'mode' = 'asynchronous'"),
    ("[clients]", "reply_delay = 10\n[clients]\nsilence = 10",
     "'reply_delay' of training is above half of 'silence' of clients"),
    ("[clients]", "[validation]\ntest = 'all'\n[clients]",
     "validation.test is 'all' and must be one of: none, rounds, sequential"),
    ("[clients]", "[validation]\nseconds = 30\n[clients]",
     "validation.seconds is not a key that a task has"),
    ("[clients]", "[validation]\nfalse_alarm = 0.5\n[clients]",
     "validation.false_alarm is 0.5 and must be a number above 0 and at most 0.1"),
    ("[clients]", "[validation]\ndigest = ''\n[clients]",
     "validation.digest stands in it, and 'tormentor curate' fills that in by itself when it "
     "signs; take the line out"),
    ("step = 2", "step = ", "not TOML: invalid value (at line 17, column 8), which is 'step ='"),
    ("step = 2", "  step = 2 3 " + "x" * 99,
     "which is 'step = 2 3 " + "x" * 49 + "...'"),
    ("step = 2", "step = 2\nstep = 3", "not TOML: cannot overwrite a value"),
])
def test_what_is_wrong_is_said_with_its_place(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if said:
        assert said in why(tmp_path, text)
    else:
        read_definition(written(tmp_path, text))


@pytest.mark.parametrize(("raw", "said"), [
    (b"", "title is missing"), (b"\xff\xfe\x00", "not text in UTF-8"), (b"hello", "not TOML"),
    (b'{"title": "x"}', "not TOML"), (b"a = " + b"[" * 100_000, "nested too deeply"),
    (b"data = 3\ntitle = 'x'", "data is 3 and must be a table, [data]"),
    (b"title = 'x'\ndata = { target = 'y', fields = [3, 4] }",
     "data.fields[number 1] is 3 and must be a table"),
    (b"title = 'x'\ndata = { target = 'y', fields = 'z' }",
     "data.fields is 'z' and must be a list of tables, at least 2"),
    (b"#" * (5 << 20), "larger than"),
])
def test_what_is_no_task_at_all(tmp_path: Path, raw: bytes, said: str) -> None:
    assert said in why(tmp_path, raw)


@pytest.mark.slow
def test_a_task_that_is_too_large_to_travel(tmp_path: Path) -> None:
    fields = "".join(
        f'[[data.fields]]\nname = "f{i}"\ntype = "boolean"\ndescription = "{"x" * 490}"\n'
        for i in range(2200))
    text = GOOD.replace("[[data.fields]]", f"{fields}[[data.fields]]", 1)
    assert "1,048,576 are the most" in why(tmp_path, text)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(Problem) as caught:
        read_definition(tmp_path / name)
    assert caught.value.kind is NO_FILE


@given(st.binary(max_size=200))
def test_any_bytes_are_a_task_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    why(tmp_path_factory.mktemp("t"), raw)


VALUES = st.recursive(
    st.booleans() | st.integers(-(10**30), 10**30) | st.floats()
    | st.text("ab\"\n\x7f", max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "type", "enum", "minimum", "step"]), inner,
                      max_size=3), max_leaves=6)
PLACES = ["title", "data.target", "data.fields", "data.positive", "training", "training.mode",
          "clients.minimum", "puzzles.admission", "validation.metric", "objective", "version"]


@pytest.mark.slow
@given(st.sampled_from(PLACES), VALUES)
def test_any_value_anywhere_is_right_or_said(place: str, value: object) -> None:
    from curator import definition

    table = tomllib.loads(GOOD)
    *way, last = place.split(".")
    inner = table
    for key in way:
        inner = inner.setdefault(key, {})
    inner[last] = value
    try:
        definition._task(table)
    except definition._Wrong as wrong:
        assert str(wrong)


def test_suggestions() -> None:
    assert suggestion("schedul", ["schedule", "step"]) == "; did you mean schedule?"
    assert suggestion("qqq", ["schedule", "step"]) == ""


# -- drafting --------------------------------------------------------------------------------
def table(tmp_path: Path, columns: dict[str, list[str]], name: str = "my rows.csv") -> Path:
    path = tmp_path / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def drafted(tmp_path: Path, columns: dict[str, list[str]], target: str | None = None
            ) -> tuple[Task, list[str], str]:
    path = table(tmp_path, columns)
    made = draft(read_table(path), path, target)
    return read_definition(written(tmp_path, made.text)), made.notes, made.text


COLUMNS = {
    "income": ["1200.5", "900", "3100.25", "0", "800", "1999"],
    "age": ["34", "61", "18", "44", "70", "29"],
    "smoker": ["yes", "no", "no", "yes", "no", "no"],
    "member": ["0", "1", "1", "0", "1", "0"],
    "town": ["Oslo", "Lima", "Rome", "Oslo", "Lima", "Oslo"],
    "sick": ["1", "0", "1", "0", "0", "1"],
}


def test_types_are_guessed_from_cells(tmp_path: Path) -> None:
    task, notes, _ = drafted(tmp_path, COLUMNS)
    assert task.title == "Predict sick"
    assert notes == []
    assert {f.name: f.type for f in task.data.fields} == {
        "income": "number", "age": "integer", "smoker": "boolean", "member": "boolean",
        "town": "string", "sick": "boolean"}
    assert task.data.target == "sick"
    town = next(f for f in task.data.fields if f.name == "town")
    assert town.constraints.enum == ("Lima", "Oslo", "Rome")


def test_the_table_fits_its_own_draft(tmp_path: Path) -> None:
    task, _, _ = drafted(tmp_path, COLUMNS)
    rows, labels = task.data.encode(COLUMNS, "rows")
    assert rows.shape == (6, task.dimension)
    np.testing.assert_array_equal(labels, [1, 0, 1, 0, 0, 1])


def test_every_setting_is_there_with_its_default_and_its_meaning(tmp_path: Path) -> None:
    task, _, text = drafted(tmp_path, COLUMNS)
    parts = {"training": Training, "clients": Clients, "puzzles": Puzzles,
             "validation": Validation}
    assert {name for name, *_ in _SECTIONS} == set(parts)
    for name, part in parts.items():
        assert getattr(task, name) == part()
        section = text.split(f"[{name}]\n")[1].split("\n\n")[0].splitlines()
        assert [line.removeprefix("# ").split(" = ")[0] for line in section] == [
            field for field in part.__struct_fields__ if field != "digest"]
        assert all("  # " in line for line in section)
    assert "become public with the task" in text


def test_settings_that_are_off_can_be_taken_out_of_their_comment(tmp_path: Path) -> None:
    _, _, text = drafted(tmp_path, COLUMNS)
    on = text.replace("# target_error", "target_error").replace("# patience", "patience")
    training = read_definition(written(tmp_path, on)).training
    assert (training.target_error, training.patience) == (0.2, 500)


@pytest.mark.parametrize(("cells", "kind", "positive", "first"), [
    (["0", "1", "1", "1", "1", "0"], "boolean", "", 0), (["No", "yes"] * 3, "boolean", "", 0),
    (["TRUE", "False"] * 3, "boolean", "", 1), (["2", "1", "1"] * 2, "string", "1", 0),
    (["ill", "well", "well"] * 2, "string", "ill", 1), (["+", "-", "-"] * 2, "string", "+", 1),
    (["0.0", "1.0", "1.0"] * 2, "string", "0.0", 1), (["y", "n", "n"] * 2, "string", "y", 1),
])
def test_answers(
    tmp_path: Path, cells: list[str], kind: str, positive: str, first: int
) -> None:
    columns = {"income": COLUMNS["income"], "answer": cells}
    task, _, _ = drafted(tmp_path, columns)
    assert (task.data.answer().type, task.data.positive) == (kind, positive)
    assert task.data.encode(columns, "rows")[1][0] == first


def test_the_target_may_be_any_column(tmp_path: Path) -> None:
    task, _, _ = drafted(tmp_path, COLUMNS, "smoker")
    assert task.data.target == "smoker"
    assert "sick" in {f.name for f in task.data.features()}


@pytest.mark.parametrize(("target", "said"), [
    ("smoken", "--target smoken is not a column of"), ("smoken", "did you mean smoker?"),
    ("town", "--target town has 3 different values"), ("age", "6 different values"),
])
def test_a_target_that_is_none(tmp_path: Path, target: str, said: str) -> None:
    with pytest.raises(Problem) as caught:
        drafted(tmp_path, COLUMNS, target)
    assert caught.value.kind is BAD_OPTION
    assert said in caught.value.sentence


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb"])
def test_a_target_that_cannot_be_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(Problem) as caught:
        drafted(tmp_path, {"age": COLUMNS["age"], name: COLUMNS["sick"]})
    assert caught.value.kind is BAD_OPTION


def test_one_answer_and_no_column(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        drafted(tmp_path, COLUMNS | {"sick": ["1"] * 6})
    assert caught.value.kind is ONE_CLASS
    with pytest.raises(Problem) as caught:
        drafted(tmp_path, {"empty": [""] * 6, "sick": COLUMNS["sick"]})
    assert caught.value.kind is BAD_TABLE


def test_what_cannot_be_learnt_from_is_left_out_and_said(tmp_path: Path) -> None:
    n = 60
    task, notes, _ = drafted(tmp_path, {
        "": [str(i) for i in range(n)], "name": [f"person {i}" for i in range(n)],
        "x" * 101: ["1", "2"] * 30, "empty": ["NA"] * n, "same": ["one"] * n,
        "huge": ["1e300", "-1e300"] * 30, "long": ["a" * 200, "b"] * 30,
        "odd": ["a\u202e", "b"] * 30, "gaps": ["1.5", ""] * 30,
        "id": [str(i) for i in range(n)], "sick": ["0", "1"] * 30,
    })
    assert [f.name for f in task.data.features()] == ["gaps"]
    assert len(notes) == 10
    assert sum("is left out" in note for note in notes) == 9
    assert any("'gaps' has 30 empty cells" in note for note in notes)
    assert ("Column 'id' is left out: it only numbers the rows. Take it out of the data files too."
            in notes)


def test_few_whole_numbers_may_be_a_category(tmp_path: Path) -> None:
    few = {"school": ["10", "2", "1", "2"] * 6, "grade": ["1.0", "2.0"] * 12,
           "income": [str(i * i) for i in range(24)], "share": ["0.5", "0.25"] * 12,
           "same": ["3"] * 24, "sick": ["0", "1"] * 12}
    task, _, text = drafted(tmp_path, few)
    assert "# It has 3 different values." in text
    assert text.count("different values. If they name kinds") == 2
    lines = text.splitlines()
    start = lines.index('name = "school"')
    assert lines[start + 5].startswith("# It has 3 different values.")
    advised = [line.removeprefix("#   ") for line in lines[start + 8 : start + 10]]
    lines[start + 1 : start + 10] = advised
    changed = read_definition(written(tmp_path, "\n".join(lines)))
    school = next(f for f in changed.data.fields if f.name == "school")
    assert (school.type, school.constraints.enum) == ("string", ("1", "2", "10"))
    assert changed.dimension == task.dimension + 1


def test_it_is_said_why_ranges_are_wide(tmp_path: Path) -> None:
    assert "# must not refuse the rows of others" in drafted(tmp_path, COLUMNS)[2]


@pytest.mark.parametrize(("columns", "second"), [
    ({"": ["ID", "1", "2"], "Y": ["default", "1", "0"]}, True),
    ({"a": ["age", "1", "2"], "b": ["sick", "yes", "no"]}, True),
    ({"a": ["old", "1", "2"], "sick": ["yes", "yes", "no"]}, False),
    ({"a": ["old", "1", "2"], "sick": ["1", "1", "0"]}, False),
    ({"town": ["Oslo", "Lima"], "sick": ["yes", "no"]}, False),
    ({"a": ["NA", "1", "2"], "sick": ["yes", "no", "no"]}, False),
])
def test_a_second_header(columns: dict[str, list[str]], second: bool) -> None:
    assert _second_header(columns) == second


def test_constants_are_rounded_outwards_and_say_little() -> None:
    assert constants(np.array([18.0, 44.0, 70.0])) == (0, 130, 44, 21.2)
    assert constants(np.array([0.0, 0.5, 1.0])) == (0, 2, 0.5, 0.408)
    assert constants(np.array([2013.0, 2015.0, 2017.0]))[2:] == (2015, 1.63)
    assert constants(np.array([-1.0, 1.0] * 50 + [100.0]))[:2] == (-200, 1200)
    low, high, center, scale = constants(np.array([7.0, 7.0]))
    assert (center, scale) == (7, 1)
    assert low < 7 < high


@given(st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=20))
def test_constants_hold_every_number(numbers: list[float]) -> None:
    low, high, center, scale = constants(np.array(numbers))
    assert low <= min(numbers) <= max(numbers) <= high
    assert low < high
    assert scale > 0
    assert math.isfinite(center)


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6) | st.sampled_from(
    ["", "NA", "yes", "no", "0", "1", "-3", "2.5", "1e9", "none", '"', "\\", "#", "\x7f", "]"])


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_whatever_the_table_its_draft_is_accepted(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    n = data.draw(st.integers(2, 8))
    names = data.draw(st.lists(CELL, min_size=1, max_size=4, unique_by=str.strip))
    columns = {name.strip(): data.draw(st.lists(CELL, min_size=n, max_size=n)) for name in names}
    columns.pop("answer", None)
    columns["answer"] = ["yes", *data.draw(st.lists(st.sampled_from(["yes", "no"]), min_size=n - 2,
                                                    max_size=n - 2)), "no"]
    tmp_path = tmp_path_factory.mktemp("t")
    try:
        task, notes, _ = drafted(tmp_path, columns)
    except Problem as problem:
        assert problem.kind is BAD_TABLE
        return
    kept = {f.name for f in task.data.fields}
    if not any("empty cells" in note for note in notes):
        task.data.encode({k: v for k, v in columns.items() if k in kept}, "rows")


# -- the key ---------------------------------------------------------------------------------
def pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    locked = (serialization.BestAvailableEncryption(password) if password
              else serialization.NoEncryption())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)


KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def test_a_key_is_made_once_and_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = curator_key(state)
    path = state / "curator.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert [p.name for p in state.iterdir()] == ["curator.key"]
    again = curator_key(state)
    assert again.private_bytes_raw() == first.private_bytes_raw()
    assert read_key(path).private_bytes_raw() == first.private_bytes_raw()


def test_two_first_uses_at_once_make_one_key(tmp_path: Path) -> None:
    program = ("import sys; from pathlib import Path; from curator.definition import *;"
               "print(curator_key(Path(sys.argv[1])).public_key().public_bytes_raw().hex())")
    runs = [subprocess.Popen([sys.executable, "-c", program, tmp_path / "state"], cwd=HERE,
                             stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = {run.communicate(timeout=20)[0] for run in runs}
    assert len(printed) == 1
    assert len(printed.pop().strip()) == 64


@pytest.mark.parametrize("raw", [bytes(range(32)), pem(KEY)], ids=["seed", "pem"])
def test_a_key_of_one_s_own(tmp_path: Path, raw: bytes) -> None:
    path = written(tmp_path, raw, "my.key")
    path.chmod(0o600)
    key = curator_key(tmp_path / "state", path)
    assert key.private_bytes_raw() == bytes(range(32))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("raw", "said"), [
    (b"", "neither 32 bytes nor"), (bytes(31), "neither 32 bytes nor"), (bytes(33), "neither"),
    (pem(KEY)[:-40], "neither"), (pem(KEY, b"secret"), "passphrase"),
    (pem(ec.generate_private_key(ec.SECP256R1())), "another kind"), (b"\xff" * 100_000, "neither"),
])
def test_a_key_that_is_none(tmp_path: Path, raw: bytes, said: str) -> None:
    path = written(tmp_path, raw, "my.key")
    path.chmod(0o600)
    with pytest.raises(Problem) as caught:
        read_key(path)
    assert caught.value.kind is BAD_KEY
    assert said in caught.value.sentence
    assert path.read_bytes() == raw


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_that_others_can_touch(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, bytes(32), "my.key")
    path.chmod(mode)
    with pytest.raises(Problem) as caught:
        read_key(path)
    assert caught.value.kind is BAD_KEY
    assert f"chmod 600 {path}" in caught.value.sentence


def test_a_key_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for path in (tmp_path / "none.key", tmp_path):
        with pytest.raises(Problem) as caught:
            curator_key(tmp_path / "state", path)
        assert caught.value.kind is BAD_KEY
    assert list(tmp_path.iterdir()) == []
