"""Scenes of a real S3 server (SeaweedFS), read by ranges with the keys of the environment."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from services import KEYS, object_store

from crossearth.components.predict.remote import address_of, item_scene
from crossearth.components.predict.strips import open_scene, open_view
from crossearth.data.common.errors import InputError

BUCKET = "scenes"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A scene, which is in the bucket, too."""
    folder = tmp_path / "s3"
    folder.mkdir()
    with object_store(folder, BUCKET) as address:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        path = tmp_path / "scene.tif"
        place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
        with rasterio.open(
            path, "w", driver="GTiff", width=300, height=200, count=3, dtype="uint8", **place
        ) as file:
            file.write(np.random.default_rng(0).integers(0, 256, (3, 200, 300), np.uint8))
        bands = [{"name": name} for name in ("red", "green", "blue")]
        assets = {"visual": {"href": "./scene.tif", "roles": ["data"], "bands": bands}}
        client = boto3.client("s3")
        client.upload_file(str(path), BUCKET, "a/scene.tif")
        item = {"type": "Feature", "assets": assets}
        client.put_object(Bucket=BUCKET, Key="a/item.json", Body=json.dumps(item).encode())
        yield path


def test_a_scene_of_a_bucket_is_the_file_that_lies_there(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rasterio.open(bucket) as file:
        wanted = file.read()
    for source in (address_of(f"s3://{BUCKET}/a/scene.tif"), item_scene(f"s3://{BUCKET}/a/item.json", None)):
        with open_view(open_scene(source)) as view:
            assert np.array_equal(view.look((0, 200), (0, 300))[0], wanted)
    with pytest.raises(InputError, match="nothing at this address"):
        open_scene(address_of(f"s3://{BUCKET}/a/absent.tif"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match=r"wants a login(?s:.*)AWS_ACCESS_KEY_ID"):
        open_scene(address_of(f"s3://{BUCKET}/a/other.tif"))
