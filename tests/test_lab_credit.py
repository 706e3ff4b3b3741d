"""The experiments' data: what leaks the answer is refused, and what ships needs no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accord.problems import LEAKS, NO_FILE, Problem
from lab import credit


def write(path: Path, extra: np.ndarray | None = None, at: int = 3) -> Path:
    """The credit data's shape, 60 rows; with one feature more, or in the place of another."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 23))
    answer = np.arange(60) % 3 == 0
    names = [f"X{i}" for i in range(23)]
    if extra is not None:
        features[:, at] = extra
    lines = [",".join(["ID", *names, "Y"]), *(
        ",".join([str(i), *(f"{x:.6g}" for x in row), str(int(y))])
        for i, (row, y) in enumerate(zip(features, answer, strict=True)))]
    path.write_text("\n".join(lines) + "\n")
    return path


ANSWER = (np.arange(60) % 3 == 0).astype(float)


@pytest.mark.parametrize(("feature", "words"), [
    (ANSWER, "column X3 equals Y"),
    (1 - ANSWER, "column X3 is the opposite of Y"),
    (7 - 3 * ANSWER, "column X3 has a correlation of -1.000 with Y"),
    (ANSWER + 1e-4 * np.sin(np.arange(60)), "column X3 has a correlation of 1.000 with Y"),
])
def test_a_feature_that_is_the_answer_is_refused(
    tmp_path: Path, feature: np.ndarray, words: str
) -> None:
    with pytest.raises(Problem) as caught:
        credit.load(write(tmp_path / "credit.csv", feature))
    assert caught.value.kind is LEAKS
    assert words in caught.value.sentence


def test_the_papers_table_is_refused_for_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = write(tmp_path / "credit.csv")
    head, *body = path.read_text().splitlines()
    path.write_text("\n".join([f"{head.removesuffix('Y')}D,Y", *(
        f"{line},{line[-1]}" for line in body)]) + "\n")
    with pytest.raises(Problem, match="column D equals Y; take that column out"):
        credit.load(path)
    # 24 features of which none leaks are still not this data set.
    path.write_text("\n".join([f"{head.removesuffix('Y')}D,Y", *(
        f"{line[:-1]}{i},{line[-1]}" for i, line in enumerate(body))]) + "\n")
    with pytest.raises(Problem, match="24 features between ID and the answer"):
        credit.load(path)
    path.write_text("\n".join([head.replace("X4", "X5"), *body]) + "\n")
    with pytest.raises(Problem, match="two columns have the same name"):
        credit.load(path)


def test_a_feature_that_only_helps_is_not_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(size=60)
    table = credit.load(write(tmp_path / "credit.csv", ANSWER + 0.05 * noise))
    assert table.rows.shape == (60, 24)
    # A column that never changes tells nothing, and harms nothing.
    assert np.isfinite(credit.load(write(tmp_path / "constant.csv", np.ones(60))).rows).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "ones"), [
    ("breast_cancer", (569, 31), 212), ("digits", (1797, 65), 174)])
def test_what_comes_with_scikit_learn(name: str, shape: tuple[int, int], ones: int) -> None:
    path = credit.find(f"sklearn:{name}")
    assert not credit.is_file(path)
    table = credit.load(path)
    assert table.rows.shape == shape and table.labels.sum() == ones
    assert np.allclose(np.linalg.norm(table.rows, axis=1), 1.0)
    parts = credit.deal(table, 100, 0)
    right = credit.converged(*parts.train)
    wrong = np.mean((parts.test[0] @ right > 0) != (parts.test[1] > 0.5))
    assert wrong < 0.06 < min(ones, shape[0] - ones) / shape[0]


def test_what_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(credit.VARIABLE, "sklearn:digits")
    assert credit.find(None) == Path("sklearn:digits")
    assert credit.find("made") is None
    assert credit.find("some.csv") == Path("some.csv") and credit.is_file(Path("some.csv"))
    assert not credit.is_file(None)
    with pytest.raises(Problem) as caught:
        credit.find("sklearn:iris")
    assert caught.value.kind is NO_FILE
    assert "there are sklearn:breast_cancer, sklearn:digits" in caught.value.sentence
