"""What is published: a wheel that holds the tree and runs in an empty folder, an sdist that can be tested."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import mistune
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.pipeline


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    ended = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def tracked() -> list[str]:
    listed = run("git", "ls-files", cwd=ROOT).split("\n")
    return [name for name in listed if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel), the wheel built from the sdist as an index's users would."""
    folder = tmp_path_factory.mktemp("built")
    for name in tracked():
        place = folder / "tree" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "-o", folder / "dist", folder / "tree", cwd=folder)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_what_the_tree_holds(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name.removeprefix("crossearth/") for name in wheel.namelist() if ".dist-info/" not in name}
    code = ("data/", "model/", "components/", "pipelines/")
    files = {name for name in tracked() if name.startswith(code) and not name.endswith(".md")}
    files = {name for name in files if not name.startswith("components/api/")}
    assert held == files | {"__init__.py", "py.typed", "benchmark/params.yaml", "benchmark/dvc.yaml"}


def test_the_sdist_holds_what_its_tests_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(tracked()) - held <= {".gitattributes"}


def test_no_link_of_the_description_needs_the_clone(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        description = Parser().parsestr(wheel.read(metadata).decode()).get_payload()
    page = str(mistune.create_markdown(escape=False, plugins=["table"])(description))
    found = re.findall('(?:href|src)="([^"]+)"', page)
    assert len(found) > 1 and all(link.startswith("https://") for link in found), found
    assert "make demo" in page and "Kubeflow" in page


def test_an_index_takes_both(built: tuple[Path, Path]) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=built[0].parent)


def test_the_wheel_works_in_an_empty_folder(built: tuple[Path, Path], tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(site)
    start = "import crossearth.data, sys; print(crossearth.data.__file__)"
    assert run(sys.executable, "-c", start, cwd=here, PYTHONPATH=str(site)).startswith(str(site))

    def crossearth(*command: str) -> str:
        entry = "from crossearth.pipelines.cli import main; main()"
        return run(sys.executable, "-c", entry, *command, cwd=here, PYTHONPATH=str(site))

    crossearth("init", "--benchmark", ".")
    assert (here / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    crossearth("plan")
    crossearth("pipeline", "compile", "benchmark", "-o", "benchmark.yaml")
    assert (here / "benchmark.yaml").stat().st_size > 10_000
