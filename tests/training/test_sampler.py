"""The sampler that puts documents with shared labels into a batch, and the contrast of HJCL in the Trainer."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from datasets import Dataset
from torch.utils.data import BatchSampler

from hcal_hf import HcalTrainer, HcalTrainingArguments, HierarchySampler, Taxonomy
from hcal_hf.commands.run_arguments import ModelArguments, parse_arguments
from hcal_hf.commands.training_run import _config_fields
from hcal_hf.training.sampler import FollowEpoch
from tests.builders import build_model, build_taxonomy, random_dag, random_forest, random_multi_hot


def make_sampler(taxonomy, labels, batch_size=8, seed=0):
    documents, nodes = (labels > 0).nonzero(as_tuple=True)
    return HierarchySampler(documents.numpy(), nodes.numpy(), len(labels), taxonomy, batch_size, seed)


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("single_path", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_every_document_is_drawn_once_in_groups_with_a_shared_label_per_level(make, single_path, seed):
    rng = np.random.default_rng(seed)
    taxonomy = make(rng, 20)
    labels = random_multi_hot(rng, taxonomy, 101, single_path=single_path)
    sampler = make_sampler(taxonomy, labels)
    order, groups = list(sampler), list(sampler.groups())
    assert sorted(order) == list(range(101))
    assert order == [i for group in groups for i in group]
    assert len(sampler) == 101
    position, drawn, has_one_label = 0, set(), single_path and taxonomy.is_forest
    for anchor, *followers in groups:
        drawn.add(anchor)
        own = {c for c in range(20) if labels[anchor, c]}
        depths = sorted({int(taxonomy.depths[c]) for c in own})
        assert len(followers) <= len(depths)
        assert position // 8 == (position + len(followers)) // 8  # within one batch
        waiting = list(followers)
        for depth in depths if has_one_label else ():
            (label,) = [c for c in own if taxonomy.depths[c] == depth]
            is_full = (position + 1 + len(followers) - len(waiting)) % 8 == 0
            if not is_full and any(labels[i, label] for i in range(101) if i not in drawn):
                assert labels[waiting[0], label]
                drawn.add(waiting.pop(0))
        assert not has_one_label or not waiting
        assert all(own & {c for c in range(20) if labels[i, c]} for i in followers)
        drawn |= set(followers)
        position += 1 + len(followers)
    assert sum(len(group) > 2 for group in groups) >= 2


def test_batches_hold_more_pairs_of_the_same_leaf_than_random_batches():
    taxonomy = Taxonomy.from_edges([(f"d{i}", f"d{i}.{j}") for i in range(10) for j in range(15)])
    leaves = np.flatnonzero(taxonomy.is_leaf)
    labels = torch.zeros(1500, taxonomy.num_labels)
    for i in range(1500):
        labels[i, taxonomy.complete([leaves[i % 150]])] = 1
    order = np.array(list(make_sampler(taxonomy, labels, 32)))

    def partners(order):
        batches = [Counter((order[start : start + 32] % 150).tolist()) for start in range(0, 1472, 32)]
        return sum(n * (n - 1) for batch in batches for n in batch.values())

    assert partners(order) > 3 * partners(np.random.default_rng(0).permutation(1500))
    assert partners(order) > 600


def test_the_order_depends_on_seed_and_epoch_only():
    taxonomy = build_taxonomy()
    labels = random_multi_hot(np.random.default_rng(0), taxonomy, 60, single_path=True)
    sampler = make_sampler(taxonomy, labels)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert list(make_sampler(taxonomy, labels, seed=1)) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_documents_without_labels_and_empty_data_sets_are_sampled():
    taxonomy = build_taxonomy()
    assert sorted(make_sampler(taxonomy, torch.zeros(5, 13))) == [0, 1, 2, 3, 4]
    assert list(make_sampler(taxonomy, torch.zeros(0, 13))) == []
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make_sampler(taxonomy, torch.zeros(5, 13), batch_size=0)


def test_two_processes_share_the_batches_of_an_epoch_also_after_resuming():
    taxonomy = build_taxonomy()
    labels = random_multi_hot(np.random.default_rng(0), taxonomy, 64, single_path=True)
    expected = make_sampler(taxonomy, labels)
    expected.set_epoch(2)
    whole = list(BatchSampler(expected, 8, drop_last=False))
    for rank in range(2):
        sampler = make_sampler(taxonomy, labels)
        shard = BatchSamplerShard(BatchSampler(sampler, 8, drop_last=False), 2, rank)
        loader = DataLoaderShard(list(range(64)), batch_sampler=shard, collate_fn=list)
        # What the Trainer does when it resumes in the third epoch after one step.
        loader = skip_first_batches(loader, 1)
        state = type("State", (), {"epoch": 2.25})()
        FollowEpoch(sampler).on_epoch_begin(None, state, None)
        loader.set_epoch(2)
        assert list(loader) == whole[rank::2][1:]


# The Trainer


@pytest.fixture
def rows(tokenizer):
    """Returns 16 documents with one or two paths in `build_taxonomy`."""
    taxonomy = build_taxonomy()
    leaves = taxonomy.is_leaf.nonzero()[0].tolist()
    generator = torch.Generator().manual_seed(5)
    entries = []
    for i in range(16):
        ids = torch.randint(2, 22, (1 + i % 5,), generator=generator).tolist()
        ends = [leaves[i % 7], leaves[(3 * i + 1) % 7]][: 1 + i % 2]
        labels = taxonomy.complete(ends).tolist()
        entries.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Dataset.from_list(entries)


def make_trainer(folder, data, tokenizer, model=None, **kwargs):
    if model is None:
        config = {"label_mode": "multi_path", "contrast": "hjcl", "dropout": 0.1, "perturbation": 0.05}
        model = build_model(build_taxonomy(), **config)
    kwargs = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
              "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 3,
              "train_sampling_strategy": "hierarchy", **kwargs}  # fmt: skip
    args = HcalTrainingArguments(str(folder), **kwargs)
    return HcalTrainer(model, args, None, data, None, tokenizer)


def test_resuming_gives_exactly_the_weights_of_the_uninterrupted_run(rows, tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", rows, tokenizer, **settings)
    whole.train()
    for step in (2, 4, 5):  # within the first epoch, at its end, within the second epoch
        again = make_trainer(tmp_path / f"from {step}", rows, tokenizer, **settings)
        again.train(resume_from_checkpoint=os.path.join(whole.args.output_dir, f"checkpoint-{step}"))
        for (name, expected), value in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
            assert torch.equal(expected, value), (step, name)


def test_each_epoch_trains_on_every_document_once_and_in_another_order(rows, tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, rows, tokenizer)
    seen, compute = [], trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, **kw: (
        seen.append(inputs["input_ids"].shape) or compute(model, inputs, **kw)
    )
    sampler = trainer._get_train_sampler()
    first = list(sampler)
    trainer.train()
    assert len(seen) == 8
    used = next(c for c in trainer.callback_handler.callbacks if isinstance(c, FollowEpoch)).sampler
    assert used.epoch == 1
    assert sorted(used) == sorted(first) == list(range(16))
    assert list(used) != first
    assert sum(isinstance(c, FollowEpoch) for c in trainer.callback_handler.callbacks) == 1


def test_contrasts_are_logged_and_their_weights_do_not_follow_the_weighter(rows, tokenizer, tmp_path):
    for weighter in ("uniform", "hcal"):
        trainer = make_trainer(tmp_path / weighter, rows, tokenizer, loss_weighting=weighter)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss_contrast_label" in entry]
        assert len(logs) == 8
        assert {round(entry["weight_contrast_label"], 6) for entry in logs} == {0.5}
        assert {round(entry["weight_contrast_instance"], 6) for entry in logs} == {0.1}
        assert trainer.loss_weighter.num_tasks == 3


def test_two_equal_micro_batches_have_the_gradient_of_one(rows, tokenizer, tmp_path):
    """Each micro-batch contrasts its own documents, so accumulation averages their losses."""
    gradients = []
    for copies in (1, 2):
        model = build_model(build_taxonomy(), label_mode="multi_path", contrast="hjcl", dtype=torch.float64)
        data = Dataset.from_list([*rows.select(range(4))] * copies)
        # SGD with rate 1 moves the weights by the gradient.
        trainer = make_trainer(
            tmp_path / str(copies), data, tokenizer, model, gradient_accumulation_steps=copies, max_steps=1, optim="sgd",
            learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0, train_sampling_strategy="sequential",
        )  # fmt: skip
        before = model.projection.weight.detach().clone()
        model.prototypes.noise_width = 0.0
        trainer.train()
        gradients.append(before - model.projection.weight.detach())
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1])


def test_streams_and_unknown_strategies_are_refused(rows, tokenizer, tmp_path):
    with pytest.raises(
        ValueError, match="needs the labels of all documents before training, but got: IterableDataset"
    ):
        make_trainer(tmp_path, rows.to_iterable_dataset(), tokenizer, max_steps=2).train()
    with pytest.raises(ValueError, match=r"train_sampling_strategy must be one of random, .*got 'grouped'"):
        HcalTrainingArguments(str(tmp_path), train_sampling_strategy="grouped")


def features_of(rows):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(rows), 16, generator=generator)
    return Dataset.from_dict({"pooled_states": states.numpy(), "labels": rows["labels"]})


def test_frozen_features_are_trained_by_the_optimiser_with_the_instance_contrast(rows, tokenizer, tmp_path, caplog):
    kwargs = {"label_mode": "multi_path", "contrast": "hjcl", "score_function": "linear"}
    for options, solver, message in (
        ({}, "auto", "attends to the tokens"),
        ({}, "optimizer", "attends to the tokens"),
        ({"label_weight": 0}, "lbfgs", r"L-BFGS fits losses of single documents.*contrast='hjcl'"),
    ):
        model = build_model(build_taxonomy(), contrast_kwargs=options, **kwargs)
        model.encoder.requires_grad_(False)
        trainer = make_trainer(tmp_path, features_of(rows), tokenizer, model, head_solver=solver)
        with pytest.raises(ValueError, match=message):
            trainer.train()
    model = build_model(build_taxonomy(), contrast_kwargs={"label_weight": 0}, **kwargs)
    model.encoder.requires_grad_(False)
    trainer = make_trainer(tmp_path, features_of(rows), tokenizer, model, head_solver="auto")
    before = model.projection.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, model.projection.weight)
    assert trainer.state.global_step == 8
    assert (
        'head_solver="auto" trains the head in batches by the optimiser. L-BFGS fits losses of single' in caplog.text
    )


def test_options_are_read_from_a_file_and_the_command_line(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "output_dir: out\nencoder: x\ncontrast: hjcl\ncontrast_kwargs: {label_weight: 0.2}\n"
        "train_sampling_strategy: hierarchy\n",
        encoding="utf-8",
    )
    model, _, training = parse_arguments([str(config)])
    assert (model.contrast, model.contrast_kwargs) == ("hjcl", {"label_weight": 0.2})
    assert training.train_sampling_strategy == "hierarchy"
    model, _, _ = parse_arguments([str(config), "--contrast_kwargs", '{"variant": "released"}'])
    assert model.contrast_kwargs == {"variant": "released"}
    with pytest.raises(ValueError, match="contrast_kwargs must be an object such as"):
        parse_arguments([str(config), "--contrast_kwargs", "0.2"])


def test_a_run_on_a_frozen_encoder_refuses_the_label_contrast_before_it_computes_features():
    with pytest.raises(ValueError, match="attends to the tokens"):
        _config_fields(ModelArguments(contrast="hjcl"), "frozen")
    arguments = ModelArguments(contrast="hjcl", contrast_kwargs='{"label_weight": 0}')
    fields = _config_fields(arguments, "frozen")
    assert (fields["contrast_kwargs"], fields["score_function"]) == ({"label_weight": 0}, "cosine")
