"""The scikit-learn estimator HcalClassifier: interface, labels, features, texts and tuning."""

import importlib
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import are_progress_bars_disabled
from hiclass import LocalClassifierPerParentNode
from hiclass.metrics import f1
from sklearn.base import clone
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from transformers import pipeline

from hcal_hf import HcalForSequenceClassification, Taxonomy, violation_rates
from hcal_hf.sklearn.classifier import HcalClassifier

WORDS = {"astronomy": "stars", "quantum": "atoms", "genetics": "genes", "botany": "plants",
         "poetry": "poems", "fiction": "novels", "opera": "music"}  # fmt: skip

EXPECTED_FAILURES = {
    "check_classifier_multioutput": "the columns of a 2-d y are the levels of one path: a matrix of 0 and 1 with a column "
    "for each output is refused, lest it be read as paths",
}


# Checks that need no data. The other checks of scikit-learn fit numbers, so they cannot run on a classifier of texts.
WITHOUT_DATA = [
    estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_mixin_order,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_set_params,
    estimator_checks.check_valid_tag_types,
]


def numeric(**kwargs):
    """Returns a classifier of features with a fixed C, so that fitting is deterministic and tries no other values."""
    return HcalClassifier(**{"encoder": None, "C": 64.0, "random_state": 0, **kwargs})


def make_features(paths, seed=0, noise=0.5):
    """Returns features [N, 12] that are noisy sums of one direction per name on the paths of a document."""
    names = sorted({name for doc in paths for path in doc for name in path})
    directions = dict(zip(names, np.random.default_rng(7).normal(size=(len(names), 12))))
    rng = np.random.default_rng(seed)
    sums = [sum((directions[n] for n in sorted({n for path in doc for n in path})), np.zeros(12)) for doc in paths]
    return np.array(sums) + noise * rng.normal(size=(len(paths), 12)) + 3.0


def single_paths(number=60):
    """Returns features and 2-d labels. One path ends early, and two nodes have the name "other"."""
    kinds = [("a", "x"), ("a", "other"), ("b", "other"), ("b", "y"), ("c",)]
    paths = [kinds[i % len(kinds)] for i in range(number)]
    y = np.array([[*path, ""][:2] for path in paths], dtype=object)
    # One direction per path prefix, so that both nodes named "other" differ.
    return make_features([[tuple(" ".join(path[: k + 1]) for k in range(len(path)))] for path in paths]), y


def several_paths(number=60):
    kinds = [[("a", "x")], [("a", "x"), ("b", "y")], [("b", "z")], [], [("b",)]]
    docs = [kinds[i % len(kinds)] for i in range(number)]
    return make_features(docs, noise=0.3), [[list(path) for path in doc] for doc in docs]


def padded(docs, most_paths):
    """Returns the labels as an array [N, paths, 2] padded with empty names."""
    found = np.full((len(docs), most_paths, 2), "", dtype=object)
    for row, doc in enumerate(docs):
        for column, path in enumerate(doc):
            found[row, column, : len(path)] = path
    return found


@pytest.fixture(scope="module")
def texts(taxonomy):
    rows = [(f"{extra} {word}", leaf) for extra in ("study", "new", "old", "first") for leaf, word in WORDS.items()]
    paths = [taxonomy.paths(taxonomy.index(leaf))[0] for _, leaf in rows]
    return [text for text, _ in rows], np.array(paths, dtype=object)


@pytest.fixture(scope="module")
def text_classifier(encoder_dir, texts):
    return HcalClassifier(encoder_dir, random_state=0, device="cpu", C=1024.0).fit(*texts)


# ---- The interface of scikit-learn ----


@parametrize_with_checks([numeric()], expected_failed_checks=lambda estimator: EXPECTED_FAILURES)
def test_a_feature_classifier_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("check", WITHOUT_DATA, ids=lambda check: check.__name__)
def test_a_text_classifier_passes_the_checks_of_scikit_learn_without_data(check):
    check("HcalClassifier", HcalClassifier("nowhere"))


