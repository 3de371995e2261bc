"""A step in this process, in one process a GPU, or on many nodes."""

import re
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from crossearth.components.pods.train_job import LONGEST_NAME, TrainJobConfig, run_train_job
from crossearth.data.common.config import load_config
from crossearth.data.common.files import digest


def launch(
    run: Callable[[], object], arguments: Sequence[str], workspace: str, processes: int, job: dict[str, Any]
) -> None:
    """Runs a step; the working folder is the workspace.

    Args:
        run: the step's function, called where one process does the work.
        arguments: of `crossearth`, which calls the same function: torchrun and TrainJobs start commands.
        processes: with more than one, torchrun starts so many here.
        job: fields of TrainJobConfig; if there are any, a TrainJob does the work.

    Raises:
        InputError: what the step refuses; a wrong field of `job`.
        RuntimeError: the command failed in torchrun or in the TrainJob.
    """
    if job:
        config = load_config(TrainJobConfig, job, "trainer")
        run_train_job(job_name(arguments, workspace, config), arguments, workspace, config)
    elif processes > 1:
        command = ["torchrun", "--standalone", f"--nproc-per-node={processes}", "--no-python", "crossearth"]
        with subprocess.Popen([*command, *arguments]) as torchrun:
            try:
                code = torchrun.wait()
            except BaseException:
                torchrun.terminate()  # its processes save what they have
                raise
        if code:
            raise RuntimeError(f"torchrun crossearth {' '.join(arguments)} ended with exit code {code}")
    else:
        run()


def job_name(arguments: Sequence[str], workspace: str, config: TrainJobConfig) -> str:
    """A TrainJob's name, another one for another workspace."""
    return kubernetes_name(["crossearth", *arguments], [workspace, arguments, config.pod], LONGEST_NAME)


def kubernetes_name(words: Sequence[str], identity: object, longest: int) -> str:
    """A name that Kubernetes takes, of `longest` characters at most: another one for another `identity`."""
    tail = digest(identity)[:6]
    plain = re.sub("[^a-z0-9]+", "-", "-".join(words).lower())
    return f"{plain[: longest - len(tail) - 1].strip('-')}-{tail}"
