import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from hcal_hf import (
    HcalConfig,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    Taxonomy,
    anchors,
    encode_dataset,
)
from hcal_hf.anchors import embed_texts, label_texts
from tests.builders import tiny_bert


@pytest.fixture
def anchored(taxonomy, encoder_dir):
    torch.manual_seed(0)
    return HcalForSequenceClassification.from_encoder(
        encoder_dir,
        taxonomy,
        prototype_anchor="label_text",
        projection_dim=8,
        descriptions={"opera": "music and drama"},
    ).eval()


@pytest.mark.parametrize("most", [2, 100])
def test_a_progress_bar_is_shown_for_many_texts(anchored, tokenizer, monkeypatch, capsys, most):
    monkeypatch.setattr(anchors, "_MANY_TEXTS", most)
    embed_texts(anchored, tokenizer, ["one", "two", "three"], batch_size=1)
    assert ("Embedding texts: " in capsys.readouterr().err) == (most == 2)


def test_label_texts_are_descriptions_or_else_the_parents_and_the_name(taxonomy):
    texts = label_texts(taxonomy, {"opera": "music on a stage"})
    assert texts[taxonomy.index("opera")] == "music on a stage"
    assert texts[taxonomy.index("physics")] == "science: physics"
    assert texts[0] == "science"
    dag = Taxonomy.from_edges([("a_b", "c"), ("d", "c")])
    assert dag.texts() == ["a b", "d", "a b, d: c"]
    with pytest.raises(ValueError, match=r"Unknown label 'oprea'\. Closest known: 'opera'"):
        label_texts(taxonomy, {"oprea": "x"})


def test_prototypes_start_as_the_projected_embeddings_of_the_label_texts(anchored, tokenizer, taxonomy):
    config = anchored.config
    assert config.label_texts[taxonomy.index("opera")] == "music and drama"
    assert anchored.prototypes.weight.abs().max() == 0
    with torch.no_grad():
        for i in (0, 5, taxonomy.index("opera")):
            words = tokenizer(config.label_texts[i], return_tensors="pt")
            pooled = anchored.encoder(**words).last_hidden_state.mean(1)
            expected = torch.nn.functional.normalize(anchored.projection(pooled), dim=1)[0]
            torch.testing.assert_close(anchored.prototypes(anchored.projection)[i], expected)


def test_the_learned_offset_is_added_to_the_normalised_anchor(anchored):
    with torch.no_grad():
        anchored.prototypes.weight.normal_()
        base = torch.nn.functional.normalize(anchored.projection(anchored.prototypes.anchors), dim=1)
        expected = torch.nn.functional.normalize(base + anchored.prototypes.weight, dim=1)
        torch.testing.assert_close(anchored.prototypes(anchored.projection), expected)


def test_prototypes_of_labels_without_documents_get_no_gradient(anchored, taxonomy):
    anchored.train()
    anchored.prototypes.trained[taxonomy.index("opera")] = False
    labels = torch.from_numpy(taxonomy.encode("poetry"))[None]
    anchored(input_ids=torch.tensor([[2, 3]]), labels=labels).loss.backward()
    gradient = anchored.prototypes.weight.grad
    assert gradient[taxonomy.index("opera")].abs().max() == 0
    assert gradient[taxonomy.index("quantum")].abs().max() > 0


def test_save_and_load(anchored, tmp_path):
    anchored.prototypes.trained[3] = False
    anchored.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, anchored(input_ids=ids).logits)
    assert loaded.prototypes.trained.tolist() == anchored.prototypes.trained.tolist()
    assert loaded.config.label_texts == anchored.config.label_texts


