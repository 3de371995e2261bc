"""Preview: a sheet on which a person sees whether labels lie where they should."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from crossearth.components.runtime.palette import colour_table
from crossearth.components.runtime.pictures import GAP_PX, PAPER, titled, with_legend
from crossearth.components.runtime.tracking import start_run
from crossearth.data.catalog.domains import Catalog, ClassSet
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.files import atomic_path, digest
from crossearth.data.common.spaced import evenly
from crossearth.data.tiles.manifest import Manifest, read_domain, read_image, read_label

EXPERIMENT = "crossearth-data"
TILES_PER_SPLIT = 6
SIDE_PX = 256
LABEL_WEIGHT = 0.55


def preview(domain: str, catalog: Catalog, domains_dir: Path, out_dir: Path) -> Path:
    """Draws `out_dir/<domain>.png`: tiles of every split, the same with their labels on top, and a legend.

    Tiles are shown as the network sees them, three bands in its order (infrared as red where there is
    infrared), and taken at equal steps through the manifest.

    Raises:
        InputError: an unknown domain, or one that was not ingested.
    """
    entry = catalog.domain(domain)
    class_set = catalog.class_sets[entry.class_set] if entry.class_set else None
    manifests = [read_domain(catalog, domains_dir, domain, split) for split in entry.splits]
    sheet = np.concatenate([_split_strip(manifest, class_set) for manifest in manifests])
    if class_set is not None:
        shares = np.array([_fractions(manifest) for manifest in manifests]).T
        splits = [manifest.split for manifest in manifests]
        parts = [
            ", ".join(f"{split} {share:.1%}" for split, share in zip(splits, line, strict=True))
            for line in shares
        ]
        sheet = over_legend(sheet, class_set, parts)
    path = Path(out_dir) / f"{domain}.png"
    with atomic_path(path) as partial:
        Image.fromarray(sheet).save(partial, "PNG", compress_level=1)
    return path


def log_preview(domain: str, catalog: Catalog, domains_dir: Path, out_dir: Path) -> Path:
    """Draws the sheet and logs it to MLflow, in a run of these tiles and no others.

    Raises:
        InputError: as `preview`.
    """
    sheet = preview(domain, catalog, domains_dir, out_dir)
    manifests = [read_domain(catalog, domains_dir, domain, split) for split in catalog.domain(domain).splits]
    tags = {f"manifest.{domain}.{each.split}": each.digest for each in manifests}
    with start_run(f"ingest {domain}", key=digest(["ingest", tags]), tags=tags, experiment=EXPERIMENT) as run:
        run.log_metrics({f"tiles/{domain}/{each.split}": len(each) for each in manifests})
        run.log_artifact(sheet)
    return sheet


def _split_strip(manifest: Manifest, class_set: ClassSet | None) -> NDArray[np.uint8]:
    """A title, a row of tiles, and a row of the same tiles under their labels."""
    chosen = evenly(range(len(manifest)), TILES_PER_SPLIT)
    images = [read_image(manifest, index).transpose(1, 2, 0) for index in chosen]
    rows = [_row(images, Image.Resampling.BILINEAR)]
    if class_set is not None:
        labels = [read_label(manifest, index) for index in chosen]
        laid = [overlay(*each, class_set) for each in zip(images, labels, strict=True)]
        rows.append(_row(laid, Image.Resampling.NEAREST))
    names = [manifest.rows[index]["tile_id"][-30:] for index in chosen]
    tiles = titled(np.concatenate(rows), names + [""] * (TILES_PER_SPLIT - len(names)))
    what = f"{manifest.domain}, {manifest.split}: {len(manifest)} tiles, {manifest.provenance} data"
    return titled(tiles, [what])


def _row(pictures: Sequence[NDArray[np.uint8]], how: Image.Resampling) -> NDArray[np.uint8]:
    row = np.full((SIDE_PX + GAP_PX, TILES_PER_SPLIT * (SIDE_PX + GAP_PX), 3), PAPER, np.uint8)
    for place, picture in enumerate(pictures):
        left = place * (SIDE_PX + GAP_PX)
        fitted = ImageOps.pad(Image.fromarray(picture), (SIDE_PX, SIDE_PX), how, PAPER, (0, 0))
        row[:SIDE_PX, left : left + SIDE_PX] = np.asarray(fitted)
    return row


def overlay(
    image_HW3: NDArray[np.uint8], label_HW: NDArray[np.uint8], class_set: ClassSet
) -> NDArray[np.uint8]:
    """A grey image (H, W, 3) under the colours of its labels, ids (H, W)."""
    grey_HW1 = image_HW3.mean(axis=2, keepdims=True)
    colours = colour_table(class_set.palette)
    mixed = (1 - LABEL_WEIGHT) * grey_HW1 + LABEL_WEIGHT * colours[label_HW]
    return np.rint(mixed).astype(np.uint8)


def over_legend(sheet_HW3: NDArray[np.uint8], class_set: ClassSet, parts: Sequence[str]) -> NDArray[np.uint8]:
    """A sheet over a line of colour, id, name and part for each class, and the last for ignored pixels."""
    ids, names = [*range(len(class_set.classes)), IGNORE], [*class_set.classes, "ignored"]
    lines = [f"{id} {name} ({part})" for id, name, part in zip(ids, names, parts, strict=True)]
    return with_legend(sheet_HW3, lines, colour_table(class_set.palette)[ids])


def _fractions(manifest: Manifest) -> NDArray[np.float64]:
    """Share of pixels per class, ignored ones last."""
    of_tiles = [[*row["class_pixels"], row["ignored_pixels"]] for row in manifest.rows]
    pixels = np.sum(of_tiles, axis=0, dtype=np.float64)
    return pixels / pixels.sum()
