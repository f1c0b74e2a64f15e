import builtins
import sys

import pytest
from PIL import Image
from test_runner import config_file, data_dir  # noqa: F401

from hcal_hf.plots import save_weights, weights_figure
from hcal_hf.runner import parse_arguments, run

TASKS = ["level_0", "level_1", "level_2", "contrast_1"]


def entry(step, losses, weights):
    """A step in the trainer's log; None for a task that it lacks."""
    logged = {"step": step, "epoch": step / 10, "loss": 1.0}
    for name, loss, weight in zip(TASKS, losses, weights):
        if loss is not None:
            logged |= {f"loss_{name}": loss, f"weight_{name}": weight}
    return logged


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


@pytest.fixture
def history():
    return [
        entry(5, [1.0, 2.0, 3.0, 0.5], [0.2, 0.3, 0.5, 0.1]),
        entry(10, [0.5, 1.5, None, 0.4], [0.3, 0.7, None, 0.2]),
        {"step": 10, "epoch": 1.0, "eval_loss": 2.0},
        entry(15, [0.4, 1.0, 2.0, 0.3], [0.1, 0.2, 0.7, 0.3]),
        {"step": 15, "train_runtime": 1.0, "train_loss": 1.2},
    ]


def test_lines_carry_the_logged_values(taxonomy, history):
    losses, weights = weights_figure(history, TASKS, taxonomy).axes
    names = ["level 0 (2 labels)", "level 1 (4 labels)", "level 2 (7 labels)", "contrast 1 (4 labels)"]
    assert list(lines(losses)) == list(lines(weights)) == names
    assert [text.get_text() for text in losses.get_legend().get_texts()] == names
    assert lines(losses)[names[0]] == ([5, 10, 15], [1.0, 0.5, 0.4])
    assert lines(weights)[names[1]] == ([5, 10, 15], [0.3, 0.7, 0.2])
    assert lines(losses)[names[2]] == ([5, 15], [3.0, 2.0])  # no document reached it at step 10
    assert lines(weights)[names[2]] == ([5, 15], [0.5, 0.7])
    assert lines(losses)[names[3]][1] == [0.5, 0.4, 0.3]
    assert losses.get_yscale() == "linear"
    assert weights.get_ylim() == pytest.approx((0, 1.05 * 0.7))


def test_losses_far_apart_are_drawn_on_a_logarithmic_scale(taxonomy, history):
    far = [*history, entry(20, [0.01, 1.0, 1.0, 1.0], [0.1, 0.2, 0.7, 0.3])]
    losses, weights = weights_figure(far, TASKS, taxonomy).axes
    assert (losses.get_yscale(), weights.get_yscale()) == ("log", "linear")
    # A contrast can be 0, which has no logarithm.
    zero = [*far, entry(25, [0.0, 1.0, 1.0, 1.0], [0.1, 0.2, 0.7, 0.3])]
    assert weights_figure(zero, TASKS, taxonomy).axes[0].get_yscale() == "linear"


def test_the_file_is_a_picture_and_the_backend_is_left_alone(tmp_path, taxonomy, history):
    before = "matplotlib.pyplot" in sys.modules
    assert save_weights(tmp_path / "weights.png", history, TASKS, taxonomy)
    assert ("matplotlib.pyplot" in sys.modules) == before
    with Image.open(tmp_path / "weights.png") as image:
        assert (image.format, image.size) == ("PNG", (1200, 1050))
        assert len(image.convert("RGB").getcolors(10**6)) > 4  # lines, not an empty page


def test_without_logged_steps_there_is_no_figure(tmp_path, taxonomy, history):
    assert not save_weights(tmp_path / "weights.png", [{"step": 0, "train_loss": 1.0}], TASKS, taxonomy)
    assert not (tmp_path / "weights.png").exists()


def test_without_matplotlib_a_line_says_how_to_get_it(tmp_path, taxonomy, history, monkeypatch):
    real, said = builtins.__import__, []

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr("hcal_hf.plots.logger.warning", said.append)
    assert not save_weights(tmp_path / "weights.png", history, TASKS, taxonomy)
    assert said == [
        f'{tmp_path / "weights.png"} was not drawn: it needs matplotlib, pip install "hcal-hf[quickstart]".'
    ]


@pytest.mark.parametrize("freeze", [False, True])
def test_a_run_leaves_the_figure_where_it_took_steps(tmp_path, encoder_dir, data_dir, freeze):  # noqa: F811
    path = config_file(tmp_path, encoder_dir, data_dir, freeze_encoder=freeze, max_steps=4, logging_steps=1)
    run(*parse_arguments([path]))
    assert (tmp_path / "out" / "weights.png").exists() != freeze  # L-BFGS fits a frozen encoder's head
