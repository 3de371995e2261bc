"""The ablation table's frozen regime trains and scores what it names; what is there is not trained again."""

from pathlib import Path
from typing import Any

import pytest
from imagery import ablation

RUN = ablation.Run("frozen", "full", 0, "road-epfl")


def test_a_run_is_trained_once_and_stands_in_the_table(
    tmp_path: Path, imagery_dir: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = ablation.numbers

    def few_iterations(run: ablation.Run) -> dict[str, Any]:
        params = numbers(run)
        params["presets"][params["preset"]]["train"]["iterations"] = 2
        return params

    monkeypatch.setattr(ablation, "numbers", few_iterations)
    ablation.prepare(tmp_path)
    ablation.set_up(RUN, tmp_path)
    ablation.carry_out(RUN, tmp_path)
    head, _, row = ablation.table(tmp_path, "frozen").splitlines()
    scored = [name for name, cell in zip(head.split("|"), row.split("|"), strict=True) if cell.strip()]
    assert [name.strip() for name in scored] == ["frozen", "Epfl2Vegas", "Epfl2Shanghai", "Epfl2Epfl"]
    model = tmp_path / RUN.folder / "artifacts/models/road-epfl/model.safetensors"
    written = model.stat().st_mtime_ns
    ablation.carry_out(RUN, tmp_path)
    assert model.stat().st_mtime_ns == written
