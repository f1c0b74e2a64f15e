"""Predicts every row of a file of any size, in windows, and resumes after an interruption."""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..data.table_formats import Row
from ..data.tables import TableFile
from ..training.precision import warn_of_slow_bfloat16
from .atomic_writer import Parts, file_fingerprint, model_fingerprint
from .predictor import PredictionArguments, Predictor, Tokens
from .saved_model import load_model

# Processes may finish hours apart.
PATIENCE = timedelta(days=7)


def predict_file(
    model_name: str,
    file: str | os.PathLike,
    out: str | os.PathLike,
    args: PredictionArguments | None = None,
    *,
    use_cpu: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Predicts every row of a file, into a Parquet file whose rows are in the order of the input.

    Memory holds two windows of rows, whatever the size of the file: one is tokenized while the model answers the other.
    Each finished window is a file in the folder `out` + `.parts`; at the end they are joined, `out` appears as a whole,
    and the folder goes. The same call after a kill goes on from there: no row is predicted twice but those of the windows
    at work, none is lost. Under `accelerate launch` the windows are shared out over the processes, which must see one file
    system; the number of processes may change between the runs.

    Args:
        model_name: folder of a saved model with its tokenizer, or its name on the Hub.
        file: `.jsonl`, `.csv`, `.tsv`, `.txt` (also with `.gz`) or `.parquet`.
        out: a path that ends in `.parquet`.
        args: what to read, how to decide, what to write.
        use_cpu: use no accelerator.
        overwrite: replace `out`, at the end, where it exists.
        restart: throw away the finished windows of an earlier run.
        progress: show a bar on stderr.

    Returns:
        on the main process `rows`, `predicted`, `problems` (how many rows have which), `first_problems` (row numbers of up
        to five), `resumed_rows` (finished before this run) and `out`; {} on the others.

    Raises:
        ValueError: for what is no HCAL model, a file or column that cannot be read, arguments out of range, or an earlier
            run of other settings, model or input.
        FileExistsError: if `out` exists, unless `overwrite`.
        FileNotFoundError: for a missing file or folder.
        RuntimeError: if another run is at work on the same `out`, or a batch does not fit into the accelerator's memory.
    """
    args = PredictionArguments() if args is None else args
    table, out = TableFile(Path(file), args.encoding), Path(out)
    names = [args.text_column, *([args.id_column] if args.id_column else [])]
    table.check_columns(names)
    if out.suffix != ".parquet":
        raise ValueError(f"The predictions are written as Parquet: out must end in .parquet, got {out}.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} to write {out.name} to: make it first.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already: remove it, or give overwrite (on the command line --overwrite).")
    state = PartialState(cpu=use_cpu, timeout=PATIENCE)
    model, tokenizer = load_model(model_name, **({"dtype": torch.bfloat16} if args.bf16 else {}))
    # The state may be that of an earlier call in this process, on an accelerator.
    device = torch.device("cpu") if use_cpu else state.device
    if args.bf16:
        warn_of_slow_bfloat16(device.type)
    predictor = Predictor(model.to(device), tokenizer, args)
    parts = Parts(out)
    with parts.locked(state.is_main_process):
        if state.is_main_process:
            parts.prepare(_identity(model, tokenizer, table, args), restart)
        state.wait_for_everyone()
        done = parts.finished()
        state.wait_for_everyone()  # no one writes before all have looked
        with tqdm(
            total=table.total,
            desc="Predicting",
            disable=not (progress and state.is_local_main_process),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]",
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as bar:
            rows = number = 0
            for window in _windows(table, names, args, predictor, _Share(done, state)):
                number = window.index + 1
                if window.tokens is not None:
                    start, size = bar.n, window.end - bar.n

                    def advance(share: float, start: int = start, size: int = size) -> None:
                        bar.update(start + int(share * size) - bar.n)

                    found = predictor.answer(window.tokens.result(), advance)
                    parts.write(window.index, _window_table(found, window, table, args))
                    rows += len(window.rows)
                bar.set_postfix_str(f"{rows:,} rows" + (" here" if state.num_processes > 1 else ""), refresh=False)
                bar.update(window.end - bar.n)
        state.wait_for_everyone()
        if not state.is_main_process:
            return {}
        report = parts.join(number, args.window, _schema(table, args))
        report["resumed_rows"] = sum(pq.read_metadata(parts.path(i)).num_rows for i in done)
    parts.remove()
    return report


def _identity(model: Any, tokenizer: Any, table: TableFile, args: PredictionArguments) -> dict[str, Any]:
    """What finished windows depend on."""
    settings = asdict(args)
    # It moves probabilities by rounding alone, and a smaller one lets a run go on that had too little memory.
    settings.pop("batch_tokens")
    if args.threshold is not None:
        settings["threshold"] = np.asarray(args.threshold).tolist()
    return {
        "input": file_fingerprint(table.path),
        "kind": table.kind,
        "model": model_fingerprint(model, tokenizer),
        **settings,
    }


class _Share:
    """Which windows this process predicts: each `num_processes`-th of those that are not finished."""

    def __init__(self, done: set[int], state: Any):
        self.done, self.open = done, 0
        self.number, self.index = state.num_processes, state.process_index

    def __call__(self, window: int) -> bool:
        if window in self.done:
            return False
        self.open += 1
        return (self.open - 1) % self.number == self.index


@dataclass
class _Window:
    """Rows of a file: its number, what was read (nothing if it is not ours to predict), their tokens in the making, and
    the position in the file behind it."""

    index: int
    rows: list[Row]
    tokens: "Future[Tokens] | None"
    end: int


def _windows(
    table: TableFile, names: list[str], args: PredictionArguments, predictor: Predictor, share: "_Share"
) -> Iterator[_Window]:
    """The windows of a file, each handed out when the next one has been read and its tokenizing begun."""
    with ThreadPoolExecutor(1) as beside:
        ready: _Window | None = None
        for index, rows in table.windows(names, args.window, share):
            tokens = None
            if rows is not None:
                texts = [row.cells[0] for row in rows]
                tokens = beside.submit(predictor.tokenize, texts, [row.problem for row in rows])
            ahead = _Window(index, rows or [], tokens, table.position)
            if ready is not None:
                yield ready
            ready = ahead
        if ready is not None:
            yield ready


def _window_table(found: pa.Table, window: _Window, table: TableFile, args: PredictionArguments) -> pa.Table:
    rows, first = window.rows, window.index * args.window
    columns: dict[str, Any] = {"row": pa.array(range(first, first + len(rows)), pa.int64())}
    if args.id_column:
        ids = [row.cells[1] for row in rows]
        columns["id"] = pa.array(ids if table.kind == "parquet" else map(_as_text, ids))
    if args.keep_text:
        columns["text"] = pa.array([_as_text(row.cells[0]) for row in rows], pa.string())
    columns |= {name: found[name] for name in found.column_names}
    return pa.table(columns).cast(_schema(table, args))


def _as_text(value: Any) -> str | None:
    """A value as text; what is no Unicode becomes question marks."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode(errors="replace").decode()


def _schema(table: TableFile, args: PredictionArguments) -> pa.Schema:
    fields: list[tuple[str, pa.DataType]] = [("row", pa.int64())]
    if args.id_column:
        # JSON lines and CSV have no types: their keys are text. Parquet's keep theirs.
        kind = pq.read_schema(table.path).field(args.id_column).type if table.kind == "parquet" else pa.string()
        fields.append(("id", kind))
    if args.keep_text:
        fields.append(("text", pa.string()))
    fields += [("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
    return pa.schema([*fields, ("paths", pa.list_(pa.list_(pa.string()))), ("problem", pa.string())])
