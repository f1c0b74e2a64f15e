"""Models that predict before the first label: scores from label texts, and adaptation to unlabelled texts."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, pipeline

from hcal_hf import HcalForSequenceClassification, HcalTrainer, HcalTrainingArguments, Taxonomy, adapt, encode_dataset
from hcal_hf.anchors import embed_texts
from hcal_hf.commands import main as cli
from hcal_hf.training import adapt as module
from hcal_hf.zero_shot import fit_biases, label_vectors
from tests.builders import WORDS

TEXTS = [f"{WORDS[i % 17]} {WORDS[(5 * i) % 19]} {WORDS[(3 * i) % 13]} {i}" for i in range(80)]


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory, encoder_dir):
    """The tiny encoder with large word embeddings, so that texts with other words have other states."""
    encoder = AutoModel.from_pretrained(encoder_dir)
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight.mul_(100)
    folder = tmp_path_factory.mktemp("encoder")
    encoder.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_dir).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dag():
    edges = [("arts", "poetry"), ("arts", "music"), ("life", "genes"), ("life", "plants"), ("sky", "stars")]
    return Taxonomy.from_edges([*edges, ("life", "music"), ("sky", "quantum")])


@pytest.fixture
def model(encoder_dir, taxonomy):
    words = {label: f"{WORDS[i]} {WORDS[-1 - i]}" for i, label in enumerate(taxonomy.labels)}
    return HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy, words)


def cosines(model, tokenizer, texts, labels):
    """Cosines [N, labels] of texts and label texts, from the bare encoder."""
    documents = F.normalize(embed_texts(model, tokenizer, texts), dim=-1)
    return documents @ F.normalize(embed_texts(model, tokenizer, labels), dim=-1).T


def probabilities(model, tokenizer, texts):
    with torch.no_grad():
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        return torch.sigmoid(model(**tokens).logits)


def test_leaves_are_compared_by_cosine_and_inner_nodes_add_them_up(model, tokenizer, taxonomy):
    names = [text for text, leaf in zip(model.config.label_texts, taxonomy.is_leaf) if leaf]
    expected = (cosines(model, tokenizer, TEXTS, names) / 0.05).softmax(dim=1)
    found = probabilities(model, tokenizer, TEXTS)
    leaves = np.flatnonzero(taxonomy.is_leaf)
    torch.testing.assert_close(found[:, leaves], expected, atol=1e-4, rtol=1e-3)
    for node in np.flatnonzero(~taxonomy.is_leaf):
        below = [leaf for leaf in leaves if node in taxonomy.complete([leaf])]
        torch.testing.assert_close(found[:, node], found[:, below].sum(dim=1), atol=1e-5, rtol=1e-4)


def test_with_partial_paths_every_node_can_be_the_end(encoder_dir, tokenizer, taxonomy):
    model = HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy, partial_paths=True)
    expected = (cosines(model, tokenizer, TEXTS, list(taxonomy.names)) / 0.05).softmax(dim=1)
    found = probabilities(model, tokenizer, TEXTS)
    children = {node: taxonomy.edges[taxonomy.edges[:, 0] == node, 1] for node in range(len(taxonomy))}
    for node, below in children.items():
        ends = found[:, node] - found[:, below].sum(dim=1)
        torch.testing.assert_close(ends, expected[:, node], atol=1e-4, rtol=1e-3)


def test_descriptions_and_names_of_codes_are_read(encoder_dir, tokenizer):
    codes = Taxonomy.from_paths([["1", "11"], ["1", "12"], ["2"]])
    names = {"11": "stars", "12": "poems"}
    model = HcalForSequenceClassification.zero_shot(encoder_dir, codes, {"2": "music of opera"}, label_names=names)
    assert dict(zip(codes.labels, model.config.label_texts)) == {
        "1": "1", "2": "music of opera", "11": "stars", "12": "poems"}  # fmt: skip
    assert dict(zip(codes.labels, model.config.label_names))["12"] == "poems"


def test_it_is_saved_served_and_extended_like_any_model(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(probabilities(loaded, tokenizer, TEXTS), probabilities(model, tokenizer, TEXTS))
    (answer,) = pipeline("hierarchical-text-classification", model=str(tmp_path))(["stars"])
    assert [step["depth"] for step in answer] == list(range(len(answer)))
    loaded.add_labels([[loaded.taxonomy.names[0], "chess"]], tokenizer)
    assert "chess" in loaded.config.labels


def test_it_can_be_trained(model, tokenizer, taxonomy, tmp_path):
    from datasets import Dataset

    leaves = [name for name, leaf in zip(taxonomy.names, taxonomy.is_leaf) if leaf]
    rows = {
        "text": [f"new {leaf}" for leaf in leaves],
        "labels": [taxonomy.paths(taxonomy.index(leaf))[:1] for leaf in leaves],
    }
    data = encode_dataset(Dataset.from_dict(rows), taxonomy, tokenizer, label_mode="single_path")
    args = HcalTrainingArguments(str(tmp_path), max_steps=2, report_to="none", use_cpu=True, save_strategy="no")
    HcalTrainer(model, args, None, data, None, tokenizer).train()


def test_only_heads_that_add_up_scores_are_allowed(encoder_dir, taxonomy):
    with pytest.raises(ValueError, match="has the head path_softmax or conditional_sigmoid, got 'lookahead_softmax'"):
        HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy, head="lookahead_softmax")


# ---- Several paths ----


def test_biases_give_each_leaf_the_expected_rate(encoder_dir, tokenizer, dag):
    model = HcalForSequenceClassification.zero_shot(encoder_dir, dag)
    assert model.config.label_mode == "multi_path"
    adapt(model, tokenizer, TEXTS, expected_labels=2.0)
    found = probabilities(model, tokenizer, TEXTS).double()
    leaves = np.flatnonzero(dag.is_leaf)
    np.testing.assert_allclose(found[:, leaves].mean(dim=0).numpy(), 2.0 / len(leaves), atol=1e-3)
    for parent, child in dag.edges.tolist():
        assert (found[:, child] <= found[:, parent] + 1e-6).all()
    predicted = found >= model.config.thresholds[0]
    assert float(predicted.sum(dim=1).double().mean()) == pytest.approx(float(found.sum(dim=1).mean()), rel=0.1)
    with pytest.raises(ValueError, match="expected_labels must be above 0 and below the number of leaves"):
        fit_biases(model, label_vectors(model), 0.0)


def test_without_texts_labels_serve_as_the_background(encoder_dir, tokenizer, dag):
    model = HcalForSequenceClassification.zero_shot(encoder_dir, dag)
    found = probabilities(model, tokenizer, TEXTS)
    assert 0 < (found >= model.config.thresholds[0]).float().mean() < 0.5


# ---- Adaptation ----


def slow_rounds(features, start, rounds, weight, balance):
    """The rounds of `adapt` in loops over texts and labels."""
    vectors = start.clone()
    for _ in range(rounds):
        shares = torch.stack([(text @ vectors.T / 0.05).softmax(dim=0) for text in features])
        damped = shares / shares.sum(dim=0) ** balance
        damped = torch.stack([row / row.sum() for row in damped])
        moved = []
        for label in range(len(start)):
            attracted = sum((damped[i, label] * text for i, text in enumerate(features)), torch.zeros_like(start[0]))
            moved.append(
                F.normalize(weight * start[label] + damped[:, label].sum() * F.normalize(attracted, dim=0), dim=0)
            )
        vectors = torch.stack(moved)
    return vectors


def test_adaptation_equals_a_slow_loop(model, tokenizer, taxonomy, monkeypatch):
    states = embed_texts(model, tokenizer, TEXTS).double()
    anchors = model.prototypes.anchors.double()
    leaves = torch.from_numpy(taxonomy.is_leaf.copy())
    weight = model.projection.weight.detach().double()
    features = F.normalize((states - states.mean(dim=0)) @ weight.T, dim=-1)
    start = F.normalize((anchors - anchors.mean(dim=0)) @ weight.T, dim=-1)[leaves]
    expected = slow_rounds(features, start, 3, 10.0, 0.5)
    monkeypatch.setattr(module, "PAIRS_PER_CHUNK", 50)  # several chunks
    result = adapt(model, tokenizer, [*TEXTS, TEXTS[0], "", None])
    assert (result.texts, result.rounds) == (80, 3)
    found = (model.prototypes.vectors(model.projection)[leaves]).double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert result.shift == pytest.approx(float((start * expected).sum(dim=1).mean()), abs=1e-4)
    # Scores are now cosines of centred features.
    scores = (features @ expected.T / 0.05).softmax(dim=1)
    leaf_probabilities = probabilities(model, tokenizer, TEXTS)[:, leaves].double()
    torch.testing.assert_close(leaf_probabilities, scores, atol=1e-3, rtol=1e-2)


def test_adaptation_finds_clusters_that_names_only_hint_at(encoder_dir, tokenizer):
    """The texts have two kinds of words. Each label is one word of its kind."""
    taxonomy = Taxonomy.from_paths([["sky", "stars"], ["life", "genes"]], identity="name")
    rng = np.random.default_rng(0)
    kinds = [["quantum", "atoms", "stars"], ["plants", "cell", "genes"]]
    kind_of = {" ".join(rng.choice(kinds[kind], size=4)): kind for kind in rng.integers(0, 2, size=120).tolist()}
    texts, truth = list(kind_of), np.array(list(kind_of.values()))
    model = HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy)
    leaves = [taxonomy.index("stars"), taxonomy.index("genes")]

    def accuracy():
        return (probabilities(model, tokenizer, texts)[:, leaves].argmax(dim=1).numpy() == truth).mean()

    before = accuracy()
    result = adapt(model, tokenizer, texts)
    assert result.texts == len(texts)
    assert 0 < result.agreement <= 1
    assert accuracy() > max(before, 0.9), (before, accuracy())


def test_labelled_texts_pull_their_labels_as_in_a_slow_loop(model, tokenizer, taxonomy, monkeypatch):
    monkeypatch.setattr(module, "STRENGTH", 1e-12)  # the fit stays at the adapted vectors
    monkeypatch.setattr(module, "ROUNDS", 2)
    leaves = np.flatnonzero(taxonomy.is_leaf)
    labelled, ends = TEXTS[:3], [leaves[0], leaves[0], leaves[1]]
    states = embed_texts(model, tokenizer, TEXTS).double()
    anchors = model.prototypes.anchors.double()
    weight = model.projection.weight.detach().double()
    features = F.normalize((states - states.mean(dim=0)) @ weight.T, dim=-1)
    start = F.normalize((anchors - anchors.mean(dim=0)) @ weight.T, dim=-1)[leaves]
    pull = 10.0 * start
    pull[0] += 5.0 * 2 * F.normalize(features[0] + features[1], dim=0)
    pull[1] += 5.0 * features[2]
    vectors = F.normalize(pull, dim=-1)
    for _ in range(2):
        shares = (features[3:] @ vectors.T / 0.05).softmax(dim=1)
        shares = shares / shares.sum(dim=0).sqrt()
        shares = shares / shares.sum(dim=1, keepdim=True)
        attracted = torch.stack(
            [sum(shares[i, label] * features[3 + i] for i in range(77)) for label in range(len(start))]
        )
        vectors = F.normalize(pull + shares.sum(dim=0)[:, None] * F.normalize(attracted, dim=-1), dim=-1)
    paths = [taxonomy.paths(int(end))[0] for end in ends]
    result = adapt(model, tokenizer, TEXTS, labelled_texts=labelled, labels=paths)
    assert (result.texts, result.labelled, result.rounds) == (80, 3, 2)
    found = model.prototypes.vectors(model.projection)[leaves].double()
    torch.testing.assert_close(found, vectors, atol=1e-4, rtol=1e-3)


def test_the_fit_to_labelled_texts_leaves_other_labels_alone(model, tokenizer, taxonomy, monkeypatch):
    leaves = np.flatnonzero(taxonomy.is_leaf)
    options = {"labelled_texts": TEXTS[:4], "labels": [taxonomy.paths(int(leaves[i % 2]))[0] for i in range(4)]}
    model_without = copy.deepcopy(model)
    monkeypatch.setattr(module, "STRENGTH", 1e-12)
    adapt(model_without, tokenizer, TEXTS, **options)
    monkeypatch.undo()
    adapt(model, tokenizer, TEXTS, **options)
    moved = (model.prototypes.weight - model_without.prototypes.weight).abs().amax(dim=1)
    trained = np.unique(np.concatenate([taxonomy.encode(path) for path in options["labels"]]))
    assert moved[trained].min() > 1e-3
    assert moved[np.setdiff1d(np.arange(len(taxonomy)), trained)].max() < 1e-6

    def nll(fitted):
        found = probabilities(fitted, tokenizer, TEXTS[:4])
        return -sum(float(found[i, leaves[i % 2]].log()) for i in range(4))

    assert nll(model) < nll(model_without)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a b"], [], "There are 1 labelled_texts but 0 labels"),
        (["a b"], [["nowhere"]], "nowhere"),
        ([""], [["science", "physics"]], "Labelled text 0: "),
        (["a b"], [["science"]], "Labelled text 0: "),
    ],
)
def test_labelled_texts_that_do_not_fit_are_refused(encoder_dir, tokenizer, texts, labels, message):
    taxonomy = Taxonomy.from_paths([["science", "physics"], ["arts", "music"]])
    model = HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy)
    with pytest.raises(ValueError, match=message):
        adapt(model, tokenizer, TEXTS, labelled_texts=texts, labels=labels)


def test_labelled_texts_need_a_single_path(encoder_dir, tokenizer, dag):
    model = HcalForSequenceClassification.zero_shot(encoder_dir, dag)
    with pytest.raises(ValueError, match="labelled_texts need label_mode=\"single_path\", got 'multi_path'"):
        adapt(model, tokenizer, TEXTS, labelled_texts=["a"], labels=[["arts", "music"]])


def test_what_cannot_be_adapted_is_refused(model, encoder_dir, taxonomy, tokenizer):
    with pytest.raises(ValueError, match="There are 3 different texts: adapting needs at least 20"):
        adapt(model, tokenizer, ["a", "b", "c", "a"])
    with pytest.raises(ValueError, match="rounds must be 0 or more, got -1"):
        adapt(model, tokenizer, TEXTS, rounds=-1)
    trained = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy)
    with pytest.raises(ValueError, match=r"build it with HcalForSequenceClassification\.zero_shot"):
        adapt(trained, tokenizer, TEXTS)


# ---- The command ----


def test_the_command_makes_a_model_from_a_text_file(encoder_dir, tmp_path, capsys):
    (tmp_path / "taxonomy.txt").write_text("science > physics\nscience > biology\narts > music\n", encoding="utf-8")
    rows = "".join(json.dumps({"Body": text}) + "\n" for text in TEXTS)
    (tmp_path / "texts.jsonl").write_text(rows, encoding="utf-8")
    folder = tmp_path / "model"
    words = ["zero-shot", tmp_path / "taxonomy.txt", "--output-dir", folder, "--encoder", encoder_dir]
    assert cli.main(list(map(str, words))) == 0
    assert "5 labels, 3 of them leaves." in capsys.readouterr().out
    assert cli.main(list(map(str, words))) == 1
    assert "holds a model: give --overwrite" in capsys.readouterr().err
    words += ["--overwrite", "--texts", tmp_path / "texts.jsonl", "--text", "Body", "--max-length", 16]
    assert cli.main(list(map(str, words))) == 0
    assert "Adapted to 80 texts." in capsys.readouterr().out
    model = HcalForSequenceClassification.from_pretrained(folder)
    assert model.config.table_options == {"text": ["Body"]}
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 16
    out = str(tmp_path / "predicted.csv")
    assert cli.main(["predict", str(folder), str(tmp_path / "texts.jsonl"), "--out", out, "--cpu", "--quiet"]) == 0
    words[-3:] = ["Title", "--max-length", 16]
    assert cli.main(list(map(str, words))) == 1
    assert "has no column 'Title': its columns are 'Body'" in capsys.readouterr().err
