"""DVC's experiments: one a trial, queued, run in copies of the folder, and read.

A copy holds what git tracks, as it is in the working folder, and the outputs of DVC; it is gone afterwards,
and what was trained lies in DVC's cache.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossearth.components.runtime.places import MODELS, data_dir
from crossearth.components.runtime.tracking import tracking_uri
from crossearth.data.common.errors import InputError
from crossearth.data.style.weights import style_weights_dir

LOCK = "dvc.lock"
FILES = ("dvc.yaml", "params.yaml")
DATA = ("validate", "styles")  # the stages that trainings hang on, besides their parameters


def expect_repository(files: Iterable[Path]) -> None:
    """Looks for what DVC's experiments need in the working folder.

    Args:
        files: further ones that a training reads.

    Raises:
        InputError: no git repository or no commit in it, not DVC's, or a file that git does not track.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    start = "git add -A && git commit -m start"
    if not all(Path(name).is_file() for name in FILES):
        raise InputError(
            f"no {' and '.join(FILES)} here",
            where=Path.cwd(),
            next_step="go where `dvc repro` runs; in a new folder: crossearth init --benchmark",
        )
    if _git("rev-parse", "--git-dir"):
        raise InputError(
            "not a git repository, and DVC keeps its experiments in git",
            where=Path.cwd(),
            next_step=f"git init && dvc init && {start}",
        )
    try:
        without_git = Repo(Repo.find_root()).config["core"].get("no_scm")
    except NotDvcRepoError as error:
        raise InputError("DVC is not set up", where=Path.cwd(), next_step=f"dvc init && {start}") from error
    if without_git:
        raise InputError(
            "DVC is set up without git, where it has no experiments",
            where=".dvc/config: core.no_scm",
            next_step=f"dvc config --unset core.no_scm && {start}",
        )
    if _git("rev-parse", "--verify", "HEAD"):
        raise InputError("no commit yet", where=Path.cwd(), next_step=start)
    for path in (*map(Path, FILES), *files):
        if not path.is_absolute() and _git("ls-files", "--error-unmatch", path.as_posix()):
            raise InputError(
                "git does not track it, and an experiment runs in a copy of what git tracks",
                where=path,
                next_step=f"git add -f {shlex.quote(path.as_posix())} && git commit -m tuning",
            )


def make_data() -> None:
    """Makes what trainings read, once for all experiments: their copies take it from DVC's cache.

    Raises:
        InputError: a stage failed; it has said why.
    """
    if dvc("repro", *DATA):
        raise InputError(f"dvc repro {' '.join(DATA)} failed: see above", where="dvc.yaml")


def states() -> dict[str, str]:
    """Name -> "Queued", "Running", "Failed" or "Success": experiments of the commit that is checked out."""
    from dvc.api import exp_show

    found: dict[str, str] = {}
    for row in exp_show():
        name, state = row.get("Experiment"), row.get("State") or "Success"
        # of one name, what failed before it ended well is listed, too
        if name and found.get(name) != "Success":
            found[name] = state
    return found


def queue(name: str, recipe: str, preset: str, values: Mapping[str, Any]) -> None:
    """Queues the training of a recipe with other values of its parameters.

    Raises:
        InputError: DVC refused; it has said why.
    """
    # hydra's grammar: ++ sets what is there and what is not; JSON's values are its values
    settings = [
        f"++presets.{preset}.recipes.{recipe}.{key}={json.dumps(value)}" for key, value in values.items()
    ]
    words = [word for setting in settings for word in ("--set-param", setting)]
    # the lock file says what is made already, and is in git in few projects; archives need not be in a copy
    here = ("--copy-paths", LOCK, "--allow-missing")
    if dvc("exp", "run", "--quiet", "--queue", *here, "--name", name, *words, f"train@{recipe}"):
        raise InputError(f"DVC did not take experiment {name}: see above")


def forget_failed(names: Sequence[str]) -> None:
    """Takes failed experiments out of DVC's queue, where their names would stand twice."""
    if names:
        dvc("queue", "remove", "--quiet", *names)


def run_queue(jobs: int) -> None:
    """Runs all that is queued and shows the logs; `states` says what failed."""
    dvc("exp", "run", "--run-all", "--jobs", str(jobs), threads=max(1, (os.cpu_count() or 1) // jobs))


def read_model(recipe: str, name: str) -> dict[str, Any]:
    """The description of the model that an experiment has trained."""
    from dvc.api import read

    found: dict[str, Any] = json.loads(read((MODELS / recipe / "model.json").as_posix(), rev=name))
    return found


def dvc(*words: str, threads: int | None = None) -> int:
    """Runs dvc in the working folder, its words on the standard error; gives its exit code."""
    own = {
        # dvc's workers start `dvc` and `crossearth`
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        # a copy of the folder is not the place to keep what these say
        "CROSSEARTH_DATA": str(data_dir().resolve()),
        "MLFLOW_TRACKING_URI": tracking_uri(),
    }
    if weights := style_weights_dir():
        own["CROSSEARTH_STYLE_WEIGHTS"] = str(weights.resolve())
    if threads and "OMP_NUM_THREADS" not in os.environ:
        own["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(command, stdout=sys.stderr, env={**os.environ, **own}, check=False).returncode


def _git(*words: str) -> int:
    """Exit code of git; nothing is printed."""
    try:
        return subprocess.run(["git", *words], capture_output=True, check=False).returncode  # noqa: S607
    except FileNotFoundError as error:
        raise InputError("git is not installed, and DVC keeps its experiments in it") from error
