"""Compares the beam search down the hierarchy with the probabilities of all labels."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hcal_hf import HierarchicalTextClassificationPipeline, PathSearch, Taxonomy
from hcal_hf.path_search import best_of_all, is_searchable
from tests.builders import build_model, random_forest

CONFIGS = {
    "softmax": {"label_mode": "single_path", "head": "conditional_softmax"},
    "softmax, stops": {"label_mode": "single_path", "head": "conditional_softmax", "partial_paths": True},
    "softmax, linear": {"label_mode": "single_path", "head": "conditional_softmax", "score_function": "linear"},
    "softmax, calibrated": {
        "label_mode": "single_path",
        "head": "conditional_softmax",
        "partial_paths": True,
        "score_temperature": 1.7,
    },
    "softmax, anchored": {
        "label_mode": "single_path",
        "head": "conditional_softmax",
        "prototype_anchor": "label_text",
    },
    "softmax, focal": {"head": "conditional_softmax", "partial_paths": True, "classification_loss": "asl"},
    "sigmoid, adaptive asymmetric": {
        "label_mode": "multi_path",
        "head": "conditional_sigmoid",
        "classification_loss": "asl",
        "classification_loss_kwargs": {"gap": -0.2, "gamma_positive": 1},
    },
    "sigmoid": {"label_mode": "multi_path", "head": "conditional_sigmoid"},
    "sigmoid, linear": {"label_mode": "multi_path", "head": "conditional_sigmoid", "score_function": "linear"},
    "sigmoid, partial": {"label_mode": "multi_path", "head": "conditional_sigmoid", "partial_paths": True},
}


def trained(name, labels=60, seed=0):
    """Returns a model with random parameters on a random forest, and pooled states of 9 documents."""
    taxonomy = random_forest(np.random.default_rng(seed), labels)
    model = build_model(taxonomy, **CONFIGS[name]).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in (model.prototypes, model.head):
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.5)
        if model.prototypes.is_anchored:
            model.prototypes.anchors.normal_()
        if hasattr(model.head, "gamma_negative"):
            model.head.gamma_negative.copy_(torch.arange(model.num_levels) / 2)
    return model, torch.randn(9, model.config.encoder_config.hidden_size)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_search_as_wide_as_the_taxonomy_finds_the_most_probable_paths(name):
    model, states = trained(name)
    with torch.no_grad():
        outputs = model(pooled_states=states)
        features = model(pooled_states=states, return_logits=False).features
    assert torch.equal(features, outputs.features)
    expected = best_of_all(outputs.logits, model, 5)
    found = PathSearch(model, width=60)(features, 5)
    assert found.exact.all()
    assert torch.equal(found.nodes, expected.nodes)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-4, rtol=1e-4)


def test_paths_end_at_leaves_or_at_any_node_with_partial_paths():
    model, states = trained("softmax, stops")
    found = PathSearch(model, width=60)(model(pooled_states=states).features, 200)
    ends = found.nodes[0][found.nodes[0] >= 0]
    assert len(ends) == 60  # a path may end at every node
    assert found.log_probs[0].exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    assert (found.log_probs[0, 60:] == -torch.inf).all()
    model, states = trained("softmax")
    found = PathSearch(model, width=60)(model(pooled_states=states).features, 200)
    assert sorted(found.nodes[0][found.nodes[0] >= 0].tolist()) == model.taxonomy.is_leaf.nonzero()[0].tolist()


@pytest.mark.parametrize("name", ["softmax, stops", "sigmoid"])
def test_a_narrow_search_reports_for_which_documents_it_is_exact(name):
    model, states = trained(name, labels=400, seed=3)
    states = states.repeat(20, 1) + torch.randn(180, states.shape[1])
    with torch.no_grad():
        outputs = model(pooled_states=states)
    expected = best_of_all(outputs.logits, model, 4)
    found = PathSearch(model, width=2)(outputs.features, 4)
    same = (found.nodes == expected.nodes).all(dim=1)
    assert 0 < found.exact.sum() < len(states)
    assert same[found.exact].all()
    assert not same.all()
    assert (found.log_probs <= expected.log_probs + 1e-4).all()


def test_unsupported_models_and_arguments_are_refused():
    forest = random_forest(np.random.default_rng(0), 20)
    lookahead = build_model(forest, label_mode="single_path", head="lookahead_softmax")
    assert not is_searchable(lookahead)
    with pytest.raises(ValueError, match="this model has the head 'lookahead_softmax'"):
        PathSearch(lookahead)
    lookahead = build_model(forest, label_mode="multi_path", head="lookahead_sigmoid")
    with pytest.raises(ValueError, match="this model has the head 'lookahead_sigmoid'"):
        PathSearch(lookahead)
    dag = Taxonomy.from_edges([("a", "c"), ("b", "c")])
    with pytest.raises(ValueError, match="labels with several parents"):
        PathSearch(build_model(dag, label_mode="multi_path", head="conditional_sigmoid"))
    model, states = trained("softmax")
    with pytest.raises(ValueError, match="width must be at least 1"):
        PathSearch(model, width=0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        PathSearch(model)(model(pooled_states=states).features, 0)
    with pytest.raises(ValueError, match="gives paths no probability"):
        best_of_all(torch.zeros(1, 20), build_model(forest, label_mode="single_path", head="independent"), 3)


@pytest.mark.parametrize("head", ["conditional_softmax", "lookahead_softmax"])
def test_the_pipeline_returns_the_most_probable_paths_with_num_paths(head, taxonomy, tokenizer):
    model = build_model(taxonomy, label_mode="single_path", head=head).eval()
    pipe = HierarchicalTextClassificationPipeline(model=model, tokenizer=tokenizer)
    texts = ["stars and atoms", "novels"]
    found = pipe(texts, num_paths=3)
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    probabilities = F.sigmoid(logits).masked_fill(torch.from_numpy(~taxonomy.is_leaf), 0)
    for own, row in zip(found, probabilities):
        values, nodes = row.topk(3)
        assert [label["label"] for label in own] == [taxonomy.labels[i] for i in nodes.tolist()]
        assert [label["score"] for label in own] == pytest.approx(values.tolist(), abs=1e-5)
        assert own[0]["path"] == taxonomy.paths(nodes[0].item())[0]
    with pytest.raises(ValueError, match="leave top_k out"):
        pipe(texts, num_paths=3, top_k=2)
    with pytest.raises(ValueError, match="num_paths must be a whole number"):
        pipe(texts, num_paths=0)


def test_the_pipeline_refuses_num_paths_for_an_independent_head(taxonomy, tokenizer):
    model = build_model(taxonomy, label_mode="single_path", head="independent")
    with pytest.raises(ValueError, match="num_paths needs a coherent head"):
        HierarchicalTextClassificationPipeline(model=model, tokenizer=tokenizer, num_paths=2)
