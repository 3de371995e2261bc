"""A Docker engine, the image, the services of infra/compose.yaml, and one run of the benchmark among them.

No registry is needed. The engine is the one that answers, else Debian's, started for the tests; the base is
made by mmdebstrap. Both stay on the machine, so that a second run builds what changed and nothing else.
"""

import functools
import http.server
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from graphs import RECIPES, ROOT, run_pipeline
from services import KEYS, docker, free_port, object_store, postgres, wait_for

BASE, IMAGE = "crossearth-base", "crossearth-test"
BASE_PACKAGES = "python3,python3-venv,ca-certificates,git,libexpat1,libgomp1"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# always the same one: another address would be another build to Docker's cache. Above those of `free_port`
# and below those that the system gives to clients
WHEELS_PORT = 31217
ENGINE_PACKAGES = {"dockerd": "docker.io", "mmdebstrap": "mmdebstrap"}


def answers() -> bool:
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    return shutil.which("docker") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Docker engine that `docker` and its SDK find."""
    if answers():
        yield
        return
    if os.geteuid() != 0:
        pytest.skip("no Docker engine answers, and only root can start one")
    absent = [package for program, package in ENGINE_PACKAGES.items() if not shutil.which(program)]
    if absent:
        pytest.skip(f"no Docker engine answers, and none can be made: apt-get install {' '.join(absent)}")
    folder = tmp_path_factory.mktemp("engine")
    address = f"unix://{folder}/docker.sock"
    command = [
        "dockerd",
        "--bridge=none",
        "--iptables=false",
        "--host",
        address,
        "--pidfile",
        f"{folder}/pid",
    ]
    with (folder / "log").open("w") as log, pytest.MonkeyPatch.context() as environment:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        environment.setenv("DOCKER_HOST", address)
        try:
            deadline = time.monotonic() + 60
            while not answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"no engine can be started here: {(folder / 'log').read_text()[-1000:]}")
                time.sleep(0.3)
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture(scope="session")
def image(engine: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image that infra/Containerfile makes, on a base made here."""
    if not docker("images", "--quiet", BASE).strip():
        root = tmp_path_factory.mktemp("base") / "root.tar"
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={BASE_PACKAGES}"),
                # where a proxy of one's own stands before the registries
                *(f"--customize-hook=copy-in {CERTIFICATES} /etc/ssl/certs", "bookworm", str(root)),
            ],
            check=True,
        )
        docker("import", str(root), BASE)
        root.unlink()
    with wheels() as found:
        arguments = [f"--build-arg={name}={value}" for name, value in found.items()]
        docker(
            *(
                "build",
                "--quiet",
                "--network=host",
                "--file",
                str(ROOT / "infra/Containerfile"),
                "--tag",
                IMAGE,
            ),
            *(f"--build-arg=BASE={BASE}", "--build-arg=TORCH_INDEX=", *arguments, str(ROOT)),
        )
    return IMAGE


class wheels:  # noqa: N801
    """Serves the folder of wheels that pip is set up with here, if there is one, to the build."""

    def __enter__(self) -> dict[str, str]:
        setting = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
        folder = subprocess.run(setting, capture_output=True, text=True, check=False).stdout.strip()
        self.server = None
        if not Path(folder or "/nowhere").is_dir():
            return {}
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", WHEELS_PORT), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return {"PIP_FIND_LINKS": f"http://127.0.0.1:{WHEELS_PORT}/"}

    def __exit__(self, *_: object) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()


@pytest.fixture(scope="session")
def database() -> Iterator[dict[str, str]]:
    """An empty database of MLflow's; what libpq needs to connect."""
    with postgres("mlflow", "a password") as login:
        yield login


@pytest.fixture(scope="session")
def services(
    image: str, database: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """MLflow on PostgreSQL with its artifacts in S3, as infra/compose.yaml has it; the environment of a user.

    MLflow's server and the making of its bucket are compose's own commands, in the image; PostgreSQL is
    Debian's and the S3 server is PyPI's.
    """
    port = free_port()
    name, address = f"crossearth-mlflow-{port}", f"http://127.0.0.1:{port}"
    with object_store(tmp_path_factory.mktemp("s3"), "another") as s3:
        places = {
            "http://object-store:8333": s3,
            "@postgres/": f"@{database['host']}:{database['port']}/",
            "${POSTGRES_PASSWORD}": database["password"],
            "${S3_ACCESS_KEY_ID}": KEYS["AWS_ACCESS_KEY_ID"],
            "${S3_SECRET_ACCESS_KEY}": KEYS["AWS_SECRET_ACCESS_KEY"],
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=5000": f"--port={port}",
        }
        docker("run", "--rm", *composed("bucket", image, places))
        docker("run", "--detach", "--name", name, *composed("mlflow", image, places))
        try:
            wait_for(lambda: urllib.request.urlopen(f"{address}/health"), lambda: docker("logs", name), 120)
            yield {"MLFLOW_TRACKING_URI": address, "AWS_ENDPOINT_URL": s3, **KEYS}
        finally:
            docker("rm", "--force", name)


def composed(service: str, image: str, places: dict[str, str]) -> list[str]:
    """Arguments of `docker run` for one of infra/compose.yaml's services.

    Args:
        places: what stands for something else on this machine -> what it is here.
    """
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"][service]

    def here(text: str) -> str:
        for there, local in places.items():
            text = text.replace(there, local)
        return text

    command = compose["command"]
    return [
        *("--network=host", *(["--read-only"] if compose.get("read_only") else [])),
        *(f"--tmpfs={path}" for path in compose.get("tmpfs", [])),
        *(f"--env={name}={here(value)}" for name, value in compose["environment"].items()),
        image,
        *map(here, shlex.split(command) if isinstance(command, str) else command),
    ]


@pytest.fixture(scope="session")
def scored(
    image: str, services: dict[str, str], short_params: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A workspace in which the benchmark's graph has scored two recipes in containers, with the services."""
    folder = tmp_path_factory.mktemp("containers")
    recipes = [part for recipe in RECIPES for part in ("--recipe", recipe)]
    store = ("--set", "store=s3://crossearth/domains")
    done = run_pipeline(
        *("benchmark", folder, "--docker", "--image", image, *recipes, *store),
        params=short_params,
        **services,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    return folder / "workspace"
