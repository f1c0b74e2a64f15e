"""The Trainer: exact accumulation and resuming, logs, evaluation, tuning, and refused input."""

import json
import os

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hcal_hf import BadRowsError, HcalDataCollator, HcalTrainer, HcalTrainingArguments, encode_dataset
from hcal_hf.training.replicas import join_losses
from hcal_hf.training.weighting import LossWeighter, UniformWeighter
from tests.training.conftest import TEXTS


@pytest.fixture
def ragged_data(ragged, tokenizer):
    """Returns documents with labels of different depths, so that batches differ in the number of labels per level."""
    labels = ["c", "a11", "b1", "c", "a12", "a2", "c", "b2", "a11", "c", "c", "b1", "a12", "c", "b2", "a2"]
    rows = [{"text": list(TEXTS.values())[i % 7], "labels": [label]} for i, label in enumerate(labels)]
    return encode_dataset(Dataset.from_list(rows), ragged, tokenizer, label_mode="single_path")


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        if tolerance:
            torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        else:
            assert torch.equal(a[name], b[name]), name


class EmaWeighter(LossWeighter):
    """Weighter with a state, a moving average of the losses."""

    def __init__(self, num_tasks):
        super().__init__(num_tasks)
        self.register_buffer("ema", torch.ones(num_tasks))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, losses, present=None):
        weights = self.ema * present
        return weights / weights.sum()

    def after_step(self, losses, present):
        self.ema.copy_(torch.where(present, 0.5 * self.ema + 0.5 * losses.to(self.ema), self.ema))
        self.steps += 1


@pytest.mark.parametrize("weighter", [UniformWeighter, EmaWeighter])
@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_gradient_accumulation_equals_one_batch_with_labels_of_any_depth(
    make_trainer, ragged, ragged_data, weighter, mode
):
    results = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            ragged, ragged_data, folder=f"{batch}", per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
            loss_weighter=weighter(3), config={"label_mode": mode, "partial_paths": True},
        )  # fmt: skip
        trainer.train()
        results.append((weights(trainer.model), trainer.loss_weighter.state_dict(), trainer.state.log_history))
    assert_same(results[0][0], results[1][0], atol=1e-10, rtol=0)
    assert_same(results[0][1], results[1][1], atol=1e-6, rtol=0)
    for one, four in zip(results[0][2][:4], results[1][2][:4]):
        for name in ("loss", *(key for key in one if key.startswith(("loss_", "weight_")))):
            assert four[name] == pytest.approx(one[name], abs=1e-6), name


def test_accumulated_gradients_equal_the_gradients_of_one_batch(make_trainer, make_model, ragged, ragged_data):
    """Compares the gradients, without clipping and without the state of an optimizer."""
    found = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            ragged, ragged_data.select(range(8)), folder=f"g{batch}", per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps, max_steps=1, max_grad_norm=0.0, learning_rate=1.0, weight_decay=0.0,
            lr_scheduler_type="constant", loss_weighter=UniformWeighter(3), config={"partial_paths": True},
        )  # fmt: skip
        before = weights(trainer.model)
        trainer.train()
        after = weights(trainer.model)
        found.append({name: before[name] - after[name] for name in before if before[name].is_floating_point()})
    assert_same(*found, atol=1e-12, rtol=0)
    assert max(gradient.abs().max() for gradient in found[0].values()) > 1e-3


