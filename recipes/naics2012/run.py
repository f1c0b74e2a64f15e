"""Classifies lines of business by industry: first from the code book alone, then with labelled entries.

    python recipes/naics2012/run.py [--output_dir outputs/naics2012]

The industries are those of the North American Industry Classification System 2012: 2,209 codes on five levels. The
documents are entries of its index, such as "Horseshoe nails, iron or steel, made in wire drawing plants". Three classifiers
are compared on the test split: a model that has seen no labelled entry, a hierarchical head on the same frozen encoder, and
logistic regression over the 1,065 industries of six digits on the same features. The settings of both fits were chosen on
the validation split (README.md).
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from transformers import AutoTokenizer

from hcal_hf import (
    Decision,
    HcalForSequenceClassification,
    Taxonomy,
    adapt,
    default_encoder,
    encode_dataset,
    fit_head,
    pooled_features,
    read_named_taxonomy,
    read_table,
)

DATA = Path(__file__).with_name("data")
CODE_BOOK = DATA / "code_book.csv.gz"
HEAD_STRENGTH, HEAD_ITERATIONS = 4.0, 40
LOGISTIC_STRENGTH, LOGISTIC_ITERATIONS = 100.0, 100
SHOWN = 5


def read_split(name: str, taxonomy: Taxonomy) -> tuple[list[str], torch.Tensor]:
    """Returns the texts of a split and their nodes with all ancestors, int64 [N, 5]."""
    table = read_table(DATA / f"{name}.csv.gz")
    nodes = [taxonomy.complete([taxonomy.index(code)]).tolist() for code in table["code"]]
    return table["text"][:], torch.tensor(nodes)


def states_of(model: HcalForSequenceClassification, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Returns the pooled states of texts [N, hidden_size]."""
    tokens = encode_dataset(Dataset.from_dict({"text": texts}), model.taxonomy, tokenizer, labels=None)
    return torch.from_numpy(np.asarray(pooled_features(model, tokens, tokenizer, batch_size=128)["pooled_states"][:]))


@torch.no_grad()
def predict(model: HcalForSequenceClassification, states: torch.Tensor) -> np.ndarray:
    """Returns the end node of the predicted path of each document [N]."""
    model.eval()
    decision, ends = Decision.from_config(model.config), []
    for chunk in states.split(512):
        path = decision.decode(model(pooled_states=chunk).logits, model.taxonomy)
        ends.append(path.shape[1] - 1 - path.flip(1).to(torch.uint8).argmax(dim=1))  # nodes are sorted by depth
    return torch.cat(ends).numpy()


def logistic_regression(train: torch.Tensor, ends: np.ndarray, test: torch.Tensor) -> np.ndarray:
    """Returns the end nodes that logistic regression predicts from unit features, one class per end node."""
    model = LogisticRegression(C=LOGISTIC_STRENGTH, max_iter=LOGISTIC_ITERATIONS, tol=1e-6)
    with warnings.catch_warnings():  # stopping early is more accurate on the validation split than convergence
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(F.normalize(train, dim=1).numpy(), ends)
    return model.predict(F.normalize(test, dim=1).numpy())


def main() -> None:
    """Runs the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/naics2012"), help="folder for both models")
    parser.add_argument("--encoder", default=None, help="name on the Hub or folder; MiniLM-L6 by default")
    args = parser.parse_args()
    encoder = args.encoder or default_encoder()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    named = read_named_taxonomy(CODE_BOOK)
    taxonomy, book = named.taxonomy, read_table(CODE_BOOK)
    labels: dict[str, Any] = {"descriptions": dict(zip(book["id"], book["description"])), "label_names": named.names}
    labels["table_options"] = {"text": ["text"], "labels": ["code"]}  # for hcal evaluate and hcal predict
    (train_texts, train_nodes), (texts, nodes) = (read_split(name, taxonomy) for name in ("train", "test"))
    truth, results = nodes.max(dim=1).values.numpy(), []

    def report(name: str, ends: np.ndarray, start: float) -> None:
        sectors = [taxonomy.complete([end])[0] == row[0] for end, row in zip(ends.tolist(), nodes.numpy())]
        results.append((name, 100 * np.mean(ends == truth), 100 * np.mean(sectors), time.perf_counter() - start))
        print(f"{name}: {results[-1][1]:.1f} % of {len(truth):,} test entries, {results[-1][3]:.0f} s", flush=True)

    print(f"Code book: {len(taxonomy):,} codes on {len(taxonomy.levels)} levels.", flush=True)
    start = time.perf_counter()
    first = HcalForSequenceClassification.zero_shot(encoder, taxonomy, **labels)
    states = states_of(first, tokenizer, texts)
    report("code book alone", predict(first, states), start)
    start = time.perf_counter()
    adapt(first, tokenizer, train_texts)
    report("code book and unlabelled entries", predict(first, states), start)
    first.save_pretrained(args.output_dir / "code_book")
    tokenizer.save_pretrained(args.output_dir / "code_book")

    start = time.perf_counter()
    fields: dict[str, Any] = {"score_function": "linear", "prototype_anchor": "label_text"}
    model = HcalForSequenceClassification.from_encoder(encoder, taxonomy, **labels, **fields)
    train_states = states_of(model, tokenizer, train_texts)
    fit_head(model, train_states, train_nodes, HEAD_STRENGTH, max_iterations=HEAD_ITERATIONS)
    report("hierarchical head on labelled entries", predict(model, states), start)
    model.save_pretrained(args.output_dir / "model")
    tokenizer.save_pretrained(args.output_dir / "model")
    start = time.perf_counter()
    ends = logistic_regression(train_states, train_nodes.max(dim=1).values.numpy(), states)
    report("logistic regression on the same features", ends, start)

    print(f"\n{'':42s}{'industry':>9s}{'sector':>8s}{'seconds':>9s}")
    for name, whole, sector, seconds in results:
        print(f"{name:42s}{whole:9.1f}{sector:8.1f}{seconds:9.0f}")
    print("\nFive predictions of the hierarchical head:")
    shown = model.config.shown_names
    for row in range(0, len(texts), len(texts) // SHOWN)[:SHOWN]:
        end = int(predict(model, states[row : row + 1])[0])
        mark = "right" if end == truth[row] else f"wrong, it is {shown[truth[row]]}"
        print(f"\n  {texts[row]}\n    {' > '.join(shown[node] for node in taxonomy.complete([end]))}\n    ({mark})")
    print(f'\nThe models are in {args.output_dir}. Try one: hcal predict {args.output_dir / "model"} "soy bean farm"')


if __name__ == "__main__":
    main()
