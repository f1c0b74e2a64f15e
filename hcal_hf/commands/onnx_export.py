"""Exports models as ONNX files, which classify texts with onnxruntime, without torch and transformers.

    report = export_onnx("outputs/naics2012/model", "outputs/naics2012/onnx", quantize=True)

Needs the extra `export`: pip install "hcal-hf[export]".
"""

import contextlib
import copy
import importlib.util
import inspect
import json
import logging as python_logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import logging

from ..decoding import default_method
from ..encoder_inputs import run_encoder
from ..geometry import exponential_map, lorentz_distances
from ..modeling_hcal import HcalForSequenceClassification
from ..pipeline_hcal import MAX_PATHS
from ..token_limits import token_limit
from ..windows import Windows, pool_windows
from .saved_model import load_model

logger = logging.get_logger(__name__)

# The inputs of an encoder that a tokenizer can provide.
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
# The heads need ScatterElements with min and max, which ONNX has from this version.
MIN_OPSET = 18
# The largest allowed difference of a probability between ONNX and torch.
TOLERANCE = 1e-4
# A protocol buffer holds up to 2 GiB. Weights beyond this number of bytes are written to a separate file.
MAX_SINGLE_FILE = 1_900_000_000

MODEL, INT8, TOKENIZER, HIERARCHY = "model.onnx", "model_int8.onnx", "tokenizer.json", "hierarchy.json"
FILES = (MODEL, f"{MODEL}.data", INT8, f"{INT8}.data", TOKENIZER, HIERARCHY)
# The weights of the head, which stay in float32 (see recipes/benchmarks/pages/export.md).
_HEAD_WEIGHTS = ("projection.weight", "prototypes")


