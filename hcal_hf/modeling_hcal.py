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
from transformers import AutoTokenizer, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .anchors import embed_texts, label_texts
from .card_file import card_on_hub, save_minimal_card
from .configuration_hcal import HcalConfig
from .document_states import DocumentStatesMixin
from .encoder_inputs import check_inputs, is_causal
from .encoder_loading import FILE_ARGUMENTS, LOADER_ARGUMENTS, check_exists, hidden_size_of, load_encoder
from .geometry import RELEASED_WIDTH, build_penalty
from .heads import HierarchicalHead, build_head
from .hub import clear_push_errors, warn_of_flat_pipeline
from .integrity import check_loaded_weights, vocabulary_checksum
from .label_extension import add_labels
from .lexical import LexicalFeatures
from .log_space import log_probs_to_logits
from .objectives import feature_gradient_norms
from .pipeline_hcal import HierarchicalTextClassificationPipeline  # noqa: F401 (a saved model carries what this file imports)
from .pooling import stored_pooling
from .prototypes import LabelPrototypes
from .size_checks import WeightFile, build_encoder, check_size, expected_weights
from .targets import Targets
from .tasks import TaskMixin, task_names
from .taxonomy import Taxonomy
from .windows import WindowAttention, window_fields
from .zero_shot import build_zero_shot

logger = logging.get_logger(__name__)


@dataclass
class HcalOutput(ModelOutput):
    """
    Output of [`HcalForSequenceClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Mean loss of the levels that are present in the batch, plus the weighted contrast tasks, plus geometry_weight
            times the label penalty (in training mode).
        logits (`torch.FloatTensor` of shape `[B, L]`, *optional*, returned with `return_logits=True`, the default):
            logit(p) of each node's probability p, always finite. sigmoid(logits) is the probability under every head.
        task_losses (`torch.FloatTensor` of shape `[T]`, *optional*, returned with `labels`):
            Unweighted mean loss of each task (`model.task_names`). 0 for a task absent from the batch.
        task_counts (`torch.LongTensor` of shape `[T]`, *optional*, returned with `labels`):
            The denominator of each task's mean. 0 for a task absent from the batch.
        task_gradient_norms (`torch.FloatTensor` of shape `[D]`, *optional*, returned with `gradient_norms=True`):
            The norm of the gradient of each level's task loss with respect to `features`.
        features (`torch.FloatTensor` of shape `[B, d]`):
            L2-normalised document features (not normalised with `geometry_released`).
        hidden_states, attentions:
            Those of the encoder, if requested.
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
    """Loads, saves and initialises HCAL models."""

    config_class = HcalConfig
    config: HcalConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # The encoder raises an error for implementations that it lacks.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # These modules are trained from scratch, and half precision would lose small updates.
    _keep_in_fp32_modules_strict = {"lexical", "projection", "prototypes", "head", "window_attention"}
    # The loss is a mean over the batch, so the Trainer must not count items and pass them to forward.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LabelPrototypes):
            init.normal_(module.weight, mean=0.0, std=module.init_std)
            if module.is_released:
                init.uniform_(module.weight, -RELEASED_WIDTH, RELEASED_WIDTH)
            if module.is_anchored:
                init.zeros_(module.anchors)
                init.ones_(module.trained)
            if module.is_linear:
                init.copy_(module.depths, torch.from_numpy(self.taxonomy.depths.copy()))
            if module.bias is not None:
                init.constant_(module.bias, 0.0 if module.radius is None else 1.0)
            if module.radius is not None:
                init.ones_(module.radius)
            if module.anchor_scale is not None:
                init.ones_(module.anchor_scale)
        elif isinstance(module, WindowAttention):
            init.zeros_(module.query)
        elif isinstance(module, HierarchicalHead):
            for name, value in module.hierarchy_buffers().items():
                init.copy_(getattr(module, name), value)
            for name, start in module.initial_values().items():
                if getattr(module, name, None) is not None:
                    init.constant_(getattr(module, name), start)
        elif isinstance(module, nn.Linear):
            # Orthogonal rows keep the cosines between pooled states, or between their projections if d is smaller.
            init.orthogonal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a saved model as [`~transformers.PreTrainedModel.from_pretrained`] does, and checks it.

        Args:
            pretrained_model_name_or_path: the folder of the model, or its name on the Hub.
            args, kwargs: as in transformers. In addition, `accept_edits=True` accepts a config.json that was edited after
                the model was saved, and `allow_new_weights=True` accepts missing and misshapen weights, which are then new
                and random, to be trained.

        Raises:
            ValueError: if config.json was edited or describes far more than the weight file holds, or if weights are
                missing, unknown, misshapen, NaN or infinite.
        """
        wants_info, allow_new = kwargs.pop("output_loading_info", False), kwargs.pop("allow_new_weights", False)
        allow_new = kwargs.pop("ignore_mismatched_sizes", False) or allow_new
        check_exists(pretrained_model_name_or_path)
        stored = WeightFile.find(pretrained_model_name_or_path, kwargs)
        with expected_weights(None if allow_new else stored):
            loaded, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        check_loaded_weights(loaded, info, str(pretrained_model_name_or_path), allow_new)
        return (loaded, info) if wants_info else loaded

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Uploads the model and its code to the Hub.

        Arguments and result are those of [`~transformers.PreTrainedModel.push_to_hub`]. The tokenizer is pushed separately.

        Raises:
            ConnectionError: if the connection is lost. Pushing again completes the upload.
        """
        with clear_push_errors(repo_id):
            if kwargs.get("create_pr"):
                return super().push_to_hub(repo_id, *args, **kwargs)
            with card_on_hub(self, repo_id, kwargs.get("token"), kwargs.get("revision")):
                return super().push_to_hub(repo_id, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """Saves the model with its code, and a short model card unless README.md was edited or describes this model."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            save_minimal_card(self, save_directory)


