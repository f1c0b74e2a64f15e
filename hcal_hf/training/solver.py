"""Fits the head of a frozen encoder by L-BFGS, in seconds and without learning rates."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers.utils import logging

from ..classification_loss import unsolvable_loss
from ..decoding import PAIRS_PER_CHUNK, Decision
from ..metrics import classification_scores
from ..modeling_hcal import HcalForSequenceClassification
from ..targets import Targets
from .fit_progress import FitProgress
from .task_log import sum_dtype
from .thresholds import tune_for_decoding

logger = logging.get_logger(__name__)

# The strengths that `solve` tries, from the strongest regularisation to the weakest.
STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
# The values towards which `solve` regularises.
PRIORS = ("initial", "model")
# `solve` stops after this many strengths in a row without an improvement.
PATIENCE = 2
# C of the biases (as the prototypes hold them, before 1 / tau) and stop scores. It is large, so that it only keeps the bias
# of a label finite that occurs in all documents or in none.
BIAS_STRENGTH = 100.0
# L-BFGS has converged when all entries of the gradient of the mean loss are below TOLERANCE_GRAD, or when the mean loss or
# all weights change by less than TOLERANCE_CHANGE. Neither depends on the number of documents.
TOLERANCE_GRAD = 1e-6
TOLERANCE_CHANGE = 1e-9
# (document, label) pairs with targets that are kept between evaluations; all others are built again each time.
_KEPT_PAIRS = 64_000_000
# A fit that only has to rank a strength ends after so many iterations in a row that together lower the mean loss by less
# than this share. The strength that is chosen is then fitted until one of the tolerances above.
_ROUND, _ROUGH_PROGRESS = 10, 1e-3
# A fit that reached its maximum of iterations counts as converged if the mean loss fell by less than this share in its last
# tenth of evaluations.
_SMALL_PROGRESS = 1e-3


@dataclass
class Solution:
    """Holds the regularisation that [`solve`] chose, and all attempts.

    Attributes:
        strength (`float`): C, the inverse of the regularisation.
        anchored (`bool`): whether the prototypes are regularised towards the label text, or towards 0.
        score (`float`): the mean of micro- and macro-F1 on the documents that were held out for the choice.
        objective (`float`): the mean regularised loss per training document.
        converged (`bool`): whether the final fit met a tolerance, or its loss hardly fell (by less than 0.1 %) in the last
            tenth of its evaluations.
        tried (`list[dict]`): strength, anchored, score, objective and converged of each attempt.
    """

    strength: float
    anchored: bool
    score: float
    objective: float
    converged: bool = True
    tried: list[dict[str, Any]] = field(default_factory=list)


def unsolvable_because(model: HcalForSequenceClassification) -> str | None:
    """Explains why [`fit_head`] is not defined for the model, and what to change. Returns None if it is defined."""
    config = model.config
    if config.score_function != "linear":
        return (
            f"L-BFGS fits linear scores, but the model has score_function={config.score_function!r}: make it with "
            'score_function="linear", or train it with head_solver="optimizer".'
        )
    if config.geometry != "euclidean":
        return (
            f"L-BFGS fits losses that are convex in the prototypes, but the model has geometry={config.geometry!r}, whose "
            'distances between points are not: use geometry="euclidean", or train it with head_solver="optimizer".'
        )
    if reason := unsolvable_loss(config):
        return reason
    if config.window_pooling == "attention":
        return (
            'L-BFGS fits the head on one vector per document, but window_pooling="attention" learns from the windows of a '
            'text: use window_pooling="mean", or train it with head_solver="optimizer".'
        )
    if config.objective != "document" or config.contrast:
        return (
            f"L-BFGS fits losses of single documents, but the model has objective={config.objective!r} and "
            f"contrast={config.contrast!r}, which are defined on batches: leave them out, or train it with "
            'head_solver="optimizer".'
        )
    return None


def feature_tensors(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Converts a data set made by [`hcal_hf.pooled_features`] into tensors.

    Returns:
        the pooled states [N, hidden_size], and the node indices [N, K] padded with -100.
    """
    states = torch.from_numpy(np.asarray(dataset.with_format("numpy")["pooled_states"][:], dtype=np.float32))
    nodes = dataset.with_format(None)["labels"][:]
    sizes = np.fromiter(map(len, nodes), dtype=np.int64, count=len(nodes))
    labels = np.full((len(nodes), sizes.max(initial=1)), -100, dtype=np.int64)
    labels[np.arange(labels.shape[1]) < sizes[:, None]] = [node for row in nodes for node in row]
    return states, torch.from_numpy(labels)


