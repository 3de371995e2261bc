"""Exported models: how deformable attention stands in a graph, what is refused, what files are called.

Whole networks in other programs' hands: tests/pipeline/test_export.py.
"""

from collections.abc import Callable
from importlib import util
from pathlib import Path

import pytest
import torch

from crossearth.components.cli.model_commands import _file_name
from crossearth.components.export import step
from crossearth.components.export.step import NAME, ExportConfig, _plain_name, export
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.layers.pixel_decoder import DeformableAttention, base_positions
from crossearth.model.weights.checkpoint import save

SIZES = [(2, 3), (4, 6), (8, 12)]


def test_deformable_attention_becomes_gathers_for_any_batch() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(8, 2, 3).eval()
    with torch.no_grad():
        attention.sampling_offsets.weight.normal_(std=0.5)
    num = sum(height * width for height, width in SIZES)

    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x_BSC: torch.Tensor) -> torch.Tensor:
            return self.attention(x_BSC, torch.zeros(num, 8), base_positions(SIZES), SIZES)

    batch = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(Alone(), (torch.randn(2, num, 8),), dynamic_shapes=(batch,))
        kinds = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert any("index_select" in kind for kind in kinds)
        assert not [kind for kind in kinds if "grid_sampl" in kind or "embedding_bag" in kind]
        x_BSC = torch.randn(3, num, 8)
        torch.testing.assert_close(program.module()(x_BSC), Alone()(x_BSC))


def test_onnx_without_its_packages_says_what_to_install(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = util.find_spec
    monkeypatch.setattr(step, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(
        InputError, match=r"(?s)not installed: .*onnxscript.*pip install 'crossearth\[export\]'"
    ):
        export(tmp_path, "m", tmp_path / "m.onnx", ExportConfig("onnx"), catalog)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("crossearth export model --format onx", "'onnx' or 'pt2'"),
        ("crossearth export nowhere --format pt2", "no such model"),
    ],
)
def test_bad_input_leaves_nothing(
    tmp_path: Path, typed: Callable[[str], str], command: str, told: str
) -> None:
    with pytest.raises(AssertionError, match=told):
        typed(command)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_name_of_a_file(tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(InputError, match="a folder"):
        export(tmp_path, "m", tmp_path, ExportConfig("pt2"), catalog)


def test_a_file_is_called_as_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    meta = {"classes": ["a", "b"], "palette": ["#000000"] * 2, "provenance": "own"}
    save(crossearth_tiny(2, 32), tmp_path / "potsdam-rgb", meta)
    assert _file_name("potsdam-rgb") == _file_name("potsdam-rgb/model.safetensors") == "potsdam-rgb"
    assert _file_name("models:/crossearth-x@champion") == "crossearth-x-champion"
    assert _file_name("models:/crossearth-x/3") == "crossearth-x-3"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("potsdam-rgb", "potsdam-rgb"),
        ("of colours", "of-colours"),
        ("2024-roads", "model-2024-roads"),
        ("a", "model-a"),
        ("_x.y_", "x.y"),
        ("土地", "model"),
    ],
)
def test_a_name_is_one_that_the_metadata_s_readers_take(name: str, plain: str) -> None:
    assert _plain_name(name) == plain and NAME.fullmatch(plain)
