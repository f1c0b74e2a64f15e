"""Predicts the labels of many texts at once, in batches of similar length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from ..data.texts import text_problem
from ..decoding import log_thresholds
from ..modeling_hcal import HcalForSequenceClassification
from ..pipeline_hcal import HierarchicalTextClassificationPipeline
from ..token_limits import check_max_length, token_limit, tokenize
from .command_line import ENGINES
from .explanation import explain_if_possible

# The largest number of logits per batch, 64 MB in float32. Short texts and many labels would otherwise fill the memory.
MAX_LOGITS = 2**24
NO_TOKENS = "the text has no tokens"
NO_NUMBERS = "the model computed NaN"
# A layer's output for this many float32 tokens stays in a CPU's caches. An accelerator needs larger batches.
CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 8192


@dataclass
class PredictionArguments:
    """Sets how [`predict_file`] and [`Predictor`] read, decide and write.

    A resumed run needs the same values, except for `batch_tokens`.

    Args:
        text_column: the column of the texts, or several columns, which are joined by a line break. By default those of
            training (`config.table_options`) if the file has them, else "text".
        id_column (*optional*): the column of a key that is copied to the output.
        keep_text: also write the texts.
        decode, threshold, top_k, max_depth: see [`HierarchicalTextClassificationPipeline`].
        max_length: the maximum number of tokens per text; the limit of the tokenizer by default.
        window: the number of rows that are sorted by length and written together. An interruption loses at most these.
        batch_tokens: the number of tokens per batch, with padding. A longer text has its own batch. By default 2,048 on a
            CPU, 4,096 on a CPU with bf16, and 8,192 on an accelerator.
        bf16: compute the encoder in bfloat16.
        engine: what computes the encoder: `"torch"`, `"onnx"` (onnxruntime on the CPU, with equal results up to rounding)
            or `"int8"` (onnxruntime with int8 weights, which changes predictions slightly). The latter two need the extra
            `export`, and export the encoder first, which takes some seconds.
        explain: also write the words that raise the probability of the most probable end label most ([`explain`]). This
            takes a forward pass per word.
        encoding: the encoding of text formats; detected by default.

    Raises:
        ValueError: if `window`, `batch_tokens` or `max_length` is not a positive integer, for another engine, or for bf16
            with another engine than torch.
    """

    text_column: str | Sequence[str] | None = None
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
    engine: str = "torch"
    explain: bool = False
    encoding: str | None = None

    @property
    def text_columns(self) -> list[str]:
        columns = "text" if self.text_column is None else self.text_column
        return [columns] if isinstance(columns, str) else list(columns)

    def __post_init__(self) -> None:
        if self.max_length is not None:
            check_max_length(self.max_length)
        for name in ("window", "batch_tokens"):
            value = getattr(self, name)
            if (value is not None or name == "window") and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")

        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}.")
        if self.bf16 and self.engine != "torch":
            raise ValueError(f"bf16 is for the engine torch, not for {self.engine!r}: leave one of them out.")

    @property
    def decision_options(self) -> dict[str, Any]:
        """The arguments that the pipeline shares, without those that are None."""
        names = ("decode", "threshold", "top_k", "max_depth")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class TokenizedTexts:
    """Holds N texts as token ids. M of them are usable.

    Attributes:
        columns (`dict`): the columns of the tokenizer for the M usable texts.
        lengths (`np.ndarray` of shape `[M]`): the number of tokens of each usable text.
        usable (`np.ndarray` of shape `[M]`): the indices of the usable texts among the N.
        problems (`list` of length N): the reason why a text is not usable, or None.
        truncated (`int`): the number of texts of which the end was cut off.
    """

    columns: dict[str, list]
    lengths: np.ndarray
    usable: np.ndarray
    problems: list[str | None]
    truncated: int = 0


class Predictor:
    """Predicts the labels of many texts at once, as columns. The predictions are those of the pipeline.

    Args:
        model ([`HcalForSequenceClassification`]): a trained model, on its device.
        tokenizer: the tokenizer of the model.
        args ([`PredictionArguments`]): the options for decisions and batches.

    Raises:
        ValueError: if an argument is out of range, or if arguments conflict (as in the pipeline).
    """

    def __init__(self, model: HcalForSequenceClassification, tokenizer: Any, args: PredictionArguments):
        # The pipeline checks the arguments and decides. Only its formatting, text by text, is too slow here.
        self.pipeline = HierarchicalTextClassificationPipeline(
            model=model, tokenizer=tokenizer, device=model.device, **args.decision_options
        )
        self.model, self.tokenizer, self.args = model, tokenizer, args
        self.max_length: int | None = token_limit(model, tokenizer, args.max_length)
        cpu_batch_tokens = CPU_BATCH_TOKENS * (2 if args.bf16 else 1)
        self.batch_tokens = args.batch_tokens or (cpu_batch_tokens if model.device.type == "cpu" else BATCH_TOKENS)
        self.onnx_encoder: Any = None
        if args.engine != "torch":
            from .onnx_encoder import OnnxEncoder

            if model.device.type != "cpu":
                raise ValueError(
                    f"The engine {args.engine!r} runs on the CPU, but the model is on {model.device}: "
                    "move it to the CPU."
                )
            self.onnx_encoder = OnnxEncoder(model, tokenizer, args.engine == "int8", torch.get_num_threads())
        self.labels = pa.array(model.taxonomy.labels, pa.string())
        names = model.config.label_names
        self.names = None if names is None else pa.array(names, pa.string())
        self._paths: dict[int, list[str]] = {}

    def predict(
        self,
        texts: Sequence[Any],
        problems: Sequence[str | None] | None = None,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> pa.Table:
        """Predicts the labels of N texts, in the order of the texts.

        Args:
            texts: the texts. A value that is empty or not a string gets no labels, and a `problem`. So does a text for
                which the model computes NaN.
            problems (*optional*): for each text a reason not to use it, or None.
            on_progress: called after each batch with the share of the tokens that are done, from 0 to 1.

        Returns:
            a table of N rows with the columns `labels` (list of strings, roots first), `scores` (list of float32
            probabilities), `paths` (for each label the list of names from the root, along the first path in a DAG),
            `names` (list of strings, if the model has `config.label_names`), and `problem` (string, null for predicted
            rows).

        Raises:
            RuntimeError: if a batch does not fit into memory.
        """
        return self.predict_tokens(self.tokenize(texts, problems), on_progress)

    def tokenize(self, texts: Sequence[Any], problems: Sequence[str | None] | None = None) -> TokenizedTexts:
        """Tokenizes the texts of [`Predictor.predict`]. Another thread can do this while the model runs."""
        reasons = [problem or text_problem(text) for text, problem in zip(texts, problems or [None] * len(texts))]
        usable = [i for i, problem in enumerate(reasons) if problem is None]
        columns: dict[str, list] = {}
        truncated = 0
        prefix = self.model.config.text_prefix
        if usable:
            # The tokenizer splits one call over the cores. Padding follows in each batch.
            encoded = tokenize(
                self.tokenizer,
                [prefix + texts[i] for i in usable],
                truncation=self.max_length is not None,
                max_length=self.max_length,
            )
            columns = dict(encoded)
            # Only fast tokenizers keep the tokens that were cut off.
            truncated = sum(bool(encoding.overflowing) for encoding in encoded.encodings or ())
        lengths = np.fromiter(map(len, columns.get("input_ids", ())), dtype=np.int64, count=len(usable))
        for i in np.flatnonzero(lengths == 0).tolist():
            reasons[usable[i]] = NO_TOKENS
        return TokenizedTexts(columns, lengths, np.asarray(usable, dtype=np.int64), reasons, truncated)

    def predict_tokens(
        self, texts: TokenizedTexts, on_progress: Callable[[float], None] = lambda share: None
    ) -> pa.Table:
        """Predicts the table of [`Predictor.predict`] from the result of `tokenize`."""
        columns, lengths = texts.columns, texts.lengths
        rows, nodes, scores, finished = [], [], [], 0
        for batch in self._batches(lengths):
            inputs = [{name: values[i] for name, values in columns.items()} for i in batch.tolist()]
            try:
                row, node, score, without = self._decide(inputs)
            except torch.OutOfMemoryError as problem:
                raise RuntimeError(
                    f"{len(batch)} texts of up to {lengths[batch[0]]} tokens do not fit into memory: set "
                    f"batch_tokens below {self.batch_tokens}. Finished windows of a file are kept."
                ) from problem
            finished += lengths[batch].sum()
            on_progress(finished / lengths.sum())
            for i in texts.usable[batch][without].tolist():
                texts.problems[i] = NO_NUMBERS
            rows.append(texts.usable[batch][row])
            nodes.append(node)
            scores.append(score)
        return self._table(rows, nodes, scores, texts.problems)

    def _batches(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the indices of texts of similar length. The longest come first, so that a large batch fails early."""
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        max_texts = max(1, MAX_LOGITS // self.model.config.num_labels)
        start = 0
        while start < len(order):
            number = min(max_texts, max(1, self.batch_tokens // int(lengths[order[start]])))
            yield order[start : start + number]
            start += number

    @torch.no_grad()
    def _decide(self, inputs: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Predicts one batch. Returns for each label the index of its text, its node and its probability.

        The labels are in the order of the texts, and within a text in the order of the pipeline. The last array holds the
        indices of the texts whose logits are NaN, which get no labels.
        """
        padded = pad_without_fast_tokenizer_warning(self.tokenizer, inputs, return_tensors="pt")
        logits = self._logits(padded)
        args = self.args
        is_number = ~torch.isnan(logits).any(dim=1)
        numbers = is_number.nonzero()[:, 0]
        if len(numbers) < len(logits):
            logits = logits[numbers]
        if args.top_k is None:
            decisions = self.pipeline._decide(logits, args.decode, args.threshold)
            row, node = decisions.nonzero().T
        else:
            log_probs = F.logsigmoid(logits)
            passes = log_probs >= log_thresholds(0.0 if args.threshold is None else args.threshold, log_probs)
            best = torch.cat(
                [
                    logits[:, level].sigmoid().topk(min(args.top_k, level.stop - level.start)).indices + level.start
                    for level in self.model.taxonomy.levels
                ],
                dim=1,
            )
            row, place = passes.gather(1, best).nonzero().T
            node = best[row, place]
        score = torch.sigmoid(logits[row, node]).float()
        rows, nodes, scores = numbers[row].cpu().numpy(), node.cpu().numpy(), score.cpu().numpy()
        without = (~is_number).nonzero()[:, 0].cpu().numpy()
        if args.max_depth is None:
            return rows, nodes, scores, without
        kept = self.model.taxonomy.depths[nodes] <= args.max_depth
        return rows[kept], nodes[kept], scores[kept], without

    def _table(
        self, rows: list[np.ndarray], nodes: list[np.ndarray], scores: list[np.ndarray], problems: list[str | None]
    ) -> pa.Table:
        """Assembles the batches into one table, in the order of the texts."""
        row = np.concatenate([*rows, np.zeros(0, dtype=np.int64)])
        order = np.argsort(row, kind="stable")
        node = np.concatenate([*nodes, np.zeros(0, dtype=np.int64)])[order]
        score = np.concatenate([*scores, np.zeros(0, dtype=np.float32)])[order]
        sizes = np.bincount(row, minlength=len(problems))
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        unique, inverse = np.unique(node, return_inverse=True)
        node_paths = pa.array([self._path(i) for i in unique.tolist()], pa.list_(pa.string()))
        columns = {
            "labels": pa.ListArray.from_arrays(offsets, self.labels.take(pa.array(node))),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(score, pa.float32())),
            "paths": pa.ListArray.from_arrays(offsets, node_paths.take(pa.array(inverse))),
        }
        if self.names is not None:
            columns["names"] = pa.ListArray.from_arrays(offsets, self.names.take(pa.array(node)))
        return pa.table({**columns, "problem": pa.array(problems, pa.string())})

    def explain(self, predictions: pa.Table, texts: Sequence[Any]) -> pa.Table:
        """Adds the column `explanation` to the predictions of texts: up to three words, each with its log-odds.

        They make the most probable label that no other predicted label continues more probable. Rows without a label, and
        texts without words, have null.
        """
        rows, labels = [], []
        for i, (paths, scores) in enumerate(zip(predictions["paths"].to_pylist(), predictions["scores"].to_pylist())):
            if paths:
                inner = {tuple(path[:-1]) for path in paths}
                ends = [k for k, path in enumerate(paths) if tuple(path) not in inner]
                rows.append(i)
                labels.append(predictions["labels"][i][max(ends, key=lambda k: scores[k])].as_py())
        found = explain_if_possible(
            self.model,
            self.tokenizer,
            [texts[i] for i in rows],
            labels,
            max_length=self.max_length,
            compute=self._logits,
        )
        column: list[str | None] = [None] * len(predictions)
        for i, explanation in zip(rows, found):
            if explanation is not None:
                column[i] = ", ".join(f"{word} ({value:+.2f})" for word, value in explanation.strongest())
        return predictions.append_column("explanation", pa.array(column, pa.string()))

    def _logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Computes the logits [B, L] of padded columns of the tokenizer with the engine of the arguments."""
        if self.onnx_encoder is not None:
            return self.model(pooled_states=self.onnx_encoder(batch)).logits
        return self.model(**{name: value.to(self.model.device) for name, value in batch.items()}).logits

    def _path(self, node: int) -> list[str]:
        if node not in self._paths:
            self._paths[node] = self.model.taxonomy.paths(node, limit=1)[0]
        return self._paths[node]