@dataclass
class HeadFit:
    """Holds the result of one fit: the mean regularised loss per document, and whether L-BFGS converged."""

    objective: float
    converged: bool


class HeadProblem:
    """Fits the head of a model to the same documents any number of times.

    The features and, as far as the memory allows, the targets are computed once.

    Args:
        model, pooled_states, labels: as in [`fit_head`].

    Raises:
        ValueError: if L-BFGS is not defined for the model ([`unsolvable_because`]).
    """

    def __init__(self, model: HcalForSequenceClassification, pooled_states: torch.Tensor, labels: torch.Tensor):
        if reason := unsolvable_because(model):
            raise ValueError(reason)
        self.model, self.num_labels = model, model.taxonomy.num_labels
        self.chunk = max(PAIRS_PER_CHUNK // self.num_labels, 1)
        self.features = _unit_features(model, pooled_states, self.chunk)
        with torch.no_grad():
            self.anchors = model.prototypes.unit_anchors(model.projection)
        self.labels = labels.split(self.chunk)
        self._kept_targets: list[Targets] = []
        self.occurring = torch.zeros(self.num_labels, dtype=torch.bool, device=model.device)
        counts = []
        for chunk, targets in enumerate(self._targets()):
            self.occurring[targets.positives[1]] = True
            counts.append(model.head.counts(targets))
            if (chunk + 1) * self.chunk * self.num_labels <= _KEPT_PAIRS:
                self._kept_targets.append(targets)
        self.counts = counts

    def _targets(self) -> Iterator[Targets]:
        yield from self._kept_targets
        for labels in self.labels[len(self._kept_targets) :]:
            yield Targets(labels.to(self.features.device), self.num_labels, self.model.label_weights)

    def fit(
        self,
        strength: float,
        anchored: bool = True,
        max_iterations: int = 100,
        centre: dict[str, torch.Tensor] | None = None,
        on_evaluation: Callable[[float], None] = lambda loss: None,
        is_rough: bool = False,
    ) -> HeadFit:
        """Fits prototypes and head, starting from their present values. The arguments are those of [`fit_head`].

        With `centre` (from [`head_state`]), the penalty is on the distance from those values, and anchor_scale is fixed.
        `on_evaluation` is called with each loss. With `is_rough`, the fit also ends, and counts as converged, after 10
        iterations that together lower the mean loss by less than 0.1 %.
        """
        if not strength > 0:
            raise ValueError(f"strength must be above 0, got {strength}.")
        prototypes, head = self.model.prototypes, self.model.head
        if prototypes.is_anchored:
            prototypes.trained.copy_(self.occurring)
        parameters = [*prototypes.parameters(), *head.parameters()]
        if prototypes.anchor_scale is not None and not (anchored and centre is None):
            if centre is None:
                prototypes.anchor_scale.data.zero_()
            parameters = [p for p in parameters if p is not prototypes.anchor_scale]
        lowest, losses = float("inf"), []

        def evaluate() -> float:
            nonlocal lowest
            value = self._evaluate(strength, parameters, centre or {})
            lowest = min(lowest, value)
            losses.append(lowest)
            on_evaluation(value)
            return value

        with _only_trainable(self.model, parameters):
            optimizer = torch.optim.LBFGS(
                parameters,
                max_iter=min(_ROUND, max_iterations) if is_rough else max_iterations,
                max_eval=max_iterations * 5 // 4,
                history_size=10,
                line_search_fn="strong_wolfe",
                tolerance_grad=TOLERANCE_GRAD,
                tolerance_change=TOLERANCE_CHANGE,
            )
            optimizer.step(evaluate)
            state, limits = optimizer.state[parameters[0]], optimizer.param_groups[0]
            while is_rough and state["n_iter"] % _ROUND == 0 and state["func_evals"] < limits["max_eval"]:
                # A step continues where the last one ended, with the same approximation of the Hessian.
                before, limits["max_iter"] = lowest, min(_ROUND, max_iterations - state["n_iter"])
                if limits["max_iter"] < 1:
                    break
                optimizer.step(evaluate)
                if before - lowest < _ROUGH_PROGRESS * abs(lowest):
                    return HeadFit(lowest, True)
            # The line search accepts the lowest value that it met, unless it ran out of evaluations.
            is_interrupted = state["func_evals"] >= limits["max_eval"]
            objective = evaluate() if is_interrupted else lowest
        is_within_limits = not is_interrupted and state["n_iter"] < max_iterations
        window = len(losses) // 10
        hardly_falls = window > 1 and losses[-1 - window] - lowest < _SMALL_PROGRESS * abs(lowest)
        return HeadFit(objective, is_within_limits or hardly_falls)

    def _evaluate(self, strength: float, parameters: Sequence[nn.Parameter], centre: dict[str, torch.Tensor]) -> float:
        """Computes the mean regularised loss per document and its gradient."""
        prototypes, head, number = self.model.prototypes, self.model.head, len(self.features)
        for parameter in parameters:
            parameter.grad = None
        offset = prototypes.weight - centre.get("prototypes.weight", 0.0)
        penalty = (offset / head.temperature).square().sum() / (2 * strength)
        for name, bias in (("prototypes.bias", prototypes.bias), ("head.stop", getattr(head, "stop", None))):
            if bias is not None:
                penalty = penalty + (bias - centre.get(name, 0.0)).square().sum() / (2 * BIAS_STRENGTH)
        (penalty / number).backward()
        total = penalty.detach().to(sum_dtype(penalty.device))
        vectors = prototypes.vectors_from(self.anchors)
        fixed, gradient = vectors.detach(), torch.zeros_like(vectors)
        # Features and anchors are constant, so two matrix products per chunk suffice: the scores and their gradient.
        for features, targets, counts in zip(self.features.split(self.chunk), self._targets(), self.counts):
            products = (fixed @ features.T).T.requires_grad_()
            scores = head.scores(products if prototypes.bias is None else products + prototypes.bias.to(features))
            loss = (head.losses(scores, targets) * counts).sum()
            (loss / number).backward()
            assert products.grad is not None
            gradient.addmm_(products.grad.T, features)
            total += loss.detach()
        vectors.backward(gradient)
        return float(total) / number


def fit_head(
    model: HcalForSequenceClassification,
    pooled_states: torch.Tensor,
    labels: torch.Tensor,
    strength: float = 16.0,
    anchored: bool = True,
    max_iterations: int = 100,
) -> float:
    """Fits prototypes and head to all documents at once. The encoder and the projection are unchanged.

    Minimises the mean over documents of the head's losses, summed over the levels, + |W|^2 / (2 C N). W is delta / tau,
    the learned offset from the label anchors, or from 0 without anchors: anchors regularise the weights towards the label
    text. With `conditional_sigmoid` this is L2-regularised logistic regression for each label given its parents, and
    convex. With `lookahead_sigmoid` all labels are fitted together, and the result is a local minimum. The fit starts from
    the model's present values, so a second call with another C is fast. A warning is logged if L-BFGS does not converge.

    Args:
        model: a model with linear scores and losses of single documents.
        pooled_states (`torch.Tensor` of shape `[N, hidden_size]`): the encoder's pooled states.
        labels (`torch.Tensor`): node indices `[N, K]` padded with -100, or multi-hot `[N, L]`.
        strength (`float`): C, the inverse of the regularisation, as in scikit-learn, for unit features.
        anchored (`bool`): if False, the weights of the anchors are set to 0.
        max_iterations (`int`): the maximum number of L-BFGS iterations.

    Returns:
        the mean regularised loss per document.

    Raises:
        ValueError: if L-BFGS is not defined for the model ([`unsolvable_because`]), or if strength is not above 0.

    Source: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989.
    """
    fit = HeadProblem(model, pooled_states, labels).fit(strength, anchored, max_iterations)
    _warn_unless_converged(fit.converged, strength, max_iterations)
    return fit.objective


def solve(
    model: HcalForSequenceClassification,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    strengths: Sequence[float] = STRENGTHS,
    anchored: Sequence[bool] = (True, False),
    max_iterations: int = 100,
    prior: Literal["initial", "model"] = "initial",
    show_progress: bool = False,
) -> Solution:
    """Fits the head with several strengths, and keeps the best on the validation documents.

    Models with anchors are fitted with and without them, unless `prior` is "model". The score is the mean of micro- and
    macro-F1 of the decoded predictions, under multi_path with the best single threshold for each. A warning is logged if
    the best fit did not converge.

    The strengths are compared after fits to about 0.1 % of the loss, and the best one is then fitted to the end.

    Args:
        model: as in [`fit_head`].
        train, validation: (pooled_states [N, hidden_size], labels [N, K] or [N, L]).
        strengths: the values of C, tried in rising order until the score stops improving.
        anchored: the alternatives to try for a model with anchors.
        max_iterations (`int`): the maximum number of L-BFGS iterations of each fit.
        prior: the values towards which the head is regularised: `"initial"`, the label text or 0, or `"model"`, the
            model's present values, for a trained model that continues with new documents.
        show_progress: show a progress bar with the strength, the loss and the remaining time.

    Raises:
        ValueError: as in [`fit_head`], if there are no strengths, or for another prior.
    """
    centre = head_state(model) if prior == "model" else None
    solution, problem = _search(model, train, validation, strengths, anchored, max_iterations, prior, show_progress)
    fit = problem.fit(solution.strength, solution.anchored, max_iterations, centre)
    solution.objective, solution.converged = fit.objective, fit.converged
    _warn_unless_converged(solution.converged, solution.strength, max_iterations)
    return solution


def solve_without_validation(
    model: HcalForSequenceClassification,
    train: tuple[torch.Tensor, torch.Tensor],
    seed: int,
    share: float = 0.1,
    strengths: Sequence[float] = STRENGTHS,
    anchored: Sequence[bool] = (True, False),
    max_iterations: int = 100,
    prior: Literal["initial", "model"] = "initial",
    show_progress: bool = False,
) -> Solution:
    """Chooses the regularisation on a random share of the training documents, then fits the head to all of them.

    Args:
        model, train, strengths, anchored, max_iterations, prior, show_progress: as in [`solve`].
        seed: draws the share.
        share: the share of the training documents that serve as validation documents.

    Raises:
        ValueError: as in [`solve`], or if there are too few documents.
    """
    states, labels = train
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order.split([max(round(share * len(order)), 1), len(order) - max(round(share * len(order)), 1)])
    if not len(rest):
        raise ValueError(
            f"{len(states)} document(s) are too few to choose the regularisation on: give validation documents."
        )
    subset, validation = (states[rest], labels[rest]), (states[held_out], labels[held_out])
    centre = head_state(model) if prior == "model" else None
    solution, _ = _search(model, subset, validation, strengths, anchored, max_iterations, prior, show_progress)
    fit = HeadProblem(model, states, labels).fit(solution.strength, solution.anchored, max_iterations, centre)
    _warn_unless_converged(fit.converged, solution.strength, max_iterations)
    solution.objective, solution.converged = fit.objective, fit.converged
    return solution


def _search(
    model: HcalForSequenceClassification,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    strengths: Sequence[float],
    anchored: Sequence[bool],
    max_iterations: int,
    prior: str,
    show_progress: bool,
) -> tuple[Solution, HeadProblem]:
    """Chooses a solution by rough fits, and leaves the model there.

    Returns the solution, and the problem of the training documents.
    """
    if not strengths:
        raise ValueError("strengths must hold at least one number.")
    if prior not in PRIORS:
        raise ValueError(f"prior must be one of {', '.join(PRIORS)}, got {prior!r}.")
    start = head_state(model)
    centre = start if prior == "model" else None
    alternatives = anchored if model.prototypes.is_anchored and centre is None else (centre is not None,)
    problem = HeadProblem(model, *train)
    best: tuple[Solution, dict[str, torch.Tensor]] | None = None
    tried: list[dict[str, Any]] = []
    fits = FitProgress(len(alternatives) * len(strengths), max_iterations, show_progress)
    for use_anchors in alternatives:
        restore_head(model, start)
        since_best, top = 0, -1.0
        for strength in sorted(strengths):
            fit = problem.fit(strength, use_anchors, max_iterations, centre, fits.start(strength), is_rough=True)
            score = validation_score(model, *validation)
            attempt = Solution(strength, use_anchors, score, fit.objective, fit.converged)
            tried.append({name: value for name, value in vars(attempt).items() if name != "tried"})
            logger.info(
                f"C = {strength:g}, {'with' if use_anchors else 'without'} anchors: {score:.4f}"
                f"{'' if fit.converged else ', not converged'}"
            )
            if best is None or score > best[0].score:
                best = attempt, head_state(model)
            since_best = 0 if score > top else since_best + 1
            top = max(top, score)
            if since_best == PATIENCE:
                break
    fits.close()
    assert best is not None
    solution, state = best
    restore_head(model, state)
    solution.tried = tried
    return solution, problem


def _warn_unless_converged(converged: bool, strength: float, max_iterations: int) -> None:
    if not converged:
        logger.warning(
            f"L-BFGS with C = {strength:g} did not converge within max_iterations={max_iterations} or 1.25 times as many "
            "evaluations. Its result is usable, but another run may give a lower loss: raise max_iterations."
        )


@contextmanager
def _only_trainable(model: HcalForSequenceClassification, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Makes only the given parameters trainable, in evaluation mode with gradients, within a `with` block."""
    was_training, required = model.training, [parameter.requires_grad for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, requires_grad in zip(model.parameters(), required):
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        model.train(was_training)


@torch.no_grad()
def validation_score(model: HcalForSequenceClassification, pooled_states: torch.Tensor, labels: torch.Tensor) -> float:
    """Computes the mean of micro- and macro-F1 of the default decoding.

    Under multi_path, each uses its best single threshold.
    """
    config, taxonomy = model.config, model.taxonomy
    was_training = model.training
    model.eval()
    chunks = pooled_states.split(max(PAIRS_PER_CHUNK // taxonomy.num_labels, 1))
    logits = torch.cat([model(pooled_states=chunk.to(model.device)).logits.cpu() for chunk in chunks])
    model.train(was_training)
    truth = Targets(labels, taxonomy.num_labels).multi_hot.numpy() > 0
    decision, scores = Decision.from_config(config, thresholds=None), []
    for metric in ("micro_f1", "macro_f1"):
        if config.label_mode == "multi_path":
            thresholds = tune_for_decoding(logits, truth, taxonomy, **decision.model_options, metric=metric)
            decision = replace(decision, thresholds=thresholds.tolist())
        sets = decision.decode(logits, taxonomy)
        scores.append(classification_scores(sets.numpy(), truth, taxonomy)[metric])
    return sum(scores) / len(scores)


@torch.no_grad()
def _unit_features(model: HcalForSequenceClassification, pooled_states: torch.Tensor, chunk: int) -> torch.Tensor:
    """Projects and normalises the pooled states. Only the features are on the device as a whole."""
    weight = model.projection.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    features = torch.empty((len(pooled_states), len(weight)), dtype=dtype, device=weight.device)
    for states, rows in zip(pooled_states.split(chunk), features.split(chunk)):
        rows.copy_(F.normalize(model.projection(states.to(weight)).to(dtype), dim=-1))
    return features


def head_state(model: HcalForSequenceClassification) -> dict[str, torch.Tensor]:
    """Returns copies of the parameters of prototypes and head, by name."""
    modules = {"prototypes": model.prototypes, "head": model.head}
    return {
        f"{module_name}.{name}": parameter.detach().clone()
        for module_name, module in modules.items()
        for name, parameter in module.named_parameters()
    }


@torch.no_grad()
def restore_head(model: HcalForSequenceClassification, state: dict[str, torch.Tensor]) -> None:
    """Writes the values of [`head_state`] back into prototypes and head."""
    for name, value in state.items():
        model.get_parameter(name).copy_(value)
