"""A step's command in several processes of one pod."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from services import free_port

from crossearth.components.runtime.processes import join_processes
from crossearth.data.common.errors import InputError

TORCHRUN = """#!/bin/sh
trap 'sleep 0.5; touch saved; exit 1' TERM
touch started
while :; do sleep 0.1; done
"""
POD = """
import signal, sys
from crossearth.components.pods.launch import launch
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
launch(print, ["train", "town"], ".", 2, {})
"""


def test_a_stopped_pod_lets_the_processes_of_torchrun_save(tmp_path: Path) -> None:
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(TORCHRUN)
    torchrun.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    pod = subprocess.Popen([sys.executable, "-c", POD], cwd=tmp_path, env={**os.environ, "PATH": path})
    while pod.poll() is None and not (tmp_path / "started").exists():
        time.sleep(0.05)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(timeout=60) == 143
    assert (tmp_path / "saved").exists()


GROUP = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
UNSET = "unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT LOCAL_RANK"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": None, "MASTER_PORT": None}, "RANK=0, but no WORLD_SIZE, MASTER_PORT"),
        ({"RANK": "first"}, "RANK=first"),
        ({"RANK": ""}, "RANK="),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE=-2"),
        ({"RANK": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"MASTER_PORT": "tcp://10.0.0.1:80"}, "MASTER_PORT=tcp://10.0.0.1:80"),
    ],
)
def test_half_a_group_in_the_environment_is_refused(
    changes: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (GROUP | changes).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError) as refused, join_processes():
        pass
    assert str(refused.value).startswith(f"environment: {message}\n")
    assert UNSET in str(refused.value)


def test_a_group_of_one_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (GROUP | {"WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    with join_processes() as processes:
        assert (processes.rank, processes.size) == (0, 1)
    assert not torch.distributed.is_initialized()


WAITING = """
import signal, sys
from crossearth.components.runtime import processes
processes.TELL_AFTER_S, processes.JOIN_WITHIN_S = 0.1, float(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
with processes.join_processes():
    pass
"""


@pytest.mark.parametrize(
    ("rank", "awaited", "seconds", "end"),
    [
        ("0", "1 other(s) to come to", "100", "KeyboardInterrupt"),
        ("1", "process 0 at", "1", "none came in 1 s"),
    ],
)
def test_processes_that_never_come_are_named_and_ctrl_c_is_heard(
    rank: str, awaited: str, seconds: str, end: str
) -> None:
    """RANK and WORLD_SIZE may be left over from a batch system."""
    group = GROUP | {"RANK": rank, "MASTER_PORT": str(free_port())}
    waiting = subprocess.Popen(
        [sys.executable, "-c", WAITING, seconds], env=os.environ | group, stderr=subprocess.PIPE, text=True
    )
    assert waiting.stderr
    told = waiting.stderr.readline()
    assert (
        f"process {rank} of 2 waits for {awaited} 127.0.0.1:{group['MASTER_PORT']}" in told and UNSET in told
    )
    if end == "KeyboardInterrupt":
        waiting.send_signal(signal.SIGINT)
    words = waiting.communicate(timeout=20)[1]
    assert end in words
