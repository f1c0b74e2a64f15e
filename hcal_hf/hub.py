"""What a repository of a model says about its code, and pushes that are cut off."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from transformers.pipelines import PIPELINE_REGISTRY

TASK = "hierarchical-text-classification"

# As `Pipeline.save_pretrained` writes it. Names without a repository mean the one that is being read: one that named
# where a model came from would have its copies fetch their code there.
_OWN_PIPELINE = {
    "impl": "pipeline_hcal.HierarchicalTextClassificationPipeline",
    "pt": ["AutoModelForSequenceClassification"],
    "type": "text",
}


class CustomPipelines(dict):
    """The tasks of a configuration's `custom_pipelines`, for `pipeline()`, which finds a model's task by them.

    `task in pipelines` is what `pipeline()` asks before it runs a repository's code, and demands trust for it: it is only
    true of tasks that no installed package has registered. Each lookup gives a copy, since `pipeline()` writes into what
    it finds.
    """

    def __init__(self, pipelines: Mapping[str, Any] | None = None):
        pipelines = dict(pipelines or {TASK: None})
        super().__init__({k: dict(_OWN_PIPELINE) if k == TASK else v for k, v in pipelines.items()})

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) and task not in PIPELINE_REGISTRY.supported_tasks

    def __getitem__(self, task: str) -> Any:
        return copy.deepcopy(super().__getitem__(task))


@contextmanager
def clear_push_errors(repo_id: str) -> Iterator[None]:
    """Says of a push that broke off what it left behind and what to do.

    Raises:
        ConnectionError: where the connection, and not the repository's answer (no access, no such branch, ...), ended
            the push.
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
            "repository shows all of it or nothing. Push again: large files that have arrived are not sent again."
        ) from problem
