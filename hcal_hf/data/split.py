"""Splits one table into training, validation and test documents."""

from collections.abc import Sequence

import numpy as np

from .texts import group_equal_texts

# The shares of groups of equal texts.
SHARES = {"validation": 0.1, "test": 0.1}
# A label with fewer groups is in the training documents only.
FEWEST_GROUPS = 3
# Rare labels may enlarge validation and test to this multiple of their share.
LARGEST = 1.5


def split_rows(texts: Sequence[str], labels: Sequence[Sequence[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Splits N documents 80/10/10 into training, validation and test.

    Equal texts stay together, so that no text is trained on and tested. The split is stratified by the labels. A label that
    fewer than three different texts carry is in the training documents only; every other label is in each part, as far as
    the parts stay below 1.5 times their share.

    Args:
        texts: the N texts.
        labels: the labels of each text, as node indices.
        seed: the same seed gives the same split.

    Returns:
        the sorted row numbers of `train`, `validation` and `test`.

    Raises:
        ValueError: if there are fewer than three different texts.
    """
    groups = group_equal_texts(texts)
    number = int(groups.max(initial=-1)) + 1
    if number < FEWEST_GROUPS:
        raise ValueError(f"The table has {number} different text(s): a split into three parts needs at least three.")
    sizes = np.fromiter(map(len, labels), dtype=np.int64, count=len(labels))
    flat = np.fromiter((node for row in labels for node in row), dtype=np.int64, count=int(sizes.sum()))
    pairs = np.unique(np.stack([flat, groups[np.repeat(np.arange(len(labels)), sizes)]], axis=1), axis=0)
    nodes, starts, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    members = {int(node): pairs[start : start + count, 1] for node, start, count in zip(nodes, starts, counts)}
    random = np.random.default_rng(seed)
    part = _stratify(members, number, random)
    _add_missing(part, members, random)
    return {name: np.flatnonzero(part[groups] == i) for i, name in enumerate(("train", *SHARES))}


def _stratify(members: dict[int, np.ndarray], number: int, random: np.random.Generator) -> np.ndarray:
    """Assigns each group to a part (0: train), the groups of rare labels first.

    Source: the order is that of Sechidis et al., "On the stratification of multi-label data", ECML PKDD 2011.
    """
    part = np.full(number, -1)
    rare = [groups for groups in members.values() if len(groups) < FEWEST_GROUPS]
    if rare:
        part[np.concatenate(rare)] = 0
    for node in sorted(members, key=lambda node: (len(members[node]), node)):
        groups = members[node]
        free = random.permutation(groups[part[groups] < 0])
        for i, share in enumerate(SHARES.values(), start=1):
            # The expected number, rounded up or down by chance, less what other labels brought.
            wanted = int(share * len(groups) + random.random()) - int((part[groups] == i).sum())
            part[free[: max(wanted, 0)]] = i
            free = free[max(wanted, 0) :]
        part[free] = 0
    unlabelled = np.flatnonzero(part < 0)
    part[unlabelled] = random.choice(3, size=len(unlabelled), p=[1 - sum(SHARES.values()), *SHARES.values()])
    return part


def _add_missing(part: np.ndarray, members: dict[int, np.ndarray], random: np.random.Generator) -> None:
    """Moves groups from training to a part that lacks one of their labels, as long as training keeps every label."""
    in_training = {node: int((part[groups] == 0).sum()) for node, groups in members.items()}
    labels_of: dict[int, list[int]] = {}
    for node, groups in members.items():
        for group in groups.tolist():
            labels_of.setdefault(group, []).append(node)
    for i, share in enumerate(SHARES.values(), start=1):
        room = max(int(LARGEST * share * len(part)), 1) - int((part == i).sum())
        for node in random.permutation(list(members)).tolist():
            groups = members[node]
            if len(groups) < FEWEST_GROUPS or (part[groups] == i).any():
                continue
            for group in random.permutation(groups[part[groups] == 0]).tolist():
                if room > 0 and all(in_training[other] > 1 for other in labels_of[group]):
                    part[group] = i
                    room -= 1
                    for other in labels_of[group]:
                        in_training[other] -= 1
                    break
