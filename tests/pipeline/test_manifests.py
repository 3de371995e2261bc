"""infra/kustomize against the schemas of Kubernetes and Kubeflow Trainer, and against our rules of Kubeflow.

The overlays are built by `kubectl kustomize`, as `kubectl apply -k` builds them.
"""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install -e '.[services]'")
pytest.importorskip("kubeflow_trainer_api", reason="pip install -e '.[cluster]'")

from kubeflow_rules import MANIFESTS, broken  # noqa: E402
from manifest_schema import INFRA, check  # noqa: E402

KUSTOMIZE = INFRA / "kustomize"
OVERLAYS = ("standalone", "profile")


def manifests() -> list[Any]:
    """As they stand in the files."""
    return [
        document
        for path in sorted(KUSTOMIZE.glob("*/*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


def built(folder: Path) -> list[Any]:
    """What `kubectl apply -k` would create."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which builds the overlays, is not here")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Any]:
    return built(KUSTOMIZE / request.param)


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
    for kustomization in KUSTOMIZE.glob("*/kustomization.yaml"):
        listed = set(yaml.safe_load(kustomization.read_text())["resources"]) - {"../base"}
        files = {path.name for path in kustomization.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert files == listed, kustomization


def test_an_overlay_keeps_the_rules_of_a_real_control_plane(overlay: list[Any]) -> None:
    for manifest in overlay:
        check(manifest)
    assert broken(MANIFESTS, overlay) == {}
    images = re.findall(r"\"image\": \"([^\"]*)", json.dumps(overlay))
    assert "crossearth" not in images, "each has the registry's name"


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_takes_the_runtime_of_kubeflow_trainer(name: str, tmp_path: Path) -> None:
    shutil.copytree(KUSTOMIZE, tmp_path / "kustomize")
    kustomization = tmp_path / "kustomize" / name / "kustomization.yaml"
    text, changes = re.subn(
        r"(components: ).*# with Kubeflow Trainer: (.*)", r"\1\2", kustomization.read_text()
    )
    assert changes == 1
    kustomization.write_text(text)
    with_runtime = built(kustomization.parent)
    assert broken(MANIFESTS, with_runtime) == {"kinds": ["trainer.kubeflow.org"]}
    (runtime,) = [each for each in with_runtime if each["kind"] == "TrainingRuntime"]
    assert runtime["metadata"]["namespace"] == yaml.safe_load(text)["namespace"]
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (node,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert node["image"].startswith("registry.example.com/crossearth@sha256:")


def _job(name: str) -> Callable[[Any], bool]:
    return lambda each: each["kind"] == "Job" and each["metadata"]["name"] == name


def _kind(kind: str) -> Callable[[Any], bool]:
    return lambda each: each["kind"] == kind


NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "crossearth"}}
POLICY = {"kind": "NetworkPolicy", "metadata": {"name": "n"}, "spec": {"podSelector": {}}}
RUNTIME = {
    "kind": "TrainingRuntime",
    "metadata": {"name": "r"},
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
}
ALIEN = {"template": {"spec": {"template": {"spec": {"containers": [{"name": "node"}]}}}}}
RUNTIME["spec"] = {"template": {"spec": {"replicatedJobs": [ALIEN]}}}  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("rule", "damage", "words"),
    [
        ("namespace", lambda all_: all_.append(NAMESPACE), "Namespace/crossearth"),
        (
            "namespace",
            lambda all_: next(filter(_kind("RoleBinding"), all_))["subjects"][0].update(namespace="other"),
            "'other'",
        ),
        (
            "cluster",
            lambda all_: all_.append({**NAMESPACE, "kind": "ClusterRole", "rules": []}),
            "ClusterRole/crossearth",
        ),
        (
            "addresses",
            lambda all_: next(filter(_kind("Deployment"), all_))["spec"].update(x="http://a.kubeflow.svc:1"),
            "Deployment/crossearth-mlflow",
        ),
        (
            "rights",
            lambda all_: next(filter(_kind("Role"), all_))["rules"].pop(1),
            "no right to get configmaps",
        ),
        (
            "rights",
            lambda all_: next(filter(_kind("Role"), all_))["rules"][2].pop("resourceNames"),
            "Secrets of any name may be read",
        ),
        (
            "sidecars",
            lambda all_: next(filter(_job("crossearth-bucket"), all_))["spec"]["template"].pop("metadata"),
            "Job/crossearth-bucket",
        ),
        (
            "pod-security",
            lambda all_: next(filter(_job("crossearth-workspace"), all_))["spec"]["template"]["spec"][
                "containers"
            ][0]["securityContext"]["capabilities"]["add"].append("SYS_ADMIN"),
            "Job/crossearth-workspace: capability SYS_ADMIN",
        ),
        (
            "pod-security",
            lambda all_: next(filter(_kind("Deployment"), all_))["spec"]["template"]["spec"].update(
                hostNetwork=True, volumes=[{"name": "v", "hostPath": {"path": "/"}}]
            ),
            "Deployment/crossearth-mlflow: hostPath",
        ),
        ("selectors", lambda all_: all_.append({**POLICY, "apiVersion": "v1"}), "selects every pod"),
        (
            "selectors",
            lambda all_: next(filter(_kind("Service"), all_))["spec"].update(selector={"app": "mlflow"}),
            "selects ['mlflow']",
        ),
        ("kinds", lambda all_: all_.append(RUNTIME), "trainer.kubeflow.org"),
        ("runtimes", lambda all_: all_.append(RUNTIME), "restartPolicy None"),
        ("runtimes", lambda all_: all_.append(RUNTIME), "workingDir None"),
        (
            "claim",
            lambda all_: all_.remove(next(filter(_job("crossearth-workspace"), all_))),
            "crossearth-workspace stays root's",
        ),
    ],
)
def test_a_rule_finds_what_it_is_for(rule: str, damage: Callable[[Any], Any], words: str) -> None:
    damaged = copy.deepcopy(built(KUSTOMIZE / "profile"))
    damage(damaged)
    assert words in "\n".join(broken(MANIFESTS, damaged)[rule])


def test_pods_run_unprivileged_and_secrets_come_by_reference() -> None:
    text = "\n".join(path.read_text() for path in KUSTOMIZE.glob("*/*.yaml"))
    assert "kind: Secret" not in text
    for manifest in manifests():
        if manifest["kind"] not in ("Deployment", "StatefulSet", "Job"):
            continue
        pod = manifest["spec"]["template"]["spec"]
        owner = manifest["kind"] == "Job" and manifest["metadata"]["name"] == "crossearth-workspace"
        assert owner or pod["securityContext"]["runAsNonRoot"], identity(manifest)
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                # root may give files away and do nothing else
                **(
                    {"runAsUser": 0, "runAsGroup": 0, "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}}
                    if owner
                    else {}
                ),
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
        assert ("Service", urlsplit(values["environment"][address]).hostname) in names


def test_compose_asks_for_its_passwords_and_opens_ports_on_this_machine_alone() -> None:
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    example = (INFRA / "compose.env.example").read_text()
    wanted = set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text()))
    assert wanted == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not re.search(r"PASSWORD=\S", example)
