"""The table and the page; then the registry."""

from kfp.dsl import HTML, Markdown, Metrics, Output

from crossearth.components.pods.component import component


@component
def report(
    workspace: str,
    recipes: list,
    scores: list,
    coverage: str,
    key: str,
    register_models: bool,
    table: Output[Markdown],
    page: Output[HTML],
    decisions: Output[Markdown],
    metrics: Output[Metrics],
) -> list:
    """The table, the page and the plots; then a version per recipe in the registry, promoted by the rule.

    Args:
        scores: digests of the recipes' scores.
        register_models: whether models are registered at all.

    Returns:
        Names of the recipes whose model was promoted.
    """
    import shutil
    from pathlib import Path

    from crossearth.components.pods import workspace as shared
    from crossearth.components.register.decisions import decide_all
    from crossearth.components.report.step import run
    from crossearth.components.runtime.places import COVERAGE, SCORES

    with shared.step(workspace, "report"):
        if coverage:
            shared.expect_content("validate", COVERAGE, coverage)
        for item in recipes:
            made = SCORES / item["name"] / "scores.csv"
            shared.expect_content(f"evaluate {item['name']}", made, *scores)
        params, catalog = shared.inputs()
        folder = run(params, catalog)
        shutil.copyfile(folder / "scores.md", table.path)
        shutil.copyfile(folder / "index.html", page.path)
        metrics.log_metric("recipes", len(scores))
        promoted: list[str] = []
        text = "no model is registered: register_models is false\n"
        if register_models:
            promoted, text = decide_all(params, catalog, [item["name"] for item in recipes])
        Path(decisions.path).write_text(text)
        return promoted
