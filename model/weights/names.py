"""Parameter names of the released models and ours: a table of renames, one to one; no tensor is changed."""

import re
from collections.abc import Iterable

# (ours, released); # stands for a number; a name that ends with a dot stands for all names that start so
RENAMES = (
    ("backbone.mask_token", "backbone.mask_token"),
    ("rein.scale", "backbone.reins.scale"),
    ("rein.tokens_a_LMR", "backbone.reins.learnable_tokens_a"),
    ("rein.tokens_b_LRC", "backbone.reins.learnable_tokens_b"),
    ("rein.token_to_feature.", "backbone.reins.mlp_token2feat."),
    ("rein.delta.", "backbone.reins.mlp_delta_f."),
    ("rein.to_query.", "backbone.reins.transform."),
    ("rein.merge.", "backbone.reins.merge."),
    ("backbone.vit.cls_token", "backbone.cls_token"),
    ("backbone.vit.pos_embed", "backbone.pos_embed"),
    ("backbone.vit.patch_embed.", "backbone.patch_embed."),
    ("backbone.vit.blocks.#.", "backbone.blocks.#."),
    ("backbone.vit.norm.", "backbone.norm."),
    ("pixel_decoder.inputs.#.conv.", "decode_head.pixel_decoder.input_convs.#.conv."),
    ("pixel_decoder.inputs.#.norm.", "decode_head.pixel_decoder.input_convs.#.gn."),
    ("pixel_decoder.level_embed_VC", "decode_head.pixel_decoder.level_encoding.weight"),
    ("pixel_decoder.layers.#.attention.", "decode_head.pixel_decoder.encoder.layers.#.self_attn."),
    ("pixel_decoder.layers.#.ffn.expand.", "decode_head.pixel_decoder.encoder.layers.#.ffn.layers.0.0."),
    ("pixel_decoder.layers.#.ffn.contract.", "decode_head.pixel_decoder.encoder.layers.#.ffn.layers.1."),
    ("pixel_decoder.layers.#.norms.#.", "decode_head.pixel_decoder.encoder.layers.#.norms.#."),
    ("pixel_decoder.lateral.conv.", "decode_head.pixel_decoder.lateral_convs.0.conv."),
    ("pixel_decoder.lateral.norm.", "decode_head.pixel_decoder.lateral_convs.0.gn."),
    ("pixel_decoder.output.conv.", "decode_head.pixel_decoder.output_convs.0.conv."),
    ("pixel_decoder.output.norm.", "decode_head.pixel_decoder.output_convs.0.gn."),
    ("pixel_decoder.mask_features.", "decode_head.pixel_decoder.mask_feature."),
    ("mask_decoder.query_features.", "decode_head.querys2feat."),
    ("mask_decoder.level_embed_VC", "decode_head.level_embed.weight"),
    *(
        (
            f"mask_decoder.layers.#.{kind}_attention.{ours}",
            f"decode_head.transformer_decoder.layers.#.{kind}_attn.attn.{released}",
        )
        for kind in ("cross", "self")
        for ours, released in (
            ("in_weight", "in_proj_weight"),
            ("in_bias", "in_proj_bias"),
            ("out.", "out_proj."),
        )
    ),
    ("mask_decoder.layers.#.ffn.expand.", "decode_head.transformer_decoder.layers.#.ffn.layers.0.0."),
    ("mask_decoder.layers.#.ffn.contract.", "decode_head.transformer_decoder.layers.#.ffn.layers.1."),
    ("mask_decoder.layers.#.norms.#.", "decode_head.transformer_decoder.layers.#.norms.#."),
    ("mask_decoder.head.norm.", "decode_head.transformer_decoder.post_norm."),
    ("mask_decoder.head.classes.", "decode_head.cls_embed."),
    ("mask_decoder.head.masks.", "decode_head.mask_embed."),
)


def to_ours(released: str) -> str | None:
    """Our name of a released parameter; None where this network has none (training-only modules)."""
    return _rename(released, [(theirs, ours) for ours, theirs in RENAMES])


def to_released(ours: str) -> str | None:
    """The released name of a parameter of ours; None where the released models have none."""
    return _rename(ours, RENAMES)


def _rename(name: str, table: Iterable[tuple[str, str]]) -> str | None:
    for source, target in table:
        pattern = re.escape(source).replace(r"\#", r"(\d+)") + ("(.+)" if source.endswith(".") else "")
        found = re.fullmatch(pattern, name)
        if found:
            parts = list(found.groups())
            while "#" in target:
                target = target.replace("#", parts.pop(0), 1)
            return target + "".join(parts)
    return None