@pytest.mark.parametrize("freeze", [False, True])
def test_training_marks_seen_labels_embeds_the_others_again_and_resumes_exactly(
    anchored, taxonomy, tokenizer, tmp_path, freeze
):
    anchored.encoder.requires_grad_(not freeze)
    rows = [{"text": "stars", "labels": "astronomy"}, {"text": "poems", "labels": "poetry"}] * 4
    data = encode_dataset(Dataset.from_list(rows), taxonomy, tokenizer)
    before = anchored.prototypes.anchors.clone()
    args = HcalTrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
        use_cpu=True, save_strategy="steps", save_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = HcalTrainer(anchored, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    carried = {taxonomy.labels[i] for i in anchored.prototypes.trained.nonzero()[:, 0].tolist()}
    assert carried == {"science", "physics", "astronomy", "arts", "writing", "poetry"}
    trained = anchored.prototypes.trained
    assert torch.equal(anchored.prototypes.anchors[trained], before[trained])
    assert torch.equal(anchored.prototypes.anchors[~trained], before[~trained]) == freeze
    if not freeze:  # labels without documents are embedded by the trained encoder
        texts = [text for text, seen in zip(anchored.config.label_texts, trained.tolist()) if not seen]
        torch.testing.assert_close(anchored.prototypes.anchors[~trained], embed_texts(anchored, tokenizer, texts))
    final = {name: value.clone() for name, value in anchored.state_dict().items()}
    for step in (1, 2, 3):  # checkpoints within an epoch, between two epochs and within the last epoch
        other = HcalForSequenceClassification.from_pretrained(tmp_path / "checkpoint-1")
        other.encoder.requires_grad_(not freeze)
        again = HcalTrainer(other, args, train_dataset=data, processing_class=tokenizer)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert all(torch.equal(value, final[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    ("mode", "head", "partial"),
    [
        ("single_path", "path_softmax", False),
        ("single_path", "conditional_softmax", True),
        ("multi_path", "conditional_sigmoid", False),
        ("multi_path", "lookahead_sigmoid", False),
    ],
)
def test_add_labels_initialises_new_labels_from_their_text_and_keeps_the_old_ones(
    taxonomy, encoder_dir, tokenizer, caplog, mode, head, partial
):
    torch.manual_seed(0)
    model = HcalForSequenceClassification.from_encoder(
        encoder_dir, taxonomy, prototype_anchor="label_text", projection_dim=8, label_mode=mode, head=head,
        partial_paths=partial,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in (model.prototypes.weight, *model.head.parameters()):
            parameter.add_(torch.randn(parameter.shape))
    model.config.risk_alpha, model.config.risk_threshold = 0.1, 0.5
    old_labels, old_rows = model.config.labels, model.prototypes(model.projection).detach()
    old_bias = getattr(model.head, "bias", None)
    with caplog.at_level("WARNING", logger="hcal_hf.label_extension"):
        added = model.add_labels(
            [["arts", "stage", "ballet"], ["sports"], ["science", "physics", "quantum", "spin"]], tokenizer,
            descriptions={"ballet": "drama with music"},
        )  # fmt: skip
    assert set(added) == {"ballet", "sports", "spin"}
    assert "3 label(s) added from their label text, without training" in caplog.text
    config = model.config
    assert (config.risk_alpha, config.risk_threshold, config.num_labels) == (None, None, 16)
    assert model.taxonomy.index_path(["science", "physics", "quantum", "spin"]) == config.labels.index("spin")
    assert model.task_names[-1] == "level_3"
    rows = model.prototypes(model.projection).detach()
    for label in old_labels:
        torch.testing.assert_close(rows[config.labels.index(label)], old_rows[old_labels.index(label)])
    ballet = config.labels.index("ballet")
    with torch.no_grad():
        pooled = embed_texts(model, tokenizer, ["drama with music"])
        torch.testing.assert_close(rows[ballet], torch.nn.functional.normalize(model.projection(pooled), dim=1)[0])
    if old_bias is not None:
        assert model.head.bias[ballet] == old_bias[old_labels.index("opera")]
        roots = old_bias[[old_labels.index("science"), old_labels.index("arts")]]
        torch.testing.assert_close(model.head.bias[config.labels.index("sports")], roots.mean())
    output = model(input_ids=torch.tensor([[2, 3]]), labels=torch.from_numpy(model.taxonomy.encode("opera"))[None])
    assert output.logits.shape == (1, 16)
    assert torch.isfinite(output.task_losses).all()
    with pytest.raises(ValueError, match="'ballet' is already a label"):
        model.add_labels([["ballet"]], tokenizer)


def test_a_model_with_added_labels_saves_and_loads(anchored, tokenizer, tmp_path):
    anchored.add_labels([["arts", "stage", "ballet"]], tokenizer)
    anchored.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, anchored(input_ids=ids).logits, atol=1e-6, rtol=0)


def test_label_text_is_refused_without_prototype_anchor(make_model, taxonomy, tokenizer, encoder_dir):
    with pytest.raises(ValueError, match="train the model with prototype_anchor"):
        make_model(taxonomy).add_labels([["new"]], tokenizer)
    with pytest.raises(ValueError, match="have no anchors"):
        make_model(taxonomy).embed_labels(tokenizer)
    with pytest.raises(ValueError, match="descriptions need prototype_anchor"):
        HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, descriptions={"opera": "x"})
    with pytest.raises(ValueError, match="one text for each of 13 labels, got 1"):
        HcalConfig.from_taxonomy(taxonomy, tiny_bert(), prototype_anchor="label_text", label_texts=["x"])


def test_labels_can_be_added_to_a_linear_head_unless_it_was_fitted_without_label_text(
    taxonomy, encoder_dir, tokenizer
):
    torch.manual_seed(0)
    kwargs = {"prototype_anchor": "label_text", "score_function": "linear", "projection_dim": 8}
    kwargs |= {"label_mode": "multi_path", "head": "conditional_sigmoid"}
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, **kwargs).eval()
    with torch.no_grad():
        model.prototypes.anchor_scale.copy_(torch.tensor([2.0, 3.0, 4.0]))
        model.prototypes.bias.copy_(torch.randn(taxonomy.num_labels))
        model.prototypes.weight.copy_(torch.randn(model.prototypes.weight.shape))
    ids = torch.tensor([[2, 3, 4]])
    before = dict(zip(model.config.labels, model(input_ids=ids).logits[0].tolist()))
    opera = model.prototypes.bias[model.config.labels.index("opera")].item()
    model.add_labels([["arts", "stage", "ballet"], ["science", "physics", "quantum", "spin"]], tokenizer)
    after = dict(zip(model.config.labels, model(input_ids=ids).logits[0].tolist()))
    assert all(abs(after[label] - value) < 1e-4 for label, value in before.items())
    assert model.prototypes.bias[model.config.labels.index("ballet")].item() == opera  # the bias of its only sibling
    assert model.prototypes.anchor_scale.tolist() == [2.0, 3.0, 4.0, 4.0]
    with torch.no_grad():
        model.prototypes.anchor_scale.zero_()
    with pytest.raises(ValueError, match="fitted without label text"):
        model.add_labels([["arts", "stage", "mime"]], tokenizer)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_add_labels_keeps_the_attention_implementation_of_the_encoder(
    taxonomy, encoder_dir, tokenizer, monkeypatch, attention
):
    model = HcalForSequenceClassification.from_encoder(
        encoder_dir, taxonomy, prototype_anchor="label_text", attn_implementation=attention
    ).eval()
    model.add_labels([["arts", "stage", "ballet"]], tokenizer)
    assert model.encoder.config._attn_implementation == attention
    assert model.config.encoder_config._attn_implementation == attention
    assert model.config._attn_implementation == attention
    calls, compute = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or compute(*a, **k)
    )
    model(input_ids=torch.tensor([[2, 3, 4]]))
    assert bool(calls) == (attention == "sdpa")


