"""The benchmark as a Kubeflow pipeline: the steps and loops of dvc.yaml, from the same catalog."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from crossearth.components import kfp_components as steps
from crossearth.components.params import Params, load_params
from crossearth.data.catalog import load_catalog
from crossearth.data.config import load_config, read_yaml
from crossearth.data.errors import InputError
from crossearth.pipelines.resources import Values, place


@dataclass(frozen=True)
class Inputs:
    """Defaults of a pipeline's parameters.

    Attributes:
        recipes: names of the recipes that the catalog derives.
        params: contents of params.yaml, as JSON.
        catalogs: list of the contents of the user's catalog files, as JSON.
    """

    recipes: list[str]
    params: str
    catalogs: str


def read_inputs(params_file: Path, catalogs: Sequence[Path] = (), preset: str | None = None) -> Inputs:
    """Reads params.yaml and the user's catalogs, and checks them.

    Args:
        preset: takes the place of the file's.

    Raises:
        InputError: whatever is wrong in them.
    """
    from crossearth.components.step_configs import check  # brings torch, which lists of runs do without

    if not params_file.exists():
        raise InputError("no such file", where=params_file, next_step="give the numbers with --params FILE")
    params = load_params(params_file)
    paths = list({path.resolve(): path for path in (*params.catalogs, *catalogs)}.values())
    plain = {**read_yaml(params_file), "catalogs": []}
    if preset:
        plain["preset"] = preset
        params = load_config(Params, plain, params_file)
    catalog = load_catalog(paths)
    check(params, catalog)
    contents = [read_yaml(path) for path in paths]
    # on one line: Kubeflow's compiler repeats defaults in a comment of one line
    return Inputs(list(catalog.recipes()), json.dumps(plain), json.dumps(contents))


def refuse_unshared_batches(inputs: Inputs, values: Values) -> None:
    """Looks before anything is computed whether the processes of a training can share its batches.

    Raises:
        InputError: a recipe's `batch_size` is no multiple of the number of processes.
    """
    processes = values.processes("train") * values.trainer.nodes
    if processes == 1:
        return
    from crossearth.components.training_setup import TrainConfig

    params = load_config(Params, json.loads(inputs.params), "params")
    for recipe in inputs.recipes:
        batch = params.config(TrainConfig, "train", recipe).batch_size
        if batch % processes:
            raise InputError(
                f"batch_size: {batch} crops of {recipe} cannot be shared by {processes} processes",
                where="values: steps.train.gpus, trainer.nodes",
                expected=f"a multiple of {processes}",
                next_step="set batch_size, which counts over all processes, in params.yaml",
            )


def benchmark(inputs: Inputs, values: Values) -> GraphComponent:
    """The pipeline that trains and scores recipes and writes the report.

    Args:
        inputs: defaults of the pipeline's parameters.
        values: resources, image, secrets.
    """
    refuse_unshared_batches(inputs, values)
    recipes_default, params_default, catalogs_default = inputs.recipes, inputs.params, inputs.catalogs

    @dsl.pipeline(
        name="crossearth-benchmark",
        description="Trains one model per recipe, scores it on domains that it has never seen, reports.",
    )
    def pipeline(
        recipes: list = recipes_default,
        params: str = params_default,
        catalogs: str = catalogs_default,
        workspace: str = values.workspace.mount,
        store: str = "",
        versions: dict = {},  # noqa: B006
        dvc_repository: str = "",
        dvc_revision: str = "",
        dvc_path: str = "",
        stylize_shards: int = 0,
        register_models: bool = True,
    ) -> None:
        """Trains and scores recipes.

        Args:
            recipes: names of the recipes to train; the default is all that the catalog derives.
            params: contents of params.yaml; its `preset` chooses drawn miniatures or the paper's numbers.
            catalogs: list of the contents of further catalog files with your own domains and settings.
            workspace: the shared folder, where the claim is mounted.
            store: s3://bucket/prefix that ingested domains are mirrored to, empty for none.
            versions: domain to version in the store, for domains that are pulled instead of ingested.
            dvc_repository: git repository that versions the archives with DVC, empty if they lie here.
            dvc_revision: its git revision.
            dvc_path: the folder of archives in it.
            stylize_shards: shards in which each source's stylized tiles are written, 0 for none.
            register_models: whether models are registered and promoted by the rule.
        """
        with dsl.ExitHandler(finish_task(workspace, values)):
            prepared = prepare(
                workspace=workspace,
                recipes=recipes,
                params=params,
                catalogs=catalogs,
                store=store,
                versions=versions,
                dvc=(dvc_repository, dvc_revision, dvc_path),
                stylize_shards=stylize_shards,
                values=values,
            )
            train_and_score(prepared, workspace, register_models, values)

    return pipeline


@dataclass(frozen=True)
class Prepared:
    """What the preparing steps hand on.

    Attributes:
        recipes: channel of the recipes' items.
        coverage: channel of the digest of how far they cover the unseen domains.
        report: channel of the digest of what the report depends on besides the scores.
    """

    recipes: Any
    coverage: Any
    report: Any


def finish_task(workspace: Any, values: Values) -> dsl.PipelineTask:
    """The exit handler's task."""
    task = steps.finish(workspace=workspace, pipeline=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)
    return place(task, "finish", values)


