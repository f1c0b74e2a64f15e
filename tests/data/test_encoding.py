import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from datasets.fingerprint import Hasher
from datasets.formatting import query_table

from hcal_hf import BadRowsError, HcalDataCollator, Taxonomy, build_taxonomy, encode_dataset
from hcal_hf.data.encoding import RowEncoder
from hcal_hf.data.label_checks import check_encoded, label_column
from hcal_hf.data.labels import LabelReader
from tests.builders import random_dag, random_forest

GOOD = [
    {"text": "stars", "labels": [["science", "physics", "astronomy"]]},
    {"text": "poems of old", "labels": [["arts", "writing", "poetry"]]},
    {"text": "music", "labels": [["arts", "stage", "opera"]]},
]
NODES = [["science", "physics", "astronomy"], ["arts", "writing", "poetry"], ["arts", "stage", "opera"]]


def names(taxonomy, rows):
    return [[taxonomy.labels[node] for node in row] for row in rows["labels"]]


@pytest.mark.parametrize(
    "labels",
    [
        [[path] for path in NODES],
        [" > ".join(path) for path in NODES],
        [[">".join(path)] for path in NODES],
        [path[-1] for path in NODES],
        [[path[-1]] for path in NODES],
        NODES,
    ],
    ids=["paths", "path strings", "lists of path strings", "leaf strings", "leaves", "flat paths"],
)
def test_all_forms_of_labels_are_encoded_to_sorted_nodes_with_ancestors(taxonomy, tokenizer, labels):
    table = Dataset.from_dict({"text": ["stars", "poems of old", "music"], "labels": labels, "id": [1, 2, 3]})
    encoded = encode_dataset(table, taxonomy, tokenizer)
    assert encoded.column_names == ["input_ids", "attention_mask", "labels"]
    assert names(taxonomy, encoded) == NODES
    assert encoded["input_ids"][1] == tokenizer("poems of old")["input_ids"]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "arrow"])
