"""Heads on frozen features: python recipes/benchmarks/frozen.py --data_dir DIR --sets clinc150 cei --encoder NAME

For each data set (a folder with train, validation and test files and taxonomy.json) the encoder's mean-pooled states are
computed once; each method tries its grid on the validation split, and the best setting is scored on the test split, once
for each seed. --train_size N trains on N random documents, others for each seed. Results are appended to --output as JSON
lines; --table prints them.
"""

import argparse
import copy
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import conditional_logistic_regression, local_classifier_per_parent
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, BertConfig

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy, decode, encode_dataset
from hcal_hf.anchors import embed_texts
from hcal_hf.features import pooled_features
from hcal_hf.metrics import classification_scores, violation_rates
from hcal_hf.runner import DataArguments, load_data
from hcal_hf.solver import fit_head, solve
from hcal_hf.weighting import build_weighter

SINGLE_PATH = {"clinc150", "hwv_part"}
PARTIAL = {"cei"}
SPLITS = ("train", "validation", "test")
# Documents that are no part of the task, by their labels: out-of-scope queries.
LEFT_OUT = {"clinc150": [["oos"]]}
EPOCHS = {"clinc150": 15, "hwv_part": 40, "goemotions": 12, "cei": 30}
BATCH = {"clinc150": 128, "hwv_part": 64, "goemotions": 256, "cei": 64}
SINGLE_GRID = {"learning_rate": [1e-4, 1e-3], "prototype_learning_rate": [1e-3, 3e-3, 1e-2]}
MULTI_GRID = {"learning_rate": [1e-4, 1e-3], "prototype_learning_rate": [3e-3, 1e-2, 3e-2]}
SINGLE_COLUMNS = {"leaf_accuracy": "leaf accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1"}
THRESHOLDS = np.geomspace(0.02, 0.9, 60)

# Linear scores are fitted by L-BFGS, which is deterministic; cosines are trained by AdamW with several seeds.
LINEAR: dict[str, Any] = {"score_function": "linear"}
ANCHORS: dict[str, Any] = {"prototype_anchor": "label_text"}
COSINE_VARIANTS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "cosine + anchors": ANCHORS,
    "cosine + hcal weights": {"weighting": "hcal"},
    "cosine + contrast": {"contrast": "aggregate"},
    "cosine + contrast, alpha 0.1": {"contrast": "aggregate", "contrast_alpha": 0.1},
    "cosine, no perturbation": {"perturbation": 0.0},
    "linear by AdamW": LINEAR,
    "linear by AdamW + anchors": {**LINEAR, **ANCHORS},
}
HEADS = {
    "single_path": ("lookahead_softmax", "path_softmax", "conditional_softmax", "independent"),
    "multi_path": ("conditional_sigmoid", "independent"),
}


def methods_of(label_mode: str) -> dict[str, dict[str, Any]]:
    """The rows of a table: title and setting of each method."""
    methods = {}
    for head in HEADS[label_mode]:
        methods[f"{head}, linear"] = {"head": head, **LINEAR, **ANCHORS, "solver": "lbfgs"}
        methods[f"{head}, linear, always anchors"] = {
            "head": head, **LINEAR, **ANCHORS, "solver": "lbfgs", "anchored": (True,)
        }  # fmt: skip
        methods[f"{head}, linear, no anchors"] = {"head": head, **LINEAR, "solver": "lbfgs"}
    for head in HEADS[label_mode]:
        for title, setting in COSINE_VARIANTS.items():
            methods[f"{head}, {title}"] = {"head": head, **setting}
    return methods


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
        self.left_out = {s: np.delete(states[s], keep[s], axis=0) for s in SPLITS}
        self.y = {s: torch.zeros(len(keep[s]), self.taxonomy.num_labels) for s in SPLITS}
        for s in SPLITS:
            labels = rows[s]["labels"]
            for row, i in enumerate(keep[s]):
                self.y[s][row, self.taxonomy.encode(labels[i])] = 1.0

    def sample(self, size: int | None, seed: int) -> "Task":
        """The same task with `size` random training documents; itself for None."""
        if size is None or size >= len(self.x["train"]):
            return self
        rows = np.random.default_rng(seed).permutation(len(self.x["train"]))[:size]
        sampled = copy.copy(self)
        sampled.x, sampled.y = ({**part, "train": part["train"][rows]} for part in (self.x, self.y))
        return sampled

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


