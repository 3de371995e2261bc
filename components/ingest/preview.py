"""Preview: a sheet on which a person sees whether labels lie where they should."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from crossearth.components.runtime.palette import colour_table
from crossearth.components.runtime.tracking import start_run
from crossearth.data.catalog.domains import Catalog, ClassSet
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.files import atomic_path, digest
from crossearth.data.common.spaced import evenly
from crossearth.data.tiles.manifest import Manifest, read_domain, read_image, read_label

EXPERIMENT = "crossearth-data"
TILES_PER_SPLIT = 6
SIDE_PX = 256
GAP_PX = 8
LINE_PX = 24
LABEL_WEIGHT = 0.55
INK, PAPER = (32, 32, 32), (255, 255, 255)
IGNORED_COLOUR = (0, 0, 0)


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
    strips = [_split_strip(manifest, class_set) for manifest in manifests]
    if class_set is not None:
        strips.append(_legend(manifests, class_set))
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    path = Path(out_dir) / f"{domain}.png"
    with atomic_path(path) as partial:
        sheet.save(partial, "PNG", compress_level=1)
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


def _split_strip(manifest: Manifest, class_set: ClassSet | None) -> Image.Image:
    """A title, a row of tiles, and a row of the same tiles under their labels."""
    chosen = evenly(range(len(manifest)), TILES_PER_SPLIT)
    cell = SIDE_PX + GAP_PX
    rows = 1 if class_set is None else 2
    strip = Image.new("RGB", (GAP_PX + cell * TILES_PER_SPLIT, 2 * LINE_PX + cell * rows), PAPER)
    pen = ImageDraw.Draw(strip)
    title = f"{manifest.domain}, {manifest.split}: {len(manifest)} tiles, {manifest.provenance} data"
    pen.text((GAP_PX, 4), title, INK, ImageFont.load_default(16))
    for column, index in enumerate(chosen):
        left = GAP_PX + column * cell
        image_HW3 = read_image(manifest, index).transpose(1, 2, 0)
        name = manifest.rows[index]["tile_id"]
        pen.text((left, LINE_PX), name[-30:], INK, ImageFont.load_default(12))
        strip.paste(_fit(image_HW3, Image.Resampling.BILINEAR), (left, 2 * LINE_PX))
        if class_set is not None:
            label_HW = read_label(manifest, index)
            over = overlay(image_HW3, label_HW, class_set)
            strip.paste(_fit(over, Image.Resampling.NEAREST), (left, 2 * LINE_PX + cell))
    return strip


def _fit(image_HW3: NDArray[np.uint8], how: Image.Resampling) -> Image.Image:
    scale = SIDE_PX / max(image_HW3.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image_HW3.shape[:2])
    return Image.fromarray(image_HW3).resize((width, height), how)


def overlay(
    image_HW3: NDArray[np.uint8], label_HW: NDArray[np.uint8], class_set: ClassSet
) -> NDArray[np.uint8]:
    """A grey image under the colours of its labels.

    Args:
        image_HW3: the three bands.
        label_HW: ids.
    """
    grey_HW1 = image_HW3.mean(axis=2, keepdims=True)
    colours = colour_table(class_set.palette, IGNORED_COLOUR)
    mixed = (1 - LABEL_WEIGHT) * grey_HW1 + LABEL_WEIGHT * colours[label_HW]
    return np.rint(mixed).astype(np.uint8)


def _legend(manifests: list[Manifest], class_set: ClassSet) -> Image.Image:
    """One line per class, and one for ignored pixels: colour, id, name, share of pixels per split."""
    fractions = [_fractions(manifest) for manifest in manifests]
    parts = [
        ", ".join(
            f"{manifest.split} {share[line]:.1%}"
            for manifest, share in zip(manifests, fractions, strict=True)
        )
        for line in range(len(class_set.classes) + 1)
    ]
    return legend(class_set, parts, GAP_PX + (SIDE_PX + GAP_PX) * TILES_PER_SPLIT)


def legend(class_set: ClassSet, parts: Sequence[str], width: int) -> Image.Image:
    """A line per class and one for ignored pixels: colour, id, name, and in brackets its part of `parts`."""
    names = [*class_set.classes, "ignored"]
    colours = [*colour_table(class_set.palette)[: len(class_set.classes)].tolist(), list(IGNORED_COLOUR)]
    drawn = Image.new("RGB", (width, LINE_PX * len(names) + GAP_PX), PAPER)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    for line, (name, colour, part) in enumerate(zip(names, colours, parts, strict=True)):
        top = line * LINE_PX
        pen.rectangle((GAP_PX, top + 3, GAP_PX + 28, top + LINE_PX - 3), tuple(colour), INK)
        number = IGNORE if line == len(names) - 1 else line
        pen.text((GAP_PX + 40, top + 3), f"{number}  {name}  ({part})", INK, font)
    return drawn


def _fractions(manifest: Manifest) -> NDArray[np.float64]:
    """Share of pixels per class, ignored ones last."""
    pixels = np.array(
        [[*row["class_pixels"], row["ignored_pixels"]] for row in manifest.rows], np.float64
    ).sum(0)
    return pixels / pixels.sum()
