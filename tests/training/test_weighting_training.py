"""Loss weighters in training: accumulation, state, resuming, gradient norms, invalid losses, several processes."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hcal_hf import HcalTrainer, HcalTrainingArguments
from hcal_hf.training.replicas import join_gradient_norms
from hcal_hf.training.weighting import WEIGHTERS, LossWeighter
from tests.builders import build_model, build_ragged, build_taxonomy, build_tokenizer
from tests.training.two_processes import RAGGED, SETTINGS, dataset, logs_of, state_of, train

KWARGS = {
    "fixed": {"weights": [0.2, 0.3, 0.5]},
    "uncertainty": {"learning_rate": 0.5},
    "hcal_rate": {"first_steps": 2, "decay": 0.5},
    "dwa": {"period": 2},
    "famo": {"learning_rate": 0.2},
    "gradnorm": {"learning_rate": 0.2},
}
STATELESS = ("uniform", "fixed", "likelihood")
NOT_PER_BATCH = [name for name, weighter in WEIGHTERS.items() if not weighter.per_batch]


def make_trainer(folder, weighter="uniform", *, dtype=torch.float64, dropout=0.0, eval_data=False, **kwargs):
    taxonomy = build_ragged()
    model = build_model(taxonomy, dtype=dtype, dropout=dropout, perturbation=0.05, **RAGGED)
    data = dataset(taxonomy, RAGGED)
    kwargs = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.003, "max_grad_norm": 0.0,
              "optim": "sgd", "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
              "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 3, **kwargs}  # fmt: skip
    args = HcalTrainingArguments(
        str(folder), loss_weighting=weighter, loss_weighting_kwargs=KWARGS.get(weighter), **kwargs
    )
    return HcalTrainer(model, args, None, data, data if eval_data else None, build_tokenizer())


def assert_close(found, expected, atol):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def moved(trainer):
    """Returns whether training has changed the state of the weighter."""
    state = trainer.loss_weighter.state_dict()
    return any(not torch.equal(value, trainer._fresh_weighter[name]) for name, value in state.items())


# ---- Accumulation ----


@pytest.mark.parametrize("weighter", NOT_PER_BATCH)
def test_gradient_accumulation_equals_one_batch_after_20_steps(weighter, tmp_path):
    """The 15 documents form one batch of 8 and one of 7, so the last micro-batch has one document less."""
    states, logs = [], []
    for batch, accumulate in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path, weighter, max_steps=20, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate
        )
        trainer.train()
        states.append(state_of(trainer))
        logs.append(logs_of(trainer))
    assert_close(states[1], states[0], atol=1e-6)
    assert moved(trainer) or weighter in STATELESS
    for one, four in zip(*logs, strict=True):
        assert one.keys() == four.keys()
        for key, value in one.items():
            if key.startswith(("loss", "weight_", "rate_")):
                assert four[key] == pytest.approx(value, abs=1e-5), key


def test_weights_of_stateful_weighters_are_constant_while_gradients_accumulate(tmp_path):
    trainer = make_trainer(tmp_path, "famo", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    seen, moves = [], []
    trainer.loss_weighter.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    after_step = trainer.loss_weighter.after_step
    trainer.loss_weighter.after_step = lambda *found: moves.append(len(seen)) or after_step(*found)
    trainer.train()
    assert moves == [4, 8, 12, 16, 20, 24]  # once per optimizer step, after its last micro-batch
    for start in range(0, 24, 4):
        # All micro-batches of a step have the same weights.
        assert all(torch.equal(weights, seen[start]) for weights in seen[start : start + 4])
        assert start == 0 or not torch.equal(seen[start], seen[start - 1])


def check_one_window(folder, weighter, loss_of):
    """Checks that a first step of four micro-batches follows the gradient of `loss_of` of their outputs."""
    kwargs = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1}
    trainer = make_trainer(folder, weighter, **kwargs)
    model = build_model(build_ragged(), dtype=torch.float64, perturbation=0.05, **RAGGED)
    inputs, compute = [], trainer.compute_loss
    trainer.compute_loss = lambda m, batch, **kw: inputs.append(trainer._with_noise(batch)) or compute(m, batch, **kw)
    trainer.train()
    assert len(inputs) == 4
    loss_of([model.train()(**batch) for batch in inputs]).backward()
    expected = {name: p - 0.003 * p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {name: p for name, p in trainer.model.named_parameters() if name in expected}
    assert_close(found, expected, atol=1e-12)


def test_hcal_weights_each_micro_batch_by_its_own_losses(tmp_path):
    def loss_of(outputs):
        present = [output.task_losses[output.task_counts > 0] for output in outputs]
        return sum(((losses.detach() / 0.5).softmax(0) * losses).sum() for losses in present) / 4

    check_one_window(tmp_path, "hcal", loss_of)


def test_likelihood_gives_all_terms_of_a_step_the_same_weight(tmp_path):
    def loss_of(outputs):
        counts = torch.stack([output.task_counts for output in outputs])
        assert (counts.sum(dim=0) > 0).all()
        assert len(set(counts.sum(dim=0).tolist())) > 1
        return sum((output.task_losses * output.task_counts).sum() for output in outputs) / counts.sum()

    check_one_window(tmp_path, "likelihood", loss_of)


@pytest.mark.parametrize(
    ("head", "equal"),
    [
        ("conditional_sigmoid", True),
        ("lookahead_sigmoid", True),
        ("conditional_softmax", True),
        ("lookahead_softmax", False),  # its loss per level is that of whole paths
    ],
)
def test_likelihood_weighting_gives_the_negative_log_likelihood_of_the_labels(head, equal):
    taxonomy = build_ragged()
    mode = "multi_path" if "sigmoid" in head else "single_path"
    model = build_model(taxonomy, dtype=torch.float64, label_mode=mode, partial_paths=True, head=head)
    leaves = taxonomy.is_leaf.nonzero()[0].tolist()
    labels = torch.zeros(len(leaves), taxonomy.num_labels, dtype=torch.float64)
    for row, leaf in enumerate(leaves):
        labels[row, taxonomy.complete([leaf])] = 1
    output = model.eval()(input_ids=torch.arange(2, 2 + len(leaves))[:, None], labels=labels)
    losses, counts = output.task_losses, output.task_counts
    weights = WEIGHTERS["likelihood"](len(losses)).double()(losses, counts > 0, counts)
    log_p = output.logits.double().sigmoid().clamp(1e-300, 1 - 1e-16).log()
    if mode == "single_path":  # the label of the end of the path
        expected = -log_p[torch.arange(len(leaves)), leaves].sum()
    else:
        expected = sets_nll(log_p, labels, taxonomy)
    found = (weights * losses).sum() * counts.sum()
    assert (abs((found - expected).item()) < 1e-5 * expected.item()) is equal


def sets_nll(log_p, labels, taxonomy):
    """Computes -log P of the label sets with a loop over all labels that have a true parent or no parent."""
    parent_of = {child: parent for parent, child in taxonomy.edges.tolist()}
    total = 0.0
    for row, truth in zip(log_p.exp().tolist(), labels.tolist()):
        for label in range(taxonomy.num_labels):
            parent = parent_of.get(label)
            if parent is None or truth[parent]:
                p = row[label] / (1.0 if parent is None else row[parent])
                total -= torch.tensor(p if truth[label] else 1 - p, dtype=torch.float64).log()
    return total


# ---- State ----


@pytest.mark.parametrize("weighter", WEIGHTERS)
def test_resuming_at_any_step_equals_the_uninterrupted_run(weighter, tmp_path):
    kwargs = {"dtype": torch.float32, "dropout": 0.1, "optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 5,
              "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 5,
              "gradient_accumulation_steps": 2}  # fmt: skip
    whole = make_trainer(tmp_path / "whole", weighter, **kwargs)
    whole.train()
    assert moved(whole) or weighter in (*STATELESS, "hcal")
    for step in range(1, 5):
        again = make_trainer(tmp_path / "again", weighter, **{**kwargs, "save_strategy": "no"})
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert again.state.global_step == 5
        assert_close(state_of(again), state_of(whole), atol=0.0)


@pytest.mark.parametrize("weighter", ["hcal", "hcal_rate", "uncertainty", "gradnorm"])
def test_evaluation_during_training_changes_neither_model_nor_weighter(weighter, tmp_path):
    plain, watched = make_trainer(tmp_path, weighter), make_trainer(tmp_path, weighter, eval_data=True)
    calls = []
    watched.args.eval_strategy, watched.args.eval_steps = "steps", 1
    forward = watched.loss_weighter.forward
    watched.loss_weighter.forward = lambda *arguments: calls.append(1) or forward(*arguments)
    plain.train()
    watched.train()
    assert len([entry for entry in watched.state.log_history if "eval_loss" in entry]) == 6
    assert len(calls) == 6  # only training steps compute weights
    assert_close(state_of(watched), state_of(plain), atol=0.0)
    before = state_of(watched)
    watched.evaluate()
    assert_close(state_of(watched), before, atol=0.0)


def test_a_new_run_with_model_init_resets_the_weighter(tmp_path):
    trainer = make_trainer(tmp_path, "uncertainty")
    trainer.model_init = lambda: build_model(build_ragged(), dtype=torch.float64, perturbation=0.05, **RAGGED)
    trainer.train()
    first = state_of(trainer)
    assert moved(trainer)
    trainer.train()
    assert_close(state_of(trainer), first, atol=0.0)


def test_a_weighter_for_another_number_of_levels_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    weighter = WEIGHTERS["uniform"](2)
    with pytest.raises(ValueError, match="for 2 tasks, the model has 3 levels: make it with num_tasks=3"):
        HcalTrainer(trainer.model, trainer.args, loss_weighter=weighter)


def test_rates_are_logged(tmp_path):
    trainer = make_trainer(tmp_path, "hcal_rate")
    trainer.train()
    last = logs_of(trainer)[-1]
    assert [last[f"rate_level_{k}"] for k in range(3)] == pytest.approx(trainer.loss_weighter.rates().tolist())
    assert "rate_level_0" not in logs_of(make_and_train(tmp_path, "uniform"))[-1]


def test_the_remaining_share_of_the_first_loss_is_logged_per_level(tmp_path):
    logs = logs_of(make_and_train(tmp_path, "uniform"))
    for k in range(3):
        # Not every step has a loss for every level.
        losses = [entry[f"loss_level_{k}"] for entry in logs if f"loss_level_{k}" in entry]
        shares = [entry[f"remaining_level_{k}"] for entry in logs if f"remaining_level_{k}" in entry]
        assert shares == pytest.approx([loss / losses[0] for loss in losses])
        assert len(set(shares)) > 2


def make_and_train(*args, **kwargs):
    trainer = make_trainer(*args, **kwargs)
    trainer.train()
    return trainer


def test_learned_task_weights_have_their_own_learning_rate(tmp_path):
    for weighter, expected in (("uncertainty", 0.5), ("learned", 0.7)):
        trainer = make_trainer(tmp_path, "uncertainty", head_learning_rate=0.7, weight_decay=0.1)
        if weighter == "learned":
            trainer.loss_weighter.learning_rate = None
        trainer.create_optimizer()
        (group,) = (
            g
            for g in trainer.optimizer.param_groups
            if any(p is trainer.loss_weighter.log_variances for p in g["params"])
        )
        assert (group["lr"], group["weight_decay"]) == (expected, 0.0)


def test_gradients_of_learned_task_weights_are_cleared_after_each_step(tmp_path):
    """They are cleared even if the optimizer skips the step, as with a gradient scaler."""
    trainer = make_trainer(tmp_path, "uncertainty", max_steps=2, learning_rate=1e-9)
    seen = []
    step = trainer._average_weighter_gradients
    trainer._average_weighter_gradients = lambda: (
        seen.append(trainer.loss_weighter.log_variances.grad.clone()) or step()
    )
    trainer.create_optimizer()
    trainer.optimizer.step = lambda *_: None
    trainer.train()
    assert len(seen) == 2
    # The gradient of one step at s = 0, which is (1 / 2 - L) / T, and not the sum of two steps.
    for gradient, entry in zip(seen, logs_of(trainer)):
        losses = torch.tensor([entry[f"loss_level_{k}"] for k in range(3)], dtype=torch.float64)
        torch.testing.assert_close(gradient, (0.5 - losses) / 3)


# ---- Gradient norms ----


@pytest.mark.parametrize("objective", ["document", "aggregate"])
def test_gradient_norms_are_computed_per_level_with_respect_to_the_features(objective):
    taxonomy = build_taxonomy()
    model = build_model(taxonomy, dtype=torch.float64, objective=objective, head="independent", contrast="aggregate")
    labels = torch.tensor([[0, 2, 6], [0, 3, 8], [1, 5, 12]])
    output = model(input_ids=torch.tensor([[2, 3], [4, 5], [6, 7]]), labels=labels, gradient_norms=True)
    expected = []
    for loss in output.task_losses[:3]:
        gradient = torch.autograd.grad(loss, output.features, retain_graph=True)[0]
        expected.append(math.sqrt(sum(cell**2 for row in gradient.tolist() for cell in row)))
    assert output.task_gradient_norms.tolist() == pytest.approx(expected)
    assert len(set(expected)) == 3
    assert model(input_ids=torch.tensor([[2, 3]]), labels=labels[:1]).task_gradient_norms is None
    frozen = model.requires_grad_(False)
    with pytest.raises(ValueError, match="encoder and projection are both frozen"):
        frozen(input_ids=torch.tensor([[2, 3]]), labels=labels[:1], gradient_norms=True)


def test_gradnorm_runs_one_backward_pass_through_the_encoder(tmp_path):
    trainer = make_trainer(tmp_path, "gradnorm", max_steps=2)
    passes = []
    trainer.model.projection.register_full_backward_hook(lambda *_: passes.append(1))
    trainer.train()
    assert len(passes) == 2


def test_gradient_norms_of_data_parallel_replicas_are_combined():
    """The result is that of one batch with all documents, where the loss is the mean weighted by the counts."""
    norms, counts = torch.tensor([3.0, 1.0, 0.0, 4.0, 2.0, 1.0]), torch.tensor([1, 3, 0, 1, 1, 2])
    joined = join_gradient_norms(norms, counts, 3, 3)
    assert joined.tolist() == pytest.approx([2.5, math.hypot(0.75 * 1, 0.25 * 2), 1.0])


# ---- NaN and infinite losses ----


class Spoiled(LossWeighter):
    """Uniform weighter that returns NaN for the first level from the third call on."""

    def __init__(self, num_tasks):
        super().__init__(num_tasks)
        self.calls = 0

    def forward(self, losses, present=None):
        self.calls += 1
        weights = torch.full_like(losses, 1 / len(losses))
        return torch.where(torch.arange(len(losses)) == 0, math.nan, weights) if self.calls > 2 else weights


def spoil(trainer, value, step, level=1):
    """Replaces the loss of a level by `value` in one forward pass of training."""
    losses, calls = trainer.model.head.losses, []

    def spoiled(scores, targets):
        found = losses(scores, targets)
        calls.append(1)
        mask = torch.arange(len(found)) == level
        return torch.where(mask, value, found) if len(calls) == step else found

    trainer.model.head.losses = spoiled


@pytest.mark.parametrize("weighter", ["uniform", "hcal", "famo", "uncertainty"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_or_infinite_loss_stops_training_before_the_model_changes(weighter, value, tmp_path):
    trainer = make_trainer(tmp_path, weighter, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    spoil(trainer, value, step=6)  # the second micro-batch of step 3
    with pytest.raises(FloatingPointError, match="The loss of level_1 was NaN or infinite at step 3"):
        trainer.train()
    expected = make_and_train(
        tmp_path, weighter, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2
    )
    assert_close(state_of(trainer), state_of(expected), atol=0.0)
    assert trainer.state.global_step == 2


def test_without_logging_nan_inf_filter_an_invalid_loss_is_reported_at_the_next_log(tmp_path):
    trainer = make_trainer(tmp_path, "uniform", logging_steps=3, logging_nan_inf_filter=False)
    spoil(trainer, math.nan, step=2, level=2)
    with pytest.raises(FloatingPointError, match="The loss of level_2 was NaN or infinite at step 2"):
        trainer.train()
    assert trainer.state.global_step == 3
    again = make_trainer(tmp_path, "uniform", logging_nan_inf_filter=False)
    again.finite_check.first_bad_step[0, 0] = 7  # left by an earlier run
    again.train()


def test_nan_weights_stop_training(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.loss_weighter = Spoiled(3)
    with pytest.raises(FloatingPointError, match="The weight of level_0 was NaN or infinite at step 3"):
        trainer.train()


# ---- Noise ----


def test_prototype_noise_is_drawn_once_per_step_independently_of_dropout(tmp_path):
    drawn = []
    for dropout in (0.0, 0.3):
        trainer = make_trainer(
            tmp_path, dropout=dropout, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            remove_unused_columns=False,
        )  # fmt: skip
        forward, seen = trainer.model.forward, []
        trainer.model.forward = lambda forward=forward, seen=seen, **inputs: (
            seen.append(inputs["noise"]) or forward(**inputs)
        )
        trainer.train()
        drawn.append(seen)
    for plain, dropped in zip(*drawn, strict=True):
        assert torch.equal(plain, dropped)
    steps = [drawn[0][i : i + 2] for i in range(0, 6, 2)]
    assert all(torch.equal(first, second) for first, second in steps)
    assert not any(torch.equal(steps[i][0], steps[i + 1][0]) for i in range(2))
    width = trainer.model.prototypes.noise_width
    assert drawn[0][0].shape == (9, 8)
    assert 0.9 * width < drawn[0][0].max() <= width
    assert -width <= drawn[0][0].min() < -0.9 * width
    other = make_trainer(tmp_path, seed=4)
    assert not torch.equal(other._with_noise({})["noise"], drawn[0][0])
    own = torch.zeros(9, 8)
    assert other._with_noise({"noise": own})["noise"] is own
    other.args._n_gpu = 2  # as with two replicas of torch.nn.DataParallel
    assert torch.equal(*other._with_noise({})["noise"].chunk(2))


# ---- Two processes ----


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Trains each setting on two processes. Returns {setting: (state, weights and logs)}."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    process = subprocess.Popen(
        [*command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # including both child processes
    assert process.returncode == 0, printed[-6000:]
    return {
        name: (load_file(folder / f"{i}.safetensors"), json.loads((folder / f"{i}.json").read_text(encoding="utf-8")))
        for i, name in enumerate(SETTINGS)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one_process_after_20_steps(two_processes, name, tmp_path):
    state, found = two_processes[name]
    assert found["world_size"] == 2
    one, weights, steps = train(name, tmp_path)
    assert_close(state, state_of(one), atol=1e-6)
    assert moved(one) or SETTINGS[name][0] in (*STATELESS, "hcal")
    accumulate = SETTINGS[name][4]
    torch.testing.assert_close(torch.tensor(found["weights"], dtype=weights.dtype)[::accumulate], weights)
    torch.testing.assert_close(torch.tensor(found["steps"], dtype=steps.dtype), steps)
    for both, alone in zip(found["logs"], logs_of(one), strict=True):
        for key, value in alone.items():
            if key.startswith(("loss", "weight_", "rate_")):
                assert both[key] == pytest.approx(value, abs=1e-5), key
