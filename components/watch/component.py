"""Whether the scenes of a run are like what the model has seen."""

from kfp.dsl import HTML, Metrics, Output

from crossearth.components.pods.component import component


@component
def watch(
    workspace: str,
    items: list,
    model: str,
    config: dict,
    fail: bool,
    page: Output[HTML],
    metrics: Output[Metrics],
) -> bool:
    """Looks at the scenes of all shards.

    Args:
        items: the shards.
        fail: whether the step fails where the scenes drift.

    Returns:
        Whether they drift.
    """
    import shutil
    from pathlib import Path

    from crossearth.components.pods import workspace as shared
    from crossearth.components.predict.scenes import local_scenes, read_shard
    from crossearth.components.runtime.places import WATCH
    from crossearth.components.watch.step import WatchConfig, refuse_drift, watch
    from crossearth.data.common.config import load_config

    with shared.step(workspace, "watch"):
        scenes, own = local_scenes([scene for item in items for scene in read_shard(item)])
        settings = load_config(WatchConfig, config, "watch")
        watched = watch(scenes, Path(model), WATCH, settings, own)
        shutil.copyfile(watched.files[-1], page.path)
        metrics.log_metric("within_training", watched.all.within_training)
        metrics.log_metric("low_confidence", watched.all.low_confidence)
        if fail:
            refuse_drift(watched, model)
        return watched.all.drifts
