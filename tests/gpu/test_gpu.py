"""What a GPU computes is what the CPU computes, as far as its arithmetic allows."""

import csv
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from own_domain import draw, save
from training_folder import RECIPE, environment, write_folder

from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights import checkpoint


@pytest.fixture(autouse=True)
def needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")


def crossearth(folder: Path, *arguments: str, **variables: str) -> None:
    done = subprocess.run(
        ["crossearth", *arguments],
        cwd=folder,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_a_training_has_the_curve_of_the_cpu(tmp_path: Path) -> None:
    curves = []
    for name, variables in (("cpu", {"CUDA_VISIBLE_DEVICES": ""}), ("gpu", {})):
        folder = tmp_path / name
        write_folder(folder)
        crossearth(folder, "train", RECIPE, **variables)
        with (folder / f"artifacts/models/{RECIPE}/curves.csv").open(newline="") as file:
            curves.append([float(row["loss"]) for row in csv.DictReader(file) if row["loss"]])
    assert len(curves[0]) == 8
    assert curves[1] == pytest.approx(curves[0], rel=0.02)


@pytest.mark.parametrize(("precision", "alike"), [("float32", 0.9999), ("bfloat16", 0.98)])
def test_a_map_is_that_of_the_cpu(precision: str, alike: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    about = {"classes": ["background", "road"], "palette": ["#000000", "#ffffff"], "provenance": "own"}
    checkpoint.save(crossearth_tiny(2, 64), tmp_path / "model", about)
    save(tmp_path / "scene.tif", draw(0, side=200)[0])
    maps = []
    for device, words in (("cpu", "float32"), ("cuda", precision)):
        out = f"{device}.tif"
        options = ["--device", device, "--precision", words]
        crossearth(tmp_path, "predict", "scene.tif", "--model", "model", "--out", out, *options)
        with rasterio.open(tmp_path / out) as file:
            maps.append(file.read(1))
    assert np.mean(maps[0] == maps[1]) >= alike
