"""The L-BFGS solver that fits the head on pooled states of a frozen encoder."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from transformers import TrainerCallback

from hcal_hf import HcalConfig, HcalForSequenceClassification, HcalTrainer, HcalTrainingArguments, Taxonomy
from hcal_hf.targets import Targets
from hcal_hf.training.solver import (
    HeadProblem,
    Solution,
    feature_tensors,
    fit_head,
    head_state,
    solve,
    solve_without_validation,
    validation_score,
)
from tests.builders import tiny_bert

SIZE = 16


@pytest.fixture
def taxonomy():
    return Taxonomy.from_paths([["a", "b"], ["a", "c"], ["d", "e"], ["d", "f"]], identity="name")


def make_model(taxonomy, **config):
    torch.manual_seed(0)
    fields = {"label_mode": "multi_path", "partial_paths": True, "score_function": "linear", **config}
    return HcalForSequenceClassification(HcalConfig.from_taxonomy(taxonomy, tiny_bert(), **fields))


def make_documents(taxonomy, number, seed, single_path=False):
    """Returns (pooled states, multi-hot labels with all ancestors). The states are noisy functions of the labels."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).normal(size=(taxonomy.num_labels, SIZE))
    labels = np.zeros((number, taxonomy.num_labels), dtype=np.float32)
    for row in labels:
        leaves = np.flatnonzero(taxonomy.is_leaf)
        chosen = rng.choice(leaves, size=1 if single_path else rng.integers(0, 3), replace=False)
        row[taxonomy.complete(chosen.tolist())] = 1
    states = labels @ directions + rng.normal(size=(number, SIZE)) * 2
    return torch.from_numpy(states.astype(np.float32)), torch.from_numpy(labels)


def unit_features(model, states):
    with torch.no_grad():
        return model.eval()(pooled_states=states).features.double().numpy()


