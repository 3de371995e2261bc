"""A manifest against the schema of Kubernetes, Kubeflow Trainer or Katib, as their packages have them."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from kubeflow_trainer_api import models

INFRA = Path(__file__).parents[1] / "infra"
OPTIMIZATION_JOB = Path(__file__).with_name("optimization_job.yaml")
KUBERNETES = "1.31"


def trainer_schema(kind: str) -> dict[str, Any]:
    """The schema of Kubeflow Trainer's API, as its package has it; unknown keys are refused."""
    return strict(getattr(models, f"TrainerV1alpha1{kind}").model_json_schema(by_alias=True))


def katib_schema() -> dict[str, Any]:
    """That of an Experiment; Katib's own definition of the kind lets everything pass."""
    from kubeflow_katib_api.models import V1beta1Experiment

    return strict(V1beta1Experiment.model_json_schema(by_alias=True))


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    parts = schema.get("$defs", {})
    # plain text or numbers in a manifest, wrapped by the package
    for name in parts:
        if name.endswith(("ResourceQuantity", "IntOrString")):
            parts[name] = {"type": ["string", "number"]}
    for part in (schema, *parts.values()):
        if part.get("properties"):
            part["additionalProperties"] = False
    return schema


def closed(schema: Any) -> Any:
    """A schema as a cluster has it, which drops unknown keys: here they are refused."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(each) for key, each in schema.items()}
    if isinstance(found.get("properties"), dict) and found.get("type") == "object":
        found["additionalProperties"] = False
    return found


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    if kind == "OptimizationJob":
        return jsonschema.Draft202012Validator(closed(yaml.safe_load(OPTIMIZATION_JOB.read_text())))
    return jsonschema.Draft202012Validator(katib_schema() if kind == "Experiment" else trainer_schema(kind))


def check(manifest: Any) -> None:
    if manifest["kind"] == "OptimizationJob":
        validator("OptimizationJob").validate(manifest)
        validator("TrainJobSpec").validate(manifest["spec"]["trainJobTemplate"]["spec"])
    elif manifest["kind"] == "Experiment":
        validator("Experiment").validate(manifest)
        check(manifest["spec"]["trialTemplate"]["trialSpec"])
    elif manifest["apiVersion"].startswith("trainer.kubeflow.org/"):
        validator(manifest["kind"]).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
