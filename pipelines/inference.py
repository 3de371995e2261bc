"""Mapping a folder or an s3:// prefix of scenes as a Kubeflow pipeline, in shards; and watching them, too."""

from functools import partial
from inspect import signature

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from crossearth.components.pods.component import finish
from crossearth.components.predict import component as steps
from crossearth.components.watch.component import watch as watch_step
from crossearth.pipelines.benchmark import Inputs, wanted
from crossearth.pipelines.resources import Values, configure_pod

# the last parameters, which only a pipeline that watches has
WATCHING = {
    "watch": "fields of WatchConfig",
    "fail": "whether the run fails where the scenes drift; the maps are made beside it",
}


def inference(inputs: Inputs, values: Values, watches: bool = False) -> GraphComponent:
    """The pipeline that maps scenes with a trained model; this is the one declaration of its parameters.

    Args:
        inputs: defaults of the pipeline's parameters `params` and `catalogs`.
        values: resources, image, secrets.
        watches: whether it is the pipeline `monitoring`, for a schedule: it also says whether the scenes are
            like what the model has seen.
    """
    name, description = "crossearth-inference", "Maps scenes of any size, in shards."
    if watches:
        name, description = "crossearth-monitoring", "Maps scenes and looks whether they drift."
    params_default, catalogs_default = inputs.params, inputs.catalogs

    def pipeline(
        scenes: str,
        model: str,
        out: str = "artifacts/maps",
        shards: int = 4,
        predict: dict = {},  # noqa: B006
        params: str = params_default,
        catalogs: str = catalogs_default,
        workspace: str = values.workspace.mount,
        watch: dict = {},  # noqa: B006
        fail: bool = True,
    ) -> None:
        pod = partial(configure_pod, values=values, workspace=workspace)
        with dsl.ExitHandler(pod(finish, pipeline=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)):
            listed = pod(
                steps.scenes,
                params=params,
                catalogs=catalogs,
                wanted=wanted(values, trains=False),
                source=scenes,
                shards=shards,
            ).output
            with dsl.ParallelFor(listed, name="shards", parallelism=values.parallel.predict) as shard:
                pod(steps.predict, item=shard, model=model, out=out, config=predict)
            if watches:
                pod(watch_step, items=listed, model=model, config=watch, fail=fail)

    # kfp reads the signature and the docstring, and gives the arguments by their place
    declared = signature(pipeline)
    kept = [each for each in declared.parameters.values() if watches or each.name not in WATCHING]
    pipeline.__signature__ = declared.replace(parameters=kept)  # type: ignore[attr-defined]
    more = "".join(f"\n        {each}: {meaning}." for each, meaning in WATCHING.items() if watches)
    pipeline.__doc__ = f"""{description}

    Args:
        scenes: folder of the workspace, or s3:// prefix; searched with everything in it.
        model: model folder in the workspace, for example artifacts/models/potsdam-rgb.
        out: folder of the workspace that gets the maps.
        shards: number of pods that the scenes are dealt out to.
        predict: fields of PredictConfig, for example the bands.
        params: contents of params.yaml.
        catalogs: list of the contents of further catalog files.
        workspace: the shared folder, where the claim is mounted.{more}
    """
    return dsl.pipeline(pipeline, name=name, description=description)
