"""Scenes of servers and STAC items: read by ranges, refused with what to do, never a file not meant."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import own_domain
import pytest
import rasterio
import rasterio.shutil
from range_server import RangeServer, range_server
from rasterio.transform import Affine

from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.remote import address_of, item_scene
from crossearth.components.predict.step import predict
from crossearth.components.predict.strips import open_scene, open_view
from crossearth.data.common.errors import InputError, PartlyDoneError
from crossearth.data.common.shards import Shard
from crossearth.data.raster import reader
from crossearth.data.raster.reader import Address, UnreachableError, open_raster
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights.checkpoint import save

FLOAT32 = PredictConfig(precision="float32", device="cpu")
NAMES = ("red", "green", "blue")


def write(path: Path, values: np.ndarray[Any, Any], px_m: float = 0.5, **profile: Any) -> Path:
    place = {"crs": "EPSG:32633", "transform": Affine(px_m, 0, 4e5, 0, -px_m, 5e6)}
    return own_domain.save(path, values, **({"tiled": True} | place | profile))


def pixels(bands: int, side: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(bands).integers(1, 255, (bands, side, side), np.uint8)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setitem(reader.REMOTE, "GDAL_HTTP_MAX_RETRY", 0)
    folder = tmp_path / "served"
    folder.mkdir()
    with range_server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    meta = {"classes": ["a", "b"], "palette": ["#000000", "#ffffff"], "provenance": "own"}
    return save(crossearth_tiny(2, 64).eval(), tmp_path_factory.mktemp("model"), meta)


def test_a_part_of_a_scene_of_a_server_is_read_by_ranges(
    server: RangeServer, model: Path, tmp_path: Path
) -> None:
    scene = write(server.folder / "scene.tif", pixels(3, 2048), blockxsize=256, blockysize=256)
    config = PredictConfig(
        precision="float32",
        device="cpu",
        bbox=(400_100, 4_999_850, 400_150, 4_999_900),
        bbox_crs="EPSG:32633",
    )
    address = f"{server.address}/scene.tif?token=secret"
    [there] = predict([address], model, tmp_path / "there.tif", config)
    assert 0 < server.sent < scene.stat().st_size / 4
    [here] = predict([scene], model, tmp_path / "here.tif", config)
    with rasterio.open(there) as one, rasterio.open(here) as other:
        assert np.array_equal(one.read(), other.read()) and one.shape == (100, 100)
    report = there.with_suffix(".json").read_text()
    assert json.loads(report)["scene"] == "scene.tif" and "secret" not in report


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        (401, r"wants a login.*\n.*GDAL_HTTP_USERPWD"),
        (403, "wants a login"),
        (404, "nothing at this address"),
        (503, "breaks off or does not answer"),
        ("no ranges", r"does not send parts.*\n.*download the file"),
    ],
)
def test_what_a_server_refuses_is_said(mood: Any, words: str, server: RangeServer) -> None:
    write(server.folder / "scene.tif", pixels(3, 512))
    server.answer(str(mood))
    # GDAL remembers what an address answered
    with pytest.raises(UnreachableError, match=words) as caught:
        open_scene(address_of(f"{server.address}/scene.tif?{mood}".replace(" ", "")))
    assert "scene.tif" in str(caught.value)


def test_a_server_that_breaks_off_leaves_what_is_finished(
    server: RangeServer, model: Path, tmp_path: Path
) -> None:
    write(server.folder / "scene.tif", pixels(3, 600), tiled=False, blockysize=1)
    server.answer("breaks")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"breaks off.*\n.*goes on where it stopped"):
        predict([f"{server.address}/scene.tif"], model, out / "map.tif", FLOAT32)
    assert [path.name for path in out.iterdir()] == [".map.tif.parts"]
    assert list((out / ".map.tif.parts").glob("*.zip"))


def test_a_server_s_file_is_opened_as_an_image_and_as_nothing_else(
    server: RangeServer, tmp_path: Path
) -> None:
    secret = write(tmp_path / "secret.tif", pixels(3, 64))
    rasterio.shutil.copy(secret, server.folder / "scene.vrt", driver="VRT")
    (server.folder / "scene.vrt").rename(server.folder / "scene.tif")
    with (
        pytest.raises(InputError, match=r"not an image.*\n.*GeoTIFF, PNG"),
        open_raster(address_of(f"{server.address}/scene.tif")),
    ):
        pass


def item(folder: Path, assets: dict[str, Any]) -> Path:
    path = folder / "item.json"
    path.write_text(json.dumps({"type": "Feature", "stac_version": "1.0.0", "id": "x", "assets": assets}))
    return path


def three(folder: Path) -> dict[str, Any]:
    """An item's assets: a file a band, the last of coarser px, and a picture of all."""
    values = pixels(3, 128)
    assets: dict[str, Any] = {"thumbnail": {"href": "thumb.png", "roles": ["thumbnail"]}}
    for name, plane in zip(NAMES, values, strict=True):
        coarse = name == "blue"
        write(
            folder / f"{name}.tif", plane[None, ::2, ::2] if coarse else plane[None], 1.0 if coarse else 0.5
        )
        assets[f"B-{name}"] = {
            "href": f"./{name}.tif",
            "roles": ["data"],
            "eo:bands": [{"common_name": name}],
        }
    return assets


