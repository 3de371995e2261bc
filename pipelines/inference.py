"""Mapping a folder or an s3:// prefix of scenes as a Kubeflow pipeline, in shards; and watching them, too."""

from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from crossearth.components.predict import component as steps
from crossearth.components.watch.component import watch as watch_step
from crossearth.pipelines.benchmark import Inputs, finish_task, wanted
from crossearth.pipelines.resources import Values, configure_pod


def inference(inputs: Inputs, values: Values) -> GraphComponent:
    """The pipeline that maps scenes with a trained model.

    Args:
        inputs: default of the pipeline's parameter `params`.
        values: resources, image, secrets.
    """
    params_default, catalogs_default = inputs.params, inputs.catalogs

    @dsl.pipeline(name="crossearth-inference", description="Maps scenes of any size, in shards.")
    def pipeline(
        scenes: str,
        model: str,
        out: str = "artifacts/maps",
        shards: int = 4,
        predict: dict = {},  # noqa: B006
        params: str = params_default,
        catalogs: str = catalogs_default,
        workspace: str = values.workspace.mount,
    ) -> None:
        """Maps scenes.

        Args:
            scenes: folder of the workspace, or s3:// prefix; searched with everything in it.
            model: model folder in the workspace, for example artifacts/models/potsdam-rgb.
            out: folder of the workspace that gets the maps.
            shards: number of pods that the scenes are dealt out to.
            predict: fields of PredictConfig, for example the bands.
            params: contents of params.yaml.
            catalogs: list of the contents of further catalog files.
            workspace: the shared folder, where the claim is mounted.
        """
        with dsl.ExitHandler(finish_task(workspace, values)):
            listed = _listed(values, workspace, params, catalogs, scenes, shards)
            _map(values, workspace, listed, model, out, predict)

    return pipeline


def monitoring(inputs: Inputs, values: Values) -> GraphComponent:
    """The pipeline for a schedule: it maps scenes, and says whether they are like what the model has seen.

    Args:
        inputs: default of the pipeline's parameter `params`.
        values: resources, image, secrets.
    """
    params_default, catalogs_default = inputs.params, inputs.catalogs

    @dsl.pipeline(name="crossearth-monitoring", description="Maps scenes and looks whether they drift.")
    def pipeline(
        scenes: str,
        model: str,
        out: str = "artifacts/maps",
        shards: int = 4,
        predict: dict = {},  # noqa: B006
        watch: dict = {},  # noqa: B006
        fail: bool = True,
        params: str = params_default,
        catalogs: str = catalogs_default,
        workspace: str = values.workspace.mount,
    ) -> None:
        """Maps scenes and watches.

        Args:
            scenes: folder of the workspace, or s3:// prefix; searched with everything in it.
            model: model folder in the workspace, for example artifacts/models/potsdam-rgb.
            out: folder of the workspace that gets the maps.
            shards: number of pods that the scenes are dealt out to.
            predict: fields of PredictConfig, for example the bands.
            watch: fields of WatchConfig.
            fail: whether the run fails where the scenes drift; the maps are made beside it.
            params: contents of params.yaml.
            catalogs: list of the contents of further catalog files.
            workspace: the shared folder, where the claim is mounted.
        """
        with dsl.ExitHandler(finish_task(workspace, values)):
            listed = _listed(values, workspace, params, catalogs, scenes, shards)
            _map(values, workspace, listed, model, out, predict)
            watched = watch_step(
                workspace=workspace, items=listed.output, model=model, config=watch, fail=fail
            )
            configure_pod(watched, "watch", values)

    return pipeline


def _listed(values: Values, workspace: Any, params: Any, catalogs: Any, scenes: Any, shards: Any) -> Any:
    """The task that lists the scenes, as a part of a pipeline."""
    listed = steps.scenes(
        workspace=workspace,
        params=params,
        catalogs=catalogs,
        wanted=wanted(values, trains=False),
        source=scenes,
        shards=shards,
    )
    configure_pod(listed, "scenes", values)
    return listed


def _map(values: Values, workspace: Any, listed: Any, model: Any, out: Any, predict: Any) -> None:
    """The loop over the shards, as a part of a pipeline."""
    with dsl.ParallelFor(listed.output, name="shards", parallelism=values.parallel.predict) as shard:
        configure_pod(
            steps.predict(workspace=workspace, item=shard, model=model, out=out, config=predict),
            "predict",
            values,
        )
