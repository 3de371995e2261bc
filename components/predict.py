"""Maps scenes of any size: strips of rows are read, labelled and written, so memory ignores the height.

Legend: B windows, K classes, H W pixels of a window or strip.
"""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # rasterio.shutil.copy lets it through
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F

from crossearth.components import maps
from crossearth.components.processes import choose_device
from crossearth.data.errors import InputError
from crossearth.data.files import fsync_dir, partial_dir, write_json
from crossearth.model.checkpoint import load, read_meta
from crossearth.model.crossearth import CrossEarth
from crossearth.model.inference import best_class, window_starts

SCENE_SUFFIXES = {".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".img", ".vrt"}
SMALLEST_VALUE = {"uint8": 0, "uint16": 0, "int16": -(1 << 15)}
GDAL_CACHE_BYTES = 256 << 20
RANGE_SAMPLE_PX = 1024
RANGE_PERCENTILES = (2, 98)

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class PredictConfig:
    """How scenes are mapped.

    Attributes:
        bands: 1-based band numbers in the order in which the network was trained (red, green, blue, or
            infrared, red, green); None = the first three that are not alpha.
        value_range: values that become 0 and 255; None = 8-bit scenes as they are, and for 16-bit scenes the
            2nd and 98th percentile of the chosen bands together, estimated per scene and told in the report.
        precision: of the network; "auto" = bfloat16 on GPUs and on CPUs with AMX, else float32.
        device: torch device; "auto" = the GPU where there is one.
        batch_size: windows per pass of the network.
        probabilities: also write `<map>.probabilities.tif`, one band per class.
        preview_px: longer side of the preview.
        backbone: file of the model's shared backbone where it was moved.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    precision: Precision = "auto"
    device: str = "auto"
    batch_size: int = 1
    probabilities: bool = False
    preview_px: int = 1024
    backbone: Path | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (len(self.bands) != 3 or min(self.bands) < 1):
            raise InputError(f"bands: {list(self.bands)}", expected="three band numbers, counted from 1")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise InputError(f"value_range: {list(self.value_range)}", expected="two rising numbers")
        for field in ("batch_size", "preview_px"):
            if getattr(self, field) < 1:
                raise InputError(f"{field}: {getattr(self, field)}", expected="at least 1")


@dataclass(frozen=True)
class Scene:
    """A raster to map, as far as its header tells; `bands` are the three chosen, 1-based."""

    path: Path
    grid: maps.Grid
    bands: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Strip:
    """Whole rows of a scene: image uint8 (3, H, W) in network order, valid bool (H, W)."""

    image: NDArray[np.uint8]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Loaded:
    """A model ready to map: network on its device, precision, and what the report says of it."""

    network: CrossEarth
    precision: torch.dtype
    classes: list[str]
    palette: list[str]
    about: dict[str, Any]


def predict(
    scenes: Sequence[Path], model: Path, out: Path, config: PredictConfig = PredictConfig()
) -> list[Path]:
    """Writes a class map of each scene: Cloud Optimized GeoTIFF, PNG preview and JSON report.

    Beside `MAP.tif` (uint8 class ids, 255 = nodata) stand `MAP.tif.aux.xml` (class names for a GIS),
    `MAP.png`, `MAP.json` and, if asked, `MAP.probabilities.tif`. A scene's files appear when it is done.

    Args:
        scenes: raster files, or folders of them.
        model: a model folder or file, see `checkpoint.load`.
        out: the map's file for a single scene; a folder for several scenes or a folder of them.

    Returns:
        The maps, in the order of the scenes.

    Raises:
        InputError: no scene, an unreadable one, fewer bands than asked, a dtype that is neither 8 nor 16 bit,
            two scenes of one name, a map that would replace its scene, or whatever `checkpoint.load` refuses.
    """
    targets = _targets(scenes, Path(out))
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        readable = [open_scene(path, config.bands) for path in targets]
        loaded = load_network(model, config)
        with _progress() as progress:
            task = progress.add_task(
                "", total=sum(num_windows(scene.grid, loaded.network) for scene in readable)
            )
            for scene in readable:
                progress.update(task, description=scene.path.name)
                _map(scene, targets[scene.path], loaded, config, lambda: progress.advance(task))
    return list(targets.values())


def open_scene(path: Path, bands: tuple[int, ...] | None = None) -> Scene:
    """Reads a scene's header and chooses its bands.

    Raises:
        InputError: not a readable raster, fewer bands than asked, or a dtype that is neither 8 nor 16 bit.
    """
    with _reading(path), rasterio.open(path) as source:
        grid = maps.Grid(source.width, source.height, source.crs, source.transform)
        count, dtypes, colours = source.count, source.dtypes, source.colorinterp
    opaque = [band for band in range(1, count + 1) if colours[band - 1] != ColorInterp.alpha]
    chosen = bands or tuple(opaque[:3])
    if len(chosen) < 3 or max(chosen) > count:
        asked = "three" if bands is None else f"band {max(bands)}"
        raise InputError(
            f"the scene has {count} band{'s' * (count != 1)}, asked for {asked}",
            where=path,
            expected="the bands that the network was trained on",
            next_step="choose with --bands, for example --bands 3,2,1 (one band may stand three times)",
        )
    kinds = sorted({dtypes[band - 1] for band in chosen})
    if len(kinds) > 1 or kinds[0] not in SMALLEST_VALUE:
        raise InputError(
            f"bands of type {', '.join(kinds)}",
            where=path,
            expected=f"one of {', '.join(SMALLEST_VALUE)}",
            next_step="convert the scene, for example with gdal_translate -ot UInt16 -scale",
        )
    return Scene(Path(path), grid, chosen, kinds[0])


def scene_scores(
    loaded: Loaded, strips: Iterator[Strip], grid: maps.Grid, batch_size: int, advance: Callable[[], None]
) -> Iterator[tuple[int, NDArray[np.bool_], Tensor]]:
    """Slides the network over strips and yields rows as soon as no window will touch them again.

    The scores of a pixel are the mean over all windows that hold it, exactly as `inference.slide_logits` has
    it; windows without a valid pixel are not computed. Memory: one row of windows, K x crop x W float32.

    Args:
        strips: one per row of windows, top to bottom, as tall as a window.
        advance: called once per window.

    Yields:
        (first row, valid_HW, scores_KHW float32 on the network's device, overwritten by the next rows).
    """
    config = loaded.network.config
    tops, lefts = _starts(grid, loaded.network)
    height, width = min(config.crop_px, grid.height), min(config.crop_px, grid.width)
    device = next(loaded.network.parameters()).device
    sums_KHW = torch.zeros(config.num_classes, height, grid.width, device=device)
    counts_HW = torch.zeros(height, grid.width, device=device)
    for top, below, strip in zip(tops, [*tops[1:], grid.height], strips, strict=True):
        needed = [left for left in lefts if strip.valid[:, left : left + width].any()]
        for _ in range(len(lefts) - len(needed)):
            advance()
        image_3HW = torch.from_numpy(strip.image)
        for first in range(0, len(needed), batch_size):
            batch = needed[first : first + batch_size]
            windows_B3HW = torch.stack([image_3HW[:, :, left : left + width] for left in batch]).to(device)
            for left, scores_KHW in zip(batch, window_scores(loaded, windows_B3HW), strict=True):
                sums_KHW[:, :, left : left + width] += scores_KHW[:, :height, :width]
                counts_HW[:, left : left + width] += 1
                advance()
        done = below - top
        yield top, strip.valid[:done], sums_KHW[:, :done].div_(counts_HW[:done].clamp(min=1))
        for buffer in (sums_KHW, counts_HW):
            buffer[..., : height - done, :] = buffer[..., done:, :].clone()
            buffer[..., height - done :, :] = 0


def window_scores(loaded: Loaded, windows_B3HW: Tensor) -> Tensor:
    """Scores (B, K, h, w) float32; a window that is no whole number of patches gains some right and below."""
    patch_px = loaded.network.config.patch_px
    missing = [max(2, -(-side // patch_px)) * patch_px - side for side in windows_B3HW.shape[2:]]
    if any(missing):
        padding = (0, missing[1], 0, missing[0])
        windows_B3HW = F.pad(windows_B3HW.float(), padding, mode="replicate")
    reduced = loaded.precision != torch.float32
    with torch.inference_mode(), torch.autocast(windows_B3HW.device.type, loaded.precision, enabled=reduced):
        return loaded.network(windows_B3HW).float()


def _map(
    scene: Scene, target: Path, loaded: Loaded, config: PredictConfig, advance: Callable[[], None]
) -> None:
    with _writing(target) as folder:
        value_range = config.value_range or _estimated_range(scene)
        pixels = _write_rows(scene, value_range, folder, loaded, config, advance)
        maps.write_cog(folder / "ids.tif", folder / target.name, "MODE")
        if not np.array_equal(maps.count_pixels(folder / target.name), pixels):
            # GDAL may lose the last blocks of a full disk without a word
            raise OSError("the map on disk is not what was written")
        (folder / "ids.tif").unlink()
        if config.probabilities:
            maps.write_cog(folder / "shares.tif", folder / _probabilities_path(target).name, "AVERAGE")
            (folder / "shares.tif").unlink()
        maps.write_category_names(folder / f"{target.name}.aux.xml", loaded.classes)
        maps.write_preview(
            folder / target.name, folder / f"{target.stem}.png", loaded.palette, config.preview_px
        )
        report = {
            "scene": scene.path.name,
            "bands": list(scene.bands),
            "value_range": value_range,
            "model": loaded.about,
            **maps.report(scene.grid, loaded.classes, pixels),
        }
        write_json(folder / f"{target.stem}.json", report)
        _publish(folder, target)


@contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `target`, gone at the end."""
    try:
        with partial_dir(target) as folder:
            yield folder
    except (RasterioError, CPLE_BaseError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's own words say more than GDAL's
        raise InputError(
            f"cannot write the map: {error}",
            where=target,
            next_step="look at the disk's space and the rights",
        ) from error


def _write_rows(
    scene: Scene,
    value_range: tuple[float, float] | None,
    folder: Path,
    loaded: Loaded,
    config: PredictConfig,
    advance: Callable[[], None],
) -> NDArray[np.int64]:
    pixels = np.zeros(256, np.int64)
    with ExitStack() as stack:
        ids = stack.enter_context(maps.rows_writer(folder / "ids.tif", scene.grid, 1))
        maps.describe_classes(ids, loaded.classes, loaded.palette)
        if config.probabilities:
            shares = stack.enter_context(
                maps.rows_writer(folder / "shares.tif", scene.grid, len(loaded.classes))
            )
            maps.describe_probabilities(shares, loaded.classes)
        tops, _ = _starts(scene.grid, loaded.network)
        strips = stack.enter_context(_strips(scene, value_range, tops, loaded.network.config.crop_px))
        for top, valid_HW, scores_KHW in scene_scores(loaded, strips, scene.grid, config.batch_size, advance):
            rows = Window(0, top, scene.grid.width, len(valid_HW))
            ids_HW = best_class(scores_KHW, 0).cpu().numpy()
            ids_HW[~valid_HW] = maps.NODATA
            ids.write(ids_HW, 1, window=rows)
            pixels += np.bincount(ids_HW.ravel(), minlength=256)
            if config.probabilities:
                shares.write(_shares(scores_KHW, valid_HW), window=rows)
    return pixels


def _shares(scores_KHW: Tensor, valid_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    totals_HW = scores_KHW.sum(0).clamp(min=torch.finfo(torch.float32).tiny)
    shares_KHW = scores_KHW.div(totals_HW).div_(maps.PROBABILITY_STEP).round_().to(torch.uint8).cpu().numpy()
    shares_KHW[:, ~valid_HW] = maps.NODATA
    return shares_KHW


@contextmanager
def _strips(
    scene: Scene, value_range: tuple[float, float] | None, tops: list[int], crop_px: int
) -> Iterator[Iterator[Strip]]:
    """Yields the strips under `tops`; a thread reads each row once, a strip ahead of the one in use."""
    height = min(crop_px, scene.grid.height)
    levels = None if value_range is None else _levels(scene.dtype, value_range)
    spans = [(tops[0], tops[0] + height)]
    spans += [(top + height, below + height) for top, below in pairwise(tops)]

    with _reading(scene.path):
        source = rasterio.open(scene.path)
    with source, ThreadPoolExecutor(1) as reader:

        def read(start: int, stop: int) -> Strip:
            rows = Window(0, start, scene.grid.width, stop - start)
            with _reading(scene.path):
                values_3HW = source.read(scene.bands, window=rows)
                valid_HW = source.read_masks(scene.bands, window=rows).any(axis=0)
            if levels is not None:
                values_3HW = levels[values_3HW.astype(np.int32) - SMALLEST_VALUE[scene.dtype]]
            return Strip(values_3HW, valid_HW)

        def strips() -> Iterator[Strip]:
            coming = reader.submit(read, *spans[0])
            held: Strip | None = None
            for index in range(len(tops)):
                fresh = coming.result()
                if index + 1 < len(tops):
                    coming = reader.submit(read, *spans[index + 1])
                if held is not None:
                    kept = fresh.valid.shape[0]
                    fresh = Strip(
                        np.concatenate([held.image[:, kept:], fresh.image], axis=1),
                        np.concatenate([held.valid[kept:], fresh.valid]),
                    )
                held = fresh
                yield fresh

        yield strips()


def _levels(dtype: str, value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """The uint8 level of every value that `dtype` can take, smallest first."""
    low, high = value_range
    smallest = SMALLEST_VALUE[dtype]
    values = np.arange(smallest, smallest + (1 << 8 * np.dtype(dtype).itemsize), dtype=np.float64)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _estimated_range(scene: Scene) -> tuple[float, float] | None:
    if scene.dtype == "uint8":
        return None
    shrink = max(1.0, max(scene.grid.width, scene.grid.height) / RANGE_SAMPLE_PX)
    shape = (3, max(1, round(scene.grid.height / shrink)), max(1, round(scene.grid.width / shrink)))
    with _reading(scene.path), rasterio.open(scene.path) as source:
        values = source.read(scene.bands, out_shape=shape, masked=True).compressed()
    if not values.size:
        return (0.0, 1.0)
    low, high = np.percentile(values, RANGE_PERCENTILES)
    return float(low), float(max(high, low + 1))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise InputError(
            f"cannot read the scene: {error}", where=path, expected="a whole raster that GDAL can read"
        ) from error


def _starts(grid: maps.Grid, network: CrossEarth) -> tuple[list[int], list[int]]:
    crop_px, stride_px = network.config.crop_px, network.config.stride_px
    return window_starts(grid.height, crop_px, stride_px), window_starts(grid.width, crop_px, stride_px)


def num_windows(grid: maps.Grid, network: CrossEarth) -> int:
    """Windows that cover a scene."""
    tops, lefts = _starts(grid, network)
    return len(tops) * len(lefts)


def _targets(scenes: Sequence[Path], out: Path) -> dict[Path, Path]:
    """The map's path per scene."""
    files: list[Path] = []
    for scene in map(Path, scenes):
        inside = scene.iterdir() if scene.is_dir() else [scene]
        found = sorted(path for path in inside if path.suffix.lower() in SCENE_SUFFIXES or path == scene)
        if not found:
            raise InputError(
                "no scene in the folder", where=scene, expected=f"files {sorted(SCENE_SUFFIXES)}"
            )
        files += found
    for file in files:
        if not file.is_file():
            raise InputError("no such scene", where=file)
    if not files:
        raise InputError("no scene given")
    single = len(files) == 1 and not Path(scenes[0]).is_dir() and not out.is_dir()
    if single and out.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(
            "the map's name", where=out, expected="a name that ends in .tif, or a folder that exists"
        )
    if not single and out.suffix.lower() in (".tif", ".tiff"):
        raise InputError(f"one map for {len(files)} scenes", where=out, expected="a folder")
    targets = {file: out if single else out / f"{file.stem}.tif" for file in files}
    maps_of = Counter(targets.values())
    originals = {file.resolve() for file in files}
    for file, target in targets.items():
        if maps_of[target] > 1:
            raise InputError(
                f"two scenes would give {target}", where=file, expected="scenes of different names"
            )
        for written in (target, target.with_suffix(".png"), _probabilities_path(target)):
            if written.resolve() in originals:
                raise InputError(
                    f"the map's files would replace the scene {written}",
                    where=file,
                    next_step="choose another --out",
                )
    return targets


def _probabilities_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.probabilities.tif")


def load_network(model: Path, config: PredictConfig) -> Loaded:
    """Reads a model and puts it on its device, its weights in the precision that they are used in."""
    device = choose_device(config.device)
    meta = read_meta(model)
    precision = choose_precision(config.precision, device)
    about = {
        "sha256": meta["sha256"],
        "provenance": meta["provenance"],
        "precision": str(precision).removeprefix("torch."),
    }
    network = load(model, device, config.backbone, precision)
    return Loaded(network, precision, meta["classes"], meta["palette"], about)


def choose_precision(precision: Precision, device: str) -> torch.dtype:
    """The dtype of the network's arithmetic; "auto" = bfloat16 where the hardware multiplies it fast."""
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    fast = device.startswith("cuda") or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def _publish(folder: Path, target: Path) -> None:
    """Moves the finished files to where the map belongs, the map itself last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == target.name):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.replace(target.parent / path.name)
    fsync_dir(target.parent)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("windows"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
