"""Runs the code blocks of the README and the manual with a tiny encoder, and checks their links."""

import gzip
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import hcal_hf
from hcal_hf import HcalForSequenceClassification, build_taxonomy
from hcal_hf.commands import main as cli
from tests.builders import WORDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<language>python|bash)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
# Blocks that are not run: (page, start of the first line) -> the reason, which the page states before the block.
NOT_RUN = {
    ("README.md", "make quickstart   # sets everything up, "): "CI runs both",
    ("README.md", 'pip install ".[quickstart,xlsx]"'): "installs",
    ("docs/benchmarks/index.md", "make benchmark DATA_DIR=DIR"): "takes half an hour and needs the data",
    ("docs/concepts/methods.md", "cd recipes/benchmarks"): "needs data sets",
    ("docs/concepts/methods.md", "python recipes/benchmarks/frozen.py --da"): "needs data sets",
    ("docs/how-to/audit.md", "hcal audit tickets.csv --labels area pro"): "needs the decisions of a person",
    ("docs/how-to/demo.md", "hcal demo outputs/tickets"): "serves until it is stopped",
    ("docs/how-to/demo.md", "hcal demo outputs/tickets --suggestions "): "serves until it is stopped",
    ("docs/coming-from.md", "from transformers import AutoModelForSeq"): "the other library",
    ("docs/coming-from.md", "from hiclass import LocalClassifierPerPa"): "the other library",
    ("docs/coming-from.md", "from setfit import SetFitModel, Trainer,"): "the other library",
    ("docs/how-to/hyperparameters.md", "import optuna"): "needs data sets",
    ("docs/how-to/labelling.md", "hcal demo outputs/tickets --suggestions "): "serves until it is stopped",
    ("docs/how-to/labelling.md", "hcal train labelled.jsonl --from outputs"): "needs the file of the page",
    ("docs/how-to/labelling.md", "hcal zero-shot taxonomy.txt --texts tick"): "needs the decisions of a person",
    (
        "docs/how-to/hub.md",
        "trainer.push_to_hub()  # the model, its ",
    ): "pushes to the Hub",
    (
        "docs/how-to/hub.md",
        "from transformers import pipeline",
    ): "needs a model on the Hub",
    (
        "docs/how-to/own-data.md",
        "accelerate launch recipes/train.py recip",
    ): "tests of accelerate launch it",
    ("docs/how-to/several-processes.md", "accelerate launch --config_file recipes/"): "needs several GPUs",
    (
        "docs/how-to/several-processes.md",
        "accelerate launch recipes/predict.py out",
    ): "tests of predict launch it",
    ("docs/index.md", "pip install ."): "installs",
    ("docs/index.md", "make quickstart"): "CI runs it",
}


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks_of(page):
    """Returns (language, code, reason for not running it) of each block of Python or commands."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield match["language"], match["code"], match["reason"]


def runnable(page):
    return [(language, code) for language, code, reason in blocks_of(page) if not reason]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder_dir, tokenizer):
    """Returns a working directory with the files that the pages use: tables, recipes and a saved model."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("recipes", "hcal_hf"):
        (folder / name).symlink_to(ROOT / name)
    table = (ROOT / "recipes/tickets/data/train.csv").read_text(encoding="utf-8")
    for name in ("tickets.csv", "held_out.csv", "more_tickets.csv"):
        (folder / name).write_text(table, encoding="utf-8")
    area = table.splitlines()[1].split(",")[1]
    (folder / "names.csv").write_text(f"code,name\n{area},Name of {area}\n", encoding="utf-8")
    rows = [line.split(",")[1:] for line in table.splitlines()[1:] if '"' not in line]
    lines = dict.fromkeys(" > ".join(filter(None, row)) for row in rows)
    for name, extra in (("taxonomy.txt", ""), ("new_taxonomy.txt", "Toys > Games\n")):
        (folder / name).write_text("\n".join(lines) + "\n" + extra, encoding="utf-8")
    for name, split in itertools.product(("data", "tickets"), ("train", "validation", "test")):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{split}.csv").write_text(table, encoding="utf-8")
    lines = "".join(json.dumps({"text": f"{word} and {word}"}) + "\n" for word in WORDS)
    (folder / "tickets.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    levels = ["area", "product", "problem"]
    taxonomy = build_taxonomy(folder / "tickets.csv", labels=levels)
    model = HcalForSequenceClassification.from_encoder(encoder_dir, taxonomy, table_options={"labels": levels})
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name_of)
def test_code_blocks_of_a_page_run(page, folder, encoder_dir, monkeypatch):
    monkeypatch.chdir(folder)
    for module in ("table_run", "audit_run"):
        monkeypatch.setattr(f"hcal_hf.commands.{module}.default_encoder", lambda: encoder_dir)
    shutil.rmtree("outputs", ignore_errors=True)
    shutil.copytree("model", "outputs/tickets")
    shutil.copytree("model", "outputs/old")
    for old in ("predictions.parquet", "predictions.csv", "more.parquet"):
        Path(old).unlink(missing_ok=True)
    scope = {"__name__": "page"}
    for language, code in runnable(page):
        if language == "python":
            code = code.replace(ENCODER, encoder_dir).replace(
                "num_train_epochs=20", 'num_train_epochs=1, report_to="none"'
            )
            exec(compile(code, name_of(page), "exec"), scope)
            continue
        for line in code.splitlines():
            words = shlex.split(line, comments=True)
            assert words[:1] == ["hcal"], f"{name_of(page)}: {line!r} is not run and carries no reason"
            if "--from" in words:
                words += ["--use_cpu", "--time-budget", "60", "--num-train-epochs", "1"]
            elif words[1] == "zero-shot":
                words += ["--encoder", encoder_dir]
            elif words[1] == "train":
                shutil.rmtree("outputs/tickets", ignore_errors=True)
                words += ["--encoder", encoder_dir, "--use_cpu"] + (
                    [] if words[2].endswith(".yaml") else ["--time-budget", "0"]
                )
            assert cli.main(words[1:]) == 0, line
            if words[1] == "train":  # the tiny tokenizer makes a poor model; the next lines need its labels only
                shutil.rmtree("outputs/tickets", ignore_errors=True)
                shutil.copytree("model", "outputs/tickets")


def test_code_blocks_that_are_not_run_are_listed():
    found = {
        (name_of(page), code.splitlines()[0][:40]): reason
        for page in PAGES
        for _, code, reason in blocks_of(page)
        if reason
    }
    assert found == NOT_RUN


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target = link.partition("#")[0]
        if target and not re.match(r"[a-z]+:", link):
            assert (page.parent / target).exists(), f"{name_of(page)}: {link}"


def test_every_public_name_has_an_entry_in_the_reference():
    named = [
        name
        for page in (ROOT / "docs/reference").glob("*.md")
        for name in re.findall(r"^::: hcal_hf\.(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert sorted(named) == sorted(hcal_hf.__all__)


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    code = re.search(r"```python\n(.*?)```", "\n".join(lines), re.DOTALL)[1]
    assert len(code.splitlines()) == 10
    assert "None" not in code
