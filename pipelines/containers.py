"""The only file that changes kfp's private code: how its local runner runs a step in a container."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def kept_exit_codes() -> Iterator[None]:
    """Makes kfp ask for the exit code of a container that is still there.

    kfp has the engine remove a container when it ends. If the container is gone when kfp asks for its exit
    code, kfp takes the step for a success (kubeflow/pipelines, pull request 13907).
    """
    from kfp.local import docker_task_handler

    before = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run_container
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = before


def run_container(
    client: Any, image: str, command: Sequence[str], volumes: Mapping[str, Any], **options: Any
) -> int:
    """Runs a command in a container, prints its output, removes the container; returns the exit code.

    `options` are those of docker's `containers.run`.
    """
    from docker.errors import APIError

    container = client.containers.run(image, command, detach=True, volumes=volumes, **options)
    try:
        for piece in container.logs(stream=True):
            print(piece.decode(errors="replace"), end="")
        return int(container.wait()["StatusCode"])
    finally:
        with suppress(APIError):  # who stopped the run has removed it
            container.remove(force=True)
