"""Makes torchvision importable beside a torch that its compiled operators do not load with.

torchvision's wheel is built for CUDA; beside CPU torch its operators do not load and importing it fails with
"operator torchvision::nms does not exist" unless the operators' schemas are defined first. Where they load,
as those of a pair of CPU builds do, nothing is defined. Import this module before torchvision, timm or
torchmetrics.
"""

import importlib.util
from pathlib import Path

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_library = torch.library.Library("torchvision", "FRAGMENT")
if torchvision := importlib.util.find_spec("torchvision"):
    try:
        # torchvision's own library, not torchvision: importing it without its operators fails half-way
        torch.ops.load_library(Path(str(torchvision.origin)).with_name("_C.so"))
    except OSError:
        for schema in SCHEMAS.values():
            _library.define(schema)
