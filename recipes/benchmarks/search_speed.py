"""Speed of beam search for the most probable paths: a part of speed.py."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from timing import side_by_side, tree_of_depth
from torch.nn import functional as F
from transformers import BertConfig

from hcal_hf import BestPaths, HcalConfig, HcalForSequenceClassification, PathSearch, Taxonomy, best_of_all

SIZE, BATCH, PATHS = 256, 32, 5
# Share of a label's vector that comes from its parent, and of a document's vector that comes from its label.
KEPT = 0.7
TRAINED_LABELS, STEPS, STEP_DOCUMENTS = 20_000, 400, 256


def directions(taxonomy: Taxonomy, generator: torch.Generator) -> torch.Tensor:
    """Returns a unit vector for each label, [L, SIZE]. Each one is similar to its parent's."""
    vectors = F.normalize(torch.randn(taxonomy.num_labels, SIZE, generator=generator), dim=1)
    for level in taxonomy.edge_slices[1:]:
        above, below = torch.from_numpy(taxonomy.edges[level].T.copy())
        vectors[below] = F.normalize(KEPT * vectors[above] + (1 - KEPT) * vectors[below], dim=1)
    return vectors


def documents(vectors: torch.Tensor, leaves: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns a unit vector near the vector of each leaf [n], as [n, SIZE]."""
    noise = F.normalize(torch.randn(len(leaves), SIZE, generator=generator), dim=1)
    return F.normalize(KEPT * vectors[leaves] + (1 - KEPT) * noise, dim=1)


def model_of(taxonomy: Taxonomy) -> HcalForSequenceClassification:
    """Builds a model with the head `conditional_softmax` that reads features and does not project them."""
    encoder = BertConfig(hidden_size=SIZE, num_hidden_layers=0, num_attention_heads=1, vocab_size=2)
    fields: dict[str, Any] = {"head": "conditional_softmax", "label_mode": "single_path", "projection_dim": SIZE}
    model = HcalForSequenceClassification(HcalConfig.from_taxonomy(taxonomy, encoder, perturbation=0.0, **fields))
    torch.nn.init.eye_(model.projection.weight)
    return model


def train(model: HcalForSequenceClassification, vectors: torch.Tensor, generator: torch.Generator) -> None:
    """Trains the prototypes for STEPS steps of AdamW on synthetic documents of random leaves."""
    taxonomy = model.taxonomy
    leaves = torch.from_numpy(taxonomy.is_leaf.nonzero()[0])
    optimizer = torch.optim.AdamW(model.prototypes.parameters(), lr=1e-2)
    for _ in range(STEPS):
        chosen = leaves[torch.randint(len(leaves), (STEP_DOCUMENTS,), generator=generator)]
        paths = [torch.from_numpy(taxonomy.complete([int(leaf)])) for leaf in chosen]
        labels = torch.nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-100)
        states = documents(vectors, chosen, generator)
        model.train()(pooled_states=states, labels=labels, return_logits=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def path_search(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Finds the 5 most probable paths of 32 documents, by beam search (32 nodes per level) and from the scores of all
    labels, in trees of 8 levels. Labels have random vectors that are similar to their parents' vectors, and documents lie
    near their leaf. The prototypes of 20,000 labels are learned from synthetic documents (400 steps of 256). Those of
    1,000,000 labels are the labels' own vectors. Recall is the share of the 5 most probable leaves that the search finds,
    on 640 other documents. First is the same for the most probable leaf."""
    for labels in (TRAINED_LABELS, *options.search_labels):
        generator = torch.Generator().manual_seed(0)
        taxonomy = tree_of_depth(labels, 8)
        vectors, model = directions(taxonomy, generator), model_of(taxonomy)
        if labels == TRAINED_LABELS:
            train(model, vectors, generator)
        else:
            model.prototypes.weight.data.copy_(vectors)
        model.eval().requires_grad_(False)
        leaves = torch.from_numpy(taxonomy.is_leaf.nonzero()[0])
        chosen = leaves[torch.randint(len(leaves), (20 * BATCH,), generator=generator)]
        yield from compared(model, documents(vectors, chosen, generator), options.rounds)


def compared(model: HcalForSequenceClassification, states: torch.Tensor, rounds: int) -> Iterator[dict[str, Any]]:
    """Compares both ways on the same documents."""
    search, labels = PathSearch(model), f"{model.taxonomy.num_labels:,} labels"

    def by_search(some: torch.Tensor) -> BestPaths:
        return search(model(pooled_states=some, return_logits=False).features, PATHS)

    def by_all(some: torch.Tensor) -> BestPaths:
        return best_of_all(model(pooled_states=some).logits, model, PATHS)

    by_beam, best = ([way(some) for some in states.split(BATCH)] for way in (by_search, by_all))
    nodes, true = (torch.cat([paths.nodes for paths in way]) for way in (by_beam, best))
    recall = (nodes[:, :, None] == true[:, None, :]).any(dim=2).float().mean().item()
    some = states[:BATCH]
    times = side_by_side({"all": lambda: by_all(some), "beam": lambda: by_search(some)}, rounds)
    yield {"what": f"{labels}: scores of all", "seconds": times["all"][0]}
    yield {
        "what": f"{labels}: beam search",
        "seconds": times["beam"][0],
        "times faster": 1 / times["beam"][1],
        "recall": recall,
        "first": (nodes[:, 0] == true[:, 0]).float().mean().item(),
        "known to be exact": torch.cat([paths.exact for paths in by_beam]).float().mean().item(),
        "target": "recall 0.99" if labels != "1,000,000 labels" else "50 times, recall 0.99",
    }
