"""Measures when loss weighting helps, and writes the tables of pages/weighting.md.

    python recipes/benchmarks/weighting.py frozen stress finetune --data_dir DIR --encoder NAME
    python recipes/benchmarks/weighting.py --tables

frozen: heads on frozen features of four data sets with every weighter. The weighter's own arguments are chosen on the
validation split, at the learning rates that were best there with equal weights. stress: synthetic hierarchies in
which the loss of one level is much larger than the others. finetune: the whole encoder on clinc150. All runs use
HcalTrainer. Rows are appended to --output, one JSON line each. --tables writes them into the page.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from data import ENCODER, PARTIAL, Features, Task, Tokens
from models import BATCH, logits_of, make_model
from result_rows import ROWS, append_line, read_lines
from tables import PAGES, weighting_tables, write_page
from transformers import BertConfig, PrinterCallback

from hcal_hf import (
    HcalConfig,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    Taxonomy,
    classification_scores,
    decode,
    pooled_features,
    violation_rates,
)

T = TypeVar("T")
# The coherent heads that the weighters are compared with.
HEADS = {"single_path": "lookahead_softmax", "multi_path": "conditional_sigmoid"}
EPOCHS = {"clinc150": 8, "hwv_part": 40, "goemotions": 6, "cei": 30}
# Learning rates of projection and prototypes, tried with equal weights.
SINGLE_GRID = {"learning_rate": [1e-4, 1e-3], "prototype_learning_rate": [1e-3, 3e-3, 1e-2]}
MULTI_GRID = {"learning_rate": [1e-4, 1e-3], "prototype_learning_rate": [3e-3, 1e-2, 3e-2]}
# Weighters compared with the `independent` head and with fine-tuned encoders. The first is the reference.
MAIN = ("uniform", "hcal", "hcal_rate")
CURVE_DOCUMENTS = 1000
THRESHOLDS = np.geomspace(0.02, 0.9, 60)
FINETUNE_RATES = (5e-5, 1e-4)
FINETUNE_EPOCHS = 4
STRESS_RATES = (1e-2, 3e-2, 1e-1)
FINETUNE_BATCH = 64
# Labels of each level, and data of the synthetic hierarchies.
STRESS_LEVELS = (2, 4, 8, 16, 1024)
STRESS_SCALES = (0.35, 0.35, 0.35, 0.35, 1.0)
STRESS_FEATURES = 64
STRESS_DOCUMENTS = {"train": 8192, "validation": 1024, "test": 4096}
STRESS_STEPS = 384


def candidates(weighter: str, levels: int) -> list[dict[str, Any]]:
    """Returns the arguments that are tried for a weighter."""
    towards_leaves = list(range(1, levels + 1))
    grids: dict[str, list[dict[str, Any]]] = {
        "uniform": [{}],
        "fixed": [{"weights": towards_leaves}, {"weights": towards_leaves[::-1]}],
        "likelihood": [{}],
        "hcal": [{"gamma": gamma} for gamma in (0.1, 0.5, 2.0)],
        RELEASED: [{"gamma": 0.5}],
        "hcal_rate": [{"gamma": gamma} for gamma in (0.1, 0.5, 2.0)],
        "dwa": [{"temperature": temperature} for temperature in (0.5, 2.0)],
        "uncertainty": [{}, {"learning_rate": 1e-2}],
        "famo": [{"learning_rate": rate} for rate in (0.005, 0.025)],
        "gradnorm": [{"alpha": alpha} for alpha in (0.5, 1.5)],
    }
    return grids[weighter]


# HCAL's weights as released: gamma is not tuned.
RELEASED = "hcal, released"
WEIGHTERS = ("uniform", "fixed", "likelihood", "hcal", "hcal_rate", "dwa", "uncertainty", "famo", "gradnorm")


def train(
    model: HcalForSequenceClassification,
    training: Any,
    evaluation: Any,
    steps: int,
    weighting: tuple[str, dict[str, Any]],
    seed: int,
    processing_class: Any = None,
    curve_points: int = 20,
    **arguments: Any,
) -> list[tuple[int, float]]:
    """Trains a model and returns the curve of (step, micro-F1 on the evaluation documents)."""
    name, kwargs = weighting
    with tempfile.TemporaryDirectory() as folder:
        args = HcalTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            loss_weighting=name,
            loss_weighting_kwargs=kwargs,
            head_solver="optimizer",
            seed=seed,
            eval_strategy="steps",
            eval_steps=max(steps // curve_points, 1),
            logging_steps=steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            **arguments,
        )
        collator = (lambda batch: batch) if isinstance(training, Features) else None
        trainer = HcalTrainer(model, args, collator, training, evaluation, processing_class)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        history = trainer.state.log_history
    return [(entry["step"], entry["eval_micro_f1"]) for entry in history if "eval_micro_f1" in entry]


def steps_to_converge(curve: list[tuple[int, float]]) -> int:
    """Returns the first measured step with 95 % of the last score."""
    return next(step for step, score in curve if score >= 0.95 * curve[-1][1])


def scores_of(task: Task, logits: dict[str, torch.Tensor], split: str, head: str) -> dict[str, float]:
    """Returns the scores on a split in percent. Thresholds of multi_path data sets are chosen on the validation split."""
    truth = task.y[split].numpy() > 0
    partial = task.name in PARTIAL
    if task.label_mode == "single_path":
        sets = decode(logits[split], task.taxonomy, task.label_mode, partial_paths=partial, head=head)
        raw = decode(logits[split], task.taxonomy, task.label_mode, "raw", partial_paths=partial, head=head)
        scores = classification_scores(sets.numpy(), truth, task.taxonomy)
        leaf, macro = scores["leaf_accuracy"], scores["macro_f1"]
    else:
        probabilities = {name: torch.sigmoid(logits[name]) for name in (split, "validation")}
        thresholds = {
            metric: best_threshold(task, probabilities["validation"], metric) for metric in ("micro_f1", "macro_f1")
        }
        raw = probabilities[split] >= thresholds["micro_f1"]
        decoded = {
            metric: decode(logits[split], task.taxonomy, task.label_mode, "closure", threshold=threshold).numpy()
            for metric, threshold in thresholds.items()
        }
        scores = classification_scores(decoded["micro_f1"], truth, task.taxonomy)
        macro = classification_scores(decoded["macro_f1"], truth, task.taxonomy)["macro_f1"]
        leaves = np.asarray(task.taxonomy.is_leaf)
        predicted, true = decoded["micro_f1"][:, leaves], truth[:, leaves]
        leaf = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
    columns = {
        "leaf": leaf,
        "top level": scores["micro_f1_level_0"],
        "micro-F1": scores["micro_f1"],
        "macro-F1": macro,
    }
    return {**{name: 100 * float(value) for name, value in columns.items()}, "HVR raw": violating(raw, task)}


def violating(sets: torch.Tensor, task: Any) -> float:
    """Returns the percentage of documents with a label set that violates the hierarchy."""
    rates: dict[str, Any] = dict(violation_rates(sets.numpy(), task.taxonomy))
    return 100 * rates["hvr"]


def best_threshold(task: Any, probabilities: torch.Tensor, metric: str) -> float:
    """Returns the best common threshold of THRESHOLDS on the validation split, before ancestors are added."""
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


def total(scores: dict[str, float]) -> float:
    """Returns the score that is maximised on the validation split."""
    return scores["micro-F1"] + scores["macro-F1"]


def fit_frozen(
    task: Task, head: str, rates: dict[str, float], weighting: tuple[str, dict[str, Any]], seed: int
) -> tuple[dict[str, torch.Tensor], list[tuple[int, float]]]:
    """Trains a model. Returns the logits of the validation and test split, and the training curve."""
    torch.manual_seed(seed)
    model = make_model(task, {"head": head})
    model.encoder.requires_grad_(False)
    training = Features(task.x["train"], task.y["train"])
    some = np.random.default_rng(0).permutation(len(task.x["validation"]))[:CURVE_DOCUMENTS]
    validation = Features(task.x["validation"][some], task.y["validation"][some])
    steps = EPOCHS[task.name] * -(-len(training) // BATCH[task.name])
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": BATCH[task.name],
        "per_device_eval_batch_size": 1024,
        "weight_decay": 0.01,
        **rates,
    }
    curve = train(model, training, validation, steps, weighting, seed, **arguments)
    return logits_of(task, model), curve


def frozen(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compares weighters on frozen features of each data set."""
    for name in options.sets:
        task = Task(name, options.data_dir / name, options.encoder, options.cache)

        def score(
            head: str, rates: dict[str, float], weighting: tuple[str, dict[str, Any]], task: Task = task
        ) -> float:
            logits, _ = fit_frozen(task, head, rates, weighting, 0)
            return total(scores_of(task, logits, "validation", head))

        for head, weighters in ((HEADS[task.label_mode], WEIGHTERS), ("independent", MAIN)):
            grid = SINGLE_GRID if task.label_mode == "single_path" else MULTI_GRID
            settings = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
            rates = best((score(head, rates, ("uniform", {})), rates) for rates in settings)
            for weighter in options.weighters or weighters:
                tried = candidates(weighter, len(task.taxonomy.levels))
                kwargs = tried[0] if len(tried) == 1 else best((score(head, rates, (weighter, k)), k) for k in tried)
                for seed in range(options.seeds):
                    logits, curve = fit_frozen(task, head, rates, (weighter, kwargs), seed)
                    metrics = {**scores_of(task, logits, "test", head), "steps": steps_to_converge(curve)}
                    run = {"dataset": name, "head": head, "weighter": weighter, "seed": seed}
                    yield {"part": "frozen", **run, "chosen": {**rates, "own": kwargs}, "metrics": metrics}


