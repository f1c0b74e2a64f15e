"""Checkpoints are whole or absent, the newest whole one is found, and one of another model is refused."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from hcal_hf import Taxonomy
from hcal_hf.training.checkpoints import LOCK, UNFINISHED, checkpoint_problem, last_whole_checkpoint

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def checkpoints(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith("checkpoint-"))


def test_checkpoints_are_written_elsewhere_and_renamed_when_complete(make_trainer, data, taxonomy, monkeypatch):
    trainer = make_trainer(taxonomy, data, **SAVING)
    seen = []
    save_state = trainer._save_rng_state

    def spy(folder):
        seen.append((os.path.basename(os.path.dirname(folder)), checkpoints(trainer.args.output_dir)))
        save_state(folder)

    monkeypatch.setattr(trainer, "_save_rng_state", spy)
    trainer.train()
    folder = trainer.args.output_dir
    assert seen == [
        (UNFINISHED, []),
        (UNFINISHED, ["checkpoint-1"]),
        (UNFINISHED, ["checkpoint-1", "checkpoint-2"]),
    ]
    assert checkpoints(folder) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert not os.path.exists(os.path.join(folder, UNFINISHED))
    assert all(checkpoint_problem(os.path.join(folder, name)) is None for name in checkpoints(folder))


def test_an_interrupted_save_leaves_the_earlier_checkpoints_alone(make_trainer, data, taxonomy, monkeypatch):
    trainer = make_trainer(taxonomy, data, **SAVING)

    def interrupted(folder):
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_rng_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoints(trainer.args.output_dir) == ["checkpoint-1"]
    again = make_trainer(taxonomy, data, **SAVING)
    assert again.args.output_dir == trainer.args.output_dir
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert checkpoints(trainer.args.output_dir) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_the_limit_and_the_best_checkpoint_are_kept(make_trainer, data, taxonomy):
    options = {"save_total_limit": 1, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    trainer = make_trainer(
        taxonomy,
        data,
        eval_data=data,
        metric_for_best_model="eval_micro_f1",
        greater_is_better=True,
        **SAVING,
        **options,
    )
    trainer.train()
    folder = trainer.args.output_dir
    best = trainer.state.best_model_checkpoint
    assert os.path.dirname(best) == folder
    assert os.path.isdir(best)
    for name in checkpoints(folder):
        stored = json.loads(Path(folder, name, "trainer_state.json").read_text(encoding="utf-8"))
        assert UNFINISHED not in str(stored["best_model_checkpoint"])
    assert len(checkpoints(folder)) <= 2


def test_the_newest_whole_checkpoint_is_resumed(make_trainer, data, taxonomy, caplog):
    trainer = make_trainer(taxonomy, data, **SAVING)
    trainer.train()
    expected = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    folder = trainer.args.output_dir
    with open(os.path.join(folder, "checkpoint-3", "model.safetensors"), "r+b") as file:
        file.truncate(1000)
    os.remove(os.path.join(folder, "checkpoint-2", "trainer_state.json"))
    with caplog.at_level(logging.WARNING):
        assert last_whole_checkpoint(folder) == os.path.join(folder, "checkpoint-1")
    assert "checkpoint-3 is skipped: model.safetensors is not complete" in caplog.text
    assert "checkpoint-2 is skipped: trainer_state.json is missing or not complete" in caplog.text
    again = make_trainer(taxonomy, data, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "loss_weighter.safetensors"])
def test_a_checkpoint_with_a_cut_file_is_refused_by_name(make_trainer, data, taxonomy, name):
    trainer = make_trainer(taxonomy, data, **SAVING)
    trainer.train()
    checkpoint = os.path.join(trainer.args.output_dir, "checkpoint-3")
    with open(os.path.join(checkpoint, name), "r+b") as file:
        file.truncate(os.path.getsize(os.path.join(checkpoint, name)) // 2)
    with pytest.raises(ValueError, match=f"checkpoint-3 cannot be resumed from: {name} is not complete"):
        make_trainer(taxonomy, data, **SAVING).train(resume_from_checkpoint=checkpoint)


def test_without_a_whole_checkpoint_resuming_is_refused(make_trainer, data, taxonomy, tmp_path):
    trainer = make_trainer(taxonomy, data, **SAVING)
    with pytest.raises(ValueError, match="has no whole checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="cannot be resumed from: there is no such folder"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("config", "labels", "part"),
    [({}, "other", "labels"), ({"partial_paths": True}, None, "head"), ({"prototype_temperature": 0.2}, None, "head")],
)
def test_a_checkpoint_of_another_model_is_refused(make_trainer, data, taxonomy, config, labels, part):
    trainer = make_trainer(taxonomy, data, **SAVING)
    trainer.train()
    checkpoint = os.path.join(trainer.args.output_dir, "checkpoint-2")
    if labels:
        names = [f"{labels} {label}" for label in taxonomy.labels]
        taxonomy = Taxonomy(names, taxonomy.edges)
    other = make_trainer(taxonomy, data, folder="other", config=config, **SAVING)
    with pytest.raises(ValueError, match=f"checkpoint-2 belongs to another model: it differs in {part}"):
        other.train(resume_from_checkpoint=checkpoint)


def test_another_gamma_is_warned_of(make_trainer, data, taxonomy, caplog):
    options = {"loss_weighting": "hcal", **SAVING}
    trainer = make_trainer(taxonomy, data, loss_weighting_kwargs={"gamma": 0.5}, **options)
    trainer.train()
    checkpoint = os.path.join(trainer.args.output_dir, "checkpoint-2")
    other = make_trainer(taxonomy, data, folder="other", loss_weighting_kwargs={"gamma": 0.7}, **options)
    with caplog.at_level(logging.WARNING):
        other.train(resume_from_checkpoint=checkpoint)
    assert (
        'was trained with loss_weighting_kwargs={"gamma": 0.5}, this run continues with {"gamma": 0.7}' in caplog.text
    )


def test_a_second_training_into_one_folder_is_refused(make_trainer, data, taxonomy):
    trainer = make_trainer(taxonomy, data, max_steps=1)
    os.makedirs(trainer.args.output_dir, exist_ok=True)
    path = os.path.join(trainer.args.output_dir, LOCK)
    with FileLock(path), pytest.raises(RuntimeError, match="Another process is training into"):
        trainer.train()
    trainer.train()
    assert not os.path.exists(path)


def test_a_checkpoint_written_by_an_earlier_version_is_resumed(make_trainer, data, taxonomy):
    trainer = make_trainer(taxonomy, data, **SAVING)
    trainer.train()
    checkpoint = os.path.join(trainer.args.output_dir, "checkpoint-2")
    path = os.path.join(checkpoint, "config.json")
    with open(path, encoding="utf-8") as file:
        values = json.load(file)
    del values["hcal_checksums"]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(values, file)
    shutil.copytree(checkpoint, os.path.join(trainer.args.output_dir, "copy"))
    again = make_trainer(taxonomy, data, folder="other", **SAVING)
    again.train(resume_from_checkpoint=os.path.join(trainer.args.output_dir, "copy"))
    assert again.state.global_step == 3
