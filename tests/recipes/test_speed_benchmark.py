"""The modules that measure recipes/benchmarks/pages/speed.md."""

import json

import numpy as np
import pytest
import torch

from tests.builders import import_benchmarks


@pytest.fixture(scope="module")
def modules():
    return import_benchmarks("speed", "tables", "timing", "training_speed")


def test_ratios_are_computed_within_each_round(modules, monkeypatch):
    """If the machine is three times slower in one round, the ratios stay the same."""
    clock, slowness, order = [0.0], iter([1, 1, 3, 1]), []
    monkeypatch.setattr(modules.timing.time, "perf_counter", lambda: clock[0])
    pace = [1]

    def action(name, seconds):
        def run():
            if name == "one":
                pace[0] = next(slowness)
            order.append(name)
            clock[0] += seconds * pace[0]

        return run

    found = modules.timing.side_by_side({"one": action("one", 2.0), "two": action("two", 5.0)}, rounds=3)
    assert order == ["one", "two"] * 4
    assert found == {"one": (2.0, 1.0), "two": (5.0, 2.5)}


@pytest.mark.parametrize(("labels", "depth"), [(1000, 3), (1000, 7), (161, 2)])
def test_trees_have_the_requested_size_and_depth_and_documents_one_path(modules, labels, depth):
    taxonomy = modules.timing.tree_of_depth(labels, depth)
    assert taxonomy.num_labels == labels
    assert len(taxonomy.levels) == depth
    for row in modules.timing.index_labels(taxonomy, 5):
        nodes = row[row >= 0].numpy()
        assert (taxonomy.depths[nodes] == np.arange(len(nodes))).all()
        assert taxonomy.is_leaf[nodes[-1]]


def test_peak_bytes_is_the_memory_of_tensors_alive_at_the_same_time(modules):
    def action():
        first = torch.zeros(2**18)  # 1 MiB
        second = first + 1
        del first
        return second + 1

    assert modules.timing.peak_bytes(action) == pytest.approx(2 * 2**20, rel=0.01)


def test_training_steps_of_all_heads_run_on_given_features(modules):
    taxonomy = modules.timing.tree_of_depth(60, 3)
    actions = modules.training_speed.head_actions(taxonomy, batch=4, size=8)
    assert next(iter(actions)) == modules.training_speed.BARE
    for action in actions.values():
        action()


def test_the_page_shows_all_rows_with_their_targets(modules):
    rows = [{"what": "a", "seconds": 0.0012}, {"what": "b", "seconds": 2.0, "ratio": 1.234, "target": "1.5"}]
    page = modules.speed.tables({"decode": {"rows": rows, "conditions": "2 CPU thread(s)"}})
    assert "## Decoding\n\nDecodes 100,000 documents with 1,000 labels.\n\n2 CPU thread(s).\n" in page
    assert "| what | seconds | ratio | target |" in page
    assert "| a | 0.0012 |  |  |" in page
    assert "| b | 2.000 | 1.23 | 1.5 |" in page


def test_the_page_agrees_with_its_rows(modules):
    measured = json.loads(modules.speed.RESULTS.read_text(encoding="utf-8"))
    page = modules.speed.PAGE.read_text(encoding="utf-8")
    assert page == modules.tables.filled(page, {"tables": modules.speed.tables(measured)})


def test_tokens_are_counted_including_padding(modules):
    words, others = torch.nn.Embedding(100, 4), torch.nn.Embedding(9, 4)
    ids = torch.zeros(3, 7, dtype=torch.long)
    counts = modules.timing.CountsTokens(lambda: (words(ids), others(ids), words(ids[:1])), range(100))
    for _ in range(2):  # each call counts from zero
        counts()
        assert counts.tokens == 28
    words(ids)
    assert counts.tokens == 28


def test_the_search_benchmark_compares_both_ways_on_the_same_documents():
    search_speed = import_benchmarks("search_speed", "timing")
    taxonomy = search_speed.timing.tree_of_depth(60, 3)
    generator = torch.Generator().manual_seed(0)
    vectors = search_speed.search_speed.directions(taxonomy, generator)
    below = [node for node in range(60) if len(taxonomy.parents(node))]
    above = [int(taxonomy.parents(node)[0]) for node in below]
    # Label vectors are similar to those of their parents.
    assert (vectors[below] * vectors[above]).sum(dim=1).mean() > 0.8
    model = search_speed.search_speed.model_of(taxonomy)
    model.prototypes.weight.data.copy_(vectors)
    leaves = torch.from_numpy(np.flatnonzero(taxonomy.is_leaf))
    states = search_speed.search_speed.documents(vectors, leaves, generator)
    whole, beam = search_speed.search_speed.compared(model.eval().requires_grad_(False), states, rounds=1)
    assert whole["what"] == "60 labels: scores of all"
    assert (beam["recall"], beam["first"], beam["known to be exact"]) == (1.0, 1.0, 1.0)
