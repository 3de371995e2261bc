"""Tiles as torch datasets: raw values out, class ids of the recipe's class set."""

from collections.abc import Sequence
from operator import attrgetter
from typing import TypedDict

import torch
from cachetools import LRUCache, cachedmethod
from torch import Tensor
from torch.utils.data import Dataset

from crossearth.data.catalog.labels import remap_table
from crossearth.data.common.errors import InputError
from crossearth.data.style.earth import keyed_generator
from crossearth.data.tiles.augment import Augmentation
from crossearth.data.tiles.manifest import Manifest, read_image, read_label

HELD_BYTES = 128 * 2**20  # of decoded tiles: a small domain is decoded once, not once per epoch


class Sample(TypedDict):
    """One tile or crop; collated, every value is a tensor with a batch dimension in front.

    image: uint8 (3,H,W), 0..255. label: uint8 (H,W), class ids, 255 = ignored. index: row of the manifest.
    position: place in the dataset or stream.
    """

    image: Tensor
    label: Tensor
    index: int | Tensor
    position: int | Tensor


class Batch(TypedDict):
    """Items as the loader stacks them: uint8 (B,3,H,W), uint8 (B,H,W), int64 (B,), int64 (B,)."""

    image: Tensor
    label: Tensor
    index: Tensor
    position: Tensor


class TileDataset(Dataset[Sample]):
    """The tiles of a manifest, whole and in order; what an item holds may be held for the next, so read only.

    Args:
        manifest: one split of a domain.
        remap: new class id per class id of the manifest's class set (`Catalog.remap`).
        indices: rows to use; None = all.

    Raises:
        InputError: no tile.
    """

    def __init__(
        self, manifest: Manifest, remap: Sequence[int], indices: Sequence[int] | None = None
    ) -> None:
        self.manifest = manifest
        self.indices = list(range(len(manifest)) if indices is None else indices)
        if not self.indices:
            raise InputError(
                f"domain {manifest.domain} has no tile in its {manifest.split} split",
                where=manifest.root,
                next_step=f"look at what `crossearth ingest` said of {manifest.domain}",
            )
        self._remap = remap_table(remap)
        self._held: LRUCache[object, tuple[Tensor, Tensor]] = LRUCache(HELD_BYTES, _num_bytes)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        index = self.indices[position]
        image_3HW, label_HW = self._tile(index)
        return Sample(image=image_3HW, label=label_HW, index=index, position=position)

    @cachedmethod(attrgetter("_held"))
    def _tile(self, index: int) -> tuple[Tensor, Tensor]:
        image_3HW = torch.from_numpy(read_image(self.manifest, index))
        return image_3HW, torch.from_numpy(self._remap[read_label(self.manifest, index)])


def _num_bytes(tile: tuple[Tensor, Tensor]) -> int:
    return sum(plane.nbytes for plane in tile)


def drawn_tile(position: int, num_tiles: int, seed: int) -> int:
    """The tile of a training's sample: each comes once per epoch, every epoch in another order."""
    epoch, step = divmod(position, num_tiles)
    return int(torch.randperm(num_tiles, generator=keyed_generator(seed, epoch, "order"))[step])


class TrainingStream(Dataset[Sample]):
    """The endless, shuffled, augmented stream of crops that a training reads by position.

    A sample is a function of (seed, position) alone. So the position is the whole state of the sampler and
    of the augmentation: a resumed training, or one on other processes or workers, sees the same crops.
    """

    def __init__(self, tiles: TileDataset, augment: Augmentation, seed: int) -> None:
        self.tiles, self.augment, self.seed = tiles, augment, seed

    def tile(self, position: int) -> int:
        """Place of a sample's tile in `tiles`."""
        return drawn_tile(position, len(self.tiles), self.seed)

    def __getitem__(self, position: int) -> Sample:
        item = self.tiles[self.tile(position)]
        generator = keyed_generator(self.seed, position, "augment")
        image, label = self.augment(item["image"], item["label"], generator)
        return Sample(image=image, label=label, index=item["index"], position=position)
