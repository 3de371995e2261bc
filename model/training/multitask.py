"""One step of the multi-task training: views of a batch, losses, parameter groups, learning rate.

Shape legend: B images, H W pixels, K classes, Q queries, S the side of a reconstruction.

Every random choice is drawn per sample from (seed, position in the training), on the CPU: a step is the same
however its samples are spread over processes, and a resumed training needs no state of any generator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.config import Share, Weight, checked
from crossearth.data.common.files import digest
from crossearth.data.style.earth import (
    EarthStyles,
    StyleConfig,
    StyleEngine,
    block_mask,
    inject,
    keyed_generator,
)
from crossearth.model.crossearth import CrossEarth, Features
from crossearth.model.training.losses import SegmentationLossConfig, segmentation_loss

Ablation = Literal["rein", "+style", "+mim", "+style+mim", "full"]
Schedule = Literal["poly", "warmup-poly"]
POLY_POWER = 0.9
ANNEALED_DECAY = 1e-5  # weight decay at the end of SoMA's schedule
WARMUP_START = 1e-6  # factor of the learning rate at the first iteration of the warm-up


class Branches(NamedTuple):
    """Which parts of the method a training uses, beside the segmentation loss.

    style: Earth-Style Injection. mim: masked image modelling with the reconstruction head.
    geospatial: extractor and injector.
    """

    style: bool
    mim: bool
    geospatial: bool


BRANCHES: dict[Ablation, Branches] = {
    "rein": Branches(style=False, mim=False, geospatial=False),
    "+style": Branches(style=True, mim=False, geospatial=False),
    "+mim": Branches(style=False, mim=True, geospatial=False),
    "+style+mim": Branches(style=True, mim=True, geospatial=False),
    "full": Branches(style=True, mim=True, geospatial=True),
}


@checked
class TaskConfig:
    """Numbers of the multi-task loss (docs/method.md, section 3).

    Attributes:
        mask_ratio: expected share of blocks that are masked in x_m, 0..1.
        mask_block_px: side of a mask block, pixels.
        reconstruction_loss: over all pixels, in normalised space.
        weight_seg, weight_mim, weight_delta: of L_seg, of the reconstruction terms, of |R(x_m) - R(x_s)|.
        segmentation: parameters of L_seg.
        inject_plain, inject_styled: whether x, and x_s, get the geospatial injection, where there is one.
        shared_pass: whether x and x_m go through the backbone as one batch; apart, they need less memory.
    """

    mask_ratio: Share = 0.7
    mask_block_px: PositiveInt = 64
    reconstruction_loss: Literal["l1", "mse"] = "l1"
    weight_seg: Weight = 1.0
    weight_mim: Weight = 1.0
    weight_delta: Weight = 1.0
    segmentation: SegmentationLossConfig = field(default_factory=SegmentationLossConfig)
    inject_plain: bool = True
    inject_styled: bool = True
    shared_pass: bool = True


@dataclass(frozen=True)
class Styler:
    """What a styled step needs: the engine, the Earth statistics of its embeddings, and the parameters.

    probability: share of the samples that are styled, 0..1.
    """

    engine: StyleEngine
    earth: EarthStyles
    config: StyleConfig
    probability: float


class LossDenominators(NamedTuple):
    """What the terms of the segmentation loss are divided by, and the number of samples, of some batch.

    Sums over the samples of an effective batch, so that parts of it can be computed apart.

    masks: class instances. class_weight: sum of the class weights of all queries' targets. samples: images.
    pixels: labelled ones.
    """

    masks: float
    class_weight: float
    samples: float
    pixels: float

    @classmethod
    def of(cls, label_BHW: Tensor, num_queries: int, no_object_weight: float) -> "LossDenominators":
        """Counts a batch's labels, uint8 with 255 = ignored."""
        found = [min(num_queries, int((label_HW.unique() != IGNORE).sum())) for label_HW in label_BHW]
        masks = sum(found)
        rest = num_queries * len(found) - masks
        pixels = int((label_BHW != IGNORE).sum())
        return cls(masks, masks + rest * no_object_weight, len(found), pixels)