@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_all_formats_are_encoded_in_memory_and_streaming(taxonomy, tokenizer, tmp_path, kind, streaming):
    table = Dataset.from_dict({"text": ["stars", "music"], "labels": ["astronomy", "arts > stage > opera"]})
    path = str(tmp_path / f"rows.{kind}")
    if kind == "arrow":
        table.save_to_disk(str(tmp_path / "folder"))
        path = str(next((tmp_path / "folder").glob("*.arrow")))
    else:
        getattr(table, f"to_{kind}")(path)
    loaded = load_dataset(
        kind, data_files={"train": path, "test": path}, streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    encoded = encode_dataset(loaded, taxonomy, tokenizer, label_mode="single_path")
    assert set(encoded) == {"train", "test"}
    rows = list(encoded["test"])
    assert [[taxonomy.labels[i] for i in row["labels"]] for row in rows] == [NODES[0], NODES[2]]
    assert set(rows[0]) == {"input_ids", "attention_mask", "labels"}


def test_a_csv_file_with_one_column_per_level_is_encoded(tokenizer, tmp_path):
    (tmp_path / "tickets.csv").write_text(
        "message,area,product,part\nstars,Books,Other,\nmusic,Toys,Other,Wheels\ndrama,Toys,Cars,\n", encoding="utf-8"
    )
    table = load_dataset("csv", data_files=str(tmp_path / "tickets.csv"), cache_dir=str(tmp_path))["train"]
    columns = ["area", "product", "part"]
    taxonomy = build_taxonomy(table, columns)
    assert taxonomy.labels == ("Books", "Toys", "Books > Other", "Toys > Other", "Cars", "Wheels")
    encoded = encode_dataset(table, taxonomy, tokenizer, text="message", labels=columns, label_mode="single_path")
    assert names(taxonomy, encoded) == [
        ["Books", "Books > Other"],
        ["Toys", "Toys > Other", "Wheels"],
        ["Toys", "Cars"],
    ]
    gap = Dataset.from_dict({"message": ["x"], "area": ["Toys"], "product": [None], "part": ["Wheels"]})
    with pytest.raises(BadRowsError, match="column 'product' is empty, but the deeper 'part' is not"):
        encode_dataset(gap, taxonomy, tokenizer, text="message", labels=columns)


def test_separator_and_delimiter_split_cells_into_labels(taxonomy, tokenizer):
    table = Dataset.from_dict({"text": ["stars"], "labels": ["arts/stage/opera; astronomy ;"]})
    encoded = encode_dataset(table, taxonomy, tokenizer, separator="/", delimiter=";")
    assert set(names(taxonomy, encoded)[0]) == {*NODES[0], *NODES[2]}
    assert build_taxonomy(
        Dataset.from_dict({"labels": ["a/b; c/b", None]}), separator="/", delimiter=";", identity="name"
    ).labels == ("a", "c", "b")


def test_build_taxonomy_reads_all_splits_and_refuses_ambiguous_lists(taxonomy):
    splits = DatasetDict(train=Dataset.from_list(GOOD[:1]), test=Dataset.from_list(GOOD[1:]))
    built = build_taxonomy(splits)
    assert set(built.labels) == {name for path in NODES for name in path}
    assert [built.index_path(path) for path in NODES]
    with pytest.raises(ValueError, match="steps of one path, or several labels"):
        build_taxonomy(Dataset.from_dict({"labels": [["science", "physics"]]}))


def test_added_ancestors_truncated_texts_and_dropped_rows_are_logged(taxonomy, tokenizer, caplog):
    table = Dataset.from_dict(
        {"text": ["stars", "stars " * 40, ""], "labels": [["astronomy"], ["arts", "stage"], ["opera"]]}
    )
    with caplog.at_level("WARNING", logger="hcal_hf.data.encoding"):
        encoded = encode_dataset(table, taxonomy, tokenizer, max_length=8, on_bad_row="drop")
    assert len(encoded) == 2
    assert len(encoded["input_ids"][1]) == 8
    assert (
        "2 rows encoded; 2 ancestors added to 1 rows; 1 texts truncated to 8 tokens; 1 bad rows left out"
        in caplog.text
    )


def test_all_bad_rows_are_listed_with_split_and_index(taxonomy, tokenizer):
    bad = [
        {"text": "stars", "labels": "astronomie"},
        {"text": "  ", "labels": "opera"},
        {"text": None, "labels": "opera"},
        {"text": "stars", "labels": "science > opera"},
        {"text": "stars", "labels": None},
    ]
    good = {"text": "stars", "labels": "astronomy"}
    splits = DatasetDict(train=Dataset.from_list([good, *bad, good]), test=Dataset.from_list([good] + [bad[0]] * 8))
    with pytest.raises(BadRowsError) as error:
        encode_dataset(splits, taxonomy, tokenizer)
    text = str(error.value)
    assert text.startswith("12 row(s) cannot be encoded")
    assert "train[1]: Unknown label 'astronomie'. Closest known: 'astronomy'" in text
    assert "train[2]: the text is empty" in text
    assert "train[3]: there is no text" in text
    assert "train[4]: ['science', 'opera'] is not a path" in text
    assert "train[5]" not in text  # unlabelled rows are left out, but they are not bad rows
    assert "test[6]" in text
    assert "test[7]" not in text
    assert "and 2 more" in text
    assert 'on_bad_row="drop"' in text
    assert [(split, index) for split, index, _ in error.value.rows][:5] == [("train", i) for i in range(1, 5)] + [
        ("test", 1)
    ]
    dropped = encode_dataset(splits, taxonomy, tokenizer, on_bad_row="drop")
    assert (len(dropped["train"]), len(dropped["test"])) == (2, 1)


def test_build_taxonomy_lists_bad_rows(caplog):
    table = Dataset.from_dict(
        {"l1": ["A", "A", "B", " "], "l2": [" ", None, "x > y", None], "l3": [None, "C", None, None]}
    )
    with pytest.raises(BadRowsError) as error:
        build_taxonomy(table, ["l1", "l2", "l3"])
    assert [row for _, row, _ in error.value.rows] == [1, 2]
    assert "dataset[1]: column 'l2' is empty, but the deeper 'l3' is not" in str(error.value)
    assert "dataset[2]: The name 'x > y' holds ' > '" in str(error.value)
    with caplog.at_level("WARNING", logger="hcal_hf.data.taxonomy_builder"):
        assert build_taxonomy(table, ["l1", "l2", "l3"], on_bad_row="drop").labels == ("A",)
    assert "Skipped 2 rows for the taxonomy" in caplog.text
    with pytest.raises(BadRowsError, match="has an empty step"):
        build_taxonomy(Dataset.from_dict({"labels": ["A > B > "]}))


def test_integer_labels_stay_integers_if_empty_cells_turned_them_into_floats(tokenizer):
    whole = Dataset.from_dict({"text": ["a", "b"], "l1": ["x", "x"], "l2": [1, 2]})
    holes = Dataset.from_dict({"text": ["a", "b"], "l1": ["x", "x"], "l2": [1.0, float("nan")]})
    taxonomy = build_taxonomy(whole, ["l1", "l2"])
    assert taxonomy.labels == ("x", "1", "2")
    assert names(taxonomy, encode_dataset(holes, taxonomy, tokenizer, labels=["l1", "l2"])) == [["x", "1"], ["x"]]
    flat = Dataset.from_dict({"text": ["a"], "labels": [2]})
    assert names(taxonomy, encode_dataset(flat, taxonomy, tokenizer)) == [["x", "2"]]
    with pytest.raises(BadRowsError, match=r"a string or a whole number, got 1\.5"):
        build_taxonomy(Dataset.from_dict({"l1": ["x"], "l2": [1.5]}), ["l1", "l2"])


def test_class_label_columns_are_read_as_their_names(taxonomy, tokenizer):
    table = Dataset.from_dict({"text": ["a", "b"], "labels": ["opera", "botany"]}).class_encode_column("labels")
    assert [row[-1] for row in names(taxonomy, encode_dataset(table, taxonomy, tokenizer))] == ["opera", "botany"]


def test_empty_cells_are_unlabelled_unless_empty_means_none(taxonomy, tokenizer, tmp_path, caplog):
    path = tmp_path / "rows.csv"
    path.write_text("text,labels\nstars,astronomy\nthe cat,\nplants,botany\n", encoding="utf-8")
    for label_mode in ("multi_path", "single_path", None):
        with caplog.at_level("WARNING", logger="hcal_hf.data.encoding"):
            encoded = encode_dataset(path, taxonomy, tokenizer, label_mode=label_mode)
        assert [row[-1] for row in names(taxonomy, encoded)] == ["astronomy", "botany"]
        assert "1 unlabelled rows left out" in caplog.text
        caplog.clear()
    stream = Dataset.from_dict({"text": ["a", "b"], "labels": ["astronomy", None]}).to_iterable_dataset()
    assert len(list(encode_dataset(stream, taxonomy, tokenizer))) == 1
    encoded = encode_dataset(path, taxonomy, tokenizer, label_mode="multi_path", empty_means_none=True)
    assert encoded["labels"][1] == []
    with pytest.raises(BadRowsError, match=r"\[1\]: single_path needs one path"):
        encode_dataset(path, taxonomy, tokenizer, label_mode="single_path", empty_means_none=True)


def test_several_text_columns_are_joined(taxonomy, tokenizer):
    table = Dataset.from_dict({"a": ["stars", None], "b": ["atoms", "cells"], "labels": ["opera", "botany"]})
    encoded = encode_dataset(table, taxonomy, tokenizer, ["a", "b"])
    assert encoded["input_ids"][:] == [tokenizer("stars\natoms")["input_ids"], tokenizer("cells")["input_ids"]]
    with pytest.raises(BadRowsError, match=r"\[1\]: there is no text"):
        encode_dataset(table, taxonomy, tokenizer, "a")
    with pytest.raises(ValueError, match="has no column 'c'"):
        encode_dataset(table, taxonomy, tokenizer, ["a", "c"])


def test_unreadable_rows_of_a_file_are_bad_rows(taxonomy, tokenizer, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,labels\nstars,astronomy\nthe cat, and dog,opera\n", encoding="utf-8")
    with pytest.raises(BadRowsError, match=r"\[1\]: the row has 3 cells, the header 2"):
        encode_dataset(path, taxonomy, tokenizer)
    assert len(encode_dataset(path, taxonomy, tokenizer, on_bad_row="drop")) == 1


def test_bad_rows_of_a_stream_are_refused_or_dropped(taxonomy, tokenizer, caplog):
    rows = [GOOD[0], {"text": "stars", "labels": [["nowhere"]]}, GOOD[1]]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(BadRowsError, match=r"dataset\[1\]: Unknown label 'nowhere'"):
        list(encode_dataset(stream, taxonomy, tokenizer))
    with caplog.at_level("WARNING", logger="hcal_hf.data.encoding"):
        kept = list(encode_dataset(stream, taxonomy, tokenizer, on_bad_row="drop"))
    assert [[taxonomy.labels[i] for i in row["labels"]] for row in kept] == NODES[:2]
    assert "1 bad rows left out, first: [1] Unknown label 'nowhere'" in caplog.text


def test_single_path_and_full_paths_are_checked_if_requested(taxonomy, tokenizer, dag):
    two = Dataset.from_dict({"text": ["x"], "labels": [["opera", "poetry"]]})
    encode_dataset(two, taxonomy, tokenizer)
    with pytest.raises(
        BadRowsError, match="one path a document, got 2: 'arts > writing > poetry', 'arts > stage > opera'"
    ):
        encode_dataset(two, taxonomy, tokenizer, label_mode="single_path")
    empty = Dataset.from_dict({"text": ["x", "y"], "labels": [[], ["opera"]]})
    assert encode_dataset(empty, taxonomy, tokenizer, label_mode="multi_path")["labels"][0] == []
    with pytest.raises(BadRowsError, match="got no label"):
        encode_dataset(empty, taxonomy, tokenizer, label_mode="single_path")
    inner = Dataset.from_dict({"text": ["x"], "labels": [["physics"]]})
    with pytest.raises(BadRowsError, match="the path to 'physics' ends at an inner node"):
        encode_dataset(inner, taxonomy, tokenizer, partial_paths=False)
    with pytest.raises(ValueError, match="2 parents"):
        encode_dataset(inner, dag, tokenizer, label_mode="single_path")


@pytest.mark.parametrize("make", [random_forest, random_dag])
@pytest.mark.parametrize("label_mode", ["single_path", "multi_path"])
@pytest.mark.parametrize("partial_paths", [True, False])
def test_the_check_of_encoded_rows_matches_a_slow_reference(make, label_mode, partial_paths):
    rng = np.random.default_rng(0)
    taxonomy = make(rng, 30)
    rows = [taxonomy.complete(rng.choice(30, size=rng.integers(0, 3))).tolist() for _ in range(200)]

    def is_bad(nodes):
        if label_mode == "single_path" and [taxonomy.depths[n] for n in nodes] != list(range(max(len(nodes), 1))):
            return True
        inner = {p for n in nodes for p in taxonomy.parents(n)}
        return not partial_paths and any(n not in inner and not taxonomy.is_leaf[n] for n in nodes)

    table = Dataset.from_dict({"labels": rows})
    shuffled = table.select(range(199, -1, -1))  # a view with permuted rows
    for data, expected in ((table, [*map(is_bad, rows)]), (shuffled, [*map(is_bad, rows[::-1])])):
        found = []
        try:
            check_encoded(data, taxonomy, label_mode, partial_paths)
        except BadRowsError as error:
            found = [row for _, row, _ in error.rows]
        assert found == np.flatnonzero(expected).tolist()
    assert any(map(is_bad, rows)) or (label_mode == "multi_path" and partial_paths)


def test_reading_labels_of_a_shuffled_table_reads_no_other_column(monkeypatch):
    table = Dataset.from_dict({"text": ["x"] * 50, "labels": [[i % 7] for i in range(50)]})
    rows = np.random.default_rng(0).permutation(50)
    columns = []
    monkeypatch.setattr(
        "datasets.arrow_dataset.query_table",
        lambda table, *args, **kwargs: columns.append(table.column_names) or query_table(table, *args, **kwargs),
    )
    sizes, nodes = label_column(table.select(rows))
    assert sizes.tolist() == [1] * 50
    assert nodes.tolist() == (rows % 7).tolist()
    assert columns == [["labels"]]


def test_the_labels_column_keeps_its_type_if_all_rows_are_empty(taxonomy, tokenizer):
    encoded = encode_dataset(Dataset.from_dict({"text": ["a"] * 3, "labels": [[], [], []]}), taxonomy, tokenizer)
    assert encoded.features["labels"].feature.dtype == "int64"


def test_tables_without_labels_are_encoded_and_wrong_columns_refused(taxonomy, tokenizer):
    table = Dataset.from_dict({"body": ["stars"]})
    assert "labels" not in encode_dataset(table, taxonomy, tokenizer, text="body", labels=None).column_names
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are \['body'\]"):
        encode_dataset(table, taxonomy, tokenizer)
    with pytest.raises(ValueError, match=r"got list\. Use datasets"):
        encode_dataset(GOOD, taxonomy, tokenizer)
    with pytest.raises(ValueError, match="'skip'"):
        encode_dataset(table, taxonomy, tokenizer, on_bad_row="skip")


def test_encoding_is_cached_by_content(taxonomy, tokenizer, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in GOOD), encoding="utf-8")
    table = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))["train"]
    first, second = (encode_dataset(table, taxonomy, tokenizer) for _ in range(2))
    assert first._fingerprint == second._fingerprint
    other = Taxonomy.from_paths([*NODES, ["science", "new"]])
    assert encode_dataset(table, other, tokenizer)._fingerprint != first._fingerprint


