"""Builds a web page that classifies texts and shows the label tree with probabilities, and writes it as a Space."""

import itertools
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import SpaceCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import AutoConfig, pipeline

from ...configuration_hcal import HcalConfig
from ...decoding import UNTHRESHOLDED, Decision, add_ancestors, default_method
from ...pipeline_hcal import TASK, HierarchicalTextClassificationPipeline
from .tree import CSS, SCRIPT, answer_html, number, tree_html

if TYPE_CHECKING:
    import gradio

TITLE = "Hierarchical text classification"

# The number of labels in the tree at the start, and its limits for any taxonomy.
START_LABELS = 30
MAX_LABELS = 200
MIN_LABELS = 5

# Characters of the text that the page shows above its labels.
EXCERPT = 160


# ---- The page ----


def build_page(model: Any, examples: Sequence[str] | None = None, title: str = TITLE) -> "gradio.Blocks":
    """Builds a gradio page for a model.

    The encoder reads a text once. A change of decision, threshold or number of labels uses the same logits, so the tree
    changes at once. Decoders with equal results are offered once, and `risk` only if it is calibrated.

    Args:
        model (`str`, path or [`HierarchicalTextClassificationPipeline`]): a folder, a name on the Hub, or a pipeline. The
            page starts with the `decode` and `threshold` of a pipeline.
        examples (`Sequence[str]`, *optional*): texts that a user can click on. The page starts with the first of them, or
            with the name of a label.
        title (`str`): the heading.

    Raises:
        ImportError: if gradio is not installed.
        TypeError: if `model` or `examples` has another type.
        ValueError: if the model is not an HCAL model.
    """
    gr = _import_gradio()
    _check_examples(examples)
    reader = Reader(_as_pipeline(model))
    config, taxonomy = reader.config, reader.taxonomy

    def classify(text: str, reading: Reading | None, method: str, threshold: float, limit: int) -> tuple:
        if reading is None or reading.text != text:
            reading = reader.read(text)
        return reading, reader.html(reading, method, threshold, int(limit))

    def redecide(reading: Reading | None, method: str, threshold: float, limit: int) -> Any:
        return gr.skip() if reading is None else reader.html(reading, method, threshold, int(limit))

    def change_decision(reading: Reading | None, method: str, threshold: float, limit: int) -> tuple:
        slider = gr.update(info=reader.threshold_info(method), interactive=method not in UNTHRESHOLDED)
        return slider, redecide(reading, method, threshold, limit)

    start = reader.start_method
    sizes = ", ".join(f"{level.stop - level.start:,}" for level in taxonomy.levels)
    kind = "one path" if config.label_mode == "single_path" else "any number of labels"
    levels = "1 level" if len(taxonomy.levels) == 1 else f"{len(taxonomy.levels)} levels"
    name = f"{model}: " if _is_on_hub(model) else ""
    about = f"{name}{taxonomy.num_labels:,} labels on {levels} ({sizes} from the top down); a text has {kind}."
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(title)}</h1><p>{escape(about)}</p>", js_on_load=None)
        reading = gr.State(None)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                text = gr.Textbox(
                    value=examples[0] if examples else _example_text(reader.config),
                    label="Text",
                    info="Shift + Enter classifies.",
                    lines=5,
                    max_lines=15,
                    elem_id="hcal-text",
                )
                button = gr.Button("Classify", variant="primary", elem_id="hcal-classify")
                shown = gr.Examples([[example] for example in examples], [text]) if examples else None
                method = gr.Radio(decisions(config), value=start, label="Decision", elem_id="hcal-decision")
                threshold = gr.Slider(
                    0.0,
                    1.0,
                    value=reader.thresholds.start,
                    step=0.01,
                    label="Threshold",
                    info=reader.threshold_info(start),
                    interactive=start not in UNTHRESHOLDED,
                    elem_id="hcal-threshold",
                )
                limit = gr.Slider(
                    MIN_LABELS,
                    max(MIN_LABELS + 1, min(MAX_LABELS, taxonomy.num_labels)),
                    value=min(START_LABELS, taxonomy.num_labels),
                    step=1,
                    label="Labels in the tree, at most",
                    visible=taxonomy.num_labels > MIN_LABELS,
                    elem_id="hcal-limit",
                )
            with gr.Column(scale=3, min_width=300):
                result = gr.HTML(
                    _message("Write a text and press Classify."),
                    css_template=CSS,
                    js_on_load=SCRIPT,
                    apply_default_css=False,
                    elem_id="hcal-result",
                )
        settings = [method, threshold, limit]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        read: dict[str, Any] = {"inputs": [text, reading, *settings], "outputs": [reading, result]}
        gr.on([button.click, text.submit], classify, **read, show_progress_on=[result], api_visibility="private")
        if shown is not None:
            shown.load_input_event.then(classify, **read, show_progress_on=[result], api_visibility="private")
        gr.on(
            [threshold.change, limit.change],
            redecide,
            inputs=[reading, *settings],
            outputs=[result],
            trigger_mode="always_last",
            **hidden,
        )
        method.change(change_decision, inputs=[reading, *settings], outputs=[threshold, result], **hidden)
    return page


def launch(
    model: Any,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    examples: Sequence[str] | None = None,
    **kwargs: Any,
) -> Any:
    """Builds the page ([`build_page`]) and serves it until it is interrupted.

    Args:
        model, examples: see [`build_page`].
        host (`str`): the address to listen on; `"0.0.0.0"` for all addresses of the machine.
        port (`int`, *optional*): the port. By default the first free port from 7860.
        share (`bool`): create a public link through the servers of gradio.
        kwargs: other arguments of `gradio.Blocks.launch`.

    Returns:
        the result of `gradio.Blocks.launch`.

    Raises:
        ImportError: if gradio is not installed.
        OSError: if the port is taken.
    """
    options = {"show_error": True, "footer_links": ["gradio", "settings"], **kwargs}
    return build_page(model, examples).launch(server_name=host, server_port=port, share=share, **options)


