"""SetFit with few documents a leaf: python recipes/benchmarks/setfit_rows.py --data_dir DIR --per_leaf 5

Contrastive pairs over the leaves train the encoder, then logistic regression is fitted on its embeddings (Tunstall et al.,
"Efficient Few-Shot Learning Without Prompts", 2022). A leaf brings its ancestors. Needs `pip install setfit`; the rows
go into --results.
"""

import argparse
import tempfile
import time

import numpy as np
import torch
from baselines import closure_of
from datasets import Dataset
from finetune import Tokens
from results import Row, store
from scoring import Outputs, answers_of, scores
from tasks import ENCODER, add_options


def fit(tokens: Tokens, steps: int, batch: int, seed: int) -> tuple[Outputs, dict[str, float]]:
    """Label sets of validation and test."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(seed)
    words = Transformer(tokens.encoder, max_seq_length=64)
    body = SentenceTransformer(modules=[words, Pooling(words.get_word_embedding_dimension())], device="cpu")
    model = SetFitModel(model_body=body, model_head=LogisticRegression(max_iter=1000), normalize_embeddings=True)
    ends = [max(labels) for labels in tokens.data["train"]["labels"]]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            batch_size=batch,
            num_epochs=1,
            max_steps=steps,
            seed=seed,
            report_to="none",
            show_progress_bar=False,
            save_strategy="no",
        )
        data = Dataset.from_dict({"text": tokens.texts["train"], "label": ends})
        start = time.process_time()
        Trainer(model=model, args=args, train_dataset=data).train()
    seconds = time.process_time() - start
    closure = closure_of(tokens.taxonomy)
    sets, rate = {}, 0.0
    for split in ("validation", "test"):
        start = time.process_time()
        found = np.asarray(model.predict(tokens.texts[split], batch_size=256, show_progress_bar=False))
        rate = len(found) / (time.process_time() - start)
        sets[split] = closure[found.astype(np.int64)]
    parameters = sum(p.numel() for p in body.parameters()) + model.model_head.coef_.size
    facts = {"train_seconds": round(seconds, 1), "documents_per_second": round(rate, 1), "parameters": parameters}
    return Outputs(sets), facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--set", default="clinc150", help="of single paths")
    parser.add_argument("--per_leaf", nargs="+", type=int, default=[1, 5, 10, 50])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=300, help="of --batch_size pairs")
    parser.add_argument("--batch_size", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for per_leaf in options.per_leaf:
        for seed in options.seeds:
            tokens = Tokens(options.set, options.data_dir / options.set, options.encoder, per_leaf, seed)
            outputs, facts = fit(tokens, options.steps, options.batch_size, seed)
            answers = answers_of(outputs, tokens.problem)
            row = Row(
                dataset=options.set,
                method="SetFit",
                regime="few-shot",
                seed=seed,
                ours=False,
                metrics=scores(answers, tokens.problem),
                facts={
                    "chosen": {"steps": options.steps, "batch_size": options.batch_size},
                    **facts,
                    "encoder": ENCODER,
                    "device": "CPU",
                    "threads": options.threads,
                },
                per_leaf=per_leaf,
            )
            store(row, answers, options.results, options.cache)
            print(row.dataset, per_leaf, seed, row.metrics, facts, flush=True)


if __name__ == "__main__":
    main()
