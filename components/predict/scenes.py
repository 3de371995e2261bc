"""The scenes of a pipeline: listed in a folder or a store, dealt out in shards, fetched and mapped."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from crossearth.components.pods.items import Item
from crossearth.components.pods.workspace import ARTIFACTS, RUN, expect
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.remote import Pending, Source
from crossearth.components.predict.step import predict, refuse_clashes
from crossearth.data.common.config import load_config
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path, read_json, sha256_file, write_json
from crossearth.data.raster.names import LONE_SUFFIXES, RASTER_SUFFIXES, rasters_among, sidecar_names
from crossearth.data.raster.reader import LONE_KINDS, harmless, rasters_in
from crossearth.data.tiles.store import list_objects, mirror, read_object

SCENES = ARTIFACTS / "scenes"
SHARDS = RUN / "shards"


def deal_scenes(source: str, shards: int) -> list[Item]:
    """Lists the rasters of a folder or of an s3:// prefix and deals them out, one after the other.

    A shard's list lies in the workspace: an item is one argument of a command, which has 128 KiB.

    Returns:
        One item per shard: name, file of its list and the file's digest.

    Raises:
        InputError: fewer than one shard, no raster there, two of one name, or in a store one of a kind that
            may point to other files.
    """
    if shards < 1:
        raise InputError(f"shards: {shards}", expected="at least 1")
    if urlsplit(source).scheme == "s3":
        found = _scenes_in_store(source)
    elif Path(source).is_dir():
        found = [str(path.resolve()) for path in rasters_in(Path(source))]
    else:
        raise InputError("no such folder", where=source, next_step="put the scenes there")
    if not found:
        raise InputError(
            "no scene here", where=source, expected=f"files that end in {', '.join(RASTER_SUFFIXES)}"
        )
    refuse_clashes({address: Path(f"{PurePosixPath(address).stem}.tif") for address in found})
    dealt = [found[start::shards] for start in range(min(shards, len(found)))]
    items = []
    for number, scenes in enumerate(dealt):
        path = SHARDS / f"shard-{number}.json"
        write_json(path, {"scenes": scenes})
        items.append({"name": path.stem, "list": path.as_posix(), "digest": sha256_file(path)})
    return items


def read_shard(item: Item) -> list[str]:
    """The scenes of a shard.

    Raises:
        InputError: its list is gone or was written by another run.
    """
    path = Path(item["list"])
    expect("scenes", path, sha256_file(path) if path.is_file() else "", [item["digest"]])
    return list(read_json(path)["scenes"])


def predict_scenes(scenes: Sequence[str], model: str, out: str, config: dict[str, Any]) -> list[str]:
    """Maps scenes into the folder `out`; scenes of an object store are fetched first.

    Raises:
        InputError: as `predict`.
        PartlyDoneError: some are broken; all others are mapped.
    """
    local, own = local_scenes(scenes)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = load_config(PredictConfig, config, "predict")
    return [str(written) for written in predict(local, Path(model), folder, settings, own=own)]


def local_scenes(scenes: Sequence[str]) -> tuple[list[Source], bool]:
    """Scenes as `predict` takes them, and whether they are files of the user's own.

    Those of an object store are fetched when their turn comes.
    """
    stored = any(urlsplit(scene).scheme == "s3" for scene in scenes)  # all of one source
    return [
        Pending(scene, partial(fetch_scene, scene)) if stored else Path(scene) for scene in scenes
    ], not stored


def _scenes_in_store(source: str) -> list[str]:
    """Addresses of the images below a prefix.

    Raises:
        InputError: one is of a kind that is not read from a store.
    """
    prefix = f"{source.rstrip('/')}/"
    names = [address.removeprefix(prefix) for address in list_objects(source) if address.startswith(prefix)]
    found = rasters_among(names, lambda name: read_object(prefix + name))
    for name in found:
        if not name.lower().endswith(LONE_SUFFIXES):
            raise InputError(
                "a raster of a kind that may point to other files",
                where=prefix + name,
                expected=f"in a store {LONE_KINDS}",
                next_step=f"gdal_translate -of COG {shlex.quote(PurePosixPath(name).name)} "
                f"{shlex.quote(PurePosixPath(name).stem)}.tif where its files lie, and store that",
            )
    return [prefix + name for name in found]


def fetch_scene(address: str) -> Path:
    """Brings an image of a store here, with the files beside it that are read with it; keeps what is here."""
    parts = urlsplit(address)
    path = SCENES / parts.netloc / parts.path.lstrip("/")
    mirror(address, path)
    before = address.removesuffix(path.name)
    beside = sidecar_names(path.name)
    stored = {
        other.removeprefix(before): other
        for other in list_objects(address.removesuffix(PurePosixPath(address).suffix))
        if other.removeprefix(before).lower() in beside
    }
    for here in path.parent.iterdir():
        if here.name.lower() in beside and here.name not in stored:
            here.unlink()  # gone from the store
    for name, other in stored.items():
        content = read_object(other)
        if name.lower().endswith(".aux.xml"):
            # other pods read this folder: what points elsewhere never lies there, not even for a moment
            content = harmless(content, other)
        sidecar = path.with_name(name)
        if not sidecar.is_file() or sidecar.read_bytes() != content:
            with atomic_path(sidecar) as unfinished:
                unfinished.write_bytes(content)
    return path
