"""Maps scenes of any size: parts of a map are computed and stored, then the map is written of them."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from crossearth.components.predict import maps
from crossearth.components.predict.area import Asked, box, polygons_of
from crossearth.components.predict.compute import Team, compute
from crossearth.components.predict.config import DEFAULTS, PredictConfig
from crossearth.components.predict.outputs import (
    CannotWriteError,
    Kept,
    Outputs,
    beside,
    finish,
    publish_vector,
    rasters_beside,
)
from crossearth.components.predict.parts import Parts
from crossearth.components.predict.quick_look import write_quick_look
from crossearth.components.predict.remote import (
    Pending,
    Source,
    address_of,
    is_item,
    is_remote,
    pending_item,
    raster_of,
)
from crossearth.components.predict.sliding import Loaded, Plan, blocks, load_network, plan
from crossearth.components.predict.strips import Scene, View, open_scene
from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.device import choose_device
from crossearth.components.runtime.interrupts import Interrupts
from crossearth.components.runtime.memory import enough_memory
from crossearth.components.runtime.version import torch_version
from crossearth.data.common.errors import InputError, PartlyDoneError
from crossearth.data.common.files import digest, fsync_dir, partial_dir, write_json
from crossearth.data.common.progress import bar
from crossearth.data.common.shards import WHOLE, Shard
from crossearth.data.raster.gdal import GdalError
from crossearth.data.raster.names import RASTER_SUFFIXES
from crossearth.data.raster.reader import GDAL_CACHE_BYTES, Address, UnreachableError, open_raster, rasters_in
from crossearth.data.raster.reading import BYTES
from crossearth.model.weights.checkpoint import read_meta, trained_reading

BUNCH_PX = 2_000_000  # of whole rows that are written at a time


def predict(
    scenes: Sequence[str | Source],
    model: Path,
    out: Path,
    config: PredictConfig = DEFAULTS,
    own: bool = True,
    loaded: Loaded | None = None,
    shard: Shard = WHOLE,
) -> list[Path]:
    """Writes a class map of each scene: Cloud Optimized GeoTIFF, PNG preview and JSON report.

    Beside `MAP.tif` (uint8 class ids, 255 = nodata) stand `MAP.tif.aux.xml` (class names for a GIS),
    `MAP.png`, `MAP.json` (with the bands and the range that were used, and who chose them), `MAP.qml` (QGIS's
    style), `MAP.legend.svg` and what else the config asks for. A scene's files appear when it is done; one
    that is broken does not keep the others from being mapped.

    Args:
        scenes: raster files, or folders of them, searched with everything in them; https:// and s3://
            addresses of such files, read by ranges; STAC items, here or there (`.json`).
        model: a model folder or file, see `checkpoint.load`.
        out: the map's file for a single scene; a folder for several scenes or a folder of them.
        own: whether the scenes are files of the user's own, see `open_raster`.
        loaded: the model, where it is in memory already.
        shard: only its share of the scenes is mapped; names are checked over all of them.

    Returns:
        The maps, in the order of the scenes; none where a shard has no scene.

    Raises:
        InputError: no scene, files of two maps that have one name, a map that would replace a scene or a
            foreign file, out of memory, a disk that takes no map, or whatever `checkpoint.load` refuses; no
            scene that can be mapped, as it is unreadable or is not read as the training files were (see
            `open_scene`).
        PartlyDoneError: some of the scenes cannot be mapped; all others are.
    """
    batch = "" if config.batch_size is None else f"batch_size {config.batch_size}, "
    used = f"{choose_device(config.device)}: {batch}precision {config.precision}, {config.jobs} job(s)"
    lower = "lower --batch-size (1 is the least) or --jobs, choose --precision bfloat16 or another --device"
    with (
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES),
        warnings.catch_warnings(),
        enough_memory(model, used, lower),
        ExitStack() as stack,
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        targets = _targets(scenes, Path(out), config)
        targets = dict(list(targets.items())[shard.index :: shard.num])
        if not targets:
            return []
        meta = read_meta(model)
        config.class_ids(meta["classes"])
        trained = trained_reading(meta)
        asked = _asked(config)
        readable: list[tuple[Scene, Path]] = []
        errors: list[InputError] = []
        for source, target in targets.items():
            try:
                path = raster_of(source)
                _refuse_replaced(_by_name([path]), target, config)
                scene = open_scene(path, trained, config.bands, config.value_range, own, config.gsd, asked)
                config.refuse_unplaced(scene.grid, path)
                readable.append((scene, target))
            except InputError as error:
                errors.append(error)
        if not readable:
            raise InputError("\n".join(map(str, errors)))
        loaded = loaded or _load(model, config, config.device)
        team = None
        if config.jobs > 1:
            load = partial(_load, model, replace(config, batch_size=loaded.batch_size))
            team = stack.enter_context(Team.start(config.jobs, load, _devices(config.device)))
        plans = [plan(scene, loaded.network.config, loaded.batch_size) for scene, _ in readable]
        written: list[Path] = []
        progress = stack.enter_context(bar(MofNCompleteColumn(), "windows", TimeRemainingColumn()))
        task = progress.add_task("", total=sum(each.num_windows for each in plans))
        for (scene, target), how in zip(readable, plans, strict=True):
            progress.update(task, description=scene.path.name)
            try:
                _map(how, target, loaded, team, config, partial(progress.advance, task))
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


def map_array(loaded: Loaded, image_3HW: NDArray[np.uint8], valid_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Class ids (H, W) uint8, 255 = nodata, of an image in memory, as `predict` maps a file of its px.

    Args:
        image_3HW: in network order, as `Reading.of_array` gives it.
    """
    height, width = valid_HW.shape
    grid = maps.Grid(width, height, None, Affine.identity())
    scene = Scene(Path("array"), grid, (0, 0), (height, width), (height, width), BYTES, "", "")
    view = View(
        scene,
        lambda rows, columns: (
            image_3HW[:, slice(*rows), slice(*columns)],
            valid_HW[slice(*rows), slice(*columns)],
        ),
        lambda rows, columns: valid_HW[slice(*rows), slice(*columns)],
    )
    how = plan(scene, loaded.network.config, loaded.batch_size)
    ids_HW = np.full((height, width), maps.NODATA, np.uint8)
    for panel in range(len(how.panels)):
        for _, block in blocks(loaded, view, how, panel, range(len(how.strips)), lambda _: None):
            rows, columns = block.ids.shape
            ids_HW[block.top : block.top + rows, block.left : block.left + columns] = block.ids
    return ids_HW


