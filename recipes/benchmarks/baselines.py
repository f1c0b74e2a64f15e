"""Logistic regressions on features, the baselines of frozen.py: each function yields (setting, result) for every C."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from hcal_hf import Taxonomy

STRENGTHS = (0.0625, 0.25, 1.0, 4.0, 16.0, 64.0)
Splits = dict[str, torch.Tensor]


def conditional_logistic_regression(
    x: Splits, y: Splits, taxonomy: Taxonomy, conditional: bool
) -> Iterator[tuple[dict[str, Any], Splits]]:
    """One logistic regression a label, on all documents, or (`conditional`) on those whose labels hold its parents, and
    multiplied along the path. A label without documents of both kinds gets the probability of the kind there is.

    Args:
        x, y: features [N, h] and multi-hot labels [N, L] of train, validation and test.

    Yields:
        C, and the logits [N, L] of validation and test.
    """
    features = {s: x[s].double().numpy() for s in x}
    truth = y["train"].numpy() > 0
    for c in STRENGTHS:
        probabilities = {s: np.zeros(y[s].shape) for s in ("validation", "test")}
        for node in range(taxonomy.num_labels):
            above = taxonomy.parents(node)
            rows = truth[:, above].all(axis=1) if conditional else np.ones(len(truth), dtype=bool)
            model = None
            if 0 < truth[rows, node].sum() < rows.sum():
                model = LogisticRegression(C=c, max_iter=1000).fit(features["train"][rows], truth[rows, node])
            for s, p in probabilities.items():
                own = np.full(len(p), float(truth[rows, node].any()))
                if model is not None:
                    own = model.predict_proba(features[s])[:, 1]
                p[:, node] = own * (p[:, above].min(axis=1) if conditional and len(above) else 1.0)
        yield {"C": c}, {s: torch.logit(torch.from_numpy(p).clamp(1e-9, 1 - 1e-9)) for s, p in probabilities.items()}


def local_classifier_per_parent(
    x: Splits, y: Splits, taxonomy: Taxonomy
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """hiclass's local classifier per parent node with logistic regression; arguments as above.

    Yields:
        C, and the predicted labels, bool [N, L], of validation and test.
    """
    from hiclass import LocalClassifierPerParentNode

    features = {s: x[s].double().numpy() for s in x}
    width = len(taxonomy.levels)
    paths = [taxonomy.decode(row.nonzero()[:, 0].tolist())[0] for row in y["train"]]
    padded = [path + [""] * (width - len(path)) for path in paths]
    for c in STRENGTHS:
        model = LocalClassifierPerParentNode(local_classifier=LogisticRegression(C=c, max_iter=1000))
        model.fit(features["train"], padded)
        sets = {s: np.zeros(y[s].shape, dtype=bool) for s in ("validation", "test")}
        for s, found in sets.items():
            for row, path in enumerate(model.predict(features[s])):
                found[row, taxonomy.encode([[step for step in path if step]])] = True
        yield {"C": c}, sets
