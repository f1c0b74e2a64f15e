"""Speed of bulk prediction and of imports: a part of speed.py."""

import argparse
import json
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timing import Action, CountsTokens, Row, fresh_seconds, side_by_side, timed_row, tree_of_depth
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hcal_hf import HcalForSequenceClassification, PredictionArguments, has_bfloat16, predict_file

RECIPES = Path(__file__).parents[1]


def prediction(options: argparse.Namespace) -> Iterator[Row]:
    """Compares `hcal predict` with pipeline("text-classification") of transformers (batches of 32), on texts of 8 to 250
    words that are not truncated. The encoder has the same weights, and reading and writing of files is included. Tokens is
    the number of tokens that the model computes per token of the texts."""
    rng = random.Random(0)
    pages = " ".join(path.read_text(encoding="utf-8") for path in sorted(RECIPES.rglob("*.md")))
    words = re.findall(r"(?<= )[A-Za-z]+[.,;:]?(?= )", pages)
    texts = [" ".join(rng.choices(words, k=rng.randint(8, 250))) for _ in range(options.texts)]
    taxonomy = tree_of_depth(161, 2)
    with tempfile.TemporaryDirectory() as folder:
        model = HcalForSequenceClassification.from_encoder(options.encoder, taxonomy, label_mode="single_path")
        tokenizer = AutoTokenizer.from_pretrained(options.encoder)
        model.save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        plain = AutoModelForSequenceClassification.from_pretrained(options.encoder, num_labels=161)
        stock = pipeline("text-classification", model=plain, tokenizer=tokenizer)
        Path(folder, "texts.jsonl").write_text(
            "\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8"
        )

        def ours(**how: Any) -> None:
            args = PredictionArguments(**how)
            predict_file(
                f"{folder}/model",
                f"{folder}/texts.jsonl",
                f"{folder}/out.parquet",
                args,
                overwrite=True,
                progress=False,
            )

        actions: dict[str, Action] = {
            'pipeline("text-classification")': lambda: stock(texts, batch_size=32, truncation=True),
            "hcal predict": ours,
        }
        if has_bfloat16() is not False:  # emulated bfloat16 takes many times as long
            actions["hcal predict, bf16"] = lambda: ours(bf16=True)
        lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
        counted = {name: CountsTokens(action, tokenizer) for name, action in actions.items()}
        for name, (took, ratio) in side_by_side(counted, options.prediction_rounds, warm=0).items():
            yield timed_row(
                f"{options.texts:,} texts: {name}", took, ratio=ratio, against="the pipeline",
                target="" if name.startswith("pipeline") else "0.5", documents_per_second=options.texts / took,
                tokens=counted[name].tokens / sum(lengths),
            )  # fmt: skip


def imports(options: argparse.Namespace) -> Iterator[Row]:
    """Measures the processor seconds of a new process."""
    own = fresh_seconds("import hcal_hf; hcal_hf.HcalForSequenceClassification, hcal_hf.HcalTrainer", options.rounds)
    base = fresh_seconds("from transformers import AutoModelForSequenceClassification, Trainer", options.rounds)
    yield timed_row("transformers: AutoModelForSequenceClassification, Trainer", base)
    yield timed_row("hcal_hf: HcalForSequenceClassification, HcalTrainer", own)
    yield timed_row("the difference", own - base, target="0.3 s")
