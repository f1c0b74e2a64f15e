"""Draws training documents in an order that puts documents with shared labels into the same batch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import TrainerCallback

from ..data.label_checks import label_column
from ..taxonomy import Taxonomy

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class HierarchySampler(Sampler[int]):
    """Draws every document once per epoch, in groups that share labels of every level.

    A group starts with a random document, the anchor. For each level, from the top down, one label of the anchor on this
    level and another document with this label are drawn at random, until the batch is full. A level adds no document if
    all documents with the label have been drawn. The order depends only on the seed and the epoch, so it is equal on all
    processes and after resuming. After sorting, the work is linear in the number of (document, label) pairs.

    HJCL's release draws its anchors from all documents, so that some documents occur several times in an epoch and others
    never. It draws the label by a random walk down from the anchor's label.

    Args:
        documents, nodes (`np.ndarray` of shape `[M]`): the (document, label) pairs of the data set, in the order of the
            documents. Labels include their ancestors.
        num_documents (`int`): the number of documents. Documents without labels are groups of their own.
        taxonomy ([`Taxonomy`]): the hierarchy, a forest or a DAG.
        batch_size (`int`): the number of documents per batch of one process. No group crosses the end of a batch.
        seed (`int`): seed of torch's generator.

    Raises:
        ValueError: if `batch_size` is below 1.

    Source: the batch sampler in the released code of Yu et al., 2023 (arXiv 2310.05128).
    """

    def __init__(
        self,
        documents: np.ndarray,
        nodes: np.ndarray,
        num_documents: int,
        taxonomy: Taxonomy,
        batch_size: int,
        seed: int = 0,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.num_documents, self.batch_size, self.seed, self.epoch = num_documents, batch_size, seed, 0
        self.num_labels = taxonomy.num_labels
        # The labels of a document by level: node indices are sorted by depth.
        order = np.lexsort((nodes, documents))
        self.documents, self.nodes = documents[order], nodes[order]
        self.depths = taxonomy.depths[self.nodes]

    def __len__(self) -> int:
        return self.num_documents

    def set_epoch(self, epoch: int) -> None:
        """Selects the order of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        for group in self.groups():
            yield from group

    def groups(self) -> Iterator[list[int]]:
        """Draws the groups of the current epoch: the anchor first, then the documents of its levels."""
        entropy = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(entropy))
        anchors = torch.randperm(self.num_documents, generator=generator)
        # One random order of the documents of each label.
        rank = torch.randperm(self.num_documents, generator=generator).numpy()
        by_label = np.lexsort((rank[self.documents], self.nodes))
        members = self.documents[by_label].tolist()
        ends = np.searchsorted(self.nodes[by_label], np.arange(self.num_labels), side="right").tolist()
        following = [0, *ends[:-1]]
        labels = self._labels_by_level(generator)
        drawn = bytearray(self.num_documents)
        position = 0
        for anchor in anchors.tolist():
            if drawn[anchor]:
                continue
            drawn[anchor] = 1
            group = [anchor]
            for label in labels[anchor]:
                if (position + len(group)) % self.batch_size == 0:
                    break
                at, end = following[label], ends[label]
                while at < end and drawn[members[at]]:
                    at += 1
                following[label] = at
                if at < end:
                    drawn[members[at]] = 1
                    group.append(members[at])
            yield group
            position += len(group)

    def _labels_by_level(self, generator: torch.Generator) -> list[list[int]]:
        """Draws one label of each level of each document, from the top level down."""
        key = torch.rand(len(self.nodes), generator=generator).numpy()
        order = np.lexsort((key, self.depths, self.documents))
        documents, depths = self.documents[order], self.depths[order]
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (documents[1:] != documents[:-1]) | (depths[1:] != depths[:-1])
        chosen = self.nodes[order][is_first]
        bounds = np.searchsorted(documents[is_first], np.arange(1, self.num_documents))
        return [labels.tolist() for labels in np.split(chosen, bounds)]


class FollowEpoch(TrainerCallback):
    """Selects the epoch of a [`HierarchySampler`] when an epoch begins.

    accelerate does so too, but not on several processes that resume within an epoch.
    """

    def __init__(self, sampler: HierarchySampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The epoch is a sum of fractions of steps.
        self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))


class SamplerMixin(_Trainer):
    """Adds `train_sampling_strategy="hierarchy"` to [`HcalTrainer`]."""

    def get_train_dataloader(self) -> Any:
        dataset = self.train_dataset
        has_labels = isinstance(dataset, Dataset) and "labels" in dataset.column_names
        if self.args.train_sampling_strategy == "hierarchy" and not has_labels:
            raise ValueError(
                'train_sampling_strategy="hierarchy" needs the labels of all documents before training, but got: '
                f'{type(dataset).__name__}. Give a Dataset made by encode_dataset, or use train_sampling_strategy="random".'
            )
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "hierarchy":
            return super()._get_train_sampler(train_dataset)
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        sizes, nodes = label_column(dataset)
        args = self.args
        sampler = HierarchySampler(
            np.repeat(np.arange(len(sizes)), sizes),
            nodes,
            len(dataset),
            self.unwrapped_model.taxonomy,
            args.train_batch_size,
            args.seed if args.data_seed is None else args.data_seed,
        )
        self.remove_callback(FollowEpoch)
        self.add_callback(FollowEpoch(sampler))
        return sampler
