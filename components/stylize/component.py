"""Restyled counterparts of the training tiles, in shards."""

from crossearth.components.pods.component import component


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
def stylize(workspace: str, item: dict) -> str:
    """Restyled counterparts of one shard of a domain's training tiles.

    Returns:
        The shard.
    """
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import expect_tiles
    from crossearth.components.runtime.places import STYLES
    from crossearth.components.stylize.step import run

    with shared.step(workspace, "stylize", item["name"]):
        expect_tiles(item)
        shared.expect_content("styles", STYLES, item["styles"])
        run(*shared.inputs(), item["domain"], item["shard"])
        return item["name"]
