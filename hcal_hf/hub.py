"""Describes the pipeline of a model repository on the Hub, and explains pushes that were interrupted."""

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

logger = logging.get_logger(__name__)

TASK = "hierarchical-text-classification"

# In the format of `Pipeline.save_pretrained`. A class name without a repository refers to the repository that is read.
# With a repository in it, copies of a model would load their code from there.
_OWN_PIPELINE = {
    "impl": "pipeline_hcal.HierarchicalTextClassificationPipeline",
    "pt": ["AutoModelForSequenceClassification"],
    "type": "text",
}


# The calls between a model's forward and the pipeline: the wrappers of forward and of torch, and hooks.
_FRAMES_TO_PIPELINE = 10


class CustomPipelines(dict):
    """Holds the `custom_pipelines` of a configuration, from which `pipeline()` reads the task of a model.

    `pipeline()` requires `trust_remote_code` and runs the code of the repository if `task in custom_pipelines`. This is
    only true for tasks that no installed package has registered. Each lookup returns a copy, because `pipeline()` changes
    the value.
    """

    def __init__(self, pipelines: Mapping[str, Any] | None = None):
        pipelines = dict(pipelines or {TASK: None})
        super().__init__({k: dict(_OWN_PIPELINE) if k == TASK else v for k, v in pipelines.items()})

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) and task not in PIPELINE_REGISTRY.supported_tasks

    def __getitem__(self, task: str) -> Any:
        return copy.deepcopy(super().__getitem__(task))


def warn_of_flat_pipeline() -> None:
    """Warns once if the model runs in the pipeline "text-classification", which does not know the hierarchy.

    That pipeline returns the most probable label, which is always one of the top level, because no label is more probable
    than its parents.
    """
    frame = sys._getframe(1)
    for _ in range(_FRAMES_TO_PIPELINE):
        if frame.f_globals.get("__name__") == "transformers.pipelines.text_classification":
            logger.warning_once(
                f'pipeline("text-classification") knows no hierarchy: it answers each text with a label of the top level. '
                f'For the whole path use pipeline("{TASK}", model=...) after `import hcal_hf`.'
            )
            return
        if frame.f_back is None:
            return
        frame = frame.f_back


@contextmanager
def clear_push_errors(repo_id: str) -> Iterator[None]:
    """Explains what an interrupted push left behind and how to continue.

    Raises:
        ConnectionError: if the connection failed. Responses of the Hub (no access, no such branch, ...) are raised as they
            are.
    """
    try:
        yield
    except Exception as problem:
        reason: BaseException | None = problem
        while reason is not None and not isinstance(reason, HTTPError | ConnectionError):
            reason = reason.__cause__
        status = getattr(getattr(reason, "response", None), "status_code", None)
        answered = status is not None and status < 500
        if reason is None or answered or isinstance(reason, OfflineModeIsEnabled):
            raise
        raise ConnectionError(
            f"The push to {repo_id} was cut off: {problem} ({type(reason).__name__}). A push ends in one commit, so the "
            "repository has either all of it or nothing. Push again: large files that have arrived are not sent again."
        ) from problem
