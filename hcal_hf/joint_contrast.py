"""HJCL: a contrast of (document, label) pairs and a contrast of documents, both weighted by the hierarchy.

Source: Yu et al., "Instances and Labels: Hierarchy-aware Joint Supervised Contrastive Learning for Hierarchical Multi-Label
Text Classification", Findings of EMNLP 2023 (arXiv 2310.05128). The variants `released` and `released_max` compute what the
released code computes, to 1e-6 in float64 (`tests/test_joint_contrast.py`). The variant `shared` is a revision of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .objectives import over_processes
from .targets import Targets

VARIANTS = ("shared", "released", "released_max")
# Similarities of views that `released_instance_contrast` holds at a time: 16 MiB in float32.
VIEW_PAIRS_PER_CHUNK = 2**22
# The release divides this constant out of its temperature.
_BASE_TEMPERATURE = 0.07


@dataclass(frozen=True)
class JointContrastOptions:
    """The options of `contrast="hjcl"` (`HcalConfig.contrast_kwargs`).

    Args:
        label_weight (`float`, defaults to 0.5): lambda of the label-wise contrast ([`label_contrast`]). 0 leaves it out,
            as models on `pooled_states` need. The release uses 0.5, and 0.2 on RCV1.
        instance_weight (`float`, defaults to 0.1): lambda of the instance-wise contrast ([`instance_contrast`]). 0 leaves
            it out. The release uses 0.1.
        label_temperature (`float`, defaults to 1.0): divides the cosines of pairs. The release uses 1.
        instance_temperature (`float`, defaults to 0.1): divides the cosines of documents. The release uses 0.1.
        variant (`"shared"`, `"released"` or `"released_max"`, defaults to `"shared"`): `released` uses the losses of the
            release. Its instance-wise contrast compares all B * L label-specific embeddings of the batch, so its memory and
            time grow with L. `released_max` adds the bound of HiConE: the loss of a level is at least that of finer levels.

    Raises:
        ValueError: for a negative or infinite weight, if both weights are 0, for a temperature that is not above 0, or for
            another variant.
    """

    label_weight: float = 0.5
    instance_weight: float = 0.1
    label_temperature: float = 1.0
    instance_temperature: float = 0.1
    variant: str = "shared"

    def __post_init__(self) -> None:
        for name in ("label_weight", "instance_weight", "label_temperature", "instance_temperature"):
            value, is_weight = getattr(self, name), name.endswith("weight")
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or value < 0 or (value == 0 and not is_weight):
                allowed = "0 (off) or above" if is_weight else "above 0"
                raise ValueError(f"contrast_kwargs: {name} must be a number, {allowed}, got {value!r}.")
        if self.variant not in VARIANTS:
            raise ValueError(f"contrast_kwargs: variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}.")
        if not self.label_weight and not self.instance_weight:
            raise ValueError(
                "contrast_kwargs: label_weight and instance_weight are both 0, so there is no contrast. Raise one of them, "
                "or use contrast=None."
            )

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any] | None) -> "JointContrastOptions":
        """Builds the options from `HcalConfig.contrast_kwargs`.

        Raises:
            ValueError: for an unknown name or an invalid value.
        """
        names = [field.name for field in fields(cls)]
        for name in kwargs or {}:
            if name not in names:
                raise ValueError(f"contrast_kwargs has no option {name!r}: the options are {', '.join(names)}.")
        return cls(**(kwargs or {}))

    @property
    def weights(self) -> dict[str, float]:
        """The fixed weight of each task that is not left out, by its name."""
        weights = {"contrast_label": float(self.label_weight), "contrast_instance": float(self.instance_weight)}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def needs_tokens(self) -> bool:
        """Whether the losses need token states. Pooled states are enough for the instance-wise contrast of `shared`."""
        return bool(self.label_weight) or self.variant != "shared"

    def check_pooled(self) -> None:
        """Raises a ValueError if the losses need token states, for a model that gets `pooled_states`."""
        if self.needs_tokens:
            raise ValueError(
                f'contrast="hjcl" with label_weight={self.label_weight:g} and variant={self.variant!r} attends to the '
                "tokens of a document, but frozen features (pooled_states) are one vector per document. Only the "
                "instance-wise contrast of the variant 'shared' is defined on them: set contrast_kwargs="
                '{"label_weight": 0}, or train on token ids with the encoder.'
            )


# ---- Embeddings of (document, label) pairs ----


def attend(queries: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None, temperature: float) -> torch.Tensor:
    """Pools the tokens of each document once per query, by attention over real tokens.

    z_q = sum_s a_qs h_s with a_q = softmax over the tokens s of cos(q, h_s) / temperature. Equal weights give the mean of
    the tokens, so z is then the feature of the document before its normalisation.

    Args:
        queries (`torch.Tensor` of shape `[B, K, d]`): unit queries, K for each document.
        tokens (`torch.Tensor` of shape `[B, S, d]`): projected token states.
        mask (`torch.Tensor` of shape `[B, S]`, *optional*): 1 for tokens, 0 for padding; all are tokens by default.
        temperature (`float`): divides the cosines.

    Returns:
        `torch.Tensor` of shape `[B, K, d]`, not normalised. 0 for a document without tokens.
    """
    scores = queries @ F.normalize(tokens, dim=-1).transpose(1, 2) / temperature
    if mask is None:
        return scores.softmax(dim=-1) @ tokens
    is_token = mask[:, None, :] > 0
    weights = scores.masked_fill(~is_token, torch.finfo(scores.dtype).min).softmax(dim=-1)
    # A document without tokens would otherwise attend to its padding.
    return weights.masked_fill(~is_token, 0.0) @ tokens


def pair_embeddings(
    prototypes: torch.Tensor,
    group: torch.Tensor,
    documents: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """Computes an embedding for each positive (document, label) pair by attention with the label's prototype as query.

    The largest tensors are [B, K, S] and [B, K, d], where K is the largest number of labels of a document. The number of
    all labels does not matter.

    Args:
        prototypes (`torch.Tensor` of shape `[C, d]`): the unit prototypes of the labels that occur in the batch.
        group (`torch.Tensor` of shape `[M]`, int64): the row of each pair's label in `prototypes`.
        documents (`torch.Tensor` of shape `[M]`, int64): the document of each pair, in rising order.
        tokens, mask, temperature: as in [`attend`].

    Returns:
        `torch.Tensor` of shape `[M, d]`.
    """
    sizes = torch.bincount(documents, minlength=len(tokens))
    rank = torch.arange(len(documents), device=documents.device) - (sizes.cumsum(0) - sizes)[documents]
    largest = int(sizes.max()) if len(documents) else 0
    queries = prototypes.new_zeros((len(tokens), largest, prototypes.shape[1]))
    queries = queries.index_put((documents, rank), prototypes[group])
    return attend(queries, tokens, mask, temperature)[documents, rank]


# ---- The hierarchy's weights ----


def label_weights(depths: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Computes the weight v_c = max depth - depth(c) + 1 of each label [L]: roots weigh most."""
    return (depths.max() - depths + 1).to(dtype)


