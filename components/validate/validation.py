"""What is tolerated of a domain's tiles, and which of them its two splits share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rasterio import Affine

from crossearth.data.common.config import Share, checked
from crossearth.data.raster.ground import Place, overlaps
from crossearth.data.tiles.manifest import Manifest
from crossearth.data.tiles.scenes import unpadded

DHASH_BITS = 256
# a look of nearly only zeros or ones says "smooth", not "the same place"
TELLING_BITS = (DHASH_BITS // 8, DHASH_BITS - DHASH_BITS // 8)
PAIRS_SHOWN = 100
ROWS_AT_ONCE = 512


@checked
class ValidateConfig:
    """What is tolerated.

    Attributes:
        max_constant_share: of a split's tiles, those with one value per band; 0..1.
        max_nodata_share: of a split's px; 0..1.
        near_duplicate_bits: tiles of both splits whose looks differ in at most this many of 256 bits are
            reported. Copies that were recompressed, brightened or made noisy differ in 1 to 27 bits, tiles of
            different places in 77 and more (14 535 pairs of aerial images).
        max_shared_ground: of an image's ground, what an image of the other split may show too; 0..1.
    """

    max_constant_share: Share = 0.05
    max_nodata_share: Share = 0.4
    near_duplicate_bits: Annotated[int, Field(ge=0, lt=DHASH_BITS // 4)] = 24
    max_shared_ground: Share = 0.1


@dataclass(frozen=True)
class NearDuplicates:
    """Two tiles of different splits that show the same.

    Attributes:
        bits: of 256 in which their looks differ; -1 = the pixels are equal.
    """

    train: str
    test: str
    bits: int


@dataclass(frozen=True)
class SharedGround:
    """Two images of different splits that lie on the same ground.

    Attributes:
        share: of the smaller one's ground, 0..1.
    """

    train: str
    test: str
    share: float

    def __str__(self) -> str:
        return f"train {self.train} and test {self.test} ({self.share:.0%})"


def shared_ground(train: Manifest, test: Manifest) -> list[SharedGround]:
    """Images of both splits that overlap on the ground by their georeference, each with its worst partner."""
    ours, theirs = _places(train), _places(test)
    found = overlaps(list(ours.values()), list(theirs.values()))
    # of few, the files are asked what of them is padding
    our_names, their_names = list(ours), list(theirs)
    mine = [our_names[index] for index in dict.fromkeys(our for our, _, _ in found)]
    yours = [their_names[index] for index in dict.fromkeys(their for _, their, _ in found)]
    found = overlaps(
        [_seen(train, name, ours[name]) for name in mine], [_seen(test, name, theirs[name]) for name in yours]
    )
    return [SharedGround(_stem(mine[our]), _stem(yours[their]), share) for our, their, share in found]


def _places(manifest: Manifest) -> dict[str, Place]:
    """Where each stored image lies, by its path; none where its file says no CRS."""
    places: dict[str, Place] = {}
    for row in manifest.rows:
        right, bottom = row["col_off"] + row["width"], row["row_off"] + row["height"]
        if known := places.get(row["image"]):
            width, height = max(known.width, right), max(known.height, bottom)
            places[row["image"]] = replace(known, width=width, height=height)
        elif row["crs"]:
            start = Affine(*row["transform"]) @ Affine.translation(-row["col_off"], -row["row_off"])
            places[row["image"]] = Place(row["crs"], tuple(start)[:6], right, bottom)
    return places


def _seen(manifest: Manifest, image: str, place: Place) -> Place:
    """The place without what its stored scene was padded by."""
    width, height = unpadded(manifest.root / image) or (place.width, place.height)
    return replace(place, width=width, height=height)


def _stem(image: str) -> str:
    return PurePosixPath(image).stem


def near_duplicates(train: Manifest, test: Manifest, bits: int) -> list[NearDuplicates]:
    """Tiles of `train` and `test` that are equal or nearly so, the most alike first, without blank ones.

    Args:
        bits: of 256 in which the looks may differ.
    """
    ours, theirs = (_telling(manifest) for manifest in (train, test))
    found: list[NearDuplicates] = []
    look_of_theirs = _packed(theirs)
    for start in range(0, len(ours) if theirs else 0, ROWS_AT_ONCE):
        chunk = ours[start : start + ROWS_AT_ONCE]
        # word by word: memory for one 64-bit word of all pairs
        differing = np.zeros((len(chunk), len(theirs)), np.uint16)
        for word, other in zip(_packed(chunk).T, look_of_theirs.T, strict=True):
            differing += np.bitwise_count(word[:, None] ^ other[None])
        for left, right in np.argwhere(differing <= bits):
            one, other_row = chunk[left], theirs[right]
            equal = one["sha256_image"] == other_row["sha256_image"]
            apart = -1 if equal else int(differing[left, right])
            found.append(NearDuplicates(one["tile_id"], other_row["tile_id"], apart))
    return sorted(found, key=lambda pair: (pair.bits, pair.train, pair.test))


def _telling(manifest: Manifest) -> list[dict[str, Any]]:
    low, high = TELLING_BITS
    return [
        row
        for row in manifest.rows
        if low <= int(row["dhash"], 16).bit_count() <= high and not row["constant"]
    ]


def _packed(rows: Sequence[dict[str, Any]]) -> NDArray[np.uint64]:
    dhashes = b"".join(bytes.fromhex(row["dhash"]) for row in rows)
    return np.frombuffer(dhashes, np.uint64).reshape(len(rows), DHASH_BITS // 64)
