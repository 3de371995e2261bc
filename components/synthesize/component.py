"""The archives that a run reads: synthetic ones, or the publishers'."""

from crossearth.components.pods.component import component


@component
def archives(workspace: str, key: str, repository: str, revision: str, path: str, needed: list) -> str:
    """Draws miniature archives of every dataset, or brings the publishers'.

    Args:
        key: digest of what synthetic archives depend on; empty for the publishers': those of a git
            repository's .dvc file, or those in the workspace.
        needed: folders of archives that are read; without any nothing is brought.

    Returns:
        What stands for the archives in the cache: their digest if synthetic; revision, or names and sizes.
    """
    from functools import partial

    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.archives import draw_archives, fetch_archives
    from crossearth.components.synthesize.step import run

    with shared.step(workspace, "archives"):
        params, _ = shared.inputs()
        if key:
            return draw_archives(partial(run, params), params.archives, key)
        return fetch_archives(params.archives, repository, revision, path, needed)
