"""Methods on frozen features: baselines, our heads with their variants, and the ablation of HCAL."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from baselines import (
    TFIDF_STRENGTHS,
    Attempt,
    linear_svms,
    local_classifiers,
    logistic_regressions,
    nearest_documents,
    nearest_label_text,
    softmax_over_leaves,
    softmax_over_many_leaves,
    tfidf,
    tfidf_logistic_regressions,
    words_and_characters,
)
from data import SPLITS, Features, Task
from models import (
    ANCHORS,
    BATCH,
    DEFAULT_HEADS,
    EPOCHS,
    HEADS,
    LINEAR,
    count_parameters,
    make_model,
    standardized,
    train,
)
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
# With more labels, a baseline of thousands of classifiers is replaced by one that is fitted at once.
MANY_LABELS = 2000

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
    solution = solve(model, training, validation, strengths=task.strengths, anchored=anchored)
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


def on_words(attempts: Callable[..., Iterator[Attempt]]) -> Callable[..., Iterator[Attempt]]:
    """Returns attempts that read the task with lexical features next to those of the encoder."""
    return lambda task, seed, chosen: attempts(task.with_lexical_features(), seed, chosen)


def baselines_of(task: Task) -> dict[str, Group]:
    """Returns the baselines that are defined for a data set.

    Baselines that fit one classifier of scikit-learn per label, or per end node, are left out where these are thousands and
    a softmax, or a support vector machine over end nodes, stands for them.
    """
    groups = {
        "nearest label text": Group(
            lambda task, seed, chosen: nearest_label_text(
                task.x, task.anchors, task.taxonomy, task.is_single, task.partial_paths
            ),
            {"nearest label text": (None if task.is_single else "independent", "decoded")},
        ),
        "nearest documents": Group(
            lambda task, seed, chosen: nearest_documents(task.x, task.y, task.taxonomy, task.is_single),
            {"nearest documents": (None if task.is_single else "independent", "decoded")},
        ),
    }
    has_many = task.taxonomy.num_labels > MANY_LABELS
    groups |= _over_paths(task, has_many) if task.is_single else _per_label(task, has_many)
    if has_many:
        return groups
    raw, coherent = ("levels", "path_softmax") if task.is_single else ("thresholds", "conditional_sigmoid")
    groups["logistic regression per label"] = Group(
        lambda task, seed, chosen: logistic_regressions(task.x, task.y, task.taxonomy, False),
        {
            "logistic regression per label": ("independent", "thresholds"),
            "logistic regression per label, ancestors closed": ("independent", "decoded"),
        },
    )
    groups["conditional logistic regression"] = Group(
        lambda task, seed, chosen: logistic_regressions(task.x, task.y, task.taxonomy, True),
        {"conditional logistic regression": (coherent, "decoded")},
    )
    if task.name in RELEASED:
        groups["HCAL as released"] = Group(as_released, {"HCAL as released": ("independent", raw)}, seeds=SEEDS)
    else:
        name = "independent + hcal weights"
        weighted = functools.partial(by_adamw, {"head": "independent", "weighting": "hcal"})
        groups[name] = Group(weighted, {name: ("independent", raw)}, seeds=SEEDS)
    return groups


def _over_paths(task: Task, has_many: bool) -> dict[str, Group]:
    """Returns the baselines for documents with one path each."""
    softmax = softmax_over_many_leaves if has_many else softmax_over_leaves
    per_level = functools.partial(linear, {"head": "independent", "anchored": (False,)})
    groups = {
        "TF-IDF, linear SVM": Group(
            lambda task, seed, chosen: linear_svms(words_and_characters(task.texts), task.y, task.taxonomy, True),
            {"TF-IDF, linear SVM": (None, "decoded")},
        ),
        "one softmax per level": Group(
            per_level,
            {
                "one softmax per level": ("independent", "levels"),
                "one softmax per level, best path": ("independent", "decoded"),
            },
        ),
        "softmax over leaves": Group(
            lambda task, seed, chosen: softmax(task.x, task.y, task.taxonomy),
            {"softmax over leaves": (None, "decoded")},
        ),
        "softmax over leaves, lexical": Group(
            on_words(lambda task, seed, chosen: softmax_over_many_leaves(standardized(task), task.y, task.taxonomy)),
            {"softmax over leaves, lexical": (None, "decoded")},
        ),
        "hiclass": Group(
            lambda task, seed, chosen: local_classifiers(task.x, task.y, task.taxonomy),
            {"hiclass, local classifier per parent": (None, "decoded")},
        ),
        "hiclass, TF-IDF": Group(
            lambda task, seed, chosen: local_classifiers(tfidf(task.texts), task.y, task.taxonomy, TFIDF_STRENGTHS),
            {"hiclass, local classifier per parent, TF-IDF": (None, "decoded")},
        ),
    }
    return groups


def _per_label(task: Task, has_many: bool) -> dict[str, Group]:
    """Returns the baselines for documents with several paths."""

    def both_ways(name: str) -> dict[str, tuple[str, str]]:
        return {name: ("independent", "thresholds"), f"{name}, ancestors closed": ("independent", "decoded")}

    flat = functools.partial(linear, {"head": "independent", "anchored": (False,)})
    groups = {
        "independent, L-BFGS, lexical": Group(on_words(flat), both_ways("logistic regression per label, lexical")),
        "TF-IDF, linear SVM": Group(
            lambda task, seed, chosen: linear_svms(words_and_characters(task.texts), task.y, task.taxonomy, False),
            both_ways("TF-IDF, linear SVM"),
        ),
    }
    if has_many:
        groups["independent, L-BFGS"] = Group(flat, both_ways("logistic regression per label"))
        return groups
    groups["TF-IDF, logistic regression"] = Group(
        lambda task, seed, chosen: tfidf_logistic_regressions(words_and_characters(task.texts), task.y),
        both_ways("TF-IDF, logistic regression"),
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
            groups[f"{name}, lexical"] = Group(on_words(attempts), {f"{name}, lexical": (head, "decoded")}, ours=True)
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
    variants = itertools.product(COMPARED[task.label_mode], ("linear", "linear, lexical", "cosine + anchors"))
    return [*baselines_of(task), *(f"{head}, {variant}" for head, variant in variants)]
