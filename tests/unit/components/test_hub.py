"""Kubeflow Hub is told what MLflow's registry has: by its own client, at a server that the test starts."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, hub_server
from registering import Workshop

from crossearth.components.register import decisions
from crossearth.components.register.decisions import decide_all
from crossearth.components.register.publish import publish
from crossearth.components.register.registry import CHAMPION, Registry
from crossearth.components.register.step import rollback
from crossearth.components.runtime import hub as asking
from crossearth.components.runtime.doctor import examine
from crossearth.components.runtime.hub import refuse_own
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.tracking_internals import served_at
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError, PartlyDoneError
from crossearth.pipelines.cli import main

RECIPE, NAME, NOWHERE = "vaihingen-irrg", "crossearth-vaihingen-irrg", "http://127.0.0.1:9"
BUCKET = "s3://models"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Iterator[Workshop]:
    """Two versions in MLflow's registry, of which the first is champion; they differ in their tags alone."""
    folder = tmp_path_factory.mktemp("hub") / "artifacts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow/mlflow.db")
        made = Workshop(folder, catalog, catalog.recipe(RECIPE))
        made.train(1)
        assert made.register().promoted
        client, first = Registry().client, Registry().version(NAME, "1")
        tags = {**first.tags, "identity": "other scores"}
        client.create_model_version(NAME, first.source, first.run_id, tags, description=first.description)
        yield made