def test_parameters_are_stored_unchanged_and_cloned(taxonomy):
    kwargs = {"taxonomy": taxonomy, "C": 3.0, "model_kwargs": {"pooling": "cls"}, "threshold": [0.5, 0.1]}
    classifier = HcalClassifier("nowhere", **kwargs)
    for found in (classifier, clone(classifier)):
        parameters = found.get_params()
        assert {name: parameters[name] for name in kwargs} == kwargs
        assert parameters["encoder"] == "nowhere"
    tags = classifier.__sklearn_tags__().input_tags
    assert (tags.string, tags.two_d_array) == (True, False)
    assert numeric().__sklearn_tags__().input_tags.two_d_array


def test_grid_search_over_a_pipeline_chooses_c_and_refits():
    features, y = single_paths()
    steps = make_pipeline(StandardScaler(), numeric(partial_paths=True))
    search = GridSearchCV(steps, {"hcalclassifier__C": [1e-4, 64.0]}, cv=2).fit(features, y)
    assert search.best_params_ == {"hcalclassifier__C": 64.0}
    assert search.best_score_ > 0.9
    assert search.best_estimator_[-1].C_ == 64.0
    scores = cross_val_score(steps, features, y, cv=2)
    assert scores.shape == (2,)
    assert scores.min() > 0.8


@pytest.mark.parametrize("form", ["lists", "array"])
def test_cross_validation_works_with_several_paths_per_document(form):
    features, docs = several_paths()
    if form == "lists":
        with pytest.raises(ValueError, match="legacy multi-label"):
            cross_val_score(numeric(partial_paths=True), features, docs, cv=2)
        given = docs
    else:
        given = padded(docs, 2)
    scores = cross_val_score(numeric(partial_paths=True), features, given, cv=KFold(2) if form == "lists" else 2)
    assert scores.min() > 0.7


def test_probability_scorers_work_with_one_dimensional_labels():
    features, y = single_paths()
    flat = np.array([" ".join(path).strip() for path in y])
    for scoring in ("neg_log_loss", "roc_auc_ovr", "balanced_accuracy"):
        scores = cross_val_score(numeric(), features, flat, cv=3, scoring=scoring)
        assert np.isfinite(scores).all()
        assert scores.min() > (-0.7 if scoring == "neg_log_loss" else 0.8)


def test_fitting_keeps_global_random_states_and_progress_bars():
    features, y = single_paths(20)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = np.random.rand(), torch.rand(1)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    numeric(partial_paths=True, score_function="cosine", device="cpu", num_train_epochs=1).fit(features, y).predict(
        features
    )
    assert expected == (np.random.rand(), torch.rand(1))  # noqa: NPY002
    assert not are_progress_bars_disabled()


