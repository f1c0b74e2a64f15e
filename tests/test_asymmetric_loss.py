"""The asymmetric loss and its maps: figures of the specification, slow loops, extreme scores, coherence."""

import math

import numpy as np
import pytest
import torch

from hcal_hf.asymmetric_loss import (
    Shape,
    asymmetric_losses,
    calibrated_logits,
    focal_losses,
    log_shares,
    moved_gamma,
    sums_by_label,
)
from hcal_hf.targets import Targets
from tests.builders import random_dag, random_forest, random_multi_hot
from tests.test_heads import as_indices, looked_ahead, make_head

SIGMOID_HEADS = ("independent", "conditional_sigmoid", "lookahead_sigmoid")
SOFTMAX_HEADS = ("independent", "conditional_softmax", "path_softmax", "lookahead_softmax")
RELEASED = {"gamma_negative": 4, "gamma_positive": 1, "margin": 0.05}
OPTIONS = (
    {"gamma_negative": 2, "gamma_positive": 0, "margin": 0.0},
    RELEASED,
    {"gamma_negative": 0.5, "gamma_positive": 0.7, "margin": 0.2},
    {**RELEASED, "detach": True},
)


def make_asl(taxonomy, name, mode="multi_path", partial=False, **kwargs):
    return make_head(
        taxonomy, mode, head=name, partial_paths=partial, classification_loss="asl", classification_loss_kwargs=kwargs
    )


def logs(z):
    return torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)


def slow_loss(p, positive, gamma_negative=4, gamma_positive=1, margin=0.05, detach=False):
    """Computes the loss of one pair from its definition. `detach` does not change the value."""
    if positive:
        return -((1 - p) ** gamma_positive) * math.log(p)
    excess = max(p - margin, 0.0)
    return -(excess**gamma_negative) * math.log(1 - excess) if excess else 0.0


def slow_map(p, gamma_negative=4, gamma_positive=1, margin=0.05, detach=False):
    """Computes the probability pi for which the expected gradient at p is 0, with gradients of section 4.3."""
    excess = max(p - margin, 0.0)
    pull = (1 - p) ** gamma_positive / p
    push = excess**gamma_negative / (1 - excess)
    if not detach:
        pull -= gamma_positive * (1 - p) ** (gamma_positive - 1) * math.log(p)
        if excess:
            push -= gamma_negative * excess ** (gamma_negative - 1) * math.log(1 - excess)
    if margin and not excess:
        return 1e-7
    return max(push / (push + pull), 1e-7 if margin else 0.0)


# ---- Figures of the specification ----

Z, Y = (2.0, -1.0, 0.5, -4.0), (True, True, False, False)


