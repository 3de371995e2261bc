"""What kfp's local runner must go on doing for pipelines/containers.py."""

from types import SimpleNamespace
from typing import Any

import docker
import pytest
from kfp.local import DockerRunner
from kfp.local.docker_task_handler import DockerTaskHandler
from kfp.local.status import Status

from crossearth.pipelines.containers import kept_exit_codes


class Engine:
    """A Docker engine whose containers end with `code` before anybody asks them."""

    def __init__(self, code: int) -> None:
        self.code, self.options, self.removed = code, {}, False
        self.containers = SimpleNamespace(run=self.run)
        self.images = SimpleNamespace(list=list, pull=lambda image: None)

    def run(self, image: str, command: list[str], **options: Any) -> Any:
        self.options = {"image": image, "command": command, **options}
        return SimpleNamespace(logs=self.ask, wait=self.ask, remove=self.remove)

    def ask(self, stream: bool = False) -> Any:
        if self.options.get("auto_remove"):
            raise docker.errors.NotFound("the engine has removed it")
        return [b"a line\n"] if stream else {"StatusCode": self.code}

    def remove(self, force: bool) -> None:
        self.removed = force

    def info(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def run(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Status:
    monkeypatch.setattr(docker, "from_env", lambda: engine)
    runner = DockerRunner(shm_size="1g")
    return DockerTaskHandler("image", ["false"], "/root", runner, {"A": "b"}).run()


@pytest.mark.parametrize(("code", "status"), [(3, Status.FAILURE), (0, Status.SUCCESS)])
def test_a_step_has_the_exit_code_of_its_container(
    code: int, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(code)
    with kept_exit_codes():
        assert run(engine, monkeypatch) is status
    assert engine.removed
    assert engine.options["image"] == "image" and engine.options["command"] == ["false"]
    assert engine.options["environment"] == {"A": "b"} and engine.options["shm_size"] == "1g"


def test_kfp_alone_still_takes_a_failure_for_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once this fails, kfp is mended and pipelines/containers.py can go."""
    assert run(Engine(3), monkeypatch) is Status.SUCCESS
