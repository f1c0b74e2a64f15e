"""Orders labels by closeness to a label: by hops in the hierarchy, by co-occurrence in training rows, or by both."""

import numpy as np
import torch

from .taxonomy import Taxonomy

ORDERS = ("hops", "cooccurrence", "mixed")
# (label, label) pairs of documents that are counted at a time.
_PAIRS = 2**22


class CooccurrenceCounts:
    """Counts the training rows that hold both labels of a pair. Only pairs that occur are stored.

    Args:
        sizes (`np.ndarray` of shape `[N]`): the number of labels of each row.
        nodes (`np.ndarray` of shape `[P]`): the node indices of all rows, one row after the other, each row's different.
        num_labels (`int`): L.

    Attributes:
        starts (`torch.Tensor` of shape `[L + 1]`): where the pairs of each label start in `others` and `numbers`.
        others (`torch.Tensor` of shape `[Q]`, int64): the second label of each pair, which may equal the first.
        numbers (`torch.Tensor` of shape `[Q]`, int64): the number of rows of each pair.
    """

    def __init__(self, sizes: np.ndarray, nodes: np.ndarray, num_labels: int):
        keys, numbers = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        ends = np.cumsum(sizes)
        cuts = np.searchsorted(np.cumsum(sizes**2), np.arange(_PAIRS, int((sizes**2).sum()) + _PAIRS, _PAIRS)) + 1
        low = 0
        for high in np.minimum(cuts, len(sizes)).tolist():
            rows = sizes[low:high]
            own = nodes[(ends[low - 1] if low else 0) : ends[high - 1]] if high > low else nodes[:0]
            low = high
            # Each label of a row next to all labels of the row.
            repeats = np.repeat(rows, rows)
            starts = np.repeat(np.cumsum(rows) - rows, rows)
            within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            pairs = np.repeat(own, repeats) * num_labels + own[np.repeat(starts, repeats) + within]
            keys, inverse = np.unique(np.concatenate([keys, pairs]), return_inverse=True)
            weights = np.concatenate([numbers, np.ones(len(pairs), dtype=np.int64)])
            numbers = np.bincount(inverse, weights, minlength=len(keys)).astype(np.int64)
        first, second = np.divmod(keys, num_labels)
        self.num_labels = num_labels
        self.starts = torch.from_numpy(np.searchsorted(first, np.arange(num_labels + 1)))
        self.others, self.numbers = torch.from_numpy(second), torch.from_numpy(numbers)

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns the number of rows with both labels [n, L], int64, for each of the labels [n] and every label."""
        counts = torch.zeros(len(labels), self.num_labels, dtype=torch.int64)
        starts, ends = (self.starts[labels.cpu() + offset] for offset in (0, 1))
        sizes = ends - starts
        rows = torch.repeat_interleave(sizes)
        pairs = torch.arange(int(sizes.sum())) + (starts - (sizes.cumsum(0) - sizes))[rows]
        counts[rows, self.others[pairs]] = self.numbers[pairs]
        return counts.to(labels.device)

    @property
    def connected(self) -> torch.Tensor:
        """The labels that occur together with another label, int64, in rising order."""
        firsts = torch.repeat_interleave(self.starts.diff())
        return torch.unique(firsts[firsts != self.others])


class LabelOrder:
    """Ranks all labels by their closeness to a label t.

    - `hops`: labels with a shorter undirected path to t in the hierarchy are closer. The roots are joined above.
    - `cooccurrence`: labels that occur together with t in more training rows are closer.
    - `mixed`: as `hops`, and co-occurrence decides between labels with equally many hops.

    Args:
        taxonomy ([`Taxonomy`]): the hierarchy.
        order (`str`): one of `ORDERS`.
    """

    def __init__(self, taxonomy: Taxonomy, order: str):
        self.taxonomy, self.order = taxonomy, order
        self.edges = torch.from_numpy(taxonomy.edges.copy())

    @property
    def needs_counts(self) -> bool:
        """Whether the order depends on the training rows."""
        return self.order != "hops"

    def candidates(self, counts: CooccurrenceCounts | None) -> torch.Tensor:
        """Returns the labels, int64 on the CPU, that can have other labels at different distances.

        Raises:
            ValueError: if the counts are missing.
        """
        if self.order != "cooccurrence":
            return torch.arange(self.taxonomy.num_labels)
        return self._needed(counts).connected

    def ranks(self, labels: torch.Tensor, counts: CooccurrenceCounts | None = None) -> torch.Tensor:
        """Ranks all labels [n, L], int64 from 0, larger for labels that are closer to each of the labels t [n].

        Raises:
            ValueError: if the order needs `counts` and they are missing.
        """
        if self.order == "hops":
            return 2 * len(self.taxonomy.levels) - self.hops(labels)
        together = self._needed(counts)(labels)
        if self.order == "mixed":
            together -= self.hops(labels) * (int(together.max()) + 1)
        by_rank, order = together.sort(dim=1)
        is_next = torch.nn.functional.pad(by_rank[:, 1:] != by_rank[:, :-1], (1, 0))
        return torch.zeros_like(order).scatter_(1, order, is_next.cumsum(dim=1))

    def _needed(self, counts: CooccurrenceCounts | None) -> CooccurrenceCounts:
        if counts is None:
            raise ValueError(
                f'geometry_order="{self.order}" needs the co-occurrence of labels in the training rows. HcalTrainer counts '
                "it in an encoded table. Otherwise set model.label_penalty.counts = "
                'hcal_hf.CooccurrenceCounts(sizes, nodes, num_labels), or use geometry_order="hops".'
            )
        return counts

    def hops(self, labels: torch.Tensor) -> torch.Tensor:
        """Counts the edges on the shortest undirected path between each of the labels [n] and every label [n, L], int64.

        All roots are children of one node above them, so that every path exists. It has at most 2 D edges, for D levels.
        """
        taxonomy, edges = self.taxonomy, self.edges.to(labels.device)
        number, roots = taxonomy.num_labels, taxonomy.levels[0].stop
        steps = torch.full(
            (number + 1, len(labels)), 2 * len(taxonomy.levels), dtype=torch.int64, device=labels.device
        )
        steps[labels, torch.arange(len(labels), device=labels.device)] = 0
        while True:
            before = None if taxonomy.is_forest else steps.clone()
            # Up, across the node above the roots, and down. A path of a forest has this form.
            for k in range(len(taxonomy.levels) - 1, 0, -1):
                _shorten(steps, edges[taxonomy.edge_slices[k]].flip(1))
            steps[number] = torch.minimum(steps[number], steps[:roots].amin(dim=0) + 1)
            steps[:roots] = torch.minimum(steps[:roots], steps[number] + 1)
            for k in range(1, len(taxonomy.levels)):
                _shorten(steps, edges[taxonomy.edge_slices[k]])
            if before is None or torch.equal(before, steps):
                return steps[:number].T.contiguous()


def _shorten(steps: torch.Tensor, edges: torch.Tensor) -> None:
    """Lowers the steps [L + 1, n] of the second node of each edge [E, 2] to one more than those of its first node."""
    through = steps.index_select(0, edges[:, 0]) + 1
    steps.scatter_reduce_(0, edges[:, 1:].expand(-1, steps.shape[1]), through, reduce="amin")


__all__ = ["ORDERS", "CooccurrenceCounts", "LabelOrder"]
