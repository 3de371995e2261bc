"""Where a network computes."""

import os

import torch

from crossearth.data.common.errors import InputError


def choose_device(device: str) -> str:
    """`device`, or for "auto" this process's GPU, else the CPU; InputError: there is no such device."""
    if device == "auto":
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise InputError(
            f"device: {device!r}: {str(error).splitlines()[0][:200]}",
            expected="cpu, or cuda, cuda:1, ... where there is a GPU",
            next_step="`crossearth doctor` lists the devices",
        ) from error
    return device
