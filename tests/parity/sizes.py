"""The sizes of a released network, read from its recorded configuration and from its parameters' shapes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crossearth.model.crossearth import CrossEarth, NetworkConfig
from crossearth.model.training.losses import SegmentationLossConfig
from crossearth.model.weights.names import to_ours

Shapes = Mapping[str, Sequence[int]]


def config_from_shapes(shapes: Shapes, **others: Any) -> NetworkConfig:
    """What the shapes tell under the released names; `others` are sizes that no shape shows."""

    def count(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})

    embed, _, patch_px, _ = shapes["backbone.patch_embed.proj.weight"]
    depth, num_tokens, rank = shapes["backbone.reins.learnable_tokens_a"]
    encoder = "decode_head.pixel_decoder.encoder.layers."
    decoder = "decode_head.transformer_decoder.layers."
    image_px = math.isqrt(shapes["backbone.pos_embed"][1] - 1) * patch_px
    values = {
        "num_classes": shapes["decode_head.cls_embed.bias"][0] - 1,
        "image_px": image_px,
        "patch_px": patch_px,
        "embed": embed,
        "depth": depth,
        "mlp_ratio": shapes["backbone.blocks.0.mlp.fc1.bias"][0] / embed,
        "num_tokens": num_tokens,
        "rank": rank,
        "channels": shapes["decode_head.querys2feat.bias"][0],
        "mask_channels": shapes["decode_head.mask_embed.4.bias"][0],
        "encoder_layers": count(encoder),
        "encoder_ffn": shapes[f"{encoder}0.ffn.layers.0.0.bias"][0],
        "decoder_layers": count(decoder),
        "decoder_ffn": shapes[f"{decoder}0.ffn.layers.0.0.bias"][0],
        "crop_px": image_px,
        "stride_px": image_px,
    }
    return NetworkConfig(**(values | others))


def config_from_meta(meta: Mapping[str, Any], shapes: Shapes) -> NetworkConfig:
    """The configuration of a recorded network; sizes that stand in both places have to agree."""
    model = meta["model_cfg"]
    backbone, head, preprocessor = model["backbone"], model["decode_head"], model["data_preprocessor"]
    pixel_decoder = head["pixel_decoder"]
    attention = pixel_decoder["encoder"]["layer_cfg"]["self_attn_cfg"]
    config = config_from_shapes(
        shapes,
        heads=backbone["num_heads"],
        mlp_ratio=backbone["mlp_ratio"],  # the shapes tell its product with the embedding, rounded down
        taps=tuple(backbone["out_indices"]),
        head_heads=attention["num_heads"],
        num_points=attention["num_points"],
        norm_groups=pixel_decoder["norm_cfg"]["num_groups"],
        mean=tuple(preprocessor["mean"]),
        std=tuple(preprocessor["std"]),
    )
    stated = {
        "num_classes": head["num_classes"],
        "patch_px": backbone["patch_size"],
        "embed": backbone["embed_dim"],
        "depth": backbone["depth"],
        "num_tokens": head["num_queries"],
        "channels": head["feat_channels"],
        "mask_channels": head["out_channels"],
        "encoder_layers": pixel_decoder["encoder"]["num_layers"],
        "decoder_layers": head["transformer_decoder"]["num_layers"],
        "head_heads": head["transformer_decoder"]["layer_cfg"]["cross_attn_cfg"]["num_heads"],
    }
    for name, value in stated.items():
        if getattr(config, name) != value:
            raise ValueError(f"meta.json says {name} {value}, the parameters {getattr(config, name)}")
    return config


def loss_config_from_meta(meta: Mapping[str, Any]) -> SegmentationLossConfig:
    """The numbers of the recorded loss; the matching has to use the loss's weights, as the method has it."""
    head = meta["model_cfg"]["decode_head"]
    weights = tuple(head[name]["loss_weight"] for name in ("loss_cls", "loss_mask", "loss_dice"))
    train = head["train_cfg"]
    costs = tuple(cost["weight"] for cost in train["assigner"]["match_costs"])
    *ones, weight_no_object = head["loss_cls"]["class_weight"]
    if weights != costs or set(ones) != {1.0}:
        raise ValueError(f"a loss of another form: weights {weights}, matching {costs}, classes {ones}")
    return SegmentationLossConfig(
        *weights,
        weight_no_object=weight_no_object,
        num_points=train["num_points"],
        oversample=train["oversample_ratio"],
        importance=train["importance_sample_ratio"],
    )


def load_released_state(config: NetworkConfig, state: Mapping[str, Tensor]) -> CrossEarth:
    """The network with a state under the released names; no name unknown, none missing."""
    model = CrossEarth(config)
    renamed = {}
    for released, tensor in state.items():
        ours = to_ours(released)
        if ours is None:
            raise ValueError(f"{released} is no parameter of this network")
        renamed[ours] = tensor
    model.load_state_dict(renamed)
    return model.eval()


def meta_model(config: NetworkConfig) -> CrossEarth:
    """The network without memory for its parameters: for names and shapes."""
    with torch.device("meta"):
        return CrossEarth(config)
