"""Goes through suggested documents and stores the decision about each."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.texts import join_texts
from .label_cells import LabelCells, end_nodes
from .label_search import Item, LabelSearch
from .labelled_file import LabelledFile, Record
from .reader import Reader
from .suggestion_table import SuggestedText, read_suggestions

# Labels of one document that a page may send, predicted labels that it shows, and documents that are kept with their
# probabilities.
MAX_LABELS = 500
MAX_SUGGESTED = 50
_KEPT = 20

Answer = dict[str, Any]


@dataclass(frozen=True)
class _Prediction:
    """Holds the probabilities [L] of a document, the predicted labels without their ancestors, and a note."""

    probabilities: np.ndarray
    nodes: list[int]
    note: str | None


class Labelling:
    """Shows suggested documents one after the other, and writes decisions to a file that `hcal train --from` reads.

    A decision about a document is one line: of the labelled file, or of the file of skipped documents next to it. A later
    decision replaces it. All methods can be called from several threads, and several pages may be open.

    Args:
        reader ([`Reader`]): the model.
        suggestions: a table of `hcal suggest`.
        labelled: the file of JSON lines to write. By default `to_label.labelled.jsonl` next to `to_label.csv`.

    Raises:
        ValueError: if a file is not what it should be.
        RuntimeError: if another process writes the same file.
    """

    def __init__(self, reader: Reader, suggestions: str | os.PathLike, labelled: str | os.PathLike | None = None):
        self.reader, self.taxonomy = reader, reader.taxonomy
        self.cells = LabelCells(reader.config, reader.taxonomy)
        self.labels = LabelSearch(reader.taxonomy, reader.names, reader.config.partial_paths)
        self.allows_several = reader.config.label_mode == "multi_path"
        table = Path(suggestions)
        path = labelled_path(table, labelled)
        self.texts: list[SuggestedText] = read_suggestions(table, self.cells.text_columns)
        self.labelled = LabelledFile(path, self._key_of)
        try:
            self.skipped = LabelledFile(path.with_name(f"{path.stem}.skipped.jsonl"), self._key_of)
        except BaseException:
            self.labelled.close()
            raise
        self._predictions: OrderedDict[int, _Prediction] = OrderedDict()
        self._writing, self._reading = threading.Lock(), threading.Lock()

    def close(self) -> None:
        """Releases the files."""
        self.labelled.close()
        self.skipped.close()

    # ---- What a page asks ----

    def next_text(self, after: Any = -1, skipped: Any = False) -> Answer:
        """Returns the next document without a decision after an index, and from the start if there is none after it.

        Args:
            after: the index of the present document, -1 at the start.
            skipped: ask skipped documents instead.
        """
        self._check_index(after, least=-1)
        with self._writing:
            self._refresh()
            return self._next(after, bool(skipped))

    def show_text(self, index: Any) -> Answer:
        """Returns the document with an index, also if there is a decision about it."""
        self._check_index(index)
        with self._writing:
            self._refresh()
            return self._document(index)

    def list_children(self, index: Any, parent: Any = None, offset: Any = 0) -> Answer:
        """Lists the labels below a label, or the roots, for the document with an index."""
        probabilities = self._predict(self._check_index(index)).probabilities
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise ValueError(f"offset must be a whole number of at least 0, got {offset!r:.50}. Reload the page.")
        node = None if parent is None else self.labels.check_node(parent)
        return self.labels.children(node, offset, probabilities)

    def search_labels(self, index: Any, query: Any = "") -> Answer:
        """Finds labels for the document with an index."""
        if not isinstance(query, str):
            raise ValueError(f"query must be a text, got {query!r:.50}. Reload the page.")
        return self.labels.search(query, self._predict(self._check_index(index)).probabilities)

    def decide(self, index: Any, version: Any, action: Any, nodes: Any = (), skipped: Any = False) -> Answer:
        """Stores a decision, and returns the next document.

        Args:
            index: the document.
            version: its `version` as the page has shown it. If another page has decided since, nothing is stored.
            action: `"label"` or `"skip"`.
            nodes: the labels for `"label"`.
            skipped: the next document is a skipped one.

        Raises:
            ValueError: if the labels are unknown or not allowed.
            OSError: if the file cannot be written.
        """
        self._check_index(index)
        if action not in ("label", "skip"):
            raise ValueError(f"action must be 'label' or 'skip', got {action!r:.50}. Reload the page.")
        if not isinstance(nodes, list | tuple) or len(nodes) > MAX_LABELS:
            raise ValueError(f"nodes must be a list of at most {MAX_LABELS} labels. Reload the page.")
        cells = self.cells.write([self.labels.check_node(node) for node in nodes]) if action == "label" else {}
        with self._writing:
            self._refresh()
            if version != self._version(index):
                answer = self._document(index)
                return {**answer, "conflict": "This text was decided in another window. Nothing was saved."}
            document = self.texts[index]
            record = {**({} if document.row is None else {"row": document.row}), **document.cells, **cells}
            # The order matters after an interruption: a document may be undecided or in both files, never lost.
            if action == "label":
                self.labelled.put(record)
                self.skipped.remove(document.key)
            else:
                self.labelled.remove(document.key)
                self.skipped.put(record)
            return self._next(index, bool(skipped))

    # ---- State ----

    def counts(self) -> dict[str, int]:
        """Returns the numbers of labelled, skipped, undecided and all documents."""
        states = [self._state(index) for index in range(len(self.texts))]
        labelled, skipped = states.count("labelled"), states.count("skipped")
        return {
            "labelled": labelled,
            "skipped": skipped,
            "open": len(states) - labelled - skipped,
            "total": len(states),
        }

    def _key_of(self, record: Record) -> str:
        columns = self.cells.text_columns
        for name in columns:
            if name not in record:
                raise ValueError(f"has no column {name!r}, in which the model reads texts")
        return str(join_texts([record[name] for name in columns])).strip()

    def _refresh(self) -> None:
        self.labelled.refresh()
        self.skipped.refresh()

    def _state(self, index: int) -> str:
        """Returns "labelled", "skipped" or "open". Rows of the labelled file with empty label columns are open."""
        key = self.texts[index].key
        if (record := self.labelled.get(key)) is not None and any(
            record.get(name) not in (None, "") for name in self.cells.columns
        ):
            return "labelled"
        return "skipped" if key in self.skipped else "open"

    def _version(self, index: int) -> str:
        """Returns a text that changes with every decision about a document, also by another process."""
        key = self.texts[index].key
        lines = (self.labelled.line(key) or b"") + b"|" + (self.skipped.line(key) or b"")
        return hashlib.sha256(lines).hexdigest()[:16]

    def _check_index(self, index: Any, least: int = 0) -> int:
        if not isinstance(index, int) or isinstance(index, bool) or not least <= index < len(self.texts):
            raise ValueError(
                f"There is no text {index!r:.50}: the table has the texts {least} to {len(self.texts) - 1}. Reload "
                "the page."
            )
        return index

    # ---- Answers ----

    def _next(self, after: int, skipped: bool) -> Answer:
        wanted = "skipped" if skipped else "open"
        number = len(self.texts)
        # Skipped documents may be skipped again, so they are asked only up to the end of the table.
        earlier = range(0) if skipped else range(max(after, 0))
        for index in [*range(after + 1, number), *earlier]:
            if self._state(index) == wanted:
                return self._document(index)
        return {"finished": True, "counts": self.counts(), "file": str(self.labelled.path)}

    def _document(self, index: int) -> Answer:
        document, prediction = self.texts[index], self._predict(index)
        try:
            self.cells.write(prediction.nodes)
            problem = None
        except ValueError as error:
            problem = self._why_not_acceptable(prediction.nodes) or str(error)
        return {
            "finished": False,
            "index": index,
            "version": self._version(index),
            "counts": self.counts(),
            "file": str(self.labelled.path),
            "fields": [
                {"name": name, "text": str(cell)} for name, cell in document.cells.items() if cell not in (None, "")
            ],
            "suggestion": self._items(prediction.nodes, prediction.probabilities),
            "more": max(len(prediction.nodes) - MAX_SUGGESTED, 0),
            "problem": problem,
            "reason": None
            if document.confidence is None
            else f"When this text was chosen, the confidence of the model was {document.confidence:.2f}.",
            "note": prediction.note,
            "decision": self._decision(index, prediction.probabilities),
        }

    def _items(self, nodes: Sequence[int], probabilities: np.ndarray) -> list[Item]:
        best = sorted(nodes, key=lambda node: -probabilities[node])[:MAX_SUGGESTED]
        return [self.labels.item(node, probabilities) for node in best]

    def _decision(self, index: int, probabilities: np.ndarray) -> Answer | None:
        state = self._state(index)
        if state == "open":
            return None
        if state == "skipped":
            return {"state": state, "labels": [], "text": "Skipped"}
        record = self.labelled.get(self.texts[index].key) or {}
        try:
            nodes = self.cells.read(record) or []
        except ValueError as problem:
            return {"state": state, "labels": [], "text": f"Labelled in a way that this model cannot read: {problem}"}
        items = self._items(nodes, probabilities)
        return {"state": state, "labels": items, "text": "Labelled" if items else "Labelled: no label"}

    def _why_not_acceptable(self, nodes: list[int]) -> str | None:
        if not nodes:
            return "The model predicts no label, but each text has one. Choose it with Correct."
        if not all(self.labels.can_be_chosen[node] for node in nodes):
            return "The model stops at an inner label, but a path must end at a leaf. Choose the leaf with Correct."
        return None

    def _predict(self, index: int) -> _Prediction:
        with self._reading:
            if index not in self._predictions:
                self._predictions[index] = self._read(index)
                if len(self._predictions) > _KEPT:
                    self._predictions.popitem(last=False)
            self._predictions.move_to_end(index)
            return self._predictions[index]

    def _read(self, index: int) -> _Prediction:
        reader = self.reader
        reading = reader.read(self.texts[index].text)
        if reading.logits is None:
            nothing = np.zeros(self.taxonomy.num_labels)
            return _Prediction(nothing, [], "The text has no tokens for this model.")
        probabilities = torch.sigmoid(reading.logits[0]).double().numpy()
        predicted = reader.decide(reading.logits, reader.start_method, reader.thresholds.start).numpy()
        note = None
        if reading.tokens_read < reading.tokens:
            note = f"The model read only the first {reading.tokens_read:,} of {reading.tokens:,} tokens."
        return _Prediction(probabilities, end_nodes(self.taxonomy, predicted), note)


def labelled_path(suggestions: Path, labelled: str | os.PathLike | None) -> Path:
    """Returns the file that decisions are written to.

    Raises:
        ValueError: if it is not a `.jsonl` file, or the table of suggestions itself.
    """
    if labelled is None:
        return suggestions.with_name(f"{suggestions.name.removesuffix('.gz').rpartition('.')[0]}.labelled.jsonl")
    path = Path(labelled)
    if path.suffix != ".jsonl":
        raise ValueError(f"The labelled file must end in .jsonl, got {path}: decisions are written as JSON lines.")
    if path.resolve() == suggestions.resolve():
        raise ValueError(
            f"{path} is the table of suggestions: give another file with --labelled, to which decisions are written."
        )
    return path
