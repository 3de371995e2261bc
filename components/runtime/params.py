"""params.yaml: the parameters of every step, as two presets in one file."""

from collections.abc import Mapping
from dataclasses import field, replace
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from crossearth.components.steps import SECTIONS
from crossearth.data.catalog.domains import Catalog, known_entry
from crossearth.data.common.config import HomePath, checked, load_config, merged, nearest, read_yaml
from crossearth.data.common.errors import InputError
from crossearth.model.method import METHODS

MAX_SEED = 2**63 - 1  # torch takes no larger one
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Config = TypeVar("Config")


@checked
class DvcConfig:
    """What `dvc repro` makes. It is listed here because dvc.yaml cannot read the catalog.

    Attributes:
        datasets: datasets with archives that are ingested.
        own: domain of the user -> folder that holds its images and masks.
        seeds: further seeds with which every recipe is trained and scored, besides `seed`.
        recipes: recipes that are trained and scored.
    """

    datasets: tuple[str, ...] = ()
    own: dict[str, Path] = field(default_factory=dict)
    seeds: tuple[Seed, ...] = ()
    recipes: tuple[str, ...] = ()

    def check(self, catalog: Catalog) -> None:
        """Refuses (InputError) a name that the catalog does not have."""
        for name in self.datasets:
            known_entry(catalog.datasets, name, "dataset", "params: dvc.datasets")
        own = {name: domain for name, domain in catalog.domains.items() if domain.own}
        for name, folder in self.own.items():
            domain = known_entry(own, name, "domain of your own", "params: dvc.own")
            for place in domain.own.places if domain.own else ():
                if place.exists() and not place.resolve().is_relative_to(folder.resolve()):
                    raise InputError(
                        f"{folder} does not hold all of {name}: {place}",
                        where=f"params: dvc.own.{name}",
                        expected="a folder of its images and labels: dvc looks there for what has changed",
                    )
        for name in self.recipes:
            known_entry(catalog.recipes(), name, "recipe", "params: dvc.recipes")


