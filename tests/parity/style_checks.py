"""Both style networks and the augmentor, with weights rebuilt from their names.

Shape legend: B images, H W pixels, D style dimensions.
"""

import zlib
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from recording import Recording
from torch import Tensor
from torch.nn import functional as F

from crossearth.data.ghiasi import GhiasiEngine
from crossearth.data.style import EarthStyles, StyleConfig, inject, keyed_generator

Shapes = Mapping[str, list[int]]


def rebuilt_state(shapes: Shapes, base: int) -> dict[str, Tensor]:
    """The recorded networks' weights; counters (without dimensions) are left at their start."""
    return {name: torch.from_numpy(_rebuilt(name, shape, base)) for name, shape in shapes.items() if shape}


def _rebuilt(name: str, shape: list[int], base: int) -> np.ndarray:
    seed = (zlib.crc32(name.encode()) ^ base) & 0x7FFFFFFF
    z = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 0.75 + 0.5 * np.abs(z)
    if name.endswith("running_mean"):
        return 0.1 * z
    if ".bn." in name and name.endswith("weight"):
        return 1 + 0.2 * z
    if z.ndim >= 2:
        return z * np.float32(1.4 / np.sqrt(np.prod(shape[1:])))
    return 1 + 0.1 * z if "fc_gamma" in name else 0.1 * z


def check_style(recording: Recording) -> None:
    meta = recording.json("style_meta.json")
    if meta is None:
        return
    states = {name: rebuilt_state(shapes, meta["base"]) for name, shapes in meta["keys"].items()}
    _check_sums(recording, states, meta["checksum"])
    engine = GhiasiEngine.from_state(states["ghiasi"], states["stylePredictor"], dtype=torch.float32)
    for case in meta["info"]:
        _check_networks(recording, engine, case)
    if recording.keys("style_augmentor"):
        _check_augmentor(recording, engine)


def _check_sums(
    recording: Recording, states: Mapping[str, Mapping[str, Tensor]], sums: Mapping[str, Any]
) -> None:
    ours = {
        f"{network}.{name}": (float(tensor.double().sum()), float(tensor.double().abs().sum()))
        for network, state in states.items()
        for name, tensor in state.items()
    }
    wrong = [
        name
        for name in ours.keys() | sums.keys()
        if name not in ours or name not in sums or not np.allclose(ours[name], sums[name], 1e-5, 1e-3)
    ]
    recording.check("style_meta.json: checksums", not wrong, f"{len(wrong)} of {len(sums)} differ", "1e-5")


@torch.no_grad()
def _check_networks(recording: Recording, engine: GhiasiEngine, case: str) -> None:
    predictor = engine.networks["predictor"]
    image_B3HW = recording.take("style_io", f"{case}_image")
    target_BD = recording.take("style_io", f"{case}_target_embedding")
    own_BD = engine.embed(image_B3HW * 255)
    recording.compare("style_io", f"{case}_embedding_eval", own_BD)
    recording.compare(
        "style_io", f"{case}_embedding_trainmode", _with_batch_statistics(predictor, image_B3HW)
    )
    for name, e_BD in (("target", target_BD), ("alpha05", torch.lerp(own_BD, target_BD, 0.5))):
        restyled_B3HW = engine.transfer(image_B3HW * 255, e_BD) / 255
        recording.compare("style_io", f"{case}_restyled_{name}", restyled_B3HW)


def _with_batch_statistics(predictor: torch.nn.Module, image_B3HW: Tensor) -> Tensor:
    state = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    try:
        return predictor.train()(image_B3HW)
    finally:
        predictor.load_state_dict(state)
        predictor.eval()


