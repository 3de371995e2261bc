"""A manifest against the schema of Kubernetes or of Kubeflow Trainer, as their packages have them."""

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from kubeflow_trainer_api import models

INFRA = Path(__file__).parents[1] / "infra"
KUBERNETES = "1.31"


def trainer_schema(kind: str) -> dict[str, Any]:
    """The schema of Kubeflow Trainer's API, as its package has it; unknown keys are refused."""
    schema = getattr(models, f"TrainerV1alpha1{kind}").model_json_schema(by_alias=True)
    parts = schema.get("$defs", {})
    # plain text or numbers in a manifest, wrapped by the package
    for name in parts:
        if name.endswith(("ResourceQuantity", "IntOrString")):
            parts[name] = {"type": ["string", "number"]}
    for part in (schema, *parts.values()):
        if part.get("properties"):
            part["additionalProperties"] = False
    return schema


def check(manifest: Any) -> None:
    if manifest["apiVersion"].startswith("trainer.kubeflow.org/"):
        jsonschema.validate(manifest, trainer_schema(manifest["kind"]))
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
