"""Inference: texts in, labels with scores and paths out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F
from transformers import Pipeline
from transformers.pipelines.base import GenericTensor

from .decoding import UNTHRESHOLDED, Decision, log_thresholds
from .hub import TASK
from .path_search import PathSearch, best_of_all, is_searchable

# Tokenizers that name no longest text say so by a number beyond this.
NO_LIMIT = 10**9

# A label of a DAG can have very many paths.
MAX_PATHS = 100

_ARGUMENTS = ("threshold", "top_k", "num_paths", "max_depth", "decode", "truncation", "max_length", "padding")


class HierarchicalTextClassificationPipeline(Pipeline):
    """
    Hierarchical text classification with an HCAL model: `pipeline("hierarchical-text-classification", model=...)`.

    For each text it returns a list of `{"label", "score", "depth", "path"}`, from the roots down: the label, its
    probability, its depth (0 = top level) and the names on the way to it. In a DAG, a label with several paths has
    them (the first 100) under `"paths"`. A model with `config.label_names` adds the label's name as `"name"`.

    Arguments, for the pipeline or for a call:
        decode (`"raw"`, `"closure"`, `"prune"`, `"path"`, `"top_down"`, `"expected_f1"` or `"risk"`): how the label set is
            decided ([`hcal_hf.decoding.decode`]); default `path` for single_path, `closure` for multi_path models. `risk`
            needs a calibrated model ([`HcalTrainer.calibrate_risk`]).
        threshold (`float`, or a sequence of L numbers): lowest probability of a predicted label, for all or for each
            (before `closure` adds ancestors); default `config.thresholds`, where they are tuned, else 0.5 for multi_path
            and none for single_path. `expected_f1` and `risk` have none.
        top_k (`int`): instead of deciding, list the k most probable labels of each level (those of at least `threshold`,
            if given; tuned thresholds are not used).
        num_paths (`int`): instead of deciding, list the ends of the k most probable whole paths, the best first, with the
            probability that the path ends there. Heads `conditional_softmax` and `conditional_sigmoid` find them by beam
            search ([`PathSearch`]), without the scores of all labels.
        max_depth (`int`): leave out labels deeper than this.
        truncation (default `True`), max_length, padding: for the tokenizer.

    Raises:
        TypeError: for an unknown argument.
        ValueError: for a value out of range, more than one of `top_k`, `num_paths` and `decode`, `num_paths` with the head
            `independent`, or `risk` without calibration.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # A model that comes straight from training would still perturb its prototypes and drop out.
        self.model.eval()
        self._search: PathSearch | None = None

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        for name in kwargs:
            if name not in _ARGUMENTS:
                raise TypeError(f"{type(self).__name__} has no argument {name!r}; it takes {', '.join(_ARGUMENTS)}.")
        preprocess = {name: kwargs.pop(name) for name in ("truncation", "max_length", "padding") if name in kwargs}
        self._check(**kwargs)
        forward = {"num_paths": kwargs.pop("num_paths")} if kwargs.get("num_paths") is not None else {}
        return preprocess, forward, kwargs

    def _check(
        self,
        decode: str | None = None,
        threshold: float | Sequence[float] | None = None,
        top_k: int | None = None,
        num_paths: int | None = None,
        max_depth: int | None = None,
    ) -> None:
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k must be a whole number of at least 1 (labels a level), got {top_k!r}.")
        if top_k is not None and decode is not None:
            raise ValueError("top_k lists the most probable labels of each level, decode decides on a set: give one.")
        if num_paths is not None:
            if not isinstance(num_paths, int) or num_paths < 1:
                raise ValueError(f"num_paths must be a whole number of at least 1, got {num_paths!r}.")
            others = {"top_k": top_k, "decode": decode, "threshold": threshold, "max_depth": max_depth}
            if given := [name for name, value in others.items() if value is not None]:
                raise ValueError(f"num_paths lists the most probable whole paths: leave {', '.join(given)} out.")
            if self.model.config.head == "independent":
                raise ValueError("num_paths needs a coherent head: 'independent' gives paths no probability.")
        if max_depth is not None and (not isinstance(max_depth, int) or max_depth < 0):
            raise ValueError(
                f"max_depth must be a whole number of at least 0 (0 = top level only), got {max_depth!r}."
            )
        # The decoder knows its own values: let it speak before any text has been through the model.
        self._decide(torch.zeros(1, self.model.config.num_labels), decode=decode, threshold=threshold)

    def preprocess(self, inputs: Any, truncation: Any = True, **kwargs: Any) -> dict[str, GenericTensor]:
        if not isinstance(inputs, str | dict):
            raise ValueError(f'A text must be a string or {{"text": ..., "text_pair": ...}}, got {inputs!r}.')
        texts = {"text": inputs} if isinstance(inputs, str) else inputs
        if truncation and kwargs.get("max_length") is None and self.tokenizer.model_max_length > NO_LIMIT:
            kwargs["max_length"] = self.model.max_tokens  # what the tokenizer does not know
            truncation = truncation if kwargs["max_length"] else False
        tokens = self.tokenizer(**texts, return_tensors="pt", truncation=truncation, **kwargs)
        if not tokens["input_ids"].numel():
            raise ValueError(f"The text has no tokens: {inputs!r}.")
        return tokens

    def _forward(self, model_inputs: dict[str, torch.Tensor], num_paths: int | None = None) -> dict[str, torch.Tensor]:
        if num_paths is None:
            return {"logits": self.model(**model_inputs).logits}
        if is_searchable(self.model):
            if self._search is None:
                self._search = PathSearch(self.model)
            best = self._search(self.model(**model_inputs, return_logits=False).features, num_paths)
        else:
            best = best_of_all(self.model(**model_inputs).logits, self.model, num_paths)
        return {"nodes": best.nodes, "log_probs": best.log_probs}

    def _decide(
        self, logits: torch.Tensor, decode: str | None, threshold: float | Sequence[float] | None
    ) -> torch.Tensor:
        config = self.model.config
        if decode == "risk" and config.risk_threshold is None:
            raise ValueError(
                'decode="risk" needs a calibrated model, but config.risk_threshold is None: run '
                "trainer.calibrate_risk(held_out_dataset, alpha=0.1) and save the model."
            )
        decision = Decision.from_config(config, method=decode)
        if threshold is None:
            return decision.decode(logits, self.model.taxonomy)
        if decode in UNTHRESHOLDED:
            raise ValueError(f'decode="{decode}" chooses its own size of the set: leave threshold out.')
        return replace(decision, thresholds=threshold).decode(logits, self.model.taxonomy)

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        decode: str | None = None,
        threshold: float | Sequence[float] | None = None,
        top_k: int | None = None,
        max_depth: int | None = None,
    ) -> list[dict[str, Any]]:
        if "nodes" in model_outputs:
            ends = zip(model_outputs["nodes"][0].tolist(), model_outputs["log_probs"][0].exp().tolist())
            return [self._described(node, score) for node, score in ends if node >= 0]
        logits = model_outputs["logits"]
        taxonomy = self.model.taxonomy
        scores = torch.sigmoid(logits[0])
        if top_k is None:
            nodes = self._decide(logits, decode, threshold)[0].nonzero()[:, 0].tolist()
        else:
            nodes = []
            log_probs = F.logsigmoid(logits)
            passes = (log_probs >= log_thresholds(0.0 if threshold is None else threshold, log_probs))[0].tolist()
            for level in taxonomy.levels:
                best = scores[level].topk(min(top_k, level.stop - level.start)).indices + level.start
                nodes += [node for node in best.tolist() if passes[node]]
        deepest = len(taxonomy.levels) if max_depth is None else max_depth
        return [self._described(node, scores[node].item()) for node in nodes if taxonomy.depths[node] <= deepest]

    def _described(self, node: int, score: float) -> dict[str, Any]:
        taxonomy = self.model.taxonomy
        paths = taxonomy.paths(node, limit=MAX_PATHS)
        depth = int(taxonomy.depths[node])
        label = {"label": taxonomy.labels[node], "score": score, "depth": depth, "path": paths[0]}
        if self.model.config.label_names is not None:
            label["name"] = self.model.config.label_names[node]
        return label if len(paths) == 1 else {**label, "paths": paths}


__all__ = ["TASK", "HierarchicalTextClassificationPipeline"]
