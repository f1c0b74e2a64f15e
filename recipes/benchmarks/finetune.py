"""Fine-tunes encoders with our heads and with flat classifiers.

    python recipes/benchmarks/finetune.py --data_dir DIR --sets goemotions clinc150

Each method trains the whole encoder at each learning rate of --rates and --head_rates with the first seed. The best
rates on the validation split are used for the other seeds. --head_rates are the rates of new layers. Our prototypes
have three times that rate. With --fp32 models are trained in float32, because bfloat16 is many times slower on
processors without it. The logits of validation and test are kept in --cache, and a run that is found there is not
repeated. Rows are stored in --results. results.py writes the tables.
"""

import argparse
import itertools
import json
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import FlatClassifier, FlatCollator, path_sets
from data import ENCODER, SPLITS, Tokens, add_options
from models import ANCHORS, DEFAULT_HEADS, LINEAR
from result_rows import Row, store
from scoring import Outputs, Problem, label_sets_of, scores, selection_score
from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

from hcal_hf import HcalForSequenceClassification, HcalTrainer, HcalTrainingArguments, add_lexical_features

RATES = (1e-4, 2e-4)
EPOCHS = 4
BATCH = 64
# Learning rate of new layers: our projection and the layer of flat classifiers. Our prototypes have a multiple of it.
HEAD_RATE = 1e-3
PROTOTYPE_FACTOR = 3
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "single_path": {
        "lookahead_softmax": {},
        "lookahead_softmax + anchors": ANCHORS,
        "lookahead_softmax + anchors, lexical": {**ANCHORS, "lexical": True},
        "lookahead_softmax + hjcl": {"contrast": "hjcl"},
        "lookahead_softmax + hjcl, instances": {"contrast": "hjcl", "contrast_kwargs": {"label_weight": 0}},
        "lookahead_softmax + hyperbolic": {"geometry": "hyperbolic", "score_function": "linear"},
    },
    "multi_path": {
        "lookahead_sigmoid + anchors": {"head": "lookahead_sigmoid", **ANCHORS},
        "conditional_sigmoid + anchors": {"head": "conditional_sigmoid", **ANCHORS},
        "lookahead_sigmoid, linear + anchors": {"head": "lookahead_sigmoid", **LINEAR, **ANCHORS},
        "lookahead_sigmoid + anchors, likelihood": {
            "head": "lookahead_sigmoid",
            **ANCHORS,
            "weighting": "likelihood",
        },
        "lookahead_sigmoid + anchors, lexical": {"head": "lookahead_sigmoid", **ANCHORS, "lexical": True},
        "lookahead_sigmoid + anchors, hjcl": {"head": "lookahead_sigmoid", **ANCHORS, "contrast": "hjcl"},
        "lookahead_sigmoid + anchors, asl": {"head": "lookahead_sigmoid", **ANCHORS, "classification_loss": "asl"},
        "lookahead_sigmoid, hyperbolic": {"head": "lookahead_sigmoid", **LINEAR, "geometry": "hyperbolic"},
    },
}
METHODS = {
    "single_path": ("flat BCE", "flat softmax over leaves", "one softmax per level", "lookahead_softmax"),
    "multi_path": ("flat BCE", "lookahead_sigmoid + anchors", "lookahead_sigmoid + anchors, likelihood"),
}
# Baselines that use our model class.
PER_LEVEL = {"one softmax per level": {"head": "independent"}}
STOCK = "AutoModelForSequenceClassification"
FLAT = {"single_path": ("flat BCE", "flat softmax over leaves", STOCK), "multi_path": ("flat BCE", STOCK)}


@dataclass(frozen=True)
class Setting:
    """The hyperparameters of a run. `str()` returns the name of the run's files."""

    rate: float
    head_rate: float
    epochs: float
    bf16: bool

    def __str__(self) -> str:
        head_rate = "" if self.head_rate == HEAD_RATE else f"-head{self.head_rate:g}"
        return f"{self.rate:g}{head_rate}-{self.epochs:g}{'' if self.bf16 else '-fp32'}"


