"""What this machine's CPU computes fast: the only file that asks torch's private functions."""

import torch


def has_amx() -> bool:
    """Whether matrices of bfloat16 are multiplied faster than those of float32."""
    return torch.cpu._is_amx_tile_supported()


def has_bfloat16_convolutions() -> bool:
    """Whether oneDNN's convolutions take bfloat16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