def make_model(task: Task, setting: dict[str, Any]) -> HcalForSequenceClassification:
    """A new model for features; its encoder is a placeholder."""
    size = task.x["train"].shape[1]
    encoder = BertConfig(hidden_size=size, num_hidden_layers=0, num_attention_heads=1, vocab_size=2)
    fields = {"projection_dim": size, "prototype_temperature": 0.07, "label_mode": task.label_mode}
    fields["partial_paths"] = task.name in PARTIAL
    model = HcalForSequenceClassification(HcalConfig.from_taxonomy(task.taxonomy, encoder, **{**fields, **setting}))
    if model.prototypes.is_anchored:
        model.prototypes.anchors.copy_(task.anchors)
        model.prototypes.trained.copy_(task.y["train"].sum(dim=0) > 0)
    return model


def train(task: Task, setting: dict[str, Any], seed: int) -> HcalForSequenceClassification:
    """A model whose head is trained by AdamW with a linearly falling rate."""
    setting = dict(setting)
    rate, prototype_rate = setting.pop("learning_rate"), setting.pop("prototype_learning_rate")
    weighting = setting.pop("weighting", "uniform")
    torch.manual_seed(seed)
    x, y = task.x["train"], task.y["train"]
    model = make_model(task, setting)
    weighter = build_weighter(weighting, model.num_levels)
    groups: list[dict[str, Any]] = [
        {"params": [model.projection.weight], "lr": rate},
        {"params": [model.prototypes.weight], "lr": prototype_rate},
    ]
    if small := [p for p in (model.prototypes.bias, model.prototypes.anchor_scale) if p is not None]:
        groups.append({"params": small, "lr": prototype_rate, "weight_decay": 0.0})
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
        result = {title: 100 * found[name] for name, title in SINGLE_COLUMNS.items()}
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


def logits_of(task: Task, model: HcalForSequenceClassification) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {s: model.eval()(pooled_states=task.x[s]).logits for s in ("validation", "test")}


def solved(task: Task, setting: dict[str, Any], strength: float, anchored: bool) -> HcalForSequenceClassification:
    """A model whose head is fitted by L-BFGS with a given strength of the regularisation."""
    torch.manual_seed(0)
    model = make_model(task, setting)
    fit_head(model, task.x["train"], task.y["train"], strength, anchored, max_iterations=300)
    return model


def fit(task: Task, setting: dict[str, Any]) -> tuple[HcalForSequenceClassification, dict[str, Any]]:
    """A model whose head is fitted by L-BFGS, and the setting that was best on the validation split."""
    setting = dict(setting)
    setting.pop("solver")
    anchored = setting.pop("anchored", (True, False))
    torch.manual_seed(0)
    model = make_model(task, setting)
    training, validation = ((task.x[s], task.y[s]) for s in ("train", "validation"))
    solution = solve(model, training, validation, anchored=anchored)
    return model, {"C": solution.strength, "anchors": solution.anchored}


