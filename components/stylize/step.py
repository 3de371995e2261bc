"""Writes restyled counterparts of a domain's tiles: a dataset of its own, whose labels are the source's.

Each tile draws its styles and masks from a hash of (seed, domain, tile, counterpart): neither the order nor
the number of shards matters. Tiles are written into a hidden folder named by the run's identity; a killed run
is continued by the same command, and whoever completes the last shard moves the folder to its place.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from rasterio.errors import RasterioError

from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.device import choose_device
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import DOMAINS, EARTH_STYLES, STYLIZED
from crossearth.components.runtime.tracking import start_run
from crossearth.components.styles.sheet import styles_sheet, write_sheet
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path, digest, file_lock, replace_dir, write_checksummed
from crossearth.data.common.prefetch import prefetch
from crossearth.data.common.progress import progress_bar
from crossearth.data.common.shards import WHOLE, Shard, is_done
from crossearth.data.raster.grid import Grid
from crossearth.data.style.earth import (
    EarthStyles,
    StyleConfig,
    StyleEngine,
    inject,
    keyed_generator,
    style_engine,
)
from crossearth.data.tiles.manifest import Manifest, read_image, read_manifest, window, write_manifest
from crossearth.data.tiles.scenes import Window, describe, read_window, scene_writer

RUN_FILE = "stylize.json"
ORIGINS_FILE = "styles.parquet"
SHEET_FILE = "sheet.png"
PARTS = "parts"


@checked
class StylizeConfig:
    """How a domain is restyled.

    Attributes:
        style: parameters of the injection.
        counterparts: restyled tiles per source tile.
        split: which split of the domain.
        seed: of styles and masks.
        workers: threads that read, and threads that write, beside the compute.
    """

    style: StyleConfig = field(default_factory=StyleConfig)
    counterparts: PositiveInt = 1
    split: str = "train"
    seed: int = 0
    workers: PositiveInt = 2


def run(params: Params, catalog: Catalog, name: str, shard: str = "0/1") -> Path:
    """Restyles the domain `name` of the working folder, or one shard of it."""
    config = replace(params.config(StylizeConfig, "stylize"), seed=params.seed)
    domains_dir, part = catalog.domain_dir(DOMAINS, name).parent, Shard.parse(shard)
    return stylize(name, domains_dir, EARTH_STYLES, STYLIZED, config, part)


def stylize(
    domain: str,
    domains_dir: Path,
    styles_path: Path,
    out_dir: Path,
    config: StylizeConfig,
    shard: Shard = WHOLE,
) -> Path:
    """Restyles the tiles of a shard into `out_dir/<domain>`.

    That is a domain's folder: a manifest whose rows are the source's with images of their own (tile_id
    "<source tile>~<counterpart>", `label` pointing into the source's folder), beside it styles.parquet (which
    tile, counterpart, seed, engine and Earth statistics are behind each row), stylize.json and sheet.png.

    Args:
        styles_path: earth.safetensors of `fit_styles`.

    Returns:
        `out_dir/<domain>`; it is not there yet while other shards are missing.

    Raises:
        InputError: domain or statistics are absent or do not fit; a tile is smaller than a mask block;
            a shard's part is damaged.
    """
    source = read_manifest(Path(domains_dir) / domain, config.split)
    earth = EarthStyles.load(styles_path, config.style.engine)
    _refuse_small_tiles(source, config.style)
    origin = {
        "source": source.digest,
        "domain": domain,
        "split": config.split,
        "engine": earth.engine,
        "styles_digest": earth.digest,
        "config": {name: value for name, value in asdict(config).items() if name != "workers"},
        "code": code_digest("stylize"),
    }
    identity = origin["identity"] = digest(origin)
    target = Path(out_dir) / domain
    work = target.with_name(f".{domain}.{identity[:16]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(target.with_name(f"{domain}.{shard}")):
        if is_done(target / RUN_FILE, identity):
            return target
        engine = style_engine(config.style.engine).to(choose_device("auto"))
        job = _Job(source, target, work, earth, engine, config)
        if not shard.part(work / PARTS).exists():
            rows = job.run(range(shard.index, len(source), shard.num))
            write_checksummed(shard.part(work / PARTS), {"rows": rows})
        with file_lock(target):
            parts = shard.read_parts(work / PARTS)
            if parts is not None:
                rows = [row for part in parts for row in part["rows"]]
                job.finish(rows, origin)
        if parts is not None:
            job.log(len(rows), origin)
    return target


def _refuse_small_tiles(source: Manifest, config: StyleConfig) -> None:
    for row in source.rows:
        side_px = min(row["width"], row["height"])
        if side_px < config.block_px:
            raise InputError(
                f"tile {row['tile_id']} of {row['width']}x{row['height']} px is smaller than a mask block",
                where=source.root,
                expected=f"at least {config.block_px} px a side",
                next_step=f"set stylize.style.block_px to {side_px} in your preset of params.yaml",
            )


@dataclass(frozen=True)
class _Job:
    """What every tile needs.

    Attributes:
        target: where the dataset will stand; `work`: where it is written, beside it.
    """

    source: Manifest
    target: Path
    work: Path
    earth: EarthStyles
    engine: StyleEngine
    config: StylizeConfig

    def run(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Restyles and writes the tiles of these rows, as far as they are missing; returns the new rows."""
        written = prefetch(self._write, self._styled(indices), self.config.workers)
        of_tiles = progress_bar(written, f"stylize {self.source.domain}", len(indices))
        return [row for rows in of_tiles for row in rows]

    def finish(self, rows: list[dict[str, Any]], origin: dict[str, Any]) -> None:
        """Writes what describes the whole dataset and moves it to its place."""
        source, split = self.source, self.config.split
        own = [{name: row[name] for name in source.table.column_names} for row in rows]
        write_manifest(
            self.work, source.domain, split, source.classes, source.provenance, source.reading, own
        )
        made = {"seed": self.config.seed, "engine": self.earth.engine, "styles_digest": self.earth.digest}
        ordered = sorted(rows, key=lambda row: (row["source_tile"], row["counterpart"]))
        behind = ("tile_id", "source_tile", "counterpart")
        table = pa.Table.from_pylist([{name: row[name] for name in behind} | made for row in ordered])
        with atomic_path(self.work / ORIGINS_FILE) as partial_path:
            pq.write_table(table, partial_path, compression="zstd")
        middle = len(source) // 2
        image_3HW, key = read_image(source, middle), self._key(middle)
        sheet_HW3 = styles_sheet(image_3HW, self.earth, self.engine, self.config.style, key)
        write_sheet(self.work / SHEET_FILE, sheet_HW3)
        write_checksummed(self.work / RUN_FILE, origin)
        shutil.rmtree(self.work / PARTS)
        replace_dir(self.work, self.target)

    def log(self, num_tiles: int, origin: dict[str, Any]) -> None:
        """Number of tiles and the sheet, to MLflow."""
        source = self.source
        tags = {"step": "stylize", "domain": source.domain, "provenance": source.provenance}
        name, key = f"stylize {source.domain}", origin["identity"]
        with start_run(name, key=key, tags=tags, params=origin["config"]) as run:
            run.log_metrics({"tiles": num_tiles})
            run.log_artifact(self.target / SHEET_FILE)

    def _key(self, index: int) -> tuple[object, ...]:
        return (self.config.seed, self.source.domain, self.source.rows[index]["tile_id"])

    def _path(self, index: int, counterpart: int) -> str:
        row = self.source.rows[index]
        scene = PurePosixPath(row["image"]).with_suffix("")
        return (scene / f"{row['col_off']}_{row['row_off']}~{counterpart}.tif").as_posix()

    def _read(self, index: int) -> NDArray[np.uint8] | None:
        numbers = range(self.config.counterparts)
        tile = window(self.source.rows[index])
        if all(_is_whole(self.work / self._path(index, number), tile) for number in numbers):
            return None
        return read_image(self.source, index)

    def _styled(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
        """Rows and their tiles' counterparts (K,3,H,W); None where an earlier run has written them."""
        images = prefetch(self._read, indices, self.config.workers)
        for index, image in zip(indices, images, strict=True):
            yield index, None if image is None else self._compute(index, image)

    def _compute(self, index: int, image_3HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        # one tile a batch: its pixels depend on no other tile, to the last bit
        generators = [
            keyed_generator(*self._key(index), number) for number in range(self.config.counterparts)
        ]
        x_13HW = torch.from_numpy(image_3HW)[None].to(self.engine.device)
        x_B3HW = x_13HW.expand(len(generators), -1, -1, -1)
        styled = inject(x_B3HW, self.earth, self.engine, self.config.style, generators)
        return styled.x_s.round().byte().cpu().numpy()

    def _label(self, row: dict[str, Any]) -> str:
        """The source's label file, relative to where the dataset will stand; empty where there is none."""
        return row["label"] and Path(os.path.relpath(self.source.root / row["label"], self.target)).as_posix()

    def _write(self, styled: tuple[int, NDArray[np.uint8] | None]) -> list[dict[str, Any]]:
        index, images = styled
        row = self.source.rows[index]
        rows = []
        for number in range(self.config.counterparts):
            path = self._path(index, number)
            if images is None:
                image = read_window(self.work / path, window(row))
            else:
                image = images[number]
                _write_tile(self.work / path, self.source.root / row["image"], row, image)
            pixels = describe(image, None, None, num_classes=0)
            own = {name: pixels[name] for name in ("sha256_image", "nodata_share", "constant", "dhash")}
            rows.append(
                {
                    **row,
                    **own,
                    "tile_id": f"{row['tile_id']}~{number}",
                    "image": path,
                    "label": self._label(row),
                    "source_tile": row["tile_id"],
                    "counterpart": number,
                }
            )
        return rows


def _write_tile(path: Path, scene_path: Path, row: dict[str, Any], image: NDArray[np.uint8]) -> None:
    """Writes a tile where it lies in a scene of the source's size: its window then fits the labels too."""
    with rasterio.open(scene_path, driver="GTiff") as scene:
        grid = Grid.of(scene)
    with atomic_path(path) as partial_path, scene_writer(partial_path, grid, 3) as writer:
        writer.update_tags(sha256=_sha256(image))
        writer.write(image, window=window(row).slices())


def _is_whole(path: Path, tile: Window) -> bool:
    """Whether an earlier run wrote this tile, and no disk has changed it since."""
    try:
        with rasterio.open(path, driver="GTiff") as file:
            written = file.tags().get("sha256")
        return bool(_sha256(read_window(path, tile)) == written)
    except (RasterioError, InputError):
        return False


def _sha256(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
