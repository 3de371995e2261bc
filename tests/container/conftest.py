"""A Docker engine and the image, both made here: no registry is needed.

The engine is the one that answers, else Debian's, started for the tests; the base is made by mmdebstrap.
Both stay on the machine, so that a second run builds what changed and nothing else.
"""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "crossearth-base", "crossearth-test"
BASE_PACKAGES = "python3,python3-venv,ca-certificates,git,libexpat1,libgomp1"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
ENGINE_PACKAGES = {"dockerd": "docker.io", "mmdebstrap": "mmdebstrap"}


def docker(*arguments: str, stdin: bytes | None = None, **more: str) -> str:
    environment = {**os.environ, "DOCKER_BUILDKIT": "0", **more}
    done = subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, env=environment, check=False
    )
    if done.returncode:
        pytest.fail(f"docker {' '.join(arguments)}: {(done.stdout + done.stderr).decode()[-4000:]}")
    return done.stdout.decode()


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
        if not shutil.which("apt-get"):
            pytest.skip(f"no {', '.join(absent)} here")
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent], check=True)
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
            for _ in range(60):
                if answers():
                    break
                time.sleep(1)
            else:
                pytest.skip(f"no engine can be started here: {(folder / 'log').read_text()[-1000:]}")
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
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return {"PIP_FIND_LINKS": f"http://127.0.0.1:{self.server.server_address[1]}/"}

    def __exit__(self, *_: object) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
