"""Ingest: publishers' archives or a user's folders become stored scenes and manifests.

Parallel over scenes and resumable: finished scenes and a journal of their rows lie in a hidden folder beside
the domain's until all are there; then it takes the domain's place in one step. A run that was killed is
continued by the same command and ends in the same bytes. Wrong input leaves nothing behind.
"""

import json
import logging
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast, get_args

from pydantic import Field, PositiveInt

from crossearth.components.ingest.preview import log_preview
from crossearth.components.ingest.scene import Plan, ingest_scene
from crossearth.components.ingest.sources import SceneSource, find_scenes
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import DOMAINS, PREVIEWS
from crossearth.data.catalog.domains import Catalog, Domain
from crossearth.data.catalog.labels import Unknown
from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import (
    digest,
    file_lock,
    read_json,
    replace_dir,
    require_free,
    sha256_file,
    verified,
)
from crossearth.data.common.pool import PoolError, process_pool
from crossearth.data.common.progress import progress_bar
from crossearth.data.raster.grid import Grid
from crossearth.data.raster.reader import gdal, open_raster
from crossearth.data.tiles.manifest import Provenance, write_manifest

log = logging.getLogger(__name__)

PROVENANCE_FILE = "PROVENANCE.json"
WORK, JOURNAL, UNPACKED = ".ingest", "journal.jsonl", "unpacked"
STORED_SHARE = 0.8  # of an image's raw bytes, label included: measured 0.5 to 0.75
SPARE_BYTES = 64 * 2**20
# tasks of a worker in one go: small images would be held up by the queue, large ones by each other
SMALL_SCENE_BYTES, SMALL_SCENES_AT_ONCE = 4 * 2**20, 8


@checked
class IngestConfig:
    """How domains are ingested.

    Attributes:
        tile_px: overrides the catalog's tile size under the rules "cut" and "fit"; None = the catalog's.
        workers: processes; each holds one scene. With 1 everything happens in this process.
        unknown_labels: "error", or "ignore" = label values outside the map become ignored pixels; a domain's
            own `unknown_labels` in its catalog file counts before it.
    """

    tile_px: Annotated[int, Field(ge=16)] | None = None
    workers: PositiveInt = 2
    unknown_labels: Unknown = "error"


def run(params: Params, catalog: Catalog, names: Sequence[str]) -> list[Path]:
    """Ingests domains or datasets into the working folder; gives their folders, then their sheets."""
    config = params.config(IngestConfig, "ingest")
    written = ingest(names, catalog, params.archives, DOMAINS, config)
    return [*written, *(log_preview(folder.name, catalog, DOMAINS, PREVIEWS) for folder in written)]


def ingest(
    names: Sequence[str], catalog: Catalog, archives_dir: Path, domains_dir: Path, config: IngestConfig
) -> list[Path]:
    """Ingests domains, or all domains of datasets.

    Args:
        names: domains or datasets of the catalog; what is both is the dataset.
        archives_dir: holds one folder per dataset, with the publisher's archives or what was in them.
        domains_dir: gets one folder per domain, in one per dataset.

    Returns:
        The domains' folders.

    Raises:
        InputError: an unknown name; missing, broken or contradictory files; label values outside the map; too
            little disk. Nothing of that domain is left behind.
    """
    domains = [domain for name in names for domain in catalog.domains_named(name)]
    return [ingest_domain(domain, catalog, archives_dir, domains_dir, config) for domain in domains]


def ingest_domain(
    domain: Domain, catalog: Catalog, archives_dir: Path, domains_dir: Path, config: IngestConfig
) -> Path:
    """Ingests one domain into `domains_dir/<dataset>/<domain>`; see `ingest`."""
    target = catalog.domain_dir(domains_dir, domain.name)
    root = Path(archives_dir) / domain.dataset
    origin = provenance(domain, root)
    domain = replace(domain, unknown_labels=domain.unknown_labels or config.unknown_labels)
    with _workshop(Path(domains_dir), domain.name) as work:
        sources = find_scenes(domain, root, work / UNPACKED)
        plan = Plan.of(domain, catalog, config.tile_px, sources[0])
        rows = _ingest_scenes(plan, sources, work, config.workers)
        rows = _pad_small(plan.padding(rows), sources, rows, work, config.workers)
        for split in domain.splits:
            of_split = [row for row in rows if row["split"] == split]
            classes = catalog.classes_of(domain)
            write_manifest(work, domain.name, split, classes, origin, plan.reading(rows), of_split)
        _tidy(work, rows)
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_dir(work, target)
    return target


def provenance(domain: Domain, root: Path) -> Provenance:
    """Where a domain's pixels come from; drawn archives say so themselves, in a file beside them.

    Raises:
        InputError: the file says something unknown, or is damaged.
    """
    if domain.own is not None:
        return "own"
    path = root / PROVENANCE_FILE
    if not path.is_file():
        return "publisher"
    found = cast(Provenance, read_json(path).get("provenance"))
    if found not in get_args(Provenance):
        raise InputError(f"provenance {found!r}", where=path, expected=", ".join(get_args(Provenance)))
    return found


