"""The data sets of the benchmarks, as features (`Task`) and as token ids (`Tokens`)."""

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from result_rows import RESULTS
from scoring import Problem
from torch.utils.data import Dataset as TorchDataset
from transformers import AutoTokenizer

from hcal_hf import (
    DataArguments,
    HcalForSequenceClassification,
    Taxonomy,
    encode_dataset,
    load_data,
    pooled_features,
)
from hcal_hf.anchors import label_texts
from hcal_hf.lexical import LexicalFeatures
from hcal_hf.training.lexical_fit import LEXICAL_FEATURES, fit_lexical
from hcal_hf.training.solver import STRENGTHS

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SINGLE_PATH = {"clinc150", "hwv_part", "icd10cm", "naics2012"}
PARTIAL = {"cei", "debtags", "icd10cm", "wordnet_nouns"}
SPLITS = ("train", "validation", "test")
# Labels of documents that are not part of the task: out-of-scope queries.
LEFT_OUT = {"clinc150": [["oos"]]}
MAX_LENGTHS = {"hwv_part": 256, "cei": 256, "debtags": 256}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that all benchmarks on the data sets have."""
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--encoder", default=ENCODER, help="name on the Hub or folder")
    parser.add_argument(
        "--cache", type=Path, default=Path("outputs/benchmarks"), help="folder for features, logits and label sets"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows")
    parser.add_argument("--threads", type=int, default=1)


def taxonomy_of(name: str, folder: Path) -> Taxonomy:
    """Reads the taxonomy of the task, without the labels of documents that are left out."""
    whole = Taxonomy.from_json(folder / "taxonomy.json")
    left_out = {label for labels in LEFT_OUT.get(name, ()) for label in labels}
    edges = [(whole.labels[parent], whole.labels[child]) for parent, child in whole.edges]
    roots = [label for label, depth in zip(whole.labels, whole.depths) if depth == 0 and label not in left_out]
    return Taxonomy.from_edges(edges, roots=roots) if left_out else whole


def descriptions_of(folder: Path) -> dict[str, str] | None:
    """Reads the descriptions of labels, which are their label texts, from descriptions.json. None without this file."""
    path = folder / "descriptions.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def kept_rows(name: str, rows: DatasetDict) -> dict[str, list[int]]:
    """Returns the indices of the documents in each split that belong to the task."""
    left_out = LEFT_OUT.get(name)
    return {s: [i for i, labels in enumerate(rows[s]["labels"]) if labels != left_out] for s in SPLITS}


def multi_hot(rows: Dataset, keep: list[int], taxonomy: Taxonomy) -> np.ndarray:
    """Returns the labels of some rows with all ancestors, bool [N, L]."""
    labels = rows["labels"][:]
    truth = np.zeros((len(keep), taxonomy.num_labels), dtype=bool)
    for row, i in enumerate(keep):
        truth[row, taxonomy.encode(labels[i])] = True
    return truth


def true_labels(name: str, folder: Path) -> tuple[Taxonomy, dict[str, np.ndarray]]:
    """Returns the taxonomy and the labels of the validation and test split, bool [N, L]."""
    taxonomy = taxonomy_of(name, folder)
    rows = load_data(DataArguments(data_dir=str(folder)))
    keep = kept_rows(name, rows)
    return taxonomy, {s: multi_hot(rows[s], keep[s], taxonomy) for s in SPLITS[1:]}


def sample_each_leaf(truth: np.ndarray, taxonomy: Taxonomy, count: int, seed: int) -> np.ndarray:
    """Returns the rows of `count` random documents of each leaf. `truth` holds the labels, bool [N, L]."""
    order = np.random.default_rng(seed).permutation(len(truth))
    truth, leaves = truth[order], np.flatnonzero(taxonomy.is_leaf)
    return np.unique(np.concatenate([order[truth[:, leaf]][:count] for leaf in leaves]))


class Task:
    """A data set as features, labels and texts of each split.

    Attributes:
        x (`dict`): features [N, hidden_size] of each split.
        y (`dict`): multi-hot labels [N, L] of each split.
        texts (`dict`): the texts of each split.
        left_out (`dict`): features of the documents that are not part of the task.
        anchors (`torch.Tensor`): embeddings of the label texts [L, hidden_size].
        strengths (`Sequence`): the values of C that our linear heads try.
        lexical (`LexicalFeatures`, *optional*): the lexical features that follow those of the encoder in `x` and `anchors`.
    """

    lexical: LexicalFeatures | None = None
    strengths: Sequence[float] = STRENGTHS

    def __init__(self, name: str, folder: Path, encoder: str, cache: Path):
        self.name, self.folder, self.encoder = name, folder, encoder
        self.taxonomy = taxonomy_of(name, folder)
        self.label_mode = "single_path" if name in SINGLE_PATH else "multi_path"
        self.descriptions = descriptions_of(folder)
        rows = load_data(DataArguments(data_dir=str(folder)))
        keep = kept_rows(name, rows)
        self.anchors, states = self._features(rows, encoder, cache / f"{name}.npz")
        self.x = {s: torch.from_numpy(states[s][keep[s]]) for s in SPLITS}
        self.left_out = {s: np.delete(states[s], keep[s], axis=0) for s in SPLITS}
        self.texts = {s: rows[s].select(keep[s])["text"][:] for s in SPLITS}
        self.y = {s: torch.from_numpy(multi_hot(rows[s], keep[s], self.taxonomy)).float() for s in SPLITS}

    @property
    def is_single(self) -> bool:
        return self.label_mode == "single_path"

    @property
    def partial_paths(self) -> bool:
        return self.name in PARTIAL

    def truth(self, split: str) -> np.ndarray:
        """Returns the labels of a split, bool [N, L]."""
        return self.y[split].numpy() > 0

    def sample(self, size: int | None, seed: int) -> "Task":
        """Returns the task with `size` random training documents, or the whole task if `size` is None."""
        if size is None or size >= len(self.x["train"]):
            return self
        return self.with_training(np.random.default_rng(seed).permutation(len(self.x["train"]))[:size])

    def sample_each_leaf(self, count: int, seed: int) -> "Task":
        """Returns the task with `count` random training documents of each leaf."""
        return self.with_training(sample_each_leaf(self.truth("train"), self.taxonomy, count, seed))

    def with_training(self, rows: np.ndarray) -> "Task":
        """Returns the task with some of its training documents."""
        task = copy.copy(self)
        task.x, task.y = ({**arrays, "train": arrays["train"][rows]} for arrays in (self.x, self.y))
        task.texts = {**self.texts, "train": [self.texts["train"][row] for row in rows]}
        return task

    def with_lexical_features(self, size: int = LEXICAL_FEATURES) -> "Task":
        """Returns the task with so many lexical features after those of the encoder, fitted to the training documents."""
        tokenizer = AutoTokenizer.from_pretrained(self.encoder)
        length = MAX_LENGTHS.get(self.name, 64)
        tokens = {s: tokenizer(list(self.texts[s]), truncation=True, max_length=length)["input_ids"] for s in SPLITS}
        labels = tokenizer(label_texts(self.taxonomy, self.descriptions), truncation=True)["input_ids"]
        lexical = fit_lexical([*tokens["train"], *labels], tokenizer.all_special_ids, size)

        def joined(states: torch.Tensor, rows: list[list[int]]) -> torch.Tensor:
            parts = []
            for start in range(0, len(rows), 256):
                batch = tokenizer.pad({"input_ids": rows[start : start + 256]}, return_tensors="pt")
                states_of_batch = states[start : start + 256].float()
                parts.append(lexical.append(states_of_batch, batch["input_ids"], batch["attention_mask"]))
            return torch.cat(parts)

        task = copy.copy(self)
        task.lexical = lexical
        task.x = {s: joined(self.x[s], tokens[s]) for s in SPLITS}
        task.anchors = joined(self.anchors, labels)
        return task

    def _features(self, rows: DatasetDict, encoder: str, path: Path) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        """Computes the anchors and the features of all documents, or reads them from the cache."""
        whole = Taxonomy.from_json(self.folder / "taxonomy.json")
        own = [whole.labels.index(label) for label in self.taxonomy.labels]
        if path.exists():
            with np.load(path) as stored:
                return torch.from_numpy(stored["anchors"][own]), {s: stored[s] for s in SPLITS}
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        fields: dict[str, Any] = {"label_mode": "multi_path", "prototype_anchor": "label_text"}
        model = HcalForSequenceClassification.from_encoder(encoder, whole, descriptions=self.descriptions, **fields)
        states: dict[str, np.ndarray] = {}
        for s in SPLITS:
            tokens = encode_dataset(rows[s], whole, tokenizer, labels=None, max_length=256)
            table: Dataset = pooled_features(model, tokens, tokenizer, desc=f"{self.name} {s}")
            states[s] = np.asarray(table["pooled_states"][:], dtype=np.float32)
        anchors = model.prototypes.anchors
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, anchors=anchors.numpy(), **states)  # type: ignore[arg-type]
        return anchors[own], states


class Features(TorchDataset):
    """Features [N, D] and multi-hot labels [N, L] that are read in whole batches.

    Reading a table row by row would take longer than the head.
    """

    def __init__(self, states: torch.Tensor, labels: torch.Tensor):
        self.states, self.labels = states, labels

    def __len__(self) -> int:
        return len(self.states)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {"pooled_states": self.states[rows], "labels": self.labels[rows]}


class Tokens:
    """A data set as token ids and labels.

    Args:
        name, folder, encoder: the data set, the folder of its files, and the encoder that the tokenizer belongs to.
        per_leaf: number of random training documents of each leaf. None means all documents.
        seed: seed of this sample.
    """

    def __init__(self, name: str, folder: Path, encoder: str, per_leaf: int | None = None, seed: int = 0):
        self.name, self.encoder = name, encoder
        self.taxonomy = taxonomy_of(name, folder)
        self.label_mode: Any = "single_path" if name in SINGLE_PATH else "multi_path"
        self.descriptions = descriptions_of(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(encoder)
        rows = load_data(DataArguments(data_dir=str(folder)))
        keep = kept_rows(name, rows)
        if per_leaf is not None:
            labels = multi_hot(rows["train"], keep["train"], self.taxonomy)
            sample = sample_each_leaf(labels, self.taxonomy, per_leaf, seed)
            keep["train"] = [keep["train"][row] for row in sample]
        rows = DatasetDict({s: rows[s].select(keep[s]) for s in SPLITS})
        truth = {s: multi_hot(rows[s], list(range(len(rows[s]))), self.taxonomy) for s in SPLITS[1:]}
        self.problem = Problem(self.taxonomy, self.label_mode, name in PARTIAL, truth)
        self.texts = {s: rows[s]["text"][:] for s in SPLITS}
        how: dict[str, Any] = {"label_mode": self.label_mode, "max_length": MAX_LENGTHS.get(name, 64)}
        self.data = encode_dataset(rows, self.taxonomy, self.tokenizer, **how)