def best(scored: Iterable[tuple[float, T]]) -> T:
    """Returns the value with the highest score."""
    return max(scored, key=lambda pair: pair[0])[1]


def synthetic(kind: str, seed: int) -> tuple[Taxonomy, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Generates documents of a tree in which the last level has many more labels than the others, and a much larger loss.

    A document's features [64] are the sum of noise and of one Gaussian vector for each node of its path. The vectors of the
    upper levels are shorter. With `large`, all levels can be learned. With `noisy`, half of the documents have a random
    sibling as their label on the last level, so the loss of this level stays large.
    """
    random = np.random.default_rng(seed)
    leaves = np.arange(STRESS_LEVELS[-1])
    paths = [leaves * size // STRESS_LEVELS[-1] for size in STRESS_LEVELS]
    names = [[f"{level}.{node}" for level, node in enumerate(path)] for path in zip(*paths)]
    taxonomy = Taxonomy.from_paths(names)
    ids = np.stack([taxonomy.encode([path]) for path in names])
    means = [random.normal(size=(size, STRESS_FEATURES)) for size in STRESS_LEVELS]
    siblings = STRESS_LEVELS[-1] // STRESS_LEVELS[-2]
    data = {}
    for split, size in STRESS_DOCUMENTS.items():
        leaf = random.integers(STRESS_LEVELS[-1], size=size)
        states = sum(scale * mean[path[leaf]] for scale, mean, path in zip(STRESS_SCALES, means, paths))
        states = states + random.normal(size=(size, STRESS_FEATURES))
        if kind == "noisy":
            moved = leaf // siblings * siblings + random.integers(siblings, size=size)
            leaf = np.where(random.random(size) < 0.5, moved, leaf)
        labels = torch.zeros(size, taxonomy.num_labels).scatter_(1, torch.from_numpy(ids[leaf]), 1.0)
        data[split] = (torch.tensor(states, dtype=torch.float32), labels)
    return taxonomy, data


def stressed(
    kind: str, head: str, weighting: tuple[str, dict[str, Any]], rate: float, seed: int, split: str
) -> dict[str, float]:
    """Returns the accuracy of each level's best label in percent, after a short training of a narrow projection."""
    taxonomy, data = synthetic(kind, seed)
    torch.manual_seed(seed)
    encoder = BertConfig(hidden_size=STRESS_FEATURES, num_hidden_layers=0, num_attention_heads=1, vocab_size=2)
    fields = {"label_mode": "single_path", "head": head, "projection_dim": 16}
    model = HcalForSequenceClassification(HcalConfig.from_taxonomy(taxonomy, encoder, **fields))
    model.encoder.requires_grad_(False)
    curve = train(
        model,
        Features(*data["train"]),
        Features(*data["validation"]),
        STRESS_STEPS,
        weighting,
        seed,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=1024,
        learning_rate=rate,
    )
    states, labels = data[split]
    with torch.no_grad():
        logits = model.eval()(pooled_states=states).logits
    metrics = {
        f"level {k}": 100 * (logits[:, level].argmax(1) == labels[:, level].argmax(1)).float().mean().item()
        for k, level in enumerate(taxonomy.levels)
    }
    metrics["mean"] = statistics.mean(metrics.values())
    raw = decode(logits, taxonomy, "single_path", "raw", head=head)
    violating: Any = violation_rates(raw.numpy(), taxonomy)["hvr"]
    return {**metrics, "HVR raw": 100 * violating, "steps": steps_to_converge(curve)}


def stress(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compares weighters on the synthetic hierarchies."""

    for kind, head in itertools.product(("large", "noisy"), ("independent", "lookahead_softmax")):

        def score(weighting: tuple[str, dict[str, Any]], rate: float, kind: str = kind, head: str = head) -> float:
            return stressed(kind, head, weighting, rate, 0, "validation")["mean"]

        rate = best((score(("uniform", {}), rate), rate) for rate in STRESS_RATES)
        for weighter in options.weighters or (*WEIGHTERS, RELEASED):
            tried, name = candidates(weighter, len(STRESS_LEVELS)), weighter.split(",")[0]
            kwargs = tried[0] if len(tried) == 1 else best((score((name, k), rate), k) for k in tried)
            for seed in range(options.seeds):
                metrics = stressed(kind, head, (name, kwargs), rate, seed, "test")
                run = {"dataset": kind, "head": head, "weighter": weighter, "seed": seed}
                yield {"part": "stress", **run, "chosen": {"rate": rate, "own": kwargs}, "metrics": metrics}


class FineTuning:
    """Trains the whole encoder on a data set in bfloat16, with the default gamma of each weighter."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.task = Task(name, options.data_dir / name, options.encoder, options.cache)
        self.encoder = options.encoder
        tokens = Tokens(name, options.data_dir / name, options.encoder)
        self.tokenizer, self.data = tokens.tokenizer, tokens.data
        self.curve_rows = self.data["validation"].shuffle(seed=0).select(range(CURVE_DOCUMENTS))

    def fit(self, weighter: str, rate: float, seed: int) -> tuple[dict[str, torch.Tensor], list[tuple[int, float]]]:
        """Trains a model. Returns the logits of the validation and test split, and the training curve."""
        torch.manual_seed(seed)
        task, label_mode = self.task, self.task.label_mode
        model = HcalForSequenceClassification.from_encoder(self.encoder, task.taxonomy, label_mode=label_mode)
        curve = train(
            model,
            self.data["train"],
            self.curve_rows,
            FINETUNE_EPOCHS * -(-len(self.data["train"]) // FINETUNE_BATCH),
            (weighter, {}),
            seed,
            processing_class=self.tokenizer,
            per_device_train_batch_size=FINETUNE_BATCH,
            per_device_eval_batch_size=250,
            train_sampling_strategy="group_by_length",
            bf16=True,
            learning_rate=rate,
            head_learning_rate=1e-3,
            prototype_learning_rate=3e-3,
            weight_decay=0.01,
            warmup_steps=0.1,
        )
        logits = {}
        for split in ("validation", "test"):
            states = pooled_features(model, self.data[split], self.tokenizer, batch_size=128)["pooled_states"][:]
            with torch.no_grad():
                logits[split] = model.eval()(pooled_states=torch.from_numpy(states).to(model.device)).logits.cpu()
        return logits, curve


def finetune(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compares weighters with the whole encoder trained."""
    for name in options.finetune_sets:
        tuning = FineTuning(name, options)
        task, head = tuning.task, HEADS[tuning.task.label_mode]
        equal_weights = {rate: tuning.fit("uniform", rate, 0) for rate in FINETUNE_RATES}
        rate = best(
            (total(scores_of(task, logits, "validation", head)), rate) for rate, (logits, _) in equal_weights.items()
        )
        for seed, weighter in itertools.product(range(options.finetune_seeds), options.weighters or MAIN):
            start = time.perf_counter()
            logits, curve = (
                equal_weights[rate] if (seed, weighter) == (0, "uniform") else tuning.fit(weighter, rate, seed)
            )
            metrics = {**scores_of(task, logits, "test", head), "steps": steps_to_converge(curve)}
            run = {"dataset": name, "head": head, "weighter": weighter, "seed": seed}
            chosen = {"learning_rate": rate, "own": {}}
            seconds = round(time.perf_counter() - start, 1)
            yield {"part": "finetune", **run, "chosen": chosen, "metrics": metrics, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"frozen": frozen, "stress": stress, "finetune": finetune}
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"experiments: {', '.join(parts)}")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--sets", nargs="+", default=["clinc150", "hwv_part", "goemotions", "cei"])
    parser.add_argument("--finetune_sets", nargs="+", default=["clinc150"])
    parser.add_argument(
        "--weighters", nargs="+", default=None, choices=(*WEIGHTERS, RELEASED), help="by default all of the experiment"
    )
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--finetune_seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--output", type=Path, default=ROWS / "weighting.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="write the tables of --output into the page")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for part in options.parts:
        if part not in parts:
            parser.error(f"There is no experiment {part!r}. Choose from {', '.join(parts)}.")
    for part in options.parts:
        for entry in parts[part](options):
            append_line(options.output, entry)
    if options.tables:
        write_page(PAGES / "weighting.md", weighting_tables(read_lines(options.output)))


if __name__ == "__main__":
    main()
