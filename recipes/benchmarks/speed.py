"""What the library adds to the time of its encoder, and what it needs at up to a million labels:

    python recipes/benchmarks/speed.py --encoder NAME [--parts step head data metrics decode search predict ...]

Everything is measured side by side in one run; times are medians over rounds. Rows go into speed.json, from which speed.md
is written. Times depend on the machine and on what else it does: compare ratios. Memory does not.
"""

import argparse
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Dataset
from search_speed import path_search
from timing import (
    Action,
    CountsTokens,
    fresh_seconds,
    index_labels,
    peak_bytes,
    resident_bytes,
    seconds,
    side_by_side,
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
    pipeline,
)

from hcal_hf import (
    HcalConfig,
    HcalDataCollator,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    Taxonomy,
    decode,
    encode_dataset,
)
from hcal_hf.commands.predict import PredictionArguments, predict_file
from hcal_hf.heads import HEADS
from hcal_hf.metrics import classification_scores, violation_rates
from hcal_hf.training.precision import has_bfloat16

HERE = Path(__file__).parent
RESULTS, PAGE, HEAD = HERE / "speed.json", HERE / "speed.md", HERE / "speed_head.md"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
Row = dict[str, Any]
BARE = "three matrix products"


def row(what: str, took: float, **others: Any) -> Row:
    """`ratio` is to the time of `against`; `target` says what was aimed at."""
    return {"what": what, "seconds": took, **others}