@pytest.mark.parametrize(
    ("gamma_positive", "gamma_negative", "margin", "detach", "cells", "total", "gradient"),
    [
        (1, 4, 0.05, False, (0.01513019, 0.96007122, 0.09125300, 0), 1.06645442, (-0.02753596, -0.79264956, 0.20887369, 0)),
        (1, 4, 0.05, True, (0.01513019, 0.96007122, 0.09125300, 0), 1.06645442, (-0.01420934, -0.53444665, 0.05903042, 0)),
        (0, 4, 0.05, False, None, 1.53144270, (-0.11920292, -0.73105858, 0.20887369, 0)),
        (0, 0, 0, False, None, 2.43241661, None),
        (2, 2, 0, False, None, 1.08108934, (-0.00487094, -0.76823472, 0.52615182, 0.00001735)),
    ],
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_release(
    gamma_positive, gamma_negative, margin, detach, cells, total, gradient
):
    z = torch.tensor(Z, dtype=torch.float64, requires_grad=True)
    shape = Shape(gamma_negative, gamma_positive, margin, detach)
    losses = asymmetric_losses(*logs(z), torch.tensor(Y), shape)
    losses.sum().backward()
    assert losses.sum().item() == pytest.approx(total, abs=1e-6)
    if cells:
        assert losses.tolist() == pytest.approx(cells, abs=1e-6)
    if gradient:
        assert z.grad.tolist() == pytest.approx(gradient, abs=1e-6)
    expected = [slow_loss(1 / (1 + math.exp(-s)), y, gamma_negative, gamma_positive, margin) for s, y in zip(Z, Y)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "shape", "expected"),
    [
        (0.5, (4, 0, 0.05, True), 0.035939),
        (0.5, (4, 0, 0.05, False), 0.127578),
        (0.8, (4, 0, 0.05, True), 0.503106),
        (0.8, (4, 0, 0.05, False), 0.742533),
        (0.798826, (4, 0, 0.05, True), 0.5),
        (0.683706, (4, 0, 0.05, False), 0.5),
        (0.591653, (4, 0, 0.05, True), 0.1),
        (0.477518, (4, 0, 0.05, False), 0.1),
        (0.5, (2, 2, 0, True), 0.5),
        (0.5, (2, 2, 0, False), 0.5),
    ],
)
def test_the_map_has_the_values_of_the_specification(p, shape, expected):
    z = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64)
    assert torch.sigmoid(calibrated_logits(*logs(z), Shape(*shape))).item() == pytest.approx(expected, abs=1.5e-6)


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, 0.51429507), (1.0, 0.20678677)])
def test_the_focal_loss_of_one_softmax_is_that_of_the_specification(gamma, expected):
    z = torch.tensor([1, 0.2, -0.5], dtype=torch.float64)
    assert focal_losses(z.log_softmax(0)[0], gamma, False).item() == pytest.approx(expected, abs=1e-8)


SMALL_SCORES, SMALL_LABELS = [[1.0, -0.5, 0.7]], [[1.0, 1.0, 0.0]]


def small_head(pairs, released=False):
    from hcal_hf import Taxonomy

    taxonomy = Taxonomy.from_edges([("A", "a1"), ("A", "a2")])
    return make_asl(taxonomy, "conditional_sigmoid", pairs=pairs, released=released, detach=False, **RELEASED)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("marginal", (0.08424904, (0.93202761 + 0.02133435) / 2)),
        ("conditional", (0.08424904, (0.60632331 + 0.14061434) / 2)),
    ],
)
def test_conditional_and_marginal_pairs_have_the_losses_of_the_specification(pairs, expected):
    scores, targets = torch.tensor(SMALL_SCORES, dtype=torch.float64), Targets(torch.tensor(SMALL_LABELS), 3)
    assert small_head(pairs).losses(scores, targets).tolist() == pytest.approx(expected, abs=1e-8)


def test_a_false_leaf_pushes_a_true_parent_only_as_released():
    targets = Targets(torch.tensor(SMALL_LABELS), 3)
    gradients = []
    for released in (True, False):
        head = small_head("marginal", released)
        scores = torch.tensor(SMALL_SCORES, dtype=torch.float64, requires_grad=True)
        log_p, log_not = head._pair_log_probs(scores, targets)
        asymmetric_losses(log_p, log_not, targets.multi_hot > 0, head.shape())[0, 2].backward()
        gradients.append(scores.grad[0].tolist())
    assert gradients[0] == pytest.approx((0.03421677, 0, 0.04221567), abs=1e-8)
    assert gradients[1] == pytest.approx((0, 0, 0.04221567), abs=1e-8)


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_a_negative_pair_has_a_gradient_to_false_parents_only(margin):
    """A true root A, its false child b, and its false grandchild c: the pair of c pushes b and not A."""
    from hcal_hf import Taxonomy

    taxonomy = Taxonomy.from_edges([("A", "b"), ("b", "c")])
    head = make_asl(taxonomy, "conditional_sigmoid", pairs="marginal", margin=margin)
    scores = torch.tensor([[1.0, 0.5, 0.7]], dtype=torch.float64, requires_grad=True)
    targets = Targets(torch.tensor([[1.0, 0.0, 0.0]]), 3)
    log_p, log_not = head._pair_log_probs(scores, targets)
    asymmetric_losses(log_p, log_not, targets.multi_hot > 0, head.shape())[0, 2].backward()
    assert scores.grad[0, 0] == 0
    assert scores.grad[0, 1] > 0.01
    assert scores.grad[0, 2] > 0.01


