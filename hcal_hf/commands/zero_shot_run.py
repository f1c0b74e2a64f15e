"""Makes a zero-shot model from files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..data.label_names import read_label_names
from ..data.tables import read_table
from ..data.taxonomy_reader import read_named_taxonomy
from ..data.texts import join_texts
from ..modeling_hcal import HcalForSequenceClassification
from ..training.adapt import adapt
from ..training.encoders import DEFAULT_ENCODER, default_encoder
from ..zero_shot import EXPECTED_LABELS


def make_zero_shot(
    taxonomy_file: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    texts: str | os.PathLike | None = None,
    text: Sequence[str] = (),
    encoder: str | None = None,
    label_names: str | os.PathLike | None = None,
    descriptions: str | os.PathLike | None = None,
    label_mode: str | None = None,
    partial_paths: bool = False,
    expected_labels: float = EXPECTED_LABELS,
    max_length: int | None = None,
    window_length: int | None = None,
    max_windows: int | None = None,
    separator: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Makes a model from a hierarchy, adapts it to unlabelled texts if there are any, and saves it.

    Args:
        taxonomy_file: the hierarchy ([`hcal_hf.read_taxonomy`]).
        output_dir: the folder for the model and its tokenizer.
        texts: a table of texts without labels ([`hcal_hf.read_table`]).
        text: its text columns; `text` by default.
        encoder: name on the Hub or folder.
        label_names, descriptions: files with the names and the describing texts of labels ([`hcal_hf.read_label_names`]).
        label_mode, partial_paths: as in [`HcalConfig`]; single_path by default, unless a label has several parents.
        expected_labels: as in [`hcal_hf.adapt`].
        max_length: the maximum number of tokens per text.
        window_length, max_windows: as in [`HcalConfig`], instead of `max_length`.
        separator: separates the steps of a path; detected by default.
        overwrite: replaces an existing model.

    Returns:
        `model`, `labels`, `leaves`, `texts` (the number of texts that the model was adapted to), and with texts `rounds`,
        `agreement` and `shift` ([`hcal_hf.training.adapt.Adaptation`]).

    Raises:
        ValueError: for a file that cannot be read, too few texts, or `max_length` with windows.
        FileExistsError: if the folder holds a model.
    """
    folder = Path(output_dir)
    if (folder / "config.json").exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model: give --overwrite to replace it, or another folder.")
    if max_length is not None and (window_length is not None or max_windows is not None):
        raise ValueError(f"max_length={max_length} and windows were given: leave max_length out, and set max_windows.")
    found = read_named_taxonomy(taxonomy_file, separator=separator)
    taxonomy = found.taxonomy
    columns = list(text) or ["text"]
    rows: list[Any] = []
    if texts is not None:
        table = read_table(texts)
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            visible = [name for name in table.column_names if not name.startswith("_")]
            raise ValueError(
                f"{texts} has no column {missing[0]!r}: its columns are {', '.join(map(repr, visible))}. Name the columns "
                "of the texts with --text."
            )
        rows = [join_texts(cells) for cells in zip(*(table[name][:] for name in columns))]
    if encoder is None:
        encoder = default_encoder()
        print(f"Encoder: {DEFAULT_ENCODER}.")
    model = HcalForSequenceClassification.zero_shot(
        encoder,
        taxonomy,
        read_label_names(descriptions, taxonomy) if descriptions else None,
        label_names=read_label_names(label_names, taxonomy) if label_names else found.names or None,
        partial_paths=partial_paths,
        table_options={"text": columns},
        window_length=window_length,
        max_windows=max_windows,
        **({"label_mode": label_mode} if label_mode else {}),
    )
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    if max_length is not None:
        tokenizer.model_max_length = max_length
    report: dict[str, Any] = {
        "model": str(folder),
        "labels": taxonomy.num_labels,
        "leaves": int(taxonomy.is_leaf.sum()),
        "texts": 0,
    }
    if texts is not None:
        report |= vars(adapt(model, tokenizer, rows, expected_labels=expected_labels))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return report
