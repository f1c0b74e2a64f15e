"""Fits the quickstart's baseline: logistic regression on the same frozen sentence embeddings.

    python recipes/quickstart/baseline.py

Run it after the quickstart's training. It reads the same features. Every leaf is a class of its own, and a predicted
leaf predicts its ancestors. The penalty is tuned on the validation split. The test split is only used for the chosen
penalty.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from hcal_hf import HcalForSequenceClassification, encode_dataset, pooled_features

LabelPath = tuple[str, ...]
Features = NDArray[np.float32]
Classes = NDArray[np.int64]

# The folder next to the model in which `freeze_encoder: true` caches features.
CACHE_FOLDER = "_features"
SPLITS = ("train", "validation", "test")

# Inverse strength of the L2 penalty, for features of unit length. Validation accuracy rises up to about 30. After that it
# stays the same within the noise of the split, and the fits get slower.
PENALTIES = (10.0, 30.0, 100.0)

# Tolerance of the gradient. scikit-learn's 1e-4 would stop a warm start before its first step.
TOLERANCE = 1e-6


def leaf_accuracy_of_logistic_regression(
    train_x: Features,
    train_y: Classes,
    validation_x: Features,
    validation_y: Classes,
    test_x: Features,
    test_y: Classes,
    penalties: Sequence[float] = PENALTIES,
    max_iterations: int = 1000,
) -> dict[str, Any]:
    """Tunes multinomial logistic regression on the validation split and scores the best on the test split.

    The features are float arrays (documents, dimensions) and are scaled to unit length here. The classes are int arrays
    (documents,). `penalties` are the values of C to try, and the first one with the highest validation accuracy is
    chosen. The model is not refitted on train and validation together, so it uses the same documents as a model with
    early stopping.

    Returns `C`, `validation_accuracy` and `test_accuracy` (shares of documents) of the best model, its
    `test_prediction` (int array), whether it `converged` within `max_iterations` steps of L-BFGS, whether its C is at
    the `edge_of_grid`, and `grid`, a list with the validation accuracy, steps and wall-clock seconds of each C.
    """
    train, validation, test = _unit_length(train_x), _unit_length(validation_x), _unit_length(test_x)
    # From strong to weak penalty, so that each fit is a warm start of the next.
    penalties = sorted(penalties)
    model = LogisticRegression(max_iter=max_iterations, tol=TOLERANCE, warm_start=True)
    best: dict[str, Any] = {"validation_accuracy": -1.0}
    grid: list[dict[str, Any]] = []
    for c in penalties:
        start = time.perf_counter()
        model.set_params(C=c)
        with warnings.catch_warnings():
            # The result reports `converged` for the chosen model.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(train, train_y)
        steps = int(np.max(model.n_iter_))
        accuracy = float(np.mean(model.predict(validation) == validation_y))
        seconds = time.perf_counter() - start
        grid.append({"C": c, "validation_accuracy": accuracy, "steps": steps, "seconds": seconds})
        if accuracy > best["validation_accuracy"]:
            best = {
                "C": c,
                "validation_accuracy": accuracy,
                "converged": steps < max_iterations,
                "edge_of_grid": c in (penalties[0], penalties[-1]),
                "test_prediction": model.predict(test),
            }
    best["test_accuracy"] = float(np.mean(best["test_prediction"] == test_y))
    best["grid"] = grid
    return best


def _unit_length(features: Features) -> NDArray[np.float64]:
    """Scales the rows of `features` to a Euclidean norm of 1."""
    rows = features.astype(np.float64)
    scaled: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def accuracy_per_level(predicted: Sequence[LabelPath], true: Sequence[LabelPath]) -> list[float]:
    """Returns the share of documents with a correct predicted path down to each level, from the root (0).

    A level counts the documents whose true path reaches it.
    """
    accuracies = []
    for level in range(1, max(map(len, true)) + 1):
        hits = [p[:level] == t[:level] for p, t in zip(predicted, true, strict=True) if len(t) >= level]
        accuracies.append(float(np.mean(hits)))
    return accuracies


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Logistic regression on the features that the quickstart trained on.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"), help="folder of the quickstart")
    parser.add_argument("--max_length", type=int, default=128, help="number of tokens that the encoder reads")
    options = parser.parse_args(arguments)
    folder = options.output_dir / "model"
    if not (folder / "config.json").is_file():
        parser.exit(1, f"{folder} holds no model: train the quickstart first (see its config.yaml).\n")

    # The features of the trained model, from its cache.
    model = HcalForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = {name: str(options.output_dir / "data" / f"{name}.jsonl") for name in SPLITS}
    data = load_dataset("json", data_files=files)
    encoded = encode_dataset(data, model.taxonomy, tokenizer, label_mode="single_path", max_length=options.max_length)
    features, leaves = {}, {}
    for name in SPLITS:
        table = pooled_features(model, encoded[name], tokenizer, cache_dir=folder / CACHE_FOLDER)
        features[name] = np.asarray(table["pooled_states"][:], dtype=np.float32)
        leaves[name] = np.array([nodes[-1] for nodes in table["labels"]])

    start = time.perf_counter()
    result = leaf_accuracy_of_logistic_regression(
        features["train"],
        leaves["train"],
        features["validation"],
        leaves["validation"],
        features["test"],
        leaves["test"],
    )
    print("\nLogistic regression on the same features, one class per leaf:")
    for row in result["grid"]:
        print(
            f"  C {row['C']:<5g} validation accuracy {row['validation_accuracy']:.4f}  "
            f"({row['steps']} steps, {row['seconds']:.1f} s)"
        )
    print(f"  tuned in {time.perf_counter() - start:.1f} s, chosen: C {result['C']:g}")
    if result["edge_of_grid"]:
        print("  The chosen C is at the edge of the grid: a wider grid could do better.")
    if not result["converged"]:
        print("  The chosen model had not converged: more iterations could change it.")
    predicted, true = (
        [tuple(model.taxonomy.paths(node)[0]) for node in nodes]
        for nodes in (result["test_prediction"], leaves["test"])
    )
    for level, accuracy in enumerate(accuracy_per_level(predicted, true)):
        print(f"  test accuracy at level {level}: {100 * accuracy:.1f}")
    print(f"  test accuracy of the whole path: {100 * result['test_accuracy']:.1f} of {len(true):,} documents")


if __name__ == "__main__":
    main()
