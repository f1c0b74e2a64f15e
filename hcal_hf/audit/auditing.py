"""Audits annotated documents: which labels are probably missing, and which look wrong."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import AutoTokenizer
from transformers.utils import logging

from ..configuration_hcal import HcalConfig
from ..data.encoding import encode_dataset
from ..data.label_checks import find_misfits, label_column
from ..data.rows import check_columns
from ..data.tables import read_table
from ..data.taxonomy_builder import build_taxonomy
from ..data.texts import group_equal_texts, join_texts
from ..modeling_hcal import HcalForSequenceClassification
from ..taxonomy import SEPARATOR, Taxonomy
from ..token_limits import token_limit
from ..training.arguments import HcalTrainingArguments
from ..training.feature_model import feature_model
from ..training.features import pooled_features
from ..training.solver import unsolvable_because
from .annotations import Annotations
from .candidates import PathCandidates
from .folds import OutOfFold, draw_folds, frozen_out_of_fold, trained_out_of_fold
from .ranking import Ranking, check_ranking, rank_missing
from .wrong import WrongLabels, check_quantile, wrong_labels

logger = logging.get_logger(__name__)

# The column that keeps the row number of the table.
_ROW = "_audited_row"
_HEAD_OPTIONS = ("strength", "anchored", "max_iterations")
_RANKING_OPTIONS = ("score", "label_frequency", "order", "top")


@dataclass
class AuditReport:
    """Holds the result of an audit.

    Attributes:
        ranking ([`Ranking`]): the labels that are probably missing. Its documents are positions in `rows`.
        wrong ([`WrongLabels`], *optional*): the labels that look wrong; None under multi_path.
        annotations ([`Annotations`]): the labels of the audited documents.
        out_of_fold ([`OutOfFold`]): the out-of-fold probabilities.
        label_mode (`str`), partial_paths (`bool`): how the documents are labelled.
        rows (int64 `np.ndarray` of shape `[N]`): the row of each audited document in the table, from 0.
        texts (`list[str]`, *optional*): the texts of the audited documents.
    """

    ranking: Ranking
    wrong: WrongLabels | None
    annotations: Annotations
    out_of_fold: OutOfFold
    label_mode: str
    partial_paths: bool
    rows: np.ndarray
    texts: list[str] | None = None

    @property
    def taxonomy(self) -> Taxonomy:
        """The hierarchy."""
        return self.annotations.taxonomy

    def suspicions(self) -> Iterator[dict[str, Any]]:
        """Yields one row for each missing label that is suspected, the first rank first.

        Returns:
            `rank` (from 1), `row` (of the table, from 0), `path` to the end node, `missing` (its nodes that the document
            lacks, top down), `present` (the paths that the document has), `probability` p of the end node, `conditional`
            (the score: P given what is present), `p_missing` and, if they are known, `text`.
        """
        ranking = self.ranking
        candidates = PathCandidates(self.taxonomy, self.partial_paths)
        for i, (document, node) in enumerate(zip(ranking.documents.tolist(), ranking.nodes.tolist())):
            present = self.annotations.row(document)
            yield {
                "rank": i + 1,
                "row": int(self.rows[document]),
                "path": self.path(node),
                "missing": [self.taxonomy.names[n] for n in candidates.missing_path(node, present).tolist()],
                "present": self.present_paths(document),
                "probability": float(ranking.probabilities[i]),
                "conditional": float(ranking.scores[i]),
                "p_missing": float(ranking.missing[i]),
                **self._text(document),
            }

    def wrong_rows(self) -> Iterator[dict[str, Any]]:
        """Yields one row for each label that looks wrong, the most surprising first.

        Returns:
            `rank`, `row`, the `given` and the `likelier` path, their probabilities `p_given` and `p_likelier`, `surprise`
            (-log P of the given path) and, if they are known, `text`.
        """
        wrong = self.wrong
        for i in range(0 if wrong is None else len(wrong)):
            assert wrong is not None
            document = int(wrong.documents[i])
            yield {
                "rank": i + 1,
                "row": int(self.rows[document]),
                "given": self.path(int(wrong.given[i])),
                "likelier": self.path(int(wrong.likelier[i])),
                "p_given": float(wrong.given_probabilities[i]),
                "p_likelier": float(wrong.likelier_probabilities[i]),
                "surprise": float(wrong.surprise[i]),
                **self._text(document),
            }

    def label_rows(self) -> list[dict[str, Any]]:
        """Returns one row for each label that can be missing: `path`, `documents` that carry it, the estimated `frequency`
        of its annotation, and `expected_missing`, the label with the most first."""
        is_end = PathCandidates(self.taxonomy, self.partial_paths).is_end
        expected = self.ranking.expected_missing
        carriers = np.bincount(self.annotations.nodes, minlength=len(expected))
        order = [node for node in np.argsort(-expected, kind="stable").tolist() if is_end[node]]
        return [
            {
                "path": self.path(node),
                "documents": int(carriers[node]),
                "frequency": float(self.ranking.frequencies[node]),
                "expected_missing": float(expected[node]),
            }
            for node in order
        ]

    def path(self, node: int) -> str:
        """Returns the first path to a node as text."""
        return SEPARATOR.join(self.taxonomy.paths(node, limit=1)[0])

    def present_paths(self, document: int) -> list[str]:
        """Returns the paths that a document has, without those that another one continues."""
        return [SEPARATOR.join(path) for path in self.taxonomy.decode(self.annotations.row(document), limit=1)]

    def _text(self, document: int) -> dict[str, str]:
        return {} if self.texts is None else {"text": self.texts[document]}


def audit_labels(
    source: str | os.PathLike | HcalForSequenceClassification,
    dataset: Any,
    taxonomy: Taxonomy | None = None,
    *,
    tokenizer: Any = None,
    text: str | Sequence[str] = "text",
    labels: str | Sequence[str] = "labels",
    separator: str = SEPARATOR,
    delimiter: str | None = None,
    empty_means_none: bool = False,
    on_bad_row: str = "raise",
    max_length: int | None = None,
    label_mode: str | None = None,
    partial_paths: bool | None = None,
    head: str = "auto",
    folds: int = 5,
    training_args: HcalTrainingArguments | None = None,
    feature_cache: str | os.PathLike | None = None,
    use_cpu: bool = False,
    seed: int = 0,
    **options: Any,
) -> AuditReport:
    """Finds the labels that annotated documents probably lack, and under single_path labels that look wrong.

    The documents are divided into folds, and documents with equal texts share a fold. Each document is scored by a model
    that was trained on the other folds, with a temperature that was fitted to them. By default, the encoder is frozen: its
    features are computed once, and only the head is fitted in each fold, which takes seconds. With `training_args`, the
    whole model is trained for each fold.

    Args:
        source: the name or folder of an encoder; or a model, for its encoder, labels and structure. The head of a model is
            not used, because it may have been trained on these documents. If its encoder was, too, the audit misses labels:
            give the encoder that it was made from.
        dataset: one annotated table, or anything that [`read_table`] reads as one.
        taxonomy ([`Taxonomy`], *optional*): the hierarchy; that of the model or of the paths in the table by default.
        tokenizer (*optional*): the tokenizer of a model.
        text, labels, separator, delimiter, empty_means_none, on_bad_row, max_length: as in [`encode_dataset`]. Rows without
            labels are left out. An empty list of labels is a document without labels, which is audited.
        label_mode, partial_paths (*optional*): as in [`HcalConfig`]. By default those of the model. Without a
            model, they are multi_path and True only if a row needs it.
        head (`str`): as in [`HcalConfig`].
        folds (`int`): the number of folds.
        training_args ([`HcalTrainingArguments`], *optional*): trains the encoder in each fold.
        feature_cache (*optional*): folder that caches the features of a frozen encoder.
        use_cpu (`bool`): use no accelerator for a frozen encoder.
        seed (`int`): draws the folds.
        options: `strength` and `max_iterations` of the heads, `quantile` of [`wrong_labels`], and `score`,
            `label_frequency`, `order` and `top` of [`rank_missing`].

    Returns:
        the report. Row numbers are those of the table.

    Raises:
        ValueError: if the table has no labels, or several splits, or labels that the model does not have; if there are more
            folds than different texts; or if an option is out of range.
    """
    _check_options(options, is_trained=training_args is not None)
    table = _one_table(read_table(dataset))
    texts = [text] if isinstance(text, str) else list(text)
    columns = [labels] if isinstance(labels, str) else list(labels)
    check_columns(table, [*texts, *columns], "The table")
    model = source if isinstance(source, HcalForSequenceClassification) else None
    if model is not None:
        if tokenizer is None:
            raise ValueError(
                "A model needs its tokenizer to read texts: audit_labels(model, dataset, tokenizer=tokenizer)."
            )
        if taxonomy is not None and taxonomy != model.taxonomy:
            raise ValueError(
                "The taxonomy differs from that of the model: leave it out, or give the name of an encoder instead of the "
                "model, audit_labels(encoder, dataset, taxonomy)."
            )
        taxonomy = model.taxonomy
        label_mode = label_mode or model.config.label_mode
        partial_paths = model.config.partial_paths if partial_paths is None else partial_paths
    label_options = {"labels": labels, "separator": separator, "delimiter": delimiter}
    if taxonomy is None:
        taxonomy = build_taxonomy(table, **label_options, on_bad_row=on_bad_row)  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(source) if tokenizer is None else tokenizer
    encoded = encode_dataset(
        table.add_column(_ROW, list(range(len(table)))),
        taxonomy,
        tokenizer,
        text,
        **label_options,  # type: ignore[arg-type]
        empty_means_none=empty_means_none,
        label_mode=label_mode,  # type: ignore[arg-type]
        partial_paths=partial_paths is not False,
        max_length=max_length if model is None else token_limit(model, tokenizer, max_length),
        on_bad_row=on_bad_row,  # type: ignore[arg-type]
        keep_columns=[_ROW],
        prefix="" if model is None else model.config.text_prefix,
    )
    rows = np.asarray(encoded[_ROW][:], dtype=np.int64)
    encoded = encoded.remove_columns(_ROW)
    sizes, nodes = label_column(encoded) if len(encoded) else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    if not len(nodes):
        raise ValueError(
            f"No row has a label in {', '.join(map(repr, columns))}: an audit looks for labels that annotated documents "
            "lack. Name the label columns, or label documents first (hcal suggest)."
        )
    label_mode, partial_paths = _structure(sizes, nodes, taxonomy, label_mode, partial_paths)
    annotations = Annotations(taxonomy, np.concatenate([[0], np.cumsum(sizes)]), nodes)
    kept = table.select(rows)
    documents = [str(join_texts(cells)) for cells in zip(*(kept[name][:] for name in texts))]
    fold_of = draw_folds(group_equal_texts(documents), folds, seed)
    fields = {"label_mode": label_mode, "partial_paths": partial_paths, "head": head}
    if training_args is not None:
        result = trained_out_of_fold(
            lambda: _new_model(source, taxonomy, {**fields}, seed),
            encoded,
            annotations,
            fold_of,
            tokenizer,
            training_args,
        )
        return _report(result, annotations, label_mode, partial_paths, rows, documents, seed, head, **options)
    new = _new_model(source, taxonomy, {**fields, "score_function": "linear"}, seed)
    new.encoder.requires_grad_(False)
    if torch.cuda.is_available() and not use_cpu:
        new = new.to("cuda")
    features = pooled_features(new, encoded.remove_columns("labels"), tokenizer, cache_dir=feature_cache)
    states = torch.from_numpy(np.asarray(features["pooled_states"][:], dtype=np.float32))
    result = frozen_out_of_fold(new, states, annotations, fold_of, seed=seed, **_head_options(options))
    return _report(result, annotations, label_mode, partial_paths, rows, documents, seed, new.config.head, **options)


def audit_features(
    features: Any,
    labels: Annotations | Sequence[Sequence[int]],
    taxonomy: Taxonomy,
    *,
    label_mode: str = "multi_path",
    partial_paths: bool = False,
    head: str = "auto",
    groups: Sequence[int] | np.ndarray | None = None,
    folds: int = 5,
    seed: int = 0,
    **options: Any,
) -> AuditReport:
    """Audits documents that are given as features. Everything else is as in [`audit_labels`].

    Args:
        features (array of shape `[N, d]`): the features of the documents.
        labels: their labels: [`Annotations`], or one list of node indices per document.
        taxonomy ([`Taxonomy`]): the hierarchy.
        label_mode, partial_paths, head: as in [`HcalConfig`].
        groups (`np.ndarray` of shape `[N]`, *optional*): documents of one group share a fold. By default, these are
            documents with equal features.
        folds, seed, options: as in [`audit_labels`].

    Raises:
        ValueError: if a feature is NaN or infinite, the numbers of documents differ, or as in [`audit_labels`].
    """
    _check_options(options, is_trained=False)
    states = np.asarray(features, dtype=np.float32)
    annotations = labels if isinstance(labels, Annotations) else Annotations.from_rows(taxonomy, labels)
    if states.ndim != 2 or len(states) != len(annotations):
        raise ValueError(
            f"There are labels of {len(annotations):,} documents, but the features have the shape {states.shape}: give one "
            "row of features per document."
        )
    if not np.isfinite(states).all():
        row = int(np.flatnonzero(~np.isfinite(states).all(axis=1))[0])
        raise ValueError(f"The features of document {row} are NaN or infinite: leave it out, or compute them again.")
    if not len(annotations.nodes):
        raise ValueError("No document has a label, so nothing is known about the labels: give annotated documents.")
    if groups is None:
        groups = np.unique(states, axis=0, return_inverse=True)[1].reshape(-1)
    fold_of = draw_folds(np.asarray(groups), folds, seed)
    fields = {"label_mode": label_mode, "partial_paths": partial_paths, "head": head, "score_function": "linear"}
    model = feature_model(taxonomy, states.shape[1], False, fields)
    result = frozen_out_of_fold(
        model, torch.from_numpy(states), annotations, fold_of, seed=seed, **_head_options(options)
    )
    return _report(
        result,
        annotations,
        label_mode,
        partial_paths,
        np.arange(len(states)),
        None,
        seed,
        model.config.head,
        **options,
    )


def _report(
    out_of_fold: OutOfFold,
    annotations: Annotations,
    label_mode: str,
    partial_paths: bool,
    rows: np.ndarray,
    texts: list[str] | None,
    seed: int,
    head: str,
    *,
    quantile: float = 0.99,
    **options: Any,
) -> AuditReport:
    """Ranks out-of-fold probabilities."""
    options = {
        name: value for name, value in options.items() if name not in ("strength", "anchored", "max_iterations")
    }
    ranking = rank_missing(
        out_of_fold,
        annotations,
        annotations.taxonomy,
        label_mode=label_mode,
        partial_paths=partial_paths,
        is_coherent=head != "independent",
        seed=seed,
        **options,
    )
    wrong = None
    if label_mode == "single_path":
        wrong = wrong_labels(out_of_fold, annotations, partial_paths=partial_paths, head=head, quantile=quantile)
    return AuditReport(ranking, wrong, annotations, out_of_fold, label_mode, partial_paths, rows, texts)


def _head_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in _HEAD_OPTIONS if name in options}


def _check_options(options: dict[str, Any], is_trained: bool) -> None:
    """Checks the options of a report before models are trained for it."""
    for name in options:
        if name not in (*_HEAD_OPTIONS, *_RANKING_OPTIONS, "quantile"):
            known = ", ".join((*_RANKING_OPTIONS, "quantile", *_HEAD_OPTIONS))
            raise TypeError(f"An audit has no option {name!r}. The further options are {known}.")
        if is_trained and name in _HEAD_OPTIONS:
            raise ValueError(f"{name} belongs to heads on frozen features: leave it out, or leave out training_args.")
    check_ranking(**{name: options[name] for name in _RANKING_OPTIONS if name in options})
    check_quantile(options.get("quantile", 0.99))


def _one_table(table: Any) -> Dataset:
    if isinstance(table, DatasetDict) and len(table) == 1:
        return next(iter(table.values()))
    if isinstance(table, DatasetDict | IterableDatasetDict):
        raise ValueError(
            f"An audit reads one table, but there are the splits {', '.join(sorted(table))}: give one of them, or the file "
            "of all rows."
        )
    if isinstance(table, IterableDataset):
        raise ValueError(
            "An audit needs a table, because each row is scored by models of other rows, and this is a stream."
        )
    return table


def _structure(
    sizes: np.ndarray, nodes: np.ndarray, taxonomy: Taxonomy, label_mode: str | None, partial_paths: bool | None
) -> tuple[str, bool]:
    """Returns label_mode and partial_paths as the rows need them, unless they are given."""
    if label_mode is None:
        is_single = taxonomy.is_forest and not find_misfits(sizes, nodes, taxonomy, "single_path", True).any()
        label_mode = "single_path" if is_single else "multi_path"
        logger.info(f"label_mode: {label_mode}.")
    if partial_paths is None:
        partial_paths = bool(find_misfits(sizes, nodes, taxonomy, None, False).any())
        logger.info(f"partial_paths: {partial_paths}.")
    return label_mode, partial_paths


def _new_model(source: Any, taxonomy: Taxonomy, fields: dict[str, Any], seed: int) -> HcalForSequenceClassification:
    """Builds a model with an untrained head."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        if not isinstance(source, HcalForSequenceClassification):
            is_linear = fields.get("score_function") == "linear"
            anchor = "label_text" if is_linear else None
            model = HcalForSequenceClassification.from_encoder(
                str(source), taxonomy, prototype_anchor=anchor, **fields
            )
        else:
            old = source.config
            if old.score_function != "linear":
                logger.warning(
                    "The encoder of the model was fine-tuned. If it was trained on these documents, it remembers their "
                    "labels, and the audit misses some: audit with the encoder that it was made from."
                )
            config = HcalConfig.from_taxonomy(taxonomy, old.encoder_config, pooling=old.pooling, **fields)
            model = HcalForSequenceClassification(config)
            model.encoder.load_state_dict(source.encoder.state_dict())
            model = model.to(source.device)
    if model.prototypes.is_linear:  # L-BFGS starts from zero
        with torch.no_grad():
            model.prototypes.weight.zero_()
        if reason := unsolvable_because(model):
            raise ValueError(reason)
    return model
