"""A secret planted wherever secrets are kept is in no byte that the commands print or write."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from graphs import CANARY, PARAMS, SECRETS
from own_domain import draw, save
from results_factory import write_benchmark

from crossearth.components.cli import app as cli
from crossearth.components.pods.archives import fetch_archives
from crossearth.components.runtime.doctor import examine
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError, without_credentials
from crossearth.pipelines.cli import main

NOBODY = f"http://somebody:{CANARY}@127.0.0.1:9"
# exit code of each, and what it says where a secret might stand
COMMANDS = {
    "predict scene.tif --model models:/a@champion --out map.tif": (2, "127.0.0.1"),
    "pipeline compile benchmark -o benchmark.yaml": (0, "benchmark.yaml"),
    "show": (0, "P(i)2V"),
    "doctor": (1, "127.0.0.1"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_byte_of_it_comes_out(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(PARAMS, tmp_path)
    save(tmp_path / "scene.tif", draw(0)[0])
    write_benchmark(tmp_path / "artifacts/scores", load_catalog(), recipes=1)
    for name in (*SECRETS, "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["crossearth", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    said = "".join(capfd.readouterr())
    code, shown = COMMANDS[command]
    assert (stop.value.code or 0) == code and shown in said, said
    assert CANARY not in said
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "address", ["postgresql://me:{}@db/mlflow", "http://me:{}@host:port", "ftp://me:{}@host"]
)
def test_an_examination_shows_no_password(address: str, tmp_path: Path) -> None:
    store = examine(tmp_path, tmp_path, address.format(CANARY))[-1]
    assert "***@" in store.found and CANARY not in store.found


CRASHES = {
    "a step": "from crossearth.components.pods.workspace import step\nwith step('.', 'train'): ",
    "the command line": "import sys; from crossearth.components.cli import app as cli\n"
    "cli.app.command('crash')(lambda: fail())\nsys.argv[1:] = ['crash']\ncli.main()",
}


@pytest.mark.parametrize("where", CRASHES)
def test_a_traceback_shows_an_address_without_its_password(where: str, tmp_path: Path) -> None:
    fail = f"def fail(): raise RuntimeError('no answer of {NOBODY}/api')\n"
    call = "fail()" if where == "a step" else ""
    done = subprocess.run(
        [sys.executable, "-c", f"{fail}{CRASHES[where]}{call}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "http://***@127.0.0.1:9/api" in done.stderr
    assert CANARY not in done.stderr


def test_an_error_shows_an_address_without_its_password() -> None:
    error = InputError("no answer", where=f"{NOBODY}/api", next_step="postgresql://me:p@ss@db/mlflow")
    assert str(error) == "http://***@127.0.0.1:9/api: no answer\n  next: postgresql://***@db/mlflow"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("postgresql://me:p/ss@db/mlflow", "postgresql://***@db/mlflow"),
        (
            "https://store/a.zip?X-Amz-Signature=ab%2F&part=2",
            "https://store/a.zip?X-Amz-Signature=***&part=2",
        ),
        ("get https://h/?token=ab and go on", "get https://h/?token=*** and go on"),
        ("https://h/?page=2&api_key=ab", "https://h/?page=2&api_key=***"),
        (
            "models:/crossearth-town@champion of s3://tiles/a",
            "models:/crossearth-town@champion of s3://tiles/a",
        ),
    ],
)
def test_what_is_no_secret_is_shown(said: str, shown: str) -> None:
    assert without_credentials(said) == shown


def test_the_way_on_after_an_interrupt_is_said_without_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["crossearth", "pipeline", "list", "--host", NOBODY])
    monkeypatch.setattr(cli, "app", lambda **_: sys.exit(130))
    monkeypatch.setattr(cli, "describe", lambda _: None)
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert "go on with: crossearth pipeline list --host http" in said and CANARY not in said


def test_where_archives_came_from_is_noted_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = f"https://me:{CANARY}@git.example/tiles"

    def get(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        Path(command[-1], "deepglobe").mkdir(parents=True)
        assert repository in command
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", get)
    fetch_archives(tmp_path / "archives", repository, "a" * 40, "archives", ["deepglobe"])
    note = (tmp_path / "archives.from.json").read_text()
    assert "git.example" in note and CANARY not in note
    monkeypatch.setattr(subprocess, "run", lambda *_: pytest.fail("a commit's archives are here"))
    fetch_archives(tmp_path / "archives", repository, "a" * 40, "archives", ["deepglobe"])
