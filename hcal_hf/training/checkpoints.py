"""Makes checkpoints whole at once, finds the newest whole one, and refuses to resume from one of another model."""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints
from transformers.utils import logging

from ..integrity import CHECKSUMS

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)

WEIGHTER_NAME = "loss_weighter.safetensors"
# Pushes leave out names that start with _.
UNFINISHED = "_unfinished"
LOCK = "_training.lock"
# Parts of a checkpoint's configuration that must be those of the model: optimizer states belong to their weights.
_FIXED_PARTS = ("labels", "hierarchy", "head")


class CheckpointMixin(_Trainer):
    """Adds to [`HcalTrainer`] safe checkpoints.

    A checkpoint is written into the folder `_unfinished` and renamed when it is complete, so an interruption leaves no
    half-written checkpoint. `resume_from_checkpoint=True` resumes from the newest whole checkpoint. A checkpoint of a model
    with other labels or another head is refused, and so is a second training into the same folder.
    """

    loss_weighter: Any
    _staging: str | None = None

    # ---- Writing ----

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else self._staging

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir = str(super()._get_output_dir(trial))
        if self.args.push_to_hub and self.args.hub_strategy in ("checkpoint", "all_checkpoints"):
            super()._save_checkpoint(model, trial)  # uploads the folder in the background, so it keeps its name
            return
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging, target = os.path.join(run_dir, UNFINISHED), os.path.join(run_dir, name)
        if self.args.should_save:
            shutil.rmtree(os.path.join(staging, name), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == os.path.join(staging, name):
            self.state.best_model_checkpoint = target
        if self.args.should_save:
            self.state.save_to_json(os.path.join(staging, name, TRAINER_STATE_NAME))
            shutil.rmtree(target, ignore_errors=True)
            os.replace(os.path.join(staging, name), target)
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {name: value.detach().contiguous() for name, value in self.loss_weighter.state_dict().items()}
            save_file(state, os.path.join(output_dir, WEIGHTER_NAME), metadata=self._weighter_record())

    def _weighter_record(self) -> dict[str, str]:
        settings = json.dumps(self.args.loss_weighting_kwargs or {}, sort_keys=True)
        return {"weighter": type(self.loss_weighter).__name__, "settings": settings}

    # ---- Reading ----

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, WEIGHTER_NAME)
        if not os.path.isfile(path):
            logger.warning(f"{checkpoint} has no {WEIGHTER_NAME}: the loss weighter starts from its initial state.")
            return
        with safe_open(path, framework="pt", device=str(self.args.device)) as file:
            saved, now = file.metadata() or {}, self._weighter_record()
            if saved.get("weighter") != now["weighter"]:
                raise ValueError(
                    f"{checkpoint} was trained with the loss weighter {saved.get('weighter')}, this run uses "
                    f"{now['weighter']}: resume with the same one, or start a new run from the model."
                )
            if saved.get("settings", now["settings"]) != now["settings"]:
                logger.warning(
                    f"{checkpoint} was trained with loss_weighting_kwargs={saved['settings']}, this run continues with "
                    f"{now['settings']}. Give the earlier values to repeat the uninterrupted run."
                )
            self.loss_weighter.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118

    def _checked_checkpoint(self, resume: Any) -> Any:
        """Returns the checkpoint to resume from, or None.

        Args:
            resume: `resume_from_checkpoint` of `train`: a folder, True for the newest whole checkpoint, None or False.

        Raises:
            ValueError: if there is none, if it is not whole, or if it belongs to a model with other labels or another head.
        """
        if resume in (None, False):
            return None
        folder = str(self.args.output_dir)
        if resume is True:
            resume = last_whole_checkpoint(folder)
            if resume is None:
                raise ValueError(
                    f"{folder} has no whole checkpoint to resume from: start without resume_from_checkpoint."
                )
        elif problem := checkpoint_problem(resume):
            raise ValueError(f"The checkpoint {resume} cannot be resumed from: {problem}.")
        self._check_same_model(str(resume))
        return resume

    def _check_same_model(self, checkpoint: str) -> None:
        path = Path(checkpoint, "config.json")
        if not path.is_file():
            return
        saved = json.loads(path.read_text(encoding="utf-8")).get(CHECKSUMS) or {}
        config: Any = self.unwrapped_model.config
        now = json.loads(config.to_json_string())[CHECKSUMS]
        if other := [part for part in _FIXED_PARTS if saved.get(part, now[part]) != now[part]]:
            raise ValueError(
                f"{checkpoint} belongs to another model: it differs in {', '.join(other)}. Build the model as before, or "
                "start a new run into another folder."
            )

    @contextmanager
    def _only_training(self) -> Iterator[None]:
        """Holds the lock of the output folder on the main process.

        Raises:
            RuntimeError: if another process is training into the folder.
        """
        if not self.is_world_process_zero():
            yield
            return
        folder = Path(str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as problem:
            raise RuntimeError(
                f"Another process is training into {folder}: wait for it, or give another output_dir."
            ) from problem
        try:
            yield
        finally:
            lock.release()
            (folder / LOCK).unlink(missing_ok=True)


def last_whole_checkpoint(folder: str) -> str | None:
    """Returns the newest whole checkpoint in a folder, or None. Skipped ones are logged with their problem."""
    if not os.path.isdir(folder):
        return None
    for checkpoint in reversed(sort_checkpoints(folder)):
        problem = checkpoint_problem(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning(f"{checkpoint} is skipped: {problem}.")
    return None


def checkpoint_problem(folder: str | os.PathLike) -> str | None:
    """Returns the reason why a checkpoint is not whole, or None."""
    path = Path(folder)
    if not path.is_dir():
        return "there is no such folder"
    try:
        json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # written last
    except (OSError, ValueError):
        return f"{TRAINER_STATE_NAME} is missing or not complete, so it was not written to its end"
    for file in path.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return f"{file.name} is not complete"
    for file in [*path.glob("*.pt"), *path.glob("*.pth")]:
        if not zipfile.is_zipfile(file):
            return f"{file.name} is not complete"
    return None