def test_the_hcal_weighter_computes_weights_for_each_micro_batch(make_trainer, ragged, ragged_data):
    trainer = make_trainer(
        ragged, ragged_data, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1,
        config={"partial_paths": True},
    )  # fmt: skip
    seen = []
    forward = trainer.loss_weighter.forward
    trainer.loss_weighter.forward = lambda losses, present: seen.append(forward(losses, present)) or seen[-1]
    trainer.train()
    assert len(seen) == 2
    assert not torch.allclose(seen[0], seen[1])


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"dropout": 0.1, "perturbation": 0.05}], ids=["plain", "dropout and noise"])
def test_resuming_at_any_step_gives_exactly_the_weights_of_the_uninterrupted_run(
    make_trainer, make_model, data, taxonomy, config
):
    kwargs = {"optim": "adamw_torch", "max_steps": 5, "save_steps": 1, "save_strategy": "steps", "learning_rate": 1e-2,
              "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}  # fmt: skip
    config = {"dtype": torch.float32, **config}
    whole = make_trainer(taxonomy, data, folder="whole", config=config, loss_weighter=EmaWeighter(3), **kwargs)
    whole.train()
    for step in range(1, 5):
        again = make_trainer(
            taxonomy,
            data,
            folder=f"from {step}",
            config={**config, "seed": 99},
            loss_weighter=EmaWeighter(3),
            **kwargs,
        )
        again.train(resume_from_checkpoint=os.path.join(whole.args.output_dir, f"checkpoint-{step}"))
        assert_same(weights(whole.model), weights(again.model))
        assert_same(whole.loss_weighter.state_dict(), again.loss_weighter.state_dict())
        assert again.loss_weighter.steps == 5


def test_the_same_seed_gives_the_same_weights(make_trainer, data, taxonomy):
    config = {"dtype": torch.float32, "dropout": 0.1, "perturbation": 0.05}
    runs = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        trainer = make_trainer(taxonomy, data, folder=folder, seed=seed, config=config)
        trainer.train()
        runs.append(weights(trainer.model))
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["prototypes.weight"], runs[2]["prototypes.weight"])


def test_weighter_state_is_saved_as_safetensors_and_another_weighter_cannot_resume(make_trainer, data, taxonomy):
    trainer = make_trainer(
        taxonomy, data, loss_weighter=EmaWeighter(3), save_strategy="steps", save_steps=2, max_steps=2
    )
    trainer.train()
    checkpoint = get_last_checkpoint(trainer.args.output_dir)
    saved = load_file(os.path.join(checkpoint, "loss_weighter.safetensors"))
    assert saved["steps"] == 2
    assert torch.equal(saved["ema"], trainer.loss_weighter.ema)
    other = make_trainer(taxonomy, data, folder="other", loss_weighting="uniform", max_steps=3)
    with pytest.raises(ValueError, match="trained with the loss weighter EmaWeighter, this run uses UniformWeighter"):
        other.train(resume_from_checkpoint=checkpoint)


def test_evaluation_does_not_update_the_weighter_and_reports_the_mean_loss(make_trainer, data, taxonomy):
    trainer = make_trainer(taxonomy, data, loss_weighter=EmaWeighter(3), eval_data=data)
    before = {name: value.clone() for name, value in trainer.loss_weighter.state_dict().items()}
    found = trainer.evaluate()
    assert_same(before, trainer.loss_weighter.state_dict())
    assert "loss_level_0" not in found
    batch = trainer.data_collator([data[i] for i in range(len(data))])
    with torch.no_grad():
        output = trainer.model.eval()(**batch)
    assert found["eval_loss"] == pytest.approx(output.task_losses.mean().item(), abs=1e-6)


def test_loss_and_weight_of_each_task_are_averaged_and_logged(make_trainer, data, taxonomy):
    trainer = make_trainer(taxonomy, data, logging_steps=2, lr_scheduler_type="constant", learning_rate=0.0,
                           remove_unused_columns=False)  # fmt: skip
    expected, compute = [], trainer.model.forward

    def spy(**inputs):
        output = compute(**inputs)
        expected.append(output.task_losses.detach())
        return output

    trainer.model.forward = spy
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for i, entry in enumerate(logs):
        two = torch.stack(expected[2 * i : 2 * i + 2])
        for k in range(3):
            assert entry[f"loss_level_{k}"] == pytest.approx(two[:, k].mean().item())
            assert entry[f"weight_level_{k}"] == pytest.approx((two / 0.5).softmax(1)[:, k].mean().item())
        assert entry["loss"] == pytest.approx(((two / 0.5).softmax(1) * two).sum(1).mean().item(), abs=1e-5)


