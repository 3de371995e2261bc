"""The image, pipelines in containers, and a TrainJob of two containers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crossearth.components import train_job
from crossearth.components.train_job import TrainJobConfig, TrainJobError, run_train_job

ROOT = Path(__file__).parents[2]
RECIPE = "deepglobe"


def crossearth(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    # as many threads on both sides: sums are the same to the last digit
    environment["OMP_NUM_THREADS"] = "2"
    command = ["crossearth", "pipeline", "run", *arguments, "--params", str(ROOT / "params.yaml")]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def in_image(image: str, *command: str) -> "subprocess.CompletedProcess[str]":
    options = ["--rm", "--network=none", "--read-only", "--tmpfs=/tmp"]
    return subprocess.run(
        ["docker", "run", *options, image, *command], capture_output=True, text=True, check=False
    )


def test_the_image_runs_as_nobody_special_on_a_read_only_root(image: str) -> None:
    assert in_image(image, "id", "-u").stdout.strip() == "1000"
    assert in_image(image, "crossearth", "--version").stdout.startswith("crossearth ")
    assert in_image(image, "pip", "check").returncode == 0
    described = json.loads(
        subprocess.run(["docker", "inspect", image], capture_output=True, check=True).stdout
    )[0]
    assert described["Config"].get("Healthcheck") is None
    assert described["Size"] < 2.5e9


def test_the_image_holds_the_code_of_this_checkout(image: str) -> None:
    program = "from crossearth.data.files import code_version; print(code_version())"
    here = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert in_image(image, "python", "-c", program).stdout == here


def test_nothing_else_of_the_checkout_is_in_the_image(image: str) -> None:
    found = in_image(
        image, "find", "/", "-xdev", "-name", ".git", "-o", "-xdev", "-name", "test_containers.py"
    )
    assert found.stdout == ""


@pytest.fixture(scope="module")
def trained(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the graph has run in containers."""
    folder = tmp_path_factory.mktemp("containers")
    done = crossearth(
        folder, "training", "--docker", "--image", image, "--recipe", RECIPE, "--workspace", "workspace"
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    return folder / "workspace"


def test_containers_give_the_table_of_processes(trained: Path, tmp_path: Path) -> None:
    done = crossearth(tmp_path, "training", "--recipe", RECIPE, "--workspace", "workspace")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    table = (tmp_path / "workspace/artifacts/report/scores.csv").read_text()
    assert (trained / "artifacts/report/scores.csv").read_text() == table


def test_a_container_that_fails_fails_the_pipeline_by_name(image: str, tmp_path: Path) -> None:
    done = crossearth(
        tmp_path, "training", "--docker", "--image", image, "--recipe", RECIPE, "--preset", "paper"
    )
    assert done.returncode == 1
    assert "step fetch failed" in done.stderr
    assert "no archives" in done.stderr
    assert '"failed_step": "fetch"' in done.stdout + done.stderr


def test_an_absent_image_is_said_before_anything_runs(engine: None, tmp_path: Path) -> None:
    done = crossearth(tmp_path, "training", "--docker", "--image", "crossearth-absent", "--recipe", RECIPE)
    assert done.returncode == 2
    assert "no image 'crossearth-absent'" in done.stderr


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The SDK mounts ~/.kubeflow/trainer/containers/JOB as every container's workspace."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(train_job, "POLL_SECONDS", 1.0)
    return tmp_path


def two_containers(name: str, arguments: list[str], image: str) -> None:
    trainer = pytest.importorskip("kubeflow.trainer")
    client = trainer.TrainerClient(
        trainer.ContainerBackendConfig(container_runtime="docker", pull_policy="Never", auto_remove=True)
    )
    config = TrainJobConfig(image=image, nodes=2, timeout_s=900)
    run_train_job(name, arguments, "/workspace", config, {"OMP_NUM_THREADS": "1"}, client)


def test_two_containers_train_a_recipe_together(
    image: str, trained: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = home / ".kubeflow/trainer/containers/pair"
    shutil.copytree(trained, workspace)
    shutil.rmtree(workspace / "artifacts/models")
    params = json.loads((workspace / "params.yaml").read_text())
    params["presets"]["mini"]["train"]["iterations"] = 3
    (workspace / "params.yaml").write_text(json.dumps(params))
    subprocess.run(["chmod", "-R", "a+rwX", str(workspace)], check=True)
    two_containers("pair", ["train", RECIPE], image)
    # the SDK takes the workspace away with the job: the log is what is left
    log = capsys.readouterr().out
    assert "Master node is reachable" in log
    assert log.count(f"wrote artifacts/models/{RECIPE}") == 2
    running = subprocess.run(
        ["docker", "ps", "--quiet", "--filter", "name=pair"], capture_output=True, check=True
    )
    assert not running.stdout


def test_two_containers_that_fail_are_a_failure(image: str, home: Path) -> None:
    workspace = home / ".kubeflow/trainer/containers/lost"
    workspace.mkdir(parents=True)
    workspace.chmod(0o777)
    with pytest.raises(TrainJobError, match=r"(?s)failed.*unknown recipe"):
        two_containers("lost", ["train", "nowhere"], image)
