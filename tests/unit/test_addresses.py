"""Addresses of servers that are none: refused by the name of what holds them."""

import pytest

from crossearth.components.register.registry import Registry
from crossearth.components.runtime import doctor
from crossearth.data.common.errors import InputError
from crossearth.data.tiles.store import list_objects

NO_SERVERS = ("http://mlflow:port", "http://[::1", "nonsense://mlflow")


@pytest.mark.parametrize("address", NO_SERVERS)
def test_the_doctor_finds_a_tracking_server_missing(address: str) -> None:
    finding = doctor._tracking(address)
    assert finding.verdict == "missing" and address in finding.found


@pytest.mark.parametrize(
    "address", ["sqlite:///mlflow.db", "postgresql+psycopg2://mlflow@db/mlflow", "mlruns"]
)
def test_the_doctor_knows_stores_without_a_server(address: str) -> None:
    assert doctor._tracking(address).verdict == "fine"


@pytest.mark.parametrize("address", [*NO_SERVERS, "postgresql+nodriver://mlflow@db/mlflow"])
def test_the_registry_refuses_what_it_cannot_reach(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(InputError, match=r"the model registry (does not answer|cannot be used)"):
        Registry()


def test_the_store_refuses_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL: Invalid endpoint: nonsense"):
        list_objects("s3://bucket/tiles")