def test_an_items_bands_are_chosen_by_their_names(server: RangeServer) -> None:
    path = item(server.folder, three(server.folder))
    for where in (path, f"{server.address}/item.json"):
        scene = open_scene(item_scene(where, NAMES))
        assert scene.bands_from == "red, green, blue of the item" and scene.size == (128, 128)
        with open_view(scene) as view:
            image, _ = view.look((0, 128), (0, 128))
        with rasterio.open(server.folder / "green.tif") as green:
            assert np.array_equal(image[1], green.read(1))
    assert str(item_scene(path, ("B-red", "green", "blue"))) == str(path)


def test_an_item_of_one_image_is_that_image(server: RangeServer) -> None:
    write(server.folder / "all.tif", pixels(4, 64))
    bands = [{"name": name} for name in (*NAMES, "nir")]
    path = item(server.folder, {"visual": {"href": "all.tif", "roles": ["data"], "bands": bands}})
    assert item_scene(path, None) == server.folder / "all.tif"
    assert item_scene(f"{server.address}/item.json", None) == address_of(f"{server.address}/all.tif")
    with (
        open_view(open_scene(item_scene(path, ("nir", "red", "green")))) as view,
        rasterio.open(server.folder / "all.tif") as file,
    ):
        assert np.array_equal(view.look((0, 64), (0, 64))[0], file.read([4, 1, 2]))


