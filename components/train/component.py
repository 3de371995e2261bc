"""One recipe's training."""

from kfp.dsl import Metrics, Output

from crossearth.components.pods.component import component


@component
def train(workspace: str, item: dict, processes: int, job: dict, metrics: Output[Metrics]) -> str:
    """Trains one recipe: in this pod, in one process a GPU, or on many nodes as a TrainJob.

    Args:
        processes: processes of this pod.
        job: fields of TrainJobConfig, empty = no TrainJob.

    Returns:
        Hash of the weights.
    """
    from functools import partial

    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import expect_tiles
    from crossearth.components.pods.launch import launch
    from crossearth.components.runtime.places import MODELS, STYLES
    from crossearth.components.train.step import run
    from crossearth.model.weights.checkpoint import read_meta

    with shared.step(workspace, "train", item["name"]):
        expect_tiles(item)
        if item["styles"]:
            shared.expect_content("styles", STYLES, item["styles"])
        work = partial(run, *shared.inputs(), item["name"])
        launch(work, ["train", item["name"]], workspace, processes, job)
        meta = read_meta(MODELS / item["name"])
        metrics.log_metric("classes", len(meta["classes"]))
        metrics.metadata["recipe"] = item["name"]
        metrics.metadata["weights"] = meta["sha256"]
        return meta["sha256"]
