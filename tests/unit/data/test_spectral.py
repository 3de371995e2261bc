"""The weight-free style engine: identity, reach, continuity, edges that stay, odd inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from crossearth.data.common.errors import InputError
from crossearth.data.style.spectral import NUM_BANDS, SpectralEngine

ENGINE = SpectralEngine()


def scene(seed: int, height: int = 96, width: int = 128) -> Tensor:
    """A (1,3,H,W) image with the red noise of nature, correlated channels and a bright road across it."""
    generator = torch.Generator().manual_seed(seed)
    planes = torch.zeros(1, 3, height, width)
    for side in (4, 8, 16, 32, 64):
        noise = torch.randn(1, 3, side, side, generator=generator)
        noise = 0.8 * noise.mean(dim=1, keepdim=True) + 0.4 * noise
        planes += F.interpolate(noise, (height, width), mode="bilinear") * (4 / side) ** 0.5
    image = 110 + 25 * planes
    image[..., road(height), :] += 70
    return image.clamp(0, 255).round()


def road(height: int) -> slice:
    return slice(height // 2, height // 2 + 12)


def other_style(seed: int, strength: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, ENGINE.dim, generator=generator) * 0.3 * strength


@pytest.mark.parametrize("size", [(96, 128), (37, 91), (512, 512), (3, 2), (1, 1)])
def test_own_embedding_gives_the_image_itself(size: tuple[int, int]) -> None:
    x_B3HW = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(ENGINE.transfer(x_B3HW, ENGINE.embed(x_B3HW)), x_B3HW, atol=1e-3, rtol=0)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([0, 1, 30, 255]))
@settings(max_examples=40, deadline=None)
def test_any_image_has_a_finite_style_and_takes_any_other(
    height: int, width: int, seed: int, spread: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_13HW = torch.randint(0, spread + 1, (1, 3, height, width), generator=generator).to(torch.uint8)
    e_1D = ENGINE.embed(x_13HW)
    assert e_1D.shape == (1, ENGINE.dim)
    styled_13HW = ENGINE.transfer(x_13HW, e_1D + other_style(seed, strength=10))
    assert styled_13HW.isfinite().all()
    assert styled_13HW.min() >= 0 and styled_13HW.max() <= 255


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_restyled_image_has_the_wanted_statistics(seed: int, share: float) -> None:
    own_1D = ENGINE.embed(scene(0))
    donor_13HW = (scene(seed) * torch.tensor([0.4, 0.6, 0.5])[:, None, None] + 60).clamp(0, 255)
    wanted_1D = own_1D.lerp(ENGINE.embed(F.avg_pool2d(donor_13HW, 3, 1, 1)), share)
    got_1D = ENGINE.embed(ENGINE.transfer(scene(0), wanted_1D))
    assert (got_1D - wanted_1D).norm() < 0.35 * (own_1D - wanted_1D).norm()
    torch.testing.assert_close(got_1D[:, :3], wanted_1D[:, :3], atol=0.05, rtol=0)


def test_transfer_is_continuous_in_the_embedding() -> None:
    x_13HW = scene(0)
    e_1D = ENGINE.embed(x_13HW) + other_style(3)
    step_1D = other_style(4)
    here_13HW = ENGINE.transfer(x_13HW, e_1D)
    moves = [
        (ENGINE.transfer(x_13HW, e_1D + size * step_1D) - here_13HW).abs().mean().item()
        for size in (1e-1, 1e-2, 1e-3)
    ]
    assert moves[0] > moves[1] > moves[2]
    assert moves[2] < 0.03 * moves[0]


@pytest.mark.parametrize("seed", range(6))
def test_label_boundaries_stay_where_they_were(seed: int) -> None:
    x_13HW = scene(seed)
    height = x_13HW.shape[2]
    styled_13HW = ENGINE.transfer(x_13HW, ENGINE.embed(x_13HW) + other_style(seed, strength=2))
    before_H, after_H = (image.mean(dim=(1, 3))[0].diff() for image in (x_13HW, styled_13HW))
    edges = sorted([road(height).start - 1, road(height).stop - 1])
    assert sorted(before_H.abs().topk(2).indices.tolist()) == edges
    assert sorted(after_H.abs().topk(2).indices.tolist()) == edges
    assert torch.equal(after_H[edges].sign(), before_H[edges].sign())


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    x_B3HW = torch.cat([scene(seed) for seed in range(3)])
    e_BD = ENGINE.embed(x_B3HW.flip(0))
    together_B3HW = ENGINE.transfer(x_B3HW, e_BD)
    for index in range(3):
        alone_13HW = ENGINE.transfer(x_B3HW[index : index + 1], e_BD[index : index + 1])
        torch.testing.assert_close(together_B3HW[index : index + 1], alone_13HW, atol=1e-2, rtol=0)


def test_float32_under_autocast() -> None:
    x_13HW, e_1D = scene(0), ENGINE.embed(scene(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ENGINE.embed(scene(1)), e_1D)
        styled_13HW = ENGINE.transfer(x_13HW, e_1D)
    assert torch.equal(styled_13HW, ENGINE.transfer(x_13HW, e_1D))


def test_embedding_tells_style_and_not_size() -> None:
    x_13HW = scene(0, 256, 256)
    own_1D, window_1D = ENGINE.embed(x_13HW), ENGINE.embed(x_13HW[..., 28:228, 28:221])
    hazy_1D = ENGINE.embed(0.5 * x_13HW + 100)
    assert (own_1D - window_1D).norm() < 0.3 * (own_1D - hazy_1D).norm()


def test_one_colour_stays_one_colour() -> None:
    grey_13HW = torch.full((1, 3, 20, 30), 80.0)
    styled_13HW = ENGINE.transfer(grey_13HW, ENGINE.embed(scene(0)))
    assert styled_13HW.std(dim=(2, 3)).max() < 1e-2
    torch.testing.assert_close(styled_13HW.mean(dim=(2, 3)), scene(0).mean(dim=(2, 3)), atol=8.0, rtol=0)


def test_embeddings_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(1, 100\)"):
        ENGINE.transfer(scene(0), torch.zeros(1, 100))
    assert ENGINE.dim == 9 + 3 * NUM_BANDS


def test_areas_without_data_stay_black_and_have_no_style() -> None:
    whole_13HW = scene(0, 160, 160).clamp_min(1)
    holed_13HW = whole_13HW.clone()
    holed_13HW[..., 100:, :] = 0
    e_1D = ENGINE.embed(holed_13HW)
    seen_1D = ENGINE.embed(whole_13HW[..., :100, :])
    torch.testing.assert_close(e_1D[:, :9], seen_1D[:, :9], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ENGINE.transfer(holed_13HW, e_1D), holed_13HW, atol=1e-3, rtol=0)
    styled_13HW = ENGINE.transfer(holed_13HW, e_1D + other_style(0))
    assert styled_13HW[..., 100:, :].max() == 0
    assert styled_13HW[..., :100, :].min() > 0
    black_13HW = torch.zeros(1, 3, 40, 40)
    assert ENGINE.transfer(black_13HW, ENGINE.embed(scene(0))).max() == 0


def test_black_pixels_of_shadows_are_restyled() -> None:
    x_13HW = scene(0)
    x_13HW[..., 20:24, 30:36] = 0
    bright_1D = ENGINE.embed(255 - 0.3 * scene(0))
    assert ENGINE.transfer(x_13HW, bright_1D)[..., 20:24, 30:36].min() > 0
