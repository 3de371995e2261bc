"""What a registered model is, on one page: data, licences, scores, what it is for and what it is not."""

from typing import Any

from crossearth.components.evaluate.results import RecipeResult, nan_to_none
from crossearth.data.catalog.domains import Catalog, Recipe


def model_card(recipe: Recipe, result: RecipeResult, meta: dict[str, Any], catalog: Catalog) -> str:
    """The card as Markdown.

    Args:
        recipe: what was trained.
        result: how it scored.
        meta: the model's description (`checkpoint.read_meta`).
        catalog: has the data sets' titles and licences.
    """
    source = catalog.domain(recipe.source)
    synthetic = "synthetic" in {meta["provenance"], *(each.provenance for each in result.settings)}
    domains = dict.fromkeys([recipe.source, *(each.target for each in result.settings)])
    datasets = dict.fromkeys(catalog.domain(name).dataset for name in domains)
    bands = ", ".join(source.bands)
    size = f"{source.gsd_m} m per pixel" if source.gsd_m else "mixed or unknown ground sample distance"
    lines = [
        f"# crossearth: {recipe.name}",
        "",
        f"Semantic segmentation of overhead imagery into {', '.join(result.classes)}."
        f" Trained on one domain, {recipe.source} ({bands}; {size}), scored on domains that it has not seen.",
        "",
    ]
    if synthetic:
        lines += [
            "**Made from synthetic miniatures: they show that the pipeline works.**",
            "",
        ]
    lines += [
        "## Scores",
        "",
        f"Selection rule: {result.selection}. Seed: {'none' if result.seed is None else result.seed}."
        f" Training {result.recipe_hash[:16]}.",
        "",
        "| setting | target | gap | mIoU % | manifest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in result.settings:
        miou = nan_to_none(result.scores(each).primary_metric)
        told = "" if miou is None else f"{100 * miou:.1f}"
        lines.append(
            f"| {each.setting} | {each.target} | {each.gap} | {told} | {each.manifest_digest[:12]} |"
        )
    lines += ["", "## Data and licences", ""]
    for name in datasets:
        dataset = catalog.dataset(name)
        lines.append(
            f"- {dataset.title}: {dataset.licence or 'licence not stated'} {dataset.homepage}".rstrip()
        )
    if pretrained := meta.get("pretrained"):
        lines.append(f"- backbone {pretrained['name']}: {pretrained['licence']}")
    lines += [
        "",
        "## Intended use",
        "",
        f"Mapping imagery whose three bands are {bands}, near that ground sample distance; research on domain"
        " generalization. Input: raw values 0..255; the model normalises them itself.",
        "",
        "## Limits",
        "",
        "Every pixel is given one of the classes above, also where it is none of them. Scores on a new region"
        " may lie below the worst of the table. Not for decisions about people, nor where a wrong map harms."
        " The licences of the training data may bind the use of the weights.",
    ]
    return "\n".join(lines) + "\n"
