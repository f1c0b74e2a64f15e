"""Warns of number formats in which training is slow or fails."""

from pathlib import Path

import torch
from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
# The flags of x86 (AVX-512 and AMX) and of Arm.
_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def has_bfloat16() -> bool | None:
    """Returns whether the processor has instructions for bfloat16.

    Returns None if that is unknown: on other systems than Linux, and on other processors than x86 and Arm.
    """
    if not _CPUINFO.exists():
        return None
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    listed = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return any(_FLAGS.intersection(line.split()) for line in listed) if listed else None


def warn_of_slow_bfloat16(device_type: str) -> None:
    """Warns if bfloat16 was requested on a CPU that emulates it."""
    if device_type == "cpu" and has_bfloat16() is False:
        logger.warning(
            "bf16 was requested, but this processor has no instructions for bfloat16 (avx512_bf16, amx_bf16 or bf16). It "
            "is emulated, many times slower than float32. Leave bf16 out; in a configuration file, set bf16: false."
        )


def warn_of_float16(model: nn.Module) -> None:
    """Warns if parameters that will be trained are stored in float16, as in some checkpoints of encoders."""
    if any(parameter.dtype == torch.float16 and parameter.requires_grad for parameter in model.parameters()):
        logger.warning(
            "The model is trained in float16. Gradients can overflow in it, so that the loss becomes NaN. Load the encoder "
            "in float32: from_encoder(..., dtype=torch.float32)."
        )
