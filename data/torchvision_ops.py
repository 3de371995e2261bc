"""Makes torchvision importable beside a CPU build of torch.

torchvision's wheel is built for CUDA; beside CPU torch its compiled operators do not load and importing it
fails with "operator torchvision::nms does not exist" unless the operators' schemas are defined first. Beside
CUDA torch nothing is done. Import this module before torchvision, timm or torchmetrics.
"""

import importlib.util

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_library = torch.library.Library("torchvision", "FRAGMENT")
if importlib.util.find_spec("torchvision") and not torch.version.cuda:
    for schema in SCHEMAS.values():
        _library.define(schema)
