"""Labels are read from all forms of table cells."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, LargeList, List, Sequence, Value

from hcal_hf import BadRowsError, build_taxonomy, encode_dataset
from hcal_hf.data.labels import LabelReader, parse_list
from hcal_hf.data.rows import class_names

NAMES = ["astronomy", "botany", "opera"]


def read(cell, **options):
    return LabelReader(**options)([cell])


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("A > B", [["A", "B"]]),
        ("A", ["A"]),
        (" A ", ["A"]),
        (3, ["3"]),
        (3.0, ["3"]),
        (np.int64(3), ["3"]),
        (["A", "B"], ["A", "B"]),
        ([["A", "B"], ["C"]], [["A", "B"], ["C"]]),
        (np.array(["A", "B"]), ["A", "B"]),
        ('["A", "B"]', ["A", "B"]),
        ("['A', 'B']", ["A", "B"]),
        ("['A' 'B']", ["A", "B"]),
        ("[['A', 'B'], ['C']]", [["A", "B"], ["C"]]),
        ('[["A", "B"]]', [["A", "B"]]),
        ('["A > B", "C"]', [["A", "B"], "C"]),
        ("[1, 2]", ["1", "2"]),
        ("[]", []),
        ([], []),
        ("[sic] A", ["[sic] A"]),
        ("[A, B]", ["[A, B]"]),
        (None, None),
        ("", None),
        ("  ", None),
        (float("nan"), None),
    ],
)
def test_cells_are_parsed_to_names_paths_and_lists(cell, expected):
    assert read(cell) == expected


def test_a_known_label_that_looks_like_a_list_or_path_is_not_split():
    reader = LabelReader()
    assert reader(["[x]"], known={"[x]"}) == ["[x]"]
    assert reader(["A > B"], known={"A > B"}) == ["A > B"]


def test_empty_cells_are_unlabelled_unless_empty_means_none():
    assert read("", empty_means_none=True) == []
    assert LabelReader(["a", "b"])([None, ""]) is None
    assert LabelReader(["a", "b"], empty_means_none=True)([None, ""]) == []


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["A", "B"], [["A", "B"]]),
        (["A;X", "B;Y"], [["A", "B"], ["X", "Y"]]),
        (["A", "B;C"], [["A", "B"], ["A", "C"]]),
        (["A;X", "B"], [["A", "B"], ["X", "B"]]),
        (["A; X", ""], [["A"], ["X"]]),
        (["A;A", "B;B"], [["A", "B"]]),
    ],
)
def test_several_labels_in_one_column_per_level_are_paired(cells, expected):
    assert LabelReader(["l1", "l2"], delimiter=";")(cells) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([["A", "X"], ["B", None]], [["A", "B"], ["X"]]),
        ([["A", "X"], '[null, "Y"]', None], [["A"], ["X", "Y"]]),
        ([["A", "X"], [None, None]], [["A"], ["X"]]),
        ([["A"], ["B"], []], [["A", "B"]]),
        ([[], []], []),
        ([[], None], []),
        (["[]", ""], []),
        ([None, ""], None),
    ],
)
def test_lists_in_one_column_per_level_may_end_at_different_levels(cells, expected):
    assert LabelReader(["l1", "l2", "l3"][: len(cells)])(cells) == expected


@pytest.mark.parametrize("cells", [[["A", None], ["B", "Y"]], [["A", "X"], [None, None], ["C", "Z"]]])
def test_a_path_in_lists_without_a_level_above_is_refused(cells):
    with pytest.raises(ValueError, match=r"a path in the columns has no label in 'l[12]'"):
        LabelReader(["l1", "l2", "l3"][: len(cells)])(cells)


def test_labels_that_cannot_be_paired_are_refused_with_their_rows(tokenizer):
    table = Dataset.from_dict({"text": ["a", "b"], "l1": ["A", "A;X"], "l2": ["B", "B;C;D"]})
    with pytest.raises(BadRowsError, match=r"dataset\[1\]: the numbers of labels .*'l1': 2, 'l2': 3"):
        build_taxonomy(table, ["l1", "l2"], delimiter=";")


@pytest.mark.parametrize(
    "feature",
    [
        List(ClassLabel(names=NAMES)),
        LargeList(ClassLabel(names=NAMES)),
        Sequence(ClassLabel(names=NAMES)),
        List(List(ClassLabel(names=NAMES))),
    ],
    ids=["List", "LargeList", "Sequence", "nested"],
)
def test_class_labels_in_lists_are_read_as_their_names(taxonomy, tokenizer, feature):
    nested = isinstance(feature, List) and isinstance(feature.feature, List)
    cells = [[["arts", "stage"]]] if nested else [[0, 2], [1]]
    if nested:
        feature = List(List(ClassLabel(names=["arts", "stage"])))
    table = Dataset.from_dict(
        {"text": ["a"] * len(cells), "labels": cells}, Features(text=Value("string"), labels=feature)
    )
    assert class_names(table, ["labels"])
    expected = [["arts", "stage"]] if nested else [["astronomy", "opera"], ["botany"]]
    for data in (DatasetDict(train=table)["train"], table.to_iterable_dataset()):
        encoded = list(encode_dataset(data, taxonomy, tokenizer, label_mode="multi_path"))
        nodes = [[taxonomy.labels[i] for i in row["labels"]] for row in encoded]
        assert [set(row) >= set(names) for row, names in zip(nodes, expected)] == [True] * len(cells)


def test_class_label_minus_one_means_unlabelled(taxonomy, tokenizer, caplog):
    features = Features(text=Value("string"), labels=ClassLabel(names=NAMES))
    table = Dataset.from_dict({"text": ["a", "b", "c"], "labels": [0, -1, 2]}, features)
    with caplog.at_level("WARNING", logger="hcal_hf.data.encoding"):
        encoded = encode_dataset(table, taxonomy, tokenizer)
    assert [taxonomy.labels[row[-1]] for row in encoded["labels"]] == ["astronomy", "opera"]
    assert "1 unlabelled rows left out" in caplog.text
    assert set(build_taxonomy(table).labels) == {"astronomy", "opera"}
    with pytest.raises(ValueError, match="classes 0 to 2"):
        LabelReader(class_names={"labels": NAMES})([7])


def test_lists_written_by_pandas_are_parsed(tokenizer, tmp_path):
    (tmp_path / "a.csv").write_text("text,labels\na,\"[['A', 'B'], ['A', 'C']]\"\nb,\"[['D']]\"\n", encoding="utf-8")
    assert build_taxonomy(tmp_path / "a.csv").labels == ("A", "D", "B", "C")


@pytest.mark.parametrize("text", ["[", "[1", "x]", "{'a': 1}", "[" * 100_000 + "]" * 100_000])
def test_text_that_is_not_a_list_is_not_parsed_as_one(text):
    assert parse_list(text) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": []}, "the list of columns is empty"),
        ({"delimiter": ""}, "delimiter must be a visible text"),
        ({"separator": " "}, "separator must be a visible text"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LabelReader(**options)


@pytest.mark.parametrize("cell", [{"a": 1}, 1.5, ["A", None], [True]])
def test_cells_that_are_not_labels_are_refused(cell):
    with pytest.raises(ValueError, match="label"):
        read(cell)
