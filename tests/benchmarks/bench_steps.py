"""How the steps that handle images grow with their number, 1, 4 and 16 times: files and tracking included."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Action, Case, Form, fresh, scratch
from PIL import Image
from training_folder import NUMBERS as SMALL_TRAINING

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.styles.step import StylesConfig, fit_styles
from crossearth.components.stylize.step import StylizeConfig, stylize
from crossearth.components.train.setup import TrainConfig
from crossearth.components.train.step import train
from crossearth.components.validate.step import ValidateConfig, validate
from crossearth.data.catalog.domains import Catalog, Recipe
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import load_config

IMAGE_PX = 256
NUMBERS = (16, 64, 256)
CATALOG = """
domains:
  images-{number}:
    images: images
    masks: masks
    split: train
    class_set: loveda
    labels: {{0: ignore, 1: background, 2: building, 3: road, 4: water, 5: barren, 6: forest,
      7: agriculture}}
    tile: {{px: 256, rule: whole}}
"""


def images(number: int) -> str:
    """Name of a domain of so many images with masks, its catalog beside them."""
    name = f"images-{number}"
    folder = scratch(name)
    if not folder.exists():
        generator = np.random.default_rng(0)
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        for index in range(number):
            coarse = generator.integers(0, 256, (IMAGE_PX // 8, IMAGE_PX // 8, 3), np.uint8)
            Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(folder / "images" / f"{index}.png")
            Image.fromarray(coarse[..., 0].repeat(8, 0).repeat(8, 1) % 8).save(
                folder / "masks" / f"{index}.png"
            )
        (folder / "catalog.yaml").write_text(CATALOG.format(number=number))
    return name


def catalog_of(name: str) -> Catalog:
    return load_catalog([scratch(name) / "catalog.yaml"], scratch(name))


def ingested(number: int) -> Path:
    """Folder of the ingested domain of so many images."""
    name = images(number)
    (folder,) = ingest([name], catalog_of(name), scratch(name), scratch("domains"), IngestConfig())
    return folder


def ingesting(number: int) -> Action:
    name = images(number)
    known = catalog_of(name)
    return lambda: ingest([name], known, scratch(name), fresh("domains"), IngestConfig())


def validating(number: int) -> Action:
    domain = ingested(number)
    known = catalog_of(domain.name)
    return lambda: validate(known, scratch("domains"), fresh("validation"), ValidateConfig(), [domain.name])


def fitting(number: int) -> Action:
    folder = scratch(images(number)) / "images"
    return lambda: fit_styles(folder, fresh("styles"), StylesConfig())


def styling(number: int) -> Action:
    domain, styles = ingested(number), scratch("styles")
    fit_styles(scratch(images(NUMBERS[0])) / "images", styles, StylesConfig())
    earth = styles / "earth.safetensors"
    return lambda: stylize(domain.name, domain.parent, earth, fresh("stylized"), StylizeConfig())


def training(number: int) -> Action:
    domain = ingested(number)
    known = catalog_of(domain.name)
    recipe = Recipe(domain.name, domain.name, "loveda")
    config = load_config(TrainConfig, SMALL_TRAINING | {"ablation": "rein", "iterations": 20}, "train")
    return lambda: train(recipe, known, scratch("domains"), fresh("model"), config)


def growth(step: Callable[[int], Action]) -> Case:
    forms = {
        f"{number} images": Form(lambda number=number: step(number), number)  # type: ignore[misc]
        for number in NUMBERS
    }
    return Case(forms, "image", rounds=3)


CASES = {
    "growth of ingest": growth(ingesting),
    "growth of validate": growth(validating),
    "growth of styles fit": growth(fitting),
    "growth of stylize": growth(styling),
    "growth of train, 20 steps": growth(training),
}
