"""infra/kustomize against the schemas of Kubernetes and Kubeflow Trainer; compose against its references."""

import copy
import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install -e '.[services]'")
pytest.importorskip("kubeflow_trainer_api", reason="pip install -e '.[cluster]'")

from manifest_schema import INFRA, check  # noqa: E402

KUSTOMIZATION = yaml.safe_load((INFRA / "kustomize" / "kustomization.yaml").read_text())


def manifests() -> list[Any]:
    return [
        document
        for name in KUSTOMIZATION["resources"]
        for document in yaml.safe_load_all((INFRA / "kustomize" / name).read_text())
    ]


def identity(manifest: Any) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


@pytest.mark.parametrize("manifest", manifests(), ids=identity)
def test_a_manifest_is_what_the_cluster_expects(manifest: Any) -> None:
    check(manifest)


def damaged(kind: str, *path: Any, key: str, value: Any) -> Any:
    manifest = copy.deepcopy(next(each for each in manifests() if each["kind"] == kind))
    place = manifest
    for part in path:
        place = place[part]
    place[key] = value
    return manifest


@pytest.mark.parametrize(
    "manifest",
    [
        damaged("Deployment", "spec", key="replica", value=1),
        damaged("Deployment", "spec", key="replicas", value="one"),
        damaged("NetworkPolicy", "spec", key="podSelector", value=[]),
        damaged("TrainingRuntime", "spec", "mlPolicy", key="numNode", value=2),
        damaged("TrainingRuntime", "spec", "template", "spec", key="replicatedJobs", value="node"),
    ],
    ids=["unknown key", "wrong type", "wrong selector", "unknown policy", "wrong jobs"],
)
def test_a_wrong_manifest_is_refused(manifest: Any) -> None:
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


def test_every_manifest_is_listed() -> None:
    files = {path.name for path in (INFRA / "kustomize").glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])


def test_pods_run_unprivileged_and_secrets_come_by_reference() -> None:
    text = "\n".join(path.read_text() for path in (INFRA / "kustomize").glob("*.yaml"))
    assert "kind: Secret" not in text
    for manifest in manifests():
        if manifest["kind"] not in ("Deployment", "StatefulSet", "Job"):
            continue
        pod = manifest["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"], identity(manifest)
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"requests", "limits"} <= container["resources"].keys()
            for variable in container.get("env", []):
                if re.search("PASSWORD|SECRET|KEY", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"]


def test_rights_are_the_few_that_are_needed() -> None:
    rules = [
        rule for each in manifests() if each["kind"] in ("Role", "ClusterRole") for rule in each["rules"]
    ]
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "secrets" not in rule["resources"]


def test_names_in_the_values_file_are_those_of_the_manifests() -> None:
    values = yaml.safe_load((INFRA / "values.yaml").read_text())
    names = {(each["kind"], each["metadata"]["name"]) for each in manifests()}
    assert ("PersistentVolumeClaim", values["workspace"]["claim"]) in names
    assert ("TrainingRuntime", values["trainer"]["runtime"]) in names
    referenced = set(
        re.findall(r"name: (crossearth-s3|crossearth-postgres)", json.dumps(manifests()).replace('"', ""))
    )
    assert values["secrets"]["s3"]["name"] in referenced
    for address in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"):
        service = values["environment"][address].split("//")[1].split(".")[0]
        assert ("Service", service) in names


def test_compose_asks_for_its_passwords_and_opens_ports_on_this_machine_alone() -> None:
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    example = (INFRA / "compose.env.example").read_text()
    wanted = set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text()))
    assert wanted == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not re.search(r"PASSWORD=\S", example)
