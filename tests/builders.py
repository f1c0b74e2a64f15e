"""Builders of tiny encoders, tokenizers, taxonomies and models. They use no network and no files."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, PreTrainedTokenizerFast

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy

WORDS = [
    "stars",
    "atoms",
    "energy",
    "cells",
    "genes",
    "plants",
    "poems",
    "novels",
    "drama",
    "music",
    "the",
    "of",
    "and",
    "with",
    "a",
    "in",
    "study",
    "new",
    "old",
    "first",
]


def import_benchmarks(*names):
    """Imports modules of recipes/benchmarks, which is a folder of scripts and not a package."""
    folder = str(Path(__file__).parent.parent / "recipes" / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(folder)


def build_tokenizer():
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16)


def build_taxonomy():
    """Returns a tree of three levels. All leaves are at depth 2."""
    return Taxonomy.from_paths(
        [
            ["science", "physics", "astronomy"],
            ["science", "physics", "quantum"],
            ["science", "biology", "genetics"],
            ["science", "biology", "botany"],
            ["arts", "writing", "poetry"],
            ["arts", "writing", "fiction"],
            ["arts", "stage", "opera"],
        ]
    )


def build_ragged():
    """Returns a tree with leaves at depths 0, 1 and 2."""
    return Taxonomy.from_edges(
        [("a", "a1"), ("a", "a2"), ("a1", "a11"), ("a1", "a12"), ("b", "b1"), ("b", "b2")], roots=["a", "b", "c"]
    )


def tiny_bert(**kwargs):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertConfig(vocab_size=len(WORDS) + 2, max_position_embeddings=32, **{**sizes, **kwargs})


def build_model(taxonomy, seed=0, dtype=torch.float32, dropout=0.0, preset=None, **config):
    """Returns a model with a random tiny BERT, without dropout by default."""
    torch.manual_seed(seed)
    encoder = tiny_bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    build = HcalConfig.paper if preset == "paper" else HcalConfig.from_taxonomy
    config = {"projection_dim": 8, **config} if preset is None else config
    return HcalForSequenceClassification(build(taxonomy, encoder, **config)).to(dtype)


def random_forest(rng: np.random.Generator, num_labels: int, max_depth: int = 5) -> Taxonomy:
    """Returns a random forest, in general with leaves at different depths."""
    parents, depths = [-1], [0]
    for _ in range(1, num_labels):
        parent = int(rng.integers(-1, len(parents)))
        if parent >= 0 and depths[parent] + 1 >= max_depth:
            parent = -1
        parents.append(parent)
        depths.append(0 if parent < 0 else depths[parent] + 1)
    names = [f"n{i}" for i in range(num_labels)]
    edges = [(names[parent], names[node]) for node, parent in enumerate(parents) if parent >= 0]
    return Taxonomy.from_edges(edges, roots=[names[i] for i, parent in enumerate(parents) if parent < 0])


def random_dag(rng: np.random.Generator, num_labels: int, max_parents: int = 3) -> Taxonomy:
    """Returns a random DAG. Each node has up to `max_parents` parents among the earlier nodes."""
    edges, roots = [], []
    for node in range(num_labels):
        number = int(rng.integers(0, min(node, max_parents) + 1))
        above = rng.choice(node, size=number, replace=False) if number else []
        edges += [(f"n{p}", f"n{node}") for p in above]
        if not number:
            roots.append(f"n{node}")
    return Taxonomy.from_edges(edges, roots=roots)


def random_multi_hot(rng: np.random.Generator, taxonomy: Taxonomy, documents: int, single_path: bool) -> torch.Tensor:
    """Returns random multi-hot labels [B, L] that include all ancestors.

    With `single_path`, each row is one path, which may end at any node. Otherwise a row may be empty.
    """
    rows = torch.zeros(documents, taxonomy.num_labels)
    for row in rows:
        size = 1 if single_path else int(rng.integers(0, 4))
        row[taxonomy.complete(rng.choice(taxonomy.num_labels, size=min(size, taxonomy.num_labels)))] = 1.0
    return rows
