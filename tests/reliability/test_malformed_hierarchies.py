"""Malformed, very deep and very large hierarchies give a clear error or an answer in bounded time."""

import gzip
import json
import logging
import zipfile

import pytest

from hcal_hf import Taxonomy, read_table, read_taxonomy
from hcal_hf.commands import main as cli
from hcal_hf.data.compressed import LIMIT_VARIABLE, check_zip, decompressed_limit, open_bytes

DEPTH = 3000


@pytest.fixture(scope="module")
def chain():
    return Taxonomy.from_edges([(f"n{i}", f"n{i + 1}") for i in range(DEPTH - 1)])


@pytest.fixture(scope="module")
def ladder():
    """A DAG with 2^40 paths: each level has two nodes, which are children of both nodes above."""
    return Taxonomy.from_edges(
        [(f"{a}{i}", f"{b}{i + 1}") for i in range(40) for a in "xy" for b in "xy"] + [("x40", "end"), ("y40", "end")]
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Taxonomy.from_paths([{"a": 1}]), "A path must be a sequence of names, got {'a': 1} of type dict"),
        (lambda: Taxonomy.from_paths([{"a"}]), "of type set"),
        (
            lambda: Taxonomy.from_edges([("a", "b")], roots="xyz"),
            r"roots must be a list of strings, got the text 'xyz'",
        ),
        (lambda: Taxonomy.from_edges([{"a": 1, "b": 2}]), r"An edge must be a \(parent, child\) pair"),
        (lambda: Taxonomy("ab", [[0, 1]]), "labels must be a list of strings, got the text 'ab'"),
        (lambda: Taxonomy({"a": 1}), "labels must be a list of strings, got the object"),
        (lambda: Taxonomy(["a", "b"], [[0.0, 1.0]]), "Edges must be pairs of whole numbers"),
        (lambda: Taxonomy(["a", "b"], [["0", "1"]]), "Edges must be pairs of whole numbers"),
        (lambda: Taxonomy(["a", "b"], [[False, True]]), "Edges must be pairs of whole numbers"),
        (lambda: Taxonomy(["a", "b"], [0, 1]), "Edges must be pairs of whole numbers"),
        (lambda: Taxonomy(["a", "b"], [[0, 1], [0]]), "Edges must be pairs of whole numbers"),
        (lambda: Taxonomy(["a"]).decode([-1]), "Node -1 is outside the 1 labels"),
        (lambda: Taxonomy(["a"]).decode([0.5]), "A node must be a whole number, got 0.5 of type float"),
        (lambda: Taxonomy(["a"]).complete([0.0]), "A node must be a whole number, got 0.0"),
        (lambda: Taxonomy(["a"]).paths(-1), "Node -1 is outside"),
    ],
)
def test_wrong_kinds_of_values_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "is not JSON"),
        (b"\x80\x03", "is not a text file in UTF-8"),
        (b'{"labels": "abc"}', "labels must be a list of strings, got the text 'abc'"),
        (b'{"labels": {"a": 1}}', "labels must be a list of strings, got the object"),
        (b'{"edges": ["ac", "bd"]}', r"An edge must be a \(parent, child\) pair of labels, got 'ac'"),
        (b'{"labels": ["a", "b"], "edges": [[0.5, 1]]}', "Edges must be pairs of whole numbers"),
        (b'{"labels": ["a"], "paths": [["b"]]}', "has 'labels' and 'paths', which are different forms"),
        (b'{"paths": [["a"]], "paths": [["b"]]}', "has the key 'paths' more than once"),
        (b"[" * 5000 + b"]" * 5000, "is nested deeper than the JSON reader of Python allows"),
        (b'{"labels": ' + b"[" * 5000 + b"]" * 5000 + b"}", "is nested deeper"),
    ],
)
def test_malformed_json_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "taxonomy.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        Taxonomy.from_json(path)
    assert "taxonomy.json" in str(refused.value) or "must be" in str(refused.value)
    # `hcal taxonomy check` reads an object without a known form as nested names.
    assert cli.main(["taxonomy", "check", str(path)]) == (0 if content == b'{"labels": "abc"}' else 1)


