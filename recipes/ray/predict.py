"""Predicts in bulk on a Ray cluster, or on all cores of one machine.

    python recipes/ray/predict.py MODEL TEXTS.parquet OUT_DIR --workers 4 [--gpus_per_worker 1] [--address auto]

TEXTS is a Parquet, CSV or JSON lines file, or a folder of them, with a column of texts. OUT_DIR gets Parquet files
with its columns and those of `hcal predict`: labels, scores, paths, problem. Each worker holds the model once. Rows
keep their order. On one machine, `hcal predict` does the same without Ray, and it resumes an interrupted run.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import ray

from hcal_hf import PredictionArguments, Predictor, load_model

READERS = {".parquet": ray.data.read_parquet, ".csv": ray.data.read_csv, ".jsonl": ray.data.read_json}
COLUMNS = {"labels", "scores", "paths", "problem"}


class Labels:
    """Adds labels to batches of rows."""

    def __init__(self, model_name: str, args: PredictionArguments, device: str):
        model, tokenizer = load_model(model_name, **({"dtype": "bfloat16"} if args.bf16 else {}))
        self.predictor, self.column = Predictor(model.to(device), tokenizer, args), args.text_column

    def __call__(self, batch: pa.Table) -> pa.Table:
        predictions = self.predictor.predict(batch[self.column].to_pylist())
        for name in predictions.column_names:
            batch = batch.append_column(name, predictions[name])
        return batch


def files_of(path: Path) -> list[Path]:
    """Lists the files of a folder, or the file itself. They must be of one kind."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    kinds = {file.suffix for file in files}
    if len(kinds) != 1 or not kinds <= set(READERS):
        raise SystemExit(
            f"{path} must be files of one kind, of {', '.join(READERS)}; found {sorted(kinds) or 'none'}."
        )
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a saved model, or its name on the Hub")
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", default="text", help="column of the texts")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus_per_worker", type=float, default=0)
    parser.add_argument("--window", type=int, default=4096, help="number of rows that are sorted by length together")
    parser.add_argument("--max_length", type=int, default=None)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--address", default=None, help="address of a cluster, by default a new Ray on this machine")
    options = parser.parse_args()
    files = files_of(options.texts)
    if options.out.exists() and any(options.out.iterdir()):
        raise SystemExit(f"{options.out} is not empty: give another folder, or remove its files.")
    # Reading and writing need CPUs in addition to the workers, also on a machine with few cores.
    local = {} if options.address else {"num_cpus": options.workers + 2}
    ray.init(address=options.address, include_dashboard=False, **local)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    args = PredictionArguments(text_column=options.text, max_length=options.max_length, bf16=options.bf16)
    rows = READERS[files[0].suffix]([str(file) for file in files])
    names = rows.schema().names
    if options.text not in names:
        raise SystemExit(f"{options.texts} has no column {options.text!r}, only {names}: give --text.")
    if taken := sorted(COLUMNS & set(names)):
        raise SystemExit(f"{options.texts} already has columns {taken}, which predictions need: rename them.")
    predictions = rows.map_batches(
        Labels,
        fn_constructor_args=(options.model, args, "cuda" if options.gpus_per_worker else "cpu"),
        batch_format="pyarrow",
        batch_size=options.window,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_gpus=options.gpus_per_worker,
    )
    predictions.write_parquet(str(options.out.resolve()))


if __name__ == "__main__":
    main()