def shared_weights(
    documents: torch.Tensor, nodes: torch.Tensor, num_documents: int, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums the weights of the labels that two documents share.

    Args:
        documents, nodes (`torch.Tensor` of shape `[M]`, int64): the positive pairs.
        num_documents (`int`): B.
        weights (`torch.Tensor` of shape `[L]`): the weight v of each label.

    Returns:
        the sum over labels of both documents [B, B], and the sum over the labels of either [B, B].
    """
    classes, group = torch.unique(nodes, return_inverse=True)
    carries = weights.new_zeros((num_documents, len(classes)))
    carries[documents, group] = 1.0
    both = (carries * weights[classes]) @ carries.T
    own = both.diagonal()
    return both, own[:, None] + own - both


# ---- Losses ----


def label_contrast(
    embeddings: torch.Tensor,
    documents: torch.Tensor,
    nodes: torch.Tensor,
    num_documents: int,
    depths: torch.Tensor,
    temperature: float = 1.0,
    released: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the label-wise contrast of HJCL (HiLeCon) over the M positive (document, label) pairs.

    With v_c = max depth - depth(c) + 1, C = sum_c v_c, rho(a, b) = the sum of v_c over the labels that exactly one of the
    documents of pairs a and b has, sigma = 1 - rho / C, and e(a, b) = exp(cos(z_a, z_b) / temperature):

        l(a, p) = log[(sum_n rho(a, n) e(a, n) + sigma(a, p) e(a, p)) / ((N_c + 1) sigma(a, p) e(a, p))]

    n runs over the N_c pairs with another label than a. The loss of a label is the mean of l over its pairs a and p. Pairs
    of documents with the same labels have rho = 0, so they are no negatives. The loss can be below 0, because of N_c + 1.

    Args:
        embeddings (`torch.Tensor` of shape `[M, d]`): the embedding z of each pair, of any length.
        documents, nodes (`torch.Tensor` of shape `[M]`, int64): the document and the label of each pair.
        num_documents (`int`): B.
        depths (`torch.Tensor` of shape `[L]`, int64): the depth of each label, the longest path from a root.
        temperature (`float`): divides the cosines.
        released (`bool`): divides the sum over labels by L, and keeps a = p in the mean. By default, the sum is divided by
            the number of labels in the batch that have negatives, and a = p counts only for labels with a single pair,
            because this term compares a pair with itself.

    Returns:
        the loss, 0 without pairs of different labels, and its denominator, int64.

    Source: Yu et al., 2023 (arXiv 2310.05128), and the released code.
    """
    weights = label_weights(depths, embeddings.dtype)
    both, either = shared_weights(documents, nodes, num_documents, weights)
    rho = (either - both)[documents][:, documents]
    unit = F.normalize(embeddings, dim=-1)
    scores = unit @ unit.T / temperature
    same = nodes[:, None] == nodes
    # Finite values instead of log 0, so that gradients stay finite.
    lowest = torch.finfo(scores.dtype).min
    is_negative = ~same & (rho > 0)
    negatives = scores + torch.where(is_negative, rho, 1.0).log()
    negatives = torch.logsumexp(negatives.masked_fill(~is_negative, lowest), dim=1, keepdim=True)
    positives = scores + torch.where(same, 1.0 - rho / weights.sum(), 1.0).log()
    num_pairs = same.sum(dim=1)
    num_negatives = len(nodes) - num_pairs
    losses = torch.logaddexp(negatives, positives) - positives - (num_negatives + 1).to(scores).log()[:, None]
    counted = same
    terms = num_pairs
    if not released:
        alone = num_pairs == 1
        itself = torch.eye(len(nodes), dtype=torch.bool, device=nodes.device)
        counted = counted & (~itself | alone)
        terms = torch.where(alone, 1, num_pairs - 1)
    # Every term of a label with n pairs has the weight 1 / (number of its terms).
    share = counted / (num_pairs * terms).clamp(min=1)[:, None].to(scores)
    has_negatives = num_negatives > 0
    present = (has_negatives / num_pairs.clamp(min=1).to(scores)).sum().round().long()
    denominator = torch.where(present > 0, len(depths), 0) if released else present
    return torch.where(counted, losses * share, 0.0).sum() / denominator.clamp(min=1), denominator


def instance_contrast(
    features: torch.Tensor,
    documents: torch.Tensor,
    nodes: torch.Tensor,
    depths: torch.Tensor,
    temperature: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes a supervised contrast of the documents of a batch, weighted by the labels that they share.

        l(i) = - sum_j w_ij [f_i f_j / t - log sum_k exp(f_i f_k / t)] / sum_j w_ij,    j, k other documents than i

    w_ij is the weight of the labels that i and j share, divided by the weight of the labels that at least one of them has.
    The weight of a label is v_c = max depth - depth(c) + 1. The loss is the mean over the documents that share a label with
    another one. The release compares all label-specific embeddings instead ([`released_instance_contrast`]). Its own weight
    1 - rho / C is divided by the weight C of all labels, so it is near 1 for every two documents if there are many labels.

    Args:
        features (`torch.Tensor` of shape `[B, d]`): unit document features f.
        documents, nodes (`torch.Tensor` of shape `[M]`, int64): the positive pairs.
        depths (`torch.Tensor` of shape `[L]`, int64): the depth of each label.
        temperature (`float`): t.

    Returns:
        the loss, 0 if no document shares a label with another, and the number of documents that do, int64.

    Source: after Yu et al., 2023 (arXiv 2310.05128), and Khosla et al., "Supervised Contrastive Learning", 2020.
    """
    both, either = shared_weights(documents, nodes, len(features), label_weights(depths, features.dtype))
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    shares = (both / either.clamp(min=1)).masked_fill(itself, 0.0)
    total = shares.sum(dim=1)
    has_partner = total > 0
    scores = features @ features.T / temperature
    others = scores.masked_fill(itself, torch.finfo(scores.dtype).min)
    distances = torch.logsumexp(others, dim=1) - (shares * scores).sum(dim=1) / torch.where(has_partner, total, 1.0)
    count = has_partner.sum()
    return torch.where(has_partner, distances, 0.0).sum() / count.clamp(min=1), count


def released_instance_contrast(
    embeddings: torch.Tensor,
    documents: torch.Tensor,
    nodes: torch.Tensor,
    depths: torch.Tensor,
    temperature: float = 0.1,
    at_least_finer: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the instance-wise contrast of the release of HJCL (HMLC), on all label-specific embeddings of the batch.

    The L embeddings of a document are its views. At level l = 1..D, finest first, two documents are equal if their labels
    of depth D - l or less are the same. P(z) are the views of equal documents, A(z) all views, both without z itself:

        S_l = mean over all views z of (t / 0.07) [log sum_{z'' in A(z)} e^(z z'' / t) - mean_{z' in P(z)} z z' / t]
        loss = (1 / L) sum_l e^(1 / l) S_l

    After each level, only the first of equal documents is kept. There are (B * L)^2 pairs of views. They are processed in
    chunks, so that the memory is that of the embeddings.

    Args:
        embeddings (`torch.Tensor` of shape `[B, L, d]`): z, not normalised, also of labels that a document does not have.
        documents, nodes (`torch.Tensor` of shape `[M]`, int64): the positive pairs.
        depths (`torch.Tensor` of shape `[L]`, int64): the depth of each label.
        temperature (`float`): t.
        at_least_finer (`bool`): uses max(S_1, ..., S_l) instead of S_l (HiConE). The release has this turned off.

    Returns:
        the loss and its denominator L (0 without documents).

    Source: Zhang et al., "Use All The Labels: A Hierarchical Multi-Label Contrastive Learning Framework", CVPR 2022, in the
    released code of Yu et al., 2023.
    """
    num_documents, num_labels, _ = embeddings.shape
    classes, group = torch.unique(nodes, return_inverse=True)
    # torch.unique needs a column, also for documents without labels.
    carries = torch.zeros((num_documents, len(classes) + 1), dtype=torch.bool, device=nodes.device)
    carries[documents, group] = True
    class_depths = F.pad(depths[classes], (0, 1))
    kept = torch.arange(num_documents, device=nodes.device)
    num_levels = int(depths.max()) + 1
    total, finer = embeddings.sum() * 0.0, None
    for level in range(1, num_levels + 1) if num_documents else ():
        restricted = carries[kept] & (class_depths <= num_levels - level)
        _, same = torch.unique(restricted, dim=0, return_inverse=True)
        loss = _view_contrast(embeddings[kept], same, temperature)
        finer = loss if finer is None or not at_least_finer else torch.maximum(finer, loss)
        total = total + math.exp(1 / level) * finer
        positions = torch.arange(len(kept), device=kept.device)
        first = positions.new_full((len(kept),), len(kept)).scatter_reduce(0, same, positions, "amin")
        kept = kept[first[first < len(kept)].sort().values]
    return total / num_labels, torch.tensor(num_labels if num_documents else 0, device=embeddings.device)


def _view_contrast(embeddings: torch.Tensor, same: torch.Tensor, temperature: float) -> torch.Tensor:
    """Computes S of one level, from the views [n, L, d] of n documents and the group [n] of equal documents of each."""
    num_documents, num_labels, size = embeddings.shape
    views = embeddings.reshape(-1, size)
    sums = views.new_zeros((num_documents, size)).index_add(0, same, embeddings.sum(dim=1))
    num_positives = num_labels * torch.bincount(same, minlength=num_documents)[same] - 1
    # The inner products with all positives of a view add up to that with their sum.
    partners = sums[same].repeat_interleave(num_labels, dim=0) - views
    number = num_positives.clamp(min=1).repeat_interleave(num_labels).to(views)
    attraction = (views * partners).sum(dim=1) / temperature / number

    def log_sum(rows: torch.Tensor, start: int) -> torch.Tensor:
        scores = rows @ views.T / temperature
        itself = torch.arange(start, start + len(rows), device=rows.device)[:, None]
        return torch.logsumexp(scores.scatter(1, itself, torch.finfo(scores.dtype).min), dim=1)

    chunk = max(VIEW_PAIRS_PER_CHUNK // max(len(views), 1), 1)
    repulsion = torch.cat(
        [
            checkpoint(log_sum, views[start : start + chunk], start, use_reentrant=False, preserve_rng_state=False)
            for start in range(0, len(views), chunk)
        ]
    )
    # A view without positives (one document, one label) has no loss.
    losses = torch.where((num_positives > 0).repeat_interleave(num_labels), repulsion - attraction, 0.0)
    return temperature / _BASE_TEMPERATURE * losses.mean()


def joint_contrast_losses(
    options: JointContrastOptions,
    features: torch.Tensor,
    embeddings: torch.Tensor | None,
    targets: Targets,
    depths: torch.Tensor,
    gather: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the losses of the tasks of `options.weights`.

    Args:
        options ([`JointContrastOptions`]): the options.
        features (`torch.Tensor` of shape `[B, d]`): unit document features.
        embeddings (`torch.Tensor`, *optional*): of the positive pairs [M, d], or for the released variants of all labels
            [B, L, d]. Not needed without `options.needs_tokens`.
        targets ([`Targets`]): the labels of the same documents.
        depths (`torch.Tensor` of shape `[L]`, int64): the depth of each label.
        gather (`bool`): contrasts the documents of all processes, with gradient to all of them. Losses and counts are then
            equal on all processes, and every process must call the function.

    Returns:
        the losses [1] or [2] and their denominators, int64, of the same shape.
    """
    documents, nodes = targets.positives
    by_document, by_pair = [features], list[torch.Tensor]()
    if embeddings is not None:
        (by_document if embeddings.ndim == 3 else by_pair).append(embeddings)
    if gather:
        by_document, documents, nodes, by_pair = over_processes(by_document, documents, nodes, by_pair)
    features, views = by_document[0], by_document[-1]
    losses, counts = [], []
    released = options.variant != "shared"
    if options.label_weight:
        pairs = views[documents, nodes] if released else by_pair[0]
        loss, count = label_contrast(
            pairs, documents, nodes, len(features), depths, options.label_temperature, released
        )
        losses.append(loss)
        counts.append(count)
    if options.instance_weight and released:
        at_least_finer = options.variant == "released_max"
        loss, count = released_instance_contrast(
            views, documents, nodes, depths, options.instance_temperature, at_least_finer
        )
        losses.append(loss)
        counts.append(count)
    elif options.instance_weight:
        loss, count = instance_contrast(features, documents, nodes, depths, options.instance_temperature)
        losses.append(loss)
        counts.append(count)
    return torch.stack(losses), torch.stack(counts)
