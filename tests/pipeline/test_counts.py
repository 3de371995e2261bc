"""Archives with as many files as publishers ship, 32 times smaller, become as many tiles as the paper has."""

import math
from pathlib import Path

import pytest

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.synthesize.packers import Draughtsman, synthesize_dataset
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.tiles.manifest import read_manifest

CATALOG = load_catalog()
DATASETS = list(dict.fromkeys(domain.dataset for domain in CATALOG.domains.values() if domain.class_set))


@pytest.mark.parametrize("dataset", DATASETS)
def test_tiles_of_every_split_are_as_many_as_in_the_paper(dataset: str, tmp_path: Path) -> None:
    synthesize_dataset(dataset, tmp_path, 0, "full")
    tile_px = math.ceil(512 / Draughtsman.SHRINK)
    folders = ingest([dataset], CATALOG, tmp_path, tmp_path / "domains", IngestConfig(tile_px=tile_px))
    found, wanted = {}, {}
    for folder in folders:
        domain = CATALOG.domain(folder.name)
        for split in domain.splits:
            found[domain.name, split] = len(read_manifest(folder, split))
            wanted[domain.name, split] = domain.files(split).tiles
            print(f"{domain.name:16s} {split:6s} {found[domain.name, split]:6d} tiles")
    assert found == wanted
