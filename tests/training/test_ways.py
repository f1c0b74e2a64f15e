"""Each cell of the table in docs/how-to/ways-of-training.md: a whole training, or an error that names the option."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hcal_hf import HcalTrainer, HcalTrainingArguments
from tests.training.ways import OPTIONS, RESUMED, STEPS, documents, features, make_model, state_of, train

ROOT = Path(__file__).parents[2]
# The heads of the columns.
WAYS = {"DDP": "DDP", "FSDP 2": "FSDP 2", "stream": "stream", "`model_init`": "model_init", "L-BFGS": "solver"}
# Options of which a cell is also tried without several processes and without a long training.
FAST = [
    'loss_weighting="uncertainty"',
    "prototype_lr_multipliers",
    'prototype_anchor="label_text"',
    'contrast="hjcl"',
    'geometry_order="cooccurrence"',
    'tune="micro_f1", multi_path',
]
SINGLE = "FSDP cannot shard parameters of a single number, and the model has "
# Words of the error of a refused cell.
REFUSALS = {
    ('loss_weighting="uncertainty"', "FSDP 2"): "UncertaintyWeighter has its own parameters, which FSDP cannot shard",
    ('geometry="hyperbolic"', "FSDP 2"): SINGLE + "prototypes.radius",
    ('score_function="cosine"', "FSDP 2"): SINGLE + "head.scale",
    ('train_sampling_strategy="hierarchy"', "stream"): 'train_sampling_strategy="hierarchy" needs the labels of all',
    ('class_weight="balanced"', "stream"): 'class_weight="balanced" counts the labels of the training documents',
    ('geometry_order="cooccurrence"', "stream"): "counts the labels of the training rows, but train_dataset is no table",
    ('contrast="hjcl"', "solver"): 'contrast="hjcl"',
    ('contrast="aggregate"', "solver"): "contrast='aggregate'",
    ('objective="aggregate"', "solver"): "objective='aggregate'",
    ('geometry="hyperbolic_penalty"', "solver"): "geometry='hyperbolic_penalty'",
    ('geometry_order="cooccurrence"', "solver"): "geometry='hyperbolic_penalty'",
    ('geometry="hyperbolic"', "solver"): "geometry='hyperbolic'",
    ('score_function="cosine"', "solver"): "score_function='cosine'",
}  # fmt: skip
# The final state of each option on one process.
EXPECTED = {}


def read_table():
    """Returns the cells of the page by option and way."""
    page = (ROOT / "docs" / "how-to" / "ways-of-training.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    heads = [WAYS.get(head, head) for head in rows[0]]
    return {row[0].replace("`", ""): dict(zip(heads[1:], row[1:])) for row in rows[2:]}


TABLE = read_table()


def test_the_page_lists_every_option_and_way():
    assert list(TABLE) == list(OPTIONS)
    for cells in TABLE.values():
        assert list(cells) == ["one process", *WAYS.values()]
        assert set(cells.values()) <= {"yes", "refused", "other batches"}


def expected(option, folder):
    if option not in EXPECTED:
        trainer = train(option, folder / "one")
        assert trainer.state.global_step == STEPS
        EXPECTED[option] = state_of(trainer)
    return EXPECTED[option]


def differences(found, one):
    """Returns the names of the tensors that differ."""
    assert found.keys() == one.keys()
    return [
        name
        for name, value in one.items()
        if found[name].shape != value.shape or not torch.allclose(found[name].double(), value.double(), atol=1e-7)
    ]


def check_one_process(option, folder):
    one = expected(option, folder)
    assert all(value.isfinite().all() for value in one.values())
    if option == 'loss_weighting="uniform"':  # the default
        return
    without = state_of(train(option, folder / "without", without=True))
    assert without.keys() != one.keys() or differences(without, one), option


def check_cell(option, way, folder):
    cell = TABLE[option][way]
    if cell == "refused":
        words = REFUSALS.get((option, way), option)
        with pytest.raises(ValueError) as refused:  # noqa: PT011 (the words are compared below)
            train(option, folder / "run", way)
        assert words in str(refused.value)
        return
    trainer = train(option, folder / "run", way)
    if way == "solver":
        assert trainer.state.log_history[0]["head_strength"] > 0
        assert bool(trainer.tuned) == option.startswith("tune")
        if option.startswith("class_weight"):
            without = state_of(train(option, folder / "without", way, without=True))
            assert "model.prototypes.weight" in differences(state_of(trainer), without)
        return
    assert not differences(state_of(trainer), expected(option, folder))


@pytest.mark.parametrize("option", FAST)
def test_an_option_has_an_effect_on_one_process(option, tmp_path):
    check_one_process(option, tmp_path)


@pytest.mark.parametrize("way", ["stream", "model_init", "solver"])
@pytest.mark.parametrize("option", FAST)
def test_a_cell_of_one_process(option, way, tmp_path):
    check_cell(option, way, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in FAST])
def test_every_option_has_an_effect_on_one_process(option, tmp_path):
    check_one_process(option, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stream", "model_init", "solver"])
@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in FAST])
def test_every_cell_of_one_process(option, way, tmp_path):
    check_cell(option, way, tmp_path)


def launch(folder, kind):
    """Runs ways.py on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = subprocess.run(
        [*command, str(ROOT / "tests" / "training" / "ways.py"), str(folder), kind],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-6000:]


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two_processes(request, tmp_path_factory):
    """Trains all options on two processes. Returns the way and the folder of the results."""
    folder = tmp_path_factory.mktemp(request.param)
    launch(folder, request.param)
    assert (folder / "finished").exists()
    return {"ddp": "DDP", "fsdp": "FSDP 2"}[request.param], folder


@pytest.mark.slow
def test_every_cell_of_two_processes(two_processes, tmp_path):
    way, folder = two_processes
    for i, option in enumerate(OPTIONS):
        with safe_open(folder / f"{i}.safetensors", "pt") as file:
            metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert metadata["option"] == option
        cell = TABLE[option][way]
        if cell == "refused":
            assert REFUSALS[option, way] in metadata["refused"], (option, metadata["refused"])
            continue
        assert not metadata["refused"], (option, metadata["refused"])
        found = differences(state, expected(option, tmp_path))
        if cell == "other batches":
            assert found
        else:
            assert not found, option


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_on_one(tmp_path):
    """The batches of all processes together are the same, so the resumed run equals an uninterrupted one."""
    launch(tmp_path / "run", "save")
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
    trainer = train(RESUMED, tmp_path / "run", resume=True)
    assert trainer.state.global_step == STEPS
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == STEPS
    assert not differences(state_of(trainer), expected(RESUMED, tmp_path))


def test_options_that_lbfgs_does_not_use_are_logged_if_it_was_chosen_automatically(tmp_path, caplog):
    args = HcalTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, loss_weighting="hcal", head_learning_rate=1.0
    )
    HcalTrainer(make_model({}, frozen=True), args, train_dataset=features(), eval_dataset=features()).train()
    assert 'have no effect (here loss_weighting="hcal", head_learning_rate)' in caplog.text


def test_the_documents_of_the_table_have_every_leaf():
    labels = {node for row in documents()["labels"] for node in row}
    assert labels == set(range(make_model({}).taxonomy.num_labels))
