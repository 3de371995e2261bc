"""LoRA: low-rank branches beside the linear maps of a frozen ViT, and their start from minor components.

Hu et al. 2021 (arXiv 2106.09685): W x + alpha/rank B A x, with A random and B zero at first.
SoMA, Yun et al. 2024 (arXiv 2412.04077): B A starts as the smallest `rank` singular components of W, which W
loses. Here W stays, for many models share its file: W x + alpha/rank (B A - B0 A0) x is the same map.

Shape legend: B images, T tokens, I inputs and O outputs of a linear map, R rank.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.model.layers.backbone import Backbone

MAX_RANK = 1024


@checked
class LoraConfig:
    """How LoRA branches are made.

    Attributes:
        rank: of A and B.
        alpha: the branch is scaled by alpha / rank.
        dropout: share of a branch's inputs that a training step leaves out, 0 to below 1.
        init: "zero" (LoRA's), or "soma": from minor singular components, and with its schedule: the first
            third of the blocks gets no branches (8 of 24 in the paper), and weight decay falls to 1e-5 as a
            cosine.
        first_block: the first block with branches, from 0; None = as `init` has it.
    """

    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] = 16
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    init: Literal["zero", "soma"] = "zero"
    first_block: NonNegativeInt | None = None

    def start(self, depth: int) -> int:
        """The first block with branches."""
        if self.first_block is not None:
            return self.first_block
        return depth // 3 if self.init == "soma" else 0


class Branch(nn.Module):
    """The branch of one linear map; it adds itself to the map's output by a hook.

    Args:
        linear: the frozen map.
        number: of the branch, for its random numbers.
        owner: has the keys of the samples that are computed now.
    """

    minor_a: Tensor | None
    minor_b: Tensor | None

    def __init__(self, linear: nn.Linear, config: LoraConfig, number: int, owner: "Keys") -> None:
        super().__init__()
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        self.number, self.owner = number, owner
        inputs, outputs = linear.in_features, linear.out_features
        if config.rank > min(inputs, outputs):
            raise InputError(f"lora.rank: {config.rank}", expected=f"at most {min(inputs, outputs)}")
        self.a_RI = nn.Parameter(torch.empty(config.rank, inputs))
        self.b_OR = nn.Parameter(torch.zeros(outputs, config.rank))
        nn.init.kaiming_uniform_(self.a_RI, a=math.sqrt(5))
        minor = config.init == "soma"
        self.register_buffer("minor_a", torch.zeros(config.rank, inputs) if minor else None)
        self.register_buffer("minor_b", torch.zeros(outputs, config.rank) if minor else None)
        self.handle = linear.register_forward_hook(self.add)

    def add(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """The hook: the map's output with the branch's."""
        (x_BTI,) = inputs
        added_BTO = F.linear(F.linear(self._dropped(x_BTI), self.a_RI), self.b_OR)
        if self.minor_a is not None and self.minor_b is not None:
            added_BTO = added_BTO - F.linear(F.linear(x_BTI, self.minor_a), self.minor_b)
        return output + self.scale * added_BTO

    def _dropped(self, x_BTI: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return x_BTI
        # each sample draws by its own key: neither its batch nor a second pass over the block changes it
        generator = torch.Generator(x_BTI.device)
        kept = []
        for x_TI, key in zip(x_BTI, self.owner.keys, strict=True):
            generator.manual_seed((key * 1_000_003 + self.number) % 2**63)
            kept.append(torch.rand(x_TI.shape, generator=generator, device=x_TI.device) >= self.dropout)
        return x_BTI * torch.stack(kept) / (1 - self.dropout)

    def delta(self) -> Tensor:
        """What the branch adds to the map's weight (O, I), float32."""
        whole_OI = self.b_OR.float() @ self.a_RI.float()
        if self.minor_a is not None and self.minor_b is not None:
            whole_OI = whole_OI - self.minor_b.float() @ self.minor_a.float()
        return self.scale * whole_OI

    @torch.no_grad()
    def start_from(self, weight_OI: Tensor) -> None:
        """Takes the smallest singular components of a weight: A = sqrt(S) V^T, B = U sqrt(S), over scale."""
        if self.minor_a is None or self.minor_b is None:
            return
        rank = len(self.a_RI)
        u_OK, s_K, vt_KI = torch.linalg.svd(weight_OI.double(), full_matrices=False)
        root_R = (s_K[-rank:] / self.scale).sqrt()
        self.a_RI.copy_(root_R[:, None] * vt_KI[-rank:])
        self.b_OR.copy_(u_OK[:, -rank:] * root_R)
        self.minor_a.copy_(self.a_RI)
        self.minor_b.copy_(self.b_OR)


class Keys:
    """The keys of the samples whose tokens go through the branches now, for dropout."""

    keys: Sequence[int] = ()


class Lora(nn.ModuleDict):
    """The branches of a backbone, by block and linear map ("3_attn_qkv"): all maps of attention and MLP.

    They stand apart from the backbone, whose parameters stay those of its file.
    """

    def __init__(self, backbone: Backbone, config: LoraConfig) -> None:
        super().__init__()
        self.owner = Keys()
        for path, linear in _linears(backbone, config):
            self[path.replace(".", "_")] = Branch(linear, config, len(self), self.owner)
        for module in backbone.blocks.modules():
            if getattr(module, "q_bias", None) is not None:
                cast(Any, module).qkv_bias_separate = True  # else its attention reads the weight, not the map
        self.places = {path.replace(".", "_"): path for path, _ in _linears(backbone, config)}

    def start_from(self, backbone: Backbone) -> None:
        """Initialises branches that start from the pretrained weights."""
        for name, branch in self.items():
            linear = cast(nn.Linear, backbone.blocks.get_submodule(self.places[name]))
            cast(Branch, branch).start_from(linear.weight)

    @torch.no_grad()
    def merge(self, backbone: Backbone) -> None:
        """Adds the branches to the backbone's weights and takes them off; the backbone is another then."""
        for name, branch in self.items():
            linear = cast(nn.Linear, backbone.blocks.get_submodule(self.places[name]))
            linear.weight += cast(Branch, branch).delta().to(linear.weight)
            cast(Branch, branch).handle.remove()


def _linears(backbone: Backbone, config: LoraConfig) -> list[tuple[str, nn.Linear]]:
    return [
        (path, module)
        for path, module in backbone.blocks.named_modules()
        if isinstance(module, nn.Linear) and int(path.split(".")[0]) >= config.start(len(backbone.blocks))
    ]
