"""What a model card is made of: what the author tells, what the trainer knows."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass
class Details:
    """What nobody but the author knows; None: not told.

    Args:
        model_name (`str`): title of the card.
        language (`str` or `list[str]`): of the texts, as ISO 639 codes.
        license (`str`): the weights' licence, by the Hub's name for it, such as `apache-2.0`.
        tags (`str` or `list[str]`): more tags of the repository.
        finetuned_from (`str`): the encoder's name on the Hub; found by itself where the encoder was loaded from there.
        dataset (`str`): the data's name, in words.
        dataset_tags (`str`): the data's name on the Hub.
        dataset_args (`str`): its configuration there.
        dataset_license (`str`): its licence, in words.
        dataset_description (`str`): source, splits, what was left out; Markdown, written as given.
        benchmark_task (`str`): a task of `dataset_tags` as the Hub's benchmark names it; the result then also goes to
            `.eval_results/`, where the Hub reads those of its registered benchmarks and of nothing else.
        benchmark_metric (`str`): which metric that benchmark is about.
    """

    model_name: str | None = None
    language: str | list[str] | None = None
    license: str | None = None
    tags: str | list[str] | None = None
    finetuned_from: str | None = None
    dataset: str | None = None
    dataset_tags: str | None = None
    dataset_args: str | None = None
    dataset_license: str | None = None
    dataset_description: str | None = None
    benchmark_task: str | None = None
    benchmark_metric: str = "micro_f1"

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: for a name on the Hub that is none, or a benchmark's task without its data set.
        """
        for name in ("finetuned_from", "dataset_tags"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and REPO_ID.fullmatch(value)):
                raise ValueError(
                    f'{name} must be one name on the Hub, such as "sentence-transformers/all-MiniLM-L6-v2", got {value!r}: '
                    "leave it out for what is not there."
                )
        if self.benchmark_task is not None and self.dataset_tags is None:
            raise ValueError(f"benchmark_task={self.benchmark_task!r} is a task of a data set: give dataset_tags too.")

    @classmethod
    def read(cls, given: Mapping[str, Any] | str | None) -> "Details":
        """Details from a mapping, or from JSON.

        Raises:
            ValueError: for a name that is none of the above (with the closest ones), what is no mapping, or an invalid
                value.
        """
        values = json.loads(given) if isinstance(given, str) else dict(given or {})
        if not isinstance(values, dict):
            raise ValueError(f"The model card's details must be a mapping, got {values!r}.")
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=3)
                raise ValueError(f"The model card has no detail {name!r}. Closest: {close or known}.")
        return cls(**values)


@dataclass
class DataSummary:
    """One data set of the training.

    Args:
        role (`str`): what it was for.
        documents (`int`, *optional*): how many; None for a stream.
        labelled (`int`, *optional*): how many have labels.
        counts (`np.ndarray` of shape `[L]`, *optional*): documents of each label, ancestors included.
    """

    role: str
    documents: int | None = None
    labelled: int | None = None
    counts: np.ndarray | None = None


@dataclass
class Evaluation:
    """The scores of a model on one data set.

    Args:
        split (`str`): its name.
        documents (`int`): how many.
        metrics (`dict[str, float]`): as [`hcal_hf.compute_metrics`] names them.
        support, node_f1 (`np.ndarray` of shape `[L]`, *optional*): documents and F1 of each label; F1 is NaN for a label
            that no document has.
    """

    split: str
    documents: int
    metrics: Mapping[str, float]
    support: np.ndarray | None = None
    node_f1: np.ndarray | None = None


@dataclass
class Facts:
    """What a card is made of, besides the model.

    Args:
        model_id (`str`): how the usage block loads the model: its name on the Hub, or a folder.
        details ([`Details`]): what the author told.
        data: the data sets of the training.
        training (`dict[str, str]`, *optional*): settings of the training and their values; None where they are not known.
        results: scores of the model as it is.
        pictures (`dict[str, str]`): files in the model's folder and what they show.
        carries_code (`bool`): whether the model's folder holds its code.
        carried (`dict[str, str]`): sections of the folder's former card, by title, for what is not known any more.
    """

    model_id: str
    details: Details = field(default_factory=Details)
    data: Sequence[DataSummary] = ()
    training: Mapping[str, str] | None = None
    results: Sequence[Evaluation] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    carries_code: bool = False
    carried: Mapping[str, str] = field(default_factory=dict)


__all__ = ["REPO_ID", "DataSummary", "Details", "Evaluation", "Facts"]
