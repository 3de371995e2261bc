"""The benchmark as a Kubeflow pipeline: the steps and loops of dvc.yaml, from the same catalog."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from crossearth.components.evaluate.component import evaluate
from crossearth.components.ingest.component import ingest
from crossearth.components.plan.component import plan
from crossearth.components.pods.component import finish
from crossearth.components.report.component import report
from crossearth.components.runtime.params import Params, load_params
from crossearth.components.styles.component import styles
from crossearth.components.stylize.component import shards, stylize
from crossearth.components.synthesize.component import archives
from crossearth.components.train.component import train
from crossearth.components.validate.component import validate
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import load_config, read_yaml
from crossearth.data.common.errors import InputError
from crossearth.pipelines.resources import Values, configure_pod


@dataclass(frozen=True)
class Inputs:
    """What a pipeline is built from: defaults of its parameters, and what shapes its graph.

    Attributes:
        recipes: names of the recipes that the catalog derives.
        params: contents of params.yaml, as JSON.
        catalogs: list of the contents of the user's catalog files, as JSON.
        stylize_shards: shards in which each source's stylized tiles are written, 0 = none; no parameter, for
            it shapes the graph.
    """

    recipes: list[str]
    params: str
    catalogs: str
    stylize_shards: int = 0


def read_inputs(
    params_file: Path, catalogs: Sequence[Path] = (), preset: str | None = None, stylize_shards: int = 0
) -> Inputs:
    """Reads params.yaml and the user's catalogs, and checks them.

    Args:
        preset: takes the place of the file's.

    Raises:
        InputError: whatever is wrong in them.
    """
    from crossearth.components.plan.configs import check  # brings torch, which lists of runs do without

    if not params_file.exists():
        raise InputError(
            "no such file", where=params_file, next_step="crossearth init --benchmark ., or --params FILE"
        )
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
    return Inputs(list(catalog.recipes()), json.dumps(plain), json.dumps(contents), stylize_shards)


def refuse_unshared_batches(inputs: Inputs, values: Values) -> None:
    """Looks before anything is computed whether the processes of a training can share its batches.

    Raises:
        InputError: a recipe's `batch_size` is no multiple of the number of processes.
    """
    processes = values.processes("train") * values.trainer.nodes
    if processes == 1:
        return
    from crossearth.components.train.setup import TrainConfig

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


@dataclass(frozen=True)
class Recipes:
    """The parameter of a pipeline that says which recipes are trained.

    Attributes:
        name: of the parameter.
        kind: `list` of names, or `str` for one name.
        default: its value.
        meaning: its description.
    """

    name: str
    kind: type
    default: Any
    meaning: str


def benchmark(inputs: Inputs, values: Values) -> GraphComponent:
    """The pipeline that trains and scores recipes and writes the report.

    Args:
        inputs: defaults of the pipeline's parameters.
        values: resources, image, secrets.
    """
    return graph(
        name="crossearth-benchmark",
        description="Trains one model per recipe, scores it on domains that it has never seen, reports.",
        recipes=Recipes(
            "recipes",
            list,
            inputs.recipes,
            "names of the recipes to train; the default is all that the catalog derives",
        ),
        register_models=True,
        inputs=inputs,
        values=values,
    )


def graph(
    *, name: str, description: str, recipes: Recipes, register_models: bool, inputs: Inputs, values: Values
) -> GraphComponent:
    """A pipeline that trains, scores and reports; this is the one declaration of its parameters.

    Args:
        name: of the pipeline.
        description: of the pipeline.
        recipes: the first parameter.
        register_models: default of the parameter of this name.
        inputs: defaults of the other parameters.
        values: resources, image, secrets.
    """
    refuse_unshared_batches(inputs, values)
    register_default, params_default, catalogs_default = register_models, inputs.params, inputs.catalogs

    def pipeline(
        chosen: Any,
        params: str = params_default,
        catalogs: str = catalogs_default,
        workspace: str = values.workspace.mount,
        store: str = "",
        versions: dict = {},  # noqa: B006
        dvc_repository: str = "",
        dvc_revision: str = "",
        dvc_path: str = "",
        register_models: bool = register_default,
    ) -> None:
        with dsl.ExitHandler(finish_task(workspace, values)):
            prepared = prepare(
                workspace=workspace,
                recipes=chosen if recipes.kind is list else [chosen],
                params=params,
                catalogs=catalogs,
                store=store,
                versions=versions,
                dvc=(dvc_repository, dvc_revision, dvc_path),
                stylize_shards=inputs.stylize_shards,
                values=values,
            )
            train_and_score(prepared, workspace, register_models, values)

    # kfp reads the signature and the docstring: the first parameter gets its own name, type and description
    _, *others = signature(pipeline).parameters.values()
    first = Parameter(
        recipes.name, Parameter.POSITIONAL_OR_KEYWORD, default=recipes.default, annotation=recipes.kind
    )
    pipeline.__signature__ = Signature([first, *others])  # type: ignore[attr-defined]
    pipeline.__doc__ = f"""{description}

    Args:
        {recipes.name}: {recipes.meaning}.
        params: contents of params.yaml; its `preset` chooses drawn miniatures or the paper's parameters.
        catalogs: list of the contents of further catalog files with your own domains and settings.
        workspace: the shared folder, where the claim is mounted.
        store: s3://bucket/prefix that ingested domains are mirrored to, empty for none.
        versions: domain to version in the store, for domains that are pulled instead of ingested.
        dvc_repository: git repository that versions the archives with DVC, empty if they lie here.
        dvc_revision: its git revision.
        dvc_path: the folder of archives in it.
        register_models: whether models are registered and promoted by the rule.
    """
    return dsl.pipeline(pipeline, name=name, description=description)


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
    task = finish(workspace=workspace, pipeline=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)
    return configure_pod(task, "finish", values)


def prepare(
    *,
    workspace: Any,
    recipes: Any,
    params: Any,
    catalogs: Any,
    store: Any,
    versions: Any,
    dvc: tuple[Any, Any, Any],
    stylize_shards: int,
    values: Values,
) -> Prepared:
    """Prerequisites and plan, archives, tiles, styles, validation with coverage, and stylized tiles.

    Args:
        dvc: repository, revision and path of archives that DVC versions.
        stylize_shards: 0 = the graph has neither the loop nor what deals out: Kubeflow never ends a loop
            over nothing.
    """
    planned = plan(
        workspace=workspace,
        params=params,
        catalogs=catalogs,
        recipes=recipes,
        versions=versions,
        stylize_shards=stylize_shards,
        wanted=wanted(values),
    )
    configure_pod(planned, "plan", values)
    repository, revision, path = dvc
    brought = archives(
        workspace=workspace,
        key=planned.outputs["synthesize"],
        repository=repository,
        revision=revision,
        path=path,
        needed=planned.outputs["archives"],
    )
    configure_pod(brought, "archives", values)
    datasets = planned.outputs["Output"]
    with dsl.ParallelFor(datasets, name="datasets", parallelism=values.parallel.ingest) as dataset:
        ingested = ingest(workspace=workspace, item=dataset, archives=brought.output, store=store)
        configure_pod(ingested, "ingest", values)
    fitted = styles(workspace=workspace, archives=brought.output, key=planned.outputs["styles"])
    configure_pod(fitted, "styles", values)
    validated = validate(
        workspace=workspace,
        items=datasets,
        datasets=dsl.Collected(ingested.outputs["Output"]),
        recipes=planned.outputs["items"],
        styles=fitted.output,
        key=planned.outputs["validate"],
    )
    configure_pod(validated, "validate", values)
    items = validated.outputs["Output"]
    if stylize_shards:
        dealt = shards(
            workspace=workspace, recipes=items, number=stylize_shards, key=planned.outputs["stylize"]
        )
        configure_pod(dealt, "shards", values)
        with dsl.ParallelFor(
            dealt.output, name="stylize-shards", parallelism=values.parallel.stylize
        ) as shard:
            configure_pod(stylize(workspace=workspace, item=shard), "stylize", values)
    return Prepared(items, validated.outputs["coverage"], planned.outputs["report"])


def wanted(values: Values, trains: bool = True) -> dict[str, Any]:
    """What the first step looks for: arguments of `check_prerequisites`."""
    many = trains and values.trainer.nodes > 1
    return {
        "secrets": {secret.name: secret.env for secret in values.secrets.values()},
        "gpus": values.gpus(),
        "training_runtime": values.trainer.runtime if many else "",
        "namespace": (values.trainer.namespace or "") if many else "",
    }


def train_and_score(prepared: Prepared, workspace: Any, register_models: Any, values: Values) -> None:
    """The loop over the recipes, the report and the registry."""
    with dsl.ParallelFor(prepared.recipes, name="recipes", parallelism=values.parallel.recipes) as recipe:
        trained = train(
            workspace=workspace,
            item=recipe,
            processes=values.processes("train"),
            job=values.train_job(),
        )
        configure_pod(trained, "train", values)
        scored = evaluate(
            workspace=workspace,
            item=recipe,
            model=trained.outputs["Output"],
            processes=values.processes("evaluate"),
        )
        configure_pod(scored, "evaluate", values)
    reported = report(
        workspace=workspace,
        recipes=prepared.recipes,
        scores=dsl.Collected(scored.outputs["Output"]),
        coverage=prepared.coverage,
        key=prepared.report,
        register_models=register_models,
    )
    configure_pod(reported, "report", values)
