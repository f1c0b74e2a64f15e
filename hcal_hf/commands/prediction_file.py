"""Predicts every row of a file of any size, in windows. Resumes after an interruption."""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils import logging

from ..configuration_hcal import HcalConfig
from ..data.table_formats import Row
from ..data.tables import TableFile
from ..data.texts import join_texts
from ..training.precision import warn_of_slow_bfloat16
from .atomic_writer import AtomicWriter, file_fingerprint, model_fingerprint
from .predictor import PredictionArguments, Predictor, TokenizedTexts
from .saved_model import load_config, load_model

logger = logging.get_logger(__name__)

# One process may finish hours before another.
PROCESS_TIMEOUT = timedelta(days=7)
# The number of truncated texts of a part, in the metadata of its file.
_TRUNCATED = b"truncated"


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
    """Predicts every row of a file and writes a Parquet file with the rows in the same order.

    Memory holds two windows of rows for a file of any size. The next window is tokenized while the model predicts the
    current one. Each finished window is a file in the folder `out` + `.parts`. At the end, these files are joined, `out`
    appears as a whole, and the folder is removed. After an interruption, the same call resumes: it predicts only the rows
    of unfinished windows, and no row is lost. Under `accelerate launch`, the processes share the windows. They must see the
    same file system. Their number may change between runs.

    Args:
        model_name: the folder of a saved model with its tokenizer, or its name on the Hub.
        file: the input, with any suffix that [`TableFile`] reads.
        out: the path of the output, which ends in `.parquet`.
        args: options for reading, deciding and writing.
        use_cpu: use no accelerator.
        overwrite: replace an existing `out` at the end.
        restart: delete the finished windows of an earlier run.
        progress: show a progress bar on stderr.

    Returns:
        on the main process the counts `rows`, `predicted` and `resumed_rows` (finished by earlier runs), `problems` (the
        number of rows for each problem), `first_problems` (up to five row numbers), `truncated` (the number of texts that
        were cut to `max_length` tokens), `max_length` and `out`. {} on other processes.

    Raises:
        ValueError: if the model is not an HCAL model, a file or column cannot be read, an argument is out of range, or an
            earlier run had other settings, another model or another input.
        FileExistsError: if `out` exists and `overwrite` is not set.
        FileNotFoundError: if a file or folder is missing.
        RuntimeError: if another run is writing the same `out`, or if a batch does not fit into the accelerator's memory.
    """
    args = PredictionArguments() if args is None else args
    table, out = TableFile(Path(file), args.encoding), Path(out)
    if args.text_column is None:
        args = replace(args, text_column=_default_text_columns(table, load_config(model_name)))
    column_names = [*args.text_columns, *([args.id_column] if args.id_column else [])]
    table.check_columns(column_names)
    if out.suffix != ".parquet":
        raise ValueError(f"The predictions are written as Parquet: out must end in .parquet, got {out}.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} for {out.name}: make it first.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already: remove it, or set overwrite (on the command line --overwrite).")
    state = PartialState(cpu=use_cpu, timeout=PROCESS_TIMEOUT)
    model, tokenizer = load_model(model_name, **({"dtype": torch.bfloat16} if args.bf16 else {}))
    # PartialState is shared in a process, so an earlier call may have set its device.
    device = torch.device("cpu") if use_cpu or args.engine != "torch" else state.device
    if args.bf16:
        warn_of_slow_bfloat16(device.type)
    predictor = Predictor(model.to(device), tokenizer, args)
    writer = AtomicWriter(out)
    with writer.locked(state.is_main_process):
        if state.is_main_process:
            writer.prepare(_run_identity(model, tokenizer, table, args), restart)
        state.wait_for_everyone()
        finished = writer.finished()
        state.wait_for_everyone()  # all processes list the same parts, since none has written yet
        assignment = _WindowAssignment(finished, state)
        with tqdm(
            total=table.total,
            desc="Predicting",
            disable=not (progress and state.is_local_main_process),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]",
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as bar:
            rows_done = num_windows = 0
            for window in _windows(table, column_names, args, predictor, assignment):
                num_windows = window.index + 1
                if window.tokens is not None:
                    start, size = bar.n, window.end - bar.n

                    def advance(share: float, start: int = start, size: int = size) -> None:
                        bar.update(start + int(share * size) - bar.n)

                    tokens = window.tokens.result()
                    predictions = predictor.predict_tokens(tokens, advance)
                    if args.explain:
                        texts = [join_texts(row.cells[: len(args.text_columns)]) for row in window.rows]
                        predictions = predictor.explain(predictions, texts)
                    part = _window_table(predictions, window, table, args, model.config)
                    writer.write(window.index, part.replace_schema_metadata({_TRUNCATED: str(tokens.truncated)}))
                    rows_done += len(window.rows)
                bar.set_postfix_str(
                    f"{rows_done:,} rows" + (" here" if state.num_processes > 1 else ""), refresh=False
                )
                bar.update(window.end - bar.n)
        state.wait_for_everyone()
        if not state.is_main_process:
            return {}
        report = writer.join(num_windows, args.window, _schema(table, args, model.config))
        truncated = sum(int(pq.read_schema(writer.path(i)).metadata[_TRUNCATED]) for i in range(num_windows))
        if truncated:
            logger.warning(f"{truncated:,} texts were truncated to {predictor.max_length:,} tokens.")
        report |= {"truncated": truncated, "max_length": predictor.max_length}
        report["resumed_rows"] = sum(pq.read_metadata(writer.path(i)).num_rows for i in finished)
    writer.remove()
    return report


