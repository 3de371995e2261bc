"""A style engine without weights: colour statistics and radial amplitude bands of an image, moved to others.

Let x be an image in raw values 0..255, and

    v = logit((x + m) / (255 + 2m)),   m = MARGIN          (a range that restyled values hardly leave)
    y = U (v - mu),   mu = mean over pixels,   U = orthonormal: luminance and two colour differences
    Z = DCT-II of y, orthonormal: the spectrum of y mirrored at its borders, so no seam wraps around

The embedding of x, in this order (D = 3 + 6 + 3 * NUM_BANDS), is

    mu                                  3: colour cast, brightness
    log(C + eps I), C = Z Z^T / (HW)    6: contrast and colour correlation; upper triangle, sqrt 2 off it
    s_cj = 1/2 log((p_cj + eps/12) / (C_cc + eps)),   p_cj = sum_f w_j(f) Z_c(f)^2 / sum_f w_j(f)
                                        3 NUM_BANDS: texture; the spectrum's shape apart from its contrast

with w_j raised cosines over the octaves of |f| that sum to 1 at every f, and eps one grey level squared.
Every vector of R^D stands for some statistics (the logarithm of a matrix may be any symmetric matrix), so
Gaussian samples and mixtures of embeddings need no repair.

The transfer of x to an embedding (mu', L', s') scales amplitudes and keeps signs, the phase of this spectrum:

    Z'_c(f) = Z_c(f) exp(sum_j w_j(f) q(s'_cj - s_cj, log MAX_BAND_GAIN))
    y'      = T IDCT(Z'),   T = optimal transport map between Gaussians, from C(Z') + eps I to exp(L')
    x'      = the values with v = U^T y' + mu'

where q(d, limit) = limit tanh(d / limit) keeps noise from being blown up, on the logarithms of T's
eigenvalues too. T is symmetric positive definite: of all maps to that covariance it moves colours least.
For e = embed(x) every gain is 1, T = I, and x' = x. A gain that is radial, positive and smooth in f is a
symmetric filter, and T acts on each pixel alone: what was an edge stays one, in its place.

Areas without data (black, at least VOID_PX wide) have no style: they are left out of every mean and sum, and
stay black.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from crossearth.data.common.errors import InputError

MARGIN = 16.0
NUM_BANDS = 6  # octaves: 2^-6 .. 2^-1 cycles per pixel
MAX_BAND_GAIN = 3.0
MAX_COLOUR_GAIN = 6.0
LEVEL = 4 / (255 + 2 * MARGIN)  # one grey level of x, as a step of v at mid-range
EPS = LEVEL**2
VOID_PX = 8

_OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
OPPONENT = _OPPONENT / _OPPONENT.norm(dim=1, keepdim=True)
_ROWS, _COLUMNS = torch.triu_indices(3, 3)
_TRIANGLE_SCALE = torch.where(_ROWS == _COLUMNS, 1.0, math.sqrt(2)).double()


class SpectralEngine:
    """Weight-free `StyleEngine`; see this module's equations. Computes in float32, under autocast as well."""

    name = "spectral"
    dim = 3 + 6 + 3 * NUM_BANDS

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "SpectralEngine":
        """Itself: without weights, it works wherever its input is; `device` tells callers where that is."""
        self.device = torch.device(device)
        return self

    @torch.no_grad()
    def embed(self, x_B3HW: Tensor) -> Tensor:
        """Statistics of images (B,3,H,W), uint8 or float, raw 0..255 -> float32 (B, dim)."""
        with torch.autocast(x_B3HW.device.type, enabled=False):
            return _statistics(_analyse(x_B3HW))

    @torch.no_grad()
    def transfer(self, x_B3HW: Tensor, e_BD: Tensor) -> Tensor:
        """Images in the styles e_BD (B, dim), float32 (B,3,H,W), 0..255; InputError: e_BD is misshapen."""
        if e_BD.shape != (len(x_B3HW), self.dim):
            raise InputError(
                f"style embeddings of shape {tuple(e_BD.shape)}",
                expected=f"{(len(x_B3HW), self.dim)} for {len(x_B3HW)} images and the spectral engine",
            )
        with torch.autocast(x_B3HW.device.type, enabled=False):
            analysis = _analyse(x_B3HW)
            spectrum_B3WH = analysis.spectrum
            e_BD = e_BD.to(spectrum_B3WH)
            wanted_mean_B3, wanted_log_B6, wanted_bands_BD = e_BD.split((3, 6, 3 * NUM_BANDS), dim=1)
            own_bands_BD = _statistics(analysis)[:, 9:]
            log_gain_BCJ = _soft_limit(wanted_bands_BD - own_bands_BD, MAX_BAND_GAIN).unflatten(1, (3, -1))
            bands_JN = _bands(*x_B3HW.shape[-2:], x_B3HW.device).flatten(1)
            spectrum_B3WH *= (log_gain_BCJ @ bands_JN).exp_().view_as(spectrum_B3WH)

            colour_B33 = _transport(_covariance(analysis), _symmetric(wanted_log_B6)).to(spectrum_B3WH)
            to_rgb_B33 = OPPONENT.to(spectrum_B3WH).T @ colour_B33
            y_B3HW = _idct2(spectrum_B3WH, *x_B3HW.shape[-2:])
            v_B3HW = torch.baddbmm(wanted_mean_B3[:, :, None], to_rgb_B33, y_B3HW.flatten(2)).view_as(y_B3HW)
            x_t_B3HW = v_B3HW.sigmoid_().mul_(255 + 2 * MARGIN).sub_(MARGIN).clamp_(0, 255)
            return x_t_B3HW.mul_(analysis.seen)


