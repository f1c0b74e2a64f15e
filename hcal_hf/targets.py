"""The labels of a batch in the forms that heads and objectives need."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch

# Fills rows of node indices up to the same length.
PADDING = -100

T = TypeVar("T")


class Targets:
    """Holds the labels of a batch of B documents over L nodes, ancestor-complete.

    Args:
        labels (`torch.Tensor`): multi-hot, floating or bool, of shape `[B, L]`; or int64 node indices of shape `[B, K]`,
            padded with -100.
        num_labels (`int`): L.
        label_weights (`torch.Tensor` of shape `[L]`, *optional*): multiply the loss of a document by the weight of its true
            label, term by term. The denominators of mean losses do not change.

    Raises:
        ValueError: for another shape or type, and, on a CPU, for an index that no label has.
    """

    def __init__(self, labels: torch.Tensor, num_labels: int, label_weights: torch.Tensor | None = None):
        if labels.ndim != 2:
            raise ValueError(
                f"labels must have two dimensions, multi-hot [B, {num_labels}] or padded node indices [B, K], got shape "
                f"{tuple(labels.shape)}. HcalDataCollator builds both forms."
            )
        self.is_multi_hot = labels.is_floating_point() or labels.dtype == torch.bool
        if self.is_multi_hot and labels.shape[1] != num_labels:
            raise ValueError(
                f"Multi-hot labels must have one column for each of the {num_labels} labels, got {labels.shape[1]}. Node "
                "indices must be int64."
            )
        if not self.is_multi_hot and labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be floating or bool (multi-hot) or int64 (node indices), got {labels.dtype}."
            )
        if not self.is_multi_hot and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_nodes(labels, num_labels)
        self.labels = labels
        self.num_labels = num_labels
        self.label_weights = label_weights
        self._derived: dict[str, object] = {}

    def derived(self, name: str, compute: Callable[[], T]) -> T:
        """Returns what a head computed from these labels before under this name, or computes and keeps it.

        Losses and their denominators need the same tensors, and one `Targets` serves one head.
        """
        if name not in self._derived:
            self._derived[name] = compute()
        return self._derived[name]  # type: ignore[return-value]

    @cached_property
    def positives(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(document, node) indices of all positive pairs, two int64 tensors [P]. Synchronises with the device."""
        if self.is_multi_hot:
            documents, nodes = (self.labels > 0).nonzero(as_tuple=True)
            return documents, nodes
        documents, columns = (self.labels >= 0).nonzero(as_tuple=True)
        return documents, self.labels[documents, columns]

    @cached_property
    def multi_hot(self) -> torch.Tensor:
        """[B, L], stored label by label as scores are; 1.0 for a positive pair, at least float32."""
        if self.is_multi_hot:
            dtype = torch.float32 if self.labels.dtype == torch.bool else self.labels.dtype
            return (self.labels > 0).T.to(torch.promote_types(dtype, torch.float32)).contiguous().T
        # One more row takes the padding.
        padded = self.labels.new_zeros((self.num_labels + 1, len(self.labels)), dtype=torch.float32)
        padded.scatter_(0, torch.where(self.labels >= 0, self.labels, self.num_labels).T, 1.0)
        return padded[:-1].T

    def at_levels(self, levels: Sequence[slice], depths: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Returns the label of single-path documents at each level.

        Args:
            levels: the D levels as slices of the node indices.
            depths (`torch.Tensor` of shape `[L]`, int64): the depth of each node.
            offsets (`torch.Tensor` of shape `[L]`, int64): the index of each node within its level.

        Returns:
            `torch.Tensor` of shape `[B, D]`, int64: index of the document's label within its level, -100 where its path
            does not reach that level.
        """
        if self.is_multi_hot:
            columns = []
            for level in levels:
                value, index = self.labels[:, level].max(dim=1)
                columns.append(torch.where(value > 0, index, -100))
            return torch.stack(columns, dim=1)
        nodes = self.labels.clamp(min=0)
        # One more column takes the padding.
        level_of = torch.where(self.labels >= 0, depths[nodes], len(levels))
        padded = self.labels.new_full((len(self.labels), len(levels) + 1), -100)
        padded.scatter_(1, level_of, offsets[nodes])
        return padded[:, :-1]


def _check_nodes(labels: torch.Tensor, num_labels: int) -> None:
    bad = ((labels < 0) & (labels != PADDING)) | (labels >= num_labels)
    if bad.any():
        raise ValueError(
            f"labels must be node indices from 0 to {num_labels - 1}, or {PADDING} for padding, got {int(labels[bad][0])}."
        )
