"""The choice of the classification loss: its options, the checks of a configuration, and ZLPR."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

import torch

LOSSES = ("auto", "bce", "asl", "zlpr")
# The defaults of ASL. `released` selects those of the authors' class AsymmetricLoss.
_DEFAULTS = {"gamma_negative": 2.0, "gamma_positive": 0.0, "margin": 0.0, "detach": False}
_RELEASED = {"gamma_negative": 4.0, "gamma_positive": 1.0, "margin": 0.05, "detach": True}
# Under a softmax only the true class has a loss.
_FOCAL = {"gamma_negative": 0.0, "gamma_positive": 2.0, "margin": 0.0, "detach": False}


@dataclasses.dataclass(frozen=True)
class AsymmetricOptions:
    """The options of `classification_loss="asl"`, which `classification_loss_kwargs` holds.

    Args:
        gamma_negative (`float`): gamma-, how strongly easy negatives lose weight. Defaults to 2 (released: 4), and to 0
            under softmax heads, where it would do nothing.
        gamma_positive (`float`): gamma+, the same for positives. Defaults to 0 (released: 1). Under softmax heads, this is
            the gamma of the focal loss and defaults to 2.
        margin (`float`): m, from 0 to below 1. Negatives with p <= m have loss 0. Defaults to 0 (released: 0.05).
        detach (`bool`): whether the factors (1 - p)^gamma+ and (p - m)^gamma- get no gradient. Defaults to False (released:
            True).
        pairs (`"conditional"` or `"marginal"`): the (document, label) pairs that have a loss, under the heads
            `conditional_sigmoid` and `lookahead_sigmoid`. `conditional`: pairs in which all parents of the label are true,
            with p = P(label | parents). `marginal`: all pairs, with p = P(label). A negative pair then has no gradient to
            true ancestors of its label.
        gap (`float`, *optional*): makes gamma- adaptive, with its own value per level. The training moves it by
            `rate * (gap - dp)` per optimiser step, where dp is the mean p of positives minus the mean 1 - p of negatives.
            It starts at `gamma_negative` and stays between gamma+ and 8. Between -1 and 1.
        rate (`float`): the change of an adaptive gamma- per step and unit of dp, above 0. Defaults to 0.05.
        released (`bool`): the loss as its authors released it: the sum over all pairs and levels instead of the mean, and
            gradients to all ancestors under `marginal`. Also changes the defaults of other options, as noted there.

    Source: Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021 (arXiv 2009.14119), eq. 4 and 11.
    """

    gamma_negative: float
    gamma_positive: float
    margin: float
    detach: bool
    pairs: str = "conditional"
    gap: float | None = None
    rate: float = 0.05
    released: bool = False

    @property
    def is_cross_entropy(self) -> bool:
        """Whether the loss is the cross-entropy: all gammas and the margin are 0."""
        return self.gap is None and not (self.gamma_negative or self.gamma_positive or self.margin)


def asymmetric_options(config: Any) -> AsymmetricOptions | None:
    """Returns the options of the asymmetric loss with their defaults, or None if the model has another loss.

    Raises:
        ValueError: if an option is unknown, out of range, or not defined for the head.
    """
    if config.classification_loss != "asl":
        return None
    given = dict(config.classification_loss_kwargs or {})
    _check_names(given, [field.name for field in dataclasses.fields(AsymmetricOptions)], "asl")
    for name in ("detach", "released"):
        if not isinstance(given.get(name, False), bool):
            raise ValueError(f"{name} must be true or false, got {given[name]!r}.")
    is_softmax = config.label_mode == "single_path"
    defaults = _FOCAL if is_softmax else _RELEASED if given.get("released") else _DEFAULTS
    options = AsymmetricOptions(**{**defaults, **given})
    _check_ranges(options)
    if is_softmax:
        _check_focal(options)
    elif options.pairs == "marginal" and config.head == "independent":
        raise ValueError(
            'pairs="marginal" needs head="conditional_sigmoid" or "lookahead_sigmoid", got "independent", which already '
            "has one probability per label and a loss for every pair: leave pairs out."
        )
    if options.released and config.contrast:
        raise ValueError(
            f"released=True sums the loss over the batch, so contrast={config.contrast!r}, which is a mean, would hardly "
            "count: leave one of them out."
        )
    return options


def check_classification_loss(config: Any) -> None:
    """Checks that the classification loss and its options fit the head, the label mode and the objective.

    Raises:
        ValueError: if they do not. The message says what to change.
    """
    loss, kwargs, mode = config.classification_loss, config.classification_loss_kwargs, config.label_mode
    if loss in ("auto", "bce") and kwargs:
        raise ValueError(
            f"classification_loss_kwargs={kwargs} are options of another loss than classification_loss={loss!r}: set "
            'classification_loss="asl" or "zlpr", or leave them out.'
        )
    if loss == "bce" and mode == "single_path":
        raise ValueError(
            'classification_loss="bce" is for the sigmoid heads of label_mode="multi_path", got label_mode="single_path". '
            'Its softmax heads have the categorical cross-entropy: leave classification_loss out ("auto").'
        )
    if loss in ("asl", "zlpr") and config.objective == "aggregate":
        raise ValueError(
            f'classification_loss={loss!r} is defined for documents, not for the class means of objective="aggregate": use '
            'objective="document", or leave classification_loss out.'
        )
    if loss == "zlpr":
        _check_zlpr(config)
    asymmetric_options(config)


def is_joint_zlpr(config: Any) -> bool:
    """Tells whether ZLPR ranks the labels of all levels together, as released."""
    return bool((config.classification_loss_kwargs or {}).get("released"))


def unsolvable_loss(config: Any) -> str | None:
    """Explains why L-BFGS cannot fit the classification loss, or returns None if it can."""
    options = asymmetric_options(config)
    if options is None or options.is_cross_entropy:
        return None
    return (
        'classification_loss="asl" is not convex, so the line search of L-BFGS has no guarantee and its result depends on '
        'the start: train with head_solver="optimizer", or leave classification_loss out.'
    )


def zlpr_losses(scores: torch.Tensor, is_positive: torch.Tensor) -> torch.Tensor:
    """Computes the loss that ranks the positive labels of each document above 0 and its negative labels below 0 (ZLPR).

    loss = log(1 + sum over negatives of exp(s)) + log(1 + sum over positives of exp(-s)). It is convex in the scores.

    Args:
        scores (`torch.Tensor` of shape `[B, L]`, at least float32): the scores s.
        is_positive (`torch.Tensor` of shape `[B, L]`, bool): the labels.

    Returns:
        `torch.Tensor` of shape `[B]`, in nats.

    Source: Su et al., "ZLPR: A Novel Loss for Multi-label Classification", 2022 (arXiv 2208.02955), as HJCL uses it.
    """
    threshold = scores.new_zeros((len(scores), 1))
    negatives = torch.cat([threshold, scores.masked_fill(is_positive, -torch.inf)], dim=1)
    positives = torch.cat([threshold, (-scores).masked_fill(~is_positive, -torch.inf)], dim=1)
    return negatives.logsumexp(dim=1) + positives.logsumexp(dim=1)


def _check_names(given: Mapping[str, Any], known: list[str], loss: str) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"classification_loss_kwargs has {name!r}, but classification_loss={loss!r} takes {', '.join(known)}."
                + (f" Closest: {close[0]!r}." if close else "")
            )


def _check_ranges(options: AsymmetricOptions) -> None:
    numbers = {
        "gamma_negative": ("a number from 0 (binary cross-entropy) upwards", 0.0, math.inf),
        "gamma_positive": ("a number from 0 (cross-entropy) upwards", 0.0, math.inf),
        "margin": ("a number from 0 (no margin) to below 1", 0.0, 1.0),
    }
    for name, (allowed, low, high) in numbers.items():
        value = getattr(options, name)
        if not _is_number(value) or not low <= value < high:
            raise ValueError(f"{name} must be {allowed}, got {value!r}: change it in classification_loss_kwargs.")
    if options.pairs not in ("conditional", "marginal"):
        raise ValueError(f'pairs must be "conditional" or "marginal", got {options.pairs!r}.')
    if options.gap is not None and not (_is_number(options.gap) and -1 < options.gap < 1):
        raise ValueError(
            f"gap must be a number between -1 and 1, got {options.gap!r}. It is the target of the mean p of positives "
            "minus the mean 1 - p of negatives. Leave it out for a fixed gamma_negative."
        )
    if not _is_number(options.rate) or not 0 < options.rate < math.inf:
        raise ValueError(f"rate must be a number above 0, got {options.rate!r}.")


def _check_focal(options: AsymmetricOptions) -> None:
    """Checks that the options have an effect under a softmax head."""
    useless = {
        "gamma_negative": options.gamma_negative != 0,
        "margin": options.margin != 0,
        "gap": options.gap is not None,
        'pairs="marginal"': options.pairs != "conditional",
    }
    if options.released:
        raise ValueError(
            "released=True is the sum over the sigmoids of a multi_path model, but label_mode='single_path' has softmax "
            'heads: leave released out and set gamma_positive (the focal loss), or use label_mode="multi_path".'
        )
    for name, is_set in useless.items():
        if is_set:
            raise ValueError(
                f"{name} has no effect with label_mode='single_path': under a softmax only the true class has a loss, so "
                "there are no negatives to weigh. Use gamma_positive, which gives the focal loss, or "
                'label_mode="multi_path", where every label has its own sigmoid.'
            )


def _check_zlpr(config: Any) -> None:
    given = config.classification_loss_kwargs or {}
    _check_names(given, ["released"], "zlpr")
    if not isinstance(given.get("released", False), bool):
        raise ValueError(f"released must be true or false, got {given['released']!r}.")
    if config.label_mode != "multi_path" or config.head != "independent":
        raise ValueError(
            'classification_loss="zlpr" needs label_mode="multi_path" and head="independent", got '
            f"label_mode={config.label_mode!r} and head={config.head!r}: ZLPR ranks scores against 0 and gives no "
            'probabilities that could be multiplied along paths. Use "asl" or "auto" with a coherent head.'
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
