"""Writes a folder in the form of the recordings, from the plain reference network at any sizes.

    python tests/parity/record.py FOLDER SEED

The sizes are drawn from the seed: non-square inputs, odd token grids, depth, heads, taps, classes, windows.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import reference_network as reference

from crossearth.model.crossearth import CrossEarth, NetworkConfig
from crossearth.model.weights.names import to_released

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
PATCH_PX = 16


def draw_sizes(seed: int) -> dict[str, Any]:
    """Sizes of a network, its input, its windows and its loss."""
    rng = np.random.default_rng(seed)

    def pick(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    heads, head_heads, depth = pick(2, 3, 6), pick(2, 4, 8), int(rng.integers(4, 8))
    channels = pick(16, 32, 48) * (2 if head_heads == 8 else 1)
    grid = int(rng.integers(3, 6))
    # four patches or more: the coarsest map is half as large, and a group norm of one cell is noise
    crop = [PATCH_PX * int(side) for side in rng.integers(4, 7, 2)]
    return {
        "embed": heads * 12,
        "depth": depth,
        "heads": heads,
        "img": grid * PATCH_PX,
        "input": [PATCH_PX * int(side) for side in rng.integers(4, 8, 2)],
        "tokens": int(rng.integers(9, 23)),
        "lora": int(rng.integers(2, 7)),
        "feat": channels,
        "masks": pick(channels, channels // 2),
        "head_heads": head_heads,
        "head_points": int(rng.integers(1, 6)),
        "groups": pick(4, 8, 16),
        "enc_layers": int(rng.integers(1, 4)),
        "dec_layers": int(rng.integers(1, 6)),
        "classes": int(rng.integers(2, 9)),
        "crop": crop,
        "stride": [int(rng.integers(side // 2, side + 1)) for side in crop],
        "out_indices": sorted(int(i) for i in rng.choice(depth, 4, replace=False)),
        "enc_ffn": int(rng.integers(20, 60)),
        "dec_ffn": int(rng.integers(20, 60)),
        "mlp_ratio": pick(2.0, 3.0, 4.0),
        "num_points": int(rng.integers(30, 150)),
        "batch": int(rng.integers(1, 4)),
    }


def random_state(kwargs: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of moderate size under the released names, so that no stage is trivial."""
    config = NetworkConfig(
        kwargs["classes"],
        kwargs["img"],
        PATCH_PX,
        kwargs["embed"],
        kwargs["depth"],
        kwargs["heads"],
        kwargs["mlp_ratio"],
        tuple(kwargs["out_indices"]),
        kwargs["tokens"],
        kwargs["lora"],
        kwargs["feat"],
        kwargs["masks"],
        kwargs["head_heads"],
        kwargs["head_points"],
        kwargs["enc_layers"],
        kwargs["enc_ffn"],
        kwargs["dec_layers"],
        kwargs["dec_ffn"],
        kwargs["groups"],
        crop_px=2 * PATCH_PX,
        stride_px=PATCH_PX,
    )
    state = {}
    for name, tensor in CrossEarth(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim < 2:
            state[str(to_released(name))] = 0.2 * noise + (1.0 if name.endswith("weight") else 0.2)
        else:
            state[str(to_released(name))] = noise / tensor[0].numel() ** 0.5
    return state


def model_config(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The parts of the released configuration that the check reads."""
    attention = {"num_heads": kwargs["head_heads"], "num_points": kwargs["head_points"]}
    return {
        "data_preprocessor": {"mean": MEAN, "std": STD, "size": [2 * PATCH_PX, 3 * PATCH_PX]},
        "backbone": {
            "patch_size": PATCH_PX,
            "embed_dim": kwargs["embed"],
            "depth": kwargs["depth"],
            "num_heads": kwargs["heads"],
            "mlp_ratio": kwargs["mlp_ratio"],
            "out_indices": kwargs["out_indices"],
        },
        "decode_head": {
            "num_classes": kwargs["classes"],
            "num_queries": kwargs["tokens"],
            "feat_channels": kwargs["feat"],
            "out_channels": kwargs["masks"],
            "pixel_decoder": {
                "norm_cfg": {"num_groups": kwargs["groups"]},
                "encoder": {"num_layers": kwargs["enc_layers"], "layer_cfg": {"self_attn_cfg": attention}},
            },
            "transformer_decoder": {
                "num_layers": kwargs["dec_layers"],
                "layer_cfg": {"cross_attn_cfg": {"num_heads": kwargs["head_heads"]}},
            },
            "loss_cls": {"loss_weight": 2.0, "class_weight": [1.0] * kwargs["classes"] + [0.1]},
            "loss_mask": {"loss_weight": 5.0},
            "loss_dice": {"loss_weight": 5.0},
            "train_cfg": {
                "num_points": kwargs["num_points"],
                "oversample_ratio": 3.0,
                "importance_sample_ratio": 0.75,
                "assigner": {"match_costs": [{"weight": 2.0}, {"weight": 5.0}, {"weight": 5.0}]},
            },
        },
        "test_cfg": {"mode": "slide", "crop_size": kwargs["crop"], "stride": kwargs["stride"]},
    }


def normalise(raw_bgr_B3HW: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (raw_bgr_B3HW[:, [2, 1, 0]] - mean) / std


def record(folder: Path, seed: int) -> None:
    kwargs = draw_sizes(seed)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    state = random_state(kwargs, generator)
    sizes = reference.Sizes(
        kwargs["heads"],
        tuple(kwargs["out_indices"]),
        kwargs["head_heads"],
        kwargs["head_points"],
        kwargs["groups"],
    )
    frozen = {name for name in state if name.startswith("backbone.") and ".reins." not in name}
    for name, tensor in state.items():
        tensor.requires_grad_(name not in frozen)
    height, width = kwargs["input"]
    raw = torch.randint(0, 256, (kwargs["batch"], 3, height, width), generator=generator).to(torch.uint8)
    arrays: dict[str, Tensor] = {"raw_bgr_u8": raw, "inputs": normalise(raw)}
    _, trace = reference.forward(state, sizes, arrays["inputs"])
    arrays |= trace
    label = torch.randint(0, kwargs["classes"] + 1, (kwargs["batch"], height, width), generator=generator)
    label[label == kwargs["classes"]] = 255
    arrays["loss_gt"] = label.to(torch.uint8)
    terms = reference.loss(trace, arrays["loss_gt"], kwargs["num_points"], arrays)
    total = torch.stack(list(terms.values())).sum()
    arrays |= {f"loss_term/{name}": value for name, value in terms.items()} | {"loss_total": total}
    trained = [name for name in state if name not in frozen]
    gradients = torch.autograd.grad(total, [state[name] for name in trained])
    arrays |= {f"grad/{name}": value for name, value in zip(trained, gradients, strict=True)}
    with torch.no_grad():
        arrays |= windows(state, sizes, kwargs, generator) | preprocessing(generator)
    write(
        folder,
        kwargs,
        state,
        arrays,
        {name: float(value.detach()) for name, value in terms.items()},
        len(trained),
    )


def windows(
    state: dict[str, Tensor], sizes: reference.Sizes, kwargs: dict[str, Any], generator: torch.Generator
) -> dict[str, Tensor]:
    crop, stride = tuple(kwargs["crop"]), tuple(kwargs["stride"])
    arrays = {}
    shapes = ((crop[0] + 21, crop[1] + 37), (crop[0] - PATCH_PX, 2 * crop[1] + 5))
    for i, (height, width) in enumerate(shapes):
        x = torch.randn(1, 3, height, width, generator=generator)
        logits = reference.slide(lambda part: reference.forward(state, sizes, part)[0], x, crop, stride)
        size = (height + 13, width - 6) if i == 0 else (height, width)
        resized = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        arrays |= {
            f"slide{i}_inputs": x,
            f"slide{i}_logits": logits,
            f"slide{i}_ori_shape": torch.tensor(size),
            f"slide{i}_ori_logits": resized,
            f"slide{i}_ori_pred": resized.argmax(1, keepdim=True).to(torch.uint8),
        }
    return arrays


def preprocessing(generator: torch.Generator) -> dict[str, Tensor]:
    raw = torch.randint(0, 256, (3, 2 * PATCH_PX - 5, 3 * PATCH_PX - 9), generator=generator).to(torch.uint8)
    label = torch.randint(0, 3, (1, *raw.shape[1:]), generator=generator).to(torch.uint8)
    return {
        "prep_raw_bgr_u8": raw,
        "prep_gt": label,
        "prep_train_inputs": F.pad(normalise(raw[None]), (0, 9, 0, 5)),
        "prep_train_gt": F.pad(label, (0, 9, 0, 5), value=255)[None],
    }


def write(
    folder: Path,
    kwargs: dict[str, Any],
    state: dict[str, Tensor],
    arrays: dict[str, Tensor],
    losses: dict[str, float],
    num_trained: int,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.detach().numpy() for name, tensor in arrays.items()}
    np.savez(folder / "state.npz", **{name: tensor.detach().numpy() for name, tensor in state.items()})
    np.savez(folder / "io.npz", **held)
    meta = {
        "build_kwargs": kwargs,
        "model_cfg": model_config(kwargs),
        "reported": {
            "losses": {"loss": float(held["loss_total"]), **losses},
            "n_trainable": num_trained,
            "n_grad": num_trained,
            "trainable_without_grad": [],
        },
        "arrays": {name: [list(array.shape), str(array.dtype)] for name, array in held.items()},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


if __name__ == "__main__":
    record(Path(sys.argv[1]), int(sys.argv[2]))
