"""Restyled datasets: shards, resumption, referenced labels, and equality with training's own injection."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from drawn_domain import draw_domain
from own_domain import tree

from crossearth.components.stylize import step
from crossearth.components.stylize.step import ORIGINS_FILE, RUN_FILE, SHEET_FILE, StylizeConfig, stylize
from crossearth.data.common.errors import InputError
from crossearth.data.common.shards import Shard
from crossearth.data.style.earth import EarthStyles, StyleConfig, StyleMoments, inject, keyed_generator
from crossearth.data.style.spectral import SpectralEngine
from crossearth.data.tiles.manifest import Manifest, read_image, read_label, read_manifest

SCENES = {"north": (70, 110), "south": (64, 64)}
TILE_PX = 48


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the step logs, without a tracking server."""
    logged: list[dict[str, Any]] = []

    class Run:
        def log_metrics(self, values: dict[str, float]) -> None:
            logged[-1].update(values)

        def log_artifact(self, path: Path) -> None:
            logged[-1][path.name] = path.read_bytes()

    @contextmanager
    def start_run(name: str, **about: Any) -> Iterator[Run]:
        logged.append({"name": name, **about})
        yield Run()

    monkeypatch.setattr(step, "start_run", start_run)
    # an edit of the sources while tests run must not change the identity of a run
    monkeypatch.setattr(step, "code_digest", lambda _: "tested")
    return logged


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "domains"
    draw_domain(folder / "delta", "train", SCENES, TILE_PX)
    return folder


@pytest.fixture(scope="module")
def styles(domains: Path) -> Path:
    engine, source = SpectralEngine(), read_manifest(domains / "delta", "train")
    moments = StyleMoments(engine.dim)
    for index in range(len(source)):
        x_13HW = torch.from_numpy(read_image(source, index))[None].float()
        for shade in (0.4, 0.8, 1.2):
            moments.add(engine.embed(x_13HW * shade + 20), [f"{index:064x}"])
    return EarthStyles.from_moments(moments, engine.name).save(domains.parent / "earth.safetensors")


def read(folder: Path) -> Manifest:
    return read_manifest(folder / "delta", "train")


def run(domains: Path, styles: Path, out_dir: Path, shard: Shard | None = None, **values: Any) -> Path:
    config = StylizeConfig(**{"counterparts": 2, "style": StyleConfig(block_px=16), **values})
    return stylize("delta", domains, styles, out_dir, config, shard=shard or Shard())


def test_dataset_names_its_origin_and_refers_to_the_labels(
    domains: Path, styles: Path, tmp_path: Path, runs: list[dict[str, Any]]
) -> None:
    folder = run(domains, styles, tmp_path)
    source, styled = read(domains), read(tmp_path)
    assert len(styled) == 2 * len(source)
    assert styled.reading == source.reading
    origins = {row["tile_id"]: row for row in pq.read_table(folder / ORIGINS_FILE).to_pylist()}
    earth = EarthStyles.load(styles, "spectral")
    at = {row["tile_id"]: index for index, row in enumerate(source.rows)}
    for index, row in enumerate(styled.rows):
        origin = origins[row["tile_id"]]
        assert (origin["seed"], origin["engine"]) == (0, "spectral")
        assert origin["styles_digest"] == earth.digest
        original = at[origin["source_tile"]]
        assert np.array_equal(read_label(styled, index), read_label(source, original))
        assert not np.array_equal(read_image(styled, index), read_image(source, original))
        for name in ("scene", "class_pixels", "transform", "bands", "width", "height"):
            assert row[name] == source.rows[original][name]
    assert not list(folder.rglob("*label*"))
    assert json.loads((folder / RUN_FILE).read_text())["source"] == source.digest
    assert runs[-1]["name"] == "stylize delta"
    assert runs[-1][SHEET_FILE] == (folder / SHEET_FILE).read_bytes()


