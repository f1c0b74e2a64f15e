"""Speed and memory of training: a part of speed.py."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from timing import (
    Row,
    index_labels,
    peak_bytes,
    resident_bytes,
    seconds,
    side_by_side,
    timed_row,
    tree_edges,
    tree_of_depth,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hcal_hf import (
    HEADS,
    HcalConfig,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    Taxonomy,
    predict_file,
)

BARE = "three matrix products"


class _StepTimes(TrainerCallback):
    """Records the seconds of each training step on a clock, from the batch to the optimiser's step."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.taken: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = self.clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.taken.append(self.clock() - self.start)


BATCH, LENGTH, STEPS = 32, 64, 8


def _documents_of_steps() -> tuple[Taxonomy, Dataset]:
    """Returns 161 labels on two levels, and the documents of `STEPS` batches."""
    taxonomy = Taxonomy.from_edges(
        [(f"domain {i}", f"intent {i}.{j}") for i in range(10) for j in range(15)], roots=["out of scope"]
    )
    tokens = np.random.default_rng(0).integers(1000, 20000, size=(BATCH * STEPS, LENGTH))
    leaves = np.flatnonzero(taxonomy.is_leaf)
    labels = [taxonomy.complete([leaves[i % len(leaves)]]).tolist() for i in range(BATCH * STEPS)]
    columns = {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}
    return taxonomy, Dataset.from_dict({**columns, "labels": labels})


