"""A step's command in this process, in one process a GPU, or on many nodes."""

import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from crossearth.components.train_job import TrainJobConfig, run_train_job
from crossearth.components.workspace import crossearth
from crossearth.data.config import load_config

# what a node of a TrainJob needs of this pod's environment and all may see; secrets come by reference
FORWARDED = re.compile(
    r"^(MLFLOW_TRACKING_URI|CROSSEARTH_\w+|AWS_ENDPOINT_URL|AWS_DEFAULT_REGION|NCCL_\w+|OMP_NUM_THREADS)$"
)


def launch(arguments: Sequence[str], workspace: str, processes: int, job: dict[str, Any]) -> None:
    """Runs `crossearth ARGUMENTS`; the working folder is the workspace.

    Args:
        processes: with more than one, torchrun starts so many here.
        job: fields of TrainJobConfig; if there are any, a TrainJob does the work.

    Raises:
        InputError: what the command refuses; a wrong field of `job`.
        RuntimeError: the command failed in torchrun or in the TrainJob.
    """
    if job:
        config = load_config(TrainJobConfig, job, "trainer")
        environment = {name: value for name, value in os.environ.items() if FORWARDED.match(name)}
        run_train_job("-".join(["crossearth", *arguments]), arguments, workspace, config, environment)
    elif processes > 1:
        command = ["torchrun", "--standalone", f"--nproc-per-node={processes}", "--no-python", "crossearth"]
        code = subprocess.run([*command, *arguments], check=False).returncode
        if code:
            raise RuntimeError(f"torchrun crossearth {' '.join(arguments)} ended with exit code {code}")
    else:
        crossearth(*arguments)
