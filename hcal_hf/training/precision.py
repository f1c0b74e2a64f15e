"""Whether this machine's processor computes in bfloat16 itself."""

from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
# x86: AVX-512 and AMX; Arm calls it bf16.
_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def has_bfloat16() -> bool | None:
    """Whether the processor has instructions for bfloat16; None where that is not known (other systems than Linux,
    other processors than x86 and Arm)."""
    if not _CPUINFO.exists():
        return None
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    listed = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return any(_FLAGS.intersection(line.split()) for line in listed) if listed else None


def warn_of_slow_bfloat16(device_type: str) -> None:
    """Tells whoever asked for bfloat16 on a processor without it that it makes everything slower."""
    if device_type == "cpu" and has_bfloat16() is False:
        logger.warning(
            "bf16 was asked for, but this processor has no instructions for bfloat16 (avx512_bf16, amx_bf16 or bf16): it "
            "is emulated, many times slower than float32. Leave bf16 out, in a configuration bf16: false."
        )