def arguments_of(folder: str, setting: Setting, seed: int) -> dict[str, Any]:
    """Returns the training arguments that all methods share."""
    return {
        "output_dir": folder,
        "num_train_epochs": setting.epochs,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 256,
        "train_sampling_strategy": "group_by_length",
        "bf16": setting.bf16,
        "learning_rate": setting.rate,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "seed": seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 100,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def trainer_of_ours(tokens: Tokens, fields: dict[str, Any], folder: str, setting: Setting, seed: int) -> Any:
    """Builds the Trainer of one of our methods."""
    fields = dict(fields)
    weighting, is_lexical = fields.pop("weighting", "uniform"), fields.pop("lexical", False)
    model = HcalForSequenceClassification.from_encoder(
        tokens.encoder,
        tokens.taxonomy,
        descriptions=tokens.descriptions if fields.get("prototype_anchor") else None,
        **{"label_mode": tokens.label_mode, **fields},
    )
    if is_lexical:
        add_lexical_features(model, tokens.data["train"], tokens.tokenizer)
    args = HcalTrainingArguments(
        **arguments_of(folder, setting, seed),
        head_learning_rate=setting.head_rate,
        prototype_learning_rate=PROTOTYPE_FACTOR * setting.head_rate,
        loss_weighting=weighting,
    )
    return HcalTrainer(model, args, None, tokens.data["train"], None, tokens.tokenizer)


def trainer_of_flat(tokens: Tokens, method: str, folder: str, setting: Setting, seed: int) -> Any:
    """Builds the Trainer of a flat baseline. The stock model is trained with one learning rate for all layers."""
    over_leaves = "leaves" in method
    leaves = np.flatnonzero(tokens.taxonomy.is_leaf) if over_leaves else None
    number = tokens.taxonomy.num_labels if leaves is None else len(leaves)
    args = TrainingArguments(**arguments_of(folder, setting, seed), label_names=["labels"])
    data, collator = tokens.data["train"], FlatCollator(tokens, leaves)
    if method == STOCK:
        stock = AutoModelForSequenceClassification.from_pretrained(
            tokens.encoder, num_labels=number, problem_type="multi_label_classification"
        )
        return Trainer(stock, args, collator, data, None, tokens.tokenizer)
    model = FlatClassifier(tokens.encoder, number, over_leaves)
    groups: list[dict[str, Any]] = [
        {"params": list(model.encoder.parameters())},
        {"params": list(model.classifier.parameters()), "lr": setting.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=setting.rate, weight_decay=0.01, fused=True)
    return Trainer(model, args, collator, data, None, tokens.tokenizer, optimizers=(optimizer, None))


def fit(
    tokens: Tokens, method: str, setting: Setting, seed: int, keep: Path | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Trains a model. Returns the logits of validation and test, and the times. Saves the model to the folder `keep`."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        if method in FLAT[tokens.label_mode]:
            trainer = trainer_of_flat(tokens, method, folder, setting, seed)
        else:
            fields = (OURS[tokens.label_mode] | PER_LEVEL)[method]
            trainer = trainer_of_ours(tokens, fields, folder, setting, seed)
        trainer.remove_callback(PrinterCallback)
        start = time.process_time()
        trainer.train()
        trained = time.process_time()
        if keep is not None:
            trainer.save_model(str(keep))
            trainer.state.save_to_json(str(keep / "trainer_state.json"))
        logits = {}
        # Grouping by length would shuffle the predictions.
        trainer.args.train_sampling_strategy = "random"
        for split in SPLITS[1:]:
            data = tokens.data[split]
            # Longest first, so that batches have little padding.
            order = np.argsort([-len(ids) for ids in data["input_ids"]], kind="stable")
            began = time.process_time()
            predicted = trainer.predict(data.select(order)).predictions
            predicted = predicted[0] if isinstance(predicted, tuple) else predicted
            seconds = time.process_time() - began
            logits[split] = np.empty_like(predicted)
            logits[split][order] = predicted
        info = {
            "train_seconds": round(trained - start, 1),
            "documents_per_second": round(len(tokens.data["test"]) / seconds, 1),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
            "threads": torch.get_num_threads(),
        }
    return logits, info


class Runs:
    """Trains methods, or reads the logits of earlier runs."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.options = name, options
        self._tokens: dict[int, Tokens] = {}

    def tokens(self, seed: int) -> Tokens:
        """Returns the documents. With --per_leaf there is another sample for each seed."""
        options, seed = self.options, seed if self.options.per_leaf is not None else 0
        if seed not in self._tokens:
            folder = options.data_dir / self.name
            self._tokens[seed] = Tokens(self.name, folder, options.encoder, options.per_leaf, seed)
        return self._tokens[seed]

    def __call__(self, method: str, setting: Setting, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        options = self.options
        size = "" if options.per_leaf is None else f"-{options.per_leaf}"
        stem = f"{self.name}{size}-{method}-{seed}-{setting}".replace(" ", "_")
        path = options.cache / "finetune" / f"{stem}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            logits, info = fit(self.tokens(seed), method, setting, seed, path.with_suffix(""))
            np.savez_compressed(path, **logits)  # type: ignore[arg-type]
            path.with_suffix(".json").write_text(json.dumps(info), encoding="utf-8")
            print(path.stem, info, flush=True)
        with np.load(path) as stored:
            return {split: stored[split] for split in SPLITS[1:]}, json.loads(
                path.with_suffix(".json").read_text(encoding="utf-8")
            )


def outputs_of(method: str, logits: dict[str, np.ndarray], problem: Problem) -> dict[str, Outputs]:
    """Returns the outputs of each row of a run. A flat classifier has one row per way to decode."""
    taxonomy = problem.taxonomy
    if method == "flat softmax over leaves":
        leaves = np.flatnonzero(taxonomy.is_leaf)
        sets = {split: path_sets(leaves[values.argmax(axis=1)], taxonomy) for split, values in logits.items()}
        return {method: Outputs(sets)}
    if method in ("flat BCE", STOCK):
        return {
            f"{method}, tuned thresholds": Outputs(logits, "independent", "thresholds"),
            f"{method}, ancestors closed": Outputs(logits, "independent", "decoded"),
        }
    if method in PER_LEVEL:
        return {method: Outputs(logits, "independent", "levels")}
    return {method: Outputs(logits, DEFAULT_HEADS[problem.label_mode], "decoded")}


def rows_of(runs: Runs, method: str, options: argparse.Namespace) -> None:
    """Chooses the learning rates of each row with the first seed, then stores the rows of all seeds."""
    first = options.seeds[0]
    problem = runs.tokens(first).problem
    has_head_rate = method != STOCK
    settings = [
        Setting(rate, head_rate, options.epochs, not options.fp32)
        for rate, head_rate in itertools.product(options.rates, options.head_rates if has_head_rate else [HEAD_RATE])
    ]
    tuned = {setting: outputs_of(method, runs(method, setting, first)[0], problem) for setting in settings}
    for name in tuned[settings[0]]:
        setting = max(settings, key=lambda setting: selection_score(tuned[setting][name], problem))
        for seed in options.seeds:
            logits, info = runs(method, setting, seed)
            label_sets = label_sets_of(outputs_of(method, logits, problem)[name], problem)
            chosen = {"learning_rate": setting.rate}
            facts: dict[str, Any] = {"chosen": chosen, "rates": list(options.rates), "epochs": options.epochs}
            if has_head_rate:
                chosen["head_learning_rate"], facts["head_rates"] = setting.head_rate, list(options.head_rates)
            if options.fp32:
                facts["precision"] = "float32"
            run_facts = ("train_seconds", "documents_per_second", "parameters", "device", "threads")
            row = Row(
                dataset=runs.name,
                method=name,
                regime="fine-tuned" if options.per_leaf is None else "few-shot",
                seed=seed,
                ours=method in OURS[problem.label_mode],
                metrics=scores(label_sets, problem),
                facts={**facts, "encoder": ENCODER, **{fact: info[fact] for fact in run_facts}},
                per_leaf=options.per_leaf,
            )
            store(row, label_sets, options.results, options.cache)
            print(row.dataset, name, seed, setting, row.metrics, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--sets", nargs="+", default=["goemotions", "clinc150"])
    parser.add_argument("--methods", nargs="+", default=None, help="by default all in METHODS")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument(
        "--head_rates", nargs="+", type=float, default=[HEAD_RATE], help="learning rates of new layers"
    )
    parser.add_argument("--fp32", action="store_true", help="train in float32")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument(
        "--per_leaf", type=int, default=None, help="number of training documents per leaf; by default all"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.sets:
        runs = Runs(name, options)
        for method in options.methods or METHODS[runs.tokens(options.seeds[0]).label_mode]:
            rows_of(runs, method, options)


if __name__ == "__main__":
    main()
