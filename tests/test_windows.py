"""Long texts are read in overlapping windows, wherever texts are read."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, RobertaConfig, pipeline

from hcal_hf import (
    HcalClassifier,
    HcalConfig,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    PredictionArguments,
    Predictor,
    add_lexical_features,
    encode_dataset,
    pooled_features,
)
from hcal_hf.pipeline_hcal import TASK
from hcal_hf.pooling import LENGTH_FILE, pool_states
from hcal_hf.token_limits import token_limit
from hcal_hf.windows import Windows, count_affixes
from tests.builders import WORDS, build_model, build_tokenizer

FIELDS = {"window_length": 10, "window_overlap": 3, "max_windows": 3, "window_affixes": [1, 2]}
CAPACITY = 18  # 1 + 7 + 4 + 4 + 2
LENGTHS = (18, 10, 3, 11, 17, 25)
rng = np.random.default_rng(0)
TEXTS = [" ".join(rng.choice(WORDS, size=size)) for size in (1, 9, 10, 11, 14, 18, 25)]


def batch_of(lengths, left=False, seed=0):
    """Returns random token ids and masks of texts with so many tokens."""
    ids = torch.randint(2, 22, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    mask = mask.flip(1) if left else mask
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": ids % 2 * mask}


def windows_by_loop(tokens, windows):
    """Splits one text token by token."""
    if len(tokens) <= windows.length:
        return [tokens]
    head, tail = tokens[: windows.before], tokens[len(tokens) - windows.after :]
    middle, room = (
        tokens[windows.before : len(tokens) - windows.after],
        windows.length - windows.before - windows.after,
    )
    found, start = [], 0
    while len(found) < windows.maximum:
        found.append([*head, *middle[start : start + room], *tail])
        if start + room >= len(middle):
            break
        start += room - windows.overlap
    return found


def varied(taxonomy, **config):
    """Returns a model with random prototypes and distinct token states."""
    model = build_model(taxonomy, **{**FIELDS, **config}).eval()
    with torch.no_grad():
        model.encoder.get_input_embeddings().weight.mul_(20)
        model.prototypes.weight.normal_(generator=torch.Generator().manual_seed(1))
        if model.window_attention is not None:
            model.window_attention.query.normal_(0, 5, generator=torch.Generator().manual_seed(2))
    return model


# ---- Splitting ----


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("before", "after", "overlap"), [(1, 2, 3), (0, 0, 0), (2, 0, 7), (0, 1, 1)])
def test_windows_equal_those_of_a_loop(before, after, overlap, left):
    windows = Windows(10, overlap, 4, before, after)
    lengths = [*range(1, 32), windows.capacity, windows.capacity + 1]
    batch = batch_of(lengths, left)
    found = windows.split(batch)
    for name in ("input_ids", "token_type_ids"):
        rows = [row[mask > 0].tolist() for row, mask in zip(batch[name], batch["attention_mask"])]
        expected = [(i, window) for i, row in enumerate(rows) for window in windows_by_loop(row, windows)]
        split = zip(found.inputs[name], found.inputs["attention_mask"])
        assert [row[mask > 0].tolist() for row, mask in split] == [window for _, window in expected]
        assert found.documents.tolist() == [i for i, _ in expected]
    assert found.lengths.tolist() == found.inputs["attention_mask"].sum(dim=1).tolist()
    assert found.lengths.min() > 0  # there are no empty windows
    numbers = windows.count(np.array(lengths))
    assert numbers.tolist() == torch.bincount(found.documents).tolist()


def test_the_capacity_is_the_longest_text_that_is_read_to_its_end():
    windows = Windows(10, 3, 3, 1, 2)
    assert windows.capacity == CAPACITY
    ids = torch.arange(CAPACITY)[None]
    assert set(windows.split({"input_ids": ids}).inputs["input_ids"].flatten().tolist()) == set(range(CAPACITY))
    longer = torch.arange(CAPACITY + 1)[None]
    read = set(windows.split({"input_ids": longer}).inputs["input_ids"].flatten().tolist())
    assert set(range(CAPACITY + 1)) - read == {CAPACITY - 2}  # the last token before those that every window repeats


# ---- Vectors of documents ----


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
@pytest.mark.parametrize("window_pooling", ["mean", "attention"])
def test_documents_equal_windows_that_are_read_and_pooled_one_by_one(taxonomy, pooling, window_pooling):
    model = varied(taxonomy, pooling=pooling, window_pooling=window_pooling)
    batch = batch_of(LENGTHS)
    with torch.no_grad():
        _, found = model.encode_documents(batch)
        for i, length in enumerate(LENGTHS):
            tokens, types = (batch[name][i, :length].tolist() for name in ("input_ids", "token_type_ids"))
            pairs = zip(windows_by_loop(tokens, model.windows), windows_by_loop(types, model.windows))
            states = [
                model.encoder(input_ids=torch.tensor([a]), token_type_ids=torch.tensor([b])).last_hidden_state[0]
                for a, b in pairs
            ]
            pooled = [pool_states(state[None], pooling=pooling)[0] for state in states]
            if window_pooling == "mean" and pooling == "max":
                expected = torch.cat(states).amax(dim=0)
            else:
                weights = [float(len(state)) for state in states]
                if window_pooling == "attention":
                    query = model.window_attention.query
                    weights = [w * math.exp(float(v @ query) / 4) for w, v in zip(weights, pooled)]  # 4 = sqrt(16)
                expected = sum(w * v for w, v in zip(weights, pooled)) / sum(weights)
            if (window_pooling, pooling) == ("mean", "mean"):
                torch.testing.assert_close(torch.cat(states).mean(dim=0), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


def test_a_text_of_one_window_gets_bit_identical_logits(taxonomy):
    model, without = (
        varied(taxonomy, **fields) for fields in ({}, dict.fromkeys(FIELDS) | {"window_affixes": [0, 0]})
    )
    without.load_state_dict(model.state_dict())
    assert without.windows is None
    batch = batch_of((10, 4, 7))
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, without(**batch).logits)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_and_other_texts_of_the_batch_do_not_matter(taxonomy, pooling):
    model = varied(taxonomy, pooling=pooling)
    batch = batch_of(LENGTHS)
    with torch.no_grad():
        found = model(**batch).logits
        for i, length in enumerate(LENGTHS):
            alone = {name: values[i : i + 1, :length] for name, values in batch.items()}
            torch.testing.assert_close(model(**alone).logits[0], found[i], rtol=1e-4, atol=1e-4)
    # A batch of right-aligned texts has the same tokens.
    rolled = {name: values.clone() for name, values in batch.items()}
    for i, length in enumerate(LENGTHS):
        for values in rolled.values():
            values[i] = values[i].roll(max(LENGTHS) - length)
    short = batch_of((4, 7, 2)), batch_of((4, 7, 2))
    for i, length in enumerate((4, 7, 2)):
        for values in short[1].values():
            values[i] = values[i].roll(7 - length)
    with torch.no_grad():
        torch.testing.assert_close(model(**rolled).logits, found, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(*(model(**batch).logits for batch in short), rtol=1e-4, atol=1e-4)


def test_only_windows_with_tokens_pass_through_the_encoder_in_small_chunks(taxonomy, monkeypatch):
    model = varied(taxonomy)
    shapes = []
    model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    batch = batch_of(LENGTHS)
    numbers = model.windows.count(torch.tensor(LENGTHS)).sum().item()
    with torch.no_grad():
        whole = model(**batch).logits
        assert sum(rows for rows, _ in shapes) == numbers
        assert len(shapes) == 1
        shapes.clear()
        monkeypatch.setattr("hcal_hf.document_states._CPU_TOKENS", 25)
        torch.testing.assert_close(model(**batch).logits, whole, rtol=1e-4, atol=1e-4)
    assert sum(rows for rows, _ in shapes) == numbers
    assert shapes[0] == (2, 10)
    assert all(rows * width <= 25 for rows, width in shapes)
    assert shapes[-1][1] < 10  # short windows share a chunk
    shapes.clear()
    model(**batch, labels=torch.zeros(len(LENGTHS), model.num_labels))
    assert len(shapes) == 1  # with gradients


def test_gradients_equal_those_of_a_loop_and_reach_the_attention(taxonomy):
    model = varied(taxonomy, window_pooling="attention").train()
    batch = batch_of(LENGTHS)
    _, found = model.encode_documents(batch)
    torch.manual_seed(0)
    direction = torch.randn_like(found)
    (found * direction).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients["window_attention.query"].abs().max() > 0
    model.zero_grad()
    for i, length in enumerate(LENGTHS):
        alone = {name: values[i : i + 1, :length] for name, values in batch.items()}
        (model.encode_documents(alone)[1] * direction[i]).sum().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(taxonomy):
    found = []
    for checkpointing in (False, True):
        model = varied(taxonomy).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.encode_documents(batch_of(LENGTHS))[1].square().sum().backward()
        found.append(model.encoder.embeddings.word_embeddings.weight.grad)
    torch.testing.assert_close(*found)


def test_short_batches_give_the_attention_a_gradient_too(taxonomy):
    model = varied(taxonomy, window_pooling="attention").train()
    model(**batch_of((4, 3)), labels=torch.zeros(2, model.num_labels)).loss.backward()
    assert model.window_attention.query.grad is not None  # DDP waits for it


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_other_encoders_read_windows(taxonomy, kind):
    sizes = {"vocab_size": 22}
    if kind == "gpt2":
        encoder, pooling = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=10, **sizes), "last"
    else:
        encoder, pooling = RobertaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
                                         intermediate_size=16, max_position_embeddings=11, **sizes), "mean"  # fmt: skip
    model = HcalForSequenceClassification(
        HcalConfig.from_taxonomy(taxonomy, encoder, pooling=pooling, **FIELDS)
    ).eval()
    batch = {
        name: values for name, values in batch_of(LENGTHS, left=kind == "gpt2").items() if name != "token_type_ids"
    }
    with torch.no_grad():
        _, found = model.encode_documents(batch)
        for i, mask in enumerate(batch["attention_mask"]):
            windows = windows_by_loop(batch["input_ids"][i][mask > 0].tolist(), model.windows)
            states = [model.encoder(torch.tensor([window])).last_hidden_state for window in windows]
            pooled = [pool_states(state, pooling=pooling)[0] for state in states]
            expected = sum(len(w) * v for w, v in zip(windows, pooled)) / sum(map(len, windows))
            torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


# ---- Building, saving, refusals ----


@pytest.fixture(scope="module")
def special_tokenizer():
    """Returns a tokenizer that adds a token before and after each text."""
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="in $A old in", special_tokens=[("in", tokenizer.convert_tokens_to_ids("in")),
                                               ("old", tokenizer.convert_tokens_to_ids("old"))]
    )  # fmt: skip
    return tokenizer


def test_special_tokens_and_the_prefix_are_counted(special_tokenizer, tokenizer):
    assert count_affixes(tokenizer) == [0, 0]
    assert count_affixes(tokenizer, "the new ") == [2, 0]
    assert count_affixes(special_tokenizer) == [1, 2]
    assert count_affixes(special_tokenizer, "the new ") == [3, 2]


def test_from_encoder_completes_the_fields_and_they_are_saved(encoder_dir, special_tokenizer, taxonomy, tmp_path):
    folder = tmp_path / "encoder"
    HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy).encoder.save_pretrained(folder)
    special_tokenizer.save_pretrained(folder)
    model = HcalForSequenceClassification.from_encoder(folder, taxonomy, max_windows=2)
    assert model.windows == Windows(16, 1, 2, 1, 2)  # what the tokenizer stores, and an eighth of the 13 other tokens
    (folder / LENGTH_FILE).write_text('{"max_seq_length": 12}', encoding="utf-8")
    assert HcalForSequenceClassification.from_encoder(folder, taxonomy, max_windows=2).windows.length == 12
    prefixed = {"text_prefix": "the ", "window_length": 9, "window_overlap": 2, "window_pooling": "attention"}
    model = HcalForSequenceClassification.from_encoder(folder, taxonomy, **prefixed).eval()
    assert model.windows == Windows(9, 2, 4, 2, 2)
    with torch.no_grad():
        model.window_attention.query.normal_()
    model.save_pretrained(tmp_path / "model")
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert loaded.windows == model.windows
    batch = batch_of((20, 5))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
    text = (tmp_path / "model" / "config.json").read_text(encoding="utf-8")
    (tmp_path / "model" / "config.json").write_text(
        text.replace('"max_windows": 4', '"max_windows": 2'), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="changed after the model was saved: windows"):
        HcalForSequenceClassification.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"window_length": 33},
            "window_length=33 is more than the 32 tokens that the encoder has positions for",
        ),
        (
            {"window_overlap": 7},
            "window_overlap must be from 0 to 6, below the 7 tokens of text in a window of 10, got 7",
        ),
        ({"window_overlap": -1}, "window_overlap must be from 0 to 6"),
        ({"max_windows": 0}, "max_windows must be at least 1, got 0"),
        ({"window_length": 3}, "window_length=3 has no room for text, because each window has 3 special tokens"),
        ({"window_affixes": [1]}, "window_affixes must be two numbers"),
        ({"window_length": None, "window_affixes": [0, 0]}, "max_windows=3, window_overlap=3, .* need window_length"),
        ({"window_pooling": "median"}, "window_pooling"),
        ({"window_length": 10.5}, "window_length"),
        ({"contrast": "hjcl"}, "which window_length=10 spreads over windows: leave one"),
    ],
)
def test_windows_that_cannot_be_read_are_refused(taxonomy, fields, message):
    with pytest.raises(ValueError, match=message):
        build_model(taxonomy, **{**FIELDS, **fields})


def test_inputs_that_cannot_be_split_are_refused(taxonomy):
    model = varied(taxonomy)
    with pytest.raises(
        ValueError, match="read in windows of 10, which needs input_ids alone: leave inputs_embeds out"
    ):
        model(inputs_embeds=torch.zeros(1, 11, 16))
    ids = torch.full((1, 11), 3)
    with pytest.raises(ValueError, match="leave position_ids out, or give at most 10 tokens"):
        model(input_ids=ids, position_ids=torch.arange(11)[None])
    with pytest.raises(ValueError, match="output_attentions has no meaning for texts of several windows"):
        model(input_ids=ids, output_attentions=True)
    assert model(input_ids=ids[:, :10], output_hidden_states=True).hidden_states is not None


# ---- Everything that reads texts ----


@pytest.mark.parametrize("kind", ["mean", "attention", "lexical"])
def test_pipeline_bulk_prediction_and_features_agree_with_the_model(taxonomy, tokenizer, kind):
    model = varied(taxonomy, projection_dim=None, window_pooling="attention" if kind == "attention" else "mean")
    table = Dataset.from_dict({"text": TEXTS})
    encoded = encode_dataset(table, taxonomy, tokenizer, labels=None, max_length=model.max_tokens)
    if kind == "lexical":
        add_lexical_features(model, encoded, tokenizer, 4)
        with torch.no_grad():
            model.prototypes.weight.normal_()
        model.eval()
    assert token_limit(model, tokenizer) == CAPACITY > tokenizer.model_max_length
    assert max(map(len, encoded["input_ids"][:])) == CAPACITY
    expected = []
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, truncation=True, max_length=CAPACITY, return_tensors="pt")["input_ids"]
            expected.append(model(input_ids=ids).logits[0].sigmoid())
    expected = torch.stack(expected)
    for batch_size in (1, 4):
        classify = pipeline(TASK, model=model, tokenizer=tokenizer, batch_size=batch_size)
        for labels, scores in zip(classify(TEXTS, top_k=99), expected):
            by_label = {label["label"]: label["score"] for label in labels}
            torch.testing.assert_close(
                torch.tensor([by_label[label] for label in taxonomy.labels]), scores, rtol=1e-3, atol=1e-4
            )
    predictor = Predictor(model, tokenizer, PredictionArguments(top_k=1, batch_tokens=40))
    tokens = predictor.tokenize(TEXTS)
    assert tokens.truncated == 1
    for scores, row in zip(predictor.predict_tokens(tokens)["scores"].to_pylist(), expected):
        best = [row[level].max() for level in taxonomy.levels]
        torch.testing.assert_close(torch.tensor(scores), torch.stack(best), rtol=1e-3, atol=1e-4)
    features = pooled_features(model, encoded, tokenizer, batch_size=3)
    with torch.no_grad():
        logits = model(pooled_states=torch.from_numpy(features["pooled_states"][:])).logits
    torch.testing.assert_close(logits.sigmoid(), expected, rtol=1e-3, atol=1e-4)
    # The end of a text counts.
    first = varied(taxonomy, max_windows=1)
    assert not torch.allclose(first(**batch_of((18,))).logits, varied(taxonomy)(**batch_of((18,))).logits, atol=1e-3)


def rows_of(taxonomy, tokenizer, max_length):
    """Returns rows of which only the last of 14 words tells the label."""
    leaves = {"quantum": "atoms", "genetics": "genes", "poetry": "poems", "opera": "music"}
    texts = {
        f"{' '.join(rng.choice(['the', 'of', 'and', 'with'], size=13))} {word}": leaf
        for leaf, word in leaves.items()
        for _ in range(6)
    }
    table = Dataset.from_dict({"text": list(texts), "labels": list(texts.values())})
    return encode_dataset(table, taxonomy, tokenizer, max_length=max_length)


def train(model, rows, folder, tokenizer, **arguments):
    args = HcalTrainingArguments(
        str(folder), num_train_epochs=25, learning_rate=1e-2, per_device_train_batch_size=8, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True, seed=0, **arguments,
    )  # fmt: skip
    trainer = HcalTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


@pytest.mark.parametrize("window_pooling", ["mean", "attention"])
def test_fine_tuning_learns_from_the_end_of_a_text(taxonomy, tokenizer, tmp_path, window_pooling):
    config = {**FIELDS, "window_affixes": [0, 0], "perturbation": 0.0}
    model = build_model(taxonomy, **config, window_pooling=window_pooling)
    rows = rows_of(taxonomy, tokenizer, model.max_tokens)
    trainer = train(model, rows, tmp_path, tokenizer, gradient_checkpointing=True)
    assert trainer.evaluate()["eval_leaf_accuracy"] > 0.9
    if window_pooling == "attention":
        assert model.window_attention.query.abs().max() > 0
        groups = trainer.optimizer.param_groups
        assert any(model.window_attention.query is p for group in groups for p in group["params"])


def test_the_trainer_warns_of_rows_that_were_cut_to_one_window(taxonomy, tokenizer, tmp_path, caplog):
    model = build_model(taxonomy, **FIELDS)
    rows = rows_of(taxonomy, tokenizer, 8)
    trainer = HcalTrainer(
        model, HcalTrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True), train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    assert "no row has more than 8: if texts are longer, encode the table with max_length=model.max_tokens (18)" in (
        caplog.text
    )
    with pytest.raises(ValueError, match="A row has 14 tokens, and the windows of the model hold at most 11"):
        train(build_model(taxonomy, window_length=8, window_overlap=5, max_windows=2),
              rows_of(taxonomy, tokenizer, 14), tmp_path, tokenizer)  # fmt: skip


def test_attention_is_refused_on_frozen_features(taxonomy, tokenizer, tmp_path):
    model = build_model(taxonomy, **FIELDS, window_pooling="attention", score_function="linear")
    model.encoder.requires_grad_(False)
    rows = pooled_features(model, rows_of(taxonomy, tokenizer, CAPACITY), tokenizer)
    with pytest.raises(ValueError, match='window_pooling="attention" learns from the windows of a text, but frozen'):
        train(model, rows, tmp_path, tokenizer)


def test_cached_features_depend_on_the_windows(taxonomy, tokenizer, tmp_path):
    table = Dataset.from_dict({"text": TEXTS})
    encoded = encode_dataset(table, taxonomy, tokenizer, labels=None, max_length=14)
    found = [
        pooled_features(varied(taxonomy, **fields), encoded, tokenizer, cache_dir=tmp_path)["pooled_states"][:]
        for fields in ({}, {"window_overlap": 1}, {"window_affixes": [0, 0]})
    ]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not np.allclose(found[0], found[1])


def test_the_estimator_and_zero_shot_models_read_windows(encoder_dir, taxonomy, tokenizer):
    windows = {"window_length": 8, "max_windows": 3}
    labels = [["science", "physics"], ["arts", "poetry"], ["science", "biology"]] * 10
    texts = [f"{' '.join(WORDS[10:])} {word}" for word in ("atoms", "poems", "genes")] * 10
    estimator = HcalClassifier(encoder_dir, model_kwargs=windows, random_state=0).fit(texts, labels)
    assert estimator.model_.windows == Windows(8, 1, 3, 0, 0)
    assert not np.allclose(*estimator.predict_proba([texts[0], texts[1]]))  # the last word is in the second window
    model = HcalForSequenceClassification.zero_shot(encoder_dir, taxonomy, **windows)
    classify = pipeline(TASK, model=model, tokenizer=tokenizer)
    assert len(texts[0].split()) == 11
    assert classify.preprocess(texts[0])["input_ids"].shape == (1, 11)
    first, second = (model.encode_documents(dict(tokenizer(text, return_tensors="pt")))[1] for text in texts[:2])
    assert not torch.allclose(first, second)
