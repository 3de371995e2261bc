"""The image, pipelines in containers, and a TrainJob of two containers."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from docker import from_env
from graphs import PARAMS, RECIPES, run_pipeline
from services import docker

from crossearth.components.pods import train_job
from crossearth.components.pods.train_job import TrainJobConfig, TrainJobError, run_train_job
from crossearth.pipelines.containers import run_container

RECIPE = RECIPES[0]


def in_image(image: str, *command: str) -> "subprocess.CompletedProcess[str]":
    options = ["--rm", "--network=none", "--read-only", "--tmpfs=/tmp"]
    return subprocess.run(
        ["docker", "run", *options, image, *command], capture_output=True, text=True, check=False
    )


def test_the_image_runs_as_nobody_special_on_a_read_only_root(image: str) -> None:
    assert in_image(image, "id", "-u").stdout.strip() == "1000"
    assert in_image(image, "crossearth", "--version").stdout.startswith("crossearth ")
    assert in_image(image, "pip", "check").returncode == 0
    (described,) = json.loads(docker("inspect", image))
    assert described["Config"].get("Healthcheck") is None
    assert described["Size"] < 2.5e9


def test_the_image_holds_the_code_of_this_checkout(image: str) -> None:
    program = "from crossearth.components.runtime.code import code_digest; print(code_digest('train'))"
    here = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert in_image(image, "python", "-c", program).stdout == here


def test_nothing_else_of_the_checkout_is_in_the_image(image: str) -> None:
    found = in_image(
        image, "find", "/", "-xdev", "-name", ".git", "-o", "-xdev", "-name", "test_containers.py"
    )
    assert found.stdout == ""


def test_the_exit_code_of_a_container_that_ends_at_once_is_read(image: str) -> None:
    before = docker("ps", "--all", "--quiet")
    with closing(from_env()) as client:
        codes = {run_container(client, image, ["sh", "-c", "exit 3"], {}) for _ in range(20)}
    assert codes == {3}
    assert docker("ps", "--all", "--quiet") == before


def test_dvc_processes_and_containers_give_the_same_table(
    with_dvc: Path, with_kubeflow: Path, scored: Path
) -> None:
    folders = (with_dvc, with_kubeflow, scored)
    tables = [(folder / "artifacts/report/scores.csv").read_text() for folder in folders]
    # one row a class, with the digest of all that the model was made from and the IoU in all its digits
    assert all(recipe in tables[0] for recipe in RECIPES)
    assert tables[1] == tables[0]
    assert tables[2] == tables[0]


def test_an_absent_image_is_said_before_anything_runs(engine: None, tmp_path: Path) -> None:
    done = run_pipeline("training", tmp_path, "--docker", "--image", "crossearth-absent")
    assert done.returncode == 2
    assert "no image 'crossearth-absent'" in done.stderr
    assert not list((tmp_path / "workspace").rglob("*.json"))


def test_an_interrupted_run_leaves_no_container(image: str, tmp_path: Path) -> None:
    def running() -> str:
        return docker("ps", "--quiet", "--filter", "label=crossearth-run")

    command = ["training", "--docker", "--image", image, "--params", str(PARAMS), "--workspace", "workspace"]
    program = Path(sys.executable).with_name("crossearth")
    with subprocess.Popen([program, "pipeline", "run", *command], cwd=tmp_path) as run:
        while not running():
            assert run.poll() is None
            time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
    assert not running()


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
    config = TrainJobConfig(image=image, nodes=2, timeout_s=900, environment={"OMP_NUM_THREADS": "1"})
    run_train_job(name, arguments, "/workspace", config, client)


def test_two_containers_train_a_recipe_together(
    image: str, scored: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = home / ".kubeflow/trainer/containers/pair"
    shutil.copytree(scored, workspace)
    shutil.rmtree(workspace / "artifacts/models")
    params = json.loads((workspace / "params.yaml").read_text())
    params["presets"]["mini"]["train"]["iterations"] = 3
    (workspace / "params.yaml").write_text(json.dumps(params))
    subprocess.run(["chmod", "-R", "a+rwX", str(workspace)], check=True)
    two_containers("pair", ["train", RECIPE], image)
    # the SDK takes the workspace away with the job: the log is what is left
    log = capsys.readouterr().out
    assert f"process 0 of 2 $ crossearth train {RECIPE}" in log
    assert f"wrote artifacts/models/{RECIPE}" in log
    assert not docker("ps", "--quiet", "--filter", "name=pair")


def test_two_containers_that_fail_are_a_failure(image: str, home: Path) -> None:
    workspace = home / ".kubeflow/trainer/containers/lost"
    workspace.mkdir(parents=True)
    workspace.chmod(0o777)
    with pytest.raises(TrainJobError, match=r"(?s)failed.*unknown recipe"):
        two_containers("lost", ["train", "nowhere"], image)
