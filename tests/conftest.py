"""Fixtures and environment of the tests. Tests use no network and write only temporary files."""

import gc
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core per worker
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from transformers import BertModel

from hcal_hf import Taxonomy
from tests.builders import build_model, build_ragged, build_taxonomy, build_tokenizer, tiny_bert

# Each Trainer runs the garbage collector when it starts. This keeps it from scanning the imported objects every time.
gc.freeze()


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def taxonomy():
    return build_taxonomy()


@pytest.fixture(scope="session")
def ragged():
    return build_ragged()


@pytest.fixture(scope="session")
def dag():
    return Taxonomy.from_edges([("a", "x"), ("b", "x"), ("b", "y"), ("x", "z"), ("c", "z")])


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(tiny_bert()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make_model():
    """Returns the function (taxonomy, seed=0, dtype, **config) -> model, with a random tiny BERT without dropout."""
    return build_model


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")


@pytest.fixture(scope="module")
def browser():
    """Starts the first browser that is installed, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
