"""The benchmark as a Kubeflow pipeline: the steps and loops of dvc.yaml, from the same catalog."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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
    from crossearth.components.plan.step import check  # brings torch, which lists of runs do without

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
    """Refuses (InputError) a `batch_size` that the processes of a training cannot share."""
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


def benchmark(inputs: Inputs, values: Values, one: bool = False) -> GraphComponent:
    """The pipeline that trains and scores recipes and reports; this is the one declaration of its parameters.

    Args:
        inputs: defaults of the pipeline's parameters.
        values: resources, image, secrets.
        one: whether it is the pipeline `training`, of one recipe, whose model is not registered.
    """
    refuse_unshared_batches(inputs, values)
    params_default, catalogs_default = inputs.params, inputs.catalogs

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
        register_models: bool = not one,
    ) -> None:
        pod = partial(configure_pod, values=values, workspace=workspace)
        with dsl.ExitHandler(pod(finish, pipeline=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)):
            planned = pod(
                plan,
                params=params,
                catalogs=catalogs,
                recipes=[chosen] if one else chosen,
                versions=versions,
                stylize_shards=inputs.stylize_shards,
                wanted=wanted(values),
            ).outputs
            brought = pod(
                archives,
                key=planned["synthesize"],
                repository=dvc_repository,
                revision=dvc_revision,
                path=dvc_path,
                needed=planned["archives"],
            ).output
            datasets = planned["Output"]
            with dsl.ParallelFor(datasets, name="datasets", parallelism=values.parallel.ingest) as dataset:
                ingested = pod(ingest, item=dataset, archives=brought, store=store)
            fitted = pod(styles, archives=brought, key=planned["styles"])
            validated = pod(
                validate,
                items=datasets,
                datasets=dsl.Collected(ingested.outputs["Output"]),
                recipes=planned["items"],
                styles=fitted.output,
                key=planned["validate"],
            ).outputs
            items = validated["Output"]
            if number := inputs.stylize_shards:  # Kubeflow never ends a loop over nothing
                dealt = pod(shards, recipes=items, number=number, key=planned["stylize"]).output
                with dsl.ParallelFor(
                    dealt, name="stylize-shards", parallelism=values.parallel.stylize
                ) as shard:
                    pod(stylize, item=shard)
            with dsl.ParallelFor(items, name="recipes", parallelism=values.parallel.recipes) as recipe:
                trained = pod(
                    train, item=recipe, processes=values.processes("train"), job=values.train_job()
                ).outputs["Output"]
                scored = pod(evaluate, item=recipe, model=trained, processes=values.processes("evaluate"))
            pod(
                report,
                recipes=items,
                scores=dsl.Collected(scored.outputs["Output"]),
                coverage=validated["coverage"],
                key=planned["report"],
                register_models=register_models,
            )

    default: Any
    if one:
        name, default, meaning = "recipe", inputs.recipes[0], "name of the recipe to train"
        description = "Trains one recipe and scores it on domains that it has never seen."
    else:
        name, default = "recipes", inputs.recipes
        meaning = "names of the recipes to train; the default is all that the catalog derives"
        description = "Trains one model per recipe, scores it on domains that it has never seen, reports."
    # kfp reads the signature and the docstring: the first parameter gets its own name, type and description
    _, *others = signature(pipeline).parameters.values()
    first = Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=type(default))
    pipeline.__signature__ = Signature([first, *others])  # type: ignore[attr-defined]
    pipeline.__doc__ = f"""{description}

    Args:
        {name}: {meaning}.
        params: contents of params.yaml; its `preset` chooses synthetic miniatures or the paper's parameters.
        catalogs: list of the contents of further catalog files with your own domains and settings.
        workspace: the shared folder, where the claim is mounted.
        store: s3://bucket/prefix that ingested domains are mirrored to, empty for none.
        versions: domain to version in the store, for domains that are pulled instead of ingested.
        dvc_repository: git repository that versions the archives with DVC, empty if they lie here.
        dvc_revision: its git revision.
        dvc_path: the folder of archives in it.
        register_models: whether models are registered and promoted by the rule.
    """
    return dsl.pipeline(
        pipeline, name=f"crossearth-{'training' if one else 'benchmark'}", description=description
    )


def wanted(values: Values, trains: bool = True) -> dict[str, Any]:
    """What the first step looks for: arguments of `check_prerequisites`."""
    many = trains and values.trainer.nodes > 1
    return {
        "secrets": {secret.name: secret.env for secret in values.secrets.values()},
        "gpus": values.gpus(),
        "training_runtime": values.trainer.runtime if many else "",
        "namespace": (values.trainer.namespace or "") if many else "",
    }
