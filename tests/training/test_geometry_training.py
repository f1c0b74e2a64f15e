"""Training with a hyperbolic geometry: logs, accumulation, resuming, co-occurrence counts, the solver of frozen heads."""

import logging
import os

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from hcal_hf import HcalTrainer, HcalTrainingArguments, fit_head
from hcal_hf.commands.run_arguments import ModelArguments
from hcal_hf.commands.training_run import _config_fields
from hcal_hf.training.features import pooled_features
from tests.builders import build_model, random_multi_hot

HYPERBOLIC = {"geometry": "hyperbolic", "score_function": "linear"}
PENALTY = {"geometry": "hyperbolic_penalty", "score_function": "linear"}


@pytest.fixture(scope="module")
def data(ragged):
    """Returns encoded documents of random tokens with one path each, which may end at any node."""
    rng = np.random.default_rng(0)
    labels = [row.nonzero().flatten().tolist() for row in random_multi_hot(rng, ragged, 24, single_path=True)]
    ids = [rng.integers(2, 22, size=6).tolist() for _ in labels]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 6] * len(ids), "labels": labels})


@pytest.fixture
def make_trainer(ragged, data, tokenizer, tmp_path):
    def make(config, *, folder="run", dataset=data, model=None, **kwargs):
        fields = {"dtype": torch.float64, "partial_paths": True, **config}
        kwargs = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.02, "logging_steps": 1,
                  "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, **kwargs}  # fmt: skip
        args = HcalTrainingArguments(str(tmp_path / folder), **kwargs)
        model = build_model(ragged, **fields) if model is None else model
        return HcalTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)

    return make


def parameters(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("config", [PENALTY, HYPERBOLIC, {**HYPERBOLIC, "geometry_order": "mixed"}], ids=str)
@pytest.mark.parametrize("weighting", ["uniform", "hcal_rate"])
def test_accumulation_equals_one_batch_and_the_label_loss_has_a_fixed_weight(make_trainer, config, weighting):
    found = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            {**config, "geometry_rows": 3}, folder=f"{batch}", per_device_train_batch_size=batch, optim="sgd",
            gradient_accumulation_steps=steps, loss_weighting=weighting,
        )  # fmt: skip
        trainer.train()
        found.append((parameters(trainer), trainer.state.log_history))
    assert_close(found[0][0], found[1][0], 1e-9)
    for one, four in zip(found[0][1][:4], found[1][1][:4]):
        assert one["weight_label_penalty"] == four["weight_label_penalty"] == pytest.approx(0.1)
        assert four["loss_label_penalty"] == pytest.approx(one["loss_label_penalty"], abs=1e-6)
        assert four["loss"] == pytest.approx(one["loss"], abs=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {**HYPERBOLIC, "geometry_rows": 3, "geometry_order": "mixed", "perturbation": 0.05},
        {
            **PENALTY, "label_mode": "multi_path", "head": "independent", "prototype_temperature": 1, "perturbation": 0,
            "geometry_order": "cooccurrence", "geometry_released": True,
        },
    ],
    ids=["mixed", "released"],
)  # fmt: skip
def test_a_resumed_run_equals_the_uninterrupted_run_bit_for_bit(make_trainer, config):
    kwargs = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5, "gradient_accumulation_steps": 2}
    whole = make_trainer({**config, "dropout": 0.1, "dtype": torch.float32}, folder="whole", **kwargs)
    whole.train()
    for step in (1, 3):
        again = make_trainer(
            {**config, "dropout": 0.1, "seed": 9, "dtype": torch.float32}, folder=f"again{step}", **kwargs
        )
        again.train(resume_from_checkpoint=os.path.join(whole.args.output_dir, f"checkpoint-{step}"))
        for name, value in parameters(whole).items():
            assert torch.equal(parameters(again)[name], value), name


