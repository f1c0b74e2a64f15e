"""Measures calibration, thresholds, decoders and risk control, and writes the tables of pages/decisions.md.

    python recipes/benchmarks/decisions.py --data_dir DIR --sets clinc150 cei
    python recipes/benchmarks/decisions.py --tables

For each data set of frozen.py a model with linear scores is fitted by L-BFGS on the training split, with the regularisation
that was chosen on the validation split (read from --results). On the test split it measures calibration before and after
temperature scaling, thresholds and decoders, risk control over random splits of validation and test, out-of-scope documents
(clinc150), labels without training documents (hwv_part) and a poly-hierarchy (goemotions). Measurements are appended to
--output, one JSON line each. --tables writes the page from rows/decisions.jsonl.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import LEFT_OUT, Task
from models import solved
from result_rows import ROWS, append_line, read_lines
from tables import PAGES, decisions_tables, write_page
from torch.nn import functional as F

from hcal_hf import (
    DataArguments,
    HcalForSequenceClassification,
    Taxonomy,
    calibrate_risk,
    calibration_metrics,
    classification_scores,
    decode,
    describe_answers,
    document_scores,
    fit_temperature,
    load_data,
    negative_log_likelihood,
    tune_for_decoding,
    violation_rates,
)

Measurement = dict[str, Any]
ALPHAS = (0.05, 0.1, 0.2)


class Fitted:
    """A fitted model with its predictions for the validation and test documents of a task."""

    def __init__(self, task: Task, model: HcalForSequenceClassification):
        self.task, self.model, self.taxonomy = task, model.eval(), task.taxonomy
        config = model.config
        self.how: dict[str, Any] = {"label_mode": config.label_mode, "partial_paths": config.partial_paths}
        self.how["head"] = config.head
        self.truth = {s: task.y[s].numpy() > 0 for s in ("validation", "test")}
        self.logits = {s: self.predict(task.x[s]) for s in self.truth}

    @torch.no_grad()
    def predict(self, states: torch.Tensor) -> torch.Tensor:
        return self.model(pooled_states=states).logits

    def decode(self, split: str, method: str | None = None, threshold: Any = None) -> np.ndarray:
        mode = self.how["label_mode"]
        partial, head = self.how["partial_paths"], self.how["head"]
        return decode(self.logits[split], self.taxonomy, mode, method, threshold, partial, head).numpy()


def percent(scores: Any, *names: str) -> dict[str, float]:
    """Returns some of the scores in percent, rounded."""
    return {name: round(100 * scores[name], 2) for name in names}


def calibration(fitted: Fitted) -> Iterator[Measurement]:
    """Measures calibration errors, Brier score and likelihood on test documents. T is fitted on validation documents."""
    head, model = fitted.model.head, fitted.model
    with torch.no_grad():
        scores = {s: document_scores(model, model(pooled_states=fitted.task.x[s]).features) for s in fitted.truth}
    temperature = fit_temperature(head, scores["validation"], fitted.truth["validation"])
    for title, value in (("T = 1", 1.0), (f"T = {temperature:.2f}", temperature)):
        model.config.score_temperature = value
        errors = calibration_metrics(
            fitted.predict(fitted.task.x["test"]), fitted.truth["test"], fitted.taxonomy, **fitted.how
        )
        names = [name for name in ("end_ece", "end_brier", "ece", "brier") if name in errors]
        nll = negative_log_likelihood(head, scores["test"], fitted.truth["test"], value)
        yield {"what": "calibration", "row": title, **percent(errors, *names), "nll": round(nll, 3)}
    model.config.score_temperature = 1.0


def decoders(fitted: Fitted) -> Iterator[Measurement]:
    """Measures F1 and violations of each decoder. The one threshold of multi_path is tuned on validation for micro-F1."""
    single = fitted.how["label_mode"] == "single_path"
    threshold: Any = None
    if not single:
        threshold = tune_for_decoding(
            fitted.logits["validation"], fitted.truth["validation"], fitted.taxonomy, **fitted.how
        )
    methods = (
        ("raw", "path", "top_down", "expected_f1")
        if single
        else ("raw", "closure", "prune", "top_down", "expected_f1")
    )
    for method in methods:
        sets = fitted.decode("test", method, None if method == "expected_f1" else threshold)
        scores = classification_scores(sets, fitted.truth["test"], fitted.taxonomy)
        rates: Any = dict(violation_rates(sets, fitted.taxonomy))
        yield {
            "what": "decoders",
            "row": method,
            **percent(scores, "micro_f1", "macro_f1", "hierarchical_f1"),
            "hvr": round(100 * rates["hvr"], 2),
        }


def thresholds(fitted: Fitted) -> Iterator[Measurement]:
    """Measures F1 on test documents with thresholds tuned on the validation split for the same metric."""
    if fitted.how["label_mode"] == "single_path":
        return
    for granularity in (None, "global", "level", "label"):
        f1: dict[str, float] = {}
        for metric in ("micro_f1", "macro_f1"):
            tuned: Any = 0.5
            if granularity is not None:
                tuned = tune_for_decoding(
                    fitted.logits["validation"], fitted.truth["validation"], fitted.taxonomy, **fitted.how,
                    granularity=granularity, metric=metric,
                )  # fmt: skip
            scores = classification_scores(fitted.decode("test", None, tuned), fitted.truth["test"], fitted.taxonomy)
            f1 |= percent(scores, metric)
        yield {"what": "thresholds", "row": granularity or "0.5", **f1}


def risk(fitted: Fitted, splits: int) -> Iterator[Measurement]:
    """Measures the risk on one half of validation and test after calibration on the other half, over random splits."""
    logits = torch.cat([fitted.logits[s] for s in fitted.truth])
    truth = np.concatenate([fitted.truth[s] for s in fitted.truth])
    probabilities = torch.sigmoid(logits.double())
    how, mode = dict(fitted.how), fitted.how["label_mode"]
    for alpha in ALPHAS:
        over_splits: dict[str, list[float]] = {}
        for seed in range(splits):
            order = np.random.default_rng(seed).permutation(len(truth))
            first, second = order[: len(order) // 2], order[len(order) // 2 :]
            limit = calibrate_risk(probabilities[first], truth[first], fitted.taxonomy, alpha=alpha, **how)
            sets = decode(
                logits[second], fitted.taxonomy, mode, "risk", partial_paths=how["partial_paths"], head=how["head"],
                risk_threshold=limit,
            )  # fmt: skip
            for name, value in describe_answers(sets.numpy(), truth[second], fitted.taxonomy).items():
                over_splits.setdefault(name, []).append(value)
        means = {name: float(np.mean(values)) for name, values in over_splits.items()}
        yield {
            "what": "risk",
            "row": f"alpha = {alpha}",
            "realised risk": round(100 * means["risk"], 2),
            "its sd over splits": round(100 * float(np.std(over_splits["risk"], ddof=1)), 2),
            "levels": round(means["levels"], 2),
            "completeness": round(100 * means["completeness"], 2),
            "empty": round(100 * means["empty"], 2),
            "splits": splits,
        }


def out_of_scope(fitted: Fitted, states: np.ndarray) -> Iterator[Measurement]:
    """Measures how well the probability of the best root, or path, separates in-scope from out-of-scope documents."""
    from sklearn.metrics import roc_auc_score

    inside, outside = fitted.logits["test"], fitted.predict(torch.from_numpy(states))
    roots = fitted.taxonomy.levels[0]
    leaves = torch.from_numpy(fitted.taxonomy.is_leaf.copy())
    for title, columns in (("best root", roots), ("best path", leaves)):
        confidence = [logits[:, columns].max(dim=1).values.numpy() for logits in (inside, outside)]
        auroc = roc_auc_score(
            np.r_[np.ones(len(confidence[0])), np.zeros(len(confidence[1]))], np.concatenate(confidence)
        )
        # This limit keeps 95 % of the validation documents.
        limit = np.quantile(fitted.logits["validation"][:, columns].max(dim=1).values.numpy(), 0.05)
        yield {
            "what": "out of scope",
            "row": title,
            "auroc": round(100 * auroc, 2),
            "abstains in scope": round(100 * float((confidence[0] < limit).mean()), 2),
            "abstains out of scope": round(100 * float((confidence[1] < limit).mean()), 2),
        }


def unseen(task: Task, setting: dict[str, Any], chosen: dict[str, Any]) -> Iterator[Measurement]:
    """Measures leaf accuracy on test documents of leaves without training documents, for three initial prototypes."""
    seen = (task.y["train"].sum(dim=0) > 0).numpy()
    truth = task.y["test"].numpy() > 0
    hidden = (truth & ~seen).any(axis=1)
    for start in ("label text", "random", "mean of the siblings' prototypes"):
        model = solved(task, setting, chosen["C"], anchored=start == "label text")
        weight = model.prototypes.weight
        with torch.no_grad():
            if start == "random":
                torch.manual_seed(0)
                length = weight[torch.from_numpy(seen)].norm(dim=1).mean()
                weight[torch.from_numpy(~seen)] = (
                    F.normalize(torch.randn(int((~seen).sum()), weight.shape[1]), dim=1) * length
                )
            elif start.startswith("mean"):
                for node in np.flatnonzero(~seen):
                    above = task.taxonomy.parents(node)
                    family = [
                        int(c)
                        for p in above
                        for c in task.taxonomy.edges[task.taxonomy.edges[:, 0] == p, 1]
                        if seen[c]
                    ]
                    weight[node] = weight[family].mean(dim=0) if family else 0.0
        sets = Fitted(task, model).decode("test")
        ends = (sets == truth).all(axis=1)
        scores = classification_scores(sets, truth, task.taxonomy)
        yield {
            "what": "unseen labels",
            "row": start,
            "leaf accuracy, unseen": round(100 * float(ends[hidden].mean()), 2),
            "leaf accuracy, seen": round(100 * float(ends[~hidden].mean()), 2),
            **percent(scores, "micro_f1", "macro_f1"),
        }


def poly_hierarchy(task: Task, folder: Path, setting: dict[str, Any], chosen: dict[str, Any]) -> Iterator[Measurement]:
    """Measures the decoders on the same documents under taxonomy_dag.json, in which a label has two parents."""
    taxonomy = Taxonomy.from_json(folder / "taxonomy_dag.json")
    rows = load_data(DataArguments(data_dir=str(folder)))
    task.taxonomy = taxonomy
    for split in task.y:
        labels = [sorted({path[-1] for path in paths}) for paths in rows[split]["labels"]]
        task.y[split] = torch.zeros(len(labels), taxonomy.num_labels)
        for row, names in enumerate(labels):
            task.y[split][row, taxonomy.complete([taxonomy.index(name) for name in names])] = 1.0
    setting = {**setting, "prototype_anchor": None}
    fitted = Fitted(task, solved(task, setting, chosen["C"], anchored=False))
    for entry in decoders(fitted):
        yield {**entry, "what": "poly-hierarchy"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--sets", nargs="+", default=["clinc150", "hwv_part", "goemotions", "cei"])
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--cache", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--results", type=Path, default=ROWS / "heads.jsonl", help="rows with the chosen settings")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/decisions.jsonl"))
    parser.add_argument("--splits", type=int, default=200, help="number of random splits for risk control")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="only write the page from its stored rows")
    options = parser.parse_args()
    if options.tables:
        write_page(PAGES / "decisions.md", {"tables": decisions_tables(read_lines(ROWS / "decisions.jsonl"))})
        return
    if options.data_dir is None:
        parser.error("Give --data_dir, the folder of the data sets, or --tables.")
    torch.set_num_threads(options.threads)
    for name in options.sets:
        task = Task(name, options.data_dir / name, options.encoder, options.cache)
        for entry in measurements(task, options.data_dir / name, options.results, options.splits):
            append_line(options.output, {"dataset": name, **entry})


def measurements(task: Task, folder: Path, results: Path, splits: int) -> Iterator[Measurement]:
    """Yields all measurements on one data set."""
    head = "lookahead_softmax" if task.label_mode == "single_path" else "conditional_sigmoid"
    chosen = chosen_setting(results, task.name, f"{head}, linear")
    setting = {"head": head, "score_function": "linear", "prototype_anchor": "label_text"}
    fitted = Fitted(task, solved(task, setting, chosen["C"], anchored=chosen["anchors"]))
    yield from calibration(fitted)
    yield from decoders(fitted)
    yield from thresholds(fitted)
    yield from risk(fitted, splits)
    if task.name in LEFT_OUT:
        yield from out_of_scope(fitted, task.left_out["test"])
    if task.name == "hwv_part":
        yield from unseen(task, setting, chosen)
    if (folder / "taxonomy_dag.json").exists():
        yield from poly_hierarchy(task, folder, setting, chosen)


def chosen_setting(results: Path, dataset: str, method: str) -> dict[str, Any]:
    """Returns the setting that frozen.py chose on the validation split for a method."""
    for entry in read_lines(results):
        if (entry["dataset"], entry["method"], entry.get("train_size")) == (dataset, method, None):
            return entry["chosen"]
    raise SystemExit(
        f"{results} has no row {method!r} of data set {dataset}. rows/heads.jsonl has rows of all four sets."
    )


if __name__ == "__main__":
    main()
