"""Callbacks of the Trainer."""

import math
from typing import Any

from transformers import TrainerCallback


class ReembedLabels(TrainerCallback):
    """Embeds the label texts again at the start of each epoch but the first, because the encoder has changed.

    A run that resumes within an epoch keeps the anchors of the checkpoint, as the uninterrupted run does.

    Args:
        trainer ([`HcalTrainer`]): gives the model and the tokenizer.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = self.trainer.unwrapped_model
        tokenizer = self.trainer.processing_class
        if tokenizer is None or not any(parameter.requires_grad for parameter in model.encoder.parameters()):
            return
        loader = kwargs["train_dataloader"]
        steps = math.ceil(len(loader) / args.gradient_accumulation_steps)
        if state.global_step and state.global_step % steps == 0:
            model.embed_labels(tokenizer)