@dataclass(frozen=True)
class Views:
    """The images that a step is computed on, in normalised space.

    x: (B,3,H,W) as augmented. input: what is segmented: x_s where styled, x elsewhere.
    masked: x_m, None without masked modelling. styled: bool (B,).
    """

    x: Tensor
    input: Tensor
    masked: Tensor | None
    styled: Tensor


class MultiTaskLoss(nn.Module):
    """The loss of a batch; wraps the network so that DistributedDataParallel sees one forward pass.

    Plain samples: L_seg(x) + rec(R(x_m), x).
    Styled samples: L_seg(x_s) + rec(R(x_m), x) + rec(R(x_s), x) + |R(x_m) - R(x_s)|.
    The terms are means over the effective batch. Which samples are styled is drawn per sample, so with one
    sample a step it is the step that is styled.

    Args:
        network: with the modules that `branches` need.
        branches: which parts are used.
        config: parameters of the tasks.
        styler: needed where `branches.style`.
        seed: of the training.
    """

    def __init__(
        self, network: CrossEarth, branches: Branches, config: TaskConfig, styler: Styler | None, seed: int
    ) -> None:
        super().__init__()
        self.network = network
        self.branches, self.config, self.styler, self.seed = branches, config, styler, seed

    def forward(
        self, image_B3HW: Tensor, label_BHW: Tensor, positions: Sequence[int], whole: LossDenominators
    ) -> dict[str, Tensor]:
        """The weighted terms of L; their sum is the batch's share in the loss of the effective batch.

        Args:
            image_B3HW: uint8, raw 0..255.
            label_BHW: uint8 class ids, 255 = ignored.
            positions: of the samples in the training; their random numbers hang on them.
            whole: of the effective batch that this batch is a part of.

        Returns:
            scalars by name: "class" and, with Mask2Former, "mask", "dice"; with masked modelling
            "reconstruction"; with that and style "consistency".
        """
        views = self.views(image_B3HW, positions)
        seen, masked = self._features(views, positions)
        if self.network.linear is not None:
            terms = {"class": self._pixel_loss(seen, label_BHW, whole)}
        else:
            terms = self._segmentation(seen, label_BHW, positions, whole)
        if masked is not None:
            share = len(positions) / whole.samples
            terms |= {name: share * term for name, term in self._modelling(seen, masked, views).items()}
        if self.network.gse is not None and self.config.inject_plain != self.config.inject_styled:
            # processes whose samples are not injected must have a gradient to exchange, too
            modules = filter(None, (self.network.gse, self.network.injector))
            unused = [weight.flatten()[0] for module in modules for weight in module.parameters()]
            terms["class"] = terms["class"] + 0 * torch.stack(unused).sum()
        return terms

    def views(self, image_B3HW: Tensor, positions: Sequence[int], styled_B: Tensor | None = None) -> Views:
        """Draws and makes the images of a step; `styled_B`: bool, which samples are styled, None = drawn."""
        raw_B3HW = image_B3HW.float()
        if styled_B is None:
            styled_B = self._styled(positions)
        input_B3HW = raw_B3HW
        if self.styler is not None and styled_B.any():
            chosen = styled_B.nonzero()[:, 0].to(raw_B3HW.device)
            generators = [self._generator(positions[index], "style") for index in chosen.tolist()]
            styler = self.styler
            injected = inject(raw_B3HW[chosen], styler.earth, styler.engine, styler.config, generators)
            input_B3HW = raw_B3HW.index_copy(0, chosen, injected.x_s)
        x_B3HW = self.network.normalise(raw_B3HW)
        masked_B3HW = self._mask(x_B3HW, positions) if self.branches.mim else None
        return Views(x_B3HW, self.network.normalise(input_B3HW), masked_B3HW, styled_B.to(x_B3HW.device))

    def _generator(self, position: int, purpose: str) -> torch.Generator:
        return keyed_generator(self.seed, position, purpose)

    def _styled(self, positions: Sequence[int]) -> Tensor:
        if self.styler is None:
            return torch.zeros(len(positions), dtype=torch.bool)
        draws = [torch.rand((), generator=self._generator(position, "styled")) for position in positions]
        return torch.stack(draws) < self.styler.probability

    def _mask(self, x_B3HW: Tensor, positions: Sequence[int]) -> Tensor:
        """x_m = m_x x + (1 - m_x) T."""
        height, width = x_B3HW.shape[2:]
        keep_B1HW = torch.stack(
            [
                block_mask(
                    height,
                    width,
                    self.config.mask_block_px,
                    self.config.mask_ratio,
                    self._generator(position, "mask"),
                )
                for position in positions
            ]
        ).to(x_B3HW.device)
        token_13HW = cast(Tensor, self.network.image_token)  # a network that is trained on masks has one
        return torch.where(keep_B1HW, x_B3HW, token_13HW)

    def _features(self, views: Views, positions: Sequence[int]) -> tuple[Features, Features | None]:
        """Of the segmented images, with the geospatial injection, and of the masked ones, without it."""
        batch, extract = len(views.input), self.network.extract
        injected_B = self._injected(views.styled)
        keys, masked_keys = (
            [int(digest([self.seed, position, view])[:15], 16) for position in positions] for view in range(2)
        )
        if views.masked is None:
            return extract(views.input, injected_B, keys), None
        if not self.config.shared_pass:
            return extract(views.input, injected_B, keys), extract(views.masked, keys=masked_keys)
        both = extract(
            torch.cat([views.input, views.masked]),
            torch.cat([injected_B, torch.zeros_like(injected_B)]),
            keys + masked_keys,
        )
        return both.select(slice(batch)), both.select(slice(batch, None))

    def _injected(self, styled_B: Tensor) -> Tensor:
        """bool (B,), the segmented images that get the geospatial injection."""
        if not self.branches.geospatial:
            return torch.zeros_like(styled_B)
        return torch.where(styled_B, self.config.inject_styled, self.config.inject_plain)

    def _pixel_loss(self, seen: Features, label_BHW: Tensor, whole: LossDenominators) -> Tensor:
        """L_seg of a linear head: cross entropy, its share in the mean over the labelled pixels."""
        height, width = label_BHW.shape[1:]
        logits_BKHW = self.network.pixel_logits(seen, (height, width))
        total = F.cross_entropy(logits_BKHW, label_BHW.long(), ignore_index=IGNORE, reduction="sum")
        return self.config.weight_seg * total / max(whole.pixels, 1)

    def _segmentation(
        self, seen: Features, label_BHW: Tensor, positions: Sequence[int], whole: LossDenominators
    ) -> dict[str, Tensor]:
        """L_seg by kind of term, summed over the prediction layers."""
        predictions = self.network.decode(seen)
        generators = [self._generator(position, "points") for position in positions]
        terms = segmentation_loss(predictions, label_BHW, generators, self.config.segmentation)
        num_queries = predictions[0].class_logits.shape[1]
        own = LossDenominators.of(label_BHW, num_queries, self.config.segmentation.weight_no_object)
        mask_share = max(own.masks, 1) / max(whole.masks, 1)
        fractions = {
            "class": own.class_weight / whole.class_weight,
            "mask": mask_share,
            "dice": mask_share,
        }
        return {
            name: self.config.weight_seg * fractions[name] * term_L.sum() for name, term_L in terms.items()
        }

    def _modelling(self, seen: Features, masked: Features, views: Views) -> dict[str, Tensor]:
        """L_MIM and L_delta, means over the batch."""
        styled = views.styled.nonzero()[:, 0]
        batch = len(views.x)
        joined = _join(masked, seen.select(styled)) if len(styled) else masked
        image_R3SS = self.network.reconstruct(joined).float()
        from_masked_B3SS, from_styled_R3SS = image_R3SS[:batch], image_R3SS[batch:]
        target_B3SS = resize(views.x, image_R3SS.shape[-1])
        reconstruction = self._difference(from_masked_B3SS, target_B3SS).mean()
        if self.styler is None:
            return {"reconstruction": self.config.weight_mim * reconstruction}
        reconstruction = reconstruction + (
            self._difference(from_styled_R3SS, target_B3SS[styled]).flatten(1).mean(1).sum() / batch
        )
        apart_R = (from_masked_B3SS[styled] - from_styled_R3SS).abs().flatten(1).mean(1)
        return {
            "reconstruction": self.config.weight_mim * reconstruction,
            "consistency": self.config.weight_delta * apart_R.sum() / batch,
        }

    @torch.no_grad()
    def pictures(self, image_13HW: Tensor, position: int) -> list[Tensor]:
        """What one sample looks like to the branches that are on, for people to look at.

        Args:
            image_13HW: uint8, raw 0..255.
            position: of the sample; it is drawn as in training, but always styled.

        Returns:
            uint8 (3, H, W) each: the image, then styled, masked and reconstructed as far as the branches go.
        """
        views = self.views(image_13HW, [position], torch.tensor([self.branches.style]))
        shown = [views.x]
        if self.branches.style:
            shown.append(views.input)
        if views.masked is not None:
            restored = self.network.reconstruct(self.network.extract(views.masked)).float()
            shown += [views.masked, resize(restored, image_13HW.shape[-1])]
        mean_311, std_311 = self.network.mean_3.view(3, 1, 1), self.network.std_3.view(3, 1, 1)
        return [(each[0] * std_311 + mean_311).round().clamp(0, 255).to(torch.uint8) for each in shown]

    def _difference(self, image: Tensor, target: Tensor) -> Tensor:
        function = F.l1_loss if self.config.reconstruction_loss == "l1" else F.mse_loss
        return function(image, target, reduction="none")


