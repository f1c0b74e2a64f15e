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
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from baselines import TFIDF_STRENGTHS, Attempt, local_classifiers, logistic_regressions, softmax_over_leaves, tfidf
from data import ENCODER, SPLITS, Features, Task, add_options
from models import ANCHORS, BATCH, DEFAULT_HEADS, EPOCHS, HEADS, LINEAR, count_parameters, make_model, train
from result_rows import Row, store
from scoring import Outputs, Problem, label_sets_of, scores, selection_score
from transformers import BertConfig, PrinterCallback

from hcal_hf import (
    HcalConfig,
    HcalForSequenceClassification,
    HcalTrainer,
    HcalTrainingArguments,
    compute_class_weight,
    solve,
)

# Learning rates (of the projection, of the prototypes) tried for cosine scores.
RATES = {
    "single_path": ((1e-4, 1e-3), (1e-4, 3e-3), (1e-3, 1e-3)),
    "multi_path": ((1e-4, 3e-3), (1e-3, 3e-3), (1e-3, 1e-2)),
}
RELEASED_RATES = (1e-2, 3e-2, 1e-1, 3e-1)
# Data sets that HCAL as released is defined for: all leaves lie on the last level, and documents have one path.
RELEASED = {"clinc150"}
SEEDS = 5
FEWEST_SECONDS = 1e-4

# The weights of HJCL's instance-wise contrast tried on features. Its label-wise contrast needs tokens.
HJCL_SETTINGS = [{"contrast_kwargs": {"label_weight": 0, "instance_weight": weight}} for weight in (0.1, 0.5)]

COSINE_VARIANTS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "cosine + anchors": ANCHORS,
    "cosine + anchors, likelihood": {**ANCHORS, "weighting": "likelihood"},
    "cosine + hcal weights": {"weighting": "hcal"},
    "cosine + contrast": {"contrast": "aggregate", "contrast_alpha": 0.1},
    "cosine + hjcl": {"contrast": "hjcl", "tuned": HJCL_SETTINGS},
    "cosine, no perturbation": {"perturbation": 0.0},
}
# Geometries of linear prototypes, all trained by AdamW. A step compares up to 256 labels with all others.
GEOMETRY_ORDERS = [{"geometry_order": order} for order in ("hops", "mixed")]
GEOMETRIES: dict[str, dict[str, Any]] = {
    "linear by AdamW": {},
    "hyperbolic penalty": {"geometry": "hyperbolic_penalty", "geometry_rows": 256, "tuned": GEOMETRY_ORDERS},
    "hyperbolic": {"geometry": "hyperbolic", "geometry_rows": 256, "tuned": GEOMETRY_ORDERS},
}
# The settings (gamma-, gamma+, margin) tried for the asymmetric loss.
ASYMMETRIC = (
    (1, 0, 0.0),
    (2, 0, 0.0),
    (4, 0, 0.0),
    (2, 0, 0.05),
    (4, 0, 0.05),
    (2, 1, 0.0),
    (2, 2, 0.0),
    (4, 1, 0.05),
)
# Our heads of the comparison.
COMPARED = {"single_path": ("lookahead_softmax",), "multi_path": ("lookahead_sigmoid", "conditional_sigmoid")}
# All parts of HCAL with equal weights. --ablation removes one at a time, or adds adaptive weights.
EVERYTHING: dict[str, Any] = {**ANCHORS, "contrast": "aggregate", "contrast_alpha": 0.1}
ABLATIONS: dict[str, dict[str, Any]] = {
    "all parts": EVERYTHING,
    "minus prototypes": {**LINEAR, "perturbation": 0.0},
    "minus label text": {**EVERYTHING, "prototype_anchor": None},
    "minus perturbation": {**EVERYTHING, "perturbation": 0.0},
    "minus contrast": {**EVERYTHING, "contrast": None},
    "minus look-ahead": EVERYTHING,
    "minus coherence": {**EVERYTHING, "head": "independent"},
    "plus adaptive weights": {**EVERYTHING, "weighting": "hcal_rate"},
    "plus adaptive weights as released": {**EVERYTHING, "weighting": "hcal"},
}
# The ablations without the default head.
ABLATED_HEADS = {"minus look-ahead": {"single_path": "conditional_softmax", "multi_path": "conditional_sigmoid"}}


