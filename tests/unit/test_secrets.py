"""A secret planted wherever secrets are kept is in no byte that the commands print or write."""

import subprocess
import sys
from pathlib import Path

import pytest
from graphs import CANARY, SECRETS

from crossearth.data.errors import InputError
from crossearth.pipelines.cli import main

NOBODY = f"http://somebody:{CANARY}@127.0.0.1:9"
COMMANDS = (
    "predict scene.tif --model models:/a@champion --out map.tif",
    "pipeline compile training -o training.yaml",
    "show",
    "doctor",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_byte_of_it_comes_out(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in (*SECRETS, "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["crossearth", *command.split()])
    with pytest.raises(SystemExit):
        main()
    said = "".join(capfd.readouterr())
    assert said or any(tmp_path.iterdir())
    assert CANARY not in said
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


CRASHES = {
    "a step": "from crossearth.components.workspace import step\nwith step('.', 'train'): ",
    "the command line": "import sys; from crossearth.components import cli\n"
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
