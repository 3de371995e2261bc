"""Torch's private functions are there, and say what its public table says."""

import pytest
import torch
from torch.nn import functional as F

from crossearth.data.common.cpu import has_amx, has_bfloat16_convolutions


def test_amx_is_what_torch_says_of_the_cpu() -> None:
    said = getattr(torch.cpu, "get_capabilities", dict)()  # newer versions have it
    assert has_amx() is said.get("amx_tile", has_amx())


def test_convolutions_take_bfloat16_where_they_are_said_to() -> None:
    if not has_bfloat16_convolutions():
        pytest.skip("this CPU's convolutions take no bfloat16")
    image_B3HW, kernel_C3PP = torch.ones(1, 3, 8, 8).bfloat16(), torch.ones(4, 3, 3, 3).bfloat16()
    assert (F.conv2d(image_B3HW, kernel_C3PP) == 27).all()
