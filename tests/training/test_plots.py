import builtins
import sys

import numpy as np
import pytest
from PIL import Image

from hcal_hf import Taxonomy
from hcal_hf.commands.run_arguments import parse_arguments
from hcal_hf.commands.training_run import run_training
from hcal_hf.training.plots import (
    MOST_NODES,
    _icicle,
    remove_figure,
    save_scores,
    save_weights,
    scores_figure,
    weights_figure,
)
from tests.builders import random_forest
from tests.commands.test_train import config_file, data_dir  # noqa: F401

TASKS = ["level_0", "level_1", "level_2", "contrast_1"]


def entry(step, losses, weights):
    """Returns a log entry of the trainer. None marks a task without a loss at this step."""
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


def test_lines_show_the_logged_values(taxonomy, history):
    losses, weights = weights_figure(history, TASKS, taxonomy).axes
    names = ["level 0 (2 labels)", "level 1 (4 labels)", "level 2 (7 labels)", "contrast 1 (4 labels)"]
    assert list(lines(losses)) == list(lines(weights)) == names
    assert [text.get_text() for text in losses.get_legend().get_texts()] == names
    assert lines(losses)[names[0]] == ([5, 10, 15], [1.0, 0.5, 0.4])
    assert lines(weights)[names[1]] == ([5, 10, 15], [0.3, 0.7, 0.2])
    assert lines(losses)[names[2]] == ([5, 15], [3.0, 2.0])  # no document had a label at this level at step 10
    assert lines(weights)[names[2]] == ([5, 15], [0.5, 0.7])
    assert lines(losses)[names[3]][1] == [0.5, 0.4, 0.3]
    assert losses.get_yscale() == "linear"
    assert weights.get_ylim() == pytest.approx((0, 1.05 * 0.7))


def test_losses_of_different_magnitude_use_a_logarithmic_scale(taxonomy, history):
    far = [*history, entry(20, [0.01, 1.0, 1.0, 1.0], [0.1, 0.2, 0.7, 0.3])]
    losses, weights = weights_figure(far, TASKS, taxonomy).axes
    assert (losses.get_yscale(), weights.get_yscale()) == ("log", "linear")
    # A contrast loss can be 0, which a logarithmic scale cannot show.
    zero = [*far, entry(25, [0.0, 1.0, 1.0, 1.0], [0.1, 0.2, 0.7, 0.3])]
    assert weights_figure(zero, TASKS, taxonomy).axes[0].get_yscale() == "linear"


def test_saving_writes_a_picture_and_keeps_the_matplotlib_backend(tmp_path, taxonomy, history):
    before = "matplotlib.pyplot" in sys.modules
    assert save_weights(tmp_path / "weights.png", history, TASKS, taxonomy)
    assert ("matplotlib.pyplot" in sys.modules) == before
    with Image.open(tmp_path / "weights.png") as image:
        assert (image.format, image.size) == ("PNG", (1200, 1050))
        assert len(image.convert("RGB").getcolors(10**6)) > 4  # the picture is not empty


def test_no_figure_is_made_without_logged_steps(tmp_path, taxonomy, history):
    assert not save_weights(tmp_path / "weights.png", [{"step": 0, "train_loss": 1.0}], TASKS, taxonomy)
    assert not (tmp_path / "weights.png").exists()


def test_without_matplotlib_a_log_message_says_how_to_install_it(tmp_path, taxonomy, history, monkeypatch):
    real, said = builtins.__import__, []

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr("hcal_hf.training.plots.logger.warning", said.append)
    assert not save_weights(tmp_path / "weights.png", history, TASKS, taxonomy)
    assert said == [
        f'{tmp_path / "weights.png"} was not written, because matplotlib is missing: pip install "hcal-hf[quickstart]".'
    ]


# ---- Scores of the labels ----


def boxes(figure):
    """Returns {level: [(upper edge, lower edge, colour)]} of the drawn boxes."""
    found = {}
    for k, collection in enumerate(figure.axes[0].collections):
        corners = np.stack([path.vertices[:4] for path in collection.get_paths()])
        assert set(corners[:, :, 0].flatten()) == {k, k + 1}
        colors = np.broadcast_to(collection.get_facecolors(), (len(corners), 4))
        found[k] = [
            (low, high, tuple(color)) for low, high, color in zip(corners[:, 0, 1], corners[:, 2, 1], colors.tolist())
        ]
    return found


