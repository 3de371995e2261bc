"""Maps scenes of any size: strips of rows are read, labelled and written, so memory ignores the height.

Legend: B windows, K classes, H W pixels of a window or strip.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from torch import Tensor

from crossearth.components.predict import maps
from crossearth.components.predict.sliding import (
    Loaded,
    Precision,
    load_network,
    num_windows,
    scene_scores,
    starts,
)
from crossearth.components.predict.strips import Scene, open_scene, read_strips
from crossearth.components.runtime.interrupts import Interrupts
from crossearth.components.runtime.memory import enough_memory
from crossearth.components.runtime.processes import choose_device
from crossearth.data.common.config import Rising, checked
from crossearth.data.common.errors import InputError, PartlyDoneError
from crossearth.data.common.files import fsync_dir, partial_dir, write_json
from crossearth.data.common.progress import bar
from crossearth.data.raster.gdal import GdalError
from crossearth.data.raster.names import RASTER_SUFFIXES
from crossearth.data.raster.reader import rasters_in
from crossearth.model.inference import best_class
from crossearth.model.weights.checkpoint import read_meta, trained_reading

GDAL_CACHE_BYTES = 256 << 20


@checked
class PredictConfig:
    """How scenes are mapped.

    Attributes:
        bands: 1-based band numbers in the order in which the network was trained (red, green, blue, or
            infrared, red, green); None = those of the model's training files. A model that does not know them
            takes the first three that are not alpha.
        value_range: values that become 0 and 255, after the scene's scale and offset tags; None = those of
            the model's training files. A model that does not know them takes 8-bit scenes as they are, and of
            others the 2nd and 98th percentile of the chosen bands together, estimated per scene.
        precision: of the network; "auto" = bfloat16 on GPUs and on CPUs with AMX, else float32.
        device: torch device; "auto" = the GPU where there is one.
        batch_size: windows per pass of the network.
        probabilities: also write `<map>.probabilities.tif`, one band per class.
        preview_px: longer side of the preview.
        backbone: file of the model's shared backbone where it was moved.
    """

    bands: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    value_range: Rising | None = None
    precision: Precision = "auto"
    device: str = "auto"
    batch_size: PositiveInt = 1
    probabilities: bool = False
    preview_px: PositiveInt = 1024
    backbone: Path | None = None


def predict(
    scenes: Sequence[Path],
    model: Path,
    out: Path,
    config: PredictConfig = PredictConfig(),  # noqa: B008 frozen
    own: bool = True,
) -> list[Path]:
    """Writes a class map of each scene: Cloud Optimized GeoTIFF, PNG preview and JSON report.

    Beside `MAP.tif` (uint8 class ids, 255 = nodata) stand `MAP.tif.aux.xml` (class names for a GIS),
    `MAP.png`, `MAP.json` (with the bands and the range that were used, and who chose them) and, if asked,
    `MAP.probabilities.tif`. A scene's files appear when it is done; one that is broken does not keep the
    others from being mapped.

    Args:
        scenes: raster files, or folders of them, searched with everything in them.
        model: a model folder or file, see `checkpoint.load`.
        out: the map's file for a single scene; a folder for several scenes or a folder of them.
        own: whether the scenes are files of the user's own, see `open_raster`.

    Returns:
        The maps, in the order of the scenes.

    Raises:
        InputError: no scene, files of two maps that have one name, a map that would replace a scene or a
            foreign file, out of memory, a disk that takes no map, or whatever `checkpoint.load` refuses; no
            scene that can be mapped, as it is unreadable or is not read as the training files were (see
            `open_scene`).
        PartlyDoneError: some of the scenes cannot be mapped; all others are.
    """
    used = f"{choose_device(config.device)}: batch_size {config.batch_size}, precision {config.precision}"
    lower = (
        "lower --batch-size (the map stays the same), choose --precision bfloat16 or another --device, "
        "or cut the scene: memory grows with its width"
    )
    with (
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES),
        warnings.catch_warnings(),
        enough_memory(model, used, lower),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        targets = _targets(scenes, Path(out))
        meta = read_meta(model)
        trained = trained_reading(meta)
        readable: list[Scene] = []
        errors: list[InputError] = []
        for path in targets:
            try:
                readable.append(open_scene(path, trained, config.bands, config.value_range, own))
            except InputError as error:
                errors.append(error)
        if not readable:
            raise InputError("\n".join(map(str, errors)))
        loaded = load_network(model, config.precision, config.device, config.backbone)
        written: list[Path] = []
        with bar(MofNCompleteColumn(), "windows", TimeRemainingColumn()) as progress:
            task = progress.add_task(
                "", total=sum(num_windows(scene.seen_grid, loaded.network) for scene in readable)
            )
            for scene in readable:
                progress.update(task, description=scene.path.name)
                target = targets[scene.path]
                try:
                    _map(scene, target, loaded, config, lambda: progress.advance(task))
                    written.append(target)
                except CannotWriteError:
                    raise  # the next scene would meet the same disk
                except InputError as error:
                    errors.append(error)
    if not written:
        raise InputError("\n".join(map(str, errors)))
    if errors:
        raise PartlyDoneError(f"{len(errors)} of {len(targets)} scenes are not mapped", errors, written)
    return written


class CannotWriteError(InputError):
    """The disk takes no map."""


def _map(
    scene: Scene,
    target: Path,
    loaded: Loaded,
    config: PredictConfig,
    advance: Callable[[], None],
) -> None:
    with _writing(target) as folder:
        tally = _write_rows(scene, folder, loaded, config, advance)
        maps.write_cog(folder / "ids.tif", folder / target.name, "MODE")
        if not np.array_equal(maps.count_pixels(folder / target.name), tally.pixels):
            # GDAL may lose the last blocks of a full disk without a word
            raise OSError("the map on disk is not what was written")
        (folder / "ids.tif").unlink()
        maps.write_side_file(folder / target.name, scene.grid.crs, loaded.classes)
        if config.probabilities:
            fractions = folder / _probabilities_path(target).name
            maps.write_cog(folder / "shares.tif", fractions, "AVERAGE")
            (folder / "shares.tif").unlink()
            maps.write_side_file(fractions, scene.grid.crs)
        maps.write_preview(
            folder / target.name, folder / f"{target.stem}.png", loaded.palette, config.preview_px
        )
        report = {
            "scene": scene.path.name,
            "bands_from": scene.bands_from,
            "value_range_from": scene.range_from,
            **asdict(scene.reading),
            "model": loaded.about,
            **maps.report(scene.grid, loaded.classes, tally),
        }
        report["notes"] += _resolution(scene, report["pixel_area_m2"])
        write_json(folder / f"{target.stem}.json", report)
        _publish(folder, target)


def _resolution(scene: Scene, area_m2: float | None) -> list[str]:
    """What to know where the network sees px of another size than those that it was trained on.

    Args:
        area_m2: of the scene's px.
    """
    trained_m = scene.reading.gsd_m
    if area_m2 is None or trained_m is None:
        return []
    own, seen = scene.grid, scene.seen_grid
    seen_m = math.sqrt(area_m2 * own.width * own.height / (seen.width * seen.height))
    if 0.5 <= seen_m / trained_m <= 2:
        return []
    return [f"the network sees pixels of {seen_m:.3g} m, it was trained on {trained_m:.3g} m"]


@contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `target`, gone at the end."""
    try:
        with partial_dir(target) as folder:
            yield folder
    except (RasterioError, GdalError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's own words say more than GDAL's
        raise CannotWriteError(
            f"cannot write the map: {error}",
            where=target,
            next_step="look at the disk's space and the rights",
        ) from error


def _write_rows(
    scene: Scene,
    folder: Path,
    loaded: Loaded,
    config: PredictConfig,
    advance: Callable[[], None],
) -> maps.Tally:
    tally = maps.Tally(scene.grid)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())

        def advance_or_stop() -> None:
            advance()
            interrupts.let_through()

        ids = stack.enter_context(maps.rows_writer(folder / "ids.tif", scene.grid, 1))
        maps.describe_classes(ids, loaded.classes, loaded.palette)
        if config.probabilities:
            fractions = stack.enter_context(
                maps.rows_writer(folder / "shares.tif", scene.grid, len(loaded.classes))
            )
            maps.describe_probabilities(fractions, loaded.classes)
        seen = scene.seen_grid
        down, across = _nearest(scene.grid.height, seen.height), _nearest(scene.grid.width, seen.width)
        tops, _ = starts(seen, loaded.network)
        strips = stack.enter_context(read_strips(scene, tops, loaded.network.config.crop_px))
        for top, valid_HW, scores_KHW in scene_scores(
            loaded, strips, seen, config.batch_size, advance_or_stop
        ):
            begin, end = np.searchsorted(down, (top, top + len(valid_HW)))
            if begin == end:
                continue
            rows = Window(0, begin, scene.grid.width, end - begin)
            nearest = np.ix_(down[begin:end] - top, across)
            ids_HW = best_class(scores_KHW, 0).cpu().numpy()
            ids_HW[~valid_HW] = maps.NODATA
            ids_HW = ids_HW[nearest]
            ids.write(ids_HW, 1, window=rows)
            tally.add(begin, ids_HW)
            if config.probabilities:
                fractions.write(_fractions(scores_KHW, valid_HW)[:, nearest[0], nearest[1]], window=rows)
    return tally


