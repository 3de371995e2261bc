"""An exported model in the hands of others: ONNX Runtime as Deepness uses it, and torch without our code."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from conftest import SHARED
from numpy.typing import NDArray
from PIL import Image

from crossearth.components.export import step
from crossearth.components.export.step import ExportConfig, export
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.raster.reading import Reading
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights.checkpoint import load, save

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# what version 1.5 of the extension asks for, as far as we use it; in an Item each key has a prefix
TENSOR = {
    "type": "object",
    "required": ["shape", "dim_order", "data_type"],
    "properties": {
        "shape": {"type": "array", "minItems": 4, "maxItems": 4, "items": {"type": "integer", "minimum": -1}},
        "dim_order": {"type": "array", "minItems": 4, "maxItems": 4, "uniqueItems": True},
        "data_type": {"enum": ["uint8", "uint16", "float16", "float32", "float64"]},
    },
}
MLM = {
    "type": "object",
    "required": ["name", "architecture", "tasks", "input", "output"],
    "properties": {
        "name": {"pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"},
        "tasks": {"const": ["semantic-segmentation"]},
        "framework": {"enum": ["PyTorch", "ONNX"]},
        "framework_version": {"pattern": r"^\d+\.\d+\.\d+$"},
        "total_parameters": {"type": "integer", "minimum": 1},
        "input": {
            "items": {
                "required": ["name", "input"],
                "properties": {"input": TENSOR, "bands": {"items": {"type": "string", "minLength": 1}}},
                # the dimension is called so where bands are named, and only there
                "if": {"properties": {"bands": {"minItems": 1}}},
                "then": {
                    "properties": {"input": {"properties": {"dim_order": {"contains": {"const": "bands"}}}}}
                },
                "else": {
                    "not": {
                        "properties": {
                            "input": {"properties": {"dim_order": {"contains": {"const": "bands"}}}}
                        }
                    }
                },
            }
        },
        "output": {
            "items": {
                "required": ["name", "tasks", "result"],
                "properties": {
                    "result": TENSOR,
                    "classification:classes": {
                        "items": {
                            "required": ["value"],
                            "properties": {
                                "value": {"type": "integer"},
                                "color_hint": {"pattern": "^[0-9A-F]{6}$"},
                            },
                        }
                    },
                },
            }
        },
    },
}
CLASSES = ["reddish", "greenish", "bluish"]
SIDE = 64
Tiles = NDArray[np.uint8]


def blocks(num: int, seed: int) -> Tiles:
    """Tiles (N, H, W, 3) of blocks of colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (num, SIDE // 16, SIDE // 16, 3), np.uint8)
    return colours.repeat(16, 1).repeat(16, 2)


def real() -> Tiles:
    """The middle of real tiles; made-up ones where there are none."""
    files = sorted((SHARED / "imagery/samples").rglob("img_dir/*.png"))
    tiles = [np.asarray(Image.open(file).convert("RGB"))[:SIDE, :SIDE] for file in files]
    tiles = [tile for tile in tiles if tile.shape == (SIDE, SIDE, 3)]
    return np.stack(tiles) if tiles else blocks(6, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned which colour is the strongest: untrained ones know one class alone."""
    torch.manual_seed(0)
    network = crossearth_tiny(len(CLASSES), SIDE, geospatial=True, inject_at_inference=True)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    for seed in range(60):
        images = torch.from_numpy(blocks(4, seed)).permute(0, 3, 1, 2)
        scores = network(images) + 0.01
        loss = torch.nn.functional.nll_loss(
            (scores / scores.sum(1, keepdim=True)).log(), images.float().argmax(1)
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    reading = Reading((3, 2, 1), "uint16", (0, 3000), gsd_m=0.25)
    meta = {"classes": CLASSES, "palette": ["#ff0000", "#00ff00", "#0000ff"], "provenance": "own"}
    return save(network, tmp_path_factory.mktemp("model"), {**meta, "reading": asdict(reading)})


@pytest.fixture(scope="module")
def exported(model: Path) -> Callable[[str], Path]:
    """The file of a format, made once."""

    def path(form: str) -> Path:
        file = model / f"exported.{form}"
        if not file.exists():
            export(model, "of colours", file, ExportConfig(form), load_catalog())  # type: ignore[arg-type]
        return file

    return path


def ours(model: Path, tiles_NHW3: Tiles) -> NDArray[np.float32]:
    """Probabilities (N, K, H, W) of our own network."""
    with torch.inference_mode():
        scores = load(model)(torch.from_numpy(tiles_NHW3).permute(0, 3, 1, 2))
    return (scores / scores.sum(1, keepdim=True)).numpy()


def as_deepness(path: Path, tiles_NHW3: Tiles) -> NDArray[np.int64]:
    """Class ids (N, H, W) by the steps that Deepness takes, whatever the batch."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert isinstance(given.shape[0], str), "Deepness takes a fixed batch size for the only one"
    assert given.shape[1:] == [3, SIDE, SIDE]
    told = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert told["tile_size"] == SIDE and told["model_type"] == "Segmentor"
    scaled = np.float32(tiles_NHW3 * 1.0 / 255.0)
    standard = (scaled - np.array(told["standardization_mean"])) / np.array(told["standardization_std"])
    images = np.transpose(standard.astype(np.float32), (0, 3, 1, 2))
    (found,) = session.run(None, {given.name: images})
    found[found < told["seg_thresh"]] = 0
    return found.argmax(1)


def same_classes(found_NHW: NDArray[np.int64], expected_NKHW: NDArray[np.float32]) -> None:
    """Class by class: of the pixels that either names so, nearly all are the same."""
    expected_NHW = expected_NKHW.argmax(1)
    for index, name in enumerate(CLASSES):
        either = (found_NHW == index) | (expected_NHW == index)
        both = (found_NHW == index) & (expected_NHW == index)
        assert either.any(), f"{name} is nowhere: the test says nothing of it"
        assert both.sum() / either.sum() > 0.999, name


@pytest.mark.parametrize("tiles", [blocks(5, 99), real()], ids=["blocks", "real"])
def test_onnx_runtime_gives_our_classes_as_deepness_calls_it(
    model: Path, exported: Callable[[str], Path], tiles: Tiles
) -> None:
    same_classes(as_deepness(exported("onnx"), tiles), ours(model, tiles))


def test_the_graph_samples_by_gathers_and_is_one_file(exported: Callable[[str], Path]) -> None:
    graph = onnx.load(exported("onnx"), load_external_data=False)
    onnx.checker.check_model(graph)
    kinds = {node.op_type for node in graph.graph.node}
    assert "Gather" in kinds and not kinds & {"GridSample", "Loop", "SequenceEmpty"}
    assert {each.domain for each in graph.opset_import} == {""}, "no operators of a runtime's own"
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


def test_the_metadata_is_what_its_readers_take(exported: Callable[[str], Path]) -> None:
    told = {entry.key: json.loads(entry.value) for entry in onnx.load(exported("onnx")).metadata_props}
    assert told["class_names"] == {"0": "reddish", "1": "greenish", "2": "bluish"}
    assert told["resolution"] == 25.0  # cm
    assert told["tiles_overlap"] == 33  # per cent
    mlm = told["mlm-metadata"]["properties"]
    jsonschema.validate(mlm, MLM)
    (given,), (result,) = mlm["input"], mlm["output"]
    assert mlm["name"] == "of-colours"
    assert given["input"]["shape"] == [-1, 3, SIDE, SIDE]
    assert given["value_scaling"] == [{"type": "min-max", "minimum": 0, "maximum": 3000}]
    assert [each["name"] for each in result["classification:classes"]] == CLASSES


ELSEWHERE = """
import json, sys, torch
told = {"mlm-metadata": ""}
program = torch.export.load(sys.argv[1], extra_files=told)
assert not any(name.startswith("crossearth") for name in sys.modules)
images = torch.load(sys.argv[2])
torch.save(program.module()(images), sys.argv[2])
print(json.loads(told["mlm-metadata"])["properties"]["artifact_type"])
"""


def test_torch_runs_a_pt2_without_our_code(model: Path, exported: Callable[[str], Path]) -> None:
    tiles, passed = blocks(3, 99), model / "images.pt"
    torch.save(torch.from_numpy(np.float32(tiles) / 255).permute(0, 3, 1, 2).contiguous(), passed)
    command = [sys.executable, "-c", ELSEWHERE, str(exported("pt2")), str(passed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.export.save"
    found, expected = torch.load(passed).numpy(), ours(model, tiles)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "spoilt",
    [lambda shares: 1 - shares, lambda shares: shares**2 / (shares**2).sum(1, keepdims=True)],
    ids=["other classes", "other probabilities"],
)
def test_a_file_that_gives_something_else_does_not_appear(
    spoilt: Callable[..., NDArray[np.float32]], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(program: object, path: Path, exported: object) -> Callable[..., NDArray[np.float32]]:
        path.touch()
        return lambda images: spoilt(
            ours(model, np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1))
        )

    monkeypatch.setattr(step, "_write_pt2", wrong)
    monkeypatch.setattr(step, "trace", lambda window: None)
    with pytest.raises(
        RuntimeError, match="pixels get the class and the probabilities that the model gives them"
    ):
        export(model, "m", tmp_path / "m.pt2", ExportConfig("pt2"), load_catalog())
    assert not list(tmp_path.iterdir())
