"""Which attention backend a model uses: the choice for a device and a type."""

import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from transformers.utils.generic import is_flash_attention_requested

# The default: the fastest backend for the device and type at hand.
AUTOMATIC = "auto"


def is_flash(name: str) -> bool:
    """Whether it is one of transformers' names for FlashAttention kernels."""
    return is_flash_attention_requested(requested_attention_implementation=name)


def choose_attention(requested: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The backend for a device and the type of queries and keys, and why it is this one.

    Raises:
        ValueError: if the backend that was asked for cannot work there.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    if requested == AUTOMATIC:
        if device.type != "cuda":
            return "sdpa", f"the fastest on {device.type}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "sdpa", "the FlashAttention kernels need an Ampere card or a newer one"
        if not half:
            return "sdpa", (
                f"the FlashAttention kernels do not take {dtype}; they would be several times "
                "faster with dtype=torch.bfloat16, or under autocast"
            )
        if is_flash_attn_3_available():
            return "flash_attention_3", "flash-attn 3 is installed"
        if is_flash_attn_2_available():
            return "flash_attention_2", "flash-attn is installed"
        return "varlen_attention", "torch's own FlashAttention; flash-attn is not installed"
    if requested == "varlen_attention" or is_flash(requested):
        if device.type != "cuda":
            raise ValueError(
                f"{requested!r} needs a CUDA device, but the model is on {device.type}. Move "
                "it, or call model.set_attn_implementation('sdpa')."
            )
        if not half:
            raise ValueError(
                f"{requested!r} takes bf16 or fp16, not {dtype}. Load the model with "
                "dtype=torch.bfloat16, run it under autocast, or call "
                "model.set_attn_implementation('sdpa')."
            )
    if requested == "flex_attention" and device.type == "cpu":
        raise ValueError(
            "'flex_attention' has no backward on the CPU, and is compiled anew for every length "
            "there. Move the model, or call model.set_attn_implementation('sdpa')."
        )
    return requested, "as asked for"