class PooledStates(nn.Module):
    """Computes the pooled states [B, hidden_size] of token ids, followed by the lexical features if there are any."""

    def __init__(self, model: HcalForSequenceClassification):
        super().__init__()
        self.encoder, self.lexical, self.window_attention = model.encoder, model.lexical, model.window_attention
        self.windows, self.pool, self.pooling = model.windows, model.pool, model.config.pooling

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if self.windows is None:
            pooled = self.pool(run_encoder(self.encoder, **inputs).last_hidden_state, attention_mask)
        else:
            pooled = self._read_windows(self.windows, inputs)
        return pooled if self.lexical is None else self.lexical.append(pooled, input_ids, attention_mask)

    def _read_windows(self, windows: Windows, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Computes the pooled states of documents [B, hidden_size] from their windows."""
        batch = windows.split(inputs)
        # Tracers take a single window for a constant. The graph runs with one all the same.
        torch._check(batch.documents.shape[0] >= 2)
        pooled = self.pool(run_encoder(self.encoder, **batch.inputs).last_hidden_state, batch.inputs["attention_mask"])
        scores = None if self.window_attention is None else self.window_attention(pooled)
        return pool_windows(pooled, batch, inputs["input_ids"].shape[0], self.pooling, scores)


class _Probabilities(nn.Module):
    """Computes node probabilities [B, L] from token ids, with the prototypes as constants."""

    prototypes: torch.Tensor
    bias: torch.Tensor | None
    radius: torch.Tensor | None

    def __init__(self, model: HcalForSequenceClassification):
        super().__init__()
        self.states, self.projection, self.head = PooledStates(model), model.projection, model.head
        self.score_temperature = model.config.score_temperature
        module = model.prototypes
        prototypes = module.vectors(model.projection) if module.is_linear else module(model.projection)
        self.register_buffer("prototypes", prototypes.detach().clone())
        self.register_buffer("bias", None if module.bias is None else module.bias.detach().clone())
        self.register_buffer("radius", None if module.radius is None else module.radius.detach().clone())
        self.curvature, self.is_released = module.curvature, module.is_released

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        features = self.projection(self.states(input_ids, attention_mask, token_type_ids))
        features = features if self.is_released else F.normalize(features, dim=-1)
        scores = self.head.scores(self._products(features))
        # exp(log p), not sigmoid(logit p), because ONNX has no log1p and expm1, and exp keeps P(child) <= P(parent).
        return self.head.log_probs(scores, self.score_temperature).exp()

    def _products(self, features: torch.Tensor) -> torch.Tensor:
        if self.curvature is None or self.radius is None or self.bias is None:
            return F.linear(features, self.prototypes, self.bias)
        points = exponential_map(self.radius * features, self.curvature)
        return self.bias - lorentz_distances(points, self.prototypes, self.curvature)


def export_onnx(
    model: str | os.PathLike | HcalForSequenceClassification,
    directory: str | os.PathLike,
    *,
    tokenizer: Any = None,
    quantize: bool = False,
    opset: int = MIN_OPSET,
) -> dict[str, Any]:
    """Writes a model as ONNX. Prediction then needs only the written files, onnxruntime, tokenizers and numpy.

    The graph takes `input_ids`, `attention_mask` and, if the encoder and the tokenizer have them, `token_type_ids`, int64
    `[B, S]` for any B and S. It returns `probabilities`, float32 `[B, L]` in the order of the labels. These are the sigmoid
    of the model's logits with its score temperature. With a coherent head, P(child) <= P(parent). The graph computes in
    float32 for any dtype of the model. The exported graph is compared with torch at several sizes before any file in
    `directory` is replaced.

    Args:
        model: a trained model, which is not changed, or its folder or its name on the Hub.
        directory: the folder of the files. Files of an earlier export are replaced. `model.onnx` is the model (with
            `model.onnx.data` for weights above about 1.9 GB). `model_int8.onnx` is written with `quantize`.
            `tokenizer.json` truncates and pads as the pipeline does. `hierarchy.json` holds labels, edges, depths, paths,
            label mode, thresholds and the other data for decoding (`recipes/export/predict.py` reads it).
        tokenizer (*optional*): the fast tokenizer of the model. By default, it is loaded with the model. If `model` is
            not a folder or a name, and there is no tokenizer, `tokenizer.json` is not written, and a warning is logged.
        quantize: also write a model with int8 weights in the encoder and a float32 head (dynamic quantisation of
            onnxruntime: int8 per channel, activations uint8). Measure it before use, because it changes probabilities.
        opset: the version of the ONNX operators, 18 or above.

    Returns:
        `directory`, `files` (bytes of each), `inputs` (names), `checked` (the compared sizes [B, S]), `max_difference` (the
        largest difference of a probability between ONNX and torch), and with `quantize` `int8_max_difference` likewise.

    Raises:
        ImportError: if onnx, onnxruntime or onnxscript is missing.
        ValueError: if opset is below 18, the model is not an HCAL model, the tokenizer is not a fast one, or the directory
            holds a saved model.
        RuntimeError: if a probability differs from that of torch by more than 1e-4, or exceeds that of its parent. Nothing
            is written then.
    """
    require_extra()
    if opset < MIN_OPSET:
        raise ValueError(f"opset must be {MIN_OPSET} or above (the heads reduce segments), got {opset}.")
    directory = Path(directory)
    if (directory / "config.json").exists():
        raise ValueError(
            f"{directory} holds a saved model, whose {TOKENIZER} would be replaced: give another folder, such as "
            f"{directory / 'onnx'}."
        )
    resolved, tokenizer = _resolve(model, tokenizer)
    names = input_names(resolved, tokenizer)
    pad_id = getattr(tokenizer, "pad_token_id", None) or 0
    directory.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"directory": str(directory), "inputs": names}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as folder:
        files = Path(folder)
        if tokenizer is None:
            logger.warning(f"No tokenizer was given with the model: {TOKENIZER} is not written to {directory}.")
        else:
            _save_tokenizer(tokenizer, resolved, files / TOKENIZER)
        (files / HIERARCHY).write_text(json.dumps(hierarchy(resolved), ensure_ascii=False), encoding="utf-8")
        export_module(resolved, names, pad_id, opset, files / MODEL)
        inputs = list(check_inputs(resolved, names, pad_id))
        expected = [_torch_probabilities(resolved, batch) for batch in inputs]
        report["checked"] = [list(batch["input_ids"].shape) for batch in inputs]
        probabilities = run_onnx(files / MODEL, inputs)
        report["max_difference"] = largest = _largest_difference(probabilities, expected)
        if not largest <= TOLERANCE:
            raise RuntimeError(
                f"The exported model's probabilities differ from torch's by up to {largest:.2g}, more than {TOLERANCE:g}: "
                f"nothing was written to {directory}. Please report the type of the encoder "
                f"({resolved.encoder.config.model_type!r}) and the versions of torch and onnxruntime."
            )
        _check_coherence(probabilities, resolved)
        if quantize:
            quantize_int8(files / MODEL, files / INT8)
            report["int8_max_difference"] = _largest_difference(run_onnx(files / INT8, inputs), expected)
        report["files"] = {}
        for name in FILES:
            if (files / name).exists():
                report["files"][name] = (files / name).stat().st_size
                (files / name).replace(directory / name)
            elif (directory / name).exists():
                (directory / name).unlink()
                logger.warning(f"{directory / name} was from an earlier export and is removed.")
    return report


def hierarchy(model: HcalForSequenceClassification) -> dict[str, Any]:
    """Collects the data for decoding probabilities, as in `hierarchy.json`.

    Returns:
        `labels` [L] and `depths` [L] (0 = top level); `edges` as (parent, child) indices, sorted so that the edges to a
        node come before the edges from it; `ancestors` of each label with itself, from the root down; `paths`, the names
        on up to 100 paths to each label; `text_prefix`, which precedes each text; `label_mode`, `partial_paths` and
        `head`; `decode`, the default of the pipeline;
        `thresholds` [L], tuned or the default of the pipeline (0.5 for multi_path, 0 for single_path); `risk_threshold`,
        None unless calibrated.
    """
    config, taxonomy = model.config, model.taxonomy
    default = 0.0 if config.label_mode == "single_path" else 0.5
    return {
        "labels": list(taxonomy.labels),
        "depths": taxonomy.depths.tolist(),
        "edges": taxonomy.edges.tolist(),
        "ancestors": [taxonomy.complete([node]).tolist() for node in range(taxonomy.num_labels)],
        "paths": [taxonomy.paths(node, limit=MAX_PATHS) for node in range(taxonomy.num_labels)],
        "text_prefix": config.text_prefix,
        "label_mode": config.label_mode,
        "partial_paths": config.partial_paths,
        "head": config.head,
        "decode": default_method(config.label_mode),
        "thresholds": [default] * taxonomy.num_labels if config.thresholds is None else list(config.thresholds),
        "risk_threshold": config.risk_threshold,
    }


def run_onnx(path: str | os.PathLike, batches: list[dict[str, np.ndarray]], threads: int = 0) -> list[np.ndarray]:
    """Computes the probabilities [B, L] of each batch of inputs with an ONNX file on the CPU.

    Args:
        path: the ONNX file.
        batches: the inputs, int64 [B, S] by name.
        threads: the number of threads of onnxruntime; 0 lets onnxruntime choose.
    """
    session = open_session(path, threads)
    return [session.run(["probabilities"], batch)[0] for batch in batches]


def open_session(path: str | os.PathLike, threads: int = 0) -> Any:
    """Opens an `onnxruntime.InferenceSession` on the CPU. With `threads=0`, onnxruntime chooses their number."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def require_extra() -> None:
    """Raises an ImportError that names the missing packages of the extra `export`."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'Export needs {", ".join(missing)}: pip install "hcal-hf[export]"')


def _resolve(model: Any, tokenizer: Any) -> tuple[HcalForSequenceClassification, Any]:
    """Returns a copy of the model on the CPU, in float32 and evaluation mode, and its tokenizer."""
    if isinstance(model, str | os.PathLike) and tokenizer is None:
        model, tokenizer = load_model(str(model))
    elif isinstance(model, str | os.PathLike):
        model = HcalForSequenceClassification.from_pretrained(model)
    elif not isinstance(model, HcalForSequenceClassification):
        raise ValueError(
            f"model must be a folder, a name on the Hub or an HcalForSequenceClassification, got {type(model).__name__}."
        )
    else:
        model = copy.deepcopy(model)
    return model.to(device="cpu", dtype=torch.float32).eval(), tokenizer


def input_names(model: HcalForSequenceClassification, tokenizer: Any) -> list[str]:
    """Returns the inputs that the encoder takes and the tokenizer provides."""
    encoder_inputs = inspect.signature(model.encoder.forward).parameters
    if tokenizer is not None:
        tokenizer_outputs = {*tokenizer.model_input_names, "input_ids", "attention_mask"}
    else:
        # An encoder with a single token type does not need this input.
        has_types = getattr(model.encoder.config, "type_vocab_size", 0) > 1
        tokenizer_outputs = {*INPUT_NAMES} if has_types else {*INPUT_NAMES[:2]}
    return [name for name in INPUT_NAMES if name in encoder_inputs and name in tokenizer_outputs]


def _save_tokenizer(tokenizer: Any, model: HcalForSequenceClassification, path: Path) -> None:
    """Writes a tokenizer.json with the truncation and padding of the pipeline."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(
            f"tokenizer must be a fast one, so that the library tokenizers can read it without transformers, got "
            f"{type(tokenizer).__name__}: load it with AutoTokenizer.from_pretrained."
        )
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    longest = token_limit(model, tokenizer)
    if longest:
        backend.enable_truncation(longest, direction=tokenizer.truncation_side)
    else:
        backend.no_truncation()
    # Without a padding token, any token works, because the mask hides it.
    backend.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id or 0,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token or tokenizer.convert_ids_to_tokens(0),
    )
    backend.save(str(path))


