"""Trains a tiny model with each of SETTINGS, on one or two processes.

    torchrun --nproc_per_node 2 tests/training/two_processes.py FOLDER

writes the final state of each setting to FOLDER. A test calls `train` to do the same on one process. The global batches are
the same in both cases.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from safetensors.torch import save_file

from hcal_hf import HcalTrainer, HcalTrainingArguments
from hcal_hf.commands.training_run import end_processes
from tests.builders import build_model, build_ragged, build_taxonomy, build_tokenizer

RAGGED = {"partial_paths": True, "head": "independent"}
CLASSES = {"label_mode": "multi_path", "head": "independent", "contrast": "aggregate"}
PAIRS = {"label_mode": "multi_path", "contrast": "hjcl"}
VIEWS = {**PAIRS, "contrast_kwargs": {"variant": "released_max", "instance_temperature": 1.0}}
ADAPTIVE = {
    "label_mode": "multi_path",
    "classification_loss": "asl",
    "classification_loss_kwargs": {"gap": 0.2, "rate": 0.1, "gamma_positive": 0.5, "margin": 0.05},
}
SUMMED = {
    "label_mode": "multi_path",
    "head": "independent",
    "classification_loss": "asl",
    "classification_loss_kwargs": {"released": True},
}
PAPER = {"objective": "aggregate", "head": "independent"}

# name: (weighter, its arguments, configuration of the model, global batch size, accumulation steps with two processes)
SETTINGS = {
    "uniform": ("uniform", {}, RAGGED, 8, 1),
    "fixed": ("fixed", {"weights": [0.2, 0.3, 0.5]}, RAGGED, 8, 1),
    "likelihood": ("likelihood", {}, RAGGED, 8, 2),
    "uncertainty": ("uncertainty", {"learning_rate": 0.5}, RAGGED, 8, 2),
    "hcal": ("hcal", {}, RAGGED, 8, 1),
    "hcal_rate": ("hcal_rate", {"first_steps": 3}, RAGGED, 8, 2),
    "dwa": ("dwa", {"period": 3}, RAGGED, 8, 1),
    "famo": ("famo", {"learning_rate": 0.2}, RAGGED, 8, 2),
    "gradnorm": ("gradnorm", {"learning_rate": 0.2}, RAGGED, 8, 2),
    "adaptive asymmetric loss": ("uniform", {}, ADAPTIVE, 8, 2),
    "asymmetric loss as released": ("uniform", {}, SUMMED, 8, 2),
    "aggregate, uniform": ("uniform", {}, PAPER, 8, 1),
    "aggregate, hcal": ("hcal", {}, PAPER, 8, 1),
    "aggregate, gradnorm": ("gradnorm", {"learning_rate": 0.2}, PAPER, 8, 1),
    "contrast, hcal_rate": ("hcal_rate", {"first_steps": 3}, CLASSES, 8, 1),
    # One document per process. Every second document has no label, so a process often has no class.
    "contrast, single documents": ("uniform", {}, CLASSES, 2, 1),
    "pairs, hcal_rate": ("hcal_rate", {"first_steps": 3}, PAIRS, 8, 1),
    "pairs, single documents": ("uniform", {}, PAIRS, 2, 1),
    "views, uniform": ("uniform", {}, VIEWS, 8, 1),
}


def dataset(taxonomy, config):
    """Returns 15 or 16 documents of different lengths.

    With RAGGED, their labels end at different levels. With a contrast, every second document has no label.
    """
    generator = torch.Generator().manual_seed(5)
    rows = []
    has_empty = "contrast" in config
    for i in range(16 if has_empty else 15):
        ids = torch.randint(2, 22, (1 + i % 5,), generator=generator).tolist()
        nodes = range(taxonomy.num_labels) if config is RAGGED else taxonomy.is_leaf.nonzero()[0].tolist()
        labels = [] if has_empty and i % 2 else taxonomy.complete([nodes[(5 * i) % len(nodes)]]).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Dataset.from_list(rows)


def train(name, folder, processes=1):
    """Trains setting `name` for 20 steps.

    Returns the Trainer, the weights of each forward pass, and the losses that the weighter received after each step.
    """
    weighter, kwargs, config, batch, accumulate = SETTINGS[name]
    accumulate = accumulate if processes > 1 else 1
    taxonomy = build_ragged() if config is RAGGED else build_taxonomy()
    model = build_model(taxonomy, dtype=torch.float64, perturbation=0.05, **config)
    args = HcalTrainingArguments(
        str(folder), max_steps=20, per_device_train_batch_size=batch // processes // accumulate, seed=3, optim="sgd",
        gradient_accumulation_steps=accumulate, learning_rate=0.003, lr_scheduler_type="constant",
        max_grad_norm=0.0,  # clipping would hide wrong factors of the gradient
        loss_weighting=weighter, loss_weighting_kwargs=kwargs, logging_steps=4, save_strategy="no", report_to="none",
        use_cpu=True, disable_tqdm=True,
        # By default, documents from the start fill up the last batches.
        accelerator_config={"even_batches": False},
    )  # fmt: skip
    trainer = HcalTrainer(model, args, None, dataset(taxonomy, config), None, build_tokenizer())
    seen = []
    trainer.loss_weighter.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    steps, after_step = [], trainer.loss_weighter.after_step
    trainer.loss_weighter.after_step = lambda *found: steps.append(torch.stack(found[::2])) or after_step(*found)
    trainer.train()
    return trainer, torch.stack(seen), torch.stack(steps) if steps else torch.zeros(0)


def state_of(trainer):
    """Returns the tensors of model and weighter."""
    return {
        **{f"model.{name}": value.detach().clone() for name, value in trainer.model.state_dict().items()},
        **{f"weighter.{name}": value.detach().clone() for name, value in trainer.loss_weighter.state_dict().items()},
    }


def logs_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def main(folder):
    for i, name in enumerate(SETTINGS):
        trainer, weights, steps = train(name, folder / "runs", processes=2)
        assert trainer.accelerator.num_processes == dist.get_world_size() == 2
        assert dist.get_backend() == "gloo"
        # Both processes have the same model and used the same weights at every step.
        for value in (weights, steps, *state_of(trainer).values()):
            both = [torch.empty_like(value) for _ in range(2)]
            dist.all_gather(both, value.contiguous())
            assert torch.equal(*both), name
        if dist.get_rank() == 0:
            save_file(state_of(trainer), folder / f"{i}.safetensors")
            found = {"world_size": dist.get_world_size(), "logs": logs_of(trainer), "weights": weights.tolist(),
                     "steps": steps.tolist()}  # fmt: skip
            (folder / f"{i}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    del trainer
    end_processes()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
