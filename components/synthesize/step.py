"""Synthesize: miniature archives of the datasets, in the place of those that the user would download."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import PositiveInt

from crossearth.components.runtime.params import Params
from crossearth.components.synthesize.packers import PACKERS, Counts, synthesize_dataset
from crossearth.data.common.config import checked, nearest
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import require_free
from crossearth.data.common.pool import process_pool
from crossearth.data.common.progress import progress_bar

MIB = 2**20
NEEDED_BYTES = {"mini": 80 * MIB, "full": 600 * MIB}


@checked
class SynthesizeConfig:
    """What is drawn.

    Attributes:
        counts: "mini" = some dozens of images per domain; "full" = as many as the publisher ships,
            each of them 32 times smaller.
        workers: processes, one dataset each. With 1 everything happens in this process.
    """

    counts: Counts = "mini"
    workers: PositiveInt = 2


def run(params: Params, datasets: Sequence[str] = ()) -> list[Path]:
    """Makes archives where those of `params` lie: of some datasets, or of all that there is a packer for."""
    config = params.config(SynthesizeConfig, "synthesize")
    return synthesize(datasets or list(PACKERS), params.archives, config, params.seed)


def synthesize(datasets: Sequence[str], out_dir: Path, config: SynthesizeConfig, seed: int) -> list[Path]:
    """Draws archives; the same datasets, config and seed give the same bytes.

    Args:
        datasets: names of the catalog's datasets.
        out_dir: gets one folder per dataset; these are returned.

    Raises:
        InputError: an unknown dataset, a folder that holds a publisher's files, or too little disk.
    """
    for name in datasets:
        if name not in PACKERS:
            raise InputError(f"dataset {name!r} has no synthetic archives", expected=nearest(name, PACKERS))
    out_dir.mkdir(parents=True, exist_ok=True)
    require_free(out_dir, NEEDED_BYTES[config.counts], "drawing archives")
    # the slowest first: the last worker to finish sets the time
    order = sorted(dict.fromkeys(datasets), key=list(PACKERS).index, reverse=True)
    task = partial(synthesize_dataset, out_dir=out_dir, seed=seed, counts=config.counts)
    workers = min(config.workers, len(order))
    if workers < 2:
        return sorted(progress_bar(map(task, order), "draw archives", len(order)))
    with process_pool(workers, "draw archives", "set synthesize.workers to 1 in params.yaml") as pool:
        return sorted(progress_bar(pool.map(task, order), "draw archives", len(order)))
