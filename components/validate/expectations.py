"""What must be true of a domain before a GPU starts: Great Expectations over its manifest, never over pixels.

The expectations follow from the catalog's entry of the domain (splits, tile counts, classes, bands, sizes);
there is no code per dataset. The only great_expectations file: its import takes seconds, so that one process
validates all domains.
"""

import logging
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from crossearth.components.validate.validation import ValidateConfig, shared_ground
from crossearth.data.catalog.domains import Domain
from crossearth.data.common.files import digest
from crossearth.data.tiles.manifest import Manifest, Provenance

# no network: great_expectations reports its use otherwise
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

showwarning = warnings.showwarning
import great_expectations as gx  # noqa: E402
import great_expectations.expectations as gxe  # noqa: E402
from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: E402

# its import turns warnings, such as that the tracking server is away, into a log that nobody reads
if warnings.showwarning is not showwarning:
    logging.captureWarnings(False)


@dataclass(frozen=True)
class Check:
    """One expectation's outcome, in words."""

    domain: str
    expectation: str
    found: str
    passed: bool


def validate_manifests(
    domains: Mapping[str, tuple[Domain, Sequence[str], Sequence[Manifest]]],
    docs_dir: Path,
    config: ValidateConfig,
    may_lack_classes: Collection[str] = (),
) -> list[Check]:
    """Runs every domain's expectations and writes Data Docs.

    Args:
        domains: name -> (catalog entry, class names in id order, manifests of its splits).
        docs_dir: gets a page per domain, below `validations`.
        may_lack_classes: domains whose training tiles may be without some class.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for built_in in list(context.get_site_names()):
        context.delete_data_docs_site(built_in)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(Path(docs_dir).resolve())}
    # no index of theirs: it is blank without a network; `step.py` writes one
    site: Any = {"class_name": "SiteBuilder", "store_backend": store}
    context.add_data_docs_site("docs", site)
    source = context.data_sources.add_pandas("manifests")
    checks: list[Check] = []
    for name, (domain, classes, manifests) in domains.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("tiles")
        expected = () if name in may_lack_classes else classes
        wanted = list(expectations(domain, expected, manifests[0].provenance, config))
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=wanted))
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batch, suite=suite)
        )
        run = gx.RunIdentifier(run_name=digest([manifest.digest for manifest in manifests])[:16])
        result = definition.run(batch_parameters={"dataframe": frame(manifests, classes, config)}, run_id=run)
        checks += [_check(name, outcome) for outcome in result.results]
    context.build_data_docs()
    return checks


def frame(manifests: Sequence[Manifest], classes: Sequence[str], config: ValidateConfig) -> pd.DataFrame:
    """A domain's tiles as the table that the expectations speak of.

    Beside the manifests' columns: `px of <class>`; `unaccounted_px`, neither of a class nor ignored;
    `scene_in_both_splits`; `twin_in_other_split`, of equal pixels; `shared_ground`, the images of both splits
    that show the same, empty where they share no more than is tolerated; `placed`; `file_is_there`.
    """
    table = pd.concat([manifest.table.to_pandas() for manifest in manifests], ignore_index=True)
    table["split"] = table["split"].astype(str)
    pixels = np.stack(table["class_pixels"].to_list()) if classes else np.zeros((len(table), 0), np.int64)
    for index, name in enumerate(classes):
        table[f"px of {name}"] = pixels[:, index]
    accounted = pixels.sum(axis=1) + table["ignored_pixels"]
    table["unaccounted_px"] = table["width"].astype(int) * table["height"] - accounted if classes else 0
    table["scene_in_both_splits"] = _in_several_splits(table, "scene")
    blank = table["constant"] | (table["nodata_share"] == 1)
    table["twin_in_other_split"] = _in_several_splits(table, "sha256_image") & ~blank
    table["shared_ground"] = _shared_ground(manifests, config.max_shared_ground)
    table["bands"] = table["bands"].map(", ".join)
    table["placed"] = table["crs"] != ""
    table["file_is_there"] = _files_are_there(manifests)
    return table.drop(columns=["class_pixels", "transform"])


def _in_several_splits(table: pd.DataFrame, column: str) -> pd.Series:
    return table.groupby(column)["split"].transform("nunique") > 1


def _shared_ground(manifests: Sequence[Manifest], most: float) -> list[str]:
    found = shared_ground(*manifests) if len(manifests) == 2 else []
    said = {
        (split, name): str(pair)
        for pair in reversed(found)  # the largest share counts
        if pair.share > most
        for split, name in (("train", pair.train), ("test", pair.test))
    }
    rows = [row for manifest in manifests for row in manifest.rows]
    return [said.get((row["split"], PurePosixPath(row["image"]).stem), "") for row in rows]


def _files_are_there(manifests: Sequence[Manifest]) -> list[bool]:
    paths = [
        [manifest.root / row[kind] for kind in ("image", "label") if row[kind]]
        for manifest in manifests
        for row in manifest.rows
    ]
    there = {path for path in {path for each in paths for path in each} if path.is_file()}
    return [there.issuperset(each) for each in paths]


def expectations(
    domain: Domain, classes: Sequence[str], provenance: Provenance, config: ValidateConfig
) -> Iterable[Any]:
    """The expectations that a catalog entry implies; their notes are what the user reads.

    `classes` are those that the training tiles must have.

    Counts and sizes are the publisher's: they are expected of archives of the publisher only. Equal tiles in
    both splits stop a run unless the publisher made the splits: then nobody can mend them, and they are
    reported.
    """
    for split in domain.splits:
        of_split: dict[str, Any] = {"row_condition": f'split=="{split}"', "condition_parser": "pandas"}
        tiles = domain.files(split).tiles if domain.own is None and provenance == "publisher" else None
        if tiles is not None:
            notes = f"{split}: {tiles} tiles, as the paper"
            yield gxe.ExpectTableRowCountToEqual(value=tiles, notes=notes, **of_split)
        else:
            yield gxe.ExpectTableRowCountToBeBetween(min_value=1, notes=f"{split}: has tiles", **of_split)
        for column, most, what in (
            ("constant", config.max_constant_share, "of tiles without any detail"),
            ("nodata_share", config.max_nodata_share, "no-data pixels"),
        ):
            notes = f"{split}: at most {most:.0%} {what}"
            yield gxe.ExpectColumnMeanToBeBetween(column=column, max_value=most, notes=notes, **of_split)
    if "train" in domain.splits:
        for name in classes:
            yield gxe.ExpectColumnSumToBeBetween(
                column=f"px of {name}",
                min_value=1,
                notes=f"train: has pixels of class {name!r}",
                row_condition='split=="train"',
                condition_parser="pandas",
            )
    yield gxe.ExpectCompoundColumnsToBeUnique(
        column_list=["split", "tile_id"], notes="no tile twice in a split"
    )
    yield _all("scene_in_both_splits", [False], "no scene in both splits")
    if provenance != "publisher":
        yield _all("twin_in_other_split", [False], "no tile with a twin of equal pixels in the other split")
        yield _all(
            "shared_ground",
            [""],
            f"no image shows more than {config.max_shared_ground:.0%} of the ground of another split's",
        )
    yield _all("unaccounted_px", [0], "every label pixel is a class of the class set or ignored")
    yield _all("bands", [", ".join(domain.bands)], f"bands {', '.join(domain.bands)}")
    yield _all("file_is_there", [True], "every tile's files are there")
    yield gxe.ExpectColumnUniqueValueCountToBeBetween(
        column="placed", max_value=1, notes="all tiles have a place on the ground, or none has"
    )
    if provenance == "publisher":
        px = domain.tile.px
        yield gxe.ExpectColumnUniqueValueCountToBeBetween(
            column="crs", max_value=1, notes="one coordinate system"
        )
        yield gxe.ExpectColumnMaxToBeBetween(
            column="width", min_value=px, max_value=px, notes=f"tiles {px} px wide"
        )
        if domain.tile.rule != "fit":
            yield _all("height", [px], f"tiles {px} px high")


def _all(column: str, values: Sequence[Any], notes: str) -> Any:
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=list(values), notes=notes)


def _check(domain: str, outcome: Any) -> Check:
    notes = outcome.expectation_config.notes
    if outcome.exception_info.get("raised_exception"):
        return Check(domain, notes, str(outcome.exception_info.get("exception_message")), passed=False)
    result = outcome.result
    if "observed_value" in result:
        value = result["observed_value"]
        found = f"{value:.4g}" if isinstance(value, float) else f"{value}"
    else:
        found = f"{result['unexpected_count']} of {result['element_count']} tiles break it"
        # of a column that says yes or no, its value would say nothing
        values = {str(value) for value in result["partial_unexpected_list"] if not isinstance(value, bool)}
        if values:
            found += f": {', '.join(sorted(values))}"
    return Check(domain, notes, found, bool(outcome.success))
