"""Every stage of the forward pass, sliding windows and preprocessing against the recording.

Shape legend: B images, T tokens, C channels, Q queries, H W pixels, h w cells.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from recording import Recording
from torch import Tensor, nn
from torch.nn import functional as F

from crossearth.data.catalog.labels import IGNORE
from crossearth.data.tiles.augment import PAD_RGB
from crossearth.model.crossearth import CrossEarth
from crossearth.model.inference import slide_logits
from crossearth.model.layers.mask_decoder import blocked_positions
from crossearth.model.layers.pixel_decoder import MAP_SCALES, rescale


@contextmanager
def captured(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[tuple[Any, Any]]]]:
    """Collects (inputs, output) of every call of the modules, by name."""
    calls: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def hook(name: str) -> Any:
        return lambda module, inputs, output: calls[name].append((inputs, output))

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def check_preprocessing(recording: Recording, model: CrossEarth, meta: Mapping[str, Any]) -> None:
    """Inference: normalised. Training: also padded at the right and at the bottom, labels with "ignored"."""
    raw_B3HW = recording.take("io", "raw_bgr_u8").flip(1)
    recording.compare("io", "inputs", model.normalise(raw_B3HW), atol=1e-6, rtol=1e-6)
    if not recording.has("io", "prep_raw_bgr_u8"):
        return
    image_3HW = recording.take("io", "prep_raw_bgr_u8").flip(0)
    height, width = image_3HW.shape[1:]
    rows, columns = meta["model_cfg"]["data_preprocessor"]["size"]
    padding = (0, columns - width, 0, rows - height)
    padded_3HW = torch.stack([F.pad(c, padding, value=v) for c, v in zip(image_3HW, PAD_RGB, strict=True)])
    expected_13HW = recording.take("io", "prep_train_inputs")
    actual_13HW = model.normalise(padded_3HW[None])
    inside = (..., slice(height), slice(width))
    recording.compare_values(
        "prep_train_inputs (image)", actual_13HW[inside], expected_13HW[inside], 1e-6, 1e-6
    )
    # tiles are 8-bit here: the padding is the mean colour, rounded to whole grey levels
    grey = 0.5 / min(model.config.std)
    recording.compare_values(
        "prep_train_inputs (padding: mean colour)", actual_13HW, expected_13HW, grey, 1e-6
    )
    label_1HW = F.pad(recording.take("io", "prep_gt"), padding, value=IGNORE)
    recording.compare("io", "prep_train_gt", label_1HW[None])


@torch.no_grad()
def check_forward(recording: Recording, model: CrossEarth) -> None:
    """Patch embedding to segmentation logits, on the recorded inputs."""
    x_B3HW = recording.take("io", "inputs")
    modules = {
        "patch": model.backbone.vit.patch_embed.proj,
        "rein": model.rein,
        "pixel": model.pixel_decoder,
        "head": model.mask_decoder.head,
    }
    modules |= {f"block{i}": block for i, block in enumerate(model.backbone.blocks)}
    modules |= {f"encoder{i}": layer for i, layer in enumerate(model.pixel_decoder.layers)}
    with captured(modules) as calls:
        features = model.extract(x_B3HW)
        predictions = model.decode(features)

    def compare(key: str, actual: Tensor) -> None:
        recording.compare("io", key, actual)

    compare("patch_embed", calls["patch"][0][1].flatten(2).transpose(1, 2))
    compare("tokens_in", model.backbone.embed(x_B3HW))
    for i in range(model.config.depth):
        compare(f"block{i}_out", calls[f"block{i}"][0][1])
        compare(f"block{i}_reins_out", calls["rein"][i][1])
    compare("queries", features.queries)
    for i, map_BChw in enumerate(features.maps):
        compare(f"feat{i}", rescale(map_BChw, MAP_SCALES[i]))
    for i in range(model.config.encoder_layers):
        compare(f"pd_encoder{i}_out", calls[f"encoder{i}"][0][1])
    mask_features_BDhw, memories = calls["pixel"][0][1]
    compare("mask_features", mask_features_BDhw)
    for i, memory_BChw in enumerate(memories):
        compare(f"memory{i}", memory_BChw)
    for i, prediction in enumerate(predictions):
        compare(f"query{i}", calls["head"][i][0][0])
        compare(f"cls_pred{i}", prediction.class_logits)
        compare(f"mask_pred{i}", prediction.mask_logits)
        rows, columns = memories[i % len(memories)].shape[2:]
        compare(f"attn_mask{i}", blocked_positions(prediction.mask_logits, (rows, columns)))
    compare("seg_logits", model.segment(x_B3HW))


@torch.no_grad()
def check_sliding(recording: Recording, model: CrossEarth, meta: Mapping[str, Any]) -> None:
    """Overlapping windows over images larger (and in one side smaller) than the crop."""
    test = meta["model_cfg"]["test_cfg"]
    crop_px, stride_px = tuple(test["crop_size"]), tuple(test["stride"])
    cases = sorted({key.split("_")[0] for key in recording.keys("io") if key.startswith("slide")})
    for case in cases:
        x_B3HW = recording.take("io", f"{case}_inputs")
        logits_BKHW = slide_logits(model.segment, x_B3HW, crop_px, stride_px)
        recording.compare("io", f"{case}_logits", logits_BKHW)
        size = tuple(recording.take("io", f"{case}_ori_shape").tolist())
        resized_BKHW = F.interpolate(logits_BKHW, size=size, mode="bilinear", align_corners=False)
        recording.compare("io", f"{case}_ori_logits", resized_BKHW)
        check_labels(recording, case, resized_BKHW.argmax(dim=1, keepdim=True).to(torch.uint8))


def check_labels(recording: Recording, case: str, labels_B1HW: Tensor) -> None:
    """The classes; where they differ, the recorded scores of the two have to be equal."""
    scores_BKHW = recording.take("io", f"{case}_ori_logits")
    recorded_B1HW = recording.take("io", f"{case}_ori_pred")
    count = int((labels_B1HW != recorded_B1HW).sum())
    if not count:
        recording.compare("io", f"{case}_ori_pred", labels_B1HW)
        return
    ours, theirs = (scores_BKHW.gather(1, each.long()) for each in (labels_B1HW, recorded_B1HW))
    recording.compare_values(f"{case}_ori_pred (scores of {count} ties)", ours, theirs)


def check_conversion(recording: Recording) -> None:
    """Pretrained weights resampled to other patches and another position grid."""
    from crossearth.model.layers.backbone import resample_positions
    from crossearth.model.layers.positions import resample_patch_kernel

    if not recording.keys("convert"):
        return
    kernel = recording.take("convert", "out/patch_embed.proj.weight")
    patch_px = kernel.shape[-1]
    rows, columns = (int(side) // patch_px for side in recording.take("convert", "crop_size"))
    positions_1TC = recording.take("convert", "in/pos_embed")
    recording.compare("convert", "out/pos_embed", resample_positions(positions_1TC, rows, columns))
    given = recording.take("convert", "in/patch_embed.proj.weight")
    recording.compare("convert", "out/patch_embed.proj.weight", resample_patch_kernel(given, patch_px))


def check_inventory(recording: Recording, meta: Mapping[str, Any]) -> None:
    """meta.json's list of arrays is what io.npz holds."""
    listed = {name: (list(shape), dtype) for name, (shape, dtype) in meta["arrays"].items()}
    held = {}
    for key in recording.keys("io"):
        array = recording._files["io"][key]
        held[key] = (list(array.shape), str(array.dtype))
    recording.check("meta.json: list of arrays", listed == held, f"{len(listed)} listed, {len(held)} held")
    side = math.isqrt(recording.take("state", "backbone.pos_embed").shape[1] - 1)
    recording.check("meta.json: square position grid", side > 0, f"{side} x {side}")
