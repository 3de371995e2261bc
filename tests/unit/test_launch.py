"""A step's command in several processes of one pod."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TORCHRUN = """#!/bin/sh
trap 'sleep 0.5; touch saved; exit 1' TERM
touch started
while :; do sleep 0.1; done
"""
POD = """
import signal, sys
from crossearth.components.launch import launch
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
launch(["train", "town"], ".", 2, {})
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
