"""One recipe as a Kubeflow pipeline: the benchmark's steps without its loop over all recipes."""

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from crossearth.pipelines.benchmark import (
    Inputs,
    finish_task,
    prepare,
    refuse_unshared_batches,
    train_and_score,
)
from crossearth.pipelines.resources import Values


def training(inputs: Inputs, values: Values) -> GraphComponent:
    """The pipeline that trains one recipe, scores it on its targets and reports.

    Args:
        inputs: catalog and params, defaults of the pipeline's parameters.
        values: resources, image, secrets.
    """
    refuse_unshared_batches(inputs, values)
    params_default, catalogs_default = inputs.params, inputs.catalogs
    first = inputs.recipes[0]

    @dsl.pipeline(
        name="crossearth-training",
        description="Trains one recipe and scores it on domains that it has never seen.",
    )
    def pipeline(
        recipe: str = first,
        params: str = params_default,
        catalogs: str = catalogs_default,
        workspace: str = values.workspace.mount,
        store: str = "",
        versions: dict = {},  # noqa: B006
        dvc_repository: str = "",
        dvc_revision: str = "",
        dvc_path: str = "",
        register_models: bool = False,
    ) -> None:
        """Trains one recipe.

        Args:
            recipe: name of the recipe to train.
            params: contents of params.yaml; its `preset` chooses drawn miniatures or the paper's parameters.
            catalogs: list of the contents of further catalog files with your own domains and settings.
            workspace: the shared folder, where the claim is mounted.
            store: s3://bucket/prefix that ingested domains are mirrored to, empty for none.
            versions: domain to version in the store, for domains that are pulled instead of ingested.
            dvc_repository: git repository that versions the archives with DVC, empty if they lie here.
            dvc_revision: its git revision.
            dvc_path: the folder of archives in it.
            register_models: whether the model is registered and promoted by the rule.
        """
        with dsl.ExitHandler(finish_task(workspace, values)):
            prepared = prepare(
                workspace=workspace,
                recipes=[recipe],
                params=params,
                catalogs=catalogs,
                store=store,
                versions=versions,
                dvc=(dvc_repository, dvc_revision, dvc_path),
                stylize_shards=inputs.stylize_shards,
                values=values,
            )
            train_and_score(prepared, workspace, register_models, values)

    return pipeline