def test_default_metrics_work_in_metric_for_best_model(make_trainer, data, taxonomy):
    trainer = make_trainer(
        taxonomy, data, eval_data=data, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        max_steps=4, metric_for_best_model="hierarchical_f1", greater_is_better=True, load_best_model_at_end=True,
        save_total_limit=1, config={"dtype": torch.float32},
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric is not None
    found = trainer.evaluate()
    for name in ("micro_f1", "macro_f1", "hierarchical_f1", "exact_match", "accuracy_level_2", "hvr", "raw_hvr",
                 "raw_hvr_node", "raw_hvr_level_1", "raw_micro_f1", "hvr_score", "hvr_argmax"):  # fmt: skip
        assert isinstance(found[f"eval_{name}"], float), name
    assert found["eval_hvr"] == 0.0
    json.dumps(found)


def test_predictions_are_in_the_order_of_the_documents(make_trainer, data, taxonomy):
    """transformers would reorder the documents if training groups them by length."""
    trainer = make_trainer(taxonomy, data, train_sampling_strategy="group_by_length", per_device_eval_batch_size=3)
    found = trainer.predict(data)
    with torch.no_grad():
        alone = [trainer.model(**trainer.data_collator([row])).logits[0] for row in data]
    torch.testing.assert_close(torch.as_tensor(found.predictions), torch.stack(alone))
    assert trainer.args.train_sampling_strategy == "group_by_length"


def test_index_labels_and_multi_hot_labels_give_the_same_metrics(make_trainer, make_model, data, taxonomy):
    trainer = make_trainer(taxonomy, data, eval_data=data)
    dense = trainer.evaluate()
    trainer.data_collator.targets = "indices"
    sparse = trainer.evaluate()
    for name, value in dense.items():
        if not name.endswith(("runtime", "per_second", "preparation_time")):
            assert sparse[name] == pytest.approx(value), name


def test_encoder_head_and_prototypes_have_their_own_learning_rates(make_trainer, data, taxonomy):
    trainer = make_trainer(
        taxonomy, data, learning_rate=1e-4, head_learning_rate=1e-3, prototype_learning_rate=1e-2, weight_decay=0.1,
        optim="adamw_torch", config={"label_mode": "multi_path"},
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    assert found["prototypes.weight"] == (1e-2, 0.1)
    assert found["projection.weight"] == (1e-3, 0.1)
    assert found["head.bias"] == (1e-3, 0.0)
    assert found["encoder.encoder.layer.0.attention.self.query.weight"] == (1e-4, 0.1)
    assert found["encoder.encoder.layer.0.output.LayerNorm.weight"] == (1e-4, 0.0)
    same = make_trainer(taxonomy, data, folder="same", learning_rate=1e-4, head_learning_rate=1e-3).create_optimizer()
    assert {g["lr"] for g in same.param_groups} == {1e-4, 1e-3}


def test_losses_of_data_parallel_replicas_are_averaged_by_their_counts():
    losses, counts = torch.tensor([1.0, 2, 0, 3, 4, 5]), torch.tensor([2.0, 1, 0, 2, 3, 1])
    joined, total = join_losses(losses, counts, 3)
    assert joined.tolist() == pytest.approx([2.0, 3.5, 5.0])
    assert total.tolist() == [4, 4, 1]


def test_the_model_works_with_the_trainer_of_transformers(make_model, data, taxonomy, tokenizer, tmp_path):
    from hcal_hf import HcalDataCollator

    model = make_model(taxonomy)
    args = TrainingArguments(str(tmp_path), max_steps=2, report_to="none", use_cpu=True, save_strategy="no")
    trainer = Trainer(model, args, train_dataset=data, data_collator=HcalDataCollator(tokenizer, taxonomy))
    assert trainer.train().training_loss > 0


def test_training_on_pooled_states_changes_only_projection_and_prototypes(make_trainer, taxonomy):
    generator = torch.Generator().manual_seed(0)
    rows = [{"pooled_states": torch.randn(16, generator=generator).tolist(), "labels": [0, 2, 6]} for _ in range(8)]
    trainer = make_trainer(taxonomy, Dataset.from_list(rows), config={"dtype": torch.float32})
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"projection", "prototypes"}


def test_invalid_models_arguments_and_batches_are_refused(make_trainer, make_model, data, taxonomy, tmp_path):
    with pytest.raises(TypeError, match="needs HcalTrainingArguments, got TrainingArguments"):
        HcalTrainer(make_model(taxonomy), TrainingArguments(str(tmp_path), report_to="none"))
    with pytest.raises(TypeError, match="needs an HcalForSequenceClassification, got Linear"):
        HcalTrainer(torch.nn.Linear(2, 2), HcalTrainingArguments(str(tmp_path), report_to="none"))
    trainer = make_trainer(taxonomy, data.remove_columns("labels"))
    with pytest.raises(ValueError, match="The batch has no labels"):
        trainer.train()


# ---- Thresholds and risk ----


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
@pytest.mark.parametrize("granularity", ["global", "label"])
def test_tuned_thresholds_are_used_by_later_evaluations_and_saved(
    make_trainer, data, taxonomy, mode, granularity, tmp_path
):
    trainer = make_trainer(taxonomy, data, eval_data=data, config={"label_mode": mode})
    before = trainer.evaluate()["eval_micro_f1"]
    found = trainer.tune_thresholds(granularity=granularity, min_positives=4)
    config = trainer.model.config
    assert len(config.thresholds) == taxonomy.num_labels
    assert found["before"] == pytest.approx(before)
    assert trainer.evaluate()["eval_micro_f1"] == pytest.approx(found["after"])
    if granularity == "global":
        assert len(set(config.thresholds)) == 1
        assert found["after"] >= found["before"]
        assert mode == "single_path" or found["after"] > found["before"]
    assert trainer.tune_thresholds(data, granularity)["before"] == pytest.approx(found["after"])
    trainer.data_collator.targets = "indices"
    thresholds = config.thresholds
    trainer.tune_thresholds(data, granularity)
    assert config.thresholds == pytest.approx(thresholds)
    trainer.save_model(str(tmp_path / "tuned"))
    assert type(config).from_pretrained(tmp_path / "tuned").thresholds == config.thresholds


def test_evaluation_and_tuning_work_on_batches_of_different_widths(make_trainer, data, taxonomy):
    """Index labels of the last batch have fewer columns, and a loss-only evaluation keeps no predictions."""
    found = []
    for options in ({}, {"eval_do_concat_batches": False}, {"prediction_loss_only": True}):
        trainer = make_trainer(
            taxonomy, data, per_device_eval_batch_size=3, config={"label_mode": "multi_path"}, **options
        )
        trainer.data_collator.targets = "indices"
        rows = data.select(range(10))
        rows = concatenate_datasets([rows, Dataset.from_dict({**data[:1], "labels": [[0]]}).cast(rows.features)])
        metrics = {} if trainer.args.prediction_loss_only else trainer.evaluate(rows)
        found.append((metrics.get("eval_micro_f1"), trainer.tune_thresholds(rows), trainer.model.config.thresholds))
        for name, value in options.items():
            assert getattr(trainer.args, name) is value
    assert found[0] == found[1]
    assert found[0][1:] == found[2][1:]


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
def test_risk_is_calibrated_on_held_out_documents(make_trainer, data, taxonomy, mode, tmp_path):
    trainer = make_trainer(taxonomy, data.select(range(14)), config={"label_mode": mode, "dtype": torch.float32})
    trainer.train()
    held_out = data.select(range(14, 28))
    found = {alpha: trainer.calibrate_risk(held_out, alpha) for alpha in (0.05, 0.2, 0.6)}
    names = {"alpha", "threshold", "documents", "risk", "answered", "levels", "completeness", "empty"}
    for alpha, values in found.items():
        assert set(values) == names
        assert values["alpha"] == alpha
        assert values["documents"] == 14
        assert values["risk"] <= alpha
    assert found[0.05]["empty"] == 1  # 14 documents are too few for this risk
    assert found[0.05]["threshold"] > 1
    assert found[0.6]["threshold"] < found[0.2]["threshold"]
    assert found[0.6]["answered"] > 0
    config = trainer.model.config
    assert (config.risk_alpha, config.risk_threshold) == (0.6, found[0.6]["threshold"])
    trainer.tune_thresholds(held_out)
    assert trainer.calibrate_risk(held_out, 0.6) == found[0.6]
    trainer.save_model(str(tmp_path / "calibrated"))
    again = type(config).from_pretrained(tmp_path / "calibrated")
    assert (again.risk_alpha, again.risk_threshold) == (0.6, found[0.6]["threshold"])


def test_tuning_and_calibration_refuse_invalid_data_sets_and_metrics(make_trainer, data, taxonomy, caplog):
    trainer = make_trainer(
        taxonomy, data, eval_data=data, eval_strategy="steps", save_strategy="steps", load_best_model_at_end=True
    )
    trainer.eval_dataset = None
    for call in (trainer.tune_thresholds, lambda: trainer.calibrate_risk(None)):
        with pytest.raises(ValueError, match="needs one data set with labels, got none"):
            call()
    with pytest.raises(ValueError, match=r"got a dictionary of \['one'\]"):
        trainer.tune_thresholds({"one": data})
    with pytest.raises(ValueError, match="got the training data"):
        trainer.calibrate_risk(data)
    with pytest.raises(ValueError, match="needs a data set with a column"):
        trainer.tune_thresholds(data.remove_columns("labels"))
    with pytest.raises(ValueError, match="metric must be one of micro_f1, macro_f1, got 'accuracy'"):
        trainer.tune_thresholds(data, metric="accuracy")
    assert trainer.model.config.thresholds is None
    assert trainer.compute_metrics is not None
    trainer.eval_dataset = data.select(range(7))
    trainer.calibrate_risk(trainer.eval_dataset, 0.5)
    assert "selected the best checkpoint" in caplog.text


def test_greater_is_better_is_false_for_violation_rates(tmp_path):
    kwargs = {"report_to": "none", "load_best_model_at_end": True, "eval_strategy": "steps", "use_cpu": True}
    for metric, expected in {"raw_hvr": False, "eval_hvr_node": False, "micro_f1": True, "loss": False}.items():
        args = HcalTrainingArguments(str(tmp_path), metric_for_best_model=metric, **kwargs)
        assert args.greater_is_better is expected, metric
    assert HcalTrainingArguments(str(tmp_path), metric_for_best_model="hvr", greater_is_better=True).greater_is_better


def test_learned_task_weights_have_no_weight_decay_and_are_resumed(make_trainer, data, taxonomy):
    class Learned(LossWeighter):
        def __init__(self, num_tasks):
            super().__init__(num_tasks)
            self.logits = torch.nn.Parameter(torch.zeros(num_tasks))

        def forward(self, losses, present=None):
            return self.logits.softmax(0)

    kwargs = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.05}
    whole = make_trainer(taxonomy, data, folder="learned", loss_weighter=Learned(3), **kwargs)
    whole.train()
    moved = whole.loss_weighter.logits.detach().clone()
    assert moved.abs().min() > 0.01
    (group,) = (g for g in whole.optimizer.param_groups if any(p is whole.loss_weighter.logits for p in g["params"]))
    assert group["weight_decay"] == 0
    again = make_trainer(taxonomy, data, folder="learned again", loss_weighter=Learned(3), **kwargs)
    again.train(resume_from_checkpoint=os.path.join(whole.args.output_dir, "checkpoint-2"))
    assert torch.equal(again.loss_weighter.logits, moved)
    assert_same(weights(whole.model), weights(again.model))


