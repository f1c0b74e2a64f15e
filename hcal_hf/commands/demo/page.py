"""Builds a web page that classifies texts and shows the label tree with probabilities, and writes it as a Space."""

import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import SpaceCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import AutoConfig, pipeline

from ...configuration_hcal import HcalConfig
from ...decoding import UNTHRESHOLDED
from ...pipeline_hcal import TASK, HierarchicalTextClassificationPipeline
from .label_tab import add_label_tab
from .labelling import Labelling
from .reader import Reader, Reading, decisions, message
from .tree import CSS, SCRIPT

if TYPE_CHECKING:
    import gradio

TITLE = "Hierarchical text classification"

# The number of labels in the tree at the start, and its limits for any taxonomy.
START_LABELS = 30
MAX_LABELS = 200
MIN_LABELS = 5


# ---- The page ----


def build_page(
    model: Any,
    examples: Sequence[str] | None = None,
    title: str = TITLE,
    *,
    suggestions: str | os.PathLike | None = None,
    labelled: str | os.PathLike | None = None,
    host: str = "127.0.0.1",
) -> "gradio.Blocks":
    """Builds a gradio page for a model.

    The encoder reads a text once. A change of decision, threshold or number of labels uses the same logits, so the tree
    changes at once. Decoders with equal results are offered once, and `risk` only if it is calibrated.

    Args:
        model (`str`, path or [`HierarchicalTextClassificationPipeline`]): a folder, a name on the Hub, or a pipeline. The
            page starts with the `decode` and `threshold` of a pipeline.
        examples (`Sequence[str]`, *optional*): texts that a user can click on. The page starts with the first of them, or
            with the name of a label.
        title (`str`): the heading.
        suggestions (`str` or path, *optional*): a table of `hcal suggest`. The page then starts with a tab to label its
            texts.
        labelled (`str` or path, *optional*): the file of JSON lines for these labels, which `hcal train --from` reads. By
            default `to_label.labelled.jsonl` next to `to_label.csv`.
        host (`str`): the address that the server listens on, under which the tab can be used.

    Raises:
        ImportError: if gradio is not installed.
        TypeError: if `model` or `examples` has another type.
        ValueError: if the model is not an HCAL model, or a file is no table of suggestions or no labelled file.
        RuntimeError: if another page writes the same labelled file.
    """
    gr = _import_gradio()
    _check_examples(examples)
    if labelled is not None and suggestions is None:
        raise ValueError("labelled needs suggestions: give the table of hcal suggest, whose texts are labelled.")
    reader = Reader(_as_pipeline(model))
    config, taxonomy = reader.config, reader.taxonomy
    labelling = None if suggestions is None else Labelling(reader, suggestions, labelled)

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
    with ExitStack() as blocks:
        page = blocks.enter_context(gr.Blocks(title=title, analytics_enabled=False))
        gr.HTML(f"<h1>{escape(title)}</h1><p>{escape(about)}</p>", js_on_load=None)
        page.labelling = labelling  # to close its files
        if labelling is not None:
            blocks.enter_context(gr.Tabs())
            with gr.Tab("Label"):
                add_label_tab(labelling, model if isinstance(model, str) else "MODEL", host)
            blocks.enter_context(gr.Tab("Classify"))
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
                    message("Write a text and press Classify."),
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
    *,
    suggestions: str | os.PathLike | None = None,
    labelled: str | os.PathLike | None = None,
    **kwargs: Any,
) -> Any:
    """Builds the page ([`build_page`]) and serves it until it is interrupted.

    Args:
        model, examples, suggestions, labelled: see [`build_page`].
        host (`str`): the address to listen on; `"0.0.0.0"` for all addresses of the machine.
        port (`int`, *optional*): the port. By default the first free port from 7860.
        share (`bool`): create a public link through the servers of gradio.
        kwargs: other arguments of `gradio.Blocks.launch`.

    Returns:
        the result of `gradio.Blocks.launch`.

    Raises:
        ImportError: if gradio is not installed.
        OSError: if the port is taken.
        ValueError: if `share` is combined with `suggestions`, because anybody with the link could write the labelled file.
    """
    if share and suggestions is not None:
        raise ValueError(
            "A page with suggestions has no public link, because anybody with the link could read the texts and label "
            "them: leave out --share. With --host 0.0.0.0, other machines of your network can use it."
        )
    options = {"show_error": True, "footer_links": ["gradio", "settings"], **kwargs}
    page = build_page(model, examples, suggestions=suggestions, labelled=labelled, host=host)
    return page.launch(server_name=host, server_port=port, share=share, **options)


def _example_text(config: HcalConfig) -> str:
    """Returns a text to start with: the name of the last leaf."""
    return (config.label_names or config.to_taxonomy().names)[-1].replace("_", " ")


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
