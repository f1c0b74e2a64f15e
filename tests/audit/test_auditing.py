"""Folds, out-of-fold probabilities, audits of tables, and the recovery of hidden annotations."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from hcal_hf import (
    Annotations,
    HcalTrainingArguments,
    Taxonomy,
    audit_features,
    audit_labels,
    audit_recovery,
    fit_head,
    hide_annotations,
)
from hcal_hf.audit.folds import draw_folds, frozen_out_of_fold
from hcal_hf.audit.recovery import average_precision, recovery_scores
from hcal_hf.data.texts import group_equal_texts
from hcal_hf.training.feature_model import feature_model

TAXONOMY = Taxonomy.from_paths([["A", "a1"], ["A", "a2"], ["B", "b1"], ["B", "b2"]])
LEAVES = np.flatnonzero(TAXONOMY.is_leaf)


def separable(documents=200, noise=0.3, seed=0):
    """Returns features [N, 6] and one leaf per document that they tell."""
    rng = np.random.default_rng(seed)
    leaves = LEAVES[rng.integers(4, size=documents)]
    features = np.eye(6)[leaves] + noise * rng.normal(size=(documents, 6))
    return features.astype(np.float32), leaves


def test_equal_texts_share_a_fold_and_folds_have_equal_sizes():
    texts = [f"text {i % 37}" for i in range(90)] + ["same "] * 10 + [" same"] * 10
    groups = group_equal_texts(texts)
    folds = draw_folds(groups, 5, seed=1)
    for group in np.unique(groups):
        assert len(set(folds[groups == group])) == 1
    sizes = np.bincount(folds)
    assert len(sizes) == 5
    assert sizes.max() - sizes.min() <= 3
    assert (draw_folds(groups, 5, seed=1) == folds).all()
    assert (draw_folds(groups, 5, seed=2) != folds).any()


@pytest.mark.parametrize(("folds", "message"), [(1, "folds must be at least 2"), (4, "more than the 3 different")])
def test_impossible_numbers_of_folds_are_refused(folds, message):
    with pytest.raises(ValueError, match=message):
        draw_folds(np.array([0, 1, 1, 2]), folds)


def test_each_document_is_scored_by_a_model_that_has_not_seen_it():
    """The probabilities of a fold are those of a head that is fitted to the other folds."""
    features, leaves = separable(60)
    annotations = Annotations.from_rows(TAXONOMY, [[leaf] for leaf in leaves])
    folds = draw_folds(np.arange(60), 3)
    fields = {"label_mode": "single_path", "score_function": "linear"}
    model = feature_model(TAXONOMY, 6, False, fields)
    states = torch.from_numpy(features)
    found = frozen_out_of_fold(copy.deepcopy(model), states, annotations, folds, strength=4.0)
    for fold in range(3):
        rest, held = folds != fold, folds == fold
        own = copy.deepcopy(model)
        labels = torch.from_numpy(annotations.multi_hot()[rest]).float()
        fit_head(own, states[rest], labels, 4.0)
        own.config.score_temperature = found.temperatures[fold]
        with torch.no_grad():
            expected = torch.sigmoid(own.eval()(pooled_states=states[held]).logits)
        np.testing.assert_allclose(found[np.flatnonzero(held)], expected.numpy(), atol=2e-4)
    assert found.strength == 4.0
    # Changing a document's own label does not change its probabilities, except by the temperature.
    other = Annotations.from_rows(TAXONOMY, [[LEAVES[0] if i == 7 else leaf] for i, leaf in enumerate(leaves)])
    again = frozen_out_of_fold(copy.deepcopy(model), states, other, folds, strength=4.0)
    np.testing.assert_allclose(again[7], found[7], atol=1e-6)


def test_features_find_hidden_labels_and_keep_the_seed():
    features, leaves = separable(300)
    rows = [[leaf] for leaf in leaves]
    for document in (3, 50, 200):
        rows[document] = []
    report = audit_features(features, rows, TAXONOMY, folds=3, top=5, strength=16.0)
    assert set(report.ranking.documents[:3]) == {3, 50, 200}
    assert dict(zip(report.ranking.documents[:3], report.ranking.nodes[:3])) == {d: leaves[d] for d in (3, 50, 200)}
    suspicion = next(report.suspicions())
    assert suspicion["rank"] == 1
    assert suspicion["row"] in (3, 50, 200)
    assert suspicion["missing"] == suspicion["path"].split(" > ")
    assert suspicion["present"] == []
    assert "text" not in suspicion
    again = audit_features(features, rows, TAXONOMY, folds=3, top=5, strength=16.0)
    assert (again.ranking.scores == report.ranking.scores).all()
    labels = report.label_rows()
    assert [row["path"] for row in labels] == [report.path(n) for n in np.argsort(
        -report.ranking.expected_missing, kind="stable") if TAXONOMY.is_leaf[n]]  # fmt: skip
    assert sum(row["documents"] for row in labels) == 297


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones((3, 2))}, "labels of 10 documents, but the features have the shape"),
        ({"features": np.full((10, 2), np.nan)}, "features of document 0 are NaN"),
        ({"labels": [[]] * 10}, "No document has a label"),
        ({"folds": 11}, "folds=11 is more than the 10 different"),
    ],
)
def test_bad_features_are_refused(change, message):
    options = {"features": np.random.default_rng(0).random((10, 2)), "labels": [[2]] * 10, "folds": 2, **change}
    with pytest.raises(ValueError, match=message):
        audit_features(options.pop("features"), options.pop("labels"), TAXONOMY, **options)


TEXTS = {
    "astronomy": "stars and atoms", "quantum": "atoms with energy", "genetics": "genes in cells", "botany": "plants",
    "poetry": "poems of old", "fiction": "new novels", "opera": "drama with music",
}  # fmt: skip


@pytest.fixture
def table(taxonomy):
    path_of = {path[-1]: path for node in range(taxonomy.num_labels) for path in taxonomy.paths(node)}
    rows = [
        {"text": f"{text} {extra}", "labels": [path_of[leaf]]}
        for extra in ("study", "first", "the", "a", "old", "new")
        for leaf, text in TEXTS.items()
    ]
    rows[5]["labels"] = None  # its labels are unknown
    rows[9]["labels"] = [path_of[next(iter(TEXTS))][:1]]  # the path stops too early
    return Dataset.from_list(rows)


def test_a_table_is_audited_with_its_row_numbers(table, encoder_dir):
    report = audit_labels(encoder_dir, table, folds=3, top=10)
    assert report.label_mode == "single_path"
    assert report.partial_paths
    assert len(report.rows) == 41
    assert 5 not in report.rows
    assert {row["row"] for row in report.suspicions()} == {9}  # only this path can be continued
    first = next(report.suspicions())
    assert first["present"] == ["science"]
    assert first["missing"] == first["path"].split(" > ")[1:]
    assert first["text"] == table[9]["text"]
    for row in report.wrong_rows():
        assert row["p_likelier"] > row["p_given"]
        assert row["given"] in [" > ".join(path) for path in table[row["row"]]["labels"]]


@pytest.mark.slow
def test_a_model_gives_its_encoder_and_labels(table, taxonomy, tokenizer, make_model, tmp_path, caplog):
    model = make_model(taxonomy, label_mode="multi_path", partial_paths=True)
    report = audit_labels(
        model, table, tokenizer=tokenizer, folds=3, feature_cache=tmp_path, head="conditional_sigmoid"
    )
    assert report.label_mode == "multi_path"
    assert report.ranking.candidates == sum(
        taxonomy.num_labels - len(report.annotations.row(i)) for i in range(len(report.rows))
    )
    assert "remembers their labels" in caplog.text  # its scores are cosines, so its encoder was trained
    args = HcalTrainingArguments(
        str(tmp_path / "run"), max_steps=2, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    trained = audit_labels(model, table, tokenizer=tokenizer, folds=2, training_args=args, label_mode="multi_path")
    assert trained.out_of_fold.strength is None
    assert np.isfinite(trained.out_of_fold.log_probs).all()
    assert not np.allclose(trained.out_of_fold.log_probs, report.out_of_fold.log_probs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "topic"}, "The table has no column 'topic'"),
        (
            {"dataset": Dataset.from_dict({"text": ["a", "b"], "labels": [None, None]})},
            "No row has a label|no row has",
        ),
        ({"folds": 50}, "folds=50 is more than the 41 different"),
        ({"dataset": "both"}, "the splits test, train"),
        ({"label_frequency": 3}, "label_frequency must be"),
        ({"quantile": 3}, "quantile must lie between"),
        ({"strength": 4.0, "training_args": HcalTrainingArguments("unused", use_cpu=True)}, "leave out training_args"),
    ],
)
def test_bad_tables_are_refused(table, encoder_dir, change, message):
    options = {"dataset": table, "folds": 3, **change}
    dataset = options.pop("dataset")
    dataset = DatasetDict(train=table, test=table) if isinstance(dataset, str) else dataset
    with pytest.raises(ValueError, match=message):
        audit_labels(encoder_dir, dataset, **options)


def test_unknown_options_are_refused_before_the_audit():
    with pytest.raises(TypeError, match="no option 'frequency'"):
        audit_features(np.ones((3, 2)), [[2]] * 3, TAXONOMY, frequency=0.5)


def test_a_model_with_other_labels_is_refused(table, tokenizer, make_model, ragged):
    model = make_model(ragged)
    with pytest.raises(ValueError, match="row\\(s\\) cannot be encoded"):
        audit_labels(model, table, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="differs from that of the model"):
        audit_labels(model, table, TAXONOMY, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="needs its tokenizer"):
        audit_labels(model, table)


# ---- Recovery ----


def test_hidden_annotations_take_what_nothing_else_supports():
    rows = [[TAXONOMY.index("a1"), TAXONOMY.index("a2")], [TAXONOMY.index("b1")], [TAXONOMY.index("A")]]
    labels = Annotations.from_rows(TAXONOMY, rows)
    rest, hidden = hide_annotations(labels, 0.99, partial_paths=True)
    assert len(hidden) == 4
    assert not len(rest.nodes)
    for seed in range(5):
        rest, hidden = hide_annotations(labels, 0.34, seed)
        assert len(hidden) == 1  # one of the three leaves
        gone = {(d, n) for d, n in zip(labels.documents, labels.nodes)} - {
            (d, n) for d, n in zip(rest.documents, rest.nodes)
        }
        assert len(gone) == (2 if TAXONOMY.labels[hidden[0]] == "b1" else 1)
    rest, hidden = hide_annotations(labels, 0.99, mode="deepest", partial_paths=True)
    assert len(hidden) == 3  # "A" is a root
    assert [rest.row(i).tolist() for i in range(3)] == [[0], [1], [0]]


def test_rare_labels_are_hidden_more_often():
    labels = Annotations.from_rows(TAXONOMY, [[LEAVES[0]]] * 180 + [[LEAVES[1]]] * 20)
    shares = {
        mode: np.mean([(hide_annotations(labels, 0.05, seed, mode)[1] == LEAVES[1]).mean() for seed in range(20)])
        for mode in ("uniform", "rare")
    }
    assert shares["uniform"] < 0.2 < 0.4 < shares["rare"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 1.5}, "rate must lie between 0 and 1"),
        ({"rate": 0.001}, "less than one"),
        ({"mode": "worst"}, "mode must be one of uniform, rare, deepest"),
        ({"mode": "deepest"}, "give partial_paths=True"),
    ],
)
def test_impossible_hiding_is_refused(change, message):
    labels = Annotations.from_rows(TAXONOMY, [[leaf] for leaf in LEAVES])
    with pytest.raises(ValueError, match=message):
        hide_annotations(labels, **{"rate": 0.5, **change})


def test_recovery_scores_match_a_slow_loop():
    rng = np.random.default_rng(0)
    hits, depths = rng.random(50) < 0.2, rng.integers(3, size=50)
    precisions = [hits[: i + 1].mean() for i in range(50) if hits[i]]
    assert average_precision(hits) == pytest.approx(np.mean(precisions))
    assert average_precision(np.zeros(3, dtype=bool)) == 0
    scores = recovery_scores(hits, depths, np.array([0, 1, 1, 2]))
    assert scores["precision"] == hits[:4].mean()
    assert scores["recall"] == hits[:4].sum() / hits.sum()
    assert scores["lift"] == pytest.approx(hits[:4].mean() / hits.mean())
    assert scores["by_depth"]["1"]["precision"] == hits[depths == 1][:2].mean()


def test_recovery_finds_hidden_labels_better_than_chance():
    features, leaves = separable(300)
    rows = list(audit_recovery(features, [[leaf] for leaf in leaves], TAXONOMY, seeds=(0, 1), folds=3, strength=16.0))
    assert [row["seed"] for row in rows] == [0] * 7 + [1] * 7
    average = {row["method"]: row["average_precision"] for row in rows if row["seed"] == 1}
    assert average["context"] > 0.9
    assert average["context"] > average["probability"] > average["random"]
    assert average["min"] == average["probability"]  # of a coherent head
    assert all(row["hidden"] == 30 for row in rows)
    with pytest.raises(ValueError, match="methods must be among random, context"):
        next(audit_recovery(features, [[leaf] for leaf in leaves], TAXONOMY, methods=["best"]))
