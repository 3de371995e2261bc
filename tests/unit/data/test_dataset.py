"""Tiles as datasets, and the training stream: what sample number n is hangs on the seed and n alone."""

import tempfile
import time
from multiprocessing import synchronize
from pathlib import Path

import numpy as np
import pytest
import torch
from children import running_children
from own_domain import NAME, own_domain

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.errors import InputError
from crossearth.data.style.earth import keyed_generator
from crossearth.data.tiles import dataset, readers
from crossearth.data.tiles.augment import Augmentation
from crossearth.data.tiles.dataset import Sample, TileDataset, TrainingStream, drawn_tile
from crossearth.data.tiles.manifest import Manifest, read_image, read_label, read_manifest
from crossearth.data.tiles.readers import StuckError, reading


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
    augment = Augmentation(crop_px=min(height, width), scale=(1.0, 1.0))
    for position in range(8):
        augment(tiles[0]["image"], tiles[0]["label"], keyed_generator(position))
    np.testing.assert_array_equal(tiles[0]["image"], read_image(manifest, 0))
    np.testing.assert_array_equal(tiles[0]["label"], read_label(manifest, 0))


def test_no_tiles_are_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match=f"domain {NAME} has no tile in its train split"):
        TileDataset(manifest, (0, 1), indices=[])


def test_every_tile_comes_once_an_epoch_in_another_order() -> None:
    epochs = [[drawn_tile(position, 10, 4) for position in range(first, first + 10)] for first in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert [drawn_tile(position, 10, 5) for position in range(10)] != epochs[0]


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


def stream_of(manifest: Manifest) -> TrainingStream:
    return TrainingStream(TileDataset(manifest, (0, 1)), Augmentation(crop_px=32), 0)


def test_readers_give_the_batches_of_one_process_in_order_wherever_temporary_files_lie(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / ("x" * 100)  # a socket's name may have 107 characters
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    positions = [[2 * number, 2 * number + 1] for number in range(12)]
    with (
        reading(stream_of(manifest), positions, 0) as here,
        reading(stream_of(manifest), positions, 2) as apart,
    ):
        for expected, batch in zip(here, apart, strict=True):
            assert expected.keys() == batch.keys()
            for key, tensor in expected.items():
                assert tensor.dtype == batch[key].dtype and torch.equal(tensor, batch[key])
    assert not running_children()


class Stuck(TrainingStream):
    """Its file is on a disk that answers no more."""

    def __getitem__(self, position: int) -> Sample:
        time.sleep(1000)
        return super().__getitem__(position)


def test_a_reader_that_gives_nothing_does_not_keep_a_training_that_was_stopped(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PATIENCE_S", 0.2)
    stream = Stuck(TileDataset(manifest, (0, 1)), Augmentation(crop_px=32), 0)
    asked = iter([False, True, True, True])  # whether a signal came
    with pytest.raises(StuckError), reading(stream, [[0]], 1, lambda: next(asked)) as batches:
        next(batches)
    assert not running_children()


def test_readers_without_a_place_for_semaphores(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    name = staticmethod(lambda: "/no/such/folder")
    monkeypatch.setattr(synchronize.SemLock, "_make_name", name)
    said = r"(?s)/dev/shm: cannot start 1 processes: .*train\.workers to 0"
    with pytest.raises(InputError, match=said), reading(stream_of(manifest), [[0]], 1):
        pass
