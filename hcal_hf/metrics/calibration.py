"""Calibration of probabilities, in numpy alone: of what is predicted with probability p, a share p should be true.

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
    """Sum over the bins of |number of true outcomes - sum of probabilities| / all, from 0 (calibrated) to 1.

    Args:
        probabilities: floats from 0 to 1, any shape.
        outcomes: bool or 0/1 (integers or floats), the same shape: whether it came true.
        bins: how many, at least 1.
        binning: `"equal_mass"`: bins of as many probabilities each, but equal ones stay together. `"equal_width"`: bin b
            holds those above b / bins up to (b + 1) / bins, and the first one 0 too.

    Raises:
        ValueError: different shapes, probabilities outside 0 to 1 or NaN, another binning, fewer than 1 bin.
    """
    p, gaps = _checked(probabilities, outcomes)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}; 15 is usual.")
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
    """Mean of (probability - outcome)^2, from 0 (sure and right) to 1; arguments and errors as above."""
    _, gaps = _checked(probabilities, outcomes)
    return float(np.square(gaps).mean()) if gaps.size else 0.0


def calibration_scores(probabilities: Any, references: Any, bins: int = 15) -> dict[str, float]:
    """Calibration of node probabilities, over all (document, label) cells.

    Most cells of a large hierarchy have a probability near 0, in bins that are calibrated with ease: compare models on one
    hierarchy, not hierarchies. Bins of equal width put these cells in one bin, bins of equal mass in nearly all of them.

    Args:
        probabilities: floats [N, L] from 0 to 1.
        references: the true labels, bool or 0/1 integer array [N, L], or N sequences of node ids.
        bins: of the calibration errors.

    Returns:
        `ece` (bins of equal mass), `ece_equal_width` and `brier`; 0.0 without documents.

    Raises:
        ValueError: wrong shapes, types or ids; probabilities outside 0 to 1 or NaN.
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
    """Probabilities, and probabilities minus outcomes, both flat [n]."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes)
    if p.shape != y.shape:
        raise ValueError(
            f"probabilities have shape {p.shape} and outcomes {y.shape}; give one outcome per probability."
        )
    outside = ~((p >= 0) & (p <= 1))  # negated so that NaN fails as well
    if outside.any():
        raise ValueError(f"probabilities must lie between 0 and 1, got {p[outside][0]}: give sigmoid(logits).")
    if not ((y == 0) | (y == 1)).all():
        raise ValueError(f"outcomes must be bool or 0 and 1, got {y[(y != 0) & (y != 1)][0]}.")
    return p.ravel(), (p - y).ravel()
