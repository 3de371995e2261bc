"""The scripts of infra/slurm: arrays that a fake scheduler runs; each task's command is what it shall be."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

SCRIPTS = sorted((Path(__file__).parents[2] / "infra/slurm").glob("*.sbatch"))


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with sbatch, which runs the tasks of an array one after the other, srun and crossearth."""
    programs = {
        # as Slurm: options come first, then the script, then its arguments
        "sbatch": "first=${1#--array=} last=${first#*-} first=${first%-*}; shift\n"
        'for ((id = first; id <= last; id++)); do SLURM_ARRAY_TASK_ID=$id SLURM_CPUS_PER_TASK=3 "$@"; done',
        "srun": 'exec "$@"',
        "crossearth": 'printf "%s\\n" "$OMP_NUM_THREADS $*" >>commands',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\nset -e\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submit(cluster: Path, script: str, array: str, *arguments: str, options: str = "") -> tuple[int, str]:
    """Exit code and what was said; commands that ran lie in the file `commands`."""
    path = next(path for path in SCRIPTS if path.stem == script)
    environment = {"PATH": f"{cluster}:{os.environ['PATH']}", "CROSSEARTH_OPTIONS": options}
    done = subprocess.run(
        ["sbatch", f"--array={array}", str(path), *arguments],
        cwd=cluster,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


def commands(cluster: Path) -> list[str]:
    return (cluster / "commands").read_text().splitlines()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_bash_and_says_what_it_asks_for(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    asked = [
        line.split()[1].partition("=")[0] for line in path.read_text().splitlines() if "#SBATCH " in line
    ]
    assert {"--job-name", "--cpus-per-task", "--mem", "--time", "--output"} <= set(asked)


def test_each_task_ingests_one_name(cluster: Path) -> None:
    assert submit(cluster, "ingest", "0-1", "loveda", "potsdam", options="--catalog my.yaml") == (0, "")
    assert commands(cluster) == [f"3 ingest --catalog my.yaml {name}" for name in ("loveda", "potsdam")]


def test_an_array_longer_than_its_names_is_said(cluster: Path) -> None:
    code, words = submit(cluster, "ingest", "0-2", "loveda", "potsdam")
    assert code == 2
    assert "task 2, but 2 names: submit with --array=0-1" in words


def test_stylize_shares_out_the_tiles_and_a_task_can_be_done_again(cluster: Path) -> None:
    assert submit(cluster, "stylize", "0-1", "2", "potsdam-rgb") == (0, "")
    assert submit(cluster, "stylize", "1-1", "2", "potsdam-rgb") == (0, "")
    assert commands(cluster) == [f"3 stylize --shard {index}/2 potsdam-rgb" for index in (0, 1, 1)]


def test_predict_shares_out_the_scenes_whatever_their_names(cluster: Path) -> None:
    assert submit(cluster, "predict", "0-1", "2", "m", "my maps", "a scene.tif", "b.tif") == (0, "")
    wanted = "3 predict --model m --out my maps --shard {}/2 a scene.tif b.tif"
    assert commands(cluster) == [wanted.format(index) for index in (0, 1)]
    assert (cluster / "my maps").is_dir(), "so that one scene's map is no file of that name"


@pytest.mark.parametrize("script", ["ingest", "stylize", "predict"])
def test_outside_an_array_a_script_says_how_to_submit_it(cluster: Path, script: str) -> None:
    path = next(path for path in SCRIPTS if path.stem == script)
    environment = {"PATH": f"{cluster}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(path), "2", "a", "b", "c"], cwd=cluster, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "--array=0-LAST" in done.stderr
    assert not (cluster / "commands").exists()
