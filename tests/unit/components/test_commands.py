"""Commands of the documents, typed: what they print and leave."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from domain_factory import write_domain
from own_domain import NAME, draw, own_domain, save
from PIL import Image
from released import write_released
from results_factory import write_benchmark

from crossearth.components.convert import step as convert
from crossearth.components.runtime.pictures import GAP_PX, LINE_PX
from crossearth.data.catalog.domains import Catalog
from crossearth.model.crossearth import CrossEarth, tiny_config
from crossearth.model.weights.names import to_released

Typed = Callable[[str], str]


def test_released_weights_are_converted_scored_and_map_a_scene(
    typed: Typed,
    documented: Callable[[str], list[str]],
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

    (weights,) = (block for block in documented("sh") if "crossearth convert" in block)
    for command in weights.splitlines():
        typed(command)
    assert "P(r)2V" in typed("crossearth show potsdam-rgb")
    scene = next(block for block in documented("sh") if "crossearth predict" in block)
    typed(scene.replace("artifacts/models/potsdam-rgb", "models/released-potsdam"))
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.shape == (64, 64)


def test_two_sets_of_results_are_compared(typed: Typed, catalog: Catalog, tmp_path: Path) -> None:
    write_benchmark(tmp_path / "worse", catalog, 1, skill=0.3)
    write_benchmark(tmp_path / "better", catalog, 1, skill=0.8)
    assert "B better" in typed("crossearth compare worse better")


def test_the_next_line_can_be_pasted_for_own_data(typed: Typed, tmp_path: Path) -> None:
    own_domain(tmp_path)
    settings = {"Own": {"source": NAME, "target": NAME, "gap": "in-domain"}}
    domains = yaml.safe_load((tmp_path / "catalog.yaml").read_text())
    (tmp_path / "my catalog.yaml").write_text(yaml.safe_dump(domains | {"settings": settings}))
    printed = typed(f"crossearth ingest {NAME} --catalog 'my catalog.yaml'")
    following = printed.partition("next: ")[2]
    assert following.strip() == "crossearth validate --catalog 'my catalog.yaml'"
    printed = typed(following)
    assert "look: artifacts/validation/docs/index.html\n" in printed
    assert f"next: crossearth train {NAME} --catalog 'my catalog.yaml'" in printed
    params = {"preset": "mine", "presets": {"mine": {}}, "catalogs": ["my catalog.yaml"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert f"next: crossearth train {NAME}\n" in typed("crossearth validate")


def test_labels_are_looked_at_before_anything_is_ingested(typed: Typed, tmp_path: Path) -> None:
    own_domain(tmp_path)
    printed = typed(f"crossearth ingest {NAME} --check 3 --catalog catalog.yaml")
    assert "wrote artifacts/previews/town-check/test_scene_7.png\n" in printed
    assert f"next: crossearth ingest {NAME} --catalog catalog.yaml" in printed
    drawn = sorted((tmp_path / "artifacts/previews" / f"{NAME}-check").iterdir())
    assert [path.name for path in drawn] == ["test_scene_7.png", "train_scene_0.png", "train_scene_4.png"]
    assert not (tmp_path / "artifacts/domains").exists()
    with Image.open(drawn[1]) as picture:
        image, labelled = (
            np.asarray(picture)[LINE_PX:][:256, left : left + 256] for left in (0, 256 + GAP_PX)
        )
    scene, mask = draw(0)
    assert (image[::4, ::4].transpose(2, 0, 1) == scene).all()
    road = labelled[::4, ::4].astype(int)[mask == 1]
    assert (road[:, 0] - road[:, 2] > 100).all(), "the road's yellow lies on the road"


def test_an_ingested_domain_is_previewed(typed: Typed, tmp_path: Path) -> None:
    own_domain(tmp_path)
    typed(f"crossearth ingest {NAME} --catalog catalog.yaml")
    (drawn,) = (tmp_path / "artifacts/previews").iterdir()
    drawn.unlink()
    typed(f"crossearth preview {NAME} --catalog catalog.yaml")
    assert Image.open(drawn).width > 0