@pytest.mark.parametrize("targets", ["multi_hot", "indices"])
def test_collator_pads_and_builds_targets(taxonomy, tokenizer, targets):
    encoded = encode_dataset(Dataset.from_list(GOOD), taxonomy, tokenizer)
    batch = HcalDataCollator(tokenizer, taxonomy, "single_path", targets=targets)([encoded[i] for i in range(3)])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 3)
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 0]]
    if targets == "multi_hot":
        assert batch["labels"].dtype == torch.float32
        expected = [[float(node in row) for node in range(13)] for row in encoded["labels"]]
        assert batch["labels"].tolist() == expected
    else:
        assert batch["labels"].tolist() == list(encoded["labels"])
    assert HcalDataCollator(tokenizer, taxonomy, pad_to_multiple_of=8)([encoded[1]])["input_ids"].shape == (1, 8)


def test_collator_pads_labels_of_different_lengths(taxonomy, tokenizer):
    rows = [{"input_ids": [1, 2], "labels": []}, {"input_ids": [1], "labels": [0, 2]}]
    collate = HcalDataCollator(tokenizer, taxonomy, "multi_path", targets="indices")
    assert collate(rows)["labels"].tolist() == [[-100, -100], [0, 2]]
    assert collate(rows[:1])["labels"].tolist() == [[-100]]
    assert "labels" not in collate([{"input_ids": [1, 2]}])


