"""The method's unknown parameters, as each source of them has it (docs/method.md); no torch here.

A name stands for values of a training's configuration; what params.yaml gives itself goes before them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

Method = Literal["paper", "snapshot-dinov2", "snapshot-rvsa"]

METHODS: dict[Method, dict[str, Any]] = {
    # what the paper prints, and where it is silent our choice among what is known
    "paper": {
        "style_probability": 0.1,
        "style": {"keep_ratio": 0.3, "block_px": 64},
        "tasks": {"mask_block_px": 64, "mask_ratio": 0.7, "inject_plain": True, "inject_styled": True},
        "sizes": {"inject_at_inference": False},
    },
    # the authors' work of 27 October 2024, a DINOv2 network
    "snapshot-dinov2": {
        "style_probability": 0.1,
        "style": {"keep_ratio": 0.3, "block_px": 64},
        "tasks": {"mask_block_px": 64, "mask_ratio": 0.1, "inject_plain": False, "inject_styled": False},
        "sizes": {"inject_at_inference": False},
    },
    # the authors' work of 11 October 2024, a ViT-RVSA network
    "snapshot-rvsa": {
        "style_probability": 0.1,
        "style": {"keep_ratio": 0.9, "block_px": 64},
        "tasks": {"mask_block_px": 64, "mask_ratio": 0.7, "inject_plain": True, "inject_styled": False},
        "sizes": {"inject_at_inference": False},
    },
}


def described(train: Mapping[str, Any]) -> str:
    """The method of a training's configuration, with its parameters that are not the method's own."""
    name = train["method"]
    changed = list(_changed(METHODS[name], train))
    return name + (f" (but {', '.join(changed)})" if changed else "")


def _changed(values: Mapping[str, Any], train: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        found = train.get(key, value)
        if isinstance(value, Mapping):
            yield from _changed(value, found, f"{above}{key}.")
        elif found != value:
            yield f"{above}{key} {found}"
