"""A tracking server that dies in the middle of a training."""

import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from services import free_port, tracking_server, wait_for

from crossearth.components.runtime import tracking
from crossearth.components.runtime.tracking import start_run, tracking_uri


def only_run() -> MlflowRun:
    client = MlflowClient(tracking_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("crossearth").experiment_id])
    return found


def history() -> list[float]:
    """What the server has of the loss."""
    points = MlflowClient(tracking_uri()).get_metric_history(only_run().info.run_id, "loss")
    return [point.value for point in points]


def test_a_server_that_goes_away_gets_everything_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 60.0)
    with ExitStack() as servers:
        server = servers.enter_context(tracking_server(tmp_path, port))
        with start_run("r", key="k") as run:
            run.log_metrics({"loss": 3.0}, 1)
            wait_for(lambda: history()[0], (tmp_path / "log").read_text)
            server.terminate()
            server.wait(30)
            run.log_metrics({"loss": 2.0}, 2)
            run.log_image(np.zeros((4, 4, 3), dtype=np.uint8), "panels/2.png")
            time.sleep(1)  # it tries in vain
            servers.enter_context(tracking_server(tmp_path, port))
        assert history() == [3.0, 2.0]
        found = only_run()
        panels = MlflowClient(tracking_uri()).list_artifacts(found.info.run_id, "panels")
        assert [item.path for item in panels] == ["panels/2.png"]
        assert found.info.status == "FINISHED"
