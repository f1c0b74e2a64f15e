"""Measures SetFit.

    python recipes/benchmarks/setfit_rows.py --data_dir DIR --sets clinc150 goemotions [--per_leaf 1 5 10 50]

The learning rate of --rates and the number of --steps are chosen on the validation split with the first seed.
Contrastive pairs over the end nodes of paths train the encoder. Then logistic regression is fitted on its embeddings
(Tunstall et al., "Efficient Few-Shot Learning Without Prompts", 2022). It is multinomial over the end nodes if
documents have one path each, and one-vs-rest otherwise. Ancestors are added to the prediction. C is chosen on the
validation split, as for the other logistic regressions. This needs `pip install setfit`. Rows are stored in
--results.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from baselines import Attempt, logistic_regressions, softmax_over_leaves
from data import ENCODER, MAX_LENGTHS, SPLITS, Tokens, add_options
from datasets import Dataset
from result_rows import Row, store
from scoring import Outputs, end_nodes, label_sets_of, scores, selection_score

from hcal_hf import Taxonomy


def truth_of(tokens: Tokens) -> dict[str, np.ndarray]:
    """Returns the labels of each split with their ancestors, bool [N, L]."""
    truth = dict(tokens.problem.truth)
    truth["train"] = np.zeros((len(tokens.texts["train"]), tokens.taxonomy.num_labels), dtype=bool)
    for row, labels in enumerate(tokens.data["train"]["labels"]):
        truth["train"][row, labels] = True
    return truth


def contrast(
    tokens: Tokens, ends: np.ndarray, options: argparse.Namespace, seed: int, rate: float, steps: int
) -> tuple[Any, float]:
    """Trains the encoder on SetFit's pairs. Returns the encoder and the processor seconds."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(seed)
    words = Transformer(tokens.encoder, max_seq_length=MAX_LENGTHS.get(tokens.name, 64))
    body = SentenceTransformer(modules=[words, Pooling(words.get_word_embedding_dimension())], device="cpu")
    single = tokens.label_mode == "single_path"
    strategy = None if single else "one-vs-rest"
    # The classifier only decides which kind of pairs SetFit makes. `attempts` fits the one that is used.
    model = SetFitModel(body, LogisticRegression(), multi_target_strategy=strategy, normalize_embeddings=True)
    # SetFit lists every pair of documents before it samples, so the number of documents is limited.
    rows = np.random.default_rng(seed).permutation(len(ends))[: options.pair_documents]
    labels = ends.argmax(axis=1)[rows].tolist() if single else ends[rows].astype(int).tolist()
    data = Dataset.from_dict({"text": [tokens.texts["train"][row] for row in rows], "label": labels})
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            batch_size=options.batch_size,
            num_epochs=1,
            max_steps=steps,
            body_learning_rate=rate,
            seed=seed,
            report_to="none",
            show_progress_bar=False,
            save_strategy="no",
        )
        start = time.process_time()
        Trainer(model=model, args=args).train_embeddings(data["text"][:], data["label"][:], args=args)
        return body, time.process_time() - start


def attempts(
    x: dict[str, torch.Tensor], truth: dict[str, np.ndarray], tokens: Tokens
) -> Iterator[tuple[Attempt, Outputs]]:
    """Fits classifiers on the embeddings and yields them with their outputs."""
    taxonomy, single = tokens.taxonomy, tokens.label_mode == "single_path"
    y = {s: torch.from_numpy(end_nodes(truth[s], taxonomy)).float() for s in SPLITS}
    classifiers = softmax_over_leaves(x, y, taxonomy) if single else logistic_regressions(x, y, taxonomy, False)
    for attempt in classifiers:
        values = {split: attempt.predict(split) for split in SPLITS[1:]}
        if single:
            yield attempt, Outputs(values)
        else:
            closed = {split: with_ancestors(logits, taxonomy) for split, logits in values.items()}
            yield attempt, Outputs(closed, "independent", "thresholds")


def with_ancestors(logits: torch.Tensor, taxonomy: Taxonomy) -> torch.Tensor:
    """Raises each logit to the maximum of the logits below it, [N, L], so that ancestors are predicted too."""
    logits = logits.clone()
    for node in reversed(range(taxonomy.num_labels)):  # children come after their parents
        for parent in taxonomy.parents(node):
            logits[:, parent] = torch.maximum(logits[:, parent], logits[:, node])
    return logits


def run(
    name: str, per_leaf: int | None, seed: int, options: argparse.Namespace, learning_rate: float, steps: int
) -> tuple[float, Row, Any]:
    """Trains the encoder and chooses C. Returns the score on the validation split, the row and the label sets."""
    tokens = Tokens(name, options.data_dir / name, options.encoder, per_leaf, seed)
    truth = truth_of(tokens)
    ends = end_nodes(truth["train"], tokens.taxonomy)
    body, seconds = contrast(tokens, ends, options, seed, learning_rate, steps)
    x, rate = {}, 0.0
    for split in SPLITS:
        start = time.process_time()
        x[split] = body.encode(
            tokens.texts[split],
            batch_size=256,
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        rate = len(x[split]) / (time.process_time() - start)
    start = time.process_time()
    tried = list(attempts(x, truth, tokens))
    attempt, outputs = max(tried, key=lambda pair: selection_score(pair[1], tokens.problem))
    seconds += (time.process_time() - start) / len(tried)
    label_sets = label_sets_of(outputs, tokens.problem)
    row = Row(
        dataset=name,
        method="SetFit",
        regime="fine-tuned" if per_leaf is None else "few-shot",
        seed=seed,
        ours=False,
        metrics=scores(label_sets, tokens.problem),
        facts={
            "chosen": {**attempt.setting, "learning_rate": learning_rate, "steps": steps},
            "rates": list(options.rates),
            "steps": list(options.steps),
            "batch_size": options.batch_size,
            "pair_documents": min(options.pair_documents, len(x["train"])),
            "precision": "float32",
            "train_seconds": round(seconds, 1),
            "documents_per_second": round(rate, 1),
            "parameters": sum(p.numel() for p in body.parameters()) + attempt.parameters,
            "encoder": ENCODER,
            "device": "CPU",
            "threads": options.threads,
        },
        per_leaf=per_leaf,
    )
    score = selection_score(outputs, tokens.problem)
    print(name, per_leaf, seed, f"validation {score:.4f}", row.metrics, row.facts, flush=True)
    return score, row, label_sets


def run_all(name: str, per_leaf: int | None, options: argparse.Namespace) -> None:
    """Chooses the setting with the first seed, and stores the rows of all seeds."""
    first, *others = options.seeds
    settings = list(itertools.product(options.rates, options.steps))
    tried = [run(name, per_leaf, first, options, *setting) for setting in settings]
    best = max(range(len(settings)), key=lambda i: tried[i][0])
    for _, row, label_sets in [tried[best], *(run(name, per_leaf, seed, options, *settings[best]) for seed in others)]:
        store(row, label_sets, options.results, options.cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--sets", nargs="+", default=["clinc150"])
    parser.add_argument(
        "--per_leaf",
        nargs="+",
        type=int,
        default=[None],
        help="numbers of training documents per leaf; by default all",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", nargs="+", type=int, default=[300], help="numbers of batches of pairs")
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-5], help="learning rates of the encoder")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--pair_documents", type=int, default=7500, help="most documents that pairs are made of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.sets:
        for per_leaf in options.per_leaf:
            run_all(name, per_leaf, options)


if __name__ == "__main__":
    main()