def _load(model: Path, config: PredictConfig, device: str) -> Loaded:
    return load_network(
        model, config.precision, device, config.backbone, config.batch_size, config.tta, config.jobs
    )


def _devices(device: str) -> list[str]:
    """What the processes of a scene take in turn: all GPUs, where none is named."""
    if device == "auto" and torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [choose_device(device)]


def _asked(config: PredictConfig) -> Asked | None:
    if config.bbox is not None:
        return box(config.bbox, config.bbox_crs)
    return polygons_of(config.aoi) if config.aoi is not None else None


def _map(
    plan: Plan,
    target: Path,
    loaded: Loaded,
    team: Team | None,
    config: PredictConfig,
    advance: Callable[[int], None],
) -> None:
    scene, parts = plan.scene, Parts.of(target)
    with _writing(target) as folder:
        parts.begin(_identity(scene, loaded, config))
        try:
            with Interrupts() as interrupts:

                def advance_or_stop(windows: int) -> None:
                    advance(windows)
                    interrupts.let_through()

                compute(plan, parts, config.kept, loaded, team, advance_or_stop)
                outputs = _write_rows(plan, parts, folder, loaded, config, interrupts)
            finish(folder, target, scene.grid, outputs.tally, loaded.classes, loaded.palette)
            preview = folder / f"{target.stem}.png"
            size = maps.write_preview(folder / target.name, preview, loaded.palette)
            report = {
                "scene": scene.path.name,
                "bands_from": scene.bands_from,
                "value_range_from": scene.range_from,
                **asdict(scene.reading),
                "model": loaded.about,
                **outputs.report(loaded.classes),
            }
            report["notes"] += [scene.resolution] * bool(scene.resolution)
            write_json(folder / f"{target.stem}.json", report)
            if config.quick_look:
                page = folder / f"{target.stem}.html"
                write_quick_look(page, _thinned(scene, size), preview, report, loaded.palette)
            vector = config.vector_of(target)
            if vector:
                publish_vector(folder, vector)
            _publish(folder, target)
        except BaseException as error:
            if isinstance(error, InputError) and not isinstance(error, UnreachableError):
                parts.remove()  # the next try would meet the same
            parts.remove_if_empty()
            raise
        parts.remove()


