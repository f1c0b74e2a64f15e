"""Computes out-of-fold probabilities: each document is scored by a model that was not trained on it."""

import copy
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PrinterCallback
from transformers.utils import logging

from ..decoding import PAIRS_PER_CHUNK
from ..heads import HierarchicalHead
from ..modeling_hcal import HcalForSequenceClassification
from ..progress_bar import progress_bar
from ..training.arguments import HcalTrainingArguments
from ..training.calibration import document_scores, fit_temperature
from ..training.solver import HeadProblem, head_state, restore_head, solve_without_validation
from ..training.trainer import HcalTrainer
from ..training.tuning import FEWEST_DOCUMENTS
from .annotations import Annotations

logger = logging.get_logger(__name__)


@dataclass
class OutOfFold:
    """Holds out-of-fold log-probabilities.

    Attributes:
        log_probs (float32 `np.ndarray` of shape `[N, L]`): log P(node) of each document.
        folds (int64 `np.ndarray` of shape `[N]`): the fold that each document was held out in.
        temperatures (`list[float]`): the temperature of each fold, fitted to the other folds.
        strength (`float`, *optional*): C of the heads on frozen features.
    """

    log_probs: np.ndarray
    folds: np.ndarray
    temperatures: list[float] = field(default_factory=list)
    strength: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, L]."""
        return self.log_probs.shape

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Returns the probabilities of some documents, float64 [n, L]."""
        return np.exp(self.log_probs[rows].astype(np.float64))


