"""Compares ONNX files with torch, and predicts with them without torch and transformers."""

import copy
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import hcal_hf.commands.onnx_export
from hcal_hf import HcalConfig, HcalForSequenceClassification, HierarchicalTextClassificationPipeline, Taxonomy
from hcal_hf.commands.onnx_export import export_onnx, open_session
from hcal_hf.lexical import pair_keys
from tests.builders import build_ragged, build_taxonomy, build_tokenizer, random_forest, tiny_bert

pytestmark = pytest.mark.slow

pytest.importorskip("onnxscript")

EXAMPLE = Path(__file__).parents[2] / "recipes" / "export" / "predict.py"
DAG = Taxonomy.from_edges([("a", "x"), ("b", "x"), ("b", "y"), ("x", "z"), ("c", "z")])
# Covers all heads and poolings, cosine and linear scores, anchors, stop scores, a temperature, thresholds and a DAG.
CASES = {
    "levels": (build_ragged(), {"head": "independent", "partial_paths": True, "pooling": "cls"}),
    "path": (random_forest(np.random.default_rng(0), 300), {"head": "path_softmax", "partial_paths": True}),
    # All nodes of the upper levels have children. With its rewriting rules, onnxscript would drop their own scores.
    "lookahead": (build_taxonomy(), {"score_temperature": 1.7, "prototype_anchor": "label_text"}),
    "conditional": (
        build_ragged(),
        {
            "head": "conditional_softmax",
            "score_function": "linear",
            "prototype_anchor": "label_text",
            "pooling": "last",
            "thresholds": [0.2, 0.2, 0.2, 0.4, 0.4, 0.4, 0.4, 0.5, 0.5],
        },
    ),
    "lexical": (
        build_ragged(),
        {
            "score_function": "linear",
            "prototype_anchor": "label_text",
            "projection_bias": True,
            "lexical_features": 5,
            "lexical_terms": 20,
            "text_prefix": "new study ",
            "pooling": "max",
        },
    ),
    "windows": (
        build_ragged(),
        {"window_length": 10, "window_overlap": 3, "max_windows": 4, "window_affixes": [1, 1], "pooling": "cls"},
    ),
    "windows, attention": (
        build_ragged(),
        {"window_length": 6, "window_overlap": 2, "max_windows": 3, "window_pooling": "attention"},
    ),
    "windows, max": (
        build_ragged(),
        {
            "window_length": 5,
            "window_overlap": 0,
            "max_windows": 5,
            "pooling": "max",
            "score_function": "linear",
            "lexical_features": 5,
            "lexical_terms": 20,
        },
    ),
    "sigmoid": (
        DAG,
        {"label_mode": "multi_path", "head": "conditional_sigmoid", "thresholds": [0.3, 0.4, 0.4, 0.4, 0.5, 0.5]},
    ),
    "lookahead sigmoid": (DAG, {"label_mode": "multi_path", "thresholds": [0.3, 0.4, 0.4, 0.4, 0.5, 0.5]}),
    "asymmetric": (
        DAG,
        {
            "label_mode": "multi_path",
            "classification_loss": "asl",
            "classification_loss_kwargs": {"gap": 0.1, "gamma_positive": 1, "margin": 0.05},
        },
    ),
    "asymmetric, marginal": (
        DAG,
        {
            "label_mode": "multi_path",
            "head": "conditional_sigmoid",
            "classification_loss": "asl",
            "classification_loss_kwargs": {"pairs": "marginal"},
        },
    ),
    "focal": (build_ragged(), {"partial_paths": True, "classification_loss": "asl"}),
    "labels": (DAG, {"label_mode": "multi_path", "head": "independent", "score_function": "linear"}),
    "hyperbolic": (
        build_ragged(),
        {
            "geometry": "hyperbolic",
            "geometry_curvature": 0.7,
            "score_function": "linear",
            "prototype_anchor": "label_text",
            "partial_paths": True,
        },
    ),
    "hyperbolic sigmoid": (DAG, {"label_mode": "multi_path", "geometry": "hyperbolic", "score_function": "linear"}),
    "hyperbolic released": (
        DAG,
        {
            "label_mode": "multi_path",
            "head": "independent",
            "score_function": "linear",
            "prototype_temperature": 1,
            "perturbation": 0,
            "geometry": "hyperbolic_penalty",
            "geometry_order": "cooccurrence",
            "geometry_released": True,
        },
    ),
}
TEXTS = [
    "stars and atoms",
    "the old poems of drama with music",
    "genes",
    "a new study in plants and cells of the first",
]


