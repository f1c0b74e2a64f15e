"""Fine-tuned encoders, ours and flat: python recipes/benchmarks/finetune.py --data_dir DIR --sets goemotions clinc150

Each method trains the whole encoder at each learning rate of --rates and each of --head_rates (of what is new; our
prototypes have three times that) with the first seed, chooses on the validation split and trains with the other seeds.
--fp32: not in bfloat16, which processors without it compute many times slower. Logits of validation and test are kept in
--cache, and a run that is there is not repeated. The rows go into --results; results.py writes the tables.
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
from baselines import closure_of
from datasets import DatasetDict
from frozen import ANCHORS, DEFAULT_HEADS, LINEAR
from results import Row, store
from scoring import Outputs, Problem, answers_of, scores, selection_score
from tasks import (
    ENCODER,
    PARTIAL,
    SINGLE_PATH,
    SPLITS,
    add_options,
    kept_rows,
    multi_hot,
    sample_each_leaf,
    taxonomy_of,
)
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from hcal_hf import (
    HcalDataCollator,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    encode_dataset,
)
from hcal_hf.commands.train import DataArguments, load_data

RATES = (1e-4, 2e-4)
EPOCHS = 4
BATCH = 64
MAX_LENGTHS = {"hwv_part": 256, "cei": 256}
# Of what is trained from scratch: our projection, the flat classifiers' layer; our prototypes have a multiple of it.
HEAD_RATE = 1e-3
PROTOTYPES = 3
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "single_path": {
        "lookahead_softmax": {},
        "lookahead_softmax + anchors": ANCHORS,
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
    },
}
METHODS = {
    "single_path": ("flat BCE", "flat softmax over leaves", "one softmax a level", "lookahead_softmax"),
    "multi_path": ("flat BCE", "lookahead_sigmoid + anchors", "lookahead_sigmoid + anchors, likelihood"),
}
# Our class in the place of a baseline.
PER_LEVEL = {"one softmax a level": {"head": "independent"}}
STOCK = "AutoModelForSequenceClassification"
FLAT = {"single_path": ("flat BCE", "flat softmax over leaves", STOCK), "multi_path": ("flat BCE", STOCK)}


class Tokens:
    """A data set as token ids and labels; with `per_leaf`, only so many training documents of each leaf."""

    def __init__(self, name: str, folder: Path, encoder: str, per_leaf: int | None = None, seed: int = 0):
        self.name, self.encoder = name, encoder
        self.taxonomy = taxonomy_of(name, folder)
        self.label_mode: Any = "single_path" if name in SINGLE_PATH else "multi_path"
        self.tokenizer = AutoTokenizer.from_pretrained(encoder)
        rows = load_data(DataArguments(data_dir=str(folder)))
        keep = kept_rows(name, rows)
        if per_leaf is not None:
            truth = multi_hot(rows["train"], keep["train"], self.taxonomy)
            chosen = sample_each_leaf(truth, self.taxonomy, per_leaf, seed)
            keep["train"] = [keep["train"][row] for row in chosen]
        rows = DatasetDict({s: rows[s].select(keep[s]) for s in SPLITS})
        truth = {s: multi_hot(rows[s], list(range(len(rows[s]))), self.taxonomy) for s in SPLITS[1:]}
        self.problem = Problem(self.taxonomy, self.label_mode, name in PARTIAL, truth)
        self.texts = {s: rows[s]["text"][:] for s in SPLITS}
        how: dict[str, Any] = {"label_mode": self.label_mode, "max_length": MAX_LENGTHS.get(name, 64)}
        self.data = encode_dataset(rows, self.taxonomy, self.tokenizer, **how)


@dataclass(frozen=True)
class Setting:
    """How a run is trained; `str()` of it names the run's files."""

    rate: float
    head_rate: float
    epochs: float
    bf16: bool

    def __str__(self) -> str:
        head_rate = "" if self.head_rate == HEAD_RATE else f"-head{self.head_rate:g}"
        return f"{self.rate:g}{head_rate}-{self.epochs:g}{'' if self.bf16 else '-fp32'}"


def arguments_of(folder: str, setting: Setting, seed: int) -> dict[str, Any]:
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
    fields = dict(fields)
    weighting = fields.pop("weighting", "uniform")
    model = HcalForSequenceClassification.from_encoder(
        tokens.encoder, tokens.taxonomy, **{"label_mode": tokens.label_mode, **fields}
    )
    args = HcalTrainingArguments(
        **arguments_of(folder, setting, seed),
        head_learning_rate=setting.head_rate,
        prototype_learning_rate=PROTOTYPES * setting.head_rate,
        loss_weighting=weighting,
    )
    return HcalTrainer(model, args, None, tokens.data["train"], None, tokens.tokenizer)


class FlatCollator:
    """Batches of HcalDataCollator with the labels of transformers' own classifier: multi-hot, or the leaf's index."""

    def __init__(self, tokens: Tokens, leaves: np.ndarray | None):
        self.inner = HcalDataCollator(tokens.tokenizer, tokens.taxonomy)
        self.leaf_index = None
        if leaves is not None:
            self.leaf_index = torch.zeros(tokens.taxonomy.num_labels, dtype=torch.long)
            self.leaf_index[torch.from_numpy(leaves)] = torch.arange(len(leaves))
            self.leaves = torch.from_numpy(leaves)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = dict(self.inner(rows))
        batch = {
            name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "labels") if name in batch
        }
        batch["labels"] = batch["labels"].float()
        if self.leaf_index is not None:
            batch["labels"] = batch["labels"][:, self.leaves].argmax(dim=1)
        return batch