def _default_text_columns(table: TableFile, config: HcalConfig) -> list[str]:
    """Returns the text columns of training, unless the file lacks them and has a column `text`."""
    columns = (config.table_options or {}).get("text", ["text"])
    return ["text"] if "text" in table.columns and not set(columns) <= set(table.columns) else columns


def _run_identity(model: Any, tokenizer: Any, table: TableFile, args: PredictionArguments) -> dict[str, Any]:
    """Describes everything that the finished windows depend on."""
    settings = asdict(args)
    # It changes probabilities only by rounding, and a smaller value resumes a run that was out of memory.
    settings.pop("batch_tokens")
    settings["text_column"] = args.text_columns  # one column may be given as a string or as a list
    if args.threshold is not None:
        settings["threshold"] = np.asarray(args.threshold).tolist()
    return {
        "input": file_fingerprint(table.path),
        "kind": table.kind,
        "model": model_fingerprint(model, tokenizer),
        **settings,
    }


class _WindowAssignment:
    """Assigns the unfinished windows to the processes in turn. Is called with each window index, in order."""

    def __init__(self, finished: set[int], state: Any):
        self.finished, self.num_unfinished = finished, 0
        self.num_processes, self.process_index = state.num_processes, state.process_index

    def __call__(self, window: int) -> bool:
        """Returns whether this process predicts the window."""
        if window in self.finished:
            return False
        self.num_unfinished += 1
        return (self.num_unfinished - 1) % self.num_processes == self.process_index


@dataclass
class _Window:
    """Holds a window of rows of a file.

    Attributes:
        index: the number of the window, from 0.
        rows: the rows, or [] if this process does not predict the window.
        tokens: the texts of the rows, which another thread tokenizes; None without rows.
        end: the position in the file after the window, in bytes or rows.
    """

    index: int
    rows: list[Row]
    tokens: "Future[TokenizedTexts] | None"
    end: int


def _windows(
    table: TableFile,
    column_names: list[str],
    args: PredictionArguments,
    predictor: Predictor,
    assignment: _WindowAssignment,
) -> Iterator[_Window]:
    """Yields each window of a file after the next one is read and its tokenization has started."""
    with ThreadPoolExecutor(1) as executor:
        current: _Window | None = None
        for index, rows in table.windows(column_names, args.window, assignment):
            tokens = None
            if rows is not None:
                texts = [join_texts(row.cells[: len(args.text_columns)]) for row in rows]
                tokens = executor.submit(predictor.tokenize, texts, [row.problem for row in rows])
            following = _Window(index, rows or [], tokens, table.position)
            if current is not None:
                yield current
            current = following
        if current is not None:
            yield current


def _window_table(
    predictions: pa.Table, window: _Window, table: TableFile, args: PredictionArguments, config: HcalConfig
) -> pa.Table:
    """Adds the row numbers, and the keys and texts if requested, to the predictions of a window."""
    rows, first = window.rows, window.index * args.window
    columns: dict[str, Any] = {"row": pa.array(range(first, first + len(rows)), pa.int64())}
    if args.id_column:
        ids = [row.cells[-1] for row in rows]
        columns["id"] = pa.array(ids if table.kind == "parquet" else map(_as_text, ids))
    if args.keep_text:
        columns["text"] = pa.array(
            [_as_text(join_texts(row.cells[: len(args.text_columns)])) for row in rows], pa.string()
        )
    columns |= {name: predictions[name] for name in predictions.column_names}
    schema = _schema(table, args, config)
    return pa.table(columns).select(schema.names).cast(schema)


def _as_text(value: Any) -> str | None:
    """Converts a value to text. Characters that are not valid Unicode become question marks."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode(errors="replace").decode()


def _schema(table: TableFile, args: PredictionArguments, config: HcalConfig) -> pa.Schema:
    """Returns the schema of the output."""
    fields: list[tuple[str, pa.DataType]] = [("row", pa.int64())]
    if args.id_column:
        # Keys of JSON lines and CSV become text, because these formats have no types. Parquet keys keep their type.
        kind = pq.read_schema(table.path).field(args.id_column).type if table.kind == "parquet" else pa.string()
        fields.append(("id", kind))
    if args.keep_text:
        fields.append(("text", pa.string()))
    fields += [("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
    fields.append(("paths", pa.list_(pa.list_(pa.string()))))
    if config.label_names is not None:
        fields.append(("names", pa.list_(pa.string())))
    explanation = [("explanation", pa.string())] if args.explain else []
    return pa.schema([*fields, *explanation, ("problem", pa.string())])
