"""Measures models that are trained on a few documents per leaf, with the label text and without.

    python recipes/benchmarks/few_labels.py --data_dir DIR --set clinc150 --per_leaf 5 --methods adapted frozen fixed
    python recipes/benchmarks/few_labels.py --tables

Methods:

- adapted: the label text adapted to the sample and to the unlabelled texts of the whole training split (`adapt`).
- frozen: the head on frozen features, fitted by L-BFGS. C and the use of the label text are chosen on the validation split.
- fixed, untrained, each epoch, rolling, joint: fine-tuning with prototypes that are anchored to the label text. It is
  embedded at the start; at the start, and for labels without training documents after training (as HcalTrainer does); at
  the start of each epoch; for 16 labels before each step, one after the other; or with a gradient in each step, for the
  labels of the batch and 16 others.
- no label text: fine-tuning with free prototypes.
- fine-tuned, adapted: as untrained. Then a zero-shot model with the trained encoder is adapted to the sample and to the
  unlabelled texts.

With --without, some random leaves have no training document, and the share of right paths among their documents is stored
too. Fine-tuned models have the settings of `hcal train` for few documents; --epochs changes the number of epochs. Rows are
stored in rows/few_labels.jsonl, and the tables of pages/few_labels.md are written from them.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import ENCODER, Tokens
from result_rows import ROWS, append_line, read_lines
from tables import PAGES, markdown, write_page
from transformers import PrinterCallback, TrainerCallback

from hcal_hf import (
    Decision,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    adapt,
    classification_scores,
    pooled_features,
    solve,
)
from hcal_hf.training.regime import FINE_TUNING_FEW
from hcal_hf.training.solver import feature_tensors

RESULTS = ROWS / "few_labels.jsonl"
PAGE = PAGES / "few_labels.md"
FINE_TUNED = {
    "no label text": "fine-tuned, without label text",
    "each epoch": "fine-tuned, label text embedded again each epoch",
    "fixed": "fine-tuned, label text embedded once",
    "untrained": "fine-tuned, label text embedded once, and after training for labels without documents",
    "rolling": "fine-tuned, label text embedded step by step",
    "joint": "fine-tuned, label text trained too",
}
BOTH = "fine-tuned, adapted"
NAMES = {
    "adapted": "adapted label text",
    "frozen": "frozen encoder",
    **FINE_TUNED,
    BOTH: "fine-tuned, then label text adapted with the trained encoder",
}
# More documents per leaf than any data set has.
EVERY = 1000
# Labels that are embedded in each step, in addition to those of the batch.
LABELS_PER_STEP = 16


class Sample:
    """A few documents per leaf, the label texts, and the encoder.

    Args:
        options: the options of the command line.
        seed: draws the documents.

    Attributes:
        trained, training_seconds: the encoder of the last model of the method "untrained", and how long it was trained.
    """

    trained: Any

    def __init__(self, options: argparse.Namespace, seed: int):
        folder = options.data_dir / options.set
        self.tokens = Tokens(options.set, folder, options.encoder, options.per_leaf, seed)
        self.leaves_without = self._leave_out(options.without)
        self.unlabelled = Tokens(options.set, folder, options.encoder).texts["train"]
        self.seed, self.epochs, self.taxonomy = seed, options.epochs, self.tokens.taxonomy
        self.trained, self.training_seconds = None, 0.0
        path = folder / "descriptions.json"
        self.descriptions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _leave_out(self, number: int) -> np.ndarray:
        """Removes the training documents of random leaves. Returns these leaves."""
        leaves = np.flatnonzero(self.tokens.taxonomy.is_leaf)
        chosen = np.random.default_rng(0).permutation(leaves)[:number]
        kept = [
            i
            for i, nodes in enumerate(self.tokens.data["train"]["labels"][:])
            if nodes[-1] not in set(chosen.tolist())
        ]
        self.tokens.data["train"] = self.tokens.data["train"].select(kept)
        self.tokens.texts["train"] = [self.tokens.texts["train"][i] for i in kept]
        return chosen

    def fit(self, method: str) -> HcalForSequenceClassification:
        """Builds and trains a model."""
        torch.manual_seed(self.seed)
        if method == "adapted":
            return self._adapt(self.tokens.encoder)
        if method == BOTH:
            if self.trained is None:
                self._fine_tune("untrained")
            assert self.trained is not None
            return self._adapt(self.trained)
        return self._solve() if method == "frozen" else self._fine_tune(method)

    def _adapt(self, encoder: Any) -> HcalForSequenceClassification:
        tokens = self.tokens
        tokens.tokenizer.model_max_length = 64
        if not isinstance(encoder, str):  # read again, so that it is not shared with the trained model
            with tempfile.TemporaryDirectory() as folder:
                encoder.save_pretrained(folder)
                tokens.tokenizer.save_pretrained(folder)
                return self._adapt(folder)
        model = HcalForSequenceClassification.zero_shot(encoder, self.taxonomy, self.descriptions)
        labels = [self.taxonomy.decode(nodes) for nodes in tokens.data["train"]["labels"][:]]
        adapt(model, tokens.tokenizer, self.unlabelled, labelled_texts=tokens.texts["train"], labels=labels)
        return model

    def _solve(self) -> HcalForSequenceClassification:
        model = self._build(score_function="linear", prototype_anchor="label_text", descriptions=self.descriptions)
        data = {s: pooled_features(model, self.tokens.data[s], self.tokens.tokenizer) for s in ("train", "validation")}
        solve(model, feature_tensors(data["train"]), feature_tensors(data["validation"]))
        return model

    def _fine_tune(self, method: str) -> HcalForSequenceClassification:
        if method == "no label text":
            model = self._build()
        else:
            model = self._build(prototype_anchor="label_text", descriptions=self.descriptions)
        with tempfile.TemporaryDirectory() as folder:
            settings = {**FINE_TUNING_FEW, "num_train_epochs": self.epochs, "eval_strategy": "no"}
            args = HcalTrainingArguments(
                folder,
                **settings,
                seed=self.seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            trainer = LabelTextTrainer(model, args, None, self.tokens.data["train"], None, self.tokens.tokenizer)
            trainer.remove_callback(PrinterCallback)
            trainer.embed_method = method
            if method == "each epoch":
                trainer.add_callback(EachEpoch(trainer))
            start = time.process_time()
            trainer.train()
        if method == "untrained":  # its encoder is used again
            self.trained, self.training_seconds = model.encoder, time.process_time() - start
        if method in ("each epoch", "rolling", "joint"):  # labels that no step has embedded lately
            model.embed_labels(self.tokens.tokenizer)
        return model

    def _build(self, **fields: Any) -> HcalForSequenceClassification:
        return HcalForSequenceClassification.from_encoder(
            self.tokens.encoder, self.taxonomy, label_mode="single_path", **fields
        )

    @torch.no_grad()
    def score(self, model: HcalForSequenceClassification, split: str) -> dict[str, float]:
        """Scores a model on the documents of a split."""
        model.eval()
        states = feature_tensors(pooled_features(model, self.tokens.data[split], self.tokens.tokenizer))[0]
        logits = torch.cat([model(pooled_states=chunk).logits for chunk in states.split(256)])
        sets = Decision.from_config(model.config).decode(logits, self.taxonomy).numpy()
        truth = self.tokens.problem.truth[split]
        found = classification_scores(sets, truth, self.taxonomy)
        right = (sets == truth).all(axis=1)
        result = {"whole_path": float(right.mean()), "micro_f1": found["micro_f1"], "macro_f1": found["macro_f1"]}
        if len(self.leaves_without):
            result["path_without"] = float(right[truth[:, self.leaves_without].any(axis=1)].mean())
        return result


class EachEpoch(TrainerCallback):
    """Embeds all label text at the start of each epoch but the first."""

    def __init__(self, trainer: HcalTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self.trainer.unwrapped_model.embed_labels(self.trainer.processing_class)


class LabelTextTrainer(HcalTrainer):
    """Embeds label texts before each step, without a gradient (rolling) or with one (joint)."""

    embed_method = "fixed"
    _position = 0

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if model.training and self.embed_method in ("rolling", "joint"):
            self._embed(inputs["labels"])
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _embed_untrained_labels(self) -> None:
        if self.embed_method == "untrained":
            super()._embed_untrained_labels()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        if self.embed_method == "joint":
            prototypes = self.unwrapped_model.prototypes
            prototypes.anchors = prototypes.anchors.detach()
        return loss

    def _embed(self, labels: torch.Tensor) -> None:
        model = self.unwrapped_model
        prototypes, number = model.prototypes, len(model.taxonomy)
        if self.embed_method == "rolling":
            rows = (self._position + torch.arange(min(LABELS_PER_STEP, number))) % number
            self._position = int(rows[-1]) + 1
        else:
            positive = labels.nonzero()[:, 1] if labels.is_floating_point() else labels[labels >= 0]
            rows = torch.unique(torch.cat([positive, torch.randperm(number)[:LABELS_PER_STEP]]))
        label_texts = model.config.label_texts or []
        texts = [label_texts[row] for row in rows.tolist()]
        batch = self.processing_class(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.set_grad_enabled(self.embed_method == "joint"):
            model.train(self.embed_method == "joint")
            states = model.pool(model.encoder(**batch).last_hidden_state, batch["attention_mask"])
            model.train()
        prototypes.anchors = prototypes.anchors.detach().index_copy(0, rows, states)


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Formats the rows as Markdown: one table per split, methods by data set and number of documents, in percent."""
    found = {}
    for split in ("validation", "test"):
        of_split = [row for row in rows if row["split"] == split]
        columns = list(dict.fromkeys(map(_column, of_split)))
        lines = []
        for method, name in NAMES.items():
            cells = [_cell([row for row in of_split if _column(row) == key], method) for key in columns]
            if any(cells):
                lines.append([name, *cells])
        header = [
            (f"{name}, {number} per leaf" if number < EVERY else f"{name}, all documents")
            + (f", {without} leaves without" if without else "")
            for name, number, _, without in columns
        ]
        found[split] = "\n".join(markdown(("method", *header), lines))
    return found