def run_method(task: Task, setting: dict[str, Any], seeds: int, size: int | None) -> Iterator[dict[str, Any]]:
    """Tunes on the validation split (AdamW: with seed 0), then yields the test scores of each seed."""
    head = setting["head"]
    if setting.get("solver") == "lbfgs":
        for seed in range(1 if size is None else seeds):
            start = time.perf_counter()
            sampled = task.sample(size, seed)
            model, chosen = fit(sampled, setting)
            scores = scores_of(task, logits_of(task, model), "test", head)
            seconds = round(time.perf_counter() - start, 1)
            yield {"seed": seed, "chosen": chosen, "metrics": scores, "seconds": seconds}
        return
    grid = SINGLE_GRID if task.label_mode == "single_path" else MULTI_GRID
    sampled = task.sample(size, 0)
    tried = []
    for values in itertools.product(*grid.values()):
        rates = dict(zip(grid, values))
        logits = logits_of(task, train(sampled, {**setting, **rates}, 0))
        found = scores_of(task, logits, "validation", head)
        tried.append((sum(value for name, value in found.items() if name != "HVR raw"), rates))
    _, rates = max(tried, key=lambda pair: pair[0])
    for seed in range(seeds):
        start = time.perf_counter()
        model = train(task.sample(size, seed), {**setting, **rates}, seed)
        scores = scores_of(task, logits_of(task, model), "test", head)
        yield {"seed": seed, "chosen": rates, "metrics": scores, "seconds": round(time.perf_counter() - start, 1)}


def baselines_of(task: Task, size: int | None, seeds: int) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """Title and run of each baseline: C chosen on the validation split, scored on the test split."""

    def run(fitted: Callable[[Task], tuple[Any, list[tuple[dict[str, Any], Any]]]]) -> Iterator[dict[str, Any]]:
        for seed in range(1 if size is None else seeds):
            start = time.perf_counter()
            score, attempts = fitted(task.sample(size, seed))
            best = max(attempts, key=lambda a: sum(v for k, v in score(a[1], "validation").items() if k != "HVR raw"))
            seconds = round(time.perf_counter() - start, 1)
            yield {"seed": seed, "chosen": best[0], "metrics": score(best[1], "test"), "seconds": seconds}

    def scored_logits(head: str) -> Any:
        return lambda logits, split: scores_of(task, logits, split, head)

    def scored_sets(sets: dict[str, np.ndarray], split: str) -> dict[str, float]:
        found = classification_scores(sets[split], task.y[split].numpy() > 0, task.taxonomy)
        return {**{title: 100 * found[name] for name, title in SINGLE_COLUMNS.items()}, "HVR raw": 0.0}

    if task.label_mode == "single_path":
        return {
            "hiclass, local classifier per parent": lambda: run(
                lambda sampled: (scored_sets, list(local_classifier_per_parent(sampled.x, sampled.y, task.taxonomy)))
            )
        }

    def regressions(conditional: bool, head: str) -> Callable[[], Iterator[dict[str, Any]]]:
        def fitted(sampled: Task) -> tuple[Any, list[tuple[dict[str, Any], Any]]]:
            attempts = conditional_logistic_regression(sampled.x, sampled.y, task.taxonomy, conditional)
            return scored_logits(head), list(attempts)

        return lambda: run(fitted)

    return {
        "logistic regression a label": regressions(False, "independent"),
        "conditional logistic regression": regressions(True, "conditional_sigmoid"),
    }


def table(path: Path) -> str:
    """The results as Markdown, mean and standard deviation over seeds."""
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        size = entry.get("train_size")
        title = entry["dataset"] if size is None else f"{entry['dataset']}, {size:,} training documents"
        rows.setdefault((title, entry["method"]), []).append(entry["metrics"])
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


def record(path: Path, entry: dict[str, Any]) -> None:
    """Appends a result to a file of JSON lines, and prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--sets", nargs="+", default=["clinc150", "hwv_part", "goemotions", "cei"])
    parser.add_argument("--methods", nargs="+", default=None, help="names of rows; all that fit by default")
    parser.add_argument("--encoder", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train_size", type=int, default=None, help="random training documents; all by default")
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
        size, seeds = options.train_size, options.seeds
        rows = baselines_of(task, size, seeds)
        for title, setting in methods_of(task.label_mode).items():
            rows[title] = functools.partial(run_method, task, setting, seeds, size)
        unknown = set(options.methods or ()) - set(rows)
        if unknown:
            parser.error(f"{name} has no methods {sorted(unknown)}, only {sorted(rows)}")
        for title in options.methods or rows:
            for entry in rows[title]():
                found = {"dataset": name, "method": title, "regime": "frozen", "train_size": size, **entry}
                record(options.output, found)


if __name__ == "__main__":
    main()