def prepare(
    *,
    workspace: Any,
    recipes: Any,
    params: Any,
    catalogs: Any,
    store: Any,
    versions: Any,
    dvc: tuple[Any, Any, Any],
    stylize_shards: Any,
    values: Values,
) -> Prepared:
    """Prerequisites, plan, archives, tiles, validation, styles, their coverage and stylized tiles.

    Args:
        dvc: repository, revision and path of archives that DVC versions.
    """
    looked = steps.prerequisites(
        workspace=workspace,
        params=params,
        catalogs=catalogs,
        secrets={secret.name: secret.env for secret in values.secrets.values()},
        gpus=values.gpus(),
        training_runtime=values.trainer.runtime if values.trainer.nodes > 1 else "",
        namespace=values.trainer.namespace or "",
    )
    place(looked, "prerequisites", values)
    planned = steps.plan(
        workspace=workspace,
        recipes=recipes,
        versions=versions,
        stylize_shards=stylize_shards,
        code=looked.output,
    )
    place(planned, "plan", values)
    archives = _archives(workspace, planned, dvc, values)
    datasets = planned.outputs["Output"]
    with dsl.ParallelFor(datasets, name="datasets", parallelism=values.parallel.ingest) as dataset:
        ingested = steps.ingest(workspace=workspace, item=dataset, archives=archives, store=store)
        place(ingested, "ingest", values)
    fitted = steps.styles(workspace=workspace, archives=archives, key=planned.outputs["styles"])
    place(fitted, "styles", values)
    validated = steps.validate(
        workspace=workspace,
        items=datasets,
        datasets=dsl.Collected(ingested.outputs["Output"]),
        recipes=planned.outputs["items"],
        styles=fitted.output,
        key=planned.outputs["validate"],
    )
    place(validated, "validate", values)
    items = validated.outputs["Output"]
    covered = steps.coverage(workspace=workspace, recipes=items, styles=fitted.output)
    place(covered, "coverage", values)
    dealt = steps.shards(
        workspace=workspace, recipes=items, number=stylize_shards, key=planned.outputs["stylize"]
    )
    place(dealt, "shards", values)
    with dsl.ParallelFor(dealt.output, name="stylize-shards", parallelism=values.parallel.stylize) as shard:
        place(steps.stylize(workspace=workspace, item=shard), "stylize", values)
    return Prepared(items, covered.output, planned.outputs["report"])


def _archives(workspace: Any, planned: dsl.PipelineTask, dvc: tuple[Any, Any, Any], values: Values) -> Any:
    """Channel of the archives' digest: drawn by code, or the publishers'."""
    key = planned.outputs["synthesize"]
    repository, revision, path = dvc
    with dsl.If(key != "", name="drawn-archives"):
        drawn = steps.synthesize(workspace=workspace, key=key)
        place(drawn, "synthesize", values)
    with dsl.Else(name="publishers-archives"):
        fetched = steps.fetch(
            workspace=workspace,
            repository=repository,
            revision=revision,
            path=path,
            needed=planned.outputs["archives"],
        )
        place(fetched, "fetch", values)
    return dsl.OneOf(drawn.output, fetched.output)


def train_and_score(prepared: Prepared, workspace: Any, register_models: Any, values: Values) -> None:
    """The loop over the recipes, the report and the registry."""
    with dsl.ParallelFor(prepared.recipes, name="recipes", parallelism=values.parallel.recipes) as recipe:
        trained = steps.train(
            workspace=workspace,
            item=recipe,
            processes=values.processes("train"),
            job=values.train_job(),
        )
        place(trained, "train", values)
        scored = steps.evaluate(
            workspace=workspace,
            item=recipe,
            model=trained.outputs["Output"],
            processes=values.processes("evaluate"),
        )
        place(scored, "evaluate", values)
    reported = steps.report(
        workspace=workspace,
        recipes=prepared.recipes,
        scores=dsl.Collected(scored.outputs["Output"]),
        coverage=prepared.coverage,
        key=prepared.report,
    )
    place(reported, "report", values)
    with dsl.If(register_models == True, name="registry"):  # noqa: E712
        registered = steps.register(
            workspace=workspace, recipes=prepared.recipes, scores=reported.outputs["Output"]
        )
        place(registered, "register", values)
