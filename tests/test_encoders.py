"""One suite for the encoders of nine families and their relatives: everything that works on BERT works on each of them."""

import copy
import pickle

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    T5EncoderModel,
    T5Model,
    pipeline,
)

from hcal_hf import HcalConfig, HcalForSequenceClassification, HcalTrainer, HcalTrainingArguments
from hcal_hf.encoder_inputs import is_causal, run_encoder
from tests.builders import build_tokenizer

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODERS = {
    "bert": BertConfig(**SIZES, max_position_embeddings=32),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1, max_position_embeddings=34),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=40, max_position_embeddings=32
    ),
    "deberta-v2": DebertaV2Config(**SIZES, max_position_embeddings=32),
    "modernbert": ModernBertConfig(**SIZES, **SPECIAL, cls_token_id=1, sep_token_id=2, max_position_embeddings=64),
    "mpnet": MPNetConfig(**SIZES, pad_token_id=1, max_position_embeddings=34),
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, max_position_embeddings=64),
    "t5": T5Config(vocab_size=50, d_model=32, num_layers=2, num_decoder_layers=2, num_heads=2, d_kv=16, d_ff=40),
}
CAUSAL = ("gpt2", "llama", "qwen2")
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 1, 1], [9, 3, 5, 1]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
LABELS = torch.tensor([[0, 2, 6], [0, 3, 8], [1, 5, 12]])
BATCH = {"input_ids": IDS, "attention_mask": MASK}


@pytest.fixture(scope="module", params=ENCODERS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def encoder_folder(family, tmp_path_factory):
    """A saved encoder. That of T5 has a decoder too, as on the Hub."""
    folder = tmp_path_factory.mktemp(family)
    torch.manual_seed(0)
    config = copy.deepcopy(ENCODERS[family])
    encoder = T5Model(config) if family == "t5" else AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in encoder.parameters():  # so large that a wrong position or token changes the answer
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    encoder.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def saved(encoder_folder, taxonomy, tmp_path_factory):
    """The folder of a model on the encoder, with prototypes that are far from each other."""
    torch.manual_seed(1)
    model = HcalForSequenceClassification.from_encoder(encoder_folder, taxonomy, projection_dim=16)
    torch.nn.init.normal_(model.prototypes.weight)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved):
    return HcalForSequenceClassification.from_pretrained(saved).eval()


@torch.no_grad()
def logits(model, **batch):
    return model(**(batch or BATCH)).logits


def assert_same(found, expected, atol=1e-4):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


def without_dropout(model):
    """Puts a model into training mode, which some tests need, without dropout."""
    for module in model.modules():
        for name in ("p", "dropout_prob", "attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


# ---- Building, saving, loading ----


def test_from_encoder_keeps_the_pretrained_weights(family, encoder_folder, taxonomy):
    model = HcalForSequenceClassification.from_encoder(encoder_folder, taxonomy)
    kind = T5EncoderModel if family == "t5" else AutoModel
    expected, found = kind.from_pretrained(encoder_folder).state_dict(), model.encoder.state_dict()
    assert {name for name in expected if not name.startswith("pooler.")} == found.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert not any("decoder" in name for name in model.state_dict())


def test_the_default_pooling_is_the_last_state_of_causal_encoders(family, encoder_folder, taxonomy):
    model = HcalForSequenceClassification.from_encoder(encoder_folder, taxonomy)
    assert model.config.pooling == ("last" if family in CAUSAL else "mean")
    assert HcalForSequenceClassification.from_encoder(encoder_folder, taxonomy, pooling="cls").config.pooling == "cls"
    # What causal means: a state does not depend on later tokens.
    other = IDS[:1].clone()
    other[0, -1] = 20
    states = [run_encoder(model.eval().encoder, input_ids=ids).last_hidden_state[0, :-1] for ids in (IDS[:1], other)]
    assert torch.allclose(*states, atol=1e-5) == (family in CAUSAL) == is_causal(model.encoder, family)


def test_every_parameter_receives_a_gradient(model):
    """A parameter without a gradient, such as an unused pooler, breaks distributed training."""
    model(**BATCH, labels=LABELS).loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert [name for name in unused if "embed" not in name] == []


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForSequenceClassification, HcalForSequenceClassification])
def test_save_and_load(model, saved, tmp_path, kind):
    assert [path.name for path in saved.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(saved.glob("*.bin"))
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path).eval()
    assert type(loaded) is HcalForSequenceClassification
    assert loaded.taxonomy == model.taxonomy
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert_same(logits(loaded), logits(model), atol=1e-5)
    with torch.no_grad():
        losses = [one(**BATCH, labels=LABELS).task_losses for one in (loaded, model)]
    assert_same(*losses, atol=1e-5)