def _nearest(side: int, seen_side: int) -> NDArray[np.int64]:
    """Of each px along a side of the scene, the one nearest to it along the side that the network saw."""
    return ((np.arange(side) + 0.5) * (seen_side / side)).astype(np.int64)


def _fractions(scores_KHW: Tensor, valid_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    totals_HW = scores_KHW.sum(0).clamp(min=torch.finfo(torch.float32).tiny)
    shares_KHW = scores_KHW.div(totals_HW).div_(maps.PROBABILITY_STEP).round_().to(torch.uint8).cpu().numpy()
    shares_KHW[:, ~valid_HW] = maps.NODATA
    return shares_KHW


def _targets(scenes: Sequence[Path], out: Path) -> dict[Path, Path]:
    """The map's path per scene."""
    files = _files(scenes)
    single = len(files) == 1 and not Path(scenes[0]).is_dir() and not out.is_dir()
    if single and out.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(
            "the map's name", where=out, expected="a name that ends in .tif, or a folder that exists"
        )
    if not single and not out.is_dir() and out.suffix.lower() in (".tif", ".tiff"):
        raise InputError(
            "one map, but several scenes, or a folder of them", where=f"--out {out}", expected="a folder"
        )
    targets = {file: out if single else out / f"{file.stem}.tif" for file in files}
    refuse_clashes(targets)
    originals = {_one_name(file) for file in files}
    for file, target in targets.items():
        for written in _written(target):
            if _one_name(written) in originals:
                raise InputError(
                    f"the map's files would replace the scene {written}",
                    where=file,
                    next_step="choose another --out",
                )
        _refuse_foreign(target)
    return targets


def refuse_clashes(targets: Mapping[Any, Path]) -> None:
    """Refuses two maps that would write a file of one name.

    Args:
        targets: the map's path per scene.

    Raises:
        InputError: names the file and both scenes.
    """
    first: dict[str, Any] = {}
    for scene, target in targets.items():
        for path in _written(target):
            other = first.setdefault(_one_name(path), scene)
            if other != scene:
                raise InputError(
                    f"two scenes would give {path}: this one and {other}",
                    where=scene,
                    next_step="rename one of them, or map them apart, each with an --out of its own",
                )


def _one_name(path: Path) -> str:
    """Equal where two paths are one file: to many disks, and where maps are copied, a.tif is A.tif."""
    return os.fspath(path.resolve()).casefold()


def _files(scenes: Sequence[Path]) -> list[Path]:
    """The scenes, also of folders."""
    files: list[Path] = []
    for scene in map(Path, scenes):
        found = rasters_in(scene) if scene.is_dir() else [scene]
        if not found:
            raise InputError(
                "no scene in the folder",
                where=scene,
                expected=f"files that end in {', '.join(RASTER_SUFFIXES)}",
            )
        files += found
    for file in files:
        if not file.is_file():
            raise InputError("no such scene", where=file)
    if not files:
        raise InputError("no scene given")
    return files


def _written(target: Path) -> list[Path]:
    """The map and what may stand beside it."""
    fractions = _probabilities_path(target)
    beside = [target.with_suffix(".json"), target.with_suffix(".png"), fractions]
    return [target, *beside, maps.side_file(target), maps.side_file(fractions)]


def _refuse_foreign(target: Path) -> None:
    """What lies under the names of the map and its report was written by an earlier run."""
    report = target.with_suffix(".json")
    is_own = {target: maps.is_map, report: maps.is_report}
    for path in filter(Path.exists, _written(target)):
        # what else a map consists of goes by these two
        if not (is_own[path](path) if path in is_own else target.exists() or report.exists()):
            raise InputError(
                "it was not written by crossearth predict, and would be replaced",
                where=path,
                next_step="move it away, or choose another --out",
            )
    for raster, kind in product((target, _probabilities_path(target)), (".ovr", ".msk")):
        path = raster.with_name(f"{raster.name}{kind}")
        if path.exists():
            raise InputError(
                f"GDAL would read it with the new {raster.name}, which it was not made of",
                where=path,
                next_step="remove it, or choose another --out",
            )


def _probabilities_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.probabilities.tif")


def _publish(folder: Path, target: Path) -> None:
    """Moves the finished files to where the map belongs: first the report, to know them by, last the map."""
    names = {path.name for path in folder.iterdir()}
    order = sorted(_written(target), key=lambda path: (path == target, path.suffix != ".json"))
    for path in order:
        if path.name not in names:
            path.unlink(missing_ok=True)  # an earlier map's: not this one's
            continue
        with (folder / path.name).open("rb+") as file:
            os.fsync(file.fileno())
        (folder / path.name).replace(path)
    fsync_dir(target.parent)
