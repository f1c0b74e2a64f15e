"""The most probable paths of very large hierarchies, without the scores of all labels."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .decoding import end_probabilities
from .log_space import segment_logsumexp
from .prototypes import CHUNK

# The heads that give a node's probability without looking below it.
SEARCHABLE = ("conditional_softmax", "conditional_sigmoid")


class BestPaths(NamedTuple):
    """The most probable end nodes of B documents, best first.

    Attributes:
        nodes (`torch.Tensor` of shape `[B, k]`, int64): node indices; -1 where a document has fewer.
        log_probs (`torch.Tensor` of shape `[B, k]`): log P of each; -inf where there is none.
        exact (`torch.Tensor` of shape `[B]`, bool): whether nothing that the search passed over could be among them.
    """

    nodes: torch.Tensor
    log_probs: torch.Tensor
    exact: torch.Tensor


def is_searchable(model: Any) -> bool:
    """Whether [`PathSearch`] takes a model: a forest, and a head of `SEARCHABLE`."""
    return model.config.head in SEARCHABLE and model.taxonomy.is_forest


class PathSearch:
    """Beam search for the most probable end nodes of a trained model: from the roots down, the children of the `width` most
    probable nodes of each level are scored, and no others. No node is more probable than its parent: what lies below a node
    less probable than the k-th end found so far is not looked at, and where nothing better than that end was passed over,
    the answer is exact ([`BestPaths.exact`]).

    End nodes are the leaves, and with `partial_paths` in single_path also the inner nodes where a path may end, by the
    probability of ending there. It takes the prototypes as they are now: make a new one after training goes on.

    Args:
        model ([`HcalForSequenceClassification`]): of a forest, with the head `conditional_softmax` or
            `conditional_sigmoid`. The others' probability of a node depends on everything below it.
        width (`int`): nodes of a level whose children are scored, for each document.

    Raises:
        ValueError: for another head, a DAG, or a width below 1.
    """

    @torch.no_grad()
    def __init__(self, model: Any, width: int = 32):
        config, taxonomy, head, prototypes = model.config, model.taxonomy, model.head, model.prototypes
        if not is_searchable(model):
            raise ValueError(
                f"The search goes down a forest with a head of {', '.join(SEARCHABLE)}; this model has the head "
                f"{config.head!r}{'' if taxonomy.is_forest else ' and labels with several parents'}. Its probabilities "
                "need all labels: use model(...).logits."
            )
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        self.width = width
        self.num_roots = taxonomy.levels[0].stop
        self.vectors = prototypes.vectors(model.projection).detach()
        device = self.vectors.device
        self.scale = self.vectors.new_ones(taxonomy.num_labels)
        if not prototypes.is_linear:
            self.scale /= torch.linalg.vector_norm(self.vectors, dim=-1).clamp(min=1e-12)
        # Heads make scores label by label: what they do to 0 and to 1 says what they do.
        zeros = torch.zeros_like(self.scale)
        self.offset = head.scores((zeros if prototypes.bias is None else zeros + prototypes.bias)[None])[0]
        factor = head.scores(torch.ones_like(zeros)[None])[0] - head.scores(zeros[None])[0]
        self.scale = self.scale * factor / config.score_temperature
        self.offset = self.offset / config.score_temperature
        self.is_sigmoid = config.head == "conditional_sigmoid"
        stop = getattr(head, "stop", None)
        self.stop = None if stop is None else stop.detach() / config.score_temperature
        by_parent = np.argsort(taxonomy.edges[:, 0], kind="stable")
        sizes = np.bincount(taxonomy.edges[:, 0], minlength=taxonomy.num_labels)
        self.children = torch.from_numpy(taxonomy.edges[by_parent, 1]).to(device)
        self.sizes = torch.from_numpy(sizes).to(device)
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.rank = (self.sizes > 0).cumsum(0) - 1  # of each inner node among the inner nodes

    @torch.no_grad()
    def __call__(self, features: torch.Tensor, k: int = 5) -> BestPaths:
        """The k most probable end nodes of documents.

        Args:
            features (`torch.Tensor` of shape `[B, d]`): `model(..., return_logits=False).features`.
            k (`int`): how many.

        Raises:
            ValueError: for k below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        documents = len(features)
        best = BestPaths(
            torch.full((documents, k), -1, device=features.device),
            self.vectors.new_full((documents, k), -torch.inf),
            torch.ones(documents, dtype=torch.bool, device=features.device),
        )
        passed_over = best.log_probs.new_full((documents,), -torch.inf)
        roots = torch.arange(self.num_roots, device=features.device)
        scores = features.to(self.vectors) @ self.vectors[roots].T * self.scale[roots] + self.offset[roots]
        log_probs = F.logsigmoid(scores) if self.is_sigmoid else F.log_softmax(scores, dim=1)
        nodes = roots.expand(documents, -1)
        while nodes.shape[1]:
            is_inner = (nodes >= 0) & (self.sizes[nodes.clamp(min=0)] > 0)
            best = _merged(best, nodes, log_probs.masked_fill(is_inner, -torch.inf))
            # What is not above the k-th end has nothing above it below.
            open_ones = log_probs.masked_fill(~is_inner | (log_probs <= best.log_probs[:, -1:]), -torch.inf)
            if open_ones.shape[1] > self.width:
                values, columns = open_ones.topk(self.width + 1, dim=1)
                passed_over = torch.maximum(passed_over, values[:, -1])
                open_ones, nodes = values[:, :-1], nodes.gather(1, columns[:, :-1])
            best, nodes, log_probs = self._below(features, nodes, open_ones, best)
        return best._replace(exact=passed_over <= best.log_probs[:, -1])

    def _below(
        self, features: torch.Tensor, nodes: torch.Tensor, log_probs: torch.Tensor, best: BestPaths
    ) -> tuple[BestPaths, torch.Tensor, torch.Tensor]:
        """The children [B, m] (-1: none) of nodes [B, w] with their log-probabilities, of those nodes whose own are above
        -inf; and the best ends with those that stop at one of the nodes."""
        documents, columns = (log_probs > -torch.inf).nonzero(as_tuple=True)
        above = nodes[documents, columns]
        sizes = self.sizes[above]
        family = torch.arange(len(above), device=above.device).repeat_interleave(sizes)
        first = sizes.cumsum(0) - sizes
        children = self.children[torch.arange(len(family), device=above.device) + (self.starts[above] - first)[family]]
        document = documents[family]
        scores = self._scores(features, document, children)
        if self.is_sigmoid:
            conditional = F.logsigmoid(scores)
        else:
            sums = segment_logsumexp(scores[:, None], family, len(above))[:, 0]
            if self.stop is not None:
                stops = self.stop[self.rank[above]].to(sums)
                sums = torch.logaddexp(sums, stops)
                ends = torch.full_like(log_probs, -torch.inf)
                ends[documents, columns] = log_probs[documents, columns] + stops - sums
                best = _merged(best, nodes, ends)
            conditional = scores - sums[family]
        count = torch.bincount(document, minlength=len(nodes))
        position = torch.arange(len(document), device=above.device) - (count.cumsum(0) - count)[document]
        shape = (len(nodes), int(count.max()) if len(count) else 0)
        found, values = nodes.new_full(shape, -1), log_probs.new_full(shape, -torch.inf)
        found[document, position] = children
        values[document, position] = log_probs[documents, columns][family] + conditional
        return best, found, values

    def _scores(self, features: torch.Tensor, document: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """The score [C] of each (document, node) cell."""
        size = max(1, CHUNK // self.vectors.shape[1])
        products = [
            torch.linalg.vecdot(features[some].to(self.vectors), self.vectors[part])
            for some, part in zip(document.split(size), nodes.split(size))
        ]
        return torch.cat(products) * self.scale[nodes] + self.offset[nodes]


def best_of_all(logits: torch.Tensor, model: Any, k: int) -> BestPaths:
    """The k most probable end nodes from the logits [B, L] of a coherent head.

    Raises:
        ValueError: for k below 1, and for the `independent` head, which gives paths no probability.
    """
    config, taxonomy = model.config, model.taxonomy
    if config.head == "independent":
        raise ValueError("The head 'independent' gives paths no probability: use a coherent one.")
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
    """The best of those so far and of new ends [B, m], those of -inf being none."""
    values, columns = torch.cat([best.log_probs, log_probs], dim=1).topk(best.nodes.shape[1], dim=1)
    found = torch.cat([best.nodes, nodes], dim=1).gather(1, columns)
    return best._replace(nodes=found.masked_fill(values == -torch.inf, -1), log_probs=values)
