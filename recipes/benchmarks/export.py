"""What ONNX and int8 change of a trained model: scores, size and speed.

    python recipes/benchmarks/export.py MODEL DATA_DIR [--max_length 128] [--documents 256] [--rounds 5]

Scores are of the whole test split, decoded by the model's default. Speed is in processor time of one thread,
on the first documents of the test split in batches of texts of similar length; torch and the ONNX files take turns in
each round, and a ratio is the median over rounds of the ratios within them. Prints tables, as kept in export.md.
"""

import argparse
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

from hcal_hf import HcalDataCollator, HcalForSequenceClassification, classification_scores, decode
from hcal_hf.commands.evaluate import load_model
from hcal_hf.commands.export import export_onnx, open_session, quantize_int8
from hcal_hf.commands.train import TableArguments, encode_splits, load_data
from hcal_hf.training.evaluation import target_matrix

Batch = dict[str, np.ndarray]
VARIANTS: dict[str, dict[str, bool]] = {
    "int8": {},
    "int8, one scale a matrix": {"per_channel": False},
    "int8, embeddings in float32": {"embeddings": False},
    "int8, projection and prototypes too": {"head": True},
}


def batches_of(rows: Any, collate: HcalDataCollator, names: list[str], size: int) -> tuple[list[Batch], np.ndarray]:
    """Batches of texts of similar length, and the number of each of their documents."""
    order = np.argsort([-len(ids) for ids in rows["input_ids"]], kind="stable")
    made = []
    for start in range(0, len(order), size):
        batch = collate([rows[int(i)] for i in order[start : start + size]])
        made.append({name: batch[name].numpy() for name in names})
    return made, order


def torch_runner(model: HcalForSequenceClassification) -> Callable[[Batch], np.ndarray]:
    """Probabilities by torch."""

    @torch.inference_mode()
    def run(batch: Batch) -> np.ndarray:
        return model.probabilities(model(**{name: torch.from_numpy(values) for name, values in batch.items()})).numpy()

    return run


def onnx_runner(path: Path) -> Callable[[Batch], np.ndarray]:
    """Probabilities by onnxruntime with one thread."""
    session = open_session(path, threads=1)
    return lambda batch: session.run(["probabilities"], batch)[0]


def answers(probabilities: np.ndarray, model: HcalForSequenceClassification) -> np.ndarray:
    """What the model's default decoder makes of probabilities [N, L]: bool [N, L]."""
    config = model.config
    chosen = decode(
        torch.from_numpy(probabilities).double().clamp(1e-38, 1 - 1e-12).logit(),
        model.taxonomy,
        config.label_mode,
        threshold=config.thresholds,
        partial_paths=config.partial_paths,
        head=config.head,
    )
    return chosen.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data_dir")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--documents", type=int, default=256, help="for the speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--leave_out", nargs="*", default=[], help="labels whose documents are no part of the task")
    args = parser.parse_args()
    torch.set_num_threads(1)

    model, tokenizer = load_model(args.model)
    model = model.float().eval()
    tables = TableArguments(data_dir=args.data_dir, max_length=args.max_length, leave_out=args.leave_out)
    config = model.config
    raw = load_data(tables, ["test"])
    rows = encode_splits(raw, model.taxonomy, tokenizer, tables, config.label_mode, config.partial_paths)["test"]
    collate = HcalDataCollator(tokenizer, model.taxonomy)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.process_time()
        report = export_onnx(model, folder, tokenizer=tokenizer)
        took = time.process_time() - start
        files = {"ONNX": folder / "model.onnx"}
        for i, (variant, options) in enumerate(VARIANTS.items()):
            files[variant] = folder / f"int8_{i}.onnx"
            quantize_int8(files["ONNX"], files[variant], **options)
        runners = {"torch": torch_runner(model)} | {kind: onnx_runner(path) for kind, path in files.items()}
        sizes = {kind: path.stat().st_size for kind, path in files.items()}
        sizes["torch"] = sum(p.numel() * 4 for p in model.parameters())

        batches, order = batches_of(rows, collate, report["inputs"], args.batch_size)
        targets = target_matrix(collate([{**row} for row in rows])["labels"].numpy(), model.taxonomy.num_labels)
        found = {}
        for kind, run in runners.items():
            probabilities = np.empty((len(rows), model.taxonomy.num_labels), dtype=np.float32)
            probabilities[order] = np.concatenate([run(batch) for batch in batches])
            found[kind] = probabilities
        few, _ = batches_of(
            rows.select(range(min(args.documents, len(rows)))), collate, report["inputs"], args.batch_size
        )
        seconds: dict[str, list[float]] = {kind: [] for kind in runners}
        for _ in range(args.rounds):
            for kind, run in runners.items():
                start = time.process_time()  # which other work on the machine does not change much
                for batch in few:
                    run(batch)
                seconds[kind].append(time.process_time() - start)

    documents = sum(len(batch["input_ids"]) for batch in few)
    print(
        f"{args.model}: {len(config.labels):,} labels, {config.head}; {len(rows):,} test documents; exported in "
        f"{took:.0f} s of processor time, most difference from torch {report['max_difference']:.1g} on random tokens and "
        f"{np.abs(found['ONNX'] - found['torch']).max():.1g} on the test documents. {platform.machine()}, one thread, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}.\n"
    )
    width = max(map(len, runners))
    print(
        f"| {'':{width}} | micro-F1 | macro-F1 | exact match | answer as torch's | MB    | docs/s | speed against torch |"
        f"\n|{'-' * (width + 2)}|----------|----------|-------------|-------------------|-------|--------|"
        "---------------------|"
    )
    decided = {kind: answers(probabilities, model) for kind, probabilities in found.items()}
    for kind in runners:
        result = classification_scores(decided[kind], targets, model.taxonomy)
        same = (decided[kind] == decided["torch"]).all(axis=1).mean()
        ratio = statistics.median(a / b for a, b in zip(seconds["torch"], seconds[kind]))
        rate = documents / statistics.median(seconds[kind])
        print(
            f"| {kind:{width}} | {100 * result['micro_f1']:8.2f} | {100 * result['macro_f1']:8.2f} | "
            f"{100 * result['exact_match']:11.2f} | {100 * same:17.2f} | {sizes[kind] / 1e6:5.1f} | {rate:6.1f} | "
            f"{ratio:19.2f} |"
        )


if __name__ == "__main__":
    main()