def test_the_adaptive_gamma_reaches_the_target_of_the_specification():
    """The population form: one label with probability 0.1, and p at the optimum of each gamma-."""
    gamma = torch.tensor([0.0], dtype=torch.float64)
    for _ in range(400):
        low, high = 1e-6, 1 - 1e-6
        for _ in range(60):
            p = (low + high) / 2
            low, high = (p, high) if slow_map(p, gamma.item(), 0, 0) < 0.1 else (low, p)
        sums = torch.tensor([[0.1 * p], [0.1], [0.9 * (1 - p)], [0.9]], dtype=torch.float64)
        # The sums are of a population with less than one document, so they are scaled to whole numbers.
        gamma = moved_gamma(gamma, sums * 1000, -0.3854, 0.2, 0.0)
    assert gamma.item() == pytest.approx(2.00, abs=0.005)
    assert p == pytest.approx(0.3073, abs=5e-5)


def test_an_adaptive_gamma_is_limited_and_keeps_its_value_without_positives_or_negatives():
    gamma = torch.tensor([1.0, 1.0, 1.0, 1.0])
    # Levels: dp = -0.5; no positives; no negatives; dp = 0.9.
    sums = torch.tensor([[1.0, 0, 3, 9.5], [4, 0, 4, 10], [3, 3, 0, 0.5], [4, 4, 0, 10]])
    moved = moved_gamma(gamma, sums, 0.0, 1.0, 0.0)
    assert moved.tolist() == pytest.approx([1.5, 1.0, 1.0, 0.1])
    assert moved_gamma(gamma, sums, 0.0, 100.0, 0.3).tolist() == pytest.approx([8.0, 1.0, 1.0, 0.3])


# ---- Slow loops ----


def slow_pairs(row, positive, taxonomy, name, pairs):
    """Yields (label, p, positive) of each pair that has a loss."""
    row = looked_ahead(row, taxonomy) if name == "lookahead_sigmoid" else row
    whole = []
    for c in range(taxonomy.num_labels):
        p = 1 / (1 + math.exp(-row[c]))
        parents = [] if name == "independent" else taxonomy.parents(c).tolist()
        whole.append(p * min((whole[q] for q in parents), default=1.0))
        if pairs == "marginal":
            yield c, whole[c], positive[c]
        elif all(positive[q] for q in parents):
            yield c, p, positive[c]


CASES = [(name, pairs) for name in SIGMOID_HEADS for pairs in ("conditional", "marginal")][:1] + [
    (name, pairs) for name in SIGMOID_HEADS[1:] for pairs in ("conditional", "marginal")
]


@pytest.mark.parametrize(("name", "pairs"), CASES)
@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("options", OPTIONS)
def test_losses_match_a_slow_loop(name, pairs, make, options):
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    taxonomy = make(rng, 20)
    head = make_asl(taxonomy, name, pairs=pairs, **options)
    scores = torch.randn(7, 20, dtype=torch.float64) * 2
    labels = random_multi_hot(rng, taxonomy, 7, single_path=False)  # partial paths and empty sets too
    sums, counts = [0.0] * len(taxonomy.levels), [0] * len(taxonomy.levels)
    for row, positive in zip(scores.tolist(), labels.tolist()):
        for c, p, is_positive in slow_pairs(row, positive, taxonomy, name, pairs):
            sums[taxonomy.depths[c]] += slow_loss(p, is_positive, **options)
            counts[taxonomy.depths[c]] += 1
    expected = [s / max(n, 1) for s, n in zip(sums, counts)]
    for form in (labels, as_indices(labels)):
        targets = Targets(form, 20)
        assert head.losses(scores, targets).tolist() == pytest.approx(expected)
        assert head.counts(targets).tolist() == counts