@contextmanager
def _workshop(domains_dir: Path, name: str) -> Iterator[Path]:
    """The hidden folder in which a domain grows; a killed process leaves it, wrong input does not."""
    work = domains_dir / WORK / name
    domains_dir.mkdir(parents=True, exist_ok=True)
    with file_lock(domains_dir / name, f"an ingest of {name}"):
        try:
            work.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(work / UNPACKED, ignore_errors=True)
            yield work
        except PoolError:
            raise  # the next run goes on where this one stopped
        except (InputError, OSError):
            shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(work / UNPACKED, ignore_errors=True)
            with suppress(OSError):  # a killed process left something, or another domain is at work there
                work.parent.rmdir()


def _ingest_scenes(
    plan: Plan, sources: Sequence[SceneSource], work: Path, workers: int
) -> list[dict[str, Any]]:
    """Rows of all tiles; scenes that the journal has are not done again."""
    journal = _read_journal(work)
    key_of = {source: digest([plan.identity, source.identity]) for source in sources}
    todo = [source for source in sources if key_of[source] not in journal]
    _refuse_small_disk(plan, todo, work)
    finished = _map(partial(ingest_scene, plan, work), todo, workers, plan.domain.name)
    # closing: on an error no worker may still write when the folder is removed
    with (work / JOURNAL).open("a", encoding="utf-8") as file, closing(finished):
        for source, rows in finished:
            journal[key_of[source]] = rows
            entry = {"key": key_of[source], "files": _hashes(work, rows), "rows": rows}
            # the line before may be half a line, where an earlier run was killed
            file.write("\n" + json.dumps({**entry, "digest": digest(entry)}))
            file.flush()
    return [row for source in sources for row in journal[key_of[source]]]


def _pad_small(
    plan: Plan, sources: Sequence[SceneSource], rows: list[dict[str, Any]], work: Path, workers: int
) -> list[dict[str, Any]]:
    """Rows of all tiles, once the scenes that are too small for the plan were ingested again, padded."""
    least_px = plan.tiling.least_px
    small = {row["image"] for row in rows if min(row["width"], row["height"]) < least_px}
    if not small:
        return rows
    told = f"{plan.domain.name}: {len(small)} of {len(sources)} scenes are smaller than {least_px} px"
    log.warning("%s: their tiles are padded, and ignored there", told)
    again = [source for source in sources if source.stored("images") in small]
    return [row for row in rows if row["image"] not in small] + _ingest_scenes(plan, again, work, workers)


def _read_journal(work: Path) -> dict[str, list[dict[str, Any]]]:
    """Key -> rows of the scenes that an earlier run finished and that are still as it left them."""
    path = work / JOURNAL
    lines = path.read_bytes().splitlines() if path.exists() else []
    entries = [entry for line in lines if (entry := _entry(line, path))]
    return {
        entry["key"]: entry["rows"] for entry in entries if _hashes(work, entry["rows"]) == entry["files"]
    }


def _entry(line: bytes, path: Path) -> dict[str, Any]:
    """What a line of the journal says; nothing where a kill or a disk left it damaged."""
    try:
        entry = json.loads(line)
        return verified(entry, path) if isinstance(entry, dict) else {}
    except (ValueError, RecursionError):
        return {}


def _hashes(work: Path, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """SHA-256 of the files that hold these tiles, by path; empty where one is gone."""
    paths = {row[kind] for row in rows for kind in ("image", "label") if row[kind]}
    return {path: sha256_file(work / path) if (work / path).exists() else "" for path in sorted(paths)}


def _tidy(work: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Leaves manifests and their scenes: no journal, no scenes of an older version of the input."""
    shutil.rmtree(work / UNPACKED, ignore_errors=True)
    kept = {work / row[kind] for row in rows for kind in ("image", "label") if row[kind]}
    kept |= set(work.glob("*.parquet"))
    for path in [path for path in work.rglob("*") if path.is_file()]:
        if path not in kept:
            path.unlink()


def _map(
    function: Any, sources: Sequence[SceneSource], workers: int, name: str
) -> Generator[tuple[SceneSource, list[dict[str, Any]]], None, None]:
    progress = partial(progress_bar, what=f"ingest {name}", total=len(sources))
    if workers == 1 or len(sources) < 2:
        yield from progress((source, function(source)) for source in sources)
        return
    small = sum(source.image.size for source in sources) < SMALL_SCENE_BYTES * len(sources)
    at_once = max(1, min(SMALL_SCENES_AT_ONCE, len(sources) // (2 * workers))) if small else 1
    fewer = "set ingest.workers to 1 in params.yaml"
    with process_pool(min(workers, len(sources)), f"ingest {name}", fewer) as pool:
        yield from progress(zip(sources, pool.map(function, sources, chunksize=at_once), strict=True))


def _refuse_small_disk(plan: Plan, sources: Sequence[SceneSource], work: Path) -> None:
    """Estimates from the header of the largest image, before anything is written."""
    if not sources:
        return
    largest = max(sources, key=lambda source: source.image.size)
    with gdal(), open_raster(largest.image) as image:
        grid = Grid.of(image.dataset).fitted(plan.tiling.reading.fit_px)
    stored = 3 * grid.width * grid.height * STORED_SHARE / max(largest.image.size, 1)
    needed = int(stored * sum(source.image.size for source in sources)) + SPARE_BYTES
    require_free(work.parent, needed, plan.domain.name)
