"""Random hierarchies, tables, scores and label sets: the library gives what slow loops give.

`HCAL_FUZZ_CASES` is the number of cases in total. `make test` runs some thousands, `make reliability` a million. hypothesis
draws the hierarchies and tables, and shrinks them after a failure. The documents of an example are drawn with a seed.
"""

import csv
import json

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hcal_hf import Taxonomy, classification_scores, decode, hierarchical_scores, read_table, violation_rates
from hcal_hf.data.labels import LabelReader
from hcal_hf.data.tables import UNREADABLE, TableFile
from tests.metrics.test_hierarchical_f1 import slow_hierarchical_scores
from tests.metrics.test_metrics import slow_classification_scores, slow_violation_rates
from tests.reliability.counted import CASES, counted
from tests.test_decoding import slow_expected_f1

DOCUMENTS = 50
SHARES = {
    "decoders": 0.61,
    "taxonomy": 0.25,
    "tables": 0.1,
    "label cells": 0.02,
    "metrics": 0.01,
    "damaged files": 0.01,
}


def fuzz(area, cases_per_example=1):
    """Runs a test on as many examples as the share of its area needs, without a database of earlier failures."""
    number = max(int(CASES * SHARES[area]) // cases_per_example, 4)
    return settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=CASES < 10_000,  # the same examples in each run of `make test`
        suppress_health_check=list(HealthCheck),
    )


# ---- Strategies ----

NAME = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=8).map(
    lambda text: text.strip().replace(" > ", "-")
)
NAMES = st.lists(NAME.filter(bool), min_size=1, max_size=14, unique=True)


@st.composite
def hierarchies(draw, most_parents=3):
    """Draws a forest or a DAG with names of any characters, as (parent, child) pairs and roots."""
    names = draw(NAMES)
    edges = []
    for child in range(1, len(names)):
        parents = draw(st.sets(st.integers(0, child - 1), max_size=most_parents))
        edges += [(names[parent], names[child]) for parent in sorted(parents)]
    children = {child for _, child in edges}
    return Taxonomy.from_edges(edges, roots=[name for name in names if name not in children])


SEEDS = st.integers(0, 2**32 - 1)


def slow_ancestors(taxonomy, node):
    found, waiting = {node}, [node]
    while waiting:
        child = waiting.pop()
        for parent, below in taxonomy.edges.tolist():
            if below == child and parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def ancestor_sets(taxonomy):
    return [slow_ancestors(taxonomy, node) for node in range(taxonomy.num_labels)]


# ---- Taxonomy ----


def slow_paths(taxonomy, node):
    parents = sorted(parent for parent, child in taxonomy.edges.tolist() if child == node)
    name = taxonomy.labels[node]
    return [[*path, name] for parent in parents for path in slow_paths(taxonomy, parent)] or [[name]]


def test_taxonomies_equal_loops():
    with counted("taxonomy", "a set of nodes") as count:

        @fuzz("taxonomy", DOCUMENTS)
        @given(hierarchies(), SEEDS)
        def check(taxonomy, seed):
            size = taxonomy.num_labels
            above = ancestor_sets(taxonomy)
            for node in range(size):
                parents = [parent for parent, child in taxonomy.edges.tolist() if child == node]
                assert taxonomy.depths[node] == max((taxonomy.depths[p] + 1 for p in parents), default=0)
                assert sorted(taxonomy.paths(node, limit=None)) == sorted(slow_paths(taxonomy, node))
            assert Taxonomy(taxonomy.labels, taxonomy.edges) == taxonomy
            rng = np.random.default_rng(seed)
            rows, nodes, expected = [], [], []
            for row in range(DOCUMENTS):
                chosen = rng.choice(size, size=int(rng.integers(0, min(size, 4) + 1)), replace=False).tolist()
                complete = set().union(*(above[node] for node in chosen))
                expected.append(complete)
                assert taxonomy.complete(chosen).tolist() == sorted(complete)
                paths = taxonomy.decode(sorted(complete), limit=None)
                assert {step for path in paths for step in path} == {taxonomy.labels[node] for node in complete}
                if complete:
                    assert taxonomy.encode(paths).tolist() == sorted(complete)
                rows += [row] * len(chosen)
                nodes += chosen
                count.cases += 1
            found = [set() for _ in range(DOCUMENTS)]
            for row, node in zip(*taxonomy.complete_rows(np.array(rows, int), np.array(nodes, int))):
                found[row].add(int(node))
            assert found == expected

        check()


