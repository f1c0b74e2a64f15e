"""Predictions for a file of any size: read and written in windows, batched by tokens, resumed after a stop."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
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
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from ..data.table_formats import Row
from ..data.tables import TableFile
from ..data.texts import text_problem
from ..decoding import log_thresholds
from ..modeling_hcal import HcalForSequenceClassification
from ..pipeline_hcal import NO_LIMIT, HierarchicalTextClassificationPipeline
from ..training.precision import warn_of_slow_bfloat16
from .atomic_writer import Parts, file_fingerprint, model_fingerprint
from .evaluate import load_model

# Logits of one batch, at most: short texts and many labels would otherwise fill the memory. 64 MB in float32.
MAX_LOGITS = 2**24
# Processes may finish hours apart.
PATIENCE = timedelta(days=7)
NO_TOKENS = "the text has no tokens"
# What a layer makes of so many tokens in float32, of twice as many in bfloat16, stays in a CPU's caches; an accelerator
# needs more to be busy.
CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 8192


@dataclass
class PredictionArguments:
    """What is read, how it is decided and what is written. All but `batch_tokens` must stay the same in a resumed run.

    Args:
        text_column, id_column: columns of the texts and, if there is one, of a key that is written along.
        keep_text: also write the texts.
        decode, threshold, top_k, max_depth: as of [`HierarchicalTextClassificationPipeline`].
        max_length: tokens a text at most; the tokenizer's own limit by default.
        window: rows that are sorted by length together, and finished together: what a kill can cost at most.
        batch_tokens: tokens of a batch, padding included; a longer text has a batch of its own. By default 2,048 on a CPU,
            4,096 there with bf16, 8,192 on an accelerator.
        bf16: compute the encoder in bfloat16.
        encoding: of text formats; detected by default.
    """

    text_column: str = "text"
    id_column: str | None = None
    keep_text: bool = False
    decode: str | None = None
    threshold: float | Sequence[float] | None = None
    top_k: int | None = None
    max_depth: int | None = None
    max_length: int | None = None
    window: int = 4096
    batch_tokens: int | None = None
    bf16: bool = False
    encoding: str | None = None

    def __post_init__(self) -> None:
        for name in ("window", "batch_tokens", "max_length"):
            value = getattr(self, name)
            if (value is not None or name == "window") and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")

    @property
    def deciding(self) -> dict[str, Any]:
        """The arguments of the pipeline."""
        names = ("decode", "threshold", "top_k", "max_depth")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class Tokens:
    """N texts as token ids.

    Attributes:
        columns (`dict`): the tokenizer's columns, of the M texts that can be used.
        lengths (`np.ndarray` of shape `[M]`): tokens of each.
        usable (`np.ndarray` of shape `[M]`): which of the N they are.
        problems (`list`): for each of the N why it cannot be used, or None.
    """

    columns: dict[str, list]
    lengths: np.ndarray
    usable: np.ndarray
    problems: list[str | None]


class Predictor:
    """Predicts labels of many texts at once: what the pipeline would, in columns.

    Args:
        model ([`HcalForSequenceClassification`]): a trained model, on its device.
        tokenizer: its tokenizer.
        args ([`PredictionArguments`]): how to decide and batch.

    Raises:
        ValueError: for arguments out of range or that do not go together, as the pipeline does.
    """

    def __init__(self, model: HcalForSequenceClassification, tokenizer: Any, args: PredictionArguments):
        # The pipeline checks the arguments and decides; it is only its one-by-one formatting that is too slow here.
        self.pipe = HierarchicalTextClassificationPipeline(
            model=model, tokenizer=tokenizer, device=model.device, **args.deciding
        )
        self.model, self.tokenizer, self.args = model, tokenizer, args
        limit = args.max_length
        if limit is None:
            limit = tokenizer.model_max_length if tokenizer.model_max_length <= NO_LIMIT else model.max_tokens
        self.max_length: int | None = limit
        on_cpu = CPU_BATCH_TOKENS * (2 if args.bf16 else 1)
        self.batch_tokens = args.batch_tokens or (on_cpu if model.device.type == "cpu" else BATCH_TOKENS)
        self.labels = pa.array(model.taxonomy.labels, pa.string())
        self._paths: dict[int, list[str]] = {}

    def predict(
        self,
        texts: Sequence[Any],
        problems: Sequence[str | None] | None = None,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> pa.Table:
        """Labels of N texts, in their order.

        Args:
            texts: what is no string, or empty, gets an empty answer and a `problem`.
            problems (*optional*): for each text why it is not to be used, or None.
            on_progress: called after each batch with the share of the tokens that are done.

        Returns:
            a table of N rows: `labels` (list of strings, roots first), `scores` (list of float32, their probabilities),
            `paths` (for each label the list of names on the way to it; in a DAG the first such path), and `problem`
            (string, null for all that were predicted).
        """
        return self.answer(self.tokenize(texts, problems), on_progress)

    def tokenize(self, texts: Sequence[Any], problems: Sequence[str | None] | None = None) -> "Tokens":
        """What can be done to the texts of [`Predictor.predict`] beside the model, in another thread."""
        given = [problem or text_problem(text) for text, problem in zip(texts, problems or [None] * len(texts))]
        usable = [i for i, problem in enumerate(given) if problem is None]
        tokens: dict[str, list] = {}
        if usable:
            # Padding happens a batch; tokenizers split the texts over the cores.
            tokens = dict(
                self.tokenizer(
                    [texts[i] for i in usable], truncation=self.max_length is not None, max_length=self.max_length
                )
            )
        lengths = np.fromiter(map(len, tokens.get("input_ids", ())), dtype=np.int64, count=len(usable))
        for i in np.flatnonzero(lengths == 0).tolist():
            given[usable[i]] = NO_TOKENS
        return Tokens(tokens, lengths, np.asarray(usable, dtype=np.int64), given)

    def answer(self, texts: "Tokens", on_progress: Callable[[float], None] = lambda share: None) -> pa.Table:
        """The table of [`Predictor.predict`] for texts that `tokenize` has made."""
        tokens, lengths = texts.columns, texts.lengths
        rows, nodes, scores, finished = [], [], [], 0
        for batch in self._batches(lengths):
            inputs = [{name: values[i] for name, values in tokens.items()} for i in batch.tolist()]
            try:
                row, node, score = self._decide(inputs)
            except torch.OutOfMemoryError as problem:
                raise RuntimeError(
                    f"{len(batch)} texts of up to {lengths[batch[0]]} tokens do not fit into memory: give a smaller "
                    f"batch_tokens than {self.batch_tokens}. Finished windows of a file are kept."
                ) from problem
            finished += lengths[batch].sum()
            on_progress(finished / lengths.sum())
            rows.append(texts.usable[batch][row])
            nodes.append(node)
            scores.append(score)
        return self._table(rows, nodes, scores, texts.problems)

    def _batches(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Indices of texts of similar length, the longest first, so that too large a batch fails at once."""
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        most = max(1, MAX_LOGITS // self.model.config.num_labels)
        start = 0
        while start < len(order):
            number = min(most, max(1, self.batch_tokens // int(lengths[order[start]])))
            yield order[start : start + number]
            start += number

    @torch.no_grad()
    def _decide(self, inputs: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(text of the batch, node, probability) of each predicted label, in the order of the texts and then of the
        pipeline's answer."""
        padded = pad_without_fast_tokenizer_warning(self.tokenizer, inputs, return_tensors="pt")
        logits = self.model(**{name: value.to(self.model.device) for name, value in padded.items()}).logits
        deciding = self.args.deciding
        depths, max_depth = self.model.taxonomy.depths, deciding.pop("max_depth", None)
        top_k, threshold = deciding.pop("top_k", None), deciding.get("threshold")
        if top_k is None:
            chosen = self.pipe._decide(logits, deciding.get("decode"), threshold)
            row, node = chosen.nonzero().T
        else:
            log_probs = F.logsigmoid(logits)
            passes = log_probs >= log_thresholds(0.0 if threshold is None else threshold, log_probs)
            best = torch.cat(
                [
                    logits[:, level].sigmoid().topk(min(top_k, level.stop - level.start)).indices + level.start
                    for level in self.model.taxonomy.levels
                ],
                dim=1,
            )
            row, place = passes.gather(1, best).nonzero().T
            node = best[row, place]
        score = torch.sigmoid(logits[row, node]).float()
        rows, nodes, scores = row.cpu().numpy(), node.cpu().numpy(), score.cpu().numpy()
        if max_depth is None:
            return rows, nodes, scores
        kept = depths[nodes] <= max_depth
        return rows[kept], nodes[kept], scores[kept]

    def _table(
        self, rows: list[np.ndarray], nodes: list[np.ndarray], scores: list[np.ndarray], problems: list[str | None]
    ) -> pa.Table:
        row = np.concatenate([*rows, np.zeros(0, dtype=np.int64)])
        order = np.argsort(row, kind="stable")
        node = np.concatenate([*nodes, np.zeros(0, dtype=np.int64)])[order]
        score = np.concatenate([*scores, np.zeros(0, dtype=np.float32)])[order]
        sizes = np.bincount(row, minlength=len(problems))
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        unique, inverse = np.unique(node, return_inverse=True)
        known = pa.array([self._path(i) for i in unique.tolist()], pa.list_(pa.string()))
        return pa.table(
            {
                "labels": pa.ListArray.from_arrays(offsets, self.labels.take(pa.array(node))),
                "scores": pa.ListArray.from_arrays(offsets, pa.array(score, pa.float32())),
                "paths": pa.ListArray.from_arrays(offsets, known.take(pa.array(inverse))),
                "problem": pa.array(problems, pa.string()),
            }
        )

    def _path(self, node: int) -> list[str]:
        if node not in self._paths:
            self._paths[node] = self.model.taxonomy.paths(node, limit=1)[0]
        return self._paths[node]


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
