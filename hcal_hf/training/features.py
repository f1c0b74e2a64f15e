"""Computes pooled encoder states once, to train the head of a model with a frozen encoder on them."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.collator import HcalDataCollator
from ..modeling_hcal import HcalForSequenceClassification
from ..progress_bar import progress_bar

logger = logging.get_logger(__name__)

# The folder of features within a model's folder. Pushes leave out names that start with _.
CACHE_FOLDER = "_features"


def encoder_fingerprint(model: HcalForSequenceClassification) -> str:
    """Computes SHA-256 over all that decides pooled states: configuration, weights, pooling, windows, lexical features."""
    digest = hashlib.sha256(model.config.pooling.encode())
    encoder_config: Any = model.config.encoder_config
    digest.update(encoder_config.to_json_string().encode())
    if model.windows is not None:
        digest.update(repr(model.windows).encode())
    weights = model.encoder.state_dict()
    if model.window_attention is not None:
        weights |= {f"window_attention.{name}": value for name, value in model.window_attention.state_dict().items()}
    if model.lexical is not None:
        weights |= {f"lexical.{name}": value for name, value in model.lexical.state_dict().items()}
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else b"")
    return digest.hexdigest()


def pooled_features(
    model: HcalForSequenceClassification,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 64,
    cache_dir: str | os.PathLike | None = None,
    desc: str = "Encoding texts",
) -> Dataset:
    """Replaces the token columns of an encoded data set by the encoder's pooled states.

    Texts of similar length share a batch, which saves padding. The order of rows is kept.

    Args:
        model: the model with the encoder and the pooling, which are used without dropout.
        dataset: a data set of N rows, made by [`encode_dataset`].
        tokenizer: pads the batches.
        batch_size: the number of texts per batch.
        cache_dir (*optional*): caches the features in safetensors files in this folder, named by a hash of the encoder
            and of the token ids. A second call with the same content reads them instead of computing them.

    Returns:
        a data set with `pooled_states` (float32 [N, hidden_size]) and, if `dataset` has them, `labels`.
    """
    tokens = dataset.select_columns([name for name in dataset.column_names if name != "labels"])
    lengths = np.fromiter(map(len, tokens["input_ids"]), dtype=np.int64, count=len(tokens))
    path = None
    if cache_dir is not None:
        digest = hashlib.sha256(encoder_fingerprint(model).encode())
        digest.update(lengths.tobytes())
        for batch in tokens.with_format("arrow").iter(batch_size=1000):
            for name in sorted(batch.column_names):
                digest.update(name.encode())
                digest.update(batch[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes())
        path = Path(cache_dir) / f"{digest.hexdigest()}.safetensors"
    states = None if path is None else _read_cache(path, len(tokens), model.projection.in_features)
    if states is None:
        states = _compute(model, tokens, lengths, HcalDataCollator(tokenizer, model.taxonomy), batch_size, desc)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Renamed when complete, because another process may read or write the same file.
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            save_file({"pooled_states": states}, temporary, metadata={"sha256": _digest(states)})
            try:
                temporary.replace(path)
            except PermissionError:  # on Windows, if another process has the same file open
                if not path.exists():
                    raise
                temporary.unlink()
    column = pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), states.shape[1])
    features = Dataset(pa.table({"pooled_states": column}))
    if "labels" in dataset.column_names:
        features = concatenate_datasets([features, dataset.select_columns("labels")], axis=1)
    return features.with_format("numpy", columns=["pooled_states"], output_all_columns=True)


def _read_cache(path: Path, documents: int, size: int) -> np.ndarray | None:
    """Reads cached features. Returns None, with a warning, for a file that is damaged or holds others."""
    if not path.exists():
        return None
    problem = "is not complete"
    try:
        with safe_open(path, framework="numpy") as file:
            states: np.ndarray = file.get_tensor("pooled_states")
            stored = (file.metadata() or {}).get("sha256")
        if states.shape != (documents, size) or states.dtype != np.float32:
            problem = (
                f"holds features of shape {list(states.shape)} and type {states.dtype}, not [{documents}, {size}]"
            )
        elif not np.isfinite(states).all():
            problem = "holds NaN or infinite features"
        elif stored is not None and stored != _digest(states):
            problem = "was changed after it was written"
        else:
            return states
    except (SafetensorError, OSError):
        pass
    logger.warning(f"The cached features in {path} are computed again: the file {problem}.")
    return None


def _digest(states: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(states).tobytes()).hexdigest()


@torch.no_grad()
def _compute(
    model: HcalForSequenceClassification,
    tokens: Dataset,
    lengths: np.ndarray,
    collate: HcalDataCollator,
    batch_size: int,
    desc: str,
) -> np.ndarray:
    was_training = model.training
    model.eval()
    order = np.argsort(-lengths, kind="stable")
    states = np.empty((len(tokens), model.projection.in_features), dtype=np.float32)
    for start in progress_bar(iterable=range(0, len(order), batch_size), desc=desc):
        rows = order[start : start + batch_size]
        batch = {name: value.to(model.device) for name, value in collate([tokens[int(i)] for i in rows]).items()}
        states[rows] = model.encode_documents(batch)[1].float().cpu().numpy()
    model.train(was_training)
    return states