@pytest.mark.parametrize(("name", "pairs"), CASES)
@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("options", OPTIONS)
def test_probabilities_and_likelihood_match_a_slow_loop(name, pairs, make, options):
    rng = np.random.default_rng(2)
    torch.manual_seed(2)
    taxonomy = make(rng, 15)
    head = make_asl(taxonomy, name, pairs=pairs, **options)
    scores = torch.randn(4, 15, dtype=torch.float64) * 2
    labels = random_multi_hot(rng, taxonomy, 4, single_path=False)
    found, total = head.log_probs(scores, 1.5).exp(), 0.0
    for i, row in enumerate((scores / 1.5).tolist()):
        row = looked_ahead(row, taxonomy) if name == "lookahead_sigmoid" else row
        whole, plain = [], []
        for c in range(15):
            own = 1 / (1 + math.exp(-row[c]))
            parents = [] if name == "independent" else taxonomy.parents(c).tolist()
            above = min((whole[q] for q in parents), default=1.0)
            if pairs == "marginal":
                plain.append(own * min((plain[q] for q in parents), default=1.0))
                whole.append(slow_map(plain[c], **options))
                given_parents = whole[c] / above
            else:
                given_parents = slow_map(own, **options)
                whole.append(given_parents * above)
            assert found[i, c].item() == pytest.approx(whole[c], abs=2e-7)
            if all(labels[i, q] for q in parents):
                total -= math.log(given_parents if labels[i, c] else 1 - min(given_parents, 1 - 1e-7))
    assert head.negative_log_likelihood(scores, Targets(labels, 15), 1.5).item() == pytest.approx(total, rel=1e-5)


def slow_shares(probabilities, gamma, detach):
    """Maps the probabilities of one softmax: proportional to 1 / G+."""
    pulls = []
    for p in probabilities:
        p = min(p, 1 - 1e-7)
        pull = (1 - p) ** gamma / p - (0 if detach else gamma * (1 - p) ** (gamma - 1) * math.log(p))
        pulls.append(1 / pull)
    return [pull / sum(pulls) for pull in pulls]


def slow_softmax(row, taxonomy, name, stop):
    """Returns, for each node, the unmapped probabilities of its family: {family: {child or "stop": p}}."""
    size = taxonomy.num_labels
    parent = {c: (taxonomy.parents(c).tolist() or [-1])[0] for c in range(size)}
    children = {v: [c for c in range(size) if parent[c] == v] for v in range(-1, size)}
    ranks = {v: i for i, v in enumerate(v for v in range(size) if children[v])}
    values = list(row)
    carry = {"conditional_softmax": (0, 0), "path_softmax": (1, 1), "lookahead_softmax": (1, 0.5)}[name]
    families = {}
    for v in [*reversed(range(size)), -1]:
        if children[v]:
            terms = {c: math.exp(values[c]) for c in children[v]}
            if stop is not None and v >= 0:
                terms["stop"] = math.exp(stop[ranks[v]])
            total = sum(terms.values())
            families[v] = {c: term / total for c, term in terms.items()}
            if v >= 0:
                values[v] += math.log(total) * carry[1 if parent[v] >= 0 else 0]
    return families, parent