@pytest.mark.parametrize(
    ("assets", "names", "words"),
    [
        ({}, None, "an item of 0 images"),
        ({"red": {"href": "a.tif", "roles": ["data"]}}, None, r"(?s)names of three.*red.*--bands red,green"),
        ({"red": {"href": "a.tif", "roles": ["data"]}}, ("redd", "red", "red"), "no band 'redd'\n.*'red'"),
        ({"red": {"href": "/etc/passwd", "roles": ["data"]}}, ("red",) * 3, "a file outside its folder"),
        ({"red": {"href": "../../x.tif", "roles": ["data"]}}, ("red",) * 3, "a file outside its folder"),
        ({"red": {"href": "ftp://a/b.tif", "roles": ["data"]}}, ("red",) * 3, "not an address of a scene"),
    ],
)
def test_what_an_item_must_not_say(
    assets: dict[str, Any], names: tuple[str, ...] | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        item_scene(item(tmp_path, assets), names)


def test_an_items_bands_lie_on_one_grid_and_are_geotiffs(server: RangeServer, tmp_path: Path) -> None:
    assets = three(server.folder)
    write(server.folder / "green.tif", pixels(1, 100))
    with pytest.raises(InputError, match="bands of several grids"):
        item_scene(item(server.folder, assets), NAMES)
    rasterio.shutil.copy(server.folder / "red.tif", server.folder / "green.tif", driver="VRT")
    with pytest.raises(InputError, match=r"green\.tif"):
        item_scene(item(server.folder, assets), NAMES)


@pytest.mark.parametrize("content", ["[", "[]", '{"type": "Collection"}', '{"type": "Feature", "assets": 1}'])
def test_what_is_no_item_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "item.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"not JSON|not a STAC item"):
        item_scene(path, None)


def test_scenes_here_and_there_are_mapped_together(server: RangeServer, model: Path, tmp_path: Path) -> None:
    write(server.folder / "there.tif", pixels(3, 64))
    here = write(tmp_path / "here.tif", pixels(3, 64))
    scenes = [here, f"{server.address}/there.tif", f"{server.address}/absent.tif"]
    with pytest.raises(PartlyDoneError, match=r"1 of 3(?s:.*)absent\.tif: there is nothing") as caught:
        predict(scenes, model, tmp_path / "maps", FLOAT32)
    assert caught.value.done == [tmp_path / "maps" / "here.tif", tmp_path / "maps" / "there.tif"]
    with pytest.raises(InputError, match="not an address of a scene"):
        predict(["gs://bucket/scene.tif"], model, tmp_path / "x.tif", FLOAT32)
    assert isinstance(address_of("s3://bucket/a/scene.tif"), Address)


def test_a_broken_item_does_not_keep_the_others_from_being_mapped(
    server: RangeServer, model: Path, tmp_path: Path
) -> None:
    good, broken = (tmp_path / name for name in ("good", "broken"))
    for folder in (good, broken):
        folder.mkdir()
    bands = [{"name": name} for name in NAMES]
    for folder, image in ((good, "image.tif"), (broken, "absent.tif")):
        path = item(folder, {"visual": {"href": image, "roles": ["data"], "bands": bands}})
        path.rename(folder / f"{folder.name}.json")
    write(good / "image.tif", pixels(3, 64))
    scenes = [broken / "broken.json", good / "good.json", f"{server.address}/gone.json"]
    with pytest.raises(
        PartlyDoneError, match=r"2 of 3(?s:.*)absent\.tif(?s:.*)gone\.json: there is nothing"
    ) as caught:
        predict(scenes, model, tmp_path / "maps", FLOAT32)
    assert caught.value.done == [tmp_path / "maps" / "good.tif"], "called as the item: images are often alike"


def test_a_shard_opens_no_item_of_another(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "image.tif", pixels(3, 64))
    bands = [{"name": name} for name in NAMES]
    paths = []
    for name in ("a.json", "b.json"):
        path = item(tmp_path, {"visual": {"href": "image.tif", "roles": ["data"], "bands": bands}})
        paths.append(path.rename(tmp_path / name))
    paths[1].write_text("no item")
    [written] = predict(paths, model, tmp_path / "maps", FLOAT32, shard=Shard(0, 2))
    assert written == tmp_path / "maps" / "a.tif"


def test_a_map_does_not_replace_the_image_of_its_item(model: Path, tmp_path: Path) -> None:
    image = write(tmp_path / "item.tif", pixels(3, 64))
    bands = [{"name": name} for name in NAMES]
    path = item(tmp_path, {"visual": {"href": "item.tif", "roles": ["data"], "bands": bands}})
    with rasterio.open(image, "r+") as file:
        file.update_tags(CLASSES="[]")  # as a map of an earlier run has: those are replaced
    path.rename(tmp_path / "scene.json")
    before = image.read_bytes()
    with pytest.raises(InputError, match="would replace the scene"):
        predict([tmp_path / "scene.json"], model, image, FLOAT32)
    assert image.read_bytes() == before


def test_bands_of_a_file_are_chosen_by_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", pixels(4, 64))
    with pytest.raises(InputError, match=r"no band 'nir'(?s:.*)no names"):
        open_scene(path, bands=("nir", "red", "green"))
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("Blue", "Green", "Red", "NIR")
    assert open_scene(path, bands=("nir", "red", "green")).reading.bands == (4, 3, 2)
