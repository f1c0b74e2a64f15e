"""Threads, long use, many requests and interruptions. The long versions are run by `make reliability`."""

import getpass
import itertools
import json
import os
import platform
import re
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, pipeline

from hcal_hf import HcalForSequenceClassification, HcalTrainer, HcalTrainingArguments
from hcal_hf.commands import main as cli
from hcal_hf.commands.predictor import PredictionArguments, Predictor
from hcal_hf.training.weighting import WEIGHTERS
from tests.builders import WORDS, build_model, build_taxonomy, build_tokenizer
from tests.reliability.counted import counted

ROOT = Path(__file__).parents[2]
long = pytest.mark.reliability


def random_texts(number, longest=60):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, longest))) for _ in range(number)]


def build_pipeline(**config):
    model = build_model(build_taxonomy(), **config)
    torch.nn.init.normal_(model.prototypes.weight)
    return pipeline("hierarchical-text-classification", model, tokenizer=build_tokenizer(), device="cpu")


# ---- Threads ----


def answers_of_threads(classify, texts, threads, calls):
    """Calls a pipeline from several threads at once, with texts and batches in turn. Returns [(index, answer)]."""
    barrier = threading.Barrier(threads)

    def work(thread):
        rng = np.random.default_rng(thread)
        barrier.wait()
        found = []
        for _ in range(calls):
            start, size = int(rng.integers(len(texts))), int(rng.integers(1, 4))
            rows = texts[start : start + size]
            options = {} if rng.random() < 0.5 else {"max_length": 8}
            answers = classify(rows, batch_size=size, **options)
            found += [(start + i, bool(options), answer) for i, answer in enumerate(answers)]
        return found

    with ThreadPoolExecutor(threads) as pool:
        return [answer for answers in pool.map(work, range(threads)) for answer in answers]


@pytest.mark.parametrize("calls", [8, pytest.param(200, marks=long)])
def test_16_threads_on_one_pipeline_get_the_answers_of_one_thread(calls):
    classify = build_pipeline()
    texts = random_texts(60)
    expected = {False: classify(texts), True: classify(texts, max_length=8)}
    assert expected[False] != expected[True]
    with counted("threads", "an answer in one of 16 threads on one pipeline") as count:
        for index, is_short, answer in answers_of_threads(classify, texts, 16, calls):
            wanted = expected[is_short][index]
            assert [entry["label"] for entry in answer] == [entry["label"] for entry in wanted]
            assert [e["score"] for e in answer] == pytest.approx([e["score"] for e in wanted], abs=1e-5)
            count.cases += 1


# ---- Long use ----