@pytest.fixture
def hub(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub that is to be told; MLflow's files lie where everybody finds them."""
    monkeypatch.setattr(Registry, "location", lambda _, made: f"{BUCKET}/{made.name}/{made.version}")
    monkeypatch.delenv(asking.TOKEN_PATH, raising=False)
    with hub_server() as server:
        monkeypatch.setenv(asking.URL, server.url + "/")
        yield server


def client(hub: Hub) -> Any:
    """As people use it."""
    kubeflow = pytest.importorskip("kubeflow.hub")
    with pytest.warns(UserWarning, match="token is missing"):
        return kubeflow.ModelRegistryClient(hub.url, author="reader")


def flags(hub: Hub) -> dict[str, bool]:
    return {
        each["name"]: each["customProperties"][CHAMPION]["bool_value"] for each in hub.kept["model_versions"]
    }


def test_the_hub_is_told_what_its_client_asks_for(hub: Hub, workshop: Workshop) -> None:
    assert publish({NAME: "1"}, "again") == hub.url
    made = Registry().version(NAME, "1")
    reader = client(hub)
    artifact, version = reader.get_model_artifact(NAME, "1"), reader.get_model_version(NAME, "1")
    assert [each.name for each in reader.list_models()] == [NAME]
    assert artifact.uri == f"{BUCKET}/{NAME}/1"
    assert artifact.model_format_name == "mlflow"
    assert artifact.model_format_version == Registry().written_by(made)
    assert version.description.startswith(f"# crossearth: {RECIPE}")
    told = version.custom_properties
    wanted = {
        "recipe": RECIPE,
        "mlflow_run_id": made.run_id,
        "digest": made.tags["identity"],
        "weights_sha256": made.tags["weights"],
        "champion": True,
    }
    assert told | wanted == told
    assert told["mlflow_model"] == f"models:/{NAME}/1"
    assert told["classes"].startswith("impervious") and told["bands"] == "near infrared, red, green"
    assert told["gsd_m"] == pytest.approx(0.09) and "research" in told["licence"]
    assert told["mIoU potsdam-irrg"] == pytest.approx(0.5, abs=1e-6)
    assert told["mIoU vaihingen-irrg"] == pytest.approx(0.8, abs=1e-6)
    assert told["all/unseen-worst"] == pytest.approx(0.4, abs=1e-6)


def test_a_second_time_adds_nothing(hub: Hub, workshop: Workshop) -> None:
    publish({NAME: "1"}, "again")
    assert hub.written == ["POST registered_models", "POST model_versions", "POST model_versions/2/artifacts"]
    publish({NAME: "1"}, "again")
    assert len(hub.written) == 3


def test_the_champion_is_told_with_every_version_and_moves(
    hub: Hub, workshop: Workshop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop.folder.parent)
    publish({NAME: "2"}, "again")
    assert flags(hub) == {"2": False, "1": True}
    registry = Registry()
    registry.move(NAME, CHAMPION, registry.version(NAME, "2"), "better")
    try:
        hub.kept["model_versions"][0]["customProperties"]["note"] = {
            "string_value": "of a person",
            "metadataType": "MetadataStringValue",
        }
        publish({NAME: "2"}, "again")
        assert flags(hub) == {"2": True, "1": False}
        code, *said = type_(f"crossearth rollback {RECIPE}", capsys, monkeypatch)
        assert code == 0 and f"told: Kubeflow Hub at {hub.url}" in said[0], said
        assert flags(hub) == {"2": False, "1": True}
        assert hub.kept["model_versions"][0]["customProperties"]["note"]["string_value"] == "of a person"
    finally:
        registry.move(NAME, CHAMPION, registry.version(NAME, "1"), "as before")


def test_what_was_cut_short_is_completed(hub: Hub, workshop: Workshop) -> None:
    hub.fails["artifacts"] = 1
    with pytest.raises(
        PartlyDoneError, match=r"(?s)has .*irrg version 1; .* again: crossearth x\n.*HTTP 503"
    ):
        publish({NAME: "1"}, "crossearth x")
    assert not hub.kept["artifacts"]
    publish({NAME: "1"}, "again")
    assert [each["uri"] for each in hub.kept["artifacts"]] == [f"{BUCKET}/{NAME}/1"]
    hub.kept["artifacts"].clear()
    hub.fails["artifacts"] = 2
    publish({NAME: "1"}, "again", pauses=(0, 0))
    assert len(hub.kept["artifacts"]) == 1, "a server that is away for a moment is asked again"


def test_another_model_of_the_same_version_is_left_alone(hub: Hub, workshop: Workshop) -> None:
    publish({NAME: "1"}, "again")
    hub.kept["model_versions"][0]["customProperties"]["digest"]["string_value"] = "other"
    hub.written.clear()
    with pytest.raises(PartlyDoneError, match=r"version 1 of .* is another model there"):
        publish({NAME: "1"}, "again")
    assert not hub.written


def test_a_model_that_nobody_else_finds_is_not_told(
    hub: Hub, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workshop.folder}/mlflow/mlflow.db")
    monkeypatch.setenv(asking.URL, hub.url)
    with pytest.raises(PartlyDoneError, match="an address of this machine alone"):
        publish({NAME: "1"}, "again")
    assert not hub.written


@pytest.mark.parametrize(
    ("uri", "own"),
    [
        ("/workspace/mlflow", True),
        ("file:///a", True),
        ("sqlite:////a.db", True),
        ("http://localhost:5000/a", True),
        ("http://127.0.0.1:5000/a", True),
        ("http://[::1]:5000/a", True),
        ("http://crossearth-mlflow:5000/a", False),
        ("http://10.0.0.7/a", False),
        ("s3://bucket/a", False),
    ],
)
def test_an_address_of_this_machine_is_told_from_one_for_all(uri: str, own: bool) -> None:
    if own:
        with pytest.raises(InputError, match="by the name that it has in the cluster"):
            refuse_own(uri)
    else:
        refuse_own(uri)


def test_what_a_server_hands_out_is_called_by_its_name_without_the_login() -> None:
    uri = served_at("mlflow-artifacts:/1/models/m-1/artifacts", "https://anna:secret@mlflow.example/at")
    wanted = "https://mlflow.example/at/api/2.0/mlflow-artifacts/artifacts/1/models/m-1/artifacts"
    assert uri == wanted


@pytest.mark.parametrize("kind", ["variable", "file"])
def test_a_login_is_a_token_of_the_environment_or_of_a_file(
    kind: str, hub: Hub, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "canary5f3"
    with pytest.raises(PartlyDoneError, match=r"(?s)login is refused \(HTTP 401\).*CROSSEARTH_HUB_TOKEN"):
        publish({NAME: "1"}, "again")
    (tmp_path / "token").write_text(f"{hub.token}\n")
    named = {"variable": (asking.TOKEN, hub.token), "file": (asking.TOKEN_PATH, str(tmp_path / "token"))}
    monkeypatch.setenv(*named[kind])
    publish({NAME: "1"}, "again")
    assert hub.token not in str(hub.kept)
    monkeypatch.setenv(named[kind][0], "other")
    with pytest.raises(PartlyDoneError) as refused:
        publish({NAME: "1"}, "again")
    assert ("login is refused" if kind == "variable" else "other") in str(refused.value)


@pytest.mark.parametrize(
    "url", ["model-registry:8080", "ftp://hub", "http://", "http://a:b@hub", "http://h:x"]
)
def test_an_address_that_is_none_is_refused_before_anything_is_done(
    url: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(asking.URL, url)
    words = r"(?s)CROSSEARTH_HUB_URL: .* is no address.*http://model-registry"
    for work in (workshop.register, lambda: rollback(workshop.recipe), lambda: publish({NAME: "1"}, "again")):
        with pytest.raises(InputError, match=words) as no:
            work()
        assert "a:b" not in str(no.value)


def test_nobody_is_told_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(asking.URL, raising=False)
    assert publish({NAME: "1"}, "again") == ""


def type_(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0, *capsys.readouterr()


def test_the_command_says_what_is_left_and_tells_it_the_next_time(
    hub: Hub, workshop: Workshop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop.folder.parent)
    monkeypatch.setenv(asking.URL, NOWHERE)
    command = f"crossearth register {RECIPE}"
    code, out, err = type_(command, capsys, monkeypatch)
    assert code == 1
    assert "1 (this one)" in out and "wrote artifacts/registry" in out
    assert f"MLflow's registry has {NAME} version 1" in err and f"then again: {command}\n" in err
    assert f"{NOWHERE}: Kubeflow Hub does not answer" in err and "Traceback" not in err
    monkeypatch.setenv(asking.URL, hub.url)
    code, out, err = type_(command, capsys, monkeypatch)
    assert code == 0 and f"told: Kubeflow Hub at {hub.url}" in out
    assert flags(hub) == {"1": True}


def test_a_pod_tells_it_and_fails_where_it_cannot(
    hub: Hub, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop.folder.parent)
    params = Params(preset="mini", presets={"mini": {}})
    promoted, table = decide_all(params, workshop.catalog, [RECIPE])
    assert promoted == [RECIPE] and f"| {RECIPE} | 1 | yes | 1 |" in re.sub(" +", " ", table)
    assert flags(hub) == {"1": True}
    monkeypatch.setattr(decisions, "HUB_PAUSES_S", ())
    monkeypatch.setenv(asking.URL, NOWHERE)
    with pytest.raises(PartlyDoneError, match="submit the pipeline with the same parameters"):
        decide_all(params, workshop.catalog, [RECIPE])


def test_the_hub_is_looked_at_before_anything_is_computed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(tracking_uri: str = "http://10.255.255.1:0") -> list[tuple[str, str]]:
        findings = examine(Path(), Path(), tracking_uri)
        return [(each.verdict, each.found) for each in findings if each.check == "Kubeflow Hub"]

    assert found() == [("fine", hub.url)]
    ((verdict, words),) = found(os.environ["MLFLOW_TRACKING_URI"])
    assert verdict == "missing" and "this machine alone" in words
    monkeypatch.setenv(asking.URL, f"{hub.url}/elsewhere")
    ((verdict, words),) = found()
    assert verdict == "missing" and "no model registry of Kubeflow" in words
    monkeypatch.delenv(asking.URL)
    assert found() == []


def test_asking_leaves_the_processs_logging_alone(hub: Hub, workshop: Workshop) -> None:
    before = list(logging.getLogger().handlers)
    for name in [name for name in sys.modules if name.split(".")[0] == "model_registry"]:
        del sys.modules[name]
    logging.getLogger().handlers.clear()
    try:
        asking.ask(asking.look)
        assert not logging.getLogger().handlers
    finally:
        logging.getLogger().handlers[:] = before