def _thinned(scene: Scene, size: tuple[int, int]) -> NDArray[np.uint8]:
    """What a map is made of, as the network sees its values, (H, W, 3), in so many rows and columns."""
    (top, left), grid = scene.corner, scene.grid
    window = ((top, top + grid.height), (left, left + grid.width))
    with open_raster(scene.path, scene.own) as raster:
        image_3HW, _ = scene.reading.read(raster, window, size)
    return np.ascontiguousarray(image_3HW.transpose(1, 2, 0))


def _identity(scene: Scene, loaded: Loaded, config: PredictConfig) -> dict[str, Any]:
    """What the parts of a map depend on, but for the last digits, which threads and kinds of CPU have."""
    area = scene.area
    return {
        "scene": scene.state,
        "corner": scene.corner,
        "size": scene.size,
        "seen": scene.seen,
        "reading": asdict(scene.reading),
        "area": digest([each.wkt for each in area.polygons]) if area else None,
        "model": loaded.about,
        "batch_size": loaded.batch_size,
        "device": next(loaded.network.parameters()).device.type,
        "kept": config.kept,
        "code": code_digest("predict"),
        "torch": torch_version(),
    }


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
    plan: Plan,
    parts: Parts,
    folder: Path,
    loaded: Loaded,
    config: PredictConfig,
    interrupts: Interrupts,
) -> Outputs:
    scene = plan.scene
    about = {"RESOLUTION": scene.resolution} if scene.resolution else {}
    with Outputs.open(folder, scene.grid, loaded.classes, loaded.palette, config, about) as outputs:
        for strip in range(len(plan.strips)):
            for top, kept in _bunches(plan, parts, strip):
                outputs.write(top, kept)
            interrupts.let_through()
    return outputs


