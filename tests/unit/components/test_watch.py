"""Whether new scenes are told from those that a model has seen."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from domain_factory import write_domain
from numpy.typing import NDArray

from crossearth.components.pods import workspace
from crossearth.components.predict.scenes import deal_scenes
from crossearth.components.runtime.code import _sources
from crossearth.components.watch import component, step
from crossearth.components.watch import reference as module
from crossearth.components.watch.reference import (
    FEWEST,
    LOW,
    Gaussian,
    Reference,
    Seen,
    make_reference,
    read_reference,
    write_reference,
)
from crossearth.components.watch.step import Finding, WatchConfig, watch
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import read_json, write_json
from crossearth.data.style.earth import EarthStyles, StyleMoments, style_engine
from crossearth.data.tiles.manifest import read_manifest
from crossearth.model.crossearth import CrossEarth, crossearth_tiny
from crossearth.model.weights.checkpoint import save

PX, HASH = 32, "of the training"
CLASSES = load_catalog().class_sets["loveda"].classes
CONFIG = WatchConfig(precision="float32", device="cpu")


@pytest.fixture(scope="module")
def network() -> CrossEarth:
    torch.manual_seed(0)
    return crossearth_tiny(num_classes=len(CLASSES), image_px=PX).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A domain of fine noise: 20 scenes of about four windows."""
    folder = tmp_path_factory.mktemp("source")
    write_domain(folder, "loveda-urban", "loveda", tiles=20, split="train")
    return folder


def made(source: Path, network: CrossEarth, earth: EarthStyles | None = None) -> Reference | None:
    with torch.inference_mode():
        engine = style_engine("spectral")
        return make_reference(read_manifest(source, "train"), PX, engine, earth, network, HASH)


@pytest.fixture(scope="module")
def seen(source: Path, network: CrossEarth) -> Reference:
    found = made(source, network)
    assert found is not None
    return found


@pytest.fixture
def model(tmp_path: Path, network: CrossEarth, seen: Reference) -> Path:
    meta = {
        "classes": CLASSES,
        "palette": ["#000000"] * len(CLASSES),
        "provenance": "own",
        "recipe": "town",
        "input_hash": HASH,
    }
    write_reference(save(network, tmp_path / "model", meta), seen)
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def tracked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is sent to MLflow, which takes seconds to import."""
    sent: dict[str, Any] = {"files": []}

    @contextmanager
    def start_run(name: str, *, key: str, tags: Mapping[str, str]) -> Iterator[SimpleNamespace]:
        sent.update(name=name, tags=tags)
        yield SimpleNamespace(
            log_metrics=lambda values, at: sent.update(metrics=values, at=at),
            log_artifact=lambda path, folder: sent["files"].append(path.name),
        )

    monkeypatch.setattr(step, "start_run", start_run)
    return sent


def fine(side: int = 128, seed: int = 7) -> NDArray[np.uint8]:
    """As the source's tiles."""
    return np.random.default_rng(seed).integers(1, 256, (3, side, side), dtype=np.uint8)