# ---- Tables ----

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_tables_are_read_as_they_were_written(ending, tmp_path):
    path = tmp_path / f"table.{ending}"
    with counted("tables", f"a row of a .{ending} file") as count:

        @fuzz("tables", 3 * 4)
        @given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=16))
        def check(rows):
            names = ("text", "a", "b")
            with path.open("w", encoding="utf-8", newline="") as file:
                if ending == "jsonl":
                    file.writelines(json.dumps(dict(zip(names, row)), ensure_ascii=False) + "\n" for row in rows)
                else:
                    writer = csv.writer(file, delimiter="\t" if ending == "tsv" else ",", quoting=csv.QUOTE_ALL)
                    writer.writerows([names, *rows])
            table = TableFile(path, encoding="utf-8")
            read = list(table.rows(names))
            assert len(read) == len(rows)
            for found, expected in zip(read, rows):
                assert found.problem is None, found.problem
                assert [cell or "" for cell in found.cells] == list(expected)
                count.cases += 1

        check()
        if ending == "jsonl":  # the same through `datasets`
            dataset = read_table(path)
            assert dataset[UNREADABLE] == [None] * len(dataset)


def test_label_cells_are_read_in_all_forms():
    step = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=5)
    paths = st.lists(st.lists(step, min_size=1, max_size=3), min_size=1, max_size=4)
    with counted("label cells", "a cell in four forms") as count:

        @fuzz("label cells")
        @given(paths)
        def check(paths):
            reader = LabelReader("labels", ">", ";")
            forms = [paths, json.dumps(paths), repr(paths), " ; ".join(" > ".join(path) for path in paths)]
            for form in forms:
                found = [path if isinstance(path, list) else [path] for path in reader([form])]
                assert [list(map(str, path)) for path in found] == paths, form
            count.cases += 1

        check()


def test_damaged_files_are_read_or_refused_by_name(tmp_path):
    """Any bytes under any ending give a table or a ValueError that names the file."""
    with counted("damaged files", "a file of random or damaged bytes") as count:
        good = b'text,labels\n"a, b",science > physics\nc,arts\n'
        pieces = st.sampled_from(
            [good, b'{"text": "a", "labels": ["b"]}\n', b"a > b\n\tc\n", b"PK\x03\x04", b"\x1f\x8b\x08"]
        )

        @fuzz("damaged files")
        @given(
            st.lists(st.one_of(pieces, st.binary(max_size=20)), max_size=4).map(b"".join),
            st.sampled_from(["csv", "tsv", "jsonl", "json", "txt", "xlsx", "parquet", "arrow", "csv.gz", "jsonl.gz"]),
        )
        def check(content, ending):
            path = tmp_path / f"t.{ending}"
            path.write_bytes(content)
            refusal = None
            try:
                table = TableFile(path)
                names = [name for name in table.columns if name]
                for row in table.rows(names):
                    assert row.problem or len(row.cells) == len(names)
            except ValueError as problem:
                refusal = str(problem)
            assert refusal is None or path.name in refusal, refusal
            count.cases += 1

        check()


# ---- Decoders ----


def best_end(values, above, ends):
    return above[max(ends, key=lambda node: values[node])]