@pytest.mark.parametrize("name", SOFTMAX_HEADS[1:])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(("gamma", "detach"), [(2.0, False), (2.0, True), (0.5, False)])
def test_focal_losses_and_probabilities_of_softmax_heads_match_a_slow_loop(name, partial, gamma, detach):
    rng = np.random.default_rng(3)
    torch.manual_seed(3)
    taxonomy = random_forest(rng, 25)
    head = make_asl(taxonomy, name, "single_path", partial, gamma_positive=gamma, detach=detach)
    scores = torch.randn(6, 25, dtype=torch.float64) * 2
    labels = random_multi_hot(rng, taxonomy, 6, single_path=True)
    found = head.log_probs(scores).exp()
    sums, counts, total = [0.0] * len(taxonomy.levels), [0] * len(taxonomy.levels), 0.0
    for i, row in enumerate(scores.tolist()):
        families, parent = slow_softmax(row, taxonomy, name, head.stop.tolist() if partial else None)
        mapped = {v: dict(zip(f, slow_shares(list(f.values()), gamma, detach))) for v, f in families.items()}
        nodes = []
        for c in range(25):
            nodes.append(mapped[parent[c]][c] * (nodes[parent[c]] if parent[c] >= 0 else 1.0))
        assert found[i].tolist() == pytest.approx(nodes, abs=1e-6)
        path = labels[i].nonzero()[:, 0].tolist()
        steps = [(parent[c], c) for c in path]
        if partial and not taxonomy.is_leaf[path[-1]]:
            steps.append((path[-1], "stop"))
        so_far = 0.0
        for k, (family, step) in enumerate(steps):
            loss = slow_loss(families[family][step], True, gamma_positive=gamma)
            so_far = loss + (so_far if name != "conditional_softmax" else 0.0)
            sums[k] += so_far
            counts[k] += 1
            total -= math.log(mapped[family][step])
    targets = Targets(labels, 25)
    assert head.losses(scores, targets).tolist() == pytest.approx([s / max(n, 1) for s, n in zip(sums, counts)])
    assert head.counts(targets).tolist() == counts
    assert head.negative_log_likelihood(scores, targets).item() == pytest.approx(total)


def test_focal_loss_of_one_softmax_per_level_matches_a_slow_loop():
    rng = np.random.default_rng(4)
    taxonomy = random_forest(rng, 20)
    head = make_asl(taxonomy, "independent", "single_path", gamma_positive=1.5)
    scores = torch.randn(5, 20, dtype=torch.float64) * 2
    labels = random_multi_hot(rng, taxonomy, 5, single_path=True)
    losses, found, total = [0.0] * len(taxonomy.levels), head.log_probs(scores).exp(), 0.0
    targets = Targets(labels, 20)
    for i, row in enumerate(scores.tolist()):
        for k, level in enumerate(taxonomy.levels):
            terms = [math.exp(value) for value in row[level]]
            probabilities = [term / sum(terms) for term in terms]
            mapped = slow_shares(probabilities, 1.5, False)
            assert found[i, level].tolist() == pytest.approx(mapped, abs=1e-6)
            for p, share, is_true in zip(probabilities, mapped, labels[i, level].tolist()):
                if is_true:
                    losses[k] += slow_loss(p, True, gamma_positive=1.5) / head.counts(targets)[k].item()
                    total -= math.log(share)
    assert head.losses(scores, targets).tolist() == pytest.approx(losses)
    assert head.negative_log_likelihood(scores, targets).item() == pytest.approx(total)


# ---- Properties ----


@pytest.mark.parametrize("mode", ["multi_path", "single_path"])
def test_without_gammas_and_margin_losses_and_probabilities_are_those_of_the_cross_entropy(mode):
    rng = np.random.default_rng(5)
    taxonomy = random_forest(rng, 20)
    scores = torch.randn(6, 20, dtype=torch.float64) * 3
    targets = Targets(random_multi_hot(rng, taxonomy, 6, single_path=mode == "single_path"), 20)
    for name in SIGMOID_HEADS if mode == "multi_path" else SOFTMAX_HEADS:
        zeros = {"gamma_positive": 0, "gamma_negative": 0}
        plain, asl = make_head(taxonomy, mode, head=name), make_asl(taxonomy, name, mode, **zeros)
        torch.testing.assert_close(asl.losses(scores, targets), plain.losses(scores, targets))
        assert torch.equal(asl.log_probs(scores), plain.log_probs(scores))


