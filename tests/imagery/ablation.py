"""The parts of the method on three real road sets: every ablation and seed on every source, in four regimes.

    python tests/imagery/ablation.py FOLDER [--regime scratch] [--jobs 2]

The catalog and the parameters are those of docs/own-data.md but for what stands below; the regime `zoom` is
`scratch` with the method's own zoom of 0.5 to 2, for the baseline and the whole method, and `half` is `zoom`
with every second sample styled, and that one wholly. What FOLDER holds already is not trained again, so a
stopped call goes on; a training takes one thread. Prints the tables of what is there: road IoU in per cent,
mean and standard deviation over seeds.
"""

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("CROSSEARTH_FIXTURES", ROOT.parent / "shared"))
SOURCES = ("road-epfl", "road-vegas", "road-shanghai")
SEEDS = {"rein": 3, "full": 3, "+style": 1, "+style+mim": 1, "+mim": 1}
REGIMES = {"scratch": tuple(SEEDS), "zoom": ("rein", "full"), "half": ("full",), "frozen": tuple(SEEDS)}
# a short schedule wants every step styled, and an injector that starts as nothing and stays on at inference
STYLE = {"style_probability": 1.0, "style": {"keep_ratio": 0.2, "block_px": 16}}
ZOOM = [2.0, 8.0]  # short side of the resized tile, in crops: 0.5 to 2 times the tiles' own resolution
HALF = {"style_probability": 0.5, "style": {"keep_ratio": 0.0, "block_px": 16}}
INJECTOR = {"injector": "own", "inject_at_inference": True}
FROZEN = {
    "backbone": str(SHARED / "weights/vit_tiny_patch16_aid.safetensors"),
    "iterations": 200,
    "batch_size": 4,
}
FROZEN_SIZES = {
    "frozen_backbone": True,
    "embed": 192,
    "depth": 12,
    "heads": 3,
    "mlp_ratio": 4.0,
    "taps": [2, 5, 8, 11],
}


@dataclass(frozen=True)
class Run:
    """One training and its scores."""

    regime: str
    ablation: str
    seed: int
    source: str

    @property
    def folder(self) -> Path:
        """Below the table's folder; one for all sources."""
        return Path(self.regime, self.ablation, str(self.seed))

    @property
    def scores(self) -> Path:
        return self.folder / "artifacts/scores" / self.source / "scores.csv"


def runs(regimes: list[str]) -> Iterator[Run]:
    """First a seed of everything, then the others."""
    for seed in range(max(SEEDS.values())):
        for regime in regimes:
            for ablation in REGIMES[regime]:
                if seed < SEEDS[ablation]:
                    yield from (Run(regime, ablation, seed, source) for source in SOURCES)


def documented(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs/own-data.md").read_text(), re.M | re.S)


def numbers(run: Run) -> dict[str, Any]:
    """Params of a run: the document's, with what the regime and the ablation change."""
    params: dict[str, Any] = yaml.safe_load(documented("yaml")[1])
    train = params["presets"][params["preset"]]["train"]
    train |= {"ablation": run.ablation, **STYLE, "sizes": INJECTOR if run.ablation == "full" else {}}
    if run.regime in ("zoom", "half"):
        train |= {"scale": ZOOM}
    if run.regime == "half":
        train |= HALF
    if run.regime == "frozen":
        train |= {**FROZEN, "sizes": FROZEN_SIZES | train["sizes"]}
    return {**params, "seed": run.seed}


def crossearth(folder: Path, *arguments: str) -> None:
    environment = {
        **os.environ,
        "CROSSEARTH_DATA": str(SHARED / "imagery"),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        ["crossearth", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{folder}: crossearth {' '.join(arguments)}\n{done.stderr}")


def prepare(folder: Path) -> None:
    """Domains and styles, once for all runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "roads.yaml").write_text(documented("yaml")[0])
    if not (folder / "artifacts/styles").exists():
        crossearth(folder, "styles", "fit", str(SHARED / "imagery/style_aid"))
    crossearth(folder, "ingest", "--catalog", "roads.yaml", *SOURCES)


def set_up(run: Run, folder: Path) -> None:
    """The run's folder with its numbers; runs of several sources have one folder."""
    place = folder / run.folder
    (place / "artifacts").mkdir(parents=True, exist_ok=True)
    for shared in ("domains", "styles"):
        link = place / "artifacts" / shared
        if not link.exists():
            link.symlink_to(folder.resolve() / "artifacts" / shared)
    (place / "params.yaml").write_text(yaml.safe_dump(numbers(run)))


def carry_out(run: Run, folder: Path) -> None:
    """Trains and scores, unless that is done."""
    for step in ("train", "evaluate"):
        crossearth(folder / run.folder, step, "--catalog", str(folder.resolve() / "roads.yaml"), run.source)
    print(f"{run.regime} {run.ablation} seed {run.seed}, {run.source}: scored", file=sys.stderr)


def table(folder: Path, regime: str) -> str:
    """Markdown: a row per ablation, a column per setting, unseen ones first, and the mean over those."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs([regime]):
        if (folder / run.scores).exists():
            with (folder / run.scores).open(newline="") as file:
                for row in csv.DictReader(file):
                    if row["metric"] != "IoU":
                        found[run.ablation][row["setting"]].append(100 * float(row["iou"]))
    settings = [
        name
        for name, setting in yaml.safe_load(documented("yaml")[0])["settings"].items()
        if setting["gap"] != "in-domain"
    ]
    unseen = len(settings)
    settings += [name for name in next(iter(found.values()), {}) if name not in settings]
    lines = [f"| {regime} | {' | '.join(settings)} | mean unseen |", "|---" * (len(settings) + 2) + "|"]
    for ablation, cells in found.items():
        unseen_means = [statistics.mean(cells[name]) for name in settings[:unseen] if name in cells]
        mean = f"{statistics.mean(unseen_means):.1f}" if len(unseen_means) == unseen else ""
        lines.append(f"| {ablation} | {' | '.join(cell(cells, name) for name in settings)} | {mean} |")
    return "\n".join(lines)


def cell(cells: Mapping[str, list[float]], name: str) -> str:
    values = cells.get(name, [])
    if len(values) > 1:
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    return f"{values[0]:.1f}" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--regime", choices=list(REGIMES), action="append")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args()
    regimes = given.regime or list(REGIMES)
    prepare(given.folder)
    for run in runs(regimes):
        set_up(run, given.folder)
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda run: carry_out(run, given.folder), runs(regimes)))
    for regime in regimes:
        print(table(given.folder, regime), end="\n\n")


if __name__ == "__main__":
    main()
