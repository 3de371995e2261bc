"""The example of own-data.md, word for word, on three real road sets: nine numbers, far above chance."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossearth.data.common.files import read_json
from crossearth.data.tiles.manifest import natural

# of the example's 900, for CI's sake; of Shanghai's scores no more is asked than that they are there
ITERATIONS = {"road-epfl": 200, "road-vegas": 300, "road-shanghai": 2}


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, imagery_dir: Path, documented: Callable[[str], list[str]]
) -> Path:
    """A user's folder in which every line of the example has run."""
    folder = tmp_path_factory.mktemp("roads")
    catalog, params = documented("yaml")[:2]
    numbers = yaml.safe_load(params)
    numbers["catalogs"] = ["roads.yaml"]  # recipes with numbers of their own must be known to every command
    numbers["presets"]["roads"]["recipes"] = {
        recipe: {"iterations": iterations} for recipe, iterations in ITERATIONS.items()
    }
    (folder / "roads.yaml").write_text(catalog)
    (folder / "params.yaml").write_text(yaml.safe_dump(numbers))
    (folder / "my-imagery").symlink_to(imagery_dir / "style_aid")
    environment = {
        **os.environ,
        "CROSSEARTH_DATA": str(imagery_dir),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    (example,) = (block for block in documented("sh") if "roads.yaml" in block)
    done = subprocess.run(
        ["bash", "-euc", example], cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Vegas2Shanghai" in done.stdout
    return folder


def test_nine_numbers_far_above_chance_at_home_and_a_visible_drop(workspace: Path) -> None:
    with (workspace / "artifacts/report/scores.csv").open(newline="") as file:
        scores = {row["setting"]: float(row["iou"]) for row in csv.DictReader(file) if row["metric"] != "IoU"}
    assert len(scores) == 9
    # of all pixels 20 % (EPFL) and 8 % (Vegas) are road: what naming every pixel road would score
    assert scores["Epfl2Epfl"] > 0.30
    assert scores["Vegas2Vegas"] > 0.20
    for source, targets in {"Epfl": ("Vegas", "Shanghai"), "Vegas": ("Epfl", "Shanghai")}.items():
        assert all(scores[f"{source}2{target}"] < scores[f"{source}2{source}"] / 2 for target in targets)


def test_new_imagery_is_told_from_the_source_without_a_label(workspace: Path, imagery_dir: Path) -> None:
    """The model of EPFL: its own test block is more of the same, Las Vegas and Shanghai are not."""
    images = sorted((imagery_dir / "road_epfl/images").iterdir(), key=lambda path: natural(path.name))
    own = images[-25:]  # the last quarter, as the catalog splits
    code, found = watch(workspace, "road-epfl", *own)
    assert (code, found["drifts"]) == (0, False)
    assert found["all"]["within_training"] > 0.75
    for name in ("road_vegas", "road_shanghai"):
        code, found = watch(workspace, "road-epfl", imagery_dir / name / "images")
        assert (code, found["drifts"]) == (1, True)
        assert found["all"]["within_training"] < 0.25


def watch(workspace: Path, recipe: str, *scenes: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and table of `crossearth watch`."""
    command = [Path(sys.executable).with_name("crossearth"), "watch", f"artifacts/models/{recipe}", *scenes]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True)
    assert "next: open" in done.stdout, done.stdout + done.stderr
    return done.returncode, read_json(workspace / "artifacts/watch/watch.json")