def resize(x_B3HW: Tensor, side_px: int) -> Tensor:
    """Images at the reconstruction's size (bilinear), (B, 3, S, S)."""
    if x_B3HW.shape[2:] == (side_px, side_px):
        return x_B3HW
    return F.interpolate(x_B3HW, (side_px, side_px), mode="bilinear", align_corners=False)


def _join(first: Features, second: Features) -> Features:
    maps = tuple(torch.cat(pair) for pair in zip(first.maps, second.maps, strict=True))
    return Features(maps, first.queries)


def parameter_groups(network: CrossEarth, weight_decay: float) -> list[dict[str, object]]:
    """AdamW's groups over the trained parameters: with weight decay, and without.

    Without: norms, learned tokens and queries, the Rein scale, the decoder's level embedding, the image
    token. The pixel decoder's level embedding decays, as in the released optimiser.
    """
    trained = network.trained_parameters()
    spared = _undecayed(network)
    decayed = [value for name, value in trained.items() if name not in spared]
    others = [value for name, value in trained.items() if name in spared]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


UNDECAYED = {
    "rein.scale",
    "rein.tokens_a_LMR",
    "rein.tokens_b_LRC",
    "mask_decoder.level_embed_VC",
    "image_token",
    "queries",
    "backbone.vit.cls_token",
    "backbone.vit.reg_token",
    "backbone.vit.pos_embed",
}


def _undecayed(network: CrossEarth) -> set[str]:
    norms = {
        f"{path}.{name}"
        for path, module in network.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    return norms | UNDECAYED


def learning_rate(iteration: int, lr: float, schedule: Schedule, end: int, warmup: int) -> float:
    """The learning rate of iteration 0, 1, ...

    Args:
        lr: the base.
        schedule: "poly" falls from the first iteration; "warmup-poly" rises linearly first.
        end: iteration at which a poly schedule reaches 0, whenever the training ends.
        warmup: iterations of the linear rise.
    """
    start = warmup if schedule == "warmup-poly" else 0
    if iteration < start:
        return lr * (WARMUP_START + (1 - WARMUP_START) * iteration / start)
    return float(lr * max(0.0, 1 - (iteration - start) / (end - start)) ** POLY_POWER)


def annealed_decay(iteration: int, weight_decay: float, end: int) -> float:
    """The weight decay of iteration 0, 1, ... in SoMA's schedule: half a cosine down to 1e-5 at `end`."""
    share = (1 + math.cos(math.pi * min(iteration / end, 1))) / 2
    return ANNEALED_DECAY + (weight_decay - ANNEALED_DECAY) * share
