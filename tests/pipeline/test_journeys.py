"""The journeys of the README and the notebook, typed as they stand there, on a few small tiles."""

import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from own_domain import draw, save
from rasterio.transform import from_origin

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.pipeline


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of one language below a heading of the README."""
    section = (ROOT / "README.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def tiles(folder: Path, number: int = 12, side: int = 128) -> None:
    for each in range(number):
        image, mask = draw(each, side)
        place = from_origin(300_000 + each * side, 5_000_000, 0.5, 0.5)
        save(folder / "images" / f"tile_{each}.tif", image, crs="EPSG:32633", transform=place)
        save(folder / "masks" / f"tile_{each}.tif", mask, crs="EPSG:32633", transform=place)


def shell(command: str, folder: Path) -> str:
    """What a command prints; it must succeed."""
    words = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "80",
        "CROSSEARTH_DATA": str(folder),
    }
    ended = subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | words, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, command + "\n" + ended.stdout + ended.stderr
    return ended.stdout


SHORTER = {"iterations: 900": "iterations: 4", "batch_size: 8": "batch_size: 2"}


def shorten(params: Path) -> None:
    """Fewer iterations than `init` writes: what is learned is not asked here."""
    text = params.read_text()
    for old, new in SHORTER.items():
        assert old in text
        text = text.replace(old, new)
    params.write_text(text)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder in which the student's commands were typed, and what each printed."""
    folder = tmp_path_factory.mktemp("student")
    tiles(folder / "my-tiles")
    printed = {}
    (block,) = blocks("A student with her own tiles", "sh")
    for line in block.splitlines():
        command = shlex.join(shlex.split(line, comments=True))
        printed[command] = shell(line, folder)
        if " init " in command:
            shorten(folder / "params.yaml")
    return folder, printed


def test_a_student_has_scores_of_her_own_tiles(walked: tuple[Path, dict[str, str]]) -> None:
    folder, printed = walked
    assert next(iter(printed)) == "crossearth init ./my-tiles" and len(printed) >= 7
    assert (folder / "artifacts/report/index.html").is_file()
    assert "foreground" in printed["crossearth show my-tiles"]


def test_each_next_line_is_the_command_that_follows(walked: tuple[Path, dict[str, str]]) -> None:
    for command, following in pairwise(walked[1]):
        next_line = walked[1][command].partition("next: ")[2].strip()
        assert next_line and following.startswith(next_line), command


def test_an_analyst_has_a_map(walked: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    models = tmp_path / "artifacts/models"
    models.mkdir(parents=True)
    (models / "potsdam-rgb").symlink_to(walked[0] / "artifacts/models/my-tiles")
    image, _ = draw(20, 300)
    save(tmp_path / "scene.tif", image, crs="EPSG:32633", transform=from_origin(3e5, 5e6, 0.5, 0.5))
    lines = "".join(blocks("An analyst who wants a map", "sh")).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "wrote map.tif\n" in shell(line, tmp_path)
    for suffix in (".tif", ".png", ".json", ".qml", ".gpkg", ".confidence.tif", ".html"):
        assert (tmp_path / f"map{suffix}").is_file(), suffix
    (program,) = blocks("An analyst who wants a map", "python")
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "map.tif").unlink()
    shell("python program.py", tmp_path)
    assert (tmp_path / "map.tif").is_file()


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "docs/own-tiles.ipynb").read_text())
    cells = notebook["cells"]
    assert len(cells) == 10
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    tiles(tmp_path / "my-tiles")
    # as a notebook runs them: one after the other, with the same names
    begin, *others = sources
    (tmp_path / "begin.py").write_text(begin)
    shell("python begin.py", tmp_path)
    shorten(tmp_path / "params.yaml")
    imports = "\n".join(line for line in begin.splitlines() if line.startswith(("from ", "import ")))
    (tmp_path / "others.py").write_text("\n".join([imports, *others[1:]]))
    shell("python others.py", tmp_path)
    assert (tmp_path / "map.gpkg").is_file() and (tmp_path / "artifacts/scores/my-tiles").is_dir()
