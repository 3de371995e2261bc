"""The ablation table's regimes train and score what they name; what is there is not trained again."""

import sys
from pathlib import Path
from typing import Any

import pytest
from imagery import ablation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, imagery_dir: Path) -> Path:
    """Of the table: its domains and styles are made once for both regimes."""
    return tmp_path_factory.mktemp("ablation")


@pytest.mark.parametrize("regime", ["half", "frozen"])
def test_a_run_is_trained_once_and_stands_in_the_table(
    regime: str,
    folder: Path,
    weights_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = ablation.Run(regime, "full", 0, "road-epfl")
    numbers = ablation.numbers

    def few_iterations(run: ablation.Run) -> dict[str, Any]:
        params = numbers(run)
        params["presets"][params["preset"]]["train"]["iterations"] = 2
        return params

    monkeypatch.setattr(ablation, "numbers", few_iterations)
    monkeypatch.setattr(ablation, "runs", lambda _: [wanted])
    monkeypatch.setattr(sys, "argv", ["ablation.py", str(folder), "--regime", regime])
    ablation.main()
    head, _, row = capsys.readouterr().out.strip().splitlines()
    scored = [name for name, cell in zip(head.split("|"), row.split("|"), strict=True) if cell.strip()]
    assert [name.strip() for name in scored] == [regime, "Epfl2Vegas", "Epfl2Shanghai", "Epfl2Epfl"]
    model = folder / wanted.folder / "artifacts/models/road-epfl/model.safetensors"
    written = model.stat().st_mtime_ns
    ablation.main()
    assert model.stat().st_mtime_ns == written
