"""HCAL for sequence classification: any transformer encoder, label prototypes and a head over the hierarchy."""

import contextlib
import difflib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .anchors import embed_texts, label_texts
from .card_file import card_on_hub, save_minimal_card
from .configuration_hcal import HcalConfig
from .heads import HierarchicalHead, build_head
from .hub import clear_push_errors
from .label_extension import add_labels
from .log_space import log_probs_to_logits
from .objectives import aggregate_losses, feature_gradient_norms, num_processes
from .pipeline_hcal import HierarchicalTextClassificationPipeline  # noqa: F401 (a saved model carries what this file imports)
from .prototypes import LabelPrototypes
from .targets import Targets
from .taxonomy import Taxonomy

logger = logging.get_logger(__name__)

# Arguments of from_encoder that go to the encoder's from_pretrained; everything else belongs to HcalConfig.
_LOADER_ARGUMENTS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


@dataclass
class HcalOutput(ModelOutput):
    """
    Output of [`HcalForSequenceClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Uniform mean over the levels that are present in the batch, plus contrast_alpha times the contrast tasks'.
        logits (`torch.FloatTensor` of shape `[B, L]`, *optional*, returned with `return_logits=True`, the default):
            logit(p) of each node's probability, always finite; sigmoid(logits) is the probability under every head.
        task_losses (`torch.FloatTensor` of shape `[T]`, *optional*, returned with `labels`):
            Unweighted mean loss of each task (`model.task_names`); 0 for a task absent from the batch.
        task_counts (`torch.LongTensor` of shape `[T]`, *optional*, returned with `labels`):
            The denominator of each task's mean; 0 for a task absent from the batch.
        task_gradient_norms (`torch.FloatTensor` of shape `[D]`, *optional*, returned with `gradient_norms=True`):
            The norm of the gradient of each level's task loss with respect to `features`.
        features (`torch.FloatTensor` of shape `[B, d]`):
            L2-normalised document features.
        hidden_states, attentions:
            The encoder's, where asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    task_losses: torch.Tensor | None = None
    task_counts: torch.Tensor | None = None
    task_gradient_norms: torch.Tensor | None = None
    features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class HcalPreTrainedModel(PreTrainedModel):
    """Loading, saving and weight initialisation of HCAL models."""

    config_class = HcalConfig
    config: HcalConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # Whatever the encoder has; the encoder itself refuses what it lacks.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # In half precision small steps would be lost on what is trained from scratch.
    _keep_in_fp32_modules_strict = {"projection", "prototypes", "head"}
    # Our loss is a mean over the batch that forward sees; the Trainer must not count label cells for it.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LabelPrototypes):
            init.normal_(module.weight, mean=0.0, std=module.init_std)
            if module.is_anchored:
                init.zeros_(module.anchors)
                init.ones_(module.trained)
            if module.is_linear:
                init.copy_(module.depths, torch.from_numpy(self.taxonomy.depths.copy()))
            if module.bias is not None:
                init.zeros_(module.bias)
            if module.anchor_scale is not None:
                init.ones_(module.anchor_scale)
        elif isinstance(module, HierarchicalHead):
            for name, value in module.hierarchy_buffers().items():
                init.copy_(getattr(module, name), value)
            for name, start in module.initial_values().items():
                if getattr(module, name, None) is not None:
                    init.constant_(getattr(module, name), start)
        elif isinstance(module, nn.Linear):
            # Keeps the encoder's geometry: cosines start as those of (a projection of) the pooled states.
            init.orthogonal_(module.weight)
        else:
            super()._init_weights(module)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Uploads the model with its code to the Hub; arguments and result as for any
        [`~transformers.PreTrainedModel`] (`private`, `token`, `revision`, `commit_message`, ...). The tokenizer has a
        `push_to_hub` of its own.

        Raises:
            ConnectionError: if the push is cut off; pushing again completes it.
        """
        with clear_push_errors(repo_id):
            if kwargs.get("create_pr"):
                return super().push_to_hub(repo_id, *args, **kwargs)
            with card_on_hub(self, repo_id, kwargs.get("token"), kwargs.get("revision")):
                return super().push_to_hub(repo_id, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """[`~transformers.PreTrainedModel.save_pretrained`], with the model's code and a short model card, where there is
        no README.md that somebody wrote or that says more of this model."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            save_minimal_card(self, save_directory)


class HcalForSequenceClassification(HcalPreTrainedModel):
    """A transformer encoder with label prototypes and a hierarchical head.

    Use [`from_encoder`] to put it on a pretrained encoder, and `from_pretrained` to load a trained model.

    Args:
        config ([`HcalConfig`]): the configuration.
        encoder (`PreTrainedModel`, *optional*): an encoder with its weights; made anew from `config.encoder_config` by
            default.

    Attributes:
        taxonomy ([`Taxonomy`]): the hierarchy of `config`.
        prototypes ([`LabelPrototypes`]): `prototypes.weight` is [L, d] in label order.
        task_names (`list[str]`): names of the T tasks, in the order of `task_losses`.
    """

    def __init__(self, config: HcalConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.taxonomy: Taxonomy = config.to_taxonomy()
        if not self.taxonomy.num_labels:
            raise ValueError(
                "The configuration has no labels: make it with HcalConfig.from_taxonomy(taxonomy, encoder_config), or the "
                "model with HcalForSequenceClassification.from_encoder(encoder, taxonomy)."
            )
        self.encoder = AutoModel.from_config(config.encoder_config) if encoder is None else encoder
        if "add_pooling_layer" in inspect.signature(type(self.encoder).__init__).parameters:
            self.encoder.pooler = None  # never used here; as a parameter without gradient it would break DDP
        hidden_size = _hidden_size(config.encoder_config)
        size = hidden_size if config.projection_dim is None else config.projection_dim
        self.projection = nn.Linear(hidden_size, size, bias=False)
        self.prototypes = LabelPrototypes(
            self.taxonomy.num_labels,
            size,
            config.perturbation,
            anchor_size=hidden_size if config.prototype_anchor else None,
            depths=torch.from_numpy(self.taxonomy.depths.copy()) if config.score_function == "linear" else None,
            # A softmax gains nothing from biases, and they would tell labels with documents from those without.
            has_bias=config.label_mode == "multi_path",
        )
        self.head = build_head(config, self.taxonomy)
        levels = range(self.head.num_tasks)
        self.task_names: list[str] = [f"level_{k}" for k in levels]
        if config.contrast:
            self.task_names += [f"contrast_{k}" for k in levels]
        self.post_init()

    @classmethod
    def from_encoder(
        cls,
        encoder: str,
        taxonomy: Taxonomy,
        preset: str | None = None,
        descriptions: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> "HcalForSequenceClassification":
        """A new model on a pretrained encoder, its head untrained.

        Args:
            encoder (`str`): name on the Hub or folder of any model that `AutoModel` loads.
            taxonomy ([`Taxonomy`]): the label hierarchy.
            preset (`"paper"`, *optional*): start from [`HcalConfig.paper`] instead of the defaults.
            descriptions (`dict[str, str]`, *optional*): words for labels, with `prototype_anchor="label_text"`; a label
                without any is read by its name after its parents' names.
            kwargs: fields of [`HcalConfig`] (`label_mode`, `pooling`, ...), and arguments of the encoder's
                `from_pretrained` (`dtype`, `revision`, `token`, `attn_implementation`, ...).

        Raises:
            TypeError: for an unknown argument.
            ValueError: if the encoder's architecture is not part of transformers, or a field of the configuration is
                invalid.
        """
        derived = {"encoder_config", "labels", "edges", "id2label", "label2id", "hcal_format_version"}
        fields = set(HcalConfig.__dataclass_fields__) - derived
        for name in kwargs:
            if name not in fields and name not in _LOADER_ARGUMENTS:
                close = difflib.get_close_matches(name, [*fields, *_LOADER_ARGUMENTS], n=3)
                raise TypeError(f"from_encoder has no argument {name!r}. Closest: {close or 'none'}.")
        if preset not in (None, "paper"):
            raise ValueError(f'preset must be "paper" or None, got {preset!r}.')
        if not isinstance(encoder, str | os.PathLike):
            raise TypeError(f"encoder must be a name on the Hub or a folder, got {type(encoder).__name__}.")
        if not isinstance(taxonomy, Taxonomy):
            raise TypeError(
                f"taxonomy must be a Taxonomy, got {type(taxonomy).__name__}: Taxonomy.from_paths makes one."
            )
        loader = {name: kwargs.pop(name) for name in _LOADER_ARGUMENTS if name in kwargs}
        names = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
        files = {name: loader[name] for name in names if name in loader}
        stored, _ = PreTrainedConfig.get_config_dict(
            encoder, **{k: v for k, v in files.items() if k != "trust_remote_code"}
        )
        if stored.get("model_type") == HcalConfig.model_type:
            raise ValueError(
                f"{encoder} is an HCAL model: load it with HcalForSequenceClassification.from_pretrained."
            )
        if stored.get("is_encoder_decoder"):
            raise ValueError(f"{encoder} is an encoder-decoder: use a model that is an encoder or a decoder alone.")
        model = AutoModel.from_pretrained(encoder, **loader)
        if model.config.model_type not in CONFIG_MAPPING_NAMES:
            raise ValueError(
                f"The encoder's model type {model.config.model_type!r} comes from custom code: a saved HCAL model could "
                "not be loaded without it. Use an architecture that is part of transformers."
            )
        make_config = HcalConfig.paper if preset == "paper" else HcalConfig.from_taxonomy
        # A new configuration sets the attention of its sub-configurations too: keep what the encoder was loaded with.
        attention = model.config._attn_implementation
        config = make_config(taxonomy, model.config, attn_implementation=attention, **kwargs)
        hcal = cls(config, encoder=model).to(device=model.device)
        if config.prototype_anchor:
            config.label_texts = label_texts(taxonomy, descriptions)
            hcal.embed_labels(AutoTokenizer.from_pretrained(encoder, **files))
        elif descriptions:
            raise ValueError('descriptions are read by prototype_anchor="label_text" alone: give that too.')
        return hcal

    def embed_labels(self, tokenizer: Any, batch_size: int = 64) -> None:
        """Computes the anchors of the prototypes anew from `config.label_texts` with the encoder as it is now.

        Raises:
            ValueError: if the model's prototypes are not anchored.
        """
        if not self.prototypes.is_anchored:
            raise ValueError('The prototypes have no anchors: make the model with prototype_anchor="label_text".')
        assert self.config.label_texts is not None
        states = embed_texts(self, tokenizer, self.config.label_texts, batch_size)
        self.prototypes.anchors.copy_(states)

    def add_labels(
        self, paths: Sequence[Sequence[str]], tokenizer: Any, descriptions: Mapping[str, str] | None = None
    ) -> list[str]:
        """Adds labels to a trained model from their label text, without training.

        The prototype of a new label points in the direction of its embedded text. The bias of a sigmoid head and the
        threshold start at the mean of its siblings. The risk calibration is dropped, because it holds for the old label
        set only. The order of labels changes, because they stay sorted by depth. Probabilities of old labels do not
        change, except those of siblings under a softmax head, and those of ancestors under a lookahead head, which a new
        child makes more likely.

        Args:
            paths: the path of each new label. The last step is new, the other steps exist.
            tokenizer: the tokenizer of the encoder.
            descriptions (`dict[str, str]`, *optional*): label texts of the new labels.

        Returns:
            The new labels, as written in `config.labels`.

        Raises:
            ValueError: if the prototypes are not anchored (or L-BFGS found the anchors useless), a step of a path other
                than the last is unknown, or a label exists already.
        """
        return add_labels(self, paths, tokenizer, descriptions)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pooled_states: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        gradient_norms: bool = False,
        return_logits: bool = True,
        **kwargs: Any,
    ) -> HcalOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds:
                The encoder's own inputs.
            pooled_states (`torch.Tensor` of shape `[B, hidden_size]`, *optional*):
                What the pooled encoder would return, computed before; given instead of the encoder's inputs.
            labels (`torch.Tensor`, *optional*):
                Ancestor-complete: multi-hot, floating, of shape `[B, L]`, or int64 node indices `[B, K]` padded with
                -100.
            noise (`torch.Tensor` of shape `[L, d]`, *optional*):
                The perturbation U of the prototypes. Drawn anew in training mode by default, by each process its own
                ([`HcalTrainer`] gives all the same); in evaluation mode there is none unless given.
            gradient_norms (`bool`):
                Also returns `task_gradient_norms`, at the cost of one backward pass through prototypes and head for each
                level; needs `labels`.
            return_logits (`bool`):
                False leaves `logits` out: the losses do without them, and with many labels they cost more than the losses
                ([`HcalTrainer`] trains so). Without `labels` too, only the features are computed, as [`PathSearch`] takes
                them.

        In training mode `logits` come from the same perturbed prototypes as the loss; in evaluation mode from the
        clean ones. `config.score_temperature` divides the scores behind the logits, in both modes, and not those of the
        losses, which stay comparable whatever was calibrated.
        """
        outputs = None
        if pooled_states is None:
            inputs = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                "inputs_embeds": inputs_embeds,
            }
            inputs = {name: value for name, value in inputs.items() if value is not None}
            outputs = self.encoder(**inputs, **kwargs, return_dict=True)
            pooled_states = self.pool(outputs.last_hidden_state, attention_mask)
        elif input_ids is not None or inputs_embeds is not None:
            raise ValueError(
                "Give either pooled_states or the encoder's inputs (input_ids or inputs_embeds), not both."
            )

        # Cosines and everything after them in at least float32, also under autocast.
        with _without_autocast(pooled_states.device):
            projected = self.projection(pooled_states.to(self.projection.weight.dtype))
            features = F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)
            if noise is None and self.training:
                noise = self.prototypes.sample_noise()
            logits = loss = task_losses = task_counts = norms = None
            if return_logits or labels is not None:
                scores = self.head.scores(self.prototypes.products(features, self.projection, noise))
            if return_logits:
                logits = log_probs_to_logits(self.head.log_probs(scores, self.config.score_temperature))
            if labels is not None:
                targets = Targets(labels, self.taxonomy.num_labels)
                task_losses, task_counts = self._task_losses(features, noise, scores, targets)
                present = task_counts > 0
                uniform = present[: self.num_levels] / present[: self.num_levels].sum().clamp(min=1)
                loss = (self.weigh_contrast(uniform, present) * task_losses).sum()
                if gradient_norms:
                    norms = feature_gradient_norms(task_losses[: self.num_levels], features)

        return HcalOutput(
            loss=loss,
            logits=logits,
            task_losses=task_losses,
            task_counts=task_counts,
            task_gradient_norms=norms,
            features=features,
            hidden_states=None if outputs is None else outputs.get("hidden_states"),
            attentions=None if outputs is None else outputs.get("attentions"),
        )

    def _task_losses(
        self, features: torch.Tensor, noise: torch.Tensor | None, scores: torch.Tensor, targets: Targets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, counts = self.head.losses(scores, targets), self.head.counts(targets)
        if self.config.objective == "document" and not self.config.contrast:
            return losses, counts
        prototypes = self.prototypes(self.projection, noise).to(features)
        # In evaluation a process may well be alone with its batch.
        gather = self.training and num_processes() > 1
        means, classes = aggregate_losses(
            features, prototypes, targets, self.taxonomy, self.config.prototype_temperature, gather
        )
        if self.config.objective == "aggregate":
            # The leaf level keeps its documents, every level above is trained on its class means (HCAL).
            losses = torch.cat([means[:-1], losses[-1:]])
            counts = torch.cat([classes[:-1], counts[-1:]])
        if self.config.contrast:
            losses, counts = torch.cat([losses, means]), torch.cat([counts, classes])
        return losses, counts

    @property
    def num_levels(self) -> int:
        """Number D of levels, each with one classification task; a weighter weighs these."""
        return self.head.num_tasks

    def weigh_contrast(self, weights: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Weights of all T tasks from those of the D classification tasks: contrast_k gets contrast_alpha times the weight
        of level k.

        Args:
            weights (`torch.Tensor` of shape `[D]`).
            present (`torch.Tensor` of shape `[T]`, bool): the tasks that occur in the batch.
        """
        if not self.config.contrast:
            return weights
        return torch.cat([weights, self.config.contrast_alpha * weights * present[self.num_levels :]])

    @property
    def document_tasks(self) -> list[bool]:
        """For each task whether its loss is a mean over documents, whose sums over batches add up; a mean over the
        classes of a batch is not."""
        per_document = [True] * len(self.task_names)
        if self.config.objective == "aggregate":
            per_document[: self.num_levels - 1] = [False] * (self.num_levels - 1)
        if self.config.contrast:
            per_document[self.num_levels :] = [False] * self.num_levels
        return per_document

    def count_tasks(self, labels: torch.Tensor) -> torch.Tensor:
        """The `task_counts` [T] of the document tasks, from `labels` (as for `forward`) alone; 0 for contrast tasks, which
        count classes."""
        counts = self.head.counts(Targets(labels, self.taxonomy.num_labels))
        return F.pad(counts, (0, len(self.task_names) - len(counts)))

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that the encoder has positions for; None where it has no such limit."""
        config: Any = self.config.encoder_config
        limit = getattr(config, "max_position_embeddings", None)
        embeddings: Any = getattr(self.encoder, "embeddings", None)
        if limit and getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None) is not None:
            limit -= embeddings.position_embeddings.padding_idx + 1  # RoBERTa counts positions from there
        return limit

    def pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Document vectors [B, hidden_size] from token states [B, S, hidden_size] and a mask [B, S] (1 = a token).

        Padding may be on either side. The mean is taken in at least float32.
        """
        if attention_mask is None:
            attention_mask = hidden_states.new_ones(hidden_states.shape[:2])
        if self.config.pooling == "mean":
            states = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
            mask = attention_mask.to(states)[:, :, None]
            return ((states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).to(hidden_states)
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        if self.config.pooling == "cls":
            chosen = attention_mask.long().argmax(dim=1)
        else:
            chosen = torch.where(attention_mask > 0, positions, -1).amax(dim=1).clamp(min=0)
        rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)  # len() is a constant to torch.export
        return hidden_states[rows, chosen]

    def probabilities(self, outputs: HcalOutput) -> torch.Tensor:
        """The probability [B, L] of each node, in the order of `config.labels`."""
        assert outputs.logits is not None
        return torch.sigmoid(outputs.logits)


def _hidden_size(encoder_config: Any) -> int:
    for name in ("hidden_size", "d_model", "dim", "n_embd"):
        if isinstance(size := getattr(encoder_config, name, None), int):
            return size
    raise ValueError(
        f"Cannot find the size of the hidden states in {type(encoder_config).__name__}: it has none of hidden_size, "
        "d_model, dim, n_embd."
    )


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


# What is saved then carries its code: this file, and those that it imports, the pipeline's among them.
HcalForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["HcalForSequenceClassification", "HcalOutput", "HcalPreTrainedModel"]
