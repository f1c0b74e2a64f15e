"""Writes the cards of this folder from real runs.

    python model_cards/make.py --data_dir DIR --encoder FOLDER

DIR holds the folders clinc150, goemotions, hwv_part and cei (train, validation and test files; recipes/ names their
sources). FOLDER holds a byte-identical copy of the Hub's sentence-transformers/all-MiniLM-L6-v2. Without --encoder it is
loaded from the Hub. Each run trains the head on frozen features like `freeze_encoder: true`, tunes the temperature, and one
threshold if documents have several labels, on the validation split, evaluates the test split, and saves the model to
OUTPUT/NAME. The card and its pictures are copied to model_cards/NAME. A model that is already in OUTPUT/NAME is not trained
again, only evaluated.

    python model_cards/make.py --data_dir DIR --finetuned goemotions=outputs/benchmarks/finetune/RUN

writes the card of a model that recipes/benchmarks/finetune.py has trained and kept, as
model_cards/goemotions-finetuned.
"""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import AutoTokenizer, TrainerState, set_seed

from hcal_hf import (
    DataArguments,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    Taxonomy,
    build_taxonomy,
    encode_splits,
    load_data,
    pooled_features,
)

HERE = Path(__file__).parent
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
FINE_TUNED = "-finetuned"
# Maximum lengths of finetune.py that are shorter than those of the recipes.
FINE_TUNED_LENGTHS = {"clinc150": 64, "goemotions": 64}
RECIPES: dict[str, dict[str, Any]] = {
    "clinc150": {
        "label_mode": "single_path",
        "max_length": 256,
        "left_out": [["oos"]],
        "details": {
            "language": "en",
            "dataset": "CLINC150",
            "dataset_description": (
                "Queries to an assistant, domain > intent, in the published split (clinc/oos-eval, `data_full.json` and "
                "`domains.json`). The out-of-scope queries (100, 100 and 1,000) are left out: this model gives every "
                "query an intent."
            ),
            "dataset_license": "CC BY 3.0",
        },
    },
    "goemotions": {
        "label_mode": "multi_path",
        "max_length": 256,
        "details": {
            "language": "en",
            "dataset": "GoEmotions",
            "dataset_description": (
                "Reddit comments, sentiment > Ekman class > emotion, any number of emotions a comment, in the published "
                "split (monologg/GoEmotions-pytorch, `data/original` with its group and Ekman labels). 32 texts are in "
                "both train and test, as published."
            ),
            "dataset_license": "Apache-2.0 by that repository",
        },
    },
    "hwv_part": {
        "label_mode": "single_path",
        "max_length": 256,
        "details": {
            "language": "en",
            "dataset": "Hierarchical WikiVitals, a part",
            "dataset_description": (
                "Abstracts of Wikipedia's vital articles in a tree of topics (RomanPlaud/revisitingHTC): test as "
                "published, train and validation cut from the published validation set, since the training file is not in "
                "the source. 221 of the 913 labels of the test have no training document, so their leaves are guessed by "
                "their words. Not comparable with the paper's results."
            ),
            "dataset_license": "MIT by that repository; the texts are Wikipedia's",
        },
    },
    "cei": {
        "label_mode": "multi_path",
        "partial_paths": True,
        "max_length": 256,
        "details": {
            "language": "en",
            "dataset": "Chemical Exposure Information corpus",
            "dataset_description": (
                "Abstracts from PubMed on biomonitoring and exposure routes (sb895/chemical-exposure-information-corpus), "
                "any number of labels an abstract, those of its sentences joined; paths may end at inner nodes. A random "
                "split, 70/10/20 over the sorted PubMed ids, since none is published."
            ),
            "dataset_license": "GPL-3.0",
        },
    },
}


def tables_of(recipe: dict[str, Any], folder: Path) -> tuple[DataArguments, DatasetDict]:
    """Returns the arguments that texts are read with, and the documents that belong to the task."""
    tables = DataArguments(data_dir=str(folder), max_length=recipe["max_length"])
    raw = load_data(tables)
    if left_out := recipe.get("left_out"):
        raw = raw.filter(lambda row: row["labels"] != left_out)
    return tables, raw