def _column(row: dict[str, Any]) -> tuple[str, int, float, int]:
    return row["set"], row["per_leaf"], row["epochs"], row["without"]


def _cell(rows: list[dict[str, Any]], method: str) -> str:
    """Formats mean and standard deviation over the seeds, and the mean over leaves without training documents."""
    rows = [row for row in rows if row["method"] == method]
    if not rows:
        return ""
    values = [100 * row["whole_path"] for row in rows]
    text = f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")
    unseen = [100 * row["path_without"] for row in rows if "path_without" in row]
    return f"{text} ({np.mean(unseen):.1f})" if unseen else text


def main() -> None:
    """Runs the methods that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="folder with one folder per data set")
    parser.add_argument("--set", default="clinc150", choices=["clinc150", "naics2012", "hwv_part"])
    parser.add_argument("--per_leaf", type=int, default=5, help="number of training documents per leaf")
    parser.add_argument("--without", type=int, default=0, help="number of leaves without training documents")
    parser.add_argument("--methods", nargs="+", default=["adapted", "frozen", "fixed"], choices=list(NAMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=float, default=FINE_TUNING_FEW["num_train_epochs"])
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    parser.add_argument("--encoder", default=ENCODER, help="name on the Hub or folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows")
    parser.add_argument("--tables", action="store_true", help="only write the page from the stored rows")
    args = parser.parse_args()
    if args.tables:
        write_page(PAGE, tables(read_lines(args.results)))
        return
    if args.data_dir is None:
        parser.error("--data_dir is needed, or --tables")
    torch.set_num_threads(1)
    for seed in args.seeds:
        sample = Sample(args, seed)
        for method in args.methods:
            start = time.process_time()
            if method == BOTH:
                start -= sample.training_seconds
            model = sample.fit(method)
            row = {
                "set": args.set,
                "per_leaf": args.per_leaf,
                "method": method,
                "seed": seed,
                "epochs": args.epochs,
                "split": args.split,
                "without": args.without,
                "documents": len(sample.tokens.data["train"]),
                "seconds": round(time.process_time() - start, 1),
                **sample.score(model, args.split),
            }
            append_line(args.results, row)


if __name__ == "__main__":
    main()
