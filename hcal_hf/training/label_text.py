"""Keeps label text and training documents together in models with anchored prototypes."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers.utils import logging

from ..data.label_checks import label_column
from ..integrity import vocabulary_checksum
from .class_weights import label_weights_of
from .cooccurrence import count_cooccurrence

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)


class LabelTextMixin(_Trainer):
    """Adds to [`HcalTrainer`] what anchored prototypes need.

    Labels with training documents are marked, because only their prototypes are trained. Their label text stays as it was
    embedded before the training. The label text of the other labels is embedded again after the training.
    """

    processing_class: Any

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Makes a model by `model_init`, as [`~transformers.Trainer`] does at each start of a training."""
        model = super().call_model_init(trial)
        if hasattr(self, "train_dataset"):  # the first model is made before the data are known
            self._note_training_data(model)
        return model

    def _note_training_data(self, model: Any) -> None:
        """Stores in the model what the training documents and arguments say about the labels, and the tokenizer's checksum.

        Which labels have documents, which occur together, and the weights of labels in the loss.
        """
        if self.processing_class is not None:
            model.config.tokenizer_checksum = vocabulary_checksum(self.processing_class)
        dataset: Any = self.train_dataset
        if model.prototypes.is_anchored and isinstance(dataset, Dataset) and "labels" in dataset.column_names:
            _, occurring = label_column(dataset)
            model.prototypes.trained.zero_()
            model.prototypes.trained[torch.from_numpy(np.unique(occurring))] = True
        elif model.prototypes.is_anchored and dataset is not None and model.prototypes.trained.all():
            logger.warning(
                "train_dataset is not a table in memory, so it is unknown which labels have training documents: the "
                "prototypes of all labels are trained. If some labels have none, set model.prototypes.trained before "
                "training, a bool for each label."
            )
        count_cooccurrence(model, dataset)
        weights = label_weights_of(self.args.class_weight, dataset, model.taxonomy, model.config)
        model.label_weights = None if weights is None else weights.to(self.args.device)

    def _embed_untrained_labels(self) -> None:
        """Embeds the text of labels without training documents with the trained encoder.

        The label text of the other labels stays as it was: their prototypes have learned the difference. Embedding all
        label text in each epoch was not better, and let the loss jump (recipes/benchmarks/pages/few_labels.md).
        """
        model: Any = self.unwrapped_model
        is_trained = any(parameter.requires_grad for parameter in model.encoder.parameters())
        if not model.prototypes.is_anchored or not is_trained or model.prototypes.trained.all():
            return
        if self.processing_class is None or self.is_fsdp_enabled:
            logger.warning(
                f"{int((~model.prototypes.trained).sum()):,} labels have no training document, and their label text is as "
                "the encoder embedded it before the training. Load the saved model and call model.embed_labels(tokenizer, "
                "labels=~model.prototypes.trained)."
            )
            return
        model.embed_labels(self.processing_class, labels=~model.prototypes.trained)
