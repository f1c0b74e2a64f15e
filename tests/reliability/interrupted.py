"""Trains and predicts in processes that are killed at random moments, and compares with runs without interruption.

    python -m tests.reliability.interrupted train FOLDER MOMENTS
    python -m tests.reliability.interrupted predict FOLDER KILLS

This process imports everything and trains nothing. It forks a child per run, which saves the seconds of importing, and
prints one JSON object: the number of kills, how many hit a run, and the differences that were found.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hcal_hf.commands.prediction_file import predict_file
from hcal_hf.commands.predictor import PredictionArguments
from hcal_hf.training.checkpoints import checkpoint_problem
from hcal_hf.training.weighting import WEIGHTERS
from tests.builders import WORDS, build_model, build_taxonomy, build_tokenizer
from tests.training.test_weighting_training import make_trainer

STEPS = 8


def in_child(run, *args):
    """Runs a function in a forked process. Returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        run(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child):
    """Waits for a child. Raises an error if it failed."""
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a run ended with the status {status}")


def kill_after(child, seconds):
    """Kills a child after some seconds. Returns whether it still ran then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"a run ended with the status {status}")
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


# ---- Training ----


def train(folder, weighter, resume):
    trainer = make_trainer(
        folder, weighter, max_steps=STEPS, logging_steps=STEPS, save_strategy="steps", save_steps=1, save_total_limit=3
    )
    checkpoints = list(Path(folder).glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=bool(resume and any(not checkpoint_problem(str(c)) for c in checkpoints)))
    save_file({k: v.contiguous() for k, v in trainer.model.state_dict().items()}, Path(folder) / "end.safetensors")
    weights = {f"weighter.{name}": value.contiguous() for name, value in trainer.loss_weighter.state_dict().items()}
    save_file(weights or {"none": torch.zeros(1)}, Path(folder) / "weighter.safetensors")


def end_of(folder):
    return {**load_file(Path(folder) / "end.safetensors"), **load_file(Path(folder) / "weighter.safetensors")}


def kill_trainings(folder, moments):
    """Kills a training of each weighter in turn at random moments, resumes it, and compares the end bit for bit."""
    draw = random.Random(0)
    whole, seconds = {}, {}
    kills, resumed, differences, partial, newest = {}, 0, [], 0, 0
    number, tries = 0, 0
    while number < moments and tries < 4 * moments:
        weighter = sorted(WEIGHTERS)[number % len(WEIGHTERS)]
        tries += 1
        if weighter not in whole:
            start = time.monotonic()
            finish(in_child(train, folder / weighter, weighter, False))
            whole[weighter], seconds[weighter] = end_of(folder / weighter), time.monotonic() - start
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        if not kill_after(in_child(train, run, weighter, False), draw.uniform(0.1, 1) * seconds[weighter]):
            continue  # it was done before
        number += 1
        kills[weighter] = kills.get(weighter, 0) + 1
        folders = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        saved = [checkpoint_problem(str(path)) for path in folders]
        partial += any(saved)
        newest += bool(saved and saved[-1])
        resumed += any(problem is None for problem in saved)
        finish(in_child(train, run, weighter, True))
        found, expected = end_of(run), whole[weighter]
        wrong = [name for name in expected if not torch.equal(found[name], expected[name])]
        differences += [f"{weighter}: {name}" for name in wrong]
    return {
        "kills": number,
        "kills_by_weighter": kills,
        "resumed_from_a_checkpoint": resumed,
        "partial_checkpoints": partial,
        "partial_newest": newest,
        "differences": differences,
    }


# ---- Prediction ----


def predict(model, file, out):
    predict_file(model, file, out, PredictionArguments(window=24), use_cpu=True, progress=False)


def kill_predictions(folder, kills):
    """Kills a prediction again and again until it is complete, and starts others until it was killed often enough."""
    draw = random.Random(0)
    model = build_model(build_taxonomy())
    torch.nn.init.normal_(model.prototypes.weight)
    model.save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(1500)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    arguments = (str(folder / "model"), str(folder / "texts.txt"))
    start = time.monotonic()
    finish(in_child(predict, *arguments, str(folder / "whole.parquet")))
    seconds = time.monotonic() - start
    whole = (folder / "whole.parquet").read_bytes()
    number, jobs, differences = 0, 0, []
    while number < kills:
        out = folder / f"out{jobs}.parquet"
        while kill_after(in_child(predict, *arguments, str(out)), draw.uniform(0.05, 0.8) * seconds):
            number += 1
            if out.exists():  # killed after the file was complete
                break
            if number == kills:
                finish(in_child(predict, *arguments, str(out)))
                break
        jobs += 1
        if out.read_bytes() != whole:
            differences.append(f"job {jobs}: other bytes")
        out.unlink()
    return {"kills": number, "jobs": jobs, "rows": len(texts), "differences": differences}


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, target, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    target.mkdir(parents=True, exist_ok=True)
    report = {"train": kill_trainings, "predict": kill_predictions}[kind](target, number)
    print("\n" + json.dumps(report))
