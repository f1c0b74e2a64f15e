"""Models as ONNX files, for onnxruntime: text classification without torch and transformers.

    report = export_onnx("outputs/quickstart/model", "outputs/quickstart/onnx", quantize=True)

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
from ..modeling_hcal import HcalForSequenceClassification
from ..pipeline_hcal import MAX_PATHS, NO_LIMIT
from .saved_model import load_model

logger = logging.get_logger(__name__)

# The encoder's inputs that a tokenizer makes.
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
# From this version on ONNX reduces segments (ScatterElements with min and max), which the heads need.
MIN_OPSET = 18
# The largest difference of a probability between ONNX and torch.
TOLERANCE = 1e-4
# A protocol buffer holds up to 2 GiB; weights beyond this (in bytes) lie in a file of their own.
MAX_SINGLE_FILE = 1_900_000_000

MODEL, INT8, TOKENIZER, HIERARCHY = "model.onnx", "model_int8.onnx", "tokenizer.json", "hierarchy.json"
FILES = (MODEL, f"{MODEL}.data", INT8, f"{INT8}.data", TOKENIZER, HIERARCHY)
# Of these, weights that int8 leaves alone: the head's, see recipes/benchmarks/pages/export.md.
_HEAD_WEIGHTS = ("projection.weight", "prototypes")


class _Probabilities(nn.Module):
    """An HCAL model in evaluation mode from token ids to node probabilities [B, L], its prototypes as they are used."""

    prototypes: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, model: HcalForSequenceClassification):
        super().__init__()
        self.encoder, self.projection, self.head = model.encoder, model.projection, model.head
        self.config, self.pool = model.config, model.pool
        found = model.prototypes
        prototypes = found.vectors(model.projection) if found.is_linear else found(model.projection)
        self.register_buffer("prototypes", prototypes.detach().clone())
        self.register_buffer("bias", None if found.bias is None else found.bias.detach().clone())

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        features = F.normalize(self.projection(self.pool(states, attention_mask)), dim=-1)
        scores = self.head.scores(F.linear(features, self.prototypes, self.bias))
        # exp(log p) and not sigmoid(logit p): ONNX has no log1p and expm1, and exp keeps P(child) <= P(parent).
        return self.head.log_probs(scores, self.config.score_temperature).exp()


def export_onnx(
    model: str | os.PathLike | HcalForSequenceClassification,
    directory: str | os.PathLike,
    *,
    tokenizer: Any = None,
    quantize: bool = False,
    opset: int = MIN_OPSET,
) -> dict[str, Any]:
    """Writes a model as ONNX, with all that prediction needs beside onnxruntime, tokenizers and numpy.

    The graph takes `input_ids`, `attention_mask` and, where the encoder and the tokenizer have them, `token_type_ids`,
    int64 `[B, S]` of any B and S, and returns `probabilities`, float32 `[B, L]` in the order of the labels: sigmoid of
    the model's logits, its score temperature included, and with a coherent head P(child) <= P(parent). It is computed in
    float32 whatever the model's dtype. What was exported is compared with torch at several sizes before any file of
    `directory` is replaced.

    Args:
        model: a trained model, its folder or its name on the Hub. A model given as such is left as it is.
        directory: where the files go, those of an earlier export are replaced:
            `model.onnx` (and `model.onnx.data`, the weights, above about 1.9 GB); `model_int8.onnx`, with `quantize`;
            `tokenizer.json`, which truncates and pads as the pipeline does; `hierarchy.json`: labels, edges, depths, paths,
            label mode, thresholds and what else a decision needs (`recipes/export/predict.py` reads it).
        tokenizer (*optional*): the model's, a fast one; loaded with the model by default. With a model given as such and
            no tokenizer, no `tokenizer.json` is written, and the log says so.
        quantize: also writes the encoder's weights as int8 (onnxruntime's dynamic quantisation: int8 per channel,
            activations uint8), the head in float32. It changes probabilities; measure before use.
        opset: the version of the ONNX operators, 18 or above.

    Returns:
        `directory`, `files` (bytes of each), `inputs` (names), `checked` (the sizes [B, S] compared), `max_difference` (of
        a probability between ONNX and torch over them), and with `quantize` `int8_max_difference` likewise.

    Raises:
        ImportError: if onnx, onnxruntime or onnxscript is missing.
        ValueError: for an opset below 18, what is no HCAL model, a tokenizer that is not a fast one, or a directory that
            holds a saved model.
        RuntimeError: if a probability differs from torch's by more than 1e-4, or one exceeds its parent's; nothing is
            written then.
    """
    _require_extra()
    if opset < MIN_OPSET:
        raise ValueError(f"opset must be {MIN_OPSET} or above (the heads reduce segments), got {opset}.")
    directory = Path(directory)
    if (directory / "config.json").exists():
        raise ValueError(
            f"{directory} holds a saved model, whose {TOKENIZER} would be replaced: give a folder of its own, such as "
            f"{directory / 'onnx'}."
        )
    found, tokenizer = _resolve(model, tokenizer)
    names = _input_names(found, tokenizer)
    pad_id = getattr(tokenizer, "pad_token_id", None) or 0
    directory.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"directory": str(directory), "inputs": names}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as folder:
        files = Path(folder)
        if tokenizer is None:
            logger.warning(f"No tokenizer was given with the model: {TOKENIZER} is not written to {directory}.")
        else:
            _save_tokenizer(tokenizer, found, files / TOKENIZER)
        (files / HIERARCHY).write_text(json.dumps(hierarchy(found), ensure_ascii=False), encoding="utf-8")
        _export(found, names, pad_id, opset, files / MODEL)
        inputs = list(_check_inputs(found, names, pad_id))
        expected = [_torch_probabilities(found, batch) for batch in inputs]
        report["checked"] = [list(batch["input_ids"].shape) for batch in inputs]
        probabilities = run_onnx(files / MODEL, inputs)
        report["max_difference"] = largest = _largest_difference(probabilities, expected)
        if not largest <= TOLERANCE:
            raise RuntimeError(
                f"The exported model's probabilities differ from torch's by up to {largest:.2g}, more than {TOLERANCE:g}: "
                f"nothing was written to {directory}. Please report the encoder's type "
                f"({found.encoder.config.model_type!r}) and the versions of torch and onnxruntime."
            )
        _check_coherence(probabilities, found)
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
                logger.warning(f"{directory / name} was of an earlier export and is removed.")
    return report


def hierarchy(model: HcalForSequenceClassification) -> dict[str, Any]:
    """What a decision needs beside the probabilities, as it is written to `hierarchy.json`.

    `labels` [L] and their `depths` [L] (0 = top level); `edges`, (parent, child) indices into them, parents' own edges
    before their children's; `ancestors` of each label and itself, from the root down; `paths`, the names on the (first
    100) ways to each label; `label_mode`, `partial_paths`, `head`; `decode`, the pipeline's default; `thresholds` [L],
    tuned or the pipeline's default (0.5 for multi_path, 0 for single_path); `risk_threshold`, None unless calibrated.
    """
    config, taxonomy = model.config, model.taxonomy
    default = 0.0 if config.label_mode == "single_path" else 0.5
    return {
        "labels": list(taxonomy.labels),
        "depths": taxonomy.depths.tolist(),
        "edges": taxonomy.edges.tolist(),
        "ancestors": [taxonomy.complete([node]).tolist() for node in range(taxonomy.num_labels)],
        "paths": [taxonomy.paths(node, limit=MAX_PATHS) for node in range(taxonomy.num_labels)],
        "label_mode": config.label_mode,
        "partial_paths": config.partial_paths,
        "head": config.head,
        "decode": default_method(config.label_mode),
        "thresholds": [default] * taxonomy.num_labels if config.thresholds is None else list(config.thresholds),
        "risk_threshold": config.risk_threshold,
    }


def run_onnx(path: str | os.PathLike, batches: list[dict[str, np.ndarray]], threads: int = 0) -> list[np.ndarray]:
    """The probabilities [B, L] of each batch of inputs, by an ONNX file on the CPU.

    Args:
        threads: of onnxruntime; its own choice by default.
    """
    session = open_session(path, threads)
    return [session.run(["probabilities"], batch)[0] for batch in batches]


def open_session(path: str | os.PathLike, threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, with this many threads (0: as many as onnxruntime likes)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _require_extra() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'Export needs {", ".join(missing)}: pip install "hcal-hf[export]"')


def _resolve(model: Any, tokenizer: Any) -> tuple[HcalForSequenceClassification, Any]:
    """A copy of the model on the CPU, in float32 and evaluation mode, and its tokenizer."""
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


def _input_names(model: HcalForSequenceClassification, tokenizer: Any) -> list[str]:
    """The inputs that the encoder takes and the tokenizer makes."""
    taken = inspect.signature(model.encoder.forward).parameters
    if tokenizer is not None:
        made = {*tokenizer.model_input_names, "input_ids", "attention_mask"}
    else:
        # An encoder with one type knows no other than 0, and takes it by default.
        made = {*INPUT_NAMES} if getattr(model.encoder.config, "type_vocab_size", 0) > 1 else {*INPUT_NAMES[:2]}
    return [name for name in INPUT_NAMES if name in taken and name in made]


def _save_tokenizer(tokenizer: Any, model: HcalForSequenceClassification, path: Path) -> None:
    """A tokenizer.json that truncates and pads by itself, as the pipeline does."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(
            f"tokenizer must be a fast one, so that the library tokenizers can read it without transformers, got "
            f"{type(tokenizer).__name__}: load it with AutoTokenizer.from_pretrained."
        )
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    longest = tokenizer.model_max_length if tokenizer.model_max_length <= NO_LIMIT else model.max_tokens
    if longest:
        backend.enable_truncation(longest, direction=tokenizer.truncation_side)
    else:
        backend.no_truncation()
    # Where there is no token for padding any other does: the mask hides it.
    backend.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id or 0,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token or tokenizer.convert_ids_to_tokens(0),
    )
    backend.save(str(path))


