"""Searches hyperparameters with Optuna or Ray Tune, and trains the best model again."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.hyperparameter_search import default_hp_search_backend
from transformers.trainer_utils import BestRun, HPSearchBackend
from transformers.utils import logging

from .weighting import build_weighter

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)

BEST_FILE = "best_hyperparameters.json"
DEFAULT_METRIC = "micro_f1"
# The ranges of `search_space`, all on a logarithmic scale.
LEARNING_RATES = {
    "learning_rate": (1e-5, 3e-4),
    "head_learning_rate": (1e-4, 1e-2),
    "prototype_learning_rate": (3e-4, 3e-2),
}
EPOCHS = (2, 10)


def search_space(trial: Any) -> dict[str, Any]:
    """Suggests the learning rates of encoder, head and prototypes and the number of epochs, for an Optuna trial.

    Use it as `hp_space` of [`HcalTrainer.hyperparameter_search`], or add your own suggestions to its result. The keys are
    arguments of [`HcalTrainingArguments`].
    """
    space = {name: trial.suggest_float(name, low, high, log=True) for name, (low, high) in LEARNING_RATES.items()}
    return {**space, "num_train_epochs": trial.suggest_int("num_train_epochs", *EPOCHS)}


def ray_search_space(trial: Any = None) -> dict[str, Any]:
    """Returns the ranges of [`search_space`] for Ray Tune."""
    from ray import tune

    space: dict[str, Any] = {name: tune.loguniform(low, high) for name, (low, high) in LEARNING_RATES.items()}
    return {**space, "num_train_epochs": tune.randint(EPOCHS[0], EPOCHS[1] + 1)}


class SearchMixin(_Trainer):
    """Adds to [`HcalTrainer`] a search of hyperparameters by a metric, and a last training with the best ones."""

    args: Any
    model: Any
    model_init: Any
    loss_weighter: Any
    unwrapped_model: Any
    _weighter_by_name: bool
    _place_weighter: Callable[[], None]
    _solves_head: Callable[[Any], bool]

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: Any = None,
        hp_name: Callable[[Any], str] | None = None,
        refit: bool = True,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Searches hyperparameters as [`~transformers.Trainer.hyperparameter_search`] does. Needs `model_init`.

        The search maximises `args.metric_for_best_model` (or minimises it, if lower is better), by default micro-F1 of the
        evaluation documents. Afterwards the model is trained again with the best values. It is then `trainer.model`,
        and the values are in `args` and in best_hyperparameters.json in the output folder.

        Args:
            hp_space: suggests the values of a trial; [`search_space`] by default.
            compute_objective: computes the objective from the metrics of an evaluation.
            n_trials: the number of trials.
            direction: `"maximize"` or `"minimize"`, or one of them for each objective. By default that of the metric. Give
                it with your own `compute_objective`.
            backend: `"optuna"` or `"ray"`; by default the one that is installed.
            hp_name: names a trial.
            refit: train the best model again. False leaves the trainer without a model.
            kwargs: arguments of the backend, such as `pruner=optuna.pruners.MedianPruner()`.

        Returns:
            the best trial with its objective and hyperparameters, or, for several objectives, the Pareto-optimal ones, of
            which none is trained again.

        Raises:
            RuntimeError: without `model_init`, or if no backend is installed.
            ValueError: without evaluation documents, for an unknown metric, for an objective without a direction, or if
                L-BFGS would fit the head, which has nothing to search.
        """
        self._check_search()
        metric = (self.args.metric_for_best_model or DEFAULT_METRIC).removeprefix("eval_")
        if direction is None:
            if compute_objective is not None:
                raise ValueError('compute_objective needs a direction: give direction="maximize" or "minimize".')
            lower_is_better = metric == "loss" or self.args.greater_is_better is False
            direction = "minimize" if lower_is_better else "maximize"
        backend = HPSearchBackend(default_hp_search_backend() if backend is None else backend)
        is_ray = backend == HPSearchBackend.RAY
        before = copy.copy(self.args)
        try:
            best: Any = super().hyperparameter_search(
                hp_space=hp_space or (ray_search_space if is_ray else search_space),
                compute_objective=compute_objective or (lambda metrics: _objective(metrics, metric)),
                n_trials=n_trials,
                direction=direction,
                backend=backend,
                hp_name=hp_name,
                **kwargs,
            )
        finally:
            self.args = before
        if isinstance(best, BestRun) and refit:
            self._refit(best, is_ray)
        return best

    def _check_search(self) -> None:
        if self.model_init is None:
            raise RuntimeError(
                "hyperparameter_search needs model_init instead of a model: each trial starts with a new one."
            )
        if self.eval_dataset is None:
            raise ValueError("hyperparameter_search compares trials on evaluation documents: pass eval_dataset.")
        if self._solves_head(self.unwrapped_model):
            raise ValueError(
                "L-BFGS fits the head of a frozen encoder and chooses C itself, so there is nothing to search. Train the "
                'encoder too, or use head_solver="optimizer".'
            )

    def _hp_search_setup(self, trial: Any) -> None:
        """Sets the hyperparameters of a trial, and makes the weighter that they name."""
        super()._hp_search_setup(trial)
        if trial is not None:
            self._build_weighter()

    def _build_weighter(self) -> None:
        """Makes a new weighter, if the arguments name it, because a trial may name another one."""
        if self._weighter_by_name:
            options = self.args.loss_weighting_kwargs or {}
            self.loss_weighter = build_weighter(self.args.loss_weighting, self.loss_weighter.num_tasks, **options)
            self._place_weighter()

    def _refit(self, best: BestRun, is_ray: bool) -> None:
        """Trains a new model with the best hyperparameters, and writes them to the output folder."""
        for name, value in best.hyperparameters.items():
            if hasattr(self.args, name):
                old = getattr(self.args, name)
                setattr(self.args, name, value if old is None else type(old)(value))
        trial: Any = dict(best.hyperparameters)
        if not is_ray:
            import optuna

            trial = optuna.trial.FixedTrial(best.hyperparameters)
        self._train_batch_size = self.args.train_batch_size
        self.create_accelerator_and_postprocess()
        self._build_weighter()
        self.train(trial=trial)
        if self.is_world_process_zero():
            path = Path(str(self.args.output_dir), BEST_FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            entry = {"run_id": best.run_id, "objective": best.objective, "hyperparameters": best.hyperparameters}
            path.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")


def _objective(metrics: dict[str, float], name: str) -> float:
    key = f"eval_{name}"
    if key not in metrics:
        known = ", ".join(sorted(metric.removeprefix("eval_") for metric in metrics))
        raise ValueError(f"metric_for_best_model={name!r} is not among the metrics of the evaluation: {known}.")
    return metrics[key]


__all__ = ["SearchMixin", "ray_search_space", "search_space"]
