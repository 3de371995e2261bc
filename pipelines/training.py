"""One recipe as a Kubeflow pipeline: the benchmark's graph for a single recipe."""

from kfp.dsl.graph_component import GraphComponent

from crossearth.pipelines.benchmark import Inputs, Recipes, graph
from crossearth.pipelines.resources import Values


def training(inputs: Inputs, values: Values) -> GraphComponent:
    """The pipeline that trains one recipe, scores it on its targets and reports.

    Args:
        inputs: defaults of the pipeline's parameters; the first recipe is the default.
        values: resources, image, secrets.
    """
    return graph(
        name="crossearth-training",
        description="Trains one recipe and scores it on domains that it has never seen.",
        recipes=Recipes("recipe", str, inputs.recipes[0], "name of the recipe to train"),
        register_models=False,
        inputs=inputs,
        values=values,
    )
