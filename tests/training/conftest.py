"""Documents and trainers that several tests use."""

import pytest
import torch
from datasets import Dataset

from hcal_hf import HcalTrainer, HcalTrainingArguments, encode_dataset

TEXTS = {
    "astronomy": "stars and atoms", "quantum": "atoms with energy", "genetics": "genes in cells", "botany": "plants",
    "poetry": "poems of old", "fiction": "new novels", "opera": "drama with music",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(taxonomy, tokenizer):
    rows = [
        {"text": f"{text} {extra}", "labels": [leaf]}
        for extra in ("study", "first", "the", "a")
        for leaf, text in TEXTS.items()
    ]
    return encode_dataset(Dataset.from_list(rows), taxonomy, tokenizer, label_mode="single_path")


@pytest.fixture
def make_trainer(make_model, tokenizer, tmp_path):
    def make(taxonomy, data, *, folder="run", model=None, loss_weighter=None, eval_data=None, config=None, **kwargs):
        model = model or make_model(taxonomy, **{"dtype": torch.float64, "perturbation": 0.0, **(config or {})})
        kwargs = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.05, "optim": "sgd",
                  "lr_scheduler_type": "linear", "logging_steps": 1, "save_strategy": "no", "report_to": "none",
                  "use_cpu": True, "disable_tqdm": True, "seed": 3, "loss_weighting": "hcal", **kwargs}  # fmt: skip
        args = HcalTrainingArguments(str(tmp_path / folder), **kwargs)
        return HcalTrainer(
            model, args, train_dataset=data, eval_dataset=eval_data, processing_class=tokenizer,
            loss_weighter=loss_weighter,
        )  # fmt: skip

    return make
