"""Compares temperature scaling and calibration metrics with slow loops written from their definitions."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from hcal_hf import HcalConfig, HcalTrainer, HcalTrainingArguments, Taxonomy, encode_dataset, fit_temperature
from hcal_hf.log_space import log_probs_to_logits
from hcal_hf.metrics import brier_score, calibration_scores, expected_calibration_error
from hcal_hf.training.calibration import calibration_metrics, document_scores, negative_log_likelihood, tempered_logits
from tests.builders import random_dag, random_forest, random_multi_hot
from tests.test_heads import looked_ahead, make_head, slow_single_path

HEADS = [
    ("single_path", "independent", False),
    ("single_path", "independent", True),
    ("single_path", "path_softmax", False),
    ("single_path", "path_softmax", True),
    ("single_path", "conditional_softmax", False),
    ("single_path", "conditional_softmax", True),
    ("single_path", "lookahead_softmax", False),
    ("single_path", "lookahead_softmax", True),
    ("multi_path", "independent", True),
    ("multi_path", "conditional_sigmoid", True),
    ("multi_path", "lookahead_sigmoid", True),
]


def draw(mode, name, partial, seed, documents=30, labels=14, make=random_forest):
    """Returns (taxonomy, head, scores, targets). The scores are noisy but higher for true labels."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    taxonomy = make(rng, labels)
    head = make_head(taxonomy, mode, head=name, partial_paths=partial)
    targets = random_multi_hot(rng, taxonomy, documents, mode == "single_path")
    if not partial:
        for row in targets:  # extend the path to a leaf
            while not taxonomy.is_leaf[node := int(row.nonzero().max())]:
                row[taxonomy.edges[taxonomy.edges[:, 0] == node][0, 1]] = 1
    scores = 2.0 * targets.double() + torch.randn(documents, labels, dtype=torch.float64) * 2
    return taxonomy, head, scores, targets.numpy() > 0


def slow_ends(row, taxonomy, name, stop):
    """Computes log P of each end node for one document."""
    if name != "lookahead_softmax":
        return slow_single_path(row, taxonomy, name, stop)[1]
    children = {node: [] for node in range(len(row))}
    for parent, child in taxonomy.edges.tolist():
        children[parent].append(child)
    stops = {} if stop is None else dict(zip([node for node in children if children[node]], stop))

    def value(node):
        return row[node] + (1.0 if taxonomy.depths[node] == 0 else 0.5) * below(node)

    def below(node):
        values = [*map(value, children[node]), *([stops[node]] if node in stops else [])]
        return math.log(sum(map(math.exp, values))) if values else 0.0

    roots = math.log(sum(math.exp(value(node)) for node in range(len(row)) if taxonomy.depths[node] == 0))
    ends = {}
    for node in children:
        if not children[node] or node in stops:
            path = taxonomy.complete([node]).tolist()
            ends[node] = sum(map(value, path)) - roots - sum(map(below, path[:-1]))
            ends[node] += stops[node] - below(node) if children[node] else 0.0
    return ends


def slow_nll(head, scores, true, taxonomy, mode, name, stop, temperature):
    """Computes -log P of the labels of one document."""
    row = [score / temperature for score in scores.tolist()]
    if mode == "multi_path":
        row, total = looked_ahead(row, taxonomy) if name == "lookahead_sigmoid" else row, 0.0
        for node in range(len(row)):
            parents = taxonomy.parents(node).tolist()
            if name == "independent" or all(true[parent] for parent in parents):
                p = 1 / (1 + math.exp(-row[node]))
                total -= math.log(p if true[node] else 1 - p)
        return total
    path = np.flatnonzero(true).tolist()
    if name == "independent":
        levels = [taxonomy.levels[k] for k in range(len(path))]
        return sum(
            math.log(sum(math.exp(row[c]) for c in range(level.start, level.stop))) - row[node]
            for node, level in zip(path, levels)
        )
    stop = None if stop is None else [score / temperature for score in stop]
    return -slow_ends(row, taxonomy, name, stop)[path[-1]]