def draw_folds(groups: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Assigns documents to folds of nearly equal size, so that all documents of a group share a fold.

    Args:
        groups (int64 `np.ndarray` of shape `[N]`): the group of each document, such as the number of its text.
        folds (`int`): the number of folds K.
        seed (`int`): draws the order of the groups.

    Returns:
        the fold of each document, int64 [N], from 0 to K - 1.

    Raises:
        ValueError: if there are fewer than two folds, or fewer groups than folds.
    """
    sizes = np.unique(groups, return_counts=True)[1]
    if folds < 2:
        raise ValueError(
            f"folds must be at least 2, got {folds}: each document is scored by models of the other folds."
        )
    if len(sizes) < folds:
        raise ValueError(
            f"folds={folds} is more than the {len(sizes):,} different labelled texts: give at most {len(sizes)} folds, or "
            "more documents."
        )
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # the largest groups first
    fold_of = np.empty(len(sizes), dtype=np.int64)
    smallest = [(0, fold) for fold in range(folds)]
    for group in order.tolist():
        size, fold = heapq.heappop(smallest)
        fold_of[group] = fold
        heapq.heappush(smallest, (size + int(sizes[group]), fold))
    return fold_of[np.unique(groups, return_inverse=True)[1]]


def frozen_out_of_fold(
    model: HcalForSequenceClassification,
    states: torch.Tensor,
    annotations: Annotations,
    folds: np.ndarray,
    *,
    strength: float | None = None,
    anchored: bool = True,
    max_iterations: int = 100,
    seed: int = 0,
) -> OutOfFold:
    """Fits the head to the documents of all other folds by L-BFGS, for each fold.

    Args:
        model: a model with an untrained head that L-BFGS can fit. Its head is the one of the last fold afterwards.
        states (`torch.Tensor` of shape `[N, hidden_size]`): the encoder's pooled states.
        annotations ([`Annotations`]): the labels.
        folds (int64 `np.ndarray` of shape `[N]`): the fold of each document.
        strength (`float`, *optional*): C. By default, it is chosen on a tenth of the training documents of the first fold.
        anchored (`bool`): as in [`hcal_hf.fit_head`]; chosen together with the strength by default.
        max_iterations (`int`): the maximum number of L-BFGS iterations of each fit.
        seed (`int`): draws the documents that choose C.

    Raises:
        ValueError: as in [`hcal_hf.fit_head`].
    """
    start, collected = head_state(model), _Collector(annotations, folds)
    labels = _padded(annotations)
    not_converged = 0
    for fold in progress_bar(iterable=range(folds.max() + 1), desc="Fitting folds"):
        rest, held = (torch.from_numpy(np.flatnonzero(folds != fold)), np.flatnonzero(folds == fold))
        restore_head(model, start)
        if strength is None:
            solution = solve_without_validation(
                model, (states[rest], labels[rest]), seed, max_iterations=max_iterations
            )
            strength, anchored = solution.strength, solution.anchored
        else:
            fit = HeadProblem(model, states[rest], labels[rest]).fit(strength, anchored, max_iterations)
            not_converged += not fit.converged
        collected.add(fold, model.head, _scores(model, states[torch.from_numpy(held)]))
    if not_converged:
        logger.warning(
            f"L-BFGS did not converge in {not_converged} of {folds.max() + 1} folds within "
            f"max_iterations={max_iterations}. The probabilities are usable."
        )
    return collected.result(strength)


def trained_out_of_fold(
    build_model: Callable[[], HcalForSequenceClassification],
    dataset: Dataset,
    annotations: Annotations,
    folds: np.ndarray,
    tokenizer: Any,
    args: HcalTrainingArguments,
) -> OutOfFold:
    """Trains a new model on the documents of all other folds, for each fold.

    Args:
        build_model: returns an untrained model.
        dataset: the encoded data set, with a column `labels`.
        annotations, folds: as in [`frozen_out_of_fold`].
        tokenizer: the tokenizer of the encoder.
        args ([`HcalTrainingArguments`]): of each training. The output folder of fold k is `fold_k` in `args.output_dir`.
    """
    collected = _Collector(annotations, folds)
    for fold in range(int(folds.max()) + 1):
        own = copy.copy(args)
        own.output_dir = str(Path(str(args.output_dir)) / f"fold_{fold}")
        model = build_model()
        train = dataset.select(np.flatnonzero(folds != fold))
        trainer = HcalTrainer(model, own, train_dataset=train, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        held = dataset.select(np.flatnonzero(folds == fold))
        features, _ = trainer._predict_field(held, "audit", "features")
        fitted = trainer.unwrapped_model
        collected.add(fold, fitted.head, document_scores(fitted, features))
    return collected.result(None)


class _Collector:
    """Collects the scores of the held-out documents of each fold, and calibrates them."""

    def __init__(self, annotations: Annotations, folds: np.ndarray):
        self.annotations, self.folds = annotations, folds
        self.scores = np.empty((len(annotations), annotations.taxonomy.num_labels), dtype=np.float32)
        self.heads: list[HierarchicalHead] = []
        self.temperatures: list[float] = []

    def add(self, fold: int, head: HierarchicalHead, scores: torch.Tensor) -> None:
        """Adds the scores of the documents of a fold, and fits the temperature of its head to them."""
        rows = np.flatnonzero(self.folds == fold)
        self.scores[rows] = scores.float().numpy()
        self.heads.append(copy.deepcopy(head))
        if len(rows) < FEWEST_DOCUMENTS:
            self.temperatures.append(1.0)
            return
        chosen = rows[: max(PAIRS_PER_CHUNK // self.scores.shape[1], FEWEST_DOCUMENTS)]
        targets = self.annotations.select(chosen).multi_hot()
        self.temperatures.append(fit_temperature(head, torch.from_numpy(self.scores[chosen]), targets))

    @torch.no_grad()
    def result(self, strength: float | None) -> OutOfFold:
        """Converts scores to log-probabilities. A fold has the geometric mean of the temperatures of all other folds."""
        logs = [math.log(temperature) for temperature in self.temperatures]
        temperatures = [math.exp((sum(logs) - own) / (len(logs) - 1)) for own in logs]
        for fold, (head, temperature) in enumerate(zip(self.heads, temperatures)):
            device = head.depths.device
            for rows in _pieces(np.flatnonzero(self.folds == fold), self.scores.shape[1]):
                scores = torch.from_numpy(self.scores[rows]).to(device)
                # In place of the scores, so that [N, L] is held once.
                self.scores[rows] = head.log_probs(scores, temperature).float().cpu().numpy()
        return OutOfFold(self.scores, self.folds, temperatures, strength)


@torch.no_grad()
def _scores(model: HcalForSequenceClassification, states: torch.Tensor) -> torch.Tensor:
    weight = model.projection.weight
    features = [F.normalize(model.projection(chunk.to(weight)).float(), dim=-1) for chunk in states.split(4096)]
    return document_scores(model, torch.cat(features))


def _pieces(rows: np.ndarray, num_labels: int) -> Iterator[np.ndarray]:
    step = max(PAIRS_PER_CHUNK // num_labels, 1)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _padded(annotations: Annotations) -> torch.Tensor:
    """Returns the labels as node indices [N, K], padded with -100."""
    sizes = np.diff(annotations.offsets)
    padded = np.full((len(annotations), max(int(sizes.max(initial=0)), 1)), -100, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < sizes[:, None]] = annotations.nodes
    return torch.from_numpy(padded)
