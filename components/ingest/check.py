"""Pictures of some images with their labels on top, before anything is ingested."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image

from crossearth.components.ingest.preview import over_legend, overlay
from crossearth.components.ingest.scene import Plan, ingest_scene
from crossearth.components.ingest.sources import SceneSource, find_scenes
from crossearth.components.ingest.step import IngestConfig
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.pictures import GAP_PX, titled
from crossearth.components.runtime.places import PREVIEWS
from crossearth.data.catalog.domains import Catalog, ClassSet
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.files import atomic_dir
from crossearth.data.common.spaced import evenly
from crossearth.data.raster.reading import thinned_size

SIDE_PX = 768
LEAST_PX = 256


def run(params: Params, catalog: Catalog, names: Sequence[str], number: int) -> list[Path]:
    """Draws `number` images of each domain, at equal steps through its scenes, with their labels beside them.

    They are read as ingest reads them, so that what it refuses is refused here.

    Args:
        names: domains or datasets.

    Returns:
        The pictures, of each domain in a folder `<domain>-check` beside the previews.

    Raises:
        InputError: as ingest.
    """
    config = params.config(IngestConfig, "ingest")
    drawn: list[Path] = []
    for domain in [domain for name in names for domain in catalog.domains_named(name)]:
        domain = replace(domain, unknown_labels=domain.unknown_labels or config.unknown_labels)
        class_set = catalog.class_sets[domain.class_set] if domain.class_set else None
        target = PREVIEWS / f"{domain.name}-check"
        with TemporaryDirectory() as work, atomic_dir(target) as folder:
            sources = find_scenes(domain, params.archives / domain.dataset, Path(work) / "unpacked")
            plan = Plan.of(domain, catalog, config.tile_px, sources[0])
            for source in evenly(sources, number):
                ingest_scene(plan, Path(work), source)
                _draw(Path(work), source, class_set).save(folder / f"{source.split}_{source.name}.png")
        drawn += sorted(target.iterdir())
    return drawn


def _draw(work: Path, source: SceneSource, class_set: ClassSet | None) -> Image.Image:
    image_HW3 = _read(work / source.stored("images")).transpose(1, 2, 0)
    label_HW = None if class_set is None else _read(work / source.stored("labels"))[0]
    pictures = [image_HW3]
    if class_set is not None and label_HW is not None:
        pictures.append(overlay(image_HW3, label_HW, class_set))
    scale = max(1, -(-LEAST_PX // max(image_HW3.shape[:2])))
    apart = [np.pad(each, ((0, 0), (0, GAP_PX // scale), (0, 0)), constant_values=255) for each in pictures]
    row = np.concatenate(apart, axis=1).repeat(scale, axis=0).repeat(scale, axis=1)
    sheet = titled(row, [f"{source.split}: {source.image.path}"])
    if class_set is not None and label_HW is not None:
        counts = np.bincount(label_HW.ravel(), minlength=IGNORE + 1) / label_HW.size
        shares = [*counts[: len(class_set.classes)], counts[IGNORE]]
        sheet = over_legend(sheet, class_set, [f"{share:.1%}" for share in shares])
    return Image.fromarray(sheet)


def _read(path: Path) -> NDArray[np.uint8]:
    """A stored scene (bands, H, W), thinned to at most SIDE_PX."""
    with rasterio.open(path, driver="GTiff") as scene:
        size = thinned_size(scene.width, scene.height, SIDE_PX)
        return np.asarray(scene.read(out_shape=(scene.count, *size)), np.uint8)
