"""Compares distances, the label loss and hyperbolic scores with slow loops and with the figures of the published method."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy
from hcal_hf import geometry as module
from hcal_hf import prototypes as prototypes_module
from hcal_hf.geometry import (
    LabelPenalty,
    exponential_map,
    label_losses,
    lorentz_distance,
    lorentz_distances,
    row_losses,
    sampled_label_losses,
)
from hcal_hf.label_order import CooccurrenceCounts, LabelOrder
from hcal_hf.path_search import PathSearch, best_of_all
from tests.builders import build_model, random_dag, random_forest, random_multi_hot, tiny_bert

POINTS = torch.tensor([[0.6, -0.8], [0.1, 0.2], [-0.3, 0.4], [0.0, 0.5]], dtype=torch.float64)
# The figures of the published method at these points, by pair.
DISTANCES = {
    (0, 1): 1.005136700, (0, 2): 1.362585, (0, 3): 1.305999, (1, 2): 0.433952, (1, 3): 0.301001, (2, 3): 0.314924757,
}  # fmt: skip
FLAT = Taxonomy.from_edges([], roots=["a", "b", "c", "d"])


def to_ball(point):
    """Maps a point of the hyperboloid to the Poincare ball, as the release does."""
    return [x / (1 + math.sqrt(1 + sum(y * y for y in point))) for x in point]


def ball_distance(u, v):
    """Computes the Poincare distance in the form of the release, by arcosh."""
    gap = sum((x - y) ** 2 for x, y in zip(u, v))
    return math.acosh(1 + 2 * gap / ((1 - sum(x * x for x in u)) * (1 - sum(y * y for y in v))))


def slow_distance(a, b, curvature=1.0):
    a, b = ([math.sqrt(curvature) * float(x) for x in point] for point in (a, b))
    return ball_distance(to_ball(a), to_ball(b)) / math.sqrt(curvature)


def slow_hops(taxonomy, start):
    """Walks from a node to all others, breadth first, over the edges and a node above the roots."""
    neighbours = {node: set() for node in range(-1, len(taxonomy))}
    roots = np.flatnonzero(taxonomy.depths == 0).tolist()
    for one, other in [*taxonomy.edges.tolist(), *((-1, root) for root in roots)]:
        neighbours[one].add(other)
        neighbours[other].add(one)
    steps, waiting = {start: 0}, [start]
    for node in waiting:
        for other in neighbours[node] - steps.keys():
            steps[other] = steps[node] + 1
            waiting.append(other)
    return [steps[node] for node in range(len(taxonomy))]


def slow_key(taxonomy, order, rows, t, c):
    """Returns what decides how close c is to t: larger is closer."""
    together = sum(1 for row in rows if t in row and c in row)
    hops = -slow_hops(taxonomy, t)[c]
    return {"hops": (hops,), "cooccurrence": (together,), "mixed": (hops, together)}[order]


def slow_penalty(vectors, taxonomy, order, rows, curvature=1.0):
    """Computes the label loss by its definition, label by label and pair by pair. Returns it and the labels t."""
    number = len(taxonomy)
    connected = [t for t in range(number) if any(t in row and len(row) > 1 for row in rows)]
    labels = connected if order == "cooccurrence" else list(range(number))
    total = vectors.sum() * 0
    for t in labels:
        keys = [slow_key(taxonomy, order, rows, t, c) for c in range(number)]
        losses = []
        for h in range(number):
            farther = [k for k in range(number) if keys[k] < keys[h]]
            if h == t or not farther:
                continue
            near = lorentz_distance(vectors[t], vectors[h], curvature)
            terms = [(-near).exp(), *((-lorentz_distance(vectors[t], vectors[k], curvature)).exp() for k in farther)]
            losses.append(-(terms[0] / sum(terms)).log())
        if losses:
            total = total + sum(losses) / len(losses)
    return total / max(len(labels), 1), labels


def label_rows(taxonomy, rng, documents=12):
    multi_hot = random_multi_hot(rng, taxonomy, documents, single_path=False)
    return [row.nonzero().flatten().tolist() for row in multi_hot]


def counts_of(rows, num_labels):
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    return CooccurrenceCounts(sizes, np.array([c for row in rows for c in row], dtype=np.int64), num_labels)


def make_penalty(taxonomy, order, rows, **kwargs):
    penalty = LabelPenalty(taxonomy, order, **kwargs)
    penalty.counts = counts_of(rows, len(taxonomy))
    return penalty


# ---- Distances ----


@pytest.mark.parametrize("pair", DISTANCES)
def test_both_forms_of_the_distance_have_the_published_values(pair):
    a, b = POINTS[list(pair)]
    assert lorentz_distance(a, b).item() == pytest.approx(DISTANCES[pair], abs=1e-6)
    assert lorentz_distances(POINTS, POINTS)[pair].item() == pytest.approx(DISTANCES[pair], abs=1e-6)
    assert ball_distance(to_ball(a.tolist()), to_ball(b.tolist())) == pytest.approx(DISTANCES[pair], abs=1e-6)


def test_the_gradients_in_the_ball_have_the_published_values():
    u = torch.tensor([0.3, 0.0], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([-0.2, 0.4], dtype=torch.float64, requires_grad=True)
    on_hyperboloid = [2 * x / (1 - x.square().sum()) for x in (u, v)]
    distance = lorentz_distance(*on_hyperboloid)
    assert distance.item() == pytest.approx(1.387026658, abs=1e-9)
    gradients = torch.autograd.grad(distance, [u, v])
    assert gradients[0].tolist() == pytest.approx([1.859744926, -1.171188846], abs=1e-8)
    assert gradients[1].tolist() == pytest.approx([-1.764103199, 1.771423129], abs=1e-8)
    for x, gradient in zip((u, v), gradients):
        assert ((1 - x.square().sum()) / 2 * gradient.norm()).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("curvature", [0.25, 1.0, 3.0])
def test_distances_and_gradients_equal_the_form_in_the_ball(curvature):
    torch.manual_seed(0)
    a, b = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    expected = torch.tensor(
        [[slow_distance(x, y, curvature) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64
    )
    for found in (lorentz_distances(a, b, curvature), lorentz_distance(a[:, None], b[None], curvature)):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    for function in (lorentz_distances, lambda x, y, c: lorentz_distance(x[:, None], y[None], c)):
        assert torch.autograd.gradcheck(lambda x, y, f=function: f(x, y, curvature), (a, b))


def test_float32_separates_points_that_are_very_close():
    a, b = torch.tensor([0.6, -0.8]), torch.tensor([0.6001, -0.8])
    truth = slow_distance(a.double(), b.double())
    assert truth == pytest.approx(9.05525e-5, rel=2e-3)
    assert lorentz_distance(a, b).item() == pytest.approx(truth, rel=1e-3)
    assert lorentz_distances(a[None], b[None]).item() == pytest.approx(truth, rel=1e-3)
    assert lorentz_distances(a[None], b[None]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1.0, 1e4])
def test_equal_points_have_distance_and_gradient_0(dtype, length):
    torch.manual_seed(0)
    points = (length * F.normalize(torch.randn(3, 4, dtype=dtype), dim=1)).requires_grad_()
    for distances in (lorentz_distance(points, points.clone()), lorentz_distances(points, points).diagonal()):
        (gradient,) = torch.autograd.grad(distances.sum(), points)
        assert (distances == 0).all()
        assert (gradient == 0).all()


def test_half_precision_is_compared_in_float32():
    points = POINTS.bfloat16()
    assert lorentz_distance(points[0], points[1]).dtype == lorentz_distances(points, points).dtype == torch.float32
    assert exponential_map(points).dtype == torch.float32


@pytest.mark.parametrize("curvature", [0.5, 1.0, 2.0])
def test_the_exponential_map_keeps_direction_and_distance_from_the_origin(curvature):
    torch.manual_seed(0)
    tangents = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    points = exponential_map(tangents, curvature)
    origin = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(lorentz_distance(points, origin, curvature), tangents.norm(dim=1))
    torch.testing.assert_close(F.normalize(points, dim=1), F.normalize(tangents, dim=1))
    assert torch.autograd.gradcheck(lambda x: exponential_map(x, curvature), (tangents,))


def test_the_exponential_map_is_finite_for_zero_and_for_long_vectors():
    tangents = torch.tensor([[0.0, 0.0], [1e15, 0.0], [3.0, 4.0]], requires_grad=True)
    points = exponential_map(tangents)
    assert points[0].tolist() == [0.0, 0.0]
    assert lorentz_distance(points[1], points[0]).item() == pytest.approx(module.LARGEST_RADIUS, rel=1e-5)
    points[[0, 2]].sum().backward()
    assert torch.isfinite(tangents.grad).all()
    assert tangents.grad[0].tolist() == [1.0, 1.0]


# ---- The label loss ----


def test_the_losses_of_single_rows_have_the_published_values():
    distances = lorentz_distances(POINTS, POINTS)
    rows = row_losses(distances[[0, 1], [1, 3]], torch.stack([distances[0, [2, 3]], distances[1, [0, 2]]]))
    assert rows.tolist() == pytest.approx([0.891849689, 0.862908676], abs=1e-8)
    assert rows.mean().item() == pytest.approx(0.877379183, abs=1e-8)
    released = row_losses(distances[0, 1], distances[0, [1, 2, 3]])
    assert released.item() == pytest.approx(1.235366249, abs=1e-8)


def test_scores_and_the_joint_loss_have_the_published_values():
    config = HcalConfig.from_taxonomy(
        FLAT, tiny_bert(hidden_size=2), label_mode="multi_path", head="independent", score_function="linear",
        prototype_temperature=1, perturbation=0, geometry="hyperbolic_penalty", geometry_order="cooccurrence",
        geometry_released=True,
    )  # fmt: skip
    model = HcalForSequenceClassification(config).double().eval()
    with torch.no_grad():
        model.projection.weight.copy_(torch.eye(2))
        model.prototypes.weight.copy_(POINTS)
    x = torch.tensor([[1.0, -0.5], [0.2, 2.0]], dtype=torch.float64)
    y = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1]], dtype=torch.float64)
    output = model(pooled_states=x, labels=y)
    torch.testing.assert_close(
        output.logits, torch.tensor([[1, 0, -0.5, -0.25], [-1.48, 0.42, 0.74, 1]]).double(), atol=1e-6, rtol=0
    )
    assert output.task_losses[0].item() == pytest.approx(0.557488228, abs=1e-8)
    distances = lorentz_distances(POINTS, POINTS)
    rows = row_losses(distances[[0, 1], [1, 3]], torch.stack([distances[0, [2, 3]], distances[1, [0, 2]]]))
    joint = model.weigh_contrast(torch.ones(1).double(), torch.tensor([True, True])).tolist()
    assert joint[0] * output.task_losses[0].item() + joint[1] * rows.mean().item() == pytest.approx(
        0.645226146, abs=1e-8
    )


def test_the_farther_labels_of_the_release_and_ours_have_the_published_values():
    counts = counts_of([[0, 2], [0, 2], [0, 3], [1]], 4)
    ranks = LabelOrder(FLAT, "cooccurrence").ranks(torch.tensor([0]), counts)[0].tolist()
    released = {h: {k for k in range(4) if ranks[k] <= ranks[h]} for h in (1, 2, 3)}
    strict = {h: {k for k in range(4) if ranks[k] < ranks[h]} for h in (1, 2, 3)}
    assert released == {1: {1}, 2: {1, 2, 3}, 3: {1, 3}}
    assert strict == {1: set(), 2: {1, 3}, 3: {1}}


TAXONOMIES = [
    *(random_forest(np.random.default_rng(seed), 14) for seed in (0, 1)),
    *(random_dag(np.random.default_rng(seed), 12) for seed in (0, 1, 2)),
    Taxonomy.from_edges([("a", "x"), ("b", "x"), ("b", "y"), ("x", "z"), ("c", "z")]),
    FLAT,
]
BY_TAXONOMY = pytest.mark.parametrize("taxonomy", TAXONOMIES, ids=lambda t: f"{len(t)}-{len(t.edges)}")


@BY_TAXONOMY
def test_hops_equal_a_breadth_first_search(taxonomy):
    found = LabelOrder(taxonomy, "hops").hops(torch.arange(len(taxonomy)))
    assert found.tolist() == [slow_hops(taxonomy, node) for node in range(len(taxonomy))]


@pytest.mark.parametrize("pairs", [1, 7, 10**6])
def test_cooccurrence_counts_equal_a_loop_over_documents(monkeypatch, pairs):
    monkeypatch.setattr("hcal_hf.label_order._PAIRS", pairs)  # counted in many chunks, or in one
    rows = [*label_rows(TAXONOMIES[0], np.random.default_rng(5), 30), [], []]
    number = len(TAXONOMIES[0])
    expected = [[sum(1 for row in rows if t in row and c in row) for c in range(number)] for t in range(number)]
    counts = counts_of(rows, number)
    assert counts(torch.arange(number)).tolist() == expected
    assert counts(torch.tensor([3, 1])).tolist() == [expected[3], expected[1]]
    connected = [t for t in range(number) if any(expected[t][c] for c in range(number) if c != t)]
    assert counts.connected.tolist() == connected
    assert counts_of([], number)(torch.tensor([2])).tolist() == [[0] * number]


@BY_TAXONOMY
@pytest.mark.parametrize("order", ["hops", "cooccurrence", "mixed"])
def test_ranks_order_labels_as_a_loop_does(taxonomy, order):
    rows = label_rows(taxonomy, np.random.default_rng(1))
    ranks = LabelOrder(taxonomy, order).ranks(torch.arange(len(taxonomy)), counts_of(rows, len(taxonomy)))
    assert ranks.min() >= 0
    for t in range(len(taxonomy)):
        keys = [slow_key(taxonomy, order, rows, t, c) for c in range(len(taxonomy))]
        for h, k in itertools.product(range(len(taxonomy)), repeat=2):
            assert (ranks[t, k] < ranks[t, h]) == (keys[k] < keys[h]), (t, h, k)


@BY_TAXONOMY
@pytest.mark.parametrize("order", ["hops", "cooccurrence", "mixed"])
@pytest.mark.parametrize("pairs", [1, 40, 2**20])
def test_the_label_loss_and_its_gradient_equal_a_slow_loop(monkeypatch, taxonomy, order, pairs):
    monkeypatch.setattr(module, "PAIRS", pairs)  # one label per chunk, some, or all
    torch.manual_seed(0)
    rows = label_rows(taxonomy, np.random.default_rng(2))
    vectors = (0.7 * torch.randn(len(taxonomy), 3, dtype=torch.float64)).requires_grad_()
    loss, number = make_penalty(taxonomy, order, rows, curvature=1.5)(vectors)
    expected, labels = slow_penalty(vectors, taxonomy, order, rows, curvature=1.5)
    assert number == len(labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(3 * value, vectors)[0] for value in (loss, expected)))


def test_ties_are_no_farther_labels():
    """t = 0 has one label at one hop, and three equal labels at two hops, which are no negatives of each other."""
    distances = torch.tensor([[0.0, 1.0, 0.5, 2.0, 3.0]], dtype=torch.float64)
    ranks = torch.tensor([[2, 1, 0, 0, 0]])
    expected = -math.log(math.exp(-1) / (math.exp(-1) + math.exp(-0.5) + math.exp(-2) + math.exp(-3)))
    assert label_losses(distances, ranks, torch.tensor([0])).item() == pytest.approx(expected)
    assert label_losses(distances, torch.zeros_like(ranks), torch.tensor([0])).item() == 0


@pytest.mark.parametrize("number", [1, 2])
def test_hierarchies_without_farther_labels_have_no_label_loss(number):
    taxonomy = Taxonomy.from_edges([], roots=["a", "b"][:number])
    vectors = torch.randn(number, 3, requires_grad=True)
    loss, _ = LabelPenalty(taxonomy, "hops")(vectors)
    loss.backward()
    assert loss.item() == 0
    assert (vectors.grad == 0).all()


def test_labels_that_never_occur_together_have_no_label_loss():
    penalty = make_penalty(FLAT, "cooccurrence", [[0], [1], [2]])
    vectors = torch.randn(4, 3, requires_grad=True)
    loss, number = penalty(vectors)
    loss.backward()
    assert (loss.item(), number) == (0, 0)


def test_the_label_loss_is_finite_at_equal_and_at_distant_prototypes():
    for scale in (0.0, 1.0, 1e6, 1e15):
        vectors = (scale * torch.randn(len(TAXONOMIES[0]), 3)).requires_grad_()
        loss, _ = LabelPenalty(TAXONOMIES[0], "hops")(vectors)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(vectors.grad).all()


def test_sampled_labels_give_the_exact_loss_on_average():
    """With one label per step, every label is drawn equally often, and its loss is its part of the mean."""
    taxonomy = TAXONOMIES[0]
    vectors = torch.randn(len(taxonomy), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, number = LabelPenalty(taxonomy, "hops")(vectors, seed=0)
    assert number == len(taxonomy)
    penalty = LabelPenalty(taxonomy, "hops", num_rows=1)
    by_label, drawn = {}, []
    for seed in range(1000):
        (label,) = penalty.draw_labels(torch.Generator().manual_seed(seed)).tolist()
        drawn.append(label)
        if label not in by_label:
            by_label[label] = penalty(vectors, seed=seed)[0].item()
    assert sum(by_label.values()) / len(taxonomy) == pytest.approx(exact.item())
    frequencies = np.bincount(drawn, minlength=len(taxonomy))
    assert abs(frequencies - 1000 / len(taxonomy)).max() < 4 * math.sqrt(1000 / len(taxonomy))


def test_the_seed_decides_which_labels_are_compared(monkeypatch):
    monkeypatch.setattr(module, "MOST_LABELS", 10)
    monkeypatch.setattr(module, "SAMPLED_LABELS", 5)
    penalty = LabelPenalty(TAXONOMIES[0], "hops")
    draws = [penalty.draw_labels(torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 3
    assert all(len(set(draw)) == 5 for draw in draws)
    assert len(LabelPenalty(FLAT, "hops").draw_labels(torch.Generator())) == 4


def test_the_released_loss_draws_from_labels_that_are_at_most_as_close():
    distances = lorentz_distances(POINTS, POINTS)[:1]
    ranks = LabelOrder(FLAT, "cooccurrence").ranks(torch.tensor([0]), counts_of([[0, 2], [0, 2], [0, 3], [1]], 4))
    sets = {0: [0, 1, 2, 3], 1: [1], 2: [1, 2, 3], 3: [1, 3]}
    possible = []
    for h, ks in sets.items():
        draws = itertools.combinations_with_replacement(ks, module.RELEASED_NEGATIVES)
        possible.append([row_losses(distances[0, h], distances[0, list(draw)]).item() for draw in draws])
    lowest, highest = (sum(f(values) for values in possible) / 4 for f in (min, max))
    generator = torch.Generator().manual_seed(0)
    found = [sampled_label_losses(distances, ranks, generator).item() for _ in range(200)]
    assert lowest - 1e-9 <= min(found) < max(found) <= highest + 1e-9
    expected = 0.0
    for h, ks in sets.items():
        draws = list(itertools.product(ks, repeat=module.RELEASED_NEGATIVES))
        expected += (
            sum(row_losses(distances[0, h], distances[0, list(draw)]).item() for draw in draws) / len(draws) / 4
        )
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / math.sqrt(200))


def test_an_order_by_cooccurrence_needs_counts():
    for order in ("cooccurrence", "mixed"):
        with pytest.raises(ValueError, match=f'geometry_order="{order}" needs the co-occurrence'):
            LabelPenalty(FLAT, order)(torch.randn(4, 2))


# ---- Scores ----


def hyperbolic_model(taxonomy, seed=0, **config):
    """Returns a hyperbolic model in float64 with random parameters and anchors."""
    fields = {"geometry": "hyperbolic", "score_function": "linear", "geometry_curvature": 0.7, **config}
    model = build_model(taxonomy, seed=seed, dtype=torch.float64, **fields)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (model.prototypes, model.head):
            for parameter in part.parameters():
                parameter += 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if model.prototypes.is_anchored:
            model.prototypes.anchors.copy_(torch.randn(model.prototypes.anchors.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("chunk", [10, 2**20])
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_hyperbolic_scores_and_their_gradients_equal_a_slow_loop(monkeypatch, taxonomy, noisy, anchored, chunk):
    monkeypatch.setattr(prototypes_module, "CHUNK", chunk)
    model = hyperbolic_model(taxonomy, perturbation=0.3, prototype_anchor="label_text" if anchored else None)
    prototypes, projection = model.prototypes, model.projection
    noise = prototypes.sample_noise(1) if noisy else None
    features = F.normalize(torch.randn(5, 8, dtype=torch.float64), dim=1).requires_grad_()
    c = 0.7
    columns = []
    for i in range(len(taxonomy)):
        row = prototypes.weight[i]
        if anchored:
            anchor = projection(prototypes.anchors[i])
            row = row + anchor / anchor.norm() * prototypes.anchor_scale[taxonomy.depths[i]]
        if noisy:
            turned = row / row.norm() + noise[i]
            row = row.norm() * turned / turned.norm()
        column = []
        for f in features:
            tangent = prototypes.radius * f
            length = math.sqrt(c) * tangent.norm()
            point = torch.sinh(length) / length * tangent
            inner = (1 + c * point @ point).sqrt() * (1 + c * row @ row).sqrt() - c * point @ row
            column.append((prototypes.bias[i] - torch.acosh(inner) / math.sqrt(c)) / model.head.temperature)
        columns.append(torch.stack(column))
    expected = torch.stack(columns, dim=1)
    found = model.head.scores(prototypes.products(features, projection, noise))
    torch.testing.assert_close(found, expected)
    learned = [features, *prototypes.parameters(), *(projection.parameters() if anchored else [])]
    factors = torch.randn(found.shape, dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad((way * factors).sum(), learned) for way in (found, expected))):
        torch.testing.assert_close(ours, theirs)


def test_the_first_scores_of_a_hyperbolic_model_are_about_0(taxonomy):
    for mode in ("single_path", "multi_path"):
        model = build_model(taxonomy, geometry="hyperbolic", score_function="linear", label_mode=mode)
        features = F.normalize(torch.randn(5, 8), dim=1)
        assert model.head.scores(model.prototypes.products(features, model.projection)).abs().max() < 1


HEADS = [
    *(("single_path", head) for head in ("independent", "path_softmax", "conditional_softmax", "lookahead_softmax")),
    *(("multi_path", head) for head in ("independent", "conditional_sigmoid", "lookahead_sigmoid")),
]


@pytest.mark.parametrize("anchor", [None, "label_text"])
@pytest.mark.parametrize("geometry", ["hyperbolic_penalty", "hyperbolic"])
@pytest.mark.parametrize(("mode", "head"), HEADS)
def test_every_head_trains_with_every_geometry(ragged, mode, head, geometry, anchor):
    model = build_model(
        ragged, label_mode=mode, head=head, geometry=geometry, score_function="linear", partial_paths=True,
        prototype_anchor=anchor, geometry_weight=1,
    ).train()  # fmt: skip
    if anchor:
        model.prototypes.anchors.normal_()
    assert model.task_names[-1] == "label_penalty"
    states = torch.randn(6, 16)
    labels = random_multi_hot(np.random.default_rng(0), ragged, 6, single_path=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        output = model(pooled_states=states, labels=labels, penalty_seed=0)
        optimizer.zero_grad()
        output.loss.backward()
        parts = [
            *model.prototypes.named_parameters(),
            *model.projection.named_parameters(),
            *model.head.named_parameters(),
        ]
        for name, parameter in parts:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        optimizer.step()
        losses.append((output.loss.item(), output.task_losses[-1].item()))
    assert losses[-1][0] < 0.8 * losses[0][0]
    assert losses[-1][1] < losses[0][1]


def test_the_label_loss_has_a_fixed_weight_and_is_left_out_in_evaluation(taxonomy):
    config = {"geometry": "hyperbolic_penalty", "score_function": "linear", "contrast": "aggregate", "perturbation": 0}
    model = build_model(taxonomy, geometry_weight=0.3, **config)
    names = [*(f"level_{k}" for k in range(3)), *(f"contrast_{k}" for k in range(3)), "label_penalty"]
    assert model.task_names == names
    assert model.document_tasks == [True] * 3 + [False] * 4
    labels = random_multi_hot(np.random.default_rng(0), taxonomy, 6, single_path=True)
    states = torch.randn(6, 16)
    trained = model.train()(pooled_states=states, labels=labels)
    evaluated = model.eval()(pooled_states=states, labels=labels)
    assert trained.task_counts[-1] == len(taxonomy)
    assert (evaluated.task_counts[-1], evaluated.task_losses[-1]) == (0, 0)
    torch.testing.assert_close(trained.loss, evaluated.loss + 0.3 * trained.task_losses[-1])
    assert model.count_tasks(labels)[-1] == 0
    weights = model.weigh_contrast(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([True] * 7))
    assert weights.tolist() == pytest.approx([0.2, 0.5, 0.3, 0.1, 0.25, 0.15, 0.3])
    plain = build_model(taxonomy, geometry_weight=0, **config)
    assert plain.task_names == names[:-1]
    assert plain.label_penalty is None


def test_the_label_loss_moves_labels_with_few_hops_together(taxonomy):
    model = build_model(taxonomy, geometry="hyperbolic_penalty", score_function="linear").train()
    optimizer = torch.optim.Adam(model.prototypes.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        model.label_penalty(model.prototypes.vectors(model.projection))[0].backward()
        optimizer.step()
    hops = LabelOrder(taxonomy, "hops").hops(torch.arange(len(taxonomy)))
    distances = lorentz_distances(model.prototypes.weight, model.prototypes.weight)
    means = [distances[hops == h].mean().item() for h in range(1, int(hops.max()) + 1)]
    assert means == sorted(means)


def released_model(taxonomy, **config):
    fields = {
        "label_mode": "multi_path", "head": "independent", "score_function": "linear", "prototype_temperature": 1,
        "perturbation": 0, "geometry": "hyperbolic_penalty", "geometry_order": "cooccurrence",
    }  # fmt: skip
    return build_model(taxonomy, **{**fields, "geometry_released": True, **config})


def test_the_released_setting_has_its_initial_values_limits_and_dropout(taxonomy):
    model = released_model(taxonomy).train()
    model.label_penalty.counts = counts_of(label_rows(taxonomy, np.random.default_rng(0)), len(taxonomy))
    assert 0 < model.prototypes.weight.abs().max() <= 1e-4
    assert model.prototypes.bias is None
    with torch.no_grad():
        model.prototypes.weight.copy_(3 * torch.randn(len(taxonomy), 8))
        model.prototypes.weight[0] = 0.01
    states, labels = torch.randn(6, 16), random_multi_hot(np.random.default_rng(0), taxonomy, 6, single_path=False)
    output = model(pooled_states=states, labels=labels, penalty_seed=4)
    lengths = model.prototypes.weight.norm(dim=1)
    torch.testing.assert_close(lengths[1:], torch.ones(len(taxonomy) - 1))
    assert lengths[0].item() == pytest.approx(0.01 * math.sqrt(8))
    torch.testing.assert_close(output.features, model.projection(states))
    again = [model(pooled_states=states, labels=labels, penalty_seed=4).task_losses for _ in range(2)]
    assert not torch.equal(again[0][:-1], again[1][:-1])  # dropout on the scores
    assert torch.equal(again[0][-1], again[1][-1])  # the seed decides about the label loss
    assert model(pooled_states=states, labels=labels, penalty_seed=5).task_losses[-1] != again[0][-1]
    model.eval()
    scores = model.projection(states) @ model.prototypes.weight.T
    torch.testing.assert_close(model(pooled_states=states).logits, scores, atol=1e-5, rtol=0)


# ---- Refusals ----


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"geometry": "hyperbolic"}, r"geometry='hyperbolic' does not fit score_function='cosine'.*\"linear\""),
        ({"geometry": "hyperbolic_penalty"}, "geometry='hyperbolic_penalty' does not fit score_function='cosine'"),
        ({"geometry": "hyperbolic", "score_function": "linear", "objective": "aggregate"}, "objective='aggregate'"),
        ({"geometry": "hyperbolic", "score_function": "linear", "contrast": "aggregate"}, "contrast='aggregate'"),
        ({"geometry_released": True}, "geometry_released=True does not fit geometry='euclidean'"),
        (
            {"geometry": "hyperbolic", "score_function": "linear", "geometry_released": True},
            "geometry_released=True does not fit geometry='hyperbolic'",
        ),
        ({"geometry_weight": -0.1}, "geometry_weight must be a finite number of at least 0, got -0.1"),
        ({"geometry_curvature": 0.0}, "geometry_curvature must be a finite number above 0"),
        ({"geometry_rows": 0}, "geometry_rows must be at least 1"),
        ({"geometry": "spherical"}, "geometry"),
        ({"geometry_order": "alphabet"}, "geometry_order"),
    ],
)
def test_fields_that_do_not_fit_a_geometry_are_named(taxonomy, config, message):
    with pytest.raises(ValueError, match=message):
        build_model(taxonomy, **config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"label_mode": "single_path"},
        {"head": "lookahead_sigmoid"},
        {"prototype_temperature": 0.1},
        {"perturbation": 0.01},
        {"prototype_anchor": "label_text"},
        {"geometry_order": "hops"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_fields_that_do_not_fit_the_release_are_named(taxonomy, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"geometry_released=True does not fit {name}={value!r}.*head='independent'"):
        released_model(taxonomy, **wrong)


def test_zero_shot_models_have_no_distances_as_scores(encoder_dir, taxonomy):
    with pytest.raises(ValueError, match='geometry="hyperbolic"'):
        HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy, geometry="hyperbolic")
    model = HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy, geometry="hyperbolic_penalty")
    assert model.task_names[-1] == "label_penalty"


# ---- Saving, adding labels, searching ----


@pytest.mark.parametrize("geometry", ["hyperbolic_penalty", "hyperbolic"])
@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_a_loaded_model_is_the_same(tmp_path, ragged, geometry, mode):
    config = {"geometry": geometry, "label_mode": mode, "partial_paths": True, "prototype_anchor": "label_text"}
    model = hyperbolic_model(ragged, **config, geometry_order="mixed", geometry_weight=0.2, geometry_rows=3).float()
    model.save_pretrained(tmp_path)
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    states = torch.randn(5, 16)
    torch.testing.assert_close(loaded(pooled_states=states).logits, model(pooled_states=states).logits)
    saved = model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert loaded.config.geometry_curvature == 0.7
    assert (loaded.label_penalty.order.order, loaded.label_penalty.num_rows) == ("mixed", 3)


@pytest.mark.parametrize("geometry", ["hyperbolic_penalty", "hyperbolic"])
@pytest.mark.parametrize("head", ["conditional_softmax", "conditional_sigmoid", "independent"])
def test_added_labels_keep_the_scores_of_old_ones(encoder_dir, tokenizer, taxonomy, geometry, head):
    torch.manual_seed(0)
    model = HcalForSequenceClassification.from_encoder(
        encoder_dir, taxonomy, geometry=geometry, score_function="linear", head=head, prototype_anchor="label_text",
        label_mode="multi_path" if head != "conditional_softmax" else "single_path",
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.prototypes.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    old, states = list(model.config.labels), torch.randn(5, 16)

    def scores():
        features = model.eval()(pooled_states=states).features
        return model.head.scores(model.prototypes.products(features, model.projection))

    before = scores()
    added = model.add_labels([["arts", "stage", "drama"]], tokenizer)
    after = scores()
    position = [model.config.labels.index(label) for label in old]
    torch.testing.assert_close(after[:, position], before)
    assert torch.isfinite(after[:, model.config.labels.index(added[0])]).all()
    assert len(model.label_penalty.order.taxonomy) == len(old) + 1
    labels = random_multi_hot(np.random.default_rng(0), model.taxonomy, 5, single_path=True)
    labels[:] = labels[:1]
    assert torch.isfinite(model.train()(pooled_states=states, labels=labels).loss)


@pytest.mark.parametrize("geometry", ["hyperbolic_penalty", "hyperbolic"])
@pytest.mark.parametrize("head", ["conditional_softmax", "conditional_sigmoid"])
@pytest.mark.parametrize("anchor", [None, "label_text"])
def test_path_search_equals_the_scores_of_all_labels(geometry, head, anchor):
    taxonomy = random_forest(np.random.default_rng(3), 120)
    mode = "single_path" if head == "conditional_softmax" else "multi_path"
    model = hyperbolic_model(
        taxonomy, geometry=geometry, head=head, label_mode=mode, partial_paths=True, prototype_anchor=anchor,
        score_temperature=1.3,
    )  # fmt: skip
    with torch.no_grad():
        output = model(pooled_states=torch.randn(9, 16, dtype=torch.float64))
    expected = best_of_all(output.logits, model, 4)
    found = PathSearch(model, width=200)(output.features, 4)
    assert found.exact.all()
    assert torch.equal(found.nodes, expected.nodes)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=1e-5)


def test_memory_of_the_label_loss_is_far_below_a_matrix_of_labels():
    """A step on 20,000 labels holds chunks of 2^20 pairs, not the 4 * 10^8 pairs of all labels."""
    from tests.builders import import_benchmarks

    taxonomy = random_forest(np.random.default_rng(0), 20_000, max_depth=8)
    penalty = LabelPenalty(taxonomy, "hops", num_rows=200)
    vectors = torch.randn(20_000, 16, requires_grad=True)

    def step():
        penalty(vectors, seed=0)[0].backward()

    step()
    assert import_benchmarks("timing").timing.peak_bytes(step) < 4e8
