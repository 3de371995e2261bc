"""The catalog and the numbers as text, with comments for who goes on from there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossearth.components.init.facts import ImageFacts, Raw
from crossearth.data.catalog.domains import NAMED

CROP_PX = 128


@dataclass(frozen=True)
class Class:
    """A class and the label that means it.

    Attributes:
        raw: value, colour or name; None: no label means it, such as what lies outside of all shapes.
        share: of the pixels that were looked at, 0..1.
    """

    id: int
    name: str
    raw: Raw | None
    share: float = 0.0


def flow(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def catalog_text(
    name: str,
    folder: Path,
    entry: Mapping[str, Any],
    classes: Sequence[Class],
    lines: Sequence[str],
    recipe: bool,
) -> str:
    """A catalog file of one domain; without classes its labels are stubs.

    Args:
        lines: what was found, as comments.
        recipe: whether a setting trains and scores on it.
    """
    key = flow(name)  # YAML takes some names for numbers
    ordered = sorted(classes, key=lambda each: each.id)
    names = list(dict.fromkeys(each.name for each in ordered if each.name != "ignore"))
    text: list[str] = []
    if lines:
        text = [
            f"# What `crossearth init {folder}` found:",
            *(f"#   {line}" for line in lines),
            "# Every key is explained in data/README.md. Look at the labels first: crossearth ingest "
            f"{name} --check 8",
        ]
    if "masks" in entry:
        shown = names or ["background", "foreground"]
        classes_line = f"    classes: {flow(shown)} # rename them, here and in `labels`"
        text += ["class_sets:", f"  {key}:", classes_line]
        if len(shown) == 2:
            text.append("    primary_metric: foreground # the score is the IoU of the second class")
    text += ["domains:", f"  {key}:"]
    text += [f"    {word}: {flow(value)}" for word, value in entry.items()]
    if "masks" in entry:
        text.append(f"    class_set: {key}")
        named = isinstance(entry["masks"], Mapping) and not entry["masks"].keys().isdisjoint(NAMED)
        labelled = [each for each in classes if each.raw is not None]
        if labelled:
            text.append("    labels:")
            text += [
                f"      {flow(each.raw)}: {flow(each.name)} # {each.share:.1%} of the pixels"
                for each in labelled
            ]
        elif not named:
            text.append("    labels: {0: background}")
    if recipe:
        text += [
            "settings: # a second domain makes it a question: trained here, scored there",
            f"  {key}: {{source: {key}, target: {key}, gap: in-domain}}",
        ]
    return "\n".join(text) + "\n"


def params_text(catalog: str, facts: ImageFacts, entry: Mapping[str, Any]) -> str:
    """A params.yaml whose numbers train a small network on a CPU."""
    tile_px = min(facts.largest_px, entry["tile"]["px"])
    crop_px = max(32, min(CROP_PX, tile_px // 32 * 32))
    zoom = max(tile_px / crop_px, 1.0)
    return f"""\
# Numbers of the steps. What is left out is as in the paper: GPUs, and a frozen ViT-L that `backbone` names.
preset: small
catalogs: [{catalog}] # every command reads it
presets:
  small: # a small network from scratch, on a CPU
    train:
      network: tiny
      ablation: rein # `+style` restyles the images, after: crossearth styles fit FOLDER_OF_ANY_IMAGES
      iterations: 900
      batch_size: 8
      crop_px: {crop_px}
      scale: [{0.75 * zoom:.3g}, {1.5 * zoom:.3g}] # short side of the resized tile, in crops
      lr: 3.0e-3
      precision: float32
      schedule_iterations: null # the learning rate falls to 0 at the last iteration
      workers: 0
      tasks: {{segmentation: {{num_points: 1024}}}}
"""
