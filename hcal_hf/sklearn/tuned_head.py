"""Fits a head by L-BFGS and tunes its probabilities and thresholds on held-out documents."""

from collections.abc import Sequence

import numpy as np
import torch

from ..decoding import PAIRS_PER_CHUNK, Decision
from ..modeling_hcal import HcalForSequenceClassification
from ..targets import Targets
from ..training.calibration import document_scores, fit_temperature, tempered_logits
from ..training.solver import fit_head, solve
from ..training.thresholds import tune_for_decoding


def solve_and_tune(
    model: HcalForSequenceClassification,
    train: tuple[torch.Tensor, torch.Tensor],
    seed: int,
    share: float,
    strengths: Sequence[float],
    metric: str,
) -> float:
    """Fits the head without a share of the documents, tunes it on them, and then fits it to all documents.

    Sets the temperature and, for multi_path models, the thresholds in the configuration of the model.

    Args:
        model: as in [`hcal_hf.solve`].
        train: the pooled states [N, hidden_size] and the labels [N, K].
        seed: draws the held-out documents.
        share: the share of the held-out documents.
        strengths: the values of C to try.
        metric (`"micro_f1"` or `"macro_f1"`): the metric that the threshold maximises.

    Returns:
        the chosen C.

    Raises:
        ValueError: if there are too few documents.
    """
    states, labels = train
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))
    number = max(round(share * len(order)), 1)
    held_out, rest = order[:number], order[number:]
    if not len(rest):
        raise ValueError(f"{len(states)} document(s) are too few to hold some out for tuning: give more.")
    solution = solve(model, (states[rest], labels[rest]), (states[held_out], labels[held_out]), strengths)
    _tune(model, states[held_out], labels[held_out], metric)
    fit_head(model, states, labels, solution.strength, solution.anchored)
    return solution.strength


@torch.no_grad()
def _tune(model: HcalForSequenceClassification, states: torch.Tensor, labels: torch.Tensor, metric: str) -> None:
    """Fits temperature and threshold to held-out documents and stores them."""
    model.eval()
    config, taxonomy = model.config, model.taxonomy
    chunks = states.split(max(PAIRS_PER_CHUNK // taxonomy.num_labels, 1))
    features = torch.cat([model(pooled_states=chunk.to(model.device)).features.cpu() for chunk in chunks])
    targets = Targets(labels, taxonomy.num_labels).multi_hot.numpy() > 0
    scores = document_scores(model, features)
    config.score_temperature = fit_temperature(model.head, scores, targets)
    if config.label_mode == "multi_path":
        logits = tempered_logits(model.head, scores, config.score_temperature)
        options = Decision.from_config(config).model_options
        thresholds: np.ndarray = tune_for_decoding(logits, targets, taxonomy, **options, metric=metric)
        config.thresholds = thresholds.tolist()
