"""The table of a domain's tiles: what every later step knows about pixels before it reads one.

A domain folder holds `train.parquet` and/or `test.parquet` (one row a tile) beside the scenes that the rows
point into. `data/tiles/scenes.py` documents how pixels are stored; `read_image` and `read_label` hide it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Json

from crossearth.data.catalog.domains import Catalog, Split, is_file_name
from crossearth.data.common.config import checked, listed, load_config
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path
from crossearth.data.raster.reading import Reading
from crossearth.data.tiles.scenes import Window, read_window

Provenance = Literal["synthetic", "publisher", "own"]
FORMAT = "4"

SCHEMA = pa.schema(
    [
        ("tile_id", pa.string()),  # unique in the split
        ("scene", pa.string()),  # tiles of one scene overlap on the ground: never split them
        ("split", pa.string()),
        ("image", pa.string()),  # path below the domain folder
        ("label", pa.string()),  # the same; empty where the domain has no labels
        ("col_off", pa.int32()),  # px, the tile's window in image and label
        ("row_off", pa.int32()),
        ("width", pa.int32()),  # px
        ("height", pa.int32()),
        ("sha256_image", pa.string()),  # of the tile's pixel bytes in (3, H, W) order, not of a file
        ("sha256_label", pa.string()),  # of the tile's pixel bytes in (H, W) order
        ("bytes", pa.int64()),  # pixel bytes of image and label
        ("crs", pa.string()),  # empty where the publisher's file has none
        ("transform", pa.list_(pa.float64(), 6)),  # tile px -> crs units: a, b, c, d, e, f
        ("gsd_m", pa.float64()),  # metres per px; 0 where unknown
        ("bands", pa.list_(pa.string())),  # in the order of the stored planes
        ("nodata_share", pa.float64()),  # 0..1 of px that the file masks or whose three values are 0
        ("constant", pa.bool_()),  # every band has one value
        ("dhash", pa.string()),  # 256-bit gradient hash as hex: near-duplicates differ in a few bits
        ("class_pixels", pa.list_(pa.int64())),  # px per class of the domain's own class set
        ("ignored_pixels", pa.int64()),
    ]
)


@checked
class _About:
    """What the file says besides its rows."""

    domain: str
    split: Split
    classes: Json[tuple[str, ...]]
    provenance: Provenance
    reading: Json[Reading]

    def __post_init__(self) -> None:
        if not is_file_name(self.domain):
            raise InputError(f"domain: {self.domain!r} is no name")


@dataclass(frozen=True)
class Manifest:
    """One split of one domain.

    Attributes:
        root: the domain's folder.
        classes: names of the classes of the label ids 0, 1, ...; none where there are no labels.
        provenance: "synthetic" = drawn by code, "publisher" = a published data set, "own" = the user's.
        reading: how the values of the domain's files became those of the tiles.
        table: rows of `SCHEMA`, ordered by scene and window.
        digest: hex SHA-256 of everything above but `root`, and so of every tile's pixels.
    """

    root: Path
    domain: str
    split: str
    classes: tuple[str, ...]
    provenance: Provenance
    reading: Reading
    table: pa.Table
    digest: str

    def __len__(self) -> int:
        return cast(int, self.table.num_rows)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The table as plain Python values, one dict a tile."""
        return cast(list[dict[str, Any]], self.table.to_pylist())


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key under which area2 comes before area10."""
    parts = re.split(r"(\d+)", text)
    # by length and then by digits: as numbers, but of any length
    return [(len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (-1, part) for part in parts]


def write_manifest(
    root: Path,
    domain: str,
    split: str,
    classes: Sequence[str],
    provenance: Provenance,
    reading: Reading,
    rows: Sequence[dict[str, Any]],
) -> Manifest:
    """Orders `rows` by scene and window and writes `root/<split>.parquet`; equal rows give equal bytes."""
    ordered = sorted(
        rows, key=lambda row: (natural(row["scene"]), natural(row["image"]), row["row_off"], row["col_off"])
    )
    about = {
        "domain": domain,
        "split": split,
        "classes": json.dumps(classes),
        "provenance": provenance,
        "reading": json.dumps(asdict(reading)),
        "format": FORMAT,
    }
    table = pa.Table.from_pylist(ordered, schema=SCHEMA)
    table = table.replace_schema_metadata({**about, "digest": _digest(about, table)})
    with atomic_path(root / f"{split}.parquet") as partial:
        pq.write_table(table, partial, compression="zstd")
    return _manifest(root, table)


def is_ingested(domain_dir: Path, split: str) -> bool:
    """Whether the split is here, whole or damaged."""
    return (Path(domain_dir) / f"{split}.parquet").exists()


def read_manifest(domain_dir: Path, split: str) -> Manifest:
    """Reads `domain_dir/<split>.parquet`.

    Raises:
        InputError: the domain was not ingested, has no such split, or the file is no such manifest, was
            changed since it was written, or names files outside the domain's folder.
    """
    path = Path(domain_dir) / f"{split}.parquet"
    if not is_ingested(domain_dir, split):
        there = sorted(file.stem for file in path.parent.glob("*.parquet"))
        raise InputError(
            f"no {split} split here",
            where=domain_dir,
            expected=f"one of {', '.join(there)}" if there else "",
            next_step="" if there else f"crossearth ingest {path.parent.name}",
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"cannot read the manifest: {error}", where=path, next_step="ingest the domain again"
        ) from error
    problem = _problem(table)
    if problem:
        raise InputError(problem, where=path, next_step="ingest the domain again")
    return _manifest(Path(domain_dir), table)


def read_domain(catalog: Catalog, domains_dir: Path, name: str, split: str) -> Manifest:
    """Reads the manifest of a domain of the catalog below `domains_dir`.

    Raises:
        InputError: an unknown domain; what `read_manifest` refuses; label ids that mean other classes than
            the catalog's.
    """
    domain = catalog.domain(name)
    manifest = read_manifest(catalog.domain_dir(domains_dir, name), split)
    classes = catalog.classes_of(domain)
    if manifest.classes != classes:
        raise InputError(
            f"{name} was ingested with the classes {listed(manifest.classes) or '(none)'}",
            where=manifest.root,
            expected=f"the catalog's: {listed(classes) or '(none)'}",
            next_step=f"run `crossearth ingest {name}` again",
        )
    return manifest


def _problem(table: pa.Table) -> str:
    about = _about(table)
    if not table.schema.equals(SCHEMA) or about.get("format") != FORMAT:
        return "a manifest of another version"
    if about.pop("digest", "") != _digest(about, table):
        return "it was changed since it was written: its digest is another"
    try:
        known = _known(about)
    except InputError as error:
        return str(error)
    for column in table.column_names:
        if table[column].null_count:
            return f"{column}: some rows have none"
    if any(len(counts) != len(known.classes) for counts in table["class_pixels"].to_pylist()):
        return f"class_pixels: some rows have other than {len(known.classes)} counts"
    for column in ("tile_id", "image", "label"):
        for name in table[column].unique().to_pylist():
            if not _is_inside(column, name):
                return f"{column}: {name!r} is outside the domain's folder"
    return ""


def _is_inside(column: str, name: str) -> bool:
    if column == "tile_id":
        return is_file_name(name)  # predictions take it for their files
    path = Path(name)
    # a restyled dataset refers to the labels of its origin, wherever that lies: to those, and to nothing else
    of_origin = column == "label" and path.match("*/labels/*.tif") and path.parts[-3] in get_args(Split)
    return not path.is_absolute() and (".." not in path.parts or of_origin)


def _about(table: pa.Table) -> dict[str, str]:
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (table.schema.metadata or {}).items()
    }


def _digest(about: Mapping[str, str], table: pa.Table) -> str:
    content = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for row in table.to_pylist():
        content.update(json.dumps([row[name] for name in SCHEMA.names]).encode())
    return content.hexdigest()


def _known(about: Mapping[str, str]) -> _About:
    return load_config(_About, {field.name: about.get(field.name, "") for field in fields(_About)}, "")


def _manifest(root: Path, table: pa.Table) -> Manifest:
    about = _about(table)
    return Manifest(root, **vars(_known(about)), table=table, digest=about["digest"])


def window(row: dict[str, Any]) -> Window:
    return Window(row["col_off"], row["row_off"], row["width"], row["height"])


def read_image(manifest: Manifest, index: int) -> NDArray[np.uint8]:
    """Tile `index` as uint8 (3, H, W), 0..255, planes in the order that the network sees.

    Raises:
        InputError: the file is missing or unreadable, or its pixels are not those of the manifest.
    """
    return _read(manifest, index, "image")


def read_label(manifest: Manifest, index: int) -> NDArray[np.uint8]:
    """Labels of tile `index` as uint8 (H, W): ids of the domain's own class set, 255 = ignore.

    Raises:
        InputError: the file is missing or unreadable, its pixels are not those of the manifest, or the
            domain has no labels.
    """
    if not manifest.rows[index]["label"]:
        raise InputError(f"domain {manifest.domain} has no labels", where=manifest.root)
    return _read(manifest, index, "label")[0]


def _read(manifest: Manifest, index: int, kind: str) -> NDArray[np.uint8]:
    row = manifest.rows[index]
    path = manifest.root / row[kind]
    pixels = read_window(path, window(row))
    if hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest() != row[f"sha256_{kind}"]:
        raise InputError(
            f"tile {row['tile_id']}: its {kind} was changed since it was written",
            where=path,
            next_step="bring the file back, or make the dataset again",
        )
    return pixels


def held_out(manifest: Manifest, share: float = 0.1) -> tuple[list[int], list[int]]:
    """Row indices for (training, validation): whole scenes, deterministic.

    Validation is the last block of scenes in natural order, because neighbours in numbering are often
    neighbours on the ground: scattered scenes would leak.

    Args:
        share: least share of tiles to hold out, 0..1.

    Raises:
        InputError: fewer than two scenes.
    """
    of_scene: dict[str, list[int]] = {}
    for index, row in enumerate(manifest.rows):
        of_scene.setdefault(row["scene"], []).append(index)
    if len(of_scene) < 2:
        raise InputError(
            f"cannot hold out a scene: {manifest.domain} has {len(of_scene)} in its {manifest.split} split",
            where=manifest.root,
            expected="at least 2 scenes",
        )
    scenes = sorted(of_scene, key=natural)
    held: list[int] = []
    while len(scenes) > 1 and len(held) < share * len(manifest):
        held += of_scene[scenes.pop()]
    return sorted(index for scene in scenes for index in of_scene[scene]), sorted(held)