def test_a_fitted_sigmoid_head_equals_logistic_regressions_given_the_parents(taxonomy):
    states, labels = make_documents(taxonomy, 300, seed=1)
    model = make_model(taxonomy, head="conditional_sigmoid").double()
    fit_head(model, states.double(), labels, strength=4.0, max_iterations=500)
    x, y = unit_features(model, states.double()), labels.numpy() > 0
    tau = model.head.temperature
    with torch.no_grad():
        weights, bias = (model.prototypes.weight / tau).numpy(), (model.prototypes.bias / tau).numpy()
    # A constant feature of this value regularises the intercept b with |tau b|^2 / (2 * 100).
    constant = np.sqrt(100.0 / 4.0) / tau
    x = np.column_stack([x, np.full(len(x), constant)])
    for node in range(taxonomy.num_labels):
        rows = y[:, taxonomy.parents(node)].all(axis=1)
        reference = LogisticRegression(C=4.0, fit_intercept=False, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        *expected, intercept = reference.fit(x[rows], y[rows, node]).coef_[0]
        np.testing.assert_allclose(weights[node], expected, atol=1e-3)
        np.testing.assert_allclose(bias[node], intercept * constant, atol=1e-3)


@pytest.mark.parametrize("config", [{}, {"head": "conditional_sigmoid"}, {"label_mode": "single_path"}])
def test_the_reported_objective_equals_the_regularised_loss_of_the_head(taxonomy, config):
    states, labels = make_documents(taxonomy, 60, seed=1, single_path=True)
    model = make_model(taxonomy, **config).double()
    found = fit_head(model, states.double(), labels, strength=2.0)
    targets = Targets(labels, taxonomy.num_labels)
    with torch.no_grad():
        features = model.eval()(pooled_states=states.double()).features
        scores = model.head.scores(model.prototypes.products(features, model.projection))
        total = (model.head.losses(scores, targets) * model.head.counts(targets)).sum()
        total += (model.prototypes.weight / model.head.temperature).square().sum() / (2 * 2.0)
        for bias in (model.prototypes.bias, getattr(model.head, "stop", None)):
            total += 0 if bias is None else bias.square().sum() / (2 * 100.0)
    assert found == pytest.approx(float(total) / 60, abs=1e-10)


@pytest.mark.parametrize(
    "config",
    [
        {"prototype_anchor": "label_text"},
        {"prototype_anchor": "label_text", "label_mode": "single_path"},
        {"head": "conditional_sigmoid"},
    ],
)
def test_the_gradients_equal_those_of_the_loss_by_autograd(taxonomy, config):
    states, labels = make_documents(taxonomy, 60, seed=1, single_path="label_mode" in config)
    model = make_model(taxonomy, **config).double().eval()
    states = states.double()
    with torch.no_grad():
        for parameter in [*model.prototypes.parameters(), *model.head.parameters()]:
            parameter.normal_()
        if model.prototypes.is_anchored:
            model.prototypes.anchors.normal_()
    problem = HeadProblem(model, states, labels)
    parameters = [*model.prototypes.parameters(), *model.head.parameters()]
    problem._evaluate(4.0, parameters, {})
    computed = [parameter.grad.clone() for parameter in parameters]
    model.zero_grad()
    targets = Targets(labels, taxonomy.num_labels)
    scores = model.head.scores(model.prototypes.products(problem.features, model.projection))
    loss = (model.head.losses(scores, targets) * model.head.counts(targets)).sum()
    loss = loss + (model.prototypes.weight / model.head.temperature).square().sum() / (2 * 4.0)
    for bias in (model.prototypes.bias, getattr(model.head, "stop", None)):
        loss = loss if bias is None else loss + bias.square().sum() / (2 * 100.0)
    expected = torch.autograd.grad(loss / len(states), parameters)
    torch.testing.assert_close(computed, list(expected))


def test_tolerances_do_not_depend_on_the_number_of_documents(taxonomy, monkeypatch):
    """With 50 copies of each document and 50 times the regularisation, the solution is the same."""
    states, labels = make_documents(taxonomy, 100, seed=1)
    weights = []
    for copies in (1, 50):
        monkeypatch.setattr("hcal_hf.training.solver.BIAS_STRENGTH", 100.0 / copies)
        model = make_model(taxonomy).double()
        documents = states.double().repeat(copies, 1), labels.repeat(copies, 1)
        fit_head(model, *documents, strength=4.0 / copies, max_iterations=500)
        weights.append(model.prototypes.weight.detach())
    torch.testing.assert_close(*weights, atol=1e-7, rtol=0)


def test_a_fit_that_does_not_converge_is_reported(taxonomy, caplog):
    train, validation = make_documents(taxonomy, 60, seed=1), make_documents(taxonomy, 60, seed=2)
    solution = solve(make_model(taxonomy), train, validation, strengths=[4.0], max_iterations=500)
    assert solution.converged
    assert solution.tried[0]["converged"]
    assert "did not converge" not in caplog.text
    for call in (
        lambda: solve(make_model(taxonomy), train, validation, strengths=[4.0], max_iterations=3).converged,
        lambda: solve_without_validation(make_model(taxonomy), train, 0, strengths=[4.0], max_iterations=3).converged,
        lambda: fit_head(make_model(taxonomy), *train, max_iterations=3) < 0,
    ):
        caplog.clear()
        assert not call()
        assert caplog.text.count("did not converge within max_iterations=3") == 1


def test_max_iterations_applies_to_every_fit(taxonomy, monkeypatch):
    maxima, optimizer = [], torch.optim.LBFGS
    monkeypatch.setattr(
        "torch.optim.LBFGS", lambda *args, **kwargs: maxima.append(kwargs["max_iter"]) or optimizer(*args, **kwargs)
    )
    documents = make_documents(taxonomy, 60, seed=1)
    solve_without_validation(make_model(taxonomy), documents, seed=0, strengths=[1.0, 4.0], max_iterations=7)
    assert maxima == [7, 7, 7]


@pytest.mark.parametrize("kept", [10**9, 0])
def test_features_and_targets_are_computed_once_for_all_strengths(taxonomy, monkeypatch, kept):
    """Targets that exceed the memory limit are not kept. Each evaluation builds them again."""
    monkeypatch.setattr("hcal_hf.training.solver._KEPT_PAIRS", kept)
    built = []
    monkeypatch.setattr("hcal_hf.training.solver.Targets", lambda *args: built.append(1) or Targets(*args))
    train, validation = make_documents(taxonomy, 70, seed=1), make_documents(taxonomy, 20, seed=2)
    model = make_model(taxonomy)
    projected = []
    model.projection.register_forward_hook(lambda module, inputs, output: projected.append(len(output)))
    solve(model, train, validation, strengths=[1.0, 4.0])
    assert projected == [70, 20, 20]
    assert (len(built) == 3) is (kept > 0)  # once for training, and once for validation per strength


def test_regularisation_pulls_weights_towards_the_anchors(taxonomy):
    states, labels = make_documents(taxonomy, 100, seed=1)
    model = make_model(taxonomy, prototype_anchor="label_text")
    torch.manual_seed(1)
    model.prototypes.anchors.normal_()
    fit_head(model, states, labels, strength=1e-6)
    assert model.prototypes.weight.abs().max() < 1e-3
    assert (model.prototypes.anchor_scale != 1).all()
    fit_head(model, states, labels, strength=4.0)
    assert model.prototypes.weight.abs().max() > 1e-2
    fit_head(model, states, labels, strength=4.0, anchored=False)
    assert (model.prototypes.anchor_scale == 0).all()


@pytest.mark.parametrize("chunk", [2**20, 20])
def test_prototypes_that_start_at_zero_are_also_fitted(taxonomy, monkeypatch, chunk):
    monkeypatch.setattr("hcal_hf.prototypes.CHUNK", chunk)
    documents = make_documents(taxonomy, 100, seed=1)
    anchored = make_model(taxonomy, prototype_anchor="label_text")
    assert not anchored.prototypes.weight.any()
    found = fit_head(anchored, *documents, anchored=False)
    assert found == pytest.approx(fit_head(make_model(taxonomy), *documents), rel=1e-3)
    assert anchored.prototypes.weight.any(dim=1).all()


def test_labels_without_documents_keep_their_anchor(taxonomy):
    states, labels = make_documents(taxonomy, 100, seed=1, single_path=True)
    absent = taxonomy.index("f")
    labels[:, absent] = 0
    keep = labels.sum(dim=1) == 2
    model = make_model(taxonomy, label_mode="single_path", partial_paths=False, prototype_anchor="label_text")
    model.prototypes.anchors.normal_()
    fit_head(model, states[keep], labels[keep])
    assert model.prototypes.trained.tolist() == [i != absent for i in range(taxonomy.num_labels)]
    assert not model.prototypes.weight[absent].any()
    assert model.prototypes.bias is None
    assert model.prototypes.weight[taxonomy.index("e")].any()


def test_the_fit_does_not_depend_on_the_chunk_size(taxonomy, monkeypatch):
    states, labels = make_documents(taxonomy, 50, seed=1)
    values, weights = [], []
    for cells in (4_000_000, 6 * 7):
        monkeypatch.setattr("hcal_hf.training.solver.PAIRS_PER_CHUNK", cells)
        model = make_model(taxonomy).double()
        values.append(fit_head(model, states.double(), labels))
        weights.append(model.prototypes.weight.detach().clone())
    assert values[0] == pytest.approx(values[1], abs=1e-9)
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)