def _bunches(plan: Plan, parts: Parts, strip: int) -> Iterator[tuple[int, Kept]]:
    """Whole rows of a strip, few at a time: what becomes of them takes many times their own memory.

    Yields:
        (first row in the map, what was kept of these rows).
    """
    top, bottom = plan.strips[strip]
    if top == bottom:
        return
    panels = [parts.load(strip, panel) for panel in range(len(plan.panels))]
    at_once = max(1, BUNCH_PX // plan.panels[-1][1])
    for first in range(0, bottom - top, at_once):
        rows = slice(first, first + at_once)
        yield (
            top + first,
            {name: np.concatenate([each[name][:, rows] for each in panels], axis=2) for name in panels[0]},
        )


def _targets(scenes: Sequence[str | Source], out: Path, config: PredictConfig) -> dict[Source, Path]:
    """The map's path per scene."""
    files = scene_files(scenes, config.bands)
    single = len(files) == 1 and not _is_folder(scenes[0]) and not out.is_dir()
    if single and out.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(
            "the map's name", where=out, expected="a name that ends in .tif, or a folder that exists"
        )
    if not single and not out.is_dir() and out.suffix.lower() in (".tif", ".tiff"):
        raise InputError(
            "one map, but several scenes, or a folder of them", where=f"--out {out}", expected="a folder"
        )
    targets = {file: out if single else out / f"{file.stem}.tif" for file in files}
    if len(files) > 1 and config.vector and config.vector.suffix:
        raise InputError(
            "one file of polygons, but several scenes",
            where=f"--vector {config.vector}",
            expected=f"{config.vector.suffix} alone: a file beside each map",
        )
    refuse_clashes(targets, config)
    originals = _by_name(file.where if isinstance(file, Pending) else file for file in files)
    for target in targets.values():
        _refuse_replaced(originals, target, config)
        _refuse_foreign(target, config)
    return targets


def _is_folder(scene: str | Source) -> bool:
    return isinstance(scene, str | Path) and not is_remote(scene) and Path(scene).is_dir()


def _by_name(scenes: Iterable[object]) -> dict[str, Path]:
    """Those of the scenes that are files here, by what makes two names one file."""
    return {_one_name(each): each for each in scenes if isinstance(each, Path)}


def _refuse_replaced(originals: Mapping[str, Path], target: Path, config: PredictConfig) -> None:
    """Refuses a map one of whose files would take the place of a scene."""
    for written in _written(target, config):
        if scene := originals.get(_one_name(written)):
            raise InputError(
                f"the map's files would replace the scene {written}",
                where=scene,
                next_step="choose another --out",
            )


def refuse_clashes(targets: Mapping[Any, Path], config: PredictConfig = DEFAULTS) -> None:
    """Refuses two maps that would write a file of one name.

    Args:
        targets: the map's path per scene.

    Raises:
        InputError: names the file and both scenes.
    """
    first: dict[str, Any] = {}
    folder = cache(Path.resolve)  # of a hundred thousand maps a few
    for scene, target in targets.items():
        for path in _written(target, config):
            other = first.setdefault(f"{folder(path.parent)}/{path.name}".casefold(), scene)
            if other != scene:
                raise InputError(
                    f"two scenes would give {path}: this one and {other}",
                    where=scene,
                    next_step="rename one of them, or map them apart, each with an --out of its own",
                )


def _one_name(path: Path) -> str:
    """Equal where two paths are one file: to many disks, and where maps are copied, a.tif is A.tif."""
    return os.fspath(path.resolve()).casefold()


def scene_files(
    scenes: Sequence[str | Source], bands: Sequence[int] | Sequence[str] | None = None
) -> list[Source]:
    """The scenes, also of folders; what a STAC item describes is looked for later.

    Raises:
        InputError: one is not there, a folder without any, or none is given.
    """
    files: list[Source] = []
    names = [band for band in bands or () if isinstance(band, str)] or None
    for given in scenes:
        if isinstance(given, Address | Pending):
            files.append(given)
            continue
        scene = given if is_remote(given) else Path(given)
        if isinstance(scene, Path) and not scene.exists():
            raise InputError("no such scene", where=scene)
        if is_item(scene):
            files.append(pending_item(scene, names))
            continue
        if isinstance(scene, str):
            files.append(address_of(scene))
            continue
        found = rasters_in(scene) if scene.is_dir() else [scene]
        if not found:
            raise InputError(
                "no scene in the folder",
                where=scene,
                expected=f"files that end in {', '.join(RASTER_SUFFIXES)}",
            )
        files += found
    if not files:
        raise InputError("no scene given")
    return files


def _written(target: Path, config: PredictConfig) -> list[Path]:
    """The map and what may stand beside it."""
    vector = config.vector_of(target)
    return [target, *beside(target), *([vector] if vector else [])]


def _refuse_foreign(target: Path, config: PredictConfig) -> None:
    """What lies under the names of the map, its report and its polygons was written by an earlier run."""
    report, vector = target.with_suffix(".json"), config.vector_of(target)
    is_own = {target: maps.is_map, report: maps.is_report}
    if vector:
        from crossearth.components.predict.polygon_files import is_polygon_file  # see `Outputs.open`

        is_own[vector] = is_polygon_file
    for path in filter(Path.exists, _written(target, config)):
        # what else a map consists of goes by these
        if not (is_own[path](path) if path in is_own else target.exists() or report.exists()):
            raise InputError(
                "it was not written by crossearth predict, and would be replaced",
                where=path,
                next_step=f"move it away, or choose another {'--vector' if path == vector else '--out'}",
            )
    for raster, kind in product((target, *rasters_beside(target).values()), (".ovr", ".msk")):
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
    order = sorted([target, *beside(target)], key=lambda path: (path == target, path.suffix != ".json"))
    for path in order:
        if path.name not in names:
            path.unlink(missing_ok=True)  # an earlier map's: not this one's
            continue
        with (folder / path.name).open("rb+") as file:
            os.fsync(file.fileno())
        (folder / path.name).replace(path)
    fsync_dir(target.parent)
