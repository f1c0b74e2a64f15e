"""Label sets given by names and paths."""

import numpy as np
import pytest

from hcal_hf import Taxonomy
from hcal_hf.metrics import classification_scores, hierarchical_scores, node_sets, violation_rates
from tests.metrics.test_evaluate_modules import load_hvr, offline  # noqa: F401 (a fixture)
from tests.metrics.test_metrics import METRICS

NAMED = [["science", "physics"], ["quantum"], []]
PATHS = [[["science", "physics"]], [["science", "physics", "quantum"], ["arts"]], []]


def ids(taxonomy, rows):
    return [[taxonomy.index(label) for label in row] for row in rows]


def test_names_and_paths_give_the_scores_of_their_ids(taxonomy):
    by_id = ids(taxonomy, NAMED)
    references = ids(taxonomy, [["science", "physics"], ["science", "physics", "quantum", "arts"], []])
    assert node_sets(PATHS, taxonomy) == [sorted(row) for row in references]
    for scores in (classification_scores, hierarchical_scores):
        assert scores(NAMED, PATHS, taxonomy) == scores(by_id, references, taxonomy)
    assert violation_rates(NAMED, taxonomy) == violation_rates(by_id, taxonomy)


def test_a_label_name_does_not_add_its_ancestors(taxonomy):
    assert violation_rates([["quantum"], ["science > physics > quantum"]], taxonomy)["hvr"] == 0.5


def test_arrays_and_ids_stay_as_they_are(taxonomy):
    matrix = np.zeros((2, taxonomy.num_labels), dtype=bool)
    rows = [[0, 1], []]
    assert node_sets(matrix, taxonomy) is matrix
    assert node_sets(rows, taxonomy) is rows


def test_errors_name_the_document(taxonomy):
    with pytest.raises(ValueError, match=r"predictions\[1\].*'quantumm'.*quantum"):
        violation_rates([["physics"], ["quantumm"]], taxonomy)
    with pytest.raises(ValueError, match=r"references\[1\] holds node ids"):
        classification_scores([[0], [1]], [["physics"], [1]], taxonomy)

    class Plain:
        edges, depths, num_labels = np.zeros((0, 2), dtype=int), np.zeros(2, dtype=int), 2

    with pytest.raises(ValueError, match=r"predictions\[0\] is \['a'\]; allowed: a sequence of integer node ids"):
        violation_rates([["a"]], Plain())


def test_evaluate_modules_take_names(offline, tmp_path):  # noqa: F811
    taxonomy = Taxonomy.from_edges([("a", "b"), ("b", "c")])
    edges = [["a", "b"], ["b", "c"]]
    arguments = {"edges": edges, "labels": list(taxonomy.labels)}
    hvr = load_hvr(offline, "path", tmp_path)
    assert hvr.compute(predictions=[["a", "b"], ["c"]], **arguments)["hvr"] == 0.5
    assert hvr.compute(predictions=[[0, 1], [2]], **arguments)["hvr"] == 0.5
    f1 = offline.load(str(METRICS / "hierarchical_f1"), cache_dir=str(tmp_path))
    found = f1.compute(predictions=[["a"]], references=[["a", "b"]], **arguments)
    assert found["hierarchical_recall"] == 0.5
    with pytest.raises(ValueError, match=r"predictions\[0\] holds 'x', which is not in labels"):
        hvr.compute(predictions=[["x"]], **arguments)
    with pytest.raises(ValueError, match="labels holds 'a' twice"):
        hvr.compute(predictions=[["a"]], edges=edges, labels=["a", "b", "a"])
