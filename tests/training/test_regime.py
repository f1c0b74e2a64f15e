"""The choice between a frozen and a fine-tuned encoder depends on the estimated time and the budget."""

import pytest

from hcal_hf import HcalTrainingArguments
from hcal_hf.training import regime
from hcal_hf.training.regime import FINE_TUNING, FROZEN, choose_regime


@pytest.mark.parametrize(("seconds", "name"), [(14.0, "fine-tuned"), (15.0, "fine-tuned"), (16.0, "frozen")])
def test_fine_tuning_is_chosen_if_it_fits_the_budget(monkeypatch, tokenizer, seconds, name):
    monkeypatch.setattr(regime, "estimate_epoch", lambda *args: seconds)
    chosen = choose_regime("encoder", tokenizer, [5] * 1000, budget=1)
    assert (chosen.name, chosen.seconds) == (name, 4 * seconds)
    assert "1,000 documents for 4 epochs" in chosen.reason
    assert chosen.settings is (FINE_TUNING if name == "fine-tuned" else FROZEN)


def test_the_estimate_grows_with_the_tokens(encoder_dir, tokenizer):
    short, long = (regime.estimate_epoch(encoder_dir, tokenizer, [length] * 64) for length in (4, 28))
    assert short > 0
    more = regime.estimate_epoch(encoder_dir, tokenizer, [28] * 64_000)
    assert more > 20 * long  # 1,000 times the tokens, with a margin for timing noise


def test_a_budget_of_zero_needs_no_timing(monkeypatch, tokenizer):
    monkeypatch.setattr(regime, "estimate_epoch", lambda *args: pytest.fail("timed"))
    assert choose_regime("encoder", tokenizer, [5], budget=0).name == "frozen"


@pytest.mark.parametrize(("lengths", "budget", "message"), [([], 1, "no training documents"), ([3], -1, "0 or more")])
def test_wrong_arguments_are_refused(tokenizer, lengths, budget, message):
    with pytest.raises(ValueError, match=message):
        choose_regime("encoder", tokenizer, lengths, budget)


def test_few_documents_are_trained_for_more_epochs(monkeypatch, tokenizer):
    monkeypatch.setattr(regime, "estimate_epoch", lambda *args: 1.0)
    few = choose_regime("encoder", tokenizer, [5] * 999, budget=1)
    assert (few.settings["num_train_epochs"], few.seconds) == (20, 20.0)


@pytest.mark.parametrize("settings", [FINE_TUNING, regime.FINE_TUNING_FEW, FROZEN])
def test_the_settings_are_training_arguments(tmp_path, settings):
    HcalTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **settings)