def test_shards(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="15KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 3
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    assert_same(logits(loaded), logits(model), atol=1e-5)


def test_pickling_and_copies(model):
    expected = logits(model)
    assert_same(logits(pickle.loads(pickle.dumps(model))), expected, atol=1e-5)
    twice = copy.deepcopy(model)
    assert_same(logits(twice), expected, atol=1e-5)
    with torch.no_grad():
        twice.prototypes.weight.mul_(-1)
    assert not torch.allclose(logits(twice), expected, atol=0.1)
    assert_same(logits(model), expected, atol=1e-5)


def test_resized_embeddings_are_saved(model, tmp_path):
    expected = logits(model)
    model.resize_token_embeddings(57)
    assert model.vocabulary_size == 57
    assert_same(logits(model), expected)
    new = {"input_ids": torch.tensor([[3, 56]]), "attention_mask": torch.ones(1, 2)}
    model.save_pretrained(tmp_path)
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.encoder_config.vocab_size == loaded.vocabulary_size == 57
    assert_same(logits(loaded, **new), logits(model, **new), atol=1e-5)


# ---- Precision ----


def test_half_precision_keeps_the_head_in_float32(model, saved, tmp_path):
    half = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.prototypes.weight.dtype == half.projection.weight.dtype == torch.float32
    output = half.eval()(**BATCH, labels=LABELS)
    assert output.logits.dtype == output.task_losses.dtype == output.features.dtype == torch.float32
    # bfloat16 has 8 bits of precision: cosines differ by some hundredths.
    assert (output.features - model(**BATCH).features).abs().max() < 0.25
    output.loss.backward()
    assert torch.isfinite(half.prototypes.weight.grad).all()
    half.save_pretrained(tmp_path / "half")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_autocast_computes_the_head_in_float32(model):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**BATCH, labels=LABELS)
    assert output.logits.dtype == output.task_losses.dtype == output.features.dtype == torch.float32
    assert torch.isfinite(output.logits).all()
    with torch.no_grad():
        assert (output.features - model(**BATCH).features).abs().max() < 0.25


# ---- Inputs and outputs ----


def test_tuples_have_the_values_of_the_named_outputs(model):
    with torch.no_grad():
        for labels in ({}, {"labels": LABELS}):
            named, plain = model(**BATCH, **labels), model(**BATCH, **labels, return_dict=False)
            assert isinstance(plain, tuple)
            assert len(plain) == len(named)
            assert all(torch.equal(*pair) for pair in zip(plain, named.to_tuple(), strict=True))


def test_embeddings_can_replace_tokens(model):
    embeddings = model.get_input_embeddings()(IDS)
    assert_same(logits(model, inputs_embeds=embeddings, attention_mask=MASK), logits(model))
    leftmost = {"inputs_embeds": embeddings.flip(1), "attention_mask": MASK.flip(1)}
    assert_same(logits(model, **leftmost), logits(model, input_ids=IDS.flip(1), attention_mask=MASK.flip(1)))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
