"""Learning rates of parts of the model: replaced parameters, optimisers of the caller, FSDP 1, DeepSpeed."""

from types import SimpleNamespace

import pytest
import torch
from datasets import IterableDataset
from torch import nn

from hcal_hf import HcalTrainer, HcalTrainingArguments, build_weighter


def test_multipliers_apply_to_the_parameter_that_replaced_the_first_one(make_model, taxonomy, tmp_path):
    """FSDP replaces each parameter by a sharded one after the optimiser was created."""
    model = make_model(taxonomy, preset="paper")
    args = HcalTrainingArguments.paper(str(tmp_path), report_to="none", use_cpu=True, weight_decay=0.5)
    trainer = HcalTrainer(model, args)
    optimizer = trainer.create_optimizer()
    old = model.prototypes.weight
    new = model.prototypes.weight = nn.Parameter(torch.ones_like(old))
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    new.grad = torch.ones_like(new)
    optimizer.step()
    for factor, level in zip((20.0, 10.0, 5.0), taxonomy.levels):
        # One SGD step on gradient 1 plus weight decay 0.5 of weight 1.
        expected = torch.full_like(new[level], 1 - 0.01 * factor * 1.5)
        torch.testing.assert_close(new[level].detach(), expected)
    model.prototypes.weight = nn.Parameter(torch.ones_like(old))
    with pytest.raises(RuntimeError, match="the prototypes are not among the optimiser's parameters"):
        optimizer.step()


def test_multipliers_of_frozen_prototypes_are_refused(make_model, taxonomy, tmp_path):
    model = make_model(taxonomy, preset="paper")
    model.prototypes.requires_grad_(False)
    trainer = HcalTrainer(model, HcalTrainingArguments.paper(str(tmp_path), report_to="none", use_cpu=True))
    with pytest.raises(ValueError, match="but the prototypes are frozen"):
        trainer.create_optimizer()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"head_learning_rate": 0.0}, "head_learning_rate"),
        ({"prototype_learning_rate": 1.0}, "prototype_learning_rate"),
        (
            {"head_learning_rate": 1.0, "prototype_lr_multipliers": [5.0], "optim": "sgd"},
            "head_learning_rate and prototype_lr_multipliers",
        ),
    ],
)
def test_rates_of_parts_are_refused_with_an_optimizer_of_the_caller(make_model, taxonomy, tmp_path, options, names):
    model = make_model(taxonomy)
    args = HcalTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"cannot be combined with {names}: set the rates in the parameter groups"):
        HcalTrainer(model, args, optimizers=(optimizer, None))


def test_multipliers_need_sgd_also_as_a_class(make_model, taxonomy, tmp_path):
    args = HcalTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, optim="sgd", prototype_lr_multipliers=[5.0]
    )
    with pytest.raises(ValueError, match="need SGD, but optimizer_cls_and_kwargs has AdamW"):
        HcalTrainer(make_model(taxonomy), args, optimizer_cls_and_kwargs=(torch.optim.AdamW, {"lr": 0.1}))
    HcalTrainer(make_model(taxonomy), args, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}))


def test_learned_weights_need_a_place_in_an_optimizer_of_the_caller(
    make_model, make_trainer, data, taxonomy, tmp_path
):
    model = make_model(taxonomy)
    args = HcalTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, loss_weighting="uncertainty", max_steps=3, save_strategy="no"
    )
    with pytest.raises(ValueError, match=r"UncertaintyWeighter has parameters that the optimizer .* does not train"):
        HcalTrainer(model, args, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
    weighter = build_weighter("uncertainty", len(taxonomy.levels))
    optimizer = torch.optim.SGD([*model.parameters(), *weighter.parameters()], lr=0.1)
    HcalTrainer(
        model, args, train_dataset=data, loss_weighter=weighter, optimizers=(optimizer, None),
        processing_class=make_trainer(taxonomy, data).processing_class,
    ).train()  # fmt: skip
    assert weighter.log_variances.abs().min() > 0


def test_fsdp_1_is_refused(make_trainer, data, taxonomy):
    trainer = make_trainer(taxonomy, data)
    trainer.is_fsdp_enabled = True
    trainer.accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=1)
    try:
        with pytest.raises(ValueError, match=r"FSDP 1 hides the parts of the model.*use FSDP 2"):
            trainer._check_optimizer_options()
        trainer.accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=2)
        trainer._check_optimizer_options()
    finally:
        trainer.accelerator.state.fsdp_plugin = None


def test_multipliers_are_refused_under_deepspeed(make_trainer, data, taxonomy):
    trainer = make_trainer(taxonomy, data, prototype_lr_multipliers=[5.0])
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match=r"prototype_lr_multipliers change the gradients.*DeepSpeed does not expose"):
        trainer._check_optimizer_options()


@pytest.mark.parametrize("with_columns", [False, True])
def test_a_stream_without_rows_is_named(make_trainer, data, taxonomy, with_columns):
    stream = IterableDataset.from_generator(lambda: iter(()), features=data.features if with_columns else None)
    with pytest.raises(ValueError, match="train_dataset is a stream without rows"):
        make_trainer(taxonomy, stream).train()


def test_a_stream_cannot_tell_which_labels_have_documents(make_trainer, data, taxonomy, caplog):
    stream = data.to_iterable_dataset()
    config = {"prototype_anchor": "label_text", "label_texts": list(taxonomy.labels)}
    trainer = make_trainer(taxonomy, stream, config=config, max_steps=1)
    trainer.train()
    assert "it is unknown which labels have training documents" in caplog.text
    caplog.clear()
    trainer = make_trainer(taxonomy, stream, config=config, max_steps=1)
    trainer.model.prototypes.trained[0] = False  # the caller knows
    trainer.train()
    assert "it is unknown" not in caplog.text
    assert not trainer.model.prototypes.trained[0]