@dataclass
class Group:
    """Rows that share the same fitted models.

    Attributes:
        attempts (`Callable`): fits models, given (task, seed, setting). If the setting is None, all settings are tried.
        rows (`dict`): the (head, decision) of [`Outputs`] for each row, by its name.
        ours (`bool`): whether the method belongs to this library. Otherwise it is a baseline.
        seeds (`int`): number of seeds, 1 if nothing is random.
    """

    attempts: Callable[[Task, int, dict[str, Any] | None], Iterator[Attempt]]
    rows: Mapping[str, tuple[str | None, str]]
    ours: bool = False
    seeds: int = 1


def attempt_of(task: Task, model: HcalForSequenceClassification, setting: dict[str, Any]) -> Attempt:
    """Wraps a fitted model."""

    @torch.no_grad()
    def predict(split: str) -> torch.Tensor:
        return model.eval()(pooled_states=task.x[split]).logits

    return Attempt(setting, predict, count_parameters(model))


def linear(setting: dict[str, Any], task: Task, seed: int, chosen: dict[str, Any] | None) -> Iterator[Attempt]:
    """Fits linear scores by L-BFGS. `solve` chooses the regularisation and whether the model is anchored."""
    setting = dict(setting)
    anchored, class_weight = setting.pop("anchored", (True, False)), setting.pop("class_weight", None)
    torch.manual_seed(0)
    model = make_model(task, {**LINEAR, **setting})
    if class_weight is not None:
        counts = task.y["train"].sum(dim=0).numpy()
        model.label_weights = torch.from_numpy(compute_class_weight(class_weight, task.taxonomy, counts))
    if not len(task.x["validation"]):
        raise ValueError(f"Data set {task.name} has no validation documents, which C is chosen on. Add some.")
    training, validation = ((task.x[s], task.y[s]) for s in SPLITS[:2])
    solution = solve(model, training, validation, anchored=anchored)
    yield attempt_of(task, model, {"C": solution.strength, "anchors": solution.anchored})


def by_adamw(setting: dict[str, Any], task: Task, seed: int, chosen: dict[str, Any] | None) -> Iterator[Attempt]:
    """Trains heads by AdamW, for each pair of learning rates and each of the settings `tuned`."""
    setting = dict(setting)
    tuned = setting.pop("tuned", [{}])
    for (rate, prototype_rate), others in itertools.product(RATES[task.label_mode], tuned):
        tried = {"learning_rate": rate, "prototype_learning_rate": prototype_rate, **others}
        if chosen in (None, tried):
            yield attempt_of(task, train(task, {**setting, **tried}, seed), tried)


def by_adamw_asymmetric(task: Task, seed: int, chosen: dict[str, Any] | None) -> Iterator[Attempt]:
    """Trains the default multi_path head with the asymmetric loss, for each of its settings and pair of learning rates."""
    for gamma_negative, gamma_positive, margin in ASYMMETRIC:
        loss = {"gamma_negative": gamma_negative, "gamma_positive": gamma_positive, "margin": margin}
        rates = None if chosen is None else {name: value for name, value in chosen.items() if name not in loss}
        if chosen not in (None, {**(rates or {}), **loss}):
            continue
        setting = {**ANCHORS, "classification_loss": "asl", "classification_loss_kwargs": loss}
        for attempt in by_adamw({"head": DEFAULT_HEADS["multi_path"], **setting}, task, seed, rates):
            yield replace(attempt, setting={**attempt.setting, **loss})


def as_released(task: Task, seed: int, chosen: dict[str, Any] | None) -> Iterator[Attempt]:
    """Trains the `paper` preset: HCAL's model, optimiser and weights. Only the learning rate (released: 0.01) is tuned."""
    for rate in RELEASED_RATES:
        if chosen not in (None, {"learning_rate": rate}):
            continue
        torch.manual_seed(seed)
        encoder = BertConfig(
            hidden_size=task.x["train"].shape[1], num_hidden_layers=0, num_attention_heads=1, vocab_size=2
        )
        model = HcalForSequenceClassification(HcalConfig.paper(task.taxonomy, encoder))
        model.encoder.requires_grad_(False)
        args = HcalTrainingArguments.paper(
            "outputs/benchmarks/released",
            learning_rate=rate,
            num_train_epochs=EPOCHS[task.name],
            per_device_train_batch_size=BATCH[task.name],
            head_solver="optimizer",
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
        )
        trainer = HcalTrainer(model, args, lambda batch: batch, Features(task.x["train"], task.y["train"]))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        yield attempt_of(task, model, {"learning_rate": rate})


