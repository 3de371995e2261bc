"""Maps of scenes, in shards."""

from kfp.dsl import Metrics, Output

from crossearth.components.pods.component import component


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
    from crossearth.components.pods.prerequisites import look
    from crossearth.components.predict.scenes import deal_scenes

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
    from crossearth.components.predict.scenes import predict_scenes, read_shard

    with shared.step(workspace, "predict", item["name"]):
        maps = predict_scenes(read_shard(item), model, out, config)
        metrics.log_metric("scenes", len(maps))
        return out
