"""Collects the facts of a model card during training, and writes the card with each save."""

import contextlib
import dataclasses
import inspect
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from transformers.utils import logging

from ..card_file import carried_sections, carries_code, folder_name, keep_remote_card, write_card
from ..decoding import Decision
from ..hub import clear_push_errors
from ..model_card import DataSummary, Details, Evaluation, Facts, build_card, package_version
from .evaluation import target_matrix
from .plots import remove_figure, save_scores, save_weights

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)

WEIGHTS_FIGURE = "weights.png"
SCORES_FIGURE = "scores.png"
EVAL_RESULTS = ".eval_results/hcal_hf.yaml"


@dataclasses.dataclass
class _Recorded:
    """An evaluation, and the state of the evaluated model."""

    evaluation: Evaluation
    state: Any
    step: int
    fits: int
    in_training: bool
    decisions: Any


class ModelCardMixin(_Trainer):
    """Methods of [`HcalTrainer`] that write the model card with each save.

    Its figures are drawn by `save_model`, `push_to_hub` and `create_model_card`, but not for checkpoints.

    Attributes:
        card_details ([`Details`], *optional*): the facts that the author provided.
        truncated_texts (`dict`, *optional*): for each split, the number of truncated texts and of all texts.
    """

    card_details: Details | None = None
    truncated_texts: Mapping[str, tuple[int, int]] | None = None
    _recorded: dict[str, _Recorded] | None = None
    _summaries: dict[str, tuple[Any, DataSummary]] | None = None
    _draws_figures = False
    _push: dict[str, Any] | None = None
    _weighter_by_name = True

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        *,
        dataset_license: str | None = None,
        dataset_description: str | None = None,
        benchmark_task: str | None = None,
        benchmark_metric: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Writes the model card `README.md` into `args.output_dir`, and with matplotlib `weights.png` and `scores.png`.

        Later cards of this Trainer keep the arguments that are given here.

        The card has the scores of the last evaluation of each data set, by the `metric_key_prefix` of `evaluate` and
        `predict`. Scores from before further training, new thresholds or another temperature are left out, because they
        are not scores of the current model.

        Args:
            language, license, tags, model_name, finetuned_from, dataset_tags, dataset, dataset_args, dataset_license,
                dataset_description, benchmark_task, benchmark_metric: see [`hcal_hf.model_card.Details`].
            tasks: only `"text-classification"`, which is the default.
            overwrite: whether to overwrite a README.md that was edited manually. Otherwise it is left unchanged and a
                warning is logged.

        Raises:
            ValueError: if there is another task, an invalid name on the Hub, more than one data set, a benchmark without
                its data set, or a benchmark metric that was not measured.
        """
        if tasks not in (None, "text-classification", ["text-classification"]):
            raise ValueError(f'tasks can only be "text-classification", got {tasks!r}.')
        arguments: dict[str, Any] = {
            "language": language,
            "license": license,
            "tags": tags,
            "model_name": model_name,
            "finetuned_from": finetuned_from,
            "dataset_tags": _only("dataset_tags", dataset_tags),
            "dataset": _only("dataset", dataset),
            "dataset_args": _only("dataset_args", dataset_args),
            "dataset_license": dataset_license,
            "dataset_description": dataset_description,
            "benchmark_task": benchmark_task,
            "benchmark_metric": benchmark_metric,
        }
        details: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
        self.card_details = dataclasses.replace(self.card_details or Details(), **details)
        if not self.is_world_process_zero():
            return
        folder = self.args.output_dir
        os.makedirs(folder, exist_ok=True)
        if self._push is not None and not overwrite:
            keep_remote_card(folder, str(self.hub_model_id), **self._push)
        self._write_card(folder, draws=True, overwrite=overwrite)
        if self.card_details.benchmark_task is not None:
            self._write_eval_results(folder, is_requested=benchmark_task is not None)

    def _write_card(self, folder: str, draws: bool, overwrite: bool = False) -> None:
        model: Any = self.unwrapped_model
        details = self.card_details or Details()
        hub_id = getattr(self, "hub_model_id", None)
        if details.model_name is None:
            name = Path(str(hub_id)).name if hub_id else Path(folder_name(self.args.output_dir)).name
            details = dataclasses.replace(details, model_name=name)
        results = self._current_evaluations()
        trained = self.state.global_step > 0 or self._fits() > 0
        facts = Facts(
            model_id=str(hub_id) if hub_id else folder_name(folder),
            details=details,
            data=self._data_summaries() if trained else (),
            training=self._training_settings() if trained else None,
            results=results,
            pictures=self._draw_figures(folder, results) if draws else {},
            carries_code=carries_code(folder),
            truncated=self.truncated_texts or {},
            carried={} if trained else carried_sections(Path(folder) / "README.md", model),
        )
        write_card(build_card(model, facts), model, folder, overwrite)

    def _draw_figures(self, folder: str, results: list[Evaluation]) -> dict[str, str]:
        """Draws the figures for which there are data. Removes figures of an earlier run that could not be drawn now."""
        taxonomy = self.unwrapped_model.taxonomy
        pictures = {}
        weights, scores = (os.path.join(folder, name) for name in (WEIGHTS_FIGURE, SCORES_FIGURE))
        if save_weights(weights, self.state.log_history, self.task_names, taxonomy):
            pictures[WEIGHTS_FIGURE] = "Loss and weight of each level over the steps of the training"
        else:
            remove_figure(weights)
        last = next((result for result in reversed(results) if result.node_f1 is not None), None)
        if last is not None and last.node_f1 is not None and save_scores(scores, taxonomy, last.node_f1, last.split):
            pictures[SCORES_FIGURE] = "F1 of the labels, level by level"
        else:
            remove_figure(scores)
        return pictures

    # ---- When a card is written ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model as [`~transformers.Trainer.save_model`] does, with a model card and its figures."""
        self._draws_figures = not _internal_call
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self._draws_figures = False

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write_card(output_dir or str(self.args.output_dir), self._draws_figures)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Pushes the model as [`~transformers.Trainer.push_to_hub`] does, with a model card.

        A card that was edited on the Hub is left unchanged, unless `overwrite=True`.

        Args:
            commit_message, blocking, token, revision, private: see [`~transformers.Trainer.push_to_hub`].
            kwargs: arguments of `create_model_card`.
        """
        repo_id = str(self.hub_model_id or self.args.hub_model_id or self.args.output_dir)
        branch = revision or self.args.hub_revision
        if private is not None:  # earlier versions of transformers do not have this argument
            kwargs["private"] = private
        with self._pushing(token, revision), clear_push_errors(repo_id):
            if branch is not None and not branch.startswith("refs/pr") and self.is_world_process_zero():
                if self.hub_model_id is None:
                    self.init_hf_repo(token=token, **({} if private is None else {"private": private}))
                HfApi(token=token or self.args.hub_token).create_branch(
                    str(self.hub_model_id), branch=branch, exist_ok=True
                )
            return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != "end":
            with self._pushing():
                self.create_model_card()
            # The parent copies only configuration and weights from the checkpoint, and custom code is needed to load them.
            for file in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(file, str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    @contextlib.contextmanager
    def _pushing(self, token: str | None = None, revision: str | None = None) -> Iterator[None]:
        self._push = {"token": token or self.args.hub_token, "revision": revision or self.args.hub_revision}
        try:
            yield
        finally:
            self._push = None

    # ---- Scores ----

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        prefix = str(kwargs.get("metric_key_prefix", "eval"))
        start = f"{prefix}_"
        metrics = {name.removeprefix(start): value for name, value in output.metrics.items()}
        other = {
            "loss",
            "runtime",
            "samples_per_second",
            "steps_per_second",
            "model_preparation_time",
            "jit_compilation_time",
        }
        measured = {
            name: float(value)
            for name, value in metrics.items()
            if name not in other and isinstance(value, int | float | np.number)
        }
        if not measured:  # these predictions are not an evaluation, for example those of tune_thresholds
            return output
        evaluation = Evaluation(prefix, int(output.num_samples), measured)
        if self.is_world_process_zero():
            self._add_node_scores(evaluation, output)
        recorded = _Recorded(
            evaluation, self.state, self.state.global_step, self._fits(), bool(self.is_in_train), self._decisions()
        )
        others = {name: other for name, other in (self._recorded or {}).items() if name != prefix}
        self._recorded = {**others, prefix: recorded}  # the latest evaluation is the last
        return output

    def _add_node_scores(self, evaluation: Evaluation, output: Any) -> None:
        model: Any = self.unwrapped_model
        config, logits = model.config, output.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        # preprocess_logits_for_metrics may have replaced the logits.
        if getattr(logits, "shape", ())[1:] != (model.taxonomy.num_labels,) or output.label_ids is None:
            return
        sets = Decision.from_config(config).decode(torch.from_numpy(np.asarray(logits)), model.taxonomy).numpy()
        targets = target_matrix(np.asarray(output.label_ids), model.taxonomy.num_labels)
        evaluation.support = targets.sum(axis=0)
        f1 = 2 * (sets & targets).sum(axis=0) / np.maximum(evaluation.support + sets.sum(axis=0), 1)
        evaluation.node_f1 = np.where(evaluation.support > 0, f1, np.nan)

    def _current_evaluations(self) -> list[Evaluation]:
        """Lists the recorded evaluations of the current model."""
        return [recorded.evaluation for recorded in (self._recorded or {}).values() if self._is_current(recorded)]

    def _is_current(self, recorded: _Recorded) -> bool:
        """Tells whether a recorded evaluation is one of the current model."""
        if recorded.state is not self.state or recorded.decisions != self._decisions():
            return False
        if not recorded.in_training:
            return (recorded.step, recorded.fits) == (self.state.global_step, self._fits())
        loaded_step = self._loaded_step()
        step = self.state.global_step if loaded_step is None else loaded_step
        # At most the training run that contains the evaluation has finished since.
        return recorded.step == step and self._fits() <= recorded.fits + 1

    def _loaded_step(self) -> int | None:
        """Returns the step of the best checkpoint if it was loaded at the end of the training, else None."""
        is_loaded = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        return self.state.best_global_step if is_loaded and not self.is_in_train else None

    def _fits(self) -> int:
        """Counts finished training runs and adaptations."""
        return sum("train_runtime" in entry for entry in self.state.log_history)

    def _decisions(self) -> Any:
        config = self.unwrapped_model.config
        return config.thresholds, config.score_temperature

    # ---- Data and settings ----

    def _data_summaries(self) -> list[DataSummary]:
        sets = {"training": self.train_dataset}
        if isinstance(self.eval_dataset, dict):
            sets |= {f"evaluation, {name}": dataset for name, dataset in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            sets["evaluation"] = self.eval_dataset
        summaries = self._summaries or {}
        for role, dataset in sets.items():
            if dataset is not None and (role not in summaries or summaries[role][0] is not dataset):
                summaries[role] = (dataset, self._summary_of(role, dataset))
        self._summaries = summaries
        return [summaries[role][1] for role in sets if role in summaries]

    def _summary_of(self, role: str, dataset: Any) -> DataSummary:
        summary = DataSummary(role, len(dataset) if hasattr(dataset, "__len__") else None)
        if not isinstance(dataset, Dataset) or "labels" not in dataset.column_names or not len(dataset):
            return summary
        column = dataset.select_columns("labels").with_format("arrow")[:]["labels"].combine_chunks()
        if not pa.types.is_list(column.type) or not pa.types.is_integer(column.type.value_type):
            return summary
        number = self.unwrapped_model.taxonomy.num_labels
        summary.counts = np.bincount(column.flatten().to_numpy(zero_copy_only=False), minlength=number)
        summary.labelled = int((column.value_lengths().to_numpy(zero_copy_only=False) > 0).sum())
        return summary

    def _training_settings(self) -> dict[str, str]:
        args, model = self.args, self.unwrapped_model
        is_frozen = not any(p.requires_grad for p in model.encoder.parameters())
        rows = {"encoder's weights": "frozen" if is_frozen else "trained"}
        fit = next((entry for entry in reversed(self.state.log_history) if "head_strength" in entry), None)
        adapted = next((entry for entry in reversed(self.state.log_history) if "adapted_texts" in entry), None)
        if adapted is not None:
            labelled = f"{adapted['adapted_labelled']:,} of them labelled"
            rows["head"] = f"label text, adapted to {adapted['adapted_texts']:,} different texts, {labelled}"
            if self.state.global_step:  # the encoder was trained before, with another head
                rows["encoder's weights"] = "trained, with another head"
                rows |= self._optimizer_settings()
        elif fit is not None:
            rows |= {
                "solver": "L-BFGS on all documents at once, on pooled states computed once",
                "inverse regularisation strength C": f"{fit['head_strength']:g}, selected on held-out documents",
                "prototypes regularised towards": "the embeddings of the label text" if fit["head_anchored"] else "0",
            }
        else:
            rows |= self._optimizer_settings()
        rows["seed"] = f"{args.seed}" + (f", data {args.data_seed}" if args.data_seed is not None else "")
        packages = {"hcal_hf": "hcal-hf", "transformers": "", "torch": "", "datasets": "", "accelerate": ""}
        versions = [f"{name} {package_version(distribution or name)}" for name, distribution in packages.items()]
        rows["versions"] = ", ".join([*versions, f"Python {platform.python_version()}"])
        return rows

    def _optimizer_settings(self) -> dict[str, str]:
        args: Any = self.args
        weighter = type(self.loss_weighter)
        weighting = f"{weighter.__name__} (passed as an object)"
        if self._weighter_by_name:
            parameters = list(inspect.signature(weighter).parameters.values())[1:]  # all but num_tasks
            values = args.loss_weighting_kwargs or {}
            settings = ", ".join(f"{p.name}={values.get(p.name, p.default)!r}" for p in parameters)
            weighting = args.loss_weighting + (f" ({settings})" if settings else "")
        head = args.learning_rate if args.head_learning_rate is None else args.head_learning_rate
        prototypes = head if args.prototype_learning_rate is None else args.prototype_learning_rate
        multipliers = args.prototype_lr_multipliers
        batch = f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps} accumulated"
        precision = next((kind for kind in ("bf16", "fp16") if getattr(args, kind)), "float32")
        schedule = f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}, {args.warmup_steps:g} warm-up"
        optimizer = str(getattr(args.optim, "value", args.optim)) + (
            f" ({args.optim_args})" if args.optim_args else ""
        )
        loaded_step = self._loaded_step()
        best = "" if loaded_step is None else f"; the weights are those of step {loaded_step:,}, the best"
        return {
            "loss weighting": weighting,
            "optimizer": f"{optimizer}, weight decay {args.weight_decay:g}, max_grad_norm {args.max_grad_norm:g}",
            "learning rates": f"encoder {args.learning_rate:g}, projection and head {head:g}, prototypes {prototypes:g}"
            + (f", times {multipliers} from the deepest level upwards" if multipliers else ""),
            "schedule": schedule,
            "batch": f"{batch} x {args.world_size * max(args.n_gpu, 1)} device(s)",
            "steps": f"{self.state.global_step:,}, {self.state.epoch or 0:.2f} epochs{best}",
            "precision": precision,
        }

    def _write_eval_results(self, folder: str, is_requested: bool) -> None:
        """Writes the file from which the Hub reads the results of its registered benchmarks.

        If the current model has no value of the metric, the file is removed.

        Raises:
            ValueError: if it has none and the benchmark `is_requested` by this call.
        """
        import yaml
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

        details, path = self.card_details, Path(folder) / EVAL_RESULTS
        assert details is not None
        assert details.dataset_tags is not None
        assert details.benchmark_task is not None
        metric = details.benchmark_metric
        measured = [evaluation for evaluation in self._current_evaluations() if metric in evaluation.metrics]
        if not measured:
            problem = f"benchmark_metric={metric!r} was not measured for this model: call trainer.evaluate(...) first."
            if is_requested:
                raise ValueError(problem)
            path.unlink(missing_ok=True)
            logger.warning(f"{EVAL_RESULTS} is not written: {problem}")
            return
        entry = EvalResultEntry(
            dataset_id=details.dataset_tags,
            task_id=details.benchmark_task,
            value=round(measured[-1].metrics[metric], 4),
            notes=f"{metric}, {measured[-1].documents} documents of {measured[-1].split}",
        )
        path.parent.mkdir(exist_ok=True)
        entries = eval_result_entries_to_yaml([entry])
        path.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _only(name: str, value: Any) -> str | None:
    """Returns the value of an argument that may be a list of one value, as for the Trainer of transformers."""
    values = [value] if isinstance(value, str) else list(value or ())
    if len(values) > 1:
        raise ValueError(f"{name} must be one data set, got {len(values)}: {values}. Give one of them.")
    return values[0] if values else None
