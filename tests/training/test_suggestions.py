"""Which documents to label next: uncertain ones that differ from each other."""

import csv
import json

import numpy as np
import pytest
import torch

from hcal_hf import HcalForSequenceClassification, decode, suggest_documents
from hcal_hf.commands import main as cli
from hcal_hf.training import suggestions as module
from hcal_hf.training.suggestions import draw_diverse, prediction_errors
from tests.builders import WORDS, build_model

TEXTS = [f"{WORDS[i % 17]} {WORDS[(5 * i) % 19]} {i}" for i in range(60)]


def test_distances_are_those_of_the_outer_products(monkeypatch):
    """Each draw has the probabilities that a slow loop over outer products gives."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(12, 5, generator=generator), dim=1)
    errors = torch.randn(12, 4, generator=generator)
    gradients = (features[:, :, None] * errors[:, None, :]).reshape(12, -1).double()

    class Recorder:
        """Draws like numpy's generator and keeps the probabilities."""

        def __init__(self):
            self.random, self.seen = np.random.default_rng(3), []

        def choice(self, size, p):
            self.seen.append(p)
            return self.random.choice(size, p=p)

    recorder = Recorder()
    chosen = draw_diverse(features, errors, 5, recorder)
    assert len(set(chosen.tolist())) == 5
    for step, probabilities in enumerate(recorder.seen):
        if step == 0:
            expected = gradients.square().sum(dim=1)
        else:
            before = gradients[chosen[:step].tolist()]
            expected = torch.cdist(gradients, before).square().min(dim=1).values
        np.testing.assert_allclose(probabilities, (expected / expected.sum()).numpy(), atol=1e-5)


def test_certain_documents_come_last_and_equal_ones_once():
    features = torch.eye(4)
    errors = torch.tensor([[0.0], [0.9], [0.9], [0.0]])
    assert set(draw_diverse(features, errors, 2, np.random.default_rng(0)).tolist()) == {1, 2}
    assert set(draw_diverse(features, errors, 4, np.random.default_rng(0)).tolist()) == {0, 1, 2, 3}
    same = torch.ones(4, 1)
    twice = draw_diverse(same, torch.tensor([[0.9], [0.9], [0.9], [0.1]]), 2, np.random.default_rng(0))
    assert set(twice.tolist()) & {3}  # three equal gradients are one


def test_errors_are_probabilities_minus_predictions(taxonomy, monkeypatch):
    model = build_model(taxonomy).eval()
    states = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    features, errors = prediction_errors(model, states)
    with torch.no_grad():
        output = model(pooled_states=states)
    torch.testing.assert_close(features, output.features)
    predictions = decode(output.logits, taxonomy, "single_path", head=model.config.head)
    torch.testing.assert_close(errors, torch.sigmoid(output.logits) - predictions.float())
    # With more labels, each error is added to one of a few buckets, with a sign.
    monkeypatch.setattr(module, "SKETCH", 8)
    _, sketched = prediction_errors(model, states)
    buckets, signs = module._sketch(13)
    expected = torch.zeros(7, 8)
    for label in range(13):
        expected[:, buckets[label]] += errors[:, label] * signs[label]
    torch.testing.assert_close(sketched, expected)


def test_sketches_keep_inner_products_in_the_mean():
    """Errors of one sign, which would add up in the buckets without the random signs."""
    errors = torch.rand(40, 3000, generator=torch.Generator().manual_seed(0))
    buckets, signs = module._sketch(3000)
    sketched = torch.zeros(40, module.SKETCH).index_add_(1, buckets, errors * signs)
    exact, kept = (values @ values.T for values in (errors, sketched))
    # The standard deviation is about |x| |y| sqrt(2 / 1024), 4 % of |x| |y|.
    assert ((kept - exact) / 1000).square().mean().sqrt() < 0.08