def test_fitting_changes_nothing_but_the_head(taxonomy):
    states, labels = make_documents(taxonomy, 50, seed=1)
    model = make_model(taxonomy).train()
    model.encoder.requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    fit_head(model, states, labels)
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == before[name][1]
        assert torch.equal(parameter, before[name][0]) == (not name.startswith("prototypes."))


def test_the_best_strength_on_validation_documents_is_kept(taxonomy):
    train, validation = make_documents(taxonomy, 60, seed=1), make_documents(taxonomy, 200, seed=2)
    model = make_model(taxonomy, prototype_anchor="label_text")
    model.prototypes.anchors.normal_()
    solution = solve(model, train, validation, strengths=[1e-4, 1.0, 1e6])
    assert [(t["strength"], t["anchored"]) for t in solution.tried] == [
        (c, anchored) for anchored in (True, False) for c in (1e-4, 1.0, 1e6)
    ]
    assert solution.score == max(t["score"] for t in solution.tried) > solution.tried[-1]["score"]
    assert validation_score(model, *validation) == pytest.approx(solution.score, abs=1e-12)
    again = make_model(taxonomy, prototype_anchor="label_text")
    again.prototypes.anchors.copy_(model.prototypes.anchors)
    fit_head(again, *train, solution.strength, solution.anchored, max_iterations=500)
    with torch.no_grad():
        found, expected = (m.eval()(pooled_states=validation[0]).logits for m in (model, again))
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_without_validation_documents_the_strength_is_chosen_on_held_out_training_documents(taxonomy):
    states, labels = make_documents(taxonomy, 80, seed=1)
    model = make_model(taxonomy)
    solution = solve_without_validation(model, (states, labels), seed=0, strengths=[1e-3, 4.0])
    expected = make_model(taxonomy)
    value = fit_head(expected, states, labels, solution.strength, max_iterations=500)
    assert solution.objective == pytest.approx(value, rel=1e-3)
    with pytest.raises(ValueError, match=r"1 document\(s\) are too few"):
        solve_without_validation(model, (states[:1], labels[:1]), seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"score_function": "cosine"}, "score_function='cosine'"),
        ({"contrast": "aggregate"}, "contrast='aggregate'"),
    ],
)
def test_models_with_cosine_scores_or_contrast_are_refused(taxonomy, config, message):
    states, labels = make_documents(taxonomy, 20, seed=1)
    with pytest.raises(ValueError, match=message):
        fit_head(make_model(taxonomy, **config), states, labels)


