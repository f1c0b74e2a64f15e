"""Finds the most probable paths in a very large hierarchy, without computing the scores of all labels."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .asymmetric_loss import log_shares
from .decoding import end_probabilities
from .log_space import segment_logsumexp
from .prototypes import CHUNK

# Heads that compute the probability of a node without the scores of its descendants.
SEARCHABLE = ("conditional_softmax", "conditional_sigmoid")


class BestPaths(NamedTuple):
    """The most probable end nodes of B documents, the most probable first.

    Attributes:
        nodes (`torch.Tensor` of shape `[B, k]`, int64): node indices. -1 if a document has fewer than k end nodes.
        log_probs (`torch.Tensor` of shape `[B, k]`): log P of each end node. -inf if there is none.
        exact (`torch.Tensor` of shape `[B]`, bool): whether these are certainly the best, because no node that the search
            skipped could lead to a better one.
    """

    nodes: torch.Tensor
    log_probs: torch.Tensor
    exact: torch.Tensor


def is_searchable(model: Any) -> bool:
    """Tells whether [`PathSearch`] supports a model.

    Its hierarchy must be a forest, its head one of `SEARCHABLE`, and an asymmetric loss that of conditional pairs.
    """
    return (
        model.config.head in SEARCHABLE and model.taxonomy.is_forest and not getattr(model.head, "is_marginal", False)
    )


class PathSearch:
    """Finds the most probable end nodes of a trained model by beam search.

    The search goes from the roots down. On each level, it scores only the children of the `width` most probable nodes. No
    node is more probable than its parent, so the search skips the descendants of a node that is less probable than the k-th
    best end node so far. The result is exact if no node that `width` excluded is more probable than the k-th end node
    ([`BestPaths.exact`]).

    End nodes are the leaves. With `partial_paths` and single_path, inner nodes are end nodes too, with the probability that
    the path ends there.

    The prototypes are read when the object is created. Create a new one after further training.

    Args:
        model ([`HcalForSequenceClassification`]): a model of a forest, with the head `conditional_softmax` or
            `conditional_sigmoid`. With other heads, the probability of a node depends on all its descendants.
        width (`int`): the number of nodes per level and document of which the children are scored.

    Raises:
        ValueError: if the model has another head or a DAG, or `width` is less than 1.
    """

    @torch.no_grad()
    def __init__(self, model: Any, width: int = 32):
        config, taxonomy, head, prototypes = model.config, model.taxonomy, model.head, model.prototypes
        if not is_searchable(model):
            raise ValueError(
                f"PathSearch needs a forest and a head of {', '.join(SEARCHABLE)}, but this model has the head "
                f"{config.head!r}{'' if taxonomy.is_forest else ' and labels with several parents'}"
                f"{' and an asymmetric loss of marginal pairs' if getattr(head, 'is_marginal', False) else ''}. Compute "
                "the scores of all labels instead: model(...).logits."
            )
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        self.width = width
        self.num_roots = taxonomy.levels[0].stop
        self.prototypes, self.vectors = prototypes, prototypes.vectors(model.projection).detach()
        device = self.vectors.device
        self.scale = self.vectors.new_ones(taxonomy.num_labels)
        if not prototypes.is_linear:
            self.scale /= torch.linalg.vector_norm(self.vectors, dim=-1).clamp(min=1e-12)
        # A score of a head is an affine function of the product with the prototype, or of the distance to it. Its values at
        # 0 and 1 determine it.
        zeros = torch.zeros_like(self.scale)
        self.offset = head.scores((zeros if prototypes.bias is None else zeros + prototypes.bias)[None])[0]
        factor = head.scores(torch.ones_like(zeros)[None])[0] - head.scores(zeros[None])[0]
        self.scale = self.scale * factor / config.score_temperature
        self.offset = self.offset / config.score_temperature
        self.head = head
        self.is_sigmoid = config.head == "conditional_sigmoid"
        stop = getattr(head, "stop", None)
        self.stop = None if stop is None else stop.detach() / config.score_temperature
        by_parent = np.argsort(taxonomy.edges[:, 0], kind="stable")
        sizes = np.bincount(taxonomy.edges[:, 0], minlength=taxonomy.num_labels)
        self.children = torch.from_numpy(taxonomy.edges[by_parent, 1]).to(device)
        self.sizes = torch.from_numpy(sizes).to(device)
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.rank = (self.sizes > 0).cumsum(0) - 1  # the index of each inner node among the inner nodes

    @torch.no_grad()
    def __call__(self, features: torch.Tensor, k: int = 5) -> BestPaths:
        """Finds the k most probable end nodes of B documents.

        Args:
            features (`torch.Tensor` of shape `[B, d]`): `model(..., return_logits=False).features`.
            k (`int`): the number of end nodes per document.

        Raises:
            ValueError: if k is less than 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        documents = len(features)
        best = BestPaths(
            torch.full((documents, k), -1, device=features.device),
            self.vectors.new_full((documents, k), -torch.inf),
            torch.ones(documents, dtype=torch.bool, device=features.device),
        )
        skipped = best.log_probs.new_full((documents,), -torch.inf)  # the largest log P of a node that width excludes
        roots = torch.arange(self.num_roots, device=features.device)
        points = self.prototypes.points(features.to(self.vectors))
        scores = self._root_products(points, roots) * self.scale[roots] + self.offset[roots]
        if self.is_sigmoid:
            log_probs = F.logsigmoid(self.head.calibrated(scores, roots))
        else:
            log_probs = F.log_softmax(scores, dim=1)
            if self.head.focal is not None:
                log_probs = F.log_softmax(log_shares(log_probs, *self.head.focal), dim=1)
        nodes = roots.expand(documents, -1)
        while nodes.shape[1]:
            is_inner = (nodes >= 0) & (self.sizes[nodes.clamp(min=0)] > 0)
            best = _merged(best, nodes, log_probs.masked_fill(is_inner, -torch.inf))
            # No descendant of a node is more probable than the node.
            candidates = log_probs.masked_fill(~is_inner | (log_probs <= best.log_probs[:, -1:]), -torch.inf)
            if candidates.shape[1] > self.width:
                values, columns = candidates.topk(self.width + 1, dim=1)
                skipped = torch.maximum(skipped, values[:, -1])
                candidates, nodes = values[:, :-1], nodes.gather(1, columns[:, :-1])
            best, nodes, log_probs = self._expand(points, nodes, candidates, best)
        return best._replace(exact=skipped <= best.log_probs[:, -1])

    def _expand(
        self, points: torch.Tensor, nodes: torch.Tensor, log_probs: torch.Tensor, best: BestPaths
    ) -> tuple[BestPaths, torch.Tensor, torch.Tensor]:
        """Scores the children of nodes [B, w] with `log_probs` [B, w]. Nodes with -inf are left out.

        Returns:
            `best` with the paths that end at one of the nodes, the children [B, m] padded with -1, and their log P [B, m].
        """
        documents, columns = (log_probs > -torch.inf).nonzero(as_tuple=True)
        parents = nodes[documents, columns]
        sizes = self.sizes[parents]
        family = torch.arange(len(parents), device=parents.device).repeat_interleave(sizes)
        offset = (self.starts[parents] - sizes.cumsum(0) + sizes)[family]
        children = self.children[torch.arange(len(family), device=parents.device) + offset]
        document = documents[family]
        scores = self._scores(points, document, children)
        if self.is_sigmoid:
            conditional = F.logsigmoid(self.head.calibrated(scores, children))
        else:
            stops = None if self.stop is None else self.stop[self.rank[parents]].to(scores)
            sums = _log_sums(scores, stops, family, len(parents))
            if self.head.focal is not None:
                scores = log_shares(scores - sums[family], *self.head.focal)
                stops = None if stops is None else log_shares(stops - sums, *self.head.focal)
                sums = _log_sums(scores, stops, family, len(parents))
            if stops is not None:
                ends = torch.full_like(log_probs, -torch.inf)
                ends[documents, columns] = log_probs[documents, columns] + stops - sums
                best = _merged(best, nodes, ends)
            conditional = scores - sums[family]
        count = torch.bincount(document, minlength=len(nodes))
        position = torch.arange(len(document), device=parents.device) - (count.cumsum(0) - count)[document]
        shape = (len(nodes), int(count.max()) if len(count) else 0)
        padded, values = nodes.new_full(shape, -1), log_probs.new_full(shape, -torch.inf)
        padded[document, position] = children
        values[document, position] = log_probs[documents, columns][family] + conditional
        return best, padded, values

    def _root_products(self, points: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
        """Compares points [B, d] with the roots [R]: inner products or minus distances [B, R]."""
        if self.prototypes.curvature is None:
            return points @ self.vectors[roots].T
        return self.prototypes.compare(points, self.vectors[roots])

    def _scores(self, points: torch.Tensor, document: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """Computes the score of each of C (document, node) pairs."""
        size = max(1, CHUNK // self.vectors.shape[1])
        products = [
            self.prototypes.compare_pairs(points[document_chunk], self.vectors[node_chunk])
            for document_chunk, node_chunk in zip(document.split(size), nodes.split(size))
        ]
        return torch.cat(products) * self.scale[nodes] + self.offset[nodes]


def _log_sums(scores: torch.Tensor, stops: torch.Tensor | None, family: torch.Tensor, number: int) -> torch.Tensor:
    """Computes the log-sum-exp of each family's scores and of its stop score."""
    sums = segment_logsumexp(scores[:, None], family, number)[:, 0]
    return sums if stops is None else torch.logaddexp(sums, stops)


def best_of_all(logits: torch.Tensor, model: Any, k: int) -> BestPaths:
    """Finds the k most probable end nodes from the logits [B, L] of a coherent head.

    Raises:
        ValueError: if k is less than 1, or the head is `independent`, which gives paths no probability.
    """
    config, taxonomy = model.config, model.taxonomy
    if config.head == "independent":
        raise ValueError("The head 'independent' gives paths no probability. Use a coherent head.")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    may_stop = config.partial_paths and config.label_mode == "single_path"
    values = end_probabilities(F.logsigmoid(logits), taxonomy, may_stop).clamp(min=0).log()
    if not may_stop:
        values = values.masked_fill(torch.from_numpy(~taxonomy.is_leaf).to(values.device), -torch.inf)
    none = BestPaths(
        torch.full((len(values), k), -1, device=values.device),
        values.new_full((len(values), k), -torch.inf),
        torch.ones(len(values), dtype=torch.bool, device=values.device),
    )
    return _merged(none, torch.arange(values.shape[1], device=values.device).expand(len(values), -1), values)


def _merged(best: BestPaths, nodes: torch.Tensor, log_probs: torch.Tensor) -> BestPaths:
    """Returns the best of the end nodes so far and of new end nodes [B, m]. A log P of -inf means no end node."""
    values, columns = torch.cat([best.log_probs, log_probs], dim=1).topk(best.nodes.shape[1], dim=1)
    end_nodes = torch.cat([best.nodes, nodes], dim=1).gather(1, columns)
    return best._replace(nodes=end_nodes.masked_fill(values == -torch.inf, -1), log_probs=values)