@pytest.mark.parametrize("shape", [(4, 1, 0.05), (2, 0, 0.0), (0.5, 0.5, 0.3), (0.0, 3.0, 0.1)])
@pytest.mark.parametrize("detach", [False, True])
def test_the_map_is_where_the_expected_gradient_is_zero_and_increases(shape, detach):
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    shape = Shape(*shape, detach)
    gradients = [
        torch.autograd.grad(asymmetric_losses(*logs(z), torch.tensor(y), shape).sum(), z)[0] for y in (True, False)
    ]
    expected = gradients[1] / (gradients[1] - gradients[0])
    found = torch.sigmoid(calibrated_logits(*logs(z), shape))
    torch.testing.assert_close(found, expected.clamp(min=1e-7 if shape.margin else 0), rtol=1e-6, atol=1e-9)
    assert (found.diff() >= 0).all()
    inside = (found > 2e-7) & (z.sigmoid() > shape.margin) & (z.sigmoid() < 0.99)
    assert (found[inside].diff() > 0).all()
    assert inside.sum() > 700


@pytest.mark.parametrize("excess", [1e-9, 1e-6, 9e-5, 1.1e-4])
def test_the_map_is_exact_just_above_the_margin(excess):
    p, shape = 0.3 + excess, {"gamma_negative": 0.1, "gamma_positive": 0.5, "margin": 0.3}
    z = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64)
    found = torch.sigmoid(calibrated_logits(*logs(z), Shape(0.1, 0.5, 0.3, False))).item()
    assert found == pytest.approx(slow_map(p, **shape), rel=1e-6)


def test_the_map_without_gammas_is_the_identity():
    z = torch.linspace(-30, 30, 601, dtype=torch.float64)
    torch.testing.assert_close(calibrated_logits(*logs(z), Shape(0, 0, 0.0, False)), z)
    # A gamma- per label: the identity where it is 0, the same as a number elsewhere.
    gamma = torch.tensor([0.0, 2.0], dtype=torch.float64)
    columns = z[:, None].expand(-1, 2)
    found = calibrated_logits(*logs(columns), Shape(gamma, 0, 0.0, False))
    torch.testing.assert_close(found[:, 0], z)
    torch.testing.assert_close(found[:, 1], calibrated_logits(*logs(z), Shape(2.0, 0, 0.0, False)))


def test_losses_fall_with_the_margin_and_do_not_depend_on_detach():
    z = torch.linspace(-6, 6, 200, dtype=torch.float64)
    for y in (True, False):
        losses = [asymmetric_losses(*logs(z), torch.tensor(y), Shape(2, 1, m, False)) for m in (0.0, 0.05, 0.2, 0.9)]
        for lower, higher in zip(losses[1:], losses):
            assert (lower <= higher + 1e-15).all()
        assert y or (losses[1] < losses[0]).all()
        for m in (0.0, 0.2):
            pair = [asymmetric_losses(*logs(z), torch.tensor(y), Shape(0.5, 0.5, m, d)) for d in (False, True)]
            assert torch.equal(*pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [*OPTIONS, {"gamma_negative": 0.3, "gamma_positive": 0.3}])
@pytest.mark.parametrize(("name", "pairs"), CASES)
def test_losses_and_gradients_are_finite_for_extreme_scores(dtype, options, name, pairs):
    taxonomy = random_dag(np.random.default_rng(0), 12)
    head = make_asl(taxonomy, name, pairs=pairs, **options).float()
    extreme = [60.0, -60.0, 0.0, 90.0, -90.0, 18.5, -18.5, 1e-3, -3.0, -3.5, 4.0, -20.0]
    scores = torch.tensor([extreme, extreme[::-1], extreme], dtype=dtype, requires_grad=True)
    labels = torch.zeros(3, 12)
    labels[0, taxonomy.complete([11])], labels[1, taxonomy.complete([9, 10])] = 1, 1
    losses = head.losses(scores, Targets(labels, 12))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert torch.isfinite(scores.grad).all()
    log_probs = head.log_probs(scores.detach().float())
    assert torch.isfinite(log_probs).all()
    assert (log_probs < 0).all()


