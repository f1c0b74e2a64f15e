"""What is made of a model's probabilities: python recipes/benchmarks/answers.py --data_dir DIR --sets clinc150 cei

For each set of frozen.py the default model is fitted by L-BFGS on the training split (with the regularisation that
was chosen on the validation split, read from --results) and answers are measured on the test split: calibration
before and after temperature scaling, thresholds and decoders, risk control over random splits of validation and test,
out-of-scope documents (clinc150), labels without training documents (hwv_part) and a poly-hierarchy (goemotions). Results
are appended to --output as JSON lines, one a measurement; --table prints them.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frozen import solved
from tasks import LEFT_OUT, Task, record
from torch.nn import functional as F

from hcal_hf import HcalForSequenceClassification, Taxonomy, decode
from hcal_hf.commands.train import DataArguments, load_data
from hcal_hf.metrics import classification_scores, violation_rates
from hcal_hf.training.calibration import calibration_metrics, document_scores, fit_temperature, negative_log_likelihood
from hcal_hf.training.risk import calibrate_risk, describe_answers
from hcal_hf.training.thresholds import tune_for_decoding

Measurement = dict[str, Any]
ALPHAS = (0.05, 0.1, 0.2)


class Fitted:
    """A task, its default model, and what that says of the validation and test documents."""

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
    return {name: round(100 * scores[name], 2) for name in names}


def calibration(fitted: Fitted) -> Iterator[Measurement]:
    """Expected calibration error, Brier score and likelihood of the test documents, T fitted on the validation ones."""
    head, model = fitted.model.head, fitted.model
    with torch.no_grad():
        scores = {s: document_scores(model, model(pooled_states=fitted.task.x[s]).features) for s in fitted.truth}
    temperature = fit_temperature(head, scores["validation"], fitted.truth["validation"])
    for title, value in (("T = 1", 1.0), (f"T = {temperature:.2f}", temperature)):
        model.config.score_temperature = value
        found = calibration_metrics(
            fitted.predict(fitted.task.x["test"]), fitted.truth["test"], fitted.taxonomy, **fitted.how
        )
        names = [name for name in ("end_ece", "end_brier", "ece", "brier") if name in found]
        nll = negative_log_likelihood(head, scores["test"], fitted.truth["test"], value)
        yield {"what": "calibration", "row": title, **percent(found, *names), "nll": round(nll, 3)}
    model.config.score_temperature = 1.0


def decoders(fitted: Fitted) -> Iterator[Measurement]:
    """F1 and contradictions of each decoder; multi_path with one threshold, tuned on the validation split for micro-F1."""
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
    """Test F1 of thresholds tuned on the validation split for the same metric."""
    if fitted.how["label_mode"] == "single_path":
        return
    for granularity in (None, "global", "level", "label"):
        found: dict[str, float] = {}
        for metric in ("micro_f1", "macro_f1"):
            tuned: Any = 0.5
            if granularity is not None:
                tuned = tune_for_decoding(
                    fitted.logits["validation"], fitted.truth["validation"], fitted.taxonomy, **fitted.how,
                    granularity=granularity, metric=metric,
                )  # fmt: skip
            scores = classification_scores(fitted.decode("test", None, tuned), fitted.truth["test"], fitted.taxonomy)
            found |= percent(scores, metric)
        yield {"what": "thresholds", "row": granularity or "0.5", **found}


def risk(fitted: Fitted, splits: int) -> Iterator[Measurement]:
    """Realised risk on one half of validation and test, calibrated on the other, over random splits."""
    logits = torch.cat([fitted.logits[s] for s in fitted.truth])
    truth = np.concatenate([fitted.truth[s] for s in fitted.truth])
    probabilities = torch.sigmoid(logits.double())
    how, mode = dict(fitted.how), fitted.how["label_mode"]
    for alpha in ALPHAS:
        found: dict[str, list[float]] = {}
        for seed in range(splits):
            order = np.random.default_rng(seed).permutation(len(truth))
            first, second = order[: len(order) // 2], order[len(order) // 2 :]
            limit = calibrate_risk(probabilities[first], truth[first], fitted.taxonomy, alpha=alpha, **how)
            sets = decode(
                logits[second], fitted.taxonomy, mode, "risk", partial_paths=how["partial_paths"], head=how["head"],
                risk_threshold=limit,
            )  # fmt: skip
            for name, value in describe_answers(sets.numpy(), truth[second], fitted.taxonomy).items():
                found.setdefault(name, []).append(value)
        means = {name: float(np.mean(values)) for name, values in found.items()}
        yield {
            "what": "risk",
            "row": f"alpha = {alpha}",
            "realised risk": round(100 * means["risk"], 2),
            "its sd over splits": round(100 * float(np.std(found["risk"], ddof=1)), 2),
            "levels": round(means["levels"], 2),
            "completeness": round(100 * means["completeness"], 2),
            "empty": round(100 * means["empty"], 2),
            "splits": splits,
        }


def out_of_scope(fitted: Fitted, states: np.ndarray) -> Iterator[Measurement]:
    """How well the probability of the best root, and of the best path, tells in-scope test documents from others."""
    from sklearn.metrics import roc_auc_score

    inside, outside = fitted.logits["test"], fitted.predict(torch.from_numpy(states))
    roots = fitted.taxonomy.levels[0]
    leaves = torch.from_numpy(fitted.taxonomy.is_leaf.copy())
    for title, columns in (("best root", roots), ("best path", leaves)):
        sure = [logits[:, columns].max(dim=1).values.numpy() for logits in (inside, outside)]
        auroc = roc_auc_score(np.r_[np.ones(len(sure[0])), np.zeros(len(sure[1]))], np.concatenate(sure))
        # The limit that keeps 95 % of the validation documents.
        limit = np.quantile(fitted.logits["validation"][:, columns].max(dim=1).values.numpy(), 0.05)
        yield {
            "what": "out of scope",
            "row": title,
            "auroc": round(100 * auroc, 2),
            "abstains in scope": round(100 * float((sure[0] < limit).mean()), 2),
            "abstains out of scope": round(100 * float((sure[1] < limit).mean()), 2),
        }


def unseen(task: Task, setting: dict[str, Any], chosen: dict[str, Any]) -> Iterator[Measurement]:
    """Leaf accuracy on test documents whose leaf has no training document, by where its prototype comes from."""
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
    """The same documents under taxonomy_dag.json, where a label has two parents."""
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
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("heads.jsonl"))
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/answers.jsonl"))
    parser.add_argument("--splits", type=int, default=200, help="random splits for risk control")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print the tables of --output")
    options = parser.parse_args()
    if options.table:
        print(table(options.output))
        return
    torch.set_num_threads(options.threads)
    for name in options.sets:
        task = Task(name, options.data_dir / name, options.encoder, options.cache)
        for entry in measurements(task, options.data_dir / name, options.results, options.splits):
            record(options.output, {"dataset": name, **entry})


def measurements(task: Task, folder: Path, results: Path, splits: int) -> Iterator[Measurement]:
    """All that is measured on one data set."""
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
    """What frozen.py chose on the validation split for a method."""
    for line in results.read_text().splitlines():
        entry = json.loads(line)
        if (entry["dataset"], entry["method"], entry.get("train_size")) == (dataset, method, None):
            return entry["chosen"]
    raise SystemExit(f"{results} has no row {method!r} of {dataset}: heads.jsonl has those of the four sets.")


def table(path: Path) -> str:
    """The measurements as Markdown, a table for each kind of one set."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        groups.setdefault((entry.pop("what"), entry.pop("dataset")), []).append(entry)
    lines = []
    for (what, dataset), rows in groups.items():
        columns = list(rows[0])[1:]
        lines += ["", f"### {what}, {dataset}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {row['row']} | {' | '.join(str(row[column]) for column in columns)} |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
