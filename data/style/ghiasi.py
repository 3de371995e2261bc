"""The style networks of the paper: Ghiasi et al. 2017 (arXiv 1705.06830), weights of Jackson et al. 2019.

Parameters carry the names of the released files (arXiv 1809.05375), so their state dicts load strictly.
"""

from collections.abc import Mapping
from pathlib import Path

import crossearth.data.common.torchvision_ops  # noqa: F401

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import Inception3

from crossearth.data.common.cpu import has_bfloat16_convolutions
from crossearth.data.common.errors import InputError
from crossearth.data.common.finite import misfits, refuse_nonfinite
from crossearth.data.style.weights import PREDICTOR_FILE, TRANSFER_FILE

DIM = 100
MIN_PX = 43
# The predictor was trained on ImageNet's normalisation undone to [-1, 1], with 0.255 in place of 0.225 as the
# deviation of blue: the slip is part of the released weights.
PREDICTOR_SCALE = (2.0, 2.0, 2.0 * 0.225 / 0.255)
PREDICTOR_SHIFT = (-1.0, -1.0, 2.0 * (0.406 - 0.406 * 0.225 / 0.255) - 1.0)


class StylePredictor(nn.Module):
    """p_s: Inception-v3 up to Mixed_6e, mean over positions, Linear 768 -> 100."""

    def __init__(self) -> None:
        super().__init__()
        for name, layer in Inception3(aux_logits=False, init_weights=False).named_children():
            self.add_module(name, layer)
            if name == "Mixed_6e":
                break
        self.fc = nn.Linear(768, DIM)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0, 1], at least 43 px a side -> embeddings (B,100)."""
        scale_311 = x_B3HW.new_tensor(PREDICTOR_SCALE)[:, None, None]
        shift_311 = x_B3HW.new_tensor(PREDICTOR_SHIFT)[:, None, None]
        feat_BCHW = x_B3HW * scale_311 + shift_311
        for layer in list(self.children())[:-1]:
            feat_BCHW = layer(feat_BCHW)
        return self.fc(feat_BCHW.mean(dim=(2, 3), dtype=self.fc.weight.dtype))


def _pad(x_BCHW: Tensor, kernel_size: int) -> Tensor:
    return F.pad(x_BCHW, (kernel_size // 2,) * 4, mode="reflect")


def _instance_norm(x_BCHW: Tensor) -> Tensor:
    # one channel a group is instance norm, and unlike F.instance_norm needs no copy of channels-last maps
    return F.group_norm(x_BCHW, x_BCHW.shape[1])


def _conditional_norm(x_BCHW: Tensor, gamma_BC: Tensor, beta_BC: Tensor) -> Tensor:
    gamma_BC11, beta_BC11 = gamma_BC.to(x_BCHW)[:, :, None, None], beta_BC.to(x_BCHW)[:, :, None, None]
    return torch.addcmul(beta_BC11, _instance_norm(x_BCHW), gamma_BC11)


class ConvBlock(nn.Module):
    """Reflection padding, convolution, instance norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride)

    def forward(self, x_BCHW: Tensor, e_BD: Tensor) -> Tensor:
        return F.relu_(_instance_norm(self.conv(_pad(x_BCHW, self.conv.kernel_size[0]))))


class StyledResidual(nn.Module):
    """Two 3x3 convolutions with conditional instance norm, ReLU after the first; added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.fc_gamma1 = nn.Linear(DIM, channels)
        self.fc_beta1 = nn.Linear(DIM, channels)
        self.fc_gamma2 = nn.Linear(DIM, channels)
        self.fc_beta2 = nn.Linear(DIM, channels)

    def forward(self, x_BCHW: Tensor, e_BD: Tensor) -> Tensor:
        y_BCHW = F.relu_(
            _conditional_norm(self.conv1(_pad(x_BCHW, 3)), self.fc_gamma1(e_BD), self.fc_beta1(e_BD))
        )
        return x_BCHW + _conditional_norm(
            self.conv2(_pad(y_BCHW, 3)), self.fc_gamma2(e_BD), self.fc_beta2(e_BD)
        )


class StyledConv(nn.Module):
    """Nearest upsampling, reflection padding, convolution, conditional instance norm; no activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, upsample: int) -> None:
        super().__init__()
        self.upsample = upsample
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.fc_gamma = nn.Linear(DIM, out_channels)
        self.fc_beta = nn.Linear(DIM, out_channels)

    def forward(self, x_BCHW: Tensor, e_BD: Tensor) -> Tensor:
        if self.upsample > 1:
            x_BCHW = F.interpolate(x_BCHW, scale_factor=self.upsample, mode="nearest")
        x_BCHW = self.conv(_pad(x_BCHW, self.conv.kernel_size[0]))
        return _conditional_norm(x_BCHW, self.fc_gamma(e_BD), self.fc_beta(e_BD))


class StyleTransfer(nn.Module):
    """p_t: redraws an image in the style of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                ConvBlock(3, 32, 9, 1),
                ConvBlock(32, 64, 3, 2),
                ConvBlock(64, 128, 3, 2),
                *(StyledResidual(128) for _ in range(5)),
                StyledConv(128, 64, 3, upsample=2),
                StyledConv(64, 32, 3, upsample=2),
                StyledConv(32, 3, 9, upsample=1),
            ]
        )

    def forward(self, x_B3HW: Tensor, e_BD: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0, 1], styles (B,100) -> (B,3,h,w) in [0, 1]; h, w = H, W rounded up to 4."""
        for index, layer in enumerate(self.layers):
            x_B3HW = layer(x_B3HW, e_BD)
            if index in (8, 9):
                x_B3HW = F.relu_(x_B3HW)
        return torch.sigmoid(x_B3HW.float())


