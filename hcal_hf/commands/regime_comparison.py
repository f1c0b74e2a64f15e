"""Trains a model in several regimes and keeps the best."""

from collections.abc import Callable, Sequence

from transformers import set_seed

from ..training.arguments import HcalTrainingArguments
from ..training.trainer import HcalTrainer


def train_best(
    regimes: Sequence[str], train: Callable[[str], HcalTrainer], args: HcalTrainingArguments
) -> tuple[HcalTrainer, list[str]]:
    """Trains in each regime. The validation documents decide which model is kept, by the mean of micro- and macro-F1.

    Each training starts with the same seed, so it gives the same model as a run with this regime alone.

    Args:
        regimes: names from [`REGIMES`]. The first one wins a tie.
        train: builds and trains a model in a regime, and returns its trainer.
        args: gives the seed.

    Returns:
        the trainer of the best model, and the decision as sentences.

    Raises:
        ValueError: for several regimes without validation documents.
    """
    if len(regimes) == 1:
        return train(regimes[0]), []
    best: tuple[float, str, HcalTrainer] | None = None
    scores = []
    for regime in regimes:
        set_seed(args.seed)
        trainer = train(regime)
        if trainer.eval_dataset is None:
            raise ValueError(
                f"Several regimes ({', '.join(regimes)}) need validation documents to choose from: give one regime, or "
                "documents for validation."
            )
        metrics = trainer.evaluate()
        score = (metrics["eval_micro_f1"] + metrics["eval_macro_f1"]) / 2
        scores.append(f"{regime} {100 * score:.1f}")
        if best is None or score > best[0]:
            best = score, regime, trainer
    assert best is not None
    line = (
        f"Regime: {best[1]}. It has the best mean of micro- and macro-F1 on the {len(best[2].eval_dataset):,} validation "
        f"documents: {', '.join(scores)}."
    )
    if best[2].is_world_process_zero():
        print(line, flush=True)
    return best[2], [line]
