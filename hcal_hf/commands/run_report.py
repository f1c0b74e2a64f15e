"""Collects what a run knows for its report."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ..configuration_hcal import HcalConfig
from ..data.encoding import RowEncoder
from ..data.labels import LabelReader
from ..data.left_out import find_left_out
from ..data.rows import class_names
from ..data.texts import join_texts
from ..report.summary import RunFacts, SplitRows
from ..taxonomy import Taxonomy
from ..training.trainer import HcalTrainer
from .run_arguments import DataArguments, ModelArguments, TableArguments

REPORT_FILE = "report.html"
_METHODS = {"micro_f1": "micro-F1", "macro_f1": "macro-F1"}


class RunRows:
    """Relates the encoded rows of a run to the rows that were read.

    Args:
        raw: the splits before encoding.
        encoded: the encoded splits.
        taxonomy ([`Taxonomy`]): the hierarchy.
        tables: the columns and how they are read.
        config ([`HcalConfig`]): the model's.
        truncated (*optional*): the number of truncated texts of each split ([`encode_splits`]).
    """

    def __init__(
        self,
        raw: DatasetDict,
        encoded: DatasetDict,
        taxonomy: Taxonomy,
        tables: TableArguments,
        config: HcalConfig,
        truncated: Mapping[str, int] | None = None,
    ):
        self.raw, self.columns = raw, tables.table_options["text"]
        self.kept: dict[str, np.ndarray] = {}
        self.unlabelled: dict[str, np.ndarray] = {}
        self.splits: list[SplitRows] = []
        for name, table in raw.items():
            used, problems = len(encoded[name]), []
            if used < len(table):
                left_out = find_left_out(table, _encoder(table, taxonomy, tables, config))
                self.kept[name], self.unlabelled[name] = left_out.kept, left_out.unlabelled
                problems = [f"row {row + 1}: {problem}" for row, problem in left_out.bad.items()]
            cut = (truncated or {}).get(name, 0)
            self.splits.append(SplitRows(name, used, len(self.unlabelled.get(name, ())), problems, cut))

    def numbers(self, split: str) -> np.ndarray:
        """Returns the number of each encoded row in the table that was read, from 1."""
        kept = self.kept.get(split)
        return 1 + (np.arange(len(self.raw[split])) if kept is None else kept)

    def texts(self, split: str) -> Callable[[Sequence[int]], list[str]]:
        """Returns a function from positions in an encoded split to texts."""

        def read(positions: Sequence[int]) -> list[str]:
            return self._read(split, [int(self.kept[split][i]) if split in self.kept else int(i) for i in positions])

        return read

    def unlabelled_texts(self) -> list[str]:
        """Returns the texts of the rows without known labels, from all splits."""
        return [text for split, rows in self.unlabelled.items() for text in self._read(split, rows.tolist())]

    def _read(self, split: str, rows: Sequence[int]) -> list[str]:
        table = self.raw[split].select(rows)
        return [str(join_texts(cells)) for cells in zip(*(table[name][:] for name in self.columns))]


def _encoder(table: Dataset, taxonomy: Taxonomy, tables: TableArguments, config: HcalConfig) -> RowEncoder:
    """Builds an encoder that reads the rows of a split as [`encode_splits`] does, without a tokenizer."""
    options = tables.table_options
    reader = LabelReader(
        tables.label_options["labels"],
        separator=options["separator"],
        delimiter=options["delimiter"],
        empty_means_none=bool(options["empty_means_none"]),
        class_names=class_names(table, options["labels"]),
    )
    return RowEncoder(taxonomy, None, options["text"], reader, config.label_mode, config.partial_paths, None)


def training_facts(
    trainer: HcalTrainer,
    model_args: ModelArguments,
    data_args: DataArguments,
    rows: RunRows,
    metrics: dict[str, float],
    split: str,
) -> RunFacts:
    """Collects what a training knows for its report."""
    data = str(data_args.data_dir or data_args.dataset)
    encoder = model_args.encoder or f"that of {model_args.start_from}"
    settings = [("encoder", encoder), *trainer._training_settings().items()]
    if data_args.leave_out:
        settings.append(("left out before", f"rows with {', '.join(data_args.leave_out)}"))
    return RunFacts(
        title=f"Training on {Path(data).name or data}",
        model=str(trainer.args.output_dir),
        data=data,
        split=split,
        metrics=without_prefix(metrics, split),
        config=trainer.unwrapped_model.config,
        rows=rows.splits,
        tuning=training_tuning(trainer.tuned, trainer.args.tune),
        settings=settings,
        is_training=True,
    )


def without_prefix(metrics: dict[str, float], split: str) -> dict[str, float]:
    """Removes the prefix of the split from the names of metrics."""
    return {name.removeprefix(f"{split}_"): value for name, value in metrics.items()}


def temperature_rows(fitted: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Describes a fitted temperature as rows (value, before, after)."""
    rows = [("temperature", f"{fitted['temperature_before']:.3g}", f"{fitted['temperature']:.3g}")]
    for name, title in (
        ("nll", "-log P of a document's labels"),
        ("end_ece", "calibration error of the paths"),
        ("ece", "calibration error of all labels"),
    ):
        if f"{name}_before" in fitted:
            scale, unit = (1, "") if name == "nll" else (100, " %")
            old, new = (f"{scale * fitted[f'{name}_{when}']:.3f}{unit}" for when in ("before", "after"))
            rows.append((title, old, new))
    return rows


def threshold_rows(tuned: dict[str, float], metric: str, how: str) -> list[tuple[str, str, str]]:
    """Describes tuned thresholds as rows (value, before, after)."""
    old, new = (f"{100 * tuned[when]:.1f} %" for when in ("before", "after"))
    return [(f"{_METHODS.get(metric, metric)} ({how})", old, new)]


def training_tuning(tuned: dict[str, float], metric: str) -> list[tuple[str, str, str]]:
    """Describes the result of [`tune_model`] as rows (value, before, after)."""
    if not tuned:
        return []
    rows = temperature_rows(tuned)
    if "threshold" in tuned:
        rows.append(("label threshold", "0.5", f"{tuned['threshold']:.2f}"))
        rows += threshold_rows(tuned, metric, "five-fold cross-validation")
    return rows


def count_labels(encoded: Dataset, taxonomy: Taxonomy) -> np.ndarray:
    """Counts the documents of each label [L] in an encoded split."""
    counts = np.zeros(taxonomy.num_labels, dtype=np.int64)
    for batch in encoded.select_columns("labels").iter(batch_size=10_000):
        nodes = np.fromiter(chain.from_iterable(batch["labels"]), dtype=np.int64)
        counts += np.bincount(nodes, minlength=taxonomy.num_labels)
    return counts
