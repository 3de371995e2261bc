"""The recipes of CONTRIBUTING.md, walked on a copy of the tree: what they name is enough."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from own_domain import draw, own_domain, save
from training_folder import environment, write_folder

ROOT = Path(__file__).parents[2]
CODE = ("data", "model", "components", "pipelines")
FILES = ("dvc.yaml", "params.yaml", "pyproject.toml", "README.md", "CONTRIBUTING.md")


class Copy:
    """A copy of the tree that is edited; its code comes before the installed one.

    Attributes:
        places: what was edited: files, and folders that are new.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "crossearth"  # the package's name: the folder above goes onto the path
        for name in (*CODE, "docs", "infra", "tests"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, self.root)
        self.places: set[str] = set()

    def edit(self, file: str, old: str, new: str) -> None:
        """Puts `new` where the one `old` stands."""
        path = self.root / file
        text = path.read_text()
        assert text.count(old) == 1, (file, old)
        path.write_text(text.replace(old, new))
        self.places.add(file)

    def new(self, file: str, text: str = "") -> None:
        """Writes a file; those of one new folder are one place."""
        path = self.root / file
        folder = path.parent.relative_to(self.root).as_posix()
        if not path.parent.is_dir():
            path.parent.mkdir()
            self.places.add(folder)
        path.write_text(text)
        if folder not in self.places:
            self.places.add(file)

    def run(self, *arguments: str, cwd: Path | None = None, rc: int = 0) -> str:
        """What Python with the copy's code prints."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd or self.root,
            env={**environment(), "PYTHONPATH": str(self.root.parent), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == rc, said[-5000:]
        return said

    def crossearth(self, *arguments: str, cwd: Path | None = None, rc: int = 0) -> str:
        """The copy's command line."""
        program = "from crossearth.pipelines.cli import main; main()"
        return self.run("-c", program, *arguments, cwd=cwd, rc=rc)

    def tested(self, *arguments: str) -> None:
        """Runs tests of the copy on the copy."""
        self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


STEP = '''"""Census: how many tiles every ingested domain has."""

from pathlib import Path

from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import ARTIFACTS, DOMAINS
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import checked
from crossearth.data.common.files import write_json
from crossearth.data.tiles.manifest import read_domain


@checked
class CensusConfig:
    """What is counted."""

    split: str = "train"


def run(params: Params, catalog: Catalog) -> Path:
    """Counts in the working folder."""
    config = params.config(CensusConfig, "census")
    return census(catalog, DOMAINS, ARTIFACTS / "census.json", config)


def census(catalog: Catalog, domains_dir: Path, out: Path, config: CensusConfig) -> Path:
    """Writes domain -> number of tiles."""
    found = [name for name in catalog.domains if catalog.domain_dir(domains_dir, name).is_dir()]
    counts = {name: len(read_domain(catalog, domains_dir, name, config.split)) for name in found}
    write_json(out, counts)
    return out
'''
COMPONENT = '''"""How many tiles every domain has."""

from crossearth.components.pods.component import component


@component
def census(workspace: str, recipes: list, key: str) -> str:
    """Counts the tiles of every domain."""
    from crossearth.components.census.step import run
    from crossearth.components.pods import workspace as shared

    with shared.step(workspace, "census"):
        return shared.content_digest(run(*shared.inputs()))
'''
STAGE = """
  census:
    cmd: crossearth census
    deps:
      - artifacts/plan/census.json
      - artifacts/domains
    outs:
      - artifacts/census.json

  report:
"""
IN_GRAPH = """            items = validated["Output"]
            pod(census, recipes=items, key=planned["validate"])
"""


def test_a_step_takes_five_places(copy: Copy, tmp_path: Path) -> None:
    copy.new("components/census/__init__.py")
    copy.new("components/census/step.py", STEP)
    copy.new("components/census/component.py", COMPONENT)
    package = '  "crossearth.components.cli",\n'
    copy.edit("pyproject.toml", package, '  "crossearth.components.census",\n' + package)
    row = (
        'Step("census", "census.step:run", "census.step:CensusConfig", "once", about="Count the tiles."),\n'
        "        "
    )
    last = 'Step("finish", network=True'
    copy.edit("components/steps.py", last, row + last)
    copy.edit("dvc.yaml", "\n  report:\n", STAGE)
    first = "from crossearth.components.evaluate.component"
    copy.edit(
        "pipelines/benchmark.py",
        first,
        f"from crossearth.components.census.component import census\n{first}",
    )
    copy.edit("pipelines/benchmark.py", '            items = validated["Output"]\n', IN_GRAPH)
    assert len(copy.places) <= 5, copy.places

    folder = tmp_path / "folder"
    folder.mkdir()
    write_folder(folder)
    assert "next" not in copy.crossearth("census", cwd=folder)
    assert json.loads((folder / "artifacts/census.json").read_text())["loveda-urban"] > 0
    copy.crossearth("plan")
    planned = json.loads((copy.root / "artifacts/plan/census.json").read_text())
    assert planned["census"] == {} and planned["code"]
    copy.edit("params.yaml", "mini:\n", "mini:\n    census: {spllit: test}\n")
    assert "split" in copy.crossearth("plan", rc=2)
    copy.edit("params.yaml", "    census: {spllit: test}\n", "")
    # the house's own comparisons of names, graphs, folders and identities
    unit = ["tests/unit/test_architecture.py", "tests/unit/test_dvc.py", "tests/unit/test_code.py"]
    graphs = ["tests/unit/pipelines/test_kubeflow_rules.py", "tests/unit/pipelines/test_pipelines.py"]
    of_graphs = "(benchmark and infra) or few_pods or from_it or stages or place"
    copy.tested(*unit, *graphs, "-k", f"test_architecture or test_dvc or test_code or {of_graphs}")


