"""The mini pipeline killed, stopped and out of disk amid its steps, then run to its end."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from disks import fill, remount
from graphs import environment, run_pipeline
from steps import run_here

RECIPE, TARGET = "deepglobe", "massachusetts"
COMMANDS = (
    f"synthesize {RECIPE} {TARGET} million-aid",
    "styles fit",
    f"ingest {RECIPE} {TARGET}",
    f"train {RECIPE}",
    f"evaluate {RECIPE}",
    "report",
)


def start(folder: Path, params: Path) -> "subprocess.Popen[str]":
    """The pipeline of one recipe, in a process group of its own as a terminal starts it."""
    workspace = folder / "workspace"
    options = ["--recipe", RECIPE, "--workspace", str(workspace), "--params", str(params)]
    return subprocess.Popen(
        ["crossearth", "pipeline", "run", "training", *options],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def steps_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Waits until a step runs, some seconds into its work."""
    while process.poll() is None:
        running = psutil.Process(process.pid).children(recursive=True)
        if any(time.time() - child.create_time() > 4 for child in running):
            return running
        time.sleep(0.2)
    raise AssertionError(process.communicate()[1])


def left(process: "subprocess.Popen[str]", code: int, steps: list[psutil.Process]) -> None:
    """A pipeline that was told to stop has done so within seconds, and its steps too."""
    said = process.communicate(timeout=30)[1]
    assert process.returncode == code, said
    assert "go on with: crossearth pipeline run training" in said
    assert "Traceback" not in said
    assert not psutil.wait_procs(steps, timeout=5)[1]


@pytest.fixture
def undisturbed(
    short_params: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The table that the steps lead to when nobody disturbs them, one after the other in this process."""
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    shutil.copy(short_params, folder / "params.yaml")
    for command in COMMANDS:
        code, said = run_here(command, folder, monkeypatch, capsys, data="artifacts/archives")
        assert code == 0, said
    monkeypatch.undo()
    return (folder / "artifacts/report/scores.csv").read_text()


def test_a_pipeline_without_disk_killed_and_stopped_ends_as_if_it_had_not_been(
    short_params: Path, disk: Path, undisturbed: str
) -> None:
    fill(disk, 90 * 2**20)  # as much as the drawn archives say that they need
    done = run_pipeline("training", disk, "--recipe", RECIPE, params=short_params)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "No space left" in done.stderr or "are free" in done.stderr
    assert "Traceback" not in said
    remount(disk, "size=2g")

    process = start(disk, short_params)
    steps_of(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    process = start(disk, short_params)
    running = steps_of(process)
    os.killpg(process.pid, signal.SIGINT)
    left(process, 130, running)

    process = start(disk, short_params)
    running = steps_of(process)
    another = start(disk, short_params)
    assert "waiting for process" in another.stderr.readline()
    another.terminate()
    said = another.communicate(timeout=30)[1]
    assert another.returncode == 143, said
    process.terminate()  # the steps hear of it from the pipeline alone
    left(process, 143, running)

    done = run_pipeline("training", disk, "--recipe", RECIPE, params=short_params)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert (disk / "workspace/artifacts/report/scores.csv").read_text() == undisturbed
