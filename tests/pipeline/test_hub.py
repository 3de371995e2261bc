"""What Kubeflow Hub is told of is found by who knows nothing but the Hub: with MLflow's own server."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hub_server import hub_server
from registering import Workshop
from services import free_port, tracking_server

from crossearth.components.register.publish import publish
from crossearth.components.runtime.hub import URL
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.files import sha256_file

NAME = "crossearth-vaihingen-irrg"
FETCH = """
import sys
from kubeflow.hub import ModelRegistryClient
from mlflow.artifacts import download_artifacts
from mlflow.pyfunc import load_model

uri = ModelRegistryClient(sys.argv[1], author="reader").get_model_artifact(sys.argv[2], "1").uri
print(uri)
folder = download_artifacts(artifact_uri=uri, dst_path="fetched")
assert "class_map" in str(load_model(folder).metadata.signature)
"""


@pytest.fixture
def address() -> str:
    """Of this machine, by which others find it."""
    found = [
        each.address for of in psutil.net_if_addrs().values() for each in of if each.family.name == "AF_INET"
    ]
    others = [each for each in found if not each.startswith("127.")]
    if not others:
        pytest.skip("this machine has no address but its own")
    return others[0]


def test_a_model_is_found_by_what_the_hub_says(
    address: str, tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    (tmp_path / "server").mkdir()
    monkeypatch.chdir(tmp_path)
    workshop = Workshop(tmp_path, catalog, catalog.recipe("vaihingen-irrg"))
    workshop.train(1)
    with tracking_server(tmp_path / "server", port, address), hub_server() as hub:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:canary5f3@{address}:{port}")
        monkeypatch.setenv(URL, hub.url)
        workshop.register()
        publish({NAME: "1"}, "again")
        assert "canary5f3" not in str(hub.kept)
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        command = [sys.executable, "-c", FETCH, hub.url, NAME]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"http://{address}:{port}/")
    (weights,) = (tmp_path / "fetched").rglob("model.safetensors")
    assert (
        sha256_file(weights)
        == hub.kept["model_versions"][0]["customProperties"]["weights_sha256"]["string_value"]
    )
