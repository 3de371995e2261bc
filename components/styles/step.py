"""Fits the Earth's style statistics to a corpus of images: one pass, shards over workers, one small file.

A shard leaves its partial moments in a hidden folder beside the output, and whoever finds all of them merges
them. The moments of the parts add up to those of the whole, so the number of shards does not matter.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PositiveInt

from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.device import choose_device
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import EARTH_STYLES, STYLES
from crossearth.components.styles.sheet import styles_sheet, write_sheet
from crossearth.data.common.config import Rising, checked, load_config
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_dir, digest, file_lock, partial_dir, write_checksummed
from crossearth.data.common.prefetch import prefetch
from crossearth.data.common.progress import progress_bar
from crossearth.data.common.shards import WHOLE, Shard, is_done
from crossearth.data.raster.archives import Member
from crossearth.data.style.corpus import StyleImage, list_images, read_style_image
from crossearth.data.style.earth import (
    EarthStyles,
    EngineName,
    StyleConfig,
    StyleEngine,
    StyleMoments,
    style_engine,
)

log = logging.getLogger(__name__)

STYLES_FILE = EARTH_STYLES.name
SUMMARY_FILE = "summary.json"
SHEET_FILE = "sheet.png"
SHEET_IMAGES = 4


@checked
class StylesConfig:
    """How the Earth's styles are fitted.

    Attributes:
        engine: whose embeddings; see `StyleConfig`.
        image_px: None = 256 for ghiasi, the side that images are resampled to (paper); 512 for spectral,
            the side of the central window at an image's own resolution: resampling changes its spectrum.
        value_range: values that become 0 and 255 in images of more than 8 bits; None = such ones are skipped.
        batch_size: images of one size that are embedded at once.
        workers: threads that read and decode.
    """

    engine: EngineName = "spectral"
    image_px: Annotated[int, Field(ge=64)] | None = None
    value_range: Rising | None = None
    batch_size: PositiveInt = 16
    workers: PositiveInt = 4

    @property
    def side_px(self) -> int:
        return self.image_px or (256 if self.engine == "ghiasi" else 512)


def run(
    params: Params,
    images: Path | None = None,
    value_range: Sequence[float] | None = None,
    shard: str = "0/1",
) -> Path:
    """Fits styles in the working folder: to the images that `params` names, or to others."""
    config = params.config(StylesConfig, "styles")
    if value_range is not None:
        given = {**params.values("styles"), "value_range": value_range}
        config = load_config(StylesConfig, given, "styles fit")
    images = images or params.style_images
    return fit_styles(images, STYLES, config, Shard.parse(shard))


def fit_styles(
    images_dir: Path,
    out_dir: Path,
    config: StylesConfig,
    shard: Shard = WHOLE,
) -> Path:
    """Embeds the images of a shard; when all shards are done, writes `out_dir`.

    `out_dir` gets earth.safetensors (`EarthStyles`), summary.json (count, what was skipped and why, how far
    the covariance is regularised) and sheet.png (images of the corpus in each other's styles).

    Args:
        images_dir: folder of images or of archives of images, such as Million-AID's.

    Returns:
        `out_dir`; it is not there yet while other shards are missing.

    Raises:
        InputError: no images, fewer than two usable ones, the engine's weights are absent, or a shard's part
            is damaged.
    """
    engine = style_engine(config.engine).to(choose_device("auto"))
    with partial_dir(out_dir.with_name(f"{out_dir.name}.{shard}")) as scratch:
        members = list_images(images_dir, scratch)
        listing = [(member.path, member.size, member.tag) for member in members]
        identity = digest([listing, asdict(config), code_digest("styles")])
        if is_done(out_dir / SUMMARY_FILE, identity):
            return out_dir
        work = out_dir.with_name(f".{out_dir.name}.{identity[:16]}")
        if not shard.part(work).exists():
            found = _fit(members[shard.index :: shard.num], engine, config)
            write_checksummed(shard.part(work), _part(*found))
        with file_lock(work):
            parts = shard.read_parts(work)
            if parts is not None:
                try:
                    _finish(images_dir, out_dir, identity, parts, members, engine, config)
                except InputError:
                    shutil.rmtree(work)  # parts of a corpus that is refused are of no use
                    raise
                shutil.rmtree(work)
    return out_dir


def _fit(
    members: Sequence[Member], engine: StyleEngine, config: StylesConfig
) -> tuple[StyleMoments, list[dict[str, str]]]:
    """Moments of the members' embeddings, and which were skipped and why."""
    moments, skipped = StyleMoments(engine.dim), []
    read = partial(
        read_style_image,
        max_px=config.side_px,
        resize=config.engine == "ghiasi",
        value_range=config.value_range,
    )
    images_read = progress_bar(prefetch(read, members, config.workers), "styles", len(members))
    for batch in _batches(images_read, config.batch_size):
        images = [item.image for item in batch if item.image is not None]
        if images:
            x_B3HW = torch.from_numpy(np.stack(images)).to(engine.device)
            moments.add(engine.embed(x_B3HW), [item.sha256 for item in batch])
        else:
            skipped += [{"path": item.path, "problem": item.problem} for item in batch]
    return moments, skipped


def _batches(items: Iterable[StyleImage], size: int) -> Iterator[list[StyleImage]]:
    """Consecutive images of one shape, or unusable ones, at most `size` of them."""
    for _, same in groupby(items, key=lambda item: None if item.image is None else item.image.shape):
        while batch := list(islice(same, size)):
            yield batch


def _part(moments: StyleMoments, skipped: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "count": moments.count,
        "mean": moments.mean.tolist(),
        "scatter": moments.scatter.tolist(),
        "image_hashes": f"{moments.image_hashes:x}",
        "skipped": skipped,
    }


def _moments(part: dict[str, Any]) -> StyleMoments:
    moments = StyleMoments(len(part["mean"]))
    moments.count, moments.image_hashes = part["count"], int(part["image_hashes"], 16)
    moments.mean = torch.tensor(part["mean"], dtype=torch.float64)
    moments.scatter = torch.tensor(part["scatter"], dtype=torch.float64)
    return moments


def _finish(
    images_dir: Path,
    out_dir: Path,
    identity: str,
    parts: Sequence[dict[str, Any]],
    members: Sequence[Member],
    engine: StyleEngine,
    config: StylesConfig,
) -> None:
    moments, skipped = StyleMoments(engine.dim), []
    for part in parts:
        moments.merge(_moments(part))
        skipped += part["skipped"]
    if skipped:
        first = skipped[0]
        log.warning("%d of %d images skipped, the first: %s: %s", len(skipped), len(members), *first.values())
    earth = EarthStyles.from_moments(moments, config.engine, where=images_dir)
    if earth.shrinkage:
        told = f"{earth.count} images do not determine {engine.dim} dimensions"
        log.warning("%s: the covariance is shrunk by %.2f towards its diagonal", told, earth.shrinkage)
    with atomic_dir(out_dir) as folder:
        earth.save(folder / STYLES_FILE)
        unusable = {each["path"] for each in skipped}
        usable = [member for member in members if member.path not in unusable]
        write_sheet(folder / SHEET_FILE, _corpus_sheet(usable, earth, engine, config))
        write_checksummed(
            folder / SUMMARY_FILE,
            {
                "identity": identity,
                "engine": earth.engine,
                "dim": engine.dim,
                "image_px": config.side_px,
                "images": len(members),
                "count": earth.count,
                "corpus_digest": earth.corpus_digest,
                "styles_digest": earth.digest,
                "shrinkage": earth.shrinkage,
                "skipped": sorted(skipped, key=lambda item: item["path"]),
            },
        )


def _corpus_sheet(
    members: Sequence[Member], earth: EarthStyles, engine: StyleEngine, config: StylesConfig
) -> np.ndarray:
    some = members[:: max(1, len(members) // 16)]
    read = (read_style_image(member, 256, True, config.value_range) for member in some)
    images = [item.image for item in read if item.image is not None][:SHEET_IMAGES]
    style = StyleConfig(engine=config.engine)
    sheets = [styles_sheet(each, earth, engine, style, ("corpus", i)) for i, each in enumerate(images)]
    return np.concatenate(sheets)
