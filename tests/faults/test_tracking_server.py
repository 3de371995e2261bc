"""A tracking server that dies in the middle of a training."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from crossearth.components import tracking
from crossearth.components.tracking import start_run, tracking_uri


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", f"{folder}/a"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.2)
    server.kill()
    raise TimeoutError("no MLflow server")


def test_a_server_that_goes_away_gets_everything_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 60.0)
    server = start_server(tmp_path, port)
    try:
        with start_run("r", key="k") as run:
            run.log_metrics({"loss": 3.0}, 1)
            while run.pending:
                time.sleep(0.1)
            server.terminate()
            server.wait(30)
            run.log_metrics({"loss": 2.0}, 2)
            run.log_image(np.zeros((4, 4, 3), dtype=np.uint8), "panels/2.png")
            time.sleep(1)
            assert run.pending
            server = start_server(tmp_path, port)
        client = MlflowClient(tracking_uri())
        found = client.search_runs([client.get_experiment_by_name("crossearth").experiment_id])[0]
        assert [p.value for p in client.get_metric_history(found.info.run_id, "loss")] == [3.0, 2.0]
        assert [item.path for item in client.list_artifacts(found.info.run_id, "panels")] == ["panels/2.png"]
        assert found.info.status == "FINISHED"
    finally:
        server.terminate()
        server.wait(30)
