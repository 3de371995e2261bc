"""What the run needs, and one item a dataset and recipe."""

from kfp.dsl import OutputPath

from crossearth.components.pods.component import component


@component
def plan(
    workspace: str,
    params: str,
    catalogs: str,
    recipes: list,
    versions: dict,
    stylize_shards: int,
    wanted: dict,
    items: OutputPath(list),  # type: ignore[valid-type]
    synthesize: OutputPath(str),  # type: ignore[valid-type]
    validate: OutputPath(str),  # type: ignore[valid-type]
    styles: OutputPath(str),  # type: ignore[valid-type]
    stylize: OutputPath(str),  # type: ignore[valid-type]
    report: OutputPath(str),  # type: ignore[valid-type]
    archives: OutputPath(list),  # type: ignore[valid-type]
) -> list[dict]:
    """Looks for what the run needs, then resolves catalog and params into one item per dataset and recipe.

    Each item has the digest of its inputs, the code of its step and the workspace's identity among them: in
    another workspace nothing comes from the cache.

    Args:
        params: contents of params.yaml, as text: Kubeflow's own numbers are floats and it has no null.
        catalogs: list of the contents of further catalog files, as text.
        recipes: names of the recipes to train.
        versions: domain -> version in the store, for domains that are pulled and not ingested.
        wanted: arguments of `check_prerequisites`.
        stylize_shards: shards of stylized tiles, 0 for none.
        items: gets the recipes' items.
        synthesize: gets the digest of what the synthetic archives depend on; empty without any.
        validate, styles, stylize, report: get the digest of what that step depends on besides earlier steps;
            that of `styles` is empty if nothing is restyled.
        archives: gets the folders of archives that are read.

    Returns:
        The datasets' items. Kubeflow's local runner loops over a step's return value only.
    """
    import json
    from pathlib import Path

    from crossearth.components.plan.items import archives_needed, dataset_items, digest_of_step, recipe_items
    from crossearth.components.plan.step import run
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.prerequisites import look
    from crossearth.data.common.files import digest

    shared.enter(workspace)
    shared.begin(params, catalogs)
    with shared.step(workspace, "plan"):
        look(**wanted)
        parameters, catalog = shared.inputs()
        run(parameters, catalog)
        identity = shared.identity()
        datasets = dataset_items(catalog, parameters, recipes, versions, identity)
        needed = archives_needed(catalog, parameters, datasets, recipes, stylize_shards)
        Path(archives).write_text(json.dumps(needed))
        synthetic = needed and "synthesize" in parameters.presets[parameters.preset]
        Path(items).write_text(json.dumps(recipe_items(catalog, parameters, recipes, identity)))
        Path(synthesize).write_text(digest_of_step(parameters, "synthesize", identity) if synthetic else "")
        validation = digest_of_step(parameters, "validate", identity)
        Path(validate).write_text(validation)
        styled = parameters.corpus in needed
        Path(styles).write_text(digest_of_step(parameters, "styles", identity) if styled else "")
        Path(stylize).write_text(digest_of_step(parameters, "stylize", identity))
        Path(report).write_text(digest([validation, digest_of_step(parameters, "report", identity)]))
        return datasets
