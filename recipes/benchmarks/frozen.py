"""Heads on frozen features: python recipes/benchmarks/frozen.py --data_dir DIR --sets clinc150 cei --encoder NAME

For each data set (a folder with train, validation and test files and taxonomy.json) the encoder's mean-pooled states are
computed once; each method tries its grid on the validation split with one seed, and the best setting is then trained with
several seeds and scored on the test split, once. Results are appended to --output as JSON lines; --table prints them.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer, BertConfig

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy, decode, encode_dataset
from hcal_hf.anchors import embed_texts
from hcal_hf.features import pooled_features
from hcal_hf.metrics import classification_scores, violation_rates
from hcal_hf.runner import DataArguments, load_data
from hcal_hf.weighting import build_weighter

SINGLE_PATH = {"clinc150", "hwv_part"}
PARTIAL = {"cei"}
SPLITS = ("train", "validation", "test")
# Documents that are no part of the task, by their labels: out-of-scope queries.
LEFT_OUT = {"clinc150": [["oos"]]}
EPOCHS = {"clinc150": 15, "hwv_part": 40, "goemotions": 12, "cei": 30}
BATCH = {"clinc150": 128, "hwv_part": 64, "goemotions": 256, "cei": 64}
SINGLE_GRID = {"learning_rate": [1e-4, 1e-3], "prototype_learning_rate": [1e-3, 3e-3]}
MULTI_GRID = {"learning_rate": [1e-3], "prototype_learning_rate": [3e-3, 1e-2]}
THRESHOLDS = np.geomspace(0.02, 0.9, 60)

METHODS: dict[str, dict[str, Any]] = {
    "independent": {},
    "independent + hcal weights": {"weighting": "hcal"},
    "independent + anchors": {"prototype_anchor": "label_text"},
    "path_softmax": {"head": "path_softmax"},
    "path_softmax + anchors": {"head": "path_softmax", "prototype_anchor": "label_text"},
    "path_softmax + contrast": {"head": "path_softmax", "contrast": "aggregate"},
    "conditional_softmax": {"head": "conditional_softmax"},
    "conditional_softmax + anchors": {"head": "conditional_softmax", "prototype_anchor": "label_text"},
    "conditional_sigmoid": {"head": "conditional_sigmoid"},
    "conditional_sigmoid + hcal weights": {"head": "conditional_sigmoid", "weighting": "hcal"},
    "conditional_sigmoid + anchors": {"head": "conditional_sigmoid", "prototype_anchor": "label_text"},
    "conditional_sigmoid + contrast": {"head": "conditional_sigmoid", "contrast": "aggregate"},
    "conditional_sigmoid, no perturbation": {"head": "conditional_sigmoid", "perturbation": 0.0},
}
SINGLE_ONLY, MULTI_ONLY = ("path_softmax", "conditional_softmax"), ("conditional_sigmoid",)


class Task:
    """A data set as features [N, hidden_size] and multi-hot labels [N, L] of each split."""

    def __init__(self, name: str, folder: Path, encoder: str, cache: Path):
        self.name = name
        self.taxonomy = Taxonomy.from_json(folder / "taxonomy.json")
        self.label_mode = "single_path" if name in SINGLE_PATH else "multi_path"
        rows = load_data(DataArguments(data_dir=str(folder)))
        left_out = LEFT_OUT.get(name)
        keep = {s: [i for i, labels in enumerate(rows[s]["labels"]) if labels != left_out] for s in SPLITS}
        self.anchors, states = self._features(rows, encoder, cache / f"{name}.npz")
        self.x = {s: torch.from_numpy(states[s][keep[s]]) for s in SPLITS}
        self.y = {s: torch.zeros(len(keep[s]), self.taxonomy.num_labels) for s in SPLITS}
        for s in SPLITS:
            labels = rows[s]["labels"]
            for row, i in enumerate(keep[s]):
                self.y[s][row, self.taxonomy.encode(labels[i])] = 1.0

    def _features(self, rows: DatasetDict, encoder: str, path: Path) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        if path.exists():
            with np.load(path) as stored:
                return torch.from_numpy(stored["anchors"]), {s: stored[s] for s in SPLITS}
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        model = HcalForSequenceClassification.from_encoder(encoder, self.taxonomy, label_mode="multi_path")
        states: dict[str, np.ndarray] = {}
        for s in SPLITS:
            tokens = encode_dataset(rows[s], self.taxonomy, tokenizer, labels=None, max_length=256)
            table: Dataset = pooled_features(model, tokens, tokenizer, desc=f"{self.name} {s}")
            states[s] = np.asarray(table["pooled_states"][:], dtype=np.float32)
        anchors = embed_texts(model, tokenizer, self.taxonomy.texts())
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, anchors=anchors.numpy(), **states)  # type: ignore[arg-type]
        return anchors, states


def train(task: Task, setting: dict[str, Any], seed: int) -> HcalForSequenceClassification:
    """A model whose head is trained by AdamW with a linearly falling rate; its encoder is a placeholder."""
    setting = dict(setting)
    rate, prototype_rate = setting.pop("learning_rate"), setting.pop("prototype_learning_rate")
    weighting = setting.pop("weighting", "uniform")
    torch.manual_seed(seed)
    x, y = task.x["train"], task.y["train"]
    size = x.shape[1]
    encoder = BertConfig(hidden_size=size, num_hidden_layers=0, num_attention_heads=1, vocab_size=2)
    fields = {"projection_dim": size, "prototype_temperature": 0.07, "label_mode": task.label_mode}
    fields["partial_paths"] = task.name in PARTIAL
    model = HcalForSequenceClassification(HcalConfig.from_taxonomy(task.taxonomy, encoder, **{**fields, **setting}))
    if model.prototypes.is_anchored:
        model.prototypes.anchors.copy_(task.anchors)
        model.prototypes.trained.copy_(y.sum(dim=0) > 0)
    weighter = build_weighter(weighting, model.num_levels)
    groups: list[dict[str, Any]] = [
        {"params": [model.projection.weight], "lr": rate},
        {"params": [model.prototypes.weight], "lr": prototype_rate},
    ]
    if own := list(model.head.parameters()):
        groups.append({"params": own, "lr": prototype_rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    epochs, batch = EPOCHS[task.name], BATCH[task.name]
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            output = model(pooled_states=x[rows], labels=y[rows])
            present = output.task_counts > 0
            levels = model.num_levels
            weights = weighter(output.task_losses[:levels].detach(), present[:levels])
            optimizer.zero_grad()
            (model.weigh_contrast(weights, present) * output.task_losses).sum().backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def scores_of(task: Task, logits: dict[str, torch.Tensor], split: str, head: str) -> dict[str, float]:
    """Percentages on a split; thresholds of multi_path sets are chosen on the validation split for each column."""
    partial = task.name in PARTIAL
    if task.label_mode == "single_path":
        sets = decode(logits[split], task.taxonomy, task.label_mode, partial_paths=partial, head=head)
        raw = decode(logits[split], task.taxonomy, task.label_mode, "raw", partial_paths=partial, head=head)
        found = classification_scores(sets.numpy(), task.y[split].numpy() > 0, task.taxonomy)
        names = {"leaf_accuracy": "leaf accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1"}
        result = {title: 100 * found[name] for name, title in names.items()}
        return {**result, "HVR raw": violating(raw, task)}
    result = {}
    for name, title in (("micro_f1", "micro-F1"), ("macro_f1", "macro-F1")):
        threshold = best_threshold(task, torch.sigmoid(logits["validation"]), name)
        raw = torch.sigmoid(logits[split]) >= threshold
        sets = decode(logits[split], task.taxonomy, task.label_mode, "closure", threshold=threshold)
        result[title] = 100 * classification_scores(sets.numpy(), task.y[split].numpy() > 0, task.taxonomy)[name]
        if name == "micro_f1":
            result["HVR raw"] = violating(raw, task)
    return result


def violating(sets: torch.Tensor, task: Task) -> float:
    """Percentage of documents whose set contradicts the hierarchy."""
    rates: dict[str, Any] = dict(violation_rates(sets.numpy(), task.taxonomy))
    return 100 * rates["hvr"]


def best_threshold(task: Task, probabilities: torch.Tensor, metric: str) -> float:
    """The one threshold for all labels that is best on the validation split, before ancestors are added."""
    truth = task.y["validation"] > 0
    positives = truth.sum(dim=0).double()
    best = (-1.0, 0.5)
    for threshold in THRESHOLDS.tolist():
        chosen = probabilities >= threshold
        hits, size = (chosen & truth).sum(dim=0).double(), chosen.sum(dim=0).double()
        if metric == "micro_f1":
            value = (2 * hits.sum() / (size.sum() + positives.sum())).item()
        else:
            value = (2 * hits / (size + positives).clamp(min=1))[positives > 0].mean().item()
        best = max(best, (value, threshold))
    return best[1]


def run_method(task: Task, setting: dict[str, Any], seeds: int) -> Iterator[dict[str, Any]]:
    """Tunes on the validation split with seed 0, then yields the test scores of each seed."""
    grid = SINGLE_GRID if task.label_mode == "single_path" else MULTI_GRID
    head = setting.get("head", "independent")

    def logits_of(rates: dict[str, float], seed: int) -> dict[str, torch.Tensor]:
        model = train(task, {**setting, **rates}, seed)
        with torch.no_grad():
            return {s: model(pooled_states=task.x[s]).logits for s in ("validation", "test")}

    tried = []
    for values in itertools.product(*grid.values()):
        rates = dict(zip(grid, values))
        found = scores_of(task, logits_of(rates, 0), "validation", head)
        tried.append((sum(value for name, value in found.items() if name != "HVR raw"), rates))
    _, rates = max(tried, key=lambda pair: pair[0])
    for seed in range(seeds):
        start = time.perf_counter()
        scores = scores_of(task, logits_of(rates, seed), "test", head)
        yield {"seed": seed, "chosen": rates, "metrics": scores, "seconds": round(time.perf_counter() - start, 1)}


def conditional_logistic_regression(task: Task, conditional: bool) -> Iterator[dict[str, Any]]:
    """One logistic regression a label, on all documents or (`conditional`) where its parents are true and multiplied along
    the path; C tuned on the validation split."""
    x, y = task.x["train"].double().numpy(), task.y["train"].numpy() > 0
    best: tuple[float, Any] = (-1.0, None)
    for c in (1.0, 4.0, 16.0):
        probabilities = {s: np.zeros(task.y[s].shape) for s in ("validation", "test")}
        for node in range(task.taxonomy.num_labels):
            above = task.taxonomy.parents(node)
            rows = y[:, above].all(axis=1) if conditional else np.ones(len(y), dtype=bool)
            model = None
            if 0 < y[rows, node].sum() < rows.sum():
                model = LogisticRegression(C=c, max_iter=1000).fit(x[rows], y[rows, node])
            for s, p in probabilities.items():
                own = np.full(len(p), float(y[rows, node].any()))
                if model is not None:
                    own = model.predict_proba(task.x[s].double().numpy())[:, 1]
                p[:, node] = own * (p[:, above].min(axis=1) if conditional and len(above) else 1.0)
        logits = {s: torch.logit(torch.from_numpy(p).clamp(1e-9, 1 - 1e-9)) for s, p in probabilities.items()}
        found = scores_of(task, logits, "validation", "conditional_sigmoid" if conditional else "independent")
        best = max(best, (found["micro-F1"] + found["macro-F1"], {"C": c, "logits": logits}), key=lambda pair: pair[0])
    scores = scores_of(task, best[1]["logits"], "test", "conditional_sigmoid" if conditional else "independent")
    yield {"seed": 0, "chosen": {"C": best[1]["C"]}, "metrics": scores}


def local_classifier_per_parent(task: Task) -> Iterator[dict[str, Any]]:
    """hiclass's local classifier per parent node with logistic regression; C tuned on the validation split."""
    from hiclass import LocalClassifierPerParentNode

    def paths(split: str) -> list[list[str]]:
        width = len(task.taxonomy.levels)
        rows = [task.taxonomy.decode(row.nonzero()[:, 0].tolist())[0] for row in task.y[split]]
        return [row + [""] * (width - len(row)) for row in rows]

    best: tuple[float, Any] = (-1.0, None)
    for c in (4.0, 16.0, 64.0):
        model = LocalClassifierPerParentNode(local_classifier=LogisticRegression(C=c, max_iter=1000))
        model.fit(task.x["train"].double().numpy(), paths("train"))
        sets: dict[str, np.ndarray] = {}
        for s in ("validation", "test"):
            sets[s] = np.zeros(task.y[s].shape, dtype=bool)
            for row, path in enumerate(model.predict(task.x[s].double().numpy())):
                sets[s][row, task.taxonomy.encode([[step for step in path if step]])] = True
        found = classification_scores(sets["validation"], task.y["validation"].numpy() > 0, task.taxonomy)
        best = max(best, (found["micro_f1"] + found["macro_f1"], {"C": c, "sets": sets}), key=lambda pair: pair[0])
    found = classification_scores(best[1]["sets"]["test"], task.y["test"].numpy() > 0, task.taxonomy)
    names = {"leaf_accuracy": "leaf accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1"}
    scores = {**{title: 100 * found[name] for name, title in names.items()}, "HVR raw": 0.0}
    yield {"seed": 0, "chosen": {"C": best[1]["C"]}, "metrics": scores}