class _StepTimes(TrainerCallback):
    """Seconds of each training step, from the batch to the optimiser's step."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.taken.append(time.perf_counter() - self.start)


def training_step(options: argparse.Namespace) -> Iterator[Row]:
    """All of HCAL (coherent head, label texts, contrast, perturbation, adaptive weights, logging) against transformers'
    classifier and Trainer: MiniLM, 32 documents of 64 tokens, 161 labels."""
    taxonomy = Taxonomy.from_edges(
        [(f"domain {i}", f"intent {i}.{j}") for i in range(10) for j in range(15)], roots=["out of scope"]
    )
    batch, length, steps = 32, 64, 8
    tokens = np.random.default_rng(0).integers(1000, 20000, size=(batch * steps, length))
    leaves = np.flatnonzero(taxonomy.is_leaf)
    labels = [taxonomy.complete([leaves[i % len(leaves)]]).tolist() for i in range(batch * steps)]
    columns = {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}
    ours = Dataset.from_dict({**columns, "labels": labels})
    hot = np.zeros((len(labels), taxonomy.num_labels), dtype=np.float32)
    for i, nodes in enumerate(labels):
        hot[i, nodes] = 1
    flat = Dataset.from_dict({**columns, "labels": hot.tolist()})
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    shared: dict[str, Any] = {
        "per_device_train_batch_size": batch, "max_steps": steps, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip
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
        yield row(name, statistics.median(taken), ratio=ratio, against="the first row", target=target)


def head_alone(options: argparse.Namespace) -> Iterator[Row]:
    """Forward and backward pass of scores and losses from given features (256 wide, 32 documents) against the three bare
    matrix products: scores, gradient of the features, gradient of the prototypes."""
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
                yield row(f"{labels:,} labels on {len(taxonomy.levels)} levels: {name}", took, **own)


def head_actions(taxonomy: Taxonomy, batch: int = 32, size: int = 256) -> dict[str, Any]:
    """The bare products, and a step of heads on given features."""
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


def data(options: argparse.Namespace) -> Iterator[Row]:
    """Taxonomies, label sets and batches."""
    rounds, rng = options.rounds, np.random.default_rng(0)
    edges, roots = tree_edges(1_000_000)
    took = seconds(lambda: Taxonomy.from_edges(edges, roots), rounds)
    yield row("taxonomy of 1,000,000 labels from edges in order", took, target="1 s")
    shuffled = [edges[i] for i in rng.permutation(len(edges))]
    yield row("the same, edges shuffled", seconds(lambda: Taxonomy.from_edges(shuffled, roots), rounds))
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    for labels in (500, 1_000_000):
        taxonomy = Taxonomy.from_edges(*tree_edges(labels))
        leaves = rng.choice(np.flatnonzero(taxonomy.is_leaf), size=1_000_000)
        rows = Dataset.from_dict({"text": ["a"] * len(leaves), "labels": [[taxonomy.labels[i]] for i in leaves]})
        times = [encoding_seconds(rows, known, tokenizer) for known in (None, taxonomy)]
        what = f"1,000,000 label sets of {labels:,} labels, beside tokens"
        yield row(what, times[1] - times[0], target="5 s")
    taxonomy = tree_of_depth(161, 2)
    collator = HcalDataCollator(tokenizer, taxonomy)
    batch = [{"input_ids": [1] * 64, "attention_mask": [1] * 64, "labels": [0, 20]} for _ in range(32)]
    yield row("collator, 32 documents of 64 tokens", seconds(lambda: collator(batch), 100), target="1 % of a step")


def encoding_seconds(rows: Dataset, taxonomy: Taxonomy | None, tokenizer: Any) -> float:
    """Seconds of encoding a table, without its labels where there is no taxonomy."""
    labels = None if taxonomy is None else "labels"
    known = taxonomy or Taxonomy.from_edges([], roots=["any"])
    with tempfile.TemporaryDirectory() as folder:
        # As from a file: a table in memory would be hashed whole.
        rows.to_parquet(f"{folder}/rows.parquet")
        table: Any = Dataset.from_parquet(f"{folder}/rows.parquet", cache_dir=folder)
        start = time.perf_counter()
        encode_dataset(table, known, tokenizer, labels=labels, max_length=8)
        return time.perf_counter() - start


def metrics(options: argparse.Namespace) -> Iterator[Row]:
    """100,000 documents, 500 labels."""
    rounds, rng = options.rounds, np.random.default_rng(0)
    taxonomy = Taxonomy.from_edges(*tree_edges(500, children=5))
    dense, other = rng.random((100_000, 500)) < 0.01, rng.random((100_000, 500)) < 0.01
    half, given = rng.random((100_000, 500)) < 0.5, rng.random((100_000, 500), dtype=np.float32)
    ids = [np.flatnonzero(found).tolist() for found in dense]
    hvr = evaluate.load(str(HERE.parent.parent / "hcal_hf" / "metrics" / "hvr"))
    pairs = taxonomy.edges.tolist()
    for what, action, target in (
        ("violation_rates, 1 % true", lambda: violation_rates(dense, taxonomy), "0.1 s"),
        ("violation_rates, 50 % true", lambda: violation_rates(half, taxonomy), "0.1 s"),
        ("violation_rates, with scores", lambda: violation_rates(dense, taxonomy, given), ""),
        ("violation_rates, id lists", lambda: violation_rates(ids, taxonomy), "0.1 s"),
        ("classification_scores", lambda: classification_scores(dense, other, taxonomy), "0.1 s"),
        (
            "evaluate module hvr, id lists",
            lambda: hvr.compute(predictions=ids, edges=pairs, num_labels=500),
            "1 s",
        ),
    ):
        yield row(what, seconds(action, rounds), target=target)
    large = Taxonomy.from_edges(*tree_edges(1_000_000))
    sets = [large.complete([i]).tolist() for i in rng.integers(1_000_000, size=10_000)]
    others = [large.complete([i]).tolist() for i in rng.integers(1_000_000, size=10_000)]
    took = seconds(lambda: classification_scores(sets, others, large), rounds)
    yield row("classification_scores, 10,000 documents, 1,000,000 labels, id lists", took)


def decoders(options: argparse.Namespace) -> Iterator[Row]:
    """100,000 documents, 1,000 labels."""
    taxonomy = Taxonomy.from_edges(*tree_edges(1000, children=5))
    logits = torch.randn(100_000, 1000)
    for mode, methods in (
        ("single_path", ("raw", "path", "top_down", "risk")),
        ("multi_path", ("raw", "closure", "prune", "expected_f1", "risk")),
    ):
        for method in methods:
            for head in ("independent", "coherent") if method == "path" else ("coherent",):
                limit = {"risk_threshold": 0.3} if method == "risk" else {}

                def action(mode: str = mode, method: str = method, head: str = head, limit: Any = limit) -> None:
                    decode(logits, taxonomy, mode, method, head=head, **limit)

                what = f"{method} ({mode}{', independent' if head == 'independent' else ''})"
                yield row(what, seconds(action, options.rounds), target="1 s")


def prediction(options: argparse.Namespace) -> Iterator[Row]:
    """Texts of 8 to 250 words, none cut: `hcal predict` against pipeline("text-classification") of transformers, batches of
    32, same weights; files read and written included. Tokens: what the model was given for each token of the texts."""
    rng = random.Random(0)
    pages = " ".join(path.read_text() for path in sorted(HERE.parent.rglob("*.md")))
    words = re.findall(r"(?<= )[A-Za-z]+[.,;:]?(?= )", pages)
    texts = [" ".join(rng.choices(words, k=rng.randint(8, 250))) for _ in range(options.texts)]
    taxonomy = tree_of_depth(161, 2)
    with tempfile.TemporaryDirectory() as folder:
        model = HcalForSequenceClassification.from_encoder(options.encoder, taxonomy, label_mode="single_path")
        tokenizer = AutoTokenizer.from_pretrained(options.encoder)
        model.save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        plain = AutoModelForSequenceClassification.from_pretrained(options.encoder, num_labels=161)
        stock = pipeline("text-classification", model=plain, tokenizer=tokenizer)
        Path(folder, "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))

        def ours(**how: Any) -> None:
            args = PredictionArguments(**how)
            predict_file(
                f"{folder}/model",
                f"{folder}/texts.jsonl",
                f"{folder}/out.parquet",
                args,
                overwrite=True,
                progress=False,
            )

        actions: dict[str, Action] = {
            'pipeline("text-classification")': lambda: stock(texts, batch_size=32, truncation=True),
            "hcal predict": ours,
        }
        if has_bfloat16() is not False:  # where it is emulated it takes many times as long
            actions["hcal predict, bf16"] = lambda: ours(bf16=True)
        lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
        given = {name: CountsTokens(action, tokenizer) for name, action in actions.items()}
        for name, (took, ratio) in side_by_side(given, options.prediction_rounds, warm=0).items():
            yield row(
                f"{options.texts:,} texts: {name}", took, ratio=ratio, against="the pipeline",
                target="" if name.startswith("pipeline") else "0.5", documents_per_second=options.texts / took,
                tokens=given[name].tokens / sum(lengths),
            )  # fmt: skip


def imports(options: argparse.Namespace) -> Iterator[Row]:
    """Processor seconds of a fresh process."""
    own = fresh_seconds("import hcal_hf; hcal_hf.HcalForSequenceClassification, hcal_hf.HcalTrainer", options.rounds)
    base = fresh_seconds("from transformers import AutoModelForSequenceClassification, Trainer", options.rounds)
    yield row("transformers: AutoModelForSequenceClassification, Trainer", base)
    yield row("hcal_hf: HcalForSequenceClassification, HcalTrainer", own)
    yield row("the difference", own - base, target="0.3 s")


def leaks(options: argparse.Namespace) -> Iterator[Row]:
    """Resident memory over 2,000 training steps and 200,000 predictions of a small encoder."""
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
        yield row("2,000 training steps", took, **growth)
        model.save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        seen: list[int] = []
        start = time.perf_counter()
        for _ in range(10):
            Path(folder, "texts.txt").write_text("\n".join(f"text number {i}" for i in range(20_000)))
            predict_file(
                f"{folder}/model", f"{folder}/texts.txt", f"{folder}/o.parquet", overwrite=True, progress=False
            )
            seen.append(resident_bytes())
        took = time.perf_counter() - start
        growth = {"MiB after 20,000": seen[0] / 2**20, "MiB after 200,000": seen[-1] / 2**20}
        yield row("200,000 predictions", took, **growth)


def training_memory(options: argparse.Namespace) -> Iterator[Row]:
    """A training step of MiniLM, 4 documents of 128 tokens, 161 labels, with gradient checkpointing and in bfloat16: the
    most that tensors hold above parameters and gradients, with the logits still held."""
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
            step(bf16)  # makes the gradients
            start = time.perf_counter()
            step(bf16)
            took, held = time.perf_counter() - start, peak_bytes(lambda bf16=bf16: step(bf16)) / 2**30
            first = held if first is None else first
            name = f"{'bfloat16' if bf16 else 'float32'}{', gradient checkpointing' if checkpointing else ''}"
            yield row(name, took, GiB=held, **{"of the first": held / first})


def all_heads(options: argparse.Namespace) -> Iterator[Row]:
    """A step of each head at 100,000 labels (a tree of depth 8, 16 documents of one path each, size 256, partial paths,
    perturbation on): the most that tensors hold above parameters and gradients."""
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
                outputs.loss.backward()  # with the logits, and what they were made of, still held

            took = seconds(step, options.rounds)
            yield row(f"{head} ({mode}){name}", took, GiB=peak_bytes(step) / 2**30)


PARTS = {
    "step": ("Training step", training_step),
    "head": ("Head alone", head_alone),
    "data": ("Data", data),
    "metrics": ("Metrics", metrics),
    "decode": ("Decoding", decoders),
    "search": ("Most probable paths", path_search),
    "predict": ("Bulk prediction", prediction),
    "imports": ("Import", imports),
    "leaks": ("Memory over time", leaks),
    "memory": ("Memory of a training step", training_memory),
    "heads": ("All heads at 100,000 labels", all_heads),
}


def page(found: dict[str, dict[str, Any]]) -> str:
    """speed.md from the rows of speed.json."""
    lines = [HEAD.read_text(encoding="utf-8").rstrip()]
    for part, (title, function) in PARTS.items():
        if part not in found:
            continue
        rows, conditions = found[part]["rows"], found[part]["conditions"]
        columns = list(dict.fromkeys(name for entry in rows for name in entry))
        lines += ["", f"## {title}", "", " ".join((function.__doc__ or "").split()), "", f"{conditions}.", ""]
        lines += ["| " + " | ".join(columns).replace("_", " ") + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(_cell(entry.get(name, ""), name) for name in columns) + " |" for entry in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    digits = {
        "ratio": 2, "documents_per_second": 0, "seconds": 4 if value < 0.01 else 3, "GiB": 3, "recall": 3, "first": 3,
        "known to be exact": 3, "of the first": 2, "tokens": 2,
    }.get(column, 1)  # fmt: skip
    return f"{value:,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--encoder", default=ENCODER, help="name or folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--labels", nargs="+", type=int, default=[1000, 10_000, 100_000, 1_000_000], help="of part head"
    )
    parser.add_argument("--memory", action="store_true", help="part head: also the most that tensors hold")
    parser.add_argument("--search_labels", nargs="*", type=int, default=[1_000_000], help="of part search")
    parser.add_argument("--texts", type=int, default=20_000, help="of part predict")
    parser.add_argument("--prediction_rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = json.loads(options.results.read_text()) if options.results.exists() else {}
    has = {True: "with", False: "without", None: "perhaps with"}[has_bfloat16()]
    for part in options.parts:
        rounds = options.prediction_rounds if part == "predict" else options.rounds
        conditions = f"{options.threads} CPU thread(s) {has} bfloat16, torch {torch.__version__}, {rounds} round(s)"
        rows: list[Row] = []
        for entry in PARTS[part][1](options):
            print(part, entry, flush=True)
            rows.append(entry)
            # As they come: what a part that is stopped has measured stays measured.
            found[part] = {"rows": rows, "conditions": conditions}
            options.results.write_text(json.dumps(found, indent=1) + "\n")
    options.page.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
