"""Measures heads and baselines on frozen features.

    python recipes/benchmarks/frozen.py --data_dir DIR --sets clinc150 cei [--methods NAME ...]

DIR holds a folder per data set with train, validation and test files and taxonomy.json. The encoder's mean-pooled
states are computed once and kept in --cache. Each method tries its settings on the validation split. The best one is
scored on the test split, for each seed. Rows are stored in --results, and label sets for the bootstrap in --cache.
results.py writes the tables. With --train_size N or --per_leaf N, methods are trained on N random documents, or on N
of each leaf, a new sample for each seed.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from baselines import Attempt
from data import ENCODER, Task, add_options
from groups import ABLATIONS, SEEDS, Group, baselines_of, compared, ours_of
from result_rows import Row, store
from scoring import Outputs, Problem, label_sets_of, scores, selection_score

from hcal_hf.training.solver import STRENGTHS

FEWEST_SECONDS = 1e-4


def run(
    group: Group, samples: Callable[[int], Task], seeds: int
) -> Iterator[tuple[str, int, dict[str, Any], Outputs, Any]]:
    """Fits the models of a group and yields the name, seed, facts, outputs and problem of each row.

    Settings are chosen with the first sample. If only the sample is random, they are chosen again for each seed.
    """
    first_setting: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        task = samples(seed)
        problem = Problem.of(task)
        shared = []
        if group.seeds == 1 or seed == 0:
            shared = [measured(attempt, seconds) for attempt, seconds in timed(group.attempts(task, seed, None))]
        for name, (head, decision) in group.rows.items():
            models = shared or [
                measured(attempt, seconds)
                for attempt, seconds in timed(group.attempts(task, seed, first_setting[name]))
            ]
            outputs = [Outputs(values, head, decision) for _, values, _ in models]
            best = 0
            if len(models) > 1:
                best = max(range(len(models)), key=lambda i: selection_score(outputs[i], problem))
            attempt, _, times = models[best]
            first_setting.setdefault(name, attempt.setting)
            facts = {"chosen": attempt.setting, **times, "parameters": attempt.parameters}
            yield name, seed, facts, outputs[best], problem


def timed(attempts: Iterator[Attempt]) -> Iterator[tuple[Attempt, float]]:
    """Yields each fitted model with the processor seconds of its fit."""
    while True:
        start = time.process_time()
        attempt = next(attempts, None)
        if attempt is None:
            return
        yield attempt, time.process_time() - start


def measured(attempt: Attempt, seconds: float) -> tuple[Attempt, dict[str, Any], dict[str, float]]:
    """Predicts the validation and test documents. Returns the model, its predictions, and its times."""
    values = {"validation": attempt.predict("validation")}
    start = time.process_time()
    values["test"] = attempt.predict("test")
    rate = len(values["test"]) / max(time.process_time() - start, FEWEST_SECONDS)
    return attempt, values, {"train_seconds": round(seconds, 2), "documents_per_second": round(rate)}


def run_set(name: str, options: argparse.Namespace) -> None:
    """Runs the methods on one data set and stores their rows."""
    torch.set_num_threads(options.threads)
    task = Task(name, options.data_dir / name, options.encoder, options.cache)
    task.strengths = options.strengths
    groups = {**baselines_of(task), **ours_of(task)}
    unknown = set(options.methods or ()) - set(groups)
    if unknown:
        raise SystemExit(f"Data set {name} has no methods {sorted(unknown)}. Choose from {sorted(groups)}.")
    for title in options.methods or (list(ABLATIONS) if options.ablation else compared(task)):
        group = groups[title]
        varied = options.train_size is not None or options.per_leaf is not None
        samples: Callable[[int], Task] = lambda seed: task  # noqa: E731
        if options.per_leaf is not None:
            samples = functools.partial(task.sample_each_leaf, options.per_leaf)
        elif options.train_size is not None:
            samples = functools.partial(task.sample, options.train_size)
        seeds = min(options.seeds, SEEDS if varied else group.seeds)
        for method, seed, facts, outputs, problem in run(group, samples, seeds):
            label_sets = label_sets_of(outputs, problem)
            row = Row(
                dataset=name,
                method=method,
                regime="ablation" if options.ablation else "frozen" if options.per_leaf is None else "few-shot",
                seed=seed,
                ours=group.ours,
                metrics=scores(label_sets, problem),
                facts={
                    **facts,
                    **({"head": outputs.head} if group.ours else {}),
                    **({"strengths": options.strengths} if options.strengths is not STRENGTHS else {}),
                    "threads": options.threads,
                    "device": "CPU",
                    "encoder": ENCODER,
                },
                train_size=options.train_size,
                per_leaf=options.per_leaf,
            )
            store(row, label_sets, options.results, options.cache)
            print(name, method, seed, row.metrics, facts, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--sets", nargs="+", default=["goemotions", "clinc150", "hwv_part", "cei"])
    parser.add_argument(
        "--methods", nargs="+", default=None, help="names of groups; by default those of the comparison"
    )
    parser.add_argument(
        "--ablation", action="store_true", help="all parts of HCAL, and variants that add or remove one"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--train_size", type=int, default=None, help="number of random training documents; by default all"
    )
    parser.add_argument(
        "--per_leaf", type=int, default=None, help="number of training documents per leaf; by default all"
    )
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=STRENGTHS, help="values of C that our linear heads try"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of data sets that run in parallel")
    options = parser.parse_args()
    if options.jobs == 1:
        for name in options.sets:
            run_set(name, options)
        return
    with ProcessPoolExecutor(options.jobs) as pool:
        for future in [pool.submit(run_set, name, options) for name in options.sets]:
            future.result()


if __name__ == "__main__":
    main()