def _export(model: HcalForSequenceClassification, names: list[str], pad_id: int, opset: int, path: Path) -> None:
    from onnx_ir.passes.common import LiftConstantsToInitializersPass
    from onnxscript import optimizer

    generator = torch.Generator().manual_seed(0)
    longest = 8 if model.max_tokens is None else max(2, min(8, model.max_tokens))
    example = {k: torch.from_numpy(v) for k, v in _random_batch(model, names, 2, longest, pad_id, generator).items()}
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names}
    size = sum(p.numel() * p.element_size() for p in [*model.parameters(), *model.buffers()])
    with _quiet(), torch.no_grad():
        # torch.onnx.export would fall back to other tracers, whose errors hide the first one.
        program = torch.export.export(
            _Probabilities(model).eval(), (), kwargs=example, dynamic_shapes=dynamic, strict=False
        )
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=["probabilities"],
            optimize=False,
            verbose=False,
        )
        assert exported is not None
        # Not its rewriting rules: those of onnxscript 0.7 drop the addends of an index_add that covers all rows.
        optimizer.fold_constants(exported.model)
        optimizer.remove_unused_nodes(exported.model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(exported.model)
        for value in [*exported.model.graph.inputs, *exported.model.graph.outputs]:
            assert value.shape is not None
            value.shape = type(value.shape)(["batch", "length"] if value.name in names else ["batch", value.shape[1]])
        exported.save(str(path), external_data=size > MAX_SINGLE_FILE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torch's own code and on torchvision, which is not used here, and the quantiser's
    advice to infer shapes, which the exporter has done."""
    root, registration = (
        python_logging.getLogger(name) for name in (None, "torch.onnx._internal.exporter._registration")
    )
    levels = root.level, registration.level
    # The quantiser logs by logging.warning, which would give a root logger without handlers one for good.
    nowhere = python_logging.NullHandler()
    root.addHandler(nowhere)
    for chatty in (root, registration):
        chatty.setLevel(python_logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for chatty, level in zip((root, registration), levels):
            chatty.setLevel(level)
        root.removeHandler(nowhere)


def _random_batch(
    model: HcalForSequenceClassification,
    names: list[str],
    size: int,
    length: int,
    pad_id: int,
    generator: torch.Generator,
    left: bool = False,
) -> dict[str, np.ndarray]:
    """Random tokens, int64 [size, length]; the first document is full, the others are padded."""
    embeddings: Any = model.get_input_embeddings()
    vocabulary = embeddings.num_embeddings
    ids = torch.randint(vocabulary, (size, length), generator=generator)
    ids = torch.where(ids == pad_id, (pad_id + 1) % vocabulary, ids)
    lengths = torch.randint(1, length + 1, (size, 1), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    mask = mask.flip(1) if left else mask
    made = {
        "input_ids": torch.where(mask > 0, ids, pad_id),
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
    }
    return {name: made[name].numpy() for name in names}


def _check_inputs(
    model: HcalForSequenceClassification, names: list[str], pad_id: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of other sizes than the traced one, padded on either side."""
    generator = torch.Generator().manual_seed(1)
    longest = 64 if model.max_tokens is None else min(64, model.max_tokens)
    for size, length, left in ((1, 1, False), (1, 5, False), (3, 7, True), (5, 13, False), (4, longest, False)):
        yield _random_batch(model, names, size, min(length, longest), pad_id, generator, left)


@torch.no_grad()
def _torch_probabilities(model: HcalForSequenceClassification, batch: dict[str, np.ndarray]) -> np.ndarray:
    outputs = model(**{name: torch.from_numpy(values) for name, values in batch.items()})
    return model.probabilities(outputs).numpy()


def _largest_difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """nan where any is."""
    return max((float(np.abs(a - b).max()) for a, b in zip(found, expected)), key=lambda x: (np.isnan(x), x))


def _check_coherence(found: list[np.ndarray], model: HcalForSequenceClassification) -> None:
    if model.config.head == "independent" or not len(model.taxonomy.edges):
        return
    parents, children = model.taxonomy.edges.T
    excess = np.stack([(p[:, children] - p[:, parents]).max(axis=0) for p in found]).max(axis=0)
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
    """Weights of matrix products as int8, their other factors quantised as they come (onnxruntime's dynamic quantisation).

    Args:
        source, target: the float32 file that [`export_onnx`] wrote, and the new one.
        per_channel: one scale a column instead of one a matrix.
        embeddings: also those of tokens, positions and types.
        head: also projection and prototypes.
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
    nodes += [f"{name}_MatMul" for name in nodes]  # what the quantiser calls the product that it makes of a Gemm
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
