"""The pipeline "hierarchical-text-classification"."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hcal_hf import HierarchicalTextClassificationPipeline, decode, hub

TEXTS = ["stars and atoms", "poems in novels of drama", "a new study of genes with cells and plants"]


@pytest.fixture
def make_pipe(make_model, tokenizer):
    def make(taxonomy, **config):
        model = make_model(taxonomy, **config).train()  # a Trainer leaves the model in training mode
        with torch.no_grad():
            torch.nn.init.normal_(model.prototypes.weight)
        return pipeline("hierarchical-text-classification", model=model, tokenizer=tokenizer, device="cpu")

    return make


def logits_of(pipe, texts):
    with torch.no_grad():
        return pipe.model(**pipe.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits


@pytest.mark.parametrize(
    ("mode", "method"),
    [
        ("single_path", "path"),
        *((mode, m) for mode in ("single_path", "multi_path") for m in (None, "raw", "closure")),
    ],
)
def test_the_output_has_the_decoded_labels_with_scores_depths_and_paths(make_pipe, taxonomy, mode, method):
    pipe = make_pipe(taxonomy, label_mode=mode)
    assert isinstance(pipe, HierarchicalTextClassificationPipeline)
    logits = logits_of(pipe, TEXTS)
    chosen = decode(logits, taxonomy, mode, method)
    found = pipe(TEXTS, decode=method) if method else pipe(TEXTS)
    assert len(found) == 3
    for row, labels in enumerate(found):
        assert [taxonomy.index(item["label"]) for item in labels] == chosen[row].nonzero()[:, 0].tolist()
        for item in labels:
            node = taxonomy.index(item["label"])
            assert set(item) == {"label", "score", "depth", "path"}
            assert item["score"] == pytest.approx(torch.sigmoid(logits[row, node]).item(), abs=1e-5)
            assert item["depth"] == taxonomy.depths[node] == len(item["path"]) - 1
            assert item["path"] == taxonomy.paths(node)[0]


def test_single_path_predictions_form_one_path(make_pipe, taxonomy):
    for labels in make_pipe(taxonomy)(TEXTS):
        assert [item["depth"] for item in labels] == [0, 1, 2]
        assert labels[-1]["path"] == [item["label"] for item in labels]


def test_all_input_forms_and_batch_sizes_give_the_same_predictions(make_pipe, taxonomy):
    pipe = make_pipe(taxonomy)
    one_by_one = [pipe(text) for text in TEXTS]
    table = Dataset.from_dict({"text": TEXTS})
    for found in (
        pipe(TEXTS),
        pipe(TEXTS, batch_size=2),
        list(pipe(text for text in TEXTS)),
        list(pipe(KeyDataset(table, "text"), batch_size=3)),
        pipe([{"text": text} for text in TEXTS]),
    ):
        assert [[item["label"] for item in labels] for labels in found] == [
            [item["label"] for item in labels] for labels in one_by_one
        ]
        for labels, expected in zip(found, one_by_one):
            assert [item["score"] for item in labels] == pytest.approx([item["score"] for item in expected], abs=1e-5)


def test_long_texts_are_truncated_by_default(make_pipe, taxonomy):
    pipe = make_pipe(taxonomy)
    assert pipe("stars " * 100) == pipe("stars " * 16)


def test_texts_are_truncated_to_the_encoder_if_the_tokenizer_has_no_limit(make_pipe, taxonomy, tokenizer):
    pipe = make_pipe(taxonomy)
    pipe.tokenizer = copy.deepcopy(tokenizer)
    pipe.tokenizer.model_max_length = 10**30
    assert pipe.model.max_tokens == 32
    assert pipe("stars " * 100) == pipe("stars " * 32) != pipe("stars " * 31)
    with pytest.raises(ValueError, match="The text has no tokens: ''"):
        pipe("")


def test_threshold_max_depth_and_top_k_select_labels(make_pipe, taxonomy):
    pipe = make_pipe(taxonomy)
    scores = torch.sigmoid(logits_of(pipe, TEXTS[:1]))[0]
    assert [item["depth"] for item in pipe(TEXTS[0], max_depth=1)] == [0, 1]
    assert pipe(TEXTS[0], threshold=1.0) == []
    top = pipe(TEXTS[0], top_k=2)
    assert [item["depth"] for item in top] == [0, 0, 1, 1, 2, 2]
    for depth, level in enumerate(taxonomy.levels):
        expected = scores[level].sort(descending=True).values[:2].tolist()
        assert [item["score"] for item in top if item["depth"] == depth] == pytest.approx(expected, abs=1e-5)
    everything = pipe(TEXTS[0], top_k=100)
    assert len(everything) == taxonomy.num_labels
    some = pipe(TEXTS[0], top_k=100, threshold=0.3)
    assert [i["label"] for i in some] == [i["label"] for i in everything if i["score"] >= 0.3]
    assert 0 < len(some) < len(everything)


def test_labels_with_several_parents_have_all_their_paths(make_pipe, dag):
    pipe = make_pipe(dag, label_mode="multi_path")
    by_label = {item["label"]: item for item in pipe(TEXTS[0], threshold=0.0)}
    assert by_label["z"]["paths"] == [["c", "z"], ["a", "x", "z"], ["b", "x", "z"]]
    assert by_label["z"]["path"] == ["c", "z"]
    assert "paths" not in by_label["y"]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"return_all_scores": True}, TypeError, "no argument 'return_all_scores'; it takes threshold, top_k"),
        ({"top_k": 0}, ValueError, "at least 1"),
        ({"top_k": 2, "decode": "raw"}, ValueError, "give only one"),
        ({"max_depth": -1}, ValueError, "at least 0"),
        ({"threshold": 7}, ValueError, "between 0 and 1"),
        ({"decode": "beam"}, ValueError, "one of raw, closure, prune, path, top_down, expected_f1"),
    ],
)
def test_bad_arguments_are_refused(make_pipe, taxonomy, kwargs, error, message):
    pipe = make_pipe(taxonomy)
    with pytest.raises(error, match=message):
        pipe(TEXTS[0], **kwargs)


def test_inputs_that_are_not_text_are_refused(make_pipe, taxonomy):
    with pytest.raises(ValueError, match="got 3"):
        make_pipe(taxonomy)([3])


def test_the_text_classification_pipeline_returns_the_same_probabilities(make_pipe, taxonomy):
    pipe = make_pipe(taxonomy)
    stock = pipeline("text-classification", model=pipe.model, tokenizer=pipe.tokenizer, device="cpu")
    found = {item["label"]: item["score"] for item in stock(TEXTS[0], top_k=None)}
    expected = {item["label"]: item["score"] for item in pipe(TEXTS[0], top_k=13)}
    assert found == pytest.approx(expected, abs=1e-5)
    assert list(found) == sorted(found, key=found.get, reverse=True)


def test_a_saved_pipeline_loads_and_predicts_the_same(make_pipe, taxonomy, tmp_path):
    pipe = make_pipe(taxonomy)
    pipe.model.save_pretrained(tmp_path)
    pipe.tokenizer.save_pretrained(tmp_path)
    again = pipeline("hierarchical-text-classification", model=str(tmp_path), device="cpu")
    assert again(TEXTS) == pipe(TEXTS)


# ---- Tuned thresholds and risk ----


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_tuned_thresholds_are_the_default_and_are_saved(make_pipe, taxonomy, mode, tmp_path):
    pipe = make_pipe(taxonomy, label_mode=mode)
    logits = logits_of(pipe, TEXTS)
    thresholds = (0.6 + 0.15 * taxonomy.depths).tolist()
    untuned = pipe(TEXTS)
    names = lambda found: [[item["label"] for item in labels] for labels in found]  # noqa: E731

    def expected(method=None, threshold=None):
        sets = decode(logits, taxonomy, mode, method, threshold)
        return [[taxonomy.labels[i] for i in row.nonzero()[:, 0].tolist()] for row in sets]

    pipe.model.config.thresholds = thresholds
    assert names(pipe(TEXTS)) == expected(threshold=thresholds) != names(untuned)
    for method in ("raw", "closure", "prune", "top_down"):
        assert names(pipe(TEXTS, decode=method)) == expected(method, thresholds)
    assert names(pipe(TEXTS, decode="expected_f1")) == expected("expected_f1")
    other = [0.45] * taxonomy.num_labels
    assert names(pipe(TEXTS, threshold=other)) == names(pipe(TEXTS, threshold=0.45)) == expected(threshold=0.45)
    assert len(pipe(TEXTS[0], top_k=100)) == taxonomy.num_labels
    some = pipe(TEXTS[0], top_k=100, threshold=thresholds)
    assert sorted(taxonomy.index(item["label"]) for item in some) == [
        i for i, p in enumerate(torch.sigmoid(logits[0]).tolist()) if p >= thresholds[i]
    ]
    pipe.model.save_pretrained(tmp_path)
    pipe.tokenizer.save_pretrained(tmp_path)
    again = pipeline("hierarchical-text-classification", model=str(tmp_path), device="cpu")
    assert again.model.config.thresholds == thresholds
    assert names(again(TEXTS)) == names(pipe(TEXTS))


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_decode_risk_needs_calibration_and_its_threshold_is_saved(make_pipe, taxonomy, mode, tmp_path):
    pipe = make_pipe(taxonomy, label_mode=mode)
    with pytest.raises(ValueError, match=r"config.risk_threshold is None: run trainer.calibrate_risk"):
        pipe(TEXTS, decode="risk")
    for threshold in (0.4, 2.0):
        pipe.model.config.risk_alpha, pipe.model.config.risk_threshold = 0.1, threshold
        pipe.model.config.thresholds = [0.9] * taxonomy.num_labels  # ignored by decode="risk"
        found = pipe(TEXTS, decode="risk")
        sets = decode(logits_of(pipe, TEXTS), taxonomy, mode, "risk", risk_threshold=threshold)
        for labels, row in zip(found, sets):
            assert [taxonomy.index(item["label"]) for item in labels] == row.nonzero()[:, 0].tolist()
        assert any(found) == (threshold < 1)
        pipe.model.save_pretrained(tmp_path)
        pipe.tokenizer.save_pretrained(tmp_path)
        again = pipeline("hierarchical-text-classification", model=str(tmp_path), device="cpu", decode="risk")
        assert [[item["label"] for item in labels] for labels in again(TEXTS)] == [
            [item["label"] for item in labels] for labels in found
        ]
    with pytest.raises(ValueError, match="leave threshold out"):
        pipe(TEXTS, decode="risk", threshold=0.5)


def test_no_texts_give_no_answers(make_pipe, taxonomy):
    assert make_pipe(taxonomy)([]) == []


def test_the_stock_pipeline_warns_once_that_it_knows_no_hierarchy(make_model, taxonomy, tokenizer, monkeypatch):
    model = make_model(taxonomy)
    warnings = []
    monkeypatch.setattr(hub.logger, "warning_once", warnings.append)
    flat = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    assert flat(TEXTS[0])[0]["label"] in ("science", "arts")  # no label is more probable than its parents
    assert len(warnings) == 1
    assert 'pipeline("hierarchical-text-classification"' in warnings[0]
    warnings.clear()
    pipeline("hierarchical-text-classification", model=model, tokenizer=tokenizer, device="cpu")(TEXTS[0])
    assert warnings == []
