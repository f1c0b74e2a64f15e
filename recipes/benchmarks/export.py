"""Measures how ONNX and int8 change the scores, size and speed of a trained model.

    python recipes/benchmarks/export.py MODEL DATA_DIR [--max_length 128] [--documents 256] [--rounds 5]
    python recipes/benchmarks/export.py --tables

Scores are measured on the whole test split, decoded by the model's default. Speed is measured in processor time of
one thread, on the first documents of the test split in batches of texts of similar length. torch and the ONNX files
take turns in each round, and a ratio is the median over rounds of the ratios within them. Rows are stored in
rows/export.json, and the tables of pages/export.md are written from them. With --tables nothing is measured.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from result_rows import ROWS
from tables import PAGES, write_page

from hcal_hf import (
    HcalDataCollator,
    HcalForSequenceClassification,
    TableArguments,
    classification_scores,
    decode,
    encode_splits,
    export_onnx,
    load_data,
    load_model,
    open_session,
    quantize_int8,
    target_matrix,
)

RESULTS, PAGE = ROWS / "export.json", PAGES / "export.md"
Batch = dict[str, np.ndarray]
VARIANTS: dict[str, dict[str, bool]] = {
    "int8": {},
    "int8, one scale per matrix": {"per_channel": False},
    "int8, embeddings in float32": {"embeddings": False},
    "int8, projection and prototypes too": {"head": True},
}


def batches_of(rows: Any, collate: HcalDataCollator, names: list[str], size: int) -> tuple[list[Batch], np.ndarray]:
    """Returns batches of texts of similar length, and the index of each of their documents."""
    order = np.argsort([-len(ids) for ids in rows["input_ids"]], kind="stable")
    batches = []
    for start in range(0, len(order), size):
        batch = collate([rows[int(i)] for i in order[start : start + size]])
        batches.append({name: batch[name].numpy() for name in names})
    return batches, order


def torch_runner(model: HcalForSequenceClassification) -> Callable[[Batch], np.ndarray]:
    """Returns a function that computes probabilities with torch."""

    @torch.inference_mode()
    def run(batch: Batch) -> np.ndarray:
        return model.probabilities(model(**{name: torch.from_numpy(values) for name, values in batch.items()})).numpy()

    return run


def onnx_runner(path: Path) -> Callable[[Batch], np.ndarray]:
    """Returns a function that computes probabilities with onnxruntime on one thread."""
    session = open_session(path, threads=1)
    return lambda batch: session.run(["probabilities"], batch)[0]


def decisions(probabilities: np.ndarray, model: HcalForSequenceClassification) -> np.ndarray:
    """Decodes probabilities [N, L] with the model's default decoder, to bool [N, L]."""
    config = model.config
    sets = decode(
        torch.from_numpy(probabilities).double().clamp(1e-38, 1 - 1e-12).logit(),
        model.taxonomy,
        config.label_mode,
        threshold=config.thresholds,
        partial_paths=config.partial_paths,
        head=config.head,
    )
    return sets.numpy()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Exports a model and measures each variant. Returns the facts of the run and a row per variant."""
    model, tokenizer = load_model(args.model)
    model = model.float().eval()
    tables = TableArguments(data_dir=args.data_dir, max_length=args.max_length, leave_out=args.leave_out)
    config, taxonomy = model.config, model.taxonomy
    raw = load_data(tables, ["test"])
    rows = encode_splits(raw, taxonomy, tokenizer, tables, config.label_mode, config.partial_paths)["test"]
    collate = HcalDataCollator(tokenizer, taxonomy)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.process_time()
        report = export_onnx(model, folder, tokenizer=tokenizer)
        export_seconds = time.process_time() - start
        files = {"ONNX": folder / "model.onnx"}
        for i, (variant, options) in enumerate(VARIANTS.items()):
            files[variant] = folder / f"int8_{i}.onnx"
            quantize_int8(files["ONNX"], files[variant], **options)
        runners = {"torch": torch_runner(model)} | {kind: onnx_runner(path) for kind, path in files.items()}
        sizes = {kind: path.stat().st_size for kind, path in files.items()}
        sizes["torch"] = sum(p.numel() * 4 for p in model.parameters())

        batches, order = batches_of(rows, collate, report["inputs"], args.batch_size)
        targets = target_matrix(collate([{**row} for row in rows])["labels"].numpy(), taxonomy.num_labels)
        probabilities = {}
        for kind, run in runners.items():
            values = np.empty((len(rows), taxonomy.num_labels), dtype=np.float32)
            values[order] = np.concatenate([run(batch) for batch in batches])
            probabilities[kind] = values
        few, _ = batches_of(
            rows.select(range(min(args.documents, len(rows)))), collate, report["inputs"], args.batch_size
        )
        seconds: dict[str, list[float]] = {kind: [] for kind in runners}
        for _ in range(args.rounds):
            for kind, run in runners.items():
                start = time.process_time()  # other work on the machine hardly changes it
                for batch in few:
                    run(batch)
                seconds[kind].append(time.process_time() - start)

    documents = sum(len(batch["input_ids"]) for batch in few)
    predicted = {kind: decisions(values, model) for kind, values in probabilities.items()}
    variants = []
    for kind in runners:
        scores = classification_scores(predicted[kind], targets, taxonomy)
        variants.append(
            {
                "kind": kind,
                "micro_f1": 100 * scores["micro_f1"],
                "macro_f1": 100 * scores["macro_f1"],
                "exact_match": 100 * scores["exact_match"],
                "same_decision": 100 * float((predicted[kind] == predicted["torch"]).all(axis=1).mean()),
                "megabytes": sizes[kind] / 1e6,
                "documents_per_second": documents / statistics.median(seconds[kind]),
                "speed": statistics.median(a / b for a, b in zip(seconds["torch"], seconds[kind])),
            }
        )
    run_facts = {
        "model": args.model,
        "labels": len(config.labels),
        "head": config.head,
        "documents": len(rows),
        "export_seconds": export_seconds,
        "difference_on_random_tokens": report["max_difference"],
        "difference_on_test_documents": float(np.abs(probabilities["ONNX"] - probabilities["torch"]).max()),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    return {"run": run_facts, "variants": variants}


def table(measured: dict[str, Any]) -> str:
    """Returns the block of export.md: the facts of the run, and the table of its variants."""
    run, variants = measured["run"], measured["variants"]
    lines = [
        f"{run['model']}: {run['labels']:,} labels, {run['head']}, {run['documents']:,} test documents. Exported in "
        f"{run['export_seconds']:.0f} s of processor time. The largest difference from torch is "
        f"{run['difference_on_random_tokens']:.1g} on random tokens and "
        f"{run['difference_on_test_documents']:.1g} on the test documents. {run['machine']}, one thread, "
        f"torch {run['torch']}, onnxruntime {run['onnxruntime']}.",
        "",
    ]
    width = max(len(row["kind"]) for row in variants)
    lines += [
        f"| {'':{width}} | micro-F1 | macro-F1 | exact match | same decision as torch | MB    | docs/s | "
        "speed against torch |",
        f"|{'-' * (width + 2)}|----------|----------|-------------|------------------------|-------|--------|"
        "---------------------|",
    ]
    for row in variants:
        lines.append(
            f"| {row['kind']:{width}} | {row['micro_f1']:8.2f} | {row['macro_f1']:8.2f} | {row['exact_match']:11.2f} | "
            f"{row['same_decision']:22.2f} | {row['megabytes']:5.1f} | {row['documents_per_second']:6.1f} | "
            f"{row['speed']:19.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a saved model, or its name on the Hub")
    parser.add_argument("data_dir", nargs="?")
    parser.add_argument("--tables", action="store_true", help="only write the page from the stored rows")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--documents", type=int, default=256, help="number of documents for the speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--leave_out", nargs="*", default=[], help="leave out documents with these labels")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    if not args.tables:
        if args.model is None or args.data_dir is None:
            parser.error("Give MODEL and DATA_DIR, or --tables.")
        torch.set_num_threads(1)
        args.results.write_text(json.dumps(measure(args), indent=1) + "\n", encoding="utf-8")
    write_page(args.page, {"tables": table(json.loads(args.results.read_text(encoding="utf-8")))})


if __name__ == "__main__":
    main()
