"""Training with the asymmetric loss and ZLPR: accumulation, adaptive gamma, checkpoints, frozen encoders."""

import logging

import pytest
import torch

from hcal_hf import HcalTrainer, HcalTrainingArguments, pooled_features
from tests.builders import build_model, build_taxonomy, build_tokenizer
from tests.training.two_processes import ADAPTIVE, SUMMED, dataset, state_of

ZLPR = {"label_mode": "multi_path", "head": "independent", "classification_loss": "zlpr"}
MARGINAL = {**ADAPTIVE, "classification_loss_kwargs": {"pairs": "marginal", "gap": 0.3}}


def make_trainer(folder, config, *, dtype=torch.float64, dropout=0.0, eval_data=False, **kwargs):
    taxonomy = build_taxonomy()
    model = build_model(taxonomy, dtype=dtype, dropout=dropout, perturbation=0.05, **config)
    data = dataset(taxonomy, config)
    kwargs = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.003, "max_grad_norm": 0.0,
              "optim": "sgd", "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
              "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 3, **kwargs}  # fmt: skip
    args = HcalTrainingArguments(str(folder), **kwargs)
    return HcalTrainer(model, args, None, data, data if eval_data else None, build_tokenizer())


@pytest.mark.parametrize("config", [ADAPTIVE, MARGINAL, SUMMED, ZLPR], ids=["adaptive", "marginal", "summed", "zlpr"])
def test_gradient_accumulation_equals_one_batch_after_20_steps(config, tmp_path):
    """The 15 documents form one batch of 8 and one of 7, so the last micro-batch has one document less."""
    states = []
    for batch, accumulate in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path, config, max_steps=20, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate
        )
        trainer.train()
        states.append(state_of(trainer))
    for name, value in states[0].items():
        torch.testing.assert_close(
            states[1][name], value, atol=1e-7, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
    if config is ADAPTIVE:
        assert not torch.equal(states[0]["model.head.gamma_negative"], torch.full((3,), 2.0, dtype=torch.float64))


def test_a_step_on_the_released_loss_follows_the_gradient_of_the_sum(tmp_path):
    trainer = make_trainer(tmp_path, SUMMED, max_steps=1, gradient_accumulation_steps=2)
    batches, compute = [], trainer.compute_loss
    trainer.compute_loss = lambda m, batch, **kw: batches.append(trainer._with_noise(batch)) or compute(m, batch, **kw)
    trainer.train()
    model = build_model(build_taxonomy(), dtype=torch.float64, perturbation=0.05, **SUMMED)
    outputs = [model.train()(**batch) for batch in batches]
    sum((output.task_losses * output.task_counts).sum() for output in outputs).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            moved = parameter - 0.003 * parameter.grad
            torch.testing.assert_close(dict(trainer.model.named_parameters())[name], moved, atol=1e-12, rtol=0)


def test_the_adaptive_gamma_moves_once_per_step_from_all_micro_batches(tmp_path):
    trainer = make_trainer(
        tmp_path, ADAPTIVE, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    head, seen = trainer.model.head, []
    after_step = head.after_step
    head.after_step = lambda reduce: (
        seen.append((head._observed.clone(), head.gamma_negative.clone())) or after_step(reduce)
    )
    trainer.train()
    assert len(seen) == 3
    logged = [entry["gamma_level_1"] for entry in trainer.state.log_history if "gamma_level_1" in entry]
    assert logged[-1] == pytest.approx(head.gamma_negative[1].item())
    gammas = [gamma for _, gamma in seen] + [head.gamma_negative]
    for (sums, before), after in zip(seen, gammas[1:]):
        for k, (positive, positives, negative, negatives) in enumerate(sums.T.tolist()):
            expected = before[k].item()
            if positives and negatives:
                expected += 0.1 * (0.2 - (positive / positives - negative / negatives))
            assert after[k].item() == pytest.approx(min(max(expected, 0.5), 8.0))
    assert seen[0][0][1, 0] == 8  # the documents of four micro-batches, with one root each


def test_resuming_at_any_step_equals_the_uninterrupted_run(tmp_path):
    kwargs = {"dtype": torch.float32, "dropout": 0.1, "optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 4,
              "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}  # fmt: skip
    whole = make_trainer(tmp_path / "whole", ADAPTIVE, **kwargs)
    whole.train()
    assert len(set(whole.model.head.gamma_negative.tolist())) > 1
    for step in (1, 3):
        again = make_trainer(tmp_path / "again", ADAPTIVE, **{**kwargs, "save_strategy": "no"})
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for name, value in state_of(whole).items():
            assert torch.equal(state_of(again)[name], value), name


def test_evaluation_does_not_change_the_adaptive_gamma(tmp_path):
    plain, watched = make_trainer(tmp_path, ADAPTIVE), make_trainer(tmp_path, ADAPTIVE, eval_data=True)
    watched.args.eval_strategy, watched.args.eval_steps = "steps", 1
    plain.train()
    watched.train()
    watched.evaluate()
    assert torch.equal(watched.model.head.gamma_negative, plain.model.head.gamma_negative)
    watched.model.head.start_step()
    watched.evaluate()
    assert watched.model.head._observed is None


def test_a_step_without_observations_is_refused(tmp_path):
    head = make_trainer(tmp_path, ADAPTIVE).model.head
    with pytest.raises(RuntimeError, match="one process per GPU with accelerate launch, or leave gap out"):
        head.after_step(lambda tensor: tensor)


def frozen_trainer(folder, solver, **config):
    taxonomy = build_taxonomy()
    model = build_model(taxonomy, score_function="linear", label_mode="multi_path", **config)
    model.encoder.requires_grad_(False)
    features = pooled_features(model, dataset(taxonomy, {}), build_tokenizer())
    args = HcalTrainingArguments(
        str(folder),
        head_solver=solver,
        max_steps=2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    return HcalTrainer(model, args, None, features, features, build_tokenizer())


def test_lbfgs_is_refused_for_the_asymmetric_loss_and_auto_takes_the_optimizer(tmp_path, caplog):
    with pytest.raises(ValueError, match=r'"asl" is not convex.* train with head_solver="optimizer"'):
        frozen_trainer(tmp_path, "lbfgs", classification_loss="asl").train()
    trainer = frozen_trainer(tmp_path, "auto", classification_loss="asl")
    logger = logging.getLogger("hcal_hf.training.frozen_head")
    logger.addHandler(caplog.handler)
    try:
        assert "head_strength" not in trainer.train().metrics
    finally:
        logger.removeHandler(caplog.handler)
    assert 'head_solver="auto" trains the head in batches by the optimiser. classification_loss="asl"' in caplog.text
    assert trainer.state.global_step == 2


def test_lbfgs_fits_convex_losses(tmp_path):
    for config in (
        {"head": "independent", "classification_loss": "zlpr"},
        {"classification_loss": "asl", "classification_loss_kwargs": {"gamma_negative": 0}},
    ):
        assert "head_strength" in frozen_trainer(tmp_path, "lbfgs", **config).train().metrics
