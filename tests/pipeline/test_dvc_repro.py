"""`dvc repro` of two recipes, for real: twice does nothing, an edit repeats what hangs on it."""

import re
import shlex
import shutil
from pathlib import Path

import yaml
from graphs import call, with_datasets
from own_domain import NAME, own_domain
from training_folder import NUMBERS

from crossearth.components.steps import SECTIONS

RECIPES = ("deepglobe", "loveda-urban")
DATASETS = ("deepglobe", "massachusetts", "loveda")  # what these train on and are scored on


def repro(checkout: Path, *command: str) -> set[str]:
    """The stages that `dvc repro`, or another command of dvc, ran by the checkout's own code."""
    targets = [f"evaluate@{recipe}" for recipe in RECIPES]
    done = call(*(command or ("dvc", "repro")), *targets, cwd=checkout, PYTHONPATH=str(checkout.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path}: {old}"
    path.write_text(text.replace(old, new, 1))


def test_repro_runs_once_and_after_an_edit_only_what_hangs_on_it(checkout: Path) -> None:
    params = checkout / "params.yaml"
    params.write_text(with_datasets(params.read_text(), DATASETS))
    first = repro(checkout)
    assert {"synthesize", "plan", "ingest@deepglobe", "validate", "styles"} <= first
    assert {f"{stage}@{recipe}" for stage in ("train", "evaluate") for recipe in RECIPES} <= first
    scores = checkout / "artifacts/scores/deepglobe/scores.csv"
    assert scores.read_text().startswith("setting,source,target,gap,recipe")

    assert not repro(checkout)

    # a setting of one of them
    edit(
        checkout / "data/catalog/settings.yaml",
        "deepglobe, target: massachusetts, gap: region",
        "deepglobe, target: massachusetts, gap: band",
    )
    assert repro(checkout) == {"plan", "validate", "evaluate@deepglobe"}

    # a number of the other, as the README says it
    (said,) = re.findall(r"`(dvc exp run [^`]+)`", (checkout / "README.md").read_text())
    command = shlex.split(said.replace("potsdam-rgb.iterations=200", "loveda-urban.iterations=4"))
    assert repro(checkout, *command) == {"plan", "train@loveda-urban", "evaluate@loveda-urban"}
    told = call("dvc", "exp", "show", "--only-changed", "--csv", cwd=checkout)
    assert "loveda-urban.iterations" in told.stdout, told.stdout + told.stderr


def test_own_domains_and_recipes_have_stages_also_in_a_copy_without_git(
    checkout: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "crossearth"
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git", "artifacts", "cache", "tmp"))
    town = folder / "datasets" / NAME
    own_domain(town)
    settings = {"T2T": {"source": NAME, "target": NAME, "gap": "in-domain"}}
    (town / "settings.yaml").write_text(yaml.safe_dump({"settings": settings}))
    train = NUMBERS | {"ablation": "rein", "iterations": 2}
    params = {
        "preset": "own",
        "seed": 0,
        "archives": "datasets",
        "corpus": f"{NAME}/images",
        "catalogs": [f"datasets/{NAME}/{file}.yaml" for file in ("catalog", "settings")],
        "dvc": {"datasets": [], "seeds": [], "own": {NAME: f"datasets/{NAME}"}, "recipes": [NAME]},
        "presets": {"own": {step: {} for step in SECTIONS} | {"train": train}},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (needed,) = re.findall(r"`(dvc config [^`]+)`", (folder / "README.md").read_text())
    here = {"PYTHONPATH": str(tmp_path), "CROSSEARTH_DATA": str(town)}
    assert "not a git repository" in call("dvc", "repro", "evaluate", cwd=folder, **here).stderr
    assert call(*needed.split(), cwd=folder).returncode == 0

    def ran(target: str = "report") -> set[str]:
        done = call("dvc", "repro", target, cwd=folder, **here)
        assert done.returncode == 0, done.stdout + done.stderr
        return {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}

    of_town = {f"{stage}@{NAME}" for stage in ("ingest-own", "train", "evaluate")}
    assert ran() == {"plan", "validate", "styles", "coverage", "report", *of_town}
    assert "T2T" in (folder / "artifacts/report/scores.csv").read_text()
    assert not ran()
    (town / "masks" / "scene_0.png").write_bytes((town / "masks" / "scene_1.png").read_bytes())
    assert {"ingest-own@town", "train@town"} <= ran(f"train@{NAME}")
