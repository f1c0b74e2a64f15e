"""Tables of malformed inputs with the error that each gets: readers, hierarchies, configurations, arguments, metrics."""

import copy
import gzip
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import pipeline

from hcal_hf import (
    HcalConfig,
    HcalForSequenceClassification,
    HcalTrainingArguments,
    Taxonomy,
    bootstrap_interval,
    build_weighter,
    calibrate_risk,
    calibration_scores,
    classification_scores,
    decode,
    draw_documents,
    encode_dataset,
    fit_temperature,
    hierarchical_scores,
    read_table,
    read_taxonomy,
    tune_thresholds,
    violation_rates,
    write_taxonomy,
)
from hcal_hf.commands import main as cli
from hcal_hf.metrics.hierarchical_f1.scores import hierarchical_scores_from_edges
from hcal_hf.pooling import pool_states
from tests.builders import build_model, build_taxonomy, build_tokenizer, tiny_bert
from tests.reliability.counted import counted

TAXONOMY = build_taxonomy()
TOKENIZER = build_tokenizer()
SIZE = len(TAXONOMY)


def cut(data):
    return gzip.compress(data)[:-20]


# ---- Readers of tables ----

TABLES = {
    ("a.csv", b""): "a.csv is empty: its first line must name the columns",
    ("b.csv", b"text,labels\n"): "b.csv names columns but has no rows: 'text', 'labels'",
    ("c.csv", b'text,labels\n"a,b\nc,d\n'): "the row at line 2 opens a quote that is never closed",
    ("d.csv", b"text,text\na,b\n"): "names several columns 'text': give each column a name of its own",
    ("e.csv", b",\na,b\n"): "e.csv has no row that can be read",
    ("f.csv", bytes(range(256))): "which is no text: it is a binary file, or a text in another encoding",
    ("g.csv", "text,labels\na,b\n".encode("utf-16-le")): "or a text in another encoding. Save it as UTF-8",
    ("a.jsonl", b"1\n2\n"): "has no row that can be read",
    ("b.jsonl", b"[1]\n[2]\n"): "has no row that can be read",
    ("c.jsonl", b'{"text": ' + b"[" * 3000 + b"]" * 3000 + b"}"): "has no row that can be read",
    ("a.json", b"1"): "has no row that can be read",
    ("b.json", b"[1, 2]"): "has no row that can be read",
    ("c.json", b"[]"): "has no row that can be read",
    ("d.json", b'[{"text": "a"},'): "d.json is not JSON: Expecting value: line 1",
    ("e.json", b"\x80\x81"): "has no row that can be read",
    ("a.xlsx", b"hello"): "a.xlsx is damaged, or is not an .xlsx file",
    ("b.xlsx", b""): "b.xlsx is damaged, or is not an .xlsx file",
    ("a.xls", b"\xd0\xcf\x11\xe0"): "cannot be read as a table: save the sheet as .xlsx or as CSV UTF-8",
    ("a.parquet", b"PAR1garbagePAR1"): "a.parquet is damaged, or is not a Parquet file",
    ("b.parquet", b""): "b.parquet is damaged, or is not a Parquet file",
    ("a.arrow", b"ARROW1garbage"): "a.arrow is damaged, or is not an Arrow file",
    ("a.csv.gz", b"hello"): "a.csv.gz is damaged, or was not written to its end",
    ("b.csv.gz", cut(b"text,labels\n" + b"a,b\n" * 1000)): "b.csv.gz is damaged, or was not written to its end",
    ("a.zip", b"PK"): "cannot be read as a table: allowed are .csv, .tsv, .jsonl",
    ("a.quux", b"a"): "cannot be read as a table: allowed are .csv, .tsv, .jsonl",
    ("noending", b"text,labels\na,b"): "cannot be read as a table: allowed are .csv, .tsv, .jsonl",
}


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file[0])
def test_files_that_are_no_tables(tmp_path, file, capsys):
    name, content = file
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"\w") as refused:
        read_table(tmp_path / name)
    assert TABLES[file] in str(refused.value)
    assert name in str(refused.value)
    assert cli.main(["taxonomy", "check", str(tmp_path / name)]) == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert name in printed.err + printed.out


# Rows that cannot be read stay in the table with their problem, and encoding names each.
ROWS = {
    ("a.csv", b"text,labels\na,b,c,d\n"): "4 cells",
    ("b.csv", b"text,labels\na\n"): "1 cell",
    ("a.jsonl", b'{"text": "a", "labels": "science"}\n{"text": \n'): "not JSON",
    ("b.jsonl", b'{"text": "a", "labels": "science"}\n[]\n'): "train[1]: the line is not a JSON object but list",
}


