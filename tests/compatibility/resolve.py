"""Which libraries of the same people can be installed beside this one: docs/compatibility.md, resolved anew.

    pip install -e '.[dev,services]'    # uv is one of them
    python tests/compatibility/resolve.py

Nothing is installed: the resolver finds one set of versions, or says that there is none. For each library
it is asked twice, with this package and alone: what cannot be installed alone is not held against us.
"""

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
NEIGHBOURS = (
    "albumentations",
    "evidently",
    "feast",
    "fiftyone",
    "geoai-py",
    "kserve",
    "kubeflow-katib",
    "lightning",
    "rastervision-core",
    "rio-cogeo",
    "segment-geospatial",
    "segmentation-models-pytorch",
    "terratorch",
    "torchgeo",
    "transformers",
    "ultralytics",
)
AGREED = ("numpy", "pandas", "plotly", "pyarrow")
SHOWN = (
    *("numpy", "pandas", "plotly", "pyarrow", "torch", "torchvision", "kfp", "mlflow", "dvc"),
    *("kubeflow", "model-registry"),
)

LOWEST = """
## Lowest versions

`pytest tests/compatibility` installs, on Python 3.11, the lowest version of each library that
pyproject.toml allows, runs the unit tests of what leans on them most, and walks from own tiles to a map.
CI does it on every change. It fails where a lower end is promised that the other ranges never let anybody
reach.

torch and torchvision stay as they are installed there: the lowest, 2.6.0 and 0.21.0, have no wheel for CPUs
on the usual index, and bring 5 GB of CUDA. The network's unit tests (251) ran on these two, timm 1.0.22 and
torchmetrics 1.6.0 once, on 2026-11-30.
"""


def resolve(python: str, *wanted: str) -> dict[str, str]:
    """Name -> version of a set that fits; empty if there is none."""
    command = ["uv", "pip", "compile", "-q", "--no-annotate", "--no-header", "--python-version", python, "-"]
    ended = subprocess.run(
        command, input="\n".join(wanted), capture_output=True, text=True, cwd=ROOT, check=False
    )
    return (
        dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==(\S+)$", ended.stdout, re.M))
        if not ended.returncode
        else {}
    )


def ours(extra: str) -> str:
    return f"crossearth[{extra}] @ {ROOT.as_uri()}"


def main() -> None:
    lines = [
        "# Beside which libraries this one can be installed",
        "",
        f"Resolved on {datetime.now(UTC):%Y-%m-%d} by `python tests/compatibility/resolve.py`: these tables",
        "are what a resolver finds. What was run is what constraints.txt pins, on Python 3.11, and there",
        "also [the lowest versions](#lowest-versions).",
        "",
        "## Pythons",
        "",
        f"| Python | {' | '.join(SHOWN)} |",
        "|---" * (len(SHOWN) + 1) + "|",
    ]
    for python in PYTHONS:
        found = resolve(python, ours("cluster,export"))
        lines.append(f"| {python} | " + " | ".join(found.get(name, "none") for name in SHOWN) + " |")
    lines += [
        "",
        "## Neighbours",
        "",
        "With all extras of this package, on Python 3.11:",
        "",
        "| library | alone | with crossearth | what the two agree on |",
        "|---|---|---|---|",
    ]
    for name in NEIGHBOURS:
        alone, both = resolve("3.11", name), resolve("3.11", name, ours("cluster,export"))
        agreed = ", ".join(f"{each} {both[each]}" for each in AGREED if each in both)
        lines.append(f"| {name} | {alone.get(name, 'none')} | {both.get(name, '**none**')} | {agreed} |")
    lines += LOWEST.splitlines()
    (ROOT / "docs" / "compatibility.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
