"""Computes the pooled states of a model's encoder with onnxruntime instead of torch."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..modeling_hcal import HcalForSequenceClassification
from .onnx_export import (
    INT8,
    MIN_OPSET,
    MODEL,
    TOLERANCE,
    PooledStates,
    check_inputs,
    export_module,
    input_names,
    open_session,
    quantize_int8,
    require_extra,
)

_OUTPUT = "pooled_states"


class OnnxEncoder:
    """Runs the encoder of a model in onnxruntime on the CPU. The head stays in torch, in float32.

    Exporting takes some seconds, so it pays off for thousands of texts.

    Args:
        model: the model, which is not changed.
        tokenizer: its tokenizer.
        is_int8: quantise the weights of the encoder to int8 ([`hcal_hf.quantize_int8`]). That changes predictions slightly.
        threads: the number of threads of onnxruntime; 0 lets onnxruntime choose.

    Raises:
        ImportError: if onnx, onnxruntime or onnxscript is missing.
        RuntimeError: if the float32 graph differs from torch.
    """

    def __init__(self, model: HcalForSequenceClassification, tokenizer: Any, is_int8: bool = False, threads: int = 0):
        require_extra()
        model = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
        module, self.model_type = PooledStates(model), model.encoder.config.model_type
        self.names = input_names(model, tokenizer)
        pad_id = tokenizer.pad_token_id or 0
        with tempfile.TemporaryDirectory(prefix="hcal-onnx-") as folder:
            path = Path(folder, MODEL)
            export_module(model, self.names, pad_id, MIN_OPSET, path, module, _OUTPUT)
            self.session = open_session(path, threads)
            for batch in check_inputs(model, self.names, pad_id):
                self._check(module, batch)
            if is_int8:
                quantize_int8(path, Path(folder, INT8))
                self.session = open_session(Path(folder, INT8), threads)

    @torch.no_grad()
    def _check(self, module: nn.Module, batch: dict[str, np.ndarray]) -> None:
        expected = module(**{name: torch.from_numpy(values) for name, values in batch.items()})
        difference = (self(batch) - expected).norm(dim=1).max() / expected.norm(dim=1).max()
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"The encoder's states differ between onnxruntime and torch by up to {difference:.2g} of their length, "
                f"more than {TOLERANCE:g}: predict without --engine, and report the type of the encoder "
                f"({self.model_type!r}) and the versions of torch and onnxruntime."
            )

    def __call__(self, batch: dict[str, Any]) -> torch.Tensor:
        """Computes the pooled states [B, hidden_size] of token ids, `input_ids` and `attention_mask` [B, S]."""
        inputs = {name: np.asarray(batch[name], dtype=np.int64) for name in self.names}
        return torch.from_numpy(self.session.run([_OUTPUT], inputs)[0])


__all__ = ["OnnxEncoder"]
