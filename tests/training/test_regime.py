"""The choice between a frozen and a fine-tuned encoder depends on the estimated time and the budget."""

import pytest

from hcal_hf import HcalTrainingArguments
from hcal_hf.training import regime
from hcal_hf.training.regime import FINE_TUNING, FINE_TUNING_FEW, FROZEN_SETTINGS, choose_regime


@pytest.mark.parametrize(("seconds", "name"), [(14.0, "fine-tuned"), (15.0, "fine-tuned"), (16.0, "frozen")])
def test_fine_tuning_is_chosen_if_it_fits_the_budget(monkeypatch, tokenizer, seconds, name):
    monkeypatch.setattr(regime, "estimate_epoch", lambda *args: seconds)
    chosen = choose_regime("encoder", tokenizer, [5] * 1000, budget=1)
    assert (chosen.name, chosen.seconds) == (name, 4 * seconds)
    assert "1,000 documents for 4 epochs" in chosen.reason
    assert chosen.settings is (FINE_TUNING if name == "fine-tuned" else FROZEN_SETTINGS)


def test_the_estimate_grows_with_the_tokens(encoder_dir, tokenizer):
    short, long = (regime.estimate_epoch(encoder_dir, tokenizer, [length] * 64) for length in (4, 28))
    assert short > 0
    more = regime.estimate_epoch(encoder_dir, tokenizer, [28] * 64_000)
    assert more > 20 * long  # 1,000 times the tokens, with a margin for timing noise


def test_a_budget_of_zero_needs_no_timing(monkeypatch, tokenizer):
    monkeypatch.setattr(regime, "estimate_epoch", lambda *args: pytest.fail("timed"))
    assert choose_regime("encoder", tokenizer, [5], budget=0).name == "frozen"


@pytest.mark.parametrize(
    ("lengths", "budget", "message"), [([], 1, "no labelled training documents"), ([3], -1, "0 or more")]
)
def test_wrong_arguments_are_refused(tokenizer, lengths, budget, message):
    with pytest.raises(ValueError, match=message):
        choose_regime("encoder", tokenizer, lengths, budget)


def test_few_documents_are_trained_for_more_epochs(monkeypatch, tokenizer):
    monkeypatch.setattr(regime, "estimate_epoch", lambda *args: 1.0)
    few = choose_regime("encoder", tokenizer, [5] * 999, budget=1)
    assert (few.settings["num_train_epochs"], few.seconds) == (20, 20.0)


@pytest.mark.parametrize("settings", [FINE_TUNING, FINE_TUNING_FEW, FROZEN_SETTINGS])
def test_the_settings_are_training_arguments(tmp_path, settings):
    HcalTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize(
    ("documents", "unlabelled", "mode", "validation", "budget", "name", "alternatives"),
    [
        (0, 20, "single_path", 0, 1, "adapted", ()),
        (0, 20, "multi_path", 0, 1, "adapted", ()),
        (19, 1, "single_path", 0, 1, "adapted", ()),
        (19, 1, "multi_path", 0, 1, "fine-tuned", ()),
        (20, 0, "single_path", 0, 1, "fine-tuned", ()),
        (30, 0, "single_path", 39, 1, "fine-tuned", ()),
        (30, 0, "single_path", 40, 1, "fine-tuned", ("adapted", "fine-tuned-adapted", "frozen")),
        (30, 0, "single_path", 40, 0, "frozen", ("adapted", "lexical")),
        (30, 0, "multi_path", 40, 1, "fine-tuned", ("frozen",)),
        (200, 0, "single_path", 40, 1, "fine-tuned", ("frozen",)),
        (200, 0, "single_path", 40, 0, "frozen", ("lexical",)),
        (19, 0, "single_path", 40, 1, "fine-tuned", ("frozen",)),  # too few texts to adapt to
    ],
)
def test_few_documents_per_leaf_choose_adapted_label_text(
    monkeypatch, tokenizer, documents, unlabelled, mode, validation, budget, name, alternatives
):
    monkeypatch.setattr(regime, "estimate_epoch", lambda *args: 1.0)
    options = {"leaves": 10, "label_mode": mode, "unlabelled": unlabelled, "validation": validation}
    chosen = choose_regime("encoder", tokenizer, [5] * documents, budget, **options)
    assert (chosen.name, chosen.alternatives) == (name, alternatives)


@pytest.mark.parametrize(
    ("documents", "covered", "mode", "budget", "name", "alternatives"),
    [
        (50, 8, "single_path", 1, "fine-tuned-adapted", ("adapted",)),
        (50, 8, "single_path", 0, "adapted", ()),
        (50, 8, "single_path", 0.1, "adapted", ()),  # fine-tuning takes longer
        (50, 9, "single_path", 1, "fine-tuned", ("adapted", "fine-tuned-adapted", "frozen")),  # a tenth may be without
        (200, 8, "single_path", 1, "fine-tuned", ("frozen",)),
        (50, 8, "multi_path", 1, "fine-tuned", ("frozen",)),
    ],
)
def test_leaves_without_documents_choose_adapted_label_text(
    monkeypatch, tokenizer, documents, covered, mode, budget, name, alternatives
):
    monkeypatch.setattr(regime, "estimate_epoch", lambda *args: 1.0)
    options = {"leaves": 10, "covered": covered, "label_mode": mode, "validation": 40}
    chosen = choose_regime("encoder", tokenizer, [5] * documents, budget, **options)
    assert (chosen.name, chosen.alternatives) == (name, alternatives)
    assert ("2 of 10 leaves have no labelled document" in chosen.reason) == name.endswith("adapted")
    assert ("The encoder is fine-tuned before" in chosen.reason) == (name == "fine-tuned-adapted")


def test_the_reason_names_the_documents_per_leaf(tokenizer):
    few = choose_regime("encoder", tokenizer, [5] * 15, leaves=10, unlabelled=1200)
    assert few.reason.startswith("There are 1.5 labelled training documents per leaf, fewer than 2")
    assert "1,200 texts without labels" in few.reason
    assert choose_regime("encoder", tokenizer, [], unlabelled=30).reason.startswith("No document is labelled")
    with pytest.raises(
        ValueError, match="no labelled training documents, and only 19 texts without labels: there must be"
    ):
        choose_regime("encoder", tokenizer, [], unlabelled=19)


def test_few_documents_per_leaf_have_more_epochs(monkeypatch, tokenizer):
    monkeypatch.setattr(regime, "estimate_epoch", lambda *args: 1.0)
    few = choose_regime("encoder", tokenizer, [5] * 2000, budget=1, leaves=200)
    many = choose_regime("encoder", tokenizer, [5] * 2000, budget=1, leaves=100)
    assert (few.settings, many.settings) == (FINE_TUNING_FEW, FINE_TUNING)
