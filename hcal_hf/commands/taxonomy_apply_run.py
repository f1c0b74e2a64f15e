"""Applies a table of changes to the taxonomy of a saved model."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..card_file import FILE_NAME, carried_sections, carries_code, folder_name, is_generated, write_card
from ..configuration_hcal import HcalConfig
from ..data.change_table import read_changes
from ..data.tables import read_table
from ..model_card import Facts, build_card
from ..taxonomy import SEPARATOR, Taxonomy
from ..training.taxonomy_change import TaxonomyChange, change_taxonomy
from .continued_run import SPLIT_FILE, earlier_splits, is_unchanged
from .relabelled_rows import Relabelling, read_nodes
from .saved_model import load_model

logger = logging.get_logger(__name__)


def apply_changes(
    model: str | os.PathLike,
    changes: str | os.PathLike,
    output_dir: str | os.PathLike | None = None,
    *,
    reembed: bool = False,
    overwrite: bool = False,
) -> TaxonomyChange:
    """Applies a table of changes to a saved model, and saves the result with its tokenizer, card and record of rows.

    `hcal train TABLE --from OUTPUT_DIR` then translates the labels of earlier rows. Merged labels are weighted by their
    training documents if the model's record of rows exists and the file of these rows is unchanged.

    Args:
        model: the folder of the model, or its name on the Hub.
        changes: the table ([`read_changes`]).
        output_dir: the folder for the changed model. None only reports what would change.
        reembed: as in [`change_taxonomy`].
        overwrite: replaces a model in the folder, which may be `model` itself.

    Returns:
        What is kept, has changed, and must be trained again.

    Raises:
        ValueError: for changes that are not possible, with the row. Nothing is saved then.
        FileExistsError: if the folder holds a model and `overwrite` is not set.
    """
    folder = None if output_dir is None else Path(output_dir)
    if folder is not None and (folder / "config.json").exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model: give --overwrite to replace it, or another folder.")
    table = read_changes(changes)
    if not table.changes:
        raise ValueError(f"{changes} has no changes: both taxonomies are equal, or all rows are empty.")
    loaded, tokenizer = load_model(str(model))
    records = earlier_splits(str(model))
    old = loaded.taxonomy
    documents = None
    if any(change.action == "merge" for change in table.changes):
        documents = _count_documents(records, loaded.config)
    carried = carried_sections(Path(model) / FILE_NAME, loaded)
    report = change_taxonomy(loaded, table, tokenizer, documents=documents, reembed=reembed)
    if report.merged and documents is None:
        report.notes.append(
            "Merged labels have equal weights, because the training documents of the model cannot be counted."
        )
    if table.uncertain:
        report.notes.append(
            f"{len(table.uncertain):,} changes are marked as not certain: check {', '.join(table.uncertain[:5])}."
        )
    if folder is None:
        return report
    # A new folder is moved into place as a whole, because the weights of `model` may still be read from its files.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        card = Path(model) / FILE_NAME
        is_edited = card.is_file() and not is_generated(card)
        if is_edited:
            shutil.copy(card, temporary)
            logger.warning(f"The edited {FILE_NAME} is copied. It describes the model before the change.")
        loaded.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if not is_edited:
            if "Training" in carried:
                carried["Training"] += "\n\n" + _card_sentence(report)
            facts = Facts(folder_name(folder), carries_code=carries_code(temporary), carried=carried)
            write_card(build_card(loaded, facts), loaded, temporary)
        if records:
            text = json.dumps(_relabelled(records, old, report.labels))
            Path(temporary, SPLIT_FILE).write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for path in Path(temporary).iterdir():
            os.replace(path, folder / path.name)
    return report


def _relabelled(records: list[dict[str, Any]], old: Taxonomy, labels: Mapping[str, str | None]) -> dict[str, Any]:
    """Returns the content of split.json, in which each record says how the labels of its rows have changed."""
    changed = []
    for record in records:
        relabelling = Relabelling.read(record) or Relabelling(old, list(old.labels))
        changed.append(relabelling.then(labels).write(record))
    return {"earlier": changed}


def _count_documents(records: list[dict[str, Any]], config: HcalConfig) -> dict[str, int] | None:
    """Counts the training documents of each label. Returns None if no file of the rows is left unchanged."""
    options = {"separator": SEPARATOR, **(config.table_options or {})}
    columns = list(options.get("labels") or [])
    options = {name: options.get(name) for name in ("labels", "separator", "delimiter")}
    if len(columns) == 1:
        options["labels"] = columns[0]
    taxonomy = config.to_taxonomy()
    counts: Counter[str] | None = None
    for record in records:
        if not is_unchanged(record) or not columns:
            continue
        table = read_table(record["file"])
        if not set(columns) <= set(table.column_names):
            continue
        relabelling = Relabelling.read(record)
        rows, _ = read_nodes(
            table.select(record.get("train", [])), taxonomy if relabelling is None else relabelling.old, options
        )
        counts = counts or Counter()
        for nodes in rows:
            mapped = nodes if relabelling is None else relabelling.map_nodes(nodes, taxonomy)
            counts.update(taxonomy.labels[node] for node in mapped)
    return counts


def _card_sentence(report: TaxonomyChange) -> str:
    kinds = ("added", "removed", "renamed", "moved", "merged")
    numbers = [f"{len(getattr(report, kind)):,} {kind}" for kind in kinds if getattr(report, kind)]
    return f"The taxonomy was changed after this training, without training again: {', '.join(numbers) or 'parents only'}."


__all__ = ["apply_changes"]
