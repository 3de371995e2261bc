"""One dataset to tiles and manifests."""

from kfp.dsl import Metrics, Output

from crossearth.components.pods.component import component


@component
def ingest(workspace: str, item: dict, archives: str, store: str, metrics: Output[Metrics]) -> str:
    """Turns the archives of one dataset into tiles and manifests, or pulls its domains from the store.

    Returns:
        Digest of the manifests, and so of every tile.
    """
    from crossearth.components.ingest.step import run
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import count_tiles, pull_domains, push_domains

    with shared.step(workspace, "ingest", item["name"]):
        if item["versions"]:
            pull_domains(item["versions"], store)
        else:
            run(*shared.inputs(), [item["name"]])
            push_domains(item["domains"], store)
        numbers, key = count_tiles(item["domains"])
        for name, value in numbers.items():
            metrics.log_metric(name, value)
        return key
