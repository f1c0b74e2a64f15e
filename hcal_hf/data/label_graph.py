"""Holds a taxonomy while it is changed."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from ..node_names import SEPARATOR
from ..taxonomy import Taxonomy

# The parent of labels without a parent.
ROOT = -1


class LabelGraph:
    """Holds names and parents of labels, and finds the children of a label by name.

    Nodes 0 to L - 1 are the labels of the old taxonomy, and the following ones are new.

    Args:
        taxonomy: the old taxonomy.

    Attributes:
        names (`list[str]`): the name of each node.
        parents (`list[set[int]]`): the parents of each node.
        children (`dict[int, set[int]]`): the children of each node, and the top labels under `ROOT`.
        by_name (`dict[tuple[int, str], int]`): the node with a parent and a name.
    """

    def __init__(self, taxonomy: Taxonomy):
        self.old = taxonomy
        self.names = list(taxonomy.names)
        self.parents = [set(parents) for parents in taxonomy.parent_lists]
        self.children: dict[int, set[int]] = defaultdict(set)
        self.by_name: dict[tuple[int, str], int] = {}
        for node in range(len(self.names)):
            self.enter(node)

    def enter(self, node: int) -> None:
        """Makes a node a child of its parents."""
        for parent in self.parents[node] or {ROOT}:
            self.children[parent].add(node)
            self.by_name[parent, self.names[node]] = node

    def leave(self, node: int) -> None:
        """Takes a node out of the children of its parents."""
        for parent in self.parents[node] or {ROOT}:
            self.children[parent].discard(node)
            if self.by_name.get((parent, self.names[node])) == node:
                del self.by_name[parent, self.names[node]]

    def shown(self, node: int) -> str:
        """Returns the path to a node along one parent of each, as the draft is now."""
        steps = [self.names[node]]
        while self.parents[node] and len(steps) < 100:
            node = min(self.parents[node])
            steps.append(self.names[node])
        return SEPARATOR.join(reversed(steps))

    def labels(self, numbered: Taxonomy, nodes: Sequence[int]) -> list[str]:
        """Returns the unique label of each node.

        A label is the name of the node if it was before, and its path if it had to be made unique by its path. Additions
        and new names become paths only if the name is taken.

        Args:
            numbered: the new hierarchy.
            nodes: the node of each of its labels.

        Raises:
            ValueError: if two labels would be equal.
        """
        names = [self.names[node] for node in nodes]
        times = Counter(names)
        keeps = [n < self.old.num_labels and self.old.labels[n] == self.names[n] for n in nodes]
        plain = {name for name, keep in zip(names, keeps) if keep}
        roots = set(names[: numbered.levels[0].stop])
        labels: list[str] = []
        paths: list[str] = []
        for i, (node, name, keep) in enumerate(zip(nodes, names, keeps)):
            parents = numbered.parent_lists[i]
            paths.append(paths[parents[0]] + SEPARATOR + name if parents else name)
            was_path = node < self.old.num_labels and self.old.names[node] != self.old.labels[node]
            is_taken = (name in roots and parents) or (not keep and (name in plain or times[name] > 1))
            labels.append(paths[i] if is_taken or (was_path and name == self.old.names[node]) else name)
        if len(set(labels)) < len(labels):
            twice = next(label for label, number in Counter(labels).items() if number > 1)
            raise ValueError(
                f"Two labels would be called {twice!r} after these changes. Give one of them another name."
            )
        return labels
