"""The Ray recipe, on a local Ray cluster."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hcal_hf.commands.predictor import PredictionArguments, Predictor
from hcal_hf.commands.saved_model import load_model
from tests.builders import WORDS, build_model

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="the recipe needs ray: pip install 'hcal-hf[ray]'")
ROOT = Path(__file__).parents[2]
rng = np.random.default_rng(0)
TEXTS = [*(" ".join(rng.choice(WORDS, size=rng.integers(1, 25))) for _ in range(60)), ""]


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "recipes" / "ray" / "predict.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_workers_predict_all_rows_in_order(tmp_path, tokenizer, taxonomy):
    build_model(taxonomy).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for part, start in enumerate(range(0, len(TEXTS), 21)):
        rows = [{"key": i, "body": TEXTS[i]} for i in range(start, min(start + 21, len(TEXTS)))]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts" / f"{part}.parquet")
    out = tmp_path / "out"
    done = run(
        tmp_path / "model",
        tmp_path / "texts",
        out,
        "--text",
        "body",
        "--workers",
        2,
        "--window",
        8,
        "--max_length",
        16,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = pq.read_table(out).sort_by("key")
    expected = Predictor(*load_model(str(tmp_path / "model")), PredictionArguments(max_length=16)).predict(TEXTS)
    assert found["key"].to_pylist() == list(range(len(TEXTS)))
    for name in ("labels", "paths", "problem"):
        assert found[name].to_pylist() == expected[name].to_pylist()
    for own, alone in zip(found["scores"].to_pylist(), expected["scores"].to_pylist()):
        np.testing.assert_allclose(own, alone, atol=1e-5)
    assert found["problem"][60].as_py()
    again = run(tmp_path / "model", tmp_path / "texts", out)
    assert again.returncode == 1
    assert "is not empty" in again.stderr


def test_unreadable_files_are_refused_before_ray_starts(tmp_path):
    (tmp_path / "a.txt").write_text("stars", encoding="utf-8")
    found = run("model", tmp_path / "a.txt", tmp_path / "out")
    assert found.returncode == 1
    assert "must be files of one kind, of .parquet, .csv, .jsonl; found ['.txt']" in found.stderr
