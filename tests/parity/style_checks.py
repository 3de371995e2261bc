"""Both style networks and the augmentor, with weights rebuilt from their names.

Shape legend: B images, H W pixels, D style dimensions.
"""

import re
import zlib
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from recording import Recording
from torch import Tensor
from torch.nn import functional as F

from crossearth.data.style.earth import EarthStyles, StyleConfig, inject, keyed_generator
from crossearth.data.style.ghiasi import GhiasiEngine

Shapes = Mapping[str, list[int]]
AUGMENTED = re.compile(
    r"(?P<mode>eval|train)_alpha(?P<alpha>\d*\.?\d+)(_down(?P<halvings>\d+)|(?P<base>_nopred\w*))?"
)


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
        whole_B3hw = engine.networks["transfer"](image_B3HW, e_BD)
        recording.compare("style_io", f"{case}_restyled_{name}", whole_B3hw)
        restyled_B3HW = engine.transfer(image_B3HW * 255, e_BD) / 255
        _compare_cut(recording, f"{case}_restyled_{name}", restyled_B3HW, whole_B3hw)


def _compare_cut(recording: Recording, name: str, restyled_B3HW: Tensor, whole_B3hw: Tensor) -> None:
    """The network rounds sides up to multiples of 4, as recorded; the project cuts them to the input's."""
    height, width = restyled_B3HW.shape[-2:]
    recording.compare_values(f"{name} (cut)", restyled_B3HW, whole_B3hw[..., :height, :width])


def _with_batch_statistics(predictor: torch.nn.Module, image_B3HW: Tensor) -> Tensor:
    state = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    try:
        return predictor.train()(image_B3HW)
    finally:
        predictor.load_state_dict(state)
        predictor.eval()


def _check_augmentor(recording: Recording, engine: GhiasiEngine) -> None:
    """alpha * sampled + (1 - alpha) * own embedding, restyled; alpha and the variant stand in the names."""
    image_B3HW = recording.take("style_augmentor", "image")
    sampled_BD = recording.take("style_augmentor", "sampled_embedding")
    _check_sampling(recording, sampled_BD)
    for key in recording.keys("style_augmentor"):
        found = AUGMENTED.fullmatch(key)
        if not found:
            continue
        alpha, halvings = float(found["alpha"]), int(found["halvings"] or 0)
        if found["base"]:
            _check_unknown_base(recording, key, engine.networks["transfer"], image_B3HW, sampled_BD, alpha)
            continue
        training = found["mode"] == "train"
        restyled_B3HW = _restyled(engine, image_B3HW, sampled_BD, alpha, training, halvings)
        recording.compare("style_augmentor", key, restyled_B3HW)
        if not (training or halvings):
            _compare_cut(recording, key, _injected(engine, image_B3HW, sampled_BD, alpha), restyled_B3HW)


@torch.no_grad()
def _restyled(
    engine: GhiasiEngine, image_B3HW: Tensor, sampled_BD: Tensor, alpha: float, training: bool, halvings: int
) -> Tensor:
    """With the batch's own statistics in training; at a fraction of the size after halvings."""
    predictor = engine.networks["predictor"]
    own_BD = _with_batch_statistics(predictor, image_B3HW) if training else engine.embed(image_B3HW * 255)
    small_B3hw = image_B3HW
    for _ in range(halvings):
        small_B3hw = F.interpolate(small_B3hw, scale_factor=0.5, mode="bilinear", align_corners=False)
    restyled_B3hw = engine.networks["transfer"](small_B3hw, torch.lerp(own_BD, sampled_BD, alpha))
    if not halvings:
        return restyled_B3hw
    return F.interpolate(restyled_B3hw, size=image_B3HW.shape[2:], mode="bilinear", align_corners=False)


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
    recording: Recording,
    key: str,
    transfer: torch.nn.Module,
    image_B3HW: Tensor,
    sampled_BD: Tensor,
    alpha: float,
) -> None:
    """The augmentor without a predictor mixes with one fixed embedding that is not in the folder.

    It is found from all images but the last (100 unknowns, tens of thousands of pixels), then has to give
    the last one.
    """
    expected_B3HW = recording.take("style_augmentor", key)
    base_1D = torch.zeros(1, sampled_BD.shape[1], requires_grad=True)
    search = torch.optim.LBFGS(
        [base_1D], max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-13
    )

    def loss() -> Tensor:
        search.zero_grad()
        restyled_B3HW = transfer(image_B3HW[:-1], torch.lerp(base_1D, sampled_BD[:-1], alpha))
        value = F.mse_loss(restyled_B3HW, expected_B3HW[:-1])
        value.backward()
        return value.detach()

    search.step(loss)
    with torch.no_grad():
        restyled_13HW = transfer(image_B3HW[-1:], torch.lerp(base_1D, sampled_BD[-1:], alpha))
    recording.compare_values(f"{key} (last image)", restyled_13HW, expected_B3HW[-1:])
