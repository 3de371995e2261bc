"""Earth statistics of style."""

from crossearth.components.pods.component import component


@component
def styles(workspace: str, archives: str, key: str) -> str:
    """Earth statistics of style over Million-AID, or any images.

    Returns:
        Digest of the statistics; empty without a key: nothing is restyled.
    """
    from crossearth.components.pods import workspace as shared
    from crossearth.components.runtime.places import STYLES
    from crossearth.components.styles.step import run

    with shared.step(workspace, "styles"):
        if not key:
            return ""
        params, _ = shared.inputs()
        run(params)
        return shared.content_digest(STYLES)
