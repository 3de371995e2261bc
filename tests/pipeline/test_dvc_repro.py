"""`dvc repro` of one recipe, for real: twice does nothing, an edit repeats what hangs on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGET = "evaluate@deepglobe"


def repro(checkout: Path) -> list[str]:
    """The stages that ran."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["dvc", "repro", TARGET],
        cwd=checkout,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path}: {old}"
    path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout") / "crossearth"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    edit(folder / "params.yaml", "iterations: 80", "iterations: 3")
    return folder


def test_repro_runs_once_and_after_an_edit_only_what_hangs_on_it(checkout: Path) -> None:
    first = repro(checkout)
    assert {"synthesize", "plan", "ingest@deepglobe", "validate", "styles", "train@deepglobe", TARGET} <= {
        *first
    }
    scores = checkout / "artifacts/scores/deepglobe/scores.csv"
    assert scores.read_text().startswith("setting,source,target,gap,recipe")

    assert repro(checkout) == []

    # a setting of another recipe
    edit(checkout / "data/settings.yaml", "gap: region+climate", "gap: region")
    assert not {"train@deepglobe", TARGET} & {*repro(checkout)}

    # the numbers of another recipe, then of this one
    edit(checkout / "params.yaml", "recipes: {}", "recipes: {casid-sub: {iterations: 4}}")
    assert not {"train@deepglobe", TARGET} & {*repro(checkout)}
    edit(checkout / "params.yaml", "casid-sub: {iterations: 4}", "deepglobe: {iterations: 4}")
    again = repro(checkout)
    assert {"train@deepglobe", TARGET} <= {*again}
    assert not {"synthesize", "ingest@deepglobe", "styles"} & {*again}
