"""`hcal train` on tables with no, few and some labels: the regime is chosen, reported, and gives a model that predicts."""

import json

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer

from hcal_hf import HcalForSequenceClassification
from hcal_hf.commands import main as cli
from hcal_hf.commands import regime_comparison, training_run
from hcal_hf.commands.regime_comparison import train_best

LEAVES = {"stars": ["quantum", "atoms", "stars"], "genes": ["plants", "cell", "genes"]}
PARENTS = {"stars": "sky", "genes": "life"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, encoder_dir):
    """The tiny encoder with large word embeddings, so that texts with other words have other states."""
    encoder = AutoModel.from_pretrained(encoder_dir)
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight.mul_(100)
    folder = tmp_path_factory.mktemp("encoder")
    encoder.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_dir).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def train(encoder, tmp_path, monkeypatch, capsys):
    """Returns a function that writes a table of which every n-th row has a label, and runs `hcal train` on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taxonomy.txt").write_text("sky > stars\nlife > genes\n", encoding="utf-8")

    def run(labelled, *options):
        random = np.random.default_rng(0)
        lines = []
        for i in range(80):
            leaf = list(LEAVES)[i % 2]
            path = f"{PARENTS[leaf]} > {leaf}" if i in labelled else ""
            lines.append({"text": " ".join(random.choice(LEAVES[leaf], size=6)), "labels": path})
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        given = ["--encoder", encoder, "--taxonomy", "taxonomy.txt", "--time-budget", "0", "--use_cpu", *options]
        code = cli.main(["train", "a.jsonl", *given])
        return (code, *capsys.readouterr())

    return run


def accuracy(folder):
    """The share of texts of one kind of words whose leaf is found."""
    model = HcalForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = []
    for leaf, words in LEAVES.items():
        tokens = tokenizer([" ".join(words), " ".join(words[:2])], padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**tokens).logits
        other = next(name for name in LEAVES if name != leaf)
        right.append((logits[:, model.taxonomy.index(leaf)] > logits[:, model.taxonomy.index(other)]).float().mean())
    return float(torch.stack(right).mean())


def test_without_a_label_the_texts_adapt_the_label_text(train, tmp_path):
    code, out, err = train([])
    assert code == 0, err
    assert "label_mode: single_path (no row has a label; give --label-mode multi_path if documents can have" in out
    assert "Regime: adapted. No document is labelled: the text of each label is adapted to 80 texts." in out
    assert "There are no labelled documents to evaluate it on" in out
    folder = tmp_path / "outputs" / "a"
    assert accuracy(folder) == 1.0
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["regimes"] == ["adapted"]
    assert "label text, adapted to" in (folder / "README.md").read_text(encoding="utf-8")


def test_few_labels_adapt_the_label_text_together_with_unlabelled_rows(train, tmp_path):
    code, out, err = train(range(3))
    assert code == 0, err
    assert "Regime: adapted. There are 1.5 labelled training documents per leaf, fewer than 2" in out
    assert "to 77 texts without labels" in out
    log = json.loads((tmp_path / "outputs/a/trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    fitted = next(entry for entry in log if "adapted_texts" in entry)
    split = json.loads((tmp_path / "outputs/a/split.json").read_text(encoding="utf-8"))
    assert fitted["adapted_labelled"] == len(set(split["train"]) & set(range(3))) > 0
    assert accuracy(tmp_path / "outputs/a") == 1.0
    # The written configuration repeats the run.
    assert cli.main(["train", "outputs/a/config.yaml", "--output_dir", "again"]) == 0
    first, again = (
        HcalForSequenceClassification.from_pretrained(tmp_path / name).prototypes.weight
        for name in ("outputs/a", "again")
    )
    torch.testing.assert_close(first, again)


def test_class_weights_of_adapted_label_text_are_not_ignored_in_silence(train, caplog):
    code, _, err = train(range(3), "--class_weight", "balanced")
    assert code == 0, err
    assert "class_weight has no effect here" in caplog.text + err


def test_validation_documents_decide_between_regimes(train, tmp_path):
    code, out, err = train(range(80), "--regimes", "adapted", "frozen")
    assert code == 0, err
    assert "It has the best mean of micro- and macro-F1 on the " in out
    assert "adapted " in out.split("validation documents: ")[1].splitlines()[0]
    report = (tmp_path / "outputs/a/report.html").read_text(encoding="utf-8")
    assert "It has the best mean of micro- and macro-F1" in report


def test_label_text_is_adapted_with_the_encoder_of_the_fine_tuned_model(train, tmp_path, monkeypatch, encoder):
    trained = []
    train_regime = training_run._Run.train

    def note(run, regime):
        trained.append(regime)
        return train_regime(run, regime)

    monkeypatch.setattr(training_run._Run, "train", note)
    options = ("--num_train_epochs", "2", "--label_names", "names.csv")
    (tmp_path / "names.csv").write_text("label,name\nstars,quantum atoms\ngenes,plants cell\n", encoding="utf-8")
    code, _, err = train(range(70), "--regimes", "fine-tuned-adapted", "fine-tuned", *options)
    assert code == 0, err
    assert trained == ["fine-tuned-adapted", "fine-tuned", "fine-tuned"]
    folder = tmp_path / "outputs/a"
    trained.clear()
    code, _, err = train(range(70), "--regimes", "fine-tuned", "fine-tuned-adapted", *options, "--overwrite")
    assert code == 0, err
    assert trained == ["fine-tuned", "fine-tuned-adapted"]  # the fine-tuned encoder is used again
    code, _, err = train(range(70), "--regimes", "fine-tuned-adapted", *options, "--overwrite")
    assert code == 0, err
    model = HcalForSequenceClassification.from_pretrained(folder)
    start = AutoModel.from_pretrained(encoder).embeddings.word_embeddings.weight
    assert not torch.equal(model.encoder.embeddings.word_embeddings.weight, start)
    assert model.config.head == "path_softmax"
    assert accuracy(folder) == 1.0
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "label text, adapted to" in card
    assert "trained, with another head" in card
    assert "learning rates" in card


def test_an_unknown_regime_is_refused(train):
    code, _, err = train(range(80), "--regimes", "warm")
    assert (
        code,
        "regimes holds 'warm': the regimes are adapted, frozen, lexical, fine-tuned, fine-tuned-adapted" in err,
    ) == (
        1,
        True,
    )


class FakeTrainer:
    def __init__(self, score, documents=(1, 2)):
        self.score, self.eval_dataset = score, documents

    def evaluate(self):
        return {"eval_micro_f1": self.score, "eval_macro_f1": self.score - 0.2}

    def is_world_process_zero(self):
        return True


def test_the_best_score_wins_and_ties_go_to_the_first(capsys, monkeypatch):
    seeds = []
    monkeypatch.setattr(regime_comparison, "set_seed", seeds.append)

    class Args:
        seed = 7

    trainers = {"adapted": FakeTrainer(0.6), "frozen": FakeTrainer(0.8), "fine-tuned": FakeTrainer(0.8)}
    best, (line,) = train_best(list(trainers), trainers.get, Args)
    assert best is trainers["frozen"]
    assert line.startswith("Regime: frozen.")
    assert "on the 2 validation documents: adapted 50.0, frozen 70.0, fine-tuned 70.0." in line
    assert capsys.readouterr().out.strip() == line
    assert seeds == [7, 7, 7]
    with pytest.raises(ValueError, match=r"Several regimes \(adapted, frozen\) need validation documents"):
        train_best(["adapted", "frozen"], lambda regime: FakeTrainer(0.5, None), Args)


def test_lexical_features_select_their_regime_and_are_saved(train, tmp_path):
    code, out, err = train(range(80), "--lexical-features", "4", "--text-prefix", "the ")
    assert code == 0, err
    assert "Regime: lexical, because lexical_features is set." in out
    folder = tmp_path / "outputs" / "a"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["lexical_features"], config["projection_bias"], config["text_prefix"]) == (4, True, "the ")
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["regimes"] == ["lexical"]
    assert accuracy(folder) == 1.0
    code, out, err = train(range(80), "--regimes", "lexical", "frozen", "--overwrite")
    assert code == 0, err
    assert "lexical " in out.split("validation documents: ")[1].splitlines()[0]


def test_lexical_features_with_another_regime_are_refused(train):
    code, _, err = train(range(80), "--regimes", "adapted", "--lexical-features", "4")
    assert (code, "lexical_features=4 is for the regime lexical, but the run has adapted" in err) == (1, True)
    code, _, err = train(range(80), "--lexical-features", "0")
    assert (code, "lexical_features must be from 1 to 2,048, got 0" in err) == (1, True)
