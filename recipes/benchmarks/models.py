"""Models of this library on features: their settings, and how their heads are fitted."""

from typing import Any

import torch
from data import SPLITS, Task
from torch.nn import functional as F
from transformers import BertConfig

from hcal_hf import (
    CooccurrenceCounts,
    HcalConfig,
    HcalForSequenceClassification,
    build_weighter,
    fit_head,
    standardize_features,
)

EPOCHS = {"clinc150": 15, "hwv_part": 40, "goemotions": 12, "cei": 30, "debtags": 30, "naics2012": 15}
BATCH = {"clinc150": 128, "hwv_part": 64, "goemotions": 256, "cei": 64, "debtags": 64, "naics2012": 128}
LINEAR: dict[str, Any] = {"score_function": "linear"}
ANCHORS: dict[str, Any] = {"prototype_anchor": "label_text"}
HEADS = {
    "single_path": ("lookahead_softmax", "path_softmax", "conditional_softmax", "independent"),
    "multi_path": ("lookahead_sigmoid", "conditional_sigmoid", "independent"),
}
DEFAULT_HEADS = {mode: heads[0] for mode, heads in HEADS.items()}


def make_model(task: Task, setting: dict[str, Any]) -> HcalForSequenceClassification:
    """Builds a new model that reads features. Its encoder is a placeholder.

    Lexical features are centred and scaled with those of the encoder, as in the regime `lexical`.
    """
    size = task.x["train"].shape[1]
    fields = {"projection_dim": size, "prototype_temperature": 0.07, "label_mode": task.label_mode}
    fields["partial_paths"] = task.partial_paths
    hidden_size = size
    if task.lexical is not None:
        terms, lexical_size = task.lexical.vectors.shape
        fields |= {"lexical_terms": terms - 1, "lexical_features": lexical_size}
        hidden_size -= lexical_size
    encoder = BertConfig(hidden_size=hidden_size, num_hidden_layers=0, num_attention_heads=1, vocab_size=2)
    model = HcalForSequenceClassification(HcalConfig.from_taxonomy(task.taxonomy, encoder, **{**fields, **setting}))
    if task.lexical is not None:
        standardize_features(model, task.x["train"])
    if model.prototypes.is_anchored:
        model.prototypes.anchors.copy_(task.anchors)
        model.prototypes.trained.copy_(task.y["train"].sum(dim=0) > 0)
    if model.label_penalty is not None and model.label_penalty.order.needs_counts:
        documents, nodes = task.y["train"].nonzero(as_tuple=True)
        sizes = documents.bincount(minlength=len(task.y["train"]))
        model.label_penalty.counts = CooccurrenceCounts(sizes.numpy(), nodes.numpy(), task.taxonomy.num_labels)
    return model


@torch.no_grad()
def standardized(task: Task) -> dict[str, torch.Tensor]:
    """Returns unit features of each split, centred and scaled as for our heads."""
    model = make_model(task, {**LINEAR, **ANCHORS})
    return {split: F.normalize(model.projection(states), dim=1) for split, states in task.x.items()}


def logits_of(task: Task, model: HcalForSequenceClassification) -> dict[str, torch.Tensor]:
    """Returns the logits [N, L] of the validation and test documents."""
    with torch.no_grad():
        return {s: model.eval()(pooled_states=task.x[s]).logits for s in SPLITS[1:]}


def count_parameters(model: HcalForSequenceClassification) -> int:
    """Counts the learned parameters outside the encoder."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder"))


def solved(task: Task, setting: dict[str, Any], strength: float, anchored: bool) -> HcalForSequenceClassification:
    """Returns a model whose linear head is fitted by L-BFGS.

    Args:
        task: the documents.
        setting: fields of the configuration.
        strength: C, the inverse strength of the regularisation.
        anchored: whether the weights are regularised towards the embeddings of the label texts, or towards 0.
    """
    torch.manual_seed(0)
    model = make_model(task, {**LINEAR, **setting})
    fit_head(model, task.x["train"], task.y["train"], strength, anchored, max_iterations=300)
    return model


def train(task: Task, setting: dict[str, Any], seed: int) -> HcalForSequenceClassification:
    """Returns a model whose head is trained by AdamW with linearly decaying learning rates.

    Args:
        task: the documents.
        setting: `learning_rate` (of the projection), `prototype_learning_rate`, `weighting` (uniform by default) and fields
            of the configuration.
        seed: seed of the initial weights and of the order of the documents.
    """
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
    prototypes = model.prototypes
    if small := [p for p in (prototypes.bias, prototypes.anchor_scale, prototypes.radius) if p is not None]:
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
            counts = (output.task_counts[:levels],) if weighter.needs_counts else ()
            weights = weighter(losses, present[:levels], *counts)
            optimizer.zero_grad()
            (model.weigh_contrast(weights, present) * output.task_losses).sum().backward()
            optimizer.step()
            weighter.after_step(losses, present[:levels])
            schedule.step()
    return model.eval()
