"""Results on disk: what `evaluate` writes and what report, compare, register and show read.

A recipe's results are a folder: `details.json` (everything but the tiles), `scores.csv` (the documented
table), `curves.csv` (of the training, where it had some), `tiles/<target>.parquet` (pixel counts of every
tile) and `panels/` (pictures).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from crossearth.data.catalog.domains import Setting, mlflow_name
from crossearth.data.common.config import checked, load_config
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import (
    atomic_path,
    csv_text,
    read_checksummed,
    sha256_file,
    write_checksummed,
    write_text,
)
from crossearth.model.scores import METRICS, Counts, PrimaryMetric, Scores, score

DETAILS, TABLE, CURVES = "details.json", "scores.csv", "curves.csv"
PROVENANCES = ("synthetic", "own", "publisher")  # from the least real
# named so that they come first in MLflow's alphabetical tables
SUMMARY_METRICS = ("all/unseen-mean", "all/unseen-worst", "all/in-domain")
TILE_SCHEMA = pa.schema(
    [
        ("tile_id", pa.string()),
        ("scene", pa.string()),
        ("iou", pa.float64()),  # primary metric of this tile alone; null where it has no labelled pixel of it
        ("hits", pa.list_(pa.int64())),  # px per class
        ("predicted", pa.list_(pa.int64())),
        ("labelled", pa.list_(pa.int64())),
    ]
)


@checked
class Panel:
    """A picture of a tile: image, truth, prediction side by side; `file` is relative to the results."""

    file: str
    tile_id: str
    iou: float


@checked
class SettingResult:
    """One recipe on one target.

    Attributes:
        setting: as the catalog had it.
        key: digest of all that the numbers depend on.
        manifest_digest: of the target's test split.
        provenance: "synthetic", "publisher" or "own": the weaker of the training's and the target's.
        confusion: K x K pixels, rows = label, columns = prediction.
        tiles_sha256: of the file of the tiles' counts.
        published, published_iou: CrossEarth's published score and its IoU per class as fractions; None where
            unknown, and wherever the data is not the publisher's: the two are then not comparable.
        seconds, network_seconds: wall time of the whole pass, and of the part spent in the network.
    """

    setting: Setting
    key: str
    manifest_digest: str
    provenance: str
    published: float | None
    published_iou: tuple[float, ...] | None
    confusion: tuple[tuple[int, ...], ...]
    tiles: int
    tiles_sha256: str
    scenes: int
    ignored_pixels: int
    seconds: float
    network_seconds: float
    worst: tuple[Panel, ...] = ()
    best: tuple[Panel, ...] = ()


@checked
class RecipeResult:
    """All results of one trained model.

    Attributes:
        recipe_hash: identity of the training (digest of its inputs; of the weights for converted models).
        selection: rule by which the weights were chosen ("last", "best-source", "released").
        lineage: code version, git revision, machine, device, configurations: for reading, not for computing.
    """

    recipe: str
    recipe_hash: str
    seed: int | None
    selection: str
    class_set: str
    classes: tuple[str, ...]
    palette: tuple[str, ...]
    primary_metric: PrimaryMetric
    model_sha256: str
    lineage: dict[str, Any]
    settings: tuple[SettingResult, ...] = ()
    folder: Path = field(default=Path(), compare=False)

    @property
    def metric(self) -> str:
        """What its primary metric is: the mean over the classes, or the IoU of one."""
        return METRICS[self.primary_metric]

    @property
    def metric_key(self) -> str:
        """The same in the names of MLflow's metrics."""
        return "miou" if self.primary_metric == "mean" else "iou"

    def scores(self, result: SettingResult) -> Scores:
        return score(np.array(result.confusion, dtype=np.int64), self.primary_metric)

    def summary(self) -> dict[str, float]:
        """Primary IoU over the targets: mean and worst of the unseen ones, and in-domain, where defined."""
        return summary_metrics(
            [(each.setting, nan_to_none(self.scores(each).primary_metric)) for each in self.settings]
        )

    def tile_table(self, result: SettingResult) -> pa.Table:
        """Rows of `TILE_SCHEMA` of one of this recipe's settings.

        Raises:
            InputError: the file is gone, or is not the one that was written with these results.
        """
        path = self.folder / tile_file(result.setting.target)
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != result.tiles_sha256:
            raise InputError(
                "not the counts of the tiles that were written with these results"
                if content
                else "the counts of the tiles are gone",
                where=path,
                next_step=f"crossearth evaluate {self.recipe}",
            )
        return pq.read_table(pa.BufferReader(content))

    def tile_counts(self, result: SettingResult) -> Counts:
        """(N, 3, K) pixels: hits, predicted, labelled of every tile, in the manifest's order."""
        table = self.tile_table(result)
        columns = [
            table[name].combine_chunks().flatten().to_numpy().reshape(-1, len(self.classes))
            for name in ("hits", "predicted", "labelled")
        ]
        return np.stack(columns, axis=1)