def table(path: Path) -> str:
    """The results as Markdown, mean and standard deviation over seeds."""
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        rows.setdefault((entry["dataset"], entry["method"]), []).append(entry["metrics"])
    lines = []
    for dataset in dict.fromkeys(name for name, _ in rows):
        columns = list(next(metrics for (name, _), metrics in rows.items() if name == dataset)[0])
        lines += [
            "",
            f"### {dataset}",
            "",
            "| method | " + " | ".join(columns) + " | seeds |",
            "|---" * (len(columns) + 2) + "|",
        ]
        for (name, method), found in rows.items():
            if name == dataset:
                cells = [_mean_and_sd([metrics[column] for metrics in found]) for column in columns]
                lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(found)} |")
    return "\n".join(lines)


def _mean_and_sd(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--sets", nargs="+", default=["clinc150", "hwv_part", "goemotions", "cei"])
    parser.add_argument("--methods", nargs="+", default=None, help="names of rows; all that fit by default")
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/frozen.jsonl"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print the table of --output")
    options = parser.parse_args()
    if options.table:
        print(table(options.output))
        return
    torch.set_num_threads(options.threads)
    for name in options.sets:
        task = Task(name, options.data_dir / name, options.encoder, options.cache)
        single = task.label_mode == "single_path"
        rows: dict[str, Any] = {}
        if single:
            rows["hiclass, local classifier per parent"] = lambda task=task: local_classifier_per_parent(task)
        else:
            for title, conditional in (
                ("logistic regression a label", False),
                ("conditional logistic regression", True),
            ):
                rows[title] = lambda task=task, c=conditional: conditional_logistic_regression(task, c)
        for title, setting in METHODS.items():
            if not title.startswith(MULTI_ONLY if single else SINGLE_ONLY):
                rows[title] = lambda task=task, setting=setting: run_method(task, setting, options.seeds)
        for title, action in rows.items():
            if options.methods is None or title in options.methods:
                for entry in action():
                    entry = {"dataset": name, "method": title, "regime": "frozen", **entry}
                    options.output.parent.mkdir(parents=True, exist_ok=True)
                    with open(options.output, "a", encoding="utf-8") as file:
                        file.write(json.dumps(entry) + "\n")
                    print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