def test_the_same_seed_gives_the_same_fit():
    features, y = single_paths(20)
    fitted = [numeric(partial_paths=True, C="auto", random_state=s).fit(features, y) for s in (1, 1)]
    assert np.array_equal(*(f.predict_proba(features) for f in fitted))
    assert fitted[0].C_ in (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    for name in ("sklearn", "sklearn.base", "sklearn.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "hcal_hf.sklearn.classifier")
    with pytest.raises(ImportError, match=r'pip install "hcal-hf\[quickstart\]"'):
        importlib.import_module("hcal_hf.sklearn.classifier")


# ---- Labels ----


def test_predicted_paths_have_the_format_of_hiclass():
    features, y = single_paths()
    classifier = numeric(partial_paths=True).fit(features, y)
    found = classifier.predict(features)
    assert found.dtype == object
    assert found.shape == y.shape
    assert (found == y).all(axis=1).mean() == classifier.score(features, y) > 0.95
    # "other" under "a" and under "b" are two nodes.
    assert classifier.classes_.tolist() == ["a", "b", "c", "a > other", "x", "b > other", "y"]
    assert f1(y.astype(str), found.astype(str)) > 0.95
    reference = LocalClassifierPerParentNode(LogisticRegression()).fit(features, y)
    assert (reference.predict(features) == found).mean() > 0.95


def test_predicted_probabilities_are_consistent_with_the_hierarchy():
    features, y = single_paths()
    classifier = numeric(partial_paths=True).fit(features, y)
    found = classifier.predict_proba(features)
    taxonomy = classifier.taxonomy_
    assert found.shape == (len(y), len(classifier.classes_))
    assert violation_rates(found > 0.5, taxonomy, scores=found)["hvr_score"] == 0.0
    np.testing.assert_allclose(found[:, taxonomy.levels[0]].sum(axis=1), 1.0, atol=1e-5)
    expected = [taxonomy.index_path([name for name in path if name][:1]) for path in y]
    assert (found[:, taxonomy.levels[0]].argmax(axis=1) == expected).mean() > 0.95


@pytest.mark.parametrize(
    ("form", "missing"),
    [(list, None), (np.array, float("nan")), (pd.DataFrame, None), (pd.DataFrame, ""), ("ragged", "")],
)
def test_all_spellings_of_a_missing_level_give_the_same_model(missing, form):
    features, y = single_paths(20)
    rows = [[name or missing for name in path] for path in y.tolist()]
    if form == "ragged":
        given = [tuple(name for name in path if name) for path in y.tolist()]
    else:
        given = form(rows) if form is not np.array else np.array(rows, dtype=object)
    expected = numeric(partial_paths=True).fit(features, y)
    found = numeric(partial_paths=True).fit(features, given)
    assert np.array_equal(found.predict(features), expected.predict(features))
    assert found.score(features, given) == expected.score(features, y)


def test_integer_labels_are_predicted_as_integers():
    features, y = single_paths()
    codes = {"a": 1, "b": 2, "c": 3, "x": 10, "other": 20, "y": 30, "": 0}
    full = [i for i, path in enumerate(y) if path[1]]
    numbers = np.array([[codes[name] for name in path] for path in y[full]])
    found = numeric().fit(features[full], numbers).predict(features[full])
    assert found.dtype == numbers.dtype
    assert (found == numbers).mean() > 0.95
    mixed = pd.DataFrame({"area": y[:, 0], "code": [codes[name] or None for name in y[:, 1]]}).astype(
        {"code": "Int64"}
    )
    found = numeric(partial_paths=True).fit(features, mixed).predict(features)
    assert {type(cell) for cell in found[:, 1]} == {int, str}
    assert set(found[:, 1]) == {10, 20, 30, ""}


def test_predictions_of_several_paths_have_three_dimensions():
    features, docs = several_paths()
    classifier = numeric(partial_paths=True).fit(features, docs)
    assert classifier.label_mode_ == "multi_path"
    found = classifier.predict(features)
    assert found.shape == (len(docs), 2, 2)
    as_sets = [{tuple(n for n in path if n) for path in doc} - {()} for doc in found.tolist()]
    truth = [set(map(tuple, doc)) for doc in docs]
    assert np.mean([a == b for a, b in zip(as_sets, truth)]) == classifier.score(features, docs) > 0.9
    wide = padded(docs, 3)
    again = numeric(partial_paths=True).fit(features, wide)
    assert again.predict(features).shape == wide.shape
    assert np.array_equal(again.predict(features)[:, :2], found)
    assert classifier.score(features, wide) == classifier.score(features, docs)
    probabilities = classifier.predict_proba(features)
    assert violation_rates(probabilities > 0.5, classifier.taxonomy_, scores=probabilities)["hvr_score"] == 0.0


def test_threshold_and_decoder_can_be_changed_after_fitting():
    features, docs = several_paths()
    classifier = numeric(partial_paths=True).fit(features, docs)
    assert (classifier.set_params(threshold=1.0).predict(features) == "").all()
    assert classifier.set_params(threshold=0.0).predict(features).shape == (len(docs), 3, 2)  # all three leaves
    expected_f1 = classifier.set_params(threshold=None, decode="expected_f1").predict(features)
    assert (expected_f1 != "").any(axis=(1, 2)).all()  # at least one label, even if all are improbable
    assert classifier.score(features, docs) > 0.7
    with pytest.raises(ValueError, match="decode must be one of"):
        classifier.set_params(decode="path").predict(features)
    features, y = single_paths()
    single = numeric(partial_paths=True).fit(features, y)
    assert (single.set_params(threshold=1.0).predict(features) == "").all()
    assert single.set_params(threshold=None, decode="top_down").score(features, y) > 0.9


def test_single_path_labels_can_be_fitted_with_label_mode_multi_path():
    features, y = single_paths()
    classifier = numeric(partial_paths=True, label_mode="multi_path").fit(features, y)
    assert classifier.predict(features).shape == (len(y), 1, 2)
    assert classifier.score(features, y) > 0.9


def test_predictions_on_a_dag_list_all_paths_of_a_node(dag):
    docs = [[["a", "x"]], [["b", "y"]], [["c", "z"]]] * 20
    features = make_features(docs, noise=0.1)
    classifier = numeric(taxonomy=dag, partial_paths=True).fit(features, docs)
    assert classifier.score(features, docs) == 1.0
    found = classifier.predict(features[:3]).tolist()
    assert sorted(found[0][:2]) == [["a", "x", ""], ["b", "x", ""]]
    assert sorted(path for path in found[2] if any(path)) == [["a", "x", "z"], ["b", "x", "z"], ["c", "z", ""]]
    with pytest.raises(ValueError, match="single_path needs a forest"):
        numeric(taxonomy=dag, label_mode="single_path", partial_paths=True).fit(features, docs)


def test_one_dimensional_labels_can_be_nodes_of_a_taxonomy(ragged):
    labels = np.array(["a11", "a12", "a2", "b1", "b2", "c"] * 14)
    paths = [[tuple(ragged.paths(ragged.index(label))[0])] for label in labels]
    features = make_features(paths)
    classifier = numeric(taxonomy=ragged).fit(features, labels)
    assert classifier.classes_.tolist() == ["a11", "a12", "a2", "b1", "b2", "c"]
    probabilities = classifier.predict_proba(features)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    found = classifier.predict(features)
    assert np.array_equal(classifier.classes_[probabilities.argmax(axis=1)], found)
    assert (found == labels).mean() == classifier.score(features, labels) > 0.9
    # Fitting whole paths gives the same model.
    whole = numeric(taxonomy=ragged).fit(features, [path for (path,) in paths])
    assert [path[-1] for path in (list(filter(None, row)) for row in whole.predict(features))] == found.tolist()
    with pytest.raises(ValueError, match="ends at an inner node"):
        numeric(taxonomy=ragged).fit(features, np.where(labels == "a2", "a1", labels))
    partial = numeric(taxonomy=ragged, partial_paths=True).fit(features, np.where(labels == "a2", "a", labels))
    assert partial.classes_.tolist() == sorted(ragged.labels)
    assert "a" in partial.predict(features)


def test_score_counts_unknown_labels_as_wrong():
    features, y = single_paths(40)
    classifier = numeric(partial_paths=True).fit(features, y)
    changed = y.copy()
    changed[:10] = ["new", "one"]
    right = (classifier.predict(features) == y).all(axis=1)
    assert classifier.score(features, changed) == right[10:].sum() / 40


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([["a", "x"]] * 3 + [["", "x"]], r"y\[3\]: column 'level 0' is empty, but the deeper 'level 1' is not"),
        ([["a", "x"]] * 3 + [["a", 0.5]], r"y\[3\]: a label must be a string or a whole number, got 0.5"),
        ([["a", "x"]] * 3 + [["", ""]], r"y\[3\]: single_path needs one path a document, got no label"),
        ([["a", "x"]] * 3 + [["a", ""]], r"y\[3\]: the path to 'a' ends at an inner node \(partial_paths=True"),
        ([["a", "x"]] * 3 + ["a"], r"y\[3\]: a path must be a sequence of names, got 'a'"),
        ([["a", ["x"]]] * 4, r"y\[0\]: a path must be a sequence of names, got 'a' in \['a', \['x'\]\]"),
        ([["a", {"x"}]] * 4, r"4 row\(s\) of y cannot be used:\n  y\[0\]: unhashable"),
        ([["a"], [["a"]], [["b"]], [["b"]]], r"y\[0\]: a path must be a sequence of names, got 'a' in \['a'\]"),
        ([[0, 1], [1, 0]] * 2, "y is a matrix of 0 and 1"),
        (np.eye(4, dtype=bool), "y is a matrix of 0 and 1"),
        (np.eye(4, dtype=int), "y is a matrix of 0 and 1"),
        (["a > x", "a > y", "b", "c"], r"'a > x' looks like a path.*label.split"),
        (np.zeros((2, 2, 2, 2)), "4 dimension"),
        ([["a", "x"]] * 3, "inconsistent numbers of samples"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        numeric().fit(np.random.default_rng(0).normal(size=(4, 3)), y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": 0}, 'C must be "auto" or a number above 0, got 0'),
        ({"label_mode": "tree"}, "label_mode must be"),
        ({"head": "conditional_sigmoid"}, "does not fit label_mode='single_path'"),
        ({"decode": "raw"}, "decode must be one of .* got 'raw'"),
        ({"freeze_encoder": False}, "encoder=None has none"),
        ({"prototype_anchor": "label_text"}, "needs an encoder"),
        ({"taxonomy": [["a"]]}, "taxonomy must be a Taxonomy"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie between"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"taxonomy": Taxonomy.from_paths([["b"]])}, r"y\[0\]: Unknown label 'a'"),
        ({"encoder": 3}, "encoder must be a name"),
        ({"model_kwargs": {"head": "independent"}}, r"model_kwargs holds \['head'\], which are parameters"),
        ({"model_kwargs": {"poling": "cls"}}, r"model_kwargs holds \['poling'\], which are not fields of HcalConfig"),
    ],
)
def test_fit_refuses_invalid_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        numeric(**parameters).fit(np.eye(4), [["a", "x"], ["a", "y"]] * 2)


@pytest.mark.parametrize("parameters", [{"threshold": 0.5}, {"label_mode": "multi_path"}])
def test_threshold_and_multi_path_are_refused_with_one_dimensional_labels(parameters):
    with pytest.raises(ValueError, match=r"y is 1-d|a 1-d y has no place for"):
        numeric(**parameters).fit(np.eye(4), ["a", "b", "a", "b"])


# ---- Features ----


def test_sparse_text_and_wide_features_are_refused_with_a_suggestion(monkeypatch):
    words = ["stars and atoms", "poems and novels"] * 6
    y = [["science", "physics"], ["arts", "writing"]] * 6
    sparse = TfidfVectorizer().fit_transform(words)
    with pytest.raises(TypeError, match=r"sparse.*TruncatedSVD"):
        numeric().fit(sparse, y)
    with pytest.raises(ValueError, match="got the text 'stars and atoms': give encoder"):
        numeric().fit(words, y)
    steps = make_pipeline(TfidfVectorizer(), TruncatedSVD(2), numeric())
    assert steps.fit(words, y).score(words, y) == 1.0
    monkeypatch.setattr("hcal_hf.training.feature_model.MAX_FEATURES", 4)
    with pytest.raises(ValueError, match="X has 5 features, more than 4"):
        numeric().fit(sparse.toarray(), y)
    # A smaller projection_dim allows more features.
    assert numeric(model_kwargs={"projection_dim": 3}).fit(sparse.toarray(), y).model_.projection.out_features == 3


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_predictions_do_not_depend_on_the_scale_of_the_features(scale):
    features, y = single_paths(20)
    expected = numeric(partial_paths=True).fit(features, y).predict_proba(features)
    found = numeric(partial_paths=True).fit(features * scale, y).predict_proba(features * scale)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_fit_intercept_separates_features_that_differ_only_in_length():
    features = np.array([[1.0, 1.0], [5.0, 5.0]] * 10)
    y = [["near", "by"], ["far", "off"]] * 10
    assert numeric(C=1000.0).fit(features, y).score(features, y) == 1.0
    without = numeric(C=1000.0, fit_intercept=False).fit(features, y)
    assert without.model_.projection.in_features == 2
    assert without.score(features, y) == 0.5


def test_score_function_cosine_is_trained_in_batches():
    features, y = single_paths()
    classifier = numeric(
        score_function="cosine",
        partial_paths=True,
        num_train_epochs=30,
        device="cpu",
        training_kwargs={"max_steps": 40},
    ).fit(features, y)
    assert classifier.C_ is None
    assert classifier.score(features, y) > 0.9


# ---- Texts ----


def test_texts_are_classified_with_a_frozen_encoder(text_classifier, texts, encoder_dir):
    words, y = texts
    assert text_classifier.score(words, y) > 0.9
    assert text_classifier.predict(words).shape == y.shape
    config = text_classifier.model_.config
    assert (config.score_function, config.prototype_anchor) == ("linear", "label_text")
    expected = HcalForSequenceClassification.from_encoder(encoder_dir, text_classifier.taxonomy_).encoder.state_dict()
    for name, value in text_classifier.model_.encoder.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not hasattr(text_classifier, "n_features_in_")


@pytest.mark.parametrize("form", [tuple, np.array, pd.Series, lambda texts: pd.DataFrame({"text": texts})])
def test_texts_are_accepted_in_any_container(text_classifier, texts, form):
    words = texts[0][:5]
    assert np.array_equal(text_classifier.predict(form(words)), text_classifier.predict(words))


def test_pickled_and_saved_models_predict_the_same(text_classifier, texts, tmp_path):
    words = texts[0][:7]
    expected = text_classifier.predict(words)
    copied = pickle.loads(pickle.dumps(text_classifier))
    assert np.array_equal(copied.predict_proba(words), text_classifier.predict_proba(words))
    text_classifier.model_.save_pretrained(tmp_path)
    text_classifier.tokenizer_.save_pretrained(tmp_path)
    pipe = pipeline("hierarchical-text-classification", model=str(tmp_path), device="cpu")
    assert [labels[-1]["path"] for labels in pipe(words)] == expected.tolist()


def test_grid_search_over_texts_caches_the_features(encoder_dir, texts, tmp_path, monkeypatch):
    words, y = texts
    steps = make_pipeline(
        FunctionTransformer(np.char.lower),
        HcalClassifier(encoder_dir, device="cpu", prototype_anchor=None, feature_cache=str(tmp_path), random_state=0),
    )
    search = GridSearchCV(steps, {"hcalclassifier__C": [1e-3, 1000.0]}, cv=2).fit(np.char.upper(words), y)
    assert search.best_params_ == {"hcalclassifier__C": 1000.0}
    # Two folds, which serve as training and test data of each other, and all documents.
    assert len(list(tmp_path.iterdir())) == 3


def test_an_encoder_that_is_not_frozen_is_trained(encoder_dir, texts, capfd):
    words, y = texts
    classifier = HcalClassifier(
        encoder_dir, freeze_encoder=False, num_train_epochs=10, batch_size=7, learning_rate=1e-2, random_state=0,
        device="cpu", model_kwargs={"perturbation": 0.0},
    ).fit(words, y)  # fmt: skip
    assert classifier.score(words, y) > 0.8
    assert classifier.C_ is None
    assert (classifier.model_.config.score_function, classifier.model_.config.perturbation) == ("cosine", 0.0)
    assert not classifier.model_.training
    untrained = HcalForSequenceClassification.from_encoder(encoder_dir, classifier.taxonomy_).encoder.state_dict()
    trained = classifier.model_.encoder.state_dict()
    assert any(not torch.equal(trained[name], value) for name, value in untrained.items())
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("one text", "X must be a sequence of texts, got one text"),
        (
            ["stars", " ", None, "atoms"],
            r"2 row\(s\) of X cannot be used:\n  X\[1\]: the text is empty\n  X\[2\]: a text",
        ),
        (np.eye(3), r"X must hold texts \[N\] or \[N, 1\], got float64 of shape \(3, 3\).*encoder=None"),
        ([], "minimum of 1 is required"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(text_classifier, given, message):
    with pytest.raises(ValueError, match=message):
        text_classifier.predict(given)