def _step_arguments() -> dict[str, Any]:
    return {
        "per_device_train_batch_size": BATCH, "max_steps": STEPS, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip


def training_step(options: argparse.Namespace) -> Iterator[Row]:
    """Compares all parts of HCAL (coherent head, label texts, contrast, perturbation, adaptive weights, logging) with the
    classifier and Trainer of transformers. The encoder is MiniLM, a batch has 32 documents of 64 tokens, and there are 161
    labels."""
    taxonomy, ours = _documents_of_steps()
    labels = ours["labels"]
    hot = np.zeros((len(labels), taxonomy.num_labels), dtype=np.float32)
    for i, nodes in enumerate(labels):
        hot[i, nodes] = 1
    flat = Dataset.from_dict({**ours[:], "labels": hot.tolist()})
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    shared = _step_arguments()
    plain = AutoModelForSequenceClassification.from_pretrained(
        options.encoder, num_labels=taxonomy.num_labels, problem_type="multi_label_classification"
    )
    hcal = HcalForSequenceClassification.from_encoder(
        options.encoder, taxonomy, label_mode="single_path", contrast="aggregate", prototype_anchor="label_text"
    )
    hcal_flat = HcalForSequenceClassification.from_encoder(options.encoder, taxonomy, label_mode="single_path")
    times: dict[str, list[float]] = {}
    for k in range(options.rounds + 1):
        for name, model, data in (
            ("AutoModelForSequenceClassification, Trainer", plain, flat),
            ("HCAL, defaults", hcal_flat, ours),
            ("HCAL, all parts", hcal, ours),
        ):
            clock = _StepTimes()
            with tempfile.TemporaryDirectory() as folder:
                trainer: Any
                if model is plain:
                    trainer = Trainer(model, TrainingArguments(folder, **shared), None, data, callbacks=[clock])
                else:
                    weighting = "hcal_rate" if model is hcal else "uniform"
                    args = HcalTrainingArguments(folder, loss_weighting=weighting, **shared)
                    trainer = HcalTrainer(model, args, None, data, processing_class=tokenizer, callbacks=[clock])
                trainer.remove_callback(PrinterCallback)
                trainer.train()
            if k:
                times.setdefault(name, []).append(statistics.median(clock.taken[1:]))
    first = next(iter(times.values()))
    for name, taken in times.items():
        ratio = statistics.median(own / reference for own, reference in zip(taken, first))
        target = "1.02" if name == "HCAL, all parts" else ""
        yield timed_row(name, statistics.median(taken), ratio=ratio, against="the first row", target=target)


def contrast_step(options: argparse.Namespace) -> Iterator[Row]:
    """Compares a training step with the contrasts of HJCL with the step of the default model. The encoder is MiniLM, a
    batch has 32 documents of 64 tokens, and there are 161 labels. Seconds are processor time."""
    taxonomy, data = _documents_of_steps()
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    variants: dict[str, dict[str, Any]] = {
        "defaults": {},
        "hjcl": {"contrast": "hjcl"},
        "hjcl, variant released": {"contrast": "hjcl", "contrast_kwargs": {"variant": "released"}},
    }
    models = {
        name: HcalForSequenceClassification.from_encoder(options.encoder, taxonomy, label_mode="single_path", **fields)
        for name, fields in variants.items()
    }
    times: dict[str, list[float]] = {}
    for k in range(options.rounds + 1):
        for name, model in models.items():
            clock = _StepTimes(time.process_time)
            with tempfile.TemporaryDirectory() as folder:
                args = HcalTrainingArguments(folder, **_step_arguments())
                trainer = HcalTrainer(model, args, None, data, processing_class=tokenizer, callbacks=[clock])
                trainer.remove_callback(PrinterCallback)
                trainer.train()
            if k:
                times.setdefault(name, []).append(statistics.median(clock.taken[1:]))
    first = times["defaults"]
    for name, taken in times.items():
        ratio = statistics.median(own / reference for own, reference in zip(taken, first))
        target = "1.25" if name == "hjcl" else ""
        yield timed_row(name, statistics.median(taken), ratio=ratio, against="the first row", target=target)


def head_alone(options: argparse.Namespace) -> Iterator[Row]:
    """Compares the forward and backward pass of scores and losses on given features (256 wide, 32 documents) with the three
    matrix products in it: scores, gradient of the features, gradient of the prototypes."""
    for labels in options.labels:
        for depth in (3, 8):
            taxonomy = tree_of_depth(labels, depth)
            actions = head_actions(taxonomy)
            for name, (took, ratio) in side_by_side(actions, options.rounds).items():
                own: dict[str, Any] = {}
                if name != BARE:
                    own = {"ratio": ratio, "against": BARE}
                    if "perturbation" not in name and labels >= 10_000:
                        own["target"] = "2.0" if labels >= 1_000_000 else "1.5"
                    if options.memory:
                        own["GiB"] = peak_bytes(actions[name]) / 2**30
                yield timed_row(f"{labels:,} labels on {len(taxonomy.levels)} levels: {name}", took, **own)


def head_actions(taxonomy: Taxonomy, batch: int = 32, size: int = 256) -> dict[str, Any]:
    """Returns the matrix products alone, and a step of each head on given features."""
    states, targets = torch.randn(batch, size), index_labels(taxonomy, batch)
    weight, gradient = torch.randn(taxonomy.num_labels, size), torch.randn(batch, taxonomy.num_labels)

    def bare() -> Any:
        return states @ weight.T, gradient @ weight, gradient.T @ states

    def step_of(model: HcalForSequenceClassification) -> Any:
        def step() -> None:
            model(pooled_states=states, labels=targets, return_logits=False).loss.backward()
            model.prototypes.weight.grad = None

        return step

    actions = {BARE: bare}
    encoder = BertConfig(hidden_size=size, num_hidden_layers=0, num_attention_heads=1, vocab_size=2)
    for head, mode, noise in (
        ("lookahead_softmax", "single_path", 0.0),
        ("lookahead_softmax", "single_path", 0.01),
        ("lookahead_sigmoid", "multi_path", 0.0),
        ("conditional_sigmoid", "multi_path", 0.0),
    ):
        fields: dict[str, Any] = {"head": head, "label_mode": mode, "projection_dim": size, "perturbation": noise}
        config = HcalConfig.from_taxonomy(taxonomy, encoder, partial_paths=True, **fields)
        actions[f"{head}{', perturbation' if noise else ''}"] = step_of(HcalForSequenceClassification(config).train())
    return actions


def leaks(options: argparse.Namespace) -> Iterator[Row]:
    """Measures the resident memory over 2,000 training steps and 200,000 predictions with a small encoder."""
    taxonomy = tree_of_depth(161, 2)
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    encoder = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    model = HcalForSequenceClassification(
        HcalConfig.from_taxonomy(taxonomy, encoder, label_mode="single_path", contrast="aggregate")
    )
    nodes = [taxonomy.complete([i]).tolist() for i in np.flatnonzero(taxonomy.is_leaf)]
    rows = Dataset.from_dict(
        {
            "input_ids": [[101, 2000 + i, 102] for i in range(1600)],
            "labels": [nodes[i % len(nodes)] for i in range(1600)],
        }
    )
    sizes: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
            if state.global_step % 200 == 0:
                sizes.append(resident_bytes())

    with tempfile.TemporaryDirectory() as folder:
        args = HcalTrainingArguments(
            folder, max_steps=2000, per_device_train_batch_size=16, loss_weighting="hcal_rate", logging_steps=10,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = HcalTrainer(model, args, None, rows, processing_class=tokenizer, callbacks=[Watch()])
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        took = time.perf_counter() - start
        growth = {"MiB at step 200": sizes[0] / 2**20, "MiB at step 2,000": sizes[-1] / 2**20}
        yield timed_row("2,000 training steps", took, **growth)
        model.save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        seen: list[int] = []
        start = time.perf_counter()
        for _ in range(10):
            Path(folder, "texts.txt").write_text(
                "\n".join(f"text number {i}" for i in range(20_000)), encoding="utf-8"
            )
            predict_file(
                f"{folder}/model", f"{folder}/texts.txt", f"{folder}/o.parquet", overwrite=True, progress=False
            )
            seen.append(resident_bytes())
        took = time.perf_counter() - start
        growth = {"MiB after 20,000": seen[0] / 2**20, "MiB after 200,000": seen[-1] / 2**20}
        yield timed_row("200,000 predictions", took, **growth)


def training_memory(options: argparse.Namespace) -> Iterator[Row]:
    """Measures a training step of MiniLM (4 documents of 128 tokens, 161 labels), with gradient checkpointing and in
    bfloat16. GiB is the peak memory of tensors above parameters and gradients, while the logits are still held."""
    taxonomy = tree_of_depth(161, 2)
    model = HcalForSequenceClassification.from_encoder(options.encoder, taxonomy, label_mode="single_path").train()
    tokens = torch.randint(1000, 20_000, (4, 128))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": index_labels(taxonomy, 4)}

    def step(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(**batch)
        outputs.loss.backward()

    first = None
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        for bf16 in (False, True):
            step(bf16)  # allocates the gradients
            start = time.perf_counter()
            step(bf16)
            took, held = time.perf_counter() - start, peak_bytes(lambda bf16=bf16: step(bf16)) / 2**30
            first = held if first is None else first
            name = f"{'bfloat16' if bf16 else 'float32'}{', gradient checkpointing' if checkpointing else ''}"
            yield timed_row(name, took, GiB=held, **{"of the first": held / first})


def all_heads(options: argparse.Namespace) -> Iterator[Row]:
    """Measures a step of each head with 100,000 labels: a tree of depth 8, 16 documents of one path each, features 256
    wide, partial paths, perturbation on. GiB is the peak memory of tensors above parameters and gradients."""
    taxonomy, batch = Taxonomy.from_edges(*tree_edges(100_000, children=5)), 16
    encoder = BertConfig(hidden_size=256, num_hidden_layers=0, num_attention_heads=4, vocab_size=2)
    states, labels = torch.randn(batch, 256), index_labels(taxonomy, batch)
    variants: dict[str, dict[str, Any]] = {
        "": {},
        ", label_text": {"prototype_anchor": "label_text"},
        ", linear": {"score_function": "linear"},
    }
    for head, mode in HEADS:
        for name, fields in variants.items():
            config = HcalConfig.from_taxonomy(
                taxonomy, encoder, head=head, label_mode=mode, partial_paths=True, **fields
            )
            model = HcalForSequenceClassification(config).train()
            if model.prototypes.is_anchored:
                model.prototypes.anchors.normal_()

            def step(model: HcalForSequenceClassification = model) -> None:
                outputs = model(pooled_states=states, labels=labels)
                outputs.loss.backward()  # while the logits and their inputs are still held

            took = seconds(step, options.rounds)
            yield timed_row(f"{head} ({mode}){name}", took, GiB=peak_bytes(step) / 2**30)
