"""Extends the training arguments of transformers."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from .class_weights import check_class_weight
from .weighting import WEIGHTERS, check_weighter

SAMPLING_STRATEGIES = ["random", "sequential", "group_by_length", "batch_rebalance", "hierarchy"]
PAPER_SETTINGS: dict[str, Any] = {
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "learning_rate": 0.01,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "weight_decay": 1e-4,
    "prototype_lr_multipliers": [5.0, 10.0, 20.0],
    "loss_weighting": "hcal",
    "loss_weighting_kwargs": {"gamma": 0.5},
}


# The smallest value of each number, and whether it must be whole. The others may be infinite or NaN in transformers.
_LOWEST: dict[str, tuple[float, bool]] = {
    "learning_rate": (0, False),
    "head_learning_rate": (0, False),
    "prototype_learning_rate": (0, False),
    "weight_decay": (0, False),
    "max_grad_norm": (0, False),
    "num_train_epochs": (-math.inf, False),
    "per_device_train_batch_size": (1, True),
    "per_device_eval_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "dataloader_num_workers": (0, True),
    "max_steps": (-1, True),
    "seed": (0, True),
}


def check_numbers(args: Any) -> None:
    """Checks the numbers of training arguments, which transformers uses unchecked. None is not checked.

    Raises:
        ValueError: for the first one of another type or out of range.
    """
    for name, (lowest, is_whole) in _LOWEST.items():
        value = getattr(args, name)
        is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and lowest <= value < math.inf):
            kind = "a whole number" if is_whole else "a finite number"
            least = f" of at least {lowest:g}" if lowest > -math.inf else ""
            raise ValueError(f"{name} must be {kind}{least}, got {value!r}.")


@dataclass
class HcalTrainingArguments(TrainingArguments):
    """
    Extends [`~transformers.TrainingArguments`] by the arguments of HCAL.

    No default of transformers is changed.

    Args:
        loss_weighting (`str`, defaults to `"uniform"`):
            Name of the weighter in `hcal_hf.training.weighting.WEIGHTERS`: `hcal`, `hcal_rate`, `uniform`, `fixed`,
            `likelihood` (try it if documents have several paths), `dwa`, `uncertainty`, `famo`, `gradnorm`, or your own.
        loss_weighting_kwargs (`dict`, *optional*):
            Arguments of the weighter, such as `{"gamma": 0.5}`. The weighter's class documents them.
        head_learning_rate (`float`, *optional*):
            Learning rate of the projection and the head's own parameters; `learning_rate` by default.
        prototype_learning_rate (`float`, *optional*):
            Learning rate of the prototypes; `head_learning_rate` by default.
        head_solver (`"auto"`, `"optimizer"` or `"lbfgs"`, defaults to `"auto"`):
            How a model with a frozen encoder is trained on `pooled_states`. `lbfgs` fits all documents at once and chooses
            the strength of the regularisation on the evaluation documents ([`hcal_hf.solve`]). It does not use learning
            rates, epochs, batch sizes or weighters. `optimizer` trains in batches, like any other model. `auto` uses
            `lbfgs` if it is defined, which is the case for linear scores and losses of single documents except
            `classification_loss="asl"`.
        head_prior (`"initial"` or `"model"`, defaults to `"initial"`):
            The values towards which `lbfgs` regularises the head: the label text or 0, or the values that the model has
            when training starts. `model` is for a trained model that continues with new documents.
        train_sampling_strategy (`str`, defaults to `"random"`):
            One of the strategies of transformers, or `"hierarchy"`: a batch has, for each level of a document, another
            document with one of its labels ([`HierarchySampler`]), which contrasts of documents need.
        prototype_lr_multipliers (`list[float]`, *optional*):
            Factors on the prototypes' learning rate by level, from the deepest level upwards. The last one is repeated for
            the levels above. HCAL's release uses 5, 10, 20. They need SGD, because adaptive optimisers cancel them.

        class_weight (`"balanced"` or `dict[str, float]`, *optional*):
            Weights of the labels in the training loss ([`hcal_hf.compute_class_weight`]). They multiply the loss of a
            document by the weight of its true label, term by term, and leave the denominators as they are. `balanced`
            raises rare labels. The evaluation loss has no weights.
        tune (`"none"`, `"micro_f1"` or `"macro_f1"`, defaults to `"none"`):
            After training, fit the temperature and, for multi_path models, one threshold for this metric to the
            evaluation documents ([`hcal_hf.tune_model`]).

    Raises:
        ValueError: if a number is of another type or out of range, if the weighter or one of its arguments is unknown, or
            if `prototype_lr_multipliers` are not positive or the optimiser is not SGD.
    """

    loss_weighting: str = field(
        default="uniform", metadata={"help": f"Loss weighter: {', '.join(sorted(WEIGHTERS))}."}
    )
    loss_weighting_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'Arguments of the weighter as JSON, such as {"gamma": 0.5}.'}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of projection and head; learning_rate by default."}
    )
    prototype_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the prototypes; head_learning_rate by default."}
    )
    head_solver: Literal["auto", "optimizer", "lbfgs"] = field(
        default="auto", metadata={"help": "How a head on frozen features is trained: auto, optimizer or lbfgs."}
    )
    head_prior: Literal["initial", "model"] = field(
        default="initial", metadata={"help": "Values towards which lbfgs regularises the head: initial or model."}
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Sampler for training: random, sequential, group_by_length, batch_rebalance, or hierarchy, which puts "
            "documents with shared labels of each level into a batch.",
            "choices": SAMPLING_STRATEGIES,
        },
    )
    prototype_lr_multipliers: list[float] | None = field(
        default=None,
        metadata={"help": "Factors on the prototypes' learning rate from the deepest level upwards (SGD only)."},
    )

    class_weight: dict | str | None = field(
        default=None,
        metadata={"help": 'Weights of the labels in the loss: balanced, or JSON such as {"Hardware > Printer": 2}.'},
    )
    tune: Literal["none", "micro_f1", "macro_f1"] = field(
        default="none",
        metadata={
            "help": "Metric for tuning thresholds, together with the temperature, on the validation documents after "
            "training: micro_f1, macro_f1, or none."
        },
    )

    # transformers parses the fields named here from JSON on the command line.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "loss_weighting_kwargs", "class_weight"]

    def __post_init__(self) -> None:
        metric: str = self.metric_for_best_model or ""
        is_violation = "hvr" in metric or "inconsistent" in metric
        if getattr(self, "greater_is_better", None) is None and is_violation:
            self.greater_is_better = False  # transformers assumes that only losses are better when smaller
        check_numbers(self)
        super().__post_init__()
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs must be above 0, got {self.num_train_epochs}.")
        weighter_kwargs: Any = self.loss_weighting_kwargs or {}
        if not isinstance(weighter_kwargs, dict):
            raise ValueError(
                f'loss_weighting_kwargs must be an object such as {{"gamma": 0.5}}, got {weighter_kwargs!r}.'
            )
        check_weighter(self.loss_weighting, weighter_kwargs)
        if self.head_solver not in ("auto", "optimizer", "lbfgs"):
            raise ValueError(f'head_solver must be "auto", "optimizer" or "lbfgs", got {self.head_solver!r}.')
        if self.head_prior not in ("initial", "model"):
            raise ValueError(f'head_prior must be "initial" or "model", got {self.head_prior!r}.')
        if self.train_sampling_strategy not in SAMPLING_STRATEGIES:
            raise ValueError(
                f"train_sampling_strategy must be one of {', '.join(SAMPLING_STRATEGIES)}, got "
                f"{self.train_sampling_strategy!r}."
            )
        check_class_weight(self.class_weight)
        if self.tune not in ("none", "micro_f1", "macro_f1"):
            raise ValueError(f'tune must be "none", "micro_f1" or "macro_f1", got {self.tune!r}.')
        if self.prototype_lr_multipliers is None:
            return
        if self.optim != "sgd":
            raise ValueError(
                f'prototype_lr_multipliers need optim="sgd", got {OptimizerNames(self.optim).value!r}: other optimisers '
                "rescale gradients, which cancels the factors. Use prototype_learning_rate instead."
            )
        multipliers = self.prototype_lr_multipliers
        if not multipliers or not all(isinstance(m, int | float) and 0 < m < math.inf for m in multipliers):
            raise ValueError(f"prototype_lr_multipliers must be positive, got {self.prototype_lr_multipliers}.")

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer pickles its arguments into training_args.bin, which is pushed with the model: leave out the token.
        return {**self.__dict__, "hub_token": None}

    @classmethod
    def paper(cls, output_dir: str | None = None, **kwargs: Any) -> "HcalTrainingArguments":
        """Returns the optimiser settings of HCAL's release.

        They are SGD with momentum 0.9 and weight decay 1e-4, and a constant learning rate of 0.01 for the encoder. The
        learning rate of the prototypes is 5, 10 and 20 times that, from the leaves upwards. There is no gradient clipping.
        The loss weights are softmax(L / 0.5).

        Use it with [`HcalConfig.paper`]. `kwargs` override single settings.
        """
        settings = dict(PAPER_SETTINGS)
        if "loss_weighting" in kwargs:
            del settings["loss_weighting_kwargs"]  # they belong to another weighter
        return cls(output_dir=output_dir, **{**settings, **kwargs})