# ---- Heads with a temperature ----


@pytest.mark.parametrize(("mode", "name", "partial"), HEADS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_negative_log_likelihood_matches_a_slow_reference(mode, name, partial, temperature):
    for seed, make in enumerate(
        [random_forest, random_forest, random_forest if mode == "single_path" else random_dag]
    ):
        taxonomy, head, scores, targets = draw(mode, name, partial, seed, make=make)
        stop = head.stop.tolist() if getattr(head, "stop", None) is not None else None
        slow = [
            slow_nll(head, row, true, taxonomy, mode, name, stop, temperature) for row, true in zip(scores, targets)
        ]
        assert negative_log_likelihood(head, scores, targets, temperature) == pytest.approx(np.mean(slow))
        assert negative_log_likelihood(head, scores, torch.from_numpy(targets), temperature) == pytest.approx(
            np.mean(slow)
        )


@pytest.mark.parametrize(("mode", "name", "partial"), HEADS)
def test_a_temperature_equals_dividing_the_parameters_of_the_head(mode, name, partial):
    """A temperature gives the same logits as dividing all scores and score parameters of the head by it."""
    _, head, scores, _ = draw(mode, name, partial, 0)
    _, divided, _, _ = draw(mode, name, partial, 0)
    with torch.no_grad():
        for parameter in divided.parameters():
            parameter /= 2.5
    cosines = torch.rand_like(scores) * 2 - 1
    softmax = mode == "single_path"
    expected = divided.log_probs(divided.scores(cosines / 2.5 if softmax else cosines))
    torch.testing.assert_close(head.log_probs(head.scores(cosines), 2.5), expected)
    assert not torch.allclose(head.log_probs(head.scores(cosines)), expected, atol=1e-3)
    logits = tempered_logits(head, head.scores(cosines), 2.5)
    torch.testing.assert_close(logits, log_probs_to_logits(expected))


@pytest.mark.parametrize(("mode", "name", "partial"), [case for case in HEADS if case[1] != "independent"])
@pytest.mark.parametrize("temperature", [0.02, 0.5, 3.0, 80.0])
def test_children_stay_at_most_as_probable_as_parents_at_any_temperature(mode, name, partial, temperature):
    taxonomy, head, scores, _ = draw(mode, name, partial, 4, labels=200)
    p = torch.sigmoid(tempered_logits(head, scores.float(), temperature))
    parents, children = torch.from_numpy(taxonomy.edges.copy()).T
    assert (p[:, children] <= p[:, parents] + 1e-6).all()


# ---- The fit ----


@pytest.mark.parametrize(("mode", "name", "partial"), HEADS)
@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_the_fitted_temperature_is_the_best_of_a_fine_grid(mode, name, partial, scale):
    _, head, scores, targets = draw(mode, name, partial, 1)
    scores = scores * scale
    found = fit_temperature(head, scores, targets)
    least = negative_log_likelihood(head, scores, targets, found)
    grid = np.exp(np.linspace(math.log(0.01), math.log(100), 400))
    losses = [negative_log_likelihood(head, scores, targets, t) for t in grid]
    assert least <= min(losses) + 1e-9
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.03)
    # The loss has one minimum: it falls before it and rises after it.
    best = int(np.argmin(losses))
    assert (np.diff(losses[: best + 1]) < 0).all()
    assert (np.diff(losses[best:]) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("truth", [0.4, 3.0])
def test_the_fit_recovers_the_temperature_that_generated_the_labels(truth):
    taxonomy = random_forest(np.random.default_rng(0), 12)
    torch.manual_seed(0)
    head = make_head(taxonomy, "single_path", head="path_softmax", partial_paths=True)
    scores = torch.randn(6000, 12, dtype=torch.float64) * 3
    targets = np.zeros((6000, 12), dtype=bool)
    stop = head.stop.tolist()
    rng = np.random.default_rng(1)
    for row, true in zip(scores.tolist(), targets):
        _, ends = slow_single_path([s / truth for s in row], taxonomy, "path_softmax", [s / truth for s in stop])
        nodes, logs = zip(*ends.items())
        end = rng.choice(nodes, p=np.exp(logs) / np.exp(logs).sum())
        true[taxonomy.complete([end])] = True
    assert fit_temperature(head, scores, targets) == pytest.approx(truth, rel=0.05)


def test_the_temperature_stays_1_with_a_warning_if_documents_do_not_determine_it(caplog):
    taxonomy = Taxonomy.from_edges([], roots=["a", "b"])
    head = make_head(taxonomy, "single_path", head="path_softmax")
    scores = torch.tensor([[9.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    right = np.eye(2, dtype=bool)
    assert fit_temperature(head, scores, right) == 1.0
    assert "2 documents do not determine a temperature" in caplog.text
    assert "than 0.01, because all labels are predicted correctly" in caplog.text
    caplog.clear()
    assert fit_temperature(head, scores, ~right) == 1.0
    assert "than 100, because the scores are not related to the labels" in caplog.text
    caplog.clear()
    assert fit_temperature(head, torch.zeros(2, 2, dtype=torch.float64), right) == 1.0
    assert "do not determine" in caplog.text


def test_invalid_calibration_data_are_refused(taxonomy):
    head = make_head(taxonomy, "multi_path")
    with pytest.raises(ValueError, match="held-out documents with labels, got none"):
        fit_temperature(head, torch.zeros(0, 13), np.zeros((0, 13), dtype=bool))
    with pytest.raises(ValueError, match=r"shape of the scores, \[2, 13\], got \[3, 13\]"):
        fit_temperature(head, torch.zeros(2, 13), np.zeros((3, 13), dtype=bool))


# ---- The model ----


@pytest.mark.parametrize("score_function", ["cosine", "linear"])
@pytest.mark.parametrize(("mode", "name", "partial"), HEADS)
def test_the_temperature_changes_probabilities_but_not_training_losses(
    make_model, taxonomy, mode, name, partial, score_function
):
    config = {"label_mode": mode, "head": name, "partial_paths": partial, "score_function": score_function}
    model = make_model(taxonomy, dtype=torch.float64, **config).eval()
    with torch.no_grad():
        for parameter in (*model.prototypes.parameters(), *model.head.parameters()):
            parameter.normal_()
    inputs = {
        "input_ids": torch.tensor([[2, 3, 4], [5, 6, 7]]),
        "labels": torch.from_numpy(np.stack([taxonomy.complete([i]) for i in (7, 9)])),
    }
    plain = model(**inputs)
    model.config.score_temperature = 2.5
    warm = model(**inputs)
    assert torch.equal(plain.task_losses, warm.task_losses)
    assert not torch.allclose(plain.logits, warm.logits, atol=1e-3)
    scores = document_scores(model, warm.features)
    torch.testing.assert_close(tempered_logits(model.head, scores, 2.5), warm.logits)
    torch.testing.assert_close(tempered_logits(model.head, scores, 1.0), plain.logits)
    targets = np.zeros((2, 13), dtype=bool)
    np.put_along_axis(targets, inputs["labels"].numpy(), True, axis=1)
    expected = (plain.task_losses * plain.task_counts).sum().item() / 2
    if name not in ("path_softmax", "lookahead_softmax"):  # these heads add a separate loss for each node of a path
        assert negative_log_likelihood(model.head, scores, targets) == pytest.approx(expected)


def test_results_do_not_depend_on_the_chunk_size(monkeypatch):
    _, head, scores, targets = draw("multi_path", "conditional_sigmoid", True, 2)
    whole = negative_log_likelihood(head, scores, targets, 1.7), tempered_logits(head, scores, 1.7)
    monkeypatch.setattr("hcal_hf.training.calibration.PAIRS_PER_CHUNK", 4 * scores.shape[1])
    assert negative_log_likelihood(head, scores, targets, 1.7) == pytest.approx(whole[0])
    torch.testing.assert_close(tempered_logits(head, scores, 1.7), whole[1])


# ---- The Trainer ----

TEXTS = ["stars and atoms", "atoms with energy", "genes in cells", "plants", "poems of old", "new novels", "drama"]


@pytest.fixture(scope="module")
def held_out(taxonomy, tokenizer):
    """Returns 84 documents. Most have the label that their text suggests, and 30 percent a random label."""
    leaves = np.flatnonzero(taxonomy.is_leaf)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(84):
        leaf = i % 7 if rng.random() < 0.7 else int(rng.integers(7))
        rows.append(
            {"text": f"{TEXTS[i % 7]} {rng.choice(['the', 'a', 'new'])}", "labels": [taxonomy.labels[leaves[leaf]]]}
        )
    return encode_dataset(Dataset.from_list(rows), taxonomy, tokenizer, label_mode="single_path")


@pytest.fixture
def make_trainer(make_model, tokenizer, tmp_path):
    def make(taxonomy, data, eval_data=None, config=None, **kwargs):
        settings = {"max_steps": 60, "per_device_train_batch_size": 14, "learning_rate": 0.01, "save_strategy": "no",
                    "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 3, **kwargs}  # fmt: skip
        args = HcalTrainingArguments(str(tmp_path), **settings)
        model = make_model(taxonomy, perturbation=0.0, **(config or {}))
        return HcalTrainer(model, args, None, data, eval_data, tokenizer)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("single_path", "path_softmax"),
        ("single_path", "independent"),
        ("multi_path", "conditional_sigmoid"),
        ("multi_path", "lookahead_sigmoid"),
        ("multi_path", "independent"),
    ],
)
def test_calibrate_temperature_improves_later_predictions_and_is_saved(
    make_trainer, taxonomy, held_out, mode, name, tmp_path, caplog
):
    config = {"label_mode": mode, "head": name, "prototype_temperature": 0.02}
    trainer = make_trainer(taxonomy, held_out.select(range(42)), held_out.select(range(42, 84)), config)
    trainer.train()
    model = trainer.model
    before = trainer.predict(trainer.eval_dataset)
    trainer.tune_thresholds()
    trainer.calibrate_risk(held_out.select(range(42, 84)), 0.4)
    found = trainer.calibrate_temperature()
    assert (found["temperature"], found["documents"]) == (model.config.score_temperature, 42)
    assert abs(math.log(found["temperature"])) > 0.1
    assert found["nll_after"] < found["nll_before"] - 1e-3
    assert ("end_ece_after" in found) == (mode == "single_path")
    assert (model.config.thresholds, model.config.risk_alpha, model.config.risk_threshold) == (None, None, None)
    assert "from the configuration: thresholds and risk_threshold" in caplog.text

    after = trainer.predict(trainer.eval_dataset)
    assert after.metrics["test_loss"] == before.metrics["test_loss"]
    targets = before.label_ids > 0
    kind = (taxonomy, mode, False, name)
    for when, output in (("before", before), ("after", after)):
        metrics = calibration_metrics(torch.from_numpy(output.predictions), targets, *kind)
        for metric, value in metrics.items():
            # Equal texts differ by rounding errors, which can put them into different bins of equal mass.
            tolerance = 0.03 if metric in ("ece", "end_ece") else 1e-5
            assert found[f"{metric}_{when}"] == pytest.approx(value, abs=tolerance), metric

    trainer.tune_thresholds()
    thresholds = model.config.thresholds
    caplog.clear()
    again = trainer.calibrate_temperature(held_out.select(range(42, 84)))
    assert again["temperature"] == found["temperature"]
    assert again["nll_before"] == again["nll_after"] == pytest.approx(found["nll_after"])
    assert model.config.thresholds == thresholds  # they remain valid
    assert not caplog.text
    trainer.save_model(str(tmp_path / "calibrated"))
    loaded = type(model).from_pretrained(tmp_path / "calibrated").eval()
    assert loaded.config.score_temperature == found["temperature"]
    batch = trainer.data_collator([held_out[0]])
    torch.testing.assert_close(loaded(**batch).logits, model.eval()(**batch).logits)


def test_training_resets_the_temperature_and_thresholds_with_a_warning(make_trainer, taxonomy, held_out, caplog):
    plain = make_trainer(taxonomy, held_out, max_steps=3)
    plain.train()
    warm = make_trainer(taxonomy, held_out, max_steps=3)
    warm.model.config.score_temperature = 3.0
    warm.model.config.thresholds = [0.5] * 13
    warm.train()
    assert "score_temperature=3.0 was fitted to the weights before this training" in caplog.text
    assert (warm.model.config.score_temperature, warm.model.config.thresholds) == (1.0, None)
    for a, b in zip(plain.model.parameters(), warm.model.parameters()):
        assert torch.equal(a, b)
    thresholds = warm.model.config.thresholds = [0.5] * 13
    warm.train()
    assert warm.model.config.thresholds == thresholds  # without a temperature to reset, the thresholds are kept


def test_calibrate_temperature_refuses_training_data_and_unlabelled_data(make_trainer, taxonomy, held_out):
    trainer = make_trainer(taxonomy, held_out)
    with pytest.raises(ValueError, match="calibrate_temperature got the training data"):
        trainer.calibrate_temperature(held_out)
    with pytest.raises(ValueError, match="calibrate_temperature needs one data set with labels, got none"):
        trainer.calibrate_temperature()
    with pytest.raises(ValueError, match="needs a data set with a column"):
        trainer.calibrate_temperature(held_out.remove_columns("labels"))
    trainer.eval_dataset = held_out
    with pytest.raises(ValueError, match="got the training data"):
        trainer.calibrate_temperature()
    assert trainer.model.config.score_temperature == 1


# ---- Metrics ----


def slow_ece(p, y, bins, binning):
    pairs = sorted(zip(p, y))
    total = 0.0
    if binning == "equal_width":
        groups = [[(a, b) for a, b in pairs if k / bins < a <= (k + 1) / bins or k == a == 0] for k in range(bins)]
    else:
        values = [a for a, _ in pairs]
        firsts = [values[k * len(values) // bins] for k in range(1, bins)]
        groups = [[(a, b) for a, b in pairs if sum(a >= first for first in firsts) == k] for k in range(bins)]
    assert sum(map(len, groups)) == len(pairs)
    for group in groups:
        if group:
            accuracy = sum(b for _, b in group) / len(group)
            confidence = sum(a for a, _ in group) / len(group)
            total += len(group) / len(pairs) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("binning", ["equal_mass", "equal_width"])
@pytest.mark.parametrize("bins", [1, 4, 15, 60])
@pytest.mark.parametrize(("seed", "grid"), [(0, None), (1, None), (2, 6), (3, 1)])
def test_calibration_errors_and_brier_scores_match_slow_references(binning, bins, seed, grid):
    rng = np.random.default_rng(seed)
    p = rng.random(101) ** 2
    p = p if grid is None else np.round(p * grid) / grid
    y = rng.random(101) < np.sqrt(p)
    expected = slow_ece(p.tolist(), y.tolist(), bins, binning)
    assert expected_calibration_error(p, y, bins, binning) == pytest.approx(expected)
    order = rng.permutation(101)  # equal probabilities share a bin, so their order does not matter
    assert expected_calibration_error(p[order], y[order].astype(float), bins, binning) == pytest.approx(expected)
    assert brier_score(p, y) == pytest.approx(sum((a - b) ** 2 for a, b in zip(p.tolist(), y.tolist())) / 101)


def test_calibration_errors_of_simple_examples():
    p = np.linspace(0.001, 0.999, 45)
    for outcome, expected in ((1.0, 1 - p), (0.0, p)):
        per_bin = [abs(part.sum()) for part in np.split(expected, 15)]
        found = expected_calibration_error(p, np.full(45, outcome))
        assert found == pytest.approx(sum(per_bin) / 45)
    half = np.tile([True, False], 50)
    assert expected_calibration_error(np.full(100, 0.5), half) == 0
    assert expected_calibration_error(np.full(100, 0.9), half, binning="equal_width") == pytest.approx(0.4)
    # 0.5 belongs to the first of two bins of equal width.
    assert expected_calibration_error([0.5, 0.9], [False, True], 2, "equal_width") == pytest.approx((0.5 + 0.1) / 2)
    assert brier_score(np.full(100, 0.5), half) == 0.25
    for function in (expected_calibration_error, brier_score):
        assert function(half, half) == function([], []) == 0
        assert function(half, ~half) == 1


def test_calibration_scores_accept_multi_hot_and_index_references():
    rng = np.random.default_rng(0)
    p, y = rng.random((9, 7)), rng.random((9, 7)) < 0.4
    found = calibration_scores(p, y, bins=5)
    assert found == {
        "ece": expected_calibration_error(p.ravel(), y.ravel(), 5),
        "ece_equal_width": expected_calibration_error(p.ravel(), y.ravel(), 5, "equal_width"),
        "brier": brier_score(p.ravel(), y.ravel()),
    }
    assert calibration_scores(p, [np.flatnonzero(row).tolist() for row in y], bins=5) == found
    assert set(calibration_scores(p[:0], y[:0]).values()) == {0.0}


@pytest.mark.parametrize(("mode", "name", "partial"), HEADS)
def test_single_path_calibration_uses_the_probability_of_the_end_node(mode, name, partial):
    taxonomy, head, scores, targets = draw(mode, name, partial, 3, documents=40)
    logits = tempered_logits(head, scores, 1.0)
    found = calibration_metrics(logits, targets, taxonomy, mode, partial, name)
    p = torch.sigmoid(logits).numpy()
    cells = calibration_scores(p, targets)
    assert {key: found.pop(key) for key in cells} == pytest.approx(cells)
    if mode == "multi_path":
        assert not found
        return
    stop = head.stop.tolist() if getattr(head, "stop", None) is not None else None
    sure, right = [], []
    for i, row in enumerate(scores.tolist()):
        if name == "independent":
            ends = [n for n in range(14) if partial or taxonomy.is_leaf[n]]
            means = {end: np.mean([math.log(p[i, n]) for n in taxonomy.complete([end])]) for end in ends}
            end = max(means, key=means.get)
            sure.append(p[i, end])
        else:
            ends = slow_ends(row, taxonomy, name, stop)
            end = max(ends, key=ends.get)
            sure.append(math.exp(ends[end]))
        right.append(np.flatnonzero(targets[i]).tolist() == taxonomy.complete([end]).tolist())
    assert 0 < sum(right) < 40
    sure = np.clip(sure, 0, 1)
    assert found == pytest.approx(
        {
            "end_ece": expected_calibration_error(sure, right),
            "end_ece_equal_width": expected_calibration_error(sure, right, binning="equal_width"),
            "end_brier": brier_score(sure, right),
        },
        abs=1e-6,
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bins": 0}, "bins must be a whole number of at least 1, got 0"),
        ({"binning": "equal"}, "binning must be one of equal_mass, equal_width, got 'equal'"),
        ({"probabilities": [1.5, 0.5]}, r"between 0 and 1, got 1\.5: give sigmoid"),
        ({"probabilities": [float("nan"), 0.5]}, "between 0 and 1, got nan"),
        ({"outcomes": [0.5, 1.0]}, r"must be bool or 0 and 1, got 0\.5"),
        ({"outcomes": [True]}, r"shape \(2,\) and outcomes \(1,\)"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(**{"probabilities": [0.2, 0.5], "outcomes": [True, False], **kwargs})


def test_the_temperature_is_saved_with_the_configuration(taxonomy, tmp_path):
    config = HcalConfig.from_taxonomy(taxonomy, score_temperature=1.5)
    config.save_pretrained(tmp_path)
    assert HcalConfig.from_pretrained(tmp_path).score_temperature == 1.5
