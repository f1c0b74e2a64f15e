"""The estimator tunes temperature and threshold on held-out documents."""

import numpy as np
import pytest

from tests.sklearn.test_classifier import numeric, several_paths, single_paths

# ---- Tuning ----


def test_tuning_fits_temperature_and_threshold_on_held_out_documents():
    features, paths = several_paths(120)
    features = features + np.random.default_rng(1).normal(size=features.shape) * 2
    plain = numeric(partial_paths=True).fit(features, paths)
    tuned = numeric(partial_paths=True, tune="micro_f1").fit(features, paths)
    assert plain.model_.config.thresholds is None
    assert tuned.model_.config.score_temperature != 1.0
    (threshold,) = set(tuned.model_.config.thresholds)
    probabilities = tuned.predict_proba(features)
    np.testing.assert_array_equal(tuned._predict_sets(features), probabilities >= np.float32(threshold))
    # A user's threshold replaces the tuned one, and decode="expected_f1" ignores it.
    assert not np.array_equal(tuned.set_params(threshold=0.99)._predict_sets(features), probabilities >= threshold)
    tuned.set_params(threshold=None, decode="expected_f1").predict(features)


def test_tuning_of_single_paths_and_of_heads_trained_in_batches():
    features, paths = single_paths(80)
    features = features + np.random.default_rng(1).normal(size=features.shape) * 2
    solved = numeric(partial_paths=True, tune="micro_f1", C=4.0).fit(features, paths)
    assert (solved.C_, solved.model_.config.thresholds) == (4.0, None)
    batches = {"score_function": "cosine", "num_train_epochs": 1, "head_learning_rate": 0.1}
    trained = numeric(partial_paths=True, tune="macro_f1", validation_fraction=0.3, **batches).fit(features, paths)
    assert trained.model_.config.score_temperature != 1.0
    with pytest.raises(ValueError, match="tune must be None or one of micro_f1, macro_f1, got 'f1'"):
        numeric(tune="f1").fit(features, paths)
