"""The example of own-data.md, word for word, on three real road sets: nine numbers, far above chance."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ITERATIONS = 300  # a third of the example's, for CI's sake


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, imagery_dir: Path, documented: Callable[[str], list[str]]
) -> Path:
    """A user's folder in which every line of the example has run."""
    folder = tmp_path_factory.mktemp("roads")
    catalog, params = documented("yaml")[:2]
    numbers = yaml.safe_load(params)
    numbers["presets"]["roads"]["train"]["iterations"] = ITERATIONS
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
