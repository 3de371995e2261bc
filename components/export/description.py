"""What an exported network says of itself, in the words of two readers.

- STAC's machine-learning extension: https://github.com/stac-extensions/mlm. A graph of torch holds it where
  that extension's own tools put it, the file `mlm-metadata`; ONNX has the same text under the same name.
- Deepness, a plugin of QGIS: https://qgis-plugin-deepness.readthedocs.io, "Adding metadata to ONNX model".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from crossearth.data.raster.reading import BYTES, Reading
from crossearth.model.crossearth import NetworkConfig

MLM_SCHEMA = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
MLM_KEY = "mlm-metadata"


@dataclass(frozen=True)
class Exported:
    """What there is to say.

    Attributes:
        name: of the model; letters, digits and ``_ . -``, from a letter on.
        classes, palette: names in id order, and "#rrggbb" of each.
        bands: names of the three bands, in order; empty = unknown.
        reading: how files become what the network sees; None = unknown, 8 bits as they are.
        gsd_m: metres per px that the network was trained on; None = unknown.
        num_parameters: of the graph.
    """

    name: str
    classes: Sequence[str]
    palette: Sequence[str]
    bands: Sequence[str]
    reading: Reading | None
    gsd_m: float | None
    network: NetworkConfig
    num_parameters: int

    @property
    def value_range(self) -> tuple[float, float]:
        """Values of the files that become 0 and 1."""
        return (self.reading or BYTES).value_range or (0, 255)


def mlm_metadata(exported: Exported, artifact_type: str) -> str:
    """JSON (and so YAML): the extension's fields, without their prefix as its tools write them."""
    side, (low, high) = exported.network.crop_px, exported.value_range
    dimensions = ["batch", "bands" if exported.bands else "channel", "height", "width"]
    hyperparameters: dict[str, float] = {"stride_px": exported.network.stride_px}
    if exported.gsd_m is not None:
        hyperparameters["gsd_m"] = exported.gsd_m
    classes = [
        {"value": index, "name": name, "description": name, "color_hint": colour.removeprefix("#").upper()}
        for index, (name, colour) in enumerate(zip(exported.classes, exported.palette, strict=True))
    ]
    properties: dict[str, Any] = {
        "name": exported.name,
        "architecture": "CrossEarth: DINOv2 with Rein adapters, Mask2Former head",
        "framework": "PyTorch",
        "framework_version": torch.__version__.partition("+")[0],
        "artifact_type": artifact_type,
        "tasks": ["semantic-segmentation"],
        "total_parameters": exported.num_parameters,
        "hyperparameters": hyperparameters,
        "input": [
            {
                "name": "image",
                "description": "a window at the ground sample distance of the training; clipped to 0..1, "
                "normalised by the network itself",
                "bands": list(exported.bands),
                "input": {"shape": [-1, 3, side, side], "dim_order": dimensions, "data_type": "float32"},
                "value_scaling": [{"type": "min-max", "minimum": low, "maximum": high}],
            }
        ],
        "output": [
            {
                "name": "probabilities",
                "description": "0..1, their sum over the classes is 1",
                "tasks": ["semantic-segmentation"],
                "result": {
                    "shape": [-1, len(exported.classes), side, side],
                    "dim_order": ["batch", "class", "height", "width"],
                    "data_type": "float32",
                },
                "classification:classes": classes,
            }
        ],
    }
    return json.dumps({"$schema": MLM_SCHEMA, "properties": properties}, ensure_ascii=False)


def deepness_metadata(exported: Exported) -> dict[str, str]:
    """What Deepness reads: each value JSON.

    It scales bytes to 0..1, then standardises: the network wants the first alone. Below its threshold it
    names every pixel the first class: there must be none. Its resolution is in centimetres.
    """
    config = exported.network
    values: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(index): name for index, name in enumerate(exported.classes)},
        "tile_size": config.crop_px,
        "tiles_overlap": round(100 * (1 - config.stride_px / config.crop_px)),
        "standardization_mean": [0.0] * 3,
        "standardization_std": [1.0] * 3,
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
    }
    if exported.gsd_m is not None:
        values["resolution"] = 100 * exported.gsd_m
    return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
