"""The ablation table's regimes train and score what they name; what is there is not trained again."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from imagery import ablation

REGIMES = ("half", "frozen")
EVERY = 6  # of the images: how good a model of two iterations is says nothing


def some_images(imagery_dir: Path, shared: Path) -> Path:
    """The shared folder with fewer images, each with its mask."""
    for folder in sorted(path for path in imagery_dir.rglob("*") if path.is_dir()):
        files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stem)
        (shared / "imagery" / folder.relative_to(imagery_dir)).mkdir(parents=True)
        for file in files[::EVERY]:
            shutil.copy(file, shared / "imagery" / file.relative_to(imagery_dir))
    return shared


def test_a_run_is_trained_once_and_stands_in_the_table(
    tmp_path: Path,
    imagery_dir: Path,
    weights_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ablation, "SHARED", some_images(imagery_dir, tmp_path / "shared"))
    wanted = {regime: ablation.Run(regime, "full", 0, "road-epfl") for regime in REGIMES}
    numbers = ablation.numbers

    def few_iterations(run: ablation.Run) -> dict[str, Any]:
        params = numbers(run)
        params["presets"][params["preset"]]["train"]["iterations"] = 2
        return params

    monkeypatch.setattr(ablation, "numbers", few_iterations)
    monkeypatch.setattr(ablation, "runs", lambda regimes: [wanted[regime] for regime in regimes])
    options = [option for regime in REGIMES for option in ("--regime", regime)]
    monkeypatch.setattr(sys, "argv", ["ablation.py", str(tmp_path), *options])
    ablation.main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    for regime, table in zip(REGIMES, tables, strict=True):
        head, _, row = table.splitlines()
        scored = [name for name, cell in zip(head.split("|"), row.split("|"), strict=True) if cell.strip()]
        assert [name.strip() for name in scored] == [regime, "Epfl2Vegas", "Epfl2Shanghai", "Epfl2Epfl"]
    models = [
        tmp_path / run.folder / "artifacts/models/road-epfl/model.safetensors" for run in wanted.values()
    ]
    written = [model.stat().st_mtime_ns for model in models]
    ablation.main()
    assert [model.stat().st_mtime_ns for model in models] == written