def varied_model(taxonomy, layers, **config):
    """Returns a model with random parameters and anchors, so that the tests notice if one is missing in the graph."""
    torch.manual_seed(0)
    encoder = tiny_bert(num_hidden_layers=layers)
    model = HcalForSequenceClassification(HcalConfig.from_taxonomy(taxonomy, encoder, projection_dim=8, **config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in (model.prototypes, model.head):
            for parameter in module.parameters():
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
        if model.prototypes.is_anchored:
            model.prototypes.anchors.copy_(torch.randn(model.prototypes.anchors.shape, generator=generator))
        if model.window_attention is not None:
            model.window_attention.query.normal_(0, 20, generator=generator)
        if model.lexical is not None:
            keys = [*range(2, 18), *(int(pair_keys(torch.tensor(a), torch.tensor(a + 1))) for a in (2, 9, 12, 18))]
            model.lexical.index[keys] = torch.arange(1, 21, dtype=torch.int32)
            model.lexical.idf[1:] = 1 + torch.rand(20, generator=generator)
            model.lexical.vectors[1:] = torch.randn(20, 5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns {case: (model, folder, report of export_onnx)}."""
    found = {}
    for name, (taxonomy, config) in CASES.items():
        # Models without layers are exported quickly.
        model = varied_model(taxonomy, layers=int(name in ("path", "lookahead")), **config)
        folder = tmp_path_factory.mktemp(name)
        tokenizer = build_tokenizer()
        if name == "lookahead":
            tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        found[name] = model, folder, export_onnx(model, folder, tokenizer=tokenizer, quantize=name == "path")
    return found


@pytest.fixture(scope="module")
def predicted(exported):
    """Runs recipes/export/predict.py in a process without torch. Returns {case: printed labels per text}."""
    code = """
import json, runpy, sys
for name in ("torch", "transformers", "onnx", "onnxscript", "hcal_hf"):
    sys.modules[name] = None  # importing it raises
example, folders, texts = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
for folder in folders:
    sys.argv = [example, folder, *texts]
    runpy.run_path(example, run_name="__main__")
"""
    folders = [str(folder) for _, folder, _ in exported.values()]
    command = [sys.executable, "-c", code, str(EXAMPLE), json.dumps(folders), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(folders) * len(TEXTS)
    return {name: lines[i * len(TEXTS) :][: len(TEXTS)] for i, name in enumerate(exported)}


@pytest.mark.parametrize("case", CASES)
def test_onnx_probabilities_equal_torch_for_other_batch_sizes_and_lengths(exported, case):
    model, folder, report = exported[case]
    assert report["max_difference"] < 1e-5
    session = open_session(folder / "model.onnx")
    names = ["input_ids", "attention_mask", "token_type_ids"][: 3 if case == "lookahead" else 2]
    assert [i.name for i in session.get_inputs()] == report["inputs"] == names
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("probabilities", ["batch", model.config.num_labels])
    ]
    generator = torch.Generator().manual_seed(5)
    for size, length in ((1, 2), (2, 8), (6, 3), (3, 32)):
        ids = torch.randint(2, 22, (size, length), generator=generator)
        mask = (torch.arange(length) < torch.randint(1, length + 1, (size, 1), generator=generator)).long()
        inputs = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": ids % 2}
        inputs = {name: inputs[name] for name in names}
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
        with torch.no_grad():
            expected = model.probabilities(model(**inputs)).numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.std() > 1e-3  # the probabilities differ between labels
        if model.config.head != "independent":
            parents, children = model.taxonomy.edges.T
            assert (found[:, children] <= found[:, parents] + 1e-6).all()


@pytest.mark.parametrize("case", CASES)
def test_the_example_predicts_the_labels_of_the_pipeline(exported, predicted, tokenizer, case):
    model, _, _ = exported[case]
    classify = HierarchicalTextClassificationPipeline(model=model, tokenizer=tokenizer)
    sizes = set()
    for text, found in zip(TEXTS, predicted[case]):
        expected = classify(text)
        assert [label["path"] for label in found] == [label["path"] for label in expected]
        np.testing.assert_allclose([p["score"] for p in found], [p["score"] for p in expected], atol=1e-5)
        sizes.add(len(found))
    assert sizes != {0}


def test_the_example_is_short_and_needs_three_packages():
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
    assert len(lines) < 30
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported - {"json", "sys", "itertools"} == {"numpy", "onnxruntime", "tokenizers"}


def test_the_hierarchy_file_contains_everything_needed_for_decoding(exported):
    model, folder, _ = exported["sigmoid"]
    spec = json.loads((folder / "hierarchy.json").read_text(encoding="utf-8"))
    assert spec["labels"] == model.config.labels
    assert spec["decode"] == "closure"
    assert spec["thresholds"] == model.config.thresholds
    node = spec["labels"].index("z")
    assert spec["paths"][node] == DAG.paths(node)
    assert [spec["labels"][i] for i in spec["ancestors"][node]] == ["a", "b", "c", "x", "z"]
    spec = json.loads((exported["lookahead"][1] / "hierarchy.json").read_text(encoding="utf-8"))
    assert (spec["decode"], set(spec["thresholds"]), spec["depths"][-1]) == ("path", {0.0}, 2)


def test_the_tokenizer_file_truncates_and_pads(exported, tokenizer):
    backend = Tokenizer.from_file(str(exported["path"][1] / "tokenizer.json"))
    long, short = backend.encode_batch(["stars " * 40, "new atoms"])
    assert long.ids == tokenizer("stars " * 40, truncation=True)["input_ids"]
    assert len(long.ids) == tokenizer.model_max_length == len(short.ids)
    assert sum(short.attention_mask) == 2
    assert tokenizer.backend_tokenizer.padding is None  # the tokenizer of the caller is unchanged


def test_the_int8_model_is_smaller_and_almost_equal(exported):
    _, folder, report = exported["path"]
    assert report["files"]["model_int8.onnx"] < report["files"]["model.onnx"]
    assert report["max_difference"] < report["int8_max_difference"] < 0.2
    int8, floats = open_session(folder / "model_int8.onnx"), open_session(folder / "model.onnx")
    assert int8.get_inputs()[0].shape == floats.get_inputs()[0].shape == ["batch", "length"]
    import onnx

    graph = onnx.load(folder / "model_int8.onnx").graph
    kinds = {weight.name: weight.data_type for weight in graph.initializer}
    assert kinds["prototypes_Transposed"] == kinds["projection.weight_Transposed"] == onnx.TensorProto.FLOAT
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 6  # the linear layers of one BERT layer
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) == 3  # its three embeddings


def test_exporting_does_not_change_the_model(exported):
    model = copy.deepcopy(exported["levels"][0]).to(torch.bfloat16).train()
    found, _ = hcal_hf.commands.onnx_export._resolve(model, None)
    assert (found.dtype, found.training) == (torch.float32, False)
    assert (model.dtype, model.training) == (torch.bfloat16, True)


def test_a_saved_model_can_be_exported_over_an_earlier_export(exported, tokenizer, tmp_path, caplog, monkeypatch):
    model, folder, _ = exported["levels"]
    monkeypatch.setattr(
        hcal_hf.commands.onnx_export, "export_module", lambda *args: shutil.copy(folder / "model.onnx", args[-1])
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model_int8.onnx").write_text("of another model", encoding="utf-8")
    (tmp_path / "onnx" / "notes.txt").write_text("mine", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "hcal_hf.commands.onnx_export"):
        hcal_hf.commands.onnx_export.logger.addHandler(caplog.handler)
        report = export_onnx(str(tmp_path / "model"), tmp_path / "onnx")
        hcal_hf.commands.onnx_export.logger.removeHandler(caplog.handler)
    assert "model_int8.onnx was from an earlier export" in caplog.text
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {*report["files"], "notes.txt"}
    assert report["files"].keys() == {"model.onnx", "tokenizer.json", "hierarchy.json"}


def test_an_onnx_model_that_differs_from_torch_is_not_written(exported, tokenizer, tmp_path, monkeypatch):
    model, _, _ = exported["levels"]
    # No file is needed, because run_onnx is replaced below.
    monkeypatch.setattr(hcal_hf.commands.onnx_export, "export_module", lambda *args: None)
    expected = hcal_hf.commands.onnx_export._torch_probabilities
    run = lambda path, batches: [expected(model, batch) + 0.002 for batch in batches]  # noqa: E731
    monkeypatch.setattr(hcal_hf.commands.onnx_export, "run_onnx", run)
    with pytest.raises(RuntimeError, match=r"differ from torch's by up to 0\.002, more than 0\.0001"):
        export_onnx(model, tmp_path, tokenizer=tokenizer)
    monkeypatch.setattr(
        hcal_hf.commands.onnx_export, "run_onnx", lambda path, batches: [np.full((1, 9), np.nan) for _ in batches]
    )
    with pytest.raises(RuntimeError, match="by up to nan"):
        export_onnx(model, tmp_path, tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_probabilities_that_contradict_the_hierarchy_are_refused(exported):
    model, _, _ = exported["lookahead"]
    found = np.full((2, model.config.num_labels), 0.1)
    child = int(model.taxonomy.edges[3, 1])
    found[1, child] = 0.3
    with pytest.raises(RuntimeError, match=rf"P\('{model.config.labels[child]}'\) exceeds that of its parent .* 0\.2"):
        hcal_hf.commands.onnx_export._check_coherence([found], model)


def test_invalid_arguments_are_refused_with_the_allowed_values(exported, tmp_path, monkeypatch):
    model, _, _ = exported["levels"]
    with pytest.raises(ValueError, match="opset must be 18 or above"):
        export_onnx(model, tmp_path, opset=17)
    with pytest.raises(ValueError, match="an HcalForSequenceClassification, got BertModel"):
        export_onnx(model.encoder, tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds a saved model, whose tokenizer\.json would be replaced"):
        export_onnx(model, tmp_path / "model")
    with pytest.raises(ValueError, match="tokenizer must be a fast one"):
        export_onnx(model, tmp_path, tokenizer=type("Slow", (), {"model_input_names": [], "pad_token_id": 0})())
    found = hcal_hf.commands.onnx_export.importlib.util.find_spec
    monkeypatch.setattr(
        hcal_hf.commands.onnx_export.importlib.util,
        "find_spec",
        lambda name, *a: None if name == "onnxscript" else found(name, *a),
    )
    with pytest.raises(ImportError, match=r'needs onnxscript: pip install "hcal-hf\[export\]"'):
        export_onnx(model, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]