def test_padding_on_either_side_does_not_change_answers(model, pooling):
    model.config.pooling = pooling
    for row, mask in zip(IDS, MASK):
        tokens = row[mask > 0]
        expected = logits(model, input_ids=tokens[None])
        for number in (1, 5):
            padding, ones = torch.ones(number, dtype=torch.long), torch.ones(len(tokens))
            right = {"input_ids": torch.cat([tokens, padding]), "attention_mask": torch.cat([ones, 0 * padding])}
            left = {"input_ids": torch.cat([padding, tokens]), "attention_mask": torch.cat([0 * padding, ones])}
            for batch in (right, left):
                assert_same(logits(model, **{name: value[None] for name, value in batch.items()}), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_pipeline_answers_batches_as_single_texts(model, side):
    tokenizer = build_tokenizer()
    tokenizer.padding_side = side
    classify = pipeline("hierarchical-text-classification", model, tokenizer=tokenizer)
    texts = ["stars", "the cells of plants and genes", "music with drama in a new study of the old poems"]
    together, single = classify(texts, batch_size=3), [classify(text) for text in texts]
    for row, expected in zip(together, single, strict=True):
        assert [entry["label"] for entry in row] == [entry["label"] for entry in expected]
        assert [entry["score"] for entry in row] == pytest.approx([e["score"] for e in expected], abs=1e-4)


def test_hidden_states_and_attentions(saved):
    model = HcalForSequenceClassification.from_pretrained(saved, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(**BATCH, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(3, 4, 32)] * 3
    assert [tuple(attention.shape) for attention in output.attentions] == [(3, 2, 4, 4)] * 2
    real = MASK[:, None, :, None] > 0
    for attention in output.attentions:
        rows = attention.sum(-1, keepdim=True)
        assert_same(rows[real.expand_as(rows)], torch.ones(2 * int(MASK.sum())))
    assert model(**BATCH).hidden_states is None


def test_attention_implementations_agree_or_are_refused(family, saved):
    eager = AutoModelForSequenceClassification.from_pretrained(saved, attn_implementation="eager").eval()
    assert eager.encoder.config._attn_implementation == "eager"
    if family in ("deberta-v2", "mpnet"):
        with pytest.raises(ValueError, match="scaled_dot_product_attention"):
            AutoModelForSequenceClassification.from_pretrained(saved, attn_implementation="sdpa")
        return
    sdpa = AutoModelForSequenceClassification.from_pretrained(saved, attn_implementation="sdpa").eval()
    assert sdpa.encoder.config._attn_implementation == "sdpa"
    assert_same(logits(eager), logits(sdpa))


def test_max_tokens_is_the_longest_input_that_the_encoder_accepts(model):
    limit = model.max_tokens
    for side in ("left", "right"):
        ids = torch.full((1, limit or 40), 5)
        mask = torch.ones_like(ids)
        mask[:, slice(0, 2) if side == "left" else slice(-2, None)] = 0
        assert torch.isfinite(logits(model, input_ids=ids, attention_mask=mask)).all()
    if limit == 32:  # encoders with a table of positions
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            logits(model, input_ids=torch.full((1, 33), 5), attention_mask=torch.ones(1, 33))


# ---- Training ----


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients_or_is_refused(model, family):
    without_dropout(model)
    if family == "mpnet":
        with pytest.raises(ValueError, match=r"does not support (gradient|activation) checkpointing"):
            model.gradient_checkpointing_enable()
        return

    def gradients():
        model.zero_grad()
        model(**BATCH, labels=LABELS, noise=torch.zeros(13, 16)).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-4, rtol=1e-3)


def test_the_trainer_lowers_the_loss_and_its_model_loads(model, tmp_path):
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": labels.tolist()}
        for ids, mask, labels in zip(IDS, MASK, LABELS)
    ]
    args = HcalTrainingArguments(
        str(tmp_path), max_steps=8, learning_rate=3e-3, report_to="none", use_cpu=True, save_strategy="no", seed=0
    )
    with torch.no_grad():
        before = model(**BATCH, labels=LABELS).loss
    trainer = HcalTrainer(model, args, None, rows, None, build_tokenizer())
    trainer.train()
    trainer.save_model(tmp_path / "model")
    loaded = HcalForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert loaded(**BATCH, labels=LABELS).loss < before
    assert_same(logits(loaded), logits(model.eval()), atol=1e-5)


# ---- T5 ----


def test_only_the_encoder_of_t5_is_built_from_a_configuration(taxonomy):
    config = HcalConfig.from_taxonomy(taxonomy, copy.deepcopy(ENCODERS["t5"]))
    model = HcalForSequenceClassification(config)
    assert type(model.encoder) is T5EncoderModel
    assert not any("decoder" in name for name in model.state_dict())


# ---- Encoders that say nothing about causality ----


@pytest.mark.parametrize(
    ("model_type", "expected"), [("bloom", True), ("mamba", True), ("roformer", False), ("convbert", False)]
)
def test_the_model_type_decides_if_no_module_says_whether_it_is_causal(model_type, expected):
    assert is_causal(torch.nn.Linear(1, 1), model_type) == expected