def _example_text(config: HcalConfig) -> str:
    """Returns a text to start with: the name of the last leaf."""
    return (config.label_names or config.to_taxonomy().names)[-1].replace("_", " ")


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
            tokens = len(self.pipe.tokenizer(text, truncation=False, verbose=False)["input_ids"])
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
            return _message("The text has no tokens for this model." if reading.text.strip() else empty)
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


def _message(text: str) -> str:
    return f'<div><div class="hcal-answer" role="status"><p>{escape(text)}</p></div></div>'


def _import_gradio() -> Any:
    # gradio reads these when it is imported or launched. They disable usage statistics and storing texts in the browser.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")
    try:
        import gradio
    except ImportError as problem:
        raise ImportError('The page needs gradio: pip install "hcal-hf[demo]".') from problem
    return gradio


def _check_examples(examples: Any) -> None:
    if isinstance(examples, str) or not all(isinstance(text, str) for text in examples or ()):
        raise TypeError(f"examples must be a list of texts, got {examples!r}.")


def _as_pipeline(model: Any) -> HierarchicalTextClassificationPipeline:
    if isinstance(model, HierarchicalTextClassificationPipeline):
        return model
    if not isinstance(model, str | os.PathLike):
        raise TypeError(
            f"model must be a folder, a name on the Hub, or pipeline({TASK!r}, ...), got {type(model).__name__}."
        )
    name = os.fspath(model)
    _check_config(name)
    return pipeline(TASK, model=name)


def _is_on_hub(model: Any) -> bool:
    return isinstance(model, str) and not os.path.isdir(model)


def _check_config(name: str) -> None:
    if not os.path.isdir(name):
        try:
            validate_repo_id(name)
        except HFValidationError as problem:
            raise ValueError(f"{name!r} is neither a folder nor a name on the Hub (owner/model).") from problem
    model_type = AutoConfig.from_pretrained(name).model_type
    if model_type != HcalConfig.model_type:
        raise ValueError(
            f"{name!r} holds a model of type {model_type!r}; the page shows HCAL models (model_type "
            f"{HcalConfig.model_type!r}), as HcalTrainer saves them."
        )


# ---- The page as a Space ----

_APP = '''"""{title}: `python app.py` starts the page."""

from pathlib import Path

from hcal_hf import build_page

MODEL = {model}
EXAMPLES: list[str] = {examples}

demo = build_page(MODEL, examples=EXAMPLES, title={quoted})

if __name__ == "__main__":
    demo.launch(footer_links=["gradio", "settings"])
'''

_README = """---
{header}
---

# {title}

Classifies texts into a hierarchy of labels with hcal_hf. {source}.

`pip install -r requirements.txt && python app.py` starts the page on your own machine.
"""


def export_space(
    model: Any, directory: str | os.PathLike, examples: Sequence[str] | None = None, title: str = TITLE
) -> Path:
    """Writes the page as a gradio Space: `app.py`, `requirements.txt`, `README.md` with a header, and the model.

    A model from a folder or a pipeline is saved to `model/` (weights, configuration, tokenizer and model card, but no other
    files). For a model on the Hub, only the name is written. `hf upload NAME DIRECTORY --repo-type space` pushes it.

    Args:
        model, examples, title: see [`build_page`].
        directory: a folder without any of these files. It is created if necessary.

    Returns:
        the folder.

    Raises:
        ImportError: if gradio is not installed.
        FileExistsError: if one of the files exists. Nothing is written then.
        TypeError, ValueError: as in [`build_page`].
    """
    gr = _import_gradio()
    from ... import __version__

    _check_examples(examples)
    folder = Path(directory)
    existing = [name for name in ("app.py", "requirements.txt", "README.md", "model") if (folder / name).exists()]
    if existing:
        raise FileExistsError(f"{folder} already holds {', '.join(existing)}: give a new folder, or remove them.")
    on_hub = _is_on_hub(model)
    header: dict[str, Any] = {}
    if on_hub:
        _check_config(model)
        header["models"] = [model]
    else:
        pipe = _as_pipeline(model)
        pipe.model.save_pretrained(folder / "model")
        pipe.tokenizer.save_pretrained(folder / "model")
        card = None if isinstance(model, HierarchicalTextClassificationPipeline) else Path(model) / "README.md"
        if card is not None and card.is_file():
            shutil.copyfile(card, folder / "model" / "README.md")
    folder.mkdir(parents=True, exist_ok=True)
    app = _APP.format(
        title=" ".join(title.split()).replace("\\", "").replace('"', "'"),
        model=repr(model) if on_hub else 'str(Path(__file__).parent / "model")',
        examples=list(examples or []),
        quoted=repr(title),
    )
    (folder / "app.py").write_text(app, encoding="utf-8")
    packages = [f"hcal-hf[demo]=={__version__}"]
    packages += [f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("torch", "transformers")]
    (folder / "requirements.txt").write_text("\n".join(packages) + "\n", encoding="utf-8")
    data = SpaceCardData(
        title=title,
        emoji="🌳",
        colorFrom="green",
        colorTo="gray",
        sdk="gradio",
        sdk_version=gr.__version__,
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        **header,
    )
    source = f"The model is `{model}`" if on_hub else "The model is in `model/`"
    readme = _README.format(header=data.to_yaml(), title=" ".join(title.split()), source=source)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return folder


__all__ = ["build_page", "export_space", "launch"]
