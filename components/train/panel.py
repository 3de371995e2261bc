"""What a training sees of one sample, side by side."""

import numpy as np
from numpy.typing import NDArray

from crossearth.components.runtime.palette import colour_table
from crossearth.components.runtime.pictures import titled, with_legend
from crossearth.data.catalog.domains import ClassSet
from crossearth.data.tiles.dataset import Batch
from crossearth.model.inference import predict_labels
from crossearth.model.training.multitask import MultiTaskLoss


def training_panel(multi_task_loss: MultiTaskLoss, micro: Batch, class_set: ClassSet) -> NDArray[np.uint8]:
    """Image, styled, masked, reconstruction, prediction and truth of the first sample, as far as there are.

    Args:
        multi_task_loss: its network in evaluation mode.
        micro: samples of the training, on any device.

    Returns:
        (H, W, 3) RGB: under titles, over the legend of the classes.
    """
    device = next(multi_task_loss.network.parameters()).device
    image_13HW = micro["image"][:1].to(device)
    pictures = multi_task_loss.pictures(image_13HW, int(micro["position"][0]))
    predicted_HW = predict_labels(multi_task_loss.network, image_13HW)[0]
    colours = colour_table(class_set.palette)
    shown = [picture.permute(1, 2, 0).cpu().numpy() for picture in pictures]
    row = np.concatenate([*shown, colours[predicted_HW.cpu()], colours[micro["label"][0]]], axis=1)
    branches = multi_task_loss.branches
    titles = ["image", *["styled"] * branches.style, *["masked", "reconstruction"] * branches.mim]
    labelled = titled(row, [*titles, "prediction", "truth"])
    return with_legend(labelled, class_set.classes, colours[: len(class_set.classes)])