def tile_file(target: str) -> str:
    """Where the counts of a target's tiles stand in a results folder."""
    return f"tiles/{target}.parquet"


def summary_metrics(scores: Sequence[tuple[Setting, float | None]]) -> dict[str, float]:
    """`SUMMARY_METRICS` of settings' primary scores; what an undefined score leaves undefined is left out."""
    mean, worst, in_domain = SUMMARY_METRICS
    of_kind: dict[bool, list[float]] = {True: [], False: []}
    for setting, value in scores:
        of_kind[setting.unseen].append(np.nan if value is None else value)
    wanted: Any = ((mean, np.mean, True), (worst, np.min, True), (in_domain, np.mean, False))
    values = {name: float(sums(of_kind[unseen])) for name, sums, unseen in wanted if of_kind[unseen]}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def metric_name(*parts: str) -> str:
    """A name that MLflow takes, as a path: "P(i)2V" becomes "P-i-2V"."""
    return "/".join(map(mlflow_name, parts))


def named(setting: Setting) -> dict[str, str]:
    """What every table says of a setting first."""
    return {"setting": setting.abbr, "source": setting.source, "target": setting.target, "gap": setting.gap}


def nan_to_none(value: float) -> float | None:
    """NaN as None: JSON and CSV know blanks, not NaN."""
    return None if np.isnan(value) else float(value)


def per_cent(value: float | None) -> str:
    """A fraction as the paper prints it: per cent with one digit; a blank where it is undefined."""
    return "" if value is None else f"{100 * value:.1f}"


def weakest(provenances: Iterable[str]) -> str:
    """Results are no more real than the least real of what they were made from."""
    return min(provenances, key=PROVENANCES.index)


def rows_of(result: RecipeResult) -> list[dict[str, Any]]:
    """The rows of scores.csv for one recipe: per setting its primary metric, then its classes.

    Scores are fractions 0..1, None where undefined. A mean has the class "mean"; the IoU of the foreground
    has its class, and another `metric` than the rows of the classes.
    """
    rows = []
    for each in result.settings:
        scores = result.scores(each)
        known = each.published_iou or (None,) * len(result.classes)
        name = "mean" if result.primary_metric == "mean" else result.classes[1]
        primary_metric = (result.metric, name, scores.primary_metric, scores.pixels.sum(), each.published)
        metrics = ["IoU"] * len(result.classes)
        per_class = zip(metrics, result.classes, scores.iou, scores.pixels, known, strict=True)
        for metric, class_name, iou, pixels, published in (primary_metric, *per_class):
            rows.append(
                {
                    **named(each.setting),
                    "recipe": result.recipe,
                    "recipe_hash": result.recipe_hash,
                    "seed": result.seed,
                    "selection": result.selection,
                    "metric": metric,
                    "class": class_name,
                    "iou": nan_to_none(iou),
                    "pixels": int(pixels),
                    "published": published,
                    "evidence": each.setting.evidence,
                    "provenance": each.provenance,
                }
            )
    return rows


def write_tiles(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Writes rows of `TILE_SCHEMA`; returns the file's SHA-256."""
    table = pa.Table.from_pylist(list(rows), schema=TILE_SCHEMA)
    with atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd")
    return sha256_file(path)


def write_results(result: RecipeResult) -> None:
    """Writes details.json and scores.csv into the result's folder, details first."""
    values = asdict(result)
    del values["folder"]
    write_checksummed(result.folder / DETAILS, values)
    write_text(result.folder / TABLE, csv_text(rows_of(result)))


def read_picture(path: Path, next_step: str = "") -> Image.Image:
    """A picture in RGB.

    Raises:
        InputError: it is gone or damaged; `next_step` brings it back.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:  # a PNG's checksum is a matter of syntax to Pillow
        raise InputError(
            "the picture is damaged" if path.is_file() else "the picture is gone",
            where=path,
            next_step=next_step,
        ) from error


def read_results(folder: Path) -> RecipeResult:
    """Reads the results in `folder`.

    Raises:
        InputError: there are none, or they are damaged or of another version.
    """
    path = Path(folder) / DETAILS
    if not path.is_file():
        raise InputError("no results here", where=folder, next_step="crossearth evaluate RECIPE")
    return load_config(RecipeResult, read_checksummed(path) | {"folder": Path(folder)}, path)


def find_results(folders: Sequence[Path]) -> list[RecipeResult]:
    """The results in `folders`: each is a recipe's folder, or a folder of such.

    Raises:
        InputError: a folder is missing or holds no results.
    """
    found = []
    for folder in folders:
        below = [] if (folder / DETAILS).is_file() else sorted(folder.glob(f"*/{DETAILS}"))
        found += [read_results(path.parent) for path in below] or [read_results(folder)]
    return found