def test_strength_must_be_positive(taxonomy):
    states, labels = make_documents(taxonomy, 20, seed=1)
    with pytest.raises(ValueError, match="strength must be above 0, got 0"):
        fit_head(make_model(taxonomy), states, labels, strength=0)


# ---- In the Trainer ----


def features_table(states, labels):
    nodes = [row.nonzero()[:, 0].tolist() for row in labels]
    return Dataset.from_dict({"pooled_states": states.tolist(), "labels": nodes}).with_format(
        "numpy", columns=["pooled_states"], output_all_columns=True
    )


def make_trainer(folder, model, train, validation=None, **arguments):
    arguments = HcalTrainingArguments(
        str(folder), use_cpu=True, report_to="none", max_steps=1, save_strategy="no", **arguments
    )
    tables = {"train_dataset": features_table(*train)}
    if validation is not None:
        tables["eval_dataset"] = features_table(*validation)
    return HcalTrainer(model, arguments, **tables)


def test_feature_tensors_pad_the_labels(taxonomy):
    states, labels = make_documents(taxonomy, 9, seed=1)
    found, nodes = feature_tensors(features_table(states, labels))
    torch.testing.assert_close(found, states)
    assert [row[row >= 0].tolist() for row in nodes] == [row.nonzero()[:, 0].tolist() for row in labels]


@pytest.mark.parametrize("with_validation", [True, False])
def test_train_fits_the_head_of_a_frozen_encoder(taxonomy, tmp_path, with_validation):
    train, validation = make_documents(taxonomy, 200, seed=1), make_documents(taxonomy, 200, seed=2)
    model = make_model(taxonomy)
    model.encoder.requires_grad_(False)
    trainer = make_trainer(tmp_path, model, train, validation if with_validation else None)
    trainer.began = trainer.ended = 0

    class Counter(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            trainer.began += 1

        def on_train_end(self, *args, **kwargs):
            trainer.ended += 1

    trainer.add_callback(Counter)
    output = trainer.train()
    assert output.metrics["head_strength"] > 0
    assert trainer.state.log_history[-1]["head_score"] == output.metrics["head_score"]
    assert trainer.began == trainer.ended == 1
    scores = trainer.evaluate(features_table(*validation))
    assert scores["eval_micro_f1"] > 0.6
    assert scores["eval_hvr"] == scores["eval_raw_hvr"] == 0
    trainer.save_model(tmp_path)
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found, expected = (m.eval()(pooled_states=validation[0]).logits for m in (loaded, model))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("data_seed", "expected"), [(None, 7), (0, 0), (5, 5)])
def test_held_out_documents_are_drawn_with_the_data_seed(taxonomy, tmp_path, monkeypatch, data_seed, expected):
    seeds = []

    def record(model, train, seed, prior, show_progress):
        seeds.append(seed)
        return Solution(1.0, False, 0.0, 0.0)

    monkeypatch.setattr("hcal_hf.training.frozen_head.solve_without_validation", record)
    model = make_model(taxonomy)
    model.encoder.requires_grad_(False)
    make_trainer(tmp_path, model, make_documents(taxonomy, 20, seed=1), seed=7, data_seed=data_seed).train()
    assert seeds == [expected]


