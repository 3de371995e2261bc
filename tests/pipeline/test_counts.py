"""Archives with as many files as publishers ship, 32 times smaller, become as many tiles as the paper has."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossearth.components.ingest import scene, step
from crossearth.components.ingest.sources import SceneSource
from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.synthesize.packers import Draughtsman, synthesize_dataset
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.raster.reader import gdal, open_raster
from crossearth.data.tiles.manifest import read_manifest

CATALOG = load_catalog()
DATASETS = list(dict.fromkeys(domain.dataset for domain in CATALOG.domains.values() if domain.class_set))


def sized() -> Callable[[scene.Plan, Path, SceneSource], list[dict[str, Any]]]:
    """`ingest_scene`, but scenes of one domain and size have the pixels, and so the tiles, of the first."""
    firsts: dict[tuple[str, int, int], tuple[SceneSource, list[dict[str, Any]]]] = {}

    def ingest_scene(plan: scene.Plan, work: Path, source: SceneSource) -> list[dict[str, Any]]:
        with gdal(), open_raster(source.image) as image:
            size = (plan.identity, image.dataset.width, image.dataset.height)
        if size not in firsts:
            firsts[size] = source, scene.ingest_scene(plan, work, source)
            return firsts[size][1]
        first, rows = firsts[size]
        own = {"scene": source.scene, "split": source.split, "image": source.stored("images")}
        kinds = [("images", source.image), ("labels", source.label)]
        for kind in (kind for kind, file in kinds if file):
            (work / source.stored(kind)).parent.mkdir(parents=True, exist_ok=True)
            (work / source.stored(kind)).hardlink_to(work / first.stored(kind))
            own[kind.removesuffix("s")] = source.stored(kind)
        rule = plan.tiling.tile.rule
        return [{**row, **own, "tile_id": scene._tile_id(source.name, row, rule)} for row in rows]

    return ingest_scene


@pytest.mark.parametrize("dataset", DATASETS)
def test_tiles_of_every_split_are_as_many_as_in_the_paper(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "ingest_scene", sized())
    synthesize_dataset(dataset, tmp_path, 0, "full")
    tile_px = math.ceil(512 / Draughtsman.SHRINK)
    config = IngestConfig(tile_px=tile_px, workers=1)
    folders = ingest([dataset], CATALOG, tmp_path, tmp_path / "domains", config)
    found, wanted = {}, {}
    for folder in folders:
        domain = CATALOG.domain(folder.name)
        for split in domain.splits:
            found[domain.name, split] = len(read_manifest(folder, split))
            wanted[domain.name, split] = domain.files(split).tiles
            print(f"{domain.name:16s} {split:6s} {found[domain.name, split]:6d} tiles")
    assert found == wanted
