"""The style networks against recorded outputs of the released ones, with weights rebuilt from their names."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording import Recording
from style_checks import check_style

from crossearth.data.style.earth import EarthStyles, StyleConfig, inject, keyed_generator
from crossearth.data.style.ghiasi import GhiasiEngine

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}  # some times the recorded float32 noise, 5e-6


def rebuilt_state(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(_rebuilt(name, shape)) for name, shape in shapes.items() if shape}


def _rebuilt(name: str, shape: list[int]) -> np.ndarray:
    z = np.random.RandomState((zlib.crc32(name.encode()) ^ 11) & 0x7FFFFFFF).standard_normal(shape)
    z = z.astype(np.float32)
    if name.endswith("running_var"):
        return 0.75 + 0.5 * np.abs(z)
    if ".bn." in name and name.endswith("weight"):
        return 1 + 0.2 * z
    if z.ndim >= 2:
        return z * np.float32(1.4 / np.sqrt(np.prod(shape[1:])))
    return 1 + 0.1 * z if "fc_gamma" in name else 0.1 * z


@pytest.fixture(scope="module")
def meta(parity_dir: Path) -> dict[str, Any]:
    return json.loads((parity_dir / "style_meta.json").read_text())


@pytest.fixture(scope="module")
def engine(meta: dict[str, Any]) -> GhiasiEngine:
    states = (rebuilt_state(meta["keys"][name]) for name in ("ghiasi", "stylePredictor"))
    return GhiasiEngine.from_state(*states, dtype=torch.float32)


def test_rebuilt_weights_are_those_of_the_recording(meta: dict[str, Any]) -> None:
    for network, shapes in meta["keys"].items():
        for name, tensor in rebuilt_state(shapes).items():
            total = tensor.double().sum().item()
            assert total == pytest.approx(meta["checksum"][f"{network}.{name}"][0], rel=1e-5, abs=1e-4), name


@pytest.mark.parametrize("case", ["s0", "s1"])
def test_networks_equal_the_released_ones(parity_dir: Path, engine: GhiasiEngine, case: str) -> None:
    recorded = np.load(parity_dir / "style_io.npz")
    x_B3HW, target_BD, own_BD = (
        torch.from_numpy(recorded[f"{case}_{name}"])
        for name in ("image", "target_embedding", "embedding_eval")
    )
    height, width = x_B3HW.shape[-2:]
    torch.testing.assert_close(engine.embed(x_B3HW * 255), own_BD, **TOLERANCE)
    for e_BD, name in (
        (target_BD, "restyled_target"),
        (torch.lerp(own_BD, target_BD, 0.5), "restyled_alpha05"),
    ):
        expected_B3HW = torch.from_numpy(recorded[f"{case}_{name}"])
        torch.testing.assert_close(engine.networks["transfer"](x_B3HW, e_BD), expected_B3HW, **TOLERANCE)
        restyled_B3HW = engine.transfer(x_B3HW * 255, e_BD) / 255
        torch.testing.assert_close(restyled_B3HW, expected_B3HW[..., :height, :width], **TOLERANCE)


def test_a_recording_of_odd_sizes_holds(
    parity_dir: Path, meta: dict[str, Any], engine: GhiasiEngine, tmp_path: Path
) -> None:
    """The released network rounds the sides up; a recording has what it gave, not what we make of it."""
    generator = torch.Generator().manual_seed(0)
    x_B3HW, target_BD = (
        torch.rand(2, 3, 110, 130, generator=generator),
        torch.randn(2, 100, generator=generator),
    )
    own_BD = engine.embed(x_B3HW * 255)
    restyled = [engine.networks["transfer"](x_B3HW, torch.lerp(own_BD, target_BD, a)) for a in (1.0, 0.5)]
    assert restyled[0].shape == (2, 3, 112, 132)
    names = ("image", "target_embedding", "embedding_eval", "restyled_target", "restyled_alpha05")
    arrays = dict(zip(names, (x_B3HW, target_BD, own_BD, *restyled), strict=True))
    np.savez(tmp_path / "style_io.npz", **{f"s0_{name}": each.numpy() for name, each in arrays.items()})
    (tmp_path / "style_meta.json").write_text(json.dumps({**meta, "info": {"s0": {}}}))
    recording = Recording(tmp_path)
    check_style(recording)
    wrong = [row for row in recording.rows if not row.holds]
    # what this recording lacks, because it is of another pass of the network
    assert [row.name for row in wrong] == ["s0_embedding_trainmode"]
    assert "s0_restyled_target (cut)" in [row.name for row in recording.rows]
    assert not recording.unchecked()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_injection_equals_the_released_augmentor(
    parity_dir: Path, engine: GhiasiEngine, alpha: float
) -> None:
    recorded = np.load(parity_dir / "style_augmentor.npz")
    x_B3HW = torch.from_numpy(recorded["image"]) * 255
    config = StyleConfig(engine="ghiasi", alpha=alpha, keep_ratio=0.0)
    for index, sampled_D in enumerate(torch.from_numpy(recorded["sampled_embedding"]).double()):
        # statistics without spread: every sample is the recorded one
        no_spread_DD = torch.zeros(engine.dim, engine.dim, dtype=torch.float64)
        earth = EarthStyles(sampled_D, no_spread_DD, no_spread_DD, "ghiasi", 2, "0" * 64)
        styled = inject(x_B3HW[index : index + 1], earth, engine, config, [keyed_generator(0)])
        expected_3HW = torch.from_numpy(recorded[f"eval_alpha{alpha}"][index])
        torch.testing.assert_close(styled.x_s[0] / 255, expected_3HW, **TOLERANCE)


def test_bfloat16_stays_within_a_few_grey_levels(meta: dict[str, Any], parity_dir: Path) -> None:
    states = (rebuilt_state(meta["keys"][name]) for name in ("ghiasi", "stylePredictor"))
    engine = GhiasiEngine.from_state(*states, dtype=torch.bfloat16)
    recorded = np.load(parity_dir / "style_io.npz")
    e_BD = torch.from_numpy(recorded["s0_target_embedding"])
    styled_B3HW = engine.transfer(torch.from_numpy(recorded["s0_image"]) * 255, e_BD)
    difference_B3HW = (styled_B3HW - torch.from_numpy(recorded["s0_restyled_target"]) * 255).abs()
    assert difference_B3HW.mean() < 1.5