def test_collator_refuses_several_paths_and_a_missing_tokenizer(taxonomy, tokenizer):
    collate = HcalDataCollator(tokenizer, taxonomy, "single_path")
    with pytest.raises(ValueError, match="one path a document, got 2"):
        collate([{"input_ids": [1], "labels": [0, 1]}])
    with pytest.raises(ValueError, match="got no label"):
        collate([{"input_ids": [1], "labels": []}])
    with pytest.raises(ValueError, match="pass processing_class=tokenizer"):
        HcalDataCollator(None, taxonomy)([{"input_ids": [1], "labels": [0]}])
    batch = HcalDataCollator(None, taxonomy)([{"pooled_states": [1.0, 2.0], "labels": [0]}])
    assert batch["pooled_states"].tolist() == [[1.0, 2.0]]


def test_many_labels_are_batched_as_indices(tokenizer):
    wide = Taxonomy.from_edges([("root", f"leaf {i}") for i in range(5000)])
    batch = HcalDataCollator(tokenizer, wide)([{"input_ids": [1], "labels": np.array([0, 4000])}])
    assert batch["labels"].tolist() == [[0, 4000]]


def test_repeated_labels_are_parsed_once_and_the_cache_does_not_change_the_fingerprint(
    taxonomy, tokenizer, monkeypatch
):
    encoder = RowEncoder(taxonomy, tokenizer, ["text"], LabelReader("labels"), None, True, 16)
    before = Hasher.hash(encoder)
    reads, read = [], encoder._read_labels
    monkeypatch.setattr(encoder, "_read_labels", lambda cells: reads.append(cells) or read(cells), raising=False)
    leaf, other = taxonomy.labels[-1], taxonomy.labels[-2]
    path = taxonomy.paths(taxonomy.num_labels - 1)[0]
    given = [[leaf], [path], [leaf], [other], [path], leaf, [leaf, other], [np.array(path)], ["nothing"], ["nothing"]]
    found = encoder({"text": ["a"] * len(given), "labels": given})
    leaves = [[leaf], [leaf], [leaf], [other], [leaf], [leaf], [leaf, other], [leaf]]
    assert found["labels"][:8] == [taxonomy.encode(labels).tolist() for labels in leaves]
    assert len(reads) == 7  # the unknown label twice, because errors are not cached
    monkeypatch.undo()
    assert Hasher.hash(encoder) == before


