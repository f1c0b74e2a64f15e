"""Predicts labels with scores and paths from texts, as a pipeline of transformers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F
from transformers import Pipeline
from transformers.pipelines.base import GenericTensor

from .decoding import UNTHRESHOLDED, Decision, check_scores, log_thresholds
from .hub import TASK
from .path_search import PathSearch, best_of_all, is_searchable
from .token_limits import check_characters, check_tokenizer, token_limit, tokenize

# The maximum number of paths per label, because a label of a DAG can have very many.
MAX_PATHS = 100

_ARGUMENTS = ("threshold", "top_k", "num_paths", "max_depth", "decode", "truncation", "max_length", "padding")


class HierarchicalTextClassificationPipeline(Pipeline):
    """
    Hierarchical text classification with an HCAL model: `pipeline("hierarchical-text-classification", model=...)`.

    Returns a list of dictionaries for each text, one per predicted label, from the roots down. Their keys are:

    - `"label"`: the label.
    - `"score"`: its probability.
    - `"depth"`: its depth, 0 for the top level.
    - `"path"`: the names from the root to the label.
    - `"paths"`: the first 100 paths, if the label of a DAG has more than one.
    - `"name"`: the name of the label, if the model has `config.label_names`.

    Arguments, for the pipeline or for a call:
        decode (`"raw"`, `"closure"`, `"prune"`, `"path"`, `"top_down"`, `"expected_f1"` or `"risk"`): the decoder
            ([`hcal_hf.decoding.decode`]). The default is `path` for single_path and `closure` for multi_path models. `risk`
            needs a calibrated model ([`HcalTrainer.calibrate_risk`]).
        threshold (`float`, or a sequence of L numbers): the lowest probability of a predicted label, one for all labels or
            one per label. `closure` adds ancestors below it. The default is `config.thresholds` if they are tuned, else 0.5
            for multi_path and none for single_path. `expected_f1` and `risk` use none.
        top_k (`int`): return the k most probable labels of each level, without a decoder. With a `threshold`, only those
            that reach it are returned. Tuned thresholds are not used.
        num_paths (`int`): return the end nodes of the k most probable paths, the most probable first, without a decoder.
            The score is the probability that the path ends there. For the heads `conditional_softmax` and
            `conditional_sigmoid`, beam search ([`PathSearch`]) finds them without the scores of all labels.
        max_depth (`int`): leave out labels with a larger depth.
        truncation (default `True`), max_length, padding: arguments of the tokenizer.

    Raises:
        TypeError: if an argument is unknown.
        ValueError: if a value is out of range, more than one of `top_k`, `num_paths` and `decode` is given, `num_paths` is
            given with the head `independent`, or `risk` is given without calibration.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # A model in training mode would perturb its prototypes and apply dropout.
        self.model.eval()
        check_tokenizer(self.model, self.tokenizer)
        self._search: PathSearch | None = None

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Predicts the labels of a text, or of each text of a list, a data set or an iterator."""
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        for name in kwargs:
            if name not in _ARGUMENTS:
                raise TypeError(f"{type(self).__name__} has no argument {name!r}; it takes {', '.join(_ARGUMENTS)}.")
        preprocess = {name: kwargs.pop(name) for name in ("truncation", "max_length", "padding") if name in kwargs}
        self._check(**kwargs)
        number = kwargs.pop("num_paths", None)
        forward = {} if number is None else {"num_paths": min(number, self.model.config.num_labels)}
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
            raise ValueError(f"top_k must be a whole number of at least 1 (labels per level), got {top_k!r}.")
        if top_k is not None and decode is not None:
            raise ValueError(
                "top_k returns the most probable labels of each level and decode selects a label set: give only one."
            )
        if num_paths is not None:
            if not isinstance(num_paths, int) or num_paths < 1:
                raise ValueError(f"num_paths must be a whole number of at least 1, got {num_paths!r}.")
            others = {"top_k": top_k, "decode": decode, "threshold": threshold, "max_depth": max_depth}
            if not_allowed := [name for name, value in others.items() if value is not None]:
                raise ValueError(
                    f"num_paths returns the most probable paths, without a decoder: leave {', '.join(not_allowed)} out."
                )
            if self.model.config.head == "independent":
                raise ValueError(
                    "num_paths needs a coherent head, but the head 'independent' gives paths no probability. Leave "
                    "num_paths out, or train a model with another head."
                )
        if max_depth is not None and (not isinstance(max_depth, int) or max_depth < 0):
            raise ValueError(
                f"max_depth must be a whole number of at least 0 (0 = top level only), got {max_depth!r}."
            )
        # Validates the decoder options before the model reads a text.
        self._decide(torch.zeros(1, self.model.config.num_labels), decode=decode, threshold=threshold)

    def preprocess(self, inputs: Any, truncation: Any = True, **kwargs: Any) -> dict[str, GenericTensor]:
        if not isinstance(inputs, str | dict):
            raise ValueError(f'A text must be a string or {{"text": ..., "text_pair": ...}}, got {inputs!r}.')
        texts = {"text": inputs} if isinstance(inputs, str) else inputs
        for text in texts.values():
            check_characters(text)
        texts = {**texts, "text": self.model.config.text_prefix + texts["text"]}
        if truncation:
            kwargs["max_length"] = token_limit(self.model, self.tokenizer, kwargs.get("max_length"))
            truncation = truncation if kwargs["max_length"] else False
        tokens = tokenize(self.tokenizer, **texts, return_tensors="pt", truncation=truncation, **kwargs)
        if not tokens["input_ids"].numel():
            raise ValueError(f"The text has no tokens: {inputs!r}. Give a text with words.")
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
        if torch.isnan(best.log_probs).any():
            raise ValueError("The probabilities of the paths are NaN: check the weights of the model.")
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
            raise ValueError(f'decode="{decode}" uses no threshold: leave threshold out.')
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
            return [self._describe(node, score) for node, score in ends if node >= 0]
        logits = model_outputs["logits"]
        taxonomy = self.model.taxonomy
        scores = torch.sigmoid(logits[0])
        if top_k is None:
            nodes = self._decide(logits, decode, threshold)[0].nonzero()[:, 0].tolist()
        else:
            nodes = []
            check_scores(logits, taxonomy)
            log_probs = F.logsigmoid(logits)
            passes = (log_probs >= log_thresholds(0.0 if threshold is None else threshold, log_probs))[0].tolist()
            for level in taxonomy.levels:
                best = scores[level].topk(min(top_k, level.stop - level.start)).indices + level.start
                nodes += [node for node in best.tolist() if passes[node]]
        max_depth = len(taxonomy.levels) if max_depth is None else max_depth
        return [self._describe(node, scores[node].item()) for node in nodes if taxonomy.depths[node] <= max_depth]

    def _describe(self, node: int, score: float) -> dict[str, Any]:
        taxonomy = self.model.taxonomy
        paths = taxonomy.paths(node, limit=MAX_PATHS)
        depth = int(taxonomy.depths[node])
        label = {"label": taxonomy.labels[node], "score": score, "depth": depth, "path": paths[0]}
        if self.model.config.label_names is not None:
            label["name"] = self.model.config.label_names[node]
        return label if len(paths) == 1 else {**label, "paths": paths}


__all__ = ["TASK", "HierarchicalTextClassificationPipeline"]