def test_training_rows_that_the_model_cannot_predict_are_refused_before_training(make_trainer, ragged, ragged_data):
    rows = ragged_data.add_column("row", list(range(len(ragged_data)))).remove_columns("row")
    inner = Dataset.from_dict({"input_ids": [[2], [3]], "attention_mask": [[1], [1]], "labels": [[2], [0]]})
    trainer = make_trainer(ragged, inner)
    with pytest.raises(BadRowsError, match=r"dataset\[1\]: the path to 'a' ends at an inner node"):
        trainer.train()
    empty = Dataset.from_dict({"input_ids": [[2], [3]], "attention_mask": [[1], [1]], "labels": [[2], []]})
    with pytest.raises(BadRowsError, match=r"dataset\[1\]: single_path needs one path"):
        make_trainer(ragged, empty, folder="empty").train()
    make_trainer(ragged, rows, folder="fine", max_steps=1).train()


def test_label_smoothing_is_refused(make_model, taxonomy, data, tmp_path):
    args = HcalTrainingArguments(str(tmp_path), report_to="none", label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="cannot use label_smoothing_factor and compute_loss_func"):
        HcalTrainer(make_model(taxonomy), args)


def test_training_steps_do_not_compute_logits(make_trainer, ragged, ragged_data):
    trainer = make_trainer(ragged, ragged_data)
    seen = []
    trainer.model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits))
    trainer.train()
    assert seen == [None] * 4
    batch = next(iter(trainer.get_train_dataloader()))
    loss, outputs = trainer.compute_loss(trainer.model.train(), batch, return_outputs=True)
    assert outputs.logits is not None
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), loss, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["single_path", "multi_path"])
@pytest.mark.parametrize("targets", ["indices", "multi_hot"])
def test_batch_eval_metrics_gives_the_metrics_of_the_whole_evaluation(
    mode, targets, make_model, taxonomy, data, tokenizer, tmp_path
):
    model = make_model(taxonomy, label_mode=mode, head="independent")
    if mode == "multi_path":
        model.config.thresholds = [0.4] * taxonomy.num_labels
    found = []
    for batches in (False, True):
        args = HcalTrainingArguments(
            str(tmp_path), report_to="none", use_cpu=True, batch_eval_metrics=batches, per_device_eval_batch_size=3
        )
        collator = HcalDataCollator(tokenizer, taxonomy, targets=targets)
        trainer = HcalTrainer(model, args, collator, None, data, tokenizer)
        if batches:  # simulates the state that an interrupted evaluation leaves
            trainer.compute_metrics((torch.zeros(1, taxonomy.num_labels), torch.zeros(1, 1).long()), False)
        metrics = trainer.evaluate()
        found.append({name: value for name, value in metrics.items() if not name.endswith(("runtime", "per_second"))})
    whole, batched = found
    assert len(data) % 3
    assert whole.keys() == batched.keys()
    assert {"eval_hvr_score", "eval_raw_hvr_level_1", "eval_macro_f1"} <= whole.keys()
    timing = {name for name in whole if "preparation_time" in name}
    for name in whole.keys() - timing:
        assert batched[name] == pytest.approx(whole[name], abs=1e-9), name


