"""Trains a tiny model with each option of docs/how-to/ways-of-training.md, in each way.

    torchrun --nproc_per_node 2 tests/training/ways.py FOLDER {ddp,fsdp,save}

writes the result of each option on two processes to FOLDER. A test calls `train` for the ways on one process. The global
batches are the same in all ways.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from hcal_hf import HcalTrainer, HcalTrainingArguments
from hcal_hf.commands.training_run import end_processes
from tests.builders import build_model, build_taxonomy, build_tokenizer

MULTI = {"label_mode": "multi_path", "score_function": "linear"}
PENALTY = {"geometry": "hyperbolic_penalty", "geometry_weight": 1.0}
SGD = {"optim": "sgd", "learning_rate": 0.01}

# The rows of the table: (configuration that the option needs, configuration of the option, its training arguments).
OPTIONS = {
    'loss_weighting="uniform"': ({}, {}, {}),
    'loss_weighting="fixed"': ({}, {}, {"loss_weighting": "fixed", "loss_weighting_kwargs": {"weights": [1, 2, 4]}}),
    'loss_weighting="likelihood"': (MULTI, {}, {"loss_weighting": "likelihood"}),
    'loss_weighting="hcal"': ({}, {}, {"loss_weighting": "hcal"}),
    'loss_weighting="hcal_rate"': (
        {},
        {},
        {"loss_weighting": "hcal_rate", "loss_weighting_kwargs": {"first_steps": 1}},
    ),
    'loss_weighting="dwa"': ({}, {}, {"loss_weighting": "dwa", "loss_weighting_kwargs": {"period": 1}}),
    'loss_weighting="famo"': ({}, {}, {"loss_weighting": "famo"}),
    'loss_weighting="gradnorm"': ({}, {}, {"loss_weighting": "gradnorm"}),
    'loss_weighting="uncertainty"': ({}, {}, {"loss_weighting": "uncertainty"}),
    "head_learning_rate": ({}, {}, {"head_learning_rate": 0.1}),
    "prototype_learning_rate": ({}, {}, {"prototype_learning_rate": 0.1}),
    'class_weight="balanced"': ({}, {}, {"class_weight": "balanced"}),
    "class_weight={...}": ({}, {}, {"class_weight": {"opera": 5.0}}),
    "prototype_lr_multipliers": ({}, {}, {"prototype_lr_multipliers": [5.0, 10.0, 20.0]}),
    'train_sampling_strategy="hierarchy"': ({}, {}, {"train_sampling_strategy": "hierarchy"}),
    'prototype_anchor="label_text"': ({}, {"prototype_anchor": "label_text"}, {}),
    'contrast="aggregate"': ({}, {"contrast": "aggregate"}, {}),
    'contrast="hjcl"': (MULTI, {"contrast": "hjcl"}, {}),
    'objective="aggregate"': ({"head": "independent"}, {"objective": "aggregate"}, {}),
    'classification_loss="asl"': (MULTI, {"classification_loss": "asl"}, {}),
    'classification_loss="zlpr"': ({**MULTI, "head": "independent"}, {"classification_loss": "zlpr"}, {}),
    'geometry="hyperbolic_penalty"': ({}, PENALTY, {}),
    'geometry_order="cooccurrence"': (PENALTY, {"geometry_order": "cooccurrence"}, {}),
    'geometry="hyperbolic"': ({}, {"geometry": "hyperbolic"}, {}),
    'score_function="cosine"': (MULTI, {"score_function": "cosine"}, {}),
    'tune="micro_f1"': ({}, {}, {"tune": "micro_f1"}),
    'tune="micro_f1", multi_path': (MULTI, {}, {"tune": "micro_f1"}),
}
STEPS, BATCH = 4, 8
# The option of a run that resumes on another number of processes: its weighter has a state.
RESUMED = 'loss_weighting="hcal_rate"'


def documents(num_rows=16, shift=0):
    """Returns documents of different lengths. Every leaf has at least one."""
    taxonomy = build_taxonomy()
    leaves = taxonomy.is_leaf.nonzero()[0].tolist()
    rows = []
    for i in range(num_rows):
        ids = [2 + (3 * i + k + shift) % 20 for k in range(2 + i % 4)]
        labels = taxonomy.complete([leaves[(5 * i) % len(leaves)]]).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Dataset.from_list(rows)


def make_model(fields, frozen=False):
    model = build_model(
        build_taxonomy(), dtype=torch.float64, **{"perturbation": 0.0, "score_function": "linear", **fields}
    )
    if model.prototypes.is_anchored:
        model.embed_labels(build_tokenizer())
    if frozen:
        model.encoder.requires_grad_(False)
    return model


def features():
    """Returns pooled states of the same documents, for the solver."""
    model, rows = make_model({}), documents()
    states = []
    with torch.no_grad():
        for row in rows:
            hidden = model.encoder(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state
            states.append(model.pool(hidden)[0].tolist())
    return Dataset.from_dict({"pooled_states": states, "labels": rows["labels"]})


def train(option, folder, way="one process", *, without=False, processes=1, resume=None, **further):
    """Trains with an option, and further training arguments. Returns the Trainer.

    `without` leaves the option out, with the same other settings. `resume` resumes from the last checkpoint.
    """
    needed, fields, arguments = OPTIONS[option]
    fields, arguments = (needed, {}) if without else ({**needed, **fields}, arguments)
    table = features() if way == "solver" else documents()
    settings = {
        **SGD, "max_steps": STEPS, "per_device_train_batch_size": BATCH // processes, "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential", "max_grad_norm": 0.0, "seed": 3, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
        "accelerator_config": {"even_batches": False}, **arguments, **further,
    }  # fmt: skip
    if way == "solver":
        settings["head_solver"] = "lbfgs"
        if "train_sampling_strategy" not in arguments:
            settings["train_sampling_strategy"] = "random"
    if way == "FSDP 2":
        settings |= {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["BertLayer"]}}
    args = HcalTrainingArguments(str(folder), **settings)
    data = table.to_iterable_dataset() if way == "stream" else table
    models = {"model": make_model(fields, way == "solver")}
    if way == "model_init":
        models = {"model": None, "model_init": lambda: make_model(fields)}
    held_out = features() if way == "solver" else documents(32, shift=1)
    if way == "solver" and "tune" in arguments:
        held_out = held_out.select([*range(16), *range(8)])
    trainer = HcalTrainer(
        args=args, train_dataset=data, eval_dataset=held_out, processing_class=build_tokenizer(), **models
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def state_of(trainer):
    """Returns the tensors of model and weighter, and the fitted decisions."""
    config = trainer.unwrapped_model.config
    state = {f"model.{name}": value for name, value in trainer.unwrapped_model.state_dict().items()}
    state |= {f"weighter.{name}": value for name, value in trainer.loss_weighter.state_dict().items()}
    state["temperature"] = torch.tensor(config.score_temperature, dtype=torch.float64)
    state["thresholds"] = torch.tensor(config.thresholds or [], dtype=torch.float64)
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}
    return {name: value.detach().clone().contiguous() for name, value in whole.items()}


def main(folder, kind):
    if kind == "fsdp":  # accelerate ignores FSDP on CPUs, so the processes look like GPU processes
        start_process = PartialState.__init__

        def start_as_gpu(self, *args, **kwargs):
            start_process(self, *args, **kwargs)
            if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
                PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

        PartialState.__init__ = start_as_gpu
    if kind == "save":  # a checkpoint in the middle of the first epoch
        train(RESUMED, folder, "DDP", processes=2, save_strategy="steps", save_steps=1, max_steps=1)
        end_processes()
        return
    way = {"ddp": "DDP", "fsdp": "FSDP 2"}[kind]
    for i, option in enumerate(OPTIONS):
        refused, state = "", {}
        try:
            trainer = train(option, folder / f"run{i}", way, processes=2)
        except (ValueError, TypeError) as problem:
            refused = f"{type(problem).__name__}: {problem}"
        else:
            assert trainer.accelerator.num_processes == dist.get_world_size() == 2
            assert trainer.is_fsdp_enabled == (kind == "fsdp")
            if kind == "fsdp":
                trainer.model.reshard()  # an evaluation leaves the weights outside of layers whole
                assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
            state = state_of(trainer)
            for name, value in state.items():
                both = [torch.empty_like(value) for _ in range(2)]
                dist.all_gather(both, value)
                assert torch.equal(*both), (option, name)
        if dist.get_rank() == 0:
            save_file(state, folder / f"{i}.safetensors", metadata={"option": option, "refused": refused})
        dist.barrier()
    (folder / "finished").write_text(json.dumps(list(OPTIONS)), encoding="utf-8")
    end_processes()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
