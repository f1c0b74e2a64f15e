"""The metrics as modules of the library evaluate."""

import ast
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from hcal_hf.metrics import violation_rates
from tests.metrics.test_metrics import METRICS, as_form, random_sets, random_taxonomy, slow_violation_rates

HVR_ARGS = {"edges": [[0, 1], [0, 2], [1, 3]], "num_labels": 4}


@pytest.fixture
def offline(monkeypatch):
    evaluate = pytest.importorskip("evaluate")

    def refuse(*args, **kwargs):
        raise AssertionError("network access")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return evaluate


def load_hvr(evaluate, how, cache_dir):
    if how == "path":
        return evaluate.load(str(METRICS / "hvr"), cache_dir=str(cache_dir))
    from hcal_hf.metrics.hvr.hvr import HVR

    return HVR(cache_dir=str(cache_dir))


@pytest.mark.parametrize("how", ["class", "path"])
def test_evaluate_module_gives_the_rates_of_the_function(offline, how, tmp_path):
    hvr = load_hvr(offline, how, tmp_path)
    assert set(hvr.features) == {"predictions"}
    rng = np.random.default_rng(0)
    taxonomy = random_taxonomy(rng, 10, 2)
    sets = random_sets(rng, taxonomy, 100)
    args = {"edges": taxonomy.edges.tolist(), "num_labels": 10}
    scores = rng.random((100, 10))
    for form in ("lists", "arrays"):
        rates = hvr.compute(predictions=as_form(sets, 10, form), **args)
        assert rates == slow_violation_rates(sets, taxonomy)
        assert rates == violation_rates(sets, taxonomy)
    assert hvr.compute(predictions=sets, scores=scores, **args) == slow_violation_rates(sets, taxonomy, scores)
    assert hvr.compute(predictions=[[0], [3]], depths=[0, 1, 1, 3], **HVR_ARGS)["hvr_level"] == [0.0, 0.0, 0.0, 0.5]
    zero = {"hvr": 0.0, "hvr_node": 0.0, "hvr_level": [0.0, 0.0, 0.0], "inconsistent_labels": 0.0}
    assert hvr.compute(predictions=[], **HVR_ARGS) == zero
    assert hvr.compute(predictions=[[], []], **HVR_ARGS)["hvr"] == 0.0


@pytest.mark.parametrize("how", ["class", "path"])
def test_two_instances_of_the_evaluate_module_can_be_used_at_the_same_time(offline, how, tmp_path):
    first, second = (load_hvr(offline, how, tmp_path) for _ in range(2))
    first.add_batch(predictions=[[1], [0]])
    second.add_batch(predictions=[[0, 1]])
    first.add(prediction=[0, 1, 3])
    second.add(prediction=[3])
    first.add(predictions=[2])  # the form in the documentation of evaluate
    locked = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert locked == []  # with a cache file, the second instance would wait for the lock of the first
    assert second.compute(**HVR_ARGS)["hvr"] == 1 / 2
    assert first.compute(**HVR_ARGS)["hvr"] == 2 / 4
    assert second.compute(predictions=[[0]], **HVR_ARGS)["hvr"] == 0.0


@pytest.mark.parametrize("how", ["class", "path"])
def test_evaluate_module_refuses_floats_and_bools_that_would_be_truncated(offline, how, tmp_path):
    hvr = load_hvr(offline, how, tmp_path)
    for bad in ([[0.7, 1]], [[True, False]], [np.array([0.2, 0.9])]):
        with pytest.raises(ValueError, match=r"predictions\[0\] is .*integer node ids"):
            hvr.compute(predictions=bad, **HVR_ARGS)
        with pytest.raises(ValueError, match=r"predictions\[0\] is .*integer node ids"):
            hvr.add_batch(predictions=bad)
        with pytest.raises(ValueError, match=r"predictions\[0\] is .*integer node ids"):
            hvr.add(prediction=bad[0])
        with pytest.raises(ValueError, match=r"predictions\[0\] is .*integer node ids"):
            hvr.add(predictions=bad[0])
    for bad in (np.eye(4, dtype=bool), np.eye(4, dtype=int)):
        with pytest.raises(ValueError, match=r"array of shape \(4, 4\); allowed: one list of node ids per document"):
            hvr.compute(predictions=bad, **HVR_ARGS)
    with pytest.raises(ValueError, match=r"predictions\[1\] holds node id 4; allowed: 0 to 3"):
        hvr.compute(predictions=[[0], [4]], **HVR_ARGS)
    assert hvr.compute(predictions=[[1]], **HVR_ARGS)["hvr"] == 1.0  # the refused calls added nothing


@pytest.mark.parametrize("how", ["class", "path"])
def test_evaluate_module_reports_missing_arguments(offline, how, tmp_path):
    hvr = load_hvr(offline, how, tmp_path)
    with pytest.raises(ValueError, match="no predictions"):
        hvr.compute(**HVR_ARGS)
    hvr.add_batch(predictions=[[1]])
    with pytest.raises(ValueError, match="HVR needs edges and num_labels: compute"):
        hvr.compute()
    with pytest.raises(ValueError, match="HVR needs num_labels: compute"):
        hvr.compute(edges=[])
    with pytest.raises(ValueError, match="predictions is None; allowed: a sequence"):
        hvr.add_batch()
    assert hvr.compute(**HVR_ARGS)["hvr"] == 1.0  # the batch was kept


# Imports


def test_the_hvr_folder_imports_only_itself_and_allowed_packages():
    allowed = {*sys.stdlib_module_names, "numpy", "datasets", "evaluate"}
    files = sorted((METRICS / "hvr").rglob("*.py"))
    assert [file.name for file in files] == ["__init__.py", "hvr.py", "label_sets.py", "violations.py"]
    siblings = {"hvr.py": {"label_sets", "violations"}, "violations.py": {"label_sets"}}
    for file in files:
        found = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, file
                found.add(node.module)
                if file.name == "hvr.py":
                    assert node.lineno == node.end_lineno  # evaluate parses imports line by line
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed, file
        # evaluate copies only the files that hvr.py imports directly.
        assert found == siblings.get(file.name, set())


@pytest.mark.slow
def test_numpy_functions_import_neither_evaluate_nor_torch():
    # Imported as the top-level package `metrics`, so that hcal_hf/__init__.py does not run.
    code = "import sys, metrics, metrics.hvr.violations; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    env = {**os.environ, "PYTHONPATH": str(METRICS.parent)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert {"evaluate", "datasets", "torch", "transformers", "hcal_hf", "pandas"}.isdisjoint(run.stdout.split())