class HcalForSequenceClassification(TaskMixin, DocumentStatesMixin, HcalPreTrainedModel):
    """A transformer encoder with label prototypes and a hierarchical head.

    Use [`from_encoder`] to build it on a pretrained encoder, and `from_pretrained` to load a trained model.

    Args:
        config ([`HcalConfig`]): the configuration.
        encoder (`PreTrainedModel`, *optional*): an encoder with weights. By default, a new one is built from
            `config.encoder_config`.

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
                "The configuration has no labels. Build it with HcalConfig.from_taxonomy(taxonomy, encoder_config), or "
                "build the model with HcalForSequenceClassification.from_encoder(encoder, taxonomy)."
            )
        self.encoder = build_encoder(config.encoder_config) if encoder is None else encoder
        if "add_pooling_layer" in inspect.signature(type(self.encoder).__init__).parameters:
            self.encoder.pooler = None  # unused, and DDP fails on parameters without gradient
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing
        self.lexical = None
        if config.lexical_features and config.lexical_terms:
            self.lexical = LexicalFeatures(config.lexical_terms, config.lexical_features)
        hidden_size = hidden_size_of(config.encoder_config)
        self.check_window_length()
        self.window_attention = WindowAttention(hidden_size) if config.window_pooling == "attention" else None
        hidden_size += config.lexical_features or 0
        size = hidden_size if config.projection_dim is None else config.projection_dim
        self.projection = nn.Linear(hidden_size, size, bias=config.projection_bias)
        self.prototypes = LabelPrototypes(
            self.taxonomy.num_labels,
            size,
            config.perturbation,
            anchor_size=hidden_size if config.prototype_anchor else None,
            depths=torch.from_numpy(self.taxonomy.depths.copy()) if config.score_function == "linear" else None,
            # Under a softmax, biases do not help and would only separate labels with documents from those without. Scores
            # of distances need them: stop scores and sums over paths of different lengths compare them with 0.
            has_bias=config.geometry == "hyperbolic"
            or (config.label_mode == "multi_path" and not config.geometry_released),
            curvature=config.geometry_curvature if config.geometry == "hyperbolic" else None,
            is_released=config.geometry_released,
        )
        self.label_penalty = build_penalty(config, self.taxonomy)
        self.head = build_head(config, self.taxonomy)
        self.task_names: list[str] = task_names(config, self.head.num_tasks)
        self.post_init()
        check_size(self, config)

    @classmethod
    def from_encoder(
        cls,
        encoder: str,
        taxonomy: Taxonomy,
        preset: str | None = None,
        descriptions: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> "HcalForSequenceClassification":
        """Builds a model with an untrained head on a pretrained encoder.

        Args:
            encoder (`str`): name on the Hub or folder of any model that `AutoModel` loads. Of T5 and its relatives, the
                encoder is loaded alone.
            taxonomy ([`Taxonomy`]): the label hierarchy.
            preset (`"paper"`, *optional*): uses [`HcalConfig.paper`] instead of the defaults.
            descriptions (`dict[str, str]`, *optional*): label texts, with `prototype_anchor="label_text"`. The text
                of other labels is built from their names and their parents' names.
            kwargs: fields of [`HcalConfig`] (`label_mode`, `pooling`, ...), where the default of `pooling` is that of a
                SentenceTransformer's own files, else "last" for decoder-only models and "mean" for others, and that of
                `window_length`, with `max_windows`, is the length that the tokenizer stores. Also arguments of the
                encoder's `from_pretrained` (`dtype`, `revision`, `token`, ...).

        Raises:
            TypeError: for an unknown argument.
            ValueError: if the encoder's architecture is not part of transformers, or a field of the configuration is
                invalid.
        """
        derived = {"encoder_config", "labels", "edges", "id2label", "label2id", "hcal_format_version"}
        derived |= {"lexical_features", "lexical_terms"}
        fields = set(HcalConfig.__dataclass_fields__) - derived
        for name in kwargs:
            if name not in fields and name not in LOADER_ARGUMENTS:
                close = difflib.get_close_matches(name, [*fields, *LOADER_ARGUMENTS], n=3)
                raise TypeError(f"from_encoder has no argument {name!r}. Closest: {close or 'none'}.")
        if preset not in (None, "paper"):
            raise ValueError(f'preset must be "paper" or None, got {preset!r}.')
        if not hasattr(taxonomy, "num_labels"):  # a model repository has a class of its own
            raise TypeError(f"taxonomy must be a Taxonomy, got {type(taxonomy).__name__}: use Taxonomy.from_paths.")
        loader = {name: kwargs.pop(name) for name in LOADER_ARGUMENTS if name in kwargs}
        files = {name: loader[name] for name in FILE_ARGUMENTS if name in loader}
        model = load_encoder(encoder, loader)
        if preset is None and kwargs.get("pooling") is None:
            default = "last" if is_causal(model, model.config.model_type) else "mean"
            kwargs["pooling"] = stored_pooling(encoder, files) or default
        tokenizer = None
        if any(kwargs.get(name) is not None for name in ("prototype_anchor", "window_length", "max_windows")):
            tokenizer = AutoTokenizer.from_pretrained(encoder, **files)
            kwargs |= window_fields(kwargs, encoder, files, tokenizer, model.config)
        make_config = HcalConfig.paper if preset == "paper" else HcalConfig.from_taxonomy
        # A new configuration overwrites the attention of its sub-configurations, so it gets that of the encoder.
        attention = model.config._attn_implementation
        config = make_config(taxonomy, model.config, attn_implementation=attention, **kwargs)
        hcal = cls(config, encoder=model).to(device=model.device)
        if config.prototype_anchor:
            config.label_texts = label_texts(taxonomy, descriptions, config.label_names)
            hcal.embed_labels(tokenizer)
        elif descriptions:
            raise ValueError('descriptions need prototype_anchor="label_text": pass both or none.')
        return hcal

    @classmethod
    def zero_shot(
        cls,
        encoder: str | os.PathLike,
        taxonomy: Taxonomy,
        descriptions: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> "HcalForSequenceClassification":
        """Builds a model that predicts without any training: documents are compared with the texts of the labels.

        The score of a path is the cosine of the document with the text of the path's end node. The probability of an inner
        node is the sum over the leaves below it, because names of inner nodes mislead. [`hcal_hf.adapt`] improves the model
        with unlabelled texts. It can be saved, trained and extended by `add_labels` like any other model.

        Args:
            encoder, taxonomy: as in [`from_encoder`].
            descriptions (`dict[str, str]`, *optional*): the texts of labels. By default, each label's name is its text.
            kwargs: as in [`from_encoder`]. `label_mode` is single_path for a forest and multi_path for a DAG by default.

        Raises:
            TypeError, ValueError: as in [`from_encoder`].
        """
        return build_zero_shot(cls, encoder, taxonomy, descriptions, **kwargs)

    def embed_labels(self, tokenizer: Any, batch_size: int = 64, labels: torch.Tensor | None = None) -> None:
        """Computes the anchors of the prototypes from `config.label_texts` with the current encoder.

        Args:
            tokenizer: the tokenizer of the encoder.
            batch_size (`int`): the number of label texts per batch.
            labels (`torch.Tensor` of shape `[L]`, bool, *optional*): the labels to embed; all by default.

        Raises:
            ValueError: if the model's prototypes are not anchored.
        """
        if not self.prototypes.is_anchored:
            raise ValueError('The prototypes have no anchors: build the model with prototype_anchor="label_text".')
        assert self.config.label_texts is not None
        self.config.tokenizer_checksum = vocabulary_checksum(tokenizer)
        chosen = (
            torch.ones_like(self.prototypes.trained) if labels is None else labels.to(self.prototypes.trained.device)
        )
        texts = [self.config.label_texts[node] for node in chosen.nonzero()[:, 0].tolist()]
        self.prototypes.anchors[chosen] = embed_texts(self, tokenizer, texts, batch_size).to(self.prototypes.anchors)

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

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        embeddings: nn.Module = self.encoder.resize_token_embeddings(*args, **kwargs)
        self.config.encoder_config.vocab_size = self.vocabulary_size  # type: ignore[union-attr]
        return embeddings

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
        penalty_seed: int | None = None,
        **kwargs: Any,
    ) -> HcalOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds:
                The inputs of the encoder. Texts of more than `config.window_length` tokens are read in windows, which needs
                `input_ids`. `hidden_states` and `attentions` are then None.
            pooled_states (`torch.Tensor` of shape `[B, hidden_size]`, *optional*):
                Precomputed pooled encoder states, which replace the inputs of the encoder.
            labels (`torch.Tensor`, *optional*):
                Ancestor-complete labels: floating multi-hot `[B, L]`, or int64 node indices `[B, K]` padded with -100.
            noise (`torch.Tensor` of shape `[L, d]`, *optional*):
                The perturbation U of the prototypes. By default, each process draws its own in training mode
                ([`HcalTrainer`] passes the same to all), and there is none in evaluation mode.
            gradient_norms (`bool`):
                Also returns `task_gradient_norms`, at the cost of one backward pass through prototypes and head per
                level. Needs `labels`.
            return_logits (`bool`):
                False omits `logits`. The losses do not need them, and with many labels they cost more than the losses
                ([`HcalTrainer`] trains without them). If `labels` is missing too, only the features are computed, for
                [`PathSearch`].
            penalty_seed (`int`, *optional*):
                Draws the labels that the task `label_penalty` compares. By default, each process draws its own
                ([`HcalTrainer`] passes the same to all).

        In training mode, `logits` are computed from the same perturbed prototypes as the loss, in evaluation mode from
        the clean ones. In both modes, the scores are divided by `config.score_temperature` for the logits, but not for
        the losses. Calibration therefore does not change the losses.
        """
        outputs = None
        if not torch.compiler.is_compiling():
            warn_of_flat_pipeline()
        check_inputs(input_ids, inputs_embeds, pooled_states, self.projection.in_features)
        if pooled_states is None:
            inputs = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                "inputs_embeds": inputs_embeds,
            }
            given = {name: value for name, value in inputs.items() if value is not None}
            outputs, pooled_states = self.encode_documents(given, **kwargs)

        # Cosines and all later steps need at least float32, also under autocast.
        with _without_autocast(pooled_states.device):
            projected = self.projection(pooled_states.to(self.projection.weight.dtype))
            features = self.prototypes.features(projected.to(torch.promote_types(projected.dtype, torch.float32)))
            if self.training:
                self.prototypes.limit_lengths()
                noise = self.prototypes.sample_noise() if noise is None else noise
            logits = loss = task_losses = task_counts = norms = None
            if return_logits or labels is not None:
                scores = self.head.scores(self.prototypes.products(features, self.projection, noise))
            if return_logits:
                logits = log_probs_to_logits(self.head.log_probs(scores, self.config.score_temperature))
            if labels is not None:
                targets = Targets(labels, self.num_labels, self.label_weights if self.training else None)
                states = None if outputs is None else outputs.last_hidden_state
                task_losses, task_counts = self.compute_task_losses(
                    features, noise, scores, targets, states, attention_mask
                )
                task_losses, task_counts = self.add_label_penalty(task_losses, task_counts, penalty_seed)
                present = task_counts > 0
                uniform = present[: self.num_levels] / present[: self.num_levels].sum().clamp(min=1)
                uniform = self.weigh_sums(uniform, task_counts[: self.num_levels])
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

    def probabilities(self, outputs: HcalOutput) -> torch.Tensor:
        """Returns the probability [B, L] of each node, in the order of `config.labels`."""
        assert outputs.logits is not None
        return torch.sigmoid(outputs.logits)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


# Makes save_pretrained write this file and those that it imports, the pipeline included, next to the model.
HcalForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["HcalForSequenceClassification", "HcalOutput", "HcalPreTrainedModel"]
