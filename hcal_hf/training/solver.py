"""L-BFGS on frozen features: the minimum of a head's regularised loss, in seconds and without learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers.utils import logging

from ..decoding import decode
from ..metrics import classification_scores
from ..modeling_hcal import HcalForSequenceClassification
from ..targets import Targets
from .thresholds import tune_for_decoding

logger = logging.get_logger(__name__)

# The strengths that `solve` tries, from the most regularised on.
STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
# It stops after so many of them in a row that are no better than the best one so far.
PATIENCE = 2
# C of biases (as the prototypes hold them, before 1 / tau) and stop scores, which are hardly regularised: only so that a
# label of all or no documents keeps a finite one.
BIAS_STRENGTH = 100.0
# Cells (document x label) that are worked on at a time, which bounds the memory.
_CELLS = 4_000_000


@dataclass
class Solution:
    """What [`solve`] chose and how it came to it.

    Attributes:
        strength (`float`): C, the inverse of the regularisation.
        anchored (`bool`): whether the prototypes are drawn towards the labels' words, or towards 0.
        score (`float`): mean of micro- and macro-F1 on the documents that were held out for the choice.
        objective (`float`): the regularised loss of a training document.
        tried (`list[dict]`): strength, anchored, score and objective of each attempt.
    """

    strength: float
    anchored: bool
    score: float
    objective: float
    tried: list[dict[str, Any]] = field(default_factory=list)


def unsolvable_because(model: HcalForSequenceClassification) -> str | None:
    """Why [`fit_head`] is not defined for the model, with what to change; None where it is."""
    config = model.config
    if config.score_function != "linear":
        return (
            f"L-BFGS fits linear scores, but the model has score_function={config.score_function!r}: make it with "
            'score_function="linear", or train it with head_solver="optimizer".'
        )
    if config.objective != "document" or config.contrast:
        return (
            f"L-BFGS fits the losses of documents, but the model has objective={config.objective!r} and "
            f"contrast={config.contrast!r}, which are defined on batches: leave them out, or train with "
            'head_solver="optimizer".'
        )
    return None


def feature_tensors(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """(pooled_states [N, hidden_size], node indices [N, K] padded with -100) of a data set that
    [`hcal_hf.pooled_features`] has made."""
    states = torch.from_numpy(np.asarray(dataset.with_format("numpy")["pooled_states"][:], dtype=np.float32))
    nodes = dataset.with_format(None)["labels"][:]
    sizes = np.fromiter(map(len, nodes), dtype=np.int64, count=len(nodes))
    labels = np.full((len(nodes), sizes.max(initial=1)), -100, dtype=np.int64)
    labels[np.arange(labels.shape[1]) < sizes[:, None]] = [node for row in nodes for node in row]
    return states, torch.from_numpy(labels)


def fit_head(
    model: HcalForSequenceClassification,
    pooled_states: torch.Tensor,
    labels: torch.Tensor,
    strength: float = 16.0,
    anchored: bool = True,
    max_iterations: int = 100,
) -> float:
    """Fits prototypes and head to all documents at once; encoder and projection stay as they are.

    Minimises the sum over documents and levels of the head's losses + |W|^2 / (2 C), where W = delta / tau is what is
    learned beside the label anchors, or the prototypes as a whole without them. With `conditional_sigmoid` this is
    L2-regularised logistic regression for each label given its parents, and convex; with `lookahead_sigmoid` all labels
    are fitted together, and what is found is a local minimum. Anchors shrink the weights towards the labels' words instead
    of towards 0. Starts from the model's present values, so that a second call with another C is quick.

    Args:
        model: with linear scores and losses of documents.
        pooled_states (`torch.Tensor` of shape `[N, hidden_size]`): the encoder's.
        labels (`torch.Tensor`): node indices `[N, K]` padded with -100, or multi-hot `[N, L]`.
        strength (`float`): C, the inverse of the regularisation, as in scikit-learn, for unit features.
        anchored (`bool`): False sets the weights of the anchors to 0.
        max_iterations (`int`): of L-BFGS, at most.

    Returns:
        the value of the objective, a document.

    Raises:
        ValueError: for a model that this is not defined for ([`unsolvable_because`]), or a strength not above 0.

    Source: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989.
    """
    if reason := unsolvable_because(model):
        raise ValueError(reason)
    if not strength > 0:
        raise ValueError(f"strength must be above 0, got {strength}.")
    prototypes, head = model.prototypes, model.head
    was_training = model.training
    model.eval()
    features = _features(model, pooled_states)
    labels = labels.to(features.device)
    if prototypes.is_anchored:
        prototypes.trained.copy_(_carried(labels, model.taxonomy.num_labels))
    parameters = [*prototypes.parameters(), *head.parameters()]
    if prototypes.anchor_scale is not None and not anchored:
        prototypes.anchor_scale.data.zero_()
        parameters = [p for p in parameters if p is not prototypes.anchor_scale]
    shrunk = [p for p in (prototypes.bias, getattr(head, "stop", None)) if p is not None]
    chunk = max(_CELLS // model.taxonomy.num_labels, 1)

    def objective() -> float:
        for parameter in parameters:
            parameter.grad = None
        penalty = (prototypes.weight / head.temperature).square().sum() / (2 * strength)
        for parameter in shrunk:
            penalty = penalty + parameter.square().sum() / (2 * BIAS_STRENGTH)
        penalty.backward()
        total = penalty.detach()
        for start in range(0, len(features), chunk):
            rows = slice(start, start + chunk)
            targets = Targets(labels[rows], model.taxonomy.num_labels)
            scores = head.scores(prototypes.products(features[rows], model.projection))
            loss = (head.losses(scores, targets) * head.counts(targets)).sum()
            loss.backward()
            total = total + loss.detach()
        return float(total)

    trained = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            optimizer = torch.optim.LBFGS(
                parameters,
                max_iter=max_iterations,
                history_size=10,
                line_search_fn="strong_wolfe",
                tolerance_grad=1e-3,
                tolerance_change=1e-9 * len(features),
            )
            optimizer.step(objective)
            return objective() / len(features)
    finally:
        for parameter, value in zip(model.parameters(), trained):
            parameter.requires_grad_(value)
            parameter.grad = None
        model.train(was_training)


def solve(
    model: HcalForSequenceClassification,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    strengths: Sequence[float] = STRENGTHS,
    anchored: Sequence[bool] = (True, False),
    max_iterations: int = 100,
) -> Solution:
    """Fits the head with several strengths, with and without the labels' words where the model has them, and keeps what is
    best on the validation documents: the mean of micro- and macro-F1 of the decoded predictions, under multi_path with the
    best single threshold for each.

    Args:
        model: as in [`fit_head`].
        train, validation: (pooled_states [N, hidden_size], labels [N, K] or [N, L]).
        strengths: tried in rising order; stops early where it gets no better.
        anchored: which of the two to try, for a model with anchors.

    Raises:
        ValueError: as [`fit_head`], or for no strengths.
    """
    if not strengths:
        raise ValueError("strengths must hold at least one number.")
    start = _state(model)
    best: tuple[Solution, dict[str, torch.Tensor]] | None = None
    tried: list[dict[str, Any]] = []
    for draws in anchored if model.prototypes.is_anchored else (False,):
        _restore(model, start)
        since_best, top = 0, -1.0
        for strength in sorted(strengths):
            objective = fit_head(model, *train, strength, draws, max_iterations)
            score = validation_score(model, *validation)
            tried.append({"strength": strength, "anchored": draws, "score": score, "objective": objective})
            logger.info(f"C = {strength:g}, {'with' if draws else 'without'} anchors: {score:.4f}")
            if best is None or score > best[0].score:
                best = Solution(strength, draws, score, objective), _state(model)
            since_best = 0 if score > top else since_best + 1
            top = max(top, score)
            if since_best == PATIENCE:
                break
    assert best is not None
    _restore(model, best[1])
    best[0].tried = tried
    return best[0]


def solve_without_validation(
    model: HcalForSequenceClassification,
    train: tuple[torch.Tensor, torch.Tensor],
    seed: int,
    share: float = 0.1,
    **kwargs: Any,
) -> Solution:
    """[`solve`] where there are no validation documents: a share of the training documents, drawn by `seed`, takes their
    part, and the head is then fitted to all documents with what was chosen."""
    states, labels = train
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order.split([max(round(share * len(order)), 1), len(order) - max(round(share * len(order)), 1)])
    if not len(rest):
        raise ValueError(
            f"{len(states)} document(s) are too few to choose the regularisation on: give validation documents."
        )
    chosen = solve(model, (states[rest], labels[rest]), (states[held_out], labels[held_out]), **kwargs)
    chosen.objective = fit_head(model, states, labels, chosen.strength, chosen.anchored)
    return chosen


@torch.no_grad()
def validation_score(model: HcalForSequenceClassification, pooled_states: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean of micro- and macro-F1 of the default decoding, with the best single threshold for each under multi_path."""
    config, taxonomy = model.config, model.taxonomy
    was_training = model.training
    model.eval()
    step = max(_CELLS // taxonomy.num_labels, 1)
    parts = [model(pooled_states=part.to(model.device)).logits.cpu() for part in pooled_states.split(step)]
    model.train(was_training)
    logits = torch.cat(parts)
    truth = Targets(labels, taxonomy.num_labels).multi_hot.numpy() > 0
    scores = []
    for metric in ("micro_f1", "macro_f1"):
        thresholds: Any = None
        if config.label_mode == "multi_path":
            thresholds = tune_for_decoding(
                logits, truth, taxonomy, config.label_mode, config.partial_paths, config.head, metric=metric
            )
        sets = decode(logits, taxonomy, config.label_mode, None, thresholds, config.partial_paths, config.head)
        scores.append(classification_scores(sets.numpy(), truth, taxonomy)[metric])
    return sum(scores) / len(scores)


@torch.no_grad()
def _features(model: HcalForSequenceClassification, pooled_states: torch.Tensor) -> torch.Tensor:
    weight = model.projection.weight
    projected = model.projection(pooled_states.to(weight))
    return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)


def _carried(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Bool [L]: the labels that at least one document carries."""
    carried = torch.zeros(num_labels, dtype=torch.bool, device=labels.device)
    carried[Targets(labels, num_labels).positives[1]] = True
    return carried


def _state(model: HcalForSequenceClassification) -> dict[str, torch.Tensor]:
    parts = {"prototypes": model.prototypes, "head": model.head}
    return {f"{part}.{name}": p.detach().clone() for part, m in parts.items() for name, p in m.named_parameters()}


@torch.no_grad()
def _restore(model: HcalForSequenceClassification, state: dict[str, torch.Tensor]) -> None:
    for name, value in state.items():
        model.get_parameter(name).copy_(value)
