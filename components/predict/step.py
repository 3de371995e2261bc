"""Maps scenes of any size: strips of rows are read, labelled and written, so memory ignores the height.

Legend: B windows, K classes, H W pixels of a window or strip.
"""

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # rasterio.shutil.copy lets it through
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crossearth.components.predict import maps
from crossearth.components.predict.outputs import (
    CannotWriteError,
    Outputs,
    Wanted,
    beside,
    confidence_path,
    finish,
    keep,
    probabilities_path,
    publish_vector,
    refuse_foreign_vector,
)
from crossearth.components.predict.quick_look import write_quick_look
from crossearth.components.predict.sliding import (
    Loaded,
    Precision,
    load_network,
    num_windows,
    on_own_grid,
    scene_scores,
    starts,
)
from crossearth.components.predict.strips import Scene, open_scene, read_strips
from crossearth.components.runtime.interrupts import Interrupts
from crossearth.components.runtime.memory import enough_memory
from crossearth.components.runtime.processes import choose_device
from crossearth.data.common.errors import InputError, PartlyDoneError
from crossearth.data.common.files import fsync_dir, partial_dir, write_json
from crossearth.data.raster.names import RASTER_SUFFIXES
from crossearth.data.raster.reader import open_raster, rasters_in
from crossearth.model.weights.checkpoint import read_meta, trained_reading

GDAL_CACHE_BYTES = 256 << 20
MAP_ALONE = Wanted()


@dataclass(frozen=True)
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
        confidence: also write `<map>.confidence.tif`: the probability of the class that is named, and the
            entropy as a share of the most that there can be; and tell each class's expected area and the
            interval in which it lies, see `estimate`.
        quick_look: also write `<map>.html`, the map over the image.
        vector: also write polygons to this file, GeoPackage, GeoJSON or GeoParquet by its ending; an ending
            alone (".gpkg") puts them beside each map.
        min_area_m2: polygons below it are left out.
        simplify_px: by how many px, about, their outlines may be straightened; neighbours keep common sides.
        classes: names of the classes that become polygons; None = all.
        preview_px: longer side of the preview.
        backbone: file of the model's shared backbone where it was moved.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    precision: Precision = "auto"
    device: str = "auto"
    batch_size: int = 1
    probabilities: bool = False
    confidence: bool = False
    quick_look: bool = False
    vector: Path | None = None
    min_area_m2: float = 0
    simplify_px: float = 0
    classes: tuple[str, ...] | None = None
    preview_px: int = 1024
    backbone: Path | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (len(self.bands) != 3 or min(self.bands) < 1):
            raise InputError(f"bands: {list(self.bands)}", expected="three band numbers, counted from 1")
        low, high = self.value_range or (0, 255)
        if not -math.inf < low < high < math.inf:
            raise InputError(f"value_range: {[low, high]}", expected="two rising finite numbers")
        for field in ("batch_size", "preview_px"):
            if getattr(self, field) < 1:
                raise InputError(f"{field}: {getattr(self, field)}", expected="at least 1")
        _ = self.wanted  # refuses what cannot be

    @property
    def wanted(self) -> Wanted:
        """What is written besides the map."""
        return Wanted(**{each.name: getattr(self, each.name) for each in fields(Wanted)})


