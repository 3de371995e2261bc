"""The registered model behind HTTP, called as docs/models.md calls it; KServe's manifest for the same."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import Affine
from results_factory import write_fake_results
from services import free_port

from crossearth.components.evaluate.results import write_results
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.step import predict
from crossearth.components.register.step import register
from crossearth.data.catalog.domains import Catalog
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights import checkpoint

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install -e '.[services]'")

from manifest_schema import INFRA, KUBERNETES  # noqa: E402

RECIPE = "potsdam-rgb"
MANIFEST = INFRA / "kserve/inference-service.yaml"
STARTS_WITHIN_S = 180


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Iterator[Path]:
    """A registry whose champion is a model of random weights, and a scene."""
    folder = tmp_path_factory.mktemp("serving")
    recipe = catalog.recipe(RECIPE)
    class_set = catalog.class_sets[recipe.class_set]
    torch.manual_seed(0)
    meta = {"classes": class_set.classes, "palette": class_set.palette, "provenance": "synthetic"}
    checkpoint.save(crossearth_tiny(len(class_set.classes), 64), folder / "models" / RECIPE, meta)
    scores = write_fake_results(folder / "scores" / RECIPE, catalog, recipe)
    sha256 = checkpoint.read_meta(folder / "models" / RECIPE)["sha256"]
    write_results(replace(scores, model_sha256=sha256))
    blocks = np.random.default_rng(0).integers(0, 256, (3, 10, 13), np.uint8).repeat(8, 1).repeat(8, 2)
    place = {"crs": "EPSG:32633", "transform": Affine(1, 0, 400_000, 0, -1, 5_000_000)}
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 80, "width": 104, **place}
    with rasterio.open(folder / "scene.tif", "w", **profile) as file:
        file.write(blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow/mlflow.db")
        register([recipe], catalog, folder)
        yield folder


@pytest.fixture(scope="module")
def documented() -> tuple[str, list[str]]:
    """The command of docs/models.md that starts the server, and its calls."""
    text = (INFRA.parent / "docs/models.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    (block,) = (block for block in blocks if "mlflow models serve" in block)
    lines = block.replace("\\\n", " ").splitlines()
    start = next(line for line in lines if line.startswith("mlflow models serve"))
    return start.removesuffix("&"), [line for line in lines if line.startswith("curl")]


@pytest.fixture(scope="module")
def port(folder: Path, documented: tuple[str, list[str]]) -> Iterator[int]:
    """Where the server listens that the documented command starts."""
    port = free_port()
    command = re.sub(r"--port \d+", f"--port {port}", documented[0])
    assert str(port) in command
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command,
            shell=True,
            cwd=folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + STARTS_WITHIN_S
        while not _answers(port):
            assert server.poll() is None and time.monotonic() < until, (folder / "server.log").read_text()
            time.sleep(0.5)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def call(command: str, port: int, scene: Path) -> Any:
    """What a documented call answers, with our port and our scene in place of the document's."""
    here = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", command)
    here = re.sub(r"https://[^\"]+\.tif", str(scene), here)
    done = subprocess.run(here, shell=True, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


def test_the_documented_calls_give_the_map_and_its_polygons(
    folder: Path, documented: tuple[str, list[str]], port: int
) -> None:
    scene, target = folder / "scene.tif", folder / "map.tif"
    config = PredictConfig(vector=folder / "map.geojson")
    predict([scene], folder / "models" / RECIPE, target, config)
    with rasterio.open(target) as file:
        expected = file.read(1)
    polygons = json.loads((folder / "map.geojson").read_text())["features"]

    by_address, as_polygons, by_array = documented[1]
    (found,) = call(by_address, port, scene)["predictions"]
    assert np.array_equal(found, expected)
    (collection,) = call(as_polygons, port, scene)["predictions"]
    assert collection["type"] == "FeatureCollection"
    large = [each for each in polygons if each["properties"]["area_m2"] >= 25]
    assert [each["properties"]["class_id"] for each in collection["features"]] == [
        each["properties"]["class_id"] for each in large
    ]
    (found,) = call(by_array, port, scene)["predictions"]
    assert np.shape(found) == (1, 2)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"dataframe_records": [{"scene": "absent.tif"}]}, "no such scene"),
        ({"dataframe_records": [{"scene": [[1, 2], [3, 4]]}]}, "an array (H, W, 3)"),
        ({"dataframe_records": [{"scene": "x.tif"}], "params": {"output": "mpa"}}, "map, polygons"),
    ],
)
def test_a_bad_call_is_answered_400_with_the_reason(port: int, body: Any, told: str) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=300)
    assert refused.value.code == 400
    assert told in refused.value.read().decode()


def test_a_strangers_vrt_is_not_opened(folder: Path, port: int) -> None:
    (folder / "other.vrt").write_text(
        '<VRTDataset rasterXSize="104" rasterYSize="80">'
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">scene.tif</SourceFilename><SourceBand>{band}</SourceBand>'
            "</SimpleSource></VRTRasterBand>"
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    test_a_bad_call_is_answered_400_with_the_reason(
        port, {"dataframe_records": [{"scene": str(folder / "other.vrt")}]}, "other.vrt"
    )


def pod_of(service: Any) -> Any:
    """The pod that KServe makes of a predictor: its own keys aside, that is a PodSpec."""
    predictor = {
        key: value
        for key, value in service["spec"]["predictor"].items()
        if key not in ("minReplicas", "maxReplicas", "timeout")
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": predictor}


def test_kserves_manifest_serves_as_the_readme_does(documented: tuple[str, list[str]]) -> None:
    service = yaml.safe_load(MANIFEST.read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert set(service["spec"]) == {"predictor"}
    kubernetes_validate.validate(pod_of(service), KUBERNETES, strict=True)
    (container,) = service["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container", "KServe sends requests to the container of this name"
    assert container["command"] == documented[0].split()[:3]
    given = dict(each.removeprefix("--").split("=", 1) for each in container["args"])
    assert given["port"] == str(container["ports"][0]["containerPort"])
    assert given["model-uri"] in documented[0] and f"--env-manager {given['env-manager']}" in documented[0]
    assert int(given["timeout"]) == service["spec"]["predictor"]["timeout"]


def test_a_wrong_key_of_the_manifest_is_found() -> None:
    service = copy.deepcopy(yaml.safe_load(MANIFEST.read_text()))
    service["spec"]["predictor"]["containers"][0]["port"] = 8080
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod_of(service), KUBERNETES, strict=True)