@pytest.mark.parametrize("file", ROWS, ids=lambda file: file[0])
def test_rows_that_cannot_be_read_are_named(tmp_path, file):
    (tmp_path / file[0]).write_bytes(file[1])
    with pytest.raises(ValueError, match="cannot be encoded") as refused:
        encode_dataset(read_table(tmp_path / file[0]), TAXONOMY, TOKENIZER)
    assert ROWS[file] in str(refused.value)


def two_columns():
    return pd.DataFrame([["a", "b"]], columns=["text", "text"])


SOURCES = [
    (lambda: read_table(3), "A table must be a path, a name on the Hub, a data set or a DataFrame, got int"),
    (lambda: read_table(None), "got NoneType"),
    (lambda: read_table({"text": ["a"]}), "got dict"),
    (lambda: read_table([{"text": "a"}]), r"got list. Use datasets.Dataset.from_list\(rows\)"),
    (lambda: read_table(two_columns()), "The DataFrame has several columns 'text'"),
]


@pytest.mark.parametrize(("call", "message"), SOURCES)
def test_sources_that_are_no_tables(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_folders_missing_files_encodings_and_other_zip_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*missing\.csv"):
        read_table(tmp_path / "missing.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="has no training file"):
        read_table(tmp_path / "folder.csv")
    (tmp_path / "a.csv").write_text("text\na\n", encoding="utf-8")
    with pytest.raises(ValueError, match="encoding='quux' is unknown: give utf-8, cp1252"):
        read_table(tmp_path / "a.csv", encoding="quux")
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as file:
        file.writestr("a.txt", "x")
    with pytest.raises(ValueError, match=r"a\.xlsx is damaged, or is not an \.xlsx file"):
        read_table(tmp_path / "a.xlsx")


# ---- Rows of data sets ----


def encode(columns=None, **options):
    table = Dataset.from_dict(columns or {"text": ["a"], "labels": [[["science"]]]})
    options = {"taxonomy": TAXONOMY, "tokenizer": TOKENIZER, **options}
    return encode_dataset(table, options.pop("taxonomy"), options.pop("tokenizer"), **options)


def row(labels, text="a"):
    return {"text": [text], "labels": [labels]}


TWO = [["science", "physics"], ["arts", "stage"]]
DATA_SETS = [
    (lambda: encode({"t": ["a"], "labels": ["science"]}), "has no column 'text'; its columns are"),
    (lambda: encode(text="quux"), "has no column 'quux'"),
    (lambda: encode(labels="quux"), "has no column 'quux'"),
    (lambda: encode(keep_columns=["quux"]), "has no column 'quux'"),
    (lambda: encode(text=3), "text must be the name of a column, or a list of names, got 3"),
    (lambda: encode(labels=3), "labels must be the name of a column, or a list of names, got 3"),
    (lambda: encode(labels=[]), "the list of columns is empty"),
    (lambda: encode(text=[]), "the list of columns is empty"),
    (lambda: encode(labels=["labels", "labels"]), "labels names a column twice"),
    (lambda: encode(tokenizer=None), "tokenizer must be a tokenizer, got None: use AutoTokenizer"),
    (lambda: encode(tokenizer="bert"), "tokenizer must be a tokenizer, got 'bert'"),
    (lambda: encode(taxonomy=["science"]), "taxonomy must be a Taxonomy, got list"),
    (lambda: encode(on_bad_row="skip"), 'on_bad_row must be "raise" or "drop"'),
    (lambda: encode(row("science", 1)), r"dataset\[0\]: the text must be a string, got int"),
    (lambda: encode(row("science", ["a"])), "the text must be a string, got list"),
    (lambda: encode(row("science", {"a": 1})), "the text must be a string, got dict"),
    (lambda: encode(row("science", "")), "the text is empty"),
    (lambda: encode({"text": [None, "a"], "labels": ["science"] * 2}), "there is no text"),
    (lambda: encode(row("scienc")), r"Unknown label 'scienc'. Closest known: 'science'"),
    (lambda: encode(row(7)), "Unknown label '7'"),
    (lambda: encode(row(7.5)), "a label must be a string or a whole number, got 7.5"),
    (lambda: encode(row(True)), "a label must be a string or a whole number, got True"),
    (lambda: encode(row({"a": "b"})), "labels must be a string or a list, got"),
    (lambda: encode(row([["science", "quantum"]])), "'quantum' exists, but not below 'science'"),
    (lambda: encode(row([["science", ""]])), "science"),
    (lambda: encode(row(TWO), label_mode="single_path"), "single_path needs one path a document, got 2"),
    (lambda: encode(row("science"), label_mode="single_path", partial_paths=False), "ends at an inner node"),
]


@pytest.mark.parametrize(("call", "message"), DATA_SETS)
def test_rows_and_options_of_data_sets(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- Hierarchies ----

HIERARCHIES = {
    ("a.txt", ""): "a.txt is empty: it must have one label or path per line",
    ("b.txt", "\n\n \n"): "b.txt is empty",
    ("c.txt", "a > > b\n"): "c.txt, line 1: the path ['a', '', 'b'] has an empty step",
    ("d.txt", "a\n      b\n   c\n"): "d.txt, line 3: 'c' is indented by",
    ("a.csv", "parent,child\na,b\nb,a\n"): "has a cycle: 'a' -> 'b' -> 'a'. Remove an edge",
    ("b.csv", "parent,child\na,a\n"): "row 2: 'a' is its own parent",
    ("a.json", '{"edges": [["a", "b"], ["b", "c"], ["c", "a"]]}'): "has a cycle",
    ("b.json", "3"): "b.json cannot be read as a taxonomy",
    ("c.json", '"a"'): "c.json cannot be read as a taxonomy",
    ("d.json", "null"): "d.json cannot be read as a taxonomy",
    ("e.json", "{}"): "e.json has no hierarchy",
    ("f.json", "[]"): "f.json is empty",
    ("g.json", '{"a": 3}'): "the value of 'a' must be a dictionary, a list of names or empty, got 3",
    ("h.json", '[{"id": "a"}, {"id": "a"}]'): "has one column, 'id', without a hierarchy",
    ("a.rdf", "<rdf"): "a.rdf cannot be read as SKOS",
    ("a.ttl", "@prefix"): "a.ttl cannot be read as SKOS",
}


@pytest.mark.parametrize("file", HIERARCHIES, ids=lambda file: file[0])
def test_files_that_are_no_hierarchies(tmp_path, file):
    name, content = file
    if name.endswith((".rdf", ".ttl")):
        pytest.importorskip("rdflib", reason="needs rdflib")
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"\w") as refused:
        read_taxonomy(tmp_path / name)
    assert HIERARCHIES[file] in str(refused.value)


NODES = [
    (lambda: Taxonomy.from_paths(None), "paths must be a list of paths, got None"),
    (lambda: Taxonomy.from_paths([[]]), "A path must have at least one step"),
    (lambda: Taxonomy.from_paths([["a", 1]]), "A name in a path must be a string, got 1"),
    (lambda: Taxonomy.from_paths(["abc"]), "A path must be a sequence of names, got the string 'abc'"),
    (lambda: Taxonomy.from_paths([["a", ""]]), "A name in a path must not be empty"),
    (lambda: Taxonomy.from_paths([["a\0"]]), "A name in a path must not have the character NUL"),
    (lambda: Taxonomy.from_edges(None), r"edges must be \(parent, child\) pairs of labels, got None"),
    (lambda: Taxonomy.from_edges([3]), r"An edge must be a \(parent, child\) pair of labels, got 3"),
    (lambda: Taxonomy.from_edges([("a", None)]), "A label must be a string, got None"),
    (lambda: Taxonomy.from_edges([("a", "b", "c")]), r"An edge must be a \(parent, child\) pair"),
    (lambda: Taxonomy.from_edges([], roots=3), "roots must be a list of strings, got 3"),
    (lambda: Taxonomy(["a"], [[0, 5]]), r"Edge \[0, 5\] points outside the 1 labels"),
    (lambda: Taxonomy(["a", "a"]), "Labels must be unique"),
    (lambda: Taxonomy(["a", "b"], [[0, 1], [1, 0]]), "has a cycle"),
    (lambda: TAXONOMY.index("quux"), "Unknown label 'quux'. Closest known: 'quantum'"),
    (lambda: TAXONOMY.encode([["quux"]]), "Unknown label 'quux' among the roots"),
    (lambda: TAXONOMY.encode([[["science"]]]), "A step of a path must be a string"),
    (lambda: TAXONOMY.encode(3), "Labels must be a string, a list of strings or a list of paths, got 3"),
    (lambda: TAXONOMY.encode(None), "got None of type NoneType"),
    (lambda: TAXONOMY.decode("abc"), "A node must be a whole number, got 'a'"),
    (lambda: TAXONOMY.decode([99]), "Node 99 is outside the 13 labels"),
    (lambda: TAXONOMY.complete(None), "Nodes must be a list of node indices, got None"),
    (lambda: TAXONOMY.paths("a"), "A node must be a whole number, got 'a'"),
    (lambda: read_taxonomy(None), "cannot be read as a taxonomy"),
    (lambda: write_taxonomy(TAXONOMY, "a.quux"), r"must end in \.json, \.csv, \.tsv, \.ttl, \.txt"),
]


@pytest.mark.parametrize(("call", "message"), NODES)
def test_values_that_are_no_hierarchies_or_nodes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- Configurations and encoders ----

FIELDS = [
    ({"label_mode": "single"}, "expected one of ('single_path', 'multi_path'), got single"),
    ({"head": "softmax"}, "'lookahead_sigmoid'), got softmax"),
    ({"head": None}, "'lookahead_sigmoid'), got None"),
    ({"pooling": "sum"}, "expected one of ('mean', 'cls', 'last', 'max'), got sum"),
    ({"projection_dim": 0}, "projection_dim must be from 1 to 1,048,576, got 0"),
    ({"projection_dim": 2.5}, "'projection_dim' expected int, got float"),
    ({"objective": "x"}, "expected one of ('document', 'aggregate'), got x"),
    ({"classification_loss": "focal"}, "expected one of ('auto', 'bce', 'asl', 'zlpr'), got focal"),
    ({"contrast": "x"}, "expected one of ('aggregate', 'hjcl'), got x"),
    ({"contrast_alpha": -1}, "contrast_alpha must be 0 or a finite number above"),
    ({"perturbation": "a"}, "'perturbation' expected float, got str"),
    ({"geometry": "spherical"}, "'hyperbolic'), got spherical"),
    ({"geometry_curvature": 0.0}, "geometry_curvature must be a finite number above 0"),
    ({"geometry_weight": -1.0}, "geometry_weight must be a finite number of at least 0"),
    ({"geometry_rows": 0}, "geometry_rows must be at least 1, or None"),
    ({"geometry": "hyperbolic"}, "does not fit score_function='cosine'"),
    ({"thresholds": [0.5]}, "thresholds must hold one number for each of 13 labels, got 1"),
    ({"thresholds": [2.0] * SIZE}, "thresholds must be probabilities from 0 to 1, got 2.0 for 'science'"),
    ({"thresholds": [float("nan")] * SIZE}, "thresholds must be probabilities from 0 to 1, got nan"),
    ({"risk_alpha": 0.5}, "risk_alpha and risk_threshold belong together"),
    ({"label_texts": ["a"]}, "label_texts must hold one text for each of 13 labels"),
    ({"label_names": {"quux": "a"}}, "label_names has 1 keys that are not labels, first 'quux'"),
    ({"table_options": {"x": 1}}, "table_options has no option 'x'"),
    ({"text_prefix": 3}, "'text_prefix' expected str, got int"),
    ({"partial_paths": "yes"}, "'partial_paths' expected bool, got str"),
    ({"score_temperature": True}, "'score_temperature' expected float, got bool"),
    ({"hcal_format_version": 99}, "reads versions up to"),
    ({"problem_type": "regression"}, "problem_type='regression' is not supported"),
    ({"num_labels": 3}, "num_labels=3 contradicts the 13 labels"),
    ({"id2label": {0: "a"}}, "id2label / label2id contradict `labels`"),
    ({"contrast_kwargs": {"a": 1}}, 'contrast_kwargs are options of contrast="hjcl"'),
    ({"classification_loss": "asl", "classification_loss_kwargs": {"quux": 1}}, "has 'quux', but"),
    ({"classification_loss": "asl", "classification_loss_kwargs": {"gamma_negative": -1}}, "from 0"),
    ({"classification_loss": "zlpr"}, 'needs label_mode="multi_path"'),
    ({"contrast": "hjcl", "contrast_kwargs": {"quux": 1}}, "contrast_kwargs has no option 'quux'"),
    ({"head": "lookahead_sigmoid"}, "does not fit label_mode='single_path'"),
    ({"objective": "aggregate", "label_mode": "multi_path", "head": "independent"}, "needs label_mode"),
]


@pytest.mark.parametrize(("fields", "message"), FIELDS)
def test_fields_of_a_configuration(fields, message):
    with pytest.raises(ValueError, match=r"\w") as refused:
        HcalConfig.from_taxonomy(TAXONOMY, tiny_bert(), **fields)
    assert message in str(refused.value)


def test_fields_that_do_not_exist_and_values_that_are_no_taxonomy():
    with pytest.raises(TypeError, match=r"HcalConfig has no field 'projection_dims'. Closest: \['projection_dim'"):
        HcalConfig.from_taxonomy(TAXONOMY, tiny_bert(), projection_dims=8)
    with pytest.raises(TypeError, match="taxonomy must be a Taxonomy, got NoneType"):
        HcalConfig.from_taxonomy(None, tiny_bert())


ENCODERS = [
    ({}, "model_type=None, which this version of transformers does not have"),
    ({"model_type": "berd"}, "model_type='berd', which this version of transformers does not have. Closest: ['bert'"),
    ({"model_type": "hcal"}, "encoder_config describes an HCAL model"),
    ({"model_type": "bart"}, "is an encoder-decoder (bart), and transformers has no class for its encoder alone"),
    ({"model_type": "vit"}, "ViTModel reads pixel_values and not the tokens of a text"),
    ({"model_type": "bert", "num_attention_heads": 0}, "cannot be built"),
    ({"model_type": "bert", "num_attention_heads": 3, "hidden_size": 16}, "is not a multiple of"),
    ({"model_type": "bert", "hidden_act": "quux"}, "KeyError 'quux'"),
    ({"model_type": "bert", "vocab_size": -5}, "cannot be built"),
    ({"model_type": "bert", "hidden_dropout_prob": 5}, "dropout probability has to be between 0 and 1"),
    (3, "'encoder_config' expected dict, got int"),
    ("bert", "'encoder_config' expected dict, got str"),
]


@pytest.mark.parametrize(("encoder", "message"), ENCODERS)
def test_configurations_of_encoders(encoder, message):
    small = {"num_hidden_layers": 1, "encoder_layers": 1, "decoder_layers": 1}
    encoder = {**small, **encoder} if isinstance(encoder, dict) else encoder
    with pytest.raises(ValueError, match=r"\w") as refused, torch.device("meta"):
        HcalForSequenceClassification(HcalConfig.from_taxonomy(TAXONOMY, encoder))
    assert message in str(refused.value)


def test_models_that_do_not_exist(tmp_path):
    for call in (
        lambda: HcalForSequenceClassification.from_encoder(str(tmp_path / "nothing"), TAXONOMY),
        lambda: HcalForSequenceClassification.from_pretrained(tmp_path / "nothing"),
        lambda: HcalForSequenceClassification.from_pretrained("./nothing"),
    ):
        with pytest.raises(FileNotFoundError, match=r"There is no folder .*nothing"):
            call()
    tiny_bert().save_pretrained(tmp_path / "no weights")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        HcalForSequenceClassification.from_encoder(str(tmp_path / "no weights"), TAXONOMY)


# ---- Inputs of the model and the pipeline ----

IDS = torch.tensor([[3, 4, 5]])
INPUTS = [
    ({}, "Pass one of input_ids, inputs_embeds and pooled_states"),
    ({"input_ids": IDS, "inputs_embeds": torch.zeros(1, 3, 16)}, "Pass one of input_ids, inputs_embeds"),
    ({"input_ids": IDS, "pooled_states": torch.zeros(1, 16)}, "not both"),
    ({"pooled_states": torch.zeros(2, 7)}, r"pooled_states must have the shape \[documents, 16\], got \[2, 7\]"),
    ({"pooled_states": torch.zeros(16)}, r"pooled_states must have the shape \[documents, 16\], got \[16\]"),
    ({"input_ids": IDS.float()}, "input_ids must be whole numbers"),
    ({"input_ids": IDS[0]}, "input_ids must be whole numbers of the shape"),
    ({"input_ids": IDS, "labels": torch.tensor([[13]])}, "labels must be node indices from 0 to 12"),
    ({"input_ids": IDS, "labels": torch.tensor([[-1]])}, "or -100 for padding, got -1"),
    ({"input_ids": IDS, "labels": torch.tensor([1])}, "labels must have two dimensions"),
    ({"input_ids": IDS, "labels": torch.zeros(1, 5)}, "one column for each of the 13 labels, got 5"),
    ({"input_ids": IDS, "labels": torch.zeros(1, 13, dtype=torch.int32)}, "labels must be floating or bool"),
]


@pytest.mark.parametrize(("inputs", "message"), INPUTS)
def test_inputs_of_the_model(inputs, message):
    with pytest.raises(ValueError, match=message):
        build_model(TAXONOMY)(**inputs)


def test_an_unknown_pooling():
    with pytest.raises(ValueError, match="pooling must be one of cls, last, max, mean, got 'sum'"):
        pool_states(torch.zeros(1, 2, 3), None, "sum")


@pytest.fixture(scope="module")
def classify():
    return pipeline("hierarchical-text-classification", build_model(TAXONOMY), tokenizer=TOKENIZER)


CALLS = [
    (None, {}, "A text must be a string"),
    (3, {}, "A text must be a string"),
    (["a", 3], {}, "A text must be a string"),
    (b"a", {}, "A text must be a string"),
    ("a \ud800", {}, "has half characters that are not Unicode"),
    ("a", {"threshold": 2}, "threshold must lie between 0 and 1, got 2"),
    ("a", {"threshold": "a"}, "threshold must be a number, or one number for each label, got 'a'"),
    ("a", {"top_k": 0}, "top_k must be a whole number of at least 1"),
    ("a", {"top_k": "a"}, "top_k must be a whole number of at least 1"),
    ("a", {"num_paths": 0}, "num_paths must be a whole number of at least 1"),
    ("a", {"max_depth": -1}, "max_depth must be a whole number of at least 0"),
    ("a", {"decode": "quux"}, "decode must be one of raw, closure"),
    ("a", {"max_length": 0}, "max_length must be a whole number of at least 1"),
    ("a", {"padding": "quux"}, "quux is not a valid PaddingStrategy, please select one of"),
    ("a", {"truncation": "quux"}, "quux is not a valid TruncationStrategy, please select one of"),
]


@pytest.mark.parametrize(("texts", "options", "message"), CALLS)
def test_calls_of_the_pipeline(classify, texts, options, message):
    with pytest.raises(ValueError, match=message):
        classify(texts, **options)


def test_a_billion_paths_need_no_memory(classify):
    """The most paths are as many as there are labels."""
    assert [entry["label"] for entry in classify("stars", num_paths=10**9)] == [
        entry["label"] for entry in classify("stars", num_paths=SIZE)
    ]


# ---- Training arguments ----

ARGUMENTS = [
    ({"loss_weighting": "quux"}, "loss_weighting must be one of dwa, famo"),
    ({"loss_weighting_kwargs": {"quux": 1}}, "has 'quux', but loss_weighting='uniform' takes none"),
    ({"loss_weighting_kwargs": "[1"}, "loss_weighting_kwargs must be an object"),
    ({"loss_weighting": "fixed"}, "needs weights in loss_weighting_kwargs"),
    ({"head_solver": "quux"}, 'head_solver must be "auto"'),
    ({"head_prior": "quux"}, 'head_prior must be "initial"'),
    ({"tune": "f1"}, 'tune must be "none"'),
    ({"class_weight": "quux"}, 'class_weight must be "balanced" or weights by label'),
    ({"class_weight": {"a": -1}}, r"class_weight\['a'\] must be a number of at least 0"),
    ({"class_weight": 3}, 'class_weight must be "balanced"'),
    ({"train_sampling_strategy": "quux"}, "train_sampling_strategy must be one of"),
    ({"prototype_lr_multipliers": [1.0]}, 'need optim="sgd"'),
    ({"optim": "sgd", "prototype_lr_multipliers": [0.0]}, "prototype_lr_multipliers must be positive"),
    ({"optim": "sgd", "prototype_lr_multipliers": ["a"]}, "prototype_lr_multipliers must be positive"),
    ({"optim": "sgd", "prototype_lr_multipliers": [float("nan")]}, "prototype_lr_multipliers must be positive"),
    ({"num_train_epochs": 0}, "num_train_epochs must be above 0"),
    ({"num_train_epochs": "three"}, "num_train_epochs must be a finite number, got 'three'"),
    ({"learning_rate": -1.0}, "learning_rate must be a finite number of at least 0, got -1.0"),
    ({"learning_rate": float("inf")}, "learning_rate must be a finite number of at least 0, got inf"),
    ({"head_learning_rate": "fast"}, "head_learning_rate must be a finite number of at least 0, got 'fast'"),
    ({"head_learning_rate": float("nan")}, "head_learning_rate must be a finite number"),
    ({"prototype_learning_rate": -1.0}, "prototype_learning_rate must be a finite number of at least 0"),
    ({"weight_decay": -1.0}, "weight_decay must be a finite number of at least 0"),
    ({"max_grad_norm": -1.0}, "max_grad_norm must be a finite number of at least 0"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be a whole number of at least 1"),
    ({"per_device_eval_batch_size": 1.5}, "per_device_eval_batch_size must be a whole number of at least 1"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be a whole number of at least 1"),
    ({"dataloader_num_workers": -1}, "dataloader_num_workers must be a whole number of at least 0"),
    ({"max_steps": 1.5}, "max_steps must be a whole number of at least -1"),
    ({"seed": "a"}, "seed must be a whole number of at least 0, got 'a'"),
    ({"eval_strategy": "quux"}, "please select one of"),
    ({"optim": "quux"}, "please select one of"),
    ({"lr_scheduler_type": "quux"}, "please select one of"),
]


@pytest.mark.parametrize(("values", "message"), ARGUMENTS)
def test_training_arguments(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        HcalTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **values)


WEIGHTERS = [
    ("hcal", {"gamma": 0}, "gamma must be a finite number above 0, got 0"),
    ("hcal", {"gamma": float("inf")}, "gamma must be a finite number above 0, got inf"),
    ("hcal", {"gamma": "a"}, "do not fit loss_weighting='hcal'"),
    ("hcal_rate", {"rho": 2}, "rho must be from 0 to 1"),
    ("dwa", {"temperature": 0}, "temperature must be a finite number above 0"),
    ("dwa", {"period": 1.5}, "period must be a whole number of at least 1, got 1.5"),
    ("fixed", {"weights": [1]}, "weights"),
    ("fixed", {"weights": [-1, 1, 1]}, "weights must be 0 or above"),
    ("famo", {"learning_rate": 0}, "learning_rate must be above 0"),
    ("gradnorm", {"alpha": "a"}, "do not fit loss_weighting='gradnorm'"),
    ("uncertainty", {"learning_rate": -1}, "learning_rate must be above 0"),
]


@pytest.mark.parametrize(("name", "values", "message"), WEIGHTERS)
def test_arguments_of_weighters(name, values, message):
    with pytest.raises(ValueError, match=message):
        build_weighter(name, 3, **values)


# ---- Metrics ----

SETS = np.zeros((2, SIZE), dtype=bool)
SETS[:, 0] = True
P = np.full((2, SIZE), 0.5)
LABEL_SETS = [
    (SETS * 0.3, "is an array of float64; allowed: label sets as bool"),
    (np.full((2, SIZE), np.nan), "is an array of float64"),
    (np.zeros((2, 5), dtype=bool), r"has shape \(2, 5\); allowed: \[N, 13\]"),
    (np.zeros(5, dtype=bool), r"has shape \(5,\)"),
    (SETS.astype(int) * 2, "integer matrix with values 0 to 2"),
    ([["quux"], ["science"]], r"predictions\[0\]: Unknown label 'quux'"),
    ([[99], [0]], "holds node id 99; allowed: 0 to 12"),
    ([[-1], [0]], "holds node id -1"),
    ([[0.5], [0]], r"predictions\[0\] is \[0.5\]; allowed: a sequence of integer node ids"),
    (None, "predictions is None"),
    (3, "predictions is 3"),
    ("science", "predictions is 'science'"),
    ({"a": 1}, r"predictions\[0\] is 'a'"),
]
METRICS = {
    "violation_rates": lambda sets: violation_rates(sets, TAXONOMY),
    "hierarchical_scores": lambda sets: hierarchical_scores(sets, SETS, TAXONOMY),
    "classification_scores": lambda sets: classification_scores(sets, SETS, TAXONOMY),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("sets", "message"), LABEL_SETS)
def test_label_sets_of_metrics(metric, sets, message):
    with pytest.raises(ValueError, match=message):
        METRICS[metric](sets)


def from_edges(edges, num_labels):
    return hierarchical_scores_from_edges([[0]], [[0]], edges, num_labels)


LOGITS = torch.zeros(2, SIZE)
HEAD = build_model(TAXONOMY).head
NUMBERS = [
    (lambda: hierarchical_scores([[0]], SETS, TAXONOMY), "predictions holds 1 documents and references 2"),
    (lambda: from_edges([[0, 1], [1, 0]], 2), "edges holds a cycle: 1 -> 0 -> 1"),
    (lambda: from_edges([[0, 9]], 2), r"edges\[0\] is \[0, 9\]; allowed node ids: 0 to 1"),
    (lambda: from_edges([[0.5, 1]], 2), "allowed: integers of shape"),
    (lambda: from_edges([[0, 1]], "2"), "num_labels is '2'; allowed: a whole number"),
    (lambda: from_edges([[0, 1]], 10**12), "num_labels is 1000000000000; allowed: a whole number from 0 to"),
    (lambda: calibration_scores(P, SETS[:1]), "give one outcome per probability"),
    (lambda: calibration_scores(P * 3, SETS), "probabilities must lie between 0 and 1, got 1.5"),
    (lambda: calibration_scores(P * np.nan, SETS), "probabilities must lie between 0 and 1, got nan"),
    (lambda: calibration_scores(P, P), "references is an array of float64"),
    (lambda: calibration_scores(P, SETS, bins=0), "bins must be a whole number of at least 1, got 0"),
    (lambda: calibration_scores(P, SETS, bins=1.5), "bins must be a whole number of at least 1, got 1.5"),
    (lambda: bootstrap_interval([]), "differences must be one number per resample, got 0 values"),
    (lambda: bootstrap_interval([float("nan"), 1.0]), "1 of them NaN"),
    (lambda: bootstrap_interval(np.zeros((2, 2))), r"of the shape \[2, 2\]"),
    (lambda: next(draw_documents(0, 5)), "at least one document and one resample"),
    (lambda: next(draw_documents(5, -1)), "at least one document and one resample"),
    (lambda: tune_thresholds(P, SETS[:, :3], TAXONOMY), "targets must have the shape of the probabilities"),
    (lambda: tune_thresholds(P * 3, SETS, TAXONOMY), r"got 1.5: give sigmoid\(logits\), not logits"),
    (lambda: tune_thresholds(-P, SETS, TAXONOMY), "got -0.5"),
    (lambda: tune_thresholds(P, P, TAXONOMY), "targets must be bool, or 0 and 1, got"),
    (lambda: tune_thresholds("a", SETS, TAXONOMY), "probabilities must be numbers"),
    (lambda: tune_thresholds(P, SETS, None), "taxonomy must be a Taxonomy, got NoneType"),
    (lambda: tune_thresholds(P, SETS, TAXONOMY, "quux"), "granularity must be one of global, level, label"),
    (lambda: tune_thresholds(P, SETS, TAXONOMY, metric="quux"), "metric must be one of micro_f1, macro_f1"),
    (lambda: decode(torch.zeros(2, 3), TAXONOMY, "single_path"), r"shape \[documents, 13\], .* got \[2, 3\]"),
    (lambda: decode(torch.zeros(SIZE), TAXONOMY, "single_path"), r"got \[13\]"),
    (lambda: decode(LOGITS.numpy(), TAXONOMY, "single_path"), r"must be a torch\.Tensor, got ndarray"),
    (lambda: decode(LOGITS, None, "single_path"), "taxonomy must be a Taxonomy, got NoneType"),
    (lambda: decode(LOGITS, TAXONOMY, "single_path", "quux"), "decode must be one of"),
    (lambda: decode(LOGITS, TAXONOMY, "multi_path", "path"), 'needs label_mode="single_path"'),
    (lambda: decode(LOGITS, TAXONOMY, "multi_path", threshold=2), "threshold must lie between 0 and 1"),
    (lambda: decode(LOGITS, TAXONOMY, "multi_path", threshold=[0.5]), r"got shape \(1,\)"),
    (lambda: decode(LOGITS, TAXONOMY, "multi_path", threshold=float("nan")), "threshold must lie between 0 and 1"),
    (lambda: decode(LOGITS, TAXONOMY, "multi_path", threshold="a"), "threshold must be a number"),
    (lambda: decode(LOGITS, TAXONOMY, "single_path", "risk"), "risk_threshold belong together"),
    (lambda: calibrate_risk(LOGITS, SETS, TAXONOMY, "single_path", alpha=0), "alpha"),
    (lambda: calibrate_risk(LOGITS, SETS, TAXONOMY, "single_path", alpha=1), "alpha"),
    (lambda: calibrate_risk(LOGITS, SETS[:1], TAXONOMY, "single_path", alpha=0.1), "targets must have the shape"),
    (lambda: fit_temperature(HEAD, LOGITS, SETS[:1]), "targets must have the shape of the scores"),
    (lambda: fit_temperature(HEAD, LOGITS[:0], SETS[:0]), "needs held-out documents with labels, got none"),
]


@pytest.mark.parametrize(("call", "message"), NUMBERS)
def test_numbers_of_metrics_thresholds_and_decoders(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- Command lines ----

COMMANDS = [
    (["quux"], "invalid choice: 'quux'"),
    (["predict"], "the following arguments are required"),
    (["predict", "m", "f", "--batch-size", "0"], "unrecognized arguments"),
    (["predict", "m", "f", "--threshold", "2"], "must be a probability from 0 to 1, got '2'"),
    (["predict", "m", "f", "--threshold", "nan"], "must be a probability from 0 to 1, got 'nan'"),
    (["predict", "m", "f", "--max-length", "0"], "must be a whole number of at least 1, got '0'"),
    (["predict", "m", "f", "--decode", "quux"], "invalid choice: 'quux'"),
    (["evaluate", "m", "f", "--max-length", "ten"], "must be a whole number of at least 1, got 'ten'"),
    (["suggest", "m", "f", "--number", "-1"], "must be a whole number of at least 1, got '-1'"),
    (["audit", "f", "--folds", "0"], "must be a whole number of at least 1, got '0'"),
    (["zero-shot", "f"], "the following arguments are required: --output-dir"),
    (["taxonomy", "quux"], "invalid choice: 'quux'"),
]


@pytest.mark.parametrize(("words", "message"), COMMANDS, ids=lambda value: " ".join(value)[:40])
def test_command_lines(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(cli.main(words))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def cases():
    """Counts the malformed inputs of this file."""
    tables = (TABLES, ROWS, SOURCES, DATA_SETS, HIERARCHIES, NODES, FIELDS, ENCODERS, INPUTS, CALLS, ARGUMENTS)
    tables += (WEIGHTERS, NUMBERS, COMMANDS)
    return sum(map(len, tables)) + len(LABEL_SETS) * len(METRICS)


def test_the_tables_hold_more_than_150_inputs():
    with counted("malformed inputs", "an input of the tables of test_malformed_inputs.py") as count:
        count.cases = cases()
        assert cases() >= 150


def test_a_well_formed_input_of_each_kind_is_accepted(tmp_path, classify):
    (tmp_path / "a.csv").write_text("text,labels\na,science\n", encoding="utf-8")
    assert len(encode_dataset(read_table(tmp_path / "a.csv"), TAXONOMY, TOKENIZER)) == 1
    assert HcalConfig.from_taxonomy(TAXONOMY, copy.deepcopy(tiny_bert()).to_dict()).head == "lookahead_softmax"
    assert classify("stars", threshold=0.5)
    assert HcalTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, head_learning_rate=0.1)
    assert build_weighter("dwa", 3, period=2)
    assert decode(LOGITS, TAXONOMY, "single_path").shape == LOGITS.shape
    assert len(tune_thresholds(P, SETS, TAXONOMY)) == SIZE