def test_decoders_equal_loops():
    with counted("decoders", "a document and a decoder") as count:

        @fuzz("decoders", 7 * DOCUMENTS)
        @given(hierarchies(), SEEDS, st.sampled_from([0.1, 0.5, 0.9]))
        def check(taxonomy, seed, threshold):
            generator = torch.Generator().manual_seed(seed)
            size = taxonomy.num_labels
            logits = 2 * torch.randn(DOCUMENTS, size, generator=generator, dtype=torch.float64) - 0.5
            logs = torch.nn.functional.logsigmoid(logits).tolist()
            probabilities = torch.sigmoid(logits).tolist()
            above = ancestor_sets(taxonomy)
            lowest = np.log(threshold)
            expected = {
                name: [] for name in ("raw", "closure", "prune", "top_down", "expected_f1", "risk", "path", "one")
            }
            for row, p in zip(logs, probabilities):
                passing = {node for node in range(size) if row[node] >= lowest}
                kept = {node for node in passing if above[node] <= passing}
                lowered = [min(row[a] for a in above[node]) for node in range(size)]
                expected["raw"].append(passing)
                expected["closure"].append(set().union(*(above[node] for node in passing)))
                expected["prune"].append(kept)
                expected["top_down"].append(kept)
                expected["expected_f1"].append(slow_expected_f1(p, taxonomy))
                expected["risk"].append({node for node in range(size) if lowered[node] >= lowest})
            found = {
                name: decode(logits, taxonomy, "multi_path", name, threshold)
                for name in ("raw", "closure", "prune", "top_down")
            }
            found["expected_f1"] = decode(logits, taxonomy, "multi_path", "expected_f1")
            found["risk"] = decode(logits, taxonomy, "multi_path", "risk", risk_threshold=threshold)
            if taxonomy.is_forest:
                leaves = taxonomy.is_leaf.nonzero()[0].tolist()
                for row in logs:
                    means = [sum(row[a] for a in above[node]) / len(above[node]) for node in range(size)]
                    expected["path"].append(best_end(means, above, leaves))
                    expected["one"].append(best_end(means, above, range(size)))
                found["path"] = decode(logits, taxonomy, "single_path", "path")
                found["one"] = decode(logits, taxonomy, "single_path", "path", partial_paths=True)
            for name, sets in found.items():
                as_sets = [set(row.nonzero()[:, 0].tolist()) for row in sets]
                assert as_sets == expected[name], name
                count.cases += DOCUMENTS

        check()


# ---- Metrics ----


class WithParents:
    """A taxonomy with the parents of each node, as the slow loops of metrics need it."""

    def __init__(self, taxonomy):
        self.edges, self.depths, self.num_labels = taxonomy.edges, taxonomy.depths, taxonomy.num_labels
        self.parents = {node: [] for node in range(self.num_labels)}
        for parent, child in self.edges.tolist():
            self.parents[child].append(parent)


def test_metrics_equal_loops():
    with counted("metrics", "all metrics of a few documents") as count:

        @fuzz("metrics")
        @given(hierarchies(), SEEDS, st.integers(0, 8), st.booleans())
        def check(taxonomy, seed, documents, as_matrix):
            rng = np.random.default_rng(seed)
            size = taxonomy.num_labels
            predictions, references = rng.random((2, documents, size)) < rng.choice([0.1, 0.3, 0.7])
            pair = [[set(np.flatnonzero(row).tolist()) for row in sets] for sets in (predictions, references)]
            given_sets = (predictions, references) if as_matrix else [list(map(sorted, sets)) for sets in pair]
            slow = WithParents(taxonomy)
            assert violation_rates(given_sets[0], taxonomy) == slow_violation_rates(pair[0], slow)
            expected = slow_classification_scores(*pair, slow)
            assert classification_scores(*given_sets, taxonomy) == pytest.approx(expected, abs=1e-12)
            expected = slow_hierarchical_scores(*pair, slow, lca=taxonomy.is_forest)
            assert hierarchical_scores(*given_sets, taxonomy) == pytest.approx(expected, abs=1e-12)
            count.cases += 1

        check()


def test_the_shares_of_the_areas_are_all_cases():
    assert sum(SHARES.values()) == pytest.approx(1)
