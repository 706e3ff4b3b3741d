"""Plans of experiments, what is told of their cells, and where it comes from."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from accord.problems import BAD_EXPERIMENT, BAD_OPTION, NO_FILE, Problem
from lab.experiments import drawing, figures, markdown, origin, plan
from lab.experiments.frame import EXPERIMENTS, Cell, Finished, find
from lab.experiments.plan import Plan
from lab.experiments.results import anywhere, command

CELLS: list[Cell] = [
    {"part": part, "epsilon": epsilon, "setting": {"clients": clients, "part": "hidden"},
     "seed": seed, "tor": tor}
    for part in ("a", "b") for epsilon in (None, 1.0) for clients in (10, 50)
    for tor in (True, False) for seed in range(3)]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    read = plan.read(write(tmp_path / "x.toml", (
        'experiment = "fig5"\nseeds = 3\nquick = true\nparts = ["curves"]\ndata = "credit.csv"\n'
        '[cells]\nbatch = [10]\nepsilon = [1, inf]\n')))
    assert read == Plan(experiment="fig5", seeds=3, quick=True, parts=("curves",),
                        data=str(tmp_path / "credit.csv"),
                        cells={"batch": (10,), "epsilon": (1, math.inf)})
    chosen = plan.chosen(read)
    assert {(c["batch"], c["epsilon"]) for c in chosen} == {(10, None), (10, 1.0)}
    assert len(chosen) == 2 * 3 * 3
    for name in ("made", "sklearn:digits", "/else/where.csv"):
        text = f'experiment = "fig5"\ndata = "{name}"\n'
        assert plan.read(write(tmp_path / "y.toml", text)).data == name


@pytest.mark.parametrize(("text", "words"), [
    ("experiment = ", "it is not TOML"),
    ("seeds = 3", "missing required field 'experiment'"),
    ('experiment = "fig5"\nseed = 3', "unknown field 'seed'"),
    ('experiment = "fig5"\nseeds = 0', ">= 1 - at 'seeds'"),
    ('experiment = "fig5"\nquick = "no"', "'quick'"),
    ('experiment = "fig5"\n[cells]\nbatch = 10', "'cells[...]'"),
    ('experiment = "fig6000"', "there is no experiment 'fig6000', but fig5"),
    ("\udcff", "it is not text"),
])
def test_a_file_that_is_wrong_is_told_so(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Problem) as caught:
        plan.read(path)
    assert caught.value.kind is BAD_EXPERIMENT
    assert words in caught.value.sentence and caught.value.sentence.endswith("; edit it.")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        plan.read(tmp_path / "none.toml")
    assert caught.value.kind is NO_FILE


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.booleans() | st.integers(-2**63, 2**63 - 1) | st.floats(allow_nan=False) | names


@pytest.mark.slow
@given(st.builds(
    Plan, experiment=st.sampled_from(sorted(EXPERIMENTS)), quick=st.booleans(),
    seeds=st.none() | st.integers(1, 1000), parts=st.lists(names).map(tuple),
    jobs=st.none() | st.integers(1, 256), output=st.none() | st.text(
        st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    cells=st.dictionaries(names, st.lists(values, min_size=1).map(tuple), max_size=3)))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, it: Plan) -> None:
    path = tmp_path_factory.mktemp("plan") / "x.toml"
    path.write_bytes(plan.written(it, ["a line", "another"]).encode())
    assert plan.read(path) == it


def test_cells_are_chosen_by_their_entries() -> None:
    def count(**only: tuple[plan.Value, ...]) -> int:
        return len(plan.choose(CELLS, only))

    assert count() == 48
    assert count(clients=(10,)) == count(tor=(True,)) == count(epsilon=(math.inf,)) == 24
    assert count(clients=(10.0, 50), tor=(False,), epsilon=(1,)) == 12
    assert {c["part"] for c in plan.choose(CELLS, {"part": ("b",)})} == {"b"}
    # True is not 1.
    with pytest.raises(Problem, match="is never 1, but true, false"):
        count(tor=(1,))
    with pytest.raises(Problem, match=r"is never 2, but inf, 1\.0"):
        count(epsilon=(1.0, 2))
    with pytest.raises(Problem, match="is not an entry of its cells, which have part, epsilon"):
        count(client=(10,))
    some = [c for c in CELLS if not (c["tor"] and c["epsilon"])]
    with pytest.raises(Problem) as caught:
        plan.choose(some, {"tor": (True,), "epsilon": (1.0,)})
    assert caught.value.kind is BAD_OPTION and "leaves none" in caught.value.sentence


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
@pytest.mark.parametrize("quick", [True, False])
def test_each_name_has_cells_of_its_own(name: str, quick: bool) -> None:
    cells = plan.chosen(Plan(experiment=name, quick=quick))
    whole = find(name).cells(quick, None)
    assert cells and all(cell in whole for cell in cells)
    assert (len(cells) < len(whole)) == bool(EXPERIMENTS[name].only)


def test_a_command_says_all_of_a_plan_but_where_things_are() -> None:
    it = Plan(experiment="fig5", quick=True, seeds=2, parts=("a", "b"), jobs=3,
              data="/home/somebody/credit.csv", output="/home/somebody/out")
    assert command(anywhere(it)) == (
        "tormentor experiment fig5 --quick --seeds 2 --part a --part b --jobs 3 --data credit.csv")
    for name in ("made", "sklearn:digits"):
        assert anywhere(msgspec.structs.replace(it, data=name)).data == name
    assert command(Plan(experiment="fig5", cells={"a": (1,)})) == (
        "tormentor experiment experiment.toml")


# -- figures -----------------------------------------------------------------------------------


def finished() -> list[Finished]:
    return [Finished(cell, {
        "error": 0.1 * (1 + cell["seed"]) + (cell["epsilon"] or 0.0), "at": None if cell["seed"]
        else 3, "by": {"angle": cell["seed"]}, "words": "no number", "list": [1],
        "curve": [[0, 0.5], [1, 0.25]]}) for cell in CELLS if cell["part"] == "a"]


def test_a_summary_has_medians_and_spread_over_the_seeds() -> None:
    told = figures.summary(object(), finished())
    assert len(told) == 8
    assert told[0] == {
        "cell": {"part": "a", "epsilon": None, "tor": True, "clients": 10}, "seeds": 3,
        "figures": {"error": [0.2, 0.1, 0.3], "at": [None, 3.0, None], "by.angle": [1.0, 0.0, 2.0]}}
    assert figures.middle([None, None]) == [None, None, None]
    assert figures.middle([1.23456, 2]) == [1.617, 1.235, 2.0]

    class Own:
        def measures(self, finished: Finished) -> dict[str, float | None]:
            return {"mine": finished.cell["seed"]}

    assert figures.summary(Own(), finished())[0]["figures"] == {"mine": [1.0, 0.0, 2.0]}


def test_series_begin_with_what_tells_cells_apart() -> None:
    rows = list(figures.curves([*finished(), Finished(CELLS[-1], {})], ("t", "error")))
    assert rows[0] == ["part", "epsilon", "tor", "clients", "seed", "t", "error"]
    assert rows[1:3] == [["a", None, True, 10, 0, 0, 0.5], ["a", None, True, 10, 0, 1, 0.25]]
    assert len(rows) == 1 + 2 * 24
    rows = list(figures.points(finished()))
    assert rows[0][-2:] == ["figure", "value"]
    assert rows[1:4] == [["a", None, True, 10, 0, *told] for told in (
        ("error", 0.1), ("at", 3.0), ("by.angle", 0.0))]


# -- pages -------------------------------------------------------------------------------------


def test_tables_become_markdown() -> None:
    table = Table("what", title="A [b]title[/b]", caption="And so on")
    table.add_column("how\nmuch", justify="right")
    table.add_row("a|b", "[red]1[/red]")
    table.add_row(Text("c [d]"), "")
    assert markdown.page(["First.", table]) == (
        "First.\n\nA title\n\n| what | how much |\n| --- | ---: |\n| a\\|b | 1 |\n| c [d] |  |\n\n"
        "And so on\n")
    with pytest.raises(TypeError, match="neither a table nor text: object"):
        markdown.page([object()])  # type: ignore[list-item]


def test_few_points_are_drawn_and_the_ends_among_them() -> None:
    assert drawing.drawn(range(5)) == [0, 1, 2, 3, 4]
    some = drawing.drawn(range(100_000))
    assert len(some) == drawing.MOST_POINTS == len(set(some)) and sorted(some) == some
    assert (some[0], some[-1]) == (0, 99_999)


@pytest.mark.slow
def test_pictures_are_the_same_each_time(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        picture, axes = drawing.begin().subplots()
        axes.plot([1, 2], label="words that can be searched")
        axes.legend()
        made.append(drawing.save(picture, tmp_path / name, "x"))
    assert [path.name for path in made[0]] == ["x.png", "x.svg"]
    for one, two in zip(*made, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert b"words that can be searched" in made[0][1].read_bytes()


# -- origin ------------------------------------------------------------------------------------

HASH = "0123456789abcdef0123456789abcdef01234567"


def test_the_commit_is_read_off_gits_files(tmp_path: Path) -> None:
    assert origin.commit(tmp_path) is None
    git = tmp_path / ".git"
    git.mkdir()
    write(git / "HEAD", "ref: refs/heads/main\n")
    assert origin.commit(tmp_path) is None
    write(git / "packed-refs", f"# pack-refs with: peeled\n{HASH} refs/heads/main\n")
    assert origin.commit(tmp_path) == HASH
    (git / "refs" / "heads").mkdir(parents=True)
    loose = HASH[::-1]
    write(git / "refs" / "heads" / "main", f"{loose}\n")
    assert origin.commit(tmp_path) == loose
    write(git / "HEAD", f"{HASH}\n")
    assert origin.commit(tmp_path) == HASH
    write(git / "HEAD", "nonsense\n")
    assert origin.commit(tmp_path) is None
    # A work tree beside it.
    beside, inside = tmp_path / "beside", git / "worktrees" / "beside"
    beside.mkdir()
    inside.mkdir(parents=True)
    write(beside / ".git", f"gitdir: {inside}\n")
    write(inside / "HEAD", "ref: refs/heads/main\n")
    write(inside / "commondir", "../..\n")
    assert origin.commit(beside) == loose


def test_the_code_has_a_digest() -> None:
    assert len(origin.code()) == 16 and origin.code() == origin.code.__wrapped__()
    facts = origin.circumstances()
    assert facts["code"] == origin.code() and facts["tor"] is None
    assert facts["machine"]["cores"] >= 1
