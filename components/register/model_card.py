"""What a model is, on one page: data, licences, scores, what it is for and what it is not."""

from collections.abc import Mapping
from typing import Any

from crossearth.components.evaluate.results import RecipeResult, nan_to_none, per_cent
from crossearth.data.catalog.domains import Catalog, Domain
from crossearth.data.common.files import markdown_table
from crossearth.model.weights.checkpoint import trained_gsd_m, trained_reading


def model_card(
    name: str, meta: Mapping[str, Any], catalog: Catalog, source: Domain | None, result: RecipeResult | None
) -> str:
    """The card of a model as Markdown.

    Args:
        meta: its description (`checkpoint.read_meta`).
        source: the domain that it was trained on; None = it is not known here.
        result: how it scored; None = it was not scored.
    """
    settings = result.settings if result else ()
    synthetic = "synthetic" in {meta["provenance"], *(each.provenance for each in settings)}
    domains = dict.fromkeys([*([source.name] if source else []), *(each.setting.target for each in settings)])
    datasets = dict.fromkeys(
        catalog.domain(domain).dataset for domain in domains if domain in catalog.domains
    )
    bands, size = _bands(meta, source), _pixel_size(meta, source)
    intended = "Mapping imagery as that of the training"
    if source or meta.get("reading"):
        intended = f"Mapping imagery whose three bands are {bands}, near that ground sample distance"
    trained = (
        f"Trained on one domain, {source.name} ({bands}; {size})" if source else f"Trained on {bands}; {size}"
    )
    unseen = any(each.setting.unseen for each in settings)
    parts = [
        f"# crossearth: {name}",
        f"Semantic segmentation of overhead imagery into {', '.join(meta['classes'])}. {trained}"
        f"{', scored on domains that it has not seen' if unseen else ''}.",
    ]
    if synthetic:
        parts.append("**Made from synthetic miniatures: they show that the pipeline works.**")
    licences = [] if source else ["- trained on data that the catalog does not know: licence not stated"]
    for dataset in map(catalog.dataset, datasets):
        licence = dataset.licence or "licence not stated"
        licences.append(f"- {dataset.title}: {licence} {dataset.homepage}".rstrip())
    if pretrained := meta.get("pretrained"):
        licences.append(f"- backbone {pretrained['name']}: {pretrained['licence']}")
    parts += [
        "## Scores",
        _scores(result) if result else "It was not scored.",
        "## Data and licences",
        "\n".join(licences),
        "## Intended use",
        f"{intended}; research on domain"
        f" generalization. Input: {_values(meta)}; the model normalises them itself.",
        "## Limits",
        "Every pixel is given one of the classes above, also where it is none of them. Scores on a new region"
        " may lie below the worst of the table. Not for decisions about people, nor where a wrong map harms."
        " The licences of the training data may bind the use of the weights.",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(result: RecipeResult) -> str:
    rows = []
    for each in result.settings:
        score, setting = per_cent(nan_to_none(result.scores(each).primary_metric)), each.setting
        rows.append([setting.abbr, setting.target, setting.gap, score, each.manifest_digest[:12]])
    columns = ["setting", "target", "gap", f"{result.metric} %", "manifest"]
    return (
        f"Selection rule: {result.selection}. Seed: {'none' if result.seed is None else result.seed}."
        f" Training {result.recipe_hash[:16]}.\n\n{markdown_table(columns, rows)}"
    )


def _bands(meta: Mapping[str, Any], source: Domain | None) -> str:
    if source:
        return ", ".join(source.bands)
    reading = trained_reading(meta)
    return f"bands {', '.join(map(str, reading.bands))} of the files" if reading else "three bands"


def _pixel_size(meta: Mapping[str, Any], source: Domain | None) -> str:
    gsd_m = trained_gsd_m(meta, source)
    return f"{gsd_m} m per pixel" if gsd_m else "mixed or unknown ground sample distance"


def _values(meta: Mapping[str, Any]) -> str:
    reading = trained_reading(meta)
    if reading is None or reading.value_range is None:
        return "raw values 0..255"
    low, high = reading.value_range
    return f"values of {reading.dtype}, of which {low:g} to {high:g} become 0..255"