def export_module(
    model: HcalForSequenceClassification,
    names: list[str],
    pad_id: int,
    opset: int,
    path: Path,
    module: nn.Module | None = None,
    output: str = "probabilities",
) -> None:
    """Traces `module`, by default the model's probabilities, and writes the ONNX file."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass
    from onnxscript import optimizer

    generator = torch.Generator().manual_seed(0)
    longest = 8 if model.max_tokens is None else max(2, min(8, model.max_tokens))
    if model.windows is not None:  # so that the trace has several windows
        longest = model.windows.length + 1
    example = {k: torch.from_numpy(v) for k, v in _random_batch(model, names, 2, longest, pad_id, generator).items()}
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names}
    size = sum(p.numel() * p.element_size() for p in [*model.parameters(), *model.buffers()])
    with _quiet(), torch.no_grad():
        # torch.onnx.export alone would try other tracers after an error, and hide the first error.
        program = torch.export.export(
            (module or _Probabilities(model)).eval(), (), kwargs=example, dynamic_shapes=dynamic, strict=False
        )
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=[output],
            optimize=False,
            verbose=False,
        )
        assert exported is not None
        # The rewriting rules of onnxscript 0.7 are left out. They drop addends of an index_add that covers all rows.
        optimizer.fold_constants(exported.model)
        optimizer.remove_unused_nodes(exported.model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(exported.model)
        for value in [*exported.model.graph.inputs, *exported.model.graph.outputs]:
            assert value.shape is not None
            value.shape = type(value.shape)(["batch", "length"] if value.name in names else ["batch", value.shape[1]])
        exported.save(str(path), external_data=size > MAX_SINGLE_FILE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides irrelevant warnings of the exporter (on torch and torchvision) and of the quantiser (on inferring shapes)."""
    root, registration = (
        python_logging.getLogger(name) for name in (None, "torch.onnx._internal.exporter._registration")
    )
    levels = root.level, registration.level
    # The quantiser calls logging.warning, which would add a permanent handler to a root logger without one.
    null_handler = python_logging.NullHandler()
    root.addHandler(null_handler)
    for log in (root, registration):
        log.setLevel(python_logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for log, level in zip((root, registration), levels):
            log.setLevel(level)
        root.removeHandler(null_handler)


def _random_batch(
    model: HcalForSequenceClassification,
    names: list[str],
    size: int,
    length: int,
    pad_id: int,
    generator: torch.Generator,
    left: bool = False,
) -> dict[str, np.ndarray]:
    """Draws random tokens, int64 [size, length]. The first document has full length, and the others are padded."""
    embeddings: Any = model.get_input_embeddings()
    vocabulary = embeddings.num_embeddings
    ids = torch.randint(vocabulary, (size, length), generator=generator)
    ids = torch.where(ids == pad_id, (pad_id + 1) % vocabulary, ids)
    lengths = torch.randint(1, length + 1, (size, 1), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    mask = mask.flip(1) if left else mask
    tensors = {
        "input_ids": torch.where(mask > 0, ids, pad_id),
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
    }
    return {name: tensors[name].numpy() for name in names}


def check_inputs(
    model: HcalForSequenceClassification, names: list[str], pad_id: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of other sizes than the traced one, padded on either side."""
    generator = torch.Generator().manual_seed(1)
    longest = 64 if model.max_tokens is None else min(64, model.max_tokens)
    sizes = [(1, 1, False), (1, 5, False), (3, 7, True), (5, 13, False), (4, longest, False)]
    if model.windows is not None:
        longest = model.windows.capacity + 1  # one token more than the windows hold
        sizes += [(1, model.windows.length + 1, False), (3, longest, False), (2, longest, True)]
    for size, length, left in sizes:
        yield _random_batch(model, names, size, min(length, longest), pad_id, generator, left)


@torch.no_grad()
def _torch_probabilities(model: HcalForSequenceClassification, batch: dict[str, np.ndarray]) -> np.ndarray:
    outputs = model(**{name: torch.from_numpy(values) for name, values in batch.items()})
    return model.probabilities(outputs).numpy()


def _largest_difference(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Computes the largest absolute difference; NaN if any difference is NaN."""
    return max((float(np.abs(a - b).max()) for a, b in zip(actual, expected)), key=lambda x: (np.isnan(x), x))


def _check_coherence(probabilities: list[np.ndarray], model: HcalForSequenceClassification) -> None:
    """Raises a RuntimeError if a probability exceeds that of a parent."""
    if model.config.head == "independent" or not len(model.taxonomy.edges):
        return
    parents, children = model.taxonomy.edges.T
    excess = np.stack([(p[:, children] - p[:, parents]).max(axis=0) for p in probabilities]).max(axis=0)
    worst = int(excess.argmax())
    if excess[worst] > 1e-6:
        parent, child = (model.config.labels[node[worst]] for node in (parents, children))
        raise RuntimeError(
            f"In the exported model P({child!r}) exceeds that of its parent {parent!r} by {excess[worst]:.2g}: nothing was "
            "written."
        )


def quantize_int8(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    per_channel: bool = True,
    embeddings: bool = True,
    head: bool = False,
) -> None:
    """Writes a copy of a model with int8 weights in matrix products (dynamic quantisation of onnxruntime).

    Args:
        source: the float32 file that [`export_onnx`] wrote.
        target: the new file.
        per_channel: use one scale per column instead of one per matrix.
        embeddings: also quantise the embeddings of tokens, positions and types.
        head: also quantise the projection and the prototypes.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, target = Path(source), Path(target)
    graph = onnx.load(source, load_external_data=False).graph
    floats = {
        weight.name
        for weight in graph.initializer
        if len(weight.dims) == 2
        and weight.data_type == onnx.TensorProto.FLOAT
        and (head or weight.name not in _HEAD_WEIGHTS)
    }
    kinds = ("MatMul", "Gemm", "Gather") if embeddings else ("MatMul", "Gemm")
    nodes = [node.name for node in graph.node if node.op_type in kinds and floats & set(node.input)]
    nodes += [f"{name}_MatMul" for name in nodes]  # the name that the quantiser gives to the product in a Gemm
    large = source.with_name(f"{source.name}.data").exists()
    with _quiet():
        quantize_dynamic(
            source,
            target,
            nodes_to_quantize=nodes,
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
