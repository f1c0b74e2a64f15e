"""Compares two saved models on the same documents."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..report.comparison import Comparison, DifferingDocument, as_dict, compare_predictions
from ..report.label_scores import is_end, tree_parents
from ..report.predictions import LabelPairs, Predictions, collect_predictions
from ..report.report import write_report
from ..report.summary import RunFacts, path_of, shortened
from ..taxonomy import Taxonomy
from .evaluation_run import EvaluationArguments, build_trainer, check_decoder, evaluation_facts
from .run_arguments import TableArguments
from .run_data import encode_splits, load_data
from .run_report import RunRows
from .saved_model import load_model

RESAMPLES = 10_000
# Differing documents of each kind that are stored with their texts, and that are printed.
_EXAMPLES, _PRINTED = 10, 3
_KINDS = {
    "first_right": "only A is right",
    "second_right": "only B is right",
    "both_wrong": "both are wrong, in different ways",
}


def compare_models(
    first: str, second: str, args: EvaluationArguments, tables: TableArguments, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Evaluates two saved models on the same documents, compares their metrics by the paired bootstrap, and prints a table.

    [`compare_predictions`] describes the bootstrap. The models are compared as they are: nothing is fitted.

    Args:
        first, second: folders of saved models, or their names on the Hub. They may differ in everything but the hierarchy.
        args: the split, the decoder, the seed of the bootstrap and the report, which describes the first model in full.
        tables: the texts and labels. What it does not set is read as in the training of the first model.
        resamples: how often the documents are drawn.

    Returns:
        `models`, `split`, `documents`, `resamples`, `seed`; `metrics`, for each metric `first`, `second`, `difference`
        (second - first), `low` and `high` (the 95 % interval) and `p`; `differing_rows`, the rows (from 1) with different
        predictions for which `first_right`, `second_right` or `both_wrong`; and `examples` of them. `report` is the file of
        the report, if one was written.

    Raises:
        ValueError: if the hierarchies differ, values would be fitted, or as for [`evaluate_model`].
    """
    args.check(first)
    if args.fits:
        raise ValueError(
            "A comparison fits nothing: leave temperature, tune and risk out, or fit each model on its own and save it "
            "with output_dir first."
        )
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    loaded = [load_model(name) for name in (first, second)]
    taxonomy = loaded[0][0].taxonomy
    _check_taxonomies(first, second, taxonomy, loaded[1][0].taxonomy)
    tables = tables.with_defaults(loaded[0][0].config.table_options)
    raw = load_data(tables, [args.split])
    found: list[tuple[RunFacts, Predictions, RunRows]] = []
    for name, (model, tokenizer) in zip((first, second), loaded):
        config = model.config
        check_decoder(args, config)
        truncated: dict[str, int] = {}
        encoded = encode_splits(
            raw, taxonomy, tokenizer, tables, config.label_mode, config.partial_paths, config.text_prefix, truncated
        )
        if not len(encoded[args.split]):
            raise ValueError(f"The split {args.split} of {tables.data_dir or tables.dataset} has no documents.")
        rows = RunRows(raw, encoded, taxonomy, tables, config, truncated)
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(model, tokenizer, args, folder)
            with collect_predictions(trainer, args.decode) as collector:
                metrics = trainer.evaluate(encoded[args.split], metric_key_prefix=args.split)
            is_main = trainer.is_world_process_zero()
        facts = evaluation_facts(name, args, tables, {"metrics": metrics}, rows, config)
        found.append((facts, collector.result(), rows))
    (facts, a, rows), (_, b, other_rows) = found
    numbers = rows.numbers(args.split)
    if not np.array_equal(numbers, other_rows.numbers(args.split)):
        raise ValueError(
            f"{first} can be evaluated on {len(numbers):,} rows and {second} on {len(other_rows.numbers(args.split)):,}, "
            "because their label modes differ. Compare them on rows that both can predict."
        )
    comparison = compare_predictions(a, b, taxonomy, (first, second), resamples, args.seed)
    texts = None if args.no_texts else rows.texts(args.split)
    comparison.examples = _examples(comparison, a, b, taxonomy, facts.config.shown_names, numbers, texts)
    result: dict[str, Any] = {"split": args.split, **as_dict(comparison, numbers)}
    if is_main:
        if args.report:
            facts.title = f"{Path(first).name or first} and {Path(second).name or second} on {Path(facts.data).name}"
            result["report"] = str(write_report(args.report, facts, a, taxonomy, texts, comparison))
        print(json.dumps(result, indent=2) if args.json else comparison_table(comparison, args.split))
        if args.report and not args.json:
            print(f"\nThe report is in {args.report}.")
    return result


