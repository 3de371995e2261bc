"""Marks each test by its folder and finds the shared fixtures, which are never part of the project."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster import NAMESPACE, OWN_POD, Cluster, serving
from graphs import PARAMS, RECIPES, ROOT, run_dvc, run_pipeline

from crossearth.data.catalog.domains import Catalog
from crossearth.data.catalog.loader import load_catalog

TESTS = Path(__file__).parent
SHARED = Path(os.environ.get("CROSSEARTH_FIXTURES", TESTS.parent.parent / "shared"))
FOLDERS = {"unit", "parity", "imagery", "pipeline", "container", "browser", "faults", "compatibility", "gpu"}
# the longest files of `make test` and of the other suites: processes begin with them, and end together
LONG = (
    "container/test_containers.py",
    "faults/test_bytes.py",
    "imagery/test_roads.py",
    "pipeline/test_torchrun.py",
    "pipeline/test_demo.py",
    "pipeline/test_dvc_repro.py",
    "faults/test_pipeline.py",
    "pipeline/test_contributing.py",
    "compatibility/test_lowest.py",
    "imagery/test_ablation.py",
    "pipeline/test_counts.py",
    "faults/test_interrupted_training.py",
    "pipeline/test_tune.py",
    "unit/components/test_train.py",
    "unit/components/test_predict.py",
    "unit/components/test_synthetic.py",
    "unit/components/test_ingest.py",
    "unit/components/test_validation.py",
    "unit/test_bad_input.py",
    "unit/test_dependencies.py",
    "unit/components/test_two_processes.py",
    "unit/components/test_report.py",
    "unit/components/test_register.py",
    "unit/components/test_fit_styles.py",
    "unit/components/test_evaluate.py",
    "unit/components/test_annotations.py",
    "unit/components/test_init.py",
    "unit/data/test_reading.py",
    "unit/components/test_scenes.py",
    "unit/pipelines/test_pipelines.py",
    "unit/pipelines/test_kubeflow_rules.py",
    "unit/components/test_commands.py",
    "unit/data/test_catalog.py",
    "unit/test_fuzz.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder not in FOLDERS:
            raise pytest.UsageError(f"{item.nodeid}: its folder is none of {sorted(FOLDERS)}")
        item.add_marker(folder)
    place = {TESTS / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """pytest-xdist's own groups, marks of tests, are not seen by pytest 9.2."""
    if config.getoption("dist") != "loadfile":
        return None
    from pool import Pool

    return Pool(config, log)


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here (set CROSSEARTH_FIXTURES)")
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    return _shared("parity")


@pytest.fixture(scope="session")
def imagery_dir() -> Path:
    return _shared("imagery")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    return _shared("weights")


@pytest.fixture(scope="session")
def kubeflow_dir() -> Path:
    """Runs recorded from a real control plane."""
    return _shared("kubeflow")


@pytest.fixture
def pods_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body of a component may run in this process: what it sets is set back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(signal, "signal", lambda *_: None)


@pytest.fixture
def in_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Cluster], SimpleNamespace]]:
    """Puts the test into a pod of a cluster; gives what MLflow is told there: `tags` and `status`."""
    import kubernetes

    from crossearth.components.pods import finish, own_pod

    told = SimpleNamespace(tags={}, status="", ended=[])

    @contextmanager
    def start_run(_: str, *, key: str, tags: Mapping[str, str]) -> Iterator[SimpleNamespace]:
        told.tags, told.status = dict(tags), "FINISHED"
        yield SimpleNamespace(
            log_metrics=lambda _: None, end_as=lambda status: setattr(told, "status", status)
        )

    (tmp_path / "namespace").write_text(NAMESPACE)
    monkeypatch.setattr(own_pod, "NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KFP_POD_NAME", OWN_POD)
    monkeypatch.setattr(finish, "BACKOFF", 0.0)
    monkeypatch.setattr(finish, "start_run", start_run)
    monkeypatch.setattr(finish, "end_runs", lambda *ended: told.ended.append(ended) or 0)
    monkeypatch.setattr(kubernetes.config, "load_incluster_config", lambda: None)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with ExitStack() as stack:

        def enter(cluster: Cluster) -> SimpleNamespace:
            configured = kubernetes.client.Configuration(host=stack.enter_context(serving(cluster)))
            monkeypatch.setattr(kubernetes.client.Configuration, "_default", configured)
            return told

        yield enter


@pytest.fixture(scope="session")
def documented() -> Callable[[str], list[str]]:
    """The code blocks of a language in the README and in own-data.md: what they show is what tests run."""
    text = "".join((TESTS.parent / name).read_text() for name in ("README.md", "docs/own-data.md"))
    return lambda language: re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The benchmark's."""
    return load_catalog()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with short trainings for the tests of one file.

    Its name is the package's: with the folder above it on the path, its code comes before the installed.
    """
    folder = tmp_path_factory.mktemp("checkout") / "crossearth"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("iterations: 80", "iterations: 2", 1))
    return folder


@pytest.fixture(scope="session")
def short_params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's params.yaml with short trainings."""
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    text = PARAMS.read_text()
    assert "iterations: 80" in text
    path.write_text(text.replace("iterations: 80", "iterations: 8", 1))
    return path


@pytest.fixture(scope="session")
def with_dvc(short_params: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which dvc has scored two recipes."""
    folder = tmp_path_factory.mktemp("dvc")
    run_dvc(folder, short_params)
    return folder


@pytest.fixture(scope="session")
def with_kubeflow(short_params: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the benchmark's graph has scored two recipes, each step a process."""
    folder = tmp_path_factory.mktemp("kubeflow")
    recipes = [part for recipe in RECIPES for part in ("--recipe", recipe)]
    done = run_pipeline("benchmark", folder, *recipes, "--stylize-shards", "1", params=short_params)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    return folder / "workspace"
