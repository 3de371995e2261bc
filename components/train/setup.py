"""The parameters of a training, and its resolved inputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic_core import to_jsonable_python

from crossearth.components.runtime.code import code_digest
from crossearth.components.runtime.params import Seed
from crossearth.components.runtime.version import torch_version
from crossearth.data.catalog.domains import Catalog, ClassSet, Recipe, known_entry
from crossearth.data.catalog.labels import IGNORE
from crossearth.data.common.config import Share, checked, listed, load_config
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest, sha256_file
from crossearth.data.style.earth import EarthStyles, StyleConfig, style_engine
from crossearth.data.tiles.augment import Augmentation
from crossearth.data.tiles.dataset import TileDataset
from crossearth.data.tiles.manifest import Manifest, held_out, read_domain
from crossearth.model.crossearth import SIZES, Adapter, CrossEarth, Head, NetworkConfig, network_config
from crossearth.model.layers.backbone import fit_state
from crossearth.model.layers.lora import LoraConfig
from crossearth.model.method import Method
from crossearth.model.training.multitask import BRANCHES, Ablation, Schedule, Styler, TaskConfig
from crossearth.model.weights.pretrained import Pretrained, describe
from crossearth.model.weights.release import fetch_backbone, read_backbone

BACKBONE_CACHE = "backbones"
# how a training is computed, not its result: these may differ when a stopped training is resumed
RUNTIME_FIELDS = (
    "micro_batch",
    "activation_checkpointing",
    "compile",
    "tasks.shared_pass",
    "workers",
    "backbones_dir",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "log_every",
    "panels_every",
)


@checked
class TrainConfig:
    """Parameters of a training; the defaults are the method's at 512 px (docs/method.md, section 3).

    At 1024 px the method has crop_px 1024, lr 6e-5 and schedule "warmup-poly".

    Attributes:
        method: whose parameters are meant where sources of the method differ, see `METHODS`. In params.yaml
            it brings them; what is given besides goes before them.
        network: a name of `SIZES`; "large" is the paper's, "small" for one GPU of 8 GB, "tiny" one that a CPU
            trains from scratch.
        sizes: changes of single sizes of it, by the names of `NetworkConfig`. With a `backbone` those of the
            ViT come from its weights; `frozen_backbone: false` trains it too.
        backbone: pretrained ViT, needed where it is frozen: a file, an address s3://bucket/key, or a name of
            timm's hub: DINOv2, DINOv3 or any plain ViT.
        adapter: of a frozen backbone: "rein" is the paper's, "lora", or "none": the head alone is trained.
        lora: of the adapter "lora".
        head: "mask2former" is the paper's; "linear" one 1x1 convolution on the last tap, and cross entropy.
        backbones_dir: store a backbone there, once for all models, instead of inside each model's file.
        ablation: "full" is the method; "rein" the segmentation loss alone; the others lie between.
        iterations: optimiser steps.
        batch_size: crops per optimiser step, over all processes.
        micro_batch: crops per forward pass of one process, at most; gradients are accumulated. None = all.
        crop_px: side of the training crops, pixels.
        scale: least and largest short side of a resized tile, as a multiple of `crop_px`.
        photometric: whether colours are distorted.
        lr: base learning rate.
        schedule: "poly" (power 0.9), or "warmup-poly".
        schedule_iterations: iteration at which poly reaches 0; None = `iterations`.
        warmup_iterations: of "warmup-poly".
        weight_decay: of AdamW.
        style: parameters of Earth-Style Injection.
        style_probability: share of the samples that are styled, 0..1 (authors' snapshot).
        tasks: parameters of the losses.
        precision: "bfloat16" runs the network under autocast; losses and parameters stay float32.
        activation_checkpointing: blocks are run again in the backward pass, not kept: less memory, more time.
        compile: the backbone's blocks go through torch.compile.
        workers: processes that read and augment; 0 = none beside the training.
        held_out_share: least share of the source's tiles, by whole scenes, that are not trained on; 0 = none.
        validate_every: iterations between scores on the held-out tiles.
        selection: "last" iterate (the authors'), or "best-source": best primary score on the held-out tiles.
        checkpoint_every: iterations between saved states, at most.
        checkpoint_minutes: minutes between saved states, at most: a pod is gone a second after it is asked to
            leave, and loses what it has not saved.
        keep_checkpoints: how many of the last states are kept.
        log_every: iterations whose mean is one point of a curve.
        panels_every: iterations between sample pictures.
        allow_absent_classes: whether a class of the class set may be absent from the source's tiles.
        seed: of initial weights, order, augmentation, masks, styles and sampled points.
    """

    method: Method = "paper"
    network: str = "large"
    sizes: dict[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    adapter: Adapter = "rein"
    lora: LoraConfig = field(default_factory=LoraConfig)
    head: Head = "mask2former"
    backbones_dir: Path | None = None
    ablation: Ablation = "full"
    iterations: PositiveInt = 30_000
    batch_size: PositiveInt = 1
    micro_batch: PositiveInt | None = None
    crop_px: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    photometric: bool = True
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    schedule: Schedule = "poly"
    schedule_iterations: PositiveInt | None = 40_000
    warmup_iterations: NonNegativeInt = 10_000
    weight_decay: Share = 0.05
    style: StyleConfig = field(default_factory=StyleConfig)
    style_probability: Share = 0.1
    tasks: TaskConfig = field(default_factory=TaskConfig)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    activation_checkpointing: bool = False
    compile: bool = False
    workers: NonNegativeInt = 4
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validate_every: PositiveInt = 1000
    selection: Literal["last", "best-source"] = "last"
    checkpoint_every: PositiveInt = 1000
    checkpoint_minutes: PositiveInt = 10
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 50
    panels_every: PositiveInt = 1000
    allow_absent_classes: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        known_entry(SIZES, self.network, "size", "network")
        if self.selection == "best-source" and not self.held_out_share:
            raise InputError("selection: best-source needs held-out tiles", expected="held_out_share > 0")
        if self.schedule == "warmup-poly" and self.poly_end <= self.warmup_iterations:
            raise InputError(
                f"warmup_iterations: {self.warmup_iterations} leaves nothing of {self.poly_end} iterations"
            )
        branches = BRANCHES[self.ablation]
        for used, name, block_px in (
            (branches.mim, "tasks.mask_block_px", self.tasks.mask_block_px),
            (branches.style, "style.block_px", self.style.block_px),
        ):
            if used and block_px > self.crop_px:
                expected = f"at most crop_px, {self.crop_px}"
                raise InputError(f"{name}: {block_px} is larger than a crop", expected=expected)
        Augmentation(self.crop_px, self.scale)

    @property
    def poly_end(self) -> int:
        """Iteration at which the poly schedule reaches 0."""
        return self.schedule_iterations or self.iterations

    @property
    def anneals_decay(self) -> bool:
        """Whether weight decay falls to 1e-5, as SoMA has it."""
        return self.adapter == "lora" and self.lora.init == "soma"

    def network_config(self, num_classes: int, weights: Mapping[str, Any] | None = None) -> NetworkConfig:
        """Sizes of the network, with the modules that the ablation needs.

        Args:
            weights: sizes that a pretrained backbone decides; it is frozen then, unless `sizes` says no.

        Raises:
            InputError: `sizes` has an unknown key or sizes that do not fit together.
        """
        base = asdict(network_config(self.network, num_classes, self.crop_px))
        branches = BRANCHES[self.ablation]
        if weights:
            base |= {"frozen_backbone": True, **weights}
        if self.adapter != "rein":
            base["injector"] = "own"
        own = {
            "adapter": self.adapter,
            "lora": asdict(self.lora),
            "head": self.head,
            "geospatial": branches.geospatial and (self.tasks.inject_plain or self.tasks.inject_styled),
            "masked_modelling": branches.mim,
            "num_classes": num_classes,
        }
        if fixed := sorted(own.keys() & self.sizes.keys()):
            raise InputError(
                f"sizes.{fixed[0]}: is no size",
                expected="a size; adapter, lora and head stand in `train`, others follow from it",
            )
        config = load_config(NetworkConfig, base | self.sizes | own, "sizes")
        if branches.mim and config.image_px != self.crop_px:
            raise InputError(
                f"sizes.image_px: {config.image_px}, but the image token is as large as a crop",
                expected=f"crop_px, {self.crop_px}",
            )
        return config


@dataclass(frozen=True)
class Job:
    """A training, resolved: everything that determines its weights."""

    recipe: Recipe
    class_set: ClassSet
    config: TrainConfig
    manifest: Manifest
    remap: tuple[int, ...]
    train_rows: list[int]
    held_rows: list[int]
    styler: Styler | None
    network_config: NetworkConfig
    backbone: Path | None
    backbone_sha256: str
    pretrained: Pretrained | None

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a training to be resumed, each parameter under its own (dotted) name.

        Not so what changes the last digits alone (`Processes.computing`): one `dvc repro` on two machines,
        or a cache that they share, would train everything twice. The model's description has it.
        """
        values = flat(to_jsonable_python(self.config))
        unread = tuple(self._unread())
        chosen = {
            name: value
            for name, value in values.items()
            if name not in RUNTIME_FIELDS and not name.startswith(unread)
        }
        return {
            **chosen,
            "recipe": self.recipe.name,
            "classes": list(self.class_set.classes),
            "remap": list(self.remap),
            "manifest": self.manifest.digest,
            "styles": self.styler.earth.digest if self.styler else "",
            "backbone": self.backbone_sha256,
            "backbone_sizes": to_jsonable_python(self.pretrained.sizes) if self.pretrained else {},
            "code": code_digest("train"),
            "torch": torch_version(),
        }

    def _unread(self) -> Iterator[str]:
        """How the names of the parameters begin that this training does not read."""
        parts = BRANCHES[self.config.ablation]
        if not parts.style:
            yield "style"
        if not parts.mim:
            yield from ("tasks.mask_", "tasks.reconstruction_", "tasks.weight_mim", "tasks.weight_delta")
        if not parts.geospatial:
            yield "tasks.inject_"
        if self.config.adapter != "lora":
            yield "lora"

    @property
    def input_hash(self) -> str:
        """Identity of the run: of its inputs, the code and torch."""
        return digest(self.identity)


def prepare(
    recipe: Recipe,
    catalog: Catalog,
    domains_dir: Path,
    config: TrainConfig,
    styles: Path | None = None,
) -> Job:
    """Resolves and checks the inputs of a training; see `train` for what is refused."""
    source, class_set = catalog.domain(recipe.source), catalog.class_sets[recipe.class_set]
    manifest = read_domain(catalog, domains_dir, source.name, "train")
    remap = catalog.remap(source.class_set, class_set.name)
    TileDataset(manifest, remap)
    smallest_px = min(min(row["width"], row["height"]) for row in manifest.rows)
    if config.crop_px > smallest_px:
        raise InputError(
            f"crop_px: {config.crop_px} is larger than the tiles of {source.name} ({smallest_px} px)",
            where=manifest.root,
            expected=f"at most {smallest_px}",
        )
    share = config.held_out_share
    train_rows, held_rows = held_out(manifest, share) if share else (list(range(len(manifest))), [])
    _check_classes(manifest, train_rows, remap, class_set, config.allow_absent_classes)
    styler = None
    if BRANCHES[config.ablation].style:
        if styles is None:
            raise InputError(
                f"ablation {config.ablation!r} needs Earth styles", next_step="run `crossearth styles fit`"
            )
        engine = style_engine(config.style.engine)
        earth = EarthStyles.load(styles, config.style.engine)
        styler = Styler(engine, earth, config.style, config.style_probability)
    backbone, pretrained = None, None
    if config.backbone is not None:
        backbone = fetch_backbone(config.backbone, Path(domains_dir).parent / BACKBONE_CACHE)
        pretrained = describe(read_backbone(backbone, shapes_only=True), backbone, config.backbone)
    network_config = config.network_config(len(class_set.classes), pretrained.sizes if pretrained else None)
    if network_config.frozen_backbone and config.backbone is None:
        raise InputError(
            "backbone: a frozen backbone needs pretrained weights",
            where=f"recipe {recipe.name}",
            next_step="set `backbone` to a DINOv2 ViT, or train it too: `sizes: {frozen_backbone: false}`",
        )
    return Job(
        recipe,
        class_set,
        config,
        manifest,
        remap,
        train_rows,
        held_rows,
        styler,
        network_config,
        backbone,
        sha256_file(backbone) if backbone else "",
        pretrained,
    )


def _check_classes(
    manifest: Manifest, rows: Sequence[int], remap: Sequence[int], class_set: ClassSet, allow_absent: bool
) -> None:
    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    for index in rows:
        np.add.at(pixels, list(remap), manifest.rows[index]["class_pixels"])
    absent = [name for name, count in zip(class_set.classes, pixels, strict=False) if not count]
    if absent and not allow_absent:
        raise InputError(
            f"no pixel of {listed(absent)} among the {len(rows)} training tiles of {manifest.domain}",
            where=manifest.root,
            expected=f"all classes of class set {class_set.name}",
            next_step="set allow_absent_classes: true if that is meant; they will never be predicted",
        )


def make_network(job: Job) -> CrossEarth:
    """The network at its first iteration: seeded, with the pretrained backbone where one is given."""
    torch.manual_seed(job.config.seed)
    network = CrossEarth(job.network_config)
    if job.backbone is not None:
        state = fit_state(read_backbone(job.backbone), network.backbone, job.backbone)
        network.backbone.load_state_dict(state)
        network.start_adapter()
    network.activation_checkpointing = job.config.activation_checkpointing
    return network


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
