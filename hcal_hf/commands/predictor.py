"""Predicts the labels of many texts at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from ..data.texts import text_problem
from ..decoding import log_thresholds
from ..modeling_hcal import HcalForSequenceClassification
from ..pipeline_hcal import NO_LIMIT, HierarchicalTextClassificationPipeline

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
