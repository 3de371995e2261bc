"""The command line as a user meets it: in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def crossearth(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "crossearth"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, crossearth.components.cli.app as c\n"
        "try: c.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch','mlflow','rasterio','pandas','numpy','pydantic','kfp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_version_names_the_checkout() -> None:
    done = crossearth("--version")
    assert done.returncode == 0
    assert str(ROOT) in done.stdout and "git" in done.stdout


def test_the_32_settings_as_json() -> None:
    done = crossearth("settings", "--json")
    rows = json.loads(done.stdout)
    assert len(rows) == 32
    assert {"abbr", "source", "target", "gap", "class_set", "evidence"} <= set(rows[0])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "potsdam-rbg"], "potsdam-rgb"),
        (["evaluate", "nowhere"], "casid-sub"),
        (["ingest", "potsdm"], "potsdam"),
        (["preview", "nowhere"], "loveda-urban"),
        (["settings", "--catalog", "absent.yaml"], "absent.yaml"),
        (["train", "--params", "absent.yaml", "potsdam-rgb"], "absent.yaml"),
        (["no-such-step"], "no-such-step"),
    ],
)
def test_wrong_names_exit_2_with_the_choices_and_no_traceback(
    arguments: list[str], named: str, tmp_path: Path
) -> None:
    done = crossearth(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_in_params_exits_2(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("preset: mini\npresets: {mini: {train: {iteration: 3}}}\n")
    done = crossearth("train", "potsdam-rgb", cwd=tmp_path)
    assert done.returncode == 2
    assert "'iteration'" in done.stderr and "'iterations'" in done.stderr


OWN = """
domains:
  town: {class_set: road, images: images, masks: masks, labels: {0: background, 1: road}}
settings:
  T2T: {source: town, target: town, gap: in-domain}
"""


@pytest.mark.parametrize(("command", "named"), [("settings", "T2T"), ("domains", "town")])
def test_the_catalogs_of_params_are_shown_also_where_they_are_named_twice(
    command: str, named: str, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "params.yaml").write_text("preset: a\npresets: {a: {}}\ncatalogs: [own.yaml]\n")
    for again in ((), ("--catalog", str(tmp_path / "own.yaml"))):
        done = crossearth(command, "--json", *again, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert named in done.stdout
