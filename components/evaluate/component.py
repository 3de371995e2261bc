"""One recipe's scores on all its targets."""

from kfp.dsl import ClassificationMetrics, Metrics, Output

from crossearth.components.pods.component import component


@component
def evaluate(
    workspace: str,
    item: dict,
    model: str,
    processes: int,
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
) -> str:
    """Scores one recipe on all its targets.

    Returns:
        Digest of the results.
    """
    from functools import partial

    import numpy as np

    from crossearth.components.evaluate.results import read_results
    from crossearth.components.evaluate.step import run
    from crossearth.components.pods import workspace as shared
    from crossearth.components.pods.items import expect_tiles
    from crossearth.components.pods.launch import launch
    from crossearth.components.runtime.places import MODELS, SCORES
    from crossearth.model.weights.checkpoint import read_meta

    with shared.step(workspace, "evaluate", item["name"]):
        expect_tiles(item)
        folder = MODELS / item["name"]
        made = f"train {item['name']}"
        shared.expect(made, folder, read_meta(folder)["sha256"] if folder.is_dir() else "", [model])
        work = partial(run, *shared.inputs(), item["name"])
        launch(work, ["evaluate", item["name"]], workspace, processes, {})
        folder = SCORES / item["name"]
        result = read_results(folder)
        for each in result.settings:
            name = f"{result.metric} {each.setting.abbr}"
            metrics.log_metric(name, round(100 * result.scores(each).primary_metric, 4))
        # the unseen targets together; the report has each by itself
        shown = [each for each in result.settings if each.setting.unseen] or result.settings
        summed = np.sum([each.confusion for each in shown], axis=0)
        confusion.log_confusion_matrix(list(result.classes), summed.tolist())
        return shared.content_digest(folder / "scores.csv")