def test_folders_missing_files_and_byte_order_marks(tmp_path):
    with pytest.raises(ValueError, match="is a folder: give a file"):
        Taxonomy.from_json(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        Taxonomy.from_json(tmp_path / "missing.json")
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"paths": [["a", "b"]]}')
    assert Taxonomy.from_json(tmp_path / "a.json").labels == ("a", "b")


def test_hierarchies_deeper_than_the_recursion_limit(chain, tmp_path):
    (path,) = chain.paths(DEPTH - 1)
    assert path == [f"n{i}" for i in range(DEPTH)]
    assert chain.decode(range(DEPTH)) == [path]
    assert chain.encode([path]).tolist() == list(range(DEPTH))
    chain.to_json(tmp_path / "chain.json")
    assert Taxonomy.from_json(tmp_path / "chain.json") == chain
    (tmp_path / "chain.txt").write_text(" > ".join(path) + "\n", encoding="utf-8")
    assert read_taxonomy(tmp_path / "chain.txt") == chain


def test_paths_of_a_dag_are_enumerated_lazily_in_order(ladder, caplog):
    end = ladder.index("end")
    first, second = ladder.paths(end, limit=2)
    assert first == [*(f"x{i}" for i in range(41)), "end"]
    assert second == ["y0", *(f"x{i}" for i in range(1, 41)), "end"]
    with caplog.at_level(logging.WARNING, logger="hcal_hf.taxonomy"):
        paths = ladder.decode(ladder.complete([end]))
    assert len(paths) == len({tuple(path) for path in paths}) == 1000
    assert "'end' has more than 1,000 paths from a root: only these are returned." in caplog.text
    assert len(ladder.decode([end], limit=3)) == 3


# ---- Compressed files ----


def test_a_small_file_that_decompresses_to_too_much_is_refused(tmp_path, monkeypatch):
    line = json.dumps({"text": "a", "labels": "b"}) + "\n"
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(line.encode() * 10_000))
    assert len(read_table(path)) == 10_000
    monkeypatch.setenv(LIMIT_VARIABLE, "100000")
    message = r"bomb.jsonl.gz has [\d,]+ bytes and decompresses to more than 100,000, .* HCAL_MAX_DECOMPRESSED_BYTES"
    with pytest.raises(ValueError, match=message):
        read_table(path)
    with pytest.raises(ValueError, match=message):
        read_taxonomy(path)
    assert cli.main(["taxonomy", "check", str(path)]) == 1
    monkeypatch.setenv(LIMIT_VARIABLE, str(len(line) * 10_000))
    assert len(read_table(path)) == 10_000


def test_the_limit_is_two_gib_or_200_times_the_size(tmp_path, monkeypatch):
    path = tmp_path / "a.gz"
    path.write_bytes(b"1234")
    assert decompressed_limit(path) == 2 * 2**30
    monkeypatch.setattr("hcal_hf.data.compressed.MOST_BYTES", 5)
    assert decompressed_limit(path) == 800
    monkeypatch.setenv(LIMIT_VARIABLE, "2 GB")
    with pytest.raises(ValueError, match="must be a whole number of bytes above 0, got '2 GB'"):
        decompressed_limit(path)


def test_reading_stops_at_the_limit_and_not_after_it(tmp_path, monkeypatch):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(10_000_000)))
    monkeypatch.setenv(LIMIT_VARIABLE, "1000000")
    sizes = []

    def read():
        with open_bytes(path) as file:
            while chunk := file.read(65536):
                sizes.append(len(chunk))

    with pytest.raises(ValueError, match="decompresses to more than"):
        read()
    assert 0 < sum(sizes) <= 1_000_000
    monkeypatch.setenv(LIMIT_VARIABLE, "10000000")
    with open_bytes(path) as file:
        assert len(file.read()) == 10_000_000


def test_members_of_an_excel_file_count_too(tmp_path, monkeypatch):
    path = tmp_path / "a.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xl/worksheets/sheet1.xml", bytes(100_000))
    monkeypatch.setenv(LIMIT_VARIABLE, "99999")
    with pytest.raises(ValueError, match=r"a\.xlsx has .* decompresses to more than 99,999"):
        check_zip(path)
    with pytest.raises(ValueError, match="decompresses to more than 99,999"):
        read_table(path)
