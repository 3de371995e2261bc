"""One thin Kubeflow component per step: enter the workspace, give dvc.yaml's command, log numbers and pages.

Kubeflow ships each function's source alone: imports stand inside, and annotations are evaluated. What moves
between components is names, digests and small numbers; the bytes stay in the workspace and, for domains, in
the store. Every input is part of Kubeflow's cache key, so an item carries the digest of all that its step
depends on. What a loop runs over is `list[dict]`: Kubeflow takes the items of a bare `list` for strings.
"""

from kfp import dsl
from kfp.dsl import HTML, ClassificationMetrics, Markdown, Metrics, Output, OutputPath

# the image is replaced by that of the values file when a pipeline is compiled
component = dsl.component(base_image="crossearth", install_kfp_package=False)


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
        synthesize: gets the digest of what the drawn archives depend on; empty if none are drawn.
        validate, styles, stylize, report: get the digest of what that step depends on besides earlier steps;
            that of `styles` is empty if nothing is restyled.
        archives: gets the folders of archives that are read.

    Returns:
        The datasets' items. Kubeflow's local runner loops over a step's return value only.
    """
    import json
    from pathlib import Path

    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import (
        archives_needed,
        dataset_items,
        digest_of_step,
        recipe_items,
    )
    from crossearth.components.pods.prerequisites import look
    from crossearth.data.common.files import digest

    shared.enter(workspace)
    shared.begin(params, catalogs)
    with shared.step(workspace, "plan"):
        look(**wanted)
        shared.crossearth("plan")
        numbers, catalog = shared.inputs()
        identity = shared.identity()
        datasets = dataset_items(catalog, numbers, recipes, versions, identity)
        needed = archives_needed(catalog, numbers, datasets, recipes, stylize_shards)
        Path(archives).write_text(json.dumps(needed))
        drawn = needed and "synthesize" in numbers.presets[numbers.preset]
        Path(items).write_text(json.dumps(recipe_items(catalog, numbers, recipes, identity)))
        Path(synthesize).write_text(digest_of_step(numbers, "synthesize", identity) if drawn else "")
        validation = digest_of_step(numbers, "validate", identity)
        Path(validate).write_text(validation)
        styled = numbers.corpus in needed
        Path(styles).write_text(digest_of_step(numbers, "styles", identity) if styled else "")
        Path(stylize).write_text(digest_of_step(numbers, "stylize", identity))
        Path(report).write_text(digest([validation, digest_of_step(numbers, "report", identity)]))
        return datasets


@component
def archives(workspace: str, key: str, repository: str, revision: str, path: str, needed: list) -> str:
    """Draws miniature archives of every dataset, or brings the publishers'.

    Args:
        key: digest of what drawn archives depend on; empty for the publishers': those of a git repository's
            .dvc file, or those in the workspace.
        needed: folders of archives that are read; without any nothing is brought.

    Returns:
        What stands for the archives in the cache: the digest of drawn ones; the revision, or names and sizes.
    """
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import draw_archives, fetch_archives

    with shared.step(workspace, "archives"):
        folder = shared.inputs()[0].archives
        if key:
            return draw_archives(folder, key)
        return fetch_archives(folder, repository, revision, path, needed)


@component
def ingest(workspace: str, item: dict, archives: str, store: str, metrics: Output[Metrics]) -> str:
    """Turns the archives of one dataset into tiles and manifests, or pulls its domains from the store.

    Returns:
        Digest of the manifests, and so of every tile.
    """
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import count_tiles, pull_domains, push_domains

    with shared.step(workspace, "ingest", item["name"]):
        if item["versions"]:
            pull_domains(item["versions"], store)
        else:
            shared.crossearth("ingest", item["name"])
            push_domains(item["domains"], store)
        numbers, key = count_tiles(item["domains"])
        for name, value in numbers.items():
            metrics.log_metric(name, value)
        return key


@component
def validate(
    workspace: str,
    items: list,
    datasets: list,
    recipes: list,
    styles: str,
    key: str,
    coverage: OutputPath(str),  # type: ignore[valid-type]
    metrics: Output[Metrics],
) -> list[dict]:
    """Expectations over every manifest, and per setting how far the styles cover the unseen domain.

    Args:
        items: the datasets' items.
        datasets: what `ingest` returned for them.
        recipes: the recipes' items.
        styles: digest that the recipes' items get, too: kfp's local runner hands the steps of a loop nothing
            but the loop's item from outside it.
        coverage: gets the digest of the coverage's numbers; empty without styles.

    Returns:
        The recipes' items, their keys standing for the tiles of source and targets too.
    """
    import shutil
    from pathlib import Path

    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import expect_datasets, with_digests

    with shared.step(workspace, "validate"):
        expect_datasets(items, datasets)
        shared.crossearth("validate")
        covered = ""
        if styles:
            shared.expect_content("styles", shared.ARTIFACTS / "styles", styles)
            shared.crossearth("styles", "coverage")
            covered = shared.content_digest(shared.ARTIFACTS / "coverage")
        else:  # the report would show another run's
            shutil.rmtree(shared.ARTIFACTS / "coverage", ignore_errors=True)
        Path(coverage).write_text(covered)
        metrics.log_metric("datasets", len(datasets))
        return [with_digests(item, styles) for item in recipes]


@component
def shards(workspace: str, recipes: list, number: int, key: str) -> list[dict]:
    """Deals the sources' training tiles out for `stylize`.

    Returns:
        One item per source domain and shard.
    """
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import stylize_items

    with shared.step(workspace, "shards"):
        return stylize_items(recipes, number, key)


@component
def styles(workspace: str, archives: str, key: str) -> str:
    """Earth statistics of style over Million-AID, or any images.

    Returns:
        Digest of the statistics; empty without a key: nothing is restyled.
    """
    from crossearth.components.pods import workspace as shared

    with shared.step(workspace, "styles"):
        if not key:
            return ""
        shared.crossearth("styles", "fit")
        return shared.content_digest(shared.ARTIFACTS / "styles")


@component
def stylize(workspace: str, item: dict) -> str:
    """Restyled counterparts of one shard of a domain's training tiles.

    Returns:
        The shard.
    """
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import expect_tiles

    with shared.step(workspace, "stylize", item["name"]):
        expect_tiles(item)
        shared.expect_content("styles", shared.ARTIFACTS / "styles", item["styles"])
        shared.crossearth("stylize", item["domain"], "--shard", item["shard"])
        return item["name"]


@component
def train(workspace: str, item: dict, processes: int, job: dict, metrics: Output[Metrics]) -> str:
    """Trains one recipe: in this pod, in one process a GPU, or on many nodes as a TrainJob.

    Args:
        processes: processes of this pod.
        job: fields of TrainJobConfig, empty = no TrainJob.

    Returns:
        Hash of the weights.
    """
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import expect_tiles
    from crossearth.components.pods.launch import launch
    from crossearth.model.weights.checkpoint import read_meta

    with shared.step(workspace, "train", item["name"]):
        expect_tiles(item)
        if item["styles"]:
            shared.expect_content("styles", shared.ARTIFACTS / "styles", item["styles"])
        launch(["train", item["name"]], workspace, processes, job)
        meta = read_meta(shared.ARTIFACTS / "models" / item["name"])
        metrics.log_metric("classes", len(meta["classes"]))
        metrics.metadata["recipe"] = item["name"]
        metrics.metadata["weights"] = meta["sha256"]
        return meta["sha256"]


@component
def evaluate(
    workspace: str,
    item: dict,
    model: str,
    processes: int,
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
) -> str:
    """Scores one recipe on all its targets.

    Returns:
        Digest of the results.
    """
    import numpy as np

    from crossearth.components.evaluate.results import read_results
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import expect_tiles
    from crossearth.components.pods.launch import launch
    from crossearth.model.weights.checkpoint import read_meta

    with shared.step(workspace, "evaluate", item["name"]):
        expect_tiles(item)
        folder = shared.ARTIFACTS / "models" / item["name"]
        made = f"train {item['name']}"
        shared.expect(made, folder, read_meta(folder)["sha256"] if folder.is_dir() else "", [model])
        launch(["evaluate", item["name"]], workspace, processes, {})
        folder = shared.ARTIFACTS / "scores" / item["name"]
        result = read_results(folder)
        for setting in result.settings:
            metrics.log_metric(
                f"mIoU {setting.setting}", round(100 * result.scores(setting).primary_metric, 4)
            )
        # the unseen targets together; the report has each by itself
        shown = [each for each in result.settings if each.unseen] or result.settings
        summed = np.sum([each.confusion for each in shown], axis=0)
        confusion.log_confusion_matrix(list(result.classes), summed.tolist())
        return shared.content_digest(folder / "scores.csv")


@component
def report(
    workspace: str,
    recipes: list,
    scores: list,
    coverage: str,
    key: str,
    register_models: bool,
    table: Output[Markdown],
    page: Output[HTML],
    decisions: Output[Markdown],
    metrics: Output[Metrics],
) -> list:
    """The table, the page and the plots; then a version per recipe in the registry, promoted by the rule.

    Args:
        scores: digests of the recipes' scores.
        register_models: whether models are registered at all.

    Returns:
        Names of the recipes whose model was promoted.
    """
    import shutil
    from pathlib import Path

    from crossearth.components.pods import items as pipeline_items
    from crossearth.components.pods import workspace as shared

    with shared.step(workspace, "report"):
        if coverage:
            shared.expect_content("validate", shared.ARTIFACTS / "coverage", coverage)
        for item in recipes:
            made = shared.ARTIFACTS / "scores" / item["name"] / "scores.csv"
            shared.expect_content(f"evaluate {item['name']}", made, *scores)
        shared.crossearth("report")
        folder = shared.ARTIFACTS / "report"
        shutil.copyfile(folder / "scores.md", table.path)
        shutil.copyfile(folder / "index.html", page.path)
        metrics.log_metric("recipes", len(scores))
        promoted: list[str] = []
        text = "no model is registered: register_models is false\n"
        if register_models:
            promoted, text = pipeline_items.register_models([item["name"] for item in recipes])
        Path(decisions.path).write_text(text)
        return promoted


@component
def scenes(workspace: str, params: str, catalogs: str, wanted: dict, source: str, shards: int) -> list[dict]:
    """Looks for what the run needs, then lists the scenes of a folder or an s3:// prefix and deals them out.

    Args:
        params: contents of params.yaml, as text.
        catalogs: list of the contents of further catalog files, as text.
        wanted: arguments of `check_prerequisites`.

    Returns:
        At most `shards` items of about equal length: name and digest of a list that lies in the workspace.
    """
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import deal_scenes
    from crossearth.components.pods.prerequisites import look

    shared.enter(workspace)
    shared.begin(params, catalogs)
    with shared.step(workspace, "scenes"):
        look(**wanted)
        return deal_scenes(source, shards)


@component
def predict(workspace: str, item: dict, model: str, out: str, config: dict, metrics: Output[Metrics]) -> str:
    """Maps the scenes of one shard.

    Returns:
        The folder of the maps: their names are those of the scenes.
    """
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import predict_scenes, read_shard

    with shared.step(workspace, "predict", item["name"]):
        maps = predict_scenes(read_shard(item), model, out, config)
        metrics.log_metric("scenes", len(maps))
        return out


@component
def finish(workspace: str, pipeline: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Runs whatever happened, and needs nothing that may have failed: tells MLflow how it ended and why."""
    from crossearth.components.pods.finish import finish_pipeline

    finish_pipeline(
        workspace,
        pipeline,
        status.pipeline_job_resource_name or "",
        status.state or "",
        status.error_message or "",
    )