class _Analysis(NamedTuple):
    """Means of v (B,3); `_dct2` of its opponent planes; where data are (B,1,H,W), and their share (B,)."""

    mean: Tensor
    spectrum: Tensor
    seen: Tensor
    share: Tensor


def _analyse(x_B3HW: Tensor) -> _Analysis:
    x_B3HW = x_B3HW.float().clamp(0, 255)
    seen_B1HW = _seen(x_B3HW)
    share_B = seen_B1HW.float().mean(dim=(1, 2, 3)).clamp_min(1 / seen_B1HW[0].numel())
    v_B3HW = (x_B3HW + MARGIN).div_(255 + MARGIN - x_B3HW).log_().mul_(seen_B1HW)
    mean_B3 = v_B3HW.mean(dim=(2, 3)) / share_B[:, None]
    v_B3HW.sub_(mean_B3[:, :, None, None]).mul_(seen_B1HW)
    planes_B3HW = (OPPONENT.to(v_B3HW) @ v_B3HW.flatten(2)).view_as(v_B3HW)
    return _Analysis(mean_B3, _dct2(planes_B3HW), seen_B1HW, share_B)


def _seen(x_B3HW: Tensor) -> Tensor:
    """False at black pixels in or beside wholly black blocks: shadows have black pixels, hardly blocks."""
    height, width = x_B3HW.shape[2:]
    brightest_B1HW = x_B3HW.amax(dim=1, keepdim=True)
    block = (min(VOID_PX, height), min(VOID_PX, width))
    void_B1hw = F.max_pool2d(brightest_B1HW, block, ceil_mode=True) == 0
    near_B1hw = F.max_pool2d(void_B1hw.float(), 3, stride=1, padding=1) > 0
    near_B1HW = near_B1hw.repeat_interleave(block[0], dim=2).repeat_interleave(block[1], dim=3)
    return (brightest_B1HW > 0) | ~near_B1HW[..., :height, :width]


def _statistics(analysis: _Analysis) -> Tensor:
    mean_B3, spectrum_B3WH = analysis.mean, analysis.spectrum
    bands_JN = _bands(*analysis.seen.shape[-2:], spectrum_B3WH.device).flatten(1)
    # no coefficient of a tiny image may fall into a low band: its power is then 0, like a flat image's
    weight_J = bands_JN.sum(dim=1).clamp_min(1e-6)
    power_BCJ = spectrum_B3WH.square().flatten(2) @ bands_JN.T / (weight_J * analysis.share[:, None, None])
    covariance_B33 = _covariance(analysis)
    variance_BC1 = covariance_B33.diagonal(dim1=1, dim2=2).to(power_BCJ)[:, :, None]
    shape_BCJ = 0.5 * ((power_BCJ + EPS / 12) / (variance_BC1 + EPS)).log()
    log_B33 = _matrix_function(covariance_B33 + EPS * torch.eye(3), torch.log)
    log_B6 = log_B33[:, _ROWS, _COLUMNS] * _TRIANGLE_SCALE
    return torch.cat([mean_B3, log_B6.to(mean_B3), shape_BCJ.flatten(1)], dim=1)


def _covariance(analysis: _Analysis) -> Tensor:
    """Covariance of the planes, by Parseval; float64 on the CPU, since not every device has both."""
    flat_B3N = analysis.spectrum.flatten(2)
    num_seen_B11 = analysis.share[:, None, None] * analysis.seen[0].numel()
    return (flat_B3N @ flat_B3N.mT / num_seen_B11).cpu().double()


def _transport(from_B33: Tensor, wanted_log_B33: Tensor) -> Tensor:
    """S^-1/2 (S^1/2 W S^1/2)^1/2 S^-1/2 for covariances S, W; its eigenvalues are softly limited."""
    regular_B33 = from_B33 + EPS * torch.eye(3)
    wanted_B33 = _matrix_function(wanted_log_B33, torch.exp)
    root_B33 = _matrix_function(regular_B33, torch.sqrt)
    inverse_B33 = _matrix_function(regular_B33, torch.rsqrt)
    map_B33 = inverse_B33 @ _matrix_function(root_B33 @ wanted_B33 @ root_B33, torch.sqrt) @ inverse_B33
    return _matrix_function(map_B33, lambda values: _soft_limit(values.log(), MAX_COLOUR_GAIN).exp())