class FlatClassifier(nn.Module):
    """The same encoder and mean pooling as ours, and one linear layer with binary cross-entropy over all labels, or softmax
    over the leaves: what can be done without a hierarchy."""

    def __init__(self, encoder: str, num_labels: int, over_leaves: bool):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(encoder)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(self.encoder.config.hidden_size, num_labels)
        self.loss: nn.Module = nn.CrossEntropyLoss() if over_leaves else nn.BCEWithLogitsLoss()

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(states.dtype)
        logits = self.classifier(self.dropout((states * mask).sum(dim=1) / mask.sum(dim=1))).float()
        return {"logits": logits} if labels is None else {"loss": self.loss(logits, labels), "logits": logits}


def trainer_of_flat(tokens: Tokens, method: str, folder: str, setting: Setting, seed: int) -> Any:
    """Flat baselines with transformers' Trainer. The stock model is trained as it is, with one learning rate."""
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
    """Logits of validation and test, and what the run took; the model goes into the folder `keep`."""
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
        # Grouping by length would also shuffle what is predicted.
        trainer.args.train_sampling_strategy = "random"
        for split in SPLITS[1:]:
            data = tokens.data[split]  # by falling length, so that batches have little padding
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
    """Trains a method, or takes the logits of an earlier run of it."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.options = name, options
        self.known: dict[int, Tokens] = {}

    def tokens(self, seed: int) -> Tokens:
        """The documents; with --per_leaf others for each seed."""
        options, seed = self.options, seed if self.options.per_leaf is not None else 0
        if seed not in self.known:
            self.known[seed] = Tokens(self.name, options.data_dir / self.name, options.encoder, options.per_leaf, seed)
        return self.known[seed]

    def __call__(self, method: str, setting: Setting, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        options = self.options
        size = "" if options.per_leaf is None else f"-{options.per_leaf}"
        stem = f"{self.name}{size}-{method}-{seed}-{setting}".replace(" ", "_")
        path = options.cache / "finetune" / f"{stem}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            logits, info = fit(self.tokens(seed), method, setting, seed, path.with_suffix(""))
            np.savez_compressed(path, **logits)  # type: ignore[arg-type]
            path.with_suffix(".json").write_text(json.dumps(info))
            print(path.stem, info, flush=True)
        with np.load(path) as stored:
            return {split: stored[split] for split in SPLITS[1:]}, json.loads(path.with_suffix(".json").read_text())


def readings(method: str, logits: dict[str, np.ndarray], problem: Problem) -> dict[str, Outputs]:
    """The rows that are read from a run."""
    taxonomy = problem.taxonomy
    if method == "flat softmax over leaves":
        leaves, closure = np.flatnonzero(taxonomy.is_leaf), closure_of(taxonomy)
        return {method: Outputs({split: closure[leaves[values.argmax(axis=1)]] for split, values in logits.items()})}
    if method in ("flat BCE", STOCK):
        return {
            f"{method}, tuned thresholds": Outputs(logits, "independent", "thresholds"),
            f"{method}, ancestors closed": Outputs(logits, "independent", "decoded"),
        }
    if method in PER_LEVEL:
        return {method: Outputs(logits, "independent", "levels")}
    return {method: Outputs(logits, DEFAULT_HEADS[problem.label_mode], "decoded")}


def rows_of(runs: Runs, method: str, options: argparse.Namespace) -> None:
    """Chooses the learning rates of each row with the first seed and stores the rows of all seeds."""
    first = options.seeds[0]
    problem = runs.tokens(first).problem
    has_head_rate = method != STOCK
    settings = [
        Setting(rate, head_rate, options.epochs, not options.fp32)
        for rate, head_rate in itertools.product(options.rates, options.head_rates if has_head_rate else [HEAD_RATE])
    ]
    tuned = {setting: readings(method, runs(method, setting, first)[0], problem) for setting in settings}
    for name in tuned[settings[0]]:
        setting = max(settings, key=lambda setting: selection_score(tuned[setting][name], problem))
        for seed in options.seeds:
            logits, info = runs(method, setting, seed)
            answers = answers_of(readings(method, logits, problem)[name], problem)
            chosen = {"learning_rate": setting.rate}
            facts: dict[str, Any] = {"chosen": chosen, "rates": list(options.rates), "epochs": options.epochs}
            if has_head_rate:
                chosen["head_learning_rate"], facts["head_rates"] = setting.head_rate, list(options.head_rates)
            if options.fp32:
                facts["precision"] = "float32"
            measured = ("train_seconds", "documents_per_second", "parameters", "device", "threads")
            row = Row(
                dataset=runs.name,
                method=name,
                regime="fine-tuned" if options.per_leaf is None else "few-shot",
                seed=seed,
                ours=method in OURS[problem.label_mode],
                metrics=scores(answers, problem),
                facts={**facts, "encoder": ENCODER, **{fact: info[fact] for fact in measured}},
                per_leaf=options.per_leaf,
            )
            store(row, answers, options.results, options.cache)
            print(row.dataset, name, seed, setting, row.metrics, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--sets", nargs="+", default=["goemotions", "clinc150"])
    parser.add_argument("--methods", nargs="+", default=None, help="flat ones and ours; all of METHODS by default")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument(
        "--head_rates", nargs="+", type=float, default=[HEAD_RATE], help="of what is trained from scratch"
    )
    parser.add_argument("--fp32", action="store_true", help="for processors without bfloat16")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--per_leaf", type=int, default=None, help="training documents of each leaf; all by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.sets:
        runs = Runs(name, options)
        for method in options.methods or METHODS[runs.tokens(options.seeds[0]).label_mode]:
            rows_of(runs, method, options)


if __name__ == "__main__":
    main()