def make(name: str, folder: Path, encoder: str, output: Path, cache: Path) -> None:
    """Trains a model on frozen features and writes its card."""
    recipe = RECIPES[name]
    mode: Any = recipe["label_mode"]
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tables, raw = tables_of(recipe, folder)
    stored = folder / "taxonomy.json"
    is_whole = "left_out" not in recipe and stored.exists()
    taxonomy = Taxonomy.from_json(stored) if is_whole else build_taxonomy(raw)
    partial = bool(recipe.get("partial_paths"))
    settings: dict[str, Any] = {"label_mode": mode, "partial_paths": partial}
    settings |= {"score_function": "linear", "prototype_anchor": "label_text"}
    model = HcalForSequenceClassification.from_encoder(encoder, taxonomy, **settings)
    model.encoder.requires_grad_(False)
    encoded = encode_splits(raw, taxonomy, tokenizer, tables, mode, partial)
    table = DatasetDict(
        {split: pooled_features(model, rows, tokenizer, cache_dir=cache) for split, rows in encoded.items()}
    )
    stored_state = output / name / "trainer_state.json"
    if stored_state.exists():
        model = HcalForSequenceClassification.from_pretrained(output / name)
        model.encoder.requires_grad_(False)
    settings = {"seed": 0, "report_to": "none", "per_device_eval_batch_size": 256, "tune": "micro_f1"}
    args = HcalTrainingArguments(str(output / name), **settings)
    trainer = HcalTrainer(model, args, None, table["train"], table["validation"], tokenizer)
    if stored_state.exists():
        trainer.state = TrainerState.load_from_json(str(stored_state))
    else:
        trainer.train()
    finish(trainer, name, recipe, table, output)


def make_finetuned(name: str, trained: Path, folder: Path, output: Path) -> None:
    """Writes the card of a model that recipes/benchmarks/finetune.py has trained and kept in the folder `trained`."""
    base = name.removesuffix(FINE_TUNED)
    recipe = RECIPES[base]
    model = HcalForSequenceClassification.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    args = torch.load(trained / "training_args.bin", weights_only=False)
    args.output_dir = str(output / name)
    tables, raw = tables_of(recipe, folder)
    tables.max_length = FINE_TUNED_LENGTHS.get(base, recipe["max_length"])
    partial = model.config.partial_paths
    table = encode_splits(raw, model.taxonomy, tokenizer, tables, recipe["label_mode"], partial)
    trainer = HcalTrainer(model, args, None, table["train"], table["validation"], tokenizer)
    trainer.state = TrainerState.load_from_json(str(trained / "trainer_state.json"))
    if recipe["label_mode"] == "multi_path":
        # The same way as in the tables of recipes/benchmarks.
        trainer.tune_thresholds(table["validation"], metric="macro_f1", granularity="label", resamples=8)
    finish(trainer, name, recipe, table, output)


def finish(trainer: HcalTrainer, name: str, recipe: dict[str, Any], table: DatasetDict, output: Path) -> None:
    """Evaluates the test split, saves the model and copies its card."""
    trainer.create_model_card(model_name=name, finetuned_from=ENCODER, **recipe["details"])
    trainer.evaluate(table["test"], metric_key_prefix="test")
    trainer.save_model()
    trainer.save_state()
    target = HERE / name
    target.mkdir(exist_ok=True)
    for file in ("README.md", "weights.png", "scores.png"):
        (target / file).unlink(missing_ok=True)
        if (output / name / file).exists():
            shutil.copy(output / name / file, target / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--names", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument(
        "--finetuned", nargs="*", default=[], metavar="SET=FOLDER", help="fine-tuned models to write the card of"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/model_cards"))
    parser.add_argument("--cache", type=Path, default=None, help="folder for features, by default OUTPUT/features")
    options = parser.parse_args()
    for pair in options.finetuned:
        name, trained = pair.split("=", 1)
        make_finetuned(name + FINE_TUNED, Path(trained), options.data_dir / name, options.output)
    for name in options.names if not options.finetuned else ():
        folder = options.data_dir / name
        make(name, folder, os.fspath(options.encoder), options.output, options.cache or options.output / "features")


if __name__ == "__main__":
    main()
