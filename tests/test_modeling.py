"""The model: encoders, saving and loading, precision, inputs and outputs."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, BartConfig

from hcal_hf import HcalConfig, HcalForSequenceClassification, HcalOutput
from tests.builders import tiny_bert

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 3, 5, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
LABELS = torch.tensor([[0, 2, 6], [0, 3, 8], [1, 5, 12]])


def test_the_head_computes_in_float32_under_autocast(make_model, taxonomy):
    model = make_model(taxonomy).eval()
    pooled = torch.randn(5, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model(pooled_states=pooled, labels=LABELS[[0, 1, 2, 0, 1]])
    assert inside.task_losses.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(inside.logits, model(pooled_states=pooled).logits)


def test_outputs_have_the_documented_fields_and_shapes(make_model, taxonomy):
    model = make_model(taxonomy).eval()
    batch = {"input_ids": IDS, "attention_mask": MASK}
    output = model(**batch)
    assert isinstance(output, HcalOutput)
    assert output.loss is None
    assert output.task_losses is None
    assert output.logits.shape == (3, 13)
    assert output.features.shape == (3, 8)
    torch.testing.assert_close(output.features.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(model.probabilities(output), torch.sigmoid(output.logits))
    for level in taxonomy.levels:  # the independent head has one softmax per level
        torch.testing.assert_close(model.probabilities(output)[:, level].sum(1), torch.ones(3))
    output = model(**batch, labels=LABELS, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert output.task_losses.shape == (3,) == (len(model.task_names),)
    torch.testing.assert_close(output.loss, output.task_losses.mean())
    as_tuple = model(**batch, labels=LABELS, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss)
    assert model.prototypes.weight.shape == (13, 8)
    assert model.task_names == ["level_0", "level_1", "level_2"]


def test_attentions_of_the_encoder_are_returned(taxonomy):
    config = HcalConfig.from_taxonomy(taxonomy, tiny_bert(), attn_implementation="eager")
    output = HcalForSequenceClassification(config).eval()(input_ids=IDS, output_attentions=True)
    assert [tuple(attention.shape) for attention in output.attentions] == [(3, 2, 4, 4)] * 2


def test_levels_that_no_document_reaches_have_no_loss(make_model, ragged):
    model = make_model(ragged, partial_paths=True, head="independent").eval()
    output = model(input_ids=IDS[:2], labels=torch.tensor([[2, -100], [0, -100]]))
    assert output.task_counts.tolist() == [2, 0, 0]
    assert output.task_losses[1:].tolist() == [0, 0]
    torch.testing.assert_close(output.loss, output.task_losses[0])
    assert model.count_tasks(torch.tensor([[2, -100], [0, 3]])).tolist() == [2, 1, 0]


def test_multi_hot_and_index_labels_give_the_same_losses(make_model, taxonomy):
    multi_hot = torch.zeros(3, 13).scatter(1, LABELS, 1.0)
    for mode in ("single_path", "multi_path"):
        model = make_model(taxonomy, label_mode=mode).eval()
        a, b = model(input_ids=IDS, labels=multi_hot), model(input_ids=IDS, labels=LABELS)
        assert torch.equal(a.task_losses, b.task_losses)
        assert torch.equal(a.task_counts, b.task_counts)


def test_an_empty_label_set_trains_in_multi_path(make_model, taxonomy):
    model = make_model(taxonomy, label_mode="multi_path").eval()
    output = model(input_ids=IDS[:1], labels=torch.full((1, 1), -100))
    expected = torch.nn.functional.softplus(torch.logit(model.probabilities(output)))
    torch.testing.assert_close(output.task_losses[0], expected[0, :2].mean())


@pytest.mark.parametrize(("pooling", "left"), [(p, left) for p in ("mean", "cls", "last") for left in (False, True)])
def test_pooling_ignores_padding_on_either_side(make_model, taxonomy, pooling, left):
    model = make_model(taxonomy, pooling=pooling)
    states = torch.randn(1, 3, 16)
    padding = torch.full((1, 2, 16), 99.0)
    padded = torch.cat([padding, states] if left else [states, padding], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1]] if left else [[1, 1, 1, 0, 0]])
    expected = {"mean": states.mean(1), "cls": states[:, 0], "last": states[:, -1]}[pooling]
    torch.testing.assert_close(model.pool(padded, mask), expected)
    torch.testing.assert_close(model.pool(states), expected)


def test_pooled_states_can_replace_the_encoder_input(make_model, taxonomy):
    model = make_model(taxonomy).eval()
    hidden = model.encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    pooled = model.pool(hidden, MASK)
    torch.testing.assert_close(model(pooled_states=pooled).logits, model(input_ids=IDS, attention_mask=MASK).logits)
    with pytest.raises(ValueError, match="not both"):
        model(pooled_states=pooled, input_ids=IDS)


def test_from_encoder_refuses_invalid_arguments_and_encoders(taxonomy, encoder_dir, tmp_path):
    with pytest.raises(TypeError, match=r"no argument 'projection_dims'. Closest: \['projection_dim'"):
        HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, projection_dims=3)
    with pytest.raises(ValueError, match="'papers'"):
        HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, preset="papers")
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, preset="paper", dtype=torch.bfloat16)
    assert (model.config.objective, model.dtype, model.prototypes.weight.dtype) == (
        "aggregate",
        torch.bfloat16,
        torch.float32,
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is an HCAL model: load it with"):
        HcalForSequenceClassification.from_encoder(str(tmp_path), taxonomy)
    with pytest.raises(TypeError, match="taxonomy must be a Taxonomy, got list"):
        HcalForSequenceClassification.from_encoder(encoder_dir, ["a", "b"])
    with pytest.raises(TypeError, match="got BertModel"):
        HcalForSequenceClassification.from_encoder(model.encoder, taxonomy)
    BartConfig(vocab_size=50, d_model=16).save_pretrained(tmp_path / "bart")
    with pytest.raises(ValueError, match=r"encoder-decoder \(bart\), .* or one of mt5, t5, t5gemma, umt5"):
        HcalForSequenceClassification.from_encoder(str(tmp_path / "bart"), taxonomy)


def test_a_configuration_without_labels_is_refused():
    with pytest.raises(ValueError, match="has no labels"):
        HcalForSequenceClassification(HcalConfig(encoder_config=tiny_bert()))


def test_loading_an_encoder_checkpoint_initialises_head_and_prototypes(taxonomy, encoder_dir):
    config = HcalConfig.from_taxonomy(taxonomy, AutoConfig.from_pretrained(encoder_dir), label_mode="multi_path")
    model = HcalForSequenceClassification.from_pretrained(encoder_dir, config=config, allow_new_weights=True)
    expected = AutoModel.from_pretrained(encoder_dir).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.encoder.state_dict().items())
    assert model.head.depths.tolist() == taxonomy.depths.tolist()
    assert model.head.scale.item() == pytest.approx(10.0)
    assert model.head.bias.abs().max() == 0
    assert 0.005 < model.prototypes.weight.std() < 0.02
    torch.testing.assert_close(model.projection.weight.T @ model.projection.weight, torch.eye(16), atol=1e-5, rtol=0)


def test_a_model_has_num_labels_and_loads_by_auto_model(make_model, taxonomy, tmp_path):
    model = make_model(taxonomy)
    assert model.num_labels == model.config.num_labels == taxonomy.num_labels
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, HcalForSequenceClassification)
    assert torch.equal(loaded.prototypes.weight, model.prototypes.weight)


def test_an_hcal_model_is_no_encoder_of_another(make_model, taxonomy):
    with pytest.raises(ValueError, match="configuration of its encoder"):
        HcalConfig.from_taxonomy(taxonomy, make_model(taxonomy).config)
