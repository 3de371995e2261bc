"""What makes a step's function a Kubeflow component, and the component that ends every pipeline.

Kubeflow ships each function's source alone: imports stand inside, and annotations are evaluated, so no file
of components has `from __future__ import annotations`. Every input is part of Kubeflow's cache key, so an
item carries the digest of all that its step depends on; the bytes stay in the workspace. What a loop runs
over is `list[dict]`: Kubeflow takes the items of a bare `list` for strings.
"""

from kfp import dsl

# the image is replaced by that of the values file when a pipeline is compiled
component = dsl.component(base_image="crossearth", install_kfp_package=False)


@component
def finish(workspace: str, pipeline: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Runs whatever happened, and needs nothing that may have failed: tells MLflow how it ended and why."""
    from crossearth.components.pods.finish import finish_pipeline

    finish_pipeline(
        workspace,
        pipeline,
        status.pipeline_job_resource_name or "",
        status.state or "",
        status.error_message or "",
    )
