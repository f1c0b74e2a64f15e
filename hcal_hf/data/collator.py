"""Collates encoded rows into batches."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from ..taxonomy import Taxonomy
from .label_checks import check_one_path

# Above this many labels a batch holds node indices instead of a multi-hot matrix.
MAX_MULTI_HOT_LABELS = 4096


@dataclass
class HcalDataCollator:
    """Pads token columns and builds the targets of a batch.

    Args:
        tokenizer: pads `input_ids` and the columns that belong to them; not needed for rows of `pooled_states` alone.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode (*optional*): with `"single_path"`, rows with labels that are not one path are refused.
        pad_to_multiple_of (*optional*): pads token columns to a multiple of this length.
        targets: `"multi_hot"` makes float32 [B, L]. `"indices"` makes int64 [B, K], padded with -100. `"auto"` makes
            indices above 4,096 labels.

    Raises:
        ValueError: if there are token columns but no tokenizer, or if a row is not one path under `single_path`.
    """

    tokenizer: PreTrainedTokenizerBase | None
    taxonomy: Taxonomy
    label_mode: str | None = None
    pad_to_multiple_of: int | None = None
    targets: Literal["auto", "multi_hot", "indices"] = "auto"

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [dict(row) for row in features]
        labels = [row.pop("labels") for row in rows] if "labels" in rows[0] else None
        pooled_states = [row.pop("pooled_states") for row in rows] if "pooled_states" in rows[0] else None
        batch: dict[str, torch.Tensor] = {}
        if rows[0]:
            if self.tokenizer is None:
                raise ValueError(
                    f"The rows have token columns {sorted(rows[0])}, but there is no tokenizer to pad them: pass "
                    "processing_class=tokenizer to HcalTrainer, or tokenizer to HcalDataCollator."
                )
            padded = pad_without_fast_tokenizer_warning(
                self.tokenizer, rows, pad_to_multiple_of=self.pad_to_multiple_of, return_tensors="pt"
            )
            batch.update(padded)
        if pooled_states is not None:
            batch["pooled_states"] = torch.from_numpy(np.asarray(pooled_states, dtype=np.float32))
        if labels is not None:
            batch["labels"] = self._build_targets(labels)
        return batch

    def _build_targets(self, labels: list[Any]) -> torch.Tensor:
        sizes = np.fromiter(map(len, labels), dtype=np.int64, count=len(labels))
        nodes = np.concatenate([np.asarray(row, dtype=np.int64) for row in labels])
        starts = np.cumsum(sizes) - sizes
        column = np.arange(len(nodes)) - np.repeat(starts, sizes)
        if self.label_mode == "single_path" and (
            not sizes.all() or not np.array_equal(self.taxonomy.depths[nodes], column)
        ):
            for row in labels:
                check_one_path(np.asarray(row, dtype=np.int64), self.taxonomy)
        document = torch.from_numpy(np.repeat(np.arange(len(labels)), sizes))
        flat_nodes = torch.from_numpy(nodes)
        if self.targets == "multi_hot" or (
            self.targets == "auto" and self.taxonomy.num_labels <= MAX_MULTI_HOT_LABELS
        ):
            multi_hot = torch.zeros(len(labels), self.taxonomy.num_labels)
            multi_hot[document, flat_nodes] = 1.0
            return multi_hot
        padded_nodes = torch.full((len(labels), max(int(sizes.max()), 1)), -100)
        padded_nodes[document, torch.from_numpy(column)] = flat_nodes
        return padded_nodes