@pytest.mark.parametrize("score_function", ["cosine", "linear"])
@pytest.mark.parametrize("whole", [True, False])
def test_add_labels_keeps_the_dtypes_of_a_bfloat16_model(taxonomy, encoder_dir, tokenizer, score_function, whole):
    fields = {"prototype_anchor": "label_text", "label_mode": "multi_path", "score_function": score_function}
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, dtype=torch.bfloat16, **fields).eval()
    if whole:  # otherwise projection, prototypes and head stay in float32
        model.to(torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    model.add_labels([["arts", "stage", "ballet"]], tokenizer)
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == dtypes
    ballet = model.config.labels.index("ballet")
    expected = embed_texts(model, tokenizer, [model.config.label_texts[ballet]])[0]
    assert torch.equal(model.prototypes.anchors[ballet], expected.to(model.prototypes.anchors.dtype))
    assert torch.isfinite(model(input_ids=torch.tensor([[2, 3, 4]])).logits).all()


def test_add_labels_keeps_frozen_parameters_frozen(taxonomy, encoder_dir, tokenizer):
    model = HcalForSequenceClassification.from_encoder(
        encoder_dir, taxonomy, prototype_anchor="label_text", label_mode="multi_path"
    )
    frozen = [name for name, _ in model.named_parameters() if not name.startswith("head.")]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    model.add_labels([["arts", "stage", "ballet"]], tokenizer)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == frozen
    assert model.training
    assert model.prototypes.training


def test_models_from_model_init_mark_the_labels_with_documents_too(encoder_dir, taxonomy, tokenizer, tmp_path):
    def make_model():
        return HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, prototype_anchor="label_text")

    rows = [{"text": "stars", "labels": "astronomy"}] * 4
    data = encode_dataset(Dataset.from_list(rows), taxonomy, tokenizer)
    args = HcalTrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
    trainer = HcalTrainer(args=args, train_dataset=data, processing_class=tokenizer, model_init=make_model)
    trainer.train()
    marked = {taxonomy.labels[i] for i in trainer.model.prototypes.trained.nonzero()[:, 0].tolist()}
    assert marked == {"science", "physics", "astronomy"}
    assert trainer.model.config.tokenizer_checksum is not None


def test_streams_train_anchored_models_for_several_epochs(anchored, taxonomy, tokenizer, tmp_path):
    rows = [{"text": "stars", "labels": "astronomy"}, {"text": "poems", "labels": "poetry"}] * 2
    stream = encode_dataset(Dataset.from_list(rows), taxonomy, tokenizer).to_iterable_dataset()
    args = HcalTrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no"
    )
    trainer = HcalTrainer(anchored, args, train_dataset=stream, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.epoch > 1
