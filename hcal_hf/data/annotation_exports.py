"""Reads the exports of annotation tools as tables: one row per document, one column per question.

Label Studio (https://labelstud.io/guide/export) writes JSON, JSON-MIN and CSV. Argilla 2 (https://docs.argilla.io) writes
records as JSON, or as a data set with the columns `question.responses`.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

# The results of Label Studio that are labels of the whole document.
_RESULTS = ("choices", "taxonomy")
# Columns that Label Studio adds to JSON-MIN and CSV: these show the format, and none is a label.
_ABOUT_ANNOTATIONS = (
    "annotator",
    "annotation_id",
    "created_at",
    "updated_at",
    "lead_time",
    "was_cancelled",
    "agreement",
)
_SHOW_LABEL_STUDIO = ("annotator", "annotation_id", "lead_time")
_RESPONSES = ".responses"


@dataclass
class _Tally:
    """Counts how annotations became labels, for the log."""

    documents: int = 0
    unlabelled: int = 0
    cancelled: int = 0
    several: int = 0
    differing: int = 0
    ties: int = 0
    by_ground_truth: int = 0

    def log(self, source: str, tool: str) -> None:
        notes = [f"{self.unlabelled:,} without annotation, which are unlabelled"] if self.unlabelled else []
        notes += [f"{self.cancelled:,} cancelled or discarded annotation(s) left out"] if self.cancelled else []
        if self.several:
            notes.append(
                f"{self.several:,} with several annotations, of which {self.differing:,} differ: the most frequent labels "
                f"are taken, and the first ones in {self.ties:,} ties"
            )
        if self.by_ground_truth:
            notes.append(f"{self.by_ground_truth:,} with a ground truth, which is taken")
        logger.warning_once(
            f"{source} is read as an export of {tool}: {self.documents:,} documents{''.join(f'; {n}' for n in notes)}."
        )

    def choose(self, values: Sequence[Any]) -> int:
        """Returns the position of the most frequent value, the first one among equals. Counts differences and ties."""
        keys = [_key(value) for value in values]
        times = Counter(keys)
        most = max(times.values())
        self.several += len(values) > 1
        self.differing += len(times) > 1
        self.ties += sum(number == most for number in times.values()) > 1
        return next(i for i, key in enumerate(keys) if times[key] == most)


def _key(value: Any) -> str:
    """Returns a text that is equal for equal labels in any order."""
    if isinstance(value, list | tuple):
        value = sorted(json.dumps(item, ensure_ascii=False, sort_keys=True) for item in value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def flatten_export(rows: list[Any], source: str) -> list[Any]:
    """Returns the records of a JSON export as rows of a table. Other records are returned as they are.

    If there is one question only, its labels are also in the column `labels`, unless there is such a column.
    """
    records = [row for row in rows if isinstance(row, dict)]
    if not records or len(records) < len(rows):
        return rows
    if all(isinstance(row.get("data"), dict) and _annotations(row) is not None for row in records):
        return _flatten_tasks(records, source)
    if all(isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict) for row in records):
        return _flatten_argilla(records, source)
    if _is_minimal(records[0]):
        return _flatten_minimal(records, source)
    return rows


# ---- Label Studio ----


def _annotations(task: Mapping[str, Any]) -> list[Any] | None:
    found = task.get("annotations", task.get("completions"))
    return found if isinstance(found, list) else None


def _flatten_tasks(tasks: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    tally = _Tally(documents=len(tasks))
    answers: list[dict[str, Any]] = []
    for task in tasks:
        valid = [a for a in _annotations(task) or [] if isinstance(a, dict)]
        kept = [a for a in valid if not (a.get("was_cancelled") or a.get("skipped"))]
        tally.cancelled += len(valid) - len(kept)
        results = [(bool(a.get("ground_truth")), _results(a.get("result") or [])) for a in kept]
        results = [(is_truth, labels) for is_truth, labels in results if labels]
        tally.unlabelled += not results
        answers.append(_vote(results, tally))
    tally.log(source, "Label Studio")
    ids = [{"id": task["id"]} if "id" in task and "id" not in task["data"] else {} for task in tasks]
    return _with_questions([{**id_, **task["data"]} for id_, task in zip(ids, tasks)], answers)


def _results(results: Iterable[Any]) -> dict[str, list[Any]]:
    """Returns the labels of one annotation by the name of the control. Labels of regions are left out."""
    labels: dict[str, list[Any]] = defaultdict(list)
    for result in results:
        kind = str(result.get("type", "")).lower() if isinstance(result, dict) else ""
        value = result.get("value") if kind in _RESULTS else None
        if isinstance(value, dict) and isinstance(value.get(kind), list):
            name = str(result.get("from_name") or kind)
            labels[name] += [label for label in value[kind] if label not in labels[name]]
    return dict(labels)


def _vote(results: list[tuple[bool, dict[str, list[Any]]]], tally: _Tally) -> dict[str, Any]:
    """Returns the labels of one document by control: those of a ground truth, or the most frequent ones."""
    truths = [labels for is_truth, labels in results if is_truth]
    tally.by_ground_truth += bool(truths)
    candidates = truths or [labels for _, labels in results]
    if not candidates:
        return {}
    position = tally.choose([sorted((name, _key(labels)) for name, labels in c.items()) for c in candidates])
    return candidates[position]


def _is_minimal(row: Mapping[str, Any]) -> bool:
    return all(name in row for name in _SHOW_LABEL_STUDIO)


def _flatten_minimal(rows: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Reads JSON-MIN, which has one row per annotation."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    kept = choose_annotations({name: [row.get(name) for row in rows] for name in columns}, source)
    return [{name: unwrap_results(cell) for name, cell in rows[i].items()} for i in kept]


def unwrap_results(cell: Any) -> Any:
    """Returns the labels of a cell of JSON-MIN or CSV: {"choices": [...]} or [{"taxonomy": [[...]]}]. Others are kept."""
    parts = cell if isinstance(cell, list) else [cell]
    if not parts or not all(isinstance(part, dict) for part in parts):
        return cell
    labels: list[Any] = []
    for part in parts:
        kind = next((name for name in _RESULTS if isinstance(part.get(name), list)), None)
        if kind is None or "start" in part:  # the label of a region
            return cell
        labels += [label for label in part[kind] if label not in labels]
    return labels


def choose_annotations(columns: Mapping[str, Sequence[Any]], source: str) -> list[int]:
    """Returns the rows of JSON-MIN or CSV to keep: one per document, with the most frequent labels.

    Args:
        columns: the cells of each column. Rows with the same `id` are annotations of one document.
        source: the name of the file, for the log.
    """
    number = len(next(iter(columns.values())))
    is_cancelled = [str(cell).lower() in ("true", "1") for cell in columns.get("was_cancelled", [""] * number)]
    tally = _Tally(cancelled=sum(is_cancelled))
    of_document: dict[Any, list[int]] = defaultdict(list)
    for row, id_ in enumerate(columns.get("id", range(number))):
        if not is_cancelled[row]:
            of_document[id_].append(row)
    labels = [name for name in columns if name not in (*_ABOUT_ANNOTATIONS, "id")]
    kept = [
        rows[tally.choose([[columns[name][row] for name in labels] for row in rows])] for rows in of_document.values()
    ]
    tally.documents = len(kept)
    tally.log(source, "Label Studio")
    return sorted(kept)


# ---- Argilla ----


def _flatten_argilla(records: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    tally = _Tally(documents=len(records))
    answers = []
    for record in records:
        answer = {}
        for question, responses in record["responses"].items():
            statuses = [r.get("status") for r in responses or () if isinstance(r, dict)]
            values = [r.get("value") for r in responses or () if isinstance(r, dict)]
            answer[question] = _argilla_labels(values, statuses, tally)
        answer = {question: value for question, value in answer.items() if value is not None}
        tally.unlabelled += not answer
        answers.append(answer)
    tally.log(source, "Argilla")
    documents = [{**(record.get("metadata") or {}), "id": record.get("id"), **record["fields"]} for record in records]
    return _with_questions(documents, answers)


def _argilla_labels(values: Sequence[Any], statuses: Sequence[Any], tally: _Tally) -> Any:
    """Returns the most frequent labels of one question, None without a submitted response."""
    submitted = [
        value for value, status in zip(values, statuses) if status in (None, "submitted") and value is not None
    ]
    tally.cancelled += sum(status == "discarded" for status in statuses)
    return submitted[tally.choose(submitted)] if submitted else None


def read_annotations(dataset: Any, source: str, is_csv: bool = False) -> Any:
    """Returns a data set with one row and one decision per document, if it is an export of an annotation tool.

    Argilla's columns of responses get a column of labels for each question. The rows of Label Studio's CSV, which are
    annotations, become documents. Other data sets, and streams, are returned as they are.
    """
    if hasattr(dataset, "values") and not hasattr(dataset, "features"):
        return type(dataset)({name: read_annotations(split, f"{source} ({name})") for name, split in dataset.items()})
    names = dataset.column_names or []
    if is_csv and all(name in names for name in _SHOW_LABEL_STUDIO):
        return dataset.select(choose_annotations({name: dataset[name][:] for name in names}, source))
    return _adopt_responses(dataset, source, names) if hasattr(dataset, "add_column") else dataset


def _adopt_responses(dataset: Any, source: str, names: Sequence[str]) -> Any:
    questions = [
        name.removesuffix(_RESPONSES)
        for name in names
        if name.endswith(_RESPONSES) and f"{name}.users" in names and name.removesuffix(_RESPONSES)
    ]
    if not questions:
        return dataset
    tally = _Tally(documents=len(dataset))
    answers: list[dict[str, Any]] = [{} for _ in range(len(dataset))]
    for question in questions:
        responses = map(_parsed, dataset[question + _RESPONSES][:])
        status = f"{question}{_RESPONSES}.status"
        statuses = map(_parsed, dataset[status][:]) if status in names else [None] * len(dataset)
        for answer, values, states in zip(answers, responses, statuses):
            labels = _argilla_labels(values or [], states or [None] * len(values or []), tally)
            if labels is not None:
                answer[question] = labels
    tally.unlabelled = sum(not answer for answer in answers)
    tally.log(source, "Argilla")
    rows = _with_questions([dict.fromkeys(names) for _ in answers], answers)
    for column in [name for name in rows[0] if name not in names] if rows else []:
        dataset = dataset.add_column(column, [row[column] for row in rows])
    return dataset


def _parsed(cell: Any) -> Any:
    return json.loads(cell) if isinstance(cell, str) and cell.startswith("[") else cell


# ---- Questions as columns ----


def _with_questions(documents: list[dict[str, Any]], answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds one column per question to the documents, None where a document has no answer."""
    questions = list(dict.fromkeys(name for answer in answers for name in answer))
    taken = {name for document in documents for name in document}
    columns = {name: name if name not in taken else f"{name}.labels" for name in questions}
    rows = [
        {**document, **{column: answer.get(name) for name, column in columns.items()}}
        for document, answer in zip(documents, answers)
    ]
    if len(questions) == 1 and "labels" not in taken and questions[0] != "labels":
        for row, answer in zip(rows, answers):
            row["labels"] = answer.get(questions[0])
    return rows