def coarse(side: int = 128) -> NDArray[np.uint8]:
    """Patches of 8 px: another texture."""
    return fine(side // 8).repeat(8, axis=1).repeat(8, axis=2)


def scene(path: Path, image_3HW: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width = image_3HW.shape
    with rasterio.open(path, "w", "GTiff", width, height, 3, dtype="uint8") as file:
        file.write(image_3HW)
    return path


def test_more_of_the_source_is_fine_and_another_texture_drifts(
    tmp_path: Path, model: Path, typed: Callable[[str], str], tracked: dict[str, Any]
) -> None:
    scene(tmp_path / "new/a.tif", fine())
    assert "fine" in typed("crossearth watch model new --device cpu")
    found = read_json(tmp_path / "artifacts/watch/watch.json")
    assert (found["drifts"], found["all"]["windows"], found["all"]["within_earth"]) == (False, 16, None)
    assert found["all"]["within_training"] > 0.8
    assert max(abs(found["all"][f"band_{band}_shift"]) for band in (1, 2, 3)) < 0.1
    assert tracked["name"] == "watch town"
    assert tracked["metrics"]["watch/drifts"] == 0
    assert tracked["metrics"]["watch/within_training"] == found["all"]["within_training"]
    assert tracked["files"] == ["watch.json", "watch.html"]

    scene(tmp_path / "other.tif", coarse())
    assert "drift" in typed("crossearth watch model other.tif --device cpu --no-fail")
    assert read_json(tmp_path / "artifacts/watch/watch.json")["all"]["within_training"] == 0
    page = (tmp_path / "artifacts/watch/watch.html").read_text()
    assert "<h1>Drift: town</h1>" in page
    assert "://" not in page, "it needs no network"
    (row,) = json.loads(typed("crossearth watch model other.tif --device cpu --no-fail --json"))["scenes"]
    assert (row["scene"], row["verdict"]) == ("other.tif", "drift")


def test_drift_is_an_exit_code_of_its_own_beside_bad_input(
    tmp_path: Path, model: Path, typed: Callable[[str], str], refused: Callable[[str], str]
) -> None:
    scene(tmp_path / "other.tif", coarse())
    with pytest.raises(AssertionError, match=r"(?s)drift: 0 % of the windows lie within.*assert 1 == 0"):
        typed("crossearth watch model other.tif --device cpu")
    (tmp_path / "model/reference.json").unlink()
    assert "train the model again" in refused("crossearth watch model other.tif --device cpu")


def test_a_pod_looks_at_the_scenes_of_all_shards(tmp_path: Path, model: Path, pods_process: None) -> None:
    logged: dict[str, float] = {}
    outputs = {
        "page": SimpleNamespace(path=str(tmp_path / "page.html")),
        "metrics": SimpleNamespace(log_metric=logged.__setitem__),
    }

    def drifts(fail: bool) -> bool:
        items = deal_scenes("new", 2)
        config = {"device": "cpu", "precision": "float32"}
        pod: Any = component.watch.python_func
        return bool(pod(str(tmp_path), items=items, model="model", config=config, fail=fail, **outputs))

    for name in "ab":
        scene(tmp_path / f"new/{name}.tif", fine())
    assert not drifts(fail=True)
    assert logged["within_training"] > 0.8
    page = (tmp_path / "page.html").read_text()
    assert "a.tif" in page and "b.tif" in page
    for name in "ab":
        scene(tmp_path / f"new/{name}.tif", coarse())
    with pytest.raises(InputError, match=r"(?s)the scenes drift: 0 % .* set fail: false"):
        drifts(fail=True)
    (note,) = workspace.failures()
    assert note["step"] == "watch"
    assert logged["within_training"] == 0, "what was found is shown where the step fails, too"
    assert drifts(fail=False)


@pytest.mark.parametrize(
    ("within", "low", "verdict"),
    [(0.5, 0.5, "fine"), (0.49, 0.0, "drift"), (1.0, 0.51, "drift"), (None, None, "no data")],
)
def test_the_verdict_is_that_of_the_rule(within: float | None, low: float | None, verdict: str) -> None:
    assert Finding("a", 1, within, None, low, (0.0, 0.0, 0.0)).verdict == verdict


def test_low_confidence_is_counted_against_the_source(tmp_path: Path, model: Path, seen: Reference) -> None:
    scene(tmp_path / "a.tif", fine())
    usual = watch([tmp_path / "a.tif"], model, tmp_path / "out", CONFIG).all
    assert usual.low_confidence is not None
    assert 0 <= usual.low_confidence < 0.5
    write_reference(model, replace(seen, confidence=1.0))
    sure = watch([tmp_path / "a.tif"], model, tmp_path / "out", CONFIG).all
    assert (sure.within_training, sure.low_confidence) == (usual.within_training, 1.0)
    assert sure.drifts


def test_one_odd_scene_among_many_is_shown_and_no_verdict(tmp_path: Path, model: Path) -> None:
    for name, image in {"a": fine(), "b": fine(seed=8), "odd": coarse()}.items():
        scene(tmp_path / "new" / f"{name}.tif", image)
    found = watch([tmp_path / "new"], model, tmp_path / "out", CONFIG)
    assert [each.verdict for each in found.scenes] == ["fine", "fine", "drift"]
    assert not found.all.drifts


def test_black_windows_say_nothing(tmp_path: Path, model: Path) -> None:
    image = fine()
    image[:, :64] = 0
    scene(tmp_path / "new/half.tif", image)
    scene(tmp_path / "new/none.tif", np.zeros((3, 64, 64), np.uint8))
    found = watch([tmp_path / "new"], model, tmp_path / "out", CONFIG)
    assert [(each.windows, each.verdict) for each in found.scenes] == [(8, "fine"), (0, "no data")]
    with pytest.raises(InputError, match="no scene has a window half of which holds data"):
        watch([tmp_path / "new/none.tif"], model, tmp_path / "out", CONFIG)


def test_of_a_large_scene_so_many_windows_are_looked_at(tmp_path: Path, model: Path) -> None:
    scene(tmp_path / "a.tif", fine())
    few = watch([tmp_path / "a.tif"], model, tmp_path / "out", replace(CONFIG, windows=5, batch_size=2))
    assert few.all.windows == 5
    scene(tmp_path / "small.tif", fine(20))
    assert watch([tmp_path / "small.tif"], model, tmp_path / "out", CONFIG).all.windows == 1


def test_a_broken_scene_is_named_and_the_others_are_looked_at(
    tmp_path: Path, model: Path, typed: Callable[[str], str]
) -> None:
    scene(tmp_path / "new/a.tif", fine())
    (tmp_path / "new/b.tif").write_bytes(b"no raster")
    with pytest.raises(AssertionError, match=r"(?s)1 of 2 scenes were not looked at.*b\.tif.*assert 1 == 0"):
        typed("crossearth watch model new --device cpu")
    assert len(read_json(tmp_path / "artifacts/watch/watch.json")["errors"]) == 1


def test_the_earths_styles_are_those_that_the_training_injected(
    tmp_path: Path, source: Path, network: CrossEarth, model: Path, seen: Reference
) -> None:
    moments = StyleMoments(27)
    moments.add(torch.randn(500, 27, generator=torch.Generator().manual_seed(0)) + 100, [])
    elsewhere = made(source, network, EarthStyles.from_moments(moments, "spectral"))
    assert elsewhere is not None
    scene(tmp_path / "a.tif", fine())
    for earth, share in ((elsewhere.earth, 0.0), (seen.training, 1.0)):
        write_reference(model, replace(seen, earth=earth))
        found = watch([tmp_path / "a.tif"], model, tmp_path / "out", CONFIG).all
        assert found.within_earth == pytest.approx(share, abs=0.15)


def test_thresholds_are_quantiles_of_scenes_that_are_not_in_the_fit(
    source: Path, network: CrossEarth, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[tuple[Seen, bool]] = []
    add = Seen.add

    def noted(self: Seen, windows: Any, engine: Any, scores: Any) -> None:
        add(self, windows, engine, scores)
        if self not in [each for each, _ in added]:
            added.append((self, scores is not None))

    monkeypatch.setattr(Seen, "add", noted)
    monkeypatch.setattr(Seen, "__eq__", object.__eq__)
    found = made(source, network)
    assert found is not None
    (fit, confident), (held, asked) = added
    assert (confident, asked) == (False, True)
    assert found.windows == (len(fit), len(held)) == (16 * 4 - 2, 4 * 4)
    within = found.training.distances(held.points) <= found.farthest
    assert within.sum() == 15  # of 16: 95 %
    assert held.low_confidence(found.confidence) <= LOW < held.low_confidence(found.confidence + 1e-3)


def test_grey_imagery_has_a_reference_too() -> None:
    points = np.zeros((20, 3))
    points[:, 0] = np.arange(20)
    distances = Gaussian([9.5, 0, 0], np.cov(points, rowvar=False).tolist()).distances(points)
    assert np.isfinite(distances).all()
    assert distances[0] > distances[9]


def test_a_source_of_few_windows_has_none_and_an_earlier_one_goes(
    tmp_path: Path, network: CrossEarth, seen: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    write_domain(tmp_path / "few", "loveda-urban", "loveda", tiles=4, split="train")
    with caplog.at_level(logging.WARNING):
        found = made(tmp_path / "few", network)
    assert found is None
    assert FEWEST > 4
    assert "too few windows of 32 px" in caplog.text
    write_reference(tmp_path, seen)
    write_reference(tmp_path, found)
    assert not (tmp_path / module.REFERENCE_NAME).exists()


def test_one_scene_alone_is_cut_in_two(tmp_path: Path) -> None:
    rows = [{"scene": "only"}] * 10
    assert module._blocks(SimpleNamespace(rows=rows)) == (list(range(8)), [8, 9])  # type: ignore[arg-type]


def test_a_reference_of_another_model_or_a_changed_one_is_refused(tmp_path: Path, seen: Reference) -> None:
    write_reference(tmp_path, seen)
    assert read_reference(tmp_path, HASH) == seen
    with pytest.raises(InputError, match="written with another model"):
        read_reference(tmp_path, "another training")
    path = tmp_path / module.REFERENCE_NAME
    write_json(path, read_json(path) | {"farthest": 1e9})
    with pytest.raises(InputError, match="changed since it was written"):
        read_reference(tmp_path, HASH)


def test_watch_needs_nothing_of_the_report() -> None:
    """Its charts need a library that takes seconds to import."""
    sources = {path.as_posix() for path in _sources("crossearth.components.watch.step")}
    assert any(path.endswith("runtime/page.css") for path in sources)
    assert not [path for path in sources if "components/report" in path]