def test_boxes_are_next_to_their_parents_and_coloured_by_score(taxonomy):
    f1 = np.linspace(0, 1, taxonomy.num_labels)
    f1[-1] = np.nan
    figure = scores_figure(taxonomy, f1, "test")
    drawn = boxes(figure)
    assert [box[:2] for box in drawn[0]] == [(0, 4), (4, 7)]  # the roots have four and three leaves
    assert [box[:2] for box in drawn[1]] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert [box[:2] for box in drawn[2]] == [(i, i + 1) for i in range(7)]
    from matplotlib import colormaps

    shade = colormaps["viridis"]
    colors = [box[2] for level in drawn.values() for box in level]
    for value, color in zip(f1[:-1], colors):
        assert color == pytest.approx(shade(value))
    assert len({round(part, 6) for part in colors[-1][:3]}) == 1  # grey
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == list(taxonomy.names)
    titles = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert titles[0] == f"level 0\n2 labels, macro-F1 {50 * (f1[0] + f1[1]):.1f}"
    assert titles[2] == f"level 2\n7 labels, macro-F1 {100 * np.nanmean(f1[6:]):.1f}"


@pytest.mark.parametrize("seed", range(5))
def test_boxes_of_children_fill_the_box_of_their_parent(seed):
    taxonomy = random_forest(np.random.default_rng(seed), 200)
    bottoms, heights = _icicle(taxonomy, len(taxonomy.levels))
    children = {node: taxonomy.edges[taxonomy.edges[:, 0] == node, 1] for node in range(taxonomy.num_labels)}
    assert heights[taxonomy.levels[0]].sum() == taxonomy.is_leaf.sum()
    for node, below in children.items():
        if len(below):
            assert sorted(bottoms[below])[0] == bottoms[node]
            assert heights[below].sum() == heights[node]
            ends = sorted(zip(bottoms[below], bottoms[below] + heights[below]))
            assert all(end == start for (_, end), (start, _) in zip(ends, ends[1:]))
        else:
            assert heights[node] == 1


def test_each_label_of_a_dag_is_drawn_once(dag):
    drawn = boxes(scores_figure(dag, np.ones(dag.num_labels), "test"))
    assert [len(level) for level in drawn.values()] == [level.stop - level.start for level in dag.levels]
    for level in drawn.values():
        spans = sorted(box[:2] for box in level)
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:]))


def test_the_deepest_levels_of_a_large_hierarchy_are_left_out():
    large = Taxonomy.from_edges([(f"a{i}", f"b{i}.{j}") for i in range(10) for j in range(MOST_NODES // 10)])
    figure = scores_figure(large, np.ones(large.num_labels), "test")
    assert list(boxes(figure)) == [0]
    assert "the 1 deepest levels are left out" in figure.axes[0].get_xlabel()
    assert scores_figure(Taxonomy([f"a{i}" for i in range(MOST_NODES + 1)]), np.ones(MOST_NODES + 1), "test") is None


def test_any_name_can_be_drawn(tmp_path):
    names = ["$x^2$", "\\frac{", "<b>|`", "\u05e9\u05dc", "a\nb", "\u202ex", "\U0001f600 汉字", "w" * 300, "\x07y"]
    nasty = Taxonomy.from_edges([(name.strip(), f"{name} below") for name in names])
    assert save_scores(tmp_path / "scores.png", nasty, np.full(nasty.num_labels, np.nan), "$te\nst$")
    with Image.open(tmp_path / "scores.png") as image:
        assert image.format == "PNG"


def test_only_figures_made_by_this_library_are_removed(tmp_path, taxonomy):
    ours, others = tmp_path / "scores.png", tmp_path / "weights.png"
    save_scores(ours, taxonomy, np.ones(13), "test")
    Image.new("RGB", (10, 10)).save(others)
    for path in (ours, others, tmp_path / "none.png"):
        remove_figure(path)
    assert not ours.exists()
    assert others.exists()


@pytest.mark.parametrize("freeze", [False, True])
def test_a_run_saves_the_weights_figure_only_if_it_trained_in_steps(tmp_path, encoder_dir, data_dir, freeze):  # noqa: F811
    path = config_file(tmp_path, encoder_dir, data_dir, freeze_encoder=freeze, max_steps=4, logging_steps=1)
    run_training(*parse_arguments([path]))
    # With a frozen encoder, L-BFGS fits the head without steps.
    assert (tmp_path / "out" / "weights.png").exists() != freeze
