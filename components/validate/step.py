"""Validate: stops a pipeline whose tiles are not what the catalog says, before anything is trained."""

import io
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from crossearth.components.ingest.preview import EXPERIMENT
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import DOMAINS, VALIDATION
from crossearth.components.runtime.tracking import start_run
from crossearth.components.validate.expectations import Check, validate_manifests
from crossearth.components.validate.first_page import DOCS, INDEX, first_page
from crossearth.components.validate.validation import (
    PAIRS_SHOWN,
    ValidateConfig,
    near_duplicates,
    shared_ground,
)
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import listed
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import (
    atomic_dir,
    digest,
    read_checksummed,
    write_checksummed,
    write_json,
    write_text,
)
from crossearth.data.tiles.manifest import Manifest, read_domain

log = logging.getLogger(__name__)

SUMMARY = "summary.json"
PLACES_SHOWN = 5


def run(params: Params, catalog: Catalog, names: Sequence[str] = ()) -> Path:
    """Validates the working folder's domains: all, or some besides those that were validated before."""
    config = params.config(ValidateConfig, "validate")
    return validate(catalog, DOMAINS, VALIDATION, config, names, params.may_lack_classes(catalog))


def validate(
    catalog: Catalog,
    domains_dir: Path,
    out_dir: Path,
    config: ValidateConfig,
    names: Sequence[str] = (),
    may_lack_classes: Collection[str] = (),
) -> Path:
    """Validates ingested domains in one go.

    Writes into `out_dir`: `docs/index.html` (Data Docs), `summary.json` (every check, tiles that both splits
    share, each domain's page of the Data Docs), and of the domains that pass what later stages hang on:
    `digests/<domain>.json`, the digest of what is trained on, `sources/<recipe>.json`, the same of a recipe's
    source, and `recipes/<recipe>.json`, the digests of what a recipe is scored on. The summary is logged to
    MLflow.

    Args:
        names: domains, which are added to what `out_dir` has: that is validated anew, for tiles, catalog or
            parameters may have changed since, and what no longer holds is named. None = all labelled domains
            of the catalog that were ingested, and nothing else.
        may_lack_classes: domains whose training tiles may be without some class.

    Raises:
        InputError: a failed expectation of these domains, with a table of them; a domain that was not
            ingested; a damaged summary, or one of domains that the catalog does not have.
    """
    kept = _kept(catalog, Path(out_dir) / SUMMARY, names) if names else []
    manifests = _manifests(catalog, Path(domains_dir), names, kept)
    wanted = {
        name: (catalog.domain(name), catalog.classes_of(catalog.domain(name)), splits)
        for name, splits in manifests.items()
    }
    with atomic_dir(out_dir) as folder:
        checks = validate_manifests(wanted, folder / DOCS, config, may_lack_classes)
        _write_summary(manifests, checks, folder / SUMMARY, config)
        failing = {check.domain for check in checks if not check.passed}
        sound = {name: splits for name, splits in manifests.items() if name not in failing}
        _write_digests(catalog, sound, folder)
    for name in sorted(failing.intersection(kept)):
        log.warning("%s no longer passes: crossearth validate %s", name, name)
    failed = [check for check in checks if not check.passed and check.domain not in kept]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(checks)} expectations failed\n{_table(failed)}",
            where=domains_dir,
            next_step=f"open {Path(out_dir) / _page(Path(out_dir), failed[0].domain)}; "
            "correct files or catalog, ingest again",
        )
    _log(manifests, Path(out_dir))
    return Path(out_dir)


def _kept(catalog: Catalog, summary: Path, names: Sequence[str]) -> list[str]:
    """The domains besides `names` that an earlier run validated."""
    before = read_checksummed(summary)["domains"] if summary.exists() else {}
    unknown = sorted(before.keys() - catalog.domains.keys())
    if unknown:
        raise InputError(
            f"validated before, and in no catalog that was given: {', '.join(unknown)}",
            where=summary,
            next_step="give their catalog too (--catalog FILE), or begin anew: crossearth validate",
        )
    return [name for name in before if name not in names]


