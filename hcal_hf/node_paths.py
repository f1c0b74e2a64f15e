"""Checks node indices and enumerates the paths to a node."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

# The most paths of one node that are written. A DAG with few nodes can have billions.
MAX_PATHS = 1000


def check_node(node: Any, num_labels: int) -> int:
    """Returns a node index as an int.

    Raises:
        ValueError: for an index outside 0 to L - 1, or one that is not a whole number.
    """
    try:
        number = operator.index(node)
    except TypeError:
        raise ValueError(f"A node must be a whole number, got {node!r} of type {type(node).__name__}.") from None
    if not 0 <= number < num_labels:
        raise ValueError(f"Node {number} is outside the {num_labels} labels (0 to {num_labels - 1}).")
    return number


def check_nodes(nodes: Any, num_labels: int) -> set[int]:
    """Returns node indices as a set, each checked as by [`check_node`].

    Raises:
        ValueError: for a value that is no sequence of indices, and for each error of [`check_node`].
    """
    if not isinstance(nodes, Iterable):
        raise ValueError(f"Nodes must be a list of node indices, got {nodes!r} of type {type(nodes).__name__}.")
    return {check_node(node, num_labels) for node in nodes}


def edge_array(edges: Any) -> np.ndarray:
    """Returns edges as an int64 array [E, 2].

    Raises:
        ValueError: if they are not pairs of whole numbers.
    """
    try:
        array = np.asarray(edges)
    except ValueError:  # rows of different lengths
        array = np.zeros(1, dtype=object)
    if not array.size:
        return np.zeros((0, 2), dtype=np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(
            f"Edges must be pairs of whole numbers, (parent, child) as indices into labels, got {str(edges)[:80]}. For "
            "pairs of labels, use Taxonomy.from_edges."
        )
    return array.astype(np.int64)


def index_paths(parent_lists: Sequence[Sequence[int]], node: int) -> Iterator[list[int]]:
    """Yields the paths from a root to a node as node indices, without recursion, because hierarchies can be very deep."""
    path, open_parents = [node], [iter(parent_lists[node])]
    if not parent_lists[node]:
        yield [node]
    while open_parents:
        parent = next(open_parents[-1], None)
        if parent is None:
            open_parents.pop()
            path.pop()
            continue
        path.append(parent)
        open_parents.append(iter(parent_lists[parent]))
        if not parent_lists[parent]:
            yield path[::-1]
