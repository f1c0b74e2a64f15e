"""Logistic regression on frozen sentence embeddings: the baseline that the quickstart's models are compared with.

    python recipes/quickstart/prepare.py --output_dir outputs/quickstart
    python recipes/quickstart/baseline.py --output_dir outputs/quickstart

The encoder is not trained. Every leaf is a class of its own; a predicted leaf predicts its ancestors. The penalty is
tuned on the validation split, and the test split only scores the choice made there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

LabelPath = tuple[str, ...]
Features = NDArray[np.float32]
Classes = NDArray[np.int64]

SPLITS = ("train", "validation", "test")

# Inverse strength of the L2 penalty, for features of unit length. Validation accuracy rises up to about 30 and then
# stays level within the noise of the split, while the fits get slower.
PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0)

# Of the gradient of the mean loss. scikit-learn's 1e-4 stops a fit that starts from its neighbour's solution before
# its first step.
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

    The features are float arrays (documents, dimensions), which are scaled to unit length here, the classes int arrays
    (documents,). `penalties` are the values of C to try, of which the first with the highest validation accuracy is
    taken. The model is not refitted on train and validation together, so that it has seen what a model with early
    stopping has seen.

    Returns `C`, `validation_accuracy` and `test_accuracy` (shares of documents) of the best model, its
    `test_prediction` (int array), whether it `converged` within `max_iterations` steps of L-BFGS, whether its C is at
    the `edge_of_grid`, and `grid`, a list with the validation accuracy, steps and wall-clock seconds of each C.
    """
    train, validation, test = _unit_length(train_x), _unit_length(validation_x), _unit_length(test_x)
    # From strong to weak penalty, each fit starts where the last one ended.
    penalties = sorted(penalties)
    model = LogisticRegression(max_iter=max_iterations, tol=TOLERANCE, warm_start=True)
    best: dict[str, Any] = {"validation_accuracy": -1.0}
    grid: list[dict[str, Any]] = []
    for c in penalties:
        start = time.perf_counter()
        model.set_params(C=c)
        with warnings.catch_warnings():
            # The caller is told by `converged`, about the model that counts.
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
    """The rows of `features` scaled to a Euclidean norm of 1."""
    rows = features.astype(np.float64)
    scaled: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def accuracy_per_level(predicted: Sequence[LabelPath], true: Sequence[LabelPath]) -> list[float]:
    """Share of documents whose predicted path begins like the true one, for each level from the root down.

    Level k counts the documents whose true path has k labels or more.
    """
    accuracies = []
    for level in range(1, max(map(len, true)) + 1):
        hits = [p[:level] == t[:level] for p, t in zip(predicted, true, strict=True) if len(t) >= level]
        accuracies.append(float(np.mean(hits)))
    return accuracies


def read_split(path: Path) -> tuple[list[str], list[LabelPath]]:
    """The texts and the label paths of a split written by `prepare.py`."""
    texts, paths = [], []
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            texts.append(row["text"])
            paths.append(tuple(row["labels"][0]))
    return texts, paths


@torch.no_grad()
def embed(texts: Sequence[str], encoder: Path, max_length: int = 128, batch_size: int = 32) -> Features:
    """Mean of the encoder's last hidden states over the tokens of each text: (texts, hidden size), not normalised.

    Texts are cut after `max_length` tokens. They go in batches of `batch_size` of about the same length, which saves
    padding.
    """
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder, dtype=torch.float32).eval()
    tokens = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
    features = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [tokens[row] for row in rows]}, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        features[rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return features


def features_of(
    splits: dict[str, list[str]], encoder: Path, cache: Path, max_length: int = 128
) -> dict[str, Features]:
    """The embeddings of all splits, read from the file `cache` if it was made from the same texts and encoder."""
    digest = hashlib.sha256(f"max_length={max_length}\n".encode())
    digest.update(hashlib.sha256((encoder / "model.safetensors").read_bytes()).digest())
    for name, texts in splits.items():
        digest.update(json.dumps([name, texts]).encode())
    key = digest.hexdigest()
    if cache.is_file():
        with np.load(cache) as stored:
            if str(stored["key"]) == key:
                return {name: stored[name] for name in splits}
    texts = [text for name in splits for text in splits[name]]
    stacked = embed(texts, encoder, max_length)
    ends = np.cumsum([len(split) for split in splits.values()])[:-1]
    features = dict(zip(splits, np.split(stacked, ends), strict=True))
    arrays: dict[str, Any] = {"key": np.array(key), **features}
    # An interrupted write must not leave half a cache behind.
    unfinished = cache.with_name(f"unfinished_{cache.name}")
    np.savez(unfinished, **arrays)
    unfinished.replace(cache)
    return features


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Logistic regression on frozen embeddings of the quickstart's texts.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"), help="folder of prepare.py")
    parser.add_argument("--max_length", type=int, default=128, help="tokens of a text that the encoder sees")
    options = parser.parse_args(arguments)

    data = options.output_dir / "data"
    if not (data / "taxonomy.json").is_file():
        parser.exit(1, f"{data / 'taxonomy.json'} is missing: run recipes/quickstart/prepare.py first.\n")
    with open(data / "taxonomy.json", encoding="utf-8") as file:
        leaves = [tuple(path) for path in json.load(file)["paths"]]
    class_of = {leaf: index for index, leaf in enumerate(leaves)}
    texts: dict[str, list[str]] = {}
    paths: dict[str, list[LabelPath]] = {}
    for name in SPLITS:
        texts[name], paths[name] = read_split(data / f"{name}.jsonl")

    start = time.perf_counter()
    features = features_of(
        texts, options.output_dir / "encoder", options.output_dir / "baseline_features.npz", options.max_length
    )
    print(f"features: {time.perf_counter() - start:.1f} s")

    start = time.perf_counter()
    classes = {name: np.array([class_of[path] for path in paths[name]]) for name in SPLITS}
    result = leaf_accuracy_of_logistic_regression(
        features["train"],
        classes["train"],
        features["validation"],
        classes["validation"],
        features["test"],
        classes["test"],
    )
    for row in result["grid"]:
        print(
            f"  C {row['C']:<5g} validation accuracy {row['validation_accuracy']:.4f}  "
            f"({row['steps']} steps, {row['seconds']:.1f} s)"
        )
    print(f"tuning: {time.perf_counter() - start:.1f} s")
    print(f"chosen: C {result['C']:g}")
    if result["edge_of_grid"]:
        print("The chosen C is at the edge of the grid: a wider grid could do better.")
    if not result["converged"]:
        print("The chosen model had not converged: more iterations could change it.")
    predicted = [leaves[index] for index in result["test_prediction"]]
    print(f"test leaf accuracy: {result['test_accuracy']:.4f} of {len(predicted)} documents, {len(leaves)} leaves")
    for level, accuracy in enumerate(accuracy_per_level(predicted, paths["test"]), start=1):
        count = sum(len(path) >= level for path in paths["test"])
        print(f"test accuracy at level {level}: {accuracy:.4f} of {count} documents")


if __name__ == "__main__":
    main()