def _check_taxonomies(first: str, second: str, taxonomy: Taxonomy, other: Taxonomy) -> None:
    """Raises a ValueError if the hierarchies differ."""
    if taxonomy == other:
        return
    only = [sorted(set(a.labels) - set(b.labels)) for a, b in ((taxonomy, other), (other, taxonomy))]
    found = [
        f"only {name} has {len(labels):,} labels, first {labels[0]!r}"
        for name, labels in zip((first, second), only)
        if labels
    ] or ["the labels are the same, but their parents or their order differ"]
    raise ValueError(
        f"The models have different taxonomies, {taxonomy.num_labels:,} and {other.num_labels:,} labels: "
        f"{'; '.join(found)}. A comparison needs the same taxonomy: train both models with --taxonomy FILE."
    )


def _examples(
    comparison: Comparison,
    first: Predictions,
    second: Predictions,
    taxonomy: Taxonomy,
    names: Sequence[str],
    numbers: np.ndarray,
    texts: Callable[[Sequence[int]], list[str]] | None,
) -> dict[str, list[DifferingDocument]]:
    """Describes a few documents of each kind."""
    parents = tree_parents(taxonomy)

    def paths(pairs: LabelPairs, document: int) -> list[str]:
        nodes = pairs.of(document)
        one = LabelPairs(np.zeros(len(nodes), dtype=np.int64), nodes, 1, pairs.num_labels)
        return [path_of(int(node), parents, names) for node in nodes[is_end(one, taxonomy)]]

    examples = {}
    for kind in _KINDS:
        documents = [int(document) for document in getattr(comparison, kind)[:_EXAMPLES]]
        shown = [shortened(text) for text in texts(documents)] if texts and documents else [""] * len(documents)
        examples[kind] = [
            DifferingDocument(
                int(numbers[document]), text, paths(first.true, document), paths(first.predicted, document),
                paths(second.predicted, document),
            )
            for document, text in zip(documents, shown)
        ]  # fmt: skip
    return examples


def comparison_table(comparison: Comparison, split: str) -> str:
    """Formats a comparison as text, in percent."""
    width = max(len(metric.title) for metric in comparison.metrics)
    lines = [
        f"A: {comparison.first}",
        f"B: {comparison.second}",
        f"\n{split}: {comparison.documents:,} documents, in percent",
        "",
        f"{'metric':{width}s}      A      B   B - A   95 % interval       p",
    ]
    for metric in comparison.metrics:
        low, high = (f"{100 * value:+.1f}" for value in (metric.low, metric.high))
        lines.append(
            f"{metric.title:{width}s} {100 * metric.first:6.1f} {100 * metric.second:6.1f}  "
            f"{100 * metric.difference:+6.1f}  {low:>6s} to {high:<6s} {p_value(metric.p, comparison.resamples):>7s}"
        )
    lines += [
        "",
        f"Paired bootstrap over the documents: {comparison.resamples:,} resamples, seed {comparison.seed}. p is two-sided, "
        "for each metric on its own.",
        "",
        "documents with different predictions:",
    ]
    for kind, meaning in _KINDS.items():
        lines.append(f"  {len(getattr(comparison, kind)):6,d}  {meaning}")
    for kind, meaning in _KINDS.items():
        for document in comparison.examples[kind][:_PRINTED]:
            lines += ["", f"  row {document.row}, {meaning}: {document.text[:90]}".rstrip(": ")]
            for name, paths in (("true", document.true), ("A", document.first), ("B", document.second)):
                lines.append(f"    {name + ':':5s} {'; '.join(paths) or '(nothing)'}")
    return "\n".join(lines)


def p_value(p: float, resamples: int) -> str:
    """Formats a p; the smallest possible one as an upper bound."""
    return f"<{1 / resamples:.1g}" if p <= 1 / resamples else f"{p:.3g}" if p < 0.001 else f"{p:.3f}"
