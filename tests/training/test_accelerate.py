"""Checks how accelerate reads each launch file, and trains with those for CPUs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import BertModel

from tests.builders import tiny_bert
from tests.commands.test_train import config_file, data_dir  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
# name: (distributed type, number of processes, on the CPU)
FILES = {
    "one_cpu": (DistributedType.NO, 1, True),
    "two_cpu_processes": (DistributedType.MULTI_GPU, 2, True),
    "multi_gpu": (DistributedType.MULTI_GPU, 2, False),
    "fsdp2": (DistributedType.FSDP, 2, False),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 2, False),
}


def test_every_launch_file_is_tested():
    assert {path.stem for path in FOLDER.iterdir()} == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_launch_file_has_the_setup_of_its_name(name, monkeypatch):
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert (config.distributed_type, config.num_processes, config.use_cpu) == FILES[name]
    assert (config.num_machines, config.mixed_precision) == (1, "no")
    fsdp, deepspeed = config.fsdp_config, config.deepspeed_config
    assert fsdp.get("fsdp_version") == (2 if name == "fsdp2" else None)
    assert deepspeed.get("zero_stage") == (2 if name == "deepspeed_zero2" else None)
    # The launcher ignores keys that it does not know.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert set(fsdp) | set(deepspeed) <= known.keys()
    line = f"accelerate launch --config_file recipes/accelerate/{name}.yaml recipes/train.py CONFIG.yaml"
    assert f"#     {line}\n" in path.read_text(encoding="utf-8")
    arguments = launch_command_parser().parse_args(line.split()[2:])
    arguments.config_file = str(path)
    arguments, *_ = _validate_launch_command(arguments)
    assert (arguments.use_fsdp, arguments.use_deepspeed) == (name == "fsdp2", name == "deepspeed_zero2")
    assert arguments.multi_gpu == (FILES[name][0] == DistributedType.MULTI_GPU)
    assert arguments.num_processes == FILES[name][1]
    assert (arguments.training_script, arguments.training_script_args) == ("recipes/train.py", ["CONFIG.yaml"])


def launch(launch_file, script, arguments):
    """Launches a script and returns its stdout and stderr."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "FSDP_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(launch_file),
         "--main_process_port", "0", str(script), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # including its child processes
    assert process.returncode == 0, printed[-6000:]
    return printed


@pytest.fixture
def arguments(tmp_path, encoder_dir, data_dir):  # noqa: F811
    """Returns a function that gives the arguments of a run with global batches of 4 documents on one or two processes.

    Both runs must give the same weights, so there is no dropout, and the optimizer is SGD. Adam would turn rounding errors
    of zero gradients into full steps.
    """
    encoder = tmp_path / "encoder"
    torch.manual_seed(0)
    BertModel(tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).save_pretrained(encoder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (encoder / name).write_bytes((Path(encoder_dir) / name).read_bytes())
    path = config_file(
        tmp_path, str(encoder), data_dir, max_steps=6, learning_rate=1e-2, optim="sgd", lr_scheduler_type="constant",
        loss_weighting="hcal_rate", loss_weighting_kwargs={"first_steps": 2}, perturbation=0.05, logging_steps=2,
        per_device_eval_batch_size=1,
    )  # fmt: skip

    def on(processes, folder):
        batch = str(4 // processes)
        return [path, "--output_dir", str(tmp_path / folder), "--per_device_train_batch_size", batch]

    return on


def assert_same(folder, expected):
    """Compares the saved models, scores and logs of two runs."""
    found, one = (load_file(path / "model.safetensors") for path in (folder, expected))
    assert found.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(found[name], one[name], atol=1e-5, rtol=0, msg=name)
    found, one = (json.loads((path / "test_results.json").read_text(encoding="utf-8")) for path in (folder, expected))
    # Two processes both get the seventh document. Only the loss counts it twice, so it is not compared.
    for name in ("test_micro_f1", "test_macro_f1", "test_accuracy_level_0", "test_exact_match"):
        assert found[name] == pytest.approx(one[name]), name
    found, one = (
        [
            entry
            for entry in json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
            if "loss" in entry
        ]
        for path in (folder, expected)
    )
    assert len(found) == len(one) == 3
    for two, alone in zip(found, one):
        for key in ("loss", "loss_level_2", "weight_level_2"):
            assert two[key] == pytest.approx(alone[key], abs=1e-3), key
    assert (folder / "weights.png").stat().st_size > 10_000


def test_one_process_two_processes_and_fsdp_train_the_same_model(tmp_path, arguments):
    printed = launch(FOLDER / "one_cpu.yaml", "recipes/train.py", arguments(1, "one"))
    assert "Training: 1 process on cpu\n" in printed
    printed = launch(FOLDER / "two_cpu_processes.yaml", "recipes/train.py", arguments(2, "two"))
    assert "Training: 2 processes on cpu, DDP\n" in printed
    assert printed.count("test: 7 documents") == 1
    assert_same(tmp_path / "two", tmp_path / "one")

    # On CPUs, recipes/accelerate/fsdp2.yaml falls back to DDP with a warning.
    on_cpu = tmp_path / "fsdp2.yaml"
    on_cpu.write_text(
        yaml.safe_dump(yaml.safe_load((FOLDER / "fsdp2.yaml").read_text(encoding="utf-8")) | {"use_cpu": True}),
        encoding="utf-8",
    )
    printed = launch(on_cpu, "recipes/train.py", [*arguments(2, "fallback"), "--max_steps", "1"])
    assert "Training: 2 processes on cpu, DDP\n" in printed
    assert "FSDP was requested and is not used on cpu" in printed

    # Processes that look like GPU processes use FSDP.
    printed = launch(on_cpu, ROOT / "tests" / "training" / "sharded_processes.py", arguments(2, "sharded"))
    assert "Training: 2 processes on cpu, FSDP\n" in printed
    assert printed.count("predicted: ") == 2
    assert_same(tmp_path / "sharded", tmp_path / "one")
