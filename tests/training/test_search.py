"""Searches of hyperparameters: the objective, the trials, the last training, and errors."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hcal_hf import HcalTrainer, HcalTrainingArguments
from hcal_hf.training.search import LEARNING_RATES, search_space
from tests.builders import build_model

ROOT = Path(__file__).parents[2]
optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def make_search(taxonomy, data, tokenizer, tmp_path):
    def make(model_init=None, **kwargs):
        kwargs = {"num_train_epochs": 1, "per_device_train_batch_size": 7, "save_strategy": "no", "report_to": "none",
                  "use_cpu": True, "disable_tqdm": True, "eval_strategy": "epoch", **kwargs}  # fmt: skip
        args = HcalTrainingArguments(str(tmp_path / "search"), **kwargs)
        return HcalTrainer(
            None, args, None, data, data, tokenizer,
            model_init=model_init or (lambda: build_model(taxonomy, perturbation=0.0)),
        )  # fmt: skip

    return make


def rates(trial):
    return {"learning_rate": trial.suggest_categorical("learning_rate", [1e-9, 0.05])}


def test_the_best_trial_is_trained_again(make_search, tmp_path):
    trainer = make_search()
    seen = []
    sampler = optuna.samplers.GridSampler({"learning_rate": [1e-9, 0.05]})
    best = trainer.hyperparameter_search(
        rates, n_trials=2, backend="optuna", sampler=sampler, hp_name=lambda trial: seen.append(trial) or "t"
    )
    assert best.hyperparameters == {"learning_rate": 0.05}
    assert trainer.args.learning_rate == 0.05
    found = trainer.evaluate()
    assert found["eval_micro_f1"] == pytest.approx(best.objective, abs=1e-6)
    written = json.loads((tmp_path / "search/best_hyperparameters.json").read_text(encoding="utf-8"))
    assert written["hyperparameters"] == best.hyperparameters
    assert written["objective"] == best.objective


def test_the_metric_for_the_best_model_is_the_objective(make_search):
    trainer = make_search(metric_for_best_model="hvr")
    best = trainer.hyperparameter_search(rates, n_trials=2, refit=False)  # Optuna is preferred to Ray
    assert trainer.model is None
    assert best.objective == 0.0  # the head is coherent, and fewer violations are better
    assert trainer.args.learning_rate == 5e-5  # as before the search


def test_model_init_may_take_the_trial(make_search, taxonomy):
    sizes = []

    def model_init(trial):
        size = 4 if trial is None else trial.suggest_categorical("size", [4, 8])
        sizes.append(size)
        return build_model(taxonomy, projection_dim=size)

    trainer = make_search(model_init)
    sampler = optuna.samplers.GridSampler({"size": [4, 8], "learning_rate": [0.05]})
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [0.05])},
        n_trials=2, backend="optuna", sampler=sampler,
    )  # fmt: skip
    assert {4, 8} <= set(sizes)
    assert trainer.model.projection.out_features == best.hyperparameters["size"]


def test_a_trial_may_name_a_weighter(make_search):
    trainer = make_search(logging_steps=1)
    names = []
    step = HcalTrainer._weighted_loss

    def note(self, *args):
        names.append(type(self.loss_weighter).__name__)
        return step(self, *args)

    HcalTrainer._weighted_loss = note
    try:
        sampler = optuna.samplers.GridSampler({"loss_weighting": ["uniform", "uncertainty"]})
        trainer.hyperparameter_search(
            lambda trial: {"loss_weighting": trial.suggest_categorical("loss_weighting", ["uniform", "uncertainty"])},
            n_trials=2, backend="optuna", sampler=sampler, refit=False,
        )  # fmt: skip
    finally:
        HcalTrainer._weighted_loss = step
    assert {"UniformWeighter", "UncertaintyWeighter"} <= set(names)


def test_bad_trials_are_pruned(make_search):
    class Prune(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1

    trainer = make_search(num_train_epochs=2)
    states = []
    best = trainer.hyperparameter_search(
        lambda trial: (states.append(trial), rates(trial))[1], n_trials=3, backend="optuna", pruner=Prune()
    )
    assert best.run_id != "1"
    study = states[0].study
    assert study.trials[1].state == optuna.trial.TrialState.PRUNED
    assert torch.isfinite(trainer.model.prototypes.weight).all()


def test_the_default_space_lies_in_its_ranges():
    study = optuna.create_study()
    space = search_space(study.ask())
    assert set(space) == {*LEARNING_RATES, "num_train_epochs"}
    assert all(low <= space[name] <= high for name, (low, high) in LEARNING_RATES.items())
    assert math.isclose(study.trials[0].params["learning_rate"], space["learning_rate"])


def test_a_search_that_cannot_work_is_refused(make_search, taxonomy, data, tokenizer, tmp_path):
    trainer = make_search()
    with pytest.raises(ValueError, match="compute_objective needs a direction"):
        trainer.hyperparameter_search(rates, lambda metrics: 1.0, backend="optuna")
    trainer.args.metric_for_best_model = "micro_f2"
    with pytest.raises(ValueError, match=r"'micro_f2' is not among the metrics of the evaluation: .*micro_f1"):
        trainer.hyperparameter_search(rates, n_trials=1, backend="optuna")
    assert trainer.args.learning_rate == 5e-5  # as before the search
    args = HcalTrainingArguments(str(tmp_path / "x"), use_cpu=True, report_to="none")
    with pytest.raises(RuntimeError, match="needs model_init"):
        HcalTrainer(build_model(taxonomy), args, None, data, data, tokenizer).hyperparameter_search(rates)
    make = lambda: build_model(taxonomy)  # noqa: E731
    with pytest.raises(ValueError, match="pass eval_dataset"):
        HcalTrainer(None, args, None, data, None, tokenizer, model_init=make).hyperparameter_search(rates)


@pytest.mark.slow
def test_ray_tune_searches_too(tmp_path):
    pytest.importorskip("ray.tune", exc_type=ImportError)
    # Ray pickles the trainer, with whatever earlier tests left in this process.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/training/ray_search.py"), str(tmp_path / "search")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["rate"] == 0.05
    assert result["found"] == pytest.approx(result["objective"], abs=1e-6)