def test_texts_are_suggested_once_and_empty_ones_never(encoder_dir, tokenizer, taxonomy):
    model = HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy)
    texts = ["", None, *TEXTS, *TEXTS]
    found = suggest_documents(model, tokenizer, texts, 20, seed=1)
    assert len({texts[row] for row in found.rows}) == 20
    assert found.label_sets.shape == found.probabilities.shape == (20, 13)
    again = suggest_documents(model, tokenizer, texts, 20, seed=1)
    np.testing.assert_array_equal(found.rows, again.rows)
    with pytest.raises(ValueError, match="number must be from 1 to the 60 different texts, got 61"):
        suggest_documents(model, tokenizer, texts, 61)


def test_many_texts_are_sampled(encoder_dir, tokenizer, taxonomy, monkeypatch, caplog):
    monkeypatch.setattr(module, "MOST_CANDIDATES", 30)
    model = HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy)
    assert len(suggest_documents(model, tokenizer, TEXTS, 5).rows) == 5
    assert "30 of 60 texts are candidates" in caplog.text


@pytest.fixture
def model_dir(encoder_dir, tokenizer, taxonomy, tmp_path):
    options = {"text": ["Body"], "labels": ["Label"]}
    HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy, table_options=options).save_pretrained(
        tmp_path / "m"
    )
    tokenizer.save_pretrained(tmp_path / "m")
    rows = "".join(json.dumps({"Body": text, "id": i}) + "\n" for i, text in enumerate(TEXTS))
    (tmp_path / "texts.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "done.csv").write_text("Body\n" + "\n".join(TEXTS[:50]) + "\n", encoding="utf-8")
    return str(tmp_path / "m")


def test_the_command_writes_a_table_to_fill_in(model_dir, tmp_path, capsys):
    out = tmp_path / "to_label.csv"
    words = ["suggest", model_dir, str(tmp_path / "texts.jsonl"), "--number", "8", "--out", str(out), "--cpu"]
    assert cli.main([*words, "--exclude", str(tmp_path / "done.csv")]) == 0
    assert "8 of 60 texts" in capsys.readouterr().out
    with open(out, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "Body", "suggestion", "confidence", "Label"]
    assert all(TEXTS[int(row["row"])] == row["Body"] and int(row["row"]) >= 50 and row["Label"] == "" for row in rows)
    assert cli.main(words) == 1
    assert "exists already: remove it, or give --overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite", "--text", "Title"]) == 1
    assert "has no column 'Title': its columns are 'Body', 'id'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["suggest", model_dir, "x.csv", "--out", "x.parquet"])


def test_tasks_of_label_studio_hold_the_suggestion(model_dir, tmp_path):
    out = tmp_path / "tasks.json"
    words = ["suggest", model_dir, str(tmp_path / "texts.jsonl"), "--number", "3", "--out", str(out), "--cpu"]
    assert cli.main(words) == 0
    tasks = json.loads(out.read_text(encoding="utf-8"))
    assert len(tasks) == 3
    (result,) = tasks[0]["predictions"][0]["result"]
    assert (result["type"], result["from_name"], result["to_name"]) == ("taxonomy", "taxonomy", "text")
    assert all(isinstance(step, str) for path in result["value"]["taxonomy"] for step in path)
    assert tasks[0]["data"]["text"] == TEXTS[tasks[0]["data"]["row"]]


def test_a_filled_in_table_is_trained_on(model_dir, tmp_path, monkeypatch, capsys, taxonomy):
    monkeypatch.chdir(tmp_path)
    words = ["suggest", model_dir, "texts.jsonl", "--number", "30", "--out", "to_label.csv", "--cpu"]
    assert cli.main(words) == 0
    with open("to_label.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    leaves = [label for label, leaf in zip(taxonomy.labels, taxonomy.is_leaf) if leaf]
    for i, row in enumerate(rows[:25]):  # five rows stay unlabelled
        row["Label"] = " > ".join(taxonomy.paths(taxonomy.index(leaves[i % 3]))[0])
    with open("to_label.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert cli.main(["train", "to_label.csv", "--from", model_dir, "--use_cpu", "--no-report"]) == 0, (
        capsys.readouterr()
    )
    trained = HcalForSequenceClassification.from_pretrained("outputs/to_label")
    assert trained.config.labels == list(taxonomy.labels)