class GhiasiEngine:
    """The paper's `StyleEngine`: both networks, frozen, in eval mode.

    Args:
        transfer, predictor: networks with their weights loaded; taken over.
        dtype: of convolutions and feature maps; None = bfloat16 where the device computes it, else float32.
            Embeddings and the linear layers on them stay float32.
    """

    name = "ghiasi"
    dim = DIM

    def __init__(
        self, transfer: StyleTransfer, predictor: StylePredictor, dtype: torch.dtype | None = None
    ) -> None:
        self.networks = nn.ModuleDict({"transfer": transfer, "predictor": predictor})
        self.networks.requires_grad_(False).eval()
        self.wanted_dtype = dtype
        self.to("cpu")

    @classmethod
    def from_state(
        cls,
        transfer_state: Mapping[str, Tensor],
        predictor_state: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
    ) -> "GhiasiEngine":
        """From state dicts with the released names; InputError where a parameter does not fit."""
        transfer, predictor = StyleTransfer(), StylePredictor()
        _load(transfer, transfer_state, TRANSFER_FILE)
        _load(predictor, predictor_state, PREDICTOR_FILE)
        return cls(transfer, predictor, dtype)

    @classmethod
    def from_dir(cls, weights_dir: Path) -> "GhiasiEngine":
        """From the released files `checkpoint_transformer.pth` and `checkpoint_stylepredictor.pth`.

        Raises:
            InputError: a file is absent (it is named), holds more than tensors, or does not fit.
        """
        return cls.from_state(
            _read(Path(weights_dir) / TRANSFER_FILE, "state_dict_ghiasi"),
            _read(Path(weights_dir) / PREDICTOR_FILE, "state_dict_stylepredictor"),
        )

    def to(self, device: torch.device | str) -> "GhiasiEngine":
        """Moves the networks; returns itself."""
        self.device = torch.device(device)
        self.dtype = self.wanted_dtype or _fast_dtype(self.device)
        for module in self.networks.modules():
            if isinstance(module, nn.Conv2d):
                module.to(self.dtype)
        nn.utils.convert_conv2d_weight_memory_format(self.networks.to(self.device), self._memory_format)
        return self

    @torch.no_grad()
    def embed(self, x_B3HW: Tensor) -> Tensor:
        """Embeddings of images (B,3,H,W), uint8 or float, raw 0..255 -> float32 (B,100).

        Raises:
            InputError: an image smaller than the predictor's receptive path (43 px).
        """
        if min(x_B3HW.shape[-2:]) < MIN_PX:
            raise InputError(
                f"images of {x_B3HW.shape[-2]}x{x_B3HW.shape[-1]} px in the ghiasi style engine",
                expected=f"at least {MIN_PX} px a side",
                next_step="use the spectral engine for tiles this small",
            )
        with torch.autocast(self.device.type, enabled=False):
            return self.networks["predictor"](self._scaled(x_B3HW))

    @torch.no_grad()
    def transfer(self, x_B3HW: Tensor, e_BD: Tensor) -> Tensor:
        """Images (B,3,H,W) raw 0..255 in the styles e_BD (B,100) -> float32 (B,3,H,W), 0..255."""
        height, width = x_B3HW.shape[-2:]
        with torch.autocast(self.device.type, enabled=False):
            styled_B3HW = self.networks["transfer"](self._scaled(x_B3HW), e_BD.float())
        return styled_B3HW[..., :height, :width].contiguous() * 255

    def _scaled(self, x_B3HW: Tensor) -> Tensor:
        return (x_B3HW.float() / 255).to(self.dtype, memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        # channels-last is fast, and its kernels lose four bits of float32's precision in the norms
        return torch.contiguous_format if self.dtype == torch.float32 else torch.channels_last


def _fast_dtype(device: torch.device) -> torch.dtype:
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_bfloat16_convolutions()
    return torch.bfloat16 if fast else torch.float32


def _read(path: Path, key: str) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(
            "no weights of the ghiasi style engine here",
            where=path,
            expected=f"{TRANSFER_FILE} and {PREDICTOR_FILE} of Jackson et al. 2019",
            next_step="get them from github.com/philipjackson/style-augmentation, or set engine: spectral",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, Mapping):
            raise TypeError(f"a {type(content).__name__}")
        state = dict(content[key])
        if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
            raise TypeError("other values than tensors")
        return state
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise InputError(
            f"not the released weights ({error})", where=path, expected=f"a dict with {key!r}"
        ) from error


def _load(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    wanted = network.state_dict()
    # counters of training steps, absent in files older than torch 0.4.1
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    needed = {name: tensor for name, tensor in wanted.items() if name in state or name not in optional}
    if problems := misfits(state, needed):
        raise InputError(f"the weights do not fit the network; {problems}", where=where)
    refuse_nonfinite(state.items(), where, "get the file again")
    network.load_state_dict(state, strict=False)
