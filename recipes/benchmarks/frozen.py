"""Heads and baselines on frozen features: python recipes/benchmarks/frozen.py --data_dir DIR --sets clinc150 cei

For each data set (a folder with train, validation and test files and taxonomy.json) the encoder's mean-pooled states are
computed once, into --cache; each method tries its settings on the validation split, and the best one is scored on the test
split, for each seed. The rows go into --results, the answers beside the features, for the bootstrap; results.py writes
the tables. --train_size N trains on N random documents, --per_leaf N on N of each leaf, others for each seed.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from baselines import TFIDF_STRENGTHS, Attempt, local_classifiers, logistic_regressions, softmax_over_leaves, tfidf
from results import Row, store
from scoring import Outputs, Problem, answers_of, scores, selection_score
from tasks import ENCODER, SPLITS, Features, Task, add_options, make_model
from transformers import BertConfig, PrinterCallback

from hcal_hf import HcalConfig, HcalForSequenceClassification, HcalTrainer, HcalTrainingArguments
from hcal_hf.training.solver import fit_head, solve
from hcal_hf.training.weighting import build_weighter

EPOCHS = {"clinc150": 15, "hwv_part": 40, "goemotions": 12, "cei": 30}
BATCH = {"clinc150": 128, "hwv_part": 64, "goemotions": 256, "cei": 64}
# (learning rate of the projection, of the prototypes) that cosines are tried with.
RATES = {
    "single_path": ((1e-4, 1e-3), (1e-4, 3e-3), (1e-3, 1e-3)),
    "multi_path": ((1e-4, 3e-3), (1e-3, 3e-3), (1e-3, 1e-2)),
}
RELEASED_RATES = (1e-2, 3e-2, 1e-1, 3e-1)
# Sets that HCAL as released is defined for: trees whose leaves all lie on the last level, one path a document.
RELEASED = {"clinc150"}
SEEDS = 5
FEWEST_SECONDS = 1e-4

LINEAR: dict[str, Any] = {"score_function": "linear"}
ANCHORS: dict[str, Any] = {"prototype_anchor": "label_text"}
HEADS = {
    "single_path": ("lookahead_softmax", "path_softmax", "conditional_softmax", "independent"),
    "multi_path": ("lookahead_sigmoid", "conditional_sigmoid", "independent"),
}
DEFAULT_HEADS = {mode: heads[0] for mode, heads in HEADS.items()}
COSINE_VARIANTS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "cosine + anchors": ANCHORS,
    "cosine + anchors, likelihood": {**ANCHORS, "weighting": "likelihood"},
    "cosine + hcal weights": {"weighting": "hcal"},
    "cosine + contrast": {"contrast": "aggregate", "contrast_alpha": 0.1},
    "cosine, no perturbation": {"perturbation": 0.0},
}
# Our heads of the comparison.
COMPARED = {"single_path": ("lookahead_softmax",), "multi_path": ("lookahead_sigmoid", "conditional_sigmoid")}
# All parts of HCAL with equal weights; --ablation takes one away at a time, and adds what adaptive weights do.
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
# Those of them that do not have the default head.
ABLATED_HEADS = {"minus look-ahead": {"single_path": "conditional_softmax", "multi_path": "conditional_sigmoid"}}


@dataclass
class Group:
    """Rows that are read from the same fitted models.

    Attributes:
        attempts (`Callable`): from (task, seed, setting or None) to fitted models, each setting or the one asked for.
        rows (`dict`): name of each row to (head, decision) of its [`Outputs`].
        ours (`bool`): whether it is this library's, or a baseline.
        seeds (`int`): 1 where nothing is random.
    """

    attempts: Callable[[Task, int, dict[str, Any] | None], Iterator[Attempt]]
    rows: Mapping[str, tuple[str | None, str]]
    ours: bool = False
    seeds: int = 1


def learned(model: HcalForSequenceClassification) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder"))


def attempt_of(task: Task, model: HcalForSequenceClassification, setting: dict[str, Any]) -> Attempt:
    @torch.no_grad()
    def predict(split: str) -> torch.Tensor:
        return model.eval()(pooled_states=task.x[split]).logits

    return Attempt(setting, predict, learned(model))


def linear(setting: dict[str, Any], task: Task, seed: int, chosen: dict[str, Any] | None) -> Iterator[Attempt]:
    """Linear scores fitted by L-BFGS, the regularisation and whether there are anchors chosen by `solve`."""
    setting = dict(setting)
    anchored = setting.pop("anchored", (True, False))
    torch.manual_seed(0)
    model = make_model(task, {**LINEAR, **setting})
    if not len(task.x["validation"]):
        raise ValueError(f"{task.name} has no validation documents to choose C on.")
    training, validation = ((task.x[s], task.y[s]) for s in SPLITS[:2])
    solution = solve(model, training, validation, anchored=anchored)
    yield attempt_of(task, model, {"C": solution.strength, "anchors": solution.anchored})


def solved(task: Task, setting: dict[str, Any], strength: float, anchored: bool) -> HcalForSequenceClassification:
    """A model whose head is fitted by L-BFGS with a given strength of the regularisation."""
    torch.manual_seed(0)
    model = make_model(task, {**LINEAR, **setting})
    fit_head(model, task.x["train"], task.y["train"], strength, anchored, max_iterations=300)
    return model


def by_adamw(setting: dict[str, Any], task: Task, seed: int, chosen: dict[str, Any] | None) -> Iterator[Attempt]:
    """Heads trained by AdamW with linearly falling rates."""
    for rate, prototype_rate in RATES[task.label_mode]:
        rates = {"learning_rate": rate, "prototype_learning_rate": prototype_rate}
        if chosen in (None, rates):
            yield attempt_of(task, train(task, {**setting, **rates}, seed), rates)


def train(task: Task, setting: dict[str, Any], seed: int) -> HcalForSequenceClassification:
    """A model whose head is trained by AdamW with a linearly falling rate."""
    setting = dict(setting)
    rate, prototype_rate = setting.pop("learning_rate"), setting.pop("prototype_learning_rate")
    weighting = setting.pop("weighting", "uniform")
    torch.manual_seed(seed)
    x, y = task.x["train"], task.y["train"]
    model = make_model(task, setting)
    weighter = build_weighter(weighting, model.num_levels)
    groups: list[dict[str, Any]] = [
        {"params": [model.projection.weight], "lr": rate},
        {"params": [model.prototypes.weight], "lr": prototype_rate},
    ]
    if small := [p for p in (model.prototypes.bias, model.prototypes.anchor_scale) if p is not None]:
        groups.append({"params": small, "lr": prototype_rate, "weight_decay": 0.0})
    if own := list(model.head.parameters()):
        groups.append({"params": own, "lr": prototype_rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    epochs, batch = EPOCHS[task.name], BATCH[task.name]
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            output = model(pooled_states=x[rows], labels=y[rows])
            present = output.task_counts > 0
            levels = model.num_levels
            losses = output.task_losses[:levels].detach()
            counted = (output.task_counts[:levels],) if weighter.needs_counts else ()
            weights = weighter(losses, present[:levels], *counted)
            optimizer.zero_grad()
            (model.weigh_contrast(weights, present) * output.task_losses).sum().backward()
            optimizer.step()
            weighter.after_step(losses, present[:levels])
            schedule.step()
    return model.eval()


def as_released(task: Task, seed: int, chosen: dict[str, Any] | None) -> Iterator[Attempt]:
    """The `paper` preset: HCAL's model, optimiser and weights; only the learning rate (released: 0.01) is chosen."""
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
    def regressions(conditional: bool) -> Callable[..., Iterator[Attempt]]:
        return lambda task, seed, chosen: logistic_regressions(task.x, task.y, task.taxonomy, conditional)

    single = task.label_mode == "single_path"
    raw, coherent = ("levels", "path_softmax") if single else ("thresholds", "conditional_sigmoid")
    weighted = functools.partial(by_adamw, {"head": "independent", "weighting": "hcal"})
    groups = {
        "logistic regression a label": Group(
            regressions(False),
            {
                "logistic regression a label": ("independent", "thresholds"),
                "logistic regression a label, ancestors closed": ("independent", "decoded"),
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
    groups["one softmax a level"] = Group(
        functools.partial(linear, {"head": "independent", "anchored": (False,)}),
        {
            "one softmax a level": ("independent", "levels"),
            "one softmax a level, best path": ("independent", "decoded"),
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
    """All heads and their variants, and the ablation; `compared` names those of the comparison."""
    groups = {}
    for head in HEADS[task.label_mode]:
        for title, setting in (
            ("linear", {**ANCHORS}),
            ("linear, always anchors", {**ANCHORS, "anchored": (True,)}),
            ("linear, no anchors", {"anchored": (False,)}),
        ):
            name = f"{head}, {title}"
            attempts = functools.partial(linear, {"head": head, **setting})
            groups[name] = Group(attempts, {name: (head, "decoded")}, ours=True)
    for head, (title, setting) in itertools.product(HEADS[task.label_mode], COSINE_VARIANTS.items()):
        name = f"{head}, {title}"
        attempts = functools.partial(by_adamw, {"head": head, **setting})
        groups[name] = Group(attempts, {name: (head, "decoded")}, ours=True, seeds=SEEDS)
    for title, setting in ABLATIONS.items():
        whole = {"head": ABLATED_HEADS.get(title, DEFAULT_HEADS)[task.label_mode], **setting}
        decision = "levels" if task.label_mode == "single_path" else "thresholds"
        reading = (whole["head"], "decoded" if whole["head"] != "independent" else decision)
        groups[title] = Group(functools.partial(by_adamw, whole), {title: reading}, ours=True, seeds=SEEDS)
    return groups


def compared(task: Task) -> list[str]:
    """The groups of the comparison of `make benchmark`."""
    variants = itertools.product(COMPARED[task.label_mode], ("linear", "cosine + anchors"))
    return [*baselines_of(task), *(f"{head}, {variant}" for head, variant in variants)]


def run(
    group: Group, samples: Callable[[int], Task], seeds: int
) -> Iterator[tuple[str, int, dict[str, Any], Outputs, Any]]:
    """Name, seed, facts, outputs and problem of each row; settings are chosen with the first sample, for each seed where
    nothing but the sample is random."""
    kept: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        task = samples(seed)
        problem = Problem.of(task)
        tried = []
        if group.seeds == 1 or seed == 0:
            tried = [fitted(attempt, seconds) for attempt, seconds in timed(group.attempts(task, seed, None))]
        for name, (head, decision) in group.rows.items():
            found = tried or [fitted(a, seconds) for a, seconds in timed(group.attempts(task, seed, kept[name]))]
            outputs = [Outputs(values, head, decision) for _, values, _ in found]
            best = max(range(len(found)), key=lambda i: selection_score(outputs[i], problem) if len(found) > 1 else 0)
            attempt, _, facts = found[best]
            kept.setdefault(name, attempt.setting)
            whole = {"chosen": attempt.setting, **facts, "parameters": attempt.parameters}
            yield name, seed, whole, outputs[best], problem


def timed(attempts: Iterator[Attempt]) -> Iterator[tuple[Attempt, float]]:
    """Each attempt with the processor seconds that fitting it took."""
    while True:
        start = time.process_time()
        attempt = next(attempts, None)
        if attempt is None:
            return
        yield attempt, time.process_time() - start


def fitted(attempt: Attempt, seconds: float) -> tuple[Attempt, dict[str, Any], dict[str, float]]:
    """What the attempt says of validation and test documents, and how quickly."""
    values = {"validation": attempt.predict("validation")}
    start = time.process_time()
    values["test"] = attempt.predict("test")
    rate = len(values["test"]) / max(time.process_time() - start, FEWEST_SECONDS)
    return attempt, values, {"train_seconds": round(seconds, 2), "documents_per_second": round(rate)}


def run_set(name: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    task = Task(name, options.data_dir / name, options.encoder, options.cache)
    groups = {**baselines_of(task), **ours_of(task)}
    unknown = set(options.methods or ()) - set(groups)
    if unknown:
        raise SystemExit(f"{name} has no methods {sorted(unknown)}, only {sorted(groups)}")
    chosen = options.methods or (list(ABLATIONS) if options.ablation else compared(task))
    for title in chosen:
        group = groups[title]
        varied = options.train_size is not None or options.per_leaf is not None
        samples: Callable[[int], Task] = lambda seed: task  # noqa: E731
        if options.per_leaf is not None:
            samples = functools.partial(task.sample_each_leaf, options.per_leaf)
        elif options.train_size is not None:
            samples = functools.partial(task.sample, options.train_size)
        seeds = min(options.seeds, SEEDS if varied else group.seeds)
        for row, seed, facts, outputs, problem in run(group, samples, seeds):
            answers = answers_of(outputs, problem)
            found = Row(
                dataset=name,
                method=row,
                regime="ablation" if options.ablation else "frozen" if options.per_leaf is None else "few-shot",
                seed=seed,
                ours=group.ours,
                metrics=scores(answers, problem),
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
            store(found, answers, options.results, options.cache)
            print(name, row, seed, found.metrics, facts, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--sets", nargs="+", default=["goemotions", "clinc150", "hwv_part", "cei"])
    parser.add_argument("--methods", nargs="+", default=None, help="names of rows; those of the comparison by default")
    parser.add_argument("--ablation", action="store_true", help="all parts of HCAL, less or more one of them")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--train_size", type=int, default=None, help="random training documents; all by default")
    parser.add_argument("--per_leaf", type=int, default=None, help="training documents of each leaf; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="sets that run side by side")
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
