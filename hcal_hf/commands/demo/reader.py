"""Reads a text once with the model of the demo page, and decides and formats it for each setting."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch

from ...configuration_hcal import HcalConfig
from ...decoding import UNTHRESHOLDED, Decision, add_ancestors, default_method
from ...pipeline_hcal import HierarchicalTextClassificationPipeline
from ...token_limits import tokenize
from .tree import answer_html, number, tree_html

# Characters of the text that the page shows above its labels.
EXCERPT = 160


def decisions(config: HcalConfig) -> list[tuple[str, str]]:
    """Lists (name on the page, `decode`) of the decoders with different results for a model.

    For a coherent head, `raw`, `closure` and `prune` (and `top_down` for multi_path) equal the default decoder.
    """
    single, coherent = config.label_mode == "single_path", config.head != "independent"
    names = (
        {"path": "most probable path", "top_down": "step by step from the top"}
        if single
        else {"closure": "all labels above the threshold"}
    )
    if not coherent:
        names["raw"] = "each level by itself" if single else "each label by itself"
        names["closure"] = "each by itself, missing parents added"
        names["prune"] = "each by itself, labels without their parents left out"
    names["expected_f1"] = "fewest wrong and missing labels"
    if config.risk_alpha is not None:
        names["risk"] = f"only reliable labels (at most {100 * config.risk_alpha:g} % wrong)"
    return [(name, method) for method, name in names.items()]


class Thresholds:
    """Maps the position of a slider to thresholds.

    The slider shows a threshold for all labels directly. With one threshold per label, the slider starts at their median.
    Moving it changes all of them by the same step in log-odds, logit(t) - logit(start), so that a label with a larger
    threshold than its parent keeps it. At the start position, the thresholds are exactly the tuned ones.

    Args:
        tuned (`float` or L numbers, *optional*): the thresholds to start from.
        default (`float`): the start of the slider without tuned thresholds.
    """

    def __init__(self, tuned: float | Sequence[float] | None, default: float):
        self.tuned = None if tuned is None else np.asarray(tuned, dtype=np.float64)
        self.start = default
        if self.tuned is not None:
            middle = round(float(np.median(self.tuned)), 2)
            self.start = middle if self.is_one else min(max(middle, 0.01), 0.99)

    @property
    def is_one(self) -> bool:
        """Whether all labels have the same threshold."""
        return self.tuned is None or bool((self.tuned == self.tuned.flat[0]).all())

    def at(self, position: float) -> float | list[float]:
        """Returns the `threshold` of `decode` for a position of the slider from 0 to 1."""
        if self.tuned is not None and position == self.start:
            return self.tuned.tolist()
        if self.tuned is None or self.is_one or position in (0, 1):
            return position
        with np.errstate(divide="ignore"):  # thresholds of 0 and 1 do not change
            log_odds = np.log(self.tuned) - np.log1p(-self.tuned)
        step = np.log(position / (1 - position)) - np.log(self.start / (1 - self.start))
        return (1 / (1 + np.exp(-(log_odds + step)))).tolist()


@dataclass(frozen=True)
class Reading:
    """Holds the logits [1, L] of a text, or None for a text without tokens, and the number of tokens that were read."""

    text: str
    number: int
    logits: torch.Tensor | None
    tokens: int
    tokens_read: int


class Reader:
    """Splits a pipeline into two steps: the encoder reads a text once, and each change only decodes and shows it again."""

    def __init__(self, pipe: HierarchicalTextClassificationPipeline):
        self.pipe, self.config, self.taxonomy = pipe, pipe.model.config, pipe.model.taxonomy
        self.names = None if self.config.label_names is None else self.config.shown_names
        options = pipe._postprocess_params
        offered = [method for _, method in decisions(self.config)]
        default = default_method(self.config.label_mode)
        self.start_method = options.get("decode") if options.get("decode") in offered else default
        tuned = options["threshold"] if options.get("threshold") is not None else self.config.thresholds
        self.thresholds = Thresholds(tuned, 0.0 if self.config.label_mode == "single_path" else 0.5)
        self._numbers = itertools.count(1)

    def read(self, text: str) -> Reading:
        """Runs the encoder, unless the text is empty."""
        tokens, tokens_read, logits = 0, 0, None
        if text.strip():
            prefixed = self.config.text_prefix + text
            tokens = len(tokenize(self.pipe.tokenizer, prefixed, truncation=False, verbose=False)["input_ids"])
        if tokens:
            inputs = self.pipe.preprocess(text, **self.pipe._preprocess_params)
            tokens_read = inputs["input_ids"].numel()
            logits = self.pipe.forward(inputs, **self.pipe._forward_params)["logits"].cpu()
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return Reading(text, next(self._numbers), logits, tokens, tokens_read)

    def decide(self, logits: torch.Tensor, method: str, position: float) -> torch.Tensor:
        """Predicts labels, bool [L], from logits [1, L], as the pipeline does with `decode=method`."""
        decision = Decision.from_config(self.config, method=method, thresholds=self.thresholds.at(position))
        return decision.decode(logits, self.taxonomy)[0]

    def threshold_info(self, method: str) -> str:
        """Returns the line below the slider."""
        if method in UNTHRESHOLDED:
            return "Not used: this decision needs no threshold."
        tuned = self.thresholds.tuned
        if tuned is not None and not self.thresholds.is_one:
            return (
                f"Tuned for each label, from {tuned.min():.2f} to {tuned.max():.2f}. The slider starts at the median and "
                "moves all of them. The tick on a bar is the threshold of the label."
            )
        rule = (
            "A path ends before its first label below it."
            if self.config.label_mode == "single_path"
            else "The lowest probability of a predicted label."
        )
        return rule if tuned is None else f"{rule} Tuned: {float(tuned.flat[0]):.3f}."

    def html(self, reading: Reading, method: str, position: float, limit: int) -> str:
        """Formats the predicted paths, and below them the tree of at most `limit` labels."""
        if reading.logits is None:
            empty = "The text is empty: write one and press Classify."
            return message("The text has no tokens for this model." if reading.text.strip() else empty)
        taxonomy, probabilities = self.taxonomy, torch.sigmoid(reading.logits[0])
        predicted = self.decide(reading.logits, method, position)
        excerpt = " ".join(reading.text[: 4 * EXCERPT].split())
        excerpt = excerpt if len(excerpt) <= EXCERPT else excerpt[:EXCERPT].rstrip() + "…"
        lines = [f'<p class="hcal-text">“{escape(excerpt)}”</p>']
        lines.append(answer_html(probabilities, predicted, taxonomy, self.names))
        if not predicted.any():
            lines.append(f"<p>{self._no_label(probabilities, method)}</p>")
        if (add_ancestors(predicted[None], taxonomy)[0] != predicted).any():
            lines.append("<p>These labels contradict the hierarchy: some are predicted without their parents.</p>")
        if reading.tokens_read < reading.tokens:
            lines.append(
                f'<p class="hcal-note">The text was cut: the model read the first {reading.tokens_read:,} of '
                f"{reading.tokens:,} tokens.</p>"
            )
        ticks = None
        if method == "risk":
            ticks = [self.config.risk_threshold] * taxonomy.num_labels
        elif method not in UNTHRESHOLDED:
            thresholds = self.thresholds.at(position)
            ticks = thresholds if isinstance(thresholds, list) else [thresholds] * taxonomy.num_labels
        tree = tree_html(probabilities, predicted, taxonomy, limit, ticks, self.names)
        answer = f'<div class="hcal-answer" role="status">{"".join(lines)}</div>'
        return f'<div data-reading="{reading.number}">{answer}{tree}</div>'

    def _no_label(self, probabilities: torch.Tensor, method: str) -> str:
        if method == "risk":
            return f"No label is probable enough for a risk of at most {100 * self.config.risk_alpha:g} %."
        best = int(probabilities.argmax())
        name = escape(self.names[best] if self.names else self.taxonomy.labels[best])
        return (
            f"No label reaches its threshold. The most probable one is {name} ({number(float(probabilities[best]))})."
        )


def message(text: str) -> str:
    """Formats a text as the only content of the result."""
    return f'<div><div class="hcal-answer" role="status"><p>{escape(text)}</p></div></div>'
