"""`dvc repro` of two recipes, for real: twice does nothing, an edit repeats what hangs on it."""

from pathlib import Path

from graphs import call

RECIPES = ("deepglobe", "loveda-urban")


def repro(checkout: Path) -> set[str]:
    """The stages that ran, by the checkout's own code."""
    targets = [f"evaluate@{recipe}" for recipe in RECIPES]
    done = call("dvc", "repro", *targets, cwd=checkout, PYTHONPATH=str(checkout.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path}: {old}"
    path.write_text(text.replace(old, new, 1))


def test_repro_runs_once_and_after_an_edit_only_what_hangs_on_it(checkout: Path) -> None:
    first = repro(checkout)
    assert {"synthesize", "plan", "ingest@deepglobe", "validate", "styles"} <= first
    assert {f"{stage}@{recipe}" for stage in ("train", "evaluate") for recipe in RECIPES} <= first
    scores = checkout / "artifacts/scores/deepglobe/scores.csv"
    assert scores.read_text().startswith("setting,source,target,gap,recipe")

    assert not repro(checkout)

    # a setting of one of them
    edit(
        checkout / "data/settings.yaml",
        "deepglobe, target: massachusetts, gap: region",
        "deepglobe, target: massachusetts, gap: band",
    )
    assert repro(checkout) == {"plan", "validate", "evaluate@deepglobe"}

    # the numbers of the other
    edit(checkout / "params.yaml", "recipes: {}", "recipes: {loveda-urban: {iterations: 4}}")
    assert repro(checkout) == {"plan", "train@loveda-urban", "evaluate@loveda-urban"}