DATASET = """
datasets:
  lanes:
    title: Lanes
    homepage: https://lanes.example
    licence: CC0
    archives:
      - {name: lanes.zip}
"""
DOMAIN = """
domains:
  lanes:
    dataset: lanes
    class_set: road
    bands: [red, green, blue]
    gsd_m: 0.5
    tile: {px: 48, rule: cut}
    labels: {0: background, 1: road}
    key: (\\d+)_
    train: {images: "*train/*_sat.png", labels: "*train/*_gt.png"}
    test: {images: "*test/*_sat.png", labels: "*test/*_gt.png"}
"""


def test_a_publishers_dataset_takes_two_places(copy: Copy, tmp_path: Path) -> None:
    copy.edit("data/catalog/catalog.yaml", "\ndatasets:\n", DATASET)
    copy.edit("data/catalog/catalog.yaml", "\ndomains:\n", DOMAIN)
    # where dvc is to make it, too
    copy.edit("params.yaml", "  datasets: [potsdam,", "  datasets: [lanes, potsdam,")
    assert len(copy.places) <= 2, copy.places

    folder, drawn = tmp_path / "folder", tmp_path / "drawn"
    (folder / "archives/lanes").mkdir(parents=True)
    with zipfile.ZipFile(folder / "archives/lanes/lanes.zip", "w") as archive:
        for number in range(8):
            part = "test" if number > 5 else "train"
            for kind, pixels in zip(("sat", "gt"), draw(number), strict=True):
                save(drawn / f"{number}_{kind}.png", pixels)
                archive.write(drawn / f"{number}_{kind}.png", f"lanes/{part}/{number}_{kind}.png")
    params = {"preset": "own", "archives": "archives", "presets": {"own": {}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    assert "crossearth validate" in copy.crossearth("ingest", "lanes", cwd=folder)
    assert (folder / "artifacts/previews").is_dir()
    copy.crossearth("validate", cwd=folder)
    assert (folder / "artifacts/validation/digests/lanes.json").is_file()
    copy.crossearth("plan")  # dvc's names are held against the catalog
    assert (copy.root / "artifacts/plan/ingest/lanes.json").is_file()
    copy.tested("tests/unit/data/test_catalog.py", "tests/unit/data/test_labels.py", "-x")


def test_a_domain_and_a_setting_take_a_file_of_ones_own(copy: Copy, tmp_path: Path) -> None:
    own_domain(tmp_path / "datasets")
    (tmp_path / "own.yaml").write_text(
        (tmp_path / "datasets/catalog.yaml").read_text()
        + yaml.safe_dump({"settings": {"T2T": {"source": "town", "target": "town", "gap": "in-domain"}}})
    )
    own = ("--catalog", "own.yaml")
    assert "town" in copy.crossearth("ingest", "town", *own, cwd=tmp_path)
    copy.crossearth("validate", *own, cwd=tmp_path)
    assert "T2T" in copy.crossearth("settings", *own, cwd=tmp_path)
    assert copy.places == set()


def test_a_parameter_of_training_takes_three_places(copy: Copy, tmp_path: Path) -> None:
    setup = "components/train/setup.py"
    copy.edit(setup, "        style: parameters of", "        beta2: of AdamW.\n        style: parameters of")
    copy.edit(
        setup,
        "    weight_decay: Share = 0.05\n",
        "    weight_decay: Share = 0.05\n    beta2: float = 0.999\n",
    )
    copy.edit(
        "components/train/loop.py",
        "lr=job.config.lr, fused=True",
        "lr=job.config.lr, betas=(0.9, job.config.beta2), fused=True",
    )
    copy.edit("params.yaml", "      lr: 3.0e-3\n", "      lr: 3.0e-3\n      beta2: 0.95\n")
    assert len(copy.places) <= 3, copy.places

    told = copy.crossearth("plan", "loveda-urban").splitlines()
    (line,) = [line for line in told if "beta2" in line]
    assert "0.95" in line and "train" in line
    folder = tmp_path / "folder"
    folder.mkdir()
    write_folder(folder, ablation="rein", iterations=1, beta2=0.95)
    copy.crossearth("train", "loveda-urban", cwd=folder)
    assert '"beta2": 0.95' in (folder / "artifacts/models/loveda-urban/model.json").read_text()


SIZE = """    "middle": {
        "image_px": 64,
        "patch_px": 8,
        "embed": 192,
        "depth": 4,
        "heads": 6,
        "taps": (0, 1, 2, 3),
        "frozen_backbone": False,
    },
}


def network_config("""
BUILD = """
import torch
from crossearth.components.train.setup import TrainConfig
from crossearth.model.crossearth import CrossEarth
network = CrossEarth(TrainConfig(network="middle", ablation="rein", crop_px=64).network_config(5)).eval()
print(network.config.embed, tuple(network(torch.zeros(1, 3, 64, 64)).shape))
TrainConfig(network="middel")
"""


def test_a_size_of_the_network_takes_one_place(copy: Copy) -> None:
    copy.edit("model/crossearth.py", "}\n\n\ndef network_config(", SIZE)
    assert len(copy.places) == 1, copy.places
    said = copy.run("-c", BUILD, rc=1)
    assert "192 (1, 5, 64, 64)" in said
    assert "unknown size 'middel'" in said and "'middle'" in said


FAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from results_factory import write_fake_results
from crossearth.data.catalog.loader import load_catalog
catalog = load_catalog()
write_fake_results(Path("artifacts/scores/deepglobe"), catalog, catalog.recipe("deepglobe"))
"""


def test_a_metric_takes_one_place(copy: Copy, tmp_path: Path) -> None:
    scores = "model/scores.py"
    copy.edit(scores, "    mean_f1: float\n", "    mean_f1: float\n    mean_recall: float\n")
    copy.edit(
        scores,
        '        mean_f1=float(primary_iou(f1_K, "mean")),\n',
        '        mean_f1=float(primary_iou(f1_K, "mean")),\n'
        "        mean_recall=float(np.nanmean(hits / labelled)),\n",
    )
    copy.edit(
        scores, '"f1": ("mean_f1", "F1")', '"f1": ("mean_f1", "F1"), "recall": ("mean_recall", "recall")'
    )
    assert len(copy.places) == 1, copy.places

    folder = tmp_path / "folder"
    folder.mkdir()
    copy.run("-c", FAKE, str(copy.root / "tests"), cwd=folder)
    assert "recall %" in copy.crossearth("show", "deepglobe", cwd=folder)
    copy.crossearth("report", cwd=folder)
    assert ">Recall</button>" in (folder / "artifacts/report/index.html").read_text()


ENGINE = '''"""The mean colour of an image, moved to others."""

import torch
from torch import Tensor


class MeanEngine:
    """See `StyleEngine`."""

    name = "mean"
    dim = 3

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "MeanEngine":
        self.device = torch.device(device)
        return self

    def embed(self, x_B3HW: Tensor) -> Tensor:
        return x_B3HW.float().mean((2, 3))

    def transfer(self, x_B3HW: Tensor, e_BD: Tensor) -> Tensor:
        moved = x_B3HW.float() + (e_BD - self.embed(x_B3HW))[:, :, None, None]
        return moved.clamp(0, 255)
'''


def test_a_style_engine_takes_three_places(copy: Copy, tmp_path: Path) -> None:
    earth = "data/style/earth.py"
    copy.new("data/style/mean.py", ENGINE)
    copy.edit(
        earth,
        "from crossearth.data.style.spectral",
        "from crossearth.data.style.mean import MeanEngine\nfrom crossearth.data.style.spectral",
    )
    copy.edit(earth, 'Literal["spectral", "ghiasi"]', 'Literal["spectral", "ghiasi", "mean"]')
    copy.edit(earth, '{"ghiasi": 0.1, "spectral": 0.7}', '{"ghiasi": 0.1, "spectral": 0.7, "mean": 0.5}')
    spectral = '    if name == "spectral":\n'
    copy.edit(earth, spectral, '    if name == "mean":\n        return MeanEngine()\n' + spectral)
    copy.edit(
        "params.yaml",
        "    styles: {}\n    stylize: {}\n    train:\n",
        "    styles: {engine: mean}\n    stylize: {style: {engine: mean}}\n    train:\n",
    )
    assert len(copy.places) <= 3, copy.places

    for number in range(4):
        save(tmp_path / f"images/{number}.png", draw(number, side=512)[0])
    params = ("--params", str(copy.root / "params.yaml"))
    copy.crossearth("styles", "fit", "images", *params, cwd=tmp_path)
    copy.crossearth("styles", "show", "images/0.png", *params, cwd=tmp_path)
    assert (tmp_path / "styles.png").is_file() and (tmp_path / "artifacts/styles/sheet.png").is_file()


def test_every_recipe_is_walked_here() -> None:
    told = [
        line.removeprefix("**").partition(":**")[0]
        for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines()
        if line.startswith("**Add ")
    ]
    assert told == [
        "Add a domain or a setting",
        "Add a publisher's dataset",
        "Add a parameter of training",
        "Add a size of the network",
        "Add a metric",
        "Add a style engine",
        "Add a step",
    ]
