"""Training with bfloat16, gradient checkpointing and torch.compile."""

import pytest
import torch

from hcal_hf.training.weighting import WEIGHTERS
from tests.training.test_weighting_training import logs_of, make_trainer

SETTINGS = {"dtype": torch.float32, "optim": "adamw_torch", "learning_rate": 3e-3, "max_steps": 12,
            "per_device_train_batch_size": 15}  # fmt: skip


def losses_of(trainer):
    """Trains and returns the losses [steps, levels]."""
    trainer.train()
    losses = torch.tensor([[entry[f"loss_level_{k}"] for k in range(3)] for entry in logs_of(trainer)])
    assert len(losses) == 12
    assert losses.isfinite().all()
    assert losses[-1].mean() < 0.6 * losses[0].mean()
    return losses


def dtypes_of(module):
    """Returns a set that collects the dtypes of the outputs of a module."""
    seen = set()
    module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    return seen


@pytest.mark.parametrize("weighter", ["hcal_rate", "gradnorm"])
def test_bf16_runs_only_the_encoder_in_bfloat16_and_learns(tmp_path, weighter):
    plain = losses_of(make_trainer(tmp_path, weighter, **SETTINGS))
    trainer = make_trainer(tmp_path, weighter, bf16=True, **SETTINGS)
    inner = dtypes_of(trainer.model.encoder.encoder.layer[1].intermediate.dense)
    projected = dtypes_of(trainer.model.projection)
    losses = losses_of(trainer)
    assert inner == {torch.bfloat16}
    assert projected == {torch.float32}  # and everything after it
    assert not torch.equal(losses, plain)
    torch.testing.assert_close(losses[0], plain[0], atol=0.02, rtol=0.02)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


# transformers before 5.23 has only this name.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("weighter", WEIGHTERS)
def test_gradient_checkpointing_gives_the_same_losses(tmp_path, weighter):
    plain = losses_of(make_trainer(tmp_path, weighter, dropout=0.1, **SETTINGS))
    trainer = make_trainer(tmp_path, weighter, dropout=0.1, gradient_checkpointing=True, **SETTINGS)
    layer = trainer.model.encoder.encoder.layer[0]
    calls = []
    layer.attention.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    losses = losses_of(trainer)
    assert len(calls) == 2 * 12  # once in the forward and once in the backward pass
    torch.testing.assert_close(losses, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weighter", ["hcal_rate"])
def test_a_compiled_training_step_gives_the_same_losses(tmp_path, weighter):
    """Uses a backend that needs no C++ compiler. It traces forward and backward as the default backend does."""
    plain = losses_of(make_trainer(tmp_path, weighter, **SETTINGS))
    torch.compiler.reset()
    trainer = make_trainer(tmp_path, weighter, torch_compile=True, torch_compile_backend="aot_eager", **SETTINGS)
    losses = losses_of(trainer)
    assert hasattr(trainer.model_wrapped, "_orig_mod") or trainer.model_wrapped._compiled_call_impl is not None
    torch.testing.assert_close(losses, plain, atol=1e-4, rtol=1e-4)
    torch.compiler.reset()


def test_gradient_norms_and_compilation_are_refused_together(tmp_path):
    with pytest.raises(
        ValueError, match=r"GradNormWeighter needs gradients within the forward pass.*torch_compile=False"
    ):
        make_trainer(tmp_path, "gradnorm", torch_compile=True, **SETTINGS)


def test_learned_weights_and_fsdp_are_refused_together(tmp_path):
    """accelerate would raise a KeyError."""
    trainer = make_trainer(tmp_path, "uncertainty", **SETTINGS)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="UncertaintyWeighter has its own parameters, which FSDP cannot shard"):
        trainer.create_optimizer()