def _manifests(
    catalog: Catalog, domains_dir: Path, names: Sequence[str], kept: Sequence[str]
) -> dict[str, list[Manifest]]:
    """Domain -> manifests of its splits, in the catalog's order."""
    chosen = [catalog.domain(name).name for name in names] or [
        domain.name
        for domain in catalog.domains.values()
        if domain.labels is not None and catalog.domain_dir(domains_dir, domain.name).is_dir()
    ]
    if not chosen:
        raise InputError("no ingested domains here", where=domains_dir, next_step="crossearth ingest DATASET")
    found = {}
    for name in (name for name in catalog.domains if name in {*chosen, *kept}):
        try:
            splits = catalog.domain(name).splits
            found[name] = [read_domain(catalog, domains_dir, name, split) for split in splits]
        except InputError as error:
            if name in chosen:
                raise
            log.warning("%s is no longer among what is validated: %s", name, error)
    return found


def _log(manifests: dict[str, list[Manifest]], out_dir: Path) -> None:
    """One run per state of the data, with its summary."""
    every = [manifest for splits in manifests.values() for manifest in splits]
    tags = {f"manifest.{each.domain}.{each.split}": each.digest for each in every}
    with start_run("validate", key=digest(["validate", tags]), tags=tags, experiment=EXPERIMENT) as run:
        run.log_metrics({f"tiles/{each.domain}/{each.split}": len(each) for each in every})
        run.log_artifact(out_dir / SUMMARY)


def _write_summary(
    manifests: dict[str, list[Manifest]], checks: Sequence[Check], path: Path, config: ValidateConfig
) -> None:
    summary: dict[str, Any] = {}
    for name, splits in manifests.items():
        shared = near_duplicates(splits[0], splits[1], config.near_duplicate_bits) if len(splits) == 2 else []
        ground = shared_ground(splits[0], splits[1]) if len(splits) == 2 else []
        if ground:
            places = listed(ground[:PLACES_SHOWN])
            log.warning("%s: %d images lie on ground of the other split: %s", name, len(ground), places)
        summary[name] = {
            "provenance": splits[0].provenance,
            "docs": _page(path.parent, name),
            "splits": {
                manifest.split: {"tiles": len(manifest), "digest": manifest.digest} for manifest in splits
            },
            "checks": [asdict(check) for check in checks if check.domain == name],
            "equal_tiles_across_splits": sum(pair.bits < 0 for pair in shared),
            "alike_tiles_across_splits": sum(pair.bits >= 0 for pair in shared),
            "pairs": [asdict(pair) for pair in shared[:PAIRS_SHOWN]],
            "shared_ground": [asdict(pair) for pair in ground[:PAIRS_SHOWN]],
        }
    counts = {
        "domains": len(summary),
        "tiles": sum(len(manifest) for splits in manifests.values() for manifest in splits),
        "checks": len(checks),
        "failed": sum(not check.passed for check in checks),
    }
    write_checksummed(path, {"counts": counts, "domains": summary})
    write_text(path.parent / DOCS / INDEX, first_page(counts, summary))


def _page(folder: Path, domain: str) -> str:
    """The domain's page of the Data Docs, below `folder`; it needs no network."""
    (page,) = (folder / DOCS / "validations" / domain).rglob("*.html")
    return page.relative_to(folder).as_posix()


def _write_digests(catalog: Catalog, manifests: dict[str, list[Manifest]], folder: Path) -> None:
    every = [manifest for splits in manifests.values() for manifest in splits]
    digest_of = {(each.domain, each.split): each.digest for each in every}
    for each in every:
        if each.split == "train":
            write_json(folder / "digests" / f"{each.domain}.json", {"train": each.digest})
    for recipe in catalog.recipes().values():
        if found := digest_of.get((recipe.source, "train")):
            write_json(folder / "sources" / f"{recipe.name}.json", {"train": found})
        targets = {setting.target for setting in recipe.settings}
        scored = {target: digest_of[target, "test"] for target in targets if (target, "test") in digest_of}
        if scored:
            write_json(folder / "recipes" / f"{recipe.name}.json", scored)


def _table(checks: Sequence[Check]) -> str:
    table = Table("domain", "expected", "found")
    for check in checks:
        table.add_row(check.domain, check.expectation, check.found)
    text = io.StringIO()
    Console(file=text, width=110).print(table)
    return text.getvalue().rstrip()