def predict(
    scenes: Sequence[Path],
    model: Path,
    out: Path,
    config: PredictConfig = PredictConfig(),
    own: bool = True,
) -> list[Path]:
    """Writes a class map of each scene: Cloud Optimized GeoTIFF, PNG preview and JSON report.

    Beside `MAP.tif` (uint8 class ids, 255 = nodata) stand `MAP.tif.aux.xml` (class names for a GIS),
    `MAP.png`, `MAP.json` (with the bands and the range that were used, and who chose them), `MAP.qml` (QGIS's
    style), `MAP.legend.svg` and what else the config asks for. A scene's files appear when it is done; one
    that is broken does not keep the others from being mapped.

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
        targets = _targets(scenes, Path(out), config.wanted)
        meta = read_meta(model)
        config.wanted.class_ids(meta["classes"])
        trained = trained_reading(meta)
        readable: list[Scene] = []
        errors: list[InputError] = []
        for path in targets:
            try:
                scene = open_scene(path, trained, config.bands, config.value_range, own)
                config.wanted.refuse_unplaced(scene.grid, path)
                readable.append(scene)
            except InputError as error:
                errors.append(error)
        if not readable:
            raise InputError("\n".join(map(str, errors)))
        loaded = load_network(model, config.precision, config.device, config.backbone)
        written: list[Path] = []
        with _progress() as progress:
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


def _map(
    scene: Scene,
    target: Path,
    loaded: Loaded,
    config: PredictConfig,
    advance: Callable[[], None],
) -> None:
    with _writing(target) as folder:
        outputs = _write_rows(scene, folder, loaded, config, advance)
        finish(folder, target, scene.grid, outputs.tally, loaded.classes, loaded.palette)
        preview = folder / f"{target.stem}.png"
        size = maps.write_preview(folder / target.name, preview, loaded.palette, config.preview_px)
        report = {
            "scene": scene.path.name,
            "bands_from": scene.bands_from,
            "value_range_from": scene.range_from,
            **asdict(scene.reading),
            "model": loaded.about,
            **outputs.report(loaded.classes),
        }
        report["notes"] += _resolution(scene, report["pixel_area_m2"])
        write_json(folder / f"{target.stem}.json", report)
        if config.quick_look:
            page = folder / f"{target.stem}.html"
            write_quick_look(page, _thinned(scene, size), preview, report, loaded.palette)
        vector = config.wanted.vector_of(target)
        if vector:
            publish_vector(folder, vector)
        _publish(folder, target)


def _thinned(scene: Scene, size: tuple[int, int]) -> NDArray[np.uint8]:
    """What the network sees of a scene, (H, W, 3), in so many rows and columns."""
    with open_raster(scene.path, scene.own) as raster:
        image_3HW, _ = scene.reading.read(raster, out_shape=size)
    return np.ascontiguousarray(image_3HW.transpose(1, 2, 0))


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
    except (RasterioError, CPLE_BaseError, OSError) as error:
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
) -> Outputs:
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())

        def advance_or_stop() -> None:
            advance()
            interrupts.let_through()

        outputs = stack.enter_context(
            Outputs.open(folder, scene.grid, loaded.classes, loaded.palette, config.wanted)
        )
        seen = scene.seen_grid
        tops, _ = starts(seen, loaded.network)
        strips = stack.enter_context(read_strips(scene, tops, loaded.network.config.crop_px))
        rows = scene_scores(loaded, strips, seen, config.batch_size, advance_or_stop)
        for block in on_own_grid(rows, scene.grid, seen):
            outputs.write(block.top, keep(block, config.wanted))
    return outputs


def _targets(scenes: Sequence[Path], out: Path, wanted: Wanted) -> dict[Path, Path]:
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
    if len(files) > 1 and wanted.vector and wanted.vector.suffix:
        raise InputError(
            "one file of polygons, but several scenes",
            where=f"--vector {wanted.vector}",
            expected=f"{wanted.vector.suffix} alone: a file beside each map",
        )
    refuse_clashes(targets, wanted)
    originals = {_one_name(file) for file in files}
    for file, target in targets.items():
        for written in _written(target, wanted):
            if _one_name(written) in originals:
                raise InputError(
                    f"the map's files would replace the scene {written}",
                    where=file,
                    next_step="choose another --out",
                )
        _refuse_foreign(target)
        vector = wanted.vector_of(target)
        if vector:
            refuse_foreign_vector(vector)
    return targets


def refuse_clashes(targets: Mapping[Any, Path], wanted: Wanted = MAP_ALONE) -> None:
    """Refuses two maps that would write a file of one name.

    Args:
        targets: the map's path per scene.

    Raises:
        InputError: names the file and both scenes.
    """
    first: dict[str, Any] = {}
    for scene, target in targets.items():
        for path in _written(target, wanted):
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


def _written(target: Path, wanted: Wanted = MAP_ALONE) -> list[Path]:
    """The map and what may stand beside it."""
    vector = wanted.vector_of(target)
    return [target, *beside(target), *([vector] if vector else [])]


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
    for raster, kind in product(
        (target, probabilities_path(target), confidence_path(target)), (".ovr", ".msk")
    ):
        path = raster.with_name(f"{raster.name}{kind}")
        if path.exists():
            raise InputError(
                f"GDAL would read it with the new {raster.name}, which it was not made of",
                where=path,
                next_step="remove it, or choose another --out",
            )


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
