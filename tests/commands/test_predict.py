"""Bulk prediction gives the predictions of the pipeline in file order, and resumes after interruptions."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import pipeline

from hcal_hf.commands import predictor as module
from hcal_hf.commands.atomic_writer import AtomicWriter
from hcal_hf.commands.command_line import ENGINES
from hcal_hf.commands.prediction_file import predict_file
from hcal_hf.commands.predictor import PredictionArguments, Predictor
from tests.builders import WORDS, build_model

ROOT = Path(__file__).parents[2]
rng = np.random.default_rng(0)
TEXTS = [" ".join(rng.choice(WORDS, size=rng.integers(1, 25))) for _ in range(45)]
COLUMNS = ["row", "labels", "scores", "paths", "problem"]


def save_model(folder, tokenizer, taxonomy, **config):
    model = build_model(taxonomy, **config)
    with torch.no_grad():
        torch.nn.init.normal_(model.prototypes.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tokenizer, taxonomy):
    return save_model(tmp_path_factory.mktemp("single"), tokenizer, taxonomy)


@pytest.fixture(scope="module")
def multi_dir(tmp_path_factory, tokenizer, dag):
    return save_model(tmp_path_factory.mktemp("multi"), tokenizer, dag, label_mode="multi_path")


@pytest.fixture
def file(tmp_path):
    """Returns a file of 45 rows. Rows 3, 11 and 20 have no usable text."""
    lines = [json.dumps({"text": text, "key": i}) for i, text in enumerate(TEXTS)]
    lines[3], lines[11], lines[20] = '{"key": 3}', '{"text": " ", "key": 11}', '{"text": "stars"'
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def run(model, file, out, **kwargs):
    names = ("overwrite", "restart")
    others = {name: kwargs.pop(name) for name in names if name in kwargs}
    return predict_file(model, file, out, PredictionArguments(**kwargs), use_cpu=True, progress=False, **others)


@pytest.mark.parametrize(
    ("kind", "deciding"),
    [
        ("single", {}),
        ("single", {"decode": "top_down", "threshold": 0.2}),
        ("single", {"top_k": 2, "threshold": 0.1}),
        ("single", {"max_depth": 1}),
        ("multi", {}),
        ("multi", {"decode": "prune", "threshold": 0.4}),
        ("multi", {"top_k": 3, "max_depth": 0}),
        ("multi", {"decode": "expected_f1"}),
    ],
)
def test_predictions_equal_those_of_the_pipeline(model_dir, multi_dir, kind, deciding):
    pipe = pipeline(
        "hierarchical-text-classification", model=model_dir if kind == "single" else multi_dir, device="cpu"
    )
    found = Predictor(pipe.model, pipe.tokenizer, PredictionArguments(batch_tokens=50, **deciding)).predict(TEXTS)
    assert found.num_rows == len(TEXTS)
    number = 0
    for row, expected in zip(found.to_pylist(), pipe(TEXTS, **deciding)):
        assert row["labels"] == [item["label"] for item in expected]
        assert row["paths"] == [item["path"] for item in expected]
        assert row["scores"] == pytest.approx([item["score"] for item in expected], abs=1e-5)
        assert row["problem"] is None
        number += len(expected)
    assert number > len(TEXTS)


def test_batches_contain_texts_of_similar_length_within_the_token_budget(model_dir, monkeypatch):
    pipe = pipeline("hierarchical-text-classification", model=model_dir, device="cpu")
    predictor = Predictor(pipe.model, pipe.tokenizer, PredictionArguments(batch_tokens=30))
    lengths = np.array([3, 40, 0, 10, 9, 10, 1, 4])
    batches = [batch.tolist() for batch in predictor._batches(lengths)]
    assert batches == [[1], [3, 5, 4], [7, 0, 6]]
    monkeypatch.setattr(module, "MAX_LOGITS", 2 * pipe.model.config.num_labels + 1)
    assert [len(batch) for batch in predictor._batches(lengths)] == [1, 2, 2, 2]


def test_the_default_token_budget_depends_on_device_and_precision(model_dir):
    pipe = pipeline("hierarchical-text-classification", model=model_dir, device="cpu")

    def budget(**given):
        return Predictor(pipe.model, pipe.tokenizer, PredictionArguments(**given)).batch_tokens

    assert (budget(), budget(bf16=True), budget(batch_tokens=30)) == (2048, 4096, 30)
    pipe.model.to("meta")
    assert (budget(), budget(bf16=True), budget(batch_tokens=30)) == (8192, 8192, 30)


def test_rows_without_usable_text_have_no_labels_and_a_problem(model_dir):
    pipe = pipeline("hierarchical-text-classification", model=model_dir, device="cpu")
    predictor = Predictor(pipe.model, pipe.tokenizer, PredictionArguments())
    found = predictor.predict([None, 3, "", "stars \udce4"]).to_pylist()
    assert [row["labels"] for row in found] == [[], [], [], []]
    words = ("there is no text", "must be a string, got int", "is empty", "not Unicode")
    assert all(word in row["problem"] for word, row in zip(words, found))
    assert predictor.predict([]).num_rows == 0


def test_all_input_formats_give_the_same_predictions(model_dir, tmp_path):
    plain = [text for text in TEXTS if text]
    csv = "key;text\n" + "".join(f'{i};"{text}"\n' for i, text in enumerate(plain))
    jsonl = "".join(json.dumps({"text": text, "key": i}) + "\n" for i, text in enumerate(plain))
    contents = {
        "a.jsonl": jsonl.encode(),
        "a.jsonl.gz": gzip.compress(jsonl.encode()),
        "a.csv": b"\xef\xbb\xbf" + csv.encode(),
        "a.csv.gz": gzip.compress(csv.replace(";", ",").encode()),
        "a.tsv": csv.replace(";", "\t").encode(),
        "a.txt": "\r\n".join(plain).encode(),
        "a.txt.gz": gzip.compress("\n".join(plain).encode()),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"text": plain, "key": range(len(plain))}), tmp_path / "a.parquet", row_group_size=7)
    expected = None
    for name in [*contents, "a.parquet"]:
        has_key = "txt" not in name
        report = run(model_dir, tmp_path / name, tmp_path / f"{name}.parquet", window=20, keep_text=True,
                     id_column="key" if has_key else None)  # fmt: skip
        assert (report["rows"], report["predicted"], report["problems"]) == (45, 45, {})
        found = pq.read_table(tmp_path / f"{name}.parquet")
        assert found.column_names == ["row", *(["id"] if has_key else []), "text", *COLUMNS[1:]]
        assert found["text"].to_pylist() == plain
        if has_key:
            keys = range(45) if name == "a.parquet" else map(str, range(45))
            assert found["id"].to_pylist() == list(keys)
        found = found.select(COLUMNS)
        expected = expected or found
        assert found.equals(expected)
    assert expected["row"].to_pylist() == list(range(45))


def test_bad_rows_keep_their_position_and_have_a_reason(model_dir, file, tmp_path):
    report = run(model_dir, file, tmp_path / "out.parquet", window=8, id_column="key")
    assert (report["rows"], report["predicted"], report["first_problems"]) == (45, 42, [3, 11, 20])
    assert sum(report["problems"].values()) == 3
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["row"] for row in rows] == list(range(45))
    assert rows[3]["problem"] == "there is no text"
    assert rows[11]["problem"] == "the text is empty"
    assert rows[20]["problem"].startswith("the line is not JSON")
    assert [rows[i]["id"] for i in (3, 11, 20, 21)] == ["3", "11", None, "21"]
    assert all(row["labels"] == row["paths"] == row["scores"] == [] for row in rows if row["problem"])
    assert all(row["labels"] for row in rows if not row["problem"])
    pipe = pipeline("hierarchical-text-classification", model=model_dir, device="cpu")
    assert rows[44]["labels"] == [item["label"] for item in pipe(TEXTS[44])]
    assert not (tmp_path / "out.parquet.parts").exists()


def test_csv_rows_with_extra_cells_or_wrong_encoding_are_reported(model_dir, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,n\nstars,1\nstars, atoms,2\n"poems\nnovels",3\nm\xfcsic,4\n"drama" x,5\ngenes,6\n')
    report = run(model_dir, path, tmp_path / "out.parquet", keep_text=True, encoding="utf-8")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (report["rows"], report["predicted"]) == (6, 3)
    assert [row["text"] for row in rows] == ["stars", None, "poems\nnovels", "m?sic", None, "genes"]
    assert "the row has 3 cells, the header 2" in rows[1]["problem"]
    assert "not Unicode" in rows[3]["problem"]
    assert "cannot be read" in rows[4]["problem"]
    for name, encoding in (("latin", "cp1252"), ("detected", None)):
        run(model_dir, path, tmp_path / f"{name}.parquet", keep_text=True, encoding=encoding)
        assert pq.read_table(tmp_path / f"{name}.parquet")["text"][3].as_py() == "müsic"
    path.write_text('text\nstars\n"atoms\ngenes\n', encoding="utf-8")
    with pytest.raises(ValueError, match="the row at line 3 opens a quote that is never closed"):
        run(model_dir, path, tmp_path / "open.parquet")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"stars\n" * 1000)[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        run(model_dir, tmp_path / "b.txt.gz", tmp_path / "b.parquet")


def test_an_interrupted_run_resumes_without_repeating_or_losing_rows(model_dir, file, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    run(model_dir, file, whole, window=7)
    seen, original = [], Predictor.predict_tokens

    def stopping(limit):
        def answer(self, texts, *args):
            if len(seen) == limit:
                raise KeyboardInterrupt
            seen.append(tuple(map(tuple, texts.columns["input_ids"])))
            return original(self, texts, *args)

        return answer

    for limit in (2, 5):
        monkeypatch.setattr(Predictor, "predict_tokens", stopping(limit))
        with pytest.raises(KeyboardInterrupt):
            run(model_dir, file, out, window=7)
        assert not out.exists()
        assert len(AtomicWriter(out).finished()) == limit
    (tmp_path / "out.parquet.parts" / "00000005.parquet.9.tmp").write_bytes(b"half")
    monkeypatch.setattr(Predictor, "predict_tokens", stopping(None))
    report = run(model_dir, file, out, window=7, batch_tokens=10**6)  # the only setting that may differ
    assert len(seen) == len(set(seen)) == 7
    assert report["resumed_rows"] == 35
    assert report | {"resumed_rows": 0, "out": str(whole)} == run(model_dir, file, whole, window=7, overwrite=True)
    assert pq.read_table(out).drop_columns("scores").equals(pq.read_table(whole).drop_columns("scores"))


def test_the_next_window_is_tokenized_while_the_model_predicts(model_dir, file, tmp_path, monkeypatch):
    begun, late = [], []
    tokenize, answer = Predictor.tokenize, Predictor.predict_tokens

    def recording(self, texts, problems):
        begun.append(threading.get_ident())
        return tokenize(self, texts, problems)

    def waiting(self, texts, *args):
        answered = len(late) + 1
        deadline = time.monotonic() + 60
        while len(begun) < min(answered + 1, 7) and time.monotonic() < deadline:
            time.sleep(0.001)
        late.append(len(begun) < min(answered + 1, 7))
        return answer(self, texts, *args)

    monkeypatch.setattr(Predictor, "tokenize", recording)
    monkeypatch.setattr(Predictor, "predict_tokens", waiting)
    run(model_dir, file, tmp_path / "out.parquet", window=7)
    assert late == [False] * 7
    assert threading.get_ident() not in begun


def test_errors_of_the_tokenizer_are_raised(model_dir, file, tmp_path, monkeypatch):
    def failing(self, texts, problems):
        raise RuntimeError("no such word")

    monkeypatch.setattr(Predictor, "tokenize", failing)
    with pytest.raises(RuntimeError, match="no such word"):
        run(model_dir, file, tmp_path / "out.parquet")


@pytest.mark.slow
def test_a_killed_process_can_be_resumed_to_the_same_file(model_dir, tmp_path):
    """Kills the process after a few windows. The resumed run writes the same bytes as an uninterrupted run."""
    file, out, whole = tmp_path / "rows.txt", tmp_path / "out.parquet", tmp_path / "whole.parquet"
    file.write_text("\n".join(TEXTS[:40] * 60), encoding="utf-8")
    command = [sys.executable, "-m", "hcal_hf.commands.main", "predict", model_dir, str(file), "--out", str(out), "--cpu",
               "--quiet", "--window", "24"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("out.parquet.parts/0*.parquet"))) < 3:
        assert process.poll() is None, "it was done before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == (1 if sys.platform == "win32" else -signal.SIGKILL)
    assert not out.exists()
    left = len(AtomicWriter(out).finished())
    assert 3 <= left < 100
    report = run(model_dir, file, out, window=24)
    assert report["resumed_rows"] == 24 * left
    assert report["rows"] == report["predicted"] == 2400
    run(model_dir, file, whole, window=24)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_two_processes_divide_the_windows(model_dir, file, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
               str(ROOT / "recipes/accelerate/two_cpu_processes.yaml"), "--main_process_port", "0",
               str(ROOT / "recipes/predict.py"), model_dir, str(file), "--out", str(tmp_path / "out.parquet"), "--cpu",
               "--window", "4", "--json"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["rows"] == 45
    assert "24 rows here" in done.stderr  # 6 of the 12 windows
    run(model_dir, file, tmp_path / "one.parquet", window=4)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


def test_a_run_with_other_settings_model_or_input_is_not_resumed(model_dir, multi_dir, file, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    original = AtomicWriter.join
    monkeypatch.setattr(AtomicWriter, "join", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(model_dir, file, out, window=8)
    monkeypatch.setattr(AtomicWriter, "join", original)
    with pytest.raises(ValueError, match=r"6 finished windows of another run: window was 8, now 9\. .*--restart"):
        run(model_dir, file, out, window=9)
    with pytest.raises(ValueError, match="another run: model was "):
        run(multi_dir, file, out, window=8)
    with pytest.raises(ValueError, match=r"threshold was None, now 0\.5"):
        run(model_dir, file, out, window=8, threshold=0.5)
    text = file.read_text(encoding="utf-8")
    file.write_text(text + text, encoding="utf-8")
    with pytest.raises(ValueError, match="another run: input was "):
        run(model_dir, file, out, window=8)
    file.write_text(text, encoding="utf-8")
    moved = tmp_path / "moved.jsonl"
    moved.write_text(text, encoding="utf-8")
    (tmp_path / "out.parquet.parts" / "00000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"00000002.parquet cannot be used: .*only its rows"):
        run(model_dir, moved, out, window=8)
    (tmp_path / "out.parquet.parts" / "00000002.parquet").unlink()
    assert run(model_dir, moved, out, window=8)["resumed_rows"] == 37
    with pytest.raises(FileExistsError, match="--overwrite"):
        run(model_dir, file, out, window=9)
    assert run(model_dir, file, out, window=9, overwrite=True)["resumed_rows"] == 0


def test_invalid_arguments_are_refused_without_leaving_files(model_dir, multi_dir, file, tmp_path):
    out = tmp_path / "out.parquet"
    for error, message, call in (
        (ValueError, "no column 'txt', but 'text': its columns are 'text', 'key'", {"text_column": "txt"}),
        (ValueError, 'decode="path" needs label_mode="single_path"', {"model": multi_dir, "decode": "path"}),
        (ValueError, "window must be a whole number of at least 1, got 0", {"window": 0}),
        (ValueError, "out must end in .parquet", {"out": tmp_path / "out.csv"}),
        (FileNotFoundError, "There is no folder .* make it first", {"out": tmp_path / "no" / "out.parquet"}),
        (FileNotFoundError, "There is no file", {"file": tmp_path / "no.jsonl"}),
        (ValueError, r"cannot be read as a table: allowed are \.csv", {"file": tmp_path / "rows.pdf"}),
        (ValueError, "neither a folder with a saved model", {"model": str(tmp_path / "nothing")}),
    ):
        with pytest.raises(error, match=message):
            run(call.pop("model", model_dir), call.pop("file", file), call.pop("out", out), **call)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
    with AtomicWriter(out).locked(True), pytest.raises(RuntimeError, match="Another run is writing"):
        run(model_dir, file, out)


@pytest.mark.slow
def test_onnx_gives_the_same_scores_as_torch_and_int8_almost_the_same(model_dir, file, tmp_path):
    for engine in ENGINES:
        run(model_dir, file, tmp_path / f"{engine}.parquet", engine=engine, top_k=100)
    torch_scores, onnx_scores, int8_scores = (
        {(row["row"], label): score for row in pq.read_table(tmp_path / f"{engine}.parquet").to_pylist()
         for label, score in zip(row["labels"], row["scores"])} for engine in ENGINES
    )  # fmt: skip
    assert onnx_scores == pytest.approx(torch_scores, abs=1e-5)
    assert int8_scores.keys() == torch_scores.keys()
    difference = max(abs(int8_scores[key] - torch_scores[key]) for key in torch_scores)
    assert 1e-5 < difference < 0.1


def test_explanations_name_words_of_the_text(model_dir, file, tmp_path):
    run(model_dir, file, tmp_path / "a.parquet", explain=True)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names[-2:] == ["explanation", "problem"]
    explained = 0
    for row, text in zip(table.to_pylist(), TEXTS):
        if not row["labels"]:
            assert row["explanation"] is None
            continue
        for item in filter(None, row["explanation"].split(", ")):
            word, value = item.rsplit(" ", 1)
            assert word in text
            assert float(value.strip("()")) >= 0
            explained += 1
    assert explained > len(TEXTS)


@pytest.mark.parametrize("max_length", [1, 2])
def test_a_text_without_words_has_a_label_and_no_explanation(model_dir, max_length):
    pipe = pipeline("hierarchical-text-classification", model=model_dir, device="cpu")
    pipe.model.config.text_prefix = f"{WORDS[1]} "  # the first token
    predictor = Predictor(pipe.model, pipe.tokenizer, PredictionArguments(max_length=max_length))
    row = predictor.explain(predictor.predict([WORDS[0]]), [WORDS[0]]).to_pylist()[0]
    assert row["labels"]
    assert (row["explanation"] is None) == (max_length == 1)


def test_wrong_engines_are_refused(model_dir):
    with pytest.raises(ValueError, match="engine must be one of torch, onnx, int8, got 'tensorrt'"):
        PredictionArguments(engine="tensorrt")
    with pytest.raises(ValueError, match="bf16 is for the engine torch, not for 'onnx'"):
        PredictionArguments(engine="onnx", bf16=True)
    pipe = pipeline("hierarchical-text-classification", model=model_dir, device="cpu")
    with pytest.raises(ValueError, match="'int8' runs on the CPU, but the model is on meta"):
        Predictor(pipe.model.to("meta"), pipe.tokenizer, PredictionArguments(engine="int8"))


def test_bf16_gives_almost_the_same_scores(model_dir, file, tmp_path):
    for name, bf16 in {"a": False, "b": True}.items():
        run(model_dir, file, tmp_path / f"{name}.parquet", bf16=bf16, top_k=100)
    a, b = (
        {(row["row"], label): score for row in pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
         for label, score in zip(row["labels"], row["scores"])} for name in "ab"
    )  # fmt: skip
    assert a.keys() == b.keys()
    difference = max(abs(a[key] - b[key]) for key in a)
    assert 0 < difference < 0.1