def test_offline_tiles_are_those_of_online_injection(domains: Path, styles: Path, tmp_path: Path) -> None:
    run(domains, styles, tmp_path, seed=3)
    source, styled = read(domains), read(tmp_path)
    earth, engine = EarthStyles.load(styles, "spectral"), SpectralEngine()
    offline = {row["tile_id"]: read_image(styled, index) for index, row in enumerate(styled.rows)}
    same_size = [index for index, row in enumerate(source.rows) if row["width"] == row["height"] == TILE_PX]
    x_B3HW = torch.stack([torch.from_numpy(read_image(source, index)) for index in same_size])
    names = [source.rows[index]["tile_id"] for index in same_size]
    generators = [keyed_generator(3, "delta", name, 1) for name in names]
    online = inject(x_B3HW, earth, engine, StyleConfig(block_px=16), generators)
    for name, x_s_3HW in zip(names, online.x_s, strict=True):
        assert (torch.from_numpy(offline[f"{name}~1"]) - x_s_3HW).abs().max() <= 0.51


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_shards_make_the_same_bytes_as_one_run(
    domains: Path, styles: Path, tmp_path: Path, order: tuple[int, ...]
) -> None:
    whole = run(domains, styles, tmp_path / "whole")
    for index in order:
        assert not (tmp_path / "sharded" / "delta").exists()
        sharded = run(domains, styles, tmp_path / "sharded", Shard(index, 3))
    assert tree(sharded) == tree(whole)


@pytest.mark.parametrize("damage", ["a digit", "half", "a list"])
def test_a_damaged_part_is_named_and_made_again(
    domains: Path, styles: Path, tmp_path: Path, damage: str
) -> None:
    whole = tree(run(domains, styles, tmp_path / "whole"))
    run(domains, styles, tmp_path / "sharded", Shard(0, 2))
    (part,) = tmp_path.glob("sharded/.delta.*/parts/part-0-of-2")
    content = part.read_text()
    part.write_text(
        {
            "a digit": content.replace('"ignored_pixels": 0', '"ignored_pixels": 8', 1),
            "half": content[: len(content) // 2],
            "a list": "[]",
        }[damage]
    )
    with pytest.raises(InputError, match=r"part-0-of-2: .* damaged\n  next: delete it, .* --shard 0/2"):
        run(domains, styles, tmp_path / "sharded", Shard(1, 2))
    assert not (tmp_path / "sharded" / "delta").exists()
    part.unlink()
    assert tree(run(domains, styles, tmp_path / "sharded", Shard(0, 2))) == whole


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda content: content[:4000] + bytes([content[4000] ^ 1]) + content[4001:],
    "half": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_killed_run_is_continued_and_a_tile_damaged_since_made_again(
    domains: Path, styles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run(domains, styles, tmp_path / "whole")
    computed = []
    compute = step._Job._compute

    def dying(job: Any, index: int, image_3HW: np.ndarray) -> np.ndarray:
        computed.append(index)
        if len(computed) == 4:
            raise KeyboardInterrupt
        return compute(job, index, image_3HW)

    monkeypatch.setattr(step._Job, "_compute", dying)
    with pytest.raises(KeyboardInterrupt):
        run(domains, styles, tmp_path / "killed")
    assert not (tmp_path / "killed" / "delta").exists()
    path = min(tmp_path.glob("killed/.delta.*/**/*.tif"))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    folder = run(domains, styles, tmp_path / "killed")
    assert len(computed) < len(read(domains)) + 4
    monkeypatch.setattr(step._Job, "_compute", None)
    assert run(domains, styles, tmp_path / "killed") == folder
    assert read(tmp_path / "killed").digest == read(tmp_path / "whole").digest


def test_other_numbers_make_another_dataset(domains: Path, styles: Path, tmp_path: Path) -> None:
    run(domains, styles, tmp_path)
    first = read(tmp_path)
    run(domains, styles, tmp_path, seed=1)
    assert read(tmp_path).digest != first.digest
    assert not list(tmp_path.glob(".delta.*"))


def test_bad_input_is_refused_and_leaves_nothing(domains: Path, styles: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smaller than a mask block"):
        run(domains, styles, tmp_path, style=StyleConfig(block_px=64))
    with pytest.raises(InputError, match="asked for 'ghiasi'"):
        run(domains, styles, tmp_path, style=StyleConfig(engine="ghiasi", block_px=16))
    with pytest.raises(InputError, match="no test split"):
        run(domains, styles, tmp_path, split="test")
    assert list(tmp_path.iterdir()) == []
