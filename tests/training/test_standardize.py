"""Features in a narrow cone are centred and scaled by the projection."""

import pytest
import torch

from hcal_hf import HcalForSequenceClassification, Taxonomy, fit_head, standardize_features
from hcal_hf.training.standardize import lies_in_narrow_cone
from tests.training.test_solver import SIZE, make_documents, make_model

SHIFT = 60.0


@pytest.fixture
def taxonomy():
    return Taxonomy.from_paths([["a", "b"], ["a", "c"], ["d", "e"], ["d", "f"]], identity="name")


def cone(states):
    """Adds the same large vector to all states, so that their cosines are almost 1."""
    return states + SHIFT * torch.ones(states.shape[1])


@pytest.mark.parametrize(("shift", "expected"), [(False, False), (True, True)])
def test_narrow_cones_are_recognised(taxonomy, shift, expected):
    states, _ = make_documents(taxonomy, 200, seed=1)
    assert lies_in_narrow_cone(cone(states) if shift else states) == expected


def accuracy(taxonomy, states, labels, standardize, anchor=None):
    model = make_model(taxonomy, label_mode="single_path", partial_paths=False, prototype_anchor=anchor)
    half = len(states) // 2
    if standardize:
        standardize_features(model, states[:half])
    fit_head(model, states[:half], labels[:half], strength=4.0)
    with torch.no_grad():
        logits = model.eval()(pooled_states=states[half:]).logits
    leaves = torch.from_numpy(taxonomy.is_leaf)
    return float((logits[:, leaves].argmax(1) == labels[half:][:, leaves].argmax(1)).float().mean())


def test_a_common_vector_costs_accuracy_only_without_centring(taxonomy):
    states, labels = make_documents(taxonomy, 1000, seed=1, single_path=True)
    # The mean of the documents is 0, up to the sampling error.
    reference = accuracy(taxonomy, states - states[:500].mean(dim=0), labels, standardize=True)
    assert accuracy(taxonomy, cone(states), labels, standardize=True) >= reference - 0.005
    assert accuracy(taxonomy, cone(states), labels, standardize=False) < reference - 0.03


def test_the_features_do_not_depend_on_the_origin_and_the_scale(taxonomy):
    states, _ = make_documents(taxonomy, 100, seed=1)
    found = []
    for transformed in (states, cone(states) * 1000):
        model = make_model(taxonomy).eval()
        standardize_features(model, transformed)
        with torch.no_grad():
            projected = model.projection(transformed)
            found.append(model(pooled_states=transformed).features)
        torch.testing.assert_close(projected.mean(dim=0), torch.zeros(SIZE), rtol=0, atol=1e-2)
        torch.testing.assert_close(projected.square().sum(dim=1).mean(), torch.tensor(1.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-3)


def test_mean_and_scale_are_saved_with_the_model(taxonomy, tmp_path):
    states, _ = make_documents(taxonomy, 100, seed=1)
    model = make_model(taxonomy).eval()
    standardize_features(model, cone(states))
    model.save_pretrained(tmp_path)
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(pooled_states=cone(states)).features
        torch.testing.assert_close(loaded(pooled_states=cone(states)).features, expected)


@pytest.mark.parametrize("shape", [(3, SIZE + 1), (0, SIZE), (SIZE,)])
def test_states_of_another_shape_are_refused(taxonomy, shape):
    with pytest.raises(ValueError, match=rf"must have the shape \[N, {SIZE}\]"):
        standardize_features(make_model(taxonomy), torch.zeros(shape))
