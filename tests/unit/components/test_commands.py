"""Commands of the documents, typed: what they print and leave."""

from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio
import torch
from domain_factory import write_domain
from own_domain import NAME, draw, own_domain, save
from PIL import Image
from released import write_released
from results_factory import write_benchmark

from crossearth.components.convert import step as convert
from crossearth.data.catalog.domains import Catalog
from crossearth.model.crossearth import CrossEarth, tiny_config
from crossearth.model.weights.names import to_released

Typed = Callable[[str], str]


def test_released_weights_are_converted_scored_and_map_a_scene(
    typed: Typed,
    readme: Callable[[str], list[str]],
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convert, "large_config", tiny_config)
    state = {
        str(to_released(name)): value for name, value in CrossEarth(tiny_config(6, 64)).state_dict().items()
    }
    trained = {name: state[name] for name in state if name.startswith(("backbone.reins.", "decode_head."))}
    write_released(tmp_path / "potsdam-source.pth", trained)
    frozen = {name.removeprefix("backbone."): state[name] for name in state if name not in trained}
    torch.save(frozen, tmp_path / "dinov2_converted.pth")
    for setting in catalog.recipe("potsdam-rgb").settings:
        folder = catalog.domain_dir(tmp_path / "artifacts/domains", setting.target)
        write_domain(folder, setting.target, "isprs", tiles=2)
    save(tmp_path / "scene.tif", draw(0)[0])

    (weights,) = (block for block in readme("sh") if "crossearth convert" in block)
    for command in weights.splitlines():
        typed(command)
    assert "P(r)2V" in typed("crossearth show potsdam-rgb")
    (scene,) = (block for block in readme("sh") if "crossearth predict" in block)
    typed(scene.replace("artifacts/models/potsdam-rgb", "models/released-potsdam"))
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.shape == (64, 64)


def test_two_sets_of_results_are_compared(typed: Typed, catalog: Catalog, tmp_path: Path) -> None:
    write_benchmark(tmp_path / "worse", catalog, 1, skill=0.3)
    write_benchmark(tmp_path / "better", catalog, 1, skill=0.8)
    assert "B better" in typed("crossearth compare worse better")


def test_an_ingested_domain_is_previewed(typed: Typed, tmp_path: Path) -> None:
    own_domain(tmp_path)
    typed(f"crossearth ingest {NAME} --catalog catalog.yaml")
    (drawn,) = (tmp_path / "artifacts/previews").iterdir()
    drawn.unlink()
    typed(f"crossearth preview {NAME} --catalog catalog.yaml")
    assert Image.open(drawn).width > 0