def test_a_bool_equal_to_a_cached_label_is_still_refused():
    encoder = RowEncoder(Taxonomy.from_edges([], roots=["1"]), None, ["text"], LabelReader("labels"), None, True, 16)
    problems = [None, None, None]
    rows, completed, _ = encoder.encode_labels([[1, 1.0, True]], problems)
    assert (rows, completed.tolist(), problems[:2]) == ([[0], [0], []], [0, 0, 0], [None, None])
    assert "got True of type bool" in problems[2]


@pytest.mark.parametrize("make", [random_forest, random_dag])
def test_looking_up_all_rows_at_once_equals_parsing_each_row(make, tokenizer):
    """Lists of plain labels are looked up together. If one row has another form, every row is parsed."""
    rng = np.random.default_rng(0)
    taxonomy = make(rng, 60)
    given = [[taxonomy.labels[i] for i in rng.integers(60, size=rng.integers(4))] for _ in range(200)]
    for rows in (given, [*given, taxonomy.labels[3]]):
        encoder = RowEncoder(taxonomy, tokenizer, ["text"], LabelReader("labels"), None, True, 16)
        problems = [None] * len(rows)
        found, completed, _ = encoder.encode_labels([rows], problems)
        named = [{taxonomy.index(label) for label in ([row] if isinstance(row, str) else row)} for row in rows]
        assert found == [taxonomy.complete(nodes).tolist() for nodes in named]
        assert completed.tolist() == [len(row) - len(nodes) for row, nodes in zip(found, named)]
        assert problems == [None] * len(rows)


def test_a_list_that_may_be_labels_or_a_path_is_refused_as_ambiguous(tokenizer):
    taxonomy = Taxonomy.from_paths([["Other"], ["Books", "Other"]])
    encoder = RowEncoder(taxonomy, tokenizer, ["text"], LabelReader("labels"), None, True, 16)
    problems = [None, None]
    rows, _, _ = encoder.encode_labels([[["Books"], ["Books", "Other"]]], problems)
    assert (rows, problems[0]) == ([[taxonomy.index("Books")], []], None)
    assert "can be read as 2 labels or as one path" in problems[1]


def test_a_stream_without_rows_is_named(taxonomy, tokenizer):
    stream = IterableDataset.from_generator(lambda: iter(()))
    assert stream.column_names is None
    with pytest.raises(ValueError, match="train is a stream without rows: check its source"):
        encode_dataset(stream, taxonomy, tokenizer)
    features = Dataset.from_dict({"text": ["a"], "labels": ["astronomy"]}).features
    known = IterableDataset.from_generator(lambda: iter(()), features=features)
    assert list(encode_dataset(known, taxonomy, tokenizer)) == []
