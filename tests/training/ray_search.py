"""Searches two learning rates with Ray Tune in its own process, and prints the result as JSON. Used by test_search.py."""

import json
import sys

import ray
from datasets import Dataset
from ray import tune

from hcal_hf import HcalTrainer, HcalTrainingArguments, encode_dataset
from tests.builders import build_model, build_taxonomy, build_tokenizer
from tests.training.conftest import TEXTS


def main(folder: str) -> None:
    taxonomy, tokenizer = build_taxonomy(), build_tokenizer()
    rows = [{"text": f"{text} {extra}", "labels": [leaf]} for extra in ("the", "a") for leaf, text in TEXTS.items()]
    data = encode_dataset(Dataset.from_list(rows), taxonomy, tokenizer, label_mode="single_path")
    args = HcalTrainingArguments(
        folder, num_train_epochs=2, per_device_train_batch_size=7, save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, eval_strategy="epoch",
    )  # fmt: skip
    trainer = HcalTrainer(
        None, args, None, data, data, tokenizer, model_init=lambda: build_model(taxonomy, perturbation=0.0)
    )
    ray.init(num_cpus=1, include_dashboard=False)
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": tune.grid_search([1e-9, 0.05])},
        n_trials=1, backend="ray", resources_per_trial={"cpu": 1},
    )  # fmt: skip
    ray.shutdown()
    found = trainer.evaluate()["eval_micro_f1"]
    print(json.dumps({"rate": best.hyperparameters["learning_rate"], "objective": best.objective, "found": found}))


if __name__ == "__main__":
    main(sys.argv[1])