@checked
class Params:
    """The contents of params.yaml.

    Attributes:
        preset: which of the sections below `presets` is in force.
        seed: seed of every random choice of every step.
        archives: folder that holds one folder of publisher's archives per dataset.
        corpus: folder below `archives` of the images whose styles are injected.
        catalogs: further catalog files with the user's own domains and settings.
        dvc: what the stages of dvc.yaml are made for.
        presets: preset -> step -> values of that step's config dataclass; the step `recipes` holds
            values of `train` for single recipes, merged with those at every level.
    """

    preset: str
    presets: dict[str, dict[str, dict[str, Any]]]
    seed: Seed = 0
    archives: HomePath = Path("artifacts/archives")
    corpus: str = "million-aid"
    catalogs: tuple[HomePath, ...] = field(default=())
    dvc: DvcConfig = field(default_factory=DvcConfig)

    @property
    def style_images(self) -> Path:
        return self.archives / self.corpus

    def __post_init__(self) -> None:
        known_entry(self.presets, self.preset, "preset", "preset")
        if len({*self.dvc.seeds} - {self.seed}) != len(self.dvc.seeds):
            raise InputError(
                f"dvc.seeds: {list(self.dvc.seeds)}",
                expected=f"different numbers, without {self.seed}, which is `seed`",
            )
        for preset, sections in self.presets.items():
            for step, values in sections.items():
                _refuse_seed(values, f"presets.{preset}.{step}")
                known_entry(dict.fromkeys((*SECTIONS, "recipes")), step, "step", f"presets.{preset}")
            for recipe, overrides in sections.get("recipes", {}).items():
                if not isinstance(overrides, Mapping):
                    raise InputError(
                        f"presets.{preset}.recipes.{recipe}: {overrides!r}", expected="values of `train`"
                    )
                _refuse_seed(overrides, f"presets.{preset}.recipes.{recipe}")

    def seed_suffix(self, seed: int | None) -> str:
        """What follows a recipe's name in the folders of a seed: nothing for that of params.yaml, or None."""
        return "" if seed in (None, self.seed) else f"@seed{seed}"

    def values(self, step: str, recipe: str | None = None) -> dict[str, Any]:
        """The plain values of a step in the preset in force; for `train`, with the overrides of `recipe`."""
        return reduce(merged, self.layers(step, recipe).values(), {})

    def layers(self, step: str, recipe: str | None = None) -> dict[str, Mapping[str, Any]]:
        """Key of the active preset -> its values: the step's, then recipes.NAME, which override them.

        For `train`, the values of its method come first, where they are not the defaults.
        """
        sections = self.presets[self.preset]
        layers: dict[str, Mapping[str, Any]] = {step: sections.get(step, {})}
        if recipe:
            layers[f"recipes.{recipe}"] = sections.get("recipes", {}).get(recipe, {})
        if step == "train":
            named: Any = [values["method"] for values in layers.values() if "method" in values]
            if named and named[-1] != "paper" and named[-1] in list(METHODS):
                layers = {f"method {named[-1]}": METHODS[named[-1]], **layers}
        return layers

    def check(self, catalog: Catalog) -> None:
        """Checks the names of recipes, domains and datasets against the catalog.

        Raises:
            InputError: a name that it does not have: its values would be for nothing.
        """
        self.dvc.check(catalog)
        recipes = catalog.recipes()
        for preset, sections in self.presets.items():
            for name in sections.get("recipes", {}):
                if name not in recipes:
                    raise InputError(
                        f"unknown recipe {name!r}",
                        where=f"params: presets.{preset}.recipes",
                        expected=nearest(name, recipes),
                        next_step="correct the name; a recipe of your own comes with `catalogs: [FILE]` in "
                        "params.yaml, or with --catalog FILE",
                    )

    def may_lack_classes(self, catalog: Catalog) -> list[str]:
        """Domains for which every recipe sets `allow_absent_classes`."""
        recipes = catalog.recipes().values()
        found = []
        for domain in catalog.domains:
            trained: list[str | None] = [recipe.name for recipe in recipes if recipe.source == domain]
            if all(
                self.values("train", name).get("allow_absent_classes") is True for name in trained or [None]
            ):
                found.append(domain)
        return found

    def with_values(self, recipe: str, values: Mapping[str, Any]) -> "Params":
        """Params in which `values` of `train`, nested as in the file, go before all others of a recipe."""
        sections = self.presets[self.preset]
        recipes = sections.get("recipes", {})
        own = merged(recipes.get(recipe, {}), values)
        changed = {**sections, "recipes": {**recipes, recipe: own}}
        return replace(self, presets={**self.presets, self.preset: changed})

    def config(self, kind: type[Config], step: str, recipe: str | None = None) -> Config:
        """The config dataclass of a step; unknown keys and wrong values raise InputError naming them."""
        where = f"params: presets.{self.preset}.{step}" + (f" + recipes.{recipe}" if recipe else "")
        return load_config(kind, self.values(step, recipe), where)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values under dotted names, nested as in a file: {"style.alpha": 0.5} is {"style": {"alpha": 0.5}}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        for key in reversed(name.split(".")):
            value = {key: value}
        found = merged(found, value)
    return found


def _refuse_seed(values: Mapping[str, Any], where: str) -> None:
    if "seed" in values:  # the top-level seed would silently replace it
        raise InputError(
            f"{where}.seed: {values['seed']!r}",
            expected="one seed for all steps, `seed` at the top of the file",
            next_step="move it there; `crossearth train --seeds` trains with another one",
        )


def load_params(path: Path | None) -> Params:
    """Reads params.yaml; with no path that of the working folder, or without one the dataclasses' defaults.

    Raises:
        InputError: unreadable file, unknown preset, step or key.
    """
    if path is None:
        path = Path("params.yaml")
        if not path.exists():
            return Params(preset="paper", presets={"paper": {}})
    return load_config(Params, read_yaml(path), path)
