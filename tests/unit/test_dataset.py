"""Tiles as datasets, and the training stream: what sample number n is hangs on the seed and n alone."""

import numpy as np
import pytest
import torch
from own_domain import NAME, own_domain

from crossearth.components.ingest import IngestConfig, ingest
from crossearth.data import dataset
from crossearth.data.augment import Augmentation
from crossearth.data.dataset import Draw, TileDataset, TrainingStream
from crossearth.data.errors import InputError
from crossearth.data.labels import IGNORE
from crossearth.data.manifest import Manifest, read_image, read_label, read_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("town")
    known = own_domain(folder, num=4)
    (path,) = ingest([NAME], known, folder / "archives", folder / "domains", IngestConfig(workers=1))
    return read_manifest(path, "train")


def test_tiles_are_those_of_the_manifest_in_the_recipes_classes(manifest: Manifest) -> None:
    tiles = TileDataset(manifest, remap=(3, IGNORE), indices=[2, 0])
    assert len(tiles) == 2
    item = tiles[0]
    assert (item["index"], item["position"]) == (2, 0)
    np.testing.assert_array_equal(item["image"], read_image(manifest, 2))
    np.testing.assert_array_equal(item["label"], np.where(read_label(manifest, 2) == 0, 3, IGNORE))


@pytest.mark.parametrize(("held_bytes", "decoded"), [(2**20, 1), (0, 3)])
def test_a_small_domain_is_decoded_once(
    manifest: Manifest, held_bytes: int, decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    monkeypatch.setattr(dataset, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(dataset, "read_image", lambda of, row: rows.append(row) or read_image(of, row))
    stream = TrainingStream(TileDataset(manifest, (0, 1)), Augmentation(crop_px=32), 0)
    for position in range(3 * len(manifest)):
        assert len(stream[position]["image"]) == 3
    assert sorted(rows) == sorted([*range(len(manifest))] * decoded)


def test_augmentation_leaves_held_tiles_as_they_are(manifest: Manifest) -> None:
    tiles = TileDataset(manifest, (0, 1))
    height, width = tiles[0]["label"].shape
    augment = Augmentation(crop_px=min(height, width), scale=(1.0, 1.0), scale_steps=1)
    for position in range(8):
        augment(tiles[0]["image"], tiles[0]["label"], Draw(1, 0).generator(position, "augment"))
    np.testing.assert_array_equal(tiles[0]["image"], read_image(manifest, 0))
    np.testing.assert_array_equal(tiles[0]["label"], read_label(manifest, 0))


def test_no_tiles_are_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match=f"domain {NAME} has no tile in its train split"):
        TileDataset(manifest, (0, 1), indices=[])


def test_every_tile_comes_once_an_epoch_in_another_order() -> None:
    draw = Draw(num_tiles=10, seed=4)
    epochs = [[draw.tile(position) for position in range(first, first + 10)] for first in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert [Draw(10, seed=5).tile(position) for position in range(10)] != epochs[0]


def test_a_resumed_stream_goes_on_with_the_same_crops(manifest: Manifest) -> None:
    def stream(seed: int = 0) -> TrainingStream:
        return TrainingStream(TileDataset(manifest, (0, 1)), Augmentation(crop_px=32), seed)

    before = [stream()[position] for position in range(25)]
    resumed = stream()
    for position in (24, 17, 3):
        assert torch.equal(resumed[position]["image"], before[position]["image"])
        assert torch.equal(resumed[position]["label"], before[position]["label"])
        assert resumed[position]["position"] == position
    same_tile = [item for item in before[1:] if item["index"] == before[0]["index"]]
    assert all(not torch.equal(item["image"], before[0]["image"]) for item in same_tile)
    assert not torch.equal(stream(seed=1)[0]["image"], before[0]["image"])


def test_stream_items_are_what_the_network_takes(manifest: Manifest) -> None:
    item = TrainingStream(TileDataset(manifest, (0, 1)), Augmentation(crop_px=32), 0)[7]
    assert (item["image"].shape, item["image"].dtype) == ((3, 32, 32), torch.uint8)
    assert {*item["label"].unique().tolist()} <= {0, 1, IGNORE}