@pytest.mark.parametrize(
    ("config", "arguments"),
    [({}, {"head_solver": "optimizer"}), ({"score_function": "cosine"}, {}), ({"contrast": "aggregate"}, {})],
)
def test_models_that_lbfgs_cannot_fit_are_trained_in_batches(taxonomy, tmp_path, config, arguments):
    model = make_model(taxonomy, **config)
    model.encoder.requires_grad_(False)
    trainer = make_trainer(tmp_path, model, make_documents(taxonomy, 20, seed=1), **arguments)
    assert "head_strength" not in trainer.train().metrics
    assert trainer.state.global_step == 1


def test_head_solver_lbfgs_is_refused_if_the_model_does_not_support_it(taxonomy, tmp_path):
    documents = make_documents(taxonomy, 20, seed=1)
    with pytest.raises(ValueError, match='head_solver="lbfgs" fits the head of a frozen encoder'):
        make_trainer(tmp_path, make_model(taxonomy), documents, head_solver="lbfgs").train()
    model = make_model(taxonomy, score_function="cosine")
    model.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="score_function='cosine'"):
        make_trainer(tmp_path, model, documents, head_solver="lbfgs").train()
    with pytest.raises(ValueError, match="head_solver must be"):
        HcalTrainingArguments("unused", head_solver="newton")


def test_a_model_prior_keeps_the_weights_at_a_low_strength_and_not_at_a_high_one(taxonomy):
    old, new = (make_documents(taxonomy, 120, seed=seed) for seed in (1, 2))
    model = make_model(taxonomy).double()
    fit_head(model, old[0].double(), old[1], strength=4.0)
    start = head_state(model)
    problem = HeadProblem(model, new[0].double(), new[1])
    problem.fit(1e-9, centre=start)
    torch.testing.assert_close(model.prototypes.weight.data, start["prototypes.weight"], atol=1e-5, rtol=0)
    problem.fit(4.0, max_iterations=400, centre=start)
    assert (model.prototypes.weight - start["prototypes.weight"]).abs().max() > 0.01
    # With little regularisation, only the documents determine the solution.
    problem.fit(1e6, max_iterations=400, centre=start)
    with_centre = problem.fit(1e6, max_iterations=400, centre=start).objective
    assert with_centre == pytest.approx(problem.fit(1e6, max_iterations=400).objective, rel=0.02)


def test_an_unknown_prior_is_refused(taxonomy):
    documents = make_documents(taxonomy, 30, seed=1)
    with pytest.raises(ValueError, match="prior must be one of initial, model, got 'old'"):
        solve(make_model(taxonomy), documents, documents, prior="old")
    with pytest.raises(ValueError, match='head_prior must be "initial" or "model", got \'old\''):
        HcalTrainingArguments("unused", head_prior="old")


def test_progress_shows_strength_loss_and_time_left(taxonomy, capsys):
    documents = make_documents(taxonomy, 60, seed=1)
    solve(make_model(taxonomy), documents, documents, strengths=(1.0, 4.0))
    assert capsys.readouterr().err == ""
    solve(make_model(taxonomy), documents, documents, strengths=(1.0, 4.0), show_progress=True)
    assert "Fitting the head:   0%" in capsys.readouterr().err