def _symmetric(triangle_B6: Tensor) -> Tensor:
    matrix_B33 = torch.zeros(len(triangle_B6), 3, 3, dtype=torch.float64)
    matrix_B33[:, _ROWS, _COLUMNS] = triangle_B6.cpu().double() / _TRIANGLE_SCALE
    return matrix_B33 + matrix_B33.mT - torch.diag_embed(matrix_B33.diagonal(dim1=1, dim2=2))


def _matrix_function(symmetric_B33: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    values_B3, vectors_B33 = torch.linalg.eigh(symmetric_B33)
    return (vectors_B33 * function(values_B3)[:, None, :]) @ vectors_B33.mT


def _soft_limit(log_gain: Tensor, max_gain: float) -> Tensor:
    limit = math.log(max_gain)
    return limit * torch.tanh(log_gain / limit)


@lru_cache(maxsize=8)
def _bands(height: int, width: int, device: torch.device) -> Tensor:
    """Weights (NUM_BANDS, w', h') of the octaves over `_dct2`'s coefficients: raised cosines in log2 |f|."""
    (f_W, valid_W), (f_H, valid_H) = _frequencies(width, device), _frequencies(height, device)
    radius_WH = torch.hypot(f_W[:, None], f_H[None, :])
    octave_WH = (radius_WH.clamp_min(2.0**-NUM_BANDS).log2() + NUM_BANDS).clamp_max(NUM_BANDS - 1)
    distance_JWH = (octave_WH - torch.arange(NUM_BANDS, device=device)[:, None, None]).abs().clamp_max(1)
    return torch.cos(math.pi / 2 * distance_JWH).square() * (valid_W[:, None] & valid_H[None, :])


# A DCT-II of N real numbers is one real FFT of N numbers in another order, times a twiddle (Makhoul 1980):
# the real part at k is X_k, the imaginary part -X_(N-k). The pairs stay side by side as the FFT leaves them,
# since nothing here needs X in order; what is no coefficient (X_N, and X_(N/2) for the second time) is 0.


def _dct2(x_B3HW: Tensor) -> Tensor:
    """Orthonormal DCT-II over both sides -> (B,3,w',h'), transposed and in the order of `_frequencies`."""
    x_B3HW = torch.cat([x_B3HW[..., ::2, :], x_B3HW[..., 1::2, :].flip(-2)], dim=-2)
    x_B3HW = torch.cat([x_B3HW[..., ::2], x_B3HW[..., 1::2].flip(-1)], dim=-1)
    return _transform(_transform(x_B3HW).mT.contiguous())


def _idct2(z_B3WH: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `_dct2`."""
    x_B3HW = _inverse(_inverse(z_B3WH, height).mT.contiguous(), width)
    columns = _interleave(x_B3HW.mT).mT
    return _interleave(columns)


def _transform(ordered: Tensor) -> Tensor:
    size = ordered.shape[-1]
    pairs = torch.view_as_real(torch.fft.rfft(ordered).mul_(_twiddle(size, ordered.device)))
    if size % 2 == 0:
        pairs[..., -1, 1] = 0
    return pairs.flatten(-2)


def _inverse(z: Tensor, size: int) -> Tensor:
    pairs = torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous())
    return torch.fft.irfft(pairs * _inverse_twiddle(size, z.device), n=size)


def _interleave(ordered: Tensor) -> Tensor:
    size = ordered.shape[-1]
    x = torch.empty_like(ordered)
    x[..., ::2] = ordered[..., : (size + 1) // 2]
    x[..., 1::2] = ordered[..., (size + 1) // 2 :].flip(-1)
    return x


def _frequencies(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cycles per pixel of a transformed side's entries, and whether an entry is a coefficient of its own."""
    k = torch.arange(size // 2 + 1, device=device)
    index = torch.stack([k, size - k], dim=1).flatten()
    valid = index < size
    if size % 2 == 0:
        valid[-1] = False
    return index / (2 * size), valid


@lru_cache(maxsize=16)
def _twiddle(size: int, device: torch.device) -> Tensor:
    k = torch.arange(size // 2 + 1, device=device)
    scale = torch.where(k == 0, math.sqrt(1 / size), math.sqrt(2 / size))
    return torch.polar(scale, -k * (math.pi / (2 * size)))


@lru_cache(maxsize=16)
def _inverse_twiddle(size: int, device: torch.device) -> Tensor:
    twiddle = 1 / _twiddle(size, device)
    if size % 2 == 0:
        # its second half was dropped
        twiddle[-1] *= 2
    return twiddle
