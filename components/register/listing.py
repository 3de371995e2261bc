"""The models that there are, here and in the registry: what they map, how well, under which licence."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from crossearth.components.evaluate.results import (
    DETAILS,
    SUMMARY_METRICS,
    RecipeResult,
    per_cent,
    read_results,
)
from crossearth.components.register.model_card import model_card
from crossearth.components.runtime.tables import TextTable, View
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import load_config
from crossearth.data.common.errors import InputError
from crossearth.model.weights.checkpoint import (
    META_NAME,
    WEIGHTS_NAME,
    read_meta,
    trained_gsd_m,
    trained_reading,
)


@dataclass(frozen=True)
class About:
    """A model in a line.

    Attributes:
        classes: names in id order.
        bands: names of the three bands in order; their numbers in the file where the names are not known;
            empty = unknown.
        gsd_m: metres per px that it was trained on; None = unknown or mixed.
        licence: of the data that it was trained on; "" = unknown.
        provenance: of that data, a manifest's word.
        scores: `RecipeResult.summary`, fractions 0..1; empty = it was not scored.
        size_bytes: of its files, with a shared backbone.
    """

    classes: tuple[str, ...]
    bands: tuple[str, ...]
    gsd_m: float | None
    licence: str
    provenance: str
    scores: dict[str, float]
    size_bytes: int

    def to_json(self) -> str:
        """For a place that keeps text alone; `from_json` reads it."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: object) -> "About":
        """What `to_json` wrote.

        Raises:
            InputError: something else wrote it.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InputError(f"not the description of a model: {error}", where=where) from error
        return load_config(cls, values, where)


@dataclass(frozen=True)
class Listed:
    """A model of the list.

    Attributes:
        name: what `--model` takes: a folder, or the registry's models:/NAME@ALIAS or models:/NAME/VERSION.
        about: None where `problem` says why it cannot be told.
        problem: "" = none.
    """

    name: str
    about: About | None
    problem: str = ""


def describe(meta: Mapping[str, Any], folder: Path, catalog: Catalog, result: RecipeResult | None) -> About:
    """What there is to say of the model in `folder`.

    Args:
        meta: its description (`checkpoint.read_meta`).
        catalog: has the names of bands and the licences.
        result: its scores, None where it has none.
    """
    source = catalog.domains.get(meta.get("source", ""))
    reading = trained_reading(meta)
    files = [folder / WEIGHTS_NAME]
    if meta["backbone"] is not None:
        files.append(folder / meta["backbone"]["file"])
    return About(
        classes=tuple(meta["classes"]),
        bands=source.bands if source else tuple(map(str, reading.bands)) if reading else (),
        gsd_m=trained_gsd_m(meta, source),
        licence=catalog.dataset(source.dataset).licence if source else "",
        provenance=meta["provenance"],
        scores=result.summary() if result else {},
        size_bytes=sum(file.stat().st_size for file in files if file.is_file()),
    )


def local_models(folders: Sequence[Path], scores_dir: Path, catalog: Catalog) -> Iterator[Listed]:
    """The models in `folders`, by name; one that cannot be read is listed with the reason.

    Args:
        folders: each holds a folder per model; one that is not there holds none.
        scores_dir: where `evaluate` puts a folder of results per recipe.
    """
    for folder in folders:
        for description in sorted(folder.glob(f"*/{META_NAME}")):
            model = description.parent
            try:
                meta = read_meta(model)
                about = describe(meta, model, catalog, find_scores(meta, scores_dir))
                yield Listed(str(model), about)
            except InputError as error:
                yield Listed(str(model), None, error.what)


def find_scores(meta: Mapping[str, Any], scores_dir: Path) -> RecipeResult | None:
    """The results below `scores_dir` that are of this model's weights, None where there are none."""
    for details in sorted(scores_dir.glob(f"*/{DETAILS}")):
        with suppress(InputError):  # a damaged one, or one of another format, is not of this model
            result = read_results(details.parent)
            if result.model_sha256 == meta["sha256"]:
                return result
    return None


def local_card(model: Path, scores_dir: Path, catalog: Catalog) -> tuple[str, list[str]]:
    """A model's card, and the commands that bring it further.

    Raises:
        InputError: it is no model.
    """
    meta = read_meta(model)
    result = find_scores(meta, scores_dir)
    recipe = meta.get("recipe") or (result and result.recipe)
    source = meta.get("source") or (result.settings[0].setting.source if result else "")
    card = model_card(recipe or model.resolve().name, meta, catalog, catalog.domains.get(source), result)
    if result:
        return card, [f"crossearth register {result.recipe}"]
    return card, [f"crossearth evaluate {recipe or 'RECIPE --model ' + str(model)}"]


def view(found: Sequence[Listed]) -> View:
    """The list, for the command line."""
    columns = ("model", "classes", "bands", "m per px", "licence", "IoU % unseen / worst / own", "size")
    title = f"{len(found)} model{'s' * (len(found) != 1)}"
    rows = [[each.name, *_cells(each, len(columns) - 1)] for each in found]
    data = [asdict(each) for each in found]
    return View(TextTable(columns, rows, title=title, spare=("size", "bands", "licence")), data, data)


def _cells(listed: Listed, number: int) -> list[str]:
    about = listed.about
    if about is None:
        return [listed.problem, *[""] * (number - 1)]
    unseen, worst, home = (per_cent(about.scores.get(name)) for name in SUMMARY_METRICS)
    return [
        ", ".join(about.classes),
        ", ".join(about.bands) or "unknown",
        f"{about.gsd_m:g}" if about.gsd_m else "unknown",
        (about.licence or "unknown") + (" (synthetic)" if about.provenance == "synthetic" else ""),
        f"{unseen} / {worst} / {home}" if about.scores else "none",
        decimal(about.size_bytes),
    ]
