"""Heads turn label scores into node probabilities and per-level losses. This module lists and builds them."""

from .configuration_hcal import HcalConfig
from .hierarchical_head import HierarchicalHead
from .sigmoid_heads import ConditionalSigmoidHead, LabelSigmoidHead, LookaheadSigmoidHead
from .softmax_heads import LevelSoftmaxHead, SiblingSoftmaxHead
from .taxonomy import Taxonomy

HEADS: dict[tuple[str, str], type[HierarchicalHead]] = {
    ("independent", "single_path"): LevelSoftmaxHead,
    ("independent", "multi_path"): LabelSigmoidHead,
    ("path_softmax", "single_path"): SiblingSoftmaxHead,
    ("lookahead_softmax", "single_path"): SiblingSoftmaxHead,
    ("conditional_softmax", "single_path"): SiblingSoftmaxHead,
    ("conditional_sigmoid", "multi_path"): ConditionalSigmoidHead,
    ("lookahead_sigmoid", "multi_path"): LookaheadSigmoidHead,
}


def build_head(config: HcalConfig, taxonomy: Taxonomy) -> HierarchicalHead:
    """Builds the head that `config.head` and `config.label_mode` name."""
    return HEADS[config.head, config.label_mode](config, taxonomy)


__all__ = ["HEADS", "HierarchicalHead", "build_head"]
