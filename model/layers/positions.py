"""Position grids and patch kernels at other sizes than those that they were trained at.

Shape legend: h w patch rows and columns, N = h*w patches, R prefix positions (of class and register tokens),
T = R + N, C embedding channels, P side of a patch in pixels, G = g*g cells of the position grid.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# DINOv2 widens the sampling scale of the position grid by this, against rounding down to one cell less
POSITION_SCALE_OFFSET = 0.1


def resize_positions(positions_1TC: Tensor, rows: int, columns: int) -> Tensor:
    """Position embedding for a grid of `rows` x `columns` patches, as DINOv2 does it (bicubic).

    The class position (first) is kept. A square grid of the stored size is returned untouched; any other one
    is sampled with scale (rows + 0.1) / g, which is not the ratio of the sizes: released weights expect that.
    """
    num_cells = positions_1TC.shape[1] - 1
    if rows * columns == num_cells and rows == columns:
        return positions_1TC
    side = math.sqrt(num_cells)
    grid_1Cgg = positions_1TC[:, 1:].unflatten(1, (round(side), -1)).permute(0, 3, 1, 2)
    scale = ((rows + POSITION_SCALE_OFFSET) / side, (columns + POSITION_SCALE_OFFSET) / side)
    resized_1Chw = F.interpolate(grid_1Cgg.float(), scale_factor=scale, mode="bicubic", align_corners=False)
    resized_1NC = resized_1Chw.flatten(2).transpose(1, 2).to(positions_1TC.dtype)
    return torch.cat([positions_1TC[:, :1], resized_1NC], dim=1)


def resample_patch_kernel(kernel_C3PP: Tensor, patch_px: int) -> Tensor:
    """Patch kernels for patches of `patch_px` (bicubic, magnitudes not rescaled)."""
    if kernel_C3PP.shape[2:] == (patch_px, patch_px):
        return kernel_C3PP
    resized_C3PP = F.interpolate(
        kernel_C3PP.float(), size=(patch_px, patch_px), mode="bicubic", align_corners=False
    )
    return resized_C3PP.to(kernel_C3PP.dtype)
