"""Expectations over every manifest, and how far the styles cover the unseen domains."""

from kfp.dsl import Metrics, Output, OutputPath

from crossearth.components.pods.component import component


@component
def validate(
    workspace: str,
    items: list,
    datasets: list,
    recipes: list,
    styles: str,
    key: str,
    coverage: OutputPath(str),  # type: ignore[valid-type]
    metrics: Output[Metrics],
) -> list[dict]:
    """Expectations over every manifest, and per setting how far the styles cover the unseen domain.

    Args:
        items: the datasets' items.
        datasets: what `ingest` returned for them.
        recipes: the recipes' items.
        styles: digest that the recipes' items get, too: kfp's local runner hands the steps of a loop nothing
            but the loop's item from outside it.
        coverage: gets the digest of the coverage's numbers; empty without styles.

    Returns:
        The recipes' items, their keys standing for the tiles of source and targets too.
    """
    import shutil
    from pathlib import Path

    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import expect_datasets, with_digests
    from crossearth.components.runtime.places import COVERAGE, STYLES
    from crossearth.components.styles import coverage as styles_coverage
    from crossearth.components.validate.step import run

    with shared.step(workspace, "validate"):
        expect_datasets(items, datasets)
        params, catalog = shared.inputs()
        run(params, catalog)
        covered = ""
        if styles:
            shared.expect_content("styles", STYLES, styles)
            covered = shared.content_digest(styles_coverage.run(params, catalog))
        else:  # the report would show another run's
            shutil.rmtree(COVERAGE, ignore_errors=True)
        Path(coverage).write_text(covered)
        metrics.log_metric("datasets", len(datasets))
        return [with_digests(item, styles) for item in recipes]
