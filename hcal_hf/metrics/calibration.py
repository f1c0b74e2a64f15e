"""Measures the calibration of probabilities. Needs only numpy.

Probabilities are calibrated if a share p of the labels with probability p is true.

Sources: expected calibration error, Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian
Binning" (AAAI 2015), as in Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017, arXiv 1706.04599); bins of
equal mass, Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language processing models"
(EMNLP 2015); Brier, "Verification of forecasts expressed in terms of probability" (Monthly Weather Review, 1950).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .hierarchical_f1.label_sets import LabelSets

BINNINGS = ("equal_mass", "equal_width")


def expected_calibration_error(
    probabilities: Any,
    outcomes: Any,
    bins: int = 15,
    binning: Literal["equal_mass", "equal_width"] = "equal_mass",
) -> float:
    """Computes the expected calibration error, from 0 (calibrated) to 1.

    It is the sum over the bins of |number of true outcomes - sum of probabilities|, divided by the number of probabilities.

    Args:
        probabilities: floats from 0 to 1, any shape.
        outcomes: bool or 0/1 (integers or floats), the same shape. 1 is a true outcome.
        bins: the number of bins, at least 1.
        binning: `"equal_mass"` puts the same number of probabilities into each bin, but equal probabilities stay together.
            With `"equal_width"`, bin b holds probabilities above b / bins and up to (b + 1) / bins. The first bin also
            holds 0.

    Raises:
        ValueError: if shapes differ, a probability is NaN or outside 0 to 1, `binning` is unknown, or there are no bins.
    """
    p, gaps = _checked(probabilities, outcomes)
    if not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"bins must be a whole number of at least 1, got {bins!r}; 15 is usual.")
    if binning not in BINNINGS:
        raise ValueError(f"binning must be one of {', '.join(BINNINGS)}, got {binning!r}.")
    if not p.size:
        return 0.0
    if binning == "equal_width":
        index = np.searchsorted(np.arange(1, bins) / bins, p, side="left")
    else:
        positions = np.arange(1, bins) * p.size // bins
        index = np.searchsorted(np.partition(p, positions)[positions], p, side="right")
    return float(np.abs(np.bincount(index, weights=gaps, minlength=bins)).sum() / p.size)


def brier_score(probabilities: Any, outcomes: Any) -> float:
    """Computes the mean of (probability - outcome)^2, from 0 (best) to 1.

    Args:
        probabilities, outcomes: see `expected_calibration_error`.

    Raises:
        ValueError: if shapes differ, or a probability is NaN or outside 0 to 1.
    """
    _, gaps = _checked(probabilities, outcomes)
    return float(np.square(gaps).mean()) if gaps.size else 0.0


def calibration_scores(probabilities: Any, references: Any, bins: int = 15) -> dict[str, float]:
    """Computes the calibration of node probabilities, over all (document, label) pairs.

    Most pairs of a large hierarchy have a probability near 0, and are easy to calibrate. So compare models on the same
    hierarchy only. Bins of equal width put these pairs into one bin, and bins of equal mass into nearly all bins.

    Args:
        probabilities: floats [N, L] from 0 to 1.
        references: the true labels, bool or 0/1 integer array [N, L], or N sequences of node ids.
        bins: the number of bins of the calibration errors.

    Returns:
        `ece` (bins of equal mass), `ece_equal_width` and `brier`; 0.0 without documents.

    Raises:
        ValueError: if a shape, a type or an id is invalid, or a probability is NaN or outside 0 to 1.
    """
    p = np.asarray(probabilities)
    if p.ndim != 2:
        raise ValueError(f"probabilities has shape {p.shape}; allowed: [N, L], one row per document.")
    sets = LabelSets(references, p.shape[1], "references")
    if sets.matrix is None:
        outcomes = np.zeros((sets.num_documents, p.shape[1]), dtype=bool)
        outcomes[sets.documents, sets.labels] = True
    else:
        outcomes = sets.matrix
    return {
        "ece": expected_calibration_error(p, outcomes, bins),
        "ece_equal_width": expected_calibration_error(p, outcomes, bins, "equal_width"),
        "brier": brier_score(p, outcomes),
    }


def _checked(probabilities: Any, outcomes: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Checks the arguments. Returns the probabilities, and the probabilities minus the outcomes, both flat [n]."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes)
    if p.shape != y.shape:
        raise ValueError(
            f"probabilities have shape {p.shape} and outcomes {y.shape}; give one outcome per probability."
        )
    outside = ~((p >= 0) & (p <= 1))  # the negation also catches NaN
    if outside.any():
        raise ValueError(f"probabilities must lie between 0 and 1, got {p[outside][0]}: give sigmoid(logits).")
    if not ((y == 0) | (y == 1)).all():
        raise ValueError(f"outcomes must be bool or 0 and 1, got {y[(y != 0) & (y != 1)][0]}.")
    return p.ravel(), (p - y).ravel()