def test_the_label_loss_is_the_same_on_all_processes_and_changes_with_the_step(make_trainer):
    trainer = make_trainer({**PENALTY, "geometry_rows": 3})
    seeds = []
    for step in (0, 0, 1):
        trainer.state.global_step = step
        torch.manual_seed(len(seeds))  # the state of torch's generator differs between processes
        seeds.append(trainer._step_seed(1))
    assert seeds[0] == seeds[1] != seeds[2]
    assert trainer._step_seed() != seeds[2]
    trainer.train()
    losses = [entry["loss_label_penalty"] for entry in trainer.state.log_history if "loss_label_penalty" in entry]
    assert len(set(losses)) == len(losses) == 4


def test_the_loss_in_evaluation_has_no_label_penalty(make_trainer, data):
    trainer = make_trainer({**PENALTY, "perturbation": 0})
    found = trainer.evaluate(data)["eval_loss"]
    plain = make_trainer({"score_function": "linear", "perturbation": 0}).evaluate(data)["eval_loss"]
    assert found == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize("order", ["cooccurrence", "mixed"])
def test_cooccurrence_is_counted_in_the_training_rows_only(make_trainer, data, order):
    trainer = make_trainer({**PENALTY, "geometry_order": order}, dataset=data.select(range(10)))
    assert trainer.model.label_penalty.counts is None
    trainer.train()
    counts = trainer.model.label_penalty.counts(torch.arange(9))
    rows = data.select(range(10))["labels"][:]
    assert counts.tolist() == [[sum(1 for row in rows if t in row and c in row) for c in range(9)] for t in range(9)]
    assert not any("counts" in name for name in trainer.model.state_dict())


def test_a_stream_needs_hops_or_earlier_counts(make_trainer, data):
    stream = IterableDataset.from_generator(lambda: iter(data))
    with pytest.raises(ValueError, match='geometry_order="mixed" counts the labels of the training rows'):
        make_trainer({**PENALTY, "geometry_order": "mixed"}, dataset=stream).train()
    make_trainer({**PENALTY, "geometry_order": "hops"}, dataset=stream, max_steps=1).train()


@pytest.fixture(scope="module")
def features(ragged, data, tokenizer):
    model = build_model(ragged, partial_paths=True)
    return pooled_features(model, data, tokenizer)


@pytest.mark.parametrize("config", [PENALTY, HYPERBOLIC], ids=str)
def test_lbfgs_is_refused_and_auto_takes_the_optimizer_and_logs_it(make_trainer, features, config, caplog):
    trainer = make_trainer({**config, "dtype": torch.float32}, dataset=features, head_solver="lbfgs")
    trainer.model.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match=f"convex.*geometry='{config['geometry']}'.*head_solver=\"optimizer\""):
        trainer.train()
    with pytest.raises(ValueError, match="convex"):
        fit_head(trainer.model, torch.randn(3, 16), torch.ones(3, 9))
    trainer.args.head_solver = "auto"
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 4
    assert 'head_solver="auto" trains the head in batches by the optimiser' in caplog.text
    assert f"geometry={config['geometry']!r}" in caplog.text


def test_weight_decay_leaves_the_radius_alone(make_trainer):
    trainer = make_trainer(HYPERBOLIC, weight_decay=0.1)
    names = trainer.get_decay_parameter_names(trainer.model)
    assert "prototypes.weight" in names
    assert "prototypes.radius" not in names
    trainer.train()
    assert trainer.model.prototypes.radius.item() != 1


@pytest.mark.parametrize("frozen", [True, False])
def test_a_run_has_linear_scores_if_the_geometry_is_hyperbolic(frozen):
    fields = _config_fields(
        ModelArguments(geometry="hyperbolic", geometry_weight=0.2), "frozen" if frozen else "fine-tuned"
    )
    assert (fields["geometry"], fields["geometry_weight"], fields["score_function"]) == ("hyperbolic", 0.2, "linear")
    assert _config_fields(ModelArguments(), "fine-tuned")["score_function"] == "cosine"