def test_confident_errors_keep_their_gradient():
    """The release clamps logarithms at 1e-8, which kills the gradient of a positive below z = -18.4."""
    z = torch.tensor([-20.0, -60.0], requires_grad=True)
    asymmetric_losses(*logs(z), torch.tensor(True), Shape(4, 0, 0.05, False)).sum().backward()
    assert z.grad.tolist() == pytest.approx([-1, -1])


@pytest.mark.parametrize("options", [RELEASED, {"gamma_negative": 0.5, "gamma_positive": 2}, {"gap": -0.2}])
@pytest.mark.parametrize(("name", "pairs"), CASES[1:])
@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("spread", [0.1, 10.0, 300.0])
def test_no_child_is_more_probable_than_a_parent(options, name, pairs, make, spread):
    torch.manual_seed(0)
    taxonomy = make(np.random.default_rng(0), 300)
    head = make_asl(taxonomy, name, pairs=pairs, **options).float()
    if "gap" in options:  # levels with different gammas
        head.gamma_negative.copy_(torch.arange(head.num_tasks) % 3 * 2.0)
    log_probs = head.log_probs(torch.randn(4, 300) * spread)
    parents, children = torch.from_numpy(taxonomy.edges.copy()).T
    assert (log_probs[:, children] <= log_probs[:, parents]).all()
    assert log_probs.exp().std() > 1e-3 or spread < 1


@pytest.mark.parametrize("name", SOFTMAX_HEADS[1:])
def test_focal_leaf_probabilities_sum_to_one(name):
    taxonomy = random_forest(np.random.default_rng(0), 60)
    probabilities = make_asl(taxonomy, name, "single_path").log_probs(torch.randn(5, 60, dtype=torch.float64)).exp()
    leaves = probabilities[:, torch.from_numpy(taxonomy.is_leaf)].sum(1)
    torch.testing.assert_close(leaves, torch.ones(5, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_optimum_of_the_loss_is_mapped_to_the_frequency():
    """Trains one score per label to the optimum, with 3 positives in 10 documents."""
    from hcal_hf import Taxonomy

    taxonomy = Taxonomy.from_edges([], roots=["x"])
    for options in OPTIONS:
        head = make_asl(taxonomy, "conditional_sigmoid", **options)
        score = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        targets = Targets((torch.arange(10) < 3).float()[:, None], 1)
        optimizer = torch.optim.SGD([score], lr=1.0 if not options.get("detach") else 0.5)
        for _ in range(4000):
            optimizer.zero_grad()
            head.losses(score.expand(10, 1), targets).sum().backward()
            optimizer.step()
        assert head.log_probs(score.detach()[None]).exp().item() == pytest.approx(0.3, abs=1e-4), options


def test_sums_by_label_match_a_slow_loop():
    torch.manual_seed(0)
    p, y = torch.rand(5, 3, dtype=torch.float64), (torch.rand(5, 3) < 0.5).double()
    counted = (torch.rand(5, 3) < 0.7).double()
    found = sums_by_label(p.log(), y, counted)
    for c in range(3):
        cells = [(p[i, c].item(), y[i, c].item()) for i in range(5) if counted[i, c]]
        positive, negative = [q for q, t in cells if t], [1 - q for q, t in cells if not t]
        assert found[:, c].tolist() == pytest.approx([sum(positive), len(positive), sum(negative), len(negative)])


def test_log_shares_increase_for_every_gamma():
    log_p = torch.linspace(-20, -1e-6, 2000, dtype=torch.float64)
    for gamma in (0.0, 0.3, 1.0, 5.0):
        for detach in (False, True):
            assert (log_shares(log_p, gamma, detach).diff() > 0).all()
