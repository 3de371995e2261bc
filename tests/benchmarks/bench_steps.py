"""How the steps that handle images grow with their number, 1, 4 and 16 times: files and tracking included."""

from collections.abc import Callable
from itertools import count

import numpy as np
from harness import Action, Case, Form, scratch
from PIL import Image

from crossearth.components.fit_styles import StylesConfig, fit_styles
from crossearth.components.ingest import IngestConfig, ingest
from crossearth.components.stylize import StylizeConfig, stylize
from crossearth.components.validate import ValidateConfig, validate
from crossearth.data.catalog import load_catalog

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
runs = count()


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


def ingesting(number: int) -> Action:
    name = images(number)
    known = load_catalog([scratch(name) / "catalog.yaml"], scratch(name))
    return lambda: ingest([name], known, scratch(name), scratch(f"domains-{next(runs)}"), IngestConfig())


def validating(number: int) -> Action:
    name, domains = images(number), scratch("domains")
    known = load_catalog([scratch(name) / "catalog.yaml"], scratch(name))
    ingest([name], known, scratch(name), domains, IngestConfig())
    return lambda: validate(known, domains, scratch(f"validation-{next(runs)}"), ValidateConfig(), [name])


def fitting(number: int) -> Action:
    folder = scratch(images(number)) / "images"
    return lambda: fit_styles(folder, scratch(f"styles-{next(runs)}"), StylesConfig())


def styling(number: int) -> Action:
    name, domains, styles = images(number), scratch("domains"), scratch("styles")
    known = load_catalog([scratch(name) / "catalog.yaml"], scratch(name))
    ingest([name], known, scratch(name), domains, IngestConfig())
    fit_styles(scratch(images(NUMBERS[0])) / "images", styles, StylesConfig())
    earth = styles / "earth.safetensors"
    return lambda: stylize(name, domains, earth, scratch(f"stylized-{next(runs)}"), StylizeConfig())


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
}