def baselines_of(task: Task) -> dict[str, Group]:
    """Returns the baselines that are defined for a data set."""

    def regressions(conditional: bool) -> Callable[..., Iterator[Attempt]]:
        return lambda task, seed, chosen: logistic_regressions(task.x, task.y, task.taxonomy, conditional)

    single = task.label_mode == "single_path"
    raw, coherent = ("levels", "path_softmax") if single else ("thresholds", "conditional_sigmoid")
    weighted = functools.partial(by_adamw, {"head": "independent", "weighting": "hcal"})
    groups = {
        "logistic regression per label": Group(
            regressions(False),
            {
                "logistic regression per label": ("independent", "thresholds"),
                "logistic regression per label, ancestors closed": ("independent", "decoded"),
            },
        ),
        "conditional logistic regression": Group(
            regressions(True), {"conditional logistic regression": (coherent, "decoded")}
        ),
    }
    if task.name in RELEASED:
        groups["HCAL as released"] = Group(as_released, {"HCAL as released": ("independent", raw)}, seeds=SEEDS)
    else:
        name = "independent + hcal weights"
        groups[name] = Group(weighted, {name: ("independent", raw)}, seeds=SEEDS)
    if not single:
        return groups
    groups["one softmax per level"] = Group(
        functools.partial(linear, {"head": "independent", "anchored": (False,)}),
        {
            "one softmax per level": ("independent", "levels"),
            "one softmax per level, best path": ("independent", "decoded"),
        },
    )
    groups["softmax over leaves"] = Group(
        lambda task, seed, chosen: softmax_over_leaves(task.x, task.y, task.taxonomy),
        {"softmax over leaves": (None, "decoded")},
    )
    groups["hiclass"] = Group(
        lambda task, seed, chosen: local_classifiers(task.x, task.y, task.taxonomy),
        {"hiclass, local classifier per parent": (None, "decoded")},
    )
    groups["hiclass, TF-IDF"] = Group(
        lambda task, seed, chosen: local_classifiers(tfidf(task.texts), task.y, task.taxonomy, TFIDF_STRENGTHS),
        {"hiclass, local classifier per parent, TF-IDF": (None, "decoded")},
    )
    return groups


def ours_of(task: Task) -> dict[str, Group]:
    """Returns all heads with their variants, and the ablation. `compared` names those of the comparison."""
    groups = {}
    for head in HEADS[task.label_mode]:
        for title, setting in (
            ("linear", {**ANCHORS}),
            ("linear, always anchors", {**ANCHORS, "anchored": (True,)}),
            ("linear, no anchors", {"anchored": (False,)}),
            ("linear, balanced", {**ANCHORS, "class_weight": "balanced"}),
        ):
            name = f"{head}, {title}"
            attempts = functools.partial(linear, {"head": head, **setting})
            groups[name] = Group(attempts, {name: (head, "decoded")}, ours=True)
    for head, (title, setting) in itertools.product(HEADS[task.label_mode], COSINE_VARIANTS.items()):
        name = f"{head}, {title}"
        attempts = functools.partial(by_adamw, {"head": head, **setting})
        groups[name] = Group(attempts, {name: (head, "decoded")}, ours=True, seeds=SEEDS)
    head = DEFAULT_HEADS[task.label_mode]
    for title, setting in GEOMETRIES.items():
        name = f"{head}, {title}"
        attempts = functools.partial(by_adamw, {"head": head, **LINEAR, **ANCHORS, **setting})
        groups[name] = Group(attempts, {name: (head, "decoded")}, ours=True, seeds=SEEDS)
    if task.label_mode == "multi_path":
        name = f"{DEFAULT_HEADS['multi_path']}, cosine + anchors, asymmetric loss"
        outputs = (DEFAULT_HEADS["multi_path"], "decoded")
        groups[name] = Group(by_adamw_asymmetric, {name: outputs}, ours=True, seeds=SEEDS)
    for title, setting in ABLATIONS.items():
        fields = {"head": ABLATED_HEADS.get(title, DEFAULT_HEADS)[task.label_mode], **setting}
        decision = "levels" if task.label_mode == "single_path" else "thresholds"
        outputs = (fields["head"], "decoded" if fields["head"] != "independent" else decision)
        groups[title] = Group(functools.partial(by_adamw, fields), {title: outputs}, ours=True, seeds=SEEDS)
    return groups


def compared(task: Task) -> list[str]:
    """Names the groups that `make benchmark` compares."""
    variants = itertools.product(COMPARED[task.label_mode], ("linear", "cosine + anchors"))
    return [*baselines_of(task), *(f"{head}, {variant}" for head, variant in variants)]


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
