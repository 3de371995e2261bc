"""The lowest versions that pyproject.toml allows are installed, tested, and learn and map own tiles.

torch and torchvision stay as they are installed: the lowest have no wheel for CPUs on the usual index, and
gigabytes of CUDA beside it.
"""

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KEPT = ("torch", "torchvision")
# kfp names one version of each of these; this package works with older ones
FREED = ("requests", "urllib3")
OF_TORCH = re.compile(r"(torch|torchvision|triton|cuda-.*|nvidia-(?!ml-py$).*|crossearth)$")
# what leans most on other people's libraries, for a minute
UNIT = (
    *("data/test_raster.py", "data/test_manifest.py"),
    *("components/test_vectors.py", "components/test_validation.py"),
)
JOURNEY = "tests/pipeline/test_journeys.py"


def wanted() -> list[Requirement]:
    """What pyproject.toml names itself, the tools of development apart."""
    extras = PROJECT["optional-dependencies"]
    of_extras = (line for name in ("train", "pipelines", "cluster", "export") for line in extras[name])
    lines = map(Requirement, [*PROJECT["dependencies"], *of_extras])
    return [each for each in lines if each.name != "crossearth"]


def uv(*command: str | Path) -> str:
    program = Path(sysconfig.get_path("scripts")) / "uv"
    ended = subprocess.run([program, *command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Version]:
    """Name -> version of everything, each of `wanted` as low as its range and the others allow."""
    folder = tmp_path_factory.mktemp("resolved")
    (folder / "wanted").write_text(f"crossearth[cluster,export] @ {ROOT.as_uri()}\n")
    (folder / "freed").write_text("\n".join(str(each) for each in wanted() if each.name in FREED))
    pins = (ROOT / "constraints.txt").read_text()
    (folder / "kept").write_text("\n".join(re.findall(rf"^(?:{'|'.join(KEPT)})==.*$", pins, re.M)))
    options = ("--quiet", "--no-annotate", "--no-header", "--resolution", "lowest-direct")
    files = ("--override", folder / "freed", "--constraint", folder / "kept", folder / "wanted")
    text = uv("pip", "compile", "--python", sys.executable, *options, *files)
    return {name: Version(version) for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.M)}


@pytest.fixture(scope="module")
def python(resolved: dict[str, Version], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with them; torch and the tests' tools are this one's."""
    folder = tmp_path_factory.mktemp("lowest")
    python = folder / "venv/bin/python"
    uv("venv", "--quiet", "--python", sys.executable, folder / "venv")
    pins = [f"{name}=={version}" for name, version in resolved.items() if not OF_TORCH.match(name)]
    (folder / "pins").write_text("\n".join(pins))
    install = ("pip", "install", "--quiet", "--no-deps", "--python", python)
    uv(*install, "--requirement", folder / "pins")
    uv(*install, "--editable", ROOT)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "rest.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_what_is_tested_is_what_is_promised(resolved: dict[str, Version]) -> None:
    """A lower end that others of our ranges never let be reached would be a promise that nobody keeps."""
    for each in wanted():
        (lowest,) = (Version(part.version) for part in each.specifier if part.operator in (">=", "=="))
        if each.name not in KEPT:
            assert resolved[canonicalize_name(each.name)] == lowest, each


def run(python: Path, *tests: str) -> None:
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]


def test_the_lowest_versions_pass_unit_tests(python: Path) -> None:
    run(python, *(f"tests/unit/{name}" for name in UNIT))


def test_the_lowest_versions_learn_and_map_own_tiles(python: Path) -> None:
    names = ("test_a_student_has_scores_of_her_own_tiles", "test_an_analyst_has_a_map")
    run(python, *(f"{JOURNEY}::{name}" for name in names))
