"""Compares the heads with slow loops written from their definitions."""

import math

import numpy as np
import pytest
import torch

from hcal_hf import HcalConfig, Taxonomy
from hcal_hf.heads import build_head
from hcal_hf.log_space import log1mexp, log_probs_to_logits, segment_logsumexp
from hcal_hf.targets import Targets
from tests.builders import random_dag, random_forest, random_multi_hot, tiny_bert


def make_head(taxonomy, label_mode, **config):
    config = HcalConfig.from_taxonomy(taxonomy, tiny_bert(), label_mode=label_mode, **config)
    head = build_head(config, taxonomy)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(torch.tensor(7.0) if name == "scale" else torch.randn(parameter.shape))
    return head.double()


def as_indices(multi_hot):
    rows = [row.nonzero()[:, 0] for row in multi_hot]
    width = max(1, *(len(row) for row in rows))
    return torch.stack([torch.cat([row, row.new_full((width - len(row),), -100)]) for row in rows])


@pytest.mark.parametrize("seed", range(3))
def test_independent_head_with_one_softmax_per_level_matches_a_slow_reference(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    taxonomy = random_forest(rng, 25)
    head = make_head(taxonomy, "single_path", head="independent")
    cosines = torch.rand(6, 25, dtype=torch.float64) * 2 - 1
    labels = random_multi_hot(rng, taxonomy, 6, single_path=True)
    scores = head.scores(cosines)
    expected = torch.zeros(6, 25, dtype=torch.float64)
    sums, counts = [0.0] * len(taxonomy.levels), [0] * len(taxonomy.levels)
    for i in range(6):
        for k, level in enumerate(taxonomy.levels):
            total = sum(math.exp(cosines[i, c] / 0.1) for c in range(level.start, level.stop))
            for c in range(level.start, level.stop):
                expected[i, c] = math.log(math.exp(cosines[i, c] / 0.1) / total)
                if labels[i, c]:
                    sums[k] -= expected[i, c].item()
                    counts[k] += 1
    torch.testing.assert_close(head.log_probs(scores), expected.clamp(max=-1e-7))
    means = torch.tensor([s / max(n, 1) for s, n in zip(sums, counts)], dtype=torch.float64)
    for given in (labels, labels.bool(), as_indices(labels)):
        targets = Targets(given, 25)
        torch.testing.assert_close(head.losses(scores, targets), means)
        assert head.counts(targets).tolist() == counts


@pytest.mark.parametrize("seed", range(3))
def test_independent_head_with_one_sigmoid_per_label_matches_a_slow_reference(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    taxonomy = random_forest(rng, 20)
    head = make_head(taxonomy, "multi_path", head="independent")
    cosines = torch.rand(5, 20, dtype=torch.float64) * 2 - 1
    labels = random_multi_hot(rng, taxonomy, 5, single_path=False)
    scores = head.scores(cosines)
    sums = [0.0] * len(taxonomy.levels)
    for i in range(5):
        for c in range(20):
            p = 1 / (1 + math.exp(-(7.0 * cosines[i, c].item() + head.bias[c].item())))
            assert head.log_probs(scores)[i, c].item() == pytest.approx(min(math.log(p), -1e-7), abs=1e-9)
            sums[taxonomy.depths[c]] -= math.log(p) if labels[i, c] else math.log(1 - p)
    sizes = [level.stop - level.start for level in taxonomy.levels]
    for given in (labels, as_indices(labels)):
        losses = head.losses(scores, Targets(given, 20)).tolist()
        assert losses == pytest.approx([s / (5 * n) for s, n in zip(sums, sizes)])
        assert head.counts(Targets(given, 20)).tolist() == [5 * n for n in sizes]


def test_log1mexp_is_exact_and_its_gradient_finite():
    x = torch.tensor([-1e-7, -1e-3, -0.5, -0.6931, -0.7, -5.0, -50.0, -1e4], dtype=torch.float64, requires_grad=True)
    y = log1mexp(x)
    assert y.tolist() == pytest.approx([math.log(-math.expm1(v)) if v > -30 else -math.exp(v) for v in x.tolist()])
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid_of_the_logits_is_the_probability(dtype):
    log_probs = torch.tensor([-1e-7, -1e-4, -0.1, -0.69, -3.0, -80.0], dtype=dtype)
    logits = log_probs_to_logits(log_probs)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(torch.sigmoid(logits), log_probs.exp(), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("label_mode", ["single_path", "multi_path"])
@pytest.mark.parametrize(
    "taxonomy",
    [
        Taxonomy.from_edges([], roots=["only"]),
        Taxonomy.from_edges([("root", "a"), ("root", "b")]),
        Taxonomy.from_edges([("a", "only child"), ("b", "c"), ("b", "d")]),
    ],
    ids=["single root", "level of one class", "only child"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_levels_with_a_single_label_have_finite_losses_and_gradients(make_model, label_mode, taxonomy, dtype):
    model = make_model(taxonomy, label_mode=label_mode, dtype=dtype)
    path = taxonomy.complete([taxonomy.num_labels - 1])
    output = model(input_ids=torch.tensor([[2, 3, 4]]), labels=torch.from_numpy(path)[None])
    output.loss.backward()
    assert output.logits.dtype == torch.float32
    assert torch.isfinite(output.logits).all()
    assert torch.isfinite(output.task_losses).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert (model.probabilities(output) <= 1).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3), "two dimensions"),
        (torch.zeros(3, 4), "one column for each of the 5 labels, got 4"),
        (torch.zeros(3, 2, dtype=torch.int32), "got torch.int32"),
    ],
)
def test_targets_of_the_wrong_shape_or_type_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        Targets(labels, 5)


# ---- Coherent heads ----


def parent_of(taxonomy, node):
    parents = taxonomy.parents(node).tolist()
    return parents[0] if parents else -1


def path_to(taxonomy, node):
    return [*path_to(taxonomy, parent_of(taxonomy, node)), node] if node >= 0 else []


def logsumexp(values):
    return math.log(sum(math.exp(value) for value in values))


def slow_single_path(row, taxonomy, name, stop):
    """Computes log P(node) and log P(path ends at node), node by node, from the definitions."""
    size = taxonomy.num_labels
    children = {node: [c for c in range(size) if parent_of(taxonomy, c) == node] for node in range(-1, size)}
    ranks = {node: i for i, node in enumerate(n for n in range(size) if children[n])}
    if name == "path_softmax":
        ends = {
            node: sum(row[c] for c in path_to(taxonomy, node)) + (stop[ranks[node]] if children[node] else 0.0)
            for node in range(size)
            if not children[node] or stop is not None
        }
        total = logsumexp(ends.values())
        below = lambda node: [value for end, value in ends.items() if node in path_to(taxonomy, end)]  # noqa: E731
        return [logsumexp(below(node)) - total for node in range(size)], {e: v - total for e, v in ends.items()}
    if name == "lookahead_softmax":
        row = list(row)
        for node in reversed(range(size)):  # children come after their parents
            if children[node]:
                rivals = [row[c] for c in children[node]] + ([stop[ranks[node]]] if stop is not None else [])
                row[node] += logsumexp(rivals) * (1.0 if parent_of(taxonomy, node) < 0 else 0.5)
    nodes, ends = [], {}
    for node in range(size):
        above = parent_of(taxonomy, node)
        rivals = [row[c] for c in children[above]] + ([stop[ranks[above]]] if stop is not None and above >= 0 else [])
        nodes.append((nodes[above] if above >= 0 else 0.0) + row[node] - logsumexp(rivals))
    for node in range(size):
        if not children[node]:
            ends[node] = nodes[node]
        elif stop is not None:
            ends[node] = (
                nodes[node] + stop[ranks[node]] - logsumexp([row[c] for c in children[node]] + [stop[ranks[node]]])
            )
    return nodes, ends


@pytest.mark.parametrize("name", ["path_softmax", "conditional_softmax", "lookahead_softmax"])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_coherent_softmax_heads_match_slow_references(name, partial, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    taxonomy = random_forest(rng, 25)
    head = make_head(taxonomy, "single_path", head=name, partial_paths=partial)
    scores = torch.randn(8, 25, dtype=torch.float64) * 3
    labels = random_multi_hot(rng, taxonomy, 8, single_path=True)
    stop = head.stop.tolist() if partial else None
    found = head.log_probs(scores)
    sums, counts = [0.0] * len(taxonomy.levels), [0] * len(taxonomy.levels)
    for i in range(8):
        nodes, ends = slow_single_path(scores[i].tolist(), taxonomy, name, stop)
        assert found[i].tolist() == pytest.approx([min(value, -1e-7) for value in nodes], abs=1e-9)
        assert logsumexp(ends.values()) == pytest.approx(0, abs=1e-9)
        path = labels[i].nonzero()[:, 0].tolist()
        for k, node in enumerate(path):
            given = nodes[path[k - 1]] if k and name == "conditional_softmax" else 0.0
            sums[k] -= nodes[node] - given
            counts[k] += 1
        if partial and not taxonomy.is_leaf[path[-1]]:
            given = nodes[path[-1]] if name == "conditional_softmax" else 0.0
            sums[len(path)] -= ends[path[-1]] - given
            counts[len(path)] += 1
    expected = [s / max(n, 1) for s, n in zip(sums, counts)]
    for form in (labels, as_indices(labels)):
        targets = Targets(form, 25)
        assert head.losses(scores, targets).tolist() == pytest.approx(expected)
        assert head.counts(targets).tolist() == counts


def looked_ahead(row, taxonomy):
    """Adds to the scores of one document what the lookahead adds for the children, node by node."""
    values = list(row)
    for node in reversed(range(taxonomy.num_labels)):  # children come after their parents
        below = [values[c] for c in range(taxonomy.num_labels) if node in taxonomy.parents(c).tolist()]
        if below:
            values[node] += math.log(1 + sum(math.exp(value) for value in below)) / 2
    return values


@pytest.mark.parametrize("name", ["conditional_sigmoid", "lookahead_sigmoid"])
@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("seed", range(3))
def test_coherent_sigmoid_heads_match_slow_references(name, make, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    taxonomy = make(rng, 20)
    head = make_head(taxonomy, "multi_path", head=name)
    scores = torch.randn(7, 20, dtype=torch.float64) * 2
    labels = random_multi_hot(rng, taxonomy, 7, single_path=False)
    found = head.log_probs(scores)
    sums, counts = [0.0] * len(taxonomy.levels), [0] * len(taxonomy.levels)
    for i in range(7):
        probabilities = []
        row = scores[i].tolist() if name == "conditional_sigmoid" else looked_ahead(scores[i].tolist(), taxonomy)
        for c in range(20):
            above = [probabilities[p] for p in taxonomy.parents(c).tolist()]
            own = 1 / (1 + math.exp(-row[c]))
            probabilities.append(own * min(above, default=1.0))
            if all(labels[i, p] for p in taxonomy.parents(c).tolist()):
                sums[taxonomy.depths[c]] -= math.log(own if labels[i, c] else 1 - own)
                counts[taxonomy.depths[c]] += 1
        assert found[i].tolist() == pytest.approx([min(math.log(p), -1e-7) for p in probabilities], abs=1e-6)
    for form in (labels, as_indices(labels)):
        targets = Targets(form, 20)
        assert head.losses(scores, targets).tolist() == pytest.approx([s / max(n, 1) for s, n in zip(sums, counts)])
        assert head.counts(targets).tolist() == counts


@pytest.mark.parametrize(
    ("name", "make", "partial"),
    [
        ("path_softmax", random_forest, False),
        ("path_softmax", random_forest, True),
        ("conditional_softmax", random_forest, False),
        ("conditional_softmax", random_forest, True),
        ("lookahead_softmax", random_forest, False),
        ("lookahead_softmax", random_forest, True),
        ("conditional_sigmoid", random_forest, True),
        ("conditional_sigmoid", random_dag, True),
        ("lookahead_sigmoid", random_forest, True),
        ("lookahead_sigmoid", random_dag, True),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 300, 10_000])
@pytest.mark.parametrize("spread", [0.1, 10.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_child_is_more_probable_than_a_parent(name, make, partial, size, spread, dtype):
    rng = np.random.default_rng(size)
    torch.manual_seed(size)
    taxonomy = make(rng, size, 12) if make is random_forest else make(rng, size)
    mode = "multi_path" if name.endswith("sigmoid") else "single_path"
    head = make_head(taxonomy, mode, head=name, partial_paths=partial).float()
    # Scores are rounded as those of a bfloat16 encoder. The head computes in float32.
    scores = (torch.randn(4, size) * spread).to(dtype).float()
    logits = log_probs_to_logits(head.log_probs(scores))
    assert torch.isfinite(logits).all()
    probabilities = torch.sigmoid(logits)
    parents, children = torch.from_numpy(taxonomy.edges.copy()).T
    assert (probabilities[:, children] <= probabilities[:, parents] + 1e-6).all()
    assert (logits[:, children] <= logits[:, parents] + 1e-4 * logits[:, parents].abs()).all()


@pytest.mark.parametrize("name", ["conditional_sigmoid", "lookahead_sigmoid"])
@pytest.mark.parametrize("make", [random_forest, random_dag])
def test_sigmoid_heads_compile_to_one_graph(name, make):
    rng = np.random.default_rng(0)
    taxonomy = make(rng, 25)
    head = make_head(taxonomy, "multi_path", head=name)
    scores = torch.randn(3, 25, dtype=torch.float64)
    expected = head.log_probs(scores)  # also fills the caches of the taxonomy
    compiled = torch.compile(head.log_probs, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(scores), expected)


def test_lookahead_softmax_equals_path_softmax_on_two_levels():
    taxonomy = random_forest(np.random.default_rng(3), 30, 2)
    scores = torch.randn(6, 30, dtype=torch.float64) * 3
    found, expected = (
        make_head(taxonomy, "single_path", head=name).log_probs(scores)
        for name in ("lookahead_softmax", "path_softmax")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["path_softmax", "conditional_softmax", "lookahead_softmax"])
def test_leaf_probabilities_sum_to_one_if_paths_are_full(name):
    taxonomy = random_forest(np.random.default_rng(0), 60)
    head = make_head(taxonomy, "single_path", head=name)
    probabilities = head.log_probs(torch.randn(5, 60, dtype=torch.float64) * 4).exp()
    torch.testing.assert_close(
        probabilities[:, torch.from_numpy(taxonomy.is_leaf)].sum(1),
        torch.ones(5, dtype=torch.float64),
        atol=1e-5,
        rtol=0,
    )


def test_a_head_of_the_other_label_mode_is_refused(taxonomy):
    with pytest.raises(ValueError, match=r"head='path_softmax' does not fit label_mode='multi_path': use one of"):
        HcalConfig.from_taxonomy(taxonomy, tiny_bert(), head="path_softmax", label_mode="multi_path")
    with pytest.raises(ValueError, match="head='conditional_sigmoid' does not fit"):
        HcalConfig.from_taxonomy(taxonomy, tiny_bert(), head="conditional_sigmoid")
    with pytest.raises(ValueError, match='needs head="independent"'):
        HcalConfig.paper(taxonomy, tiny_bert(), head="path_softmax")


def test_segment_logsumexp_matches_torch():
    values = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    segments = torch.tensor([2, 0, 1, 1, 0, 2, 2, 3, 0])
    found = segment_logsumexp(values, segments, 4)
    for family in range(4):
        torch.testing.assert_close(found[family], values[segments == family].logsumexp(dim=0))
    assert torch.autograd.gradcheck(lambda v: segment_logsumexp(v, segments, 4), values)
    far = torch.tensor([[1000.0], [-1000.0]])  # no overflow, no underflow
    assert segment_logsumexp(far, torch.tensor([0, 1]), 2).flatten().tolist() == [1000.0, -1000.0]


@pytest.mark.parametrize("head", ["path_softmax", "lookahead_softmax", "conditional_softmax"])
def test_losses_of_paths_use_no_cumulative_sum_of_floats(make_model, taxonomy, head, monkeypatch):
    """It has no deterministic kernel on CUDA, so that `full_determinism=True` would raise an error."""
    cumsum = torch.Tensor.cumsum

    def checked(self, *args, **kwargs):
        assert not self.is_floating_point()
        return cumsum(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "cumsum", checked)
    model = make_model(taxonomy, head=head)
    labels = torch.tensor([[0, 2, 6], [1, 4, 10]])
    model.train()(pooled_states=torch.randn(2, 16), labels=labels).loss.backward()
    assert model.prototypes.weight.grad.any()
