"""A disk that fills up or may not be written to: said by name, and nothing half-done is left."""

import shutil
from pathlib import Path

import pytest
from disks import fill, remount
from steps import STEPS, Undisturbed, hidden, readable, run_here, written

from crossearth.components.runtime.tracking_store import create_database


@pytest.fixture(scope="module")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables take seconds to make."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    create_database(database)
    return database


@pytest.fixture
def tracked(new_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracking is never fatal, and has another disk here."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(new_store, tmp_path)}")


@pytest.mark.parametrize("share", [0, 0.6])
@pytest.mark.parametrize("name", [name for name, (_, places) in STEPS.items() if places])
def test_a_full_disk_is_said_and_leaves_no_half(
    name: str,
    share: float,
    disk: Path,
    tracked: None,
    undisturbed: dict[str, Undisturbed],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = undisturbed[name]
    folder = Path(shutil.copytree(step.before, disk / "user"))
    fill(disk, int(share * sum(map(len, step.files.values()))))
    code, said = run_here(STEPS[name][0], folder, monkeypatch, capsys)
    assert code == 2, said
    assert "Traceback" not in said
    # ingest looks before it begins; GDAL does not say why it cannot write
    assert any(words in said for words in ("No space left", "are free", "the disk's space")), said
    assert any(Path(place).parts[0] in said for place in STEPS[name][1]), said
    assert readable(folder, name).items() <= step.files.items()
    remount(disk, "size=1g")
    assert run_here(STEPS[name][0], folder, monkeypatch, capsys)[0] == 0
    assert written(folder, name) == step.files
    assert hidden(folder) <= step.hidden


@pytest.mark.parametrize("name", STEPS)
def test_a_disk_that_may_not_be_written_to_is_said(
    name: str,
    disk: Path,
    tracked: None,
    undisturbed: dict[str, Undisturbed],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(undisturbed[name].before, disk / "user"))
    remount(disk, "ro")
    code, said = run_here(STEPS[name][0], folder, monkeypatch, capsys)
    assert code == 2, said
    assert "Read-only file system" in said
    assert "choose a folder that you may write to" in said
    assert "Traceback" not in said