def megabytes():
    """Returns the memory that this process occupies now."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [pytest.param(2_000, marks=pytest.mark.slow), pytest.param(10_000, marks=long)])
@pytest.mark.parametrize("way", ["pipeline", "predictor"])
def test_predictions_of_random_length_do_not_grow_the_memory(number, way):
    classify = build_pipeline()
    predictor = Predictor(classify.model, classify.tokenizer, PredictionArguments(window=64))
    texts = random_texts(number)
    warm = number // 4

    def predict(rows):
        if way == "pipeline":
            return [classify(text) for text in rows]
        return [predictor.predict(rows[start : start + 64]) for start in range(0, len(rows), 64)]

    with counted("memory", f"a prediction by the {way}, texts of 1 to 60 words") as count:
        predict(texts[:warm])
        before = megabytes()
        predict(texts[warm:])
        grown = megabytes() - before
        count.cases, count.facts = number, {"growth_mb": round(grown, 1)}
        assert grown < 10, f"{grown:.1f} MB more after {number - warm:,} predictions"


# ---- The demo page ----


class Page:
    """Sends the requests that a browser sends when a visitor presses the button of the demo page."""

    def __init__(self, url):
        import httpx

        self.url, self.client = url, httpx.Client(timeout=300)
        config = self.client.get(f"{url}config").json()
        self.components = {component["id"]: component for component in config["components"]}
        self.button = next(
            one for one in config["dependencies"] if any(event == "click" for _, event in one["targets"])
        )
        self.sessions = itertools.count()

    def answer(self, text):
        """Returns the HTML of the answer, without the number of the reading."""
        session = f"s{next(self.sessions)}"
        inputs = [self.components[component] for component in self.button["inputs"]]
        data = [text if one["type"] == "textbox" else one["props"].get("value") for one in inputs]
        event = {"data": data, "fn_index": self.button["id"], "session_hash": session, "trigger_id": inputs[0]["id"]}
        self.client.post(f"{self.url}gradio_api/queue/join", json=event).raise_for_status()
        queue = self.client.stream("GET", f"{self.url}gradio_api/queue/data", params={"session_hash": session})
        with queue as lines:
            for line in lines.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return re.sub(r'data-reading="\d+"', "", message["output"]["data"][1])
        raise AssertionError("the page closed the stream without an answer")


@pytest.mark.parametrize("number", [pytest.param(60, marks=pytest.mark.slow), pytest.param(500, marks=long)])
def test_the_demo_page_answers_many_requests_at_once(number):
    gradio = pytest.importorskip("gradio", reason="needs the extra demo")
    from hcal_hf.commands.demo.page import launch

    texts = random_texts(20)
    _, url, _ = launch(build_pipeline(), prevent_thread_lock=True, quiet=True)
    try:
        page = Page(url)
        expected = {text: page.answer(text) for text in texts}
        assert len(set(expected.values())) == len(set(texts))
        with counted("demo page", "a request, eight at once") as count, ThreadPoolExecutor(8) as pool:
            rows = [texts[i % len(texts)] for i in range(number)]
            for text, answer in zip(rows, pool.map(page.answer, rows)):
                assert answer == expected[text]
                count.cases += 1
    finally:
        gradio.close_all()


# ---- Interruptions ----


def run_interrupted(kind, folder, number):
    command = [sys.executable, "-m", "tests.reliability.interrupted", kind, str(folder), str(number)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.parametrize("moments", [pytest.param(2, marks=pytest.mark.slow), pytest.param(50, marks=long)])
def test_trainings_killed_at_random_moments_end_like_trainings_without_interruption(tmp_path, moments):
    with counted("killed trainings", "a training, killed and resumed") as count:
        report = run_interrupted("train", tmp_path, moments)
        count.cases, count.facts = report["kills"], report
        assert report["differences"] == []
        assert report["kills"] == moments
        if moments == 50:
            assert set(report["kills_by_weighter"]) == set(WEIGHTERS)
            assert report["resumed_from_a_checkpoint"] >= 10
        # An old checkpoint may be killed while it is deleted. Resuming skips it.
        assert report["partial_newest"] == 0


@needs_fork
@pytest.mark.parametrize("kills", [pytest.param(5, marks=pytest.mark.slow), pytest.param(50, marks=long)])
def test_predictions_killed_at_random_moments_end_with_the_same_bytes(tmp_path, kills):
    with counted("killed predictions", "a kill of hcal predict, which is then run again") as count:
        report = run_interrupted("predict", tmp_path, kills)
        count.cases, count.facts = report["kills"], report
        assert report["differences"] == []
        assert report["kills"] == kills


# ---- Saved files ----

TOKEN = "hf_aSecretTokenOfNoMeaningAtAll1234"


@long
@pytest.mark.slow
def test_saved_files_hold_no_token_and_no_local_path(encoder_dir, tmp_path, monkeypatch, capsys):
    """Searches every file of a model folder, byte by byte, for the token, the user, the machine and local folders."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", TOKEN)
    taxonomy, tokenizer = build_taxonomy(), AutoTokenizer.from_pretrained(encoder_dir)
    model = HcalForSequenceClassification.from_encoder(
        encoder_dir, taxonomy, token=TOKEN, prototype_anchor="label_text"
    )
    rows = [{"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1], "labels": [0, 2, 6]}] * 4
    args = HcalTrainingArguments(
        str(tmp_path / "run"), max_steps=2, save_steps=1, report_to="none", use_cpu=True, hub_token=TOKEN
    )
    trainer = HcalTrainer(model, args, None, rows, None, tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    classify = pipeline("hierarchical-text-classification", model, tokenizer=tokenizer)
    classify.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "texts.txt").write_text("stars\nplants\n", encoding="utf-8")
    saved = str(tmp_path / "saved")
    assert cli.main(["predict", saved, str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out.csv"), "--cpu"]) == 0
    assert cli.main(["demo", saved, "--export", str(tmp_path / "space")]) == 0
    capsys.readouterr()
    local = [encoder_dir, str(Path.home()), str(ROOT), platform.node()]
    secrets = [
        TOKEN,
        *(text for text in local if len(text) > 5 and text != "localhost"),
    ]  # shorter ones occur anywhere
    files = [
        path for name in ("saved", "pipeline", "space") for path in (tmp_path / name).rglob("*") if path.is_file()
    ]
    files += [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 20
    with counted("saved files", "a saved file, searched for secrets and local paths") as count:
        for path in files:
            content = path.read_bytes()
            for secret in secrets:
                is_pattern = re.search(rb"(?<![\w/])" + re.escape(secret.encode()) + rb"(?![\w])", content)
                assert not is_pattern, f"{path.relative_to(tmp_path)} holds {secret!r}"
            # Pickles of transformers hold the folder of the run, which the user has named.
            is_own = path.name in ("training_args.bin", "trainer_state.json")
            assert is_own or str(tmp_path).encode() not in content, path.relative_to(tmp_path)
            assert f"user={getpass.getuser()}".encode() not in content
            count.cases += 1
