"""Changes of a trained model's labels: what is kept, what changes, and coherence before and after."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

pytest.importorskip("hypothesis")
from hypothesis import assume, given
from hypothesis import strategies as st

from hcal_hf import HcalConfig, HcalForSequenceClassification, Taxonomy, change_taxonomy, diff_taxonomies
from hcal_hf.metrics import violation_rates
from tests.builders import build_model, build_taxonomy, build_tokenizer, random_dag, random_forest, tiny_bert
from tests.data.test_taxonomy_plan import change
from tests.data.test_taxonomy_writer import slow_machines

HEADS = [
    ("independent", "single_path"),
    ("path_softmax", "single_path"),
    ("lookahead_softmax", "single_path"),
    ("conditional_softmax", "single_path"),
    ("independent", "multi_path"),
    ("conditional_sigmoid", "multi_path"),
    ("lookahead_sigmoid", "multi_path"),
]
SOFTMAX = [head for head, mode in HEADS if mode == "single_path" and head != "independent"]
STATES = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))


def random_model(taxonomy, seed=0, **config):
    """Returns a model with random prototypes, anchors, biases, stop scores and thresholds."""
    model = build_model(taxonomy, seed=seed, **config).eval()
    with torch.no_grad():
        for parameter in (*model.prototypes.parameters(), *model.head.parameters()):
            parameter.add_(torch.randn(parameter.shape))
        if model.prototypes.is_anchored:
            model.prototypes.anchors.copy_(torch.randn(model.prototypes.anchors.shape))
            model.prototypes.trained.copy_(torch.rand(len(taxonomy)) < 0.7)
    model.config.thresholds = np.sort(np.random.default_rng(seed).random(len(taxonomy))).tolist()
    return model


@torch.no_grad()
def logits_of(model):
    """Returns the logits [6] of each label."""
    return dict(zip(model.config.labels, model(pooled_states=STATES).logits.T))


def probabilities_of(model):
    return {label: torch.sigmoid(logits) for label, logits in logits_of(model).items()}


def bias_of(model):
    """Returns a copy of the biases [L] of head or prototypes, None without any."""
    biases = [getattr(module, "bias", None) for module in (model.head, model.prototypes)]
    return next((bias.detach().clone() for bias in biases if bias is not None), None)


def apply(model, *lines, tokenizer=None, **options):
    return change_taxonomy(model, [change(line) for line in lines], tokenizer, **options)


def check_coherent(model):
    probabilities = torch.stack(list(probabilities_of(model).values()), dim=1)
    parents, children = torch.from_numpy(model.taxonomy.edges.T.copy())
    assert (probabilities[:, children] <= probabilities[:, parents] + 1e-6).all()
    decisions = [np.flatnonzero(row).tolist() for row in (probabilities >= 0.5).numpy()]
    assert violation_rates(decisions, model.taxonomy)["hvr"] == 0


# ---- Properties of every head, on trees and DAGs ----


@pytest.mark.parametrize(("head", "mode"), HEADS)
@slow_machines
@given(seed=st.integers(0, 10**6))
def test_kept_labels_keep_their_probabilities_and_the_rest_stays_coherent(head, mode, seed):
    rng = np.random.default_rng(seed)
    draw = random_dag if mode == "multi_path" and rng.random() < 0.7 else random_forest
    old, new = (draw(rng, int(rng.integers(1, 12))) for _ in range(2))
    options = {
        "partial_paths": bool(rng.random() < 0.5),
        "score_function": str(rng.choice(["linear", "cosine"])),
        "prototype_anchor": "label_text" if rng.random() < 0.5 else None,
    }
    model = random_model(old, seed, head=head, label_mode=mode, **options)
    before = logits_of(model)
    report = change_taxonomy(model, diff_taxonomies(old, new), build_tokenizer())
    assert set(model.config.labels) == set(new.labels)
    after = logits_of(model)
    for label, now in report.labels.items():
        if now in report.kept:
            torch.testing.assert_close(after[now], before[label], atol=1e-4, rtol=1e-4)
    assert sorted([*report.kept, *report.changed, *report.to_train]) == sorted(model.config.labels)
    HcalConfig.from_dict(model.config.to_dict())  # checks thresholds, label maps and the label mode
    if head != "independent":
        check_coherent(model)


@slow_machines
@given(seed=st.integers(0, 10**6))
def test_changed_labels_are_not_listed_without_need(seed):
    """Most labels of which the report says that their probability changes do change."""
    rng = np.random.default_rng(seed)
    head, mode = HEADS[seed % len(HEADS)]
    old = random_forest(rng, 12)
    model = random_model(old, seed, head=head, label_mode=mode)
    before = logits_of(model)
    leaf = old.labels[int(np.flatnonzero(old.is_leaf)[0])]
    assume((before[leaf] > -7).all())  # else the others hardly notice that it is gone
    report = apply(model, f"remove: {leaf}")
    after = logits_of(model)
    same = [label for label in report.changed if torch.allclose(after[label], before[label], atol=1e-6)]
    assert len(same) <= len(report.changed) / 4


@pytest.mark.parametrize(("head", "mode"), HEADS)
def test_mapped_parameters_equal_those_of_a_slow_loop(head, mode):
    """Renames, moves to another depth, merges and removes, and compares every stored value label by label."""
    old = Taxonomy.from_paths(
        [["A", "x", "x1"], ["A", "x", "x2"], ["A", "y", "y1"], ["B", "z", "z1"], ["B", "w"], ["C", "v"], ["C", "u"]]
    )
    for score_function in ("cosine", "linear"):
        for anchor in (None, "label_text"):
            options = {"score_function": score_function, "prototype_anchor": anchor, "partial_paths": True}
            model = random_model(old, 1, head=head, label_mode=mode, **options)
            with torch.no_grad():
                vectors = model.prototypes.vectors(model.projection).clone()
            biases = bias_of(model)
            stop, thresholds = getattr(model.head, "stop", None), model.config.thresholds
            inner = np.flatnonzero(~old.is_leaf).tolist()
            apply(model, "rename: C -> D", "move: B > w -> A > x > w", "merge: A > x -> A > xy", "merge: A > y -> A > xy",
                  "merge: v -> D > u", "remove: z1", documents={"x": 3, "y": 1, "v": 5, "u": 0})  # fmt: skip
            parts = {"xy": {"x": 0.75, "y": 0.25}, "u": {"v": 1.0, "u": 0.0}}
            new = model.taxonomy
            assert set(new.labels) == {"A", "B", "D", "xy", "z", "u", "x1", "x2", "y1", "w"}
            with torch.no_grad():
                found = model.prototypes.vectors(model.projection)
            for i, label in enumerate(new.labels):
                shares = parts.get(label, {"C" if label == "D" else label: 1.0})
                of_old = [(old.index(name), share) for name, share in shares.items()]
                expected = sum(vectors[j] * share for j, share in of_old)
                if score_function == "cosine" and label in parts:
                    mean = F.normalize(sum(F.normalize(vectors[j], dim=0) * share for j, share in of_old), dim=0)
                    expected = mean * sum(vectors[j].norm() * share for j, share in of_old)
                torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-4, msg=label)
                if biases is not None:
                    assert bias_of(model)[i].item() == pytest.approx(
                        sum(biases[j].item() * share for j, share in of_old), abs=1e-6
                    )
                if stop is not None and not new.is_leaf[i]:
                    position = np.flatnonzero(~new.is_leaf).tolist().index(i)
                    value = sum(stop[inner.index(j)].item() * share for j, share in of_old if j in inner)
                    assert model.head.stop[position].item() == pytest.approx(value, abs=1e-6)
                own = sum(thresholds[j] * share for j, share in of_old)
                above = [model.config.thresholds[parent] for parent in new.parent_lists[i]]
                assert model.config.thresholds[i] == pytest.approx(max([own, *above]))


# ---- Single actions ----


@pytest.mark.parametrize(("head", "mode"), HEADS)
@pytest.mark.parametrize("anchor", [None, "label_text"])
def test_a_rename_keeps_every_bit(head, mode, anchor):
    model = random_model(build_taxonomy(), head=head, label_mode=mode, prototype_anchor=anchor)
    model.config.risk_alpha, model.config.risk_threshold, model.config.score_temperature = 0.1, 0.5, 1.3
    before, thresholds = logits_of(model), model.config.thresholds
    report = apply(model, "rename: arts -> culture", "rename: opera -> arts > stage > musicals")
    after = logits_of(model)
    assert list(after) == [{"arts": "culture", "opera": "musicals"}.get(label, label) for label in before]
    assert all(torch.equal(after[report.labels[label]], value) for label, value in before.items())
    assert (report.renamed, report.kept) == (["culture", "musicals"], list(after))
    assert (model.config.thresholds, model.config.risk_threshold) == (thresholds, 0.5)
    assert model.config.id2label[0] == "science"
    assert model.config.label2id["culture"] == 1
    assert report.to_repeat == []


@pytest.mark.parametrize("head", ["independent", "conditional_sigmoid"])
def test_removing_a_leaf_under_sigmoids_changes_nothing_else(head):
    model = random_model(build_taxonomy(), head=head, label_mode="multi_path")
    before = logits_of(model)
    report = apply(model, "remove: quantum")
    after = logits_of(model)
    assert set(before) - set(after) == {"quantum"} == set(report.removed)
    assert all(torch.equal(after[label], before[label]) for label in after)
    assert len(report.kept) == 12


def test_removing_a_leaf_under_a_softmax_renormalises_its_siblings():
    model = random_model(
        Taxonomy.from_paths([["A", "x"], ["A", "y"], ["A", "z"], ["B", "w"], ["B", "v"]]), head="conditional_softmax"
    )
    model.config.risk_alpha, model.config.risk_threshold, model.config.score_temperature = 0.1, 0.5, 1.3
    before = probabilities_of(model)
    report = apply(model, "remove: z")
    after = probabilities_of(model)
    for label in ("x", "y"):
        torch.testing.assert_close(after[label], before[label] * before["A"] / (before["A"] - before["z"]))
    assert report.kept == ["A", "B", "w", "v"]
    assert report.changed == dict.fromkeys(("x", "y"), "competes with other labels, or with changed ones")
    assert (model.config.risk_alpha, model.config.score_temperature) == (None, 1.3)
    assert [line.split(".")[0] for line in report.to_repeat] == [
        "The risk calibration was dropped", "The temperature is unchanged", "Thresholds are unchanged where possible"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "mode"), [("conditional_softmax", "single_path"), ("conditional_sigmoid", "multi_path")]
)
@pytest.mark.parametrize("score_function", ["cosine", "linear"])
def test_a_moved_subtree_keeps_its_conditional_probabilities(head, mode, score_function):
    """Also at another depth, where the anchors of linear prototypes have another weight."""
    model = random_model(
        build_taxonomy(), head=head, label_mode=mode, score_function=score_function, prototype_anchor="label_text"
    )
    before = probabilities_of(model)
    report = apply(model, "move: physics -> arts > stage > physics")
    after = probabilities_of(model)
    assert model.taxonomy.index_path(["arts", "stage", "physics", "quantum"]) == model.config.labels.index("quantum")
    for label in ("astronomy", "quantum"):
        torch.testing.assert_close(
            after[label] / after["physics"], before[label] / before["physics"], atol=1e-4, rtol=1e-3
        )
    assert report.moved == ["physics"]
    assert "physics" in report.changed
    assert {"science", "arts", "poetry"} <= set(report.kept)


def test_a_label_of_a_dag_loses_and_gains_parents(dag):
    model = random_model(dag, head="conditional_sigmoid", label_mode="multi_path")
    before = logits_of(model)
    report = apply(model, "remove_parent: b > x", "add_parent: y -> a > y")
    assert {(model.config.labels[p], model.config.labels[c]) for p, c in model.config.edges} == {
        ("a", "x"), ("b", "y"), ("a", "y"), ("x", "z"), ("c", "z")
    }  # fmt: skip
    after = logits_of(model)
    assert set(report.kept) == {"a", "b", "c"}
    assert all(torch.equal(after[label], before[label]) for label in report.kept)
    assert report.changed["z"] == "the probability of a label above it has changed"
    check_coherent(model)


def test_merging_two_leaves_gives_the_mean_direction():
    """The values can be computed manually: the mean of the directions (1, 0) and (0, 1) is at 45 degrees."""
    taxonomy = Taxonomy.from_paths([["x"], ["y"], ["z"]])
    model = build_model(taxonomy, projection_dim=2, prototype_temperature=1.0, head="conditional_softmax").eval()
    with torch.no_grad():
        model.projection.weight.copy_(torch.eye(2, 16))
        model.prototypes.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 4.0], [-1.0, 0.0]]))
    model.config.thresholds = [0.2, 0.6, 0.3]
    report = apply(model, "merge: x -> xy", "merge: y -> xy")
    assert sorted(model.config.labels) == ["xy", "z"]
    at = model.config.labels.index("xy")
    half = 2**0.5 / 2
    torch.testing.assert_close(model.prototypes.weight[at].detach(), torch.tensor([3 * half, 3 * half]))
    assert model.config.thresholds[at] == pytest.approx(0.4)
    states = torch.zeros(1, 16)
    states[0, 0] = 5.0
    probability = torch.sigmoid(model(pooled_states=states).logits)[0, at].item()
    assert probability == pytest.approx(1 / (1 + np.exp(-1 - half)), abs=1e-5)  # cosines sqrt(1/2) and -1
    assert report.merged == ["xy"]
    assert report.labels == {"x": "xy", "y": "xy", "z": "z"}
    assert report.changed["xy"].startswith("merged")


def test_a_leaf_that_is_merged_into_an_inner_label_does_not_change_its_stop_score():
    model = random_model(Taxonomy.from_paths([["A", "x"], ["A", "y"], ["B"]]), partial_paths=True)
    stop = model.head.stop.detach().clone()
    apply(model, "merge: B -> A")
    assert model.config.labels == ["A", "x", "y"]
    assert torch.equal(model.head.stop, stop)


def test_labels_that_must_be_trained_again_are_listed():
    model = random_model(build_taxonomy(), partial_paths=True)
    report = apply(
        model, "add: opera > comic", "remove: botany", "remove: genetics", "add: sports", tokenizer=build_tokenizer()
    )
    assert report.to_train == {
        "sports": "added, but the scores of this model do not use label text",
        "comic": "added, but the scores of this model do not use label text",
        "opera": "has labels below it for the first time: its documents need one of them",
        "biology": "all labels below it are gone: its documents now end here",
    }
    assert sorted(report.added) == ["comic", "sports"]
    text = str(report)
    assert "13 labels before and 13 after: 2 added, 2 removed, 0 renamed, 0 moved, 0 merged." in text
    assert "  all labels below it are gone: its documents now end here (1): biology" in text
    assert report.to_dict()["labels"]["botany"] is None
    with pytest.raises(ValueError, match="needs the tokenizer of the encoder"):
        apply(model, "add: games")


# ---- Label text and names ----


def test_label_text_stays_until_labels_are_embedded_again(encoder_dir, tokenizer):
    def fresh():
        torch.manual_seed(0)
        return HcalForSequenceClassification.from_encoder(
            encoder_dir, build_taxonomy(), prototype_anchor="label_text", descriptions={"opera": "music and drama"}
        ).eval()  # fmt: skip

    lines = ["rename: arts -> drama", "rename: opera -> music", "add: science > old"]
    model = fresh()
    anchors = dict(zip(model.config.labels, model.prototypes.anchors.clone()))
    report = apply(model, *lines, tokenizer=tokenizer)
    texts = dict(zip(model.config.labels, model.config.label_texts))
    assert (texts["drama"], texts["music"], texts["writing"]) == ("arts", "music and drama", "arts: writing")
    assert texts["old"] == "science: old"
    assert torch.equal(model.prototypes.anchors[model.config.labels.index("drama")], anchors["arts"])
    assert report.changed["old"] == "added from the label text, without training"
    assert any("keep their old label text" in note for note in report.notes)
    assert not model.prototypes.trained[model.config.labels.index("old")]

    model = fresh()
    report = apply(model, *lines, tokenizer=tokenizer, reembed=True)
    texts = dict(zip(model.config.labels, model.config.label_texts))
    assert (texts["drama"], texts["music"], texts["writing"]) == ("drama", "music and drama", "drama: writing")
    assert report.changed["drama"] == "the prototype starts from the new label text"
    assert report.notes == []
    again = model.prototypes.anchors.clone()
    model.embed_labels(tokenizer)
    torch.testing.assert_close(model.prototypes.anchors, again)
    with pytest.raises(ValueError, match="reembed=True needs prototypes that are anchored"):
        apply(random_model(build_taxonomy()), "rename: arts -> drama", tokenizer=tokenizer, reembed=True)


def test_names_of_codes_follow_their_labels():
    taxonomy = Taxonomy.from_paths([["1", "11"], ["1", "12"], ["2", "21"]])
    model = build_model(taxonomy, label_names=["Farming", "Mining", "Crops", "12", "Coal"])
    changes = [change("rename: 11 -> 19"), change("rename: 12 -> 18"), change("add: 2 > 22"), change("remove: 21")]
    changes[2].name = "Ores"
    change_taxonomy(model, changes, build_tokenizer())
    assert dict(zip(model.config.labels, model.config.label_names)) == {
        "1": "Farming", "2": "Mining", "19": "Crops", "18": "18", "22": "Ores"
    }  # fmt: skip


# ---- Saving and errors ----


@pytest.mark.parametrize("score_function", ["cosine", "linear"])
def test_a_changed_model_saves_and_loads(tmp_path, score_function):
    model = random_model(build_taxonomy(), score_function=score_function, prototype_anchor="label_text")
    apply(model, "move: physics -> arts > stage > physics", "merge: poetry -> fiction", "remove: botany")
    before = logits_of(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    after = logits_of(loaded)
    for label, logits in before.items():
        torch.testing.assert_close(after[label], logits, atol=1e-5, rtol=1e-5)
    assert loaded.taxonomy == model.taxonomy


def test_dtypes_frozen_parameters_and_the_training_mode_are_kept():
    model = random_model(build_taxonomy(), label_mode="multi_path").to(torch.bfloat16).train()
    model.prototypes.requires_grad_(False)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    apply(model, "merge: poetry -> fiction", "remove: botany")
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == dtypes
    assert not any(parameter.requires_grad for parameter in model.prototypes.parameters())
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    assert model.prototypes.training


def test_a_model_is_unchanged_if_one_change_is_not_possible():
    model = random_model(build_taxonomy())
    config, before = model.config, logits_of(model)
    with pytest.raises(ValueError, match=r"Change 2 \(remove\): Unknown label 'fizzics'"):
        apply(model, "rename: arts -> culture", "remove: fizzics")
    with pytest.raises(ValueError, match="Unknown label 'artz'"):
        apply(model, "merge: poetry -> fiction", documents={"artz": 1})
    aggregate = HcalConfig.from_taxonomy(build_taxonomy(), tiny_bert(), objective="aggregate")
    paper = HcalForSequenceClassification(aggregate)
    with pytest.raises(ValueError, match="needs all leaves at one depth"):
        apply(paper, "add: sports", tokenizer=build_tokenizer())
    assert paper.config.num_labels == 13
    after = logits_of(model)
    assert model.config is config
    assert all(torch.equal(after[label], before[label]) for label in before)