def _check_augmentor(recording: Recording, engine: GhiasiEngine) -> None:
    """alpha * sampled + (1 - alpha) * own embedding, restyled."""
    image_B3HW = recording.take("style_augmentor", "image")
    sampled_BD = recording.take("style_augmentor", "sampled_embedding")
    _check_sampling(recording, sampled_BD)
    transfer = engine.networks["transfer"]
    own_BD = engine.embed(image_B3HW * 255)
    half_BD = torch.lerp(own_BD, sampled_BD, 0.5)
    for key in recording.keys("style_augmentor"):
        if key.startswith("eval_alpha") and key.removeprefix("eval_alpha").replace(".", "").isdigit():
            restyled = _injected(engine, image_B3HW, sampled_BD, float(key.removeprefix("eval_alpha")))
            recording.compare("style_augmentor", key, restyled)
    with torch.no_grad():
        trained_BD = torch.lerp(
            _with_batch_statistics(engine.networks["predictor"], image_B3HW), sampled_BD, 0.5
        )
        recording.compare("style_augmentor", "train_alpha0.5", transfer(image_B3HW, trained_BD))
        halved = F.interpolate(image_B3HW, scale_factor=0.5, mode="bilinear", align_corners=False)
        small_B3hw = transfer(halved, half_BD)
        size = image_B3HW.shape[2:]
        raised_B3HW = F.interpolate(small_B3hw, size=size, mode="bilinear", align_corners=False)
        recording.compare("style_augmentor", "eval_alpha0.5_down1", raised_B3HW)
    _check_unknown_base(recording, transfer, image_B3HW, sampled_BD)


def _check_sampling(recording: Recording, sampled_BD: Tensor) -> None:
    """sampled = randn A^T + mean. The folder does not hold the statistics: some that fit are made up."""
    randn_BD = recording.take("style_augmentor", "randn").double()
    mean_D = sampled_BD.double().mean(0) + 1
    factor_DD = torch.linalg.lstsq(randn_BD, sampled_BD.double() - mean_D).solution.T
    earth = EarthStyles(mean_D, factor_DD @ factor_DD.T, factor_DD, "ghiasi", 2, "0" * 64)
    with mock.patch("torch.randn", return_value=randn_BD):
        actual_BD = earth.sample(len(randn_BD), torch.Generator())
    recording.compare_values("sampled_embedding (form only)", actual_BD, sampled_BD)


def _injected(engine: GhiasiEngine, image_B3HW: Tensor, sampled_BD: Tensor, alpha: float) -> Tensor:
    """The project's injection, all pixels styled, with statistics whose every sample is the recorded one."""
    config = StyleConfig(engine="ghiasi", alpha=alpha, keep_ratio=0.0)
    no_spread_DD = torch.zeros(engine.dim, engine.dim, dtype=torch.float64)
    parts = []
    for image_3HW, sampled_D in zip(image_B3HW * 255, sampled_BD.double(), strict=True):
        earth = EarthStyles(sampled_D, no_spread_DD, no_spread_DD, "ghiasi", 2, "0" * 64)
        parts.append(inject(image_3HW[None], earth, engine, config, [keyed_generator(0)]).x_s)
    return torch.cat(parts) / 255


def _check_unknown_base(
    recording: Recording, transfer: torch.nn.Module, image_B3HW: Tensor, sampled_BD: Tensor
) -> None:
    """The augmentor without a predictor mixes with one fixed embedding that is not in the folder.

    It is found from all images but the last (100 unknowns, tens of thousands of pixels), then has to give
    the last one.
    """
    expected_B3HW = recording.take("style_augmentor", "eval_alpha0.5_nopred_float32fix")
    base_1D = torch.zeros(1, sampled_BD.shape[1], requires_grad=True)
    search = torch.optim.LBFGS(
        [base_1D], max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-13
    )

    def loss() -> Tensor:
        search.zero_grad()
        restyled_B3HW = transfer(image_B3HW[:-1], torch.lerp(base_1D, sampled_BD[:-1], 0.5))
        value = F.mse_loss(restyled_B3HW, expected_B3HW[:-1])
        value.backward()
        return value.detach()

    search.step(loss)
    with torch.no_grad():
        restyled_13HW = transfer(image_B3HW[-1:], torch.lerp(base_1D, sampled_BD[-1:], 0.5))
    recording.compare_values(
        "eval_alpha0.5_nopred_float32fix (last image)", restyled_13HW, expected_B3HW[-1:]
    )
