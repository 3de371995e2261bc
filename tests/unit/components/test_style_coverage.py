"""The numbers that say whether injected styles reach unseen domains."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_domain import draw_domain

from crossearth.components.styles.coverage import style_coverage
from crossearth.data.catalog.domains import Catalog, Recipe, Setting
from crossearth.data.common.errors import InputError
from crossearth.data.style.earth import EarthStyles, StyleConfig, StyleMoments
from crossearth.data.style.spectral import SpectralEngine
from crossearth.data.tiles.manifest import read_image, read_manifest

SCENES = {"north": (384, 384), "south": (384, 288)}
TINTS = {"grey": (0.9, 0.9, 0.9), "same": (0.9, 0.9, 0.9), "green": (0.45, 0.95, 0.55)}


class FewSettings:
    """The methods and the table that `style_coverage` reads of a catalog."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self.settings = {
            f"{source}2{target}": Setting(
                f"{source}2{target}", f"{source}2{target}", source, target, "band", ""
            )
            for source, target in pairs
        }

    def recipes(self) -> dict[str, Recipe]:
        """One of each target."""
        return {
            each.target: Recipe(each.target, each.source, each.class_set, (each,))
            for each in self.settings.values()
        }

    def domain_dir(self, domains_dir: Path, name: str) -> Path:
        return domains_dir / name


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "domains"
    for seed, (name, tint) in enumerate(TINTS.items()):
        for split in ("train", "test"):
            draw_domain(folder / name, split, SCENES, 96, tint, seed=seed)
    return folder


@pytest.fixture(scope="module")
def styles(domains: Path) -> Path:
    """Earth statistics over tints in which both domains' ones lie."""
    engine, moments = SpectralEngine(), StyleMoments(SpectralEngine.dim)
    source = read_manifest(domains / "grey", "train")
    generator = torch.Generator().manual_seed(0)
    for index in range(2 * len(source)):
        x_13HW = torch.from_numpy(read_image(source, index % len(source)))[None].float()
        tint_311 = 0.3 + 0.8 * torch.rand(3, 1, 1, generator=generator)
        moments.add(engine.embed(x_13HW * tint_311), [f"{index:064x}"])
    return EarthStyles.from_moments(moments, engine.name).save(domains.parent / "earth.safetensors")


def coverage(
    domains: Path, styles: Path, out_dir: Path, *pairs: tuple[str, str], alpha: float = 0.7
) -> dict[str, Any]:
    """alpha: of the last pair's recipe; those before it have the default."""
    catalog: Catalog = FewSettings(*pairs)  # type: ignore[assignment]
    configs = dict.fromkeys(catalog.recipes(), StyleConfig()) | {pairs[-1][1]: StyleConfig(alpha=alpha)}
    return json.loads(style_coverage(catalog, domains, styles, out_dir, configs).read_text())


def test_injection_covers_a_domain_that_the_source_does_not(
    domains: Path, styles: Path, tmp_path: Path
) -> None:
    numbers = coverage(domains, styles, tmp_path, ("grey", "green"), ("grey", "same"))["settings"]
    far, near = numbers["grey2green"], numbers["grey2same"]
    assert far["covered_before"] < 0.1
    assert far["covered_after"] > 0.4
    assert far["distance_after"] < far["distance_before"]
    assert far["nearest_after"] < far["nearest_before"]
    assert near["covered_before"] > 0.8
    assert near["distance_before"] < 0.5 * far["distance_before"]


def test_a_setting_is_measured_with_the_styles_of_its_own_recipe(
    domains: Path, styles: Path, tmp_path: Path
) -> None:
    pairs = ("grey", "same"), ("grey", "green")
    usual = coverage(domains, styles, tmp_path, *pairs)["settings"]
    plain = coverage(domains, styles, tmp_path, *pairs, alpha=0.0)["settings"]
    assert (plain["grey2same"], plain["grey2same"]["alpha"]) == (usual["grey2same"], 0.7)
    far = plain["grey2green"]
    assert (far["alpha"], far["covered_after"]) == (0.0, far["covered_before"])
    assert far["distance_after"] == pytest.approx(far["distance_before"], rel=1e-3)


def test_settings_without_tiles_are_listed_and_points_can_be_drawn(
    domains: Path, styles: Path, tmp_path: Path
) -> None:
    found = coverage(domains, styles, tmp_path, ("grey", "green"), ("grey", "absent"))
    assert found["missing"] == ["grey2absent"]
    assert set(found["scatter"]) == {"Earth samples", "grey (source)", "green (target)"}
    assert all(len(point) == 2 for points in found["scatter"].values() for point in points)
    again = coverage(domains, styles, tmp_path, ("grey", "green"), ("grey", "absent"))
    assert again == found


def test_a_damaged_manifest_is_not_an_absent_one(domains: Path, styles: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(domains, tmp_path / "domains"))
    (mine / "green" / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"green/test.parquet: cannot read the manifest"):
        coverage(mine, styles, tmp_path, ("grey", "green"))


def test_absent_statistics_are_refused(domains: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Earth statistics"):
        coverage(domains, tmp_path / "absent", tmp_path, ("grey", "green"))
