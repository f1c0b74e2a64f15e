"""The data sets of the benchmarks as features and labels, and models for them."""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import Dataset as TorchDataset
from transformers import AutoTokenizer, BertConfig

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy, encode_dataset
from hcal_hf.anchors import embed_texts
from hcal_hf.commands.train import DataArguments, load_data
from hcal_hf.training.features import pooled_features

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
RESULTS = Path(__file__).with_name("results.json")
SINGLE_PATH = {"clinc150", "hwv_part"}
PARTIAL = {"cei"}
SPLITS = ("train", "validation", "test")
# Documents that are no part of the task, by their labels: out-of-scope queries.
LEFT_OUT = {"clinc150": [["oos"]]}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark on the data sets takes."""
    parser.add_argument("--data_dir", type=Path, required=True, help="holds a folder for each set")
    parser.add_argument("--encoder", default=ENCODER, help="name or folder")
    parser.add_argument("--cache", type=Path, default=Path("outputs/benchmarks"), help="of features and answers")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)


def taxonomy_of(name: str, folder: Path) -> Taxonomy:
    """The taxonomy of the task: without the labels of what is left out."""
    whole = Taxonomy.from_json(folder / "taxonomy.json")
    out = {label for labels in LEFT_OUT.get(name, ()) for label in labels}
    edges = [(whole.labels[parent], whole.labels[child]) for parent, child in whole.edges]
    roots = [label for label, depth in zip(whole.labels, whole.depths) if depth == 0 and label not in out]
    return Taxonomy.from_edges(edges, roots=roots) if out else whole


def kept_rows(name: str, rows: DatasetDict) -> dict[str, list[int]]:
    """The documents of each split that belong to the task."""
    left_out = LEFT_OUT.get(name)
    return {s: [i for i, labels in enumerate(rows[s]["labels"]) if labels != left_out] for s in SPLITS}


def multi_hot(rows: Dataset, keep: list[int], taxonomy: Taxonomy) -> np.ndarray:
    """bool [N, L]."""
    labels = rows["labels"][:]
    truth = np.zeros((len(keep), taxonomy.num_labels), dtype=bool)
    for row, i in enumerate(keep):
        truth[row, taxonomy.encode(labels[i])] = True
    return truth


def true_labels(name: str, folder: Path) -> tuple[Taxonomy, dict[str, np.ndarray]]:
    """The taxonomy and bool [N, L] of validation and test."""
    taxonomy = taxonomy_of(name, folder)
    rows = load_data(DataArguments(data_dir=str(folder)))
    keep = kept_rows(name, rows)
    return taxonomy, {s: multi_hot(rows[s], keep[s], taxonomy) for s in SPLITS[1:]}


def sample_each_leaf(truth: np.ndarray, taxonomy: Taxonomy, count: int, seed: int) -> np.ndarray:
    """Rows of `count` random documents of each leaf, given truth, bool [N, L]."""
    order = np.random.default_rng(seed).permutation(len(truth))
    truth, leaves = truth[order], np.flatnonzero(taxonomy.is_leaf)
    return np.unique(np.concatenate([order[truth[:, leaf]][:count] for leaf in leaves]))


class Task:
    """A data set as features [N, hidden_size], multi-hot labels [N, L] and texts of each split."""

    def __init__(self, name: str, folder: Path, encoder: str, cache: Path):
        self.name, self.folder = name, folder
        self.taxonomy = taxonomy_of(name, folder)
        self.label_mode = "single_path" if name in SINGLE_PATH else "multi_path"
        rows = load_data(DataArguments(data_dir=str(folder)))
        keep = kept_rows(name, rows)
        self.anchors, states = self._features(rows, encoder, cache / f"{name}.npz")
        self.x = {s: torch.from_numpy(states[s][keep[s]]) for s in SPLITS}
        self.left_out = {s: np.delete(states[s], keep[s], axis=0) for s in SPLITS}
        self.texts = {s: rows[s].select(keep[s])["text"][:] for s in SPLITS}
        self.y = {s: torch.from_numpy(multi_hot(rows[s], keep[s], self.taxonomy)).float() for s in SPLITS}

    @property
    def partial_paths(self) -> bool:
        return self.name in PARTIAL

    def truth(self, split: str) -> np.ndarray:
        """bool [N, L]."""
        return self.y[split].numpy() > 0

    def sample(self, size: int | None, seed: int) -> "Task":
        """The same task with `size` random training documents; itself for None."""
        if size is None or size >= len(self.x["train"]):
            return self
        return self.with_training(np.random.default_rng(seed).permutation(len(self.x["train"]))[:size])

    def sample_each_leaf(self, count: int, seed: int) -> "Task":
        """The same task with `count` random training documents of each leaf."""
        return self.with_training(sample_each_leaf(self.truth("train"), self.taxonomy, count, seed))

    def with_training(self, rows: np.ndarray) -> "Task":
        """The same task with some of the training documents."""
        chosen = copy.copy(self)
        chosen.x, chosen.y = ({**part, "train": part["train"][rows]} for part in (self.x, self.y))
        chosen.texts = {**self.texts, "train": [self.texts["train"][row] for row in rows]}
        return chosen

    def _features(self, rows: DatasetDict, encoder: str, path: Path) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        whole = Taxonomy.from_json(self.folder / "taxonomy.json")
        own = [whole.labels.index(label) for label in self.taxonomy.labels]
        if path.exists():
            with np.load(path) as stored:
                return torch.from_numpy(stored["anchors"][own]), {s: stored[s] for s in SPLITS}
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        model = HcalForSequenceClassification.from_encoder(encoder, whole, label_mode="multi_path")
        states: dict[str, np.ndarray] = {}
        for s in SPLITS:
            tokens = encode_dataset(rows[s], whole, tokenizer, labels=None, max_length=256)
            table: Dataset = pooled_features(model, tokens, tokenizer, desc=f"{self.name} {s}")
            states[s] = np.asarray(table["pooled_states"][:], dtype=np.float32)
        anchors = embed_texts(model, tokenizer, whole.texts())
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, anchors=anchors.numpy(), **states)  # type: ignore[arg-type]
        return anchors[own], states


def make_model(task: Task, setting: dict[str, Any]) -> HcalForSequenceClassification:
    """A new model for features; its encoder is a placeholder."""
    size = task.x["train"].shape[1]
    encoder = BertConfig(hidden_size=size, num_hidden_layers=0, num_attention_heads=1, vocab_size=2)
    fields = {"projection_dim": size, "prototype_temperature": 0.07, "label_mode": task.label_mode}
    fields["partial_paths"] = task.partial_paths
    model = HcalForSequenceClassification(HcalConfig.from_taxonomy(task.taxonomy, encoder, **{**fields, **setting}))
    if model.prototypes.is_anchored:
        model.prototypes.anchors.copy_(task.anchors)
        model.prototypes.trained.copy_(task.y["train"].sum(dim=0) > 0)
    return model


def logits_of(task: Task, model: HcalForSequenceClassification) -> dict[str, torch.Tensor]:
    """Logits [N, L] of the validation and test documents."""
    with torch.no_grad():
        return {s: model.eval()(pooled_states=task.x[s]).logits for s in SPLITS[1:]}


def record(path: Path, entry: dict[str, Any]) -> None:
    """Appends a result to a file of JSON lines, and prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)


class Features(TorchDataset):
    """Features [N, D] and multi-hot labels [N, L] that are dealt out in whole batches: a table's rows one by one would take
    longer than the head."""

    def __init__(self, states: torch.Tensor, labels: torch.Tensor):
        self.states, self.labels = states, labels

    def __len__(self) -> int:
        return len(self.states)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {"pooled_states": self.states[rows], "labels": self.labels[rows]}