def test_model_init_and_positional_arguments_work_as_in_transformers(make_model, taxonomy, data, tokenizer, tmp_path):
    args = HcalTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=1, save_strategy="no")
    HcalTrainer(None, args, None, data, None, tokenizer, model_init=lambda: make_model(taxonomy)).train()
    HcalTrainer(make_model(taxonomy), args, None, data, data, tokenizer).train()


def test_loss_weighting_is_uniform_by_default_and_hcal_in_the_paper_preset(tmp_path):
    assert HcalTrainingArguments(str(tmp_path)).loss_weighting == "uniform"
    paper = HcalTrainingArguments.paper(str(tmp_path))
    assert (paper.loss_weighting, paper.loss_weighting_kwargs) == ("hcal", {"gamma": 0.5})


def test_evaluation_counts_no_denominators_over_processes(make_trainer, data, taxonomy, monkeypatch):
    """The loss of an evaluation is the model's own. Counting would wait for all processes in each batch."""
    trainer = make_trainer(taxonomy, data, eval_data=data.select(range(8)), eval_strategy="steps", eval_steps=1)
    found = []
    count = type(trainer)._get_num_items_in_batch

    def record(self, *args):
        found.append((self._is_evaluating, count(self, *args)))
        return found[-1][1]

    monkeypatch.setattr(type(trainer), "_get_num_items_in_batch", record)
    trainer.train()
    assert sum(is_evaluating for is_evaluating, _ in found) == 4
    # Also for the batch after an evaluation, while the model is still in evaluation mode.
    assert all((counts is None) == is_evaluating for is_evaluating, counts in found)
